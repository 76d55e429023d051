package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"

	"github.com/devops-agent/devops-agent/cmd/internal/cli"
	"github.com/devops-agent/devops-agent/cmd/internal/recovery"
	"github.com/devops-agent/devops-agent/service"
)

func main() { os.Exit(cli.Main("devopsDaemon", run)) }

// collectAt has the collector run at a quarter of the usual growth: the daemon waits for most of its life, so little memory
// is worth more to it than a lazy collector. GOGC in the environment wins.
const collectAt = 25

func run(ctx context.Context, args []string) error {
	runtime.GOMAXPROCS(1) // there is never more than one thing to do; each further processor costs memory
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectAt)
	}
	line, err := parse(args)
	if err != nil {
		return err
	}
	switch line.word {
	case "version":
		_, err := fmt.Println(cli.Version())
		return err
	case "fullVersion":
		_, err := fmt.Println(cli.FullVersion())
		return err
	case "help":
		_, err := fmt.Print(help)
		return err
	}
	if line.home == "" {
		if line.home, err = service.HomeOf(os.Args[0]); err != nil {
			return err
		}
	}
	inst, err := service.Open(line.home)
	if err != nil {
		return err
	}
	if err := os.Chdir(inst.Home); err != nil {
		return fmt.Errorf("go to the home directory: %w", err)
	}
	return keep(ctx, inst, line)
}

// keep opens the log and serves until the end.
func keep(ctx context.Context, inst *service.Installation, line commandLine) (err error) {
	said := false
	inst.AwaitWritable(ctx, func(err error) {
		if !said {
			cli.Report(os.Stderr, "devopsDaemon", err)
		}
		said = true
	})
	if ctx.Err() != nil {
		return nil // told to end
	}
	log, err := cli.OpenLog(cli.LogOptions{File: inst.Path("logs", "devopsDaemon.log"), Console: console(line), Fallback: os.Stderr,
		MaxSizeMB: 10})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	done, tell := signalled()
	vendor := recovery.VendorHere(inst)
	if vendor != "" { // the agent learns that it is a package's
		if err := os.Setenv(recovery.EnvVendor, vendor); err != nil {
			return err
		}
	}
	u := newUpgrades(recovery.New(inst, vendor, log.Logger))
	trimming, stop := context.WithCancel(ctx)
	var beside sync.WaitGroup
	beside.Go(func() { trim(trimming, done) })
	beside.Go(func() { u.guard(trimming, tell) })
	defer func() { stop(); beside.Wait() }()
	o := service.DaemonOptions{Installation: inst, GOOS: runtime.GOOS, Version: cli.Version(),
		Debug: line.word == "debug", Log: log.Logger, Reap: true, Asked: tell,
		Started: func(*os.Process) error { tell(); return nil }}
	u.hook(&o)
	return serve(ctx, o, line)
}

// console is a second place for the log, when a person asked for it. A daemon in the background of a terminal would be in the way.
func console(line commandLine) io.Writer {
	if line.stderr {
		return os.Stderr
	}
	return nil
}

// commandLine is what the daemon was called with.
type commandLine struct {
	word   string // "", "debug", "version", "fullVersion", "help"; Windows, from the registration: "service", "session"
	home   string // --home
	stderr bool   // --stderr
}

const help = `devopsDaemon keeps the agent of its directory running.

Usage: devopsDaemon [debug|version|fullVersion] [--home DIR] [--stderr]

  debug         pass the word on to the agent, which then runs without upgrades
  version       print the version
  fullVersion   print version, commit and time
  --home DIR    home directory of the agent (default: that of the program)
  --stderr      log to standard error as well
`

// usageError: the command line is not one of ours.
type usageError struct{ text string }

// Error says what was not understood.
func (e *usageError) Error() string { return e.text }

// Hint says where to look.
func (e *usageError) Hint() string { return `"devopsDaemon help" says what there is` }

// parse reads the command line. It knows too few words for a library.
func parse(args []string) (commandLine, error) {
	var line commandLine
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch arg {
		case "--home", "-home":
			if len(args) == 0 || args[0] == "" {
				return line, &usageError{"--home: which directory?"}
			}
			line.home, args = args[0], args[1:]
		case "--stderr", "-stderr":
			line.stderr = true
		case "--help", "-help", "-h", "help":
			line.word = "help"
		case "debug", "version", "fullVersion", "service", "session":
			if line.word != "" {
				return line, &usageError{fmt.Sprintf("%q after %q", arg, line.word)}
			}
			line.word = arg
		default:
			home, ok := strings.CutPrefix(arg, "--home=")
			if !ok || home == "" {
				return line, &usageError{fmt.Sprintf("unknown argument %q", arg)}
			}
			line.home = home
		}
	}
	return line, nil
}
