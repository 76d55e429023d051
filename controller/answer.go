package controller

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// maxBody bounds a request body, maxLogBody one with log lines: a worker may send 1000 of 16,384 characters at once
// (protocol §6.8), which take up to three bytes each and more when they are escaped.
const (
	maxBody    = 8 << 20
	maxLogBody = 64 << 20
	believed   = 64 << 10 // memory that is taken because a header announces so much
)

// result is the envelope of the environment and log services, agentResult that of dispatch (protocol §1.3).
type result struct {
	Status  int     `json:"status"`
	Message *string `json:"message"`
	Data    any     `json:"data"`
}

type agentResult struct {
	result
	AgentStatus *wire.AgentStatus `json:"agentStatus"`
}

func ok(w http.ResponseWriter, data any) { answer(w, http.StatusOK, result{Data: data}) }

func okAgent(w http.ResponseWriter, status wire.AgentStatus, data any) {
	answer(w, http.StatusOK, agentResult{result: result{Data: data}, AgentStatus: &status})
}

// refuse answers with an HTTP status and, in the envelope, the same number (protocol §1.8).
func refuse(w http.ResponseWriter, code int, message string) {
	answer(w, code, result{Status: code, Message: &message})
}

// refuseUnwritten is the answer to what is not on disk: of a full one 507, with what to do.
func refuseUnwritten(w http.ResponseWriter, what string, err error) {
	var full *StorageError
	if errors.As(err, &full) {
		refuse(w, full.status(), what+": "+full.Error())
		return
	}
	refuse(w, http.StatusInternalServerError, what+" could not be written")
}

// notNow is the answer to what is not ok without being an error of HTTP.
func notNow(w http.ResponseWriter, message string) {
	answer(w, http.StatusOK, result{Status: 1, Message: &message})
}

// tooOften is the answer to a call that comes before its time (protocol §1.8).
func tooOften(w http.ResponseWriter) { notNow(w, "request too frequently") }

func answer(w http.ResponseWriter, code int, v any) {
	_ = send(w, code, v) // a client that has gone cannot be told so
}

// send writes a JSON answer and reports what the connection said.
func send(w http.ResponseWriter, code int, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(code)
	if _, err := w.Write(data); err != nil {
		return err
	}
	if err := http.NewResponseController(w).Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// readBody reads a request body of at most maxBody bytes and refuses longer ones.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, bool) { return readUpTo(w, r, maxBody) }

func readUpTo(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, bool) {
	var data []byte
	var err error
	if body, fetched := r.Body.(*fetchedBody); fetched && int64(len(body.data)) <= limit {
		data, err = body.data, body.err
	} else {
		data, err = wholeBody(w, r, limit)
	}
	if err != nil {
		var long *http.MaxBytesError
		if errors.As(err, &long) {
			refuse(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("body longer than %d bytes", limit))
		} else {
			refuse(w, http.StatusBadRequest, "body: "+err.Error())
		}
		return nil, false
	}
	return data, true
}

// wholeBody reads a body of at most limit bytes, one that is announced and small into memory of its own size.
func wholeBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	n := r.ContentLength
	if n < 0 || n > min(limit, believed) {
		return io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	}
	data := make([]byte, n)
	_, err := io.ReadFull(r.Body, data)
	return data, err
}

// read decodes a JSON request body into v and refuses what does not fit, or lacks one of the members that must be
// there and not null, with status 400 (protocol §1.8). Unknown members are ignored.
func read(w http.ResponseWriter, r *http.Request, v any, required ...string) bool {
	data, ok := readBody(w, r)
	if !ok {
		return false
	}
	if err := decode(data, v, required...); err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return false
	}
	return true
}

func decode(data []byte, v any, required ...string) error {
	if len(required) > 0 && !allPresent(data, required) {
		var members map[string]json.RawMessage
		if err := json.Unmarshal(data, &members); err != nil {
			return fmt.Errorf("body: %w", err)
		}
		if err := present("", members, required); err != nil {
			return err
		}
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("body: %w", err)
	}
	return nil
}

func present(where string, members map[string]json.RawMessage, required []string) error {
	for _, name := range required {
		name, inner, nested := strings.Cut(name, ".")
		value := members[name]
		if len(value) == 0 || bytes.Equal(value, []byte("null")) {
			return fmt.Errorf("body: %s%s is missing", where, name)
		}
		if !nested {
			continue
		}
		var part map[string]json.RawMessage
		if err := json.Unmarshal(value, &part); err != nil {
			return fmt.Errorf("body: %s%s: %w", where, name, err)
		}
		if err := present(where+name+".", part, []string{inner}); err != nil {
			return err
		}
	}
	return nil
}

// identity reads the headers of a caller (protocol §1.2). A blank one is an error.
func identity(r *http.Request) (wire.Identity, error) {
	id := wire.Identity{Project: r.Header.Get(wire.HeaderProject), Agent: r.Header.Get(wire.HeaderAgent), Secret: wire.Secret(r.Header.Get(wire.HeaderSecret))}
	for _, one := range [...]struct{ name, value string }{{wire.HeaderProject, id.Project}, {wire.HeaderAgent, id.Agent},
		{wire.HeaderSecret, string(id.Secret)}, {wire.HeaderBuildType, r.Header.Get(wire.HeaderBuildType)}} {
		if strings.TrimSpace(one.value) == "" {
			return wire.Identity{}, fmt.Errorf("header %s is missing", one.name)
		}
	}
	return id, nil
}

// preferredWait reads "Prefer: wait=N" (RFC 7240 §4.3) and announces that it will be kept, at most maxWait. 0 means
// that the client did not ask.
func preferredWait(w http.ResponseWriter, r *http.Request) time.Duration {
	for _, line := range r.Header.Values(wire.HeaderPrefer) {
		for item := range strings.SplitSeq(line, ",") {
			item, _, _ = strings.Cut(item, ";")
			name, value, _ := strings.Cut(item, "=")
			if !strings.EqualFold(strings.TrimSpace(name), "wait") {
				continue
			}
			seconds, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(value), `"`), 10, 31)
			if err != nil || seconds == 0 {
				return 0
			}
			wait := min(time.Duration(seconds)*time.Second, maxWait)
			w.Header().Set(wire.HeaderPreferApplied, fmt.Sprintf("wait=%d", int(wait/time.Second)))
			return wait
		}
	}
	return 0
}

// attachment names a download.
func attachment(w http.ResponseWriter, name string) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": name}))
}
