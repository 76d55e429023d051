package agent

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/agent/rhythm"
	"github.com/devops-agent/devops-agent/agent/wire"
)

// errNoAsk: the server is of the seed generation (protocol Appendix B, U-12).
var errNoAsk = errors.New("the server has no ask")

// askMissing is how many 404 in a row make an agent believe that a server that had ask has lost it.
const askMissing = 12

// asks is the loop of the ask generation (protocol §1.7): one call for heartbeat, claim, upgrade check, scripts and
// debugging. It ends with ctx, when this agent is deleted, or with errNoAsk where another generation is allowed.
func (a *Agent) asks(ctx context.Context) error {
	var (
		deleted  deletion
		server   = contact{log: a.Log, what: "ask"}
		pacing   = rhythm.Holding{Pace: rhythm.Ask(), Waits: &a.waits}
		answered bool // ask has worked in this process
		missing  int  // 404 in a row
	)
	defer a.pulse.over(loopAsk)
	for {
		begun := time.Now()
		timeout := a.Store.Settings().RequestTimeout
		freed := a.slots.Freed()
		seats := a.reserve()
		wait := pacing.Wait(seats.Kind(), timeout)
		ask := a.ask(seats.Kind(), seats.in)
		a.pulse.within(loopAsk, timeout+wait+callSlack)
		asking, done := a.asking(ctx, wait, seats.in)
		parts, err := a.client().Ask(asking, ask, wait)
		abandoned := err != nil && asking.Err() != nil && ctx.Err() == nil
		done()
		a.pulse.within(loopAsk, 2*timeout+slack)
		got := false
		if err == nil {
			answered, missing = true, 0
			if ask.Heartbeat.ErrorExitData != nil {
				a.exitError.CompareAndSwap(ask.Heartbeat.ErrorExitData, nil)
			}
			if err := deleted.said(ctx, a, parts.AgentStatus); err != nil {
				seats.Release()
				return err
			}
			if got, err = a.answered(ctx, parts, ask, seats); err != nil {
				seats.Release()
				return err
			}
			if deleted.times > 0 {
				got = true // ask again soon, and not at once
			}
		}
		seats.Release()
		if ctx.Err() != nil {
			return nil
		}
		if abandoned { // tell the server at once how things are now
			continue
		}
		if noSuchPath(err) {
			if missing++; a.config.Load().Protocol == config.Auto && (!answered || missing >= askMissing) {
				return errNoAsk
			}
		}
		a.heardFrom(ctx, &server, err)
		pause := pacing.Pause(err, parts, begun, got)
		if ask.Enable.Build == wire.All || !a.waits.Load() {
			freed = nil // there were seats of every kind; or the pace is the server's
		}
		a.pulse.within(loopAsk, pause+slack)
		if !sleepOr(ctx, pause, freed) {
			return nil
		}
	}
}

// loopAsk is the loop's name for the watchdog.
const loopAsk = "ask"

// noSuchPath: HTTP 404 and nothing else.
func noSuchPath(err error) bool {
	var refused *wire.StatusError
	return errors.As(err, &refused) && refused.HTTP == http.StatusNotFound
}

// heardFrom keeps the account of good and bad answers, and drops the connections after a timeout.
func (a *Agent) heardFrom(ctx context.Context, server *contact, err error) {
	counts := server.what == "ask" || server.what == "heartbeat" || server.what == "startup"
	if err == nil {
		server.good()
		if counts && a.health.good(time.Now()) {
			a.teller.changed()
		}
		return
	}
	server.bad(ctx, err)
	if counts && a.health.bad(ctx, time.Now(), err) {
		a.teller.changed()
	}
	var late *wire.TimeoutError
	if errors.As(err, &late) {
		a.newHTTP()
	}
}

// ask is what is said every time (protocol §1.7.2); scripts are asked for only while new work is wanted.
func (a *Agent) ask(kind wire.BuildKind, wanted bool) wire.Ask {
	s := a.Store.Settings()
	ask := wire.Ask{
		Enable: wire.AskEnable{
			Build:       kind,
			Upgrade:     a.wantsUpgrade(),
			DockerDebug: s.DockerEnable,
			Pipeline:    wanted && s.PipelineEnable && a.roomForScript(),
		},
		Heartbeat: a.heartbeat(),
	}
	if ask.Enable.Upgrade {
		ask.Upgrade = a.upgradeCheck()
	}
	return ask
}

// answered does what an answer says, each thing in a goroutine of its own: the next ask waits for none of them
// (protocol §1.7.3). It reports whether the answer brought anything.
func (a *Agent) answered(ctx context.Context, parts *wire.Parts, ask wire.Ask, seats *seats) (got bool, err error) {
	for _, err := range parts.Errs {
		a.Log.Warn("Part of an answer not understood", "err", err)
	}
	// The server takes its status from the heartbeat part. Where that part failed, a build may have been claimed all
	// the same (weakness W-21); any other status means that no work is to be taken.
	if parts.AgentStatus != wire.ImportOK && parts.AgentStatus != "" {
		if parts.Build != nil {
			a.Log.Warn("Build not taken", "build", parts.Build.ID, "status", string(parts.AgentStatus))
		}
		return true, nil
	}
	silenceMeansNo(parts.Heartbeat)
	if err := a.heard(ctx, parts.Heartbeat); err != nil {
		return true, err
	}
	if parts.Build != nil && ask.Enable.Build != wire.None {
		a.take(ctx, *parts.Build, seats)
		got = true
	}
	if parts.Upgrade != nil && ask.Enable.Upgrade && parts.Upgrade.Any() {
		a.offered(ctx, *parts.Upgrade, parts.Build != nil)
		got = true
	} else if parts.Upgrade != nil && ask.Enable.Upgrade {
		a.notOffered()
	}
	if parts.Pipeline != nil && ask.Enable.Pipeline {
		a.script(ctx, *parts.Pipeline)
		got = true
	}
	if parts.Debug != nil {
		a.debug(ctx, *parts.Debug)
		got = true
	}
	return got, nil
}

// silenceMeansNo: among the properties that the ask generation sends, a missing enablePipeline counts as false
// (protocol §1.7.3). No properties at all leave everything as it was (statement 24).
func silenceMeansNo(reply *wire.HeartbeatReply) {
	if reply == nil || reply.Props == nil {
		return
	}
	if p := reply.Props; p.EnablePipeline == nil && (p.IgnoreLocalIPs != nil || p.KeepLogsHours != nil) {
		p.EnablePipeline = new(bool)
	}
}
