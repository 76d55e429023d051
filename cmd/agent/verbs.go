package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/cmd/internal/batch"
	"github.com/devops-agent/devops-agent/cmd/internal/cli"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/service/control"
)

// kept is what verbs work on: an installation and what keeps its agent.
type agentOf struct {
	located
	inst   *service.Installation
	keeper service.Supervisor // nil when none is registered
}

// agent opens the home, which must not be somebody else's, and finds its keeper. The words are those of the command line.
func (p place) agent(cmd *cobra.Command, words ...string) (*agentOf, error) {
	l, inst, err := p.open()
	if err != nil {
		return nil, err
	}
	if err := l.mayChange(cmd, words); err != nil {
		return nil, err
	}
	a := &agentOf{located: l, inst: inst}
	keeper, err := service.Of(inst)
	if err != nil && !errors.Is(err, service.ErrNoKeeper) {
		return nil, err
	}
	if err == nil && keeper != nil && keeper.Keeper() != service.KeeperNone {
		a.keeper = keeper
	}
	return a, nil
}

// called is the keeper's name for people.
func (a *agentOf) called() string {
	if a.keeper == nil {
		return "no keeper"
	}
	return keeperName(a.keeper.Keeper(), a.keeper.Name())
}

// ask puts one question to the running agent.
func (a *agentOf) ask(ctx context.Context, r control.Request, answer any) error {
	return control.Call(ctx, a.inst.Home, string(service.RoleAgent), r, answer)
}

// silentError: the agent cannot be asked, and this is why.
func (a *agentOf) silentError(verb string, err error) error {
	if !errors.Is(err, control.ErrNobody) {
		return err
	}
	held, who := holderOf(a.inst, nil)
	switch {
	case !held:
		return &adviceError{verb + ": the agent does not run", "to start it, type: " + a.command("start")}
	case who == nil:
		return &adviceError{verb + ": an agent runs that cannot be asked", "to see more, type: " + a.command("status")}
	}
	return &adviceError{fmt.Sprintf("%s: %s runs here and cannot be asked: an original agent, or one that is just starting", verb, who),
		"try again; to end an original agent: " + kill(runtime.GOOS, who.PID)}
}

// say prints a line for the operator.
func say(cmd *cobra.Command, format string, args ...any) {
	_, _ = fmt.Fprintln(cmd.OutOrStdout(), cli.OneLine(fmt.Sprintf(format, args...)))
}

// warn prints a line that is not the result.
func warn(cmd *cobra.Command, format string, args ...any) {
	_, _ = fmt.Fprintln(cmd.ErrOrStderr(), cli.OneLine(fmt.Sprintf(format, args...)))
}

func startCommand(where *place) *cobra.Command {
	return &cobra.Command{
		Use: "start", Short: "Start the agent", Args: usage(cobra.NoArgs),
		Long: "start lets what keeps the agent (systemd, launchd, the service manager, devopsDaemon) start it. An agent that runs is left alone.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := where.agent(cmd)
			if err != nil {
				return err
			}
			return a.start(cmd)
		},
	}
}

// start starts the agent, and says when somebody else's runs in its place.
func (a *agentOf) start(cmd *cobra.Command) error {
	if a.keeper == nil {
		if held, who := holderOf(a.inst, nil); held {
			say(cmd, "already running: %s; nothing starts it again when it ends (type: %s)", or2(who, "an agent"), a.command("install"))
			return nil
		}
		return &adviceError{"start: nothing is registered to run the agent of " + a.inst.Home, "type: " + a.command("install")}
	}
	if err := a.mayCommand(cmd, nil, a.keeper.Keeper(), a.keeper.Name()); err != nil {
		return err
	}
	before, err := a.keeper.State(cmd.Context())
	if err != nil {
		return err
	}
	if before.Running {
		say(cmd, "already running: %s, pid %d", a.called(), before.PID)
		return nil
	}
	if held, who := holderOf(a.inst, nil); held && system(a.keeper.Keeper()) && who != nil {
		return &adviceError{fmt.Sprintf("start: a second copy of the agent runs already: %s", who), "end it first: " + kill(runtime.GOOS, who.PID)}
	}
	if err := a.canStart(); err != nil {
		return err
	}
	if err := a.keeper.Start(cmd.Context()); err != nil {
		return err
	}
	pid, err := a.awaitPID(cmd.Context())
	if err != nil {
		return err
	}
	if pid == 0 {
		say(cmd, "started: %s has no process yet; to look: %s", a.called(), a.command("status"))
		return nil
	}
	say(cmd, "started: %s, pid %d", a.called(), pid)
	return nil
}

