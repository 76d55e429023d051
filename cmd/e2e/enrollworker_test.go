//go:build linux

package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// TestEnrollSaysThatBuildsNeedAWorker, while somebody is there to bring one, and not only when the first build fails.
func TestEnrollSaysThatBuildsNeedAWorker(t *testing.T) {
	t.Parallel()
	p := programs(t)
	c := lab.NewController(t, p)
	token, code := c.Run("", "enroll-token")
	if code != 0 {
		t.Fatal("no token")
	}
	home := t.TempDir()
	h := packagedHome{vendor: home}
	h.replace(t, "devopsAgent", p.Agent)
	enroll := func() string {
		t.Helper()
		cmd := exec.Command(filepath.Join(home, "devopsAgent"), "enroll", "--gateway", c.URL)
		cmd.Stdin = strings.NewReader(token)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "enrolled as ") {
			t.Fatalf("enroll: %v\n%s", err, out)
		}
		return string(out)
	}
	if said := enroll(); !strings.Contains(said, "hint: builds need a worker: copy devopsWorker, or worker-agent.jar and a jdk17 directory, into "+home) {
		t.Errorf("without a worker it says %q", said)
	}
	h.replace(t, "devopsWorker", p.Worker)
	if said := enroll(); strings.Contains(said, "hint") {
		t.Errorf("with a worker it says %q", said)
	}
}
