package main

import (
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/cmd/internal/cli"
	"github.com/devops-agent/devops-agent/controller"
)

func agentsCommand(f *flags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "agents", Short: "List agents, change their settings, delete them", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.open()
			if err != nil {
				return err
			}
			var list []controller.AgentInfo
			if err := c.call(cmd.Context(), "GET", "/agents", nil, &list); err != nil {
				return err
			}
			if f.json {
				return f.printJSON(list)
			}
			return printAgents(f.out, list)
		},
	}
	cmd.AddCommand(setCommand(f), deleteCommand(f))
	return cmd
}

func printAgents(out io.Writer, list []controller.AgentInfo) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "ID\tSTATUS\tHOST\tSYSTEM\tAGENT\tWORKER\tBUILDS\tLABELS")
	for _, a := range list {
		system := a.OS
		if a.Arch != "" {
			system += "/" + a.Arch
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", a.ID, a.Status, plainLine(a.HostName), plainLine(system), plainLine(a.AgentVersion), plainLine(a.WorkerVersion),
			len(a.Builds), strings.Join(a.Labels, ","))
	}
	return w.Flush()
}

func setCommand(f *flags) *cobra.Command {
	var in struct {
		labels, envs                     []string
		parallel, dockerParallel, keep   int
		gateway, file, language, ignored string
		pipelines                        bool
	}
	cmd := &cobra.Command{
		Use: "set ID", Short: "Change an agent's settings; its next heartbeat learns of them", Args: cobra.ExactArgs(1),
	}
	fl := cmd.Flags()
	fl.StringSliceVar(&in.labels, "labels", nil, "labels, instead of the ones it has")
	fl.StringArrayVar(&in.envs, "env", nil, "environment of its workers, `NAME=VALUE` (may be repeated), instead of what it has")
	fl.IntVar(&in.parallel, "parallel", 0, "host builds at once, 0 is unlimited")
	fl.IntVar(&in.dockerParallel, "docker-parallel", 0, "container builds at once, 0 is unlimited")
	fl.IntVar(&in.keep, "keep-logs-hours", 0, "age limit of its log files, in hours")
	fl.StringVar(&in.gateway, "gateway", "", "address that it shall use from now on")
	fl.StringVar(&in.file, "file-gateway", "", "address of files for its workers")
	fl.StringVar(&in.language, "language", "", "locale, as in en_US")
	fl.StringVar(&in.ignored, "ignore-ips", "", "local addresses that it shall not report, separated by commas")
	fl.BoolVar(&in.pipelines, "pipelines", false, "let it run pipeline scripts")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var change controller.AgentChange
		envs := make(map[string]string)
		for _, e := range in.envs {
			name, value, found := strings.Cut(e, "=")
			if found {
				envs[name] = value
			} else if e != "" {
				return fmt.Errorf("--env %s: NAME=VALUE, please", e)
			}
		}
		for name, take := range map[string]func(){
			"labels":          func() { change.Labels = &in.labels },
			"env":             func() { change.Envs = &envs },
			"parallel":        func() { change.Parallel = &in.parallel },
			"docker-parallel": func() { change.DockerParallel = &in.dockerParallel },
			"keep-logs-hours": func() { change.KeepLogsHours = &in.keep },
			"gateway":         func() { change.Gateway = &in.gateway },
			"file-gateway":    func() { change.FileGateway = &in.file },
			"language":        func() { change.Language = &in.language },
			"ignore-ips":      func() { change.IgnoreLocalIPs = &in.ignored },
			"pipelines":       func() { change.EnablePipeline = &in.pipelines },
		} {
			if cmd.Flags().Changed(name) {
				take()
			}
		}
		c, err := f.open()
		if err != nil {
			return err
		}
		var a controller.AgentInfo
		if err := c.call(cmd.Context(), "PATCH", "/agents/"+url.PathEscape(args[0]), change, &a); err != nil {
			return err
		}
		if f.json {
			return f.printJSON(a)
		}
		return printAgents(f.out, []controller.AgentInfo{a})
	}
	return cmd
}

func deleteCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "delete ID", Short: "Delete an agent: it is told to uninstall itself", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.open()
			if err != nil {
				return err
			}
			if err := c.call(cmd.Context(), "DELETE", "/agents/"+url.PathEscape(args[0]), nil, nil); err != nil {
				return err
			}
			if f.json {
				return f.printJSON(map[string]string{"id": args[0], "status": string(wire.Deleted)})
			}
			_, err = fmt.Fprintf(f.out, "agent %s deleted\n", args[0])
			return err
		},
	}
}

func pipelineCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "pipeline AGENT -- COMMAND…", Short: "Have an agent run a script outside of builds, and show what it said",
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 1 || len(args) < 2 {
				return fmt.Errorf("name an agent, and a command after --")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.open()
			if err != nil {
				return err
			}
			var s controller.Script
			in := map[string]string{"command": commandLine(args[1:])}
			if err := c.call(cmd.Context(), "POST", "/agents/"+url.PathEscape(args[0])+"/scripts", in, &s); err != nil {
				return err
			}
			for s.EndedAt == 0 {
				if err := c.call(cmd.Context(), "GET", fmt.Sprintf("/scripts/%d?wait=30", s.ID), nil, &s); err != nil {
					return err
				}
			}
			if f.json {
				err = f.printJSON(s)
			} else {
				_, err = fmt.Fprintln(f.out, plainLine(strings.TrimRight(s.Response, "\n")))
			}
			if err == nil && s.Status != wire.PipelineSuccess {
				return &cli.Exit{Code: 1}
			}
			return err
		},
	}
}
