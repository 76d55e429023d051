//go:build linux

package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

func nativeScenarios() []scenario {
	return []scenario{
		native("a session of scripts", nativeScripts, 115, 116, 119, 120, 121, 122, 124, 127),
		native("log lines", nativeLogs, 123, 124),
		native("repeats after transport errors", nativeRepeats, 115),
		native("build over at started", nativeRefused(2101182), 117),
		native("started twice", nativeRefused(2101255), 117),
		native("waiting", nativeWaits, 118),
		native("heartbeat and cancel", nativeCancel, 125),
		native("task limit", nativeTaskLimit, 120, 127),
		native("job limit", nativeJobLimit, 126),
	}
}

// nativeRun is one devopsWorker with its session.
type nativeRun struct {
	*world
	session *lab.Session
	errors  string // the error file
}

func (s *S) native(session *lab.Session) *nativeRun {
	return s.nativeOn(lab.NewRecorder(s, lab.RecorderOptions{}), session)
}

func (s *S) nativeOn(rec *lab.Recorder, session *lab.Session) *nativeRun {
	if s.programs.Worker == "" {
		s.Fatalf("cmd/worker has no code")
	}
	w := &nativeRun{world: s.worldOn(rec, lab.HomeOptions{NoJar: true, Worker: s.programs.Worker, JDK: "-"}), session: session}
	w.rec.Open(session)
	w.errors = w.home.Path("build_tmp", session.Build.Key()+"_build_msg.log")
	w.home.Write("build_tmp/"+session.Build.Key()+"_build_msg.log", "the worker was killed")
	data, err := json.Marshal(session.Build)
	if err != nil {
		s.Fatalf("%v", err)
	}
	b := session.Build
	w.agent = w.home.StartProgram(w.home.Path("devopsWorker"), w.home.Dir, []string{"-Ddevops.agent.error.file=" + w.errors, "-Dbuild.type=AGENT",
		"-DAGENT_LOG_PREFIX=" + b.Key() + "_agent", "-Xmx2g", "-Djava.io.tmpdir=" + w.home.Path("build_tmp"), "-jar", w.home.Path("worker-agent.jar"),
		base64.StdEncoding.EncodeToString(data)}, "PROJECT_ID="+b.Project, "BUILD_ID="+b.ID, "VM_SEQ_ID="+b.VMSeq)
	return w
}

// end waits for the worker's exit code.
func (w *nativeRun) end(limit time.Duration) int {
	code, err := w.agent.Wait(limit)
	if err != nil {
		w.Fatalf("the worker: %v; calls so far: %d; output: %s", err, len(w.session.Of()), w.agent.Output())
	}
	return code
}

// result returns the first report about a task.
func (w *nativeRun) result(n int, task string) lab.Request {
	list := w.session.Completes(task)
	if len(list) == 0 {
		w.check(n, false, "task %s was not completed", task)
		return lab.Request{}
	}
	return list[0]
}

// message returns what the log holds of a task, a line each.
func (w *nativeRun) message(task string) string {
	var b strings.Builder
	for _, line := range w.session.Lines() {
		if line.Tag == task {
			b.WriteString(line.Message + "\n")
		}
	}
	return b.String()
}

