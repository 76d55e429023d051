//go:build linux

package e2e

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// TestAFleetIsServedCorrectly plays 300 simulated agents against the built controller: none sees an error that it does not
// make itself, every build runs once, every line is there, a rollout passes over bad hosts, and all come back after a kill.
// How fast that goes is for "make bench-fleet" to say.
func TestAFleetIsServedCorrectly(t *testing.T) {
	t.Parallel()
	p := programs(t)
	root, err := lab.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	fleetsim := filepath.Join(dir, "fleetsim")
	build := exec.Command("go", "build", "-o", fleetsim, "./cmd/fleetsim")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build cmd/fleetsim: %v\n%s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), fleetsim, "--controller", p.Control, "--dir", filepath.Join(dir, "data"), "--agents", "300",
		"--calm", "1s", "--length", "4s", "--down", "3s", "--timeout", "1m", "--builds", "600", "--bad", "0.005").CombinedOutput()
	if err != nil {
		t.Fatalf("fleetsim: %v\n%s", err, out)
	}
	t.Logf("%s", out)
}
