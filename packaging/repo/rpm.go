package repo

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/devops-agent/devops-agent/packaging/internal/rpm"
)

// Bounds of what one .rpm says about itself.
const (
	maxFiles = 200_000
	maxDeps  = 20_000
)

// fragments are the elements about one package in the three indexes of a yum repository.
type fragments struct{ primary, filelists, other string }

// readRPM reads the head of a binary .rpm and makes its elements.
func readRPM(r io.Reader, p Package, s signers) (item, error) {
	head, err := rpm.Read(r)
	if err != nil {
		return item{}, fmt.Errorf("read .rpm: %w", err)
	}
	h := head.Header
	if h.Has(rpm.SourcePackage) || h.String(rpm.SourceRPM) == "" {
		return item{}, fmt.Errorf("a source package: %w", ErrKind)
	}
	v := evr{epoch: "0", version: h.String(rpm.Version), release: h.String(rpm.Release)}
	if n, ok := h.Int(rpm.Epoch); ok {
		v.epoch = strconv.FormatInt(n, 10)
	}
	p.Name, p.Arch, p.Version = h.String(rpm.Name), h.String(rpm.Arch), v.String()
	if err := errors.Join(shaped("name", p.Name, rpmName), shaped("version", v.version, rpmVersion), shaped("release", v.release, rpmVersion),
		shaped("architecture", p.Arch, rpmArch)); err != nil {
		return item{}, err
	}
	p.File = poolPath(p.Name, p.Name+"-"+v.version+"-"+v.release+"."+p.Arch+".rpm")
	d := rpmDescription{Package: p, evr: v, head: head}
	if err := d.files(); err != nil {
		return item{}, err
	}
	yum, err := d.fragments()
	return item{Package: p, kind: rpmID, yum: yum, signed: rpmSigned(head, s)}, err
}

// rpmSigned reports whether one of the keys signed the header, and so, by its sums, everything in the package.
func rpmSigned(head *rpm.Head, s signers) bool {
	for _, tag := range []int{rpm.SigRSA, rpm.SigDSA} {
		if signature := head.Signature.Bytes(tag); signature != nil && s.check(head.Signed, signature) == nil {
			return true
		}
	}
	return false
}

// rpmDescription is what the indexes say about a package.
type rpmDescription struct {
	Package
	evr
	head  *rpm.Head
	paths []rpmFile
}

type rpmFile struct{ path, kind string } // kind: "", dir, ghost

// Of rpm's headers: the type of a file in its mode, and the flag of one that is not in the payload.
const (
	modeType  = 0o170000
	modeDir   = 0o040000
	fileGhost = 1 << 6
)

func (d *rpmDescription) files() error {
	h := d.head.Header
	names, dirs, in := h.Strings(rpm.BaseNames), h.Strings(rpm.DirNames), h.Ints(rpm.DirIndexes)
	if names == nil {
		names = h.Strings(rpm.OldFileNames)
		dirs, in = []string{""}, make([]int64, len(names))
	}
	modes, flags := h.Ints(rpm.FileModes), h.Ints(rpm.FileFlags)
	if len(names) > maxFiles || len(in) != len(names) || len(modes) != len(names) || len(flags) != len(names) {
		return fmt.Errorf("%w: its list of files is broken", rpm.ErrFormat)
	}
	for i, name := range names {
		if in[i] < 0 || in[i] >= int64(len(dirs)) {
			return fmt.Errorf("%w: a file in no directory", rpm.ErrFormat)
		}
		f := rpmFile{path: dirs[in[i]] + name}
		switch {
		case modes[i]&modeType == modeDir:
			f.kind = "dir"
		case flags[i]&fileGhost != 0:
			f.kind = "ghost"
		}
		d.paths = append(d.paths, f)
	}
	return nil
}

func (d *rpmDescription) fragments() (fragments, error) {
	primary, err := d.primary()
	return fragments{primary: primary, filelists: d.filelists(), other: d.other()}, err
}

