package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
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
	TakenBack Outcome = "rolled-back" // the old version is back
	Failed    Outcome = "failed"      // nothing was replaced
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
	mostAttempts = 30       // that are kept; of those that were taken back, too
	mostBackups  = 2        // settled upgrades whose old programs are kept for "devopsAgent rollback"
	mostStderr   = 16 << 10 // bytes of standard error in the history
)

// Version is the version of the agent that the attempt was about, "" when it was about other parts.
func (a *Attempt) Version() (from, to string) {
	for _, c := range a.Parts {
		if c.Part == Agent {
			return c.From, c.To
		}
	}
	return "", ""
}

func (j *Journal) attempt(r *Record) Attempt {
	a := Attempt{ID: r.ID, Kind: r.Kind, Source: r.Source, Began: r.At, State: Begun, Parts: []Change{}}
	for _, m := range r.Moves {
		c := Change{Part: m.Part, From: m.From, To: m.To, Old: m.Old, New: m.New}
		if !m.Tree {
			c.Backup = m.Kept
		}
		a.Parts = append(a.Parts, c)
	}
	return a
}

// write notes an attempt as it begins.
func (j *Journal) write(r *Record, with Attempt) {
	a := j.attempt(r)
	a.State = with.State
	j.save(&a)
}

// save writes an attempt. History is for people: an upgrade does not fail for want of it.
func (j *Journal) save(a *Attempt) {
	text, err := json.MarshalIndent(a, "", " ")
	if err == nil {
		err = swap.WriteFileOn(j.disk, j.in(a.ID, attemptOf), append(text, '\n'), 0o600)
	}
	if err != nil {
		j.log.Warn("History of an upgrade not written", "upgrade", a.ID, "err", err)
	}
}

// end notes how an upgrade ended.
func (j *Journal) end(r *Record, how Outcome, why string, last Last) *Attempt {
	a := j.attempt(r)
	a.State, a.Reason, a.Ended, a.Untold = how, why, j.now().UTC().Truncate(time.Millisecond), r.Tell
	if how != Settled {
		a.LastExit, a.ExitCode = last.How, last.Code
		a.Stderr = j.tail(r.ID)
		for i := range a.Parts {
			a.Parts[i].Backup = ""
		}
	} else {
		for _, m := range r.Moves {
			if m.Tree && m.Kept != "" {
				a.Leftover = append(a.Leftover, m.Kept)
			}
		}
	}
	j.save(&a)
	return &a
}

// tail is the end of what the new agent wrote to standard error.
func (j *Journal) tail(id string) string {
	text, err := j.disk.ReadFile(j.in(id, stderrOf))
	if err != nil {
		return ""
	}
	if len(text) > mostStderr {
		text = text[len(text)-mostStderr:]
	}
	return strings.ToValidUTF8(string(text), "\ufffd")
}

// note keeps a line for later, if there is room.
func (j *Journal) note(id, name, text string) {
	if err := swap.WriteFileOn(j.disk, j.in(id, name), []byte(text), 0o600); err != nil {
		j.log.Warn("Note on an upgrade not written", "upgrade", id, "note", name, "err", err)
	}
}

