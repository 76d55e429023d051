package job

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// Slots is the one door to running builds: capacity, and "is anything building". A seat is taken before a build is
// asked for, so that more than the limit can never run (weaknesses W-19, W-20).
//
// Host builds and docker builds have a limit each; 0 means no limit (protocol §3.6.1).
type Slots struct {
	mu     sync.Mutex
	limit  [2]int
	seats  [2]int // taken: reserved, claimed or running
	builds map[*Slot]struct{}
	shut   bool          // by Exclusive: nothing may start
	freed  chan struct{} // closed and replaced when a build gives its seat back or a limit changes
}

type kind int

const (
	host kind = iota
	docker
)

// NewSlots makes the door with its two limits.
func NewSlots(hostLimit, dockerLimit int) *Slots {
	return &Slots{limit: [2]int{hostLimit, dockerLimit}, builds: map[*Slot]struct{}{}, freed: make(chan struct{})}
}

// SetLimits takes over new limits. Builds above a lowered limit go on; no new one starts until they are below it.
func (s *Slots) SetLimits(hostLimit, dockerLimit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if next := [2]int{hostLimit, dockerLimit}; next != s.limit {
		s.limit = next
		s.signal()
	}
}

func (s *Slots) signal() {
	close(s.freed)
	s.freed = make(chan struct{})
}

// Wake closes Freed although nothing is free: who waits for it looks again.
func (s *Slots) Wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signal()
}

// Freed is closed when a build gives its seat back or a limit changes after this call, or somebody calls Wake.
func (s *Slots) Freed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.freed
}

func (s *Slots) free(k kind) bool { return !s.shut && (s.limit[k] == 0 || s.seats[k] < s.limit[k]) }

// Exclusive closes the door for as long as an upgrade replaces what builds use: Reserve gives nothing until release is called.
// It reports false when a build is claimed or runs, when a seat is reserved, because the server may be handing out a build
// for it in this moment, or when somebody else has closed the door (statements 92, 93). Release may be called more than once.
func (s *Slots) Exclusive() (release func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut || len(s.builds) > 0 || s.seats != [2]int{} {
		return func() {}, false
	}
	s.shut = true
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.shut = false
		s.signal()
	}), true
}

// Reservation is at most one seat of each kind, held while the server is asked for a build.
type Reservation struct {
	slots *Slots
	has   [2]bool
}

// Reserve takes one free seat of each kind. Its Kind is wire.None when there was none at all.
func (s *Slots) Reserve() *Reservation {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &Reservation{slots: s}
	for _, k := range []kind{host, docker} {
		if r.has[k] = s.free(k); r.has[k] {
			s.seats[k]++
		}
	}
	return r
}

// Kind is what may be asked for with this reservation (protocol §1.6.7).
func (r *Reservation) Kind() wire.BuildKind {
	switch r.has {
	case [2]bool{true, true}:
		return wire.All
	case [2]bool{true, false}:
		return wire.Binary
	case [2]bool{false, true}:
		return wire.Docker
	}
	return wire.None
}

// Claim turns the reservation's seat of the build's kind into a slot and gives the other seat back. It reports
// false when no seat of that kind was reserved: the server sent what was not asked for.
func (r *Reservation) Claim(b wire.Build) (*Slot, bool) {
	k := host
	if b.Docker != nil {
		k = docker
	}
	s := r.slots
	s.mu.Lock()
	defer s.mu.Unlock()
	if !r.has[k] {
		return nil, false
	}
	r.has[k] = false // the slot owns the seat from here
	return s.add(b, k), true
}

// Release gives back what was not claimed. It may be called more than once. It is no news for Freed: who asked for a
// build with this reservation would only wake itself.
func (r *Reservation) Release() {
	s := r.slots
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, has := range r.has {
		if has {
			s.seats[k]--
			r.has[k] = false
		}
	}
}

