package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// cause is why an upgrade is taken back; it is kept for the case that doing so is interrupted.
type cause struct {
	Why  string `json:"why"`
	Last Last   `json:"last"`
}

// failed takes back an upgrade that could not be carried out. The error is that, also when taking it back went well.
func (j *Journal) failed(f Found, err error) (Result, error) {
	result, uerr := j.giveUp(f, cause{Why: err.Error()})
	return result, errors.Join(fmt.Errorf("carry out upgrade %s: %w", f.Record.ID, err), uerr)
}

// giveUp decides that the old parts return, and brings them back.
func (j *Journal) giveUp(f Found, c cause) (Result, error) {
	c.Last = j.lastEnd(f.Record.ID, c.Last)
	j.log.Error("Upgrade is taken back", "upgrade", f.Record.ID, "why", c.Why, "last", c.Last.How)
	j.noteCause(f.Record.ID, c)
	next := Undoing
	if f.State == Ready {
		next = Cancelling
		for _, m := range f.Record.Moves { // from the next state on, what is half done is half of the way back
			if m.Tree && m.Kept != "" {
				if err := swap.RecoverDir(j.disk, j.at(m.Live), j.at(m.Fresh), j.at(m.Kept)); err != nil {
					return Result{State: f.State, Record: f.Record}, err
				}
			}
		}
	}
	if err := j.enter(&f, next, 0); err != nil {
		return Result{State: f.State, Record: f.Record, Starts: f.Starts}, err
	}
	return j.undo(f, c)
}

