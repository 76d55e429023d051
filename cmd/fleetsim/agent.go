package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/devops-agent/devops-agent/agent/job"
	"github.com/devops-agent/devops-agent/agent/rhythm"
	"github.com/devops-agent/devops-agent/agent/wire"
)

// manner is how the agents of a profile talk.
type manner int

const (
	asking  manner = iota // one call, at the pace of BK-CI
	waiting               // the same with "Prefer: wait"
	split                 // one endpoint per purpose, as the seed generation
)

// agent is one simulated agent: the client, the pace and the seats of a real one, and no processes.
type agent struct {
	fleet   *fleet
	number  int
	client  *wire.Client
	network *network
	slots   *job.Slots
	waits   atomic.Bool
	last    atomic.Int64 // second of the last answer
	bad     atomic.Bool  // its machine cannot run the new version
	chance  *rand.Rand   // only for the loop that upgrades and flaps

	mu      sync.Mutex
	version string
	work    sync.WaitGroup // builds and upgrades under way
	busy    atomic.Bool    // an upgrade is under way
}

// call notes one call.
func (a *agent) call(name string, begun time.Time, wait time.Duration, err error) {
	t := a.fleet.tally.Load()
	fresh := false
	var refused *wire.StatusError
	if err == nil || errors.As(err, &refused) {
		now := t.second()
		fresh = a.last.Swap(now) != now
	}
	t.note(name, begun, wait, fresh, err)
}

// sleep waits, at most until wake, and reports false when ctx ended first.
func sleep(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-wake:
	case <-timer.C:
	}
	return ctx.Err() == nil
}

// run lives until ctx ends; then it waits for what is under way.
func (a *agent) run(ctx context.Context, how manner, after time.Duration) {
	defer a.client.HTTP.CloseIdleConnections()
	defer a.work.Wait()
	if !sleep(ctx, after, nil) {
		return
	}
	again := rhythm.Pace{Every: 5 * time.Second, Most: time.Minute}
	for {
		begun := time.Now()
		_, err := a.client.Startup(ctx, wire.Startup{HostName: a.host(), HostIP: "10.0.0.1", DetectOS: "linux", MasterVersion: a.runs(), Version: "v1.0.0"})
		if ctx.Err() != nil {
			return
		}
		a.call("startup", begun, 0, err)
		if err == nil {
			break
		}
		if !sleep(ctx, again.After(err), nil) {
			return
		}
	}
	a.fleet.started.Add(1)
	if how != split {
		a.asks(ctx, how == waiting)
		return
	}
	var loops sync.WaitGroup
	defer loops.Wait()
	p := func(pace rhythm.Pace, first time.Duration, round func() error) {
		loops.Go(func() {
			for pause := first; sleep(ctx, pause, nil); {
				pause = pace.After(round())
			}
		})
	}
	p(rhythm.Beat(), 0, func() error { return a.beat(ctx) })
	p(rhythm.Build(), rhythm.FirstClaim, func() error { return a.claim(ctx) })
	p(rhythm.Upgrade(), rhythm.FirstCheck, func() error { return a.check(ctx) })
	p(rhythm.Pace{Every: 30 * time.Second, Most: 90 * time.Second}, rhythm.FirstScript, func() error { return a.scripts(ctx) })
	p(rhythm.Pace{Every: time.Minute, Most: time.Minute}, time.Duration(rand.Int64N(int64(time.Minute))), func() error { return a.measure(ctx) })
}

func (a *agent) host() string { return fmt.Sprintf("sim-%05d", a.number) }

func (a *agent) runs() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.version
}

func (a *agent) is(version string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version = version
}

func (a *agent) heartbeat() wire.Heartbeat {
	host, docker := a.slots.Limits()
	return wire.Heartbeat{MasterVersion: a.runs(), SlaveVersion: "v1.0.0", HostName: a.host(), AgentIP: "10.0.0.1", ParallelTaskCount: host,
		AgentInstallPath: "/data/devops/agent", StartedUser: "builder", TaskList: a.slots.Running(), DockerParallelCount: docker,
		Props: wire.HostProps{Arch: "amd64", JDKVersion: jdk(), OSVersion: "Debian GNU/Linux 13 (trixie)"}, DockerTaskList: a.slots.RunningDocker()}
}

