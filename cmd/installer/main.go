package main

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

func main() {
	err := run(os.Args[1:])
	_, _ = os.Stderr.WriteString("installer: " + err.Error() + "\nhint: unpack the whole archive into the agent's home\n")
	os.Exit(1)
}

// run becomes the agent of the home; it returns only when it cannot.
func run(args []string) error {
	agent, err := find(args)
	if err != nil {
		return err
	}
	if runtime.GOOS != "windows" { // whatever unpacked the archive may have dropped modes
		if err := os.Chmod(agent, 0o755); err != nil && !errors.Is(err, os.ErrPermission) { //nolint:gosec // a program
			return err
		}
	}
	return become(agent, append([]string{agent, "installer"}, args...))
}

// find is the agent's program: that of -home, or that of the current directory, or the one beside this program or above it;
// the original lies in tmp/.
func find(args []string) (string, error) {
	if home := given(args); home != "" {
		return program(home)
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	candidates := []string{dir}
	if self, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(self); err == nil {
			self = real
		}
		beside, above := filepath.Dir(self), filepath.Dir(filepath.Dir(self))
		if filepath.Base(beside) == "tmp" { // both are there: the home is above
			beside, above = above, beside
		}
		candidates = append(candidates, beside, above)
	}
	for _, one := range candidates {
		if path, err := program(one); err == nil {
			return path, nil
		}
	}
	return program(dir)
}

// given is the value of -home.
func given(args []string) string {
	home := ""
	for i, arg := range args {
		if arg == "--" {
			break
		}
		name, value, there := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-"), "=")
		switch {
		case name != "home" || !strings.HasPrefix(arg, "-"):
		case there:
			home = value
		case i+1 < len(args):
			home = args[i+1]
		}
	}
	return home
}

// program is the agent of a home.
func program(home string) (string, error) {
	path := filepath.Join(home, "devopsAgent")
	if runtime.GOOS == "windows" {
		path += ".exe"
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		return "", errors.New("no agent: " + path + " is not there")
	}
	return path, nil
}
