package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/devops-agent/devops-agent/service"
)

// ErrHung: a loop of the agent did not turn any more, and no keeper watches. The exit code is 1: the keeper brings a
// clean agent, which adopts the builds.
var ErrHung = errors.New("the agent hangs")

// How often a keeper is told, and when an agent without a watchdog gives itself up.
const (
	tellEvery    = 10 * time.Second
	tellIdle     = 15 * time.Second // a third of the shortest watchdog
	tellStopping = 5 * time.Second
	watchEvery   = 30 * time.Second // where there is nobody to tell
	hungFor      = 2 * time.Minute
	moreTime     = 30 * time.Second // asked for again and again while the agent stops
	readyGrace   = 5 * time.Second  // an agent whose server is away is ready all the same
)

// teller tells the keeper how the agent is: readiness, a sentence, the watchdog. It is a loop of its own that does
// nothing else, and says that the agent lives only as long as every other loop turns.
type teller struct {
	notify   *service.Notifier // may be nil
	log      *slog.Logger
	pulse    *pulse
	sentence func(now time.Time) string // one line for people
	answered func() bool                // the server has answered
	stopping func() bool                // the agent is about to end
	idle     func() bool                // nothing happens
	wake     chan struct{}              // of one element: something changed

	ready atomic.Bool // the keeper was told that the agent works
	deaf  bool        // the keeper could not be told, which was logged
	ended bool        // the keeper was told that the agent stops
}

func newTeller(notify *service.Notifier, log *slog.Logger, p *pulse) *teller {
	return &teller{notify: notify, log: log, pulse: p, wake: make(chan struct{}, 1)}
}

// changed makes the keeper hear the news at once.
func (t *teller) changed() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// run tells until ctx ends. The error is ErrHung when the agent has to give itself up.
func (t *teller) run(ctx context.Context) error {
	begun := time.Now()
	before := begun
	for {
		now := time.Now()
		if gap := now.Sub(before) - watchEvery; gap > watchEvery { // suspended, stopped, or starved
			t.pulse.shift(gap)
		}
		before = now
		loop, late := t.pulse.overdue(now)
		if late > hungFor && t.notify.Watchdog() == 0 {
			t.log.Error("The agent hangs and ends", "loop", loop, "overdue", late.Round(time.Second), "goroutines", stacks())
			return fmt.Errorf("%w: %s did not turn for %v", ErrHung, loop, late.Round(time.Second))
		}
		t.tell(now, late > 0, now.Sub(begun) >= readyGrace)
		pause := watchEvery
		switch {
		case !t.notify.Kept():
		case !t.ready.Load():
			pause = max(readyGrace-now.Sub(begun), 0)
		case t.stopping():
			pause = tellStopping
		case t.idle():
			pause = tellIdle
		default:
			pause = tellEvery
		}
		if !sleepOr(ctx, pause, t.wake) {
			return nil
		}
	}
}

func (t *teller) tell(now time.Time, hangs, grace bool) {
	if !t.notify.Kept() {
		t.ready.Store(true)
		return
	}
	errs := []error{t.notify.Tell(t.sentence(now), !hangs)}
	if !t.ready.Load() && (grace || t.answered()) {
		errs = append(errs, t.notify.Ready())
		t.ready.Store(true)
	}
	if t.stopping() {
		if !t.ended {
			t.ended = true
			errs = append(errs, t.notify.Stopping())
		}
		errs = append(errs, t.notify.Extend(moreTime))
	}
	if err := errors.Join(errs...); err != nil && !t.deaf {
		t.deaf = true
		t.log.Warn("The keeper cannot be told how the agent is", "err", err)
	}
}

// reload frames the reading of the configuration, as systemd wants to hear of it.
func (t *teller) reload(do func() error) error {
	tell := t.ready.Load()
	if tell {
		_ = t.notify.Reloading() // a keeper that is deaf was reported by tell
	}
	err := do()
	if tell {
		_ = t.notify.Ready()
	}
	t.changed()
	return err
}

// stacks is where every goroutine is, for whoever has to find out why one does not go on.
func stacks() string {
	text := make([]byte, 256<<10)
	return string(text[:runtime.Stack(text, true)])
}
