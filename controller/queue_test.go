package controller

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

func TestAHeldRequestGetsABuildAtOnce(t *testing.T) {
	w := serve(t, Options{})
	for _, c := range []struct {
		name  string
		fetch func(m *machine) (*wire.Build, bool)
	}{
		{"ask", func(m *machine) (*wire.Build, bool) {
			p, err := m.client.Ask(t.Context(), asking(wire.All), 30*time.Second)
			if err != nil {
				t.Error(err)
				return nil, false
			}
			return p.Build, p.Waited
		}},
		{"split", func(m *machine) (*wire.Build, bool) {
			b, waited, err := m.client.Claim(t.Context(), wire.Binary, 30*time.Second)
			if err != nil {
				t.Error(err)
			}
			return b, waited
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := w.imported(NewAgent{})
			m.settle()
			type claimed struct {
				build  *wire.Build
				waited bool
				at     time.Time
			}
			got := make(chan claimed, 1)
			go func() {
				b, waited := c.fetch(m)
				got <- claimed{b, waited, time.Now()}
			}()
			w.held(m.id.Agent)
			queued := time.Now()
			b := w.submit(oneStep("x"))
			it := <-got
			if it.build == nil || it.build.ID != b.ID || !it.waited {
				t.Fatalf("got %+v", it)
			}
			if d := it.at.Sub(queued); d > time.Second {
				t.Errorf("it took %v", d)
			}
			m.run(b.ID, nil)
		})
	}
}

// held waits until an agent has a request that we hold.
func (w *world) held(agent string) {
	w.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for {
		w.server.mu.Lock()
		n := w.server.agents[agent].held
		w.server.mu.Unlock()
		if n > 0 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatal("no request is held")
		}
	}
}

func TestTwentyBuildsAreDispatchedWithinASecond(t *testing.T) {
	w := serve(t, Options{Dir: t.TempDir()})
	m := w.imported(NewAgent{})
	m.settle()
	got := make(chan string, 20)
	go func() {
		defer close(got)
		var running []string
		for len(running) < 20 {
			p, err := m.client.Ask(t.Context(), asking(wire.All, running...), 10*time.Second)
			if err != nil {
				t.Error(err)
				return
			}
			if p.Build != nil {
				running = append(running, p.Build.ID)
				got <- p.Build.ID
			}
		}
	}()
	w.held(m.id.Agent)
	from := time.Now()
	for range 20 {
		w.submit(oneStep("x"))
	}
	seen := make(map[string]bool)
	for id := range got {
		if seen[id] {
			t.Errorf("%s was handed out twice", id)
		}
		seen[id] = true
	}
	if d := time.Since(from); d > time.Second || len(seen) != 20 {
		t.Errorf("%d builds in %v", len(seen), d)
	} else {
		t.Logf("20 builds in %v", d)
	}
}

func TestAnEmptyAnswerIsHeldForAsLongAsAsked(t *testing.T) {
	w := serve(t, Options{})
	m := w.imported(NewAgent{})
	m.settle()
	from := time.Now()
	p := m.ask(asking(wire.All), time.Second)
	if d := time.Since(from); d < 900*time.Millisecond || d > 5*time.Second || !p.Waited || p.AgentStatus != wire.ImportOK || p.Heartbeat == nil {
		t.Errorf("answered after %v: %+v", d, p)
	}
	n := 7
	changed := make(chan *wire.Parts, 1)
	go func() { changed <- m.ask(asking(wire.All), 30*time.Second) }()
	w.held(m.id.Agent)
	if _, err := w.server.ChangeAgent(m.id.Agent, AgentChange{Parallel: &n}); err != nil {
		t.Fatal(err)
	}
	if p := <-changed; p.Heartbeat.ParallelTaskCount == nil || *p.Heartbeat.ParallelTaskCount != n {
		t.Errorf("a changed setting: %+v", p.Heartbeat)
	}
}

func TestPreferIsReadAsRFC7240Says(t *testing.T) {
	for header, want := range map[string]string{
		"wait=2": "wait=2", "respond-async, wait=5": "wait=5", `Wait = "3"`: "wait=3", "wait=600": "wait=60", "wait=0": "", "wait=x": "", "waiting=3": "",
		"wait=4; foo=bar": "wait=4",
	} {
		w := &recorder{header: make(http.Header)}
		r := &http.Request{Header: http.Header{"Prefer": {header}}}
		preferredWait(w, r)
		if got := w.header.Get("Preference-Applied"); got != want {
			t.Errorf("Prefer: %s: applied %q, want %q", header, got, want)
		}
	}
}

