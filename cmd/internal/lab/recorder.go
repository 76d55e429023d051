package lab

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// maxRecorded bounds how much of a request's body is kept, in bytes.
const maxRecorded = 16 << 20

// Recorder is a BK-CI back end that writes down everything it is asked. What it answers by itself is in backend.go and
// session.go; On and Next replace that per endpoint.
type Recorder struct {
	// URL is the gateway address with scheme, Host the same without.
	URL, Host string

	server *http.Server
	strict bool
	tlsLog bytes.Buffer // guarded by mu; what the TLS server complained about

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced whenever something was recorded
	requests []*Request
	scripts  map[Endpoint]Script
	queues   map[Endpoint][]Answer
	accepted map[Endpoint]time.Time // last call that was not refused as too frequent
	refused  []*Request

	backend  backend
	sessions map[string]*Session
}

// Script answers one request in place of the recorder. Returning nil leaves it to the recorder after all.
type Script func(Request) *Answer

// RecorderOptions shape a recorder. The zero value is a plain HTTP server on a free port of 127.0.0.1.
type RecorderOptions struct {
	TLS     *tls.Config // non-nil serves HTTPS
	Strict  bool        // refuse calls that come too close together, as BK-CI does (protocol Appendix D)
	Address string      // listen here instead of on a free port, for one that comes back after a stop
}

// Request is one recorded request. Its fields do not change, except that Done is called later.
type Request struct {
	N        int // counts from 0
	At       time.Time
	Endpoint Endpoint // method and path, see canonical
	Path     string   // exactly as sent
	Query    url.Values
	RawQuery string
	Header   http.Header
	Body     []byte
	Remote   string // address of the client's end of the connection

	done *outcome
}

type outcome struct {
	mu        sync.Mutex
	at        time.Time
	abandoned bool
}

// Done returns when the request was over, and whether the client had left by then. The time is zero while it lasts.
func (r Request) Done() (at time.Time, abandoned bool) {
	r.done.mu.Lock()
	defer r.done.mu.Unlock()
	return r.done.at, r.done.abandoned
}

// JSON decodes the body as an object, nil when it is none. Numbers are json.Number.
func (r Request) JSON() map[string]any {
	d := json.NewDecoder(bytes.NewReader(r.Body))
	d.UseNumber()
	var v map[string]any
	if d.Decode(&v) != nil {
		return nil
	}
	return v
}

// Get walks into the body's objects and returns what is there, nil when there is nothing.
func (r Request) Get(path ...string) any { return Dig(r.JSON(), path...) }

// Dig walks into nested objects, nil when a step is missing.
func Dig(v any, path ...string) any {
	for _, key := range path {
		object, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = object[key]
	}
	return v
}

// String is for messages: when, what, and how the body begins.
func (r Request) String() string {
	body := r.Body
	if len(body) > 300 {
		body = append(append([]byte{}, body[:300]...), "…"...)
	}
	query := ""
	if r.RawQuery != "" {
		query = "?" + r.RawQuery
	}
	return fmt.Sprintf("%s %s%s %s", r.At.Format("15:04:05.000"), r.Endpoint, query, body)
}

// Answer is what a request gets. The zero value is an empty 200.
type Answer struct {
	Code   int // HTTP status, 0 is 200
	Header http.Header
	Body   []byte
	Delay  time.Duration // before the first byte; ends early when the client leaves or the recorder stops
	Drop   bool          // close the connection without a word
	Hang   bool          // accept and never answer, until the client leaves or the recorder stops
	Cut    bool          // announce a longer body than is sent, then close
	Stream func(http.ResponseWriter, *http.Request)
}

// JSON is an answer with a value as its body.
func JSON(code int, v any) Answer {
	body, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("lab: marshal an answer: %v", err))
	}
	return Answer{Code: code, Body: body, Header: http.Header{"Content-Type": {"application/json"}}}
}

// OK is a Result envelope that says ok (protocol §1.3).
func OK(data any) Answer {
	return JSON(200, map[string]any{"status": 0, "message": nil, "data": data})
}

