//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// packagedHome is an empty home whose programs a package has in a directory of its own, as on a machine that was just installed.
type packagedHome struct {
	*lab.Home
	vendor string
}

func newPackagedHome(t *testing.T) packagedHome {
	t.Helper()
	p := programs(t)
	h := packagedHome{lab.NewHome(t, p, lab.HomeOptions{Worker: p.Worker, NoJar: true, JDK: "-"}), t.TempDir()}
	for _, name := range []string{".agent.properties", "devopsAgent", "devopsDaemon", "devopsWorker", "upgrader", "tmp/upgrader"} {
		if h.Has(name) {
			h.Remove(name)
		}
	}
	for name, path := range map[string]string{"devopsAgent": p.Agent, "upgrader": p.Upgrader, "devopsWorker": p.Worker, "devopsDaemon": p.Daemon} {
		h.replace(t, name, path)
	}
	return h
}

// replace puts a program into the package's directory as a package manager does: a new file under the old name.
func (h packagedHome) replace(t *testing.T, name, from string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(filepath.Join(h.vendor, name+".new"), data, 0o755) //nolint:gosec // a program
	}
	if err == nil {
		err = os.Rename(filepath.Join(h.vendor, name+".new"), filepath.Join(h.vendor, name))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// start is what the unit of a package does.
func (h packagedHome) start(env ...string) *lab.Agent {
	return h.StartProgram(filepath.Join(h.vendor, "upgrader"), "/", []string{"start", "--home", h.Dir, "--vendor", h.vendor}, env...)
}

type briefStatus struct {
	State   string `json:"state"`
	Healthy bool   `json:"healthy"`
	Summary string `json:"summary"`
	Advice  string `json:"advice"`
	Agent   *struct {
		Version string `json:"version"`
	} `json:"agent"`
}

func (h packagedHome) status(t *testing.T) briefStatus {
	t.Helper()
	cmd := exec.Command(filepath.Join(h.vendor, "devopsAgent"), "status", "--json", "--home", h.Dir)
	out, err := cmd.Output()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	var s briefStatus
	if err := json.Unmarshal(out, &s); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return s
}

func (h packagedHome) until(t *testing.T, state string) briefStatus {
	t.Helper()
	var s briefStatus
	if !lab.Eventually(30*time.Second, func() bool { s = h.status(t); return s.State == state }) {
		t.Fatalf("state %+v, want %s; log: %s", s, state, h.Log())
	}
	return s
}

// TestAPackagedAgentWaitsForItsIdentity: installed and started with nothing said about a server, the service is there, idle, and says
// what to type. A file in enroll.d, or "devopsAgent enroll" beside it, makes it an agent without a restart; from a start with a file
// there is no further command before the first heartbeat.
func TestAPackagedAgentWaitsForItsIdentity(t *testing.T) {
	t.Parallel()
	c := lab.NewController(t, programs(t))
	token, code := c.Run("", "enroll-token")
	if code != 0 {
		t.Fatal("no token")
	}
	token = strings.TrimSpace(token)
	write := func(h packagedHome, text string) time.Time {
		if err := os.MkdirAll(h.Path("enroll.d"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(h.Path("enroll.d", "10-first.toml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return time.Now()
	}
	inTouch := func(h packagedHome, since time.Time, what string) {
		t.Helper()
		if !lab.Eventually(60*time.Second, func() bool { return strings.Contains(h.Log(), "Startup accepted") }) {
			t.Fatalf("%s: no heartbeat: %s", what, h.Log())
		}
		t.Logf("%s: the server had taken the agent's startup after %v", what, time.Since(since).Round(time.Millisecond))
		if found := h.FindSecret(token); len(found) > 1 {
			t.Errorf("%s: the token is in %q", what, found)
		}
	}

	waiting := newPackagedHome(t)
	agent := waiting.start()
	s := waiting.until(t, "not-enrolled")
	if s.Healthy || !strings.Contains(s.Advice, "enroll --gateway URL --token-file FILE") || !strings.Contains(s.Advice, waiting.Path("enroll.d")) {
		t.Errorf("status %+v", s)
	}
	inTouch(waiting, write(waiting, fmt.Sprintf("gateway = %q\ntoken = %q\n", c.URL, token)), "a file beside a waiting service")
	if !agent.Alive() {
		t.Error("the service was started again")
	}
	id := c.Submit("name: first\nsteps:\n  - name: say\n    script: echo hello\n")
	if seen := c.Over(60*time.Second, id); seen.State != "succeeded" {
		t.Errorf("first build: %+v", seen)
	}
	_ = agent.Term()

	byHand := newPackagedHome(t)
	byHand.start()
	byHand.until(t, "not-enrolled")
	enroll := exec.Command(filepath.Join(byHand.vendor, "devopsAgent"), "enroll", "--home", byHand.Dir, "--gateway", c.URL)
	enroll.Stdin = strings.NewReader(token)
	began := time.Now()
	if out, err := enroll.CombinedOutput(); err != nil {
		t.Fatalf("enroll: %v\n%s", err, out)
	}
	inTouch(byHand, began, "enroll beside a waiting service")

	prepared := newPackagedHome(t)
	prepared.Write("secret", token+"\n")
	prepared.start("DEVOPS_AGENT_TOKEN_FILE="+prepared.Path("secret"), "DEVOPS_AGENT_GATEWAY="+c.URL)
	inTouch(prepared, time.Now(), "a start with a token file")
}

// TestAPackageIsUpgradedBeforeItsMachineIsEnrolled: a new version of the package runs, and stays, on a machine that has no server.
func TestAPackageIsUpgradedBeforeItsMachineIsEnrolled(t *testing.T) {
	t.Parallel()
	next, err := nextPrograms()
	if err != nil {
		t.Fatal(err)
	}
	h := newPackagedHome(t)
	h.Write("agent.toml", "[upgrade]\nsettle_after = \"1s\"\n")
	first := h.start()
	h.until(t, "not-enrolled")
	h.replace(t, "devopsAgent", next.agent)
	if err := first.Term(); err != nil {
		t.Fatal(err)
	}
	if code, err := first.Wait(30 * time.Second); err != nil || code != 0 {
		t.Fatalf("stopped while it waits: %d, %v", code, err)
	}
	h.start()
	if !lab.Eventually(60*time.Second, func() bool {
		s := h.status(t)
		return s.State == "not-enrolled" && s.Agent != nil && s.Agent.Version == nextVersion
	}) {
		t.Fatalf("status %+v; log: %s", h.status(t), h.Log())
	}
	if !lab.Eventually(60*time.Second, func() bool {
		left, _ := filepath.Glob(h.Path("upgrade", "open-*"))
		return len(left) == 0
	}) {
		t.Fatalf("the upgrade stays open; log: %s", h.Log())
	}
	if s := h.until(t, "not-enrolled"); s.Agent.Version != nextVersion {
		t.Errorf("status %+v", s)
	}
}
