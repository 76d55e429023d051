//go:build unix

package swap

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

func rename(from, to string) error { return os.Rename(from, to) }

func symlink(target, path string) error { return os.Symlink(target, path) }

// link gives a symbolic link a second of its kind: whether link(2) follows it depends on the system.
func link(from, to string) error {
	if target, err := os.Readlink(from); err == nil {
		return os.Symlink(target, to)
	}
	return os.Link(from, to)
}

// own is for root only, and only root needs it: anybody else creates files as themselves anyway.
func own(path, like string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Lstat(like)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	return chown(path, info)
}

// chown asks for nothing that is so already: a file system without owners (FAT) refuses every request but knows one.
func chown(path string, like fs.FileInfo) error {
	now, err := os.Lstat(path)
	if err != nil {
		return err
	}
	is, ok := now.Sys().(*syscall.Stat_t)
	want, wok := like.Sys().(*syscall.Stat_t)
	if !ok || !wok || is.Uid == want.Uid && is.Gid == want.Gid {
		return nil
	}
	return os.Lchown(path, int(want.Uid), int(want.Gid))
}

// adopt changes the owner first: that takes capabilities and set-id bits away. The mode comes last, because an access
// list among the attributes sets it as well.
func adopt(path, like string) error {
	info, err := os.Lstat(like)
	if err != nil {
		return err
	}
	if err := chown(path, info); err != nil && os.Geteuid() == 0 {
		return err
	}
	if err := adoptAttributes(path, like); err != nil {
		return err
	}
	return os.Chmod(path, info.Mode().Perm())
}

// syncPath forces a file or a directory to the disk. Without the latter, a power cut may bring an old name back.
func syncPath(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	err = f.Sync()
	if err != nil && (errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP)) {
		// Some network file systems cannot force a directory; then there is nothing more that we could do.
		if info, serr := f.Stat(); serr == nil && info.IsDir() {
			err = nil
		}
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