func (j *Journal) noted(id, name string) string {
	text, err := j.disk.ReadFile(j.in(id, name))
	if err != nil || len(text) > mostStderr {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// History lists the attempts, the newest first. What cannot be read is left out.
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
	slices.SortStableFunc(list, func(a, b Attempt) int {
		if c := b.Began.Compare(a.Began); c != 0 {
			return c
		}
		return strings.Compare(b.ID, a.ID)
	})
	return list, nil
}

func (j *Journal) load(id string) (Attempt, bool) {
	var a Attempt
	if !goodID.MatchString(id) {
		return a, false
	}
	text, err := j.disk.ReadFile(j.in(id, attemptOf))
	if err != nil || len(text) > most || json.Unmarshal(text, &a) != nil || a.ID != id {
		return a, false
	}
	for _, c := range a.Parts {
		if c.Backup != "" && !filepath.IsLocal(filepath.FromSlash(c.Backup)) {
			return a, false
		}
	}
	for _, name := range a.Leftover {
		if !filepath.IsLocal(filepath.FromSlash(name)) {
			return a, false
		}
	}
	return a, true
}

// Bad finds the attempt that says that a file of a part was tried here and taken back, unless that was forgiven.
func (j *Journal) Bad(p Part, sum string) (*Attempt, error) {
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

// Forgive lets versions be tried again that were taken back: sum is the SHA-256 of a file.
func (j *Journal) Forgive(p Part, sum string) error {
	list, err := j.History()
	if err != nil {
		return err
	}
	for _, a := range list {
		if a.State == TakenBack && !a.Forgiven && slices.ContainsFunc(a.Parts, func(c Change) bool { return c.Part == p && c.New == sum }) {
			a.Forgiven = true
			j.save(&a)
		}
	}
	return nil
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
		j.save(&a)
	}
}

// Previous finds what "devopsAgent rollback" can go back to: the newest settled upgrade of the agent whose old program is still
// here, or the one whose old program has the version. The plan is complete but for Reached and Proof.
func (j *Journal) Previous(version string) (*Plan, error) {
	list, err := j.History()
	if err != nil {
		return nil, err
	}
	live, err := j.disk.Sum(j.path(Place(Agent, j.goos)))
	if err != nil {
		return nil, err
	}
	for _, a := range list {
		if a.State != Settled {
			continue
		}
		for _, c := range a.Parts {
			for _, one := range []struct{ sum, version, path string }{{c.Old, c.From, c.Backup}} {
				if c.Part != Agent || one.path == "" || one.sum == live || version != "" && one.version != version {
					continue
				}
				if sum, err := j.disk.Sum(j.at(one.path)); err != nil || sum != one.sum {
					continue
				}
				return j.backTo(a), nil
			}
		}
	}
	return nil, &NoPreviousError{version}
}

// backTo plans the return of the programs that an attempt replaced.
func (j *Journal) backTo(a Attempt) *Plan {
	p := &Plan{Kind: Rollback, Source: "before upgrade " + a.ID}
	for _, c := range a.Parts {
		if (c.Part == Agent || c.Part == Daemon || c.Part == Native) && c.Backup != "" {
			p.Items = append(p.Items, Item{Part: c.Part, From: j.at(c.Backup), Was: c.To, Now: c.From})
		}
	}
	return p
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

// Sweep removes what ended upgrades have left and nobody uses any more: old directories of a JDK, programs older than those kept
// for a rollback, old history, and what a crash left half done.
func (j *Journal) Sweep() {
	list, err := j.History()
	if err != nil {
		j.log.Warn("Left-overs of upgrades stay", "err", err)
		return
	}
	found, err := j.Current()
	if err != nil {
		return
	}
	open := func(id string) bool { return found.Record != nil && found.Record.ID == id }
	backups := 0
	for n, a := range list {
		if open(a.ID) {
			continue
		}
		a, changed := j.dropLeftovers(a)
		switch {
		case a.State == Begun: // a crash before its record was written
			a.State, a.Reason, a.Ended, changed = Failed, "it was interrupted before anything was replaced", j.now().UTC(), true
			j.drop(j.in(a.ID, "new"), j.in(a.ID, "old"))
		case a.State == Settled && hasBackup(a):
			if backups++; backups > mostBackups {
				j.drop(j.in(a.ID, "old"))
				for i := range a.Parts {
					a.Parts[i].Backup = ""
				}
				changed = true
			}
		}
		if n >= mostAttempts && len(a.Leftover) == 0 && !a.Untold && a.State != TakenBack && !hasBackup(a) || n >= 3*mostAttempts {
			j.drop(j.in(a.ID))
			continue
		}
		if changed {
			j.save(&a)
		}
	}
	j.sweepNameless(list, open)
	if err := swap.Sweep(j.path(dir)); err != nil {
		j.log.Warn("Left-overs of upgrades stay", "err", err)
	}
	if err := swap.Sweep(j.home); err != nil {
		j.log.Warn("Left-overs of upgrades stay", "err", err)
	}
}

func hasBackup(a Attempt) bool {
	return slices.ContainsFunc(a.Parts, func(c Change) bool { return c.Backup != "" })
}

// dropLeftovers removes old directories that no process uses.
func (j *Journal) dropLeftovers(a Attempt) (Attempt, bool) {
	if len(a.Leftover) == 0 {
		return a, false
	}
	var still []string
	for _, name := range a.Leftover {
		path := j.at(name)
		if _, err := j.disk.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if pid := userOf(path); pid != 0 {
			j.log.Info("Old directory stays while it is in use", "path", name, "pid", pid)
			still = append(still, name)
			continue
		}
		if err := j.disk.Remove(path); err != nil {
			j.log.Warn("Old directory stays", "path", name, "err", err)
			still = append(still, name)
		}
	}
	changed := len(still) != len(a.Leftover)
	a.Leftover = still
	return a, changed
}

// sweepNameless removes directories of upgrades that have no history: a crash came before it.
func (j *Journal) sweepNameless(list []Attempt, open func(string) bool) {
	names, err := j.disk.ReadDir(j.path(dir))
	if err != nil {
		return
	}
	for _, name := range names {
		known := slices.ContainsFunc(list, func(a Attempt) bool { return a.ID == name })
		if goodID.MatchString(name) && !known && !open(name) {
			j.drop(j.in(name))
		}
	}
}

func (j *Journal) drop(paths ...string) {
	for _, path := range paths {
		if err := j.disk.Remove(path); err != nil {
			j.log.Warn("Left-over of an upgrade stays", "path", path, "err", err)
		}
	}
}
