package service

import (
	"os"
	"path/filepath"
	"testing"
)

// TestNetworkMagic: the numbers of statfs(2), written out.
func TestNetworkMagic(t *testing.T) {
	for magic, want := range map[int64]string{
		0x6969: "nfs", 0xfe534d42: "smb", 0xff534d42: "smb", 0x517b: "smb",
		0x5346414f: "afs, coda or ncp", 0x6b414653: "afs, coda or ncp", 0x73757245: "afs, coda or ncp", 0x564c: "afs, coda or ncp",
		0xef53: "", 0x58465342: "", 0x9123683e: "", 0x01021994: "", 0x794c7630: "", 0x65735546: "", 0x2fc12fc1: "", 0: "",
	} {
		kind, remote := networkMagic(magic)
		if kind != want || remote != (want != "") {
			t.Errorf("%#x: %q, %v, want %q", magic, kind, remote, want)
		}
	}
}

// TestAFullDiskDoesNotKeepARoleFromItsProcess: an agent that starts on a full disk goes on without a pid file.
func TestAFullDiskDoesNotKeepARoleFromItsProcess(t *testing.T) {
	inst := &Installation{Home: t.TempDir()}
	pid := inst.Path("runtime", "agent.pid")
	if err := os.MkdirAll(filepath.Dir(pid), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/full", pid); err != nil { // every write to it says ENOSPC (full(4))
		t.Fatal(err)
	}
	lock, err := inst.Hold(t.Context(), RoleAgent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(pid); !os.IsNotExist(err) {
		t.Errorf("a pid file that could not be written is still there: %v", err)
	}
	if err := lock.Release(); err != nil {
		t.Error(err)
	}
}