func jdk() []string {
	return []string{`openjdk version "17.0.9" 2023-10-17`, "OpenJDK Runtime Environment (build 17.0.9+9)", "OpenJDK 64-Bit Server VM (build 17.0.9+9, mixed mode, sharing)"}
}

func (a *agent) upgradeCheck() wire.UpgradeCheck {
	return wire.UpgradeCheck{WorkerVersion: "v1.0.0", GoAgentVersion: a.runs(), JDKVersion: jdk()}
}

// asks is the loop of the ask generation (protocol §1.7).
func (a *agent) asks(ctx context.Context, prefers bool) {
	pacing := rhythm.Holding{Pace: rhythm.Ask(), Waits: &a.waits}
	for {
		begun := time.Now()
		freed := a.slots.Freed()
		seats := a.slots.Reserve()
		kind, wait := seats.Kind(), time.Duration(0)
		if a.busy.Load() {
			seats.Release()
			kind = wire.None
		}
		if prefers {
			wait = pacing.Wait(kind, a.client.Timeout)
		}
		ask := wire.Ask{Enable: wire.AskEnable{Build: kind, Upgrade: !a.busy.Load()}, Heartbeat: a.heartbeat()}
		if ask.Enable.Upgrade {
			check := a.upgradeCheck()
			ask.Upgrade = &check
		}
		parts, err := a.client.Ask(ctx, ask, wait)
		if ctx.Err() == nil {
			name := "ask"
			if wait > 0 {
				name = "ask, held"
			}
			a.call(name, begun, wait, err)
		}
		got := false
		if err == nil && parts.Build != nil {
			got = a.take(ctx, *parts.Build, seats)
		}
		if err == nil && parts.Upgrade != nil && parts.Upgrade.Agent && parts.Build == nil {
			a.upgrade(ctx)
			got = true
		}
		seats.Release()
		if ctx.Err() != nil {
			return
		}
		pause := pacing.Pause(err, parts, begun, got)
		if kind == wire.All || !a.waits.Load() {
			freed = nil
		}
		if !sleep(ctx, pause, freed) {
			return
		}
	}
}

func (a *agent) beat(ctx context.Context) error {
	begun := time.Now()
	_, err := a.client.Beat(ctx, a.heartbeat())
	return a.done(ctx, "heartbeat", begun, err)
}

// done notes a call of a loop that ends with ctx.
func (a *agent) done(ctx context.Context, name string, begun time.Time, err error) error {
	if ctx.Err() == nil {
		a.call(name, begun, 0, err)
	}
	return err
}

// claim is status and claim, as the seed generation asks for builds (protocol §1.6.2, §1.6.7).
func (a *agent) claim(ctx context.Context) error {
	begun := time.Now()
	status, err := a.client.Status(ctx)
	if err = a.done(ctx, "status", begun, err); err != nil || status != wire.ImportOK {
		return err
	}
	seats := a.slots.Reserve()
	defer seats.Release()
	if seats.Kind() == wire.None {
		return nil
	}
	begun = time.Now()
	build, _, err := a.client.Claim(ctx, seats.Kind(), 0)
	if err = a.done(ctx, "claim", begun, err); err == nil && build != nil {
		a.take(ctx, *build, seats)
	}
	return err
}

func (a *agent) check(ctx context.Context) error {
	begun := time.Now()
	_, err := a.client.CheckUpgrade(ctx, a.upgradeCheck())
	return a.done(ctx, "upgrade check", begun, err)
}

func (a *agent) scripts(ctx context.Context) error {
	begun := time.Now()
	_, err := a.client.Pipeline(ctx)
	return a.done(ctx, "script", begun, err)
}

func (a *agent) measure(ctx context.Context) error {
	begun := time.Now()
	return a.done(ctx, "measurements", begun, a.client.Upload(ctx, wire.PathMetrics, wire.ContentType, a.fleet.sample))
}

