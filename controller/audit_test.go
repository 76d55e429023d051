package controller

import (
	"errors"
	"net/http"
	"strings"
	"testing"
)

func TestTheAuditLogSaysWhoDidWhat(t *testing.T) {
	w := serve(t, Options{})
	operator := string(w.server.Token())
	m := w.machine(NewAgent{})
	_, reader := w.as(operator, "POST", "/tokens", NewAccessToken{Name: "wall"})
	token := reader[strings.Index(reader, `"token":"`)+9:][:64]
	secrets := []string{operator, token, hash(token), "hush-1", "hush-2", "hush-3"}
	build := map[string]any{"spec": Spec{Name: "nightly", Steps: []Step{{Script: "echo hush-1"}}, Variables: map[string]Variable{"V": {Value: "hush-2", Sensitive: true}}}}
	w.as(token, "POST", "/builds", build)
	w.as(operator, "POST", "/builds", build)
	w.as(operator, "POST", "/builds/1/cancel", nil)
	w.as(operator, "PATCH", "/agents/"+m.id.Agent, map[string]any{"envs": map[string]string{"A": "hush-3"}})
	w.as(operator, "POST", "/agents/"+m.id.Agent+"/scripts", map[string]string{"command": "echo hush-3"})
	w.as(operator, "DELETE", "/agents/none", nil)
	w.as(operator, "GET", "/agents", nil)
	w.as("nonsense", "POST", "/builds", build)
	_, enrol := w.as(operator, "POST", "/enroll-tokens", NewEnrolToken{Note: "rack"})
	secrets = append(secrets, enrol[strings.Index(enrol, `"token":"`)+9:][:64])

	id := w.server.Tokens()[0].ID
	list, err := w.server.Audit(100, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := []AuditEntry{
		{Who: fileToken, Verb: "enroll-tokens.create", Object: w.server.EnrolTokens()[0].ID, Outcome: AuditOK},
		{Who: fileToken, Verb: "agents.delete", Object: "none", Outcome: AuditRefused, Status: 404},
		{Who: fileToken, Verb: "agents.scripts", Object: m.id.Agent, Outcome: AuditOK},
		{Who: fileToken, Verb: "agents.change", Object: m.id.Agent, Outcome: AuditOK},
		{Who: fileToken, Verb: "builds.cancel", Object: "1", Outcome: AuditOK, Name: "nightly"},
		{Who: fileToken, Verb: "builds.create", Object: w.build("1").ID, Outcome: AuditOK, Name: "nightly"},
		{Who: "wall", Token: id, Role: RoleReader, Verb: "builds.create", Outcome: AuditRefused, Status: 403},
		{Who: fileToken, Verb: "tokens.create", Object: id, Outcome: AuditOK, Name: "wall"},
	}
	if len(list) != len(want) {
		t.Fatalf("%d entries, want %d: %+v", len(list), len(want), list)
	}
	for i, e := range want {
		if e.Token == "" {
			e.Token, e.Role = fileToken, RoleOperator
		}
		if e.Status == 0 {
			e.Status = 200
		}
		e.ID, e.At, e.Address = int64(len(want)-i), list[i].At, "127.0.0.1"
		if list[i] != e || e.At == 0 {
			t.Errorf("entry %d:\n%+v\nwant\n%+v", i, list[i], e)
		}
	}
	code, text := w.as(token, "GET", "/audit?limit=2&before=4", nil)
	if code != http.StatusOK || strings.Count(text, `"verb"`) != 2 || !strings.Contains(text, `"id":3`) || strings.Contains(text, `"id":4`) {
		t.Errorf("paged: %d %s", code, text)
	}
	_, text = w.as(operator, "GET", "/audit", nil)
	for _, s := range secrets {
		if strings.Contains(text, s) {
			t.Errorf("the audit log holds %s", s)
		}
	}
	if code, _ := w.as(operator, "GET", "/audit?limit=x", nil); code != 400 {
		t.Errorf("limit=x: %d", code)
	}
}

func TestTheAuditLogIsBoundedAndItsNumbersGoOn(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		s, err := Open(Options{Dir: dir, MaxAudit: 5})
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			r, err := http.NewRequestWithContext(t.Context(), "DELETE", "http://x/api/v1/agents/none", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer "+string(s.Token()))
			resp, err := s.Transport().RoundTrip(r)
			if err != nil || resp.StatusCode != http.StatusNotFound {
				t.Fatal(resp, err)
			}
		}
		if list, err := s.Audit(100, 0); err != nil || len(list) != 5 || list[0].ID%10 != 0 || list[4].ID != list[0].ID-4 {
			t.Errorf("%+v %v", list, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// The note of an action is enqueued before the action's own change: a kill after it leaves the note, too.
func TestAnActionThatIsOnDiskIsInTheAuditLog(t *testing.T) {
	s, err := Open(Options{}) // without its timers: nobody else commits
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	commits := 0
	s.store.fail = func() error { // every commit but the first: what a kill after the first would have lost
		if commits++; commits > 1 {
			return errors.New("killed")
		}
		return nil
	}
	r, err := http.NewRequestWithContext(t.Context(), "POST", "http://x/api/v1/tokens", strings.NewReader(`{"name":"wall"}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+string(s.Token()))
	if resp, err := s.Transport().RoundTrip(r); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp, err)
	}
	list, err := s.Audit(10, 0)
	if err != nil || len(list) != 1 || list[0].Verb != "tokens.create" || list[0].Outcome != AuditUnknown || list[0].Address != "127.0.0.1" {
		t.Errorf("%+v %v", list, err)
	}
}

func TestVerbs(t *testing.T) {
	for pattern, want := range map[string]string{
		"POST /builds": "builds.create", "POST /builds/{id}/cancel": "builds.cancel", "DELETE /agents/{id}": "agents.delete",
		"PATCH /agents/{id}": "agents.change", "PUT /objects/{digest}": "objects.put", "POST /agents/{id}/scripts": "agents.scripts",
		"POST /rollouts/{id}/rollback": "rollouts.rollback", "POST /session": "session.create", "PUT /secrets/{project}/{name}": "secrets.put",
	} {
		if got := verbOf(pattern); got != want {
			t.Errorf("%s: %s, want %s", pattern, got, want)
		}
	}
}

func TestSessionsOfThePageAreInTheAuditLog(t *testing.T) {
	w := serve(t, Options{})
	h := w.signIn()
	wrong, body := form("wrong")
	w.call("POST", "/session", wrong, body)
	w.call("DELETE", "/session", h, nil)
	w.call("DELETE", "/session", h, nil) // it is over
	list, err := w.server.Audit(10, 0)
	if err != nil || len(list) != 2 || list[1].Verb != "session.create" || list[0].Verb != "session.delete" || list[0].Via != "page" || list[1].Who != fileToken || list[0].Outcome != AuditOK {
		t.Errorf("%+v %v", list, err)
	}
}

// A call of the page's is noted like one of the API, and with a revoked token the page is closed.
func TestThePageOfARevokedTokenIsClosed(t *testing.T) {
	w := serve(t, Options{})
	text, _ := w.token(NewAccessToken{Name: "desk", Role: RoleOperator})
	form, body := form(text)
	r := w.call("POST", "/session", form, body)
	cookie, _, _ := strings.Cut(r.header.Get("Set-Cookie"), ";")
	h := http.Header{"Cookie": {cookie}, pageHeaderName: {"1"}, "Sec-Fetch-Site": {"same-origin"}}
	if r := w.call("DELETE", "/page/api/agents/none", h, nil); r.code != http.StatusNotFound {
		t.Errorf("a call of the page: %d %s", r.code, r.body)
	}
	list, err := w.server.Audit(1, 0)
	if err != nil || len(list) != 1 || list[0].Who != "desk" || list[0].Verb != "agents.delete" || list[0].Object != "none" || list[0].Via != "page" || list[0].Outcome != AuditRefused {
		t.Errorf("%+v %v", list, err)
	}
	if r := w.call("GET", "/page/state", h, nil); r.code != http.StatusOK {
		t.Errorf("before: %d", r.code)
	}
	if _, err := w.server.RevokeToken("desk"); err != nil {
		t.Fatal(err)
	}
	if r := w.call("GET", "/page/state", h, nil); r.code != http.StatusUnauthorized {
		t.Errorf("after: %d", r.code)
	}
}
