package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// sink collects what is written, for several goroutines.
type sink struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// waitFor waits until the sink holds a text.
func (s *sink) waitFor(t *testing.T, want string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); s.String() != want; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%q, want %q", s.String(), want)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func add(t *testing.T, path, text string) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestLastLinesOfALog(t *testing.T) {
	var long strings.Builder
	for n := range 30000 {
		fmt.Fprintf(&long, "line %d\n", n)
	}
	for _, tc := range []struct {
		text, older string
		lines       int
		want        string
	}{
		{"", "", 5, ""},
		{"a\nb\nc\n", "", 2, "b\nc\n"},
		{"a\nb\nc\n", "", 3, "a\nb\nc\n"},
		{"a\nb\nc\n", "", 0, ""},
		{"a\nb\nc", "", 1, "c"},
		{"c\n", "a\nb\n", 2, "b\nc\n"},
		{"", "a\nb\n", 9, "a\nb\n"},
		{long.String(), "", 3, "line 29997\nline 29998\nline 29999\n"},
		{long.String(), "x\n", 30001, "x\n" + long.String()},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "devopsAgent.log")
		write(t, path, tc.text)
		if tc.older != "" {
			write(t, filepath.Join(dir, "devopsAgent-2026-01-01T00-00-00.000.log"), "much older\n")
			write(t, filepath.Join(dir, "devopsAgent-2026-01-02T00-00-00.000.log"), tc.older)
		}
		var out bytes.Buffer
		if err := showLog(t.Context(), &out, path, tc.lines, false); err != nil || out.String() != tc.want {
			t.Errorf("%d lines of %.20q after %.20q: %.60q, %v", tc.lines, tc.text, tc.older, out.String(), err)
		}
	}
	if err := showLog(t.Context(), &bytes.Buffer{}, filepath.Join(t.TempDir(), "none"), 3, false); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no log: %v", err)
	}
}

// TestFollowedLog: before there is one, over a rotation, over one that is cut off, and until the end.
func TestFollowedLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "devopsAgent.log")
	ctx, cancel := context.WithCancel(t.Context())
	var out sink
	done := make(chan error, 1)
	go func() { done <- showLog(ctx, &out, path, 10, true) }()
	add(t, path, "one\n")
	out.waitFor(t, "one\n")
	add(t, path, "two\n")
	if err := os.Rename(path, strings.TrimSuffix(path, ".log")+"-2026-01-01T00-00-00.000.log"); err != nil {
		t.Fatal(err)
	}
	add(t, path, "three\n")
	out.waitFor(t, "one\ntwo\nthree\n")
	write(t, path, "4\n")
	out.waitFor(t, "one\ntwo\nthree\n4\n")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestLastWords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	now := time.Date(2026, 1, 2, 3, 30, 0, 0, time.Local)
	if got := lastWords(path, now); got != "" {
		t.Errorf("no log: %q", got)
	}
	write(t, path, "2026-01-02 03:04:05.678|ERROR|first err=x\n2026-01-02 03:04:05.678|ERROR|Agent cannot start err=y\n2026-01-02 03:04:05.678|INFO|z\n")
	if got := lastWords(path, now); got != "Agent cannot start err=y" {
		t.Errorf("%q", got)
	}
	if got := lastWords(path, now.Add(time.Hour)); got != "" {
		t.Errorf("of yesterday: %q", got)
	}
}

// TestOneEndlessLine: reading backwards costs what is read, not the square of it.
func TestOneEndlessLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	const size = 16 << 20
	write(t, path, strings.Repeat("x", size)+"\n")
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	tail, end, err := lastLines(file, 3)
	runtime.ReadMemStats(&after)
	if err != nil || len(tail) != size+1 || end != size+1 {
		t.Errorf("%d bytes until %d, %v", len(tail), end, err)
	}
	if got := after.TotalAlloc - before.TotalAlloc; got > 2*size {
		t.Errorf("%d MiB for a log of %d", got>>20, size>>20)
	}
}
