package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/service/control"
)

// night is the moment of all cases.
var night = time.Date(2026, 11, 23, 3, 4, 5, 0, time.UTC)

func before(d time.Duration) *time.Time {
	t := night.Add(-d)
	return &t
}

// healthy are the facts about an agent that works under systemd; cases change them.
func healthy() *facts {
	return &facts{
		now: night, goos: "linux", home: "/var/lib/devops-agent", identity: "agt-1", gateway: "http://ci.example.com",
		command: func(verb string) string { return "devopsAgent " + verb },
		asRoot:  func(verb string) string { return "sudo devopsAgent " + verb },
		keeper:  service.KeeperSystemd, name: "devops-agent.service",
		kept:   service.State{Installed: true, Enabled: true, Running: true, PID: 7, Since: night.Add(-time.Hour), Detail: "active (running)", ExitCode: -1},
		held:   true,
		holder: &process{PID: 7, Executable: "/var/lib/devops-agent/devopsAgent", User: "devops-agent", Since: before(time.Hour)},
		disk:   &control.Disk{Path: "/var/lib/devops-agent", Free: 10 << 30, Needed: 64 << 20},
		agent: &control.Status{
			PID: 7, Version: "v1.2.3", Since: night.Add(-time.Hour), User: "devops-agent", Phase: control.Running, Ready: true,
			Server:   control.Server{Gateway: "http://ci.example.com", Protocol: "ask", AgentStatus: "IMPORT_OK", LastContact: before(3 * time.Second)},
			Versions: control.Versions{Worker: "v2.0.0", JDK: []string{"17.0.9"}},
			Slots:    control.Slots{Parallel: 4}, Disk: control.Disk{Path: "/var/lib/devops-agent", Free: 10 << 30, Needed: 64 << 20},
			Upgrade: control.Upgrade{Mode: "server"},
		},
	}
}

// stopped are the facts about one that was stopped.
func stopped() *facts {
	f := healthy()
	f.agent, f.agentErr, f.held, f.holder = nil, fmt.Errorf("ask the agent: %w", control.ErrNobody), false, nil
	f.kept = service.State{Installed: true, Enabled: true, Since: night.Add(-time.Minute), Detail: "inactive (dead)", ExitCode: 0}
	return f
}

// silent are the facts about one that has the home and does not answer.
func silent(err error) *facts {
	f := healthy()
	f.agent, f.agentErr = nil, err
	return f
}

func problem(p control.Problem, text string) func(f *facts) {
	return func(f *facts) {
		f.agent.Server.Problem, f.agent.Server.Error, f.agent.Server.Failing = p, text, before(time.Minute)
	}
}

// diagnosed is one state, how it comes about, and what is said about it.
type diagnosed struct {
	facts   *facts
	change  func(f *facts)
	state   State
	code    int
	summary string // beginning
	advice  string // part
	also    []State
}

func offset(hours float64) *float64 {
	s := hours * 3600
	return &s
}

