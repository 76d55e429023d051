package swap_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// variable tells the test's own process that it is that.
const variable = "SWAP_TEST_PROCESS"

// inOwnProcess runs the test that calls it once more in a process whose mounts go with it; true in there.
func inOwnProcess(t *testing.T) bool {
	t.Helper()
	if os.Getenv(variable) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), variable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) {
		t.Skip("needs a machine that lets root mount:", err)
	}
	if t.Logf("%s", out); err != nil {
		t.Error(err)
	}
	return false
}

// TestWithoutRenameat2 has the kernel refuse it, as one before 3.15 does, or one whose file system cannot.
func TestWithoutRenameat2(t *testing.T) {
	if !inOwnProcess(t) {
		return
	}
	refuse(t, unix.SYS_RENAMEAT2, unix.EINVAL)
	t.Run("tmpfs", func(t *testing.T) {
		dir := t.TempDir()
		mount(t, "tmpfs", dir, "tmpfs", "size=8m")
		useFileSystem(t, dir, false)
	})
	t.Run("ext2", func(t *testing.T) { useFileSystem(t, ext2(t), false) })
}

// refuse has every call of a kind end with errno, in this process, for good.
func refuse(t *testing.T, call uint32, errno syscall.Errno) {
	t.Helper()
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the number of the call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: call, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, err := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&program))); err != 0 {
		t.Skip("needs a machine with seccomp:", err)
	}
}

func TestOnRealFileSystems(t *testing.T) {
	if !inOwnProcess(t) {
		return
	}
	t.Run("tmpfs", func(t *testing.T) {
		dir := t.TempDir()
		mount(t, "tmpfs", dir, "tmpfs", "size=8m")
		useFileSystem(t, dir, true)
	})
	t.Run("ext2", func(t *testing.T) { useFileSystem(t, ext2(t), true) })
	t.Run("overlay", func(t *testing.T) {
		dir, lower := overlay(t)
		useFileSystem(t, dir, true)

		// A directory of the layer below cannot be renamed, neither in one step nor in two: nothing must have changed.
		d, jdk, fresh := swap.Real(), filepath.Join(dir, "baked"), filepath.Join(dir, "baked_2")
		if _, err := os.Stat(filepath.Join(lower, "baked", "release")); err != nil {
			t.Fatal(err)
		}
		if err := plant(d, fresh, "new"); err != nil {
			t.Fatal(err)
		}
		err := swap.Dir(d, jdk, fresh, fresh)
		if !errors.Is(err, syscall.EXDEV) {
			t.Errorf("replaced a directory of the layer below: %v", err)
		}
		var hint interface{ Hint() string }
		if !errors.As(err, &hint) || !strings.Contains(hint.Hint(), jdk) {
			t.Errorf("%v has no hint", err)
		}
		if now, other := release(d, jdk), release(d, fresh); now != "old" || other != "new" {
			t.Errorf("%s and %s", now, other)
		}
		if names, err := d.ReadDir(dir); err != nil || slices.ContainsFunc(names, func(name string) bool { return name[0] == '.' }) {
			t.Errorf("left: %q, %v", names, err)
		}
	})
}

// ext2 mounts a file of 8 MB.
func ext2(t *testing.T) (dir string) {
	t.Helper()
	dir, image := t.TempDir(), filepath.Join(t.TempDir(), "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 8<<20)); err != nil {
		t.Fatal(err)
	}
	tool(t, "mkfs.ext2", "-q", image)
	tool(t, "mount", "-o", "loop", image, dir)
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

// overlay mounts one file system over a directory "baked" below.
func overlay(t *testing.T) (dir, lower string) {
	t.Helper()
	base := t.TempDir()
	mount(t, "tmpfs", base, "tmpfs", "size=16m")
	dir, lower = filepath.Join(base, "merged"), filepath.Join(base, "lower")
	upper, work := filepath.Join(base, "upper"), filepath.Join(base, "work")
	for _, path := range []string{dir, lower, upper, work} {
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := plant(swap.Real(), filepath.Join(lower, "baked"), "old"); err != nil {
		t.Fatal(err)
	}
	mount(t, "overlay", dir, "overlay", fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,redirect_dir=off", lower, upper, work))
	return dir, lower
}

func mount(t *testing.T, source, dir, kind, options string) {
	t.Helper()
	if err := unix.Mount(source, dir, kind, 0, options); err != nil {
		t.Skipf("needs a machine with %s: %v", kind, err)
	}
	t.Cleanup(func() { unmount(t, dir) })
}

func unmount(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Unmount(dir, 0); err != nil {
		t.Error(err)
	}
}

func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skip("needs a machine with", name)
	}
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Skipf("needs a machine on which this works: %s %q: %v\n%s", name, args, err, out)
	}
}

