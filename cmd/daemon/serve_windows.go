package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc"

	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/windows"
)

// serve runs the daemon: as a service, when our registration says so by its first word ("service", "session"), or the service
// manager started us without one, as that of the original does (protocol §3.5.2); in a console else, whose end, or CTRL_BREAK,
// stops the agent, which drains.
func serve(ctx context.Context, o service.DaemonOptions, line commandLine) error {
	told := line.word == "service" || line.word == "session"
	if !told {
		is, err := svc.IsWindowsService()
		if err != nil || !is {
			return inConsole(ctx, o)
		}
	}
	name := service.NewSCM(o.Installation).Name()
	f := &frame{options: o, name: name, ours: told, session: line.word == "session" || !told && service.InSession(o.Installation),
		started: o.Started, events: quietEvents{}, user: windows.ConsoleUser}
	if log, err := windows.OpenEvents(name); err == nil {
		defer func() { _ = log.Close() }()
		f.events = log
	}
	if err := svc.Run(name, f); err != nil {
		return errors.Join(fmt.Errorf("run as service %s: %w", name, err), f.err)
	}
	return f.err
}

// inConsole runs the daemon for a person. CTRL_C, CTRL_BREAK and the end of the console stop the agent, which drains; a second
// one stops its builds.
func inConsole(ctx context.Context, o service.DaemonOptions) error {
	d := service.NewDaemon(o)
	told := make(chan os.Signal, 4)
	signal.Notify(told, os.Interrupt, syscall.SIGTERM)
	ended, passed := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(passed)
		for {
			select {
			case <-told:
				d.Stop(false)
			case <-ended:
				return
			}
		}
	}()
	err := d.Run(context.WithoutCancel(ctx)) // ctx ends with the first signal: every one of them is passed on above
	signal.Stop(told)
	close(ended)
	<-passed
	return err
}

// How the service manager is kept patient.
const (
	progressEvery = 2 * time.Second  // a new checkpoint while stopping
	progressHint  = 15 * time.Second // and for how long that is good
	roleRetry     = 5 * time.Second  // while another daemon has the home
)

const accepted = svc.AcceptStop | svc.AcceptShutdown | svc.AcceptPreShutdown | svc.AcceptSessionChange | svc.AcceptParamChange

// Events of a session change after which somebody may be there (WinUser.h).
const (
	consoleConnect  = 1
	sessionLogon    = 5
	sessionUnlocked = 8
)

// exitFailed is the service-specific exit code of a daemon that ended with an error: the recovery actions apply.
const exitFailed = service.ExitFailed

// frame is the daemon as a service.
type frame struct {
	options service.DaemonOptions
	name    string
	ours    bool // registered by our own install, which closed home
	session bool // the agent runs as whoever is logged on
	waiting bool // for somebody to log on
	started func(*os.Process) error
	events  eventLog
	job     *job
	user    func() (*windows.User, error) // who is logged on at the console
	err     error
}

// Execute is the life of the service. The service manager sees it as failed, and restarts it, when the exit code is not 0:
// registration asks for that (FailureActionsOnNonCrashFailures). An agent that was removed, and a refusal, which would only
// come again, therefore end with 0.
func (f *frame) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (bool, uint32) {
	status <- svc.Status{State: svc.StartPending, WaitHint: uint32(progressHint.Milliseconds())}
	log := f.options.Log
	if f.options.Installation.Removed() && startedByItself() {
		log.Info("Service stays down: the agent was removed")
		f.events.Info(windows.EventRemoved, "The agent was removed in BK-CI, so the service stays down.")
		return false, 0
	}
	if err := f.safe(); err != nil {
		f.err = err
		return false, 0
	}
	mode := "service"
	if f.session {
		mode = "session"
	}
	f.noted(windows.NoteStarted(f.name, mode))
	job, err := newJob()
	if err != nil { // the agent is kept all the same; only what a killed one leaves cannot be ended
		log.Warn("Agent runs without a job object", "err", err)
	}
	f.job = job
	defer f.job.close()
	f.options.Log = slog.New(&teller{Handler: log.Handler(), events: f.events, memory: &memory{written: map[string]time.Time{}}})
	f.options.Prepare, f.options.Started = f.prepare, f.take
	if f.session {
		f.options.Start = f.inSession
	}
	d := service.NewDaemon(f.options)
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { ended <- keepTrying(ctx, d, f.options.Log) }()
	now := svc.Status{State: svc.Running, Accepts: accepted}
	status <- now
	f.events.Info(windows.EventStarted, "The build agent in "+f.options.Installation.Home+" is kept running.")
	return f.serve(d, requests, status, now, ended, cancel)
}

// safe refuses to run what others could change with the rights of SYSTEM, or of an administrator. A service of the original gets a warning instead: its homes were
// never closed, and an upgrade must not end it. Who can write there cannot choose which of the two it is, because
// that is in the registry.
func (f *frame) safe() error {
	if !windows.Privileged() {
		return nil
	}
	own, err := os.Executable()
	if err == nil {
		err = service.CheckService(f.options.Installation, own, f.session)
	}
	if err == nil {
		return nil
	}
	text := err.Error()
	var hinter interface{ Hint() string }
	if errors.As(err, &hinter) {
		text += "\r\n" + hinter.Hint()
	}
	f.events.Error(windows.EventRefused, text)
	if f.ours {
		f.options.Log.Error("Service refuses to run", "err", err)
		return err
	}
	f.options.Log.Error("Agent runs as SYSTEM from where others can change it; devopsAgent install closes the directory", "err", err)
	return nil
}

// noted says when a note for the installer was not written: at an upgrade, it starts what nobody has stopped.
func (f *frame) noted(err error) {
	if err != nil {
		f.options.Log.Warn("Upgrade by the installer may start the service, or change its mode", "err", err)
	}
}

