package service

import (
	"io/fs"
	"testing"
)

// syscallUmask: there is none.
func syscallUmask(t *testing.T, mask fs.FileMode) fs.FileMode {
	t.Helper()
	return mask
}
