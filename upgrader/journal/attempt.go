package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// Outcome is how an upgrade ended.
type Outcome string

// The outcomes.
const (
	Begun     Outcome = "begun"       // it has not ended
	Settled   Outcome = "settled"     // the new version stays
	TakenBack Outcome = "rolled-back" // the new version was tried, and the old one is back
	Failed    Outcome = "failed"      // it could not be put into place: nothing was tried
)

// Attempt is one upgrade in the history of an installation. It is what "devopsAgent upgrade history --json" prints: fields are
// added, never changed.
type Attempt struct {
	ID       string    `json:"id"`
	Kind     Kind      `json:"kind"`
	Source   string    `json:"source,omitempty"`
	Began    time.Time `json:"began"`
	Ended    time.Time `json:"ended,omitzero"`
	State    Outcome   `json:"state"`
	Parts    []Change  `json:"parts"`
	Reason   string    `json:"reason,omitempty"`    // why it was taken back or failed
	LastExit string    `json:"last_exit,omitempty"` // how the new agent ended last
	ExitCode *int      `json:"exit_code,omitempty"` // of that
	Stderr   string    `json:"stderr,omitempty"`    // end of what the new agent wrote to standard error
	Untold   bool      `json:"untold,omitempty"`    // the server has not heard yet how it ended
	Forgiven bool      `json:"forgiven,omitempty"`  // the operator wants this version tried again
	Leftover []string  `json:"leftover,omitempty"`  // directories that are still in use, below home
	Left     bool      `json:"left,omitempty"`      // a rollback by hand: the server is not to bring back what it left; only History says so

	unwritten bool // there was no room for this when it ended
}

// Change is one part of an attempt.
type Change struct {
	Part   Part   `json:"part"`
	From   string `json:"from,omitempty"`
	To     string `json:"to,omitempty"`
	Old    string `json:"old_sha256,omitempty"`
	New    string `json:"new_sha256,omitempty"`
	Backup string `json:"backup,omitempty"` // where the old file is, below home
}

const (
	mostAttempts = 30       // that are kept; of those that were taken back, more
	mostBackups  = 2        // steps that "devopsAgent rollback" can go back
	mostStderr   = 16 << 10 // bytes of standard error in the history
	mostDamaged  = 5        // records that could not be read
)

// Version is the version of the agent that the attempt was about, "" when it was about other parts.
func (a *Attempt) Version() (from, to string) {
	if c, ok := a.of(Agent); ok {
		return c.From, c.To
	}
	return "", ""
}

func (a *Attempt) of(p Part) (Change, bool) {
	for _, c := range a.Parts {
		if c.Part == p {
			return c, true
		}
	}
	return Change{}, false
}

// keeps reports whether a file is kept for a rollback.
func (a *Attempt) keeps(backup string) bool {
	return slices.ContainsFunc(a.Parts, func(c Change) bool { return c.Backup == backup })
}

func (a *Attempt) hasBackup() bool {
	return slices.ContainsFunc(a.Parts, func(c Change) bool { return c.Backup != "" })
}

// outline is the history entry of an upgrade that has begun.
func (j *Journal) outline(r *Record) Attempt {
	a := Attempt{ID: r.ID, Kind: r.Kind, Source: r.Source, Began: r.At, State: Begun, Parts: []Change{}}
	for _, m := range r.Moves {
		a.Parts = append(a.Parts, Change{Part: m.Part, From: m.From, To: m.To, Old: m.Old, New: m.New})
	}
	return a
}

// closed is the history entry of an upgrade that has ended, without what only those know who saw it end. What is kept for a
// rollback are the programs, if the agent is one of them: an agent and a daemon of one version belong together.
func (j *Journal) closed(r *Record, how Outcome) Attempt {
	a := j.outline(r)
	a.State, a.Untold = how, r.Tell
	if how != Settled {
		return a
	}
	_, agent := r.Of(Agent)
	for i, m := range r.Moves {
		switch {
		case m.Tree && m.Kept != "":
			a.Leftover = append(a.Leftover, m.Kept)
		case agent && m.Part.program():
			a.Parts[i].Backup = m.Kept
		}
	}
	return a
}

