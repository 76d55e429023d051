package service

import (
	"errors"

	"golang.org/x/sys/unix"
)

// cannotLoad: a program of another processor, or a damaged one (execve(2)).
func cannotLoad(err error) bool {
	return errors.Is(err, unix.EBADARCH) || errors.Is(err, unix.EBADMACHO) || errors.Is(err, unix.EBADEXEC) || errors.Is(err, unix.ESHLIBVERS)
}
