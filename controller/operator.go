package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// operatorRoutes adds the operator's API. Every call needs "Authorization: Bearer TOKEN"; readerCalls says which ones a
// reader may make. Answers are plain JSON; an error is {"error": TEXT, "hint": TEXT}, the latter where something can be done, with status 400, 401, 403, 404 or 500,
// 507 when the disk is full. Members and paths are stable: add, never rename.
func (s *Server) operatorRoutes(mux *http.ServeMux) {
	for pattern, h := range map[string]http.HandlerFunc{
		"GET /version":              s.apiVersion,
		"GET /agents":               s.apiAgents,
		"POST /agents":              act(s.apiNewAgent),
		"POST /agents/batch":        act(s.apiNewAgents),
		"GET /agents/{id}":          s.apiAgent,
		"PATCH /agents/{id}":        act(s.apiChangeAgent),
		"DELETE /agents/{id}":       s.apiDeleteAgent,
		"GET /agents/{id}/metrics":  s.apiMetrics,
		"POST /agents/{id}/scripts": act(s.apiNewScript),
		"GET /scripts/{id}":         s.apiScript,
		"POST /builds":              act(s.apiSubmit),
		"GET /builds":               s.apiBuilds,
		"GET /builds/{id}":          s.apiBuild,
		"POST /builds/{id}/cancel":  s.apiCancel,
		"POST /builds/{id}/rerun":   s.apiRerun,
		"GET /builds/{id}/log":      s.buildLog,
		"POST /backup":              s.apiBackup,
		"POST /vacuum":              s.apiVacuum,
	} {
		s.operatorRoute(mux, pattern, h)
	}
	add := func(pattern string, h http.HandlerFunc) { s.operatorRoute(mux, pattern, h) }
	s.upgradeRoutes(add)
	s.accessRoutes(add)
	s.runRoutes(add)
	s.enrolTokenRoutes(add)
	s.secretRoutes(add)
	s.definitionRoutes(add)
	s.fileRoutes(add)
	s.artifactCalls(add)
}

func (s *Server) operatorRoute(mux *http.ServeMux, pattern string, h http.HandlerFunc) {
	method, path, _ := strings.Cut(pattern, " ")
	mux.HandleFunc(method+" /api/v1"+path, s.operator(pattern, h))
	mux.Handle(method+" /page/api"+path, s.forSession(pattern, h))
}

func apiAnswer(w http.ResponseWriter, code int, v any) {
	if aw, noted := w.(*auditWriter); noted && code == http.StatusOK {
		aw.made(v)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // a client that has gone cannot be told so
}

func reply(w http.ResponseWriter, v any, err error) {
	if err != nil {
		operatorError(w, err)
		return
	}
	apiAnswer(w, http.StatusOK, v)
}

func operatorError(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	var input *InputError
	var spec *SpecError
	var locked *KeyError
	var crowd *CrowdError
	switch {
	case errors.As(err, &crowd):
		code = http.StatusTooManyRequests
	case errors.Is(err, ErrNotFound):
		code = http.StatusNotFound
	case errors.As(err, &input) || errors.As(err, &spec):
		code = http.StatusBadRequest
	case errors.Is(err, errClosed), errors.Is(err, errBackingUp), errors.As(err, &locked):
		code = http.StatusServiceUnavailable
	}
	if full := storageError("the data directory", err); full != nil {
		code, err = full.status(), full
	}
	apiAnswer(w, code, refusalBody(err))
}

// apiRead decodes a strict JSON body; an empty one leaves v alone.
func apiRead(w http.ResponseWriter, r *http.Request, v any) bool {
	data, read := readBody(w, r)
	if !read {
		return false
	}
	if len(data) == 0 {
		return true
	}
	if err := strictJSON(data, v); err != nil {
		operatorError(w, &InputError{Err: fmt.Errorf("body: %w", err)})
		return false
	}
	return true
}

func queryInt(r *http.Request, name string, initial int64) (int64, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return initial, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, &InputError{Err: fmt.Errorf("%s: %q is no number", name, clip(text, 40))}
	}
	return n, nil
}

