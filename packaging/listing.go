package packaging

import (
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"
)

// Listing is what a reader finds in a package.
type Listing struct {
	Name, Version, Arch string // as the format writes them
	Entries             []Entry
	Scripts             map[string]string // by the format's own names: postinst, %post
	ProductCode         string            // msi: by which Windows knows this version, as {GUID}
}

// Entry is one entry of a package that was read.
type Entry struct {
	Path         string // as in the manifest
	Kind         Kind
	Mode         fs.FileMode
	Owner, Group string
	Size         int64
	Time         time.Time
	Target       string // of a link
	Sum          string // SHA-256 of the content in hex, "" where there is none
	Bare         string // SHA-256 in hex of a program for Windows without the Authenticode signature that it has, which is not checked; else ""
}

// String is the line of the entry: mode, owner, size, path.
func (e Entry) String() string {
	mode := e.Mode.Perm()
	switch e.Kind {
	case Dir:
		mode |= fs.ModeDir
	case Link:
		return fmt.Sprintf("%s %s/%s %9d %s -> %s", "L"+(fs.FileMode(0o777)).String()[1:], e.Owner, e.Group, e.Size, e.Path, e.Target)
	}
	return fmt.Sprintf("%s %s/%s %9d %s", mode, e.Owner, e.Group, e.Size, e.Path)
}

// String is the listing: a line for each entry, and one for the product code where there is one.
func (l Listing) String() string {
	var b strings.Builder
	for _, e := range l.Entries {
		b.WriteString(e.String())
		if e.Kind == Config {
			b.WriteString(" (config)")
		}
		b.WriteByte('\n')
	}
	if l.ProductCode != "" {
		b.WriteString("product code " + l.ProductCode + "\n")
	}
	return b.String()
}

func (l *Listing) sort() {
	slices.SortFunc(l.Entries, func(a, b Entry) int { return cmp.Compare(a.Path, b.Path) })
}

// List reads a package of any format. It believes nothing that it reads: sizes are bounded.
func List(f Format, r io.ReaderAt, size int64) (Listing, error) {
	one, err := f.lookup()
	if err != nil {
		return Listing{}, err
	}
	l, err := one.read(r, size)
	if err != nil {
		return Listing{}, fmt.Errorf("read %s: %w", f, err)
	}
	l.sort()
	return l, nil
}
