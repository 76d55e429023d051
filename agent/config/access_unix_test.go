//go:build unix

package config

import (
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/devops-agent/devops-agent/agent/wire"
)

func TestWorkersOfAnotherAccountCanReadTheFile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Skip("needs a machine with the account nobody:", err)
	}
	gid, err := strconv.Atoi(nobody.Gid)
	if err != nil {
		t.Fatal(err)
	}
	dir := home(t, seedFile+"devops.slave.user=nobody\n")
	check := func() {
		t.Helper()
		for name, want := range map[string]struct {
			mode os.FileMode
			gid  int
		}{PropertiesFile: {0o640, gid}, BackupFile: {0o600, 0}} {
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if got := info.Sys().(*syscall.Stat_t); info.Mode() != want.mode || int(got.Gid) != want.gid || got.Uid != 0 {
				t.Errorf("%s: mode %v, owner %d, group %d; want %v, 0, %d", name, info.Mode(), got.Uid, got.Gid, want.mode, want.gid)
			}
		}
	}
	s := open(t, dir, nil)
	check()
	if _, err := s.Apply(&wire.HeartbeatReply{ParallelTaskCount: ptr(9)}); err != nil {
		t.Fatal(err)
	}
	check()
	// The operator's choice counts as well, and the main file may have to be made anew.
	if err := os.Remove(filepath.Join(dir, PropertiesFile)); err != nil {
		t.Fatal(err)
	}
	open(t, dir, &Config{Builds: Builds{User: "nobody"}})
	check()
	// Back to one account: back to one reader.
	open(t, dir, &Config{Builds: Builds{User: "root"}})
	if info := stat(t, dir); info.Mode() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	open(t, dir, &Config{Builds: Builds{User: "no such account"}})
	if info := stat(t, dir); info.Mode() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
}
