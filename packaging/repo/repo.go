package repo

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// maxPackage bounds one package in bytes.
const maxPackage = 4 << 30

// grace is how long files stay that are in no index any more: somebody may still read the index before.
const grace = time.Hour

// Names in the root of a repository; hidden ones are of no use to clients.
const (
	lockName     = ".lock"
	incomingName = ".incoming"
)

// A Repository is a directory that holds an apt and a yum repository.
type Repository struct {
	Dir  string
	Keys []*Key // every one signs; what is there must be signed by one of them. Two of them to go from one to the next.
	Name string // of the files that set a machine up; "devops-agent"

	Suite                      string        // of apt; "stable"
	Origin, Label, Description string        // in apt's Release; from Name
	URL                        string        // where clients find Dir; "" leaves out the files that need it
	Keep                       int           // versions of each package and architecture; 0 keeps all
	ValidFor                   time.Duration // apt refuses an older index; 0 is for ever

	Now time.Time // of this publication; the zero value is the time of the call

	disk swap.Disk // nil is the real one
}

// Changes is what a publication did.
type Changes struct {
	Added, Dropped []Package
	Apt, Yum       bool // whether there is a new index
}

// A ConflictError is a package whose name, version and architecture the repository has with other content. Clients that
// have one of the two would never see the other.
type ConflictError struct {
	Package Package // as it is in the repository
	SHA256  string  // of the other
}

// Error names the package.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s is in the repository with other content (%.12s…, not %.12s…)", e.Package, e.Package.SHA256, e.SHA256)
}

// Hint says what to do.
func (e *ConflictError) Hint() string {
	return "what was published never changes; build it again under a new version"
}

// A SignatureError is an index in the repository that none of the keys has signed as it is.
type SignatureError struct {
	File string
	Err  error
}

// Error names the file.
func (e *SignatureError) Error() string { return e.File + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *SignatureError) Unwrap() error { return e.Err }

// Hint says what to do.
func (e *SignatureError) Hint() string {
	return "somebody else changed it, or it was signed by another key: give that one as well, or begin with an empty directory"
}

// A MissingError is a package in an index whose file is not there, or is another one.
type MissingError struct{ Package Package }

// Error names the file.
func (e *MissingError) Error() string {
	return e.Package.File + " is in the index and not in the directory"
}

// Hint says what to do.
func (e *MissingError) Hint() string { return "give the package again" }

var (
	nameShape  = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)
	titleShape = regexp.MustCompile(`^[^\x00-\x1f\x7f]{1,200}$`)
)

