package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/devops-agent/devops-agent/agent/rhythm"
	"github.com/devops-agent/devops-agent/agent/wire"
)

// askAgainEvery is how often an agent that fell back to separate endpoints looks whether there is an ask by now.
const askAgainEvery = 5 * time.Minute

// askSoonEvery is the same while the separate endpoints do not work.
const askSoonEvery = 15 * time.Second

// errOther ends the loops of a generation that is not spoken any more.
var errOther = errors.New("the server speaks the other generation")

// split is the loops of the seed generation (protocol §1.6): one endpoint per purpose. It ends with ctx, when this
// agent is deleted, or, without an error, when the loop other says that the server has an ask.
func (a *Agent) split(ctx context.Context, other func(context.Context) error) error {
	a.splits.Store(true)
	defer a.splits.Store(false)
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	loops := []func(context.Context) error{a.beats, a.builds, a.upgrades, a.pipelines, a.debugs}
	if other != nil {
		loops = append(loops, other)
	}
	var running sync.WaitGroup
	for _, loop := range loops {
		running.Go(func() {
			if err := loop(ctx); err != nil {
				stop(err)
			}
		})
	}
	running.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, errOther) {
		return err
	}
	return nil
}

// askAgain ends with errOther when the server has an ask by now: it was upgraded, or its first answer was that of
// a gateway in trouble. It looks every few minutes, and at once while the separate endpoints do not work either.
func (a *Agent) askAgain(ctx context.Context) error {
	last := time.Now()
	for sleep(ctx, askSoonEvery) {
		if a.beatFails.Load() == 0 && time.Since(last) < askAgainEvery {
			continue
		}
		last = time.Now()
		ask := a.ask(wire.None, false)
		ask.Enable = wire.AskEnable{Build: wire.None} // it only looks: nothing must be handed out to a question
		ask.Upgrade = nil
		if _, err := a.client().Ask(ctx, ask, 0); err == nil {
			return errOther
		}
	}
	return nil
}

// beats sends a heartbeat every 10 s (protocol §1.6.3).
func (a *Agent) beats(ctx context.Context) error {
	var deleted deletion
	server := contact{log: a.Log, what: "heartbeat"}
	p := rhythm.Beat()
	const loop = "heartbeat"
	defer a.pulse.over(loop)
	for {
		timeout := a.Store.Settings().RequestTimeout
		a.pulse.within(loop, timeout+callSlack)
		beat := a.heartbeat()
		reply, err := a.client().Beat(ctx, beat)
		a.pulse.within(loop, 2*timeout+slack)
		if reply != nil {
			if beat.ErrorExitData != nil {
				a.exitError.CompareAndSwap(beat.ErrorExitData, nil)
			}
			if err := deleted.said(ctx, a, reply.AgentStatus); err != nil {
				return err
			}
			if deleted.times == 0 {
				if err := a.heard(ctx, reply); err != nil {
					return err
				}
			}
		}
		a.heardFrom(ctx, &server, err)
		if err == nil {
			a.beatFails.Store(0)
		} else {
			a.beatFails.Add(1)
		}
		pause := p.After(err)
		a.pulse.within(loop, pause+slack)
		if !sleep(ctx, pause) {
			return nil
		}
	}
}

// builds asks for work every 5 s: status, capacity, claim (protocol §1.6.2, §1.6.7).
func (a *Agent) builds(ctx context.Context) error {
	pacing := rhythm.Holding{Pace: rhythm.Build(), Waits: &a.waits}
	server := contact{log: a.Log, what: "claim build"}
	pause := rhythm.FirstClaim
	var freed <-chan struct{}
	defer a.pulse.over(loopClaim)
	for {
		if !a.waits.Load() {
			freed = nil
		}
		a.pulse.within(loopClaim, pause+slack)
		if !sleepOr(ctx, pause, freed) {
			return nil
		}
		freed = a.slots.Freed() // before the claim: a seat may become free while it lasts
		begun := time.Now()
		parts, err := a.claim(ctx, &pacing)
		a.heardFrom(ctx, &server, err)
		pause = pacing.Pause(err, &parts, begun, false)
	}
}

