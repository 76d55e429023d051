package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// linux, macos and windows are the layouts of a JDK, without a directory at the top.
func linux() []one {
	return []one{
		{name: "bin/"}, {"bin/java", 0o755, "\x7fELF java"}, {"bin/keytool", 0o755, "\x7fELF keytool"},
		{name: "lib/"}, {"lib/modules", 0o644, strings.Repeat("modules ", 40_000)}, {"lib/jspawnhelper", 0o755, "\x7fELF"},
		{name: "legal/"}, {name: "legal/java.base/"}, {name: "legal/java.base/LICENSE", body: "GPL"},
		{name: "legal/java.xml/"}, link("legal/java.xml/LICENSE", "../java.base/LICENSE"),
		{name: "release", body: `JAVA_VERSION="17.0.12"`},
	}
}

func macos() []one {
	return []one{
		{name: "Contents/"}, {name: "Contents/Info.plist", body: "<plist/>"},
		{name: "Contents/MacOS/"}, link("Contents/MacOS/libjli.dylib", "../Home/lib/libjli.dylib"),
		{name: "Contents/Home/"}, {name: "Contents/Home/bin/"}, {"Contents/Home/bin/java", 0o755, "\xcf\xfa\xed\xfe"},
		{name: "Contents/Home/lib/"}, {"Contents/Home/lib/libjli.dylib", 0o644, "jli"},
		// a framework: a link to a directory, and one that goes through it
		{name: "Contents/Frameworks/F/Versions/A/F", body: "f"},
		link("Contents/Frameworks/F/Versions/Current", "A"), link("Contents/Frameworks/F/F", "Versions/Current/F"),
	}
}

func windows() []one {
	return []one{
		{name: "bin/"}, {"bin/java.exe", 0o755, "MZ"}, {"bin/server/jvm.dll", 0o644, "MZ"},
		{name: "lib/"}, {"lib/modules", 0o644, "modules"}, {name: "release", body: "x"},
	}
}

// below puts everything into one directory.
func below(top string, entries []one) []one {
	moved := []one{{name: top + "/"}}
	for _, e := range entries {
		e.name = top + "/" + e.name
		moved = append(moved, e)
	}
	return moved
}

func withoutDirectories(entries []one) []one {
	return slices.DeleteFunc(slices.Clone(entries), func(e one) bool { return strings.HasSuffix(e.name, "/") })
}

// dotted is how "tar -c ." and "zip ./x" write names.
func dotted(entries []one) []one {
	all := []one{{name: "./"}}
	for _, e := range entries {
		e.name = "./" + e.name
		all = append(all, e)
	}
	return all
}

// unlessWindows leaves the links out where the machine may be unable to make them.
func unlessWindows(entries []one) []one {
	if runtime.GOOS != "windows" {
		return entries
	}
	return slices.DeleteFunc(slices.Clone(entries), func(e one) bool { return e.mode&fs.ModeSymlink != 0 })
}

func TestIntoUnpacksEveryLayoutOfAJDK(t *testing.T) {
	type layout struct {
		goos    string
		entries []one
	}
	for _, l := range []layout{{"linux", unlessWindows(linux())}, {"darwin", unlessWindows(macos())}, {"windows", windows()}} {
		for name, entries := range map[string][]one{
			"plain":                 l.entries,
			"with a top directory":  below("jdk-17.0.12+7", l.entries),
			"with dots":             dotted(l.entries),
			"without directories":   withoutDirectories(l.entries),
			"a top, no directories": withoutDirectories(below("jdk8u392-b08", l.entries)),
			"with what macOS adds":  append(below("jdk", l.entries), one{name: "__MACOSX/._jdk", body: "x"}, one{name: ".DS_Store"}),
		} {
			for format, pack := range map[string]func(testing.TB, ...one) []byte{"zip": zipOf, "tar.gz": tgzOf} {
				t.Run(l.goos+"/"+name+"/"+format, func(t *testing.T) {
					p := newPlace(t, pack(t, entries...))
					bytes, count, err := Size(t.Context(), p.archive, Limits{})
					if err != nil {
						t.Fatal(err)
					}
					if err := Into(t.Context(), p.archive, p.dir, Limits{}); err != nil {
						t.Fatal(err)
					}
					p.untouched(t)
					wrote, made := sound(t, p.dir)
					if made != count || bytes < wrote || bytes > wrote+int64(made)*block {
						t.Errorf("%d entries with %d bytes; Size said %d with %d", made, wrote, count, bytes)
					}
					root, err := JDK(p.dir, l.goos)
					if err != nil {
						t.Fatal(err)
					}
					if info, err := os.Stat(Java(root, l.goos)); err != nil || !info.Mode().IsRegular() {
						t.Errorf("java: %v, %v", info, err)
					}
					for _, e := range entries {
						if e.fileMode().IsDir() || e.fileMode()&fs.ModeSymlink != 0 {
							continue
						}
						if data, err := os.ReadFile(filepath.Join(p.dir, filepath.FromSlash(e.name))); err != nil || string(data) != e.body {
							t.Errorf("%s: %d bytes, %v", e.name, len(data), err)
						}
					}
				})
			}
		}
	}
}