// canStart says beforehand what would make the agent end at once, again and again.
func (a *agentOf) canStart() error {
	cfg, err := config.LoadConfig(a.inst.Config)
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	_, err = config.Peek(a.inst.Home, cfg)
	switch {
	case err == nil, isMissing(err) && cfg.Enroll.Gateway != "" && cfg.Enroll.TokenFile != "":
		return nil
	case isMissing(err):
		return &adviceError{"start: " + a.inst.Home + " has no identity, so that an agent could not start", "type: " + a.command("enroll --gateway URL --token-file FILE")}
	}
	return fmt.Errorf("start: %w", err)
}

// awaitPID gives the keeper a moment to have a process, and returns its pid, 0 for none.
func (a *agentOf) awaitPID(ctx context.Context) (int, error) {
	enough := time.NewTimer(3 * time.Second)
	defer enough.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		state, err := a.keeper.State(ctx)
		if err != nil || state.Running {
			return state.PID, err
		}
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-enough.C:
			return 0, nil
		case <-tick.C:
		}
	}
}

func or2(p *process, otherwise string) string {
	if p == nil {
		return otherwise
	}
	return p.String()
}

func stopCommand(where *place) *cobra.Command {
	var now bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "stop", Short: "Stop the agent, when its builds have ended", Args: usage(cobra.NoArgs),
		Long: "stop drains first: no new builds, and those that run may take drain.timeout (agent.toml) to end; what runs then is\n" +
			"stopped and reported as failed. An agent that does not run is left alone. It starts again with the machine; \"uninstall\" prevents that.\n" +
			"Ctrl-C and --timeout end the waiting, not the drain.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := where.agent(cmd)
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			return a.stop(ctx, cmd, now)
		},
	}
	cmd.Flags().BoolVar(&now, "now", false, "stop the builds at once; they are reported as failed")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "wait no longer than this, as in 90s or 5m (default: as long as it takes)")
	return cmd
}

func (a *agentOf) stop(ctx context.Context, cmd *cobra.Command, now bool) error {
	if a.keeper != nil {
		if err := a.mayCommand(cmd, nil, a.keeper.Keeper(), a.keeper.Name()); err != nil {
			return err
		}
		idle, err := a.idle(ctx)
		if err != nil {
			return err
		}
		if idle {
			say(cmd, "not running")
			return nil
		}
		if err := a.stopKept(ctx, now); err != nil {
			return a.stillStopping(ctx, err)
		}
	}
	// What is left was not the keeper's: started by hand.
	var status control.Status
	err := a.ask(ctx, control.Request{Op: control.OpStatus}, &status)
	switch held, _ := holderOf(a.inst, nil); {
	case !held && a.keeper == nil && err != nil:
		say(cmd, "not running")
		return nil
	case !held:
		say(cmd, "stopped")
		return nil
	}
	if err == nil {
		err = a.ask(ctx, control.Request{Op: control.OpStop, Now: now}, nil)
	}
	if err != nil {
		return a.silentError("stop", err)
	}
	if err := a.awaitEnd(ctx); err != nil {
		return a.stillStopping(ctx, err)
	}
	say(cmd, "stopped")
	return nil
}

