package controller

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// BenchmarkLogLines: lines acknowledged per second, on disk, from four workers that post 1,000 lines at a time.
func BenchmarkLogLines(b *testing.B) {
	s, err := Open(Options{Dir: b.TempDir(), MaxLogLines: 1 << 40})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	lines := make([]Line, 1000)
	for i := range lines {
		lines[i] = Line{At: int64(i), Tag: "e-00112233445566778899aabbccddeeff", Type: wire.LogNormal,
			Message: fmt.Sprintf("%d: a line of a usual length, as a compiler or a test prints it", i)}
	}
	var workers sync.WaitGroup
	for w := range 4 {
		workers.Go(func() {
			for range (b.N + 3) / 4 {
				if err := s.store.appendLog(int64(w), 0, append([]Line(nil), lines...)).wait(); err != nil {
					b.Error(err)
				}
			}
		})
	}
	workers.Wait()
	b.ReportMetric(float64(b.N)*1000/b.Elapsed().Seconds(), "lines/s")
}

// BenchmarkHandOut: from Submit to the claimed job, both on disk.
func BenchmarkHandOut(b *testing.B) {
	s, err := Open(Options{Dir: b.TempDir(), CallsPerSecond: -1})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	w := &world{server: s, http: httpOf(s), url: "http://controller"}
	id, err := s.CreateAgent(NewAgent{})
	if err != nil {
		b.Fatal(err)
	}
	client := &wire.Client{Gateway: w.url, Identity: id, HTTP: w.http}
	if _, err := client.Startup(b.Context(), wire.Startup{HostName: "h", HostIP: "1.1.1.1", DetectOS: "linux"}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		build, err := s.Submit("", oneStep("x"))
		if err != nil {
			b.Fatal(err)
		}
		if got, _, err := client.Claim(b.Context(), wire.All, 0); err != nil || got == nil || got.ID != build.ID {
			b.Fatal(got, err)
		}
	}
}

// BenchmarkTickOfARollout: what the timers cost once a second with 10,000 agents, half of them upgraded, and how long
// one agent's place in it takes.
func BenchmarkTickOfARollout(b *testing.B) {
	s, err := Open(Options{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	now := time.Now()
	r := newRollout(Rollout{ID: 1, Version: "v2", Labels: []string{"linux", "gpu"}, State: Rolling}, newRelease(Release{Version: "v2", Files: []ReleaseFile{
		{Name: "upgrade/devopsAgent_linux"}, {Name: "upgrade/devopsDaemon_linux"}, {Name: "upgrade/upgrader_linux"}}}))
	s.releases["v2"], s.rollouts = r.release, []*rollout{r}
	var last *agent
	for i := range 10_000 {
		a := newAgent(now)
		a.Agent = Agent{ID: fmt.Sprint(i), Status: wire.ImportOK, OS: "linux", Arch: "amd64", Labels: []string{"gpu"}, AgentVersion: "v1"}
		s.agents[a.ID] = a
		if i%2 == 0 {
			m := &member{Member: Member{Agent: a.ID, State: Upgraded, Confirmed: i > 100}, since: now}
			r.members[a.ID] = m
			r.add(m, 1)
			a.AgentVersion = "v2"
		}
		last = a
	}
	b.Run("tick", func(b *testing.B) {
		for b.Loop() {
			s.lapseRollouts(now)
		}
	})
	b.Run("ask", func(b *testing.B) {
		for b.Loop() {
			s.observe(last, now)
			s.wanted(last, last.reported())
		}
	})
}

// BenchmarkIdleCalls: what the calls of an idle fleet of 10,000 cost without a network, one after another.
func BenchmarkIdleCalls(b *testing.B) {
	s, err := Open(Options{Dir: b.TempDir(), AskSpacing: time.Nanosecond, StatusSpacing: time.Nanosecond, HeartbeatSpacing: time.Nanosecond})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	ids, err := s.CreateAgents(NewAgent{Labels: []string{"gpu"}}, 10_000)
	if err != nil {
		b.Fatal(err)
	}
	clients := make([]*wire.Client, len(ids))
	for i, id := range ids {
		clients[i] = &wire.Client{Gateway: "http://controller", Identity: id, HTTP: httpOf(s)}
		s.agents[id.Agent].Status = wire.ImportOK
	}
	beat := wire.Heartbeat{MasterVersion: "v1", SlaveVersion: "v1", HostName: "h", AgentIP: "1.1.1.1", AgentInstallPath: "/a", StartedUser: "u",
		Props: wire.HostProps{Arch: "amd64", JDKVersion: []string{"1", "2", "3"}}}
	for _, call := range []struct {
		name string
		make func(c *wire.Client) error
	}{
		{"status", func(c *wire.Client) error { _, err := c.Status(b.Context()); return err }},
		{"claim", func(c *wire.Client) error { _, _, err := c.Claim(b.Context(), wire.All, 0); return err }},
		{"heartbeat", func(c *wire.Client) error { _, err := c.Beat(b.Context(), beat); return err }},
		{"ask", func(c *wire.Client) error {
			_, err := c.Ask(b.Context(), wire.Ask{Enable: wire.AskEnable{Build: wire.All, Upgrade: true}, Heartbeat: beat, Upgrade: &wire.UpgradeCheck{GoAgentVersion: "v1"}}, 0)
			return err
		}},
	} {
		b.Run(call.name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := call.make(clients[i%len(clients)]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkDispatch: a build is given to one of 10,000 waiting agents, behind 10,000 builds of ten kinds that none of them fits.
func BenchmarkDispatch(b *testing.B) {
	s, err := Open(Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	now := time.Now()
	for i := range 10_000 {
		stuck := &build{changed: make(chan struct{})}
		stuck.Number, stuck.Project, stuck.State, stuck.Labels = int64(i), DefaultProject, Queued, []string{fmt.Sprint("nobody", i%10)}
		s.enqueue(stuck)
		a := newAgent(now)
		a.Agent = Agent{ID: fmt.Sprint(i), Project: DefaultProject, Status: wire.ImportOK, OS: "linux", Arch: "amd64", Labels: []string{"gpu"}}
		s.agents[a.ID] = a
		a.waiters = []*waiter{{agent: a, wants: true, wake: make(chan struct{})}}
		s.waiting.PushBack(a.waiters[0])
	}
	number := int64(1 << 40)
	for b.Loop() {
		one := &build{changed: make(chan struct{})}
		number++
		one.Number, one.ID, one.Project, one.State, one.Labels = number, fmt.Sprint(number), DefaultProject, Queued, []string{"gpu"}
		s.mu.Lock()
		s.enqueue(one)
		s.dispatchNew(now)
		if one.State != Handed {
			b.Fatal("it was not given out")
		}
		w := s.waiting.Front() // its request comes back
		for ; w != nil; w = w.Next() {
			if w.Value.(*waiter).given.build == one {
				break
			}
		}
		again := w.Value.(*waiter)
		again.given, again.woken, again.wake = handed{}, false, make(chan struct{})
		delete(again.agent.builds, one.ID)
		s.waiting.MoveToBack(w)
		delete(s.dirty, one)
		s.mu.Unlock()
	}
	s.store.pending = nil // of builds that are on no disk
}
