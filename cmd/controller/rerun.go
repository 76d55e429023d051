package main

import (
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/controller"
)

func rerunCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "rerun ID", Short: "Submit what a build was made from once more", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.open()
			if err != nil {
				return err
			}
			var b controller.Build
			if err := c.call(cmd.Context(), "POST", "/builds/"+url.PathEscape(args[0])+"/rerun", nil, &b); err != nil {
				return err
			}
			if f.json {
				return f.printJSON(b)
			}
			_, err = fmt.Fprintln(f.out, b.ID)
			return err
		},
	}
}
