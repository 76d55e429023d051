package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Manager is a conversation with one service manager: that of the system, or that of the user who asks. Errors are a
// *CommandError where a program answered, and ErrAbsent where there is no such manager.
type Manager struct {
	User bool
	// Run starts systemctl or loginctl and returns its standard output. nil runs the real ones.
	Run func(ctx context.Context, name string, args ...string) ([]byte, error)
}

// ErrAbsent: this machine was not started by systemd, or this user has no manager.
var ErrAbsent = errors.New("no systemd here")

// CommandError is what a program said that ended with another code than 0.
type CommandError struct {
	Command string // with its arguments
	Code    int    // -1 for a signal
	Stderr  string // the beginning
	user    bool
}

// Error is the command and what it said.
func (e *CommandError) Error() string {
	said := strings.TrimSpace(e.Stderr)
	if said == "" {
		said = "exit status " + strconv.Itoa(e.Code)
	}
	return e.Command + ": " + said
}

// Is makes a manager that cannot be reached an ErrAbsent.
func (e *CommandError) Is(target error) bool {
	return target == ErrAbsent && (e.says("System has not been booted with systemd") || e.says("Failed to connect to bus") ||
		e.says("Failed to connect to user scope bus") || e.says("Failed to connect to system scope bus"))
}

// Hint says what to do about the usual ones.
func (e *CommandError) Hint() string {
	switch {
	case e.says("System has not been booted with systemd"):
		return "there is no systemd on this machine; \"devopsAgent install direct\" does without"
	case e.user && (e.says("Failed to connect to bus") || e.says("scope bus")):
		return "this user's service manager does not run: log in as the user (not by su or sudo), or let root run \"loginctl enable-linger\" with the user's name"
	case e.says("Access denied"), e.says("Permission denied"), e.says("Interactive authentication required"), e.says("authentication"):
		return "only root may do that: put sudo in front of the command"
	case e.says("is masked"):
		return "somebody forbade this unit to start: \"systemctl unmask\" takes that back"
	case e.says("Read-only file system"):
		return "the file system of the unit is read-only; mount it for writing"
	case e.says("No space left on device"):
		return "the disk is full; make room"
	case e.says("not found"), e.says("No such file"), e.says("not loaded"), e.says("does not exist"):
		return "the agent is not installed as a service: \"devopsAgent install\" does that"
	}
	return ""
}

func (e *CommandError) says(text string) bool { return strings.Contains(e.Stderr, text) }

// maxSaid bounds what is kept of a program's words.
const maxSaid = 64 << 10

// run starts a program in English, so that its words can be read, and in UTC, so that its times can.
func (m Manager) run(ctx context.Context, name string, args ...string) ([]byte, error) {
	if m.Run != nil {
		return m.Run(ctx, name, args...)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(environment(os.Environ(), os.Getuid()), "LC_ALL=C", "TZ=UTC", "SYSTEMD_COLORS=0", "SYSTEMD_PAGER=")
	cmd.WaitDelay = time.Second
	stdout, stderr := &head{}, &head{}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%s: %w", command(name, args), context.Cause(ctx))
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return stdout.text, &CommandError{Command: command(name, args), Code: exit.ExitCode(), Stderr: string(stderr.text), user: m.User}
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("%w: %w", ErrAbsent, err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", command(name, args), err)
	}
	return stdout.text, nil
}

func command(name string, args []string) string { return name + " " + strings.Join(args, " ") }

// environment adds what "systemctl --user" needs where a login did not set it, as for cron and su: the directory of the
// user's bus.
func environment(env []string, uid int) []string {
	const name = "XDG_RUNTIME_DIR="
	for _, e := range env {
		if strings.HasPrefix(e, name) && len(e) > len(name) {
			return env
		}
	}
	return append(env, name+RuntimeDirectory(uid))
}

// RuntimeDirectory is where a user's manager has its sockets when nothing else is said.
func RuntimeDirectory(uid int) string { return "/run/user/" + strconv.Itoa(uid) }

// Here reports whether systemd started this machine, and, for the manager of a user, whether that runs.
func Here(user bool) bool {
	if info, err := os.Lstat("/run/systemd/system"); err != nil || !info.IsDir() {
		return false
	}
	if !user {
		return true
	}
	dirs := []string{RuntimeDirectory(os.Getuid())}
	if own := os.Getenv("XDG_RUNTIME_DIR"); own != "" {
		dirs = append(dirs, own)
	}
	for _, dir := range dirs {
		if _, err := os.Lstat(filepath.Join(dir, "systemd", "private")); err == nil {
			return true
		}
	}
	return false
}

// head keeps the beginning of what is written.
type head struct{ text []byte }

// Write takes all and keeps what there is room for.
func (h *head) Write(p []byte) (int, error) {
	h.text = append(h.text, p[:min(len(p), maxSaid-len(h.text))]...)
	return len(p), nil
}

// ctl asks systemctl. It never asks a person for a password.
func (m Manager) ctl(ctx context.Context, args ...string) ([]byte, error) {
	all := []string{"--no-ask-password", "--no-pager"}
	if m.User {
		all = append(all, "--user")
	}
	return m.run(ctx, "systemctl", append(all, args...)...)
}

func (m Manager) do(ctx context.Context, args ...string) error {
	_, err := m.ctl(ctx, args...)
	return err
}

// Version is the number of the systemd that is here, as 252.
func (m Manager) Version(ctx context.Context) (int, error) {
	out, err := m.run(ctx, "systemctl", "--version")
	if err != nil {
		return 0, err
	}
	return parseVersion(string(out))
}

// parseVersion reads the first line of "systemctl --version": systemd 252 (252.38-1~deb12u1).
func parseVersion(text string) (int, error) {
	words := strings.Fields(text)
	if len(words) >= 2 && words[0] == "systemd" {
		digits := words[1]
		if end := strings.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
			digits = digits[:end]
		}
		if v, err := strconv.Atoi(digits); err == nil && v > 0 {
			return v, nil
		}
	}
	return 0, fmt.Errorf("systemctl --version: %q is no version", strings.SplitN(text, "\n", 2)[0])
}