func TestWhoMayHaveABuild(t *testing.T) {
	w := serve(t, Options{AskSpacing: time.Nanosecond})
	linux := w.imported(NewAgent{Labels: []string{"gpu"}})
	windows := w.imported(NewAgent{OS: "windows"})
	other := w.imported(NewAgent{Project: "other"})
	for _, m := range []*machine{linux, windows, other} {
		m.settle()
	}
	fresh := w.machine(NewAgent{})
	for _, c := range []struct {
		name string
		spec Spec
		m    *machine
		kind wire.BuildKind
		want bool
	}{
		{"anybody's", oneStep("x"), linux, wire.All, true},
		{"no room for host builds", oneStep("x"), linux, wire.Docker, false},
		{"no room at all", oneStep("x"), linux, wire.None, false},
		{"an unknown kind counts as ALL", oneStep("x"), linux, "MANY", true},
		{"another project", oneStep("x"), other, wire.All, false},
		{"a label it has", Spec{Labels: []string{"gpu", "linux"}, Steps: oneStep("x").Steps}, linux, wire.All, true},
		{"a label it lacks", Spec{Labels: []string{"tpu"}, Steps: oneStep("x").Steps}, linux, wire.All, false},
		{"bash on windows", Spec{Steps: []Step{{Script: "x", Shell: "bash"}}}, windows, wire.All, false},
		{"powershell on linux", Spec{Steps: []Step{{Script: "x", Shell: "powershell"}}}, linux, wire.All, false},
		{"powershell on windows", Spec{Steps: []Step{{Script: "x", Shell: "powershell"}}}, windows, wire.All, true},
		{"a machine that was never imported", oneStep("x"), fresh, wire.All, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := w.submit(c.spec)
			got := c.m.ask(asking(c.kind), 0).Build
			if (got != nil) != c.want {
				t.Errorf("got %+v", got)
			}
			if _, err := w.server.Cancel(b.ID); err != nil {
				t.Error(err)
			}
			if end := w.build(b.ID); end.State != Cancelled {
				t.Errorf("cancelled before its start: %s", end.State)
			}
		})
	}
	b := w.submit(Spec{Steps: []Step{{Script: "Get-Date", Shell: "powershell"}}})
	if windows.ask(asking(wire.All), time.Second).Build == nil {
		t.Fatal("no build")
	}
	windows.start(b.ID)
	if task := windows.claimTask(b.ID); *task.Type != wire.TaskWindowsScript || task.Params["scriptType"] != "POWER_SHELL" || task.Params["script"] != "Get-Date" {
		t.Errorf("task: %+v", task)
	}
}

func TestAHangUpLosesNoBuild(t *testing.T) {
	w := serve(t, Options{LostAfter: 200 * time.Millisecond})
	m := w.imported(NewAgent{})
	m.settle()
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			_, _ = m.client.Ask(ctx, asking(wire.All), 30*time.Second)
		}()
		w.held(m.id.Agent)
		var both sync.WaitGroup
		var b Build
		both.Go(cancel)
		both.Go(func() { b = w.submit(oneStep("x")) })
		both.Wait()
		<-gone
		// Either it was never given away, or it was just before the hang-up: then the agent that does not list it gets it again.
		deadline := time.After(20 * time.Second)
		for found := false; !found; {
			p := m.ask(asking(wire.All), time.Second)
			found = p.Build != nil && p.Build.ID == b.ID
			select {
			case <-deadline:
				t.Fatalf("the build is lost: %+v", w.build(b.ID))
			default:
			}
		}
		m.run(b.ID, nil)
	}
}

// failing is a connection that takes no answer.
type failing struct{ recorder }

func (f *failing) Write([]byte) (int, error) { return 0, net.ErrClosed }

