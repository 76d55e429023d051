//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
	"github.com/devops-agent/devops-agent/service/control"
)

// recorded is a home with the stub worker at a recorder, its agent running.
func recorded(t *testing.T, toml string, env ...string) (*lab.Recorder, *lab.Home, *lab.Agent) {
	t.Helper()
	rec := lab.NewRecorder(t, lab.RecorderOptions{})
	home := lab.NewHome(t, programs(t), lab.HomeOptions{Gateway: rec.URL, TOML: toml, Set: map[string]string{"devops.language": "en_US"}})
	agent := home.Start(env...)
	if !rec.WaitN(startLimit, lab.Ask, 1) {
		t.Fatalf("no ask: %s", agent.Output())
	}
	return rec, home, agent
}

// working is recorded with a build whose worker has begun to do work.
func working(t *testing.T, toml, work string) (*lab.Recorder, *lab.Home, *lab.Agent, lab.Build) {
	t.Helper()
	rec, home, agent := recorded(t, toml)
	b := lab.NewBuild()
	home.Work(&b, work)
	rec.Queue(b)
	if !home.WaitBegan(pollLimit, b) {
		t.Fatalf("the worker did not begin: %s", home.Log())
	}
	return rec, home, agent, b
}

// ended waits for an agent that was told to end, and checks that it did so well.
func ended(t *testing.T, agent *lab.Agent, limit time.Duration) time.Duration {
	t.Helper()
	begun := time.Now()
	code, err := agent.Wait(limit)
	if err != nil || code != 0 {
		t.Fatalf("exit code %d, %v: %s\n%s", code, err, agent.Output(), agent.Home.Log())
	}
	return time.Since(begun)
}

func term(t *testing.T, agent *lab.Agent) {
	t.Helper()
	if err := agent.Term(); err != nil {
		t.Fatal(err)
	}
}

// reported is the one report of a build, which must have been accepted.
func reported(t *testing.T, rec *lab.Recorder, b lab.Build) lab.Request {
	t.Helper()
	reports := rec.Finishes(b.ID)
	if len(reports) != 1 || rec.Accepted(b.ID) != 1 {
		t.Fatalf("%d reports, %d accepted", len(reports), rec.Accepted(b.ID))
	}
	return reports[0]
}

// stoppedBecause checks that a build was stopped and reported with a true reason, and that nothing of it runs.
func stoppedBecause(t *testing.T, rec *lab.Recorder, home *lab.Home, b lab.Build, why string) {
	t.Helper()
	report := reported(t, rec, b)
	message, _ := report.Get("message").(string)
	if code, _ := report.Get("error", "errorCode").(json.Number); report.Get("success") != false || code != "2128040" ||
		!strings.Contains(message, why) {
		t.Errorf("reported %v", report)
	}
	if left := marked("BUILD_ID=" + b.ID); len(left) != 0 {
		t.Errorf("still running: %v", left)
	}
	if entries, _ := os.ReadDir(home.Path("runtime", "builds")); len(entries) != 0 {
		t.Errorf("records left: %v", entries)
	}
}

// marked are the processes with an entry in their environment.
func marked(entry string) (pids []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		env, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err == nil && strings.Contains("\x00"+string(env), "\x00"+entry+"\x00") {
			pids = append(pids, filepath.Base(dir))
		}
	}
	return pids
}

// askAgent asks the agent of a home.
func askAgent(t *testing.T, home *lab.Home, op control.Op, now bool, answer any) error {
	t.Helper()
	return control.Call(t.Context(), home.Dir, control.RoleAgent, control.Request{Op: op, Now: now}, answer)
}

// TestDrainWaitsForABuild is the issue's own case: a build that ends in time ends well.
func TestDrainWaitsForABuild(t *testing.T) {
	t.Parallel()
	const length = 6 * time.Second
	rec, _, agent, b := working(t, "[drain]\ntimeout = \"60s\"\n", fmt.Sprintf("sleep %d", int(length.Seconds())))
	begun, mark := time.Now(), rec.Mark()
	term(t, agent)
	ended(t, agent, length+15*time.Second)
	took := time.Since(begun)
	if report := reported(t, rec, b); report.Get("success") != true {
		t.Errorf("reported %v", report)
	}
	// The success is told 8 s after the end of the worker (protocol §1.6.8).
	if took < length-time.Second || took > length+8*time.Second+3*time.Second {
		t.Errorf("ended %v after SIGTERM", took)
	}
	asks := 0
	for _, q := range rec.All()[mark:] {
		if q.Endpoint == lab.Ask {
			asks++
			if kind := q.Get("askEnable", "build"); kind != "NONE" && asks > 1 { // the first may have been under way
				t.Errorf("asked for %v while stopping", kind)
			}
		}
	}
	if asks < 2 {
		t.Errorf("%d heartbeats while stopping", asks)
	}
}

