//go:build linux

package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/systemd"
)

// standIn behaves like the systemctl of one machine with at most one unit of ours: it reads the unit file that is really
// there, and its process is a number.
type standIn struct {
	mu                  sync.Mutex
	units               string // directory of the unit files
	shipped             string
	version             int
	loaded              map[string]bool // as of the last daemon-reload
	enabled             map[string]bool
	pid, last, restarts int
	kind, exit          int
	slow                bool
	deaf                bool // a kill does nothing
	calls               []string
	answer              map[string]error // by verb: refuses
	linger              bool
}

func (s *standIn) run(ctx context.Context, name string, args ...string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, name+" "+strings.Join(args, " "))
	words := slices.DeleteFunc(slices.Clone(args), func(a string) bool { return strings.HasPrefix(a, "--") })
	if name == "loginctl" {
		switch words[0] {
		case "show-user":
			return fmt.Appendf(nil, "Linger=%s\n", map[bool]string{true: "yes", false: "no"}[s.linger]), nil
		case "enable-linger":
			s.linger = s.answer["enable-linger"] == nil
			return nil, s.answer["enable-linger"]
		}
	}
	if slices.Contains(args, "--version") {
		return fmt.Appendf(nil, "systemd %d (%d.1)\n+PAM\n", s.version, s.version), nil
	}
	verb, unit := words[0], ""
	if len(words) > 1 {
		unit = words[1]
	}
	if err := s.answer[verb]; err != nil {
		return nil, err
	}
	missing := &systemd.CommandError{Command: "systemctl " + verb, Code: 5, Stderr: "Unit " + unit + " not found."}
	known := s.loaded[unit]
	switch verb {
	case "daemon-reload":
		s.loaded = map[string]bool{}
		for _, dir := range []string{s.units, s.shipped} {
			files, _ := filepath.Glob(filepath.Join(dir, "*.service"))
			for _, f := range files {
				s.loaded[filepath.Base(f)] = true
			}
		}
		if len(s.loaded) == 0 {
			s.kind, s.exit = 0, 0
		}
	case "enable", "disable":
		if !known {
			return nil, missing
		}
		s.enabled[unit] = verb == "enable"
	case "start":
		if !known {
			return nil, missing
		}
		if s.pid == 0 {
			s.start()
			s.restarts = 0
		}
	case "stop":
		if s.slow {
			s.mu.Unlock()
			<-ctx.Done()
			s.mu.Lock()
			return nil, context.Cause(ctx)
		}
		if s.pid != 0 {
			s.pid, s.kind, s.exit = 0, 1, 0
		}
	case "kill":
		if !s.deaf {
			s.end(2, 9)
		}
	case "reset-failed":
		s.restarts = 0
	case "show":
		state := map[string]any{"LoadState": "not-found", "ActiveState": "inactive", "SubState": "dead", "MainPID": 0, "NRestarts": 0, "ExecMainCode": 0, "ExecMainStatus": 0,
			"UnitFileState": "", "StateChangeTimestamp": ""}
		if known {
			state["LoadState"], state["UnitFileState"] = "loaded", map[bool]string{true: "enabled", false: "disabled"}[s.enabled[unit]]
			state["MainPID"], state["NRestarts"], state["ExecMainCode"], state["ExecMainStatus"] = s.pid, s.restarts, s.kind, s.exit
			state["StateChangeTimestamp"] = "Mon 2026-11-23 03:41:07 UTC"
			if s.pid != 0 {
				state["ActiveState"], state["SubState"] = "active", "running"
			}
		}
		var out strings.Builder
		for k, v := range state {
			fmt.Fprintf(&out, "%s=%v\n", k, v)
		}
		return []byte(out.String()), nil
	default:
		return nil, fmt.Errorf("systemctl knows no %s", verb)
	}
	return nil, nil
}

func (s *standIn) start() {
	s.last++
	s.pid, s.kind, s.exit = 1000+s.last, 0, 0
}

