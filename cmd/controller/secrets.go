package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/controller"
)

// maxSecret bounds what is read of a secret, in bytes: the controller takes no more.
const maxSecret = 64 << 10

func secretCommand(f *flags) *cobra.Command {
	var project string
	cmd := &cobra.Command{Use: "secret", Short: "Keep values that builds need and nobody may see", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	set := &cobra.Command{
		Use: "set NAME < FILE", Short: "Store a secret; its value is read from standard input, without the last line feed", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			value, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), maxSecret+3))
			if err != nil {
				return fmt.Errorf("read the value: %w", err)
			}
			text := strings.TrimSuffix(strings.TrimSuffix(string(value), "\n"), "\r")
			if text == "" || len(text) > maxSecret {
				return errors.New("the value, on standard input, must have 1 to 65536 bytes")
			}
			c, err := f.open()
			if err != nil {
				return err
			}
			var made controller.Secret
			in := map[string]string{"project": project, "value": text}
			if err := c.call(cmd.Context(), "PUT", "/secrets/"+url.PathEscape(args[0]), in, &made); err != nil {
				return err
			}
			if f.json {
				return f.printJSON(made)
			}
			_, err = fmt.Fprintf(f.out, "secret %s of project %s is set\n", made.Name, made.Project)
			return err
		},
	}
	list := &cobra.Command{
		Use: "list", Short: "List secrets, without their values", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.open()
			if err != nil {
				return err
			}
			var all []controller.Secret
			if err := c.call(cmd.Context(), "GET", "/secrets?project="+url.QueryEscape(project), nil, &all); err != nil {
				return err
			}
			if f.json {
				return f.printJSON(all)
			}
			w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "PROJECT\tNAME\tCHANGED\tUSED BY")
			for _, it := range all {
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", it.Project, it.Name, time.UnixMilli(it.ChangedAt).Format(time.DateTime), strings.Join(it.UsedBy, ", "))
			}
			return w.Flush()
		},
	}
	remove := &cobra.Command{
		Use: "remove NAME", Short: "Forget a secret", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.open()
			if err != nil {
				return err
			}
			if err := c.call(cmd.Context(), "DELETE", "/secrets/"+url.PathEscape(args[0])+"?project="+url.QueryEscape(project), nil, nil); err != nil {
				return err
			}
			if f.json {
				return f.printJSON(map[string]string{"name": args[0]})
			}
			_, err = fmt.Fprintf(f.out, "secret %s is forgotten\n", args[0])
			return err
		},
	}
	for _, verb := range []*cobra.Command{set, remove} {
		verb.Flags().StringVar(&project, "project", "", "project (default "+controller.DefaultProject+")")
	}
	list.Flags().StringVar(&project, "project", "", "only of this project")
	cmd.AddCommand(set, list, remove)
	return cmd
}
