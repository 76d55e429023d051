//go:build unix

package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/service/control"
)

// kept is the part in which the test binary is devopsAgent or devopsDaemon, whichever it is called.
const kept = "kept"

// playKept is a daemon, or an agent that does what the file "behave" in its home says.
func playKept() error {
	inst, err := Open(filepath.Dir(os.Args[0]))
	if err != nil {
		return err
	}
	if filepath.Base(os.Args[0]) == "devopsDaemon" {
		d := NewDaemon(DaemonOptions{Installation: inst, GOOS: runtime.GOOS, Version: "v1", Log: slog.New(slog.DiscardHandler)})
		told := make(chan os.Signal, 4)
		signal.Notify(told, syscall.SIGTERM)
		go func() {
			for range told {
				d.Stop(false)
			}
		}()
		err := d.Run(context.Background())
		if errors.Is(err, ErrRemoved) {
			os.Exit(ExitStayDown)
		}
		return err
	}
	text, err := os.ReadFile(inst.Path("behave"))
	if err != nil {
		return err
	}
	a := &keptAgent{inst: inst, behave: string(text)}
	return a.run()
}

// keptAgent is an agent of the tests.
type keptAgent struct {
	inst   *Installation
	behave string
	notify *Notifier
	lock   *Lock // whose file the collector would close
}

// does reports whether a word stands in the file.
func (a *keptAgent) does(word string) bool { return slices.Contains(strings.Fields(a.behave), word) }

