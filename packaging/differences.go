package packaging

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
)

// Differences says what a package that was read has other than its manifest: an entry missing or too much; another kind, mode,
// owner, target or content. It is empty for a package that was written from the manifest. Directories that only lead to entries of the
// manifest may be in a package beside it, and programs for Windows may have been signed. What a format does not have (modes and owners on Windows) is not compared.
func Differences(m Manifest, l Listing) ([]string, error) {
	var found []string
	differ := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	read := map[string]Entry{}
	for _, e := range l.Entries {
		if _, twice := read[e.Path]; twice {
			differ("%s: is there twice", e.Path)
		}
		read[e.Path] = e
	}
	leading := map[string]bool{"/": true, ".": true}
	for _, f := range m.Files {
		for dir := path.Dir(f.Path); !leading[dir]; dir = path.Dir(dir) {
			leading[dir] = true
		}
		e, ok := read[f.Path]
		delete(read, f.Path)
		if !ok {
			differ("%s: is missing", f.Path)
			continue
		}
		if f.Kind != e.Kind && (m.GOOS == "linux" || f.Kind != Config || e.Kind != Regular) { // only Linux knows conffiles
			differ("%s: is a %v, not a %v", f.Path, e.Kind, f.Kind)
			continue
		}
		if f.Kind != Link && e.Owner != "" && f.Mode != e.Mode {
			differ("%s: has the mode %o, not %o", f.Path, e.Mode, f.Mode)
		}
		if e.Owner != "" && (f.Owner != e.Owner || f.Group != e.Group) {
			differ("%s: belongs to %s:%s, not %s:%s", f.Path, e.Owner, e.Group, f.Owner, f.Group)
		}
		if f.Target != e.Target {
			differ("%s: leads to %s, not %s", f.Path, e.Target, f.Target)
		}
		if f.Kind == Dir || f.Kind == Link {
			continue
		}
		data, err := f.Read()
		if err != nil {
			return nil, err
		}
		if e.Bare != "" {
			if bare, _ := bareSum(data); bare == e.Bare {
				continue
			}
		}
		sum := sha256.Sum256(data)
		if e.Size != int64(len(data)) || e.Sum != hex.EncodeToString(sum[:]) {
			differ("%s: has %d bytes with the digest %.12s, not %d with %.12s", f.Path, e.Size, e.Sum, len(data), hex.EncodeToString(sum[:]))
		}
	}
	for _, e := range read {
		if e.Kind != Dir || !leading[e.Path] {
			differ("%s: is too much", e.Path)
		}
	}
	slices.Sort(found)
	return found, nil
}
