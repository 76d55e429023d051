package controller

import (
	"fmt"
	"net/http"
)

// RerunBuild queues a new build with the spec of another, its sensitive values included. ErrNotFound when there is none;
// one that is part of a run is an *InputError: it is nothing without what the other jobs gave it.
func (s *Server) RerunBuild(id string) (Build, error) {
	old, err := s.find(id)
	if err != nil {
		return Build{}, err
	}
	if old.Run != "" {
		return Build{}, refusal("build %d is a job of run %d: run that again", old.Number, old.RunNumber)
	}
	if old.locked != nil {
		return Build{}, old.locked
	}
	b, err := s.Submit(old.Project, old.spec)
	if err != nil {
		return Build{}, fmt.Errorf("run build %s again: %w", old.ID, err)
	}
	s.log.Info("Build is run again", "build", b.ID, "of", old.ID)
	return b, nil
}

// apiRerun is POST /api/v1/builds/{id}/rerun.
func (s *Server) apiRerun(w http.ResponseWriter, r *http.Request) {
	b, err := s.RerunBuild(r.PathValue("id"))
	reply(w, b, err)
}
