package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/devops-agent/devops-agent/agent/job"
	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/service/control"
)

// How long an agent that ends waits (docs/decisions/0008-drain.md).
const (
	killPatience   = 10 * time.Second              // for builds to be gone that were stopped
	reportPatience = successDelay + 10*time.Second // for the server to take the reports of builds that ended by themselves
	killedPatience = 10 * time.Second              // for the server to take the reports of builds that were stopped
	awayPatience   = 2 * time.Second               // for reports, when the server does not answer anyway
	answerPatience = 10 * time.Second              // for the answer to a question for builds that was under way
	lastPatience   = 3 * time.Second               // for the same, once builds are stopped
)

// drainMarker is in the home directory while builds are not wanted, also while no agent runs: an update at night must
// not put a machine back into service.
const drainMarker = "runtime/draining"

// gate is what decides whether new work is taken.
type gate struct {
	mu       sync.Mutex
	drained  time.Time          // since when the operator wants no builds; zero when he does
	stopping time.Time          // since when the agent is about to end; zero while it is not
	until    time.Time          // when builds are stopped, once it is
	open     context.Context    // ends when new work is not wanted any more
	shut     context.CancelFunc // ends open
	hear     context.Context    // ends when answers are not waited for any more
	cut      context.CancelFunc // ends hear

	leaving  bool          // the agent is about to end for its next start
	changing bool          // an upgrade waits until nothing builds, or replaces what builds use
	leave    chan struct{} // closed when it is
	stop     chan struct{} // closed when the agent is told to stop
	now      chan struct{} // closed when it is told to stop at once
}

func newGate() *gate {
	g := &gate{stop: make(chan struct{}), now: make(chan struct{}), leave: make(chan struct{})}
	g.open, g.shut = context.WithCancel(context.Background())
	g.hear, g.cut = context.WithCancel(context.Background())
	return g
}

// enter counts a question that may bring work, unless none is wanted: an agent that stops waits for its answer. Call
// left after it.
func (a *Agent) enter() bool {
	a.gate.mu.Lock()
	defer a.gate.mu.Unlock()
	if !a.gate.drained.IsZero() || !a.gate.stopping.IsZero() || a.gate.leaving || a.gate.changing {
		return false
	}
	a.building.add()
	a.vital.add()
	return true
}

// left is the end of what enter counted.
func (a *Agent) left() {
	a.vital.done()
	a.building.done()
}

// seats are what a question for builds goes with.
type seats struct {
	*job.Reservation
	agent *Agent
	in    bool // the question may bring work
}

// Release gives back what was not claimed. It may be called more than once.
func (s *seats) Release() {
	s.Reservation.Release()
	if s.in {
		s.in = false
		s.agent.left()
	}
}

// reserve takes seats for the next build. There are none while builds are not wanted or could not run anyway.
func (a *Agent) reserve() *seats {
	s := &seats{Reservation: a.slots.Reserve(), agent: a, in: a.enter()}
	if s.Kind() != wire.None && (!s.in || !a.ready()) {
		s.Reservation.Release()
	}
	return s
}

