package controller

import (
	"encoding/json"
	"net/http"
)

// searchRuns is how many runs are looked at for those of one definition, the newest.
const searchRuns = 5000

// pageRun is a run as lists of the page show it: its builds are counted, because there may be 256.
type pageRun struct {
	ID              string        `json:"id"`
	Number          int64         `json:"number"`
	Name            string        `json:"name"`
	Project         string        `json:"project"`
	State           State         `json:"state"`
	Message         string        `json:"message,omitempty"`
	CreatedAt       int64         `json:"createdAt"`
	FinishedAt      int64         `json:"finishedAt,omitempty"`
	CancelRequested bool          `json:"cancelRequested,omitempty"`
	Definition      string        `json:"definition,omitempty"`
	Trigger         string        `json:"trigger,omitempty"`
	Builds          int           `json:"builds"`
	Counts          map[State]int `json:"counts"` // builds by state
}

func shortRun(r *Run) pageRun {
	v := pageRun{ID: r.ID, Number: r.Number, Name: r.Name, Project: r.Project, State: r.State, Message: r.Message, CreatedAt: r.CreatedAt, FinishedAt: r.FinishedAt,
		CancelRequested: r.CancelRequested, Definition: r.Definition, Trigger: r.Trigger, Builds: len(r.Jobs), Counts: make(map[State]int)}
	for i := range r.Jobs {
		v.Counts[r.Jobs[i].State]++
	}
	return v
}

// pageRuns is GET /page/runs[?limit=N&before=NUMBER&definition=NAME&project=P]: runs, the newest first; of one
// definition, those among the last that there were.
func (s *Server) pageRuns(w http.ResponseWriter, r *http.Request) {
	limit, err := queryInt(r, "limit", 50)
	if err != nil {
		operatorError(w, err)
		return
	}
	before, err := queryInt(r, "before", 0)
	if err != nil {
		operatorError(w, err)
		return
	}
	list := []pageRun{}
	q := r.URL.Query()
	err = s.store.each(func(scan func(...any) error) error {
		var doc string
		if err := scan(&doc); err != nil {
			return err
		}
		var found Run
		err := json.Unmarshal([]byte(doc), &found)
		list = append(list, shortRun(&found))
		return err
	}, `SELECT doc FROM run WHERE (? = 0 OR number < ?) AND (? = '' OR number > (SELECT coalesce(max(number), 0) FROM run) - ?
		AND json_extract(doc, '$.definition') = ? AND json_extract(doc, '$.project') = ?) ORDER BY number DESC LIMIT ?`,
		before, before, q.Get("definition"), searchRuns, q.Get("definition"), q.Get("project"), min(limit, 200))
	s.mu.Lock()
	for i := range list {
		if live := s.runs[list[i].ID]; live != nil {
			now := live.view()
			list[i] = shortRun(&now)
		}
	}
	s.mu.Unlock()
	reply(w, list, err)
}

// pageSecrets is GET /page/secrets: the secrets, where they are used, and why they are locked, if they are.
func (s *Server) pageSecrets(w http.ResponseWriter, _ *http.Request) {
	shown := map[string]any{"secrets": s.Secrets("")}
	if s.vault.err != nil {
		shown["locked"], shown["hint"] = s.vault.err.Error(), hintOf(s.vault.err)
	}
	reply(w, shown, nil)
}
