package packaging

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/launchd"
	"github.com/devops-agent/devops-agent/packaging/internal/bom"
	"github.com/devops-agent/devops-agent/packaging/internal/cpio"
	"github.com/devops-agent/devops-agent/packaging/internal/macho"
	"github.com/devops-agent/devops-agent/packaging/internal/xar"
	"github.com/devops-agent/devops-agent/service"
)

// Universal is the architecture of a package for Intel and Apple Macs alike: each program is for both.
const Universal = "universal"

// What a package of macOS says about itself.
const (
	pkgID        = "org.devops-agent.pkg"     // of the receipt: pkgutil --pkg-info
	pkgComponent = "devops-agent.pkg"         // directory of the one component in the archive
	pkgMinimum   = "12.0"                     // macOS, what Go's programs need
	pkgDrain     = 10 * time.Minute           // drain.timeout where agent.toml does not say otherwise
	pkgKept      = "/private/var/db/" + pkgID // what preinstall leaves for postinstall
)

// pkgPrograms are those that a package of macOS has. launchd runs the agent itself: no devopsDaemon.
func pkgPrograms() []string { return []string{"devopsAgent", "devopsWorker", "upgrader"} }

// pkgArches are the processors that an architecture of a package is for, in GOARCH's words.
func pkgArches(goarch string) []string {
	if goarch == Universal {
		return []string{"amd64", "arm64"}
	}
	return []string{goarch}
}

func pkgName(m Manifest) string {
	if m.GOARCH == Universal {
		return m.Name + "-" + m.Version + ".pkg"
	}
	return m.Name + "-" + m.Version + "-" + m.GOARCH + ".pkg"
}

// pkgJob is the job that a package brings: what "devopsAgent install" writes for the package's home.
func pkgJob(l service.Layout) launchd.Job {
	return service.LaunchdJob(l.Name, service.Setup{Home: l.Home, Config: l.Config, Vendor: l.Vendor, User: "root", Drain: pkgDrain}, "")
}

// pkgContents adds what a package of macOS has to the manifest.
func pkgContents(r Release, m *Manifest) error {
	l, t := m.Layout, tree{m, "wheel"}
	share, conf := "/usr/local/share/"+m.Name, path.Dir(l.Config)
	t.dir(l.Vendor, share, conf)
	t.add(File{Path: conf + "/enroll.d", Kind: Dir, Mode: 0o750})
	for _, name := range pkgPrograms() {
		f := File{Path: l.Vendor + "/" + name, Mode: 0o755, Program: true}
		if m.GOARCH == Universal {
			var err error
			if f.Data, f.Parts, err = pkgUniversal(r, name); err != nil {
				return err
			}
		} else {
			f.Source = r.program(name, "darwin", m.GOARCH)
		}
		t.add(f)
	}
	t.add(File{Path: "/usr/local/bin/devopsAgent", Kind: Link, Mode: 0o755, Target: "../libexec/" + path.Base(l.Vendor) + "/devopsAgent"})
	job := pkgJob(l)
	plist, err := job.Plist()
	if err != nil {
		return err
	}
	t.data(job.File(launchd.DaemonDir), plist)
	template := l.Vendor + "/agent.toml" // where nobody but root can exchange it
	t.add(File{Path: template, Mode: 0o644, Source: filepath.Join(r.Root, "agent", "config", "testdata", "agent.toml")})
	licence, err := ownLicence(r)
	if err != nil {
		return err
	}
	t.data(share+"/LICENSE", []byte(licence))
	t.data(share+"/THIRD-PARTY", []byte(thirdParty(r.Licences)))
	if err := t.manuals(r, "/usr/local/share/man"); err != nil {
		return err
	}
	for shell, to := range map[string]string{
		"bash": "/usr/local/etc/bash_completion.d/devopsAgent",
		"zsh":  "/usr/local/share/zsh/site-functions/_devopsAgent",
		"fish": "/usr/local/share/fish/vendor_completions.d/devopsAgent.fish",
	} {
		if err := t.completion(r, shell, to); err != nil {
			return err
		}
	}
	var uninstall string
	if err := into(map[string]*string{"pkg/preinstall": &m.Scripts.PreInstall, "pkg/postinstall": &m.Scripts.PostInstall, "pkg/uninstall": &uninstall}); err != nil {
		return err
	}
	fill := pkgFill(m.Files, l, template)
	for _, script := range []*string{&m.Scripts.PreInstall, &m.Scripts.PostInstall, &uninstall} {
		*script = fill(*script)
	}
	t.add(File{Path: l.Vendor + "/uninstall", Mode: 0o755, Data: []byte(uninstall)})
	t.dir(parents(m.Files)...)
	return nil
}

