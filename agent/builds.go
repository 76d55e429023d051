package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"time"

	"github.com/devops-agent/devops-agent/agent/host"
	"github.com/devops-agent/devops-agent/agent/job"
	"github.com/devops-agent/devops-agent/agent/wire"
)

// adopt takes up what an earlier agent left: builds that run, and reports that no server has taken.
func (a *Agent) adopt(ctx context.Context) {
	records, err := a.ledger.All(a.Log)
	if err != nil {
		a.Log.Warn("Builds of an earlier agent not known", "err", err)
	}
	for _, r := range records {
		var slot *job.Slot
		if r.State == job.Running {
			slot = a.slots.Adopt(r.Build, r.PID, r.At)
			a.building.add()
		}
		a.work.Go(func() {
			o, ok := a.runner.Adopt(ctx, a.halt, r)
			if slot != nil {
				slot.Release()
				a.building.done()
				a.teller.changed()
			}
			if ok {
				ended := time.Now()
				if r.State == job.Ended {
					ended = r.At
				}
				a.report(ctx, r.Build, o, ended)
			}
		})
	}
}

// take does a build that the server handed out: each ends in exactly one report.
func (a *Agent) take(ctx context.Context, b wire.Build, seats *seats) {
	if a.slots.Has(b) {
		a.Log.Warn("Build handed out again while it runs here", "build", b.ID, "vm_seq", b.VMSeq)
		return
	}
	a.withdraw(b)
	lang := a.Store.Settings().Language
	refuse := func(o job.Outcome) {
		a.Log.Warn("Build refused", "build", b.ID, "vm_seq", b.VMSeq, "code", o.Error.Code, "why", o.Message)
		a.work.Go(func() { a.report(ctx, b, a.runner.Refuse(b, lang, o), time.Now()) })
	}
	if b.Docker != nil {
		refuse(job.DockerRefused(lang, a.GOOS, b.Docker))
		return
	}
	slot, ok := seats.Claim(b)
	if !ok {
		refuse(job.NoSeat(lang, b))
		return
	}
	a.building.add()
	a.teller.changed()
	a.work.Go(func() {
		defer slot.Release()
		o, ok := a.runner.Run(ctx, a.halt, b, slot, a.setup())
		a.building.done()
		if !ok {
			return // we end, the build goes on
		}
		ended := time.Now()
		slot.Release()
		a.teller.changed()
		if o.Error != nil && o.Error.Code == int(job.WorkerMissing) {
			a.loseWorker(o.Message)
		}
		a.work.Go(func() { a.runner.CleanOld(time.Now(), a.slots.Builds()) })
		a.report(ctx, b, o, ended)
	})
}

// loseWorker: this machine cannot build anything. The server is told with the next heartbeat, and no more builds are
// asked for, so that the machine does not eat the queue. The original ends for good here; a machine that waits for
// its next worker upgrade mends itself (docs/decisions/0002-exit-errors.md).
func (a *Agent) loseWorker(why string) {
	a.workerLost.Store(true)
	a.exitError.Store(&wire.ExitError{Enum: "THIRD_AGENT_EXIT_NOT_WORKER", Message: why})
	a.Log.Error("No worker on this machine; builds are not asked for until there is one", "why", why)
}

// ready reports whether builds could run at all.
func (a *Agent) ready() bool {
	if a.workerLost.Load() {
		for _, path := range []string{a.Installation.Path(job.Jar), a.Installation.Path("tmp", job.Jar), a.runner.Native()} {
			if _, err := os.Stat(path); err == nil {
				a.Log.Info("There is a worker again", "path", path)
				a.workerLost.Store(false)
				break
			}
		}
	}
	room := a.roomOnDisk()
	if full := !room; full != a.diskFull.Swap(full) {
		if full {
			a.Log.Error("Disk is full; builds are not asked for until there is room", "path", a.Installation.Home, "needed_bytes", leastFree)
		} else {
			a.Log.Info("Disk has room again", "path", a.Installation.Home)
		}
	}
	return room && !a.workerLost.Load()
}

func (a *Agent) setup() job.Setup {
	s := a.Store.Settings()
	return job.Setup{
		AgentVersion:  a.Version,
		WorkerVersion: a.knownVersions().Worker,
		Gateway:       wire.BaseURL(s.Gateway),
		FileGateway:   s.FileGateway,
		Language:      s.Language,
		JDK8Java:      host.JavaPath(s.JDKDir, a.GOOS),
		JDK17Java:     host.JavaPath(s.JDK17Dir, a.GOOS),
		SlaveUser:     s.SlaveUser,
		DetectShell:   s.DetectShell,
		Envs:          *a.envs.Load(),
		Umask:         a.Umask,
		JarVersion: func(ctx context.Context, jar string) string {
			return a.versions.JarVersion(ctx, s.JDKDir, s.JDK17Dir, jar)
		},
	}
}

// pending is a report that no server has taken yet.
type pending struct {
	cancel    context.CancelFunc
	withdrawn bool // guarded by Agent.mu; the build's record belongs to a later run
}

