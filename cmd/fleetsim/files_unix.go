//go:build unix

package main

import (
	"fmt"
	"syscall"
)

// openFiles is how many files a process may have open here; the controller gets the same. The Go runtime has raised the
// soft limit to the hard one already.
func openFiles() (uint64, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	return uint64(limit.Cur), nil
}
