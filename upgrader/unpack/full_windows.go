package unpack

import (
	"errors"
	"syscall"

	win "golang.org/x/sys/windows"
)

// full says whether an error is that of a full disk, or of a quota that is used up.
func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, win.ERROR_DISK_FULL) ||
		errors.Is(err, win.ERROR_HANDLE_DISK_FULL) || errors.Is(err, win.ERROR_DISK_QUOTA_EXCEEDED)
}