// withdraw gives up the report of an earlier run of the same build: the server has handed it out anew.
func (a *Agent) withdraw(b wire.Build) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p, ok := a.reports[b.ID+"/"+b.VMSeq]; ok {
		a.Log.Warn("Report of an earlier run withdrawn: the build was handed out again", "build", b.ID, "vm_seq", b.VMSeq)
		p.withdrawn = true
		p.cancel()
	}
}

// report tells the server how a build ended, until it has been accepted or a day has passed (protocol §1.6.8,
// statement 57). The record on disk goes only then.
func (a *Agent) report(ctx context.Context, b wire.Build, o job.Outcome, ended time.Time) {
	key := b.ID + "/" + b.VMSeq
	ctx, cancel := context.WithCancel(ctx)
	own := &pending{cancel: cancel}
	a.mu.Lock()
	a.reports[key] = own
	a.mu.Unlock()
	defer func() {
		cancel()
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.reports[key] == own {
			delete(a.reports, key)
		}
	}()
	log := a.Log.With("build", b.ID, "vm_seq", b.VMSeq, "success", o.Success)
	select { // startup comes first, also when an earlier agent left a report (protocol statement 12)
	case <-a.talking:
	case <-ctx.Done():
		return
	}
	// The worker's own end takes a while to arrive at BK-CI; a success that overtakes it reads as "worker died"
	// there. A server that knows "Prefer: wait" is ours, and has it already.
	// The end of a build that was adopted may lie in the future of a clock that was set back.
	if o.Success && !a.waits.Load() {
		if !sleepOr(ctx, min(time.Until(ended.Add(successDelay)), successDelay), a.gate.now) || a.hurried() {
			return // the next agent reports it
		}
	}
	for try := 0; ; try++ {
		a.vital.add()
		err := a.client().Finish(ctx, o.Finish(b))
		a.vital.done()
		if err == nil {
			log.Info("Build reported")
			break
		}
		if ctx.Err() != nil {
			return
		}
		if time.Since(ended) > reportForgets {
			log.Error("Report of a build given up", "err", err, "after", reportForgets)
			break
		}
		if try == 0 {
			log.Warn("Report of a build not accepted, trying on", "err", err)
		}
		if !sleep(ctx, retryPause(try, err)) {
			return
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock() // before the deferred function above takes it
	if own.withdrawn {
		return
	}
	if err := a.ledger.Drop(b); err != nil {
		log.Warn("Record of a build not removed; it will be reported again", "err", err)
	}
}

// retryPause grows from about a second to a minute, with full jitter above half of it.
func retryPause(try int, err error) time.Duration {
	limit := min(time.Second<<min(try, 6), time.Minute)
	pause := limit/2 + rand.N(limit/2+1)
	var refused *wire.StatusError
	if errors.As(err, &refused) {
		pause = max(pause, refused.RetryAfter)
	}
	return pause
}

// debug answers a docker debugging session: this version of the agent runs no containers (statement 112).
func (a *Agent) debug(ctx context.Context, d wire.Debug) {
	a.Log.Warn("Docker debugging session refused", "debug_id", d.DebugID)
	report := wire.DebugReport{Project: d.Project, DebugID: d.DebugID, Pipeline: d.Pipeline, Error: job.DebugRefused(a.Store.Settings().Language)}
	a.work.Go(func() {
		if err := a.client().ReportDebug(ctx, report); err != nil && ctx.Err() == nil {
			a.Log.Warn("Refused docker debugging session not reported", "err", err)
		}
	})
}

// maxScripts is how many pipeline scripts run at the same time; no more are fetched then.
const maxScripts = 4

func (a *Agent) roomForScript() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.tasks) < maxScripts
}

// script runs a pipeline task (protocol §3.10). Its reports are tried a few times each: a lost one leaves the task
// hanging on the server.
func (a *Agent) script(ctx context.Context, p wire.Pipeline) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tasks[p.SeqID] {
		return
	}
	a.tasks[p.SeqID] = true
	a.building.add()
	c := a.config.Load().Scripts
	scripts := &job.Scripts{Home: a.Installation.Home, GOOS: a.GOOS, Umask: a.Umask, Log: a.Log, Timeout: c.Timeout, MaxOutput: int(c.MaxOutput)}
	a.work.Go(func() {
		defer a.building.done()
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(a.halt, func() { cancel(context.Cause(a.halt)) })()
		defer func() {
			a.mu.Lock()
			delete(a.tasks, p.SeqID)
			a.mu.Unlock()
		}()
		scripts.Run(ctx, p, func(r wire.PipelineReport) {
			for try := range 5 {
				saying, cancel := lastWord(ctx)
				err := a.client().ReportPipeline(saying, r)
				cancel()
				if err == nil || ctx.Err() != nil {
					return
				}
				a.Log.Warn("State of a pipeline script not reported", "pipeline_task", r.SeqID, "status", r.Status, "err", err)
				if !sleep(ctx, retryPause(try, err)) {
					return
				}
			}
		})
	})
}

// lastWords is how long an agent that ends goes on talking.
const lastWords = 5 * time.Second

// lastWord is ctx, or, once that has ended, a context for what the server must hear all the same: nobody else knows how
// a script ended that ended with us.
func lastWord(ctx context.Context) (context.Context, context.CancelFunc) {
	if ctx.Err() == nil {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(context.WithoutCancel(ctx), lastWords)
}
