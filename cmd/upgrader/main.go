package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/devops-agent/devops-agent/cmd/internal/cli"
	"github.com/devops-agent/devops-agent/service"
)

func main() { os.Exit(cli.Main("upgrader", run)) }

const help = `upgrader replaces parts of an installation.

Usage: upgrader start --home DIR [--vendor DIR] [-- ARGUMENTS]
       upgrader keep --home DIR [--vendor DIR] [-- ARGUMENTS]
       upgrader guard --home DIR
       upgrader ended --home DIR
       upgrader recover --home DIR [--vendor DIR]
       upgrader [-action=upgrade|uninstall] [-home DIR]
       upgrader version

  start              become the agent in a home, or that of a package where the home has none; for keepers
  keep               become devopsDaemon, for who starts it with the machine
  guard              watch a version on trial from outside, and take a bad one back; start and keep start it
  ended              note how an agent on trial has ended; systemd runs it
  recover            finish or take back an interrupted upgrade, say what was done, and start nothing
  -action=upgrade    put programs from tmp/ into place (the default)
  -action=uninstall  stop the agent and take it from its keeper; files and running builds stay
  -home DIR          home of the agent (default: the current directory, or that of this program, or the one above)
  version            print the version
`

func run(ctx context.Context, args []string) error {
	word := ""
	if len(args) > 0 {
		word = args[0]
	}
	switch word {
	case "version":
		_, err := fmt.Println(cli.Version())
		return err
	case "fullVersion":
		_, err := fmt.Println(cli.FullVersion())
		return err
	case "help":
		_, err := fmt.Print(help)
		return err
	case "start":
		return start(ctx, args[1:])
	case "keep":
		return keep(ctx, args[1:])
	case "guard":
		return guard(ctx, args[1:])
	case "ended":
		return noteEnd(args[1:])
	case "recover":
		return recoverHome(ctx, args[1:])
	}
	return act(ctx, args)
}

// usageError: the command line is not one of ours.
type usageError struct{ err error }

// Error says what was not understood.
func (e *usageError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *usageError) Unwrap() error { return e.err }

// Hint says where to look.
func (e *usageError) Hint() string { return `"upgrader help" says what there is` }

// flags is a set that leaves printing to us.
func flags() *flag.FlagSet {
	f := flag.NewFlagSet("upgrader", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	return f
}

// parse prints the help when that is what was asked for, and says whether it was.
func parse(f *flag.FlagSet, args []string) (helped bool, err error) {
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		_, err := fmt.Print(help)
		return true, err
	case err != nil:
		return false, &usageError{err}
	}
	return false, nil
}

// act does what the original's upgrader does, in the home it is called in (protocol §3.1, §4.6).
func act(ctx context.Context, args []string) (err error) {
	var action, home string
	f := flags()
	f.StringVar(&action, "action", "upgrade", "")
	f.StringVar(&home, "home", "", "")
	if helped, err := parse(f, args); helped || err != nil {
		return err
	}
	if f.NArg() > 0 {
		return &usageError{fmt.Errorf("unknown argument %q", f.Arg(0))}
	}
	if action != "upgrade" && action != "uninstall" {
		return &usageError{fmt.Errorf("unknown action %q", action)}
	}
	if home == "" {
		if home, err = service.HomeHere(); err != nil {
			return err
		}
	}
	inst, err := service.Open(home)
	if err != nil {
		return err
	}
	log, err := openLog(inst, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	log.Info("Upgrader starts", "version", cli.Version(), "action", action, "home", inst.Home, "pid", os.Getpid())
	if action == "uninstall" {
		err = uninstall(ctx, inst, log.Logger)
	} else {
		err = upgrade(ctx, inst, log.Logger)
	}
	if err != nil {
		log.Error("Upgrader ends", "err", err)
	} else {
		log.Info("Upgrader ends")
	}
	return err
}
