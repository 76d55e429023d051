package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/controller"
)

// program is the built devopsController.
func program(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "devopsController.exe")
	cmd := exec.Command("go", "build", "-o", path, ".")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

// process is a running controller.
type process struct {
	cmd  *exec.Cmd
	url  string
	logs bytes.Buffer
	done chan error
}

func start(t *testing.T, path, dir, listen string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(path, append([]string{"serve", "--data", dir, "--listen", listen}, args...)...), done: make(chan error, 1)}
	p.cmd.Stderr = &p.logs
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		_ = p.cmd.Wait()
		t.Fatalf("it did not start: %v\n%s", err, p.logs.String())
	}
	p.url = strings.TrimSpace(line[strings.LastIndex(line, " ")+1:])
	go func() { p.done <- p.cmd.Wait() }()
	return p
}

func (p *process) kill(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	<-p.done
}

// cmdline runs one command of the program to its end.
func cmdline(t *testing.T, path, dir string, args ...string) (out, errs string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	cmd := exec.CommandContext(t.Context(), path, append([]string{"--data", dir}, args...)...)
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// fakeAgent is an agent and its worker, as the wire sees them. It runs every step by asking what it should do.
type fakeAgent struct {
	t      *testing.T
	client *wire.Client
}

// enrol makes an agent record by the operator's API and imports it.
func enrol(t *testing.T, url, dir string) *fakeAgent {
	t.Helper()
	c, err := (&flags{data: dir, url: url}).open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.http.CloseIdleConnections()
	var made struct{ ID, Project, Secret string }
	if err := c.call(t.Context(), "POST", "/agents", map[string]any{}, &made); err != nil {
		t.Fatal(err)
	}
	a := &fakeAgent{t: t, client: &wire.Client{Gateway: url, HTTP: &http.Client{Transport: &http.Transport{}}, Timeout: 10 * time.Second,
		Identity: wire.Identity{Project: made.Project, Agent: made.ID, Secret: wire.Secret(made.Secret)}}}
	t.Cleanup(a.client.HTTP.CloseIdleConnections)
	if _, err := a.client.Startup(t.Context(), wire.Startup{HostName: "fake", HostIP: "10.0.0.9", DetectOS: "linux"}); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *fakeAgent) ask(ctx context.Context, wait time.Duration) (*wire.Parts, error) {
	return a.client.Ask(ctx, wire.Ask{Enable: wire.AskEnable{Build: wire.All, Pipeline: true}, Heartbeat: wire.Heartbeat{MasterVersion: "v1.0.0"}}, wait)
}

// work makes a worker's call and repeats it, as a worker does, until the controller has answered.
func (a *fakeAgent) work(ctx context.Context, build, method, path string, body any, out any) error {
	for n := 0; ; n++ {
		query := map[string][]string{"retryCount": {fmt.Sprint(n)}}
		header := http.Header{}
		header.Set(wire.HeaderBuild, build)
		header.Set(wire.HeaderVMSeq, "1")
		answer, err := a.client.Do(ctx, wire.Call{Op: path, Method: method, Path: path, Query: query, Body: body, Header: header})
		var refused *wire.StatusError
		switch {
		case err == nil && out != nil:
			return json.Unmarshal(answer.Data, out)
		case err == nil, ctx.Err() != nil, errors.As(err, &refused) && refused.HTTP < 500:
			return err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// run takes builds until ctx is done. step says how a step ends, and what it prints.
func (a *fakeAgent) run(ctx context.Context, step func(script string) (lines []string, exit int)) {
	for ctx.Err() == nil {
		parts, err := a.ask(ctx, 10*time.Second)
		if err != nil || parts.Build == nil {
			if err == nil && parts.Pipeline != nil {
				_ = a.client.ReportPipeline(ctx, wire.PipelineReport{SeqID: parts.Pipeline.SeqID, Status: wire.PipelineSuccess, Response: "ran " + parts.Pipeline.Command})
			}
			continue
		}
		a.build(ctx, parts.Build.ID, step)
	}
}

func (a *fakeAgent) build(ctx context.Context, id string, step func(string) ([]string, int)) {
	fail := func(err error) bool {
		if err != nil && ctx.Err() == nil {
			a.t.Errorf("worker: %v", err)
		}
		return err != nil
	}
	if fail(a.work(ctx, id, "PUT", wire.PathWorkerStarted, nil, nil)) {
		return
	}
	for {
		var task wire.BuildTask
		if fail(a.work(ctx, id, "GET", wire.PathWorkerClaim, nil, &task)) {
			return
		}
		if task.Status == wire.TaskEnd {
			break
		}
		lines, exit := step(task.Params["script"])
		var in []wire.LogLine
		for _, l := range lines {
			in = append(in, wire.LogLine{Message: l, Tag: *task.TaskID, LogType: wire.LogNormal})
		}
		if len(in) > 0 && fail(a.work(ctx, id, "POST", wire.PathLogsMulti, in, nil)) {
			return
		}
		for exit < 0 { // until it is cancelled
			var said wire.WorkerHeartbeatReply
			if fail(a.work(ctx, id, "POST", wire.PathWorkerHeartbeat, wire.WorkerHeartbeat{}, &said)) {
				return
			}
			if len(said.CancelTaskIDs) > 0 {
				exit = 1
			}
		}
		message := fmt.Sprintf("exit code %d", exit)
		r := wire.TaskResult{TaskID: *task.TaskID, Success: exit == 0, BuildResult: map[string]string{}}
		if exit != 0 {
			r.Message = &message
		}
		if fail(a.work(ctx, id, "POST", wire.PathWorkerComplete, r, nil)) {
			return
		}
	}
	fail(a.work(ctx, id, "POST", wire.PathWorkerEnd, wire.EndMessage{}, nil))
}

func TestTheCommandLine(t *testing.T) {
	path, dir := program(t), t.TempDir()
	if _, errs, code := cmdline(t, path, dir, "builds"); code != 1 || !strings.Contains(errs, "hint: start one with") {
		t.Errorf("without a controller: %d %s", code, errs)
	}
	p := start(t, path, dir, "127.0.0.1:0")
	defer func() {
		_ = p.cmd.Process.Kill()
	}()
	if _, errs, code := cmdline(t, path, dir, "serve", "--listen", "127.0.0.1:0"); code != 1 || !strings.Contains(errs, "another controller uses") {
		t.Errorf("a second one: %d %s", code, errs)
	}
	agent := enrol(t, p.url, dir)
	ctx, stop := context.WithCancel(t.Context())
	var worker sync.WaitGroup
	defer worker.Wait()
	defer stop()
	waiting := make(chan struct{}, 10)
	worker.Go(func() {
		agent.run(ctx, func(script string) ([]string, int) {
			switch {
			case strings.Contains(script, "fail"):
				return []string{"##[error]it is broken"}, 3
			case strings.Contains(script, "hang"):
				waiting <- struct{}{}
				return []string{"waiting"}, -1
			}
			return []string{"I ran " + script}, 0
		})
	})

	out, errs, code := cmdline(t, path, dir, "run", "--", "echo", "it's me")
	if code != 0 || !strings.Contains(out, "── step 1/1: echo") || !strings.Contains(out, "I ran echo+%27it%27%5C%27%27s+me%27") ||
		!strings.Contains(out, "build #1 succeeded [queued → started ") {
		t.Errorf("run: %d\n%s%s", code, out, errs)
	}
	out, _, code = cmdline(t, path, dir, "run", "--", "fail")
	if code != 1 || !strings.Contains(out, "\nit is broken\n") || !strings.Contains(out, "build #2 failed: step step1 (fail) failed: exit code 3") {
		t.Errorf("run of a failing build: %d\n%s", code, out)
	}
	file := filepath.Join(dir, "build.yaml")
	if err := os.WriteFile(file, []byte("name: two\nsteps:\n- {name: first, script: a}\n- {name: last, script: b}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, code = cmdline(t, path, dir, "--json", "run", file)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var last event
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || code != 0 || last.Build == nil || last.Build.State != controller.Succeeded || len(last.Build.Steps) != 2 {
		t.Errorf("run --json: %d %v\n%s%s", code, err, out, errs)
	}
	if err := os.WriteFile(file, []byte("steps:\n- {scrpt: a}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs, code = cmdline(t, path, dir, "run", file); code != 1 || !strings.Contains(errs, `line 2: unknown key "scrpt"`) || !strings.Contains(errs, "hint: keys of a build") {
		t.Errorf("run of a bad file: %d %s", code, errs)
	}

	// Ctrl-C cancels.
	running := exec.Command(path, "--data", dir, "run", "--", "hang")
	var said bytes.Buffer
	running.Stdout = &said
	if err := running.Start(); err != nil {
		t.Fatal(err)
	}
	<-waiting
	if err := running.Process.Signal(os.Interrupt); err != nil {
		t.Logf("no interrupt here: %v", err)
		_ = running.Process.Kill()
	}
	_ = running.Wait()
	if code := running.ProcessState.ExitCode(); code != 130 || !strings.Contains(said.String(), "cancelled: cancelled [queued") && !strings.Contains(said.String(), "build #4 cancelled") {
		t.Errorf("after Ctrl-C: %d\n%s", code, said.String())
	}

	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"builds"}, "succeeded"},
		{[]string{"builds", "2"}, "exit code 3"},
		{[]string{"builds", "--json"}, `"state":"cancelled"`},
		{[]string{"logs", "2"}, "it is broken\n"},
		{[]string{"logs", "-f", "2"}, "it is broken\n"},
		{[]string{"cancel", "2"}, "is failed"},
		{[]string{"agents"}, "IMPORT_OK"},
		{[]string{"agents", "set", agent.client.Identity.Agent, "--parallel", "7", "--labels", "a,b", "--language", "ja_JP", "--env", "A=b", "--json"}, `"parallel":7`},
		{[]string{"pipeline", agent.client.Identity.Agent, "--", "uptime"}, "ran uptime\n"},
		{[]string{"version"}, "v"},
	} {
		if out, errs, code := cmdline(t, path, dir, c.args...); code != 0 || !strings.Contains(out, c.want) {
			t.Errorf("%v: %d, want %q in\n%s%s", c.args, code, c.want, out, errs)
		}
	}
	out, _, code = cmdline(t, path, dir, "enroll-token")
	if token := strings.TrimSpace(out); code != 0 || len(token) != 64 {
		t.Errorf("enroll-token: %d %q", code, out)
	}
	stop()
	worker.Wait()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Logf("no interrupt here: %v", err)
		_ = p.cmd.Process.Kill()
		return
	}
	select {
	case err := <-p.done:
		if err != nil {
			t.Errorf("stopped: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it does not stop")
	}
	if _, err := os.Stat(filepath.Join(dir, endpointFile)); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", endpointFile, err)
	}
	if log := p.logs.String(); strings.Contains(log, string(agent.client.Identity.Secret)) {
		t.Error("the secret is in the log")
	}
}

// A worker posts lines while the controller is killed ten times. Every acknowledged line must be there afterwards, in
// order, and the build must end as its worker says.
func TestKillNineLosesNothingThatWasAcknowledged(t *testing.T) {
	path, dir := program(t), t.TempDir()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listen := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	p := start(t, path, dir, listen)
	agent := enrol(t, p.url, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	spec, err := controller.ParseSpec([]byte("steps: [{script: x}, {script: y}]"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := (&flags{data: dir}).open()
	if err != nil {
		t.Fatal(err)
	}
	var build controller.Build
	if err := c.call(ctx, "POST", "/builds", map[string]any{"spec": spec}, &build); err != nil {
		t.Fatal(err)
	}
	c.http.CloseIdleConnections()
	for {
		if parts, err := agent.ask(ctx, 5*time.Second); err == nil && parts.Build != nil {
			break
		}
	}
	kills := 0
	acknowledged := make(chan int, 10000)
	killed := make(chan struct{})
	var killer sync.WaitGroup
	killer.Go(func() {
		defer close(killed)
		for n := range acknowledged {
			if n < 7*(kills+1) {
				continue
			}
			p.kill(t)
			p = start(t, path, dir, listen)
			if kills++; kills == 10 {
				return
			}
		}
	})
	var want []string // acknowledged lines
	post := func(task *string) {
		n := len(want)
		lines := make([]wire.LogLine, 50)
		for i := range lines {
			lines[i] = wire.LogLine{Message: fmt.Sprintf("%d.%d", n, i), Tag: *task}
		}
		if err := agent.work(ctx, build.ID, "POST", wire.PathLogsMulti, lines, nil); err != nil {
			t.Fatal(err)
		}
		for _, l := range lines {
			want = append(want, l.Message)
		}
		acknowledged <- len(want) / 50
	}
	if err := agent.work(ctx, build.ID, "PUT", wire.PathWorkerStarted, nil, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var task wire.BuildTask
		if err := agent.work(ctx, build.ID, "GET", wire.PathWorkerClaim, nil, &task); err != nil || task.Status != wire.TaskDo {
			t.Fatal(task.Status, err)
		}
		for range 40 {
			post(task.TaskID)
		}
		if err := agent.work(ctx, build.ID, "POST", wire.PathWorkerComplete, wire.TaskResult{TaskID: *task.TaskID, Success: true, BuildResult: map[string]string{}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := agent.work(ctx, build.ID, "POST", wire.PathWorkerEnd, wire.EndMessage{}, nil); err != nil {
		t.Fatal(err)
	}
	close(acknowledged)
	killer.Wait()
	<-killed
	if kills != 10 {
		t.Errorf("only %d kills", kills)
	}
	p.kill(t)
	p = start(t, path, dir, listen)
	defer p.kill(t)
	out, errs, code := cmdline(t, path, dir, "logs", build.ID)
	if code != 0 {
		t.Fatal(errs)
	}
	// A line whose acknowledgement was lost was sent again: it may be there twice. None may be missing or out of order.
	have, i := strings.Fields(out), 0
	for _, line := range have {
		if i < len(want) && line == want[i] {
			i++
		}
	}
	if i != len(want) {
		t.Errorf("line %d of %d acknowledged ones, %s, is missing", i+1, len(want), want[i])
	}
	t.Logf("%d lines acknowledged, %d stored, %d kills", len(want), len(have), kills)
	if c, err = (&flags{data: dir}).open(); err != nil {
		t.Fatal(err)
	}
	defer c.http.CloseIdleConnections()
	if err := c.call(ctx, "GET", "/builds/"+build.ID, nil, &build); err != nil || build.State != controller.Succeeded {
		t.Errorf("the build ended %s %v", build.State, err)
	}
}
