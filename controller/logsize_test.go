package controller

import (
	"context"
	"database/sql"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// growing is a data base with little patience for its log, in which somebody writes and somebody reads.
type growing struct {
	*testing.T
	*store
}

func newGrowing(t *testing.T) growing {
	st, err := openStore(filepath.Join(t.TempDir(), databaseFile), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	st.logMost = 2 << 20
	t.Cleanup(func() {
		if err := st.close(); err != nil {
			t.Error(err)
		}
	})
	g := growing{t, st}
	g.commit()
	return g
}

// commit writes 100 kB and has the log looked at.
func (g growing) commit() {
	g.Helper()
	g.lead <- struct{}{}
	g.nextLook = time.Time{}
	<-g.lead
	line := strings.Repeat("x", 100_000)
	if err := g.enqueue(func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT OR REPLACE INTO log (build, last, lines) VALUES (1, 1, ?)`, line)
		return err
	}, nil).wait(); err != nil {
		g.Error(err)
	}
}

func (g growing) size() int64 {
	g.Helper()
	info, err := os.Stat(g.log)
	if err != nil {
		g.Error(err)
		return 0
	}
	return info.Size()
}

// look begins to read, and goes on until it is closed.
func (g growing) look(ctx context.Context) *sql.Rows {
	rows, err := g.read.QueryContext(ctx, `SELECT lines FROM log`) //nolint:rowserrcheck // it is not read to its end
	if err != nil || !rows.Next() {
		g.Errorf("read: %v", err)
		return nil
	}
	return rows
}

// TestReadersThatOverlapDoNotLetTheLogGrow: one begins before the other ends, all the time.
func TestReadersThatOverlapDoNotLetTheLogGrow(t *testing.T) {
	g := newGrowing(t)
	ctx, stop := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	reading := make(chan struct{}, 1)
	readers.Go(func() {
		var last *sql.Rows
		for ctx.Err() == nil && !t.Failed() {
			next := g.look(context.Background())
			if last != nil {
				_ = last.Close()
			}
			last = next
			select {
			case reading <- struct{}{}:
			default:
			}
		}
		if last != nil {
			_ = last.Close()
		}
	})
	most := int64(0)
	for range 400 {
		<-reading // somebody new reads since the last commit
		g.commit()
		most = max(most, g.size())
	}
	stop()
	readers.Wait()
	if most > 6<<20 {
		t.Errorf("the log had %d bytes after 40 MB of changes; %d are the limit", most, g.logMost)
	}
}

// TestALongReaderHoldsNobodyUp: while a backup reads, commits go on, and the log is cut off when it has ended.
func TestALongReaderHoldsNobodyUp(t *testing.T) {
	g := newGrowing(t)
	backup := g.look(t.Context())
	for range 40 {
		g.commit()
	}
	if size := g.size(); size <= g.logMost {
		t.Errorf("the log has %d bytes, and a reader needs more of it", size)
	}
	if err := backup.Close(); err != nil {
		t.Error(err)
	}
	if g.commit(); g.size() > g.logMost {
		t.Errorf("the log has %d bytes after its last reader", g.size())
	}
	var wait int
	if err := g.write.QueryRow(`PRAGMA busy_timeout`).Scan(&wait); err != nil || time.Duration(wait)*time.Millisecond != lockPatience {
		t.Errorf("commits wait %d ms for locks: %v", wait, err)
	}
}
