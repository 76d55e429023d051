package controller

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
)

// Vacuumed is what a vacuum did: bytes before and after.
type Vacuumed struct {
	Before Size `json:"before"`
	After  Size `json:"after"`
}

// WholeError says that a data base cannot give its free room back while it is in use.
type WholeError struct{ Path string }

// Error names it.
func (e *WholeError) Error() string {
	return e.Path + " was made by the first version and cannot give its room back while the controller runs"
}

// Hint says what to do once.
func (e *WholeError) Hint() string {
	return "stop the controller, call devopsController vacuum once, and start it again; from then on it can"
}

// Vacuum gives all free room in the data base back to the file system, in small transactions that let everybody else write
// first. It needs no room of its own.
func (s *Server) Vacuum(ctx context.Context) (done Vacuumed, err error) {
	if s.opts.Dir == "" {
		return done, &InputError{Err: errors.New("this controller is in memory")}
	}
	var mode int
	if err := s.store.read.QueryRowContext(ctx, `PRAGMA auto_vacuum`).Scan(&mode); err != nil {
		return done, err
	}
	if mode != 2 {
		return done, &InputError{Err: &WholeError{Path: filepath.Join(s.opts.Dir, databaseFile)}}
	}
	if done.Before, err = s.store.size(); err != nil {
		return done, err
	}
	if err := s.giveBack(ctx, 0); err != nil {
		return done, err
	}
	// The file gets shorter when its log has been written back.
	if err := s.store.checkpoint(ctx); err != nil {
		return done, err
	}
	done.After, err = s.store.size()
	return done, err
}

// checkpoint writes the write-ahead log back, as far as no reader needs it.
func (st *store) checkpoint(ctx context.Context) error {
	select {
	case st.lead <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-st.lead }()
	st.flush()
	_, err := st.writeBack(ctx)
	return err
}

// VacuumStopped writes the data base of a controller that does not run anew, without free room and in order, and replaces
// the old one by it: that needs room for both. It is a *BusyError when one runs, a *SpaceError when there is too little room.
func VacuumStopped(ctx context.Context, dir string) (done Vacuumed, err error) {
	path := filepath.Join(dir, databaseFile)
	if _, err := os.Stat(path); err != nil {
		return done, fmt.Errorf("vacuum %s: %w", dir, err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	db, err := sql.Open("sqlite", fileURI(path)+"?_pragma=auto_vacuum(2)")
	if err != nil {
		return done, err
	}
	db.SetMaxOpenConns(1)
	fresh := path + ".vacuum"
	defer func() { _ = os.Remove(fresh) }()
	err = vacuumInto(ctx, db, dir, fresh, &done)
	if err = errors.Join(err, db.Close()); err != nil { // the last to close it writes its log back
		return done, damaged(path, err)
	}
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return done, err
		}
	}
	if err := os.Rename(fresh, path); err != nil {
		return done, err
	}
	syncFolder(dir)
	info, err := os.Stat(path)
	if err == nil {
		done.After = Size{File: info.Size(), Used: info.Size()}
	}
	return done, err
}

func vacuumInto(ctx context.Context, db *sql.DB, dir, fresh string, done *Vacuumed) error {
	st := &store{read: db}
	var err error
	if done.Before, err = st.size(); err != nil {
		return err
	}
	if err := roomFor(dir, uint64(done.Before.Used)); err != nil {
		return err
	}
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(fresh, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600) // SQLite would make it readable for all
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, `VACUUM INTO ?`, fresh); err != nil {
		return err
	}
	if _, err := quickCheck(ctx, fresh); err != nil {
		return err
	}
	if err := syncFile(fresh); err != nil {
		return err
	}
	// Nothing may be left in the write-ahead log that is written into what takes the place.
	var busy, log, moved int
	if err := db.QueryRowContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &log, &moved); err != nil {
		return err
	}
	if busy != 0 {
		return &BusyError{Dir: dir}
	}
	return nil
}

// apiVacuum is POST /api/v1/vacuum.
func (s *Server) apiVacuum(w http.ResponseWriter, r *http.Request) {
	done, err := s.Vacuum(r.Context())
	reply(w, done, err)
}
