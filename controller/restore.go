package controller

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// Names in the data directory while a backup is put back, and afterwards.
const (
	restoreDir  = "restore.tmp"        // what comes out of the backup
	restoreMark = "restore.unfinished" // there while things are moved about
	keptPrefix  = "before-restore-"    // with Unix seconds: what was there before
)

// numberGap is added to the numbers of builds and runs where nobody can tell how many were given since the backup.
const numberGap = 1000

// RestoreOptions say how a backup is put back.
type RestoreOptions struct {
	Force bool // the folder need not be empty: what is there is kept beside it
	Moved bool // nothing has happened since the backup: what was under way goes on
	Log   *slog.Logger
}

// Restored is what became of a backup that was put back.
type Restored struct {
	Backup   BackupInfo `json:"backup"`
	Kept     string     `json:"kept,omitempty"`     // folder with what was there before
	Builds   int        `json:"builds,omitempty"`   // ended, because nobody knows what became of them
	Rollouts int        `json:"rollouts,omitempty"` // paused
	Next     int64      `json:"next"`               // number of the next build
}

// NotEmptyError says that a folder is in use.
type NotEmptyError struct{ Dir string }

// Error names it.
func (e *NotEmptyError) Error() string { return e.Dir + " is not empty" }

// Hint says what --force does.
func (e *NotEmptyError) Hint() string {
	return "with --force, what is there goes into " + filepath.Join(e.Dir, keptPrefix+"…")
}

// UnfinishedError says that a restore was interrupted.
type UnfinishedError struct{ Dir string }

// Error names the folder.
func (e *UnfinishedError) Error() string {
	return e.Dir + ": a backup was being put back there, and that was interrupted"
}

// Hint says how to go on.
func (e *UnfinishedError) Hint() string {
	return "do it again, with --force: devopsController restore --force --data " + e.Dir + " FILE"
}

// Restore puts a backup into a data directory, which no controller may use. Everything in it is checked before anything
// changes. Builds that were under way end as failed, scripts too, and rollouts are paused, unless Moved.
func Restore(ctx context.Context, backup io.Reader, dir string, o RestoreOptions) (done Restored, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return done, fmt.Errorf("make the data directory: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	there, err := occupants(dir)
	if err != nil {
		return done, err
	}
	if len(there) > 0 && !o.Force {
		return done, &NotEmptyError{Dir: dir}
	}
	fresh := filepath.Join(dir, restoreDir)
	if err := errors.Join(os.RemoveAll(fresh), os.Mkdir(fresh, 0o700)); err != nil {
		return done, err
	}
	defer func() { _ = os.RemoveAll(fresh) }()
	if done.Backup, err = unpack(ctx, backup, fresh); err != nil {
		return done, err
	}
	if err := adapt(ctx, dir, fresh, o, &done); err != nil {
		return done, fmt.Errorf("prepare the data base of the backup: %w", err)
	}
	if done.Kept, err = exchange(dir, there, done.Backup.Files); err != nil {
		return done, err
	}
	return done, nil
}

// occupants lists what is in a data directory beside what a restore leaves alone.
func occupants(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case name == lockFile, name == restoreDir, name == restoreMark, name == backupsDir, strings.HasPrefix(name, keptPrefix):
		default:
			names = append(names, name)
		}
	}
	return names, nil
}

// unpack writes what is in a backup into a folder.
func unpack(ctx context.Context, backup io.Reader, dir string) (BackupInfo, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return BackupInfo{}, err
	}
	defer func() { _ = root.Close() }()
	info, err := ReadBackup(&unlessDone{ctx, backup}, func(name string, mode fs.FileMode, content io.Reader) error {
		name = filepath.FromSlash(name)
		if folder := filepath.Dir(name); folder != "." {
			if err := root.MkdirAll(folder, 0o700); err != nil {
				return err
			}
		}
		f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600|mode&0o100)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, content)
		return errors.Join(err, f.Sync(), f.Close())
	})
	if err == nil {
		_, err = quickCheck(ctx, filepath.Join(dir, databaseFile))
	}
	return info, err
}

// counters are the numbers that were given, by name in the table counter.
func counters() map[string]string {
	return map[string]string{countBuilds: `SELECT max(number) FROM build`, countScripts: `SELECT max(id) FROM script`,
		countRuns: `SELECT max(number) FROM run`, countRollouts: `SELECT max(id) FROM rollout`}
}

// given reads which numbers a data base has given. Tables that are not there have given none.
func given(db *sql.DB) (map[string]int64, error) {
	if err := db.QueryRow(`SELECT count(*) FROM build`).Scan(new(int)); err != nil {
		return nil, err
	}
	numbers := make(map[string]int64)
	for name, query := range counters() {
		var last, counted sql.NullInt64
		_ = db.QueryRow(query).Scan(&last)
		_ = db.QueryRow(`SELECT value FROM counter WHERE name = ?`, name).Scan(&counted)
		numbers[name] = max(last.Int64, counted.Int64)
	}
	return numbers, nil
}

