package packaging

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/service"
)

// Manifest is what a package puts on one kind of system.
type Manifest struct {
	Name        string // of the package: devops-agent
	Version     string // without "v": 1.2.4-dev.3; formats write it by their own rules
	Summary     string // one line
	Description string // paragraphs of plain text
	Homepage    string
	License     string // SPDX
	Maintainer  string // Name <address>
	GOOS        string
	GOARCH      string // "all" for a package without programs
	Time        time.Time
	Layout      service.Layout
	Files       []File // sorted by path; every directory of our own is listed
	Scripts     Scripts
	Relations   Relations
	Changes     []Change // newest first
}

// Relations are what other packages are to this one, in the words of one format.
type Relations struct {
	Depends, Recommends, Suggests, Conflicts []string
}

// Scripts are the maintainer scripts, as text by moment; "" for none.
type Scripts struct {
	PreInstall, PostInstall, PreRemove, PostRemove string
	PostTrans                                      string // rpm: after everything of a transaction
}

// Kind is what a File is.
type Kind int

// The kinds of files.
const (
	Regular Kind = iota
	Dir
	Link
	Config // a file that is the operator's after the installation
)

// String is the kind in one word.
func (k Kind) String() string {
	switch k {
	case Regular:
		return "file"
	case Dir:
		return "directory"
	case Link:
		return "link"
	case Config:
		return "config"
	}
	return fmt.Sprintf("Kind(%d)", int(k))
}

// File is one entry of a package. Its content is Data, or that of the file Source on this machine.
type File struct {
	Path         string // slash path on the target; on Windows relative to a root: VENDOR/devopsAgent.exe
	Kind         Kind
	Mode         fs.FileMode // permission bits
	Owner, Group string      // names
	Target       string      // of a link
	Data         []byte
	Source       string
	Program      bool     // one of the product's programs
	Parts        []string // of a program for several processors: the files on this machine that Data was joined from
}

// Open opens the content.
func (f File) Open() (io.ReadCloser, error) {
	if f.Source == "" {
		return io.NopCloser(strings.NewReader(string(f.Data))), nil
	}
	return os.Open(f.Source)
}

// maxFile is more than any program of ours, and less than a mistake.
const maxFile = 1 << 28

// Read returns the content, of at most 256 MiB.
func (f File) Read() ([]byte, error) {
	if f.Source == "" {
		return f.Data, nil
	}
	in, err := os.Open(f.Source)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(in, maxFile+1))
	if err := errors.Join(err, in.Close()); err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Source, err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("read %s: longer than %d bytes", f.Source, maxFile)
	}
	return data, nil
}

// Size is the length of the content in bytes; 0 for what has none.
func (f File) Size() (int64, error) {
	switch {
	case f.Kind == Dir || f.Kind == Link:
		return 0, nil
	case f.Source == "":
		return int64(len(f.Data)), nil
	}
	info, err := os.Stat(f.Source)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// sortFiles puts entries in the order of their paths: a directory comes before what is in it.
func sortFiles(files []File) {
	slices.SortFunc(files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
}

// A ManifestError is a manifest that no package is made of.
type ManifestError struct {
	Package string
	Reason  string
}

// Error says what is wrong.
func (e *ManifestError) Error() string { return "package " + e.Package + ": " + e.Reason }

// check refuses a manifest that no format can say truthfully.
func (m Manifest) check() error {
	wrong := func(format string, args ...any) error {
		return &ManifestError{Package: or(m.Name, "without a name"), Reason: fmt.Sprintf(format, args...)}
	}
	switch {
	case m.Name == "" || strings.ContainsAny(m.Name, " /\\\n"):
		return wrong("its name is %q", m.Name)
	case m.Maintainer == "" || strings.ContainsAny(m.Maintainer, "\r\n"):
		return wrong("its maintainer is %q", m.Maintainer)
	case m.Summary == "" || strings.ContainsAny(m.Summary, "\r\n"):
		return wrong("its summary is %q", m.Summary)
	case m.Time.IsZero():
		return wrong("it has no time")
	case m.GOARCH == "":
		return wrong("it has no architecture")
	case len(m.Files) == 0:
		return wrong("there is nothing in it")
	}
	if _, err := parseVersion(m.Version); err != nil {
		return wrong("%v", err)
	}
	programs, last := 0, ""
	for _, f := range m.Files {
		switch {
		case f.Path == "" || path.Clean(f.Path) != f.Path || strings.ContainsAny(f.Path, "\\\n\x00") || strings.HasPrefix(f.Path, ".."):
			return wrong("path %q", f.Path)
		case m.GOOS != "windows" && !path.IsAbs(f.Path):
			return wrong("path %s is not absolute", f.Path)
		case f.Path <= last:
			return wrong("%s and %s are not in order, or twice there", last, f.Path)
		case f.Mode&^fs.ModePerm != 0:
			return wrong("%s has the mode %v", f.Path, f.Mode)
		case f.Kind == Link && f.Target == "":
			return wrong("link %s leads nowhere", f.Path)
		case m.GOOS != "windows" && (f.Owner == "" || f.Group == ""):
			return wrong("%s belongs to nobody", f.Path)
		}
		last = f.Path
		if f.Program {
			programs++
			size, err := f.Size()
			if err != nil {
				return fmt.Errorf("package %s: program %s: %w", m.Name, f.Path, err)
			}
			if size == 0 {
				return wrong("program %s is empty", f.Path)
			}
		}
	}
	if programs == 0 && m.GOARCH != All {
		return wrong("there are no programs in it")
	}
	return nil
}

// All is the architecture of a package that has no programs.
const All = "all"

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}
