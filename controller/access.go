package controller

import (
	"cmp"
	"context"
	"crypto/subtle"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// Role is what the holder of a token of the operator API may do.
type Role string

// The roles. A reader sees everything but secrets, and changes nothing.
const (
	RoleOperator Role = "operator"
	RoleReader   Role = "read-only"
)

// readerCalls are the operator's calls that a reader may make, as they are registered. All others are the operator's
// alone: whoever adds a call that changes nothing and shows no secret names it here.
func readerCalls() []string {
	return []string{
		"GET /version",
		"GET /agents",
		"GET /agents/{id}",
		"GET /agents/{id}/metrics",
		"GET /builds",
		"GET /builds/{id}",
		"GET /builds/{id}/log",
		"GET /builds/{id}/artifacts",
		"GET /builds/{id}/artifacts/{name}",
		"GET /artifacts",
		"GET /objects/{digest}",
		"GET /releases",
		"GET /rollouts",
		"GET /rollouts/{id}",
		"GET /runs",
		"GET /runs/{id}",
		"GET /secrets",
		"GET /definitions",
		"GET /definitions/{name}",
		"GET /tokens",
		"GET /enroll-tokens",
		"GET /audit",
	}
}

// requiredRole is the least role that may make a call.
func requiredRole(pattern string) Role {
	if slices.Contains(readerCalls(), pattern) {
		return RoleReader
	}
	return RoleOperator
}

// may reports whether a caller with this role may make calls that require the other.
func (r Role) may(required Role) bool { return r == RoleOperator || r == required && r == RoleReader }

// fileToken is the id and the name of the token in TokenFile: it cannot be revoked by a call, only by removing the file.
const fileToken = TokenFile

// caller is who makes a call of the operator's: the token that they showed, without its text.
type caller struct {
	ID   string // of the token; fileToken for the one of the file
	Name string
	Role Role
}

// AccessToken is a named token for the operator API, as lists show it. Its text is known to its owner only.
type AccessToken struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Role      Role   `json:"role"`
	State     string `json:"state,omitempty"` // valid, expired or revoked; not stored
	CreatedAt int64  `json:"createdAt"`       // milliseconds since 1970, as all times here
	CreatedBy string `json:"createdBy,omitempty"`
	ExpiresAt int64  `json:"expiresAt,omitempty"` // 0: never
	RevokedAt int64  `json:"revokedAt,omitempty"`
	UsedAt    int64  `json:"usedAt,omitempty"` // last, since the controller started; not stored
}

// States of a token.
const (
	TokenValid   = "valid"
	TokenExpired = "expired"
	TokenRevoked = "revoked"
)

func (t *AccessToken) state(now time.Time) string {
	switch {
	case t.RevokedAt != 0:
		return TokenRevoked
	case t.ExpiresAt != 0 && millis(now) >= t.ExpiresAt:
		return TokenExpired
	}
	return TokenValid
}

// accessToken is a stored token and the calls that are under way with it.
type accessToken struct {
	AccessToken
	hash  string
	calls map[*context.CancelCauseFunc]bool
}

// maxAccessTokens bounds how many tokens there are, keepDeadToken how long one is listed that is no longer valid.
const (
	maxAccessTokens = 1000
	keepDeadToken   = 30 * 24 * time.Hour
)

// errTokenGone ends what is under way with a token that was revoked or has expired.
var errTokenGone = errors.New("the token was revoked or has expired")

// loadTokens fills the memory with the named tokens.
func (s *Server) loadTokens() error {
	return s.store.each(func(scan func(...any) error) error {
		t := &accessToken{calls: make(map[*context.CancelCauseFunc]bool)}
		var doc string
		if err := scan(&t.hash, &doc); err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(doc), &t.AccessToken); err != nil {
			return err
		}
		s.access[t.ID] = t
		return nil
	}, `SELECT hash, doc FROM access_token`)
}

// NewAccessToken is what a named token is made from.
type NewAccessToken struct {
	Name    string `json:"name"`              // letters, digits and _.:=+-; no two valid tokens have the same
	Role    Role   `json:"role,omitempty"`    // RoleReader when empty
	Expires int64  `json:"expires,omitempty"` // seconds from now; 0: never
}

// maxTokenLife bounds how far ahead a token may expire, in seconds: a hundred years.
const maxTokenLife = 100 * 366 * 24 * 3600

