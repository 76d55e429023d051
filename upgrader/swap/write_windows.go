package swap

import (
	"errors"
	"os"
	"time"

	win "golang.org/x/sys/windows"
)

// adopt does nothing: a new file inherits the access list of its directory.
func adopt(*os.File, string) error { return nil }

// rename replaces to and returns after the change is on the disk. Virus scanners and indexers open new files for a
// moment without sharing them; so it tries for about two seconds before it believes that access is denied.
func rename(from, to string) error {
	source, err := win.UTF16PtrFromString(from)
	if err != nil {
		return err
	}
	target, err := win.UTF16PtrFromString(to)
	if err != nil {
		return err
	}
	for pause := 4 * time.Millisecond; ; pause *= 2 {
		err = win.MoveFileEx(source, target, win.MOVEFILE_REPLACE_EXISTING|win.MOVEFILE_WRITE_THROUGH)
		if err == nil {
			return nil
		}
		busy := errors.Is(err, win.ERROR_ACCESS_DENIED) || errors.Is(err, win.ERROR_SHARING_VIOLATION) ||
			errors.Is(err, win.ERROR_LOCK_VIOLATION) || errors.Is(err, win.ERROR_USER_MAPPED_FILE)
		if !busy || pause > time.Second {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
		}
		time.Sleep(pause)
	}
}

// syncDir does nothing: MOVEFILE_WRITE_THROUGH has done it.
func syncDir(string) error { return nil }
