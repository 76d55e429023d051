//go:build unix

package main

import (
	"os"
	"syscall"
)

// become runs another program in the place of this one.
func become(path string, argv []string) error {
	return &os.PathError{Op: "exec", Path: path, Err: syscall.Exec(path, argv, os.Environ())} //nolint:gosec // the agent of this home
}