func nativeScripts(s *S) {
	long := strings.Repeat("x", 4100)
	w := s.native(&lab.Session{Build: lab.NewBuild(), Variables: map[string]any{
		"variables":         map[string]string{"greeting": "hello it's me", "PASS": "hunter2secret"},
		"variablesWithType": []any{map[string]any{"key": "PASS", "value": "hunter2secret", "valueType": "PASSWORD", "sensitive": true, "readOnly": false}},
	}, Tasks: []lab.Task{
		{ID: "e-1", StepID: "step1", Waits: 2, Params: map[string]string{"number": "1", "list": `["a"]`, "object": `{"a":1}`}, Script: `
echo "1+1=2 100% ü & <b>"
echo "var ${greeting}"
setEnv A b
setEnv EQ "c=d e"
setEnv BIG ` + long + `
setEnv LEAK hunter2secret
echo "::set-output name=out1::o1"
echo "::set-variable name=v1::vv"
pwd >where.txt
`},
		{ID: "e-2", Script: "echo A is $A\necho to-stderr >&2\nexit 7"},
		{ID: "e-3", Type: "marketBuild", Script: "echo never"},
		{ID: "e-4", Params: map[string]string{"continueNoneZero": "true"}, Script: "false\necho went on\necho the password is hunter2secret >&2"},
		{ID: "e-5", Script: "echo the password is hunter2secret; echo before; false; echo after"},
	}})
	code := w.end(90 * time.Second)
	s.check(115, code == 0, "exit code %d; output: %s", code, w.agent.Output())

	calls := w.session.Of(lab.WorkerStarted, lab.WorkerClaim, lab.WorkerComplete, lab.WorkerEnd)
	var order []string
	for _, q := range calls {
		if name := q.Endpoint.Short(); len(order) == 0 || order[len(order)-1] != name {
			order = append(order, name)
		}
	}
	want := []string{"started"}
	for range 5 {
		want = append(want, "claim", "complete")
	}
	want = append(want, "claim", "end")
	s.check(115, slices.Equal(order, want), "calls came in the order %v, want %v", order, want)
	for i := range 5 {
		n := len(w.session.Completes(fmt.Sprintf("e-%d", i+1)))
		s.check(115, n == 1, "task e-%d was completed %d times", i+1, n)
	}
	s.check(115, len(w.session.Of(lab.WorkerStarted)) == 1 && len(w.session.Of(lab.WorkerEnd)) == 1, "started %d times, ended %d times",
		len(w.session.Of(lab.WorkerStarted)), len(w.session.Of(lab.WorkerEnd)))

	for _, q := range w.rec.All() {
		for header, value := range map[string]string{"X-DEVOPS-BUILD-TYPE": "AGENT", "X-DEVOPS-PROJECT-ID": w.home.Project, "X-DEVOPS-AGENT-ID": w.home.Agent,
			"X-DEVOPS-AGENT-SECRET-KEY": w.home.Secret, "X-DEVOPS-BUILD-ID": w.session.Build.ID, "X-DEVOPS-VM-SID": w.session.Build.VMSeq} {
			s.check(116, q.Header.Get(header) == value, "%s is %q, want %q on %v", header, q.Header.Get(header), value, q)
		}
		s.check(116, slices.Contains(lab.WorkerEndpoints(), q.Endpoint), "unknown call %v", q)
		if strings.HasPrefix(q.Path, "/ms/process/") {
			s.check(116, q.Query.Get("retryCount") != "" && q.Query.Get("executeCount") != "" && q.Query.Get("buildId") != "", "query %q on %v", q.RawQuery, q.Endpoint)
		}
	}

	text := w.message("e-1")
	s.check(119, strings.Contains(text, "1+1=2 100% ü & <b>\n"), "the script was not decoded: %q", text)
	s.check(119, strings.Contains(text, "var hello it's me\n") || strings.Contains(text, "var hello its me\n"), "a variable was not replaced: %q", text)
	s.check(119, w.result(119, "e-1").Get("success") == true, "task e-1: %v", w.result(119, "e-1"))
	s.check(119, w.home.Has("workspace/"+w.session.Build.Pipeline+"/src/where.txt"), "the script did not run in the default workspace")

	failed := func(task, code string) {
		q := w.result(120, task)
		s.check(120, q.Get("success") == false && q.Get("errorType") == "USER" && q.Get("errorCode") == json.Number(code), "task %s: want USER %s: %v", task, code, q)
	}
	failed("e-2", "2199011")
	failed("e-3", "2199002")
	failed("e-5", "2199011")
	s.check(120, w.result(120, "e-4").Get("success") == true && strings.Contains(w.message("e-4"), "went on"), "continueNoneZero: %v", w.result(120, "e-4"))
	s.check(120, !strings.Contains(w.message("e-5"), "after"), "set -e is not in effect: %q", w.message("e-5"))

	variables := w.result(121, "e-1")
	for key, value := range map[string]string{"A": "b", "EQ": "c=d e", "variables.v1": "vv", "jobs.job1.steps.step1.outputs.out1": "o1", "jobs.job1.os": "LINUX"} {
		s.check(121, variables.Get("buildResult", key) == value, "%s is %v in buildResult, want %s: %v", key, variables.Get("buildResult", key), value, variables)
	}
	s.check(121, strings.Contains(w.message("e-2"), "A is b\n"), "a variable of the first task did not reach the second: %q", w.message("e-2"))
	s.check(122, variables.Get("buildResult", "BIG") == nil, "a value of 4100 characters is in buildResult")
	s.check(122, variables.Get("buildResult") != nil, "no buildResult: %v", variables)
	s.check(124, variables.Get("buildResult", "LEAK") == nil, "a secret is in buildResult")
	for _, q := range w.session.Of() {
		s.check(124, !strings.Contains(string(q.Body), "hunter2secret"), "a sensitive value was sent: %v", q)
	}
	s.check(124, strings.Contains(w.message("e-5"), "the password is ******"), "no mask in %q", w.message("e-5"))
	s.check(124, len(w.home.FindSecret("hunter2secret")) == 0, "a sensitive value is in %v", w.home.FindSecret("hunter2secret"))
	s.check(124, len(w.home.FindSecret(w.home.Secret)) == 0, "the agent's secret is in %v", w.home.FindSecret(w.home.Secret))
	left, err := os.ReadFile(w.errors)
	s.check(127, os.IsNotExist(err) || err == nil && len(left) == 0, "the error file holds %q after a job with failed tasks", left)
}

