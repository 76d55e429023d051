package controller

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// Prefixes of the calls as a service behind the gateway sees them (protocol §1.1).
const (
	agentPrefix    = "/api/buildAgent/agent/thirdPartyAgent"
	externalPrefix = "/api/external/thirdPartyAgent"
	buildPrefix    = "/api/build"
)

// routes makes the handler of everything.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	env := func(h agentHandler) http.HandlerFunc { return s.agentCall(environment, h) }
	dis := func(h agentHandler) http.HandlerFunc { return s.agentCall(dispatching, h) }
	for pattern, h := range map[string]http.HandlerFunc{
		"POST /startup":               env(s.startup),
		"GET /status":                 env(s.status),
		"POST /agents/newHeartbeat":   env(s.newHeartbeat),
		"POST /agents/heartbeat":      env(func(w http.ResponseWriter, _ *http.Request, _ *agent) { notNow(w, "use newHeartbeat") }),
		"GET /upgrade/files/download": dis(s.download),
		"GET /agents/pipelines":       env(s.pipelines),
		"PUT /agents/pipelines":       env(s.reportPipeline),
		"POST /agents/metrics":        env(s.metrics),
		"POST /agents/metrix":         env(s.metrics),
		"POST /agents/metrix/write":   env(s.metrics),
		"GET /startup":                dis(s.claim),
		"POST /upgradeNew":            dis(s.upgradeNew),
		"GET /upgrade":                dis(s.upgradeOld),
		"DELETE /upgrade":             dis(s.upgradeDone),
		"POST /workerBuildFinish":     dis(s.workerBuildFinish),
		"POST /ask":                   s.ask,
		"GET /docker/startupDebug":    dis(s.noDebug),
		"POST /docker/startupDebug":   dis(func(w http.ResponseWriter, _ *http.Request, _ *agent) { ok(w, false) }),
		"GET /docker/debug/status":    dis(func(w http.ResponseWriter, _ *http.Request, _ *agent) { ok(w, nil) }),
	} {
		method, path, _ := strings.Cut(pattern, " ")
		mux.HandleFunc(method+" "+agentPrefix+path, h)
	}
	for _, prefix := range []string{externalPrefix, "/external/agents"} { // the short one is old (protocol §1.7.4)
		mux.HandleFunc("GET "+prefix+"/{id}/agent", s.agentPackage)
		mux.HandleFunc("GET "+prefix+"/{id}/install", s.installScript)
		mux.HandleFunc("GET "+prefix+"/{id}/jre", s.jdkPackage)
	}
	mux.HandleFunc("GET "+externalPrefix+"/{os}/batchInstall", s.batchInstall)
	s.workerRoutes(mux, buildPrefix+"/worker")
	s.workerRoutes(mux, buildPrefix+"/builds") // the older names (protocol §6.1)
	s.logRoutes(mux, buildPrefix+"/logs")
	s.artifactRoutes(mux, buildPrefix+"/worker/artifacts")
	mux.HandleFunc("POST "+buildPrefix+"/quotas/running/agent/start", s.logDone)
	mux.HandleFunc("DELETE "+buildPrefix+"/quotas/running/agent/shutdown", s.logDone)
	s.operatorRoutes(mux)
	s.hookRoutes(mux)
	s.pageRoutes(mux)
	s.repo.routes(mux)
	return &gateway{server: s, mux: mux}
}

// noDebug is GET D/docker/startupDebug: nobody can ask for a debug session here.
func (s *Server) noDebug(w http.ResponseWriter, _ *http.Request, a *agent) {
	s.mu.Lock()
	status := a.Status
	s.mu.Unlock()
	okAgent(w, status, nil)
}

// gateway does what BK-CI's gateway does with a path: it takes /ms and the service off (protocol §1.1).
type gateway struct {
	server *Server
	mux    *http.ServeMux
}

// ServeHTTP answers one request.
func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.server.mu.Lock()
	closed := g.server.closed
	g.server.mu.Unlock()
	if closed {
		refuse(w, http.StatusServiceUnavailable, errClosed.Error())
		return
	}
	if path := servicePath(r.URL.Path); path != r.URL.Path {
		at := *r.URL
		at.Path, at.RawPath = path, ""
		r = r.WithContext(r.Context()) // a shallow copy
		r.URL = &at
	}
	handler, pattern := g.mux.Handler(r)
	switch {
	case pattern == "":
		refuse(w, http.StatusNotFound, "no such call: "+r.Method+" "+clip(r.URL.Path, 200))
		return
	case strings.Contains(pattern, "{"): // only the mux itself says what stands in its place
		handler = g.mux
	}
	g.server.fairly(w, r, handler)
}

// servicePath strips /ms and the name of a service that is followed by /api/. Slashes in a row count as one: an agent
// whose gateway ends with a slash sends two (protocol §1.1).
func servicePath(path string) string {
	for strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	rest := strings.TrimPrefix(path, "/ms")
	if !strings.HasPrefix(rest, "/") {
		return path
	}
	service, inner, found := strings.Cut(rest[1:], "/")
	if found && strings.HasPrefix(inner, "api/") && slices.Contains([]string{"environment", "dispatch", "process", "log"}, service) {
		return "/" + inner
	}
	return rest
}

// Transport answers requests in memory, without a network: for agents in the same process, in a testing/synctest
// bubble as well. An answer arrives when it is complete.
func (s *Server) Transport() http.RoundTripper { return inMemory{s} }

type inMemory struct{ server *Server }

// RoundTrip serves one request on the caller's goroutine.
func (t inMemory) RoundTrip(req *http.Request) (*http.Response, error) {
	in := req.Clone(req.Context())
	if in.Body == nil {
		in.Body = http.NoBody
	}
	if in.Host == "" {
		in.Host = in.URL.Host
	}
	in.RequestURI, in.RemoteAddr = in.URL.RequestURI(), "127.0.0.1:1"
	w := &recorder{header: make(http.Header)}
	t.server.Handler().ServeHTTP(w, in)
	_ = in.Body.Close()
	if err := req.Context().Err(); err != nil {
		return nil, context.Cause(req.Context())
	}
	if w.code == 0 {
		w.code = http.StatusOK
	}
	length := int64(w.body.Len())
	if text := w.header.Get("Content-Length"); text != "" {
		length, _ = strconv.ParseInt(text, 10, 64)
	}
	return &http.Response{Status: strconv.Itoa(w.code) + " " + http.StatusText(w.code), StatusCode: w.code, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.header, Body: io.NopCloser(&w.body), ContentLength: length, Request: req}, nil
}

// recorder is a ResponseWriter that keeps the answer.
type recorder struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

// Header returns the header map.
func (w *recorder) Header() http.Header { return w.header }

// WriteHeader notes the first status.
func (w *recorder) WriteHeader(code int) {
	if w.code == 0 {
		w.code = code
	}
}

// Write appends to the body.
func (w *recorder) Write(data []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(data)
}

// Flush does nothing: the answer is delivered when it is complete.
func (w *recorder) Flush() {}