func TestAnAnswerThatCannotBeWrittenTakesTheBuildBack(t *testing.T) {
	w := serve(t, Options{})
	m := w.imported(NewAgent{})
	b := w.submit(oneStep("x"))
	r, err := http.NewRequest("GET", wire.PathClaim+"?buildType=ALL", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = m.header()
	w.server.Handler().ServeHTTP(&failing{recorder{header: make(http.Header)}}, r)
	if got := w.build(b.ID); got.State != Queued || got.HandOuts != 0 {
		t.Errorf("%+v", got)
	}
}

func TestABuildLostOnTheWireIsGivenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inBubble(t, Options{})
		m := w.imported(NewAgent{})
		m.settle()
		b := w.submit(oneStep("x"))
		if m.ask(asking(wire.All), time.Second).Build == nil {
			t.Fatal("no build")
		}
		// The answer was lost: the agent asks again a moment later, and is asked to ask once more after LostAfter.
		from := time.Now()
		for {
			if p := m.ask(asking(wire.All), 30*time.Second); p.Build != nil {
				break
			}
		}
		if d := time.Since(from); d < 4*time.Second || d > 6*time.Second {
			t.Errorf("given again after %v", d)
		}
		// It lists the build from now on, so it keeps it, started or not.
		from = time.Now()
		if p := m.ask(asking(wire.All, b.ID), 30*time.Second); p.Build != nil || time.Since(from) < 4*time.Second {
			t.Errorf("after %v: %+v", time.Since(from), p.Build)
		}
		from = time.Now()
		if p := m.ask(asking(wire.All, b.ID), 30*time.Second); p.Build != nil || time.Since(from) < 29*time.Second {
			t.Errorf("after %v: %+v", time.Since(from), p.Build)
		}
		m.start(b.ID)
		if p := m.ask(asking(wire.All), 20*time.Second); p.Build != nil {
			t.Errorf("handed out after its start: %+v", p.Build)
		}
		// The split generation says what it runs in its heartbeats.
		b = w.submit(oneStep("y"))
		if got, _, err := m.client.Claim(t.Context(), wire.All, 0); err != nil || got == nil {
			t.Fatal(got, err)
		}
		time.Sleep(10 * time.Second)
		if _, err := m.client.Beat(t.Context(), beat()); err != nil {
			t.Fatal(err)
		}
		if got := w.build(b.ID); got.State != Queued {
			t.Errorf("after a heartbeat without it: %s", got.State)
		}
	})
}

// inBubble is a controller in memory, called without a network, inside a synctest bubble.
func inBubble(t *testing.T, opts Options) *world {
	t.Helper()
	s, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ended
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &world{t: t, server: s, http: &http.Client{Transport: s.Transport()}, url: "http://controller"}
}

func TestTimersEndWhatVanished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inBubble(t, Options{})
		m := w.imported(NewAgent{})
		begin := func() Build {
			if _, err := m.client.Beat(t.Context(), beat()); err != nil {
				t.Fatal(err)
			}
			b := w.submit(oneStep("x"))
			if got, _, err := m.client.Claim(t.Context(), wire.All, 0); err != nil || got == nil {
				t.Fatal(got, err)
			}
			return b
		}
		b := begin() // never started
		synctestUntil(t, w, b.ID, Queued, 3*time.Minute)
		if _, err := m.client.Beat(t.Context(), beat()); err != nil {
			t.Fatal(err)
		}
		if got, _, err := m.client.Claim(t.Context(), wire.All, 0); err != nil || got == nil || got.ID != b.ID {
			t.Fatal(got, err)
		}
		m.start(b.ID)
		synctestUntil(t, w, b.ID, Failed, 10*time.Minute) // silent

		b = begin() // silent while it is being cancelled
		m.start(b.ID)
		task := m.claimTask(b.ID)
		if _, err := w.server.Cancel(b.ID); err != nil {
			t.Fatal(err)
		}
		var said wire.WorkerHeartbeatReply
		m.worker(b.ID, "POST", wire.PathWorkerHeartbeat, wire.WorkerHeartbeat{}, &said)
		if len(said.CancelTaskIDs) != 1 || said.CancelTaskIDs[0] != *task.TaskID {
			t.Errorf("cancel list: %v", said.CancelTaskIDs)
		}
		synctestUntil(t, w, b.ID, Failed, 20*time.Second)

		b = begin() // overruns its limit
		m.start(b.ID)
		stop := make(chan struct{})
		go func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Minute):
					m.worker(b.ID, "POST", wire.PathWorkerHeartbeat, wire.WorkerHeartbeat{}, nil)
				}
			}
		}()
		synctestUntil(t, w, b.ID, Failed, jobLimit+time.Minute)
		close(stop)

		// Nothing was heard of the agent for hours.
		if a, err := w.server.FindAgent(m.id.Agent); err != nil || a.Status != wire.ImportException {
			t.Errorf("%+v %v", a, err)
		}
		if _, err := m.client.Beat(t.Context(), beat()); err != nil {
			t.Fatal(err)
		}
		if a, _ := w.server.FindAgent(m.id.Agent); a.Status != wire.ImportOK {
			t.Errorf("after a heartbeat: %s", a.Status)
		}
		// A held request is a sign of life.
		if _, _, err := m.client.Claim(t.Context(), wire.All, 55*time.Second); err != nil {
			t.Fatal(err)
		}
		if a, _ := w.server.FindAgent(m.id.Agent); a.Status != wire.ImportOK {
			t.Errorf("after a held request: %s", a.Status)
		}
	})
}

