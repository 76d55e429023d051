//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// enrolled is an agent with the native worker, enrolled at a controller by token and running.
func enrolled(t *testing.T, c *lab.Controller) (*lab.Home, *lab.Agent) {
	t.Helper()
	return enrolledAs(t, c, "auto")
}

func enrolledAs(t *testing.T, c *lab.Controller, mode string) (*lab.Home, *lab.Agent) {
	t.Helper()
	p := programs(t)
	home := lab.NewHome(t, p, lab.HomeOptions{Worker: p.Worker, NoJar: true, JDK: "-", Gateway: c.URL, Mode: mode})
	home.Remove(".agent.properties")
	token, code := c.Run("", "enroll-token")
	if code != 0 {
		t.Fatal("no token")
	}
	enroll := exec.Command(home.Path("devopsAgent"), "enroll", "--gateway", c.URL)
	enroll.Stdin = strings.NewReader(token)
	if out, err := enroll.CombinedOutput(); err != nil {
		t.Fatalf("enroll: %v\n%s", err, out)
	}
	agent := home.Start()
	if !lab.Eventually(20*time.Second, func() bool { return strings.Contains(home.Log(), "Startup accepted") }) {
		t.Fatalf("the agent did not get in touch: %s", home.Log())
	}
	return home, agent
}

// TestControllerKilledDuringABuild is acceptance line 3 of the first release: ten times kill -9 of the controller
// while a build runs. The build goes on, ends once with the status it deserves, and its log is complete and in order.
func TestControllerKilledDuringABuild(t *testing.T) {
	t.Parallel()
	c := lab.NewController(t, programs(t))
	home, _ := enrolled(t, c)
	stop := home.LabPath("stop")
	script := "name: %s\nsteps:\n  - name: count\n    script: |\n      i=0\n" +
		"      while [ ! -e " + stop + " ]; do i=$((i+1)); echo line-$i-; sleep 0.1; done\n      echo total-$i-\n      exit %d\n"
	good, bad := c.Submit(fmt.Sprintf(script, "good", 0)), c.Submit(fmt.Sprintf(script, "bad", 3))
	for _, id := range []string{good, bad} {
		if !lab.Eventually(30*time.Second, func() bool {
			seen, err := c.Build(id)
			return err == nil && seen.StartedAt != 0
		}) {
			t.Fatalf("build %s did not start: %s", id, home.Log())
		}
	}
	for i := range 10 {
		before := len(numbers(t, c, good))
		if !lab.Eventually(30*time.Second, func() bool { return len(numbers(t, c, good)) > before }) {
			t.Fatalf("round %d: no new line of the log within 30 s", i)
		}
		acknowledged := numbers(t, c, good)
		c.Kill()
		c.Start()
		after := numbers(t, c, good)
		if len(after) < len(acknowledged) {
			t.Fatalf("round %d: %d lines were there, %d are left", i, len(acknowledged), len(after))
		}
	}
	if err := os.WriteFile(stop, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]string{good: "succeeded", bad: "failed"} {
		seen := c.Over(3*time.Minute, id)
		if seen.State != want || seen.HandOuts != 1 {
			t.Errorf("build ended %s after %d hand-outs, want %s after one", seen.State, seen.HandOuts, want)
		}
		got := numbers(t, c, id)
		for i, n := range got {
			if n != fmt.Sprint(i+1) {
				t.Errorf("line %d of the log of the build that %s is number %s", i+1, want, n)
				break
			}
		}
		out, _ := c.Run("", "logs", id)
		if total := fmt.Sprintf("total-%d-", len(got)); !strings.Contains(out, total) {
			t.Errorf("%d lines in the log of the build that %s, which wrote another number", len(got), want)
		}
	}
	if t.Failed() {
		t.Logf("agent:\n%s\ncontroller:\n%s", home.Log(), c.Log())
	}
}

var numbered = regexp.MustCompile(`line-(\d+)-`)

func numbers(t *testing.T, c *lab.Controller, id string) []string {
	t.Helper()
	out, _ := c.Run("", "logs", id)
	var list []string
	for _, m := range numbered.FindAllStringSubmatch(out, -1) {
		list = append(list, m[1])
	}
	return list
}

// TestAgentKilledDuringABuild: the build outlives its agent, and is reported once by the next one.
func TestAgentKilledDuringABuild(t *testing.T) {
	t.Parallel()
	c := lab.NewController(t, programs(t))
	home, agent := enrolled(t, c)
	id := c.Submit("name: long\nsteps:\n  - name: wait\n    script: |\n      for i in $(seq 1 80); do echo line-$i-; sleep 0.1; done\n")
	if !lab.Eventually(30*time.Second, func() bool { return len(numbers(t, c, id)) > 0 }) {
		t.Fatal("the build did not start")
	}
	for range 3 {
		agent.Kill()
		agent = home.Start()
		if !lab.Eventually(20*time.Second, func() bool {
			return strings.Contains(home.Log(), "Build adopted from an earlier agent")
		}) {
			t.Fatalf("not adopted: %s", home.Log())
		}
	}
	seen := c.Over(time.Minute, id)
	if seen.State != "succeeded" || seen.HandOuts != 1 || len(numbers(t, c, id)) != 80 {
		t.Errorf("build %+v with %d lines", seen, len(numbers(t, c, id)))
	}
	if !lab.Eventually(20*time.Second, func() bool {
		seen, err := c.Build(id)
		return err == nil && seen.Report != nil
	}) {
		t.Errorf("no report of the adopted build: %s", home.Log())
	}
}

// TestTwentyBuildsAtOnce: all are dispatched at once where there are seats, and each runs once.
func TestTwentyBuildsAtOnce(t *testing.T) {
	t.Parallel()
	c := lab.NewController(t, programs(t))
	home, _ := enrolled(t, c)
	out, _ := c.Run("", "agents", "--json")
	agentID := regexp.MustCompile(`"id": *"([^"]+)"`).FindStringSubmatch(out)
	if agentID == nil {
		t.Fatalf("no agent in %s", out)
	}
	if _, code := c.Run("", "agents", "set", agentID[1], "--parallel", "20"); code != 0 {
		t.Fatal("limit not set")
	}
	if !lab.Eventually(45*time.Second, func() bool { return home.Property("devops.parallel.task.count") == "20" }) {
		t.Fatal("the new limit did not reach the agent")
	}
	var ids []string
	for range 20 {
		ids = append(ids, c.Submit("name: many\nsteps:\n  - name: one\n    script: sleep 2; echo line-1-\n"))
	}
	for _, id := range ids {
		seen := c.Over(2*time.Minute, id)
		if seen.State != "succeeded" || seen.HandOuts != 1 || len(numbers(t, c, id)) != 1 {
			t.Errorf("build %+v", seen)
		}
	}
}

// TestSeparateEndpointsAtTheController: the controller serves an agent of the seed generation as well, and hands
// nothing out twice although its heartbeats come apart from its claims.
func TestSeparateEndpointsAtTheController(t *testing.T) {
	t.Parallel()
	c := lab.NewController(t, programs(t))
	home, _ := enrolledAs(t, c, "split")
	var ids []string
	for range 3 {
		ids = append(ids, c.Submit("name: apart\nsteps:\n  - name: one\n    script: sleep 15; echo line-1-\n"))
	}
	for _, id := range ids {
		seen := c.Over(2*time.Minute, id)
		if seen.State != "succeeded" || seen.HandOuts != 1 || len(numbers(t, c, id)) != 1 {
			t.Errorf("build %+v\n%s", seen, home.Log())
		}
	}
}
