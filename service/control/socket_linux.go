package control

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// shorten gives a directory a name that is short enough for socket addresses, until done is called: a directory that is
// open can be reached through /proc (proc_pid_fd(5)).
func shorten(dir string) (short string, done func(), err error) {
	if fits(dir) {
		return dir, func() {}, nil
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return "/proc/self/fd/" + strconv.Itoa(fd), func() { _ = unix.Close(fd) }, nil
}

func peerUID(fd int) (uint32, error) {
	who, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, err
	}
	return who.Uid, nil
}