func nativeLogs(s *S) {
	w := s.native(&lab.Session{Build: lab.NewBuild(), Variables: map[string]any{
		"variables":         map[string]string{"PASS": "line one secret\nline two secret"},
		"variablesWithType": []any{map[string]any{"key": "PASS", "value": "line one secret\nline two secret", "sensitive": true}},
	}, Tasks: []lab.Task{
		{ID: "e-1", Script: "for i in $(seq 1 2500); do echo line $i; done"},
		{ID: "e-2", Script: "echo early; sleep 6; echo late"},
		{ID: "e-3", Script: "head -c 40000 /dev/zero | tr '\\0' 'y'; echo; printf 'no end of line'"},
		{ID: "e-4", Script: "echo '##[error]bad'; echo '##[warning]hm'; echo '##[debug]dd'; echo plain; echo err >&2; echo multi line two secret here"},
	}})
	s.check(123, w.end(90*time.Second) == 0, "the worker failed: %s", w.agent.Output())
	next := 1
	var early, late lab.Line
	ys, tail := 0, false
	for _, line := range w.session.Lines() {
		s.check(123, len([]rune(line.Message)) <= 16384, "a line of %d characters", len([]rune(line.Message)))
		s.check(123, line.Hash == w.session.Build.ContainerHashID, "containerHashId is %q", line.Hash)
		switch {
		case strings.HasPrefix(line.Message, "line ") && line.Tag == "e-1":
			n, _ := strconv.Atoi(strings.TrimPrefix(line.Message, "line "))
			s.check(123, n == next, "line %d where line %d belongs", n, next)
			next = n + 1
		case line.Message == "early":
			early = line
		case line.Message == "late":
			late = line
		case strings.HasPrefix(line.Message, "yyy"):
			ys += len(line.Message)
		case line.Message == "no end of line":
			tail = true
		}
	}
	s.check(123, next == 2501, "the last line is %d, want 2500", next-1)
	s.check(123, ys == 40000, "%d of 40000 characters of a long line", ys)
	s.check(123, tail, "a last line without its end is lost")
	if s.check(123, !early.At.IsZero() && !late.At.IsZero(), "lines of task e-2 are missing") {
		s.check(123, early.At.Sub(time.UnixMilli(early.Stamp)) <= 3500*time.Millisecond, "a line came %v after its time stamp", early.At.Sub(time.UnixMilli(early.Stamp)))
		s.check(123, late.At.Sub(early.At) >= 2500*time.Millisecond, "the first line came only %v before the second, which was printed 6 s later", late.At.Sub(early.At))
	}
	for _, q := range w.session.Of(lab.WorkerComplete) {
		task, _ := q.Get("taskId").(string)
		for _, line := range w.session.Lines() {
			s.check(123, line.Tag != task || !line.At.After(q.At), "a line of %s came after its complete: %q", task, line.Message)
		}
	}
	types := map[string]string{}
	for _, line := range w.session.Lines() {
		if line.Tag == "e-4" {
			types[strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(line.Message, "##[error]"), "##[warning]"), "##[debug]")] = line.Type
			s.check(124, !strings.Contains(line.Message, "line two secret"), "a line of a sensitive value was sent: %q", line.Message)
		}
	}
	for text, want := range map[string]string{"bad": "ERROR", "hm": "WARN", "dd": "DEBUG", "plain": "LOG", "err": "ERROR"} {
		s.check(123, types[text] == want, "line %q has type %q, want %s", text, types[text], want)
	}
	s.check(123, len(w.session.Of(lab.LogsStatus)) >= 4, "%d calls that a task's log is finished", len(w.session.Of(lab.LogsStatus)))
}

