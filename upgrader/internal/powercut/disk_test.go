package powercut

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/devops-agent/devops-agent/upgrader/swap"
)

var _ swap.Disk = (*Disk)(nil)

// found lists the different trees that Cuts yields, each as one line.
func found(d *Disk) []string {
	seen := make(map[string]bool)
	for cut := range d.Cuts(1<<12, 1) {
		seen[line(cut)] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

func line(d *Disk) string {
	var parts []string
	tree := d.Tree()
	for _, path := range slices.Sorted(maps.Keys(tree)) {
		parts = append(parts, fmt.Sprintf("%s=%q", path, tree[path]))
	}
	return strings.Join(parts, " ")
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestWhatACutMayLeave(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(d *Disk) error
		want []string
	}{
		"nothing done": {func(d *Disk) error { return nil }, []string{`/a="A" /d="/"`}},
		"a new file": {func(d *Disk) error { return d.Write("/n", []byte("12"), 0o600) },
			[]string{`/a="A" /d="/"`, `/a="A" /d="/" /n=""`, `/a="A" /d="/" /n="1"`, `/a="A" /d="/" /n="12"`, `/a="A" /d="/" /n="\x00\x00"`}},
		"a new file, forced": {func(d *Disk) error {
			return errors.Join(d.Write("/n", []byte("12"), 0o600), d.Sync("/n"))
		}, []string{`/a="A" /d="/"`, `/a="A" /d="/" /n="12"`}},
		"a new file whose directory is forced": {func(d *Disk) error {
			return errors.Join(d.Write("/n", []byte("1"), 0o600), d.Sync("/"))
		}, []string{`/a="A" /d="/" /n=""`, `/a="A" /d="/" /n="1"`, `/a="A" /d="/" /n="\x00"`}},
		"file and directory forced": {func(d *Disk) error {
			return errors.Join(d.Write("/n", []byte("12"), 0o600), d.Sync("/n"), d.Sync("/"))
		}, []string{`/a="A" /d="/" /n="12"`}},
		"a rename": {func(d *Disk) error { return d.Rename("/a", "/d/b") },
			[]string{`/a="A" /d="/"`, `/d="/" /d/b="A"`}},
		"a rename, one of its directories forced": {func(d *Disk) error {
			return errors.Join(d.Rename("/a", "/d/b"), d.Sync("/d"))
		}, []string{`/d="/" /d/b="A"`}},
		"two renames of one file stay in order": {func(d *Disk) error {
			return errors.Join(d.Rename("/a", "/b"), d.Rename("/b", "/c"))
		}, []string{`/a="A" /d="/"`, `/b="A" /d="/"`, `/c="A" /d="/"`}},
		"forcing the second forces the first": {func(d *Disk) error {
			return errors.Join(d.Rename("/a", "/d/b"), d.Mkdir("/e", 0o700), d.Sync("/"), d.Rename("/d/b", "/e/c"), d.Sync("/e"))
		}, []string{`/d="/" /e="/" /e/c="A"`}},
		"two files in any order": {func(d *Disk) error {
			return errors.Join(d.Rename("/a", "/b"), d.Remove("/d"), d.Sync("/"), d.Link("/b", "/x"), d.Link("/b", "/y"))
		}, []string{`/b="A"`, `/b="A" /x="A"`, `/b="A" /x="A" /y="A"`, `/b="A" /y="A"`}},
		"an exchange": {func(d *Disk) error { return d.Exchange("/a", "/d") },
			[]string{`/a="/" /d="A"`, `/a="A" /d="/"`}},
		"a removed directory": {func(d *Disk) error {
			return errors.Join(d.Rename("/a", "/d/a"), d.Sync("/"), d.Remove("/d"))
		}, []string{``, `/.trash-1="/"`, `/.trash-1="/" /.trash-1/a="A"`, `/d="/"`, `/d="/" /d/a="A"`}},
	} {
		d := New()
		d.Seed("/a", "A", 0o644)
		d.SeedDir("/d")
		must(t, c.do(d))
		if got := found(d); !slices.Equal(got, c.want) {
			t.Errorf("%s:\n%s\nwant\n%s", name, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
	}
}

func TestOrderedNamesSurviveAsAPrefix(t *testing.T) {
	d := New()
	d.Ordered = true
	d.Seed("/a", "A", 0o644)
	d.SeedDir("/d")
	d.SeedDir("/e")
	must(t, d.Link("/a", "/x"), d.Link("/a", "/d/y"), d.Link("/a", "/e/z"))
	want := []string{`/a="A" /d="/" /d/y="A" /e="/" /e/z="A" /x="A"`, `/a="A" /d="/" /d/y="A" /e="/" /x="A"`, `/a="A" /d="/" /e="/"`, `/a="A" /d="/" /e="/" /x="A"`}
	if got := found(d); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	must(t, d.Sync("/d"))
	if got := found(d); !slices.Equal(got, want[:2]) {
		t.Errorf("after sync: %q", got)
	}
}

func TestModesAreForcedWithTheirFile(t *testing.T) {
	modes := func(d *Disk) (modes []fs.FileMode) {
		for cut := range d.Cuts(64, 1) {
			info, err := cut.Lstat("/a")
			must(t, err)
			modes = append(modes, info.Mode())
		}
		slices.Sort(modes)
		return modes
	}
	d := New()
	d.Seed("/a", "A", 0o600)
	must(t, d.Chmod("/a", 0o755))
	if got := modes(d); !slices.Equal(got, []fs.FileMode{0o600, 0o755}) {
		t.Error(got)
	}
	must(t, d.Sync("/a"))
	if got := modes(d); !slices.Equal(got, []fs.FileMode{0o755}) {
		t.Error(got)
	}
}

func TestPowerGoesAfterNCalls(t *testing.T) {
	d := New()
	d.After(1)
	must(t, d.Mkdir("/d", 0o700))
	if _, err := d.Lstat("/d"); err != nil {
		t.Error("reading takes no power:", err)
	}
	if err := d.Mkdir("/e", 0o700); !errors.Is(err, ErrPower) {
		t.Error(err)
	}
	if _, err := d.Lstat("/d"); !errors.Is(err, ErrPower) {
		t.Error(err)
	}
	if d.Calls() != 1 {
		t.Error(d.Calls())
	}
	if got := found(d); !slices.Equal(got, []string{``, `/d="/"`}) {
		t.Errorf("%q", got)
	}
	for cut := range d.Cuts(1, 1) {
		must(t, cut.Mkdir("/f", 0o700))
	}
}

func TestManyCutsAreSampled(t *testing.T) {
	d := New()
	for i := range 40 {
		must(t, d.Write(fmt.Sprintf("/%02d", i), []byte("x"), 0o600))
	}
	lines := func(seed uint64) (lines []string) {
		for cut := range d.Cuts(100, seed) {
			lines = append(lines, line(cut))
		}
		return lines
	}
	one, again, two := lines(1), lines(1), lines(2)
	if len(one) != 100 || !slices.Equal(one, again) || slices.Equal(one, two) {
		t.Error(len(one), slices.Equal(one, again), slices.Equal(one, two))
	}
	if one[0] != line(d) || one[1] != "" {
		t.Errorf("the sample begins with %q and %q", one[0], one[1])
	}
}

func TestLinksAreFollowedAsOnARealDisk(t *testing.T) {
	d := New()
	d.Seed("/home/.jdk.a/bin/java", "elf", 0o755)
	d.SeedLink("/home/jdk", ".jdk.a")
	d.SeedLink("/abs", "/home/jdk/bin")
	d.SeedLink("/home/up", "../home/jdk")
	d.SeedLink("/loop", "loop")
	for _, path := range []string{"/home/jdk/bin/java", "/abs/java", "/home/up/bin/java"} {
		if got, err := d.ReadFile(path); err != nil || string(got) != "elf" {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	for _, path := range []string{"/loop", "/home/jdk/none", "/home/jdk/bin/java/x"} {
		if _, err := d.ReadFile(path); err == nil {
			t.Error(path, "was read")
		}
	}
	if info, err := d.Lstat("/home/jdk"); err != nil || info.Mode().Type() != fs.ModeSymlink {
		t.Error(info, err)
	}
}

func TestErrorsAreThoseOfARealDisk(t *testing.T) {
	type call func(d swap.Disk, dir string) error
	for name, c := range map[string]call{
		"write over":           func(d swap.Disk, dir string) error { return d.Write(dir+"/f", nil, 0o600) },
		"write nowhere":        func(d swap.Disk, dir string) error { return d.Write(dir+"/no/f", nil, 0o600) },
		"copy nothing":         func(d swap.Disk, dir string) error { return d.Copy(dir+"/no", dir+"/x") },
		"copy over":            func(d swap.Disk, dir string) error { return d.Copy(dir+"/f", dir+"/g") },
		"mkdir again":          func(d swap.Disk, dir string) error { return d.Mkdir(dir+"/d", 0o700) },
		"mkdir over":           func(d swap.Disk, dir string) error { return d.Mkdir(dir+"/f", 0o700) },
		"mkdir nowhere":        func(d swap.Disk, dir string) error { return d.Mkdir(dir+"/no/d", 0o700) },
		"link over":            func(d swap.Disk, dir string) error { return d.Link(dir+"/f", dir+"/g") },
		"link nothing":         func(d swap.Disk, dir string) error { return d.Link(dir+"/no", dir+"/x") },
		"rename nothing":       func(d swap.Disk, dir string) error { return d.Rename(dir+"/no", dir+"/x") },
		"rename over":          func(d swap.Disk, dir string) error { return d.Rename(dir+"/f", dir+"/g") },
		"rename file over dir": func(d swap.Disk, dir string) error { return d.Rename(dir+"/f", dir+"/d") },
		"rename dir over full": func(d swap.Disk, dir string) error { return d.Rename(dir+"/e", dir+"/d") },
		"exchange nothing":     func(d swap.Disk, dir string) error { return d.Exchange(dir+"/d", dir+"/no") },
		"remove nothing":       func(d swap.Disk, dir string) error { return d.Remove(dir + "/no") },
		"remove tree":          func(d swap.Disk, dir string) error { return d.Remove(dir + "/d") },
		"sync nothing":         func(d swap.Disk, dir string) error { return d.Sync(dir + "/no") },
		"read nothing":         func(d swap.Disk, dir string) error { _, err := d.ReadFile(dir + "/no"); return err },
		"list nothing":         func(d swap.Disk, dir string) error { _, err := d.ReadDir(dir + "/no"); return err },
		"adopt from nothing":   func(d swap.Disk, dir string) error { return d.Adopt(dir+"/f", dir+"/no") },
		"own from nothing":     func(d swap.Disk, dir string) error { return d.Own(dir+"/f", dir+"/no") },
		"chmod nothing":        func(d swap.Disk, dir string) error { return d.Chmod(dir+"/no", 0o600) },
		"readlink of a file":   func(d swap.Disk, dir string) error { _, err := d.Readlink(dir + "/f"); return err },
	} {
		model, dir := New(), t.TempDir()
		model.SeedDir(dir)
		for _, d := range []swap.Disk{model, swap.Real()} {
			must(t, d.Mkdir(dir+"/d", 0o700), d.Mkdir(dir+"/e", 0o700), d.Write(dir+"/f", []byte("F"), 0o600),
				d.Write(dir+"/g", []byte("G"), 0o600), d.Write(dir+"/d/x", nil, 0o600))
		}
		got, want := c(model, dir), c(swap.Real(), dir)
		if errors.Is(want, swap.ErrNoExchange) {
			continue // there is none to compare with
		}
		if (got == nil) != (want == nil) {
			t.Errorf("%s: %v; a real disk: %v", name, got, want)
		}
		for _, kind := range []error{fs.ErrNotExist, fs.ErrExist} {
			if errors.Is(got, kind) != errors.Is(want, kind) && !strings.HasPrefix(name, "rename ") {
				t.Errorf("%s: %v; a real disk: %v", name, got, want)
			}
		}
		names, err := model.ReadDir(dir)
		realNames, rerr := swap.Real().ReadDir(dir)
		if !slices.Equal(names, realNames) || err != nil || rerr != nil {
			t.Errorf("%s left %q, %v; on a real disk %q, %v", name, names, err, realNames, rerr)
		}
	}
}

func TestFaultsAndRefusals(t *testing.T) {
	d := New()
	d.Seed("/a", "A", 0o600)
	d.Seed("/b", "B", 0o600)
	d.NoExchange, d.NoSymlink = true, true
	if err := d.Exchange("/a", "/b"); !errors.Is(err, swap.ErrNoExchange) {
		t.Error(err)
	}
	if err := d.Symlink("a", "/c"); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	full := errors.New("no space left on device")
	d.Fault = func(op, path string) error {
		if op == "write" && path == "/c" {
			return full
		}
		return nil
	}
	if err := d.Write("/c", nil, 0o600); !errors.Is(err, full) {
		t.Error(err)
	}
	must(t, d.Write("/d", nil, 0o600))
	if _, err := d.Lstat("/c"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
