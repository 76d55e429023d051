package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Programs are the built programs and the stubs, by absolute path. A program whose folder has no code yet is "".
type Programs struct {
	Dir      string
	Agent    string // devopsAgent
	Daemon   string // devopsDaemon
	Upgrader string // upgrader
	Worker   string // devopsWorker
	Control  string // devopsController

	stubs string
}

// BuildPrograms builds the programs into a directory. The go command obeys GOFLAGS as ever; with race they get the race
// detector.
func BuildPrograms(dir string, race bool) (Programs, error) {
	p := Programs{Dir: dir, stubs: filepath.Join(dir, "stubs")}
	if err := os.MkdirAll(p.stubs, 0o755); err != nil { //nolint:gosec // other accounts execute what is in it
		return Programs{}, err
	}
	if err := writeStubs(p.stubs); err != nil {
		return Programs{}, err
	}
	root, err := ModuleRoot()
	if err != nil {
		return Programs{}, err
	}
	for _, one := range []struct {
		folder, name string
		path         *string
	}{
		{"agent", "devopsAgent", &p.Agent}, {"daemon", "devopsDaemon", &p.Daemon},
		{"upgrader", "upgrader", &p.Upgrader}, {"worker", "devopsWorker", &p.Worker},
		{"controller", "devopsController", &p.Control},
	} {
		sources, err := filepath.Glob(filepath.Join(root, "cmd", one.folder, "*.go"))
		if err != nil {
			return Programs{}, err
		}
		if len(sources) == 0 {
			continue
		}
		*one.path = filepath.Join(dir, one.name+exeSuffix())
		args := []string{"build", "-trimpath", "-o", *one.path}
		if race {
			args = append(args, "-race")
		}
		build := exec.Command("go", append(args, "./cmd/"+one.folder)...)
		build.Dir = root
		build.Env = os.Environ()
		if !race {
			build.Env = append(build.Env, "CGO_ENABLED=0")
		}
		if out, err := build.CombinedOutput(); err != nil {
			return Programs{}, fmt.Errorf("build cmd/%s: %w\n%s", one.folder, err, out)
		}
	}
	return p, nil
}

// ModuleRoot returns the directory of go.mod, found upwards from the current directory.
func ModuleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("no go.mod above the current directory")
		}
		dir = up
	}
}

func exeSuffix() string {
	if runtime.GOOS == "windows" {
		return ".exe"
	}
	return ""
}

// place makes a file available under another name: by a hard link, else by a copy.
func place(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil { //nolint:gosec // an install tree
		return err
	}
	if err := os.Link(from, to); err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755) //nolint:gosec // a program
}

// childEnv is what programs of the lab inherit: little, so that tests do not depend on who runs them.
func childEnv(lab, user string, extra ...string) []string {
	env := []string{"LAB_DIR=" + lab, "HOME=" + user, "SHELL=/bin/bash", "LANG=C.UTF-8", "TERM=dumb"}
	for _, name := range []string{"PATH", "USER", "LOGNAME", "TZ", "GOCOVERDIR", "GORACE", "SystemRoot", "SYSTEMROOT", "COMSPEC"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	// Later entries win.
	merged := map[string]string{}
	var order []string
	for _, entry := range append(env, extra...) {
		name, value, _ := strings.Cut(entry, "=")
		if _, seen := merged[name]; !seen {
			order = append(order, name)
		}
		merged[name] = value
	}
	env = env[:0]
	for _, name := range order {
		env = append(env, name+"="+merged[name])
	}
	return env
}
