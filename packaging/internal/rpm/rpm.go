package rpm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// LeadMagic begins every package.
const LeadMagic = "\xed\xab\xee\xdb"

const (
	leadSize    = 96
	headerMagic = "\x8e\xad\xe8\x01"
	entrySize   = 16
)

// Bounds of one header, those of rpm itself or less.
const (
	maxEntries = 64 << 10
	maxStore   = 64 << 20
)

// Types of values.
const (
	typeInt16    = 3
	typeInt32    = 4
	typeInt64    = 5
	typeString   = 6
	typeBin      = 7
	typeStrings  = 8
	typeI18N     = 9
	typesDefined = 10
)

// ErrFormat says that something is no rpm package, or a broken one.
var ErrFormat = errors.New("not an rpm package")

// Header is a table of values by tag.
type Header struct {
	entries map[int]entry
	store   []byte
}

type entry struct {
	kind, count int
	data        []byte // from the value's first byte to the end of the store
}

// Head is what is before the payload of a package.
type Head struct {
	Signature  Header
	Header     Header
	Start, End int64  // where the header begins and ends in the file, in bytes
	Signed     []byte // the bytes between, which a header signature is about
}

// Read reads lead and headers; r is then at the payload. The error is ErrFormat for anything but a package.
func Read(r io.Reader) (*Head, error) {
	var lead [leadSize]byte
	if _, err := io.ReadFull(r, lead[:]); err != nil {
		return nil, short(err)
	}
	if string(lead[:4]) != LeadMagic {
		return nil, ErrFormat
	}
	signature, raw, err := readHeader(r)
	if err != nil {
		return nil, fmt.Errorf("signature header: %w", err)
	}
	h := &Head{Signature: signature}
	pad := (8 - len(raw)%8) % 8
	if _, err := io.CopyN(io.Discard, r, int64(pad)); err != nil {
		return nil, short(err)
	}
	h.Start = int64(leadSize + len(raw) + pad)
	if h.Header, h.Signed, err = readHeader(r); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	h.End = h.Start + int64(len(h.Signed))
	return h, nil
}

func short(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends early", ErrFormat)
	}
	return err
}

// readHeader reads one header and returns its bytes as well.
func readHeader(r io.Reader) (Header, []byte, error) {
	var intro [entrySize]byte
	if _, err := io.ReadFull(r, intro[:]); err != nil {
		return Header{}, nil, short(err)
	}
	if string(intro[:4]) != headerMagic {
		return Header{}, nil, fmt.Errorf("%w: no header where one must be", ErrFormat)
	}
	count, size := binary.BigEndian.Uint32(intro[8:]), binary.BigEndian.Uint32(intro[12:])
	if count > maxEntries || size > maxStore {
		return Header{}, nil, fmt.Errorf("%w: a header of %d values in %d bytes", ErrFormat, count, size)
	}
	length := int64(count)*entrySize + int64(size)
	var raw bytes.Buffer // grows with what is there, not with what is announced
	raw.Write(intro[:])
	if _, err := io.CopyN(&raw, r, length); err != nil {
		return Header{}, nil, short(err)
	}
	all := raw.Bytes()
	h := Header{entries: make(map[int]entry, count), store: all[entrySize+int(count)*entrySize:]}
	for i := range int(count) {
		one := all[entrySize+i*entrySize:]
		tag, kind := int(binary.BigEndian.Uint32(one)), int(binary.BigEndian.Uint32(one[4:]))
		offset, n := binary.BigEndian.Uint32(one[8:]), binary.BigEndian.Uint32(one[12:])
		if kind >= typesDefined || offset > size || n > size {
			return Header{}, nil, fmt.Errorf("%w: tag %d: type %d, %d values at %d", ErrFormat, tag, kind, n, offset)
		}
		h.entries[tag] = entry{kind, int(n), h.store[offset:]}
	}
	return h, all, nil
}

// Has reports whether there is a value.
func (h Header) Has(tag int) bool {
	_, ok := h.entries[tag]
	return ok
}

// Strings returns the values of a tag that are text, nil when there are none or they are broken.
func (h Header) Strings(tag int) []string {
	e, ok := h.entries[tag]
	if !ok || e.kind != typeString && e.kind != typeStrings && e.kind != typeI18N {
		return nil
	}
	if e.kind == typeString {
		e.count = 1
	}
	if e.count > len(e.data) { // each has a NUL at least
		return nil
	}
	values := make([]string, 0, e.count)
	for range e.count {
		one, rest, ok := bytes.Cut(e.data, []byte{0})
		if !ok {
			return nil
		}
		values = append(values, string(one))
		e.data = rest
	}
	return values
}

// String returns the first text of a tag; of a translated one, the original. "" when there is none.
func (h Header) String(tag int) string {
	if all := h.Strings(tag); len(all) > 0 {
		return all[0]
	}
	return ""
}

// Ints returns the values of a tag that are numbers, nil when there are none or they are broken.
func (h Header) Ints(tag int) []int64 {
	e, ok := h.entries[tag]
	width := map[int]int{typeInt16: 2, typeInt32: 4, typeInt64: 8}[e.kind]
	if !ok || width == 0 || e.count > len(e.data)/width {
		return nil
	}
	values := make([]int64, e.count)
	for i := range values {
		one := e.data[i*width:]
		switch width {
		case 2:
			values[i] = int64(binary.BigEndian.Uint16(one))
		case 4:
			values[i] = int64(binary.BigEndian.Uint32(one))
		default:
			values[i] = int64(binary.BigEndian.Uint64(one)) //nolint:gosec // sizes; a negative one is refused where it matters
		}
	}
	return values
}

// Int returns the first number of a tag, and whether there is one.
func (h Header) Int(tag int) (int64, bool) {
	if all := h.Ints(tag); len(all) > 0 {
		return all[0], true
	}
	return 0, false
}

// Bytes returns the binary value of a tag, nil when there is none.
func (h Header) Bytes(tag int) []byte {
	e, ok := h.entries[tag]
	if !ok || e.kind != typeBin || e.count > len(e.data) {
		return nil
	}
	return e.data[:e.count:e.count]
}
