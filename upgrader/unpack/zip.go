package unpack

import (
	"archive/zip"
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"slices"
)

// The records of a zip, as the format's description (APPNOTE.TXT) numbers them.
const (
	localMagic   = "PK\x03\x04"
	centralMagic = "PK\x01\x02"
	endMagic     = "PK\x05\x06"
	end64Magic   = "PK\x06\x06"
	where64Magic = "PK\x06\x07"

	centralLen = 46
	endLen     = 22
	end64Len   = 56
	where64Len = 20

	// maxDirectory bounds the memory that the directory of a zip takes, in bytes. That of a JDK has 60 kB.
	maxDirectory = 32 << 20
)

const (
	flagEncrypted = 1<<0 | 1<<6 | 1<<13 // an entry; an entry, strongly; the directory
	madeByUnix    = 3
	madeByMacOS   = 19
)

// zip unpacks a zip. Everything that its directory says is checked before the first byte is written.
func (u *unpacking) zip(ctx context.Context, archive *os.File) error {
	data := io.NewSectionReader(archive, 0, u.size) // to which any place beyond the archive is its end, not trouble with a file
	start, count, err := u.zipDirectory(data)
	if err != nil {
		return err
	}
	r, err := zip.NewReader(data, u.size)
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) { // names are looked at below
		return u.damage(ctx, "", err)
	}
	if len(r.File) != count {
		return u.refuse("", ErrCorrupt, errors.New("its directory can be read in two ways"))
	}
	type content struct {
		entry      *zip.File
		start, end int64
	}
	contents := make([]content, count)
	nodes := make([]*node, count)
	for i, f := range r.File {
		if ctx.Err() != nil {
			return fmt.Errorf("unpack %s: %w", u.archive, context.Cause(ctx))
		}
		if nodes[i], err = u.addZip(ctx, f); err != nil {
			return err
		}
		from, err := f.DataOffset()
		if err != nil {
			return u.damage(ctx, f.Name, err)
		}
		if from > start || f.CompressedSize64 > uint64(start-from) {
			return u.refuse(f.Name, ErrOverlap, nil)
		}
		contents[i] = content{f, from, from + int64(f.CompressedSize64)}
	}
	// Many entries that are made of the same bytes turn a small archive into a huge one.
	slices.SortFunc(contents, func(a, b content) int {
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.end, b.end))
	})
	for i := 1; i < len(contents); i++ {
		if contents[i-1].end > contents[i].start {
			return u.refuse(contents[i].entry.Name, ErrOverlap, fmt.Errorf("with %s", quoted(contents[i-1].entry.Name)))
		}
	}
	if err := u.checkLinks(); err != nil {
		return err
	}
	if err := u.makeDirs(); err != nil || u.root == nil {
		return err
	}
	for i, f := range r.File {
		if nodes[i].kind != file {
			continue
		}
		if err := u.makeZipFile(ctx, nodes[i], f); err != nil {
			return err
		}
	}
	return nil
}

// addZip checks one entry by what the directory says about it.
func (u *unpacking) addZip(ctx context.Context, f *zip.File) (*node, error) {
	if f.Flags&flagEncrypted != 0 {
		return nil, u.refuse(f.Name, ErrEncrypted, nil)
	}
	if f.Method != zip.Store && f.Method != zip.Deflate {
		return nil, u.refuse(f.Name, ErrMethod, fmt.Errorf("method %d", f.Method))
	}
	switch f.Mode().Type() {
	case fs.ModeDir:
		if f.UncompressedSize64 != 0 {
			return nil, u.refuse(f.Name, ErrClash, errors.New("a directory with content"))
		}
		return u.add(f.Name, directory)
	case 0:
		n, err := u.add(f.Name, file)
		if err != nil {
			return nil, err
		}
		return n, u.claim(f.Name, int64(min(f.UncompressedSize64, 1<<62)))
	case fs.ModeSymlink:
		n, err := u.add(f.Name, symlink)
		if err != nil {
			return nil, err
		}
		content, err := openZip(f)
		if err != nil {
			return nil, u.damage(ctx, f.Name, err)
		}
		defer content.Close()
		target, err := io.ReadAll(io.LimitReader(content, maxPath+1))
		if err != nil {
			return nil, u.damage(ctx, f.Name, err)
		}
		return n, u.setTarget(n, f.Name, string(target))
	}
	return nil, u.refuse(f.Name, ErrSpecial, nil)
}