// synctestUntil lets the bubble's time pass until the build has a state, and checks how much that was.
func synctestUntil(t *testing.T, w *world, id string, want State, after time.Duration) {
	t.Helper()
	from := time.Now()
	for w.build(id).State != want {
		if time.Since(from) > after+2*time.Second {
			t.Fatalf("%s after %v, want %s", w.build(id).State, time.Since(from), want)
		}
		time.Sleep(500 * time.Millisecond)
	}
	if d := time.Since(from); d < after-2*time.Second {
		t.Errorf("%s after %v, want %v", want, d, after)
	}
}

func TestCancelEndsARunningBuild(t *testing.T) {
	w := serve(t, Options{})
	m := w.imported(NewAgent{})
	m.settle()
	b := w.submit(Spec{Steps: []Step{{Script: "x"}, {Script: "y"}}})
	m.ask(asking(wire.All), time.Second)
	m.start(b.ID)
	task := m.claimTask(b.ID)
	if got, err := w.server.Cancel(b.ID); err != nil || got.State != Running || !got.CancelRequested {
		t.Fatal(got, err)
	}
	m.complete(b.ID, wire.TaskResult{TaskID: *task.TaskID})
	if task := m.claimTask(b.ID); task.Status != wire.TaskEnd {
		t.Errorf("claim while being cancelled: %+v", task)
	}
	m.end(b.ID)
	if end := w.build(b.ID); end.State != Cancelled || end.Steps[0].State != Cancelled || end.Steps[1].State != Skipped {
		t.Errorf("%+v", end)
	}
}

func TestAgentReportsOfBuildsThatAreNotOver(t *testing.T) {
	w := serve(t, Options{})
	m := w.imported(NewAgent{})
	m.settle()
	for _, c := range []struct {
		name    string
		start   bool
		finish  wire.Finish
		message string
	}{
		{"worker died with success", true, wire.Finish{Success: true}, "its worker ended without reporting the end of the build"},
		{"worker died without a word", true, wire.Finish{Success: true, Message: "the worker process (pid 7) ended (signal: killed)"},
			"its worker ended without reporting the end of the build: the worker process (pid 7) ended (signal: killed)"},
		{"worker never said hello", false, wire.Finish{Success: true}, "its worker ended without ever reporting its start"},
		{"worker died", true, wire.Finish{Message: "out of memory", Error: &wire.BuildError{Type: "USER", Message: "it died", Code: 2128040}}, "its worker died: out of memory (code 2128040)"},
		{"no java", false, wire.Finish{Error: &wire.BuildError{Type: "USER", Message: "java not found", Code: 2128044}}, "its worker did not start: java not found (code 2128044)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := w.submit(oneStep("x"))
			got := m.ask(asking(wire.All), time.Second).Build
			if got == nil {
				t.Fatal("no build")
			}
			if c.start {
				m.start(b.ID)
			}
			c.finish.Build = *got
			if err := m.client.Finish(t.Context(), c.finish); err != nil {
				t.Fatal(err)
			}
			if end := w.build(b.ID); end.State != Failed || end.Message != c.message {
				t.Errorf("%s: %q, want %q", end.State, end.Message, c.message)
			}
			if r := m.worker(b.ID, "GET", wire.PathWorkerClaim, nil, nil); r.env.ErrorCode != wire.CodeBuildEnded {
				t.Errorf("claim afterwards: %s", r.body)
			}
		})
	}
}

