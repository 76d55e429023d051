package swap_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// refusingDisk is a real one on a file system that cannot do everything.
type refusingDisk struct {
	swap.Disk
	noSymlink bool
}

func (d refusingDisk) Exchange(a, b string) error {
	return fmt.Errorf("exchange %s and %s: %w", a, b, swap.ErrNoExchange)
}

func (d refusingDisk) Symlink(target, path string) error {
	if d.noSymlink {
		return &os.LinkError{Op: "symlink", Old: target, New: path, Err: errors.ErrUnsupported}
	}
	return d.Disk.Symlink(target, path)
}

// realDisks are this machine's and, where it can do more than they, poorer ones.
func realDisks() map[string]swap.Disk {
	return map[string]swap.Disk{
		"as it is":                     swap.Real(),
		"without exchange":             refusingDisk{Disk: swap.Real()},
		"without exchange and symlink": refusingDisk{Disk: swap.Real(), noSymlink: true},
	}
}

// twoJDKs makes home with jdk, "old", and jdk_2, "new".
func twoJDKs(t *testing.T) (jdk, fresh string) {
	t.Helper()
	home := t.TempDir()
	jdk, fresh = filepath.Join(home, "jdk"), filepath.Join(home, "jdk_2")
	if err := errors.Join(plant(swap.Real(), jdk, "old"), plant(swap.Real(), fresh, "new")); err != nil {
		t.Fatal(err)
	}
	return jdk, fresh
}

func TestDirSurvivesEveryCrash(t *testing.T) {
	for name, real := range realDisks() {
		for _, rounds := range []int{1, 2} { // the second time, live may be a link of ours
			for _, once := range []bool{false, true} {
				for n := 0; ; n++ {
					jdk, fresh := twoJDKs(t)
					want := []string{"old", "new"}
					if rounds == 2 {
						if err := errors.Join(swap.Dir(real, jdk, fresh, fresh), real.Remove(fresh), plant(real, fresh, "newer")); err != nil {
							t.Fatal(err)
						}
						want = []string{"new", "newer"}
					}
					d := &dyingDisk{Disk: real, left: n, once: once}
					err := swap.Dir(d, jdk, fresh, fresh)
					if err != nil && !errors.Is(err, errPower) {
						t.Fatalf("%s: crash after %d calls: %v", name, n, err)
					}
					if !once {
						if rerr := swap.RecoverDir(swap.Real(), jdk, fresh, fresh); rerr != nil {
							t.Fatalf("%s: crash after %q: recover: %v", name, d.log, rerr)
						}
					}
					got := []string{release(real, jdk), release(real, fresh)}
					if slices.Equal(got, want) {
						slices.Reverse(want)
						if err == nil {
							t.Errorf("%s: success, and yet the old one", name)
						}
					} else if slices.Reverse(want); !slices.Equal(got, want) {
						t.Errorf("%s: crash after %q: jdk holds %q, the other place %q", name, d.log, got[0], got[1])
					}
					if err == nil {
						break
					}
				}
			}
		}
	}
}

func TestDirAndBackOnRealDisks(t *testing.T) {
	for name, d := range realDisks() {
		jdk, fresh := twoJDKs(t)
		home := filepath.Dir(jdk)
		for i := range 4 {
			if err := swap.Dir(d, jdk, fresh, filepath.Join(home, "jdk_1")); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if err := swap.Dir(d, jdk, filepath.Join(home, "jdk_1"), fresh); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if now, other := release(d, jdk), release(d, fresh); now != "old" || other != "new" {
				t.Errorf("%s, round %d: %s and %s", name, i, now, other)
			}
		}
		if err := errors.Join(d.Remove(fresh), swap.Sweep(home)); err != nil {
			t.Error(err)
		}
		names, err := d.ReadDir(home)
		if err != nil || len(names) > 2 || release(d, jdk) != "old" {
			t.Errorf("%s: %q, %v", name, names, err)
		}
	}
}