// asking is the context of one question. One that may bring work and that the server may hold is given up when builds are
// no longer wanted; what the server hands out in that very moment it hands out again. Any other that may bring work is
// waited for, in reason (docs/decisions/0008-drain.md). One that brings none is how the server hears that we live: it ends
// with ctx and nothing else, however long builds are waited for.
func (a *Agent) asking(ctx context.Context, wait time.Duration, in bool) (context.Context, context.CancelFunc) {
	if !in {
		return context.WithCancel(ctx)
	}
	until := a.gate.hear
	if wait > wire.Probe {
		a.gate.mu.Lock()
		until = a.gate.open
		a.gate.mu.Unlock()
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(until, cancel)
	return ctx, func() { stop(); cancel() }
}

// Drain takes no more builds and scripts; those under way go on, and so does the agent. It holds until Resume, also
// for later agents of this home; an error says that it would not.
func (a *Agent) Drain() error {
	g := a.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.drained.IsZero() {
		g.drained = time.Now()
		a.Log.Info("No more builds are taken, until the agent is told to resume")
	}
	g.shut()
	a.teller.changed()
	path := a.Installation.Path(drainMarker)
	if err := os.WriteFile(path, []byte(g.drained.Format(time.RFC3339)+"\n"), 0o600); err != nil {
		return fmt.Errorf("no builds are taken any more, but a restart would end that: %w", err)
	}
	return nil
}

// Resume takes builds again after Drain. An agent that stops goes on stopping, and the next one takes builds.
func (a *Agent) Resume() error {
	g := a.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := os.Remove(a.Installation.Path(drainMarker)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("resume: %w", err)
	}
	if g.drained.IsZero() {
		return nil
	}
	g.drained = time.Time{}
	a.Log.Info("Builds are taken again")
	a.reopen()
	a.teller.changed()
	return nil
}

// reopen lets work in again, unless something else keeps it out. The gate's lock is held.
func (a *Agent) reopen() {
	g := a.gate
	if g.drained.IsZero() && g.stopping.IsZero() && !g.leaving && !g.changing {
		g.open, g.shut = context.WithCancel(context.Background())
		a.slots.Wake()
	}
}

// readMarker takes over the Drain of an earlier agent.
func (a *Agent) readMarker() {
	path := a.Installation.Path(drainMarker)
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	since := time.Now()
	if err == nil {
		since = info.ModTime()
	}
	if text, err := os.ReadFile(path); err == nil {
		if at, err := time.Parse(time.RFC3339, strings.TrimSpace(string(text))); err == nil {
			since = at
		}
	}
	a.gate.drained = since
	a.gate.shut()
	a.Log.Info("No builds are taken: this agent was told to drain", "since", since)
}

// Stop ends the agent: it takes no new work, waits up to drain.timeout for its builds and scripts, then stops those that
// are left and reports each as failed. With now it stops them at once; so does a second call with now.
func (a *Agent) Stop(now bool) {
	g := a.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopping.IsZero() {
		g.stopping = time.Now()
		g.until = g.stopping
		if !now {
			g.until = g.stopping.Add(a.config.Load().Drain.Timeout)
		}
		g.shut()
		close(g.stop)
	}
	if now && !a.hurried() {
		g.until = time.Now()
		close(g.now)
	}
	a.teller.changed()
}

// hurried reports whether the agent was told to stop at once.
func (a *Agent) hurried() bool {
	select {
	case <-a.gate.now:
		return true
	default:
		return false
	}
}

// stopping reports whether the agent is about to end.
func (a *Agent) stopping() bool {
	a.gate.mu.Lock()
	defer a.gate.mu.Unlock()
	return !a.gate.stopping.IsZero()
}

// Restart ends the agent and leaves its builds running: the keeper brings the next agent, which adopts them. What the
// server may be handing out or taking note of in this moment is waited for, a little.
func (a *Agent) Restart() {
	if a.depart() {
		a.Log.Info("Agent ends for its next start; builds go on")
	}
}

// depart lets the agent end for its next start, and reports whether that is news.
func (a *Agent) depart() bool {
	g := a.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.leaving {
		return false
	}
	g.leaving = true
	g.shut()
	close(g.leave)
	return true
}

// leaver waits for Restart and then ends the agent by end.
func (a *Agent) leaver(ctx context.Context, end func()) {
	select {
	case <-ctx.Done():
		return
	case <-a.gate.leave:
	}
	sleepOr(ctx, lastPatience, a.vital.idle())
	end()
}

// stopper waits for Stop, brings the builds to their end and then ends the agent by end.
func (a *Agent) stopper(ctx context.Context, end func()) {
	g := a.gate
	select {
	case <-ctx.Done():
		return
	case <-g.stop:
	}
	g.mu.Lock()
	since, until := g.stopping, g.until
	g.mu.Unlock()
	a.Log.Info("Agent stops; builds are waited for", "builds", len(a.slots.Held()), "until", until.Format(time.TimeOnly))
	defer end()
	defer time.AfterFunc(answerPatience, g.cut).Stop()
	idle := a.building.idle()
	late := time.NewTimer(time.Until(until))
	defer late.Stop()
	patience := reportPatience
	select {
	case <-ctx.Done():
		return
	case <-idle:
	case <-g.now:
		a.stopBuilds(&job.Stop{})
		patience = killedPatience
	case <-late.C:
		if a.hurried() { // both are true when the agent was told so from the beginning
			a.stopBuilds(&job.Stop{})
		} else {
			a.stopBuilds(&job.Stop{Waited: until.Sub(since)})
		}
		patience = killedPatience
	}
	defer time.AfterFunc(lastPatience, g.cut).Stop()
	if !sleepOr(ctx, killPatience, idle) {
		return
	}
	if left := len(a.slots.Held()); left > 0 {
		a.Log.Error("Agent ends although builds could not be stopped", "builds", left)
	}
	// Reports that the server does not take stay on the disk for the next agent.
	reported := a.work.idle()
	if patience == killedPatience {
		sleepOr(ctx, patience, reported)
		return
	}
	if a.health.server().Failing != nil {
		patience = awayPatience
	}
	enough := time.NewTimer(patience)
	defer enough.Stop()
	select {
	case <-ctx.Done():
	case <-reported:
	case <-g.now:
	case <-enough.C:
	}
}

// phase says what the agent is doing with its life.
func (a *Agent) phase() (control.Phase, *control.Drain) {
	g := a.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case !g.stopping.IsZero():
		until := g.until
		return control.Stopping, &control.Drain{Since: g.stopping, Until: &until}
	case !g.drained.IsZero():
		return control.Draining, &control.Drain{Since: g.drained}
	case !a.started.Load():
		return control.Starting, nil
	}
	return control.Running, nil
}
