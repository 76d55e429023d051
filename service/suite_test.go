package service

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// keptWorld is one keeper with the part of the world it talks to: the real one, or a stand-in that behaves like it.
type keptWorld struct {
	Supervisor
	setup Setup
	// exit lets the running agent end by itself with a code, as if main had returned it, and returns when the keeper has
	// noticed.
	exit func(t *testing.T, code int)
	// slow makes the agent take longer to stop than any case waits. nil: the case is left out.
	slow func()
}

// superviseSuite runs the cases that every Supervisor passes. fresh makes a world in which nothing is installed; what it
// makes is its own to clean up.
func superviseSuite(t *testing.T, fresh func(t *testing.T) keptWorld) {
	for name, test := range map[string]func(*testing.T, keptWorld){
		"nothing installed":                 suiteUnknown,
		"what is not there can be stopped":  suiteNothingToStop,
		"install is idempotent":             suiteInstallTwice,
		"start is idempotent":               suiteStartTwice,
		"stop is idempotent":                suiteStopTwice,
		"restart replaces":                  suiteRestart,
		"restart starts what is down":       suiteRestartOfStopped,
		"every end but 88 is started again": suiteEnds,
		"88 stays down":                     suiteStayDown,
		"uninstall stops and leaves home":   suiteUninstall,
		"installed again after uninstall":   suiteAgain,
		"a stop that lasts":                 suiteSlowStop,
	} {
		t.Run(name, func(t *testing.T) { test(t, fresh(t)) })
	}
}

// mustDo fails the test at an error.
func mustDo(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func stateOf(t *testing.T, w keptWorld) State {
	t.Helper()
	s, err := w.State(t.Context())
	mustDo(t, "state", err)
	if s.Running != (s.PID != 0) {
		t.Errorf("running %v with pid %d", s.Running, s.PID)
	}
	return s
}

// untilState polls the state, at most for ten seconds, until it fits.
func untilState(t *testing.T, w keptWorld, what string, fits func(State) bool) State {
	t.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		s := stateOf(t, w)
		if fits(s) {
			return s
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("never %s: %+v", what, s)
		}
	}
}

func started(t *testing.T, w keptWorld) State {
	t.Helper()
	mustDo(t, "install", w.Install(t.Context(), w.setup))
	mustDo(t, "start", w.Start(t.Context()))
	return untilState(t, w, "running", func(s State) bool { return s.Running })
}

func suiteUnknown(t *testing.T, w keptWorld) {
	if s := stateOf(t, w); s.Installed || s.Enabled || s.Running || s.StayDown {
		t.Errorf("%+v", s)
	}
	err := w.Start(t.Context())
	var hinter interface{ Hint() string }
	if err == nil || !errors.As(err, &hinter) || hinter.Hint() == "" {
		t.Errorf("start of what is not installed: %v, want an error with a hint", err)
	}
	if s := stateOf(t, w); s.Running {
		t.Errorf("runs: %+v", s)
	}
}

func suiteNothingToStop(t *testing.T, w keptWorld) {
	mustDo(t, "stop", w.Stop(t.Context()))
	mustDo(t, "uninstall", w.Uninstall(t.Context()))
	mustDo(t, "uninstall again", w.Uninstall(t.Context()))
}

func suiteInstallTwice(t *testing.T, w keptWorld) {
	name := w.Name()
	for range 2 {
		mustDo(t, "install", w.Install(t.Context(), w.setup))
		if s := stateOf(t, w); !s.Installed || !s.Enabled || s.Running {
			t.Errorf("%+v", s)
		}
		if w.Name() != name {
			t.Errorf("name %q, before %q", w.Name(), name)
		}
	}
	before := started(t, w)
	mustDo(t, "install a running one", w.Install(t.Context(), w.setup))
	if s := stateOf(t, w); s.PID != before.PID {
		t.Errorf("pid %d, before %d: install replaced the agent", s.PID, before.PID)
	}
}

func suiteStartTwice(t *testing.T, w keptWorld) {
	before := started(t, w)
	mustDo(t, "start again", w.Start(t.Context()))
	if s := stateOf(t, w); s.PID != before.PID || !s.Installed || !s.Enabled {
		t.Errorf("%+v, before %+v", s, before)
	}
}

func suiteStopTwice(t *testing.T, w keptWorld) {
	started(t, w)
	for range 2 {
		mustDo(t, "stop", w.Stop(t.Context()))
		if s := stateOf(t, w); s.Running || !s.Installed || !s.Enabled || s.StayDown {
			t.Errorf("%+v, want down, and to start with the machine", s)
		}
	}
	mustDo(t, "start", w.Start(t.Context()))
	untilState(t, w, "running again", func(s State) bool { return s.Running })
}

func suiteRestart(t *testing.T, w keptWorld) {
	before := started(t, w)
	mustDo(t, "restart", w.Restart(t.Context()))
	untilState(t, w, "another process", func(s State) bool { return s.Running && s.PID != before.PID })
}

func suiteRestartOfStopped(t *testing.T, w keptWorld) {
	mustDo(t, "install", w.Install(t.Context(), w.setup))
	mustDo(t, "restart", w.Restart(t.Context()))
	untilState(t, w, "running", func(s State) bool { return s.Running })
}

func suiteEnds(t *testing.T, w keptWorld) {
	before := started(t, w)
	for _, code := range []int{ExitOK, ExitFailed, 2} {
		w.exit(t, code)
		s := untilState(t, w, "running again", func(s State) bool { return s.Running && s.PID != before.PID })
		if s.StayDown {
			t.Errorf("after %d: %+v", code, s)
		}
		before = s
	}
}

func suiteStayDown(t *testing.T, w keptWorld) {
	started(t, w)
	w.exit(t, ExitStayDown)
	s := untilState(t, w, "down", func(s State) bool { return !s.Running })
	if !s.StayDown || !s.Installed || s.ExitCode != ExitStayDown {
		t.Errorf("%+v", s)
	}
	mustDo(t, "start", w.Start(t.Context())) // who starts it by hand means it
	if s := untilState(t, w, "running", func(s State) bool { return s.Running }); s.StayDown {
		t.Errorf("%+v", s)
	}
}

func suiteUninstall(t *testing.T, w keptWorld) {
	kept := filepath.Join(w.setup.Home, "workspace", "kept")
	mustDo(t, "make workspace", os.MkdirAll(filepath.Dir(kept), 0o755))
	mustDo(t, "write workspace", os.WriteFile(kept, nil, 0o600))
	started(t, w)
	for range 2 {
		mustDo(t, "uninstall", w.Uninstall(t.Context()))
		if s := stateOf(t, w); s.Installed || s.Enabled || s.Running || s.StayDown {
			t.Errorf("%+v", s)
		}
	}
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
}

func suiteAgain(t *testing.T, w keptWorld) {
	started(t, w)
	w.exit(t, ExitStayDown)
	untilState(t, w, "down", func(s State) bool { return !s.Running })
	mustDo(t, "uninstall", w.Uninstall(t.Context()))
	if s := started(t, w); s.StayDown {
		t.Errorf("%+v", s)
	}
	w.exit(t, ExitFailed)
	untilState(t, w, "running again", func(s State) bool { return s.Running })
}

func suiteSlowStop(t *testing.T, w keptWorld) {
	if w.slow == nil {
		t.Skip("this world has no agent that stops slowly")
	}
	started(t, w)
	w.slow()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := w.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stop: %v, want that it has not ended yet", err)
	}
	if s := stateOf(t, w); !s.Running { // the wait ended, the draining goes on
		t.Errorf("%+v", s)
	}
}
