package controller

import (
	"cmp"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// enrolToken is a stored token by which machines enrol. Its text is known to its owner only.
type enrolToken struct {
	ID      string   `json:"id,omitempty"` // those of older controllers have the begin of their digest
	Project string   `json:"project"`
	Labels  []string `json:"labels,omitempty"`
	Expires int64    `json:"expires"` // milliseconds since 1970, as all times here
	Created int64    `json:"created,omitempty"`
	By      string   `json:"by,omitempty"`
	Note    string   `json:"note,omitempty"`
	Uses    int      `json:"uses,omitempty"` // that it is good for; 0: any number
	Used    int      `json:"used,omitempty"`
	Last    int64    `json:"last,omitempty"` // use
	Revoked int64    `json:"revoked,omitempty"`
}

// EnrolTokenInfo is an enrolment token as lists show it: without its text.
type EnrolTokenInfo struct {
	ID        string   `json:"id"`
	Project   string   `json:"project"`
	Labels    []string `json:"labels,omitempty"` // of the agents that enrol with it
	Note      string   `json:"note,omitempty"`
	State     string   `json:"state"`               // valid, used-up, expired or revoked
	CreatedAt int64    `json:"createdAt,omitempty"` // milliseconds since 1970, as all times here
	CreatedBy string   `json:"createdBy,omitempty"`
	ExpiresAt int64    `json:"expiresAt"`
	Uses      int      `json:"uses,omitempty"` // that it is good for; 0: any number
	Used      int      `json:"used"`           // so often
	UsedAt    int64    `json:"usedAt,omitempty"`
	RevokedAt int64    `json:"revokedAt,omitempty"`
}

// TokenUsedUp is the state of an enrolment token that was used as often as it may be.
const TokenUsedUp = "used-up"

// Bounds of enrolment tokens: how many are kept, how long, how far ahead one may expire (in seconds), how often one may
// be used, and how long a note is.
const (
	maxEnrolTokens   = 10_000
	maxEnrolLife     = 10 * 366 * 24 * 3600
	maxEnrolUses     = 1_000_000
	maxEnrolNote     = 200
	maxEnrolLabels   = 100
	keepDeadEnrolled = 30 * 24 * time.Hour
)

func (t *enrolToken) state(now time.Time) string {
	switch {
	case t.Revoked != 0:
		return TokenRevoked
	case millis(now) >= t.Expires:
		return TokenExpired
	case t.Uses > 0 && t.Used >= t.Uses:
		return TokenUsedUp
	}
	return TokenValid
}

// ended is when a token ended, in the future for one that did not.
func (t *enrolToken) ended(now time.Time) int64 {
	switch t.state(now) {
	case TokenRevoked:
		return t.Revoked
	case TokenUsedUp:
		return t.Last
	}
	return t.Expires
}

func (t *enrolToken) info(now time.Time) EnrolTokenInfo {
	return EnrolTokenInfo{ID: t.ID, Project: t.Project, Labels: t.Labels, Note: t.Note, State: t.state(now), CreatedAt: t.Created, CreatedBy: t.By,
		ExpiresAt: t.Expires, Uses: t.Uses, Used: t.Used, UsedAt: t.Last, RevokedAt: t.Revoked}
}

// admits reports whether the holder of a token may have the package of an agent. One that is good for a few machines
// only admits to those that enrolled with it.
func (t *enrolToken) admits(a *agent, now time.Time) bool {
	return t.state(now) == TokenValid && t.Project == a.Project && (t.Uses == 0 || a.LinkFrom == t.ID)
}

// loadEnrolTokens fills the memory with the enrolment tokens.
func (s *Server) loadEnrolTokens() error {
	return s.store.each(func(scan func(...any) error) error {
		var sum, doc string
		if err := scan(&sum, &doc); err != nil {
			return err
		}
		t := new(enrolToken)
		if err := json.Unmarshal([]byte(doc), t); err != nil {
			return err
		}
		if t.ID == "" {
			t.ID = clip(sum, 12)
		}
		s.enrolTokens[sum] = t
		return nil
	}, `SELECT hash, doc FROM token`)
}

// NewEnrolToken is what an enrolment token is made from.
type NewEnrolToken struct {
	Project string   `json:"project,omitempty"` // DefaultProject when empty
	Labels  []string `json:"labels,omitempty"`  // that the agents get
	Note    string   `json:"note,omitempty"`    // what it is for, for people
	Uses    int      `json:"uses,omitempty"`    // how many machines may enrol with it; 0: any number
	Expires int64    `json:"expires,omitempty"` // seconds from now; 0: Options.TokenLife
}

// EnrolToken is AddEnrolToken for a token that is good for any number of machines until Options.TokenLife is over.
func (s *Server) EnrolToken(project string, labels []string) (token wire.Secret, expires time.Time, err error) {
	token, made, err := s.AddEnrolToken(NewEnrolToken{Project: project, Labels: labels}, "")
	return token, time.UnixMilli(made.ExpiresAt), err
}

// AddEnrolToken makes a token by which machines enrol themselves, on behalf of the access token named by. Its text is
// returned this once; it is on disk when AddEnrolToken returns.
func (s *Server) AddEnrolToken(n NewEnrolToken, by string) (wire.Secret, EnrolTokenInfo, error) {
	n.Project = cmp.Or(n.Project, DefaultProject)
	if !label.MatchString(n.Project) {
		return "", EnrolTokenInfo{}, refusal("project %q: letters, digits, _ and - only", clip(n.Project, 64))
	}
	if err := checkLabels(n.Labels); err != nil {
		return "", EnrolTokenInfo{}, &InputError{Err: err}
	}
	switch {
	case len(n.Labels) > maxEnrolLabels:
		return "", EnrolTokenInfo{}, refusal("labels: more than %d", maxEnrolLabels)
	case len(n.Note) > maxEnrolNote || strings.ContainsFunc(n.Note, unicode.IsControl):
		return "", EnrolTokenInfo{}, refusal("note: one line of at most %d bytes", maxEnrolNote)
	case n.Uses < 0 || n.Uses > maxEnrolUses:
		return "", EnrolTokenInfo{}, refusal("uses: 0 to %d", maxEnrolUses)
	case n.Expires < 0 || n.Expires > maxEnrolLife:
		return "", EnrolTokenInfo{}, refusal("expires: 0 to %d seconds", int64(maxEnrolLife))
	}
	now, life := time.Now(), s.opts.TokenLife
	if n.Expires > 0 {
		life = time.Duration(n.Expires) * time.Second
	}
	text := wire.Secret(randomHex(32))
	sum := hash(string(text))
	t := &enrolToken{ID: randomHex(6), Project: n.Project, Labels: n.Labels, Expires: millis(now.Add(life)), Created: millis(now), By: by, Note: n.Note, Uses: n.Uses}
	s.mu.Lock()
	var dead []string
	for sum, old := range s.enrolTokens {
		if old.ended(now) < millis(now.Add(-keepDeadEnrolled)) {
			dead = append(dead, sum)
		}
	}
	if len(s.enrolTokens)-len(dead) >= maxEnrolTokens {
		s.mu.Unlock()
		return "", EnrolTokenInfo{}, refusal("there are %d enrolment tokens already; they are forgotten %d days after their end", maxEnrolTokens, int(keepDeadEnrolled.Hours())/24)
	}
	for _, sum := range dead {
		delete(s.enrolTokens, sum)
	}
	s.enrolTokens[sum] = t
	doc, info := jsonText(t), t.info(now)
	saved := s.store.enqueue(func(tx *sql.Tx) error {
		for _, sum := range dead {
			if _, err := tx.Exec(`DELETE FROM token WHERE hash = ?`, sum); err != nil {
				return err
			}
		}
		return putEnrolToken(tx, sum, doc)
	}, nil)
	s.mu.Unlock()
	if err := saved.wait(); err != nil {
		s.mu.Lock()
		delete(s.enrolTokens, sum)
		s.mu.Unlock()
		return "", EnrolTokenInfo{}, err
	}
	return text, info, nil
}

func putEnrolToken(tx *sql.Tx, sum, doc string) error {
	_, err := tx.Exec(`INSERT INTO token (hash, doc) VALUES (?, ?) ON CONFLICT (hash) DO UPDATE SET doc = excluded.doc`, sum, doc)
	return err
}

// EnrolTokens lists the enrolment tokens, the newest first, also those that ended in the last 30 days.
func (s *Server) EnrolTokens() []EnrolTokenInfo {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]EnrolTokenInfo, 0, len(s.enrolTokens))
	for _, t := range s.enrolTokens {
		list = append(list, t.info(now))
	}
	slices.SortFunc(list, func(a, b EnrolTokenInfo) int {
		return cmp.Or(cmp.Compare(b.CreatedAt, a.CreatedAt), strings.Compare(a.ID, b.ID))
	})
	return list
}

