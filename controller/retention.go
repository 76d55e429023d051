package controller

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"
)

// tablesForRetention: counters keep numbers from being given twice, purge lists builds whose log is being removed.
const tablesForRetention = `
CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE purge (build INTEGER PRIMARY KEY) STRICT;
CREATE INDEX build_ended ON build (json_extract(doc, '$.finishedAt')) WHERE active = 0;
CREATE INDEX build_logged ON build (json_extract(doc, '$.finishedAt')) WHERE active = 0 AND json_extract(doc, '$.logGone') IS NULL;
CREATE INDEX script_ended ON script (json_extract(doc, '$.endedAt')) WHERE json_extract(doc, '$.endedAt') IS NOT NULL;`

// Names in the table counter.
const (
	countBuilds   = "build"
	countScripts  = "script"
	countRuns     = "run"
	countRollouts = "rollout"
)

// How much is removed in one transaction: little enough that nobody notices who waits for the next.
const (
	chunkRecords  = 50
	chunkPortions = 32  // of a log; a portion has up to a thousand lines as a rule
	chunkPages    = 256 // given back to the file system
)

// firstPrune is how long after the start retention looks around for the first time: agents and workers come first.
const firstPrune = time.Minute

// keep removes what is too old or too much, again and again.
func (s *Server) keep(ctx context.Context) {
	timer := time.NewTimer(min(firstPrune, s.opts.KeepEvery))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-timer.C:
			if err := s.prune(ctx, now); err != nil && ctx.Err() == nil {
				s.log.Error("Old builds and logs could not be removed", "err", err)
			}
			timer.Reset(s.opts.KeepEvery)
		}
	}
}

// prune removes, in this order: what an earlier one began, builds and scripts that are older than KeepBuilds, logs older
// than KeepLogs, and then the oldest logs and builds until no more than KeepBytes are in use.
func (s *Server) prune(ctx context.Context, now time.Time) error {
	removed := removal{server: s, ctx: ctx}
	err := removed.logs()
	if age := s.opts.KeepBuilds; err == nil && age > 0 {
		if err = removed.records(millis(now.Add(-age))); err == nil {
			err = errors.Join(removed.scripts(millis(now.Add(-age))), removed.runs(millis(now.Add(-age))))
		}
	}
	if age := s.opts.KeepLogs; err == nil && age > 0 {
		err = removed.oldLogs(millis(now.Add(-age)), 0)
	}
	if limit := s.opts.KeepBytes; err == nil && limit > 0 {
		err = removed.until(limit)
	}
	if err == nil {
		err = removed.artifacts(now, 0)
	}
	if err == nil && removed.any() {
		s.log.Info("Old builds and logs were removed", "builds", removed.builds, "logs", removed.logsGone, "artifacts", removed.artifactsGone, "others", removed.others)
		err = s.giveBack(ctx, s.opts.spareBytes())
	}
	return err
}

// removal is one prune.
type removal struct {
	server                   *Server
	ctx                      context.Context
	builds, logsGone, others int
	artifactsGone            int
}

func (r *removal) any() bool { return r.builds+r.logsGone+r.others+r.artifactsGone > 0 }

