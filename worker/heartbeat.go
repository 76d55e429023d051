package worker

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// The heartbeat of a worker (protocol §6.6).
const (
	beatFirst    = 10 * time.Second
	beatEvery    = 2 * time.Second
	beatFailures = 12 // in a row; then the worker gives up
	maxCancelled = 1000
)

// beat tells the server that we live until ctx ends. stop ends the job.
func (j *job) beat(ctx context.Context, stop context.CancelCauseFunc) {
	failures := 0
	for wait := beatFirst; sleep(ctx, wait); wait = beatEvery {
		var cancel []string
		err := steady.do(ctx, http.MethodPost, func(retry int) (err error) {
			cancel, err = j.session.Beat(ctx, j.progress(), j.count, retry)
			return err
		})
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, wire.BuildEnded):
			stop(errBuildOver)
			return
		case err != nil:
			failures++
			j.log.Warn("Heartbeat lost", "failures", failures, "err", err)
			if failures == beatFailures {
				stop(errBeatLost)
				return
			}
		default:
			if failures > 0 {
				j.log.Info("Heartbeat back")
			}
			failures = 0
			j.cancel(cancel)
		}
	}
}

// progress is what the running task has said of itself.
func (j *job) progress() wire.WorkerHeartbeat {
	j.mu.Lock()
	defer j.mu.Unlock()
	return wire.WorkerHeartbeat{ProgressRate: maps.Clone(j.rates), ProgressDetail: maps.Clone(j.details)}
}

// cancel stops the running task when it is one of ids. The others are remembered: a task may be cancelled between
// its claim and its start.
func (j *job) cancel(ids []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, id := range ids {
		if id == "" || len(j.cancelled) >= maxCancelled || j.cancelled[id] {
			continue
		}
		j.cancelled[id] = true
		j.log.Info("Task is cancelled", "task", id)
		if id == j.task {
			j.stop(errCancelled)
		}
	}
}

// begin makes a task the running one: from now on it can be cancelled. The returned function ends that.
func (j *job) begin(ctx context.Context, id string) (context.Context, func()) {
	ctx, stop := context.WithCancelCause(ctx)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.task, j.stop = id, stop
	if j.cancelled[id] {
		stop(errCancelled)
	}
	return ctx, func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.task, j.stop = "", nil
		delete(j.rates, id)
		delete(j.details, id)
		delete(j.cancelled, id) // a retry of the same task is another run
		stop(nil)
	}
}
