package cfb

import (
	"encoding/binary"
	"fmt"
	"io"
	"unicode/utf16"
)

// Limits of what is read: an installer has some dozens of streams.
const (
	mostEntries = 1 << 16
	mostDepth   = 64 // of storages and of the tree of their entries together
)

// File is a compound file that is read.
type File struct {
	CLSID [16]byte // of the root

	r       io.ReaderAt
	size    int64
	sector  int64
	fat     []uint32
	miniFAT []uint32
	mini    []byte
	entries []found
}

// found is one stream.
type found struct {
	path  string
	start uint32
	size  int64
}

// Open reads the index of a compound file of size bytes. It takes no more memory than the file has bytes. Errors are those of r, or
// wrap ErrFormat.
func Open(r io.ReaderAt, size int64) (*File, error) {
	f := &File{r: r, size: size}
	head := make([]byte, headerSize)
	if size < headerSize {
		return nil, fmt.Errorf("%w: %d bytes", ErrFormat, size)
	}
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("read compound file: %w", err)
	}
	le := binary.LittleEndian
	major, shift := le.Uint16(head[26:]), le.Uint16(head[30:])
	switch {
	case string(head[:8]) != magic:
		return nil, fmt.Errorf("%w: it begins with % x", ErrFormat, head[:8])
	case major == 3 && shift == 9, major == 4 && shift == 12:
	default:
		return nil, fmt.Errorf("%w: version %d with sectors of 2^%d bytes", ErrFormat, major, shift)
	}
	if le.Uint16(head[28:]) != 0xfffe || le.Uint16(head[32:]) != 6 || le.Uint32(head[56:]) != miniCutoff {
		return nil, fmt.Errorf("%w: odd header", ErrFormat)
	}
	f.sector = 1 << shift
	if err := f.readFAT(head); err != nil {
		return nil, err
	}
	directory, err := f.chainData(le.Uint32(head[48:]), -1)
	if err != nil {
		return nil, fmt.Errorf("directory: %w", err)
	}
	if len(directory) < entrySize || len(directory)/entrySize > mostEntries {
		return nil, fmt.Errorf("%w: directory of %d bytes", ErrFormat, len(directory))
	}
	root := directory[:entrySize]
	if root[66] != typeRoot {
		return nil, fmt.Errorf("%w: the first entry is no root", ErrFormat)
	}
	copy(f.CLSID[:], root[80:])
	if err := f.readMini(le.Uint32(head[60:]), root); err != nil {
		return nil, err
	}
	seen := make([]bool, len(directory)/entrySize)
	seen[0] = true
	if err := f.walk(directory, seen, le.Uint32(root[76:]), "", 0); err != nil {
		return nil, err
	}
	return f, nil
}

// readFAT reads the table that says which sector comes after which.
func (f *File) readFAT(head []byte) error {
	le := binary.LittleEndian
	sectors := (f.size - headerSize + f.sector - 1) / f.sector
	most := sectors/(f.sector/4) + 1
	count := int64(le.Uint32(head[44:]))
	if count > most {
		return fmt.Errorf("%w: %d FAT sectors in %d bytes", ErrFormat, count, f.size)
	}
	var list []uint32
	for i := range inHeader {
		list = append(list, le.Uint32(head[76+4*i:]))
	}
	next := le.Uint32(head[68:])
	for range most {
		if next >= maxRegular {
			break
		}
		b, err := f.at(next)
		if err != nil {
			return fmt.Errorf("DIFAT: %w", err)
		}
		for i := int64(0); i < f.sector-4; i += 4 {
			list = append(list, le.Uint32(b[i:]))
		}
		next = le.Uint32(b[f.sector-4:])
	}
	if int64(len(list)) < count {
		return fmt.Errorf("%w: %d of %d FAT sectors", ErrFormat, len(list), count)
	}
	for _, number := range list[:count] {
		b, err := f.at(number)
		if err != nil {
			return fmt.Errorf("FAT: %w", err)
		}
		f.fat = append(f.fat, words(b)...)
	}
	return nil
}

// readMini reads the stream of the small streams.
func (f *File) readMini(start uint32, root []byte) error {
	le := binary.LittleEndian
	if start < maxRegular {
		b, err := f.chainData(start, -1)
		if err != nil {
			return fmt.Errorf("mini FAT: %w", err)
		}
		f.miniFAT = words(b)
	}
	size := int64(le.Uint32(root[120:]))
	if size == 0 {
		return nil
	}
	b, err := f.chainData(le.Uint32(root[116:]), size)
	if err != nil {
		return fmt.Errorf("mini stream: %w", err)
	}
	f.mini = b
	return nil
}