// adapt makes the data base of a backup fit for what comes: numbers that were given since are not given again, as far as
// the one that is there can tell, and nothing goes on that may have ended long ago.
func adapt(ctx context.Context, dir, fresh string, o RestoreOptions, done *Restored) (err error) {
	file := filepath.Join(fresh, databaseFile)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	st, err := openStore(file, o.Log)
	if err != nil {
		return err
	}
	defer func() {
		if copies, _ := filepath.Glob(file + ".v*"); len(copies) > 0 { // the backup is one
			for _, c := range copies {
				err = errors.Join(err, os.Remove(c))
			}
		}
	}()
	defer func() { err = errors.Join(err, st.close()) }()
	numbers, err := given(st.write)
	if err != nil {
		return err
	}
	if !o.Moved {
		since := lastGiven(filepath.Join(dir, databaseFile))
		for name := range numbers {
			if since == nil {
				numbers[name] += numberGap
			} else {
				numbers[name] = max(numbers[name], since[name])
			}
		}
	}
	done.Next = numbers[countBuilds] + 1
	now := time.Now()
	return st.aside(ctx, func(tx *sql.Tx) error {
		for name, last := range numbers {
			if err := raiseCounter(tx, name, last); err != nil {
				return err
			}
		}
		if o.Moved {
			return nil
		}
		why := "the controller went back to a backup of " + time.UnixMilli(done.Backup.MadeAt).UTC().Format("2006-01-02 15:04:05Z") + ": "
		return errors.Join(endBuilds(tx, why+"how this build ended is not known", now, &done.Builds), endScripts(tx, now), pauseRollouts(tx, now, &done.Rollouts))
	})
}

// lastGiven reads which numbers the data base that is there has given, nil when there is none or it cannot be read.
func lastGiven(file string) map[string]int64 {
	if _, err := os.Stat(file); err != nil {
		return nil
	}
	db, err := sql.Open("sqlite", fileURI(file))
	if err != nil {
		return nil
	}
	defer func() { _ = db.Close() }()
	numbers, err := given(db)
	if err != nil {
		return nil
	}
	return numbers
}

// rewrite changes documents of a table, each under its key.
func rewrite(tx *sql.Tx, query string, change func(scan func(...any) error) (key any, doc string, err error), update string) (n int, err error) {
	type row struct {
		key any
		doc string
	}
	var changed []row
	rows, err := tx.Query(query)
	if err != nil {
		return 0, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		key, doc, err := change(rows.Scan)
		if err != nil {
			return 0, err
		}
		if doc != "" {
			changed = append(changed, row{key, doc})
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return 0, err
	}
	for _, r := range changed {
		if _, err := tx.Exec(update, r.doc, r.key); err != nil {
			return 0, err
		}
	}
	return len(changed), nil
}

func endBuilds(tx *sql.Tx, why string, now time.Time, n *int) (err error) {
	*n, err = rewrite(tx, `SELECT doc FROM build WHERE active = 1`, func(scan func(...any) error) (any, string, error) {
		var text string
		b := &build{changed: make(chan struct{})}
		if err := errors.Join(scan(&text), json.Unmarshal([]byte(text), b)); err != nil { // what is encrypted in it stays so
			return nil, "", err
		}
		b.close(Failed, why, now)
		doc, err := json.Marshal(b)
		return b.Number, string(doc), err
	}, `UPDATE build SET active = 0, doc = ? WHERE number = ?`)
	return err
}

func endScripts(tx *sql.Tx, now time.Time) error {
	_, err := rewrite(tx, `SELECT doc FROM script`, func(scan func(...any) error) (any, string, error) {
		var text string
		var c Script
		if err := errors.Join(scan(&text), json.Unmarshal([]byte(text), &c)); err != nil || c.over() {
			return nil, "", err
		}
		c.Status, c.EndedAt = wire.PipelineFailure, millis(now)
		return c.ID, jsonText(c), nil
	}, `UPDATE script SET doc = ? WHERE id = ?`)
	return err
}

func pauseRollouts(tx *sql.Tx, now time.Time, n *int) (err error) {
	*n, err = rewrite(tx, `SELECT doc FROM rollout`, func(scan func(...any) error) (any, string, error) {
		var text string
		var r Rollout
		if err := errors.Join(scan(&text), json.Unmarshal([]byte(text), &r)); err != nil {
			return nil, "", err
		}
		switch {
		case r.ReplacedBy != 0, r.State == Paused, r.State == Halted, r.State == RolledBack:
			return nil, "", nil
		}
		r.Before, r.State, r.ChangedAt = r.State, Paused, millis(now)
		return r.ID, jsonText(r), nil
	}, `UPDATE rollout SET doc = ? WHERE id = ?`)
	return err
}

// exchange moves what is in the data directory into a folder beside it, and what came out of the backup there. Files of
// releases stay when the backup has none. The mark says that it is not done.
func exchange(dir string, there []string, files bool) (kept string, err error) {
	mark := filepath.Join(dir, restoreMark)
	if err := writePrivate(mark, nil); err != nil {
		return "", err
	}
	syncFolder(dir)
	fresh := filepath.Join(dir, restoreDir)
	for _, name := range there {
		if info, err := os.Stat(filepath.Join(dir, name)); !files && err == nil && info.IsDir() {
			continue
		}
		if kept == "" {
			if kept, err = keptFolder(dir); err != nil {
				return "", err
			}
		}
		err := os.Rename(filepath.Join(dir, name), filepath.Join(kept, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // -wal and -shm went when we looked at the old data base
			return "", err
		}
	}
	entries, err := os.ReadDir(fresh)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if err := os.Rename(filepath.Join(fresh, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			return "", err
		}
	}
	syncFolder(dir)
	if err := os.Remove(mark); err != nil {
		return "", err
	}
	syncFolder(dir)
	return kept, nil
}

func keptFolder(dir string) (string, error) {
	for n := time.Now().Unix(); ; n++ {
		kept := filepath.Join(dir, fmt.Sprintf("%s%d", keptPrefix, n))
		if err := os.Mkdir(kept, 0o700); !errors.Is(err, fs.ErrExist) {
			return kept, err
		}
	}
}
