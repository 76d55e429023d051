package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// pageOf is the header of a page that has signed in with a token.
func (w *world) pageOf(token wire.Secret) http.Header {
	w.t.Helper()
	h, body := form(string(token))
	r := w.call("POST", "/session", h, body)
	cookie, _, _ := strings.Cut(r.header.Get("Set-Cookie"), ";")
	if r.code != 204 || cookie == "" {
		w.t.Fatalf("sign in: %d %s", r.code, r.body)
	}
	h = http.Header{"Cookie": {cookie}}
	h.Set(pageHeaderName, "1")
	return h
}

func TestThePageDoesWhatTheOperatorMay(t *testing.T) {
	w := serve(t, Options{})
	h := w.pageOf(w.server.Token())
	var b Build
	r := w.call("POST", "/page/api/builds", h, map[string]any{"spec": map[string]any{"name": "n", "steps": []any{map[string]string{"script": "true"}}}})
	if err := json.Unmarshal(r.body, &b); r.code != 200 || err != nil || b.State != Queued {
		t.Fatalf("submit: %d %s", r.code, r.body)
	}
	if r := w.call("POST", "/page/api/builds/"+b.ID+"/cancel", h, nil); r.code != 200 || !strings.Contains(string(r.body), `"cancelled"`) {
		t.Errorf("cancel: %d %s", r.code, r.body)
	}
	if r := w.call("GET", "/page/api/builds/1/log?follow=true", h, nil); r.code != 200 || !strings.Contains(string(r.body), `"build"`) {
		t.Errorf("log: %d %s", r.code, r.body)
	}
	for what, change := range map[string]func(http.Header){
		"without the page's header": func(h http.Header) { h.Del(pageHeaderName) },
		"from another site":         func(h http.Header) { h.Set("Sec-Fetch-Site", "cross-site") },
		"from another port":         func(h http.Header) { h.Set("Sec-Fetch-Site", "same-site") },
		"from an old browser":       func(h http.Header) { h.Set("Origin", "https://other.example") },
	} {
		bad := h.Clone()
		change(bad)
		if r := w.call("POST", "/page/api/builds/1/rerun", bad, nil); r.code != 403 {
			t.Errorf("%s: %d %s", what, r.code, r.body)
		}
	}
	if list, err := w.server.Builds(10, 0, false); err != nil || len(list) != 1 {
		t.Errorf("%d builds, %v", len(list), err)
	}
	h.Del("Cookie")
	if r := w.call("POST", "/page/api/builds/1/rerun", h, nil); r.code != 401 {
		t.Errorf("without a session: %d", r.code)
	}
}

func TestAReaderMayLookAndChangeNothing(t *testing.T) {
	w := serve(t, Options{})
	text, made, err := w.server.AddToken(NewAccessToken{Name: "wall", Role: RoleReader}, "test")
	if err != nil {
		t.Fatal(err)
	}
	w.submit(Spec{Variables: map[string]Variable{"P": {Value: "s3cret", Sensitive: true}}, Steps: []Step{{Script: "echo of-the-script"}}})
	h := w.pageOf(text)
	if r := w.call("GET", "/page/state", h, nil); r.code != 200 || !strings.Contains(string(r.body), `"role":"read-only","user":"wall"`) {
		t.Errorf("state: %d %s", r.code, r.body)
	}
	for _, path := range []string{"/page/builds/1", "/page/builds/1/log.txt", "/page/api/builds", "/page/api/rollouts", "/page/builds?agent=x"} {
		if r := w.call("GET", path, h, nil); r.code != 200 || strings.Contains(string(r.body), "of-the-script") {
			t.Errorf("%s: %d %s", path, r.code, r.body)
		}
	}
	for _, path := range []string{"/page/api/builds", "/page/api/builds/1/cancel", "/page/api/builds/1/rerun", "/page/api/enroll-tokens", "/page/api/tokens", "/page/api/rollouts"} {
		if r := w.call("POST", path, h, nil); r.code != 403 || !strings.Contains(string(r.body), "read-only") {
			t.Errorf("%s: %d %s", path, r.code, r.body)
		}
	}
	if _, err := w.server.RevokeToken(made.ID); err != nil {
		t.Fatal(err)
	}
	if r := w.call("GET", "/page/state", h, nil); r.code != 401 {
		t.Errorf("after the token was revoked: %d", r.code)
	}
}

