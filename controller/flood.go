package controller

import (
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// What one agent's secret may do at once and in a row. An agent of either generation makes some ten calls a minute, and each
// worker a few a second: who needs more is not one of ours, or is two programs with one secret in a loop. The rest of the
// fleet must not pay for it.
const (
	agentCalls  = 32  // calls of one agent at once, held ones not counted
	workerCalls = 256 // calls of its workers at once
	logCalls    = 24  // calls with log lines of its workers at once: fewer than there is room for
	burstCalls  = 500 // calls of an agent without a pause, after some seconds of less than Options.CallsPerSecond
)

// floodPause is how long a call over these limits waits for its refusal: a loop goes round once a second then.
const floodPause = time.Second

// traffic is what one caller does now: an agent and its workers, or all together whose secret is wrong.
type traffic struct {
	mu     sync.Mutex
	busy   [classes]int
	tokens float64 // calls left before the pace counts
	at     time.Time
}

// enter reports whether a call of a class may go on; leave must be called then.
func (t *traffic) enter(kind class, perSecond float64, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	limit := agentCalls
	switch kind {
	case working:
		limit = workerCalls
	case logging:
		limit = logCalls
	default:
		if perSecond > 0 {
			if t.at.IsZero() {
				t.tokens = burstCalls
			} else if passed := now.Sub(t.at); passed > 0 {
				t.tokens = min(burstCalls, t.tokens+perSecond*passed.Seconds())
			}
			if t.at = now; t.tokens < 1 {
				return false
			}
			t.tokens--
		}
	}
	if t.busy[kind] >= limit {
		return false
	}
	t.busy[kind]++
	return true
}

func (t *traffic) leave(kind class) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.busy[kind]--
}

// whoAsks is the agent of a call by its headers, nil when there is none or the secret is wrong.
func (s *Server) whoAsks(r *http.Request) *agent {
	id := wire.Identity{Project: r.Header.Get(wire.HeaderProject), Agent: r.Header.Get(wire.HeaderAgent), Secret: wire.Secret(r.Header.Get(wire.HeaderSecret))}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known(id)
}

// stillThere notes that an agent asked, though there was no room to answer: it is not offline.
func (s *Server) stillThere(a *agent) {
	if a == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a.seen = time.Now()
}

// fairly answers a call of an agent or a worker when neither its caller nor the controller has too much to do.
func (s *Server) fairly(w http.ResponseWriter, r *http.Request, next http.Handler) {
	kind := classOf(r)
	if kind == free {
		next.ServeHTTP(w, r)
		return
	}
	a, of, perSecond := s.whoAsks(r), &s.strangers, 10*s.opts.CallsPerSecond
	if a != nil {
		of, perSecond = &a.traffic, s.opts.CallsPerSecond
	}
	if !of.enter(kind, perSecond, time.Now()) {
		s.stillThere(a)
		timer := time.NewTimer(floodPause)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
		case <-s.closing:
		}
		comeBack(w, kind, "too many calls of one agent")
		return
	}
	leave := sync.OnceFunc(func() { of.leave(kind) })
	defer leave()
	give, room := s.admission.fetch(w, r, kind)
	defer give()
	if !room || !s.admission.serve(w, r, kind, leave, next) {
		s.stillThere(a)
		comeBack(w, kind, "the controller is busy; come back later")
	}
}

func bodyLimit(kind class) int64 {
	if kind == logging {
		return maxLogBody
	}
	return maxBody
}

// bodySize is how much of a request's body may have to be in memory.
func bodySize(r *http.Request, kind class) int64 {
	if limit := bodyLimit(kind); r.ContentLength < 0 || r.ContentLength > limit {
		return limit
	}
	return r.ContentLength
}

// isLogCall reports whether a path, as a service sees it, takes log lines.
func isLogCall(path string) bool { return strings.HasPrefix(path, buildPrefix+"/logs") }
