package controller

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// DamageError says that the data base file is none, or is damaged.
type DamageError struct {
	Path   string
	Err    error
	Backup string // the newest that the controller made by itself, "" when there is none
	MadeAt time.Time
}

// Error names the file and what is wrong with it.
func (e *DamageError) Error() string { return e.Path + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *DamageError) Unwrap() error { return e.Err }

// Hint says how to go on.
func (e *DamageError) Hint() string {
	dir := filepath.Dir(e.Path)
	if e.Backup != "" {
		return fmt.Sprintf("the newest backup is of %s; put it back with: devopsController restore --force --data %s %s", e.MadeAt.Format(time.DateTime), dir, e.Backup)
	}
	return fmt.Sprintf("put a backup back with: devopsController restore --force --data %s FILE; or move it and its -wal and -shm files away to begin anew: agents must enrol again then", dir)
}

// damaged makes a DamageError of what SQLite says about a broken file, and leaves other errors alone.
func damaged(path string, err error) error {
	var known *DamageError
	if errors.As(err, &known) {
		return err
	}
	var bad *sqlite.Error
	var broken *brokenError
	if errors.As(err, &broken) || errors.As(err, &bad) && (bad.Code()&0xff == sqlite3.SQLITE_NOTADB || bad.Code()&0xff == sqlite3.SQLITE_CORRUPT) {
		e := &DamageError{Path: path, Err: err}
		e.Backup, e.MadeAt = newestBackup(filepath.Dir(path))
		return e
	}
	return err
}

// startCheck is the size up to which a data base is looked at page by page at every start: that takes a second or
// two. Larger ones are when a backup is made.
const startCheck = 128 << 20

// prepareFile makes a new data base where there is none, and refuses files that can be none: an empty one would be taken
// for a new one, and all agents would be unknown. lost says that its write-ahead log is damaged, which was told.
func prepareFile(path string, log *slog.Logger) (lost bool, err error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(path + "-wal"); err == nil {
			return false, damaged(path, &brokenError{[]string{"it is not there, but its -wal file is"}})
		}
		return false, makeDatabase(path, log)
	}
	if err != nil {
		return false, err
	}
	if info.Size() == 0 {
		return false, damaged(path, &brokenError{[]string{"the file is empty"}})
	}
	wal, err := os.Stat(path + "-wal")
	killed := err == nil && wal.Size() > 0 // it may hold what is missing
	if want, err := headerSize(path); err == nil && want > info.Size() && !killed {
		return false, damaged(path, &brokenError{[]string{fmt.Sprintf("the file has %d bytes, %d are missing", info.Size(), want-info.Size())}})
	}
	var found logState
	if killed {
		found, _ = writeAheadLog(path) // where it cannot be read, SQLite meets that as well, and says so
	}
	// All of this without a change to the files: SQLite writes to one that it opens to write, and finds out later.
	version, err := lookAt(context.Background(), path, !killed, info.Size() <= startCheck)
	if found.lost() {
		tellOfDamagedLog(path, found, err == nil && version <= len(steps()), log)
	}
	if err != nil {
		return false, damaged(path, unreadable(err))
	}
	if known := len(steps()); version > known {
		return false, &NewerError{Path: path, Have: version, Know: known}
	}
	return found.lost(), nil
}

// unreadable makes damage of an error that can be nothing else when a file that is there is read: bytes that SQLite cannot
// make anything of, or records that are none.
func unreadable(err error) error {
	var bad *sqlite.Error
	var broken *brokenError
	var locked *KeyError
	var file *fs.PathError
	switch {
	case err == nil, errors.As(err, &broken), errors.As(err, &locked), errors.As(err, &file):
		return err
	case errors.As(err, &bad):
		switch bad.Code() & 0xff {
		case sqlite3.SQLITE_ERROR, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_FORMAT:
		default:
			return err
		}
	}
	return &brokenError{[]string{err.Error()}}
}

// headerSize is how long a data base says that it is, 0 where it does not (SQLite's file format, 1.3).
func headerSize(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	var h [100]byte
	if _, err := io.ReadFull(f, h[:]); err != nil {
		return 0, err
	}
	page, count := int64(binary.BigEndian.Uint16(h[16:])), int64(binary.BigEndian.Uint32(h[28:]))
	if page == 1 {
		page = 65536
	}
	if string(h[:16]) != "SQLite format 3\x00" || binary.BigEndian.Uint32(h[24:]) != binary.BigEndian.Uint32(h[92:]) {
		return 0, nil
	}
	return page * count, nil
}

// makeDatabase makes a data base under another name first: one that has its name is whole.
func makeDatabase(path string, log *slog.Logger) error {
	fresh := path + ".new"
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(fresh + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	// Made here, because SQLite would make it readable for all; its -wal and -shm files take the mode over.
	f, err := os.OpenFile(fresh, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	st, err := openFile(fresh, log)
	if err != nil {
		return err
	}
	if err := st.close(); err != nil {
		return err
	}
	if err := os.Rename(fresh, path); err != nil {
		return err
	}
	syncFolder(filepath.Dir(path))
	return nil
}
