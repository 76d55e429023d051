package agent

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/agent/host"
	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/service/control"
	"github.com/devops-agent/devops-agent/service/proc"
	"github.com/devops-agent/devops-agent/upgrader"
	"github.com/devops-agent/devops-agent/upgrader/fetch"
	"github.com/devops-agent/devops-agent/upgrader/journal"
	"github.com/devops-agent/devops-agent/upgrader/trust"
)

// loopReplace is the name of a replacement for the watchdog, and how long one may take: a JDK has thousands of files.
const (
	loopReplace  = "replace"
	replaceLimit = 10 * time.Minute
)

// wantsUpgrade: not in debug mode, not while any build exists or an upgrade is under way, and not before we know what is here
// (protocol §4.2); not where nobody may replace anything, and not outside of the hours for it unless something is missing.
func (a *Agent) wantsUpgrade() bool {
	c := a.config.Load().Upgrade
	if c.Mode == config.UpgradeOff || a.stopping() || a.debugMode() || a.slots.Busy() || a.changes.busyNow() || a.upgradePaused() {
		return false
	}
	v := a.knownVersions()
	return v.Known && (c.Window.Contains(time.Now()) || lacking(v))
}

// lacking reports whether this machine cannot build anything: a JDK or a worker is then welcome at any hour.
func lacking(v host.Versions) bool { return v.Worker == "" || len(v.JDK) == 0 }

func (a *Agent) upgradePaused() bool {
	until := a.noUpgrade.Load()
	return until != nil && time.Now().Before(*until)
}

func (a *Agent) pauseUpgrades(d time.Duration) {
	until := time.Now().Add(d)
	a.noUpgrade.Store(&until)
}

func (a *Agent) upgradeCheck() *wire.UpgradeCheck {
	v := a.knownVersions()
	jdk := v.JDK
	if jdk == nil {
		jdk = []string{}
	}
	return &wire.UpgradeCheck{WorkerVersion: v.Worker, GoAgentVersion: a.Version, JDKVersion: jdk, DockerInit: a.dockerInit(a.Store.Settings())}
}

// noAnswer reports that the server did not answer at all.
func noAnswer(err error) bool {
	var refused *wire.StatusError
	var nonsense *wire.BodyError
	return err != nil && !errors.As(err, &refused) && !errors.As(err, &nonsense)
}

// answerOffer tells the server at once what became of its offer, which clears the mark that keeps builds away from this machine
// (protocol §1.6.5). It is said once: the mark goes by itself after a minute.
func (a *Agent) answerOffer(ctx context.Context, success bool) {
	a.work.Go(func() {
		if err := a.client().FinishUpgrade(ctx, success); err != nil && ctx.Err() == nil {
			a.Log.Warn("End of an upgrade not reported", "success", success, "err", err)
		}
	})
}

// notOffered: the server has been asked, and wants nothing.
func (a *Agent) notOffered() {
	a.wanted.Store(nil)
	a.changes.offerGone()
}

// offered takes an upgrade that the server wants, or says why not (protocol §4.3). It does not wait for it.
func (a *Agent) offered(ctx context.Context, item wire.UpgradeItem, withBuild bool) {
	a.wanted.Store(&item)
	order := a.allowed(item)
	later := time.Until(a.changes.offeredFirst(time.Now()).Add(a.share()))
	switch {
	case !order.Any():
		a.Log.Info("Upgrade offered by the server not taken", "wanted", pendingUpgrade(item), "mode", string(a.config.Load().Upgrade.Mode))
		a.pauseUpgrades(a.changes.failed((&modeError{a.config.Load().Upgrade.Mode}).Error()))
		a.answerOffer(ctx, false)
	case withBuild, a.slots.Busy(): // the build wins (statement 46)
		a.pauseUpgrades(upgradePause)
		a.answerOffer(ctx, false)
	case later > 0:
		a.Log.Info("Upgrade offered by the server waits for this machine's turn", "wanted", pendingUpgrade(item), "for", later.Round(time.Second))
		a.pauseUpgrades(later)
		a.answerOffer(ctx, false)
	case !a.changes.begin():
	default:
		a.Log.Info("Upgrade offered by the server", "wanted", pendingUpgrade(item))
		a.change(ctx, func(own context.Context) { a.upgradeByServer(ctx, own, order) })
	}
}

