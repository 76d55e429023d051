package controller

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// synctest1 runs a test in a bubble with a controller in memory.
func synctest1(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, inBubble(t, Options{})) })
}

func TestBuildFiles(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("testdata", "build.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	spec, err := ParseSpec(data)
	if err != nil {
		t.Fatal(err)
	}
	if spec.Name != "nightly" || len(spec.Steps) != 3 || spec.Steps[0].ID != "step1" || spec.Steps[1].ID != "unit" ||
		time.Duration(spec.Timeout) != 2*time.Hour || time.Duration(spec.Steps[1].Timeout) != 10*time.Minute || !spec.Steps[2].ContinueWhenFailed ||
		spec.Variables["VERSION"].Value != "010" || !spec.Variables["KEY"].Sensitive || spec.Labels[1] != "gpu" {
		t.Errorf("%+v", spec)
	}
	var again Spec
	if err := json.Unmarshal([]byte(jsonText(spec)), &again); err != nil || jsonText(again) != jsonText(spec) {
		t.Errorf("JSON does not bring it back: %v\n%s\n%s", err, jsonText(spec), jsonText(again))
	}
	for file, want := range map[string]string{
		"":                                     "it is empty",
		"name: x":                              "no steps in it",
		"steps: []\nstep: 1":                   `line 2: unknown key "step"`,
		"steps:\n- script: x\n  scrpt: y":      `line 3: unknown key "scrpt"`,
		"steps:\n- name: x":                    "step 1: no script in it",
		"steps:\n- {script: x, timeout: y}":    "time limit",
		"steps:\n- {script: x, timeout: 8d}":   "time limit",
		"steps:\n- {script: x, timeout: 200h}": "between 1s and 168h",
		"steps:\n- {script: x, id: a}\n- {script: y, id: a}":              `the id "a" is taken`,
		"steps:\n- {script: x, shell: bat}\n- {script: y, shell: bash}":   "the steps of one build run on one machine",
		"steps:\n- {script: '#!/bin/sh', shell: bash}":                    "the script names its own",
		"steps:\n- {script: x, env: {'a b': c}}":                          `env "a b": not a name`,
		"variables: {X: {value: 1, secret: true}}\nsteps:\n- {script: x}": `unknown key "secret"`,
		"labels: ['a b']\nsteps:\n- {script: x}":                          "label",
		"steps:\n- {script: x}\n---\nsteps:\n- {script: y}":               "more than one document",
		"steps: [":                             "line 1",
		"name: \"a\\nb\"\nsteps:\n- script: x": "name: one line",
	} {
		if _, err := ParseSpec([]byte(file)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", file, err, want)
		}
	}
}

func TestASensitiveValueDoesNotPrint(t *testing.T) {
	v := Variable{Value: "hush", Sensitive: true}
	if s := v.String() + v.LogValue().String(); strings.Contains(s, "hush") {
		t.Error(s)
	}
}

// FuzzParseSpec: whatever is accepted survives the way through JSON, and is accepted again.
func FuzzParseSpec(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		spec, err := ParseSpec(data)
		if err != nil {
			return
		}
		var again Spec
		if err := strictJSON([]byte(jsonText(spec)), &again); err != nil {
			t.Fatalf("%v in %s", err, jsonText(spec))
		}
		if err := again.check(); err != nil || jsonText(again) != jsonText(spec) {
			t.Fatalf("%v: %s is not %s", err, jsonText(again), jsonText(spec))
		}
	})
}

// FuzzRequestBodies: no body at any endpoint panics, hangs or is answered with anything but JSON and a known status.
func FuzzRequestBodies(f *testing.F) {
	s, err := Open(Options{AskSpacing: 1, HeartbeatSpacing: 1, StatusSpacing: 1, PipelineSpacing: 1})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = s.Close() })
	calls := []struct{ method, path string }{
		{"POST", agentPrefix + "/startup"}, {"POST", agentPrefix + "/agents/newHeartbeat"}, {"POST", agentPrefix + "/ask"},
		{"POST", agentPrefix + "/upgradeNew"}, {"POST", agentPrefix + "/workerBuildFinish"}, {"PUT", agentPrefix + "/agents/pipelines"},
		{"POST", buildPrefix + "/worker/complete"}, {"POST", buildPrefix + "/worker/end"}, {"POST", buildPrefix + "/worker/heartbeat/v1"},
		{"POST", buildPrefix + "/worker/submit_error"}, {"POST", buildPrefix + "/logs/multi"}, {"POST", buildPrefix + "/logs"},
		{"POST", "/api/v1/builds"}, {"POST", "/api/v1/agents"}, {"POST", "/api/v1/rollouts"}, {"POST", "/api/v1/releases"},
		{"POST", "/session"}, {"POST", buildPrefix + "/worker/artifacts"},
	}
	f.Fuzz(func(t *testing.T, which uint8, body string) {
		c := calls[int(which)%len(calls)]
		fuzzOne(t, s, c.method, c.path, body)
	})
}

func fuzzOne(t *testing.T, s *Server, method, path, body string) {
	t.Helper()
	w := &world{t: t, server: s, http: httpOf(s), url: "http://controller"}
	m := w.machine(NewAgent{})
	s.mu.Lock()
	s.agents[m.id.Agent].Status = "IMPORT_OK"
	s.mu.Unlock()
	b := w.submit(oneStep("x"))
	s.mu.Lock()
	s.handOut(s.agents[m.id.Agent], s.builds[b.ID], time.Now())
	s.mu.Unlock()
	m.start(b.ID)
	m.claimTask(b.ID)
	h := m.workerHeader(b.ID)
	h.Set("Authorization", "Bearer "+string(s.Token()))
	r := w.call(method, path, h, body)
	if !json.Valid(r.body) {
		t.Errorf("%s %s: HTTP %d with %q", method, path, r.code, r.body)
	}
	switch r.code {
	case 200, 400, 401, 404, 413:
	default:
		t.Errorf("%s %s: HTTP %d %s", method, path, r.code, r.body)
	}
	s.mu.Lock()
	delete(s.agents, m.id.Agent)
	for _, known := range s.builds {
		if !known.State.Over() {
			s.finish(known, Cancelled, "", time.Now())
		}
	}
	s.mu.Unlock()
}

// docs/controller.md is a promise: its build file works, and it names every member of what --json writes.
func TestTheDocumentIsTrue(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "docs", "controller.md"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	_, example, _ := strings.Cut(text, "```yaml\n")
	example, _, found := strings.Cut(example, "```")
	spec, err := ParseSpec([]byte(example))
	if err != nil || !found || len(spec.Steps) != 1 || !spec.Variables["TOKEN"].Sensitive {
		t.Errorf("the example: %v, %+v", err, spec)
	}
	for _, v := range []any{Build{}, StepState{}, AgentReport{}, AgentInfo{}, Settings{}, Line{}, Script{}, logEvent{}, wire.ExitError{}, Spec{}, Step{}, Variable{},
		Release{}, ReleaseFile{}, NewRelease{}, Offer{}, Rollout{}, RolloutInfo{}, Member{}, MemberInfo{}, AgentUpgrade{}, Run{}, RunJob{}, NewRun{}, Secret{}, Definition{}, Schedule{}, Webhook{}, LastRun{}, Artifact{}, ListedArtifact{}} {
		for field := range reflect.TypeOf(v).Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if name != "" && !strings.Contains(text, "`"+name+"`") && !strings.Contains(text, `"`+name+`"`) && !strings.Contains(example, name+":") {
				t.Errorf("%T: member %s is not in docs/controller.md", v, name)
			}
		}
	}
}