// primary is the element of primary.xml, as createrepo_c writes it. The time of the file is that of the build: the index
// is then a function of the packages.
func (d *rpmDescription) primary() (string, error) {
	h, x := d.head.Header, &xmlText{}
	x.open("package", "type", "rpm")
	x.text("name", d.Name)
	x.text("arch", d.Arch)
	d.version(x)
	x.text("checksum", d.SHA256, "type", "sha256", "pkgid", "YES")
	x.text("summary", h.String(rpm.Summary))
	x.text("description", h.String(rpm.Description))
	x.text("packager", h.String(rpm.Packager))
	x.text("url", h.String(rpm.URL))
	built, _ := h.Int(rpm.BuildTime)
	x.text("time", "", "file", number(built), "build", number(built))
	x.text("size", "", "package", number(d.Size), "installed", number(firstInt(h, rpm.LongSize, rpm.Size)),
		"archive", number(firstInt(d.head.Signature, rpm.SigLongPayloadSize, rpm.SigPayloadSize)))
	x.text("location", "", "href", d.File)
	x.open("format")
	x.text("rpm:license", h.String(rpm.License))
	x.text("rpm:vendor", h.String(rpm.Vendor))
	x.text("rpm:group", h.String(rpm.Group))
	x.text("rpm:buildhost", h.String(rpm.BuildHost))
	x.text("rpm:sourcerpm", h.String(rpm.SourceRPM))
	x.text("rpm:header-range", "", "start", number(d.head.Start), "end", number(d.head.End))
	provided, err := dependencies(h, rpm.ProvideNames, rpm.ProvideFlags, rpm.ProvideVersions)
	if err != nil {
		return "", err
	}
	for _, one := range []struct {
		name                   string
		names, flags, versions int
	}{
		{"provides", rpm.ProvideNames, rpm.ProvideFlags, rpm.ProvideVersions},
		{"requires", rpm.RequireNames, rpm.RequireFlags, rpm.RequireVersions},
		{"conflicts", rpm.ConflictNames, rpm.ConflictFlags, rpm.ConflictVersions},
		{"obsoletes", rpm.ObsoleteNames, rpm.ObsoleteFlags, rpm.ObsoleteVersions},
		{"suggests", rpm.SuggestNames, rpm.SuggestFlags, rpm.SuggestVers},
		{"enhances", rpm.EnhanceNames, rpm.EnhanceFlags, rpm.EnhanceVers},
		{"recommends", rpm.RecommendNames, rpm.RecommendFlags, rpm.RecommendVers},
		{"supplements", rpm.SupplementNames, rpm.SupplementFlags, rpm.SupplementVers},
	} {
		deps, err := dependencies(h, one.names, one.flags, one.versions)
		if err != nil {
			return "", err
		}
		if one.name == "requires" {
			deps = d.foreign(deps, provided)
		}
		if len(deps) == 0 {
			continue
		}
		x.open("rpm:" + one.name)
		for _, dep := range deps {
			x.text("rpm:entry", "", dep.attributes()...)
		}
		x.close("rpm:" + one.name)
	}
	for _, f := range d.paths {
		if isPrimary(f.path) {
			x.file(f)
		}
	}
	x.close("format")
	x.close("package")
	return x.String(), nil
}

// isPrimary reports whether a file is in the first index, because others may depend on it.
func isPrimary(path string) bool {
	return strings.HasPrefix(path, "/etc/") || strings.Contains(path, "bin/") || path == "/usr/lib/sendmail"
}

// foreign leaves out of what a package requires what it brings itself, and what rpm itself must be able to do.
func (d *rpmDescription) foreign(deps, provided []dependency) []dependency {
	seen := map[dependency]bool{}
	for _, one := range provided {
		one.pre = false
		seen[one] = true
	}
	own := map[string]bool{}
	for _, f := range d.paths {
		own[f.path] = isPrimary(f.path)
	}
	return slices.DeleteFunc(deps, func(one dependency) bool {
		key := one
		key.pre = false
		drop := strings.HasPrefix(one.name, "rpmlib(") || own[one.name] || seen[key]
		seen[key] = true
		return drop
	})
}

func (d *rpmDescription) filelists() string {
	x := d.begin()
	for _, f := range d.paths {
		x.file(f)
	}
	x.close("package")
	return x.String()
}

// changelogLimit is how many entries of the change log are in the index, the newest ones; createrepo has as many.
const changelogLimit = 10

func (d *rpmDescription) other() string {
	h, x := d.head.Header, d.begin()
	times, names, texts := h.Ints(rpm.ChangeTimes), h.Strings(rpm.ChangeNames), h.Strings(rpm.ChangeTexts)
	if len(names) == len(times) && len(texts) == len(times) {
		for i := min(len(times), changelogLimit) - 1; i >= 0; i-- { // the oldest first
			x.text("changelog", texts[i], "author", names[i], "date", number(times[i]))
		}
	}
	x.close("package")
	return x.String()
}

