package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"runtime"
	"time"

	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/service/proc"
	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// Limits of a trial (design: upgrades).
const (
	MostStarts = 3                // of the new agent without it having proved itself
	Patience   = 60 * time.Second // for a sign of life from it, see Guard
	MostMemory = 1 << 30          // bytes that it may use until then
)

// Journal is what an installation knows of its upgrades: the open one, and those that ended. Everything that changes
// something (Begin, Apply, Adopt, Recover, Settle, Undo, Well, Forgive, Allow, Sweep, SweepTrees) is to be called by who holds
// total-lock, and goes on where a crash has interrupted it.
type Journal struct {
	home   string
	disk   disk
	goos   string
	now    func() time.Time
	log    *slog.Logger
	users  func(dir string) int // see userOf
	memory func(pid int) int64  // see memoryOf
	limit  int64                // MostMemory
	every  time.Duration        // of Guard's looks
}

// Open returns the journal of an installation. It touches nothing.
func Open(inst *service.Installation, log *slog.Logger) *Journal {
	return open(inst.Home, newDisk(inst.Home), runtime.GOOS, log)
}

func open(home string, d disk, goos string, log *slog.Logger) *Journal {
	return &Journal{home: home, disk: d, goos: goos, now: time.Now, log: log, users: userOf, memory: memoryOf, limit: MostMemory, every: guardEvery}
}

func (j *Journal) path(names ...string) string {
	return filepath.Join(append([]string{j.home}, names...)...)
}

// at is a path of a record.
func (j *Journal) at(name string) string { return j.path(filepath.FromSlash(name)) }

func (j *Journal) in(id string, names ...string) string {
	return j.path(append([]string{dir, id}, names...)...)
}

// read returns a small file of ours; what somebody else has put in its place, a pipe or a giant, is an error.
func (j *Journal) read(path string) ([]byte, error) {
	info, err := j.disk.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > most {
		return nil, fmt.Errorf("%w: %s is no file of at most %d bytes", errDamaged, path, most)
	}
	return j.disk.ReadFile(path)
}

// Found is the open upgrade.
type Found struct {
	State  State
	Starts int // of the new agent so far, in Trial
	Record *Record
	file   string   // path of its record
	others []string // paths of files that are named like records as well, and less far
}

// Current returns the open upgrade; its State is None when there is none. Any number of processes may look at any time.
func (j *Journal) Current() (Found, error) {
	for try := 0; ; try++ {
		found, err := j.current()
		if err == nil || !errors.Is(err, fs.ErrNotExist) || try == 5 { // the name has changed meanwhile
			return found, err
		}
	}
}

