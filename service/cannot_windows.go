package service

import (
	"errors"
	"io/fs"

	win "golang.org/x/sys/windows"
)

// CannotRun reports whether a start came to nothing because of the program: it is missing, or nothing for this machine, or what
// it is loaded by is missing. Then another version helps; against a machine short of memory, processes or files none does.
func CannotRun(err error) bool {
	for _, cause := range []error{fs.ErrNotExist, fs.ErrPermission, win.ERROR_BAD_EXE_FORMAT, win.ERROR_EXE_MACHINE_TYPE_MISMATCH,
		win.ERROR_INVALID_EXE_SIGNATURE, win.ERROR_EXE_MARKED_INVALID, win.ERROR_BAD_FORMAT, win.ERROR_MOD_NOT_FOUND,
		win.ERROR_FILE_CORRUPT, win.ERROR_VIRUS_INFECTED} {
		if errors.Is(err, cause) {
			return true
		}
	}
	return false
}
