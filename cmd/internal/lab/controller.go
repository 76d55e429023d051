package lab

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Controller is a real devopsController with its data directory; it can be killed and started again on the same port.
type Controller struct {
	Data string // data directory
	URL  string // gateway of its agents

	t       T
	program string
	args    []string // of serve, beside those of the lab
	cmd     *exec.Cmd
	output  *os.File
}

// NewController starts a controller on a free port of 127.0.0.1, with arguments for serve if need be. It is stopped when
// the test ends.
func NewController(t T, p Programs, args ...string) *Controller {
	t.Helper()
	c := &Controller{Data: filepath.Join(t.TempDir(), "controller"), t: t, program: p.Control, args: args}
	var err error
	if err = os.MkdirAll(c.Data, 0o700); err == nil {
		c.output, err = os.OpenFile(c.Data+".log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	}
	if err != nil {
		t.Fatalf("prepare a controller: %v", err)
	}
	t.Cleanup(func() {
		c.Kill()
		_ = c.output.Close()
	})
	c.Start()
	return c
}

// Start starts it, again on the port that it had, and waits until it answers.
func (c *Controller) Start() {
	c.t.Helper()
	listen := "127.0.0.1:0"
	if c.URL != "" {
		u, err := url.Parse(c.URL)
		if err != nil {
			c.t.Fatalf("start controller: %v", err)
		}
		listen = u.Host
	}
	endpoint := filepath.Join(c.Data, "endpoint.json")
	_ = os.Remove(endpoint)
	c.cmd = exec.Command(c.program, append([]string{"serve", "--data", c.Data, "--listen", listen}, c.args...)...)
	c.cmd.Stdout, c.cmd.Stderr = c.output, c.output
	if err := c.cmd.Start(); err != nil {
		c.t.Fatalf("start controller: %v", err)
	}
	var said struct{ URL string }
	if !Eventually(20*time.Second, func() bool {
		data, err := os.ReadFile(endpoint)
		return err == nil && json.Unmarshal(data, &said) == nil && said.URL != ""
	}) {
		c.t.Fatalf("the controller did not start: %s", c.Log())
	}
	c.URL = said.URL
}

// Kill kills it with SIGKILL and waits until it is gone.
func (c *Controller) Kill() {
	if c.cmd == nil || c.cmd.Process == nil {
		return
	}
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
	c.cmd = nil
}

// Log is what it printed.
func (c *Controller) Log() string {
	data, _ := os.ReadFile(c.Data + ".log")
	return string(data)
}

// Run runs a verb of the CLI with its data directory and returns what that printed, and its exit code.
func (c *Controller) Run(stdin string, verb ...string) (stdout string, code int) {
	c.t.Helper()
	cmd := exec.Command(c.program, append([]string{"--data", c.Data}, verb...)...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		c.t.Fatalf("controller %s: %v", strings.Join(verb, " "), err)
	}
	if code = cmd.ProcessState.ExitCode(); code != 0 {
		c.t.Logf("controller %s: exit code %d: %s", strings.Join(verb, " "), code, errs.String())
	}
	return out.String(), code
}

// Seen is one build as the controller shows it.
type Seen struct {
	ID         string `json:"id"`
	State      string `json:"state"`
	QueuedAt   int64  `json:"queuedAt"` // ms since 1970, as all of these; 0 when it has not happened
	HandedAt   int64  `json:"handedAt"`
	StartedAt  int64  `json:"startedAt"`
	FinishedAt int64  `json:"finishedAt"`
	HandOuts   int    `json:"handOuts"`
	Report     *struct {
		Success bool   `json:"success"`
		Message string `json:"message"`
		At      int64  `json:"at"`
	} `json:"report"`
}

// Build shows one build.
func (c *Controller) Build(id string) (Seen, error) {
	out, code := c.Run("", "builds", "--json", id)
	var seen Seen
	if code != 0 {
		return seen, fmt.Errorf("show build %s: exit code %d", id, code)
	}
	return seen, json.Unmarshal([]byte(out), &seen)
}

// Over waits for the end of a build.
func (c *Controller) Over(limit time.Duration, id string) Seen {
	c.t.Helper()
	var seen Seen
	if !Eventually(limit, func() bool {
		var err error
		seen, err = c.Build(id)
		return err == nil && seen.FinishedAt != 0
	}) {
		c.t.Fatalf("build %s is %s after %v", id, seen.State, limit)
	}
	return seen
}

// Submit submits a build file and returns the build's id.
func (c *Controller) Submit(file string) string {
	c.t.Helper()
	out, code := c.Run(file, "run", "--detach", "-")
	if code != 0 {
		c.t.Fatalf("submit: exit code %d", code)
	}
	return strings.TrimSpace(out)
}
