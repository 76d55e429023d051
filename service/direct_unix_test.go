//go:build unix

package service

import (
	"context"
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
