package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/devops-agent/devops-agent/windows"
)

// eventLog is the Application log of Windows.
type eventLog interface {
	Info(id uint32, text string)
	Warn(id uint32, text string)
	Error(id uint32, text string)
}

// quietEvents is for a service whose event source cannot be opened: the log file has everything.
type quietEvents struct{}

func (quietEvents) Info(uint32, string)  {}
func (quietEvents) Warn(uint32, string)  {}
func (quietEvents) Error(uint32, string) {}

// teller writes warnings and errors of the daemon's log to the event log as well: the first of each kind, and then one in
// ten minutes, because a crash loop would drown everything else there.
type teller struct {
	slog.Handler
	events eventLog
	*memory
	with []slog.Attr
}

// eventPause is how long one kind of trouble is not repeated in the event log.
const eventPause = 10 * time.Minute

// memory knows what was written when.
type memory struct {
	mu      sync.Mutex
	written map[string]time.Time // by message
}

// due reports whether a record belongs into the event log now.
func (m *memory) due(r slog.Record) bool {
	if r.Level < slog.LevelWarn {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if last, ok := m.written[r.Message]; ok && r.Time.Sub(last) < eventPause {
		return false
	}
	m.written[r.Message] = r.Time
	return true
}

// Handle writes the record to the log and, if it is due, to the event log.
func (t *teller) Handle(ctx context.Context, r slog.Record) error {
	if t.due(r) {
		var text strings.Builder
		text.WriteString(r.Message)
		add := func(a slog.Attr) bool {
			fmt.Fprintf(&text, "\r\n%s: %s", a.Key, a.Value)
			return true
		}
		for _, a := range t.with {
			add(a)
		}
		r.Attrs(add)
		switch {
		case r.Level >= slog.LevelError:
			t.events.Error(windows.EventFailed, text.String())
		default:
			t.events.Warn(windows.EventTrouble, text.String())
		}
	}
	return t.Handler.Handle(ctx, r)
}

// WithAttrs keeps the attributes for both.
func (t *teller) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *t
	next.Handler, next.with = t.Handler.WithAttrs(attrs), append(append([]slog.Attr(nil), t.with...), attrs...)
	return &next
}
