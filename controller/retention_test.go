package controller

import (
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// endedBuild is a build with a log of so many portions of ten lines that ended at a time.
func (w *world) endedBuild(portions int, at time.Time) Build {
	w.t.Helper()
	b := w.submit(oneStep("x"))
	for i := range portions {
		lines := make([]Line, 10)
		for j := range lines {
			lines[j] = Line{At: int64(i), Type: wire.LogNormal, Message: strings.Repeat("x", 200)}
		}
		w.server.store.appendLog(b.Number, 0, lines)
	}
	w.server.mu.Lock()
	t := w.server.finish(w.server.builds[b.ID], Succeeded, "", at)
	w.server.mu.Unlock()
	if err := t.wait(); err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *world) count(query string, args ...any) (n int) {
	w.t.Helper()
	if err := w.server.store.read.QueryRow(query, args...).Scan(&n); err != nil {
		w.t.Fatal(err)
	}
	return n
}

func TestOldLogsGoBeforeOldBuilds(t *testing.T) {
	dir := t.TempDir()
	w := serve(t, Options{Dir: dir, KeepBuilds: 90 * 24 * time.Hour, KeepLogs: 30 * 24 * time.Hour})
	m := w.imported(NewAgent{})
	now := time.Now()
	day := func(n int) time.Time { return now.Add(-time.Duration(n) * 24 * time.Hour) }
	ancient, old, young := w.endedBuild(100, day(91)), w.endedBuild(100, day(31)), w.endedBuild(2, day(29))
	silent := w.endedBuild(0, day(31))
	active := w.submit(oneStep("x"))
	if err := w.server.prune(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if _, err := w.server.FindBuild(ancient.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("the ancient build: %v", err)
	}
	for _, want := range []struct {
		id    string
		gone  bool
		lines int
	}{{old.ID, true, 0}, {young.ID, false, 20}, {silent.ID, false, 0}, {active.ID, false, 0}} {
		b, err := w.server.FindBuild(want.id)
		lines, lerr := w.server.Log(want.id, 0, 10000)
		if err != nil || lerr != nil || b.LogGone != want.gone || len(lines) != want.lines {
			t.Errorf("build %d: log gone %t, %d lines, %v %v: want %t, %d", b.Number, b.LogGone, len(lines), err, lerr, want.gone, want.lines)
		}
	}
	if n := w.count(`SELECT count(*) FROM log WHERE build IN (?, ?)`, ancient.Number, old.Number) + w.count(`SELECT count(*) FROM purge`); n != 0 {
		t.Errorf("%d rows are left of logs that are gone", n)
	}
	// Nothing more to do: what was done is not done again.
	if err := w.server.prune(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	// A late line for a build whose log is gone is taken, and is no log of one line.
	w.server.mu.Lock()
	w.server.builds[old.ID].Agent = m.id.Agent
	w.server.mu.Unlock()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+"/ms/log/api/build/logs", strings.NewReader(`{"message":"late"}`))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{wire.HeaderBuildType: "AGENT", wire.HeaderProject: m.id.Project, wire.HeaderAgent: m.id.Agent,
		wire.HeaderSecret: string(m.id.Secret), wire.HeaderBuild: old.ID, wire.HeaderVMSeq: vmSeq} {
		req.Header.Set(name, value)
	}
	resp, err := w.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if n := w.count(`SELECT count(*) FROM log WHERE build = ?`, old.Number); resp.StatusCode != 200 || n != 0 {
		t.Errorf("a late line: status %d, %d rows", resp.StatusCode, n)
	}
}

func TestNumbersAreNeverGivenTwice(t *testing.T) {
	dir := t.TempDir()
	func() {
		w := &world{t: t}
		var err error
		if w.server, err = Open(Options{Dir: dir, KeepBuilds: time.Hour}); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = w.server.Close() }()
		id, err := w.server.CreateAgent(NewAgent{})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			w.endedBuild(1, time.Now())
		}
		c, err := w.server.QueueScript(id.Agent, "true")
		if err != nil {
			t.Fatal(err)
		}
		w.server.mu.Lock()
		w.server.scripts[c.ID].Status, w.server.scripts[c.ID].EndedAt = wire.PipelineSuccess, millis(time.Now())
		ticket := w.server.saveScript(w.server.scripts[c.ID])
		w.server.mu.Unlock()
		if err := ticket.wait(); err != nil {
			t.Fatal(err)
		}
		if err := w.server.prune(t.Context(), time.Now().Add(2*time.Hour)); err != nil {
			t.Fatal(err)
		}
		if n := w.count(`SELECT (SELECT count(*) FROM build) + (SELECT count(*) FROM script)`); n != 0 {
			t.Fatalf("%d records are left", n)
		}
	}()
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if b, err := s.Submit("", oneStep("x")); err != nil || b.Number != 4 {
		t.Errorf("build %d, %v: want number 4", b.Number, err)
	}
	if c, err := s.QueueScript(s.Agents()[0].ID, "true"); err != nil || c.ID != 2 {
		t.Errorf("script %d, %v: want 2", c.ID, err)
	}
}

