//go:build unix

package service

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// TestDirectRunsAsTheOwnerOfTheHome: root starts what lies in another account's home as that account, and writes the line
// into that account's crontab.
func TestDirectRunsAsTheOwnerOfTheHome(t *testing.T) {
	if os.Geteuid() != 0 || runtime.GOOS != "linux" {
		t.Skip("needs a Linux machine, and root")
	}
	const nobody = 65534
	home, err := os.MkdirTemp("", "direct")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	})
	script := "#!/bin/sh\nid -u >who\necho \"$USER\" >>who\nmkdir -p runtime\nprintf %s $$ >runtime/daemon.pid\nexec sleep 60\n"
	if err := os.WriteFile(filepath.Join(home, "devopsDaemon"), []byte(script), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	for _, path := range []string{home, filepath.Join(home, "devopsDaemon")} {
		if err := os.Chown(path, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	inst, err := Open(home)
	if err != nil {
		t.Fatal(err)
	}
	var calls [][]string
	d := &direct{inst: inst, goos: runtime.GOOS, umask: "022", crontab: func(_ context.Context, _ string, args ...string) (string, error) {
		calls = append(calls, args)
		return "", nil
	}}
	if err := d.Install(t.Context(), Setup{Home: home, Reboot: true}); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	holder, err := os.ReadFile(filepath.Join(home, "runtime", "daemon.pid"))
	if err != nil {
		t.Fatal(err)
	}
	who, err := os.ReadFile(filepath.Join(home, "who"))
	if err != nil || string(who) != "65534\nnobody\n" {
		t.Errorf("it ran as %q, %v", who, err)
	}
	if len(calls) != 2 || !slices.Equal(calls[0], []string{"-u", "nobody", "-l"}) || !slices.Equal(calls[1], []string{"-u", "nobody", "-"}) {
		t.Errorf("crontab was called with %q", calls)
	}
	pid, err := strconv.Atoi(string(holder))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	for deadline := time.Now().Add(5 * time.Second); syscall.Kill(pid, 0) == nil && time.Now().Before(deadline); { // until it is reaped
		runtime.Gosched()
	}
}

// TestDirectAsTheOriginalRegisteredIt: its word is enough, to be started and to be called installed (protocol §2.1).
func TestDirectAsTheOriginalRegisteredIt(t *testing.T) {
	inst, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	d := &direct{inst: inst, goos: "linux", vendor: t.TempDir(), umask: "022"}
	installed := func() bool {
		t.Helper()
		s, err := d.State(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s.Installed
	}
	for word, want := range map[string]bool{"": false, "SERVICE": false, "DIRECT\n": true} {
		if err := os.WriteFile(inst.Path(".install_type"), []byte(word), 0o600); err != nil {
			t.Fatal(err)
		}
		var not *notKeptError
		if err := d.Start(t.Context()); errors.As(err, &not) == want || installed() != want { // there is no program, either
			t.Errorf("%q: start %v, installed %v", word, err, installed())
		}
	}
}
