package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxAnswer bounds the body of a JSON answer, after gzip, where a Client sets no bound of its own (weakness W-06 of
// the original: no bound at all).
const maxAnswer = 8 << 20

// maxRetryAfter bounds what a server may ask for in Retry-After.
const maxRetryAfter = 5 * time.Minute

// Probe is a wait so short that it fits into the time limit of an ordinary call: it finds out whether a server
// knows "Prefer: wait" without being kept hanging by one that does not.
const Probe = time.Second

// TimeoutError: the server did not answer completely in time.
type TimeoutError struct{ Limit time.Duration }

// Error names the limit.
func (e *TimeoutError) Error() string { return fmt.Sprintf("no complete answer within %v", e.Limit) }

// Timeout reports true, as net.Error has it.
func (e *TimeoutError) Timeout() bool { return true }

// Client makes the calls of one identity to one gateway. It is a plain value: change the gateway by making
// another one over the same HTTP client.
type Client struct {
	Gateway  string        // landun.gateway; "http://" is put in front of an address without scheme (protocol §1.1)
	Identity Identity      // sent as headers with every call
	HTTP     *http.Client  // see NewHTTPClient
	Timeout  time.Duration // of one whole exchange, body included: devops.agent.request.timeout.sec; 0 means none
	MaxBody  int64         // of an answer, in bytes after gzip; 0 means 8 MiB
}

// BaseURL gives an address without scheme its "http://" and cuts trailing slashes, because every path begins with one.
func BaseURL(gateway string) string {
	gateway = strings.TrimRight(strings.TrimSpace(gateway), "/")
	scheme, _, found := strings.Cut(gateway, "://")
	if !found || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
		return "http://" + gateway
	}
	return strings.ToLower(scheme) + gateway[len(scheme):] // RFC 3986 §3.1: in any letter case
}

// CheckGateway reports why an address cannot be a gateway, nil when it can.
func CheckGateway(gateway string) error {
	u, err := url.Parse(BaseURL(gateway))
	switch {
	case err != nil:
		return fmt.Errorf("gateway %q: %w", oneLine(gateway), err)
	case u.Hostname() == "" || strings.HasSuffix(u.Host, ":"): // "https://" alone reads as a host named https
		return fmt.Errorf("gateway %q: no host name in it", oneLine(gateway))
	case u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("gateway %q: an address, please, without ? and #", oneLine(gateway))
	case u.User != nil:
		return fmt.Errorf("gateway on %q: a login in the address is not supported", u.Host)
	}
	return nil
}

// Call is one JSON exchange.
type Call struct {
	Op      string        // for errors, as in "claim build"
	Method  string        // GET, POST, PUT, DELETE
	Path    string        // begins with a slash
	Query   url.Values    // may be nil
	Body    any           // marshalled for POST and PUT; json.RawMessage is sent as it is; nil sends an empty body
	Header  http.Header   // on top of the identity's
	Wait    time.Duration // > 0 sends "Prefer: wait=N" (RFC 7240); more than Probe lengthens the time limit by as much
	Timeout time.Duration // instead of Client.Timeout when > 0
}

// Do makes the call. Errors: *StatusError when the server said no, *BodyError when it talked nonsense, and
// whatever the transport met (wrapped in the operation's name) otherwise.
func (c *Client) Do(ctx context.Context, call Call) (Answer, error) {
	limit := c.Timeout
	if call.Timeout > 0 {
		limit = call.Timeout
	}
	if call.Wait > Probe && limit > 0 {
		limit += call.Wait
	}
	ctx, cancel := limited(ctx, limit)
	defer cancel()
	req, err := c.request(ctx, call)
	if err != nil {
		return Answer{}, fmt.Errorf("%s: %w", call.Op, err)
	}
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return Answer{}, fmt.Errorf("%s: %w", call.Op, transportError(ctx, err))
	}
	defer func() { _ = resp.Body.Close() }()
	most := c.MaxBody
	if most == 0 {
		most = maxAnswer
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err == nil && int64(len(body)) > most {
		err = fmt.Errorf("longer than %d bytes", most)
	}
	if err != nil {
		if resp.StatusCode < 200 || resp.StatusCode > 299 {
			// who is refused early may be hung up on in the middle of the answer
			return Answer{}, &StatusError{Op: call.Op, HTTP: resp.StatusCode, RetryAfter: retryAfter(resp.Header), Body: clip(string(body), 2048)}
		}
		return Answer{}, &BodyError{Op: call.Op, Type: resp.Header.Get("Content-Type"), Err: transportError(ctx, err)}
	}
	return decodeEnvelope(call.Op, resp.StatusCode, resp.Header, body)
}

