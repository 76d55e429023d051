package controller

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// pageFiles are the web page: it needs nothing from elsewhere, and works without a network beyond the controller's.
//
//go:embed page
var pageFiles embed.FS

// The page's cookie. It opens the page and nothing else: whoever has it can look.
const (
	sessionCookie = "devops_controller"
	sessionLife   = 12 * time.Hour
)

// Bounds of what the page shows at once.
const (
	shownAgents   = 500
	shownRollouts = 10
)

// pagePolicy lets the page load and call what is the controller's own only, and lets nobody frame it.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// pageRoutes adds the web page. It is read only; the operator signs in with the operator's token.
func (s *Server) pageRoutes(mux *http.ServeMux) {
	for path, file := range map[string]struct{ name, kind string }{
		"/{$}":      {"page/index.html", "text/html; charset=utf-8"},
		"/page.css": {"page/page.css", "text/css; charset=utf-8"},
		"/page.js":  {"page/page.js", "text/javascript; charset=utf-8"},
	} {
		data, err := pageFiles.ReadFile(file.name)
		if err != nil {
			continue // the page's test would say so
		}
		sum := sha256.Sum256(data)
		tag := `"` + hex.EncodeToString(sum[:8]) + `"`
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			pageHeader(w)
			w.Header().Set("Content-Type", file.kind)
			w.Header().Set("ETag", tag)
			if r.Header.Get("If-None-Match") == tag {
				w.WriteHeader(http.StatusNotModified)
				return
			}
			_, _ = w.Write(data) // a client that has gone cannot be told so
		})
	}
	own := http.NewCrossOriginProtection()
	mux.Handle("POST /session", own.Handler(http.HandlerFunc(s.signIn)))
	mux.Handle("DELETE /session", own.Handler(http.HandlerFunc(s.signOut)))
	mux.HandleFunc("GET /page/state", s.pageState)
}

func pageHeader(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-cache")
}

// pageSession is a cookie's value: when it ends, and the operator's token's word for it. The token itself is not in it.
func (s *Server) pageSession(ends time.Time) string {
	text := strconv.FormatInt(ends.Unix(), 10)
	h := hmac.New(sha256.New, []byte(s.token))
	h.Write([]byte("page session until " + text))
	return text + "." + hex.EncodeToString(h.Sum(nil))
}

// signedIn reports whether a request comes from a page whose operator has signed in.
func (s *Server) signedIn(r *http.Request, now time.Time) bool {
	for _, c := range r.CookiesNamed(sessionCookie) {
		text, _, _ := strings.Cut(c.Value, ".")
		ends, err := strconv.ParseInt(text, 10, 64)
		if err == nil && now.Before(time.Unix(ends, 0)) && same(c.Value, s.pageSession(time.Unix(ends, 0))) {
			return true
		}
	}
	return false
}

func (s *Server) setSession(w http.ResponseWriter, r *http.Request, value string, life time.Duration) {
	secure := r.TLS != nil || strings.HasPrefix(s.opts.PublicURL, "https://") && r.Header.Get("X-Forwarded-Proto") == "https"
	http.SetCookie(w, &http.Cookie{Name: sessionCookie, Value: value, Path: "/", MaxAge: int(life / time.Second), HttpOnly: true,
		Secure: secure, SameSite: http.SameSiteStrictMode})
}

// signIn is POST /session with the form member token.
func (s *Server) signIn(w http.ResponseWriter, r *http.Request) {
	pageHeader(w)
	r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
	if !same(strings.TrimSpace(r.PostFormValue("token")), string(s.token)) {
		s.log.Warn("Somebody tried to sign in with a wrong token", "from", r.RemoteAddr)
		apiAnswer(w, http.StatusUnauthorized, map[string]string{"error": "the operator's token is wrong"})
		return
	}
	s.setSession(w, r, s.pageSession(time.Now().Add(sessionLife)), sessionLife)
	w.WriteHeader(http.StatusNoContent)
}

// signOut is DELETE /session.
func (s *Server) signOut(w http.ResponseWriter, r *http.Request) {
	pageHeader(w)
	s.setSession(w, r, "", -time.Second)
	w.WriteHeader(http.StatusNoContent)
}

// pageAgent is one line of the page.
type pageAgent struct {
	ID           string           `json:"id"`
	HostName     string           `json:"hostName,omitempty"`
	Status       wire.AgentStatus `json:"status"`
	AgentVersion string           `json:"agentVersion,omitempty"`
	System       string           `json:"system"`
	Builds       int              `json:"builds,omitempty"`
	SeenAt       int64            `json:"seenAt,omitempty"`
	Upgrade      *AgentUpgrade    `json:"upgrade,omitempty"`
}

// pageView is all that the page shows.
type pageView struct {
	Version  string        `json:"version"`
	Now      int64         `json:"now"`
	Total    int           `json:"total"` // agents
	Online   int           `json:"online"`
	Agents   []pageAgent   `json:"agents"` // the first by trouble and name
	Rollouts []RolloutInfo `json:"rollouts"`
	Releases int           `json:"releases"`
	Newest   string        `json:"newest,omitempty"` // release
}

// pageState is GET /page/state.
func (s *Server) pageState(w http.ResponseWriter, r *http.Request) {
	pageHeader(w)
	w.Header().Set("Cache-Control", "no-store")
	now := time.Now()
	if !s.signedIn(r, now) {
		apiAnswer(w, http.StatusUnauthorized, map[string]string{"error": "sign in first"})
		return
	}
	apiAnswer(w, http.StatusOK, s.view(now))
}

func (s *Server) view(now time.Time) pageView {
	v := pageView{Version: s.opts.Version, Now: millis(now), Agents: []pageAgent{}, Rollouts: []RolloutInfo{}}
	if releases := s.Releases(); len(releases) > 0 {
		v.Releases, v.Newest = len(releases), releases[0].Version
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*agent
	for _, a := range s.agents {
		if a.Status == wire.Deleted {
			continue
		}
		all = append(all, a)
		if a.Status == wire.ImportOK {
			v.Online++
		}
	}
	v.Total = len(all)
	slices.SortFunc(all, func(x, y *agent) int {
		return cmp.Or(trouble(x)-trouble(y), strings.Compare(x.HostName, y.HostName), strings.Compare(x.ID, y.ID))
	})
	for _, a := range all[:min(len(all), shownAgents)] {
		line := pageAgent{ID: a.ID, HostName: a.HostName, Status: a.Status, AgentVersion: a.AgentVersion, System: a.OS,
			Builds: len(a.builds), Upgrade: s.agentUpgrade(a)}
		if a.Arch != "" {
			line.System += "/" + a.Arch
		}
		if a.here() {
			line.SeenAt = millis(a.seen)
			if a.held > 0 {
				line.SeenAt = v.Now
			}
		}
		v.Agents = append(v.Agents, line)
	}
	for _, r := range slices.Backward(s.rollouts) {
		if r.inForce() && len(v.Rollouts) < shownRollouts {
			v.Rollouts = append(v.Rollouts, s.rolloutInfo(r, false))
		}
	}
	return v
}

// trouble sorts agents: those that are offline first, those that never started last.
func trouble(a *agent) int {
	switch a.Status {
	case wire.ImportException:
		return 0
	case wire.ImportOK:
		return 1
	}
	return 2
}
