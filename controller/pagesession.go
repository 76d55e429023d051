package controller

import (
	"crypto/sha256"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	sessionCookie = "devops_controller"
	sessionLife   = 12 * time.Hour
	maxSessions   = 1000 // the oldest goes when there are more
)

// Sign-ins that fail, per address, before it has to wait.
const (
	maxRefused   = 10
	refusedFor   = time.Minute
	maxAddresses = 10_000
)

// session is a page whose operator has signed in. It ends with the token.
type session struct {
	caller
	ends time.Time
}

// sessions are the page's. They are in memory: a restart of the controller ends them all. Only digests of what is in
// the cookies are kept.
type sessions struct {
	mu      sync.Mutex
	open    map[[32]byte]session
	refused map[netip.Addr]refusals
}

// refusals counts failed sign-ins of one address since a moment.
type refusals struct {
	count int
	since time.Time
}

func newSessions() *sessions {
	return &sessions{open: make(map[[32]byte]session), refused: make(map[netip.Addr]refusals)}
}

// begin makes a session and returns its cookie's value.
func (p *sessions) begin(v session, now time.Time) string {
	value := randomHex(32)
	p.mu.Lock()
	defer p.mu.Unlock()
	var oldest [32]byte
	for key, old := range p.open {
		if !now.Before(old.ends) {
			delete(p.open, key)
		} else if first, found := p.open[oldest]; !found || old.ends.Before(first.ends) {
			oldest = key
		}
	}
	if len(p.open) >= maxSessions {
		delete(p.open, oldest)
	}
	p.open[sha256.Sum256([]byte(value))] = v
	return value
}

func (p *sessions) find(value string, now time.Time) (session, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, found := p.open[sha256.Sum256([]byte(value))]
	return v, found && now.Before(v.ends)
}

func (p *sessions) end(value string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, sha256.Sum256([]byte(value)))
}

// wait is how long an address has to wait before it may try to sign in again, 0 when it may now.
func (p *sessions) wait(from netip.Addr, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.refused[from]
	if r.count < maxRefused {
		return 0
	}
	return max(0, r.since.Add(refusedFor).Sub(now))
}

// refuse counts a failed sign-in.
func (p *sessions) refuse(from netip.Addr, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.refused[from]
	if now.Sub(r.since) >= refusedFor {
		r = refusals{since: now}
	}
	r.count++
	if len(p.refused) >= maxAddresses {
		for addr, old := range p.refused {
			if now.Sub(old.since) >= refusedFor {
				delete(p.refused, addr)
			}
		}
		if len(p.refused) >= maxAddresses {
			clear(p.refused)
		}
	}
	p.refused[from] = r
}

// addressOf is who calls: the whole network of 64 bits for IPv6, which one machine may have for itself.
func addressOf(r *http.Request) netip.Addr {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}
	}
	if addr = addr.Unmap(); addr.Is6() {
		if net, err := addr.WithZone("").Prefix(64); err == nil {
			return net.Addr()
		}
	}
	return addr
}

// signedIn returns who a page's request comes from.
func (s *Server) signedIn(r *http.Request) (caller, bool) {
	now := time.Now()
	for _, c := range r.CookiesNamed(sessionCookie) {
		if v, found := s.sessions.find(c.Value, now); found {
			if s.stands(v.caller) {
				return v.caller, true
			}
			s.sessions.end(c.Value)
		}
	}
	return caller{}, false
}

func (s *Server) setSession(w http.ResponseWriter, r *http.Request, value string, life time.Duration) {
	secure := r.TLS != nil || strings.HasPrefix(s.opts.PublicURL, "https://") && r.Header.Get("X-Forwarded-Proto") == "https"
	http.SetCookie(w, &http.Cookie{Name: sessionCookie, Value: value, Path: "/", MaxAge: int(life / time.Second), HttpOnly: true,
		Secure: secure, SameSite: http.SameSiteStrictMode})
}

// signIn is POST /session with the form member token.
func (s *Server) signIn(w http.ResponseWriter, r *http.Request) {
	pageHeader(w)
	now, from := time.Now(), addressOf(r)
	if wait := s.sessions.wait(from, now); wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
		apiAnswer(w, http.StatusTooManyRequests, map[string]string{"error": "too many attempts; wait a minute"})
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
	c, known := s.caller(strings.TrimSpace(r.PostFormValue("token")))
	if !known {
		s.sessions.refuse(from, now)
		s.log.Warn("Somebody tried to sign in with a wrong token", "from", r.RemoteAddr)
		apiAnswer(w, http.StatusUnauthorized, map[string]string{"error": "the token is wrong, or was revoked or has expired"})
		return
	}
	s.log.Info("Signed in to the page", "token", c.Name, "role", string(c.Role), "from", r.RemoteAddr)
	s.finishAudit(s.audit(r, c, "POST /session"), http.StatusNoContent)
	value := s.sessions.begin(session{caller: c, ends: now.Add(sessionLife)}, now)
	s.setSession(w, r, value, sessionLife)
	w.WriteHeader(http.StatusNoContent)
}

// signOut is DELETE /session.
func (s *Server) signOut(w http.ResponseWriter, r *http.Request) {
	pageHeader(w)
	if c, found := s.signedIn(r); found {
		s.finishAudit(s.audit(r, c, "DELETE /session"), http.StatusNoContent)
	}
	for _, c := range r.CookiesNamed(sessionCookie) {
		s.sessions.end(c.Value)
	}
	s.setSession(w, r, "", -time.Second)
	w.WriteHeader(http.StatusNoContent)
}
