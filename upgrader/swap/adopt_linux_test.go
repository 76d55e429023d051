package swap_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/devops-agent/devops-agent/upgrader/swap"
)

func TestAdoptTakesOverWhatTheOldFileHad(t *testing.T) {
	dir := t.TempDir()
	old, fresh := filepath.Join(dir, "old"), filepath.Join(dir, "fresh")
	if err := errors.Join(os.WriteFile(old, nil, 0o600), os.Chmod(old, 0o751), os.WriteFile(fresh, []byte("new"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(old, "user.note", []byte("mine"), 0); err != nil {
		t.Skip("needs a file system with extended attributes:", err)
	}
	root := os.Geteuid() == 0
	var capability, list []byte
	if root {
		if err := os.Chown(old, 1234, 5678); err != nil {
			t.Skip("needs a machine that lets root give files away:", err)
		}
		// cap_net_bind_service, permitted and effective; an access list that lets user 99 read
		capability = []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		list = []byte{2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 4, 0, 99, 0, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255,
			16, 0, 5, 0, 255, 255, 255, 255, 32, 0, 1, 0, 255, 255, 255, 255}
		for name, value := range map[string][]byte{"security.capability": capability, "system.posix_acl_access": list} {
			if err := unix.Setxattr(old, name, value, 0); err != nil {
				t.Logf("without %s: %v", name, err)
			}
		}
	}
	if err := swap.Real().Adopt(fresh, old); err != nil {
		t.Fatal(err)
	}
	was, err := os.Stat(old)
	is, ierr := os.Stat(fresh)
	if err != nil || ierr != nil || is.Mode() != was.Mode() {
		t.Errorf("%v, %v; %v, %v", is.Mode(), ierr, was.Mode(), err)
	}
	if stat := is.Sys().(*syscall.Stat_t); root && (stat.Uid != 1234 || stat.Gid != 5678) {
		t.Errorf("owner %d, group %d", stat.Uid, stat.Gid)
	}
	for _, name := range []string{"user.note", "security.capability", "system.posix_acl_access"} {
		want, got := make([]byte, 100), make([]byte, 100)
		n, werr := unix.Getxattr(old, name, want)
		m, gerr := unix.Getxattr(fresh, name, got)
		if werr == nil && (gerr != nil || string(got[:m]) != string(want[:n])) {
			t.Errorf("%s: %x, %v; want %x", name, got[:max(m, 0)], gerr, want[:n])
		}
	}
	if err := swap.Real().Adopt(fresh, filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestLinkLinksALinkItself(t *testing.T) {
	d, dir := swap.Real(), t.TempDir()
	link, second := filepath.Join(dir, "link"), filepath.Join(dir, "second")
	if err := errors.Join(os.Symlink("nowhere", link), d.Link(link, second)); err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(second); err != nil || target != "nowhere" {
		t.Errorf("%q, %v", target, err)
	}
	if err := d.Link(link, second); !errors.Is(err, os.ErrExist) {
		t.Error(err)
	}
}