func TestKeepBytes(t *testing.T) {
	const limit = 1 << 20
	dir := t.TempDir()
	w := serve(t, Options{Dir: dir, KeepBytes: limit})
	now := time.Now()
	var builds []Build
	for i := range 8 {
		builds = append(builds, w.endedBuild(130, now.Add(time.Duration(i-100)*time.Hour))) // a third of the limit each
	}
	active := w.submit(oneStep("x"))
	if err := w.server.store.appendLog(active.Number, 0, []Line{{Message: "kept"}}).wait(); err != nil {
		t.Fatal(err)
	}
	before, err := w.server.store.size()
	if err != nil || before.Used < 2*limit {
		t.Fatalf("size %+v, %v", before, err)
	}
	if err := w.server.prune(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	after, err := w.server.store.size()
	if err != nil || after.Used > limit || after.File > limit+limit/5 || after.Used < limit/3 {
		t.Errorf("size %+v, %v: want at most %d, and not much less", after, err, limit)
	}
	if err := w.server.store.write.QueryRow(`PRAGMA wal_checkpoint(TRUNCATE)`).Scan(new(int), new(int), new(int)); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "controller.db")); err != nil || info.Size() > limit+limit/5 {
		t.Errorf("the file has %v bytes, %v", info, err)
	}
	first, err := w.server.FindBuild(builds[0].ID)
	if err != nil || !first.LogGone {
		t.Errorf("the oldest: %+v, %v", first, err)
	}
	last, err := w.server.FindBuild(builds[7].ID)
	if err != nil || last.LogGone {
		t.Errorf("the newest: %+v, %v", last, err)
	}
	if lines, err := w.server.Log(active.ID, 0, 10); err != nil || len(lines) != 1 {
		t.Errorf("the active one has %d lines, %v", len(lines), err)
	}
	// When logs are not enough, builds go; active ones stay, whatever they take.
	w.server.opts.KeepBytes = 1
	if err := w.server.prune(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if n := w.count(`SELECT count(*) FROM build`); n != 1 {
		t.Errorf("%d builds are left, want the active one", n)
	}
}

// TestInterruptedRemovalGoesOn: every transaction of a removal may be the last one before the end; another start ends it.
func TestInterruptedRemovalGoesOn(t *testing.T) {
	for left := 0; ; left++ {
		if left > 100 {
			t.Fatal("it never ends")
		}
		dir := t.TempDir()
		over := func() bool {
			w := &world{t: t}
			var err error
			if w.server, err = Open(Options{Dir: dir, KeepBuilds: 2 * time.Hour, KeepLogs: time.Hour}); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = w.server.Close() }()
			now := time.Now()
			w.endedBuild(40, now.Add(-3*time.Hour))
			w.endedBuild(40, now.Add(-90*time.Minute))
			n := left
			w.server.store.fail = func() error {
				if n--; n < 0 {
					return errors.New("killed")
				}
				return nil
			}
			err = w.server.prune(t.Context(), now)
			w.server.store.fail = nil
			return err == nil
		}()
		w := &world{t: t}
		var err error
		if w.server, err = Open(Options{Dir: dir, KeepBuilds: 2 * time.Hour, KeepLogs: time.Hour}); err != nil {
			t.Fatal(err)
		}
		if err := w.server.prune(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		if n := w.count(`SELECT (SELECT count(*) FROM log) + (SELECT count(*) FROM purge) + (SELECT count(*) FROM build)`); n != 1 {
			t.Errorf("interrupted after %d transactions: %d rows, want the one of the younger build", left, n)
		}
		if b, err := w.server.FindBuild("2"); err != nil || !b.LogGone {
			t.Errorf("interrupted after %d transactions: %+v, %v", left, b, err)
		}
		if err := w.server.Close(); err != nil {
			t.Fatal(err)
		}
		if over {
			return
		}
	}
}

// TestWritersGoFirst: a removal lets everybody else write between its transactions.
func TestWritersGoFirst(t *testing.T) {
	w := serve(t, Options{Dir: t.TempDir()})
	var order []string
	note := func(name string) func(*sql.Tx) error {
		return func(*sql.Tx) error { order = append(order, name); return nil }
	}
	w.server.store.lead <- struct{}{} // somebody commits
	var asides sync.WaitGroup
	asides.Go(func() {
		if err := w.server.store.aside(t.Context(), note("removal")); err != nil {
			t.Error(err)
		}
	})
	var tickets []*ticket
	for i := range 3 {
		tickets = append(tickets, w.server.store.enqueue(note(fmt.Sprint("writer ", i)), nil))
	}
	<-w.server.store.lead
	asides.Wait()
	for _, ticket := range tickets {
		if err := ticket.wait(); err != nil {
			t.Error(err)
		}
	}
	if got := strings.Join(order, ", "); got != "writer 0, writer 1, writer 2, removal" {
		t.Errorf("order: %s", got)
	}
}

// TestRemovedBuildStaysRemoved: what somebody writes of a build that they held when it was removed brings nothing back.
func TestRemovedBuildStaysRemoved(t *testing.T) {
	w := serve(t, Options{Dir: t.TempDir(), KeepBuilds: time.Hour})
	b := w.endedBuild(1, time.Now().Add(-2*time.Hour))
	held, err := w.server.find(b.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.server.prune(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	w.server.mu.Lock()
	ticket := w.server.save(held)
	w.server.mu.Unlock()
	if err := ticket.wait(); err != nil {
		t.Fatal(err)
	}
	if n := w.count(`SELECT count(*) FROM build`); n != 0 {
		t.Error("it is back")
	}
}
