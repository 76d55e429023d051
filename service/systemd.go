package service

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/service/control"
	"github.com/devops-agent/devops-agent/systemd"
	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// systemdKeeper is the systemd of a machine, or of one user on it, as keeper of one installation.
type systemdKeeper struct {
	inst    *Installation
	manager systemd.Manager
	here    func() bool            // whether there is such a manager
	root    bool                   // we are root
	units   string                 // directory of the units that an operator writes; "" when it cannot be found
	shipped []string               // directories of the units that packages ship
	account func() (string, error) // name of our own account
}

// NewSystemd is systemd as keeper of an installation: that of the machine or, with ofUser, that of the calling user. A
// package's installation is kept by the package's unit; any other gets a unit of its own, named as the original's
// (protocol §5.7: its upgrader restarts that name) or after its directory.
func NewSystemd(inst *Installation, ofUser bool) Supervisor {
	k := &systemdKeeper{
		inst: inst, manager: systemd.Manager{User: ofUser},
		here:    func() bool { return runtime.GOOS == "linux" && systemd.Here(ofUser) },
		root:    os.Geteuid() == 0,
		units:   "/etc/systemd/system",
		shipped: []string{systemUnits, "/lib/systemd/system"},
		account: ownAccount,
	}
	if ofUser {
		k.units, k.shipped = userUnits(), nil
	}
	return k
}

// userUnits is where a user's own units are.
func userUnits() string {
	if dir := os.Getenv("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "systemd", "user")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		me, err := user.Current()
		if err != nil {
			return ""
		}
		home = me.HomeDir
	}
	return filepath.Join(home, ".config", "systemd", "user")
}

func ownAccount() (string, error) {
	me, err := user.Current()
	if err != nil {
		return "", fmt.Errorf("find out who I am: %w", err)
	}
	return me.Username, nil
}

// Keeper says which of the two it is.
func (k *systemdKeeper) Keeper() Keeper {
	if k.manager.User {
		return KeeperSystemdUser
	}
	return KeeperSystemd
}

// Name is that of the unit: the package's for a package's home; else the one that is there already, so that it stays the same
// when the agent gets its identity; else the one that a fresh installation gets.
func (k *systemdKeeper) Name() string {
	home := filepath.ToSlash(k.inst.Home)
	if !k.manager.User {
		if l := Packaged("linux"); home == l.Home {
			return l.Name
		}
		if name, ok := strings.CutPrefix(home, instances); ok && instanceForm.MatchString(name) {
			return Instance(name).Name
		}
	}
	sum := sha256.Sum256([]byte(home))
	byPath := "devops-agent-" + hex.EncodeToString(sum[:4]) + ".service"
	id := agentID(k.inst)
	if id == "" {
		return byPath
	}
	byID := "devops_agent_" + id + ".service"
	if k.units == "" {
		return byID
	}
	if dir, there := unitHome(filepath.Join(k.units, byID)); there && dir != "" && dir != home && exists(dir) ||
		!there && exists(filepath.Join(k.units, byPath)) {
		return byPath // the copy of a home does not take over its unit
	}
	return byID
}

// unitHome is the working directory that a unit file names, "" for none.
func unitHome(file string) (dir string, there bool) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "WorkingDirectory="); ok {
			dir = path.Clean(strings.ReplaceAll(value, "%%", "%"))
		}
	}
	return dir, true
}

// instanceForm is what can be the name of an agent of the template and mean the same in a path and in %i.
var instanceForm = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)

// agentIDForm is what a server gives out as an agent's id; anything else does not become the name of a file.
var agentIDForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)

// agentID is the identity in .agent.properties (protocol §2.2), "" when there is none that can be part of a name.
func agentID(inst *Installation) string {
	for _, name := range []string{".agent.properties", ".agent.properties.bak"} {
		data, err := os.ReadFile(inst.Path(name))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			key, value, _ := strings.Cut(line, "=")
			if value = strings.TrimSpace(value); strings.TrimSpace(key) == "devops.agent.id" && agentIDForm.MatchString(value) {
				return value
			}
		}
	}
	return ""
}

func exists(file string) bool {
	_, err := os.Lstat(file)
	return err == nil
}

// isShipped reports whether a package brought the unit.
func (k *systemdKeeper) isShipped() bool {
	file := k.Name()
	if name, _, ok := strings.Cut(file, "@"); ok {
		file = name + "@.service"
	}
	for _, dir := range k.shipped {
		if exists(filepath.Join(dir, file)) {
			return true
		}
	}
	return false
}

// LingerError: everything is installed, but the agent of a user ends when the user logs out, because the system does not let
// them have a manager without a login.
type LingerError struct {
	User string
	Err  error
}

