package worker

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// Where the log of a task was kept (protocol §6.8).
const (
	modeUpload = "UPLOAD"
	modeLocal  = "LOCAL"
)

// Marks inside of log lines (protocol §6.8).
const (
	markDebug   = "##[debug]"
	markError   = "##[error]"
	markWarning = "##[warning]"
	markSub     = "##subTag##"
	markSubEnd  = "##subTagFinish##"
)

// taskLog is the log of one task, or of the job around its tasks.
type taskLog struct {
	up    *uploader
	mask  *masker
	log   *slog.Logger
	base  wire.LogLine // tag, ids and execute count of every line
	limit int          // lines that are uploaded
	file  string       // path for lines that are not uploaded

	order sync.Mutex // held while a line is made and queued, so that time stamps go up in the queue

	mu      sync.Mutex
	count   int
	last    int64 // time stamp of the last line: they never go back
	refused bool  // the server wants no more of it
	over    bool  // more lines than limit
	out     *os.File
	written bool // something is in the file
	lost    bool // the file cannot be written; said once
}

// lineLimit reads loggingLineLimit of BuildVariables: units of 10,000, from 1 to 100 (protocol §6.3).
func lineLimit(units *int) int {
	if units == nil {
		return 100_000
	}
	return min(max(*units, 1), 100) * 10_000
}

// Out takes a line of the script's standard output.
func (t *taskLog) Out(line string) { t.add(line, "") }

// Err takes a line of the script's standard error.
func (t *taskLog) Err(line string) { t.add(line, wire.LogError) }

// Say takes a message of the worker itself; every line of it gets the mark of its type.
func (t *taskLog) Say(logType, format string, args ...any) {
	mark := map[string]string{wire.LogWarn: markWarning, wire.LogError: markError, wire.LogDebug: markDebug}[logType]
	for line := range strings.SplitSeq(strings.TrimRight(fmt.Sprintf(format, args...), "\n"), "\n") {
		if logType == wire.LogError {
			t.add(line, wire.LogError)
		} else {
			t.add(mark+line, "")
		}
	}
}

// add makes log lines of one line of output: sub tag, type, secrets, pieces.
func (t *taskLog) add(line, forced string) {
	logLine := t.base
	finish := ""
	if rest, ok := strings.CutPrefix(line, markSub); ok {
		if name, message, ok := strings.Cut(rest, markSub); ok && name != "" && len(name) <= maxKey {
			logLine.SubTag, line = &name, message
			if message, ok := strings.CutPrefix(line, markSubEnd); ok {
				finish, line = name, message
			}
		}
	}
	logLine.LogType = forced
	if forced == wire.LogError {
		line = markError + line
	} else {
		logLine.LogType = typeOf(line)
	}
	t.order.Lock()
	defer t.order.Unlock()
	t.mu.Lock()
	t.last = max(t.last, time.Now().UnixMilli())
	logLine.Timestamp = t.last
	var entries []entry
	for _, message := range pieces(t.mask.Mask(line)) {
		logLine.Message = message
		t.count++
		switch {
		case t.refused || t.count > t.limit:
			if !t.refused && !t.over {
				t.over = true
				warning := t.base
				warning.LogType, warning.Timestamp = wire.LogWarn, t.last
				warning.Message = fmt.Sprintf("%sthe log has more than %d lines; the rest is only on this machine, in %s", markWarning, t.limit, t.file)
				entries = append(entries, entry{line: warning, task: t})
			}
			t.keepLocked(logLine)
		default:
			entries = append(entries, entry{line: logLine, task: t})
		}
	}
	t.mu.Unlock()
	if finish != "" {
		entries = append(entries, entry{line: logLine, task: t, finish: finish})
	}
	t.up.Add(entries...)
}

func typeOf(line string) string {
	switch {
	case strings.HasPrefix(line, markDebug):
		return wire.LogDebug
	case strings.HasPrefix(line, markError):
		return wire.LogError
	case strings.HasPrefix(line, markWarning):
		return wire.LogWarn
	}
	return wire.LogNormal
}

// refuse ends the upload of this log; isRefused asks for it.
func (t *taskLog) refuse() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refused = true
}

func (t *taskLog) isRefused() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.refused
}

// keep writes a line that was not uploaded to the task's file.
func (t *taskLog) keep(line wire.LogLine) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.keepLocked(line)
}

func (t *taskLog) keepLocked(line wire.LogLine) {
	if t.lost {
		return
	}
	var err error
	if t.out == nil {
		if err = os.MkdirAll(filepath.Dir(t.file), 0o700); err == nil {
			t.out, err = os.OpenFile(t.file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		}
	}
	if err == nil {
		_, err = fmt.Fprintf(t.out, "%s|%s\n", time.UnixMilli(line.Timestamp).Format("2006-01-02 15:04:05.000"), line.Message)
	}
	t.written = t.written || err == nil
	if err != nil {
		t.lost = true
		t.log.Error("Log lines are lost", "task", t.base.Tag, "err", err)
	}
}

func (t *taskLog) modeName() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.refused || t.over {
		return modeLocal
	}
	return modeUpload
}

// kept is the file that holds what was not uploaded, "" when there is none.
func (t *taskLog) kept() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.written {
		return ""
	}
	return t.file
}

// Close closes the file. Lines after that open it again.
func (t *taskLog) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.out != nil {
		_ = t.out.Close()
		t.out = nil
	}
}