// take runs a build, if there is a seat for it.
func (a *agent) take(ctx context.Context, b wire.Build, seats *job.Reservation) bool {
	slot, ok := seats.Claim(b)
	if !ok {
		return false
	}
	a.work.Go(func() {
		defer slot.Release()
		w := worker{agent: a, session: wire.Session{Client: a.client, Build: b.ID, VMSeq: b.VMSeq}, job: a.fleet.job}
		err := w.run(ctx)
		slot.Release()
		finish := wire.Finish{Build: b, Success: err == nil}
		if err != nil {
			finish.Message, finish.Error = err.Error(), &wire.BuildError{Type: "USER", Message: err.Error(), Code: wire.CodeWorkerInit}
		}
		if err := a.repeat(ctx, "report", func(int) error { return a.client.Finish(ctx, finish) }); err != nil && ctx.Err() == nil {
			a.fleet.complain("build %s was not reported: %v", b.ID, err)
		}
	})
	return true
}

// repeat makes a call until the server has taken it, as agents and workers do, with growing pauses.
func (a *agent) repeat(ctx context.Context, name string, try func(retry int) error) error {
	for n := 0; ; n++ {
		begun := time.Now()
		err := try(n)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		final := errors.Is(err, wire.BuildEnded) || errors.Is(err, wire.AlreadyStarted)
		if final {
			a.call(name, begun, 0, nil)
			return err
		}
		a.call(name, begun, 0, err)
		if err == nil {
			return nil
		}
		limit := min(time.Second<<min(n, 4), 15*time.Second)
		pause := limit/2 + rand.N(limit/2)
		var refused *wire.StatusError
		if errors.As(err, &refused) {
			pause = max(pause, refused.RetryAfter)
		}
		if !sleep(ctx, pause, nil) {
			return context.Cause(ctx)
		}
	}
}

// upgrade plays one: the file, some seconds, another version. A bad machine is back on its old one soon after.
func (a *agent) upgrade(ctx context.Context) {
	if a.slots.Busy() || a.busy.Swap(true) {
		return
	}
	rest := time.Duration(1+a.chance.IntN(3)) * time.Second
	a.work.Go(func() {
		defer a.slots.Wake()
		defer a.busy.Store(false)
		var version string
		err := a.repeat(ctx, "download", func(int) (err error) {
			version, err = a.download(ctx)
			return err
		})
		if err != nil || version == "" || !sleep(ctx, rest, nil) {
			return
		}
		before := a.runs()
		a.is(version)
		if err := a.repeat(ctx, "startup", func(int) error {
			_, err := a.client.Startup(ctx, wire.Startup{HostName: a.host(), HostIP: "10.0.0.1", DetectOS: "linux", MasterVersion: version, Version: "v1.0.0"})
			return err
		}); err != nil {
			return
		}
		if a.bad.Load() {
			if sleep(ctx, rest, nil) {
				a.is(before)
				_ = a.repeat(ctx, "upgrade end", func(int) error { return a.client.FinishUpgrade(ctx, false) })
			}
			return
		}
		_ = a.repeat(ctx, "upgrade end", func(int) error { return a.client.FinishUpgrade(ctx, true) })
	})
}

// download fetches the three programs; the agent's says which version it is, in its first line.
func (a *agent) download(ctx context.Context) (version string, err error) {
	for _, name := range []string{"upgrade/upgrader_linux", "upgrade/devopsDaemon_linux", "upgrade/devopsAgent_linux"} {
		resp, err := a.client.Download(ctx, name, "", 0)
		if err != nil {
			return "", err
		}
		data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		err = errors.Join(err, resp.Body.Close())
		if resp.StatusCode != 200 {
			return "", &wire.StatusError{Op: "download", HTTP: resp.StatusCode}
		}
		if err != nil {
			return "", err
		}
		version, _, _ = strings.Cut(string(data), "\n")
	}
	return version, nil
}

// release is the three programs of a version: texts of some kilobytes, each with the version in its first line.
func release(version string) map[string][]byte {
	files := make(map[string][]byte)
	for _, name := range []string{"upgrade/upgrader_linux", "upgrade/devopsDaemon_linux", "upgrade/devopsAgent_linux"} {
		files[name] = []byte(version + "\n" + strings.Repeat(name+" of the fleet\n", 200))
	}
	return files
}

func digest(data []byte) string { return fmt.Sprintf("%x", sha256.Sum256(data)) }

// lostAnswer: the connection ended before the answer did.
func lostAnswer(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || strings.Contains(err.Error(), "server closed idle connection")
}
