package swap

import (
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
