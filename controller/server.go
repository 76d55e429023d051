package controller

import (
	"container/list"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/gofrs/flock"
	_ "modernc.org/sqlite" // the driver

	"github.com/devops-agent/devops-agent/agent/wire"
)

// keepEnded is how many ended builds stay in memory, for workers that repeat their last calls.
const keepEnded = 256

// Server is a controller: what BK-CI's back end is to an agent and a worker, for one machine.
// What it acknowledged is on disk; what runs is in memory as well, under one lock.
type Server struct {
	opts      Options
	log       *slog.Logger
	store     *store
	files     *files
	repo      *packages
	artifacts *blobs       // nil in memory
	room      *room        // of the data directory, nil in memory
	lock      *flock.Flock // of the data directory, nil in memory
	token     wire.Secret  // of the operator
	handler   http.Handler
	closing   chan struct{} // closed by Close: held requests are answered
	backing   sync.Mutex    // held while a backup is made

	sessions  *sessions // of the page
	admission *admission
	strangers traffic // whose secret is wrong

	mu          sync.Mutex
	closed      bool
	agents      map[string]*agent
	builds      map[string]*build // active ones and the last that ended
	ended       []*build          // those of builds that are over, oldest first
	queue       []*build          // queued, by number
	backlog     backlog           // the same, by what they want
	fresh       map[string]bool   // kinds of builds that were queued since the last dispatch
	waiting     *list.List        // of *waiter: held requests that want a build, the longest held first
	lastNumber  int64
	scripts     map[int64]*script // pipeline scripts that are not over
	lastScript  int64
	dirty       map[*build]bool // changed in memory, not on disk: the disk refused
	releases    map[string]*release
	uploaded    map[string]ReleaseFile // by SHA-256: the files of releases, and those that are to become some
	rollouts    []*rollout             // by number
	lastRollout int64
	access      map[string]*accessToken // by id
	runs        map[string]*run         // those that are not over
	lastRun     int64
	enrolTokens map[string]*enrolToken // by digest
	lastAudit   int64
	vault       vault
	definitions map[definitionKey]*definition
	replanned   time.Time     // when schedules were last looked at for a clock that was set back
	hooks       chan struct{} // holds one token while a delivery is looked at
	secrets     map[secretKey]*secret
}

// Open starts a controller on its data directory, which no other may use meanwhile. The caller runs Run for the
// timers and serves Handler; Close ends it.
func Open(opts Options) (*Server, error) {
	opts = opts.withDefaults()
	s := &Server{opts: opts, log: opts.Log, closing: make(chan struct{}), sessions: newSessions(), agents: make(map[string]*agent),
		builds: make(map[string]*build), backlog: make(backlog), fresh: make(map[string]bool), waiting: list.New(), admission: newAdmission(), scripts: make(map[int64]*script), dirty: make(map[*build]bool),
		releases: make(map[string]*release), uploaded: make(map[string]ReleaseFile), access: make(map[string]*accessToken), enrolTokens: make(map[string]*enrolToken)}
	if err := s.open(); err != nil {
		if s.store != nil {
			s.store.pending = nil // nothing is written by a controller that does not start
		}
		return nil, errors.Join(err, s.release())
	}
	s.handler = s.routes()
	return s, nil
}

func (s *Server) open() (err error) {
	path := ""
	if s.opts.Repo != "" {
		if s.repo, err = openPackages(s.opts.Repo); err != nil {
			return err
		}
	}
	if dir := s.opts.Dir; dir != "" {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make the data directory: %w", err)
		}
		if s.lock, err = lockDir(dir); err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Join(dir, restoreMark)); err == nil {
			return &UnfinishedError{Dir: dir}
		}
		sweepBackups(dir)
		if s.files, err = openFiles(filepath.Join(dir, "files")); err != nil {
			return err
		}
		if s.artifacts, err = openBlobs(filepath.Join(dir, "files", artifactBlobs)); err != nil {
			return err
		}
		path = filepath.Join(dir, databaseFile)
		s.room = &room{dir: dir, log: s.log}
		s.room.look(time.Now())
	}
	if s.token, err = operatorToken(s.opts.Dir); err != nil {
		return err
	}
	if s.store, err = openStore(path, s.log); err != nil {
		if full := storageError(s.opts.Dir, err); full != nil && path != "" {
			return full
		}
		return damaged(path, fmt.Errorf("open the data base: %w", err))
	}
	s.store.room = s.room
	if err := s.openVault(); err != nil {
		return damaged(path, err)
	}
	return damaged(path, unreadable(s.load(time.Now())))
}

