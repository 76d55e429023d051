package swap

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Dir makes the directory at fresh the one at live, which may be missing, and puts what was at live to displaced.
// Whoever reads below live, at any time and after any crash or power cut, finds the old directory or the new one.
//
// displaced is a name in the directory of live at which there is nothing yet; it may be that of fresh. All are on one
// file system. A symbolic link at live is replaced, not followed: displaced is then that link, and fresh may be a link
// as well, to put one back. What is below fresh is forced to the disk before it moves.
//
// Where two directories cannot change places in one step, live becomes a symbolic link to a directory that is called
// ".NAME.1", or another number, so that one rename of a link replaces it; displaced is then such a link, too, and
// Sweep removes what no link leads to any more. The change from a directory to a link is the exception to the rule
// above: live is missing from one rename to the next, with one Sync between. It happens once for each live. Where there
// are no such links either (Windows, FAT), it happens each time. RecoverDir closes the gap after a crash.
//
// When Dir fails, the same holds as after RecoverDir. A directory that cannot be moved at all (of a container image's
// layer, a mount) is an error with a hint.
func Dir(d Disk, live, fresh, displaced string) error {
	err := dir(d, live, fresh, displaced)
	if errors.Is(err, syscall.EXDEV) || errors.Is(err, syscall.EBUSY) {
		err = &fixedError{live, err}
	}
	if err != nil {
		return fmt.Errorf("replace directory %s: %w", live, err)
	}
	return nil
}

// fixedError is about a directory that cannot be moved.
type fixedError struct {
	path string
	err  error
}

func (e *fixedError) Error() string { return e.err.Error() }
func (e *fixedError) Unwrap() error { return e.err }
func (e *fixedError) Hint() string {
	return "if " + e.path + " comes from a container image or is a mount of its own, nothing can take its place: " +
		"have the whole directory that it is in on one volume"
}

func dir(d Disk, live, fresh, displaced string) error {
	if err := syncTree(d, fresh); err != nil {
		return err
	}
	if displaced != fresh {
		if err := mustMiss(d, displaced); err != nil {
			return err
		}
	}
	info, err := d.Lstat(live)
	if errors.Is(err, fs.ErrNotExist) {
		if err := d.Rename(fresh, live); err != nil {
			return err
		}
		return syncParents(d, live, fresh)
	}
	if err != nil {
		return err
	}
	if !info.IsDir() && info.Mode().Type() != fs.ModeSymlink {
		return &fs.PathError{Op: "replace", Path: live, Err: errors.New("neither a directory nor a link")}
	}
	s := scene{Disk: d, live: live, fresh: fresh, displaced: displaced}
	target, isLink, err := readlink(d, live)
	if err != nil {
		return err
	}
	if !isLink || !isSlot(target, filepath.Base(live)) {
		if err := s.byExchange(); !errors.Is(err, ErrNoExchange) {
			return err
		}
	}
	err = s.settle(s.byLink())
	if !errors.Is(err, errNoLink) {
		return err
	}
	return s.settle(s.byRenames())
}

// RecoverDir ends what a crash inside Dir, called with the same paths, left half done: live is there again if it was
// before. Whether it is the old directory or the new one is for the caller to see, by what is in it; the other is at
// displaced or at fresh. It does nothing where there is nothing to do, so a crash in RecoverDir is followed by another.
func RecoverDir(d Disk, live, fresh, displaced string) error {
	s := scene{Disk: d, live: live, fresh: fresh, displaced: displaced}
	if err := s.recover(); err != nil {
		return fmt.Errorf("recover directory %s: %w", live, err)
	}
	return nil
}

// errNoLink says that there are no symbolic links here.
var errNoLink = errors.New("no symbolic links on this file system")

// scene is one replacement of a directory.
type scene struct {
	Disk
	live, fresh, displaced string
}

// hidden is a name beside live that only this file knows.
func (s scene) hidden(suffix string) string {
	return filepath.Join(filepath.Dir(s.live), "."+filepath.Base(s.live)+suffix)
}

