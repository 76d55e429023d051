package worker

import (
	"io"
	"os"
	"sync"
	"time"
)

// How long output is still read after the script has ended, when something that it started holds it open.
const (
	quiet    = 500 * time.Millisecond // without a byte
	chatter  = 3 * time.Second        // at most, not counting the time that the log made it wait
	moreThan = 4 << 20                // bytes: more than any pipe can hold of what was printed before
)

// stream reads one output of a script. It goes on reading, into nothing, when the script has ended and a background
// process still prints: that one would die of a broken pipe otherwise.
type stream struct {
	r    *os.File
	sink io.WriteCloser
	done chan struct{} // closed at the end of the output

	mu       sync.Mutex // held while the sink takes something
	detached bool
	closed   bool

	state   sync.Mutex
	waiting time.Time // since when the reader waits for output; zero while the sink takes some
	waited  time.Duration
	bytes   int
	counts  bool // the script has ended: waited and bytes count
}

func newStream(r *os.File, sink io.WriteCloser) *stream {
	return &stream{r: r, sink: sink, done: make(chan struct{})}
}

// run reads until the end of the output, or until Close of the file.
func (s *stream) run() {
	defer close(s.done)
	buf := make([]byte, 32<<10)
	for {
		s.mark(0)
		n, err := s.r.Read(buf)
		s.mark(max(n, 1))
		if n > 0 {
			s.mu.Lock()
			if !s.detached {
				_, _ = s.sink.Write(buf[:n])
			}
			s.mu.Unlock()
		}
		if err != nil {
			s.finish()
			return
		}
	}
}

// mark notes that the reader begins to wait (0), or got n bytes.
func (s *stream) mark(n int) {
	s.state.Lock()
	defer s.state.Unlock()
	now := time.Now()
	if n == 0 {
		s.waiting = now
		return
	}
	if s.counts {
		s.waited += now.Sub(s.waiting)
		s.bytes += n
	}
	s.waiting = time.Time{}
}

// idle reports whether it is time to let go.
func (s *stream) idle(now time.Time) bool {
	s.state.Lock()
	defer s.state.Unlock()
	if s.waiting.IsZero() {
		return s.bytes > moreThan
	}
	since := now.Sub(s.waiting)
	return since >= quiet || s.waited+since >= chatter || s.bytes > moreThan
}

// ended is called when the script has ended. It returns when its output has been read, true when something still
// holds it open.
func (s *stream) ended() (heldOpen bool) {
	s.state.Lock()
	s.counts = true
	if !s.waiting.IsZero() {
		s.waiting = time.Now()
	}
	s.state.Unlock()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-s.done:
			return false
		case now := <-tick.C:
			if s.idle(now) {
				s.finish()
				return true
			}
		}
	}
}

// finish closes the sink, once; what is read after that is thrown away.
func (s *stream) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.detached = true
	if !s.closed {
		s.closed = true
		_ = s.sink.Close()
	}
}
