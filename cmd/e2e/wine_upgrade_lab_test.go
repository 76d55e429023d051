//go:build lab && linux

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// wineEdition is one version of the programs that upgrades replace.
type wineEdition struct {
	dir  string            // on this machine
	sums map[string]string // SHA-256 of each program, by name
}

// wineUpgrades are the programs that upgrades replace, in the order in which they are built.
var wineUpgrades = []string{"devopsAgent", "devopsDaemon", "upgrader"}

// windowsBuild builds one program for Windows.
func windowsBuild(out, arch string, args ...string) error {
	root, err := lab.ModuleRoot()
	if err != nil {
		return err
	}
	build := exec.Command("go", append([]string{"build", "-trimpath", "-o", out}, args...)...)
	build.Dir = root
	build.Env = append(os.Environ(), "GOOS=windows", "GOARCH="+arch, "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %v for Windows: %w: %s", args, err, out)
	}
	return nil
}

// windowsEditions are what newWine lays out, and v2.0.0.
var windowsEditions = sync.OnceValues(func() (both [2]wineEdition, err error) { //nolint:gochecknoglobals // built once, like programs
	old, err := windowsPrograms()
	if err != nil {
		return both, err
	}
	both[0].dir, both[1].dir = old, filepath.Join(filepath.Dir(old), "windows-v2")
	for i := range both {
		both[i].sums = map[string]string{}
		for _, name := range wineUpgrades {
			path := filepath.Join(both[i].dir, name+".exe")
			if i == 1 {
				folder := strings.ToLower(strings.TrimPrefix(name, "devops"))
				if err := windowsBuild(path, "amd64", "-ldflags", versionFlag+"v2.0.0", "./cmd/"+folder); err != nil {
					return both, err
				}
			}
			if both[i].sums[name], err = digest(path); err != nil {
				return both, err
			}
		}
	}
	return both, nil
})

// editions are both, of which the machine gets copies: C:\v1 and C:\v2.
func (w *wine) editions() [2]wineEdition {
	w.Helper()
	both, err := windowsEditions()
	if err != nil {
		w.Fatal(err)
	}
	for i, e := range both {
		for name := range e.sums {
			w.copyTo(filepath.Join(e.dir, name+".exe"), fmt.Sprintf("v%d", i+1), name+".exe")
		}
	}
	return both
}

// copyTo copies a file to drive C: of the machine.
func (w *wine) copyTo(from string, to ...string) {
	w.Helper()
	target := filepath.Join(append([]string{w.disk}, to...)...)
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(target), 0o755) //nolint:gosec // an install tree
	}
	if err == nil {
		err = os.WriteFile(target, data, 0o755) //nolint:gosec // a program
	}
	if err != nil {
		w.Fatal(err)
	}
}

// upgrade calls devopsAgent.exe upgrade --from.
func (w *wine) upgrade(dir string, args ...string) (string, int) {
	w.Helper()
	return w.run(append([]string{w.home() + `\devopsAgent.exe`, "upgrade", "--from", dir}, args...)...)
}

// open is the state of the open upgrade, "" for none.
func (w *wine) open() string {
	names, _ := filepath.Glob(w.path("upgrade", "open-*"))
	if len(names) == 0 {
		return ""
	}
	return filepath.Base(names[0])
}

// attempts is the history, the newest first.
func (w *wine) attempts() []string {
	names, _ := filepath.Glob(w.path("upgrade", "*", "attempt.json"))
	slices.Sort(names)
	slices.Reverse(names)
	for i, name := range names {
		data, _ := os.ReadFile(name)
		names[i] = string(data)
	}
	return names
}

// lives says that a program of the home is this one, and that no upgrade is open.
func (w *wine) lives(name, sum string) bool {
	live, err := digest(w.path(name + ".exe"))
	return err == nil && live == sum && w.open() == ""
}

