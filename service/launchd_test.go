package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/devops-agent/devops-agent/launchd"
)

// mac behaves as launchd and launchctl do, as far as an agent can tell: what is loaded, what is disabled, which process runs.
// The rules are those of launchd.plist(5) and of the reports named in docs/decisions/0011-launchd.md.
type mac struct {
	mu       sync.Mutex
	loaded   map[string]*macJob
	disabled map[string]bool
	noScreen bool // nobody is logged in at the screen
	lazy     bool // jobs are loaded and not started, as was seen on macOS 26
	slow     bool // the agent drains
	old      bool // errors and words of releases before macOS 13
	deaf     bool // the agent does not answer
	pids     int
	calls    []string
}

type macJob struct {
	launchd.Job
	domain, file string
	pid, runs    int
	exit         string // line of launchctl print
	ending       int    // prints until it is gone; 0: it is not ending
}

type macExit int

func (e macExit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }
func (e macExit) ExitCode() int { return int(e) }

func newMac() *mac {
	return &mac{loaded: map[string]*macJob{}, disabled: map[string]bool{}, pids: 1000}
}

func (m *mac) start(j *macJob) {
	m.pids++
	j.pid, j.runs = m.pids, j.runs+1
}

// alive does what launchd does by itself: a job whose file is not there is to run.
func (m *mac) alive() {
	for _, j := range m.loaded {
		if _, err := os.Stat(j.StayDown); j.pid == 0 && j.runs > 0 && j.ending == 0 && errors.Is(err, fs.ErrNotExist) {
			m.start(j)
		}
	}
}

// end is the end of a job's process.
func (m *mac) end(label, how string) {
	j := m.loaded[label]
	j.pid, j.exit = 0, how
	m.alive()
}

func (m *mac) run(_ context.Context, name string, args ...string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, strings.Join(args, " "))
	m.alive()
	out, code := m.answer(args)
	if name != "/bin/launchctl" {
		return nil, fs.ErrNotExist
	}
	if code != 0 {
		return []byte(out), macExit(code)
	}
	return []byte(out), nil
}

func (m *mac) answer(args []string) (string, int) {
	verb, target := args[0], args[len(args)-1]
	if verb == "bootstrap" {
		return m.bootstrap(args[1], args[2])
	}
	if verb == "print-disabled" {
		out := "disabled services = {\n"
		for label, off := range m.disabled {
			word := map[bool]string{true: "disabled", false: "enabled"}[off]
			if m.old {
				word = fmt.Sprint(off)
			}
			out += fmt.Sprintf("\t%q => %s\n", label, word)
		}
		return out + "}\n", 0
	}
	if m.noScreen && strings.HasPrefix(target, "gui/") {
		return "Could not find domain for user gui: 501\n", 125
	}
	domain, label := filepath.Split(target)
	if verb == "print" && (target == "gui/501" || target == "user/501") {
		return target + " = {\n}\n", 0
	}
	if verb == "enable" || verb == "disable" {
		m.disabled[label] = verb == "disable"
		return "", 0
	}
	j := m.loaded[label]
	if j != nil && j.domain+"/" != domain {
		j = nil
	}
	if j == nil {
		if verb == "bootout" {
			return "Boot-out failed: 3: No such process\n", 3
		}
		return "Bad request.\nCould not find service \"" + label + "\" in domain for system\n", 113
	}
	switch verb {
	case "print":
		return m.print(j), 0
	case "bootout":
		if j.ending == 0 {
			j.ending = 3
		}
		return "Boot-out failed: 36: Operation now in progress\n", 36
	case "kickstart":
		if j.pid == 0 {
			m.start(j)
		}
		return "", 0
	case "kill":
		if j.pid == 0 {
			return "Could not signal service: 3: No such process\n", 3
		}
		m.end(label, "last terminating signal = Killed: 9")
		return "", 0
	}
	return "Unrecognized subcommand: " + verb + "\n", 64
}

