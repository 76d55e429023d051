package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"
)

// Item is something to be put into place.
type Item struct {
	Part     Part
	Live     string // directory of a JDK below home; "" for the part's usual place
	From     string // absolute path of the new file, which stays where it is, or of the new directory in home, which moves
	Was, Now string // versions, for people; "" when unknown
	Archive  string // SHA-256 of what a new directory was unpacked from, so that Bad can find it; "" when unknown
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

// EnvUpgrade is a variable with the ID of the upgrade that an upgrader is started for.
const EnvUpgrade = "DEVOPS_UPGRADE"

// ErrNothing: everything that was to be replaced is there already.
var ErrNothing = errors.New("nothing to replace")

// Begin writes an upgrade down, with everything that it needs, and forces all that to the disk. Nothing that is live has
// changed yet; from here on every Recover carries it out. When it fails, nothing is left behind but a line of history, and
// that only when there was something to replace: new directories are removed as well, unless another upgrade was open.
// What is in new directories must have been forced to the disk already (swap.SyncTree).
func (j *Journal) Begin(p Plan) (*Record, error) {
	found, err := j.Current()
	if err != nil {
		return nil, err
	}
	if found.State != None {
		return nil, &OpenError{found}
	}
	now := j.now()
	r := &Record{Kind: p.Kind, Source: p.Source, At: now.UTC().Truncate(time.Millisecond), Reached: p.Reached, Foreign: p.Foreign,
		Proof: int(p.Proof / time.Second), Tell: p.Tell}
	if r.ID, err = j.directories(now); err != nil {
		j.abandon(r, p.Items)
		return nil, fmt.Errorf("prepare an upgrade: %w", err)
	}
	if err := j.stage(r, p.Items); err != nil {
		err = fmt.Errorf("prepare upgrade %s: %w", r.ID, err)
		j.abandon(r, p.Items)
		if errors.Is(err, ErrNothing) {
			return nil, err
		}
		a := j.outline(r)
		a.State, a.Reason, a.Ended = Failed, err.Error(), j.stamp()
		if j.disk.Mkdir(j.in(r.ID), 0o700) != nil || j.save(&a) != nil {
			j.drop(j.in(r.ID))
		}
		return nil, err
	}
	j.log.Info("Upgrade written down", "upgrade", r.ID, "kind", string(r.Kind), "source", r.Source, "parts", r.parts())
	return r, nil
}

// abandon removes what Begin has made. The record goes first: without what it speaks of, it must not be found.
func (j *Journal) abandon(r *Record, items []Item) {
	if r.ID != "" {
		j.drop(j.path(dir, Ready.name(0)))
		if err := j.disk.Sync(j.path(dir)); err != nil {
			j.log.Warn("Left-over of an upgrade may come back", "upgrade", r.ID, "err", err)
		}
		j.drop(j.in(r.ID))
	}
	for _, item := range items {
		if name, err := j.beside(item); item.Part.tree() && err == nil {
			j.drop(j.at(name))
		}
	}
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

// directories makes those of a new upgrade, and returns its name.
func (j *Journal) directories(now time.Time) (string, error) {
	if err := j.disk.Mkdir(j.path(dir), 0o700); err != nil {
		return "", err
	}
	if err := j.disk.Sync(j.home); err != nil { // a record in a directory that is not there is none
		return "", err
	}
	names, err := j.disk.ReadDir(j.path(dir))
	if err != nil {
		return "", err
	}
	id := newID(now, names)
	if _, err := j.disk.Lstat(j.in(id)); err == nil { // not ours
		return "", &fs.PathError{Op: "mkdir", Path: j.in(id), Err: fs.ErrExist}
	}
	for _, d := range []string{j.in(id), j.in(id, "new"), j.in(id, "old")} {
		if err := j.disk.Mkdir(d, 0o700); err != nil {
			return id, err
		}
	}
	return id, nil
}

// stage makes the copies and links that a record speaks of, and last the record.
func (j *Journal) stage(r *Record, items []Item) error {
	for _, item := range items {
		stage := j.stageFile
		if item.Part.tree() {
			stage = j.stageTree
		}
		m, err := stage(r.ID, item)
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
	if err := r.check(j.goos); err != nil {
		return err
	}
	text, err := encode(r)
	if err != nil {
		return err
	}
	if len(text) > most {
		return fmt.Errorf("a record of %d bytes", len(text))
	}
	a := j.outline(r)
	_ = j.save(&a) // history is for people
	temp := j.in(r.ID, recordOf)
	if err := j.disk.Write(temp, text, 0o600); err != nil {
		return err
	}
	for _, path := range []string{temp, j.in(r.ID, "new"), j.in(r.ID, "old"), j.in(r.ID), j.path(dir)} {
		if err := j.disk.Sync(path); err != nil {
			return err
		}
	}
	if err := j.disk.Rename(temp, j.path(dir, Ready.name(0))); err != nil {
		return err
	}
	return j.disk.Sync(j.path(dir))
}

// stageFile copies a new file beside a link to the old one. It returns nothing when both are the same.
func (j *Journal) stageFile(id string, item Item) (*Move, error) {
	name := Place(item.Part, j.goos)
	if item.Live != "" && item.Live != name {
		return nil, fmt.Errorf("its place is %s, not %s", name, item.Live)
	}
	m := &Move{Part: item.Part, Live: name, Fresh: newPath(id, name), From: item.Was, To: item.Now}
	live, fresh := j.at(name), j.at(m.Fresh)
	if err := j.disk.Copy(item.From, fresh); err != nil {
		return nil, err
	}
	var err error
	if m.New, err = j.disk.Sum(fresh); err != nil {
		return nil, err
	}
	if m.Old, err = j.disk.Sum(live); err != nil {
		return nil, err
	}
	if m.Old == m.New {
		return nil, j.disk.Remove(fresh)
	}
	// A new file without an old one gets this mode; else swap.File gives it that of the old one.
	if err := j.disk.Chmod(fresh, item.Part.mode()); err != nil {
		return nil, err
	}
	if m.Old != "" {
		m.Kept = oldPath(id, name)
		if err := j.keep(live, j.at(m.Kept), fresh); err != nil {
			return nil, err
		}
	}
	return m, j.disk.Sync(fresh)
}

// keep makes the second name of an old file, and does now what could fail for want of room when it is replaced.
func (j *Journal) keep(live, kept, fresh string) error {
	if err := j.disk.Link(live, kept); err != nil {
		return err
	}
	info, err := j.disk.Lstat(kept)
	if err != nil || !info.Mode().IsRegular() {
		return err // a link that somebody has made
	}
	if err := j.disk.Adopt(fresh, live); err != nil {
		return err
	}
	return j.disk.Sync(kept) // whoever put it there may not have
}

// beside is the name in home of a new directory.
func (j *Journal) beside(item Item) (string, error) {
	live := item.Live
	if live == "" {
		live = Place(item.Part, j.goos)
	}
	fresh, err := filepath.Rel(j.home, item.From)
	if err != nil || !goodTree.MatchString(fresh) || !goodTree.MatchString(live) || fresh == live {
		return "", fmt.Errorf("%s cannot take the place of %s in home", item.From, live)
	}
	return fresh, nil
}

// stageTree marks a new directory as that of this upgrade.
func (j *Journal) stageTree(id string, item Item) (*Move, error) {
	fresh, err := j.beside(item)
	if err != nil {
		return nil, err
	}
	live := item.Live
	if live == "" {
		live = Place(item.Part, j.goos)
	}
	m := &Move{Part: item.Part, Live: live, Fresh: fresh, Tree: true, New: item.Archive, From: item.Was, To: item.Now}
	mark := filepath.Join(item.From, marker)
	if err := j.disk.Remove(mark); err != nil {
		return nil, err
	}
	if err := j.disk.Write(mark, []byte(id+"\n"), 0o644); err != nil {
		return nil, err
	}
	for _, path := range []string{mark, item.From} {
		if err := j.disk.Sync(path); err != nil {
			return nil, err
		}
	}
	info, err := j.disk.Lstat(j.at(live))
	switch {
	case err == nil && !info.IsDir() && info.Mode().Type() != fs.ModeSymlink:
		return nil, fmt.Errorf("%s is not a directory", live)
	case err == nil:
		if m.Kept, err = j.keptTree(live, fresh, info); err != nil {
			return nil, err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	return m, nil // directories has forced its name in home
}

// keptTree names the place of an old directory: jdk_<when it was made>.
func (j *Journal) keptTree(live, fresh string, info fs.FileInfo) (string, error) {
	base, at := live, info.ModTime().Unix()
	if at < firstStamp || at > lastNumber { // of an archive that has no times
		at = j.now().Unix()
	}
	if m := stamped.FindStringSubmatch(live); m != nil { // protocol §4.5: jdk1718000000 is a jdk
		base = m[1]
	}
	for try := int64(0); ; try++ {
		name := fmt.Sprintf("%s_%d", base, at+try)
		if name == fresh || name == live {
			continue
		}
		_, err := j.disk.Lstat(j.at(name))
		if errors.Is(err, fs.ErrNotExist) {
			return name, nil
		}
		if err != nil {
			return "", err
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