func TestSignInAttemptsAreLimited(t *testing.T) {
	synctest1(t, func(t *testing.T, w *world) {
		h, wrong := form("wrong")
		for range maxRefused {
			if r := w.call("POST", "/session", h, wrong); r.code != 401 {
				t.Fatalf("%d", r.code)
			}
		}
		_, right := form(string(w.server.Token()))
		r := w.call("POST", "/session", h, right)
		if r.code != 429 || r.header.Get("Retry-After") != "61" || r.header.Get("Set-Cookie") != "" {
			t.Errorf("after too many: %d %v", r.code, r.header)
		}
		time.Sleep(refusedFor)
		if r := w.call("POST", "/session", h, right); r.code != 204 {
			t.Errorf("a minute later: %d", r.code)
		}
	})
}

func TestSessionsAreBounded(t *testing.T) {
	p, now := newSessions(), time.Now()
	first := p.begin(session{ends: now.Add(time.Hour)}, now)
	var last string
	for i := range maxSessions {
		last = p.begin(session{ends: now.Add(time.Hour + time.Duration(i+1)*time.Second)}, now)
	}
	if _, found := p.find(first, now); found || len(p.open) != maxSessions {
		t.Errorf("the oldest is there: %t, of %d", found, len(p.open))
	}
	if _, found := p.find(last, now); !found {
		t.Error("the newest is gone")
	}
	p.begin(session{ends: now.Add(9 * time.Hour)}, now.Add(2*time.Hour))
	if len(p.open) != 1 {
		t.Errorf("%d sessions are left that have ended", len(p.open)-1)
	}
}

// TestTextsOfOthersAreData: whatever an agent or a build says arrives as JSON or as plain text, under a policy that runs
// nothing, and never as a page.
func TestTextsOfOthersAreData(t *testing.T) {
	const evil = `<img src=x onerror=alert(1)></script><script>alert(2)</script>`
	w := serve(t, Options{})
	m := w.machine(NewAgent{})
	if _, err := m.client.Startup(t.Context(), wire.Startup{HostName: evil, HostIP: "10.0.0.1", DetectOS: "linux", MasterVersion: evil}); err != nil {
		t.Fatal(err)
	}
	b := w.submit(Spec{Name: evil, Variables: map[string]Variable{"V": {Value: evil}}, Steps: []Step{{Name: evil, Script: evil}}})
	line := Line{At: 1, Type: wire.LogNormal, Message: "\x1b]0;t\x07\x1b[31m" + evil + "\x1b[0m\x00\u009b31m"}
	if err := w.server.store.appendLog(b.Number, 0, []Line{line}).wait(); err != nil {
		t.Fatal(err)
	}
	h := w.pageOf(w.server.Token())
	for path, kind := range map[string]string{"/page/state": "application/json", "/page/agents/" + m.id.Agent: "application/json", "/page/builds/1": "application/json",
		"/page/api/builds": "application/json", "/page/api/builds/1/log": "application/x-ndjson", "/page/builds/1/log.txt": "text/plain; charset=utf-8"} {
		r := w.call("GET", path, h, nil)
		if !strings.Contains(string(r.body), `onerror`) {
			t.Errorf("%s: the text is missing in %s", path, r.body)
		}
		if r.code != 200 || r.header.Get("Content-Type") != kind || r.header.Get("X-Content-Type-Options") != "nosniff" || r.header.Get("Content-Security-Policy") != pagePolicy {
			t.Errorf("%s: %d %v", path, r.code, r.header)
		}
	}
	r := w.call("GET", "/page/builds/1/log.txt", h, nil)
	if string(r.body) != evil+"\n" || !strings.Contains(r.header.Get("Content-Disposition"), `attachment; filename=build-1.txt`) {
		t.Errorf("download: %q %v", r.body, r.header)
	}
}

func TestSensitiveValuesDoNotReachThePage(t *testing.T) {
	w := serve(t, Options{})
	b := w.submit(Spec{Variables: map[string]Variable{"PASS": {Value: "s3cret", Sensitive: true}, "MODE": {Value: "fast"}}, Steps: []Step{{Script: "true"}}})
	h := w.pageOf(w.server.Token())
	r := w.call("GET", "/page/builds/"+b.ID, h, nil)
	if r.code != 200 || strings.Contains(string(r.body), "s3cret") || !strings.Contains(string(r.body), "fast") {
		t.Errorf("%d %s", r.code, r.body)
	}
	var again Build
	r = w.call("POST", "/page/api/builds/"+b.ID+"/rerun", h, nil)
	if err := json.Unmarshal(r.body, &again); r.code != 200 || err != nil || again.Number != 2 || strings.Contains(string(r.body), "s3cret") {
		t.Fatalf("rerun: %d %s", r.code, r.body)
	}
	second, err := w.server.find(again.ID)
	if err != nil || second.spec.Variables["PASS"] != (Variable{Value: "s3cret", Sensitive: true}) || !reflect.DeepEqual(second.spec, mustFind(t, w, b.ID).spec) {
		t.Errorf("%+v %v", second.spec, err)
	}
	if r := w.call("POST", "/page/api/builds/99/rerun", h, nil); r.code != 404 {
		t.Errorf("of a build that is not there: %d", r.code)
	}
}