func (r *Repository) defaults() error {
	for _, one := range []struct {
		value   *string
		initial string
	}{{&r.Name, "devops-agent"}, {&r.Suite, "stable"}} {
		if *one.value == "" {
			*one.value = one.initial
		}
		if !nameShape.MatchString(*one.value) {
			return fmt.Errorf("%.80q is not usable as a name", *one.value)
		}
	}
	for _, one := range []struct {
		value   *string
		initial string
	}{{&r.Origin, r.Name}, {&r.Label, r.Name}, {&r.Description, "Packages of " + r.Name}} {
		if *one.value == "" {
			*one.value = one.initial
		}
		if !titleShape.MatchString(*one.value) {
			return fmt.Errorf("%.80q must be one line", *one.value)
		}
	}
	if r.URL != "" {
		u, err := url.Parse(r.URL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil ||
			strings.ContainsAny(r.URL, " \t\r\n\"'`$\\;|&<>()") {
			return fmt.Errorf("address %.200q: want http(s)://HOST/PATH", r.URL)
		}
		r.URL = strings.TrimRight(r.URL, "/")
	}
	if r.Keep < 0 || r.ValidFor < 0 {
		return errors.New("a number of versions, or a time, below zero")
	}
	if r.Now.IsZero() {
		r.Now = time.Now()
	}
	if r.disk == nil {
		r.disk = swap.Real()
	}
	return nil
}

// Publish adds packages to the repository, which is made when it is not there, and drops the oldest versions beyond
// Keep. Clients see it before or after, at any moment: of apt entirely; of yum, one that asks for repomd.xml before and for its signature
// after is told that the signature is bad, and is right when it asks again. Files of before stay for an hour at least.
//
// A publication that was interrupted has changed nothing for clients, or all; the next one clears up. Others wait, until
// ctx ends. Without files it does just that, and signs again what will not be valid for long.
func (r Repository) Publish(ctx context.Context, files ...string) (Changes, error) {
	c, err := r.publish(ctx, files)
	if err != nil {
		return Changes{}, fmt.Errorf("publish in %s: %w", r.Dir, err)
	}
	return c, nil
}

func (r Repository) publish(ctx context.Context, files []string) (_ Changes, err error) {
	if err := r.defaults(); err != nil {
		return Changes{}, err
	}
	s, err := newSigners(r.Keys, r.Now)
	if err != nil {
		return Changes{}, err
	}
	root, err := filepath.Abs(r.Dir)
	if err != nil {
		return Changes{}, err
	}
	t := tree{r.disk, root}
	if err := t.make(); err != nil {
		return Changes{}, err
	}
	unlock, err := t.lock(ctx)
	if err != nil {
		return Changes{}, err
	}
	defer func() { err = errors.Join(err, unlock()) }()

	p := publication{Repository: r, tree: t, signers: s, apt: apt{t, r.Suite}, yum: yum{t}}
	if err := p.begin(); err != nil {
		return Changes{}, err
	}
	if err := p.takeIn(ctx, files); err != nil {
		return Changes{}, err
	}
	if err := ctx.Err(); err != nil {
		return Changes{}, context.Cause(ctx)
	}
	return p.commit()
}

// lock keeps other publications out.
func (t tree) lock(ctx context.Context) (unlock func() error, err error) {
	l := flock.New(t.path(lockName))
	if ok, err := l.TryLockContext(ctx, 100*time.Millisecond); err != nil || !ok {
		return nil, fmt.Errorf("wait for another publication: %w", err)
	}
	return l.Unlock, nil
}

// publication is one run of Publish.
type publication struct {
	Repository
	tree    tree
	signers signers
	apt     apt
	yum     yum

	oldApt, oldYum published
	items          map[string]item   // by id: what will be published
	fresh          map[string]string // by file in the pool: where its content is
	changes        Changes
}

// begin clears up after a publication that was interrupted, and reads what is published.
func (p *publication) begin() (err error) {
	if err := p.yum.repair(); err != nil {
		return err
	}
	if err := p.tree.disk.Remove(p.tree.path(incomingName)); err != nil {
		return err
	}
	if p.oldApt, err = p.apt.read(p.signers); err != nil {
		return err
	}
	if p.oldYum, err = p.yum.read(p.signers); err != nil {
		return err
	}
	p.items, p.fresh = map[string]item{}, map[string]string{}
	for _, i := range slices.Concat(p.oldApt.items, p.oldYum.items) {
		p.items[i.id()] = i
	}
	return nil
}

// takeIn copies packages into the directory and reads the copies: what is signed is what is served.
func (p *publication) takeIn(ctx context.Context, files []string) error {
	if len(files) > 0 {
		if err := p.tree.mkdir(incomingName); err != nil {
			return err
		}
	}
	for n, file := range files {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		full, err := filepath.Abs(file)
		if err != nil {
			return err
		}
		copied := path.Join(incomingName, fmt.Sprint(n))
		if err := p.take(full, copied); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return nil
}

func (p *publication) take(file, copied string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() > maxPackage {
		return fmt.Errorf("no file of at most %d bytes: %w", int64(maxPackage), ErrKind)
	}
	if err := p.tree.disk.Copy(file, p.tree.path(copied)); err != nil {
		return err
	}
	sum, size, err := p.tree.sum(copied)
	if err != nil {
		return err
	}
	i, err := p.open(copied, Package{SHA256: sum, Size: size})
	if err != nil {
		return err
	}
	have, there := p.items[i.id()]
	if there && have.SHA256 != sum {
		return &ConflictError{have.Package, sum}
	}
	if there && p.tree.size(have.File) == have.Size {
		return nil
	}
	for _, other := range p.items { // 1:1.0 and 1.0 would be one file
		if other.File == i.File && other.id() != i.id() {
			return &ConflictError{other.Package, sum}
		}
	}
	if !there {
		p.items[i.id()] = i
		p.changes.Added = append(p.changes.Added, i.Package)
	}
	p.fresh[i.File] = copied
	return nil
}

// open reads a package in the directory.
func (p *publication) open(name string, known Package) (item, error) {
	f, err := os.Open(p.tree.path(name))
	if err != nil {
		return item{}, err
	}
	defer func() { _ = f.Close() }()
	return readItem(f, known, p.signers)
}

// commit publishes.
func (p *publication) commit() (Changes, error) {
	p.retain()
	for _, i := range p.items {
		if p.fresh[i.File] == "" && p.tree.size(i.File) != i.Size {
			return Changes{}, &MissingError{i.Package}
		}
	}
	for file, copied := range p.fresh {
		if err := p.tree.move(copied, file); err != nil {
			return Changes{}, err
		}
	}
	if err := p.setUp(); err != nil {
		return Changes{}, err
	}
	byKind := map[kind][]item{}
	for _, i := range p.items {
		byKind[i.kind] = append(byKind[i.kind], i)
	}
	used, changed, err := p.apt.publish(p.Repository, byKind[deb], p.oldApt, p.signers)
	if err != nil {
		return Changes{}, err
	}
	p.changes.Apt = changed
	more, changed, err := p.yum.publish(byKind[rpmID], p.oldYum, p.signers, func(name string) bool { return !p.tree.expired(name, p.Now, grace) })
	if err != nil {
		return Changes{}, err
	}
	p.changes.Yum = changed
	sortPackages(p.changes.Added)
	sortPackages(p.changes.Dropped)
	return p.changes, p.prune(append(used, more...))
}

func sortPackages(list []Package) {
	slices.SortFunc(list, func(a, b Package) int { return strings.Compare(a.File, b.File) })
}

// retain drops the oldest versions beyond Keep, of each package and architecture.
func (p *publication) retain() {
	groups := map[string][]item{}
	for _, i := range p.items {
		key := string(i.kind) + " " + i.Name + " " + i.Arch
		groups[key] = append(groups[key], i)
	}
	for _, group := range groups {
		if p.Keep == 0 || len(group) <= p.Keep {
			continue
		}
		slices.SortFunc(group, func(a, b item) int { return b.compare(a) })
		for _, i := range group[p.Keep:] {
			delete(p.items, i.id())
			if p.fresh[i.File] != "" { // it never was there
				delete(p.fresh, i.File)
				p.changes.Added = slices.DeleteFunc(p.changes.Added, func(a Package) bool { return a == i.Package })
				continue
			}
			p.changes.Dropped = append(p.changes.Dropped, i.Package)
		}
	}
}

// prune removes what is in no index, neither in this one nor in the one before, and was not an hour ago.
func (p *publication) prune(used []string) error {
	inUse := map[string]bool{}
	for _, name := range slices.Concat(used, p.oldApt.files, p.oldYum.files) {
		inUse[name] = true
	}
	hashes := p.apt.dir("main") + "/"
	names, err := p.tree.names("pool", func(name string) bool { return true })
	if err != nil {
		return err
	}
	more, err := p.tree.names("dists", func(name string) bool {
		return isTemporary(name) || strings.HasPrefix(name, hashes) && strings.Contains(name, "/by-hash/SHA256/")
	})
	if err != nil {
		return err
	}
	for _, name := range append(names, more...) {
		if inUse[name] || !isTemporary(name) && !p.tree.expired(name, p.Now, grace) {
			continue
		}
		if err := p.tree.disk.Remove(p.tree.path(name)); err != nil {
			return err
		}
	}
	return p.tree.disk.Remove(p.tree.path(incomingName))
}

// setUp writes what a machine needs to use the repository.
func (p *publication) setUp() error {
	ring, err := Public(p.Keys...)
	if err != nil {
		return err
	}
	text, err := ArmouredPublic(p.Keys...)
	if err != nil {
		return err
	}
	files := map[string][]byte{p.Name + ".gpg": ring, p.Name + ".asc": text}
	if p.URL != "" {
		files[p.Name+".sources"] = []byte(p.sources())
		signed, err := p.allSigned()
		if err != nil {
			return err
		}
		files[p.Name+".repo"] = []byte(p.yumFile(signed))
	}
	for name, data := range files {
		if err := p.tree.write(name, data); err != nil {
			return err
		}
	}
	return nil
}

// sources is a file for /etc/apt/sources.list.d (deb822, sources.list(5)).
func (r Repository) sources() string {
	return stanza{{"Types", "deb"}, {"URIs", r.URL}, {"Suites", r.Suite}, {"Components", "main"}, {"Signed-By", "/etc/apt/keyrings/" + r.Name + ".gpg"}}.String()
}

// yumFile is a file for /etc/yum.repos.d. The index is signed in any case, and packages are what it says they are;
// their own signatures are asked for where all of them have one.
func (r Repository) yumFile(signed bool) string {
	check := 0
	if signed {
		check = 1
	}
	return fmt.Sprintf("[%[1]s]\nname=%[2]s\nbaseurl=%[3]s\nenabled=1\nrepo_gpgcheck=1\ngpgcheck=%[4]d\ngpgkey=%[3]s/%[1]s.asc\n", r.Name, r.Label, r.URL, check)
}

// allSigned reports whether every rpm is signed by one of the keys.
func (p *publication) allSigned() (bool, error) {
	for _, i := range p.items {
		if i.kind != rpmID || i.signed {
			continue
		}
		if p.fresh[i.File] != "" { // read a moment ago
			return false, nil
		}
		again, err := p.open(i.File, i.Package)
		if err != nil || !again.signed {
			return false, err
		}
	}
	return true, nil
}
