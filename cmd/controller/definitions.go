package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/controller"
)

func projectFlag(cmd *cobra.Command, project *string) {
	cmd.Flags().StringVar(project, "project", "", "project (default "+controller.DefaultProject+")")
}

func defineCommand(f *flags) *cobra.Command {
	var project string
	cmd := &cobra.Command{
		Use: "define FILE.yaml", Short: "Store a build file with a schedule or a webhook", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var data []byte
			var err error
			if args[0] == "-" {
				data, err = io.ReadAll(cmd.InOrStdin())
			} else {
				data, err = os.ReadFile(args[0])
			}
			if err != nil {
				return fmt.Errorf("read the build file: %w", err)
			}
			c, err := f.open()
			if err != nil {
				return err
			}
			var d controller.Definition
			if err := c.call(cmd.Context(), "POST", "/definitions", map[string]string{"project": project, "file": string(data)}, &d); err != nil {
				return err
			}
			if f.json {
				return f.printJSON(d)
			}
			return f.showDefinitions([]controller.Definition{d})
		},
	}
	projectFlag(cmd, &project)
	return cmd
}

func definitionsCommand(f *flags) *cobra.Command {
	var project string
	cmd := &cobra.Command{
		Use: "definitions [NAME]", Short: "List stored build files, or show one without its sensitive values", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.open()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				return f.showFile(cmd.Context(), c, project, args[0])
			}
			var list []controller.Definition
			if err := c.call(cmd.Context(), "GET", "/definitions", nil, &list); err != nil {
				return err
			}
			list = slices.DeleteFunc(list, func(d controller.Definition) bool { return project != "" && d.Project != project })
			if f.json {
				return f.printJSON(list)
			}
			return f.showDefinitions(list)
		},
	}
	projectFlag(cmd, &project)
	return cmd
}

// showFile writes the build file of a definition.
func (f *flags) showFile(ctx context.Context, c *api, project, name string) error {
	var shown controller.ShownFile
	if err := c.call(ctx, "GET", "/definitions/"+url.PathEscape(name)+"/file?project="+url.QueryEscape(project), nil, &shown); err != nil {
		return err
	}
	if f.json {
		return f.printJSON(shown)
	}
	for line := range strings.Lines(shown.File) {
		if _, err := fmt.Fprintln(f.out, plainLine(strings.TrimRight(line, "\r\n"))); err != nil {
			return err
		}
	}
	return nil
}

func (f *flags) showDefinitions(list []controller.Definition) error {
	w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "PROJECT\tNAME\tNEXT\tWEBHOOK\tBADGE\tLAST RUN\tPROBLEM")
	for _, d := range list {
		next, hook, badge, last := "", "", "", ""
		if d.NextAt != 0 {
			next = time.UnixMilli(d.NextAt).Format(time.DateTime)
		}
		if d.Webhook != nil {
			hook = "/hooks/" + d.Project + "/" + d.Name
		}
		if d.Badge != "" {
			badge = "/badge/" + d.Project + "/" + d.Name + ".svg"
		}
		if d.LastRun != nil {
			last = fmt.Sprintf("#%d %s", d.LastRun.Number, d.LastRun.State)
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", d.Project, d.Name, next, hook, badge, last, plainLine(strings.ReplaceAll(d.Problem, "\n", " ")))
	}
	return w.Flush()
}

func undefineCommand(f *flags) *cobra.Command {
	var project string
	cmd := &cobra.Command{
		Use: "undefine NAME", Short: "Forget a stored build file; its runs stay", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.open()
			if err != nil {
				return err
			}
			if err := c.call(cmd.Context(), "DELETE", "/definitions/"+url.PathEscape(args[0])+"?project="+url.QueryEscape(project), nil, nil); err != nil {
				return err
			}
			if f.json {
				return f.printJSON(map[string]string{"name": args[0]})
			}
			_, err = fmt.Fprintf(f.out, "%s is forgotten\n", args[0])
			return err
		},
	}
	projectFlag(cmd, &project)
	return cmd
}

func triggerCommand(f *flags) *cobra.Command {
	var project string
	var variables []string
	var detach bool
	cmd := &cobra.Command{
		Use: "trigger NAME", Short: "Start a stored build file by hand, show its logs, end with its status", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := assignments(variables)
			if err != nil {
				return err
			}
			c, err := f.open()
			if err != nil {
				return err
			}
			path := "/definitions/" + url.PathEscape(args[0])
			query := "?project=" + url.QueryEscape(project)
			var d controller.Definition
			if err := c.call(cmd.Context(), "GET", path+query, nil, &d); err != nil {
				return err
			}
			inputs := make(map[string]string) // what the webhook sets arrives as it does from there
			if d.Webhook != nil {
				for name := range d.Webhook.Variables {
					if v, given := set[name]; given {
						inputs[name] = v.Value
						delete(set, name)
					}
				}
			}
			var r controller.Run
			if err := c.call(cmd.Context(), "POST", path+"/trigger"+query, map[string]any{"variables": set, "inputs": inputs}, &r); err != nil {
				return err
			}
			return f.watchRun(cmd.Context(), c, r, detach)
		},
	}
	projectFlag(cmd, &project)
	cmd.Flags().StringArrayVar(&variables, "var", nil, "set a variable, `NAME=VALUE` (may be repeated)")
	cmd.Flags().BoolVar(&detach, "detach", false, "print the run's id and do not wait")
	return cmd
}
