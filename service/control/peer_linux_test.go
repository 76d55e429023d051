package control

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestStrangersAreNotHeard lets one thread become another account and connect, through a socket whose mode was opened.
func TestStrangersAreNotHeard(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become somebody else")
	}
	home := t.TempDir()
	serve(t, home, func(context.Context, Request) (any, error) {
		t.Error("a stranger was heard")
		return nil, nil
	})
	path := filepath.Join(home, "runtime", "agent.sock")
	for dir := filepath.Dir(path); dir != "/"; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o005 != 0o005 {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	type seen struct {
		n   int
		err error
	}
	done := make(chan seen)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and its account with it
		const nobody = 65534
		if _, _, no := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); no != 0 {
			done <- seen{0, no}
			return
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		}
		n := -1
		if err == nil {
			_, _ = unix.Write(fd, []byte(`{"op":"status"}`+"\n")) // the other end may have hung up already
			if n, err = unix.Read(fd, make([]byte, 100)); err == unix.ECONNRESET {
				n, err = 0, nil
			}
			_ = unix.Close(fd)
		}
		done <- seen{n, err}
	}()
	if got := <-done; got.err != nil || got.n != 0 {
		t.Errorf("read %d bytes, %v; want the end at once", got.n, got.err)
	}
}

// TestSocketIsBornPrivate, whatever the umask.
func TestSocketIsBornPrivate(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	path := filepath.Join(t.TempDir(), "s")
	l, err := (&net.ListenConfig{Control: private}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
