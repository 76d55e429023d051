package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/cmd/internal/cli"
	"github.com/devops-agent/devops-agent/controller"
)

func runsCommand(f *flags) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use: "runs [ID]", Short: "List runs, the submitted files with several jobs, or show one", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return f.aboutRun(cmd.Context(), "GET", args[0], "", f.showRun)
			}
			c, err := f.open()
			if err != nil {
				return err
			}
			var list []controller.Run
			if err := c.call(cmd.Context(), "GET", "/runs?limit="+strconv.Itoa(limit), nil, &list); err != nil {
				return err
			}
			if f.json {
				return f.printJSON(list)
			}
			w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "NUMBER\tID\tNAME\tSTATE\tBUILDS\tSUBMITTED\tTOOK")
			for _, r := range list {
				_, _ = fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Number, r.ID, plainLine(r.Name), r.State, tally(r),
					time.UnixMilli(r.CreatedAt).Format(time.DateTime), took(r.CreatedAt, r.FinishedAt))
			}
			return w.Flush()
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 20, "how many")
	cmd.AddCommand(
		&cobra.Command{Use: "cancel ID", Short: "Cancel all builds of a run", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return f.aboutRun(cmd.Context(), "POST", args[0], "/cancel", func(r controller.Run) error {
				text := string(r.State)
				if !r.State.Over() {
					text = "being cancelled"
				}
				_, err := fmt.Fprintf(f.out, "run #%d is %s\n", r.Number, text)
				return err
			})
		}},
		&cobra.Command{Use: "rerun ID", Short: "Submit a run once more", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return f.aboutRun(cmd.Context(), "POST", args[0], "/rerun", func(r controller.Run) error {
				_, err := fmt.Fprintln(f.out, r.ID)
				return err
			})
		}})
	return cmd
}

// aboutRun makes a call about one run and shows its answer.
func (f *flags) aboutRun(ctx context.Context, method, id, verb string, show func(controller.Run) error) error {
	c, err := f.open()
	if err != nil {
		return err
	}
	var r controller.Run
	if err := c.call(ctx, method, "/runs/"+url.PathEscape(id)+verb, nil, &r); err != nil {
		return err
	}
	if f.json {
		return f.printJSON(r)
	}
	return show(r)
}

// tally counts the builds of a run by their states.
func tally(r controller.Run) string {
	count := make(map[controller.State]int)
	for _, j := range r.Jobs {
		count[j.State]++
	}
	var parts []string
	for _, state := range slices.Sorted(maps.Keys(count)) {
		parts = append(parts, fmt.Sprintf("%d %s", count[state], state))
	}
	return strings.Join(parts, ", ")
}

func (f *flags) showRun(r controller.Run) error {
	w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(w, "run\t#%d %s\nname\t%s\nstate\t%s\n", r.Number, r.ID, plainLine(r.Name), r.State)
	if r.Message != "" {
		_, _ = fmt.Fprintf(w, "message\t%s\n", plainLine(strings.ReplaceAll(r.Message, "\n", " ")))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, _ = fmt.Fprintln(w, "JOB\tBUILD\tID\tSTATE\tNEEDS\tRAN\tMESSAGE")
	for _, j := range r.Jobs {
		_, _ = fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\t%s\n", plainLine(jobTitle(r, j)), j.Number, j.Build, j.State, strings.Join(j.Needs, ", "),
			took(j.StartedAt, j.FinishedAt), plainLine(strings.ReplaceAll(j.Message, "\n", " ")))
	}
	return w.Flush()
}

// jobTitle is a job and its cell of the matrix: test (linux, 1.26).
func jobTitle(r controller.Run, j controller.RunJob) string {
	return strings.TrimPrefix(j.Name, r.Name+"/")
}

// newRun is what is submitted of a file with several jobs. The file is checked here: an error names it sooner.
func newRun(data []byte, project, name, timeout string, labels, variables []string) (in controller.NewRun, err error) {
	if _, err := controller.ParseJobs(data); err != nil {
		return in, err
	}
	in = controller.NewRun{Project: project, File: string(data), Name: name, Labels: labels}
	if in.Variables, err = assignments(variables); err != nil {
		return in, err
	}
	if timeout != "" {
		if in.Timeout, err = controller.ParseDuration(timeout); err != nil {
			return in, fmt.Errorf("--timeout: %w", err)
		}
	}
	return in, nil
}

// runJobs submits a file with several jobs and follows all of its builds to the end.
func (f *flags) runJobs(ctx context.Context, in controller.NewRun, detach bool) error {
	c, err := f.open()
	if err != nil {
		return err
	}
	var r controller.Run
	if err := c.call(ctx, "POST", "/runs", in, &r); err != nil {
		return fmt.Errorf("submit: %w", err)
	}
	return f.watchRun(ctx, c, r, detach)
}

