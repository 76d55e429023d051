package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/agent/host"
	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/service/control"
	"github.com/devops-agent/devops-agent/upgrader"
	"github.com/devops-agent/devops-agent/upgrader/journal"
	"github.com/devops-agent/devops-agent/upgrader/trust"
)

// The pauses between tries of an enrolment that nobody watches.
const (
	enrolFirst = 5 * time.Second
	enrolMost  = 5 * time.Minute
)

// Unenrolled reports whether an error of config.Open says that this home is no agent yet.
func Unenrolled(err error) bool {
	var wrong *config.KeyError
	if !errors.As(err, &wrong) {
		return false
	}
	switch wrong.Key {
	case "", config.KeyProject, config.KeyAgent, config.KeySecret: // no file, nothing legible in it, or a template
		return true
	}
	return false
}

// look is how often a machine without identity looks whether somebody has given it one, or has said how to get one.
const look = 2 * time.Second

// Enroller makes an agent of a home by what agent.toml, the environment or a file of enroll.d say, and tries until the server has
// answered. While nothing says so, it waits until something does, or until somebody enrols the home by hand.
type Enroller struct {
	o      Options
	getenv func(string) string
	began  time.Time
	pulse  pulse
	teller *teller
	health health
	how    atomic.Pointer[config.Enrolment] // what was found last; nil while nothing says how to enrol
	unread atomic.Pointer[error]            // why what says so cannot be used
	waits  atomic.Bool                      // it could not enrol at once
	stop   chan struct{}                    // of one element: told to end
}

// NewEnroller needs of the options what is not about an identity; getenv is the environment that the agent was started with.
func NewEnroller(o Options, getenv func(string) string) *Enroller {
	e := &Enroller{o: o, getenv: getenv, began: time.Now(), stop: make(chan struct{}, 1)}
	if o.HTTP == nil {
		e.o.HTTP = wire.NewHTTPClient
	}
	e.teller = newTeller(o.Notify, o.Log, &e.pulse)
	e.teller.sentence = e.sentence
	e.teller.answered = e.waits.Load // a service that has to wait is ready: nobody else is to wait with it
	e.teller.stopping = func() bool { return false }
	e.teller.idle = e.teller.stopping
	return e
}

// Run enrols and reports whether there is an identity now; false means that ctx ended or that it was told to stop.
func (e *Enroller) Run(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	told := make(chan error, 1)
	go func() {
		told <- e.teller.run(ctx)
		cancel()
	}()
	var beside sync.WaitGroup
	beside.Go(func() { e.prove(ctx) })
	id := e.try(ctx)
	cancel()
	beside.Wait()
	if err := <-told; err != nil {
		return false, err
	}
	return id != "", nil
}

func (e *Enroller) try(ctx context.Context) (id string) {
	const loop = "enrolment"
	defer e.pulse.over(loop)
	server := contact{log: e.o.Log, what: "enrol"}
	var tried *config.Enrolment
	var next time.Time
	pause := enrolFirst
	waiting, wrong, stamp := false, "", ""
	for {
		e.pulse.within(loop, enrolLimit+slack)
		how, err := e.find()
		switch {
		case ctx.Err() != nil:
			return ""
		case err != nil:
			if text := err.Error(); text != wrong {
				e.o.Log.Error("What says how to enrol cannot be used; it is read again every few seconds", "err", err)
				wrong = text
			}
			tried = nil
		case how == nil:
			if !waiting {
				e.o.Log.Info("This machine is no agent yet, and nothing says how to make it one; waiting", "files", e.o.Config.EnrollFiles())
				waiting = true
			}
			tried, wrong = nil, ""
		case tried != nil && *how == *tried && tokenStamp(how) == stamp && time.Now().Before(next):
		default:
			fresh := tokenStamp(how)
			if tried == nil || *how != *tried || fresh != stamp { // somebody wrote another one: no reason to wait
				e.o.Log.Info("This machine is no agent yet; enrolling it", "by", how.From, "gateway", how.Gateway)
				pause = enrolFirst
			}
			wrong, stamp = "", fresh
			id, err := e.once(ctx, how)
			if err == nil {
				e.o.Log.Info("Enrolled", "agent", id)
				return id
			}
			server.bad(ctx, err)
			e.health.bad(ctx, time.Now(), err)
			tried, next = how, time.Now().Add(pause/2+jitter(pause/2))
			pause = min(2*pause, enrolMost)
		}
		e.waits.Store(true)
		e.teller.changed()
		e.pulse.within(loop, look+slack)
		timer := time.NewTimer(look)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ""
		case <-e.stop:
			timer.Stop()
			return ""
		case <-timer.C:
		}
		if id := e.given(); id != "" {
			e.o.Log.Info("Somebody enrolled this machine", "agent", id)
			return id
		}
	}
}

// prove ends the trial of a version that came to a machine without identity, by its package for instance: there is no server that
// could answer it, so that it has to run and to answer at its door.
func (e *Enroller) prove(ctx context.Context) {
	if e.o.Config.Path == "" { // not of an installation
		return
	}
	j := journal.Open(e.o.Installation, e.o.Log)
	found, err := j.Current()
	if err != nil {
		e.o.Log.Warn("Open upgrade cannot be read", "err", err)
		return
	}
	if found.State != journal.Trial || found.Record.Reached {
		return
	}
	for {
		ours, err := isTrialOf(found.Record)
		if err == nil && !ours || err != nil && !sleep(ctx, look) {
			return
		}
		if err == nil {
			break
		}
	}
	if !sleep(ctx, time.Until(e.began.Add(time.Duration(found.Record.Proof)*time.Second))) {
		return
	}
	u := &upgrader.Upgrader{Inst: e.o.Installation, Journal: j, GOOS: e.o.GOOS, GOARCH: e.o.GOARCH, Log: e.o.Log,
		Policy: trust.Policy{Keys: e.o.Config.Trust.Keys, Require: e.o.Config.Trust.Require}}
	for {
		ended, err := u.Settle(ctx, found.Record.ID)
		if err == nil || ended != nil {
			break
		}
		e.o.Log.Warn("Trial not ended, trying on", "upgrade", found.Record.ID, "err", err)
		if !sleep(ctx, look) {
			return
		}
	}
	if e.o.Proved != nil {
		e.o.Proved()
	}
}