// loopClaim is the loop's name for the watchdog.
const loopClaim = "claim"

// claim is one round of builds.
func (a *Agent) claim(ctx context.Context, pacing *rhythm.Holding) (wire.Parts, error) {
	timeout := a.Store.Settings().RequestTimeout
	a.pulse.within(loopClaim, timeout+callSlack)
	status, err := a.client().Status(ctx)
	if err != nil || status != wire.ImportOK { // DELETE here removes nothing (protocol §1.6.2)
		return wire.Parts{}, err
	}
	seats := a.reserve()
	defer seats.Release()
	wait := pacing.Wait(seats.Kind(), timeout) // also for none: it notes what was asked last
	if seats.Kind() == wire.None {
		return wire.Parts{}, nil
	}
	a.pulse.within(loopClaim, timeout+wait+callSlack)
	asking, done := a.asking(ctx, wait, seats.in)
	defer done()
	build, waited, err := a.client().Claim(asking, seats.Kind(), wait)
	a.pulse.within(loopClaim, timeout+slack)
	if err != nil && asking.Err() != nil && ctx.Err() == nil { // given up: builds are no longer wanted
		return wire.Parts{Waited: true}, nil
	}
	if err == nil && build != nil {
		a.take(ctx, *build, seats)
	}
	return wire.Parts{Build: build, Waited: waited}, err
}

// upgrades asks every 20 s whether the server wants other parts here (protocol §1.6.4).
func (a *Agent) upgrades(ctx context.Context) error {
	server := contact{log: a.Log, what: "check upgrade"}
	p := rhythm.Upgrade()
	for pause := rhythm.FirstCheck; sleep(ctx, pause); {
		if !a.wantsUpgrade() {
			pause = p.After(nil)
			continue
		}
		var item wire.UpgradeItem
		var err error
		if item, err = a.client().CheckUpgrade(ctx, *a.upgradeCheck()); err == nil && item.Any() {
			a.offered(ctx, item, false)
		} else if err == nil {
			a.notOffered()
		} else if noAnswer(err) { // a mark may have been set (protocol §4.3)
			a.answerOffer(ctx, false)
		}
		a.heardFrom(ctx, &server, err)
		pause = p.After(err)
	}
	return nil
}

// pipelines fetches scripts, where they are enabled: first after 10 s, then every 30 s (protocol §1.6.9).
func (a *Agent) pipelines(ctx context.Context) error {
	server := contact{log: a.Log, what: "fetch pipeline task"}
	p := rhythm.Pace{Every: scriptEvery, Most: 3 * scriptEvery}
	for pause := rhythm.FirstScript; sleep(ctx, pause); {
		var err error
		if a.Store.Settings().PipelineEnable && a.roomForScript() && a.enter() {
			var task *wire.Pipeline
			asking, done := a.asking(ctx, 0, true)
			if task, err = a.client().Pipeline(asking); task != nil {
				a.script(ctx, *task)
			}
			abandoned := err != nil && asking.Err() != nil
			done()
			a.left()
			if !abandoned {
				a.heardFrom(ctx, &server, err)
			}
		}
		pause = p.After(err)
	}
	return nil
}

// debugs fetches docker debugging sessions on machines that use docker (protocol §1.6.10).
func (a *Agent) debugs(ctx context.Context) error {
	server := contact{log: a.Log, what: "fetch docker debug"}
	p := rhythm.Pace{Every: debugEvery, Most: 3 * debugEvery}
	var err error
	for sleep(ctx, p.After(err)) {
		if err = nil; a.GOOS != "linux" || !a.Store.Settings().DockerEnable {
			continue
		}
		var session *wire.Debug
		if session, err = a.client().Debug(ctx); session != nil {
			a.debug(ctx, *session)
		}
		a.heardFrom(ctx, &server, err)
	}
	return nil
}
