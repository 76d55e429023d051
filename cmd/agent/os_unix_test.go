//go:build unix

package main

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"

	"github.com/devops-agent/devops-agent/service"
)

// TestWhatRootMakesBelongsToTheAgent: and nothing else does, whatever links lie in the home.
func TestWhatRootMakesBelongsToTheAgent(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give files away")
	}
	home, outside := t.TempDir(), t.TempDir()
	files(t, outside, "precious", "hard")
	files(t, home, ".agent.properties", ".path", "runtime/agent.lock", "workspace/p-1/file", "devopsAgent", "mine")
	if err := os.Symlink(filepath.Join(outside, "precious"), filepath.Join(home, ".cert")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(outside, "hard"), filepath.Join(home, ".debug")); err != nil {
		t.Fatal(err)
	}
	owner := func(path string) uint32 {
		t.Helper()
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t).Uid
	}
	inst, err := service.Open(home)
	if err != nil {
		t.Fatal(err)
	}
	if err := giveToOwner(inst, ""); err != nil || owner(filepath.Join(home, ".path")) != 0 {
		t.Errorf("root's own home: %v", err)
	}
	if err := os.Chown(home, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if err := giveToOwner(inst, ""); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint32{".agent.properties": 65534, ".path": 65534, "runtime": 65534, "runtime/agent.lock": 65534, "workspace": 65534,
		"workspace/p-1": 0, "devopsAgent": 0, "mine": 0, ".cert": 0, ".debug": 0} {
		if got := owner(filepath.Join(home, name)); got != want {
			t.Errorf("%s belongs to %d, want %d", name, got, want)
		}
	}
	for _, name := range []string{"precious", "hard"} {
		if owner(filepath.Join(outside, name)) != 0 {
			t.Errorf("%s was given away", name)
		}
	}
	if err := os.Chown(home, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := giveToOwner(inst, "nobody"); err != nil || owner(home) == 0 {
		t.Errorf("to a named account: %v", err)
	}
	if err := giveToOwner(inst, "no-such-account"); err == nil {
		t.Error("to an account that is none")
	}
}

// TestVerbsJoinTheSession: the account's own systemd is found after "su", too; what is set stays, and a bus that is no
// socket is none.
func TestVerbsJoinTheSession(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs Linux: no other system has sessions of systemd")
	}
	base := t.TempDir()
	dir := filepath.Join(base, strconv.Itoa(os.Geteuid()))
	bus := filepath.Join(dir, "bus")
	check := func(want string) {
		t.Helper()
		if err := joinSession(base); err != nil || os.Getenv("XDG_RUNTIME_DIR") != want {
			t.Errorf("%q, %v; want %q", os.Getenv("XDG_RUNTIME_DIR"), err, want)
		}
	}
	t.Setenv("XDG_RUNTIME_DIR", "")
	check("")
	files(t, dir, "bus")
	check("")
	if err := os.Remove(bus); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir) // the path of a socket is short
	listener, err := net.Listen("unix", "bus")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	check(dir)
	t.Setenv("XDG_RUNTIME_DIR", "/mine")
	check("/mine")
}
