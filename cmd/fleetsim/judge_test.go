package main

import (
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/controller"
)

// TestBuildsAreJudged: a fleet in which a build is lost, fails, is cancelled, runs twice or never is not served correctly.
func TestBuildsAreJudged(t *testing.T) {
	one := func(n int64, state controller.State) controller.Build {
		return controller.Build{ID: string(rune('a' + n - 1)), Number: n, State: state, Message: "why"}
	}
	good := []controller.Build{one(1, controller.Succeeded), one(2, controller.Succeeded)}
	once := map[string]int{"a": 1, "b": 1}
	for name, c := range map[string]struct {
		accepted []string
		list     []controller.Build
		runs     map[string]int
		want     []string
	}{
		"all is well": {[]string{"a", "b"}, good, once, nil},
		"failed":      {[]string{"a"}, []controller.Build{one(1, controller.Failed)}, once, []string{"build 1 is failed: why"}},
		"cancelled":   {[]string{"a"}, []controller.Build{one(1, controller.Cancelled)}, once, []string{"build 1 is cancelled: why"}},
		"twice":       {[]string{"a", "b"}, good, map[string]int{"a": 1, "b": 2}, []string{"build 2 ran 2 times"}},
		"never":       {[]string{"a", "b"}, good, map[string]int{"b": 1}, []string{"build 1 ran 0 times"}},
		"lost":        {[]string{"a", "b", "c"}, good, once, []string{"build c was accepted and is not there"}},
	} {
		if got := judge(c.accepted, c.list, c.runs); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, not %q", name, got, c.want)
		}
	}
}

// TestOnlyWholeSecondsCount: the last second of a measurement has only begun, and would make the mean too small.
func TestOnlyWholeSecondsCount(t *testing.T) {
	c := newTally()
	c.perSec = []int{100, 300, 7}
	if mean, most := c.perSecond(); mean != 200 || most != 300 {
		t.Errorf("mean %v, most %d", mean, most)
	}
	c.perSec = []int{5}
	if mean, most := c.perSecond(); mean != 5 || most != 5 {
		t.Errorf("of one second: mean %v, most %d", mean, most)
	}
}

// TestRowsSayWhetherTheyWereMet: times and memory at their bounds, and just over them.
func TestRowsSayWhetherTheyWereMet(t *testing.T) {
	for _, c := range []struct {
		took  time.Duration
		bytes uint64
		met   bool
	}{{250 * time.Millisecond, 1_000_000_000, true}, {251 * time.Millisecond, 1_000_000_001, false}} {
		counted := newTally()
		counted.kind("ask").took = slices.Repeat([]time.Duration{time.Millisecond}, 95)
		counted.kind("ask").took = append(counted.kind("ask").took, slices.Repeat([]time.Duration{c.took}, 5)...)
		f := &fleet{agents: make([]*agent, 3)}
		for _, row := range f.latest(counted, &meter{took: time.Second, mostBytes: c.bytes}) {
			if row.wanted != "–" && row.met != c.met {
				t.Errorf("%v and %d bytes: %s: met is %v", c.took, c.bytes, row.what, row.met)
			}
		}
	}
}

// TestRepeatedCallsObeyRetryAfter: a call that is refused with it is not made again before.
func TestRepeatedCallsObeyRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{}
		f.tally.Store(newTally())
		a := &agent{fleet: f}
		begun, tries := time.Now(), 0
		err := a.repeat(t.Context(), "report", func(retry int) error {
			if tries++; retry == 0 {
				return &wire.StatusError{HTTP: 429, RetryAfter: time.Minute}
			}
			return nil
		})
		if took := time.Since(begun); err != nil || tries != 2 || took != time.Minute {
			t.Errorf("%d tries in %v: %v", tries, took, err)
		}
	})
}

// TestConnectionsAreCounted: closed ones no more, and each once, however often and by whom it is closed.
func TestConnectionsAreCounted(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	var open atomic.Int64
	w := newNetwork(0, &open)
	var conns []net.Conn
	for range 3 {
		conn, err := w.dial(t.Context(), "tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	if n := open.Load(); n != 3 {
		t.Errorf("%d are open, not 3", n)
	}
	_, _ = conns[0].Close(), conns[0].Close()
	if n := open.Load(); n != 2 {
		t.Errorf("%d are open after one was closed twice, not 2", n)
	}
	w.cut(true)
	_, _ = conns[1].Close(), conns[2].Close() // as the transport does when it finds them dead
	if n := open.Load(); n != 0 {
		t.Errorf("%d are open after the network was cut", n)
	}
}
