package agent

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/devops-agent/devops-agent/agent/config"
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
		rhythm   = holding{agent: a, pace: pace{every: askEvery, most: 3 * askEvery}}
		answered bool // ask has worked in this process
		missing  int  // 404 in a row
	)
	defer a.pulse.over(loopAsk)
	for {
		begun := time.Now()
		timeout := a.Store.Settings().RequestTimeout
		freed := a.slots.Freed()
		seats := a.reserve()
		wait := rhythm.wait(seats.Kind())
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
		pause := rhythm.pause(err, parts, begun, got)
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

// holding decides how long the server is asked to hold an empty answer (RFC 7240, "Prefer: wait"), and how long to
// pause between calls. A server that has never said Preference-Applied is polled at the pace of the protocol.
type holding struct {
	agent *Agent
	pace  pace
	asked time.Duration // the preference of the last call
	quick int           // empty answers in a row that came at once, from a server that said it would wait
}

// wait is the preference of the next call. Without seats of every kind the server does not get to hold it: a build that
// ends meanwhile makes another question of it, and that one should be asked at once.
func (h *holding) wait(kind wire.BuildKind) time.Duration {
	switch {
	case h.agent.Store.Settings().RequestTimeout < 2*wire.Probe || kind == wire.None || h.pace.errors > 0:
		h.asked = 0
	case !h.agent.waits.Load():
		h.asked = wire.Probe
	case kind == wire.All:
		h.asked = holdWait
	default:
		h.asked = 0
	}
	return h.asked
}

// pause is the time from the end of a call to the next.
func (h *holding) pause(err error, parts *wire.Parts, begun time.Time, got bool) time.Duration {
	if err != nil {
		h.agent.waits.Store(false)
		return h.pace.after(err)
	}
	normal := h.pace.after(nil)
	gotBuild := parts.Build != nil
	if h.asked > 0 {
		h.agent.waits.Store(parts.Waited)
	}
	switch {
	case !parts.Waited && gotBuild:
		return leastSpacing // more may be queued; from here, because nobody knows how late the question arrived
	case !parts.Waited:
		return normal
	case gotBuild:
		h.quick = 0
		return 0
	case got:
		return normal
	case time.Since(begun) > wire.Probe/2:
		h.quick = 0
		return 0
	}
	if h.quick++; h.quick > 10 {
		return normal // it says it waits, and does not
	}
	return 100 * time.Millisecond
}
