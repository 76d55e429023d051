package controller

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/klauspost/compress/zstd"
)

// Names in the data directory, and in a backup.
const (
	databaseFile = "controller.db"
	lockFile     = "controller.lock"
	backupsDir   = "backups" // what the controller backs up by itself
	infoFile     = "backup.json"
	sumsFile     = "sums.json"
	backupSuffix = ".tar.zst"
)

// Bounds of a backup: a foreign one must not fill disk or memory with names or small files.
const (
	maxBackupFiles = 1_000_000
	maxBackupText  = 64 << 20 // of infoFile and sumsFile
)

// backupFormat is the version of the archive's layout.
const backupFormat = 1

// BackupInfo is the first entry of a backup.
type BackupInfo struct {
	Format  int    `json:"format"`  // of the archive, 1
	MadeAt  int64  `json:"madeAt"`  // milliseconds since 1970
	Program string `json:"program"` // version of the controller
	Version int    `json:"version"` // of the tables
	Files   bool   `json:"files"`   // the files of releases are in it
	Bytes   int64  `json:"bytes"`   // of all entries after this one, about
}

// backupSum is what sumsFile, the last entry, says of another entry. A backup without it was cut off.
type backupSum struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

// errBackingUp says that there is one already.
var errBackingUp = errors.New("a backup is being made already")

// Backup writes a backup to w: a tar, compressed by zstd, of the data base as it is at one moment, of the operator's token and
// keys, and, if files is true, of the files of releases and all that lies in other folders. Nobody waits for it. begin,
// if any, is called before the first byte, when nothing but w can go wrong any more.
func (s *Server) Backup(ctx context.Context, w io.Writer, files bool, begin func()) error {
	if s.opts.Dir == "" {
		return &InputError{Err: errors.New("this controller is in memory")}
	}
	if !s.backing.TryLock() {
		return errBackingUp
	}
	defer s.backing.Unlock()
	return writeBackup(ctx, s.opts.Dir, s.store.read, w, BackupInfo{Program: s.opts.Version, Files: files}, begin)
}

// BackupStopped is Backup for a controller that does not run. It is a *BusyError when one does.
func BackupStopped(ctx context.Context, dir, program string, w io.Writer, files bool) (err error) {
	if _, err := os.Stat(filepath.Join(dir, databaseFile)); err != nil {
		return fmt.Errorf("back up %s: %w", dir, err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	db, err := sql.Open("sqlite", fileURI(filepath.Join(dir, databaseFile)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return damaged(filepath.Join(dir, databaseFile), writeBackup(ctx, dir, db, w, BackupInfo{Program: program, Files: files}, nil))
}

// lockDir takes the lock of a data directory, or is a *BusyError.
func lockDir(dir string) (*flock.Flock, error) {
	lock := flock.New(filepath.Join(dir, lockFile), flock.SetPermissions(0o600))
	locked, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if !locked {
		return nil, &BusyError{Dir: dir}
	}
	return lock, nil
}

func writeBackup(ctx context.Context, dir string, db *sql.DB, w io.Writer, info BackupInfo, begin func()) error {
	now := time.Now()
	copied := filepath.Join(dir, ".backup-"+randomHex(8)+".db")
	if err := copyDatabase(ctx, db, copied); err != nil {
		return fmt.Errorf("copy the data base: %w", err)
	}
	defer func() { _ = os.Remove(copied) }()
	var err error
	if info.Version, err = quickCheck(ctx, copied); err != nil {
		return damaged(filepath.Join(dir, databaseFile), fmt.Errorf("back up the data base: %w", err))
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	names, bytes, err := backedUp(root, info.Files)
	if err != nil {
		return err
	}
	size, err := os.Stat(copied)
	if err != nil {
		return err
	}
	info.Format, info.MadeAt, info.Bytes = backupFormat, millis(now), bytes+size.Size()
	if begin != nil {
		begin()
	}
	packed, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	a := archive{ctx: ctx, tar: tar.NewWriter(packed), now: now}
	err = a.text(infoFile, info)
	for _, name := range names {
		if err == nil {
			err = a.file(name, func() (fs.File, error) { return root.Open(filepath.FromSlash(name)) })
		}
	}
	if err == nil {
		err = a.file(databaseFile, func() (fs.File, error) { return os.Open(copied) })
	}
	if err == nil {
		err = a.text(sumsFile, a.sums)
	}
	if err == nil {
		err = a.tar.Close()
	}
	return errors.Join(err, packed.Close())
}

// backedUp lists what goes into a backup beside the data base, with slashes, and how many bytes that is.
func backedUp(root *os.Root, files bool) (names []string, bytes int64, err error) {
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		base := path.Base(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // it went meanwhile
		case err != nil:
			return err
		case name == ".":
			return nil
		case d.IsDir() && (!files || name == backupsDir || strings.HasPrefix(name, keptPrefix) || name == restoreDir):
			return fs.SkipDir
		case !d.Type().IsRegular(), strings.HasPrefix(base, "."), name == lockFile, name == "endpoint.json", name == infoFile, name == sumsFile,
			strings.HasPrefix(name, databaseFile):
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil // it went meanwhile
		}
		names, bytes = append(names, name), bytes+info.Size()
		return nil
	})
	return names, bytes, err
}

// archive is a backup that is being written.
type archive struct {
	ctx  context.Context
	tar  *tar.Writer
	now  time.Time
	sums []backupSum
}

func (a *archive) text(name string, v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		err = a.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(data)), ModTime: a.now, Format: tar.FormatPAX})
	}
	if err == nil {
		_, err = a.tar.Write(data)
	}
	return err
}

