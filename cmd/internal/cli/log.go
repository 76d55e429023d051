package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/coreos/go-systemd/v22/journal"
	"gopkg.in/natefinch/lumberjack.v2"
)

// LogOptions say where a program's log goes and how long it is kept.
type LogOptions struct {
	File      string     // path of the log; "" for none
	MaxSizeMB int        // a file is closed at this size; 0 means 100
	KeepDays  int        // rotated files are removed after so many days; 0 means 7 (protocol §2.3)
	KeepFiles int        // at most so many rotated files; 0 means 7 (protocol §2.3)
	Level     slog.Level // what is less important is not written
	Console   io.Writer  // a second place for every line, nil for none
	Fallback  io.Writer  // gets the lines that File does not take, as on a full disk, when there is no Console; nil for none
}

// Log is a program's log: a line a record, in the form of protocol §2.3:
//
//	2006-01-02 15:04:05.000|INFO|Build started build=b-1 vm_seq=1
//
// Under systemd, where standard error is the journal, every record goes there as well, with its attributes as fields.
// Close it at the end. Hide a secret before anything is logged that could repeat it.
type Log struct {
	*slog.Logger
	sink  *sink
	level *slog.LevelVar
	file  *lumberjack.Logger
}

// OpenLog makes the log and its directory. The file itself is opened with the first line.
func OpenLog(o LogOptions) (*Log, error) {
	l := &Log{sink: &sink{console: o.Console, fallback: o.Fallback}, level: &slog.LevelVar{}}
	l.level.Set(o.Level)
	if o.File != "" {
		if err := os.MkdirAll(filepath.Dir(o.File), 0o700); err != nil {
			return nil, fmt.Errorf("open log: %w", err)
		}
		l.file = &lumberjack.Logger{Filename: o.File, LocalTime: true,
			MaxSize: or(o.MaxSizeMB, 100), MaxAge: or(o.KeepDays, 7), MaxBackups: or(o.KeepFiles, 7)}
		l.sink.file = l.file
	}
	var handler slog.Handler = &lineHandler{sink: l.sink, level: l.level}
	if toJournal(o) {
		handler = slog.NewMultiHandler(handler, journaled(l, o, journal.Send))
	}
	l.Logger = slog.New(handler)
	return l, nil
}

func or(value, otherwise int) int {
	if value == 0 {
		return otherwise
	}
	return value
}

// Hide makes the log write "(secret)" wherever a line would hold this text, plain, quoted, or written as JSON or in
// an address does it. Texts of fewer than four characters are not secrets and are left alone.
func (l *Log) Hide(secret string) {
	if len(secret) < 4 {
		return
	}
	l.sink.mu.Lock()
	defer l.sink.mu.Unlock()
	for _, form := range forms(secret) {
		if !slices.ContainsFunc(l.sink.hidden, func(h []byte) bool { return string(h) == form }) {
			l.sink.hidden = append(l.sink.hidden, []byte(form))
		}
	}
	// The longest first: of two secrets, one may be the beginning of the other.
	slices.SortFunc(l.sink.hidden, func(a, b []byte) int { return len(b) - len(a) })
}

// forms are the texts as which a secret can get into a line.
func forms(secret string) []string {
	inner := func(s string) string { q := strconv.Quote(s); return q[1 : len(q)-1] }
	text := strings.ToValidUTF8(secret, "\ufffd")
	list := []string{text, printable(text), url.QueryEscape(secret), url.PathEscape(secret)}
	if asJSON, err := json.Marshal(text); err == nil {
		list = append(list, string(asJSON[1:len(asJSON)-1]))
	}
	for _, form := range append(slices.Clone(list), secret) {
		list = append(list, inner(form), inner(inner(form)))
	}
	return slices.DeleteFunc(list, func(form string) bool { return len(strings.TrimSpace(form)) < 4 })
}

// SetLevel changes what is written from now on.
func (l *Log) SetLevel(level slog.Level) { l.level.Set(level) }

// RotateDaily closes the file at each local midnight and begins a new one (protocol §2.3), until ctx ends.
func (l *Log) RotateDaily(ctx context.Context) error {
	if l.file == nil {
		return nil
	}
	daily(ctx, func() {
		if info, err := os.Stat(l.file.Filename); err == nil && info.Size() > 0 {
			if err := l.file.Rotate(); err != nil {
				l.Warn("Log not rotated", "err", err)
			}
		}
	})
	return nil
}

