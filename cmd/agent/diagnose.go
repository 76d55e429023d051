package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/cmd/internal/cli"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/service/control"
)

// State is the word by which programs tell the states of an agent apart: "state" of "status --json"
// (docs/status.schema.json, docs/operating.md).
type State string

// The states.
const (
	StateRunning      State = "running"
	StateStarting     State = "starting"       // no answer of the server yet, and no trouble either
	StateDraining     State = "draining"       // takes no builds, by "drain"
	StateStopping     State = "stopping"       // ends when its builds have
	StateStopped      State = "stopped"        // by the operator, or never started
	StateRemoved      State = "removed"        // deleted in BK-CI: exit code 88, stays down
	StateCrashLoop    State = "crash-loop"     // its keeper starts it again and again
	StateNotInstalled State = "not-installed"  // no home, or no identity
	StateNotEnrolled  State = "not-enrolled"   // runs, and waits for an identity
	StateUnreachable  State = "unreachable"    // the server cannot be reached
	StateWrongSecret  State = "wrong-secret"   // the server does not accept id or secret
	StateCertificate  State = "certificate"    // TLS: expired, unknown authority, wrong name
	StateClock        State = "clock"          // the machine's clock is wrong
	StateDeleted      State = "deleted"        // the server says that the agent was deleted; it still runs
	StateServerError  State = "server-error"   // the server answers with errors
	StateMoved        State = "moved"          // the home was renamed while the agent runs
	StateDiskFull     State = "disk-full"      // no room for builds
	StateNoWorker     State = "no-worker"      // nothing here can run builds
	StateSecondCopy   State = "second-copy"    // another process has the home, or the identity
	StateHung         State = "hung"           // runs and does not answer
	StateConfig       State = "config-broken"  // a mistake in a configuration file
	StateKeeper       State = "keeper-trouble" // what should keep the agent alive does not
	StateUnknown      State = "unknown"        // cannot be seen from here
)

// clockTolerance is the difference to the server's clock from which on tokens, certificates and the order of log lines
// suffer.
const clockTolerance = 5 * time.Minute

// process is what is known about a running process.
type process struct {
	PID        int        `json:"pid"`
	Executable string     `json:"executable,omitempty"`
	User       string     `json:"user,omitempty"`
	Since      *time.Time `json:"since,omitempty"`
	Dir        string     `json:"dir,omitempty"`
	halted     bool       // by SIGSTOP or a debugger
}

// String names it for a person.
func (p process) String() string {
	text := fmt.Sprintf("pid %d", p.PID)
	var more []string
	if p.Executable != "" {
		more = append(more, p.Executable)
	}
	if p.User != "" {
		more = append(more, "user "+p.User)
	}
	if p.Since != nil {
		more = append(more, "since "+clock(*p.Since))
	}
	if len(more) > 0 {
		text += " (" + strings.Join(more, ", ") + ")"
	}
	return text
}

// facts is all that diagnose judges by.
type facts struct {
	now     time.Time
	goos    string
	home    string
	command func(verb string) string // what is to be typed for a verb
	asRoot  func(verb string) string // the same, for a verb that needs root

	homeErr     error // home cannot be looked into
	owner       string
	identity    string // id of the agent
	gateway     string
	identityErr error  // why there is none, or it cannot be read
	willEnrol   bool   // agent.toml or a file of enroll.d tells the agent how to enrol by itself
	enrollFiles string // where files go that say how to enrol
	enrollErr   error  // what says how to enrol cannot be used
	configErr   error  // agent.toml
	certErr     error  // .cert
	expired     []string
	network     string        // kind of network file system that home is on, "" for none
	disk        *control.Disk // nil when it cannot be asked
	readOnly    bool          // the file system of home takes no writing
	words       string        // last line of the log that says why an agent ended

	keeper    service.Keeper
	name      string // what the keeper calls the agent
	kept      service.State
	keeperErr error
	daemon    *control.DaemonStatus

	agent    *control.Status
	agentErr error    // why agent is nil
	moved    bool     // what the agent has as its home is not this directory
	held     bool     // somebody holds the role agent
	holder   *process // who, when that is known
	twins    []process
	late     []string // what did not answer in time
}