func TestASecondWorkerIsRefusedAndARetryIsNot(t *testing.T) {
	w := serve(t, Options{})
	m, thief := w.imported(NewAgent{}), w.imported(NewAgent{})
	m.settle()
	b := w.submit(oneStep("x"))
	m.ask(asking(wire.All), time.Second)
	if r := thief.worker(b.ID, "PUT", wire.PathWorkerStarted, nil, nil); r.code != 401 || r.env.ErrorCode != wire.CodeBuildEnded {
		t.Errorf("a worker of another agent: %d %s", r.code, r.body)
	}
	m.start(b.ID)
	if r := m.worker(b.ID, "PUT", wire.PathWorkerStarted+"?retryCount=0", nil, nil); r.code != 400 || r.env.ErrorCode != wire.CodeAlreadyStarted {
		t.Errorf("a second worker: %d %s", r.code, r.body)
	}
	if r := m.worker(b.ID, "PUT", wire.PathWorkerStarted+"?retryCount=2", nil, nil); r.code != 200 {
		t.Errorf("a retry: %d %s", r.code, r.body)
	}
	if r := m.worker("b-unknown", "PUT", wire.PathWorkerStarted, nil, nil); r.code != 401 || r.env.ErrorCode != wire.CodeBuildEnded {
		t.Errorf("an unknown build: %d %s", r.code, r.body)
	}
}

func TestADiskThatRefusesLosesNothing(t *testing.T) {
	w := serve(t, Options{Dir: t.TempDir()})
	m := w.imported(NewAgent{})
	m.settle()
	b := w.submit(oneStep("x"))
	full := errors.New("no space left on device")
	breaking := func(err error) {
		w.server.store.lead <- struct{}{}
		w.server.store.fail = func() error { return err }
		<-w.server.store.lead
	}
	breaking(full)
	if _, err := w.server.Submit("", oneStep("x")); !errors.Is(err, full) {
		t.Errorf("submit: %v", err)
	}
	if p := m.ask(asking(wire.All), time.Second); p.Build != nil {
		t.Errorf("handed out without a record: %+v", p.Build)
	}
	breaking(nil)
	if p := m.ask(asking(wire.All), time.Second); p.Build == nil || p.Build.ID != b.ID {
		t.Fatalf("not handed out: %+v", p.Build)
	}
	m.start(b.ID)
	breaking(full)
	if task := m.claimTask(b.ID); task.Status != wire.TaskWait {
		t.Errorf("claim without a record: %+v", task)
	}
	if r := m.worker(b.ID, "POST", wire.PathLogsMulti, []wire.LogLine{{Message: "x"}}, nil); r.code != 503 {
		t.Errorf("log: %d %s", r.code, r.body)
	}
	breaking(nil)
	task := m.claimTask(b.ID)
	if task.Status != wire.TaskDo {
		t.Fatalf("claim: %+v", task)
	}
	breaking(full)
	if r := m.worker(b.ID, "POST", wire.PathWorkerComplete, wire.TaskResult{TaskID: *task.TaskID, Success: true}, nil); r.code != 503 {
		t.Errorf("complete: %d", r.code)
	}
	breaking(nil)
	m.complete(b.ID, wire.TaskResult{TaskID: *task.TaskID, Success: true})
	m.end(b.ID)
	if end := w.build(b.ID); end.State != Succeeded {
		t.Errorf("%+v", end)
	}
}

func TestABuildThatWasGivenUpMayStillStartOnce(t *testing.T) {
	w := serve(t, Options{AskSpacing: time.Nanosecond, LostAfter: time.Nanosecond})
	m, other := w.imported(NewAgent{}), w.imported(NewAgent{})
	b := w.submit(oneStep("x"))
	if m.ask(asking(wire.All), 0).Build == nil {
		t.Fatal("no build")
	}
	m.ask(asking(wire.None), 0) // does not list it
	if got := w.build(b.ID); got.State != Queued {
		t.Fatalf("%+v", got)
	}
	m.start(b.ID)
	if got := other.ask(asking(wire.All), 0).Build; got != nil {
		t.Errorf("handed out after its start: %+v", got)
	}
	w.server.mu.Lock()
	w.server.requeue(w.server.builds[b.ID], "test")
	w.server.mu.Unlock()
	if got := w.build(b.ID); got.State != Running {
		t.Errorf("re-queued after its start: %s", got.State)
	}
	// Given to another agent meanwhile, the late worker has no session any more.
	b = w.submit(oneStep("y"))
	if m.ask(asking(wire.All), 0).Build == nil || other.ask(asking(wire.None), 0).Build != nil {
		t.Fatal("no build")
	}
	m.ask(asking(wire.None), 0)
	if got := other.ask(asking(wire.All), 0).Build; got == nil || got.ID != b.ID {
		t.Fatalf("not given to the other one: %+v", got)
	}
	if r := m.worker(b.ID, "PUT", wire.PathWorkerStarted, nil, nil); r.code != 401 {
		t.Errorf("the late worker: %d %s", r.code, r.body)
	}
	other.run(b.ID, nil)
	if got := w.build(b.ID); got.State != Succeeded {
		t.Errorf("%+v", got)
	}
}

