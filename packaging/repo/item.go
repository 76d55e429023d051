package repo

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/devops-agent/devops-agent/packaging/internal/ar"
	"github.com/devops-agent/devops-agent/packaging/internal/rpm"
)

// ErrKind says that a file is neither a .deb nor a binary .rpm.
var ErrKind = errors.New("neither a .deb nor a binary .rpm")

// A kind is one format of packages.
type kind string

const (
	deb   kind = "deb"
	rpmID kind = "rpm"
)

// A Package is one package of a repository.
type Package struct {
	Name, Version, Arch string // as dpkg or rpm name and write them
	File                string // slash path below the repository
	Size                int64  // bytes
	SHA256              string // hex
}

// String names the package by its file.
func (p Package) String() string { return p.File[strings.LastIndexByte(p.File, '/')+1:] }

// An item is a package with what the indexes say about it.
type item struct {
	Package
	kind   kind
	stanza string // of Packages, without the empty line after it
	yum    fragments
	signed bool // by one of the keys of the repository, the rpm itself
}

// id is what only one package of a repository may have.
func (i item) id() string { return string(i.kind) + " " + i.Name + " " + i.Version + " " + i.Arch }

// compare orders items of one kind by name, version and architecture.
func (i item) compare(o item) int {
	version := compareDeb
	if i.kind == rpmID {
		version = compareRPM
	}
	return cmp.Or(cmp.Compare(i.Name, o.Name), version(i.Version, o.Version), cmp.Compare(i.Version, o.Version), cmp.Compare(i.Arch, o.Arch))
}

// sized is a file to read, from its beginning as often as needed.
type sized interface {
	io.Reader
	io.Seeker
}

// readItem reads a package. p.Size and p.SHA256 are known; the rest of p, and what the indexes say, is returned.
func readItem(r sized, p Package, s signers) (item, error) {
	var magic [len(ar.Magic)]byte
	if _, err := io.ReadFull(r, magic[:]); err != nil {
		return item{}, ErrKind
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return item{}, err
	}
	switch {
	case string(magic[:]) == ar.Magic:
		return readDeb(r, p)
	case string(magic[:4]) == rpm.LeadMagic:
		return readRPM(r, p, s)
	}
	return item{}, ErrKind
}

// What becomes a path, a line of an index or an attribute is of these shapes: nothing in it needs quoting.
var (
	debName    = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]{1,199}$`)
	debVersion = regexp.MustCompile(`^(?:[0-9]{1,9}:)?[0-9][A-Za-z0-9.+~-]{0,199}$`)
	debArch    = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)
	rpmName    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9+._-]{0,199}$`)
	rpmVersion = regexp.MustCompile(`^[A-Za-z0-9+._~^]{1,200}$`)
	rpmArch    = regexp.MustCompile(`^[a-z0-9_]{1,64}$`)
)

// shaped refuses a value that is not of a shape.
func shaped(what, value string, shape *regexp.Regexp) error {
	if !shape.MatchString(value) {
		return fmt.Errorf("%s %.80q is not usable", what, value)
	}
	return nil
}

// poolPath is where a package is kept: names that begin alike are in one directory, as Debian has it.
func poolPath(name, file string) string {
	letter := strings.ToLower(name[:1])
	if strings.HasPrefix(name, "lib") && len(name) > 3 {
		letter = name[:4]
	}
	return "pool/main/" + letter + "/" + name + "/" + file
}
