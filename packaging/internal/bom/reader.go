package bom

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrFormat is wrapped by every error about bytes that are no bill.
var ErrFormat = errors.New("not a bill of materials")

// Limits of what is read and written.
const (
	maxEntries = 1 << 17
	maxName    = 1024
	maxDepth   = 8 // of a tree: 510 to that power is more than there is
)

func wrong(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// bill is one that is read.
type bill struct {
	data  []byte
	index [][2]uint32
}

// Read reads the entries of a bill, sorted by path as a directory walk has them. It checks what can be checked: the tree's
// order and chains, counts, parents.
func Read(data []byte) ([]Entry, error) {
	b, vars, err := open(data)
	if err != nil {
		return nil, err
	}
	var found [5]uint32
	for i, name := range variables() {
		block, there := vars[name]
		if !there {
			return nil, wrong("it has no %s", name)
		}
		found[i] = block
	}
	pairs, err := b.tree(found[1], nodeSize)
	if err != nil {
		return nil, err
	}
	entries, err := b.paths(pairs)
	if err != nil {
		return nil, err
	}
	info, err := b.block(found[0])
	if err != nil {
		return nil, err
	}
	if len(info) < 12 || binary.BigEndian.Uint32(info[4:]) != uint32(len(entries))+1 {
		return nil, wrong("BomInfo does not count %d paths", len(entries))
	}
	return entries, nil
}

// open reads header, index and variables.
func open(data []byte) (*bill, map[string]uint32, error) {
	if len(data) < headerSize || string(data[:8]) != magic || binary.BigEndian.Uint32(data[8:]) != 1 {
		return nil, nil, wrong("no BOMStore of version 1")
	}
	b := &bill{data: data}
	index, err := b.span(binary.BigEndian.Uint32(data[16:]), binary.BigEndian.Uint32(data[20:]))
	if err != nil {
		return nil, nil, err
	}
	vars, err := b.span(binary.BigEndian.Uint32(data[24:]), binary.BigEndian.Uint32(data[28:]))
	if err != nil {
		return nil, nil, err
	}
	if len(index) < 4 {
		return nil, nil, wrong("its index is cut short")
	}
	count := binary.BigEndian.Uint32(index)
	if uint64(count)*8 > uint64(len(index)-4) {
		return nil, nil, wrong("an index of %d blocks in %d bytes", count, len(index))
	}
	b.index = make([][2]uint32, count)
	for i := range b.index {
		at := index[4+8*i:]
		b.index[i] = [2]uint32{binary.BigEndian.Uint32(at), binary.BigEndian.Uint32(at[4:])}
	}
	if len(vars) < 4 {
		return nil, nil, wrong("its variables are cut short")
	}
	names := map[string]uint32{}
	left := vars[4:]
	for range binary.BigEndian.Uint32(vars) {
		if len(left) < 5 || len(left) < 5+int(left[4]) {
			return nil, nil, wrong("its variables are cut short")
		}
		name := string(bytes.TrimRight(left[5:5+int(left[4])], "\x00"))
		if _, twice := names[name]; twice {
			return nil, nil, wrong("the variable %q is twice there", name)
		}
		names[name] = binary.BigEndian.Uint32(left)
		left = left[5+int(left[4]):]
	}
	return b, names, nil
}

func (b *bill) span(offset, length uint32) ([]byte, error) {
	if uint64(offset)+uint64(length) > uint64(len(b.data)) {
		return nil, wrong("%d bytes at %d are beyond its end", length, offset)
	}
	return b.data[offset : uint64(offset)+uint64(length)], nil
}

func (b *bill) block(number uint32) ([]byte, error) {
	if number == 0 || uint64(number) >= uint64(len(b.index)) {
		return nil, wrong("there is no block %d", number)
	}
	return b.span(b.index[number][0], b.index[number][1])
}

// tree returns the pairs of all leaves of a tree, from the left.
func (b *bill) tree(number uint32, size int) ([][2]uint32, error) {
	head, err := b.block(number)
	if err != nil {
		return nil, err
	}
	if len(head) < 21 || string(head[:4]) != "tree" || binary.BigEndian.Uint32(head[4:]) != 1 || binary.BigEndian.Uint32(head[12:]) != uint32(size) {
		return nil, wrong("block %d is no tree", number)
	}
	at, count := binary.BigEndian.Uint32(head[8:]), binary.BigEndian.Uint32(head[16:])
	if count > maxEntries {
		return nil, wrong("a tree of %d entries", count)
	}
	var pairs [][2]uint32
	for depth := 0; ; depth++ { // down the left edge
		leaf, _, _, kids, err := b.node(at)
		if err != nil {
			return nil, err
		}
		if leaf {
			break
		}
		if len(kids) == 0 || depth == maxDepth {
			return nil, wrong("branch %d leads nowhere", at)
		}
		at = kids[0][0]
	}
	for before, seen := uint32(0), 0; at != 0; seen++ { // along the leaves
		leaf, next, previous, kids, err := b.node(at)
		if err != nil {
			return nil, err
		}
		if !leaf || previous != before || uint64(seen) > uint64(count) {
			return nil, wrong("the chain of leaves is broken at block %d", at)
		}
		pairs = append(pairs, kids...)
		if uint64(len(pairs)) > uint64(count) {
			break
		}
		before, at = at, next
	}
	if uint64(len(pairs)) != uint64(count) {
		return nil, wrong("a tree of %d entries says that it has %d", len(pairs), count)
	}
	return pairs, nil
}

func (b *bill) node(number uint32) (leaf bool, next, previous uint32, pairs [][2]uint32, err error) {
	n, err := b.block(number)
	if err != nil {
		return false, 0, 0, nil, err
	}
	if len(n) < nodeHeader {
		return false, 0, 0, nil, wrong("node %d is cut short", number)
	}
	count := int(binary.BigEndian.Uint16(n[2:]))
	if count > perNode || nodeHeader+8*count > len(n) {
		return false, 0, 0, nil, wrong("node %d has %d entries in %d bytes", number, count, len(n))
	}
	for i := range count {
		at := n[nodeHeader+8*i:]
		pairs = append(pairs, [2]uint32{binary.BigEndian.Uint32(at), binary.BigEndian.Uint32(at[4:])})
	}
	return binary.BigEndian.Uint16(n) == 1, binary.BigEndian.Uint32(n[4:]), binary.BigEndian.Uint32(n[8:]), pairs, nil
}

// found is a path of a tree, before its directory is known.
type found struct {
	Entry
	id, parent uint32
	name       string
}

// paths reads the entries that the pairs of the tree lead to.
func (b *bill) paths(pairs [][2]uint32) ([]Entry, error) {
	byID := make(map[uint32]*found, len(pairs))
	all := make([]*found, 0, len(pairs))
	var last []byte
	for _, p := range pairs {
		f, key, err := b.path(p)
		if err != nil {
			return nil, err
		}
		if last != nil && bytes.Compare(last, key) >= 0 {
			return nil, wrong("%q is out of order", f.name)
		}
		last = key
		if _, twice := byID[f.id]; twice {
			return nil, wrong("the id %d is twice there", f.id)
		}
		byID[f.id] = f
		all = append(all, f)
	}
	names := make(map[uint32]string, len(all))
	// Parents come before their children: the writer counts depth-first, and keys are sorted by the parent's id.
	for _, f := range all {
		switch above, there := names[f.parent]; {
		case f.parent == 0 && f.name == ".":
			f.Path = "."
		case f.parent == 0 || !there || byID[f.parent].Mode&TypeMask != TypeDir:
			return nil, wrong("%q lies in no directory", f.name)
		case len(above)+len(f.name) > maxName:
			return nil, wrong("a path of more than %d bytes", maxName)
		default:
			f.Path = above + "/" + f.name
		}
		names[f.id] = f.Path
	}
	out := make([]Entry, 0, len(all))
	for _, f := range all {
		out = append(out, f.Entry)
	}
	slices.SortFunc(out, func(a, b Entry) int {
		return slices.Compare(strings.Split(a.Path, "/"), strings.Split(b.Path, "/"))
	})
	return out, nil
}

// path reads one pair: the block of id and record, and the block of the key.
func (b *bill) path(pair [2]uint32) (*found, []byte, error) {
	id, err := b.block(pair[0])
	if err != nil {
		return nil, nil, err
	}
	key, err := b.block(pair[1])
	if err != nil {
		return nil, nil, err
	}
	if len(id) < 8 || len(key) < 6 || key[len(key)-1] != 0 {
		return nil, nil, wrong("an entry is cut short")
	}
	f := &found{id: binary.BigEndian.Uint32(id), parent: binary.BigEndian.Uint32(key), name: string(key[4 : len(key)-1])}
	if len(f.name) > maxName || strings.ContainsAny(f.name, "/\x00") || f.name == ".." || f.name == "." && f.parent != 0 || f.id == 0 {
		return nil, nil, wrong("the name %q", f.name)
	}
	r, err := b.block(binary.BigEndian.Uint32(id[4:]))
	if err != nil {
		return nil, nil, err
	}
	if len(r) < 31 {
		return nil, nil, wrong("the record of %q is cut short", f.name)
	}
	f.Entry = Entry{
		Mode: uint32(binary.BigEndian.Uint16(r[4:])), UID: binary.BigEndian.Uint32(r[6:]), GID: binary.BigEndian.Uint32(r[10:]),
		Time: binary.BigEndian.Uint32(r[14:]), Size: binary.BigEndian.Uint32(r[18:]), Sum: binary.BigEndian.Uint32(r[23:]),
	}
	kind := map[byte]uint32{recordFile: TypeFile, recordDir: TypeDir, recordLink: TypeLink}[r[0]]
	if kind == 0 || f.Mode&TypeMask != kind {
		return nil, nil, wrong("%q is of type %d and has mode %o", f.name, r[0], f.Mode)
	}
	switch kind {
	case TypeDir:
		f.Size, f.Sum = 0, 0 // Apple's have sizes that mean nothing
	case TypeLink:
		length := binary.BigEndian.Uint32(r[27:])
		if length < 2 || length > maxName || uint64(length) > uint64(len(r)-31) || bytes.IndexByte(r[31:31+length], 0) != int(length)-1 {
			return nil, nil, wrong("the link %q is cut short", f.name)
		}
		f.Target = string(r[31 : 31+length-1])
	}
	return f, key[:len(key)-1], nil
}
