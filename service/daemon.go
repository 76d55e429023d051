package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/devops-agent/devops-agent/service/control"
)

// patience is how long a daemon waits for what.
type patience struct {
	lockCheck time.Duration // between looks after an agent it did not start (protocol §3.5.1)
	ask       time.Duration // between questions to an agent that does not talk on a pipe
	watchdog  time.Duration // of silence, once the agent has talked
	abort     time.Duration // to write its stack down, for an agent that hangs
	stop      time.Duration // after the last word of an agent that was told to stop
	restart   time.Duration // for an agent that was told to make room for the next one
	late      time.Duration // a timer that is so late says that this process was stopped, too
	life      time.Duration // an agent that ends later than this was no crash at the start
}

func usualPatience() patience {
	return patience{lockCheck: 5 * time.Second, ask: 15 * time.Second, watchdog: 45 * time.Second, abort: 3 * time.Second,
		stop: 90 * time.Second, restart: 10 * time.Second, late: 2 * time.Second, life: 10 * time.Second}
}

const (
	strangerTotal = 300 * time.Millisecond // for how long a new agent of an unknown kind finds total-lock held
	knownTotal    = 5 * time.Second        // the same for a program that has talked before
	totalPoll     = 50 * time.Millisecond  // between tries for total-lock
	lockEcho      = time.Second            // for which a lock may outlive its holder
)

// ErrLater is what Prepare returns when the agent cannot be started for now and that is no fault, as before a login. The
// daemon tries again after half a minute or at Wake.
var ErrLater = errors.New("cannot be started yet")

// laterPause is how long ErrLater is good for.
const laterPause = 30 * time.Second

// DaemonOptions are what a Daemon needs to run.
type DaemonOptions struct {
	Installation *Installation
	GOOS         string
	Version      string // of the daemon
	Debug        bool   // passed on to the agent (protocol §3.1)
	Log          *slog.Logger

	// Before comes before each launch, under total-lock, when no agent runs; nil for nothing. It is told how the agent before
	// ended, if that was ours. An error is logged and the launch goes on: what is there may still run.
	Before func(ctx context.Context, last Ending) error
	// Unstartable is told, under total-lock, that the agent's program cannot be executed; true means that another one is in its
	// place now, which is started at once. nil for nothing.
	Unstartable func(ctx context.Context, cause error) bool
	// Pending reports whether an upgrade is open: then an agent that ends has a reason, and the next start is not waited for. nil
	// for never.
	Pending func() bool
	// Stale reports whether an agent that somebody else started runs an older program than the package has brought since. It is
	// asked once for each, and the agent is told to make room when it builds nothing. nil for never.
	Stale func() bool
	// Words returns where the next agent's standard error goes beside the log; nil, and nil returned, for nowhere. It is closed
	// at the agent's end.
	Words func() io.WriteCloser
	// Prepare may change how the agent is started: its token, for instance. It is called without any lock. nil for nothing.
	// On Windows, a command with SysProcAttr.NoInheritHandles gets no pipes and is watched by asking it.
	Prepare func(ctx context.Context, cmd *exec.Cmd) error
	// Start starts the command in place of its own method, after which Process is set and Wait works: as another user, for
	// instance. nil for cmd.Start.
	Start func(cmd *exec.Cmd) error
	// Reap takes the end of processes that lost their parent, the agent, off the system's hands (Linux). It is for a process
	// that has no other children.
	Reap bool
	// Started is told about each agent that was started, before anything is expected of it. nil for nothing.
	Started func(p *os.Process) error
	// Asked is told that somebody has asked something through the control socket. nil for nothing.
	Asked func()
}

// Ending is how an agent ended. The zero Ending says that nobody knows.
type Ending struct {
	How  string // "exit status 1: devopsAgent: …"
	Code *int   // exit code, nil when it had none
}

// Daemon keeps the agent of one home running, without help of the system (protocol §3.5). Stop, Restart, Reload and Wake
// may be called at any time from any goroutine.
type Daemon struct {
	DaemonOptions
	patience patience
	orders   chan order
	pace     pace
	spoke    Stamp // the program that has talked on the pipe

	mu     sync.Mutex
	status control.DaemonStatus
}

// order is something that a Daemon was told.
type order int

const (
	orderStop order = iota
	orderStopNow
	orderRestart
	orderReload
	orderWake
)

// NewDaemon wires a daemon together and starts nothing.
func NewDaemon(o DaemonOptions) *Daemon {
	return &Daemon{DaemonOptions: o, patience: usualPatience(), orders: make(chan order, 16), pace: newPace(time.Now()),
		status: control.DaemonStatus{PID: os.Getpid(), Version: o.Version, Since: time.Now()}}
}

// Stop makes the daemon stop its agent, which drains first, and then end. A second Stop, and one with now, make the agent
// stop its builds.
func (d *Daemon) Stop(now bool) {
	if now {
		d.order(orderStopNow)
		return
	}
	d.order(orderStop)
}

// Restart replaces the agent by a fresh one. Builds go on.
func (d *Daemon) Restart() { d.order(orderRestart) }