// cases are all states, the ways into each.
func cases() map[string]diagnosed {
	keyError := &config.KeyError{File: "/etc/devops-agent/agent.toml", Line: 4, Key: "builds.paralel", What: "is not a setting of agent.toml", Do: "did you mean builds.parallel?"}
	none := &config.KeyError{File: "/var/lib/devops-agent/.agent.properties", What: "does not exist", Do: "run \"devopsAgent enroll\"", Err: fs.ErrNotExist}
	nobody := fmt.Errorf("ask the agent: %w", control.ErrNobody)
	return map[string]diagnosed{
		"idle": {healthy(), nil, StateRunning, 0, "working: idle, last contact 3 s ago", "nothing to do", nil},
		"building": {healthy(), func(f *facts) {
			f.agent.Builds = []control.Build{{Project: "demo", Build: "b-1", VMSeq: "1", PID: 99, Since: night.Add(-time.Minute)}}
		}, StateRunning, 0, "working: 1 build running, last contact 3 s ago", "nothing", nil},
		"draining": {healthy(), func(f *facts) {
			f.agent.Phase, f.agent.Drain = control.Draining, &control.Drain{Since: *before(time.Minute)}
		}, StateDraining, 0, "draining: takes no builds since ", "devopsAgent resume", nil},
		"stopping": {healthy(), func(f *facts) {
			f.agent.Phase, f.agent.Drain = control.Stopping, &control.Drain{Since: *before(time.Minute), Until: before(-time.Minute)}
		}, StateStopping, 0, "stopping: ends when its builds have, at the latest at ", "devopsAgent stop --now", nil},
		"starting": {healthy(), func(f *facts) { f.agent.Phase, f.agent.Server.LastContact = control.Starting, nil }, StateStarting, 0,
			"starting: waiting for the first answer of http://ci.example.com", "wait", nil},
		"starting, not to be asked yet":                 {silent(nobody), func(f *facts) { f.holder.Since = before(2 * time.Second) }, StateStarting, 0, "starting: pid 7", "wait", nil},
		"starting, it says so itself":                   {silent(fmt.Errorf("ask the agent: %w", &control.RemoteError{})), nil, StateStarting, 0, "starting: pid 7", "wait", nil},
		"starting, nothing but a process of the keeper": {stopped(), func(f *facts) { f.kept.Running, f.kept.PID = true, 9 }, StateStarting, 0, "starting: systemd (devops-agent.service)", "wait", nil},
		"no contact, and no reason": {healthy(), func(f *facts) { f.agent.Server.LastContact = before(9 * time.Minute) }, StateUnreachable, 1,
			"NOT working: last contact 9 min ago", "devopsAgent.log", nil},
		"unreachable": {healthy(), problem(control.Unreachable, "dial tcp: connection refused"), StateUnreachable, 1,
			"NOT working: the server http://ci.example.com cannot be reached; last contact 3 s ago: dial tcp", "curl -v http://ci.example.com", nil},
		"wrong secret": {healthy(), problem(control.Refused, "HTTP 401"), StateWrongSecret, 1,
			"NOT working: the server http://ci.example.com does not accept this agent's id and secret", "devopsAgent enroll --again", nil},
		"certificate of a stranger": {healthy(), problem(control.Certificate, "x509: certificate signed by unknown authority"), StateCertificate, 1,
			"NOT working: the certificate of the server http://ci.example.com cannot be trusted: x509", ".cert", nil},
		"expired authority": {healthy(), func(f *facts) {
			problem(control.Certificate, "x509: certificate has expired")(f)
			f.expired = []string{"CN=ci, on 2026-11-22 00:00:00"}
		}, StateCertificate, 1, "NOT working: the certificate in .cert has expired (CN=ci, on 2026-11-22", "devopsAgent restart", nil},
		"expired, not in use": {healthy(), func(f *facts) { f.expired = []string{"CN=old"} }, StateRunning, 0, "working: idle", "", []State{StateCertificate}},
		"clock ahead": {healthy(), func(f *facts) { f.agent.Server.ClockOffset = offset(9) }, StateClock, 1,
			"working, but the clock of this machine is 9 h 0 min ahead of the server's", "timedatectl", nil},
		"clock behind, TLS fails": {healthy(), func(f *facts) {
			problem(control.Certificate, "x509: not yet valid")(f)
			f.agent.Server.ClockOffset = offset(-9)
		}, StateClock, 1, "NOT working: the clock of this machine is 9 h 0 min behind the server's: x509", "timedatectl", nil},
		"clock a little off": {healthy(), func(f *facts) { f.agent.Server.ClockOffset = offset(0.05) }, StateRunning, 0, "working: idle", "", nil},
		"clock, by the certificate alone": {healthy(), problem(control.Clock, "x509: not yet valid"), StateClock, 1,
			"NOT working: the clock of this machine is wrong (it is ", "timedatectl", nil},
		"deleted": {healthy(), problem(control.Deleted, ""), StateDeleted, 1, "NOT working: this agent was deleted in BK-CI", "enroll --again", nil},
		"TLS wanted": {healthy(), func(f *facts) {
			problem(control.ServerError, "HTTP 400")(f)
			f.agent.Server.Hint = "enrol the machine again at https://"
		}, StateServerError, 1, "NOT working: the server http://ci.example.com answers with errors", "https://", nil},
		"server error": {healthy(), problem(control.ServerError, "HTTP 500"), StateServerError, 1, "NOT working: the server http://ci.example.com answers with errors", "tell whoever", nil},
		"full disk": {healthy(), func(f *facts) { f.agent.Disk.Free = 3 << 20 }, StateDiskFull, 1,
			"NOT working: the disk is full: 3 MiB free in /var/lib/devops-agent, 64 MiB needed; builds are not taken", "make room", nil},
		"full disk, stopped": {stopped(), func(f *facts) { f.disk.Free = 0 }, StateDiskFull, 1, "NOT working: the disk is full: 0 B free", "du -xh", []State{StateStopped}},
		"full disk and no server": {healthy(), func(f *facts) {
			f.agent.Disk.Free = 0
			problem(control.Unreachable, "x")(f)
		}, StateUnreachable, 1, "NOT working: the server", "", []State{StateDiskFull}},
		"read-only file system": {healthy(), func(f *facts) { f.agent.Disk.Free, f.readOnly = 0, true }, StateDiskFull, 1,
			"NOT working: the file system of /var/lib/devops-agent is read-only; builds are not taken", "mount it for writing", nil},
		"read-only file system, stopped": {stopped(), func(f *facts) { f.disk.Free, f.readOnly = 0, true }, StateDiskFull, 1,
			"NOT working: the file system of /var/lib/devops-agent is read-only; an agent would", "mount it for writing", []State{StateStopped}},
		"home moved, which the agent cannot find": {healthy(), func(f *facts) { f.moved, f.agent.Disk.Free = true, 0 }, StateMoved, 1,
			"NOT working: the home was moved while the agent runs: it still looks for it at /var/lib/devops-agent", "devopsAgent stop && devopsAgent install", nil},
		"home moved under devopsDaemon": {healthy(), func(f *facts) { f.moved, f.keeper = true, service.KeeperDaemon }, StateMoved, 1,
			"NOT working: the home was moved", "devopsAgent stop && devopsAgent start", nil},
		"no worker": {healthy(), func(f *facts) { f.agent.Worker = true }, StateNoWorker, 1, "NOT working: no worker on this machine", "devopsWorker", nil},

		"stopped":         {stopped(), nil, StateStopped, 3, "stopped since 2026-11-2", "devopsAgent start", nil},
		"stopped, code 1": {stopped(), func(f *facts) { f.kept.ExitCode = 1 }, StateStopped, 3, "stopped since 2026-11-2", "devopsAgent start", nil},
		"never registered": {stopped(), func(f *facts) { f.keeper, f.name, f.kept = service.KeeperNone, "", service.State{ExitCode: -1} }, StateStopped, 3,
			"stopped: the agent does not run, and nothing is registered", "devopsAgent install", nil},
		"removed": {stopped(), func(f *facts) { f.kept.StayDown, f.kept.ExitCode = true, 88 }, StateRemoved, 3, "removed: this agent was deleted in BK-CI (exit code 88)", "enroll --again", nil},
		"crash loop": {stopped(), func(f *facts) {
			f.kept.Detail, f.kept.ExitCode, f.kept.Restarts, f.words = "activating (auto-restart)", 2, 17, "Agent cannot start err=x"
		}, StateCrashLoop, 1, "NOT working: crash loop: the agent ends soon after each start (activating (auto-restart), exit code 2, 17 restarts); its last words: Agent cannot start", "journalctl -n 50 -u devops-agent.service", nil},
		"crash loop of devopsDaemon": {stopped(), func(f *facts) {
			f.keeper, f.name, f.kept = service.KeeperDaemon, "", service.State{Installed: true, Running: true, PID: 5, ExitCode: -1}
			f.daemon = &control.DaemonStatus{PID: 5, Restarts: 9, LastExit: "exit status 1", NextStart: before(-6 * time.Second)}
		}, StateCrashLoop, 1, "NOT working: crash loop: the agent ends soon after each start (exit status 1, 9 restarts, next start at ", "devopsAgent logs -n 50", nil},
		"not installed, no home": {&facts{now: night, goos: "linux", home: "/none", command: healthy().command, asRoot: healthy().asRoot, keeper: service.KeeperNone,
			homeErr: &fs.PathError{Op: "stat", Path: "/none", Err: fs.ErrNotExist}}, nil, StateNotInstalled, 4, "not installed: there is no agent in /none (file does not exist)", "install", nil},
		"not installed, no identity": {stopped(), func(f *facts) {
			f.keeper, f.name, f.kept, f.identity, f.identityErr = service.KeeperNone, "", service.State{ExitCode: -1}, "", none
		}, StateNotInstalled, 4, "not installed: /var/lib/devops-agent has no identity", "devopsAgent enroll", nil},
		"no identity, but told how to get one": {stopped(), func(f *facts) { f.identityErr, f.willEnrol = none, true }, StateStopped, 3, "stopped since", "devopsAgent start", nil},
		"home of another": {&facts{now: night, goos: "linux", home: "/h", command: healthy().command, asRoot: healthy().asRoot, owner: "ci", keeper: service.KeeperNone,
			homeErr: &fs.PathError{Op: "open", Path: "/h", Err: fs.ErrPermission}}, nil, StateUnknown, 4, "unknown: the home /h belongs to ci and cannot be read from here", "sudo devopsAgent status", nil},
		"files of another":  {stopped(), func(f *facts) { f.identityErr = &fs.PathError{Op: "open", Path: "/h", Err: fs.ErrPermission} }, StateUnknown, 4, "unknown: the files in", "sudo devopsAgent status", nil},
		"socket of another": {silent(fmt.Errorf("ask the agent: %w", fs.ErrPermission)), nil, StateUnknown, 4, "running, but more cannot be seen from here: pid 7", "sudo devopsAgent status", nil},

		"second copy by hand": {healthy(), func(f *facts) {
			f.agent.PID, f.holder = 42, &process{PID: 42, Executable: "/home/ci/devopsAgent", User: "ci", Since: before(time.Hour)}
			f.kept.Detail, f.kept.Running, f.kept.PID = "activating (auto-restart)", false, 0
		}, StateSecondCopy, 1, "NOT as it should be: a second copy is running: pid 42 (/home/ci/devopsAgent, user ci, since ", "kill 42", nil},
		"second copy under devopsDaemon": {healthy(), func(f *facts) {
			f.keeper, f.name, f.kept.PID = service.KeeperDaemon, "", 5
			f.daemon = &control.DaemonStatus{PID: 5, Child: 42, Adopted: true}
			f.agent.PID, f.holder = 42, &process{PID: 42, Executable: "/home/ci/devopsAgent"}
		}, StateSecondCopy, 1, "NOT as it should be: a second copy is running: pid 42", "kill 42", nil},
		"second copy that is silent": {silent(nobody), func(f *facts) { f.holder.PID = 42 }, StateSecondCopy, 1, "NOT as it should be: a second copy is running: pid 42", "kill 42", nil},
		"adopted by devopsDaemon": {healthy(), func(f *facts) {
			f.keeper, f.name, f.kept.PID = service.KeeperDaemon, "", 5
			f.daemon = &control.DaemonStatus{PID: 5, Child: 7, Adopted: true}
		}, StateRunning, 0, "working: idle", "", nil},
		"twin": {healthy(), func(f *facts) { f.twins = []process{{PID: 42, Dir: "/copy"}} }, StateSecondCopy, 1, "NOT as it should be: a second copy is running: pid 42 in /copy has the same identity", "kill 42", nil},
		"hung": {silent(errors.New("ask the agent: no answer within 1.5s")), nil, StateHung, 1, "NOT working: the agent hangs: pid 7", "devopsAgent restart", nil},
		"halted": {silent(errors.New("ask the agent: no answer within 1.5s")), func(f *facts) { f.holder.halted = true }, StateHung, 1,
			"NOT working: the agent hangs: pid 7 (/var/lib/devops-agent/devopsAgent, user devops-agent, since ", "kill -CONT 7", nil},
		"hung without keeper": {silent(errors.New("no answer")), func(f *facts) { f.keeper, f.kept = service.KeeperNone, service.State{} }, StateHung, 1, "NOT working: the agent hangs", "kill -9 7", []State{StateKeeper}},
		"original":            {silent(nobody), nil, StateUnknown, 4, "running, but it cannot be asked: pid 7", "devopsAgent.log", nil},

		"broken agent.toml": {stopped(), func(f *facts) { f.configErr, f.kept.Detail = keyError, "activating (auto-restart)" }, StateConfig, 1,
			"NOT working: it cannot start: /etc/devops-agent/agent.toml:4: builds.paralel is not a setting", "did you mean builds.parallel?", []State{StateCrashLoop}},
		"broken agent.toml, running": {healthy(), func(f *facts) { f.configErr = keyError }, StateRunning, 0, "working: idle", "", []State{StateConfig}},
		"broken identity, running":   {healthy(), func(f *facts) { f.identityErr = keyError }, StateRunning, 0, "working: idle", "", []State{StateConfig}},
		"broken .cert, running":      {healthy(), func(f *facts) { f.certErr = errors.New("no certificate in it") }, StateRunning, 0, "working: idle", "", []State{StateConfig}},
		"no identity, and nothing says how to get one": {healthy(), func(f *facts) {
			f.identityErr, f.enrollFiles, f.agent.Phase, f.agent.Server = none, "/etc/devops-agent/enroll.d", control.Unenrolled, control.Server{}
		}, StateNotEnrolled, 1, "not enrolled: it runs and waits for an identity", "put a file with gateway and token_file into /etc/devops-agent/enroll.d", nil},
		"enrolling by itself": {healthy(), func(f *facts) {
			f.identityErr, f.agent.Phase, f.agent.Server = none, control.Unenrolled, control.Server{Gateway: "http://ci"}
		}, StateStarting, 0, "starting: enrols itself at http://ci", "status --watch", nil},
		"no enrolment by a file with a mistake": {healthy(), func(f *facts) {
			f.identityErr, f.enrollFiles, f.agent.Phase, f.agent.Server = none, "/etc/devops-agent/enroll.d", control.Unenrolled, control.Server{Error: "/etc/devops-agent/enroll.d/a.toml:3: token is wrong"}
		}, StateNotEnrolled, 1, "NOT working: it is not enrolled: /etc/devops-agent/enroll.d/a.toml:3", "the agent goes on by itself", nil},
		"no enrolment without a server": {healthy(), func(f *facts) {
			since := f.now.Add(-time.Minute)
			f.identityErr, f.agent.Phase = none, control.Unenrolled
			f.agent.Server = control.Server{Gateway: "http://ci", Failing: &since, Problem: control.Unreachable, Error: "connection refused"}
		}, StateUnreachable, 1, "NOT working: the server http://ci cannot be reached", "curl -v http://ci", nil},
		"enrolling":           {healthy(), func(f *facts) { f.identityErr, f.willEnrol = none, true }, StateRunning, 0, "working: idle", "", nil},
		"broken identity":     {stopped(), func(f *facts) { f.identityErr = keyError }, StateConfig, 1, "stopped, and it cannot start: ", "did you mean", []State{StateStopped}},
		"broken .cert":        {stopped(), func(f *facts) { f.certErr = errors.New("no certificate in it") }, StateConfig, 1, "stopped, and it cannot start: no certificate", "PEM", nil},
		"network file system": {stopped(), func(f *facts) { f.network = "nfs" }, StateConfig, 1, "stopped, and it cannot start: /var/lib/devops-agent is on a network file system (nfs)", "local disk", nil},
		"masked":              {stopped(), func(f *facts) { f.kept.Detail = "masked" }, StateKeeper, 1, "stopped: the unit devops-agent.service is masked", "systemctl unmask devops-agent.service", nil},
		"disabled":            {healthy(), func(f *facts) { f.kept.Enabled = false }, StateRunning, 0, "working: idle", "", []State{StateKeeper}},
		"nothing keeps it":    {healthy(), func(f *facts) { f.keeper, f.kept = service.KeeperNone, service.State{} }, StateRunning, 0, "working: idle", "", []State{StateKeeper}},
		"its daemon was started by hand": {healthy(), func(f *facts) {
			f.keeper, f.name, f.kept.PID, f.kept.Installed, f.kept.Enabled = service.KeeperDaemon, "", 5, false, false
			f.daemon = &control.DaemonStatus{PID: 5, Child: 7}
		}, StateRunning, 0, "working: idle", "nothing to do", nil},
		"its daemon is gone": {healthy(), func(f *facts) {
			f.keeper, f.name, f.kept = service.KeeperDaemon, "", service.State{Installed: true, Enabled: true}
		}, StateRunning, 0, "working: idle", "", []State{StateKeeper}},
		"keeper of another account": {healthy(), func(f *facts) {
			f.owner, f.keeper, f.keeperErr, f.kept = "ci", service.KeeperSystemdUser, service.ErrNoKeeper, service.State{}
		}, StateRunning, 0, "working: idle", "", []State{StateKeeper}},
		"keeper not to be asked": {healthy(), func(f *facts) { f.keeperErr, f.kept = errors.New("no bus"), service.State{} }, StateRunning, 0, "working: idle", "", []State{StateKeeper}},
		"stopped, keeper not to be asked": {stopped(), func(f *facts) { f.keeperErr = errors.New("no bus") }, StateStopped, 3,
			"stopped: the agent does not run, and systemd (devops-agent.service) cannot be asked: no bus", "", nil},
		"late": {healthy(), func(f *facts) { f.late = []string{"the file system of /x"} }, StateRunning, 0, "working: idle", "", []State{StateUnknown}},
	}
}

