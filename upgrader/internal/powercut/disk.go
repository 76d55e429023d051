package powercut

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// ErrPower is what every call returns once the power is gone.
var ErrPower = errors.New("the power is gone")

// Disk is a swap.Disk in memory. It knows what is on it now and what of that is certain to be there after a power cut;
// Cuts gives the disks that a machine may find then.
//
// The rules: a change of names (a new file, a rename, an exchange, a removal) is there entirely or not at all, and
// certain after Sync of a directory that it touches. What a new file holds is certain after Sync of the file; before,
// it may be all, nothing, half of it, or zeros. Mode and owner are certain after Sync of the file. Changes of names not
// forced may survive in any combination, except that nothing survives without what happened before to the same name.
//
// It is for one goroutine at a time.
type Disk struct {
	// Ordered says that names, modes and owners reach the disk in the order in which they were changed, as on a file
	// system with a journal: what survives a cut is a prefix.
	Ordered bool
	// NoExchange says that Exchange is refused.
	NoExchange bool
	// NoSymlink says that Symlink is refused.
	NoSymlink bool
	// Fault, if set, is asked before each mutating call, as "rename" and its first path; an error ends the call, which
	// has then done nothing. The disks of Cuts have none.
	Fault func(op, path string) error

	now, durable image
	pending      []change
	calls, left  int // left is how many mutating calls there is power for; negative: any number
	dead         bool
	trashed      int
}

// image is one state of a disk: all that was ever made, by number; names lead from the root to what is there.
type image map[int]*node

const root = 1

type node struct {
	mode    fs.FileMode // with its type
	owner   int
	data    []byte         // of a file
	target  string         // of a symbolic link
	entries map[string]int // of a directory
}

func (n *node) clone() *node {
	c := *n
	c.entries = maps.Clone(n.entries)
	return &c // data is never changed in place
}

func (im image) clone() image {
	c := make(image, len(im))
	for id, n := range im {
		c[id] = n.clone()
	}
	return c
}

// change is what one call did and a power cut may undo. Exactly one of names, attr and data is set.
type change struct {
	names []edit
	attr  *attr
	data  *content
}

type edit struct {
	dir  int
	name string
	id   int // 0: the name is gone
}

type attr struct {
	id, owner int
	mode      fs.FileMode
}

type content struct {
	id   int
	data []byte
}

func (c change) apply(im image) {
	for _, e := range c.names {
		if e.id == 0 {
			delete(im[e.dir].entries, e.name)
		} else {
			im[e.dir].entries[e.name] = e.id
		}
	}
	if c.attr != nil {
		im[c.attr.id].mode, im[c.attr.id].owner = c.attr.mode, c.attr.owner
	}
	if c.data != nil {
		im[c.data.id].data = c.data.data
	}
}

// needs tells whether c cannot be on a disk without earlier.
func (c change) needs(earlier change) bool {
	if c.attr != nil {
		return earlier.attr != nil && earlier.attr.id == c.attr.id
	}
	for _, e := range c.names {
		for _, f := range earlier.names {
			if e.dir == f.dir && e.name == f.name {
				return true
			}
		}
	}
	return false
}

func (c change) touches(dir int) bool {
	return slices.ContainsFunc(c.names, func(e edit) bool { return e.dir == dir })
}

// New makes an empty disk.
func New() *Disk {
	empty := image{root: {mode: fs.ModeDir | 0o755, entries: map[string]int{}}}
	return &Disk{now: empty, durable: empty.clone(), left: -1}
}

// Clone copies the disk, with what is not forced yet; it has power, and has counted no calls.
func (d *Disk) Clone() *Disk {
	c := *d
	c.now, c.durable, c.pending = d.now.clone(), d.durable.clone(), slices.Clone(d.pending)
	c.calls, c.left, c.dead = 0, -1, false
	return &c
}

// After has the power go away after n more mutating calls: the next one, and then every call, fails with ErrPower.
func (d *Disk) After(n int) { d.left = n }

// Calls is the number of mutating calls that were done; Sync is one.
func (d *Disk) Calls() int { return d.calls }

// Seed puts a file on the disk, with the directories above it, all forced already. It replaces a file.
func (d *Disk) Seed(path, data string, mode fs.FileMode) {
	d.seed(path, &node{mode: mode.Perm(), data: []byte(data)})
}

// SeedDir puts a directory on the disk, with those above it, all forced already.
func (d *Disk) SeedDir(path string) { d.seed(filepath.Join(path, "x"), nil) }

// SeedLink puts a symbolic link on the disk, with the directories above it, all forced already.
func (d *Disk) SeedLink(path, target string) {
	d.seed(path, &node{mode: fs.ModeSymlink | 0o777, target: target})
}