func (s scene) next() string  { return s.hidden(".link") }  // the link that will be live
func (s scene) aside() string { return s.hidden(".aside") } // the old directory between two renames

// isSlot tells whether name is that of a directory that a link called base leads to.
func isSlot(name, base string) bool {
	number, ok := strings.CutPrefix(name, "."+base+".")
	return ok && onlyDigits(number)
}

// slot is a name for a directory that no link beside it leads to.
func (s scene) slot() (string, error) {
	parent := filepath.Dir(s.live)
	names, err := s.ReadDir(parent)
	if err != nil {
		return "", err
	}
	links, err := linksIn(s, parent, names)
	if err != nil {
		return "", err
	}
	taken := slices.Collect(maps.Values(links))
	for number := 1; ; number++ {
		if path := s.hidden("." + strconv.Itoa(number)); !slices.Contains(taken, path) {
			return path, nil
		}
	}
}

// linksIn tells which of the names in dir are links, and the absolute path that each is to.
func linksIn(d Disk, dir string, names []string) (map[string]string, error) {
	links := make(map[string]string)
	for _, name := range names {
		target, isLink, err := readlink(d, filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if !isLink {
			continue
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(dir, target)
		}
		links[name] = filepath.Clean(target)
	}
	return links, nil
}

// byExchange needs no recovery: what it does is one step, and one more that the caller can see.
func (s scene) byExchange() error {
	if err := s.Exchange(s.live, s.fresh); err != nil {
		return err
	}
	if err := syncParents(s, s.live, s.fresh); err != nil {
		return err
	}
	if s.displaced == s.fresh {
		return nil
	}
	if err := s.Rename(s.fresh, s.displaced); err != nil {
		return err
	}
	return syncParents(s, s.fresh, s.displaced)
}

// byLink replaces what live links to. What it linked to stays where it is: who has read the link already must still
// find it. Each step is on the disk before the next, so that recover can tell where it ended: while there is next, live
// has not changed yet, and when there is none, all is done.
func (s scene) byLink() error {
	info, err := s.Lstat(s.fresh)
	if err != nil {
		return err
	}
	if info.Mode().Type() == fs.ModeSymlink {
		err = s.rename(s.fresh, s.next())
	} else {
		err = s.link()
	}
	if err != nil {
		return err
	}
	if err := s.displace(); err != nil {
		return err
	}
	return s.rename(s.next(), s.live)
}

// link makes next a link to what is at fresh, which gets another name for that.
func (s scene) link() error {
	slot, err := s.slot()
	if err != nil {
		return err
	}
	if err := s.Remove(slot); err != nil {
		return err
	}
	if err := s.Symlink(filepath.Base(slot), s.next()); err != nil {
		if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrPermission) {
			err = fmt.Errorf("%w: %w", errNoLink, err)
		}
		return err
	}
	if err := syncParents(s, s.next()); err != nil {
		return err
	}
	return s.rename(s.fresh, slot)
}

// displace copies live to displaced if it is a link, and moves it there if it is a directory.
func (s scene) displace() error {
	target, isLink, err := readlink(s, s.live)
	if err != nil {
		return err
	}
	if !isLink {
		return s.rename(s.live, s.displaced)
	}
	if err := s.Symlink(target, s.displaced); err != nil {
		return err
	}
	return syncParents(s, s.displaced)
}

// byRenames is for where there is nothing better.
func (s scene) byRenames() error {
	if err := s.rename(s.live, s.aside()); err != nil {
		return err
	}
	if err := s.rename(s.fresh, s.live); err != nil {
		return err
	}
	return s.rename(s.aside(), s.displaced)
}

// settle recovers at once from a step that failed, with the error of that step.
func (s scene) settle(err error) error {
	if err == nil {
		return nil
	}
	if rerr := s.recover(); rerr != nil {
		return fmt.Errorf("%w; and take it back: %w", err, rerr)
	}
	return err
}

