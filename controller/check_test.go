package controller

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestCheckFindsWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	w := &world{t: t, server: reopened(t, dir)}
	id, err := w.server.CreateAgent(NewAgent{})
	if err != nil {
		t.Fatal(err)
	}
	w.endedBuild(5, time.Now())
	b := w.submit(oneStep("x"))
	w.server.mu.Lock()
	live := w.server.builds[b.ID]
	ticket := w.server.handOut(w.server.agents[id.Agent], live, time.Now())
	w.server.mu.Unlock()
	if err := ticket.wait(); err != nil {
		t.Fatal(err)
	}
	const text = "a program"
	digest := hash(text)
	if _, err := w.server.Upload(digest, strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.server.store.write.Exec(`INSERT INTO release (version, doc) VALUES ('v1', json_object('version', 'v1', 'addedAt', 1,
		'files', json_array(json_object('name', 'jar/worker-agent.jar', 'sha256', ?, 'size', ?))))`, digest, len(text)); err != nil {
		t.Fatal(err)
	}
	// Also while the controller runs.
	report, err := Check(t.Context(), dir)
	if err != nil || len(report.Faults) != 0 || report.Builds != 2 || report.Agents != 1 || report.Lines != 50 || report.Files != 1 {
		t.Fatalf("report %+v, %v", report, err)
	}
	if err := w.server.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, databaseFile)
	for _, harm := range []struct{ sql, want string }{
		{`DELETE FROM agent`, "which is not there"},
		{`UPDATE build SET active = 1 WHERE number = 1`, "listed as the opposite"},
		{`UPDATE build SET doc = json_set(doc, '$.number', 9) WHERE number = 1`, "its record is that of #9"},
		{`DELETE FROM log WHERE last = 20`, "line 21 follows line 10"},
		{`UPDATE log SET last = 55 WHERE last = 50`, "ends with line 50, not 55"},
		{`UPDATE log SET lines = 'x' WHERE last = 50`, "up to line 50"},
		{`UPDATE log SET build = 77`, "no such build"},
		{`UPDATE build SET doc = json_set(doc, '$.logGone', json('true'))`, "its log should be gone"},
		{`UPDATE agent SET doc = '{'`, "table agent: 1 records are no JSON"},
		{`PRAGMA user_version = 1`, "has version 1"},
	} {
		db := rawDatabase(t, path)
		if _, err := db.Exec(`VACUUM INTO ?`, path+".good"); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(harm.sql); err != nil {
			t.Fatalf("%s: %v", harm.sql, err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		report, err := Check(t.Context(), dir)
		if err != nil || !strings.Contains(strings.Join(report.Faults, "\n"), harm.want) {
			t.Errorf("%s: %v, %v: want %s", harm.sql, report.Faults, err, harm.want)
		}
		if err := os.Rename(path+".good", path); err != nil {
			t.Fatal(err)
		}
	}
	object := filepath.Join(dir, "files", objects, digest)
	if err := os.WriteFile(object, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if report, err := Check(t.Context(), dir); err != nil || len(report.Faults) != 1 || !strings.Contains(report.Faults[0], "SHA-256") {
		t.Errorf("a changed file: %+v, %v", report, err)
	}
	if err := os.Remove(object); err != nil {
		t.Fatal(err)
	}
	if report, err := Check(t.Context(), dir); err != nil || len(report.Faults) != 1 || !strings.Contains(report.Faults[0], "jar/worker-agent.jar") {
		t.Errorf("a missing file: %+v, %v", report, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 4096), 4096*3); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if report, err := Check(t.Context(), dir); err != nil || len(report.Faults) == 0 {
		t.Errorf("a damaged page: %+v, %v", report, err)
	}
	for _, bytes := range []int64{4096, 0} {
		if err := os.Truncate(path, bytes); err != nil {
			t.Fatal(err)
		}
		if report, err := Check(t.Context(), dir); err != nil || len(report.Faults) == 0 {
			t.Errorf("%d bytes: %+v, %v", bytes, report, err)
		}
	}
}

func TestVacuum(t *testing.T) {
	dir := firstVersion(t)
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	var whole *WholeError
	if _, err := s.Vacuum(t.Context()); !errors.As(err, &whole) {
		t.Errorf("a data base of the first version: %v", err)
	}
	if _, err := VacuumStopped(t.Context(), dir); !errors.As(err, new(*BusyError)) {
		t.Errorf("beside a controller: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := VacuumStopped(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, databaseFile)); err != nil || info.Mode().Perm()&0o077 != 0 && os.PathSeparator == '/' {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	w := &world{t: t, server: reopened(t, dir)}
	if builds, err := w.server.Builds(10, 0, false); err != nil || len(builds) != 2 {
		t.Errorf("%d builds, %v", len(builds), err)
	}
	b := w.endedBuild(200, time.Now())
	if _, err := w.server.store.write.Exec(`DELETE FROM log WHERE build = ?`, b.Number); err != nil {
		t.Fatal(err)
	}
	done, err := w.server.Vacuum(t.Context())
	if err != nil || done.Before.File-done.Before.Used < 200_000 || done.After.File-done.After.Used > 16<<10 {
		t.Errorf("vacuum %+v, %v", done, err)
	}
	if info, err := os.Stat(filepath.Join(dir, databaseFile)); err != nil || info.Size() != done.After.File {
		t.Errorf("the file has %d bytes, %v: want %d", info.Size(), err, done.After.File)
	}
}
