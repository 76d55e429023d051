package repo

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
)

func TestStanzas(t *testing.T) {
	text := "Package: demo\nDescription: one\n line two\n .\n line three\nEmpty:\nList:\n a\n b\n"
	s, err := parseStanza([]byte(text + "\n"))
	if err != nil || s.String() != text {
		t.Errorf("%q, %v", s, err)
	}
	if v, ok := s.get("package"); v != "demo" || !ok {
		t.Errorf("%q", v)
	}
	for why, text := range map[string]string{
		"an empty line": "A: 1\n\nB: 2\n", "a blank line": "A: 1\n \nB: 2", "a line of tabs": "A: 1\n\t\t\nB: 2", "no field": "A\n", "two of one name": "A: 1\na: 2\n",
		"it begins within": " a\n", "a carriage return": "A: 1\r\n\r\nB: 2", "a NUL": "A: \x00", "a name of two words": "A B: 1", "nothing": "",
	} {
		if s, err := parseStanza([]byte(text)); err == nil {
			t.Errorf("%s: %q", why, s)
		}
	}
}

func TestIndexesOfOthersAreRefused(t *testing.T) {
	good := "Package: demo\nVersion: 1\nArchitecture: amd64\nFilename: pool/main/d/demo/demo_1_amd64.deb\nSize: 5\nSHA256: " + strings.Repeat("a", 64) + "\n"
	if list, err := parsePackages([]byte(good + "\n")); err != nil || len(list) != 1 || list[0].stanza != good {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, c := range [][2]string{{"pool/main/d/", "pool/main/../"}, {"pool/main", "/pool/main"}, {"demo_1_amd64.deb", "demo.sh"}, {"Size: 5", "Size: -5"}, {"Size: 5", "Size: x"},
		{"SHA256: a", "SHA256: A"}, {"Package: demo", "Package: de mo"}, {"Version: 1", "Version: 1/2"}, {"Architecture: amd64", "Architecture: ../x"}, {"SHA256", "MD5"}} {
		if _, err := parsePackages([]byte(strings.Replace(good, c[0], c[1], 1))); err == nil {
			t.Errorf("%s was taken", c[1])
		}
	}
	sum := strings.Repeat("b", 64)
	for line, want := range map[string]bool{sum + " 5 main/binary-amd64/Packages": true, sum + " 5 main/binary-amd64/Packages.xz": true, sum + " 5 ../../x/Packages": false,
		sum + " 5 main/binary-../Packages": false, "b 5 main/binary-amd64/Packages": false, sum + " -5 main/binary-amd64/Packages": false, sum + " main/binary-amd64/Packages": false} {
		if _, err := parseSums([]byte("SHA256:\n " + line + "\n")); (err == nil) != want {
			t.Errorf("%s: %v", line, err)
		}
	}
}

// A control file that would become two packages of an index, or say where it is, is no package.
func TestControlFilesThatReachFurther(t *testing.T) {
	good := "Package: demo\nVersion: 1\nArchitecture: amd64\nMaintainer: x\nDescription: x\n"
	if i, err := readDeb(bytes.NewReader(makeDeb(good)), Package{Size: 1, SHA256: "x"}); err != nil || i.File != "pool/main/d/demo/demo_1_amd64.deb" ||
		i.stanza != good+"Filename: pool/main/d/demo/demo_1_amd64.deb\nSize: 1\nSHA256: x\n" {
		t.Fatalf("%+v, %v", i, err)
	}
	for _, text := range []string{good + "\nPackage: evil\n", good + "Filename: x\n", good + "sha256: x\n", strings.Replace(good, "demo", "../demo", 1),
		strings.Replace(good, "demo", "Demo", 1), strings.Replace(good, "Version: 1", "Version: 1_2", 1), strings.Replace(good, "amd64", "amd64/..", 1), "Package: demo\n", ""} {
		if i, err := readDeb(bytes.NewReader(makeDeb(text)), Package{}); err == nil {
			t.Errorf("%q: %+v", text, i)
		}
	}
	whole := makeDeb(good)
	for why, data := range map[string][]byte{"half": whole[:len(whole)/2], "without data": bytes.Replace(whole, []byte("data.tar"), []byte("dat0.tar"), 1),
		"another order": bytes.Replace(bytes.Replace(whole, []byte("data.tar"), []byte("xxxx.tar"), 1), []byte("control.tar"), []byte("data.tar   "), 1),
		"format 3":      bytes.Replace(whole, []byte("2.0\n"), []byte("3.0\n"), 1), "lzma": bytes.Replace(whole, []byte("control.tar.gz"), []byte("control.tar.7z"), 1)} {
		if _, err := readDeb(bytes.NewReader(data), Package{}); err == nil {
			t.Errorf("%s was read", why)
		}
	}
}

func FuzzPackages(f *testing.F) {
	f.Add([]byte("Package: demo\nVersion: 1\nArchitecture: amd64\nFilename: pool/main/d/demo/demo_1_amd64.deb\nSize: 5\nSHA256: " + strings.Repeat("a", 64) + "\nDescription: a\n b\n\n"))
	f.Add([]byte("Origin: x\nSHA256:\n " + strings.Repeat("a", 64) + " 5 main/binary-amd64/Packages\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if list, err := parsePackages(data); err == nil {
			for _, i := range list {
				if strings.Contains(i.File, "..") && strings.Contains(i.File, "/../") || !strings.HasPrefix(i.File, "pool/") {
					t.Errorf("%q", i.File)
				}
				again, err := parsePackages([]byte(i.stanza + "\n"))
				if err != nil || len(again) != 1 || again[0].stanza != i.stanza {
					t.Errorf("%q became %+v, %v", i.stanza, again, err)
				}
			}
		}
		if sums, err := parseSums(data); err == nil {
			for name := range sums {
				if !strings.HasPrefix(name, "main/binary-") || strings.Contains(name, "..") {
					t.Errorf("%q", name)
				}
			}
		}
	})
}

