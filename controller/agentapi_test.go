package controller

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

func TestStatesOfAnAgent(t *testing.T) {
	w := serve(t, Options{StatusSpacing: time.Nanosecond})
	m := w.machine(NewAgent{})
	if st, err := m.client.Status(t.Context()); err != nil || st != wire.UnImport {
		t.Errorf("before the first start: %q %v", st, err)
	}
	in := wire.Startup{HostName: "h", HostIP: "10.0.0.1", DetectOS: "linux"}
	for _, want := range []wire.AgentStatus{wire.UnImportOK, wire.ImportOK} {
		if st, err := m.client.Startup(t.Context(), in); err != nil || st != want {
			t.Errorf("startup: %q %v, want %q", st, err, want)
		}
	}
	reply, err := m.client.Beat(t.Context(), beat())
	if err != nil || reply.AgentStatus != wire.ImportOK || *reply.ParallelTaskCount != 4 || reply.MasterVersion != "v1.0.0" {
		t.Errorf("heartbeat: %+v %v", reply, err)
	}
	if err := w.server.DeleteAgent(m.id.Agent); err != nil {
		t.Fatal(err)
	}
	if st, err := m.client.Startup(t.Context(), in); err != nil || st != wire.Deleted {
		t.Errorf("startup of a deleted one: %q %v", st, err)
	}
	p := m.ask(asking(wire.All), 30*time.Second)
	if p.AgentStatus != wire.Deleted || p.Heartbeat == nil || *p.Heartbeat.ParallelTaskCount != -1 || p.Heartbeat.AgentStatus != wire.Deleted {
		t.Errorf("ask of a deleted one: %+v", p)
	}
	for _, c := range []struct{ method, path string }{{"GET", wire.PathClaim + "?buildType=ALL"}, {"DELETE", wire.PathUpgrade + "?success=true"}} {
		if r := m.call(c.method, c.path, m.header(), nil); r.code != 200 || r.env.AgentStatus == nil || *r.env.AgentStatus != "DELETE" {
			t.Errorf("%s %s of a deleted one: %d %s", c.method, c.path, r.code, r.body)
		}
	}
	if r := m.call("GET", wire.PathDownload+"?file=x", m.header(), nil); r.code != 404 {
		t.Errorf("download of a deleted one: %d", r.code)
	}
}

