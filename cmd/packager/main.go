package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/cmd/internal/cli"
)

func main() { os.Exit(cli.Main("packager", run)) }

func run(ctx context.Context, args []string) error {
	root := commands(&streams{in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Getenv})
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}

// streams is the world of a command.
type streams struct {
	in       io.Reader
	out, err io.Writer
	env      func(name string) string
}

func commands(s *streams) *cobra.Command {
	root := &cobra.Command{
		Use:           "packager",
		Short:         "Make what is published: packages, keys and signatures",
		SilenceUsage:  true,
		SilenceErrors: true, SuggestionsMinimumDistance: 2,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(s.out)
	root.SetErr(s.err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return &usageError{cmd: cmd, err: err} })
	root.AddCommand(buildCommand(s), listCommand(s), keygenCommand(s), renderCommand(s), repoCommand(s), signCommand(s), verifyCommand(s), versionCommand(s))
	return root
}

// usage is a check of arguments whose errors have a hint.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &usageError{cmd: cmd, args: args, err: err}
		}
		return nil
	}
}

// need refuses a command line without one of these flags.
func need(names ...string) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		for _, name := range names {
			if flag := cmd.Flag(name); flag.Value.String() == "" || !flag.Changed {
				return &usageError{cmd: cmd, err: fmt.Errorf("--%s is missing", name)}
			}
		}
		return nil
	}
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
	if !e.cmd.HasParent() && len(e.args) > 0 {
		if meant := e.cmd.SuggestionsFor(e.args[0]); len(meant) > 0 {
			return "did you mean " + e.cmd.CommandPath() + " " + meant[0] + "?"
		}
	}
	return e.cmd.CommandPath() + " --help says what there is"
}

func versionCommand(s *streams) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(s.out, cli.Version())
			return err
		},
	}
}
