//go:build unix

package unpack

import (
	"errors"
	"syscall"
)

// full says whether an error is that of a full disk, or of a quota that is used up.
func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
