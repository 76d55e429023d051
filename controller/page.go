package controller

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"net/http"
	"path"
)

// pageFiles are the web page: it needs nothing from elsewhere, and works without a network beyond the controller's.
//
//go:embed page
var pageFiles embed.FS

// pagePolicy lets the page load and call what is the controller's own only, and lets nobody frame it.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// pageHeaderName is a header that the page's own calls carry. A form of another site cannot set it, and a script of
// one would have to ask first, and is refused.
const pageHeaderName = "X-DEVOPS-PAGE"

// pageRoutes adds the web page: its files, sessions, and what it shows. What the operator's API can do, the page does
// by the same calls below /page/api, see operatorRoute.
func (s *Server) pageRoutes(mux *http.ServeMux) {
	files, err := fs.ReadDir(pageFiles, "page")
	if err != nil {
		return // it is embedded; the page's test would say so
	}
	for _, file := range files {
		data, err := pageFiles.ReadFile("page/" + file.Name())
		if err != nil {
			return
		}
		s.pageFile(mux, file.Name(), data)
	}
	mux.Handle("POST /session", s.ownPage(http.HandlerFunc(s.signIn)))
	mux.Handle("DELETE /session", s.ownPage(http.HandlerFunc(s.signOut)))
	for path, h := range map[string]http.HandlerFunc{
		"/page/state":               s.pageState,
		"/page/agents/{id}":         s.pageOneAgent,
		"/page/builds":              s.pageBuilds,
		"/page/builds/{id}":         s.pageBuild,
		"/page/builds/{id}/log.txt": s.pageLogText,
		"/page/runs":                s.pageRuns,
		"/page/secrets":             s.pageSecrets,
		"/page/tokens":              s.pageAccessTokens,
		"/page/enroll-tokens":       s.pageEnrolTokens,
	} {
		mux.Handle("GET "+path, s.forSession(lookCall, h))
	}
}

// lookCall is the call of the operator's API that the page's own ones are like: whoever may make it may look.
const lookCall = "GET /agents"

// pageKind is the media type of a file of the page.
func pageKind(name string) string {
	switch path.Ext(name) {
	case ".html":
		return "text/html; charset=utf-8"
	case ".css":
		return "text/css; charset=utf-8"
	case ".svg":
		return "image/svg+xml"
	}
	return "text/javascript; charset=utf-8"
}

// pageFile serves one file: index.html as /, the others by their names.
func (s *Server) pageFile(mux *http.ServeMux, name string, data []byte) {
	at := "/" + name
	if name == "index.html" {
		at = "/{$}"
	}
	sum := sha256.Sum256(data)
	tag := `"` + hex.EncodeToString(sum[:8]) + `"`
	mux.HandleFunc("GET "+at, func(w http.ResponseWriter, r *http.Request) {
		pageHeader(w)
		w.Header().Set("Content-Type", pageKind(name))
		w.Header().Set("ETag", tag)
		if r.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = w.Write(data) // a client that has gone cannot be told so
	})
}

func pageHeader(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-cache")
}

// ownPage refuses calls that another site's page made, by what browsers say of where a call comes from.
func (s *Server) ownPage(next http.Handler) http.Handler {
	return http.NewCrossOriginProtection().Handler(next)
}

// forSession makes a call of the operator's API, or of the page's own, for a page whose operator has signed in. What
// changes something must be the page's own call.
func (s *Server) forSession(pattern string, next http.HandlerFunc) http.Handler {
	return s.ownPage(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		pageHeader(w)
		w.Header().Set("Cache-Control", "no-store")
		c, found := s.signedIn(r)
		switch {
		case !found:
			apiAnswer(w, http.StatusUnauthorized, map[string]string{"error": "sign in first"})
		case r.Method != http.MethodGet && r.Method != http.MethodHead && r.Header.Get(pageHeaderName) == "":
			apiAnswer(w, http.StatusForbidden, map[string]string{"error": "this call is for the controller's own page"})
		default:
			s.admit(w, r, c, pattern, next)
		}
	}))
}
