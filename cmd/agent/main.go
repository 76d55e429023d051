package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/cmd/internal/cli"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/service/control"
)

func main() { os.Exit(cli.Main("devopsAgent", run)) }

// memoryLimit keeps the agent small while a server talks nonsense: the collector works harder instead. It is a goal,
// not a wall (runtime/debug.SetMemoryLimit). GOMEMLIMIT in the environment wins.
const memoryLimit = 32 << 20

func run(ctx context.Context, args []string) error {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	umask := narrowUmask()
	root := commands(umask)
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}

// commands are the verbs. Without one the agent runs, as the original does (protocol §3.1).
func commands(umask int) *cobra.Command {
	var where place
	var stderr bool
	root := &cobra.Command{
		Use:   "devopsAgent",
		Short: "Build agent for BlueKing CI",
		Long: "devopsAgent takes builds from a BlueKing CI server and runs them on this machine.\n" +
			"Without a command it runs as the agent of its home directory.",
		Args: usage(cobra.NoArgs), SilenceUsage: true, SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.HasParent() || cmd.Name() == "run" { // builds have the environment that the keeper gave
				return nil
			}
			return joinSession("/run/user")
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runAgent(cmd.Context(), where.home, false, stderr, umask)
		},
	}
	root.PersistentFlags().Var(directory{&where.home}, "home", "home directory of the agent (default: that of the program, or of the package)")
	root.PersistentFlags().StringVar(&where.instance, "instance", "", "one of several agents of a host, by its name (Linux packages)")
	root.PersistentFlags().BoolVar(&stderr, "stderr", false, "log to standard error as well, also when it is no terminal")
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return &usageError{cmd: cmd, err: err} })

	full := false
	version := &cobra.Command{
		Use: "version", Short: "Print the version", Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			text := cli.Version()
			if full {
				text = cli.FullVersion()
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), text)
			return err
		},
	}
	version.Flags().BoolVarP(&full, "full", "f", false, "with commit and time")
	root.AddCommand(version, &cobra.Command{
		Use: "fullVersion", Short: "Print version, commit and time", Args: usage(cobra.NoArgs), Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), cli.FullVersion())
			return err
		},
	}, &cobra.Command{
		Use: "run", Short: "Run the agent (the default)", Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runAgent(cmd.Context(), where.home, false, stderr, umask)
		},
	}, &cobra.Command{
		Use: "debug [on|off]", Short: "Run without upgrades; or switch that on or off for later starts",
		Args: usage(cobra.MaximumNArgs(1)), ValidArgs: []string{"on", "off"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return runAgent(cmd.Context(), where.home, true, stderr, umask)
			}
			return switchDebug(cmd, where, args)
		},
	}, enrollCommand(&where), installCommand(&where), uninstallCommand(&where), startCommand(&where), stopCommand(&where),
		restartCommand(&where), drainCommand(&where),
		askCommand(&where, control.OpResume, "Take builds again after drain", "resume ends what drain began.", "taking builds"),
		askCommand(&where, control.OpReload, "Read agent.toml again", "reload reads agent.toml again. A mistake in it is an error here, and the agent keeps its old settings.", "reloaded"),
		statusCommand(&where), logsCommand(&where), upgradeCommand(&where), rollbackCommand(&where), prepareCommand(&where), checkConfigCommand(&where), manCommand())
	root.AddCommand(olderWords(&where)...)
	return root
}

// usage makes a usageError of what is wrong with the arguments.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &usageError{cmd: cmd, args: args, err: err}
		}
		return nil
	}
}

// usageError: the command line is not one of ours.
type usageError struct {
	cmd  *cobra.Command
	args []string
	err  error
}

// Error is cobra's text.
func (e *usageError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *usageError) Unwrap() error { return e.err }

// Hint names the verb that was perhaps meant, or where they are listed.
func (e *usageError) Hint() string {
	if len(e.args) > 0 && !e.cmd.HasParent() {
		if meant := e.cmd.SuggestionsFor(e.args[0]); len(meant) > 0 {
			return "did you mean \"" + e.cmd.CommandPath() + " " + strings.Join(meant, "\" or \""+e.cmd.CommandPath()+" ") + "\"?"
		}
	}
	return "\"" + e.cmd.CommandPath() + " --help\" says what there is"
}

// open finds the installation of this program, or that of --home: for the bare call, which keepers make.
func open(home string) (*service.Installation, error) {
	if home == "" {
		var err error
		if home, err = service.HomeOf(os.Args[0]); err != nil {
			return nil, err
		}
	}
	return service.Open(home)
}

// switchDebug makes or removes the marker of debug mode (protocol §2.1, .debug).
func switchDebug(cmd *cobra.Command, where place, args []string) error {
	l, inst, err := where.open()
	if err != nil {
		return err
	}
	if err := l.mayChange(cmd, args); err != nil {
		return err
	}
	marker, word := inst.Path(".debug"), args[0]
	switch word {
	case "on":
		if err = os.WriteFile(marker, nil, 0o600); err == nil {
			err = giveToOwner(inst, "")
		}
	case "off":
		if err = os.Remove(marker); errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	default:
		return fmt.Errorf("debug %q: on or off, please", word)
	}
	if err != nil {
		return fmt.Errorf("switch debug mode %s: %w", word, err)
	}
	return nil
}
