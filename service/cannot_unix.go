//go:build unix

package service

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"
)

// CannotRun reports whether a start came to nothing because of the program: it is missing, or nothing for this machine, or what
// it is loaded by is missing. Then another version helps; against a machine short of memory, processes or files none does.
func CannotRun(err error) bool {
	for _, cause := range []error{fs.ErrNotExist, fs.ErrPermission, unix.ENOEXEC, unix.ENOTDIR, unix.EISDIR, unix.ELOOP, unix.EINVAL, unix.EFAULT} {
		if errors.Is(err, cause) {
			return true
		}
	}
	return cannotLoad(err)
}
