package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// as makes a call of the operator's with a token, and returns the status and the answer.
func (w *world) as(token, method, path string, in any) (int, string) {
	w.t.Helper()
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			w.t.Fatal(err)
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.url+"/api/v1"+path, body)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := w.http.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

// token makes a named token.
func (w *world) token(n NewAccessToken) (string, AccessToken) {
	w.t.Helper()
	text, made, err := w.server.AddToken(n, "test")
	if err != nil {
		w.t.Fatal(err)
	}
	return string(text), made
}

func TestAReaderSeesEverythingButSecretsAndChangesNothing(t *testing.T) {
	w := serve(t, Options{})
	m := w.machine(NewAgent{})
	if _, err := w.server.ChangeAgent(m.id.Agent, AgentChange{Envs: &map[string]string{"PASSWORD": "correct horse"}}); err != nil {
		t.Fatal(err)
	}
	b := w.submit(oneStep("true"))
	reader, _ := w.token(NewAccessToken{Name: "wall"})
	for _, pattern := range readerCalls() {
		method, path, _ := strings.Cut(pattern, " ")
		if method != "GET" {
			t.Errorf("%s: a reader may make a call that is no GET", pattern)
		}
		id := m.id.Agent
		if strings.HasPrefix(path, "/builds") {
			id = b.ID
		}
		code, text := w.as(reader, method, strings.NewReplacer("{id}", id, "{digest}", strings.Repeat("0", 64)).Replace(path), nil)
		if code != http.StatusOK && (code != http.StatusNotFound || strings.Contains(text, "no such call")) {
			t.Errorf("%s: %d %s", pattern, code, text)
		}
		if strings.Contains(text, "correct horse") {
			t.Errorf("%s shows a reader the environment of workers: %s", pattern, text)
		}
	}
	if _, text := w.as(string(w.server.Token()), "GET", "/agents/"+m.id.Agent, nil); !strings.Contains(text, "correct horse") {
		t.Errorf("the operator does not see the environment: %s", text)
	}
	for _, call := range []string{"POST /agents", "PATCH /agents/" + m.id.Agent, "DELETE /agents/" + m.id.Agent, "POST /agents/" + m.id.Agent + "/scripts",
		"GET /scripts/1", "POST /enroll-tokens", "POST /builds", "POST /builds/" + b.ID + "/cancel", "PUT /objects/" + strings.Repeat("0", 64),
		"POST /releases", "DELETE /releases/v1", "POST /rollouts", "POST /rollouts/1/pause", "POST /rollouts/1/resume", "POST /rollouts/1/rollback",
		"POST /tokens", "DELETE /tokens/wall"} {
		method, path, _ := strings.Cut(call, " ")
		code, text := w.as(reader, method, path, nil)
		if code != http.StatusForbidden || !strings.Contains(text, "wall is read-only") {
			t.Errorf("%s by a reader: %d %s", call, code, text)
		}
	}
	if got := w.build(b.ID); got.State != Queued || got.CancelRequested {
		t.Errorf("a reader changed a build: %+v", got)
	}
	if list := w.server.Tokens(); len(list) != 1 || list[0].State != TokenValid {
		t.Errorf("a reader changed tokens: %+v", list)
	}
}

func TestANamedOperatorMayDoAll(t *testing.T) {
	w := serve(t, Options{})
	text, made := w.token(NewAccessToken{Name: "ci", Role: RoleOperator})
	code, answer := w.as(text, "POST", "/tokens", NewAccessToken{Name: "other"})
	if code != http.StatusOK {
		t.Fatalf("%d %s", code, answer)
	}
	var second struct {
		Token string
		AccessToken
	}
	if err := json.Unmarshal([]byte(answer), &second); err != nil {
		t.Fatal(err)
	}
	if second.CreatedBy != "ci" || second.Role != RoleReader || second.State != TokenValid {
		t.Errorf("made %+v", second.AccessToken)
	}
	if code, _ := w.as(second.Token, "GET", "/agents", nil); code != http.StatusOK {
		t.Errorf("the new token opens nothing: %d", code)
	}
	_, list := w.as(text, "GET", "/tokens", nil)
	for _, secret := range []string{text, second.Token, hash(text), hash(second.Token)} {
		if strings.Contains(list, secret) {
			t.Errorf("the list shows a token or its digest: %s", list)
		}
	}
	if !strings.Contains(list, made.ID) || !strings.Contains(list, second.ID) {
		t.Errorf("the list lacks a token: %s", list)
	}
}

