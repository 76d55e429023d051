package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/cmd/internal/cli"
	"github.com/devops-agent/devops-agent/controller"
)

// exitCancelled is the exit code of run for a build that was cancelled: that of a program ended by Ctrl-C.
const exitCancelled = 130

// patience is how long run and logs -f look for a controller that went away, and cancelGrace how long run waits for the
// end of a build that it has cancelled.
const (
	patience    = 2 * time.Minute
	cancelGrace = 30 * time.Second
)

func runCommand(f *flags) *cobra.Command {
	var labels, variables []string
	var name, timeout, project string
	var detach bool
	cmd := &cobra.Command{
		Use:   "run FILE.yaml | -- COMMAND…",
		Short: "Submit a build, show its log, end with its status",
		Long: `Submit a build, show its log, and end with its status: 0 success, 1 failure, 130 cancelled.
Ctrl-C cancels the build. FILE "-" is standard input. A COMMAND of one word is a shell script;
more words are one command and its arguments.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || cmd.ArgsLenAtDash() > 0 || cmd.ArgsLenAtDash() < 0 && len(args) != 1 {
				return errors.New("name one build file, or a command after --")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			data, err := buildFile(cmd, args)
			if err != nil {
				return err
			}
			if controller.HasJobs(data) {
				in, err := newRun(data, project, name, timeout, labels, variables)
				if err != nil {
					return err
				}
				return f.runJobs(cmd.Context(), in, detach)
			}
			spec, err := specOf(args, data)
			if err != nil {
				return err
			}
			if name != "" {
				spec.Name = name
			}
			spec.Labels = append(spec.Labels, labels...)
			set, err := assignments(variables)
			if err != nil {
				return err
			}
			for key, v := range set {
				if spec.Variables == nil {
					spec.Variables = make(map[string]controller.Variable)
				}
				v.Sensitive = spec.Variables[key].Sensitive
				spec.Variables[key] = v
			}
			if timeout != "" {
				if spec.Timeout, err = controller.ParseDuration(timeout); err != nil {
					return fmt.Errorf("--timeout: %w", err)
				}
			}
			return f.run(cmd.Context(), project, spec, detach)
		},
	}
	fl := cmd.Flags()
	fl.StringArrayVar(&labels, "label", nil, "only on an agent with this `label` (may be repeated)")
	fl.StringArrayVar(&variables, "var", nil, "set a variable, `NAME=VALUE` (may be repeated)")
	fl.StringVar(&name, "name", "", "name of the build; builds of one name share a workspace on a machine")
	fl.StringVar(&timeout, "timeout", "", "time `limit` of the build: 90s, 10m, 2h")
	fl.StringVar(&project, "project", "", "project (default "+controller.DefaultProject+")")
	fl.BoolVar(&detach, "detach", false, "print the build's id and do not wait")
	return cmd
}

// assignments reads the values of --var.
func assignments(list []string) (map[string]controller.Variable, error) {
	set := make(map[string]controller.Variable, len(list))
	for _, v := range list {
		key, value, found := strings.Cut(v, "=")
		if !found {
			return nil, fmt.Errorf("--var %s: NAME=VALUE, please", v)
		}
		set[key] = controller.Variable{Value: value}
	}
	return set, nil
}

// buildFile reads the build file that is named, nil when a command is given instead.
func buildFile(cmd *cobra.Command, args []string) (data []byte, err error) {
	if cmd.ArgsLenAtDash() == 0 {
		return nil, nil
	}
	if args[0] == "-" {
		data, err = io.ReadAll(cmd.InOrStdin())
	} else {
		data, err = os.ReadFile(args[0])
	}
	if err != nil {
		return nil, fmt.Errorf("read the build file: %w", err)
	}
	return data, nil
}

// specOf is the build of a file, or of a command.
func specOf(args []string, data []byte) (controller.Spec, error) {
	if data == nil {
		return controller.Spec{Name: "run", Steps: []controller.Step{{Name: firstLine(args[0]), Script: commandLine(args)}}}, nil
	}
	return controller.ParseSpec(data)
}

// firstLine makes the name of a step of a script.
func firstLine(script string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(script), "\n")
	line = strings.ReplaceAll(plainLine(line), "\t", " ")
	if runes := []rune(line); len(runes) > 60 {
		line = string(runes[:59]) + "…"
	}
	return line
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

// commandLine makes a script of words. One word is a script already; more are quoted for sh.
func commandLine(words []string) string {
	if len(words) == 1 {
		return words[0]
	}
	quoted := make([]string, len(words))
	for i, w := range words {
		if quoted[i] = w; !plainWord.MatchString(w) {
			quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}

// run submits a build and follows it to its end.
func (f *flags) run(ctx context.Context, project string, spec controller.Spec, detach bool) error {
	c, err := f.open()
	if err != nil {
		return err
	}
	var b controller.Build
	in := map[string]any{"project": project, "spec": spec}
	if err := c.call(ctx, "POST", "/builds", in, &b); err != nil {
		return fmt.Errorf("submit: %w", err)
	}
	if detach {
		if f.json {
			return f.printJSON(b)
		}
		_, err := fmt.Fprintln(f.out, b.ID)
		return err
	}
	p := &progress{flags: f, build: b}
	if !f.json {
		p.say("build #%d %s queued", b.Number, b.ID)
	}
	end, err := f.follow(ctx, b.ID, 0, p.show)
	if err != nil && ctx.Err() != nil {
		end, err = f.cancelAndFollow(context.WithoutCancel(ctx), b.ID, p)
	}
	if err != nil {
		return fmt.Errorf("build %s: %w", b.ID, err)
	}
	switch end.State {
	case controller.Succeeded:
		return nil
	case controller.Cancelled:
		return &cli.Exit{Code: exitCancelled}
	}
	return &cli.Exit{Code: 1}
}

func (f *flags) cancelAndFollow(ctx context.Context, id string, p *progress) (controller.Build, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, cancelGrace, errors.New("it did not end in time after it was cancelled"))
	defer cancel()
	c, err := f.open()
	if err != nil {
		return controller.Build{}, err
	}
	if !f.json {
		p.say("cancelling…")
	}
	if err := c.call(ctx, "POST", "/builds/"+id+"/cancel", nil, nil); err != nil {
		return controller.Build{}, fmt.Errorf("cancel: %w", err)
	}
	return f.follow(ctx, id, p.last, p.show)
}

// follow streams the log of a build from after on, and survives a restart of the controller. It returns the build's end.
func (f *flags) follow(ctx context.Context, id string, after int64, show func(event) error) (end controller.Build, err error) {
	var gone time.Time
	for {
		before := after
		err := f.stream(ctx, id, true, func(e event) error {
			if e.Line != nil {
				after = e.Line.Seq
			}
			if e.Build != nil {
				end = *e.Build
			}
			return show(e)
		}, &after)
		var refused *apiError
		var broken *outputError
		switch {
		case end.State.Over():
			return end, nil
		case ctx.Err() != nil:
			return end, context.Cause(ctx)
		case errors.As(err, &refused) && refused.code < 500, errors.As(err, &broken):
			return end, err
		}
		if after > before || gone.IsZero() {
			gone = time.Now()
		}
		if err == nil {
			err = errors.New("the controller ended the log early")
		}
		if time.Since(gone) > patience {
			return end, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// outputError says that our own output failed.
type outputError struct{ err error }

// Error is the text of the cause.
func (e *outputError) Error() string { return "write: " + e.err.Error() }

// Unwrap returns the cause.
func (e *outputError) Unwrap() error { return e.err }

// stream reads one answer of the log call.
func (f *flags) stream(ctx context.Context, id string, follow bool, show func(event) error, after *int64) error {
	c, err := f.open()
	if err != nil {
		return err
	}
	defer c.http.CloseIdleConnections()
	q := url.Values{"after": {strconv.FormatInt(*after, 10)}, "follow": {strconv.FormatBool(follow)}}
	resp, err := c.request(ctx, "GET", "/builds/"+url.PathEscape(id)+"/log?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	dec := json.NewDecoder(bufio.NewReaderSize(resp.Body, 64<<10))
	for dec.More() {
		var e event
		if err := dec.Decode(&e); err != nil {
			return fmt.Errorf("read the log: %w", err)
		}
		if err := show(e); err != nil {
			return &outputError{err}
		}
	}
	return nil
}

// progress prints a build for a person: a header for each step, its lines, and a last line with status and times.
type progress struct {
	*flags
	build controller.Build
	step  int   // headers printed so far
	last  int64 // line printed last
	agent bool  // "running on" has been said
}

func (p *progress) say(format string, args ...any) {
	_, _ = fmt.Fprintf(p.out, "── "+format+"\n", args...) // a broken output shows at the next line
}

func (p *progress) show(e event) error {
	if e.Line != nil {
		p.last = e.Line.Seq
	}
	if p.json {
		return p.printJSON(e)
	}
	if e.Line != nil {
		p.header(func(s controller.StepState) bool { return s.Task == e.Line.Tag })
		_, err := fmt.Fprintln(p.out, plainLine(e.Line.Message))
		return err
	}
	if e.Build == nil {
		return nil
	}
	b := *e.Build
	p.build = b
	switch {
	case b.State == controller.Queued && p.agent:
		p.say("back in the queue")
		p.agent = false
	case b.State == controller.Queued && b.Message != "":
		p.say("%s", plainLine(b.Message))
	case b.State == controller.Handed && !p.agent:
		p.say("handed to %s", where(b))
		p.agent = true
	}
	p.header(func(s controller.StepState) bool { return s.StartedAt != 0 })
	if b.State.Over() {
		p.say("%s", summary(b))
	}
	return nil
}

// header prints the headers of steps up to the last one that fits.
func (p *progress) header(fits func(controller.StepState) bool) {
	for i := len(p.build.Steps) - 1; i >= p.step; i-- {
		if !fits(p.build.Steps[i]) {
			continue
		}
		for ; p.step <= i; p.step++ {
			p.say("step %d/%d: %s", p.step+1, len(p.build.Steps), plainLine(p.build.Steps[p.step].Name))
		}
		return
	}
}

func where(b controller.Build) string {
	if b.AgentHost == "" {
		return "agent " + b.Agent
	}
	return plainLine(b.AgentHost) + " (agent " + b.Agent + ")"
}

// summary is the last line: status and durations.
func summary(b controller.Build) string {
	text := fmt.Sprintf("build #%d %s", b.Number, b.State)
	if b.Message != "" {
		text += ": " + plainLine(strings.ReplaceAll(b.Message, "\n", " "))
	}
	text += " [queued → "
	if b.StartedAt != 0 {
		text += fmt.Sprintf("started %d ms → finished %d ms", b.StartedAt-b.QueuedAt, b.FinishedAt-b.StartedAt)
	} else {
		text += fmt.Sprintf("finished %d ms", b.FinishedAt-b.QueuedAt)
	}
	return text + fmt.Sprintf(", %d ms in all]", b.FinishedAt-b.QueuedAt)
}

var (
	marker  = regexp.MustCompile(`^##\[(error|warning|debug|command)\]`)
	control = regexp.MustCompile(`\x1b\[[0-9;]*m|[\x00-\x08\x0b-\x1f\x7f-\x{9f}\x{202a}-\x{202e}\x{2066}-\x{2069}]`)
)

// plainLine takes from a log line what a terminal must not get, colours apart, and the markers of its type: control
// characters of both sets, and those that turn the direction of a text round.
func plainLine(s string) string {
	return control.ReplaceAllStringFunc(marker.ReplaceAllString(s, ""), func(c string) string {
		if strings.HasSuffix(c, "m") {
			return c
		}
		return ""
	})
}
