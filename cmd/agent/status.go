package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/devops-agent/devops-agent/cmd/internal/cli"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/service/control"
)

// report is what "status --json" prints. Programs of others read it: docs/status.schema.json describes it, fields are
// added, never changed.
type report struct {
	Schema   int             `json:"schema"` // 1
	Time     time.Time       `json:"time"`
	Home     string          `json:"home"`
	Identity string          `json:"identity,omitempty"` // id of the agent
	State    State           `json:"state"`
	Healthy  bool            `json:"healthy"`
	ExitCode int             `json:"exit_code"`
	Summary  string          `json:"summary"`
	Advice   string          `json:"advice"`
	Problems []finding       `json:"problems"` // all that is not as it should be, the most important first
	Keeper   kept            `json:"keeper"`
	Agent    *control.Status `json:"agent"`   // null when it does not answer
	Process  *process        `json:"process"` // who has the home; null when nobody does, or nobody knows
	Disk     *control.Disk   `json:"disk"`    // null when it cannot be asked
	Version  string          `json:"version"` // of the program that printed this
}

// kept is what the keeper says.
type kept struct {
	Kind      service.Keeper        `json:"kind"`
	Name      string                `json:"name,omitempty"`
	Installed bool                  `json:"installed"`
	Enabled   bool                  `json:"enabled"`
	Running   bool                  `json:"running"`
	PID       int                   `json:"pid,omitempty"`
	Since     *time.Time            `json:"since,omitempty"`
	Restarts  int                   `json:"restarts"` // -1 when it does not count
	Detail    string                `json:"detail,omitempty"`
	ExitCode  int                   `json:"exit_code"` // -1 when unknown
	StayDown  bool                  `json:"stay_down"`
	Error     string                `json:"error,omitempty"`
	Daemon    *control.DaemonStatus `json:"daemon,omitempty"`
}

// reportOf judges facts.
func reportOf(f *facts) *report {
	found := diagnose(f)
	r := &report{
		Schema: 1, Time: f.now, Home: f.home, Identity: f.identity, State: found[0].State, Summary: found[0].Summary, Advice: found[0].Advice,
		Healthy: found[0].Level == fine, Problems: []finding{}, Agent: f.agent, Process: f.holder, Disk: f.disk, Version: cli.Version(),
		Keeper: kept{Kind: f.keeper, Name: f.name, Installed: f.kept.Installed, Enabled: f.kept.Enabled, Running: f.kept.Running,
			PID: f.kept.PID, Restarts: f.kept.Restarts, Detail: cli.OneLine(f.kept.Detail), ExitCode: f.kept.ExitCode, StayDown: f.kept.StayDown, Daemon: f.daemon},
	}
	for _, p := range found {
		if p.Level != fine {
			r.Problems = append(r.Problems, p)
		}
		r.Healthy = r.Healthy && p.Level != trouble
	}
	if !f.kept.Since.IsZero() {
		r.Keeper.Since = &f.kept.Since
	}
	if f.keeperErr != nil {
		r.Keeper.Error = cli.OneLine(f.keeperErr.Error())
	}
	if f.agent != nil {
		r.Agent = tidy(*f.agent)
	}
	r.ExitCode = r.State.exitCode(r.Healthy)
	return r
}

// tidy makes lists of what is none, so that readers find one.
func tidy(s control.Status) *control.Status {
	if s.Builds == nil {
		s.Builds = []control.Build{}
	}
	if s.Overrides == nil {
		s.Overrides = []control.Override{}
	}
	if s.Versions.JDK == nil {
		s.Versions.JDK = []string{}
	}
	return &s
}

