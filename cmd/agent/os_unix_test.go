//go:build unix

package main

import (
	"os"
	"path/filepath"
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
