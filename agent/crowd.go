package agent

import "sync"

// crowd counts what is under way, and can be waited for while more of it may still come.
type crowd struct {
	mu    sync.Mutex
	n     int
	empty chan struct{} // closed when n is back at 0; nil while nobody has asked
}

// add counts one more, until done.
func (c *crowd) add() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
}

func (c *crowd) done() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n--; c.n == 0 && c.empty != nil {
		close(c.empty)
		c.empty = nil
	}
}

// Go runs f in a goroutine that is counted.
func (c *crowd) Go(f func()) {
	c.add()
	go func() {
		defer c.done()
		f()
	}()
}

// idle is closed when nothing is under way. What begins after that is for the caller to rule out.
func (c *crowd) idle() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == 0 {
		now := make(chan struct{})
		close(now)
		return now
	}
	if c.empty == nil {
		c.empty = make(chan struct{})
	}
	return c.empty
}
