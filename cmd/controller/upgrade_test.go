package main

import (
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/controller"
)

// programs writes a set of programs for Linux into a new folder, and other files beside them.
func programs(t *testing.T, version string, more ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range append([]string{"devopsAgent_linux", "devopsDaemon_linux", "upgrader_linux"}, more...) {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(version+" "+name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestCollectFindsNamesAndSignatures(t *testing.T) {
	dir := programs(t, "v1", "devopsAgent_linux.minisig", "README.md", "jre/linux/jdk17.zip", "devopsController_linux")
	files, err := collect([]string{dir})
	if err != nil || len(files) != 5 || files["jre/linux/jdk17.zip"] == "" || files["upgrade/devopsAgent_linux.minisig"] == "" {
		t.Errorf("%v %v", files, err)
	}
	files, err = collect([]string{filepath.Join(dir, "devopsAgent_linux"), filepath.Join(dir, "devopsAgent_linux.minisig")})
	if err != nil || len(files) != 2 {
		t.Errorf("%v %v", files, err)
	}
	other := programs(t, "v2")
	for want, args := range map[string][]string{
		"no agent asks": {filepath.Join(dir, "README.md")},
		"are both":      {dir, other},
		"no such":       {filepath.Join(dir, "nothing")},
	} {
		if _, err := collect(args); err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), "cannot find", "no such"), want) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := collect([]string{t.TempDir()}); err == nil {
		t.Error("an empty folder is a release")
	}
}

func TestMentions(t *testing.T) {
	const version = "v2.10.0"
	for at, want := range map[int]bool{0: true, 1<<20 - 3: true, 1<<20 - len(version): true, 1 << 20: true, 2<<20 + 5: true, -1: false} {
		data := make([]byte, 3<<20)
		if at >= 0 {
			copy(data[at:], version)
		}
		path := filepath.Join(t.TempDir(), "program")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := mentions(path, version); err != nil || got != want {
			t.Errorf("at %d: %v, %v", at, got, err)
		}
	}
}

func TestPickingARollout(t *testing.T) {
	one := func(id int64, version string, state controller.RolloutState) controller.RolloutInfo {
		return controller.RolloutInfo{Rollout: controller.Rollout{ID: id, Version: version, State: state}}
	}
	list := []controller.RolloutInfo{one(3, "v3", controller.Rolling), one(2, "v2", controller.Done), one(1, "v3", controller.RolledBack)}
	for name, want := range map[string]int64{"": 3, "2": 2, "v2": 2, "v3": 3, "1": 1} {
		if r, err := pick(list, name, inForce); err != nil || r.ID != want {
			t.Errorf("%q: %d %v, want %d", name, r.ID, err, want)
		}
	}
	if _, err := pick(list, "v9", inForce); err == nil {
		t.Error("an unknown one was found")
	}
	if _, err := pick(append(list, one(4, "v4", controller.Halted)), "", inForce); err == nil || !strings.Contains(err.Error(), "3 (v3, rolling)") {
		t.Errorf("%v", err)
	}
	if _, err := pick(list[2:], "", inForce); err == nil {
		t.Error("one that is over was picked")
	}
}

// reports asks for upgrades as an agent of a version.
func (a *fakeAgent) reports(version string) wire.UpgradeItem {
	a.t.Helper()
	for {
		parts, err := a.client.Ask(a.t.Context(), wire.Ask{Enable: wire.AskEnable{Build: wire.None, Upgrade: true},
			Heartbeat: wire.Heartbeat{MasterVersion: version, SlaveVersion: version, HostName: "fake", Props: wire.HostProps{Arch: "amd64"}},
			Upgrade:   &wire.UpgradeCheck{GoAgentVersion: version, WorkerVersion: version}}, time.Second)
		switch {
		case err == nil && parts.Upgrade != nil:
			return *parts.Upgrade
		case a.t.Context().Err() != nil:
			a.t.Fatal(err)
		}
	}
}

func (a *fakeAgent) download(name string) string {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), "GET", a.client.Gateway+wire.PathDownload+"?file="+name, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	id := a.client.Identity
	for key, value := range map[string]string{wire.HeaderBuildType: "AGENT", wire.HeaderProject: id.Project, wire.HeaderAgent: id.Agent, wire.HeaderSecret: string(id.Secret)} {
		req.Header.Set(key, value)
	}
	resp, err := a.client.HTTP.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		a.t.Fatalf("download %s: %s %v", name, resp.Status, err)
	}
	return string(data)
}