func (u *unpacking) makeZipFile(ctx context.Context, n *node, f *zip.File) error {
	content, err := openZip(f)
	if err != nil {
		return u.damage(ctx, f.Name, err)
	}
	defer content.Close()
	executable := true
	if by := f.CreatorVersion >> 8; by == madeByUnix || by == madeByMacOS {
		if mode := f.Mode().Perm(); mode != 0 {
			executable = mode&0o111 != 0
		}
	}
	return u.makeFile(ctx, n, executable, content)
}

// openZip opens the content of an entry. Package zip takes the checksum 0 for one that is not known; here it is one.
func openZip(f *zip.File) (io.ReadCloser, error) {
	content, err := f.Open()
	if err != nil || f.CRC32 != 0 {
		return content, err
	}
	return &zeroSum{content, crc32.NewIEEE()}, nil
}

type zeroSum struct {
	io.ReadCloser
	sum hash.Hash32
}

func (z *zeroSum) Read(b []byte) (int, error) {
	n, err := z.ReadCloser.Read(b)
	_, _ = z.sum.Write(b[:n])
	if errors.Is(err, io.EOF) && z.sum.Sum32() != 0 {
		err = zip.ErrChecksum
	}
	return n, err
}

// zipEnd is the record at the end of a zip.
type zipEnd struct {
	at      int64 // where the record, or the larger one before it, starts
	records uint64
	size    uint64 // bytes of the directory
	offset  uint64
	wide    bool // of the larger kind, without bounds in the number of records
}

// endsAsZip says whether a file that does not start as a zip ends as one.
func (u *unpacking) endsAsZip(r io.ReaderAt) bool {
	_, at, err := u.tail(r)
	return err == nil && at >= 0
}

// tail reads the end of the archive, and finds the record of the end in it: at is its place, or -1.
func (u *unpacking) tail(r io.ReaderAt) (buf []byte, at int, err error) {
	buf = make([]byte, min(u.size, 65*1024))
	if _, err := r.ReadAt(buf, u.size-int64(len(buf))); err != nil && !errors.Is(err, io.EOF) {
		return nil, -1, err
	}
	if len(buf) < endLen {
		return buf, -1, nil
	}
	return buf, bytes.LastIndex(buf[:len(buf)-endLen+len(endMagic)], []byte(endMagic)), nil
}

// zipDirectory walks the directory of a zip without keeping it: where it starts, and how many entries it has. It accepts
// only what has one meaning: a directory that ends where the record of the end starts, which ends with the file.
func (u *unpacking) zipDirectory(r io.ReaderAt) (start int64, count int, err error) {
	end, err := u.zipEnd(r)
	if err != nil {
		return 0, 0, err
	}
	if end.size > uint64(u.size) || end.offset > uint64(u.size) || end.size+end.offset > uint64(end.at) {
		return 0, 0, u.refuse("", ErrCorrupt, errors.New("its directory is outside of it"))
	}
	if end.size+end.offset < uint64(end.at) {
		return 0, 0, u.refuse("", ErrPrepended, nil)
	}
	if end.size > maxDirectory {
		return 0, 0, u.refuse("", ErrEntries, fmt.Errorf("a directory of more than %d bytes", maxDirectory))
	}
	directory := bufio.NewReader(io.NewSectionReader(r, int64(end.offset), int64(end.size)))
	for left := int64(end.size); left > 0; count++ {
		if count == u.limits.Entries {
			return 0, 0, u.refuse("", ErrEntries, fmt.Errorf("more than %d", u.limits.Entries))
		}
		var head [centralLen]byte
		if left < centralLen {
			return 0, 0, u.refuse("", ErrCorrupt, errors.New("its directory"))
		}
		if _, err := io.ReadFull(directory, head[:]); err != nil {
			return 0, 0, fmt.Errorf("unpack %s: %w", u.archive, err)
		}
		length := int64(centralLen)
		for _, at := range []int{28, 30, 32} { // of the name, of more about the file, of the comment
			length += int64(binary.LittleEndian.Uint16(head[at:]))
		}
		if string(head[:4]) != centralMagic || length > left {
			return 0, 0, u.refuse("", ErrCorrupt, errors.New("its directory"))
		}
		if _, err := directory.Discard(int(length - centralLen)); err != nil {
			return 0, 0, fmt.Errorf("unpack %s: %w", u.archive, err)
		}
		left -= length
	}
	if uint64(count) != end.records && (end.wide || uint64(uint16(count)) != end.records) {
		return 0, 0, u.refuse("", ErrCorrupt, fmt.Errorf("a directory of %d entries that has %d", end.records, count))
	}
	return int64(end.offset), count, nil
}