// finding is one thing that is so, and what to do about it.
type finding struct {
	State   State  `json:"state"`
	Level   level  `json:"level"`
	Summary string `json:"summary"`
	Advice  string `json:"advice"`
}

type level string

const (
	fine    level = "ok"
	warning level = "warning" // it works, but
	trouble level = "error"   // it does not work
)

// exitCode is that of "devopsAgent status", like the ones of init scripts (LSB): 0 works, 1 runs and does not work,
// 3 does not run, 4 nobody knows. The monitoring of others reads it.
func (s State) exitCode(healthy bool) int {
	switch {
	case healthy:
		return 0
	case s == StateStopped || s == StateRemoved:
		return 3
	case s == StateNotInstalled || s == StateUnknown:
		return 4
	}
	return 1
}

// diagnose says what is the matter, the most important first. There is always one finding.
func diagnose(f *facts) []finding {
	d := diagnosis{f: f}
	switch {
	case f.homeErr != nil:
		d.noHome()
	case f.agent != nil:
		d.up()
	case f.held:
		d.silent()
	default:
		d.down()
	}
	d.always()
	return d.list
}

type diagnosis struct {
	f    *facts
	list []finding
}

func (d *diagnosis) add(state State, l level, advice, summary string, args ...any) {
	d.list = append(d.list, finding{State: state, Level: l, Summary: cli.OneLine(fmt.Sprintf(summary, args...)), Advice: cli.OneLine(advice)})
}

func (d *diagnosis) noHome() {
	f := d.f
	if errors.Is(f.homeErr, fs.ErrPermission) {
		whose := "another user"
		if f.owner != "" {
			whose = f.owner
		}
		seen := ""
		if f.keeper != service.KeeperNone && f.keeper != "" {
			seen = "; " + d.keeperWords()
		}
		d.add(StateUnknown, trouble, "type: "+f.asRoot("status"), "unknown: the home %s belongs to %s and cannot be read from here%s", f.home, whose, seen)
		return
	}
	d.add(StateNotInstalled, trouble, "install a package, or type: "+f.command("install --gateway URL --token-file FILE"),
		"not installed: there is no agent in %s (%v)", f.home, reason(f.homeErr))
}

// foreign reports whether the process that has the home is not the one that the keeper started.
func (f *facts) foreign() bool {
	pid := 0
	switch {
	case f.agent != nil:
		pid = f.agent.PID
	case f.holder != nil:
		pid = f.holder.PID
	}
	if pid == 0 || f.keeperErr != nil || !f.kept.Installed {
		return false
	}
	switch f.keeper {
	case service.KeeperNone, "":
		return false
	case service.KeeperDaemon, service.KeeperSCM:
		// The daemon takes up what runs already: its own agent of before, or anybody's.
		if f.daemon == nil {
			return f.keeper == service.KeeperDaemon && f.otherProgram()
		}
		if f.daemon.Adopted {
			return f.otherProgram()
		}
		return f.daemon.Child != 0 && f.daemon.Child != pid
	}
	return f.kept.PID != pid
}

// otherProgram: what runs is not the program of this home.
func (f *facts) otherProgram() bool {
	if f.holder == nil || f.holder.Executable == "" {
		return false
	}
	exe := strings.TrimSuffix(f.holder.Executable, " (deleted)") // replaced while it runs
	if resolved, err := filepath.EvalSymlinks(f.home); err == nil && filepath.Dir(exe) == resolved {
		return false
	}
	return filepath.Dir(exe) != filepath.Clean(f.home) && filepath.Dir(exe) != service.Packaged(f.goos).Vendor
}

func (d *diagnosis) secondCopy() {
	f := d.f
	who := process{}
	if f.holder != nil {
		who = *f.holder
	} else if f.agent != nil {
		who.PID = f.agent.PID
	}
	d.add(StateSecondCopy, trouble, fmt.Sprintf("end it: %s; the agent of %s then takes over (%s)", kill(f.goos, who.PID), d.keeperName(), f.command("status")),
		"NOT as it should be: a second copy is running: %s has this home, not the agent of %s", who, d.keeperName())
}

