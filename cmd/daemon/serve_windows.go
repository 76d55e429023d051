package main

import (
	"context"

	"github.com/devops-agent/devops-agent/service"
)

// serve runs the daemon in a console: its end, or CTRL_BREAK, stops the agent, which drains.
func serve(ctx context.Context, o service.DaemonOptions, _ commandLine) error {
	return service.NewDaemon(o).Run(ctx)
}
