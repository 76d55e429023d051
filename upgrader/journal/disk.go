package journal

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// disk is swap.Disk and what else a journal needs of one.
type disk interface {
	swap.Disk
	// Sum is the SHA-256 of the file at path, in lower-case hex; "" and no error when there is none. The file need not
	// fit into memory.
	Sum(path string) (string, error)
	// Tail is the end of the file at path, at most so many bytes.
	Tail(path string, most int64) ([]byte, error)
}

// realDisk is the disk of this machine. What root makes in somebody else's home belongs to that account.
type realDisk struct {
	swap.Disk
	owner *ids
}

// ids are an owner; nil where nothing has to be given away.
type ids struct{ uid, gid int }

func newDisk(home string) realDisk { return realDisk{Disk: swap.Real(), owner: ownerOf(home)} }

// Sum reads the file piece by piece.
func (realDisk) Sum(path string) (_ string, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if info, err := f.Stat(); err != nil {
		return "", err
	} else if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a file", path)
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Tail reads no more than it returns.
func (realDisk) Tail(path string, most int64) (_ []byte, err error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return io.ReadAll(io.NewSectionReader(f, max(info.Size()-most, 0), most))
}

// Mkdir makes a directory that belongs to home's owner. It takes no link for one: somebody else may have put it there.
func (d realDisk) Mkdir(path string, mode fs.FileMode) error {
	info, err := os.Lstat(path)
	switch {
	case err == nil && !info.IsDir():
		return &fs.PathError{Op: "mkdir", Path: path, Err: fs.ErrExist}
	case err == nil:
		return nil
	}
	if err := d.Disk.Mkdir(path, mode); err != nil {
		return err
	}
	return d.give(path)
}

// Write makes a file that belongs to home's owner.
func (d realDisk) Write(path string, data []byte, mode fs.FileMode) error {
	if err := d.Disk.Write(path, data, mode); err != nil {
		return err
	}
	return d.give(path)
}

// Copy makes a file that belongs to home's owner.
func (d realDisk) Copy(from, to string) error {
	if err := d.Disk.Copy(from, to); err != nil {
		return err
	}
	return d.give(to)
}

// give leaves nothing that cannot be given away.
func (d realDisk) give(path string) error {
	if d.owner == nil {
		return nil
	}
	err := os.Lchown(path, d.owner.uid, d.owner.gid)
	if err != nil {
		_ = os.Remove(path)
	}
	return err
}