func (m *mac) bootstrap(domain, file string) (string, int) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "Bootstrap failed: 5: Input/output error\n", 5
	}
	job, err := launchd.ParseJob(text)
	info, serr := os.Stat(file)
	label := strings.TrimSuffix(filepath.Base(file), ".plist")
	switch j := m.loaded[label]; {
	case err != nil || serr != nil || job.Label != label || info.Mode().Perm() != 0o644:
		return "Bootstrap failed: 5: Input/output error\n", 5
	case m.disabled[label] && m.old:
		return "Bootstrap failed: 5: Input/output error\n", 5
	case m.disabled[label]:
		return "Bootstrap failed: 119: Service is disabled\n", 119
	case j != nil && j.ending > 0:
		return "Bootstrap failed: 37: Operation already in progress\n", 37
	case j != nil:
		return "Bootstrap failed: 5: Input/output error\n", 5
	case strings.HasPrefix(domain, "gui/") && (m.noScreen || job.Session != launchd.SessionAqua):
		return "Bootstrap failed: 125: Domain does not support specified action\n", 125
	case strings.HasPrefix(domain, "user/") && job.Session != launchd.SessionBackground:
		return "Bootstrap failed: 134: Service cannot load in requested session\n", 134
	case domain == "system" && job.Session != "":
		return "Bootstrap failed: 134: Service cannot load in requested session\n", 134
	}
	j := &macJob{Job: job, domain: domain, file: file, exit: "last exit code = (never exited)"}
	m.loaded[label] = j
	if !m.lazy {
		m.start(j)
	}
	return "", 0
}

func (m *mac) print(j *macJob) string {
	state := map[bool]string{true: "running", false: "not running"}[j.pid != 0]
	if j.ending > 0 {
		if state = "SIGTERMed"; !m.slow {
			if j.ending--; j.ending == 0 {
				delete(m.loaded, j.Label)
			}
		}
	}
	out := fmt.Sprintf("%s/%s = {\n\tactive count = 1\n\tpath = %s\n\tstate = %s\n\n\targuments = {\n\t\tpid = 1\n\t}\n\n\truns = %d\n", j.domain, j.Label, j.file, state, j.runs)
	if j.pid != 0 {
		out += fmt.Sprintf("\tpid = %d\n", j.pid)
	}
	return out + "\t" + j.exit + "\n\n\tjob = {\n\t\tstate = active\n\t\tpid = 2\n\t}\n}\n"
}

// onMac is a world with a stand-in for launchd; the keeper is the real one.
func onMac(t *testing.T, m *mac, ofUser bool) (keptWorld, *launchdKeeper) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("needs paths of Unix")
	}
	root := t.TempDir()
	home := filepath.Join(root, "agent")
	mustDo(t, "make home", os.Mkdir(home, 0o700))
	inst, err := Open(home)
	mustDo(t, "open", err)
	k, ok := NewLaunchd(inst, ofUser).(*launchdKeeper)
	if !ok {
		t.Fatal("not launchd's keeper")
	}
	k.goos, k.uid, k.pid, k.home, k.run = "darwin", 0, 1, root, m.run
	k.jobs = filepath.Join(root, "LaunchDaemons")
	if ofUser {
		k.uid, k.jobs = 501, launchd.UserAgentDir(root)
	}
	k.volume = func(string) (launchd.Volume, error) { return launchd.Volume{Mount: "/"}, nil }
	k.restart = func(context.Context) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.deaf {
			return errors.New("nobody listens")
		}
		m.end(k.Name(), "last exit code = 0")
		return nil
	}
	w := keptWorld{
		Supervisor: k, setup: Setup{Home: home, Config: inst.Config, Drain: 10 * time.Minute},
		exit: func(t *testing.T, code int) {
			t.Helper()
			if code == ExitStayDown {
				mustDo(t, "mark", inst.MarkRemoved()) // as the agent does before it ends
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			m.end(k.Name(), fmt.Sprintf("last exit code = %d", code))
		},
		slow: func() { m.mu.Lock(); m.slow = true; m.mu.Unlock() },
	}
	return w, k
}

