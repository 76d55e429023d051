package controller

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

const (
	pipelinePending = "PENDING"
	maxResponse     = 1 << 20 // bytes kept of a script's output
)

// Script is a command that an operator has an agent run outside of builds: a pipeline task (protocol §1.6.9).
type Script struct {
	ID        int64  `json:"id"`
	Agent     string `json:"agent"`
	Command   string `json:"command"`
	Status    string `json:"status"` // PENDING, EXECUTING, SUCCESS, FAILURE
	Response  string `json:"response,omitempty"`
	CreatedAt int64  `json:"createdAt"`
	EndedAt   int64  `json:"endedAt,omitempty"`
}

func (s Script) over() bool {
	return s.Status == wire.PipelineSuccess || s.Status == wire.PipelineFailure
}

type script struct {
	Script
	given   bool // fetched by the agent, no report yet
	since   time.Time
	saved   *ticket       // the last change
	changed chan struct{} // closed when it is over, and that is on disk
}

func (s *Server) loadScripts() error {
	err := s.store.each(func(scan func(...any) error) error {
		var doc string
		if err := scan(&doc); err != nil {
			return err
		}
		c := &script{changed: make(chan struct{})}
		if err := json.Unmarshal([]byte(doc), &c.Script); err != nil {
			return err
		}
		if !c.over() {
			s.scripts[c.ID] = c
		}
		return nil
	}, `SELECT doc FROM script`)
	if err != nil {
		return err
	}
	return s.store.each(func(scan func(...any) error) error { return scan(&s.lastScript) }, `SELECT max((SELECT coalesce(max(id), 0) FROM script),
		(SELECT coalesce(max(value), 0) FROM counter WHERE name = ?))`, countScripts)
}

func (s *Server) saveScript(c *script) *ticket {
	id, agent, doc, over := c.ID, c.Agent, jsonText(c.Script), c.over()
	c.saved = s.store.enqueue(func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT INTO script (id, agent, doc) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET doc = excluded.doc`, id, agent, doc)
		return err
	}, func(err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err == nil && over && s.scripts[id] == c {
			delete(s.scripts, id)
			close(c.changed)
		}
	})
	return c.saved
}

// QueueScript has an agent run a command, and switches pipelines on there.
func (s *Server) QueueScript(agent, command string) (Script, error) {
	if strings.TrimSpace(command) == "" || len(command) > maxScript || strings.ContainsRune(command, 0) {
		return Script{}, &InputError{Err: fmt.Errorf("command: a text of 1 to %d bytes, please", maxScript)}
	}
	now := time.Now()
	s.mu.Lock()
	a := s.agents[agent]
	if a == nil || a.Status == wire.Deleted {
		s.mu.Unlock()
		return Script{}, fmt.Errorf("agent %q: %w", clip(agent, 64), ErrNotFound)
	}
	s.lastScript++
	c := &script{since: now, changed: make(chan struct{})}
	c.Script = Script{ID: s.lastScript, Agent: agent, Command: command, Status: pipelinePending, CreatedAt: millis(now)}
	t := s.saveScript(c)
	if a.EnablePipeline == nil {
		on := true
		a.EnablePipeline = &on
		s.saveAgent(a)
	}
	s.mu.Unlock()
	if err := t.wait(); err != nil {
		return Script{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scripts[c.ID] = c
	s.poke(a)
	return c.Script, nil
}

// FindScript returns a script, ErrNotFound when there is none.
func (s *Server) FindScript(id int64) (Script, error) {
	s.mu.Lock()
	c := s.scripts[id]
	if c != nil {
		defer s.mu.Unlock()
		return c.Script, nil
	}
	s.mu.Unlock()
	var found Script
	err := s.store.each(func(scan func(...any) error) error {
		var doc string
		if err := scan(&doc); err != nil {
			return err
		}
		return json.Unmarshal([]byte(doc), &found)
	}, `SELECT doc FROM script WHERE id = ?`, id)
	if err == nil && found.ID == 0 {
		err = fmt.Errorf("script %d: %w", id, ErrNotFound)
	}
	return found, err
}

// nextScript is the oldest script that an agent has not fetched yet.
func (s *Server) nextScript(a *agent, now time.Time) *wire.Pipeline {
	var next *script
	for _, c := range s.scripts {
		if c.Agent == a.ID && c.Status == pipelinePending && !c.given && (next == nil || c.ID < next.ID) {
			next = c
		}
	}
	if next == nil {
		return nil
	}
	next.given, next.since = true, now
	return &wire.Pipeline{Type: wire.PipelineCommand, SeqID: strconv.FormatInt(next.ID, 10), Command: next.Command}
}

// pipelines is GET E/agents/pipelines.
func (s *Server) pipelines(w http.ResponseWriter, _ *http.Request, a *agent) {
	now := time.Now()
	s.mu.Lock()
	in := s.spaced(a, "pipelines", s.opts.PipelineSpacing, now)
	var next *wire.Pipeline
	if in && a.Status == wire.ImportOK {
		next = s.nextScript(a, now)
	}
	s.mu.Unlock()
	if !in {
		tooOften(w)
		return
	}
	ok(w, next)
}

// reportPipeline is PUT E/agents/pipelines.
func (s *Server) reportPipeline(w http.ResponseWriter, r *http.Request, a *agent) {
	var in wire.PipelineReport
	if !read(w, r, &in, "seqId", "status", "response") {
		return
	}
	states := []string{pipelinePending, wire.PipelineExecuting, "TIMEOUT", wire.PipelineFailure, wire.PipelineSuccess}
	if !slices.Contains(states, in.Status) {
		refuse(w, http.StatusBadRequest, "body: status is none of "+strings.Join(states, ", "))
		return
	}
	id, err := strconv.ParseInt(in.SeqID, 10, 64)
	s.mu.Lock()
	c := s.scripts[id]
	if err != nil || c == nil || c.Agent != a.ID {
		s.mu.Unlock()
		ok(w, false)
		return
	}
	c.Status, c.Response, c.given = in.Status, clip(in.Response, maxResponse), true
	if c.Status == "TIMEOUT" {
		c.Status = wire.PipelineFailure
	}
	if c.over() {
		c.EndedAt = millis(time.Now())
	}
	t := s.saveScript(c)
	s.mu.Unlock()
	if err := t.wait(); err != nil {
		refuseUnwritten(w, "the report", err)
		return
	}
	ok(w, true)
}
