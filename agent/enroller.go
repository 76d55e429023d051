package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/agent/host"
	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/service/control"
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

// Enroller makes an agent of a home by [enroll] of agent.toml, and tries until the server has answered.
type Enroller struct {
	o      Options
	began  time.Time
	pulse  pulse
	teller *teller
	health health
	stop   chan struct{} // of one element: told to end
}

// NewEnroller needs of the options what is not about an identity.
func NewEnroller(o Options) *Enroller {
	e := &Enroller{o: o, began: time.Now(), stop: make(chan struct{}, 1)}
	if o.HTTP == nil {
		e.o.HTTP = wire.NewHTTPClient
	}
	e.teller = newTeller(o.Notify, o.Log, &e.pulse)
	e.teller.sentence = e.sentence
	e.teller.answered = func() bool { return false }
	e.teller.stopping = func() bool { return false }
	e.teller.idle = e.teller.stopping
	return e
}

// Run enrols and reports whether it has; false means that ctx ended or that it was told to stop.
func (e *Enroller) Run(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	told := make(chan error, 1)
	go func() {
		told <- e.teller.run(ctx)
		cancel()
	}()
	id := e.try(ctx)
	cancel()
	if err := <-told; err != nil {
		return false, err
	}
	return id != "", nil
}

func (e *Enroller) try(ctx context.Context) (id string) {
	const loop = "enrolment"
	defer e.pulse.over(loop)
	server := contact{log: e.o.Log, what: "enrol"}
	for pause := enrolFirst; ; pause = min(2*pause, enrolMost) {
		e.pulse.within(loop, enrolLimit+slack)
		id, err := e.once(ctx)
		if err == nil {
			e.o.Log.Info("Enrolled", "agent", id)
			return id
		}
		server.bad(ctx, err)
		e.health.bad(ctx, time.Now(), err)
		e.teller.changed()
		e.pulse.within(loop, pause+slack)
		timer := time.NewTimer(pause/2 + jitter(pause/2))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ""
		case <-e.stop:
			timer.Stop()
			return ""
		case <-timer.C:
		}
	}
}

// once is one try. The token is read anew each time: whoever put a wrong one there puts a right one there next.
func (e *Enroller) once(ctx context.Context) (string, error) {
	c := e.o.Config
	token, err := readTokenFile(c.Enroll.TokenFile)
	if err != nil {
		return "", err
	}
	roots, err := config.Roots(e.o.Installation.Home)
	if err != nil {
		return "", err
	}
	client := e.o.HTTP(wire.HTTPOptions{Roots: roots, Proxy: config.Proxy(c, config.Settings{}, nil)})
	defer client.CloseIdleConnections()
	id, _, err := Enrolment{Home: e.o.Installation.Home, Gateway: c.Enroll.Gateway, Token: token, Zone: c.Enroll.Zone,
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
	s := e.health.server()
	if s.Failing == nil {
		return "not enrolled: asking " + wire.BaseURL(e.o.Config.Enroll.Gateway)
	}
	return "not enrolled, trying on: " + serverTrouble(s, now)
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
	s := control.Status{PID: os.Getpid(), Version: e.o.Version, Since: e.began, Phase: control.Starting, Ready: e.teller.ready.Load(),
		Debug: e.o.Debug, Server: e.health.server(), Versions: control.Versions{JDK: []string{}}, Builds: []control.Build{},
		Disk:    control.Disk{Path: e.o.Installation.Home, Needed: leastFree},
		Upgrade: control.Upgrade{Mode: string(e.o.Config.Upgrade.Mode)}, Overrides: []control.Override{}}
	s.Server.Gateway = wire.BaseURL(e.o.Config.Enroll.Gateway)
	s.Disk.Free, _ = host.FreeBytes(s.Disk.Path) // 0 is what a disk that cannot be asked has
	if me, err := user.Current(); err == nil {
		s.User = me.Username
	}
	return s
}
