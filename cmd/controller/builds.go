package main

import (
	"fmt"
	"net/url"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/controller"
)

func buildsCommand(f *flags) *cobra.Command {
	var limit int
	var active bool
	cmd := &cobra.Command{
		Use: "builds [ID]", Short: "List builds, the newest first, or show one", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.open()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				var b controller.Build
				if err := c.call(cmd.Context(), "GET", "/builds/"+url.PathEscape(args[0]), nil, &b); err != nil {
					return err
				}
				if f.json {
					return f.printJSON(b)
				}
				return f.showBuild(b)
			}
			var list []controller.Build
			q := url.Values{"limit": {strconv.Itoa(limit)}, "active": {strconv.FormatBool(active)}}
			if err := c.call(cmd.Context(), "GET", "/builds?"+q.Encode(), nil, &list); err != nil {
				return err
			}
			if f.json {
				return f.printJSON(list)
			}
			w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "NUMBER\tID\tNAME\tSTATE\tAGENT\tQUEUED\tWAITED\tRAN")
			for _, b := range list {
				_, _ = fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", b.Number, b.ID, plainLine(b.Name), b.State, plainLine(b.AgentHost),
					time.UnixMilli(b.QueuedAt).Format(time.DateTime), took(b.QueuedAt, b.StartedAt), took(b.StartedAt, b.FinishedAt))
			}
			return w.Flush()
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 20, "how many")
	cmd.Flags().BoolVar(&active, "active", false, "only those that are not over")
	return cmd
}

func took(from, to int64) string {
	if from == 0 || to == 0 {
		return ""
	}
	return fmt.Sprintf("%d ms", to-from)
}

func (f *flags) showBuild(b controller.Build) error {
	w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(w, "build\t#%d %s\nname\t%s\nstate\t%s\nagent\t%s %s\n", b.Number, b.ID, plainLine(b.Name), b.State, plainLine(b.AgentHost), b.Agent)
	if b.Run != "" {
		_, _ = fmt.Fprintf(w, "run\t#%d %s\n", b.RunNumber, b.Run)
	}
	if b.Message != "" {
		_, _ = fmt.Fprintf(w, "message\t%s\n", plainLine(b.Message))
	}
	if b.LogGone {
		_, _ = fmt.Fprintf(w, "log\tremoved: it was too old, or too much was there\n")
	}
	for i, s := range b.Steps {
		_, _ = fmt.Fprintf(w, "step %d\t%s\t%s\t%s\t%s\n", i+1, plainLine(s.Name), s.State, took(s.StartedAt, s.FinishedAt), plainLine(s.Message))
	}
	if r := b.Report; r != nil {
		_, _ = fmt.Fprintf(w, "agent said\tsuccess=%t %s\n", r.Success, plainLine(r.Message))
	}
	return w.Flush()
}

func logsCommand(f *flags) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use: "logs ID", Short: "Show the log of a build", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var after, shown int64
			show := func(e event) error {
				shown++
				if f.json {
					return f.printJSON(e)
				}
				if e.Line == nil {
					return nil
				}
				_, err := fmt.Fprintln(f.out, plainLine(e.Line.Message))
				return err
			}
			if follow {
				_, err := f.follow(cmd.Context(), args[0], 0, show)
				return err
			}
			if err := f.stream(cmd.Context(), args[0], false, show, &after); err != nil || shown > 0 {
				return err
			}
			c, err := f.open()
			if err != nil {
				return err
			}
			var b controller.Build
			if err := c.call(cmd.Context(), "GET", "/builds/"+url.PathEscape(args[0]), nil, &b); err != nil {
				return err
			}
			if b.LogGone {
				return fmt.Errorf("the log of build #%d was removed: it was too old, or too much was there", b.Number)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "wait for more until the build is over")
	return cmd
}

func cancelCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "cancel ID", Short: "Cancel a build", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.open()
			if err != nil {
				return err
			}
			var b controller.Build
			if err := c.call(cmd.Context(), "POST", "/builds/"+url.PathEscape(args[0])+"/cancel", nil, &b); err != nil {
				return err
			}
			if f.json {
				return f.printJSON(b)
			}
			text := string(b.State)
			if !b.State.Over() {
				text = "being cancelled"
			}
			_, err = fmt.Fprintf(f.out, "build #%d is %s\n", b.Number, text)
			return err
		},
	}
}
