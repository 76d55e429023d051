package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/packaging"
)

func listCommand(s *streams) *cobra.Command {
	return &cobra.Command{
		Use: "list FILE...", Short: "Show what is in packages: mode, owner, size, path", Args: usage(cobra.MinimumNArgs(1)),
		Long:    "list reads packages of any format, by readers that know nothing of who wrote them.",
		Example: "  packager list dist/devops-agent_1.2.3_amd64.deb",
		RunE: func(_ *cobra.Command, files []string) error {
			for i, file := range files {
				l, err := listing(file)
				if err != nil {
					return err
				}
				if len(files) > 1 {
					gap := ""
					if i > 0 {
						gap = "\n"
					}
					if _, err := fmt.Fprintf(s.out, "%s%s:\n", gap, file); err != nil {
						return err
					}
				}
				if _, err := fmt.Fprint(s.out, l.String()); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// formatOf is the format of a package, by its name.
func formatOf(file string) (packaging.Format, error) {
	f := packaging.Format(strings.TrimPrefix(filepath.Ext(file), "."))
	for _, known := range packaging.Formats() {
		if f == known {
			return f, nil
		}
	}
	return "", fmt.Errorf("%s is no package: its name ends in none of %s", file, formatNames())
}

// listing reads a package.
func listing(file string) (_ packaging.Listing, err error) {
	format, err := formatOf(file)
	if err != nil {
		return packaging.Listing{}, err
	}
	f, err := os.Open(file)
	if err != nil {
		return packaging.Listing{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return packaging.Listing{}, err
	}
	l, err := packaging.List(format, f, info.Size())
	if err != nil {
		return packaging.Listing{}, fmt.Errorf("%s: %w", file, err)
	}
	return l, nil
}
