package controller

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// RolloutInfo is a rollout as the operator API shows it.
type RolloutInfo struct {
	Rollout
	Matching int                 `json:"matching"` // agents that have the labels, and that the release has files for
	Offline  int                 `json:"offline"`  // of those waiting
	Counts   map[MemberState]int `json:"counts"`   // agents by state
	Proven   int                 `json:"proven"`   // of those upgraded: settled, or running the release for a while
	Canaries int                 `json:"canaries"` // offered so far as canaries
	Failures []MemberInfo        `json:"failures"` // at most 100, the newest first
	Agents   []MemberInfo        `json:"agents,omitempty"`
}

// MemberInfo is one agent in a rollout as the operator API shows it.
type MemberInfo struct {
	Member
	HostName string `json:"hostName,omitempty"`
	Version  string `json:"version,omitempty"` // that it reports now
}

// AgentUpgrade is what an agent has to do with rollouts now.
type AgentUpgrade struct {
	Rollout int64       `json:"rollout"`
	Version string      `json:"version"`
	State   MemberState `json:"state"`
	Reason  string      `json:"reason,omitempty"`
}

// shownFailures bounds a list of failures.
const shownFailures = 100

func (s *Server) memberInfo(m *member) MemberInfo {
	info := MemberInfo{Member: m.Member}
	if a := s.agents[m.Agent]; a != nil {
		info.HostName, info.Version = a.HostName, a.AgentVersion
	}
	return info
}

// rolloutInfo makes the view of a rollout, with all its agents if asked.
func (s *Server) rolloutInfo(r *rollout, agents bool) RolloutInfo {
	s.count(r)
	info := RolloutInfo{Rollout: r.Rollout, Matching: r.survey.matching, Offline: r.survey.waiting - r.survey.online,
		Counts: map[MemberState]int{Waiting: r.survey.waiting}, Canaries: r.tried, Failures: []MemberInfo{}}
	for state, n := range r.tally {
		if n > 0 {
			info.Counts[state] = n
		}
	}
	for _, m := range r.members {
		if m.State == Upgraded && m.Confirmed {
			info.Proven++
		}
		if m.State == Faulty {
			info.Failures = append(info.Failures, s.memberInfo(m))
		}
		if agents {
			info.Agents = append(info.Agents, s.memberInfo(m))
		}
	}
	slices.SortFunc(info.Failures, func(x, y MemberInfo) int {
		if x.ChangedAt != y.ChangedAt {
			return int(min(1, max(-1, y.ChangedAt-x.ChangedAt)))
		}
		return strings.Compare(x.Agent, y.Agent)
	})
	info.Failures = info.Failures[:min(len(info.Failures), shownFailures)]
	slices.SortFunc(info.Agents, func(x, y MemberInfo) int { return strings.Compare(x.Agent, y.Agent) })
	return info
}

// agentUpgrade is the newest rollout that an agent has to do with, nil when there is none.
func (s *Server) agentUpgrade(a *agent) *AgentUpgrade {
	for _, r := range s.roles(a) {
		if m := r.member; m != nil && m.State != Left {
			return &AgentUpgrade{Rollout: r.ID, Version: r.Version, State: m.State, Reason: m.Reason}
		}
		if r.member == nil && a.here() && r.State != RolledBack && r.mine != (publication{}) {
			return &AgentUpgrade{Rollout: r.ID, Version: r.Version, State: Waiting}
		}
	}
	return nil
}

// Rollouts lists all rollouts, the newest first.
func (s *Server) Rollouts() []RolloutInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]RolloutInfo, 0, len(s.rollouts))
	for _, r := range slices.Backward(s.rollouts) {
		list = append(list, s.rolloutInfo(r, false))
	}
	return list
}

// FindRollout returns one rollout with its agents, ErrNotFound when there is none. Those that wait are only counted.
func (s *Server) FindRollout(id int64) (RolloutInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.findRollout(id)
	if r == nil {
		return RolloutInfo{}, fmt.Errorf("rollout %d: %w", id, ErrNotFound)
	}
	return s.rolloutInfo(r, true), nil
}

