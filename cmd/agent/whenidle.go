package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/service/control"
)

// lookForIdle is how often a busy agent is asked whether it still builds.
const lookForIdle = time.Second

// state of an agent that is to be replaced.
type readiness int

const (
	over readiness = iota // nothing left to replace: no agent runs, it stops anyway, or it began after the question
	busy                  // it builds, or an upgrade is under way
	idle
)

// whenIdle waits for the moment in which the agent can be replaced: nothing builds, no script runs and no upgrade is under way,
// or limit is over; builds survive the restart then, too. It reports false when there is nothing left to replace.
func (a *agentOf) whenIdle(ctx context.Context, limit, every time.Duration) (bool, error) {
	end := time.NewTimer(limit)
	defer end.Stop()
	tick := time.NewTicker(every)
	defer tick.Stop()
	began, first, late := time.Now(), 0, false
	for {
		pid, how, err := a.readiness(ctx, first, began)
		switch {
		case err != nil || how == over:
			return false, err
		case how == idle || late:
			return true, nil
		case first == 0:
			first = pid
		}
		select {
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case <-end.C:
			late = true // asked once more: an agent that stops is left alone however late it is
		case <-tick.C:
		}
	}
}

// readiness looks at the agent. first is the process that was there when the question came, 0 when that is not known yet. One that
// cannot be asked is busy.
func (a *agentOf) readiness(ctx context.Context, first int, began time.Time) (pid int, how readiness, err error) {
	var s control.Status
	err = a.ask(ctx, control.Request{Op: control.OpStatus}, &s)
	switch {
	case err == nil:
		return s.PID, ready(s, first, began), nil
	case ctx.Err() != nil:
		return 0, over, context.Cause(ctx)
	}
	state, err := a.keeper.State(ctx)
	if err != nil || !state.Running {
		return 0, over, err
	}
	return first, busy, nil
}

// ready judges what an agent says about itself. One that came after the question was started from what is installed now, unless
// it came with an upgrade of another origin: then the package has not had its turn.
func ready(s control.Status, first int, began time.Time) readiness {
	last := s.Upgrade.Last
	switch {
	case s.Phase == control.Stopping:
		return over
	case !s.Idle():
		return busy
	case first != 0 && s.PID != first && (last == nil || last.Kind == "vendor" || last.Ended.Before(began)):
		return over
	}
	return idle
}

// restartIdle is "restart --when-idle".
func (a *agentOf) restartIdle(cmd *cobra.Command) error {
	cfg, err := config.LoadConfig(a.inst.Config)
	limit := 10 * time.Minute
	if err == nil {
		limit = cfg.Drain.Timeout
	}
	due, err := a.whenIdle(cmd.Context(), limit, lookForIdle)
	switch {
	case err != nil:
		return err
	case !due:
		say(cmd, "nothing to do: what starts next is what is installed")
		return nil
	}
	if err := a.keeper.Restart(cmd.Context()); err != nil {
		return err
	}
	say(cmd, "restarted: %s", a.called())
	return nil
}
