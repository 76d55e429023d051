package controller

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// TestBodiesAreReadAsAnnounced: whole ones of either kind are read; one that ends early, or is longer than the limit, is refused.
func TestBodiesAreReadAsAnnounced(t *testing.T) {
	for name, c := range map[string]struct {
		body      string
		announced int64 // -1: in chunks
		limit     int64
		want      int // status of the refusal, 0 for none
	}{
		"announced":           {"0123456789", 10, 10, 0},
		"in chunks":           {"0123456789", -1, 10, 0},
		"empty":               {"", 0, 10, 0},
		"ends early":          {"01234", 10, 10, http.StatusBadRequest},
		"announced too long":  {"0123456789a", 11, 10, http.StatusRequestEntityTooLarge},
		"in chunks, too long": {"0123456789a", -1, 10, http.StatusRequestEntityTooLarge},
		"long":                {strings.Repeat("x", believed+1), believed + 1, 1 << 20, 0},
		"lies":                {"x", believed, 1 << 20, http.StatusBadRequest},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", io.NopCloser(strings.NewReader(c.body)))
		r.ContentLength = c.announced
		w := httptest.NewRecorder()
		data, ok := readUpTo(w, r, c.limit)
		if c.want == 0 && (!ok || string(data) != c.body) || c.want != 0 && (ok || w.Code != c.want) {
			t.Errorf("%s: %v, status %d, %d bytes", name, ok, w.Code, len(data))
		}
	}
}

// TestSecretsAreToldApart: by secret, and by project, also when both are longer than usual ones; and nobody is known whose
// agent there is not.
func TestSecretsAreToldApart(t *testing.T) {
	long := strings.Repeat("s", 200)
	s := &Server{agents: map[string]*agent{
		"a": {Agent: Agent{ID: "a", Secret: "secret", Project: "demo"}},
		"b": {Agent: Agent{ID: "b", Secret: wire.Secret(long), Project: "demo"}},
	}}
	for id, want := range map[wire.Identity]bool{
		{Agent: "a", Secret: "secret", Project: "demo"}:                 true,
		{Agent: "a", Secret: "secret", Project: "other"}:                false,
		{Agent: "a", Secret: "secretdemo", Project: ""}:                 false,
		{Agent: "a", Secret: "other", Project: "demo"}:                  false,
		{Agent: "a", Secret: wire.Secret(long), Project: "demo"}:        false,
		{Agent: "b", Secret: wire.Secret(long), Project: "demo"}:        true,
		{Agent: "b", Secret: wire.Secret(long + "s"), Project: "demo"}:  false,
		{Agent: "b", Secret: wire.Secret(long[:159]), Project: "sdemo"}: false,
		{Agent: "c"}: false,
	} {
		if got := s.known(id) != nil; got != want {
			t.Errorf("agent %s, project %s, a secret of %d letters: known is %v", id.Agent, id.Project, len(id.Secret), got)
		}
	}
}
