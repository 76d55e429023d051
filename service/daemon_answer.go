package service

import (
	"context"
	"fmt"
	"sync"

	"github.com/devops-agent/devops-agent/service/control"
)

// answer serves the control socket of the daemon until ctx ends. A daemon without one still does its work.
func (d *Daemon) answer(ctx context.Context, helpers *sync.WaitGroup) {
	l, err := control.Listen(d.Installation.Home, string(RoleDaemon))
	if err != nil {
		d.Log.Warn("Daemon cannot be asked", "err", err)
		return
	}
	l.Log = d.Log
	helpers.Go(func() {
		if err := l.Serve(ctx, d.do); err != nil {
			d.Log.Warn("Daemon cannot be asked any more", "err", err)
		}
	})
}

// do is what can be asked of a daemon.
func (d *Daemon) do(_ context.Context, q control.Request) (any, error) {
	if d.Asked != nil {
		defer d.Asked()
	}
	switch q.Op {
	case control.OpStatus:
		return d.Status(), nil
	case control.OpStop:
		d.Stop(q.Now)
	case control.OpRestart:
		d.Restart()
	case control.OpReload:
		d.Reload()
	default:
		return nil, fmt.Errorf("a daemon does not know %q", q.Op)
	}
	return d.Status(), nil
}
