package controller

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// artifactBlobs is the folder of the file store that holds the archives of artifacts, each under its SHA-256.
const artifactBlobs = "artifacts"

// tablesForArtifacts lists the artifacts that are in the records of builds, by what is asked for: which archives are in
// use, and which artifacts are the oldest.
const tablesForArtifacts = `
CREATE TABLE artifact (build INTEGER NOT NULL, name TEXT NOT NULL, project TEXT NOT NULL, sha256 TEXT NOT NULL, size INTEGER NOT NULL,
	saved INTEGER NOT NULL, expires INTEGER NOT NULL, PRIMARY KEY (build, name)) STRICT;
CREATE INDEX artifact_sha256 ON artifact (sha256, project);
CREATE INDEX artifact_saved ON artifact (saved);
CREATE INDEX artifact_expires ON artifact (expires) WHERE expires > 0;`

// blobGrace is how long an archive is kept that nobody names yet: one that has just come is named by the next call.
const blobGrace = time.Hour

// blobs is the store of archives by their content. The same content is there once, whoever sent it.
type blobs struct {
	root   *os.Root
	naming sync.Mutex // held while it is decided whether an archive has a name

	mu      sync.Mutex
	sizes   map[string]int64                // by SHA-256, of those that are there
	touched map[string]map[string]time.Time // which builds have asked for it and not named it yet, and when
	senders map[blobSender]bool             // who has sent what, in this process
	total   int64                           // bytes of all, and of those on their way
}

type blobSender struct{ project, digest string }

// BlobFullError says that there is no room for an artifact, by the limit for all of them.
type BlobFullError struct{ Need, Used, Limit int64 }

// Error names the limit.
func (e *BlobFullError) Error() string {
	return fmt.Sprintf("%s more, and all artifacts have %s: together they may have %s (serve --artifacts-total)", megabytes(uint64(e.Need)), megabytes(uint64(e.Used)), megabytes(uint64(e.Limit)))
}

// openBlobs opens the store and forgets what was on its way when an earlier controller ended.
func openBlobs(dir string) (*blobs, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the store of artifacts: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the store of artifacts: %w", err)
	}
	s := &blobs{root: root, sizes: make(map[string]int64), touched: make(map[string]map[string]time.Time), senders: make(map[blobSender]bool)}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read the store of artifacts: %w", err), root.Close())
	}
	for _, e := range entries {
		info, err := e.Info()
		switch {
		case err != nil:
		case objectName.MatchString(e.Name()) && info.Mode().IsRegular():
			s.sizes[e.Name()] = info.Size()
			s.total += info.Size()
		case strings.HasPrefix(e.Name(), uploadPrefix):
			_ = root.Remove(e.Name())
		}
	}
	return s, nil
}

const uploadPrefix = ".upload-"

func (s *blobs) close() error {
	if s == nil {
		return nil
	}
	return s.root.Close()
}

// touch keeps an archive for a build that is about to name it, and reports whether it is there, and whether the project
// has sent it.
func (s *blobs) touch(project, build, digest string, now time.Time) (there, sent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.touched[digest] == nil {
		s.touched[digest] = make(map[string]time.Time)
	}
	s.touched[digest][build] = now
	_, there = s.sizes[digest]
	return there, s.senders[blobSender{project, digest}]
}

// named says that the build has named the archive, on disk.
func (s *blobs) named(build, digest string) {
	s.naming.Lock()
	defer s.naming.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.touched[digest], build)
	if len(s.touched[digest]) == 0 {
		delete(s.touched, digest)
	}
}

// awaited reports whether a build is about to name an archive. Call it with mu held.
func (s *blobs) awaited(digest string, now time.Time) bool {
	for _, at := range s.touched[digest] {
		if now.Sub(at) <= blobGrace {
			return true
		}
	}
	return false
}

