//go:build unix

package main

import "syscall"

// narrowUmask makes every file of ours private and returns the umask that builds get: the one we were started with.
func narrowUmask() int {
	if before := syscall.Umask(0o077); before != 0 {
		return before
	}
	return 0o022 // nobody means "writable by everyone"
}
