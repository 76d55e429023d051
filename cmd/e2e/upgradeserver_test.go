//go:build linux

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// publishFile publishes a program under BK-CI's name.
func (w *upgradeWorld) publishFile(t *testing.T, part, program string) {
	t.Helper()
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	w.rec.Publish(w.remote(part), data)
}

// reports are the values of success that the server has heard.
func (w *upgradeWorld) reports() []string {
	var list []string
	for _, q := range w.rec.Of(lab.FinishUpgrade) {
		list = append(list, q.Query.Get("success"))
	}
	return list
}

// speaks waits for a heartbeat of a version.
func (w *upgradeWorld) speaks(t *testing.T, mark int, version string) lab.Request {
	t.Helper()
	q, ok := w.rec.Wait(offerLimit, mark, func(q lab.Request) bool {
		return q.Endpoint == lab.Ask && q.Get("heartbeat", "masterVersion") == version
	})
	if !ok {
		t.Fatalf("no heartbeat of %s; reports %v, history %+v\n%s", version, w.reports(), w.history(), w.home.Log())
	}
	return q
}

// TestServerUpgradesAnAgent: from the offer to the report, with agent, devopsDaemon and upgrader, by either keeper.
func TestServerUpgradesAnAgent(t *testing.T) {
	t.Parallel()
	for _, kept := range []keeperOf{byDaemon, byStart} {
		t.Run(string(kept), func(t *testing.T) {
			t.Parallel()
			w := newUpgradeWorld(t, kept, "20s")
			w.publishFile(t, "devopsAgent", w.next.agent)
			w.publishFile(t, "devopsDaemon", w.next.daemon)
			w.publishFile(t, "upgrader", w.next.upgrader)
			mark := w.rec.Mark()
			w.rec.Offer("agent")
			w.speaks(t, mark, nextVersion)
			w.rec.Offer()
			first, ok := w.rec.WaitFor(time.Second, mark, lab.Startup)
			if !ok {
				t.Fatal("the new agent did not say startup")
			}
			var last time.Time
			for _, q := range w.rec.All() {
				if q.At.Before(first.At) && q.At.After(last) {
					last = q.At
				}
			}
			t.Logf("last request of the old agent to the first of the new: %v", first.At.Sub(last).Round(time.Millisecond))
			if !lab.Eventually(30*time.Second, func() bool { return slices.Equal(w.reports(), []string{"true"}) }) {
				t.Errorf("reports %v, want one of success; %s", w.reports(), w.home.Log())
			}
			if !w.over("settled") || !w.runs() {
				t.Errorf("left %v, history %+v, agents %v", w.left(), w.history(), w.agents())
			}
			for name, program := range map[string]string{"devopsAgent": w.next.agent, "devopsDaemon": w.next.daemon, "upgrader": w.next.upgrader} {
				if !w.same(t, name, program) {
					t.Errorf("%s is not the new one", name)
				}
			}
			if found, _ := filepath.Glob(w.home.Path("tmp", "incoming", "*")); len(found) > 0 {
				t.Errorf("left behind: %v", found)
			}
			// What the new agent's builds inherit is what those of any agent do.
			build := lab.NewBuild()
			w.rec.Queue(build)
			w.run(t, func() { w.mustFinish(time.Minute, build) })
			for name := range w.home.Run(build).Env() {
				if name == "DEVOPS_STDERR_FD" || name == "DEVOPS_VENDOR" {
					t.Errorf("a build has %s", name)
				}
			}
		})
	}
}

