package controller

import (
	"cmp"
	"database/sql"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

// AuditEntry is one action of an operator's, done or refused. No secret and no script is in it.
type AuditEntry struct {
	ID      int64  `json:"id"`               // growing; the oldest are forgotten
	At      int64  `json:"at"`               // when it began, milliseconds since 1970
	Who     string `json:"who"`              // name of the token
	Token   string `json:"token"`            // its id
	Role    Role   `json:"role"`             // of the token
	Address string `json:"address"`          // that the call came from; of the proxy, if there is one
	Via     string `json:"via,omitempty"`    // "page", or nothing for the operator API
	Verb    string `json:"verb"`             // what was to be done, as in builds.cancel
	Object  string `json:"object,omitempty"` // to what: ids of the path, or of what was made
	Name    string `json:"name,omitempty"`   // of what was made
	Outcome string `json:"outcome"`          // ok, refused, failed, or unknown: the controller ended meanwhile, or it is under way
	Status  int    `json:"status,omitempty"` // of HTTP
}

// Outcomes of actions.
const (
	AuditOK      = "ok"
	AuditRefused = "refused"
	AuditFailed  = "failed"
	AuditUnknown = "unknown"
)

// audited reports whether calls of a pattern are noted: all that may change something are.
func audited(pattern string) bool {
	return !strings.HasPrefix(pattern, http.MethodGet+" ") && !strings.HasPrefix(pattern, http.MethodHead+" ")
}

// verbOf names the action of a call: POST /builds/{id}/cancel is builds.cancel, DELETE /agents/{id} is agents.delete.
func verbOf(pattern string) string {
	method, path, _ := strings.Cut(pattern, " ")
	var words []string
	deep := false
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if strings.HasPrefix(part, "{") {
			deep = true
			continue
		}
		words = append(words, part)
	}
	switch {
	case method == http.MethodPost && !deep && len(words) == 1:
		words = append(words, "create")
	case method == http.MethodPut:
		words = append(words, "put")
	case method == http.MethodPatch:
		words = append(words, "change")
	case method == http.MethodDelete:
		words = append(words, "delete")
	}
	return strings.Join(words, ".")
}

// objectOf is what a call names in its path.
func objectOf(r *http.Request, pattern string) string {
	var values []string
	for part := range strings.SplitSeq(pattern, "/") {
		if name, wild := strings.CutPrefix(part, "{"); wild {
			values = append(values, r.PathValue(strings.TrimSuffix(strings.TrimSuffix(name, "}"), "...")))
		}
	}
	return clip(strings.Join(values, "/"), 200)
}

// audit begins an entry. It is enqueued before anything that the action changes, so that no change is on disk without
// it. Call finishAudit when the outcome is known.
func (s *Server) audit(r *http.Request, c caller, pattern string) *AuditEntry {
	e := &AuditEntry{At: millis(time.Now()), Who: c.Name, Token: c.ID, Role: c.Role, Address: r.RemoteAddr, Verb: verbOf(pattern),
		Object: objectOf(r, pattern), Outcome: AuditUnknown}
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		e.Address = host
	}
	if strings.HasPrefix(r.URL.Path, "/page") || strings.HasPrefix(r.URL.Path, "/session") {
		e.Via = "page"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastAudit++
	e.ID = s.lastAudit
	s.saveAudit(e)
	return e
}

// finishAudit notes how an action ended.
func (s *Server) finishAudit(e *AuditEntry, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.Status = status
	switch {
	case status >= 500:
		e.Outcome = AuditFailed
	case status >= 400:
		e.Outcome = AuditRefused
	default:
		e.Outcome = AuditOK
	}
	s.saveAudit(e)
}