func (s *Server) apiVersion(w http.ResponseWriter, _ *http.Request) {
	reply(w, map[string]string{"version": s.opts.Version}, nil)
}

func (s *Server) apiNewAgent(_ *http.Request, in NewAgent) (map[string]string, error) {
	id, err := s.CreateAgent(in)
	return map[string]string{"id": id.Agent, "project": id.Project, "secret": string(id.Secret)}, err
}

func (s *Server) apiAgents(w http.ResponseWriter, r *http.Request) {
	list := s.Agents()
	for i := range list {
		list[i] = callerOf(r).shown(list[i])
	}
	reply(w, list, nil)
}

func (s *Server) apiAgent(w http.ResponseWriter, r *http.Request) {
	a, err := s.FindAgent(r.PathValue("id"))
	reply(w, callerOf(r).shown(a), err)
}

func (s *Server) apiChangeAgent(r *http.Request, in AgentChange) (AgentInfo, error) {
	return s.ChangeAgent(r.PathValue("id"), in)
}

func (s *Server) apiDeleteAgent(w http.ResponseWriter, r *http.Request) {
	reply(w, struct{}{}, s.DeleteAgent(r.PathValue("id")))
}

func (s *Server) apiMetrics(w http.ResponseWriter, r *http.Request) {
	if _, err := s.FindAgent(r.PathValue("id")); err != nil {
		operatorError(w, err)
		return
	}
	data, at := s.Sample(r.PathValue("id"))
	sample := map[string]any{"sample": string(data)}
	if !at.IsZero() {
		sample["at"] = millis(at)
	}
	reply(w, sample, nil)
}

// newScript is the body of POST /api/v1/agents/{id}/scripts.
type newScript struct {
	Command string `json:"command"`
}

func (s *Server) apiNewScript(r *http.Request, in newScript) (Script, error) {
	return s.QueueScript(r.PathValue("id"), in.Command)
}

// apiScript is GET /api/v1/scripts/{id}[?wait=SECONDS]: it waits for the end, if asked, at most a minute.
func (s *Server) apiScript(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		operatorError(w, fmt.Errorf("script %q: %w", clip(r.PathValue("id"), 40), ErrNotFound))
		return
	}
	wait, err := queryInt(r, "wait", 0)
	if err != nil {
		operatorError(w, err)
		return
	}
	s.mu.Lock()
	c := s.scripts[id]
	s.mu.Unlock()
	if c != nil && wait > 0 {
		timer := time.NewTimer(min(time.Duration(min(wait, 3600))*time.Second, maxWait))
		defer timer.Stop()
		select {
		case <-c.changed:
		case <-timer.C:
		case <-r.Context().Done():
		case <-s.closing:
		}
	}
	found, err := s.FindScript(id)
	reply(w, found, err)
}

// newBuild is the body of POST /api/v1/builds.
type newBuild struct {
	Project string `json:"project"`
	Spec    Spec   `json:"spec"`
}

func (s *Server) apiSubmit(_ *http.Request, in newBuild) (Build, error) {
	return s.Submit(in.Project, in.Spec)
}

// apiBuilds is GET /api/v1/builds[?limit=N&before=NUMBER&active=true], the newest first.
func (s *Server) apiBuilds(w http.ResponseWriter, r *http.Request) {
	limit, err := queryInt(r, "limit", 50)
	before, berr := queryInt(r, "before", 0)
	if err = errors.Join(err, berr); err != nil {
		operatorError(w, err)
		return
	}
	list, err := s.Builds(int(min(limit, 1000)), before, r.URL.Query().Get("active") == "true")
	reply(w, list, err)
}

func (s *Server) apiBuild(w http.ResponseWriter, r *http.Request) {
	b, err := s.FindBuild(r.PathValue("id"))
	reply(w, b, err)
}

func (s *Server) apiCancel(w http.ResponseWriter, r *http.Request) {
	b, err := s.Cancel(r.PathValue("id"))
	reply(w, b, err)
}
