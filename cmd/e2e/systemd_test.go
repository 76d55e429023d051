//go:build lab && linux

package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
	"github.com/devops-agent/devops-agent/service"
)

// bootLimit is for what happens after a start of a box or a unit, on a busy machine.
const bootLimit = 30 * time.Second

// machine is a box with an agent in it and the server that the agent talks to: a recorder or a controller.
type machine struct {
	*testing.T
	box     *lab.Box
	rec     *lab.Recorder
	control *lab.Controller

	home, account, unit string
	systemctl           []string // the command and what it needs to reach the right manager
}

// boxed makes a box with the programs of a package in it, laid out as the package does, and nothing started.
func boxed(t *testing.T, o lab.BoxOptions) *machine {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("needs root on Debian: boxes are containers")
	}
	p := programs(t)
	m := &machine{T: t, box: lab.NewBox(t, o)}
	if !o.Plain {
		m.systemctl = []string{"systemctl"}
	}
	l := service.Packaged("linux")
	for name, program := range map[string]string{"devopsAgent": p.Agent, "devopsDaemon": p.Daemon, "upgrader": p.Upgrader, "devopsWorker": p.Worker} {
		m.box.Copy(program, l.Vendor+"/"+name)
	}
	t.Cleanup(func() {
		if t.Failed() {
			m.tell()
		}
	})
	return m
}

// tell logs what a human would look at first.
func (m *machine) tell() {
	if m.unit != "" {
		out, _ := m.box.Exec(append(m.systemctl, "status", "--no-pager", "-l", "-n", "40", m.unit)...)
		m.Logf("%s", out)
	}
	for _, log := range []string{"devopsAgent.log", "devopsDaemon.log"} {
		text := m.box.Read(m.home + "/logs/" + log)
		m.Logf("%s: …%s", log, text[max(0, len(text)-4000):])
	}
	if m.control != nil {
		text := m.control.Log()
		m.Logf("controller: …%s", text[max(0, len(text)-2000):])
	}
}

// packaged makes a box with the files of a Linux package; agent.toml is the operator's. The agent is not enrolled.
func packaged(t *testing.T, name, toml string) *machine {
	t.Helper()
	m := boxed(t, lab.BoxOptions{Name: name})
	l := service.Packaged("linux")
	m.home, m.account, m.unit = l.Home, l.Account, l.Name
	files, err := service.SystemdFiles()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		m.box.Write(f.Path, f.Text, f.Mode)
	}
	m.box.Write(l.Config, toml, 0o644)
	m.box.Shell("systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload")
	return m
}

// recorded enrols the agent at a recorder, by hand.
func (m *machine) recorded() *machine {
	m.Helper()
	m.rec = lab.NewRecorder(m, lab.RecorderOptions{})
	m.identity(m.home, m.rec.URL, "aglab")
	return m
}

// identity writes an identity into a home.
func (m *machine) identity(home, gateway, id string) {
	m.Helper()
	m.box.Write(home+"/.agent.properties", "devops.project.id=lab\ndevops.agent.id="+id+"\ndevops.agent.secret.key=s3cr3t\nlandun.gateway="+
		gateway+"\ndevops.parallel.task.count=4\nlandun.env=PROD\ndevops.language=en_US\ndevops.agent.collectorOn=false\n", 0o600)
	m.box.Run("chown", m.account+":", home, home+"/.agent.properties")
}

// controlled enrols the agent at a controller, as an operator does.
func (m *machine) controlled() *machine {
	m.Helper()
	m.control = lab.NewController(m, programs(m.T))
	m.enrol(m.home)
	return m
}

func (m *machine) enrol(home string) {
	m.Helper()
	token, _ := m.control.Run("", "enroll-token")
	if _, err := m.box.As(m.account, token, "/usr/lib/devops-agent/devopsAgent", "enroll", "--home", home, "--gateway", m.control.URL); err != nil {
		m.Fatalf("enrol: %v", err)
	}
}

// ctl runs systemctl, which must succeed.
func (m *machine) ctl(args ...string) string {
	m.Helper()
	return m.box.Run(append(slices.Clone(m.systemctl), args...)...)
}

// show is a property of the unit.
func (m *machine) show(property string) string {
	m.Helper()
	return m.ctl("show", "-p", property, "--value", m.unit)
}

// await waits for a condition.
func (m *machine) await(limit time.Duration, what string, holds func() bool) time.Duration {
	m.Helper()
	begun := time.Now()
	if !lab.Eventually(limit, holds) {
		m.Fatalf("%s: not within %v", what, limit)
	}
	return time.Since(begun)
}

// awaitStatus waits until STATUS= has a text in it.
func (m *machine) awaitStatus(limit time.Duration, text string) string {
	m.Helper()
	var status string
	if !lab.Eventually(limit, func() bool { status = m.show("StatusText"); return strings.Contains(status, text) }) {
		m.Fatalf("the status is %q after %v, want %q in it", status, limit, text)
	}
	return status
}

// polled waits for a poll after mark.
func (m *machine) polled(mark int, limit time.Duration) time.Time {
	m.Helper()
	q, ok := m.rec.WaitFor(limit, mark, lab.Ask)
	if !ok {
		m.Fatalf("no poll within %v", limit)
	}
	return q.At
}

// agent is the one agent that runs in the box, as this machine numbers it.
func (m *machine) agent() int {
	m.Helper()
	var pids []int
	if !lab.Eventually(bootLimit, func() bool { pids = m.box.Processes("devopsAgent"); return len(pids) == 1 }) {
		m.Fatalf("agents: %v", pids)
	}
	return pids[0]
}

