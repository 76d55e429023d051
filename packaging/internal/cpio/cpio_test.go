package cpio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

type member struct {
	Header
	content string
}

func sample() []member {
	return []member{
		{Header{Name: ".", Mode: TypeDir | 0o755, Time: 1700000000}, ""},
		{Header{Name: "./usr", Mode: TypeDir | 0o755, Time: 1700000000}, ""},
		{Header{Name: "./usr/a file", Mode: TypeFile | 0o640, UID: 501, GID: 80, Time: 1, Size: 5}, "hello"},
		{Header{Name: "./usr/empty", Mode: TypeFile | 0o755}, ""},
		{Header{Name: "./usr/link", Mode: TypeLink | 0o755, Size: 6}, "a file"},
	}
}

func pack(t testing.TB, members []member) []byte {
	t.Helper()
	var out bytes.Buffer
	w := NewWriter(&out)
	for _, m := range members {
		if err := w.WriteHeader(m.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func unpack(data []byte) (all []member, err error) {
	r := NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		content, err := io.ReadAll(r)
		if err != nil {
			return all, err
		}
		all = append(all, member{h, string(content)})
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	data := pack(t, sample())
	if len(data)%blockSize != 0 {
		t.Errorf("%d bytes are no whole blocks", len(data))
	}
	got, err := unpack(data)
	if err != nil {
		t.Fatal(err)
	}
	want := sample()
	for i := range want {
		want[i].Links = 1
		if want[i].Mode&TypeMask == TypeDir {
			want[i].Links = 2
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// TestContentThatIsNotReadIsSkipped: a listing does not look at the files.
func TestContentThatIsNotReadIsSkipped(t *testing.T) {
	r := NewReader(bytes.NewReader(pack(t, sample())))
	var names []string
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if got := strings.Join(names, ","); got != ".,./usr,./usr/a file,./usr/empty,./usr/link" {
		t.Errorf("got %s", got)
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}

// TestEveryCutIsNoticed: an archive without its last bytes is no shorter archive.
func TestEveryCutIsNoticed(t *testing.T) {
	data := pack(t, sample())
	end := bytes.Index(data, []byte(trailer)) + len(trailer) + 1
	for n := range end {
		if _, err := unpack(data[:n]); !errors.Is(err, ErrFormat) {
			t.Fatalf("the first %d of %d bytes: %v", n, end, err)
		}
	}
	if _, err := unpack(data[:end]); err != nil {
		t.Errorf("without the padding: %v", err)
	}
	if _, err := unpack(append(data[:end:end], "something"...)); !errors.Is(err, ErrFormat) {
		t.Errorf("something after the end: %v", err)
	}
}

func TestWhatHasNoRoomIsRefused(t *testing.T) {
	file := uint32(TypeFile | 0o644)
	for what, h := range map[string]Header{
		"no name":     {Mode: file},
		"NUL":         {Name: "./a\x00b", Mode: file},
		"the trailer": {Name: trailer, Mode: file},
		"8 GiB":       {Name: "./a", Mode: file, Size: 1 << 33},
		"negative":    {Name: "./a", Mode: file, Size: -1},
		"owner":       {Name: "./a", Mode: file, UID: 1 << 18},
		"group":       {Name: "./a", Mode: file, GID: 1 << 18},
		"mode":        {Name: "./a", Mode: 1 << 16},
		"time":        {Name: "./a", Mode: file, Time: 1 << 33},
		"before 1970": {Name: "./a", Mode: file, Time: -1},
		"long name":   {Name: strings.Repeat("a", 1<<18), Mode: file},
	} {
		var out bytes.Buffer
		if err := NewWriter(&out).WriteHeader(h); err == nil || out.Len() > 0 {
			t.Errorf("%s: error %v after %d bytes", what, err, out.Len())
		}
	}
	w := NewWriter(io.Discard)
	if err := w.WriteHeader(Header{Name: "./a", Mode: file, Size: 3}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("four")); err == nil {
		t.Error("more content than the header says was taken")
	}
	if err := w.WriteHeader(Header{Name: "./b", Mode: file}); err == nil {
		t.Error("an entry was begun before the last was whole")
	}
	if err := w.Close(); err == nil {
		t.Error("an archive was closed before its last entry was whole")
	}
}

// TestGNUReadsIt: the other reader of this form.
func TestGNUReadsIt(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("needs cpio")
	}
	dir := t.TempDir()
	cmd := exec.Command("cpio", "-id", "--quiet", "--no-preserve-owner")
	cmd.Dir = dir
	cmd.Stdin = bytes.NewReader(pack(t, sample()))
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("cpio: %v %s", err, out)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "usr", "a file")); err != nil || string(got) != "hello" {
		t.Errorf("a file: %q, %v", got, err)
	}
	if got, err := os.Readlink(filepath.Join(dir, "usr", "link")); err != nil || got != "a file" {
		t.Errorf("link: %q, %v", got, err)
	}
}

// FuzzReader: whatever is read can be written, and is then read as the same.
func FuzzReader(f *testing.F) {
	f.Add(pack(f, sample()))
	f.Add(pack(f, nil))
	f.Add([]byte("070707000000000000040755000000000000000002000000146505741000000200000000000.\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := unpack(data)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("another error: %v", err)
			}
			return
		}
		for i := range got {
			if got[i].Links == 0 { // which the writer fills in
				got[i].Links = 1
			}
		}
		again, err := unpack(pack(t, got))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(got) {
			t.Fatalf("read %v, written and read again %v, %v", got, again, err)
		}
	})
}
