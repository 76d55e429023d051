package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/cli"
	"github.com/devops-agent/devops-agent/cmd/internal/recovery"
	"github.com/devops-agent/devops-agent/launchd"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/upgrader/journal"
)

// startLimit is how long a start waits for other work on the installation. Then it goes on with what is there: a start that does
// not come would be worse.
const startLimit = time.Minute

// starting is one start of an agent by its keeper.
type starting struct {
	*recovery.Home
	log   *cli.Log
	trial bool     // of the version that is about to start
	args  []string // of the agent
}

// start becomes the agent. Keepers run it from a directory that never changes, or from home a file that is only replaced by one
// that has proved itself, so that a start always works, whatever became of home: interrupted upgrades are carried on, new
// versions watched and bad ones taken back, and a service manager that starts an agent again at once, however often it ends,
// is slowed down.
func start(ctx context.Context, args []string) (err error) {
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
	if awaitDisk(ctx, inst); ctx.Err() != nil {
		return nil // told to end
	}
	log, err := openLog(inst, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	s := &starting{Home: recovery.New(inst, vendor, log.Logger), log: log, args: f.Args()}
	if err := s.recover(ctx); err != nil && ctx.Err() == nil {
		log.Error("Upgrades not looked after; the agent that is there is started", "err", err)
	}
	if ctx.Err() != nil {
		return nil // told to end
	}
	if err := os.Chdir(inst.Home); err != nil {
		return fmt.Errorf("go to the home directory: %w", err)
	}
	if vendor != "" {
		if err := os.Setenv(recovery.EnvVendor, vendor); err != nil {
			return err
		}
	}
	path, own, err := agentOf(inst, vendor)
	if err != nil {
		return err
	}
	wait, fruitless, err := inst.Born(path, time.Now())
	if err != nil { // on a full disk, for instance: no reason not to start
		fmt.Fprintf(os.Stderr, "upgrader: %v\n", err)
	}
	if wait > 0 && !s.trial && !rest(ctx, []string{path, inst.Config}, wait, fruitless) || ctx.Err() != nil {
		return nil // told to end
	}
	return s.become(ctx, path, own)
}

// openLog opens the log of this program; what it is to say to a keeper, or a person, goes to standard error as well.
func openLog(inst *service.Installation, aloud bool) (*cli.Log, error) {
	o := cli.LogOptions{File: inst.Path("logs", "devopsUpgrader.log"), Fallback: os.Stderr, MaxSizeMB: 10}
	if aloud {
		o.Console = os.Stderr
	}
	log, err := cli.OpenLog(o)
	if err != nil { // a disk that is read-only
		o.File = ""
		return cli.OpenLog(o)
	}
	return log, nil
}

// recover looks after upgrades, unless an agent runs here already.
func (s *starting) recover(ctx context.Context) (err error) {
	total, err := recovery.Lock(ctx, s.Inst, startLimit)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, total.Release()) }()
	if held, err := s.Inst.Held(service.RoleAgent); err != nil || held {
		return err
	}
	result, err := s.Start(ctx, s.last(ctx))
	s.trial = result.State == journal.Trial
	return err
}

// last is how the agent ended before, as far as launchd knows it and somebody wants to: while a version is on trial. systemd's
// way is "upgrader ended", devopsDaemon's its own.
func (s *starting) last(ctx context.Context) journal.Last {
	if runtime.GOOS != "darwin" {
		return journal.Last{}
	}
	if found, err := s.Journal.Current(); err != nil || found.State != journal.Trial || found.Starts == 0 {
		return journal.Last{}
	}
	end := service.LaunchdEnding(ctx, launchd.Exec, os.Getenv("XPC_SERVICE_NAME"), os.Getuid(), os.Getpid())
	return journal.Last{How: end.How, Code: end.Code}
}

// become starts the agent. One that cannot be executed is taken back if it is on trial; else the package's runs in its place.
func (s *starting) become(ctx context.Context, path string, own []string) error {
	restore := func() {}
	if s.trial {
		restore = s.attend()
	}
	err := become(path, append(own, s.args...), s.runs)
	if !service.CannotRun(err) {
		return err
	}
	restore()
	if s.trial && s.takeBack(ctx, err) {
		s.trial = false
		path, own, perr := agentOf(s.Inst, s.Vendor)
		if perr != nil {
			return errors.Join(err, perr)
		}
		if err = become(path, append(own, s.args...), s.runs); !service.CannotRun(err) {
			return err
		}
	}
	if theirs := s.packaged(); theirs != "" && theirs != path {
		s.Log.Error("Agent in home cannot be executed; the package's runs in its place", "err", err)
		return become(theirs, append([]string{"--home", s.Inst.Home}, s.args...), s.runs)
	}
	return err
}

// attend has a new version watched, and what it says kept. It returns what undoes the latter.
func (s *starting) attend() (restore func()) {
	if err := spawnGuard(s.Inst); err != nil { // its starts are counted all the same
		s.Log.Error("New version is not watched", "err", err)
	}
	path := s.Journal.Stderr()
	if path == "" {
		return func() {}
	}
	restore, err := divert(path)
	if err != nil {
		s.Log.Warn("What the new version says on standard error is not kept", "err", err)
		return func() {}
	}
	return restore
}

// runs notes which process the agent is.
func (s *starting) runs(pid int) {
	if !s.trial {
		return
	}
	if err := s.Journal.Runs(pid); err != nil {
		s.Log.Warn("Process of the new version not noted", "err", err)
	}
}

// takeBack brings the old version back.
func (s *starting) takeBack(ctx context.Context, cause error) bool {
	total, err := recovery.Lock(ctx, s.Inst, startLimit)
	if err != nil {
		s.Log.Error("New version cannot be executed, and is not taken back", "err", err)
		return false
	}
	back := s.GiveUp(cause)
	if err := total.Release(); err != nil {
		s.Log.Error("total-lock not given back", "err", err)
	}
	return back
}

// packaged is the package's agent, "" for none.
func (s *starting) packaged() string {
	if s.Vendor == "" {
		return ""
	}
	path := filepath.Join(s.Vendor, service.ProgramName(runtime.GOOS, "devopsAgent"))
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
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
