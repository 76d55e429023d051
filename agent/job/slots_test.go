package job

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

func TestKindFollowsFreeSeats(t *testing.T) {
	cases := []struct {
		host, docker         int // limits
		hostBusy, dockerBusy int
		want                 wire.BuildKind
	}{
		{4, 4, 0, 0, wire.All},
		{1, 4, 1, 0, wire.Docker},
		{4, 1, 0, 1, wire.Binary},
		{1, 1, 1, 1, wire.None},
		{0, 0, 50, 50, wire.All}, // no limit
		{0, 1, 9, 1, wire.Binary},
	}
	for _, c := range cases {
		s := NewSlots(0, 0)
		for i := range c.hostBusy {
			s.Adopt(buildOf(string(rune('a'+i))), 1, time.Now())
		}
		for i := range c.dockerBusy {
			b := buildOf(string(rune('A' + i)))
			b.Docker = &wire.DockerBuild{}
			s.Adopt(b, 1, time.Now())
		}
		s.SetLimits(c.host, c.docker)
		r := s.Reserve()
		if got := r.Kind(); got != c.want {
			t.Errorf("limits %d/%d, busy %d/%d: kind %s, want %s", c.host, c.docker, c.hostBusy, c.dockerBusy, got, c.want)
		}
		r.Release()
		r.Release()
	}
}

func TestAReservedSeatIsTaken(t *testing.T) {
	s := NewSlots(1, 1)
	first := s.Reserve()
	if k := s.Reserve().Kind(); k != wire.None {
		t.Fatalf("second reservation got %s while the first holds both seats", k)
	}
	slot, ok := first.Claim(buildOf("b-1"))
	if !ok {
		t.Fatal("claim with a reserved seat refused")
	}
	if _, ok := first.Claim(buildOf("b-2")); ok {
		t.Error("one reservation gave two host slots")
	}
	first.Release()
	if k := s.Reserve().Kind(); k != wire.Docker {
		t.Errorf("with the host slot taken: %s, want DOCKER", k)
	}
	if !s.Busy() || s.Running() != nil {
		t.Errorf("a claimed build: busy %v, running %v; want busy and not listed", s.Busy(), s.Running())
	}
	slot.Running(7)
	if list := s.Running(); len(list) != 1 || list[0].Build != "b-1" {
		t.Errorf("running list %v", list)
	}
	slot.Release()
	slot.Release()
	if s.Busy() || s.Running() != nil || s.RunningDocker() == nil {
		t.Errorf("after release: busy %v, running %v, docker %v", s.Busy(), s.Running(), s.RunningDocker())
	}
}

func TestALoweredLimitLetsBuildsEnd(t *testing.T) {
	s := NewSlots(3, 0)
	var slots []*Slot
	for _, id := range []string{"a", "b", "c"} {
		r := s.Reserve()
		slot, _ := r.Claim(buildOf(id))
		slots = append(slots, slot)
		r.Release()
	}
	s.SetLimits(2, 0)
	for i, slot := range slots {
		freed := s.Freed()
		slot.Release()
		select {
		case <-freed:
		default:
			t.Fatal("a freed seat wakes nobody")
		}
		want := wire.All
		if i == 0 { // two still run, which is the limit
			want = wire.Docker
		}
		r := s.Reserve()
		if r.Kind() != want {
			t.Errorf("after %d ended: %s, want %s", i+1, r.Kind(), want)
		}
		r.Release()
	}
}

// TestNeverMoreThanTheLimit is the property that statement 34 asks for, under the race detector.
func TestNeverMoreThanTheLimit(t *testing.T) {
	const limit = 3
	s := NewSlots(limit, 0)
	var now, most atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(1, 2))
			for range 2000 {
				r := s.Reserve()
				if slot, ok := r.Claim(buildOf("b")); ok {
					n := now.Add(1)
					for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
					}
					if rng.IntN(2) == 0 {
						slot.Running(1)
					}
					now.Add(-1)
					slot.Release()
				}
				r.Release()
			}
		})
	}
	all.Wait()
	if most.Load() > limit || s.Busy() {
		t.Errorf("%d builds at once with a limit of %d; busy at the end: %v", most.Load(), limit, s.Busy())
	}
	if r := s.Reserve(); r.Kind() != wire.All {
		t.Errorf("seats were lost: %s", r.Kind())
	}
}

// TestNeverABuildAndAnUpgrade is the property of statements 92 and 93, under the race detector: whoever has the door for
// itself meets no build, claimed, running or about to be handed out.
func TestNeverABuildAndAnUpgrade(t *testing.T) {
	s := NewSlots(2, 0)
	var builds, upgrades, both, had atomic.Int32
	var all sync.WaitGroup
	for i := range 6 {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 93))
			for range 2000 {
				r := s.Reserve()
				if r.Kind() != wire.None && upgrades.Load() > 0 {
					both.Add(1) // a question for a build while an upgrade has the door
				}
				b := buildOf("b")
				if rng.IntN(2) == 0 {
					b.Docker = &wire.DockerBuild{}
				}
				if rng.IntN(3) > 0 {
					if slot, ok := r.Claim(b); ok {
						builds.Add(1)
						if upgrades.Load() > 0 {
							both.Add(1)
						}
						builds.Add(-1)
						slot.Release()
					}
				}
				r.Release()
			}
		})
	}
	for range 2 {
		all.Go(func() {
			for range 2000 {
				release, ok := s.Exclusive()
				if !ok {
					continue
				}
				had.Add(1)
				if upgrades.Add(1) > 1 || builds.Load() > 0 || s.Busy() {
					both.Add(1)
				}
				upgrades.Add(-1)
				release()
				release()
			}
		})
	}
	all.Wait()
	if both.Load() > 0 {
		t.Errorf("%d times a build and an upgrade, or two upgrades, at once", both.Load())
	}
	t.Logf("%d of 4000 tries had the door", had.Load())
	if _, ok := s.Exclusive(); !ok {
		t.Error("the door cannot be had when nothing happens")
	}
}

func TestExclusiveWaitsForNobody(t *testing.T) {
	s := NewSlots(1, 1)
	r := s.Reserve()
	if _, ok := s.Exclusive(); ok {
		t.Error("had while a build is being asked for")
	}
	slot, _ := r.Claim(buildOf("b-1"))
	r.Release()
	if _, ok := s.Exclusive(); ok {
		t.Error("had while a build is claimed")
	}
	slot.Release()
	release, ok := s.Exclusive()
	if !ok {
		t.Fatal("not had although nothing happens")
	}
	if _, again := s.Exclusive(); again {
		t.Error("had twice")
	}
	freed := s.Freed()
	if k := s.Reserve().Kind(); k != wire.None {
		t.Errorf("a reservation of kind %s while the door is closed", k)
	}
	adopted := s.Adopt(buildOf("b-2"), 7, time.Now()) // runs whatever we say
	adopted.Release()
	release()
	select {
	case <-freed:
	default:
		t.Error("the end of it wakes nobody")
	}
	if k := s.Reserve().Kind(); k != wire.All {
		t.Errorf("kind %s after it, want ALL", k)
	}
}
