package cpio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// ErrFormat is wrapped by every error about bytes that are no archive.
var ErrFormat = errors.New("not a portable cpio archive")

// maxName bounds the names that are read: macOS has none longer.
const maxName = 1024

// Reader reads an archive.
type Reader struct {
	r    io.Reader
	left int64
	end  bool
}

// NewReader reads from r, in small pieces: give it a buffered one.
func NewReader(r io.Reader) *Reader { return &Reader{r: r} }

func wrong(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// Next goes to the next entry, over what was not read of this one. The error is [io.EOF] at the end of the archive.
func (r *Reader) Next() (Header, error) {
	if r.end {
		return Header{}, io.EOF
	}
	if r.left > 0 {
		if _, err := io.Copy(io.Discard, r); err != nil {
			return Header{}, err
		}
	}
	var raw [headerSize]byte
	if err := r.full(raw[:]); err != nil {
		return Header{}, err
	}
	if string(raw[:6]) != magic {
		return Header{}, wrong("an entry begins with %q", raw[:6])
	}
	var field [10]int64
	at := len(magic)
	for i, width := range [10]int{6, 6, 6, 6, 6, 6, 6, 11, 6, 11} { // dev ino mode uid gid nlink rdev mtime namesize filesize
		for _, c := range raw[at : at+width] {
			if c < '0' || c > '7' {
				return Header{}, wrong("%q is no octal number", raw[at:at+width])
			}
			field[i] = field[i]<<3 | int64(c-'0')
		}
		at += width
	}
	length := field[8]
	if length < 2 || length > maxName+1 {
		return Header{}, wrong("a name of %d bytes", length)
	}
	name := make([]byte, length)
	if err := r.full(name); err != nil {
		return Header{}, err
	}
	if bytes.IndexByte(name, 0) != len(name)-1 {
		return Header{}, wrong("the name %q does not end where it should", name)
	}
	h := Header{
		Name: string(name[:length-1]), Mode: uint32(field[2]), UID: uint32(field[3]), GID: uint32(field[4]),
		Links: uint32(field[5]), Time: field[7], Size: field[9],
	}
	if h.Name == trailer {
		r.end = true
		return Header{}, r.rest()
	}
	r.left = h.Size
	return h, nil
}

// rest looks at what follows the end: zeros, to a full block.
func (r *Reader) rest() error {
	var pad [blockSize]byte
	n, err := io.ReadFull(r.r, pad[:])
	if err == nil || len(bytes.Trim(pad[:n], "\x00")) > 0 {
		return wrong("there is something after its end")
	}
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	return io.EOF
}

func (r *Reader) full(b []byte) error {
	_, err := io.ReadFull(r.r, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return wrong("it is cut short")
	}
	return err
}

// Read reads content of the entry. The error is [io.EOF] at its end.
func (r *Reader) Read(b []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	if int64(len(b)) > r.left {
		b = b[:r.left]
	}
	n, err := r.r.Read(b)
	r.left -= int64(n)
	if errors.Is(err, io.EOF) && r.left > 0 {
		return n, wrong("it is cut short")
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}
