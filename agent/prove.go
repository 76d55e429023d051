package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"time"

	"github.com/devops-agent/devops-agent/service/control"
	"github.com/devops-agent/devops-agent/upgrader/journal"
)

// The distance of looks at ourselves while we are on trial.
const (
	provingEvery = 250 * time.Millisecond
	waitingEvery = 2 * time.Second  // for a server
	foreignEvery = 10 * time.Second // at somebody else's trial
)

// prove ends the trial that this program is on (design: upgrades): it has to run for a while, and its server has to have answered
// it where it answered the version before. A server in trouble is waited for; that is no fault of ours.
func (a *Agent) prove(ctx context.Context, r *journal.Record) error {
	a.noteLast()
	if r == nil {
		return nil
	}
	ours, err := isTrialOf(r)
	for err != nil { // out of files, for instance
		a.Log.Warn("Cannot tell whether this version is on trial, trying on", "upgrade", r.ID, "err", err)
		if !sleep(ctx, waitingEvery) {
			return nil
		}
		ours, err = isTrialOf(r)
	}
	if !ours {
		a.Log.Warn("Another version is on trial than the one that runs", "upgrade", r.ID)
		a.awaitTrial(ctx, r.ID)
		return nil
	}
	a.Log.Info("This version is on trial", "upgrade", r.ID, "version", a.Version)
	if !sleep(ctx, time.Until(a.began.Add(time.Duration(r.Proof)*time.Second))) {
		return nil
	}
	well, pause := false, provingEvery
	for sleep(ctx, pause) {
		settled, waits := a.proved(r)
		if waits && !well {
			well, pause = true, waitingEvery
			a.Log.Info("This version is well and waits for its server", "upgrade", r.ID)
			a.under(ctx, a.journal.Well)
		}
		if !settled {
			continue
		}
		ended, err := a.upgrader().Settle(ctx, r.ID)
		if err != nil {
			a.Log.Warn("Trial not ended, trying on", "upgrade", r.ID, "err", err)
			if ended == nil && sleep(ctx, time.Second) {
				continue
			}
		}
		break
	}
	if ctx.Err() != nil {
		return nil
	}
	a.changes.succeeded()
	a.changes.proved()
	a.noteLast()
	a.teller.changed()
	if a.Proved != nil {
		a.Proved()
	}
	a.tellEnd()
	return nil
}

// proved reports whether this version has proved itself, or is well and waits for its server.
func (a *Agent) proved(r *journal.Record) (settled, waits bool) {
	if _, late := a.pulse.overdue(time.Now()); late > 0 || !a.teller.ready.Load() {
		return false, false
	}
	s := a.health.server()
	switch {
	case s.LastContact != nil, !r.Reached:
		return true, false
	case s.Problem == control.Unreachable, s.Problem == control.ServerError:
		return false, true
	}
	return false, false
}

// noteTrial looks whether an upgrade is on trial, before anything is said to the server: meanwhile no other one is asked for. nil is
// none.
func (a *Agent) noteTrial() (*journal.Record, error) {
	found, err := a.journal.Current()
	if err != nil {
		a.Log.Warn("Open upgrade cannot be read", "err", err)
		return nil, err
	}
	if found.State != journal.Trial {
		return nil, nil
	}
	to := ""
	if m, ok := found.Record.Of(journal.Agent); ok {
		to = m.To
	}
	a.changes.enter(control.OnTrial, to)
	a.changes.attempt(found.Record.ID, found.Starts)
	return found.Record, nil
}

// isTrialOf reports whether this program is what came with an upgrade.
func isTrialOf(r *journal.Record) (bool, error) {
	m, ok := r.Of(journal.Agent)
	if !ok {
		return true, nil
	}
	sum, err := ownSum()
	return sum == m.New, err
}

// awaitTrial waits for the end of a trial that is not ours.
func (a *Agent) awaitTrial(ctx context.Context, id string) {
	for sleep(ctx, foreignEvery) {
		if found, err := a.journal.Current(); err == nil && (found.State != journal.Trial || found.Record.ID != id) {
			a.changes.proved()
			a.noteLast()
			return
		}
	}
}

// ownSum is the SHA-256 of the program that runs.
func ownSum() (_ string, err error) {
	path, err := os.Executable()
	if err != nil {
		return "", err
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// under does something under total-lock.
func (a *Agent) under(ctx context.Context, do func() error) {
	total, err := a.Installation.HoldTotal(ctx, time.Minute)
	if err == nil {
		err = errors.Join(do(), total.Release())
	}
	if err != nil && ctx.Err() == nil {
		a.Log.Warn("Upgrade not noted", "err", err)
	}
}

// noteLast takes the last upgrade that ended into the status.
func (a *Agent) noteLast() {
	list, err := a.journal.History()
	if err != nil {
		a.Log.Warn("History of upgrades cannot be read", "err", err)
		return
	}
	a.changes.leftAre(list)
	for _, one := range list {
		if one.State != journal.Begun {
			a.changes.lastWas(&one)
			return
		}
	}
}

// tellEnd has the server told of upgrades that ended, and reports whether the last one is among those.
func (a *Agent) tellEnd() bool {
	select {
	case a.changes.ended <- struct{}{}:
	default:
	}
	list, err := a.journal.History()
	return err == nil && len(list) > 0 && list[0].Untold
}

// tellEnds tells the server how upgrades ended that it has ordered, also those of earlier agents, until it has heard (protocol
// §1.6.5). A day later it has forgotten them.
func (a *Agent) tellEnds(ctx context.Context) error {
	select { // startup comes first
	case <-a.talking:
	case <-ctx.Done():
		return nil
	}
	for {
		list, err := a.journal.Untold()
		if err != nil {
			a.Log.Warn("History of upgrades cannot be read", "err", err)
		}
		for _, one := range list {
			if !a.tell(ctx, one) {
				return nil
			}
		}
		select {
		case <-a.changes.ended:
		case <-ctx.Done():
			return nil
		}
	}
}

// tell reports the end of one upgrade. It reports false when ctx ended before the server had heard.
func (a *Agent) tell(ctx context.Context, one journal.Attempt) bool {
	log := a.Log.With("upgrade", one.ID, "success", one.State == journal.Settled)
	for try := 0; ; try++ {
		a.vital.add()
		err := a.client().FinishUpgrade(ctx, one.State == journal.Settled)
		a.vital.done()
		if err == nil {
			log.Info("Upgrade reported")
			break
		}
		if ctx.Err() != nil {
			return false
		}
		if age := time.Since(one.Ended); age > reportForgets || age < -reportForgets {
			log.Warn("Report of an upgrade given up", "err", err)
			break
		}
		if try == 0 {
			log.Warn("Report of an upgrade not accepted, trying on", "err", err)
		}
		if !sleep(ctx, retryPause(try, err)) {
			return false
		}
	}
	a.under(ctx, func() error { a.journal.Told(one.ID); return nil })
	return ctx.Err() == nil
}
