package worker

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// openLog opens the worker's own log, logs/PREFIX.log below dir, and returns it with what closes it. When it cannot
// be opened the log goes nowhere and the error says why: a build is not refused for it.
func openLog(dir, prefix string, mask *masker) (*slog.Logger, io.Closer, error) {
	logs := filepath.Join(dir, "logs")
	err := os.MkdirAll(logs, 0o700)
	if err == nil {
		var f *os.File
		if f, err = os.OpenFile(filepath.Join(logs, prefix+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err == nil {
			return slog.New(&lines{w: f, mu: &sync.Mutex{}, mask: mask}), f, nil
		}
	}
	return slog.New(slog.DiscardHandler), io.NopCloser(nil), fmt.Errorf("open log: %w", err)
}

// lines is a slog.Handler for the line form of protocol §2.3: time|level|message, attributes behind the message.
type lines struct {
	mu     *sync.Mutex
	w      io.Writer
	mask   *masker
	prefix string // of attribute names, from WithGroup
	attrs  string
}

func (l *lines) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

func (l *lines) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(r.Time.Format("2006-01-02 15:04:05.000") + "|" + strings.ToLower(r.Level.String()) + "|" + flat(r.Message) + l.attrs)
	r.Attrs(func(a slog.Attr) bool {
		b.WriteString(l.attr(a))
		return true
	})
	b.WriteByte('\n')
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := io.WriteString(l.w, l.mask.Mask(b.String()))
	return err
}

func (l *lines) attr(a slog.Attr) string {
	return " " + l.prefix + a.Key + "=" + flat(a.Value.Resolve().String())
}

func (l *lines) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *l
	for _, a := range attrs {
		next.attrs += l.attr(a)
	}
	return &next
}

func (l *lines) WithGroup(name string) slog.Handler {
	next := *l
	next.prefix += name + "."
	return &next
}

// flat keeps a record on one line.
func flat(s string) string { return strings.NewReplacer("\r", `\r`, "\n", `\n`).Replace(s) }
