package launchd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// ProtectedError says that macOS keeps a directory from background programs: without a window it cannot even ask, every
// access fails with "operation not permitted" (Transparency, Consent and Control).
type ProtectedError struct {
	Dir  string // as it was given
	Real string // where it really is
	Why  string
}

// Error names the directory and what is special about it.
func (e *ProtectedError) Error() string {
	if e.Real != e.Dir {
		return fmt.Sprintf("%s (which is %s) %s", e.Dir, e.Real, e.Why)
	}
	return fmt.Sprintf("%s %s", e.Dir, e.Why)
}

// Hint says where else an agent can live.
func (e *ProtectedError) Hint() string {
	return "move the agent to a directory such as /opt/devops-agent or ~/devops-agent on an internal disk: macOS keeps this one from programs that run in the background"
}

// Volume is what a file system says about itself.
type Volume struct {
	Mount     string // where it is mounted
	Network   bool
	Removable bool
}

// CheckHome refuses a directory that macOS keeps from background programs: Desktop, Documents and Downloads of any user,
// iCloud Drive and other cloud folders, network and removable volumes. It looks at the path as given and, as far as that
// is there, at where its symbolic links lead; names are compared as macOS does, without regard to case. homes are further
// homes of users, beside those in /Users. volume is [StatVolume]. The error is a [*ProtectedError].
func CheckHome(dir string, homes []string, volume func(dir string) (Volume, error)) error {
	dir = filepath.ToSlash(filepath.Clean(dir))
	there, real, err := resolve(dir)
	if err != nil {
		return fmt.Errorf("see where %s is: %w", dir, err)
	}
	all := append([]string(nil), homes...)
	for _, home := range homes { // a home may be behind a link itself
		if _, real, err := resolve(home); err == nil {
			all = append(all, real)
		}
	}
	for _, place := range []string{dir, real} {
		if why := protected(place, all); why != "" {
			return &ProtectedError{Dir: dir, Real: real, Why: why}
		}
	}
	v, err := volume(filepath.FromSlash(there))
	switch {
	case err == nil && v.Network:
		return &ProtectedError{Dir: dir, Real: real, Why: "is on a network volume, " + v.Mount}
	case err == nil && v.Removable:
		return &ProtectedError{Dir: dir, Real: real, Why: "is on a removable volume, " + v.Mount}
	case err != nil && below(parts(real), parts("/Volumes")):
		return &ProtectedError{Dir: dir, Real: real, Why: "is on another volume, and that does not say whether it is removable: " + err.Error()}
	}
	return nil
}

// resolve follows the links of a path as far as it exists: there is the real path of the part that does, real that of all.
func resolve(dir string) (there, real string, err error) {
	rest := ""
	for at := dir; ; at = path.Dir(at) {
		resolved, err := filepath.EvalSymlinks(filepath.FromSlash(at))
		if err == nil {
			resolved = filepath.ToSlash(resolved)
			return resolved, path.Join(resolved, rest), nil
		}
		if !errors.Is(err, fs.ErrNotExist) || at == path.Dir(at) {
			return "", "", err
		}
		if _, lerr := os.Lstat(filepath.FromSlash(at)); lerr == nil {
			return "", "", err // a link that leads nowhere: what will be there cannot be known
		}
		rest = path.Join(path.Base(at), rest)
	}
}

// dataVolume is the second name of everything that can be written: /Users is /System/Volumes/Data/Users.
const dataVolume = "/System/Volumes/Data"

// protected says why macOS guards a path, "" when it does not.
func protected(place string, homes []string) string {
	at := parts(place)
	if data := parts(dataVolume); below(at, data) {
		at = at[len(data):]
	}
	for _, home := range homes {
		if in := parts(home); len(in) > 0 && below(at, in) {
			if why := guarded(at[len(in):]); why != "" {
				return why
			}
		}
	}
	if below(at, []string{"Users"}) && len(at) > 2 && !strings.EqualFold(at[1], "Shared") {
		return guarded(at[2:])
	}
	return ""
}

// guarded looks at a path below a user's home.
func guarded(at []string) string {
	for _, folder := range []struct{ name, why string }{
		{"Desktop", "is in a Desktop folder"},
		{"Documents", "is in a Documents folder"},
		{"Downloads", "is in a Downloads folder"},
		{"Library/Mobile Documents", "is in iCloud Drive"},
		{"Library/CloudStorage", "is in a cloud service's folder"},
		{".Trash", "is in the Trash"},
	} {
		if below(at, parts(folder.name)) {
			return folder.why
		}
	}
	return ""
}

// below reports whether a path is another or lies in it.
func below(at, dir []string) bool {
	if len(at) < len(dir) {
		return false
	}
	for i := range dir {
		if !strings.EqualFold(at[i], dir[i]) {
			return false
		}
	}
	return true
}

// parts takes a path apart.
func parts(name string) []string {
	return strings.FieldsFunc(filepath.ToSlash(name), func(r rune) bool { return r == '/' })
}
