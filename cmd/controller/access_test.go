package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/controller"
)

// desk is a controller in memory and a command line before it.
type desk struct {
	t      *testing.T
	server *controller.Server
	url    string
	token  string // file
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	s, err := controller.Open(controller.Options{})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(s.Handler())
	t.Cleanup(func() {
		s.Release()
		web.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	d := &desk{t: t, server: s, url: web.URL}
	d.token = d.keep(string(s.Token()))
	return d
}

// keep writes a token into a file.
func (d *desk) keep(token string) string {
	d.t.Helper()
	path := filepath.Join(d.t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
		d.t.Fatal(err)
	}
	return path
}

// run runs one command with the token in a file, and returns its outputs.
func (d *desk) run(token string, args ...string) (out, errs string, err error) {
	d.t.Helper()
	var o, e bytes.Buffer
	f := &flags{out: &o, err: &e}
	root := commands(f)
	root.SetArgs(append([]string{"--url", d.url, "--token-file", token}, args...))
	err = root.ExecuteContext(d.t.Context())
	return o.String(), e.String(), err
}

// must is run for a command that succeeds.
func (d *desk) must(args ...string) string {
	d.t.Helper()
	out, _, err := d.run(d.token, args...)
	if err != nil {
		d.t.Fatalf("%s: %v", args, err)
	}
	return out
}

func TestTokensOnTheCommandLine(t *testing.T) {
	d := newDesk(t)
	out, errs, err := d.run(d.token, "token", "add", "wall", "--expires", "2d")
	if err != nil || strings.Count(out, "\n") != 1 || !strings.Contains(errs, "read-only token wall, valid until ") {
		t.Fatalf("%q %q %v", out, errs, err)
	}
	reader := d.keep(strings.TrimSpace(out))
	if _, _, err := d.run(reader, "agents"); err != nil {
		t.Errorf("a reader may not look: %v", err)
	}
	var refused *apiError
	if _, _, err := d.run(reader, "enroll-token"); !errors.As(err, &refused) || refused.code != 403 || !strings.Contains(refused.Hint(), "--role operator") {
		t.Errorf("a reader makes tokens: %v", err)
	}
	var made struct {
		Token string
		controller.AccessToken
	}
	if err := json.Unmarshal([]byte(d.must("token", "add", "ci", "--role", "operator", "--json")), &made); err != nil || made.Role != controller.RoleOperator || made.ExpiresAt != 0 {
		t.Fatalf("%+v %v", made, err)
	}
	if _, _, err := d.run(d.keep(made.Token), "enroll-token"); err != nil {
		t.Errorf("a named operator may not make tokens: %v", err)
	}
	list := d.must("token", "list")
	if strings.Contains(list, made.Token) || !strings.Contains(list, made.ID) || !strings.Contains(list, "wall") {
		t.Errorf("listed:\n%s", list)
	}
	if out := d.must("token", "revoke", "wall"); !strings.Contains(out, "is revoked") {
		t.Errorf("revoke: %s", out)
	}
	if _, _, err := d.run(reader, "agents"); !errors.As(err, &refused) || refused.code != 401 {
		t.Errorf("a revoked token opens: %v", err)
	}
	for _, args := range [][]string{{"token", "add", "x", "--expires", "never"}, {"token", "add", "x", "--role", "root"}, {"token", "revoke", "nobody"}, {"token", "add"}} {
		if _, _, err := d.run(d.token, args...); err == nil {
			t.Errorf("%s succeeds", args)
		}
	}
}

func TestEnrolmentTokensOnTheCommandLine(t *testing.T) {
	d := newDesk(t)
	out, errs, err := d.run(d.token, "enroll-token", "--uses", "2", "--expires", "1h", "--labels", "gpu,big", "--label", "linux-x", "--note", "rack 4")
	if err != nil || strings.Count(out, "\n") != 1 || !strings.Contains(errs, "for 2 machines; on the machine: devopsAgent enroll --gateway "+d.url) {
		t.Fatalf("%q %q %v", out, errs, err)
	}
	var list []controller.EnrolTokenInfo
	if err := json.Unmarshal([]byte(d.must("enroll-token", "list", "--json")), &list); err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if got := list[0]; strings.Join(got.Labels, " ") != "linux-x gpu big" || got.Uses != 2 || got.Note != "rack 4" || got.ExpiresAt-got.CreatedAt != 3600_000 {
		t.Errorf("%+v", got)
	}
	text := d.must("enroll-token", "list")
	if strings.Contains(text, strings.TrimSpace(out)) || !strings.Contains(text, "0 of 2") || !strings.Contains(text, "rack 4") {
		t.Errorf("listed:\n%s", text)
	}
	if out := d.must("enroll-token", "revoke", list[0].ID); !strings.Contains(out, "is revoked; 0 enrolled") {
		t.Errorf("revoke: %s", out)
	}
	for _, args := range [][]string{{"enroll-token", "--expires", "x"}, {"enroll-token", "--uses", "-1"}, {"enroll-token", "revoke", "nothing"}, {"enroll-token", "lst"}} {
		if _, _, err := d.run(d.token, args...); err == nil {
			t.Errorf("%s succeeds", args)
		}
	}
}

func TestTheAuditLogOnTheCommandLine(t *testing.T) {
	d := newDesk(t)
	reader := d.keep(strings.TrimSpace(d.must("token", "add", "wall")))
	if _, _, err := d.run(reader, "run", "--detach", "--", "echo hush-hush"); err == nil {
		t.Error("a reader submits")
	}
	d.must("run", "--detach", "--name", "nightly", "--", "echo hush-hush")
	text := d.must("audit")
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) != 4 || strings.Contains(text, "hush") {
		t.Fatalf("audit:\n%s", text)
	}
	for i, words := range [][]string{{"WHO"}, {"3", "operator.token", "builds.create", "nightly", "ok"}, {"2", "wall", "read-only", "builds.create", "refused"}, {"1", "tokens.create", "wall", "127.0.0.1", "ok"}} {
		for _, word := range words {
			if !strings.Contains(lines[i], word) {
				t.Errorf("line %d lacks %s:\n%s", i, word, text)
			}
		}
	}
	var list []controller.AuditEntry
	if err := json.Unmarshal([]byte(d.must("audit", "--before", "3", "--limit", "1", "--json")), &list); err != nil || len(list) != 1 || list[0].ID != 2 {
		t.Errorf("%+v %v", list, err)
	}
}

func TestHowLongSomethingIsValid(t *testing.T) {
	for text, want := range map[string]time.Duration{"90d": 90 * 24 * time.Hour, "12h": 12 * time.Hour, "1h30m": 90 * time.Minute,
		"": 0, "d": 0, "-1d": 0, "1.5d": 0, "0d": 0, "0s": 0, "-1h": 0, "9999999d": 0, "soon": 0} {
		got, err := parseLife(text)
		if got != want || (err != nil) != (want == 0) {
			t.Errorf("%q: %v %v", text, got, err)
		}
	}
}

func TestTheCommandLinePrintsTheControllersHint(t *testing.T) {
	d := newDesk(t)
	file := filepath.Join(t.TempDir(), "file.yaml")
	if err := os.WriteFile(file, []byte("name: n\nwebhooks: x\nsteps: [{script: x}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var refused *apiError
	if _, _, err := d.run(d.token, "define", file); !errors.As(err, &refused) || refused.code != 400 || !strings.Contains(refused.Error(), "line 2") || !strings.Contains(refused.Hint(), "schedule, webhook, badge") {
		t.Errorf("%v, hint %q", err, refused.Hint())
	}
}

func TestAStoredFileIsShownWithoutItsSensitiveValues(t *testing.T) {
	d := newDesk(t)
	file := filepath.Join(t.TempDir(), "file.yaml")
	if err := os.WriteFile(file, []byte("name: n\nvariables: {A: {value: swordfish, sensitive: true}}\nsteps: [{script: echo hello}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.must("define", file)
	if out := d.must("definitions", "n"); !strings.HasPrefix(out, "name: n\n") || !strings.Contains(out, "echo hello") || strings.Contains(out, "swordfish") {
		t.Errorf("%s", out)
	}
	if out := d.must("definitions", "n", "--json"); !strings.Contains(out, `"masked":true`) {
		t.Errorf("%s", out)
	}
	if _, _, err := d.run(d.token, "definitions", "n", "--project", "other"); err == nil {
		t.Error("another project's is shown")
	}
}
