package xar

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func moment() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

func sample() []File {
	return []File{
		{Name: "Distribution", Mode: 0o644, Data: []byte("<installer-gui-script/>")},
		{Name: "a & b.pkg", Mode: 0o755, Dir: true},
		{Name: "a & b.pkg/Bom", Mode: 0o644, Data: bytes.Repeat([]byte("bom "), 500)},
		{Name: "a & b.pkg/Payload", Mode: 0o600, Data: []byte("payload"), Stored: true},
		{Name: "a & b.pkg/empty", Mode: 0o644},
		{Name: "last", Mode: 0o644, Data: []byte("x"), Stored: true},
	}
}

func write(t testing.TB, files []File) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Write(&out, moment(), files); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func open(data []byte) (*Archive, error) { return Open(bytes.NewReader(data), int64(len(data))) }

// contents are all members as text.
func contents(a *Archive) (string, error) {
	var b strings.Builder
	for _, m := range a.Members {
		fmt.Fprintf(&b, "%s %v %04o", m.Name, m.Dir, m.Mode)
		if !m.Dir {
			data, err := a.Read(m.Name, 1<<16)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&b, " %x", sha1.Sum(data))
		}
		b.WriteString("\n")
	}
	return b.String(), nil
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	a, err := open(write(t, sample()))
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Members) != len(sample()) || a.Signed {
		t.Fatalf("members: %+v", a.Members)
	}
	for i, f := range sample() {
		m := a.Members[i]
		if m.Name != f.Name || m.Dir != f.Dir || m.Mode != f.Mode || m.Size != int64(len(f.Data)) {
			t.Errorf("member %d: %+v", i, m)
		}
		if f.Dir {
			continue
		}
		if data, err := a.Read(f.Name, 1<<16); err != nil || !bytes.Equal(data, f.Data) {
			t.Errorf("%s: %d bytes, %v", f.Name, len(data), err)
		}
		if len(f.Data) > 0 {
			if _, err := a.Read(f.Name, int64(len(f.Data))-1); !errors.Is(err, ErrFormat) {
				t.Errorf("%s: read beyond its limit: %v", f.Name, err)
			}
		}
	}
	if _, err := a.Read("a & b.pkg", 1); !errors.Is(err, ErrFormat) {
		t.Errorf("a directory was read: %v", err)
	}
	if _, err := a.Read("none", 1); !errors.Is(err, ErrFormat) {
		t.Errorf("what is not there was read: %v", err)
	}
}

func TestNamesThatCannotBeWritten(t *testing.T) {
	for what, files := range map[string][]File{
		"no name":              {{}},
		"absolute":             {{Name: "/a"}},
		"outside":              {{Name: ".."}},
		"not clean":            {{Name: "a//b"}},
		"twice":                {{Name: "a"}, {Name: "a"}},
		"no directory":         {{Name: "a/b"}},
		"directory afterwards": {{Name: "a/b"}, {Name: "a", Dir: true}},
		"directory left":       {{Name: "a", Dir: true}, {Name: "b", Dir: true}, {Name: "a/b"}},
	} {
		var out bytes.Buffer
		if err := Write(&out, moment(), files); err == nil || out.Len() > 0 {
			t.Errorf("%s: error %v after %d bytes", what, err, out.Len())
		}
	}
}

