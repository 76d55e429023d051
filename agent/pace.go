package agent

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// jitter is a random time below d.
func jitter(d time.Duration) time.Duration { return rand.N(max(d, 1)) }

// sleep waits, and reports false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	return sleepOr(ctx, d, nil)
}

// sleepOr waits, at most until wake is closed or sent to, and reports false when ctx ended first.
func sleepOr(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-wake:
	case <-timer.C:
	}
	return ctx.Err() == nil
}

// contact keeps the log readable while a server is away: one line when it goes, one when it is back, and between them
// one every ten minutes, or sooner when the trouble becomes another one.
type contact struct {
	log   *slog.Logger
	what  string    // the call that this is about
	lost  time.Time // zero while all is well
	told  time.Time
	kind  string // of the trouble that was told
	fails int
}

func (c *contact) good() {
	if !c.lost.IsZero() && !c.told.IsZero() {
		c.log.Info("Server answers again", "call", c.what, "after", time.Since(c.lost).Round(time.Second), "failures", c.fails)
	}
	c.lost, c.told, c.kind, c.fails = time.Time{}, time.Time{}, "", 0
}

func (c *contact) bad(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return // our own end, not the server's
	}
	now := time.Now()
	if c.lost.IsZero() {
		c.lost = now
	}
	c.fails++
	kind := trouble(err)
	if quiet := now.Sub(c.told); quiet < 30*time.Second || kind == c.kind && quiet < 10*time.Minute {
		return
	}
	c.told, c.kind = now, kind
	attrs := []any{"call", c.what, "err", err, "failures", c.fails}
	var hinter interface{ Hint() string }
	if errors.As(err, &hinter) && hinter.Hint() != "" {
		attrs = append(attrs, "hint", hinter.Hint())
	}
	c.log.Warn("Server does not answer as it should, trying on", attrs...)
}

// trouble is the kind of an error, as far as an operator would do something else about it.
func trouble(err error) string {
	var refused *wire.StatusError
	var body *wire.BodyError
	var late *wire.TimeoutError
	switch {
	case errors.As(err, &refused):
		return strconv.Itoa(refused.HTTP) + " " + strconv.Itoa(refused.Code)
	case errors.As(err, &body):
		return "nonsense"
	case errors.As(err, &late):
		return "late"
	}
	return "unreachable"
}
