package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/user"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/agent/host"
	"github.com/devops-agent/devops-agent/agent/job"
	"github.com/devops-agent/devops-agent/agent/metrics"
	"github.com/devops-agent/devops-agent/agent/rhythm"
	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/upgrader/journal"
)

// The cadences of the design note and of protocol §1.6, §1.7.1. Sleep is always after the work.
const (
	scriptEvery   = 30 * time.Second
	debugEvery    = 5 * time.Second
	addressEvery  = time.Minute
	sweepEvery    = 2 * time.Hour
	sweepBusy     = 5 * time.Second  // after an upgrade was in the way
	sweepAgain    = 10 * time.Minute // after left-overs could not be removed
	successDelay  = 8 * time.Second  // before a success is reported (protocol §1.6.8)
	upgradePause  = time.Minute      // after an upgrade offer that could not be taken; it doubles
	upgradeMost   = time.Hour        // the longest such pause
	trialLag      = 5 * time.Second  // between the end of a trial on disk and its end here, at most
	reportForgets = 24 * time.Hour   // after which a report that no server takes is given up
)

// Options are what an agent needs to run.
type Options struct {
	Installation *service.Installation
	Config       *config.Config
	Store        *config.Store
	Programs     string         // directory of the package's programs, "" for none but those in home
	HostName     string         // told to the server instead of the machine's name; "" for that
	Version      string         // of the agent
	Debug        bool           // debug mode: no upgrades (protocol §3.1)
	GOOS, GOARCH string         // of this machine
	Umask        int            // of workers and scripts; the agent's own is narrower
	Roots        *x509.CertPool // nil for the system's
	Log          *slog.Logger
	HTTP         func(wire.HTTPOptions) *http.Client // nil for wire.NewHTTPClient
	Notify       *service.Notifier                   // the keeper, which may be nil
	SetLevel     func(slog.Level)                    // of the log, when agent.toml is read again; nil when it cannot be changed
	Proved       func()                              // this version has proved itself; nil when nobody wants to know
}

// Agent is one running agent.
type Agent struct {
	Options
	slots    *job.Slots
	runner   *job.Runner
	ledger   *job.Ledger
	versions *host.Prober
	user     string
	system   string // name and release of the operating system
	began    time.Time
	gate     *gate
	pulse    pulse
	teller   *teller
	health   health

	halt       context.Context         // ends when builds are to be stopped, with a *job.Stop as its cause
	stopBuilds context.CancelCauseFunc // ends halt

	config atomic.Pointer[config.Config]    // agent.toml, as it was last read without a mistake
	roots  atomic.Pointer[x509.CertPool]    // .cert, likewise
	unread atomic.Pointer[string]           // why agent.toml could not be read again; nil when it could
	wanted atomic.Pointer[wire.UpgradeItem] // offered by the server and not taken

	journal *journal.Journal
	changes changes // upgrades

	http atomic.Pointer[http.Client]
	envs atomic.Pointer[map[string]string] // pushed by the server, for workers
	ip   atomic.Pointer[string]

	adopted    chan struct{}                  // closed when the builds are known that an earlier agent left
	talking    chan struct{}                  // closed when anything but startup may be said
	started    atomic.Bool                    // a startup was answered
	imported   atomic.Bool                    // the server has said IMPORT_OK
	waits      atomic.Bool                    // the server knows "Prefer: wait"
	workerLost atomic.Bool                    // the last build found no worker at all
	exitError  atomic.Pointer[wire.ExitError] // to be told with the next heartbeat
	noUpgrade  atomic.Pointer[time.Time]      // no upgrade is asked for before this time
	probing    atomic.Bool                    // a new gateway is being tried
	diskFull   atomic.Bool                    // no room for builds when last looked
	creator    atomic.Bool                    // the server has said whether this machine is in create mode
	splits     atomic.Bool                    // the generation spoken is the one of separate endpoints
	beatFails  atomic.Int32                   // heartbeats in a row that failed

	building crowd // builds, scripts, and questions that may bring them: an agent that stops waits for them
	vital    crowd // requests whose answer must not be missed: those questions, and reports of builds
	work     crowd // the same as building, reports, gateway probes

	reloading sync.Mutex

	mu      sync.Mutex
	reports map[string]*pending  // unfinished reports by build
	tasks   map[string]bool      // pipeline tasks under way
	failed  map[string]time.Time // gateways that did not answer, and when they were tried
}

