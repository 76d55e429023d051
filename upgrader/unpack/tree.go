package unpack

import (
	"errors"
	"fmt"
	"strings"
)

type kind int

const (
	directory kind = iota
	file
	symlink
)

// node is one entry in its place. The tree of them is what the directory will look like, whatever its file system
// makes of the names.
type node struct {
	parent *node
	name   string // as the archive has it
	kind   kind
	listed bool // the archive has an entry for it; a directory may also be there because something is in it
	target string
	kids   map[string]*node // by folded name

	size       int64 // bytes of a file, as hard links need to know
	executable bool
}

func (n *node) path() string {
	if n.parent == nil || n.parent.parent == nil {
		return n.name
	}
	return n.parent.path() + "/" + n.name
}

const (
	// maxNames bounds the memory that names take, of entries and of what links lead to, in bytes. A JDK has 50 kB.
	maxNames = 32 << 20
	// maxHops is above what any system follows (Linux 40, macOS 32, Windows 63): nobody gets past so many links.
	maxHops = 64
	// maxSteps bounds the time spent on all links of an archive together.
	maxSteps = 10_000_000
)

// add puts an entry in its place, with the directories that lead there, which are left in u.newDirs.
func (u *unpacking) add(name string, k kind) (*node, error) {
	path, bad := elements(name, u.limits.Depth)
	if bad != nil {
		return nil, u.refuse(name, bad.Reason, bad.Err)
	}
	if u.names += int64(len(name)); u.names > maxNames {
		return nil, u.refuse("", ErrEntries, errors.New("their names are too long together"))
	}
	if len(path) == 0 {
		if k != directory {
			return nil, u.refuse(name, ErrClash, nil)
		}
		return u.tree, nil
	}
	at := u.tree
	for i, part := range path {
		last := i == len(path)-1
		key := fold(part)
		kid, found := at.kids[key]
		if !found {
			kid = &node{parent: at, name: part}
			if last {
				kid.kind = k
			}
			if at.kids == nil {
				at.kids = make(map[string]*node)
			}
			at.kids[key] = kid
			if err := u.count(kid); err != nil {
				return nil, err
			}
		}
		switch {
		case kid.name != part:
			return nil, u.refuse(name, ErrCase, fmt.Errorf("%s is there already", quoted(kid.path())))
		case last && kid.kind != k, !last && kid.kind != directory:
			return nil, u.refuse(name, ErrClash, nil)
		case last && kid.listed:
			return nil, u.refuse(name, ErrDuplicate, nil)
		}
		kid.listed = kid.listed || last
		at = kid
	}
	return at, nil
}

// count keeps the sum of what is there, listed or not.
func (u *unpacking) count(n *node) error {
	if u.entries++; u.entries > u.limits.Entries {
		return u.refuse("", ErrEntries, fmt.Errorf("more than %d", u.limits.Entries))
	}
	if n.kind == directory {
		u.disk += block
		u.newDirs = append(u.newDirs, n)
	}
	return nil
}

// find returns the entry of that name, or nil.
func (u *unpacking) find(path []string) *node {
	at := u.tree
	for _, part := range path {
		if at = at.kids[fold(part)]; at == nil || at.name != part {
			return nil
		}
	}
	return at
}

// setTarget notes where a link leads. Where that is in the end can only be said when everything is in its place.
func (u *unpacking) setTarget(link *node, name, target string) error {
	if len(target) > maxPath {
		return u.refuse(name, ErrLong, errors.New("so is what the link leads to"))
	}
	if u.names += int64(len(target)); u.names > maxNames {
		return u.refuse("", ErrEntries, errors.New("their names are too long together"))
	}
	if target == "" || strings.HasPrefix(target, "/") || strings.HasPrefix(target, `\`) || drive(target) {
		return u.refuse(name, ErrLink, fmt.Errorf("to %s", quoted(target)))
	}
	// By its text alone it has to stay inside.
	depth := 0
	for at := link.parent; at.parent != nil; at = at.parent {
		depth++
	}
	for part := range strings.SplitSeq(target, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return u.refuse(name, ErrLink, fmt.Errorf("to %s", quoted(target)))
			}
		default:
			if bad := checkElement(part); bad != nil {
				return u.refuse(name, bad.Reason, fmt.Errorf("so is what the link leads to: %s", quoted(target)))
			}
			depth++
		}
	}
	link.target = target
	u.links = append(u.links, link)
	return nil
}

// checkLinks follows every link through all the others, as a system would, and refuses the one that gets out. A ring of
// links gets nobody anywhere.
func (u *unpacking) checkLinks() error {
	steps := 0
	for _, link := range u.links {
		at := link.parent
		lost := 0 // elements that are not there, below at
		hops := 0
		todo := reversed(nil, link.target)
		for len(todo) > 0 {
			part := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			if steps++; steps > maxSteps {
				return u.refuse(link.path(), ErrLink, errors.New("or not: there are too many on the way to say"))
			}
			if part == ".." {
				if lost > 0 {
					lost--
				} else if at = at.parent; at == nil {
					return u.refuse(link.path(), ErrLink, fmt.Errorf("to %s, through other links", quoted(link.target)))
				}
				continue
			}
			if lost > 0 {
				lost++
				continue
			}
			kid := at.kids[fold(part)]
			switch {
			case kid == nil:
				lost++
			case kid.kind != symlink:
				at = kid
			default:
				if hops++; hops > maxHops {
					todo = nil
					break
				}
				todo = reversed(todo, kid.target)
			}
		}
	}
	return nil
}

// reversed puts the elements of a target on a stack, the first on top.
func reversed(stack []string, target string) []string {
	parts := strings.Split(target, "/")
	for i := len(parts) - 1; i >= 0; i-- {
		if parts[i] != "" && parts[i] != "." {
			stack = append(stack, parts[i])
		}
	}
	return stack
}
