package controller

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"sync"
	"time"
)

// schema is version 1 of the data base (migrate.go has the later ones). Records are kept as JSON beside the columns that are searched; a build's spec
// never changes and is written once. Log lines are kept in the portions in which they were acknowledged.
const schema = `
CREATE TABLE IF NOT EXISTS agent (id TEXT PRIMARY KEY, doc TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS build (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, active INTEGER NOT NULL,
	spec TEXT NOT NULL, doc TEXT NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS build_active ON build (number) WHERE active = 1;
CREATE TABLE IF NOT EXISTS log (build INTEGER NOT NULL, last INTEGER NOT NULL, lines TEXT NOT NULL,
	PRIMARY KEY (build, last)) STRICT;
CREATE TABLE IF NOT EXISTS log_batch (build INTEGER PRIMARY KEY, last INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS token (hash TEXT PRIMARY KEY, doc TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS script (id INTEGER PRIMARY KEY, agent TEXT NOT NULL, doc TEXT NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS script_agent ON script (agent);
CREATE TABLE IF NOT EXISTS release (version TEXT PRIMARY KEY, doc TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS rollout (id INTEGER PRIMARY KEY, doc TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS rollout_agent (rollout INTEGER NOT NULL, agent TEXT NOT NULL, doc TEXT NOT NULL,
	PRIMARY KEY (rollout, agent)) STRICT;`

// store is the data base: one writer that commits whatever has gathered while the last commit was under way, and
// readers that are not held up by it. It starts no goroutine: whoever waits for a commit first makes it.
type store struct {
	write *sql.DB // one connection
	read  *sql.DB // the same as write for a data base in memory

	mu      sync.Mutex
	pending []*ticket

	log      string          // the write-ahead log's path, "" for a data base in memory
	logMost  int64           // bytes from which it is written back with patience
	nextLook time.Time       // at its size; used by the leader only
	lead     chan struct{}   // holds one token while somebody commits
	lastLine map[int64]int64 // per build number, the last log line; used by the leader only
	room     *room           // is told of every commit; nil in memory
	fail     func() error    // for tests: an error here fails the commit
}

// ticket is one change that waits to be committed.
type ticket struct {
	store *store
	apply func(*sql.Tx) error
	saved func(error) // called once when it is on disk or is not; may be nil
	done  chan struct{}
	err   error // valid after done
}

// openStore opens or creates the data base file, or one in memory when path is "", and brings it to the newest version.
func openStore(path string, log *slog.Logger) (*store, error) {
	if path != "" {
		sweepCopies(path)
		lost, err := prepareFile(path, log)
		if err != nil {
			return nil, err
		}
		if lost {
			return openAnew(path, log)
		}
	}
	return openFile(path, log)
}

func openFile(path string, log *slog.Logger) (*store, error) {
	memory := path == ""
	dsn := ":memory:"
	if !memory {
		dsn = fileURI(path) + fmt.Sprintf("?_pragma=busy_timeout(%d)&_pragma=auto_vacuum(2)&_pragma=journal_mode(WAL)&_pragma=journal_size_limit(%d)&_pragma=synchronous(FULL)&_txlock=immediate",
			lockPatience.Milliseconds(), logMost)
	}
	st := &store{lead: make(chan struct{}, 1), lastLine: make(map[int64]int64)}
	if !memory {
		st.log, st.logMost = path+"-wal", logMost
	}
	var err error
	if st.write, err = sql.Open("sqlite", dsn); err != nil {
		return nil, err
	}
	st.write.SetMaxOpenConns(1)
	st.write.SetMaxIdleConns(1)
	st.write.SetConnMaxLifetime(0)
	st.read = st.write
	if err := migrate(st.write, path, steps(), time.Now(), log); err != nil {
		_ = st.write.Close()
		return nil, err
	}
	if !memory {
		if st.read, err = sql.Open("sqlite", dsn+"&_pragma=query_only(1)"); err != nil {
			_ = st.write.Close()
			return nil, err
		}
		st.read.SetMaxOpenConns(4)
		st.read.SetMaxIdleConns(4)
	}
	return st, nil
}

// fileURI names a data base file for SQLite, whatever is in its path.
func fileURI(path string) string {
	u := url.URL{Scheme: "file", OmitHost: true, Path: filepath.ToSlash(path)}
	return u.String()
}

// close commits what is pending and ends the data base.
func (st *store) close() error {
	st.lead <- struct{}{}
	defer func() { <-st.lead }()
	st.flush()
	var errs []error
	if st.read != st.write {
		errs = append(errs, st.read.Close())
	}
	return errors.Join(append(errs, st.write.Close())...)
}

// enqueue appends a change to the next commit. Changes are committed in the order of their enqueue calls; call it
// under the lock that orders them, and wait outside of it.
// saved, if any, is called without the store's locks.
func (st *store) enqueue(apply func(*sql.Tx) error, saved func(error)) *ticket {
	t := &ticket{store: st, apply: apply, saved: saved, done: make(chan struct{})}
	st.mu.Lock()
	st.pending = append(st.pending, t)
	st.mu.Unlock()
	return t
}

// wait returns when the change is on disk, or with the reason why it is not.
func (t *ticket) wait() error {
	select {
	case <-t.done:
	case t.store.lead <- struct{}{}:
		t.store.flush()
		<-t.store.lead
		<-t.done
	}
	return t.err
}