// tell adds a line to the file "lives".
func (a *keptAgent) tell(format string, args ...any) {
	f, err := os.OpenFile(a.inst.Path("lives"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	_, _ = fmt.Fprintf(f, format+"\n", args...)
	_ = f.Close()
}

func (a *keptAgent) run() error {
	told := make(chan os.Signal, 8)
	if a.does("original") {
		if err := a.asOriginal(); err != nil {
			return err
		}
	} else {
		signal.Notify(told, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1)
		notify, err := NewNotifier()
		if err != nil {
			return err
		}
		a.notify = notify
		if a.does("crash") {
			fmt.Fprintln(os.Stderr, "devopsAgent: no luck today\nhint: come back tomorrow")
			os.Exit(3)
		}
		lock, err := a.inst.Hold(context.Background(), RoleAgent)
		if errors.Is(err, ErrRunning) {
			return nil
		} else if err != nil {
			return err
		}
		a.lock = lock
	}
	a.tell("start %d", os.Getpid())
	a.tell("args %s", strings.Join(os.Args[1:], " "))
	if a.does("removed") {
		os.Exit(ExitStayDown)
	}
	if !a.does("original") {
		if a.does("control") {
			l, err := control.Listen(a.inst.Home, control.RoleAgent)
			if err != nil {
				return err
			}
			go func() { _ = l.Serve(context.Background(), a.answer) }()
		}
		_ = a.notify.Status("idle")
		_ = a.notify.Ready()
	}
	alive := time.NewTicker(20 * time.Millisecond)
	for {
		select {
		case s := <-told:
			a.told(s)
		case <-alive.C:
			if !a.does("hang") {
				_ = a.notify.Alive()
			}
		}
	}
}

// asOriginal takes the role as protocol §2.4 has it: one try, and total-lock waited for.
func (a *keptAgent) asOriginal() error {
	if err := os.MkdirAll(a.inst.Path("runtime"), 0o700); err != nil {
		return err
	}
	if got, err := newLock(a.inst.Path("runtime", "agent.lock")).TryLock(); err != nil || !got {
		a.tell("away %d", os.Getpid())
		os.Exit(0)
	}
	total := newLock(a.inst.Path("runtime", "total-lock.lock"))
	if err := total.Lock(); err != nil {
		return err
	}
	if err := os.WriteFile(a.inst.Path("runtime", "agent.pid"), []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		return err
	}
	return total.Unlock()
}

func (a *keptAgent) told(s os.Signal) {
	switch s {
	case syscall.SIGHUP:
		a.tell("reload")
	case syscall.SIGUSR1:
		text, _ := os.ReadFile(a.inst.Path("exitcode"))
		code, _ := strconv.Atoi(string(text))
		os.Exit(code)
	default:
		a.tell("stop")
		switch {
		case a.does("deaf"):
			a.behave += " hang"
		case a.does("slow") || exists(a.inst.Path("slow")):
			_ = a.notify.Extend(time.Hour)
			a.behave += " hang"
			a.behave = strings.ReplaceAll(a.behave, "slow", "")
		default:
			os.Exit(0)
		}
	}
}

func (a *keptAgent) answer(ctx context.Context, q control.Request) (any, error) {
	a.tell("asked %s", q.Op)
	switch {
	case a.does("silent"):
		<-ctx.Done()
		select {} // holds the connection
	case q.Op == control.OpRestart && a.does("stubborn"):
	case q.Op == control.OpRestart, q.Op == control.OpStop:
		a.tell("stop")
		time.AfterFunc(10*time.Millisecond, func() { os.Exit(0) })
	case a.does("builds") && !a.finished():
		return control.Status{PID: os.Getpid(), Builds: []control.Build{{}}}, nil
	}
	return control.Status{PID: os.Getpid()}, nil
}

// finished reports whether the test says that the builds are over.
func (a *keptAgent) finished() bool {
	_, err := os.Stat(a.inst.Path("finished"))
	return err == nil
}

// keptHome is an installation with the test binary as its agent, and a daemon in this process.
type keptHome struct {
	*Installation
	t      *testing.T
	log    *lockedBuffer
	daemon *Daemon
	ended  chan error
}

// lockedBuffer is a buffer that may be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// placeSelf makes the test binary available under another name, as a file of its own.
func placeSelf(t *testing.T, path string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Link(self, path); err == nil {
		return
	}
	data, err := os.ReadFile(self)
	if err == nil {
		err = os.WriteFile(path, data, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func newKeptHome(t *testing.T, behave string) *keptHome {
	t.Helper()
	t.Setenv(part, kept)
	t.Setenv("GORACE", "atexit_sleep_ms=0")
	inst := open(t)
	if resolved, err := filepath.EvalSymlinks(inst.Home); err == nil {
		inst.Home = resolved
	}
	h := &keptHome{Installation: inst, t: t, log: &lockedBuffer{}}
	placeSelf(t, h.Path("devopsAgent"))
	h.behave(behave)
	t.Cleanup(func() {
		for _, line := range h.lives("start") { // what a test left behind
			pid, _ := strconv.Atoi(line)
			until(t, func() bool {
				path, err := executableOf(pid)
				if err != nil || !strings.HasPrefix(path, h.Home) {
					return true
				}
				_ = syscall.Kill(pid, syscall.SIGKILL)
				return false
			})
		}
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", h.log)
		}
	})
	return h
}

func (h *keptHome) behave(text string) {
	h.t.Helper()
	if err := os.WriteFile(h.Path("behave"), []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// lives returns what follows a word in the lines of "lives".
func (h *keptHome) lives(word string) []string {
	text, _ := os.ReadFile(h.Path("lives"))
	var list []string
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line)+" ", word+" "); ok {
			list = append(list, strings.TrimSpace(rest))
		}
	}
	return list
}

// awaitStarts waits for the n-th start and returns its pid.
func (h *keptHome) awaitStarts(n int) int {
	h.t.Helper()
	until(h.t, func() bool { return len(h.lives("start")) >= n })
	pid, err := strconv.Atoi(h.lives("start")[n-1])
	if err != nil {
		h.t.Fatal(err)
	}
	return pid
}

// keep runs a daemon, with the patience of a test.
func (h *keptHome) keep(change func(*Daemon)) {
	h.t.Helper()
	h.daemon = NewDaemon(DaemonOptions{Installation: h.Installation, GOOS: runtime.GOOS, Version: "v1",
		Log: slog.New(slog.NewTextHandler(h.log, nil))})
	if change != nil {
		change(h.daemon)
	}
	h.ended = make(chan error, 1)
	d, ended := h.daemon, h.ended
	go func() { ended <- d.Run(context.Background()) }()
	h.t.Cleanup(func() {
		d.Stop(true)
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			h.t.Error("the daemon does not end")
		}
		close(ended)
	})
}

// end waits for the end of the daemon.
func (h *keptHome) end() error {
	h.t.Helper()
	select {
	case err := <-h.ended:
		h.ended <- err // for the clean-up
		return err
	case <-time.After(20 * time.Second):
		h.t.Fatal("the daemon does not end")
		return nil
	}
}

func (h *keptHome) kill(pid int) {
	h.t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		h.t.Fatal(err)
	}
}

func gone(pid int) bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }

