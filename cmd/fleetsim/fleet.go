package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/devops-agent/devops-agent/agent/job"
	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/controller"
)

// fleet is the agents of one profile and their controller.
type fleet struct {
	options
	server *server
	agents []*agent
	tally  atomic.Pointer[tally]
	job    task

	started atomic.Int64
	open    atomic.Int64 // connections
	logged  atomic.Int64

	mu    sync.Mutex
	runs  map[string]int // builds by how often a worker was let begin
	wrong []string       // what no fleet may see
	stop  context.CancelFunc
	all   sync.WaitGroup
}

// newFleet starts a controller on an empty directory and enrols the agents.
func newFleet(ctx context.Context, o options, name string, args ...string) (f *fleet, err error) {
	dir := filepath.Join(o.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f = &fleet{options: o, runs: make(map[string]int)}
	f.server = &server{program: o.program, dir: filepath.Join(dir, "data"), args: args, log: filepath.Join(dir, "controller.log"), tls: o.tls, http: operatorClient()}
	f.tally.Store(newTally())
	if err := f.server.start(ctx); err != nil {
		return nil, err
	}
	var ids []struct {
		ID      string      `json:"id"`
		Project string      `json:"project"`
		Secret  wire.Secret `json:"secret"`
	}
	if err := f.server.do(ctx, "POST", "/agents/batch", map[string]any{"os": "linux", "labels": []string{"sim"}, "count": o.agents}, &ids); err != nil {
		return nil, errors.Join(err, f.server.kill())
	}
	for n, id := range ids {
		a := &agent{fleet: f, number: n, network: newNetwork(n, &f.open), slots: job.NewSlots(1, 1), version: "v1.0.0", chance: rand.New(rand.NewPCG(o.seed, uint64(n)))}
		a.last.Store(-1)
		a.bad.Store(a.chance.Float64() < o.bad)
		client, err := a.network.client(f.server.roots)
		if err != nil {
			return nil, errors.Join(err, f.server.kill())
		}
		a.client = &wire.Client{Gateway: f.server.url, Identity: wire.Identity{Project: id.Project, Agent: id.ID, Secret: id.Secret}, HTTP: client,
			Timeout: o.timeout, MaxBody: 1 << 20}
		f.agents = append(f.agents, a)
	}
	return f, nil
}

// begin starts all agents, spread over the ramp, and returns when all have been accepted. From then on the simulator collects
// no garbage, until end: on machines of their own, agents would not stop all at once for it.
func (f *fleet) begin(ctx context.Context, how manner) error {
	ctx, f.stop = context.WithCancel(ctx)
	spread := rand.New(rand.NewPCG(f.seed, 1<<40))
	for _, a := range f.agents {
		after := time.Duration(spread.Int64N(int64(f.ramp)))
		f.all.Go(func() { a.run(ctx, how, after) })
	}
	for limit := time.Now().Add(f.ramp + 2*time.Minute); f.started.Load() < int64(len(f.agents)); {
		if !sleep(ctx, 50*time.Millisecond, nil) {
			return context.Cause(ctx)
		}
		if time.Now().After(limit) {
			return fmt.Errorf("%d of %d agents were accepted within %v", f.started.Load(), len(f.agents), f.ramp+2*time.Minute)
		}
	}
	settle()
	debug.SetGCPercent(-1)
	return nil
}

// end stops the agents, and the controller.
func (f *fleet) end() error {
	if f.stop != nil {
		f.stop()
	}
	f.all.Wait()
	debug.SetGCPercent(ownGarbage)
	return f.server.kill()
}

// began notes that a worker was let begin a build.
func (f *fleet) began(build string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.runs[build]++
}

func (f *fleet) complain(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.wrong) < 50 {
		f.wrong = append(f.wrong, fmt.Sprintf(format, args...))
	}
}

// count opens a fresh tally. cut says which errors the profile makes by itself; nil is none.
func (f *fleet) count(cut func(error) bool) *tally {
	t := newTally()
	t.cut = cut
	t.open.Store(true)
	for _, a := range f.agents {
		a.last.Store(-1)
	}
	f.tally.Store(t)
	return t
}

// meter measures the controller once a second until ctx ends.
type meter struct {
	at        []float64 // seconds since the beginning
	cores     []float64 // of CPU in use
	rss       []float64 // MiB
	cpu       float64   // seconds of CPU in all
	own       float64   // the simulator's
	others    float64   // all other processes', as far as the system tells
	took      time.Duration
	mostBytes uint64
	mostConns int64 // of all agents
}