func (a *archive) file(name string, open func() (fs.File, error)) error {
	f, err := open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it went meanwhile
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	h := &tar.Header{Name: name, Mode: int64(info.Mode().Perm() & 0o700), Size: info.Size(), ModTime: info.ModTime(), Format: tar.FormatPAX}
	if err := a.tar.WriteHeader(h); err != nil {
		return err
	}
	sum := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(a.tar, sum), &unlessDone{a.ctx, f}, info.Size()); err != nil {
		return fmt.Errorf("back up %s: %w", name, err)
	}
	a.sums = append(a.sums, backupSum{Name: name, SHA256: hex.EncodeToString(sum.Sum(nil)), Size: info.Size()})
	return nil
}

// unlessDone is a reader that ends with its context.
type unlessDone struct {
	ctx context.Context
	r   io.Reader
}

// Read reads, or returns the context's cause.
func (u *unlessDone) Read(p []byte) (int, error) {
	if err := context.Cause(u.ctx); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}

// quickCheck looks at every page of a data base that nobody uses, and returns the version of its tables.
func quickCheck(ctx context.Context, file string) (version int, err error) {
	return lookAt(ctx, file, true, true)
}

// lookAt reads the version of a data base's tables and, if asked, looks at every page. It writes nothing. alone says that there
// is no write-ahead log to be read with it.
func lookAt(ctx context.Context, file string, alone, pages bool) (version int, err error) {
	how := "?mode=ro"
	if alone {
		how += "&immutable=1"
	}
	db, err := sql.Open("sqlite", fileURI(file)+how)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	if err := db.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version); err != nil || !pages {
		return version, err
	}
	faults, err := pragmaCheck(ctx, db, "quick_check(3)")
	if err == nil && len(faults) > 0 {
		err = &brokenError{faults}
	}
	return version, err
}

// brokenError is what SQLite says of a damaged data base.
type brokenError struct{ faults []string }

// Error lists the first faults.
func (e *brokenError) Error() string {
	return "database disk image is malformed: " + strings.Join(e.faults, "; ")
}

// pragmaCheck runs one of SQLite's checks and returns the faults.
func pragmaCheck(ctx context.Context, db *sql.DB, pragma string) (faults []string, err error) {
	rows, err := db.QueryContext(ctx, `PRAGMA `+pragma)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, err
		}
		if text != "ok" {
			faults = append(faults, text)
		}
	}
	return faults, rows.Err()
}

// BackupError says that a file is no backup, or not a whole one.
type BackupError struct{ Err error }

