package controller

import (
	"database/sql"
	"fmt"
	"net/http"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// maxNewAgents bounds how many records one call makes.
const maxNewAgents = 20_000

// CreateAgents makes count records as CreateAgent does, all or none of them, in one commit.
func (s *Server) CreateAgents(n NewAgent, count int) ([]wire.Identity, error) {
	if count < 1 || count > maxNewAgents {
		return nil, &InputError{Err: fmt.Errorf("count %d: between 1 and %d, please", count, maxNewAgents)}
	}
	made := make([]*agent, count)
	rows := make([][2]string, count)
	ids := make([]wire.Identity, count)
	for i := range made {
		a, err := s.newAgent(n)
		if err != nil {
			return nil, err
		}
		made[i], rows[i] = a, [2]string{a.ID, jsonText(a.Agent)}
		ids[i] = wire.Identity{Project: a.Project, Agent: a.ID, Secret: a.Secret}
	}
	t := s.store.enqueue(func(tx *sql.Tx) error {
		insert, err := tx.Prepare(`INSERT INTO agent (id, doc) VALUES (?, ?)`)
		if err != nil {
			return err
		}
		defer func() { _ = insert.Close() }()
		for _, row := range rows {
			if _, err := insert.Exec(row[0], row[1]); err != nil {
				return err
			}
		}
		return nil
	}, nil)
	if err := t.wait(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range made {
		s.agents[a.ID] = a
	}
	return ids, nil
}

// apiNewAgents is POST /api/v1/agents/batch: many records at once.
func (s *Server) apiNewAgents(_ *http.Request, in newAgents) ([]map[string]string, error) {
	ids, err := s.CreateAgents(in.NewAgent, in.Count)
	list := make([]map[string]string, len(ids))
	for i, id := range ids {
		list[i] = map[string]string{"id": id.Agent, "project": id.Project, "secret": string(id.Secret)}
	}
	return list, err
}

// newAgents is the body of POST /api/v1/agents/batch.
type newAgents struct {
	NewAgent
	Count int `json:"count"`
}
