package service

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/devops-agent/devops-agent/service/control"
	"github.com/devops-agent/devops-agent/service/proc"
)

// watch looks after an agent that somebody else started, until its lock is free. It looks every five seconds (protocol
// §3.5.1), and at once when the process that holds the lock is known and ends. One that has a control socket and does not
// answer there is replaced; one that has none is an original and left alone.
func (r *keeping) watch(ctx context.Context) error {
	calls, cancel := context.WithCancel(ctx)
	w := &watching{keeping: r, calls: calls, answers: make(chan answer, 4), answered: time.Now(), asked: time.Now()}
	w.identify()
	r.Log.Info("Agent runs already", "pid", w.pid())
	if r.Stale != nil && r.Stale() {
		w.stale, w.asked = true, time.Time{}
		r.Log.Info("The package has other programs than the agent that runs; it makes room for them when it is idle", "pid", w.pid())
	}
	err := w.run(ctx)
	cancel()
	w.busy.Wait()
	r.note(func(s *control.DaemonStatus) { s.Child, s.Adopted, s.Ready, s.Sentence = 0, false, false, "" })
	if err == nil {
		r.Log.Info("Agent ended that somebody else had started")
	} else if !errors.Is(err, errStopped) {
		return r.pause(ctx, r.pace.fault(time.Now(), false), "Agent cannot be watched", err.Error(), 0)
	}
	return err
}

// watching is the time with one agent of somebody else.
type watching struct {
	*keeping
	holder *Holder // nil while it is not known
	gone   chan error

	calls    context.Context
	busy     sync.WaitGroup
	answers  chan answer
	asking   bool
	asked    time.Time
	answered time.Time
	stale    bool // it is told to make room for the package's programs when it is idle

	stopping int
	lastWord time.Time
	killAt   time.Time
}

func (w *watching) pid() int {
	if w.holder == nil {
		return 0
	}
	return w.holder.PID
}

// identify finds out which process holds the lock.
func (w *watching) identify() {
	if w.holder != nil {
		return
	}
	holder, ok := w.Installation.Holder(RoleAgent)
	if ok {
		w.holder, w.gone = holder, make(chan error, 1)
		gone := w.gone
		w.busy.Go(func() { gone <- proc.WaitFor(w.calls, holder.PID, holder.Started) })
	}
	w.note(func(s *control.DaemonStatus) { s.Adopted, s.Child = true, w.pid() })
}

func (w *watching) run(ctx context.Context) error {
	tick := time.NewTicker(w.patience.lockCheck)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-w.gone:
			w.holder, w.gone = nil, nil
			if w.stopping == 0 {
				return nil // begin takes a closer look
			}
			tick.Reset(5 * lockPoll)
		case now := <-tick.C:
			if over, err := w.over(); over || err != nil {
				return err
			}
			w.identify()
			if now.Sub(last) > w.patience.lockCheck+w.patience.late { // this process was stopped, or the machine
				w.answered, w.lastWord = now, now
			}
			last = now
			if err := w.look(now); err != nil {
				return err
			}
		case o := <-w.orders:
			if err := w.obey(o); err != nil {
				return err
			}
		case a := <-w.answers:
			w.take(a)
		case <-w.reap.childEnded():
			w.reap.reap(0)
		}
	}
}

// over reports whether nobody holds the lock any more. An upgrader at work, who has total-lock, puts that off.
func (w *watching) over() (bool, error) {
	total := newLock(w.Installation.Path("runtime", "total-lock.lock"))
	got, err := total.TryLock()
	if err != nil || !got {
		return false, err
	}
	free, err := w.Installation.free(RoleAgent)
	if err := errors.Join(err, total.Unlock()); err != nil {
		return false, err
	}
	if free && w.stopping > 0 {
		return true, errStopped
	}
	return free, nil
}

