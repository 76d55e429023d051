package packaging

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/packaging/internal/bom"
	"github.com/devops-agent/devops-agent/packaging/internal/cpio"
	"github.com/devops-agent/devops-agent/packaging/internal/macho"
	"github.com/devops-agent/devops-agent/packaging/internal/xar"
)

// Limits of a package that is read.
const (
	maxPkgText    = 1 << 20 // a description, a script
	maxPkgBill    = 1 << 26
	maxPkgPacked  = 1 << 30
	maxPkgFile    = maxFile
	maxPkgEntries = 1 << 16
	maxPkgTotal   = 1 << 32 // of all that is unpacked
)

// pkgDescription is what a component says about itself.
type pkgDescription struct {
	XMLName    xml.Name `xml:"pkg-info"`
	Identifier string   `xml:"identifier,attr"`
	Version    string   `xml:"version,attr"`
	Location   string   `xml:"install-location,attr"`
	Payload    struct {
		Files int `xml:"numberOfFiles,attr"`
	} `xml:"payload"`
	Scripts struct {
		Named []struct {
			XMLName xml.Name
			File    string `xml:"file,attr"`
		} `xml:",any"`
	} `xml:"scripts"`
}

// readPkg lists a flat package with one component, with or without a Distribution. Its archive and its bill of materials have to
// say the same, and the scripts have to be those that are named.
func readPkg(r io.ReaderAt, size int64) (Listing, error) {
	a, err := xar.Open(r, size)
	if err != nil {
		return Listing{}, err
	}
	at, found := "", 0
	for _, m := range a.Members {
		if dir, ok := strings.CutSuffix("/"+m.Name, "/PackageInfo"); ok && !m.Dir {
			at = strings.TrimPrefix(dir+"/", "/")
			found++
		}
	}
	if found != 1 {
		return Listing{}, fmt.Errorf("it has %d components, one is read", found)
	}
	text, err := a.Read(at+"PackageInfo", maxPkgText)
	if err != nil {
		return Listing{}, err
	}
	var info pkgDescription
	if err := xml.Unmarshal(text, &info); err != nil {
		return Listing{}, fmt.Errorf("PackageInfo: %w", err)
	}
	if info.Location != "/" && info.Location != "" {
		return Listing{}, fmt.Errorf("it installs into %q, only / is read", info.Location)
	}
	l := Listing{Name: info.Identifier, Version: info.Version, Scripts: map[string]string{}}
	archive, err := a.Read(at+"Payload", maxPkgPacked)
	if err != nil {
		return Listing{}, err
	}
	entries, arches, err := pkgUnpack(archive)
	if err != nil {
		return Listing{}, fmt.Errorf("payload: %w", err)
	}
	l.Arch = strings.Join(arches, ",")
	bill, err := a.Read(at+"Bom", maxPkgBill)
	if err != nil {
		return Listing{}, err
	}
	listed, err := bom.Read(bill)
	if err != nil {
		return Listing{}, err
	}
	if err := sameEntries(entries, listed); err != nil {
		return Listing{}, err
	}
	if info.Payload.Files != len(entries) {
		return Listing{}, fmt.Errorf("PackageInfo counts %d files, there are %d", info.Payload.Files, len(entries))
	}
	for _, e := range entries {
		if e.bill.Path != "." {
			l.Entries = append(l.Entries, e.entry)
		}
	}
	if _, there := a.Member(at + "Scripts"); there {
		if l.Scripts, err = pkgReadScripts(a, at); err != nil {
			return Listing{}, fmt.Errorf("scripts: %w", err)
		}
	}
	for _, s := range info.Scripts.Named {
		if _, there := l.Scripts[strings.TrimPrefix(s.File, "./")]; !there {
			return Listing{}, fmt.Errorf("PackageInfo names the script %s, which is not there", s.File)
		}
	}
	if len(info.Scripts.Named) != len(l.Scripts) {
		return Listing{}, fmt.Errorf("PackageInfo names %d scripts, there are %d", len(info.Scripts.Named), len(l.Scripts))
	}
	return l, nil
}

// unpacked is an entry of a payload in both forms.
type unpacked struct {
	entry Entry
	bill  bom.Entry
}

// eachPacked calls a function for each entry of a compressed archive.
func eachPacked(data []byte, each func(h cpio.Header, content io.Reader) error) error {
	zip, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return err
	}
	in := cpio.NewReader(zip)
	var total int64
	for count := 0; ; count++ {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return zip.Close()
		}
		switch {
		case err != nil:
			return err
		case count == maxPkgEntries:
			return fmt.Errorf("more than %d entries", maxPkgEntries)
		case h.Size > maxPkgFile:
			return fmt.Errorf("%s has %d bytes, at most %d are read", h.Name, h.Size, maxPkgFile)
		case total+h.Size > maxPkgTotal:
			return fmt.Errorf("more than %d bytes", int64(maxPkgTotal))
		case h.Name != "." && (!fs.ValidPath(strings.TrimPrefix(h.Name, "./")) || !strings.HasPrefix(h.Name, "./")) || h.Name == "./.":
			return fmt.Errorf("the path %q is not below the root", h.Name)
		}
		total += h.Size
		if err := each(h, in); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

