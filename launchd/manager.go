package launchd

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Domain is where launchd keeps a job.
type Domain string

// System is the domain of daemons; it needs root to change and anyone may ask.
const System Domain = "system"

// GUI is the domain of a user's login at the screen. It is there only while he is logged in.
func GUI(uid int) Domain { return Domain("gui/" + strconv.Itoa(uid)) }

// User is the domain of all sessions of a user, those over ssh too.
func User(uid int) Domain { return Domain("user/" + strconv.Itoa(uid)) }

// The codes of launchctl that this package acts on: those below 107 are errno's, the others launchd's own
// ("launchctl error N" explains them).
const (
	codeNoProcess   = 3   // bootout: not loaded
	codeIO          = 5   // bootstrap: one of several things, see [Error.Hint]
	codeExists      = 17  // bootstrap: loaded
	codeInProgress  = 36  // bootout: it was told to end and has not yet
	codeAlready     = 37  // bootstrap: loaded, or still ending
	codeNoDomain    = 112 //
	codeNoService   = 113 // print, kickstart, …: not loaded
	codeDisabled    = 119 //
	codeUnsupported = 125 // gui/UID: that user is not logged in
)

// Error is what launchctl answered when it did not do what it was asked.
type Error struct {
	Verb   string // "bootstrap", "bootout", …
	Target string // domain, or domain/label
	Code   int    // of launchctl, 0 when it gave none
	Output string // what it printed, one line
	Err    error  // how running it ended
}

// Error names the verb, the target and what launchctl printed.
func (e *Error) Error() string {
	said := e.Output
	if said == "" {
		said = e.Err.Error()
	}
	return fmt.Sprintf("launchctl %s %s: %s", e.Verb, e.Target, said)
}

// Unwrap returns how running launchctl ended.
func (e *Error) Unwrap() error { return e.Err }

// Hint says what to do. launchctl's own texts name an errno and seldom the cause.
func (e *Error) Hint() string {
	switch e.Code {
	case 1, 150:
		return "only root may change " + e.Target + ": use sudo"
	case codeNoProcess, codeNoService:
		return "launchd does not have the job: run devopsAgent install and start; when it is installed, see System Settings, General, Login Items whether it is allowed in the background"
	case codeIO:
		return "launchd says this of a job that is loaded or disabled, of a property list that is not root:wheel 0644 (the user's own for an agent), and of a program that macOS keeps it from reading: log show --last 5m --predicate 'process == \"launchd\"' tells which"
	case codeInProgress:
		return "the agent was told to end and drains its builds; wait, or run devopsAgent stop --now"
	case codeExists, codeAlready:
		return "the job is loaded or still ending: devopsAgent status shows which"
	case 109, 110, 111:
		return "the property list is damaged: run devopsAgent install again"
	case codeNoDomain, codeUnsupported:
		return "there is no such session: an agent of a user needs him to be logged in at the screen; install as root for a machine without one"
	case codeDisabled:
		return "the job is disabled: launchctl enable " + e.Target + ", or allow it in System Settings, General, Login Items"
	case 114, 115:
		return "the account that the job names does not exist: run devopsAgent install again with an existing one"
	case 122:
		return "the property list must belong to root:wheel with mode 0644 (an agent's to its user): run devopsAgent install again"
	case 134:
		return "the job is for another kind of session: run devopsAgent uninstall and install in the session it shall live in"
	case 155, 159:
		return "macOS does not let this program be started: remove the quarantine with xattr -dr com.apple.quarantine on its directory"
	case 161:
		return "macOS does not allow the job in the background: switch it on in System Settings, General, Login Items"
	}
	return ""
}

// is reports whether an error is launchctl's with one of some codes.
func is(err error, codes ...int) bool {
	var refused *Error
	return errors.As(err, &refused) && slices.Contains(codes, refused.Code)
}

// Runner runs a program and returns what it printed on both outputs. An error that has an ExitCode method, as
// [*exec.ExitError] has, is how the program ended.
type Runner func(ctx context.Context, name string, args ...string) ([]byte, error)

// Launchctl is the program, where every macOS has it.
const Launchctl = "/bin/launchctl"

// Exec is the Runner that really runs programs.
func Exec(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	return cmd.CombinedOutput()
}

// How long things may take.
const (
	commandTimeout = 30 * time.Second       // one launchctl; it is known to hang
	settleTimeout  = 10 * time.Second       // a bootstrap that meets a job on its way out
	pollInterval   = 100 * time.Millisecond // bootout returns before the job has ended
	maxUnexplained = 10                     // tries of a bootstrap that says "Input/output error" of a job that is not there
)

// Manager talks to launchctl about the jobs of one domain.
type Manager struct {
	Domain Domain
	Run    Runner // nil: Exec
}

// target is what launchctl calls a job.
func (m Manager) target(label string) string { return string(m.Domain) + "/" + label }

// call runs launchctl. about is what an error names.
func (m Manager) call(ctx context.Context, about string, args ...string) ([]byte, error) {
	run := m.Run
	if run == nil {
		run = Exec
	}
	limited, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	out, err := run(limited, Launchctl, args...)
	if err == nil {
		return out, nil
	}
	if cause := limited.Err(); cause != nil {
		err = cause // rather than "signal: killed"
		out = nil
	}
	refused := &Error{Verb: args[0], Target: about, Output: strings.Join(strings.Fields(string(out)), " "), Err: err}
	refused.Code = codeOf(out, err)
	return out, refused
}

