//go:build unix

package service

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestDaemonStartsAnotherProgramAtOnce: one that cannot be executed is told to who can put another one in its place.
func TestDaemonStartsAnotherProgramAtOnce(t *testing.T) {
	for name, bad := range map[string][]byte{"no program": []byte("\x7fELF of another machine"), "no interpreter": []byte("#!/nowhere/sh\n"), "missing": nil} {
		t.Run(name, func(t *testing.T) {
			h := newKeptHome(t, "")
			good, err := os.ReadFile(h.Path("devopsAgent"))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(h.Path("devopsAgent")); err != nil {
				t.Fatal(err)
			}
			if bad != nil {
				if err := os.WriteFile(h.Path("devopsAgent"), bad, 0o700); err != nil { //nolint:gosec // a program
					t.Fatal(err)
				}
			}
			var told atomic.Int32
			at := time.Now()
			h.keep(func(d *Daemon) {
				d.Unstartable = func(_ context.Context, cause error) bool {
					if free, err := h.total(); err != nil || free {
						t.Errorf("total-lock is free: %v", err)
					}
					told.Add(1)
					if cause == nil {
						t.Error("no cause")
					}
					if err := os.WriteFile(h.Path("fresh"), good, 0o700); err != nil { //nolint:gosec // a program
						t.Error(err)
					}
					return os.Rename(h.Path("fresh"), h.Path("devopsAgent")) == nil
				}
			})
			h.awaitStarts(1)
			if told.Load() != 1 || strings.Contains(h.log.String(), "next_start_in") {
				t.Errorf("told %d times, after %v: %s", told.Load(), time.Since(at), h.log)
			}
		})
	}
}

// total reports whether total-lock is free.
func (h *keptHome) total() (free bool, err error) {
	probe := newLock(h.Path("runtime", "total-lock.lock"))
	got, err := probe.TryLock()
	if got {
		err = probe.Unlock()
	}
	return got, err
}

// TestDaemonWaitsWhereNobodyHelps: the pause is as ever when nothing could be put into place.
func TestDaemonWaitsWhereNobodyHelps(t *testing.T) {
	h := newKeptHome(t, "")
	if err := errors.Join(os.Remove(h.Path("devopsAgent")), os.WriteFile(h.Path("devopsAgent"), nil, 0o700)); err != nil {
		t.Fatal(err)
	}
	var told atomic.Int32
	h.keep(func(d *Daemon) {
		d.Unstartable = func(context.Context, error) bool { told.Add(1); return false }
	})
	until(t, func() bool { return h.daemon.Status().NextStart != nil && told.Load() >= 2 })
	if n := strings.Count(h.log.String(), "next_start_in"); n < 2 {
		t.Errorf("%d pauses: %s", n, h.log)
	}
}

// TestDaemonDoesNotWaitInAnUpgrade: ends that belong to an upgrade are not waited for, but not without end.
func TestDaemonDoesNotWaitInAnUpgrade(t *testing.T) {
	h := newKeptHome(t, "crash")
	var mu sync.Mutex
	var ends []Ending
	h.keep(func(d *Daemon) {
		d.Pending = func() bool { return true }
		d.Before = func(_ context.Context, last Ending) error {
			mu.Lock()
			defer mu.Unlock()
			ends = append(ends, last)
			return nil
		}
	})
	until(t, func() bool { return strings.Contains(h.log.String(), "next_start_in=200ms") })
	hurried := strings.Count(h.log.String(), "Agent ended in an upgrade")
	if hurried != mostHurried {
		t.Errorf("%d starts were not waited for, want %d", hurried, mostHurried)
	}
	mu.Lock()
	defer mu.Unlock()
	if ends[0] != (Ending{}) {
		t.Errorf("before the first: %+v", ends[0])
	}
	for _, end := range ends[1:] {
		if end.Code == nil || *end.Code != 3 || end.How != "exit status 3: devopsAgent: no luck today" {
			t.Errorf("%+v", end)
		}
	}
}

// words is standard error as somebody else keeps it.
type words struct {
	mu     sync.Mutex
	text   bytes.Buffer
	closed int
}

func (w *words) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(p)
}

func (w *words) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed++
	return nil
}

// TestDaemonHandsStandardErrorOn: whole lines, and the end.
func TestDaemonHandsStandardErrorOn(t *testing.T) {
	h := newKeptHome(t, "crash")
	var mu sync.Mutex
	var all []*words
	h.keep(func(d *Daemon) {
		d.Words = func() io.WriteCloser {
			mu.Lock()
			defer mu.Unlock()
			if len(all) == 2 {
				return nil
			}
			all = append(all, &words{})
			return all[len(all)-1]
		}
	})
	until(t, func() bool { return strings.Contains(h.log.String(), "next_start_in=400ms") })
	mu.Lock()
	defer mu.Unlock()
	for i, one := range slices.Clone(all) {
		one.mu.Lock()
		if one.text.String() != "devopsAgent: no luck today\nhint: come back tomorrow\n" || one.closed != 1 {
			t.Errorf("%d: %q, closed %d times", i, &one.text, one.closed)
		}
		one.mu.Unlock()
	}
	if len(all) != 2 {
		t.Errorf("asked %d times", len(all))
	}
}
