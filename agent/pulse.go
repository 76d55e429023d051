package agent

import (
	"sync"
	"time"
)

// pulse knows which loops turn. Each loop says, before it does anything that takes time, when it will be back at the
// latest; one that is not back by then hangs.
type pulse struct {
	mu   sync.Mutex
	back map[string]time.Time
}

// within promises that a loop will be heard of again within d.
func (p *pulse) within(loop string, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.back == nil {
		p.back = map[string]time.Time{}
	}
	p.back[loop] = time.Now().Add(d)
}

// over ends the promises of a loop.
func (p *pulse) over(loop string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.back, loop)
}

// overdue returns the loop that has kept us waiting the longest and for how long; "" and 0 when all turn.
func (p *pulse) overdue(now time.Time) (loop string, by time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, at := range p.back {
		if late := now.Sub(at); late > by {
			loop, by = name, late
		}
	}
	return loop, by
}

// shift gives every loop more time: the whole process was asleep, not the loops.
func (p *pulse) shift(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, at := range p.back {
		p.back[name] = at.Add(d)
	}
}

// What a loop may take on top of its calls and pauses: the disk may be slow.
const (
	slack     = 10 * time.Second
	callSlack = 5 * time.Second
)