func TestLinksInsideAreKept(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a machine where anybody may make symbolic links")
	}
	for format, data := range map[string][]byte{"zip": zipOf(t, macos()...), "tar.gz": tgzOf(t, macos()...)} {
		t.Run(format, func(t *testing.T) {
			p := newPlace(t, data)
			if err := Into(t.Context(), p.archive, p.dir, Limits{}); err != nil {
				t.Fatal(err)
			}
			for name, want := range map[string]string{
				"Contents/MacOS/libjli.dylib":            "../Home/lib/libjli.dylib",
				"Contents/Frameworks/F/F":                "Versions/Current/F",
				"Contents/Frameworks/F/Versions/Current": "A",
			} {
				if target, err := os.Readlink(filepath.Join(p.dir, name)); err != nil || target != want {
					t.Errorf("%s -> %s, %v; want %s", name, target, err, want)
				}
			}
			if data, err := os.ReadFile(filepath.Join(p.dir, "Contents/Frameworks/F/F")); err != nil || string(data) != "f" {
				t.Errorf("through two links: %q, %v", data, err)
			}
		})
	}
}

func TestRingsAndLooseEndsOfLinksAreHarmless(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a machine where anybody may make symbolic links")
	}
	entries := []one{
		link("self", "self"), link("a", "b"), link("b", "a"), link("deep/ring", "ring/../ring/x"), link("loose", "no/such/thing"),
		link("deep/up", ".."), link("deep/here", "."), link("deep/gone", "no/../../deep/up"), {name: "deep/f"}, link("through", "deep/f/.."),
	}
	for format, data := range map[string][]byte{"zip": zipOf(t, entries...), "tar.gz": tgzOf(t, entries...)} {
		t.Run(format, func(t *testing.T) {
			p := newPlace(t, data)
			if err := Into(t.Context(), p.archive, p.dir, Limits{}); err != nil {
				t.Fatal(err)
			}
			sound(t, p.dir)
			p.untouched(t)
			if err := os.RemoveAll(p.dir); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestModesAreMasked(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a machine with Unix modes")
	}
	entries := []one{
		{"plain", 0o600, "x"}, {"open", 0o666, "x"}, {"mine", 0o700, "x"}, {"others", 0o601, "x"}, {"locked", 0o400, "x"},
		{"setuid", fs.ModeSetuid | 0o755, "x"}, {"setgid", fs.ModeSetgid | 0o644, "x"}, {"sticky/", fs.ModeDir | fs.ModeSticky | 0o777, ""},
		{"closed/", fs.ModeDir | 0o100, ""}, {"closed/f", 0o600, "x"}, {name: "implied/f", body: "x"},
	}
	want := map[string]fs.FileMode{
		".": fs.ModeDir | 0o755, "plain": 0o644, "open": 0o644, "mine": 0o755, "others": 0o755, "locked": 0o644, "setuid": 0o755, "setgid": 0o644,
		"sticky": fs.ModeDir | 0o755, "closed": fs.ModeDir | 0o755, "closed/f": 0o644, "implied": fs.ModeDir | 0o755, "implied/f": 0o644,
	}
	for format, data := range map[string][]byte{"zip": zipOf(t, entries...), "tar.gz": tgzOf(t, entries...)} {
		t.Run(format, func(t *testing.T) {
			p := newPlace(t, data)
			if err := Into(t.Context(), p.archive, p.dir, Limits{}); err != nil {
				t.Fatal(err)
			}
			for name, mode := range want {
				if info, err := os.Lstat(filepath.Join(p.dir, name)); err != nil || info.Mode() != mode {
					t.Errorf("%s: %v, %v; want %v", name, info.Mode(), err, mode)
				}
			}
		})
	}
}

// A zip made by Java, or on Windows, knows no modes: the java in it has to run all the same, as it does with the
// original.
func TestZipWithoutModesCanBeExecuted(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a machine with Unix modes")
	}
	data := zipOf(t, one{"bin/java", 0o644, "x"})
	at := bytes.LastIndex(data, []byte(centralMagic))
	for by, unix := range map[byte]bool{0: false, 10: false, madeByUnix: true, madeByMacOS: true} {
		for _, recorded := range []bool{false, true} {
			data[at+5] = by
			data[at+40], data[at+41] = 0, 0
			if recorded {
				data[at+40], data[at+41] = 0o644&0xff, 0x80|0o644>>8
			}
			p := newPlace(t, data)
			if err := Into(t.Context(), p.archive, p.dir, Limits{}); err != nil {
				t.Fatal(err)
			}
			want := fs.FileMode(0o755)
			if unix && recorded {
				want = 0o644
			}
			if info, err := os.Stat(filepath.Join(p.dir, "bin/java")); err != nil || info.Mode() != want {
				t.Errorf("made by %d, mode recorded: %v: %v, %v; want %v", by, recorded, info.Mode(), err, want)
			}
		}
	}
}

func TestTarOfEveryDialect(t *testing.T) {
	long := strings.Repeat("directory/", 20) + strings.Repeat("n", 200)
	entries := func(format tar.Format) []titled {
		return []titled{
			{tar.Header{Typeflag: tar.TypeReg, Name: long, Mode: 0o755, Size: 4, Format: format}, "long"},
			{tar.Header{Typeflag: tar.TypeReg, Name: "größe", Mode: 0o644, Size: 4, Format: format}, "utf8"},
			{tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: long, Mode: 0o644, Format: format}, ""},
		}
	}
	git := titled{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "3b1"}}}
	pax, gnu := tarHeaders(t, append([]titled{git}, entries(tar.FormatPAX)...)...), tarHeaders(t, entries(tar.FormatGNU)...)
	half := len(pax) / 2
	for name, data := range map[string][]byte{
		"PAX":                    gz(t, pax),
		"GNU":                    gz(t, gnu),
		"several members":        slices.Concat(gz(t, pax[:half]), gz(t, nil), gz(t, pax[half:])),
		"padded to a tape block": gz(t, append(slices.Clone(gnu), make([]byte, 10240)...)),
		"padding in a member":    slices.Concat(gz(t, gnu), gz(t, make([]byte, 512))),
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t, data)
			if err := Into(t.Context(), p.archive, p.dir, Limits{}); err != nil {
				t.Fatal(err)
			}
			for name, want := range map[string]string{long: "long", "größe": "utf8", "hard": "long"} {
				if data, err := os.ReadFile(filepath.Join(p.dir, name)); err != nil || string(data) != want {
					t.Errorf("%s: %q, %v; want %q", name, data, err, want)
				}
			}
			sound(t, p.dir)
			if info, err := os.Stat(filepath.Join(p.dir, "hard")); err != nil || runtime.GOOS != "windows" && info.Mode() != 0o755 {
				t.Errorf("a hard link has the mode of its file: %v, %v", info.Mode(), err)
			}
		})
	}
}

