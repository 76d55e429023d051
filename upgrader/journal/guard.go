package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/service/control"
	"github.com/devops-agent/devops-agent/service/proc"
)

// Runs notes which process is the agent on trial, for Guard. Without an upgrade on trial it does nothing.
func (j *Journal) Runs(pid int) error {
	f, err := j.Current()
	if err != nil || f.State != Trial {
		return err
	}
	started, ok := proc.Identify(pid)
	if !ok {
		return nil // it has ended
	}
	j.note(f.Record.ID, pidOf, strconv.Itoa(pid)+" "+started)
	return nil
}

// noted is the process that Runs has noted last.
func (j *Journal) noted(id string) (pid int, started string, ok bool) {
	text, err := j.read(j.in(id, pidOf))
	if err != nil {
		return 0, "", false
	}
	number, started, ok := strings.Cut(strings.TrimSpace(string(text)), " ")
	pid, err = strconv.Atoi(number)
	return pid, started, ok && err == nil && pid > 1
}

// running is the process that is on trial, while it lives: the one that Runs has noted, or, when there was no room for that or
// somebody else has started another, the one that has the role.
func (j *Journal) running(inst *service.Installation, id string) (pid int, started string, ok bool) {
	if pid, started, ok := j.noted(id); ok && proc.Alive(pid, started) {
		return pid, started, true
	}
	h, ok := inst.Holder(service.RoleAgent)
	if !ok {
		return 0, "", false
	}
	if same, known := h.Runs(j.path(Place(Agent, j.goos))); known && !same {
		return 0, "", false // the old one, which has not made room yet
	}
	return h.PID, h.Started, true
}

// guardEvery is the distance of looks at a new version.
const guardEvery = 500 * time.Millisecond

// Guard watches a new version until its trial is over. After patience without a sign that it is well, or when it uses too much
// memory, it is taken back and its process killed, so that its keeper starts the old one. One that was well and is no more
// gets that patience again: somebody may have restarted it. Guard needs nothing of the new version. There is one guard at a
// time: where another one watches, it returns at once. Trouble of the server is no fault of a version.
func (j *Journal) Guard(ctx context.Context, inst *service.Installation, patience time.Duration) error {
	f, err := j.Current()
	if err != nil || f.State != Trial {
		return err
	}
	own := flock.New(j.path(dir, "guard.lock"), flock.SetPermissions(0o600))
	if got, err := own.TryLock(); err != nil || !got {
		return err
	}
	defer func() { _ = own.Unlock() }()
	g := guard{Journal: j, inst: inst, id: f.Record.ID, patience: patience, begun: time.Now()}
	g.good, g.looked = g.begun, g.begun
	tick := time.NewTicker(j.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if over, err := g.look(ctx); over || err != nil {
			return err
		}
	}
}

// guard is one watch over one new version.
type guard struct {
	*Journal
	inst     *service.Installation
	id       string
	patience time.Duration
	begun    time.Time // these are monotonic: a clock that is set does not matter
	asked    time.Time // when the new version was asked last
	good     time.Time // when it was well last; begun before that
	looked   time.Time // when it was looked at last
	idle     time.Duration
	said     string
}

// mostIdle is how often patience passes without a new version that runs, until its guard ends: the next start brings another.
const mostIdle = 10

// rests stops the clock while the new version does not run: somebody has stopped it, which is no fault of it, or it has ended by
// itself, and then its next start counts.
func (g *guard) rests(now time.Time) (over bool) {
	passed := now.Sub(g.looked)
	g.begun, g.good = g.begun.Add(passed), g.good.Add(passed)
	g.idle += passed
	return g.idle > mostIdle*g.patience
}

// calm is how many looks pass between two questions to a version that was well.
const calm = 10