func (d *Disk) seed(path string, n *node) {
	parts := split(path)
	dir := root
	for _, name := range parts[:len(parts)-1] {
		id, ok := d.now[dir].entries[name]
		if !ok {
			id = d.make(&node{mode: fs.ModeDir | 0o755, entries: map[string]int{}})
			d.now[dir].entries[name], d.durable[dir].entries[name] = id, id
		}
		dir = id
	}
	if n != nil {
		id := d.make(n)
		name := parts[len(parts)-1]
		d.now[dir].entries[name], d.durable[dir].entries[name] = id, id
	}
}

// make gives a node a number. It is on the disk for sure, but no name leads there yet.
func (d *Disk) make(n *node) int {
	id := len(d.now) + 1
	d.now[id], d.durable[id] = n, n.clone()
	return id
}

// Tree lists what is on the disk now: paths with slashes, of files their content, of links "-> target", of directories
// "/".
func (d *Disk) Tree() map[string]string {
	tree := make(map[string]string)
	d.walk(root, "", func(path string, n *node) {
		switch n.mode.Type() {
		case fs.ModeDir:
			tree[path] = "/"
		case fs.ModeSymlink:
			tree[path] = "-> " + n.target
		default:
			tree[path] = string(n.data)
		}
	})
	return tree
}

func (d *Disk) walk(dir int, path string, visit func(string, *node)) {
	for name, id := range d.now[dir].entries {
		visit(path+"/"+name, d.now[id])
		if d.now[id].mode.IsDir() {
			d.walk(id, path+"/"+name, visit)
		}
	}
}

// begin opens a mutating call.
func (d *Disk) begin(op, path string) error {
	if d.dead || d.left == 0 {
		d.dead = true
		return &fs.PathError{Op: op, Path: path, Err: ErrPower}
	}
	if d.Fault != nil {
		if err := d.Fault(op, path); err != nil {
			return &fs.PathError{Op: op, Path: path, Err: err}
		}
	}
	if d.left > 0 {
		d.left--
	}
	d.calls++
	return nil
}

// do makes a change that may be forgotten.
func (d *Disk) do(c change) {
	c.apply(d.now)
	d.pending = append(d.pending, c)
}

// place is where a path leads: a name in a directory, and what has that name (id 0: nothing).
type place struct {
	dir  int
	name string
	id   int
}

// find resolves path; follow says whether also through a link at its end.
func (d *Disk) find(op, path string, follow bool) (place, error) {
	if d.dead {
		return place{}, &fs.PathError{Op: op, Path: path, Err: ErrPower}
	}
	at, err := d.resolve(root, split(path), follow, 0)
	if err != nil {
		return place{}, &fs.PathError{Op: op, Path: path, Err: err}
	}
	return at, nil
}

func (d *Disk) resolve(dir int, parts []string, follow bool, links int) (place, error) {
	at := place{dir: root, id: root}
	if len(parts) > 0 {
		at = place{dir: dir, id: dir}
	}
	trail := []int{root} // for ".."; only links need it
	for i, name := range parts {
		if d.now[at.id] == nil {
			return place{}, fs.ErrNotExist
		}
		if !d.now[at.id].mode.IsDir() {
			return place{}, errors.New("not a directory")
		}
		if name == ".." {
			at.id = trail[len(trail)-1]
			trail = trail[:max(1, len(trail)-1)]
			continue
		}
		trail = append(trail, at.id)
		at = place{dir: at.id, name: name, id: d.now[at.id].entries[name]}
		n := d.now[at.id]
		if n == nil || n.mode.Type() != fs.ModeSymlink || i == len(parts)-1 && !follow {
			continue
		}
		if links++; links > 40 {
			return place{}, errors.New("too many links")
		}
		start := at.dir
		if filepath.IsAbs(n.target) || strings.HasPrefix(n.target, "/") {
			start = root
		}
		rest := append(split(n.target), parts[i+1:]...)
		return d.resolve(start, rest, follow, links)
	}
	return at, nil
}

// split cuts a path into names; of Windows' paths, it ignores the drive.
func split(path string) []string {
	path = filepath.ToSlash(path[len(filepath.VolumeName(path)):])
	return slices.DeleteFunc(strings.Split(path, "/"), func(name string) bool { return name == "" || name == "." })
}

// get resolves path to something that is there.
func (d *Disk) get(op, path string, follow bool) (*node, place, error) {
	at, err := d.find(op, path, follow)
	if err != nil {
		return nil, at, err
	}
	if at.id == 0 {
		return nil, at, &fs.PathError{Op: op, Path: path, Err: fs.ErrNotExist}
	}
	return d.now[at.id], at, nil
}