// mine are the processes of the home's own programs, as this machine numbers them.
func (w *wine) mine(program string) []int {
	w.Helper()
	var list []int
	for line := range strings.Lines(w.box("pids", w.name, w.home()+`\`)) {
		var pid int
		if _, err := fmt.Sscan(line, &pid); err == nil && strings.Contains(line, program) {
			list = append(list, pid)
		}
	}
	return list
}

// one is the one process of a program of the home.
func (w *wine) one(program string) int {
	w.Helper()
	var list []int
	w.await(bootLimit, "one "+program, func() bool { list = w.mine(program); return len(list) == 1 })
	return list[0]
}

// strays are files that no upgrade may leave behind.
func (w *wine) strays() []string {
	var all []string
	for _, pattern := range []string{".old-*", "*.old", ".trash-*", ".*.tmp", "jdk_*", "upgrade/open-*", "upgrade/*/new", "tmp/.old-*", "tmp/.*.tmp", "tmp/incoming/*", "tmp/offered-*"} {
		found, _ := filepath.Glob(w.path(filepath.FromSlash(pattern)))
		all = append(all, found...)
	}
	return all
}

// neat waits until nothing is left behind.
func (w *wine) neat() {
	w.Helper()
	if !lab.Eventually(bootLimit, func() bool { return len(w.strays()) == 0 }) {
		w.Errorf("%s: left behind: %v", w.folder, w.strays())
	}
}

// TestWineServerUpgradesAnAgent: a controller brings a machine to the next version while devopsDaemon.exe is a service, when its build has
// ended; an upgrader that is called by hand, as the original's agents call it, does so during a build, which lives on.
func TestWineServerUpgradesAnAgent(t *testing.T) {
	t.Parallel()
	w := newWine(t, "rollout")
	both := w.editions()
	w.write("agent.toml", "[upgrade]\nsettle_after = \"1s\"\n")
	w.controlled()
	w.agent("install")
	old, daemon := w.one("devopsAgent.exe"), w.one("devopsDaemon.exe")
	id := w.begin(10)
	if out, code := w.control.Run("", "upgrade", "add", both[1].dir, "--version", "v2.0.0"); code != 0 {
		t.Fatalf("upgrade add: %s", out)
	}
	if out, code := w.control.Run("", "upgrade", "offer", "v2.0.0"); code != 0 {
		t.Fatalf("upgrade offer: %s", out)
	}
	seen := w.control.Over(60*time.Second, id)
	if seen.State != "succeeded" || seen.HandOuts != 1 {
		t.Errorf("the build is %s after %d hand-outs, reported %+v", seen.State, seen.HandOuts, seen.Report)
	}
	var said string
	w.await(offerLimit, "the controller says that it is done", func() bool {
		said, _ = w.control.Run("", "upgrade", "status")
		return strings.Contains(said, "is done")
	})
	if !w.lives("devopsAgent", both[1].sums["devopsAgent"]) || !w.lives("upgrader", both[1].sums["upgrader"]) {
		t.Errorf("agent or upgrader are not the new ones; open %q, history %v", w.open(), w.attempts())
	}
	if !w.lives("devopsDaemon", both[0].sums["devopsDaemon"]) || w.one("devopsDaemon.exe") != daemon {
		t.Error("the service was replaced")
	}
	if w.one("devopsAgent.exe") == old {
		t.Error("the old agent runs")
	}
	if out := w.agent("version"); strings.TrimSpace(out) != "v2.0.0" {
		t.Errorf("version %s", out)
	}
	if out := w.agent("upgrade", "history"); !strings.Contains(out, "settled") || !strings.Contains(out, "v2.0.0") {
		t.Errorf("history: %s", out)
	}
	w.neat()

	if out, code := w.control.Run("", "upgrade", "pause"); code != 0 {
		t.Fatalf("upgrade pause: %s", out)
	}
	old = w.one("devopsAgent.exe")
	id = w.begin(15)
	w.copyTo(filepath.Join(both[0].dir, "devopsAgent.exe"), w.folder, "tmp", "devopsAgent.exe")
	if out, code := w.run(w.home()+`\upgrader.exe`, "-action=upgrade"); code != 0 {
		t.Fatalf("upgrader: exit code %d: %s", code, out)
	}
	w.await(backLimit, "it is settled", func() bool { return w.lives("devopsAgent", both[0].sums["devopsAgent"]) })
	if w.one("devopsAgent.exe") == old {
		t.Error("the old agent runs")
	}
	if seen, err := w.control.Build(id); err != nil || seen.State != "running" {
		t.Errorf("the build is %s, %v, when its agent has been replaced", seen.State, err)
	}
	seen = w.control.Over(60*time.Second, id)
	if seen.State != "succeeded" || seen.HandOuts != 1 {
		t.Errorf("the build is %s after %d hand-outs, reported %+v", seen.State, seen.HandOuts, seen.Report)
	}
	w.neat()
	w.agent("stop")
	w.await(bootLimit, "everything has ended", func() bool { return len(w.pids("devops")) == 0 })
}

// wineBad is one way for a new version to be bad.
type wineBad struct {
	name    string
	ours    bool   // our agent, broken; else a small program that is none
	server  bool   // the server brings it; else an operator
	refused bool   // found out before anything is replaced
	why     string // in the history
}

func wineBads() []wineBad {
	return []wineBad{
		{name: "exit0", why: "started 3 times"},
		{name: "exit1", ours: true, server: true, why: "started 3 times"},
		{name: "hang", ours: true, why: "did not answer"},
		{name: "crash", ours: true, why: "started 3 times"},
		{name: "truncated", ours: true, refused: true},
		{name: "arm64", refused: true},
	}
}

// makeBads builds the bad versions, each in a directory of its name.
func makeBads(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	root, err := lab.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	small, ours, overlay := filepath.Join(dir, "small.exe"), filepath.Join(dir, "ours.exe"), filepath.Join(dir, "overlay.json")
	text, err := json.Marshal(map[string]map[string]string{"Replace": {
		filepath.Join(root, "cmd", "agent", "broken.go"): filepath.Join(root, "cmd", "e2e", "testdata", "badversion", "overlay.go.txt"),
	}})
	if err == nil {
		err = os.WriteFile(overlay, text, 0o600)
	}
	if err == nil {
		err = windowsBuild(small, "amd64", "./cmd/e2e/testdata/badversion")
	}
	if err == nil {
		err = windowsBuild(filepath.Join(dir, "arm64", "devopsAgent.exe"), "arm64", "./cmd/e2e/testdata/badversion")
	}
	if err == nil {
		err = windowsBuild(ours, "amd64", "-overlay", overlay, "-ldflags", versionFlag+"v9.0.0", "./cmd/agent")
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range wineBads() {
		if b.name == "arm64" {
			continue
		}
		program := small
		if b.ours {
			program = ours
		}
		data, err := os.ReadFile(program)
		if err != nil {
			t.Fatal(err)
		}
		if b.name == "truncated" {
			data = data[:len(data)*6/10]
		} else {
			data = append(data, []byte(fmt.Sprintf("%40s", "\nbroken:"+b.name))...)
		}
		if err := os.MkdirAll(filepath.Join(dir, b.name), 0o755); err != nil { //nolint:gosec // no secret
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, b.name, "devopsAgent.exe"), data, 0o755); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
	}
	return dir
}

// TestWineBadVersions: each is taken back by itself within 90 s, or refused before anything is replaced, and not taken again. All at once,
// each in a home with a service of its own.
func TestWineBadVersions(t *testing.T) {
	t.Parallel()
	m := newWine(t, "bad")
	both := m.editions()
	dir := makeBads(t)
	var wait sync.WaitGroup
	defer wait.Wait()
	for _, b := range wineBads() {
		m.copyTo(filepath.Join(dir, b.name, "devopsAgent.exe"), "bad", b.name, "devopsAgent.exe")
		w := m.another(b.name).recorded()
		w.write("agent.toml", "[upgrade]\nsettle_after = \"30s\"\n")
		w.agent("install")
		w.polled(0)
		wait.Go(func() {
			if b.server {
				w.goesBackAfterOffer(b, both[0], filepath.Join(dir, b.name, "devopsAgent.exe"))
			} else {
				w.goesBack(b, both[0])
			}
		})
	}
}

// goesBack has an operator bring a bad version and measures until the old one works again.
func (w *wine) goesBack(b wineBad, old wineEdition) {
	from, begun := `C:\bad\`+b.name, time.Now()
	if b.refused {
		said, code := w.upgrade(from, "--wait")
		if code == 0 || len(w.attempts()) > 0 || !w.lives("devopsAgent", old.sums["devopsAgent"]) {
			w.Errorf("%s: exit code %d, %s; history %v", b.name, code, said, w.attempts())
			return
		}
		number(w.T, "%-10s refused after %.1f s: %s", b.name, time.Since(begun).Seconds(), lastLine(said, nil))
		return
	}
	if said, code := w.upgrade(from); code != 0 {
		w.Errorf("%s: exit code %d: %s", b.name, code, said)
		return
	}
	if !w.back(b, old) {
		return
	}
	said, code := w.upgrade(from, "--wait")
	if code == 0 || !strings.Contains(said, "taken back") {
		w.Errorf("%s, once more: exit code %d: %s", b.name, code, said)
	}
	if !w.lives("devopsAgent", old.sums["devopsAgent"]) || len(w.attempts()) != 1 {
		w.Errorf("%s, once more: it was tried; history %v", b.name, w.attempts())
	}
	w.neat()
}

// goesBackAfterOffer has the server bring it, which goes on to offer it.
func (w *wine) goesBackAfterOffer(b wineBad, old wineEdition, program string) {
	for name, path := range map[string]string{"devopsAgent": program, "devopsDaemon": filepath.Join(old.dir, "devopsDaemon.exe"), "upgrader": filepath.Join(old.dir, "upgrader.exe")} {
		data, err := os.ReadFile(path)
		if err != nil {
			w.Error(err)
			return
		}
		w.rec.Publish("upgrade/"+name+".exe", data)
	}
	w.rec.Offer("agent")
	if !w.back(b, old) {
		return
	}
	reports := func() []string {
		var list []string
		for _, q := range w.rec.Of(lab.FinishUpgrade) {
			list = append(list, q.Query.Get("success"))
		}
		return list
	}
	if !lab.Eventually(offerLimit, func() bool { return len(reports()) == 2 }) || !slices.Equal(reports(), []string{"false", "false"}) {
		w.Errorf("%s: the server heard %v, want that it failed, and that it is not tried once more", b.name, reports())
	}
	if len(w.attempts()) != 1 || !w.lives("devopsAgent", old.sums["devopsAgent"]) {
		w.Errorf("%s: the same offer was tried again: %v", b.name, w.attempts())
	}
	w.neat()
}

// back waits until a bad version was taken back and the old one works.
func (w *wine) back(b wineBad, old wineEdition) bool {
	if !lab.Eventually(offerLimit, func() bool { return w.open() != "" || len(w.attempts()) > 0 }) {
		w.Errorf("%s: no upgrade is begun; history %v", b.name, w.attempts())
		return false
	}
	trial := time.Now()
	if !lab.Eventually(3*time.Minute, func() bool {
		list := w.attempts()
		return len(list) > 0 && attemptOf(list[0]).State == "rolled-back" && w.lives("devopsAgent", old.sums["devopsAgent"])
	}) {
		w.Errorf("%s: not taken back: %q, history %v", b.name, w.open(), w.attempts())
		return false
	}
	if _, ok := w.rec.WaitFor(60*time.Second, w.rec.Mark(), lab.Ask); !ok {
		w.Errorf("%s: the old version does not work", b.name)
		return false
	}
	starts := w.rec.Of(lab.Startup) // the last is that of the old version
	took := starts[len(starts)-1].At.Sub(trial)
	a := attemptOf(w.attempts()[0])
	number(w.T, "%-10s taken back, and the old works after %.1f s: %s; last: %q, %q", b.name, took.Seconds(), a.Reason, a.LastExit, a.Stderr[:min(len(a.Stderr), 60)])
	if took > backLimit || !strings.Contains(a.Reason, b.why) {
		w.Errorf("%s: the old version works after %v, want at most %v; reason %q, want %q", b.name, took, backLimit, a.Reason, b.why)
	}
	if state := w.state(); state != "RUNNING" {
		w.Errorf("%s: the service is %s", b.name, state)
	}
	return true
}

// TestWineKillsInUpgrades: whatever process is killed in the middle of an upgrade, or when the power goes, the next start of the service
// finds one complete version.
func TestWineKillsInUpgrades(t *testing.T) {
	t.Parallel()
	w := newWine(t, "kills")
	both := w.editions()
	w.recorded().write("agent.toml", "[upgrade]\nsettle_after = \"0s\"\n")
	w.agent("install")
	w.polled(0)
	if out, code := w.run("reg", "add", `HKLM\SYSTEM\CurrentControlSet\Control`, "/v", "AutoStartDelay", "/t", "REG_DWORD", "/d", "100", "/f"); code != 0 {
		t.Fatalf("reg add: %s", out)
	}
	seed := labSeed(t)
	rng := rand.New(rand.NewPCG(seed, 4)) //nolint:gosec // a test repeats itself
	outcomes, states := map[string]int{}, map[string]int{}
	var slowest time.Duration
	runs := envInt(t, "WINE_KILLS", 8)
	for i := range runs {
		now := 0
		if w.lives("devopsAgent", both[1].sums["devopsAgent"]) {
			now = 1
		}
		if said, code := w.upgrade(fmt.Sprintf(`C:\v%d`, 2-now)); code != 0 {
			t.Fatalf("run %d: upgrade: exit code %d: %s", i, code, said)
		}
		victim := []string{".exe", "devopsDaemon.exe", "power", "upgrader.exe"}[i%4]
		wanted := []string{"open-ready", "open-trial-0", "open-trial-1"}[rng.IntN(3)]
		_ = lab.Eventually(bootLimit, func() bool { // or it was too fast
			return w.open() == wanted || w.lives("devopsAgent", both[1-now].sums["devopsAgent"])
		})
		if wanted != "open-ready" {
			<-time.After(time.Duration(rng.IntN(300)) * time.Millisecond)
		}
		state, mark := w.open(), w.rec.Mark()
		states[strings.TrimPrefix(state, "open-")]++
		begun := time.Now()
		if victim == "power" {
			w.box("reboot", w.name)
		} else {
			for list := w.mine(victim); len(list) > 0; list = w.mine(victim) {
				for _, pid := range list {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
				if victim != ".exe" {
					break
				}
			}
			w.await(bootLimit, "the service runs again", func() bool {
				if w.state() == "STOPPED" { // Wine has no recovery actions, which would do that
					_, _ = w.run("sc", "start", w.service())
				}
				return len(w.mine("devopsDaemon.exe")) == 1
			})
		}
		var version string
		w.await(backLimit, fmt.Sprintf("one complete version works, after %s was killed in %q", victim, state), func() bool {
			_, ok := w.rec.Wait(10*time.Second, mark, func(q lab.Request) bool {
				version = fmt.Sprint(q.Get("heartbeat", "masterVersion"))
				return q.Endpoint == lab.Ask && q.At.After(begun)
			})
			return ok && (w.lives("devopsAgent", both[0].sums["devopsAgent"]) || w.lives("devopsAgent", both[1].sums["devopsAgent"]))
		})
		took := time.Since(begun)
		slowest = max(slowest, took)
		live := 0
		if w.lives("devopsAgent", both[1].sums["devopsAgent"]) {
			live = 1
		}
		if (version == "v2.0.0") != (live == 1) {
			t.Errorf("run %d: the agent that polls is %s; v%d is in place", i, version, live+1)
		}
		if !lab.Eventually(bootLimit, func() bool { return len(w.mine("devopsAgent.exe")) == 1 }) {
			t.Errorf("run %d: agents %v", i, w.mine("devopsAgent.exe"))
		}
		if (live == 1) != w.lives("upgrader", both[1].sums["upgrader"]) {
			t.Errorf("run %d: agent and upgrader are of two versions", i)
		}
		outcomes[map[bool]string{true: "went on", false: "as before"}[live != now]]++
		t.Logf("run %d: %s killed in %q: v%d to v%d after %.1f s", i, victim, state, now+1, live+1, took.Seconds())
	}
	number(t, "%d upgrades in which a process was killed or the power went, in these states: %v; %v; the slowest agent worked after %.1f s",
		runs, states, outcomes, slowest.Seconds())
	w.agent("restart")
	w.neat()
	w.agent("stop")

	now := 0
	if w.lives("devopsAgent", both[1].sums["devopsAgent"]) {
		now = 1
	}
	if said, code := w.upgrade(fmt.Sprintf(`C:\v%d`, 2-now)); code != 0 {
		t.Fatalf("upgrade without an agent: exit code %d: %s", code, said)
	}
	w.halfway()
	mark := w.rec.Mark()
	if out, code := w.run("sc", "start", w.service()); code != 0 {
		t.Fatalf("sc start: %s", out)
	}
	w.polled(mark)
	w.await(backLimit, "it settles", func() bool { return w.lives("devopsAgent", both[1-now].sums["devopsAgent"]) })
	w.neat()
	w.agent("stop")
}

// halfway makes what a power cut leaves between the two renames of a program: there is none. Its upgrade has come into place without an
// agent, and no agent has been started since.
func (w *wine) halfway() {
	w.Helper()
	ids, _ := filepath.Glob(w.path("upgrade", "*", "attempt.json"))
	slices.Sort(ids)
	dir := filepath.Dir(ids[len(ids)-1])
	w.copyTo(filepath.Join(dir, "old", "devopsAgent.exe"), w.folder, ".old-7-devopsAgent.exe")
	for from, to := range map[string]string{w.path("upgrade", "open-trial-0"): w.path("upgrade", "open-ready"), w.path("devopsAgent.exe"): filepath.Join(dir, "new", "devopsAgent.exe")} {
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			w.Fatal(err)
		}
		if err := os.Rename(from, to); err != nil {
			w.Fatal(err)
		}
	}
}

// TestWineUpgradesOffline: an upgrade from a directory and the way back, with no server, under the service and while it is stopped.
func TestWineUpgradesOffline(t *testing.T) {
	t.Parallel()
	w := newWine(t, "offline")
	both := w.editions()
	w.recorded().write("agent.toml", "[upgrade]\nsettle_after = \"0s\"\n")
	w.agent("install")
	w.polled(0)
	w.rec.Stop()
	w.await(60*time.Second, "the server is away", func() bool {
		out, _ := w.run(w.home()+`\devopsAgent.exe`, "status")
		return strings.Contains(out, "cannot be reached")
	})
	for _, running := range []bool{true, false} {
		if !running {
			w.agent("stop")
		}
		for i, verb := range [][]string{{"upgrade", "--from", `C:\v2`}, {"rollback"}} {
			if running {
				verb = append(verb, "--wait")
			}
			begun := time.Now()
			said := w.agent(verb...)
			if !running {
				w.agent("start")
			}
			sum := both[1-i].sums["devopsAgent"]
			w.await(backLimit, "it settles: "+said, func() bool {
				return w.lives("devopsAgent", sum) && strings.Contains(strings.Join(w.attempts()[:1], ""), `"settled"`)
			})
			number(t, "service runs %v: %s settled after %.1f s without a server", running, verb[0], time.Since(begun).Seconds())
			if !running {
				w.agent("stop")
			}
		}
	}
	w.agent("start")
	w.neat()
	w.agent("stop")
}

// hold keeps a file of the home open, as a virus scanner does, until release is called.
func (w *wine) hold(name string) (release func()) {
	w.Helper()
	cmd := exec.Command(w.tool, "run", w.name, `C:\holder.exe`, w.home()+`\`+name)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		w.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	if strings.TrimSpace(line) != "held" {
		w.Fatalf("%s is not held: %q", name, line)
	}
	pid := w.pid(`C:\holder.exe`)
	return sync.OnceFunc(func() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		_ = cmd.Wait()
	})
}

// TestWineFileHeldOpen: a virus scanner that holds the agent's program for a moment delays its upgrade; one that does not let go is
// reported, and everything is as before. A bad version goes as soon as it is let go.
func TestWineFileHeldOpen(t *testing.T) {
	t.Parallel()
	w := newWine(t, "held")
	both := w.editions()
	helper := filepath.Join(t.TempDir(), "holder.exe")
	if err := windowsBuild(helper, "amd64", "./cmd/e2e/testdata/holder"); err != nil {
		t.Fatal(err)
	}
	w.copyTo(helper, "holder.exe")
	w.recorded().write("agent.toml", "[upgrade]\nsettle_after = \"0s\"\n")
	w.agent("install")
	w.polled(0)

	release := w.hold("devopsAgent.exe")
	defer release()
	begun := time.Now()
	said, code := w.upgrade(`C:\v2`, "--wait")
	if code == 0 || !strings.Contains(said, "as before") && !strings.Contains(said, "failed") {
		t.Errorf("held for long: exit code %d: %s", code, said)
	}
	number(t, "held for long: given up after %.1f s: %s", time.Since(begun).Seconds(), lastLine(said, nil))
	w.await(bootLimit, "its upgrader has ended", func() bool { return len(w.mine("upgrader.exe")) == 0 })
	if list := w.attempts(); !w.lives("devopsAgent", both[0].sums["devopsAgent"]) || len(list) != 1 || attemptOf(list[0]).State != "failed" {
		t.Errorf("held for long: open %q, history %v", w.open(), w.attempts())
	}
	w.polled(w.rec.Mark())
	release()

	release = w.hold("devopsAgent.exe")
	defer release()
	begun = time.Now()
	if said, code := w.upgrade(`C:\v2`); code != 0 {
		t.Fatalf("upgrade: exit code %d: %s", code, said)
	}
	w.await(bootLimit, "it is written down", func() bool { return w.open() != "" })
	<-time.After(500 * time.Millisecond)
	release()
	w.await(backLimit, "it settles", func() bool { return w.lives("devopsAgent", both[1].sums["devopsAgent"]) })
	number(t, "held for a moment: settled after %.1f s", time.Since(begun).Seconds())

	old, mark := w.one("devopsAgent.exe"), w.rec.Mark()
	ended := make(chan time.Time, 1)
	go func() {
		for lab.Running(old) {
			<-time.After(time.Millisecond)
		}
		ended <- time.Now()
	}()
	w.agent("rollback")
	first, ok := w.rec.WaitFor(backLimit, mark, lab.Startup)
	if !ok {
		t.Fatalf("no agent after a rollback; history %v", w.attempts())
	}
	number(t, "end of the old agent to the first request of the new: %d ms", first.At.Sub(<-ended).Milliseconds())
	w.await(backLimit, "it settles", func() bool { return w.lives("devopsAgent", both[0].sums["devopsAgent"]) })
	w.neat()
	w.agent("stop")
}
