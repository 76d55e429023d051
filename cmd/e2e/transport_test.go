//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

func transportScenarios() []scenario {
	list := []scenario{
		both("idle", idle, 1, 2, 4, 11, 12, 13, 18, 19, 20, 28, 30, 31, 32, 35, 37, 38, 41, 78, 79, 97, 98, 111),
		both("slow answers", slowAnswers("2"), 5),
		both("slow answers, default limit", slowAnswers(""), 5),
		both("refusals", refusals, 7, 45),
		both("letter case, unknown fields and nulls", tolerance, 8, 9),
		both("certificates", certificates, 10, 3),
	}
	html := lab.Answer{Body: []byte("<html><body>Bad gateway</body></html>"), Header: http.Header{"Content-Type": {"text/html"}}}
	page := func(code int) lab.Answer { a := html; a.Code = code; return a }
	said := func(code int) lab.Answer {
		return lab.JSON(code, map[string]any{"status": code, "message": "no", "data": "", "result": true})
	}
	soon := said(503)
	soon.Header = http.Header{"Retry-After": {"1"}}
	for name, answers := range map[string][]lab.Answer{
		"HTML, 401, 403": {html, said(401), page(403)},
		"404, 500, 502":  {said(404), said(500), page(502)},
		"503, empty, no connection, half a body": {soon, {}, {Drop: true},
			{Body: []byte(`{"status":0,"agentStatus":"IMPORT_OK","data":{"hea`), Cut: true}},
	} {
		list = append(list, both("bad answers: "+name, badAnswers(answers), 6))
	}
	return list
}

// idle watches an agent that has nothing to do for 65 s.
func idle(s *S) {
	w := s.worldOn(lab.NewRecorder(s, lab.RecorderOptions{Strict: true}), lab.HomeOptions{})
	w.launch()
	w.watch(15 * time.Second)
	before := fileState(w.home.Path(".agent.properties"))
	w.watch(50 * time.Second)

	all := w.rec.All()
	first := all[0]
	if s.check(12, first.Endpoint == lab.Startup, "the first request is %v", first) {
		body := first.JSON()
		for _, key := range []string{"hostname", "hostIp", "detectOS", "masterVersion", "version"} {
			_, text := body[key].(string)
			s.check(12, text, "%s is %v, want a text", key, body[key])
		}
		ip, _ := body["hostIp"].(string)
		s.check(12, net.ParseIP(ip).To4() != nil, "hostIp is %q", ip)
		s.check(12, body["hostname"] != "" && body["masterVersion"] != "", "host name %q, masterVersion %q", body["hostname"], body["masterVersion"])
		s.check(13, body["detectOS"] == detectOS(), "detectOS is %v, want %s", body["detectOS"], detectOS())
	}
	known := lab.AgentEndpoints()
	for _, q := range all {
		for header, want := range map[string]string{"X-DEVOPS-BUILD-TYPE": "AGENT", "X-DEVOPS-PROJECT-ID": w.home.Project,
			"X-DEVOPS-AGENT-ID": w.home.Agent, "X-DEVOPS-AGENT-SECRET-KEY": w.home.Secret} {
			s.check(1, q.Header.Get(header) == want, "%s is %q, want %q on %v", header, q.Header.Get(header), want, q)
		}
		kind := q.Header.Get("Content-Type")
		if method := q.Endpoint.Method(); method == "POST" || method == "PUT" {
			s.check(2, kind == "application/json; charset=utf-8", "Content-Type is %q on %v", kind, q)
			s.check(2, json.Valid(q.Body), "no JSON: %v", q)
		} else {
			s.check(2, kind == "" && len(q.Body) == 0, "Content-Type %q and %d bytes of body on %v", kind, len(q.Body), q)
		}
		s.check(4, slices.Contains(known, q.Endpoint) && q.Path == q.Endpoint.Path(), "unknown call %v", q)
	}
	want := []lab.Endpoint{lab.Startup, lab.Status, lab.Heartbeat, lab.Claim, lab.CheckUpgrade}
	if s.mode == "ask" {
		want = []lab.Endpoint{lab.Startup, lab.Ask}
	}
	for _, e := range want {
		s.check(4, len(w.rec.Of(e)) > 0, "no %s in 65 s", e)
	}
	for _, q := range all {
		s.check(4, slices.Contains(want, q.Endpoint), "%s has no place in mode %s", q.Endpoint, s.mode)
	}
	beats := w.rec.Of(w.beat())
	if len(beats) == 0 {
		s.Fatalf("no heartbeat")
	}
	checkHeartbeat(w, beats[len(beats)-1])
	if s.mode == "split" {
		idleSplit(w, first)
	} else {
		idleAsk(w)
	}
	for _, q := range w.rec.TooFrequent() {
		switch q.Endpoint {
		case lab.Heartbeat:
			s.check(18, false, "less than 4 s after the one before: %v", q)
		case lab.Status:
			s.check(31, false, "less than 3 s after the one before: %v", q)
		case lab.Ask:
			s.check(37, false, "less than 3 s after the one before: %v", q)
		}
	}
	s.check(79, len(w.rec.Of(lab.Download, lab.FinishUpgrade)) == 0, "requests after an answer with all items false: %v", w.rec.Of(lab.Download, lab.FinishUpgrade))
	w.alive(79)
	after := fileState(w.home.Path(".agent.properties"))
	s.check(28, before == after, ".agent.properties was rewritten: %s, then %s", before, after)
	s.check(111, len(w.rec.Of(lab.FetchDebug)) == 0, "docker debug was polled though docker is not enabled")

	pid, _ := os.ReadFile(w.home.Path("runtime", "agent.pid"))
	s.check(97, string(pid) == strconv.Itoa(w.agent.Pid()), "agent.pid holds %q, the pid is %d", pid, w.agent.Pid())
	s.check(98, !lockable(w.home.Path("runtime", "agent.lock")), "agent.lock can be taken while the agent runs")
	w.agent.Kill()
	s.check(98, lab.Eventually(2*time.Second, func() bool { return lockable(w.home.Path("runtime", "agent.lock")) }), "agent.lock is still held after kill -9")
	s.check(11, len(w.home.FindSecret(w.home.Secret)) == 0, "the secret is in %v", w.home.FindSecret(w.home.Secret))
	s.check(11, w.home.Log() != "", "there is no log at all")
}

