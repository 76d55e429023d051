package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/gofrs/flock"
)

func TestLockOwnerInTheKernelsList(t *testing.T) {
	const list = "1: POSIX  ADVISORY  WRITE 17 fe:00:500 0 0\n" +
		"2: OFDLCK ADVISORY  WRITE -1 fe:00:500 0 EOF\n" +
		"3: FLOCK  ADVISORY  WRITE 18 00:2a:500 0 EOF\n" +
		"4: FLOCK  ADVISORY  WRITE 19 fe:00:500 0 EOF\n" +
		"4: -> FLOCK  ADVISORY  WRITE 20 fe:00:500 0 EOF\n" +
		"garbage\n5: FLOCK ADVISORY WRITE x fe:00:600 0 EOF\n"
	for _, tc := range []struct {
		major, minor uint32
		inode        uint64
		want         int
	}{
		{0xfe, 0, 500, 19}, {0, 0x2a, 500, 18}, {0xfe, 0, 501, 0}, {0xfe, 0, 600, 0},
		{8, 1, 500, 19}, // a file system that shows another device
	} {
		if got := ownerIn([]byte(list), tc.major, tc.minor, tc.inode); got != tc.want {
			t.Errorf("%x:%x:%d: %d, want %d", tc.major, tc.minor, tc.inode, got, tc.want)
		}
	}
}

func TestLockOwner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.lock")
	if locked(path) || lockOwner(path) != 0 {
		t.Error("no file, and locked")
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("looking made the file")
	}
	lock := flock.New(path)
	if got, err := lock.TryLock(); !got || err != nil {
		t.Fatal(got, err)
	}
	if !locked(path) {
		t.Error("not locked")
	}
	if owner := lockOwner(path); owner != os.Getpid() {
		t.Errorf("owner %d, want %d", owner, os.Getpid())
	}
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	if locked(path) {
		t.Error("still locked")
	}
	if p := describe(os.Getpid()); p == nil || p.Executable == "" || p.User == "" || p.Since == nil || p.halted {
		t.Errorf("%+v", p)
	}
	if describe(0) != nil {
		t.Error("there is no process 0")
	}
}

func FuzzOwnerIn(f *testing.F) {
	f.Add([]byte("4: FLOCK  ADVISORY  WRITE 19 fe:00:500 0 EOF\n"))
	f.Add([]byte("4: -> FLOCK\n"))
	f.Fuzz(func(t *testing.T, list []byte) {
		if pid := ownerIn(list, 0xfe, 0, 500); pid < 0 {
			t.Errorf("pid %d", pid)
		}
	})
}