// AddToken makes a named token on behalf of the token named by. Its text is returned this once; it is on disk when
// AddToken returns.
func (s *Server) AddToken(n NewAccessToken, by string) (wire.Secret, AccessToken, error) {
	if n.Role == "" {
		n.Role = RoleReader
	}
	switch {
	case !label.MatchString(n.Name) || strings.Contains(n.Name, "/") || n.Name == fileToken:
		return "", AccessToken{}, refusal("name %q: up to 64 letters, digits and _.:=+-", clip(n.Name, 64))
	case n.Role != RoleOperator && n.Role != RoleReader:
		return "", AccessToken{}, refusal("role %q: %s or %s", clip(string(n.Role), 64), RoleOperator, RoleReader)
	case n.Expires < 0 || n.Expires > maxTokenLife:
		return "", AccessToken{}, refusal("expires: 0 to %d seconds", int64(maxTokenLife))
	}
	now := time.Now()
	text := wire.Secret(randomHex(32))
	t := &accessToken{hash: hash(string(text)), calls: make(map[*context.CancelCauseFunc]bool),
		AccessToken: AccessToken{ID: randomHex(6), Name: n.Name, Role: n.Role, CreatedAt: millis(now), CreatedBy: by}}
	if n.Expires > 0 {
		t.ExpiresAt = millis(now.Add(time.Duration(n.Expires) * time.Second))
	}
	s.mu.Lock()
	var dead []string
	for _, old := range s.access {
		if ended := max(old.RevokedAt, old.ExpiresAt); old.state(now) != TokenValid && millis(now.Add(-keepDeadToken)) > ended {
			dead = append(dead, old.ID)
		} else if old.state(now) == TokenValid && old.Name == n.Name {
			s.mu.Unlock()
			return "", AccessToken{}, refusal("there is a token %q already: revoke it first, or take another name", n.Name)
		}
	}
	if len(s.access)-len(dead) >= maxAccessTokens {
		s.mu.Unlock()
		return "", AccessToken{}, refusal("there are %d tokens already", maxAccessTokens)
	}
	for _, id := range dead {
		delete(s.access, id)
	}
	s.access[t.ID] = t
	saved := s.saveToken(t, dead...)
	view := t.AccessToken
	s.mu.Unlock()
	if err := saved.wait(); err != nil {
		s.mu.Lock()
		delete(s.access, t.ID)
		s.mu.Unlock()
		return "", AccessToken{}, err
	}
	view.State = TokenValid
	return text, view, nil
}

// saveToken enqueues a token, and forgets others. Call it with the lock held.
func (s *Server) saveToken(t *accessToken, dead ...string) *ticket {
	stored := t.AccessToken
	stored.State, stored.UsedAt = "", 0
	id, sum, doc := t.ID, t.hash, jsonText(stored)
	return s.store.enqueue(func(tx *sql.Tx) error {
		for _, id := range dead {
			if _, err := tx.Exec(`DELETE FROM access_token WHERE id = ?`, id); err != nil {
				return err
			}
		}
		_, err := tx.Exec(`INSERT INTO access_token (id, hash, doc) VALUES (?, ?, ?)
			ON CONFLICT (id) DO UPDATE SET doc = excluded.doc`, id, sum, doc)
		return err
	}, nil)
}

// Tokens lists the named tokens, the newest first, also those that ended lately.
func (s *Server) Tokens() []AccessToken {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]AccessToken, 0, len(s.access))
	for _, t := range s.access {
		view := t.AccessToken
		view.State = t.state(now)
		list = append(list, view)
	}
	slices.SortFunc(list, func(a, b AccessToken) int {
		return cmp.Or(cmp.Compare(b.CreatedAt, a.CreatedAt), strings.Compare(a.ID, b.ID))
	})
	return list
}

// RevokeToken ends a token, named by its id or, if it is valid, by its name, and all that is under way with it. To
// revoke one again changes nothing.
func (s *Server) RevokeToken(id string) (AccessToken, error) {
	now := time.Now()
	s.mu.Lock()
	t := s.access[id]
	for _, other := range s.access {
		if t == nil && other.Name == id && other.state(now) == TokenValid {
			t = other
		}
	}
	if t == nil {
		s.mu.Unlock()
		return AccessToken{}, fmt.Errorf("token %q: %w", clip(id, 64), ErrNotFound)
	}
	if t.RevokedAt == 0 {
		t.RevokedAt = millis(now)
	}
	saved := s.saveToken(t) // once more even if it was: perhaps the disk refused then
	for stop := range t.calls {
		(*stop)(errTokenGone)
	}
	view := t.AccessToken
	view.State = t.state(now)
	s.mu.Unlock()
	// A disk that refuses does not bring the token back before the controller is started again.
	return view, saved.wait()
}

