package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/shirou/gopsutil/v4/mem"
	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/agent/metrics"
	"github.com/devops-agent/devops-agent/cmd/internal/cli"
)

func main() { os.Exit(cli.Main("fleetsim", run)) }

func run(ctx context.Context, args []string) error {
	root := command(os.Stdout)
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}

// options of a run.
type options struct {
	agents   int
	seed     uint64
	profiles []string
	program  string        // devopsController
	dir      string        // for data directories; removed in the end
	out      string        // folder for the page; "" writes none
	ramp     time.Duration // over which agents start
	calm     time.Duration // from the last start to the measurement
	length   time.Duration // of a measurement
	down     time.Duration // of the controller, in restart
	timeout  time.Duration // of an agent's calls, what they are held apart
	builds   int           // a minute
	bad      float64       // share of hosts
	tls      bool          // the controller has a certificate of its own, and the agents pin it
	sample   []byte        // measurements of this machine, as an agent sends them
}

func command(out io.Writer) *cobra.Command {
	var o options
	var names []string
	for _, p := range profiles() {
		names = append(names, p.name)
	}
	cmd := &cobra.Command{
		Use: "fleetsim", Short: "Play a fleet of agents against a controller", Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.play(cmd.Context(), out) },
	}
	f := cmd.Flags()
	f.IntVar(&o.agents, "agents", 1000, "`number` of agents")
	f.Uint64Var(&o.seed, "seed", 1, "`number` from which everything that is left to chance on the agents' side begins, pauses after errors apart")
	f.StringSliceVar(&o.profiles, "profiles", names, "what to play")
	f.StringVar(&o.program, "controller", "", "`path` of devopsController")
	f.StringVar(&o.dir, "dir", "", "`directory` for data, which must not exist (default a temporary one)")
	f.StringVar(&o.out, "out", "", "`directory` for fleetsim.md and its drawings (default none)")
	f.DurationVar(&o.ramp, "ramp", 0, "`time` over which agents start (default 3 s for every 1,000 and at least 2 s; from 1,000 on, whole rounds of 30 s)")
	f.DurationVar(&o.calm, "calm", 10*time.Second, "`time` before a measurement")
	f.DurationVar(&o.length, "length", time.Minute, "`time` of a measurement")
	f.DurationVar(&o.down, "down", 5*time.Minute, "`time` for which the controller is away")
	f.DurationVar(&o.timeout, "timeout", 5*time.Second, "`time` after which an agent gives a call up")
	f.IntVar(&o.builds, "builds", 1000, "`number` of builds a minute")
	f.BoolVar(&o.tls, "tls", false, "HTTPS, with a certificate of the controller's own that the agents pin")
	f.Float64Var(&o.bad, "bad", 0.01, "`share` of hosts that a new version does not suit")
	return cmd
}

// ownGarbage is the simulator's GOGC while agents start. It shares the processors with the controller, and memory is there.
const ownGarbage = 800

// play runs the profiles and fails when one was not served correctly. Speed is reported, and no reason to fail.
func (o options) play(ctx context.Context, out io.Writer) (err error) {
	if o.program == "" {
		return errors.New("--controller is missing: the path of devopsController")
	}
	if o.agents < 1 || o.agents > 20_000 {
		return fmt.Errorf("--agents %d: between 1 and 20000, please", o.agents)
	}
	allowed, err := openFiles()
	if err != nil {
		return err
	}
	if err := enoughFiles(o.agents, allowed); err != nil {
		return err
	}
	if o.ramp <= 0 {
		o.ramp = rampFor(o.agents)
	}
	all := profiles()
	for _, name := range o.profiles {
		if !slices.ContainsFunc(all, func(p profile) bool { return p.name == name }) {
			return fmt.Errorf("--profiles %s: there is none of this name", name)
		}
	}
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "fleetsim-"); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	list, err := metrics.NewCollector().Collect(ctx, time.Now(), metrics.About{Project: "demo", Agent: "sim", HostName: "sim", HostIP: "10.0.0.1"})
	if len(list) == 0 {
		return fmt.Errorf("measure this machine: %w", err)
	}
	if o.sample, err = metrics.JSON(list); err != nil {
		return err
	}
	defer debug.SetGCPercent(debug.SetGCPercent(ownGarbage))
	if memory, err := mem.VirtualMemoryWithContext(ctx); err == nil { // no profile comes near, in which nothing is collected
		defer debug.SetMemoryLimit(debug.SetMemoryLimit(int64(memory.Available / 2)))
	}
	lines := about(ctx, o.program, loadNow(ctx))
	var results []*result
	var failed []string
	for _, p := range all {
		if !slices.Contains(o.profiles, p.name) {
			continue
		}
		begun := time.Now()
		settle()
		r, err := p.run(ctx, o)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		r.name, r.title = p.name, p.title
		results = append(results, r)
		fmt.Fprintf(out, "%s (%v)\n", p.title, time.Since(begun).Round(time.Second))
		for _, row := range r.rows {
			mark := " "
			if !row.met {
				mark = "!"
			}
			if !row.met && !row.loose {
				failed = append(failed, p.name+": "+row.what)
			}
			fmt.Fprintf(out, "%s   %s: %s (wanted %s)\n", mark, row.what, row.measured, row.wanted)
		}
		for _, text := range r.faults {
			fmt.Fprintf(out, "    - %s\n", text)
		}
		if err := os.RemoveAll(filepath.Join(o.dir, p.name)); err != nil {
			return err
		}
		if o.out != "" { // after each: what was measured is there, whatever comes later
			if err := write(o, lines, results); err != nil {
				return err
			}
		}
	}
	if len(failed) > 0 {
		return errors.New(strings.Join(failed, "; "))
	}
	return nil
}
