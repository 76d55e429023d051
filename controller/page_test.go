package controller

import (
	"encoding/json"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

func form(token string) (http.Header, string) {
	return http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, url.Values{"token": {token}}.Encode()
}

// signIn returns the header with the page's cookie.
func (w *world) signIn() http.Header {
	w.t.Helper()
	h, body := form(string(w.server.Token()) + "\n")
	r := w.call("POST", "/session", h, body)
	cookie, _, _ := strings.Cut(r.header.Get("Set-Cookie"), ";")
	if r.code != 204 || cookie == "" {
		w.t.Fatalf("sign in: %d %v", r.code, r.header)
	}
	return http.Header{"Cookie": {cookie}}
}

func TestThePageIsClosedToAllButTheOperator(t *testing.T) {
	w := serve(t, Options{})
	h, body := form("wrong")
	if r := w.call("POST", "/session", h, body); r.code != 401 || r.header.Get("Set-Cookie") != "" {
		t.Errorf("a wrong token: %d %v", r.code, r.header)
	}
	h, body = form(string(w.server.Token()))
	h.Set("Sec-Fetch-Site", "cross-site")
	if r := w.call("POST", "/session", h, body); r.code != 403 {
		t.Errorf("from another site: %d", r.code)
	}
	h.Del("Sec-Fetch-Site")
	if r := w.call("POST", "/session", h, "token="+strings.Repeat("x", 8<<10)); r.code != 401 {
		t.Errorf("a huge form: %d", r.code)
	}
	r := w.call("POST", "/session", h, body)
	set := r.header.Get("Set-Cookie")
	for _, want := range []string{"HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"} {
		if !strings.Contains(set, want) {
			t.Errorf("%s is missing in %s", want, set)
		}
	}
	if strings.Contains(set, string(w.server.Token())) {
		t.Error("the token is in the cookie")
	}
	cookie, _, _ := strings.Cut(set, ";")
	name, value, _ := strings.Cut(cookie, "=")
	for what, c := range map[string]string{
		"none": "", "other": name + "=x", "empty": name + "=", "digest": name + "=" + hash(value),
		"the token": name + "=" + string(w.server.Token()), "cut": cookie[:len(cookie)-1], "longer": cookie + "0",
	} {
		if r := w.call("GET", "/page/state", http.Header{"Cookie": {c}}, nil); r.code != 401 {
			t.Errorf("cookie %s: %d", what, r.code)
		}
	}
	if r := w.call("GET", "/page/state", http.Header{"Cookie": {"other=1; " + cookie}}, nil); r.code != 200 || r.header.Get("Cache-Control") != "no-store" {
		t.Errorf("the right one: %d %v", r.code, r.header)
	}
	for _, call := range []string{"GET /api/v1/agents", "POST /api/v1/builds", "DELETE /api/v1/agents/x"} {
		method, path, _ := strings.Cut(call, " ")
		if r := w.call(method, path, http.Header{"Cookie": {cookie}}, nil); r.code != 401 {
			t.Errorf("%s with the page's cookie: %d", call, r.code)
		}
	}
	if r := w.call("DELETE", "/session", http.Header{"Cookie": {cookie}}, nil); r.code != 204 || !strings.Contains(r.header.Get("Set-Cookie"), "Max-Age=0") {
		t.Errorf("sign out: %d %v", r.code, r.header)
	}
	if r := w.call("GET", "/page/state", http.Header{"Cookie": {cookie}}, nil); r.code != 401 {
		t.Errorf("after signing out: %d", r.code)
	}
}

func TestASessionEnds(t *testing.T) {
	synctest1(t, func(t *testing.T, w *world) {
		h := w.signIn()
		time.Sleep(sessionLife - time.Second)
		if r := w.call("GET", "/page/state", h, nil); r.code != 200 {
			t.Errorf("before its end: %d", r.code)
		}
		time.Sleep(time.Second)
		if r := w.call("GET", "/page/state", h, nil); r.code != 401 {
			t.Errorf("after its end: %d", r.code)
		}
	})
}

func TestThePageAndItsParts(t *testing.T) {
	w := serve(t, Options{})
	kinds := map[string]string{".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
	files, err := pageFiles.ReadDir("page")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	all := make(map[string]string)
	for _, file := range files {
		path := "/" + file.Name()
		all[path] = must(t, file.Name())
		if path == "/index.html" {
			path = "/"
		}
		r := w.call("GET", path, nil, nil)
		if r.code != 200 || !strings.HasPrefix(r.header.Get("Content-Type"), kinds[filepath.Ext(file.Name())]) || len(r.body) == 0 {
			t.Errorf("%s: %d %v", path, r.code, r.header)
		}
		if r.header.Get("Content-Security-Policy") != pagePolicy || r.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %v", path, r.header)
		}
		if again := w.call("GET", path, http.Header{"If-None-Match": {r.header.Get("ETag")}}, nil); again.code != 304 {
			t.Errorf("%s again: %d", path, again.code)
		}
	}
	for _, path := range []string{"/page/", "/page/index.html", "/index.html", "/favicon.ico"} {
		if r := w.call("GET", path, nil, nil); r.code != 404 {
			t.Errorf("%s: %d", path, r.code)
		}
	}
	if strings.Contains(pagePolicy, "unsafe") || !strings.Contains(pagePolicy, "default-src 'none'") {
		t.Errorf("policy: %s", pagePolicy)
	}
	// The policy forbids what these would be, and the page is to work offline.
	for name, text := range all {
		text = strings.ReplaceAll(text, `xmlns="http://www.w3.org/2000/svg"`, "")
		for _, bad := range []string{`https?://`, `innerHTML|outerHTML|insertAdjacent|document\.write|createContextualFragment|DOMParser|srcdoc`, `\son\w+=`, `<style|style=`, `javascript:`, `\beval\(|new Function`} {
			if found := regexp.MustCompile(bad).FindString(text); found != "" {
				t.Errorf("%s has %q in it", name, found)
			}
		}
		for _, m := range regexp.MustCompile(`from "\.(/[a-z]+\.js)"`).FindAllStringSubmatch(text, -1) {
			if all[m[1]] == "" {
				t.Errorf("%s wants %s", name, m[1])
			}
		}
	}
	// The script and the page talk of the same elements.
	html, js := must(t, "index.html"), must(t, "page.js")
	for _, m := range regexp.MustCompile(`byId\("([a-z-]+)"\)`).FindAllStringSubmatch(js, -1) {
		if !strings.Contains(html, `id="`+m[1]+`"`) {
			t.Errorf("there is no element %s", m[1])
		}
	}
}

// TestEveryTextIsInBothLanguages: each that the scripts ask for is in the table, each of the table is asked for, and
// the values that belong into it are the same in both.
func TestEveryTextIsInBothLanguages(t *testing.T) {
	entry := regexp.MustCompile(`(?m)^\t"([^"]+)": \["((?:[^"\\]|\\.)+)", "((?:[^"\\]|\\.)+)"\],$`)
	slot := regexp.MustCompile(`\{\d\}`)
	known := make(map[string]bool)
	table := must(t, "text.js")
	for _, m := range entry.FindAllStringSubmatch(table, -1) {
		if known[m[1]] {
			t.Errorf("%s is there twice", m[1])
		}
		known[m[1]] = true
		en, zh := slot.FindAllString(m[2], -1), slot.FindAllString(m[3], -1)
		slices.Sort(en)
		slices.Sort(zh)
		if !slices.Equal(slices.Compact(en), slices.Compact(zh)) {
			t.Errorf("%s: %q and %q", m[1], m[2], m[3])
		}
	}
	if lines := strings.Count(table, "\n\t\""); lines != len(known) || lines < 100 {
		t.Errorf("%d lines, %d texts", lines, len(known))
	}
	all := ""
	files, err := pageFiles.ReadDir("page")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if filepath.Ext(file.Name()) != ".js" || file.Name() == "text.js" {
			continue
		}
		text := must(t, file.Name())
		all += text
		for _, m := range regexp.MustCompile(`\bt\("([^"]+)"[,)]`).FindAllStringSubmatch(text, -1) {
			if !known[m[1]] {
				t.Errorf("%s asks for %s", file.Name(), m[1])
			}
		}
	}
	for name := range known {
		_, last, dotted := strings.Cut(name, ".")
		if !strings.Contains(all, `"`+name+`"`) && (!dotted || !strings.Contains(all, `"`+last+`"`)) && !strings.HasPrefix(name, "state.") {
			t.Errorf("nobody asks for %s", name)
		}
	}
	for _, state := range []string{string(Queued), string(Handed), string(Running), string(Succeeded), string(Failed), string(Cancelled), string(Pending), string(Skipped),
		string(wire.ImportOK), string(wire.ImportException), string(wire.UnImport), string(wire.Deleted), string(InCanary), string(Rolling), string(Done), string(Paused), string(Halted), string(RolledBack),
		string(Waiting), string(Offered), string(Downloading), string(Upgraded), string(Faulty), string(Left), string(Reverting), string(Reverted),
		TokenValid, TokenUsedUp, TokenExpired, TokenRevoked, AuditOK, AuditRefused, AuditFailed, AuditUnknown} {
		if !known["state."+state] {
			t.Errorf("the state %s has no text", state)
		}
	}
}

