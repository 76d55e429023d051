package journal

import (
	"errors"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// stamped is the name of a directory of a JDK that says when it was made, as ours and those of both generations of BK-CI's agent
// do (protocol §4.5).
var stamped = regexp.MustCompile(`^(jdk17|jdk|jre)[-_]?[0-9]{9,11}$`)

// firstStamp is the first second whose number has as many digits as that needs: in 1973.
const firstStamp = 100_000_000

// ours is a stamped name that only we give.
var ours = regexp.MustCompile(`^(jdk17|jdk|jre)_[0-9]{9,11}$`)

// slot is what swap.Dir calls a directory that a link leads to.
var slot = regexp.MustCompile(`^\.(jdk|jre)[0-9A-Za-z._+-]*\.[0-9]+$`)

// Sweep removes what ended upgrades have left and nobody uses any more: old directories of a JDK, programs older than those kept
// for a rollback, old history, and what a crash left half done.
func (j *Journal) Sweep() {
	f, err := j.Current()
	if err != nil {
		j.log.Warn("Left-overs of upgrades stay", "err", err)
		return
	}
	list, err := j.History()
	if err != nil {
		j.log.Warn("Left-overs of upgrades stay", "err", err)
		return
	}
	open := func(id string) bool { return f.Record != nil && f.Record.ID == id }
	useful := j.usefulBackups(list)
	decisive := markLeft(list)
	for n, a := range list {
		if open(a.ID) {
			continue
		}
		changed := j.dropLeftovers(&a) || a.unwritten
		switch {
		case a.State == Begun: // a crash came before its record
			a.State, a.Reason, a.Ended, changed = Failed, "it was interrupted before anything was replaced", j.stamp(), true
			j.drop(j.in(a.ID, "old"), j.in(a.ID, recordOf))
		case a.State == Settled && a.hasBackup() && !useful[a.ID]:
			j.drop(j.in(a.ID, "old"))
			for i := range a.Parts {
				a.Parts[i].Backup = ""
			}
			changed = true
		default:
			j.dropOld(&a)
		}
		j.drop(j.in(a.ID, "new"))
		if a.Left || a.ID == decisive { // what is not taken from the server depends on it
			n = 0
		}
		if n >= mostAttempts && len(a.Leftover) == 0 && !a.Untold && a.State != TakenBack && !a.hasBackup() || n >= 3*mostAttempts {
			j.drop(j.in(a.ID))
			continue
		}
		if changed {
			_ = j.save(&a)
		}
		j.curbStderr(a.ID)
		j.tidy(j.in(a.ID))
	}
	j.sweepNameless(list, open)
	j.tidy(j.path(dir))
	j.tidy(j.home)
}

// dropOld removes the old files of an attempt that are not kept for a rollback.
func (j *Journal) dropOld(a *Attempt) {
	if !a.hasBackup() {
		j.drop(j.in(a.ID, "old"))
		return
	}
	names, err := j.disk.ReadDir(j.in(a.ID, "old"))
	if err != nil {
		return
	}
	for _, name := range names {
		if !a.keeps(oldPath(a.ID, name)) {
			j.drop(j.in(a.ID, "old", name))
		}
	}
}

// tidy removes what single replacements have left in a directory.
func (j *Journal) tidy(dir string) {
	if err := swap.SweepOn(j.disk, dir); err != nil {
		j.log.Warn("Left-overs of upgrades stay", "err", err)
	}
}

// usefulBackups are the attempts whose old agents are kept for a rollback: those of the next steps on the way back, and the one
// that was left last by going back.
func (j *Journal) usefulBackups(list []Attempt) map[string]bool {
	useful := make(map[string]bool)
	if !slices.ContainsFunc(list, func(a Attempt) bool { return a.hasBackup() }) {
		return useful
	}
	live, err := j.disk.Sum(j.path(Place(Agent, j.goos)))
	if err != nil { // then is not the time to throw anything away
		for _, a := range list {
			useful[a.ID] = true
		}
		return useful
	}
	settled := settledAgents(list)
	way := wayBack(settled, "")
	var sums []string
	want := func(at, limit int) {
		if c, _ := settled[at].of(Agent); c.Old != live && c.Old != "" && !slices.Contains(sums, c.Old) && len(sums) < limit {
			sums = append(sums, c.Old)
		}
	}
	for _, at := range slices.Backward(way) {
		want(at, mostBackups)
	}
	for at, a := range slices.Backward(settled) {
		if a.Kind == Rollback {
			want(at, len(sums)+1)
			break
		}
	}
	for _, sum := range sums {
		for _, a := range slices.Backward(settled) {
			if c, _ := a.of(Agent); c.Old == sum && c.Backup != "" {
				useful[a.ID] = true
				break
			}
		}
	}
	return useful
}

// dropLeftovers removes old directories that no process uses, and reports whether there were any.
func (j *Journal) dropLeftovers(a *Attempt) bool {
	still := slices.DeleteFunc(slices.Clone(a.Leftover), j.dropTree)
	changed := len(still) != len(a.Leftover)
	if changed {
		if err := j.disk.Sync(j.home); err != nil {
			j.log.Warn("Left-overs of upgrades stay", "err", err)
			return false // not forgotten before it is certain that they are gone
		}
	}
	a.Leftover = still
	return changed
}

// dropTree removes a directory of home that no process uses; it reports whether it is gone.
func (j *Journal) dropTree(name string) bool {
	path := j.at(name)
	if _, err := j.disk.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if pid := j.users(path); pid != 0 {
		j.log.Info("Old directory stays while it is in use", "path", name, "pid", pid)
		return false
	}
	if err := j.disk.Remove(path); err != nil {
		j.log.Warn("Old directory stays", "path", name, "err", err)
		return false
	}
	return true
}

// SweepTrees removes directories of JDKs that nobody speaks of any more: those with a name that only we give, jdk_<unix seconds>
// and jdk17_<unix seconds>, which are not among live (names below home that the configuration has), do not belong to the open
// upgrade, and are used by no process. A crash while an archive was unpacked leaves such a one. It must not be called while
// one is unpacked.
func (j *Journal) SweepTrees(live ...string) {
	f, err := j.Current()
	if err != nil {
		return
	}
	names, err := j.disk.ReadDir(j.home)
	if err != nil {
		j.log.Warn("Left-overs of upgrades stay", "err", err)
		return
	}
	used := slices.Clone(live)
	if f.Record != nil {
		for _, m := range f.Record.Moves {
			used = append(used, m.Live, m.Fresh, m.Kept)
		}
	}
	for _, name := range names {
		if ours.MatchString(name) && !slices.ContainsFunc(used, func(u string) bool { return strings.EqualFold(u, name) }) && !j.isTarget(names, name) {
			j.dropTree(name)
		}
	}
}

// dropNew removes a new directory that did not stay, or what is left of it; where it has become a link (see swap.Dir), what that
// leads to as well, and first: a link to nothing is found again, a directory without a link is not.
func (j *Journal) dropNew(name, live string) {
	path := j.at(name)
	if target, err := j.disk.Readlink(path); err == nil && slot.MatchString(target) {
		if used, err := j.disk.Readlink(j.at(live)); err != nil || used != target {
			j.drop(j.path(target))
		}
	}
	j.drop(path)
}

// isTarget reports whether a link in home leads to a name in home, or to below it.
func (j *Journal) isTarget(names []string, name string) bool {
	for _, link := range names {
		target, err := j.disk.Readlink(j.path(link))
		if err != nil {
			continue
		}
		target = strings.TrimPrefix(strings.TrimPrefix(target, j.home), "/")
		if first, _, _ := strings.Cut(strings.TrimPrefix(target, "./"), "/"); first == name {
			return true
		}
	}
	return false
}

// sweepNameless removes directories of upgrades that have no history: a crash came before it.
func (j *Journal) sweepNameless(list []Attempt, open func(string) bool) {
	names, err := j.disk.ReadDir(j.path(dir))
	if err != nil {
		return
	}
	damages := 0
	for _, name := range slices.Backward(names) { // the latest first
		known := slices.ContainsFunc(list, func(a Attempt) bool { return a.ID == name })
		if goodID.MatchString(name) && !known && !open(name) {
			j.drop(j.in(name))
		}
		if strings.HasPrefix(name, damaged) {
			if damages++; damages > mostDamaged {
				j.drop(j.path(dir, name))
			}
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
