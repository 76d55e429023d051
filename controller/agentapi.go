package controller

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// service is who answers a wrong secret: environment with 401, dispatch with 404 (protocol §1.8).
type service int

const (
	environment service = http.StatusUnauthorized
	dispatching service = http.StatusNotFound
)

// agentHandler answers a call of an agent whose secret was right.
type agentHandler func(w http.ResponseWriter, r *http.Request, a *agent)

// agentCall authenticates an agent before a handler.
func (s *Server) agentCall(from service, next agentHandler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id, err := identity(r)
		if err != nil {
			refuse(w, http.StatusBadRequest, err.Error())
			return
		}
		s.mu.Lock()
		a := s.known(id)
		s.mu.Unlock()
		if a == nil {
			refuse(w, int(from), "agent and secret do not match")
			return
		}
		next(w, r, a)
	}
}

// hold calls try, under the lock, until it has something to say, the wait is over, the client is gone or the
// controller stops. Meanwhile the dispatcher may hand a build over, if wanted; try gets it, once. The agent counts as
// alive as long as it is held. It reports false when the client is gone; nothing was taken from the queue then.
func (s *Server) hold(ctx context.Context, a *agent, wants, upgrade bool, wait time.Duration, try func(now time.Time, given *build, saved *ticket) bool) bool {
	asked := time.Now()
	w := &waiter{agent: a, wants: wants, upgrade: upgrade}
	var place *list.Element
	s.mu.Lock()
	defer s.mu.Unlock()
	if wait > 0 {
		a.pacedTill = asked.Add(wait + 2*maxWait)
	}
	defer func() {
		if i := slices.Index(a.waiters, w); i >= 0 {
			a.waiters = slices.Delete(a.waiters, i, i+1)
			a.held--
			a.seen = time.Now()
		}
		if place != nil {
			s.waiting.Remove(place)
		}
	}()
	for {
		now := time.Now()
		given, saved := w.given.build, w.saved
		if given != nil && (given.State != Handed || given.HandOuts != w.given.times) {
			given = nil // cancelled, or re-queued, since
		}
		if given != nil && (ctx.Err() != nil || a.Status != wire.ImportOK) {
			given.HandOuts--
			s.requeue(given, "its agent hung up")
			given = nil
		}
		w.given, w.saved = handed{}, nil
		if ctx.Err() != nil {
			return false
		}
		if try(now, given, saved) || !now.Before(asked.Add(wait)) || s.stopping() || s.overdue(a, asked, now) {
			return true
		}
		w.wake, w.woken = make(chan struct{}), false
		if !slices.Contains(a.waiters, w) {
			a.waiters = append(a.waiters, w)
			a.held++
			if wants {
				place = s.waiting.PushBack(w)
			}
		}
		wake, until := w.wake, s.nextOverdue(a, asked, asked.Add(wait))
		s.mu.Unlock()
		yieldSlot(ctx)
		timer := time.NewTimer(time.Until(until))
		select {
		case <-wake:
		case <-timer.C:
		case <-ctx.Done():
		case <-s.closing:
		}
		timer.Stop()
		s.mu.Lock()
	}
}

func (s *Server) stopping() bool {
	select {
	case <-s.closing:
		return true
	default:
		return false
	}
}

// startup is POST E/startup (protocol §1.6.1).
func (s *Server) startup(w http.ResponseWriter, r *http.Request, a *agent) {
	var in wire.Startup
	if !read(w, r, &in, "hostname", "hostIp", "detectOS") {
		return
	}
	s.mu.Lock()
	if a.Status == wire.Deleted {
		s.mu.Unlock()
		ok(w, wire.Deleted)
		return
	}
	now := time.Now()
	said := wire.ImportOK
	if a.Status == wire.UnImport || a.Status == wire.UnImportOK {
		said = wire.UnImportOK
		s.log.Info("Agent imported", "agent", a.ID, "host", in.HostName, "os", in.DetectOS)
	}
	a.Status, a.seen = wire.ImportOK, now
	a.HostName, a.IP, a.AgentVersion, a.WorkerVersion = clip(in.HostName, 255), clip(in.HostIP, 64), clip(in.MasterVersion, 64), clip(in.Version, 64)
	if slices.Contains([]string{"linux", "macos", "windows"}, in.DetectOS) {
		a.OS = in.DetectOS
	}
	a.LinkHash, a.LinkEnds = "", 0 // the package address has done its duty
	a.ExitError = nil
	a.told = ""
	seen := s.observe(a, now)
	t := s.saveAgent(a)
	s.poke(a)
	s.dispatch(now)
	s.mu.Unlock()
	if err := errors.Join(t.wait(), seen.settle()); err != nil {
		refuseUnwritten(w, "the record", err)
		return
	}
	ok(w, said)
}

