package service

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/service/control"
	"github.com/devops-agent/devops-agent/service/proc"
)

// direct is devopsDaemon as keeper: nobody starts it with the machine, but for a line in the user's crontab.
type direct struct {
	inst    *Installation
	goos    string
	vendor  string // where a package has the daemon
	crontab func(ctx context.Context, stdin string, args ...string) (stdout string, err error)
	umask   string // of the daemon, and so of builds
}

// NewDirect is devopsDaemon as keeper of an installation, where no service manager is. It needs no privileges.
func NewDirect(inst *Installation) Supervisor {
	return &direct{inst: inst, goos: runtime.GOOS, vendor: Packaged(runtime.GOOS).Vendor, crontab: crontab, umask: "022"}
}

// Keeper says which one it is.
func (d *direct) Keeper() Keeper { return KeeperDaemon }

// Name is empty: the daemon has none.
func (d *direct) Name() string { return "" }

// ready is the beginning of every method.
func (d *direct) ready() error {
	if d.goos == "windows" { // there devopsDaemon is the service
		return fmt.Errorf("%s: %w", KeeperDaemon, ErrNoKeeper)
	}
	return nil
}

// Install records the keeper and, when it is asked for, lets cron start the daemon with the machine.
func (d *direct) Install(ctx context.Context, s Setup) error {
	if err := d.ready(); err != nil {
		return err
	}
	before, err := readKeeper(d.inst)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		before = keeperRecord{} // it is written anew
	}
	if s.Reboot {
		line, err := d.cronLine()
		if err == nil {
			err = d.editCrontab(ctx, line)
		}
		if err != nil {
			return fmt.Errorf("install: %w", err)
		}
	}
	return writeKeeper(d.inst, keeperRecord{Keeper: KeeperDaemon, User: s.User, Reboot: s.Reboot || before.Reboot,
		At: time.Now().UTC().Truncate(time.Second)}, s)
}

// Uninstall stops daemon and agent, and takes the crontab's line back.
func (d *direct) Uninstall(ctx context.Context) error {
	if err := d.ready(); err != nil {
		return err
	}
	if err := d.Stop(ctx); err != nil {
		return err
	}
	if r, err := readKeeper(d.inst); err == nil && r.Reboot {
		if err := d.editCrontab(ctx, ""); err != nil {
			return fmt.Errorf("uninstall: %w", err)
		}
	}
	return errors.Join(d.inst.forgetRemoval(), removeKeeper(d.inst))
}

// record says how the daemon was registered: by us, or by the original, which leaves its word alone.
func (d *direct) record() (keeperRecord, error) {
	r, err := readKeeper(d.inst)
	if !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	word, werr := os.ReadFile(d.inst.Path(typeFile))
	if k, ok := keeperOfWord(d.goos, strings.TrimSpace(string(word))); werr == nil && ok && k == KeeperDaemon {
		return keeperRecord{Keeper: KeeperDaemon}, nil
	}
	return r, err
}

// program finds what becomes the daemon: that of home, else the package's. Where an upgrader of ours lies beside it, that comes
// first, so that a bad devopsDaemon, which nobody keeps, is not the last thing that starts.
func (d *direct) program() (path string, args []string, err error) {
	path = d.inst.Path("devopsDaemon")
	if _, err := os.Stat(path); err == nil {
		if upgrader := d.inst.Path("upgrader"); ours(upgrader) {
			return upgrader, []string{"keep", "--home", d.inst.Home}, nil
		}
		return path, nil, nil
	}
	vendor := filepath.Join(d.vendor, "devopsDaemon")
	if _, verr := os.Stat(vendor); verr == nil {
		if upgrader := filepath.Join(d.vendor, "upgrader"); ours(upgrader) {
			return upgrader, []string{"keep", "--home", d.inst.Home, "--vendor", d.vendor}, nil
		}
		return vendor, []string{"--home", d.inst.Home}, nil
	}
	return "", nil, fmt.Errorf("find devopsDaemon: %w", &fs.PathError{Op: "stat", Path: path, Err: fs.ErrNotExist})
}

// ours reports whether a file is a program of this project. The original has an upgrader, too, which would not know what it is to
// do.
func ours(path string) bool {
	own, ok := debug.ReadBuildInfo()
	info, err := buildinfo.ReadFile(path)
	return err == nil && ok && info.Main.Path == own.Main.Path
}

// notKeptError: the daemon was not installed for this home.
type notKeptError struct{ home string }

// Error names the home.
func (e *notKeptError) Error() string { return "devopsDaemon is not installed in " + e.home }

// Hint says how to.
func (e *notKeptError) Hint() string { return "\"devopsAgent install direct\" does that" }

const (
	daemonStartLimit = 30 * time.Second // for the daemon to take its role
	settleLimit      = 2 * time.Second  // for a daemon to say what it has an agent for
	endPoll          = 20 * time.Millisecond
)

