package swap

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// staleAfter is the age at which a temporary file of WriteFile is rubbish of a process that was killed.
const staleAfter = 10 * time.Minute

// WriteFile replaces the content of the file at path, which may not exist yet. Whoever opens path, at any time and
// after any crash or power cut, finds the old content or the new one, whole.
//
// The new content is written to a temporary file in the same directory that has at most mode from its first byte,
// is forced to the disk and then renamed over path; then the directory is forced to the disk as well. When it
// fails, path is as it was and the temporary file is gone. Only the last step, forcing the directory, may fail
// with the new content already in place: it is then not certain that it survives a power cut.
//
// A symbolic link at path is replaced, not followed. Where we are root, the new file keeps the owner of the old one.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	sweepStale(path, time.Now())
	return writeFile(realDisk{}, path, data, mode)
}

// disk is what writeFile does to the world, call by call, so that a test can pull the plug between any two.
type disk interface {
	create(dir, pattern string) (file, error) // a new file, mode 0600
	adopt(f file, path string) error          // give f the owner of the file at path, if there is one and we may
	rename(from, to string) error             // replaces to
	remove(path string) error
	syncDir(dir string) error
}

type file interface {
	io.Writer
	Name() string
	Chmod(mode fs.FileMode) error
	Sync() error
	Close() error
}

func writeFile(d disk, path string, data []byte, mode os.FileMode) error {
	dir, base := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	f, err := d.create(dir, tempPattern(base))
	if err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	closed := false
	fail := func(err error) error {
		if !closed {
			_ = f.Close()
		}
		_ = d.remove(f.Name())
		return fmt.Errorf("replace %s: %w", path, err)
	}
	if _, err := f.Write(data); err != nil {
		return fail(err)
	}
	// The owner first, the mode second: a chown clears set-id bits, and a group must not see the file as ours.
	if err := d.adopt(f, path); err != nil {
		return fail(err)
	}
	if err := f.Chmod(mode.Perm()); err != nil {
		return fail(err)
	}
	if err := f.Sync(); err != nil {
		return fail(err)
	}
	closed = true
	if err := f.Close(); err != nil {
		return fail(err)
	}
	if err := d.rename(f.Name(), path); err != nil {
		return fail(err)
	}
	if err := d.syncDir(dir); err != nil {
		return fmt.Errorf("replace %s: force the directory to the disk: %w", path, err)
	}
	return nil
}

// tempPattern names the temporary files for a base name, in the syntax of os.CreateTemp and of filepath.Match.
func tempPattern(base string) string {
	return "." + strings.TrimLeft(base, ".") + ".*.tmp"
}

// sweepStale removes what killed processes left of earlier replacements. It is a courtesy: nobody depends on it.
func sweepStale(path string, now time.Time) {
	dir, base := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	prefix, suffix, _ := strings.Cut(tempPattern(base), "*")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, entry := range entries {
		name := entry.Name()
		if !strings.HasPrefix(name, prefix) || !strings.HasSuffix(name, suffix) || !entry.Type().IsRegular() ||
			!onlyDigits(name[len(prefix):len(name)-len(suffix)]) {
			continue
		}
		if info, err := entry.Info(); err == nil && now.Sub(info.ModTime()) > staleAfter {
			_ = os.Remove(filepath.Join(dir, name))
		}
	}
}

func onlyDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

type realDisk struct{}

// create relies on os.CreateTemp: O_EXCL, mode 0600, a name that nobody can foresee.
func (realDisk) create(dir, pattern string) (file, error) { return os.CreateTemp(dir, pattern) }

func (realDisk) adopt(f file, path string) error { return adopt(f.(*os.File), path) }

func (realDisk) rename(from, to string) error { return rename(from, to) }

func (realDisk) remove(path string) error { return os.Remove(path) }

func (realDisk) syncDir(dir string) error { return syncDir(dir) }
