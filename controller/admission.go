package controller

import (
	"bytes"
	"context"
	"math"
	"math/rand/v2"
	"net/http"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// class is a kind of call that is admitted on its own: one class that is overrun does not keep the others out.
type class int

const (
	free      class = iota // operators, pages, downloads: few, or bounded elsewhere
	polling                // what idle agents ask again and again; it can wait
	living                 // heartbeats of agents on a call of their own
	reporting              // what agents say once: an original one does not say it again (protocol §1.6.8)
	working                // calls of workers: builds wait for them
	logging                // log lines, whose bodies are large
	moving                 // archives of artifacts, which take long and are never in memory
	classes
)

// admission decides which calls are worked on now. A call that finds its class full waits in its queue; when that is full
// as well, or the wait takes too long, or the machine is so busy that answers would come too late for those who wait for
// them, the answer is to come back, at another time for each. So a fleet that is too large for its machine is
// served more slowly, running builds first, and meets no time-outs.
type admission struct {
	gates  [classes]*gate
	polls  atomic.Int64 // since the last measurement
	memory *budget      // for bodies

	mu      sync.Mutex
	looked  time.Time
	last    *metrics.Float64Histogram // of the scheduler's delays, when last read
	refused float64                   // share of polls that are refused
}

// bodyBytes bounds the bodies that are in memory at once, of calls whose body is longer than smallBody.
const (
	bodyBytes = 192 << 20
	smallBody = 64 << 10
)

// bodyWithin is how long a body may take to arrive: agents give up after five seconds, workers after thirty.
const bodyWithin = 30 * time.Second

// restWithin is how long the rest of a body may take that nobody reads. Then its connection is closed.
const restWithin = 2 * time.Second

// What a class has room for. Calls that are held do not count: they sleep. What is said once waits for its turn as long as
// whoever says it does.
func newAdmission() *admission {
	return &admission{memory: &budget{left: bodyBytes}, gates: [classes]*gate{
		polling:   newGate(64, 20_000, 2*time.Second),
		living:    newGate(256, 20_000, 3*time.Second),
		reporting: newGate(256, 50_000, time.Minute),
		working:   newGate(512, 20_000, 3*time.Second),
		logging:   newGate(64, 5_000, 4*time.Second),
		moving:    newGate(16, 5_000, 10*time.Second),
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
	case agent && strings.HasPrefix(path, "/agents/") && r.Method == http.MethodPost:
		return living
	case agent:
		return reporting
	case isLogCall(path):
		return logging
	case strings.HasPrefix(path, buildPrefix+"/worker/artifacts/"):
		return moving
	case strings.HasPrefix(path, buildPrefix+"/"):
		return working
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

// serve answers a call as soon as there is room for it, and reports false when there is none. leave, if any, is called
// before a call sleeps.
func (ad *admission) serve(w http.ResponseWriter, r *http.Request, kind class, leave func(), next http.Handler) bool {
	if kind == polling {
		ad.polls.Add(1)
		if ad.refuses() {
			return false
		}
	}
	gate := ad.gates[kind]
	if !gate.enter(r.Context()) {
		return false
	}
	yield := sync.OnceFunc(func() {
		gate.leave()
		if leave != nil {
			leave()
		}
	})
	defer yield()
	if kind == polling && r.Header.Get(wire.HeaderPrefer) != "" { // it may be held
		r = r.WithContext(context.WithValue(r.Context(), slotKey{}, yield))
	}
	next.ServeHTTP(w, r)
	return true
}

// fetch reads the body of a call before the call has a slot, so that a slow one takes no room but its own. It reports false
// when there is no memory for it in time. What is wrong with the body is an error that readUpTo returns later.
func (ad *admission) fetch(w http.ResponseWriter, r *http.Request, kind class) (give func(), fetched bool) {
	give = func() {}
	if r.ContentLength == 0 || kind == moving { // an archive goes to the disk as it comes
		return give, true
	}
	if size := bodySize(r, kind); size > smallBody {
		if !ad.memory.take(r.Context(), size, ad.gates[kind].patience) {
			return give, false
		}
		give = func() { ad.memory.give(size) }
	}
	rc := http.NewResponseController(w)
	timed := rc.SetReadDeadline(time.Now().Add(bodyWithin)) == nil // in memory there is no connection
	body := new(fetchedBody)
	body.data, body.err = wholeBody(w, r, bodyLimit(kind))
	if timed && body.err == nil {
		_ = rc.SetReadDeadline(time.Time{}) // it does not count for what comes next
	}
	body.rest.Reset(body.data)
	r.Body = body
	return give, true
}

// fetchedBody is a body that is in memory.
type fetchedBody struct {
	data []byte
	err  error // of reading it
	rest bytes.Reader
}

// Read reads what is left.
func (b *fetchedBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	return b.rest.Read(p)
}

// Close does nothing.
func (b *fetchedBody) Close() error { return nil }

// comeBack is the answer to a call for which there is no room, some seconds later for each. Workers of BK-CI try again
// after 503, and give up after other errors (protocol §6.1). Agents of BK-CI do not look at the status: they read in the
// body that it is not ok, and go on at their own pace (protocol §1.3).
func comeBack(w http.ResponseWriter, kind class, why string) {
	code, from, until := http.StatusTooManyRequests, 1, 4
	switch kind {
	case polling:
		from, until = 10, 25
	case working, logging:
		code = http.StatusServiceUnavailable
	}
	w.Header().Set("Retry-After", strconv.Itoa(from+rand.IntN(until-from)))
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(restWithin)) // net/http reads what is left of a body before it answers
	refuse(w, code, why)
}

// budget is a number of bytes that is shared: who needs more than is left waits.
type budget struct {
	mu      sync.Mutex
	left    int64
	waiting []*claim // in the order in which they came
}

type claim struct {
	n     int64
	given chan struct{} // closed when it is
}

// take takes n bytes, and reports false when they are not there in time.
func (b *budget) take(ctx context.Context, n int64, patience time.Duration) bool {
	b.mu.Lock()
	if len(b.waiting) == 0 && b.left >= n {
		b.left -= n
		b.mu.Unlock()
		return true
	}
	mine := &claim{n, make(chan struct{})}
	b.waiting = append(b.waiting, mine)
	b.mu.Unlock()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-mine.given:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.waiting, mine); i >= 0 {
		b.waiting = slices.Delete(b.waiting, i, i+1)
		b.serve()
		return false
	}
	return true // it was given just now
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left += n
	b.serve()
}

// serve gives to those who wait what is left, in their order.
func (b *budget) serve() {
	for len(b.waiting) > 0 && b.left >= b.waiting[0].n {
		b.left -= b.waiting[0].n
		close(b.waiting[0].given)
		b.waiting = b.waiting[1:]
	}
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