func TestATokenThatCannotBeIsRefused(t *testing.T) {
	w := serve(t, Options{})
	w.token(NewAccessToken{Name: "taken"})
	for _, n := range []NewAccessToken{{}, {Name: "a b"}, {Name: "a/b"}, {Name: strings.Repeat("a", 65)}, {Name: fileToken}, {Name: "taken"},
		{Name: "r", Role: "root"}, {Name: "e", Expires: -1}, {Name: "e", Expires: maxTokenLife + 1}} {
		if code, text := w.as(string(w.server.Token()), "POST", "/tokens", n); code != http.StatusBadRequest {
			t.Errorf("%+v: %d %s", n, code, text)
		}
	}
	if code, _ := w.as(string(w.server.Token()), "DELETE", "/tokens/none", nil); code != http.StatusNotFound {
		t.Errorf("an unknown token is revoked: %d", code)
	}
	if code, _ := w.as(string(w.server.Token()), "DELETE", "/tokens/"+fileToken, nil); code != http.StatusNotFound {
		t.Errorf("the file's token is revoked: %d", code)
	}
	for _, token := range []string{"", "x", strings.Repeat("0", 64)} {
		if code, _ := w.as(token, "GET", "/version", nil); code != http.StatusUnauthorized {
			t.Errorf("token %q: %d", token, code)
		}
	}
}

func TestARevokedTokenOpensNothingAndEndsWhatIsUnderWay(t *testing.T) {
	dir := t.TempDir()
	w := serve(t, Options{Dir: dir})
	b := w.submit(oneStep("true"))
	text, made := w.token(NewAccessToken{Name: "wall"})
	c, ok := w.server.caller(text)
	if !ok || !w.server.stands(c) {
		t.Fatal("a new token is not known")
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", w.url+"/api/v1/builds/"+b.ID+"/log?follow=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+text)
	resp, err := w.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("follow: %s", resp.Status)
	}
	if code, answer := w.as(string(w.server.Token()), "DELETE", "/tokens/wall", nil); code != http.StatusOK || !strings.Contains(answer, TokenRevoked) {
		t.Fatalf("revoke: %d %s", code, answer)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil { // the build never ends: only the token's end ends the answer
		t.Logf("the log broke off: %v", err)
	}
	if w.server.stands(c) {
		t.Error("a session of a revoked token stands")
	}
	if ctx, end := w.server.whileValid(t.Context(), c); !errors.Is(context.Cause(ctx), errTokenGone) {
		t.Error("a call begins with a revoked token")
	} else {
		end()
	}
	if code, _ := w.as(text, "GET", "/agents", nil); code != http.StatusUnauthorized {
		t.Errorf("a revoked token opens: %d", code)
	}
	if code, _ := w.as(string(w.server.Token()), "DELETE", "/tokens/"+made.ID, nil); code != http.StatusOK {
		t.Errorf("revoked again: %d", code)
	}
	if _, _, err := w.server.AddToken(NewAccessToken{Name: "wall"}, "test"); err != nil {
		t.Errorf("the name of a revoked token is not free: %v", err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "controller.db-wal"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(data, []byte(text)) {
		t.Error("the text of a token is in the data base")
	}
}

func TestTokensOutliveARestart(t *testing.T) {
	dir := t.TempDir()
	open := func() *Server {
		s, err := Open(Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	keep, _, err := s.AddToken(NewAccessToken{Name: "keep", Expires: 3600}, "test")
	if err != nil {
		t.Fatal(err)
	}
	drop, _, err := s.AddToken(NewAccessToken{Name: "drop"}, "test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.RevokeToken("drop"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	defer func() { _ = s.Close() }()
	if c, ok := s.caller(string(keep)); !ok || c.Name != "keep" || c.Role != RoleReader {
		t.Errorf("after a restart: %+v %t", c, ok)
	}
	if _, ok := s.caller(string(drop)); ok {
		t.Error("a restart brings a revoked token back")
	}
}

func TestATokenExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		text, _, err := s.AddToken(NewAccessToken{Name: "short", Expires: 60}, "test")
		if err != nil {
			t.Fatal(err)
		}
		c, ok := s.caller(string(text))
		if !ok {
			t.Fatal("a new token is not known")
		}
		ctx, end := s.whileValid(t.Context(), c)
		defer end()
		<-ctx.Done()
		if !errors.Is(context.Cause(ctx), errTokenGone) {
			t.Errorf("the call ended because %v", context.Cause(ctx))
		}
		if _, ok := s.caller(string(text)); ok || s.stands(c) {
			t.Error("an expired token opens")
		}
		if list := s.Tokens(); len(list) != 1 || list[0].State != TokenExpired {
			t.Errorf("listed as %+v", list)
		}
		if _, _, err := s.AddToken(NewAccessToken{Name: "short"}, "test"); err != nil {
			t.Errorf("the name of an expired token is not free: %v", err)
		}
		<-time.After(keepDeadToken + time.Hour)
		if _, _, err := s.AddToken(NewAccessToken{Name: "next"}, "test"); err != nil {
			t.Fatal(err)
		}
		if list := s.Tokens(); len(list) != 2 {
			t.Errorf("a token that ended long ago is listed: %+v", list)
		}
	})
}
