package repo

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm"

	"github.com/devops-agent/devops-agent/packaging/internal/ar"
)

// day is when things happen in these tests.
func day(n int) time.Time { return time.Date(2026, 3, n, 12, 0, 0, 0, time.UTC) }

// keyOf makes the key of a kind, once for all tests.
var testKey = sync.OnceValues(func() (*Key, error) { return GenerateKey(Ed25519, "Tests <tests@example.org>", day(1)) }) //nolint:gochecknoglobals // made once

func aKey(t testing.TB) *Key {
	t.Helper()
	key, err := testKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sample is a small package, as packers other than ours make them.
type sample struct {
	format, name, version, arch string
	content                     string // of its program
	compression                 string
	key                         string // file of the key that signs an rpm
	rich                        bool   // with all that an rpm may say about others
}

// write makes it in dir.
func (s sample) write(t testing.TB, dir string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "demo")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho "+s.version+s.content+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	in := &nfpm.Info{Name: s.name, Arch: s.arch, Platform: "linux", Version: s.version, VersionSchema: "none",
		Maintainer: "Tests <tests@example.org>", Description: "A demo & <nothing> else\nMore of it.\n\nAnd more.", Vendor: "Example", Homepage: "https://example.org",
		License: "MIT", MTime: day(1), DisableGlobbing: true,
		Overridables: nfpm.Overridables{
			Contents: files.Contents{
				{Source: program, Destination: "/usr/bin/" + s.name, FileInfo: &files.ContentFileInfo{Mode: 0o755}},
				{Source: program, Destination: "/etc/" + s.name + ".conf", Type: "config|noreplace", FileInfo: &files.ContentFileInfo{Mode: 0o644}},
				{Destination: "/var/lib/" + s.name, Type: "dir", FileInfo: &files.ContentFileInfo{Mode: 0o755}},
			},
			Provides: []string{s.name + "-thing"}, Conflicts: []string{"other-thing"},
			RPM: nfpm.RPM{BuildHost: "localhost", Compression: s.compression, Signature: nfpm.RPMSignature{PackageSignature: nfpm.PackageSignature{KeyFile: s.key}}},
			Deb: nfpm.Deb{Compression: s.compression},
		}}
	if s.format == "deb" {
		in.Depends, in.Recommends = []string{"libc6 (>= 2.30)"}, []string{"git"}
	} else {
		in.Release, in.Depends, in.Recommends = "1", []string{"/bin/sh", "bash >= 4"}, []string{"git"}
	}
	if s.rich {
		in.Contents, in.Epoch = enrich(s, program, in.Contents), "2"
		in.Depends = append(in.Depends, "/usr/bin/"+s.name, "/usr/bin/"+s.name+"-more", s.name+"-thing", "bash >= 4", "bash >= 4", "a = 1:2-3", "b < 1.0~rc1", "c <= 2", "d > 0", "libc.so.6(GLIBC_2.4)(64bit)")
		in.Provides, in.Replaces = append(in.Provides, "virtual = 3:4.5-6"), []string{"old-" + s.name + " < 2"}
		in.Suggests, in.Recommends = []string{"git >= 2"}, []string{"curl"}
		in.Scripts = nfpm.Scripts{PostInstall: program}
	}
	if err := nfpm.PrepareForPackager(nfpm.WithDefaults(in), s.format); err != nil {
		t.Fatal(err)
	}
	packer, err := nfpm.Get(s.format)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := packer.Package(in, &b); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, fmt.Sprintf("%s %s %s.%s", s.name, s.version, s.arch, s.format)) // no name that we would give
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// release makes a version of demo for both formats and architectures.
func demo(t testing.TB, dir, version string) []string {
	t.Helper()
	var list []string
	for _, format := range []string{"deb", "rpm"} {
		for _, arch := range []string{"amd64", "arm64"} {
			list = append(list, sample{format: format, name: "demo", version: version, arch: arch}.write(t, dir))
		}
	}
	return list
}

// view is what a client finds: every package of both repositories, checked down to its content.
type view struct{ apt, yum []string }

