package controller

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/shirou/gopsutil/v4/disk"
	"modernc.org/sqlite"
)

// step brings the data base from one version to the next.
type step struct {
	what  string              // it does, for the log and for errors
	apply func(*sql.Tx) error // in one transaction with the change of the version
}

// steps are the versions of the data base: the first makes version 1, the last the one that this program writes.
//
// To change a table, append a step. What is in one never changes once it is on main: there are data bases that have
// it behind them. A step sees all of the data, so what it does row by row must not need all of it in memory. It is
// forward only: the way back is the copy that is made before the first step.
func steps() []step {
	return []step{
		{"make the first tables", statements(schema)},
		{"add tokens with roles", statements(`CREATE TABLE IF NOT EXISTS access_token (id TEXT PRIMARY KEY, hash TEXT NOT NULL UNIQUE, doc TEXT NOT NULL) STRICT`)},
		{"add runs", statements(`CREATE TABLE run (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, active INTEGER NOT NULL,
			spec TEXT NOT NULL, doc TEXT NOT NULL) STRICT;
			CREATE INDEX run_active ON run (number) WHERE active = 1`)},
		{"add counters and indexes for retention", statements(tablesForRetention)},
		{"add the audit log", statements(`CREATE TABLE audit (id INTEGER PRIMARY KEY, doc TEXT NOT NULL) STRICT`)},
		{"add secrets", statements(`CREATE TABLE vault (id INTEGER PRIMARY KEY CHECK (id = 1), proof TEXT NOT NULL) STRICT;
			CREATE TABLE secret (project TEXT NOT NULL, name TEXT NOT NULL, doc TEXT NOT NULL, sealed TEXT NOT NULL,
				PRIMARY KEY (project, name)) STRICT`)},
		{"add definitions", statements(`CREATE TABLE definition (project TEXT NOT NULL, name TEXT NOT NULL, spec TEXT NOT NULL, doc TEXT NOT NULL,
				PRIMARY KEY (project, name)) STRICT;
			CREATE TABLE delivery (project TEXT NOT NULL, name TEXT NOT NULL, delivery TEXT NOT NULL, at INTEGER NOT NULL, run TEXT NOT NULL,
				PRIMARY KEY (project, name, delivery)) STRICT;
			CREATE INDEX delivery_at ON delivery (at)`)},
		{"add artifacts", statements(tablesForArtifacts)},
	}
}

// statements is a step of SQL.
func statements(text string) func(*sql.Tx) error {
	return func(tx *sql.Tx) error {
		_, err := tx.Exec(text)
		return err
	}
}

// NewerError says that a newer program wrote the data base.
type NewerError struct {
	Path       string
	Have, Know int // versions of its tables: those it has, and the newest that this program knows
}

// Error names the file and both versions.
func (e *NewerError) Error() string {
	return fmt.Sprintf("%s has version %d, written by a newer devopsController: this one knows versions up to %d", e.Path, e.Have, e.Know)
}

// Hint says how to go on.
func (e *NewerError) Hint() string {
	return fmt.Sprintf("run that version or a newer one; or give up what happened since its first start: stop it and put back the copy %s.v%d-… that it made then", e.Path, e.Know)
}

// SpaceError says that there is not enough room on a file system.
type SpaceError struct {
	Dir        string
	Need, Free uint64 // bytes
}

// Error says how much is missing, and where.
func (e *SpaceError) Error() string {
	return fmt.Sprintf("not enough room in %s: %s needed, %s free", e.Dir, megabytes(e.Need), megabytes(e.Free))
}

// Hint says what to do.
func (e *SpaceError) Hint() string { return "make room there, and try again" }

