package rhythm

import (
	"sync/atomic"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// HoldWait is the "Prefer: wait" of an idle agent towards a server that knows it.
const HoldWait = 30 * time.Second

// leastSpacing is that towards BK-CI, which refuses claims closer than 3 s (protocol §1.7.2).
const leastSpacing = 3200 * time.Millisecond

// Holding decides how long the server is asked to hold an empty answer (RFC 7240, "Prefer: wait"), and how long to
// pause between calls. A server that has never said Preference-Applied is polled at the pace of the protocol.
type Holding struct {
	Pace  Pace
	Waits *atomic.Bool  // the server knows "Prefer: wait"
	asked time.Duration // the preference of the last call
	quick int           // empty answers in a row that came at once, from a server that said it would wait
}

// Wait is the preference of the next call, which may ask for builds of a kind and takes at most timeout when it is not
// held. Without seats of every kind the server does not get to hold it: a build that ends meanwhile makes another
// question of it, and that one should be asked at once.
func (h *Holding) Wait(kind wire.BuildKind, timeout time.Duration) time.Duration {
	switch {
	case timeout < 2*wire.Probe || kind == wire.None || h.Pace.errors > 0:
		h.asked = 0
	case !h.Waits.Load():
		h.asked = wire.Probe
	case kind == wire.All:
		h.asked = HoldWait
	default:
		h.asked = 0
	}
	return h.asked
}

// Pause is the time from the end of a call to the next. The call begun at begun ended with err, or brought parts; got
// says that there was something in them for the agent to do.
func (h *Holding) Pause(err error, parts *wire.Parts, begun time.Time, got bool) time.Duration {
	if err != nil {
		h.Waits.Store(false)
		return h.Pace.After(err)
	}
	normal := h.Pace.After(nil)
	gotBuild := parts.Build != nil
	if h.asked > 0 {
		h.Waits.Store(parts.Waited)
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
