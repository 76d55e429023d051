package repo

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ulikunitz/xz"
)

// maxRelease bounds InRelease in bytes.
const maxRelease = 4 << 20

// apt is one suite, with one component, as clients see it.
type apt struct {
	tree  tree
	suite string
}

func (a apt) dir(names ...string) string { return path.Join("dists", a.suite, path.Join(names...)) }

// published is what is signed now: of apt the items, and the files that they and the indexes are in.
type published struct {
	items      []item
	files      []string // slash paths below the root that no client that works now may miss
	text       string   // of Release, or repomd.xml
	signatures int
}

// read takes what was published last, nothing when there was nothing. It believes what one of the keys signed.
func (a apt) read(s signers) (published, error) {
	name := a.dir("InRelease")
	data, err := a.tree.read(name, maxRelease)
	if errors.Is(err, fs.ErrNotExist) {
		return published{}, nil
	}
	if err != nil {
		return published{}, err
	}
	text, signatures, err := s.openInline(data)
	if err != nil {
		return published{}, &SignatureError{name, err}
	}
	p := published{text: string(text), signatures: signatures}
	sums, err := parseSums(text)
	if err != nil {
		return published{}, fmt.Errorf("%s: %w", name, err)
	}
	seen := map[string]bool{}
	for _, file := range slices.Sorted(maps.Keys(sums)) {
		one := sums[file]
		hashed := a.dir(path.Dir(file), "by-hash/SHA256", one.sum)
		p.files = append(p.files, hashed)
		if path.Base(file) != "Packages" {
			continue
		}
		data, err := a.tree.read(hashed, maxIndex)
		if err != nil {
			data, err = a.tree.read(a.dir(file), maxIndex) // by-hash was not copied along
		}
		if err != nil {
			return published{}, fmt.Errorf("%s: %w", name, err)
		}
		if sha256Hex(data) != one.sum {
			return published{}, fmt.Errorf("%s: %s is not what was signed", name, file)
		}
		items, err := parsePackages(data)
		if err != nil {
			return published{}, fmt.Errorf("%s: %w", file, err)
		}
		for _, i := range items { // "all" is in every index
			if !seen[i.id()] {
				seen[i.id()] = true
				p.items = append(p.items, i)
				p.files = append(p.files, i.File)
			}
		}
	}
	return p, nil
}

// fileSum is what Release says about a file.
type fileSum struct {
	sum  string
	size int64
}

var (
	sumShape = regexp.MustCompile(`^[0-9a-f]{64}$`)
	// indexShape: what Release of ours lists. A path from it is read and removed: nothing else may be.
	indexShape = regexp.MustCompile(`^main/binary-[a-z0-9-]+/(Packages(\.gz|\.xz)?|Release)$`)
)

// parseSums reads the SHA-256 sums of Release.
func parseSums(text []byte) (map[string]fileSum, error) {
	fields, err := parseStanza(text)
	if err != nil {
		return nil, err
	}
	list, _ := fields.get("SHA256")
	sums := map[string]fileSum{}
	for line := range strings.Lines(list) {
		part := strings.Fields(line)
		if len(part) == 0 {
			continue
		}
		if len(part) != 3 || !sumShape.MatchString(part[0]) || !indexShape.MatchString(part[2]) {
			return nil, fmt.Errorf("a sum that is not ours: %.120q", strings.TrimSpace(line))
		}
		size, err := strconv.ParseInt(part[1], 10, 64)
		if err != nil || size < 0 {
			return nil, fmt.Errorf("the size of %s: %.20q", part[2], part[1])
		}
		sums[part[2]] = fileSum{part[0], size}
	}
	return sums, nil
}

// poolShape is the path of a package: below pool, without a way out of it.
var poolShape = regexp.MustCompile(`^pool/main/[a-z0-9_][a-z0-9_+.-]*/[A-Za-z0-9_][A-Za-z0-9_+.-]*/[A-Za-z0-9_][A-Za-z0-9_+.~^-]*\.(deb|rpm)$`)

// parsePackages reads an index.
func parsePackages(data []byte) ([]item, error) {
	var items []item
	for text := range strings.SplitSeq(string(data), "\n\n") {
		if strings.TrimSpace(text) == "" {
			continue
		}
		fields, err := parseStanza([]byte(text))
		if err != nil {
			return nil, err
		}
		p, err := debPackage(fields, Package{})
		if err != nil {
			return nil, err
		}
		p.File, _ = fields.get("Filename")
		p.SHA256, _ = fields.get("SHA256")
		size, _ := fields.get("Size")
		p.Size, err = strconv.ParseInt(size, 10, 64)
		if err != nil || p.Size < 0 || !sumShape.MatchString(p.SHA256) || !poolShape.MatchString(p.File) {
			return nil, fmt.Errorf("%s %s: its file, size or sum is not usable", p.Name, p.Version)
		}
		items = append(items, item{Package: p, kind: deb, stanza: fields.String()})
	}
	return items, nil
}