// pkgUniversal is a program for all processors, and the files that it was joined from.
func pkgUniversal(r Release, name string) (joined []byte, parts []string, err error) {
	var thin [][]byte
	for _, goarch := range pkgArches(Universal) {
		part := r.program(name, "darwin", goarch)
		program, err := File{Source: part}.Read()
		if err != nil {
			return nil, nil, err
		}
		thin, parts = append(thin, program), append(parts, part)
	}
	if joined, err = macho.Join(thin...); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	return joined, parts, nil
}

// pkgFill fills paths into a script: words in @ signs. The scripts are the package's own, and so are the paths: none of them needs
// quoting, which check.go and the tests hold.
func pkgFill(files []File, l service.Layout, template string) func(script string) string {
	var regular, dirs, above []string
	for _, f := range files {
		if f.Kind == Dir {
			dirs = append(dirs, f.Path)
		} else {
			regular = append(regular, f.Path)
		}
	}
	regular = append(regular, l.Vendor+"/uninstall")
	for _, dir := range append(parents(files), path.Dir(l.Home)) { // removed when nobody else has anything in them
		if strings.HasPrefix(dir, "/usr/local/") {
			dirs = append(dirs, dir)
		}
	}
	slices.Sort(regular)
	slices.Sort(dirs)
	slices.Reverse(dirs) // what is in a directory goes before it
	job := pkgJob(l).File(launchd.DaemonDir)
	for _, p := range []string{l.Vendor, path.Dir(l.Config), path.Dir(l.Home), path.Dir(job), path.Dir(pkgKept)} {
		for ; p != "/"; p = path.Dir(p) {
			above = append(above, p)
		}
	}
	above = append(above, "/")
	slices.Sort(above)
	return strings.NewReplacer(
		"@LABEL@", l.Name, "@VENDOR@", l.Vendor, "@HOME@", l.Home, "@CONFIG@", l.Config, "@TEMPLATE@", template,
		"@JOB@", job, "@KEPT@", pkgKept, "@ID@", pkgID, "@PARENTS@", strings.Join(slices.Compact(above), " "),
		"@FILES@", strings.Join(regular, "\n\t"), "@DIRS@", strings.Join(dirs, "\n\t"),
	).Replace
}

// parents are the directories above some files that are not among them.
func parents(files []File) []string {
	there := map[string]bool{"/": true}
	for _, f := range files {
		there[f.Path] = true
	}
	var more []string
	for _, f := range files {
		for p := path.Dir(f.Path); !there[p]; p = path.Dir(p) {
			there[p] = true
			more = append(more, p)
		}
	}
	return more
}

// pkgIDs are the numbers of the accounts and groups that a package of macOS may name.
func pkgIDs(f File) (uid, gid uint32, err error) {
	gid, known := map[string]uint32{"wheel": 0, "admin": 80}[f.Group]
	if f.Owner != "root" || !known {
		return 0, 0, fmt.Errorf("%s belongs to %s:%s: a package of macOS has root:wheel and root:admin", f.Path, f.Owner, f.Group)
	}
	return 0, gid, nil
}

// payload is the content of a component in its two forms.
type payload struct {
	archive, bill []byte
	entries       int
	kilobytes     int64
}

