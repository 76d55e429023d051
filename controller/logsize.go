package controller

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"time"
)

// Bounds of the write-ahead log. SQLite begins it anew when a commit meets no reader that needs it, and readers that overlap all the
// time can keep it from that for ever.
const (
	logMost      = 64 << 20               // bytes from which it is written back with patience
	logLook      = time.Second            // between two looks at its size
	logAgain     = 5 * time.Second        // after a try that a reader, such as a backup, was in the way of
	logPatience  = 200 * time.Millisecond // with readers; commits wait as long
	lockPatience = 10 * time.Second       // of everybody else with a lock of the data base
)

// boundLog has a write-ahead log that has grown too long begun anew. The leader calls it.
func (st *store) boundLog(now time.Time) {
	if st.log == "" || now.Before(st.nextLook) {
		return
	}
	st.nextLook = now.Add(logLook)
	info, err := os.Stat(st.log)
	if err != nil || info.Size() <= st.logMost {
		return
	}
	if whole, err := st.writeBack(context.Background()); err != nil || !whole {
		st.nextLook = now.Add(logAgain) // a commit goes on appending to it, and says what is wrong with the disk
	}
}

// writeBack writes the log back into the data base and cuts it off, unless readers need it for longer than logPatience: then whole
// is false. The leader calls it.
func (st *store) writeBack(ctx context.Context) (whole bool, err error) {
	conn, err := st.write.Conn(ctx)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	// Whatever becomes of ctx, commits wait for locks as long as before.
	defer func() { err = errors.Join(err, patience(context.WithoutCancel(ctx), conn, lockPatience)) }()
	if err := patience(ctx, conn, logPatience); err != nil {
		return false, err
	}
	var busy, frames, moved int
	err = conn.QueryRowContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &frames, &moved)
	return err == nil && busy == 0, err
}

// patience is how long a connection waits for a lock.
func patience(ctx context.Context, conn *sql.Conn, d time.Duration) error {
	_, err := conn.ExecContext(ctx, fmt.Sprintf("PRAGMA busy_timeout=%d", d.Milliseconds()))
	return err
}