// RevokeEnrolToken ends an enrolment token, and the keys to packages that were given out for it and not used yet. Agents
// that run stay. To revoke one again changes nothing.
func (s *Server) RevokeEnrolToken(id string) (EnrolTokenInfo, error) {
	now := time.Now()
	s.mu.Lock()
	for sum, t := range s.enrolTokens {
		if t.ID != id {
			continue
		}
		t.Revoked = cmp.Or(t.Revoked, millis(now))
		docs := map[string]string{}
		for _, a := range s.agents {
			if a.LinkFrom == id && a.LinkHash != "" {
				a.LinkHash, a.LinkEnds = "", 0
				docs[a.ID] = jsonText(a.Agent)
			}
		}
		doc, info := jsonText(t), t.info(now)
		saved := s.store.enqueue(func(tx *sql.Tx) error {
			for id, doc := range docs {
				if err := putAgent(tx, id, doc); err != nil {
					return err
				}
			}
			return putEnrolToken(tx, sum, doc)
		}, nil)
		s.mu.Unlock()
		return info, saved.wait()
	}
	s.mu.Unlock()
	return EnrolTokenInfo{}, fmt.Errorf("enrolment token %q: %w", clip(id, 64), ErrNotFound)
}

// enrolError refuses an enrolment with a code of the protocol's.
type enrolError struct {
	code int
	text string
}

