package service

import "time"

// pace decides how long to wait before an agent is started again.
//
// A fault, an end of the agent's own making, is waited for longer each time. A blow, an end from outside, is not: whoever
// kills the agent a hundred times in a row finds it back a hundred times at once. Only what goes on for longer is slowed
// to a start a second, because the kernel, short of memory, kills with the same signal.
type pace struct {
	streak int     // faults in a row
	blows  float64 // that are free, as of at
	at     time.Time
}

const (
	firstPause = 100 * time.Millisecond
	mostPause  = 30 * time.Second
	readyPause = 2 * time.Second // the most after a fault of an agent that had been ready
	blowPause  = time.Second
	freeBlows  = 120 // one comes back each second
)

func newPace(now time.Time) pace { return pace{blows: freeBlows, at: now} }

// forget begins afresh: the agent is another one, or has lived long.
func (p *pace) forget(now time.Time) { *p = newPace(now) }

// fault returns the pause after one more fault; ready says that the agent had been.
func (p *pace) fault(_ time.Time, ready bool) time.Duration {
	p.streak++
	d := mostPause
	if p.streak < 10 {
		d = min(mostPause, firstPause<<(p.streak-1))
	}
	if ready {
		d = min(d, readyPause)
	}
	return d
}

// blow returns the pause after one more blow. ready says that the agent had been: then its faults are forgotten.
func (p *pace) blow(now time.Time, ready bool) time.Duration {
	if ready {
		p.streak = 0
	}
	p.blows = min(freeBlows, p.blows+now.Sub(p.at).Seconds()/blowPause.Seconds())
	p.at = now
	if p.blows < 1 {
		return blowPause
	}
	p.blows--
	return 0
}
