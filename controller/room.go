package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/shirou/gopsutil/v4/disk"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// StorageError says that the data directory does not take what was to be written, or has no room for new work. What was
// refused is not done; reading goes on.
type StorageError struct {
	Dir  string
	Full bool  // there is no room, or so little that it is kept for what is under way
	Err  error // of the disk
}

// Error names the directory and the reason.
func (e *StorageError) Error() string {
	if e.Full {
		return fmt.Sprintf("the disk with %s is full: %v", e.Dir, e.Err)
	}
	return fmt.Sprintf("%s cannot be written: %v", e.Dir, e.Err)
}

// Unwrap returns the cause.
func (e *StorageError) Unwrap() error { return e.Err }

// Hint says what to do.
func (e *StorageError) Hint() string {
	if e.Full {
		return "make room there, or give it a larger disk; the controller goes on by itself then. Old logs and builds go with shorter --keep-logs and --keep-builds, or a smaller --keep-bytes"
	}
	return "see what the system says of that disk, and mount it for writing; the controller goes on by itself then"
}

// status is that of HTTP.
func (e *StorageError) status() int {
	if e.Full {
		return http.StatusInsufficientStorage
	}
	return http.StatusServiceUnavailable
}

// errLittleRoom is why new work is refused before the disk is full to the brim.
var errLittleRoom = errors.New("what is left is kept for the builds that are under way")

// storageError makes a StorageError of what says that a disk is full, or not to be written, nil of anything else.
func storageError(dir string, err error) *StorageError {
	var known *StorageError
	if errors.As(err, &known) {
		return known
	}
	var little *SpaceError
	var db *sqlite.Error
	switch {
	case err == nil:
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.As(err, &little),
		runtime.GOOS == "windows" && (errors.Is(err, syscall.Errno(112)) || errors.Is(err, syscall.Errno(39))): // ERROR_DISK_FULL, ERROR_HANDLE_DISK_FULL
		return &StorageError{Dir: dir, Full: true, Err: err}
	case errors.Is(err, syscall.EROFS):
		return &StorageError{Dir: dir, Err: err}
	case errors.As(err, &db):
		switch db.Code() & 0xff {
		case sqlite3.SQLITE_FULL:
			return &StorageError{Dir: dir, Full: true, Err: err}
		case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN: // a quota is an input/output error to SQLite
			return &StorageError{Dir: dir, Full: noRoom(dir), Err: err}
		}
	}
	return nil
}

// noRoom reports whether less than a page is left in a directory.
func noRoom(dir string) bool {
	usage, err := disk.Usage(dir)
	return err == nil && usage.Free < 64<<10
}

// reserve is how much of a disk is kept for builds that are under way: a twentieth of a small one.
func reserve(total uint64) uint64 { return min(reserveMost, total/20) }

// reserveMost is how much that is of a large one, bytes.
const reserveMost = 64 << 20

// room knows whether the data directory takes what is written there. nil takes everything: a data base in memory.
type room struct {
	dir string
	log *slog.Logger

	mu     sync.Mutex
	looked time.Time
	broken *StorageError // of the last commit, nil when it went well
	since  time.Time
	little bool // room, so that new work is refused
}

// note takes the outcome of a commit, says it when it is news, and returns what the error means.
func (r *room) note(err error) error {
	if r == nil {
		return err
	}
	bad := storageError(r.dir, err)
	if bad == nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken == nil {
		r.since = time.Now()
		r.log.Error("Nothing can be written: new work is refused, builds under way wait", "err", bad, "hint", bad.Hint())
	}
	r.broken = bad
	return bad
}

// refusal is why new work is refused now, nil when it is not.
func (r *room) refusal() error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.broken != nil:
		return r.broken
	case r.little:
		return &StorageError{Dir: r.dir, Full: true, Err: errLittleRoom}
	}
	return nil
}

// look measures the disk, at most once a second, and finds out whether one that refused takes something again.
func (r *room) look(now time.Time) { r.lookAfter(now, time.Second) }

// lookAfter is look for who has waited for so long since the last time.
func (r *room) lookAfter(now time.Time, pause time.Duration) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.looked).Abs() < pause {
		return
	}
	r.looked = now
	usage, err := disk.Usage(r.dir)
	little := err == nil && usage.Free < reserve(usage.Total)
	switch {
	case little && !r.little && r.broken == nil:
		r.log.Error("The disk is nearly full: new work is refused", "dir", r.dir, "free", megabytes(usage.Free), "hint", (&StorageError{Full: true}).Hint())
	case !little && r.little && r.broken == nil:
		r.log.Info("There is room on the disk again", "dir", r.dir, "free", megabytes(usage.Free))
	}
	r.little = little
	if r.broken == nil || little || r.try() != nil {
		return
	}
	r.log.Info("The disk takes what is written again", "dir", r.dir, "after", now.Sub(r.since).Round(time.Second))
	r.broken = nil
}

// tryBytes is what must fit before a disk that was full is taken for one that is not.
const tryBytes = 256 << 10

// try writes a file and removes it.
func (r *room) try() (err error) {
	f, err := os.CreateTemp(r.dir, ".room-*")
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, tryBytes))
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
}

// makesRoom are the ends of the operator's calls that are made with a full disk as well, beside DELETE: they end something.
var makesRoom = []string{"/cancel", "/pause", "/halt", "/rollback", "/vacuum", "/backup"}

// roomForCall is why a call of the operator's that changes something is not even tried, nil when it is.
func (s *Server) roomForCall(r *http.Request, pattern string) error {
	if s.room == nil || !audited(pattern) || strings.HasPrefix(pattern, http.MethodDelete+" ") ||
		slices.ContainsFunc(makesRoom, func(end string) bool { return strings.HasSuffix(pattern, end) }) {
		return nil
	}
	if s.room.refusal() != nil { // perhaps there is room since
		s.room.lookAfter(time.Now(), 50*time.Millisecond)
	}
	if err := s.room.refusal(); err != nil {
		return err
	}
	if r.ContentLength > smallBody {
		if err := roomFor(s.opts.Dir, uint64(r.ContentLength)); err != nil {
			return storageError(s.opts.Dir, err)
		}
	}
	return nil
}

// unwritten logs what the disk refused. That it does was said once, and is not said again for each change.
func (s *Server) unwritten(message string, err error, args ...any) {
	level := slog.LevelError
	var known *StorageError
	if errors.As(err, &known) {
		level = slog.LevelDebug
	}
	s.log.Log(context.Background(), level, message, append(args, "err", err)...)
}
