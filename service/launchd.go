package service

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/launchd"
	"github.com/devops-agent/devops-agent/service/control"
	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// removedFile in home says that the agent ended with ExitStayDown. launchd cannot be told about exit codes: its job is
// started again as long as this file is not there (docs/decisions/0011-launchd.md). The Windows service and devopsDaemon keep
// it for what comes after a restart of the machine.
const removedFile = ".removed"

// MarkRemoved notes that the agent ends with ExitStayDown, for keepers that cannot see it or would forget it. It comes before the
// end.
func (i *Installation) MarkRemoved() error {
	f, err := os.OpenFile(i.Path(removedFile), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("note that the agent was removed: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("note that the agent was removed: %w", err)
	}
	return nil
}

// Removed reports whether the agent ended with ExitStayDown and was not started by hand since.
func (i *Installation) Removed() bool { return exists(i.Path(removedFile)) }

// forgetRemoval takes MarkRemoved back.
func (i *Installation) forgetRemoval() error {
	if err := os.Remove(i.Path(removedFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget that the agent was removed: %w", err)
	}
	return nil
}

// launchdKeeper is launchd as keeper of one installation: as a daemon of the machine, or as an agent of one user.
type launchdKeeper struct {
	inst    *Installation
	goos    string
	ofUser  bool
	uid     int
	pid     int    // of this process
	home    string // of the user; "" when it cannot be found
	jobs    string // directory of the property lists; "" when it cannot be found
	run     launchd.Runner
	volume  func(dir string) (launchd.Volume, error)
	restart func(ctx context.Context) error // asks the agent to end without its builds
}

// NewLaunchd is launchd as keeper of an installation: a daemon of the machine or, with ofUser, an agent of the calling user. A
// package's installation has the package's label; any other gets one of its own, the original's (protocol §5.7) or one
// after its directory.
func NewLaunchd(inst *Installation, ofUser bool) Supervisor {
	k := &launchdKeeper{
		inst: inst, goos: runtime.GOOS, ofUser: ofUser, uid: os.Getuid(), pid: os.Getpid(),
		jobs: launchd.DaemonDir, run: launchd.Exec, volume: launchd.StatVolume,
		restart: func(ctx context.Context) error {
			return control.Call(ctx, inst.Home, string(RoleAgent), control.Request{Op: control.OpRestart}, nil)
		},
	}
	if home, err := os.UserHomeDir(); err == nil {
		k.home = home
	}
	if ofUser {
		k.jobs = ""
		if k.home != "" {
			k.jobs = launchd.UserAgentDir(k.home)
		}
	}
	return k
}

// Keeper says which of the two it is.
func (k *launchdKeeper) Keeper() Keeper {
	if k.ofUser {
		return KeeperLaunchAgent
	}
	return KeeperLaunchd
}

// Name is the label of the job: the package's for a package's home; else the one that is there already, so that it stays the
// same when the agent gets its identity; else the one that a fresh installation gets.
func (k *launchdKeeper) Name() string {
	home := filepath.ToSlash(k.inst.Home)
	if l := Packaged("darwin"); !k.ofUser && home == l.Home {
		return l.Name
	}
	sum := sha256.Sum256([]byte(home))
	byPath := "devops-agent-" + hex.EncodeToString(sum[:4])
	id := agentID(k.inst)
	if id == "" {
		return byPath
	}
	byID := "devops_agent_" + id
	if k.jobs != "" && !exists(k.file(byID)) && exists(k.file(byPath)) {
		return byPath
	}
	return byID
}

// file is the property list of a label.
func (k *launchdKeeper) file(label string) string { return launchd.Job{Label: label}.File(k.jobs) }

// noJobError: launchd has no job of this installation.
type noJobError struct{ label string }

// Error names the job.
func (e *noJobError) Error() string { return "the launchd job " + e.label + " is not installed" }

// Hint says how to install it.
func (e *noJobError) Hint() string { return "\"devopsAgent install\" registers the agent with launchd" }

// rootAgentError: an agent of a user lives in the session of a person, and root has none.
type rootAgentError struct{}

// Error says what was refused.
func (e *rootAgentError) Error() string { return "install user: root has no session of its own" }

// Hint says what was meant.
func (e *rootAgentError) Hint() string {
	return "leave out sudo to install for yourself, or use \"devopsAgent install service\" for the machine"
}

// ready is the beginning of every method.
func (k *launchdKeeper) ready() error {
	if k.goos != "darwin" {
		return fmt.Errorf("%s: %w", k.Keeper(), ErrNoKeeper)
	}
	if k.jobs == "" {
		return fmt.Errorf("%s: the home directory of this account is unknown, and with it where its jobs belong", k.Keeper())
	}
	return nil
}

// mayChange refuses who has not the rights, before anything is half done.
func (k *launchdKeeper) mayChange(what string) error {
	if err := k.ready(); err != nil {
		return err
	}
	switch {
	case !k.ofUser && k.uid != 0:
		return &rightsError{what + " " + k.Name()}
	case k.ofUser && k.uid == 0:
		return &rootAgentError{}
	}
	return nil
}

// manager is the conversation with the domain that the job is in, or would be in when it were installed now. An agent belongs
// to the login at the screen where there is one, else to whatever sessions its user has.
func (k *launchdKeeper) manager(ctx context.Context) (launchd.Manager, launchd.Session, error) {
	if !k.ofUser {
		return launchd.Manager{Domain: launchd.System, Run: k.run}, "", nil
	}
	gui := launchd.Manager{Domain: launchd.GUI(k.uid), Run: k.run}
	background := launchd.Manager{Domain: launchd.User(k.uid), Run: k.run}
	if text, err := os.ReadFile(k.file(k.Name())); err == nil {
		if job, err := launchd.ParseJob(text); err == nil {
			switch job.Session {
			case launchd.SessionBackground:
				return background, job.Session, nil
			case launchd.SessionAqua:
				return gui, job.Session, nil
			}
		}
	}
	there, err := gui.Exists(ctx)
	if err != nil {
		return gui, "", err
	}
	if !there {
		return background, launchd.SessionBackground, nil
	}
	return gui, launchd.SessionAqua, nil
}

// Notes are what an operator should know after Install.
func (k *launchdKeeper) Notes() []string {
	text, err := os.ReadFile(k.file(k.Name()))
	if err != nil || !k.ofUser {
		return nil
	}
	job, err := launchd.ParseJob(text)
	if err != nil {
		return nil
	}
	if job.Session == launchd.SessionBackground {
		return []string{"the agent lives as long as this user has a session, one over ssh too; for a machine that builds after a restart without any login, use sudo devopsAgent install service"}
	}
	return []string{"the agent starts when this user logs in at the screen and ends at the logout; for a machine without a login, use sudo devopsAgent install service"}
}

// endGrace is for what comes after drain.timeout: to stop builds that are left, and to report them.
const endGrace = 30 * time.Second

// drainDefault stands for a drain.timeout that was not given: launchd would take 0 as "for ever".
const drainDefault = 5 * time.Second

// LaunchdJob is what launchd is told about an installation. packages ship the same value.
func LaunchdJob(label string, s Setup, session launchd.Session) launchd.Job {
	from := s.Vendor
	program := []string{"start", "--home", s.Home}
	if from == "" {
		from = s.Home
	} else {
		program = append(program, "--vendor", s.Vendor)
	}
	j := launchd.Job{
		Label: label, Program: append([]string{launchdPath(from, "upgrader")}, program...),
		Directory: s.Home, StayDown: launchdPath(s.Home, removedFile),
		// launchd's own PATH lacks what builds on a Mac expect; a .path of the home wins over it.
		Environment: map[string]string{"PATH": "/usr/local/bin:/opt/homebrew/bin:/usr/bin:/bin:/usr/sbin:/sbin"},
		Throttle:    time.Second,
		ExitTimeout: max(s.Drain, drainDefault) + endGrace,
		Type:        launchd.Interactive, MaxFiles: 65536, Umask: 0o077,
		Session: session, Stderr: launchdPath(s.Home, "logs", "launchd.log"),
	}
	if session == "" && s.User != "root" {
		j.User = s.User
	}
	return j
}

// launchdPath joins paths of a Mac on any system.
func launchdPath(parts ...string) string { return strings.Join(parts, "/") }

// Install writes the job's property list. launchd reads it at the next boot or login; Start loads it now.
func (k *launchdKeeper) Install(ctx context.Context, s Setup) error {
	if err := k.mayChange("install"); err != nil {
		return err
	}
	var homes []string
	if k.home != "" {
		homes = append(homes, k.home)
	}
	for _, dir := range []string{s.Home, s.Vendor} {
		if dir == "" {
			continue
		}
		if err := launchd.CheckHome(dir, homes, k.volume); err != nil {
			return fmt.Errorf("install: %w", err)
		}
	}
	if s.User == "" && !k.ofUser {
		owner, err := ownerOf(s.Home)
		if err != nil {
			return fmt.Errorf("install: %w", err)
		}
		s.User = owner // the original runs as who unpacked it
	}
	m, session, err := k.manager(ctx)
	if err != nil {
		return err
	}
	label := k.Name()
	text, err := LaunchdJob(label, s, session).Plist()
	if err != nil {
		return fmt.Errorf("install: %w", err)
	}
	if err := k.logs(s); err != nil {
		return fmt.Errorf("install: %w", err)
	}
	status, loaded, err := m.Print(ctx, label)
	if err != nil {
		return err
	}
	if loaded && !status.Running() {
		// With the old property list, or stopped by exit 88: it would start by itself when that is taken back.
		if err := m.Bootout(ctx, label); err != nil {
			return err
		}
	}
	if err := k.writeJob(k.file(label), text); err != nil {
		return fmt.Errorf("install: %w", err)
	}
	if err := k.inst.forgetRemoval(); err != nil {
		return err
	}
	return m.Enable(ctx, label)
}

// logs makes the directory that the job's output goes to. launchd would make it too, as root and closed to the agent.
func (k *launchdKeeper) logs(s Setup) error {
	dir := filepath.Join(s.Home, "logs")
	if err := os.Mkdir(dir, 0o700); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	if k.uid != 0 || s.User == "" {
		return nil
	}
	return giveTo(dir, s.User)
}

// giveTo makes an account the owner of a file.
func giveTo(path, account string) error {
	u, err := user.Lookup(account)
	if err != nil {
		return fmt.Errorf("give %s to its owner: %w", path, err)
	}
	var uid, gid int
	if _, err := fmt.Sscan(u.Uid+" "+u.Gid, &uid, &gid); err != nil {
		return fmt.Errorf("give %s to %s: %w", path, account, err)
	}
	return os.Lchown(path, uid, gid)
}

// writeJob writes a property list whole or not at all, as launchd wants it: a real file, writable by its owner alone.
func (k *launchdKeeper) writeJob(path string, text []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, text) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := swap.WriteFile(path, text, 0o644); err != nil {
		return err
	}
	if k.uid == 0 && os.Geteuid() == 0 { // the file keeps the owner of the one before
		return os.Lchown(path, 0, 0) // root:wheel
	}
	return nil
}

// Uninstall ends the job and removes its property list. Called by the job's own process, which would wait for its own end, it
// leaves the job loaded: that process ends with ExitStayDown, and launchd forgets the job with the session or the machine.
func (k *launchdKeeper) Uninstall(ctx context.Context) error {
	if err := k.ready(); err != nil {
		return err
	}
	label := k.Name()
	m, _, err := k.manager(ctx)
	if err != nil {
		return err
	}
	status, loaded, err := m.Print(ctx, label)
	if err != nil {
		return err
	}
	if !loaded && !exists(k.file(label)) {
		return k.inst.forgetRemoval()
	}
	if err := k.mayChange("uninstall"); err != nil {
		return err
	}
	self := loaded && status.PID == k.pid
	if loaded && !self {
		if err := m.Bootout(ctx, label); err != nil {
			return err
		}
	}
	if err := removeFile(k.file(label)); err != nil {
		return err
	}
	if self {
		return nil
	}
	return k.inst.forgetRemoval()
}

// How long launchd may take.
const (
	jobStart   = 10 * time.Second // for a process, from the order
	jobRestart = 15 * time.Second // for an agent that was asked to end
	jobLook    = 50 * time.Millisecond
)

// Start loads the job, unless it is, and sees to it that it has a process.
func (k *launchdKeeper) Start(ctx context.Context) error {
	if err := k.ready(); err != nil {
		return err
	}
	label := k.Name()
	if !exists(k.file(label)) {
		return &noJobError{label}
	}
	if err := k.mayChange("start"); err != nil {
		return err
	}
	m, _, err := k.manager(ctx)
	if err != nil {
		return err
	}
	if err := k.inst.forgetRemoval(); err != nil {
		return err
	}
	status, loaded, err := m.Print(ctx, label)
	if err != nil || loaded && status.Running() {
		return err
	}
	if !loaded {
		if err := m.Enable(ctx, label); err != nil {
			return err
		}
		if err := m.Bootstrap(ctx, label, k.file(label)); err != nil {
			return err
		}
	}
	_, err = k.up(ctx, m, label, jobStart, func(s launchd.Status) bool { return s.Running() })
	return err
}

// up looks until the job is as wanted. One that is loaded and has no process is kicked: launchd was seen to load jobs without
// starting them.
func (k *launchdKeeper) up(ctx context.Context, m launchd.Manager, label string, limit time.Duration, wanted func(launchd.Status) bool) (launchd.Status, error) {
	looking, cancel := context.WithTimeoutCause(ctx, limit, errors.New("no process came up"))
	defer cancel()
	tick := time.NewTicker(jobLook)
	defer tick.Stop()
	for kicked := false; ; {
		status, loaded, err := m.Print(looking, label)
		switch {
		case err != nil && looking.Err() == nil:
			return status, err
		case err == nil && loaded && wanted(status):
			return status, nil
		case err == nil && loaded && !status.Running() && !kicked:
			kicked = true
			if err := m.Kickstart(looking, label); err != nil && looking.Err() == nil {
				return status, err
			}
			continue
		}
		select {
		case <-looking.Done():
			if status.ExitText != "" {
				return status, fmt.Errorf("wait for %s, which is %s after %s: %w", label, status.State, status.ExitText, context.Cause(looking))
			}
			return status, fmt.Errorf("wait for %s, which is %s: %w", label, status.State, context.Cause(looking))
		case <-tick.C:
		}
	}
}

// Stop unloads the job: one that is kept alive cannot be stopped otherwise. launchd loads it again at the next boot or login.
func (k *launchdKeeper) Stop(ctx context.Context) error {
	if err := k.ready(); err != nil {
		return err
	}
	m, _, err := k.manager(ctx)
	if err != nil {
		return err
	}
	label := k.Name()
	_, loaded, err := m.Print(ctx, label)
	if err != nil || !loaded {
		return err
	}
	if err := k.mayChange("stop"); err != nil {
		return err
	}
	return m.Bootout(ctx, label)
}

// Restart lets the agent end without its builds: launchd brings the next one, which adopts them. "launchctl kickstart -k" would
// drain first, up to the job's time to end. An agent that does not answer is killed, which leaves builds alone as well.
func (k *launchdKeeper) Restart(ctx context.Context) error {
	if err := k.ready(); err != nil {
		return err
	}
	m, _, err := k.manager(ctx)
	if err != nil {
		return err
	}
	label := k.Name()
	before, loaded, err := m.Print(ctx, label)
	if err != nil {
		return err
	}
	if !loaded || !before.Running() {
		return k.Start(ctx)
	}
	if err := k.mayChange("restart"); err != nil {
		return err
	}
	next := func(s launchd.Status) bool { return s.Running() && s.PID != before.PID }
	if err := k.restart(ctx); err == nil {
		if _, err = k.up(ctx, m, label, jobRestart, next); err == nil || ctx.Err() != nil {
			return err
		}
	}
	if err := m.Kill(ctx, "SIGKILL", label); err != nil {
		return err
	}
	_, err = k.up(ctx, m, label, jobRestart, next)
	return err
}

// State asks launchd.
func (k *launchdKeeper) State(ctx context.Context) (State, error) {
	st := State{Restarts: -1, ExitCode: -1}
	if err := k.ready(); err != nil {
		return st, err
	}
	m, _, err := k.manager(ctx)
	if err != nil {
		return st, err
	}
	label := k.Name()
	status, loaded, err := m.Print(ctx, label)
	if err != nil {
		return st, err
	}
	st.Installed = exists(k.file(label))
	disabled := false
	if st.Installed {
		if disabled, err = m.Disabled(ctx, label); err != nil {
			return st, err
		}
		st.Enabled = !disabled
	}
	if !loaded {
		st.Detail = "not loaded"
	} else {
		st.Running, st.PID, st.ExitCode, st.Detail = status.Running(), status.PID, status.ExitCode, or(status.State, "loaded")
		if status.Runs > 0 {
			st.Restarts = status.Runs - 1
		}
		if !st.Running && status.ExitText != "" {
			st.Detail += " (" + status.ExitText + ")"
		}
	}
	if disabled {
		st.Detail += ", disabled"
	}
	st.StayDown = st.Installed && !st.Running && k.inst.Removed()
	if st.StayDown {
		st.ExitCode = ExitStayDown
	}
	return st, nil
}
