package xar

import (
	"bytes"
	"cmp"
	"compress/zlib"
	"crypto/sha1" //nolint:gosec // what the form has
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strconv"
	"strings"
)

// ErrFormat is wrapped by every error about bytes that are no archive, or a damaged one.
var ErrFormat = errors.New("not a xar archive")

// Limits of what is read.
const (
	maxTable   = 8 << 20
	maxMembers = 4096
	maxDepth   = 16
	maxName    = 255
)

func wrong(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// Archive is an archive that is read.
type Archive struct {
	Members []Member // in the order of the table, a directory before what is in it
	Signed  bool     // it carries a signature, which is not looked at

	r    io.ReaderAt
	heap int64
}

// Member is one entry of an archive.
type Member struct {
	Name string // "agent.pkg/Bom"
	Dir  bool
	Mode uint32 // permission bits
	Size int64  // of the content, in bytes

	offset, length    int64 // in the heap
	zlib              bool
	packed, plain     []byte // checksums
	packedBy, plainBy string // and their algorithms
}

// table is the XML of the table of contents.
type table struct {
	XMLName xml.Name `xml:"xar"`
	TOC     struct {
		Checksum struct {
			Style  string `xml:"style,attr"`
			Offset string `xml:"offset"`
			Size   string `xml:"size"`
		} `xml:"checksum"`
		Signatures []span  `xml:"signature"`
		More       []span  `xml:"x-signature"`
		Files      []entry `xml:"file"`
	} `xml:"toc"`
}

type span struct {
	Offset string `xml:"offset"`
	Size   string `xml:"size"`
}

type checksum struct {
	Style string `xml:"style,attr"`
	Hex   string `xml:",chardata"`
}

type entry struct {
	Names []string `xml:"name"`
	Type  string   `xml:"type"`
	Mode  string   `xml:"mode"`
	Data  *struct {
		Length   string `xml:"length"`
		Offset   string `xml:"offset"`
		Size     string `xml:"size"`
		Encoding struct {
			Style string `xml:"style,attr"`
		} `xml:"encoding"`
		Extracted checksum `xml:"extracted-checksum"`
		Archived  checksum `xml:"archived-checksum"`
	} `xml:"data"`
	Files []entry `xml:"file"`
}

// Open reads the table of an archive of so many bytes and checks it: its checksum, and that members neither overlap nor
// end beyond the archive.
func Open(r io.ReaderAt, size int64) (*Archive, error) {
	var head [headerSize]byte
	if _, err := r.ReadAt(head[:], 0); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, wrong("it is cut short")
		}
		return nil, err
	}
	length := int64(binary.BigEndian.Uint16(head[4:]))
	packed, plain := binary.BigEndian.Uint64(head[8:]), binary.BigEndian.Uint64(head[16:])
	if string(head[:4]) != magic || binary.BigEndian.Uint16(head[6:]) != version || length < headerSize {
		return nil, wrong("it begins with %x", head[:8])
	}
	if packed > maxTable || plain > maxTable || length+int64(packed) > size {
		return nil, wrong("a table of %d bytes, %d when unpacked", packed, plain)
	}
	raw := make([]byte, packed)
	if _, err := r.ReadAt(raw, length); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	text, err := inflate(raw, int64(plain))
	if err != nil {
		return nil, wrong("table: %v", err)
	}
	var t table
	if err := xml.Unmarshal(text, &t); err != nil {
		return nil, wrong("table: %v", err)
	}
	a := &Archive{r: r, heap: length + int64(packed)}
	room := size - a.heap
	sum, err := t.check(r, a.heap, room, binary.BigEndian.Uint32(head[24:]), raw)
	if err != nil {
		return nil, err
	}
	spans := []region{sum}
	for _, s := range slices.Concat(t.TOC.Signatures, t.TOC.More) {
		one, err := s.region(room)
		if err != nil {
			return nil, wrong("signature: %v", err)
		}
		spans = append(spans, one)
		a.Signed = true
	}
	if err := a.walk("", t.TOC.Files, 0); err != nil {
		return nil, err
	}
	for _, m := range a.Members {
		if m.offset > room || m.length > room-m.offset {
			return nil, wrong("%s ends beyond the archive", m.Name)
		}
		if m.length > 0 {
			spans = append(spans, region{m.offset, m.length})
		}
	}
	slices.SortFunc(spans, func(x, y region) int { return cmp.Compare(x.offset, y.offset) })
	for i := 1; i < len(spans); i++ {
		if spans[i-1].offset+spans[i-1].length > spans[i].offset {
			return nil, wrong("two of its parts are in one place, %d bytes into the heap", spans[i].offset)
		}
	}
	return a, nil
}