// TestDrainStopsABuildInTheEnd: drain.timeout is over, the build and all that it started are gone, and the server knows why.
func TestDrainStopsABuildInTheEnd(t *testing.T) {
	t.Parallel()
	const work = "(trap '' TERM; while :; do sleep 1; done) & setsid sleep 1000 & (nohup sleep 1000 >/dev/null 2>&1 &); sleep 1000"
	rec, home, agent, b := working(t, "[drain]\ntimeout = \"5s\"\n", work)
	begun := time.Now()
	term(t, agent)
	ended(t, agent, 20*time.Second)
	if took := time.Since(begun); took < 5*time.Second || took > 8*time.Second {
		t.Errorf("ended %v after SIGTERM", took)
	}
	stoppedBecause(t, rec, home, b, "waited 5s")
}

// TestSecondSignalStopsAtOnce, also by control.
func TestSecondSignalStopsAtOnce(t *testing.T) {
	t.Parallel()
	for _, by := range []string{"SIGTERM", "SIGINT", "control"} {
		t.Run(by, func(t *testing.T) {
			t.Parallel()
			rec, home, agent, b := working(t, "", "sleep 1000")
			term(t, agent)
			if !lab.Eventually(5*time.Second, func() bool {
				var s control.Status
				return askAgent(t, home, control.OpStatus, false, &s) == nil && s.Phase == control.Stopping && s.Drain.Until != nil && len(s.Builds) == 1
			}) {
				t.Fatal("the agent does not say that it stops")
			}
			begun := time.Now()
			switch by {
			case "SIGTERM":
				term(t, agent)
			case "SIGINT":
				if err := syscall.Kill(agent.Pid(), syscall.SIGINT); err != nil {
					t.Fatal(err)
				}
			case "control":
				if err := askAgent(t, home, control.OpStop, true, nil); err != nil {
					t.Fatal(err)
				}
			}
			ended(t, agent, 15*time.Second)
			if took := time.Since(begun); took > 4*time.Second {
				t.Errorf("took %v", took)
			}
			stoppedBecause(t, rec, home, b, "at once")
		})
	}
}

// TestBuildOfTheLastMoment: the server hands a build out to a question that was under way when SIGTERM came. It runs.
func TestBuildOfTheLastMoment(t *testing.T) {
	t.Parallel()
	rec, home, agent := recorded(t, "[drain]\ntimeout = \"60s\"\n")
	b := lab.NewBuild()
	home.Work(&b, "sleep 1")
	asked, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	rec.On(lab.Ask, func(q lab.Request) *lab.Answer {
		if q.Get("askEnable", "build") != "ALL" {
			return nil
		}
		once.Do(func() {
			close(asked)
			<-release
			rec.Queue(b)
		})
		return nil
	})
	<-asked
	term(t, agent)
	if !lab.Eventually(5*time.Second, func() bool { return strings.Contains(home.Log(), "Agent stops") }) {
		t.Fatal("the agent did not hear the signal")
	}
	close(release)
	ended(t, agent, 30*time.Second)
	if report := reported(t, rec, b); report.Get("success") != true || home.Run(b).Starts() != 1 {
		t.Errorf("reported %v after %d starts", report, home.Run(b).Starts())
	}
}

// TestIdleAgentStopsAtOnce, although a controller holds its question.
func TestIdleAgentStopsAtOnce(t *testing.T) {
	t.Parallel()
	c := lab.NewController(t, programs(t))
	home, agent := enrolled(t, c)
	var s control.Status
	if !lab.Eventually(20*time.Second, func() bool { return askAgent(t, home, control.OpStatus, false, &s) == nil && s.Server.Waits }) {
		t.Fatalf("the controller does not hold questions: %+v", s)
	}
	term(t, agent)
	if took := ended(t, agent, 10*time.Second); took > time.Second { // the question is held for 30
		t.Errorf("took %v", took)
	}
	if home.Has("runtime/agent.sock") {
		t.Error("the socket is left")
	}
}

