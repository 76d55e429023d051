package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/term"

	"github.com/devops-agent/devops-agent/agent"
	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/cmd/internal/cli"
	"github.com/devops-agent/devops-agent/cmd/internal/recovery"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/windows"
)

// runAgent is the agent's life: role, configuration, log, loops (protocol §3.3).
func runAgent(ctx context.Context, home string, debugging, stderr bool, umask int) (err error) {
	notify, deaf := service.NewNotifier() // before anything is started that could inherit its variables
	signals := catch(ctx)                 // and never let go of: a hang-up at the very end would be one too many
	inst, err := open(home)
	if err != nil {
		return err
	}
	if err := os.Chdir(inst.Home); err != nil {
		return fmt.Errorf("go to the home directory: %w", err)
	}
	lock, err := inst.Hold(ctx, service.RoleAgent)
	if err != nil {
		if ctx.Err() != nil && !errors.Is(err, service.ErrRunning) {
			return nil // told to end before there was an agent
		}
		return err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()

	surviveReaders()
	cfg, err := config.LoadConfig(inst.Config)
	if err != nil {
		return logged(inst, err)
	}
	if cfg.Log.Level > slog.LevelDebug && debugging {
		cfg.Log.Level = slog.LevelDebug
	}
	log, err := cli.OpenLog(cli.LogOptions{
		File: inst.Path("logs", "devopsAgent.log"), Console: console(stderr), Fallback: os.Stderr, Level: cfg.Log.Level,
		KeepDays: cfg.Log.KeepDays, KeepFiles: cfg.Log.KeepFiles, MaxSizeMB: cfg.Log.MaxSizeMB,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	how := enrolling()
	proved := stderrBefore() // after the log, which looks whether standard error is, or was, the journal; before anything is started
	if deaf != nil {
		log.Warn("The keeper cannot be told how the agent is", "err", deaf)
	}
	if how.err != nil {
		log.Warn("Answers to the installer not read", "err", how.err)
	}
	err = serve(ctx, how, agent.Options{
		HostName: how.name, Installation: inst, Programs: programs(inst.Home), Config: cfg, Version: cli.Version(), Debug: debugging, GOOS: runtime.GOOS, GOARCH: runtime.GOARCH,
		Umask: umask, Log: log.Logger, Notify: notify, Proved: proved,
		SetLevel: func(level slog.Level) {
			if debugging {
				level = min(level, slog.LevelDebug)
			}
			log.SetLevel(level)
		},
	}, log, signals)
	if err != nil {
		log.Error("Agent ends", "err", err)
	} else {
		log.Info("Agent ends")
	}
	return err
}

// programs is the directory of the package's programs, which home may lack: the one that this program really lies in, or, for a
// program of home, the one that its keeper named. A version in home has been adopted from there, or came with an upgrade.
func programs(home string) string {
	vendor := os.Getenv(recovery.EnvVendor)
	_ = os.Unsetenv(recovery.EnvVendor) // builds have none of this
	path, err := os.Executable()
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return vendor
	}
	if resolved, err := filepath.EvalSymlinks(home); vendor != "" && err == nil && resolved == filepath.Dir(path) {
		return vendor
	}
	return filepath.Dir(path)
}

// logged puts an error where an operator looks for it, beside what cli prints.
func logged(inst *service.Installation, err error) error {
	if log, lerr := cli.OpenLog(cli.LogOptions{File: inst.Path("logs", "devopsAgent.log")}); lerr == nil {
		log.Error("Agent cannot start", "err", err)
		_ = log.Close()
	}
	return err
}

// serve is the agent between its log and its last line.
func serve(ctx context.Context, how enrolHow, o agent.Options, log *cli.Log, signals *caught) (err error) {
	inst := o.Installation
	log.Info("Agent starts", "version", o.Version, "home", inst.Home, "pid", os.Getpid(), "debug", o.Debug)
	if runtime.GOOS != "windows" {
		loadCaptured(inst, log.Logger)
	}
	door := openDoor(inst.Home, log.Logger)
	defer func() { err = errors.Join(err, door.close()) }()
	o.Store, err = config.Open(inst.Home, o.Config, log.Logger)
	if err != nil && agent.Unenrolled(err) && how.wanted(o.Config) {
		enroller := agent.NewEnroller(o, how.getenv)
		door.to(enroller.Control)
		if lerr := inst.Lived(); lerr != nil { // waiting for an identity is a good life
			log.Warn("Start not noted as a good one", "err", lerr)
		}
		if done, err := enroller.Run(ctx); !done || err != nil {
			return err
		}
		if fresh, cerr := config.LoadConfig(o.Config.Path); cerr == nil { // it may have waited for months
			o.Config = fresh
		}
		o.Store, err = config.Open(inst.Home, o.Config, log.Logger)
	}
	if err != nil {
		return err
	}
	log.Hide(string(o.Store.Settings().Identity.Secret))
	for _, over := range o.Store.Overrides() {
		log.Info("Setting of agent.toml in force", "key", over.Key, "setting", over.Setting, "value", over.Effective)
	}
	if o.Roots, err = config.Roots(inst.Home); err != nil {
		return err
	}
	a, err := agent.New(o)
	if err != nil {
		return err
	}
	door.to(a.Control)
	if err := inst.Lived(); err != nil { // for "upgrader start", which slows down what never gets here
		log.Warn("Start not noted as a good one", "err", err)
	}
	// The end of ctx is a wish that the agent grants in its own way (signals.steer).
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	var beside sync.WaitGroup
	beside.Go(func() { signals.steer(a, log.Logger, life.Done()) })
	rotated := make(chan error, 1)
	go func() { rotated <- log.RotateDaily(life) }()
	err = a.Run(life)
	end()
	if errors.Is(err, service.ErrRemoved) { // for keepers that cannot see exit codes
		if merr := inst.MarkRemoved(); merr != nil {
			log.Warn("Removed agent not marked", "err", merr)
		}
	}
	beside.Wait()
	return errors.Join(err, <-rotated)
}

// enrolHow is what this process was told about getting an identity when it was started.
type enrolHow struct {
	packaged bool // by the keeper of a package, which starts machines that nobody has enrolled yet
	vars     map[string]string
	name     string // of the machine, as the installer was told
	err      error  // the installer's answers cannot be read
}

// enrolling takes what the environment says about getting an identity: it is nothing for builds. What it leaves open, the answers
// to the installer say, but only to the package's own agent.
func enrolling() enrolHow {
	how := enrolHow{packaged: os.Getenv(recovery.EnvVendor) != "", vars: map[string]string{}}
	var answers windows.Answers
	if how.packaged {
		answers, how.err = windows.ReadAnswers()
		how.name = answers.Name
	}
	for name, answer := range map[string]string{config.EnrollTokenFile: answers.TokenFile, config.EnrollGateway: answers.Gateway,
		config.EnrollProject: answers.Project} {
		how.vars[name] = or(os.Getenv(name), answer)
		_ = os.Unsetenv(name)
	}
	return how
}

func (h enrolHow) getenv(name string) string { return h.vars[name] }

// wanted reports whether a home without identity is to get one, or to wait for one. A bare start of a portable home that nothing was
// said about ends with an error, as the original does.
func (h enrolHow) wanted(c *config.Config) bool {
	found, err := c.Enrolment(h.getenv)
	return h.packaged || found != nil || err != nil
}

// console is the second place of the log: standard error, when a person is there to read it or asked for it.
func console(asked bool) io.Writer {
	if asked {
		return os.Stderr
	}
	for _, f := range []*os.File{os.Stdin, os.Stdout, os.Stderr} {
		if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 && term.IsTerminal(int(f.Fd())) {
			return os.Stderr
		}
	}
	return nil
}