// DaemonReload makes systemd read all units again.
func (m Manager) DaemonReload(ctx context.Context) error { return m.do(ctx, "daemon-reload") }

// Enable lets a unit start with the machine, or with the user's manager.
func (m Manager) Enable(ctx context.Context, unit string) error {
	return m.do(ctx, "enable", "--", unit)
}

// Disable takes Enable back.
func (m Manager) Disable(ctx context.Context, unit string) error {
	return m.do(ctx, "disable", "--", unit)
}

// Start starts a unit. Without waiting it returns when systemd has the order.
func (m Manager) Start(ctx context.Context, unit string, wait bool) error {
	return m.job(ctx, "start", unit, wait)
}

// Stop stops a unit and returns when it has ended. When ctx ends, the waiting does, and the stop goes on.
func (m Manager) Stop(ctx context.Context, unit string) error { return m.job(ctx, "stop", unit, true) }

// Reload sends a unit what makes it read its configuration again.
func (m Manager) Reload(ctx context.Context, unit string) error {
	return m.job(ctx, "reload", unit, true)
}

func (m Manager) job(ctx context.Context, verb, unit string, wait bool) error {
	if !wait {
		return m.do(ctx, verb, "--no-block", "--", unit)
	}
	return m.do(ctx, verb, "--", unit)
}

// Kill sends a signal, such as "SIGKILL", to the main process of a unit.
func (m Manager) Kill(ctx context.Context, unit, signal string) error {
	return m.do(ctx, "kill", "--kill-who=main", "--signal="+signal, "--", unit)
}

// ResetFailed forgets that a unit failed and how often it was restarted.
func (m Manager) ResetFailed(ctx context.Context, unit string) error {
	return m.do(ctx, "reset-failed", "--", unit)
}

// Show asks for a unit's state. A unit that systemd does not know is a Status with Load "not-found", and no error.
func (m Manager) Show(ctx context.Context, unit string) (Status, error) {
	out, err := m.ctl(ctx, "show", "--property="+strings.Join(properties(), ","), "--", unit)
	if err != nil {
		return Status{}, err
	}
	return parseShow(string(out))
}

// EnableLinger lets a user's manager run without a login, from the start of the machine on.
func (m Manager) EnableLinger(ctx context.Context, user string) error {
	_, err := m.run(ctx, "loginctl", "--no-ask-password", "enable-linger", "--", user)
	return err
}

// Lingers reports whether a user's manager runs without a login.
func (m Manager) Lingers(ctx context.Context, user string) (bool, error) {
	out, err := m.run(ctx, "loginctl", "show-user", "--property=Linger", "--", user)
	var said *CommandError
	if errors.As(err, &said) && said.says("not logged in") {
		return false, nil // nobody is there and nothing keeps their manager
	}
	if err != nil {
		return false, err
	}
	return strings.TrimSpace(string(out)) == "Linger=yes", nil
}
