package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// Bounds and pace of the log upload (protocol §6.8).
const (
	maxQueue      = 2000                   // lines; then the producer blocks
	maxQueueBytes = 8 << 20                // of messages; likewise
	maxBatch      = 1000                   // lines in a request
	maxBatchBytes = 1 << 20                // of messages in a request
	pace          = 500 * time.Millisecond // between two requests that are not full
	gather        = 30 * time.Millisecond  // what follows a first line closely goes with it
	stubborn      = 10 * time.Minute       // how long one batch is tried before it is given up
)

// uploader sends log lines to the server: in order, in batches, each once unless an answer got lost. It outlasts a
// server that is away for minutes; then the producers wait, which keeps the memory bounded.
type uploader struct {
	session *wire.Session
	log     *slog.Logger
	count   int   // execute count for the sub tags' status calls
	batch   int64 // number of the last batch that was sent; Run's alone

	mu      sync.Mutex
	changed *sync.Cond // on anything below
	queue   []entry
	bytes   int
	added   uint64 // entries ever
	sent    uint64 // entries dealt with
	flushes int    // callers waiting in Flush
	closed  bool   // no more entries; Run ends when the queue is empty
	dead    bool   // nothing is sent any more; entries vanish
	wake    chan struct{}
}

// entry is a line, or the end of a sub tag.
type entry struct {
	line   wire.LogLine
	task   *taskLog
	finish string // sub tag whose log is complete
}

func newUploader(session *wire.Session, log *slog.Logger, count int) *uploader {
	u := &uploader{session: session, log: log, count: count, wake: make(chan struct{}, 1)}
	u.changed = sync.NewCond(&u.mu)
	return u
}

// Add queues entries in one piece and blocks while the queue is full.
func (u *uploader) Add(entries ...entry) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, e := range entries {
		for !u.dead && !u.closed && len(u.queue) > 0 && (len(u.queue) >= maxQueue || u.bytes+len(e.line.Message) > maxQueueBytes) {
			u.changed.Wait()
		}
		if u.dead || u.closed {
			return
		}
		u.queue = append(u.queue, e)
		u.bytes += len(e.line.Message)
		u.added++
		if len(u.queue) == 1 || len(u.queue) == maxBatch {
			u.poke()
		}
	}
}

// Flush returns when everything added before has been dealt with, or ctx ends.
func (u *uploader) Flush(ctx context.Context) {
	stop := context.AfterFunc(ctx, u.changed.Broadcast)
	defer stop()
	u.mu.Lock()
	defer u.mu.Unlock()
	target := u.added
	u.flushes++
	u.poke()
	for u.sent < target && !u.dead && ctx.Err() == nil {
		u.changed.Wait()
	}
	u.flushes--
}

// Close lets Run end after the queue is empty.
func (u *uploader) Close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	u.changed.Broadcast()
	u.poke()
}

// Kill lets everything that is queued, and all that will be, vanish.
func (u *uploader) Kill() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.dead, u.queue, u.bytes = true, nil, 0
	u.changed.Broadcast()
	u.poke()
}

