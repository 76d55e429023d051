package packaging

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/devops-agent/devops-agent/packaging/internal/cab"
	"github.com/devops-agent/devops-agent/packaging/internal/cfb"
	"github.com/devops-agent/devops-agent/packaging/internal/msi"
	"github.com/devops-agent/devops-agent/windows"
)

// Limits of a package that is read, in bytes.
const (
	mostTable    = 8 << 20
	mostUnpacked = 1 << 29
)

// openMSI reads the database of a package, and the file it is in.
func openMSI(r io.ReaderAt, size int64) (*cfb.File, *msi.Database, error) {
	f, err := cfb.Open(r, size)
	if err != nil {
		return nil, nil, err
	}
	if f.CLSID != msiClass() {
		return nil, nil, fmt.Errorf("class %x: a compound file, but no package of Windows Installer", f.CLSID)
	}
	d, err := msi.Read(func(name string) ([]byte, error) {
		b, _, err := f.Stream(name, mostTable)
		return b, err
	})
	return f, d, err
}

// readMSI lists a package: files with what the cabinet has of them, and the directories that are made. Windows keeps no modes:
// programs, closed directories and the rest have those of the manifest.
func readMSI(r io.ReaderAt, size int64) (Listing, error) {
	f, d, err := openMSI(r, size)
	if err != nil {
		return Listing{}, err
	}
	content, err := msiContent(f, d, size)
	if err != nil {
		return Listing{}, err
	}
	l := Listing{}
	properties, _ := d.Table("Property")
	for _, row := range properties.Rows {
		switch value := properties.Text(row, "Value"); properties.Text(row, "Property") {
		case "ProductName":
			l.Name = value
		case "ProductVersion":
			l.Version = value
		case "ProductCode":
			l.ProductCode = value
		}
	}
	registry, _ := d.Table("Registry")
	for _, row := range registry.Rows { // a pre-release is told there alone
		if registry.Text(row, "Key") == windows.AnswersKey && registry.Text(row, "Name") == "Version" {
			l.Version = registry.Text(row, "Value")
		}
	}
	l.Arch, _, _ = strings.Cut(d.Summary.Template, ";")
	dirs := msiDirs{d: d, locked: map[string]bool{}}
	locks, _ := d.Table("MsiLockPermissionsEx")
	for _, row := range locks.Rows {
		if locks.Text(row, "Table") == "CreateFolder" && strings.Contains(locks.Text(row, "SDDLText"), "D:P") {
			dirs.locked[dirs.path(locks.Text(row, "LockObject"), 0)] = true
		}
	}
	seen := map[string]Entry{}
	folders, _ := d.Table("CreateFolder")
	for _, row := range folders.Rows {
		name := dirs.path(folders.Text(row, "Directory_"), 0)
		e := Entry{Path: name, Kind: Dir, Mode: 0o755, Owner: msiOwner, Group: msiOwner, Time: d.Summary.Created}
		if dirs.closed(name) {
			e.Mode, e.Owner = 0o700, msiAdmin
		}
		seen[name] = e
	}
	files, _ := d.Table("File")
	of := dirs.ofComponents()
	for _, row := range files.Rows {
		key := files.Text(row, "File")
		packed, ok := content[key]
		if !ok || int64(files.Int(row, "FileSize")) != int64(len(packed.Data)) {
			return Listing{}, fmt.Errorf("file %s: not in the cabinet, or of another size there", key)
		}
		name := path.Join(dirs.path(of[files.Text(row, "Component_")], 0), longName(files.Text(row, "FileName")))
		sum := sha256.Sum256(packed.Data)
		e := Entry{Path: name, Mode: 0o644, Owner: msiOwner, Group: msiOwner, Size: int64(len(packed.Data)), Time: packed.Time,
			Sum: hex.EncodeToString(sum[:])}
		if bare, signed := bareSum(packed.Data); signed {
			e.Bare = bare
		}
		if strings.EqualFold(path.Ext(name), ".exe") {
			e.Mode = 0o755
		}
		if before, twice := seen[name]; twice && before.Sum != e.Sum { // one of them is installed: they are to be the same
			return Listing{}, fmt.Errorf("file %s is there twice, with different bytes", name)
		}
		seen[name] = e
	}
	for _, e := range seen {
		l.Entries = append(l.Entries, e)
	}
	return l, nil
}

// msiContent unpacks the cabinets in the file.
func msiContent(f *cfb.File, d *msi.Database, size int64) (map[string]cab.File, error) {
	content := map[string]cab.File{}
	media, _ := d.Table("Media")
	limit := int64(mostUnpacked)
	for _, row := range media.Rows {
		name, embedded := strings.CutPrefix(media.Text(row, "Cabinet"), "#")
		if !embedded {
			return nil, fmt.Errorf("cabinet %q is not in the file", name)
		}
		b, ok, err := f.Stream(msi.StreamName(name), size)
		if err == nil && !ok {
			err = fmt.Errorf("cabinet %s is not there", name)
		}
		if err != nil {
			return nil, err
		}
		list, err := cab.Read(b, limit)
		if err != nil {
			return nil, fmt.Errorf("cabinet %s: %w", name, err)
		}
		for _, one := range list {
			content[one.Name] = one
			limit -= int64(len(one.Data))
		}
		limit = max(limit, 0)
	}
	return content, nil
}

// msiDirs knows the directories of a database.
type msiDirs struct {
	d      *msi.Database
	locked map[string]bool
}

// path is the directory of a key as the manifest has it.
func (m msiDirs) path(key string, depth int) string {
	const deepest = 32
	switch key {
	case msiVendorDir:
		return msiVendor
	case msiHomeDir:
		return msiHome
	case "TARGETDIR", "":
		return ""
	}
	t, _ := m.d.Table("Directory")
	for _, row := range t.Rows {
		if t.Text(row, "Directory") != key || depth > deepest {
			continue
		}
		parent, name := t.Text(row, "Directory_Parent"), longName(t.Text(row, "DefaultDir"))
		if name == "." {
			name = ""
			if parent == "TARGETDIR" { // one of Windows' own directories
				name = key
			}
		}
		return path.Join(m.path(parent, depth+1), name)
	}
	return key
}

// closed reports whether a directory, or one above it, is locked.
func (m msiDirs) closed(dir string) bool {
	for ; dir != "." && dir != "/" && dir != ""; dir = path.Dir(dir) {
		if m.locked[dir] {
			return true
		}
	}
	return false
}

// ofComponents says in which directory a component is.
func (m msiDirs) ofComponents() map[string]string {
	of := map[string]string{}
	t, _ := m.d.Table("Component")
	for _, row := range t.Rows {
		of[t.Text(row, "Component")] = t.Text(row, "Directory_")
	}
	return of
}

// longName is the second half of "short|long", and of "target:source" the target.
func longName(text string) string {
	text, _, _ = strings.Cut(text, ":")
	if _, long, ok := strings.Cut(text, "|"); ok {
		return long
	}
	return text
}