// free resolves path to a name that nothing has yet.
func (d *Disk) free(op, path string) (place, error) {
	at, err := d.find(op, path, false)
	if err == nil && at.id != 0 {
		err = &fs.PathError{Op: op, Path: path, Err: fs.ErrExist}
	}
	return at, err
}

// ReadFile follows links.
func (d *Disk) ReadFile(path string) ([]byte, error) {
	n, _, err := d.get("read", path, true)
	if err != nil {
		return nil, err
	}
	if !n.mode.IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("is a directory")}
	}
	return bytes.Clone(n.data), nil
}

// Lstat tells name, size and mode; the time is always zero.
func (d *Disk) Lstat(path string) (fs.FileInfo, error) {
	n, at, err := d.get("lstat", path, false)
	if err != nil {
		return nil, err
	}
	return info{name: at.name, node: n.clone()}, nil
}

type info struct {
	name string
	node *node
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return int64(len(i.node.data)) }
func (i info) Mode() fs.FileMode  { return i.node.mode }
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) IsDir() bool        { return i.node.mode.IsDir() }
func (i info) Sys() any           { return nil }

// Readlink returns the target of a link.
func (d *Disk) Readlink(path string) (string, error) {
	n, _, err := d.get("readlink", path, false)
	if err == nil && n.mode.Type() != fs.ModeSymlink {
		err = &fs.PathError{Op: "readlink", Path: path, Err: fs.ErrInvalid}
	}
	if err != nil {
		return "", err
	}
	return n.target, nil
}

// ReadDir returns the names in dir, sorted.
func (d *Disk) ReadDir(dir string) ([]string, error) {
	n, _, err := d.get("readdir", dir, true)
	if err == nil && !n.mode.IsDir() {
		err = &fs.PathError{Op: "readdir", Path: dir, Err: errors.New("not a directory")}
	}
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(n.entries)), nil
}

// Write makes a file; its name and what it holds are two changes.
func (d *Disk) Write(path string, data []byte, mode fs.FileMode) error {
	at, err := d.free("write", path)
	if err != nil {
		return err
	}
	if err := d.begin("write", path); err != nil {
		return err
	}
	d.create(at, bytes.Clone(data), mode)
	return nil
}

func (d *Disk) create(at place, data []byte, mode fs.FileMode) {
	id := d.make(&node{mode: mode.Perm()})
	d.do(change{names: []edit{{at.dir, at.name, id}}})
	d.do(change{data: &content{id, data}})
}

// Copy makes a file, mode 0600, with the content of another.
func (d *Disk) Copy(from, to string) error {
	data, err := d.ReadFile(from)
	if err != nil {
		return err
	}
	at, err := d.free("copy", to)
	if err != nil {
		return err
	}
	if err := d.begin("copy", to); err != nil {
		return err
	}
	d.create(at, data, 0o600)
	return nil
}

// Mkdir makes a directory, unless it is there.
func (d *Disk) Mkdir(path string, mode fs.FileMode) error {
	at, err := d.find("mkdir", path, true)
	if err != nil {
		return err
	}
	if at.id != 0 && !d.now[at.id].mode.IsDir() {
		return &fs.PathError{Op: "mkdir", Path: path, Err: fs.ErrExist}
	}
	if err := d.begin("mkdir", path); err != nil {
		return err
	}
	if at.id == 0 {
		id := d.make(&node{mode: fs.ModeDir | mode.Perm(), entries: map[string]int{}})
		d.do(change{names: []edit{{at.dir, at.name, id}}})
	}
	return nil
}

// Symlink makes a link.
func (d *Disk) Symlink(target, path string) error {
	at, err := d.free("symlink", path)
	if err != nil {
		return err
	}
	if err := d.begin("symlink", path); err != nil {
		return err
	}
	if d.NoSymlink {
		return &fs.PathError{Op: "symlink", Path: path, Err: errors.ErrUnsupported}
	}
	id := d.make(&node{mode: fs.ModeSymlink | 0o777, target: target})
	d.do(change{names: []edit{{at.dir, at.name, id}}})
	return nil
}

// Link gives a file a second name.
func (d *Disk) Link(from, to string) error {
	n, source, err := d.get("link", from, false)
	if err != nil {
		return err
	}
	at, err := d.free("link", to)
	if err != nil {
		return err
	}
	if n.mode.IsDir() {
		return &fs.PathError{Op: "link", Path: from, Err: fs.ErrPermission}
	}
	if err := d.begin("link", from); err != nil {
		return err
	}
	d.do(change{names: []edit{{at.dir, at.name, source.id}}})
	return nil
}

// Adopt takes over mode and owner.
func (d *Disk) Adopt(path, like string) error {
	old, _, err := d.get("adopt", like, false)
	if err != nil {
		return err
	}
	return d.setAttr("adopt", path, func(a *attr) { a.mode, a.owner = old.mode.Perm(), old.owner })
}