// daily calls do at each local midnight until ctx ends.
func daily(ctx context.Context, do func()) {
	now := time.Now()
	for {
		next := nextMidnight(now)
		timer := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		do()
		if now = time.Now(); now.Before(next) { // the wall clock was set back: once a day is enough
			now = next
		}
	}
}

// nextMidnight is when the day after now begins: at one o'clock where the clocks skip midnight that night.
// time.Date alone may answer with an hour before it, at which a loop would turn and turn.
func nextMidnight(now time.Time) time.Time {
	for hour := 0; ; hour++ {
		next := time.Date(now.Year(), now.Month(), now.Day()+1, hour, 0, 0, 0, now.Location())
		if next.Day() != now.Day() {
			return next
		}
	}
}

// Close closes the file.
func (l *Log) Close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

// sink writes whole lines. A full disk costs the line, never the program.
type sink struct {
	mu       sync.Mutex
	hidden   secrets
	file     io.Writer
	console  io.Writer
	fallback io.Writer
}

// secrets are texts that are not written, the longest first.
type secrets [][]byte

func (list secrets) hide(text []byte) []byte {
	for _, secret := range list {
		text = bytes.ReplaceAll(text, secret, []byte("(secret)"))
	}
	return text
}

// hide writes "(secret)" where a text holds one.
func (s *sink) hide(text []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hidden.hide(text)
}

// write takes a line without its end.
func (s *sink) write(line []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	line = append(s.hidden.hide(line), '\n')
	second := s.console
	if s.file != nil {
		if _, err := s.file.Write(line); err != nil && second == nil {
			second = s.fallback
		}
	}
	if second != nil {
		_, _ = second.Write(line)
	}
}

// lineHandler is slog in the line form of protocol §2.3.
type lineHandler struct {
	sink  *sink
	level slog.Leveler
	attrs []byte // written out, each with a blank before it
	group string // "a.b." in front of names
}

// Enabled compares with the level in force.
func (h *lineHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.level.Level()
}

// Handle writes one record as one line.
func (h *lineHandler) Handle(_ context.Context, r slog.Record) error {
	line := make([]byte, 0, 256)
	line = r.Time.AppendFormat(line, "2006-01-02 15:04:05.000")
	line = append(line, '|')
	line = append(line, r.Level.String()...)
	line = append(line, '|')
	line = append(line, printable(r.Message)...)
	line = append(line, h.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		line = appendAttr(line, h.group, a)
		return true
	})
	h.sink.write(line)
	return nil
}

// WithAttrs writes the attributes out once.
func (h *lineHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	next.attrs = slices.Clip(h.attrs)
	for _, a := range attrs {
		next.attrs = appendAttr(next.attrs, h.group, a)
	}
	return &next
}

// WithGroup puts the name in front of those that follow.
func (h *lineHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	next := *h
	next.group = h.group + plainKey(name) + "."
	return &next
}

func appendAttr(line []byte, group string, a slog.Attr) []byte {
	value := a.Value.Resolve()
	if value.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += plainKey(a.Key) + "."
		}
		for _, inner := range value.Group() {
			line = appendAttr(line, group, inner)
		}
		return line
	}
	if a.Key == "" || value.Kind() == slog.KindAny && value.Any() == nil {
		return line // an err=<nil> says nothing
	}
	text := value.String()
	if strings.ContainsAny(text, " \t\"=|") || text == "" || printable(text) != text {
		text = strconv.Quote(text)
	}
	line = append(line, ' ')
	line = append(line, group...)
	line = append(line, plainKey(a.Key)...)
	line = append(line, '=')
	return append(line, text...)
}

// printable keeps a record on its line and a terminal in its state, whatever a server said: no control characters,
// no line separators, nothing that turns the direction of what follows.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsControl(r), r == '\u2028', r == '\u2029', unicode.Is(unicode.Bidi_Control, r):
			return ' '
		}
		return r
	}, s)
}

// plainKey makes a word of a name.
func plainKey(s string) string {
	return strings.Map(func(r rune) rune {
		if r == ' ' || r == '=' || r == '|' || r == '"' || r == utf8.RuneError || !unicode.IsPrint(r) {
			return '_'
		}
		return r
	}, s)
}