// idle reports whether nothing runs, and nothing will in the next moment: a keeper in the pause of a crash loop has no
// process either.
func (a *agentOf) idle(ctx context.Context) (bool, error) {
	state, err := a.keeper.State(ctx)
	if err != nil {
		return false, err
	}
	if held, _ := holderOf(a.inst, nil); held || state.Running {
		return false, nil
	}
	f := &facts{now: time.Now(), kept: state}
	var daemon control.DaemonStatus
	err = control.Call(ctx, a.inst.Home, string(service.RoleDaemon), control.Request{Op: control.OpStatus}, &daemon)
	return !f.looping() && errors.Is(err, control.ErrNobody), nil
}

// stopKept lets the keeper stop the agent. For "now" the keeper is told first, so that it does not start the agent again,
// and then the agent, which would wait for its builds.
func (a *agentOf) stopKept(ctx context.Context, now bool) error {
	if !now {
		// devopsDaemon takes a second stop for "now"; who types stop twice does not mean that.
		if a.keeper.Keeper() == service.KeeperDaemon {
			if err := a.awaitStopping(ctx); err != nil {
				return err
			}
		}
		return a.keeper.Stop(ctx)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- a.keeper.Stop(ctx) }()
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-stopped:
			return err
		case <-tick.C:
			var status control.Status
			if err := a.ask(ctx, control.Request{Op: control.OpStatus}, &status); err == nil && status.Phase == control.Stopping {
				_ = a.ask(ctx, control.Request{Op: control.OpStop, Now: true}, nil) // it ends, or it is asked again
			}
		}
	}
}

// awaitStopping waits as long as an agent that was told to stop before is at it.
func (a *agentOf) awaitStopping(ctx context.Context) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		var status control.Status
		if err := a.ask(ctx, control.Request{Op: control.OpStatus}, &status); err != nil || status.Phase != control.Stopping {
			return nil //nolint:nilerr // whoever does not answer is not waited for here
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// awaitEnd waits until nobody has the home.
func (a *agentOf) awaitEnd(ctx context.Context) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if held, _ := holderOf(a.inst, nil); !held {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// stillStopping explains a stop that was not waited for.
func (a *agentOf) stillStopping(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return &adviceError{"stop: not waited for any longer; the agent goes on draining", "to see how far it is: " + a.command("status") + "; to stop its builds: " + a.command("stop --now")}
}

func restartCommand(where *place) *cobra.Command {
	var idle bool
	cmd := &cobra.Command{
		Use: "restart", Short: "Replace the running agent by a fresh one; builds go on", Args: usage(cobra.NoArgs),
		Long: "restart ends the agent and lets its keeper start it again. Builds are left alone: the new agent takes them up.\nAn agent that does not run is started.\n" +
			"With --when-idle it waits for the builds to end, up to drain.timeout (agent.toml), and leaves an agent alone that does not run:\n" +
			"packages do so after an upgrade.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := where.agent(cmd)
			if err != nil {
				return err
			}
			if a.keeper == nil {
				return &adviceError{"restart: nothing is registered that would start the agent of " + a.inst.Home + " again", "type: " + a.command("install")}
			}
			if err := a.mayCommand(cmd, nil, a.keeper.Keeper(), a.keeper.Name()); err != nil {
				return err
			}
			if idle {
				return a.restartIdle(cmd)
			}
			if err := a.keeper.Restart(cmd.Context()); err != nil {
				return err
			}
			say(cmd, "restarted: %s", a.called())
			return nil
		},
	}
	cmd.Flags().BoolVar(&idle, "when-idle", false, "wait until nothing builds")
	return cmd
}

func drainCommand(where *place) *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use: "drain", Short: "Take no new builds; the agent goes on living", Args: usage(cobra.NoArgs),
		Long: "drain takes the agent out of service, before work on the machine: builds that run go on, none are added, the server\n" +
			"still sees the agent. It stays so across restarts, until \"resume\".",
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := where.agent(cmd)
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if err := a.ask(ctx, control.Request{Op: control.OpDrain}, nil); err != nil {
				return a.silentError("drain", err)
			}
			tick := time.NewTicker(500 * time.Millisecond)
			defer tick.Stop()
			var gone time.Time // since when no agent answers
			for {
				var status control.Status
				err := a.ask(ctx, control.Request{Op: control.OpStatus}, &status)
				switch n := len(status.Builds); {
				case ctx.Err() != nil: // below
				case err == nil && (n == 0 || !wait):
					say(cmd, "draining: %s running", count(n, "build"))
					return nil
				case err == nil:
					gone = time.Time{}
				case gone.IsZero():
					gone = time.Now()
					fallthrough
				default: // the builds of one that died go on, and the next one, which drains as well, takes them up
					if !wait || !a.returns(ctx) || time.Since(gone) > returnLimit {
						return a.silentError("drain", err)
					}
				}
				select {
				case <-ctx.Done():
					return &adviceError{"drain: not waited for any longer; the agent takes no builds", "to take builds again: " + a.command("resume")}
				case <-tick.C:
				}
			}
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "return when no build runs any more")
	return cmd
}

