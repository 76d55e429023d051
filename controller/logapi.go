package controller

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// maxLine bounds one log line in bytes; workers cut theirs at 16,384 characters (protocol §6.8).
const maxLine = 128 << 10

// maxLines bounds the lines of one call; workers send 1000 (protocol §6.8).
const maxLines = 100_000

// statusLogFull tells a worker to keep the rest of a log to itself (protocol §6.8).
const statusLogFull = 509

// logLines takes log lines, one or many of them. They are acknowledged when they are on disk. Lines of a build that is over are welcome:
// the agent may have something to say about its end. kind is the type of lines that have none.
func (s *Server) logLines(kind string, many bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, b := s.session(r)
		if b == nil {
			buildEnded(w)
			return
		}
		data, read := readUpTo(w, r, maxLogBody)
		if !read {
			return
		}
		lines, err := decodeLines(data, kind, many)
		if err != nil {
			refuse(w, http.StatusBadRequest, err.Error())
			return
		}
		if len(lines) == 0 {
			ok(w, true)
			return
		}
		batch, err := strconv.ParseInt(r.Header.Get(wire.HeaderLogBatch), 10, 64)
		if err != nil {
			batch = 0 // an original worker, or the agent
		}
		s.mu.Lock()
		hidden := b.covered
		s.mu.Unlock()
		maskLines(lines, hidden)
		s.mu.Lock()
		b.beat = time.Now()
		if b.LogGone { // half a log says less than none
			s.mu.Unlock()
			ok(w, true)
			return
		}
		full := b.lines >= s.opts.MaxLogLines
		var t *ticket
		if !full {
			t = s.store.appendLog(b.Number, batch, lines)
		}
		s.mu.Unlock()
		if full {
			message := fmt.Sprintf("more than %d lines", s.opts.MaxLogLines)
			answer(w, http.StatusOK, result{Status: statusLogFull, Message: &message})
			return
		}
		if err := t.wait(); err != nil {
			s.unwritten("Log lines could not be written", err, "build", b.ID)
			refuse(w, http.StatusServiceUnavailable, "the lines could not be written; try again")
			return
		}
		s.mu.Lock()
		b.lines = max(b.lines, lines[len(lines)-1].Seq)
		b.notify()
		s.mu.Unlock()
		ok(w, true)
	}
}

// decodeLines reads the body of a log call: one line, or an array of them. Lines keep their order. A text with line
// breaks in it becomes several lines.
func decodeLines(data []byte, kind string, many bool) ([]Line, error) {
	var in []wire.LogLine
	if many {
		if err := decode(data, &in); err != nil {
			return nil, err
		}
	} else {
		in = make([]wire.LogLine, 1)
		if err := decode(data, &in[0], "message"); err != nil {
			return nil, err
		}
	}
	lines := make([]Line, 0, len(in))
	for _, l := range in {
		line := Line{At: l.Timestamp, Tag: clip(l.Tag, 128), Type: l.LogType}
		if l.SubTag != nil {
			line.SubTag = clip(*l.SubTag, 128)
		}
		switch line.Type {
		case wire.LogNormal, wire.LogDebug, wire.LogError, wire.LogWarn:
		default:
			line.Type = kind
		}
		if kind != wire.LogNormal {
			line.Type = kind
		}
		for text := range strings.SplitSeq(strings.TrimSuffix(l.Message, "\n"), "\n") {
			line.Message = clip(strings.TrimSuffix(text, "\r"), maxLine)
			if lines = append(lines, line); len(lines) > maxLines {
				return nil, fmt.Errorf("body: more than %d lines", maxLines)
			}
		}
	}
	return lines, nil
}

// logDone answers the calls that say where a log ended and is kept: we keep it all, so there is nothing to note.
func (s *Server) logDone(w http.ResponseWriter, r *http.Request) {
	if _, b := s.session(r); b == nil {
		buildEnded(w)
		return
	}
	if _, read := readBody(w, r); read {
		ok(w, true)
	}
}

// logRoutes adds the log calls below a prefix (protocol §1.6.12, §6.8).
func (s *Server) logRoutes(mux *http.ServeMux, prefix string) {
	mux.HandleFunc("POST "+prefix, s.logLines(wire.LogNormal, false))
	mux.HandleFunc("POST "+prefix+"/red", s.logLines(wire.LogError, false))
	mux.HandleFunc("POST "+prefix+"/yellow", s.logLines(wire.LogWarn, false))
	mux.HandleFunc("POST "+prefix+"/multi", s.logLines(wire.LogNormal, true))
	mux.HandleFunc("PUT "+prefix+"/status", s.logDone)
	mux.HandleFunc("POST "+prefix+"/mode", s.logDone)
}

// logEvent is one line of the followed log: a line, or the build when it changed. The last event holds the build in
// its end state.
type logEvent struct {
	Line  *Line  `json:"line,omitempty"`
	Build *Build `json:"build,omitempty"`
}

// logPage is how many lines are read at once.
const logPage = 2000

// buildLog is GET /api/v1/builds/{id}/log?after=N[&follow=true]: JSON objects, one a line. Each is {"line": {…}} or, when
// following, {"build": {…}} whenever the build has changed; all lines that a build's change comes after are sent before it.
func (s *Server) buildLog(w http.ResponseWriter, r *http.Request) {
	after, err := queryInt(r, "after", 0)
	b, ferr := s.find(r.PathValue("id"))
	if err == nil {
		err = ferr
	}
	if err != nil {
		operatorError(w, err)
		return
	}
	follow := r.URL.Query().Get("follow") == "true"
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	enc, rc := json.NewEncoder(w), http.NewResponseController(w)
	last := ""
	for {
		s.mu.Lock()
		view, changed := s.seen(b), b.changed
		s.mu.Unlock()
		for {
			lines, err := s.store.readLog(b.Number, after, logPage)
			if err != nil {
				s.log.Error("A log could not be read", "build", b.ID, "err", err)
				return
			}
			for i := range lines {
				if enc.Encode(logEvent{Line: &lines[i]}) != nil {
					return
				}
				after = lines[i].Seq
			}
			if len(lines) < logPage {
				break
			}
		}
		if !follow {
			return
		}
		if now := jsonText(view); now != last {
			last = now
			if enc.Encode(logEvent{Build: &view}) != nil {
				return
			}
		}
		if rc.Flush() != nil || view.State.Over() {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		case <-s.closing:
			return
		}
	}
}