// TestKeeperStartedByHand is no keeper that is not there.
func TestKeeperStartedByHand(t *testing.T) {
	k := kept{Kind: service.KeeperDaemon, Running: true, Detail: "running"}
	if got := k.words(); got != "devopsDaemon: running, not registered" {
		t.Error(got)
	}
	if k.Running = false; k.words() != "devopsDaemon: not installed" {
		t.Error(k.words())
	}
}

// TestDiagnose: every state, what its two lines say, and its exit code; and whatever is printed fits the schema.
func TestDiagnose(t *testing.T) {
	schema := statusSchema(t)
	seen := map[State]bool{}
	for name, tc := range cases() {
		if tc.change != nil {
			tc.change(tc.facts)
		}
		r := reportOf(tc.facts)
		seen[r.State] = true
		if r.State != tc.state || r.ExitCode != tc.code || !strings.HasPrefix(r.Summary, tc.summary) || !strings.Contains(r.Advice, tc.advice) ||
			r.Advice == "" || r.Healthy != (r.ExitCode == 0) {
			t.Errorf("%s: %s, exit %d, healthy %v\n%s\n%s", name, r.State, r.ExitCode, r.Healthy, r.Summary, r.Advice)
		}
		for _, state := range tc.also {
			found := false
			for _, p := range r.Problems {
				found = found || p.State == state && p.Summary != "" && p.Advice != ""
			}
			if !found {
				t.Errorf("%s: no %s among %v", name, state, r.Problems)
			}
		}
		if r.Healthy == (len(r.Problems) > 0 && r.Problems[0].Level == trouble) {
			t.Errorf("%s: healthy %v with problems %v", name, r.Healthy, r.Problems)
		}
		text := strings.Split(r.text(false), "\n")
		if text[0] != r.Summary || text[1] != r.Advice || strings.Contains(r.text(false), "\x1b") || !strings.Contains(r.text(true), "\x1b") {
			t.Errorf("%s:\n%s", name, r.text(false))
		}
		validate(t, name, schema, r)
	}
	for _, state := range []State{StateRunning, StateStarting, StateDraining, StateStopping, StateStopped, StateRemoved, StateCrashLoop, StateNotInstalled, StateNotEnrolled,
		StateUnreachable, StateWrongSecret, StateCertificate, StateClock, StateDeleted, StateServerError, StateDiskFull, StateNoWorker, StateSecondCopy, StateHung,
		StateConfig, StateKeeper, StateUnknown} {
		if !seen[state] {
			t.Errorf("no case leads to %s", state)
		}
	}
}

