package cli

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

// sendJournal is journal.Send, or what a test has in its place.
type sendJournal func(message string, priority journal.Priority, vars map[string]string) error

// toJournal reports whether the log would write to standard error and that is, or will be again, systemd's journal: then each record goes there
// by the journal's own protocol, with its attributes as fields, and not a second time as a line of text.
func toJournal(o LogOptions) bool {
	stderr := io.Writer(os.Stderr)
	if o.Console != stderr && o.Fallback != stderr {
		return false
	}
	is, err := journal.StderrIsJournalStream()
	if err == nil && !is && os.Getenv(EnvStderr) != "" { // a version on trial: its standard error is a file for now
		is, err = journal.StdoutIsJournalStream()
	}
	return err == nil && is
}

// EnvStderr holds the number of the descriptor that was standard error before "upgrader start" gave a version on trial a file in
// its place. The agent puts it back when it has proved itself.
const EnvStderr = "DEVOPS_STDERR_FD"

// journaled takes the journal as a log's second place: standard error no longer is one.
func journaled(l *Log, o LogOptions, send sendJournal) slog.Handler {
	stderr := io.Writer(os.Stderr)
	if l.sink.console == stderr {
		l.sink.console = nil
	}
	if l.sink.fallback == stderr {
		l.sink.fallback = nil
	}
	name := strings.TrimSuffix(filepath.Base(o.File), filepath.Ext(o.File))
	if o.File == "" {
		name = filepath.Base(os.Args[0])
	}
	return &journalHandler{line: lineHandler{sink: l.sink, level: l.level}, send: send, name: name, stderr: stderr}
}

// field is one of the journal: DEVOPS_BUILD=b-1.
type field struct{ name, value string }

// journalHandler is slog in the fields of systemd.journal-fields(7): MESSAGE is the sentence with its attributes, as in the log
// file, because journalctl shows nothing else by default; and each attribute is a field of its own, to select by:
//
//	journalctl -u devops-agent DEVOPS_BUILD=b-1
type journalHandler struct {
	line   lineHandler // attributes written out, level, secrets
	fields []field
	send   sendJournal
	name   string    // SYSLOG_IDENTIFIER
	stderr io.Writer // gets the line when the journal does not take it
}

// Enabled compares with the level in force.
func (h *journalHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.line.Enabled(ctx, level)
}

// Handle sends one record.
func (h *journalHandler) Handle(_ context.Context, r slog.Record) error {
	text := append([]byte(printable(r.Message)), h.line.attrs...)
	fields := slices.Clip(h.fields)
	r.Attrs(func(a slog.Attr) bool {
		text = appendAttr(text, h.line.group, a)
		fields = appendFields(fields, h.line.group, a)
		return true
	})
	vars := map[string]string{"SYSLOG_IDENTIFIER": h.name}
	for _, f := range fields {
		vars[f.name] = string(h.line.sink.hide([]byte(f.value)))
	}
	message := h.line.sink.hide(text)
	if err := h.send(string(message), priority(r.Level), vars); err != nil {
		_, _ = h.stderr.Write(append(message, '\n'))
	}
	return nil
}

// WithAttrs keeps the attributes for every record.
func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	next.line = *h.line.WithAttrs(attrs).(*lineHandler)
	next.fields = slices.Clip(h.fields)
	for _, a := range attrs {
		next.fields = appendFields(next.fields, h.line.group, a)
	}
	return &next
}

// WithGroup puts the name in front of those that follow.
func (h *journalHandler) WithGroup(name string) slog.Handler {
	next := *h
	if grouped, ok := h.line.WithGroup(name).(*lineHandler); ok {
		next.line = *grouped
	}
	return &next
}

func priority(level slog.Level) journal.Priority {
	switch {
	case level >= slog.LevelError:
		return journal.PriErr
	case level >= slog.LevelWarn:
		return journal.PriWarning
	case level >= slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}

func appendFields(fields []field, group string, a slog.Attr) []field {
	value := a.Value.Resolve()
	if value.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, inner := range value.Group() {
			fields = appendFields(fields, group, inner)
		}
		return fields
	}
	if a.Key == "" || value.Kind() == slog.KindAny && value.Any() == nil {
		return fields
	}
	return append(fields, field{fieldName(group + a.Key), strings.ToValidUTF8(value.String(), "\ufffd")})
}

// maxFieldName is how long the journal lets a name be.
const maxFieldName = 64

// fieldName makes a name of the journal out of an attribute's: capitals, digits and underscores, with our prefix, so that nobody
// takes it for one of the journal's own.
func fieldName(key string) string {
	name := "DEVOPS_" + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key)
	return name[:min(len(name), maxFieldName)]
}
