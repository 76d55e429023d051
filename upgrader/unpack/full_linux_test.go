package unpack

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// smallDisk mounts a file system in memory with that much space.
func smallDisk(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("needs a machine where we may mount a file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

func TestFullDiskSaysSoAndKeepsNothing(t *testing.T) {
	noise := make([]byte, 300_000)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(noise)
	entries := []one{{name: "d/e/a", body: string(noise)}, {name: "d/e/b", body: string(noise)}, link("l", "d")}
	for format, data := range map[string][]byte{"zip": zipOf(t, entries...), "tar.gz": tgzOf(t, entries...)} {
		for full, options := range map[string]string{"space": "size=512k", "inodes": "size=10m,nr_inodes=4", "links": "size=10m,nr_inodes=6"} {
			t.Run(format+"/"+full, func(t *testing.T) {
				p := newPlace(t, data)
				disk := smallDisk(t, options)
				err := Into(t.Context(), p.archive, filepath.Join(disk, "jdk"), Limits{})
				var hint interface{ Hint() string }
				if !errors.Is(err, syscall.ENOSPC) || !errors.As(err, &hint) || !strings.Contains(hint.Hint(), "space") {
					t.Errorf("%v", err)
				}
				if left, err := os.ReadDir(disk); err != nil || len(left) != 0 {
					t.Errorf("left behind: %v, %v", left, err)
				}
				p.untouched(t)
			})
		}
	}
}

func TestReadOnlyDisk(t *testing.T) {
	disk := smallDisk(t, "ro")
	p := newPlace(t, zipOf(t, one{name: "a"}))
	if err := Into(t.Context(), p.archive, filepath.Join(disk, "jdk"), Limits{}); !errors.Is(err, syscall.EROFS) {
		t.Error(err)
	}
}

// Where the umask takes everything from others, the JDK still belongs to everybody.
func TestModesDoNotDependOnTheUmask(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	TestModesAreMasked(t)
}
