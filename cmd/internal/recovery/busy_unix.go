//go:build unix

package recovery

import (
	"errors"
	"syscall"
)

func busy(err error) bool { return errors.Is(err, syscall.ETXTBSY) }