func TestLaunchdSupervises(t *testing.T) {
	for name, tc := range map[string]struct {
		ofUser bool
		spoil  func(*mac)
	}{
		"daemon":                     {false, func(*mac) {}},
		"daemon, old macOS":          {false, func(m *mac) { m.old = true }},
		"daemon, loads do not start": {false, func(m *mac) { m.lazy = true }},
		"agent":                      {true, func(*mac) {}},
		"agent, no screen":           {true, func(m *mac) { m.noScreen = true }},
		"the agent does not answer":  {true, func(m *mac) { m.deaf = true }},
	} {
		t.Run(name, func(t *testing.T) {
			superviseSuite(t, func(t *testing.T) keptWorld {
				m := newMac()
				tc.spoil(m)
				w, _ := onMac(t, m, tc.ofUser)
				return w
			})
		})
	}
}

func TestLaunchdEnablesWhatWasSwitchedOff(t *testing.T) {
	for _, old := range []bool{false, true} {
		m := newMac()
		m.old = old
		w, k := onMac(t, m, true)
		m.disabled[k.Name()] = true // in System Settings, before it was installed
		mustDo(t, "install", w.Install(t.Context(), w.setup))
		if s := stateOf(t, w); !s.Enabled {
			t.Errorf("%+v", s)
		}
		started(t, w)
		mustDo(t, "stop", w.Stop(t.Context()))
		m.disabled[k.Name()] = true
		if s := stateOf(t, w); s.Enabled || !s.Installed || !strings.Contains(s.Detail, "disabled") {
			t.Errorf("%+v", s)
		}
		mustDo(t, "start", w.Start(t.Context())) // who says start means it
		if s := stateOf(t, w); !s.Enabled || !s.Running {
			t.Errorf("%+v", s)
		}
	}
}

func TestLaunchdRestartKillsWhoDoesNotListen(t *testing.T) {
	m := newMac()
	w, k := onMac(t, m, false)
	before := started(t, w)
	m.deaf = true
	mustDo(t, "restart", w.Restart(t.Context()))
	if s := stateOf(t, w); s.PID == before.PID || !slices.Contains(m.calls, "kill SIGKILL system/"+k.Name()) {
		t.Errorf("%+v, calls %q", s, m.calls)
	}
	for _, call := range m.calls {
		if strings.HasPrefix(call, "kickstart -k") || strings.HasPrefix(call, "bootout") {
			t.Errorf("%s: a restart drains", call)
		}
	}
}

// TestLaunchdRestartOfAgentThatPromisesOnly: it answers and goes on.
func TestLaunchdRestartOfAgentThatPromisesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMac()
		w, k := onMac(t, m, false)
		before := started(t, w)
		k.restart = func(context.Context) error { return nil }
		mustDo(t, "restart", w.Restart(t.Context()))
		if s := stateOf(t, w); s.PID == before.PID || !s.Running {
			t.Errorf("%+v", s)
		}
	})
}

func TestLaunchdNames(t *testing.T) {
	m := newMac()
	w, k := onMac(t, m, true)
	byPath := w.Name()
	if !strings.HasPrefix(byPath, "devops-agent-") || !launchd.ValidLabel(byPath) {
		t.Error(byPath)
	}
	started(t, w)
	props := filepath.Join(w.setup.Home, ".agent.properties")
	mustDo(t, "enrol", os.WriteFile(props, []byte("devops.agent.id=abcdefgh\n"), 0o600))
	if w.Name() != byPath {
		t.Errorf("%s was %s: a running job lost its name", w.Name(), byPath)
	}
	mustDo(t, "uninstall", w.Uninstall(t.Context()))
	if w.Name() != "devops_agent_abcdefgh" {
		t.Error(w.Name())
	}
	mustDo(t, "spoil", os.WriteFile(props, []byte("devops.agent.id=../../etc/x\n"), 0o600))
	if w.Name() != byPath {
		t.Error(w.Name())
	}
	k.inst.Home = Packaged("darwin").Home
	if w.Name() == Packaged("darwin").Name {
		t.Error("an agent of a user has the package's label")
	}
	if l := NewLaunchd(&Installation{Home: Packaged("darwin").Home}, false).Name(); l != "org.devops-agent.agent" {
		t.Error(l)
	}
}

