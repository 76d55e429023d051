package swap

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
)

// File makes the file at fresh the one at live, which may be missing. Whoever opens live, at any time and after any
// crash or power cut, finds the old file or the new one, whole. Exception: on Windows, a program that runs is away
// for the moment between two renames; a crash in there leaves live missing, and the same call again completes it.
//
// The new file takes over what the old one has beside its content (Disk.Adopt); without an old one, or if live is a
// symbolic link, it keeps its own. A link is replaced, not followed. If backup is not "", what was at live stays under
// that name; if there is something at backup already, that is kept instead. All three are on one file system.
//
// When File fails, live is as it was, and fresh is where it was; only the last step, forcing the directories to the
// disk, may fail with the new file in place.
func File(d Disk, live, fresh, backup string) error {
	if err := file(d, live, fresh, backup); err != nil {
		return fmt.Errorf("replace %s: %w", live, err)
	}
	return nil
}

func file(d Disk, live, fresh, backup string) error {
	info, err := d.Lstat(live)
	there := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if there && info.IsDir() {
		return &fs.PathError{Op: "replace", Path: live, Err: errors.New("is a directory")}
	}
	if there && info.Mode().IsRegular() {
		if err := d.Adopt(fresh, live); err != nil {
			return err
		}
	}
	if err := d.Sync(fresh); err != nil {
		return err
	}
	if there && backup != "" {
		if err := d.Link(live, backup); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		// Also if it was there: whoever made it may have been killed before this.
		if err := d.Sync(filepath.Dir(backup)); err != nil {
			return err
		}
	}
	if err := d.Rename(fresh, live); err != nil {
		return err
	}
	return syncParents(d, live, fresh)
}

// syncParents forces the directories of these paths to the disk, each once.
func syncParents(d Disk, paths ...string) error {
	done := make(map[string]bool)
	for _, path := range paths {
		dir := filepath.Dir(path)
		if done[dir] {
			continue
		}
		done[dir] = true
		if err := d.Sync(dir); err != nil {
			return err
		}
	}
	return nil
}
