package cfb

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"strings"
	"unicode/utf16"
)

// sectorSize is that of version 3, which Windows Installer wants.
const sectorSize = 512

// most is the size of a compound file of version 3: beyond it, readers disagree (MS-CFB §2.6.3).
const most = 1<<31 - 1

// Write writes a compound file of version 3. clsid says what kind of thing it is. The bytes depend on nothing but
// the arguments, in whatever order the streams are given.
func Write(w io.Writer, clsid [16]byte, streams []Stream) error {
	streams = slices.Clone(streams)
	slices.SortFunc(streams, func(a, b Stream) int { return compareNames(a.Name, b.Name) })
	var size int64
	for i, s := range streams {
		switch n := len(utf16.Encode([]rune(s.Name))); {
		case n == 0 || n > nameUnits:
			return fmt.Errorf("stream name %q: want 1 to %d UTF-16 units, have %d", s.Name, nameUnits, n)
		case strings.ContainsAny(s.Name, "/\\:!\x00"):
			return fmt.Errorf("stream name %q: no / \\ : ! or NUL in it", s.Name)
		case i > 0 && compareNames(streams[i-1].Name, s.Name) == 0:
			return fmt.Errorf("two streams are named %q", s.Name)
		}
		size += int64(len(s.Data)) + sectorSize
	}
	if size+size/64 > most {
		return fmt.Errorf("compound file of %d bytes: at most %d", size, most)
	}
	return newLayout(clsid, streams).write(w)
}

// layout is where everything goes: streams of their own sectors, the mini stream, its FAT, the directory, the FAT, the DIFAT.
type layout struct {
	streams []Stream
	entries []entry
	fat     []uint32 // next sector of each sector
	mini    []byte   // the streams that are too small for sectors of their own
	miniFAT []uint32

	miniFATStart, dirStart, difStart uint32
	fatSectors, difSectors           []uint32
}

// entry is one of the directory.
type entry struct {
	name               string
	kind, colour       byte
	left, right, child uint32
	clsid              [16]byte
	start              uint32
	size               int
}

func newLayout(clsid [16]byte, streams []Stream) *layout {
	l := &layout{streams: streams, entries: make([]entry, 1, len(streams)+1)}
	for _, s := range streams {
		e := entry{name: s.Name, kind: typeStream, child: noStream, start: endOfChain, size: len(s.Data)}
		switch {
		case len(s.Data) == 0:
		case len(s.Data) < miniCutoff:
			e.start = uint32(len(l.miniFAT))
			l.miniFAT = chain(l.miniFAT, count(len(s.Data), miniSize))
			l.mini = pad(append(l.mini, s.Data...), miniSize, 0)
		default:
			e.start = l.take(len(s.Data))
		}
		l.entries = append(l.entries, e)
	}
	root := entry{name: "Root Entry", kind: typeRoot, colour: black, left: noStream, right: noStream, clsid: clsid,
		start: endOfChain, size: len(l.mini)}
	if len(l.mini) > 0 {
		root.start = l.take(len(l.mini))
	}
	root.child = l.tree(1, len(l.entries), bits.Len(uint(len(streams)))-1)
	l.entries[0] = root
	l.miniFATStart = endOfChain
	if len(l.miniFAT) > 0 {
		l.miniFATStart = l.take(4 * len(l.miniFAT))
	}
	l.dirStart = l.take(entrySize * len(l.entries))
	l.index()
	return l
}

// take gives sectors to size bytes.
func (l *layout) take(size int) uint32 {
	start := uint32(len(l.fat))
	l.fat = chain(l.fat, count(size, sectorSize))
	return start
}

// index gives sectors to the FAT, which has to describe its own as well.
func (l *layout) index() {
	const perFAT, perDIF = sectorSize / 4, sectorSize/4 - 1
	fats, difs := 0, 0
	for {
		needed := count(len(l.fat)+fats+difs, perFAT)
		chained := count(max(needed-inHeader, 0), perDIF)
		if needed == fats && chained == difs {
			break
		}
		fats, difs = needed, chained
	}
	l.difStart = endOfChain
	for range fats {
		l.fatSectors = append(l.fatSectors, uint32(len(l.fat)))
		l.fat = append(l.fat, fatSector)
	}
	for range difs {
		l.difSectors = append(l.difSectors, uint32(len(l.fat)))
		l.fat = append(l.fat, difSector)
	}
	if difs > 0 {
		l.difStart = l.difSectors[0]
	}
}

