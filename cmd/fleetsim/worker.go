package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// task is what the simulated builds of a profile do.
type task struct {
	lasts time.Duration // of the script
	lines int           // of log
	batch int           // lines in one call; 0 is 1000, what workers send at most
	until func() bool   // more batches until it is true, after lines of them; nil for no more
}

// worker speaks the worker's part of the protocol (Part 6) for one build.
type worker struct {
	agent   *agent
	session wire.Session
	job     task
	batch   int64
}

// run is the session of one build. It returns nil as well when the build belongs to somebody else: that is an end.
func (w *worker) run(ctx context.Context) error {
	var job *wire.BuildVariables
	err := w.agent.repeat(ctx, "worker: started", func(retry int) (err error) {
		job, err = w.session.Started(ctx, retry)
		return err
	})
	if errors.Is(err, wire.BuildEnded) || errors.Is(err, wire.AlreadyStarted) {
		return nil
	}
	if err != nil {
		return err
	}
	w.agent.fleet.began(w.session.Build)
	for {
		var next *wire.BuildTask
		err := w.agent.repeat(ctx, "worker: claim", func(retry int) (err error) {
			next, err = w.session.ClaimTask(ctx, retry)
			return err
		})
		if errors.Is(err, wire.BuildEnded) {
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case next == nil || next.Status == wire.TaskWait:
			if !sleep(ctx, time.Second, nil) {
				return context.Cause(ctx)
			}
			continue
		case next.Status == wire.TaskEnd:
			err := w.agent.repeat(ctx, "worker: end", func(retry int) error { return w.session.End(ctx, nil, retry) })
			if errors.Is(err, wire.BuildEnded) {
				return nil
			}
			return err
		}
		if err := w.step(ctx, job, next); err != nil {
			return err
		}
	}
}

// step plays a script: its log, its time, its result.
func (w *worker) step(ctx context.Context, job *wire.BuildVariables, t *wire.BuildTask) error {
	size, count := w.job.batch, 1
	if size == 0 {
		size = 1000
	}
	for sent := 0; sent < w.job.lines || w.job.until != nil && !w.job.until(); sent += size {
		n := size
		if w.job.until == nil {
			n = min(size, w.job.lines-sent)
		}
		lines := make([]wire.LogLine, n)
		for i := range lines {
			lines[i] = wire.LogLine{Timestamp: time.Now().UnixMilli(), Tag: *t.TaskID, StepID: *t.StepID, JobID: "job", ContainerHashID: job.ContainerHashID,
				LogType: wire.LogNormal, ExecuteCount: &count, Message: fmt.Sprintf("%d: a line of a usual length, as a compiler or a test prints it", sent+i)}
		}
		body, err := json.Marshal(lines)
		if err != nil {
			return err
		}
		w.batch++
		if err := w.agent.repeat(ctx, "worker: log", func(int) error { return w.session.Logs(ctx, body, w.batch) }); err != nil {
			return err
		}
		w.agent.fleet.logged.Add(int64(n))
	}
	if !sleep(ctx, w.job.lasts, nil) {
		return context.Cause(ctx)
	}
	zero := 0
	return w.agent.repeat(ctx, "worker: complete", func(retry int) error {
		return w.session.Complete(ctx, wire.TaskResult{TaskID: *t.TaskID, ElementID: *t.TaskID, Success: true, ExecuteCount: &count, BuildResult: map[string]string{},
			ErrorCode: &zero}, retry)
	})
}
