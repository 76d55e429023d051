package systemd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// recorder answers as it was told and keeps what it was asked.
type recorder struct {
	calls  []string
	answer string
	err    error
}

func (r *recorder) run(_ context.Context, name string, args ...string) ([]byte, error) {
	r.calls = append(r.calls, name+" "+strings.Join(args, " "))
	return []byte(r.answer), r.err
}

func TestConversation(t *testing.T) {
	const unit = "devops-agent@two.service"
	for want, ask := range map[string]func(context.Context, Manager) error{
		"systemctl --no-ask-password --no-pager daemon-reload":                                                 func(ctx context.Context, m Manager) error { return m.DaemonReload(ctx) },
		"systemctl --no-ask-password --no-pager enable -- " + unit:                                             func(ctx context.Context, m Manager) error { return m.Enable(ctx, unit) },
		"systemctl --no-ask-password --no-pager disable -- " + unit:                                            func(ctx context.Context, m Manager) error { return m.Disable(ctx, unit) },
		"systemctl --no-ask-password --no-pager start -- " + unit:                                              func(ctx context.Context, m Manager) error { return m.Start(ctx, unit, true) },
		"systemctl --no-ask-password --no-pager start --no-block -- " + unit:                                   func(ctx context.Context, m Manager) error { return m.Start(ctx, unit, false) },
		"systemctl --no-ask-password --no-pager stop -- " + unit:                                               func(ctx context.Context, m Manager) error { return m.Stop(ctx, unit) },
		"systemctl --no-ask-password --no-pager reload -- " + unit:                                             func(ctx context.Context, m Manager) error { return m.Reload(ctx, unit) },
		"systemctl --no-ask-password --no-pager kill --kill-who=main --signal=SIGKILL -- " + unit:              func(ctx context.Context, m Manager) error { return m.Kill(ctx, unit, "SIGKILL") },
		"systemctl --no-ask-password --no-pager reset-failed -- " + unit:                                       func(ctx context.Context, m Manager) error { return m.ResetFailed(ctx, unit) },
		"systemctl --no-ask-password --no-pager --user enable -- " + unit:                                      func(ctx context.Context, m Manager) error { m.User = true; return m.Enable(ctx, unit) },
		"loginctl --no-ask-password enable-linger -- dev":                                                      func(ctx context.Context, m Manager) error { return m.EnableLinger(ctx, "dev") },
		"systemctl --no-ask-password --no-pager show --property=" + strings.Join(properties(), ",") + " -- -x": func(ctx context.Context, m Manager) error { _, err := m.Show(ctx, "-x"); return err },
	} {
		r := &recorder{answer: "LoadState=loaded\nActiveState=active\n"}
		if err := ask(t.Context(), Manager{Run: r.run}); err != nil || !slices.Equal(r.calls, []string{want}) {
			t.Errorf("%q, %v, want %q", r.calls, err, want)
		}
	}
}

func TestLingers(t *testing.T) {
	for answer, want := range map[string]bool{"Linger=yes\n": true, "Linger=no\n": false} {
		if on, err := (Manager{Run: (&recorder{answer: answer}).run}).Lingers(t.Context(), "dev"); err != nil || on != want {
			t.Errorf("%q: %v %v", answer, on, err)
		}
	}
	r := &recorder{err: &CommandError{Stderr: "Failed to get user: User ID 1000 is not logged in or lingering\n"}}
	if on, err := (Manager{Run: r.run}).Lingers(t.Context(), "dev"); err != nil || on {
		t.Errorf("%v %v", on, err)
	}
	r.err = errors.New("boom")
	if _, err := (Manager{Run: r.run}).Lingers(t.Context(), "dev"); err == nil {
		t.Error("an error is lost")
	}
}

func TestVersions(t *testing.T) {
	for text, want := range map[string]int{
		"systemd 252 (252.38-1~deb12u1)\n+PAM": 252, "systemd 257 (257.13-1~deb13u1)\n": 257, "systemd 239\n": 239, "systemd 255.4 (x)\n": 255, "systemd 256~rc3\n": 256,
	} {
		if v, err := (Manager{Run: (&recorder{answer: text}).run}).Version(t.Context()); err != nil || v != want {
			t.Errorf("%q: %d %v", text, v, err)
		}
	}
	for _, text := range []string{"", "systemd", "systemd x", "elogind 252", "systemd -1", "systemd 99999999999999999999"} {
		if v, err := parseVersion(text); err == nil {
			t.Errorf("%q: %d", text, v)
		}
	}
}

