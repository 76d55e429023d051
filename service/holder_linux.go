package service

import (
	"os"
	"strconv"
)

// executableOf returns the path of a process's program, with " (deleted)" after it when that file is gone.
func executableOf(pid int) (string, error) { return os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe") }