// detectOS is what these tests' own system is called on the wire (protocol statement 13); they run on Linux alone.
func detectOS() string { return "linux" }

// fileState is inode, modification time and content: what a rewrite changes.
func fileState(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return err.Error()
	}
	inode := uint64(0)
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		inode = st.Ino
	}
	data, _ := os.ReadFile(path)
	return fmt.Sprintf("inode %d, %v, %d bytes", inode, info.ModTime(), len(data))
}

// lockable tries the flock that an original daemon tries (protocol §2.4).
func lockable(path string) bool {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil //nolint:gosec // a descriptor fits
}

func checkHeartbeat(w *world, q lab.Request) {
	beat := w.heartbeat(q)
	for _, key := range []string{"masterVersion", "slaveVersion", "hostName", "agentIp", "parallelTaskCount", "agentInstallPath",
		"startedUser", "taskList", "props", "dockerParallelTaskCount", "dockerTaskList", "errorExitData"} {
		_, there := beat[key]
		w.check(19, there, "heartbeat without %s: %v", key, q)
	}
	for _, key := range []string{"masterVersion", "hostName", "agentIp", "startedUser"} {
		text, _ := beat[key].(string)
		w.check(19, text != "", "%s is %v", key, beat[key])
	}
	home, _ := filepath.EvalSymlinks(w.home.Dir)
	w.check(19, beat["agentInstallPath"] == home, "agentInstallPath is %v, want %s", beat["agentInstallPath"], home)
	w.check(19, beat["slaveVersion"] == lab.WorkerVersion, "slaveVersion is %v a minute after the start, want %s", beat["slaveVersion"], lab.WorkerVersion)
	w.check(19, beat["parallelTaskCount"] == json.Number("4"), "parallelTaskCount is %v, want 4", beat["parallelTaskCount"])
	w.check(19, beat["dockerParallelTaskCount"] == json.Number("4"), "dockerParallelTaskCount is %v, want the default 4", beat["dockerParallelTaskCount"])
	list, _ := beat["taskList"].([]any)
	w.check(19, beat["taskList"] == nil || beat["taskList"] != nil && len(list) == 0, "taskList is %v", beat["taskList"])
	w.check(19, reflect.DeepEqual(beat["dockerTaskList"], []any{}), "dockerTaskList is %v, want []", beat["dockerTaskList"])
	w.check(19, beat["errorExitData"] == nil, "errorExitData is %v, want null", beat["errorExitData"])
	lines, _ := lab.Dig(beat, "props", "jdkVersion").([]any)
	wantLines := strings.Split(strings.TrimSpace(lab.JDKLines), "\n")
	if w.check(19, len(lines) == 3, "props.jdkVersion is %v, want three lines", lab.Dig(beat, "props", "jdkVersion")) {
		for i, line := range lines {
			w.check(19, line == wantLines[i], "props.jdkVersion[%d] is %q, want %q", i, line, wantLines[i])
		}
	}
	w.check(20, lab.Dig(beat, "props", "arch") == runtime.GOARCH, "props.arch is %v", lab.Dig(beat, "props", "arch"))
	docker, _ := lab.Dig(beat, "props", "dockerInitFileMd5").(map[string]any)
	_, text := docker["fileMd5"].(string)
	_, truth := docker["needUpgrade"].(bool)
	w.check(20, text && truth, "props.dockerInitFileMd5 is %v", docker)
}