// limited is a context that ends with a TimeoutError after limit; 0 means never.
func limited(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if limit <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, limit, &TimeoutError{Limit: limit})
}

func (c *Client) request(ctx context.Context, call Call) (*http.Request, error) {
	var body io.Reader
	sends := call.Method == http.MethodPost || call.Method == http.MethodPut
	if call.Body != nil {
		data, raw := call.Body.(json.RawMessage)
		if !raw {
			var err error
			if data, err = json.Marshal(call.Body); err != nil {
				return nil, err
			}
		}
		body = bytes.NewReader(data)
	} else if sends {
		body = http.NoBody
	}
	address := BaseURL(c.Gateway) + call.Path
	if len(call.Query) > 0 {
		address += "?" + call.Query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, call.Method, address, body)
	if err != nil {
		return nil, err
	}
	c.Identity.sign(req.Header)
	if sends {
		req.Header.Set("Content-Type", ContentType)
	}
	if seconds := int(call.Wait / time.Second); seconds > 0 {
		req.Header.Set(HeaderPrefer, "wait="+strconv.Itoa(seconds))
	}
	for name, values := range call.Header {
		req.Header[name] = values
	}
	return req, nil
}

// sign puts the identity's headers on a request (protocol §1.2).
func (id Identity) sign(h http.Header) {
	h.Set(HeaderBuildType, BuildTypeAgent)
	h.Set(HeaderProject, id.Project)
	h.Set(HeaderAgent, id.Agent)
	h.Set(HeaderSecret, string(id.Secret))
}

// transportError prefers our own reason for giving up over "context deadline exceeded", and drops the address
// that net/http repeats in every error.
func transportError(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, ctx.Err()) {
		return cause
	}
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// retryAfter reads the header of that name: seconds or a date (RFC 9110 §10.2.3), at most five minutes.
func retryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if text == "" {
		return 0
	}
	var wait time.Duration
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil || errors.Is(err, strconv.ErrRange) {
		wait = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(text); err == nil {
		wait = time.Until(at)
	}
	return max(0, min(wait, maxRetryAfter))
}

// waited reports whether the server honoured "Prefer: wait" (RFC 7240 §3).
func waited(h http.Header) bool {
	for _, line := range h.Values(HeaderPreferApplied) {
		for item := range strings.SplitSeq(line, ",") {
			name, _, _ := strings.Cut(strings.TrimSpace(item), "=")
			if strings.EqualFold(strings.TrimSpace(name), "wait") {
				return true
			}
		}
	}
	return false
}

// Upload posts a body that is not JSON of the protocol's envelope and expects any 2xx (protocol §1.6.13).
func (c *Client) Upload(ctx context.Context, path, contentType string, body []byte) error {
	ctx, cancel := limited(ctx, 2*c.Timeout)
	defer cancel()
	req, err := c.request(ctx, Call{Method: http.MethodPost, Path: path, Body: json.RawMessage(body)})
	if err != nil {
		return fmt.Errorf("upload measurements: %w", err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return fmt.Errorf("upload measurements: %w", transportError(ctx, err))
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return &StatusError{Op: "upload measurements", HTTP: resp.StatusCode, RetryAfter: retryAfter(resp.Header)}
	}
	return nil
}
