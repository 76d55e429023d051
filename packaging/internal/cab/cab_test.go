package cab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

const plenty = 1 << 24

func write(t testing.TB, files ...File) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Write(&out, files); err != nil {
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

var noon = time.Date(2026, 3, 4, 12, 34, 56, 0, time.UTC)

func TestRoundTrip(t *testing.T) {
	for _, size := range []int{0, 1, 2, 3, 32767, 32768, 32769, 100_000} {
		files := []File{{"first", noon, noise(size)}, {"text", noon, bytes.Repeat([]byte("abc "), size)}, {"last", noon, []byte("x")}}
		b := write(t, files...)
		got, err := Read(b, plenty)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		for i, f := range files {
			if got[i].Name != f.Name || !got[i].Time.Equal(noon) || !bytes.Equal(got[i].Data, f.Data) {
				t.Errorf("%d bytes: %s at %v has %d bytes", size, got[i].Name, got[i].Time, len(got[i].Data))
			}
		}
		if !bytes.Equal(write(t, files...), b) {
			t.Error("another time, other bytes")
		}
	}
}

// TestSameBytesArePackedOnce, under however many names.
func TestSameBytesArePackedOnce(t *testing.T) {
	data := noise(50_000)
	one := write(t, File{"a", noon, data})
	three := write(t, File{"a", noon, data}, File{"b", noon, bytes.Clone(data)}, File{"c", noon, data})
	if more := len(three) - len(one); more > 100 {
		t.Errorf("two more names take %d bytes", more)
	}
	got, err := Read(three, plenty)
	if err != nil || len(got) != 3 || !bytes.Equal(got[2].Data, data) {
		t.Errorf("%d files, %v", len(got), err)
	}
}

func TestTimesOutsideOfDOS(t *testing.T) {
	for _, year := range []int{1970, 2200} {
		got, err := Read(write(t, File{"a", time.Date(year, 1, 2, 3, 4, 6, 0, time.UTC), nil}), plenty)
		if err != nil || got[0].Time.Year() < 1980 || got[0].Time.Year() > 2107 {
			t.Errorf("%d: %v, %v", year, got, err)
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	for name, files := range map[string][]File{
		"nothing":      nil,
		"no name":      {{Name: ""}},
		"a long name":  {{Name: strings.Repeat("x", 256)}},
		"a NUL":        {{Name: "a\x00b"}},
		"another tool": {{Name: "ä"}},
	} {
		if err := Write(&bytes.Buffer{}, files); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestChecksum of bytes whose sum was made by hand, one to three left over.
func TestChecksum(t *testing.T) {
	for in, want := range map[string]uint32{
		"":                                 0,
		"\x01\x02\x03\x04":                 0x04030201,
		"\x01\x02\x03\x04\x01\x02\x03\x04": 0,
		"\x05":                             5,
		"\x05\x06":                         0x0506,
		"\x00\x00\x00\x00\x05\x06\x07":     0x050607,
	} {
		if got := checksum([]byte(in), 0); got != want {
			t.Errorf("%q: %#x, want %#x", in, got, want)
		}
	}
}

// TestDamageIsAnError: there is no byte of the blocks that could change unseen.
func TestDamageIsAnError(t *testing.T) {
	b := write(t, File{"a", noon, noise(3000)}, File{"b", noon, []byte(strings.Repeat("x", 500))})
	for i := range b {
		if i > 200 && i%3 != 0 { // every byte of the index, some of the rest
			continue
		}
		bad := bytes.Clone(b)
		bad[i] ^= 0x41
		_, err := Read(bad, plenty)
		if err != nil && !errors.Is(err, ErrFormat) {
			t.Fatalf("byte %d: %v", i, err)
		}
		if err == nil && i > headerSize+folderSize+2*fileSize+4 {
			t.Fatalf("byte %d was changed unseen", i)
		}
	}
	for size := 0; size < len(b); size += 3 {
		if _, err := Read(b[:size], plenty); !errors.Is(err, ErrFormat) {
			t.Fatalf("cut to %d bytes: %v", size, err)
		}
	}
	if _, err := Read(b, 3499); !errors.Is(err, ErrFormat) {
		t.Errorf("more than the limit: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(write(f, File{"a", noon, []byte("hello")}, File{"b", noon, bytes.Repeat([]byte("x"), 40000)}))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 1 << 20
		files, err := Read(b, limit)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatal(err)
			}
			return
		}
		for _, file := range files {
			if len(file.Data) > limit {
				t.Fatalf("%q has %d bytes", file.Name, len(file.Data))
			}
		}
	})
}