// Reload makes the agent read its configuration again.
func (d *Daemon) Reload() { d.order(orderReload) }

// Wake ends a pause before the next start.
func (d *Daemon) Wake() { d.order(orderWake) }

// ordersForStop is the room in orders that is kept for those to stop: a storm of the others must not hide one.
const ordersForStop = 8

func (d *Daemon) order(o order) {
	if o != orderStop && o != orderStopNow && len(d.orders) > cap(d.orders)-ordersForStop {
		return // as many others wait
	}
	select {
	case d.orders <- o:
	default: // sixteen others wait, of them eight to stop
	}
}

// Status says how daemon and agent are.
func (d *Daemon) Status() control.DaemonStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.status
}

func (d *Daemon) note(change func(s *control.DaemonStatus)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(&d.status)
}

// errStopped: the daemon was told to stop, and has.
var errStopped = errors.New("stopped")

// Run takes the role and keeps the agent alive until Stop, or the end of ctx, which means the same. ErrRunning is another
// daemon of this home; ErrRemoved an agent that ended with ExitStayDown, which every keeper follows (protocol §3.2).
func (d *Daemon) Run(ctx context.Context) (err error) {
	lock, err := d.Installation.Hold(ctx, RoleDaemon)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	defer context.AfterFunc(ctx, func() { d.Stop(false) })()
	ctx, end := context.WithCancel(context.WithoutCancel(ctx)) // what ends with Run, not before the agent has stopped
	var helpers sync.WaitGroup
	defer helpers.Wait()
	defer end()
	r := &keeping{Daemon: d, reap: newReaper(d.Reap)}
	defer r.reap.close()
	d.answer(ctx, &helpers)
	d.Log.Info("Daemon starts", "version", d.Version, "home", d.Installation.Home, "pid", os.Getpid())
	if err := d.Installation.forgetRemoval(); err != nil { // whoever starts a daemon wants an agent
		d.Log.Warn("Mark of a removed agent stays", "err", err)
	}
	for {
		switch err := r.life(ctx); {
		case err == nil:
			continue
		case errors.Is(err, errStopped):
			d.Log.Info("Daemon ends")
			return nil
		default:
			return err
		}
	}
}

// keeping is one Run.
type keeping struct {
	*Daemon
	reap    *reaper
	starts  int    // agents started so far
	last    Ending // of the agent before
	hurried int    // starts in a row that were not waited for because of an upgrade
}

// mostHurried bounds hurried: an upgrade that cannot be taken back, because the disk is read-only, must not take a processor.
const mostHurried = 6

// errAgain: another program is in the agent's place now.
var errAgain = errors.New("another program is in its place")

// life is that of one agent: wait for its turn, start it or find another's, see it end. It returns nil for the next.
func (r *keeping) life(ctx context.Context) error {
	c, err := r.begin(ctx)
	var fault *launchError
	switch {
	case errors.Is(err, errAgain):
		return nil
	case errors.As(err, &fault):
		return r.pause(ctx, r.pace.fault(time.Now(), false), "Agent cannot be started", fault.cause.Error(), 0)
	case errors.Is(err, ErrLater):
		return r.rest(ctx, laterPause)
	case err != nil:
		return err
	case c == nil:
		return r.watch(ctx)
	}
	return r.mind(ctx, c)
}

// launchError: the agent's program could not be started.
type launchError struct{ cause error }

func (e *launchError) Error() string { return e.cause.Error() }
func (e *launchError) Unwrap() error { return e.cause }

// program is the agent's file.
func (r *keeping) program() string {
	return r.Installation.Path(ProgramName(r.GOOS, "devopsAgent"))
}

