package swap

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
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
// temporary files of WriteFile and of copies older than ten minutes, on Windows programs that ran when they were
// replaced (".old-*") and do not any more; and directories that a link of Dir led to and none does any more. Nothing
// else is touched, and nothing below. The error joins those of all that should be gone and is not; a program that still
// runs is none.
func Sweep(dir string) error { return SweepOn(Real(), dir) }

// SweepOn is Sweep on the disk d.
func SweepOn(d Disk, dir string) error {
	if err := sweep(d, dir, time.Now()); err != nil {
		return fmt.Errorf("sweep %s: %w", dir, err)
	}
	return nil
}

func sweep(d Disk, dir string, now time.Time) error {
	names, err := d.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	links, err := linksIn(d, dir, names)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		path := filepath.Join(dir, name)
		info, err := d.Lstat(path)
		if err != nil {
			continue // somebody was faster
		}
		switch {
		case isTrash(name) && info.IsDir(), isLeft(path, links) && info.IsDir(),
			isTemp(name, "") && info.Mode().IsRegular() && stale(info.ModTime(), now):
			errs = append(errs, d.Remove(path))
		case isOld(name) && info.Mode().IsRegular():
			_ = d.Remove(path)
		}
	}
	return errors.Join(errs...)
}

// isLeft tells whether the directory at path is one that a link of Dir led to before it was replaced. links are those
// beside it, and where they lead.
func isLeft(path string, links map[string]string) bool {
	name := filepath.Base(path)
	base := strings.TrimPrefix(strings.TrimSuffix(name, filepath.Ext(name)), ".")
	live, ok := links[base]
	if !ok || !isSlot(name, base) || !isSlot(filepath.Base(live), base) || filepath.Dir(live) != filepath.Dir(path) {
		return false
	}
	return !slices.Contains(slices.Collect(maps.Values(links)), path)
}