// Error is the text for the installer.
func (e *enrolError) Error() string { return e.text }

// enrol makes an agent record for the holder of a token, or takes the one of reinstall, and gives them a key to its
// package. The record and the use of the token are one change on disk: two machines cannot have the last use.
func (s *Server) enrol(text, system, reinstall string) (record Agent, key string, err error) {
	fresh, err := s.newAgent(NewAgent{OS: system})
	if err != nil {
		fresh = nil // the error is for those with a token
	}
	sum, now := hash(text), time.Now()
	key = randomHex(32)
	s.mu.Lock()
	t := s.enrolTokens[sum]
	state := ""
	if t != nil {
		state = t.state(now)
	}
	a := fresh
	if reinstall != "" {
		a = s.agents[reinstall]
	}
	switch {
	case state == TokenUsedUp:
		err = &enrolError{codeNoToken, "the install token is used up"}
	case state != TokenValid:
		err = &enrolError{codeNoToken, "the install token is missing, wrong, expired or revoked"}
	case reinstall != "" && (a == nil || a.Project != t.Project || a.Status == wire.Deleted):
		err = &enrolError{codeNoAgent, "no such agent in the project of this token"}
	case reinstall != "" && a.Status == wire.ImportOK:
		err = &enrolError{codeAgentOnline, "this agent is still online"}
	default:
		if full := s.room.refusal(); full != nil {
			err = full
		} else if reinstall != "" {
			err = nil
		}
	}
	if err != nil {
		s.mu.Unlock()
		return Agent{}, "", err
	}
	before := a.Agent
	if reinstall == "" {
		a.Project, a.Labels = t.Project, slices.Clone(t.Labels)
		s.agents[a.ID] = a
	}
	a.LinkHash, a.LinkFrom = hash(key), t.ID
	a.LinkEnds = min(t.Expires, millis(now.Add(s.opts.TokenLife)))
	t.Used, t.Last = t.Used+1, millis(now)
	record = a.Agent
	id, agentDoc, tokenDoc := a.ID, jsonText(record), jsonText(t)
	saved := s.store.enqueue(func(tx *sql.Tx) error {
		if err := putAgent(tx, id, agentDoc); err != nil {
			return err
		}
		return putEnrolToken(tx, sum, tokenDoc)
	}, nil)
	s.mu.Unlock()
	if err := saved.wait(); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		t.Used--
		if reinstall == "" {
			delete(s.agents, id)
		} else {
			a.LinkHash, a.LinkFrom, a.LinkEnds = before.LinkHash, before.LinkFrom, before.LinkEnds
		}
		return Agent{}, "", err
	}
	return record, key, nil
}

// enrolTokenRoutes adds the operator's calls about enrolment tokens.
func (s *Server) enrolTokenRoutes(add func(pattern string, h http.HandlerFunc)) {
	add("GET /enroll-tokens", func(w http.ResponseWriter, _ *http.Request) { reply(w, s.EnrolTokens(), nil) })
	type shownOnce struct {
		Token string `json:"token"`
		EnrolTokenInfo
	}
	add("POST /enroll-tokens", act(func(r *http.Request, in NewEnrolToken) (shownOnce, error) {
		text, made, err := s.AddEnrolToken(in, callerOf(r).Name)
		return shownOnce{string(text), made}, err
	}))
	add("DELETE /enroll-tokens/{id}", func(w http.ResponseWriter, r *http.Request) {
		gone, err := s.RevokeEnrolToken(r.PathValue("id"))
		reply(w, gone, err)
	})
}