// pkgUnpack reads the entries of a payload, and the processors that its programs are for.
func pkgUnpack(data []byte) ([]unpacked, []string, error) {
	var all []unpacked
	var arches []string
	err := eachPacked(data, func(h cpio.Header, content io.Reader) error {
		var head head
		plain, posix := sha256.New(), bom.NewSum()
		var to io.Writer = io.MultiWriter(plain, posix, &head)
		target := ""
		switch h.Mode & cpio.TypeMask {
		case cpio.TypeDir, cpio.TypeFile:
		case cpio.TypeLink:
			if h.Size > maxPkgText {
				return fmt.Errorf("a link of %d bytes", h.Size)
			}
			text, err := io.ReadAll(content)
			if err != nil {
				return err
			}
			target, content = string(text), bytes.NewReader(text)
		default:
			return fmt.Errorf("mode %o", h.Mode)
		}
		if _, err := io.Copy(to, content); err != nil {
			return err
		}
		one := unpacked{
			entry: Entry{Path: strings.TrimPrefix(h.Name, "."), Mode: fs.FileMode(h.Mode & 0o777), Owner: accountName(h.UID), Group: groupName(h.GID), Time: time.Unix(h.Time, 0).UTC(), Target: target},
			bill:  bom.Entry{Path: h.Name, Mode: h.Mode, UID: h.UID, GID: h.GID, Time: uint32(h.Time), Target: target},
		}
		switch h.Mode & cpio.TypeMask {
		case cpio.TypeDir:
			one.entry.Kind = Dir
		case cpio.TypeLink:
			one.entry.Kind = Link
			one.bill.Size, one.bill.Sum = uint32(h.Size), posix.Sum32()
		case cpio.TypeFile:
			one.entry.Size, one.entry.Sum = h.Size, hex.EncodeToString(plain.Sum(nil))
			one.bill.Size, one.bill.Sum = uint32(h.Size), posix.Sum32()
			for _, arch := range head.arches() {
				if !slices.Contains(arches, arch) {
					arches = append(arches, arch)
				}
			}
		}
		all = append(all, one)
		return nil
	})
	slices.Sort(arches)
	return all, arches, err
}

// head keeps the beginning of a file.
type head struct{ data []byte }

// Write keeps at most the header of a universal program.
func (h *head) Write(b []byte) (int, error) {
	if room := 512 - len(h.data); room > 0 {
		h.data = append(h.data, b[:min(room, len(b))]...)
	}
	return len(b), nil
}

func (h *head) arches() []string { return macho.Arches(h.data) }

// sameEntries compares a payload with its bill.
func sameEntries(entries []unpacked, listed []bom.Entry) error {
	bill := make(map[string]bom.Entry, len(listed))
	for _, e := range listed {
		bill[e.Path] = e
	}
	seen := map[string]bool{}
	for _, e := range entries {
		b, there := bill[e.bill.Path]
		switch {
		case seen[e.bill.Path]:
			return fmt.Errorf("%s is twice in the payload", e.bill.Path)
		case !there:
			return fmt.Errorf("%s is in the payload and not in the bill of materials", e.bill.Path)
		case b != e.bill:
			return fmt.Errorf("%s: payload and bill of materials differ: %+v, %+v", e.bill.Path, e.bill, b)
		}
		seen[e.bill.Path] = true
	}
	if len(seen) != len(bill) {
		return fmt.Errorf("%d entries in the payload, %d in the bill of materials", len(seen), len(bill))
	}
	return nil
}

func pkgReadScripts(a *xar.Archive, at string) (map[string]string, error) {
	data, err := a.Read(at+"Scripts", maxPkgBill)
	if err != nil {
		return nil, err
	}
	scripts := map[string]string{}
	err = eachPacked(data, func(h cpio.Header, content io.Reader) error {
		if h.Mode&cpio.TypeMask == cpio.TypeDir {
			return nil
		}
		if h.Size > maxPkgText || h.Mode&cpio.TypeMask != cpio.TypeFile {
			return fmt.Errorf("mode %o, %d bytes", h.Mode, h.Size)
		}
		if h.Mode&0o111 != 0o111 {
			return errors.New("it cannot be run")
		}
		text, err := io.ReadAll(content)
		scripts[strings.TrimPrefix(h.Name, "./")] = string(text)
		return err
	})
	return scripts, err
}

func accountName(id uint32) string {
	if id == 0 {
		return "root"
	}
	return fmt.Sprint(id)
}

func groupName(id uint32) string {
	switch id {
	case 0:
		return "wheel"
	case 80:
		return "admin"
	}
	return fmt.Sprint(id)
}
