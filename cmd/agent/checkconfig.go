package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/cmd/internal/cli"
)

// checkConfigCommand lets tools that write agent.toml ask before they put it in its place.
func checkConfigCommand(where *place) *cobra.Command {
	return &cobra.Command{
		Use: "check-config [FILE]", Short: "Say whether an agent.toml can be used", Args: usage(cobra.MaximumNArgs(1)),
		Long: "check-config reads FILE, or the agent.toml of this agent, as the agent would, and changes nothing. A mistake is named with its line,\n" +
			"and the exit code is 1. Tools ask this before they put a new file in the place of one that works.",
		RunE: func(cmd *cobra.Command, args []string) error {
			path := ""
			if len(args) == 1 {
				path = args[0]
				if _, err := os.Stat(path); err != nil { // an agent does without the file; whoever names one means it
					return fmt.Errorf("check configuration: %w", err)
				}
			} else {
				_, inst, err := where.open()
				if err != nil {
					return err
				}
				path = inst.Config
			}
			c, err := config.LoadConfig(path)
			if err != nil {
				return err
			}
			if len(args) == 0 { // beside FILE, which may be a temporary one, lies nothing of an agent
				if _, err := c.Enrolment(func(string) string { return "" }); err != nil && !errors.Is(err, os.ErrPermission) {
					return err
				}
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), cli.OneLine(path+": good"))
			return err
		},
	}
}