// kill is kill -9; it returns when that was, once the process is gone.
func (m *machine) kill(pid int) time.Time {
	m.Helper()
	at := m.box.Signal(pid, syscall.SIGKILL)
	m.await(bootLimit, "the process is gone", func() bool { return !lab.Running(pid) })
	return at
}

// begin submits a build of a script and waits until it runs.
func (m *machine) begin(script string) string {
	m.Helper()
	id := m.submit(script)
	m.await(bootLimit, "the build runs", func() bool { seen, err := m.control.Build(id); return err == nil && seen.State == "running" })
	return id
}

func (m *machine) submit(script string) string {
	m.Helper()
	return m.control.Submit("steps:\n- script: |\n    " + strings.ReplaceAll(script, "\n", "\n    ") + "\n")
}

// failedBecause checks that a build was reported as failed, with a reason.
func (m *machine) failedBecause(id, why string) lab.Seen {
	m.Helper()
	seen := m.control.Over(bootLimit, id)
	if seen.State != "failed" || seen.Report == nil || seen.Report.Success || !strings.Contains(seen.Report.Message, why) {
		m.Errorf("the build is %s, reported %+v; want a failure that says %q", seen.State, seen.Report, why)
	}
	return seen
}

// succeeded checks that a build ended well and was reported so.
func (m *machine) succeeded(id string, limit time.Duration) lab.Seen {
	m.Helper()
	seen := m.control.Over(limit, id)
	if seen.State != "succeeded" {
		m.Errorf("the build is %s, reported %+v", seen.State, seen.Report)
	}
	return seen
}

// number writes a measurement down for the table that "make lab-systemd" prints.
func number(t *testing.T, format string, args ...any) {
	t.Helper()
	line := fmt.Sprintf(format, args...)
	t.Log(line)
	path := os.Getenv("LAB_NUMBERS")
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644) //nolint:gosec // numbers are no secret
	if err == nil {
		_, err = fmt.Fprintf(f, "%-34s %s\n", strings.TrimPrefix(t.Name(), "Test"), line)
		_ = f.Close()
	}
	if err != nil {
		t.Logf("write a number down: %v", err)
	}
}

// kills kills the agent n times with SIGKILL and measures the time to its next request. Between two kills the keeper sees
// the agent ready, as in life, and a moment passes.
func (m *machine) kills(n int, ready func() bool, median, worst time.Duration) {
	m.Helper()
	var times []time.Duration
	for range n {
		m.await(bootLimit, "the agent is ready", ready)
		<-time.After(rand.N(200 * time.Millisecond))
		pid, mark := m.agent(), m.rec.Mark()
		at := m.kill(pid)
		q, ok := m.rec.Wait(bootLimit, mark, func(q lab.Request) bool { return q.At.After(at) })
		if !ok {
			m.Fatalf("no request within %v of kill %d", bootLimit, len(times)+1)
		}
		times = append(times, q.At.Sub(at))
	}
	slices.Sort(times)
	number(m.T, "kill -9 to the next request, %d times: median %d ms, worst %d ms", n, times[n/2].Milliseconds(), times[n-1].Milliseconds())
	if times[n/2] > median || times[n-1] > worst {
		m.Errorf("median %v, worst %v; want at most %v and %v", times[n/2], times[n-1], median, worst)
	}
}

func (m *machine) active() bool {
	m.Helper()
	return m.show("ActiveState") == "active"
}

// The tests that measure are not parallel: the others wait for them.

// TestSystemdKilledAgentIsBack: the bounds are 250 and 500 ms; a busy machine gets twice that.
func TestSystemdKilledAgentIsBack(t *testing.T) {
	m := packaged(t, "kills", "").recorded()
	m.ctl("start", m.unit)
	m.polled(0, bootLimit)
	m.kills(50, m.active, 500*time.Millisecond, time.Second)
}

func TestSystemdUserKilledAgentIsBack(t *testing.T) {
	m := ofUser(t, "ukills")
	m.polled(0, bootLimit)
	m.kills(20, m.active, 500*time.Millisecond, time.Second)
}

func TestSystemdBoot(t *testing.T) {
	t.Parallel()
	m := packaged(t, "boot", "").recorded()
	m.ctl("enable", "--now", m.unit)
	m.polled(0, bootLimit)
	mark := m.rec.Mark()
	m.box.Reboot()
	m.polled(mark, bootLimit)
	m.await(bootLimit, "the unit is active", m.active)
	m.box.Kill() // a power cut
	mark = m.rec.Mark()
	m.box.Start()
	m.polled(mark, bootLimit)
	m.await(bootLimit, "the unit is active", m.active)
	if state := m.box.Run("systemctl", "is-system-running"); state != "running" {
		t.Errorf("the system is %s: %s", state, m.box.Run("systemctl", "--failed", "--no-pager"))
	}
}