// end notes how an upgrade ended. When that was interrupted and is done again, the first account of it is the better one.
func (j *Journal) end(r *Record, how Outcome, c cause) *Attempt {
	if a, ok := j.load(r.ID); ok && a.State == how && !a.unwritten {
		return &a
	}
	a := j.closed(r, how)
	a.Ended = j.stamp()
	if how != Settled {
		a.Reason, a.LastExit, a.ExitCode, a.Stderr = c.Why, c.Last.How, c.Last.Code, j.tail(r.ID)
	}
	_ = j.save(&a)
	return &a
}

func (j *Journal) stamp() time.Time { return j.now().UTC().Truncate(time.Millisecond) }

// save writes an attempt. History is for people: an upgrade does not fail for want of it.
func (j *Journal) save(a *Attempt) error {
	kept := *a
	kept.Left = false // it depends on what comes later
	text, err := json.MarshalIndent(&kept, "", " ")
	if err == nil {
		err = swap.WriteFileOn(j.disk, j.in(a.ID, attemptOf), append(text, '\n'), 0o600)
	}
	if err != nil {
		j.log.Warn("History of an upgrade not written", "upgrade", a.ID, "err", err)
	}
	return err
}

// tail is the end of what the new agent wrote to standard error.
func (j *Journal) tail(id string) string {
	text, err := j.disk.Tail(j.in(id, stderrOf), mostStderr)
	if err != nil {
		return ""
	}
	return strings.ToValidUTF8(string(text), "\ufffd")
}

// note keeps a line for later, if there is room.
func (j *Journal) note(id, name, text string) {
	if err := swap.WriteFileOn(j.disk, j.in(id, name), []byte(text), 0o600); err != nil {
		j.log.Warn("Note on an upgrade not written", "upgrade", id, "note", name, "err", err)
	}
}

func (j *Journal) noteCause(id string, c cause) {
	if text, err := json.Marshal(c); err == nil {
		j.note(id, causeOf, string(text))
	}
}

// cause is what noteCause has noted.
func (j *Journal) cause(id string) cause {
	var c cause
	text, err := j.read(j.in(id, causeOf))
	if err != nil || json.Unmarshal(text, &c) != nil || c.Why == "" {
		return cause{Why: "it was interrupted while it was taken back, and there was no room to note why it was"}
	}
	return c
}

