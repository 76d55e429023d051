package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// Submit queues a build of a project ("" is DefaultProject). It is on disk when Submit returns. A spec that cannot
// run is an *InputError.
func (s *Server) Submit(project string, spec Spec) (Build, error) {
	if project == "" {
		project = DefaultProject
	}
	if !label.MatchString(project) {
		return Build{}, &InputError{Err: fmt.Errorf("project %q: letters, digits, _ and - only", clip(project, 64))}
	}
	if len(spec.Download) > 0 {
		return Build{}, refusal("download: only a job of a build file with several has others to get artifacts of")
	}
	now := time.Now()
	b, err := s.newBuild(project, spec, now)
	if err != nil {
		return Build{}, err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return Build{}, errClosed
	}
	s.lastNumber++
	b.Number = s.lastNumber
	t := s.save(b)
	s.mu.Unlock()
	err = t.wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.dirty, b) // it was never accepted
		return Build{}, err
	}
	s.builds[b.ID] = b
	s.enqueue(b)
	s.log.Info("Build queued", "build", b.ID, "name", b.Name)
	s.dispatchNew(time.Now())
	return b.view(), nil
}

// newBuild makes the record of a build that is to be queued; it has no number yet.
func (s *Server) newBuild(project string, spec Spec, now time.Time) (*build, error) {
	spec.Steps = slices.Clone(spec.Steps)
	if err := spec.check(); err != nil {
		return nil, &InputError{Err: err}
	}
	if err := s.room.refusal(); err != nil {
		return nil, err
	}
	text := jsonText(spec)
	if len(text) > maxSpec {
		return nil, &InputError{Err: fmt.Errorf("build: longer than %d bytes", maxSpec)}
	}
	if err := json.Unmarshal([]byte(text), &spec); err != nil { // our own copy, maps included
		return nil, err
	}
	secrets, err := s.secretValues(project, spec.Secrets)
	if err != nil {
		return nil, err
	}
	b := &build{spec: spec, secrets: secrets, Hash: "c-" + randomHex(16), since: now, beat: now, asked: now, changed: make(chan struct{})}
	b.Build = Build{ID: "b-" + randomHex(16), Name: spec.Name, Project: project, Pipeline: pipelineID(project, spec.Name),
		State: Queued, Labels: spec.Labels, QueuedAt: millis(now)}
	if len(spec.Artifacts) > 0 && s.artifacts == nil {
		return nil, errNoStore
	}
	b.Steps = spec.states()
	b.covered = b.sensitive()
	b.text, err = s.sealSpec(b)
	return b, err
}

var errClosed = errors.New("the controller is being stopped")

// enqueue puts a build into the queue by its number: one that comes back keeps its place.
func (s *Server) enqueue(b *build) {
	if b.locked != nil {
		return // it waits for the key of its values
	}
	i, _ := slices.BinarySearchFunc(s.queue, b, byNumber)
	s.queue = slices.Insert(s.queue, i, b)
	s.backlog.add(b)
	s.fresh[b.wants] = true
}

func (s *Server) unqueue(b *build) {
	if i, found := slices.BinarySearchFunc(s.queue, b, byNumber); found {
		s.queue = slices.Delete(s.queue, i, i+1)
		s.backlog.remove(b)
	}
}

// takes reports whether a kind of claim has room for a host build, the only ones we have (protocol §1.4.2: any
// unknown text counts as ALL).
func takes(kind wire.BuildKind) bool { return kind != wire.Docker && kind != wire.None }

// ready reports whether an agent may get builds now.
func (a *agent) ready(now time.Time) bool {
	return a.Status == wire.ImportOK && !now.Before(a.upgrading)
}

func (a *agent) fits(b *build) bool {
	if a.Project != b.Project || !b.spec.fits(a.OS) {
		return false
	}
	return !slices.ContainsFunc(b.Labels, func(l string) bool { return !a.has(l) })
}

// has reports whether a label is one of allLabels.
func (a *agent) has(label string) bool {
	return label != "" && (label == a.OS || label == a.Arch || label == a.HostName || label == a.ID) || slices.Contains(a.Labels, label)
}

