package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"
)

// envelope is both Result and AgentResult (protocol §1.3). Status is a pointer: an answer without one is no
// envelope, whatever else it is.
type envelope struct {
	Status      *int            `json:"status"`
	Message     json.RawMessage `json:"message"`
	Data        json.RawMessage `json:"data"`
	AgentStatus json.RawMessage `json:"agentStatus"`
	ErrorCode   json.RawMessage `json:"errorCode"`
}

// StatusError is an answer that says no: an HTTP status outside 2xx, or a status other than 0 in the envelope
// (protocol §1.3, §1.8). It never carries more than a line of what the server said.
type StatusError struct {
	Op         string        // the call, as in "startup"
	HTTP       int           // HTTP status
	Code       int           // status in the envelope, 0 when there was none
	ErrorCode  int           // errorCode in the body, as a worker's gateway sends it; 0 when there was none
	Message    string        // first line of the server's text, at most 200 characters
	Body       string        // the answer as it came, at most 2048 bytes; for a worker's error file
	RetryAfter time.Duration // from the header of the same name, 0 when there was none
}

// Error says what was asked and what the server answered.
func (e *StatusError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: server answered", e.Op)
	if e.HTTP != http.StatusOK {
		fmt.Fprintf(&b, " HTTP %d", e.HTTP)
	}
	if e.Code != 0 && e.Code != e.HTTP {
		fmt.Fprintf(&b, " status %d", e.Code)
	}
	if e.HTTP == http.StatusOK && e.Code == 0 {
		b.WriteString(" no")
	}
	if e.Message != "" {
		b.WriteString(": " + e.Message)
	}
	return b.String()
}

// Hint says what an operator can do about it, "" when nothing is known.
func (e *StatusError) Hint() string {
	switch {
	case e.HTTP == http.StatusUnauthorized && e.ErrorCode == 0: // with one, a worker's session is over
		return "the server does not accept devops.agent.id with this devops.agent.secret.key; enrol the machine again"
	case e.HTTP == http.StatusProxyAuthRequired:
		return "a proxy wants a login; check the proxy settings in agent.toml and the environment"
	case e.HTTP == http.StatusBadRequest && wantsTLS(e.Body):
		return "the server speaks TLS now, and landun.gateway in .agent.properties has no https://: enrol the machine again at its https:// address (devopsAgent enroll --again; with --pin for a certificate that nobody vouches for)"
	}
	return ""
}

// wantsTLS reports whether a server says that it was spoken to without TLS at a port for TLS: one in Go, nginx, Apache.
func wantsTLS(body string) bool {
	for _, sentence := range []string{"Client sent an HTTP request to an HTTPS server", "plain HTTP request was sent to HTTPS port", "speaking plain HTTP to an SSL-enabled server port"} {
		if strings.Contains(body, sentence) {
			return true
		}
	}
	return false
}

// BodyError is an answer that is not what the protocol says: no JSON, half a body, an HTML page, a wrong type.
type BodyError struct {
	Op   string
	Type string // Content-Type of the answer
	Err  error
}

// Error says which call brought what kind of nonsense.
func (e *BodyError) Error() string {
	kind := e.Type
	if kind == "" {
		kind = "no content type"
	}
	return fmt.Sprintf("%s: unusable answer (%s): %v", e.Op, oneLine(kind), e.Err)
}

// Unwrap returns the cause.
func (e *BodyError) Unwrap() error { return e.Err }

// Hint guesses at the usual reason.
func (e *BodyError) Hint() string {
	if strings.Contains(e.Type, "html") {
		return "a web page came back: a proxy or a wrong landun.gateway in .agent.properties"
	}
	return ""
}

// Answer is a decoded envelope that said ok.
type Answer struct {
	Data        json.RawMessage // nil when absent or null
	AgentStatus AgentStatus     // "" when absent, null or not a text
	Waited      bool            // the server said Preference-Applied: wait (RFC 7240)
}

// decodeEnvelope turns the body of one HTTP answer into an Answer or an error.
func decodeEnvelope(op string, code int, header http.Header, body []byte) (Answer, error) {
	var env envelope
	err := json.Unmarshal(body, &env)
	if code < 200 || code > 299 {
		refused := &StatusError{Op: op, HTTP: code, RetryAfter: retryAfter(header), Body: clip(string(body), 2048)}
		refused.fill(env) // of a body that is no envelope, nothing
		return Answer{}, refused
	}
	if err == nil && env.Status == nil {
		err = errors.New("no status in it")
	}
	if err != nil {
		return Answer{}, &BodyError{Op: op, Type: header.Get("Content-Type"), Err: brief(err)}
	}
	if *env.Status != 0 {
		refused := &StatusError{Op: op, HTTP: code, RetryAfter: retryAfter(header), Body: clip(string(body), 2048)}
		refused.fill(env)
		return Answer{}, refused
	}
	answer := Answer{Data: env.Data, Waited: waited(header)}
	if bytes.Equal(answer.Data, []byte("null")) {
		answer.Data = nil
	}
	_ = json.Unmarshal(env.AgentStatus, &answer.AgentStatus) // null and other types read as "" (protocol §1.3)
	return answer, nil
}

func (e *StatusError) fill(env envelope) {
	if env.Status != nil {
		e.Code = *env.Status
	}
	if json.Unmarshal(env.ErrorCode, &e.ErrorCode) != nil {
		e.ErrorCode = 0
	}
	var text string
	if json.Unmarshal(env.Message, &text) == nil {
		e.Message = oneLine(text)
	}
}

// Part decodes one part of an answer into v and reports whether there was one: a null or missing part leaves v
// alone. After an error v is half filled.
func Part(op string, raw json.RawMessage, v any) (bool, error) {
	if len(raw) == 0 || bytes.Equal(raw, []byte("null")) {
		return false, nil
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return false, fmt.Errorf("%s: %w", op, brief(err))
	}
	return true, nil
}

// brief keeps what encoding/json quotes of a body, a number of a million digits for one, out of a log.
func brief(err error) error {
	if text := err.Error(); len(text) > 300 {
		return errors.New(oneLine(text))
	}
	return err
}

// oneLine cuts a server's text to one printable line of at most 200 characters.
func oneLine(s string) string {
	s = strings.TrimSpace(s)
	if i := strings.IndexAny(s, "\r\n"); i >= 0 {
		s = s[:i]
	}
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) { // C1 as well: U+009B begins a terminal sequence
			return -1
		}
		return r
	}, s)
	if r := []rune(s); len(r) > 200 {
		s = string(r[:200]) + "…"
	}
	return s
}

func clip(s string, n int) string {
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "")
	}
	return s
}
