package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/devops-agent/devops-agent/service"
)

// start becomes the agent. Keepers run it from a directory that never changes, so that a start always works, whatever
// became of home: a service manager that starts an agent again at once, however often it ends, is slowed down here.
func start(ctx context.Context, args []string) error {
	var home, vendor string
	f := flags()
	f.StringVar(&home, "home", "", "")
	f.StringVar(&vendor, "vendor", "", "")
	if helped, err := parse(f, args); helped || err != nil {
		return err
	}
	if home == "" {
		return &usageError{errors.New("start: --home is missing")}
	}
	inst, err := service.Open(home)
	if err != nil {
		return err
	}
	if runtime.GOOS == "darwin" && inst.Removed() { // launchd cannot be told to leave it down after a restart
		return service.ErrRemoved
	}
	path, own, err := agentOf(inst, vendor)
	if err != nil {
		return err
	}
	if err := os.Chdir(inst.Home); err != nil {
		return fmt.Errorf("go to the home directory: %w", err)
	}
	wait, fruitless, err := inst.Born(path, time.Now())
	if err != nil { // on a full disk, for instance: no reason not to start
		fmt.Fprintf(os.Stderr, "upgrader: %v\n", err)
	}
	if wait > 0 && !rest(ctx, []string{path, inst.Config}, wait, fruitless) || ctx.Err() != nil {
		return nil // told to end
	}
	return become(path, append(own, f.Args()...))
}

// agentOf finds the agent's program, that of home first, and the arguments that it needs to find its home.
func agentOf(inst *service.Installation, vendor string) (path string, args []string, err error) {
	name := service.ProgramName(runtime.GOOS, "devopsAgent")
	path = inst.Path(name)
	_, err = os.Stat(path)
	if err == nil {
		return path, nil, nil
	}
	if vendor != "" {
		theirs := filepath.Join(vendor, name)
		if _, verr := os.Stat(theirs); verr == nil {
			return theirs, []string{"--home", inst.Home}, nil
		}
	}
	return "", nil, fmt.Errorf("find the agent: %w", err)
}

// sayEvery is how often the keeper hears that we still wait.
const sayEvery = time.Second

// rest waits before a start after others that came to nothing, and tells the keeper. It ends early when the agent's program
// or its agent.toml becomes another one; false means that we are told to end.
func rest(ctx context.Context, watched []string, wait time.Duration, fruitless int) bool {
	env := os.Environ() // the agent needs what NewNotifier takes away
	var keeper *service.Notifier
	if os.Getenv(service.EnvNotifyFD) == "" {
		keeper, _ = service.NewNotifier() // who cannot be told is not
	}
	defer restore(env)
	before := make([]service.Stamp, len(watched))
	for i, path := range watched {
		before[i] = service.StampOf(path)
	}
	end := time.Now().Add(wait)
	said := func(err error) {
		if err != nil {
			keeper = nil
		}
	}
	said(keeper.Extend(wait + time.Minute))
	fmt.Fprintf(os.Stderr, "upgrader: the agent ended %d times in a row without coming to life; next start in %v\n", fruitless, wait)
	tick := time.NewTicker(sayEvery)
	defer tick.Stop()
	for left := wait; left > 0; left = time.Until(end) {
		said(keeper.Status(fmt.Sprintf("the agent ended %d times in a row without coming to life; next start in %v",
			fruitless, (left + time.Second - 1).Truncate(time.Second))))
		timer := time.NewTimer(left)
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		case <-tick.C:
			timer.Stop()
			for i, path := range watched {
				if service.StampOf(path) != before[i] {
					return true
				}
			}
		}
	}
	return true
}

// restore puts variables back.
func restore(env []string) {
	for _, entry := range env {
		for i := 1; i < len(entry); i++ { // from 1: Windows has names that begin with "="
			if entry[i] == '=' {
				_ = os.Setenv(entry[:i], entry[i+1:])
				break
			}
		}
	}
}
