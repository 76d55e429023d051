//go:build unix

package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxPath is the longest socket address that every system takes, its end included (sun_path: macOS 104, Linux 108).
const maxPath = 103

// socket is a listening Unix socket.
type socket struct {
	*net.UnixListener
	path string
	file fs.FileInfo // of the socket when it was made
	once sync.Once
	err  error
}

// listen binds the socket under another name and moves it to its place: a socket that a killed process left is replaced
// in one step, and there is none that others could reach. It needs no room on the disk.
func listen(home, role string) (acceptor, error) {
	dir := filepath.Join(home, "runtime")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	path, born := filepath.Join(dir, role+".sock"), filepath.Join(dir, newborn(role))
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSocket == 0 {
		return nil, fmt.Errorf("%s is in the way: no socket", path)
	}
	if err := os.Remove(born); err != nil && !errors.Is(err, fs.ErrNotExist) { // of one that was killed in the middle
		return nil, err
	}
	short, done, err := shorten(dir)
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := (&net.ListenConfig{Control: private}).Listen(context.Background(), "unix", filepath.Join(short, newborn(role)))
	if err != nil {
		return nil, errno(err)
	}
	s := &socket{UnixListener: l.(*net.UnixListener), path: path}
	s.SetUnlinkOnClose(false) // it does not stay where it was bound
	if err = os.Chmod(born, 0o600); err == nil {
		if s.file, err = os.Lstat(born); err == nil {
			err = os.Rename(born, path)
		}
	}
	if err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(born))
	}
	return s, nil
}

func newborn(role string) string { return "." + role + ".sock" }

// private makes Linux create the socket with mode 0600, whatever the umask. Elsewhere it has no effect: there the
// umask of our programs, 0077, does it.
func private(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { _ = unix.Fchmod(int(fd), 0o600) })
}

func (s *socket) accept() (conn, error) {
	c, err := s.AcceptUnix()
	if err != nil {
		return nil, err
	}
	uid, err := peer(c)
	if err == nil && uid != 0 && uid != uint32(os.Geteuid()) { //nolint:gosec // not negative on Unix
		err = errStranger
	}
	if err != nil {
		_ = c.Close()
		return nil, errStranger
	}
	return c, nil
}

func (s *socket) close() error {
	s.once.Do(func() {
		// The next process may have put its own there already.
		if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, s.file) {
			s.err = os.Remove(s.path)
		}
		s.err = errors.Join(s.err, s.Close())
	})
	return s.err
}

// peer is the account at the other end.
func peer(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var uid uint32
	var perr error
	if err := raw.Control(func(fd uintptr) { uid, perr = peerUID(int(fd)) }); err != nil {
		return 0, err
	}
	return uid, perr
}

func dial(ctx context.Context, home, role string) (conn, error) {
	dir := filepath.Join(home, "runtime")
	short, done, err := shorten(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNobody
	}
	if err != nil {
		return nil, err
	}
	defer done()
	address := filepath.Join(short, role+".sock")
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", address)
		switch {
		case err == nil:
			return c.(*net.UnixConn), nil
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOTSOCK):
			return nil, ErrNobody
		case !errors.Is(err, unix.EAGAIN): // the queue is full: Linux does not wait for us
			var op *net.OpError
			if errors.As(err, &op) { // the address is a way in, not a name
				err = op.Err
			}
			return nil, &fs.PathError{Op: "connect", Path: filepath.Join(dir, role+".sock"), Err: errno(err)}
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// errno is the system's own error inside another.
func errno(err error) error {
	var no syscall.Errno
	if errors.As(err, &no) {
		return no
	}
	return err
}

// fits reports whether a socket of any role can be bound or reached in a directory by its own name.
func fits(dir string) bool { return len(filepath.Join(dir, newborn(RoleDaemon))) <= maxPath }
