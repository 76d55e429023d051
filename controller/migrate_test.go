package controller

import (
	"database/sql"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// firstVersion makes a data directory as the first program left it.
func firstVersion(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	text, err := os.ReadFile(filepath.Join("testdata", "v1.sql"))
	if err != nil {
		t.Fatal(err)
	}
	db := rawDatabase(t, filepath.Join(dir, "controller.db"))
	if _, err := db.Exec(string(text)); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// rawDatabase opens a data base without any of our own rules.
func rawDatabase(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", fileURI(path))
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func version(t *testing.T, db *sql.DB) (n int) {
	t.Helper()
	if err := db.QueryRow(`PRAGMA user_version`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestDataBaseOfTheFirstVersion(t *testing.T) {
	dir := firstVersion(t)
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if got := version(t, s.store.read); got != len(steps()) {
		t.Errorf("version %d, want %d", got, len(steps()))
	}
	builds, err := s.Builds(10, 0, false)
	if err != nil || len(builds) != 2 || builds[0].State != Queued || builds[1].State != Succeeded {
		t.Errorf("builds %+v, %v", builds, err)
	}
	if lines, err := s.Log("1", 0, 10); err != nil || len(lines) != 6 || lines[5].Seq != 6 || lines[5].Message != "b" {
		t.Errorf("log %+v, %v", lines, err)
	}
	agents := s.Agents()
	if len(agents) != 1 || agents[0].HostName != "build-01" {
		t.Errorf("agents %+v", agents)
	}
	w := &world{t: t, server: s, http: httpOf(s), url: "http://controller"}
	id := wire.Identity{Agent: agents[0].ID, Project: "demo", Secret: "27016ddf279ef7c3120eab0ea07186353cfe3e428ed7a39d122d5530f9c17cb2"}
	client := &wire.Client{Gateway: w.url, Identity: id, HTTP: w.http}
	if got, _, err := client.Claim(t.Context(), wire.All, 0); err != nil || got == nil || got.ID != builds[0].ID {
		t.Errorf("the agent that was there gets %v, %v", got, err)
	}
	if made, err := s.Submit("", oneStep("x")); err != nil || made.Number != 3 {
		t.Errorf("next build %+v, %v", made, err)
	}
}

func ledger(extra ...string) []step {
	list := steps()[:1]
	for _, text := range extra {
		list = append(list, step{text, statements(text)})
	}
	return list
}

func TestMigrationKeepsACopy(t *testing.T) {
	path := filepath.Join(firstVersion(t), "controller.db")
	db := rawDatabase(t, path)
	if _, err := db.Exec(`PRAGMA journal_mode = WAL`); err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1800000000, 0)
	if err := migrate(db, path, ledger(`CREATE TABLE fresh (n INTEGER) STRICT`, `INSERT INTO fresh SELECT count(*) FROM build`), now, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	var n int
	if err := db.QueryRow(`SELECT n FROM fresh`).Scan(&n); err != nil || n != 2 || version(t, db) != 3 {
		t.Errorf("version %d with %d, %v", version(t, db), n, err)
	}
	kept := path + ".v1-1800000000"
	info, err := os.Stat(kept)
	if err != nil || info.Mode().Perm()&0o077 != 0 && os.PathSeparator == '/' {
		t.Fatalf("copy %v, %v", info, err)
	}
	old := rawDatabase(t, kept)
	if err := old.QueryRow(`SELECT count(*) FROM build`).Scan(&n); err != nil || n != 2 || version(t, old) != 1 {
		t.Errorf("the copy has %d builds, version %d, %v", n, version(t, old), err)
	}
	if err := old.QueryRow(`SELECT count(*) FROM fresh`).Scan(&n); err == nil {
		t.Error("the copy has what the step made")
	}
}

func TestFailedStepChangesNothing(t *testing.T) {
	path := filepath.Join(firstVersion(t), "controller.db")
	db := rawDatabase(t, path)
	bad := step{"go wrong", func(tx *sql.Tx) error {
		if _, err := tx.Exec(`DELETE FROM build`); err != nil {
			return err
		}
		return errors.New("no luck")
	}}
	err := migrate(db, path, append(ledger(), bad), time.Now(), slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "version 2 (go wrong): no luck") {
		t.Errorf("error %v", err)
	}
	var n int
	if err := db.QueryRow(`SELECT count(*) FROM build`).Scan(&n); err != nil || n != 2 || version(t, db) != 1 {
		t.Errorf("%d builds, version %d, %v", n, version(t, db), err)
	}
	if copies, _ := filepath.Glob(path + ".v*"); len(copies) != 0 {
		t.Errorf("copies of what has not changed: %v", copies)
	}
	// One step more that works stays, and the next start goes on from it.
	if err := migrate(db, path, append(ledger(`CREATE TABLE fresh (n INTEGER) STRICT`), bad), time.Now(), slog.New(slog.DiscardHandler)); err == nil || version(t, db) != 2 {
		t.Errorf("version %d, %v", version(t, db), err)
	}
	if err := migrate(db, path, ledger(`CREATE TABLE fresh (n INTEGER) STRICT`, `DROP TABLE fresh`), time.Now(), slog.New(slog.DiscardHandler)); err != nil || version(t, db) != 3 {
		t.Errorf("version %d, %v", version(t, db), err)
	}
}

func TestNewerDataBaseIsRefused(t *testing.T) {
	dir := t.TempDir()
	db := rawDatabase(t, filepath.Join(dir, "controller.db"))
	if _, err := db.Exec(`CREATE TABLE later (n INTEGER); PRAGMA user_version = 1000`); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := Open(Options{Dir: dir})
	var newer *NewerError
	if !errors.As(err, &newer) || newer.Have != 1000 || newer.Know != len(steps()) || !strings.Contains(newer.Hint(), "newer") {
		t.Fatalf("error %v", err)
	}
	db = rawDatabase(t, filepath.Join(dir, "controller.db"))
	if got := version(t, db); got != 1000 {
		t.Errorf("version %d afterwards", got)
	}
}

func TestUnfinishedCopiesAreSweptAway(t *testing.T) {
	dir := firstVersion(t)
	part := filepath.Join(dir, ".controller.db.v1-1800000000.12345")
	if err := os.WriteFile(part, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(part); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestNewDataBaseGivesRoomBack(t *testing.T) {
	s, err := Open(Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	var mode int
	if err := s.store.write.QueryRow(`PRAGMA auto_vacuum`).Scan(&mode); err != nil || mode != 2 {
		t.Errorf("auto_vacuum %d, %v: want 2, incremental", mode, err)
	}
}
