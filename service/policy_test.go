package service

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestUpgradePolicy: what can be read counts, whatever else is in the file; what cannot is as if it were not there.
func TestUpgradePolicy(t *testing.T) {
	inst := open(t)
	if mode, proof := inst.UpgradePolicy(); mode != "server" || proof != 30*time.Second {
		t.Errorf("no file: %q, %v", mode, proof)
	}
	for text, want := range map[string]struct {
		mode  string
		proof time.Duration
	}{
		"":                                      {"server", 30 * time.Second},
		"[upgrade]\nmode = \"package\"\n":       {"package", 30 * time.Second},
		"upgrade.mode = 'off' # for now\n":      {"off", 30 * time.Second},
		"upgrade = { mode = \"off\" }\n":        {"off", 30 * time.Second},
		"[upgrade]\nsettle_after = \"2m\"\n":    {"server", 2 * time.Minute},
		"[upgrade]\nsettle_after = \"0s\"\n":    {"server", 0},
		"[upgrade]\nsettle_after = \"2h\"\n":    {"server", 30 * time.Second},
		"[upgrade]\nsettle_after = \"-1s\"\n":   {"server", 30 * time.Second},
		"[upgrade]\nsettle_after = 7\n":         {"server", 30 * time.Second},
		"[upgrade]\nmode = \"never\"\n":         {"server", 30 * time.Second},
		"[upgrade]\nmode = 3\n":                 {"server", 30 * time.Second},
		"[upgrade]\nmode = \"package\"\nx = {":  {"server", 30 * time.Second},
		"nonsense = 1\n[upgrade]\nmode='off'\n": {"off", 30 * time.Second},
		"upgrade = 3\n":                         {"server", 30 * time.Second},
	} {
		if err := os.WriteFile(inst.Config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if mode, proof := inst.UpgradePolicy(); mode != want.mode || proof != want.proof {
			t.Errorf("%q: %q, %v, want %v", text, mode, proof, want)
		}
	}
}

// TestHeld: it makes nothing.
func TestHeld(t *testing.T) {
	inst := open(t)
	if held, err := inst.Held(RoleAgent); held || err != nil {
		t.Errorf("%v, %v", held, err)
	}
	if entries, err := os.ReadDir(inst.Home); err != nil || len(entries) > 0 {
		t.Errorf("made %v, %v", entries, err)
	}
	lock, err := inst.Hold(t.Context(), RoleAgent)
	if err != nil {
		t.Fatal(err)
	}
	if held, err := inst.Held(RoleAgent); !held || err != nil {
		t.Errorf("%v, %v", held, err)
	}
	if err := lock.Release(); err != nil {
		t.Error(err)
	}
}

// TestHomeHere calls a copy of this program from where people and agents of the original call upgrader and installer.
func TestHomeHere(t *testing.T) {
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	home, elsewhere, other := filepath.Join(base, "home"), filepath.Join(base, "elsewhere"), filepath.Join(base, "other")
	for _, dir := range []string{filepath.Join(home, "tmp"), filepath.Join(home, "bin"), elsewhere, other} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{home, other} {
		touch(t, filepath.Join(dir, ".agent.properties"))
	}
	touch(t, filepath.Join(home, "tmp", ProgramName("linux", "devopsAgent"))) // a download: no home all the same
	for _, way := range []struct{ program, cwd, want string }{
		{filepath.Join(home, "tmp", "upgrader.exe"), home, home},
		{filepath.Join(home, "tmp", "upgrader.exe"), elsewhere, home},
		{filepath.Join(home, "bin", "upgrader.exe"), elsewhere, home},
		{filepath.Join(home, "upgrader.exe"), elsewhere, home},
		{filepath.Join(home, "upgrader.exe"), other, other},
		{filepath.Join(elsewhere, "upgrader.exe"), elsewhere, elsewhere},
	} {
		copyFile(t, self, way.program)
		if got := calledIn(t, way.program, way.cwd); got != way.want {
			t.Errorf("%s in %s: %s, want %s", way.program, way.cwd, got, way.want)
		}
	}
}

func calledIn(t *testing.T, program, dir string) string {
	t.Helper()
	cmd := exec.Command(program)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), part+"=here", "GORACE=atexit_sleep_ms=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", program, err, out)
	}
	return strings.TrimSpace(string(out))
}
