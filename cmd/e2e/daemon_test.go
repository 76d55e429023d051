//go:build linux

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

func daemonScenarios() []scenario {
	return []scenario{
		both("daemon", daemonKeeps, 97, 98, 99, 103),
		both("daemon and total-lock", daemonUnderTotal, 100),
		both("daemon of a removed agent", daemonOfRemoved, 101),
		both("daemon beside a foreign agent", daemonBesideForeign, 102),
		both("daemon of the original", originalDaemon, 98, 99, 102),
		both("drain --wait and a killed agent", drainWaits, 103),
		both("upgrader's command line", upgraderArguments, 105, 106),
		both("upgrader with a new agent", upgraderReplaces, 107),
		both("upgrader and total-lock", upgraderUnderTotal, 108),
	}
}

// install copies a program into a home, as an installer does.
func (w *world) install(program, name string) string {
	w.Helper()
	err := os.MkdirAll(filepath.Dir(w.home.Path(name)), 0o755) //nolint:gosec // an install tree
	if err == nil {                                            // not by ourselves: a child of another test, just forked, would hold the file open for writing (ETXTBSY)
		err = exec.Command("cp", program, w.home.Path(name)).Run()
	}
	if err != nil {
		w.Fatalf("install %s: %v", name, err)
	}
	return w.home.Path(name)
}

// guard starts the daemon of a home.
func (w *world) guard(args ...string) *lab.Agent {
	w.Helper()
	if !w.home.Has("devopsDaemon") {
		w.install(w.programs.Daemon, "devopsDaemon")
	}
	return w.home.StartProgram(w.home.Path("devopsDaemon"), "/", args)
}

