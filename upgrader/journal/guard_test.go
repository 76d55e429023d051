package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/service/control"
	"github.com/devops-agent/devops-agent/service/proc"
)

// roleOf has the test binary play an agent: what it says at its door, as JSON; "" for one without a door.
const roleOf = "JOURNAL_TEST_AGENT"

func TestMain(m *testing.M) {
	if says, ok := os.LookupEnv(roleOf); ok {
		if err := playAgent(says); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// playAgent holds the lock of the agent until its standard input ends. It must not outlive its test.
func playAgent(says string) error {
	home, err := os.Getwd()
	if err != nil {
		return err
	}
	inst, err := service.Open(home)
	if err != nil {
		return err
	}
	lock, err := inst.Hold(context.Background(), service.RoleAgent)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	if says != "" {
		door, err := control.Listen(home, control.RoleAgent)
		if err != nil {
			return err
		}
		go func() {
			done <- door.Serve(ctx, func(context.Context, control.Request) (any, error) { return json.RawMessage(says), nil })
		}()
	} else {
		done <- nil
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	cancel()
	return errors.Join(err, <-done, lock.Release())
}

// guarded is an installation with an agent on trial that is one of these processes.
type guarded struct {
	inst *service.Installation
	j    *Journal
	cmd  *exec.Cmd
	in   io.Closer
}

// onTrial begins a trial of the test binary: the old agent is a copy of it as well.
func onTrial(t *testing.T, plan Plan) *guarded {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	home := shortDir(t)
	inst, err := service.Open(home)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(inst.Path("runtime"), 0o700); err != nil {
		t.Fatal(err)
	}
	g := &guarded{inst: inst, j: Open(inst, slog.New(slog.DiscardHandler))}
	g.j.every = 10 * time.Millisecond
	live := inst.Path(Place(Agent, runtime.GOOS))
	if err := os.WriteFile(live, []byte("the old agent"), 0o755); err != nil {
		t.Fatal(err)
	}
	plan.Kind = FromFile
	plan.Items = []Item{{Part: Agent, From: self, Was: "1", Now: "2"}}
	if _, err := g.j.Begin(plan); err != nil {
		t.Fatal(err)
	}
	if r, err := g.j.Recover(t.Context(), Last{}); err != nil || r.State != Trial {
		t.Fatalf("%+v, %v", r, err)
	}
	return g
}

// shortDir is a directory whose name leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "jrn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// start runs the live program as an agent that says something.
func (g *guarded) start(t *testing.T, says string) {
	t.Helper()
	g.cmd = exec.Command(g.inst.Path(Place(Agent, runtime.GOOS)))
	g.cmd.Dir = g.inst.Home
	g.cmd.Env = append(os.Environ(), roleOf+"="+says)
	g.cmd.Stderr = os.Stderr
	in, err := g.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd := g.cmd
	g.in = in
	t.Cleanup(func() { _ = in.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if line := make([]byte, 6); true {
		if _, err := io.ReadFull(out, line); err != nil || string(line) != "ready\n" {
			t.Fatalf("%q, %v", line, err)
		}
	}
	if err := g.j.Runs(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
}

// live is "old", "new" or what is wrong.
func (g *guarded) live(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(g.inst.Path(Place(Agent, runtime.GOOS)))
	switch {
	case err != nil:
		t.Fatal(err)
	case string(text) == "the old agent":
		return "old"
	}
	return "new"
}

// dies reports that the agent is killed in time.
func (g *guarded) dies() bool {
	done := make(chan struct{})
	go func() { _ = g.cmd.Wait(); close(done) }()
	select {
	case <-done:
		return true
	case <-time.After(10 * time.Second):
		_ = g.cmd.Process.Kill()
		<-done
		return false
	}
}

func (g *guarded) latest(t *testing.T) Attempt {
	t.Helper()
	list, err := g.j.History()
	if err != nil || len(list) == 0 {
		t.Fatalf("%+v, %v", list, err)
	}
	return list[0]
}

func says(t *testing.T, s control.Status) string {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

const patience = 300 * time.Millisecond

func TestGuardTakesBackWhatIsNotWell(t *testing.T) {
	for name, c := range map[string]struct {
		says string // "" has no door
		plan Plan
		hog  bool
		why  string
	}{
		"it does not answer":            {says: "", plan: Plan{Reached: true}, why: "did not answer"},
		"it is not known to its server": {says: says(t, control.Status{Server: control.Server{Problem: control.Refused, Error: "401"}}), plan: Plan{Reached: true}, why: "401"},
		"it does not try":               {says: says(t, control.Status{}), plan: Plan{Reached: true}, why: "did not talk"},
		"it eats memory":                {says: says(t, control.Status{Server: control.Server{LastContact: new(time.Now())}}), hog: true, why: "MiB of memory"},
	} {
		t.Run(name, func(t *testing.T) {
			g := onTrial(t, c.plan)
			g.start(t, c.says)
			if c.hog {
				g.j.memory = func(int) int64 { return MostMemory + 1 }
			}
			begun := time.Now()
			if err := g.j.Guard(t.Context(), g.inst, patience); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begun); took > 20*time.Second || !c.hog && took < patience {
				t.Errorf("it took %v", took)
			}
			if a := g.latest(t); g.live(t) != "old" || a.State != TakenBack || !strings.Contains(a.Reason, c.why) {
				t.Errorf("%s is live, after %+v", g.live(t), a)
			}
			if !g.dies() {
				t.Error("the new version runs on")
			}
		})
	}
}

func TestGuardLeavesWhatDoesNotRunToTheNextStart(t *testing.T) {
	for _, foreign := range []bool{false, true} {
		g := onTrial(t, Plan{Reached: true, Foreign: foreign})
		begun := time.Now()
		if err := g.j.Guard(t.Context(), g.inst, patience/10); err != nil {
			t.Fatal(err)
		}
		f, err := g.j.Current()
		if took := time.Since(begun); err != nil || f.State != Trial || took < mostIdle*patience/10 {
			t.Errorf("state %q after %v, %v", f.State, took, err)
		}
		for range MostStarts {
			if _, err := g.j.Recover(t.Context(), Last{How: "exit status 2", Code: new(2)}); err != nil {
				t.Fatal(err)
			}
		}
		if a := g.latest(t); g.live(t) != "old" || a.State != TakenBack || a.LastExit != "exit status 2" || a.ExitCode == nil || *a.ExitCode != 2 {
			t.Errorf("%s is live, after %+v", g.live(t), a)
		}
	}
}

func TestGuardSettlesAForeignAgentThatRuns(t *testing.T) {
	g := onTrial(t, Plan{Reached: true, Foreign: true})
	g.start(t, "")
	if err := g.j.Guard(t.Context(), g.inst, patience); err != nil {
		t.Fatal(err)
	}
	if a := g.latest(t); g.live(t) != "new" || a.State != Settled {
		t.Errorf("%s is live, after %+v", g.live(t), a)
	}
}

func TestGuardLeavesAloneWhatIsWell(t *testing.T) {
	for name, c := range map[string]struct {
		status control.Server
		plan   Plan
	}{
		"its server answers":          {control.Server{LastContact: new(time.Now())}, Plan{Reached: true}},
		"its server answers with 500": {control.Server{Problem: control.ServerError, Error: "500"}, Plan{Reached: true}},
		"its server is silent":        {control.Server{Problem: control.Unreachable, Error: "no such host"}, Plan{Reached: true}},
		"it never had a server":       {control.Server{Problem: control.Certificate, Error: "x509"}, Plan{}},
	} {
		t.Run(name, func(t *testing.T) {
			g := onTrial(t, c.plan)
			g.start(t, says(t, control.Status{Server: c.status}))
			ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
			defer cancel()
			if err := g.j.Guard(ctx, g.inst, patience); err != nil {
				t.Fatal(err)
			}
			f, err := g.j.Current()
			if err != nil || f.State != Trial || g.live(t) != "new" {
				t.Errorf("%s is live, state %q, %v", g.live(t), f.State, err)
			}
			if started, ok := proc.Identify(g.cmd.Process.Pid); !ok || !proc.Alive(g.cmd.Process.Pid, started) {
				t.Error("it was killed")
			}
			if ctx.Err() == nil {
				t.Error("the guard has left")
			}
		})
	}
}

func TestGuardEndsWithTheTrial(t *testing.T) {
	g := onTrial(t, Plan{Reached: true})
	g.start(t, says(t, control.Status{Server: control.Server{LastContact: new(time.Now())}}))
	over := make(chan error)
	go func() { over <- g.j.Guard(t.Context(), g.inst, time.Hour) }()
	waitFor(t, func() bool { // until it watches
		_, err := os.Stat(g.j.path(dir, "guard.lock"))
		return err == nil
	})
	if err := g.j.Guard(t.Context(), g.inst, time.Hour); err != nil { // the second one leaves at once
		t.Error(err)
	}
	if _, err := g.j.Settle(); err != nil {
		t.Fatal(err)
	}
	if err := <-over; err != nil {
		t.Error(err)
	}
	if err := g.j.Guard(t.Context(), g.inst, time.Hour); err != nil { // nothing to watch
		t.Error(err)
	}
	if g.live(t) != "new" {
		t.Error(g.live(t))
	}
}

func TestGuardForgivesARestart(t *testing.T) {
	g := onTrial(t, Plan{Reached: true})
	well := says(t, control.Status{Server: control.Server{LastContact: new(time.Now())}})
	g.start(t, well)
	seen := make(chan struct{}, 100)
	g.j.log = slog.New(signal{seen})
	over := make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	const longer = 3 * time.Second
	go func() { over <- g.j.Guard(ctx, g.inst, longer) }()
	<-seen // it was well once
	_ = g.in.Close()
	_ = g.cmd.Wait()
	g.start(t, well)
	waited := time.NewTimer(2 * longer / 3)
	defer waited.Stop()
	select {
	case err := <-over:
		t.Errorf("it was taken back: %v, %+v", err, g.latest(t))
	case <-waited.C:
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	}
	cancel()
	if g.live(t) != "new" {
		t.Error("taken back")
	}
}

// signal is a log handler that says that something was logged.
type signal struct{ seen chan struct{} }

func (s signal) Enabled(context.Context, slog.Level) bool { return true }
func (s signal) Handle(context.Context, slog.Record) error {
	select {
	case s.seen <- struct{}{}:
	default:
	}
	return nil
}
func (s signal) WithAttrs([]slog.Attr) slog.Handler { return s }
func (s signal) WithGroup(string) slog.Handler      { return s }

func waitFor(t *testing.T, ready func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); !ready(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("waited for 10 s")
		}
	}
}

func TestGuardEmptiesAFullStderr(t *testing.T) {
	g := onTrial(t, Plan{})
	path := g.j.Stderr()
	if err := os.WriteFile(path, []byte(strings.Repeat("x", mostStderrFile+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error)
	go func() { over <- g.j.Guard(ctx, g.inst, time.Hour) }()
	waitFor(t, func() bool {
		info, err := os.Stat(path)
		return err == nil && info.Size() == 0
	})
	cancel()
	if err := <-over; err != nil {
		t.Error(err)
	}
}

func TestJudge(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name    string
		server  control.Server
		reached bool
		well    bool
	}{
		{"answered", control.Server{LastContact: &now}, true, true},
		{"answered once, and then 500", control.Server{LastContact: &now, Problem: control.ServerError, Error: "500"}, true, true},
		{"answered once, and then refused", control.Server{LastContact: &now, Problem: control.Refused, Error: "401"}, true, true},
		{"500", control.Server{Problem: control.ServerError, Error: "500"}, true, true},
		{"no such host", control.Server{Problem: control.Unreachable, Error: "no such host"}, true, true},
		{"deleted", control.Server{Problem: control.Deleted, Error: "deleted"}, true, true},
		{"refused", control.Server{Problem: control.Refused, Error: "401"}, true, false},
		{"refused, as before", control.Server{Problem: control.Refused, Error: "401"}, false, true},
		{"certificate", control.Server{Problem: control.Certificate, Error: "x509"}, true, false},
		{"silent", control.Server{}, true, false},
		{"silent, as before", control.Server{}, false, true},
	} {
		well, settle, why := judge(control.Status{Server: c.server}, c.reached)
		if well != c.well || settle || why == "" {
			t.Errorf("%s: %v, %v, %q", c.name, well, settle, why)
		}
	}
}

func TestMemoryOfAProcess(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs Linux: nobody asks for memory elsewhere")
	}
	if used := memoryOf(os.Getpid()); used < 1<<20 || used > 64<<30 {
		t.Errorf("%d bytes", used)
	}
	if used := memoryOf(0); used != 0 {
		t.Errorf("of nobody: %d bytes", used)
	}
}

func TestRunsForgetsTheDead(t *testing.T) {
	g := onTrial(t, Plan{})
	if err := g.j.Runs(1 << 22); err != nil {
		t.Error(err)
	}
	if _, _, ok := g.j.running(g.inst, filepath.Base(filepath.Dir(g.j.Stderr()))); ok {
		t.Error("somebody runs")
	}
}

// TestTheLastEndOfAVersionOnTrialIsKnown: systemd tells it by "upgrader ended", and nobody tells the next start.
func TestTheLastEndOfAVersionOnTrialIsKnown(t *testing.T) {
	how := Last{How: "exited with 3", Code: new(3)}
	dead := func(t *testing.T, g *guarded) { // a life that is over
		t.Helper()
		f, err := g.j.Current()
		if err != nil {
			t.Fatal(err)
		}
		g.j.note(f.Record.ID, pidOf, "4194303 long ago")
	}
	for name, back := range map[string]func(j *Journal) (Result, error){
		"by a start": func(j *Journal) (Result, error) {
			for range MostStarts - 1 {
				if _, err := j.Recover(t.Context(), Last{}); err != nil {
					return Result{}, err
				}
			}
			return j.Recover(t.Context(), Last{})
		},
		"by a guard": func(j *Journal) (Result, error) { return j.Undo("it does not answer", Last{}) },
		"when its keeper knows": func(j *Journal) (Result, error) {
			if _, err := j.Recover(t.Context(), how); err != nil {
				return Result{}, err
			}
			return j.Undo("it does not answer", Last{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := onTrial(t, Plan{})
			if name != "when its keeper knows" {
				if err := g.j.Ended(Last{How: "exited with 0", Code: new(0)}); err != nil { // of the version before
					t.Fatal(err)
				}
				f, err := g.j.Current()
				if err != nil {
					t.Fatal(err)
				}
				if last := g.j.lastEnd(f.Record.ID, Last{}); last.known() {
					t.Errorf("the end of the version before counts: %+v", last)
				}
				dead(t, g)
				for _, end := range []Last{{}, how, {}} {
					if err := g.j.Ended(end); err != nil {
						t.Fatal(err)
					}
				}
			}
			if r, err := back(g.j); err != nil || r.State != None {
				t.Fatalf("%+v, %v", r, err)
			}
			if a := g.latest(t); a.State != TakenBack || a.LastExit != how.How || a.ExitCode == nil || *a.ExitCode != 3 {
				t.Errorf("%+v", a)
			}
			if err := g.j.Ended(how); err != nil { // nothing is open
				t.Error(err)
			}
		})
	}
}

// TestTheEndOfWhoRunsIsNotNoted: somebody has called "upgrader ended" by hand.
func TestTheEndOfWhoRunsIsNotNoted(t *testing.T) {
	g := onTrial(t, Plan{})
	if err := errors.Join(g.j.Runs(os.Getpid()), g.j.Ended(Last{How: "exited with 3", Code: new(3)})); err != nil {
		t.Fatal(err)
	}
	if _, err := g.j.Undo("no reason", Last{}); err != nil {
		t.Fatal(err)
	}
	if a := g.latest(t); a.LastExit != "" || a.ExitCode != nil {
		t.Errorf("%+v", a)
	}
}
