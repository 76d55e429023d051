//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"
)

// narrowUmask makes every file of ours private and returns the umask that builds get: the one we were started with.
func narrowUmask() int {
	if before := syscall.Umask(0o077); before != 0 {
		return before
	}
	return 0o022 // nobody means "writable by everyone"
}

// surviveReaders keeps the agent, and the builds under it, alive when whoever read its standard error is gone: Go
// ends a program that writes there then. A signal that is caught, unlike one that is ignored, is as ever in children.
func surviveReaders() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }
