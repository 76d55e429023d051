package controller

import (
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// What is measured in memory does not care for a clock that is set: Go's times have a monotonic part. What is on disk, and
// schedules, are of the clock on the wall; this is what they need when it is set back. Set forward, a schedule starts once
// what it missed, as after a time in which the controller was down.

// nextAfter is when the tables of a definition come next after a time, zero when they never do.
func (d *definition) nextAfter(now time.Time) (first time.Time) {
	for _, table := range d.tables {
		if at := table.next(now); !at.IsZero() && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	return first
}

// misplanned reports whether the clock was set back since the next time was planned, by so much that the definition would let
// more than one time pass: it waits for a time that may be years away. Of one time it is not known whether it was kept
// already, and it is not kept twice: what runs daily does not run again because of an hour.
func (d *definition) misplanned(now time.Time) bool {
	if d.NextAt == 0 || millis(now) >= d.NextAt {
		return false
	}
	next := d.nextAfter(now)
	if next.IsZero() || d.NextAt <= millis(next) {
		return false
	}
	following := d.nextAfter(next)
	return !following.IsZero() && d.NextAt > millis(following)
}

// replanEvery is how often schedules are looked at for a clock that was set back.
const replanEvery = time.Minute

// replan plans anew what waits for a time that a wrong clock named.
func (s *Server) replan(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.replanned).Abs() < replanEvery {
		return
	}
	s.replanned = now
	for _, d := range s.definitions {
		if d.starts || !d.misplanned(now) {
			continue
		}
		s.log.Warn("The clock was set back; a schedule is planned anew", "definition", d.Name, "was", time.UnixMilli(d.NextAt).UTC().Format(time.RFC3339))
		d.plan(now)
		s.store.enqueue(d.update(), nil)
	}
}

// byAge sorts backups, the oldest first. Those that are named for a time after now were made by a wrong clock: nobody knows how
// old they are, and they come before the others.
func byAge(all []string, now time.Time) []string {
	later := backupName(now)
	slices.SortFunc(all, func(a, b string) int {
		switch x, y := filepath.Base(a) > later, filepath.Base(b) > later; {
		case x == y:
			return strings.Compare(a, b)
		case x:
			return -1
		}
		return 1
	})
	return all
}
