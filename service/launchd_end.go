package service

import (
	"context"
	"fmt"

	"github.com/devops-agent/devops-agent/launchd"
)

// LaunchdEnding asks launchd how the process ended that ran before this one, for a program that launchd has started: label is
// what launchd calls its job (XPC_SERVICE_NAME), pid its process. Where nobody knows it is the zero Ending.
func LaunchdEnding(ctx context.Context, run launchd.Runner, label string, uid, pid int) Ending {
	if !launchd.ValidLabel(label) {
		return Ending{}
	}
	for _, domain := range []launchd.Domain{launchd.System, launchd.GUI(uid), launchd.User(uid)} {
		s, loaded, err := launchd.Manager{Domain: domain, Run: run}.Print(ctx, label)
		if err != nil || !loaded || s.PID != pid { // another job of this name
			continue
		}
		switch {
		case s.ExitCode >= 0:
			return Ending{How: fmt.Sprintf("exited with %d", s.ExitCode), Code: &s.ExitCode}
		case s.ExitSignal > 0:
			return Ending{How: fmt.Sprintf("killed by signal %d", s.ExitSignal)}
		}
		return Ending{How: s.ExitText}
	}
	return Ending{}
}