// Error says what that means.
func (e *LingerError) Error() string {
	return "the agent will end when " + e.User + " logs out: " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *LingerError) Unwrap() error { return e.Err }

// Hint says who can change it.
func (e *LingerError) Hint() string { return "let root run: loginctl enable-linger " + e.User }

// rightsError: the system's units are root's.
type rightsError struct{ what string }

// Error says what was refused.
func (e *rightsError) Error() string { return e.what + ": only root may do that" }

// Hint says how to become root, or how to do without.
func (e *rightsError) Hint() string {
	return "put sudo in front of the command, or install for yourself alone with \"devopsAgent install user\""
}

// Is makes it a permission error.
func (e *rightsError) Is(target error) bool { return target == fs.ErrPermission }

// notInstalledError: there is no unit of this installation.
type notInstalledError struct{ unit string }

// Error names the unit.
func (e *notInstalledError) Error() string { return e.unit + " is not installed" }

// Hint says how to install it.
func (e *notInstalledError) Hint() string {
	return "\"devopsAgent install\" registers the agent with systemd"
}

// ready is the beginning of every method.
func (k *systemdKeeper) ready() error {
	if !k.here() {
		return fmt.Errorf("%s: %w", k.Keeper(), ErrNoKeeper)
	}
	return nil
}

// told makes the manager's errors ours.
func (k *systemdKeeper) told(err error) error {
	if errors.Is(err, systemd.ErrAbsent) {
		return fmt.Errorf("%s: %w: %w", k.Keeper(), ErrNoKeeper, err)
	}
	return err
}

// Install writes the unit, unless a package brought it, and enables it. It is a *LingerError when all is done but that.
func (k *systemdKeeper) Install(ctx context.Context, s Setup) error {
	if err := k.ready(); err != nil {
		return err
	}
	if !k.root && !k.manager.User {
		return &rightsError{"install " + k.Name()}
	}
	version, err := k.manager.Version(ctx)
	if err != nil {
		return k.told(err)
	}
	if err := k.write(s, version); err != nil {
		return err
	}
	if err := k.manager.DaemonReload(ctx); err != nil {
		return k.told(err)
	}
	if err := k.manager.Enable(ctx, k.Name()); err != nil {
		return k.told(err)
	}
	if !k.manager.User || !s.Linger {
		return nil
	}
	return k.linger(ctx)
}

// write brings the unit file, or the drop-in of a package's unit, up to date.
func (k *systemdKeeper) write(s Setup, version int) error {
	if k.units == "" {
		return errors.New("install: the home directory of this account is unknown, and with it where its units belong")
	}
	if k.isShipped() {
		text := systemd.Paced(version)
		if text == "" {
			return removeFile(k.dropIn())
		}
		return k.writeFile(k.dropIn(), text)
	}
	if s.User == "" && !k.manager.User {
		owner, err := ownerOf(k.inst.Home)
		if err != nil {
			return fmt.Errorf("install: %w", err)
		}
		s.User = owner // the original runs as who unpacked it
	}
	text, err := portableUnit(k.inst.Home, s, k.manager.User, version).Text()
	if err != nil {
		return fmt.Errorf("install: %w", err)
	}
	return k.writeFile(filepath.Join(k.units, k.Name()), text)
}

// dropIn adapts a package's unit to a systemd that is newer than the oldest.
func (k *systemdKeeper) dropIn() string {
	return filepath.Join(k.units, k.Name()+".d", "10-devops-agent.conf")
}

// writeFile writes a file that all may read, whole or not at all.
func (k *systemdKeeper) writeFile(file, text string) (err error) {
	if old, err := os.ReadFile(file); err == nil && string(old) == text {
		return nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("install: %w", err)
		}
	}()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return swap.WriteFile(file, []byte(text), 0o644)
}

// linger asks that the user's manager runs without a login, unless it does.
func (k *systemdKeeper) linger(ctx context.Context) error {
	name, err := k.account()
	if err != nil {
		return err
	}
	if on, err := k.manager.Lingers(ctx, name); err == nil && on {
		return nil
	}
	if err := k.manager.EnableLinger(ctx, name); err != nil {
		return &LingerError{User: name, Err: err}
	}
	return nil
}