// region is a part of the heap.
type region struct{ offset, length int64 }

func (s span) region(room int64) (region, error) {
	offset, err := number(s.Offset)
	if err != nil {
		return region{}, err
	}
	length, err := number(s.Size)
	if err != nil {
		return region{}, err
	}
	if offset > room || length > room-offset {
		return region{}, fmt.Errorf("%d bytes at %d", length, offset)
	}
	return region{offset, length}, nil
}

// check compares the table with its checksum.
func (t *table) check(r io.ReaderAt, heap, room int64, code uint32, raw []byte) (region, error) {
	c := t.TOC.Checksum
	style := strings.ToLower(c.Style)
	if code != map[string]uint32{styleSHA1: sumSHA1, "sha256": 3, "sha512": 4}[style] || code == 0 {
		return region{}, wrong("its table has the checksum %q, its header %d", c.Style, code)
	}
	place, err := span{c.Offset, c.Size}.region(room)
	if err != nil {
		return region{}, wrong("checksum of its table: %v", err)
	}
	h, err := algorithm(style)
	if err != nil {
		return region{}, err
	}
	if place.length != int64(h.Size()) {
		return region{}, wrong("a checksum of %d bytes", place.length)
	}
	have := make([]byte, place.length)
	if _, err := r.ReadAt(have, heap+place.offset); err != nil && !errors.Is(err, io.EOF) {
		return region{}, err
	}
	_, _ = h.Write(raw)
	if !bytes.Equal(have, h.Sum(nil)) {
		return region{}, wrong("the checksum of its table is another")
	}
	return place, nil
}

func algorithm(style string) (hash.Hash, error) {
	switch strings.ToLower(style) {
	case styleSHA1:
		return sha1.New(), nil //nolint:gosec // what the form has
	case "sha256":
		return sha256.New(), nil
	case "sha512":
		return sha512.New(), nil
	}
	return nil, wrong("there is no checksum %q", style)
}

func number(text string) (int64, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 62)
	if err != nil {
		return 0, fmt.Errorf("%.40q is no number", text)
	}
	return int64(n), nil
}

// walk collects the members below a directory.
func (a *Archive) walk(dir string, files []entry, depth int) error {
	if depth > maxDepth {
		return wrong("directories are nested more than %d deep", maxDepth)
	}
	seen := map[string]bool{}
	for _, f := range files {
		if len(a.Members) == maxMembers {
			return wrong("more than %d members", maxMembers)
		}
		// What productsign has signed has each name twice.
		if len(f.Names) == 0 || slices.ContainsFunc(f.Names, func(n string) bool { return n != f.Names[0] }) {
			return wrong("a member with the names %.100q", f.Names)
		}
		name := f.Names[0]
		if name == "" || name == "." || name == ".." || len(name) > maxName || strings.ContainsAny(name, "/\\\x00") || seen[name] {
			return wrong("the name %.300q, or twice", name)
		}
		seen[name] = true
		m := Member{Name: dir + name, Dir: f.Type == "directory"}
		if f.Mode != "" {
			mode, err := strconv.ParseUint(f.Mode, 8, 16)
			if err != nil {
				return wrong("%s has the mode %.40q", m.Name, f.Mode)
			}
			m.Mode = uint32(mode) & 0o7777
		}
		if !m.Dir {
			if err := m.data(f); err != nil {
				return wrong("%s: %v", m.Name, err)
			}
		}
		a.Members = append(a.Members, m)
		if m.Dir {
			if err := a.walk(m.Name+"/", f.Files, depth+1); err != nil {
				return err
			}
		} else if len(f.Files) > 0 {
			return wrong("%s has members and is no directory", m.Name)
		}
	}
	return nil
}

