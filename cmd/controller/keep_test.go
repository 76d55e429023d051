package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/devops-agent/devops-agent/controller"
)

// TestKeepingOnTheCommandLine: backup, check, vacuum and restore with the program, of a controller that runs and of one
// that does not.
func TestKeepingOnTheCommandLine(t *testing.T) {
	path, dir := program(t), filepath.Join(t.TempDir(), "data")
	p := start(t, path, dir, "127.0.0.1:0", "--keep-builds", "1d", "--keep-logs", "12h", "--keep-bytes", "1GiB", "--backup-every", "0")
	must := func(dir, want string, args ...string) string {
		t.Helper()
		out, errs, code := cmdline(t, path, dir, args...)
		if code != 0 || !strings.Contains(out, want) {
			t.Fatalf("%v: code %d, %s%s; want %q", args, code, out, errs, want)
		}
		return out
	}
	refused := func(dir, want string, args ...string) {
		t.Helper()
		out, errs, code := cmdline(t, path, dir, args...)
		if code != 1 || !strings.Contains(out+errs, want) {
			t.Fatalf("%v: code %d, %s%s; want %q", args, code, out, errs, want)
		}
	}
	must(dir, "b-", "run", "--detach", "--", "true")
	online, stopped := filepath.Join(t.TempDir(), "online"), filepath.Join(t.TempDir(), "stopped")
	must(dir, "B, of", "backup", online)
	refused(dir, "is there already", "backup", online)
	must(dir, "B now", "vacuum")
	must(dir, "all is well: 0 agents, 1 builds", "check")
	refused(dir, "another controller uses", "restore", "--force", online)
	p.kill(t)
	var info controller.BackupInfo
	if err := json.Unmarshal([]byte(must(dir, "{", "backup", "--json", stopped)), &info); err != nil || !info.Files {
		t.Errorf("backup %+v, %v", info, err)
	}
	must(dir, "B now", "vacuum")
	must(dir, "all is well", "check")
	refused(dir, "is not empty", "restore", stopped)
	must(dir, "the next build is #2", "restore", "--force", stopped)
	fresh := filepath.Join(t.TempDir(), "fresh")
	must(fresh, "the next build is #2\n", "restore", "--moved", stopped)
	must(fresh, "all is well: 0 agents, 1 builds", "check")
	if err := os.WriteFile(online, []byte("nothing of the kind"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(filepath.Join(t.TempDir(), "other"), "no whole backup", "restore", online)
	if err := os.Truncate(filepath.Join(fresh, "controller.db"), 9000); err != nil {
		t.Fatal(err)
	}
	refused(fresh, "restore --force --data "+fresh, "check")
	refused(fresh, "restore --force --data "+fresh, "serve", "--listen", "127.0.0.1:0")
}
