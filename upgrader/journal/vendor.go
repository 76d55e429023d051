package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// Who may replace programs: upgrade.mode of agent.toml (design: home and vendor).
const (
	ModeServer  = "server"  // server and package manager; either may raise the version
	ModePackage = "package" // only the package manager
	ModeOff     = "off"     // nobody
)

// Vendor is the directory of a package's programs, and what may be done with them.
type Vendor struct {
	Dir     string
	Mode    string
	Proof   time.Duration
	Version func(ctx context.Context, program string) (string, error) // asks a program for its version
	Compare func(a, b string) (order int, comparable bool)            // of versions
}

// shelf is what home knows of the package's programs: upgrade/vendor.json.
type shelf struct {
	Size    int64    `json:"size"`    // of the agent's program when it was looked at last
	Changed int64    `json:"changed"` // in nanoseconds
	Inode   uint64   `json:"inode,omitempty"`
	Sum     string   `json:"sha256"`
	Last    string   `json:"adopted,omitempty"` // the one that was adopted last
	Settled []string `json:"decided,omitempty"` // those that were adopted, or decided against, in mode server
	Failed  int      `json:"failed,omitempty"`  // times that Sum could not be put into place
}

const (
	shelfFile   = "vendor.json"
	mostSettled = 200
	mostFailed  = 3
)

func (j *Journal) readShelf() shelf {
	var s shelf
	text, err := j.read(j.path(dir, shelfFile))
	if err != nil || json.Unmarshal(text, &s) != nil {
		return shelf{}
	}
	return s
}

func (j *Journal) writeShelf(s shelf) error {
	if len(s.Settled) > mostSettled {
		s.Settled = s.Settled[len(s.Settled)-mostSettled:]
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := j.disk.Mkdir(j.path(dir), 0o700); err != nil {
		return err
	}
	if err := swap.WriteFileOn(j.disk, j.path(dir, shelfFile), append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("note which programs of the package were adopted: %w", err)
	}
	return nil
}

// Adopt takes the package's programs over into home when home has none, or when the package has another version than before and
// the mode allows it: then an upgrade is begun, and Recover carries it out. A version is decided on once: what was rolled
// back stays so. It reports whether there is something for Recover to do. A mode that is none of ours is ModeServer.
func (j *Journal) Adopt(ctx context.Context, v Vendor) (begun bool, err error) {
	if v.Mode != ModePackage && v.Mode != ModeOff {
		v.Mode = ModeServer
	}
	program := filepath.Join(v.Dir, Place(Agent, j.goos))
	info, err := j.disk.Lstat(program)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("look at the package's programs: %w", err)
	}
	live := j.path(Place(Agent, j.goos))
	_, err = j.disk.Lstat(live)
	first := errors.Is(err, fs.ErrNotExist)
	s := j.readShelf()
	// Two builds of one commit may have the same size and time; where files have no number, only their bytes tell them apart.
	seen := s.Sum != "" && s.Size == info.Size() && s.Changed == info.ModTime().UnixNano() && s.Inode == inodeOf(info) && s.Inode != 0
	if !first && seen && (v.Mode == ModeOff || s.Last == s.Sum || v.Mode == ModeServer && slices.Contains(s.Settled, s.Sum)) {
		return false, nil
	}
	if !seen {
		s.Size, s.Changed, s.Inode = info.Size(), info.ModTime().UnixNano(), inodeOf(info)
		if s.Sum, err = j.disk.Sum(program); err != nil {
			return false, fmt.Errorf("look at the package's programs: %w", err)
		}
		s.Failed = 0
	}
	adopt, from, to := first, "", ""
	if !first {
		if adopt, from, to, err = j.wanted(ctx, v, s, program, live); err != nil {
			return false, err
		}
	}
	if adopt {
		begun, err = j.adopt(v, s.Sum, from, to)
		if err != nil {
			return false, err
		}
	}
	if adopt {
		s.Last = s.Sum
	}
	if (adopt || v.Mode == ModeServer) && !slices.Contains(s.Settled, s.Sum) {
		s.Settled = append(s.Settled, s.Sum)
	}
	if err := j.writeShelf(s); err != nil && !begun {
		return false, err
	} else if err != nil { // history knows it as well
		j.log.Warn("Adoption not noted", "err", err)
	}
	return begun, nil
}

