package ar

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Magic begins every archive.
const Magic = "!<arch>\n"

// headerSize is that of a member's header in bytes.
const headerSize = 60

// ErrFormat says that something is no archive, or a broken one.
var ErrFormat = errors.New("not an ar archive")

// Member is one file of an archive.
type Member struct {
	Name string
	Size int64
}

// Reader reads the members of an archive one after the other, of those kinds that a .deb has: short names, no symbol
// tables.
type Reader struct {
	r    io.Reader
	left int64 // of the member, with its padding
	body io.LimitedReader
}

// NewReader reads the magic. The error is ErrFormat for anything but an archive.
func NewReader(r io.Reader) (*Reader, error) {
	var magic [len(Magic)]byte
	if _, err := io.ReadFull(r, magic[:]); err != nil {
		return nil, short(err)
	}
	if string(magic[:]) != Magic {
		return nil, ErrFormat
	}
	return &Reader{r: r}, nil
}

// short makes the end of the data a mistake in the format.
func short(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends early", ErrFormat)
	}
	return err
}

// Next goes to the next member, io.EOF after the last one.
func (a *Reader) Next() (Member, error) {
	skip := a.body.N + a.left
	a.body.N, a.left = 0, 0
	if n, err := io.CopyN(io.Discard, a.r, skip); err != nil && (n < skip-1 || !errors.Is(err, io.EOF)) { // the last padding may be missing
		return Member{}, short(err)
	}
	var head [headerSize]byte
	if n, err := io.ReadFull(a.r, head[:]); n == 0 && errors.Is(err, io.EOF) {
		return Member{}, io.EOF
	} else if err != nil {
		return Member{}, short(err)
	}
	if !bytes.Equal(head[58:], []byte("`\n")) {
		return Member{}, fmt.Errorf("%w: a member's header does not end as one", ErrFormat)
	}
	name := strings.TrimSuffix(strings.TrimRight(string(head[:16]), " "), "/")
	size, err := strconv.ParseUint(strings.TrimRight(string(head[48:58]), " "), 10, 40)
	if err != nil || name == "" || strings.ContainsAny(name, "/\x00") {
		return Member{}, fmt.Errorf("%w: member %.20q of %.10q bytes", ErrFormat, head[:16], head[48:58])
	}
	a.body = io.LimitedReader{R: a.r, N: int64(size)}
	a.left = int64(size % 2)
	return Member{Name: name, Size: int64(size)}, nil
}

// Read reads the content of the member that Next went to.
func (a *Reader) Read(p []byte) (int, error) {
	if a.body.R == nil {
		return 0, io.EOF
	}
	n, err := a.body.Read(p)
	if errors.Is(err, io.EOF) && a.body.N > 0 {
		return n, fmt.Errorf("%w: it ends early", ErrFormat)
	}
	return n, err
}