// settle is wait for a change that there may not be: a nil ticket is on disk.
func (t *ticket) settle() error {
	if t == nil {
		return nil
	}
	return t.wait()
}

// refused reports whether the change was tried and is not on disk. A nil ticket was not refused.
func (t *ticket) refused() bool {
	if t == nil {
		return false
	}
	select {
	case <-t.done:
		return t.err != nil
	default:
		return false
	}
}

// flush commits all pending changes. A change that cannot be applied does not cost the others: they are then
// committed one by one.
func (st *store) flush() {
	st.mu.Lock()
	batch := st.pending
	st.pending = nil
	st.mu.Unlock()
	if len(batch) == 0 {
		return
	}
	defer st.boundLog(time.Now())
	if err := st.commit(batch); err == nil || len(batch) == 1 {
		for _, t := range batch {
			t.end(err)
		}
		return
	}
	for _, t := range batch {
		t.end(st.commit([]*ticket{t}))
	}
}

func (t *ticket) end(err error) {
	if t.saved != nil {
		t.saved(err)
	}
	t.err = err
	close(t.done)
}

// sync commits whatever is pending.
func (st *store) sync() {
	st.lead <- struct{}{}
	st.flush()
	<-st.lead
}

func (st *store) commit(batch []*ticket) (err error) {
	defer func() { err = st.room.note(err) }()
	if st.fail != nil {
		if err := st.fail(); err != nil {
			return err
		}
	}
	tx, err := st.write.Begin()
	if err != nil {
		return fmt.Errorf("write to the data base: %w", err)
	}
	defer func() {
		if err != nil {
			_ = tx.Rollback()
			clear(st.lastLine)
			err = fmt.Errorf("write to the data base: %w", err)
		}
	}()
	for _, t := range batch {
		if err := t.apply(tx); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// Line is one line of a build's log, as the operator API shows it.
type Line struct {
	Seq     int64  `json:"seq"`              // from 1, in the order of arrival, without gaps
	At      int64  `json:"at"`               // when it was printed, milliseconds since 1970, as the worker says
	Tag     string `json:"tag,omitempty"`    // id of the step, or startVM-… around the steps (protocol §6.8)
	SubTag  string `json:"subTag,omitempty"` // part of a step
	Type    string `json:"type"`             // LOG, DEBUG, ERROR, WARN (protocol §1.4.2)
	Message string `json:"message"`
}

// appendLog enqueues lines of a build. Their numbers are given when they are committed. batch is the worker's number of
// them, 0 when it has none: a batch that is there already is not stored again, and its lines get no numbers.
func (st *store) appendLog(build, batch int64, lines []Line) *ticket {
	return st.enqueue(func(tx *sql.Tx) error {
		if batch > 0 {
			done, err := tx.Exec(`INSERT INTO log_batch (build, last) VALUES (?1, ?2)
				ON CONFLICT (build) DO UPDATE SET last = excluded.last WHERE excluded.last > last`, build, batch)
			if err != nil {
				return err
			}
			if n, err := done.RowsAffected(); err != nil || n == 0 {
				return err
			}
		}
		last, ok := st.lastLine[build]
		if !ok {
			row := tx.QueryRow(`SELECT last FROM log WHERE build = ? ORDER BY last DESC LIMIT 1`, build)
			if err := row.Scan(&last); err != nil && !errors.Is(err, sql.ErrNoRows) {
				return err
			}
		}
		for i := range lines {
			lines[i].Seq = last + int64(i) + 1
		}
		text, err := json.Marshal(lines)
		if err != nil {
			return err
		}
		last += int64(len(lines))
		if _, err := tx.Exec(`INSERT INTO log (build, last, lines) VALUES (?, ?, ?)`, build, last, string(text)); err != nil {
			return err
		}
		if len(st.lastLine) > 1000 {
			clear(st.lastLine)
		}
		st.lastLine[build] = last
		return nil
	}, nil)
}

// readLog returns lines of a build with numbers above after: whole portions until there are at least limit lines.
func (st *store) readLog(build, after int64, limit int) ([]Line, error) {
	rows, err := st.read.Query(`SELECT lines FROM log WHERE build = ? AND last > ? ORDER BY last`, build, after)
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var lines []Line
	for len(lines) < limit && rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, fmt.Errorf("read the log: %w", err)
		}
		var part []Line
		if err := json.Unmarshal([]byte(text), &part); err != nil {
			return nil, fmt.Errorf("read the log: %w", err)
		}
		for len(part) > 0 && part[0].Seq <= after {
			part = part[1:]
		}
		lines = append(lines, part...)
	}
	return lines, rows.Err()
}

// lineCount returns how many lines a build's log has.
func (st *store) lineCount(build int64) (n int64, err error) {
	err = st.read.QueryRow(`SELECT coalesce(max(last), 0) FROM log WHERE build = ?`, build).Scan(&n)
	return n, err
}

// each reads (doc) rows of a query into fn.
func (st *store) each(fn func(scan func(...any) error) error, query string, args ...any) error {
	rows, err := st.read.Query(query, args...)
	if err != nil {
		return fmt.Errorf("read the data base: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		if err := fn(rows.Scan); err != nil {
			return fmt.Errorf("read the data base: %w", err)
		}
	}
	return rows.Err()
}
