//go:build unix

package control

import (
	"bytes"
	"log/slog"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// told is a log that says when something was written.
type told struct {
	bytes.Buffer
	now chan struct{}
}

func (t *told) Write(p []byte) (int, error) {
	defer func() { t.now <- struct{}{} }()
	return t.Buffer.Write(p)
}

// TestOutOfDescriptors: a process that may open no more files keeps those who ask waiting, says so once, and answers when it may.
func TestOutOfDescriptors(t *testing.T) {
	home := t.TempDir()
	l, err := Listen(home, RoleAgent)
	if err != nil {
		t.Fatal(err)
	}
	log := &told{now: make(chan struct{}, 10)}
	l.Log = slog.New(slog.NewTextHandler(log, nil))
	serveOn(t, l, echo)
	if err := Call(t.Context(), home, RoleAgent, Request{Op: OpStatus}, nil); err != nil {
		t.Fatal(err)
	}

	var may unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &may); err != nil {
		t.Fatal(err)
	}
	next, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	few := unix.Rlimit{Cur: uint64(next.Fd()) + 1, Max: may.Max} // room for the end that asks
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() { answered <- Call(t.Context(), home, RoleAgent, Request{Op: OpUpgrade}, nil) }()
	var early error
	select {
	case <-log.now:
	case early = <-answered:
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &may); err != nil {
		t.Fatal(err)
	}
	if early != nil {
		t.Fatalf("asked without room for it: %v", early)
	}
	if err := <-answered; err == nil || !strings.Contains(err.Error(), "what?") {
		t.Errorf("with room again: %v", err)
	}
	if said := log.String(); strings.Count(said, "WARN") != 1 || !strings.Contains(said, "too many open files") {
		t.Errorf("the log: %s", said)
	}
}