// data reads where the content is.
func (m *Member) data(f entry) error {
	if f.Type != "file" {
		return fmt.Errorf("it is a %.40q", f.Type)
	}
	d := f.Data
	if d == nil {
		return errors.New("it has no content")
	}
	for _, one := range []struct {
		text string
		to   *int64
	}{{d.Offset, &m.offset}, {d.Length, &m.length}, {d.Size, &m.Size}} {
		n, err := number(one.text)
		if err != nil {
			return err
		}
		*one.to = n
	}
	switch d.Encoding.Style {
	case styleZlib:
		m.zlib = true
	case stylePlain:
		if m.length != m.Size {
			return fmt.Errorf("%d bytes, stored as %d", m.Size, m.length)
		}
	default:
		return fmt.Errorf("the encoding %.80q", d.Encoding.Style)
	}
	for _, one := range []struct {
		from checksum
		sum  *[]byte
		by   *string
	}{{d.Archived, &m.packed, &m.packedBy}, {d.Extracted, &m.plain, &m.plainBy}} {
		sum, err := hex.DecodeString(strings.TrimSpace(one.from.Hex))
		if err != nil {
			return fmt.Errorf("the checksum %.100q", one.from.Hex)
		}
		if _, err := algorithm(one.from.Style); err != nil {
			return err
		}
		*one.sum, *one.by = sum, one.from.Style
	}
	return nil
}

// Member finds a member by its name.
func (a *Archive) Member(name string) (Member, bool) {
	i := slices.IndexFunc(a.Members, func(m Member) bool { return m.Name == name })
	if i < 0 {
		return Member{}, false
	}
	return a.Members[i], true
}

// Read returns the content of a member of at most so many bytes, compared with both of its checksums.
func (a *Archive) Read(name string, limit int64) ([]byte, error) {
	m, ok := a.Member(name)
	if !ok || m.Dir {
		return nil, wrong("there is no file %s", name)
	}
	if m.Size > limit || m.length > limit+limit/8+1024 {
		return nil, wrong("%s has %d bytes, at most %d are read", name, m.Size, limit)
	}
	raw := make([]byte, m.length)
	if n, err := a.r.ReadAt(raw, a.heap+m.offset); err != nil && (!errors.Is(err, io.EOF) || n < len(raw)) {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	plain := raw
	if m.zlib {
		var err error
		if plain, err = inflate(raw, m.Size); err != nil {
			return nil, wrong("%s: %v", name, err)
		}
	}
	for _, one := range []struct {
		style      string
		data, want []byte
	}{{m.packedBy, raw, m.packed}, {m.plainBy, plain, m.plain}} {
		h, err := algorithm(one.style)
		if err != nil {
			return nil, err
		}
		_, _ = h.Write(one.data)
		if !bytes.Equal(h.Sum(nil), one.want) {
			return nil, wrong("the checksum of %s is another", name)
		}
	}
	return plain, nil
}

// inflate unpacks one zlib stream of exactly so many bytes.
func inflate(raw []byte, size int64) ([]byte, error) {
	in := bytes.NewReader(raw)
	z, err := zlib.NewReader(in)
	if err != nil {
		return nil, err
	}
	plain, err := io.ReadAll(io.LimitReader(z, size+1))
	if err != nil {
		return nil, err
	}
	if int64(len(plain)) != size {
		return nil, fmt.Errorf("not the %d bytes that it says", size)
	}
	if in.Len() > 0 {
		return nil, fmt.Errorf("%d bytes after its end", in.Len())
	}
	return plain, nil
}
