package packaging

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/launchd"
	"github.com/devops-agent/devops-agent/packaging/internal/bom"
	"github.com/devops-agent/devops-agent/packaging/internal/cpio"
	"github.com/devops-agent/devops-agent/packaging/internal/xar"
)

var updatePkg = flag.Bool("update-pkg", false, "write the golden listing of the macOS package")

// macho64 is a program of macOS, in form only.
func macho64(cpu uint32, content string) []byte {
	var b []byte
	for _, v := range []uint32{0xfeedfacf, cpu, 3, 2, 1, 16, 0, 0, 0x1d, 16, 0, 0} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return append(b, content...)
}

// macRelease is a release whose programs are small.
func macRelease(t *testing.T, version string) Release {
	t.Helper()
	dir := t.TempDir()
	r := Release{Version: version, Commit: "unknown", Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Bin: dir, Docs: filepath.Join(dir, "docs"), Root: ".."}
	for _, name := range pkgPrograms() {
		for goarch, cpu := range map[string]uint32{"amd64": 0x01000007, "arm64": 0x0100000c} {
			if err := os.WriteFile(r.program(name, "darwin", goarch), macho64(cpu, name+" "+version), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, text := range map[string]string{"man/devopsAgent.8": ".TH", "man/devopsAgent-run.8": ".TH", "completion/bash": "b", "completion/zsh": "z", "completion/fish": "f"} {
		name = filepath.Join(r.Docs, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func macManifest(t *testing.T, version string) Manifest {
	t.Helper()
	m, err := Contents(macRelease(t, version), Pkg, Universal)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func pkgBytes(t testing.TB, m Manifest) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Write(t.Context(), Pkg, m, Options{}, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func listPkg(data []byte) (Listing, error) {
	return List(Pkg, bytes.NewReader(data), int64(len(data)))
}

// TestPkgIsWhatTheManifestSays: names, modes, owners, times, contents, and nothing beside them.
func TestPkgIsWhatTheManifestSays(t *testing.T) {
	for _, goarch := range []string{Universal, "amd64", "arm64"} {
		m, err := Contents(macRelease(t, "v1.2.4-dev.3"), Pkg, goarch)
		if err != nil {
			t.Fatal(err)
		}
		l, err := listPkg(pkgBytes(t, m))
		if err != nil {
			t.Fatal(err)
		}
		want := map[string][3]string{Universal: {"devops-agent-1.2.4-dev.3.pkg", "arm64,x86_64"}, "amd64": {"devops-agent-1.2.4-dev.3-amd64.pkg", "x86_64"}, "arm64": {"devops-agent-1.2.4-dev.3-arm64.pkg", "arm64"}}[goarch]
		if l.Name != pkgID || l.Version != "1.2.4-dev.3" || l.Arch != want[1] || Pkg.FileName(m) != want[0] {
			t.Errorf("%s: %s %s for %s in %s", goarch, l.Name, l.Version, l.Arch, Pkg.FileName(m))
		}
		if len(l.Entries) != len(m.Files) {
			t.Fatalf("%d entries for %d files", len(l.Entries), len(m.Files))
		}
		for i, e := range l.Entries {
			f := m.Files[i]
			data, err := f.Read()
			if err != nil {
				t.Fatal(err)
			}
			sum, size := "", int64(0)
			if f.Kind == Regular {
				s := sha256.Sum256(data)
				sum, size = hex.EncodeToString(s[:]), int64(len(data))
			}
			if e != (Entry{Path: f.Path, Kind: f.Kind, Mode: f.Mode, Owner: f.Owner, Group: f.Group, Size: size, Time: m.Time, Target: f.Target, Sum: sum}) {
				t.Errorf("%s: %+v", f.Path, e)
			}
		}
		if len(l.Scripts) != 2 || l.Scripts["preinstall"] != m.Scripts.PreInstall || l.Scripts["postinstall"] != m.Scripts.PostInstall {
			t.Errorf("scripts: %v", l.Scripts)
		}
	}
}

// TestPkgProgramsSayWhatTheyAreMadeOf: the bill of materials of a release reads the files that were joined.
func TestPkgProgramsSayWhatTheyAreMadeOf(t *testing.T) {
	programs := sbomPrograms([]Manifest{macManifest(t, "v1.0.0")})
	var names []string
	for _, p := range programs {
		names = append(names, filepath.Base(p))
	}
	if got := strings.Join(names, " "); got != "devopsAgent_macos devopsAgent_macos_arm64 devopsWorker_macos devopsWorker_macos_arm64 upgrader_macos upgrader_macos_arm64" {
		t.Errorf("programs: %s", got)
	}
}

// TestPkgListing is what a package has, for people to look at when it changes: go test -update-pkg.
func TestPkgListing(t *testing.T) {
	l, err := listPkg(pkgBytes(t, macManifest(t, "v1.2.4-dev.3")))
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, e := range l.Entries {
		got += fmt.Sprintf("%s %s:%s %s %s\n", e.Mode|map[Kind]os.FileMode{Dir: os.ModeDir, Link: os.ModeSymlink}[e.Kind], e.Owner, e.Group, e.Path, e.Target)
	}
	name := filepath.Join("testdata", "pkg", "listing.txt")
	if *updatePkg {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(got), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the package has\n%s\nand had\n%s", got, want)
	}
}

// TestPkgIsReproducible, from another directory, too.
func TestPkgIsReproducible(t *testing.T) {
	one, two := pkgBytes(t, macManifest(t, "v1.0.0")), pkgBytes(t, macManifest(t, "v1.0.0"))
	if !bytes.Equal(one, two) {
		t.Error("two of the same release differ")
	}
	m := macManifest(t, "v1.0.0")
	m.Time = m.Time.In(time.FixedZone("somewhere", 3600))
	if !bytes.Equal(one, pkgBytes(t, m)) {
		t.Error("another zone gives another package")
	}
}

// TestPkgJobIsThatOfInstall: what "devopsAgent install" would write for the package's home, and time for a drain.
func TestPkgJobIsThatOfInstall(t *testing.T) {
	m := macManifest(t, "v1.0.0")
	text := ""
	for _, f := range m.Files {
		if f.Path == "/Library/LaunchDaemons/org.devops-agent.agent.plist" {
			text = string(f.Data)
		}
	}
	job, err := launchd.ParseJob([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	l := m.Layout
	if job.Label != l.Name || job.Program[0] != l.Vendor+"/upgrader" || job.StayDown != l.Home+"/.removed" || job.User != "" || job.ExitTimeout != pkgDrain+30*time.Second {
		t.Errorf("%+v", job)
	}
	example, err := os.ReadFile(filepath.Join("..", "agent", "config", "testdata", "agent.toml"))
	if err != nil || !strings.Contains(string(example), fmt.Sprintf("#timeout = %q", "10m")) {
		t.Errorf("drain.timeout is another than %s: %v", pkgDrain, err)
	}
}

func TestPkgRefusesManifests(t *testing.T) {
	for what, change := range map[string]func(m *Manifest){
		"no programs":               func(m *Manifest) { m.Files = m.Files[:1] },
		"an owner that is not root": func(m *Manifest) { m.Files[3].Owner = "ci" },
		"a group that macOS lacks":  func(m *Manifest) { m.Files[3].Group = "root" },
		"a file that others change": func(m *Manifest) { m.Files[3].Mode = 0o777 },
		"a configuration file":      func(m *Manifest) { m.Files[len(m.Files)-1].Kind = Config },
		"a file that is not there":  func(m *Manifest) { m.Files[len(m.Files)-1].Source = "nowhere" },
		"a time before 1970":        func(m *Manifest) { m.Time = time.Unix(-1, 0) },
		"a script of zsh":           func(m *Manifest) { m.Scripts.PreInstall = "#!/bin/zsh\n" },
		"a script without quotes":   func(m *Manifest) { m.Scripts.PostInstall += "rm -rf $3\n" },
	} {
		m := macManifest(t, "v1.0.0")
		change(&m)
		var out bytes.Buffer
		if err := Write(t.Context(), Pkg, m, Options{}, &out); err == nil || out.Len() > 0 {
			t.Errorf("%s: %v, %d bytes", what, err, out.Len())
		}
	}
	r := macRelease(t, "v1.0.0")
	if err := os.WriteFile(r.program("upgrader", "darwin", "arm64"), []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Contents(r, Pkg, Universal); err == nil || !strings.Contains(err.Error(), "upgrader") {
		t.Errorf("a program that is none: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Write(ctx, Pkg, macManifest(t, "v1.0.0"), Options{}, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestPkgByOthers: programs that know nothing of ours read the package, and agree on what is in it.
func TestPkgByOthers(t *testing.T) {
	check, err := filepath.Abs(filepath.Join("..", "lab", "pkg-check"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("needs bash")
	}
	out, err := exec.Command("bash", check, "--need").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if need := strings.TrimSpace(string(out)); need != "" {
		t.Skip("needs " + need)
	}
	m := macManifest(t, "v1.2.4-dev.3")
	name := filepath.Join(t.TempDir(), Pkg.FileName(m))
	good := pkgBytes(t, m)
	if err := os.WriteFile(name, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("bash", check, name).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	out, err = exec.Command("bash", check, "--list", name).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := ".\t40755\t0/0\n"
	for _, f := range m.Files {
		data, err := f.Read()
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf(".%s\t%o\t0/0", f.Path, map[Kind]int{Dir: 0o40000, Link: 0o120000, Regular: 0o100000}[f.Kind]|int(f.Mode))
		if f.Kind == Link {
			data = []byte(f.Target)
		}
		if f.Kind != Dir {
			sum := bom.NewSum()
			_, _ = sum.Write(data)
			line += fmt.Sprintf("\t%d\t%d", len(data), sum.Sum32())
		}
		if f.Kind == Link {
			line += "\t" + f.Target
		}
		want += line + "\n"
	}
	if string(out) != want {
		t.Errorf("they list\n%s\nthe manifest has\n%s", out, want)
	}

	// They are no rubber stamp.
	for what, bad := range map[string][]byte{"one bit": flip(good, len(good)-100), "a bill of other files": lying(t, m)} {
		if err := os.WriteFile(name, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("bash", check, name).CombinedOutput(); err == nil {
			t.Errorf("%s: they noticed nothing\n%s", what, out)
		}
	}
}

func flip(data []byte, at int) []byte {
	data = bytes.Clone(data)
	data[at] ^= 1
	return data
}

// rewrite takes a package apart and puts it together with other members.
func rewrite(t testing.TB, data []byte, change func(files []xar.File) []xar.File) []byte {
	t.Helper()
	a, err := xar.Open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	var files []xar.File
	for _, m := range a.Members {
		f := xar.File{Name: m.Name, Mode: m.Mode, Dir: m.Dir}
		if !m.Dir {
			if f.Data, err = a.Read(m.Name, 1<<24); err != nil {
				t.Fatal(err)
			}
		}
		files = append(files, f)
	}
	var out bytes.Buffer
	if err := xar.Write(&out, time.Unix(0, 0), change(files)); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// with gives one member another content.
func with(t testing.TB, name string, content func(old []byte) []byte) func([]xar.File) []xar.File {
	return func(files []xar.File) []xar.File {
		for i := range files {
			if files[i].Name == pkgComponent+"/"+name {
				files[i].Data = content(files[i].Data)
				return files
			}
		}
		t.Fatal("there is no " + name)
		return nil
	}
}

// lying is a package whose bill of materials says of one file that it is another's.
func lying(t testing.TB, m Manifest) []byte {
	return rewrite(t, pkgBytes(t, m), with(t, "Bom", func(old []byte) []byte {
		entries, err := bom.Read(old)
		if err != nil {
			t.Fatal(err)
		}
		entries[len(entries)-1].Mode = bom.TypeFile | 0o4755
		var out bytes.Buffer
		if err := bom.Write(&out, entries); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}))
}

// packODC makes a compressed archive.
func packODC(t testing.TB, headers []cpio.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	pack := newODC(&out)
	for _, h := range headers {
		if err := pack.add(h, make([]byte, h.Size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := pack.close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestPkgsThatLieAreNotListed: who verifies a package wants to know what would be installed, not what it says.
func TestPkgsThatLieAreNotListed(t *testing.T) {
	m := macManifest(t, "v1.0.0")
	good := pkgBytes(t, m)
	text := func(old, new string) func([]byte) []byte {
		return func(data []byte) []byte {
			if !bytes.Contains(data, []byte(old)) {
				t.Fatalf("there is no %s", old)
			}
			return bytes.ReplaceAll(data, []byte(old), []byte(new))
		}
	}
	dot := cpio.Header{Name: ".", Mode: cpio.TypeDir | 0o755}
	payload := func(headers ...cpio.Header) func([]byte) []byte {
		return func([]byte) []byte { return packODC(t, append([]cpio.Header{dot}, headers...)) }
	}
	exec := uint32(cpio.TypeFile | 0o755)
	for what, bad := range map[string][]byte{
		"a bill of other modes":            lying(t, m),
		"an empty payload":                 rewrite(t, good, with(t, "Payload", payload())),
		"a payload with a way out":         rewrite(t, good, with(t, "Payload", payload(cpio.Header{Name: "./../etc/x", Mode: exec}))),
		"a payload with an absolute path":  rewrite(t, good, with(t, "Payload", payload(cpio.Header{Name: "/etc/x", Mode: exec}))),
		"a device":                         rewrite(t, good, with(t, "Payload", payload(cpio.Header{Name: "./x", Mode: 0o020666}))),
		"a payload that is not compressed": rewrite(t, good, with(t, "Payload", func([]byte) []byte { return []byte("070707") })),
		"scripts that are none":            rewrite(t, good, with(t, "Scripts", func([]byte) []byte { return nil })),
		"a script more":                    rewrite(t, good, with(t, "Scripts", payload(cpio.Header{Name: "./preinstall", Mode: exec}, cpio.Header{Name: "./postinstall", Mode: exec}, cpio.Header{Name: "./more", Mode: exec}))),
		"a script less":                    rewrite(t, good, with(t, "Scripts", payload(cpio.Header{Name: "./preinstall", Mode: exec}))),
		"a script that cannot be run":      rewrite(t, good, with(t, "Scripts", payload(cpio.Header{Name: "./preinstall", Mode: exec}, cpio.Header{Name: "./postinstall", Mode: exec &^ 0o111}))),
		"another place":                    rewrite(t, good, with(t, "PackageInfo", text(`install-location="/"`, `install-location="/tmp"`))),
		"another count":                    rewrite(t, good, with(t, "PackageInfo", text(`numberOfFiles="`, `numberOfFiles="1`))),
		"no XML":                           rewrite(t, good, with(t, "PackageInfo", func([]byte) []byte { return []byte("pkg-info") })),
		"two components":                   rewrite(t, good, func(f []xar.File) []xar.File { return append(f, xar.File{Name: "PackageInfo"}) }),
		"none":                             rewrite(t, good, func(f []xar.File) []xar.File { return f[:1] }),
		"a component that is all":          good[:len(good)-1],
		"a flipped bit":                    flip(good, len(good)-1),
	} {
		if l, err := listPkg(bad); err == nil {
			t.Errorf("%s: listed as\n%s", what, l)
		}
	}
	// What productbuild makes of other compressors, or a bare component, is a package too.
	bare := rewrite(t, good, func(files []xar.File) []xar.File {
		var inner []xar.File
		for _, f := range files {
			if name, ok := strings.CutPrefix(f.Name, pkgComponent+"/"); ok {
				f.Name = name
				inner = append(inner, f)
			}
		}
		return inner
	})
	if l, err := listPkg(bare); err != nil || len(l.Entries) != len(m.Files) {
		t.Errorf("a bare component: %v, %d entries", err, len(l.Entries))
	}
}

// FuzzListPkg: whatever is a package by its outer form is read without harm.
func FuzzListPkg(f *testing.F) {
	info := []byte(`<pkg-info identifier="a" version="1" install-location="/"><payload numberOfFiles="1"/></pkg-info>`)
	var bill bytes.Buffer
	if err := bom.Write(&bill, []bom.Entry{{Path: ".", Mode: bom.TypeDir | 0o755}}); err != nil {
		f.Fatal(err)
	}
	archive := packODC(f, []cpio.Header{{Name: ".", Mode: cpio.TypeDir | 0o755}})
	f.Add(info, bill.Bytes(), archive, []byte(nil))
	f.Add(info, bill.Bytes(), archive, packODC(f, []cpio.Header{{Name: "./preinstall", Mode: cpio.TypeFile | 0o755, Size: 3}}))
	f.Fuzz(func(t *testing.T, info, bill, archive, scripts []byte) {
		files := []xar.File{{Name: "PackageInfo", Data: info}, {Name: "Bom", Data: bill}, {Name: "Payload", Data: archive}}
		if scripts != nil {
			files = append(files, xar.File{Name: "Scripts", Data: scripts})
		}
		var out bytes.Buffer
		if err := xar.Write(&out, time.Unix(0, 0), files); err != nil {
			t.Fatal(err)
		}
		l, err := listPkg(out.Bytes())
		if err == nil && strings.Contains(l.String(), "/../") {
			t.Fatalf("it leads out:\n%s", l)
		}
	})
}
