package lab

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Memory returns the resident set of a process and its highest value so far, in bytes (VmRSS, VmHWM of /proc).
func Memory(pid int) (rss, peak int64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kb, _ := strconv.ParseInt(fields[1], 10, 64)
		switch fields[0] {
		case "VmRSS:":
			rss = kb << 10
		case "VmHWM:":
			peak = kb << 10
		}
	}
	return rss, peak, nil
}

// Marked returns the processes whose environment has an entry, written NAME=value. Zombies have none.
func Marked(entry string) []int {
	return processes("environ", func(data []byte) bool {
		return bytes.Contains(append([]byte{0}, data...), []byte("\x00"+entry+"\x00"))
	})
}

// KillMarked kills the processes whose environment has an entry, and returns them. It looks until it finds none: one that
// was killed may have started another just before.
func KillMarked(entry string) []int {
	var killed []int
	for range 20 {
		pids := Marked(entry)
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		killed = append(killed, pids...)
	}
	return killed
}

// CommandLines returns the processes that have a text in their arguments.
func CommandLines(text string) []int {
	self := os.Getpid()
	return processes("cmdline", func(data []byte) bool { return bytes.Contains(data, []byte(text)) }, self)
}

// Running reports whether a process exists and is no zombie.
func Running(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, ok := bytes.Cut(data, []byte(") "))
	return ok && len(rest) > 0 && rest[0] != 'Z' && rest[0] != 'X'
}

func processes(file string, fits func([]byte) bool, except ...int) []int {
	names, _ := filepath.Glob("/proc/[0-9]*/" + file)
	var found []int
next:
	for _, name := range names {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			continue
		}
		for _, other := range except {
			if pid == other {
				continue next
			}
		}
		if data, err := os.ReadFile(name); err == nil && fits(data) {
			found = append(found, pid)
		}
	}
	return found
}
