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

// Runs reports whether the process runs the file that is at path now: not one that was there before. known is false where the
// system does not say, as here.
func (h *Holder) Runs(string) (same, known bool) { return false, false }