func statusCommand(where *place) *cobra.Command {
	var asJSON, watch, markdown bool
	cmd := &cobra.Command{
		Use: "status", Short: "Say whether the agent works, and if not, why and what to do", Args: usage(cobra.NoArgs),
		Long: "status says in its first line what state the agent is in, and in the second what to do; details follow.\n" +
			"It takes three seconds at the most, whatever hangs.\n\n" +
			"Exit codes: 0 the agent works; 1 it runs, or is meant to, and does not work; 3 it does not run;\n" +
			"4 it is not installed, or cannot be seen from here.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := where.locate()
			if err != nil {
				return err
			}
			if watch {
				return watchStatus(cmd.Context(), l, cmd.OutOrStdout(), asJSON)
			}
			r := reportOf(look(cmd.Context(), l))
			if markdown {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "```\n%s```\n", r.text(false))
			} else {
				err = r.print(cmd.OutOrStdout(), asJSON)
			}
			if err != nil {
				return err
			}
			if r.ExitCode != 0 {
				return &cli.Exit{Code: r.ExitCode}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "for programs; the format is that of docs/status.schema.json")
	cmd.Flags().BoolVar(&markdown, "markdown", false, "as a block of text, for tickets; the original's word")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "look again every two seconds, until Ctrl-C")
	return cmd
}