// BusyError says that another controller uses the data directory.
type BusyError struct{ Dir string }

// Error names the directory.
func (e *BusyError) Error() string { return "another controller uses " + e.Dir }

// Hint says how to have two.
func (e *BusyError) Hint() string {
	return "stop it, or give this one a directory of its own with --data"
}

// TokenFile is the name of the file in the data directory that holds the operator's token, mode 0600.
const TokenFile = "operator.token"

// operatorToken reads the operator's token, or makes it at the first start.
func operatorToken(dir string) (wire.Secret, error) {
	fresh := wire.Secret(randomHex(32))
	if dir == "" {
		return fresh, nil
	}
	path := filepath.Join(dir, TokenFile)
	data, err := os.ReadFile(path)
	if err == nil && len(data) >= 32 {
		return wire.Secret(trim(data)), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read the operator's token: %w", err)
	}
	if err := writePrivate(path, []byte(string(fresh)+"\n")); err != nil {
		return "", fmt.Errorf("write the operator's token: %w", err)
	}
	return fresh, nil
}

func trim(data []byte) string {
	for len(data) > 0 && data[len(data)-1] <= ' ' {
		data = data[:len(data)-1]
	}
	return string(data)
}

// writePrivate replaces a file of mode 0600 by one rename, on disk before it returns.
func writePrivate(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // CreateTemp makes it 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}

// load fills the memory from the data base. Silence is counted from now: the time that the controller was down is
// nobody's fault.
func (s *Server) load(now time.Time) error {
	err := s.store.each(func(scan func(...any) error) error {
		var doc string
		if err := scan(&doc); err != nil {
			return err
		}
		a := newAgent(now)
		if err := json.Unmarshal([]byte(doc), &a.Agent); err != nil {
			return err
		}
		s.agents[a.ID] = a
		return nil
	}, `SELECT doc FROM agent`)
	if err != nil {
		return err
	}
	err = s.store.each(func(scan func(...any) error) error {
		b, err := s.scanBuild(scan, now)
		if err != nil {
			return err
		}
		s.builds[b.ID] = b
		if b.State == Queued {
			s.enqueue(b)
		}
		if a := s.agents[b.Agent]; a != nil && b.State != Queued {
			a.builds[b.ID] = b
		}
		return nil
	}, `SELECT spec, doc FROM build WHERE active = 1 ORDER BY number`)
	if err != nil {
		return err
	}
	for _, load := range []func() error{s.loadTokens, s.loadEnrolTokens, s.loadAudit, s.loadScripts, s.loadReleases, func() error { return s.loadRollouts(now) }} {
		if err := load(); err != nil {
			return err
		}
	}
	if err := s.loadSecrets(); err != nil {
		return err
	}
	s.hooks = make(chan struct{}, 1)
	if err := s.loadDefinitions(); err != nil {
		return err
	}
	if err := s.loadRuns(now); err != nil {
		return err
	}
	return s.store.each(func(scan func(...any) error) error { return scan(&s.lastNumber) }, `SELECT max((SELECT coalesce(max(number), 0) FROM build),
		(SELECT coalesce(max(value), 0) FROM counter WHERE name = ?))`, countBuilds)
}

func (s *Server) scanBuild(scan func(...any) error, now time.Time) (*build, error) {
	var spec, doc string
	if err := scan(&spec, &doc); err != nil {
		return nil, err
	}
	b := &build{since: now, beat: now, asked: now, changed: make(chan struct{})}
	if err := s.openDoc(b, doc); err != nil {
		return nil, err
	}
	err := s.openSpec(b, spec)
	b.covered = b.sensitive()
	b.resume(now)
	return b, err
}

// Run looks after the timers until ctx is done: silent agents and workers, builds that were handed out and never
// begun, limits, and changes that the disk refused.
func (s *Server) Run(ctx context.Context) error {
	var housework sync.WaitGroup
	defer housework.Wait()
	housework.Go(func() { s.keep(ctx) })
	housework.Go(func() { s.backups(ctx) })
	tick := time.NewTicker(s.opts.tick())
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case now := <-tick.C:
			s.admission.look(now)
			s.expire(now)
		}
	}
}