// end is the end of the process by itself.
func (s *standIn) end(kind, code int) {
	s.pid, s.kind, s.exit = 0, kind, code
	if kind != exited || code != ExitStayDown {
		s.start()
		s.restarts++
	}
}

func (s *standIn) called(words string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.calls, func(c string) bool { return strings.Contains(c, words) })
}

// keptByStandIn is an installation in a directory and a keeper that talks to the stand-in.
func keptByStandIn(t *testing.T, ofUser bool) (*systemdKeeper, *standIn) {
	t.Helper()
	home, units, shipped := t.TempDir(), t.TempDir(), t.TempDir()
	s := &standIn{units: units, shipped: shipped, version: 252, loaded: map[string]bool{}, enabled: map[string]bool{}, answer: map[string]error{}}
	return &systemdKeeper{inst: &Installation{Home: home}, manager: systemd.Manager{User: ofUser, Run: s.run},
		here: func() bool { return true }, root: !ofUser, units: units, shipped: []string{shipped},
		account: func() (string, error) { return "dev", nil }}, s
}

func TestSystemdSupervises(t *testing.T) {
	for _, ofUser := range []bool{false, true} {
		t.Run(map[bool]string{false: "system", true: "user"}[ofUser], func(t *testing.T) {
			superviseSuite(t, func(t *testing.T) keptWorld {
				k, s := keptByStandIn(t, ofUser)
				return keptWorld{Supervisor: k, setup: Setup{Home: k.inst.Home, Drain: time.Minute, Linger: ofUser},
					exit: func(_ *testing.T, code int) {
						s.mu.Lock()
						defer s.mu.Unlock()
						s.end(exited, code)
					},
					slow: func() { s.mu.Lock(); s.slow = true; s.mu.Unlock() }}
			})
		})
	}
}

// realSystemd is set where the tests may install units into the machine's systemd, as in a box of the lab.
const realSystemd = "DEVOPS_TEST_REAL_SYSTEMD"

