package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/service/control"
)

// clockWrong is how far this machine's clock may be from the server's before that is a problem of its own: tokens and
// certificates are valid for days, logs are read side by side.
const clockWrong = 5 * time.Minute

// health is what is known of the server: the last word of and to it.
type health struct {
	mu      sync.Mutex
	contact time.Time // last good answer
	failing time.Time // first of the failures in a row, zero while there is none
	err     error     // the last of them
	status  wire.AgentStatus
	offset  time.Duration // how far this machine's clock is ahead
	dated   bool          // some answer has said what time it is
}

// good notes a good answer, and reports whether that is news.
func (h *health) good(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	news := h.contact.IsZero() || h.err != nil
	h.contact, h.failing, h.err = now, time.Time{}, nil
	return news
}

// bad notes a failure, and reports whether that is news. Our own end is none.
func (h *health) bad(ctx context.Context, now time.Time, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	news := h.err == nil
	if h.failing.IsZero() {
		h.failing = now
	}
	h.err = err
	return news
}

// says notes what the server takes this agent for.
func (h *health) says(status wire.AgentStatus) {
	if status == "" {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.status = status
}

// server is the state of all that.
func (h *health) server() control.Server {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := control.Server{AgentStatus: string(h.status)}
	if !h.contact.IsZero() {
		at := h.contact
		s.LastContact = &at
	}
	if h.dated {
		seconds := math.Trunc(h.offset.Seconds()) + 0 // the header has whole seconds; and no -0
		s.ClockOffset = &seconds
	}
	switch {
	case h.err != nil:
		at := h.failing
		s.Failing, s.Error, s.Problem = &at, h.err.Error(), problem(h.err, h.dated && h.offset.Abs() > clockWrong)
		var hinter interface{ Hint() string }
		if errors.As(h.err, &hinter) {
			s.Hint = hinter.Hint()
		}
	case h.status == wire.Deleted:
		s.Problem = control.Deleted
	case h.dated && h.offset.Abs() > clockWrong:
		s.Problem, s.Error = control.Clock, "this machine's clock is "+ahead(h.offset)+" the server's"
	}
	return s
}

func ahead(offset time.Duration) string {
	if offset < 0 {
		return (-offset).Round(time.Second).String() + " behind"
	}
	return offset.Round(time.Second).String() + " ahead of"
}

// problem is the kind of an error; clock says that this machine's clock is known to be wrong.
func problem(err error, clock bool) control.Problem {
	var refused *wire.StatusError
	var nonsense *wire.BodyError
	switch {
	case errors.As(err, &refused):
		switch {
		case refused.HTTP == http.StatusUnauthorized, refused.HTTP == http.StatusForbidden,
			refused.Code == http.StatusUnauthorized, refused.Code == http.StatusForbidden,
			// A dispatch endpoint says so in an envelope; one that is not there has none (protocol §1.8).
			refused.HTTP == http.StatusNotFound && refused.Code == http.StatusNotFound:
			return control.Refused
		}
		return control.ServerError
	case errors.As(err, &nonsense):
		return control.ServerError
	}
	return transportProblem(err, clock)
}

// transportProblem looks into TLS: a certificate that is out of its time may be the clock's fault. One that begins in
// the future is: nobody serves such a certificate. One that has ended is taken at its word, unless an answer has told
// that our clock is wrong.
func transportProblem(err error, clock bool) control.Problem {
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	outOfTime := errors.As(err, &invalid) && invalid.Reason == x509.Expired ||
		errors.As(err, &unknown) && strings.Contains(err.Error(), "not yet valid") // the authority's own; in its text only
	switch {
	case outOfTime && (clock || strings.Contains(err.Error(), " is before ")):
		return control.Clock
	case errors.As(err, &invalid), errors.As(err, &unknown), errors.As(err, &name), strings.Contains(err.Error(), "x509: "):
		return control.Certificate
	}
	return control.Unreachable
}

// dated reads the time of day from every answer (RFC 9110 §6.6.1).
type dated struct {
	next  http.RoundTripper
	clock *health
}

// RoundTrip is that of the transport below.
func (d *dated) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := d.next.RoundTrip(req)
	if err == nil {
		if there, perr := http.ParseTime(resp.Header.Get("Date")); perr == nil {
			// The header has whole seconds, cut off.
			offset := time.Now().Round(0).Sub(there.Add(500 * time.Millisecond))
			d.clock.mu.Lock()
			d.clock.offset, d.clock.dated = offset, true
			d.clock.mu.Unlock()
		}
	}
	return resp, err
}

// CloseIdleConnections is that of the transport below.
func (d *dated) CloseIdleConnections() {
	if closer, ok := d.next.(interface{ CloseIdleConnections() }); ok {
		closer.CloseIdleConnections()
	}
}

// serverTrouble is a sentence about what is wrong with the server, "" when nothing is.
func serverTrouble(s control.Server, now time.Time) string {
	since := ""
	if s.Failing != nil {
		layout := "15:04"
		if now.Sub(*s.Failing) > 20*time.Hour {
			layout = "2006-01-02 15:04"
		}
		since = " since " + s.Failing.Local().Format(layout) + ": " + brief(s.Error)
	}
	switch s.Problem {
	case control.Refused:
		return "server refuses this agent" + since
	case control.Certificate:
		return "server's certificate is not accepted" + since
	case control.Clock:
		if s.Failing == nil {
			return brief(s.Error)
		}
		return "this machine's clock is wrong" + since
	case control.Deleted:
		return "server says that this agent was deleted"
	case control.ServerError:
		return "server does not answer as it should" + since
	case control.Unreachable:
		return "server unreachable" + since
	}
	return ""
}

// brief cuts an error to what fits on a line of "systemctl status".
func brief(text string) string {
	if r := []rune(text); len(r) > 160 {
		return string(r[:160]) + "…"
	}
	return text
}

func builds(n int) string {
	if n == 1 {
		return "1 build running"
	}
	return fmt.Sprintf("%d builds running", n)
}