// caller finds who shows a token: the operator's of the file, or a named one that is valid. The texts are compared by
// their digests: the time that it takes says nothing about them.
func (s *Server) caller(token string) (caller, bool) {
	if same(token, string(s.token)) {
		return caller{ID: fileToken, Name: fileToken, Role: RoleOperator}, true
	}
	sum, now := hash(token), time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	var found *accessToken
	for _, t := range s.access {
		if subtle.ConstantTimeCompare([]byte(t.hash), []byte(sum)) == 1 {
			found = t
		}
	}
	if found == nil || found.state(now) != TokenValid {
		return caller{}, false
	}
	found.UsedAt = millis(now)
	return caller{ID: found.ID, Name: found.Name, Role: found.Role}, true
}

// stands reports whether a caller's token is still valid: for sessions, which outlive the call that began them.
func (s *Server) stands(c caller) bool {
	if c.ID == fileToken {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.access[c.ID]
	return t != nil && t.state(time.Now()) == TokenValid
}

// whileValid is a context that ends, at the latest, when the caller's token is revoked or expires. Call the function
// when the call is over.
func (s *Server) whileValid(ctx context.Context, c caller) (context.Context, func()) {
	ctx, stop := context.WithCancelCause(ctx)
	end := func() { stop(nil) }
	if c.ID == fileToken {
		return ctx, end
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.access[c.ID]
	if t == nil || t.RevokedAt != 0 {
		stop(errTokenGone)
		return ctx, end
	}
	if t.ExpiresAt != 0 {
		var done context.CancelFunc
		ctx, done = context.WithDeadlineCause(ctx, time.UnixMilli(t.ExpiresAt), errTokenGone)
		end = func() { done(); stop(nil) }
	}
	t.calls[&stop] = true
	return ctx, func() {
		end()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(t.calls, &stop)
	}
}

// callerKey is the key of a request's caller in its context.
type callerKey struct{}

// callerOf is who makes a request that operator has let through.
func callerOf(r *http.Request) caller {
	c, _ := r.Context().Value(callerKey{}).(caller)
	return c
}

// operator lets callers through whose role suffices for the call.
func (s *Server) operator(pattern string, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		kind, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		c, known := caller{}, false
		if strings.EqualFold(kind, "Bearer") {
			c, known = s.caller(strings.TrimSpace(token))
		}
		if !known {
			w.Header().Set("WWW-Authenticate", `Bearer realm="operator"`)
			apiAnswer(w, http.StatusUnauthorized, map[string]string{"error": "the operator's token is missing or wrong, or was revoked or has expired"})
			return
		}
		s.admit(w, r, c, pattern, next)
	}
}

// admit makes a call of the operator's API on behalf of a caller whose token is valid, if their role suffices: from the
// API, or from a page that they have signed in to.
func (s *Server) admit(w http.ResponseWriter, r *http.Request, c caller, pattern string, next http.HandlerFunc) {
	if !c.Role.may(requiredRole(pattern)) {
		if audited(pattern) {
			s.finishAudit(s.audit(r, c, pattern), http.StatusForbidden)
		}
		apiAnswer(w, http.StatusForbidden, map[string]string{"error": forbidden(c, pattern)})
		return
	}
	ctx, end := s.whileValid(context.WithValue(r.Context(), callerKey{}, c), c)
	defer end()
	if err := s.roomForCall(r, pattern); err != nil {
		operatorError(w, err)
		return
	}
	s.withAudit(w, r.WithContext(ctx), c, pattern, next)
}

// forbidden says why a caller may not make a call.
func forbidden(c caller, pattern string) string {
	return fmt.Sprintf("the token %s is %s: %s needs one with the role %s", c.Name, c.Role, pattern, RoleOperator)
}

// shown is an agent as its caller may see it: the environment of workers often holds secrets.
func (c caller) shown(a AgentInfo) AgentInfo {
	if c.Role == RoleOperator || len(a.Settings.Envs) == 0 {
		return a
	}
	envs := make(map[string]string, len(a.Settings.Envs))
	for name := range a.Settings.Envs {
		envs[name] = masked
	}
	a.Settings.Envs = envs
	return a
}

// accessRoutes adds the operator's calls about tokens.
func (s *Server) accessRoutes(add func(pattern string, h http.HandlerFunc)) {
	add("GET /audit", s.apiAudit)
	add("GET /tokens", func(w http.ResponseWriter, _ *http.Request) { reply(w, s.Tokens(), nil) })
	type shownOnce struct {
		Token string `json:"token"`
		AccessToken
	}
	add("POST /tokens", act(func(r *http.Request, in NewAccessToken) (shownOnce, error) {
		text, made, err := s.AddToken(in, callerOf(r).Name)
		return shownOnce{string(text), made}, err
	}))
	add("DELETE /tokens/{id}", func(w http.ResponseWriter, r *http.Request) {
		gone, err := s.RevokeToken(r.PathValue("id"))
		reply(w, gone, err)
	})
}