func (f *fleet) measure(ctx context.Context) *meter {
	m := &meter{}
	begun := time.Now()
	own, last, lastAt, all := useOf(int32(os.Getpid())).cpu, f.server.use(), begun, machineBusy(ctx)
	note := func() {
		now, u := time.Now(), f.server.use()
		used := max(0, u.cpu-last.cpu)
		m.at = append(m.at, now.Sub(begun).Seconds())
		m.cores = append(m.cores, used/max(1e-3, now.Sub(lastAt).Seconds()))
		m.rss = append(m.rss, float64(u.rss)/(1<<20))
		m.cpu += used
		m.mostBytes = max(m.mostBytes, u.rss)
		m.mostConns = max(m.mostConns, f.open.Load())
		last, lastAt = u, now
	}
	for sleep(ctx, time.Second, nil) {
		note()
	}
	note()
	m.took = time.Since(begun)
	m.own = useOf(int32(os.Getpid())).cpu - own
	m.others = max(0, machineBusy(context.WithoutCancel(ctx))-all-m.own-m.cpu)
	return m
}

// during runs what happens in a profile while it is measured.
func (f *fleet) during(ctx context.Context, what func(ctx context.Context) error) (*meter, error) {
	measuring, done := context.WithCancel(ctx)
	defer done()
	meters := make(chan *meter, 1)
	go func() { meters <- f.measure(measuring) }()
	err := what(ctx)
	done()
	return <-meters, err
}

// submit queues builds, as many in a minute, until ctx ends or there are most of them. They are spread evenly.
func (f *fleet) submit(ctx context.Context, perMinute, most int) (ids []string, err error) {
	every := time.Minute / time.Duration(max(1, perMinute))
	type accepted struct {
		id  string
		err error
	}
	answers := make(chan accepted, most)
	var calls sync.WaitGroup
	next := time.Now()
	for range most {
		if !sleep(ctx, time.Until(next), nil) {
			break
		}
		next = next.Add(every)
		calls.Go(func() {
			var b controller.Build
			err := f.server.do(context.WithoutCancel(ctx), "POST", "/builds", map[string]any{"spec": spec()}, &b)
			answers <- accepted{b.ID, err}
		})
	}
	calls.Wait()
	close(answers)
	for a := range answers {
		if a.err != nil {
			return nil, fmt.Errorf("submit a build: %w", a.err)
		}
		ids = append(ids, a.id)
	}
	return ids, nil
}

func spec() controller.Spec {
	return controller.Spec{Name: "sim", Labels: []string{"sim"}, Steps: []controller.Step{{ID: "one", Script: "make"}}}
}

// builds waits until all builds are over and returns them. Each must have succeeded, and run once.
func (f *fleet) builds(ctx context.Context, ids []string) (list []controller.Build, err error) {
	limit := time.Now().Add(3 * time.Minute)
	for {
		var active []controller.Build
		if err := f.server.do(ctx, "GET", "/builds?active=true&limit=1000", nil, &active); err != nil {
			return nil, err
		}
		if len(active) == 0 {
			break
		}
		if time.Now().After(limit) {
			return nil, fmt.Errorf("%d of %d builds are not over, the first is %s on %s", len(active), len(ids), active[0].State, active[0].AgentHost)
		}
		if !sleep(ctx, 200*time.Millisecond, nil) {
			return nil, context.Cause(ctx)
		}
	}
	for before := int64(0); ; {
		var page []controller.Build
		if err := f.server.do(ctx, "GET", fmt.Sprintf("/builds?limit=1000&before=%d", before), nil, &page); err != nil {
			return nil, err
		}
		if len(page) == 0 {
			break
		}
		list, before = append(list, page...), page[len(page)-1].Number
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wrong = append(f.wrong, judge(ids, list, f.runs)...)
	return list, nil
}

// judge says what is wrong with builds that are over: each that was accepted must be there, have succeeded, and have been
// begun by one worker, once. runs is how often workers were let begin each.
func judge(accepted []string, list []controller.Build, runs map[string]int) (wrong []string) {
	missing := make(map[string]bool, len(accepted))
	for _, id := range accepted {
		missing[id] = true
	}
	for _, b := range list {
		delete(missing, b.ID)
		if b.State != controller.Succeeded {
			wrong = append(wrong, fmt.Sprintf("build %d is %s: %s", b.Number, b.State, b.Message))
		}
		if n := runs[b.ID]; n != 1 {
			wrong = append(wrong, fmt.Sprintf("build %d ran %d times", b.Number, n))
		}
	}
	for id := range missing {
		wrong = append(wrong, "build "+id+" was accepted and is not there")
	}
	return wrong
}

// delays are the times from one moment of builds to another, sorted.
func delays(list []controller.Build, from, to func(controller.Build) int64) figures {
	var took []time.Duration
	for _, b := range list {
		if to(b) != 0 {
			took = append(took, time.Duration(max(0, to(b)-from(b)))*time.Millisecond)
		}
	}
	return measure("", took, 0, 0)
}

// faults are the errors that no profile makes by itself.
func (f *fleet) faults(t *tally) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []string
	for text, n := range t.errors {
		list = append(list, fmt.Sprintf("%d × %s", n, text))
	}
	slices.Sort(list)
	f.mu.Lock()
	defer f.mu.Unlock()
	return append(list, f.wrong...)
}

// settle gives the garbage of what was before back, so that it does not disturb what comes.
func settle() { runtime.GC() }