// begin starts the agent unless somebody else's runs: then there is no child and no error. It waits for total-lock
// (protocol §8.11 statement 100) and hands it to the child, so that nobody gets between the look at agent.lock and the
// moment in which the child holds it (weakness W-38).
func (r *keeping) begin(ctx context.Context) (*child, error) {
	path := r.program()
	var args []string
	if r.Debug {
		args = []string{"debug"}
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = r.Installation.Home
	cmd.Env = childEnviron(r.patience.watchdog)
	apart(cmd)
	if r.Prepare != nil {
		if err := r.Prepare(ctx, cmd); errors.Is(err, ErrLater) {
			return nil, err
		} else if err != nil {
			return nil, &launchError{err}
		}
	}
	total, err := r.claim(ctx)
	if errors.Is(err, errStopped) {
		return nil, err
	} else if err != nil { // a lock that is somebody else's, for instance: it may be given back
		return nil, &launchError{err}
	}
	if total == nil {
		return nil, nil
	}
	if r.Before != nil {
		if err := r.Before(ctx, r.last); err != nil {
			r.Log.Error("Interrupted upgrade not settled", "err", err)
		}
		r.last = Ending{}
	}
	makeExecutable(path)
	var also io.WriteCloser
	if r.Words != nil {
		also = r.Words()
	}
	c, err := launch(cmd, r.Start, r.Log, also)
	if err != nil {
		again := r.Unstartable != nil && CannotRun(err) && r.Unstartable(ctx, err)
		if rerr := total.Release(); rerr != nil {
			return nil, rerr
		}
		if again {
			return nil, errAgain
		}
		return nil, &launchError{err}
	}
	c.total, c.file = total, StampOf(path)
	if r.Started != nil {
		if err := r.Started(c.cmd.Process); err != nil {
			r.Log.Error("Agent not taken care of", "pid", c.pid, "err", err)
		}
	}
	r.starts++
	restarts := r.starts - 1
	r.note(func(s *control.DaemonStatus) {
		s.Child, s.Adopted, s.Ready, s.Sentence, s.NextStart, s.Restarts = c.pid, false, false, "", nil, restarts
	})
	r.Log.Info("Agent started", "pid", c.pid)
	return c, nil
}

// claim takes total-lock for a start, unless an agent runs: then there is no lock. An agent that was killed while it started
// something leaves its lock to that for an instant, until that has become a program of its own.
func (r *keeping) claim(ctx context.Context) (*Lock, error) {
	for began := time.Now(); ; {
		total, err := r.takeTotal(ctx)
		if err != nil {
			return nil, err
		}
		free, err := r.Installation.free(RoleAgent)
		if free && err == nil {
			return total, nil
		}
		if err := errors.Join(err, total.Release()); err != nil {
			return nil, err
		}
		if _, known := r.Installation.Holder(RoleAgent); known || time.Since(began) > lockEcho {
			return nil, nil
		}
		if err := r.briefly(lockPoll / 2); err != nil {
			return nil, err
		}
	}
}

// briefly waits, and hears only that it is to stop: whatever else was asked for is about to happen.
func (r *keeping) briefly(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case o := <-r.orders:
		if o == orderStop || o == orderStopNow {
			return errStopped
		}
	case <-timer.C:
	}
	return nil
}

// takeTotal waits for total-lock as long as it takes: an agent started under an upgrader would run what is being replaced.
func (r *keeping) takeTotal(ctx context.Context) (*Lock, error) {
	total := newLock(r.Installation.Path("runtime", "total-lock.lock"))
	began, said := time.Now(), false
	for {
		got, err := total.TryLock()
		if got {
			return &Lock{file: total}, nil
		}
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", total.Path(), err)
		}
		if !said && time.Since(began) > totalLockWait {
			said = true
			busy := &BusyError{Path: total.Path(), Waited: totalLockWait}
			r.Log.Error("Agent not started", "err", busy, "hint", busy.Hint())
		}
		if err := r.briefly(totalPoll); err != nil {
			return nil, err
		}
	}
}

// childEnviron is ours without what our own keeper told us.
func childEnviron(watchdog time.Duration) []string {
	var env []string
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		switch name {
		case envNotifySocket, envWatchdog, envWatchdogPID, EnvNotifyFD, envTotal:
			continue
		}
		env = append(env, entry)
	}
	return append(env, envWatchdog+"="+strconv.FormatInt(watchdog.Microseconds(), 10), envTotal+"="+strconv.Itoa(os.Getpid()))
}

// makeExecutable does what the original does before each launch; what cannot be changed shows when it is started.
func makeExecutable(path string) {
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o100 == 0 {
		_ = os.Chmod(path, info.Mode().Perm()|0o100)
	}
}

// pause says why the next start has to wait, and waits.
func (r *keeping) pause(ctx context.Context, d time.Duration, what, how string, lived time.Duration) error {
	r.note(func(s *control.DaemonStatus) { s.LastExit = how })
	if d == 0 {
		return nil
	}
	r.Log.Warn(what, "how", how, "after", lived.Round(time.Millisecond), "times", r.pace.streak, "next_start_in", d)
	return r.rest(ctx, d)
}

// rest waits, but not longer than until it is told to go on, or the agent's program or agent.toml has become another one.
func (r *keeping) rest(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	before, config := StampOf(r.program()), StampOf(r.Installation.Config)
	next := time.Now().Add(d)
	r.note(func(s *control.DaemonStatus) { s.NextStart = &next })
	defer r.note(func(s *control.DaemonStatus) { s.NextStart = nil })
	for left := d; left > 0; left = time.Until(next) {
		timer := time.NewTimer(min(left, time.Second))
		select {
		case o := <-r.orders:
			timer.Stop()
			switch o {
			case orderStop, orderStopNow:
				return errStopped
			case orderRestart, orderWake:
				return nil
			case orderReload:
			}
		case <-r.reap.childEnded():
			timer.Stop()
			r.reap.reap(0)
		case <-timer.C:
			if now := StampOf(r.program()); now != before && now.size > 0 {
				r.Log.Info("Agent's program has changed", "path", r.program())
				r.pace.forget(time.Now())
				return nil
			}
			if now := StampOf(r.Installation.Config); now != config {
				r.Log.Info("Configuration has changed", "path", r.Installation.Config)
				r.pace.forget(time.Now())
				return nil
			}
		}
	}
	return nil
}
