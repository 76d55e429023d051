package bom

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strings"
)

// Types of entries: the upper bits of Entry.Mode, as in stat(2).
const (
	TypeMask = 0o170000
	TypeFile = 0o100000
	TypeDir  = 0o040000
	TypeLink = 0o120000
)

// Entry is one path of a bill.
type Entry struct {
	Path     string // ".", "./usr", "./usr/local": every directory on the way has an entry
	Mode     uint32 // type and permissions, 16 bits
	UID, GID uint32
	Time     uint32 // last change, Unix seconds
	Size     uint32 // in bytes; of a link, the length of its target; 0 for directories
	Sum      uint32 // of the content, see [NewSum]; of a link, of its target; 0 for directories
	Target   string // of a link
}

// The parts of the form.
const (
	headerSize = 512
	nodeSize   = 4096
	viewSize   = 128
	nodeHeader = 12
	perNode    = 510 // (nodeSize - nodeHeader) / 8
	magic      = "BOMStore"
)

// Types of records.
const (
	recordFile = 1
	recordDir  = 2
	recordLink = 3
)

// variables are the names, in Apple's order.
func variables() []string { return []string{"BomInfo", "Paths", "HLIndex", "VIndex", "Size64"} }

// store collects blocks. Block 0 is empty.
type store struct {
	data  []byte
	index [][2]uint32 // offset and length of each block
}

func (s *store) add(block []byte) uint32 {
	s.index = append(s.index, [2]uint32{headerSize + uint32(len(s.data)), uint32(len(block))})
	s.data = append(s.data, block...)
	return uint32(len(s.index) - 1)
}

// reserve gives a number to a block that comes later.
func (s *store) reserve() uint32 {
	s.index = append(s.index, [2]uint32{})
	return uint32(len(s.index) - 1)
}

func (s *store) set(number uint32, block []byte) {
	s.index[number] = [2]uint32{headerSize + uint32(len(s.data)), uint32(len(block))}
	s.data = append(s.data, block...)
}