// watchRun follows a run to its end, unless it is left alone.
func (f *flags) watchRun(ctx context.Context, c *api, r controller.Run, detach bool) (err error) {
	switch {
	case detach && f.json:
		return f.printJSON(r)
	case detach:
		_, err := fmt.Fprintln(f.out, r.ID)
		return err
	case !f.json:
		_, _ = fmt.Fprintf(f.out, "── run #%d %s queued: %d builds\n", r.Number, r.ID, len(r.Jobs))
	}
	if err := f.followRun(ctx, r); err != nil {
		return fmt.Errorf("run %s: %w", r.ID, err)
	}
	end := r
	if err := c.call(context.WithoutCancel(ctx), "GET", "/runs/"+r.ID, nil, &end); err != nil {
		return fmt.Errorf("run %s: %w", r.ID, err)
	}
	if f.json {
		err = f.printJSON(runEvent{Run: &end})
	} else {
		_, err = fmt.Fprintf(f.out, "── run #%d %s [%s, %d ms in all]\n", end.Number, endText(end), tally(end), end.FinishedAt-end.CreatedAt)
	}
	switch {
	case err != nil:
		return err
	case end.State == controller.Succeeded:
		return nil
	case end.State == controller.Cancelled:
		return &cli.Exit{Code: exitCancelled}
	}
	return &cli.Exit{Code: 1}
}

func endText(r controller.Run) string {
	if r.Message == "" {
		return string(r.State)
	}
	return string(r.State) + ": " + plainLine(strings.ReplaceAll(r.Message, "\n", " "))
}

// runEvent is one line of a followed run with --json: an event of one of its builds, and at the end the run.
type runEvent struct {
	Job string          `json:"job,omitempty"` // with its cell
	ID  string          `json:"id,omitempty"`  // of the build
	Run *controller.Run `json:"run,omitempty"`
	event
}

// followRun shows the logs of all builds of a run, each line with its job, until all are over. When ctx ends, the run
// is cancelled, and followed to its end for a while.
func (f *flags) followRun(ctx context.Context, r controller.Run) error {
	var mu sync.Mutex
	width := 0
	for _, j := range r.Jobs {
		width = max(width, len(jobTitle(r, j)))
	}
	type follower struct {
		p    *progress
		show func(event) error
	}
	followers := make([]follower, len(r.Jobs))
	for i, j := range r.Jobs {
		title := jobTitle(r, j)
		own := *f
		own.out = &prefixed{mu: &mu, w: f.out, prefix: fmt.Sprintf("%-*s | ", width, plainLine(title))}
		p := &progress{flags: &own, build: controller.Build{ID: j.Build, Number: j.Number}}
		followers[i] = follower{p: p, show: func(e event) error {
			if !f.json {
				return p.show(e)
			}
			if e.Line != nil {
				p.last = e.Line.Seq
			}
			mu.Lock()
			defer mu.Unlock()
			return f.printJSON(runEvent{Job: title, ID: j.Build, event: e})
		}}
	}
	all := func(ctx context.Context) error {
		var group sync.WaitGroup
		errs := make([]error, len(r.Jobs))
		for i, j := range r.Jobs {
			group.Go(func() { _, errs[i] = f.follow(ctx, j.Build, followers[i].p.last, followers[i].show) })
		}
		group.Wait()
		return errors.Join(errs...)
	}
	err := all(ctx)
	if ctx.Err() == nil {
		return err
	}
	rest, stop := context.WithTimeoutCause(context.WithoutCancel(ctx), cancelGrace, errors.New("it did not end in time after it was cancelled"))
	defer stop()
	c, err := f.open()
	if err != nil {
		return err
	}
	if !f.json {
		_, _ = fmt.Fprintln(f.out, "── cancelling…")
	}
	if err := c.call(rest, "POST", "/runs/"+r.ID+"/cancel", nil, nil); err != nil {
		return fmt.Errorf("cancel: %w", err)
	}
	return all(rest)
}

// prefixed writes whole lines, each with a prefix, to a writer that others use as well.
type prefixed struct {
	mu     *sync.Mutex
	w      io.Writer
	prefix string
}

// Write takes one or more whole lines.
func (p *prefixed) Write(data []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b bytes.Buffer
	for line := range bytes.Lines(data) {
		b.WriteString(p.prefix)
		b.Write(line)
	}
	_, err := p.w.Write(b.Bytes())
	return len(data), err
}
