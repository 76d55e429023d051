package swap

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestWriteFileCreatesAndReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), ".agent.properties")
	for _, text := range []string{"first", "second, and longer", ""} {
		if err := WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("%q, %v; want %q", got, err, text)
		}
		onlyFile(t, path)
	}
}

// onlyFile fails the test when anything but path is in its directory.
func onlyFile(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.Name() != filepath.Base(path) {
			t.Errorf("left behind: %s", entry.Name())
		}
	}
}

func TestWriteFileSetsTheModeWhateverTheOldOneWas(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a machine with Unix modes")
	}
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o600, 0o640, 0o755} {
		if err := WriteFile(path, []byte("x"), mode); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != mode {
			t.Errorf("mode %v, %v; want %v", info.Mode(), err, mode)
		}
	}
}

func TestWriteFileReplacesALinkAndNotItsTarget(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	if err := os.WriteFile(target, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Skip("needs a machine that lets us make links:", err)
	}
	if err := WriteFile(link, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(target); string(got) != "precious" {
		t.Errorf("the target of the link holds %q", got)
	}
	if info, err := os.Lstat(link); err != nil || !info.Mode().IsRegular() {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestWriteFileNamesTheFileInItsErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing", "f")
	err := WriteFile(path, nil, 0o600)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("%v", err)
	}
	dir := t.TempDir()
	if err := WriteFile(dir, nil, 0o600); err == nil {
		t.Error("a directory was replaced by a file")
	}
	entries, _ := os.ReadDir(filepath.Dir(dir))
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), ".tmp") {
			t.Errorf("left behind: %s", entry.Name())
		}
	}
}

func TestRubbishOfKilledProcessesIsRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), ".agent.properties")
	dir := filepath.Dir(path)
	old := time.Now().Add(-time.Hour)
	for name, stays := range map[string]bool{
		".agent.properties.123.tmp": false, ".agent.properties.x.tmp": true, ".agent.properties.bak": true,
		".agent.properties..tmp": true, ".other.123.tmp": true,
	} {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(p, nil, 0o600), os.Chtimes(p, old, old)); err != nil {
			t.Fatal(err)
		}
		if err := WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(p); (err == nil) != stays {
			t.Errorf("%s: %v", name, err)
		}
	}
	fresh := filepath.Join(dir, ".agent.properties.456.tmp") // of a writer at work
	if err := errors.Join(os.WriteFile(fresh, nil, 0o600), WriteFile(path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(fresh); err != nil {
		t.Error(err)
	}
}

var errPower = errors.New("the power is gone")

// dyingDisk fails. With once, only the call after the first left calls does; otherwise so does every later one, as
// after a power cut. What a failing write has written by then stays written.
type dyingDisk struct {
	real realDisk
	left int
	once bool
	log  []string
}

func (d *dyingDisk) alive(call string) error {
	d.log = append(d.log, call)
	d.left--
	if d.left == -1 || d.left < 0 && !d.once {
		return errPower
	}
	return nil
}

func (d *dyingDisk) create(dir, pattern string) (file, error) {
	if err := d.alive("create"); err != nil {
		return nil, err
	}
	f, err := d.real.create(dir, pattern)
	if err != nil {
		return nil, err
	}
	return &dyingFile{disk: d, f: f.(*os.File)}, nil
}

func (d *dyingDisk) adopt(f file, path string) error {
	if err := d.alive("adopt"); err != nil {
		return err
	}
	return d.real.adopt(f.(*dyingFile).f, path)
}

func (d *dyingDisk) rename(from, to string) error {
	if err := d.alive("rename"); err != nil {
		return err
	}
	return d.real.rename(from, to)
}

func (d *dyingDisk) remove(path string) error {
	if err := d.alive("remove"); err != nil {
		return err
	}
	return d.real.remove(path)
}

func (d *dyingDisk) syncDir(dir string) error {
	if err := d.alive("sync directory"); err != nil {
		return err
	}
	return d.real.syncDir(dir)
}

type dyingFile struct {
	disk *dyingDisk
	f    *os.File
}

func (f *dyingFile) Name() string { return f.f.Name() }

func (f *dyingFile) Write(b []byte) (int, error) {
	if err := f.disk.alive("write"); err != nil {
		n, _ := f.f.Write(b[:len(b)/2])
		return n, err
	}
	return f.f.Write(b)
}

func (f *dyingFile) Chmod(mode fs.FileMode) error {
	if err := f.disk.alive("chmod"); err != nil {
		return err
	}
	return f.f.Chmod(mode)
}

func (f *dyingFile) Sync() error {
	if err := f.disk.alive("sync"); err != nil {
		return err
	}
	return f.f.Sync()
}

func (f *dyingFile) Close() error {
	err := f.disk.alive("close")
	if cerr := f.f.Close(); err == nil {
		err = cerr
	}
	return err
}

func TestWriteFileSurvivesEveryCrash(t *testing.T) {
	before, after := bytes.Repeat([]byte("old\n"), 1000), bytes.Repeat([]byte("new\n"), 2000)
	for _, once := range []bool{false, true} {
		for n := 0; ; n++ {
			path := filepath.Join(t.TempDir(), "f")
			if err := os.WriteFile(path, before, 0o600); err != nil {
				t.Fatal(err)
			}
			d := &dyingDisk{left: n, once: once}
			err := writeFile(d, path, after, 0o600)
			got, rerr := os.ReadFile(path)
			if rerr != nil || !bytes.Equal(got, before) && !bytes.Equal(got, after) {
				t.Errorf("stopped in %q: %d bytes, %v", d.log, len(got), rerr)
			}
			if err == nil {
				if !bytes.Equal(got, after) {
					t.Error("success, and yet the old content")
				}
				if want := "create write adopt chmod sync close rename sync directory"; strings.Join(d.log, " ") != want {
					t.Errorf("order of calls: %q, want %q", d.log, want)
				}
				break
			}
			if !errors.Is(err, errPower) {
				t.Errorf("stopped in %q: %v", d.log, err)
			}
			if once { // the disk recovered: nothing may be left behind
				onlyFile(t, path)
			}
		}
	}
}

func TestNothingIsReadableBeforeItIsRenamed(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a machine with Unix modes")
	}
	path := filepath.Join(t.TempDir(), "secret")
	d := &dyingDisk{left: 1} // dies in the write, and cannot even remove the file
	if err := writeFile(d, path, []byte("secret"), 0o644); !errors.Is(err, errPower) {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	if info, err := entries[0].Info(); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}