func TestAJobOfARunIsNotRunAgainAlone(t *testing.T) {
	w := serve(t, Options{})
	r, err := w.server.SubmitRun(NewRun{File: "name: n\njobs:\n  a: {steps: [{script: \"true\"}]}\n  b: {needs: [a], steps: [{script: \"true\"}]}\n"})
	if err != nil {
		t.Fatal(err)
	}
	var input *InputError
	if _, err := w.server.RerunBuild(r.Jobs[0].Build); !errors.As(err, &input) {
		t.Errorf("%v", err)
	}
}

func mustFind(t *testing.T, w *world, id string) *build {
	t.Helper()
	b, err := w.server.find(id)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAgentsAreSortedFilteredAndPaged(t *testing.T) {
	w := serve(t, Options{})
	for i := range 5 {
		m := w.machine(NewAgent{Labels: []string{fmt.Sprintf("rack=%d", i%2)}})
		if _, err := m.client.Startup(t.Context(), wire.Startup{HostName: fmt.Sprintf("host-%d", i), HostIP: "10.0.0.1", DetectOS: "linux", MasterVersion: fmt.Sprintf("v1.%d.0", 9-i)}); err != nil {
			t.Fatal(err)
		}
	}
	w.machine(NewAgent{})
	h := w.pageOf(w.server.Token())
	for query, want := range map[string]string{
		"":                             "6/6 host-0 host-1 host-2 host-3 host-4 ",
		"sort=version":                 "6/6  host-4 host-3 host-2 host-1 host-0",
		"sort=name&down=true&limit=2":  "6/6 host-4 host-3",
		"sort=name&offset=4&limit=3":   "6/6 host-3 host-4",
		"q=RACK%3D1":                   "2/6 host-1 host-3",
		"q=v1.7":                       "1/6 host-2",
		"status=UN_IMPORT":             "1/6 ",
		"status=IMPORT_EXCEPTION":      "0/6",
		"limit=0":                      "6/6",
		"offset=100":                   "6/6",
		"sort=nothing&q=host-4&limit=": "1/6 host-4",
	} {
		r := w.call("GET", "/page/state?"+query, h, nil)
		var v pageView
		if err := json.Unmarshal(r.body, &v); r.code != 200 || err != nil {
			t.Fatalf("%s: %d %s", query, r.code, r.body)
		}
		got := fmt.Sprintf("%d/%d", v.Found, v.Total)
		for _, a := range v.Agents {
			got += " " + a.HostName
		}
		if got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	for _, query := range []string{"limit=-1", "offset=x"} {
		if r := w.call("GET", "/page/state?"+query, h, nil); r.code != 400 {
			t.Errorf("%s: %d", query, r.code)
		}
	}
}

func TestThePastOfAnAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inBubble(t, polled(t))
		m := w.imported(NewAgent{})
		h := w.pageOf(w.server.Token())
		look := func() (in struct {
			Past  []Minute
			Agent AgentInfo
		}) {
			t.Helper()
			r := w.call("GET", "/page/agents/"+m.id.Agent, h, nil)
			if err := json.Unmarshal(r.body, &in); err != nil || r.code != 200 {
				t.Fatalf("%d %s", r.code, r.body)
			}
			return in
		}
		for range 3 {
			m.ask(asking(wire.None), 0)
			time.Sleep(10 * time.Second)
		}
		w.server.mu.Lock()
		a := w.server.agents[m.id.Agent]
		cpu, memory := shares([]byte(`{"metrics":[{"name":"cpu_detail","tags":{"cpu":"cpu0"},"fields":{"usage_idle":1}},{"name":"cpu_detail","tags":{"cpu":"cpu-total"},"fields":{"usage_idle":60.2}},{"name":"mem","tags":{},"fields":{"used_percent":41.7}}]}`))
		a.past.measure(time.Now(), cpu, memory)
		w.server.mu.Unlock()
		past := look().Past
		calls := 0
		for _, p := range past {
			calls += p.Calls
		}
		last := past[len(past)-1]
		if calls < 3 || last.CPU == nil || *last.CPU != 40 || *last.Memory != 42 {
			t.Errorf("%+v", past)
		}
		for range historyLength + 20 {
			time.Sleep(time.Minute)
			m.ask(asking(wire.None), 0)
		}
		past = look().Past
		if len(past) != historyLength || past[0].At >= past[1].At || past[len(past)-1].At-past[0].At != (historyLength-1)*60_000 {
			t.Errorf("%d minutes, from %d to %d", len(past), past[0].At, past[len(past)-1].At)
		}
	})
}

