package journal

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// steady is a machine to which nothing happens by chance.
func steady(t *testing.T, version int) *machine {
	t.Helper()
	m := newMachine(t, 1)
	m.rand = rand.New(always{})
	m.put(m.inst.Home, version)
	return m
}

// always is a die that falls on its highest side: nobody is killed.
type always struct{}

// Uint64 is that of rand.Source.
func (always) Uint64() uint64 { return 1<<64 - 1 }

func sumOf(version int) string {
	sum := sha256.Sum256([]byte(program(version, Agent)))
	return hex.EncodeToString(sum[:])
}

// lefts are the versions that the server is not to bring back.
func (m *machine) lefts() []string {
	m.t.Helper()
	list, err := m.j.History()
	if err != nil {
		m.t.Fatal(err)
	}
	var versions []string
	for _, a := range list {
		if from, _ := a.Version(); a.Left {
			versions = append(versions, from)
		}
	}
	slices.Sort(versions)
	return versions
}

func TestWhatWasRolledBackByHandIsNotTakenFromTheServer(t *testing.T) {
	type step struct {
		do   string // "server 2", "file 2", "back", "back to 1", "allow"
		runs int
		left string
	}
	for name, steps := range map[string][]step{
		"until there is another version": {{"server 2", 2, ""}, {"back", 1, "2"}, {"server 2", 1, "2"}, {"server 3", 3, ""}, {"server 2", 2, ""}},
		"one that fails is none":         {{"server 2", 2, ""}, {"back", 1, "2"}, {"server 4", 1, "2"}, {"server 2", 1, "2"}},
		"until an operator takes it":     {{"server 2", 2, ""}, {"back", 1, "2"}, {"file 2", 2, ""}, {"back", 1, "2"}, {"server 2", 1, "2"}},
		"until it is allowed":            {{"server 2", 2, ""}, {"back", 1, "2"}, {"allow", 1, ""}, {"server 2", 2, ""}},
		"all of several steps":           {{"server 2", 2, ""}, {"server 3", 3, ""}, {"back", 2, "3"}, {"back", 1, "2 3"}, {"server 3", 1, "2 3"}, {"server 2", 1, "2 3"}},
		"until it is returned to":        {{"server 2", 2, ""}, {"server 3", 3, ""}, {"back", 2, "3"}, {"back to 3", 3, "2"}, {"server 2", 3, "2"}},
		"also what an operator brought":  {{"file 2", 2, ""}, {"back", 1, "2"}, {"server 2", 1, "2"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := steady(t, 1)
			for _, s := range steps {
				var version int
				switch {
				case s.do == "back":
					m.back()
				case s.do == "allow":
					if _, err := m.j.Allow(); err != nil {
						t.Fatal(err)
					}
				case strings.HasPrefix(s.do, "back to "):
					plan, err := m.j.Previous(strings.TrimPrefix(s.do, "back to "))
					if err != nil {
						t.Fatal(err)
					}
					m.carryOut(*plan)
				default:
					var kind string
					if _, err := fmt.Sscanf(s.do, "%s %d", &kind, &version); err != nil {
						t.Fatal(err)
					}
					m.upgrade(Kind(kind), version)
				}
				if got := strings.Join(m.lefts(), " "); m.live() != s.runs || got != s.left {
					t.Fatalf("after %q: %d runs, %q were left; want %d, %q", s.do, m.live(), got, s.runs, s.left)
				}
				m.j.Sweep()
			}
		})
	}
}

// TestWhatWasRolledBackIsNotForgotten by a long history, nor does it come back with one.
func TestWhatWasRolledBackIsNotForgotten(t *testing.T) {
	for _, another := range []bool{false, true} {
		m := steady(t, 1)
		m.upgrade(FromServer, 2)
		m.back()
		if another {
			m.upgrade(FromServer, 3)
		}
		for range 4 * mostAttempts {
			m.clock = m.clock.Add(time.Hour)
			names, err := os.ReadDir(m.j.path(dir))
			if err != nil {
				t.Fatal(err)
			}
			var taken []string
			for _, name := range names {
				taken = append(taken, name.Name())
			}
			a := Attempt{ID: newID(m.clock, taken), Kind: FromServer, State: Failed, Parts: []Change{{Part: Worker, New: sumOf(9)}}}
			if err := os.Mkdir(m.j.in(a.ID), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := m.j.save(&a); err != nil {
				t.Fatal(err)
			}
		}
		m.j.Sweep()
		list, err := m.j.History()
		if err != nil || len(list) > 3*mostAttempts+3 {
			t.Errorf("%d attempts, %v", len(list), err)
		}
		left, err := m.j.Left(sumOf(2))
		if err != nil || (left == nil) != another {
			t.Errorf("another version since: %v; left by %+v, %v", another, left, err)
		}
	}
}

func TestHistoryOnDiskDoesNotSayWhatWasLeft(t *testing.T) {
	m := steady(t, 1)
	m.upgrade(FromServer, 2)
	m.back()
	list, err := m.j.History()
	if err != nil || !list[0].Left {
		t.Fatalf("%+v, %v", list, err)
	}
	list[0].Untold = true
	if err := m.j.save(&list[0]); err != nil {
		t.Fatal(err)
	}
	m.j.Told(list[0].ID)
	text, err := os.ReadFile(m.j.in(list[0].ID, attemptOf))
	if err != nil || strings.Contains(string(text), `"left"`) {
		t.Errorf("%s %v", text, err)
	}
}
