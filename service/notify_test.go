//go:build unix

package service

import (
	"bufio"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestNotifierSpeaksToSystemd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "45000000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	n, err := NewNotifier()
	if err != nil {
		t.Fatal(err)
	}
	if !n.Kept() || n.Watchdog() != 45*time.Second {
		t.Errorf("kept %v, watchdog %v", n.Kept(), n.Watchdog())
	}
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		if _, set := os.LookupEnv(name); set {
			t.Errorf("%s is left for children", name)
		}
	}
	next := func() string {
		t.Helper()
		buffer := make([]byte, 4096)
		if err := socket.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		size, err := socket.Read(buffer)
		if err != nil {
			t.Fatal(err)
		}
		return string(buffer[:size])
	}
	for _, step := range []struct {
		say  func() error
		want string
	}{
		{n.Ready, "READY=1"},
		{n.Alive, "WATCHDOG=1"},
		{n.Stopping, "STOPPING=1"},
		{func() error { return n.Status("2 builds\nREADY=1") }, "STATUS=2 builds READY=1"},
		{func() error { return n.Extend(1500 * time.Millisecond) }, "EXTEND_TIMEOUT_USEC=1500000"},
	} {
		if err := step.say(); err != nil {
			t.Fatal(err)
		}
		if got := next(); got != step.want {
			t.Errorf("said %q, want %q", got, step.want)
		}
	}
	if err := n.Status("2 builds\nREADY=1"); err != nil { // said before
		t.Fatal(err)
	}
	if err := n.Reloading(); err != nil {
		t.Fatal(err)
	}
	if got := next(); !strings.HasPrefix(got, "RELOADING=1\nMONOTONIC_USEC=") {
		t.Errorf("said %q", got)
	}
	if err := socket.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.Alive(); err == nil {
		t.Error("a keeper that is gone is an error")
	}
}

func TestNotifierSpeaksToTheDaemon(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	fd, err := syscall.Dup(int(w.Fd())) // the notifier owns what it is given
	if err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	t.Setenv(EnvNotifyFD, strconv.Itoa(fd))
	n, err := NewNotifier()
	if err != nil || !n.Kept() {
		t.Fatalf("kept %v, %v", n.Kept(), err)
	}
	if err := n.Ready(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(r)
	for _, want := range []string{"READY=1", ""} {
		if !lines.Scan() || lines.Text() != want {
			t.Errorf("line %q, want %q", lines.Text(), want)
		}
	}
}

func TestNotifierWithoutAKeeperIsMute(t *testing.T) {
	var none *Notifier
	if none.Kept() || none.Watchdog() != 0 || none.Ready() != nil || none.Status("x") != nil || none.Extend(time.Second) != nil {
		t.Error("a nil notifier is mute")
	}
	n, err := NewNotifier()
	if err != nil || n.Kept() || n.Alive() != nil {
		t.Errorf("no variables: %v", err)
	}
	t.Setenv("WATCHDOG_USEC", "1000000")
	t.Setenv("WATCHDOG_PID", "1") // somebody else's
	if n, err = NewNotifier(); err != nil || n.Watchdog() != 0 {
		t.Errorf("watchdog of another process: %v, %v", n.Watchdog(), err)
	}
	for _, bad := range []string{"x", "-1", "99999"} {
		t.Setenv(EnvNotifyFD, bad)
		if n, err = NewNotifier(); err == nil || n.Kept() {
			t.Errorf("pipe %q: %v", bad, err)
		}
	}
	t.Setenv("WATCHDOG_USEC", "soon")
	if n, err = NewNotifier(); err == nil || n.Watchdog() != 0 {
		t.Errorf("watchdog %v, %v", n.Watchdog(), err)
	}
}