func u32(values ...uint32) []byte {
	var b []byte
	for _, v := range values {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

// Write writes the bill of some entries, in any order.
func Write(w io.Writer, entries []Entry) error {
	listed, err := number(entries)
	if err != nil {
		return fmt.Errorf("write bill of materials: %w", err)
	}
	s := &store{index: make([][2]uint32, 1)}
	var total uint64
	pairs, keys := make([][2]uint32, 0, len(listed)), make([]uint32, 0, len(listed))
	for _, e := range listed {
		key := append(u32(e.parent), path.Base(e.Path)...)
		k := s.add(append(key, 0))
		pairs = append(pairs, [2]uint32{s.add(u32(e.id, s.add(record(e.Entry)))), k})
		keys = append(keys, k)
		if e.parent != 0 {
			total += uint64(e.Size)
		}
	}
	if total > math.MaxUint32 {
		return fmt.Errorf("write bill of materials: %d bytes in all have no room", total)
	}
	paths := s.add(tree(s.nodes(pairs, keys), nodeSize, len(listed)))
	hard := s.add(tree(s.add(emptyLeaf(nodeSize)), nodeSize, 0))
	view := s.add(tree(s.add(emptyLeaf(viewSize)), viewSize, 0))
	viewIndex := s.add(append(u32(1, view, 0), 0))
	large := s.add(tree(s.add(emptyLeaf(nodeSize)), nodeSize, 0))
	info := s.add(u32(1, uint32(len(listed))+1, 1, 0, 0, uint32(total), 0))

	vars := u32(5)
	for i, block := range []uint32{info, paths, hard, viewIndex, large} {
		name := variables()[i]
		vars = append(append(append(vars, u32(block)...), byte(len(name))), name...)
	}
	varsAt := headerSize + uint32(len(s.data))
	indexAt := varsAt + uint32(len(vars))
	index := u32(uint32(len(s.index)))
	for _, b := range s.index {
		index = append(index, u32(b[0], b[1])...)
	}
	index = append(index, u32(0, 0, 0, 0, 0)...) // nothing is free, and two empty pairs

	out := make([]byte, 0, int(indexAt)+len(index))
	out = append(out, magic...)
	out = append(out, u32(1, uint32(len(s.index)-1), indexAt, uint32(len(index)), varsAt, uint32(len(vars)))...)
	out = append(out, make([]byte, headerSize-len(out))...)
	out = append(append(append(out, s.data...), vars...), index...)
	_, err = w.Write(out)
	return err
}

// numbered is an entry with its place in the tree.
type numbered struct {
	Entry
	id, parent uint32
}

// number gives ids in depth-first order of names and returns the entries in the order of their keys: by parent, then name.
func number(entries []Entry) ([]numbered, error) {
	if len(entries) > maxEntries {
		return nil, fmt.Errorf("more than %d entries", maxEntries)
	}
	deep := slices.Clone(entries)
	slices.SortFunc(deep, func(a, b Entry) int {
		return slices.Compare(strings.Split(a.Path, "/"), strings.Split(b.Path, "/"))
	})
	ids := make(map[string]uint32, len(deep))
	out := make([]numbered, 0, len(deep))
	for _, e := range deep {
		if err := e.check(); err != nil {
			return nil, err
		}
		n := numbered{Entry: e, id: uint32(len(ids) + 1)}
		if e.Path != "." {
			parent, there := ids[dir(e.Path)]
			if !there {
				return nil, fmt.Errorf("%s: its directory has no entry", e.Path)
			}
			n.parent = parent
		}
		if _, twice := ids[e.Path]; twice {
			return nil, fmt.Errorf("%s: twice there", e.Path)
		}
		ids[e.Path] = n.id
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b numbered) int {
		return cmp.Or(cmp.Compare(a.parent, b.parent), cmp.Compare(path.Base(a.Path), path.Base(b.Path)))
	})
	return out, nil
}

// dir is the directory of a path, which begins with ".".
func dir(name string) string { return name[:strings.LastIndexByte(name, '/')] }

func (e Entry) check() error {
	clean := e.Path == "." || strings.HasPrefix(e.Path, "./") && "./"+path.Clean(e.Path) == e.Path
	if !clean || strings.ContainsRune(e.Path, 0) || strings.Contains(e.Path, "/../") || strings.HasSuffix(e.Path, "/..") {
		return fmt.Errorf("the path %q is not one below the root", e.Path)
	}
	switch e.Mode & TypeMask {
	case TypeFile:
	case TypeDir:
		if e.Size != 0 || e.Sum != 0 {
			return fmt.Errorf("%s: a directory with a size or a sum", e.Path)
		}
	case TypeLink:
		if e.Target == "" || strings.ContainsRune(e.Target, 0) || uint32(len(e.Target)) != e.Size {
			return fmt.Errorf("%s: a link to %q of size %d", e.Path, e.Target, e.Size)
		}
	default:
		return fmt.Errorf("%s: mode %o has no type that can be written", e.Path, e.Mode)
	}
	if e.Path == "." && e.Mode&TypeMask != TypeDir {
		return errors.New("the path . is no directory")
	}
	return nil
}

// record is what the bill says about one path.
func record(e Entry) []byte {
	kind, link := byte(recordFile), ""
	switch e.Mode & TypeMask {
	case TypeDir:
		kind = recordDir
	case TypeLink:
		kind, link = recordLink, e.Target+"\x00"
	}
	b := []byte{kind, 1, 0, 15}
	b = binary.BigEndian.AppendUint16(b, uint16(e.Mode))
	b = append(b, u32(e.UID, e.GID, e.Time, e.Size)...)
	b = append(append(b, 1), u32(e.Sum, uint32(len(link)))...)
	b = append(b, link...)
	if kind == recordFile {
		b = append(b, 0, 0, 0, 0)
	}
	return b
}

// tree is the head of a B-tree.
func tree(root uint32, size, entries int) []byte {
	return append(append([]byte("tree"), u32(1, root, uint32(size), uint32(entries))...), 0)
}

func emptyLeaf(size int) []byte { return node(true, 0, 0, nil, size) }

func node(leaf bool, next, previous uint32, pairs [][2]uint32, size int) []byte {
	b := make([]byte, 0, size)
	kind := uint16(0)
	if leaf {
		kind = 1
	}
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(pairs)))
	b = append(b, u32(next, previous)...)
	for _, p := range pairs {
		b = append(b, u32(p[0], p[1])...)
	}
	return append(b, make([]byte, size-len(b))...)
}

// nodes stores the tree over pairs, whose keys are given, and returns its root.
func (s *store) nodes(pairs [][2]uint32, keys []uint32) uint32 {
	for leaf := true; ; leaf = false {
		var above [][2]uint32
		var last []uint32
		count := max(1, (len(pairs)+perNode-1)/perNode)
		numbers := make([]uint32, count)
		for i := range numbers {
			numbers[i] = s.reserve()
		}
		for i := range numbers {
			from, to := i*perNode, min(len(pairs), (i+1)*perNode)
			var next, previous uint32
			if leaf && i > 0 {
				previous = numbers[i-1]
			}
			if leaf && i+1 < count {
				next = numbers[i+1]
			}
			s.set(numbers[i], node(leaf, next, previous, pairs[from:to], nodeSize))
			if to > from {
				above = append(above, [2]uint32{numbers[i], keys[to-1]})
				last = append(last, keys[to-1])
			}
		}
		if count == 1 {
			return numbers[0]
		}
		pairs, keys = above, last
	}
}