// pidOf reads a pid file, 0 when there is none.
func (w *world) pidOf(role string) int {
	text, err := os.ReadFile(w.home.Path("runtime", role+".pid"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		return 0
	}
	return pid
}

// agents counts the agents of a home.
func (w *world) agents() []int {
	var pids []int
	for _, pid := range lab.Marked("LAB_DIR=" + w.home.Lab) {
		if path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && strings.HasPrefix(path, w.home.Path("devopsAgent")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// one reports whether there is one agent; for a moment, a child that it is about to start looks like a second one.
func (w *world) one() bool {
	return lab.Eventually(5*time.Second, func() bool { return len(w.agents()) == 1 })
}

// next waits for the first request of the next agent after mark: what the one before had on the way is none.
func (w *world) next(mark int, limit time.Duration) lab.Request {
	w.Helper()
	q, ok := w.rec.WaitFor(limit, mark, lab.Startup)
	if !ok {
		data, _ := os.ReadFile(w.home.Path("logs", "devopsDaemon.log"))
		w.Fatalf("no request within %v; the daemon says: %s", limit, data)
	}
	return q
}

// killAgent kills the agent of a home.
func (w *world) killAgent() time.Time {
	w.Helper()
	pid := w.pidOf("agent")
	if pid <= 1 {
		w.Fatalf("no agent.pid")
	}
	at := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		w.Fatalf("kill the agent: %v", err)
	}
	return at
}

// daemonKeeps: an agent that was killed, or ended by itself, is back; its builds go on.
func daemonKeeps(s *S) {
	w := s.world(lab.HomeOptions{})
	build := lab.NewBuild()
	open := w.home.Gate(build)
	w.rec.Queue(build)
	daemon := w.guard()
	w.next(0, startLimit)
	w.mustBegin(40*time.Second, build)
	pid, err := os.ReadFile(w.home.Path("runtime", "daemon.pid"))
	s.check(97, err == nil && string(pid) == strconv.Itoa(daemon.Pid()), "daemon.pid is %q, want %d; %v", pid, daemon.Pid(), err)
	s.check(98, !lockable(w.home.Path("runtime", "daemon.lock")), "daemon.lock can be taken")
	for i := range 3 {
		mark := w.rec.Mark()
		at := w.killAgent()
		took := w.next(mark, 10*time.Second).At.Sub(at)
		s.check(99, took < 5*time.Second, "kill %d: the agent was back after %v", i, took)
	}
	s.check(103, w.home.Run(build).Starts() == 1, "the worker was started %d times", w.home.Run(build).Starts())
	second := w.guard()
	code, err := second.Wait(15 * time.Second)
	s.check(98, err == nil && code == 0, "a second daemon: code %d, %v", code, err)
	open()
	w.mustFinish(60*time.Second, build)
	s.check(103, len(w.rec.Finishes(build.ID)) == 1, "%d reports", len(w.rec.Finishes(build.ID)))
	s.check(99, w.one(), "agents: %v", w.agents())
	mark := w.rec.Mark()
	if err := daemon.Term(); err != nil {
		s.Fatalf("%v", err)
	}
	code, err = daemon.Wait(30 * time.Second)
	s.check(99, err == nil && code == 0, "the daemon after SIGTERM: code %d, %v", code, err)
	s.check(99, len(w.agents()) == 0, "agents left after SIGTERM: %v (requests meanwhile: %d)", w.agents(), w.rec.Mark()-mark)
}

// hold takes a lock file of a home, as an original process has it.
func (w *world) hold(name string) *os.File {
	w.Helper()
	err := os.MkdirAll(w.home.Path("runtime"), 0o700)
	var f *os.File
	if err == nil {
		f, err = os.OpenFile(w.home.Path("runtime", name+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	}
	if err == nil {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX) //nolint:gosec // a descriptor fits
	}
	if err != nil {
		w.Fatalf("lock %s: %v", name, err)
	}
	return f
}

func daemonUnderTotal(s *S) {
	w := s.world(lab.HomeOptions{})
	daemon := w.guard()
	w.next(0, startLimit)
	total := w.hold("total-lock")
	w.killAgent()
	if !lab.Eventually(10*time.Second, func() bool { return len(w.agents()) == 0 }) {
		s.Fatalf("agents %v", w.agents())
	}
	mark := w.rec.Mark()
	if code, err := daemon.Wait(8 * time.Second); err == nil {
		s.Fatalf("the daemon ended with code %d", code)
	}
	s.check(100, len(w.agents()) == 0 && w.rec.Mark() == mark, "an agent was started under total-lock: %v", w.agents())
	_ = total.Close()
	w.next(mark, 10*time.Second)
	s.check(100, w.one(), "agents after it was free: %v", w.agents())
}

// drainWaits: the verb outlives the agent that it asked; the next one drains, too, and has the build.
func drainWaits(s *S) {
	w := s.world(lab.HomeOptions{})
	build := lab.NewBuild()
	open := w.home.Gate(build)
	w.rec.Queue(build)
	daemon := w.guard()
	w.mustBegin(40*time.Second, build)
	type end struct {
		stdout, stderr string
		code           int
	}
	ended := make(chan end, 1)
	go func() {
		var e end
		e.stdout, e.stderr, e.code = verb(s, w.home.Path("devopsAgent"), w.home.Dir, "drain", "--wait")
		ended <- e
	}()
	if !lab.Eventually(10*time.Second, func() bool { return w.home.Has("runtime/draining") }) {
		s.Fatalf("not draining: %s", w.home.Log())
	}
	early := false
	wait := func(limit time.Duration) {
		select {
		case e := <-ended:
			early = true
			ended <- e
		case <-time.After(limit):
		}
	}
	total := w.hold("total-lock") // no agent for a while
	w.killAgent()
	wait(1500 * time.Millisecond)
	mark := w.rec.Mark()
	_ = total.Close()
	w.next(mark, 10*time.Second)
	wait(1500 * time.Millisecond)
	open()
	e := <-ended
	s.check(103, !early && e.code == 0 && e.stdout == "draining: 0 builds running\n", "drain --wait: before the end of the build: %v; exit %d, %s%s", early, e.code, e.stdout, e.stderr)
	if err := daemon.Term(); err != nil {
		s.Fatalf("%v", err)
	}
	if code, err := daemon.Wait(30 * time.Second); err != nil || code != 0 {
		s.check(103, false, "the daemon after SIGTERM: code %d, %v", code, err)
	}
}

func daemonOfRemoved(s *S) {
	w := s.world(lab.HomeOptions{})
	daemon := w.guard()
	w.next(0, startLimit)
	w.beats(1)
	w.rec.SetStatus("DELETE")
	code, err := daemon.Wait(100 * time.Second)
	s.check(101, err == nil && code == 88, "the daemon: code %d, %v; want 88", code, err)
	s.check(101, len(w.agents()) == 0, "agents left: %v", w.agents())
}

// daemonBesideForeign: agent.lock is held by a process that no daemon knows; later by an agent that somebody else started.
func daemonBesideForeign(s *S) {
	w := s.world(lab.HomeOptions{})
	foreign := w.hold("agent")
	daemon := w.guard()
	if code, err := daemon.Wait(12 * time.Second); err == nil {
		s.Fatalf("the daemon ended with code %d", code)
	}
	s.check(102, w.rec.Mark() == 0 && len(w.agents()) == 0, "an agent was started: %v", w.agents())
	_ = foreign.Close()
	w.next(0, 15*time.Second)

	daemon.Kill() // the agent stays, and the next daemon takes it up
	pid := w.pidOf("agent")
	daemon = w.guard()
	if !lab.Eventually(20*time.Second, func() bool { return w.pidOf("daemon") == daemon.Pid() }) {
		s.Fatalf("no second daemon: daemon.pid is %d", w.pidOf("daemon"))
	}
	w.beats(1)
	s.check(102, w.one() && slices.Equal(w.agents(), []int{pid}), "agents %v, want only %d", w.agents(), pid)
	mark := w.rec.Mark()
	at := w.killAgent()
	took := w.next(mark, 15*time.Second).At.Sub(at)
	s.check(102, took < 6*time.Second, "an adopted agent was back after %v", took)
	w.beats(1)
	s.check(102, w.one(), "agents %v", w.agents())
	if err := daemon.Term(); err != nil {
		s.Fatalf("%v", err)
	}
	if code, err := daemon.Wait(30 * time.Second); err != nil || code != 0 {
		s.check(102, false, "the daemon after SIGTERM: code %d, %v", code, err)
	}
}

// originalDaemon is our agent under a daemon that does what protocol §3.5.1 says of the original's.
func originalDaemon(s *S) {
	w := s.world(lab.HomeOptions{})
	mark := 0
	for i := range 3 {
		// lock total-lock, probe agent.lock, start, release agent.lock, release total-lock
		total := w.hold("total-lock")
		probe := w.hold("agent") // waits for ever where it is held
		agent := w.home.Start()
		_ = probe.Close()
		_ = total.Close()
		q := w.next(mark, startLimit)
		s.check(99, agent.Alive(), "start %d: the agent went away: %s", i, w.home.Log())
		s.check(98, !lockable(w.home.Path("runtime", "agent.lock")), "agent.lock can be taken while the agent runs")
		s.check(98, w.pidOf("agent") == agent.Pid(), "agent.pid is %d, want %d", w.pidOf("agent"), agent.Pid())
		for range 20 { // its tick: total-lock, then a look at agent.lock
			total := w.hold("total-lock")
			s.check(102, !lockable(w.home.Path("runtime", "agent.lock")), "the daemon would start a second agent")
			_ = total.Close()
		}
		s.check(99, !q.At.IsZero(), "no request")
		agent.Kill()
		mark = w.rec.Mark()
	}
}

func upgraderArguments(s *S) {
	w := s.world(lab.HomeOptions{})
	upgrader := w.install(w.programs.Upgrader, "tmp/upgrader2")
	run := func(args ...string) (int, string) {
		before, _ := os.ReadFile(w.home.LabPath("output"))
		a := w.home.StartProgram(upgrader, w.home.Dir, args)
		code, err := a.Wait(20 * time.Second)
		if err != nil {
			s.Fatalf("upgrader %v: %v", args, err)
		}
		return code, strings.TrimPrefix(a.Output(), string(before))
	}
	for _, args := range [][]string{{"-action=nonsense"}, {"-action="}, {"--action", "nonsense"}} {
		code, out := run(args...)
		s.check(105, code == 1 && strings.Contains(out, "unknown action"), "%v: code %d, %q", args, code, out)
	}
	program, err := os.ReadFile(w.home.Path("devopsAgent"))
	if err == nil {
		err = os.WriteFile(w.home.Path("tmp", "devopsAgent"), program, 0o755) //nolint:gosec // a program
	}
	if err != nil {
		s.Fatalf("%v", err)
	}
	w.install(w.programs.Daemon, "devopsDaemon")
	w.install(w.programs.Daemon, "tmp/devopsDaemon")
	daemon := w.guard()
	w.next(0, startLimit)
	state := func() string {
		var b strings.Builder
		for _, name := range []string{"devopsAgent", "devopsDaemon", "tmp/devopsAgent", "tmp/devopsDaemon", "tmp/upgrader", ".agent.properties"} {
			info, err := os.Stat(w.home.Path(name))
			if err != nil {
				fmt.Fprintln(&b, err)
				continue
			}
			stat, _ := info.Sys().(*syscall.Stat_t)
			fmt.Fprintln(&b, name, info.Size(), info.ModTime(), info.Mode(), stat.Ino)
		}
		return fmt.Sprint(b.String(), w.pidOf("agent"), w.pidOf("daemon"))
	}
	before := state()
	for _, args := range [][]string{nil, {"-action=upgrade"}, {"--action", "upgrade"}} {
		n := 106
		if args == nil {
			n = 105
		}
		code, out := run(args...)
		s.check(n, code == 0, "%v with identical files: code %d, %q", args, code, out)
		s.check(n, state() == before, "%v changed\n%s to\n%s", args, before, state())
	}
	s.check(106, w.pidOf("upgrade") > 1, "no upgrade.pid")
	log, _ := os.ReadFile(w.home.Path("logs", "devopsUpgrader.log"))
	s.check(105, bytes.Count(log, []byte("action=upgrade")) == 3, "log: %s", log)
	s.check(106, daemon.Alive() && w.one(), "agents %v", w.agents())
	code, out := run("version")
	s.check(105, code == 0 && strings.Count(out, "\n") == 1, "version: code %d, %q", code, out)
}

// upgraderReplaces: whoever reads the program while it is replaced finds a whole one, old or new; the old agent's process is gone.
func upgraderReplaces(s *S) {
	next, err := nextPrograms()
	if err != nil {
		s.Fatalf("%v", err)
	}
	w := s.world(lab.HomeOptions{})
	live := w.home.Path("devopsAgent")
	w.start()
	old := w.agent.Pid()
	upgrader := w.install(w.programs.Upgrader, "tmp/upgrader2")
	w.install(next.agent, "tmp/devopsAgent")
	sizes := map[int64]bool{}
	for _, program := range []string{live, next.agent} {
		info, err := os.Stat(program)
		if err != nil {
			s.Fatalf("%v", err)
		}
		sizes[info.Size()] = true
	}
	stop, looked := make(chan struct{}), make(chan string, 1)
	looks := 0
	go func() {
		for {
			select {
			case <-stop:
				looked <- ""
				return
			default:
			}
			info, err := os.Stat(live)
			if err != nil || !sizes[info.Size()] || info.Mode().Perm()&0o100 == 0 {
				looked <- fmt.Sprint(info, err)
				return
			}
			looks++
		}
	}()
	a := w.home.StartProgram(upgrader, w.home.Dir, []string{"-action=upgrade"})
	code, err := a.Wait(time.Minute)
	close(stop)
	wrong := <-looked
	s.check(107, err == nil && code == 0, "code %d, %v: %s", code, err, a.Output())
	s.check(107, wrong == "" && looks > 100, "after %d looks: %s", looks, wrong)
	s.check(107, lab.Eventually(20*time.Second, func() bool { return !slices.Contains(w.agents(), old) }), "the old agent, %d, still runs", old)
	out, err := exec.Command(live, "version").Output()
	s.check(107, err == nil && strings.TrimSpace(string(out)) == nextVersion, "version %q, %v", out, err)
}

func upgraderUnderTotal(s *S) {
	w := s.world(lab.HomeOptions{})
	upgrader := w.install(w.programs.Upgrader, "tmp/upgrader2")
	total := w.hold("total-lock")
	a := w.home.StartProgram(upgrader, w.home.Dir, nil)
	code, err := a.Wait(5 * time.Second)
	s.check(108, err != nil, "the upgrader ended with code %d while total-lock was held: %s", code, a.Output())
	_ = total.Close()
	code, err = a.Wait(10 * time.Second)
	s.check(108, err == nil && code == 0, "code %d, %v after total-lock was free: %s", code, err, a.Output())
}

// daemonWorld is a world for a test of its own: an agent that uses ask.
func daemonWorld(t *testing.T) *world {
	t.Helper()
	p := programs(t)
	s := &S{name: t.Name(), mode: "ask", programs: p, parent: t, done: make(chan struct{}), verdicts: map[int]*verdict{}}
	t.Cleanup(func() {
		s.execute(func(*S) {}) // its clean-ups
		if s.aborted != "" {
			t.Error(s.aborted)
		}
		if t.Failed() {
			t.Log(s.tail())
		}
	})
	return s.world(lab.HomeOptions{})
}

// run runs a part of a test that may end early.
func (w *world) run(t *testing.T, test func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); test() }()
	<-done
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.aborted != "" {
		t.FailNow()
	}
}

// percentile sorts and picks.
func percentile(list []time.Duration, p int) time.Duration {
	slices.Sort(list)
	return list[min(len(list)-1, len(list)*p/100)]
}

// TestDaemonBringsAKilledAgentBack: from kill -9 to the next request. The bounds are for a machine that does nothing else;
// the test allows three times as much.
func TestDaemonBringsAKilledAgentBack(t *testing.T) {
	w := daemonWorld(t)
	w.run(t, func() {
		daemon := w.guard()
		w.next(0, startLimit)
		var took []time.Duration
		for range 50 {
			mark := w.rec.Mark()
			at := w.killAgent()
			took = append(took, w.next(mark, 10*time.Second).At.Sub(at))
		}
		median, worst := percentile(took, 50), percentile(took, 100)
		t.Logf("50 times kill -9: median %v, worst %v", median.Round(time.Millisecond), worst.Round(time.Millisecond))
		if median > 300*time.Millisecond || worst > 900*time.Millisecond {
			t.Errorf("median %v, worst %v", median, worst)
		}
		if !w.one() || !daemon.Alive() {
			t.Errorf("agents %v, daemon alive: %v", w.agents(), daemon.Alive())
		}
		var rss int64 // once it has settled: see the bound in docs/decisions/0009-daemon.md
		small := lab.Eventually(15*time.Second, func() bool {
			var err error
			rss, _, err = lab.Memory(daemon.Pid())
			return err == nil && rss <= 4<<20
		})
		t.Logf("resident: %d KiB", rss>>10)
		if !small && os.Getenv("E2E_RACE") == "" {
			t.Errorf("resident: %d KiB, want at most 4 MiB", rss>>10)
		}
	})
}

// cpu is the time that a process has used.
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	user, err1 := strconv.Atoi(f[11])
	system, err2 := strconv.Atoi(f[12])
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond // clock ticks of 1/100 s
}

// TestDaemonSurvivesBadPrograms: a hundred kills, then programs that do not run in several ways, then a good one.
func TestDaemonSurvivesBadPrograms(t *testing.T) {
	t.Parallel()
	long := 20 * time.Second
	if d, err := time.ParseDuration(os.Getenv("E2E_CRASH_LOOP")); err == nil {
		long = d
	}
	w := daemonWorld(t)
	w.run(t, func() {
		daemon := w.guard()
		w.next(0, startLimit)
		for range 100 {
			mark := w.rec.Mark()
			w.killAgent()
			w.next(mark, 5*time.Second)
		}
		good, err := os.ReadFile(w.home.Path("devopsAgent"))
		if err != nil {
			t.Error(err)
			return
		}
		replace := func(data []byte) {
			fresh := w.home.Path("devopsAgent.new")
			err := os.WriteFile(fresh, data, 0o755) //nolint:gosec // a program
			if err == nil {
				err = os.Rename(fresh, w.home.Path("devopsAgent"))
			}
			if err != nil {
				t.Error(err)
			}
		}
		for _, bad := range []struct {
			name string
			data []byte
			long time.Duration
		}{
			{"ends at once", []byte("#!/bin/sh\necho 'devopsAgent: no luck today' >&2\nexit 1\n"), long},
			{"ends well at once", []byte("#!/bin/sh\nexit 0\n"), 3 * time.Second},
			{"is no program", []byte("\x7fELF of another machine"), 3 * time.Second},
			{"is empty", nil, 3 * time.Second},
		} {
			replace(bad.data)
			mark := w.rec.Mark()
			w.killAgentIfAny()
			used := cpu(t, daemon.Pid())
			if code, err := daemon.Wait(bad.long); err == nil {
				t.Errorf("%s: the daemon ended with code %d", bad.name, code)
				return
			}
			share := float64(cpu(t, daemon.Pid())-used) / float64(bad.long)
			t.Logf("%s: %.2f %% of a processor over %v", bad.name, 100*share, bad.long)
			if bad.long >= 10*time.Second && share > 0.02 {
				t.Errorf("%s: %.1f %% of a processor", bad.name, 100*share)
			}
			replace(good)
			at := time.Now()
			w.next(mark, 10*time.Second)
			t.Logf("%s: a good one is back after %v", bad.name, time.Since(at).Round(time.Millisecond))
		}
		log, err := os.ReadFile(w.home.Path("logs", "devopsDaemon.log"))
		if err != nil || !bytes.Contains(log, []byte("no luck today")) || !bytes.Contains(log, []byte("times=")) {
			t.Errorf("the log does not say why: %v\n%s", err, log)
		}
	})
}

// killAgentIfAny kills the agent where there is one.
func (w *world) killAgentIfAny() {
	for _, pid := range w.agents() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// TestDaemonReplacesAHungAgent: one that it started, and one that it found.
func TestDaemonReplacesAHungAgent(t *testing.T) {
	t.Parallel() // it waits for most of a minute
	for _, adopted := range []bool{false, true} {
		t.Run(fmt.Sprintf("adopted=%v", adopted), func(t *testing.T) {
			t.Parallel()
			w := daemonWorld(t)
			w.run(t, func() {
				if adopted {
					w.start()
				}
				w.guard()
				w.next(0, startLimit)
				w.beats(1)
				hung := w.pidOf("agent")
				mark := w.rec.Mark()
				at := time.Now()
				if err := syscall.Kill(hung, syscall.SIGSTOP); err != nil {
					t.Error(err)
					return
				}
				took := w.next(mark, 80*time.Second).At.Sub(at)
				t.Logf("replaced after %v", took.Round(time.Millisecond))
				if took > 61*time.Second || w.pidOf("agent") == hung {
					t.Errorf("after %v the agent is process %d, before %d", took, w.pidOf("agent"), hung)
				}
				log, _ := os.ReadFile(w.home.Path("logs", "devopsDaemon.log"))
				if !bytes.Contains(log, []byte("hangs")) || !adopted && !bytes.Contains(log, []byte("goroutine ")) {
					t.Errorf("log: %s", log)
				}
			})
		})
	}
}

// TestDaemonOfAPlainUser: devopsDaemon installed, asked and removed without privileges, through the agent's verbs.
func TestDaemonOfAPlainUser(t *testing.T) {
	w := daemonWorld(t)
	w.run(t, func() {
		w.install(w.programs.Daemon, "devopsDaemon")
		w.install(w.programs.Upgrader, "upgrader")
		verbs := func(args ...string) string {
			cmd := exec.Command(w.home.Path("devopsAgent"), append(args, "--home", w.home.Dir)...)
			cmd.Env = append(os.Environ(), "LAB_DIR="+w.home.Lab, "HOME="+w.home.User)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v: %v\n%s", args, err, out)
			}
			return string(out)
		}
		verbs("install", "direct")
		w.next(0, startLimit)
		if text, err := os.ReadFile(w.home.Path(".install_type")); err != nil || string(text) != "DIRECT" {
			t.Errorf(".install_type %q, %v", text, err)
		}
		daemon := w.pidOf("daemon")
		verbs("install", "direct")
		verbs("start")
		if w.pidOf("daemon") != daemon || !w.one() {
			t.Errorf("a second start changed something: daemon %d, was %d; agents %v", w.pidOf("daemon"), daemon, w.agents())
		}
		agent := w.pidOf("agent")
		mark := w.rec.Mark()
		verbs("restart")
		w.next(mark, 10*time.Second)
		if w.pidOf("agent") == agent || w.pidOf("daemon") != daemon {
			t.Errorf("restart: agent %d, was %d; daemon %d, was %d", w.pidOf("agent"), agent, w.pidOf("daemon"), daemon)
		}
		verbs("stop")
		verbs("stop")
		if len(w.agents()) != 0 || lab.Running(daemon) {
			t.Errorf("after stop: agents %v, daemon runs: %v", w.agents(), lab.Running(daemon))
		}
		verbs("start")
		upgrader := exec.Command(w.programs.Upgrader, "-action=uninstall")
		upgrader.Dir = w.home.Dir
		if out, err := upgrader.CombinedOutput(); err != nil {
			t.Errorf("uninstall: %v\n%s", err, out)
		}
		if len(w.agents()) != 0 || !lockable(w.home.Path("runtime", "daemon.lock")) || w.home.Has(".keeper") || w.home.Has(".install_type") {
			t.Errorf("after uninstall: agents %v", w.agents())
		}
	})
}

// TestUpgraderStart: what keepers run in the agent's place becomes the agent, slows down one that comes to nothing, and says
// so meanwhile.
func TestUpgraderStart(t *testing.T) {
	w := daemonWorld(t)
	w.run(t, func() {
		const script = "#!/bin/sh\necho \"$$ $PWD $NOTIFY_SOCKET $*\" >>\"$LAB_DIR/lives\"\nexit 3\n"
		program := func(path, text string) {
			w.Helper()
			err := os.MkdirAll(filepath.Dir(path), 0o755) //nolint:gosec // an install tree
			if err == nil {
				err = os.WriteFile(path+".new", []byte(text), 0o755) //nolint:gosec // a program
			}
			if err == nil {
				err = os.Rename(path+".new", path)
			}
			if err != nil {
				w.Fatalf("write %s: %v", path, err)
			}
		}
		address := w.home.LabPath("notify")
		keeper, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
		if err != nil {
			w.Fatalf("%v", err)
		}
		defer func() { _ = keeper.Close() }()
		start := func(args ...string) *lab.Agent {
			return w.home.StartProgram(w.programs.Upgrader, "/", append([]string{"start", "--home", w.home.Dir}, args...), "NOTIFY_SOCKET="+address)
		}
		lives := func() []string {
			text, _ := os.ReadFile(w.home.LabPath("lives"))
			return strings.Split(strings.TrimSpace(string(text)), "\n")
		}
		program(w.home.Path("devopsAgent"), script)
		for i := range 6 {
			a := start("--", "debug", "two words")
			if code, err := a.Wait(5 * time.Second); err != nil || code != 3 {
				w.Fatalf("start %d: code %d, %v; %s", i, code, err, a.Output())
			}
			want := fmt.Sprintf("%d %s %s debug two words", a.Pid(), w.home.Dir, address)
			if got := lives(); len(got) != i+1 || got[i] != want {
				t.Errorf("start %d: %q, want %q", i, got[len(got)-1], want)
			}
		}
		var waited time.Duration
		for range 4 { // 0.2, 0.4, 0.8, 1.6 s
			at := time.Now()
			if code, err := start().Wait(10 * time.Second); err != nil || code != 3 {
				w.Fatalf("code %d, %v", code, err)
			}
			waited = time.Since(at)
		}
		if waited < 1600*time.Millisecond || waited > 5*time.Second {
			t.Errorf("the tenth start was held back for %v", waited)
		}
		var said strings.Builder
		_ = keeper.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		for buf := make([]byte, 4096); ; {
			n, err := keeper.Read(buf)
			if err != nil {
				break
			}
			fmt.Fprintf(&said, "%s\n", buf[:n])
		}
		if !strings.Contains(said.String(), "STATUS=the agent ended 9 times in a row") || !strings.Contains(said.String(), "EXTEND_TIMEOUT_USEC=6") {
			t.Errorf("the keeper heard %q", said.String())
		}

		a := start() // 3.2 s
		if code, err := a.Wait(300 * time.Millisecond); err == nil {
			t.Errorf("not held back: code %d", code)
		}
		at := time.Now()
		_ = a.Term()
		if code, err := a.Wait(5 * time.Second); err != nil || code != 0 || time.Since(at) > time.Second {
			t.Errorf("SIGTERM: code %d, %v, after %v", code, err, time.Since(at))
		}
		a = start() // 6.4 s
		before := len(lives())
		if code, err := a.Wait(300 * time.Millisecond); err == nil {
			t.Errorf("not held back: code %d", code)
		}
		program(w.home.Path("devopsAgent"), script+"# another one\n")
		if code, err := a.Wait(4 * time.Second); err != nil || code != 3 || len(lives()) != before+1 {
			t.Errorf("a new program: code %d, %v", code, err)
		}
		if code, err := start().Wait(time.Second); err != nil || code != 3 {
			t.Errorf("the new program is held back for the old one: code %d, %v", code, err)
		}

		// No record can be kept, and home has no program: the package's runs.
		err = errors.Join(os.Remove(w.home.Path("devopsAgent")), os.RemoveAll(w.home.Path("runtime")), os.WriteFile(w.home.Path("runtime"), nil, 0o600))
		if err != nil {
			t.Error(err)
		}
		vendor := w.home.LabPath("vendor")
		program(filepath.Join(vendor, "devopsAgent"), script)
		a = start("--vendor", vendor)
		code, err := a.Wait(5 * time.Second)
		got := lives()
		if err != nil || code != 3 || !strings.HasSuffix(got[len(got)-1], " --home "+w.home.Dir) {
			t.Errorf("the package's: code %d, %v, %q", code, err, got[len(got)-1])
		}
		if code, err := start().Wait(5 * time.Second); err != nil || code != 1 {
			t.Errorf("no agent at all: code %d, %v", code, err)
		}
	})
}
