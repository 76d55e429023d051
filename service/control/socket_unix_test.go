//go:build unix

package control

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestSocketIsOursAlone(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0)) // the worst there is
	home := t.TempDir()
	l := serve(t, home, echo)
	path := filepath.Join(home, "runtime", "agent.sock")
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Perm() != 0o600 || info.Mode()&os.ModeSocket == 0 {
		t.Fatalf("%v, %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("beside the socket: %v, %v", entries, err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("after the end: %v", err)
	}
}

// TestStaleSocketIsReplaced: a killed process leaves its socket, and one that ends late must not take the next one's.
func TestStaleSocketIsReplaced(t *testing.T) {
	home := t.TempDir()
	first, err := Listen(home, RoleAgent)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, home, echo)
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if err := Call(t.Context(), home, RoleAgent, Request{Op: OpStatus}, nil); err != nil {
		t.Errorf("the next one's door: %v", err)
	}
}

func TestWhatIsInTheWayStays(t *testing.T) {
	home := t.TempDir()
	path := filepath.Join(home, "runtime", "agent.sock")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(home, RoleAgent); err == nil || !strings.Contains(err.Error(), "in the way") {
		t.Errorf("err %v", err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "precious" {
		t.Errorf("%q, %v", data, err)
	}
	if err := Call(t.Context(), home, RoleAgent, Request{Op: OpStatus}, nil); !errors.Is(err, ErrNobody) {
		t.Errorf("err %v", err)
	}
}
