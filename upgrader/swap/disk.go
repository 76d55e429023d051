package swap

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
)

// Disk is what a replacement does to a file system, call by call, so that a test can pull the plug between any two.
// Paths are absolute. Every error names the path; one for something that is not there is fs.ErrNotExist.
//
// Nothing is certain to survive a power cut before a Sync: of a file for what it holds, of a directory for what is
// in it and under which name.
type Disk interface {
	// ReadFile returns the content of the file at path.
	ReadFile(path string) ([]byte, error)
	// Lstat describes what is at path; of a symbolic link, the link.
	Lstat(path string) (fs.FileInfo, error)
	// Readlink returns the target of the symbolic link at path as it is written there.
	Readlink(path string) (string, error)
	// ReadDir returns the names in dir, sorted.
	ReadDir(dir string) ([]string, error)

	// Write makes a new file that has at most mode from its first byte. If there is something at path, the error is
	// fs.ErrExist; after any other error there is no file.
	Write(path string, data []byte, mode fs.FileMode) error
	// Copy makes a new file at to, mode 0600, with the content of the file at from; its errors are those of Write.
	Copy(from, to string) error
	// Mkdir makes a directory in one that exists. That path is a directory already is no error.
	Mkdir(path string, mode fs.FileMode) error
	// Symlink makes a symbolic link, fs.ErrExist if there is something at path. Where a link cannot be renamed over
	// another in one step (Windows), there are none: errors.ErrUnsupported.
	Symlink(target, path string) error
	// Link gives the file at from a second name, fs.ErrExist if there is something at to. A symbolic link is itself
	// linked, not what it points to. Where there are no hard links, and of programs on Windows, it makes a copy with the
	// same mode and owner that is on the disk when its name is.
	Link(from, to string) error

	// Adopt gives the file at path what the file at like has beside its content: mode, owner, extended attributes and
	// SELinux label; on Windows, the access list. Of extended attributes and the list, it takes over what it can; for
	// the owner, being root and not able to is an error.
	Adopt(path, like string) error
	// Own gives the file at path the owner and group of the file at like, and nothing else of it. It does nothing if
	// there is no regular file at like, or we are not root.
	Own(path, like string) error
	// Chmod sets the permission bits of the file at path.
	Chmod(path string, mode fs.FileMode) error

	// Rename moves what is at from to to, in one step; it replaces a file or a link at to. On Windows, a program that
	// runs is renamed to ".old-*" in its directory first (two steps, the first is taken back if the second fails), and
	// what is busy is tried again for four seconds.
	Rename(from, to string) error
	// Exchange gives a and b, which both exist, each other's place in one step; ErrNoExchange where the system or the
	// file system cannot.
	Exchange(a, b string) error
	// Remove deletes a file, a link or a whole directory; that there is none is no error. A directory gets a name
	// that begins with ".trash-" first, so that a crash leaves no half of it under its own (see Sweep).
	Remove(path string) error
	// Sync forces to the disk what a file holds, or which names a directory does.
	Sync(path string) error
}

// ErrNoExchange says that two directories cannot change places in one step here.
var ErrNoExchange = errors.New("no exchange on this file system")

// Real is the disk of this machine.
func Real() Disk { return realDisk{} }

type realDisk struct{}

func (realDisk) ReadFile(path string) ([]byte, error) { return os.ReadFile(path) }

func (realDisk) Lstat(path string) (fs.FileInfo, error) { return os.Lstat(path) }

func (realDisk) Readlink(path string) (string, error) { return os.Readlink(path) }

func (realDisk) ReadDir(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, entry := range entries {
		names[i] = entry.Name()
	}
	return names, nil
}

func (realDisk) Write(path string, data []byte, mode fs.FileMode) error {
	return create(path, mode.Perm(), func(f *os.File) error {
		_, err := f.Write(data)
		return err
	})
}

func (realDisk) Copy(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	return create(to, 0o600, func(f *os.File) error {
		_, err := io.Copy(f, source)
		return err
	})
}

// create makes a new file and has it filled; if that fails, there is none.
func create(path string, mode fs.FileMode, fill func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	err = fill(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(path)
	}
	return err
}

func (realDisk) Mkdir(path string, mode fs.FileMode) error {
	err := os.Mkdir(path, mode.Perm())
	if errors.Is(err, fs.ErrExist) {
		if info, serr := os.Stat(path); serr == nil && info.IsDir() {
			return nil
		}
	}
	return err
}

func (realDisk) Symlink(target, path string) error { return symlink(target, path) }

func (d realDisk) Link(from, to string) error {
	err := link(from, to)
	if err == nil || errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// No hard links here (FAT), none of programs (Windows), none for us (fs.protected_hardlinks), or too many of this file.
	if cerr := d.duplicate(from, to); cerr != nil {
		return fmt.Errorf("%w; copy instead: %w", err, cerr)
	}
	return nil
}

// duplicate copies a file with its mode and owner; to is complete, and forced to the disk, when it gets its name.
func (d realDisk) duplicate(from, to string) error {
	if _, err := os.Lstat(to); err == nil {
		return &fs.PathError{Op: "copy", Path: to, Err: fs.ErrExist}
	}
	part := beside(to, tempPrefix(filepath.Base(to)), tempSuffix)
	err := d.Copy(from, part)
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return d.Adopt(part, from) },
		func() error { return d.Sync(part) },
		func() error { return d.Rename(part, to) },
	} {
		if err = step(); err != nil {
			_ = os.Remove(part)
			return err
		}
	}
	return nil
}

func (realDisk) Adopt(path, like string) error { return adopt(path, like) }

func (realDisk) Own(path, like string) error { return own(path, like) }

func (realDisk) Chmod(path string, mode fs.FileMode) error { return os.Chmod(path, mode.Perm()) }

func (realDisk) Rename(from, to string) error { return rename(from, to) }

func (realDisk) Exchange(a, b string) error { return exchange(a, b) }

func (realDisk) Sync(path string) error { return syncPath(path) }

func (realDisk) Remove(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		err := os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	trash := path
	if !isTrash(filepath.Base(path)) {
		trash = beside(path, trashPrefix, "")
		if err := rename(path, trash); err != nil {
			return err
		}
	}
	return removeTree(trash)
}

// removeTree deletes a directory, also where its own modes forbid that to us.
func removeTree(dir string) error {
	err := os.RemoveAll(dir)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, werr error) error {
		if entry != nil && entry.IsDir() && werr == nil {
			_ = os.Chmod(path, 0o700) // WalkDir calls us before it reads the directory
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// beside names something new in the directory of path: prefix, a number that nobody can foresee, suffix.
func beside(path, prefix, suffix string) string {
	return filepath.Join(filepath.Dir(path), prefix+strconv.FormatUint(uint64(rand.Uint32()), 10)+suffix)
}