func (j *Journal) current() (Found, error) {
	info, err := j.disk.Lstat(j.path(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return Found{}, nil
	}
	if err != nil {
		return Found{}, fmt.Errorf("look for an open upgrade: %w", err)
	}
	if !info.IsDir() || stranger(info, j.home) {
		return Found{}, fmt.Errorf("look for an open upgrade: %s is not a directory of this installation", j.path(dir))
	}
	names, err := j.disk.ReadDir(j.path(dir))
	if err != nil {
		return Found{}, fmt.Errorf("look for an open upgrade: %w", err)
	}
	var found Found
	for _, name := range names {
		s, starts, ok := stateOf(name)
		if !ok {
			continue
		}
		path := j.path(dir, name)
		if s.rank() < found.State.rank() || s == found.State && starts < found.Starts {
			found.others = append(found.others, path)
			continue
		}
		if found.file != "" {
			found.others = append(found.others, found.file)
		}
		found.State, found.Starts, found.file = s, starts, path
	}
	if found.State == None {
		return found, nil
	}
	text, err := j.read(found.file)
	if err == nil {
		found.Record, err = decode(text, j.goos)
	}
	if err != nil {
		return found, fmt.Errorf("read the open upgrade %s: %w", found.file, err)
	}
	return found, nil
}

// certain is Current for who acts on it: a state that was entered by a process that was killed at once may not be on the
// disk yet, and what is done next must not be older than it.
func (j *Journal) certain() (Found, error) {
	f, err := j.Current()
	if err != nil || f.State == None {
		return f, err
	}
	if err := j.disk.Sync(j.path(dir)); err != nil {
		return f, fmt.Errorf("read the open upgrade %s: %w", f.file, err)
	}
	return f, nil
}

// enter gives the record the name of another state, which is how that state begins. A rename needs no room on a disk.
func (j *Journal) enter(f *Found, s State, starts int) error {
	to := j.path(dir, s.name(starts))
	if to == f.file {
		return nil
	}
	if err := j.disk.Rename(f.file, to); err != nil {
		return fmt.Errorf("note that upgrade %s is in state %q: %w", f.Record.ID, s, err)
	}
	f.file, f.State, f.Starts = to, s, starts
	if err := j.disk.Sync(j.path(dir)); err != nil {
		return fmt.Errorf("note that upgrade %s is in state %q: %w", f.Record.ID, s, err)
	}
	return nil
}

// OpenError: there is an open upgrade already.
type OpenError struct{ Found Found }

// Error names it.
func (e *OpenError) Error() string {
	return fmt.Sprintf("upgrade %s is not finished (%s)", e.Found.Record.ID, e.Found.State)
}

// Hint says how it ends.
func (e *OpenError) Hint() string {
	return `it ends by itself when the new version has proved itself or was taken back; "devopsAgent status" shows how far it is`
}

// Last is how the agent's last life ended, as far as who starts it knows.
type Last struct {
	How  string `json:"how,omitempty"`  // "exit status 1: devopsAgent: …"
	Code *int   `json:"code,omitempty"` // exit code
}

// known reports that it says anything.
func (l Last) known() bool { return l.How != "" || l.Code != nil }

// Ended notes how the last life of a version on trial ended, for keepers that do not tell who starts the next one (systemd runs
// "upgrader ended" for it). It is called when that life is over; without one it does nothing, and total-lock is not needed.
func (j *Journal) Ended(last Last) error {
	f, err := j.Current()
	if err != nil || f.State != Trial || !last.known() {
		return err
	}
	pid, started, ok := j.noted(f.Record.ID)
	if !ok || proc.Alive(pid, started) {
		return nil
	}
	text, err := json.Marshal(last)
	if err == nil {
		err = swap.WriteFileOn(j.disk, j.in(f.Record.ID, lastOf), text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("note how the new version of upgrade %s ended: %w", f.Record.ID, err)
	}
	return nil
}

// lastEnd is what is known of the last life of a new version: last, if its keeper has told that, or else what Ended has noted.
func (j *Journal) lastEnd(id string, last Last) Last {
	if last.known() {
		return last
	}
	text, err := j.read(j.in(id, lastOf))
	if err != nil || json.Unmarshal(text, &last) != nil {
		return Last{}
	}
	return last
}

// Result is what Recover, Settle or Undo came to.
type Result struct {
	State   State    // of the upgrade that is open now
	Record  *Record  // of it, or of the one that ended; nil when there was none
	Ended   *Attempt // the upgrade that has just ended
	Starts  int
	Damaged string // a record that could not be read was put there
}

// Recover opens every start of the agent: it carries an interrupted upgrade on, counts the starts of a new version, and brings
// the old one back when those are used up. It is idempotent but for the count. An error leaves complete programs in place:
// the agent can be started all the same. A context that has ended keeps it from beginning, not from finishing.
func (j *Journal) Recover(ctx context.Context, last Last) (Result, error) {
	f, err := j.certain()
	if errors.Is(err, errDamaged) {
		return j.putAside(f, err)
	}
	if err != nil {
		return Result{}, err
	}
	j.dismiss(f.others)
	switch f.State {
	case None:
		return Result{}, nil
	case Ready:
		if err := ctx.Err(); err != nil {
			return Result{State: f.State, Record: f.Record}, fmt.Errorf("carry on upgrade %s: %w", f.Record.ID, err)
		}
		if err := j.apply(&f); err != nil {
			return j.failed(f, err)
		}
	case Cancelling, Undoing:
		return j.undo(f, j.cause(f.Record.ID))
	}
	if f.State == Trial && !f.Record.onTrial() { // what can be tried in it was tried before, or was about to be when we were interrupted
		if err := j.enter(&f, Settling, 0); err != nil {
			return Result{State: f.State, Record: f.Record}, err
		}
	}
	if f.State == Settling {
		return j.settle(f)
	}
	if f.Starts >= MostStarts {
		return j.giveUp(f, cause{fmt.Sprintf("it was started %d times and did not prove itself", f.Starts), last})
	}
	if f.Starts > 0 && last.known() { // for who takes it back meanwhile
		if text, err := json.Marshal(last); err == nil {
			j.note(f.Record.ID, lastOf, string(text))
		}
	}
	if err := j.enter(&f, Trial, f.Starts+1); err != nil {
		return Result{State: f.State, Record: f.Record, Starts: f.Starts}, err
	}
	j.log.Info("New version is on trial", "upgrade", f.Record.ID, "parts", f.Record.parts(), "start", f.Starts, "of", MostStarts)
	return Result{State: f.State, Record: f.Record, Starts: f.Starts}, nil
}

// putAside takes a record out of the way that says nothing any more. Programs are complete all the same: each was replaced in one
// step, or not at all.
func (j *Journal) putAside(f Found, cause error) (Result, error) {
	to := j.path(dir, damaged+newID(j.now(), nil))
	if err := j.disk.Rename(f.file, to); err != nil {
		return Result{}, errors.Join(cause, err)
	}
	j.log.Error("Record of an upgrade is damaged; the programs stay as they are", "path", to, "err", cause)
	j.dismiss(f.others)
	return Result{Damaged: to}, j.disk.Sync(j.path(dir))
}

// dismiss puts files aside that are named like records and are none of ours: at most one is open at a time.
func (j *Journal) dismiss(paths []string) {
	for _, path := range paths {
		to := j.path(dir, damaged+newID(j.now(), nil))
		err := j.disk.Rename(path, to)
		j.log.Error("Second record of an open upgrade put aside", "path", path, "to", to, "err", err)
	}
}

// Apply carries out the upgrade that Begin wrote down. If it cannot, it says why, and everything is as it was: then, or, when
// even that could not be done, after the next Recover.
func (j *Journal) Apply(ctx context.Context) error {
	f, err := j.certain()
	if err != nil || f.State != Ready {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("carry out upgrade %s: %w", f.Record.ID, err) // Recover will
	}
	if err := j.apply(&f); err != nil {
		_, err := j.failed(f, err)
		return err
	}
	return nil
}

// Undo takes the open upgrade back, if there is one: why is for people. One that has proved itself is ended instead.
func (j *Journal) Undo(why string, last Last) (Result, error) {
	f, err := j.certain()
	if err != nil || f.State == None {
		return Result{}, err
	}
	switch f.State {
	case Settling:
		return j.settle(f)
	case Cancelling, Undoing:
		return j.undo(f, j.cause(f.Record.ID))
	}
	return j.giveUp(f, cause{why, last})
}

// Settle ends the trial of the open upgrade: the new version has proved itself. Without an upgrade on trial it does nothing.
func (j *Journal) Settle() (Result, error) {
	f, err := j.certain()
	if err != nil {
		return Result{}, err
	}
	switch f.State {
	case Trial:
		if err := j.enter(&f, Settling, 0); err != nil {
			return Result{State: f.State, Record: f.Record}, err
		}
	case Settling:
	default:
		return Result{State: f.State, Record: f.Record}, nil
	}
	return j.settle(f)
}

// Well notes that the new version runs well and only waits for its server: starts of later days do not count against it. It is
// for a version that has run for as long as would settle it; one that crashes sooner must not get new starts by it.
func (j *Journal) Well() error {
	f, err := j.Current()
	if err != nil || f.State != Trial || f.Starts == 0 {
		return err
	}
	return j.enter(&f, Trial, 0)
}
