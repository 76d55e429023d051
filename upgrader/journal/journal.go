package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// Limits of a trial (design: upgrades).
const (
	MostStarts = 3                // of the new agent without it having proved itself
	Patience   = 60 * time.Second // for a sign of life from it, see Guard
	MostMemory = 1 << 30          // bytes that it may use until then
)

// Journal is what an installation knows of its upgrades: the open one, and those that ended. Everything that changes
// something is to be called by who holds total-lock, and goes on where a crash has interrupted it.
type Journal struct {
	home string
	disk disk
	goos string
	now  func() time.Time
	log  *slog.Logger
}

// Open returns the journal of an installation. It touches nothing.
func Open(inst *service.Installation, log *slog.Logger) *Journal {
	return &Journal{home: inst.Home, disk: newDisk(inst.Home), goos: runtime.GOOS, now: time.Now, log: log}
}

func (j *Journal) path(names ...string) string {
	return filepath.Join(append([]string{j.home}, names...)...)
}

// at is a path of a record.
func (j *Journal) at(name string) string { return j.path(filepath.FromSlash(name)) }

func (j *Journal) in(id string, names ...string) string {
	return j.path(append([]string{dir, id}, names...)...)
}

// Found is the open upgrade.
type Found struct {
	State  State
	Starts int // of the new agent so far, in Trial
	Record *Record
	file   string // path of its record
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
	names, err := j.disk.ReadDir(j.path(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return Found{}, nil
	}
	if err != nil {
		return Found{}, fmt.Errorf("look for an open upgrade: %w", err)
	}
	var found Found
	for _, name := range names {
		s, starts, ok := stateOf(name)
		if !ok || s.rank() < found.State.rank() || s == found.State && starts < found.Starts {
			continue
		}
		found = Found{State: s, Starts: starts, file: j.path(dir, name)}
	}
	if found.State == None {
		return found, nil
	}
	text, err := j.disk.ReadFile(found.file)
	if err != nil {
		return Found{}, fmt.Errorf("read the open upgrade: %w", err)
	}
	if found.Record, err = decode(text); err != nil {
		return found, fmt.Errorf("read the open upgrade %s: %w", found.file, err)
	}
	return found, nil
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

// Item is something to be put into place.
type Item struct {
	Part     Part
	Live     string // path below home, with slashes; "" for the part's usual place
	From     string // absolute path of the new file, which stays where it is, or of the new directory in home, which moves
	Was, Now string // versions, for people; "" when unknown
}

// Plan is an upgrade that is wanted.
type Plan struct {
	Kind    Kind
	Source  string // for people
	Items   []Item
	Reached bool          // the agent of now can reach its server
	Foreign bool          // the new agent is not one of ours
	Proof   time.Duration // upgrade.settle_after of agent.toml
	Tell    bool          // the server waits to hear how it ends
}

// Begin writes an upgrade down, with everything that it needs, and forces all that to the disk. Nothing that is live has
// changed yet; from here on every Recover carries it out. When it fails, nothing is left behind but a line of history.
// Directories must have been forced to the disk already.
func (j *Journal) Begin(p Plan) (*Record, error) {
	found, err := j.Current()
	if err != nil {
		return nil, err
	}
	if found.State != None {
		return nil, &OpenError{found}
	}
	now := j.now()
	r := &Record{ID: newID(now), Kind: p.Kind, Source: p.Source, At: now.UTC().Truncate(time.Millisecond), Reached: p.Reached, Foreign: p.Foreign,
		Proof: int(p.Proof / time.Second), Tell: p.Tell}
	if err := j.stage(r, p.Items); err != nil {
		err = fmt.Errorf("prepare upgrade %s: %w", r.ID, err)
		j.sweepStage(r)
		j.end(r, Failed, err.Error(), Last{})
		return nil, err
	}
	j.log.Info("Upgrade written down", "upgrade", r.ID, "kind", string(r.Kind), "source", r.Source, "parts", r.parts())
	return r, nil
}

// parts lists what is replaced, for people.
func (r *Record) parts() string {
	var names []string
	for _, m := range r.Moves {
		name := string(m.Part)
		if m.To != "" {
			name += " " + m.To
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}

// stage makes the copies and links that a record speaks of, and last the record.
func (j *Journal) stage(r *Record, items []Item) error {
	if err := j.directories(r.ID); err != nil {
		return err
	}
	for _, item := range items {
		live := item.Live
		if live == "" {
			live = Place(item.Part, j.goos)
		}
		stage := j.stageFile
		if item.Part == JDK || item.Part == JDK17 {
			stage = j.stageTree
		}
		m, err := stage(r.ID, item, live)
		if err != nil {
			return fmt.Errorf("%s: %w", item.Part, err)
		}
		if m != nil {
			r.Moves = append(r.Moves, *m)
		}
	}
	if len(r.Moves) == 0 {
		return ErrNothing
	}
	for _, sub := range []string{j.in(r.ID, "new"), j.in(r.ID, "old"), j.in(r.ID), j.path(dir)} {
		if err := j.disk.Sync(sub); err != nil {
			return err
		}
	}
	j.write(r, Attempt{State: Begun})
	text, err := encode(r)
	if err != nil {
		return err
	}
	temp := j.in(r.ID, "record")
	if err := j.disk.Write(temp, text, 0o600); err != nil {
		return err
	}
	if err := j.disk.Sync(temp); err != nil {
		return err
	}
	if err := j.disk.Rename(temp, j.path(dir, Ready.name(0))); err != nil {
		return err
	}
	return j.disk.Sync(j.path(dir))
}

// ErrNothing: everything that was to be replaced is there already.
var ErrNothing = errors.New("nothing to replace")

func (j *Journal) directories(id string) error {
	for _, d := range []string{j.path(dir), j.in(id), j.in(id, "new"), j.in(id, "old")} {
		if err := j.disk.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	return nil
}

// stageFile copies a new file beside a link to the old one. It returns nothing when both are the same.
func (j *Journal) stageFile(id string, item Item, live string) (*Move, error) {
	m := &Move{Part: item.Part, Live: live, From: item.Was, To: item.Now}
	base := filepath.Base(filepath.FromSlash(live))
	m.Fresh = dir + "/" + id + "/new/" + base
	fresh := j.at(m.Fresh)
	if err := j.disk.Copy(item.From, fresh); err != nil {
		return nil, err
	}
	var err error
	if m.New, err = j.disk.Sum(fresh); err != nil {
		return nil, err
	}
	if m.Old, err = j.disk.Sum(j.at(live)); err != nil {
		return nil, err
	}
	if m.Old == m.New {
		return nil, j.disk.Remove(fresh)
	}
	if m.Old != "" {
		m.Kept = dir + "/" + id + "/old/" + base
		if err := j.disk.Link(j.at(live), j.at(m.Kept)); err != nil {
			return nil, err
		}
		if err := j.disk.Adopt(fresh, j.at(live)); err != nil {
			return nil, err
		}
	}
	if err := j.disk.Chmod(fresh, item.Part.mode()); err != nil {
		return nil, err
	}
	return m, j.disk.Sync(fresh)
}

// stageTree marks a new directory as that of this upgrade.
func (j *Journal) stageTree(id string, item Item, live string) (*Move, error) {
	fresh, err := filepath.Rel(j.home, item.From)
	if err != nil || !filepath.IsLocal(fresh) || filepath.Dir(fresh) != filepath.Dir(filepath.FromSlash(live)) {
		return nil, fmt.Errorf("%s is not beside %s in home", item.From, live)
	}
	m := &Move{Part: item.Part, Live: live, Fresh: filepath.ToSlash(fresh), Tree: true, From: item.Was, To: item.Now}
	mark := filepath.Join(item.From, marker)
	if err := j.disk.Remove(mark); err != nil {
		return nil, err
	}
	if err := j.disk.Write(mark, []byte(id+"\n"), 0o644); err != nil {
		return nil, err
	}
	if err := j.disk.Sync(mark); err != nil {
		return nil, err
	}
	if err := j.disk.Sync(item.From); err != nil {
		return nil, err
	}
	info, err := j.disk.Lstat(j.at(live))
	if err == nil {
		m.Kept = j.keptTree(live, fresh, info)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return m, j.disk.Sync(filepath.Dir(item.From))
}

// keptTree names the place of an old directory: jdk_<when it was made>.
func (j *Journal) keptTree(live, fresh string, info fs.FileInfo) string {
	for at := info.ModTime().Unix(); ; at++ {
		name := fmt.Sprintf("%s_%d", live, max(at, 0))
		if name == filepath.ToSlash(fresh) {
			continue
		}
		if _, err := j.disk.Lstat(j.at(name)); errors.Is(err, fs.ErrNotExist) {
			return name
		}
	}
}

// mode is that of a part's file.
func (p Part) mode() fs.FileMode {
	if p == Worker {
		return 0o644
	}
	return 0o755
}

// Place is where a part usually is below home (protocol §2.1).
func Place(p Part, goos string) string {
	exe := ""
	if goos == "windows" {
		exe = ".exe"
	}
	switch p {
	case Agent:
		return "devopsAgent" + exe
	case Daemon:
		return "devopsDaemon" + exe
	case Native:
		return "devopsWorker" + exe
	case Upgrader:
		return "upgrader" + exe
	case Worker:
		return "worker-agent.jar"
	case Init:
		return "agent_docker_init.sh"
	case JDK, JDK17:
		return string(p)
	}
	return string(p)
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

// Last is how the agent's last life ended, as far as who starts it knows.
type Last struct {
	How  string // "exit status 1: devopsAgent: …"
	Code *int   // exit code
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
// the agent can be started all the same.
func (j *Journal) Recover(ctx context.Context, last Last) (Result, error) {
	f, err := j.Current()
	if errors.Is(err, errDamaged) {
		return j.putAside(f, err)
	}
	if err != nil {
		return Result{}, err
	}
	switch f.State {
	case None:
		return Result{}, nil
	case Ready:
		if err := j.apply(ctx, &f); err != nil {
			return j.failed(f, err)
		}
		if f.State == Settling {
			return j.settle(f)
		}
	case Settling:
		return j.settle(f)
	case Undoing:
		return j.undo(f, Last{})
	case Trial:
		if !f.Record.onTrial() { // a crash between swap and settle: it was tried before it was swapped
			if err := j.enter(&f, Settling, 0); err != nil {
				return Result{State: f.State, Record: f.Record}, err
			}
			return j.settle(f)
		}
	}
	if f.Starts >= MostStarts {
		return j.giveUp(f, fmt.Sprintf("it was started %d times and did not prove itself", f.Starts), last)
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
	to := j.path(dir, damaged+newID(j.now()))
	if err := j.disk.Rename(f.file, to); err != nil {
		return Result{}, errors.Join(cause, err)
	}
	j.log.Error("Record of an upgrade is damaged; the programs stay as they are", "path", to, "err", cause)
	return Result{Damaged: to}, j.disk.Sync(j.path(dir))
}

// failed takes back an upgrade that could not be carried out.
func (j *Journal) failed(f Found, cause error) (Result, error) {
	result, err := j.giveUp(f, cause.Error(), Last{})
	return result, errors.Join(cause, err)
}

// giveUp decides that the old parts return, and brings them back.
func (j *Journal) giveUp(f Found, why string, last Last) (Result, error) {
	j.log.Error("Upgrade is taken back", "upgrade", f.Record.ID, "why", why, "last", last.How)
	j.note(f.Record.ID, reasonOf, why)
	if err := j.enter(&f, Undoing, 0); err != nil {
		return Result{State: f.State, Record: f.Record}, err
	}
	return j.undo(f, last)
}

// Apply carries out the upgrade that Begin wrote down. If it cannot, everything is as it was.
func (j *Journal) Apply(ctx context.Context) error {
	f, err := j.Current()
	if err != nil || f.State != Ready {
		return err
	}
	if err := j.apply(ctx, &f); err != nil {
		_, err := j.failed(f, err)
		return err
	}
	return nil
}

// apply moves everything. What has moved already stays.
func (j *Journal) apply(ctx context.Context, f *Found) error {
	for _, m := range f.Record.Moves {
		if err := ctx.Err(); err != nil {
			return err
		}
		if m.late() {
			continue
		}
		if err := j.forth(f.Record, m); err != nil {
			return fmt.Errorf("%s: %w", m.Part, err)
		}
	}
	next := Trial
	if !f.Record.onTrial() && !slices.ContainsFunc(f.Record.Moves, func(m Move) bool { return m.Tree || m.Part == Worker }) {
		next = Settling // nothing to try
	}
	return j.enter(f, next, 0)
}

// forth puts the new part in place.
func (j *Journal) forth(r *Record, m Move) error {
	live, fresh := j.at(m.Live), j.at(m.Fresh)
	if m.Tree {
		kept := fresh
		if m.Kept != "" {
			kept = j.at(m.Kept)
		}
		if err := swap.RecoverDir(j.disk, live, fresh, kept); err != nil {
			return err
		}
		if j.marked(live, r.ID) {
			return nil
		}
		if !j.marked(fresh, r.ID) {
			return fmt.Errorf("%s is not the directory that was prepared", m.Fresh)
		}
		return swap.Dir(j.disk, live, fresh, kept)
	}
	now, err := j.disk.Sum(live)
	if err != nil || now == m.New {
		return err
	}
	if sum, err := j.disk.Sum(fresh); err != nil {
		return err
	} else if sum != m.New {
		return fmt.Errorf("%s is not the file that was prepared", m.Fresh)
	}
	return swap.File(j.disk, live, fresh, "")
}

// back brings the old part back.
func (j *Journal) back(r *Record, m Move) error {
	live, fresh := j.at(m.Live), j.at(m.Fresh)
	if m.Tree {
		if m.Kept == "" {
			if j.marked(live, r.ID) {
				return j.disk.Remove(live)
			}
			return nil
		}
		kept := j.at(m.Kept)
		if err := swap.RecoverDir(j.disk, live, fresh, kept); err != nil {
			return err
		}
		if !j.marked(live, r.ID) {
			return nil
		}
		for _, old := range []string{kept, fresh} {
			if _, err := j.disk.Lstat(old); err == nil && !j.marked(old, r.ID) {
				return swap.Dir(j.disk, live, old, fresh)
			}
		}
		return fmt.Errorf("the old directory of %s is gone", m.Live)
	}
	now, err := j.disk.Sum(live)
	if err != nil || now == m.Old {
		return err
	}
	if m.Old == "" {
		if now == m.New {
			return j.disk.Remove(live)
		}
		return nil
	}
	if sum, err := j.disk.Sum(j.at(m.Kept)); err != nil {
		return err
	} else if sum != m.Old {
		return fmt.Errorf("the old file of %s is gone from %s", m.Live, m.Kept)
	}
	again := j.in(r.ID, "back-"+filepath.Base(live))
	if err := j.disk.Remove(again); err != nil {
		return err
	}
	if err := j.disk.Link(j.at(m.Kept), again); err != nil {
		return err
	}
	return swap.File(j.disk, live, again, "")
}

// marked reports whether a directory is the new one of an upgrade.
func (j *Journal) marked(dir, id string) bool {
	text, err := j.disk.ReadFile(filepath.Join(dir, marker))
	return err == nil && strings.TrimSpace(string(text)) == id
}

// Undo takes the open upgrade back, if there is one: why is for people.
func (j *Journal) Undo(why string, last Last) (Result, error) {
	f, err := j.Current()
	if err != nil || f.State == None {
		return Result{}, err
	}
	switch f.State {
	case Settling:
		return j.settle(f)
	case Undoing:
		return j.undo(f, last)
	}
	return j.giveUp(f, why, last)
}

// undo brings everything back. It goes on with the others when one part cannot be brought back.
func (j *Journal) undo(f Found, last Last) (Result, error) {
	var errs []error
	for _, m := range slices.Backward(f.Record.Moves) {
		if m.late() {
			continue
		}
		if err := j.back(f.Record, m); err != nil {
			errs = append(errs, fmt.Errorf("bring back %s: %w", m.Part, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return Result{State: f.State, Record: f.Record}, err
	}
	why := j.noted(f.Record.ID, reasonOf)
	if why == "" {
		why = "it was interrupted"
	}
	ended := j.end(f.Record, TakenBack, why, last)
	j.sweepStage(f.Record)
	j.drop(j.in(f.Record.ID, "old")) // what is live has them
	return j.close(f, ended)
}

// close forgets the open upgrade. It is the last step of each.
func (j *Journal) close(f Found, ended *Attempt) (Result, error) {
	err := j.disk.Remove(f.file)
	if err == nil {
		err = j.disk.Sync(j.path(dir))
	}
	if err != nil {
		return Result{State: f.State, Record: f.Record, Ended: ended}, fmt.Errorf("close upgrade %s: %w", f.Record.ID, err)
	}
	j.log.Info("Upgrade ended", "upgrade", f.Record.ID, "state", string(ended.State), "why", ended.Reason, "parts", f.Record.parts())
	return Result{Record: f.Record, Ended: ended}, nil
}

// sweepStage removes the new parts of an upgrade that did not stay.
func (j *Journal) sweepStage(r *Record) {
	errs := []error{j.disk.Remove(j.in(r.ID, "new")), j.disk.Remove(j.in(r.ID, "record"))}
	for _, m := range r.Moves {
		if m.Tree && j.marked(j.at(m.Fresh), r.ID) {
			errs = append(errs, j.disk.Remove(j.at(m.Fresh)))
		}
		errs = append(errs, j.disk.Remove(j.in(r.ID, "back-"+filepath.Base(m.Live))))
	}
	if err := errors.Join(errs...); err != nil {
		j.log.Warn("Parts of an upgrade stay behind", "upgrade", r.ID, "err", err)
	}
}

// Settle ends the trial of the open upgrade: the new version has proved itself. Without an upgrade on trial it does nothing.
func (j *Journal) Settle() (Result, error) {
	f, err := j.Current()
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

// settle puts the late parts into place and drops what is not needed any more.
func (j *Journal) settle(f Found) (Result, error) {
	for _, m := range f.Record.Moves {
		if !m.late() {
			continue
		}
		if err := j.forth(f.Record, m); err != nil {
			j.log.Error("Part of an upgrade not replaced; the old one works on", "upgrade", f.Record.ID, "part", string(m.Part), "err", err)
		}
	}
	ended := j.end(f.Record, Settled, "", Last{})
	if err := j.disk.Remove(j.in(f.Record.ID, "new")); err != nil {
		j.log.Warn("Parts of an upgrade stay behind", "upgrade", f.Record.ID, "err", err)
	}
	result, err := j.close(f, ended)
	if err == nil {
		j.Sweep()
	}
	return result, err
}
