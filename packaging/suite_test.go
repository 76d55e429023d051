package packaging

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden listings of packages")

// wholeRelease is a release with small programs for every system.
func wholeRelease(t *testing.T, version string) Release {
	t.Helper()
	r := macRelease(t, version)
	for _, goarch := range []string{"amd64", "arm64"} {
		for _, goos := range []string{"linux", "windows"} {
			for _, name := range []string{"devopsAgent", "devopsDaemon", "devopsWorker", "upgrader"} {
				data := []byte(strings.Repeat(fmt.Sprintf("%s for %s %s %s\n", name, goos, goarch, version), 40))
				if err := os.WriteFile(r.program(name, goos, goarch), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	r.Licences = []Licence{
		{Module: "std", Version: "go1.26.5", SPDX: "BSD-3-Clause", Copyright: []string{"Copyright 2009 The Go Authors."}, Text: "Redistribution.\n\n\tand use"},
		{Module: "example.com/a", Version: "v1.0.0", SPDX: "Apache-2.0", Text: "Apache License"},
		{Module: "example.com/b", Version: "v1.0.0", SPDX: "MIT", Text: "Permission"},
	}
	return r
}

// written is the package of a manifest.
func written(t testing.TB, f Format, m Manifest) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Write(t.Context(), f, m, Options{}, &out); err != nil {
		t.Fatalf("%s: %v", f, err)
	}
	return out.Bytes()
}

// each runs a case for every format and architecture.
func each(t *testing.T, run func(t *testing.T, f Format, m Manifest)) {
	t.Helper()
	r := wholeRelease(t, "v1.2.4-dev.3")
	for _, f := range Formats() {
		for _, goarch := range f.Arches() {
			t.Run(string(f)+"/"+goarch, func(t *testing.T) {
				m, err := Contents(r, f, goarch)
				if err != nil {
					t.Fatal(err)
				}
				run(t, f, m)
			})
		}
		if m, ok, err := Java(r, f); err != nil {
			t.Errorf("%s for Java: %v", f, err)
		} else if ok {
			t.Run(string(f)+"/java", func(t *testing.T) { run(t, f, m) })
		}
	}
}

func TestPackagesHoldWhatTheManifestSays(t *testing.T) {
	each(t, func(t *testing.T, f Format, m Manifest) {
		data := written(t, f, m)
		l, err := List(f, bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		found, err := Differences(m, l)
		if err != nil || len(found) > 0 {
			t.Errorf("%v\n%s", err, strings.Join(found, "\n"))
		}
		if len(l.Entries) < len(m.Files) || len(m.Files) == 0 {
			t.Errorf("%d entries of %d files", len(l.Entries), len(m.Files))
		}
		for _, e := range l.Entries {
			if !e.Time.IsZero() && m.Time.Sub(e.Time).Abs() > time.Second { // cabinets count in steps of 2 s
				t.Errorf("%s has the time %v, not %v", e.Path, e.Time, m.Time)
			}
		}
	})
}

// TestDifferencesAreFound: a package is held against other manifests.
func TestDifferencesAreFound(t *testing.T) {
	each(t, func(t *testing.T, f Format, m Manifest) {
		data := written(t, f, m)
		l, err := List(f, bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		at := slices.IndexFunc(m.Files, func(f File) bool { return f.Kind == Regular })
		for name, change := range map[string]func(m *Manifest){
			"a file less":     func(m *Manifest) { m.Files = slices.Delete(m.Files, at, at+1) },
			"a file more":     func(m *Manifest) { m.Files = append(m.Files, File{Path: m.Files[at].Path + "x", Mode: 0o644}) },
			"other content":   func(m *Manifest) { m.Files[at].Source, m.Files[at].Data = "", []byte("another") },
			"another kind":    func(m *Manifest) { m.Files[at].Kind = Dir },
			"another mode":    func(m *Manifest) { m.Files[at].Mode ^= 0o100 },
			"another owner":   func(m *Manifest) { m.Files[at].Owner = "nobody" },
			"another link":    func(m *Manifest) { m.Files[at].Kind, m.Files[at].Target = Link, "elsewhere" },
			"nothing changed": func(*Manifest) {},
		} {
			if m.GOOS == "windows" && (name == "another mode" || name == "another owner") {
				continue // it has neither
			}
			other := m
			other.Files = slices.Clone(m.Files)
			change(&other)
			found, err := Differences(other, l)
			if err != nil || len(found) > 0 != (name != "nothing changed") {
				t.Errorf("%s: %v, %v", name, found, err)
			}
		}
	})
}

// TestPackagesAreReproducible: other directories, other times of files and another moment give the same bytes.
func TestPackagesAreReproducible(t *testing.T) {
	first := map[string][]byte{}
	each(t, func(t *testing.T, f Format, m Manifest) { first[f.FileName(m)] = written(t, f, m) })
	old := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	each(t, func(t *testing.T, f Format, m Manifest) {
		for _, file := range m.Files {
			if file.Source != "" && strings.HasPrefix(file.Source, os.TempDir()) {
				if err := os.Chtimes(file.Source, old, old); err != nil {
					t.Fatal(err)
				}
			}
		}
		name := f.FileName(m)
		if first[name] == nil {
			t.Fatalf("%s was not there the first time", name)
		}
		if !bytes.Equal(written(t, f, m), first[name]) {
			t.Errorf("%s differs", name)
		}
	})
}

func TestNoPackageOfAnImpossibleManifest(t *testing.T) {
	each(t, func(t *testing.T, f Format, m Manifest) {
		program := slices.IndexFunc(m.Files, func(f File) bool { return f.Program })
		for name, change := range map[string]func(m *Manifest){
			"no programs":      func(m *Manifest) { m.Files = slices.DeleteFunc(m.Files, func(f File) bool { return f.Program }) },
			"an empty program": func(m *Manifest) { m.Files[program].Source, m.Files[program].Data = "", nil },
			"nothing at all":   func(m *Manifest) { m.Files = nil },
			"no name":          func(m *Manifest) { m.Name = "" },
			"no time":          func(m *Manifest) { m.Time = time.Time{} },
			"no version":       func(m *Manifest) { m.Version = "latest" },
			"a path that leaves": func(m *Manifest) {
				m.Files = append([]File{{Path: "../../etc/passwd", Mode: 0o644, Owner: "root", Group: "root"}}, m.Files...)
			},
			"a path twice":                         func(m *Manifest) { m.Files = slices.Insert(m.Files, program, m.Files[program]) },
			"a mode with setuid":                   func(m *Manifest) { m.Files[program].Mode |= os.ModeSetuid },
			"a line in the name of the maintainer": func(m *Manifest) { m.Maintainer = "x\nDepends: evil" },
		} {
			if program < 0 && name != "nothing at all" {
				continue // the others are about programs, and a package for Java has none
			}
			other := m
			other.Files = slices.Clone(m.Files)
			change(&other)
			var out bytes.Buffer
			err := Write(t.Context(), f, other, Options{}, &out)
			if _, ok := errors.AsType[*ManifestError](err); !ok || out.Len() > 0 {
				t.Errorf("%s: %v, %d bytes", name, err, out.Len())
			}
		}
		if program < 0 {
			return
		}
		missing := m
		missing.Files = slices.Clone(m.Files)
		missing.Files[program].Source, missing.Files[program].Data = filepath.Join(t.TempDir(), "gone"), nil
		if err := Write(t.Context(), f, missing, Options{}, &bytes.Buffer{}); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a program that is not there: %v", err)
		}
	})
}

func TestWritingCanBeCancelled(t *testing.T) {
	each(t, func(t *testing.T, f Format, m Manifest) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := Write(ctx, f, m, Options{}, &bytes.Buffer{}); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}

// TestDamagedPackages: a package that is cut or changed is an error or, where nobody reads the byte, the same listing.
func TestDamagedPackages(t *testing.T) {
	each(t, func(t *testing.T, f Format, m Manifest) {
		data := written(t, f, m)
		whole, err := List(f, bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 16 {
			cut := data[:len(data)*i/16]
			if _, err := List(f, bytes.NewReader(cut), int64(len(cut))); err == nil {
				t.Errorf("cut to %d of %d bytes it is read", len(cut), len(data))
			}
		}
		step := max(len(data)/97, 1)
		for at := 0; at < len(data); at += step {
			damaged := slices.Clone(data)
			damaged[at] ^= 0x55
			got, err := List(f, bytes.NewReader(damaged), int64(len(damaged)))
			if err != nil {
				continue
			}
			for i, e := range got.Entries {
				if i < len(whole.Entries) && e.Path == whole.Entries[i].Path && e.Sum != whole.Entries[i].Sum {
					t.Errorf("byte %d: %s has another content, and nobody noticed", at, e.Path)
				}
			}
		}
	})
}

// TestNamesOfPackages are those that package managers and people expect.
func TestNamesOfPackages(t *testing.T) {
	want := map[string]bool{
		"devops-agent_1.2.4~dev.3_amd64.deb": true, "devops-agent_1.2.4~dev.3_arm64.deb": true, "devops-agent-java_1.2.4~dev.3_all.deb": true,
		"devops-agent-1.2.4~dev.3-1.x86_64.rpm": true, "devops-agent-1.2.4~dev.3-1.aarch64.rpm": true, "devops-agent-java-1.2.4~dev.3-1.noarch.rpm": true,
		"devops-agent-1.2.4-dev.3.pkg": true, "devops-agent-1.2.4-dev.3-x64.msi": true, "devops-agent-1.2.4-dev.3-arm64.msi": true,
	}
	each(t, func(t *testing.T, f Format, m Manifest) {
		if !want[f.FileName(m)] {
			t.Errorf("%s", f.FileName(m))
		}
		delete(want, f.FileName(m))
	})
	for name := range want {
		t.Errorf("%s is not made", name)
	}
}

// TestListingsOfLinuxPackages: what is where, by whom and with which rights. Sizes are those of the day and not in it.
func TestListingsOfLinuxPackages(t *testing.T) {
	r := wholeRelease(t, "v1.2.4-dev.3")
	for _, f := range []Format{Deb, RPM} {
		m, err := Contents(r, f, "amd64")
		if err != nil {
			t.Fatal(err)
		}
		data := written(t, f, m)
		l, err := List(f, bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		for i := range l.Entries {
			l.Entries[i].Size = 0
		}
		golden := filepath.Join("testdata", string(f)+".txt")
		if *update {
			if err := os.WriteFile(golden, []byte(l.String()), 0o644); err != nil { //nolint:gosec // a golden file
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if l.String() != string(want) {
			t.Errorf("%s (-update writes it anew):\n%s", golden, l.String())
		}
	}
}

// FuzzListDeb and FuzzListRPM: foreign bytes are an error or a listing, within bounds.
func FuzzListDeb(f *testing.F) { fuzzList(f, Deb) }
func FuzzListRPM(f *testing.F) { fuzzList(f, RPM) }

func fuzzList(f *testing.F, format Format) {
	m := Manifest{Name: "x", Version: "1.0.0", Summary: "s", Maintainer: "m", GOOS: "linux", GOARCH: All, Time: time.Unix(1, 0),
		Files: []File{{Path: "/d", Kind: Dir, Mode: 0o755, Owner: "root", Group: "root"}, {Path: "/d/f", Mode: 0o644, Owner: "root", Group: "root", Data: []byte("data")},
			{Path: "/d/l", Kind: Link, Target: "f", Mode: 0o777, Owner: "root", Group: "root"}}}
	f.Add(written(f, format, m))
	f.Add([]byte("!<arch>\n"))
	f.Add([]byte("\xed\xab\xee\xdb"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := List(format, bytes.NewReader(data), int64(len(data)))
		if err == nil && l.String() == "" && len(l.Entries) > 0 {
			t.Error("entries without a line")
		}
	})
}
