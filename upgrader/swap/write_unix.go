//go:build unix

package swap

import (
	"errors"
	"os"
	"syscall"
)

// adopt keeps the owner and group of the file that is about to be replaced. Only root can, and only root needs it:
// anybody else creates files as themselves anyway.
func adopt(f *os.File, path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	old, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return nil
	}
	return f.Chown(int(old.Uid), int(old.Gid))
}

func rename(from, to string) error { return os.Rename(from, to) }

// syncDir forces the new directory entry to the disk; without it, a power cut may bring the old name back.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	// Some network file systems cannot sync a directory; then there is nothing more that we could do.
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		return nil
	}
	return err
}
