package repo

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// maxIndex bounds one file of an index in bytes, unpacked.
const maxIndex = 256 << 20

// A tree is the directory of a repository. Paths in it are slash paths; everybody may read what it makes.
type tree struct {
	disk swap.Disk
	root string
}

func (t tree) path(name string) string { return filepath.Join(t.root, filepath.FromSlash(name)) }

// read returns the content of a file of at most limit bytes.
func (t tree) read(name string, limit int64) ([]byte, error) {
	f, err := os.Open(t.path(name))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	return data, err
}

// size is that of a regular file, -1 when there is none.
func (t tree) size(name string) int64 {
	info, err := t.disk.Lstat(t.path(name))
	if err != nil || !info.Mode().IsRegular() {
		return -1
	}
	return info.Size()
}

// make makes the root if it is not there. Everybody may read it then, whatever the umask: a web server does.
func (t tree) make() error {
	if _, err := os.Stat(t.root); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(t.root, 0o755); err != nil { //nolint:gosec // see above
		return err
	}
	return os.Chmod(t.root, 0o755) //nolint:gosec // see above
}

// mkdir makes a directory and those above it.
func (t tree) mkdir(name string) error {
	if name == "." || name == "/" {
		return nil
	}
	if info, err := t.disk.Lstat(t.path(name)); err == nil && info.IsDir() {
		return nil
	}
	if err := t.mkdir(path.Dir(name)); err != nil {
		return err
	}
	if err := t.disk.Mkdir(t.path(name), 0o755); err != nil {
		return err
	}
	return t.disk.Chmod(t.path(name), 0o755) // whatever the umask
}

// write makes the content of a file data, in one step for readers; nothing happens when it is already.
func (t tree) write(name string, data []byte) error {
	if t.size(name) == int64(len(data)) {
		if old, err := t.read(name, int64(len(data))); err == nil && bytes.Equal(old, data) {
			return nil
		}
	}
	if err := t.mkdir(path.Dir(name)); err != nil {
		return err
	}
	return swap.WriteFileOn(t.disk, t.path(name), data, 0o644)
}

// move puts a new file in its place, forced to the disk.
func (t tree) move(from, to string) error {
	if err := t.mkdir(path.Dir(to)); err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return t.disk.Chmod(t.path(from), 0o644) },
		func() error { return t.disk.Sync(t.path(from)) },
		func() error { return t.disk.Rename(t.path(from), t.path(to)) },
		func() error { return t.disk.Sync(t.path(path.Dir(to))) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// sum is the SHA-256 and the size of a file.
func (t tree) sum(name string) (string, int64, error) {
	f, err := os.Open(t.path(name))
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), n, err
}

// names are the regular files below a directory that keep accepts, by their slash paths.
func (t tree) names(dir string, keep func(name string) bool) ([]string, error) {
	var list []string
	err := filepath.WalkDir(t.path(dir), func(full string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(t.root, full)
		if name := filepath.ToSlash(rel); err == nil && keep(name) {
			list = append(list, name)
		}
		return err
	})
	return list, err
}

// isTemporary reports whether a name is one that only a process that writes gives to a file.
func isTemporary(name string) bool {
	base := path.Base(name)
	return strings.HasPrefix(base, ".") && strings.HasSuffix(base, ".tmp")
}

// leave notes that files are in no index from now on, those that were in the one before and are not to be kept: readers
// of that one have a while to fetch them. It is called before there is a new index, so that a crash after that takes
// nothing from them.
func (t tree) leave(before, keep []string, now time.Time) error {
	for _, name := range before {
		if slices.Contains(keep, name) {
			continue
		}
		if err := os.Chtimes(t.path(name), now, now); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// expired reports whether a file that is in no index any more has been so for the grace.
func (t tree) expired(name string, now time.Time, grace time.Duration) bool {
	info, err := t.disk.Lstat(t.path(name))
	return err == nil && now.Sub(info.ModTime()).Abs() > grace
}

// sha256Hex is the sum of data.
func sha256Hex(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