func checkUpgradeCheck(w *world, n int, check map[string]any) {
	version, _ := check["goAgentVersion"].(string)
	w.check(n, version != "", "goAgentVersion is %v", check["goAgentVersion"])
	w.check(n, check["workerVersion"] == lab.WorkerVersion, "workerVersion is %v, want %s", check["workerVersion"], lab.WorkerVersion)
	lines, _ := check["jdkVersion"].([]any)
	w.check(n, len(lines) == 3, "jdkVersion is %v, want three lines", check["jdkVersion"])
	docker, _ := check["dockerInitFileInfo"].(map[string]any)
	_, text := docker["fileMd5"].(string)
	_, truth := docker["needUpgrade"].(bool)
	w.check(n, text && truth, "dockerInitFileInfo is %v", check["dockerInitFileInfo"])
}

func idleSplit(w *world, startup lab.Request) {
	beats := w.rec.Of(lab.Heartbeat)
	w.check(18, beats[0].At.Sub(startup.At) <= 2*time.Second, "first heartbeat %v after startup", beats[0].At.Sub(startup.At))
	for _, gap := range gaps(beats) {
		w.check(18, gap >= 8*time.Second && gap <= 13*time.Second, "heartbeats %v apart", gap)
	}
	polls := w.rec.Of(lab.Status)
	for _, gap := range gaps(polls) {
		w.check(31, gap >= 3*time.Second && gap <= 8*time.Second, "status calls %v apart", gap)
	}
	average := mean(gaps(polls))
	w.check(31, average >= 4*time.Second && average <= 6500*time.Millisecond, "status calls every %v on average", average)
	status := false
	claims := 0
	for _, q := range w.rec.Of(lab.Status, lab.Claim) {
		if q.Endpoint == lab.Claim {
			claims++
			w.check(30, status, "a claim without a status call before it: %v", q)
			w.check(32, q.Query.Get("buildType") == "ALL", "idle, but buildType is %q", q.Query.Get("buildType"))
		}
		status = q.Endpoint == lab.Status
	}
	w.check(31, claims >= len(polls)-1, "%d status calls said IMPORT_OK, but only %d claims", len(polls), claims)
	w.check(35, claims > 0 && len(w.rec.Of(lab.Finish, lab.LogLine, lab.LogRed)) == 0, "%d claims got null; after that: %v", claims, w.rec.Of(lab.Finish, lab.LogLine, lab.LogRed))
	w.alive(35)
	checks := w.rec.Of(lab.CheckUpgrade)
	if w.check(78, len(checks) >= 2, "%d upgrade checks in 65 s", len(checks)) {
		for _, gap := range gaps(checks) {
			w.check(78, gap >= 16*time.Second && gap <= 26*time.Second, "upgrade checks %v apart", gap)
		}
		checkUpgradeCheck(w, 78, checks[len(checks)-1].JSON())
	}
}