// Protocol §1.8, row by row, with the paths in all their forms.
func TestRefusals(t *testing.T) {
	w := serve(t, Options{AskSpacing: time.Nanosecond})
	m, fresh := w.imported(NewAgent{}), w.machine(NewAgent{})
	wrong := m.header()
	wrong.Set(wire.HeaderSecret, "wrong")
	stranger := m.header()
	stranger.Set(wire.HeaderAgent, "nobody")
	moved := m.header()
	moved.Set(wire.HeaderProject, "elsewhere")
	blank := m.header()
	blank.Set(wire.HeaderSecret, " ")
	start := `{"hostname":"h","hostIp":"1.1.1.1","detectOS":"linux","extra":[1]}`
	for _, c := range []struct {
		name, method, path string
		header             http.Header
		body               any
		code, status       int
	}{
		{"wrong secret, startup", "POST", wire.PathStartup, wrong, start, 401, 401},
		{"unknown agent", "POST", wire.PathStartup, stranger, start, 401, 401},
		{"wrong project", "GET", wire.PathStatus, moved, nil, 401, 401},
		{"wrong secret, heartbeat", "POST", wire.PathHeartbeat, wrong, beat(), 401, 401},
		{"wrong secret, claim", "GET", wire.PathClaim + "?buildType=ALL", wrong, nil, 404, 404},
		{"wrong secret, upgrade", "POST", wire.PathUpgradeNew, wrong, "{}", 404, 404},
		{"wrong secret, download", "GET", wire.PathDownload + "?file=x", wrong, nil, 404, 404},
		{"not imported, claim", "GET", wire.PathClaim + "?buildType=ALL", fresh.header(), nil, 404, 404},
		{"blank header", "GET", wire.PathStatus, blank, nil, 400, 400},
		{"blank header, ask", "POST", wire.PathAsk, blank, asking(wire.All), 400, 400},
		{"no JSON", "POST", wire.PathStartup, m.header(), "<html>", 400, 400},
		{"member missing", "POST", wire.PathStartup, m.header(), `{"hostname":"h","detectOS":"linux"}`, 400, 400},
		{"member null", "POST", wire.PathStartup, m.header(), `{"hostname":"h","hostIp":null,"detectOS":"linux"}`, 400, 400},
		{"wrong type", "POST", wire.PathStartup, m.header(), `{"hostname":7,"hostIp":"1.1.1.1","detectOS":"linux"}`, 400, 400},
		{"build as a boolean", "POST", wire.PathAsk, m.header(), `{"askEnable":{"build":true,"upgrade":false,"dockerDebug":false,"pipeline":false},"heartbeat":{"masterVersion":"v"}}`, 400, 400},
		{"the unfinished ask", "POST", wire.PathAsk, m.header(), `{"askEnable":{"build":"ALL","upgrade":false,"dockerBuild":false,"pipeline":false},"heartbeat":{"masterVersion":"v"}}`, 400, 400},
		{"wrong secret, ask", "POST", wire.PathAsk, wrong, asking(wire.All), 200, 1},
		{"old heartbeat", "POST", "/ms/environment/api/buildAgent/agent/thirdPartyAgent/agents/heartbeat", m.header(), beat(), 200, 1},
		{"no such call", "GET", "/ms/environment/api/nothing", m.header(), nil, 404, 404},
		{"good", "POST", wire.PathStartup, m.header(), start, 200, 0},
		{"good without /ms", "POST", strings.TrimPrefix(wire.PathStartup, "/ms"), m.header(), start, 200, 0},
		{"good without the service", "POST", strings.TrimPrefix(wire.PathStartup, "/ms/environment"), m.header(), start, 200, 0},
		{"debug", "GET", wire.PathDebug, m.header(), nil, 200, 0},
		{"debug status", "GET", wire.PathDebugStatus + "?debugId=7", m.header(), nil, 200, 0},
	} {
		if r := w.call(c.method, c.path, c.header, c.body); r.code != c.code || r.env.Status != c.status {
			t.Errorf("%s: HTTP %d status %d, want %d %d: %s", c.name, r.code, r.env.Status, c.code, c.status, r.body)
		}
	}
	in := asking(wire.All)
	in.Enable.Upgrade = true
	if r := w.call("POST", wire.PathAsk, wrong, in); r.env.Status != 0 || r.env.AgentStatus != nil ||
		!strings.Contains(string(r.env.Data), `"upgrade":{"agent":false,"worker":false,"jdk":false,"dockerInitFile":false}`) {
		t.Errorf("wrong secret, ask with upgrade: %s", r.body)
	}
	if r := w.call("POST", wire.PathStartup, m.header(), strings.Repeat(" ", maxBody+1)); r.code != 413 {
		t.Errorf("a huge body: %d", r.code)
	}
}

func TestSpacing(t *testing.T) {
	synctest1(t, func(t *testing.T, w *world) {
		m := w.imported(NewAgent{})
		for _, c := range []struct {
			name     string
			distance time.Duration
			call     func() error
		}{
			{"status", 3 * time.Second, func() error { _, err := m.client.Status(t.Context()); return err }},
			{"heartbeat", 4 * time.Second, func() error { _, err := m.client.Beat(t.Context(), beat()); return err }},
			{"ask", 3 * time.Second, func() error { _, err := m.client.Ask(t.Context(), asking(wire.All), 0); return err }},
			{"pipelines", 10 * time.Second, func() error { _, err := m.client.Pipeline(t.Context()); return err }},
		} {
			if err := c.call(); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			time.Sleep(c.distance - time.Millisecond)
			if err := c.call(); statusOf(err) != 1 {
				t.Errorf("%s too early: %v", c.name, err)
			}
			time.Sleep(time.Millisecond)
			if err := c.call(); err != nil {
				t.Errorf("%s in time: %v", c.name, err)
			}
		}
		m.ask(asking(wire.None), time.Second)
		for range 3 {
			if _, err := m.client.Status(t.Context()); err != nil {
				t.Errorf("an agent that lets itself be held is not counted: %v", err)
			}
		}
	})
}