func refusal(format string, args ...any) error {
	return &InputError{Err: fmt.Errorf(format, args...)}
}

// Offer begins a rollout. It is on disk when Offer returns.
func (s *Server) Offer(o Offer) (RolloutInfo, error) {
	canary := 1
	if o.Canary != nil {
		canary = *o.Canary
	}
	for name, n := range map[string]int{"canary": canary, "maxFailures": o.MaxFailures, "parallel": o.Parallel} {
		if n < 0 || n > 1_000_000 {
			return RolloutInfo{}, refusal("%s %d: between 0 and 1000000, please", name, n)
		}
	}
	if err := checkLabels(o.Labels); err != nil {
		return RolloutInfo{}, &InputError{Err: err}
	}
	if _, _, err := parseWindow(o.Window); err != nil {
		return RolloutInfo{}, &InputError{Err: err}
	}
	labels := slices.Compact(slices.Sorted(slices.Values(o.Labels)))
	now := time.Now()
	s.mu.Lock()
	r, err := s.begin(Rollout{Version: o.Version, Labels: labels, Canary: canary, MaxFailures: o.MaxFailures, Parallel: o.Parallel,
		Window: o.Window, State: InCanary, CreatedAt: millis(now), ChangedAt: millis(now)})
	if err != nil {
		s.mu.Unlock()
		return RolloutInfo{}, err
	}
	t := s.saveRollout(r)
	s.mu.Unlock()
	if err := t.wait(); err != nil {
		return RolloutInfo{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at, _ := slices.BinarySearchFunc(s.rollouts, r, func(x, y *rollout) int { return int(x.ID - y.ID) })
	s.rollouts = slices.Insert(s.rollouts, at, r)
	s.log.Info("Rollout begins", "rollout", r.ID, "version", r.Version, "labels", strings.Join(labels, ","), "matching", r.survey.matching)
	for _, a := range s.agents {
		if a.here() && r.concerns(a) {
			s.observe(a, now) // some may have it
		}
	}
	s.advance(r, now)
	return s.rolloutInfo(r, false), nil
}

// begin checks what a rollout would be, and gives it its number.
func (s *Server) begin(doc Rollout) (*rollout, error) {
	if s.closed {
		return nil, errClosed
	}
	of := s.releases[doc.Version]
	if of == nil {
		return nil, fmt.Errorf("release %q: %w", clip(doc.Version, 64), ErrNotFound)
	}
	for _, other := range s.rollouts {
		if other.inForce() && other.Version == doc.Version && other.State != RolledBack && slices.Equal(other.Labels, doc.Labels) {
			return nil, refusal("rollout %d offers %s to the same agents already: it is %s", other.ID, doc.Version, other.State)
		}
	}
	doc.ID = s.lastRollout + 1
	r := newRollout(doc, of)
	s.count(r)
	if r.survey.matching == 0 {
		labelled := 0
		for _, a := range s.agents {
			if a.here() && a.labelled(doc.Labels) {
				labelled++
			}
		}
		switch {
		case labelled > 0:
			return nil, refusal("%s has no files for the platforms of the %d agents that match", doc.Version, labelled)
		case len(doc.Labels) > 0:
			return nil, refusal("no agent has all of the labels %s: devopsController agents shows what they have", strings.Join(doc.Labels, ","))
		}
	}
	s.lastRollout = r.ID
	return r, nil
}

// act changes a rollout under the lock and waits until that is on disk.
func (s *Server) act(id int64, change func(r *rollout, now time.Time) (*ticket, error)) (RolloutInfo, error) {
	s.mu.Lock()
	r := s.findRollout(id)
	if r == nil {
		s.mu.Unlock()
		return RolloutInfo{}, fmt.Errorf("rollout %d: %w", id, ErrNotFound)
	}
	if !r.inForce() {
		s.mu.Unlock()
		return RolloutInfo{}, refusal("rollout %d was replaced by rollout %d", r.ID, r.ReplacedBy)
	}
	now := time.Now()
	t, err := change(r, now)
	if err != nil {
		s.mu.Unlock()
		return RolloutInfo{}, err
	}
	s.advance(r, now)
	info := s.rolloutInfo(r, false)
	s.mu.Unlock()
	return info, t.settle()
}

// Pause offers a release to nobody new. Agents that were offered it finish.
func (s *Server) Pause(id int64) (RolloutInfo, error) {
	return s.act(id, func(r *rollout, now time.Time) (*ticket, error) {
		switch r.State {
		case InCanary, Rolling, Done:
			r.Before = r.State
			return s.enter(r, Paused, "", now), nil
		}
		return nil, refusal("rollout %d is %s: there is nothing to pause", r.ID, r.State)
	})
}

// Resume goes on: a paused rollout where it was, one in its canaries or halted with all the others. Failures so far
// are forgiven; with retry, agents that failed are offered the release again.
func (s *Server) Resume(id int64, retry bool) (RolloutInfo, error) {
	return s.act(id, func(r *rollout, now time.Time) (*ticket, error) {
		next := Rolling
		switch r.State {
		case Paused:
			next = r.Before
		case InCanary, Halted:
		case Rolling, Done:
			if !retry || r.tally[Faulty] == 0 {
				return nil, refusal("rollout %d is %s: there is nothing to resume", r.ID, r.State)
			}
		case RolledBack:
			return nil, refusal("rollout %d is rolled back: offer the release again", r.ID)
		}
		if retry {
			for _, m := range r.list() {
				if m.State == Faulty {
					s.withdraw(r, m)
				}
			}
		}
		r.Forgiven = r.tally[Faulty]
		return s.enter(r, next, "", now), nil
	})
}

// list is a snapshot of the members.
func (r *rollout) list() []*member {
	list := make([]*member, 0, len(r.members))
	for _, m := range r.members {
		list = append(list, m)
	}
	return list
}

// RollBack offers what they had before to all agents that took a release or were about to: a version, or for each its
// own when that is "". A version that is not here any more is an error, and nothing changes.
func (s *Server) RollBack(id int64, version string) (RolloutInfo, error) {
	return s.act(id, func(r *rollout, now time.Time) (*ticket, error) {
		if r.State == RolledBack {
			return nil, refusal("rollout %d is rolled back already", r.ID)
		}
		if version == r.Version {
			return nil, refusal("%s is what is to be rolled back", version)
		}
		if version != "" && s.releases[version] == nil {
			return nil, fmt.Errorf("release %q: %w", clip(version, 64), ErrNotFound)
		}
		back := make(map[*member]string)
		missing := make(map[string]int)
		for _, m := range r.list() {
			a := s.agents[m.Agent]
			if a == nil || !a.here() || m.State == Left || version == "" && m.From == "" {
				continue // nobody knows what it had: it did not get this from us
			}
			to, found := s.before(r, m, a, version)
			if !found {
				missing[version+m.From]++
				continue
			}
			back[m] = to
		}
		if len(missing) > 0 {
			return nil, missingError(missing, version)
		}
		r.Before = ""
		last := s.enter(r, RolledBack, "", now)
		for m, to := range back {
			last = s.move(r, m, now, func() {
				m.State, m.Back, m.Offers, m.OfferedAt, m.Confirmed, m.Reason = Reverting, to, 0, 0, false, ""
			})
		}
		for m := range back {
			if t := s.observe(s.agents[m.Agent], now); t != nil {
				last = t // some never took it
			}
		}
		return last, nil
	})
}

// before finds the release that an agent goes back to, "" when that is what lies beneath the rollout.
func (s *Server) before(r *rollout, m *member, a *agent, version string) (to string, found bool) {
	had := r.release.published(a.OS, a.Arch)
	if version != "" {
		p := s.releases[version].published(a.OS, a.Arch)
		return version, p != publication{}
	}
	pick := func(p publication) string {
		switch {
		case had.agent != "":
			return p.agent
		case had.worker != "":
			return p.worker
		}
		return p.jdk
	}
	if of := s.releases[m.From]; of != nil && pick(of.published(a.OS, a.Arch)) == m.From {
		return m.From, true
	}
	for name, of := range s.releases {
		if name != r.Version && pick(of.published(a.OS, a.Arch)) == m.From {
			return name, true
		}
	}
	v := s.files.versions()
	if pick(publication{agent: v.Agent, worker: v.Worker, jdk: v.JDK}) == m.From {
		return "", true
	}
	in := a.reported()
	now := pick(publication{agent: in.GoAgentVersion, worker: in.WorkerVersion})
	return "", now == m.From && m.State != Downloading // it is there
}

func missingError(missing map[string]int, version string) error {
	var list []string
	for from, n := range missing {
		agents := "1 agent"
		if n > 1 {
			agents = fmt.Sprintf("%d agents", n)
		}
		list = append(list, fmt.Sprintf("%s (%s)", from, agents))
	}
	slices.Sort(list)
	if version != "" {
		return refusal("%s has no files for the platform of some agents", version)
	}
	return refusal("what they had before is not here: %s; add it with devopsController upgrade add, or name a version to go back to", strings.Join(list, ", "))
}

// upgradeRoutes adds the operator's calls about releases and rollouts.
func (s *Server) upgradeRoutes(add func(pattern string, h http.HandlerFunc)) {
	add("GET /objects/{digest}", func(w http.ResponseWriter, r *http.Request) {
		object, err := s.findUpload(r.PathValue("digest"))
		reply(w, object, err)
	})
	add("PUT /objects/{digest}", func(w http.ResponseWriter, r *http.Request) {
		object, err := s.Upload(r.PathValue("digest"), http.MaxBytesReader(w, r.Body, maxObject))
		var long *http.MaxBytesError
		if errors.As(err, &long) {
			err = refusal("the file is longer than %d bytes", long.Limit)
		}
		reply(w, object, err)
	})
	add("GET /releases", func(w http.ResponseWriter, _ *http.Request) { reply(w, s.Releases(), nil) })
	add("POST /releases", act(func(_ *http.Request, in NewRelease) (Release, error) { return s.AddRelease(in) }))
	add("DELETE /releases/{version}", func(w http.ResponseWriter, r *http.Request) {
		reply(w, struct{}{}, s.RemoveRelease(r.PathValue("version")))
	})
	add("GET /rollouts", func(w http.ResponseWriter, _ *http.Request) { reply(w, s.Rollouts(), nil) })
	add("POST /rollouts", act(func(_ *http.Request, in Offer) (RolloutInfo, error) { return s.Offer(in) }))
	add("GET /rollouts/{id}", func(w http.ResponseWriter, r *http.Request) {
		info, err := s.FindRollout(rolloutID(r))
		reply(w, info, err)
	})
	add("POST /rollouts/{id}/pause", func(w http.ResponseWriter, r *http.Request) {
		info, err := s.Pause(rolloutID(r))
		reply(w, info, err)
	})
	type resumption struct {
		Retry bool `json:"retry"`
	}
	add("POST /rollouts/{id}/resume", act(func(r *http.Request, in resumption) (RolloutInfo, error) { return s.Resume(rolloutID(r), in.Retry) }))
	type wayBack struct {
		Version string `json:"version"`
	}
	add("POST /rollouts/{id}/rollback", act(func(r *http.Request, in wayBack) (RolloutInfo, error) { return s.RollBack(rolloutID(r), in.Version) }))
}

// rolloutID is the number in a path; 0, which no rollout has, when it is none.
func rolloutID(r *http.Request) int64 {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		return 0
	}
	return id
}