// New wires an agent together. It starts nothing and says nothing to the server.
func New(o Options) (*Agent, error) {
	ledger, err := job.OpenLedger(o.Installation.Path("runtime", "builds"))
	if err != nil {
		return nil, err
	}
	s := o.Store.Settings()
	a := &Agent{
		Options:  o,
		slots:    job.NewSlots(s.Parallel, s.DockerParallel),
		runner:   &job.Runner{Home: o.Installation.Home, Programs: o.Programs, GOOS: o.GOOS, Ledger: ledger, Log: o.Log},
		ledger:   ledger,
		adopted:  make(chan struct{}),
		talking:  make(chan struct{}),
		versions: host.NewProber(o.Installation.Home, host.Exec, o.Log),
		system:   host.OSVersion(),
		reports:  map[string]*pending{},
		tasks:    map[string]bool{},
		failed:   map[string]time.Time{},
		began:    time.Now(),
		gate:     newGate(),
		journal:  journal.Open(o.Installation, o.Log),
	}
	a.changes.ended = make(chan struct{}, 1)
	a.config.Store(o.Config)
	a.roots.Store(o.Roots)
	a.halt, a.stopBuilds = context.WithCancelCause(context.Background())
	a.teller = newTeller(o.Notify, o.Log, &a.pulse)
	a.teller.sentence = a.sentence
	a.teller.answered = a.started.Load
	a.teller.stopping = a.stopping
	a.teller.idle = func() bool { return !a.slots.Busy() }
	a.readMarker()
	a.versions.Programs = o.Programs
	if a.HTTP == nil {
		a.HTTP = wire.NewHTTPClient
	}
	a.envs.Store(&map[string]string{})
	if me, err := user.Current(); err == nil {
		a.user = me.Username
	}
	a.newHTTP()
	return a, nil
}

// Run runs the agent until ctx ends or the agent has to: then the error says why, service.ErrRemoved for one that
// was deleted, ErrHung for one that has to be replaced. Builds under way go on; the next agent adopts them. After Stop
// it returns nil when the builds have ended and were reported.
func (a *Agent) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	a.adopt(ctx)
	close(a.adopted)
	trial, unread := a.noteTrial()
	var loops sync.WaitGroup
	loops.Go(func() { a.stopper(ctx, func() { stop(nil) }) })
	loops.Go(func() { a.leaver(ctx, func() { stop(nil) }) })
	prove := func(ctx context.Context) error {
		for unread != nil && sleep(ctx, waitingEvery) {
			trial, unread = a.noteTrial()
		}
		return a.prove(ctx, trial)
	}
	for _, loop := range []func(context.Context) error{a.talk, a.sweep, a.address, a.measure, prove, a.tellEnds} {
		loops.Go(func() {
			if err := loop(ctx); err != nil {
				stop(err)
			}
		})
	}
	hung := make(chan error, 1)
	telling, told := context.WithCancel(context.WithoutCancel(ctx))
	defer told()
	var last sync.WaitGroup
	last.Go(func() { hung <- a.teller.run(telling) })
	ended := make(chan struct{})
	last.Go(func() {
		defer close(ended)
		loops.Wait()
		stop(nil)
		<-a.changes.work.idle()
		<-a.work.idle()
		told()
	})
	select {
	case err := <-hung: // what hangs is not waited for
		if err != nil {
			return err
		}
		<-ended
	case <-ended:
	}
	last.Wait()
	_ = a.Notify.Stopping() // a keeper that does not listen was reported
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// maxAnswer bounds what the server may say at once: a hundred times the largest real answer, and little enough that
// five loops can read nonsense at the same time.
const maxAnswer = 1 << 20

