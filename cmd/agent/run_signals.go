package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

// caught are the signals of an agent. It counts them itself: the first that asks for the end lets builds end, a second
// one does not. A hang-up reads agent.toml again, so that neither a closed terminal nor "systemctl reload" ends the agent.
// On Windows, CTRL_BREAK arrives as os.Interrupt, and a closed console, a logout and a shutdown as SIGTERM.
type caught struct {
	ctx   context.Context // of cli.Main: ends with the first SIGTERM or interrupt
	ends  chan os.Signal
	hups  chan os.Signal // apart from those, so that a storm of hang-ups hides no wish to end
	known bool           // the first had come before ends was there
}

func catch(ctx context.Context) *caught {
	// Looked at first: a signal between the two lines counts as none, and never as two, which would stop builds at once.
	c := &caught{ctx: ctx, ends: make(chan os.Signal, 8), hups: make(chan os.Signal, 1), known: ctx.Err() != nil}
	signal.Notify(c.ends, os.Interrupt, syscall.SIGTERM)
	signal.Notify(c.hups, syscall.SIGHUP)
	return c
}

func (c *caught) release() {
	signal.Stop(c.ends)
	signal.Stop(c.hups)
}

// steered is what signals are for.
type steered interface {
	Stop(now bool)
	Reload() error
}

// steer hands the signals on until done is closed.
func (c *caught) steer(a steered, log *slog.Logger, done <-chan struct{}) {
	asked := 0
	if c.known {
		asked++
	}
	first := c.ctx.Done()
	for {
		select {
		case <-done:
			return
		case <-first:
			first = nil
			a.Stop(false)
		case <-c.hups:
			_ = a.Reload() // logged there
		case got := <-c.ends:
			if asked++; asked > 1 {
				log.Warn("Told to end once more: builds are stopped at once", "signal", got.String())
				a.Stop(true)
			}
		}
	}
}
