package repo

import (
	"bytes"
	"compress/gzip"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// maxRepomd bounds repomd.xml and its signature in bytes.
const maxRepomd = 1 << 20

// Namespaces of a yum repository's files.
const (
	namespaceRepo      = "http://linux.duke.edu/metadata/repo"
	namespaceCommon    = "http://linux.duke.edu/metadata/common"
	namespaceFilelists = "http://linux.duke.edu/metadata/filelists"
	namespaceOther     = "http://linux.duke.edu/metadata/other"
	namespaceRPM       = "http://linux.duke.edu/metadata/rpm"
)

// yum is the repository as dnf, yum and zypper see it.
type yum struct{ tree tree }

const repodata = "repodata"

// Names beside repodata while it is replaced; hidden ones, which no server should hand out.
const (
	repodataFresh = ".repodata.new"
	repodataOld   = ".repodata.old"
)

// repomd is repomd.xml as far as it is read.
type repomd struct {
	Data []struct {
		Type     string `xml:"type,attr"`
		Checksum struct {
			Type  string `xml:"type,attr"`
			Value string `xml:",chardata"`
		} `xml:"checksum"`
		Open     string `xml:"open-checksum"`
		Location struct {
			Href string `xml:"href,attr"`
		} `xml:"location"`
	} `xml:"data"`
}

var repodataShape = regexp.MustCompile(`^repodata/[0-9a-f]{64}-(primary|filelists|other)\.xml\.gz$`)

// repair ends what a crash while repodata was replaced left.
func (y yum) repair() error {
	live, fresh, old := y.tree.path(repodata), y.tree.path(repodataFresh), y.tree.path(repodataOld)
	if err := swap.RecoverDir(y.tree.disk, live, fresh, old); err != nil {
		return err
	}
	for _, name := range []string{fresh, old} {
		if err := y.tree.disk.Remove(name); err != nil {
			return err
		}
	}
	return swap.SweepOn(y.tree.disk, y.tree.root)
}

// read takes what was published last, nothing when there was nothing. It believes what one of the keys signed.
func (y yum) read(s signers) (published, error) {
	name := repodata + "/repomd.xml"
	data, err := y.tree.read(name, maxRepomd)
	if errors.Is(err, fs.ErrNotExist) {
		return published{}, nil
	}
	if err != nil {
		return published{}, err
	}
	signature, err := y.tree.read(name+".asc", maxRepomd)
	if err != nil {
		return published{}, err
	}
	p := published{text: string(data)}
	if p.signatures, err = s.openDetached(data, signature); err != nil {
		return published{}, &SignatureError{name, err}
	}
	var md repomd
	if err := xml.Unmarshal(data, &md); err != nil {
		return published{}, fmt.Errorf("%s: %w", name, err)
	}
	byType := map[string][]element{}
	for _, one := range md.Data {
		if !repodataShape.MatchString(one.Location.Href) || one.Checksum.Type != "sha256" {
			return published{}, fmt.Errorf("%s: an index that is not ours: %.120q", name, one.Location.Href)
		}
		p.files = append(p.files, one.Location.Href)
		packed, err := y.tree.read(one.Location.Href, maxIndex)
		if err != nil {
			return published{}, fmt.Errorf("%s: %w", name, err)
		}
		if sha256Hex(packed) != one.Checksum.Value {
			return published{}, fmt.Errorf("%s: %s is not what was signed", name, one.Location.Href)
		}
		text, err := gunzipped(packed)
		if err == nil {
			byType[one.Type], err = splitPackages(text)
		}
		if err != nil {
			return published{}, fmt.Errorf("%s: %w", one.Location.Href, err)
		}
	}
	p.items, err = joinPackages(byType)
	for _, i := range p.items {
		p.files = append(p.files, i.File)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return p, err
}

func gunzipped(data []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(z, maxIndex+1))
	if err == nil && len(text) > maxIndex {
		err = fmt.Errorf("more than %d bytes", maxIndex)
	}
	return text, err
}

// element is one package of an index: its text, as it stays there, and what is read of it.
type element struct {
	text string

	PkgID   string `xml:"pkgid,attr"` // not in primary
	Name    string `xml:"name"`
	Arch    string `xml:"arch"`
	Version struct {
		Epoch   string `xml:"epoch,attr"`
		Version string `xml:"ver,attr"`
		Release string `xml:"rel,attr"`
	} `xml:"version"`
	Checksum string `xml:"checksum"`
	Size     struct {
		Package int64 `xml:"package,attr"`
	} `xml:"size"`
	Location struct {
		Href string `xml:"href,attr"`
	} `xml:"location"`
}

// splitPackages takes an index apart.
func splitPackages(text []byte) ([]element, error) {
	d := xml.NewDecoder(bytes.NewReader(text))
	var list []element
	for depth := 0; ; {
		before := d.InputOffset()
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, err
		}
		switch start := token.(type) {
		case xml.StartElement:
			if depth == 0 {
				depth++
				continue
			}
			if start.Name.Local != "package" {
				return nil, fmt.Errorf("element %.40q where a package must be", start.Name.Local)
			}
			var e element
			if err := d.DecodeElement(&e, &start); err != nil {
				return nil, err
			}
			e.text = string(text[before:d.InputOffset()]) + "\n"
			list = append(list, e)
		case xml.EndElement:
			depth--
		}
	}
}