// A rollout by the command line; the controller is killed after every step.
func TestUpgradesOnTheCommandLine(t *testing.T) {
	path, dir := program(t), t.TempDir()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listen := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	p := start(t, path, dir, listen)
	defer func() { p.kill(t) }()
	expect := func(code int, want string, args ...string) {
		t.Helper()
		out, errs, got := cmdline(t, path, dir, append([]string{"upgrade"}, args...)...)
		if got != code || !strings.Contains(out+errs, want) {
			t.Fatalf("upgrade %v: %d, want %d and %q in\n%s%s", args, got, code, want, out, errs)
		}
		p.kill(t)
		p = start(t, path, dir, listen)
	}
	first, second := enrol(t, p.url, dir), enrol(t, p.url, dir)
	first.reports("v1.0.0")
	second.reports("v1.0.0")
	v1, v2 := programs(t, "v1.0.0"), programs(t, "v2.0.0", "devopsAgent_linux.minisig", "worker-agent.jar")
	expect(0, "no release yet", "list")
	expect(0, "no rollout yet", "status")
	expect(1, "no rollout is in a state for this", "pause")
	expect(1, `required flag(s) "version" not set`, "add", v1)
	expect(1, "hint: names are devopsAgent_linux", "add", v2, filepath.Join(dir, "operator.token"), "--version", "v1")
	expect(1, "upgrade/devopsDaemon_linux is missing", "add", filepath.Join(v1, "devopsAgent_linux"), "--version", "v1.0.0")
	expect(0, "v1.0.0", "add", v1, "--version", "v1.0.0")
	expect(0, "v2.0.0", "add", v2, "--version", "v2.0.0", "--worker-version", "")
	expect(0, "v9 is not written anywhere in it", "add", v2, "--version", "v9", "--worker-version", "v2.0.0")
	expect(0, "", "remove", "v9")
	expect(0, `"worker":"v2.0.0"`, "list", "--json")
	expect(1, "no agent has all of the labels gpu", "offer", "v2.0.0", "--labels", "gpu,linux")
	expect(1, "hint:", "ofer", "v2.0.0")
	expect(0, "rollout 1: v2.0.0 is canary", "offer", "v2.0.0", "--canary", "1", "--labels", "linux")
	expect(1, "rollout 1 offers v2.0.0 to the same agents already", "offer", "v2.0.0", "--labels", "linux")
	if !first.reports("v1.0.0").Agent {
		t.Fatal("no offer")
	}
	if second.reports("v1.0.0").Any() {
		t.Error("two canaries")
	}
	expect(0, "1 told, 1 waiting", "status")
	if got := first.download("upgrade/devopsAgent_linux"); got != "v2.0.0 devopsAgent_linux" {
		t.Errorf("downloaded %q", got)
	}
	if got := first.download("upgrade/devopsAgent_linux.minisig"); got != "v2.0.0 devopsAgent_linux.minisig" {
		t.Errorf("downloaded %q", got)
	}
	first.reports("v2.0.0")
	expect(0, "is paused", "pause")
	expect(0, "is canary", "resume", "1")
	if err := first.client.FinishUpgrade(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	first.reports("v1.0.0")
	expect(0, "failed: fake (agent "+first.client.Identity.Agent, "status")
	expect(0, "is halted: 1 failed, 0 may", "status", "v2.0.0")
	expect(0, "is rolling", "resume", "--retry")
	for _, a := range []*fakeAgent{first, second} {
		if !a.reports("v1.0.0").Agent {
			t.Fatal("no offer after resume")
		}
		a.reports("v2.0.0")
		if err := a.client.FinishUpgrade(t.Context(), true); err != nil {
			t.Fatal(err)
		}
	}
	expect(0, "2 of 2 have it", "status")
	expect(1, "v2.0.0 is needed: rollout 1 offers it (done)", "remove", "v2.0.0")
	expect(0, "is rolled-back", "rollback")
	if first.reports("v2.0.0"); first.download("upgrade/devopsAgent_linux") != "v1.0.0 devopsAgent_linux" {
		t.Error("it is not taken back")
	}
	for _, a := range []*fakeAgent{first, second} {
		a.reports("v1.0.0")
	}
	expect(0, "2 of 2 are back", "status", "1")
	expect(1, "v1.0.0 is needed: rollout 1 takes agents back to it", "remove", "v1.0.0")
	expect(0, "release v2.0.0 removed", "remove", "v2.0.0")
	expect(0, "reverted", "status", "1")
	expect(0, `"state":"rolled-back"`, "status", "1", "--json")
}