// status is GET E/status (protocol §1.6.2).
func (s *Server) status(w http.ResponseWriter, _ *http.Request, a *agent) {
	s.mu.Lock()
	in := s.spaced(a, "status", s.opts.StatusSpacing, time.Now())
	status := a.Status
	s.mu.Unlock()
	if !in {
		tooOften(w)
		return
	}
	ok(w, status)
}

// heartbeatMembers must be in every heartbeat (protocol §1.6.3: never null).
var heartbeatMembers = []string{"masterVersion", "slaveVersion", "hostName", "agentIp", "parallelTaskCount", "agentInstallPath", "startedUser", "props.arch"}

// newHeartbeat is POST E/agents/newHeartbeat (protocol §1.6.3).
func (s *Server) newHeartbeat(w http.ResponseWriter, r *http.Request, a *agent) {
	var in wire.Heartbeat
	if !read(w, r, &in, heartbeatMembers...) {
		return
	}
	now := time.Now()
	s.mu.Lock()
	if !s.spaced(a, "heartbeat", s.opts.HeartbeatSpacing, now) {
		s.mu.Unlock()
		tooOften(w)
		return
	}
	seen := s.beat(a, in, now)
	reply := s.heartbeatReply(a)
	s.mu.Unlock()
	_ = seen.settle() // what the disk refuses is written later
	ok(w, reply)
}

// beat takes a heartbeat of either generation. The ticket is of what it changed in rollouts, nil when that is nothing.
func (s *Server) beat(a *agent, in wire.Heartbeat, now time.Time) *ticket {
	if a.Status == wire.Deleted {
		return nil
	}
	s.report(a, in)
	s.alive(a, now)
	s.lost(a, now)
	return s.observe(a, now)
}

// claim is GET D/startup?buildType= (protocol §1.6.7).
func (s *Server) claim(w http.ResponseWriter, r *http.Request, a *agent) {
	wants := takes(wire.BuildKind(r.URL.Query().Get("buildType")))
	var job *wire.Build
	var out handed
	var saved *ticket
	var status wire.AgentStatus
	there := s.hold(r.Context(), a, wants, false, preferredWait(w, r), func(now time.Time, given *build, t *ticket) bool {
		status = a.Status
		if given == nil && wants {
			given, t = s.take(a, now)
		}
		if given != nil {
			job, saved, out = given.job(), t, handed{given, given.HandOuts}
		}
		return job != nil || status == wire.Deleted || status == wire.UnImport
	})
	switch {
	case !there:
	case status == wire.UnImport:
		refuse(w, http.StatusNotFound, "this agent has not been imported yet")
	case job == nil:
		okAgent(w, status, nil)
	case s.committed(out, saved):
		s.deliver(w, r, out, agentResult{result: result{Data: job}, AgentStatus: &status})
	default:
		notNow(w, "the hand-out could not be recorded")
	}
}

// committed waits until a hand-out is on disk; one that cannot be recorded is taken back.
func (s *Server) committed(out handed, saved *ticket) bool {
	if err := saved.wait(); err != nil {
		s.takeBack(out, "the hand-out could not be recorded")
		return false
	}
	return true
}

// deliver sends an answer with a build in it; when the connection does not take it, the build goes back at once.
func (s *Server) deliver(w http.ResponseWriter, r *http.Request, out handed, v any) bool {
	err := r.Context().Err()
	if err == nil {
		err = send(w, http.StatusOK, v)
	}
	if err != nil && out.build != nil {
		s.takeBack(out, "the answer did not reach its agent")
	}
	return err == nil
}

type askReply struct {
	Heartbeat *heartbeatReply   `json:"heartbeat"`
	Build     *wire.Build       `json:"build"`
	Upgrade   *wire.UpgradeItem `json:"upgrade"`
	Pipeline  *wire.Pipeline    `json:"pipeline"`
	Debug     *wire.Debug       `json:"debug"`
}

