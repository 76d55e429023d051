package service

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/devops-agent/devops-agent/service/control"
	"github.com/devops-agent/devops-agent/windows"
)

// scm is the Windows service manager as keeper of one installation: it keeps devopsDaemon.exe, which keeps the agent.
type scm struct {
	inst *Installation
	goos string
}

// NewSCM is the Windows service manager as keeper of an installation.
func NewSCM(inst *Installation) Supervisor { return &scm{inst: inst, goos: runtime.GOOS} }

// Keeper says that it is the service manager.
func (k *scm) Keeper() Keeper { return KeeperSCM }

// Name is the service: the package's for a package's home; the original's name (protocol §3.5.2) for one with an identity;
// one after the directory else, which stays when the agent gets its identity.
func (k *scm) Name() string {
	if packaged(k.goos, k.inst.Home) {
		return Packaged(k.goos).Name
	}
	sum := sha256.Sum256([]byte(strings.ToLower(k.inst.Home)))
	byPath := "devops-agent-" + hex.EncodeToString(sum[:4])
	id := agentID(k.inst)
	if id == "" {
		return byPath
	}
	byID := "devops_agent_" + id
	if there, err := (windows.Manager{}).Query(byPath); err == nil && there.Installed {
		return byPath
	}
	return byID
}

func (k *scm) ready() error {
	if k.goos != "windows" {
		return fmt.Errorf("%s: %w", KeeperSCM, ErrNoKeeper)
	}
	return nil
}

// WindowsService is what the service manager is told about an installation. packages ship the same value.
//
// In session mode the agent runs as whoever is logged on, who therefore may change home. What SYSTEM runs must not lie
// there, so the daemon is the one of s.Vendor, or a copy in programs.
func WindowsService(name string, s Setup) windows.Service {
	from := s.Vendor
	if from == "" {
		from = s.Home
	}
	word := "service"
	if s.Session {
		word = "session"
	}
	return windows.Agent(name, windowsPath(from, "devopsDaemon.exe"), []string{word, "--home", s.Home}, s.Home, s.Drain)
}

// windowsPath joins paths of Windows on any system.
func windowsPath(dir, name string) string { return strings.TrimRight(dir, `\/`) + `\` + name }

// sessionPrograms is where the daemon of a portable agent in session mode is copied to.
func (k *scm) sessionPrograms() string {
	return windowsPath(Packaged(k.goos).Vendor, k.Name())
}

// otherAccountError: a service of another account needs its password, which has no business here.
type otherAccountError struct{ user string }

// Error names the account.
func (e *otherAccountError) Error() string {
	return "install as " + e.user + ": the agent runs as LocalSystem, or in the session of the user who is logged on"
}

// Hint says what was perhaps meant.
func (e *otherAccountError) Hint() string {
	return "\"devopsAgent install session\" runs builds as the user who is logged on; or set the account of the service in services.msc"
}

// Install closes home to everybody but SYSTEM and Administrators and registers the service.
func (k *scm) Install(_ context.Context, s Setup) error {
	if err := k.ready(); err != nil {
		return err
	}
	if s.User != "" && !strings.EqualFold(s.User, windows.LocalSystem) && !strings.EqualFold(s.User, "SYSTEM") {
		return &otherAccountError{s.User}
	}
	name := k.Name()
	if s.Session && s.Vendor == "" {
		s.Vendor = k.sessionPrograms()
		if err := k.copyDaemon(s.Vendor); err != nil {
			return fmt.Errorf("install service %s: %w", name, err)
		}
	}
	service := WindowsService(name, s)
	if err := windows.Protect(s.Home, windows.HomeSDDL); err != nil {
		return fmt.Errorf("install service %s: %w", name, err)
	}
	if err := windows.Reclaim(s.Home, "workspace", "docker_workspace"); err != nil { // those are big, and nothing of the agent's
		return fmt.Errorf("install service %s: %w", name, err)
	}
	if err := k.check(s.Home, s.Session, service.Program); err != nil {
		return err
	}
	if err := (windows.Manager{}).Install(service); err != nil {
		return err
	}
	return k.inst.forgetRemoval()
}

// programs are the files of home that run with the rights of the service.
func (k *scm) programs(home string) []string {
	var list []string
	for _, name := range []string{"devopsDaemon.exe", "devopsAgent.exe", "upgrader.exe", "devopsWorker.exe", `tmp\upgrader.exe`,
		"worker-agent.jar", `jdk\bin\java.exe`, `jdk17\bin\java.exe`} {
		list = append(list, windowsPath(home, name))
	}
	return list
}

// check refuses what somebody else could change and SYSTEM would run. In session mode nothing of home runs as SYSTEM.
func (k *scm) check(home string, session bool, daemon string) error {
	if session {
		return windows.CheckPrograms(filepath.Dir(daemon), daemon)
	}
	if err := windows.CheckPrograms(home, k.programs(home)...); err != nil || strings.EqualFold(filepath.Dir(daemon), home) {
		return err
	}
	return windows.CheckPrograms(filepath.Dir(daemon), daemon)
}

// CheckService refuses to keep the agent of a home as SYSTEM when others could change what would run: home, its programs, and
// daemon, the program that calls. With session, the agent runs as somebody else, and only daemon counts. The error is a
// windows.ExposedError.
func CheckService(inst *Installation, daemon string, session bool) error {
	return (&scm{inst: inst, goos: runtime.GOOS}).check(inst.Home, session, daemon)
}

// InSession reports whether an original's agent is to run in the session of the user who is logged on (protocol §2.1,
// .install_type). Ours is told so by its registration, which that user cannot change.
func InSession(inst *Installation) bool {
	word, err := os.ReadFile(inst.Path(typeFile))
	return err == nil && strings.TrimSpace(string(word)) == wordSession
}

// copyDaemon copies home's devopsDaemon.exe to where only administrators can change it. A running one is moved aside.
func (k *scm) copyDaemon(dir string) (err error) {
	from, err := os.Open(k.inst.Path("devopsDaemon.exe"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	to := windowsPath(dir, "devopsDaemon.exe")
	fresh, err := os.OpenFile(to+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o700)
	if err != nil {
		return err
	}
	_, err = io.Copy(fresh, from)
	if err = errors.Join(err, fresh.Close()); err != nil {
		return err
	}
	if err = os.Rename(to+".new", to); err == nil {
		return nil
	}
	old := to + ".old"
	_ = os.Remove(old) // in use, when the service has not been restarted since the last time
	if err := os.Rename(to, old); err != nil {
		return err
	}
	return os.Rename(to+".new", to)
}

// Uninstall stops the service, when its agent has drained, and removes it and its event source.
func (k *scm) Uninstall(ctx context.Context) error {
	if err := k.ready(); err != nil {
		return err
	}
	name := k.Name()
	if err := (windows.Manager{}).Stop(ctx, name); err != nil {
		return err
	}
	if err := (windows.Manager{}).Remove(ctx, name); err != nil {
		return err
	}
	if dir := k.sessionPrograms(); exists(windowsPath(dir, "devopsDaemon.exe")) && path.Base(filepath.ToSlash(dir)) == name {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove the copy of devopsDaemon: %w", err)
		}
	}
	return k.inst.forgetRemoval()
}

// Start starts the service. What it would refuse is refused here, where a person can read why.
func (k *scm) Start(ctx context.Context) error {
	if err := k.ready(); err != nil {
		return err
	}
	name := k.Name()
	status, err := (windows.Manager{}).Query(name)
	if err != nil {
		return err
	}
	if !status.Installed {
		return &windows.NotInstalledError{Name: name}
	}
	if !status.Down() {
		return (windows.Manager{}).Start(ctx, name)
	}
	program, word := readImage(status.Image)
	if err := k.check(k.inst.Home, word == "session", program); err != nil {
		return err
	}
	if err := k.inst.forgetRemoval(); err != nil { // who starts it by hand means it
		return err
	}
	return (windows.Manager{}).Start(ctx, name)
}

// readImage returns program and first argument of a service's command line.
func readImage(image string) (program, word string) {
	rest := ""
	if quoted, ok := strings.CutPrefix(image, `"`); ok {
		program, rest, _ = strings.Cut(quoted, `"`)
	} else if i := strings.Index(strings.ToLower(image), ".exe"); i >= 0 { // of somebody who did not quote it
		program, rest = image[:i+len(".exe")], image[i+len(".exe"):]
	} else {
		program = image
	}
	if words := strings.Fields(rest); len(words) > 0 {
		word = words[0]
	}
	return program, word
}