// up: an agent of ours answers.
func (d *diagnosis) up() {
	f, a := d.f, d.f.agent
	if f.foreign() {
		d.secondCopy()
	}
	if a.Phase == control.Unenrolled {
		d.unenrolled()
		return
	}
	d.server()
	switch {
	case f.moved:
		again := f.command("install") // what its keeper has registered names the old place
		if f.keeper == service.KeeperDaemon {
			again = f.command("start")
		}
		d.add(StateMoved, trouble, fmt.Sprintf("move it back; or let the agent begin anew where it is: %s && %s", f.command("stop"), again),
			"NOT working: the home was moved while the agent runs: it still looks for it at %s", a.Disk.Path)
	case a.Disk.Needed > 0 && a.Disk.Free < a.Disk.Needed:
		d.diskFull(a.Disk, true)
	}
	if a.Worker {
		d.add(StateNoWorker, trouble, "copy devopsWorker, or worker-agent.jar and a jdk17 directory, into "+f.home+"; the agent goes on by itself",
			"NOT working: no worker on this machine: builds cannot be run")
	}
	building := count(len(a.Builds), "build") + " running"
	contact := "no answer of the server yet"
	if a.Server.LastContact != nil {
		contact = "last contact " + ago(f.now, *a.Server.LastContact)
	}
	switch a.Phase {
	case control.Draining:
		d.add(StateDraining, fine, "to take builds again, type: "+f.command("resume"), "draining: takes no builds%s; %s, %s", since(a.Drain), building, contact)
	case control.Stopping:
		until := ""
		if a.Drain != nil && a.Drain.Until != nil {
			until = ", at the latest at " + clock(*a.Drain.Until)
		}
		d.add(StateStopping, fine, "to stop the builds now, type: "+f.command("stop --now"), "stopping: ends when its builds have%s; %s", until, building)
	case control.Starting:
		d.add(StateStarting, fine, "wait a moment; to look again, type: "+f.command("status --watch"), "starting: waiting for the first answer of %s", or(a.Server.Gateway, "the server"))
	default:
		word := "idle"
		if len(a.Builds) > 0 {
			word = building
		}
		if f.now.Sub(a.Since) > 3*time.Minute && (a.Server.LastContact == nil || f.now.Sub(*a.Server.LastContact) > 3*time.Minute) && a.Server.Problem == "" {
			d.add(StateUnreachable, trouble, "look into "+filepath.Join(f.home, "logs", "devopsAgent.log"), "NOT working: %s", contact)
			break
		}
		d.add(StateRunning, fine, "nothing to do", "working: %s, %s", word, contact)
	}
}

// unenrolled: the agent runs and has no identity.
func (d *diagnosis) unenrolled() {
	f, s := d.f, d.f.agent.Server
	switch {
	case s.Gateway != "" && s.Failing == nil && s.Error == "":
		d.add(StateStarting, fine, "wait a moment; to look again, type: "+f.command("status --watch"), "starting: enrols itself at %s", s.Gateway)
	case s.Problem == control.Unreachable || s.Problem == control.Certificate || s.Problem == control.Clock:
		d.server()
	case s.Error != "":
		d.add(StateNotEnrolled, trouble, hintOf(f.enrollErr, "correct what says so in agent.toml or "+f.enrollFiles)+"; the agent goes on by itself",
			"NOT working: it is not enrolled: %s", s.Error)
	default:
		d.add(StateNotEnrolled, trouble, fmt.Sprintf("type: %s; or put a file with gateway and token_file into %s; the agent goes on by itself",
			f.command("enroll --gateway URL --token-file FILE"), f.enrollFiles), "not enrolled: it runs and waits for an identity")
	}
}

