//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// TestBootWithABadDaemon: the power goes right after a bad devopsDaemon came into place. What starts with the machine brings the old one
// back, whether the new one says nothing, ends at once or cannot be executed.
func TestBootWithABadDaemon(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"hang", "exit 1", "interpreter"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newUpgradeWorld(t, byDaemon, "30s")
			err := os.WriteFile(w.home.LabPath("mode"), []byte(mode), 0o644) //nolint:gosec // no secret
			w.home.Write("agent.toml", "protocol = \"ask\"\n[upgrade]\nsettle_after = \"40s\"\n")
			bad := w.next.bad
			if mode == "interpreter" && err == nil { // it tells its version, and never runs again
				sh := w.home.LabPath("sh")
				bad = w.home.LabPath("script")
				if err = exec.Command("cp", "/bin/sh", sh).Run(); err == nil {
					err = os.WriteFile(bad, []byte("#!"+sh+"\nrm -f '"+sh+"'\necho v6.6.7\n"), 0o755) //nolint:gosec // a program
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			w.offer(t, bad, "devopsDaemon")
			code, said := w.upgrade(t)
			lab.KillMarked("LAB_DIR=" + w.home.Lab)
			if code != 0 {
				t.Fatalf("code %d: %s%s", code, said, w.home.Log())
			}
			mark := w.rec.Mark()
			at := time.Now()
			w.home.StartProgram(w.home.Path("upgrader"), "/", []string{"keep", "--home", w.home.Dir}, w.env...)
			if _, ok := w.rec.WaitFor(40*time.Second, mark, lab.Startup); !ok {
				t.Fatalf("no agent: %v %+v\n%s", w.left(), w.history(), w.home.Log())
			}
			t.Logf("an agent runs %v after the start of the machine", time.Since(at).Round(time.Millisecond))
			if !w.over("rolled-back") || !w.same(t, "devopsDaemon", w.programs.Daemon) {
				t.Errorf("%v %+v", w.left(), w.history())
			}
			if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", w.pidOf("daemon"))); err != nil || exe != w.home.Path("devopsDaemon") {
				t.Errorf("the daemon is %s, %v", exe, err)
			}
		})
	}
}

// TestUpgraderRecover: what people and packages call. It starts nothing, counts no start, and says what it did.
func TestUpgraderRecover(t *testing.T) {
	t.Parallel()
	w := newUpgradeWorld(t, byDaemon, "30s")
	recovers := func() string {
		t.Helper()
		cmd := exec.Command(w.home.Path("upgrader"), "recover", "--home", w.home.Dir)
		var said strings.Builder
		cmd.Stderr = &said
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %s", err, said.String())
		}
		return string(out)
	}
	if out := recovers(); out != "no upgrade is open\n" {
		t.Errorf("%q", out)
	}
	w.home.Write("agent.toml", "protocol = \"ask\"\n[upgrade]\nsettle_after = \"5m\"\n")
	w.offer(t, w.next.agent, "devopsAgent")
	if code, said := w.upgrade(t); code != 0 {
		t.Fatalf("code %d: %s", code, said)
	}
	if !lab.Eventually(20*time.Second, func() bool { return w.runs() && w.home.Has("upgrade/open-trial-1") }) {
		t.Fatalf("%v, agents %v", w.left(), w.agents())
	}
	for range 5 {
		if out := recovers(); !strings.Contains(out, "is on trial") || !strings.Contains(out, "start 1 of 3") {
			t.Errorf("%q", out)
		}
	}
	lab.KillMarked("LAB_DIR=" + w.home.Lab)
	err := os.Rename(w.home.Path("upgrade", "open-trial-1"), w.home.Path("upgrade", "open-undo"))
	if err != nil {
		t.Fatal(err)
	}
	if out := recovers(); !strings.Contains(out, "was taken back") || !w.over("rolled-back") || !w.same(t, "devopsAgent", w.programs.Agent) || len(w.agents()) != 0 {
		t.Errorf("%q, %v, agents %v", out, w.left(), w.agents())
	}
}