// said is the code in "Bootstrap failed: 5: Input/output error".
var said = regexp.MustCompile(`(?m)\bfailed: (\d{1,4}): `)

// codeOf finds launchctl's code in its text, and else in its exit code: the same number where both are there.
func codeOf(out []byte, err error) int {
	if match := said.FindSubmatch(out); match != nil {
		return number(string(match[1]), 0)
	}
	var ended interface{ ExitCode() int }
	if errors.As(err, &ended) {
		return max(0, ended.ExitCode())
	}
	return 0
}

// Exists reports whether the domain is there: gui/UID is not while nobody is logged in at the screen.
func (m Manager) Exists(ctx context.Context) (bool, error) {
	_, err := m.call(ctx, string(m.Domain), "print", string(m.Domain))
	if is(err, codeNoDomain, codeNoService, codeUnsupported) {
		return false, nil
	}
	return err == nil, err
}

// Print asks for a job. One that is not loaded is no error.
func (m Manager) Print(ctx context.Context, label string) (s Status, loaded bool, err error) {
	out, err := m.call(ctx, m.target(label), "print", m.target(label))
	if is(err, codeNoProcess, codeNoDomain, codeNoService, codeUnsupported) {
		return Status{Runs: -1, ExitCode: -1}, false, nil // without the domain there is no job
	}
	if err != nil {
		return Status{Runs: -1, ExitCode: -1}, false, err
	}
	return ParsePrint(out), true, nil
}

// Disabled reports whether a job is switched off for good.
func (m Manager) Disabled(ctx context.Context, label string) (bool, error) {
	out, err := m.call(ctx, string(m.Domain), "print-disabled", string(m.Domain))
	if is(err, codeNoDomain, codeUnsupported) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return ParseDisabled(out, label), nil
}

// Enable takes back Disable, and what a person switched off in System Settings. launchd remembers both beyond the job.
func (m Manager) Enable(ctx context.Context, label string) error {
	_, err := m.call(ctx, m.target(label), "enable", m.target(label))
	return err
}

// Disable keeps a job from being loaded until Enable, over restarts of the machine too. It does not end a running one.
func (m Manager) Disable(ctx context.Context, label string) error {
	_, err := m.call(ctx, m.target(label), "disable", m.target(label))
	return err
}

// Bootstrap loads a job from its property list; with RunAtLoad it starts. One that is loaded is left as it is. One that is
// still ending is waited for, up to ten seconds.
func (m Manager) Bootstrap(ctx context.Context, label, file string) error {
	giveUp := time.Now().Add(settleTimeout)
	for unexplained := 0; ; {
		_, err := m.call(ctx, m.target(label), "bootstrap", string(m.Domain), file)
		if !is(err, codeIO, codeExists, codeInProgress, codeAlready) {
			return err
		}
		status, loaded, perr := m.Print(ctx, label)
		if perr != nil {
			return errors.Join(err, perr)
		}
		if loaded && !ending(status) {
			if status.Path != "" && filepath.Clean(status.Path) != filepath.Clean(file) {
				return fmt.Errorf("job %s is loaded from %s, not from %s: %w", m.target(label), status.Path, file, err)
			}
			return nil
		}
		if is(err, codeIO) && !loaded { // a job that has just gone, or one that launchd does not want
			if disabled, derr := m.Disabled(ctx, label); derr == nil && disabled {
				return &Error{Verb: "bootstrap", Target: m.target(label), Code: codeDisabled, Output: "the job is disabled", Err: err}
			}
			if unexplained++; unexplained == maxUnexplained {
				return err
			}
		}
		if time.Now().After(giveUp) || !m.pause(ctx) {
			return err
		}
	}
}

// ending reports whether launchd has told a job to end. The words are those of macOS 11 to 26.
func ending(s Status) bool {
	return s.State == "SIGTERMed" || s.State == "SIGKILLed" || s.State == "languishing" || s.State == "exited"
}

// pause waits for the next try; false when there is none.
func (m Manager) pause(ctx context.Context) bool {
	timer := time.NewTimer(pollInterval)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// Bootout ends a job and forgets it, and returns when it is gone: launchctl itself returns while the process still runs.
// ctx bounds the waiting. A job that is not loaded is no error.
func (m Manager) Bootout(ctx context.Context, label string) error {
	_, err := m.call(ctx, m.target(label), "bootout", m.target(label))
	if err != nil && !is(err, codeNoProcess, codeNoDomain, codeNoService, codeInProgress, codeUnsupported) {
		// what it says about a job that goes away meanwhile differs from release to release
		if _, loaded, perr := m.Print(ctx, label); perr != nil || loaded {
			return err
		}
	}
	for {
		_, loaded, err := m.Print(ctx, label)
		if err != nil {
			return err
		}
		if !loaded {
			return nil
		}
		if !m.pause(ctx) {
			return fmt.Errorf("wait for %s to end: %w", m.target(label), ctx.Err())
		}
	}
}

// Kickstart starts a loaded job that has no process, at once unless launchd throttles it.
func (m Manager) Kickstart(ctx context.Context, label string) error {
	_, err := m.call(ctx, m.target(label), "kickstart", m.target(label))
	return err
}

// Kill sends a signal ("SIGKILL", "SIGHUP") to the process of a job. One without a process is no error.
func (m Manager) Kill(ctx context.Context, signal, label string) error {
	_, err := m.call(ctx, m.target(label), "kill", signal, m.target(label))
	if is(err, codeNoProcess, codeNoService) {
		return nil
	}
	return err
}
