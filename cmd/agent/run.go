package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"

	"golang.org/x/term"

	"github.com/devops-agent/devops-agent/agent"
	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/cmd/internal/cli"
	"github.com/devops-agent/devops-agent/service"
)

// runAgent is the agent's life: role, configuration, log, loops (protocol §3.3).
func runAgent(ctx context.Context, home string, debugging, stderr bool, umask int) (err error) {
	inst, err := open(home)
	if err != nil {
		return err
	}
	if err := os.Chdir(inst.Home); err != nil {
		return fmt.Errorf("go to the home directory: %w", err)
	}
	lock, err := inst.Hold(ctx, service.RoleAgent)
	if err != nil {
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
	err = serve(ctx, inst, cfg, log, debugging, umask)
	if err != nil {
		log.Error("Agent ends", "err", err)
	} else {
		log.Info("Agent ends")
	}
	return err
}

// logged puts an error where an operator looks for it, beside what cli prints.
func logged(inst *service.Installation, err error) error {
	if log, lerr := cli.OpenLog(cli.LogOptions{File: inst.Path("logs", "devopsAgent.log")}); lerr == nil {
		log.Error("Agent cannot start", "err", err)
		_ = log.Close()
	}
	return err
}

func serve(ctx context.Context, inst *service.Installation, cfg *config.Config, log *cli.Log, debugging bool, umask int) error {
	log.Info("Agent starts", "version", cli.Version(), "home", inst.Home, "pid", os.Getpid(), "debug", debugging)
	if runtime.GOOS != "windows" {
		loadCaptured(inst, log.Logger)
	}
	store, err := config.Open(inst.Home, cfg, log.Logger)
	if err != nil {
		return err
	}
	log.Hide(string(store.Settings().Identity.Secret))
	for _, o := range store.Overrides() {
		log.Info("Setting of agent.toml in force", "key", o.Key, "setting", o.Setting, "value", o.Effective)
	}
	roots, err := config.Roots(inst.Home)
	if err != nil {
		return err
	}
	a, err := agent.New(agent.Options{
		Installation: inst, Config: cfg, Store: store, Version: cli.Version(), Debug: debugging,
		GOOS: runtime.GOOS, GOARCH: runtime.GOARCH, Umask: umask, Roots: roots, Log: log.Logger,
	})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	rotated := make(chan error, 1)
	go func() { rotated <- log.RotateDaily(ctx) }()
	err = a.Run(ctx)
	stop()
	return errors.Join(err, <-rotated)
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
