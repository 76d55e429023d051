package controller

import (
	"net/http"
	"strings"
	"testing"
)

func TestASensitiveValueIsHiddenInTheWholeFile(t *testing.T) {
	for name, c := range map[string]struct {
		file   string
		shown  []string // parts of what is shown
		hidden []string // must not be in it
	}{
		"a variable": {"name: n # keep me\nvariables:\n  A: {value: swordfish, sensitive: true}\n  B: plain\nsteps:\n  - script: echo $A\n", []string{"# keep me", "B: plain", "echo $A", masked}, []string{"swordfish"}},
		"elsewhere": {"# swordfish here\nvariables: {A: {value: swordfish, sensitive: true}}\nsteps:\n  - script: |\n      echo before\n      echo swordfish\n", []string{"echo before", "# " + masked + " here"},
			[]string{"swordfish"}},
		"a job's": {"jobs:\n  swordfish:\n    variables: {A: {value: swordfish, sensitive: true}}\n    steps: [{script: x}]\n", []string{"swordfish:\n"}, []string{"value: swordfish"}},
		"several lines": {"variables:\n  KEY:\n    sensitive: true\n    value: |\n      first line\n      second line\nsteps:\n  - script: echo 'second line'\n", []string{masked},
			[]string{"first line", "second line"}},
		"short":       {"variables: {A: {value: x, sensitive: true}}\nsteps: [{script: x, name: axe}]\n", []string{"axe"}, []string{"value: x", "script: x,"}},
		"a number":    {"variables: {A: {value: 1234, sensitive: true}}\nsteps: [{script: x}]\n", []string{masked}, []string{"1234"}},
		"an anchor":   {"variables: {A: &a {value: swordfish, sensitive: true}, B: *a}\nsteps: [{script: x}]\n", []string{"*a"}, []string{"swordfish"}},
		"as JSON":     {`{"variables": {"A": {"value": "sword\nfish", "sensitive": true}}, "steps": [{"script": "fish"}]}`, []string{masked}, []string{"sword", "fish"}},
		"not so":      {"variables: {A: {value: swordfish, sensitive: false}}\nsteps: [{script:   x}]\n", []string{"swordfish", "script:   x"}, []string{masked}},
		"none at all": {"steps: [{script: x}]\n", []string{"steps: [{script: x}]\n"}, []string{masked}},
	} {
		f, err := showFile(c.file)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, part := range c.shown {
			if !strings.Contains(f.File, part) {
				t.Errorf("%s: %q is not in\n%s", name, part, f.File)
			}
		}
		for _, part := range c.hidden {
			if strings.Contains(f.File, part) {
				t.Errorf("%s: %q is in\n%s", name, part, f.File)
			}
		}
		if f.Masked != strings.Contains(f.File, masked) {
			t.Errorf("%s: masked is %t", name, f.Masked)
		}
		if !f.Masked {
			continue
		}
		in := NewRun{File: f.File}
		if _, _, err := in.cells(); err == nil || !strings.Contains(err.Error(), "stands for a value that is not shown") {
			t.Errorf("%s: submitted as shown: %v", name, err)
		}
	}
}

func FuzzShowFile(f *testing.F) {
	f.Add("variables: {A: {value: swordfish, sensitive: true}}\nsteps: [{script: swordfish}]\n")
	f.Add("jobs:\n  a:\n    variables:\n      A:\n        sensitive: true\n        value: |\n          x\n          y\n    steps: [{script: x}]\n")
	f.Add("variables: {A: &a {value: abc, sensitive: true}, B: *a}\n# abc\n")
	f.Fuzz(func(t *testing.T, text string) {
		shown, err := showFile(text)
		if err != nil {
			return
		}
		left, err := sensitiveValues([]byte(shown.File))
		if err != nil {
			t.Fatalf("cannot be read again: %v\n%s", err, shown.File)
		}
		for _, value := range left {
			if value != masked {
				t.Errorf("%q is shown in\n%s", value, shown.File)
			}
		}
	})
}

func TestTheFilesOfRunsAndDefinitionsAreTheOperators(t *testing.T) {
	w := serve(t, Options{})
	const file = "name: nightly\nvariables: {A: {value: swordfish, sensitive: true}}\nsteps: [{script: echo $A}]\n"
	if _, err := w.server.Define("", file); err != nil {
		t.Fatal(err)
	}
	if _, err := w.server.SubmitRun(NewRun{File: file}); err != nil {
		t.Fatal(err)
	}
	const plain = "steps: [{script: x}]\n"
	for _, in := range []NewRun{{File: plain, Labels: []string{"gpu"}}, {File: plain, Name: "other"}, {File: plain, Variables: map[string]Variable{"A": {Value: "b"}}}} {
		if _, err := w.server.SubmitRun(in); err != nil {
			t.Fatal(err)
		}
	}
	text, _, err := w.server.AddToken(NewAccessToken{Name: "wall", Role: RoleReader}, "test")
	if err != nil {
		t.Fatal(err)
	}
	operator, reader := w.pageOf(w.server.Token()), w.pageOf(text)
	for path, changed := range map[string]bool{"/definitions/nightly/file": false, "/runs/1/file": false, "/runs/2/file": true, "/runs/3/file": true, "/runs/4/file": true} {
		if r := w.call("GET", "/page/api"+path, operator, nil); r.code != 200 || strings.Contains(string(r.body), "swordfish") ||
			strings.Contains(string(r.body), masked) == changed || strings.Contains(string(r.body), `"changed":true`) != changed {
			t.Errorf("%s: %d %s", path, r.code, r.body)
		}
		if r := w.call("GET", "/page/api"+path, reader, nil); r.code != 403 {
			t.Errorf("%s for a reader: %d %s", path, r.code, r.body)
		}
	}
	for _, path := range []string{"/definitions/other/file", "/definitions/nightly/file?project=other", "/runs/5/file"} {
		if r := w.call("GET", "/api/v1"+path, http.Header{"Authorization": {"Bearer " + string(w.server.Token())}}, nil); r.code != 404 {
			t.Errorf("%s: %d %s", path, r.code, r.body)
		}
	}
}