func must(t *testing.T, name string) string {
	t.Helper()
	data, err := pageFiles.ReadFile("page/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestWhatThePageShows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inBubble(t, polled(t))
		h := w.signIn()
		look := func() (v pageView) {
			t.Helper()
			r := w.call("GET", "/page/state", h, nil)
			if err := json.Unmarshal(r.body, &v); err != nil || r.code != 200 {
				t.Fatalf("%d %s %v", r.code, r.body, err)
			}
			if strings.Contains(string(r.body), "secret") {
				t.Errorf("a secret: %s", r.body)
			}
			return v
		}
		if v := look(); v.Total != 0 || v.Agents == nil || v.Rollouts == nil || v.Releases != 0 {
			t.Errorf("empty: %+v", v)
		}
		w.release("v2.0.0")
		robots := w.robots(2)
		w.machine(NewAgent{})
		if v := look(); v.Total != 3 || v.Online != 2 || v.Newest != "v2.0.0" || v.Agents[2].Status != wire.UnImport || v.Agents[2].SeenAt != 0 {
			t.Errorf("%+v", v)
		}
		w.offer(Offer{Version: "v2.0.0", MaxFailures: 1})
		robots[0].poll()
		robots[0].finish(false)
		v := look()
		if len(v.Rollouts) != 1 || v.Rollouts[0].State != Rolling || len(v.Rollouts[0].Failures) != 1 || v.Rollouts[0].Agents != nil {
			t.Errorf("%+v", v.Rollouts)
		}
		states := map[string]MemberState{}
		for _, a := range v.Agents {
			if a.Upgrade != nil {
				states[a.ID] = a.Upgrade.State
			}
		}
		if len(states) != 2 || states[robots[0].id.Agent] != Faulty || states[robots[1].id.Agent] != Waiting {
			t.Errorf("%v", states)
		}
		time.Sleep(2 * time.Minute)
		if v := look(); v.Online != 0 || v.Agents[0].Status != wire.ImportException || v.Now-v.Agents[0].SeenAt < 110_000 {
			t.Errorf("offline: %+v", v)
		}
	})
}