func (d *rpmDescription) begin() *xmlText {
	x := &xmlText{}
	x.open("package", "pkgid", d.SHA256, "name", d.Name, "arch", d.Arch)
	d.version(x)
	return x
}

func (d *rpmDescription) version(x *xmlText) {
	x.text("version", "", "epoch", d.epoch, "ver", d.evr.version, "rel", d.release)
}

// Flags of dependencies in rpm's headers.
const (
	senseLess    = 1 << 1
	senseGreater = 1 << 2
	senseEqual   = 1 << 3
	sensePrereq  = 1<<6 | 1<<9 | 1<<10 // before installation, or by its scripts
)

type dependency struct {
	name, flags string
	evr
	pre bool
}

func (d dependency) attributes() []string {
	list := []string{"name", d.name}
	if d.flags != "" {
		list = append(list, "flags", d.flags, "epoch", d.epoch, "ver", d.evr.version)
		if d.release != "" {
			list = append(list, "rel", d.release)
		}
	}
	if d.pre {
		list = append(list, "pre", "1")
	}
	return list
}

func dependencies(h rpm.Header, names, flags, versions int) ([]dependency, error) {
	n, f, v := h.Strings(names), h.Ints(flags), h.Strings(versions)
	if len(n) > maxDeps || len(f) != len(n) || len(v) != len(n) {
		return nil, fmt.Errorf("%w: its dependencies are broken", rpm.ErrFormat)
	}
	deps := make([]dependency, 0, len(n))
	for i, name := range n {
		d := dependency{name: name, pre: f[i]&sensePrereq != 0}
		switch f[i] & (senseLess | senseGreater | senseEqual) {
		case senseLess:
			d.flags = "LT"
		case senseGreater:
			d.flags = "GT"
		case senseEqual:
			d.flags = "EQ"
		case senseLess | senseEqual:
			d.flags = "LE"
		case senseGreater | senseEqual:
			d.flags = "GE"
		}
		if d.flags != "" {
			d.evr = parseEVR(v[i])
		}
		deps = append(deps, d)
	}
	return deps, nil
}

func firstInt(h rpm.Header, tags ...int) int64 {
	for _, tag := range tags {
		if n, ok := h.Int(tag); ok {
			return n
		}
	}
	return 0
}

func number(n int64) string { return strconv.FormatInt(n, 10) }

// xmlText is XML as it grows: an element a line.
type xmlText struct {
	strings.Builder
	depth int
}

func (x *xmlText) open(name string, attributes ...string) {
	x.begin(name, attributes)
	x.WriteString(">\n")
	x.depth++
}

func (x *xmlText) close(name string) {
	x.depth--
	x.indent()
	x.WriteString("</" + name + ">\n")
}

func (x *xmlText) text(name, content string, attributes ...string) {
	x.begin(name, attributes)
	if content == "" {
		x.WriteString("/>\n")
		return
	}
	x.WriteByte('>')
	x.escape(content)
	x.WriteString("</" + name + ">\n")
}

func (x *xmlText) file(f rpmFile) {
	if f.kind == "" {
		x.text("file", f.path)
		return
	}
	x.text("file", f.path, "type", f.kind)
}

func (x *xmlText) begin(name string, attributes []string) {
	x.indent()
	x.WriteString("<" + name)
	for i := 0; i < len(attributes); i += 2 {
		x.WriteString(" " + attributes[i] + `="`)
		x.escape(attributes[i+1])
		x.WriteByte('"')
	}
}

func (x *xmlText) indent() { x.WriteString(strings.Repeat("  ", x.depth)) }

// escape writes text that may hold anything. What XML cannot hold becomes U+FFFD.
func (x *xmlText) escape(text string) {
	for _, r := range text {
		switch {
		case r == '&':
			x.WriteString("&amp;")
		case r == '<':
			x.WriteString("&lt;")
		case r == '>':
			x.WriteString("&gt;")
		case r == '"':
			x.WriteString("&quot;")
		case r == '\r':
			x.WriteString("&#13;")
		case r < ' ' && r != '\n' && r != '\t', r == 0xfffe, r == 0xffff, r == utf8.RuneError:
			x.WriteRune(utf8.RuneError)
		default:
			x.WriteRune(r)
		}
	}
}
