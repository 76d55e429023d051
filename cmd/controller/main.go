package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/spf13/cobra"

	_ "time/tzdata" // schedules have time zones, and not every machine knows them

	"github.com/devops-agent/devops-agent/cmd/internal/cli"
)

func main() { os.Exit(cli.Main("devopsController", run)) }

// collectAt has the collector run less often than usual: while it works, answers to agents are late, and most of what is
// in use belongs to their connections. GOGC in the environment wins.
const collectAt = 150

func run(ctx context.Context, args []string) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectAt)
	}
	root := commands(&flags{out: os.Stdout, err: os.Stderr})
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}

// flags are those that every command has.
type flags struct {
	data      string
	url       string
	pin       string
	tokenFile string
	json      bool
	out, err  io.Writer
}

func commands(f *flags) *cobra.Command {
	root := &cobra.Command{
		Use:   "devopsController",
		Short: "BK-CI for one machine: give builds to agents, watch them, keep their logs",
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.NoArgs(cmd, args); err != nil {
				return &usageError{cmd: cmd, args: args, err: err}
			}
			return nil
		},
		SilenceUsage: true, SilenceErrors: true, SuggestionsMinimumDistance: 2,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(f.out)
	root.SetErr(f.err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return &usageError{cmd: cmd, err: err} })
	p := root.PersistentFlags()
	p.StringVar(&f.data, "data", "", "data `directory` (default "+dataDir()+")")
	p.StringVar(&f.url, "url", "", "`address` of a controller elsewhere; needs --token-file")
	p.StringVar(&f.tokenFile, "token-file", "", "`file` with the operator's token (default operator.token in the data directory)")
	p.StringVar(&f.pin, "pin", "", "`SHA-256` fingerprint of the certificate of a controller elsewhere, for one that nobody vouches for")
	p.BoolVar(&f.json, "json", false, "write JSON")
	root.AddCommand(serveCommand(f), runCommand(f), runsCommand(f), secretCommand(f),
		defineCommand(f), definitionsCommand(f), undefineCommand(f), triggerCommand(f), buildsCommand(f), logsCommand(f), cancelCommand(f),
		agentsCommand(f), enrollTokenCommand(f), tokenCommand(f), auditCommand(f), certificateCommand(f), pipelineCommand(f), upgradeCommand(f), versionCommand(f))
	root.AddCommand(artifactCommand(f), rerunCommand(f), backupCommand(f), restoreCommand(f), checkCommand(f), vacuumCommand(f))
	return root
}

// usageError is a command line that cannot be understood.
type usageError struct {
	cmd  *cobra.Command
	args []string // with an unknown verb
	err  error
}

// Error is the text of the cause.
func (e *usageError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *usageError) Unwrap() error { return e.err }

// Hint names the verb that was perhaps meant, or where to read on.
func (e *usageError) Hint() string {
	if len(e.args) > 0 {
		if meant := e.cmd.SuggestionsFor(e.args[0]); len(meant) > 0 {
			return "did you mean " + e.cmd.CommandPath() + " " + meant[0] + "?"
		}
	}
	return e.cmd.CommandPath() + " --help says what there is"
}

func versionCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if f.json {
				return f.printJSON(map[string]string{"version": cli.Version()})
			}
			_, err := fmt.Fprintln(f.out, cli.Version())
			return err
		},
	}
}

// dataDir is where a controller keeps its data unless told otherwise.
func dataDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/devops-controller"
	}
	state := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(state) {
		home, err := os.UserHomeDir()
		if err != nil {
			return "devops-controller"
		}
		state = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(state, "devops-controller")
}

// dir is the data directory in use.
func (f *flags) dir() string {
	if f.data != "" {
		return f.data
	}
	return dataDir()
}