func TestLaunchdJobOfInstallations(t *testing.T) {
	packaged := LaunchdJob("org.devops-agent.agent", Setup{Home: "/usr/local/var/devops-agent", Vendor: "/usr/local/libexec/devops-agent", User: "root", Drain: time.Hour}, "")
	if got := strings.Join(packaged.Program, " "); got != "/usr/local/libexec/devops-agent/upgrader start --home /usr/local/var/devops-agent --vendor /usr/local/libexec/devops-agent" {
		t.Error(got)
	}
	if packaged.User != "" || packaged.ExitTimeout != time.Hour+endGrace || packaged.StayDown != "/usr/local/var/devops-agent/.removed" {
		t.Errorf("%+v", packaged)
	}
	portable := LaunchdJob("devops_agent_a", Setup{Home: "/Users/ci/my agent", User: "ci"}, launchd.SessionAqua)
	if got := portable.Program; !slices.Equal(got, []string{"/Users/ci/my agent/upgrader", "start", "--home", "/Users/ci/my agent"}) {
		t.Errorf("%q", got)
	}
	if portable.User != "" || portable.ExitTimeout < endGrace {
		t.Errorf("%+v", portable)
	}
	for _, j := range []launchd.Job{packaged, portable} {
		if _, err := j.Plist(); err != nil {
			t.Error(err)
		}
	}
	if j := LaunchdJob("a", Setup{Home: "/opt/a", User: "ci"}, ""); j.User != "ci" {
		t.Errorf("%+v", j)
	}
}

func TestLaunchdRefuses(t *testing.T) {
	hinted := func(what string, err error, word string) {
		t.Helper()
		var hinter interface{ Hint() string }
		if err == nil || !errors.As(err, &hinter) || !strings.Contains(err.Error()+hinter.Hint(), word) {
			t.Errorf("%s: %v, want something about %q", what, err, word)
		}
	}
	ctx := t.Context()
	w, k := onMac(t, newMac(), false)
	k.uid = 501
	hinted("install without root", w.Install(ctx, w.setup), "root")
	k.uid = 0
	started(t, w)
	k.uid = 501
	hinted("stop without root", w.Stop(ctx), "root")
	hinted("restart without root", w.Restart(ctx), "root")
	hinted("uninstall without root", w.Uninstall(ctx), "root")
	if s := stateOf(t, w); !s.Running { // anybody may ask
		t.Errorf("%+v", s)
	}

	w, k = onMac(t, newMac(), true)
	k.uid = 0
	hinted("agent of root", w.Install(ctx, w.setup), "sudo")

	w, k = onMac(t, newMac(), true)
	desk := filepath.Join(k.home, "desktop")
	mustDo(t, "make desktop", os.Rename(w.setup.Home, desk))
	mustDo(t, "link", os.Symlink(desk, w.setup.Home))
	hinted("install on the desktop", w.Install(ctx, w.setup), "Desktop")
	if s := stateOf(t, w); s.Installed {
		t.Errorf("%+v", s)
	}
	w, k = onMac(t, newMac(), true)
	k.volume = func(string) (launchd.Volume, error) {
		return launchd.Volume{Mount: "/Volumes/USB", Removable: true}, nil
	}
	hinted("install on a stick", w.Install(ctx, w.setup), "removable")

	w, k = onMac(t, newMac(), true)
	k.jobs = ""
	if err := w.Install(ctx, w.setup); err == nil {
		t.Error("installed without a home")
	}
}

