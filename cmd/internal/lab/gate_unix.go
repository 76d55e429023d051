//go:build unix

package lab

import (
	"errors"
	"os"
	"syscall"
)

// openGate makes a named pipe and holds both its ends, so that neither side waits for the other to open it.
func openGate(path string) (*os.File, error) {
	if err := syscall.Mkfifo(path, 0o666); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	_ = os.Chmod(path, 0o666) //nolint:gosec // the worker may be another account
	return os.OpenFile(path, os.O_RDWR, 0)
}