// server: what is wrong between the agent and its server.
func (d *diagnosis) server() {
	f, s := d.f, d.f.agent.Server
	said := s.Error
	if said != "" {
		said = ": " + said
	}
	gateway := or(s.Gateway, f.gateway)
	var last string
	switch {
	case s.LastContact != nil:
		last = "; last contact " + ago(f.now, *s.LastContact)
	case s.Failing != nil:
		last = "; no contact since the start"
	}
	if offset, wrong := clockOffset(s); wrong && (s.Problem == "" || s.Problem == control.Clock || s.Problem == control.Certificate) {
		// A clock that is off by hours makes no healthy machine, even while a lax server takes its messages.
		working := "working, but "
		if s.Failing != nil {
			working = "NOT working: "
		} else {
			said = ""
		}
		side := "ahead of"
		if offset < 0 {
			side, offset = "behind", -offset
		}
		d.add(StateClock, trouble, setClock(f.goos), "%sthe clock of this machine is %s %s the server's%s", working, length(offset), side, said)
		return
	}
	switch s.Problem {
	case "":
	case control.Unreachable:
		d.add(StateUnreachable, trouble, fmt.Sprintf("check network, proxy and address (try: curl -v %s); the agent goes on trying by itself", shell(gateway)),
			"NOT working: the server %s cannot be reached%s%s", gateway, last, said)
	case control.Refused:
		d.add(StateWrongSecret, trouble, fmt.Sprintf("enrol the machine again: %s && %s && %s", f.command("stop"), f.command("enroll --again --gateway URL --token-file FILE"), f.command("start")),
			"NOT working: the server %s does not accept this agent's id and secret%s", gateway, last)
	case control.Certificate:
		if len(f.expired) > 0 {
			d.add(StateCertificate, trouble, "put the current certificate into "+filepath.Join(f.home, config.CertFile)+", then type: "+f.command("restart"),
				"NOT working: the certificate in %s has expired (%s)", config.CertFile, strings.Join(f.expired, "; "))
			return
		}
		d.add(StateCertificate, trouble, "renew the server's certificate, or put that of its authority into "+filepath.Join(f.home, config.CertFile)+" and type: "+f.command("restart"),
			"NOT working: the certificate of the server %s cannot be trusted%s", gateway, said)
	case control.Clock:
		if len(f.expired) > 0 {
			d.add(StateCertificate, trouble, "put the current certificate into "+filepath.Join(f.home, config.CertFile)+", then type: "+f.command("restart"),
				"NOT working: the certificate in %s has expired (%s), or this machine's clock is wrong", config.CertFile, strings.Join(f.expired, "; "))
			return
		}
		d.add(StateClock, trouble, setClock(f.goos), "NOT working: the clock of this machine is wrong (it is %s here)%s", clock(f.now), said)
	case control.Deleted:
		d.add(StateDeleted, trouble, "nothing, if that was meant; else enrol the machine again: "+f.command("enroll --again --gateway URL --token-file FILE"),
			"NOT working: this agent was deleted in BK-CI")
	default:
		d.add(StateServerError, trouble, or(s.Hint, "tell whoever runs "+gateway+"; the agent goes on trying by itself"), "NOT working: the server %s answers with errors%s%s", gateway, last, said)
	}
}

func clockOffset(s control.Server) (time.Duration, bool) {
	if s.ClockOffset == nil {
		return 0, false
	}
	offset := time.Duration(*s.ClockOffset * float64(time.Second))
	return offset, offset.Abs() > clockTolerance
}

func (d *diagnosis) diskFull(disk control.Disk, running bool) {
	does := "builds are not taken"
	if !running {
		does = "an agent would take no builds"
	}
	if d.f.readOnly {
		d.add(StateDiskFull, trouble, "look into the system's log for errors of the disk, and mount it for writing; the agent goes on by itself",
			"NOT working: the file system of %s is read-only; %s", disk.Path, does)
		return
	}
	d.add(StateDiskFull, trouble, "make room on the file system of "+disk.Path+" (see: "+du(d.f.goos, disk.Path)+"); the agent goes on by itself",
		"NOT working: the disk is full: %s free in %s, %s needed; %s", size(disk.Free), disk.Path, size(disk.Needed), does)
}

