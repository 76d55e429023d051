package main

import (
	"context"
	"runtime/debug"
	"time"
)

// settled is how long after a start of the agent there is nothing more to do for it; collected how long after that the
// collector has done its work, for which it needs the program's pages.
const (
	settled   = 3 * time.Second
	collected = time.Second
)

// trim gives memory back each time that the daemon has done something and has gone back to waiting, until ctx ends.
func trim(ctx context.Context, done <-chan struct{}) {
	collect, drop := time.NewTimer(settled), time.NewTimer(settled+collected)
	defer collect.Stop()
	defer drop.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-done:
			collect.Reset(settled)
			drop.Reset(settled + collected)
		case <-collect.C:
			debug.FreeOSMemory()
		case <-drop.C:
			dropProgramPages()
		}
	}
}

// signalled returns a channel, and a func that never waits and makes it say that something was done.
func signalled() (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	return c, func() {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}
