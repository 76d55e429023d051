package swap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

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
	return WriteFileOn(Real(), path, data, mode)
}

// WriteFileOn is WriteFile on the disk d.
func WriteFileOn(d Disk, path string, data []byte, mode fs.FileMode) error {
	temp, err := writeTemp(d, path, data)
	if err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	fail := func(err error) error {
		_ = d.Remove(temp)
		return fmt.Errorf("replace %s: %w", path, err)
	}
	// The owner first, the mode second: a chown clears set-id bits, and a group must not see the file as ours.
	if err := d.Own(temp, path); err != nil {
		return fail(err)
	}
	if err := d.Chmod(temp, mode.Perm()); err != nil {
		return fail(err)
	}
	if err := d.Sync(temp); err != nil {
		return fail(err)
	}
	if err := d.Rename(temp, path); err != nil {
		return fail(err)
	}
	if err := d.Sync(filepath.Dir(path)); err != nil {
		return fmt.Errorf("replace %s: force the directory to the disk: %w", path, err)
	}
	return nil
}

// writeTemp writes data to a new file beside path, mode 0600, and returns its name.
func writeTemp(d Disk, path string, data []byte) (string, error) {
	for tries := 0; ; tries++ {
		temp := beside(path, tempPrefix(filepath.Base(path)), tempSuffix)
		err := d.Write(temp, data, 0o600)
		if err == nil {
			return temp, nil
		}
		if !errors.Is(err, fs.ErrExist) || tries == 100 {
			return "", err
		}
	}
}

// sweepStale removes what killed processes left of earlier replacements. It is a courtesy: nobody depends on it.
func sweepStale(path string, now time.Time) {
	dir, base := filepath.Dir(path), filepath.Base(path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, entry := range entries {
		if !isTemp(entry.Name(), base) || !entry.Type().IsRegular() {
			continue
		}
		if info, err := entry.Info(); err == nil && stale(info.ModTime(), now) {
			_ = os.Remove(filepath.Join(dir, entry.Name()))
		}
	}
}
