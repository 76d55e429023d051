package controller

import (
	"errors"
	"testing"
	"time"
)

// TestWhatIsGoneIsWritten: whether the log of a build is gone stands in the data base, for the next start; one that never was is not gone.
func TestWhatIsGoneIsWritten(t *testing.T) {
	w := serve(t, Options{Dir: t.TempDir(), KeepLogs: time.Hour})
	at := time.Now().Add(-2 * time.Hour)
	logged, silent, young := w.endedBuild(1, at), w.endedBuild(0, at), w.endedBuild(1, time.Now())
	if err := w.server.prune(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		for _, want := range []struct {
			what   string
			number int64
			gone   string
		}{{"with a log", logged.Number, "1"}, {"without", silent.Number, "0"}, {"young", young.Number, "-"}} {
			var gone string
			if err := w.server.store.read.QueryRow(`SELECT coalesce(json_extract(doc, '$.logGone'), '-') FROM build WHERE number = ?`, want.number).Scan(&gone); err != nil {
				t.Fatal(err)
			}
			if gone != want.gone {
				t.Errorf("%s: build %s: %q, not %q", when, want.what, gone, want.gone)
			}
		}
	}
	check("after the removal")
	held, err := w.server.find(logged.ID)
	if err != nil {
		t.Fatal(err)
	}
	w.server.mu.Lock()
	ticket := w.server.save(held)
	w.server.mu.Unlock()
	if err := ticket.wait(); err != nil {
		t.Fatal(err)
	}
	check("after a later change of the build")
}

// TestRemovedBuildsAreNotWrittenAgain: a change that the disk refused is not tried again for ever once its build is removed.
func TestRemovedBuildsAreNotWrittenAgain(t *testing.T) {
	w := serve(t, Options{Dir: t.TempDir(), KeepBuilds: time.Hour})
	b := w.endedBuild(1, time.Now().Add(-2*time.Hour))
	w.server.mu.Lock()
	w.server.dirty[w.server.builds[b.ID]] = true
	w.server.mu.Unlock()
	if err := w.server.prune(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	w.server.mu.Lock()
	defer w.server.mu.Unlock()
	if n := len(w.server.dirty); n != 0 {
		t.Errorf("%d builds wait to be written", n)
	}
}

// TestBatchesGoWithTheirBuilds: what keeps a batch of lines from being stored twice goes with the log, and with the build.
func TestBatchesGoWithTheirBuilds(t *testing.T) {
	for name, o := range map[string]Options{"log": {KeepLogs: time.Hour}, "build": {KeepBuilds: time.Hour}} {
		o.Dir = t.TempDir()
		w := serve(t, o)
		b := w.endedBuild(1, time.Now().Add(-2*time.Hour))
		if _, err := w.server.store.write.ExecContext(t.Context(), `INSERT INTO log_batch (build, last) VALUES (?, 1)`, b.Number); err != nil {
			t.Fatal(err)
		}
		if err := w.server.prune(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		if n := w.count(`SELECT count(*) FROM log_batch`); n != 0 {
			t.Errorf("%s: %d batches are left", name, n)
		}
	}
}

// TestRoomIsKeptForWhatComes: 64 MiB, and never more than a tenth of what may be in use.
func TestRoomIsKeptForWhatComes(t *testing.T) {
	for limit, want := range map[int64]int64{0: 64 << 20, 100 << 20: 10 << 20, 640 << 20: 64 << 20, 10 << 30: 64 << 20} {
		if got := (Options{KeepBytes: limit}).spareBytes(); got != want {
			t.Errorf("of %d bytes: %d, not %d", limit, got, want)
		}
	}
}

// TestOnlyWhatIsSpareIsGivenBack: free pages stay in the data base as long as they are no more than may be spare.
func TestOnlyWhatIsSpareIsGivenBack(t *testing.T) {
	w := serve(t, Options{Dir: t.TempDir(), KeepBuilds: time.Hour})
	w.endedBuild(50, time.Now().Add(-2*time.Hour))
	if err := w.server.prune(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	size := func() Size {
		t.Helper()
		size, err := w.server.store.size()
		if err != nil {
			t.Fatal(err)
		}
		return size
	}
	before := size()
	free := before.File - before.Used
	if free == 0 {
		t.Fatal("nothing is free after a build with a log was removed")
	}
	if err := w.server.giveBack(t.Context(), free); err != nil {
		t.Fatal(err)
	}
	if got := size(); got != before {
		t.Errorf("%+v, and %d bytes may be spare: now %+v", before, free, got)
	}
	if err := w.server.giveBack(t.Context(), free-1); err != nil {
		t.Fatal(err)
	}
	if got := size(); got.File >= before.File {
		t.Errorf("%+v, and one byte less than is free may be spare: now %+v", before, got)
	}
}

// TestRetentionGoesOn: it looks around again and again, not once.
func TestRetentionGoesOn(t *testing.T) {
	w := serve(t, Options{Dir: t.TempDir(), KeepBuilds: time.Hour, KeepEvery: 5 * time.Millisecond})
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for round := range 3 {
		b := w.endedBuild(1, time.Now().Add(-2*time.Hour))
		for {
			if _, err := w.server.FindBuild(b.ID); errors.Is(err, ErrNotFound) {
				break
			}
			select {
			case <-tick.C:
			case <-deadline:
				t.Fatalf("build %d of round %d is still there", b.Number, round)
			}
		}
	}
}
