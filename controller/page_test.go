package controller

import (
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
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
	ends, mac, _ := strings.Cut(value, ".")
	for what, c := range map[string]string{
		"none": "", "other": name + "=x", "no end": name + "=." + mac, "a later end": name + "=9" + ends + "." + mac,
		"the token": name + "=" + string(w.server.Token()), "cut": cookie[:len(cookie)-1],
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
	for path, kind := range map[string]string{"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript"} {
		r := w.call("GET", path, nil, nil)
		if r.code != 200 || !strings.HasPrefix(r.header.Get("Content-Type"), kind) || len(r.body) == 0 {
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
	// The policy forbids what these would be, and the page is to work offline.
	for _, name := range []string{"index.html", "page.css", "page.js"} {
		data, err := os.ReadFile(filepath.Join("page", name))
		if err != nil {
			t.Fatal(err)
		}
		for _, bad := range []string{`https?://`, `innerHTML|outerHTML|insertAdjacent|document\.write`, `\son\w+=`, `<style|style=`, `javascript:`, `eval\(|new Function`} {
			if found := regexp.MustCompile(bad).Find(data); found != nil {
				t.Errorf("%s has %q in it", name, found)
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