func TestSystemdStartStopRestartReload(t *testing.T) {
	t.Parallel()
	m := packaged(t, "verbs", "").recorded()
	m.ctl("start", m.unit)
	m.polled(0, bootLimit)
	first := m.agent()
	m.awaitStatus(bootLimit, "last contact")
	m.ctl("start", m.unit) // again: no error, no second one
	if again := m.agent(); again != first {
		t.Errorf("agent %d, was %d before the second start", again, first)
	}

	begun, mark := time.Now(), m.rec.Mark()
	m.ctl("restart", m.unit)
	m.polled(mark, bootLimit)
	number(t, "restart to the next poll: %d ms", time.Since(begun).Milliseconds())
	second := m.agent()
	if second == first {
		t.Error("the same agent after a restart")
	}

	m.box.Write("/etc/devops-agent/agent.toml", "[log]\nlevel = \"debug\"\n", 0o644)
	m.ctl("reload", m.unit)
	m.await(bootLimit, "a reload is logged", func() bool {
		return strings.Contains(m.box.Read(m.home+"/logs/devopsAgent.log"), "Configuration read again")
	})

	m.box.Write("/etc/devops-agent/agent.toml", "[log]\nlevel = \"debug\"\nlevle = 1\n", 0o644)
	m.ctl("reload", m.unit)
	status := m.awaitStatus(bootLimit, "agent.toml")
	if !strings.Contains(status, "agent.toml:3") {
		t.Errorf("the status does not name the line: %q", status)
	}
	m.polled(m.rec.Mark(), bootLimit) // lives on with what it had
	m.box.Write("/etc/devops-agent/agent.toml", "", 0o644)
	m.ctl("reload", m.unit)
	m.awaitStatus(bootLimit, "last contact")
	if m.agent() != second || m.show("NRestarts") != "0" {
		t.Errorf("agent %d, was %d before the reloads; %s restarts", m.agent(), second, m.show("NRestarts"))
	}

	begun = time.Now()
	m.ctl("stop", m.unit)
	number(t, "stop of an idle agent: %d ms", time.Since(begun).Milliseconds())
	if state := m.show("ActiveState") + " " + m.show("Result") + " " + m.show("ExecMainStatus"); state != "inactive success 0" {
		t.Errorf("after the stop: %s", state)
	}
	if left := m.box.Processes("devopsAgent"); len(left) != 0 {
		t.Errorf("left running: %v", left)
	}
	m.ctl("stop", m.unit)
}

// gated is a job that ends when a file appears.
func (m *machine) gated() (lab.Build, *lab.Session, func()) {
	b := lab.NewBuild()
	gate := "/var/tmp/gate-" + b.ID
	session := m.rec.Open(&lab.Session{Build: b, Tasks: []lab.Task{{ID: "e-1", Script: "while [ ! -e " + gate + " ]; do sleep 0.1; done; echo through"}}})
	return b, session, func() { m.box.Write(gate, "", 0o644) }
}

func TestSystemdBuildSurvivesKillsOfItsAgent(t *testing.T) {
	t.Parallel()
	m := packaged(t, "survive", "").recorded()
	m.ctl("start", m.unit)
	m.polled(0, bootLimit)
	b, session, open := m.gated()
	m.rec.Queue(b)
	m.await(bootLimit, "the worker has its task", func() bool { return len(session.Of(lab.WorkerClaim)) > 0 })
	worker := m.box.Processes("devopsWorker")
	for range 3 {
		mark := m.rec.Mark()
		m.kill(m.agent())
		m.polled(mark, bootLimit)
		m.await(bootLimit, "the unit is active", m.active)
	}
	if now := m.box.Processes("devopsWorker"); len(worker) == 0 || !slices.Equal(now, worker) {
		t.Errorf("workers %v, were %v", now, worker)
	}
	m.awaitStatus(bootLimit, "1 build running")
	open()
	m.await(60*time.Second, "the build is reported", func() bool { return m.rec.Accepted(b.ID) > 0 })
	reports := m.rec.Finishes(b.ID)
	if len(reports) != 1 || reports[0].Get("success") != true || len(session.Of(lab.WorkerStarted)) != 1 {
		t.Errorf("%d reports, the first %v; %d starts of a worker", len(reports), reports[0], len(session.Of(lab.WorkerStarted)))
	}
}

// TestSystemdReplacesAHungAgent: SIGSTOP is the hang that nothing in the process can notice.
func TestSystemdReplacesAHungAgent(t *testing.T) {
	t.Parallel()
	m := packaged(t, "hung", "").recorded()
	m.ctl("start", m.unit)
	m.polled(0, bootLimit)
	m.await(bootLimit, "the unit is active", m.active)
	b, session, open := m.gated()
	m.rec.Queue(b)
	m.await(bootLimit, "the worker has its task", func() bool { return len(session.Of(lab.WorkerClaim)) > 0 })
	stopped, mark := m.agent(), m.rec.Mark()
	at := m.box.Signal(stopped, syscall.SIGSTOP)
	q, ok := m.rec.Wait(90*time.Second, mark, func(q lab.Request) bool { return q.Endpoint == lab.Startup })
	if !ok {
		t.Fatal("not replaced within 90 s")
	}
	took := q.At.Sub(at)
	number(t, "SIGSTOP to the first request of the next agent: %.1f s", took.Seconds())
	if took > 60*time.Second || m.agent() == stopped {
		t.Errorf("replaced after %v, want at most 60 s", took)
	}
	open()
	m.await(60*time.Second, "the build is reported", func() bool { return m.rec.Accepted(b.ID) > 0 })
	if len(m.rec.Finishes(b.ID)) != 1 {
		t.Errorf("%d reports", len(m.rec.Finishes(b.ID)))
	}
}

func TestSystemdCrashLoop(t *testing.T) {
	t.Parallel()
	m := packaged(t, "loop", "").recorded()
	m.ctl("start", m.unit)
	m.crashLoop(service.Packaged("linux").Vendor+"/devopsAgent", m.box.Init(), func() string { return m.show("StatusText") })
	m.await(bootLimit, "the unit is active", m.active)
}

