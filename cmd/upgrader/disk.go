package main

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/cli"
	"github.com/devops-agent/devops-agent/service"
)

// awaitDisk waits while the disk of a home is read-only, and tells the keeper: an agent that cannot take its role would only be
// started again and again. Once the disk can be written to, the start goes on.
func awaitDisk(ctx context.Context, inst *service.Installation) {
	env := os.Environ() // the agent needs what NewNotifier takes away
	var keeper *service.Notifier
	once := sync.OnceFunc(func() {
		cli.Report(os.Stderr, "upgrader", inst.Writable())
		if os.Getenv(service.EnvNotifyFD) == "" {
			keeper, _ = service.NewNotifier() // who cannot be told is not
		}
	})
	inst.AwaitWritable(ctx, func(err error) {
		once()
		if errors.Join(keeper.Extend(time.Minute), keeper.Status(err.Error()+"; the agent starts when it can be written to")) != nil {
			keeper = nil
		}
	})
	restore(env)
}
