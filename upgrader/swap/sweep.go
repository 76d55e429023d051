package swap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	trashPrefix = ".trash-" // a directory that is being deleted
	oldPrefix   = ".old-"   // on Windows, a program that ran when it was replaced
	tempSuffix  = ".tmp"    // a file that is being written, see tempPrefix

	// staleAfter is the age at which a temporary file is rubbish of a process that was killed.
	staleAfter = 10 * time.Minute
)

// tempPrefix begins the names of temporary files for a base name; digits and tempSuffix follow.
func tempPrefix(base string) string { return "." + strings.TrimLeft(base, ".") + "." }

// isTemp tells whether name is one of a temporary file for a base name; for any base name, if that is "".
func isTemp(name, base string) bool {
	stem, isTemp := strings.CutSuffix(name, tempSuffix)
	dot := strings.LastIndexByte(stem, '.')
	return isTemp && dot > 0 && name[0] == '.' && onlyDigits(stem[dot+1:]) && (base == "" || stem[:dot+1] == tempPrefix(base))
}

func isTrash(name string) bool {
	number, ok := strings.CutPrefix(name, trashPrefix)
	return ok && onlyDigits(number)
}

// isOld knows the names that rename gives on Windows: prefix, digits, "-", the name of the program.
func isOld(name string) bool {
	rest, ok := strings.CutPrefix(name, oldPrefix)
	number, _, dash := strings.Cut(rest, "-")
	return ok && dash && onlyDigits(number)
}

func onlyDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// stale tells whether nobody can be at work on a file that was changed then. A clock that was set back makes files of
// the future: those are of another time as well.
func stale(changed, now time.Time) bool {
	return now.Sub(changed).Abs() > staleAfter
}

// Sweep removes what crashes left in dir, which may be missing: directories that were being deleted (".trash-*"),
// temporary files of WriteFile and of copies older than ten minutes, and on Windows programs that ran when they were
// replaced (".old-*") and do not any more. Nothing else is touched, and nothing below. The error joins those of all
// that should be gone and is not; a program that still runs is none.
func Sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("sweep %s: %w", dir, err)
	}
	var errs []error
	now := time.Now()
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		switch {
		case isTrash(entry.Name()) && entry.IsDir():
			err = removeTree(path)
		case isOld(entry.Name()) && entry.Type().IsRegular():
			_ = os.Remove(path)
			continue
		case isTemp(entry.Name(), "") && entry.Type().IsRegular():
			info, ierr := entry.Info()
			if ierr != nil || !stale(info.ModTime(), now) {
				continue
			}
			err = os.Remove(path)
		default:
			continue
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("sweep %s: %w", dir, errors.Join(errs...))
	}
	return nil
}