// useFileSystem replaces directories and files below dir, as readers watch, as crashes happen, and when it is full.
func useFileSystem(t *testing.T, dir string, exchanges bool) {
	t.Helper()
	d := swap.Real()
	home := func(name string) string {
		home := filepath.Join(dir, name)
		if err := d.Mkdir(home, 0o700); err != nil {
			t.Fatal(err)
		}
		return home
	}
	probe := home("probe")
	a, b := filepath.Join(probe, "a"), filepath.Join(probe, "b")
	if err := errors.Join(d.Mkdir(a, 0o700), d.Mkdir(b, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := d.Exchange(a, b); !errors.Is(err, swap.ErrNoExchange) && (err != nil || !exchanges) {
		t.Errorf("exchange: %v", err)
	} else {
		t.Logf("exchange: %v", err) // what a file system can is the kernel's choice
	}
	readers := home("readers")
	readWhileReplaced(t, d, readers, 40)
	if err := d.Remove(readers); err != nil {
		t.Error(err)
	}
	for n, done := 0, false; !done; n++ {
		at := home(fmt.Sprint("crash", n))
		jdk, fresh := filepath.Join(at, "jdk"), filepath.Join(at, "jdk_2")
		if err := errors.Join(plant(d, jdk, "old"), plant(d, fresh, "new")); err != nil {
			t.Fatal(err)
		}
		err := swap.Dir(&dyingDisk{Disk: d, left: n}, jdk, fresh, fresh)
		done = err == nil
		if err := swap.RecoverDir(d, jdk, fresh, fresh); err != nil {
			t.Fatal(err)
		}
		if now, other := release(d, jdk), release(d, fresh); now+other != "oldnew" && now+other != "newold" || done && now != "new" {
			t.Errorf("crash after %d calls: %s and %s", n, now, other)
		}
		if err := d.Remove(at); err != nil {
			t.Error(err)
		}
	}
	full := home("full")
	jdk, fresh := filepath.Join(full, "jdk"), filepath.Join(full, "jdk_2")
	agent, next := filepath.Join(full, "devopsAgent"), filepath.Join(full, "next")
	if err := errors.Join(plant(d, jdk, "old"), plant(d, fresh, "new"),
		d.Write(agent, []byte("old"), 0o700), d.Write(next, []byte("new"), 0o600), d.Sync(next)); err != nil {
		t.Fatal(err)
	}
	fill(t, filepath.Join(dir, "ballast"))
	if err := swap.WriteFile(agent, make([]byte, 1<<16), 0o700); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("the disk is full, and yet: %v", err)
	}
	if got, err := d.ReadFile(agent); err != nil || string(got) != "old" {
		t.Errorf("full: %q, %v", got, err)
	}
	if err := swap.File(d, agent, next, filepath.Join(full, "old")); err != nil {
		t.Errorf("full: %v", err)
	}
	if err := swap.Dir(d, jdk, fresh, fresh); err != nil {
		t.Errorf("full: %v", err)
	}
	if now, other := release(d, jdk), release(d, fresh); now != "new" || other != "old" {
		t.Errorf("full: %s and %s", now, other)
	}
	if err := errors.Join(os.Remove(filepath.Join(dir, "ballast")), d.Remove(full), d.Remove(probe)); err != nil {
		t.Error(err)
	}
	if err := swap.Sweep(dir); err != nil {
		t.Error(err)
	}
	names, err := d.ReadDir(dir)
	names = slices.DeleteFunc(names, func(name string) bool { return name == "lost+found" || name == "baked" })
	if err != nil || len(names) > 0 {
		t.Errorf("left: %q, %v", names, err)
	}
}

// fill writes until there is no room for another byte.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 16; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
