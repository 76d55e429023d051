package repo

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/goreleaser/nfpm/v2/files"
)

// createrepo_c describes the same packages in the same words. Only the time of the file differs, which for us is that of
// the build.
func TestCreaterepoAgrees(t *testing.T) {
	if _, err := exec.LookPath("createrepo_c"); err != nil {
		t.Skip("this machine has no createrepo_c")
	}
	in, out := t.TempDir(), t.TempDir()
	list := []string{
		sample{format: "rpm", name: "demo", version: "1.0", arch: "amd64"}.write(t, in),
		sample{format: "rpm", name: "demo", version: "1.1~rc.1", arch: "arm64", compression: "zstd"}.write(t, in),
		sample{format: "rpm", name: "Meta_pack", version: "2", arch: "all"}.write(t, in),
		sample{format: "rpm", name: "rich", version: "3", arch: "amd64", rich: true}.write(t, in),
	}
	// More to compare, as real packages of any origin.
	more, err := filepath.Glob(filepath.Join(os.Getenv("RPM_DIR"), "*.rpm"))
	if err == nil && os.Getenv("RPM_DIR") != "" {
		list = append(list, more...)
	}
	publish(t, Repository{Dir: out, Keys: []*Key{aKey(t)}, Now: day(2)}, list...)
	theirs := t.TempDir()
	if err := os.CopyFS(filepath.Join(theirs, "pool"), os.DirFS(filepath.Join(out, "pool"))); err != nil {
		t.Fatal(err)
	}
	if said, err := exec.Command("createrepo_c", "--quiet", "--no-database", "--checksum", "sha256", "--compress-type", "gz", theirs).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	for _, kind := range []string{"primary", "filelists", "other"} {
		a, b := described(t, out, kind), described(t, theirs, kind)
		if len(a) != len(list) || len(b) != len(list) {
			t.Errorf("%s: %d packages, createrepo_c has %d of %d", kind, len(a), len(b), len(list))
		}
		for i := range min(len(a), len(b)) {
			if a[i] != b[i] {
				t.Errorf("%s: we say\n%s\ncreaterepo_c says\n%s", kind, a[i], b[i])
			}
		}
	}
}

// described are the packages of an index, as text without blanks that mean nothing, sorted.
func described(t *testing.T, dir, kind string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "repodata", "*-"+kind+".xml.gz"))
	if err != nil || len(names) != 1 {
		t.Fatalf("%s: %q, %v", kind, names, err)
	}
	packed, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	text, err := gunzipped(packed)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	var one strings.Builder
	d := xml.NewDecoder(bytes.NewReader(text))
	for depth := 0; ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch e := token.(type) {
		case xml.StartElement:
			depth++
			if depth == 1 {
				continue
			}
			fmt.Fprintf(&one, "\n%s<%s", strings.Repeat(" ", depth-2), e.Name.Local)
			slices.SortFunc(e.Attr, func(a, b xml.Attr) int { return strings.Compare(a.Name.Local, b.Name.Local) })
			for _, a := range e.Attr {
				if e.Name.Local == "time" && a.Name.Local == "file" {
					continue
				}
				fmt.Fprintf(&one, " %s=%q", a.Name.Local, a.Value)
			}
			one.WriteString(">")
		case xml.CharData:
			if s := strings.TrimSpace(string(e)); s != "" {
				fmt.Fprintf(&one, "%q", s)
			}
		case xml.EndElement:
			depth--
			if depth == 1 {
				all = append(all, one.String())
				one.Reset()
			}
		}
	}
	slices.Sort(all)
	return all
}

// enrich is what a package may say beside the rest.
func enrich(s sample, program string, contents files.Contents) files.Contents {
	return append(contents,
		&files.Content{Source: program, Destination: "/usr/lib/" + s.name + "/a b & <c>", FileInfo: &files.ContentFileInfo{Mode: 0o644}},
		&files.Content{Destination: "/var/log/" + s.name + ".log", Type: "ghost"},
		&files.Content{Source: "../lib/" + s.name, Destination: "/usr/sbin/" + s.name, Type: "symlink"})
}
