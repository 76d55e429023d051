package controller

import (
	"cmp"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// RolloutState is where a rollout is.
type RolloutState string

// The states of a rollout. One that is done stays in force: when machines come later, it is rolling again for them.
const (
	InCanary   RolloutState = "canary"      // the first few agents try it
	Rolling    RolloutState = "rolling"     // the others follow, some at a time
	Paused     RolloutState = "paused"      // by the operator: nobody new gets it
	Halted     RolloutState = "halted"      // by itself: too many failed
	Done       RolloutState = "done"        // all that are there have it
	RolledBack RolloutState = "rolled-back" // by the operator: who took it goes back
)

// MemberState is how far one agent is in a rollout.
type MemberState string

// The states of an agent in a rollout. One that is waiting has no record yet.
const (
	Waiting     MemberState = "waiting"     // not offered yet
	Offered     MemberState = "offered"     // it was told
	Downloading MemberState = "downloading" // it has fetched a file
	Upgraded    MemberState = "upgraded"    // it reports the release
	Faulty      MemberState = "failed"      // see the reason
	Left        MemberState = "left"        // a newer rollout took it, or it was deleted
	Reverting   MemberState = "reverting"   // it is to go back to what it had
	Reverted    MemberState = "reverted"    // it reports what it had
)

// recount is how often agents are looked at for a rollout in which nothing goes on.
const recount = 5 * time.Second

// maxOffers is how often one agent is offered the same release before it counts as unable to take it.
const maxOffers = 10

// Offer is what a rollout is made from.
type Offer struct {
	Version     string   `json:"version"`
	Labels      []string `json:"labels,omitempty"`      // an agent must have them all; os=, arch=, host=, id= and project= name its properties
	Canary      *int     `json:"canary,omitempty"`      // how many agents try it first; 1 when nil, 0 is none
	MaxFailures int      `json:"maxFailures,omitempty"` // more than these halt it
	Parallel    int      `json:"parallel,omitempty"`    // agents under way at once; a tenth of the matching ones when 0
	Window      string   `json:"window,omitempty"`      // HH:MM-HH:MM of the controller's day in which it is offered; always when empty
}

// Rollout is the offer of a release to agents, as it is stored.
type Rollout struct {
	ID          int64        `json:"id"`
	Version     string       `json:"version"`
	Labels      []string     `json:"labels,omitempty"`
	Canary      int          `json:"canary"`
	MaxFailures int          `json:"maxFailures"`
	Parallel    int          `json:"parallel,omitempty"`
	Window      string       `json:"window,omitempty"`
	State       RolloutState `json:"state"`
	Reason      string       `json:"reason,omitempty"` // why it is halted
	CreatedAt   int64        `json:"createdAt"`        // milliseconds since 1970, as ChangedAt
	ChangedAt   int64        `json:"changedAt"`        // of its state
	ReplacedBy  int64        `json:"replacedBy,omitempty"`
	Forgiven    int          `json:"forgiven,omitempty"` // failures that the operator has resumed after
	Before      RolloutState `json:"before,omitempty"`   // what a paused one goes on with
	DoneAt      int64        `json:"doneAt,omitempty"`   // when it was done for the first time: new installations get its release since
}

// Member is one agent in a rollout, as it is stored.
type Member struct {
	Agent     string      `json:"agent"`
	State     MemberState `json:"state"`
	Canary    bool        `json:"canary,omitempty"`
	Confirmed bool        `json:"confirmed,omitempty"` // it said that the upgrade is settled, or has run it for a while
	Reached   bool        `json:"reached,omitempty"`   // it has reported the release's agent version
	From      string      `json:"from,omitempty"`      // what it reported before
	Back      string      `json:"back,omitempty"`      // the release that it goes back to; "" is what lies beneath
	Reason    string      `json:"reason,omitempty"`    // why it failed
	Offers    int         `json:"offers,omitempty"`
	OfferedAt int64       `json:"offeredAt,omitempty"` // milliseconds since 1970, as ChangedAt
	ChangedAt int64       `json:"changedAt"`
}

// member is a Member and what is known of it at run time.
type member struct {
	Member
	since     time.Time // last progress, or our own start
	downloads int       // under way
}

// underway reports whether an agent has been given something of which the end is open. It takes up one of the places
// that there are at once.
func (m *member) underway() bool {
	switch m.State {
	case Offered, Downloading:
		return true
	case Upgraded:
		return !m.Confirmed
	case Reverting:
		return m.Offers > 0
	}
	return false
}

// rollout is a Rollout and its agents.
type rollout struct {
	Rollout
	release *release
	members map[string]*member
	tally   map[MemberState]int // of members
	busy    int                 // members under way
	tried   int                 // canaries
	trying  int                 // canaries under way
	survey  survey
	counted time.Time // when all agents were looked at last
	from    int       // of the window, minutes of the day
	until   int
	dirty   map[string]bool // rows that the disk refused; "" is the rollout's own
}

// survey is what was last counted among all agents.
type survey struct {
	matching int
	waiting  int // without a record here
	online   int // of those waiting
}

func newRollout(doc Rollout, of *release) *rollout {
	r := &rollout{Rollout: doc, release: of, members: make(map[string]*member), tally: make(map[MemberState]int), dirty: make(map[string]bool)}
	r.from, r.until, _ = parseWindow(doc.Window)
	return r
}

// parseWindow reads HH:MM-HH:MM.
func parseWindow(text string) (from, until int, err error) {
	if text == "" {
		return 0, 0, nil
	}
	first, last, found := strings.Cut(text, "-")
	a, errA := time.Parse("15:04", first)
	b, errB := time.Parse("15:04", last)
	from, until = a.Hour()*60+a.Minute(), b.Hour()*60+b.Minute()
	if !found || errA != nil || errB != nil || from == until || len(text) != len("00:00-00:00") {
		return 0, 0, fmt.Errorf("window %q: two different times of the day, please, as in 22:00-05:00", clip(text, 40))
	}
	return from, until, nil
}

// inWindow reports whether now is a time of the day at which the rollout may be offered.
func (r *rollout) inWindow(now time.Time) bool {
	if r.from == r.until {
		return true
	}
	at := now.Local().Hour()*60 + now.Local().Minute()
	if r.from < r.until {
		return r.from <= at && at < r.until
	}
	return at >= r.from || at < r.until
}

// inForce reports whether a rollout has a say still.
func (r *rollout) inForce() bool { return r.ReplacedBy == 0 }

// places is how many agents may be under way at once.
func (r *rollout) places() int {
	switch {
	case r.State == InCanary:
		return max(1, r.Canary)
	case r.Parallel > 0:
		return r.Parallel
	}
	return max(1, r.survey.matching/10)
}

// takesNew reports whether one more agent may be offered the release.
func (r *rollout) takesNew(now time.Time) bool {
	switch r.State {
	case InCanary:
		return r.tried < r.Canary && r.inWindow(now)
	case Rolling, Done:
		return r.busy < r.places() && r.inWindow(now)
	}
	return false
}

// mayGo reports whether an agent with a record here may be told (again) what it should have.
func (r *rollout) mayGo(m *member, now time.Time) bool {
	switch m.State {
	case Offered, Downloading:
		return r.State != Halted && r.inWindow(now)
	case Reverting:
		return m.Offers > 0 || r.busy < r.places()
	}
	return true
}

// add counts a member in (1) or out (-1).
func (r *rollout) add(m *member, by int) {
	r.tally[m.State] += by
	if m.underway() {
		r.busy += by
	}
	if m.Canary {
		r.tried += by
		if m.underway() {
			r.trying += by
		}
	}
}

// failures are those that the operator has not resumed after.
func (r *rollout) failures() int { return r.tally[Faulty] - r.Forgiven }

// property matches labels such as os=linux.
func (a *agent) property(label string) bool {
	name, value, found := strings.Cut(label, "=")
	if !found || value == "" {
		return false
	}
	switch name {
	case "os":
		return a.OS == value
	case "arch":
		return a.Arch == value
	case "host":
		return a.HostName == value
	case "id":
		return a.ID == value
	case "project":
		return a.Project == value
	}
	return false
}

// labelled reports whether an agent has all of the labels.
func (a *agent) labelled(labels []string) bool {
	for _, l := range labels {
		if !a.property(l) && !slices.Contains(a.Labels, l) && l != a.OS && l != a.Arch && l != a.HostName && l != a.ID {
			return false
		}
	}
	return true
}

// here reports whether an agent was ever started and not deleted since.
func (a *agent) here() bool { return a.Status == wire.ImportOK || a.Status == wire.ImportException }

// reported is what an agent said of itself last, as a question for upgrades.
func (a *agent) reported() wire.UpgradeCheck {
	return wire.UpgradeCheck{WorkerVersion: a.WorkerVersion, GoAgentVersion: a.AgentVersion, JDKVersion: a.jdk, DockerInit: a.dockerInit}
}

// concerns reports whether a rollout is meant for an agent.
func (r *rollout) concerns(a *agent) bool {
	return a.labelled(r.Labels) && r.release.published(a.OS, a.Arch) != publication{}
}

// governs reports whether what a rollout has for a member is what the member should have.
func (r *rollout) governs(m *member) bool {
	return m != nil && m.State != Faulty && r.State != RolledBack
}

// role is what one rollout is to one agent.
type role struct {
	*rollout
	member *member     // nil when it is waiting
	mine   publication // what no newer rollout has taken over
}

// roles lists the rollouts that an agent has to do with, the newest first.
func (s *Server) roles(a *agent) []role {
	var list []role
	var taken parts
	for _, r := range slices.Backward(s.rollouts) {
		if !r.inForce() {
			continue
		}
		m := r.members[a.ID]
		if m == nil && !r.concerns(a) {
			continue
		}
		p := r.release.published(a.OS, a.Arch)
		list = append(list, role{r, m, p.only(p.parts() &^ taken)})
		switch {
		case r.governs(m):
			taken |= p.parts()
		case m != nil && m.Back != "":
			taken |= s.releases[m.Back].published(a.OS, a.Arch).parts()
		}
	}
	return list
}

// layers are the releases that an agent should have, the topmost first. What is published for all lies beneath.
func (s *Server) layers(a *agent) []*release {
	var list []*release
	for _, r := range slices.Backward(s.rollouts) {
		m := r.members[a.ID]
		switch {
		case !r.inForce() || m == nil:
		case r.governs(m):
			list = append(list, r.release)
		case m.Back != "" && s.releases[m.Back] != nil:
			list = append(list, s.releases[m.Back])
		}
	}
	return list
}

// packageLayers are the releases for a new installation: those of rollouts that were done once, as well.
func (s *Server) packageLayers(id string) []*release {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.agents[id]
	if a == nil {
		return nil
	}
	list := s.layers(a)
	for _, r := range slices.Backward(s.rollouts) {
		if r.inForce() && r.DoneAt != 0 && (r.State == Done || r.State == Rolling) && r.members[id] == nil && a.labelled(r.Labels) {
			list = append(list, r.release)
		}
	}
	return list
}

// published merges layers for one platform.
func published(layers []*release, system, arch string) (p publication) {
	for _, r := range layers {
		p = p.under(r.published(system, arch))
	}
	return p
}

// wanted says which parts of an agent differ from what it should have (protocol §4.1) and can be downloaded.
func (s *Server) wanted(a *agent, in wire.UpgradeCheck) wire.UpgradeItem {
	item := s.files.wanted(a, in)
	p := published(s.layers(a), a.OS, a.Arch)
	over := p.differs(in)
	p.each(func(part parts, text *string) {
		if *text != "" {
			*partOf(&item, part) = *partOf(&over, part)
		}
	})
	return item
}

// partOf is the member of an answer for a part.
func partOf(item *wire.UpgradeItem, part parts) *bool {
	switch part {
	case agentPart:
		return &item.Agent
	case workerPart:
		return &item.Worker
	case jdkPart:
		return &item.JDK
	}
	return &item.DockerInitFile
}

// place finds the rollouts in which an agent that asks for upgrades is under way. If fresh, it gives it a place in the
// newest one that has one left. It reports hold when the agent must not be told anything at present.
func (s *Server) place(a *agent, in wire.UpgradeCheck, fresh bool, now time.Time) (going []role, hold bool) {
	for _, r := range s.roles(a) {
		if m := r.member; m != nil {
			if m.State == Offered || m.State == Downloading || m.State == Reverting {
				going = append(going, r)
				hold = hold || !r.mayGo(m, now)
			}
			continue
		}
		if !fresh || len(a.builds) > 0 || !r.takesNew(now) || !r.mine.differs(in).Any() {
			continue
		}
		r.member = &member{Member: Member{Agent: a.ID, State: Offered, Canary: r.State == InCanary, From: r.came(a)}, since: now}
		r.members[a.ID] = r.member
		r.add(r.member, 1)
		going = append(going, r)
		s.yield(a, now)
		return going, hold
	}
	return going, hold
}

// yield ends the part of older rollouts of which nothing is left for an agent.
func (s *Server) yield(a *agent, now time.Time) {
	for _, r := range s.roles(a) {
		m := r.member
		if m == nil || r.mine.parts() != 0 || m.State == Left || m.State == Faulty || m.State == Reverted {
			continue
		}
		s.move(r.rollout, m, now, func() { m.State, m.Back, m.Reason = Left, "", "a newer rollout took it over" })
	}
}

// came is what an agent goes back to: the version of the first part that a release replaces.
func (r *rollout) came(a *agent) string {
	p := r.release.published(a.OS, a.Arch)
	switch {
	case p.agent != "":
		return a.AgentVersion
	case p.worker != "":
		return a.WorkerVersion
	case p.jdk != "" && len(a.jdk) > 2:
		return strings.TrimSpace(a.jdk[2])
	}
	return ""
}

// move changes a member, counts it anew and enqueues its row.
func (s *Server) move(r *rollout, m *member, now time.Time, change func()) *ticket {
	before := m.State
	r.add(m, -1)
	change()
	r.add(m, 1)
	if m.State != before {
		m.since, m.ChangedAt = now, millis(now)
	}
	return s.saveMember(r, m.Agent)
}

// fail notes that an agent did not take a release.
func (s *Server) fail(r *rollout, m *member, now time.Time, why string) *ticket {
	t := s.move(r, m, now, func() { m.State, m.Reason, m.Confirmed = Faulty, why, false })
	s.log.Warn("Upgrade failed", "rollout", r.ID, "version", r.Version, "agent", m.Agent, "why", why)
	s.advance(r, now)
	return t
}

// told notes an offer that is about to be answered. The last ticket is the newest change.
func (s *Server) told(going []role, now time.Time) (t *ticket) {
	for _, r := range going {
		m := r.member
		if m.Offers >= maxOffers && m.State != Reverting {
			t = s.fail(r.rollout, m, now, fmt.Sprintf("it was offered %s %d times and did not take it", r.Version, m.Offers))
			continue
		}
		t = s.move(r.rollout, m, now, func() {
			m.Offers++
			if m.OfferedAt == 0 || m.Offers == 1 {
				m.OfferedAt, m.ChangedAt, m.since = millis(now), millis(now), now
			}
		})
		if m.Offers == 1 {
			s.log.Info("Upgrade offered", "rollout", r.ID, "version", r.Version, "agent", m.Agent, "canary", m.Canary)
		}
	}
	return t
}

// observe compares what an agent reports with what rollouts have for it.
func (s *Server) observe(a *agent, now time.Time) (t *ticket) {
	if len(s.rollouts) == 0 || a.Arch == "" || !a.here() {
		return nil
	}
	keep := func(next *ticket) {
		if next != nil {
			t = next
		}
	}
	in := a.reported()
	for _, r := range s.roles(a) {
		m, has := r.member, !r.mine.differs(in).Any()
		if m == nil {
			if has && r.mine != (publication{}) && r.State != RolledBack { // it came by it without us
				m = &member{Member: Member{Agent: a.ID, State: Upgraded, Confirmed: true, Reached: true, ChangedAt: millis(now)}, since: now}
				r.members[a.ID] = m
				r.add(m, 1)
				keep(s.saveMember(r.rollout, a.ID))
				s.yield(a, now)
				s.advance(r.rollout, now)
			}
			continue
		}
		new := r.mine.agent != "" && a.AgentVersion == r.Version
		switch m.State {
		case Offered, Downloading:
			switch {
			case has:
				keep(s.move(r.rollout, m, now, func() { m.State, m.Reached = Upgraded, true }))
				s.log.Info("Agent upgraded", "rollout", r.ID, "version", r.Version, "agent", a.ID)
				s.advance(r.rollout, now)
			case new && !m.Reached:
				keep(s.move(r.rollout, m, now, func() { m.Reached, m.since = true, now }))
			case m.Reached && r.mine.agent != "" && !new:
				keep(s.fail(r.rollout, m, now, s.wentBack(r.rollout, a)))
			}
		case Upgraded:
			if r.mine.agent != "" && !new {
				keep(s.fail(r.rollout, m, now, s.wentBack(r.rollout, a)))
			}
		case Faulty:
			if has && r.mine != (publication{}) && r.State != RolledBack {
				keep(s.move(r.rollout, m, now, func() { m.State, m.Reason, m.Reached = Upgraded, "", true }))
				r.Forgiven = min(r.Forgiven, r.tally[Faulty])
				s.log.Info("Agent upgraded after all", "rollout", r.ID, "version", r.Version, "agent", a.ID)
				s.advance(r.rollout, now)
			}
		case Reverted:
			if new { // it was on its way to the new version when it was called back
				keep(s.move(r.rollout, m, now, func() { m.State, m.Offers = Reverting, 0 }))
			}
		case Reverting:
			if item := s.wanted(a, in); !item.Agent && !item.Worker && !item.JDK {
				keep(s.move(r.rollout, m, now, func() { m.State = Reverted }))
				s.advance(r.rollout, now)
			}
		}
	}
	return t
}

// wentBack says that an agent reports another version after it had reported the new one.
func (s *Server) wentBack(r *rollout, a *agent) string {
	return fmt.Sprintf("it reported %s, and then %s: it rolled back by itself", r.Version, clip(a.AgentVersion, 64))
}

// upgradeEnded takes an agent's word for the end of an upgrade (protocol §1.6.5).
func (s *Server) upgradeEnded(a *agent, success bool, now time.Time) (t *ticket) {
	for _, r := range s.roles(a) {
		m := r.member
		if m == nil {
			continue
		}
		new := r.mine.agent == "" || a.AgentVersion == r.Version
		switch {
		case success && (m.State == Upgraded || m.State == Offered || m.State == Downloading) && new && !m.Confirmed:
			t = s.move(r.rollout, m, now, func() { m.Confirmed = true })
			s.advance(r.rollout, now)
		case success:
		case m.State == Reverting && m.Offers > 0 && len(a.builds) == 0 && len(a.running) == 0:
			t = s.fail(r.rollout, m, now, "it says that it could not go back")
		case m.State != Offered && m.State != Downloading && (m.State != Upgraded || new):
		case len(a.builds) > 0 || len(a.running) > 0: // a build came first: it is asked again when that is over
			s.log.Info("Upgrade put off", "rollout", r.ID, "version", r.Version, "agent", a.ID)
			t = s.withdraw(r.rollout, m)
		default:
			t = s.fail(r.rollout, m, now, "it says that the upgrade failed")
		}
	}
	return t
}

// withdraw makes a member a waiting agent again.
func (s *Server) withdraw(r *rollout, m *member) *ticket {
	r.add(m, -1)
	delete(r.members, m.Agent)
	return s.saveMember(r, m.Agent)
}

// fetching notes that an agent downloads a file of a release. Call the function it returns at the end of the download.
func (s *Server) fetching(a *agent, name string) (layers []*release, done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	var busy []*member
	for _, r := range s.roles(a) {
		m := r.member
		if m == nil || !m.underway() {
			continue
		}
		if m.State == Offered && r.release.owns(name) {
			s.move(r.rollout, m, now, func() { m.State = Downloading })
		}
		m.since = now
		m.downloads++
		busy = append(busy, m)
	}
	return s.layers(a), func() {
		if len(busy) == 0 {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, m := range busy {
			m.downloads--
			m.since = time.Now()
		}
	}
}

// count looks at all agents.
func (s *Server) count(r *rollout) {
	r.survey = survey{}
	for _, a := range s.agents {
		if !a.here() || !r.concerns(a) {
			continue
		}
		member := r.members[a.ID] != nil
		if !member && s.takenOver(r, a) {
			continue
		}
		r.survey.matching++
		if member {
			continue
		}
		r.survey.waiting++
		if a.Status == wire.ImportOK {
			r.survey.online++
		}
	}
}

// takenOver reports whether newer rollouts have left nothing of one for an agent.
func (s *Server) takenOver(r *rollout, a *agent) bool {
	var taken parts
	for _, newer := range slices.Backward(s.rollouts) {
		if newer.ID <= r.ID {
			break
		}
		if newer.inForce() && newer.governs(newer.members[a.ID]) {
			taken |= newer.release.published(a.OS, a.Arch).parts()
		}
	}
	return taken != 0 && r.release.published(a.OS, a.Arch).parts()&^taken == 0
}

// enter changes the state of a rollout.
func (s *Server) enter(r *rollout, state RolloutState, why string, now time.Time) *ticket {
	r.State, r.Reason, r.ChangedAt = state, why, millis(now)
	s.log.Info("Rollout is "+string(state), "rollout", r.ID, "version", r.Version, "reason", why)
	return s.saveRollout(r)
}

// advance takes a rollout to its next state if it is time.
func (s *Server) advance(r *rollout, now time.Time) {
	if r.State != RolledBack && r.State != Halted && r.failures() > r.MaxFailures {
		s.enter(r, Halted, fmt.Sprintf("%d failed, %d may: %s", r.failures(), r.MaxFailures, s.lastFailure(r)), now)
		return
	}
	if (r.State == InCanary || r.State == Rolling || r.State == Done) && r.busy == 0 {
		s.count(r)
	}
	if r.State == InCanary && r.trying == 0 && r.survey.matching > 0 && r.tried >= min(r.Canary, r.tried+r.survey.waiting) || r.State == InCanary && r.Canary == 0 {
		s.enter(r, Rolling, "", now)
	}
	switch {
	case r.State == Rolling && r.busy == 0 && r.survey.online == 0:
		if r.DoneAt == 0 {
			r.DoneAt = millis(now)
		}
		s.enter(r, Done, "", now)
		s.replace(r)
	case r.State == Done && (r.busy > 0 || r.survey.online > 0): // somebody came, or came back
		s.enter(r, Rolling, "", now)
	}
	s.invite(r, now)
}

func (s *Server) lastFailure(r *rollout) string {
	var last *member
	for _, m := range r.members {
		if m.State == Faulty && (last == nil || m.ChangedAt > last.ChangedAt || m.ChangedAt == last.ChangedAt && m.Agent < last.Agent) {
			last = m
		}
	}
	if last == nil {
		return ""
	}
	return s.hostOf(last.Agent) + ": " + last.Reason
}

func (s *Server) hostOf(id string) string {
	if a := s.agents[id]; a != nil && a.HostName != "" {
		return a.HostName
	}
	return id
}

// replace takes older rollouts out of force that a newer one, which is done, covers in full.
func (s *Server) replace(by *rollout) {
	if by.State != Done {
		return
	}
	for _, r := range s.rollouts {
		if r.ID >= by.ID || !r.inForce() || r.busy > 0 || r.tally[Reverting] > 0 {
			continue
		}
		narrower := !slices.ContainsFunc(by.Labels, func(l string) bool { return !slices.Contains(r.Labels, l) })
		whole := !slices.ContainsFunc(r.release.Files, func(f ReleaseFile) bool { return !strings.HasSuffix(f.Name, signature) && !by.release.has(f.Name) })
		if narrower && whole && s.allIn(by, r) {
			r.ReplacedBy = by.ID
			s.saveRollout(r)
		}
	}
}

// allIn reports whether every agent of an older rollout has its place in a newer one.
func (s *Server) allIn(by, older *rollout) bool {
	for id, m := range older.members {
		a := s.agents[id]
		if a != nil && a.here() && m.State != Left && m.State != Faulty && m.State != Reverted && !by.governs(by.members[id]) {
			return false
		}
	}
	return true
}

// invite wakes held requests of agents for which there is a place.
func (s *Server) invite(r *rollout, now time.Time) {
	if r.State == RolledBack {
		free := r.places() - r.busy
		for id, m := range r.members {
			if free <= 0 {
				return
			}
			if a := s.agents[id]; m.State == Reverting && m.Offers == 0 && a != nil && a.asksForUpgrades() {
				s.poke(a)
				free--
			}
		}
		return
	}
	if !r.takesNew(now) {
		return
	}
	free := r.places() - r.busy
	if r.State == InCanary {
		free = r.Canary - r.tried
	}
	for _, a := range s.agents {
		if free <= 0 {
			return
		}
		if r.members[a.ID] == nil && a.asksForUpgrades() && now.Sub(a.offeredAt) >= s.opts.UpgradeMark && len(a.builds) == 0 && r.concerns(a) {
			s.poke(a)
			free--
		}
	}
}

// asksForUpgrades reports whether a held request of an agent would take an offer.
func (a *agent) asksForUpgrades() bool {
	return a.Status == wire.ImportOK && slices.ContainsFunc(a.waiters, func(w *waiter) bool { return w.upgrade && !w.woken })
}

// lapseRollouts applies what depends on time.
func (s *Server) lapseRollouts(now time.Time) {
	for _, r := range s.rollouts {
		for id := range r.dirty {
			s.saveMember(r, id)
		}
		if !r.inForce() {
			continue
		}
		if r.busy > 0 {
			for _, m := range r.list() {
				if m.underway() {
					s.lapseMember(r, m, now)
				}
			}
		}
		if r.due(now) {
			s.count(r)
			r.counted = now
			s.replace(r)
		}
		s.advance(r, now)
	}
}

// due reports whether all agents must be counted again: at every tick while something goes on, now and then after that.
func (r *rollout) due(now time.Time) bool {
	switch r.State {
	case InCanary, Rolling:
		return true
	case RolledBack:
		return r.tally[Reverting] > 0
	}
	return now.Sub(r.counted) >= recount
}

// lapseMember applies the limits of one agent that is under way.
func (s *Server) lapseMember(r *rollout, m *member, now time.Time) {
	a := s.agents[m.Agent]
	quiet := now.Sub(m.since)
	switch {
	case a == nil || a.Status == wire.Deleted:
		s.move(r, m, now, func() { m.State, m.Reason = Left, "the agent was deleted" })
	case m.downloads > 0:
	case m.State == Upgraded && a.Status == wire.ImportOK:
		if quiet >= s.opts.UpgradeSoak {
			s.move(r, m, now, func() { m.Confirmed = true })
		}
	case quiet < s.opts.UpgradeWithin:
	case m.State == Upgraded:
		s.fail(r, m, now, fmt.Sprintf("it reported %s and fell silent for %v", r.Version, s.opts.UpgradeWithin))
	case m.State == Offered && (!r.mayGo(m, now) || len(a.builds) > 0):
		s.withdraw(r, m) // it did not take what it was told, and may not be told again now
	case a.Status != wire.ImportOK:
		s.fail(r, m, now, fmt.Sprintf("it was offered %s and is offline since: nothing was heard of it for %v", r.goal(m), s.opts.UpgradeWithin))
	default:
		s.fail(r, m, now, fmt.Sprintf("it was offered %s and reports %s still, after %v without progress", r.goal(m), clip(cmp.Or(a.AgentVersion, "nothing"), 64), s.opts.UpgradeWithin))
	}
}

// goal is what a member is to have, in words.
func (r *rollout) goal(m *member) string {
	if m.State != Reverting {
		return r.Version
	}
	return cmp.Or(m.Back, m.From, "what it had")
}

// needs returns a rollout that needs a release, and for what.
func (s *Server) needs(version string) (*rollout, string) {
	for _, r := range s.rollouts {
		if !r.inForce() {
			continue
		}
		if r.Version == version && (r.State != RolledBack || r.tally[Reverting] > 0) {
			return r, "offers it (" + string(r.State) + ")"
		}
		for _, m := range r.members {
			if m.Back == version {
				return r, "takes agents back to it"
			}
		}
	}
	return nil, ""
}

// saveRollout enqueues the row of a rollout, saveMember that of an agent in it.
func (s *Server) saveRollout(r *rollout) *ticket {
	id, doc := r.ID, jsonText(r.Rollout)
	return s.store.enqueue(func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT INTO rollout (id, doc) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET doc = excluded.doc`, id, doc)
		return err
	}, s.rowSaved(r, ""))
}

func (s *Server) saveMember(r *rollout, agent string) *ticket {
	if agent == "" {
		return s.saveRollout(r)
	}
	id, doc := r.ID, ""
	if m := r.members[agent]; m != nil {
		doc = jsonText(m.Member)
	}
	return s.store.enqueue(func(tx *sql.Tx) error {
		if doc == "" {
			_, err := tx.Exec(`DELETE FROM rollout_agent WHERE rollout = ? AND agent = ?`, id, agent)
			return err
		}
		_, err := tx.Exec(`INSERT INTO rollout_agent (rollout, agent, doc) VALUES (?, ?, ?)
			ON CONFLICT (rollout, agent) DO UPDATE SET doc = excluded.doc`, id, agent, doc)
		return err
	}, s.rowSaved(r, agent))
}

// rowSaved remembers rows that the disk refused; they are written again later.
func (s *Server) rowSaved(r *rollout, row string) func(error) {
	return func(err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err == nil {
			delete(r.dirty, row)
			return
		}
		s.log.Error("A rollout could not be written", "rollout", r.ID, "agent", row, "err", err)
		r.dirty[row] = true
	}
}

// loadRollouts fills the memory. Silence is counted from now.
func (s *Server) loadRollouts(now time.Time) error {
	err := s.store.each(func(scan func(...any) error) error {
		var doc string
		if err := scan(&doc); err != nil {
			return err
		}
		var r Rollout
		if err := json.Unmarshal([]byte(doc), &r); err != nil {
			return err
		}
		of := s.releases[r.Version]
		if of == nil {
			of = newRelease(Release{Version: r.Version}) // rolled back or replaced, and removed since
		}
		s.rollouts, s.lastRollout = append(s.rollouts, newRollout(r, of)), r.ID
		return nil
	}, `SELECT doc FROM rollout ORDER BY id`)
	if err != nil {
		return err
	}
	err = s.store.each(func(scan func(...any) error) error {
		var id int64
		var doc string
		if err := scan(&id, &doc); err != nil {
			return err
		}
		m := &member{since: now}
		if err := json.Unmarshal([]byte(doc), &m.Member); err != nil {
			return err
		}
		if r := s.findRollout(id); r != nil {
			r.members[m.Agent] = m
			r.add(m, 1)
		}
		return nil
	}, `SELECT rollout, doc FROM rollout_agent`)
	for _, r := range s.rollouts {
		s.count(r)
	}
	if err != nil {
		return err
	}
	return s.store.each(func(scan func(...any) error) error { return scan(&s.lastRollout) },
		`SELECT max(?, (SELECT coalesce(max(value), 0) FROM counter WHERE name = ?))`, s.lastRollout, countRollouts)
}

func (s *Server) findRollout(id int64) *rollout {
	i := slices.IndexFunc(s.rollouts, func(r *rollout) bool { return r.ID == id })
	if i < 0 {
		return nil
	}
	return s.rollouts[i]
}
