package controller

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// clear lists the files of a data directory that have a text in them.
func clearIn(t *testing.T, dir, text string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(text)) {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// restarted opens the controller of a directory; the caller closes it.
func restarted(t *testing.T, opts Options) *world {
	t.Helper()
	s, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	return &world{t: t, server: s, http: httpOf(s), url: "http://controller"}
}

func (w *world) close() {
	w.t.Helper()
	if err := w.server.Close(); err != nil {
		w.t.Error(err)
	}
}

func TestASecretReachesTheWorkerAndNobodyElse(t *testing.T) {
	opts := fast()
	opts.Dir = t.TempDir()
	w := restarted(t, opts)
	m := w.imported(NewAgent{})
	m.settle()
	if _, err := w.server.SetSecret("", "DEPLOY_KEY", "swordfish\nsecond's line"); err != nil {
		t.Fatal(err)
	}
	b := w.submit(Spec{Secrets: []string{"DEPLOY_KEY"}, Variables: map[string]Variable{"INLINE": {Value: "inlinesecret", Sensitive: true}}, Steps: []Step{{Script: "x"}, {Script: "y"}}})
	run, err := w.server.SubmitRun(NewRun{File: "secrets: [DEPLOY_KEY]\nvariables: {INLINE: {value: inlinesecret, sensitive: true}}\njobs:\n  a:\n    steps: [{script: x}]\n"})
	if err != nil {
		t.Fatal(err)
	}
	w.close()
	w = restarted(t, opts)
	defer func() { w.close() }()
	m.world, m.client.HTTP = w, httpOf(w.server)
	m.settle()
	got := m.ask(asking(wire.All), 0).Build
	if got == nil || got.ID != b.ID {
		t.Fatalf("got %+v", got)
	}
	vars := m.start(b.ID)
	if vars.Variables["DEPLOY_KEY"] != "swordfish\nsecond's line" || vars.Variables["INLINE"] != "inlinesecret" {
		t.Errorf("the worker got %v", vars.Variables)
	}
	for _, v := range vars.VariablesWithType {
		if hidden := v.Key == "DEPLOY_KEY" || v.Key == "INLINE"; *v.Sensitive != hidden {
			t.Errorf("%s: sensitive %v", v.Key, *v.Sensitive)
		}
	}
	task := m.claimTask(b.ID)
	m.worker(b.ID, "POST", wire.PathLogsMulti, []wire.LogLine{{Message: "a swordfish, inlinesecret and seconds line", Tag: *task.TaskID, LogType: wire.LogNormal}}, nil)
	said := "it failed with swordfish"
	m.complete(b.ID, wire.TaskResult{TaskID: *task.TaskID, Message: &said, SensitiveKeys: []string{"FOUND"},
		BuildResult: map[string]string{"URL": "http://swordfish@h", "FOUND": "reportedsecret"}})
	m.end(b.ID)
	if err := m.client.Finish(t.Context(), wire.Finish{Build: *got, Message: "ended with swordfish"}); err != nil {
		t.Fatal(err)
	}
	lines, err := w.server.Log(b.ID, 0, 10)
	if err != nil || len(lines) != 1 || lines[0].Message != "a ******, ****** and ******" {
		t.Errorf("log %+v %v", lines, err)
	}
	header := http.Header{"Authorization": {"Bearer " + string(w.server.Token())}}
	for _, path := range []string{"/builds/" + b.ID, "/builds", "/builds/" + b.ID + "/log", "/secrets", "/runs", "/runs/" + run.ID} {
		r := w.call("GET", "/api/v1"+path, header, nil)
		for _, value := range []string{"swordfish", "inlinesecret", "reportedsecret", "second's"} {
			if r.code != 200 || strings.Contains(string(r.body), value) {
				t.Errorf("%s: %d %s", path, r.code, r.body)
			}
		}
	}
	for _, value := range []string{"swordfish", "inlinesecret", "reportedsecret"} {
		if in := clearIn(t, opts.Dir, value); len(in) != 0 {
			t.Errorf("%s is in %v", value, in)
		}
	}
	if info, err := os.Stat(filepath.Join(opts.Dir, SecretsKeyFile)); err != nil || info.Mode().Perm()&0o077 != 0 && filepath.Separator == '/' {
		t.Errorf("key file: %v %v", info, err)
	}
	w.close()
	w = restarted(t, opts)
	if shown := w.build(b.ID); shown.Variables["FOUND"] != masked || strings.Contains(jsonText(shown), "swordfish") {
		t.Errorf("%+v", shown)
	}
	again, err := w.server.Rerun(run.ID)
	if err != nil {
		t.Fatal(err)
	}
	second, err := w.server.find(again.Jobs[0].Build)
	if err != nil || second.spec.Variables["INLINE"].Value != "inlinesecret" || second.secrets["DEPLOY_KEY"] == "" {
		t.Errorf("the second run has %+v %v", second.spec, err)
	}
}

func TestSecretsAreOfTheirProject(t *testing.T) {
	w := serve(t, Options{})
	if _, err := w.server.SetSecret("one", "KEY", "value"); err != nil {
		t.Fatal(err)
	}
	spec := Spec{Secrets: []string{"KEY"}, Steps: []Step{{Script: "x"}}}
	if _, err := w.server.Submit("one", spec); err != nil {
		t.Error(err)
	}
	var input *InputError
	if _, err := w.server.Submit("two", spec); !errors.As(err, &input) || !strings.Contains(err.Error(), "project two has no secret KEY") {
		t.Errorf("%v", err)
	}
	spec.Variables = map[string]Variable{"KEY": {Value: "x"}}
	if _, err := w.server.Submit("one", spec); !errors.As(err, &input) {
		t.Errorf("a variable of the same name: %v", err)
	}
	header := http.Header{"Authorization": {"Bearer " + string(w.server.Token())}}
	for _, c := range []struct {
		method, path string
		body         any
		code         int
	}{
		{"PUT", "/secrets/OK", map[string]string{"value": "v"}, 200},
		{"PUT", "/secrets/a-b", map[string]string{"value": "v"}, 400},
		{"PUT", "/secrets/EMPTY", map[string]string{}, 400},
		{"PUT", "/secrets/LONG", map[string]string{"value": strings.Repeat("x", maxSecret+1)}, 400},
		{"PUT", "/secrets/OK", map[string]string{"value": "v", "project": "a b"}, 400},
		{"DELETE", "/secrets/OK?project=one", nil, 404},
		{"DELETE", "/secrets/KEY?project=one", nil, 200},
		{"DELETE", "/secrets/KEY?project=one", nil, 404},
	} {
		if r := w.call(c.method, "/api/v1"+c.path, header, c.body); r.code != c.code {
			t.Errorf("%s %s: %d %s", c.method, c.path, r.code, r.body)
		}
	}
	if list := w.server.Secrets(""); len(list) != 1 || list[0].Name != "OK" || list[0].Project != DefaultProject {
		t.Errorf("%+v", list)
	}
}

// TestADataBaseWithoutItsKey: what needs the key says so, everything else works, and the key brings all back.
func TestADataBaseWithoutItsKey(t *testing.T) {
	for _, c := range []struct{ name, content string }{{"missing", ""}, {"another", strings.Repeat("ab", 32)}, {"damaged", "no key"}} {
		t.Run(c.name, func(t *testing.T) {
			opts := fast()
			opts.Dir = t.TempDir()
			opts.SecretsKey = filepath.Join(t.TempDir(), "the.key")
			w := restarted(t, opts)
			m := w.imported(NewAgent{})
			m.settle()
			if _, err := w.server.SetSecret("", "KEY", "swordfish"); err != nil {
				t.Fatal(err)
			}
			locked := w.submit(Spec{Secrets: []string{"KEY"}, Steps: []Step{{Script: "x"}}})
			w.close()
			key, err := os.ReadFile(opts.SecretsKey)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(opts.SecretsKey); err != nil {
				t.Fatal(err)
			}
			if c.content != "" {
				if err := os.WriteFile(opts.SecretsKey, []byte(c.content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			w = restarted(t, opts)
			m.world, m.client.HTTP = w, httpOf(w.server)
			m.settle()
			var bad *KeyError
			if _, err := w.server.SetSecret("", "KEY", "other"); !errors.As(err, &bad) || bad.Hint() == "" || !strings.Contains(err.Error(), opts.SecretsKey) {
				t.Errorf("set: %v", err)
			}
			if _, err := w.server.Submit("", Spec{Secrets: []string{"KEY"}, Steps: []Step{{Script: "x"}}}); !errors.As(err, &bad) {
				t.Errorf("submit: %v", err)
			}
			if _, err := w.server.Submit("", Spec{Variables: map[string]Variable{"A": {Value: "b", Sensitive: true}}, Steps: []Step{{Script: "x"}}}); !errors.As(err, &bad) {
				t.Errorf("submit with a sensitive value: %v", err)
			}
			if list := w.server.Secrets(""); len(list) != 1 {
				t.Errorf("%+v", list)
			}
			if shown := w.build(locked.ID); shown.State != Queued || !strings.Contains(shown.Message, "secrets are locked") {
				t.Errorf("%+v", shown)
			}
			plain := w.submit(oneStep("x"))
			if got := m.ask(asking(wire.All), 0).Build; got == nil || got.ID != plain.ID {
				t.Fatalf("handed out %+v", got)
			}
			m.run(plain.ID, func(wire.BuildTask) wire.TaskResult {
				return wire.TaskResult{Success: true, SensitiveKeys: []string{"S"}, BuildResult: map[string]string{"S": "swordfish"}}
			})
			if got := w.build(plain.ID); got.State != Succeeded {
				t.Errorf("%+v", got)
			}
			w.close()
			if in := clearIn(t, opts.Dir, "swordfish"); len(in) != 0 {
				t.Errorf("in clear text in %v", in)
			}
			if err := os.WriteFile(opts.SecretsKey, key, 0o600); err != nil {
				t.Fatal(err)
			}
			w = restarted(t, opts)
			defer w.close()
			m.world, m.client.HTTP = w, httpOf(w.server)
			m.settle()
			if got := m.ask(asking(wire.All), 0).Build; got == nil || got.ID != locked.ID {
				t.Fatalf("handed out %+v", got)
			}
			if v := m.start(locked.ID).Variables["KEY"]; v != "swordfish" {
				t.Errorf("the worker got %q", v)
			}
		})
	}
}

func TestASealedValueCannotBeMoved(t *testing.T) {
	w := serve(t, Options{})
	sealed, err := w.server.vault.seal("secret/p/A", []byte("value"))
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := w.server.vault.open("secret/p/A", sealed); err != nil || string(plain) != "value" {
		t.Errorf("%q %v", plain, err)
	}
	if again, _ := w.server.vault.seal("secret/p/A", []byte("value")); again == sealed {
		t.Error("the same value looks the same")
	}
	for place, text := range map[string]string{"secret/p/B": sealed, "secret/p/A": sealed[:len(sealed)-4] + "AAA=", "x": "", "y": "1:", "z": "2:" + sealed[2:]} {
		if plain, err := w.server.vault.open(place, text); err == nil {
			t.Errorf("%s: %q", place, plain)
		}
	}
}