// TestShow: what systemd 252 and 257 answered for real.
func TestShow(t *testing.T) {
	for file, want := range map[string]Status{
		"running": {Load: "loaded", Active: "active", Sub: "running", Result: "success", File: "enabled", Fragment: "/lib/systemd/system/devops-agent.service",
			Text: "2 builds running, last contact 3 s ago = fine", MainPID: 975, Restarts: 1, Since: time.Date(2026, 11, 23, 4, 8, 11, 0, time.UTC)},
		"not-found": {Load: "not-found", Active: "inactive", Sub: "dead", Result: "success"},
		"stays-down": {Load: "loaded", Active: "inactive", Sub: "dead", Result: "success", File: "enabled", Fragment: "/etc/systemd/system/devops-agent-1.service",
			ExitKind: 1, Exit: 88, Since: time.Date(2026, 11, 23, 4, 20, 1, 0, time.UTC)},
	} {
		data, err := os.ReadFile(filepath.Join("testdata", "show-"+file+".txt"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseShow(string(data))
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", file, got, err, want)
		}
	}
	old, err := parseShow("LoadState=loaded\nActiveState=inactive\nSubState=dead\nMainPID=0\n")
	if err != nil || old.Restarts != -1 || !old.Down() || !old.Known() {
		t.Errorf("an old systemd does not count restarts: %+v %v", old, err)
	}
	for _, text := range []string{"", "ActiveState=active\n", "LoadState=loaded\nActiveState=active\nMainPID=x\n", "LoadState=loaded\nActiveState=active\nMainPID=-1\n",
		"LoadState=loaded\nActiveState=active\nStateChangeTimestamp=Mo 2026-11-23 04:08:11 CET\n"} {
		if s, err := parseShow(text); err == nil {
			t.Errorf("%q: %+v", text, s)
		}
	}
}

func FuzzShow(f *testing.F) {
	for _, name := range []string{"running", "not-found", "stays-down"} {
		data, err := os.ReadFile(filepath.Join("testdata", "show-"+name+".txt"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(data))
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseShow(text)
		if err != nil {
			if s != (Status{}) {
				t.Errorf("%+v beside %v", s, err)
			}
			return
		}
		if s.Load == "" || s.Active == "" || s.MainPID < 0 || s.Restarts < -1 || s.Exit < 0 {
			t.Errorf("%q: %+v", text, s)
		}
	})
}

func TestHints(t *testing.T) {
	for said, want := range map[string]string{
		"Failed to enable unit: Access denied":                                                      "sudo",
		"Failed to start x.service: Interactive authentication required.":                           "sudo",
		"Failed to start x.service: Unit x.service is masked.":                                      "unmask",
		"Failed to start x.service: Unit x.service not found.":                                      "devopsAgent install",
		"System has not been booted with systemd as init system (PID 1). Can't operate.":            "install direct",
		"Failed to enable unit: File /etc/systemd/system/x.service: Read-only file system":          "read-only",
		"Failed to connect to bus: No medium found":                                                 "enable-linger",
		"Failed to connect to user scope bus via local transport: $DBUS_SESSION_BUS_ADDRESS and...": "enable-linger",
	} {
		err := &CommandError{Command: "systemctl x", Code: 1, Stderr: said, user: true}
		if !strings.Contains(err.Hint(), want) {
			t.Errorf("%q: hint %q, want %q in it", said, err.Hint(), want)
		}
		if absent := errors.Is(err, ErrAbsent); absent != (strings.Contains(said, "booted") || strings.Contains(said, "connect to")) {
			t.Errorf("%q: absent %v", said, absent)
		}
	}
	if err := (&CommandError{Command: "systemctl x", Code: 5}); err.Error() != "systemctl x: exit status 5" || err.Hint() != "" {
		t.Errorf("%v, %q", err, err.Hint())
	}
}

// TestEnvironment: cron, su and sudo leave the user's bus unnamed.
func TestEnvironment(t *testing.T) {
	for _, tc := range []struct{ env, want []string }{
		{[]string{"A=b"}, []string{"A=b", "XDG_RUNTIME_DIR=/run/user/1000"}},
		{[]string{"XDG_RUNTIME_DIR="}, []string{"XDG_RUNTIME_DIR=", "XDG_RUNTIME_DIR=/run/user/1000"}},
		{[]string{"XDG_RUNTIME_DIR=/x"}, []string{"XDG_RUNTIME_DIR=/x"}},
	} {
		if got := environment(tc.env, 1000); !slices.Equal(got, tc.want) {
			t.Errorf("%q: %q", tc.env, got)
		}
	}
}

// TestRealPrograms: the errors of a program that is not there, that fails, that talks without end, and that is not waited for.
func TestRealPrograms(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	m := Manager{User: true}
	if _, err := m.Version(t.Context()); !errors.Is(err, ErrAbsent) {
		t.Errorf("no systemctl: %v", err)
	}
	program := func(text string) {
		if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte("#!/bin/sh\nPATH=/usr/bin:/bin\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program("echo \"$LC_ALL $TZ\" >&2; exit 4\n")
	var said *CommandError
	if err := m.DaemonReload(t.Context()); !errors.As(err, &said) || said.Code != 4 || said.Stderr != "C UTC\n" ||
		err.Error() != "systemctl --no-ask-password --no-pager --user daemon-reload: C UTC" {
		t.Errorf("%v", err)
	}
	program("head -c 1000000 /dev/zero >&2; exit 1\n")
	if err := m.DaemonReload(t.Context()); !errors.As(err, &said) || len(said.Stderr) != maxSaid {
		t.Errorf("%d bytes", len(said.Stderr))
	}
	program("exec sleep 600\n")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := m.Stop(ctx, "x.service"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}