// startedByItself reports whether Windows started the service, and not a person.
func startedByItself() bool {
	reason, err := svc.DynamicStartReason()
	return err == nil && reason&(svc.StartReasonAuto|svc.StartReasonDelayedAuto|svc.StartReasonRestartOnFailure) != 0
}

// keepTrying runs the daemon, and waits for one that somebody started in a console.
func keepTrying(ctx context.Context, d *service.Daemon, log *slog.Logger) error {
	for said := false; ; said = true {
		err := d.Run(context.WithoutCancel(ctx))
		if !errors.Is(err, service.ErrRunning) || ctx.Err() != nil {
			return err
		}
		if !said {
			log.Error("Another daemon has this home; waiting for its end", "err", err)
		}
		timer := time.NewTimer(roleRetry)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// serve passes on what the service manager says, until the daemon has ended.
func (f *frame) serve(d *service.Daemon, requests <-chan svc.ChangeRequest, status chan<- svc.Status, now svc.Status,
	ended <-chan error, cancel func()) (bool, uint32) {
	progress := time.NewTicker(progressEvery)
	defer progress.Stop()
	var end <-chan time.Time // of patience with builds
	stop := func(drain time.Duration) {
		cancel()
		now = svc.Status{State: svc.StopPending, CheckPoint: now.CheckPoint + 1, WaitHint: uint32(progressHint.Milliseconds())}
		status <- now
		d.Stop(drain == 0)
		if drain > 0 && end == nil {
			end = time.After(drain)
		}
	}
	for {
		select {
		case err := <-ended:
			return f.over(d, err)
		case <-progress.C:
			if now.State == svc.StopPending {
				now.CheckPoint++
				status <- now
			}
		case <-end:
			d.Stop(true)
		case r := <-requests:
			switch r.Cmd {
			case svc.Interrogate:
				status <- now
			case svc.Stop: // the agent itself ends its builds after drain.timeout
				f.noted(windows.NoteStopped(f.name))
				stop(-1)
			case svc.PreShutdown:
				stop(windows.ShutdownDrain(time.Duration(1<<63 - 1)))
			case svc.Shutdown:
				stop(beforeKill())
			case svc.ParamChange:
				d.Reload()
			case svc.SessionChange:
				switch r.EventType {
				case consoleConnect, sessionLogon, sessionUnlocked:
					d.Wake()
				}
			}
		}
	}
}

// beforeKill is how long builds may go on at a shutdown that gave no earlier notice: Windows kills services after
// WaitToKillServiceTimeout, and the report needs some of that.
func beforeKill() time.Duration {
	const report = 3 * time.Second
	limit := 5 * time.Second
	if key, err := registry.OpenKey(registry.LOCAL_MACHINE, `SYSTEM\CurrentControlSet\Control`, registry.QUERY_VALUE); err == nil {
		defer func() { _ = key.Close() }()
		if text, _, err := key.GetStringValue("WaitToKillServiceTimeout"); err == nil {
			if ms, err := strconv.Atoi(text); err == nil {
				limit = time.Duration(ms) * time.Millisecond
			}
		}
	}
	return max(limit-report, 0)
}

// over ends the service after its daemon.
func (f *frame) over(d *service.Daemon, err error) (bool, uint32) {
	log := f.options.Log
	switch {
	case err == nil:
		if how := d.Status().LastExit; how != "" && how != "exit status 0" { // it did not stop its builds itself
			if err := f.job.terminate(); err != nil {
				log.Error("Builds of the agent not ended", "err", err)
			}
		}
		f.events.Info(windows.EventStopped, "The build agent was stopped.")
		return false, 0
	case errors.Is(err, service.ErrRemoved):
		f.events.Info(windows.EventRemoved, "The agent was removed in BK-CI, so the service stays down.")
		return false, 0
	}
	f.err = err
	f.events.Error(windows.EventFailed, "The daemon ends: "+err.Error())
	return true, exitFailed
}

// inSession starts the agent as the user who is logged on at the console, to whom home is opened, and as nobody else.
func (f *frame) inSession(cmd *exec.Cmd) (err error) {
	user, err := f.user()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, user.Close()) }()
	if err := openTo(f.options.Installation.Home, user.SID); err != nil {
		return err
	}
	f.options.Log.Info("Agent starts in the session of a user", "user", user.Name)
	f.waiting = false
	return user.Start(cmd)
}

// openTo lets a user, and nobody who was there before, change home. What inherits from it is rewritten, which takes its time in
// a large workspace: so it is not done again for the same user.
func openTo(home, user string) error {
	if s, err := windows.SecurityOf(home); err == nil {
		if who := s.Strangers(); len(who) == 1 && who[0] == user {
			return nil
		}
	}
	return windows.Protect(home, windows.SessionSDDL(user))
}

// prepare has the agent wait until it is in its job and, in session mode, until somebody is there.
func (f *frame) prepare(_ context.Context, cmd *exec.Cmd) error {
	f.job.prepare(cmd)
	if f.options.Start == nil {
		return nil
	}
	cmd.SysProcAttr.NoInheritHandles = true // it is in another session
	user, err := f.user()
	if errors.Is(err, windows.ErrNobodyHere) {
		if !f.waiting {
			f.waiting = true
			f.options.Log.Info("Agent waits for somebody to log on at the console")
			f.events.Info(windows.EventNoSession, "Nobody is logged on at the console. The agent starts when somebody is.")
		}
		return service.ErrLater
	}
	if err != nil {
		return err
	}
	return user.Close()
}

// take puts the agent into the job and lets it run.
func (f *frame) take(p *os.Process) error {
	err := f.job.take(p)
	if f.started != nil {
		err = errors.Join(err, f.started(p))
	}
	return err
}