// walk lists the entries of a tree, in order.
func (f *File) walk(directory []byte, seen []bool, number uint32, folder string, depth int) error {
	if number == noStream {
		return nil
	}
	if int64(number) >= int64(len(seen)) || seen[number] || depth > mostDepth {
		return fmt.Errorf("%w: the tree of entries is none at entry %d", ErrFormat, number)
	}
	seen[number] = true
	le := binary.LittleEndian
	e := directory[int(number)*entrySize:][:entrySize]
	n := int(le.Uint16(e[64:]))
	if n < 4 || n > 64 || n%2 != 0 {
		return fmt.Errorf("%w: name of %d bytes", ErrFormat, n)
	}
	units := make([]uint16, n/2-1)
	for i := range units {
		units[i] = le.Uint16(e[2*i:])
	}
	path := folder + string(utf16.Decode(units))
	if err := f.walk(directory, seen, le.Uint32(e[68:]), folder, depth+1); err != nil {
		return err
	}
	switch e[66] {
	case typeStream:
		size := le.Uint64(e[120:])
		if f.sector == sectorSize {
			size &= 0xffffffff // the upper half is not reliable in version 3 (MS-CFB §2.6.3)
		}
		if size > uint64(f.size) {
			return fmt.Errorf("%w: stream %q of %d bytes in %d", ErrFormat, path, size, f.size)
		}
		f.entries = append(f.entries, found{path, le.Uint32(e[116:]), int64(size)})
	case typeStorage:
		if err := f.walk(directory, seen, le.Uint32(e[76:]), path+"/", depth+1); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%w: entry %q of type %d", ErrFormat, path, e[66])
	}
	return f.walk(directory, seen, le.Uint32(e[72:]), folder, depth+1)
}

// Entry is a stream as the directory has it.
type Entry struct {
	Path string // name; below a storage, its name and a slash come before
	Size int64  // bytes
}

// List lists the streams in the order of the directory.
func (f *File) List() []Entry {
	list := make([]Entry, len(f.entries))
	for i, e := range f.entries {
		list[i] = Entry{e.path, e.size}
	}
	return list
}

// Stream reads a stream of at most limit bytes. ok is false when there is none of that name; errors wrap ErrFormat or are the reader's.
func (f *File) Stream(path string, limit int64) (data []byte, ok bool, err error) {
	for _, e := range f.entries {
		if e.path != path {
			continue
		}
		switch {
		case e.size > limit:
			return nil, true, fmt.Errorf("%w: stream %q has %d bytes, want at most %d", ErrFormat, path, e.size, limit)
		case e.size == 0:
			return []byte{}, true, nil
		case e.size < miniCutoff:
			data, err = f.miniData(e.start, e.size)
		default:
			data, err = f.chainData(e.start, e.size)
		}
		if err != nil {
			return nil, true, fmt.Errorf("stream %q: %w", path, err)
		}
		return data, true, nil
	}
	return nil, false, nil
}

// at reads one sector. The last one may be cut.
func (f *File) at(number uint32) ([]byte, error) {
	from := (int64(number) + 1) * f.sector
	if number >= maxRegular || from >= f.size {
		return nil, fmt.Errorf("%w: sector %#x is outside", ErrFormat, number)
	}
	b := make([]byte, f.sector)
	if _, err := f.r.ReadAt(b[:min(f.sector, f.size-from)], from); err != nil {
		return nil, fmt.Errorf("read compound file: %w", err)
	}
	return b, nil
}

// chainData reads the first size bytes of a chain of sectors, all of them for -1.
func (f *File) chainData(start uint32, size int64) ([]byte, error) {
	data := make([]byte, 0, max(min(size, f.size), 0)+f.sector)
	number := start
	for steps := 0; size < 0 || int64(len(data)) < size; steps++ {
		if number == endOfChain && size < 0 {
			return data, nil
		}
		if int64(number) >= int64(len(f.fat)) || steps > len(f.fat) {
			return nil, fmt.Errorf("%w: chain breaks at sector %#x", ErrFormat, number)
		}
		b, err := f.at(number)
		if err != nil {
			return nil, err
		}
		data = append(data, b...)
		if int64(len(data)) > f.size+f.sector {
			return nil, fmt.Errorf("%w: chain without end", ErrFormat)
		}
		number = f.fat[number]
	}
	return data[:size], nil
}

func (f *File) miniData(start uint32, size int64) ([]byte, error) {
	data := make([]byte, 0, size+miniSize)
	for number := start; int64(len(data)) < size; number = f.miniFAT[number] {
		from := int64(number) * miniSize
		if int64(number) >= int64(len(f.miniFAT)) || from+miniSize > int64(len(f.mini)) && from+(size-int64(len(data))) > int64(len(f.mini)) {
			return nil, fmt.Errorf("%w: chain breaks at mini sector %#x", ErrFormat, number)
		}
		data = append(data, f.mini[from:min(from+miniSize, int64(len(f.mini)))]...)
	}
	return data[:size], nil
}

func words(b []byte) []uint32 {
	list := make([]uint32, len(b)/4)
	for i := range list {
		list[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return list
}
