package ar

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

func archive(files ...string) []byte {
	var b bytes.Buffer
	b.WriteString(Magic)
	for i := 0; i < len(files); i += 2 {
		fmt.Fprintf(&b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n%s", files[i], 0, 0, 0, "100644", len(files[i+1]), files[i+1])
		if len(files[i+1])%2 == 1 {
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}

func read(data []byte) (string, error) {
	r, err := NewReader(bytes.NewReader(data))
	if err != nil {
		return "", err
	}
	var all strings.Builder
	for {
		m, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all.String(), nil
		}
		if err != nil {
			return "", err
		}
		body, err := io.ReadAll(r)
		if err != nil {
			return "", err
		}
		if int64(len(body)) != m.Size {
			return "", fmt.Errorf("%s: %d bytes of %d", m.Name, len(body), m.Size)
		}
		fmt.Fprintf(&all, "%s=%s;", m.Name, body)
	}
}

func TestMembersAreRead(t *testing.T) {
	whole := archive("debian-binary", "2.0\n", "control.tar.gz/", "abc", "data.tar", "")
	if got, err := read(whole); err != nil || got != "debian-binary=2.0\n;control.tar.gz=abc;data.tar=;" {
		t.Errorf("%q, %v", got, err)
	}
	odd := archive("a", "abc")
	if got, err := read(odd[:len(odd)-1]); err != nil || got != "a=abc;" {
		t.Errorf("without the last padding: %q, %v", got, err)
	}
	r, err := NewReader(bytes.NewReader(whole))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for { // nobody reads the bodies
		m, err := r.Next()
		if err != nil {
			break
		}
		names = append(names, m.Name)
	}
	if strings.Join(names, " ") != "debian-binary control.tar.gz data.tar" {
		t.Errorf("skipped: %q", names)
	}
}

func TestBrokenArchivesAreRefused(t *testing.T) {
	good := archive("a", "abcd", "b", "x")
	for why, data := range map[string][]byte{
		"empty": nil, "other": []byte("PK\x03\x04abcdefgh"), "half a header": good[:30], "half a body": good[:70],
		"no end of the header": bytes.Replace(good, []byte("`\n"), []byte("xx"), 1),
		"no number":            bytes.Replace(good, []byte("4         `"), []byte("-4        `"), 1),
		"a path":               archive("../a", "x"),
	} {
		if got, err := read(data); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %q, %v", why, got, err)
		}
	}
}

func FuzzReader(f *testing.F) {
	f.Add(archive("debian-binary", "2.0\n", "control.tar.gz/", "abc"))
	f.Add([]byte(Magic))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := read(data)
		if len(got) > 2*len(data) {
			t.Errorf("%d bytes from %d", len(got), len(data))
		}
		if err != nil && !errors.Is(err, ErrFormat) {
			t.Error(err)
		}
	})
}
