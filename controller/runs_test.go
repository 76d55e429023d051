package controller

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// submitRun submits a file with jobs.
func (w *world) submitRun(file string) Run {
	w.t.Helper()
	r, err := w.server.SubmitRun(NewRun{File: file})
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// work runs everything that is queued for a machine, and returns the names of the jobs in that order.
func (m *machine) work(outcome func(job string, task wire.BuildTask) wire.TaskResult) (jobs []string) {
	m.t.Helper()
	for {
		got := m.ask(asking(wire.All), 0).Build
		if got == nil {
			return jobs
		}
		b := m.build(got.ID)
		jobs = append(jobs, b.Job)
		m.run(got.ID, func(task wire.BuildTask) wire.TaskResult {
			if outcome == nil {
				return wire.TaskResult{Success: true}
			}
			return outcome(b.Job, task)
		})
	}
}

func (w *world) states(id string) map[string]State {
	w.t.Helper()
	r, err := w.server.FindRun(id)
	if err != nil {
		w.t.Fatal(err)
	}
	states := map[string]State{"": r.State}
	for _, j := range r.Jobs {
		states[r.Name+"/"+j.Job] = j.State
		states[strings.TrimPrefix(j.Name, r.Name+"/")] = j.State
	}
	return states
}

// fast is a controller whose agents may ask as often as they like.
func fast() Options { return Options{AskSpacing: time.Nanosecond, StatusSpacing: time.Nanosecond} }

const chain = `name: chain
jobs:
  build:
    steps: [{id: make, script: x}]
  test:
    needs: build
    matrix: {go: [a, b]}
    steps: [{script: "echo ${{ jobs.build.steps.make.outputs.count }}"}]
  ship:
    needs: test
    steps: [{script: x}]
  tell:
    needs: [ship]
    always: true
    steps: [{script: x}]
`

func TestJobsRunWhenWhatTheyNeedIsDone(t *testing.T) {
	w := serve(t, fast())
	m := w.imported(NewAgent{})
	m.settle()
	r := w.submitRun(chain)
	if r.Number != 1 || len(r.Jobs) != 5 || r.State != Queued || r.Jobs[0].State != Queued || r.Jobs[1].State != Blocked || r.Jobs[1].Number != r.Jobs[0].Number+1 {
		t.Fatalf("submitted %+v", r)
	}
	first := m.ask(asking(wire.All), 0).Build
	if first == nil || first.ID != r.Jobs[0].Build {
		t.Fatalf("first %+v", first)
	}
	if second := m.ask(asking(wire.All, first.ID), 0).Build; second != nil {
		t.Fatalf("%s was handed out before what it needs was over", second.ID)
	}
	vars := m.start(first.ID)
	if vars.JobID == nil || *vars.JobID != "build" {
		t.Errorf("job id %v", vars.JobID)
	}
	task := m.claimTask(first.ID)
	m.complete(first.ID, wire.TaskResult{TaskID: *task.TaskID, Success: true, SensitiveKeys: []string{"jobs.build.steps.make.outputs.key"},
		BuildResult: map[string]string{"jobs.build.steps.make.outputs.count": "42", "jobs.build.steps.make.outputs.key": "hush", "OTHER": "no"}})
	m.end(first.ID)
	if s := w.states(r.ID); s["test (a)"] != Queued || s["test (b)"] != Queued || s["ship"] != Blocked || s[""] != Running {
		t.Errorf("after the first: %v", s)
	}
	for range 2 {
		got := m.ask(asking(wire.All), 0).Build
		if got == nil {
			t.Fatal("a released build is not handed out")
		}
		vars := m.start(got.ID)
		if v := vars.Variables; v["jobs.build.steps.make.outputs.count"] != "42" || v["jobs.build.result"] != "succeeded" || v["OTHER"] != "" || v["matrix.go"] == "" {
			t.Errorf("variables %v", v)
		}
		for _, v := range vars.VariablesWithType {
			if *v.Sensitive != (v.Key == "jobs.build.steps.make.outputs.key") {
				t.Errorf("%s: sensitive %v", v.Key, *v.Sensitive)
			}
		}
		if shown := w.build(got.ID).Variables["jobs.build.steps.make.outputs.key"]; shown != masked {
			t.Errorf("the operator sees %q", shown)
		}
		task := m.claimTask(got.ID)
		m.complete(got.ID, wire.TaskResult{TaskID: *task.TaskID, Success: true})
		m.end(got.ID)
	}
	if got := m.work(nil); !slices.Equal(got, []string{"ship", "tell"}) {
		t.Errorf("then %v", got)
	}
	if end, err := w.server.FindRun("1"); err != nil || end.State != Succeeded || end.FinishedAt == 0 || end.Jobs[4].State != Succeeded || end.Jobs[4].FinishedAt == 0 {
		t.Errorf("end %+v %v", end, err)
	}
}

func TestAFailedJobSkipsWhatNeedsIt(t *testing.T) {
	w := serve(t, fast())
	m := w.imported(NewAgent{})
	m.settle()
	r := w.submitRun(chain)
	failed := 0
	got := m.work(func(job string, _ wire.BuildTask) wire.TaskResult {
		if job == "test" && failed == 0 {
			failed++
			return wire.TaskResult{}
		}
		return wire.TaskResult{Success: true}
	})
	if !slices.Equal(got, []string{"build", "test", "test", "tell"}) {
		t.Errorf("ran %v", got)
	}
	s := w.states(r.ID)
	if s["test (a)"] != Failed || s["test (b)"] != Succeeded || s["ship"] != Skipped || s["tell"] != Succeeded || s[""] != Failed {
		t.Errorf("%v", s)
	}
	end, err := w.server.FindRun(r.ID)
	if err != nil || !strings.HasPrefix(end.Message, "job test (a) failed") || end.Jobs[3].Message != "job test (a), which it needs, is failed" {
		t.Errorf("%+v %v", end, err)
	}
	if b := w.build(end.Jobs[3].Build); b.State != Skipped || b.Steps[0].State != Skipped || b.Run != r.ID || b.RunNumber != 1 {
		t.Errorf("skipped build %+v", b)
	}
	if result := w.build(end.Jobs[4].Build).Variables["jobs.ship.result"]; result != "skipped" {
		t.Errorf("the job that always runs hears that ship is %q", result)
	}
}

func TestARunIsCancelledAndRunAgain(t *testing.T) {
	w := serve(t, fast())
	m := w.imported(NewAgent{})
	m.settle()
	r := w.submitRun("jobs:\n  a:\n    steps: [{script: x}]\n  b:\n    needs: a\n    steps: [{script: x}]\n  c:\n    needs: b\n    always: true\n    steps: [{script: x}]\n")
	first := m.ask(asking(wire.All), 0).Build
	m.start(first.ID)
	task := m.claimTask(first.ID)
	said, err := w.server.CancelRun(r.ID)
	if err != nil || said.State.Over() || !said.CancelRequested {
		t.Fatalf("cancel: %+v %v", said, err)
	}
	if s := w.states(r.ID); s["b"] != Cancelled || s["c"] != Cancelled || s["a"] != Running {
		t.Errorf("%v", s)
	}
	m.complete(first.ID, wire.TaskResult{TaskID: *task.TaskID})
	m.end(first.ID)
	if s := w.states(r.ID); s["a"] != Cancelled || s[""] != Cancelled {
		t.Errorf("%v", s)
	}
	again, err := w.server.Rerun(r.ID)
	if err != nil || again.RerunOf != r.ID || again.Number != 2 || again.ID == r.ID {
		t.Fatalf("again: %+v %v", again, err)
	}
	if got := m.work(nil); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("ran %v", got)
	}
	if s := w.states(again.ID); s[""] != Succeeded {
		t.Errorf("%v", s)
	}
	if list, err := w.server.Runs(10, 0); err != nil || len(list) != 2 || list[0].ID != again.ID || list[1].State != Cancelled {
		t.Errorf("%+v %v", list, err)
	}
}

