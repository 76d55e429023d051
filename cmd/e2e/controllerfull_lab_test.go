//go:build lab && linux

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
	"github.com/devops-agent/devops-agent/controller"
)

// TestCrashControllerFullDisk: with no room left, the controller refuses new work and says why, goes on reading, lets
// workers wait with their log, and goes on by itself when there is room again.
func TestCrashControllerFullDisk(t *testing.T) {
	c := lab.NewController(t, programs(t))
	c.Kill()
	disk := &volume{megabytes: 40}
	disk.mountAt(t, c.Data)
	t.Cleanup(c.Kill) // before the file system goes
	c.Start()
	home, _ := enrolled(t, c)
	api := newOperatorAPI(t, c)
	stop := home.LabPath("stop")
	id := c.Submit("name: long\nsteps:\n  - name: count\n    script: |\n      i=0\n      while [ ! -e " + stop + " ]; do i=$((i+1)); echo line-$i-; sleep 0.1; done\n      echo total-$i-\n")
	if !lab.Eventually(30*time.Second, func() bool { return len(numbers(t, c, id)) > 5 }) {
		t.Fatalf("the build did not start: %s", home.Log())
	}

	filler := disk.fill(t)
	big := strings.Repeat("# nothing\n", 30_000)
	refused, taken := "", 0
	if !lab.Eventually(time.Minute, func() bool {
		status, data, err := api.call("POST", "/builds", map[string]any{"spec": map[string]any{"name": "big", "labels": []string{"nowhere"}, "steps": []map[string]any{{"script": big}}}})
		if err == nil && status == 200 {
			taken++
		} else if err == nil {
			refused = string(data)
		}
		return refused != ""
	}) {
		t.Fatalf("%d builds were taken, none was refused", taken)
	}
	if !strings.Contains(refused, "full") {
		t.Errorf("the refusal does not say why: %s", refused)
	}
	before := len(numbers(t, c, id))
	var view controller.Build
	if status, data, err := api.call("GET", "/builds/"+id, nil); err != nil || status != 200 || json.Unmarshal(data, &view) != nil || view.State != controller.Running || before == 0 {
		t.Errorf("with a full disk: status %d, build %s with %d lines, %v", status, view.State, before, err)
	}
	if _, code := c.Run("", "backup", c.Data+"/full.tar.zst"); code == 0 {
		t.Error("a backup fitted on a full disk")
	}

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if !lab.Eventually(time.Minute, func() bool { return len(numbers(t, c, id)) > before+20 }) {
		t.Errorf("the log does not go on: %s", home.Log())
	}
	next := c.Submit("name: next\nsteps:\n  - name: one\n    script: echo line-1-\n")
	if err := os.WriteFile(stop, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{id, next} {
		if seen := c.Over(2*time.Minute, id); seen.State != "succeeded" || seen.HandOuts != 1 {
			t.Errorf("build %+v", seen)
		}
	}
	got := numbers(t, c, id)
	for i, n := range got {
		if n != fmt.Sprint(i+1) {
			t.Errorf("line %d of the log is number %s", i+1, n)
			break
		}
	}
	if out, _ := c.Run("", "logs", id); !strings.Contains(out, fmt.Sprintf("total-%d-", len(got))) {
		t.Errorf("%d lines are in the log, the script wrote another number", len(got))
	}
	if out, code := c.Run("", "check"); code != 0 {
		t.Errorf("check: %s", out)
	}
	if t.Failed() {
		t.Logf("controller:\n%s\nagent:\n%s", c.Log(), home.Log())
	}
}