// TestServerOffersABadVersion: it is taken back, the server hears so from the old agent, and it is not fetched again and again.
func TestServerOffersABadVersion(t *testing.T) {
	t.Parallel()
	w := newUpgradeWorld(t, byDaemon, "4s")
	if err := os.WriteFile(w.home.LabPath("mode"), []byte("exit 1"), 0o644); err != nil { //nolint:gosec // no secret
		t.Fatal(err)
	}
	w.publishFile(t, "devopsAgent", w.next.bad)
	w.publishFile(t, "devopsDaemon", w.programs.Daemon)
	w.publishFile(t, "upgrader", w.programs.Upgrader)
	mark := w.rec.Mark()
	w.rec.Offer("agent")
	q, ok := w.rec.WaitFor(offerLimit, mark, lab.FinishUpgrade)
	if !ok || q.Query.Get("success") != "false" {
		t.Fatalf("reports %v; %+v\n%s", w.reports(), w.history(), w.home.Log())
	}
	if !w.over("rolled-back") || !w.runs() {
		t.Errorf("left %v, history %+v", w.left(), w.history())
	}
	status, _, _ := verb(w, w.home.Path("devopsAgent"), w.home.Dir, "status")
	if !strings.Contains(status, "v6.6.6") || !strings.Contains(status, "started 3 times") {
		t.Errorf("status says nothing of it:\n%s", status)
	}
	// It is offered once more, and refused without having run. After that there is a pause.
	if !lab.Eventually(offerLimit, func() bool { return len(w.reports()) == 2 }) || w.reports()[1] != "false" {
		t.Fatalf("reports %v", w.reports())
	}
	downloads := len(w.rec.Of(lab.Download))
	w.watchDaemon(t, 15*time.Second)
	if now := len(w.rec.Of(lab.Download)); now != downloads || len(w.history()) != 1 {
		t.Errorf("%d more downloads, history %+v", now-downloads, w.history())
	}
	status, _, _ = verb(w, w.home.Path("devopsAgent"), w.home.Dir, "status")
	if !strings.Contains(status, "tried here") {
		t.Errorf("status does not say why it is refused:\n%s", status)
	}
}

// watchDaemon lets time pass while the daemon has to live.
func (w *upgradeWorld) watchDaemon(t *testing.T, d time.Duration) {
	t.Helper()
	if code, err := w.daemon.Wait(d); err == nil {
		t.Fatalf("the daemon ended with %d: %s", code, w.home.Log())
	}
}

// TestServerInTroubleIsNoReasonToGoBack: a good version whose server answers 500 right after the upgrade stays, and settles when
// the server is well again.
func TestServerInTroubleIsNoReasonToGoBack(t *testing.T) {
	t.Parallel()
	w := newUpgradeWorld(t, byDaemon, "3s")
	w.publishFile(t, "devopsAgent", w.next.agent)
	w.publishFile(t, "devopsDaemon", w.programs.Daemon)
	w.publishFile(t, "upgrader", w.programs.Upgrader)
	w.rec.Offer("agent")
	if !lab.Eventually(offerLimit, func() bool { return w.home.Has("upgrade/open-trial-1") || w.home.Has("upgrade/open-ready") }) {
		t.Fatalf("no upgrade began: %s", w.home.Log())
	}
	w.rec.Offer()
	for _, e := range []lab.Endpoint{lab.Startup, lab.Ask, lab.FinishUpgrade} {
		w.rec.Always(e, lab.Answer{Code: 500})
	}
	w.watchDaemon(t, 20*time.Second) // several times the guard's patience
	found, _ := filepath.Glob(w.home.Path("upgrade", "open-trial-*"))
	if len(found) != 1 || !w.same(t, "devopsAgent", w.next.agent) || !w.runs() {
		t.Errorf("on trial: %v, left %v, history %+v", found, w.left(), w.history())
	}
	status, _, _ := verb(w, w.home.Path("devopsAgent"), w.home.Dir, "status")
	if !strings.Contains(status, "trial: "+nextVersion) {
		t.Errorf("status says nothing of the trial:\n%s", status)
	}
	for _, e := range []lab.Endpoint{lab.Startup, lab.Ask, lab.FinishUpgrade} {
		w.rec.On(e, nil)
	}
	if !lab.Eventually(90*time.Second, func() bool { return w.over("settled") }) {
		t.Fatalf("not settled: %v %+v\n%s", w.left(), w.history(), w.home.Log())
	}
	if !lab.Eventually(90*time.Second, func() bool { r := w.reports(); return len(r) > 0 && r[len(r)-1] == "true" }) {
		t.Errorf("reports %v", w.reports())
	}
}

