package journal

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// disk is swap.Disk with a digest of files, which need not fit into memory.
type disk interface {
	swap.Disk
	// Sum is the SHA-256 of the file at path, in lower-case hex; "" and no error when there is none.
	Sum(path string) (string, error)
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
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Mkdir makes a directory that belongs to home's owner.
func (d realDisk) Mkdir(path string, mode fs.FileMode) error {
	return errors.Join(d.Disk.Mkdir(path, mode), d.give(path))
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

func (d realDisk) give(path string) error {
	if d.owner == nil {
		return nil
	}
	return os.Lchown(path, d.owner.uid, d.owner.gid)
}