// Error says what is wrong with it.
func (e *BackupError) Error() string { return "this is no whole backup: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *BackupError) Unwrap() error { return e.Err }

// Hint says what to do.
func (e *BackupError) Hint() string { return "take another one: nothing was changed" }

// ReadBackup reads a backup to its end, checks everything in it, and returns what it says of itself. put, if any, takes each
// entry: its name has slashes and is a local one.
func ReadBackup(r io.Reader, put func(name string, mode fs.FileMode, content io.Reader) error) (info BackupInfo, err error) {
	unpacked, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(64<<20))
	if err != nil {
		return info, &BackupError{err}
	}
	defer unpacked.Close()
	seen, sums := make(map[string]backupSum), []backupSum(nil)
	entries := tar.NewReader(unpacked)
	for n := 0; ; n++ {
		h, err := entries.Next()
		if errors.Is(err, io.EOF) && sums != nil {
			break
		}
		if err != nil {
			return info, &BackupError{fmt.Errorf("it ends early: %w", err)}
		}
		_, again := seen[h.Name]
		switch {
		case n == 0 != (h.Name == infoFile), sums != nil, n > maxBackupFiles, again,
			h.Typeflag != tar.TypeReg, !filepath.IsLocal(filepath.FromSlash(h.Name)), path.Clean(h.Name) != h.Name:
			return info, &BackupError{fmt.Errorf("%q is not to be there", clip(h.Name, 200))}
		case h.Name == infoFile:
			if err := readText(entries, &info); err != nil {
				return info, &BackupError{fmt.Errorf("%s: %w", infoFile, err)}
			}
			if info.Format != backupFormat {
				return info, &BackupError{fmt.Errorf("its format is %d, this program knows %d", info.Format, backupFormat)}
			}
			seen[h.Name] = backupSum{}
			continue
		case h.Name == sumsFile:
			if err := readText(entries, &sums); err != nil {
				return info, &BackupError{fmt.Errorf("%s: %w", sumsFile, err)}
			}
			if sums == nil {
				return info, &BackupError{fmt.Errorf("%s is empty", sumsFile)}
			}
			continue
		}
		sum := sha256.New()
		content := io.TeeReader(foreign{entries}, sum)
		if put != nil {
			if err := put(h.Name, fs.FileMode(h.Mode)&0o700, content); err != nil {
				return info, err
			}
		}
		if _, err := io.Copy(io.Discard, content); err != nil {
			return info, err
		}
		seen[h.Name] = backupSum{Name: h.Name, SHA256: hex.EncodeToString(sum.Sum(nil)), Size: h.Size}
	}
	if _, err := io.Copy(io.Discard, foreign{unpacked}); err != nil { // its checksum is at the end
		return info, err
	}
	for _, want := range sums {
		if seen[want.Name] != want {
			return info, &BackupError{fmt.Errorf("%s is not what was backed up", clip(want.Name, 200))}
		}
	}
	if _, found := seen[databaseFile]; !found || len(sums) != len(seen)-1 {
		return info, &BackupError{errors.New("something in it is missing, or does not belong there")}
	}
	return info, nil
}

// foreign is a reader whose errors are the backup's fault.
type foreign struct{ r io.Reader }

// Read reads, and tells errors apart from those of the disk that is written to.
func (f foreign) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &BackupError{err}
	}
	return n, err
}

func readText(r io.Reader, v any) error {
	data, err := io.ReadAll(io.LimitReader(r, maxBackupText))
	if err != nil {
		return err
	}
	return json.NewDecoder(bytes.NewReader(data)).Decode(v)
}