// look asks the agent how it is, and ends one that does not say.
func (w *watching) look(now time.Time) error {
	if !w.killAt.IsZero() && !now.Before(w.killAt) {
		w.kill()
	}
	switch {
	case w.stopping > 0 && now.Sub(w.lastWord) >= w.patience.stop:
		w.Log.Error("Agent does not stop, so it is killed", "pid", w.pid(), "silent_for", now.Sub(w.lastWord).Round(time.Second))
		w.kill()
		if w.holder == nil {
			return errStopped // nobody we dare to kill
		}
	case w.stopping == 0 && now.Sub(w.answered) >= w.patience.watchdog && w.killAt.IsZero() && w.holder != nil:
		w.Log.Error("Agent hangs, so it is replaced", "pid", w.pid(), "silent_for", now.Sub(w.answered).Round(time.Second))
		w.killAt = now.Add(w.patience.abort)
		if w.holder.signal(abortProcess) != nil {
			w.kill()
		}
	}
	if !w.asking && (w.stopping > 0 || now.Sub(w.asked) >= w.patience.ask) {
		w.asked = now
		w.ask(control.Request{Op: control.OpStatus})
	}
	return nil
}

func (w *watching) kill() {
	if w.holder != nil {
		if err := w.holder.signal(killProcess); err != nil {
			w.Log.Warn("Agent not killed", "pid", w.pid(), "err", err)
		}
	}
}

func (w *watching) obey(o order) error {
	switch o {
	case orderStop, orderStopNow:
		w.stopping++
		w.lastWord = time.Now()
		if o == orderStopNow {
			w.stopping++
		}
		w.killAt = time.Time{} // of a restart: now it has more time than that
		w.Log.Info("Agent is told to stop", "pid", w.pid(), "at_once", w.stopping > 1)
		w.ask(control.Request{Op: control.OpStop, Now: w.stopping > 1})
	case orderRestart:
		w.restart()
	case orderReload:
		w.ask(control.Request{Op: control.OpReload})
	case orderWake:
	}
	return nil
}

func (w *watching) restart() {
	w.killAt = time.Now().Add(w.patience.restart)
	w.ask(control.Request{Op: control.OpRestart})
}

func (w *watching) ask(q control.Request) {
	w.asking = true
	w.busy.Go(func() {
		var text json.RawMessage
		err := control.Call(w.calls, w.Installation.Home, string(RoleAgent), q, &text)
		var s control.Status // an agent of another version may tell it otherwise, and has answered all the same
		idle := q.Op == control.OpStatus && err == nil && json.Unmarshal(text, &s) == nil && s.PID != 0 && s.Idle()
		select {
		case w.answers <- answer{q.Op, err, idle}:
		case <-w.calls.Done():
		}
	})
}

// take takes the answer to ask.
func (w *watching) take(a answer) {
	w.asking = false
	now := time.Now()
	var refused *control.RemoteError
	if a.err == nil || errors.Is(a.err, control.ErrNobody) || errors.As(a.err, &refused) {
		w.answered = now
	}
	if a.err == nil {
		w.lastWord = now
		if a.idle && w.stale && w.stopping == 0 {
			w.stale = false
			w.Log.Info("Agent is told to make room for the package's programs", "pid", w.pid())
			w.restart()
		}
		return
	}
	switch a.op {
	case control.OpStop, control.OpRestart: // an original has no socket, and ends by a signal at once
		if w.holder == nil {
			w.Log.Warn("Agent cannot be told to end: nobody knows which process it is", "err", a.err)
			w.lastWord = now.Add(-w.patience.stop)
			return
		}
		sig := terminateProcess
		if a.op == control.OpRestart {
			sig = killProcess // its builds go on
		}
		if err := w.holder.signal(sig); err != nil {
			w.Log.Warn("Agent cannot be told to end", "pid", w.pid(), "err", err)
		}
	case control.OpReload:
		w.Log.Warn("Agent does not read its configuration again", "err", a.err)
	}
}
