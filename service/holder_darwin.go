package service

import (
	"bytes"
	"fmt"

	"golang.org/x/sys/unix"
)

// executableOf returns the path with which a process's program was called: the text after the number of arguments in
// kern.procargs2.
func executableOf(pid int) (string, error) {
	raw, err := unix.SysctlRaw("kern.procargs2", pid)
	if err != nil {
		return "", err
	}
	if len(raw) < 4 {
		return "", fmt.Errorf("unexpected answer of kern.procargs2 about process %d", pid)
	}
	path, _, ok := bytes.Cut(raw[4:], []byte{0})
	if !ok {
		return "", fmt.Errorf("unexpected answer of kern.procargs2 about process %d", pid)
	}
	return string(path), nil
}