// change does the work of an upgrade that has begun, in the background. Its context ends when the work is done, and as soon as the
// agent is to end.
func (a *Agent) change(ctx context.Context, do func(context.Context)) {
	a.changes.work.Go(func() {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		over := make(chan struct{})
		defer close(over)
		go func() { // counted by the one above, which it does not outlive for long
			select {
			case <-a.gate.stop:
			case <-a.gate.leave:
			case <-over:
			}
			cancel()
		}()
		a.changes.swept()
		do(ctx)
	})
}

// allowed is what of an offer agent.toml lets the server replace.
func (a *Agent) allowed(item wire.UpgradeItem) upgrader.Order {
	c := a.config.Load().Upgrade
	o := upgrader.Order{Agent: item.Agent, Worker: item.Worker, Init: item.DockerInitFile}
	if a.seed() {
		o.JDK = item.JDK
	} else {
		o.JDK17 = item.JDK
	}
	switch {
	case c.Mode == config.UpgradeOff:
		return upgrader.Order{}
	case c.Mode == config.UpgradePackage, !c.Window.Contains(time.Now()):
		return o.Only()
	}
	return o
}

// seed reports whether the server is spoken to in the ways of the seed generation.
func (a *Agent) seed() bool { return a.splits.Load() || a.config.Load().Protocol == config.Split }

// share is this machine's share of upgrade.jitter: always the same, and another one for each machine.
func (a *Agent) share() time.Duration {
	most := a.config.Load().Upgrade.Jitter
	if most <= 0 {
		return 0
	}
	id := a.Store.Settings().Identity
	h := fnv.New64a()
	_, _ = h.Write([]byte(id.Project + "/" + id.Agent))
	return time.Duration(h.Sum64() % uint64(most))
}

// upgrader gets and replaces parts of this installation, as agent.toml is now.
func (a *Agent) upgrader() *upgrader.Upgrader {
	c := a.config.Load()
	return &upgrader.Upgrader{Inst: a.Installation, Journal: a.journal, GOOS: a.GOOS, GOARCH: a.GOARCH, Log: a.Log,
		Policy: trust.Policy{Keys: c.Trust.Keys, Require: c.Trust.Require}, MaxBytes: c.Upgrade.MaxDownload,
		Free: host.FreeBytes, JarVersion: a.versions.JarVersionBy}
}

func (a *Agent) installed() upgrader.Installed {
	s, v := a.Store.Settings(), a.knownVersions()
	now := upgrader.Installed{JDKDir: s.JDKDir, JDK17Dir: s.JDK17Dir, Agent: a.Version, Worker: v.Worker}
	if len(v.JDK) > 0 {
		now.JDK = v.JDK[0]
	}
	return now
}

// gateway is the server as a source of files (protocol §1.6.6). It takes a fresh client for each: proxies change.
type gateway struct{ agent *Agent }

// Fetch gets one file.
func (g gateway) Fetch(ctx context.Context, p journal.Part, suffix string, r fetch.Request) (fetch.Result, error) {
	name := upgrader.RemoteName(p, g.agent.GOOS, g.agent.GOARCH) + suffix
	r.Name = name
	return fetch.File(ctx, r, func(ctx context.Context, offset int64, eTag string) (*http.Response, error) {
		return g.agent.client().Download(ctx, name, eTag, offset)
	})
}

