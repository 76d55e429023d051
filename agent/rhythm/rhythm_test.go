package rhythm

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

func most(p Pace, n int) time.Duration {
	if n >= manyErrors {
		return p.Long
	}
	return min(p.Most, p.Every*time.Duration(1+n))
}

// TestPausesGrowAndObey: never shorter than the interval or Retry-After, never longer than the most, and the interval
// again as soon as all is well.
func TestPausesGrowAndObey(t *testing.T) {
	for range 200 {
		p := Ask()
		for n := 1; n < 10; n++ {
			if got, most := p.After(errors.New("away")), most(p, n); got < p.Every || got > most {
				t.Fatalf("pause %d is %v, not between %v and %v", n, got, p.Every, most)
			}
		}
		wait := 2 * time.Minute
		if got := p.After(fmt.Errorf("ask: %w", &wire.StatusError{HTTP: 429, RetryAfter: wait})); got != wait {
			t.Fatalf("a server that asks for %v is left alone for %v", wait, got)
		}
		if got := p.After(nil); got != p.Every {
			t.Fatalf("after a good answer: %v", got)
		}
	}
}

// TestAFleetDoesNotComeBackInStep: of agents that have lost their server for minutes, less than a thirtieth tries in any
// one second: each makes three calls in the first seconds, and no second is to see a tenth of them.
func TestAFleetDoesNotComeBackInStep(t *testing.T) {
	const agents, seconds = 10_000, 60
	var tries [seconds]int
	down := errors.New("connection refused")
	for range agents {
		p := Ask()
		for at := time.Duration(0); ; {
			if at += p.After(down); at >= 5*time.Minute+seconds*time.Second {
				break
			}
			if at >= 5*time.Minute {
				tries[(at-5*time.Minute)/time.Second]++
			}
		}
	}
	for second, n := range tries {
		if n > agents/10/3+agents/200 { // and what chance adds
			t.Errorf("second %d sees %d of %d agents", second, n, agents)
		}
	}
}

// TestAServerIsHeldOnlyWhenItKnowsHow: a probe first, then long questions, and none after an error.
func TestAServerIsHeldOnlyWhenItKnowsHow(t *testing.T) {
	var waits atomic.Bool
	h := Holding{Pace: Ask(), Waits: &waits}
	if got := h.Wait(wire.All, 5*time.Second); got != wire.Probe {
		t.Fatalf("the first question is held for %v", got)
	}
	if got := h.Pause(nil, &wire.Parts{Waited: true}, time.Now().Add(-wire.Probe), false); got != 0 {
		t.Fatalf("pause of %v after an answer that was held", got)
	}
	if got := h.Wait(wire.All, 5*time.Second); got != HoldWait {
		t.Fatalf("the second question is held for %v", got)
	}
	if got := h.Wait(wire.Binary, 5*time.Second); got != 0 {
		t.Fatalf("a question with a seat missing is held for %v", got)
	}
	if got := h.Pause(errors.New("away"), nil, time.Now(), false); got < AskEvery || waits.Load() {
		t.Fatalf("after an error: %v, waits %v", got, waits.Load())
	}
	if got := h.Wait(wire.All, 5*time.Second); got != 0 {
		t.Fatalf("after an error a question is held for %v", got)
	}
}
