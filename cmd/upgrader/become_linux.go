package main

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// replaceFD makes descriptor to mean what from means, also for the programs that come after us.
func replaceFD(from, to int) error { return unix.Dup3(from, to, 0) }

// umaskOf is the umask of a process, which builds inherit from their daemon; otherwise where nobody knows (proc(5)).
func umaskOf(pid int, otherwise string) string {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return otherwise
	}
	for line := range strings.Lines(string(text)) {
		if mask, ok := strings.CutPrefix(line, "Umask:"); ok {
			return strings.TrimSpace(mask)
		}
	}
	return otherwise
}