func (u *uploader) poke() {
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// Run sends until Close and an empty queue, Kill, or the end of ctx.
func (u *uploader) Run(ctx context.Context) {
	defer u.Kill()
	var last time.Time // end of the last request
	for {
		batch, more := u.next(ctx, last)
		if !more {
			return
		}
		if batch[0].finish != "" {
			u.finish(ctx, batch[0])
		} else {
			u.send(ctx, batch)
		}
		last = time.Now()
		u.mu.Lock()
		u.sent += uint64(len(batch))
		u.changed.Broadcast()
		u.mu.Unlock()
	}
}

// next takes the next batch off the queue when its time has come.
func (u *uploader) next(ctx context.Context, last time.Time) ([]entry, bool) {
	var first time.Time
	for ctx.Err() == nil {
		u.mu.Lock()
		wait := time.Duration(-1) // for ever
		switch n := len(u.queue); {
		case u.dead, n == 0 && u.closed:
			u.mu.Unlock()
			return nil, false
		case n > 0:
			if first.IsZero() {
				first = time.Now()
			}
			due := first.Add(gather)
			if paced := last.Add(pace); paced.After(due) {
				due = paced
			}
			wait = time.Until(due)
			if wait <= 0 || n >= maxBatch || u.bytes >= maxBatchBytes || u.flushes > 0 || u.closed {
				batch := u.take()
				u.mu.Unlock()
				return batch, true
			}
		}
		u.mu.Unlock()
		var timer <-chan time.Time
		if wait >= 0 {
			timer = time.After(wait)
		}
		select {
		case <-ctx.Done():
		case <-u.wake:
		case <-timer:
		}
	}
	return nil, false
}

// take removes one batch: lines up to the bounds, or one end of a sub tag. u.mu is held, the queue is not empty.
func (u *uploader) take() []entry {
	n, size := 0, 0
	for n < len(u.queue) && n < maxBatch && (n == 0 || size < maxBatchBytes && u.queue[n].finish == "" && u.queue[0].finish == "") {
		size += len(u.queue[n].line.Message)
		n++
	}
	batch := make([]entry, n)
	copy(batch, u.queue)
	rest := copy(u.queue, u.queue[n:])
	clear(u.queue[rest:])
	u.queue = u.queue[:rest]
	u.bytes -= size
	u.changed.Broadcast()
	return batch
}

// send uploads a batch, for up to stubborn. Lines that cannot be uploaded go to the task's file.
func (u *uploader) send(ctx context.Context, batch []entry) {
	batch = u.wanted(batch)
	if len(batch) == 0 {
		return
	}
	body, err := encodeLines(batch)
	if err != nil {
		u.keep(batch, err)
		return
	}
	u.batch++
	number := u.batch
	begin := time.Now()
	for n := 0; ; n++ {
		err := u.session.Logs(ctx, body, number)
		var status *wire.StatusError
		switch errors.As(err, &status); {
		case err == nil:
			if n > 0 {
				u.log.Info("Log upload goes on", "after", time.Since(begin).Round(time.Second))
			}
			return
		case ctx.Err() != nil:
			u.keep(batch, err)
			return
		case errors.Is(err, wire.BuildEnded):
			u.log.Info("Log upload ends: the build is over")
			u.Kill()
			return
		case refused(status):
			for _, e := range batch {
				e.task.refuse()
			}
			u.keep(batch, err)
			return
		case status != nil && status.HTTP == http.StatusRequestEntityTooLarge && len(batch) > 1:
			u.send(ctx, batch[:len(batch)/2])
			u.send(ctx, batch[len(batch)/2:])
			return
		case status != nil && status.HTTP < 500 && status.HTTP != http.StatusTooManyRequests, time.Since(begin) > stubborn:
			u.keep(batch, err)
			return
		}
		if n == 0 {
			u.log.Warn("Log upload waits", "err", err)
		}
		wait := min(innerWait<<min(n, 4), 5*time.Second)
		wait = wait/2 + rand.N(wait/2+1)
		if status != nil {
			wait = max(wait, min(status.RetryAfter, stubborn/10))
		}
		if !sleep(ctx, wait) {
			u.keep(batch, err)
			return
		}
	}
}

// refused reports whether the log service says that it does not want the lines: 503 or 509 in the envelope of an
// answer that is no error of HTTP (protocol §6.8).
func refused(status *wire.StatusError) bool {
	return status != nil && status.HTTP >= 200 && status.HTTP <= 299 && (status.Code == 503 || status.Code == 509)
}

// wanted moves lines of tasks that the server refused meanwhile to their files.
func (u *uploader) wanted(batch []entry) []entry {
	kept := batch[:0]
	for _, e := range batch {
		if e.task.isRefused() {
			e.task.keep(e.line)
		} else {
			kept = append(kept, e)
		}
	}
	return kept
}

func (u *uploader) keep(batch []entry, err error) {
	u.log.Warn("Log lines are kept on this machine only", "lines", len(batch), "err", err)
	for _, e := range batch {
		e.task.keep(e.line)
	}
}

func (u *uploader) finish(ctx context.Context, e entry) {
	err := u.session.FinishLog(ctx, wire.LogStatus{Tag: e.line.Tag, SubTag: e.finish, JobID: e.line.ContainerHashID,
		ExecuteCount: u.count, Mode: e.task.modeName()})
	if err != nil {
		u.log.Warn("Sub tag is not closed", "err", err)
	}
}

// encodeLines leaves <, > and & as they are: they are frequent in logs, and six bytes each otherwise.
func encodeLines(batch []entry) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	for i, e := range batch {
		b.WriteByte("[,"[min(i, 1)])
		if err := enc.Encode(e.line); err != nil {
			return nil, err
		}
	}
	b.WriteByte(']')
	return b.Bytes(), nil
}