// Unseen reports whether the package in dir has brought an agent that Adopt has not looked at, and that is not the one in place. In
// ModeOff, and while home has no agent, there is none.
func (j *Journal) Unseen(dir, mode string) (bool, error) {
	if mode == ModeOff {
		return false, nil
	}
	shipped, live := filepath.Join(dir, Place(Agent, j.goos)), j.path(Place(Agent, j.goos))
	for _, path := range []string{shipped, live} {
		if _, err := j.disk.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return false, nil
		} else if err != nil {
			return false, fmt.Errorf("look at the package's programs: %w", err)
		}
	}
	sum, err := j.disk.Sum(shipped)
	if err != nil {
		return false, fmt.Errorf("look at the package's programs: %w", err)
	}
	if sum == j.readShelf().Sum {
		return false, nil
	}
	runs, err := j.disk.Sum(live)
	if err != nil {
		return false, fmt.Errorf("look at the agent's program: %w", err)
	}
	return sum != runs, nil
}

// unshelve lets a version of the package be adopted again that could not be put into place.
func (j *Journal) unshelve(r *Record) {
	m, ok := r.Of(Agent)
	s := j.readShelf()
	if !ok || r.Kind != FromVendor || s.Sum != m.New || s.Failed >= mostFailed {
		return
	}
	s.Failed++
	s.Last = ""
	s.Settled = slices.DeleteFunc(s.Settled, func(sum string) bool { return sum == m.New })
	if err := j.writeShelf(s); err != nil {
		j.log.Warn("Version of the package will not be adopted again", "err", err)
	}
}

// adopted finds a settled adoption of a version in the history; last, only if none of another version came later.
func (j *Journal) adopted(sum string, last bool) (bool, error) {
	list, err := j.History()
	if err != nil {
		return false, err
	}
	for _, a := range list {
		c, ok := a.of(Agent)
		if !ok || a.Kind != FromVendor || a.State != Settled {
			continue
		}
		if c.New == sum || last {
			return c.New == sum, nil
		}
	}
	return false, nil
}

// wanted decides whether a version of the package is to run (design: home and vendor).
func (j *Journal) wanted(ctx context.Context, v Vendor, s shelf, program, live string) (adopt bool, from, to string, err error) {
	switch v.Mode {
	case ModeOff:
		return false, "", "", nil
	case ModePackage:
		if s.Sum == s.Last {
			return false, "", "", nil
		}
	default:
		if slices.Contains(s.Settled, s.Sum) {
			return false, "", "", nil
		}
	}
	if bad, err := j.Bad(Agent, s.Sum); err != nil || bad != nil {
		return false, "", "", err
	}
	if done, err := j.adopted(s.Sum, v.Mode == ModePackage); err != nil || done {
		return false, "", "", err // there was no room to note it on the shelf
	}
	if to, err = v.Version(ctx, program); err != nil {
		return false, "", "", fmt.Errorf("ask the package's agent for its version: %w", err)
	}
	if from, err = v.Version(ctx, live); err != nil { // what runs here does not run: anything is better
		j.log.Warn("Agent in home tells no version", "err", err)
		return true, "", to, nil
	}
	if v.Mode == ModePackage {
		return true, from, to, nil
	}
	order, ok := v.Compare(to, from)
	return !ok && to != from || ok && order > 0, from, to, nil
}

func (j *Journal) adopt(v Vendor, sum, from, to string) (begun bool, err error) {
	p := Plan{Kind: FromVendor, Source: v.Dir, Proof: v.Proof}
	for _, part := range []Part{Agent, Daemon, Native} {
		program := filepath.Join(v.Dir, Place(part, j.goos))
		if _, err := j.disk.Lstat(program); err == nil {
			item := Item{Part: part, From: program, Was: from, Now: to}
			p.Items = append(p.Items, item)
		}
	}
	_, err = j.Begin(p)
	switch {
	case errors.Is(err, ErrNothing):
		return false, nil
	case err != nil:
		return false, err
	}
	j.log.Info("Package has another version", "from", from, "to", to, "sha256", sum)
	return true, nil
}
