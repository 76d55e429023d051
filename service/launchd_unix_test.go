//go:build unix

package service

import (
	"io/fs"
	"syscall"
	"testing"
)

// syscallUmask sets the umask and returns the one before.
func syscallUmask(t *testing.T, mask fs.FileMode) fs.FileMode {
	t.Helper()
	return fs.FileMode(syscall.Umask(int(mask))) //nolint:gosec // nine bits
}