func TestLogLines(t *testing.T) {
	w := serve(t, Options{Dir: t.TempDir(), MaxLogLines: 2005})
	m, thief := w.imported(NewAgent{}), w.imported(NewAgent{})
	m.settle()
	b := w.submit(oneStep("x"))
	m.ask(asking(wire.All), time.Second)
	m.start(b.ID)
	task := m.claimTask(b.ID)
	var yes bool
	var sent []string
	for i := range 20 {
		var lines []wire.LogLine
		for j := range 100 {
			lines = append(lines, wire.LogLine{Message: fmt.Sprintf("line %d", i*100+j), Timestamp: int64(i), Tag: *task.TaskID, LogType: wire.LogNormal})
			sent = append(sent, lines[j].Message)
		}
		path := wire.PathLogsMulti
		if i%2 == 0 {
			path = "/ms" + path
		}
		m.worker(b.ID, "POST", path+"?buildId="+b.ID, lines, &yes)
	}
	m.worker(b.ID, "POST", wire.PathLogs, wire.LogLine{Message: "normal\r\nsecond", Tag: "startVM-1"}, &yes)
	m.worker(b.ID, "POST", wire.PathLogsRed, wire.LogLine{Message: "red"}, &yes)
	m.worker(b.ID, "POST", "/api/build/logs/yellow", wire.LogLine{Message: "yellow"}, &yes)
	sent = append(sent, "normal", "second", "red", "yellow")
	m.worker(b.ID, "PUT", wire.PathLogsStatus+"?finished=true&tag=x&executeCount=1", nil, &yes)
	m.worker(b.ID, "POST", wire.PathLogsMode+"?executeCount=1", []wire.LogMode{{LogStorageMode: "UPLOAD"}}, &yes)
	m.worker(b.ID, "POST", wire.PathQuotaStart+"?executeCount=1", nil, &yes)
	if r := thief.worker(b.ID, "POST", wire.PathLogsMulti, []wire.LogLine{{Message: "no"}}, nil); r.code != 401 {
		t.Errorf("lines of another agent: %d", r.code)
	}
	m.complete(b.ID, wire.TaskResult{TaskID: *task.TaskID, Success: true})
	m.end(b.ID)
	m.worker(b.ID, "POST", wire.PathLogs, wire.LogLine{Message: "after the end"}, &yes)
	sent = append(sent, "after the end")
	if r := m.worker(b.ID, "POST", wire.PathLogs, wire.LogLine{Message: "one too many"}, nil); r.env.Status != 509 {
		t.Errorf("over the limit: %s", r.body)
	}
	lines, err := w.server.Log(b.ID, 0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for i := range sent {
		if i >= len(lines) || lines[i].Message != sent[i] || lines[i].Seq != int64(i+1) {
			t.Fatalf("line %d: want %q in %d lines: %+v", i+1, sent[i], len(lines), lines[min(i, len(lines)-1)])
		}
	}
	if len(lines) != len(sent) || lines[2002].Type != wire.LogError || lines[2003].Type != wire.LogWarn || lines[2000].Type != wire.LogNormal {
		t.Errorf("%d lines, want %d: %+v", len(lines), len(sent), lines[2000:])
	}
}

func TestAFollowedLogStreamsUntilTheEnd(t *testing.T) {
	w := serve(t, Options{})
	m := w.imported(NewAgent{})
	m.settle()
	b := w.submit(oneStep("x"))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", w.url+fmt.Sprintf("/api/v1/builds/%d/log?follow=true", b.Number), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+string(w.server.Token()))
	resp, err := w.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	dec := json.NewDecoder(resp.Body)
	next := func() logEvent {
		t.Helper()
		var e logEvent
		if err := dec.Decode(&e); err != nil {
			t.Fatal(err)
		}
		return e
	}
	if e := next(); e.Build == nil || e.Build.State != Queued {
		t.Errorf("first: %+v", e)
	}
	m.ask(asking(wire.All), time.Second)
	if e := next(); e.Build == nil || e.Build.State != Handed {
		t.Errorf("second: %+v", e)
	}
	played := make(chan struct{})
	defer func() { <-played }()
	go func() {
		defer close(played)
		m.run(b.ID, func(task wire.BuildTask) wire.TaskResult {
			var yes bool
			m.worker(b.ID, "POST", wire.PathLogsMulti, []wire.LogLine{{Message: "hello", Tag: *task.TaskID}}, &yes)
			return wire.TaskResult{Success: true}
		})
	}()
	said := ""
	for {
		e := next()
		if e.Line != nil {
			said += e.Line.Message
		}
		if e.Build != nil && e.Build.State.Over() {
			break
		}
	}
	if said != "hello" {
		t.Errorf("said %q", said)
	}
	if err := dec.Decode(new(logEvent)); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
}

func TestPipelineScripts(t *testing.T) {
	w := serve(t, Options{Dir: t.TempDir()})
	m := w.imported(NewAgent{})
	m.settle()
	c, err := w.server.QueueScript(m.id.Agent, "uptime")
	if err != nil {
		t.Fatal(err)
	}
	in := asking(wire.None)
	in.Enable.Pipeline = true
	p := m.ask(in, 10*time.Second)
	if p.Pipeline == nil || p.Pipeline.Command != "uptime" || p.Pipeline.Type != "COMMAND" || p.Heartbeat.Props.EnablePipeline == nil || !*p.Heartbeat.Props.EnablePipeline {
		t.Fatalf("%+v %+v", p.Pipeline, p.Heartbeat.Props)
	}
	if again := m.ask(in, time.Second); again.Pipeline != nil {
		t.Errorf("given twice: %+v", again.Pipeline)
	}
	for _, r := range []wire.PipelineReport{{SeqID: p.Pipeline.SeqID, Status: "EXECUTING", Response: "Executing"}, {SeqID: p.Pipeline.SeqID, Status: "SUCCESS", Response: "up 3 days"}} {
		if err := m.client.ReportPipeline(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := w.server.FindScript(c.ID); err != nil || got.Status != "SUCCESS" || got.Response != "up 3 days" || got.EndedAt == 0 {
		t.Errorf("%+v %v", got, err)
	}
	if r := m.call("PUT", wire.PathPipelines, m.header(), `{"seqId":"1","status":"DANCING","response":""}`); r.code != 400 {
		t.Errorf("unknown status: %d", r.code)
	}
	if r := m.call("POST", wire.PathMetrics, m.header(), `{"metrics":[]}`); r.code != 200 || r.env.Status != 0 {
		t.Errorf("metrics: %d", r.code)
	}
	if data, at := w.server.Sample(m.id.Agent); string(data) != `{"metrics":[]}` || at.IsZero() {
		t.Errorf("sample: %s", data)
	}
}

func publish(t *testing.T, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, "files", filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDownloads(t *testing.T) {
	dir := t.TempDir()
	w := serve(t, Options{Dir: dir})
	m := w.imported(NewAgent{})
	publish(t, dir, "jar/worker-agent.jar", "0123456789")
	publish(t, dir, "../secret", "no")
	if err := os.Symlink(filepath.Join(dir, "secret"), filepath.Join(dir, "files", "link")); err != nil {
		t.Logf("no symlinks here: %v", err)
	}
	sum := md5.Sum([]byte("0123456789"))
	digest := hex.EncodeToString(sum[:])
	r := m.call("GET", wire.PathDownload+"?file=jar/worker-agent.jar", m.header(), nil)
	if r.code != 200 || string(r.body) != "0123456789" || r.header.Get("X-Checksum-Md5") != digest ||
		r.header.Get("Content-Type") != "application/octet-stream" || !strings.Contains(r.header.Get("Content-Disposition"), "worker-agent.jar") {
		t.Errorf("%d %v %s", r.code, r.header, r.body)
	}
	if r := m.call("GET", wire.PathDownload+"?file=jar/worker-agent.jar&eTag="+digest, m.header(), nil); r.code != 304 || len(r.body) != 0 {
		t.Errorf("same eTag: %d", r.code)
	}
	if r := m.call("GET", wire.PathDownload+"?file=jar/worker-agent.jar&eTag=other", m.header(), nil); r.code != 200 {
		t.Errorf("other eTag: %d", r.code)
	}
	h := m.header()
	h.Set("Range", "bytes=4-")
	if r := m.call("GET", wire.PathDownload+"?file=jar/worker-agent.jar", h, nil); r.code != 206 || string(r.body) != "456789" || r.header.Get("X-Checksum-Md5") != digest {
		t.Errorf("range: %d %s", r.code, r.body)
	}
	for _, name := range []string{"../secret", "jar/../../secret", "/etc/passwd", "link", "jar", "", ".", "nothing", "versions.json", `..\secret`, "jar/worker-agent.jar%00"} {
		if r := m.call("GET", wire.PathDownload+"?file="+name, m.header(), nil); r.code != 404 {
			t.Errorf("%q: %d %s", name, r.code, r.body)
		}
	}
	publish(t, dir, "jar/worker-agent.jar", "another content")
	if r := m.call("GET", wire.PathDownload+"?file=jar/worker-agent.jar", m.header(), nil); r.header.Get("X-Checksum-Md5") == digest {
		t.Error("the digest of a changed file is the old one")
	}
}

func TestUpgradesAreOfferedWhenPublished(t *testing.T) {
	dir := t.TempDir()
	w := serve(t, Options{Dir: dir})
	m := w.imported(NewAgent{})
	in := asking(wire.All)
	in.Enable.Upgrade = true
	in.Upgrade = &wire.UpgradeCheck{WorkerVersion: "v1.0.0", GoAgentVersion: "v1.0.0", JDKVersion: []string{"a", "b", "c"}}
	m.ask(in, time.Second)
	if p := m.ask(in, time.Second); p.Upgrade == nil || p.Upgrade.Any() {
		t.Errorf("nothing is published: %+v", p.Upgrade)
	}
	got := make(chan *wire.Parts, 1)
	go func() { got <- m.ask(in, 30*time.Second) }()
	w.held(m.id.Agent)
	for _, name := range []string{"upgrade/upgrader_linux", "upgrade/devopsDaemon_linux", "upgrade/devopsAgent_linux", "jar/worker-agent.jar"} {
		publish(t, dir, name, name)
	}
	publish(t, dir, VersionsFile, `{"agent":"v2.0.0","worker":"v1.0.0","jdk":"x"}`)
	if p := <-got; p.Upgrade == nil || *p.Upgrade != (wire.UpgradeItem{Agent: true}) {
		t.Errorf("offered: %+v", p.Upgrade)
	}
	b := w.submit(oneStep("x"))
	if p := m.ask(in, time.Second); p.Build != nil || p.Upgrade.Any() {
		t.Errorf("while it is marked as upgrading: %+v", p)
	}
	if err := m.client.FinishUpgrade(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if p := m.ask(in, time.Second); p.Build == nil || p.Build.ID != b.ID {
		t.Errorf("after the mark was removed: %+v", p)
	}
	if item, err := m.client.CheckUpgrade(t.Context(), *in.Upgrade); err != nil || !item.Agent || item.Worker {
		t.Errorf("upgradeNew: %+v %v", item, err)
	}
	if p, err := m.client.Beat(t.Context(), beat()); err != nil || p.SlaveVersion != "v1.0.0" {
		t.Errorf("published worker version: %+v %v", p, err)
	}
}

func TestEnrolment(t *testing.T) {
	dir := t.TempDir()
	w := serve(t, Options{Dir: dir})
	publish(t, dir, "upgrade/devopsAgent_linux_arm64", "program")
	if err := os.WriteFile(filepath.Join(dir, "cert.pem"), []byte("CERT"), 0o600); err != nil {
		t.Fatal(err)
	}
	token, expires, err := w.server.EnrolToken("team", []string{"gpu"})
	if err != nil || time.Until(expires) < 71*time.Hour {
		t.Fatal(expires, err)
	}
	h := http.Header{}
	h.Set(wire.HeaderInstallToken, string(token))
	batch := wire.PathExternal + "/LINUX/batchInstall?zoneName=z"
	for name, bad := range map[string]http.Header{"none": {}, "wrong": {"X-Devops-Agent-Install-Token": {"wrong"}}} {
		if r := w.call("GET", batch, bad, nil); r.code != 400 || r.env.Status < 1e6 {
			t.Errorf("token %s: %d %s", name, r.code, r.body)
		}
	}
	script := w.call("GET", batch, h, nil)
	id := regexp.MustCompile(`(?m)^agent_id='([^']+)'$`).FindSubmatch(script.body)
	address := regexp.MustCompile(`package="([^"]+)"`).FindSubmatch(script.body)
	if script.code != 200 || id == nil || address == nil || !strings.Contains(string(script.body), "project_id='team'") || regexp.MustCompile(`##[A-Za-z._]+##`).Match(script.body) {
		t.Fatalf("%d %s", script.code, script.body)
	}
	a, err := w.server.FindAgent(string(id[1]))
	if err != nil || a.Status != wire.UnImport || a.Project != "team" || a.Labels[0] != "gpu" {
		t.Errorf("record: %+v %v", a, err)
	}
	link := strings.TrimPrefix(strings.ReplaceAll(string(address[1]), "${ARCH}", "arm64"), w.url)
	plain := wire.PathExternal + "/" + a.ID + "/agent?arch=arm64"
	project := http.Header{"X-Devops-Project-Id": {"team"}}
	if r := w.call("GET", plain, project, nil); r.code != 400 {
		t.Errorf("the id alone opens the package: %d", r.code)
	}
	other, _, err := w.server.EnrolToken("others", nil)
	if err != nil {
		t.Fatal(err)
	}
	foreign := http.Header{}
	foreign.Set(wire.HeaderInstallToken, string(other))
	if r := w.call("GET", plain, foreign, nil); r.code != 400 {
		t.Errorf("a token of another project opens the package: %d", r.code)
	}
	if r := w.call("GET", batch+"&reInstallId="+a.ID, foreign, nil); r.code != 400 {
		t.Errorf("a token of another project re-installs: %d", r.code)
	}
	var props string
	for name, r := range map[string]rawReply{"key": w.call("GET", link, project, nil), "token": w.call("GET", plain, h, nil)} {
		z, err := zip.NewReader(bytes.NewReader(r.body), int64(len(r.body)))
		if err != nil || r.code != 200 {
			t.Fatalf("%s: %d %v", name, r.code, err)
		}
		found := make(map[string]string)
		for _, f := range z.File {
			in, err := f.Open()
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(in)
			if err != nil {
				t.Fatal(err)
			}
			found[f.Name] = string(data)
			if f.Name == ".agent.properties" && f.Mode().Perm() != 0o600 || f.Name == "devopsAgent" && f.Mode().Perm() != 0o755 {
				t.Errorf("%s: mode %v", f.Name, f.Mode())
			}
		}
		props = found[".agent.properties"]
		if found[".cert"] != "CERT" || found["devopsAgent"] != "program" || len(found) != 3 {
			t.Errorf("%s: entries %v", name, found)
		}
	}
	values := make(map[string]string)
	for line := range strings.SplitSeq(strings.TrimSpace(props), "\n") {
		key, value, _ := strings.Cut(line, "=")
		values[key] = value
	}
	if values["devops.agent.id"] != a.ID || values["landun.gateway"] != w.url || values["devops.parallel.task.count"] != "4" || values["devops.project.id"] != "team" {
		t.Errorf("properties: %v", values)
	}
	m := &machine{world: w, id: wire.Identity{Project: "team", Agent: a.ID, Secret: wire.Secret(values["devops.agent.secret.key"])}}
	m.client = &wire.Client{Gateway: w.url, Identity: m.id, HTTP: w.http}
	if _, err := m.client.Startup(t.Context(), wire.Startup{HostName: "h", HostIP: "1.1.1.1", DetectOS: "linux"}); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]rawReply{"key": w.call("GET", link, project, nil), "token": w.call("GET", plain, h, nil), "re-install": w.call("GET", batch+"&reInstallId="+a.ID, h, nil)} {
		if r.code != 400 || name != "key" && r.env.Status != 2105058 {
			t.Errorf("%s while it is online: %d %s", name, r.code, r.body)
		}
	}
}

func TestTokensExpire(t *testing.T) {
	synctest1(t, func(t *testing.T, w *world) {
		token, _, err := w.server.EnrolToken("", nil)
		if err != nil {
			t.Fatal(err)
		}
		h := http.Header{}
		h.Set(wire.HeaderInstallToken, string(token))
		path := wire.PathExternal + "/WINDOWS/batchInstall"
		time.Sleep(3*24*time.Hour - time.Second)
		r := w.call("GET", path, h, nil)
		if r.code != 200 || !strings.Contains(string(r.body), "$agent_id='") {
			t.Errorf("%d %s", r.code, r.body)
		}
		time.Sleep(time.Second)
		if r := w.call("GET", path, h, nil); r.code != 400 {
			t.Errorf("expired: %d", r.code)
		}
	})
}

func TestTheOperatorNeedsTheToken(t *testing.T) {
	w := serve(t, Options{Dir: t.TempDir()})
	info, err := os.Stat(filepath.Join(w.server.opts.Dir, TokenFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("token file: %v %v", info, err)
	}
	for _, h := range []http.Header{{}, {"Authorization": {"Bearer x"}}, {"Authorization": {"Basic " + string(w.server.Token())}}} {
		for _, path := range []string{"/builds", "/agents", "/enroll-tokens", "/builds/1/log"} {
			method := "GET"
			if path == "/enroll-tokens" {
				method = "POST"
			}
			if r := w.call(method, "/api/v1"+path, h, nil); r.code != 401 {
				t.Errorf("%s with %v: %d", path, h, r.code)
			}
		}
	}
	good := http.Header{"Authorization": {"Bearer " + string(w.server.Token())}}
	for _, c := range []struct {
		method, path string
		body         any
		code         int
		contains     string
	}{
		{"GET", "/version", nil, 200, `"version"`},
		{"POST", "/builds", `{"spec":{"steps":[{"script":"echo hi"}]}}`, 200, `"state":"queued"`},
		{"POST", "/builds", `{"spec":{"steps":[]}}`, 400, "no steps"},
		{"POST", "/builds", `{"spec":{"steps":[{"script":"x","scripts":"y"}]}}`, 400, "unknown field"},
		{"GET", "/builds", nil, 200, `"number":1`},
		{"GET", "/builds/1", nil, 200, `"number":1`},
		{"GET", "/builds/99", nil, 404, "no such"},
		{"GET", "/builds?limit=x", nil, 400, "number"},
		{"GET", "/builds/1/log", nil, 200, ""},
		{"POST", "/builds/1/cancel", nil, 200, `"state":"cancelled"`},
		{"POST", "/agents", `{"os":"plan9"}`, 400, "plan9"},
		{"POST", "/agents", `{}`, 200, `"secret"`},
		{"GET", "/agents", nil, 200, `"UN_IMPORT"`},
		{"PATCH", "/agents/none", `{"parallel":3}`, 404, ""},
		{"DELETE", "/agents/none", nil, 404, ""},
		{"POST", "/enroll-tokens", `{"project":"a b"}`, 400, "project"},
		{"POST", "/enroll-tokens", nil, 200, `"expiresAt"`},
		{"GET", "/scripts/9", nil, 404, ""},
	} {
		if r := w.call(c.method, "/api/v1"+c.path, good, c.body); r.code != c.code || !strings.Contains(string(r.body), c.contains) {
			t.Errorf("%s %s: %d %s", c.method, c.path, r.code, r.body)
		}
	}
}

func TestARestartKeepsEverything(t *testing.T) {
	dir := t.TempDir()
	open := func() *world {
		s, err := Open(Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		return &world{t: t, server: s, http: &http.Client{Transport: s.Transport()}, url: "http://controller"}
	}
	w := open()
	m := w.imported(NewAgent{})
	first, second, third := w.submit(oneStep("1")), w.submit(Spec{Steps: []Step{{Script: "a"}, {Script: "b"}}}), w.submit(oneStep("3"))
	m.settle()
	for range 2 {
		if p := m.ask(asking(wire.All), time.Second); p.Build == nil {
			t.Fatal("no build")
		}
	}
	m.start(second.ID)
	task := m.claimTask(second.ID)
	var yes bool
	m.worker(second.ID, "POST", wire.PathLogsMulti, []wire.LogLine{{Message: "before"}}, &yes)
	if _, err := Open(Options{Dir: dir}); err == nil {
		t.Error("two controllers on one directory")
	}
	if err := w.server.Close(); err != nil {
		t.Fatal(err)
	}
	token := w.server.Token()
	m.world = open()
	m.client.HTTP, w = m.world.http, m.world
	defer func() {
		if err := w.server.Close(); err != nil {
			t.Error(err)
		}
	}()
	if w.server.Token() != token {
		t.Error("another operator's token")
	}
	for id, want := range map[string]State{first.ID: Handed, second.ID: Running, third.ID: Queued} {
		if b := w.build(id); b.State != want {
			t.Errorf("build #%d is %s, want %s", b.Number, b.State, want)
		}
	}
	if again := m.claimTask(second.ID); *again.TaskID != *task.TaskID {
		t.Errorf("claim after the restart: %+v", again)
	}
	m.complete(second.ID, wire.TaskResult{TaskID: *task.TaskID, Success: true})
	next := m.claimTask(second.ID)
	m.worker(second.ID, "POST", wire.PathLogsMulti, []wire.LogLine{{Message: "after"}}, &yes)
	m.complete(second.ID, wire.TaskResult{TaskID: *next.TaskID, Success: true})
	m.end(second.ID)
	if b := w.build(second.ID); b.State != Succeeded {
		t.Errorf("%+v", b)
	}
	lines, err := w.server.Log(second.ID, 0, 100)
	if err != nil || len(lines) != 2 || lines[1].Message != "after" || lines[1].Seq != 2 {
		t.Errorf("%+v %v", lines, err)
	}
	if b := w.submit(oneStep("4")); b.Number != 4 {
		t.Errorf("number %d", b.Number)
	}
	for _, name := range []string{"controller.db", "controller.db-wal", TokenFile} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
}

// An original worker may send 1000 lines of 16,384 characters in one call (protocol §6.8).
func TestALargeLogCallIsTaken(t *testing.T) {
	w := serve(t, Options{})
	m := w.imported(NewAgent{})
	m.settle()
	b := w.submit(oneStep("x"))
	m.ask(asking(wire.All), time.Second)
	m.start(b.ID)
	lines := make([]wire.LogLine, 1+maxBody/16384)
	for i := range lines {
		lines[i] = wire.LogLine{Message: strings.Repeat("x", 16384)}
	}
	if r := m.worker(b.ID, "POST", wire.PathLogsMulti, lines, nil); r.code != 200 || r.env.Status != 0 {
		t.Errorf("a full batch: %d %s", r.code, r.body)
	}
	if r := m.worker(b.ID, "POST", wire.PathLogsMulti, []wire.LogLine{{Message: strings.Repeat("\n", maxLines) + "x"}}, nil); r.code != 400 {
		t.Errorf("too many lines: %d %.200s", r.code, r.body)
	}
}

func TestVariablesAreMeasuredInCharacters(t *testing.T) {
	w := serve(t, Options{})
	m := w.imported(NewAgent{})
	m.settle()
	b := w.submit(oneStep("x"))
	m.ask(asking(wire.All), time.Second)
	m.start(b.ID)
	task := m.claimTask(b.ID)
	long := strings.Repeat("字", 4000)
	m.complete(b.ID, wire.TaskResult{TaskID: *task.TaskID, Success: true, BuildResult: map[string]string{"fits": long, "long": long + "x"}})
	vars := w.build(b.ID).Variables
	if _, there := vars["long"]; vars["fits"] != long || there {
		t.Errorf("fits: %d bytes, long kept: %t", len(vars["fits"]), there)
	}
}

func TestDoubledSlashesCountAsOne(t *testing.T) {
	w := serve(t, Options{})
	m := w.machine(NewAgent{})
	for _, path := range []string{"/" + wire.PathStartup, strings.Replace(wire.PathStartup, "/startup", "//startup", 1)} {
		r := m.call("POST", path, m.header(), wire.Startup{HostName: "h", HostIP: "10.0.0.1", DetectOS: "linux"})
		if r.code != 200 || r.env.Status != 0 {
			t.Errorf("%s: %d %s", path, r.code, r.body)
		}
	}
}

// A worker that got no answer sends its batch again; the first one may have arrived all the same.
func TestABatchOfLinesCountsOnce(t *testing.T) {
	dir := t.TempDir()
	id, build := wire.Identity{}, ""
	send := func(w *world, batch string, messages ...string) {
		m := &machine{world: w, id: id}
		h := m.workerHeader(build)
		if batch != "" {
			h.Set(wire.HeaderLogBatch, batch)
		}
		var lines []wire.LogLine
		for _, message := range messages {
			lines = append(lines, wire.LogLine{Message: message})
		}
		if r := w.call("POST", wire.PathLogsMulti, h, lines); r.code != 200 || r.env.Status != 0 {
			t.Errorf("batch %s: %d %s", batch, r.code, r.body)
		}
	}
	t.Run("before a restart", func(t *testing.T) {
		w := serve(t, Options{Dir: dir})
		m := w.imported(NewAgent{})
		m.settle()
		id, build = m.id, w.submit(oneStep("x")).ID
		m.ask(asking(wire.All), time.Second)
		m.start(build)
		send(w, "1", "a", "b")
		send(w, "1", "a", "b")
		send(w, "2", "c")
		send(w, "1", "a", "b")
		send(w, "", "of the agent")
		send(w, "", "of the agent")
	})
	w := serve(t, Options{Dir: dir})
	send(w, "2", "c")
	send(w, "3", "d")
	lines, err := w.server.Log(build, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for i, l := range lines {
		got += l.Message + "|"
		if l.Seq != int64(i+1) {
			t.Errorf("line %d has number %d", i+1, l.Seq)
		}
	}
	if want := "a|b|c|of the agent|of the agent|d|"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
