package bom

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func file(path, content string) Entry {
	s := NewSum()
	_, _ = s.Write([]byte(content))
	return Entry{Path: path, Mode: TypeFile | 0o644, Time: 1700000000, Size: uint32(len(content)), Sum: s.Sum32()}
}

func directory(path string) Entry {
	return Entry{Path: path, Mode: TypeDir | 0o755, Time: 1700000000}
}

func link(path, target string) Entry {
	e := file(path, target)
	e.Mode, e.Target = TypeLink|0o755, target
	return e
}

// sample is in the order of a walk, which is not that of the bytes: "./usr/local" comes before "./usr-more".
func sample() []Entry {
	return []Entry{
		directory("."), directory("./usr"), directory("./usr/local"), file("./usr/local/a", "hello"), link("./usr/local/b", "a"),
		file("./usr/z", ""), directory("./usr-more"), {Path: "./usr-more/of", Mode: TypeFile | 0o600, UID: 501, GID: 80, Size: 1, Sum: 2},
	}
}

func write(t testing.TB, entries []Entry) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Write(&out, entries); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	want := sample()
	shuffled := slices.Clone(want)
	slices.Reverse(shuffled)
	got, err := Read(write(t, shuffled))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if !bytes.Equal(write(t, want), write(t, shuffled)) {
		t.Error("another order gave other bytes")
	}
}

// TestManyEntries needs a tree with branches: a node has 510 entries, and 261000 would need a third floor.
func TestManyEntries(t *testing.T) {
	for _, n := range []int{0, 1, 508, 509, 510, 511, 1019, 1020, 5000} {
		want := []Entry{directory(".")}
		for i := range n {
			want = append(want, file(fmt.Sprintf("./%06d", i), fmt.Sprint(i)))
		}
		got, err := Read(write(t, want))
		if err != nil {
			t.Fatalf("%d entries: %v", n, err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%d entries: %d were read, or others", n, len(got))
		}
	}
	if _, err := number(make([]Entry, maxEntries+1)); err == nil {
		t.Error("more entries than are read were written")
	}
}

func TestSumIsThatOfPOSIX(t *testing.T) {
	for content, want := range map[string]uint32{"": 0xffffffff, "123456789": 930766865, "hello\n": 3015617425} {
		s := NewSum()
		_, _ = s.Write([]byte("rubbish"))
		s.Reset()
		for _, c := range []byte(content) {
			_, _ = s.Write([]byte{c})
		}
		if s.Sum32() != want {
			t.Errorf("%q: %d, want %d", content, s.Sum32(), want)
		}
		if got := s.Sum([]byte{1}); len(got) != 1+s.Size() || binary.BigEndian.Uint32(got[1:]) != want {
			t.Errorf("%q: %x", content, got)
		}
	}
	if _, err := exec.LookPath("cksum"); err != nil {
		t.Skip("needs cksum for the rest")
	}
	content := bytes.Repeat([]byte("0123456789abcdef\x00\xff"), 4000)
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("cksum", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	s := NewSum()
	_, _ = s.Write(content)
	if want := fmt.Sprint(s.Sum32()); strings.Fields(string(out))[0] != want {
		t.Errorf("cksum says %s, we %s", out, want)
	}
}

func TestWhatCannotBeWrittenIsRefused(t *testing.T) {
	for what, entries := range map[string][]Entry{
		"absolute":                 {directory("."), file("/a", "")},
		"outside":                  {directory("."), file("./../a", "")},
		"not clean":                {directory("."), file("./a/", "")},
		"NUL":                      {directory("."), file("./a\x00", "")},
		"no directory":             {directory("."), file("./a/b", "")},
		"no root":                  {file("./a", "")},
		"twice":                    {directory("."), file("./a", ""), file("./a", "")},
		"a file below a file":      {directory("."), file("./a", "")},
		"a directory with a size":  {{Path: ".", Mode: TypeDir | 0o755, Size: 1}},
		"a link to nothing":        {directory("."), {Path: "./a", Mode: TypeLink}},
		"a link of another length": {directory("."), {Path: "./a", Mode: TypeLink, Target: "b", Size: 2}},
		"a device":                 {directory("."), {Path: "./a", Mode: 0o020644}},
		"a root that is a file":    {file(".", "")},
		"more than 4 GiB":          {directory("."), {Path: "./a", Mode: TypeFile, Size: 1 << 31}, {Path: "./b", Mode: TypeFile, Size: 1 << 31}},
	} {
		var out bytes.Buffer
		if what == "a file below a file" {
			entries = append(entries, file("./a/b", ""))
			if err := Write(&out, entries); err == nil {
				if _, err := Read(out.Bytes()); err == nil {
					t.Errorf("%s was written and read", what)
				}
			}
			continue
		}
		if err := Write(&out, entries); err == nil || out.Len() > 0 {
			t.Errorf("%s: error %v after %d bytes", what, err, out.Len())
		}
	}
}

// TestDamageIsNoticed flips every byte that means something; what is then still read is the same, or well-formed.
func TestDamageIsNoticed(t *testing.T) {
	data := write(t, sample())
	other := 0
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 0x11
		got, err := Read(bad)
		switch {
		case err != nil && !errors.Is(err, ErrFormat):
			t.Fatalf("byte %d: %v", i, err)
		case err == nil && !slices.Equal(got, sample()):
			other++
		}
	}
	// The times, owners, sizes, sums and names of eight entries cannot be checked here.
	if other > 8*40 {
		t.Errorf("%d flips gave another bill", other)
	}
	for n := range data {
		if _, err := Read(data[:n]); !errors.Is(err, ErrFormat) {
			t.Fatalf("the first %d of %d bytes: %v", n, len(data), err)
		}
	}
}

// TestRingsEnd: nodes that lead to each other are no endless bill.
func TestRingsEnd(t *testing.T) {
	var many []Entry
	for i := range 1200 {
		many = append(many, file(fmt.Sprintf("./%06d", i), ""))
	}
	data := write(t, append(many, directory(".")))
	b, vars, err := open(data)
	if err != nil {
		t.Fatal(err)
	}
	head, err := b.block(vars["Paths"])
	if err != nil {
		t.Fatal(err)
	}
	root := binary.BigEndian.Uint32(head[8:])
	branch := b.index[root][0]
	for what, change := range map[string]func(bad []byte){
		"a branch that is its own child": func(bad []byte) { binary.BigEndian.PutUint32(bad[branch+nodeHeader:], root) },
		"a leaf that follows itself": func(bad []byte) {
			leaf := binary.BigEndian.Uint32(bad[branch+nodeHeader:])
			binary.BigEndian.PutUint32(bad[b.index[leaf][0]+4:], leaf)
		},
		"a tree that says it has more": func(bad []byte) { bad[b.index[vars["Paths"]][0]+18] = 0x40 },
	} {
		bad := bytes.Clone(data)
		change(bad)
		if _, err := Read(bad); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// FuzzRead: whatever is read can be written, and is then read as the same.
func FuzzRead(f *testing.F) {
	f.Add(write(f, sample()))
	f.Add(write(f, []Entry{directory(".")}))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := Read(data)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("another error: %v", err)
			}
			return
		}
		var out bytes.Buffer
		if err := Write(&out, got); err != nil {
			return // sizes of links and the like, which only the writer is strict about
		}
		again, err := Read(out.Bytes())
		if err != nil || !slices.Equal(again, got) {
			t.Fatalf("read %+v, written and read again %+v, %v", got, again, err)
		}
	})
}
