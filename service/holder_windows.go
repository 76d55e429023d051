package service

import (
	"errors"

	win "golang.org/x/sys/windows"
)

// executableOf returns the path of a process's program.
func executableOf(pid int) (_ string, err error) {
	p, err := win.OpenProcess(win.PROCESS_QUERY_LIMITED_INFORMATION, false, uint32(pid))
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, win.CloseHandle(p)) }()
	buf := make([]uint16, win.MAX_LONG_PATH)
	size := uint32(len(buf))
	if err := win.QueryFullProcessImageName(p, 0, &buf[0], &size); err != nil {
		return "", err
	}
	return win.UTF16ToString(buf[:size]), nil
}

// Runs reports whether the process runs the file that is at path now: not one that was there before. known is false where the
// system does not say, as here.
func (h *Holder) Runs(string) (same, known bool) { return false, false }
