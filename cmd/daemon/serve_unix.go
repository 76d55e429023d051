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
	told := make(chan os.Signal, 8)
	signal.Notify(told, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer signal.Stop(told)
	ended := make(chan struct{})
	passed := make(chan struct{})
	go func() {
		defer close(passed)
		for {
			select {
			case <-ended:
				return
			case s := <-told:
				switch s {
				case syscall.SIGHUP:
					d.Reload()
				case syscall.SIGPIPE: // whoever read our standard error is gone
				default:
					d.Stop(false)
				}
			}
		}
	}()
	err := d.Run(context.WithoutCancel(ctx)) // which ends with the first signal: every one of them is passed on above
	close(ended)
	<-passed
	return err
}