func TestSparseFileIsFilled(t *testing.T) {
	p := newPlace(t, gz(t, sparseTar(t, 10_000)))
	if err := Into(t.Context(), p.archive, p.dir, Limits{}); err != nil {
		t.Fatal(err)
	}
	want := append([]byte("data"), make([]byte, 9_996)...)
	if data, err := os.ReadFile(filepath.Join(p.dir, "sparse")); err != nil || !bytes.Equal(data, want) {
		t.Errorf("%d bytes, %v", len(data), err)
	}
}

// What the usual tools write is read, and the same comes out as from them.
func TestIntoAgreesWithTheTools(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a machine with Unix modes and links")
	}
	source := newPlace(t, tgzOf(t, macos()...))
	if err := Into(t.Context(), source.archive, source.dir, Limits{}); err != nil {
		t.Fatal(err)
	}
	want := listing(t, source.dir, "")
	for name, args := range map[string][]string{
		"zip":       {"zip", "-q", "-r", "-y", "OUT", "."},
		"zip -D":    {"zip", "-q", "-r", "-y", "-D", "OUT", "."},
		"zip -0":    {"zip", "-q", "-r", "-y", "-0", "OUT", "."},
		"zip -fz":   {"zip", "-q", "-r", "-y", "-fz", "OUT", "."},
		"tar":       {"tar", "-czf", "OUT", "."},
		"tar pax":   {"tar", "--format=pax", "-czf", "OUT", "."},
		"tar names": {"tar", "-czf", "OUT", "Contents"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(args[0]); err != nil {
				t.Skip("needs a machine with " + args[0])
			}
			out := filepath.Join(t.TempDir(), "out.zip")
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Dir = source.dir
			cmd.Args[slices.Index(cmd.Args, "OUT")] = out
			if text, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			dir := filepath.Join(t.TempDir(), "jdk")
			if err := Into(t.Context(), out, dir, Limits{}); err != nil {
				t.Fatal(err)
			}
			if got := listing(t, dir, ""); got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestIntoTouchesNoDirectoryThatExists(t *testing.T) {
	p := newPlace(t, zipOf(t, one{name: "f"}))
	for _, dir := range []string{filepath.Join(p.top, "outside"), filepath.Join(p.top, "outside", "precious")} {
		if err := Into(t.Context(), p.archive, dir, Limits{}); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if err := Into(t.Context(), p.archive, filepath.Join(p.top, "no", "parent"), Limits{}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	p.untouched(t)
}

func TestArchiveThatCannotBeRead(t *testing.T) {
	p := newPlace(t, nil)
	if err := os.Remove(p.archive); err != nil {
		t.Fatal(err)
	}
	if err := Into(t.Context(), p.archive, p.dir, Limits{}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	p.gone(t)
	if err := Into(t.Context(), p.top, p.dir, Limits{}); !errors.Is(err, ErrFormat) {
		t.Errorf("a directory: %v", err)
	}
	p.gone(t)
}

// countdown is a context that ends when it is asked for the nth time.
type countdown struct {
	context.Context
	left int
}

func (c *countdown) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

func TestIntoStopsWhereverItIs(t *testing.T) {
	entries := []one{{name: "a/b", body: strings.Repeat("x", 3*bufferSize)}, {name: "c", body: "y"}}
	if runtime.GOOS != "windows" {
		entries = append(entries, link("l", "c"))
	}
	for format, data := range map[string][]byte{"zip": zipOf(t, entries...), "tar.gz": tgzOf(t, entries...)} {
		t.Run(format, func(t *testing.T) {
			for n := 0; ; n++ {
				p := newPlace(t, data)
				err := Into(&countdown{t.Context(), n}, p.archive, p.dir, Limits{})
				if err == nil {
					if n < 6 {
						t.Errorf("asked %d times only", n)
					}
					t.Logf("stopped at %d places", n)
					return
				}
				if !errors.Is(err, context.Canceled) {
					t.Fatalf("after %d: %v", n, err)
				}
				p.gone(t)
				p.untouched(t)
				if _, _, err := Size(&countdown{t.Context(), 0}, p.archive, Limits{}); !errors.Is(err, context.Canceled) {
					t.Errorf("size: %v", err)
				}
			}
		})
	}
}

func TestJDKThatIsNotThere(t *testing.T) {
	for name, entries := range map[string][]one{
		"empty":           nil,
		"another system":  windows(),
		"two directories": append(below("a", linux()), one{name: "b/x"}),
		"too deep":        below("a", below("b", linux())),
		"a directory":     {{name: "bin/java/"}},
	} {
		p := newPlace(t, tgzOf(t, unlessWindows(entries)...))
		if err := Into(t.Context(), p.archive, p.dir, Limits{}); err != nil {
			t.Fatal(err)
		}
		root, err := JDK(p.dir, "linux")
		var hint interface{ Hint() string }
		if err == nil || !errors.As(err, &hint) || !strings.Contains(hint.Hint(), "linux") {
			t.Errorf("%s: %q, %v", name, root, err)
		}
	}
	if _, err := JDK(filepath.Join(t.TempDir(), "none"), "linux"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func BenchmarkInto(b *testing.B) {
	var entries []one
	// Half noise, half text: a stream that packs to about half, in the sizes that a JDK has.
	noise := make([]byte, 1<<20)
	state := uint32(1)
	for i := range noise {
		state = state*1664525 + 1013904223
		noise[i] = byte(state >> 24)
		if i%512 >= 256 {
			noise[i] = "public static void main "[i%24]
		}
	}
	for i := range 60 {
		entries = append(entries, one{"lib/big" + string(rune('a'+i%26)) + string(rune('a'+i/26)), 0o644, string(noise)})
	}
	entries = append(entries, one{"lib/modules", 0o644, strings.Repeat(string(noise), 30)})
	for i := range 400 {
		entries = append(entries, one{"legal/m" + string(rune('a'+i%26)) + string(rune('a'+i/26)) + "/LICENSE", 0o644, string(noise[i : i+3000])})
	}
	for _, format := range []struct {
		name string
		pack func(testing.TB, ...one) []byte
	}{{"zip", zipOf}, {"tar.gz", tgzOf}} {
		b.Run(format.name, func(b *testing.B) {
			data := format.pack(b, entries...)
			dir := b.TempDir()
			archive := filepath.Join(dir, "archive")
			if err := os.WriteFile(archive, data, 0o600); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				out := filepath.Join(dir, "out")
				if err := Into(b.Context(), archive, out, Limits{}); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := os.RemoveAll(out); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(len(data))/1e6, "MB-archive")
		})
	}
}

func TestProgramsOfAJDKAreExecutable(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a machine with Unix modes")
	}
	for _, goos := range []string{"linux", "darwin", "windows"} {
		root, outside := t.TempDir(), filepath.Join(t.TempDir(), "outside")
		home := filepath.Dir(filepath.Dir(Java(root, goos)))
		want := map[string]fs.FileMode{
			"bin/java": 0o755, "bin/jcmd": 0o750, "bin/secret": 0o700, "jre/bin/keytool": 0o755, "lib/jexec": 0o755, "lib/jspawnhelper": 0o755,
			"jre/lib/amd64/jspawnhelper": 0o755, "lib/modules": 0o644, "bin/server/libjvm.so": 0o644, "lib/security/cacerts": 0o600, "conf/bin": 0o644,
		}
		before := map[string]fs.FileMode{"bin/jcmd": 0o640, "bin/secret": 0o600, "lib/security/cacerts": 0o600}
		write := func(path string, mode fs.FileMode) {
			t.Helper()
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("x"), 0o600), os.Chmod(path, mode)); err != nil {
				t.Fatal(err)
			}
		}
		for name := range want {
			mode, odd := before[name]
			if !odd {
				mode = 0o644
			}
			write(filepath.Join(home, filepath.FromSlash(name)), mode)
			if goos == "windows" {
				want[name] = mode
			}
		}
		write(outside, 0o644)
		if err := errors.Join(os.Symlink(outside, filepath.Join(home, "bin", "out")), os.Symlink("../lib/modules", filepath.Join(home, "bin", "in")),
			os.Mkdir(filepath.Join(home, "bin", "dir"), 0o700)); err != nil {
			t.Fatal(err)
		}
		if err := Executable(root, goos); err != nil {
			t.Fatalf("%s: %v", goos, err)
		}
		for name, mode := range want {
			info, err := os.Lstat(filepath.Join(home, filepath.FromSlash(name)))
			if err != nil || info.Mode() != mode {
				t.Errorf("%s: %s: %v, %v; want %v", goos, name, info.Mode(), err, mode)
			}
		}
		if info, err := os.Stat(outside); err != nil || info.Mode() != 0o644 {
			t.Errorf("%s: a file outside has mode %v, %v", goos, info.Mode(), err)
		}
	}
	if err := Executable(filepath.Join(t.TempDir(), "none"), "linux"); err == nil {
		t.Error("a JDK that is not there")
	}
	if err := Executable(t.TempDir(), "linux"); err != nil {
		t.Error(err)
	}
}