// reserve takes room for an archive that comes, or says what is missing. done gives back what it did not take.
func (s *blobs) reserve(digest string, size, limit int64) (done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.sizes[digest]; there {
		return func() {}, nil
	}
	if s.total+size > limit {
		return nil, &BlobFullError{Need: size, Used: s.total, Limit: limit}
	}
	s.total += size
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.total -= size
	}), nil
}

// put stores what r holds, if it is size bytes with the digest, and has it on disk before it returns. What is there already
// is compared and not stored again: a project can only name what it has.
func (s *blobs) put(project, digest string, size int64, r io.Reader) (err error) {
	s.mu.Lock()
	_, there := s.sizes[digest]
	s.mu.Unlock()
	sum := sha256.New()
	var fresh *os.File
	var to io.Writer = sum
	if !there {
		if fresh, err = s.root.OpenFile(uploadPrefix+randomHex(8), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err != nil {
			return &diskError{err}
		}
		defer func() {
			if err != nil {
				_ = fresh.Close()
				_ = s.root.Remove(baseName(fresh))
			}
		}()
		to = io.MultiWriter(&toDisk{fresh}, sum)
	}
	n, err := io.Copy(to, io.LimitReader(r, size+1))
	if err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); n != size || got != digest {
		return &InputError{Err: fmt.Errorf("the archive has %d bytes and SHA-256 %s, not %d and %s: it changed on the way", n, got, size, digest)}
	}
	if fresh != nil {
		if err := errors.Join(fresh.Sync(), fresh.Close()); err != nil {
			return &diskError{err}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if fresh != nil {
		if err := s.root.Rename(baseName(fresh), digest); err != nil {
			return &diskError{err}
		}
		if dir, err := s.root.Open("."); err == nil {
			_ = dir.Sync() // Windows cannot, and need not
			_ = dir.Close()
		}
		if _, twice := s.sizes[digest]; !twice {
			s.sizes[digest] = size
			s.total += size
		}
	}
	s.senders[blobSender{project, digest}] = true
	return nil
}

func baseName(f *os.File) string {
	name := f.Name()
	return name[strings.LastIndexAny(name, `/\`)+1:]
}

// diskError is an error of our own disk, as opposed to one of those who send.
type diskError struct{ err error }

func (e *diskError) Error() string { return "the controller cannot store it: " + e.err.Error() }
func (e *diskError) Unwrap() error { return e.err }

type toDisk struct{ w io.Writer }

func (d *toDisk) Write(data []byte) (int, error) {
	n, err := d.w.Write(data)
	if err != nil {
		err = &diskError{err}
	}
	return n, err
}

// open opens an archive.
func (s *blobs) open(digest string) (*os.File, error) {
	if s == nil || !objectName.MatchString(digest) {
		return nil, ErrNotFound
	}
	f, err := s.root.Open(digest)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("its archive: %w", ErrNotFound)
	}
	return f, err
}

// used is how many bytes archives take.
func (s *blobs) used() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// idle lists archives that nobody is about to name.
func (s *blobs) idle(now time.Time) (list []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for digest := range s.touched {
		if !s.awaited(digest, now) {
			delete(s.touched, digest)
		}
	}
	for digest := range s.sizes {
		if s.touched[digest] == nil {
			list = append(list, digest)
		}
	}
	return list
}

// drop removes an archive that has no name, which inUse tells, unless a build is about to give it one.
func (s *blobs) drop(digest string, now time.Time, inUse func() (bool, error)) error {
	s.naming.Lock()
	defer s.naming.Unlock()
	if used, err := inUse(); used || err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	size, there := s.sizes[digest]
	if !there || s.awaited(digest, now) {
		return nil
	}
	if err := s.root.Remove(digest); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil // it is being downloaded, on Windows
	}
	delete(s.sizes, digest)
	for sender := range s.senders {
		if sender.digest == digest {
			delete(s.senders, sender)
		}
	}
	s.total -= size
	return nil
}
