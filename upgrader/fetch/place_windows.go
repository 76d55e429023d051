package fetch

import (
	"errors"
	"os"
	"time"

	win "golang.org/x/sys/windows"
)

// rename replaces to, and returns when that is on the disk. A virus scanner may hold a fresh file for a moment, so it tries
// for four seconds.
func rename(from, to string) error {
	source, err := win.UTF16PtrFromString(from)
	if err != nil {
		return err
	}
	target, err := win.UTF16PtrFromString(to)
	if err != nil {
		return err
	}
	begun := time.Now()
	for pause := 4 * time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		err := win.MoveFileEx(source, target, win.MOVEFILE_REPLACE_EXISTING|win.MOVEFILE_WRITE_THROUGH)
		if err == nil {
			return nil
		}
		busy := errors.Is(err, win.ERROR_ACCESS_DENIED) || errors.Is(err, win.ERROR_SHARING_VIOLATION) || errors.Is(err, win.ERROR_LOCK_VIOLATION)
		if !busy || time.Since(begun) > 4*time.Second {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
		}
		time.Sleep(pause)
	}
}

// syncDir has nothing to do: MOVEFILE_WRITE_THROUGH has done it.
func syncDir(string) error { return nil }