// writePkg writes a flat product archive with one component, unsigned.
func writePkg(ctx context.Context, m Manifest, _ Options, w io.Writer) error {
	if bad := pkgFindings(m); len(bad) > 0 {
		return &ManifestError{Package: m.Name, Reason: strings.Join(bad, "; ")}
	}
	content, err := pkgPayload(ctx, m)
	if err != nil {
		return err
	}
	scripts, err := pkgScripts(m)
	if err != nil {
		return err
	}
	files := []xar.File{
		{Name: "Distribution", Mode: 0o644, Data: []byte(pkgDistribution(m, content))},
		{Name: pkgComponent, Mode: 0o755, Dir: true},
		{Name: pkgComponent + "/Bom", Mode: 0o644, Data: content.bill},
		{Name: pkgComponent + "/Payload", Mode: 0o644, Data: content.archive, Stored: true},
		{Name: pkgComponent + "/Scripts", Mode: 0o644, Data: scripts, Stored: true},
		{Name: pkgComponent + "/PackageInfo", Mode: 0o644, Data: []byte(pkgInfo(m, content))},
	}
	return xar.Write(w, m.Time, files)
}

// pkgPayload makes the archive of the files, and the bill of it.
func pkgPayload(ctx context.Context, m Manifest) (payload, error) {
	all := slices.Clone(m.Files)
	for _, dir := range append(parents(m.Files), "/") {
		all = append(all, File{Path: dir, Kind: Dir, Mode: 0o755, Owner: "root", Group: "wheel"})
	}
	slices.SortFunc(all, func(a, b File) int {
		return cmp.Compare(strings.TrimSuffix(a.Path, "/"), strings.TrimSuffix(b.Path, "/"))
	})
	var out bytes.Buffer
	pack := newODC(&out)
	var bill []bom.Entry
	var total int64
	for _, f := range all {
		if err := ctx.Err(); err != nil {
			return payload{}, err
		}
		e, data, err := pkgEntry(f, m.Time)
		if err != nil {
			return payload{}, err
		}
		if err := pack.add(cpio.Header{Name: e.Path, Mode: e.Mode, UID: e.UID, GID: e.GID, Time: int64(e.Time), Size: int64(len(data))}, data); err != nil {
			return payload{}, err
		}
		bill = append(bill, e)
		total += int64(len(data))
	}
	if err := pack.close(); err != nil {
		return payload{}, err
	}
	var b bytes.Buffer
	if err := bom.Write(&b, bill); err != nil {
		return payload{}, err
	}
	return payload{archive: out.Bytes(), bill: b.Bytes(), entries: len(bill), kilobytes: (total + 1023) / 1024}, nil
}

// pkgEntry is a file in the words of the bill, and its content.
func pkgEntry(f File, at time.Time) (bom.Entry, []byte, error) {
	uid, gid, err := pkgIDs(f)
	if err != nil {
		return bom.Entry{}, nil, err
	}
	seconds := at.Unix()
	if seconds < 0 || seconds > math.MaxUint32 {
		return bom.Entry{}, nil, fmt.Errorf("the time %s has no room", at)
	}
	e := bom.Entry{Path: strings.TrimSuffix("."+f.Path, "/"), Mode: uint32(f.Mode.Perm()), UID: uid, GID: gid, Time: uint32(seconds)}
	var data []byte
	switch f.Kind {
	case Dir:
		e.Mode |= cpio.TypeDir
		return e, nil, nil
	case Link:
		e.Mode |= cpio.TypeLink
		e.Target, data = f.Target, []byte(f.Target)
	case Regular:
		e.Mode |= cpio.TypeFile
		if data, err = f.Read(); err != nil {
			return bom.Entry{}, nil, err
		}
	case Config: // the installer writes over every file: postinstall copies a template once
		return bom.Entry{}, nil, fmt.Errorf("%s: a package of macOS cannot leave a file alone", f.Path)
	}
	e.Size = uint32(len(data))
	sum := bom.NewSum()
	_, _ = sum.Write(data)
	e.Sum = sum.Sum32()
	return e, data, nil
}

// odc is a compressed archive that is written.
type odc struct {
	zip     *gzip.Writer
	archive *cpio.Writer
}

func newODC(w io.Writer) *odc {
	zip := gzip.NewWriter(w) // without a name and a time
	return &odc{zip, cpio.NewWriter(zip)}
}

