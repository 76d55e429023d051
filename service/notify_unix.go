//go:build unix

package service

import (
	"golang.org/x/sys/unix"
)

func closeOnExec(fd uintptr) error {
	_, err := unix.FcntlInt(fd, unix.F_SETFD, unix.FD_CLOEXEC)
	return err
}