// silent: somebody holds the home and does not talk.
func (d *diagnosis) silent() {
	f := d.f
	var answered *control.RemoteError // it speaks, though it cannot say how it is
	who := "a process"
	pid := 0
	if f.holder != nil {
		who, pid = f.holder.String(), f.holder.PID
	}
	replaced := "; its keeper replaces it within a minute, or type: " + f.command("restart")
	if f.keeper == service.KeeperNone || f.keeper == "" {
		replaced = "; end it: " + kill9(f.goos, pid) + ", then start it again"
	}
	switch {
	case f.foreign():
		d.secondCopy()
	case f.holder != nil && f.holder.halted:
		d.add(StateHung, trouble, "let it go on: kill -CONT "+fmt.Sprint(pid)+replaced, "NOT working: the agent hangs: %s is halted by a signal (SIGSTOP) or a debugger", who)
	case f.agentErr != nil && errors.Is(f.agentErr, fs.ErrPermission):
		d.add(StateUnknown, trouble, "type: "+f.asRoot("status"), "running, but more cannot be seen from here: %s", who)
	case errors.Is(f.agentErr, control.ErrNobody):
		if f.holder != nil && f.holder.Since != nil && f.now.Sub(*f.holder.Since) < 10*time.Second {
			d.add(StateStarting, fine, "wait a moment; to look again, type: "+f.command("status --watch"), "starting: %s", who)
			return
		}
		d.add(StateUnknown, trouble, "look into "+filepath.Join(f.home, "logs", "devopsAgent.log")+"; if this agent is to be replaced by ours: "+kill(f.goos, pid)+", then "+f.command("start"),
			"running, but it cannot be asked: %s holds this home and has no control socket: an original agent, or one whose log says why", who)
	case errors.As(f.agentErr, &answered):
		d.add(StateStarting, fine, "wait a moment; to look again, type: "+f.command("status --watch"), "starting: %s: %v", who, answered)
	default:
		d.add(StateHung, trouble, strings.TrimPrefix(replaced, "; "), "NOT working: the agent hangs: %s does not answer", who)
	}
}

// down: nobody holds the home.
func (d *diagnosis) down() {
	f := d.f
	enrol := f.command("enroll --gateway URL --token-file FILE")
	if f.identityErr != nil && f.willEnrol && isMissing(f.identityErr) {
		f.identityErr = nil
	}
	switch {
	case errors.Is(f.identityErr, fs.ErrPermission) || errors.Is(f.configErr, fs.ErrPermission):
		d.add(StateUnknown, trouble, "type: "+f.asRoot("status"), "unknown: the files in %s cannot be read from here (%v)", f.home, reason(cmp.Or(f.identityErr, f.configErr)))
		return
	case isMissing(f.identityErr):
		d.add(StateNotInstalled, trouble, "enrol the machine, then install: "+enrol+" && "+f.command("install"),
			"not installed: %s has no identity (%s is not there)", f.home, config.PropertiesFile)
		if f.configErr != nil {
			d.add(StateConfig, trouble, hintOf(f.configErr, "correct that line"), "%v", f.configErr)
		}
		return
	}
	loop := f.looping()
	wanted := loop || f.kept.Running || f.kept.Installed && strings.HasPrefix(f.kept.Detail, "failed")
	prefix := "stopped, and it cannot start: "
	if wanted {
		prefix = "NOT working: it cannot start: "
	}
	if f.kept.StayDown {
		d.add(StateRemoved, trouble, "nothing, if that was meant; else enrol the machine again and start it: "+f.command("enroll --again --gateway URL --token-file FILE")+" && "+f.command("start"),
			"removed: this agent was deleted in BK-CI (exit code %d); %s leaves it stopped", service.ExitStayDown, d.keeperName())
	}
	if f.configErr != nil {
		d.add(StateConfig, trouble, hintOf(f.configErr, "correct that line")+"; then type: "+f.command("start"), "%s%v", prefix, f.configErr)
	}
	if f.identityErr != nil {
		d.add(StateConfig, trouble, hintOf(f.identityErr, "look at that file")+"; then type: "+f.command("start"), "%s%v", prefix, f.identityErr)
	}
	if f.certErr != nil {
		d.add(StateConfig, trouble, hintOf(f.certErr, "put certificates in PEM form into it, or remove it"), "%s%v", prefix, f.certErr)
	}
	if f.network != "" {
		d.add(StateConfig, trouble, "install the agent on a local disk; only the workspace of a build may be on a network file system",
			"%s%s is on a network file system (%s)", prefix, f.home, f.network)
	}
	if strings.Contains(f.kept.Detail, "masked") {
		d.add(StateKeeper, trouble, "type: sudo systemctl unmask "+shell(f.name)+", then "+f.command("start"), "stopped: the unit %s is masked, so that nobody can start it", f.name)
	}
	if f.disk != nil && f.disk.Free < f.disk.Needed {
		d.diskFull(*f.disk, false)
	}
	switch {
	case loop:
		words := ""
		if f.words != "" {
			words = "; its last words: " + f.words
		}
		where := f.command("logs -n 50")
		switch f.keeper {
		case service.KeeperSystemd:
			where = "sudo journalctl -n 50 -u " + shell(f.name)
		case service.KeeperSystemdUser:
			where = "journalctl --user -n 50 -u " + shell(f.name)
		}
		d.add(StateCrashLoop, trouble, "look at its last words: "+where, "NOT working: crash loop: the agent ends soon after each start (%s)%s", d.loopWords(), words)
	case f.kept.Running && !f.kept.StayDown:
		d.add(StateStarting, fine, "wait a moment; to look again, type: "+f.command("status --watch"), "starting: %s has a process, which is not ready", d.keeperName())
	case f.keeperErr != nil:
		d.add(StateStopped, trouble, hintOf(f.keeperErr, "type: "+f.command("start")), "stopped: the agent does not run, and %s cannot be asked: %v", d.keeperName(), f.keeperErr)
	case !f.kept.Installed:
		d.add(StateStopped, trouble, "type: "+f.command("install"), "stopped: the agent does not run, and nothing is registered to start it")
	default:
		when := ""
		if !f.kept.Since.IsZero() {
			when = " since " + clock(f.kept.Since)
		}
		how := ""
		if f.kept.ExitCode > 0 {
			how = fmt.Sprintf(", last exit code %d", f.kept.ExitCode)
		}
		d.add(StateStopped, trouble, "type: "+f.command("start"), "stopped%s; kept by %s%s", when, d.keeperWords(), how)
	}
}

