package cli

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// TestTheJournalOfATrial: while the standard error of a version on trial is a file, standard output tells where it was before.
func TestTheJournalOfATrial(t *testing.T) {
	if os.Getenv("CLI_TEST_TRIAL") != "" {
		if toJournal(LogOptions{Fallback: os.Stderr}) != (os.Getenv(EnvStderr) != "") {
			t.Error("the journal was not told from a file")
		}
		return
	}
	journal, err := os.Create(filepath.Join(t.TempDir(), "journal"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = journal.Close() }()
	info, err := journal.Stat()
	if err != nil {
		t.Fatal(err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatal("no inode")
	}
	for _, fd := range []string{"7", ""} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestTheJournalOfATrial$")
		cmd.Env = append(os.Environ(), "CLI_TEST_TRIAL=1", EnvStderr+"="+fd, fmt.Sprintf("JOURNAL_STREAM=%d:%d", stat.Dev, stat.Ino))
		cmd.Stdout = journal
		if err := cmd.Run(); err != nil {
			t.Errorf("%q: %v", fd, err)
		}
	}
}
