package controller

import (
	"context"
	"math"
	"math/rand/v2"
	"net/http"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// class is a kind of call that is admitted on its own: one class that is overrun does not keep the others out.
type class int

const (
	free    class = iota // operators, pages, downloads: few, or bounded elsewhere
	polling              // what idle agents ask again and again; it can wait
	living               // heartbeats, starts, what workers and agents report: builds wait for it
	logging              // log lines, whose bodies are large
)

// admission decides which calls are worked on now. A call that finds its class full waits in its queue; when that is full
// as well, or the wait takes too long, or the machine is so busy that answers would come too late for those who wait for
// them, the answer is 429 with a Retry-After, at another time for each. So a fleet that is too large for its machine is
// served more slowly, running builds first, and meets no time-outs.
type admission struct {
	gates [4]*gate
	polls atomic.Int64 // since the last measurement

	mu      sync.Mutex
	looked  time.Time
	last    *metrics.Float64Histogram // of the scheduler's delays, when last read
	refused float64                   // share of polls that are refused
}

// What a class has room for. Calls that are held do not count: they sleep.
func newAdmission() *admission {
	return &admission{gates: [4]*gate{
		polling: newGate(64, 20_000, 2*time.Second),
		living:  newGate(512, 20_000, 3*time.Second),
		logging: newGate(64, 5_000, 4*time.Second),
	}}
}

// classOf is the class of a call, by what a service behind the gateway sees of it.
func classOf(r *http.Request) class {
	path, agent := strings.CutPrefix(r.URL.Path, agentPrefix)
	switch {
	case agent && path == "/upgrade/files/download":
		return free
	case agent && (r.Method == http.MethodGet || path == "/ask" || path == "/upgradeNew" || strings.HasPrefix(path, "/agents/metri")):
		return polling
	case agent:
		return living
	case strings.HasPrefix(path, buildPrefix+"/logs"):
		return logging
	case strings.HasPrefix(path, buildPrefix+"/"):
		return living
	}
	return free
}

// gate is a bounded number of calls at once and a bounded queue before it.
type gate struct {
	slots    chan struct{}
	queue    int64
	patience time.Duration
	waiting  atomic.Int64
}

func newGate(slots, queue int, patience time.Duration) *gate {
	return &gate{slots: make(chan struct{}, slots), queue: int64(queue), patience: patience}
}

// enter takes a slot, and reports false when there is none in time.
func (g *gate) enter(ctx context.Context) bool {
	select {
	case g.slots <- struct{}{}:
		return true
	default:
	}
	defer g.waiting.Add(-1)
	if g.waiting.Add(1) > g.queue {
		return false
	}
	timer := time.NewTimer(g.patience)
	defer timer.Stop()
	select {
	case g.slots <- struct{}{}:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

func (g *gate) leave() { <-g.slots }

// slotKey is where the context of a request keeps the function that gives its slot back.
type slotKey struct{}

// yieldSlot gives the slot of a request back before it sleeps.
func yieldSlot(ctx context.Context) {
	if leave, is := ctx.Value(slotKey{}).(func()); is {
		leave()
	}
}

// serve answers a call as soon as there is room for it, or says when to come back.
func (ad *admission) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	kind := classOf(r)
	gate := ad.gates[kind]
	if gate == nil {
		next.ServeHTTP(w, r)
		return
	}
	if kind == polling {
		ad.polls.Add(1)
		if ad.refuses() {
			comeBack(w, 10, 25)
			return
		}
	}
	if !gate.enter(r.Context()) {
		if kind == polling {
			comeBack(w, 10, 25)
		} else {
			comeBack(w, 1, 4)
		}
		return
	}
	leave := sync.OnceFunc(gate.leave)
	defer leave()
	if kind == polling {
		r = r.WithContext(context.WithValue(r.Context(), slotKey{}, leave))
	}
	next.ServeHTTP(w, r)
}

// comeBack is the answer to a call for which there is no room, some seconds later for each.
func comeBack(w http.ResponseWriter, from, until int) {
	w.Header().Set("Retry-After", strconv.Itoa(from+rand.IntN(until-from)))
	refuse(w, http.StatusTooManyRequests, "the controller is busy; come back later")
}

func (ad *admission) refuses() bool {
	ad.mu.Lock()
	defer ad.mu.Unlock()
	return ad.refused > 0 && rand.Float64() < ad.refused
}

// When a machine is too busy: of all that was ready to run a tenth had to wait for so long. With fewer polls than
// somePolls in a second it is not the fleet that keeps it busy, and refusing polls would help nobody.
const (
	tooLate   = 0.4 // seconds
	inTime    = 0.1
	somePolls = 300
)

// schedulerDelays is the runtime's histogram of how long goroutines waited for a processor.
const schedulerDelays = "/sched/latencies:seconds"

// look measures how busy the machine was since the last time, once a second, and changes the share of polls that are
// refused.
func (ad *admission) look(at time.Time) {
	ad.mu.Lock()
	defer ad.mu.Unlock()
	if at.Sub(ad.looked) < time.Second {
		return
	}
	ad.looked = at
	sample := []metrics.Sample{{Name: schedulerDelays}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindFloat64Histogram {
		return
	}
	now := sample[0].Value.Float64Histogram()
	polls := ad.polls.Swap(0)
	delay := quantile(ad.last, now, 0.9)
	ad.last = now
	ad.refused = share(ad.refused, delay, polls)
}

// share is the next share of polls that are refused: it grows fast while answers are late, and shrinks slowly.
func share(refused, delay float64, polls int64) float64 {
	switch {
	case polls < somePolls && refused == 0:
		return 0
	case delay > tooLate:
		return min(0.9, refused+0.15)
	case delay < inTime:
		return max(0, refused-0.03)
	}
	return refused
}

// quantile is that of what came between two states of a histogram, in its unit; 0 when nothing did.
func quantile(before, now *metrics.Float64Histogram, q float64) float64 {
	counts := make([]uint64, len(now.Counts))
	var all uint64
	for i, n := range now.Counts {
		if before != nil && len(before.Counts) == len(now.Counts) {
			n -= before.Counts[i]
		}
		counts[i] = n
		all += n
	}
	if all == 0 {
		return 0
	}
	want, sum := uint64(math.Ceil(q*float64(all))), uint64(0)
	for i, n := range counts {
		if sum += n; sum >= want {
			return now.Buckets[i] // of a bucket the lower end, which is always a number but for the first
		}
	}
	return 0
}