// plan is what all upgrades of this agent have in common.
func (a *Agent) plan(kind journal.Kind, source string) journal.Plan {
	s := a.health.server()
	reached := s.LastContact != nil && (s.Failing == nil || s.Problem == control.ServerError)
	return journal.Plan{Kind: kind, Source: source, Reached: reached, Proof: a.config.Load().Upgrade.SettleAfter, Tell: kind == journal.FromServer}
}

// upgradeByServer carries an order of the server out (protocol §4.3 to §4.5). What the server is told does not end with the work,
// but with life.
func (a *Agent) upgradeByServer(life, ctx context.Context, order upgrader.Order) {
	stays := false
	defer func() {
		if !stays {
			a.changes.end()
		}
		a.teller.changed()
	}()
	s, err := a.prepare(ctx, order, gateway{a}, false)
	if ctx.Err() != nil {
		return // the next agent is offered it again
	}
	if err != nil {
		a.giveUp(life, err)
		return
	}
	defer s.Discard()
	if err := s.Err(); err != nil && !s.Any() {
		a.giveUp(life, err)
		return
	}
	if !s.Any() {
		a.Log.Info("Upgrade brings nothing that is not here")
		a.pauseUpgrades(a.changes.failed("the server offers what is here already"))
		a.answerOffer(life, !a.seed()) // protocol §4.3
		return
	}
	release, ok := a.exclusive(ctx, false)
	if !ok {
		a.Log.Info("Upgrade waits: something builds", "brings", s.String())
		a.answerOffer(life, false)
		return
	}
	stays, err = a.replace(ctx, s, a.plan(journal.FromServer, ""), release)
	switch {
	case err != nil:
		a.pauseUpgrades(a.changes.failed(err.Error()))
		a.Log.Error("Upgrade failed", "err", err)
		if !a.tellEnd() { // it did not get as far as being written down
			a.answerOffer(life, false)
		}
	case !stays:
		a.changes.succeeded()
		a.awaitVersions(ctx)
		a.tellEnd()
	}
}

// giveUp answers an offer that came to nothing before anything was replaced.
func (a *Agent) giveUp(ctx context.Context, err error) {
	pause := a.changes.failed(brief(err.Error()))
	a.Log.Warn("Upgrade given up", "err", err, "next_after", pause)
	a.pauseUpgrades(pause)
	a.answerOffer(ctx, false)
}

// prepare fetches and checks.
func (a *Agent) prepare(ctx context.Context, order upgrader.Order, from upgrader.Source, force bool) (*upgrader.Stage, error) {
	a.changes.enter(control.Downloading, "")
	u := a.upgrader()
	u.Checking = func(what string) { a.changes.enter(control.Checking, what) }
	began := time.Now()
	inv, err := u.TakeStock(a.installed())
	if err != nil {
		return nil, err
	}
	s, err := u.Prepare(ctx, order, inv, from, force)
	if err == nil && s.Any() {
		a.Log.Info("Upgrade fetched and checked", "brings", s.String(), "after", time.Since(began).Round(time.Millisecond))
	}
	return s, err
}

// replace puts a stage into place. What needs no restart works at once. When the agent is replaced it ends, stays is true, and the
// door remains closed for good.
func (a *Agent) replace(ctx context.Context, s *upgrader.Stage, plan journal.Plan, release func()) (stays bool, err error) {
	defer func() {
		if !stays {
			release()
		}
	}()
	a.changes.enter(control.Replacing, s.String())
	a.teller.changed()
	a.pulse.within(loopReplace, replaceLimit)
	defer a.pulse.over(loopReplace)
	u := a.upgrader()
	parts := plan
	parts.Tell = plan.Tell && !s.Programs() // the last word is that of the agent's upgrade
	jdks, err := u.Replace(ctx, s, parts)
	for _, live := range jdks {
		changes, serr := a.Store.SetJDK(live.Part == journal.JDK17, live.Dir)
		for _, c := range changes {
			a.Log.Info("Setting changed by an upgrade", "key", c.Key, "from", c.From, "to", c.To)
		}
		err = errors.Join(err, serr)
	}
	a.noteLast()
	if err != nil || !s.Programs() {
		return false, err
	}
	helper := a.helper(s.Upgrader())
	r, err := u.Begin(ctx, s, plan)
	if err != nil {
		return false, err
	}
	a.handOver(helper, r)
	return true, nil
}