// AgentOK is an AgentResult envelope that says ok; an empty status is null (protocol §1.3).
func AgentOK(status string, data any) Answer {
	envelope := map[string]any{"status": 0, "message": nil, "agentStatus": nil, "data": data}
	if status != "" {
		envelope["agentStatus"] = status
	}
	return JSON(200, envelope)
}

// No is an envelope that says no, with HTTP 200.
func No(code int, message string) Answer {
	return JSON(200, map[string]any{"status": code, "message": message, "data": nil})
}

// NewRecorder starts one. It is stopped when the test ends.
func NewRecorder(t T, o RecorderOptions) *Recorder {
	t.Helper()
	if o.Address == "" {
		o.Address = "127.0.0.1:0"
	}
	r := &Recorder{
		strict: o.Strict, changed: make(chan struct{}),
		scripts: map[Endpoint]Script{}, queues: map[Endpoint][]Answer{}, accepted: map[Endpoint]time.Time{},
		sessions: map[string]*Session{}, backend: newBackend(),
	}
	// The address may be that of a recorder that has just stopped: its last connections need a moment.
	var listener net.Listener
	var err error
	if !Eventually(5*time.Second, func() bool {
		listener, err = net.Listen("tcp", o.Address)
		return err == nil
	}) {
		t.Fatalf("listen for the recorder: %v", err)
	}
	r.Host = listener.Addr().String()
	r.URL = "http://" + r.Host
	if o.TLS != nil {
		listener = tls.NewListener(listener, o.TLS)
		r.URL = "https://" + r.Host
	}
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(complaints{r}, "", 0)}
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := r.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("recorder: %v", err)
		}
	}()
	t.Cleanup(func() {
		r.Stop()
		<-served
	})
	return r
}

type complaints struct{ r *Recorder }

func (c complaints) Write(p []byte) (int, error) {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	if c.r.tlsLog.Len() < 1<<20 {
		c.r.tlsLog.Write(p)
	}
	c.r.wake()
	return len(p), nil
}

// Complaints returns what the HTTP server logged, failed TLS handshakes above all.
func (r *Recorder) Complaints() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tlsLog.String()
}

// Stop closes the listener and every connection at once. What was recorded stays.
func (r *Recorder) Stop() {
	_ = r.server.Close()
}

// On replaces what the recorder answers at an endpoint; nil brings its own answers back.
func (r *Recorder) On(e Endpoint, s Script) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.scripts[e] = s
}

// Always answers every request at an endpoint the same.
func (r *Recorder) Always(e Endpoint, a Answer) { r.On(e, func(Request) *Answer { return &a }) }

// Next queues answers for the next requests at an endpoint; they go before On.
func (r *Recorder) Next(e Endpoint, answers ...Answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queues[e] = append(r.queues[e], answers...)
}

// Left returns how many answers of Next have not been used yet.
func (r *Recorder) Left(e Endpoint) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.queues[e])
}

// ServeHTTP records a request and answers it.
func (r *Recorder) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	req := &Request{At: time.Now(), Endpoint: canonical(q.Method, q.URL.Path), Path: q.URL.Path, Query: q.URL.Query(),
		RawQuery: q.URL.RawQuery, Header: q.Header.Clone(), Remote: q.RemoteAddr, done: &outcome{}}
	body, err := io.ReadAll(io.LimitReader(q.Body, maxRecorded))
	req.Body = body
	defer func() {
		req.done.mu.Lock()
		req.done.at, req.done.abandoned = time.Now(), req.done.abandoned || q.Context().Err() != nil
		req.done.mu.Unlock()
		r.mu.Lock()
		r.wake()
		r.mu.Unlock()
	}()
	r.mu.Lock()
	req.N = len(r.requests)
	r.requests = append(r.requests, req)
	r.wake()
	var answer *Answer
	if queue := r.queues[req.Endpoint]; len(queue) > 0 {
		answer, r.queues[req.Endpoint] = &queue[0], queue[1:]
	}
	script := r.scripts[req.Endpoint]
	r.mu.Unlock()
	if err != nil {
		return // the client left in the middle of its own request
	}
	if tooSoon := r.tooFrequent(req); tooSoon && answer == nil && r.strict {
		answer = new(No(1, "request too frequently"))
	}
	if answer == nil && script != nil {
		answer = script(*req)
	}
	if answer == nil {
		answer = r.answer(*req)
	}
	r.send(w, q, *answer)
}

