package agent

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/service/control"
	"github.com/devops-agent/devops-agent/upgrader/journal"
)

// changes is what an agent knows of upgrades: there is one at a time.
type changes struct {
	work  crowd         // the upgrade under way
	ended chan struct{} // of one element: an upgrade has ended, and the server may want to hear of it

	broom    sync.Mutex // held while left-overs are removed; taken under mu
	mu       sync.Mutex
	busy     bool
	failures int       // upgrades in a row that came to nothing
	first    time.Time // the server's first offer since the last upgrade, zero while there is none
	now      control.Upgrade
}

// begin reports whether an upgrade may begin: none is under way, and none is on trial.
func (c *changes) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy || c.now.Phase == control.OnTrial {
		return false
	}
	c.busy = true
	return true
}

// sweep removes what upgrades have left and reports whether it could: not while an upgrade is under way or on trial. One that
// begins meanwhile waits for its end (swept) instead of being refused.
func (c *changes) sweep(remove func()) bool {
	c.mu.Lock()
	if c.busy || c.now.Phase == control.OnTrial {
		c.mu.Unlock()
		return false
	}
	c.broom.Lock()
	c.mu.Unlock()
	defer c.broom.Unlock()
	remove()
	return true
}

// swept returns when nothing is being removed. After begin nothing is removed again until end.
func (c *changes) swept() {
	c.broom.Lock()
	defer c.broom.Unlock()
}

// end is that of what begin has allowed. A trial goes on.
func (c *changes) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy = false; c.now.Phase != control.OnTrial {
		c.clear()
	}
}

// proved is the end of a trial.
func (c *changes) proved() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clear()
}

func (c *changes) clear() {
	c.now.Phase, c.now.Attempt, c.now.To, c.now.Since, c.now.Starts = "", "", "", nil, 0
}

// busyNow reports whether an upgrade is under way or on trial.
func (c *changes) busyNow() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.busy || c.now.Phase == control.OnTrial
}

// enter notes the phase of the upgrade under way.
func (c *changes) enter(p control.UpgradePhase, to string) {
	at := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.Phase, c.now.To, c.now.Since, c.now.Refused = p, to, &at, ""
}

// attempt notes the id that an upgrade has from replacing on.
func (c *changes) attempt(id string, starts int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.Attempt, c.now.Starts = id, starts
}

// failed counts an upgrade that came to nothing, and returns for how long none is asked for then: it doubles up to an hour, so
// that a version that is refused here is not fetched again and again.
func (c *changes) failed(why string) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures++
	c.now.Refused = why
	return min(upgradePause<<min(c.failures-1, 6), upgradeMost)
}

func (c *changes) succeeded() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures, c.first, c.now.Refused = 0, time.Time{}, ""
}

// offeredFirst is when the server's offer was first seen.
func (c *changes) offeredFirst(now time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first.IsZero() {
		c.first = now
	}
	return c.first
}

// offerGone: the server wants nothing any more.
func (c *changes) offerGone() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.first = time.Time{}
}

func (c *changes) lastWas(a *journal.Attempt) {
	c.mu.Lock()
	defer c.mu.Unlock()
	reason := a.Reason
	if last, _, _ := strings.Cut(a.LastExit, ": "); last != "" && !strings.Contains(reason, last) {
		reason += " (last: " + last + ")"
	}
	c.now.Last = &control.UpgradeEnd{ID: a.ID, Kind: string(a.Kind), State: string(a.State), To: brings(a), Reason: brief(reason), Ended: a.Ended}
}

// leftAre notes the versions that were rolled back by hand.
func (c *changes) leftAre(list []journal.Attempt) {
	var left []string
	for _, one := range list {
		if version, _ := one.Version(); one.Left {
			left = append(left, version+" at "+one.Ended.Local().Format("2006-01-02 15:04"))
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.Left = strings.Join(left, ", ")
}

// brings says what an upgrade was to bring: the agent's version, or its parts.
func brings(a *journal.Attempt) string {
	if _, to := a.Version(); to != "" {
		return to
	}
	text := ""
	for i, c := range a.Parts {
		if i > 0 {
			text += ", "
		}
		text += string(c.Part)
		if c.To != "" {
			text += " " + c.To
		}
	}
	return text
}

func (c *changes) status() control.Upgrade {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// takenBackFor is how long the keeper's line of status tells of a version that was taken back.
const takenBackFor = 24 * time.Hour

// sentence is what the keeper's line of status says about upgrades, "" when there is nothing to say.
func (c *changes) sentence(now time.Time) string {
	s := c.status()
	switch {
	case s.Phase == control.OnTrial:
		return "on trial: " + s.To + " since " + now.Sub(*s.Since).Round(time.Second).String()
	case s.Phase == control.Waiting:
		return "upgrade to " + s.To + " waits for builds to end"
	case s.Phase == control.Replacing:
		return "upgrading to " + s.To
	case s.Last != nil && s.Last.State == string(journal.TakenBack) && now.Sub(s.Last.Ended) < takenBackFor:
		return s.Last.To + " was taken back at " + s.Last.Ended.Local().Format("15:04") + ": " + s.Last.Reason
	}
	return ""
}

// errEnding: the agent is about to end, and begins nothing any more.
var errEnding = errors.New("the agent is about to end")

// busyError: there is an upgrade already.
type busyError struct{ phase control.UpgradePhase }

// Error says how far it is.
func (e *busyError) Error() string { return "another upgrade is under way (" + string(e.phase) + ")" }

// Hint says where it can be watched.
func (e *busyError) Hint() string {
	return `"devopsAgent status" shows how far it is; try again when it has ended`
}

// modeError: agent.toml leaves programs to somebody else.
type modeError struct{ mode config.UpgradeMode }

// Error names the setting.
func (e *modeError) Error() string {
	if e.mode == config.UpgradePackage {
		return "upgrade.mode in agent.toml is package: programs come from the package manager only"
	}
	return "upgrade.mode in agent.toml is " + string(e.mode) + ": nothing is replaced here"
}

// Hint says what to do.
func (e *modeError) Hint() string { return "change it, or use --force for this once" }

// scripts is how many pipeline scripts run.
func (a *Agent) scripts() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.tasks)
}

// exclusive closes the door for an upgrade: nothing builds, nothing is being asked for, nothing begins until release is called. A
// patient caller waits until what runs has ended, and nothing new is taken meanwhile; others only wait for the answer to a
// question that is under way (statements 92, 93).
func (a *Agent) exclusive(ctx context.Context, patient bool) (release func(), ok bool) {
	g := a.gate
	g.mu.Lock()
	if !g.stopping.IsZero() || g.leaving || g.changing {
		g.mu.Unlock()
		return nil, false
	}
	g.changing = true
	g.shut() // ends questions that the server holds
	g.mu.Unlock()
	reopen := func() {
		g.mu.Lock()
		g.changing = false
		a.reopen()
		g.mu.Unlock()
		a.teller.changed()
	}
	a.teller.changed()
	until := time.Now().Add(answerPatience)
	for {
		freed := a.slots.Freed()
		builds := a.slots.Busy() || a.scripts() > 0
		if !builds {
			if release, ok := a.slots.Exclusive(); ok {
				return func() { release(); reopen() }, true
			}
		}
		pause, wake := 10*time.Millisecond, (<-chan struct{})(nil) // a question is under way, or a seat held for the moment in which the gate says no
		if builds {
			pause, wake = time.Second, freed // scripts have no seats
		}
		if !patient && (builds || time.Now().After(until)) || !sleepOr(ctx, pause, wake) {
			reopen()
			return nil, false
		}
	}
}
