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
	dir := t.TempDir()
	fleetsim := simulator(t, dir)
	out, err := exec.CommandContext(t.Context(), fleetsim, "--controller", p.Control, "--dir", filepath.Join(dir, "data"), "--agents", "300",
		"--calm", "1s", "--length", "4s", "--down", "3s", "--timeout", "1m", "--builds", "600", "--bad", "0.005").CombinedOutput()
	if err != nil {
		t.Fatalf("fleetsim: %v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// TestAFleetPinsTheCertificate: the same over HTTPS, with a certificate that only its fingerprint vouches for, also after
// the controller was killed and is back.
func TestAFleetPinsTheCertificate(t *testing.T) {
	t.Parallel()
	p := programs(t)
	dir := t.TempDir()
	out, err := exec.CommandContext(t.Context(), simulator(t, dir), "--controller", p.Control, "--dir", filepath.Join(dir, "data"), "--agents", "20",
		"--calm", "1s", "--length", "2s", "--down", "1s", "--timeout", "1m", "--builds", "600", "--profiles", "builds,restart", "--tls").CombinedOutput()
	if err != nil {
		t.Fatalf("fleetsim: %v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// simulator builds fleetsim into a directory and returns its path.
func simulator(t *testing.T, dir string) string {
	t.Helper()
	root, err := lab.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "fleetsim")
	build := exec.Command("go", "build", "-o", path, "./cmd/fleetsim")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build cmd/fleetsim: %v\n%s", err, out)
	}
	return path
}