func TestSharesOfForeignMeasurements(t *testing.T) {
	for in, want := range map[string][2]uint8{
		"":               {unmeasured, unmeasured},
		"cpu,host=x a=1": {unmeasured, unmeasured},
		`{"metrics":7}`:  {unmeasured, unmeasured},
		`{"metrics":[]}`: {unmeasured, unmeasured},
		`{"metrics":[{"name":"mem","fields":{"used_percent":"x"}},{"name":"cpu","tags":{"cpu":"cpu-total"},"fields":{"usage_idle":-4}}]}`: {unmeasured, unmeasured},
		`{"metrics":[{"name":"mem","fields":{"used_percent":1e300}}]}`:                                                                    {unmeasured, unmeasured},
		`{"metrics":[{"name":"mem","fields":{"used_percent":100}},{"name":"cpu","tags":{"cpu":"cpu-total"},"fields":{"usage_idle":0}}]}`:  {100, 100},
		`{"metrics":[{"name":"mem","fields":{"used_percent":10}}]` + strings.Repeat(" ", maxSample) + `}`:                                 {unmeasured, unmeasured},
	} {
		if cpu, memory := shares([]byte(in)); [2]uint8{cpu, memory} != want {
			t.Errorf("%.60s: %d %d", in, cpu, memory)
		}
	}
}

func FuzzShares(f *testing.F) {
	f.Add([]byte(`{"metrics":[{"name":"cpu","tags":{"cpu":"cpu-total"},"fields":{"usage_idle":60}}]}`))
	f.Add([]byte(`{"metrics":[{"name":"mem","fields":{"used_percent":null}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		cpu, memory := shares(data)
		for _, n := range []uint8{cpu, memory} {
			if n > 100 && n != unmeasured {
				t.Errorf("%d percent", n)
			}
		}
	})
}

func TestBuildsOfOneAgent(t *testing.T) {
	w := serve(t, Options{})
	m := w.imported(NewAgent{})
	m.settle()
	b := w.submit(Spec{Steps: []Step{{Script: "true"}}})
	m.ask(asking(wire.All), 5*time.Second)
	w.submit(Spec{Labels: []string{"elsewhere"}, Steps: []Step{{Script: "true"}}})
	w.server.store.sync()
	h := w.pageOf(w.server.Token())
	for agent, want := range map[string]int{m.id.Agent: 1, "other": 0, "": 0} {
		var list []Build
		r := w.call("GET", "/page/builds?agent="+agent, h, nil)
		if err := json.Unmarshal(r.body, &list); err != nil || r.code != 200 || len(list) != want || want == 1 && list[0].ID != b.ID {
			t.Errorf("%q: %d %s", agent, r.code, r.body)
		}
	}
}

func TestThePageKnowsTheFingerprintOfOurOwnCertificate(t *testing.T) {
	dir := t.TempDir()
	if err := RenewOwnCertificate(dir, []string{"127.0.0.1"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, OwnCertFile)
	cert, err := OpenCertificate(file, filepath.Join(dir, OwnKeyFile), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w := serve(t, Options{Dir: dir, OwnCertificate: true, PublicURL: "https://ci.example.com"})
	h := w.pageOf(w.server.Token())
	var v pageView
	r := w.call("GET", "/page/state?limit=0", h, nil)
	if err := json.Unmarshal(r.body, &v); err != nil || v.Pin != cert.Pin().String() || v.Gateway != "https://ci.example.com" {
		t.Errorf("%v %s", err, r.body)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if r := w.call("GET", "/page/state?limit=0", h, nil); r.code != 200 || strings.Contains(string(r.body), `"pin"`) {
		t.Errorf("without it: %d %s", r.code, r.body)
	}
}