// Start starts the daemon in a session of its own and returns when it has its role.
func (d *direct) Start(ctx context.Context) error {
	if err := d.ready(); err != nil {
		return err
	}
	if runs, err := d.runs(ctx); runs || err != nil {
		return err
	}
	if _, err := d.record(); err != nil {
		return &notKeptError{d.inst.Home}
	}
	path, args, err := d.program()
	if err != nil {
		return err
	}
	if err := d.inst.forgetRemoval(); err != nil { // who starts it by hand means it
		return err
	}
	// The shell sets the umask: ours is private, and builds would inherit it.
	cmd := exec.Command("/bin/sh", append([]string{"-c", `umask ` + d.umask + ` && exec "$0" "$@"`, path}, args...)...)
	cmd.Dir = d.inst.Home
	var words bytes.Buffer
	said, theirs, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start devopsDaemon: %w", err)
	}
	cmd.Stderr = theirs
	alone(cmd)
	account, err := d.account()
	if err == nil {
		become(cmd, account)
		err = cmd.Start()
	}
	err = errors.Join(err, theirs.Close())
	if err != nil {
		return errors.Join(fmt.Errorf("start devopsDaemon: %w", err), said.Close())
	}
	read := make(chan error, 1)
	go func() {
		_, err := words.ReadFrom(&limited{said, 4096})
		read <- err
	}()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	err = d.awaitRole(ctx, cmd.Process.Pid, ended)
	_ = said.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	<-read
	_ = said.Close()
	var exit *daemonEndError
	if errors.As(err, &exit) {
		exit.words = lastLine(words.String())
	}
	return err
}