// crashLoop kills the agent a hundred times, puts a program that ends at once in its place for a minute, and then the good
// one again. keeper is the process whose use of the processor counts, with all that it has waited for.
func (m *machine) crashLoop(program string, keeper int, status func() string) {
	m.Helper()
	m.polled(0, bootLimit)
	begun := time.Now()
	mark := 0
	for i := range 100 {
		// The first ten are killed as soon as they are seen, ready or not; who is killed unborn, again and again, is waited for longer
		// each time. The others have begun to talk to the server, which counts as a life, and are back at once.
		if i >= 10 {
			if _, ok := m.rec.WaitFor(60*time.Second, mark, lab.Startup); !ok {
				m.Fatalf("no agent comes back after %d kills", i)
			}
		}
		mark = m.rec.Mark()
		m.kill(m.agent())
	}
	mark = m.rec.Mark()
	number(m.T, "100 kills in a row and back: %.1f s", m.polled(mark, 60*time.Second).Sub(begun).Seconds())

	m.box.Copy(m.box.Path("/bin/false"), program)
	m.kill(m.agent())
	used := func() time.Duration {
		m.Helper()
		d, err := lab.CPUTime(keeper)
		if err != nil {
			m.Fatal(err)
		}
		return d
	}
	before, loop := used(), time.Now()
	<-time.After(60 * time.Second)
	share := 100 * (used() - before).Seconds() / time.Since(loop).Seconds()
	number(m.T, "a minute of a program that ends at once: the keeper and its starts use %.2f %% of a processor; %q", share, status())
	if share > 1 {
		m.Errorf("the keeper's side used %.2f %% of a processor, want at most 1 %%", share)
	}
	mark = m.rec.Mark()
	m.box.Copy(programs(m.T).Agent, program)
	mended := time.Now()
	number(m.T, "a good program again to its first poll: %.1f s", m.polled(mark, 60*time.Second).Sub(mended).Seconds())
}

func TestSystemdTwoAgentsByTemplate(t *testing.T) {
	t.Parallel()
	m := packaged(t, "template", "").recorded()
	m.ctl("start", m.unit)
	other := service.Instance("blue")
	m.box.Shell("install -d -o devops-agent -g devops-agent -m 750 " + other.Home)
	m.identity(other.Home, m.rec.URL, "agblue")
	m.box.Write(other.Config, "[log]\nlevel = \"debug\"\n", 0o644)
	m.ctl("enable", "--now", m.unit, other.Name)
	asks := func(id string) func() bool {
		return func() bool {
			return slices.ContainsFunc(m.rec.Of(lab.Ask), func(q lab.Request) bool { return q.Header.Get("X-DEVOPS-AGENT-ID") == id })
		}
	}
	m.await(bootLimit, "the first polls", asks("aglab"))
	m.await(bootLimit, "the second polls", asks("agblue"))
	if n := len(m.box.Processes("devopsAgent")); n != 2 {
		t.Errorf("%d agents", n)
	}
	m.ctl("stop", m.unit)
	if n := len(m.box.Processes("devopsAgent")); n != 1 {
		t.Errorf("%d agents after the stop of one", n)
	}
	if out, err := m.box.Exec("/usr/lib/devops-agent/devopsAgent", "status", "--instance", "blue"); err != nil {
		t.Errorf("status of the other: %s %v", out, err)
	}
	mark := m.rec.Mark()
	m.box.Reboot()
	m.rec.WaitFor(bootLimit, mark, lab.Ask)
	m.await(bootLimit, "both are back", func() bool { return len(m.box.Processes("devopsAgent")) == 2 })
}

// ofUser is an agent in the home of a plain user, kept by that user's systemd, which lingers.
func ofUser(t *testing.T, name string) *machine {
	t.Helper()
	m := boxed(t, lab.BoxOptions{Name: name})
	m.account, m.home = "dev", "/home/dev/agent"
	m.box.Shell("useradd -m -s /bin/bash dev && loginctl enable-linger dev && install -d -o dev -g dev " + m.home)
	m.await(bootLimit, "the user's manager runs", func() bool {
		_, err := m.box.Exec("systemctl", "--user", "-M", "dev@", "is-system-running")
		return err == nil
	})
	m.portable()
	m.recorded()
	m.systemctl = []string{"systemctl", "--user", "-M", "dev@"}
	out, err := m.box.As("dev", "", m.home+"/devopsAgent", "install", "user")
	if err != nil {
		t.Fatalf("install: %s %v", out, err)
	}
	m.unit = m.keeperName("dev")
	return m
}

// portable puts the programs of an archive into the home.
func (m *machine) portable() {
	m.Helper()
	m.box.Shell(fmt.Sprintf("install -d -o %[1]s %[2]s && cp /usr/lib/devops-agent/* %[2]s/ && chown -R %[1]s: %[2]s", m.account, m.home))
}

// keeperName is what status says the agent is called by its keeper.
func (m *machine) keeperName(user string) string {
	m.Helper()
	r := m.status(user)
	return r.Keeper.Name
}

// keptState is what the tests want to know of "status --json".
type keptState struct {
	State   string
	Healthy bool
	Summary string
	Keeper  struct {
		Kind, Name                  string
		Installed, Enabled, Running bool
	}
}

func (m *machine) status(user string) keptState {
	m.Helper()
	out, _ := m.box.As(user, "", m.home+"/devopsAgent", "status", "--json")
	var r keptState
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		m.Fatalf("status: %q: %v", out, err)
	}
	return r
}