// look reports that the trial is over.
func (g *guard) look(ctx context.Context) (over bool, err error) {
	f, err := g.Current()
	if err != nil || f.State != Trial || f.Record.ID != g.id {
		return true, err
	}
	g.curbStderr(g.id)
	now := time.Now()
	pid, _, runs := g.running(g.inst, g.id)
	if !runs {
		over = g.rests(now)
		g.looked = now
		return over, nil
	}
	g.looked, g.idle = now, 0
	if used := g.memory(pid); used > g.limit {
		return true, g.condemn(ctx, fmt.Sprintf("it used %d MiB of memory", used>>20))
	}
	if time.Since(g.begun) < g.patience || g.good.After(g.begun) && time.Since(g.asked) < calm*g.every {
		return false, nil
	}
	g.asked = time.Now()
	well, settle, why := g.examine(ctx, f.Record)
	switch {
	case ctx.Err() != nil:
		return true, nil // nobody has answered because nobody was to be asked any more
	case settle:
		_, err := g.under(ctx, func() error { _, err := g.Settle(); return err })
		return true, err
	case well:
		g.good = time.Now()
		if g.said != why {
			g.said = why
			g.log.Info("New version is well and not settled yet", "upgrade", g.id, "why", why)
		}
		return false, nil
	case time.Since(g.good) < g.patience:
		return false, nil
	}
	return true, g.condemn(ctx, fmt.Sprintf("for %v %s", g.patience, why))
}

// examine asks the new version how it is. settle means that it is well and cannot settle by itself.
func (g *guard) examine(ctx context.Context, r *Record) (well, settle bool, why string) {
	var s control.Status
	err := control.Call(ctx, g.inst.Home, string(service.RoleAgent), control.Request{Op: control.OpStatus}, &s)
	if err != nil {
		if _, runs := g.inst.Holder(service.RoleAgent); r.Foreign && runs {
			return true, true, ""
		}
		return false, false, "it did not answer: " + err.Error()
	}
	return judge(s, r.Reached)
}

// judge says whether an agent with this status is well.
func judge(s control.Status, reached bool) (well, settle bool, why string) {
	switch {
	case s.Server.LastContact != nil:
		return true, false, "it runs, and its time to prove itself is not over"
	case s.Server.Problem == control.Unreachable, s.Server.Problem == control.ServerError, s.Server.Problem == control.Deleted:
		return true, false, "its server is in trouble"
	case !reached:
		return true, false, "the version before it could not reach the server either"
	case s.Server.Error != "":
		return false, false, "it could not talk to its server, as the version before it could: " + s.Server.Error
	}
	return false, false, "it did not talk to its server"
}

// under does something under total-lock, if the upgrade is still on trial then.
func (g *guard) under(ctx context.Context, do func() error) (done bool, err error) {
	total, err := g.inst.HoldTotal(ctx, time.Minute)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, total.Release()) }()
	if f, err := g.Current(); err != nil || f.State != Trial || f.Record.ID != g.id {
		return false, err
	}
	return true, do()
}

// condemn brings the old version back and ends the new one. One that cannot be taken back, on a disk that fails, is left alone: its
// keeper would only start it again.
func (g *guard) condemn(ctx context.Context, why string) error {
	var pid int
	var started string
	var runs bool
	done, err := g.under(ctx, func() error {
		pid, started, runs = g.running(g.inst, g.id)
		_, err := g.Undo(why, Last{})
		return err
	})
	if !done || err != nil || !runs || !proc.Alive(pid, started) {
		return err
	}
	p, err := os.FindProcess(pid)
	if err == nil {
		err = p.Kill()
	}
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill the new version, process %d: %w", pid, err)
	}
	return nil
}

// Stderr is the file that what the agent on trial writes to standard error goes to; "" when none is on trial.
func (j *Journal) Stderr() string {
	if f, err := j.Current(); err == nil && f.State == Trial {
		return j.in(f.Record.ID, stderrOf)
	}
	return ""
}

// mostStderrFile is how much standard error a new version may leave on the disk, in bytes.
const mostStderrFile = 256 << 10

// curbStderr empties a file that somebody fills.
func (j *Journal) curbStderr(id string) {
	path := j.in(id, stderrOf)
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && info.Size() > mostStderrFile {
		_ = os.Truncate(path, 0) // who writes there appends
	}
}
