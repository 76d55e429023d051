//go:build unix

package main

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// signalNumber is the number of a signal that systemd names, "KILL" or "35"; 0 when there is none.
func signalNumber(name string) int {
	if n, err := strconv.Atoi(name); err == nil {
		return n
	}
	return int(unix.SignalNum("SIG" + name))
}