// TestOperatorUpgradesAndGoesBack: upgrade --from a directory, a zip and one file; rollback; history; with an agent that runs and
// without.
func TestOperatorUpgradesAndGoesBack(t *testing.T) {
	t.Parallel()
	w := newUpgradeWorld(t, byDaemon, "20s")
	dir := w.home.LabPath("release")
	if err := os.MkdirAll(filepath.Join(dir, "upgrade"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, program := range map[string]string{"devopsAgent": w.next.agent, "devopsDaemon": w.next.daemon, "upgrader": w.next.upgrader} {
		if out, err := exec.Command("cp", program, filepath.Join(dir, filepath.FromSlash(w.remote(name)))).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	jar := w.home.LabPath("worker-agent.jar")
	if err := os.WriteFile(jar, []byte("v9.9.9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	own := w.home.LabPath("devopsAgent") // not one that is about to be replaced
	if out, err := exec.Command("cp", w.programs.Agent, own).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	must := func(want string, args ...string) {
		t.Helper()
		out, errs, code := verb(w, own, w.home.Dir, args...)
		if code != 0 || !strings.Contains(out, want) {
			t.Fatalf("%v: code %d, %s%s\n%s", args, code, out, errs, w.home.Log())
		}
	}
	mark := w.rec.Mark()
	must("done: agent", "upgrade", "--from", dir, "--wait")
	w.speaks(t, mark, nextVersion)
	must("done: worker", "upgrade", "--from", jar, "--wait")
	if w.read("worker-agent.jar") != "v9.9.9\n" {
		t.Error("the worker is not the new one")
	}
	out, errs, code := verb(w, own, w.home.Dir, "upgrade", "--from", jar, "--wait")
	if code == 0 || !strings.Contains(errs, "already") {
		t.Errorf("once more: code %d, %s%s", code, out, errs)
	}
	mark = w.rec.Mark()
	must("done: agent", "rollback", "--wait")
	w.speaks(t, mark, "v0.0.0-dev.0")
	if !w.runs() {
		t.Errorf("agents %v", w.agents())
	}
	if out, errs, code := verb(w, own, w.home.Dir, "rollback", "v7.7.7"); code != 1 || !strings.Contains(errs, "v7.7.7") || !strings.Contains(errs, "hint: ") {
		t.Errorf("rollback to what never ran: code %d, %s%s", code, out, errs)
	}
	mark = w.rec.Mark()
	must("done: agent", "rollback", nextVersion, "--wait")
	w.speaks(t, mark, nextVersion)
	var list []struct{ ID, Kind, State string }
	text, _, code := verb(w, own, w.home.Dir, "upgrade", "history", "--json")
	if err := json.Unmarshal([]byte(text), &list); err != nil || code != 0 {
		t.Fatalf("history: %v, code %d: %s", err, code, text)
	}
	var kinds []string
	for _, a := range list {
		kinds = append(kinds, a.Kind+" "+a.State)
	}
	if want := []string{"rollback settled", "rollback settled", "file settled", "file settled"}; !slices.Equal(kinds, want) {
		t.Errorf("history %v, want %v", kinds, want)
	}
	must(nextVersion, "upgrade", "history")
	if found, _ := filepath.Glob(w.home.Path("tmp", "offered-*")); len(found) > 0 {
		t.Errorf("left behind: %v", found)
	}
	if r := w.reports(); len(r) > 0 {
		t.Errorf("the server, which has ordered nothing, heard %v", r)
	}
	// Without an agent it is done at once, and proves itself later.
	w.stopAll(t)
	must("in place: agent", "rollback")
	if !w.same(t, "devopsAgent", w.programs.Agent) {
		t.Error("the agent was not replaced")
	}
	if out, errs, code := verb(w, own, w.home.Dir, "upgrade", "--from", dir); code != 1 || !strings.Contains(errs, "not finished") {
		t.Errorf("during a trial: code %d, %s%s", code, out, errs)
	}
	mark = w.rec.Mark()
	w.keep(t)
	w.speaks(t, mark, "v0.0.0-dev.0")
	if !lab.Eventually(30*time.Second, func() bool { return w.over("settled") }) {
		t.Errorf("left %v, history %+v", w.left(), w.history())
	}
}

// stopAll ends daemon and agent.
func (w *upgradeWorld) stopAll(t *testing.T) {
	t.Helper()
	_, errs, code := verb(w, w.home.LabPath("devopsAgent"), w.home.Dir, "stop", "--now")
	if code != 0 || !lab.Eventually(10*time.Second, func() bool { return len(w.agents()) == 0 }) {
		lab.KillMarked("LAB_DIR=" + w.home.Lab)
		t.Logf("stop: code %d, %s", code, errs)
	}
}
