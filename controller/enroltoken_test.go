package controller

import (
	"errors"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// install fetches an install script with a token.
func (w *world) install(token, query string) rawReply {
	w.t.Helper()
	h := http.Header{}
	h.Set(wire.HeaderInstallToken, token)
	return w.call("GET", wire.PathExternal+"/LINUX/batchInstall"+query, h, nil)
}

// enrolToken makes an enrolment token.
func (w *world) enrolToken(n NewEnrolToken) (string, EnrolTokenInfo) {
	w.t.Helper()
	text, made, err := w.server.AddEnrolToken(n, "test")
	if err != nil {
		w.t.Fatal(err)
	}
	return string(text), made
}

// enrolTokenOf returns the list's view of a token.
func (w *world) enrolTokenOf(id string) EnrolTokenInfo {
	w.t.Helper()
	for _, info := range w.server.EnrolTokens() {
		if info.ID == id {
			return info
		}
	}
	w.t.Fatalf("token %s is not listed", id)
	return EnrolTokenInfo{}
}

var scriptID = regexp.MustCompile(`(?m)^agent_id='([^']+)'$`)

func TestOneOfTwoRacingEnrolmentsGetsTheLastUse(t *testing.T) {
	dir := t.TempDir()
	w := serve(t, Options{Dir: dir})
	text, made := w.enrolToken(NewEnrolToken{Uses: 3, Labels: []string{"gpu"}, Project: "team", Note: "rack 4"})
	var wg sync.WaitGroup
	replies := make([]rawReply, 12)
	for i := range replies {
		wg.Go(func() { replies[i] = w.install(text, "") })
	}
	wg.Wait()
	won := 0
	for _, r := range replies {
		switch {
		case r.code == 200 && scriptID.Match(r.body):
			won++
		case r.code != 400 || r.env.Status != codeNoToken || !strings.Contains(string(r.body), "used up"):
			t.Errorf("%d %s", r.code, r.body)
		}
	}
	if got := w.enrolTokenOf(made.ID); won != 3 || len(w.server.Agents()) != 3 || got.State != TokenUsedUp || got.Used != 3 || got.UsedAt == 0 {
		t.Errorf("%d enrolled, %d records, %+v", won, len(w.server.Agents()), got)
	}
	for _, a := range w.server.Agents() {
		if a.Project != "team" || a.Labels[0] != "gpu" {
			t.Errorf("record %+v", a)
		}
	}
}

// What is acknowledged is on disk: a second controller, on a copy of the files as a kill leaves them, counts the same.
func TestUsesOutliveARestart(t *testing.T) {
	dir := t.TempDir()
	open := func() *Server {
		s, err := Open(Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	text, made, err := s.AddEnrolToken(NewEnrolToken{Uses: 2, Note: "two"}, "test")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.enrol(string(text), "linux", ""); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	defer func() { _ = s.Close() }()
	if list := s.EnrolTokens(); len(list) != 1 || list[0].ID != made.ID || list[0].Used != 1 || list[0].State != TokenValid || list[0].Note != "two" || list[0].CreatedBy != "test" {
		t.Fatalf("%+v", list)
	}
	if _, _, err := s.enrol(string(text), "linux", ""); err != nil {
		t.Error(err)
	}
	var refused *enrolError
	if _, _, err := s.enrol(string(text), "linux", ""); !errors.As(err, &refused) {
		t.Errorf("a third use: %v", err)
	}
}

func TestAnEnrolmentThatTheDiskRefusesUsesNothing(t *testing.T) {
	w := serve(t, Options{})
	text, made := w.enrolToken(NewEnrolToken{Uses: 1})
	full := errors.New("disk full")
	w.server.store.lead <- struct{}{}
	w.server.store.fail = func() error { return full }
	<-w.server.store.lead
	if _, _, err := w.server.enrol(text, "linux", ""); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	if got := w.enrolTokenOf(made.ID); got.Used != 0 || len(w.server.Agents()) != 0 {
		t.Errorf("%+v, %d records", got, len(w.server.Agents()))
	}
	w.server.store.lead <- struct{}{}
	w.server.store.fail = nil
	<-w.server.store.lead
	if _, _, err := w.server.enrol(text, "linux", ""); err != nil {
		t.Error(err)
	}
}

func TestAnEnrolmentTokenIsRevoked(t *testing.T) {
	w := serve(t, Options{})
	text, made := w.enrolToken(NewEnrolToken{})
	script := w.install(text, "")
	id := scriptID.FindSubmatch(script.body)
	address := regexp.MustCompile(`package="([^"]+)"`).FindSubmatch(script.body)
	if script.code != 200 || id == nil || address == nil {
		t.Fatalf("%d %s", script.code, script.body)
	}
	link := strings.TrimPrefix(string(address[1]), w.url)
	project := http.Header{"X-Devops-Project-Id": {DefaultProject}}
	if r := w.call("GET", link, project, nil); r.code != 200 {
		t.Fatalf("the key opens nothing: %d %s", r.code, r.body)
	}
	code, answer := w.as(string(w.server.Token()), "DELETE", "/enroll-tokens/"+made.ID, nil)
	if code != 200 || !strings.Contains(answer, TokenRevoked) {
		t.Fatalf("%d %s", code, answer)
	}
	if r := w.install(text, ""); r.code != 400 {
		t.Errorf("a revoked token enrols: %d", r.code)
	}
	if r := w.install(text, "?reInstallId="+string(id[1])); r.code != 400 {
		t.Errorf("a revoked token re-installs: %d", r.code)
	}
	if r := w.call("GET", link, project, nil); r.code != 400 {
		t.Errorf("the key of a revoked token opens the package: %d", r.code)
	}
	h := http.Header{}
	h.Set(wire.HeaderInstallToken, text)
	if r := w.call("GET", wire.PathExternal+"/"+string(id[1])+"/agent", h, nil); r.code != 400 {
		t.Errorf("a revoked token opens the package: %d", r.code)
	}
	if code, _ := w.as(string(w.server.Token()), "DELETE", "/enroll-tokens/none", nil); code != 404 {
		t.Errorf("an unknown token is revoked: %d", code)
	}
}

// A token for one machine is good for that machine: not for another's package, and not to take another over.
func TestATokenForOneMachineOpensNoOther(t *testing.T) {
	w := serve(t, Options{})
	victim := w.machine(NewAgent{})
	text, made := w.enrolToken(NewEnrolToken{Uses: 1})
	h := http.Header{}
	h.Set(wire.HeaderInstallToken, text)
	if r := w.call("GET", wire.PathExternal+"/"+victim.id.Agent+"/agent", h, nil); r.code != 400 {
		t.Errorf("it opens another's package: %d", r.code)
	}
	if r := w.install(text, ""); r.code != 200 {
		t.Fatalf("%d %s", r.code, r.body)
	}
	if r := w.install(text, "?reInstallId="+victim.id.Agent); r.code != 400 || w.enrolTokenOf(made.ID).Used != 1 {
		t.Errorf("used up, it takes over another: %d", r.code)
	}
	again, twice := w.enrolToken(NewEnrolToken{Uses: 2})
	if r := w.install(again, "?reInstallId="+victim.id.Agent); r.code != 200 || w.enrolTokenOf(twice.ID).Used != 1 {
		t.Errorf("re-install: %d %s", r.code, r.body)
	}
}

func TestEnrolmentTokensAreListedWithoutTheirTexts(t *testing.T) {
	w := serve(t, Options{})
	operator := string(w.server.Token())
	code, answer := w.as(operator, "POST", "/enroll-tokens", map[string]any{"labels": []string{"gpu"}, "uses": 2, "expires": 3600, "note": "rack 4"})
	found := regexp.MustCompile(`"token":"([0-9a-f]{64})"`).FindStringSubmatch(answer)
	if code != 200 || found == nil {
		t.Fatalf("%d %s", code, answer)
	}
	_, list := w.as(operator, "GET", "/enroll-tokens", nil)
	for _, secret := range []string{found[1], hash(found[1])} {
		if strings.Contains(list, secret) {
			t.Errorf("the list shows a token or its digest: %s", list)
		}
	}
	got := w.server.EnrolTokens()[0]
	if got.Uses != 2 || got.Note != "rack 4" || got.CreatedBy != fileToken || time.UnixMilli(got.ExpiresAt).Sub(time.UnixMilli(got.CreatedAt)) != time.Hour || got.State != TokenValid {
		t.Errorf("%+v", got)
	}
	for _, bad := range []map[string]any{{"uses": -1}, {"expires": -1}, {"expires": maxEnrolLife + 1}, {"uses": maxEnrolUses + 1}, {"note": "a\nb"},
		{"note": strings.Repeat("n", 201)}, {"labels": []string{"a b"}}, {"labels": make([]string, 101)}, {"project": "a b"}, {"secret": 1}} {
		if code, text := w.as(operator, "POST", "/enroll-tokens", bad); code != 400 {
			t.Errorf("%v: %d %s", bad, code, text)
		}
	}
}

// A data base of an older controller has tokens without an id.
func TestEnrolmentTokensOfOlderControllers(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	text := randomHex(32)
	if _, err := s.store.write.Exec(`INSERT INTO token (hash, doc) VALUES (?, ?)`, hash(text),
		jsonText(map[string]any{"project": "team", "labels": []string{"gpu"}, "expires": millis(time.Now().Add(time.Hour))})); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if a, _, err := s.enrol(text, "linux", ""); err != nil || a.Project != "team" {
		t.Errorf("%+v %v", a, err)
	}
	list := s.EnrolTokens()
	if len(list) != 1 || len(list[0].ID) != 12 || list[0].Used != 1 {
		t.Fatalf("%+v", list)
	}
	if gone, err := s.RevokeEnrolToken(list[0].ID); err != nil || gone.State != TokenRevoked {
		t.Errorf("%+v %v", gone, err)
	}
}
