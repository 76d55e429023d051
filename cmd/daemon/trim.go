package main

import (
	"context"
	"os"
	"time"
)

// settled is how long after a start of the agent there is nothing more to do for it.
const settled = 3 * time.Second

// trim gives memory back each time that an agent has been started and the daemon has gone back to waiting, until ctx ends.
func trim(ctx context.Context, started <-chan struct{}) {
	timer := time.NewTimer(settled)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-started:
			timer.Reset(settled)
		case <-timer.C:
			dropProgramPages()
		}
	}
}

// told returns a func for service.DaemonOptions.Started that says so on a channel.
func told() (<-chan struct{}, func(*os.Process) error) {
	started := make(chan struct{}, 1)
	return started, func(*os.Process) error {
		select {
		case started <- struct{}{}:
		default:
		}
		return nil
	}
}