// dispatch gives queued builds to held requests: each to the fitting agent with the fewest builds, among equals to
// the one that has waited longest.
func (s *Server) dispatch(now time.Time) {
	s.match(now, func(*build) bool { return true })
}

// dispatchNew is dispatch for the kinds of builds of which one was queued since: for the others nobody waited then, and
// whoever has come to wait since has looked for himself.
func (s *Server) dispatchNew(now time.Time) {
	fresh := s.fresh
	s.match(now, func(b *build) bool { return fresh[b.wants] })
}

// match gives out the builds of those kinds that are to be looked at.
func (s *Server) match(now time.Time, look func(b *build) bool) {
	s.fresh = make(map[string]bool)
	if len(s.queue) == 0 || s.waiting.Len() == 0 || s.room.refusal() != nil {
		return
	}
	tried := make(map[string]bool) // kinds of builds for which nobody waits
	for {
		b := s.backlog.first(func(b *build) bool { return !tried[b.wants] && look(b) })
		if b == nil {
			return
		}
		w := s.bestWaiter(b, now)
		if w == nil {
			tried[b.wants] = true
			continue
		}
		w.saved = s.handOut(w.agent, b, now) // takes it out of the queue
		w.given = handed{b, b.HandOuts}
		w.rouse()
	}
}

func (s *Server) bestWaiter(b *build, now time.Time) (best *waiter) {
	for e := s.waiting.Front(); e != nil; e = e.Next() { // who has waited longest comes first
		w, is := e.Value.(*waiter)
		if !is || w.given.build != nil || w.woken || !w.agent.ready(now) || !w.agent.fits(b) {
			continue
		}
		if len(w.agent.builds) == 0 {
			return w
		}
		if best == nil || len(w.agent.builds) < len(best.agent.builds) {
			best = w
		}
	}
	return best
}

// take hands the first fitting build to an agent that asks, nil when there is none.
func (s *Server) take(a *agent, now time.Time) (*build, *ticket) {
	if !a.ready(now) || s.room.refusal() != nil {
		return nil, nil
	}
	if b := s.backlog.first(a.fits); b != nil {
		return b, s.handOut(a, b, now)
	}
	return nil, nil
}

func (s *Server) handOut(a *agent, b *build, now time.Time) *ticket {
	s.unqueue(b)
	b.State, b.Agent, b.AgentHost = Handed, a.ID, a.HostName
	b.HandedAt, b.since = millis(now), now
	b.HandOuts++
	a.builds[b.ID] = b
	b.notify()
	s.log.Info("Build handed out", "build", b.ID, "agent", a.ID, "after", now.Sub(time.UnixMilli(b.QueuedAt)).Round(time.Millisecond))
	return s.save(b)
}

// handed is a hand-out that can be taken back as long as nothing else happened to the build.
type handed struct {
	build *build
	times int // HandOuts when it happened
}

// takeBack re-queues a build whose hand-out did not reach the agent. It does not count as one.
func (s *Server) takeBack(h handed, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := h.build; b != nil && b.State == Handed && b.HandOuts == h.times {
		b.HandOuts--
		s.requeue(b, why)
	}
}

// requeue puts a build that was handed out back into the queue, and fails it when that happened too often. A build
// that has started never comes back.
func (s *Server) requeue(b *build, why string) {
	if b.State != Handed {
		return
	}
	now := time.Now()
	if b.HandOuts >= s.opts.MaxHandOuts {
		s.finish(b, Failed, fmt.Sprintf("it was handed out %d times and never began: %s", b.HandOuts, why), now)
		return
	}
	s.log.Warn("Build re-queued", "build", b.ID, "agent", b.Agent, "why", why)
	if a := s.agents[b.Agent]; a != nil {
		delete(a.builds, b.ID)
	}
	b.State = Queued // Agent stays: if its worker starts after all, it may
	b.notify()
	s.save(b)
	s.enqueue(b)
	s.dispatchNew(now)
}