func TestSystemdUserWithLinger(t *testing.T) {
	t.Parallel()
	m := ofUser(t, "linger")
	m.polled(0, bootLimit)
	if r := m.status("dev"); r.Keeper.Kind != "systemd-user" || !r.Keeper.Enabled || !r.Healthy {
		t.Errorf("status: %+v", r)
	}
	// A session comes and goes: what lingers stays.
	m.box.Shell("su -l dev -c 'loginctl --no-pager list-sessions'")
	pid := m.agent()
	m.polled(m.rec.Mark(), bootLimit)
	if m.agent() != pid {
		t.Error("another agent after a logout")
	}
	mark := m.rec.Mark()
	m.box.Reboot()
	m.polled(mark, bootLimit)
	if out, err := m.box.As("dev", "", m.home+"/devopsAgent", "uninstall"); err != nil {
		t.Errorf("uninstall: %s %v", out, err)
	}
	m.await(bootLimit, "nothing is left running", func() bool { return len(m.box.Processes("devopsAgent")) == 0 })
	m.box.Shell("test -s " + m.home + "/.agent.properties")
}

func TestSystemdServerIsAwayAtTheStart(t *testing.T) {
	t.Parallel()
	m := packaged(t, "away", "")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	_ = listener.Close()
	m.identity(m.home, "http://"+address, "aglab")
	begun := time.Now()
	m.ctl("start", m.unit)
	took := time.Since(begun)
	number(t, "systemctl start while the server is away: %.1f s", took.Seconds())
	if !m.active() || took > 15*time.Second {
		t.Errorf("the unit is %s after %v", m.show("ActiveState"), took)
	}
	status := m.awaitStatus(bootLimit, "unreachable")
	number(t, "status: %s", status)
	m.rec = lab.NewRecorder(t, lab.RecorderOptions{Address: address})
	m.polled(0, 60*time.Second)
	m.awaitStatus(bootLimit, "last contact")
	if n := m.show("NRestarts"); n != "0" {
		t.Errorf("%s restarts", n)
	}
}

// TestSystemdStopWaitsForABuild and the next are acceptance 4 of the issue.
func TestSystemdStopWaitsForABuild(t *testing.T) {
	t.Parallel()
	m := packaged(t, "drain", "[drain]\ntimeout = \"60s\"\n").controlled()
	m.ctl("start", m.unit)
	id := m.begin("sleep 20")
	begun := time.Now()
	waits := m.submit("true") // nobody takes it any more
	seen, _ := m.control.Build(waits)
	m.ctl("stop", "--no-block", m.unit)
	m.awaitStatus(10*time.Second, "1 build")
	m.ctl("stop", m.unit)
	took := time.Since(begun)
	number(t, "stop during a build of 20 s, drain.timeout 60 s: %.1f s", took.Seconds())
	if took > 22*time.Second || took < 15*time.Second {
		t.Errorf("the stop took %v, want about 20 s", took)
	}
	m.succeeded(id, 5*time.Second)
	if m.show("ExecMainStatus") != "0" || m.show("Result") != "success" {
		t.Errorf("exit code %s, result %s", m.show("ExecMainStatus"), m.show("Result"))
	}
	if seen.State != "queued" { // it came before the stop after all
		return
	}
	m.ctl("start", m.unit)
	m.succeeded(waits, bootLimit)
}

func TestSystemdStopEndsABuildThatTakesTooLong(t *testing.T) {
	t.Parallel()
	m := packaged(t, "toolong", "[drain]\ntimeout = \"5s\"\n").controlled()
	m.ctl("start", m.unit)
	id := m.begin("setsid sleep 1000 &\nsleep 1001 &\nsleep 20")
	begun := time.Now()
	m.ctl("stop", m.unit)
	took := time.Since(begun)
	number(t, "stop during a build of 20 s, drain.timeout 5 s: %.1f s", took.Seconds())
	if took < 5*time.Second || took > 9*time.Second {
		t.Errorf("the stop took %v, want a little more than 5 s", took)
	}
	seen := m.failedBecause(id, "5s")
	number(t, "reported as: %s", seen.Report.Message)
	if left := slices.Concat(m.box.Processes("sleep"), m.box.Processes("devopsWorker"), m.box.Processes("devopsAgent")); len(left) != 0 {
		t.Errorf("left running: %v", left)
	}
	if m.show("ExecMainStatus") != "0" || m.show("Result") != "success" {
		t.Errorf("exit code %s, result %s", m.show("ExecMainStatus"), m.show("Result"))
	}
}

func TestSystemdSecondTermStopsAtOnce(t *testing.T) {
	t.Parallel()
	m := packaged(t, "second", "[drain]\ntimeout = \"60s\"\n").controlled()
	m.ctl("start", m.unit)
	id := m.begin("sleep 50")
	m.ctl("stop", "--no-block", m.unit)
	m.awaitStatus(10*time.Second, "1 build")
	begun := time.Now()
	m.ctl("kill", "--kill-who=main", "-s", "TERM", m.unit)
	m.ctl("stop", m.unit)
	took := time.Since(begun)
	number(t, "second SIGTERM to the end: %.1f s", took.Seconds())
	if took > 5*time.Second {
		t.Errorf("the stop took %v after the second SIGTERM", took)
	}
	m.failedBecause(id, "stopped")
	if left := slices.Concat(m.box.Processes("sleep"), m.box.Processes("devopsWorker")); len(left) != 0 {
		t.Errorf("left running: %v", left)
	}
	if m.show("ExecMainStatus") != "0" {
		t.Errorf("exit code %s", m.show("ExecMainStatus"))
	}
}