// nativeRepeats loses answers: a call is repeated, and only then.
func nativeRepeats(s *S) {
	session := &lab.Session{Build: lab.NewBuild(), Tasks: []lab.Task{{ID: "e-1", Script: "echo one"}, {ID: "e-2", Script: "echo two"}}}
	run := s.nativeWith(session, func(rec *lab.Recorder) {
		rec.Next(lab.WorkerStarted, lab.Answer{Drop: true})
		rec.Next(lab.WorkerComplete, lab.JSON(503, map[string]any{"status": 503}), lab.JSON(502, map[string]any{"status": 502}))
		rec.Next(lab.LogsMulti, lab.Answer{Drop: true})
		rec.Next(lab.WorkerEnd, lab.Answer{Drop: true})
	})
	code := run.end(90 * time.Second)
	s.check(115, code == 0, "exit code %d; output: %s", code, run.agent.Output())
	s.check(115, len(run.session.Completes("e-1")) == 3, "task e-1 was completed %d times, want 3: two answers were lost", len(run.session.Completes("e-1")))
	s.check(115, len(run.session.Completes("e-2")) == 1, "task e-2 was completed %d times, want 1", len(run.session.Completes("e-2")))
	s.check(115, len(run.session.Of(lab.WorkerStarted)) == 2, "started %d times, want 2", len(run.session.Of(lab.WorkerStarted)))
	s.check(115, strings.Contains(run.message("e-1"), "one"), "log lines of a refused upload are lost: %q", run.message("e-1"))
}

// nativeWith prepares the server before the worker starts.
func (s *S) nativeWith(session *lab.Session, prepare func(*lab.Recorder)) *nativeRun {
	rec := lab.NewRecorder(s, lab.RecorderOptions{})
	prepare(rec)
	return s.nativeOn(rec, session)
}

func nativeRefused(code int) func(*S) {
	return func(s *S) {
		w := s.nativeWith(&lab.Session{Build: lab.NewBuild()}, func(rec *lab.Recorder) {
			rec.Always(lab.WorkerStarted, lab.JSON(400, map[string]any{"status": 400, "errorCode": code, "message": "not again", "data": "buildEnd"}))
		})
		exit := w.end(60 * time.Second)
		s.check(117, exit == 255, "exit code %d, want 255", exit)
		for _, q := range w.session.Of() {
			s.check(117, q.Endpoint == lab.WorkerStarted, "a call after started was refused: %v", q)
		}
		s.check(117, len(w.session.Of(lab.WorkerStarted)) == 1, "started %d times", len(w.session.Of(lab.WorkerStarted)))
		text, _ := os.ReadFile(w.errors)
		s.check(117, strings.Contains(string(text), "not again") && len(text) <= 2048, "the error file holds %q, want the answer", text)
	}
}

// nativeWaits counts the pauses of protocol §6.2.
func nativeWaits(s *S) {
	w := s.native(&lab.Session{Build: lab.NewBuild(), EndWaits: 30, Tasks: []lab.Task{{ID: "e-1", Waits: 12, Script: "true"}}})
	s.check(118, w.end(90*time.Second) == 0, "the worker failed: %s", w.agent.Output())
	k, gaps, late := 0, 0, 0
	var before lab.Request
	for _, q := range w.session.Of(lab.WorkerClaim, lab.WorkerComplete) {
		if q.Endpoint == lab.WorkerComplete {
			k, before = 0, lab.Request{}
			continue
		}
		if !before.At.IsZero() {
			want := time.Duration(max(1, k/5)) * 100 * time.Millisecond
			gap := q.At.Sub(before.At)
			s.check(118, gap >= want-15*time.Millisecond, "%v after WAIT number %d, want %v", gap, k, want)
			k++
			gaps++
			if gap > want+600*time.Millisecond {
				late++ // a machine that is busy may make some of them longer
			}
		}
		before = q
	}
	s.check(118, late <= gaps/4, "%d of %d pauses are longer by more than 600ms", late, gaps)
	s.check(118, len(w.session.Of(lab.WorkerClaim)) == 12+1+30+1, "%d claims", len(w.session.Of(lab.WorkerClaim)))
}