// TestLinesAreSafe: what a server or a keeper says changes neither the terminal nor the lines.
func TestLinesAreSafe(t *testing.T) {
	f := healthy()
	problem(control.Unreachable, "a\nb\x1b[2J\u202e")(f)
	f.kept.Detail = "x\ny"
	f.agent.Server.AgentStatus = "\x1b]0;t\x07\n"
	f.agent.Builds = []control.Build{{Build: "b\n\x1b[2J", Since: night}}
	if text := reportOf(f).text(false); strings.ContainsAny(text, "\x1b\x07\u202e") {
		t.Errorf("%q", text)
	} else if lines := strings.Split(text, "\n"); !strings.HasPrefix(lines[0], "NOT working") || !strings.HasPrefix(lines[1], "check network") {
		t.Errorf("%q", lines[:2])
	}
}

func statusSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	schema, err := compiler.Compile(filepath.Join("..", "..", "docs", "status.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

func validate(t *testing.T, name string, schema *jsonschema.Schema, r *report) {
	t.Helper()
	var out bytes.Buffer
	if err := r.print(&out, true); err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(&out)
	if err == nil {
		err = schema.Validate(value)
	}
	if err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

// TestSchemaKnowsEveryField: a field that is added is described, and one that is described exists.
func TestSchemaKnowsEveryField(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", "docs", "status.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(data, &schema); err != nil {
		t.Fatal(err)
	}
	sameFields(t, schema, schema, reflect.TypeFor[report](), "report")
}

func sameFields(t *testing.T, root, schema map[string]any, typ reflect.Type, path string) {
	t.Helper()
	for _, option := range list(schema["anyOf"]) { // a value or null
		if option["type"] != "null" {
			schema = option
		}
	}
	if ref, ok := schema["$ref"].(string); ok {
		schema, _ = root["$defs"].(map[string]any)[strings.TrimPrefix(ref, "#/$defs/")].(map[string]any)
	}
	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	switch {
	case typ == reflect.TypeFor[time.Time]():
		if schema["format"] != "date-time" {
			t.Errorf("%s: not a date-time", path)
		}
		return
	case typ.Kind() == reflect.Slice:
		items, _ := schema["items"].(map[string]any)
		sameFields(t, root, items, typ.Elem(), path+"[]")
		return
	case typ.Kind() != reflect.Struct:
		return
	}
	if schema["additionalProperties"] != false {
		t.Errorf("%s: additionalProperties is not false", path)
	}
	properties, _ := schema["properties"].(map[string]any)
	left := map[string]bool{}
	for name := range properties {
		left[name] = true
	}
	required := map[any]bool{}
	names, _ := schema["required"].([]any)
	for _, name := range names {
		required[name] = true
	}
	for field := range fieldsOf(typ) {
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		property, ok := properties[name].(map[string]any)
		if !ok {
			t.Errorf("%s.%s: not in the schema", path, name)
			continue
		}
		delete(left, name)
		if always := !strings.Contains(options, "omitempty") && !strings.Contains(options, "omitzero"); always != required[name] {
			t.Errorf("%s.%s: always there %v, required %v", path, name, always, required[name])
		}
		sameFields(t, root, property, field.Type, path+"."+name)
	}
	for name := range left {
		t.Errorf("%s.%s: only in the schema", path, name)
	}
}

// fieldsOf yields the fields that become JSON.
func fieldsOf(typ reflect.Type) func(yield func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range typ.NumField() {
			if field := typ.Field(i); field.IsExported() && !yield(field) {
				return
			}
		}
	}
}

func list(v any) (found []map[string]any) {
	items, _ := v.([]any)
	for _, item := range items {
		if m, ok := item.(map[string]any); ok {
			found = append(found, m)
		}
	}
	return found
}
