package controller

import (
	"path/filepath"
	"testing"
	"time"
)

// TestClockSetBackAndForward: of a schedule that is due every five minutes, the hour by which the clock is set back is not waited
// for, and the hour by which it is set forward is made up for by one run; one that is due daily runs once.
func TestClockSetBackAndForward(t *testing.T) {
	w := &world{t: t, server: reopened(t, t.TempDir())} // its timers do not run
	w.define("name: often\nschedule: {cron: \"*/5 * * * *\", timezone: UTC}\nsteps: [{script: x}]\n")
	w.define("name: daily\nschedule: {cron: \"30 11 * * *\", timezone: UTC}\nsteps: [{script: x}]\n")
	noon := time.Date(2031, 5, 6, 12, 1, 0, 0, time.UTC)
	at := func(name string) time.Time {
		w.server.mu.Lock()
		defer w.server.mu.Unlock()
		return time.UnixMilli(w.server.definitions[definitionKey{DefaultProject, name}].NextAt).UTC()
	}
	plan := func(now time.Time) {
		w.server.mu.Lock()
		defer w.server.mu.Unlock()
		for _, d := range w.server.definitions {
			d.plan(now)
		}
	}
	back := func(now time.Time) {
		w.server.mu.Lock()
		w.server.replanned = time.Time{}
		w.server.mu.Unlock()
		w.server.replan(now)
	}
	plan(noon)
	often, daily := at("often"), at("daily")
	if back(noon); at("often") != often || at("daily") != daily {
		t.Error("planned anew without a reason")
	}
	back(noon.Add(-time.Hour))
	if got := at("often"); got != often.Add(-time.Hour) {
		t.Errorf("every five minutes: next %v, not %v", got, often.Add(-time.Hour))
	}
	if got := at("daily"); got != daily {
		t.Errorf("daily: it would run again at %v", got)
	}
	plan(noon)
	w.server.startDue(noon.Add(time.Hour)) // set forward
	w.server.startDue(noon.Add(time.Hour))
	if list := w.runs(); len(list) != 1 || at("often") != often.Add(time.Hour) {
		t.Errorf("an hour forward: %d runs, next %v", len(list), at("often"))
	}
	plan(noon.AddDate(4, 0, 0)) // a clock without a battery
	if back(noon); at("often") != often || at("daily") != daily {
		t.Errorf("years ahead: %v, %v", at("often"), at("daily"))
	}
}

// TestBackupsOfAWrongClock: a backup that the clock of another year named is neither the newest nor kept for good.
func TestBackupsOfAWrongClock(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(Options{Dir: dir, BackupKeep: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	now, backups := time.Now(), filepath.Join(dir, backupsDir)
	for _, at := range []time.Time{now.AddDate(4, 0, 0), now.AddDate(4, 0, 1), now.Add(-2 * time.Hour), now.Add(-time.Hour)} {
		if err := s.backUp(t.Context(), backups, at); err != nil {
			t.Fatal(err)
		}
		if newest, _ := newestBackup(dir); at.Before(now) && filepath.Base(newest) != backupName(at) {
			t.Errorf("the newest is %s, not that of %v", newest, at)
		}
	}
	if left := backupFiles(backups); len(left) != 2 || filepath.Base(left[1]) != backupName(now.Add(-time.Hour)) {
		t.Errorf("left: %v", left)
	}
}
