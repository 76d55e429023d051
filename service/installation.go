package service

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// Exit codes that keepers read (protocol §3.2).
const (
	ExitOK       = 0  // done, or another process already has the role
	ExitFailed   = 1  // start it again
	ExitStayDown = 88 // do not start it again: the agent was removed
)

// ErrRunning: another process holds the role's lock. Its exit code is 0 (protocol §2.4), so that a keeper that
// counts failures does not count this one.
var ErrRunning = errors.New("already running")

// ErrRemoved: BK-CI deleted this agent. Its exit code, 88, tells every keeper to leave it stopped.
var ErrRemoved = errors.New("this agent was removed in BK-CI")

// Installation is one agent on one machine: its home directory with the layout of protocol §2.1.
type Installation struct {
	Home   string // absolute
	Config string // path of agent.toml, whether or not it is there
}

// Open returns the installation in a directory, which must exist.
func Open(home string) (*Installation, error) {
	abs, err := filepath.Abs(home)
	if err != nil {
		return nil, fmt.Errorf("open installation %s: %w", home, err)
	}
	info, err := os.Stat(abs)
	if err != nil {
		return nil, fmt.Errorf("open installation: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("open installation: %s is not a directory", abs)
	}
	return &Installation{Home: abs, Config: configOf(runtime.GOOS, abs)}, nil
}

// Path joins names to the home directory.
func (i *Installation) Path(names ...string) string {
	return filepath.Join(append([]string{i.Home}, names...)...)
}

// HomeOf finds the home of a running program: the directory it was called in, or the one it really lies in,
// whichever holds .agent.properties; the real one when neither does (protocol §2.1; a call through PATH or through
// a symbolic link works, unlike weakness W-13).
func HomeOf(argv0 string) (string, error) {
	real, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find my own directory: %w", err)
	}
	if resolved, err := filepath.EvalSymlinks(real); err == nil { // macOS names the link that was called
		real = resolved
	}
	real = filepath.Dir(real)
	if called, err := exec.LookPath(argv0); err == nil {
		if called, err = filepath.Abs(called); err == nil && hasProperties(filepath.Dir(called)) {
			return filepath.Dir(called), nil
		}
	}
	return real, nil
}

func hasProperties(dir string) bool {
	for _, name := range []string{".agent.properties", ".agent.properties.bak"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

// HomeHere finds the home that a program of the original was called for: the current directory when it is a home; else the
// directory of the program, or the one above it, first the one above when the program lies in tmp/ (protocol §4.5). It is the
// current directory when none of them is.
func HomeHere() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the home directory: %w", err)
	}
	candidates := []string{dir}
	if self, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(self); err == nil {
			self = real
		}
		own := filepath.Dir(self)
		above := filepath.Dir(own)
		if filepath.Base(own) == "tmp" {
			own, above = above, own
		}
		candidates = append(candidates, own, above)
	}
	for _, one := range candidates {
		if isHome(one) {
			return one, nil
		}
	}
	return dir, nil
}

func isHome(dir string) bool {
	for _, name := range []string{".agent.properties", ".agent.properties.bak", ProgramName(runtime.GOOS, "devopsAgent")} {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.Mode().IsRegular() {
			return true
		}
	}
	return false
}

// ProgramName is the name of a program's file on a system.
func ProgramName(goos, name string) string {
	if goos == "windows" {
		return name + ".exe"
	}
	return name
}
