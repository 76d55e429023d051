package cpio

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// Types of entries: the upper bits of Header.Mode, as in stat(2).
const (
	TypeMask = 0o170000
	TypeFile = 0o100000
	TypeDir  = 0o040000
	TypeLink = 0o120000
)

// Header is what an archive says about one entry.
type Header struct {
	Name     string // ".", "./usr", "./usr/local"
	Mode     uint32 // type and permissions, 16 bits
	UID, GID uint32
	Links    uint32 // names of the inode; 0 is written as 1 for files and links, 2 for directories
	Time     int64  // last change, Unix seconds
	Size     int64  // of what follows, in bytes: the content, or the target of a link
}

// Limits of the form.
const (
	maxNumber  = 1<<18 - 1 // six octal digits
	maxLong    = 1<<33 - 1 // eleven
	headerSize = 76
	blockSize  = 512
	magic      = "070707"
	trailer    = "TRAILER!!!"
)

// Writer writes an archive. Each entry gets an inode of its own, so that no two are taken for one file.
type Writer struct {
	w       io.Writer
	written int64
	left    int64
	entries uint32
	err     error
}

// NewWriter writes to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// WriteHeader begins an entry; Size bytes of Write follow.
func (w *Writer) WriteHeader(h Header) error {
	if w.err != nil {
		return w.err
	}
	switch {
	case w.left > 0:
		return fmt.Errorf("cpio: %s: %d bytes of the entry before are missing", h.Name, w.left)
	case h.Name == "" || strings.ContainsRune(h.Name, 0) || h.Name == trailer || len(h.Name) >= maxNumber:
		return fmt.Errorf("cpio: the name %q cannot be written", h.Name)
	case h.Size < 0 || h.Size > maxLong || h.Time < 0 || h.Time > maxLong:
		return fmt.Errorf("cpio: %s: size %d or time %d has no room", h.Name, h.Size, h.Time)
	case h.Mode > 0o177777 || h.UID > maxNumber || h.GID > maxNumber || h.Links > maxNumber:
		return fmt.Errorf("cpio: %s: mode %o, owner %d or group %d has no room", h.Name, h.Mode, h.UID, h.GID)
	case w.entries > maxNumber:
		return fmt.Errorf("cpio: %s: more than %d entries", h.Name, maxNumber+1)
	}
	links := h.Links
	if links == 0 {
		links = 1
		if h.Mode&TypeMask == TypeDir {
			links = 2
		}
	}
	w.header(w.entries, h, links)
	w.entries++
	w.left = h.Size
	return w.err
}

func (w *Writer) header(inode uint32, h Header, links uint32) {
	w.out([]byte(fmt.Sprintf("%s%06o%06o%06o%06o%06o%06o%06o%011o%06o%011o%s\x00",
		magic, 0, inode, h.Mode, h.UID, h.GID, links, 0, h.Time, len(h.Name)+1, h.Size, h.Name)))
}

func (w *Writer) out(b []byte) {
	if w.err != nil {
		return
	}
	n, err := w.w.Write(b)
	w.written += int64(n)
	w.err = err
}

// Write writes content of the entry that was begun last.
func (w *Writer) Write(b []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	if int64(len(b)) > w.left {
		return 0, errors.New("cpio: more content than the header says")
	}
	n, err := w.w.Write(b)
	w.written += int64(n)
	w.left -= int64(n)
	w.err = err
	return n, err
}

// Close writes the end of the archive. It does not close what it writes to.
func (w *Writer) Close() error {
	if w.err == nil && w.left > 0 {
		w.err = fmt.Errorf("cpio: %d bytes of the last entry are missing", w.left)
	}
	w.header(0, Header{Name: trailer}, 1)
	if rest := w.written % blockSize; rest != 0 {
		w.out(make([]byte, blockSize-rest))
	}
	return w.err
}