// TestDrainAndResumeByControl: a drained machine stays drained over kill -9 and over a restart, until it is resumed.
func TestDrainAndResumeByControl(t *testing.T) {
	t.Parallel()
	c := lab.NewController(t, programs(t))
	home, agent := enrolled(t, c)
	for range 2 {
		if err := askAgent(t, home, control.OpDrain, false, nil); err != nil {
			t.Fatal(err)
		}
	}
	id := c.Submit("name: later\nsteps:\n  - name: one\n    script: echo line-1-\n")
	agent.Kill()
	agent = home.Start()
	phase := func(want control.Phase) {
		t.Helper()
		var s control.Status
		if !lab.Eventually(20*time.Second, func() bool {
			return askAgent(t, home, control.OpStatus, false, &s) == nil && s.Phase == want && s.Server.LastContact != nil
		}) {
			t.Fatalf("phase %q, want %q: %s", s.Phase, want, home.Log())
		}
	}
	phase(control.Draining)
	term(t, agent)
	ended(t, agent, 10*time.Second)
	agent = home.Start()
	phase(control.Draining)
	if _, err := agent.Wait(7 * time.Second); err == nil {
		t.Fatal("a drained agent ended")
	}
	if seen, err := c.Build(id); err != nil || seen.HandOuts != 0 {
		t.Errorf("handed out to a drained agent: %+v, %v", seen, err)
	}
	for range 2 {
		if err := askAgent(t, home, control.OpResume, false, nil); err != nil {
			t.Fatal(err)
		}
	}
	phase(control.Running)
	if seen := c.Over(30*time.Second, id); seen.State != "succeeded" {
		t.Errorf("build %+v", seen)
	}
}

// TestRestartByControlKeepsTheBuild: the next agent adopts it; a stop of that one waits for it.
func TestRestartByControlKeepsTheBuild(t *testing.T) {
	t.Parallel()
	rec, home, agent, b := working(t, "[drain]\ntimeout = \"2s\"\n", "sleep 1000")
	if err := askAgent(t, home, control.OpRestart, false, nil); err != nil {
		t.Fatal(err)
	}
	if took := ended(t, agent, 10*time.Second); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
	if len(marked("BUILD_ID="+b.ID)) == 0 || len(rec.Finishes(b.ID)) != 0 {
		t.Fatal("the build is gone")
	}
	agent = home.Start()
	var s control.Status
	if !lab.Eventually(startLimit, func() bool {
		return askAgent(t, home, control.OpStatus, false, &s) == nil && len(s.Builds) == 1 && s.Builds[0].PID != 0 && s.Server.LastContact != nil
	}) {
		t.Fatalf("not adopted: %+v", s)
	}
	begun := time.Now()
	term(t, agent)
	ended(t, agent, 15*time.Second)
	if took := time.Since(begun); took < 2*time.Second || took > 5*time.Second {
		t.Errorf("ended %v after SIGTERM", took)
	}
	stoppedBecause(t, rec, home, b, "waited 2s")
}