// History lists the attempts, the latest first. What cannot be read is left out.
func (j *Journal) History() ([]Attempt, error) {
	names, err := j.disk.ReadDir(j.path(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the history of upgrades: %w", err)
	}
	var list []Attempt
	for _, name := range names {
		if a, ok := j.load(name); ok {
			list = append(list, a)
		}
	}
	slices.SortStableFunc(list, func(a, b Attempt) int { // by their names, not their times: clocks are set back
		if number(a.ID) != number(b.ID) {
			if number(a.ID) > number(b.ID) {
				return -1
			}
			return 1
		}
		return strings.Compare(b.ID, a.ID)
	})
	markLeft(list)
	return list, nil
}

// markLeft marks the rollbacks by which an operator has left a version that he has not returned to since, and returns the latest
// upgrade to a version that is none, which ends what earlier ones say; "" for none. Lists are as History's.
func markLeft(list []Attempt) (decisive string) {
	returned := make(map[string]bool)
	for i := range list {
		list[i].Left = false
	}
	for i, a := range list {
		c, ok := a.of(Agent)
		if !ok || a.State != Settled {
			continue
		}
		if a.Kind != Rollback {
			return a.ID
		}
		list[i].Left = c.Old != "" && !returned[c.Old] && !a.Forgiven
		returned[c.New], returned[c.Old] = true, true
	}
	return ""
}

// Left finds the rollback by which an operator has left a version of the agent: sum is the SHA-256 of its program. nil is none. Until
// another version has settled here, or the operator allows it, the server is not to bring that one back.
func (j *Journal) Left(sum string) (*Attempt, error) {
	list, err := j.History()
	if err != nil || sum == "" {
		return nil, err
	}
	for _, a := range list {
		if c, _ := a.of(Agent); a.Left && c.Old == sum {
			return &a, nil
		}
	}
	return nil, nil
}

// LeftError: an operator has left this version of the agent by "devopsAgent rollback", and the server offers it again.
type LeftError struct{ Attempt *Attempt }

// Error says when.
func (e *LeftError) Error() string {
	version, _ := e.Attempt.Version()
	return fmt.Sprintf("%s was rolled back by hand at %s and is not taken from the server again", version, e.Attempt.Ended.Local().Format("2006-01-02 15:04"))
}

// Hint says how it comes back.
func (e *LeftError) Hint() string {
	return `another version of the server ends this; so do "devopsAgent rollback --allow" and "devopsAgent upgrade --from FILE"`
}

// Allow lets the server bring back what was left by hand, and returns the versions that this is about.
func (j *Journal) Allow() (versions []string, err error) {
	list, err := j.History()
	if err != nil {
		return nil, err
	}
	for _, a := range list {
		if !a.Left {
			continue
		}
		a.Forgiven = true
		if err := j.save(&a); err != nil {
			return versions, err
		}
		from, _ := a.Version()
		versions = append(versions, from)
	}
	return versions, nil
}

// load reads an attempt; one whose end is not in it, from its record.
func (j *Journal) load(id string) (Attempt, bool) {
	if !goodID.MatchString(id) {
		return Attempt{}, false
	}
	a, ok := j.loadAttempt(id)
	if ok && a.State != Begun {
		return a, true
	}
	for _, how := range []Outcome{Settled, TakenBack, Failed} {
		text, err := j.read(j.in(id, recordOf+"."+string(how)))
		if err != nil {
			continue
		}
		if r, err := decode(text, j.goos); err == nil && r.ID == id {
			a := j.closed(r, how)
			a.unwritten = true
			if how != Settled {
				c := j.cause(id)
				a.Reason, a.LastExit, a.ExitCode = c.Why, c.Last.How, c.Last.Code
			}
			return a, true
		}
	}
	return a, ok
}

func (j *Journal) loadAttempt(id string) (Attempt, bool) {
	var a Attempt
	text, err := j.read(j.in(id, attemptOf))
	if err != nil || json.Unmarshal(text, &a) != nil || a.ID != id {
		return Attempt{}, false
	}
	for _, c := range a.Parts {
		if c.Backup != "" && !goodBackup.MatchString(c.Backup) {
			return Attempt{}, false
		}
	}
	for _, name := range a.Leftover {
		if !goodTree.MatchString(name) {
			return Attempt{}, false
		}
	}
	return a, true
}

// Bad finds the attempt that says that a file of a part was tried here and taken back, unless that was forgiven. For a JDK, the
// file is the archive.
func (j *Journal) Bad(p Part, sum string) (*Attempt, error) {
	if sum == "" {
		return nil, nil
	}
	list, err := j.History()
	if err != nil {
		return nil, err
	}
	for _, a := range list {
		for _, c := range a.Parts {
			if c.Part != p || c.New != sum {
				continue
			}
			if a.State == TakenBack && !a.Forgiven {
				return &a, nil
			}
			if a.State == Settled || a.Forgiven { // a later try went well, or is allowed
				return nil, nil
			}
		}
	}
	return nil, nil
}

// Forgive lets versions be tried again that were taken back: sum is the SHA-256 of a file, as Bad has it.
func (j *Journal) Forgive(p Part, sum string) error {
	list, err := j.History()
	if err != nil || sum == "" {
		return err
	}
	var errs []error
	for _, a := range list {
		if a.State == TakenBack && !a.Forgiven && slices.ContainsFunc(a.Parts, func(c Change) bool { return c.Part == p && c.New == sum }) {
			a.Forgiven = true
			errs = append(errs, j.save(&a))
		}
	}
	return errors.Join(errs...)
}

// Untold lists the attempts whose end the server has not heard of, the oldest first.
func (j *Journal) Untold() ([]Attempt, error) {
	list, err := j.History()
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(a Attempt) bool { return !a.Untold })
	slices.Reverse(list)
	return list, nil
}