// Own takes over the owner.
func (d *Disk) Own(path, like string) error {
	old, _, err := d.get("own", like, false)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return d.setAttr("own", path, func(a *attr) {
		if old != nil && old.mode.IsRegular() {
			a.owner = old.owner
		}
	})
}

// Chmod sets the permission bits.
func (d *Disk) Chmod(path string, mode fs.FileMode) error {
	return d.setAttr("chmod", path, func(a *attr) { a.mode = mode.Perm() })
}

func (d *Disk) setAttr(op, path string, set func(*attr)) error {
	n, at, err := d.get(op, path, true)
	if err != nil {
		return err
	}
	if err := d.begin(op, path); err != nil {
		return err
	}
	a := attr{id: at.id, mode: n.mode.Perm(), owner: n.owner}
	set(&a)
	a.mode |= n.mode.Type()
	if a.mode != n.mode || a.owner != n.owner {
		d.do(change{attr: &a})
	}
	return nil
}

// Rename refuses to replace a directory, even an empty one, as Windows does.
func (d *Disk) Rename(from, to string) error {
	n, source, err := d.get("rename", from, false)
	if err != nil {
		return err
	}
	target, err := d.find("rename", to, false)
	if err != nil {
		return err
	}
	if target.id != 0 && target.id != source.id && (n.mode.IsDir() || d.now[target.id].mode.IsDir()) {
		return &fs.PathError{Op: "rename", Path: to, Err: fs.ErrExist}
	}
	if err := d.begin("rename", from); err != nil {
		return err
	}
	if target.id != source.id { // of two names of one file, rename(2) keeps both
		d.do(change{names: []edit{{source.dir, source.name, 0}, {target.dir, target.name, source.id}}})
	}
	return nil
}

// Exchange swaps two names.
func (d *Disk) Exchange(a, b string) error {
	_, one, err := d.get("exchange", a, false)
	if err != nil {
		return err
	}
	_, two, err := d.get("exchange", b, false)
	if err != nil {
		return err
	}
	if err := d.begin("exchange", a); err != nil {
		return err
	}
	if d.NoExchange {
		return fmt.Errorf("exchange %s and %s: %w", a, b, swap.ErrNoExchange)
	}
	d.do(change{names: []edit{{one.dir, one.name, two.id}, {two.dir, two.name, one.id}}})
	return nil
}

// Remove deletes a directory in three changes: another name, what is in it, itself.
func (d *Disk) Remove(path string) error {
	at, err := d.find("remove", path, false)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	}
	if err := d.begin("remove", path); err != nil || at.id == 0 {
		return err
	}
	n := d.now[at.id]
	if n.mode.IsDir() {
		if !strings.HasPrefix(at.name, ".trash-") {
			d.trashed++
			trash := fmt.Sprintf(".trash-%d", d.trashed)
			for d.now[at.dir].entries[trash] != 0 {
				trash += "0"
			}
			d.do(change{names: []edit{{at.dir, at.name, 0}, {at.dir, trash, at.id}}})
			at.name = trash
		}
		var gone []edit
		for _, name := range slices.Sorted(maps.Keys(n.entries)) {
			gone = append(gone, edit{at.id, name, 0})
		}
		if len(gone) > 0 {
			d.do(change{names: gone})
		}
	}
	d.do(change{names: []edit{{at.dir, at.name, 0}}})
	return nil
}

// Sync makes certain what the rules of Disk say.
func (d *Disk) Sync(path string) error {
	n, at, err := d.get("sync", path, true)
	if err != nil {
		return err
	}
	if err := d.begin("sync", path); err != nil {
		return err
	}
	forced := make([]bool, len(d.pending))
	if n.mode.IsDir() {
		d.forceNames(at.id, forced)
	}
	for i, c := range d.pending {
		if c.attr != nil && c.attr.id == at.id || c.data != nil && c.data.id == at.id {
			forced[i] = true
		}
	}
	var left []change
	for i, c := range d.pending {
		if forced[i] {
			c.apply(d.durable)
		} else {
			left = append(left, c)
		}
	}
	d.pending = left
	return nil
}

// forceNames marks the changes of names in dir, and those that cannot be later than they.
func (d *Disk) forceNames(dir int, forced []bool) {
	for i := len(d.pending) - 1; i >= 0; i-- {
		c := d.pending[i]
		if c.touches(dir) {
			forced[i] = true
		}
		for j := i + 1; j < len(d.pending) && !forced[i]; j++ {
			forced[i] = forced[j] && (d.Ordered && c.data == nil || d.pending[j].needs(c))
		}
	}
}