// returnLimit is how long an agent may be away until nobody waits for its return: a crash loop's longest pause, and a start.
const returnLimit = 45 * time.Second

// returns reports whether an agent that does not answer comes back by itself.
func (a *agentOf) returns(ctx context.Context) bool {
	if a.keeper == nil {
		return false
	}
	idle, err := a.idle(ctx)
	return err == nil && !idle
}

// askCommand is a verb that is one question to the agent.
func askCommand(where *place, op control.Op, short, long, done string) *cobra.Command {
	return &cobra.Command{
		Use: string(op), Short: short, Long: long, Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := where.agent(cmd)
			if err != nil {
				return err
			}
			if err := a.ask(cmd.Context(), control.Request{Op: op}, nil); err != nil {
				return a.silentError(string(op), err)
			}
			say(cmd, "%s", done)
			return nil
		},
	}
}

// olderWords are the verbs of the original that mean something else here, or nothing (protocol §3.1).
func olderWords(where *place) []*cobra.Command {
	var yes bool
	reinstall := &cobra.Command{
		Use: "reinstall", Short: "Not here: says what to type instead", Hidden: true, Args: usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			l, err := where.locate()
			if err != nil {
				return err
			}
			return &adviceError{"reinstall is not a verb of this agent: its programs come from a package or from the server's upgrades",
				"to register it again: " + l.command("repair") + "; for a new identity: " + l.command("enroll --again --gateway URL --token-file FILE")}
		},
	}
	reinstall.Flags().BoolVarP(&yes, "yes", "y", false, "as with the original")
	monitor := statusCommand(where)
	monitor.Use, monitor.Hidden, monitor.Short = "monitor", true, "The same as status --watch"
	_ = monitor.Flags().Set("watch", "true") // the flag is there
	repair := &cobra.Command{
		Use: "repair", Short: "Register the agent again the way it was, and start it", Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := where.agent(cmd)
			if err != nil {
				return err
			}
			if a.keeper == nil {
				return &adviceError{"repair: nothing is registered for the agent of " + a.inst.Home, "type: " + a.command("install")}
			}
			return installing{where: where}.register(cmd, a, a.keeper)
		},
	}
	installer := &cobra.Command{
		Use: "installer", Short: "What the program installer does, which calls this", Hidden: true, DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error { return batch.Run(cmd.Context(), args) },
	}
	return []*cobra.Command{reinstall, monitor, repair, installer}
}

// isTerminalFile says whether a person types there.
func isTerminalInput(cmd *cobra.Command) bool {
	file, ok := cmd.InOrStdin().(*os.File)
	return ok && isTerminal(file)
}