// runs reports whether there is a daemon that is here to stay: one whose agent has just been removed is about to end.
func (d *direct) runs(ctx context.Context) (bool, error) {
	if !exists(d.inst.Path("runtime")) {
		return false, nil
	}
	tick := time.NewTicker(endPoll)
	defer tick.Stop()
	for deadline := time.Now().Add(settleLimit); ; {
		if free, err := d.inst.free(RoleDaemon); err != nil || free {
			return false, err
		}
		var s control.DaemonStatus
		err := control.Call(ctx, d.inst.Home, string(RoleDaemon), control.Request{Op: control.OpStatus}, &s)
		if err == nil && (s.Child != 0 || s.Adopted || s.NextStart != nil) || time.Now().After(deadline) {
			return true, nil // by then it is one of the original, or waits for an upgrader
		}
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("look for devopsDaemon: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// daemonEndError: the daemon ended at once.
type daemonEndError struct {
	how   error
	words string
}

// Error says how, and what it said itself.
func (e *daemonEndError) Error() string {
	text := "devopsDaemon ended at once"
	if e.how != nil {
		text += ": " + e.how.Error()
	}
	if e.words != "" {
		text += ": " + e.words
	}
	return text
}

// Hint says where there may be more.
func (e *daemonEndError) Hint() string { return "logs/devopsDaemon.log may say more" }

// awaitRole waits until a daemon has written its pid file, which it does once it has the role; looking at the lock itself
// could send an original daemon away.
func (d *direct) awaitRole(ctx context.Context, pid int, ended <-chan error) error {
	deadline := time.NewTimer(daemonStartLimit)
	defer deadline.Stop()
	tick := time.NewTicker(endPoll)
	defer tick.Stop()
	for {
		if text, err := os.ReadFile(d.inst.Path("runtime", "daemon.pid")); err == nil && string(text) == strconv.Itoa(pid) {
			return nil
		}
		select {
		case err := <-ended:
			if free, ferr := d.inst.free(RoleDaemon); ferr == nil && !free {
				return nil // another one was faster
			}
			return &daemonEndError{how: err}
		case <-ctx.Done():
			return fmt.Errorf("wait for devopsDaemon: %w", context.Cause(ctx))
		case <-deadline.C:
			return fmt.Errorf("devopsDaemon (process %d) has not taken its role within %v", pid, daemonStartLimit)
		case <-tick.C:
		}
	}
}

// Stop has the daemon stop its agent, and returns when both have ended. A daemon of the original ends by SIGTERM and leaves
// its agent, which is told next.
func (d *direct) Stop(ctx context.Context) error {
	if err := d.ready(); err != nil {
		return err
	}
	for _, role := range []Role{RoleDaemon, RoleAgent} {
		if err := d.stop(ctx, role); err != nil {
			return fmt.Errorf("stop %s: %w", role, err)
		}
	}
	return nil
}

func (d *direct) stop(ctx context.Context, role Role) error {
	if _, err := os.Stat(d.inst.Path("runtime", string(role)+".lock")); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if free, err := d.inst.free(role); err != nil || free {
		return err
	}
	holder, known := d.inst.Holder(role)
	err := control.Call(ctx, d.inst.Home, string(role), control.Request{Op: control.OpStop}, nil)
	if errors.Is(err, control.ErrNobody) {
		if !known {
			return &strangerError{role: role, home: d.inst.Home}
		}
		err = holder.Terminate()
	}
	if err != nil {
		return err
	}
	if known {
		if err := proc.WaitFor(ctx, holder.PID, holder.Started); err != nil {
			return fmt.Errorf("wait for the end of process %d: %w", holder.PID, err)
		}
	}
	tick := time.NewTicker(endPoll)
	defer tick.Stop()
	for {
		if free, err := d.inst.free(role); err != nil || free {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for its end: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// strangerError: the lock is held by a process that cannot be told to end.
type strangerError struct {
	role Role
	home string
}

// Error names the lock.
func (e *strangerError) Error() string {
	return fmt.Sprintf("a process that is not our %s holds runtime/%s.lock in %s", e.role, e.role, e.home)
}

// Hint says how to find it.
func (e *strangerError) Hint() string {
	return "\"lsof\" or \"fuser\" on that file names it; nothing is killed that is not surely an agent"
}

// Restart has the daemon replace the agent. Builds go on.
func (d *direct) Restart(ctx context.Context) error {
	if err := d.ready(); err != nil {
		return err
	}
	if free, err := d.inst.free(RoleDaemon); err != nil || free {
		return d.Start(ctx)
	}
	err := control.Call(ctx, d.inst.Home, string(RoleDaemon), control.Request{Op: control.OpRestart}, nil)
	if !errors.Is(err, control.ErrNobody) {
		return err
	}
	holder, known := d.inst.Holder(RoleAgent) // under a daemon of the original, which starts the next within five seconds
	if !known {
		return nil
	}
	return holder.Kill()
}

// State asks the daemon. That of the original cannot be asked: then the locks tell.
func (d *direct) State(ctx context.Context) (State, error) {
	s := State{ExitCode: -1, Restarts: -1, Detail: "stopped"}
	if err := d.ready(); err != nil {
		return s, err
	}
	record, err := d.record()
	switch {
	case err == nil:
		s.Installed = record.Keeper == KeeperDaemon
	case !errors.Is(err, fs.ErrNotExist):
		return s, err
	}
	if s.Installed && record.Reboot {
		text, err := d.readCrontab(ctx)
		if err != nil {
			return s, err
		}
		_, s.Enabled = d.without(text)
	}
	var daemon control.DaemonStatus
	switch err := control.Call(ctx, d.inst.Home, string(RoleDaemon), control.Request{Op: control.OpStatus}, &daemon); {
	case err == nil:
		s.PID, s.Running, s.Restarts = daemon.Child, daemon.Child != 0, daemon.Restarts
		if daemon.Restarts == 0 && !daemon.Adopted {
			s.Since = daemon.Since
		}
		s.Detail = describeDaemon(daemon)
		if !s.Running && d.inst.Removed() { // about to end, too
			s.stayDown()
		}
		return s, nil
	case !errors.Is(err, control.ErrNobody):
		return s, err
	}
	if holder, ok := d.inst.Holder(RoleDaemon); ok {
		s.Detail = fmt.Sprintf("devopsDaemon, process %d, says nothing about itself", holder.PID)
		if agent, ok := d.inst.Holder(RoleAgent); ok {
			s.PID, s.Running = agent.PID, true
			return s, nil
		}
	}
	if d.inst.Removed() {
		s.stayDown()
	}
	return s, nil
}

func (s *State) stayDown() {
	s.StayDown, s.ExitCode, s.Detail = true, ExitStayDown, "stays down: the agent was removed"
}

func describeDaemon(s control.DaemonStatus) string {
	switch {
	case s.NextStart != nil:
		return fmt.Sprintf("waits until %s to start the agent again: %s", s.NextStart.Local().Format(time.TimeOnly), s.LastExit)
	case s.Child == 0 && s.Adopted:
		return "looks after an agent that somebody else started"
	case s.Child == 0:
		return "starts the agent"
	case s.Adopted:
		return fmt.Sprintf("running; process %d was started by somebody else", s.Child)
	case !s.Ready:
		return "running, not ready yet"
	}
	return "running"
}

// marks are the comments by which we know our line: by the agent's id, as the original marks its line (protocol §5.7), and
// by the directory, for a time without one.
func (d *direct) marks() []string {
	sum := sha256.Sum256([]byte(d.inst.Home))
	marks := []string{"devops-agent-" + hex.EncodeToString(sum[:4])}
	if id := agentID(d.inst); id != "" {
		marks = append([]string{"devops_agent_" + id}, marks...)
	}
	return marks
}

// cronLine starts what becomes the daemon in the background. In a crontab a per cent sign is the end of the command, unless escaped.
func (d *direct) cronLine() (string, error) {
	path, args, err := d.program()
	if err != nil {
		return "", err
	}
	words := append([]string{path}, args...)
	for i, word := range words {
		if strings.ContainsAny(word, "\n\r\x00") {
			return "", fmt.Errorf("%q cannot stand in a crontab", word)
		}
		words[i] = "'" + strings.ReplaceAll(strings.ReplaceAll(word, "'", `'\''`), "%", `\%`) + "'"
	}
	return "@reboot " + strings.Join(words, " ") + " </dev/null >/dev/null 2>&1 & # " + d.marks()[0], nil
}

// without returns a crontab without our lines, and whether there were any. Every other line stays as it is.
func (d *direct) without(text string) (rest string, found bool) {
	var b strings.Builder
	for line := range strings.Lines(text) {
		_, comment, ok := cutLast(strings.TrimRight(line, "\r\n"), " # ")
		ours := false
		for _, mark := range d.marks() {
			ours = ours || ok && comment == mark && strings.HasPrefix(line, "@reboot ")
		}
		if ours {
			found = true
			continue
		}
		b.WriteString(line)
	}
	return b.String(), found
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// account is the one that the daemon runs as when root commands it: the owner of the home. A home that is not root's holds
// programs that root must not run, and its owner must be able to stop what runs there. Nil means this process's own account.
func (d *direct) account() (*proc.Account, error) {
	uid, gid, ok := ownerIDs(d.inst.Home)
	if !ok || uid == 0 || os.Geteuid() != 0 {
		return nil, nil
	}
	owner, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if err != nil { // an account that nobody knows by name has no groups and no home
		return &proc.Account{UID: uid, GID: gid}, nil
	}
	return proc.LookupAccount(owner.Username)
}

// cron calls crontab(1) for the account that the daemon runs as.
func (d *direct) cron(ctx context.Context, stdin string, args ...string) (string, error) {
	account, err := d.account()
	if err != nil {
		return "", err
	}
	if account != nil {
		if account.Name == "" {
			return "", fmt.Errorf("account %d has no name, and so no crontab", account.UID)
		}
		args = append([]string{"-u", account.Name}, args...)
	}
	return d.crontab(ctx, stdin, args...)
}

// editCrontab puts line in the place of our lines; "" takes them out.
func (d *direct) editCrontab(ctx context.Context, line string) error {
	before, err := d.readCrontab(ctx)
	if err != nil {
		return err
	}
	after, found := d.without(before)
	if line == "" && !found {
		return nil
	}
	if line != "" {
		if after != "" && !strings.HasSuffix(after, "\n") {
			after += "\n"
		}
		after += line + "\n"
	}
	if after == before {
		return nil
	}
	if _, err := d.cron(ctx, after, "-"); err != nil {
		return fmt.Errorf("write the crontab: %w", err)
	}
	return nil
}

// readCrontab returns the user's crontab. What cannot be read is not taken for empty: it would be overwritten.
func (d *direct) readCrontab(ctx context.Context) (string, error) {
	text, err := d.cron(ctx, "", "-l")
	var said *exec.ExitError
	if errors.As(err, &said) {
		words := strings.ToLower(string(said.Stderr))
		if strings.Contains(words, "no crontab") || strings.Contains(words, "no such file") { // cron, busybox
			return "", nil
		}
		err = fmt.Errorf("%w: %s", err, lastLine(string(said.Stderr)))
	}
	if errors.Is(err, exec.ErrNotFound) {
		return "", &noCronError{err}
	}
	if err != nil {
		return "", fmt.Errorf("read the crontab: %w", err)
	}
	return text, nil
}

// noCronError: this machine has no cron.
type noCronError struct{ cause error }

// Error is the cause.
func (e *noCronError) Error() string { return e.cause.Error() }

// Unwrap returns the cause.
func (e *noCronError) Unwrap() error { return e.cause }

// Hint says how to do without.
func (e *noCronError) Hint() string {
	return "without cron nothing starts the agent with the machine; install it, or install the agent as root"
}

// crontab runs crontab(1), in the language that readCrontab understands.
func crontab(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "crontab", args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.Output()
	return string(out), err
}

// limited reads at most so much and then drops the rest.
type limited struct {
	from *os.File
	left int
}

// Read is that of io.Reader.
func (l *limited) Read(p []byte) (int, error) {
	n, err := l.from.Read(p)
	keep := min(n, l.left)
	l.left -= keep
	return keep, err
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i := len(lines) - 1; i > 0; i-- {
		if line := strings.TrimSpace(lines[i]); line != "" && !strings.HasPrefix(line, "hint: ") {
			return line
		}
	}
	return strings.TrimSpace(lines[0])
}
