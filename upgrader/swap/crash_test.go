package swap_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/devops-agent/devops-agent/upgrader/swap"
)

var errPower = errors.New("the power is gone")

// dyingDisk is the real one until left mutating calls are made. Then, with once, one call fails; otherwise so does every
// later one, as after a power cut. A call that fails has done nothing, except a Write, which has done half.
type dyingDisk struct {
	swap.Disk
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

func (d *dyingDisk) Write(path string, data []byte, mode fs.FileMode) error {
	if err := d.alive("write"); err != nil {
		if !d.once {
			_ = d.Disk.Write(path, data[:len(data)/2], mode)
		}
		return err
	}
	return d.Disk.Write(path, data, mode)
}

func (d *dyingDisk) Copy(from, to string) error {
	if err := d.alive("copy"); err != nil {
		return err
	}
	return d.Disk.Copy(from, to)
}

func (d *dyingDisk) Mkdir(path string, mode fs.FileMode) error {
	if err := d.alive("mkdir"); err != nil {
		return err
	}
	return d.Disk.Mkdir(path, mode)
}

func (d *dyingDisk) Symlink(target, path string) error {
	if err := d.alive("symlink"); err != nil {
		return err
	}
	return d.Disk.Symlink(target, path)
}

func (d *dyingDisk) Link(from, to string) error {
	if err := d.alive("link"); err != nil {
		return err
	}
	return d.Disk.Link(from, to)
}

func (d *dyingDisk) Adopt(path, like string) error {
	if err := d.alive("adopt"); err != nil {
		return err
	}
	return d.Disk.Adopt(path, like)
}

func (d *dyingDisk) Own(path, like string) error {
	if err := d.alive("own"); err != nil {
		return err
	}
	return d.Disk.Own(path, like)
}

func (d *dyingDisk) Chmod(path string, mode fs.FileMode) error {
	if err := d.alive("chmod"); err != nil {
		return err
	}
	return d.Disk.Chmod(path, mode)
}

func (d *dyingDisk) Rename(from, to string) error {
	if err := d.alive("rename"); err != nil {
		return err
	}
	return d.Disk.Rename(from, to)
}

func (d *dyingDisk) Exchange(a, b string) error {
	if err := d.alive("exchange"); err != nil {
		return err
	}
	return d.Disk.Exchange(a, b)
}

func (d *dyingDisk) Remove(path string) error {
	if err := d.alive("remove"); err != nil {
		return err
	}
	return d.Disk.Remove(path)
}

func (d *dyingDisk) Sync(path string) error {
	call := "sync"
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		call = "sync-directory"
	}
	if err := d.alive(call); err != nil {
		return err
	}
	return d.Disk.Sync(path)
}

func TestWriteFileSurvivesEveryCrash(t *testing.T) {
	before, after := bytes.Repeat([]byte("old\n"), 1000), bytes.Repeat([]byte("new\n"), 2000)
	for _, once := range []bool{false, true} {
		for n := 0; ; n++ {
			path := filepath.Join(t.TempDir(), "f")
			if err := os.WriteFile(path, before, 0o600); err != nil {
				t.Fatal(err)
			}
			d := &dyingDisk{Disk: swap.Real(), left: n, once: once}
			err := swap.WriteFileOn(d, path, after, 0o600)
			got, rerr := os.ReadFile(path)
			if rerr != nil || !bytes.Equal(got, before) && !bytes.Equal(got, after) {
				t.Errorf("stopped in %q: %d bytes, %v", d.log, len(got), rerr)
			}
			if err == nil {
				if !bytes.Equal(got, after) {
					t.Error("success, and yet the old content")
				}
				if want := "write own chmod sync rename sync-directory"; strings.Join(d.log, " ") != want {
					t.Errorf("order of calls: %q, want %q", d.log, want)
				}
				break
			}
			if !errors.Is(err, errPower) {
				t.Errorf("stopped in %q: %v", d.log, err)
			}
			if once { // the disk recovered: nothing may be left behind
				if names, err := swap.Real().ReadDir(filepath.Dir(path)); err != nil || len(names) != 1 {
					t.Errorf("stopped in %q: left behind: %q, %v", d.log, names, err)
				}
			}
		}
	}
}

func TestNothingIsReadableBeforeItIsRenamed(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a machine with Unix modes")
	}
	path := filepath.Join(t.TempDir(), "secret")
	d := &dyingDisk{Disk: swap.Real(), left: 0} // dies in the write, and cannot even remove the file
	if err := swap.WriteFileOn(d, path, []byte("secret"), 0o644); !errors.Is(err, errPower) {
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