// TestSystemdDeletedAgentStaysDown: exit code 88 is the server's last word.
func TestSystemdDeletedAgentStaysDown(t *testing.T) {
	t.Parallel()
	m := packaged(t, "deleted", "").controlled()
	m.ctl("enable", "--now", m.unit)
	m.await(bootLimit, "the unit is active", m.active)
	var agents []struct{ ID string }
	out, _ := m.control.Run("", "agents", "--json")
	if err := json.Unmarshal([]byte(out), &agents); err != nil || len(agents) != 1 {
		t.Fatalf("agents: %s, %v", out, err)
	}
	m.control.Run("", "agents", "delete", agents[0].ID)
	m.await(60*time.Second, "the agent has ended", func() bool { return len(m.box.Processes("devopsAgent")) == 0 && !m.active() })
	if status := m.show("ExecMainStatus"); status != "88" {
		t.Errorf("exit code %s", status)
	}
	deadline := time.Now().Add(5 * time.Second)
	for time.Now().Before(deadline) {
		if pids := m.box.Processes("devopsAgent"); len(pids) != 0 || m.show("ActiveState") != "inactive" {
			t.Fatalf("agents %v, unit %s", pids, m.show("ActiveState"))
		}
	}
}

// TestSystemdRebootWithABuild: in good order, and by a power cut.
func TestSystemdRebootWithABuild(t *testing.T) {
	t.Parallel()
	m := packaged(t, "reboot", "[drain]\ntimeout = \"3s\"\n").controlled()
	m.ctl("enable", "--now", m.unit)
	id := m.begin("sleep 600")
	begun := time.Now()
	m.box.Reboot()
	number(t, "reboot with a build, drain.timeout 3 s: %.1f s", time.Since(begun).Seconds())
	m.failedBecause(id, "3s")
	m.succeeded(m.submit("echo after the reboot"), bootLimit)
	id = m.begin("sleep 600")
	m.box.Kill()
	m.box.Start()
	// Nobody saw how it ended. What the agent reports of a worker that is gone is protocol §3.6.5; the server knows better.
	if seen := m.control.Over(bootLimit, id); seen.State != "failed" || seen.Report == nil {
		t.Errorf("the build is %s, reported %+v", seen.State, seen.Report)
	}
	m.succeeded(m.submit("echo after the power cut"), bootLimit)
}

// limited says whether this machine enforces MemoryMax in a box.
func (m *machine) limited() {
	m.Helper()
	if _, err := m.box.Exec("systemd-run", "-q", "--wait", "-p", "MemoryMax=40M", "sh", "-c", "head -c 200M /dev/zero | tail -c 200M >/dev/null"); err == nil {
		m.Skip("needs a machine that enforces MemoryMax in containers: memory controller of cgroup v1, or a systemd that delegates it")
	}
}

func TestSystemdBuildOutOfMemory(t *testing.T) {
	t.Parallel()
	m := packaged(t, "oombuild", "").controlled()
	m.limited()
	m.box.Write("/etc/systemd/system/"+m.unit+".d/memory.conf", "[Service]\nMemoryMax=150M\nMemorySwapMax=0\n", 0o644)
	m.ctl("daemon-reload")
	m.ctl("start", m.unit)
	m.await(bootLimit, "the unit is active", m.active)
	pid := m.agent()
	id := m.submit("head -c 600M /dev/zero | tail -c 600M >/dev/null")
	seen := m.control.Over(60*time.Second, id)
	if seen.State != "failed" {
		t.Errorf("the build is %s", seen.State)
	}
	if m.agent() != pid || m.show("NRestarts") != "0" || !m.active() {
		t.Errorf("agent %d, was %d; %s restarts; %s", m.agent(), pid, m.show("NRestarts"), m.show("ActiveState"))
	}
	m.succeeded(m.submit("echo still there"), bootLimit)
}

func TestSystemdAgentOutOfMemory(t *testing.T) {
	t.Parallel()
	m := packaged(t, "oomagent", "").recorded()
	m.limited()
	// Once without a limit: the copy of its program that the agent makes in its home at the first start would count as its memory, and,
	// as it can be dropped and read again, would keep it busy instead of killed.
	m.ctl("start", m.unit)
	m.await(bootLimit, "the unit is active", m.active)
	m.ctl("stop", m.unit)
	m.box.Write("/etc/systemd/system/"+m.unit+".d/memory.conf", "[Service]\nMemoryMax=3M\nMemorySwapMax=0\n", 0o644)
	m.ctl("daemon-reload")
	m.ctl("start", "--no-block", m.unit)
	m.await(bootLimit, "the agent was killed for its memory", func() bool {
		out, _ := m.box.Exec("journalctl", "-q", "--no-pager", "-u", m.unit, "-g", "oom|killed")
		n, _ := strconv.Atoi(m.show("NRestarts"))
		return out != "" && n > 3
	})
	mark := m.rec.Mark()
	m.ctl("set-property", "--runtime", m.unit, "MemoryMax=infinity")
	if err := os.Remove(m.box.Path("/etc/systemd/system/" + m.unit + ".d/memory.conf")); err != nil {
		t.Fatal(err)
	}
	m.ctl("daemon-reload")
	m.polled(mark, 60*time.Second)
	m.await(bootLimit, "the unit is active", m.active)
}

