package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

type knowing struct{ hint string }

func (*knowing) Error() string  { return "it does not work" }
func (k *knowing) Hint() string { return k.hint }

func TestTheHintOfAnError(t *testing.T) {
	for want, errs := range map[string][]error{
		"": {nil, errors.New("x"), &knowing{}, fmt.Errorf("a: %w", &knowing{}), errors.Join(errors.New("x"), &knowing{})},
		"turn it on": {&knowing{"turn it on"}, fmt.Errorf("a: %w", &knowing{"turn it on"}), errors.Join(&knowing{}, &knowing{"turn it on"}, &knowing{"or not"}),
			&InputError{Err: &knowing{"turn it on"}}, fmt.Errorf("b: %w", errors.Join(errors.New("x"), fmt.Errorf("c: %w", &knowing{"turn it on"})))},
	} {
		for i, err := range errs {
			if got := hintOf(err); got != want {
				t.Errorf("%d of %q: %q", i, want, got)
			}
		}
	}
}

func TestARefusalSaysWhatToDo(t *testing.T) {
	w := serve(t, Options{})
	page, api := w.pageOf(w.server.Token()), http.Header{"Authorization": {"Bearer " + string(w.server.Token())}}
	for prefix, h := range map[string]http.Header{"/page/api": page, "/api/v1": api} {
		r := w.call("POST", prefix+"/runs", h, map[string]string{"file": "steps: []\nwebhooks: x\n"})
		var said struct{ Error, Hint string }
		if err := json.Unmarshal(r.body, &said); r.code != 400 || err != nil || !strings.Contains(said.Error, "line 2") || said.Hint != (&SpecError{}).Hint() {
			t.Errorf("%s: %d %s", prefix, r.code, r.body)
		}
		if r := w.call("GET", prefix+"/runs/1", h, nil); r.code != 404 || strings.Contains(string(r.body), "hint") {
			t.Errorf("%s: one that knows nothing: %d %s", prefix, r.code, r.body)
		}
	}
}

func TestRunsOnThePage(t *testing.T) {
	w := serve(t, Options{})
	h := w.pageOf(w.server.Token())
	list := func(query string) (runs []pageRun) {
		t.Helper()
		r := w.call("GET", "/page/runs?"+query, h, nil)
		if err := json.Unmarshal(r.body, &runs); err != nil || r.code != 200 {
			t.Fatalf("%s: %d %s", query, r.code, r.body)
		}
		return runs
	}
	if got := w.call("GET", "/page/runs", h, nil); strings.TrimSpace(string(got.body)) != "[]" {
		t.Errorf("none: %s", got.body)
	}
	const jobs = "labels: [nowhere]\njobs:\n  a: {matrix: {x: [1, 2, 3]}, steps: [{script: x}]}\n  b: {needs: a, steps: [{script: x}]}\n"
	for _, name := range []string{"one", "two"} {
		if _, err := w.server.Define("", "name: "+name+"\n"+jobs); err != nil {
			t.Fatal(err)
		}
		if _, err := w.server.Trigger("", name, NewRun{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.server.SubmitRun(NewRun{File: jobs, Project: "other"}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.server.CancelRun("1"); err != nil {
		t.Fatal(err)
	}
	all := list("")
	if len(all) != 3 || all[0].Number != 3 || all[0].Project != "other" || all[0].Builds != 4 || all[0].Counts[Queued] != 3 || all[0].Counts[Blocked] != 1 {
		t.Errorf("%+v", all)
	}
	if len(all) == 3 && (all[2].State != Cancelled || all[2].Counts[Cancelled] != 4 || all[1].State != Queued) {
		t.Errorf("%+v", all)
	}
	if got := list("definition=two&project=demo"); len(got) != 1 || got[0].Number != 2 || got[0].Definition != "two" || got[0].Trigger != "operator" {
		t.Errorf("of a definition: %+v", got)
	}
	if got := list("definition=two&project=other"); len(got) != 0 {
		t.Errorf("of another project: %+v", got)
	}
	if got := list("limit=1&before=3"); len(got) != 1 || got[0].Number != 2 {
		t.Errorf("older: %+v", got)
	}
	for _, query := range []string{"limit=x", "before=-1"} {
		if r := w.call("GET", "/page/runs?"+query, h, nil); r.code != 400 {
			t.Errorf("%s: %d", query, r.code)
		}
	}
}

func TestThePageSaysWhoUsesSecretsAndWhyTheyAreLocked(t *testing.T) {
	opts := fast()
	opts.Dir = t.TempDir()
	w := restarted(t, opts)
	for _, name := range []string{"DEPLOY_KEY", "HOOK_KEY", "NOBODYS"} {
		if _, err := w.server.SetSecret("", name, "swordfish"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.server.SetSecret("other", "DEPLOY_KEY", "swordfish"); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{
		"name: a\nwebhook: {secret: HOOK_KEY}\nsecrets: [DEPLOY_KEY]\nsteps: [{script: x}]\n",
		"name: b\njobs:\n  x: {secrets: [DEPLOY_KEY], matrix: {v: [1, 2]}, variables: {A: {value: hunter-two, sensitive: true}}, steps: [{script: x}]}\n",
	} {
		if _, err := w.server.Define("", file); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.server.Define("other", "name: c\nsecrets: [DEPLOY_KEY]\nsteps: [{script: x}]\n"); err != nil {
		t.Fatal(err)
	}
	look := func(w *world) (shown struct {
		Locked, Hint string
		Secrets      []Secret
	}) {
		t.Helper()
		r := w.call("GET", "/page/secrets", w.pageOf(w.server.Token()), nil)
		if err := json.Unmarshal(r.body, &shown); err != nil || r.code != 200 || strings.Contains(string(r.body), "swordfish") {
			t.Fatalf("%d %s %v", r.code, r.body, err)
		}
		return shown
	}
	for round := range 2 {
		shown := look(w)
		uses := make(map[string][]string)
		for _, s := range shown.Secrets {
			uses[s.Project+" "+s.Name] = s.UsedBy
		}
		if shown.Locked != "" || len(uses) != 4 || !slices.Equal(uses["demo DEPLOY_KEY"], []string{"a", "b"}) || !slices.Equal(uses["demo HOOK_KEY"], []string{"a"}) ||
			uses["demo NOBODYS"] != nil || !slices.Equal(uses["other DEPLOY_KEY"], []string{"c"}) {
			t.Errorf("round %d: %+v", round, shown)
		}
		w.close()
		if round == 0 {
			w = restarted(t, opts)
		}
	}
	key := filepath.Join(opts.Dir, SecretsKeyFile)
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	w = restarted(t, opts)
	defer w.close()
	shown := look(w)
	if !strings.Contains(shown.Locked, "the key file is missing") || !strings.Contains(shown.Hint, "put back the key file "+key) || len(shown.Secrets) != 4 {
		t.Errorf("locked: %+v", shown)
	}
	r := w.call("PUT", "/page/api/secrets/NEW", w.pageOf(w.server.Token()), map[string]string{"value": "x"})
	if r.code != 503 || !strings.Contains(string(r.body), `"hint":"put back the key file `) {
		t.Errorf("set: %d %s", r.code, r.body)
	}
	if r := w.call("GET", "/page/api/definitions/b/file", w.pageOf(w.server.Token()), nil); r.code != 503 || !strings.Contains(string(r.body), "hint") {
		t.Errorf("a sealed file: %d %s", r.code, r.body)
	}
}
