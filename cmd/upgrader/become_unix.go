//go:build unix

package main

import (
	"os"
	"syscall"
)

// become replaces this process by a program: same pid, so that what the keeper watches is the agent.
func become(path string, args []string) error {
	return &os.PathError{Op: "start", Path: path, Err: syscall.Exec(path, append([]string{path}, args...), os.Environ())}
}