// TestDamageIsNoticed: no byte can change without a reader seeing it, but for the header's unused ones.
func TestDamageIsNoticed(t *testing.T) {
	data := write(t, sample())
	a, err := open(data)
	if err != nil {
		t.Fatal(err)
	}
	want, err := contents(a)
	if err != nil {
		t.Fatal(err)
	}
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 0x20
		a, err := open(bad)
		got := ""
		if err == nil {
			got, err = contents(a)
		}
		if err == nil {
			t.Errorf("byte %d of %d was flipped and nobody saw: %v", i, len(data), got == want)
		} else if !errors.Is(err, ErrFormat) {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
	for n := range data {
		a, err := open(data[:n])
		if err == nil {
			_, err = contents(a)
		}
		if !errors.Is(err, ErrFormat) {
			t.Fatalf("the first %d of %d bytes: %v", n, len(data), err)
		}
	}
}

// forge makes an archive of a table that was written by somebody else.
func forge(t testing.TB, toc string, heap string) []byte {
	t.Helper()
	packed, err := deflate([]byte(toc))
	if err != nil {
		t.Fatal(err)
	}
	out := []byte(magic)
	out = binary.BigEndian.AppendUint16(out, headerSize)
	out = binary.BigEndian.AppendUint16(out, version)
	out = binary.BigEndian.AppendUint64(out, uint64(len(packed)))
	out = binary.BigEndian.AppendUint64(out, uint64(len(toc)))
	out = binary.BigEndian.AppendUint32(out, sumSHA1)
	sum := sha1.Sum(packed)
	return append(append(append(out, packed...), sum[:]...), heap...)
}

const (
	sumOfTable = `<checksum style="sha1"><offset>0</offset><size>20</size></checksum>`
	sumOfX     = `<extracted-checksum style="sha1">11f6ad8ec52a2984abaafd7c3b516503785c2072</extracted-checksum><archived-checksum style="sha1">11f6ad8ec52a2984abaafd7c3b516503785c2072</archived-checksum>`
)

func oneFile(name string, offset, length, size any, more string) string {
	return fmt.Sprintf(`<file id="1"><data><length>%v</length><offset>%v</offset><size>%v</size><encoding style="application/octet-stream"/>%s</data><type>file</type>%s<name>%s</name></file>`,
		length, offset, size, sumOfX, more, name)
}

func TestTablesThatLie(t *testing.T) {
	good := oneFile("x", 20, 1, 1, "")
	for what, tc := range map[string]struct {
		files string
		ok    bool
	}{
		"an honest one":                {good, true},
		"names twice, as signed":       {oneFile("x", 20, 1, 1, "<name>x</name>"), true},
		"a signature":                  {`<signature style="RSA"><offset>21</offset><size>0</size></signature>` + good, true},
		"a signature beyond":           {`<signature style="RSA"><offset>21</offset><size>999</size></signature>` + good, false},
		"a signature over the file":    {`<signature style="RSA"><offset>20</offset><size>1</size></signature>` + good, false},
		"beyond the end":               {oneFile("x", 21, 1, 1, ""), false},
		"far beyond the end":           {oneFile("x", "4611686018427387903", 1, 1, ""), false},
		"huge":                         {oneFile("x", 20, "4611686018427387903", "4611686018427387903", ""), false},
		"over the checksum":            {oneFile("x", 19, 1, 1, ""), false},
		"negative":                     {oneFile("x", -1, 1, 1, ""), false},
		"another size":                 {oneFile("x", 20, 1, 2, ""), false},
		"two in one place":             {good + oneFile("y", 20, 1, 1, ""), false},
		"two of one name":              {good + oneFile("x", 20, 1, 1, ""), false},
		"two names":                    {oneFile("x", 20, 1, 1, "<name>y</name>"), false},
		"a name with a slash":          {oneFile("a/b", 20, 1, 1, ""), false},
		"..":                           {oneFile("..", 20, 1, 1, ""), false},
		"no name":                      {oneFile("", 20, 1, 1, ""), false},
		"a mode that is none":          {oneFile("x", 20, 1, 1, "<mode>abc</mode>"), false},
		"a link":                       {`<file id="1"><type>symlink</type><name>x</name></file>`, false},
		"no content":                   {`<file id="1"><type>file</type><name>x</name></file>`, false},
		"a file in a file":             {strings.Replace(good, "</file>", oneFile("y", 20, 0, 0, "")+"</file>", 1), false},
		"an encoding that nobody has":  {strings.Replace(good, "octet-stream", "x-lzma", 1), false},
		"a checksum that nobody has":   {strings.Replace(good, "sha1", "crc", 1), false},
		"a checksum that is no number": {strings.Replace(good, "11f6", "zzzz", 1), false},
		"directories without end":      {strings.Repeat(`<file id="1"><type>directory</type><name>d</name>`, 100) + strings.Repeat("</file>", 100), false},
	} {
		a, err := open(forge(t, "<xar><toc>"+sumOfTable+tc.files+"</toc></xar>", "x"))
		if err == nil {
			_, err = contents(a)
		}
		if tc.ok != (err == nil) || err != nil && !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", what, err)
		}
	}
	var many strings.Builder
	for i := range maxMembers + 1 {
		fmt.Fprintf(&many, `<file id="%d"><type>directory</type><name>d%d</name></file>`, i, i)
	}
	for what, table := range map[string]string{
		"no XML":                "xar",
		"no checksum":           "<xar><toc>" + good + "</toc></xar>",
		"checksum beyond":       "<xar><toc>" + strings.Replace(sumOfTable, ">0<", ">9<", 1) + "</toc></xar>",
		"checksum of none":      "<xar><toc>" + strings.Replace(sumOfTable, ">20<", ">0<", 1) + "</toc></xar>",
		"checksum of no number": "<xar><toc>" + strings.Replace(sumOfTable, ">20<", ">a<", 1) + "</toc></xar>",
		"another checksum":      "<xar><toc>" + strings.Replace(sumOfTable, "sha1", "sha256", 1) + "</toc></xar>",
		"too many":              "<xar><toc>" + sumOfTable + many.String() + "</toc></xar>",
	} {
		if _, err := open(forge(t, table, "x")); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestBombsDoNotGoOff: what is small and says that it is large is not unpacked.
func TestBombsDoNotGoOff(t *testing.T) {
	data := write(t, nil)
	for what, change := range map[string]func(){
		"a table of 2^60 bytes":          func() { binary.BigEndian.PutUint64(data[8:], 1<<60) },
		"a table of 2^60 bytes unpacked": func() { binary.BigEndian.PutUint64(data[16:], 1<<60) },
	} {
		data = write(t, nil)
		change()
		if _, err := open(data); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", what, err)
		}
	}
	zeros, err := deflate(make([]byte, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inflate(zeros, 100); err == nil {
		t.Error("more was unpacked than it said")
	}
	if _, err := inflate(append(zeros, 0), 1<<20); err == nil {
		t.Error("something after the stream was taken")
	}
}

// TestOthersReadIt: libarchive and 7-Zip know the form, and both check the sums.
func TestOthersReadIt(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "x.xar")
	if err := os.WriteFile(name, write(t, sample()), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, reader := range [][]string{{"bsdtar", "-xf", name, "-C"}, {"7z", "x", "-bd", "-txar", name}} {
		t.Run(reader[0], func(t *testing.T) {
			if _, err := exec.LookPath(reader[0]); err != nil {
				t.Skip("needs " + reader[0])
			}
			to := filepath.Join(dir, reader[0])
			if err := os.Mkdir(to, 0o700); err != nil {
				t.Fatal(err)
			}
			args := reader[1:]
			if reader[0] == "7z" {
				args = append(args, "-o"+to)
			} else {
				args = append(args, to)
			}
			if out, err := exec.Command(reader[0], args...).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, f := range sample() {
				if f.Dir {
					continue
				}
				if got, err := os.ReadFile(filepath.Join(to, f.Name)); err != nil || !bytes.Equal(got, f.Data) {
					t.Errorf("%s: %d bytes, %v", f.Name, len(got), err)
				}
			}
		})
	}
}

// FuzzOpen: whatever opens is read without harm, and its members lie where it says.
func FuzzOpen(f *testing.F) {
	f.Add(write(f, sample()))
	f.Add(forge(f, "<xar><toc>"+sumOfTable+oneFile("x", 20, 1, 1, "")+"</toc></xar>", "x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := open(data)
		if err == nil {
			_, err = contents(a)
		}
		if err != nil && !errors.Is(err, ErrFormat) {
			t.Fatalf("another error: %v", err)
		}
	})
}

// FuzzTable is the same behind the checksum, which no guess gets through.
func FuzzTable(f *testing.F) {
	f.Add("<xar><toc>"+sumOfTable+oneFile("x", 20, 1, 1, "")+"</toc></xar>", "x")
	f.Add("<xar><toc>"+sumOfTable+`<file><type>directory</type><name>d</name>`+oneFile("x", 20, 1, 1, "<mode>0644</mode>")+"</file></toc></xar>", "x")
	f.Fuzz(func(t *testing.T, table, heap string) {
		a, err := open(forge(t, table, heap))
		if err == nil {
			_, err = contents(a)
		}
		if err != nil && !errors.Is(err, ErrFormat) {
			t.Fatalf("another error: %v", err)
		}
	})
}