func FuzzDeb(f *testing.F) {
	f.Add(makeDeb("Package: demo\nVersion: 1\nArchitecture: amd64\n"))
	f.Add(makeDeb("Package: demo\nVersion: 1\nArchitecture: amd64\n\nPackage: evil\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		i, err := readDeb(bytes.NewReader(data), Package{Size: 1, SHA256: strings.Repeat("a", 64)})
		if err != nil {
			return
		}
		if list, err := parsePackages([]byte(i.stanza + "\n")); err != nil || len(list) != 1 || list[0].File != i.File {
			t.Errorf("%q: %+v, %v", i.stanza, list, err)
		}
	})
}

func FuzzRPM(f *testing.F) {
	data, err := os.ReadFile(sample{format: "rpm", name: "demo", version: "1", arch: "amd64"}.write(f, f.TempDir()))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data[:min(len(data), 4096)])
	f.Fuzz(func(t *testing.T, data []byte) {
		i, err := readRPM(bytes.NewReader(data), Package{Size: 1, SHA256: strings.Repeat("a", 64)}, signers{})
		if err != nil {
			return
		}
		byType := map[string][]element{}
		for _, kind := range []string{"primary", "filelists", "other"} {
			if byType[kind], err = splitPackages(index(kind, []item{i})); err != nil {
				t.Fatalf("%s: %v\n%s", kind, err, index(kind, []item{i}))
			}
		}
		list, err := joinPackages(byType)
		if err != nil || len(list) != 1 || list[0].Package != i.Package || list[0].yum != i.yum {
			t.Errorf("%+v became %+v, %v", i, list, err)
		}
	})
}

func FuzzIndex(f *testing.F) {
	data, err := os.ReadFile(sample{format: "rpm", name: "demo", version: "1", arch: "amd64"}.write(f, f.TempDir()))
	if err != nil {
		f.Fatal(err)
	}
	i, err := readRPM(bytes.NewReader(data), Package{Size: 1, SHA256: strings.Repeat("a", 64)}, signers{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(index("primary", []item{i, i}))
	f.Add(index("other", []item{i}))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := splitPackages(data)
		if err != nil {
			return
		}
		total := 0
		for _, e := range list {
			total += len(e.text)
		}
		if total > len(data)+len(list) {
			t.Errorf("%d bytes of %d", total, len(data))
		}
		for _, i := range must(joinPackages(map[string][]element{"primary": list, "filelists": list, "other": list})) {
			if !strings.HasPrefix(i.File, "pool/") {
				t.Errorf("%q", i.File)
			}
		}
	})
}

// must leaves out what is refused.
func must(list []item, err error) []item {
	if err != nil {
		return nil
	}
	return list
}

func TestPackagesThatAreNone(t *testing.T) {
	for _, data := range []string{"", "short", "!<arch>\n", "\xed\xab\xee\xdb1234", "MZ123456789"} {
		if _, err := readItem(bytes.NewReader([]byte(data)), Package{}, signers{}); err == nil {
			t.Errorf("%q was read", data)
		}
	}
	if _, err := readItem(strings.NewReader("MZ123456789"), Package{}, signers{}); !errors.Is(err, ErrKind) {
		t.Errorf("%v", err)
	}
}