// looping: its keeper starts the agent, and it ends, again and again.
func (f *facts) looping() bool {
	if f.kept.StayDown {
		return false
	}
	if f.daemon != nil && (f.daemon.NextStart != nil || f.daemon.Child == 0 && !f.daemon.Adopted && f.daemon.LastExit != "") {
		return true
	}
	detail := f.kept.Detail
	return f.kept.Installed && (strings.Contains(detail, "auto-restart") || strings.Contains(detail, "spawn scheduled") ||
		f.kept.Running && f.kept.Restarts >= 3 && !f.kept.Since.IsZero() && f.now.Sub(f.kept.Since) < time.Minute)
}

func (d *diagnosis) loopWords() string {
	f := d.f
	if f.daemon != nil {
		text := or(f.daemon.LastExit, "no reason known") + ", " + count(f.daemon.Restarts, "restart")
		if f.daemon.NextStart != nil {
			text += ", next start at " + clock(*f.daemon.NextStart)
		}
		return text
	}
	text := f.kept.Detail
	if f.kept.ExitCode >= 0 {
		text += fmt.Sprintf(", exit code %d", f.kept.ExitCode)
	}
	if f.kept.Restarts > 0 {
		text += ", " + count(f.kept.Restarts, "restart")
	}
	return text
}

