//go:build linux

package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// release signs three programs and makes a release of them.
func release(t *testing.T, c *lab.Controller, packager, key, version string, programs map[string]string) {
	t.Helper()
	suffix := "_linux"
	if runtime.GOARCH == "arm64" {
		suffix += "_arm64"
	}
	dir := t.TempDir()
	sign := []string{"sign", "--key", key, "--version", version}
	for name, program := range programs {
		path := filepath.Join(dir, name+suffix)
		if out, err := exec.Command("cp", program, path).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		sign = append(sign, path)
	}
	if key != "" {
		if out, err := exec.Command(packager, sign...).CombinedOutput(); err != nil {
			t.Fatalf("sign: %v: %s", err, out)
		}
	}
	if out, code := c.Run("", "upgrade", "add", dir, "--version", version); code != 0 {
		t.Fatalf("upgrade add: %d: %s", code, out)
	}
}

// TestRollout: a controller gives two agents under devopsDaemon a signed version, one first and then the other; halts by itself when the
// next one turns out bad on the first; and an unsigned one is not taken at all.
func TestRollout(t *testing.T) {
	t.Parallel()
	next, err := nextPrograms()
	if err != nil {
		t.Fatal(err)
	}
	root, err := lab.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	packager := filepath.Join(t.TempDir(), "packager")
	build := exec.Command("go", "build", "-o", packager, "./cmd/packager")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the packager: %v\n%s", err, out)
	}
	key := filepath.Join(t.TempDir(), "release.key")
	if out, err := exec.Command(packager, "keygen", "--out", key, "--no-password").CombinedOutput(); err != nil {
		t.Fatalf("keygen: %v: %s", err, out)
	}
	pub, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(string(pub))
	trust := "[upgrade]\nsettle_after = \"0s\"\n[trust]\nrequire = true\nkeys = [\"" + lines[len(lines)-1] + "\"]\n"

	p := programs(t)
	c := lab.NewController(t, p)
	var homes []*lab.Home
	for range 2 {
		home := lab.NewHome(t, p, lab.HomeOptions{Worker: p.Worker, NoJar: true, JDK: "-", Gateway: c.URL, Mode: "auto"})
		home.Remove(".agent.properties")
		for name, program := range map[string]string{"devopsDaemon": p.Daemon, "upgrader": p.Upgrader, "tmp/upgrader": p.Upgrader} {
			if out, err := exec.Command("cp", "--remove-destination", program, home.Path(name)).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		home.Write("agent.toml", trust)
		token, code := c.Run("", "enroll-token")
		if code != 0 {
			t.Fatal("no token")
		}
		enroll := exec.Command(home.Path("devopsAgent"), "enroll", "--gateway", c.URL, "--home", home.Dir) // not an agent that the machine has
		enroll.Stdin = strings.NewReader(token)
		if out, err := enroll.CombinedOutput(); err != nil {
			t.Fatalf("enroll: %v\n%s", err, out)
		}
		home.StartProgram(home.Path("devopsDaemon"), "/", nil, "DEVOPS_TRIAL_PATIENCE=20s")
		homes = append(homes, home)
	}
	until := func(what string, limit time.Duration, words ...string) {
		t.Helper()
		var out string
		if !lab.Eventually(limit, func() bool {
			out, _ = c.Run("", "upgrade", "status")
			for _, word := range words {
				if !strings.Contains(out, word) {
					return false
				}
			}
			return true
		}) {
			t.Fatalf("not %s within %v:\n%s\ncontroller: %s\nfirst agent: %s\nsecond agent: %s", what, limit, out, c.Log(), homes[0].Log(), homes[1].Log())
		}
	}
	offer := func(version string) {
		t.Helper()
		if out, code := c.Run("", "upgrade", "offer", version, "--canary", "1"); code != 0 {
			t.Fatalf("offer %s: %d: %s", version, code, out)
		}
	}
	is := func(home *lab.Home, program string) bool {
		a, err1 := os.ReadFile(home.Path("devopsAgent"))
		b, err2 := os.ReadFile(program)
		return err1 == nil && err2 == nil && bytes.Equal(a, b)
	}
	if !lab.Eventually(startLimit, func() bool {
		return strings.Contains(homes[0].Log(), "Startup accepted") && strings.Contains(homes[1].Log(), "Startup accepted")
	}) {
		t.Fatal("the agents did not get in touch")
	}

	good := map[string]string{"devopsAgent": next.agent, "devopsDaemon": next.daemon, "upgrader": next.upgrader}
	release(t, c, packager, key, nextVersion, good)
	offer(nextVersion)
	until("everywhere", 2*offerLimit, "is done", "2 of 2 have it")
	for i, home := range homes {
		if !is(home, next.agent) {
			t.Errorf("agent %d is not the new one", i)
		}
	}

	for _, home := range homes {
		if err := os.WriteFile(home.LabPath("mode"), []byte("exit 1"), 0o644); err != nil { //nolint:gosec // no secret
			t.Fatal(err)
		}
	}
	release(t, c, packager, key, "v10.0.0", map[string]string{"devopsAgent": next.bad, "devopsDaemon": next.daemon, "upgrader": next.upgrader})
	offer("v10.0.0")
	until("halted", 2*offerLimit, "v10.0.0 is halted", "1 failed")

	release(t, c, packager, "", "v11.0.0", map[string]string{"devopsAgent": p.Agent, "devopsDaemon": p.Daemon, "upgrader": p.Upgrader})
	offer("v11.0.0")
	until("refused", 2*offerLimit, "v11.0.0 is halted")
	said := homes[0].Log() + homes[1].Log()
	if !strings.Contains(said, "not signed") {
		t.Errorf("no agent says that the version was not signed")
	}
	for i, home := range homes {
		if !is(home, next.agent) {
			t.Errorf("agent %d is not the last good one", i)
		}
	}
}