func TestFileOnARealDisk(t *testing.T) {
	home := t.TempDir()
	live, fresh, backup := filepath.Join(home, "devopsAgent"), filepath.Join(home, "new"), filepath.Join(home, "old")
	if err := errors.Join(os.WriteFile(live, []byte("old"), 0o700), os.WriteFile(fresh, []byte("new"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := swap.File(swap.Real(), live, fresh, backup); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{live: "new", backup: "old"} {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	if info, err := os.Stat(live); err != nil || runtime.GOOS != "windows" && info.Mode() != 0o700 {
		t.Error(info.Mode(), err)
	}
	if names, err := swap.Real().ReadDir(home); err != nil || len(names) != 2 {
		t.Errorf("%q, %v", names, err)
	}
}

// watch calls look in a tight loop until stop, which returns how often it did, and the first error.
func watch(look func() error) (stop func() (int, error)) {
	var group sync.WaitGroup
	var first error
	count, end := 0, make(chan struct{})
	group.Go(func() {
		for {
			select {
			case <-end:
				return
			default:
			}
			if err := look(); err != nil && first == nil {
				first = err
			}
			count++
		}
	})
	return func() (int, error) {
		close(end)
		group.Wait()
		return count, first
	}
}

// lookAt opens, reads and stats what is below live as a process that starts there does.
func lookAt(live string) func() error {
	java, text := filepath.Join(live, "bin", "java"), filepath.Join(live, "release")
	return func() error {
		if _, err := os.Stat(java); err != nil {
			return err
		}
		if _, err := os.Lstat(live); err != nil {
			return err
		}
		if _, err := os.ReadDir(filepath.Join(live, "bin")); err != nil {
			return err
		}
		got, err := os.ReadFile(java)
		if err == nil && !strings.HasPrefix(string(got), "java ") {
			err = fmt.Errorf("java holds %q", got)
		}
		if err == nil {
			_, err = os.ReadFile(text)
		}
		return err
	}
}

func TestReadersOfADirectoryNeverMissIt(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a machine that can exchange directories or replace links")
	}
	for name, d := range map[string]swap.Disk{"exchange": swap.Real(), "link": refusingDisk{Disk: swap.Real()}} {
		t.Run(name, func(t *testing.T) { readWhileReplaced(t, d, t.TempDir(), 200) })
	}
}

func readWhileReplaced(t *testing.T, d swap.Disk, home string, times int) {
	t.Helper()
	live := filepath.Join(home, "jdk")
	replace := func(text string) {
		fresh := filepath.Join(home, "jdk_"+text) // stays: whoever opened something of the old one may go on
		if err := errors.Join(plant(d, fresh, text), swap.Dir(d, live, fresh, fresh)); err != nil {
			t.Fatal(err)
		}
	}
	replace("first")
	replace("second") // from here on it is a link, where there is no exchange
	before, err := os.Lstat(live)
	if err != nil {
		t.Fatal(err)
	}
	one, two := watch(lookAt(live)), watch(lookAt(live))
	start := time.Now()
	for i := range times {
		replace(fmt.Sprint(i))
	}
	took := time.Since(start)
	for _, stop := range []func() (int, error){one, two} {
		if looks, err := stop(); err != nil {
			t.Errorf("a reader failed: %v", err)
		} else {
			t.Logf("%d replacements, %v each, of a %v; %d looks", times, took/time.Duration(times), before.Mode().Type(), looks)
		}
	}
}

func TestReadersOfAFileNeverMissIt(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a machine that replaces files that are open")
	}
	const replacements = 200
	home := t.TempDir()
	live, fresh, backup := filepath.Join(home, "devopsAgent"), filepath.Join(home, "new"), filepath.Join(home, "old")
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(live, "program 0")
	stop := watch(func() error {
		if _, err := os.Stat(live); err != nil {
			return err
		}
		got, err := os.ReadFile(live)
		if err == nil && !strings.HasPrefix(string(got), "program ") {
			err = fmt.Errorf("live holds %q", got)
		}
		return err
	})
	for i := range replacements {
		write(fresh, fmt.Sprint("program ", i))
		if err := errors.Join(swap.File(swap.Real(), live, fresh, backup), os.Remove(backup)); err != nil {
			t.Fatal(err)
		}
	}
	if looks, err := stop(); err != nil {
		t.Errorf("a reader failed: %v", err)
	} else {
		t.Logf("%d replacements, %d looks", replacements, looks)
	}
}

func TestRemove(t *testing.T) {
	d, dir := swap.Real(), t.TempDir()
	tree, outside := filepath.Join(dir, "tree"), filepath.Join(dir, "outside")
	if err := errors.Join(plant(d, tree, "x"), d.Write(outside, []byte("precious"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := d.Symlink(outside, filepath.Join(tree, "link")); err != nil && runtime.GOOS != "windows" {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(filepath.Join(tree, "release"), 0o400), os.Chmod(filepath.Join(tree, "bin"), 0o500)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing
		if err := d.Remove(tree); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := d.ReadDir(dir); err != nil || !slices.Equal(names, []string{"outside"}) {
		t.Errorf("%q, %v", names, err)
	}
	if err := d.Remove(outside); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(outside); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestWriteAndCopyMakeNewFiles(t *testing.T) {
	d, dir := swap.Real(), t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := errors.Join(d.Write(a, []byte("text"), 0o644), d.Copy(a, b)); err != nil {
		t.Fatal(err)
	}
	if got, err := d.ReadFile(b); err != nil || string(got) != "text" {
		t.Errorf("%q, %v", got, err)
	}
	if info, err := d.Lstat(b); err != nil || runtime.GOOS != "windows" && info.Mode() != 0o600 {
		t.Error(info.Mode(), err)
	}
	if err := d.Write(a, nil, 0o600); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if err := d.Copy(b, a); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if err := d.Copy(dir, filepath.Join(dir, "c")); err == nil {
		t.Error("a directory was copied as a file")
	}
	if names, err := d.ReadDir(dir); err != nil || !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("%q, %v", names, err)
	}
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	old := time.Now().Add(-time.Hour)
	ahead := time.Now().Add(365 * 24 * time.Hour) // the clock was set back
	gone, stays := []string{".trash-1", ".trash-22", ".agent.properties.7.tmp", ".x.8.tmp", ".old-1-devopsAgent.exe"},
		[]string{".fresh.9.tmp", ".trash-x", ".trash-", ".old-devopsAgent.exe", ".agent.properties", "x.8.tmp", ".8.tmp", ".trash-3", ".dir.4.tmp"}
	for _, name := range append(slices.Clone(gone), stays...) {
		path := filepath.Join(dir, name)
		var err error
		switch {
		case name == ".trash-3":
			err = os.WriteFile(path, nil, 0o600) // ours are directories
		case strings.HasPrefix(name, ".trash-"), name == ".dir.4.tmp":
			err = plant(swap.Real(), path, "x")
		default:
			err = os.WriteFile(path, nil, 0o600)
		}
		when := old
		switch name {
		case ".fresh.9.tmp":
			when = time.Now()
		case ".x.8.tmp":
			when = ahead
		}
		if err := errors.Join(err, os.Chtimes(path, when, when)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := swap.Sweep(dir); err != nil {
			t.Fatal(err)
		}
		names, err := swap.Real().ReadDir(dir)
		slices.Sort(stays)
		if err != nil || !slices.Equal(names, stays) {
			t.Errorf("left: %q, %v; want %q", names, err, stays)
		}
	}
	for _, name := range []string{".jdk.1", ".jdk.2", ".jdk.3", ".jre.1", ".jre.x"} {
		if err := plant(swap.Real(), filepath.Join(dir, name), "x"); err != nil {
			t.Fatal(err)
		}
	}
	link := func(target, name string) error { return swap.Real().Symlink(target, filepath.Join(dir, name)) }
	if err := link(".jdk.2", "jdk"); !errors.Is(err, errors.ErrUnsupported) {
		if err := errors.Join(err, link(".jdk.1", "jdk_9"), link(".jre.x", "jre")); err != nil {
			t.Fatal(err)
		}
		for _, want := range [][]string{{".jdk.1", ".jdk.2", ".jre.1", ".jre.x", "jdk", "jdk_9", "jre"}, {".jdk.2", ".jre.1", ".jre.x", "jdk", "jre"}} {
			if err := swap.Sweep(dir); err != nil {
				t.Fatal(err)
			}
			names, err := swap.Real().ReadDir(dir)
			names = slices.DeleteFunc(names, func(name string) bool { return slices.Contains(stays, name) })
			if err != nil || !slices.Equal(names, want) {
				t.Errorf("left: %q, %v; want %q", names, err, want)
			}
			_ = os.Remove(filepath.Join(dir, "jdk_9"))
		}
	}
	if err := swap.Sweep(filepath.Join(dir, "missing")); err != nil {
		t.Error(err)
	}
}

func TestSyncTree(t *testing.T) {
	d, dir := swap.Real(), filepath.Join(t.TempDir(), "jdk")
	if err := plant(d, dir, "x"); err != nil {
		t.Fatal(err)
	}
	_ = os.Symlink("nowhere", filepath.Join(dir, "dangling")) // not every machine lets us
	if err := os.Chmod(filepath.Join(dir, "release"), 0o400); err != nil {
		t.Fatal(err)
	}
	if err := swap.SyncTree(dir); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "release")); err != nil || info.Mode().Perm()&0o200 != 0 {
		t.Error(info.Mode(), err)
	}
	missing := filepath.Join(dir, "no")
	if err := swap.SyncTree(missing); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Error(err)
	}
}
