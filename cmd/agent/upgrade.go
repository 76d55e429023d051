package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/agent"
	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/agent/host"
	"github.com/devops-agent/devops-agent/agent/job"
	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/cmd/internal/cli"
	"github.com/devops-agent/devops-agent/cmd/internal/recovery"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/service/control"
	"github.com/devops-agent/devops-agent/service/proc"
	"github.com/devops-agent/devops-agent/upgrader"
	"github.com/devops-agent/devops-agent/upgrader/journal"
	"github.com/devops-agent/devops-agent/upgrader/swap"
	"github.com/devops-agent/devops-agent/upgrader/trust"
)

// goneAfter is how long nobody has to answer until an agent that was to replace something is given up.
const goneAfter = time.Minute

func upgradeCommand(where *place) *cobra.Command {
	var from string
	var force, wait bool
	cmd := &cobra.Command{
		Use: "upgrade --from FILE|DIR|URL", Short: "Replace agent, worker or JDK by what is in a file", Args: usage(cobra.NoArgs),
		Long: "upgrade takes what is there for this machine: the agent.zip of BK-CI, a zip, tar.gz or directory with programs under the names of a BK-CI\n" +
			"server or of a home, or one such file: devopsAgent, devopsDaemon, upgrader, devopsWorker, worker-agent.jar, jre.zip, jdk17.zip.\n" +
			"Everything is checked before anything is replaced, and a new agent that does not prove itself is taken back (upgrade history).\n\n" +
			"A running agent does it when its builds have ended, and takes no new ones meanwhile; \"restart\" calls that off. Where none\n" +
			"runs it is done at once.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if from == "" {
				return &usageError{cmd: cmd, err: errors.New("--from is missing: what is to be installed?")}
			}
			a, err := where.agent(cmd)
			if err != nil {
				return err
			}
			return changing{a, cmd, force, wait}.upgrade(from)
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "file, directory or https:// address (http:// only where agent.toml requires signatures)")
	cmd.Flags().BoolVar(&force, "force", false, "also a version that was taken back here, and against upgrade.mode of agent.toml")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the new version has proved itself or was taken back; the latter is exit code 1")
	cmd.AddCommand(historyCommand(where))
	return cmd
}