// Adopt counts a build that already runs, whatever the limits say: it was started by an earlier agent, at since.
func (s *Slots) Adopt(b wire.Build, pid int, since time.Time) *Slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := host
	if b.Docker != nil {
		k = docker
	}
	s.seats[k]++
	slot := s.add(b, k)
	slot.pid, slot.since = pid, since
	return slot
}

func (s *Slots) add(b wire.Build, k kind) *Slot {
	slot := &Slot{slots: s, build: b, kind: k, since: time.Now()}
	s.builds[slot] = struct{}{}
	return slot
}

// Slot is one build's seat: claimed until its worker runs, then running, until it is released.
type Slot struct {
	slots *Slots
	build wire.Build
	kind  kind
	pid   int       // 0 until the worker runs
	since time.Time // it was claimed
	gone  bool
}

// Running notes the worker's process. From now on heartbeats list the build.
func (s *Slot) Running(pid int) {
	s.slots.mu.Lock()
	defer s.slots.mu.Unlock()
	s.pid = pid
}

// Release frees the seat. It may be called more than once.
func (s *Slot) Release() {
	s.slots.mu.Lock()
	defer s.slots.mu.Unlock()
	if s.gone {
		return
	}
	s.gone = true
	delete(s.slots.builds, s)
	s.slots.seats[s.kind]--
	s.slots.signal()
}

// Busy reports whether any build is claimed or running: no upgrade may be asked for then (protocol §4.2).
func (s *Slots) Busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.builds) > 0
}

// Has reports whether a build is claimed or running here. The same build is never run twice at a time.
func (s *Slots) Has(b wire.Build) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for slot := range s.builds {
		if slot.build.ID == b.ID && slot.build.VMSeq == b.VMSeq {
			return true
		}
	}
	return false
}

// Running lists the host builds whose worker runs, in a stable order, for heartbeats: nil when there are none
// (protocol §1.6.3, taskList).
func (s *Slots) Running() []wire.Running {
	var list []wire.Running
	for _, b := range s.list(host) {
		list = append(list, wire.Running{Project: b.Project, Build: b.ID, VMSeq: b.VMSeq, Workspace: b.Workspace})
	}
	return list
}

// RunningDocker lists the docker builds claimed or running: never nil (protocol §1.6.3, dockerTaskList).
func (s *Slots) RunningDocker() []wire.RunningDocker {
	list := []wire.RunningDocker{}
	for _, b := range s.list(docker) {
		list = append(list, wire.RunningDocker{Project: b.Project, Build: b.ID, VMSeq: b.VMSeq})
	}
	return list
}

// Builds lists every build claimed or running.
func (s *Slots) Builds() []wire.Build {
	s.mu.Lock()
	defer s.mu.Unlock()
	var builds []wire.Build
	for slot := range s.builds {
		builds = append(builds, slot.build)
	}
	return builds
}

// Held is a build that has a seat.
type Held struct {
	Build wire.Build
	PID   int // 0 until the worker runs
	Since time.Time
}

// Held lists every build claimed or running, the oldest first.
func (s *Slots) Held() []Held {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Held
	for slot := range s.builds {
		list = append(list, Held{slot.build, slot.pid, slot.since})
	}
	slices.SortFunc(list, func(a, b Held) int { return a.Since.Compare(b.Since) })
	return list
}

// Count is how many builds have a seat: host builds and docker builds.
func (s *Slots) Count() (hosts, dockers int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for slot := range s.builds {
		if slot.kind == docker {
			dockers++
		} else {
			hosts++
		}
	}
	return hosts, dockers
}

// Limits are the limits in force; 0 is none.
func (s *Slots) Limits() (hosts, dockers int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.limit[host], s.limit[docker]
}

func (s *Slots) list(k kind) []wire.Build {
	s.mu.Lock()
	defer s.mu.Unlock()
	var builds []wire.Build
	for slot := range s.builds {
		if slot.kind == k && (k == docker || slot.pid != 0) {
			builds = append(builds, slot.build)
		}
	}
	slices.SortFunc(builds, func(a, b wire.Build) int { return strings.Compare(key(a), key(b)) })
	return builds
}