func (p *odc) add(h cpio.Header, data []byte) error {
	if err := p.archive.WriteHeader(h); err != nil {
		return err
	}
	_, err := p.archive.Write(data)
	return err
}

func (p *odc) close() error { return errors.Join(p.archive.Close(), p.zip.Close()) }

// pkgScripts makes the archive of the scripts.
func pkgScripts(m Manifest) ([]byte, error) {
	var out bytes.Buffer
	pack := newODC(&out)
	if err := pack.add(cpio.Header{Name: ".", Mode: cpio.TypeDir | 0o755, Time: m.Time.Unix()}, nil); err != nil {
		return nil, err
	}
	for _, s := range pkgNamed(m.Scripts) {
		if err := pack.add(cpio.Header{Name: "./" + s.name, Mode: cpio.TypeFile | 0o755, Time: m.Time.Unix(), Size: int64(len(s.text))}, []byte(s.text)); err != nil {
			return nil, err
		}
	}
	if err := pack.close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// script is one with its name.
type script struct{ name, text string }

// pkgNamed are the scripts that the installer runs, by its names for them. It knows no script for a removal.
func pkgNamed(s Scripts) []script {
	var all []script
	for _, one := range []script{{"postinstall", s.PostInstall}, {"preinstall", s.PreInstall}} {
		if one.text != "" {
			all = append(all, one)
		}
	}
	return all
}

func escape(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // into memory
	return b.String()
}

// pkgInfo describes the component. Directories that are there keep their owner and mode: /usr/local/bin may be Homebrew's.
func pkgInfo(m Manifest, p payload) string {
	var b strings.Builder
	fmt.Fprintf(&b, `<?xml version="1.0" encoding="utf-8"?>
<pkg-info format-version="2" identifier="%s" version="%s" install-location="/" auth="root" overwrite-permissions="false" relocatable="false" postinstall-action="none">
    <payload numberOfFiles="%d" installKBytes="%d"/>
`, pkgID, escape(m.Version), p.entries, p.kilobytes)
	if scripts := pkgNamed(m.Scripts); len(scripts) > 0 {
		b.WriteString("    <scripts>\n")
		for _, s := range slices.Backward(scripts) {
			fmt.Fprintf(&b, "        <%s file=\"./%s\"/>\n", s.name, s.name)
		}
		b.WriteString("    </scripts>\n")
	}
	b.WriteString("</pkg-info>\n")
	return b.String()
}

// pkgDistribution is what Installer shows, and on which Macs it installs. There is nothing to choose.
func pkgDistribution(m Manifest, p payload) string {
	var hosts []string
	for _, goarch := range pkgArches(m.GOARCH) {
		hosts = append(hosts, map[string]string{"amd64": "x86_64"}[goarch]+map[string]string{"arm64": "arm64"}[goarch])
	}
	version := escape(m.Version)
	return fmt.Sprintf(`<?xml version="1.0" encoding="utf-8"?>
<installer-gui-script minSpecVersion="2">
    <title>%[1]s %[2]s</title>
    <options customize="never" require-scripts="false" rootVolumeOnly="true" hostArchitectures="%[3]s"/>
    <domains enable_anywhere="false" enable_currentUserHome="false" enable_localSystem="true"/>
    <volume-check>
        <allowed-os-versions>
            <os-version min="%[4]s"/>
        </allowed-os-versions>
    </volume-check>
    <choices-outline>
        <line choice="default">
            <line choice="%[5]s"/>
        </line>
    </choices-outline>
    <choice id="default"/>
    <choice id="%[5]s" visible="false">
        <pkg-ref id="%[5]s"/>
    </choice>
    <pkg-ref id="%[5]s" version="%[2]s" onConclusion="none" installKBytes="%[6]d">#%[7]s</pkg-ref>
    <product id="%[5]s" version="%[2]s"/>
</installer-gui-script>
`, escape(m.Name), version, strings.Join(hosts, ","), pkgMinimum, pkgID, p.kilobytes, pkgComponent)
}