// always: what is to be said in any state, after what is more urgent.
func (d *diagnosis) always() {
	f := d.f
	for _, twin := range f.twins {
		found := finding{State: StateSecondCopy, Level: trouble,
			Summary: cli.OneLine(fmt.Sprintf("NOT as it should be: a second copy is running: %s in %s has the same identity", twin, twin.Dir)),
			Advice:  cli.OneLine(fmt.Sprintf("end one of the two: %s; for a second agent on this machine, enrol one of its own", kill(f.goos, twin.PID)))}
		d.list = append([]finding{found}, d.list...)
	}
	running := f.agent != nil || f.held
	if f.homeErr == nil && running {
		switch {
		case f.keeperErr != nil && !errors.Is(f.keeperErr, fs.ErrPermission):
			advice := hintOf(f.keeperErr, "look at "+d.keeperName())
			if errors.Is(f.keeperErr, service.ErrNoKeeper) && f.owner != "" && (f.keeper == service.KeeperSystemdUser || f.keeper == service.KeeperLaunchAgent) {
				advice = "its account can ask: sudo -u " + shell(f.owner) + " " + f.command("status")
			}
			d.add(StateKeeper, warning, advice, "%s cannot be asked: %v", d.keeperName(), f.keeperErr)
		case f.keeperErr != nil:
		case f.keeper == service.KeeperDaemon && f.kept.Running: // as the original scripts start it, with or without a registration
		case !f.kept.Installed || f.keeper == service.KeeperNone:
			d.add(StateKeeper, warning, "type: "+f.command("install"), "nothing starts this agent again when it ends or the machine boots")
		case !f.kept.Running && !f.foreign():
			d.add(StateKeeper, warning, "type: "+f.command("start"), "%s does not run, so that nothing starts this agent again when it ends", d.keeperName())
		case !f.kept.Enabled && f.keeper != service.KeeperDaemon:
			d.add(StateKeeper, warning, "type: "+f.command("install"), "%s is disabled: the agent will not start with the machine", d.keeperName())
		}
		if f.agent != nil {
			identityErr := f.identityErr
			if (f.willEnrol || f.agent.Phase == control.Unenrolled) && isMissing(identityErr) { // it enrols
				identityErr = nil
			}
			for _, err := range []error{f.configErr, identityErr, f.certErr} {
				if err != nil && !denied(err) {
					d.add(StateConfig, warning, hintOf(err, "look at that file"), "the running agent goes on with its old settings, the next one cannot start: %v", err)
				}
			}
		}
	}
	if len(f.expired) > 0 && f.homeErr == nil && !d.has(StateCertificate) {
		d.add(StateCertificate, warning, "put the current certificate into "+filepath.Join(f.home, config.CertFile), "a certificate in %s has expired (%s)", config.CertFile, strings.Join(f.expired, "; "))
	}
	for _, late := range f.late {
		d.add(StateUnknown, warning, "try again; when it stays so, look at "+late, "%s did not answer in time", late)
	}
}

func (d *diagnosis) has(s State) bool {
	for _, f := range d.list {
		if f.State == s {
			return true
		}
	}
	return false
}

// keeperName names the keeper for a person: "systemd (devops-agent.service)".
func (d *diagnosis) keeperName() string { return keeperName(d.f.keeper, d.f.name) }

func keeperName(k service.Keeper, name string) string {
	word := map[service.Keeper]string{
		service.KeeperSystemd: "systemd", service.KeeperSystemdUser: "systemd of the user", service.KeeperLaunchd: "launchd",
		service.KeeperLaunchAgent: "launchd of the user", service.KeeperSCM: "the service manager", service.KeeperDaemon: "devopsDaemon",
	}[k]
	if word == "" {
		return "no keeper"
	}
	if name != "" {
		word += " (" + name + ")"
	}
	return word
}

func (d *diagnosis) keeperWords() string {
	if d.f.kept.Detail == "" || d.f.kept.Detail == "stopped" { // said already
		return d.keeperName()
	}
	return d.keeperName() + ": " + d.f.kept.Detail
}

// isMissing: there is no identity at all, rather than a damaged one.
func isMissing(err error) bool {
	var wrong *config.KeyError
	if !errors.As(err, &wrong) {
		return errors.Is(err, fs.ErrNotExist)
	}
	return errors.Is(wrong, fs.ErrNotExist)
}

// hintOf is what an error knows about what to do.
func hintOf(err error, otherwise string) string {
	var hinter interface{ Hint() string }
	if errors.As(err, &hinter) && hinter.Hint() != "" {
		return hinter.Hint()
	}
	return otherwise
}

// reason is the cause of a file error without its path, which is said already.
func reason(err error) error {
	var file *fs.PathError
	if errors.As(err, &file) {
		return file.Err
	}
	return err
}

func setClock(goos string) string {
	switch goos {
	case "windows":
		return "set the clock, as administrator: w32tm /resync /force"
	case "darwin":
		return "set the clock: sudo sntp -sS time.apple.com"
	}
	return "set the clock: sudo timedatectl set-ntp true (or look after chrony, ntpd or the host of this virtual machine)"
}

func kill(goos string, pid int) string {
	if goos == "windows" {
		return fmt.Sprintf("taskkill /PID %d /F", pid)
	}
	return fmt.Sprintf("kill %d", pid)
}

func kill9(goos string, pid int) string {
	if goos == "windows" {
		return kill(goos, pid)
	}
	return fmt.Sprintf("kill -9 %d", pid)
}

func du(goos, dir string) string {
	if goos == "windows" {
		return `dir /s "` + dir + `"`
	}
	return "du -xh --max-depth=2 " + shell(dir) + " | sort -h | tail"
}