// tree makes a balanced tree of entries[from:to], which are sorted, and returns its root. All are black but those of the
// lowest level, if it is not full: every way down then has as many black ones.
func (l *layout) tree(from, to, depth int) uint32 {
	if from >= to {
		return noStream
	}
	middle := from + (to-from)/2
	e := &l.entries[middle]
	e.left, e.right, e.colour = l.tree(from, middle, depth-1), l.tree(middle+1, to, depth-1), black
	if depth == 0 && len(l.streams)&(len(l.streams)+1) != 0 {
		e.colour = red
	}
	return uint32(middle)
}

func (l *layout) write(w io.Writer) error {
	out := &sectors{w: w}
	out.put(l.header())
	for _, s := range l.streams {
		if len(s.Data) >= miniCutoff {
			out.put(s.Data)
		}
	}
	out.put(l.mini)
	out.words(l.miniFAT, freeSector)
	directory := make([]byte, 0, entrySize*(len(l.entries)+3))
	for _, e := range l.entries {
		directory = append(directory, e.bytes()...)
	}
	for len(directory)%sectorSize != 0 {
		unused := entry{left: noStream, right: noStream, child: noStream}
		directory = append(directory, unused.bytes()...)
	}
	out.put(directory)
	out.words(l.fat, freeSector)
	more := l.fatSectors[min(len(l.fatSectors), inHeader):]
	for i := range l.difSectors {
		words := slices.Clone(more[:min(len(more), sectorSize/4-1)])
		more = more[len(words):]
		for len(words) < sectorSize/4-1 {
			words = append(words, freeSector)
		}
		next := uint32(endOfChain)
		if i+1 < len(l.difSectors) {
			next = l.difSectors[i+1]
		}
		out.words(append(words, next), freeSector)
	}
	if out.err != nil {
		return fmt.Errorf("write compound file: %w", out.err)
	}
	return nil
}

func (l *layout) header() []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, headerSize)
	b = append(b, magic...)
	b = append(b, make([]byte, 16)...) // CLSID
	for _, word := range []uint16{0x3e, 3, 0xfffe, 9, 6, 0, 0, 0} {
		b = le.AppendUint16(b, word) // versions, byte order, sector and mini sector as powers of two, reserved
	}
	for _, word := range []uint32{0, uint32(len(l.fatSectors)), l.dirStart, 0, miniCutoff, l.miniFATStart,
		uint32(count(4*len(l.miniFAT), sectorSize)), l.difStart, uint32(len(l.difSectors))} {
		b = le.AppendUint32(b, word)
	}
	for i := range inHeader {
		word := uint32(freeSector)
		if i < len(l.fatSectors) {
			word = l.fatSectors[i]
		}
		b = le.AppendUint32(b, word)
	}
	return b
}

// bytes is the entry as it is in the directory (MS-CFB §2.6.1).
func (e entry) bytes() []byte {
	le := binary.LittleEndian
	b := make([]byte, entrySize)
	units := utf16.Encode([]rune(e.name))
	for i, u := range units {
		le.PutUint16(b[2*i:], u)
	}
	if len(units) > 0 {
		le.PutUint16(b[64:], uint16(2*len(units)+2))
	}
	b[66], b[67] = e.kind, e.colour
	le.PutUint32(b[68:], e.left)
	le.PutUint32(b[72:], e.right)
	le.PutUint32(b[76:], e.child)
	copy(b[80:], e.clsid[:])
	le.PutUint32(b[116:], e.start)
	le.PutUint64(b[120:], uint64(e.size))
	return b
}

// sectors writes whole ones.
type sectors struct {
	w   io.Writer
	err error
}

func (s *sectors) put(b []byte) {
	rest := -len(b) & (sectorSize - 1)
	for _, part := range [][]byte{b, make([]byte, rest)} {
		if s.err == nil && len(part) > 0 {
			_, s.err = s.w.Write(part)
		}
	}
}

func (s *sectors) words(list []uint32, fill uint32) {
	b := make([]byte, 0, 4*len(list)+sectorSize)
	for _, word := range list {
		b = binary.LittleEndian.AppendUint32(b, word)
	}
	for len(b)%sectorSize != 0 {
		b = binary.LittleEndian.AppendUint32(b, fill)
	}
	s.put(b)
}

// chain appends a chain of n links.
func chain(links []uint32, n int) []uint32 {
	for i := range n {
		next := uint32(len(links) + 1)
		if i == n-1 {
			next = endOfChain
		}
		links = append(links, next)
	}
	return links
}

// count is how many units of a size hold n.
func count(n, unit int) int { return (n + unit - 1) / unit }

func pad(b []byte, unit int, fill byte) []byte {
	for len(b)%unit != 0 {
		b = append(b, fill)
	}
	return b
}