func megabytes(n uint64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

// roomFor refuses what needs more bytes than a folder's file system has, and a little for others. Where nobody can
// tell, it lets everything through: the disk itself will say.
func roomFor(dir string, need uint64) error {
	usage, err := disk.Usage(dir)
	if err != nil {
		return nil
	}
	if need += 16 << 20; usage.Free < need {
		return &SpaceError{Dir: dir, Need: need, Free: usage.Free}
	}
	return nil
}

// migrate brings a data base to the newest version, and keeps a copy of what it was before at path.v<version>-<Unix
// seconds>. Killed at any moment it leaves a version that it goes on from. path is "" for one in memory.
func migrate(db *sql.DB, path string, steps []step, now time.Time, log *slog.Logger) error {
	var from int
	if err := db.QueryRow(`PRAGMA user_version`).Scan(&from); err != nil {
		return err
	}
	switch {
	case from > len(steps):
		return &NewerError{Path: path, Have: from, Know: len(steps)}
	case from == len(steps):
		return nil
	}
	kept := ""
	if from > 0 && path != "" {
		kept = fmt.Sprintf("%s.v%d-%d", path, from, now.Unix())
		if err := copyDatabase(context.Background(), db, kept); err != nil {
			return fmt.Errorf("keep a copy before version %d: %w", from+1, err)
		}
		dropCopies(fmt.Sprintf("%s.v%d-", path, from))
	}
	for i := from; i < len(steps); i++ {
		if err := migrateTo(db, i+1, steps[i]); err != nil {
			if kept != "" && i == from {
				_ = os.Remove(kept) // nothing changed
			}
			return fmt.Errorf("bring it to version %d (%s): %w", i+1, steps[i].what, err)
		}
	}
	if kept != "" {
		log.Info("The data base was brought to a new version", "from", from, "version", len(steps), "copy", kept)
	}
	return nil
}

// keptCopies is how many copies of one version stay: a controller that is killed again and again before its first step makes one
// each time.
const keptCopies = 2

// dropCopies removes the oldest copies whose names begin with prefix, and end with Unix seconds.
func dropCopies(prefix string) {
	entries, err := os.ReadDir(filepath.Dir(prefix))
	if err != nil {
		return
	}
	var copies []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filepath.Base(prefix)) {
			copies = append(copies, e.Name())
		}
	}
	slices.Sort(copies)
	for _, old := range copies[:max(0, len(copies)-keptCopies)] {
		_ = os.Remove(filepath.Join(filepath.Dir(prefix), old))
	}
}

func migrateTo(db *sql.DB, version int, s step) error {
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	if err = s.apply(tx); err == nil {
		_, err = tx.Exec(fmt.Sprintf(`PRAGMA user_version = %d`, version))
	}
	if err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// copyStep is how many pages are copied between two looks at the context.
const copyStep = 1000

// snapshot is what modernc.org/sqlite's connections can do beside database/sql: SQLite's online backup.
type snapshot interface {
	NewBackup(uri string) (*sqlite.Backup, error)
}

// copyDatabase writes what the data base holds now into a new file of mode 0600. It takes one of db's connections and
// holds up nobody else. The file is whole and on disk when it has its name.
func copyDatabase(ctx context.Context, db *sql.DB, path string) (err error) {
	dir := filepath.Dir(path)
	var pages, size uint64
	if err := errors.Join(db.QueryRow(`PRAGMA page_count`).Scan(&pages), db.QueryRow(`PRAGMA page_size`).Scan(&size)); err != nil {
		return err
	}
	if err := roomFor(dir, pages*size); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // CreateTemp makes it 0600, SQLite would make it readable for all
	if err != nil {
		return err
	}
	fresh := f.Name()
	defer func() {
		if err != nil {
			_ = os.Remove(fresh)
		}
	}()
	if err := f.Close(); err != nil {
		return err
	}
	if err := copyPages(ctx, db, fresh); err != nil {
		return err
	}
	if err := syncFile(fresh); err != nil {
		return err
	}
	if err := os.Rename(fresh, path); err != nil {
		return err
	}
	syncFolder(dir)
	return nil
}

// copyPages copies a data base as it is at one moment. One connection reads all of it in one transaction, so that it
// need not begin again when somebody writes meanwhile.
func copyPages(ctx context.Context, db *sql.DB, path string) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.ExecContext(ctx, `BEGIN DEFERRED`); err != nil {
		return err
	}
	defer func() { _, _ = conn.ExecContext(context.WithoutCancel(ctx), `ROLLBACK`) }()
	var version int
	if err := conn.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_schema`).Scan(&version); err != nil { // begins it
		return err
	}
	return conn.Raw(func(driver any) error {
		source, can := driver.(snapshot)
		if !can {
			return errors.New("this data base cannot be copied while it is in use")
		}
		copying, err := source.NewBackup(fileURI(path))
		if err != nil {
			return err
		}
		for more := true; more && err == nil; {
			if more, err = copying.Step(copyStep); err == nil {
				err = context.Cause(ctx)
			}
		}
		return errors.Join(err, copying.Finish())
	})
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// syncFolder has names on disk. Windows cannot, and need not.
func syncFolder(dir string) {
	if f, err := os.Open(dir); err == nil {
		_ = f.Sync()
		_ = f.Close()
	}
}

// sweepCopies removes what was being copied when an earlier controller was killed.
func sweepCopies(path string) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "."+filepath.Base(path)+".v") {
			_ = os.Remove(filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
}