// finish ends a build.
func (s *Server) finish(b *build, state State, message string, now time.Time) *ticket {
	if b.State.Over() {
		return s.save(b)
	}
	s.unqueue(b)
	if a := s.agents[b.Agent]; a != nil {
		delete(a.builds, b.ID)
	}
	b.close(state, message, now)
	s.log.Info("Build ended", "build", b.ID, "state", string(state), "message", message)
	s.ended = append(s.ended, b)
	for len(s.ended) > keepEnded && !s.dirty[s.ended[0]] {
		delete(s.builds, s.ended[0].ID)
		s.ended = s.ended[1:]
	}
	t := s.save(b)
	s.settleRun(b, now)
	return t
}

// Cancel ends a build. One that has not started is over at once; a running one is over when its worker has killed
// what runs. Cancelling twice, or a build that is over, changes nothing.
func (s *Server) Cancel(id string) (Build, error) {
	b, err := s.find(id)
	if err != nil {
		return Build{}, err
	}
	s.mu.Lock()
	t := s.cancel(b, time.Now())
	v := b.view()
	s.mu.Unlock()
	if t != nil {
		err = t.wait()
	}
	return v, err
}

func (s *Server) cancel(b *build, now time.Time) *ticket {
	switch {
	case b.State.Over() || b.CancelRequested:
		return nil
	case b.State == Running:
		b.CancelRequested, b.asked = true, now
		b.notify()
		return s.save(b)
	}
	b.CancelRequested = true
	return s.finish(b, Cancelled, "cancelled before it began", now)
}

// find returns a build of the memory or of the data base, by its id or by its number.
func (s *Server) find(id string) (*build, error) {
	number, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		number = 0
	}
	s.mu.Lock()
	b := s.builds[id]
	if number > 0 {
		for _, known := range s.builds {
			if known.Number == number {
				b = known
			}
		}
	}
	s.mu.Unlock()
	if b != nil {
		return b, nil
	}
	err = s.store.each(func(scan func(...any) error) (err error) {
		b, err = s.scanBuild(scan, time.Now())
		return err
	}, `SELECT spec, doc FROM build WHERE id = ? OR number = ?`, id, number)
	if err == nil && b == nil {
		err = fmt.Errorf("build %q: %w", clip(id, 64), ErrNotFound)
	}
	return b, err
}

// FindBuild returns a build by its id or number, ErrNotFound when there is none.
func (s *Server) FindBuild(id string) (Build, error) {
	b, err := s.find(id)
	if err != nil {
		return Build{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen(b), nil
}

// Builds lists builds, the newest first: at most limit, with numbers below before (0 is no bound), only active ones
// if asked.
func (s *Server) Builds(limit int, before int64, active bool) ([]Build, error) {
	query := `SELECT spec, doc FROM build WHERE (? = 0 OR number < ?) ORDER BY number DESC LIMIT ?`
	if active {
		query = `SELECT spec, doc FROM build WHERE active = 1 AND (? = 0 OR number < ?) ORDER BY number DESC LIMIT ?`
	}
	var found []*build
	err := s.store.each(func(scan func(...any) error) error {
		b, err := s.scanBuild(scan, time.Time{})
		found = append(found, b)
		return err
	}, query, before, before, limit)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Build, 0, len(found))
	for _, b := range found {
		if live := s.builds[b.ID]; live != nil {
			b = live
		}
		list = append(list, b.view())
	}
	return list, nil
}

// Wait returns the build when it is over, or ctx's error.
func (s *Server) Wait(ctx context.Context, id string) (Build, error) {
	b, err := s.find(id)
	if err != nil {
		return Build{}, err
	}
	for {
		s.mu.Lock()
		v, changed := b.view(), b.changed
		s.mu.Unlock()
		if v.State.Over() {
			return v, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return v, context.Cause(ctx)
		}
	}
}

// Log returns lines of a build with numbers above after: about limit of them, fewer only at the end of the log.
func (s *Server) Log(id string, after int64, limit int) ([]Line, error) {
	b, err := s.find(id)
	if err != nil {
		return nil, err
	}
	return s.store.readLog(b.Number, after, limit)
}