// aside makes one change while nobody waits for another, and then rests for as long as that took.
func (s *Server) aside(ctx context.Context, apply func(*sql.Tx) error) error {
	began := time.Now()
	if err := s.store.aside(ctx, apply); err != nil {
		return err
	}
	rest := time.NewTimer(time.Since(began))
	defer rest.Stop()
	select {
	case <-rest.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// numbers reads a list of numbers.
func (s *Server) numbers(query string, args ...any) (list []int64, err error) {
	err = s.store.each(func(scan func(...any) error) error {
		var n int64
		if err := scan(&n); err != nil {
			return err
		}
		list = append(list, n)
		return nil
	}, query, args...)
	return list, err
}

// raiseCounter notes that numbers up to this one have been given.
func raiseCounter(tx *sql.Tx, name string, value int64) error {
	_, err := tx.Exec(`INSERT INTO counter (name, value) VALUES (?, ?)
		ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)`, name, value)
	return err
}

// records removes builds that ended before a time. Their logs are removed afterwards, portion by portion.
func (r *removal) records(before int64) error {
	for {
		found, err := r.server.numbers(`SELECT number FROM build WHERE active = 0 AND json_extract(doc, '$.finishedAt') < ?
			ORDER BY json_extract(doc, '$.finishedAt') LIMIT ?`, before, chunkRecords)
		if err != nil || len(found) == 0 {
			return err
		}
		if err := r.drop(found); err != nil {
			return err
		}
	}
}

func (r *removal) drop(found []int64) error {
	s := r.server
	s.mu.Lock()
	for _, b := range s.builds {
		if slices.Contains(found, b.Number) && b.State.Over() {
			b.removed = true // what somebody may still write of it is dropped
			delete(s.builds, b.ID)
			delete(s.dirty, b)
			s.ended = slices.DeleteFunc(s.ended, func(other *build) bool { return other == b })
		}
	}
	s.mu.Unlock()
	err := s.aside(r.ctx, func(tx *sql.Tx) error {
		for _, number := range found {
			if err := raiseCounter(tx, countBuilds, number); err != nil {
				return err
			}
			for _, change := range []string{`DELETE FROM build WHERE number = ? AND active = 0`, `DELETE FROM log_batch WHERE build = ?`,
				`DELETE FROM artifact WHERE build = ?`, `INSERT INTO purge (build) VALUES (?) ON CONFLICT DO NOTHING`} {
				if _, err := tx.Exec(change, number); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.builds += len(found)
	return r.logs()
}

// oldLogs removes logs of builds that ended before a time, at most limit of them (0 is no limit), the oldest first.
func (r *removal) oldLogs(before int64, limit int) error {
	s := r.server
	for gone := 0; limit == 0 || gone < limit; {
		size := chunkRecords
		if limit > 0 {
			size = min(size, limit-gone)
		}
		found, err := s.numbers(`SELECT number FROM build WHERE active = 0 AND json_extract(doc, '$.logGone') IS NULL
			AND json_extract(doc, '$.finishedAt') < ? ORDER BY json_extract(doc, '$.finishedAt') LIMIT ?`, before, size)
		if err != nil || len(found) == 0 {
			return err
		}
		had := make(map[int64]bool)
		for _, number := range found {
			lines, err := s.store.lineCount(number)
			if err != nil {
				return err
			}
			had[number] = lines > 0
		}
		s.mu.Lock()
		for _, b := range s.builds {
			if had[b.Number] && b.State.Over() {
				b.LogGone = true // before it is on disk: a later change of the build must say so, too
			}
		}
		s.mu.Unlock()
		err = s.aside(r.ctx, func(tx *sql.Tx) error {
			for _, number := range found {
				// A log that never was is not gone: false keeps it from being looked at again.
				text := "false"
				if had[number] {
					text = "true"
					if _, err := tx.Exec(`INSERT INTO purge (build) VALUES (?) ON CONFLICT DO NOTHING`, number); err != nil {
						return err
					}
				}
				if _, err := tx.Exec(`UPDATE build SET doc = json_set(doc, '$.logGone', json(?)) WHERE number = ?`, text, number); err != nil {
					return err
				}
				if _, err := tx.Exec(`DELETE FROM log_batch WHERE build = ?`, number); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		gone += len(found)
		for _, had := range had {
			if had {
				r.logsGone++
			}
		}
		if err := r.logs(); err != nil {
			return err
		}
	}
	return nil
}

// logs removes the lines of the builds in the table purge.
func (r *removal) logs() error {
	s := r.server
	for {
		found, err := s.numbers(`SELECT build FROM purge LIMIT 1`)
		if err != nil || len(found) == 0 {
			return err
		}
		err = s.aside(r.ctx, func(tx *sql.Tx) error {
			done, err := tx.Exec(`DELETE FROM log WHERE build = ?1 AND last IN (SELECT last FROM log WHERE build = ?1 ORDER BY last LIMIT ?2)`, found[0], chunkPortions)
			if err != nil {
				return err
			}
			if n, err := done.RowsAffected(); err != nil || n > 0 {
				return err
			}
			_, err = tx.Exec(`DELETE FROM purge WHERE build = ?`, found[0])
			return err
		})
		if err != nil {
			return err
		}
	}
}

// runs removes runs that ended before a time. Their builds end no later, and are removed by themselves.
func (r *removal) runs(before int64) error {
	return r.byDocument("run", "number", "finishedAt", countRuns, before)
}

// scripts removes pipeline scripts that ended before a time.
func (r *removal) scripts(before int64) error {
	return r.byDocument("script", "id", "endedAt", countScripts, before)
}

// byDocument removes rows of a table whose document has a time that is too long ago.
func (r *removal) byDocument(table, key, member, counter string, before int64) error {
	at := fmt.Sprintf("json_extract(doc, '$.%s')", member)
	for {
		found, err := r.server.numbers(fmt.Sprintf(`SELECT %s FROM %s WHERE %s IS NOT NULL AND %s < ? ORDER BY %s LIMIT ?`, key, table, at, at, at), before, chunkRecords)
		if err != nil || len(found) == 0 {
			return err
		}
		err = r.server.aside(r.ctx, func(tx *sql.Tx) error {
			for _, id := range found {
				if err := raiseCounter(tx, counter, id); err != nil {
					return err
				}
				if _, err := tx.Exec(fmt.Sprintf(`DELETE FROM %s WHERE %s = ?`, table, key), id); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		r.others += len(found)
	}
}

// until removes the oldest logs, and then the oldest builds, until no more than limit bytes are in use.
func (r *removal) until(limit int64) error {
	s := r.server
	for last, logs := int64(0), 1; ; {
		size, err := s.store.size()
		if err != nil || size.Used <= limit {
			return err
		}
		if freed := last - size.Used; last > 0 && size.Used-limit > 4*freed {
			logs = min(2*logs, chunkRecords)
		} else {
			logs = 1
		}
		last = size.Used
		before := *r
		if err := r.oldLogs(1<<62, logs); err != nil {
			return err
		}
		if r.logsGone > before.logsGone {
			continue
		}
		if found, err := s.numbers(`SELECT number FROM build WHERE active = 0 AND json_extract(doc, '$.logGone') IS NULL LIMIT 1`); err != nil || len(found) > 0 {
			if err != nil {
				return err
			}
			continue // builds without a log came first
		}
		found, err := s.numbers(`SELECT number FROM build WHERE active = 0 ORDER BY json_extract(doc, '$.finishedAt') LIMIT ?`, chunkRecords)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			s.log.Warn("More is in use than may be, and nothing is left to be removed", "used", size.Used, "limit", limit)
			return nil
		}
		if err := r.drop(found); err != nil {
			return err
		}
	}
}

// Size is how much room the data base takes, in bytes.
type Size struct {
	File int64 `json:"file"` // of its pages, free ones included
	Used int64 `json:"used"` // of the pages that hold something
}

func (st *store) size() (size Size, err error) {
	var pages, free, each int64
	err = errors.Join(st.read.QueryRow(`PRAGMA page_count`).Scan(&pages), st.read.QueryRow(`PRAGMA freelist_count`).Scan(&free),
		st.read.QueryRow(`PRAGMA page_size`).Scan(&each))
	if err != nil {
		return size, fmt.Errorf("measure the data base: %w", err)
	}
	return Size{File: pages * each, Used: (pages - free) * each}, nil
}

// aside commits one change by itself, as soon as all others that wait are committed.
func (st *store) aside(ctx context.Context, apply func(*sql.Tx) error) error {
	select {
	case st.lead <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-st.lead }()
	st.flush()
	return st.commit([]*ticket{{store: st, apply: apply}})
}

// giveBack returns free pages at the end of the data base to the file system, some at a time, until no more than spare
// bytes are free in it.
func (s *Server) giveBack(ctx context.Context, spare int64) error {
	for {
		before, err := s.store.size()
		if err != nil || before.File-before.Used <= spare {
			return err
		}
		if err := s.aside(ctx, func(tx *sql.Tx) error {
			_, err := tx.Exec(fmt.Sprintf(`PRAGMA incremental_vacuum(%d)`, chunkPages))
			return err
		}); err != nil {
			return err
		}
		if after, err := s.store.size(); err != nil || after.File == before.File {
			return err // a data base that was made before version 3 cannot, until it was vacuumed once
		}
	}
}

// spareBytes is how much room may stay free in the data base for what comes next: asking the file system for it again
// takes time.
func (o Options) spareBytes() int64 {
	if o.KeepBytes > 0 {
		return min(64<<20, o.KeepBytes/10)
	}
	return 64 << 20
}
