//go:build unix

package recovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/upgrader/journal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// home is one with an agent that tells the version v1.
func home(t *testing.T, vendor string) *Home {
	t.Helper()
	inst, err := service.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return New(inst, vendor, slog.New(slog.NewTextHandler(testWriter{t}, nil)))
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// program writes one that tells its version, and is not small.
func program(t *testing.T, path, version string) string {
	t.Helper()
	text := "#!/bin/sh\necho " + version + "\nexit 0\n" + strings.Repeat("# "+version+"\n", 20000)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path+".new", []byte(text), 0o700), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
	return path
}

func (h *Home) live(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(h.Inst.Path("devopsAgent"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	if len(lines) != 20004 {
		t.Fatalf("the agent has %d lines", len(lines))
	}
	return strings.TrimPrefix(lines[1], "echo ")
}

// begin writes an upgrade of the agent to v2 down.
func (h *Home) begin(t *testing.T) {
	t.Helper()
	program(t, h.Inst.Path("devopsAgent"), "v1")
	fresh := program(t, h.Inst.Path("tmp", "devopsAgent"), "v2")
	_, err := h.Journal.Begin(journal.Plan{Kind: journal.FromServer, Items: []journal.Item{{Part: journal.Agent, From: fresh, Was: "v1", Now: "v2"}}})
	if err != nil {
		t.Fatal(err)
	}
}

func (h *Home) state(t *testing.T) string {
	t.Helper()
	found, err := h.Journal.Current()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s %d", found.State, found.Starts)
}

// TestAnOriginalsUpgraderDies: it removes the old program, copies the new one over, and is killed on the way. The next start makes
// that good.
func TestAnOriginalsUpgraderDies(t *testing.T) {
	for name, script := range map[string]string{
		"before it begins":             `:`,
		"when the old one is gone":     `rm devopsAgent`,
		"when half of it is there":     `rm devopsAgent; head -c 70000 tmp/devopsAgent >devopsAgent`,
		"before it can be executed":    `rm devopsAgent; cat tmp/devopsAgent >devopsAgent`,
		"when it has done its work":    `rm devopsAgent; cp tmp/devopsAgent devopsAgent; chmod 777 devopsAgent`,
		"when the download is damaged": `head -c 9 tmp/devopsAgent >x; mv x tmp/devopsAgent; rm devopsAgent; cp tmp/devopsAgent devopsAgent`,
	} {
		t.Run(name, func(t *testing.T) {
			h := home(t, "")
			h.begin(t)
			cmd := exec.Command("/bin/sh", "-c", script)
			cmd.Dir = h.Inst.Home
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			result, err := h.Start(t.Context(), journal.Last{})
			if err != nil || result.State != journal.Trial || result.Starts != 1 {
				t.Fatalf("%+v, %v", result, err)
			}
			if h.live(t) != "v2" {
				t.Error("not the new one")
			}
			if v, err := Version(t.Context(), h.Inst.Path("devopsAgent")); err != nil || v != "v2" {
				t.Errorf("%q, %v", v, err)
			}
		})
	}
}

// TestFinishCountsNoStart, however often it is called.
func TestFinishCountsNoStart(t *testing.T) {
	h := home(t, "")
	if result, err := h.Finish(t.Context()); err != nil || result.State != journal.None {
		t.Errorf("nothing: %+v, %v", result, err)
	}
	h.begin(t)
	for range 6 {
		result, err := h.Finish(t.Context())
		if err != nil || result.State != journal.Trial || h.state(t) != "trial 0" || h.live(t) != "v2" {
			t.Fatalf("%+v, %v; %s", result, err, h.state(t))
		}
	}
	for i := range 3 {
		if _, err := h.Start(t.Context(), journal.Last{}); err != nil || h.state(t) != fmt.Sprintf("trial %d", i+1) {
			t.Fatalf("%v; %s", err, h.state(t))
		}
	}
	result, err := h.Start(t.Context(), journal.Last{How: "exit status 9"})
	if err != nil || result.Ended == nil || result.Ended.LastExit != "exit status 9" || h.live(t) != "v1" || h.Open() {
		t.Errorf("%+v, %v", result, err)
	}
}

// TestFinishTakesBackAndSettles what was decided.
func TestFinishTakesBackAndSettles(t *testing.T) {
	for state, want := range map[string]string{"open-undo": "v1", "open-settle": "v2"} {
		h := home(t, "")
		h.begin(t)
		if _, err := h.Start(t.Context(), journal.Last{}); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(h.Inst.Path("upgrade", "open-trial-1"), h.Inst.Path("upgrade", state)); err != nil {
			t.Fatal(err)
		}
		result, err := h.Finish(t.Context())
		if err != nil || result.State != journal.None || result.Ended == nil || h.live(t) != want || h.Open() {
			t.Errorf("%s: %+v, %v, %s", state, result, err, h.live(t))
		}
	}
}

// TestFinishPutsADamagedRecordAside: programs stay as they are.
func TestFinishPutsADamagedRecordAside(t *testing.T) {
	h := home(t, "")
	h.begin(t)
	if err := os.WriteFile(h.Inst.Path("upgrade", "open-ready"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	result, err := h.Finish(t.Context())
	if err != nil || result.Damaged == "" || h.live(t) != "v1" || h.Open() {
		t.Errorf("%+v, %v", result, err)
	}
}

// TestGiveUp: the old one is back at once, and the cause is kept; without a trial nothing happens.
func TestGiveUp(t *testing.T) {
	h := home(t, "")
	if h.GiveUp(errors.New("exec format error")) {
		t.Error("nothing was taken back, and it says so")
	}
	h.begin(t)
	if h.GiveUp(errors.New("exec format error")) || h.live(t) != "v1" {
		t.Error("what had not begun was taken back")
	}
	if _, err := h.Start(t.Context(), journal.Last{}); err != nil {
		t.Fatal(err)
	}
	if !h.GiveUp(errors.New("exec format error")) || h.live(t) != "v1" || h.OnTrial() {
		t.Error("not taken back")
	}
	list, err := h.Journal.History()
	if err != nil || len(list) != 1 || !strings.Contains(list[0].Reason, "exec format error") {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestStartAdopts the package's programs: the first ones as they are, newer ones on trial, and none where agent.toml says so.
func TestStartAdopts(t *testing.T) {
	vendor := t.TempDir()
	h := home(t, vendor)
	theirs := filepath.Join(vendor, "devopsAgent")
	steps := []struct{ brought, mode, live, state string }{
		{"v1.0.0", "", "v1.0.0", " 0"},
		{"v1.0.0", "", "v1.0.0", " 0"},
		{"v1.1.0", "off", "v1.0.0", " 0"},
		{"v1.1.0", "", "v1.1.0", "trial 1"},
	}
	for i, step := range steps {
		program(t, theirs, step.brought)
		changed := time.Now().Add(time.Duration(i) * time.Second) // a package manager keeps the time of the build
		if err := os.Chtimes(theirs, changed, changed); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(h.Inst.Config, []byte("[upgrade]\nmode = \""+step.mode+"\"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Start(t.Context(), journal.Last{}); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		if h.live(t) != step.live || h.state(t) != step.state {
			t.Errorf("step %d: %s, %q, want %+v", i, h.live(t), h.state(t), step)
		}
	}
}

// TestVersion: one line, and nothing else.
func TestVersion(t *testing.T) {
	dir := t.TempDir()
	for script, want := range map[string]string{
		"echo v1.2.3":         "v1.2.3",
		"printf v1.2.3":       "v1.2.3",
		"echo; echo v1":       "v1",
		"echo v1; echo v2":    "",
		"exit 0":              "",
		"echo v1; exit 3":     "",
		"echo v1; kill -9 $$": "",
		"while :; do echo xxxxxxx; done | head -c 100000000":                    "",
		`test "$1 $#" = "version 1" && echo "$NOTIFY_SOCKET$DEVOPS_STDERR_FD."`: ".",
	} {
		path := filepath.Join(dir, "program")
		if err := errors.Join(os.WriteFile(path+".new", []byte("#!/bin/sh\n"+script+"\n"), 0o700), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
		t.Setenv("NOTIFY_SOCKET", "/run/x")
		t.Setenv(EnvStderr, "7")
		got, err := Version(t.Context(), path)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v, want %q", script, got, err, want)
		}
	}
	for name, data := range map[string]string{"wrong": "\x7fELF\x02\x01\x01", "empty": ""} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(data), 0o700); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
		if got, err := Version(t.Context(), path); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
	if _, err := Version(t.Context(), filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// TestGuardEnds with its context, and at once where there is nothing to watch.
func TestGuardEnds(t *testing.T) {
	h := home(t, "")
	h.Guard(t.Context())
	h.begin(t)
	h.Guard(t.Context()) // not on trial yet
	if _, err := h.Start(t.Context(), journal.Last{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { h.Guard(ctx); close(ended) }()
	cancel()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
}

// TestPatience can only be shortened.
func TestPatience(t *testing.T) {
	for text, want := range map[string]time.Duration{"": time.Minute, "3s": 3 * time.Second, "2h": time.Minute, "-1s": time.Minute, "x": time.Minute} {
		t.Setenv(EnvPatience, text)
		if got := Patience(); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}