// helper is the upgrader that puts programs into place: the one that came with them, as the original has it (protocol §4.5), else ours.
func (a *Agent) helper(fresh string) string {
	if fresh != "" {
		return fresh
	}
	name := "upgrader"
	if a.GOOS == "windows" {
		name += ".exe"
	}
	places := []string{a.Installation.Path(name)}
	if a.Programs != "" {
		places = append(places, filepath.Join(a.Programs, name))
	}
	for _, path := range append(places, a.Installation.Path("tmp", name)) {
		if upgrader.Ours(path) {
			return path
		}
	}
	return ""
}

// handOver starts the upgrader and ends the agent. If it cannot be started the next start of the agent does its work: what is to be
// replaced is written down.
func (a *Agent) handOver(helper string, r *journal.Record) {
	if helper != "" {
		_, err := proc.Start(proc.Command{Path: helper, Args: []string{"-action=upgrade"}, Dir: a.Installation.Home,
			Env: append(os.Environ(), journal.EnvUpgrade+"="+r.ID)})
		if err != nil {
			a.Log.Warn("Upgrader not started; the next start of the agent does its work", "program", helper, "err", err)
		}
	}
	a.Log.Info("Agent ends to be replaced", "upgrader", helper)
	a.depart()
}

// awaitVersions waits until the versions of what was replaced are known, so that the server hears of the end of an upgrade not
// before a heartbeat can tell them (statement 87).
func (a *Agent) awaitVersions(ctx context.Context) {
	for until := time.Now().Add(30 * time.Second); !a.knownVersions().Known && time.Now().Before(until); {
		if !sleep(ctx, 50*time.Millisecond) {
			return
		}
	}
}

// UpgradeFrom begins an upgrade from a directory, for the operator. It waits until nothing builds, in the background, and takes no
// new builds meanwhile. The directory is removed at the end when it lies in tmp/.
func (a *Agent) UpgradeFrom(dir string, force bool) error {
	source := upgrader.Directory{Dir: dir, GOOS: a.GOOS, GOARCH: a.GOARCH}
	order := source.Offers()
	mode := a.config.Load().Upgrade.Mode
	switch {
	case !filepath.IsAbs(dir):
		return fmt.Errorf("upgrade from %q: not an absolute path", dir)
	case !order.Any():
		return &upgrader.EmptyError{From: dir, System: a.GOOS + "/" + a.GOARCH}
	}
	if err := MayReplace(mode, order, force); err != nil {
		return err
	}
	release, err := a.offers().Use(context.Background())
	if err != nil {
		return err
	}
	err = a.begin(func(ctx context.Context) (stays bool, err error) {
		defer func() {
			a.removeOffered(dir)
			err = errors.Join(err, release())
		}()
		s, err := a.prepare(ctx, order, source, force)
		if err != nil {
			return false, err
		}
		defer s.Discard()
		if err := s.Err(); err != nil {
			return false, err
		}
		if !s.Any() {
			return false, errNothingNew
		}
		a.changes.enter(control.Waiting, s.String())
		open, ok := a.exclusive(ctx, true)
		if !ok {
			return false, errEnding
		}
		return a.replace(ctx, s, a.plan(journal.FromFile, ""), open)
	})
	if err != nil {
		err = errors.Join(err, release())
	}
	return err
}

// MayReplace says why upgrade.mode forbids an operator to have parts replaced, nil when it does not.
func MayReplace(mode config.UpgradeMode, o upgrader.Order, force bool) error {
	if !force && (mode == config.UpgradeOff || mode == config.UpgradePackage && o.Only() != o) {
		return &modeError{mode}
	}
	return nil
}

