package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// TestMain lets the test binary play a controller that is killed (kill_test.go).
func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		if err := play(role, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// world is a controller with its timers running, served over real HTTP unless in memory.
type world struct {
	t      *testing.T
	server *Server
	http   *http.Client
	url    string
}

func serve(t *testing.T, opts Options) *world {
	t.Helper()
	s, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.Run(ctx) }()
	web := httptest.NewServer(s.Handler())
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(func() {
		cancel()
		<-ended
		s.Release()
		client.CloseIdleConnections()
		web.Close()
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return &world{t: t, server: s, http: client, url: web.URL}
}

// machine is an agent as the wire sees it.
type machine struct {
	*world
	id     wire.Identity
	client *wire.Client
}

func (w *world) machine(n NewAgent) *machine {
	w.t.Helper()
	id, err := w.server.CreateAgent(n)
	if err != nil {
		w.t.Fatal(err)
	}
	return &machine{world: w, id: id, client: &wire.Client{Gateway: w.url, Identity: id, HTTP: w.http, Timeout: 20 * time.Second}}
}

// imported is a machine that has reported its start.
func (w *world) imported(n NewAgent) *machine {
	w.t.Helper()
	m := w.machine(n)
	os := n.OS
	if os == "" {
		os = "linux"
	}
	if _, err := m.client.Startup(w.t.Context(), wire.Startup{HostName: "host-" + m.id.Agent, HostIP: "10.0.0.1", DetectOS: os, MasterVersion: "v1.0.0"}); err != nil {
		w.t.Fatal(err)
	}
	return m
}

func beat(running ...string) wire.Heartbeat {
	h := wire.Heartbeat{MasterVersion: "v1.0.0", HostName: "h", AgentIP: "10.0.0.1", ParallelTaskCount: 4, AgentInstallPath: "/opt/ci",
		StartedUser: "ci", Props: wire.HostProps{Arch: "amd64", JDKVersion: []string{}}, DockerTaskList: []wire.RunningDocker{}}
	for _, id := range running {
		h.TaskList = append(h.TaskList, wire.Running{Build: id, VMSeq: "1"})
	}
	return h
}

func asking(kind wire.BuildKind, running ...string) wire.Ask {
	return wire.Ask{Enable: wire.AskEnable{Build: kind}, Heartbeat: beat(running...)}
}

// ask asks and fails the test on an error.
func (m *machine) ask(in wire.Ask, wait time.Duration) *wire.Parts {
	m.t.Helper()
	parts, err := m.client.Ask(m.t.Context(), in, wait)
	if err != nil {
		m.t.Fatalf("ask: %v", err)
	}
	return parts
}

// settle makes the first ask, which is answered at once because the heartbeat's answer is new to the agent.
func (m *machine) settle() { m.ask(asking(wire.None), time.Second) }

func (w *world) submit(spec Spec) Build {
	w.t.Helper()
	b, err := w.server.Submit("", spec)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func oneStep(script string) Spec { return Spec{Name: "test", Steps: []Step{{Script: script}}} }

func (w *world) build(id string) Build {
	w.t.Helper()
	b, err := w.server.FindBuild(id)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// until waits for a build to reach a state.
func (w *world) until(id string, want State) Build {
	w.t.Helper()
	b, err := w.server.find(id)
	if err != nil {
		w.t.Fatal(err)
	}
	deadline := time.After(20 * time.Second)
	for {
		w.server.mu.Lock()
		v, changed := b.view(), b.changed
		w.server.mu.Unlock()
		if v.State == want {
			return v
		}
		select {
		case <-changed:
		case <-deadline:
			w.t.Fatalf("build is %s (%s), want %s", v.State, v.Message, want)
		}
	}
}

// reply is the raw answer to a call.
type rawReply struct {
	code   int
	header http.Header
	body   []byte
	env    struct {
		Status      int
		ErrorCode   int
		Message     string
		Data        json.RawMessage
		AgentStatus *string
	}
}

func (w *world) call(method, path string, header http.Header, body any) rawReply {
	w.t.Helper()
	var in io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		in = strings.NewReader(b)
	default:
		data, err := json.Marshal(b)
		if err != nil {
			w.t.Fatal(err)
		}
		in = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, in)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header = header.Clone()
	if req.Header == nil {
		req.Header = make(http.Header)
	}
	resp, err := w.http.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	r := rawReply{code: resp.StatusCode, header: resp.Header}
	if r.body, err = io.ReadAll(resp.Body); err != nil {
		w.t.Fatal(err)
	}
	_ = json.Unmarshal(r.body, &r.env)
	return r
}

func (m *machine) header() http.Header {
	return http.Header{wire.HeaderBuildType: {"AGENT"}, "X-Devops-Build-Type": {"AGENT"}, "X-Devops-Project-Id": {m.id.Project},
		"X-Devops-Agent-Id": {m.id.Agent}, "X-Devops-Agent-Secret-Key": {string(m.id.Secret)}}
}

func (m *machine) workerHeader(build string) http.Header {
	h := m.header()
	h.Set(wire.HeaderBuild, build)
	h.Set(wire.HeaderVMSeq, "1")
	return h
}

// worker makes a worker's call and decodes its data into out.
func (m *machine) worker(build, method, path string, body, out any) rawReply {
	m.t.Helper()
	r := m.call(method, path, m.workerHeader(build), body)
	if out != nil {
		if r.code != 200 || r.env.Status != 0 {
			m.t.Fatalf("%s %s: HTTP %d %s", method, path, r.code, r.body)
		}
		if err := json.Unmarshal(r.env.Data, out); err != nil {
			m.t.Fatalf("%s %s: %v in %s", method, path, err, r.body)
		}
	}
	return r
}

func (m *machine) start(build string) wire.BuildVariables {
	m.t.Helper()
	var v wire.BuildVariables
	m.worker(build, "PUT", wire.PathWorkerStarted+"?retryCount=0&executeCount=1&buildId=null", nil, &v)
	return v
}

func (m *machine) claimTask(build string) wire.BuildTask {
	m.t.Helper()
	var task wire.BuildTask
	m.worker(build, "GET", wire.PathWorkerClaim+"?retryCount=0", nil, &task)
	return task
}

func (m *machine) complete(build string, r wire.TaskResult) {
	m.t.Helper()
	if r.BuildResult == nil {
		r.BuildResult = map[string]string{}
	}
	var yes bool
	m.worker(build, "POST", wire.PathWorkerComplete+"?retryCount=0", r, &yes)
}

func (m *machine) end(build string) {
	m.t.Helper()
	var yes bool
	m.worker(build, "POST", wire.PathWorkerEnd+"?retryCount=0", wire.EndMessage{}, &yes)
}

// run plays a whole worker in which every step ends as told.
func (m *machine) run(build string, outcome func(task wire.BuildTask) wire.TaskResult) {
	m.t.Helper()
	m.start(build)
	for {
		task := m.claimTask(build)
		if task.Status == wire.TaskEnd {
			break
		}
		r := wire.TaskResult{Success: true}
		if outcome != nil {
			r = outcome(task)
		}
		r.TaskID = *task.TaskID
		m.complete(build, r)
	}
	m.end(build)
}

func TestABuildGoesFromTheQueueToItsEnd(t *testing.T) {
	w := serve(t, Options{})
	m := w.imported(NewAgent{})
	m.settle()
	b := w.submit(Spec{Name: "three", Variables: map[string]Variable{"COLOR": {Value: "red"}, "KEY": {Value: "hush", Sensitive: true}},
		Steps: []Step{{Script: "echo a b+c", Shell: "bash", Env: map[string]string{"X": "1"}, Timeout: Duration(90 * time.Second)}, {Name: "second", Script: "exit 0"}}})
	got := m.ask(asking(wire.All), time.Second).Build
	if got == nil || got.ID != b.ID || got.VMSeq != "1" || got.ContainerHashID == "" || got.Docker != nil {
		t.Fatalf("claimed %+v", got)
	}
	vars := m.start(b.ID)
	if vars.Variables["COLOR"] != "red" || vars.ContainerHashID != got.ContainerHashID || vars.TimeoutMills != jobLimit.Milliseconds() {
		t.Errorf("variables: %+v", vars)
	}
	for _, v := range vars.VariablesWithType {
		if v.Sensitive == nil || *v.Sensitive != (v.Key == "KEY") {
			t.Errorf("%s: sensitive %v", v.Key, v.Sensitive)
		}
	}
	task := m.claimTask(b.ID)
	if task.Status != wire.TaskDo || *task.Type != wire.TaskLinuxScript || task.Params["script"] != "%23%21%2Fbin%2Fbash%0Aecho+a+b%2Bc" ||
		task.Params["scriptType"] != "SHELL" || task.Params["customEnv"] != `[{"key":"X","value":"1"}]` || !strings.Contains(task.Params["additionalOptions"], `"timeout":2`) {
		t.Errorf("task: %+v", task)
	}
	if again := m.claimTask(b.ID); *again.TaskID != *task.TaskID {
		t.Errorf("a repeated claim brought another step: %+v", again)
	}
	done := wire.TaskResult{TaskID: *task.TaskID, Success: true, BuildResult: map[string]string{"A": "b", "S": "hidden"}, SensitiveKeys: []string{"S"}}
	m.complete(b.ID, done)
	m.complete(b.ID, done)
	task = m.claimTask(b.ID)
	if task.BuildVariable["A"] != "b" || *task.ElementName != "second" {
		t.Errorf("second task: %+v", task)
	}
	m.complete(b.ID, wire.TaskResult{TaskID: *task.TaskID, Success: true})
	if task = m.claimTask(b.ID); task.Status != wire.TaskEnd {
		t.Errorf("third claim: %+v", task)
	}
	m.end(b.ID)
	m.end(b.ID)
	m.complete(b.ID, done)
	end := w.build(b.ID)
	if end.State != Succeeded || end.QueuedAt == 0 || end.HandedAt < end.QueuedAt || end.StartedAt < end.HandedAt || end.FinishedAt < end.StartedAt {
		t.Errorf("end: %+v", end)
	}
	if end.Variables["KEY"] != masked || end.Variables["S"] != masked || end.Variables["A"] != "b" {
		t.Errorf("variables shown: %v", end.Variables)
	}
	r := m.worker(b.ID, "POST", wire.PathWorkerHeartbeat, wire.WorkerHeartbeat{}, nil)
	if r.code != 401 || r.env.ErrorCode != wire.CodeBuildEnded || string(r.env.Data) != `"buildEnd"` {
		t.Errorf("heartbeat after the end: %d %s", r.code, r.body)
	}
	if err := m.client.Finish(t.Context(), wire.Finish{Build: *got, Success: true, Message: "pid 7"}); err != nil {
		t.Fatal(err)
	}
	if end = w.build(b.ID); end.State != Succeeded || end.Report == nil || !end.Report.Success {
		t.Errorf("after the agent's report: %+v", end)
	}
}

func TestHowStepsDecide(t *testing.T) {
	w := serve(t, Options{})
	m := w.imported(NewAgent{})
	m.settle()
	code, user, said := wire.CodeScriptFailed, wire.ErrorUser, "exit code 3"
	fail := func(names ...string) func(wire.BuildTask) wire.TaskResult {
		return func(task wire.BuildTask) wire.TaskResult {
			for _, name := range names {
				if *task.StepID == name {
					return wire.TaskResult{Message: &said, ErrorCode: &code, ErrorType: &user}
				}
			}
			return wire.TaskResult{Success: true}
		}
	}
	for _, c := range []struct {
		name    string
		steps   []Step
		outcome func(wire.BuildTask) wire.TaskResult
		state   State
		message string
		states  []State
	}{
		{"a failed step skips the rest", []Step{{Script: "x"}, {Script: "x"}, {Script: "x"}}, fail("step2"), Failed, "step step2 failed: exit code 3", []State{Succeeded, Failed, Skipped}},
		{"a step may be allowed to fail", []Step{{Script: "x", ContinueWhenFailed: true}, {Script: "x"}}, fail("step1"), Succeeded, "", []State{Failed, Succeeded}},
		{"success is the AND of the rest", []Step{{Script: "x", ContinueWhenFailed: true}, {Script: "x"}}, fail("step1", "step2"), Failed, "step step2 failed: exit code 3", []State{Failed, Failed}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := w.submit(Spec{Steps: c.steps})
			if got := m.ask(asking(wire.All), time.Second).Build; got == nil {
				t.Fatal("no build")
			}
			m.run(b.ID, c.outcome)
			end := w.build(b.ID)
			if end.State != c.state || end.Message != c.message {
				t.Errorf("ended %s: %q, want %s: %q", end.State, end.Message, c.state, c.message)
			}
			for i, s := range end.Steps {
				if s.State != c.states[i] {
					t.Errorf("step %d: %s, want %s", i+1, s.State, c.states[i])
				}
			}
		})
	}
}

func statusOf(err error) int {
	var refused *wire.StatusError
	if errors.As(err, &refused) {
		return refused.Code
	}
	return 0
}

func httpOf(s *Server) *http.Client { return &http.Client{Transport: s.Transport()} }

func TestADamagedDataBaseIsNamed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "controller.db")
	if err := os.WriteFile(path, bytes.Repeat([]byte("no data base "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(Options{Dir: dir})
	var bad *DamageError
	if !errors.As(err, &bad) || bad.Path != path || bad.Hint() == "" {
		t.Errorf("%v", err)
	}
}

func TestAValueWithASecretInItIsNotShown(t *testing.T) {
	w := serve(t, Options{})
	m := w.imported(NewAgent{})
	m.settle()
	b := w.submit(Spec{Steps: []Step{{Script: "x"}}, Variables: map[string]Variable{"PW": {Value: "swordfish", Sensitive: true}}})
	m.ask(asking(wire.All), time.Second)
	m.start(b.ID)
	task := m.claimTask(b.ID)
	m.complete(b.ID, wire.TaskResult{TaskID: *task.TaskID, Success: true, BuildResult: map[string]string{"URL": "http://u:swordfish@h", "A": "b"}})
	if vars := w.build(b.ID).Variables; vars["URL"] != masked || vars["A"] != "b" {
		t.Errorf("%v", vars)
	}
	if vars := m.worker(b.ID, "PUT", wire.PathWorkerStarted+"?retryCount=1", nil, new(wire.BuildVariables)); !bytes.Contains(vars.body, []byte("u:swordfish@h")) {
		t.Error("the worker must get the value itself")
	}
}

func TestAStepsLimitReachesTheWorkerInSeconds(t *testing.T) {
	for limit, want := range map[time.Duration]string{
		90 * time.Second: `"timeout":2,"timeoutSeconds":90}`, 1500 * time.Millisecond: `"timeout":1,"timeoutSeconds":1.5}`,
		time.Minute: `"timeout":1}`, 0: `"timeout":0}`,
	} {
		step := Step{Timeout: Duration(limit)}
		if got := step.params("linux", "e-1")["additionalOptions"]; !strings.HasSuffix(got, want) {
			t.Errorf("%v: %s, want …%s", limit, got, want)
		}
	}
}