// apply moves everything. What has moved already stays.
func (j *Journal) apply(f *Found) error {
	for _, m := range f.Record.Moves {
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
	if m.Tree {
		return j.forthTree(r, m)
	}
	live, fresh := j.at(m.Live), j.at(m.Fresh)
	now, err := j.disk.Sum(live)
	if err != nil {
		return err
	}
	if now != m.Old {
		if err := j.executable(m.Part, live); err != nil {
			return err
		}
	}
	if now == m.New {
		return j.force(live)
	}
	if sum, err := j.disk.Sum(fresh); err != nil {
		return err
	} else if sum != m.New {
		return fmt.Errorf("%s is not the file that was prepared", m.Fresh)
	}
	return swap.File(j.disk, live, fresh, "")
}

// executable lets a program be executed that an upgrader of the original has left half done, which makes files without that and
// allows it last (protocol §4.6): what takes the place of a file takes over its mode.
func (j *Journal) executable(p Part, live string) error {
	if p.mode()&0o100 == 0 || j.goos == "windows" {
		return nil
	}
	info, err := j.disk.Lstat(live)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o100 != 0 {
		return err
	}
	return j.disk.Chmod(live, p.mode())
}

// force makes certain what is there already: who put it there may have been killed before that, or may not be one of ours.
func (j *Journal) force(live string) error {
	if err := j.disk.Sync(live); err != nil && j.goos != "windows" { // which forces no program that runs
		return err
	}
	return j.disk.Sync(filepath.Dir(live))
}

func (j *Journal) forthTree(r *Record, m Move) error {
	live, fresh := j.at(m.Live), j.at(m.Fresh)
	kept := fresh
	if m.Kept != "" {
		kept = j.at(m.Kept)
		if err := swap.RecoverDir(j.disk, live, fresh, kept); err != nil {
			return err
		}
	}
	if !j.marked(live, r.ID) {
		if !j.marked(fresh, r.ID) {
			return fmt.Errorf("%s is not the directory that was prepared", m.Fresh)
		}
		return swap.Dir(j.disk, live, fresh, kept)
	}
	if kept != fresh && j.there(fresh) && !j.there(kept) { // a crash came between exchange and rename
		if err := j.disk.Rename(fresh, kept); err != nil {
			return err
		}
	}
	return j.disk.Sync(j.home)
}

func (j *Journal) there(path string) bool {
	_, err := j.disk.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// goneError: an old part cannot return, now or ever.
type goneError struct{ what string }

// Error says which.
func (e *goneError) Error() string { return e.what + " is gone" }

// back brings the old part back.
func (j *Journal) back(r *Record, m Move) error {
	if m.Tree {
		return j.backTree(r, m)
	}
	live := j.at(m.Live)
	now, err := j.disk.Sum(live)
	switch {
	case err != nil:
		return err
	case now == m.Old && now != "":
		return j.force(live)
	case m.Old == "" && now == m.New:
		if err := j.disk.Remove(live); err != nil {
			return err
		}
		return j.disk.Sync(j.home)
	case m.Old == "":
		return j.disk.Sync(j.home) // not there, or not ours
	}
	kept := j.at(m.Kept)
	if ok, err := j.intact(kept, m.Old); err != nil {
		return err
	} else if !ok {
		return &goneError{"the old file of " + m.Live}
	}
	if err := j.disk.Rename(kept, live); err != nil { // with all that it had beside its content; this needs no room
		return err
	}
	for _, d := range []string{j.home, filepath.Dir(kept)} {
		if err := j.disk.Sync(d); err != nil {
			return err
		}
	}
	return nil
}

// intact reports whether an old file is what it was. Of a link that an operator has made, there is nothing more to know.
func (j *Journal) intact(kept, sum string) (bool, error) {
	info, err := j.disk.Lstat(kept)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if info.Mode().Type() == fs.ModeSymlink {
		return true, nil
	}
	got, err := j.disk.Sum(kept)
	return got == sum, err
}

func (j *Journal) backTree(r *Record, m Move) error {
	live, fresh := j.at(m.Live), j.at(m.Fresh)
	if m.Kept == "" {
		if j.marked(live, r.ID) {
			if err := j.disk.Remove(live); err != nil {
				return err
			}
		}
		return j.disk.Sync(j.home)
	}
	kept := j.at(m.Kept)
	if err := swap.RecoverDir(j.disk, live, kept, fresh); err != nil {
		return err
	}
	if j.there(live) && !j.marked(live, r.ID) {
		return j.disk.Sync(j.home)
	}
	for _, old := range []string{kept, fresh} {
		if j.there(old) && !j.marked(old, r.ID) {
			return swap.Dir(j.disk, live, old, fresh)
		}
	}
	return &goneError{"the old directory of " + m.Live}
}

// marked reports whether a directory is the new one of an upgrade.
func (j *Journal) marked(dir, id string) bool {
	text, err := j.read(filepath.Join(dir, marker))
	return err == nil && strings.TrimSpace(string(text)) == id
}

// undo brings everything back. It goes on with the others when one part cannot be brought back; what is gone for good does not
// keep the upgrade open.
func (j *Journal) undo(f Found, c cause) (Result, error) {
	var errs []error
	var rest []Move // directories whose old one is live again: what is beside it is the new one
	for _, m := range slices.Backward(f.Record.Moves) {
		if m.late() {
			continue
		}
		err := j.back(f.Record, m)
		var gone *goneError
		switch {
		case err == nil && m.Tree:
			rest = append(rest, m)
		case errors.As(err, &gone):
			j.log.Error("Part of an upgrade stays", "upgrade", f.Record.ID, "part", string(m.Part), "err", err)
			c.Why += "; " + err.Error()
		case err != nil:
			errs = append(errs, fmt.Errorf("bring back %s: %w", m.Part, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return Result{State: f.State, Record: f.Record}, err
	}
	how := TakenBack
	if f.State == Cancelling {
		how = Failed
		j.unshelve(f.Record)
	}
	ended := j.end(f.Record, how, c)
	for _, m := range rest {
		j.dropNew(m.Fresh, m.Live)
		if m.Kept != "" {
			j.dropNew(m.Kept, m.Live)
		}
	}
	if err := j.disk.Sync(j.home); err != nil { // once the record is closed, nobody looks for them
		return Result{State: f.State, Record: f.Record, Ended: ended}, fmt.Errorf("close upgrade %s: %w", f.Record.ID, err)
	}
	j.drop(j.in(f.Record.ID, "new"), j.in(f.Record.ID, "old")) // what is live has them
	result, err := j.close(f, ended)
	if err == nil {
		j.Sweep()
	}
	return result, err
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
	ended := j.end(f.Record, Settled, cause{})
	j.drop(j.in(f.Record.ID, "new"))
	j.dropOld(ended)
	result, err := j.close(f, ended)
	if err == nil {
		j.Sweep()
	}
	return result, err
}

// close ends the open upgrade. It is the last step of each. The record stays with the upgrade, under a name that says how it
// ended: that much history finds room on a full disk.
func (j *Journal) close(f Found, ended *Attempt) (Result, error) {
	err := j.disk.Rename(f.file, j.in(f.Record.ID, recordOf+"."+string(ended.State)))
	if errors.Is(err, fs.ErrNotExist) && !j.there(j.in(f.Record.ID)) { // somebody has removed what there was of it
		err = j.disk.Remove(f.file)
	}
	if err == nil {
		err = j.disk.Sync(j.path(dir))
	}
	if err != nil {
		return Result{State: f.State, Record: f.Record, Ended: ended}, fmt.Errorf("close upgrade %s: %w", f.Record.ID, err)
	}
	j.log.Info("Upgrade ended", "upgrade", f.Record.ID, "state", string(ended.State), "why", ended.Reason, "parts", f.Record.parts())
	return Result{Record: f.Record, Ended: ended}, nil
}