func TestDaemonKeepsAnAgent(t *testing.T) {
	h := newKeptHome(t, "")
	h.keep(nil)
	first := h.awaitStarts(1)
	until(t, func() bool { return h.daemon.Status().Ready })
	if s := h.daemon.Status(); s.Child != first || s.Adopted || s.Sentence != "idle" || s.Restarts != 0 || s.PID != os.Getpid() {
		t.Errorf("%+v", s)
	}
	for i := range 10 {
		at := time.Now()
		h.kill(h.awaitStarts(i + 1))
		h.awaitStarts(i + 2)
		if took := time.Since(at); took > 3*time.Second {
			t.Errorf("kill %d: back after %v", i, took)
		}
	}
	if s := h.daemon.Status(); s.Restarts != 10 || !strings.Contains(s.LastExit, "killed") {
		t.Errorf("%+v", s)
	}
	last := h.awaitStarts(11)
	h.daemon.Reload()
	until(t, func() bool { return len(h.lives("reload")) == 1 })
	h.daemon.Stop(false)
	if err := h.end(); err != nil {
		t.Error(err)
	}
	if !gone(last) || len(h.lives("stop")) != 1 || len(h.lives("start")) != 11 {
		t.Errorf("gone %v, stops %d, starts %d", gone(last), len(h.lives("stop")), len(h.lives("start")))
	}
}

func TestDaemonFollowsARemovedAgent(t *testing.T) {
	h := newKeptHome(t, "removed")
	h.keep(nil)
	if err := h.end(); !errors.Is(err, ErrRemoved) {
		t.Errorf("%v", err)
	}
	if !h.Removed() || len(h.lives("start")) != 1 {
		t.Errorf("marked %v, starts %d", h.Removed(), len(h.lives("start")))
	}
	h.behave("")
	h.keep(nil) // whoever starts it again means it
	h.awaitStarts(2)
	if h.Removed() {
		t.Error("the mark is still there")
	}
}