// Uninstall stops and disables the unit, and removes it unless it is a package's. Lingering stays: other programs of the user may
// need it.
func (k *systemdKeeper) Uninstall(ctx context.Context) error {
	if err := k.ready(); err != nil {
		return err
	}
	name := k.Name()
	status, err := k.manager.Show(ctx, name)
	if err != nil {
		return k.told(err)
	}
	file := filepath.Join(k.units, name)
	if !status.Known() && !exists(file) {
		return nil
	}
	if !k.root && !k.manager.User {
		return &rightsError{"uninstall " + name}
	}
	if !status.Down() {
		if err := k.manager.Stop(ctx, name); err != nil {
			return k.told(err)
		}
	}
	if status.Load != "masked" {
		if err := k.manager.Disable(ctx, name); err != nil {
			return k.told(err)
		}
	}
	drop := k.dropIn()
	if err := removeFile(drop); err != nil {
		return err
	}
	_ = os.Remove(filepath.Dir(drop)) // when nothing of the operator is in it
	if !k.isShipped() {
		if err := removeFile(file); err != nil {
			return err
		}
	}
	_ = k.manager.ResetFailed(ctx, name) // one that never failed is unknown to it
	return k.told(k.manager.DaemonReload(ctx))
}

func removeFile(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("uninstall: %w", err)
	}
	return nil
}

// show asks for the unit, which must be there.
func (k *systemdKeeper) show(ctx context.Context) (systemd.Status, error) {
	if err := k.ready(); err != nil {
		return systemd.Status{}, err
	}
	s, err := k.manager.Show(ctx, k.Name())
	if err != nil {
		return s, k.told(err)
	}
	if !s.Known() {
		return s, &notInstalledError{k.Name()}
	}
	return s, nil
}

// How long Start looks for a process and Restart for the next one, and how often.
const (
	startTime   = 5 * time.Second
	restartTime = time.Minute
	lookEvery   = 50 * time.Millisecond
)

// Start gives systemd the order and waits a moment for the process. It does not wait for the server's first answer.
func (k *systemdKeeper) Start(ctx context.Context) error {
	if _, err := k.show(ctx); err != nil {
		return err
	}
	if err := k.manager.Start(ctx, k.Name(), false); err != nil {
		return k.told(err)
	}
	looking, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	_ = k.until(looking, func(s systemd.Status) bool { return s.MainPID != 0 || s.Active == "failed" || s.Sub == "auto-restart" })
	return ctx.Err()
}

// Stop stops the unit and waits for its end.
func (k *systemdKeeper) Stop(ctx context.Context) error {
	s, err := k.show(ctx)
	var missing *notInstalledError
	if errors.As(err, &missing) || err == nil && s.Down() {
		return nil
	}
	if err != nil {
		return err
	}
	return k.told(k.manager.Stop(ctx, k.Name()))
}

// Restart lets the agent end without its builds: systemd brings the next one, which adopts them. "systemctl restart" would drain
// first. An agent that does not answer is killed, which leaves builds alone as well.
func (k *systemdKeeper) Restart(ctx context.Context) error {
	s, err := k.show(ctx)
	if err != nil {
		return err
	}
	if s.MainPID == 0 {
		return k.Start(ctx)
	}
	if err := control.Call(ctx, k.inst.Home, string(RoleAgent), control.Request{Op: control.OpRestart}, nil); err != nil {
		if err := k.manager.Kill(ctx, k.Name(), "SIGKILL"); err != nil {
			return k.told(err)
		}
	}
	looking, cancel := context.WithTimeoutCause(ctx, restartTime, errors.New("no other agent came up"))
	defer cancel()
	return k.until(looking, func(now systemd.Status) bool { return now.MainPID != 0 && now.MainPID != s.MainPID })
}

// until looks until the unit is as wanted.
func (k *systemdKeeper) until(ctx context.Context, wanted func(systemd.Status) bool) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		s, err := k.manager.Show(ctx, k.Name())
		if err != nil {
			return k.told(err)
		}
		if wanted(s) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s, which is %s (%s): %w", k.Name(), s.Active, s.Sub, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// State asks systemd.
func (k *systemdKeeper) State(ctx context.Context) (State, error) {
	s, err := k.show(ctx)
	var missing *notInstalledError
	if errors.As(err, &missing) {
		return State{Restarts: -1, ExitCode: -1, Detail: s.Load}, nil
	}
	if err != nil {
		return State{}, err
	}
	return stateOfUnit(s), nil
}

// stateOfUnit puts systemd's words into ours.
func stateOfUnit(s systemd.Status) State {
	st := State{
		Installed: true, Enabled: s.File == "enabled" || s.File == "enabled-runtime",
		Running: s.MainPID != 0, PID: s.MainPID, Since: s.Since, Restarts: s.Restarts, ExitCode: -1,
		Detail: s.Active + " (" + s.Sub + ")",
	}
	if s.Active == "failed" && s.Result != "" {
		st.Detail = s.Active + " (" + s.Result + ")"
	}
	if s.Load == "masked" {
		st.Detail = "masked, " + st.Detail
	}
	if s.ExitKind == exited && !st.Running {
		st.ExitCode = s.Exit
		st.StayDown = s.Down() && s.Exit == ExitStayDown
	}
	return st
}

// exited is the kind of end that has an exit code (CLD_EXITED).
const exited = 1
