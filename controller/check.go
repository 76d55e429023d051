package controller

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// maxFaults bounds a report; what comes after so many is of no use to anybody.
const maxFaults = 100

// CheckReport is what Check found.
type CheckReport struct {
	Dir     string   `json:"dir"`
	Version int      `json:"version"` // of the tables
	Agents  int64    `json:"agents"`
	Builds  int64    `json:"builds"`
	Lines   int64    `json:"lines"`            // of logs
	Files   int      `json:"files"`            // of releases, and archives of artifacts
	Faults  []string `json:"faults"`           // empty when all is well
	Took    int64    `json:"took"`             // milliseconds
	Backup  string   `json:"backup,omitempty"` // the newest that the controller made by itself
	// DamagedLog is the copy of a damaged write-ahead log that an earlier start has put aside, "" when there is none. It is no fault of what
	// is there now: some of what was there before is lost.
	DamagedLog string `json:"damagedLog,omitempty"`
}

// Check looks at all that is in a data directory, whether a controller runs there or not, and changes nothing: SQLite's own
// check of every page and index; that records, logs and files belong together; and the digests of files of releases and of artifacts.
// An error is that it could not look; what is wrong is in the report.
func Check(ctx context.Context, dir string) (report CheckReport, err error) {
	began := time.Now()
	report = CheckReport{Dir: dir, Faults: []string{}}
	report.Backup, _ = newestBackup(dir)
	path := filepath.Join(dir, databaseFile)
	if _, err := os.Stat(filepath.Join(dir, restoreMark)); err == nil {
		return report, &UnfinishedError{Dir: dir}
	}
	info, err := os.Stat(path)
	if err != nil {
		return report, fmt.Errorf("check %s: %w", dir, err)
	}
	if _, err := os.Stat(path + damagedLogSuffix); err == nil {
		report.DamagedLog = path + damagedLogSuffix
	}
	c := checker{ctx: ctx, report: &report}
	defer func() { report.Took = time.Since(began).Milliseconds() }()
	if info.Size() == 0 {
		c.fault("%s is empty", databaseFile)
		return report, nil
	}
	how := "?_pragma=busy_timeout(10000)&_pragma=query_only(1)"
	if c.damagedLog(path) {
		how += "&mode=ro" // else SQLite would write back what it sees of the log, and remove the rest
	}
	if c.db, err = sql.Open("sqlite", fileURI(path)+how); err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, c.db.Close()) }()
	c.db.SetMaxOpenConns(1)
	if err := c.all(path); err != nil {
		var broken *DamageError
		if !errors.As(damaged(path, err), &broken) {
			return report, fmt.Errorf("check %s: %w", dir, err)
		}
		c.fault("%s: %v", databaseFile, err)
	}
	return report, nil
}

type checker struct {
	ctx    context.Context
	db     *sql.DB
	report *CheckReport
}

func (c *checker) fault(format string, args ...any) {
	if len(c.report.Faults) < maxFaults {
		c.report.Faults = append(c.report.Faults, fmt.Sprintf(format, args...))
	}
}

func (c *checker) all(path string) error {
	if err := c.db.QueryRowContext(c.ctx, `PRAGMA user_version`).Scan(&c.report.Version); err != nil {
		return err
	}
	if known := len(steps()); c.report.Version > known {
		return &NewerError{Path: path, Have: c.report.Version, Know: known}
	}
	faults, err := pragmaCheck(c.ctx, c.db, "integrity_check(20)")
	if err != nil {
		return err
	}
	for _, f := range faults {
		c.fault("%s: %s", databaseFile, f)
	}
	if len(faults) > 0 {
		return nil // what the tables say is not to be trusted
	}
	if c.report.Version < len(steps()) {
		c.fault("%s has version %d of its tables: start the controller once, it brings it to version %d", databaseFile, c.report.Version, len(steps()))
		return nil
	}
	for _, part := range []func() error{c.documents, c.builds, c.logs, c.releases, c.artifacts} {
		if err := part(); err != nil {
			return err
		}
	}
	return nil
}

// damagedLog looks for damage in the write-ahead log of a controller that does not run; one that runs writes to it.
func (c *checker) damagedLog(path string) bool {
	lock, err := lockDir(c.report.Dir)
	if err != nil {
		return false
	}
	defer func() { _ = lock.Unlock() }()
	found, err := writeAheadLog(path)
	if err != nil || !found.lost() {
		return false
	}
	c.fault("%s-wal is damaged: %d commits behind byte %d are lost; the controller keeps a copy of it at its next start", databaseFile, found.behind, found.at)
	return true
}

