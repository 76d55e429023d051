package controller

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
)

func (w *world) define(file string) Definition {
	w.t.Helper()
	d, err := w.server.Define("", file)
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

func (w *world) runs() []Run {
	w.t.Helper()
	list, err := w.server.Runs(100, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

func TestAScheduleStartsARunOnceForAllThatWasMissed(t *testing.T) {
	opts := Options{Dir: t.TempDir()}
	w := restarted(t, opts)
	d := w.define("name: nightly\nschedule: {cron: \"0 3 * * *\", timezone: UTC}\nsteps: [{script: x}]\n")
	at := time.UnixMilli(d.NextAt).UTC()
	if at.Hour() != 3 || at.Minute() != 0 || at.Before(time.Now()) {
		t.Fatalf("next at %v", at)
	}
	w.server.startDue(at.Add(-time.Second))
	if list := w.runs(); len(list) != 0 {
		t.Fatalf("too soon: %+v", list)
	}
	w.close()
	w = restarted(t, opts)
	late := at.Add(5*24*time.Hour + time.Hour)
	w.server.startDue(late)
	stored := int64(0)
	if err := w.server.store.each(func(scan func(...any) error) error { return scan(&stored) }, `SELECT json_extract(doc, '$.nextAt') FROM definition`); err != nil || stored <= millis(late) {
		t.Errorf("the run is on disk, and the next time is %v there: %v", time.UnixMilli(stored), err)
	}
	w.server.startDue(late)
	if list := w.runs(); len(list) != 1 || list[0].Definition != "nightly" || list[0].Trigger != "schedule" || list[0].Jobs[0].Name != "nightly" {
		t.Fatalf("runs %+v", list)
	}
	w.close()
	w = restarted(t, opts)
	defer func() { w.close() }()
	w.server.startDue(late)
	d, err := w.server.FindDefinition("", "nightly")
	if list := w.runs(); err != nil || len(list) != 1 || d.NextAt != millis(at.Add(6*24*time.Hour)) {
		t.Fatalf("after the restart %+v %+v %v", list, d, err)
	}
	w.server.startDue(time.UnixMilli(d.NextAt))
	if d, err = w.server.FindDefinition("", "nightly"); err != nil || len(w.runs()) != 1 || !strings.Contains(d.Problem, "not over") {
		t.Errorf("a second beside the first: %+v %v", d, err)
	}
	if _, err := w.server.CancelRun("1"); err != nil {
		t.Fatal(err)
	}
	w.server.startDue(time.UnixMilli(d.NextAt))
	if d, err = w.server.FindDefinition("", "nightly"); err != nil || len(w.runs()) != 2 || d.Problem != "" || d.LastRun == nil || d.LastRun.State != Cancelled || d.LastRun.Number != 1 {
		t.Errorf("the next: %+v %v", d, err)
	}
	if err := w.server.Undefine("", "nightly"); err != nil {
		t.Fatal(err)
	}
	w.server.startDue(time.UnixMilli(d.NextAt))
	if list := w.runs(); len(list) != 2 {
		t.Errorf("a definition that is gone started %+v", list[0])
	}
}

func TestWhenSchedulesCome(t *testing.T) {
	for _, c := range []struct{ cron, zone, from, want string }{
		{"*/15 * * * *", "UTC", "2026-11-23T13:46:00Z", "2026-11-23T14:00:00Z"},
		{"30 9 * * 1-5", "Asia/Shanghai", "2026-11-20T02:00:00Z", "2026-11-23T01:30:00Z"},
		{"@daily", "Europe/Berlin", "2026-11-23T13:00:00Z", "2026-11-23T23:00:00Z"},
		{"0 12 29 2 *", "UTC", "2026-11-23T13:00:00Z", "2028-02-29T12:00:00Z"},
		{"0 5 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-29T03:00:00Z"}, // summer time begins
	} {
		table, err := Schedule{Cron: c.cron, Timezone: c.zone}.parse()
		if err != nil {
			t.Error(err)
			continue
		}
		from, err := time.Parse(time.RFC3339, c.from)
		if err != nil {
			t.Fatal(err)
		}
		if got := table.next(from).UTC().Format(time.RFC3339); got != c.want {
			t.Errorf("%s in %s after %s: %s, want %s", c.cron, c.zone, c.from, got, c.want)
		}
	}
}

func TestDefinitionsThatCannotBe(t *testing.T) {
	w := serve(t, Options{})
	steps := "steps: [{script: x}]\n"
	for _, c := range []struct{ file, want string }{
		{"name: a\nschedule: 61 * * * *\n" + steps, "line 2: schedule"},
		{"name: a\nschedule:\n  - \"@daily\"\n  - {cron: \"@daily\", timezone: Moon/Base}\n" + steps, `line 4: schedule: "Moon/Base" is no time zone`},
		{"name: a\nschedule: \"* * * * * *\"\n" + steps, "line 2"},
		{"name: a\nschedule: \"CRON_TZ=\"\n" + steps, "line 2"},
		{"name: a\nschedule: \"@every 1s\"\n" + steps, "once a minute"},
		{"name: a\nschedule: \"0 0 30 2 *\"\n" + steps, "never comes"},
		{"name: a\nschedule: {corn: x}\n" + steps, `line 2: unknown key "corn"`},
		{"name: a\nwebhook: {secret: X, variables: {PATH: a}}\n" + steps, "PATH"},
		{"name: a\nwebhook: {variables: {A: a}}\n" + steps, "webhook: secret"},
		{"name: a\nwebhook: {secret: X, variables: {A: a}}\nvariables: {A: b}\n" + steps, "as well"},
		{"name: a\nwebhook: {secret: X, variables: {A: a}}\nsteps: [{script: x, shell: powershell}]\n", "a shell like sh"},
		{"name: a\nwebhook: {secret: X, variables: {A: a}}\nsteps: [{script: \"#!/usr/bin/env python3\\nx\"}]\n", "a shell like sh"},
		{"name: a\nbadge: private\n" + steps, "badge"},
		{"name: a b\n" + steps, "name"},
		{steps, "name"},
		{"name: a\nschedule: \"@daily\"\njobs: {x: {needs: y, steps: [{script: x}]}}\n", `needs "y"`},
		{"name: a\nstep: 1\n", `unknown key "step"`},
	} {
		_, err := w.server.Define("", c.file)
		var spec *SpecError
		if !errors.As(err, &spec) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %s", c.file, err, c.want)
		}
	}
	if list := w.server.Definitions(); len(list) != 0 {
		t.Errorf("%+v", list)
	}
}

func sign(key, body string) string {
	mac := hmac.New(sha256.New, []byte(key))
	_, _ = mac.Write([]byte(body))
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

const hooked = `name: push
webhook:
  secret: HOOK
  variables: {REF: ref, WHO: commits.0.author.name, COUNT: count, ALL: commits}
badge: public
jobs:
  one:
    steps: [{script: "echo $REF"}]
  two:
    steps: [{script: "#!/bin/bash -x\necho $REF"}]
`

func TestASignedWebhookStartsOneRun(t *testing.T) {
	opts := Options{Dir: t.TempDir()}
	w := restarted(t, opts)
	if _, err := w.server.SetSecret("", "HOOK", "the key"); err != nil {
		t.Fatal(err)
	}
	w.define(hooked)
	body := `{"ref": "refs/heads/$(touch x)'", "count": 1.50, "other": "not named", "commits": [{"author": {"name": "Zoë"}}]}`
	post := func(path, body, signature, delivery string) rawReply {
		t.Helper()
		h := http.Header{}
		if signature != "" {
			h.Set("X-Hub-Signature-256", signature)
		}
		if delivery != "" {
			h.Set("X-Github-Delivery", delivery)
		}
		return w.call("POST", path, h, body)
	}
	for name, c := range map[string]struct {
		path, body, signature, delivery string
		code                            int
	}{
		"no signature":        {"/hooks/push", body, "", "d", 401},
		"another key":         {"/hooks/push", body, sign("other", body), "d", 401},
		"another body":        {"/hooks/push", body + " ", sign("the key", body), "d", 401},
		"half a signature":    {"/hooks/push", body, sign("the key", body)[:40], "d", 401},
		"no hexadecimals":     {"/hooks/push", body, "sha256=zz", "d", 401},
		"an unknown hook":     {"/hooks/none", body, sign("the key", body), "d", 401},
		"an unknown project":  {"/hooks/none/push", body, sign("the key", body), "d", 401},
		"no delivery":         {"/hooks/push", body, sign("the key", body), "", 400},
		"a long delivery":     {"/hooks/push", body, sign("the key", body), strings.Repeat("d", 201), 400},
		"no JSON":             {"/hooks/push", "a=b", sign("the key", "a=b"), "d", 400},
		"more than a MiB":     {"/hooks/push", `"` + strings.Repeat("x", maxHook) + `"`, sign("the key", `"`+strings.Repeat("x", maxHook)+`"`), "d", 413},
		"a token is no proof": {"/hooks/push", body, "Bearer " + string(w.server.Token()), "d", 401},
	} {
		if r := post(c.path, c.body, c.signature, c.delivery); r.code != c.code {
			t.Errorf("%s: %d %s, want %d", name, r.code, r.body, c.code)
		}
	}
	if list := w.runs(); len(list) != 0 {
		t.Fatalf("refused calls started %+v", list)
	}
	first := post("/hooks/push", body, sign("the key", body), "d-1")
	again := post("/hooks/"+DefaultProject+"/push", body, sign("the key", body), "d-1")
	w.close()
	w = restarted(t, opts)
	defer func() { w.close() }()
	third := post("/hooks/push", body, sign("the key", body), "d-1")
	list := w.runs()
	if len(list) != 1 || first.code != 200 || again.code != 200 || third.code != 200 || !strings.Contains(string(first.body), list[0].ID) ||
		!strings.Contains(string(again.body), list[0].ID) || !strings.Contains(string(third.body), `"repeated":true`) || list[0].Trigger != "webhook" {
		t.Fatalf("%s %s %s %+v", first.body, again.body, third.body, list)
	}
	if r := post("/hooks/push", body, sign("the key", body), "d-2"); r.code != 200 || len(w.runs()) != 2 {
		t.Errorf("another delivery: %s", r.body)
	}
	b, err := w.server.find(list[0].Jobs[0].Build)
	if err != nil {
		t.Fatal(err)
	}
	script := b.spec.Steps[0].Script
	if want := "export ALL='[{\"author\":{\"name\":\"Zoë\"}}]'\nexport COUNT='1.50'\nexport REF='refs/heads/$(touch x)'\\'''\nexport WHO='Zoë'\necho $REF"; script != want || b.spec.Steps[0].Shell != "sh" {
		t.Errorf("script %q with %s, want %q", script, b.spec.Steps[0].Shell, want)
	}
	if b, err = w.server.find(list[0].Jobs[1].Build); err != nil || !strings.HasPrefix(b.spec.Steps[0].Script, "#!/bin/bash -x\nexport ALL=") {
		t.Errorf("%+v %v", b.spec.Steps, err)
	}
	if vars := b.variables("h").Variables; vars["REF"] != "" {
		t.Errorf("a worker would fill %q into scripts", vars["REF"])
	}
}

// Whatever comes in stays one value, for a shell and for a worker that fills variables in.
func TestAValueFromOutsideIsNeverCode(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no sh")
	}
	for _, value := range []string{"plain", "", "a b", "it's", "'; touch /nowhere; '", "$(id) `id` $HOME \\ \" !", "line\nline two\n# three", "${HOME} ${{ SECRET }}", "''", "'$''{", "-n", "x\\", "§中"} {
		text := shellText(value)
		if strings.Contains(text, "${") {
			t.Errorf("%q: a worker would look into %s", value, text)
		}
		out, err := exec.Command("sh", "-c", "V="+text+"\nprintf '%s' \"$V\"").Output()
		if err != nil || string(out) != value {
			t.Errorf("%q became %q: %v", value, out, err)
		}
	}
}

func TestABadgeIsPublicOnlyWhenItSaysSo(t *testing.T) {
	w := serve(t, fast())
	m := w.imported(NewAgent{})
	m.settle()
	w.define("name: open\nbadge: public\nsteps: [{script: x}]\n")
	w.define("name: closed\nsteps: [{script: x}]\n")
	for _, path := range []string{"/badge/" + DefaultProject + "/closed.svg", "/badge/" + DefaultProject + "/none.svg", "/badge/other/open.svg", "/badge/" + DefaultProject + "/open"} {
		if r := w.call("GET", path, nil, nil); r.code != 404 {
			t.Errorf("%s: %d", path, r.code)
		}
	}
	badge := func() string {
		t.Helper()
		r := w.call("GET", "/badge/"+DefaultProject+"/open.svg", nil, nil)
		if r.code != 200 || r.header.Get("Content-Type") != "image/svg+xml" || r.header.Get("Cache-Control") != "no-cache" {
			t.Fatalf("%d %v", r.code, r.header)
		}
		dec := xml.NewDecoder(strings.NewReader(string(r.body)))
		for {
			if _, err := dec.Token(); errors.Is(err, io.EOF) {
				return string(r.body)
			} else if err != nil {
				t.Fatalf("%v in %s", err, r.body)
			}
		}
	}
	if text := badge(); !strings.Contains(text, "no run") {
		t.Errorf("%s", text)
	}
	if _, err := w.server.Trigger("", "open", NewRun{}); err != nil {
		t.Fatal(err)
	}
	m.work(nil)
	if text := badge(); !strings.Contains(text, "passing") {
		t.Errorf("%s", text)
	}
	if text := badgeSVG("<b>", "\"&", "red"); strings.Contains(text, "<b>") || strings.Contains(text, "\"&\"") {
		t.Errorf("%s", text)
	}
}

func FuzzHookValue(f *testing.F) {
	f.Add(`{"a": [1, {"b": "c"}]}`, "a.1.b")
	f.Add(`[[]]`, "0.0")
	f.Fuzz(func(t *testing.T, body, at string) {
		if text := shellText(hookValue(map[string]any{"a": []any{body, nil, 1.5}, body: at}, at)); strings.Contains(text, "${") || len(text) < 2 {
			t.Errorf("%q", text)
		}
	})
}
