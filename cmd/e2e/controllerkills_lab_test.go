//go:build lab && linux

package e2e

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// TestCrashController: kill -9 of the controller at CRASH_CONTROLLER_KILLS random moments, 20, under 5 agents that build all the time.
func TestCrashController(t *testing.T) {
	t.Parallel()
	testControllerKilled(t, envInt(t, "CRASH_CONTROLLER_KILLS", 20), envInt(t, "CRASH_CONTROLLER_AGENTS", 5))
}

// TestCrashControllerUnderAFleet: 1,000 simulated agents see no error that they do not make themselves, with builds, a network that
// comes and goes, and a controller that is killed and back later. How fast that goes is for "make bench-fleet" to say.
func TestCrashControllerUnderAFleet(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	out, err := exec.CommandContext(t.Context(), simulator(t, dir), "--controller", programs(t).Control, "--dir", filepath.Join(dir, "data"), "--agents", "1000",
		"--profiles", "builds,flapping,restart", "--calm", "1s", "--length", "4s", "--down", "3s", "--timeout", "2m", "--builds", "600").CombinedOutput()
	if err != nil {
		t.Fatalf("fleetsim: %v\n%s", err, out)
	}
	t.Logf("%s", out)
}
