package swap

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	win "golang.org/x/sys/windows"
)

// Virus scanners and indexers open new files for a moment without sharing them.
const (
	busyLimit = 4 * time.Second // until it is believed that access is denied
	busyPause = 250 * time.Millisecond
)

// persist repeats do while what it needs is busy.
func persist(do func() error) error {
	begun := time.Now()
	for pause := 4 * time.Millisecond; ; pause = min(2*pause, busyPause) {
		err := do()
		if err == nil || !busy(err) || time.Since(begun) > busyLimit {
			return err
		}
		time.Sleep(pause)
	}
}

func busy(err error) bool {
	return errors.Is(err, win.ERROR_ACCESS_DENIED) || errors.Is(err, win.ERROR_SHARING_VIOLATION) ||
		errors.Is(err, win.ERROR_LOCK_VIOLATION) || errors.Is(err, win.ERROR_USER_MAPPED_FILE)
}

// rename returns after the change is on the disk.
func rename(from, to string) error {
	tries := 0
	return persist(func() error {
		err := move(from, to)
		if tries++; err == nil || !busy(err) || tries < 3 || !isProgram(to) {
			return err
		}
		// A program that runs can be renamed, but not replaced.
		away := beside(to, oldPrefix, "-"+filepath.Base(to))
		if move(to, away) != nil {
			return err
		}
		if err := persist(func() error { return move(from, to) }); err != nil {
			if berr := persist(func() error { return move(away, to) }); berr != nil {
				return fmt.Errorf("%w; and the old one is at %s: %w", err, away, berr)
			}
			return err
		}
		_ = os.Remove(away) // works once it does not run any more; until then it waits for Sweep
		return nil
	})
}

// move replaces a file at to, unless that is in use.
func move(from, to string) error {
	source, err := win.UTF16PtrFromString(from)
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	target, err := win.UTF16PtrFromString(to)
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	if err := win.MoveFileEx(source, target, win.MOVEFILE_REPLACE_EXISTING|win.MOVEFILE_WRITE_THROUGH); err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// isProgram keeps the two steps of rename away from files that must never be missing, as configuration: those are
// never held open as a running program is.
func isProgram(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	magic := make([]byte, 2)
	_, err = io.ReadFull(f, magic)
	return err == nil && string(magic) == "MZ"
}

func exchange(a, b string) error {
	return fmt.Errorf("exchange %s and %s: %w", a, b, ErrNoExchange)
}

func symlink(target, path string) error {
	return &os.LinkError{Op: "symlink", Old: target, New: path, Err: errors.ErrUnsupported}
}

// link makes no second name of a program: while that runs, no name of it can be deleted, or opened to force it to the disk.
func link(from, to string) error {
	if info, err := os.Lstat(from); err == nil && info.Mode().IsRegular() && isProgram(from) {
		return &os.LinkError{Op: "link", Old: from, New: to, Err: errors.ErrUnsupported}
	}
	return os.Link(from, to)
}

// own does nothing: a new file inherits the access list of its directory.
func own(string, string) error { return nil }

// adopt takes over the access list, or where like inherits its own, the entries that it has beside those.
func adopt(path, like string) error {
	info, err := os.Lstat(like)
	if err != nil {
		return err
	}
	if descriptor, err := win.GetNamedSecurityInfo(like, win.SE_FILE_OBJECT, win.DACL_SECURITY_INFORMATION); err == nil {
		control, _, cerr := descriptor.Control()
		list, _, lerr := descriptor.DACL()
		if cerr == nil && lerr == nil {
			what := win.SECURITY_INFORMATION(win.DACL_SECURITY_INFORMATION | win.UNPROTECTED_DACL_SECURITY_INFORMATION)
			if control&win.SE_DACL_PROTECTED != 0 {
				what = win.DACL_SECURITY_INFORMATION | win.PROTECTED_DACL_SECURITY_INFORMATION
			}
			_ = win.SetNamedSecurityInfo(path, win.SE_FILE_OBJECT, what, nil, nil, list, nil)
		}
	}
	return os.Chmod(path, info.Mode().Perm())
}

// syncPath forces a file to the disk. For directories there is nothing to do: MOVEFILE_WRITE_THROUGH has done it.
func syncPath(path string) error {
	info, err := os.Stat(path)
	if err != nil || info.IsDir() {
		return err
	}
	return persist(func() error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if errors.Is(err, fs.ErrPermission) && info.Mode().Perm()&0o200 == 0 {
			// Only who may write may force; a file marked read-only stays so.
			if cerr := os.Chmod(path, 0o600); cerr != nil {
				return cerr
			}
			f, err = os.OpenFile(path, os.O_RDWR, 0)
			defer os.Chmod(path, info.Mode().Perm())
		}
		if err != nil {
			return err
		}
		err = f.Sync()
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		return err
	})
}