// TestDaemonRespectsTotalLock: protocol §8.11, statement 100.
func TestDaemonRespectsTotalLock(t *testing.T) {
	h := newKeptHome(t, "")
	if err := os.Mkdir(h.Path("runtime"), 0o700); err != nil {
		t.Fatal(err)
	}
	h.keep(nil)
	pid := h.awaitStarts(1)
	total, err := h.HoldTotal(t.Context(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	h.kill(pid)
	until(t, func() bool { return h.daemon.Status().Child == 0 })
	select {
	case <-h.ended:
		t.Fatal("the daemon ended")
	case <-time.After(500 * time.Millisecond):
	}
	if n := len(h.lives("start")); n != 1 {
		t.Errorf("%d starts", n)
	}
	if err := total.Release(); err != nil {
		t.Fatal(err)
	}
	h.awaitStarts(2)
}

// TestTotalLockIsHeldForTheAgent: an agent whose parent holds total-lock for it need not wait; any other does.
func TestTotalLockIsHeldForTheAgent(t *testing.T) {
	inst := open(t)
	if err := os.Mkdir(inst.Path("runtime"), 0o700); err != nil {
		t.Fatal(err)
	}
	total, err := inst.HoldTotal(t.Context(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(envTotal, strconv.Itoa(os.Getpid()))
	startOther(t, "agent", inst.Home).end(t)
	if got := pid(t, inst, RoleAgent); got == "" {
		t.Error("no pid file")
	}
	t.Setenv(envTotal, strconv.Itoa(os.Getpid()+1)) // inherited by chance
	if _, err := inst.hold(t.Context(), RoleAgent, 100*time.Millisecond); err == nil {
		t.Error("total-lock of somebody else was not waited for")
	}
	if _, set := os.LookupEnv(envTotal); set {
		t.Error("the variable is left for children")
	}
	if err := total.Release(); err != nil {
		t.Fatal(err)
	}
}

// TestRoleSurvivesAProbe: a daemon's look at agent.lock does not send an agent away.
func TestRoleSurvivesAProbe(t *testing.T) {
	inst := open(t)
	if err := os.Mkdir(inst.Path("runtime"), 0o700); err != nil {
		t.Fatal(err)
	}
	probe := newLock(inst.Path("runtime", "agent.lock"))
	if got, err := probe.TryLock(); !got || err != nil {
		t.Fatal(got, err)
	}
	time.AfterFunc(40*time.Millisecond, func() { _ = probe.Unlock() })
	lock, err := inst.Hold(t.Context(), RoleAgent)
	if err != nil {
		t.Fatal(err)
	}
	_ = lock.Release()
}

// TestDaemonKeepsAnOriginal: it never talks, cannot be asked, and is none the worse for it.
func TestDaemonKeepsAnOriginal(t *testing.T) {
	h := newKeptHome(t, "original")
	h.keep(func(d *Daemon) { d.patience.watchdog, d.patience.ask = 200*time.Millisecond, 100*time.Millisecond })
	first := h.awaitStarts(1)
	h.daemon.Reload() // SIGHUP would end it
	until(t, func() bool {
		text, _ := os.ReadFile(h.Path("runtime", "agent.pid"))
		return string(text) == strconv.Itoa(first)
	})
	select {
	case <-h.ended:
		t.Fatal("the daemon ended")
	case <-time.After(time.Second):
	}
	if n := len(h.lives("start")); n != 1 {
		t.Errorf("%d starts", n)
	}
	h.kill(first)
	second := h.awaitStarts(2)
	h.daemon.Restart()
	h.awaitStarts(3)
	if !gone(second) {
		t.Error("two agents")
	}
	if away := h.lives("away"); len(away) != 0 {
		t.Errorf("sent away: %v", away)
	}
	h.daemon.Stop(false)
	if err := h.end(); err != nil {
		t.Error(err)
	}
}

// adopted starts an agent that the daemon did not start.
func (h *keptHome) adopted() *exec.Cmd {
	h.t.Helper()
	cmd := exec.Command(h.Path("devopsAgent"))
	cmd.Dir = h.Home
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	h.t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	h.awaitStarts(len(h.lives("start")) + 1)
	until(h.t, func() bool { _, ok := h.Holder(RoleAgent); return ok })
	return cmd
}

func TestDaemonAdopts(t *testing.T) {
	for _, behave := range []string{"", "control", "original"} {
		t.Run(behave, func(t *testing.T) {
			h := newKeptHome(t, behave)
			cmd := h.adopted()
			h.keep(func(d *Daemon) { // far less patient than the original would need
				d.patience.watchdog, d.patience.ask = time.Second, 100*time.Millisecond
				d.patience.lockCheck = 100 * time.Millisecond
			})
			until(t, func() bool { s := h.daemon.Status(); return s.Adopted && s.Child == cmd.Process.Pid })
			select {
			case <-h.ended:
				t.Fatal("the daemon ended")
			case <-time.After(1500 * time.Millisecond):
			}
			if n := len(h.lives("start")); n != 1 {
				t.Errorf("%d starts", n)
			}
			h.kill(cmd.Process.Pid)
			h.awaitStarts(2)
			if s := h.daemon.Status(); s.Adopted {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestDaemonReplacesAnAgentOlderThanThePackage once its builds are over, and only once.
func TestDaemonReplacesAnAgentOlderThanThePackage(t *testing.T) {
	h := newKeptHome(t, "control builds")
	cmd := h.adopted()
	h.keep(func(d *Daemon) {
		d.patience.lockCheck, d.patience.ask = 20*time.Millisecond, 20*time.Millisecond
		d.Stale = func() bool { return true }
	})
	until(t, func() bool { return len(h.lives("asked")) >= 5 })
	if h.lives("stop") != nil || h.daemon.Status().Child != cmd.Process.Pid {
		t.Fatalf("an agent that builds was not left alone: %+v", h.daemon.Status())
	}
	if err := os.WriteFile(h.Path("finished"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.awaitStarts(2)
	until(t, func() bool { s := h.daemon.Status(); return s.Ready && !s.Adopted && s.Child != cmd.Process.Pid })
	if len(h.lives("stop")) != 1 {
		t.Errorf("%d times told to end", len(h.lives("stop")))
	}
}

// TestDaemonNoticesTheEndOfAnAdoptedAgent at once, not at its next look.
func TestDaemonNoticesTheEndOfAnAdoptedAgent(t *testing.T) {
	h := newKeptHome(t, "")
	cmd := h.adopted()
	h.keep(func(d *Daemon) { d.patience.lockCheck = time.Hour })
	until(t, func() bool { return h.daemon.Status().Child == cmd.Process.Pid })
	h.kill(cmd.Process.Pid)
	h.awaitStarts(2)
}

func TestDaemonStopsAnAdoptedAgent(t *testing.T) {
	for _, behave := range []string{"control", "original"} {
		t.Run(behave, func(t *testing.T) {
			h := newKeptHome(t, behave)
			cmd := h.adopted()
			h.keep(func(d *Daemon) { d.patience.lockCheck = 100 * time.Millisecond })
			until(t, func() bool { return h.daemon.Status().Child == cmd.Process.Pid })
			h.daemon.Stop(false)
			if err := h.end(); err != nil {
				t.Error(err)
			}
			if free, err := h.free(RoleAgent); !free || err != nil {
				t.Errorf("the agent still runs: %v", err)
			}
			if n := len(h.lives("start")); n != 1 {
				t.Errorf("%d starts", n)
			}
		})
	}
}

// TestDaemonReplacesAHungAgent: its own by the pipe's silence, an adopted one by that of the socket.
func TestDaemonReplacesAHungAgent(t *testing.T) {
	short := func(d *Daemon) {
		d.patience.watchdog, d.patience.ask, d.patience.lockCheck = 400*time.Millisecond, 100*time.Millisecond, 50*time.Millisecond
		d.patience.abort = 300 * time.Millisecond
	}
	t.Run("own", func(t *testing.T) {
		h := newKeptHome(t, "hang")
		h.keep(short)
		first := h.awaitStarts(1)
		h.behave("")
		h.awaitStarts(2)
		if !gone(first) || !strings.Contains(h.log.String(), "Agent hangs") || !strings.Contains(h.log.String(), "status=idle") ||
			!strings.Contains(h.log.String(), "goroutine ") {
			t.Errorf("gone: %v", gone(first))
		}
	})
	t.Run("stopped by a signal", func(t *testing.T) {
		h := newKeptHome(t, "")
		h.keep(short)
		first := h.awaitStarts(1)
		until(t, func() bool { return h.daemon.Status().Ready }) // before it has said anything it may be an original
		if err := syscall.Kill(first, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		second := h.awaitStarts(2)
		if err := syscall.Kill(second, syscall.SIGSTOP); err != nil { // at once: its program has talked before
			t.Fatal(err)
		}
		h.awaitStarts(3)
	})
	t.Run("adopted", func(t *testing.T) {
		h := newKeptHome(t, "control silent")
		cmd := h.adopted()
		h.behave("control")
		h.keep(short)
		h.awaitStarts(2)
		if !strings.Contains(h.log.String(), "Agent hangs") {
			t.Errorf("process %d was replaced, and the log does not say why", cmd.Process.Pid)
		}
	})
}

// TestDaemonWaitsForADrain as long as it is told to, and no longer.
func TestDaemonWaitsForADrain(t *testing.T) {
	short := func(d *Daemon) { d.patience.stop, d.patience.abort = 300*time.Millisecond, 100*time.Millisecond }
	t.Run("silent", func(t *testing.T) {
		h := newKeptHome(t, "deaf")
		h.keep(short)
		h.awaitStarts(1)
		until(t, func() bool { return h.daemon.Status().Ready })
		h.daemon.Stop(false)
		if err := h.end(); err != nil {
			t.Error(err)
		}
		if !strings.Contains(h.log.String(), "does not stop") {
			t.Error("the log does not say that the agent was killed")
		}
	})
	t.Run("extending", func(t *testing.T) {
		h := newKeptHome(t, "slow")
		h.keep(short)
		pid := h.awaitStarts(1)
		until(t, func() bool { return h.daemon.Status().Ready })
		h.daemon.Stop(false)
		select {
		case <-h.ended:
			t.Fatal("the daemon did not wait")
		case <-time.After(time.Second):
		}
		h.daemon.Stop(false) // the second one is passed on
		if err := h.end(); err != nil {
			t.Error(err)
		}
		if !gone(pid) || len(h.lives("stop")) != 2 {
			t.Errorf("gone %v, told %d times", gone(pid), len(h.lives("stop")))
		}
	})
}

func TestDaemonRestarts(t *testing.T) {
	h := newKeptHome(t, "control")
	h.keep(nil)
	first := h.awaitStarts(1)
	until(t, func() bool { return h.daemon.Status().Ready })
	var s control.DaemonStatus
	if err := control.Call(t.Context(), h.Home, control.RoleDaemon, control.Request{Op: control.OpRestart}, &s); err != nil || s.Child != first {
		t.Fatalf("%+v, %v", s, err)
	}
	h.awaitStarts(2)
	if asked := h.lives("asked"); !slices.Equal(asked, []string{"restart"}) {
		t.Errorf("the agent was asked %v", asked)
	}
	if err := control.Call(t.Context(), h.Home, control.RoleDaemon, control.Request{Op: "dance"}, nil); err == nil {
		t.Error("a daemon that dances")
	}
	if err := control.Call(t.Context(), h.Home, control.RoleDaemon, control.Request{Op: control.OpStop}, nil); err != nil {
		t.Error(err)
	}
	if err := h.end(); err != nil {
		t.Error(err)
	}
}

// TestDaemonSlowsACrashLoop, says why, and notices a better program.
func TestDaemonSlowsACrashLoop(t *testing.T) {
	h := newKeptHome(t, "crash")
	h.keep(nil)
	until(t, func() bool { return strings.Contains(h.log.String(), "times=4") })
	if log := h.log.String(); !strings.Contains(log, `how="exit status 3: devopsAgent: no luck today"`) || !strings.Contains(log, "next_start_in=800ms") {
		t.Error("the log does not say why")
	}
	until(t, func() bool { return h.daemon.Status().NextStart != nil })
	h.behave("")
	fresh := h.Path("fresh")
	placeSelf(t, fresh)
	now := time.Now()
	if err := errors.Join(os.Chtimes(fresh, now, now), os.Rename(fresh, h.Path("devopsAgent"))); err != nil {
		t.Fatal(err)
	}
	h.awaitStarts(1)
	until(t, func() bool { return h.daemon.Status().Ready })
	if s := h.daemon.Status(); s.NextStart != nil {
		t.Errorf("%+v", s)
	}
}

// TestDaemonNoticesAMendedConfiguration while it waits: whoever has mended agent.toml does not want to wait half a minute.
func TestDaemonNoticesAMendedConfiguration(t *testing.T) {
	h := newKeptHome(t, "crash")
	h.keep(nil)
	until(t, func() bool { return strings.Contains(h.log.String(), "times=4") && h.daemon.Status().NextStart != nil })
	h.behave("")
	if err := os.WriteFile(h.Config, []byte("# mended\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.awaitStarts(1)
	until(t, func() bool { return h.daemon.Status().Ready })
	if !strings.Contains(h.log.String(), "Configuration has changed") {
		t.Error("the log does not say why")
	}
}

func TestDaemonWithoutAnAgent(t *testing.T) {
	h := newKeptHome(t, "")
	if err := os.Rename(h.Path("devopsAgent"), h.Path("aside")); err != nil {
		t.Fatal(err)
	}
	h.keep(nil)
	until(t, func() bool { return strings.Contains(h.log.String(), "Agent cannot be started") })
	if err := os.Rename(h.Path("aside"), h.Path("devopsAgent")); err != nil {
		t.Fatal(err)
	}
	h.awaitStarts(1)
}

// TestDaemonPreparesItsAgent: the func fields, and a Prepare that says later.
func TestDaemonPreparesItsAgent(t *testing.T) {
	h := newKeptHome(t, "")
	var mu sync.Mutex
	var order []string
	note := func(word string) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, word)
	}
	noted := func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(order)
	}
	h.keep(func(d *Daemon) {
		d.Prepare = func(context.Context, *exec.Cmd) error {
			note("prepare")
			if len(noted()) == 1 {
				return ErrLater
			}
			return nil
		}
		d.Before = func(context.Context, Ending) error { note("before"); return errors.New("half an upgrade") }
		d.Started = func(p *os.Process) error { note("started"); return nil }
	})
	until(t, func() bool { return h.daemon.Status().NextStart != nil })
	h.daemon.Wake()
	h.awaitStarts(1)
	if got := noted(); !slices.Equal(got, []string{"prepare", "prepare", "before", "started"}) {
		t.Errorf("%v", got)
	}
}

func TestDaemonPassesDebugOn(t *testing.T) {
	h := newKeptHome(t, "")
	h.keep(func(d *Daemon) { d.Debug = true })
	h.awaitStarts(1)
	until(t, func() bool { return len(h.lives("args")) == 1 })
	if got := h.lives("args"); !slices.Equal(got, []string{"debug"}) {
		t.Errorf("%q", got)
	}
}

// TestDaemonStopsAtOnce: an agent that would drain for an hour is told twice, by signal and by socket.
func TestDaemonStopsAtOnce(t *testing.T) {
	h := newKeptHome(t, "control slow")
	h.keep(nil)
	h.awaitStarts(1)
	until(t, func() bool { return h.daemon.Status().Ready })
	h.daemon.Stop(true)
	if err := h.end(); err != nil {
		t.Error(err)
	}
	if asked := h.lives("asked"); !slices.Equal(asked, []string{"stop"}) {
		t.Errorf("the agent was asked %v", asked)
	}
}

// TestStopOutlivesARestart: the short time that an agent has to make room for the next is not that of a drain.
func TestStopOutlivesARestart(t *testing.T) {
	h := newKeptHome(t, "control slow stubborn")
	h.keep(func(d *Daemon) { d.patience.restart = 300 * time.Millisecond })
	pid := h.awaitStarts(1)
	until(t, func() bool { return h.daemon.Status().Ready })
	h.daemon.Restart()
	h.daemon.Stop(false)
	select {
	case <-h.ended:
		t.Fatal("the daemon did not wait for the drain")
	case <-time.After(time.Second):
	}
	if gone(pid) {
		t.Error("the agent was killed")
	}
}

// TestLockOfSomebodyElse: the daemon goes on trying.
func TestLockOfSomebodyElse(t *testing.T) {
	h := newKeptHome(t, "")
	if err := os.MkdirAll(h.Path("runtime", "agent.lock"), 0o700); err != nil { // root is not refused anything less
		t.Fatal(err)
	}
	h.keep(nil)
	until(t, func() bool { return strings.Contains(h.log.String(), "Agent cannot be started") })
	if err := os.Remove(h.Path("runtime", "agent.lock")); err != nil {
		t.Fatal(err)
	}
	h.awaitStarts(1)
}

// TestARemovedLockFileLetsNobodyIn: whoever has the role says so at its door; a pid file alone says nothing.
func TestARemovedLockFileLetsNobodyIn(t *testing.T) {
	h := newKeptHome(t, "control")
	h.keep(nil)
	pid := h.awaitStarts(1)
	until(t, func() bool { return h.daemon.Status().Ready })
	for _, role := range []Role{RoleAgent, RoleDaemon} {
		if err := os.Remove(h.Path("runtime", string(role)+".lock")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.Hold(t.Context(), RoleAgent); !errors.Is(err, ErrRunning) {
		t.Errorf("a second agent: %v", err)
	}
	if text, err := os.ReadFile(h.Path("runtime", "agent.pid")); err != nil || string(text) != strconv.Itoa(pid) {
		t.Errorf("agent.pid is %q, %v; want %d", text, err, pid)
	}
	if err := os.Remove(h.Path("runtime", "agent.sock")); err != nil {
		t.Fatal(err)
	}
	lock, err := h.Hold(t.Context(), RoleAgent) // the number may be another process's by now: it does not speak for this home
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.Release(); err != nil {
		t.Error(err)
	}
}

func TestSecondDaemonGoesAway(t *testing.T) {
	h := newKeptHome(t, "")
	h.keep(nil)
	h.awaitStarts(1)
	second := NewDaemon(DaemonOptions{Installation: h.Installation, GOOS: runtime.GOOS, Log: slog.New(slog.DiscardHandler)})
	if err := second.Run(t.Context()); !errors.Is(err, ErrRunning) {
		t.Errorf("%v", err)
	}
}

// TestDirectPassesTheSuite runs the cases of every supervisor against real processes; only crontab is a stand-in.
func TestDirectPassesTheSuite(t *testing.T) {
	superviseSuite(t, func(t *testing.T) keptWorld {
		h := newKeptHome(t, "control")
		placeSelf(t, h.Path("devopsDaemon"))
		d := &direct{inst: h.Installation, goos: runtime.GOOS, vendor: t.TempDir(), crontab: memoryCrontab(), umask: "022"}
		t.Cleanup(func() {
			_ = control.Call(context.Background(), h.Home, control.RoleDaemon, control.Request{Op: control.OpStop, Now: true}, nil)
			if exists(h.Path("runtime")) {
				until(t, func() bool { free, _ := h.free(RoleDaemon); return free })
			}
		})
		return keptWorld{Supervisor: d, setup: Setup{Home: h.Home, Reboot: true},
			exit: func(t *testing.T, code int) {
				t.Helper()
				s, err := d.State(t.Context())
				mustDo(t, "state", err)
				mustDo(t, "exit code", os.WriteFile(h.Path("exitcode"), []byte(strconv.Itoa(code)), 0o600))
				until(t, func() bool { return h.Status(d).Ready }) // it hears the signal
				mustDo(t, "signal", syscall.Kill(s.PID, syscall.SIGUSR1))
				until(t, func() bool {
					now, err := d.State(t.Context())
					return err == nil && now.PID != s.PID
				})
			},
			slow: func() {
				until(t, func() bool { return h.Status(d).Ready }) // it hears the signal
				_ = os.WriteFile(h.Path("slow"), nil, 0o600)
			},
		}
	})
}

// Status asks the daemon of a home.
func (h *keptHome) Status(*direct) control.DaemonStatus {
	var s control.DaemonStatus
	_ = control.Call(h.t.Context(), h.Home, control.RoleDaemon, control.Request{Op: control.OpStatus}, &s)
	return s
}

// memoryCrontab is crontab(1) without a file.
func memoryCrontab() func(context.Context, string, ...string) (string, error) {
	var mu sync.Mutex
	text := "MAILTO=\"\"\n0 4 * * * backup # devops_agent_x\n"
	return func(_ context.Context, stdin string, args ...string) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if len(args) == 1 && args[0] == "-" {
			text = stdin
			return "", nil
		}
		return text, nil
	}
}

// TestDirectStopsWhatTheOriginalStarted: a daemon that has no control socket, and its agent.
func TestDirectStopsWhatTheOriginalStarted(t *testing.T) {
	h := newKeptHome(t, "original")
	h.adopted()
	d := &direct{inst: h.Installation, goos: runtime.GOOS, crontab: memoryCrontab()}
	if err := d.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if free, err := h.free(RoleAgent); !free || err != nil {
		t.Errorf("the agent still runs: %v", err)
	}
}

// TestDirectTouchesNoStranger: a process that only has the number in the pid file is left alone (weakness W-35).
func TestDirectTouchesNoStranger(t *testing.T) {
	inst := open(t)
	stranger := startOther(t, "agent", inst.Home) // the test binary, which is no devopsAgent
	d := &direct{inst: inst, goos: runtime.GOOS, crontab: memoryCrontab()}
	err := d.Stop(t.Context())
	var hinter interface{ Hint() string }
	if err == nil || !errors.As(err, &hinter) {
		t.Errorf("%v, want an error with a hint", err)
	}
	if gone(stranger.Process.Pid) {
		t.Error("a stranger was ended")
	}
	stranger.end(t)
	if err := d.Stop(t.Context()); err != nil {
		t.Errorf("with a stale pid file: %v", err)
	}
}

// TestDirectSaysWhyTheDaemonDidNotStart in the daemon's own words.
func TestDirectSaysWhyTheDaemonDidNotStart(t *testing.T) {
	inst := open(t)
	d := &direct{inst: inst, goos: runtime.GOOS, vendor: t.TempDir(), crontab: memoryCrontab(), umask: "022"}
	if err := d.Install(t.Context(), Setup{Home: inst.Home}); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a daemon: %v", err)
	}
	script := "#!/bin/sh\necho 'devopsDaemon: out of luck' >&2\necho 'hint: go home' >&2\nexit 4\n"
	if err := os.WriteFile(inst.Path("devopsDaemon"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "exit status 4: devopsDaemon: out of luck") {
		t.Errorf("%v", err)
	}
}

// TestLockOutlivesItsHolder for an instant, when that was killed between the fork and the exec of something: nobody waits
// five seconds for that.
func TestLockOutlivesItsHolder(t *testing.T) {
	h := newKeptHome(t, "")
	if err := os.Mkdir(h.Path("runtime"), 0o700); err != nil {
		t.Fatal(err)
	}
	echo := newLock(h.Path("runtime", "agent.lock"))
	if got, err := echo.TryLock(); !got || err != nil {
		t.Fatal(got, err)
	}
	h.keep(func(d *Daemon) { d.patience.lockCheck = time.Hour })
	until(t, func() bool { return strings.Contains(h.log.String(), "Daemon starts") })
	time.AfterFunc(200*time.Millisecond, func() { _ = echo.Unlock() })
	h.awaitStarts(1)
}

// TestAStormOfReloadsHidesNoStop: what is left out is what others ask for as well.
func TestAStormOfReloadsHidesNoStop(t *testing.T) {
	d := NewDaemon(DaemonOptions{})
	for range 100 {
		d.Reload()
	}
	d.Stop(false)
	d.Stop(true)
	var stops []order
	for len(d.orders) > 0 {
		if o := <-d.orders; o != orderReload {
			stops = append(stops, o)
		}
	}
	if !slices.Equal(stops, []order{orderStop, orderStopNow}) {
		t.Errorf("orders to stop that arrived: %v", stops)
	}
}