var errNothingNew = errors.New("everything in it is here already")

// trialJustEnded reports whether a trial is over on disk, where operators see it, and not yet here.
func (a *Agent) trialJustEnded() bool {
	if a.changes.status().Phase != control.OnTrial {
		return false
	}
	found, err := a.journal.Current()
	return err == nil && found.State == journal.None && !a.stopping()
}

// begin runs an upgrade of the operator in the background.
func (a *Agent) begin(do func(context.Context) (stays bool, err error)) error {
	if a.stopping() {
		return errEnding
	}
	for until := time.Now().Add(trialLag); !a.changes.begin(); {
		if time.Now().After(until) || !a.trialJustEnded() {
			return &busyError{a.changes.status().Phase}
		}
		if !sleep(context.Background(), 10*time.Millisecond) { // whoever ended it is about to say so
			return errEnding
		}
	}
	a.changes.enter(control.Checking, "")
	a.change(context.Background(), func(ctx context.Context) {
		stays, err := do(ctx)
		switch {
		case err != nil && !errors.Is(err, context.Canceled):
			a.changes.failed(brief(err.Error()))
			a.Log.Error("Upgrade failed", "err", err)
		case err == nil:
			a.changes.succeeded()
		}
		if !stays {
			a.changes.end()
		}
		a.teller.changed()
	})
	return nil
}

// removeOffered removes what "devopsAgent upgrade" has put into tmp/ for us.
func (a *Agent) removeOffered(dir string) {
	if err := a.offers().remove(dir); err != nil {
		a.Log.Warn("Files of an upgrade stay behind", "path", dir, "err", err)
	}
}

// Rollback begins to go back to a version of the agent that ran here, "" for the one before. It waits as UpgradeFrom does.
func (a *Agent) Rollback(version string) error {
	plan, err := a.journal.Previous(version)
	if err != nil {
		return err
	}
	common := a.plan(journal.Rollback, plan.Source)
	plan.Reached, plan.Proof = common.Reached, common.Proof
	return a.begin(func(ctx context.Context) (stays bool, err error) {
		to := version
		for _, item := range plan.Items {
			if item.Part == journal.Agent {
				to = item.Now
				plan.Foreign = !upgrader.Ours(item.From)
			}
		}
		a.changes.enter(control.Waiting, to)
		release, ok := a.exclusive(ctx, true)
		if !ok {
			return false, errEnding
		}
		defer func() {
			if !stays {
				release()
			}
		}()
		a.changes.enter(control.Replacing, to)
		helper := a.helper("")
		r, err := a.upgrader().BeginPlan(ctx, *plan)
		if err != nil {
			return false, err
		}
		a.handOver(helper, r)
		return true, nil
	})
}

// sweepUpgrades removes what upgrades have left and says when it is to be called again: soon, when one is under way or on trial now.
func (a *Agent) sweepUpgrades(ctx context.Context) time.Duration {
	a.sweepOffered()
	s := a.Store.Settings()
	next := sweepEvery
	swept := a.changes.sweep(func() {
		if err := a.upgrader().Sweep(ctx, s.JDKDir, s.JDK17Dir); err != nil && ctx.Err() == nil {
			a.Log.Warn("Left-overs of upgrades not removed", "err", err)
			next = sweepAgain
		}
	})
	if !swept {
		next = sweepBusy
	}
	return next
}

// sweepOffered removes what "devopsAgent upgrade" had put into tmp/ when it, or the agent that had taken it, was killed.
func (a *Agent) sweepOffered() {
	if err := a.offers().Sweep(); err != nil {
		a.Log.Warn("Files of an upgrade stay behind", "err", err)
	}
}

func (a *Agent) offers() Offered { return Offered{a.Installation} }
