package main

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"

	"github.com/devops-agent/devops-agent/service/control"
)

// door is the local control of this process, whoever answers at the moment.
type door struct {
	answers atomic.Pointer[control.Handler]
	stop    context.CancelFunc
	served  chan error
}

// openDoor listens. An agent without control still builds: what keeps it from listening is logged, and that is all.
func openDoor(home string, log *slog.Logger) *door {
	d := &door{stop: func() {}, served: make(chan error, 1)}
	l, err := control.Listen(home, control.RoleAgent)
	if err != nil {
		log.Warn("Local control is off; \"devopsAgent status\" cannot ask this agent", "err", err)
		d.served <- nil
		return d
	}
	l.Log = log
	ctx, stop := context.WithCancel(context.Background())
	d.stop = stop
	go func() {
		d.served <- l.Serve(ctx, func(ctx context.Context, r control.Request) (any, error) {
			if answer := d.answers.Load(); answer != nil {
				return (*answer)(ctx, r)
			}
			return nil, errors.New("the agent is still starting")
		})
	}()
	return d
}

// to makes h answer from now on.
func (d *door) to(h control.Handler) { d.answers.Store(&h) }

func (d *door) close() error {
	d.stop()
	return <-d.served
}