// TestACancelledRunStaysOne: the controller is killed when it has written that the run is to be cancelled, and nothing else.
func TestACancelledRunStaysOne(t *testing.T) {
	opts := fast()
	opts.Dir = t.TempDir()
	w := restarted(t, opts)
	r := w.submitRun(chain)
	w.server.mu.Lock()
	w.server.runs[r.ID].CancelRequested = true
	saved := w.server.saveRun(w.server.runs[r.ID])
	w.server.mu.Unlock()
	if err := saved.wait(); err != nil {
		t.Fatal(err)
	}
	w.close()
	w = restarted(t, opts)
	defer w.close()
	for name, state := range w.states(r.ID) {
		if state != Cancelled {
			t.Errorf("%q is %s", name, state)
		}
	}
	if len(w.server.queue) != 0 {
		t.Errorf("%d builds in the queue", len(w.server.queue))
	}
}

func TestACancelledBuildSkipsWhatNeedsIt(t *testing.T) {
	w := serve(t, fast())
	r := w.submitRun("jobs:\n  a:\n    steps: [{script: x}]\n  b:\n    needs: a\n    steps: [{script: x}]\n")
	if _, err := w.server.Cancel(r.Jobs[0].Build); err != nil {
		t.Fatal(err)
	}
	if s := w.states(r.ID); s["a"] != Cancelled || s["b"] != Skipped || s[""] != Cancelled {
		t.Errorf("%v", s)
	}
}

