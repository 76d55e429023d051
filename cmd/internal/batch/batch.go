package batch

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/cli"
	"github.com/devops-agent/devops-agent/service"
)

const help = `installer registers an agent with what keeps it running, or takes it back.

Usage: installer [-action=install|uninstall] [-home DIR] [-- ARGUMENTS]
       installer version

  -action=install    register the agent and start it (the default). Where .agent.properties names a batch and no agent ever
                     ran, the files of a fresh agent are fetched first
  -action=uninstall  stop the agent and take it from its keeper; files and running builds stay
  -home DIR          home of the agent (default: the current directory, or that of this program, or the one above)
  version            print the version

Arguments after -- go to "devopsAgent install" or "devopsAgent uninstall".
`

// usageError: the command line is not one of ours.
type usageError struct{ err error }

// Error says what was not understood.
func (e *usageError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *usageError) Unwrap() error { return e.err }

// Hint says where to look.
func (e *usageError) Hint() string { return `"installer -help" says what there is` }

// Run does what the command line of an installer says. Its errors are for people, with hints; that of a verb that has said
// itself why it ended is a *cli.Exit.
func Run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "version":
			_, err := fmt.Println(cli.Version())
			return err
		case "fullVersion":
			_, err := fmt.Println(cli.FullVersion())
			return err
		}
	}
	var rest []string
	if at := slices.Index(args, "--"); at >= 0 {
		args, rest = args[:at], args[at+1:]
	}
	var action, home string
	f := flag.NewFlagSet("installer", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&action, "action", "install", "")
	f.StringVar(&home, "home", "", "")
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		_, err := fmt.Print(help)
		return err
	case err != nil:
		return &usageError{err}
	case f.NArg() > 0:
		return &usageError{fmt.Errorf("unknown argument %q", f.Arg(0))}
	case action != "install" && action != "uninstall":
		return &usageError{fmt.Errorf("unknown action %q", action)}
	}
	if home == "" {
		var err error
		if home, err = service.HomeHere(); err != nil {
			return err
		}
	}
	inst, err := service.Open(home)
	if err != nil {
		return err
	}
	return act(ctx, inst, action, rest)
}

// act does the work in the role of the installer, of which there is one at a time.
func act(ctx context.Context, inst *service.Installation, action string, rest []string) (err error) {
	log, err := cli.OpenLog(cli.LogOptions{File: inst.Path("logs", "devopsInstaller.log"), Fallback: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	role, err := inst.Hold(ctx, service.RoleInstaller)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, role.Release()) }()
	log.Info("Installer starts", "version", cli.Version(), "action", action, "home", inst.Home, "pid", os.Getpid())
	if action == "install" {
		err = batch{
			inst: inst, log: log.Logger, limit: batchLimit,
			verb: func(ctx context.Context, name string) error { return verb(ctx, inst, name, nil) },
		}.run(ctx)
	}
	if err == nil {
		err = verb(ctx, inst, action, rest)
	}
	if err != nil {
		log.Error("Installer ends", "err", err)
	} else {
		log.Info("Installer ends")
	}
	return err
}

// noAgentError: there is nothing to install.
type noAgentError struct{ path string }

// Error names what is missing.
func (e *noAgentError) Error() string { return "no agent: " + e.path + " is not there" }

// Hint says where it comes from.
func (e *noAgentError) Hint() string { return "unpack the whole archive into the agent's home" }

// endGrace is what devopsAgent gets to end by itself when we are told to.
const endGrace = 10 * time.Second

// verb runs the agent's own verb, with our outputs. It takes total-lock whenever it needs it, as we must not then. An exit code
// of its own becomes ours; it has said why.
func verb(ctx context.Context, inst *service.Installation, name string, rest []string) error {
	path := inst.Path(service.ProgramName(runtime.GOOS, "devopsAgent"))
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		return &noAgentError{path}
	}
	if runtime.GOOS != "windows" {
		if err := os.Chmod(path, 0o755); err != nil && !errors.Is(err, os.ErrPermission) { //nolint:gosec // a program
			return fmt.Errorf("make the agent executable: %w", err)
		}
	}
	cmd := exec.CommandContext(ctx, path, append([]string{"--home", inst.Home, name}, rest...)...)
	cmd.Dir = inst.Home
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.WaitDelay = endGrace
	if runtime.GOOS != "windows" {
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	}
	err := cmd.Run()
	var ended *exec.ExitError
	if errors.As(err, &ended) && ended.Exited() {
		return &cli.Exit{Code: ended.ExitCode()}
	}
	if err != nil {
		return fmt.Errorf("%s the agent: %w", name, err)
	}
	return nil
}
