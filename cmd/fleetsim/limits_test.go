package main

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// TestTooFewFilesAreSaidBefore: not when connections fail in the middle of a profile; and how many agents would fit is true.
func TestTooFewFilesAreSaidBefore(t *testing.T) {
	if err := enoughFiles(10_000, 20_000); err != nil {
		t.Errorf("20,000 files for 10,000 agents: %v", err)
	}
	if err := enoughFiles(1, 1<<20); err != nil {
		t.Error(err)
	}
	err := enoughFiles(10_000, 10_100)
	var few *filesError
	if !errors.As(err, &few) || !strings.Contains(err.Error(), "10000 agents") || !strings.Contains(err.Error(), "10100") {
		t.Fatalf("%v", err)
	}
	if hint := few.Hint(); !strings.Contains(hint, "at most 7875 agents") {
		t.Errorf("%s", hint)
	}
	if err := enoughFiles(7875, 10_100); err != nil {
		t.Errorf("the number in the hint does not fit: %v", err)
	}
	if err := enoughFiles(7877, 10_100); err == nil {
		t.Error("more than in the hint fit")
	}
	if hint := (&filesError{5, filesFor(5), 20}).Hint(); strings.Contains(hint, "play") {
		t.Errorf("no fleet fits into 20 files: %s", hint)
	}
	if n, err := openFiles(); err != nil || n < 3 {
		t.Errorf("%d files, %v", n, err)
	}
}

// TestFleetsStartEvenly: large ones over whole rounds, 333 a second at most.
func TestFleetsStartEvenly(t *testing.T) {
	for agents, want := range map[int]time.Duration{1: 2 * time.Second, 300: 2 * time.Second, 900: 2700 * time.Millisecond, 1000: round, 10_000: round,
		10_001: 2 * round, 20_000: 2 * round} {
		if got := rampFor(agents); got != want {
			t.Errorf("%d agents start over %v, not %v", agents, got, want)
		}
	}
}