func nativeCancel(s *S) {
	w := s.native(&lab.Session{Build: lab.NewBuild(), Tasks: []lab.Task{{ID: "e-1", Script: `
sleep 301 &
echo $! >pids
setsid sleep 302 &
echo $! >>pids
(trap '' TERM; sleep 303; sleep 304) &
echo $! >>pids
echo $$ >>pids
sleep 305
`}, {ID: "e-2", Script: "echo never mind"}}})
	if !w.rec.Until(60*time.Second, func() bool { return len(w.session.Of(lab.WorkerHeartbeat)) >= 5 }) {
		s.check(125, false, "%d heartbeats in a minute", len(w.session.Of(lab.WorkerHeartbeat)))
		return
	}
	started := w.session.Of(lab.WorkerStarted)[0]
	beats := w.session.Of(lab.WorkerHeartbeat)
	s.check(125, beats[0].At.Sub(started.At) <= 11*time.Second, "the first heartbeat came %v after started", beats[0].At.Sub(started.At))
	for _, gap := range gaps(beats) {
		s.check(125, gap >= 1500*time.Millisecond && gap <= 3500*time.Millisecond, "heartbeats %v apart", gap)
	}
	for _, key := range []string{"task2ProgressRate", "task2ProgressDetail"} {
		_, object := beats[0].Get(key).(map[string]any)
		s.check(125, object, "%s is %v", key, beats[0].Get(key))
	}
	data, _ := os.ReadFile(w.home.Path("workspace", w.session.Build.Pipeline, "src", "pids"))
	var pids []int
	for _, field := range strings.Fields(string(data)) {
		pid, _ := strconv.Atoi(field)
		pids = append(pids, pid)
		s.check(125, lab.Running(pid), "process %d of the task is gone before the cancel", pid)
	}
	s.check(125, len(pids) == 4, "pids: %q", data)
	mark := w.rec.Mark()
	w.session.Cancel("e-1")
	told, ok := w.rec.WaitFor(10*time.Second, mark, lab.WorkerHeartbeat)
	if !ok {
		s.Fatalf("no heartbeat after the cancel")
	}
	dead := func() bool { return !slices.ContainsFunc(pids, lab.Running) }
	s.check(125, lab.Eventually(time.Until(told.At.Add(5*time.Second)), dead), "5 s after the cancel processes of the task still run: %v", slices.DeleteFunc(slices.Clone(pids), func(pid int) bool { return !lab.Running(pid) }))
	w.session.Cancel()
	s.check(125, w.end(60*time.Second) == 0, "exit code after a cancel; output: %s", w.agent.Output())
	s.check(125, w.result(125, "e-1").Get("success") == false, "a cancelled task: %v", w.result(125, "e-1"))
	s.check(125, w.result(125, "e-2").Get("success") == true, "the task after a cancelled one: %v", w.result(125, "e-2"))
}

func nativeTaskLimit(s *S) {
	w := s.native(&lab.Session{Build: lab.NewBuild(), Tasks: []lab.Task{
		{ID: "e-1", Script: "echo $$ >pids; sleep 300", Params: map[string]string{"additionalOptions": `{"timeout":1}`}},
	}})
	s.check(120, w.end(120*time.Second) == 0, "the worker failed: %s", w.agent.Output())
	q := w.result(120, "e-1")
	s.check(120, q.Get("success") == false && q.Get("errorType") == "USER" && q.Get("errorCode") == json.Number("2199006"), "over the limit: want USER 2199006: %v", q)
	left, err := os.ReadFile(w.errors)
	s.check(127, os.IsNotExist(err) || err == nil && len(left) == 0, "the error file holds %q", left)
}

func nativeJobLimit(s *S) {
	w := s.native(&lab.Session{Build: lab.NewBuild(), Variables: map[string]any{"timeoutMills": 6000}, Tasks: []lab.Task{
		{ID: "e-1", Script: "echo $$ >pids; sleep 300"},
	}})
	code := w.end(60 * time.Second)
	s.check(126, code == 99, "exit code %d, want 99", code)
	calls := w.session.Of(lab.WorkerTimeout)
	if s.check(126, len(calls) == 1, "%d calls of timeout", len(calls)) {
		started := w.session.Of(lab.WorkerStarted)[0]
		took := calls[0].At.Sub(started.At)
		s.check(126, took >= 5900*time.Millisecond && took <= 10*time.Second, "timeout was called %v after started, the limit is 6 s", took)
	}
	data, _ := os.ReadFile(w.home.Path("workspace", w.session.Build.Pipeline, "src", "pids"))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	s.check(126, pid > 0 && !lab.Running(pid), "the script still runs (pid %d)", pid)
}
