package controller

import (
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// Agent is the stored record of one machine.
type Agent struct {
	ID       string           `json:"id"`
	Project  string           `json:"project"`
	Secret   wire.Secret      `json:"secret"`
	OS       string           `json:"os"` // linux, macos, windows: of the enrolment, then what the machine says
	Status   wire.AgentStatus `json:"status"`
	Labels   []string         `json:"labels,omitempty"`
	Created  int64            `json:"created"`
	LinkHash string           `json:"linkHash,omitempty"` // of the key in the package address that an installer was given
	LinkEnds int64            `json:"linkEnds,omitempty"`
	LinkFrom string           `json:"linkFrom,omitempty"` // id of the enrolment token that the installer had

	HostName      string          `json:"hostName,omitempty"`
	IP            string          `json:"ip,omitempty"`
	Arch          string          `json:"arch,omitempty"`
	OSVersion     string          `json:"osVersion,omitempty"`
	AgentVersion  string          `json:"agentVersion,omitempty"`
	WorkerVersion string          `json:"workerVersion,omitempty"`
	InstallPath   string          `json:"installPath,omitempty"`
	User          string          `json:"user,omitempty"`
	ExitError     *wire.ExitError `json:"exitError,omitempty"`

	Settings
}

// Settings is what an operator sets for one machine; the heartbeat carries it there (protocol §1.6.3, §1.7.3).
// A nil or empty member leaves the machine's own value alone.
type Settings struct {
	Parallel       *int              `json:"parallel,omitempty"`       // host builds at once, 0 is unlimited; taken from the machine's first report when nil
	DockerParallel *int              `json:"dockerParallel,omitempty"` // the same for container builds
	Envs           map[string]string `json:"envs,omitempty"`           // environment of all workers
	Gateway        string            `json:"gateway,omitempty"`
	FileGateway    string            `json:"fileGateway,omitempty"`
	Language       string            `json:"language,omitempty"` // as in en_US
	IgnoreLocalIPs string            `json:"ignoreLocalIps,omitempty"`
	KeepLogsHours  int               `json:"keepLogsHours,omitempty"`
	EnablePipeline *bool             `json:"enablePipeline,omitempty"` // pipeline scripts; switched on when the first is queued
}

// agent is a record and what is known of it at run time.
type agent struct {
	Agent
	seen       time.Time            // last sign of life, or our own start
	held       int                  // requests that we hold
	waiters    []*waiter            // the same, oldest first
	builds     map[string]*build    // handed or running here
	called     map[string]time.Time // last accepted call of those with a spacing limit
	pacedTill  time.Time            // no spacing limits before: it uses Prefer: wait
	upgrading  time.Time            // no builds before
	offered    wire.UpgradeItem     // the last offer of an upgrade in ask
	offeredAt  time.Time            // when it was made
	told       string               // the last heartbeat reply that went out
	jdk        []string             // as last reported
	dockerInit wire.DockerInit      // as last reported
	sample     []byte               // the last metrics
	sampledAt  time.Time            // when they came
	running    []wire.Running       // the last task list
	past       history              // the last hours, for the page
	saved      *ticket              // the last change, nil before the first
	traffic    traffic              // with a lock of its own
}

func newAgent(now time.Time) *agent {
	return &agent{seen: now, builds: make(map[string]*build), called: make(map[string]time.Time)}
}

// waiter is a held request. The dispatcher gives it a build, or wakes it because something else changed.
type waiter struct {
	agent   *agent
	wants   bool // a build
	upgrade bool // an offer of an upgrade
	wake    chan struct{}
	woken   bool
	given   handed  // by the dispatcher, not yet fetched by the request
	saved   *ticket // of the hand-out
}

func (w *waiter) rouse() {
	if !w.woken {
		w.woken = true
		close(w.wake)
	}
}

// poke wakes an agent's held requests so that they look again.
func (s *Server) poke(a *agent) {
	if a == nil {
		return
	}
	for _, w := range a.waiters {
		w.rouse()
	}
}

// known returns the agent of an identity, nil when there is none or the secret is wrong. It takes the same time
// either way.
func (s *Server) known(id wire.Identity) *agent {
	a := s.agents[id.Agent]
	var secret wire.Secret
	var project string
	if a != nil {
		secret, project = a.Secret, a.Project
	}
	want, got := digestOf(secret, project), digestOf(id.Secret, id.Project)
	if subtle.ConstantTimeCompare(want[:], got[:]) != 1 || a == nil {
		return nil
	}
	return a
}

// digestOf is that of a secret and a project, of which no character is a zero.
func digestOf(secret wire.Secret, project string) [sha256.Size]byte {
	var space [160]byte // enough for those that are given out: every call of every agent comes by here
	text := append(append(append(space[:0], secret...), 0), project...)
	return sha256.Sum256(text)
}

// same compares in constant time, whatever the lengths.
func same(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

// alive notes a sign of life: an agent that was offline is back (protocol §1.6.3).
func (s *Server) alive(a *agent, now time.Time) {
	a.seen = now
	a.past.call(now, len(a.builds))
	if a.Status == wire.ImportException {
		a.Status = wire.ImportOK
		s.saveAgent(a)
		s.log.Info("Agent is back", "agent", a.ID, "host", a.HostName)
		s.poke(a)
	}
}

// spaced enforces the distance between two calls of one kind (protocol Appendix D). An agent that lately let itself
// be held is paced by that.
func (s *Server) spaced(a *agent, call string, distance time.Duration, now time.Time) bool {
	if now.Before(a.pacedTill) {
		return true
	}
	if last, ok := a.called[call]; ok && now.Sub(last) < distance {
		return false
	}
	a.called[call] = now
	return true
}

// report stores what a machine says of itself.
func (s *Server) report(a *agent, h wire.Heartbeat) {
	before := a.said()
	a.HostName, a.IP, a.AgentVersion, a.WorkerVersion = clip(h.HostName, 255), clip(h.AgentIP, 64), clip(h.MasterVersion, 64), clip(h.SlaveVersion, 64)
	a.InstallPath, a.User = clip(h.AgentInstallPath, 1024), clip(h.StartedUser, 255)
	a.Arch, a.OSVersion = clip(h.Props.Arch, 32), clip(h.Props.OSVersion, 255)
	a.jdk, a.dockerInit, a.running = h.Props.JDKVersion, h.Props.DockerInit, h.TaskList
	if a.Parallel == nil {
		n := max(0, h.ParallelTaskCount)
		a.Parallel = &n
	}
	if a.DockerParallel == nil {
		n := max(0, h.DockerParallelCount)
		a.DockerParallel = &n
	}
	if h.ErrorExitData != nil {
		a.ExitError = &wire.ExitError{Enum: clip(h.ErrorExitData.Enum, 64), Message: clip(h.ErrorExitData.Message, 2000)}
		s.log.Warn("Agent stops itself", "agent", a.ID, "host", a.HostName, "reason", a.ExitError.Enum, "message", a.ExitError.Message)
	}
	if a.said() != before {
		s.saveAgent(a)
	}
	if len(h.TaskList) > 1000 {
		a.running = h.TaskList[:1000]
	}
}

// saying is what of a record the machine itself decides.
type saying struct {
	host, ip, agent, worker, path, user, arch, system string
	parallel, docker                                  bool
	exit                                              wire.ExitError
}

func (a *agent) said() saying {
	v := saying{a.HostName, a.IP, a.AgentVersion, a.WorkerVersion, a.InstallPath, a.User, a.Arch, a.OSVersion, a.Parallel != nil, a.DockerParallel != nil, wire.ExitError{}}
	if a.ExitError != nil {
		v.exit = *a.ExitError
	}
	return v
}

// lost re-queues builds that were handed to this agent a while ago, if it asks again without listing them: the
// answer with the build did not arrive.
//
// An agent that does not use "Prefer: wait" is an original one, or far away: it may take its time before it lists a
// build, and starts a second worker for one that it gets twice. It gets ten times as long.
func (s *Server) lost(a *agent, now time.Time) {
	after := s.opts.LostAfter
	if now.After(a.pacedTill) {
		after *= 10
	}
	for _, b := range a.builds {
		listed := slices.ContainsFunc(a.running, func(r wire.Running) bool { return r.Build == b.ID })
		if b.State == Handed && !listed && now.Sub(b.since) >= after {
			s.requeue(b, "its agent asks for work and does not list it")
		}
	}
}

// overdue reports whether a request that came at asked should be answered now, so that its agent says at once
// whether it has the builds that it was given.
func (s *Server) overdue(a *agent, asked, now time.Time) bool {
	for _, b := range a.builds {
		lost := b.since.Add(s.opts.LostAfter)
		if b.State == Handed && asked.Before(lost) && !now.Before(lost) {
			return true
		}
	}
	return false
}

// nextOverdue is when overdue becomes true, if it is before until.
func (s *Server) nextOverdue(a *agent, asked, until time.Time) time.Time {
	for _, b := range a.builds {
		if lost := b.since.Add(s.opts.LostAfter); b.State == Handed && asked.Before(lost) && lost.Before(until) {
			until = lost
		}
	}
	return until
}

// saveAgent enqueues a record.
func (s *Server) saveAgent(a *agent) *ticket {
	id, doc := a.ID, jsonText(a.Agent)
	a.saved = s.store.enqueue(func(tx *sql.Tx) error { return putAgent(tx, id, doc) }, func(err error) {
		if err != nil {
			s.unwritten("An agent's record could not be written", err, "agent", id)
		}
	})
	return a.saved
}

func putAgent(tx *sql.Tx, id, doc string) error {
	_, err := tx.Exec(`INSERT INTO agent (id, doc) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET doc = excluded.doc`, id, doc)
	return err
}

// NewAgent is what an agent record is made from.
type NewAgent struct {
	Project string   `json:"project,omitempty"` // "demo" when empty
	OS      string   `json:"os,omitempty"`      // linux, macos or windows; linux when empty
	Labels  []string `json:"labels,omitempty"`
}

// DefaultProject is where agents and builds belong that name none.
const DefaultProject = "demo"

// CreateAgent makes a record in state UN_IMPORT (protocol §5.1). The machine's first startup call imports it.
func (s *Server) CreateAgent(n NewAgent) (wire.Identity, error) {
	a, err := s.newAgent(n)
	if err != nil {
		return wire.Identity{}, err
	}
	s.mu.Lock()
	s.agents[a.ID] = a
	t := s.saveAgent(a)
	s.mu.Unlock()
	if err := t.wait(); err != nil {
		s.mu.Lock()
		delete(s.agents, a.ID)
		s.mu.Unlock()
		return wire.Identity{}, err
	}
	return wire.Identity{Project: a.Project, Agent: a.ID, Secret: a.Secret}, nil
}

func (s *Server) newAgent(n NewAgent) (*agent, error) {
	if n.Project == "" {
		n.Project = DefaultProject
	}
	if n.OS == "" {
		n.OS = "linux"
	}
	if !label.MatchString(n.Project) {
		return nil, &InputError{Err: fmt.Errorf("project %q: letters, digits, _ and - only", clip(n.Project, 64))}
	}
	if !slices.Contains([]string{"linux", "macos", "windows"}, n.OS) {
		return nil, &InputError{Err: fmt.Errorf("os %q: linux, macos or windows", clip(n.OS, 64))}
	}
	if err := checkLabels(n.Labels); err != nil {
		return nil, &InputError{Err: err}
	}
	now := time.Now()
	a := newAgent(now)
	a.Agent = Agent{ID: randomHex(6), Project: n.Project, Secret: wire.Secret(randomHex(32)), OS: n.OS, Status: wire.UnImport,
		Labels: n.Labels, Created: millis(now)}
	return a, nil
}

// InputError is a call of the operator that asks for something impossible.
type InputError struct{ Err error }

// Error is the text of the cause.
func (e *InputError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *InputError) Unwrap() error { return e.Err }

// ErrNotFound is returned for a build, an agent or a script that does not exist.
var ErrNotFound = errors.New("no such thing")

// AgentInfo is an agent as the operator API shows it. It has no secret in it.
type AgentInfo struct {
	ID            string           `json:"id"`
	Project       string           `json:"project"`
	Status        wire.AgentStatus `json:"status"` // UN_IMPORT, IMPORT_OK, IMPORT_EXCEPTION (offline), DELETE
	OS            string           `json:"os"`
	Arch          string           `json:"arch,omitempty"`
	OSVersion     string           `json:"osVersion,omitempty"`
	HostName      string           `json:"hostName,omitempty"`
	IP            string           `json:"ip,omitempty"`
	AgentVersion  string           `json:"agentVersion,omitempty"`
	WorkerVersion string           `json:"workerVersion,omitempty"`
	InstallPath   string           `json:"installPath,omitempty"`
	User          string           `json:"user,omitempty"`
	Labels        []string         `json:"labels"` // those set, and its os, arch, host name and id
	Builds        []string         `json:"builds"` // ids handed to it or running there
	CreatedAt     int64            `json:"createdAt"`
	SeenAt        int64            `json:"seenAt,omitempty"`    // last sign of life since the controller started
	SampledAt     int64            `json:"sampledAt,omitempty"` // of the last metrics
	ExitError     *wire.ExitError  `json:"exitError,omitempty"` // why it last stopped itself
	Settings      Settings         `json:"settings"`
	Upgrade       *AgentUpgrade    `json:"upgrade,omitempty"` // its part in the newest rollout
}

func (a *agent) info() AgentInfo {
	info := AgentInfo{ID: a.ID, Project: a.Project, Status: a.Status, OS: a.OS, Arch: a.Arch, OSVersion: a.OSVersion,
		HostName: a.HostName, IP: a.IP, AgentVersion: a.AgentVersion, WorkerVersion: a.WorkerVersion, InstallPath: a.InstallPath,
		User: a.User, Labels: a.allLabels(), Builds: []string{}, CreatedAt: a.Created, ExitError: a.ExitError, Settings: a.Settings}
	for id := range a.builds {
		info.Builds = append(info.Builds, id)
	}
	slices.Sort(info.Builds)
	if a.Status != wire.UnImport {
		info.SeenAt = millis(a.seen)
	}
	if !a.sampledAt.IsZero() {
		info.SampledAt = millis(a.sampledAt)
	}
	return info
}

func (a *agent) allLabels() []string {
	labels := slices.Clone(a.Labels)
	for _, l := range []string{a.OS, a.Arch, a.HostName, a.ID} {
		if l != "" && !slices.Contains(labels, l) {
			labels = append(labels, l)
		}
	}
	return labels
}

// Agents lists all agents by id; deleted ones are left out.
func (s *Server) Agents() []AgentInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []AgentInfo{}
	for _, a := range s.agents {
		if a.Status != wire.Deleted {
			info := a.info()
			info.Upgrade = s.agentUpgrade(a)
			list = append(list, info)
		}
	}
	slices.SortFunc(list, func(x, y AgentInfo) int { return strings.Compare(x.ID, y.ID) })
	return list
}

// FindAgent returns one agent, ErrNotFound when there is none; deleted ones are found.
func (s *Server) FindAgent(id string) (AgentInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.agents[id]
	if a == nil {
		return AgentInfo{}, fmt.Errorf("agent %q: %w", clip(id, 64), ErrNotFound)
	}
	info := a.info()
	info.Upgrade = s.agentUpgrade(a)
	return info, nil
}

// AgentChange is what an operator may change. Nil members stay as they are.
type AgentChange struct {
	Labels         *[]string          `json:"labels,omitempty"`
	Parallel       *int               `json:"parallel,omitempty"`
	DockerParallel *int               `json:"dockerParallel,omitempty"`
	Envs           *map[string]string `json:"envs,omitempty"`
	Gateway        *string            `json:"gateway,omitempty"`
	FileGateway    *string            `json:"fileGateway,omitempty"`
	Language       *string            `json:"language,omitempty"`
	IgnoreLocalIPs *string            `json:"ignoreLocalIps,omitempty"`
	KeepLogsHours  *int               `json:"keepLogsHours,omitempty"`
	EnablePipeline *bool              `json:"enablePipeline,omitempty"`
}

func (c AgentChange) check() error {
	for name, n := range map[string]*int{"parallel": c.Parallel, "dockerParallel": c.DockerParallel, "keepLogsHours": c.KeepLogsHours} {
		if n != nil && (*n < 0 || *n > 100_000) {
			return fmt.Errorf("%s %d: between 0 and 100000, please", name, *n)
		}
	}
	for name, text := range map[string]*string{"gateway": c.Gateway, "fileGateway": c.FileGateway, "language": c.Language, "ignoreLocalIps": c.IgnoreLocalIPs} {
		if text != nil {
			if err := checkText(name, *text, 1000); err != nil {
				return err
			}
		}
	}
	if c.Gateway != nil && *c.Gateway != "" {
		if err := wire.CheckGateway(*c.Gateway); err != nil {
			return err
		}
	}
	if c.Envs != nil {
		for name, value := range *c.Envs {
			if !varName.MatchString(name) || strings.ContainsRune(value, 0) {
				return fmt.Errorf("env %q: not a name, or not a text", clip(name, 64))
			}
		}
	}
	if c.Labels != nil {
		return checkLabels(*c.Labels)
	}
	return nil
}

// ChangeAgent changes an agent's labels and settings; its next heartbeat learns of it.
func (s *Server) ChangeAgent(id string, c AgentChange) (AgentInfo, error) {
	if err := c.check(); err != nil {
		return AgentInfo{}, &InputError{Err: err}
	}
	s.mu.Lock()
	a := s.agents[id]
	if a == nil || a.Status == wire.Deleted {
		s.mu.Unlock()
		return AgentInfo{}, fmt.Errorf("agent %q: %w", clip(id, 64), ErrNotFound)
	}
	set(&a.Labels, c.Labels)
	set(&a.Envs, c.Envs)
	set(&a.Gateway, c.Gateway)
	set(&a.FileGateway, c.FileGateway)
	set(&a.Language, c.Language)
	set(&a.IgnoreLocalIPs, c.IgnoreLocalIPs)
	set(&a.KeepLogsHours, c.KeepLogsHours)
	for _, p := range []struct{ to, from **int }{{&a.Parallel, &c.Parallel}, {&a.DockerParallel, &c.DockerParallel}} {
		if *p.from != nil {
			*p.to = *p.from
		}
	}
	if c.EnablePipeline != nil {
		a.EnablePipeline = c.EnablePipeline
	}
	t := s.saveAgent(a)
	s.poke(a)
	s.dispatch(time.Now())
	info := a.info()
	s.mu.Unlock()
	return info, t.wait()
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// DeleteAgent marks a record as deleted: the agent is told to uninstall itself (protocol §1.4.1). Builds that it
// has not begun go back to the queue; running ones end by its silence.
func (s *Server) DeleteAgent(id string) error {
	s.mu.Lock()
	a := s.agents[id]
	if a == nil || a.Status == wire.Deleted {
		s.mu.Unlock()
		return fmt.Errorf("agent %q: %w", clip(id, 64), ErrNotFound)
	}
	a.Status = wire.Deleted
	for _, b := range a.builds {
		if b.State == Handed {
			s.requeue(b, "its agent was deleted")
		}
	}
	t := s.saveAgent(a)
	s.poke(a)
	s.mu.Unlock()
	return t.wait()
}

// heartbeatReply is what an agent is told (protocol §1.6.3). All names begin with a lower-case letter.
type heartbeatReply struct {
	MasterVersion  string            `json:"masterVersion"`
	SlaveVersion   string            `json:"slaveVersion"`
	AgentStatus    wire.AgentStatus  `json:"agentStatus"`
	Parallel       int               `json:"parallelTaskCount"`
	Envs           map[string]string `json:"envs"`
	Gateway        string            `json:"gateway"`
	FileGateway    string            `json:"fileGateway"`
	Props          map[string]any    `json:"props"`
	DockerParallel int               `json:"dockerParallelTaskCount"`
	Language       string            `json:"language"`
	CreateMod      bool              `json:"createMod"`
}

func (s *Server) heartbeatReply(a *agent) heartbeatReply {
	if a.Status == wire.Deleted {
		return heartbeatReply{MasterVersion: a.AgentVersion, AgentStatus: wire.Deleted, Parallel: -1, DockerParallel: -1,
			Envs: map[string]string{}, Props: map[string]any{}}
	}
	worker := published(s.layers(a), a.OS, a.Arch).worker
	if worker == "" {
		worker = s.files.versions().Worker
	}
	reply := heartbeatReply{MasterVersion: a.AgentVersion, SlaveVersion: worker, AgentStatus: a.Status,
		Envs: a.Envs, Gateway: a.Gateway, FileGateway: a.FileGateway, Props: map[string]any{}, Language: a.Language}
	if a.Parallel != nil {
		reply.Parallel = *a.Parallel
	}
	if a.DockerParallel != nil {
		reply.DockerParallel = *a.DockerParallel
	}
	if reply.Envs == nil {
		reply.Envs = map[string]string{}
	}
	if a.IgnoreLocalIPs != "" {
		reply.Props["ignoreLocalIps"] = a.IgnoreLocalIPs
	}
	if a.KeepLogsHours > 0 {
		reply.Props["keepLogsHours"] = a.KeepLogsHours
	}
	if a.EnablePipeline != nil {
		reply.Props["enablePipeline"] = *a.EnablePipeline
	}
	return reply
}
