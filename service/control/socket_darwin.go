package control

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// shorten gives a directory a name that is short enough for socket addresses, until done is called: a link to it in a
// private directory, which nobody else can exchange.
func shorten(dir string) (short string, done func(), err error) {
	if fits(dir) {
		return dir, func() {}, nil
	}
	if _, err := os.Stat(dir); err != nil {
		return "", nil, err
	}
	temp := os.TempDir()
	if !fits(filepath.Join(temp, "d1234567890", "d")) {
		temp = "/tmp"
	}
	nest, err := os.MkdirTemp(temp, "d")
	if err != nil {
		return "", nil, err
	}
	short = filepath.Join(nest, "d")
	if err := os.Symlink(dir, short); err != nil {
		return "", nil, errors.Join(err, os.Remove(nest))
	}
	return short, func() { _ = os.RemoveAll(nest) }, nil
}

func peerUID(fd int) (uint32, error) {
	who, err := unix.GetsockoptXucred(fd, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	if err != nil {
		return 0, err
	}
	return who.Uid, nil
}