// zipEnd finds the record of the end, which has to be the last thing in the file, and the larger one before it.
func (u *unpacking) zipEnd(r io.ReaderAt) (zipEnd, error) {
	buf, i, err := u.tail(r)
	if err != nil {
		return zipEnd{}, fmt.Errorf("unpack %s: %w", u.archive, err)
	}
	if i < 0 {
		return zipEnd{}, u.refuse("", ErrTruncated, nil)
	}
	record := buf[i:]
	switch comment := int(binary.LittleEndian.Uint16(record[20:])); {
	case endLen+comment > len(record):
		return zipEnd{}, u.refuse("", ErrTruncated, nil)
	case endLen+comment < len(record):
		return zipEnd{}, u.refuse("", ErrTrailing, nil)
	}
	end := zipEnd{
		at:      u.size - int64(len(record)),
		records: uint64(binary.LittleEndian.Uint16(record[10:])),
		size:    uint64(binary.LittleEndian.Uint32(record[12:])),
		offset:  uint64(binary.LittleEndian.Uint32(record[16:])),
	}
	if binary.LittleEndian.Uint16(record[4:]) != 0 || binary.LittleEndian.Uint16(record[6:]) != 0 {
		return zipEnd{}, u.refuse("", ErrCorrupt, errors.New("it is one of several parts"))
	}
	// The larger record comes before a short one that says where it is. It counts where a number does not fit into the
	// last one, but may also be there without need.
	where := make([]byte, where64Len)
	if end.at < where64Len+end64Len {
		return end, nil
	}
	if _, err := r.ReadAt(where, end.at-where64Len); err != nil {
		return zipEnd{}, fmt.Errorf("unpack %s: %w", u.archive, err)
	}
	if string(where[:4]) != where64Magic {
		return end, nil
	}
	large := make([]byte, end64Len)
	at := binary.LittleEndian.Uint64(where[8:])
	if at > uint64(end.at-where64Len-end64Len) {
		return zipEnd{}, u.refuse("", ErrCorrupt, errors.New("its end"))
	}
	if _, err := r.ReadAt(large, int64(at)); err != nil {
		return zipEnd{}, fmt.Errorf("unpack %s: %w", u.archive, err)
	}
	if string(large[:4]) != end64Magic || binary.LittleEndian.Uint64(large[4:]) != uint64(end.at)-where64Len-at-12 {
		return zipEnd{}, u.refuse("", ErrCorrupt, errors.New("its end"))
	}
	end.at = int64(at)
	if end.records == 1<<16-1 || end.size == 1<<32-1 || end.offset == 1<<32-1 {
		end.wide = true
		end.records = binary.LittleEndian.Uint64(large[32:])
		end.size = binary.LittleEndian.Uint64(large[40:])
		end.offset = binary.LittleEndian.Uint64(large[48:])
	}
	return end, nil
}
