//go:build lab && linux

package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// TestCrashControllerFullDiskArtifact: an artifact for which the controller's disk has no room fails its step and says so,
// leaves nothing behind, and costs the next build nothing.
func TestCrashControllerFullDiskArtifact(t *testing.T) {
	c := lab.NewController(t, programs(t))
	c.Kill()
	disk := &volume{megabytes: 64}
	disk.mountAt(t, c.Data)
	t.Cleanup(c.Kill) // before the file system goes
	c.Start()
	enrolled(t, c)
	file := "steps: [{script: \"head -c SIZE /dev/urandom >big\"}]\nartifacts: [{name: big, paths: [big]}]\n"
	id := c.Submit(strings.Replace(file, "SIZE", "80000000", 1))
	over := c.Over(2*time.Minute, id)
	out, _ := c.Run("", "builds", id)
	if over.State != "failed" || !strings.Contains(out, "save artifact big: not enough room in ") {
		t.Errorf("%s: %s", over.State, out)
	}
	if list := artifactsOf(t, c); len(list) != 0 {
		t.Errorf("%+v", list)
	}
	id = c.Submit(strings.Replace(file, "SIZE", "8000000", 1))
	if over := c.Over(2*time.Minute, id); over.State != "succeeded" || len(artifactsOf(t, c)) != 1 {
		out, _ := c.Run("", "builds", id)
		t.Errorf("%s: %s", over.State, out)
	}
}
