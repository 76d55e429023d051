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
	list  chan os.Signal
	known bool // the first had come before list was there
}

func catch(ctx context.Context) *caught {
	c := &caught{ctx: ctx, list: make(chan os.Signal, 8)}
	signal.Notify(c.list, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	c.known = ctx.Err() != nil
	return c
}

func (c *caught) release() { signal.Stop(c.list) }

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
		case got := <-c.list:
			if got == syscall.SIGHUP {
				_ = a.Reload() // logged there
				continue
			}
			if asked++; asked > 1 {
				log.Warn("Told to end once more: builds are stopped at once", "signal", got.String())
				a.Stop(true)
			}
		}
	}
}