// joinPackages puts the elements of the three indexes together.
func joinPackages(byType map[string][]element) ([]item, error) {
	others := map[string]map[string]string{}
	for _, kind := range []string{"filelists", "other"} {
		others[kind] = map[string]string{}
		for _, e := range byType[kind] {
			others[kind][e.PkgID] = e.text
		}
	}
	var items []item
	for _, e := range byType["primary"] {
		v := evr{e.Version.Epoch, e.Version.Version, e.Version.Release}
		i := item{kind: rpmID, yum: fragments{e.text, others["filelists"][e.Checksum], others["other"][e.Checksum]},
			Package: Package{Name: e.Name, Version: v.String(), Arch: e.Arch, File: e.Location.Href, Size: e.Size.Package, SHA256: e.Checksum}}
		if !rpmName.MatchString(i.Name) || !sumShape.MatchString(i.SHA256) || !poolShape.MatchString(i.File) || i.Size < 0 {
			return nil, fmt.Errorf("%.80s %.80s: its file, size or sum is not usable", i.Name, i.Version)
		}
		if i.yum.filelists == "" || i.yum.other == "" {
			return nil, fmt.Errorf("%s is not in every index", i)
		}
		items = append(items, i)
	}
	return items, nil
}

// index is the file of one kind of data for items.
func index(kind string, items []item) []byte {
	var b bytes.Buffer
	root, space, text := "metadata", namespaceCommon, func(i item) string { return i.yum.primary }
	switch kind {
	case "filelists":
		root, space, text = "filelists", namespaceFilelists, func(i item) string { return i.yum.filelists }
	case "other":
		root, space, text = "otherdata", namespaceOther, func(i item) string { return i.yum.other }
	}
	b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>` + "\n<" + root + ` xmlns="` + space + `"`)
	if kind == "primary" {
		b.WriteString(` xmlns:rpm="` + namespaceRPM + `"`)
	}
	fmt.Fprintf(&b, " packages=\"%d\">\n", len(items))
	for _, i := range items {
		b.WriteString(text(i))
	}
	b.WriteString("</" + root + ">\n")
	return b.Bytes()
}

// render makes the indexes and repomd.xml, which names them. The time is left out when now is zero, to compare what else
// it says.
func (y yum) render(items []item, now time.Time) (text []byte, files map[string][]byte, err error) {
	files = map[string][]byte{}
	x := &xmlText{}
	x.WriteString(`<?xml version="1.0" encoding="UTF-8"?>` + "\n")
	x.open("repomd", "xmlns", namespaceRepo, "xmlns:rpm", namespaceRPM)
	stamp := ""
	if !now.IsZero() {
		stamp = strconv.FormatInt(now.Unix(), 10)
	}
	x.text("revision", stamp)
	for _, kind := range []string{"primary", "filelists", "other"} {
		plain := index(kind, items)
		packed, err := gzipped(plain)
		if err != nil {
			return nil, nil, err
		}
		name := repodata + "/" + sha256Hex(packed) + "-" + kind + ".xml.gz"
		files[name] = packed
		x.open("data", "type", kind)
		x.text("checksum", sha256Hex(packed), "type", "sha256")
		x.text("open-checksum", sha256Hex(plain), "type", "sha256")
		x.text("location", "", "href", name)
		x.text("timestamp", stamp)
		x.text("size", strconv.Itoa(len(packed)))
		x.text("open-size", strconv.Itoa(len(plain)))
		x.close("data")
	}
	x.close("repomd")
	return []byte(x.String()), files, nil
}

var stampShape = regexp.MustCompile(`<(revision|timestamp)>[0-9]*</(revision|timestamp)>`)

// undatedRepomd is repomd.xml without its times.
func undatedRepomd(text string) string { return stampShape.ReplaceAllString(text, "<$1/>") }

// publish makes items what clients see. repodata is replaced as a whole, in one step: repomd.xml and its signature belong
// together, and so does what they name. Indexes of before, named by their sums, are kept in it for clients that work.
func (y yum) publish(items []item, old published, s signers, kept func(name string) bool) ([]string, bool, error) {
	if len(items) == 0 && old.text == "" {
		return nil, false, nil
	}
	items = slices.Clone(items)
	slices.SortFunc(items, item.compare)
	text, _, err := y.render(items, time.Time{})
	if err != nil {
		return nil, false, err
	}
	keep := make([]string, 0, len(items)+3)
	for _, i := range items {
		keep = append(keep, i.File)
	}
	if undatedRepomd(old.text) == string(text) && old.signatures == len(s.keys) {
		return append(keep, old.files...), false, nil
	}
	text, files, err := y.render(items, s.now)
	if err != nil {
		return nil, false, err
	}
	signature, err := s.detached(text)
	if err != nil {
		return nil, false, err
	}
	files[repodata+"/repomd.xml"], files[repodata+"/repomd.xml.asc"] = text, signature
	fresh := func(name string) string { return repodataFresh + strings.TrimPrefix(name, repodata) }
	if err := y.tree.mkdir(repodataFresh); err != nil {
		return nil, false, err
	}
	for name, data := range files {
		if err := y.tree.write(fresh(name), data); err != nil {
			return nil, false, err
		}
		keep = append(keep, name)
	}
	before, err := y.tree.names(repodata, func(name string) bool {
		return repodataShape.MatchString(name) && files[name] == nil && (kept(name) || slices.Contains(old.files, name))
	})
	if err != nil {
		return nil, false, err
	}
	for _, name := range before {
		if err := y.tree.disk.Link(y.tree.path(name), y.tree.path(fresh(name))); err != nil {
			return nil, false, err
		}
	}
	if err := y.tree.leave(old.files, keep, s.now); err != nil {
		return nil, false, err
	}
	if err := swap.Dir(y.tree.disk, y.tree.path(repodata), y.tree.path(repodataFresh), y.tree.path(repodataOld)); err != nil {
		return nil, false, err
	}
	return keep, true, y.tree.disk.Remove(y.tree.path(repodataOld))
}