// TestARunGoesOnAfterAnyStop stops the controller without a word after each event of a run; what was released before is
// not released again.
func TestARunGoesOnAfterAnyStop(t *testing.T) {
	opts := fast()
	opts.Dir = t.TempDir()
	var m *machine
	open := func() (*world, func()) {
		s, err := Open(opts)
		if err != nil {
			t.Fatal(err)
		}
		w := &world{t: t, server: s, http: httpOf(s), url: "http://controller"}
		return w, func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	w, closed := open()
	m = w.imported(NewAgent{})
	m.settle()
	r := w.submitRun(chain)
	again := func() {
		t.Helper()
		closed()
		w, closed = open()
		m.world, m.client.HTTP = w, httpOf(w.server)
		m.settle()
	}
	var ran []string
	for range 5 {
		again()
		got := m.ask(asking(wire.All), 0).Build
		if got == nil {
			t.Fatalf("nothing is queued after %v: %v", ran, w.states(r.ID))
		}
		ran = append(ran, w.build(got.ID).Job)
		m.start(got.ID)
		again()
		task := m.claimTask(got.ID)
		m.complete(got.ID, wire.TaskResult{TaskID: *task.TaskID, Success: true, BuildResult: map[string]string{"jobs.build.steps.make.outputs.count": "42"}})
		again()
		m.end(got.ID)
	}
	again()
	if want := []string{"build", "test", "test", "ship", "tell"}; !slices.Equal(ran, want) {
		t.Errorf("ran %v, want %v", ran, want)
	}
	if got := m.ask(asking(wire.All), 0).Build; got != nil {
		t.Errorf("%s came once more", got.ID)
	}
	if s := w.states(r.ID); s[""] != Succeeded {
		t.Errorf("%v", s)
	}
	closed()
}

// TestAJobThatEndedWhileNobodyLookedReleasesTheNext: the end of the first build is on disk, and nothing of what
// follows from it.
func TestAJobThatEndedWhileNobodyLookedReleasesTheNext(t *testing.T) {
	opts := fast()
	opts.Dir = t.TempDir()
	s, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, server: s, http: httpOf(s), url: "http://controller"}
	r := w.submitRun(chain)
	s.mu.Lock()
	b := s.builds[r.Jobs[0].Build]
	b.close(Succeeded, "", time.Now())
	saved := s.save(b)
	s.mu.Unlock()
	if err := errors.Join(saved.wait(), s.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if s, err = Open(opts); err != nil {
			t.Fatal(err)
		}
		w.server = s
		if got := w.states(r.ID); got["build"] != Succeeded || got["test (a)"] != Queued || got["test (b)"] != Queued || got["ship"] != Blocked {
			t.Errorf("%v", got)
		}
		if len(s.queue) != 2 {
			t.Errorf("%d builds in the queue", len(s.queue))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestARunIsWrittenAsAWhole(t *testing.T) {
	w := serve(t, Options{Dir: t.TempDir()})
	w.server.store.fail = func() error { return errors.New("no room") }
	if _, err := w.server.SubmitRun(NewRun{File: chain}); err == nil {
		t.Fatal("it was accepted")
	}
	w.server.store.lead <- struct{}{}
	w.server.store.fail = nil
	<-w.server.store.lead
	if list, err := w.server.Builds(10, 0, false); err != nil || len(list) != 0 {
		t.Errorf("%+v %v", list, err)
	}
	if list, err := w.server.Runs(10, 0); err != nil || len(list) != 0 {
		t.Errorf("%+v %v", list, err)
	}
}

func TestRunsByTheAPI(t *testing.T) {
	w := serve(t, fast())
	header := http.Header{"Authorization": {"Bearer " + string(w.server.Token())}}
	r := w.call("POST", "/api/v1/runs", header, map[string]any{"file": chain, "name": "other", "labels": []string{"gpu"}, "variables": map[string]string{"A": "b"}, "timeout": "5m"})
	if r.code != 200 || !strings.Contains(string(r.body), `"name":"other/test (a)"`) {
		t.Fatalf("%d %s", r.code, r.body)
	}
	b := w.build("1")
	if !slices.Equal(b.Labels, []string{"gpu"}) || b.Variables["A"] != "b" {
		t.Errorf("%+v", b)
	}
	for _, c := range []struct {
		method, path string
		body         any
		code         int
		want         string
	}{
		{"GET", "/runs", nil, 200, `"number":1`},
		{"GET", "/runs/1", nil, 200, `"state":"queued"`},
		{"GET", "/runs/r-none", nil, 404, "no such thing"},
		{"POST", "/runs", map[string]any{"file": "jobs:\n  a:\n    needs: b\n"}, 400, "line 3"},
		{"POST", "/runs", map[string]any{"file": chain, "project": "a b"}, 400, "project"},
		{"POST", "/runs", map[string]any{"text": chain}, 400, "text"},
		{"POST", "/runs/1/cancel", nil, 200, `"state":"cancelled"`},
		{"POST", "/runs/1/cancel", nil, 200, `"state":"cancelled"`},
		{"POST", "/runs/1/rerun", nil, 200, `"name":"other"`},
	} {
		if r := w.call(c.method, "/api/v1"+c.path, header, c.body); r.code != c.code || !strings.Contains(string(r.body), c.want) {
			t.Errorf("%s %s: %d %s, want %d %s", c.method, c.path, r.code, r.body, c.code, c.want)
		}
	}
	if b := w.build("6"); !slices.Equal(b.Labels, []string{"gpu"}) || b.Variables["A"] != "b" {
		t.Errorf("the second time %+v", b)
	}
}