func (s scene) recover() error {
	there, err := s.exists(s.next())
	if err != nil {
		return err
	}
	if there {
		return s.takeBack()
	}
	there, err = s.exists(s.aside())
	if err != nil || !there {
		return err
	}
	if there, err = s.exists(s.live); err != nil {
		return err
	}
	if !there {
		return s.rename(s.aside(), s.live)
	}
	if there, err = s.exists(s.displaced); err != nil || there {
		return err
	}
	return s.rename(s.aside(), s.displaced)
}

// takeBack undoes byLink before its last rename.
func (s scene) takeBack() error {
	there, err := s.exists(s.live)
	if err != nil {
		return err
	}
	if !there {
		err = s.rename(s.displaced, s.live)
	} else {
		err = s.removeCopy()
	}
	if err != nil {
		return err
	}
	if there, err = s.exists(s.fresh); err != nil {
		return err
	}
	if !there {
		slot, err := s.slotOfNext()
		if err != nil {
			return err
		}
		if slot == "" {
			return s.rename(s.next(), s.fresh)
		}
		if there, err = s.exists(slot); err != nil {
			return err
		}
		if there {
			if err := s.rename(slot, s.fresh); err != nil {
				return err
			}
		}
	}
	if err := s.Remove(s.next()); err != nil {
		return err
	}
	return syncParents(s, s.next())
}

// slotOfNext is the directory to which next is the only link; "" if that is another place.
func (s scene) slotOfNext() (string, error) {
	parent := filepath.Dir(s.live)
	names, err := s.ReadDir(parent)
	if err != nil {
		return "", err
	}
	links, err := linksIn(s, parent, names)
	if err != nil {
		return "", err
	}
	slot := links[filepath.Base(s.next())]
	delete(links, filepath.Base(s.next()))
	if filepath.Dir(slot) != parent || !isSlot(filepath.Base(slot), filepath.Base(s.live)) ||
		slices.Contains(slices.Collect(maps.Values(links)), slot) {
		return "", nil
	}
	return slot, nil
}

// removeCopy removes the link that displace made of live.
func (s scene) removeCopy() error {
	live, isLink, err := readlink(s, s.live)
	if err != nil || !isLink {
		return err
	}
	copied, isLink, err := readlink(s, s.displaced)
	if errors.Is(err, fs.ErrNotExist) || err == nil && (!isLink || copied != live) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.Remove(s.displaced); err != nil {
		return err
	}
	return syncParents(s, s.displaced)
}

// readlink returns the target of the link at path; not isLink if there is something else.
func readlink(d Disk, path string) (target string, isLink bool, err error) {
	info, err := d.Lstat(path)
	if err != nil || info.Mode().Type() != fs.ModeSymlink {
		return "", false, err
	}
	target, err = d.Readlink(path)
	return target, true, err
}

func (s scene) exists(path string) (bool, error) {
	_, err := s.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// rename is a rename that is on the disk when it returns.
func (s scene) rename(from, to string) error {
	if err := s.Rename(from, to); err != nil {
		return err
	}
	return syncParents(s, from, to)
}

func mustMiss(d Disk, path string) error {
	_, err := d.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = &fs.PathError{Op: "displace to", Path: path, Err: fs.ErrExist}
	}
	return err
}

// SyncTree forces every file and directory below dir, and dir, to the disk: children before parents. Links are not
// followed.
func SyncTree(dir string) error {
	if err := syncTree(Real(), dir); err != nil {
		return fmt.Errorf("force %s to the disk: %w", dir, err)
	}
	return nil
}

func syncTree(d Disk, path string) error {
	info, err := d.Lstat(path)
	if err != nil {
		return err
	}
	switch {
	case info.Mode().IsRegular():
		return d.Sync(path)
	case !info.IsDir():
		return nil // in its directory's entries is all there is of it
	}
	names, err := d.ReadDir(path)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := syncTree(d, filepath.Join(path, name)); err != nil {
			return err
		}
	}
	return d.Sync(path)
}