// look reads a repository as clients do: from the signatures down, each file against the sum of the one that names it.
func look(t testing.TB, dir string, key *Key) view {
	t.Helper()
	v, err := tryLook(dir, key)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func tryLook(dir string, key *Key) (view, error) {
	var v view
	s := signers{[]*Key{key}, day(1)}
	get := func(name, sum string) ([]byte, error) {
		data, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		if err == nil && sum != "" && sha256Hex(data) != sum {
			err = fmt.Errorf("%s is not what its index says", name)
		}
		return data, err
	}
	signed, err := get("dists/stable/InRelease", "")
	if errors.Is(err, os.ErrNotExist) {
		signed = nil
	} else if err != nil {
		return v, err
	}
	if signed != nil {
		text, _, err := s.openInline(signed)
		if err != nil {
			return v, err
		}
		_, sums, _ := strings.Cut(string(text), "SHA256:\n")
		for line := range strings.Lines(sums) {
			part := strings.Fields(line)
			data, err := get("dists/stable/"+path.Dir(part[2])+"/by-hash/SHA256/"+part[0], part[0])
			if err != nil {
				return v, err
			}
			if path.Base(part[2]) != "Packages" {
				continue
			}
			for text := range strings.SplitSeq(strings.TrimSpace(string(data)), "\n\n") {
				p := map[string]string{}
				for line := range strings.Lines(text) {
					name, value, _ := strings.Cut(line, ": ")
					p[name] = strings.TrimSpace(value)
				}
				if p["Filename"] == "" {
					continue
				}
				if _, err := get(p["Filename"], p["SHA256"]); err != nil {
					return v, err
				}
				v.apt = append(v.apt, path.Base(path.Dir(part[2]))+" "+path.Base(p["Filename"]))
			}
		}
	}
	md, err := get("repodata/repomd.xml", "")
	if errors.Is(err, os.ErrNotExist) {
		return v, nil
	}
	if err != nil {
		return v, err
	}
	asc, err := get("repodata/repomd.xml.asc", "")
	if err != nil {
		return v, err
	}
	if _, err := s.openDetached(md, asc); err != nil {
		return v, err
	}
	var index repomd
	if err := xml.Unmarshal(md, &index); err != nil {
		return v, err
	}
	for _, one := range index.Data {
		packed, err := get(one.Location.Href, one.Checksum.Value)
		if err != nil {
			return v, err
		}
		text, err := gunzipped(packed)
		if err != nil {
			return v, err
		}
		if sha256Hex(text) != one.Open {
			return v, fmt.Errorf("%s: open-checksum", one.Location.Href)
		}
		list, err := splitPackages(text)
		if err != nil {
			return v, err
		}
		for _, e := range list {
			if one.Type != "primary" {
				v.yum = append(v.yum, one.Type+" "+e.PkgID[:4])
				continue
			}
			if _, err := get(e.Location.Href, e.Checksum); err != nil {
				return v, err
			}
			v.yum = append(v.yum, path.Base(e.Location.Href))
		}
	}
	v.yum = slices.DeleteFunc(v.yum, func(s string) bool { return !strings.HasSuffix(s, ".rpm") })
	slices.Sort(v.apt)
	slices.Sort(v.yum)
	return v, nil
}

func (v view) String() string { return strings.Join(v.apt, ", ") + " | " + strings.Join(v.yum, ", ") }

// seen is what clients see of versions of demo.
func seen(versions ...string) string {
	var v view
	for _, one := range versions {
		v.apt = append(v.apt, "binary-amd64 demo_"+one+"_amd64.deb", "binary-arm64 demo_"+one+"_arm64.deb")
		v.yum = append(v.yum, "demo-"+one+"-1.aarch64.rpm", "demo-"+one+"-1.x86_64.rpm")
	}
	slices.Sort(v.apt)
	slices.Sort(v.yum)
	return v.String()
}

// publish calls Publish, which must succeed.
func publish(t testing.TB, r Repository, files ...string) Changes {
	t.Helper()
	c, err := r.Publish(context.Background(), files...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// makeDeb is a .deb with this control file, and nothing to install.
func makeDeb(control string) []byte {
	var packed, all bytes.Buffer
	z := gzip.NewWriter(&packed)
	w := tar.NewWriter(z)
	_ = w.WriteHeader(&tar.Header{Name: "./control", Mode: 0o644, Size: int64(len(control)), Typeflag: tar.TypeReg})
	_, _ = w.Write([]byte(control))
	_ = w.Close()
	_ = z.Close()
	all.WriteString(ar.Magic)
	for _, m := range [][2]string{{"debian-binary", "2.0\n"}, {"control.tar.gz", packed.String()}, {"data.tar", ""}} {
		fmt.Fprintf(&all, "%-16s%-12d%-6d%-6d%-8s%-10d`\n%s", m[0], 0, 0, 0, "100644", len(m[1]), m[1])
		if len(m[1])%2 == 1 {
			all.WriteByte('\n')
		}
	}
	return all.Bytes()
}