// ask is POST D/ask (protocol §1.7.2).
func (s *Server) ask(w http.ResponseWriter, r *http.Request) {
	id, err := identity(r)
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	var in wire.Ask
	if !read(w, r, &in, "askEnable.build", "askEnable.upgrade", "askEnable.dockerDebug", "askEnable.pipeline", "heartbeat.masterVersion") {
		return
	}
	wait := preferredWait(w, r)
	now := time.Now()
	s.mu.Lock()
	a := s.known(id)
	if a == nil {
		s.mu.Unlock()
		if in.Enable.Upgrade {
			answer(w, http.StatusOK, agentResult{result: result{Data: askReply{Upgrade: &wire.UpgradeItem{}}}})
		} else {
			notNow(w, "data is null")
		}
		return
	}
	if wait == 0 && !s.spaced(a, "ask", s.opts.AskSpacing, now) {
		s.mu.Unlock()
		tooOften(w)
		return
	}
	seen := s.beat(a, in.Heartbeat, now)
	s.mu.Unlock()
	_ = seen.settle() // what the disk refuses is written later

	var reply askReply
	var out handed
	var saved *ticket
	var due offer
	var status wire.AgentStatus
	var told string
	wants := takes(in.Enable.Build)
	there := s.hold(r.Context(), a, wants, in.Enable.Upgrade && in.Upgrade != nil, wait, func(now time.Time, given *build, t *ticket) bool {
		status = a.Status
		beat := s.heartbeatReply(a)
		told = jsonText(beat)
		reply = askReply{Heartbeat: &beat}
		if in.Enable.Upgrade {
			reply.Upgrade = &wire.UpgradeItem{}
		}
		news := told != a.told || status == wire.Deleted
		if status != wire.ImportOK {
			return news
		}
		if given == nil && wants {
			given, t = s.take(a, now)
		}
		if given != nil {
			reply.Build, saved, out = given.job(), t, handed{given, given.HandOuts}
			news = true
		}
		if in.Enable.Upgrade && in.Upgrade != nil && given == nil { // with a build, the upgrade would be refused (protocol §1.7.3)
			if due = s.offer(a, *in.Upgrade, false, now); due.item.Any() {
				*reply.Upgrade = due.item
				news = true
			}
		}
		if in.Enable.Pipeline {
			if reply.Pipeline = s.nextScript(a, now); reply.Pipeline != nil {
				news = true
			}
		}
		return news
	})
	if !there {
		return
	}
	if reply.Build != nil && !s.committed(out, saved) {
		reply.Build, out = nil, handed{}
	}
	if due.item.Any() && !s.recorded(a, due) {
		reply.Upgrade, due = &wire.UpgradeItem{}, offer{}
	}
	if s.deliver(w, r, out, agentResult{result: result{Data: reply}, AgentStatus: &status}) {
		s.mu.Lock()
		a.told = told
		s.mu.Unlock()
	} else if due.item.Any() {
		s.mu.Lock()
		a.offeredAt, a.upgrading = time.Time{}, time.Time{} // it may be told at once
		s.mu.Unlock()
	}
}

// offer is what an agent is told to upgrade, and the rollouts because of which it is.
type offer struct {
	item  wire.UpgradeItem
	going []role
	saved *ticket // nil when nothing had to be written
}

// offer says what an agent should upgrade, at most once a minute for the same parts: an agent that cannot is not to be
// driven round in circles. What is published for all is said as often as an agent asks, if always.
func (s *Server) offer(a *agent, in wire.UpgradeCheck, always bool, now time.Time) (o offer) {
	lately := now.Sub(a.offeredAt) < s.opts.UpgradeMark
	going, hold := s.place(a, in, !lately, now)
	if hold {
		return offer{}
	}
	item := s.wanted(a, in)
	if !item.Any() || lately && item == a.offered && (!always || len(s.layers(a)) > 0) {
		return offer{}
	}
	saved := s.told(going, now)
	if item = s.wanted(a, in); !item.Any() { // it was offered too often
		return offer{}
	}
	a.offered, a.offeredAt = item, now
	s.markUpgrading(a, item, now)
	return offer{item, going, saved}
}

// recorded waits until an offer is on disk. One that cannot be recorded is taken back.
func (s *Server) recorded(a *agent, o offer) bool {
	if o.saved.settle() == nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range o.going {
		if m := r.member; m.State == Offered && m.Offers == 1 && r.members[a.ID] == m {
			s.withdraw(r.rollout, m)
		}
	}
	a.offeredAt, a.upgrading = time.Time{}, time.Time{}
	return false
}

// markUpgrading keeps builds away for a minute (protocol §4.1).
func (s *Server) markUpgrading(a *agent, item wire.UpgradeItem, now time.Time) {
	if item.Agent || item.Worker || item.JDK {
		a.upgrading = now.Add(s.opts.UpgradeMark)
	}
}

