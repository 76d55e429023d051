package main

import (
	"errors"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// tally counts what the agents of one profile see. Only what happens while it is open is counted.
type tally struct {
	began time.Time
	open  atomic.Bool
	cut   func(err error) bool // an error that the profile makes by itself, and no fault of the server

	mu      sync.Mutex
	kinds   map[string]*kind
	perSec  []int // answers by second
	agents  []int // different agents that were answered, by second
	errors  map[string]int
	waiting map[string]int // errors that a profile provokes itself
	paced   int            // answers 429, and 503 to workers, which ask to come later
}

// kind is one kind of call.
type kind struct {
	took   []time.Duration // from the first byte sent to the whole answer; without the time that an answer was held
	held   int             // answers that were held back as asked, until something happened
	failed int
}

func newTally() *tally {
	return &tally{began: time.Now(), kinds: make(map[string]*kind), errors: make(map[string]int), waiting: make(map[string]int)}
}

func (t *tally) kind(name string) *kind {
	k := t.kinds[name]
	if k == nil {
		k = &kind{}
		t.kinds[name] = k
	}
	return k
}

// note counts one call that was begun at begun and asked the server to hold its answer for wait. fresh says that the
// agent has not been answered in this second before.
func (t *tally) note(name string, begun time.Time, wait time.Duration, fresh bool, err error) {
	if !t.open.Load() {
		return
	}
	now := time.Now()
	took := now.Sub(begun)
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.kind(name)
	var refused *wire.StatusError
	if err != nil && !errors.As(err, &refused) { // never arrived
		k.failed++
		t.fault(err, err.Error())
		return
	}
	second := int(now.Sub(t.began) / time.Second)
	for len(t.perSec) <= second {
		t.perSec, t.agents = append(t.perSec, 0), append(t.agents, 0)
	}
	t.perSec[second]++
	if fresh {
		t.agents[second]++
	}
	switch {
	case refused != nil && (refused.HTTP == 429 || refused.HTTP == 503 && refused.RetryAfter > 0):
		t.paced++
	case err != nil:
		k.failed++
		t.fault(err, refused.Op+": "+strconv.Itoa(refused.HTTP)+" "+strconv.Itoa(refused.Code)+" "+refused.Message)
	case wait == 0:
		k.took = append(k.took, took)
	case took >= wait:
		k.took = append(k.took, took-wait)
	default:
		k.held++ // something happened meanwhile: how long it took is no property of the server
	}
}

func (t *tally) fault(err error, text string) {
	if t.cut != nil && t.cut(err) {
		t.waiting[text]++
		return
	}
	t.errors[text]++
}

// second is the number of this second, for the fresh of note.
func (t *tally) second() int64 { return int64(time.Since(t.began) / time.Second) }

// stop ends counting.
func (t *tally) stop() { t.open.Store(false) }

// figures are those of one kind of call, sorted.
type figures struct {
	name                string
	count, held, failed int
	p50, p90, p99, max  time.Duration
	sorted              []time.Duration
}

func (t *tally) figures() []figures {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []figures
	for _, name := range slices.Sorted(maps.Keys(t.kinds)) {
		k := t.kinds[name]
		list = append(list, measure(name, k.took, k.held, k.failed))
	}
	return list
}

// all are the figures of all calls together.
func (t *tally) all() figures {
	t.mu.Lock()
	defer t.mu.Unlock()
	var took []time.Duration
	held, failed := 0, 0
	for _, k := range t.kinds {
		took, held, failed = append(took, k.took...), held+k.held, failed+k.failed
	}
	return measure("all", took, held, failed)
}

func measure(name string, took []time.Duration, held, failed int) figures {
	sorted := slices.Sorted(slices.Values(took))
	f := figures{name: name, count: len(sorted) + held + failed, held: held, failed: failed, sorted: sorted}
	if n := len(sorted); n > 0 {
		at := func(share float64) time.Duration { return sorted[min(n-1, int(share*float64(n)))] }
		f.p50, f.p90, f.p99, f.max = at(0.5), at(0.9), at(0.99), sorted[n-1]
	}
	return f
}

// perSecond is the mean and the greatest number of answers in a second, of the whole ones.
func (t *tally) perSecond() (mean float64, most int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	whole := t.perSec
	if len(whole) > 1 {
		whole = whole[:len(whole)-1]
	}
	total := 0
	for _, n := range whole {
		total, most = total+n, max(most, n)
	}
	return float64(total) / float64(max(1, len(whole))), most
}

// mostAgents is the greatest number of different agents that were answered in one second.
func (t *tally) mostAgents() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.agents) == 0 {
		return 0
	}
	return slices.Max(t.agents)
}