// indexes makes Packages of every architecture, plain and packed, by their names in Release.
func (a apt) indexes(items []item) (map[string][]byte, []string, error) {
	architectures := map[string]bool{"amd64": true, "arm64": true}
	for _, i := range items {
		if i.Arch != "all" {
			architectures[i.Arch] = true
		}
	}
	names := slices.Sorted(maps.Keys(architectures))
	files := map[string][]byte{}
	for _, arch := range names {
		var b bytes.Buffer
		for _, i := range items {
			if i.Arch == arch || i.Arch == "all" {
				b.WriteString(i.stanza)
				b.WriteByte('\n')
			}
		}
		name := "main/binary-" + arch + "/Packages"
		files[name] = b.Bytes()
		var err error
		if files[name+".gz"], err = gzipped(b.Bytes()); err != nil {
			return nil, nil, err
		}
		if files[name+".xz"], err = xzipped(b.Bytes()); err != nil {
			return nil, nil, err
		}
	}
	return files, names, nil
}

// gzipped packs without a name and a time: the same data gives the same file.
func gzipped(data []byte) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err == nil {
		_, err = z.Write(data)
	}
	if err == nil {
		err = z.Close()
	}
	return b.Bytes(), err
}

func xzipped(data []byte) ([]byte, error) {
	var b bytes.Buffer
	z, err := xz.WriterConfig{CheckSum: xz.CRC64}.NewWriter(&b)
	if err == nil {
		_, err = z.Write(data)
	}
	if err == nil {
		err = z.Close()
	}
	return b.Bytes(), err
}

// release is the text of Release. Dates are left out when now is zero, to compare what else it says.
func (a apt) release(r Repository, files map[string][]byte, architectures []string, now time.Time) string {
	s := stanza{
		{"Origin", r.Origin}, {"Label", r.Label}, {"Suite", a.suite}, {"Codename", a.suite}, {"Acquire-By-Hash", "yes"},
		{"Architectures", strings.Join(architectures, " ")}, {"Components", "main"}, {"Description", r.Description},
	}
	if !now.IsZero() {
		s = slices.Insert(s, 4, field{"Date", aptTime(now)})
		if r.ValidFor > 0 {
			s = slices.Insert(s, 5, field{"Valid-Until", aptTime(now.Add(r.ValidFor))})
		}
	}
	var sums strings.Builder
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(&sums, "\n %s %d %s", sha256Hex(files[name]), len(files[name]), name)
	}
	return append(s, field{"SHA256", sums.String()}).String()
}

// aptTime is a date as Release has it.
func aptTime(t time.Time) string { return t.UTC().Format("Mon, 02 Jan 2006 15:04:05 MST") }

// undated is a Release without its dates.
func undated(text string) string {
	fields, err := parseStanza([]byte(text))
	if err != nil {
		return ""
	}
	return slices.DeleteFunc(fields, func(f field) bool { return f.name == "Date" || f.name == "Valid-Until" }).String()
}

// publish makes items what clients see. Whoever reads at any moment has the old state or the new one: the indexes are
// there under the names of their sums before InRelease, which is one file, says so. It returns the files that the new
// state consists of, and whether there is a new one.
func (a apt) publish(r Repository, items []item, old published, s signers) ([]string, bool, error) {
	if len(items) == 0 && old.text == "" {
		return nil, false, nil
	}
	items = slices.Clone(items)
	slices.SortFunc(items, item.compare)
	files, architectures, err := a.indexes(items)
	if err != nil {
		return nil, false, err
	}
	keep := make([]string, 0, len(files)+len(items))
	for _, i := range items {
		keep = append(keep, i.File)
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		hashed := a.dir(path.Dir(name), "by-hash/SHA256", sha256Hex(files[name]))
		if err := a.tree.write(hashed, files[name]); err != nil {
			return nil, false, err
		}
		keep = append(keep, hashed)
	}
	fresh := r.ValidFor > 0 || old.signatures != len(s.keys) || undated(old.text) != a.release(r, files, architectures, time.Time{})
	text, signed := []byte(old.text), []byte(nil)
	if fresh {
		text = []byte(a.release(r, files, architectures, s.now))
		if signed, err = s.inline(text); err != nil {
			return nil, false, err
		}
	}
	// For clients that know neither by-hash nor InRelease; they may have to ask again.
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := a.tree.write(a.dir(name), files[name]); err != nil {
			return nil, false, err
		}
	}
	if have, err := a.tree.read(a.dir("Release"), maxRelease); fresh || err != nil || !bytes.Equal(have, text) {
		beside, err := s.detached(text)
		if err != nil {
			return nil, false, err
		}
		if err := a.tree.write(a.dir("Release"), text); err != nil {
			return nil, false, err
		}
		if err := a.tree.write(a.dir("Release.gpg"), beside); err != nil {
			return nil, false, err
		}
	}
	if !fresh {
		return keep, false, nil
	}
	if err := a.tree.leave(old.files, keep, s.now); err != nil {
		return nil, false, err
	}
	return keep, true, a.tree.write(a.dir("InRelease"), signed)
}
