package cfb

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func write(t testing.TB, streams []Stream) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Write(&out, [16]byte{1, 2, 3}, streams); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func noise(size int) []byte {
	r := rand.New(rand.NewPCG(uint64(size), 7))
	b := make([]byte, 0, size+8)
	for len(b) < size {
		b = binary.LittleEndian.AppendUint64(b, r.Uint64())
	}
	return b[:size]
}

// TestRoundTrip: sizes around every boundary, and enough bytes for FAT sectors that the header cannot name.
func TestRoundTrip(t *testing.T) {
	var all []Stream
	for _, size := range []int{0, 1, 63, 64, 65, 511, 512, 513, 4095, 4096, 4097, 100_000} {
		all = append(all, Stream{fmt.Sprintf("stream of %d", size), noise(size)})
	}
	for name, streams := range map[string][]Stream{
		"none":                     nil,
		"one, empty":               all[:1],
		"only small ones":          all[:4],
		"only a big one":           all[len(all)-1:],
		"all":                      all,
		"one DIFAT sector":         {{"big", bytes.Repeat(noise(1000), 8400)}, {"small", []byte("x")}},
		"several DIFAT sectors":    {{"big", bytes.Repeat(noise(1000), 16500)}, {"ä 名", []byte("x")}},
		"names of the same length": {{"b", nil}, {"A", nil}, {"c", nil}, {"ab", nil}, {"_", nil}},
	} {
		t.Run(name, func(t *testing.T) {
			b := write(t, streams)
			f, err := Open(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			if f.CLSID != [16]byte{1, 2, 3} {
				t.Errorf("class %x", f.CLSID)
			}
			if got := f.List(); len(got) != len(streams) || !slices.IsSortedFunc(got, func(a, b Entry) int { return compareNames(a.Path, b.Path) }) {
				t.Errorf("%d streams, want %d, sorted: %v", len(got), len(streams), got)
			}
			for _, s := range streams {
				got, ok, err := f.Stream(s.Name, 1<<30)
				if err != nil || !ok || !bytes.Equal(got, s.Data) {
					t.Errorf("%s: %v, %d of %d bytes, %v", s.Name, ok, len(got), len(s.Data), err)
				}
			}
		})
	}
}

// TestOrderDoesNotMatter for the bytes that are written.
func TestOrderDoesNotMatter(t *testing.T) {
	streams := []Stream{{"one", noise(5000)}, {"two", noise(10)}, {"three", noise(700)}, {"a", nil}}
	want := write(t, streams)
	slices.Reverse(streams)
	if !bytes.Equal(write(t, streams), want) {
		t.Error("other bytes for another order")
	}
}

// TestTreeIsBlackBalanced: Windows wants a red-black tree.
func TestTreeIsBlackBalanced(t *testing.T) {
	for n := range 70 {
		var streams []Stream
		for i := range n {
			streams = append(streams, Stream{fmt.Sprintf("%02d", i), nil})
		}
		l := newLayout([16]byte{}, streams)
		var blacks func(at uint32, parentRed bool) int
		blacks = func(at uint32, parentRed bool) int {
			if at == noStream {
				return 0
			}
			e := l.entries[at]
			if parentRed && e.colour == red {
				t.Errorf("%d streams: two red entries in a row", n)
			}
			left, right := blacks(e.left, e.colour == red), blacks(e.right, e.colour == red)
			if left != right {
				t.Errorf("%d streams: %d black entries on the left, %d on the right", n, left, right)
			}
			return left + int(e.colour)
		}
		blacks(l.entries[0].child, false)
	}
}

func TestWriteRefuses(t *testing.T) {
	for name, streams := range map[string][]Stream{
		"no name":         {{"", nil}},
		"a long name":     {{strings.Repeat("x", 32), nil}},
		"a slash":         {{"a/b", nil}},
		"the same twice":  {{"a", nil}, {"a", nil}},
		"the same, upper": {{"a", nil}, {"A", nil}},
	} {
		if err := Write(&bytes.Buffer{}, [16]byte{}, streams); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	broken := errors.New("disk is full")
	if err := Write(failing{broken}, [16]byte{}, []Stream{{"a", noise(9000)}}); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// TestDamageIsAnError and no panic, and takes no more memory than the file has: one byte after the other.
func TestDamageIsAnError(t *testing.T) {
	b := write(t, []Stream{{"small", noise(100)}, {"big", noise(5000)}, {"other", noise(64)}})
	refused := 0
	for i := range b {
		if i >= headerSize && i%5 != 0 { // every byte of the header, some of the rest
			continue
		}
		for _, flip := range []byte{0xff, 0x01} {
			bad := bytes.Clone(b)
			bad[i] ^= flip
			f, err := Open(bytes.NewReader(bad), int64(len(bad)))
			if err == nil {
				for _, e := range f.List() {
					if _, _, serr := f.Stream(e.Path, 1<<20); serr != nil {
						err = serr
					}
				}
			}
			if err != nil {
				refused++
				if !errors.Is(err, ErrFormat) {
					t.Fatalf("byte %d: %v", i, err)
				}
			}
		}
	}
	if refused < 100 {
		t.Errorf("only %d damaged files were refused", refused)
	}
	for _, size := range []int{0, 511, 512, 1024, len(b) / 2} {
		if f, err := Open(bytes.NewReader(b[:size]), int64(size)); err == nil {
			t.Errorf("cut to %d bytes: %v", size, f.List())
		}
	}
	f, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok, err := f.Stream("big", 4999); !ok || !errors.Is(err, ErrFormat) {
		t.Errorf("more than the limit: %v, %v", ok, err)
	}
	if _, ok, err := f.Stream("none", 1); ok || err != nil {
		t.Errorf("no such stream: %v, %v", ok, err)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(write(f, []Stream{{"small", []byte("hello")}, {"big", bytes.Repeat([]byte("x"), 5000)}}))
	f.Add(write(f, nil))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatal(err)
			}
			return
		}
		for _, e := range file.List() {
			data, ok, err := file.Stream(e.Path, int64(len(b)))
			if !ok || err == nil && int64(len(data)) > e.Size {
				t.Fatalf("%q: %v, %d bytes of %d", e.Path, ok, len(data), e.Size)
			}
		}
	})
}