func idleAsk(w *world) {
	asks := w.rec.Of(lab.Ask)
	for _, gap := range gaps(asks) {
		w.check(37, gap >= 3*time.Second && gap <= 8*time.Second, "asks %v apart", gap)
	}
	average := mean(gaps(asks))
	w.check(37, average >= 4*time.Second && average <= 6500*time.Millisecond, "asks every %v on average", average)
	checked := 0
	for _, q := range asks {
		_, text := q.Get("askEnable", "build").(string)
		w.check(38, text, "askEnable.build is %v", q.Get("askEnable", "build"))
		for _, part := range []string{"upgrade", "dockerDebug", "pipeline"} {
			_, truth := q.Get("askEnable", part).(bool)
			w.check(38, truth, "askEnable.%s is %v", part, q.Get("askEnable", part))
		}
		w.check(38, q.Get("askEnable", "build") == "ALL", "idle, but askEnable.build is %v", q.Get("askEnable", "build"))
		check, _ := q.Get("upgrade").(map[string]any)
		w.check(41, (q.Get("askEnable", "upgrade") == true) == (check != nil), "askEnable.upgrade is %v, upgrade %v", q.Get("askEnable", "upgrade"), check)
		if check != nil {
			checked++
			checkUpgradeCheck(w, 41, check)
		}
	}
	w.check(41, checked > 0, "no upgrade check in 65 s of idleness")
}

// slowAnswers lets every poll hang once.
func slowAnswers(seconds string) func(*S) {
	return func(s *S) {
		if seconds == "" {
			slowAnswersAt(s, 5*time.Second, nil)
			return
		}
		slowAnswersAt(s, 2*time.Second, map[string]string{"devops.agent.request.timeout.sec": seconds})
	}
}

func slowAnswersAt(s *S, limit time.Duration, set map[string]string) {
	w := s.world(lab.HomeOptions{Set: set})
	w.start()
	w.beats(1)
	endpoints := []lab.Endpoint{lab.Ask}
	if s.mode == "split" {
		endpoints = []lab.Endpoint{lab.Heartbeat, lab.Status, lab.CheckUpgrade}
	}
	for _, e := range endpoints {
		mark := w.rec.Mark()
		w.rec.Next(e, lab.Answer{Hang: true})
		q, ok := w.rec.WaitFor(40*time.Second, mark, e)
		if !ok {
			s.Fatalf("no %s within 40 s", e.Short())
		}
		if !w.rec.Until(limit+10*time.Second, func() bool { at, _ := q.Done(); return !at.IsZero() }) {
			s.check(5, false, "%s was not abandoned 10 s after its time limit of %v", e.Short(), limit)
			continue
		}
		at, gone := q.Done()
		took := at.Sub(q.At)
		s.check(5, gone && took >= limit-500*time.Millisecond && took <= limit+2500*time.Millisecond, "%s abandoned after %v at a time limit of %v (client gone: %v)", e.Short(), took, limit, gone)
		again, ok := w.rec.WaitFor(40*time.Second, q.N+1, e)
		s.check(5, ok, "%s was not repeated within 40 s", e.Short())
		if ok && e != lab.CheckUpgrade {
			s.check(5, again.At.Sub(q.At) <= 20*time.Second, "%s was repeated only after %v", e.Short(), again.At.Sub(q.At))
		}
	}
	w.alive(5)
}

