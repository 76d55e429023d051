package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/devops-agent/devops-agent/cmd/internal/cli"
)

// manCommand writes the manual pages, for packages.
func manCommand() *cobra.Command {
	dir := "."
	cmd := &cobra.Command{
		Use: "man", Short: "Write the manual pages, one per verb", Hidden: true, Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // manual pages are for everybody
				return fmt.Errorf("write manual pages: %w", err)
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true // the date of the build is in no page
			// One date for all: a page differs when its text does.
			date := time.Unix(0, 0).UTC()
			header := &doc.GenManHeader{Title: "DEVOPSAGENT", Section: "8", Source: "devops-agent " + cli.Version(), Manual: "devops-agent", Date: &date}
			if err := doc.GenManTree(root, header, dir); err != nil {
				return fmt.Errorf("write manual pages: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", dir, "where to")
	return cmd
}