// tokenStamp tells two states of a token file apart, without reading it.
func tokenStamp(how *config.Enrolment) string {
	if how.TokenFile == "" {
		return ""
	}
	info, err := os.Stat(how.TokenFile)
	if err != nil {
		return "none"
	}
	return fmt.Sprint(info.Size(), info.Mode(), info.ModTime().UnixNano())
}

// given is the id that somebody else has given to this home meanwhile: "devopsAgent enroll" beside the waiting service.
func (e *Enroller) given() string {
	if _, err := os.Lstat(e.o.Installation.Path(config.PropertiesFile)); err != nil {
		return ""
	}
	id, err := identityIn(e.o.Installation.Home)
	if err != nil {
		return ""
	}
	return id
}

// find reads anew what says how to enrol: whoever wrote something wrong there writes something right next.
func (e *Enroller) find() (*config.Enrolment, error) {
	c, err := e.o.Config, error(nil)
	if c.Path != "" {
		c, err = config.LoadConfig(c.Path)
	}
	var how *config.Enrolment
	if err == nil {
		how, err = c.Enrolment(e.getenv)
	}
	e.how.Store(how)
	if err != nil {
		e.unread.Store(&err)
	} else {
		e.unread.Store(nil)
	}
	return how, err
}

// once is one try. A token file is read anew each time: whoever put a wrong one there puts a right one there next.
func (e *Enroller) once(ctx context.Context, how *config.Enrolment) (string, error) {
	token := how.Token
	if how.TokenFile != "" {
		var err error
		if token, err = readTokenFile(how.TokenFile); err != nil {
			return "", err
		}
	}
	roots, err := config.Roots(e.o.Installation.Home)
	if err != nil {
		return "", err
	}
	client := e.o.HTTP(wire.HTTPOptions{Roots: roots, Proxy: config.Proxy(e.o.Config, config.Settings{}, nil)})
	defer client.CloseIdleConnections()
	id, _, err := Enrolment{Home: e.o.Installation.Home, Gateway: how.Gateway, Token: token, Zone: how.Zone, Project: how.Project, Pin: how.Pin,
		GOOS: e.o.GOOS, GOARCH: e.o.GOARCH, HTTP: client, Log: e.o.Log}.Run(ctx)
	return id, err
}

func readTokenFile(path string) (wire.Secret, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read install token: %w", err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return "", fmt.Errorf("read install token: %w", err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" || strings.ContainsAny(token, "\r\n") {
		return "", fmt.Errorf("read install token: %s does not hold one line with the token", path)
	}
	return wire.Secret(token), nil
}

func (e *Enroller) sentence(now time.Time) string {
	how := e.how.Load()
	switch s := e.health.server(); {
	case e.unread.Load() != nil:
		return "not enrolled: " + strings.ReplaceAll((*e.unread.Load()).Error(), "\n", " ")
	case how == nil:
		return `not enrolled: type "devopsAgent enroll --gateway URL --token-file FILE", or put a file into ` + e.o.Config.EnrollFiles()
	case s.Failing == nil:
		return "not enrolled: asking " + wire.BaseURL(how.Gateway)
	default:
		return "not enrolled, trying on: " + serverTrouble(s, now)
	}
}

// Control answers what the local control door asks before there is an agent.
func (e *Enroller) Control(_ context.Context, r control.Request) (any, error) {
	switch r.Op {
	case control.OpStatus:
		return e.status(), nil
	case control.OpStop, control.OpRestart:
		select {
		case e.stop <- struct{}{}:
		default:
		}
		return nil, nil
	case control.OpDrain, control.OpResume, control.OpReload:
		return nil, errors.New("this machine is not enrolled yet")
	}
	return nil, unknownOp(r.Op)
}

func (e *Enroller) status() control.Status {
	s := control.Status{PID: os.Getpid(), Version: e.o.Version, Since: e.began, Phase: control.Unenrolled, Ready: e.teller.ready.Load(),
		Debug: e.o.Debug, Server: e.health.server(), Versions: control.Versions{JDK: []string{}}, Builds: []control.Build{},
		Disk:    control.Disk{Path: e.o.Installation.Home, Needed: leastFree},
		Upgrade: control.Upgrade{Mode: string(e.o.Config.Upgrade.Mode)}, Overrides: []control.Override{}}
	if how := e.how.Load(); how != nil {
		s.Server.Gateway = wire.BaseURL(how.Gateway)
	} else {
		s.Server = control.Server{} // of what nobody wants any more
	}
	if err := e.unread.Load(); err != nil {
		s.Server.Error = (*err).Error()
	}
	s.Disk.Free, _ = host.FreeBytes(s.Disk.Path) // 0 is what a disk that cannot be asked has
	if me, err := user.Current(); err == nil {
		s.User = me.Username
	}
	return s
}