// Stop stops the service, and with it the agent, which drains first.
func (k *scm) Stop(ctx context.Context) error {
	if err := k.ready(); err != nil {
		return err
	}
	return (windows.Manager{}).Stop(ctx, k.Name())
}

// Restart has the daemon replace the agent. Builds go on. One that does not answer, as the original's, is restarted as a
// service, which leaves its builds alone, too.
func (k *scm) Restart(ctx context.Context) error {
	if err := k.ready(); err != nil {
		return err
	}
	status, err := (windows.Manager{}).Query(k.Name())
	if err != nil {
		return err
	}
	if status.Down() {
		return k.Start(ctx)
	}
	err = control.Call(ctx, k.inst.Home, string(RoleDaemon), control.Request{Op: control.OpRestart}, nil)
	if !errors.Is(err, control.ErrNobody) {
		return err
	}
	if err := (windows.Manager{}).Stop(ctx, k.Name()); err != nil {
		return err
	}
	return (windows.Manager{}).Start(ctx, k.Name())
}

// neverStarted is ERROR_SERVICE_NEVER_STARTED.
const neverStarted = 1077

// State asks the service manager for the service, and the daemon for its agent.
func (k *scm) State(ctx context.Context) (State, error) {
	s := State{ExitCode: -1, Restarts: -1}
	if err := k.ready(); err != nil {
		return s, err
	}
	status, err := (windows.Manager{}).Query(k.Name())
	if err != nil {
		return s, err
	}
	s.Installed, s.Enabled, s.Detail = status.Installed, status.Enabled, status.State
	if !status.Installed {
		return s, nil
	}
	if status.Down() {
		switch {
		case k.inst.Removed():
			s.StayDown, s.ExitCode, s.Detail = true, ExitStayDown, "stopped; stays down: the agent was removed"
		case status.Specific != 0:
			s.ExitCode = int(status.Specific)
			s.Detail = fmt.Sprintf("stopped (specific exit code %d)", status.Specific)
		case status.Exit == neverStarted:
			s.Detail = "stopped; not started since the machine was"
		case status.Exit != 0:
			s.Detail = fmt.Sprintf("stopped (Windows error %d)", status.Exit)
		}
		return s, nil
	}
	s.Since = status.Started
	var daemon control.DaemonStatus
	switch err := control.Call(ctx, k.inst.Home, string(RoleDaemon), control.Request{Op: control.OpStatus}, &daemon); {
	case err == nil:
		s.PID, s.Running, s.Restarts = daemon.Child, daemon.Child != 0, daemon.Restarts
		s.Detail = status.State + "; agent: " + describeDaemon(daemon)
	case errors.Is(err, control.ErrNobody):
		if holder, ok := k.inst.Holder(RoleAgent); ok { // under an original daemon, or one that is just starting
			s.PID, s.Running = holder.PID, true
		}
	default:
		return s, err
	}
	return s, nil
}
