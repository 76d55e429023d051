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

// running is the process that Runs has noted, while it lives.
func (j *Journal) running(id string) (pid int, started string, ok bool) {
	text, started, ok := strings.Cut(j.noted(id, pidOf), " ")
	pid, err := strconv.Atoi(text)
	if !ok || err != nil || pid < 2 {
		return 0, "", false
	}
	return pid, started, proc.Alive(pid, started)
}

// guardEvery is the distance of looks at a new version.
const guardEvery = 500 * time.Millisecond

// Guard watches a new version until its trial is over. After Patience without a sign that it is well, or when it uses too much
// memory, it is taken back and its process killed, so that its keeper starts the old one. It needs nothing of the new
// version. There is one guard at a time: where another one watches, it returns at once. Trouble of the server is no
// fault of a version.
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
	id := f.Record.ID
	begun, said := time.Now(), false // monotonic: a clock that is set does not matter
	tick := time.NewTicker(guardEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		f, err := j.Current()
		if err != nil || f.State != Trial || f.Record.ID != id {
			return err
		}
		j.curbStderr(id)
		if pid, _, ok := j.running(id); ok {
			if used := memoryOf(pid); used > MostMemory {
				return j.condemn(ctx, inst, id, fmt.Sprintf("it used %d MiB of memory", used>>20))
			}
		}
		if time.Since(begun) < patience {
			continue
		}
		well, settle, why := j.examine(ctx, inst, f.Record)
		switch {
		case settle:
			return j.under(ctx, inst, id, func() error { _, err := j.Settle(); return err })
		case !well:
			return j.condemn(ctx, inst, id, fmt.Sprintf("after %v %s", patience, why))
		case !said:
			said = true
			j.log.Info("New version is well and not settled yet", "upgrade", id, "why", why)
		}
	}
}

// examine asks the new version how it is. settle means that it is well and cannot settle by itself.
func (j *Journal) examine(ctx context.Context, inst *service.Installation, r *Record) (well, settle bool, why string) {
	var s control.Status
	err := control.Call(ctx, inst.Home, string(service.RoleAgent), control.Request{Op: control.OpStatus}, &s)
	if err != nil {
		if _, runs := inst.Holder(service.RoleAgent); r.Foreign && runs {
			return true, true, ""
		}
		return false, false, "it does not answer: " + err.Error()
	}
	return judge(s, r.Reached)
}

// judge says whether an agent with this status is well.
func judge(s control.Status, reached bool) (well, settle bool, why string) {
	switch {
	case s.Server.LastContact != nil:
		return true, false, "it runs, and its time to prove itself is not over"
	case s.Server.Problem == control.Unreachable, s.Server.Problem == control.ServerError, s.Server.Problem == control.Deleted:
		return true, false, "its server is in trouble: " + s.Server.Error
	case !reached:
		return true, false, "the version before it could not reach the server either"
	case s.Server.Error != "":
		return false, false, "it cannot talk to its server, as the version before it could: " + s.Server.Error
	}
	return false, false, "it has not talked to its server"
}

// under does something under total-lock, if the upgrade is still on trial then.
func (j *Journal) under(ctx context.Context, inst *service.Installation, id string, do func() error) (err error) {
	total, err := inst.HoldTotal(ctx, time.Minute)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, total.Release()) }()
	if f, err := j.Current(); err != nil || f.State != Trial || f.Record.ID != id {
		return err
	}
	return do()
}

// condemn brings the old version back and ends the new one.
func (j *Journal) condemn(ctx context.Context, inst *service.Installation, id, why string) error {
	pid, started, runs := j.running(id)
	err := j.under(ctx, inst, id, func() error {
		_, err := j.Undo(why, Last{})
		return err
	})
	if !runs || !proc.Alive(pid, started) {
		return err
	}
	p, ferr := os.FindProcess(pid)
	if ferr == nil {
		ferr = p.Kill()
	}
	if ferr != nil && !errors.Is(ferr, os.ErrProcessDone) {
		err = errors.Join(err, fmt.Errorf("kill the new version, process %d: %w", pid, ferr))
	}
	return err
}

// Stderr is the file that what the agent on trial writes to standard error goes to; "" when none is on trial.
func (j *Journal) Stderr() string {
	if f, err := j.Current(); err == nil && f.State == Trial {
		return j.in(f.Record.ID, stderrOf)
	}
	return ""
}

// curbStderr empties a file that somebody fills.
func (j *Journal) curbStderr(id string) {
	path := j.in(id, stderrOf)
	if info, err := os.Stat(path); err == nil && info.Size() > most {
		_ = os.Truncate(path, 0) // who writes there appends
	}
}

// Well notes that the new version runs well and only waits for its server: starts of later days do not count against it.
func (j *Journal) Well() error {
	f, err := j.Current()
	if err != nil || f.State != Trial || f.Starts == 0 {
		return err
	}
	return j.enter(&f, Trial, 0)
}