func badAnswers(answers []lab.Answer) func(*S) {
	return func(s *S) {
		w := s.world(lab.HomeOptions{})
		w.start()
		w.beats(1)
		endpoints := []lab.Endpoint{lab.Ask}
		if s.mode == "split" {
			endpoints = []lab.Endpoint{lab.Status, lab.Claim, lab.Heartbeat, lab.CheckUpgrade}
		}
		// A claim follows only on a good status, so that it needs its own bad answers after those of status.
		for _, e := range endpoints {
			w.rec.Next(e, answers...)
		}
		left := func() int {
			n := 0
			for _, e := range endpoints {
				if e != lab.CheckUpgrade {
					n += w.rec.Left(e)
				}
			}
			return n
		}
		if !w.rec.Until(150*time.Second, func() bool { return left() == 0 || !w.agent.Alive() }) {
			s.check(6, false, "%d bad answers were never fetched: the agent has stopped asking", left())
		}
		if !w.alive(6) {
			return
		}
		build := lab.NewBuild()
		w.rec.Queue(build)
		w.mustFinish(90*time.Second, build)
		w.alive(6)
	}
}

// refusals answers everything with status 1, and with data that would be welcome.
func refusals(s *S) {
	w := s.world(lab.HomeOptions{})
	w.start()
	no := func(data any) lab.Answer {
		return lab.JSON(200, map[string]any{"status": 1, "message": "request too frequently", "agentStatus": "IMPORT_OK", "data": data})
	}
	never := lab.NewBuild()
	mark := w.rec.Mark()
	if s.mode == "ask" {
		w.rec.Next(lab.Ask, no(map[string]any{"build": never}), no(map[string]any{"build": never,
			"heartbeat": map[string]any{"agentStatus": "DELETE", "parallelTaskCount": 9}}))
	} else {
		w.rec.Next(lab.Status, no("IMPORT_OK"), no("IMPORT_OK"))
		w.rec.Next(lab.Claim, no(never), no(never))
		w.rec.Next(lab.Heartbeat, no(map[string]any{"agentStatus": "DELETE", "parallelTaskCount": 9}))
		if !w.rec.Until(60*time.Second, func() bool { return w.rec.Left(lab.Status) == 0 }) {
			s.Fatalf("status was not called twice in a minute")
		}
		refused := w.rec.Of(lab.Status)
		refused = refused[len(refused)-2:]
		for _, q := range w.rec.Of(lab.Claim) {
			s.check(7, q.At.Before(refused[0].At) || q.At.After(refused[1].At.Add(2*time.Second)), "a claim after a refused status: %v", q)
		}
	}
	drained := func() bool { return w.rec.Left(lab.Ask)+w.rec.Left(lab.Claim)+w.rec.Left(lab.Heartbeat) == 0 }
	if !w.rec.Until(120*time.Second, drained) {
		s.Fatalf("refused answers were not fetched in two minutes")
	}
	good := lab.NewBuild()
	w.rec.Queue(good)
	w.mustFinish(90*time.Second, good)
	s.check(7, w.home.Run(never).Starts() == 0 && len(w.rec.Finishes(never.ID)) == 0, "a job inside a refused answer was run")
	s.check(7, w.home.Property("devops.parallel.task.count") == "4", "a count inside a refused answer was taken over")
	w.alive(7)
	if s.mode == "ask" {
		w.alive(45)
		asks := w.rec.Of(lab.Ask)
		for i, gap := range gaps(asks) {
			s.check(45, gap >= 2970*time.Millisecond, "asks %v apart, the second is %v", gap, asks[i+1])
		}
		s.check(45, w.rec.Mark() > mark, "no ask after a refusal")
	}
}

