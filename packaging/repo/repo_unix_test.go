//go:build unix

package repo

import (
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Other accounts, as those of web servers, read what is published, whatever the umask of who publishes.
func TestEverybodyMayRead(t *testing.T) {
	files, out := demo(t, t.TempDir(), "1"), filepath.Join(t.TempDir(), "repo")
	old := syscall.Umask(0o077) // of the process: nothing runs beside this test
	defer syscall.Umask(old)
	publish(t, Repository{Dir: out, Keys: []*Key{aKey(t)}, Now: day(2), URL: "https://example.org"}, files...)
	err := filepath.WalkDir(out, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || strings.HasPrefix(entry.Name(), ".") {
			return err
		}
		info, err := entry.Info()
		want := fs.FileMode(0o644)
		if entry.IsDir() {
			want = 0o755
		}
		if err == nil && info.Mode().Perm() != want {
			t.Errorf("%s: %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