// TestHangUpReadsTheConfigurationAgain, a good one and a broken one.
func TestHangUpReadsTheConfigurationAgain(t *testing.T) {
	t.Parallel()
	_, home, agent := recorded(t, "")
	hangUp := func() {
		t.Helper()
		if err := syscall.Kill(agent.Pid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	parallel := func(want int) bool {
		var s control.Status
		return lab.Eventually(5*time.Second, func() bool {
			return askAgent(t, home, control.OpStatus, false, &s) == nil && s.Slots.Parallel == want
		})
	}
	home.Write("agent.toml", "[builds]\nparallel = 9\n[log]\nlevel = \"debug\"\n")
	hangUp()
	if !parallel(9) {
		t.Errorf("not taken over: %s", home.Log())
	}
	home.Write("agent.toml", "[builds]\nparallel = 3\nparalel = 3\n")
	hangUp()
	if !lab.Eventually(5*time.Second, func() bool { return strings.Contains(home.Log(), "agent.toml:3: builds.paralel") }) {
		t.Errorf("no line number in the log: %s", home.Log())
	}
	if !parallel(9) {
		t.Error("a broken file took effect")
	}
	err := askAgent(t, home, control.OpReload, false, nil)
	var remote *control.RemoteError
	if !errors.As(err, &remote) || !strings.Contains(remote.Error(), "agent.toml:3:") || !strings.Contains(remote.Hint(), "builds.parallel") {
		t.Errorf("reload by control: %v", err)
	}
	if !agent.Alive() {
		t.Error("the agent ended")
	}
}

// TestWatchdogIsNotFedByAHungAgent: a loop that hangs in the kernel, on a file that turned into a pipe.
func TestWatchdogIsNotFedByAHungAgent(t *testing.T) {
	t.Parallel()
	address := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	var mu sync.Mutex
	var fed time.Time
	var said []string
	read := make(chan struct{})
	go func() {
		defer close(read)
		message := make([]byte, 4096)
		for {
			n, err := socket.Read(message)
			if err != nil {
				return
			}
			mu.Lock()
			said = append(said, string(message[:n]))
			if strings.Contains(string(message[:n]), "WATCHDOG=1") {
				fed = time.Now()
			}
			mu.Unlock()
		}
	}()
	defer func() { _ = socket.Close(); <-read }()
	last := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return fed
	}
	rec := lab.NewRecorder(t, lab.RecorderOptions{})
	home := lab.NewHome(t, programs(t), lab.HomeOptions{Gateway: rec.URL, Set: map[string]string{"devops.docker.enable": "true"}})
	home.Start("NOTIFY_SOCKET="+address, "WATCHDOG_USEC=45000000")
	if !lab.Eventually(startLimit+15*time.Second, func() bool { return rec.WaitN(time.Millisecond, lab.Ask, 3) && time.Since(last()) < 16*time.Second }) {
		t.Fatalf("the watchdog is not fed: %q", said)
	}
	if err := syscall.Mkfifo(home.Path("agent_docker_init.sh"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Ask has 10 s for a call and what it needs besides, and is looked at every 15 s.
	if !lab.Eventually(time.Minute, func() bool { return time.Since(last()) > 32*time.Second }) {
		t.Errorf("a hung agent feeds its watchdog: %q", said)
	}
	mu.Lock()
	defer mu.Unlock()
	if all := strings.Join(said, "\n"); !strings.Contains(all, "READY=1") || !strings.Contains(all, "STATUS=idle, last contact ") {
		t.Errorf("said %q", said)
	}
	// The environment that the keeper gave must not reach a build.
	if env, err := os.ReadFile(filepath.Join("/proc/self", "environ")); err == nil && strings.Contains(string(env), address) {
		t.Error("the test itself has the variable")
	}
}

// TestEnrolmentByConfiguration: a machine with [enroll] and no identity waits for its server, and then works.
func TestEnrolmentByConfiguration(t *testing.T) {
	t.Parallel()
	p := programs(t)
	c := lab.NewController(t, p)
	token, code := c.Run("", "enroll-token")
	if code != 0 {
		t.Fatal("no token")
	}
	home := lab.NewHome(t, p, lab.HomeOptions{Worker: p.Worker, NoJar: true, JDK: "-", Gateway: c.URL,
		TOML: fmt.Sprintf("[enroll]\ngateway = %q\ntoken_file = \"token\"\n", c.URL)})
	home.Remove(".agent.properties")
	agent := home.Start()
	var s control.Status
	if !lab.Eventually(10*time.Second, func() bool { return askAgent(t, home, control.OpStatus, false, &s) == nil && s.Server.Error != "" }) {
		t.Fatalf("no status before the enrolment: %s", agent.Output())
	}
	if s.Phase != control.Unenrolled || !strings.Contains(s.Server.Error, "install token") {
		t.Errorf("status %+v", s)
	}
	home.Write("token", token)
	if !lab.Eventually(30*time.Second, func() bool {
		return askAgent(t, home, control.OpStatus, false, &s) == nil && s.Phase == control.Running
	}) {
		t.Fatalf("status %+v: %s", s, home.Log())
	}
	if err := control.Call(context.Background(), home.Dir, control.RoleAgent, control.Request{Op: control.OpStop}, nil); err != nil {
		t.Error(err)
	}
	ended(t, agent, 10*time.Second)
}