// client speaks with the settings of this moment.
func (a *Agent) client() *wire.Client {
	s := a.Store.Settings()
	return &wire.Client{Gateway: s.Gateway, Identity: s.Identity, HTTP: a.http.Load(), Timeout: s.RequestTimeout, MaxBody: maxAnswer}
}

// newHTTP makes a fresh HTTP client: at the start, when a proxy changed, and after a call that timed out, whose
// connection may be dead without knowing it (protocol §1.5).
func (a *Agent) newHTTP() {
	fresh := a.HTTP(wire.HTTPOptions{Roots: a.roots.Load(), Proxy: config.Proxy(a.config.Load(), a.Store.Settings(), *a.envs.Load())})
	fresh.Transport = &dated{next: fresh.Transport, clock: &a.health}
	if old := a.http.Swap(fresh); old != nil {
		old.CloseIdleConnections()
	}
}

// talk says startup and then speaks whichever generation of the protocol the server understands.
func (a *Agent) talk(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	var later sync.WaitGroup
	defer later.Wait()
	defer stop()
	protocol := a.config.Load().Protocol
	a.pulse.within("startup", a.Store.Settings().RequestTimeout+callSlack)
	err := a.startup(ctx)
	a.pulse.over("startup")
	if err != nil {
		a.health.bad(ctx, time.Now(), err)
		a.Log.Warn("Startup not accepted, trying again", "err", err)
		again := func() { a.startups(ctx) }
		if protocol == config.Split { // the seed generation carries on meanwhile (protocol §1.6.1)
			later.Go(again)
		} else {
			again()
		}
	}
	close(a.talking)
	later.Go(func() { _ = a.versions.Run(ctx) }) // after the first request: two JVM starts are not worth waiting for
	for ctx.Err() == nil {
		var err error
		if protocol == config.Split {
			err = a.split(ctx, nil)
		} else if err = a.asks(ctx); errors.Is(err, errNoAsk) {
			a.Log.Info("Server has no ask, using one endpoint per purpose")
			err = a.split(ctx, a.askAgain)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// startup reports this machine once (protocol §1.6.1). The state that comes back is no reason to do anything:
// DELETE may only mean that the address changed.
func (a *Agent) startup(ctx context.Context) error {
	status, err := a.client().Startup(ctx, a.startupMessage())
	if err != nil {
		return err
	}
	a.health.good(time.Now())
	a.health.says(status)
	if status == wire.ImportOK {
		a.imported.Store(true)
	}
	if !a.started.Swap(true) {
		a.Log.Info("Startup accepted", "status", string(status))
		a.teller.changed()
	}
	return nil
}

// hostName is the name that the server lists.
func (a *Agent) hostName() string {
	if a.HostName != "" {
		return a.HostName
	}
	return host.Name()
}

func (a *Agent) startupMessage() wire.Startup {
	return wire.Startup{
		HostName:      a.hostName(),
		HostIP:        a.currentIP(),
		DetectOS:      host.DetectOS(a.GOOS),
		MasterVersion: a.Version,
		Version:       a.knownVersions().Worker,
	}
}

// startups repeats startup with growing pauses of up to a minute until it is accepted.
func (a *Agent) startups(ctx context.Context) {
	p := rhythm.Pace{Every: 5 * time.Second, Most: time.Minute}
	server := contact{log: a.Log, what: "startup"}
	defer a.pulse.over("startup")
	for err := errors.New("not accepted yet"); err != nil; {
		pause := p.After(err)
		a.pulse.within("startup", pause+slack)
		if !sleep(ctx, pause) {
			return
		}
		a.pulse.within("startup", a.Store.Settings().RequestTimeout+callSlack)
		err = a.startup(ctx)
		a.heardFrom(ctx, &server, err)
	}
}

// knownVersions are those of the worker and the JDK in use, as far as they have been looked at.
func (a *Agent) knownVersions() host.Versions {
	s := a.Store.Settings()
	return a.versions.Get(s.JDKDir, s.JDK17Dir)
}

func (a *Agent) currentIP() string {
	if ip := a.ip.Load(); ip != nil {
		return *ip
	}
	return a.detectIP(context.Background(), 50*time.Millisecond)
}

func (a *Agent) detectIP(ctx context.Context, limit time.Duration) string {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	s := a.Store.Settings()
	ip := host.IP(ctx, s.Gateway, s.IgnoreLocalIPs)
	a.ip.Store(&ip)
	return ip
}

// address looks once a minute whether this machine has another address.
func (a *Agent) address(ctx context.Context) error {
	for sleep(ctx, addressEvery) {
		before := a.currentIP()
		if now := a.detectIP(ctx, 5*time.Second); now != before {
			a.Log.Info("Address of this machine changed", "from", before, "to", now)
		}
	}
	return nil
}

// measure sends measurements of this host once a minute (protocol §1.6.13), unless that is switched off.
func (a *Agent) measure(ctx context.Context) error {
	collector := metrics.NewCollector()
	failing := false
	for sleep(ctx, metrics.Period) {
		s := a.Store.Settings()
		if !s.CollectorOn || !a.started.Load() {
			continue
		}
		err := a.sendMetrics(ctx, collector, s)
		if (err != nil) != failing && ctx.Err() == nil {
			failing = err != nil
			a.Log.Info("Sending of measurements changed", "failing", failing, "err", err)
		}
	}
	return nil
}

// sendMetrics takes one sample and sends it: as JSON, and for projects of the git_ flavour as line protocol.
func (a *Agent) sendMetrics(ctx context.Context, collector *metrics.Collector, s config.Settings) error {
	about := metrics.About{Project: s.Identity.Project, Agent: s.Identity.Agent, HostName: a.hostName(), HostIP: a.currentIP()}
	list, err := collector.Collect(ctx, time.Now(), about)
	if err != nil {
		a.Log.Debug("Some measurements cannot be taken", "err", err)
	}
	path := wire.PathMetrixWrite
	if !a.splits.Load() { // the ask generation has names of its own
		list, path = metrics.Mapped(list), wire.PathMetrix
	}
	if strings.HasPrefix(s.Identity.Project, "git_") {
		return a.client().Upload(ctx, path, "text/plain; charset=utf-8", metrics.Lines(list))
	}
	body, err := metrics.JSON(list)
	if err != nil {
		return err
	}
	return a.client().Upload(ctx, wire.PathMetrics, wire.ContentType, body)
}

// pushEnvs takes over the variables for later workers and, when a proxy is among the changes, connects anew.
func (a *Agent) pushEnvs(envs map[string]string) {
	old := *a.envs.Load()
	if envs == nil || maps.Equal(old, envs) {
		return
	}
	a.envs.Store(&envs)
	a.Log.Info("Variables for builds changed", "count", len(envs)) // names and values may be secret
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"} {
		if old[name] != envs[name] {
			a.newHTTP()
			return
		}
	}
}

// roomOnDisk reports whether the home directory has room for another build. A full disk refuses builds and says so;
// heartbeats go on.
func (a *Agent) roomOnDisk() bool {
	free, err := host.FreeBytes(a.Installation.Home)
	return err != nil || free >= leastFree
}

// leastFree is the room that a build needs before its own work: scratch files, logs.
const leastFree = 64 << 20

// debugMode: the word debug on the command line, or the marker file of the ask generation (protocol §2.1).
func (a *Agent) debugMode() bool {
	if a.Debug {
		return true
	}
	_, err := os.Stat(a.Installation.Path(".debug"))
	return err == nil
}
