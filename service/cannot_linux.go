package service

import (
	"errors"

	"golang.org/x/sys/unix"
)

// cannotLoad: what loads the program is not fit for it (execve(2)).
func cannotLoad(err error) bool { return errors.Is(err, unix.ELIBBAD) || errors.Is(err, unix.ELIBACC) }