func TestLaunchdIsNotHere(t *testing.T) {
	w, k := onMac(t, newMac(), false)
	k.goos = "linux"
	_, err := w.State(t.Context())
	for what, err := range map[string]error{
		"install": w.Install(t.Context(), w.setup), "uninstall": w.Uninstall(t.Context()), "start": w.Start(t.Context()),
		"stop": w.Stop(t.Context()), "restart": w.Restart(t.Context()), "state": err,
	} {
		if !errors.Is(err, ErrNoKeeper) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestLaunchdUninstalledByItsOwnAgent: an agent that BK-CI deleted takes itself from launchd, and may not wait for its own end.
func TestLaunchdUninstalledByItsOwnAgent(t *testing.T) {
	m := newMac()
	w, k := onMac(t, m, true)
	k.pid = started(t, w).PID
	mustDo(t, "mark", k.inst.MarkRemoved())
	mustDo(t, "uninstall", w.Uninstall(t.Context()))
	if !k.inst.Removed() {
		t.Error("forgotten before the end: launchd would start it again")
	}
	w.exit(t, ExitStayDown)
	if s := stateOf(t, w); s.Running || s.Installed {
		t.Errorf("%+v", s)
	}
	k.pid = 1
	mustDo(t, "uninstall by hand", w.Uninstall(t.Context()))
	if len(m.loaded) != 0 || k.inst.Removed() {
		t.Errorf("%v, removed %v", m.loaded, k.inst.Removed())
	}
}

// TestLaunchdInstallLeavesRunningJobAlone and gives a stopped one the new property list.
func TestLaunchdInstallAgainWithOtherSettings(t *testing.T) {
	m := newMac()
	w, k := onMac(t, m, false)
	before := started(t, w)
	other := w.setup
	other.Drain = time.Hour
	mustDo(t, "install", w.Install(t.Context(), other))
	if s := stateOf(t, w); s.PID != before.PID || m.loaded[k.Name()].ExitTimeout != 10*time.Minute+endGrace {
		t.Errorf("%+v", s)
	}
	w.exit(t, ExitStayDown)
	mustDo(t, "install", w.Install(t.Context(), other))
	if s := stateOf(t, w); s.Running || s.StayDown {
		t.Errorf("install started it: %+v", s)
	}
	mustDo(t, "start", w.Start(t.Context()))
	if got := m.loaded[k.Name()].ExitTimeout; got != time.Hour+endGrace {
		t.Errorf("time to end %s", got)
	}
}

func TestLaunchdFilesAreAsLaunchdWantsThem(t *testing.T) {
	old := syscallUmask(t, 0o077)
	defer syscallUmask(t, old)
	w, k := onMac(t, newMac(), true)
	mustDo(t, "install", w.Install(t.Context(), w.setup))
	file := k.file(k.Name())
	info, err := os.Lstat(file)
	if err != nil || info.Mode() != 0o644 {
		t.Errorf("%v %v", info, err)
	}
	if info, err := os.Stat(filepath.Join(w.setup.Home, "logs")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", info, err)
	}
	entries, err := os.ReadDir(k.jobs)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v %v", entries, err)
	}
	mustDo(t, "put a link", errors.Join(os.Remove(file), os.Symlink(filepath.Join(k.home, "elsewhere"), file)))
	mustDo(t, "install", w.Install(t.Context(), w.setup)) // macOS 14 ignores linked property lists at login
	if info, err := os.Lstat(file); err != nil || !info.Mode().IsRegular() {
		t.Errorf("%v %v", info, err)
	}
	if len(k.Notes()) != 1 {
		t.Errorf("notes %q", k.Notes())
	}
}

func TestLaunchdSaysWhyNothingComesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMac()
		w, k := onMac(t, m, true)
		k.run = func(ctx context.Context, name string, args ...string) ([]byte, error) {
			out, err := m.run(ctx, name, args...)
			m.mu.Lock()
			defer m.mu.Unlock()
			if j := m.loaded[k.Name()]; j != nil { // every start fails at once
				j.pid, j.exit, j.runs = 0, "last exit code = 78: EX_CONFIG", 0
			}
			return out, err
		}
		mustDo(t, "install", w.Install(t.Context(), w.setup))
		begin := time.Now()
		err := w.Start(t.Context())
		if err == nil || !strings.Contains(err.Error(), "78: EX_CONFIG") || time.Since(begin) != jobStart {
			t.Errorf("after %s: %v", time.Since(begin), err)
		}
	})
}