// TestRealSystemdSupervises: the same cases with the systemd of this machine, that of the system for root and that of the user
// for everybody else. The agent is a script.
func TestRealSystemdSupervises(t *testing.T) {
	if os.Getenv(realSystemd) == "" || !systemd.Here(os.Getuid() != 0) {
		t.Skip("needs a machine with systemd to itself: set " + realSystemd + "=1 in a box of the lab")
	}
	superviseSuite(t, func(t *testing.T) keptWorld {
		home, err := os.MkdirTemp("/var/tmp", "devops-agent-kept-")
		if err != nil {
			t.Fatal(err)
		}
		script := "#!/bin/sh\ntrap '[ -e slow ] || exit 0' TERM\nwhile :; do [ ! -e exit ] || { c=$(cat exit); rm exit; exit $c; }; sleep 0.05; done\n"
		if err := os.WriteFile(filepath.Join(home, "upgrader"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		k, ok := NewSystemd(&Installation{Home: home}, os.Getuid() != 0).(*systemdKeeper)
		if !ok {
			t.Fatal("another keeper")
		}
		drop := filepath.Join(k.units, k.Name()+".d", "script.conf") // a script does not talk to systemd
		if err := os.MkdirAll(filepath.Dir(drop), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(drop, []byte("[Service]\nType=simple\nWatchdogSec=0\nTimeoutStopSec=3s\nExecReload=\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			ctx := context.Background()
			_ = os.Remove(filepath.Join(home, "slow"))
			if err := k.Uninstall(ctx); err != nil {
				t.Error(err)
			}
			_ = os.RemoveAll(filepath.Dir(drop))
			_ = k.manager.DaemonReload(ctx)
			_ = os.RemoveAll(home)
		})
		return keptWorld{Supervisor: k, setup: Setup{Home: home, Drain: time.Minute},
			exit: func(t *testing.T, code int) {
				before := stateOf(t, keptWorld{Supervisor: k})
				if err := os.WriteFile(filepath.Join(home, "exit.tmp"), fmt.Append(nil, code), 0o644); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(filepath.Join(home, "exit.tmp"), filepath.Join(home, "exit")); err != nil {
					t.Fatal(err)
				}
				untilState(t, keptWorld{Supervisor: k}, "ended", func(s State) bool { return s.PID != before.PID })
			},
			slow: func() {
				if err := os.WriteFile(filepath.Join(home, "slow"), nil, 0o644); err != nil {
					t.Error(err)
				}
			}}
	})
}

// TestRestartWaitsForTheNextAgent, and says what it waits for when none comes.
func TestRestartWaitsForTheNextAgent(t *testing.T) {
	k, s := keptByStandIn(t, false)
	mustDo(t, "install", k.Install(t.Context(), Setup{}))
	mustDo(t, "start", k.Start(t.Context()))
	before := stateOf(t, keptWorld{Supervisor: k})
	s.mu.Lock()
	s.deaf = true
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := k.Restart(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "active (running)") {
		t.Errorf("%v", err)
	}
	if s := stateOf(t, keptWorld{Supervisor: k}); s.PID != before.PID {
		t.Errorf("%+v", s)
	}
}

func TestSystemdNames(t *testing.T) {
	for home, want := range map[string]string{
		"/var/lib/devops-agent": "devops-agent.service", "/var/lib/devops-agents/two": "devops-agent@two.service",
		"/var/lib/devops-agents/a b": "devops-agent-", "/opt/ci": "devops-agent-",
	} {
		k := NewSystemd(&Installation{Home: home}, false)
		if got := k.Name(); !strings.HasPrefix(got, want) || !strings.HasSuffix(got, ".service") || k.Keeper() != KeeperSystemd {
			t.Errorf("%s: %s", home, got)
		}
		if got := NewSystemd(&Installation{Home: home}, true).Name(); !strings.HasPrefix(got, "devops-agent-") {
			t.Errorf("%s of a user: %s", home, got)
		}
	}
	k, _ := keptByStandIn(t, false)
	byPath := k.Name()
	identity := func(k *systemdKeeper, text string) {
		if err := os.WriteFile(k.inst.Path(".agent.properties"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for text, want := range map[string]string{
		"a=b\ndevops.agent.id=mnzqyopx\n": "devops_agent_mnzqyopx.service", "devops.agent.id = x-1_Y \r\n": "devops_agent_x-1_Y.service",
		"devops.agent.id=../../x\n": byPath, "devops.agent.id=\n": byPath, "devops.agent.id=a@b.service\n": byPath,
	} {
		identity(k, text)
		if got := k.Name(); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	// Installed without an identity, enrolled later: the unit stays.
	identity(k, "")
	mustDo(t, "install", k.Install(t.Context(), Setup{}))
	identity(k, "devops.agent.id=abc\n")
	if got := k.Name(); got != byPath {
		t.Errorf("renamed to %s by enrolment", got)
	}
	mustDo(t, "uninstall", k.Uninstall(t.Context()))
	mustDo(t, "install", k.Install(t.Context(), Setup{}))
	if got := k.Name(); got != "devops_agent_abc.service" {
		t.Errorf("%s", got)
	}
	// A copy of that home on the same machine has the same identity, and a unit of its own.
	other := *k
	other.inst = &Installation{Home: t.TempDir()}
	identity(&other, "devops.agent.id=abc\n")
	if got := other.Name(); got == "devops_agent_abc.service" {
		t.Error("a copy takes over the unit")
	}
	// The home was moved: the unit moves along.
	if err := os.RemoveAll(k.inst.Home); err != nil {
		t.Fatal(err)
	}
	if got := other.Name(); got != "devops_agent_abc.service" {
		t.Errorf("%s", got)
	}
}

func TestSystemdWritesTheUnit(t *testing.T) {
	k, s := keptByStandIn(t, false)
	read := func() string {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(k.units, k.Name()))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	mustDo(t, "install", k.Install(t.Context(), Setup{Drain: 5 * time.Second, User: "ci"}))
	text := read()
	for _, want := range []string{"User=ci\n", "WorkingDirectory=" + k.inst.Home + "\n", "ExecStart=" + k.inst.Home + "/upgrader start --home " + k.inst.Home + "\n",
		"TimeoutStopSec=35s\n", "Type=notify\n", "WantedBy=multi-user.target\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
	if info, err := os.Stat(filepath.Join(k.units, k.Name())); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v %v", info, err)
	}
	s.version = 257
	mustDo(t, "install", k.Install(t.Context(), Setup{User: "root"}))
	if text := read(); strings.Contains(text, "User=") || !strings.Contains(text, "Type=notify-reload\n") || !strings.Contains(text, "RestartSteps=") {
		t.Errorf("%s", text)
	}
	owner, err := ownerOf(k.inst.Home)
	mustDo(t, "owner", err)
	mustDo(t, "install", k.Install(t.Context(), Setup{}))
	if text := read(); owner != "root" && !strings.Contains(text, "User="+owner+"\n") {
		t.Errorf("the agent does not run as %s, who owns its home: %s", owner, text)
	}
	left, err := os.ReadDir(k.units)
	if err != nil || len(left) != 1 {
		t.Errorf("%v %v", left, err)
	}
	if err := k.Install(t.Context(), Setup{User: "a b"}); err == nil {
		t.Error("an account with a blank")
	}
}

// TestSystemdLeavesPackagesUnits alone, but for a drop-in where the systemd knows more than the package could expect.
func TestSystemdLeavesPackagesUnits(t *testing.T) {
	k, s := keptByStandIn(t, false)
	name := k.Name()
	if err := os.WriteFile(filepath.Join(s.shipped, name), []byte("[Service]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	mustDo(t, "install", k.Install(t.Context(), Setup{}))
	if left, err := os.ReadDir(k.units); err != nil || len(left) != 0 {
		t.Errorf("%v %v", left, err)
	}
	if st := stateOf(t, keptWorld{Supervisor: k}); !st.Installed || !st.Enabled {
		t.Errorf("%+v", st)
	}
	s.version = 257
	mustDo(t, "install", k.Install(t.Context(), Setup{}))
	if text, err := os.ReadFile(k.dropIn()); err != nil || !strings.Contains(string(text), "RestartSteps=") {
		t.Errorf("%s %v", text, err)
	}
	s.version = 252 // a downgrade of the system
	mustDo(t, "install", k.Install(t.Context(), Setup{}))
	if exists(k.dropIn()) {
		t.Error("the drop-in stays")
	}
	mustDo(t, "uninstall", k.Uninstall(t.Context()))
	if st := stateOf(t, keptWorld{Supervisor: k}); !st.Installed || st.Enabled || !exists(filepath.Join(s.shipped, name)) {
		t.Errorf("%+v", st)
	}
}

func TestSystemdNeedsRoot(t *testing.T) {
	k, s := keptByStandIn(t, false)
	k.root = false
	err := k.Install(t.Context(), Setup{})
	var hinter interface{ Hint() string }
	if !errors.Is(err, fs.ErrPermission) || !errors.As(err, &hinter) || !strings.Contains(hinter.Hint(), "sudo") || s.called("enable") {
		t.Errorf("%v", err)
	}
	if err := k.Uninstall(t.Context()); err != nil {
		t.Errorf("nothing to uninstall: %v", err)
	}
}

func TestSystemdThatIsNotThere(t *testing.T) {
	k, s := keptByStandIn(t, true)
	k.here = func() bool { return false }
	for what, err := range map[string]error{
		"install": k.Install(t.Context(), Setup{}), "uninstall": k.Uninstall(t.Context()), "start": k.Start(t.Context()),
		"stop": k.Stop(t.Context()), "restart": k.Restart(t.Context()),
	} {
		if !errors.Is(err, ErrNoKeeper) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := k.State(t.Context()); !errors.Is(err, ErrNoKeeper) || len(s.calls) != 0 {
		t.Errorf("%v, %q", err, s.calls)
	}
	k.here = func() bool { return true }
	s.answer["show"] = &systemd.CommandError{Command: "systemctl show", Code: 1, Stderr: "Failed to connect to bus: No medium found"}
	if _, err := k.State(t.Context()); !errors.Is(err, ErrNoKeeper) {
		t.Errorf("%v", err)
	}
}

func TestLinger(t *testing.T) {
	k, s := keptByStandIn(t, true)
	mustDo(t, "install", k.Install(t.Context(), Setup{}))
	if s.called("loginctl") {
		t.Error("nobody asked for it")
	}
	s.answer["enable-linger"] = &systemd.CommandError{Command: "loginctl enable-linger", Code: 1, Stderr: "Could not enable linger: Access denied"}
	err := k.Install(t.Context(), Setup{Linger: true})
	var linger *LingerError
	if !errors.As(err, &linger) || !strings.Contains(linger.Hint(), "enable-linger dev") {
		t.Errorf("%v", err)
	}
	if st := stateOf(t, keptWorld{Supervisor: k}); !st.Installed || !st.Enabled {
		t.Errorf("not installed for that: %+v", st)
	}
	delete(s.answer, "enable-linger")
	mustDo(t, "install", k.Install(t.Context(), Setup{Linger: true}))
	if !s.linger {
		t.Error("no linger")
	}
}

func TestStateOfUnits(t *testing.T) {
	since := time.Date(2026, 11, 23, 3, 41, 7, 0, time.UTC)
	for name, tc := range map[string]struct {
		status systemd.Status
		want   State
	}{
		"running": {systemd.Status{Load: "loaded", Active: "active", Sub: "running", File: "enabled", MainPID: 7, Restarts: 3, Since: since},
			State{Installed: true, Enabled: true, Running: true, PID: 7, Since: since, Restarts: 3, Detail: "active (running)", ExitCode: -1}},
		"crash loop": {systemd.Status{Load: "loaded", Active: "activating", Sub: "auto-restart", File: "enabled", Restarts: 9, ExitKind: 1, Exit: 1},
			State{Installed: true, Enabled: true, Restarts: 9, Detail: "activating (auto-restart)", ExitCode: 1}},
		"failed": {systemd.Status{Load: "loaded", Active: "failed", Sub: "failed", Result: "exit-code", File: "disabled", ExitKind: 1, Exit: 203},
			State{Installed: true, Detail: "failed (exit-code)", ExitCode: 203}},
		"killed": {systemd.Status{Load: "loaded", Active: "failed", Sub: "failed", Result: "signal", ExitKind: 2, Exit: 9},
			State{Installed: true, Detail: "failed (signal)", ExitCode: -1}},
		"signal 88": {systemd.Status{Load: "loaded", Active: "failed", Sub: "failed", Result: "signal", ExitKind: 2, Exit: 88},
			State{Installed: true, Detail: "failed (signal)", ExitCode: -1}},
		"stays down": {systemd.Status{Load: "loaded", Active: "inactive", Sub: "dead", File: "enabled", ExitKind: 1, Exit: 88},
			State{Installed: true, Enabled: true, Detail: "inactive (dead)", ExitCode: 88, StayDown: true}},
		"stopping": {systemd.Status{Load: "loaded", Active: "deactivating", Sub: "stop-sigterm", File: "enabled", MainPID: 7},
			State{Installed: true, Enabled: true, Running: true, PID: 7, Detail: "deactivating (stop-sigterm)", ExitCode: -1}},
		"masked": {systemd.Status{Load: "masked", Active: "inactive", Sub: "dead", File: "masked"},
			State{Installed: true, Detail: "masked, inactive (dead)", ExitCode: -1}},
	} {
		if got := stateOfUnit(tc.status); got != tc.want {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}