// SaveBackup makes a backup in a new file of mode 0600: write gets the file. It has its name when it is whole, was
// read back, and is on disk.
func SaveBackup(file string, write func(io.Writer) error) (info BackupInfo, err error) {
	dir := filepath.Dir(file)
	f, err := os.CreateTemp(dir, "."+filepath.Base(file)+".*") // CreateTemp makes it 0600
	if err != nil {
		return info, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if err := write(f); err != nil {
		return info, err
	}
	if err := f.Sync(); err != nil {
		return info, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return info, err
	}
	if info, err = ReadBackup(f, nil); err != nil {
		return info, err
	}
	if err := f.Close(); err != nil {
		return info, err
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return info, err
	}
	syncFolder(dir)
	return info, nil
}

// apiBackup is POST /api/v1/backup {"files": BOOL}: the answer's body is the backup. One that is cut off ends the
// connection.
func (s *Server) apiBackup(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Files bool `json:"files"`
	}
	if !apiRead(w, r, &in) {
		return
	}
	begun := false
	err := s.Backup(r.Context(), w, in.Files, func() {
		begun = true
		w.Header().Set("Content-Type", "application/zstd")
		w.Header().Set("Cache-Control", "no-store")
	})
	switch {
	case err == nil:
		s.log.Info("A backup was fetched", "from", r.RemoteAddr)
	case begun:
		s.log.Warn("A backup was not fetched to its end", "err", err)
		panic(http.ErrAbortHandler) // the only way to tell the client that this is not the end
	default:
		s.log.Error("A backup could not be made", "err", err)
		operatorError(w, err)
	}
}

// backups makes a backup every BackupEvery, and keeps the newest BackupKeep.
func (s *Server) backups(ctx context.Context) {
	if s.opts.Dir == "" || s.opts.BackupEvery <= 0 {
		return
	}
	dir := filepath.Join(s.opts.Dir, backupsDir)
	wait := time.Duration(0)
	if _, at := newestBackup(s.opts.Dir); !at.IsZero() {
		wait = max(0, min(s.opts.BackupEvery, time.Until(at.Add(s.opts.BackupEvery))))
	}
	timer := time.NewTimer(max(wait, min(firstPrune, s.opts.BackupEvery)))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-timer.C:
			if err := s.backUp(ctx, dir, now); err != nil && ctx.Err() == nil {
				s.log.Error("No backup could be made", "err", err)
			}
			timer.Reset(s.opts.BackupEvery)
		}
	}
}

func (s *Server) backUp(ctx context.Context, dir string, now time.Time) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".controller-*")); err == nil {
		for _, part := range left {
			_ = os.Remove(part) // of a controller that was killed
		}
	}
	size, err := s.store.size()
	if err != nil {
		return err
	}
	if err := roomFor(dir, uint64(size.File)*3/2); err != nil {
		return err
	}
	file := filepath.Join(dir, backupName(now))
	if _, err := SaveBackup(file, func(w io.Writer) error { return s.Backup(ctx, w, false, nil) }); err != nil {
		return err
	}
	s.log.Info("A backup was made", "path", file)
	all := byAge(backupFiles(dir), now)
	for _, old := range all[:max(0, len(all)-s.opts.BackupKeep)] {
		_ = os.Remove(old)
	}
	return nil
}

// backupName names a backup that the controller makes by itself: names sort as times do.
func backupName(now time.Time) string {
	return "controller-" + now.UTC().Format("20060102T150405Z") + backupSuffix
}

// backupFiles lists the backups in a folder, the oldest first.
func backupFiles(dir string) []string {
	all, _ := filepath.Glob(filepath.Join(dir, "controller-*"+backupSuffix))
	slices.Sort(all)
	return all
}

// newestBackup is the newest backup that the controller of a data directory made by itself, "" when there is none.
func newestBackup(dir string) (file string, at time.Time) {
	all := byAge(backupFiles(filepath.Join(dir, backupsDir)), time.Now())
	if len(all) == 0 {
		return "", time.Time{}
	}
	file = all[len(all)-1]
	if info, err := os.Stat(file); err == nil {
		at = info.ModTime()
	}
	return file, at
}

// sweepBackups removes what was being made when an earlier controller was killed.
func sweepBackups(dir string) {
	left, _ := filepath.Glob(filepath.Join(dir, ".backup-*"))
	more, _ := filepath.Glob(filepath.Join(dir, "..backup-*"))
	tried, _ := filepath.Glob(filepath.Join(dir, ".room-*"))
	for _, part := range slices.Concat(left, more, tried) {
		_ = os.Remove(part)
	}
}