func TestSystemdFullDisk(t *testing.T) {
	t.Parallel()
	m := packaged(t, "full", "")
	m.box.Shell("mount -t tmpfs -o size=200m,mode=750,uid=devops-agent,gid=devops-agent tmpfs " + m.home)
	m.controlled()
	m.ctl("start", m.unit)
	m.succeeded(m.submit("echo there is room"), bootLimit)
	m.box.Shell("dd if=/dev/zero of=" + m.home + "/filler bs=1M 2>/dev/null || true")
	m.awaitStatus(60*time.Second, "disk full")
	id := m.submit("echo room again")
	m.kill(m.agent())
	m.await(bootLimit, "the unit is active", m.active)
	number(t, "status: %s", m.awaitStatus(60*time.Second, "disk full"))
	m.agent()
	if seen, err := m.control.Build(id); err != nil || seen.State != "queued" {
		t.Errorf("a build was taken by an agent on a full disk: %s, %v", seen.State, err)
	}
	m.box.Shell("rm " + m.home + "/filler")
	m.succeeded(id, 60*time.Second)
}

func TestSystemdAnalyze(t *testing.T) {
	t.Parallel()
	m := packaged(t, "analyze", "")
	units := "/usr/lib/systemd/system/"
	out, err := m.box.Exec("bash", "-c", "systemd-analyze verify "+units+"devops-agent.service "+units+"devops-agent@blue.service 2>&1")
	if err != nil || out != "" {
		t.Errorf("systemd-analyze verify: %q, %v", out, err)
	}
	level := func(what string) float64 {
		t.Helper()
		out := m.box.Run("systemd-analyze", "security", "--offline=true", "--no-pager", units+"devops-agent.service")
		_, rest, _ := strings.Cut(out, "Overall exposure level")
		_, rest, _ = strings.Cut(rest, ": ")
		word, _, _ := strings.Cut(rest, " ")
		value, err := strconv.ParseFloat(word, 64)
		if err != nil {
			t.Fatalf("no level in %q", out)
		}
		number(t, "systemd-analyze security, %s: %.1f", what, value)
		return value
	}
	level("as shipped")
	for _, name := range []string{"hardened.conf", "separate-builds.conf"} {
		text, err := os.ReadFile(m.box.Path(filepath.Join(service.DropIns, name)))
		if err != nil {
			t.Fatal(err)
		}
		m.box.Write("/etc/systemd/system/devops-agent.service.d/"+name, string(text), 0o644)
		value := level("with " + name)
		if name == "separate-builds.conf" && value > 2 {
			t.Errorf("%.1f with %s, want at most 2.0", value, name)
		}
		if err := os.Remove(m.box.Path("/etc/systemd/system/devops-agent.service.d/" + name)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSystemdHardenedRunsBuilds: the drop-in for builds without sudo takes nothing that they need.
func TestSystemdHardenedRunsBuilds(t *testing.T) {
	t.Parallel()
	m := packaged(t, "hardened", "").controlled()
	m.box.Shell("install -D -t /etc/systemd/system/" + m.unit + ".d " + service.DropIns + "/hardened.conf && systemctl daemon-reload")
	m.ctl("start", m.unit)
	id := m.submit("id -un\nmktemp\necho x >written\nif touch /usr/x /var/lib/x 2>/dev/null; then exit 1; fi\nif sudo -n true 2>/dev/null; then exit 1; fi")
	m.succeeded(id, bootLimit)
}

// TestSystemdPortableAsRoot: the operator's verbs on a directory of one's own.
func TestSystemdPortableAsRoot(t *testing.T) {
	t.Parallel()
	m := boxed(t, lab.BoxOptions{Name: "portable"})
	m.account, m.home, m.unit = "root", "/opt/agent", "devops_agent_aglab.service"
	m.portable()
	m.recorded()
	verb := func(args ...string) string {
		t.Helper()
		return m.box.Run(append([]string{m.home + "/devopsAgent"}, args...)...)
	}
	m.lifecycle(verb, "systemd")
	if left := m.box.Shell("find /etc/systemd /run/systemd/system /usr/lib/systemd -name '*devops*' | wc -l"); left != "0" {
		t.Errorf("%s files of units left", left)
	}
	if failed := m.box.Run("systemctl", "--failed", "--no-legend"); failed != "" {
		t.Errorf("failed units: %s", failed)
	}
}

// lifecycle goes through install, status, stop, start, restart and uninstall, each of them twice.
func (m *machine) lifecycle(verb func(args ...string) string, keeper string) {
	m.Helper()
	root := m.account
	mark := m.rec.Mark()
	verb("install")
	m.polled(mark, bootLimit)
	verb("install")
	if r := m.status(root); r.Keeper.Kind != keeper || !r.Keeper.Installed || !r.Keeper.Running || r.State != "running" || !r.Healthy ||
		m.unit != "" && r.Keeper.Name != m.unit {
		m.Errorf("status after install: %+v", r)
	}
	text := verb("status")
	if first, _, _ := strings.Cut(text, "\n"); !strings.Contains(first, "working") {
		m.Errorf("status begins with %q", first)
	}
	for range 2 {
		verb("stop")
		if r := m.status(root); r.State != "stopped" || r.Keeper.Running || len(m.box.Processes("devopsAgent")) != 0 {
			m.Errorf("status after stop: %+v", r)
		}
	}
	mark = m.rec.Mark()
	verb("start")
	verb("start")
	m.polled(mark, bootLimit)
	pid := m.agent()
	mark = m.rec.Mark()
	verb("restart")
	m.polled(mark, bootLimit)
	if m.agent() == pid {
		m.Error("the same agent after a restart")
	}
	for range 2 {
		verb("uninstall")
	}
	if r := m.status(root); r.Keeper.Installed || r.Keeper.Running || len(m.box.Processes("devopsAgent"))+len(m.box.Processes("devopsDaemon")) != 0 {
		m.Errorf("status after uninstall: %+v; agents %v, daemons %v", r, m.box.Processes("devopsAgent"), m.box.Processes("devopsDaemon"))
	}
	m.box.Shell("test -s " + m.home + "/.agent.properties -a -d " + m.home + "/workspace")
}

// plain is an agent in the home of a plain user where there is no systemd.
func plain(t *testing.T, name string) *machine {
	t.Helper()
	m := boxed(t, lab.BoxOptions{Name: name, Plain: true})
	m.account, m.home = "dev", "/home/dev/agent"
	m.box.Shell("useradd -m -s /bin/bash dev")
	m.portable()
	m.recorded()
	return m
}

// dev runs the agent's program as the user.
func (m *machine) dev(args ...string) string {
	m.Helper()
	out, err := m.box.As("dev", "", append([]string{m.home + "/devopsAgent"}, args...)...)
	if err != nil {
		m.Fatalf("%s: %s %v", strings.Join(args, " "), out, err)
	}
	return out
}

// TestPlainKilledAgentIsBack: the bounds are 100 and 300 ms; a busy machine gets twice that.
func TestPlainKilledAgentIsBack(t *testing.T) {
	m := plain(t, "pkills")
	m.dev("install")
	m.polled(0, bootLimit)
	m.kills(50, func() bool { return len(m.box.Processes("devopsAgent")) == 1 }, 200*time.Millisecond, 600*time.Millisecond)
	daemons := m.box.Processes("devopsDaemon")
	if len(daemons) != 1 {
		t.Fatalf("daemons: %v", daemons)
	}
	var rss, peak int64
	lab.Eventually(10*time.Second, func() bool {
		var err error
		if rss, peak, err = lab.Memory(daemons[0]); err != nil {
			t.Fatal(err)
		}
		return rss <= 4<<20
	})
	number(t, "devopsDaemon within 10 s of that: %.1f MiB; its most: %.1f MiB", float64(rss)/(1<<20), float64(peak)/(1<<20))
}

func TestPlainLifecycle(t *testing.T) {
	t.Parallel()
	m := plain(t, "plain")
	m.lifecycle(m.dev, "daemon")
}

// TestPlainSurvivesLogout: the terminal of the session that installed the agent is gone, and so are its processes.
func TestPlainSurvivesLogout(t *testing.T) {
	t.Parallel()
	m := plain(t, "logout")
	// The hang-up goes to the session's whole process group, as from a kernel whose terminal closes.
	_, err := m.box.As("dev", "", "setsid", "--wait", "bash", "-c", m.home+"/devopsAgent install && kill -HUP 0; sleep 5")
	t.Logf("the session ended: %v", err)
	m.polled(0, bootLimit)
	pid := m.agent()
	m.polled(m.rec.Mark(), bootLimit)
	m.polled(m.rec.Mark(), bootLimit)
	if m.agent() != pid || len(m.box.Processes("devopsDaemon")) != 1 {
		t.Errorf("agent %d, was %d; daemons %v", m.agent(), pid, m.box.Processes("devopsDaemon"))
	}
}

func TestPlainReplacesAHungAgent(t *testing.T) {
	t.Parallel()
	m := plain(t, "phung")
	m.dev("install")
	m.polled(0, bootLimit)
	stopped, mark := m.agent(), m.rec.Mark()
	at := m.box.Signal(stopped, syscall.SIGSTOP)
	q, ok := m.rec.Wait(90*time.Second, mark, func(q lab.Request) bool { return q.Endpoint == lab.Startup })
	if !ok {
		t.Fatal("not replaced within 90 s")
	}
	took := q.At.Sub(at)
	number(t, "SIGSTOP to the first request of the next agent: %.1f s", took.Seconds())
	if took > 60*time.Second || m.agent() == stopped {
		t.Errorf("replaced after %v, want at most 60 s", took)
	}
}

func TestPlainCrashLoop(t *testing.T) {
	t.Parallel()
	m := plain(t, "ploop")
	m.dev("install")
	m.polled(0, bootLimit)
	daemons := m.box.Processes("devopsDaemon")
	if len(daemons) != 1 {
		t.Fatalf("daemons: %v", daemons)
	}
	m.crashLoop(m.home+"/devopsAgent", daemons[0], func() string {
		lines := strings.Split(strings.TrimSpace(m.box.Read(m.home+"/logs/devopsDaemon.log")), "\n")
		return lines[len(lines)-1]
	})
}

// TestPlainCrontab: the machine's start is the one thing that devopsDaemon cannot do alone.
func TestPlainCrontab(t *testing.T) {
	t.Parallel()
	m := boxed(t, lab.BoxOptions{Name: "cron"})
	m.account, m.home = "dev", "/home/dev/agent"
	m.box.Shell("useradd -m -s /bin/bash dev && echo '7 7 * * * true # mine' | crontab -u dev -")
	m.portable()
	m.recorded()
	m.dev("install", "direct", "--reboot")
	m.dev("install", "direct", "--reboot")
	m.polled(0, bootLimit)
	table := m.box.Run("crontab", "-u", "dev", "-l")
	if strings.Count(table, "@reboot") != 1 || !strings.Contains(table, "# mine") {
		t.Errorf("crontab: %s", table)
	}
	mark := m.rec.Mark()
	m.box.Reboot()
	m.polled(mark, 60*time.Second)
	m.dev("uninstall")
	if table := m.box.Run("crontab", "-u", "dev", "-l"); strings.Contains(table, "@reboot") || !strings.Contains(table, "# mine") {
		t.Errorf("crontab after uninstall: %s", table)
	}
}