func rollbackCommand(where *place) *cobra.Command {
	var wait, allow bool
	cmd := &cobra.Command{
		Use: "rollback [VERSION]|--allow", Short: "Go back to the agent that ran here before", Args: usage(cobra.MaximumNArgs(1)),
		Long: "rollback puts the programs back that the last upgrade replaced; with a version, those of any upgrade whose programs are still kept\n" +
			"(upgrade history). A running agent does it when its builds have ended.\n\n" +
			"No later start undoes it, and the version that was left is not taken from the server again, until another version has come and stayed, or\n" +
			"\"upgrade --from\" or \"rollback --allow\" says otherwise. The latter only says that, and replaces nothing.",
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := where.agent(cmd, args...)
			if err != nil {
				return err
			}
			c := changing{a, cmd, false, wait}
			version := ""
			if len(args) > 0 {
				version = args[0]
			}
			if allow && (version != "" || wait) {
				return &usageError{cmd: cmd, err: errors.New("--allow goes nowhere: it takes no version and does not wait")}
			}
			if allow {
				return c.allow()
			}
			return c.rollback(version)
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the version has proved itself or was taken back; the latter is exit code 1")
	cmd.Flags().BoolVar(&allow, "allow", false, "let the server bring back what was rolled back by hand")
	return cmd
}

// changing is an operator's wish to replace something.
type changing struct {
	*agentOf
	cmd         *cobra.Command
	force, wait bool
}

// quiet is for what logs and is not an agent: what matters is printed.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func (c changing) journal() *journal.Journal { return journal.Open(c.inst, quiet()) }

func (c changing) upgrade(from string) error {
	ctx := c.cmd.Context()
	cfg, err := config.LoadConfig(c.inst.Config)
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	if strings.HasPrefix(from, "~/") {
		return &adviceError{"upgrade: no directory ~ here", "write the path in full, or without quotation marks"}
	}
	dir, release, err := c.collect(ctx, cfg, from)
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	defer release() // ending does that, too
	if account, foreign := c.owner(); foreign {
		return c.as(account, "upgrade", "--from", dir)
	}
	before := c.newest()
	asked, err := c.askOr(control.Request{Op: control.OpUpgrade, From: dir, Force: c.force}, func() error {
		return c.alone(cfg, func(u *upgrader.Upgrader) error { return c.upgradeAlone(u, cfg, dir) }, dir)
	})
	if !asked {
		return err
	}
	if err != nil {
		return errors.Join(c.silentError("upgrade", err), swap.Real().Remove(dir))
	}
	release() // the agent has it now
	return c.follow(before, "upgrade begun")
}

// collect copies what is wanted to where the agent can read it, and keeps it from being swept until release is called. What this
// program has put there for itself is there already.
func (c changing) collect(ctx context.Context, cfg *config.Config, from string) (dir string, release func(), err error) {
	var unlock func() error
	offers := agent.Offered{Inst: c.inst}
	dir = offers.NewName()
	_, foreign := c.owner()
	if !foreign {
		if err := offers.Sweep(); err != nil {
			warn(c.cmd, "files of an earlier upgrade stay behind: %v", err)
		}
		if unlock, err = offers.Use(ctx); err != nil {
			return "", nil, err
		}
	}
	release = sync.OnceFunc(func() {
		if unlock != nil {
			_ = unlock() // the end of this process does it, too
		}
	})
	defer func() {
		if err != nil {
			release()
		}
	}()
	if abs, err := filepath.Abs(from); err == nil && offers.Has(abs) {
		return abs, release, nil
	}
	b := upgrader.Bundle{From: from, GOOS: runtime.GOOS, GOARCH: runtime.GOARCH, Signed: cfg.Trust.Require, Free: host.FreeBytes}
	if upgrader.IsAddress(from) {
		if b.HTTP, err = c.client(cfg); err != nil {
			return "", nil, err
		}
	}
	if !foreign {
		return dir, release, b.Collect(ctx, dir)
	}
	// As root in somebody else's home: that account must not lead us anywhere.
	scratch, err := os.MkdirTemp("", "devops-agent-")
	if err != nil {
		return "", nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	if err := b.Collect(ctx, filepath.Join(scratch, "files")); err != nil {
		return "", nil, err
	}
	unlock, err = handOver(c.inst, filepath.Join(scratch, "files"), filepath.Base(dir))
	return dir, release, err
}

// client is one for addresses that operators name, with the proxies and authorities of this agent. It follows redirects to other
// hosts, as those of release pages, and never down to http.
func (c changing) client(cfg *config.Config) (*http.Client, error) {
	roots, err := config.Roots(c.inst.Home)
	if err != nil {
		return nil, err
	}
	settings, err := config.Peek(c.inst.Home, cfg)
	if err != nil && !isMissing(err) {
		return nil, err
	}
	client := wire.NewHTTPClient(wire.HTTPOptions{Roots: roots, Proxy: config.Proxy(cfg, settings, nil)})
	client.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		switch {
		case len(via) >= 10:
			return errors.New("more than ten redirects")
		case via[0].URL.Scheme == "https" && req.URL.Scheme != "https":
			return errors.New("redirect from https to http")
		}
		return nil
	}
	return client, nil
}

// owner is the account of the home when that is another one and we are root.
func (c changing) owner() (account string, foreign bool) {
	uid, ok := ownerID(c.inst.Home)
	if !ok || !isRoot() || uid == "0" {
		return "", false
	}
	return ownerOf(c.inst.Home), true
}

// as does the verb as the account that the home belongs to: new programs are run to ask for their versions, and root must not.
func (c changing) as(account string, words ...string) error {
	who, err := proc.LookupAccount(account)
	if err != nil {
		return err
	}
	own, err := os.Executable()
	if err != nil {
		return err
	}
	args := append(words, "--home", c.inst.Home)
	for flag, set := range map[string]bool{"--force": c.force, "--wait": c.wait} {
		if set {
			args = append(args, flag)
		}
	}
	p, err := proc.Start(proc.Command{Path: own, Args: args, Dir: c.inst.Home, Stdout: os.Stdout, Stderr: os.Stderr, Account: who,
		Env: append(os.Environ(), "HOME="+who.Home, "USER="+who.Name, "LOGNAME="+who.Name)})
	if err != nil {
		return err
	}
	defer context.AfterFunc(c.cmd.Context(), func() { _ = p.Kill(0) })()
	exit := p.Wait()
	switch {
	case c.cmd.Context().Err() != nil:
		return context.Cause(c.cmd.Context())
	case exit.Success():
		return nil
	case exit.Err != nil || exit.Signal != "":
		return fmt.Errorf("%s as %s: %v", words[0], account, exit)
	}
	return &cli.Exit{Code: exit.Code}
}

// newest is the id of the last attempt, "" for none.
func (c changing) newest() string {
	list, err := c.journal().History()
	if err != nil || len(list) == 0 {
		return ""
	}
	return list[0].ID
}

// askOr asks the agent or, where none runs, does the work and lets none start meanwhile. One that is just starting is waited for.
func (c changing) askOr(r control.Request, alone func() error) (asked bool, err error) {
	const starting, pause = 5 * time.Second, 100 * time.Millisecond
	ctx := c.cmd.Context()
	for deadline := time.Now().Add(starting); ; {
		err := c.ask(ctx, r, nil)
		if !errors.Is(err, control.ErrNobody) {
			return true, err
		}
		bar, berr := c.inst.Bar(ctx, service.RoleAgent)
		switch {
		case berr == nil:
			err := alone()
			return false, errors.Join(err, bar.Release())
		case !errors.Is(berr, service.ErrRunning):
			return false, berr
		case time.Now().After(deadline):
			return true, err
		}
		select {
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// open reports whether an upgrade is written down that has not ended, or cannot say so.
func (c changing) open() bool {
	found, err := c.journal().Current()
	return err != nil || found.State != journal.None
}

// follow says that something has begun and, if that is wanted, waits for its end.
func (c changing) follow(before, begun string) error {
	if !c.wait {
		say(c.cmd, "%s; to watch it: %s", begun, c.command("status --watch"))
		return nil
	}
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	said, heard := control.UpgradePhase(""), time.Now()
	for {
		var s control.Status
		err := c.ask(c.cmd.Context(), control.Request{Op: control.OpStatus}, &s)
		if err == nil {
			heard = time.Now()
		}
		if err == nil && s.Upgrade.Phase != said && s.Upgrade.Phase != "" {
			said = s.Upgrade.Phase
			warn(c.cmd, "%s %s", said, s.Upgrade.To)
		}
		if list, herr := c.journal().History(); herr == nil && len(list) > 0 && list[0].ID != before && list[0].State != journal.Begun &&
			(err != nil || s.Upgrade.Phase == "" || s.Upgrade.Phase == control.OnTrial && s.Upgrade.Attempt == list[0].ID) {
			return c.ended(list[0])
		}
		// Nobody works on it any more, and it was never written down?
		if (err == nil && s.Upgrade.Phase == "" || time.Since(heard) > goneAfter) && c.newest() == before && !c.open() {
			if s.Upgrade.Refused != "" {
				return errors.New(s.Upgrade.Refused)
			}
			return &adviceError{"the agent has ended, or was told to, before anything was replaced", "nothing has changed; try again"}
		}
		select {
		case <-c.cmd.Context().Done():
			return context.Cause(c.cmd.Context())
		case <-tick.C:
		}
	}
}

// ended says how an attempt ended.
func (c changing) ended(a journal.Attempt) error {
	if a.State == journal.Settled {
		say(c.cmd, "done: %s", changes(a))
		return nil
	}
	text := fmt.Sprintf("%s: %s", a.State, a.Reason)
	if a.LastExit != "" {
		text += " (" + a.LastExit + ")"
	}
	return &adviceError{text, "the version before runs; more: " + c.command("upgrade history")}
}

// alone does something where no agent runs.
func (c changing) alone(cfg *config.Config, do func(*upgrader.Upgrader) error, scratch string) (err error) {
	if scratch != "" {
		defer func() { err = errors.Join(err, swap.Real().Remove(scratch)) }()
	}
	if err := c.idleBuilds(); err != nil {
		return err
	}
	if err := os.MkdirAll(c.inst.Path("runtime"), 0o700); err != nil {
		return err
	}
	prober := host.NewProber(c.inst.Home, host.Exec, quiet())
	return do(&upgrader.Upgrader{Inst: c.inst, Journal: c.journal(), GOOS: runtime.GOOS, GOARCH: runtime.GOARCH, Log: quiet(),
		Policy: trust.Policy{Keys: cfg.Trust.Keys, Require: cfg.Trust.Require}, MaxBytes: cfg.Upgrade.MaxDownload,
		Free: host.FreeBytes, JarVersion: prober.JarVersionBy})
}

// idleBuilds refuses while builds of an earlier agent run: nothing of what they use may be replaced.
func (c changing) idleBuilds() error {
	if _, err := os.Stat(c.inst.Path("runtime", "builds")); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	ledger, err := job.OpenLedger(c.inst.Path("runtime", "builds"))
	if err != nil {
		return err
	}
	records, err := ledger.All(quiet())
	if err != nil {
		return err
	}
	for _, r := range records {
		if r.State == job.Running && proc.Alive(r.PID, r.Started) {
			return &adviceError{fmt.Sprintf("build %s still runs here, without an agent", r.Build.ID), "start the agent, which waits for it: " + c.command("start")}
		}
	}
	return nil
}

// upgradeAlone does what a running agent would do.
func (c changing) upgradeAlone(u *upgrader.Upgrader, cfg *config.Config, dir string) error {
	ctx := c.cmd.Context()
	source := upgrader.Directory{Dir: dir, GOOS: runtime.GOOS, GOARCH: runtime.GOARCH}
	order := source.Offers()
	if err := agent.MayReplace(cfg.Upgrade.Mode, order, c.force); err != nil {
		return err
	}
	settings, err := config.Peek(c.inst.Home, cfg)
	if err != nil && !isMissing(err) {
		return err
	}
	now := upgrader.Installed{JDKDir: settings.JDKDir, JDK17Dir: settings.JDK17Dir}
	if now.Agent, err = upgrader.Version(ctx, c.inst.Path(journal.Place(journal.Agent, runtime.GOOS))); err != nil {
		now.Agent = ""
	}
	inv, err := u.TakeStock(now)
	if err != nil {
		return err
	}
	s, err := u.Prepare(ctx, order, inv, source, c.force)
	if err != nil {
		return err
	}
	defer s.Discard()
	if err := s.Err(); err != nil {
		return err
	}
	if !s.Any() {
		say(c.cmd, "nothing to do: everything in it is here already")
		return nil
	}
	brings, programs := s.String(), s.Programs()
	plan := journal.Plan{Kind: journal.FromFile, Proof: cfg.Upgrade.SettleAfter}
	jdks, err := u.Replace(ctx, s, plan)
	if err == nil {
		err = c.noteJDKs(cfg, jdks)
	}
	if err != nil {
		return err
	}
	if !programs {
		say(c.cmd, "done: %s", brings)
		return nil
	}
	if _, err := u.Begin(ctx, s, plan); err != nil {
		return err
	}
	return c.apply(brings)
}

// noteJDKs writes down where JDKs are now, where that is somewhere else than before.
func (c changing) noteJDKs(cfg *config.Config, jdks []upgrader.Live) error {
	settings, err := config.Peek(c.inst.Home, cfg)
	if isMissing(err) {
		return nil // an agent without identity finds them in their usual places
	}
	if err != nil {
		return err
	}
	for _, jdk := range jdks {
		if jdk.Part == journal.JDK && jdk.Dir == settings.JDKDir || jdk.Part == journal.JDK17 && jdk.Dir == settings.JDK17Dir {
			continue
		}
		store, err := config.Open(c.inst.Home, cfg, quiet())
		if err != nil {
			return err
		}
		if _, err := store.SetJDK(jdk.Part == journal.JDK17, jdk.Dir); err != nil {
			return err
		}
	}
	return nil
}

// apply carries out what was written down. The trial begins with the next start of the agent.
func (c changing) apply(brings string) (err error) {
	total, err := c.inst.HoldTotal(c.cmd.Context(), time.Minute)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, total.Release()) }()
	if err := c.journal().Apply(c.cmd.Context()); err != nil {
		return err
	}
	say(c.cmd, "in place: %s; its trial begins when the agent starts: %s", brings, c.command("start"))
	return nil
}

func (c changing) rollback(version string) error {
	if account, foreign := c.owner(); foreign {
		words := []string{"rollback"}
		if version != "" {
			words = append(words, version)
		}
		return c.as(account, words...)
	}
	before := c.newest()
	asked, err := c.askOr(control.Request{Op: control.OpRollback, Version: version}, func() error { return c.rollbackAlone(version) })
	if !asked {
		return err
	}
	if err != nil {
		return c.silentError("rollback", err)
	}
	return c.follow(before, "rollback begun")
}

// allow lets the server bring back what was rolled back by hand.
func (c changing) allow() (err error) {
	if account, foreign := c.owner(); foreign {
		return c.as(account, "rollback", "--allow")
	}
	total, err := recovery.Lock(c.cmd.Context(), c.inst, time.Minute)
	if err != nil {
		return fmt.Errorf("rollback: %w", err)
	}
	defer func() { err = errors.Join(err, total.Release()) }()
	versions, err := c.journal().Allow()
	if err != nil {
		return fmt.Errorf("rollback: %w", err)
	}
	if len(versions) == 0 {
		say(c.cmd, "nothing to allow: no version was rolled back by hand since the last upgrade")
		return nil
	}
	say(c.cmd, "the server may bring back %s; the agent asks within the hour, and at once after: %s", strings.Join(versions, ", "), c.command("restart"))
	return nil
}

func (c changing) rollbackAlone(version string) error {
	cfg, err := config.LoadConfig(c.inst.Config)
	if err != nil {
		return fmt.Errorf("rollback: %w", err)
	}
	plan, err := c.journal().Previous(version)
	if err != nil {
		return fmt.Errorf("rollback: %w", err)
	}
	return c.alone(cfg, func(u *upgrader.Upgrader) error {
		plan.Proof = cfg.Upgrade.SettleAfter
		for _, item := range plan.Items {
			if item.Part == journal.Agent {
				version, plan.Foreign = item.Now, !upgrader.Ours(item.From)
			}
		}
		if _, err := u.BeginPlan(c.cmd.Context(), *plan); err != nil {
			return err
		}
		return c.apply("agent " + version)
	}, "")
}

func historyCommand(where *place) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "history", Short: "List the upgrades of this agent and how they ended", Args: usage(cobra.NoArgs),
		Long: "history lists upgrades, the newest first: what was replaced, whether it stayed, and if not, why. --json has all that is known, also the end\n" +
			"of what a version that was taken back wrote to standard error.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, inst, err := where.open()
			if err != nil {
				return err
			}
			list, err := journal.Open(inst, quiet()).History()
			if denied(err) {
				return &rightsError{what: "the history belongs to " + ownerOf(inst.Home), command: l.command("upgrade history"), err: err}
			}
			if err != nil {
				return err
			}
			if asJSON {
				if list == nil {
					list = []journal.Attempt{}
				}
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(list)
			}
			if len(list) == 0 {
				say(cmd, "nothing was ever replaced in %s", inst.Home)
				return nil
			}
			return printHistory(cmd, list)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "for programs: a list of objects; fields are added, never changed")
	return cmd
}