// upgradeNew is POST D/upgradeNew (protocol §1.6.4).
func (s *Server) upgradeNew(w http.ResponseWriter, r *http.Request, a *agent) {
	var in wire.UpgradeCheck
	if !read(w, r, &in) {
		return
	}
	s.mu.Lock()
	status := a.Status
	var o offer
	if status == wire.ImportOK {
		o = s.offer(a, in, true, time.Now())
	}
	s.mu.Unlock()
	if !s.recorded(a, o) {
		o.item = wire.UpgradeItem{}
	}
	okAgent(w, status, o.item)
}

// upgradeOld is GET D/upgrade?version=&masterVersion=, the variant before upgradeNew (protocol §1.6.4).
func (s *Server) upgradeOld(w http.ResponseWriter, r *http.Request, a *agent) {
	q := r.URL.Query()
	s.mu.Lock()
	status := a.Status
	item := s.wanted(a, wire.UpgradeCheck{WorkerVersion: q.Get("version"), GoAgentVersion: q.Get("masterVersion"), JDKVersion: a.jdk})
	s.mu.Unlock()
	okAgent(w, status, status == wire.ImportOK && (item.Agent || item.Worker))
}

// upgradeDone is DELETE D/upgrade?success= (protocol §1.6.5).
func (s *Server) upgradeDone(w http.ResponseWriter, r *http.Request, a *agent) {
	s.mu.Lock()
	status := a.Status
	a.upgrading = time.Time{}
	success, now := r.URL.Query().Get("success") == "true", time.Now()
	s.log.Info("Upgrade ended", "agent", a.ID, "success", success)
	seen := s.upgradeEnded(a, success, now)
	s.dispatch(now)
	s.mu.Unlock()
	_ = seen.settle() // what the disk refuses is written later
	okAgent(w, status, status != wire.Deleted)
}

// workerBuildFinish is POST D/workerBuildFinish (protocol §1.6.8).
func (s *Server) workerBuildFinish(w http.ResponseWriter, r *http.Request, a *agent) {
	var in wire.Finish
	if !read(w, r, &in, "projectId", "buildId", "vmSeqId", "workspace", "success") {
		return
	}
	b, err := s.find(in.ID)
	if err != nil {
		ok(w, false)
		return
	}
	s.mu.Lock()
	if b.Agent != a.ID {
		s.mu.Unlock()
		ok(w, false)
		return
	}
	t := s.finished(b, a, in, time.Now())
	s.mu.Unlock()
	if err := t.wait(); err != nil {
		refuseUnwritten(w, "the report", err)
		return
	}
	ok(w, true)
}

// finished takes an agent's report. A build that the worker has ended is only annotated. One that it has not is
// over now: its worker is dead (protocol §6.12). One that went back to the queue stays there.
func (s *Server) finished(b *build, a *agent, in wire.Finish, now time.Time) *ticket {
	report := &AgentReport{Agent: a.ID, Success: in.Success, Message: clip(b.mask(in.Message), 4000), At: millis(now)}
	why := report.Message
	if in.Error != nil {
		report.Code = in.Error.Code
		if why == "" {
			why = clip(b.mask(in.Error.Message), 4000)
		}
		why = strings.TrimSpace(fmt.Sprintf("%s (code %d)", why, in.Error.Code))
	}
	if b.Report == nil || !b.Report.Success {
		b.Report = report
	}
	began := b.State == Running
	switch {
	case b.State != Handed && !began:
		return s.save(b)
	case b.CancelRequested:
		return s.finish(b, Cancelled, "", now)
	case in.Success && began && b.done(): // only its last call got lost
		state, message := b.verdict("")
		return s.finish(b, state, message, now)
	case in.Success && began:
		message := "its worker ended without reporting the end of the build"
		if why != "" {
			message += ": " + why
		}
		return s.finish(b, Failed, message, now)
	case in.Success:
		return s.finish(b, Failed, "its worker ended without ever reporting its start", now)
	case began:
		return s.finish(b, Failed, "its worker died: "+why, now)
	}
	return s.finish(b, Failed, "its worker did not start: "+why, now)
}

// metrics takes measurements in either format and keeps the last of them (protocol §1.6.13).
func (s *Server) metrics(w http.ResponseWriter, r *http.Request, a *agent) {
	data, read := readBody(w, r)
	if !read {
		return
	}
	cpu, memory := shares(data)
	s.mu.Lock()
	a.sample, a.sampledAt = data, time.Now()
	a.past.measure(a.sampledAt, cpu, memory)
	s.mu.Unlock()
	ok(w, true)
}

// Sample returns an agent's last metrics as it sent them, and when.
func (s *Server) Sample(agent string) ([]byte, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.agents[agent]; a != nil {
		return a.sample, a.sampledAt
	}
	return nil, time.Time{}
}