func (r *Recorder) send(w http.ResponseWriter, q *http.Request, a Answer) {
	wait := a.Delay
	if a.Hang {
		wait = time.Hour
	}
	if wait > 0 {
		pause := time.NewTimer(wait)
		defer pause.Stop()
		select {
		case <-pause.C:
		case <-q.Context().Done():
			return
		}
	}
	switch {
	case a.Stream != nil:
		a.Stream(w, q)
		return
	case a.Drop:
		panic(http.ErrAbortHandler)
	}
	for name, values := range a.Header {
		w.Header()[name] = values
	}
	if a.Cut {
		w.Header().Set("Content-Length", fmt.Sprint(len(a.Body)+100))
	}
	if a.Code == 0 {
		a.Code = http.StatusOK
	}
	w.WriteHeader(a.Code)
	_, _ = w.Write(a.Body) // a client that left is in the record
	if a.Cut {
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// spacing is how close together the calls of one agent may come (protocol Appendix D). The tolerance is for what happens
// between the two ends of a loopback connection.
func spacing(e Endpoint) time.Duration {
	switch e {
	case Ask, Status:
		return 3 * time.Second
	case Heartbeat:
		return 4 * time.Second
	case FetchPipeline:
		return 10 * time.Second
	}
	return 0
}

const spacingTolerance = 30 * time.Millisecond

func (r *Recorder) tooFrequent(req *Request) bool {
	limit := spacing(req.Endpoint)
	r.mu.Lock()
	defer r.mu.Unlock()
	if last, ok := r.accepted[req.Endpoint]; ok && limit > 0 && req.At.Sub(last) < limit-spacingTolerance {
		r.refused = append(r.refused, req)
		return true
	}
	r.accepted[req.Endpoint] = req.At
	return false
}

// TooFrequent returns the requests that came closer together than BK-CI allows, whether or not they were refused.
func (r *Recorder) TooFrequent() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return values(r.refused)
}

func values(requests []*Request) []Request {
	all := make([]Request, len(requests))
	for i, q := range requests {
		all[i] = *q
	}
	return all
}

// wake tells everyone who waits that there is something new. mu is held.
func (r *Recorder) wake() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// All returns every request so far, oldest first.
func (r *Recorder) All() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return values(r.requests)
}

// Of returns the requests at some endpoints, oldest first.
func (r *Recorder) Of(endpoints ...Endpoint) []Request {
	var found []Request
	for _, q := range r.All() {
		for _, e := range endpoints {
			if q.Endpoint == e {
				found = append(found, q)
			}
		}
	}
	return found
}

// Mark is a place in the record: the number of requests so far.
func (r *Recorder) Mark() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.requests)
}

// Wait waits until a recorded request from mark on fits, and returns the first that does.
func (r *Recorder) Wait(limit time.Duration, mark int, fits func(Request) bool) (Request, bool) {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	for {
		r.mu.Lock()
		changed, fresh := r.changed, r.requests[min(mark, len(r.requests)):]
		r.mu.Unlock()
		for _, q := range fresh {
			mark++
			if fits(*q) {
				return *q, true
			}
		}
		select {
		case <-changed:
		case <-deadline.C:
			return Request{}, false
		}
	}
}

// WaitFor waits for the first request at an endpoint from mark on.
func (r *Recorder) WaitFor(limit time.Duration, mark int, e Endpoint) (Request, bool) {
	return r.Wait(limit, mark, func(q Request) bool { return q.Endpoint == e })
}

// WaitN waits until n requests at an endpoint have been recorded in all.
func (r *Recorder) WaitN(limit time.Duration, e Endpoint, n int) bool {
	return r.Until(limit, func() bool { return len(r.Of(e)) >= n })
}

// Until waits until a condition on the record holds. It looks again whenever a request comes or ends.
func (r *Recorder) Until(limit time.Duration, holds func() bool) bool {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	for {
		r.mu.Lock()
		changed := r.changed
		r.mu.Unlock()
		if holds() {
			return true
		}
		select {
		case <-changed:
		case <-deadline.C:
			return holds()
		}
	}
}