// saveAudit enqueues an entry and forgets those that are too old. Call it with the lock held.
func (s *Server) saveAudit(e *AuditEntry) {
	id, doc, oldest := e.ID, jsonText(e), e.ID-int64(s.opts.MaxAudit)
	s.store.enqueue(func(tx *sql.Tx) error {
		if _, err := tx.Exec(`DELETE FROM audit WHERE id <= ?`, oldest); err != nil {
			return err
		}
		_, err := tx.Exec(`INSERT INTO audit (id, doc) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET doc = excluded.doc`, id, doc)
		return err
	}, func(err error) {
		if err != nil {
			s.unwritten("An entry of the audit log could not be written", err, "id", id)
		}
	})
}

// auditWriter notes how a call is answered.
type auditWriter struct {
	http.ResponseWriter
	code         int
	object, name string // of what was made
}

// Unwrap is for http.ResponseController.
func (w *auditWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader notes the first status.
func (w *auditWriter) WriteHeader(code int) {
	if w.code == 0 {
		w.code = code
	}
	w.ResponseWriter.WriteHeader(code)
}

// Write notes status 200 if there was none.
func (w *auditWriter) Write(data []byte) (int, error) {
	w.code = cmp.Or(w.code, http.StatusOK)
	return w.ResponseWriter.Write(data)
}

// made takes the id and the name of what an action made out of its answer.
func (w *auditWriter) made(v any) {
	var m struct {
		ID      any    `json:"id"`
		Version string `json:"version"`
		Name    string `json:"name"`
	}
	data, err := json.Marshal(v)
	if err != nil || json.Unmarshal(data, &m) != nil {
		return
	}
	switch id := m.ID.(type) {
	case string:
		w.object = clip(id, 200)
	case float64:
		w.object = fmt.Sprintf("%.0f", id)
	default:
		w.object = clip(m.Version, 200)
	}
	w.name = clip(m.Name, 200)
}

// withAudit makes a call and notes it, if it may change something.
func (s *Server) withAudit(w http.ResponseWriter, r *http.Request, c caller, pattern string, next http.HandlerFunc) {
	if !audited(pattern) {
		next(w, r)
		return
	}
	e, aw, over := s.audit(r, c, pattern), &auditWriter{ResponseWriter: w}, false
	defer func() {
		e.Object, e.Name = cmp.Or(e.Object, aw.object), aw.name
		status := cmp.Or(aw.code, http.StatusOK)
		if !over { // the answer was broken off: http.ErrAbortHandler
			status = http.StatusInternalServerError
		}
		s.finishAudit(e, status)
	}()
	next(aw, r)
	over = true
}

// Audit lists what operators did, the newest first, at most limit entries with ids below before, if that is not 0.
func (s *Server) Audit(limit int, before int64) ([]AuditEntry, error) {
	s.store.sync() // what was answered is shown
	if before <= 0 {
		before = 1 << 62
	}
	list := []AuditEntry{}
	err := s.store.each(func(scan func(...any) error) error {
		var doc string
		if err := scan(&doc); err != nil {
			return err
		}
		var e AuditEntry
		if err := json.Unmarshal([]byte(doc), &e); err != nil {
			return err
		}
		list = append(list, e)
		return nil
	}, `SELECT doc FROM audit WHERE id < ? ORDER BY id DESC LIMIT ?`, before, limit)
	return list, err
}

// loadAudit finds where the numbers go on.
func (s *Server) loadAudit() error {
	return s.store.each(func(scan func(...any) error) error { return scan(&s.lastAudit) }, `SELECT coalesce(max(id), 0) FROM audit`)
}

// apiAudit is GET /api/v1/audit[?limit=N&before=ID], the newest first.
func (s *Server) apiAudit(w http.ResponseWriter, r *http.Request) {
	limit, err := queryInt(r, "limit", 100)
	before, berr := queryInt(r, "before", 0)
	if err = cmp.Or(err, berr); err != nil {
		operatorError(w, err)
		return
	}
	list, err := s.Audit(int(min(limit, 1000)), before)
	reply(w, list, err)
}
