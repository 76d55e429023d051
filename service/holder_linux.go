package service

import (
	"os"
	"strconv"
)

// executableOf returns the path of a process's program, with " (deleted)" after it when that file is gone.
func executableOf(pid int) (string, error) { return os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe") }

// Runs reports whether the process runs the file that is at path now: not one that was there before. known is false where the
// system does not say.
func (h *Holder) Runs(path string) (same, known bool) {
	running, err := os.Stat("/proc/" + strconv.Itoa(h.PID) + "/exe")
	if err != nil {
		return false, false
	}
	file, err := os.Stat(path)
	return err == nil && os.SameFile(running, file), true
}