func printHistory(cmd *cobra.Command, list []journal.Attempt) error {
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "WHEN\tFROM\tHOW\tWHAT\tID")
	for _, a := range list {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", clock(a.Began), a.Kind, outcome(a), cli.OneLine(changes(a)), a.ID)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, a := range list {
		if from, _ := a.Version(); a.Left {
			_, _ = fmt.Fprintf(cmd.OutOrStdout(), "\n%s: %s was rolled back by hand at %s; the server's offer of it is not taken\n", a.ID, cli.OneLine(from), clock(a.Ended))
		}
		if a.State == journal.Settled || a.State == journal.Begun {
			continue
		}
		_, _ = fmt.Fprintf(cmd.OutOrStdout(), "\n%s %s: %s\n", a.ID, outcome(a), cli.OneLine(a.Reason))
		if a.LastExit != "" {
			_, _ = fmt.Fprintf(cmd.OutOrStdout(), "  its last end: %s\n", cli.OneLine(a.LastExit))
		}
		lines := strings.Split(strings.TrimSpace(a.Stderr), "\n")
		for _, line := range lines[max(len(lines)-5, 0):] {
			if line != "" {
				_, _ = fmt.Fprintf(cmd.OutOrStdout(), "  | %s\n", cli.OneLine(line))
			}
		}
	}
	return nil
}

// outcome is how an attempt ended, in a word.
func outcome(a journal.Attempt) string {
	switch {
	case a.State == journal.Begun:
		return "under way"
	case a.Forgiven:
		return string(a.State) + ", may be tried again"
	}
	return string(a.State)
}

// changes says what an attempt was about: "agent v1.2.3 -> v1.2.4, daemon".
func changes(a journal.Attempt) string {
	var list []string
	for _, c := range a.Parts {
		text := string(c.Part)
		switch {
		case c.From != "" && c.To != "":
			text += " " + c.From + " -> " + c.To
		case c.To != "":
			text += " " + c.To
		}
		list = append(list, text)
	}
	return strings.Join(list, ", ")
}
