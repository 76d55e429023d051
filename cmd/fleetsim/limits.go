package main

import (
	"fmt"
	"time"
)

// otherFiles are those of a process that are no connections of agents, with room to spare.
const otherFiles = 256

// filesFor is how many files the controller, and the simulator, have open with so many agents: a connection each, and
// while connections are cut, or calls meet, a second one for some.
func filesFor(agents int) uint64 { return uint64(agents + agents/4 + otherFiles) }

// filesError: this machine does not allow as many open files as the fleet needs.
type filesError struct {
	agents       int
	need, allows uint64
}

// Error has the numbers.
func (e *filesError) Error() string {
	return fmt.Sprintf("%d agents take about %d open files, in this process and in the controller, and a process may have %d here", e.agents, e.need, e.allows)
}

// Hint says what can be done.
func (e *filesError) Hint() string {
	if e.allows < filesFor(1) {
		return "raise the limit (ulimit -Hn, LimitNOFILE= of a unit)"
	}
	most := 4 * (e.allows - otherFiles) / 5
	return fmt.Sprintf("raise the limit (ulimit -Hn, LimitNOFILE= of a unit), or play at most %d agents", most)
}

// enoughFiles checks that a process that may have so many files open can hold the fleet.
func enoughFiles(agents int, allows uint64) error {
	if need := filesFor(agents); allows < need {
		return &filesError{agents, need, allows}
	}
	return nil
}

// round is a time after which every idle agent has made the same calls again, but for some that are rare: agents that
// started evenly over one keep the load even.
const round = 30 * time.Second

// rampFor is over what time so many agents start when nobody says so. Many start evenly over whole rounds, as the machines of a
// large fleet have started at times that have nothing to do with each other, and no faster than a controller takes them.
func rampFor(agents int) time.Duration {
	each := 3 * time.Millisecond * time.Duration(agents)
	if agents < 1000 {
		return max(2*time.Second, each)
	}
	return max(1, (each+round-1)/round) * round
}