func TestABuildThatNeverBeginsFailsInTheEnd(t *testing.T) {
	w := serve(t, Options{AskSpacing: time.Nanosecond, LostAfter: time.Nanosecond, MaxHandOuts: 3})
	m := w.imported(NewAgent{})
	b := w.submit(oneStep("x"))
	for range 3 {
		if m.ask(asking(wire.All), 0).Build == nil {
			t.Fatal("no build")
		}
	}
	if p := m.ask(asking(wire.All), 0); p.Build != nil {
		t.Errorf("a fourth time: %+v", p.Build)
	}
	if got := w.build(b.ID); got.State != Failed || got.HandOuts != 3 {
		t.Errorf("%+v", got)
	}
}

func TestALastCallThatGotLostDoesNotCostTheBuild(t *testing.T) {
	w := serve(t, Options{})
	m := w.imported(NewAgent{})
	m.settle()
	for _, c := range []struct {
		success bool
		state   State
	}{{true, Succeeded}, {false, Failed}} {
		b := w.submit(oneStep("x"))
		got := m.ask(asking(wire.All), time.Second).Build
		if got == nil {
			t.Fatal("no build")
		}
		m.start(b.ID)
		task := m.claimTask(b.ID)
		m.complete(b.ID, wire.TaskResult{TaskID: *task.TaskID, Success: c.success})
		if err := m.client.Finish(t.Context(), wire.Finish{Build: *got, Success: true}); err != nil {
			t.Fatal(err)
		}
		if end := w.build(b.ID); end.State != c.state {
			t.Errorf("step success %t, worker gone: %s %q, want %s", c.success, end.State, end.Message, c.state)
		}
	}
}

// The worker repeats a call that we answered with 503 under the same retry count (protocol §6.1).
func TestAStartThatTheDiskRefusedMayBeRepeated(t *testing.T) {
	w := serve(t, Options{Dir: t.TempDir()})
	m := w.imported(NewAgent{})
	m.settle()
	b := w.submit(oneStep("x"))
	m.ask(asking(wire.All), time.Second)
	breaking := func(err error) {
		w.server.store.lead <- struct{}{}
		w.server.store.fail = func() error { return err }
		<-w.server.store.lead
	}
	breaking(errors.New("no space left on device"))
	for range 2 {
		if r := m.worker(b.ID, "PUT", wire.PathWorkerStarted+"?retryCount=0", nil, nil); r.code != 503 {
			t.Errorf("with a full disk: %d %s", r.code, r.body)
		}
	}
	breaking(nil)
	m.start(b.ID)
	if r := m.worker(b.ID, "PUT", wire.PathWorkerStarted+"?retryCount=0", nil, nil); r.env.ErrorCode != wire.CodeAlreadyStarted {
		t.Errorf("a second worker: %d %s", r.code, r.body)
	}
}

func TestLimitsDoNotMindTheClockBeingSet(t *testing.T) {
	w := serve(t, Options{JobGrace: time.Nanosecond})
	m := w.imported(NewAgent{})
	m.settle()
	b := w.submit(Spec{Steps: []Step{{Script: "x", Timeout: Duration(time.Hour)}}})
	m.ask(asking(wire.All), time.Second)
	m.start(b.ID)
	m.claimTask(b.ID)
	held, err := w.server.find(b.ID)
	if err != nil {
		t.Fatal(err)
	}
	w.server.mu.Lock()
	day := (24 * time.Hour).Milliseconds()
	held.StartedAt -= day // as if the clock had been put forward by a day since
	held.Steps[0].StartedAt -= day
	cancel := held.toCancel(time.Now())
	w.server.mu.Unlock()
	w.server.lapse(time.Now())
	if now := w.build(b.ID); now.State != Running || cancel != nil {
		t.Errorf("%s %q, steps to cancel: %v", now.State, now.Message, cancel)
	}
	restarted := *held
	restarted.resume(time.Now())
	if !restarted.overTime(0, time.Now()) {
		t.Error("after a restart the stored time must count")
	}
}