// tolerance sends nulls, then strange letter case, then unknown fields.
func tolerance(s *S) {
	w := s.world(lab.HomeOptions{})
	w.start()
	nulls := map[string]any{}
	for _, key := range []string{"masterVersion", "slaveVersion", "parallelTaskCount", "dockerParallelTaskCount", "envs", "gateway",
		"fileGateway", "props", "language", "createMod"} {
		nulls[key] = nil
	}
	w.rec.Reply(nulls)
	w.beats(2)
	w.rec.Reply(map[string]any{"props": map[string]any{"ignoreLocalIps": nil, "keepLogsHours": nil, "enablePipeline": nil}, "envs": map[string]any{"A": nil}})
	w.beats(1)
	if !w.alive(9) {
		return
	}
	s.check(9, w.home.Property("devops.parallel.task.count") == "4", "nulls changed devops.parallel.task.count to %q", w.home.Property("devops.parallel.task.count"))

	reply := map[string]any{"AgentStatus": "IMPORT_OK", "ParallelTaskCount": 7, "DockerParallelTaskCount": 6, "ENVS": map[string]any{},
		"Language": "en_US", "Props": map[string]any{"KeepLogsHours": 51}}
	answer := lab.JSON(200, map[string]any{"Status": 0, "Message": nil, "Data": reply})
	if s.mode == "ask" {
		answer = lab.JSON(200, map[string]any{"Status": 0, "AgentStatus": "IMPORT_OK", "Data": map[string]any{"Heartbeat": reply, "Build": nil}})
	}
	w.rec.ResetReply()
	w.rec.Reply(map[string]any{"parallelTaskCount": 7, "dockerParallelTaskCount": 6, "language": "en_US"})
	w.rec.Next(w.beat(), answer)
	for key, want := range map[string]string{"devops.parallel.task.count": "7", "devops.docker.parallel.task.count": "6",
		"devops.language": "en_US", "devops.agent.logs.keep.hours": "51"} {
		s.check(8, lab.Eventually(20*time.Second, func() bool { return w.home.Property(key) == want }), "%s is %q, want %s after capitalised keys", key, w.home.Property(key), want)
	}

	build := lab.NewBuild()
	strange := map[string]any{"Future": map[string]any{"a": []any{1, nil, "x"}}, "dispatchInfo": nil, "ignored": 1e300}
	data, _ := json.Marshal(build)
	_ = json.Unmarshal(data, &strange) // the build's own fields beside the unknown ones
	envelope := map[string]any{"status": 0, "message": nil, "agentStatus": "IMPORT_OK", "traceId": "x", "extra": []any{}, "data": any(strange)}
	endpoint := lab.Claim
	if s.mode == "ask" {
		endpoint = lab.Ask
		envelope["data"] = map[string]any{"build": strange, "news": []any{map[string]any{}}, "heartbeat": map[string]any{"agentStatus": "IMPORT_OK", "mood": "good"}}
	}
	w.rec.Next(endpoint, lab.JSON(200, envelope))
	q := w.mustFinish(60*time.Second, build)
	s.check(9, q.Get("success") == true, "a job with unknown fields failed: %v", q)
	w.alive(9)
	w.alive(8)
}

// certificates runs three agents: with the right .cert, with another one, with none.
func certificates(s *S) {
	ca := lab.NewAuthority(s)
	rec := lab.NewRecorder(s, lab.RecorderOptions{TLS: ca.Server(s)})
	s.check(3, strings.HasPrefix(rec.URL, "https://"), "the recorder speaks %s", rec.URL)
	other := s.worldOn(rec, lab.HomeOptions{Name: "other"})
	other.home.Write(".cert", lab.NewAuthority(s).PEM)
	none := s.worldOn(rec, lab.HomeOptions{Name: "none"})
	for _, w := range []*world{other, none} {
		w.agent = w.home.Start()
	}
	s.check(10, rec.Until(30*time.Second, func() bool { return strings.Count(rec.Complaints(), "TLS handshake error") >= 2 }),
		"agents that do not know the authority did not even try; complaints: %s", rec.Complaints())
	other.watch(8 * time.Second)
	s.check(10, none.agent.Alive(), "the agent without .cert ended: %s", none.ending())
	s.check(10, len(rec.All()) == 0, "an agent that does not know the authority talked to it: %v", rec.All())
	other.agent.Kill()
	none.agent.Kill()

	w := s.worldOn(rec, lab.HomeOptions{Name: "right"})
	w.home.Write(".cert", "Some words before the block\n"+ca.PEM)
	w.start()
	build := lab.NewBuild()
	rec.Queue(build)
	w.mustFinish(60*time.Second, build)
	s.check(10, w.agent.Alive(), "the agent ended: %s", w.ending())
	s.check(3, w.home.Run(build).Env()["DEVOPS_GATEWAY"] == rec.URL, "DEVOPS_GATEWAY is %q, want %q", w.home.Run(build).Env()["DEVOPS_GATEWAY"], rec.URL)
}