// watchStatus looks again and again: on a terminal over what was there, else a line (with --json an object) per change.
func watchStatus(ctx context.Context, l located, out io.Writer, asJSON bool) error {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	screen := !asJSON && isTerminal(out)
	last := ""
	for {
		r := reportOf(look(ctx, l))
		if ctx.Err() != nil {
			return nil
		}
		var err error
		switch {
		case screen:
			_, _ = io.WriteString(out, "\x1b[H\x1b[2J") // to the corner, and clear
			err = r.print(out, false)
		case asJSON:
			err = json.NewEncoder(out).Encode(r)
		case string(r.State)+r.plainSummary() != last:
			last = string(r.State) + r.plainSummary()
			_, err = fmt.Fprintf(out, "%s %s\n", clock(r.Time), r.Summary)
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// plainSummary is the summary without the age of the last contact, which changes with every look.
func (r *report) plainSummary() string {
	before, _, _ := strings.Cut(r.Summary, ", last contact")
	return before
}

func isTerminal(out io.Writer) bool {
	file, ok := out.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// print writes the report, for people or for programs.
func (r *report) print(out io.Writer, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	_, err := io.WriteString(out, r.text(isTerminal(out) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"))
	return err
}

// text is the report for people.
func (r *report) text(coloured bool) string {
	var b strings.Builder
	paint := func(colour, text string) string {
		if !coloured {
			return text
		}
		return "\x1b[" + colour + "m" + text + "\x1b[0m"
	}
	colour := "1;32" // green
	switch {
	case r.ExitCode == 3 || r.ExitCode == 4:
		colour = "1;33" // yellow
	case !r.Healthy:
		colour = "1;31" // red
	}
	fmt.Fprintf(&b, "%s\n%s\n", paint(colour, r.Summary), r.Advice)
	for _, p := range r.Problems {
		if p.Summary != r.Summary {
			fmt.Fprintf(&b, "%s %s\n         %s\n", paint("33", "also:   "), p.Summary, p.Advice)
		}
	}
	b.WriteByte('\n')
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		_, _ = fmt.Fprintf(w, "%s\t%s\n", name, cli.OneLine(fmt.Sprintf(format, args...)))
	}
	line("keeper", "%s", r.Keeper.words())
	switch a := r.Agent; {
	case a != nil:
		line("pid", "%d (user %s)", a.PID, a.User)
		line("since", "%s (%s)", clock(a.Since), length(r.Time.Sub(a.Since)))
	case r.Process != nil:
		line("process", "%s", r.Process)
	}
	r.versions(line)
	line("home", "%s", r.Home)
	if r.Identity != "" {
		line("agent id", "%s", r.Identity)
	}
	if r.Agent != nil {
		r.agentLines(line)
	}
	if disk := r.Disk; disk != nil {
		line("disk", "%s free in %s (%s needed)", size(disk.Free), disk.Path, size(disk.Needed))
	}
	if a := r.Agent; a != nil {
		r.upgradeLines(line)
		for _, o := range a.Overrides {
			line("agent.toml", "%s = %s (in place of %s)", o.Setting, o.Value, o.Key)
		}
	}
	_ = w.Flush()
	if r.Agent != nil && len(r.Agent.Builds) > 0 {
		b.WriteByte('\n')
		t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(t, "BUILD\tVM\tPROJECT\tPID\tRUNS")
		for _, build := range r.Agent.Builds {
			_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\n", cli.OneLine(build.Build), cli.OneLine(build.VMSeq), cli.OneLine(build.Project), build.PID, length(r.Time.Sub(build.Since)))
		}
		_ = t.Flush()
	}
	return b.String()
}

// versions of what runs and of what is installed.
func (r *report) versions(line func(name, format string, args ...any)) {
	if r.Agent == nil {
		line("version", "%s (this program)", r.Version)
		return
	}
	text := "agent " + r.Agent.Version
	if r.Version != r.Agent.Version {
		text += " (this program: " + r.Version + ")"
	}
	if r.Agent.Versions.Worker != "" {
		text += ", worker " + r.Agent.Versions.Worker
	}
	if jdk := strings.Join(r.Agent.Versions.JDK, ", "); jdk != "" {
		text += ", jdk " + jdk
	}
	line("version", "%s", text)
}

func (r *report) agentLines(line func(name, format string, args ...any)) {
	a := r.Agent
	waits := ""
	if a.Server.Waits {
		waits = ", holds questions"
	}
	line("server", "%s (%s%s), agent status %s", a.Server.Gateway, or(a.Server.Protocol, "no protocol yet"), waits, or(a.Server.AgentStatus, "not known"))
	contact := "never"
	if a.Server.LastContact != nil {
		contact = clock(*a.Server.LastContact) + " (" + ago(r.Time, *a.Server.LastContact) + ")"
	}
	line("last contact", "%s", contact)
	if a.Server.Failing != nil {
		line("failing since", "%s: %s", clock(*a.Server.Failing), a.Server.Error)
	}
	reports := ""
	if a.Reports > 0 {
		reports = "; " + count(a.Reports, "report") + " not yet taken by the server"
	}
	line("builds", "%d running%s", len(a.Builds), reports)
	line("slots", "%d of %s, docker %d of %s", a.Slots.Running, limit(a.Slots.Parallel), a.Slots.DockerRunning, limit(a.Slots.DockerParallel))
	if a.Debug {
		line("debug", "on: no upgrades")
	}
}

// upgradeLines say what is going on, what the server wants, and how the last upgrade ended.
func (r *report) upgradeLines(line func(name, format string, args ...any)) {
	u := r.Agent.Upgrade
	text := or(u.Mode, "server")
	if u.Pending != "" {
		text += "; pending: " + u.Pending
	}
	line("upgrades", "%s", text)
	if u.Phase != "" {
		text = string(u.Phase)
		if u.To != "" {
			text += ": " + u.To
		}
		if u.Since != nil {
			text += " since " + length(r.Time.Sub(*u.Since))
		}
		if u.Starts > 1 {
			text += fmt.Sprintf(", start %d", u.Starts)
		}
		line("upgrade now", "%s", text)
	}
	if u.Refused != "" {
		line("not upgraded", "%s", u.Refused)
	}
	if u.Left != "" {
		line("rolled back", "%s; the server's offer of it is not taken", u.Left)
	}
	if u.Last != nil {
		text = u.Last.State + " " + clock(u.Last.Ended)
		if u.Last.To != "" {
			text = u.Last.To + ", " + text
		}
		if u.Last.Reason != "" {
			text += ": " + u.Last.Reason
		}
		line("last upgrade", "%s", text)
	}
}

func limit(n int) string {
	if n == 0 {
		return "any number"
	}
	return fmt.Sprint(n)
}

// words is the keeper for people.
func (k *kept) words() string {
	if k.Kind == service.KeeperNone {
		return "none"
	}
	text := keeperName(k.Kind, k.Name)
	if k.Error != "" {
		return text + ": " + k.Error
	}
	if !k.Installed && !k.Running {
		return text + ": not installed"
	}
	if k.Detail != "" {
		text += ": " + k.Detail
	}
	if k.Since != nil {
		text += " since " + clock(*k.Since)
	}
	if k.Restarts > 0 {
		text += ", " + count(k.Restarts, "restart")
	}
	if !k.Installed {
		return text + ", not registered"
	}
	if !k.Enabled && k.Kind != service.KeeperDaemon {
		text += ", disabled"
	}
	return text
}