// each calls fn for every row.
func (c *checker) each(fn func(scan func(...any) error) error, query string, args ...any) error {
	rows, err := c.db.QueryContext(c.ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		if err := fn(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

// documents finds records that are no JSON.
func (c *checker) documents() error {
	var tables []string
	err := c.each(func(scan func(...any) error) error {
		var name string
		if err := scan(&name); err != nil {
			return err
		}
		tables = append(tables, name)
		return nil
	}, `SELECT m.name FROM sqlite_schema m JOIN pragma_table_info(m.name) c WHERE m.type = 'table' AND c.name = 'doc' ORDER BY 1`)
	if err != nil {
		return err
	}
	for _, table := range tables {
		var bad int
		if err := c.db.QueryRowContext(c.ctx, fmt.Sprintf(`SELECT count(*) FROM %q WHERE NOT json_valid(doc)`, table)).Scan(&bad); err != nil {
			return err
		}
		if bad > 0 {
			c.fault("table %s: %d records are no JSON", table, bad)
		}
	}
	return c.db.QueryRowContext(c.ctx, `SELECT count(*) FROM agent`).Scan(&c.report.Agents)
}

// builds finds builds that contradict themselves, and those under way on agents that are not there.
func (c *checker) builds() error {
	return c.each(func(scan func(...any) error) error {
		var number int64
		var active int
		var id, doc string
		var known sql.NullString
		if err := scan(&number, &id, &active, &doc, &known); err != nil {
			return err
		}
		c.report.Builds++
		var b Build
		if err := json.Unmarshal([]byte(doc), &b); err != nil {
			c.fault("build #%d: %v", number, err)
			return nil
		}
		switch {
		case b.Number != number || b.ID != id:
			c.fault("build #%d %s: its record is that of #%d %s", number, id, b.Number, b.ID)
		case b.State.Over() == (active == 1):
			c.fault("build #%d is %s, and listed as the opposite", number, b.State)
		case (b.State == Handed || b.State == Running) && !known.Valid:
			c.fault("build #%d is %s by agent %q, which is not there", number, b.State, clip(b.Agent, 64))
		}
		return nil
	}, `SELECT b.number, b.id, b.active, b.doc, a.id FROM build b LEFT JOIN agent a ON a.id = json_extract(b.doc, '$.agent') WHERE json_valid(b.doc) ORDER BY b.number`)
}

// logs finds gaps, and logs of builds that are not there or whose log should be gone.
func (c *checker) logs() error {
	var build, last int64
	err := c.each(func(scan func(...any) error) error {
		var of, upTo int64
		var text string
		if err := scan(&of, &upTo, &text); err != nil {
			return err
		}
		if of != build {
			build, last = of, 0
		}
		var lines []struct {
			Seq int64 `json:"seq"`
		}
		if err := json.Unmarshal([]byte(text), &lines); err != nil {
			c.fault("log of build #%d up to line %d: %v", of, upTo, err)
		}
		for _, l := range lines {
			if l.Seq != last+1 {
				c.fault("log of build #%d: line %d follows line %d", of, l.Seq, last)
			}
			last = l.Seq
		}
		c.report.Lines += int64(len(lines))
		if last != upTo {
			c.fault("log of build #%d: a portion ends with line %d, not %d", of, last, upTo)
			last = upTo
		}
		return nil
	}, `SELECT build, last, lines FROM log WHERE build NOT IN (SELECT build FROM purge) ORDER BY build, last`)
	if err != nil {
		return err
	}
	return c.each(func(scan func(...any) error) error {
		var of int64
		if err := scan(&of); err != nil {
			return err
		}
		c.fault("there is a log of build #%d, and no such build, or its log should be gone", of)
		return nil
	}, `SELECT DISTINCT l.build FROM log l LEFT JOIN build b ON b.number = l.build
		WHERE l.build NOT IN (SELECT build FROM purge) AND (b.number IS NULL OR json_extract(b.doc, '$.logGone')) LIMIT ?`, maxFaults)
}

// releases finds files of releases that are missing or changed.
func (c *checker) releases() error {
	seen := make(map[string]error)
	return c.each(func(scan func(...any) error) error {
		var doc string
		if err := scan(&doc); err != nil {
			return err
		}
		var r Release
		if err := json.Unmarshal([]byte(doc), &r); err != nil {
			return nil // said above
		}
		for _, f := range r.Files {
			err, known := seen[f.SHA256]
			if !known {
				err = checkObject(c.ctx, filepath.Join(c.report.Dir, "files", objects, filepath.Base(f.SHA256)), f)
				seen[f.SHA256] = err
				c.report.Files++
			}
			if err != nil {
				c.fault("release %s: %s: %v", r.Version, f.Name, err)
			}
		}
		return nil
	}, `SELECT doc FROM release ORDER BY version`)
}

func checkObject(ctx context.Context, path string, want ReleaseFile) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	n, err := io.Copy(sum, &unlessDone{ctx, f})
	if err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want.SHA256 || n != want.Size {
		return fmt.Errorf("it has %d bytes and SHA-256 %s, not %d and %s", n, got, want.Size, want.SHA256)
	}
	return nil
}
