package unpack

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// one is an entry of an archive that a test makes. A name that ends in a slash is a directory.
type one struct {
	name string
	mode fs.FileMode // 0: 0644, or a directory
	body string      // what a link leads to
}

func (e one) fileMode() fs.FileMode {
	switch {
	case strings.HasSuffix(e.name, "/") && e.mode == 0:
		return fs.ModeDir | 0o755
	case e.mode.Perm() == 0:
		return e.mode | 0o644
	}
	return e.mode
}

func link(name, target string) one { return one{name, fs.ModeSymlink | 0o777, target} }

func zipOf(t testing.TB, entries ...one) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, e := range entries {
		head := &zip.FileHeader{Name: e.name, Method: zip.Deflate}
		head.SetMode(e.fileMode())
		if e.body == "" { // a deflater for each of many would take its time
			head.Method = zip.Store
		}
		f, err := w.CreateHeader(head)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func plainTar(t testing.TB, entries ...one) []byte {
	t.Helper()
	return tarHeaders(t, heads(entries...)...)
}

// titled is an entry of a tar with all that there is to say about it.
type titled struct {
	tar.Header
	body string
}

func heads(entries ...one) []titled {
	var all []titled
	for _, e := range entries {
		h := titled{tar.Header{Name: e.name, Mode: int64(e.fileMode().Perm())}, e.body}
		switch mode := e.fileMode(); {
		case mode.IsDir():
			h.Typeflag = tar.TypeDir
		case mode&fs.ModeSymlink != 0:
			h.Typeflag, h.Linkname, h.body = tar.TypeSymlink, e.body, ""
		default:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(e.body))
			if mode&fs.ModeSetuid != 0 {
				h.Mode |= 0o4000
			}
		}
		all = append(all, h)
	}
	return all
}

func tarHeaders(t testing.TB, all ...titled) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range all {
		if err := w.WriteHeader(&h.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(h.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gz(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func tgzOf(t testing.TB, entries ...one) []byte { return gz(t, plainTar(t, entries...)) }

// rawZip is a zip made by hand, so that its records can lie.
type rawZip struct {
	bytes.Buffer
	directory bytes.Buffer
	records   int
}

// record is an entry as the directory has it.
type record struct {
	name                string
	method, flags       uint16
	crc, packed, unpack uint32
	offset              uint32
}

// local writes the head of an entry and its content, and returns the record that fits.
func (z *rawZip) local(name string, method, flags uint16, crc uint32, unpacked int, content []byte) record {
	r := record{name, method, flags, crc, uint32(len(content)), uint32(unpacked), uint32(z.Len())}
	z.put(&z.Buffer, localMagic, uint16(20), flags, method, uint32(0), crc, r.packed, r.unpack, uint16(len(name)), uint16(0))
	z.WriteString(name)
	z.Write(content)
	return r
}

func (z *rawZip) list(r record) {
	z.put(&z.directory, centralMagic, uint16(madeByUnix<<8|20), uint16(20), r.flags, r.method, uint32(0), r.crc, r.packed, r.unpack,
		uint16(len(r.name)), uint16(0), uint16(0), uint16(0), uint16(0), uint32(0o100644<<16), r.offset)
	z.directory.WriteString(r.name)
	z.records++
}

func (z *rawZip) put(to *bytes.Buffer, magic string, values ...any) {
	to.WriteString(magic)
	for _, v := range values {
		_ = binary.Write(to, binary.LittleEndian, v)
	}
}

// end writes the directory and the record of the end, and after it a comment.
func (z *rawZip) end(comment string) []byte {
	at := uint32(z.Len())
	z.Write(z.directory.Bytes())
	z.put(&z.Buffer, endMagic, uint16(0), uint16(0), uint16(z.records), uint16(z.records), uint32(z.directory.Len()), at, uint16(len(comment)))
	z.WriteString(comment)
	return z.Bytes()
}

func deflated(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func sum(data []byte) uint32 { return crc32.ChecksumIEEE(data) }

// sparseTar is a tar with one file of the old GNU kind of sparse: "data" at its start, and nothing up to size.
func sparseTar(t testing.TB, size int64) []byte {
	t.Helper()
	data := tarHeaders(t, titled{tar.Header{Name: "sparse", Typeflag: tar.TypeReg, Mode: 0o644, Size: 4, Format: tar.FormatGNU}, "data"})
	head := data[:512]
	head[156] = tar.TypeGNUSparse
	copy(head[386:], fmt.Sprintf("%011o\x00%011o\x00", 0, 4))
	// Larger than 8 GiB does not fit into octal digits.
	head[483] = 0x80
	binary.BigEndian.PutUint64(head[487:], uint64(size))
	copy(head[148:156], "        ")
	total := 0
	for _, b := range head {
		total += int(b)
	}
	copy(head[148:156], fmt.Sprintf("%06o\x00 ", total))
	return data
}

// place is a directory to unpack in, with things around it that have to stay as they are.
type place struct {
	top     string
	dir     string // does not exist yet
	archive string
	before  string
}

func newPlace(t testing.TB, archive []byte) *place {
	t.Helper()
	top := t.TempDir()
	p := &place{top: top, dir: filepath.Join(top, "home", "jdk_1718000000"), archive: filepath.Join(top, "downloads", "jdk.zip")}
	for _, dir := range []string{"home", "outside", "downloads"} {
		if err := os.Mkdir(filepath.Join(top, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range map[string][]byte{"outside/precious": []byte("mine"), "home/.agent.properties": []byte("id=1"), "downloads/jdk.zip": archive} {
		if err := os.WriteFile(filepath.Join(top, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p.before = listing(t, top, p.dir)
	return p
}

// untouched fails the test when anything changed outside of the directory.
func (p *place) untouched(t testing.TB) {
	t.Helper()
	if now := listing(t, p.top, p.dir); now != p.before {
		t.Errorf("outside of the directory, before:\n%s\nafter:\n%s", p.before, now)
	}
}

// gone fails the test when the directory exists.
func (p *place) gone(t testing.TB) {
	t.Helper()
	if _, err := os.Lstat(p.dir); !os.IsNotExist(err) {
		t.Errorf("the directory is still there (%v):\n%s", err, listing(t, p.dir, ""))
	}
}

// listing is everything below dir, a line each, without what is at skip: its mode, and what it holds.
func listing(t testing.TB, dir, skip string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == skip {
			return fs.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%v %s", info.Mode(), filepath.ToSlash(name))
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " -> %s", filepath.ToSlash(target))
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %d %08x", len(data), sum(data))
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// sound fails the test when there is something in the directory that must never come out of an archive.
func sound(t testing.TB, dir string) (bytes int64, entries int) {
	t.Helper()
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if path != dir {
			entries++
		}
		switch mode := info.Mode(); {
		case mode.IsDir(), mode.IsRegular():
			if want := mode&^fs.ModePerm&^fs.ModeDir == 0; !want {
				t.Errorf("%s: %v", path, mode)
			}
			if perm := mode.Perm(); os.PathSeparator == '/' && perm != 0o755 && (mode.IsDir() || perm != 0o644) {
				t.Errorf("%s: %v", path, mode)
			}
			if mode.IsRegular() {
				bytes += info.Size()
			}
		case mode.Type() == fs.ModeSymlink:
			end, err := filepath.EvalSymlinks(path)
			if err == nil && end != real && !strings.HasPrefix(end, real+string(filepath.Separator)) {
				t.Errorf("%s leads to %s", path, end)
			}
		default:
			t.Errorf("%s: %v", path, mode)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes, entries
}
