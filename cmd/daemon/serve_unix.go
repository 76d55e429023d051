//go:build unix

package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/devops-agent/devops-agent/service"
)

// serve runs the daemon and passes signals on: SIGTERM and SIGINT stop the agent, which drains, and a second one stops its
// builds; SIGHUP has it read its configuration again. The umask stays what it is, because builds get it: the files of ours
// have modes of their own.
func serve(ctx context.Context, o service.DaemonOptions, _ commandLine) error {
	d := service.NewDaemon(o)
	told, hups := make(chan os.Signal, 8), make(chan os.Signal, 1) // a storm of hang-ups hides no wish to end
	signal.Notify(told, os.Interrupt, syscall.SIGTERM)
	signal.Notify(hups, syscall.SIGHUP)
	defer signal.Stop(told)          // and not hups: a hang-up at the very end would be one too many
	pipes := make(chan os.Signal, 1) // whoever read our standard error is gone: that does not end us
	signal.Notify(pipes, syscall.SIGPIPE)
	defer signal.Stop(pipes)
	ended := make(chan struct{})
	passed := make(chan struct{})
	go func() {
		defer close(passed)
		for {
			select {
			case <-ended:
				return
			case <-told:
				d.Stop(false)
			case <-hups:
				d.Reload()
			}
		}
	}()
	err := d.Run(context.WithoutCancel(ctx)) // which ends with the first signal: every one of them is passed on above
	close(ended)
	<-passed
	return err
}
