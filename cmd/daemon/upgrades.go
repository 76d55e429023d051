package main

import (
	"context"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/recovery"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/upgrader/journal"
)

// upgrades is what the daemon does about upgrades of its home. Its methods are called by the daemon's one goroutine, but guard.
type upgrades struct {
	*recovery.Home
	stuck   bool          // the disk is read-only
	counted bool          // this process's start was counted by who became it
	trial   chan struct{} // says that a version may be on trial
}

func newUpgrades(h *recovery.Home) *upgrades {
	u := &upgrades{Home: h, trial: make(chan struct{}, 1)}
	u.counted = os.Getenv(recovery.EnvRecovered) == strconv.Itoa(os.Getpid())
	_ = os.Unsetenv(recovery.EnvRecovered)
	u.watch() // this daemon may be a new one, beside an agent that lives on
	return u
}

// hook makes the daemon call us.
func (u *upgrades) hook(o *service.DaemonOptions) {
	o.Prepare, o.Before, o.Unstartable, o.Pending, o.Words, o.Stale = u.prepare, u.before, u.unstartable, u.Open, u.words, u.stale
	started := o.Started
	o.Started = func(p *os.Process) error {
		if err := u.Journal.Runs(p.Pid); err != nil {
			u.Log.Warn("Process of the new version not noted", "err", err)
		}
		return started(p)
	}
}

// prepare has the agent wait while the disk is read-only: it could not take its role.
func (u *upgrades) prepare(context.Context, *exec.Cmd) error {
	err := u.Inst.Writable()
	switch {
	case err != nil && !u.stuck:
		u.Log.Error("Agent cannot start", "err", err)
	case err == nil && u.stuck:
		u.Log.Info("Disk can be written to again", "home", u.Inst.Home)
	}
	if u.stuck = err != nil; u.stuck {
		return service.ErrLater
	}
	return nil
}

// before carries open upgrades on, under total-lock, before each start of the agent.
func (u *upgrades) before(ctx context.Context, last service.Ending) error {
	if u.counted && u.OnTrial() {
		u.counted = false
		u.watch()
		return nil
	}
	u.counted = false
	result, err := u.Start(ctx, journal.Last{How: last.How, Code: last.Code})
	if result.State == journal.Trial {
		u.watch()
	}
	return err
}

// stale reports whether the package was replaced beside an agent that lives on, as when this daemon's predecessor was killed.
func (u *upgrades) stale() bool {
	if u.Vendor == "" || u.Open() {
		return false
	}
	mode, _ := u.Inst.UpgradePolicy()
	unseen, err := u.Journal.Unseen(u.Vendor, mode)
	if err != nil {
		u.Log.Warn("Whether the package has other programs is not known", "err", err)
	}
	return unseen && err == nil
}

// unstartable takes a new version back that cannot be executed.
func (u *upgrades) unstartable(_ context.Context, cause error) bool { return u.GiveUp(cause) }

func (u *upgrades) watch() {
	select {
	case u.trial <- struct{}{}:
	default: // it is about to look
	}
}

// guard watches new versions until ctx ends. idle is told each time that there is nothing to watch any more.
func (u *upgrades) guard(ctx context.Context, idle func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-u.trial:
		}
		if u.OnTrial() {
			u.Guard(ctx)
			idle()
		}
	}
}

// words is where the standard error of a new version is kept beside the log.
func (u *upgrades) words() io.WriteCloser {
	path := u.Journal.Stderr()
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		u.Log.Warn("What the new version says on standard error is not kept", "err", err)
		return nil
	}
	return &trialWords{File: f, open: u.OnTrial}
}

// trialWords is the file in which the last words of a new version are kept until its trial is over.
type trialWords struct {
	*os.File
	open func() bool

	mu     sync.Mutex
	closed bool
	asked  time.Time
}

// trialEvery is how often it is asked whether the trial is over.
const trialEvery = time.Second

// Write writes one line, or drops it when the trial is over.
func (w *trialWords) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return len(p), nil
	}
	if now := time.Now(); now.Sub(w.asked) > trialEvery {
		if w.asked = now; !w.open() {
			w.closed = true
			return len(p), w.File.Close()
		}
	}
	return w.File.Write(p)
}

// Close ends it.
func (w *trialWords) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	return w.File.Close()
}