// expire applies every rule that depends on time.
func (s *Server) expire(now time.Time) {
	s.room.look(now)
	s.lapse(now)
	s.startDue(now)
	s.store.sync()
}

func (s *Server) lapse(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.agents {
		if a.Status == wire.ImportOK && a.held == 0 && now.Sub(a.seen) > s.opts.OfflineAfter {
			a.Status = wire.ImportException
			s.saveAgent(a)
			s.log.Info("Agent is offline", "agent", a.ID, "host", a.HostName)
		}
	}
	for _, b := range s.builds {
		s.expireBuild(b, now)
	}
	for b := range s.dirty {
		s.save(b)
	}
	for _, a := range s.agents {
		if a.saved.refused() {
			s.saveAgent(a)
		}
	}
	for _, c := range s.scripts {
		if c.saved.refused() {
			s.saveScript(c)
		}
		if c.Status == pipelinePending && c.given && now.Sub(c.since) > s.opts.ScriptWithin {
			c.given = false
			s.poke(s.agents[c.Agent])
		}
	}
	s.lapseRuns()
	s.dispatch(now)
	s.lapseRollouts(now)
	if s.files.changed() {
		for _, a := range s.agents {
			s.poke(a)
		}
	}
}

// expireBuild ends or re-queues a build whose agent or worker vanished (protocol §6.12, Appendix D).
func (s *Server) expireBuild(b *build, now time.Time) {
	limit := b.limit()
	switch {
	case b.State == Handed && now.Sub(b.since) >= s.opts.StartWithin:
		s.requeue(b, "its worker did not start within "+s.opts.StartWithin.String())
	case b.State != Running:
	case b.CancelRequested && now.Sub(later(b.beat, b.asked)) >= s.opts.CancelSilence:
		s.finish(b, Failed, fmt.Sprintf("it was being cancelled when its worker fell silent for %v: processes may be left on the machine", s.opts.CancelSilence), now)
	case now.Sub(b.beat) >= s.opts.WorkerSilence:
		s.finish(b, Failed, fmt.Sprintf("its worker was not heard of for %v", s.opts.WorkerSilence), now)
	case now.Sub(b.began) >= limit+s.opts.JobGrace && now.Sub(b.since) >= s.opts.JobGrace:
		s.finish(b, Failed, fmt.Sprintf("its time limit of %v is over, and the worker did not stop", limit), now)
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Close answers held requests and closes the data base. The HTTP server must have been shut down, or be about to:
// later calls are refused with status 503.
func (s *Server) Close() error {
	s.Release()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	return s.release()
}

// Release answers all held requests at once, and every later one without holding it: call it before
// http.Server.Shutdown, which waits for them.
func (s *Server) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.closing:
	default:
		close(s.closing)
	}
}

func (s *Server) release() error {
	var errs []error
	if s.store != nil {
		errs = append(errs, s.store.close())
	}
	if s.files != nil {
		errs = append(errs, s.files.close())
	}
	errs = append(errs, s.repo.close(), s.artifacts.close())
	if s.lock != nil {
		errs = append(errs, s.lock.Unlock())
	}
	return errors.Join(errs...)
}

// Handler answers agents, workers, installers and the operator.
func (s *Server) Handler() http.Handler { return s.handler }

// Token is the operator's token for /api/v1/.
func (s *Server) Token() wire.Secret { return s.token }

// save enqueues the state of a build. Call it with the lock held, and wait for the ticket without it.
func (s *Server) save(b *build) *ticket {
	if b.removed {
		return s.store.enqueue(func(*sql.Tx) error { return nil }, nil)
	}
	doc, err := s.doc(b)
	active := 1
	if b.State.Over() {
		active = 0
	}
	id, number, text := b.ID, b.Number, b.text
	var t *ticket
	t = s.store.enqueue(func(tx *sql.Tx) error {
		if err != nil {
			return err
		}
		_, err := tx.Exec(`INSERT INTO build (number, id, active, spec, doc) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (number) DO UPDATE SET active = excluded.active, doc = excluded.doc`, number, id, active, text, string(doc))
		return err
	}, func(err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err != nil {
			s.unwritten("A build's state could not be written", err, "build", id)
		} else if b.lastSave == t {
			delete(s.dirty, b)
		}
	})
	b.lastSave = t
	s.dirty[b] = true
	return t
}