// Told notes that the server has heard how an attempt ended.
func (j *Journal) Told(id string) {
	if a, ok := j.load(id); ok && a.Untold {
		a.Untold = false
		_ = j.save(&a)
	}
}

// Previous finds what "devopsAgent rollback" goes back to: the agent that ran before the one of now and is still kept here, as the
// user of an editor's undo expects: going back again goes back further. With a version, it is any agent of that version that is
// kept, also one that was left by going back. The other programs return to what they were then. The plan is complete but for
// Reached, Foreign and Proof.
func (j *Journal) Previous(version string) (*Plan, error) {
	list, err := j.History()
	if err != nil {
		return nil, err
	}
	list = settledAgents(list)
	live, err := j.disk.Sum(j.path(Place(Agent, j.goos)))
	if err != nil {
		return nil, err
	}
	for _, at := range slices.Backward(wayBack(list, version)) {
		c, _ := list[at].of(Agent)
		if c.Old == live || version != "" && c.From != version {
			continue
		}
		if _, ok := j.kept(list, Agent, c.Old); ok {
			return j.backTo(list, at), nil
		}
	}
	return nil, &NoPreviousError{version}
}

// settledAgents are the attempts that have replaced the agent, oldest first.
func settledAgents(list []Attempt) []Attempt {
	list = slices.DeleteFunc(slices.Clone(list), func(a Attempt) bool { _, ok := a.of(Agent); return a.State != Settled || !ok })
	slices.Reverse(list)
	return list
}

// wayBack lists the attempts, oldest first, whose old agent can be returned to: all, or without a version, those that were not
// returned from already. A rollback is to how things were before some attempt, and so was the way back.
func wayBack(list []Attempt, version string) []int {
	var way []int
	before := make(map[string][]int, len(list)) // the way as it was then, by the name of the attempt
	for at, a := range list {
		before[a.ID] = way
		if version == "" && a.Kind == Rollback {
			id, _ := strings.CutPrefix(a.Source, beforeUpgrade)
			if was, known := before[id]; known {
				way = was
				continue
			}
		}
		way = append(slices.Clip(way), at)
	}
	return way
}

// beforeUpgrade begins the source of a rollback, and the name of an attempt ends it.
const beforeUpgrade = "before upgrade "

// kept finds a backup with a digest.
func (j *Journal) kept(list []Attempt, p Part, sum string) (path string, ok bool) {
	for _, a := range list {
		if c, ok := a.of(p); ok && c.Old == sum && c.Backup != "" {
			if got, err := j.disk.Sum(j.at(c.Backup)); err == nil && got == sum {
				return j.at(c.Backup), true
			}
		}
	}
	return "", false
}

// backTo plans the return of the programs to what they were before an attempt.
func (j *Journal) backTo(list []Attempt, at int) *Plan {
	p := &Plan{Kind: Rollback, Source: beforeUpgrade + list[at].ID}
	for _, part := range []Part{Agent, Daemon, Native} {
		now, err := j.disk.Sum(j.path(Place(part, j.goos)))
		if err != nil {
			continue
		}
		for _, a := range list[at:] {
			c, ok := a.of(part)
			if !ok {
				continue
			}
			if path, ok := j.kept(list, part, c.Old); ok && c.Old != now {
				p.Items = append(p.Items, Item{Part: part, From: path, Was: latest(list, part), Now: c.From})
			}
			break // later ones are about what came after
		}
	}
	return p
}

// latest is the version that a part was given last.
func latest(list []Attempt, p Part) string {
	for _, a := range slices.Backward(list) {
		if c, ok := a.of(p); ok {
			return c.To
		}
	}
	return ""
}

// NoPreviousError: there is nothing to go back to.
type NoPreviousError struct{ Version string }

// Error says what was looked for.
func (e *NoPreviousError) Error() string {
	if e.Version == "" {
		return "no earlier version of the agent is kept here"
	}
	return "version " + e.Version + " of the agent is not kept here"
}

// Hint says where versions come from.
func (e *NoPreviousError) Hint() string {
	return `"devopsAgent upgrade history" shows what ran here; "devopsAgent upgrade --from FILE" installs any version`
}
