package service

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/devops-agent/devops-agent/service/proc"
)

// Holder is the process that has a role of an installation.
type Holder struct {
	PID     int
	Started string // as proc.Identify has it
	Program string // path of its executable
}

// Holder finds the process that holds a role. It is believed only when the lock is held, the process named by the pid file
// runs, and its executable is the role's program in home or in the package's directory: a number in a file is not enough
// to signal somebody (weakness W-35).
func (i *Installation) Holder(role Role) (*Holder, bool) {
	pid, ok := i.noted(role)
	if !ok {
		return nil, false
	}
	started, ok := proc.Identify(pid)
	if !ok {
		return nil, false
	}
	if free, err := i.free(role); err != nil || free {
		return nil, false
	}
	program, err := executableOf(pid)
	if err != nil || !i.isProgram(role, program) {
		return nil, false
	}
	return &Holder{PID: pid, Started: started, Program: program}, proc.Alive(pid, started)
}

// Held reports whether a process has a role, whoever that is. It makes nothing.
func (i *Installation) Held(role Role) (bool, error) {
	free, err := i.free(role)
	return !free, err
}

// noted is the process that the pid file of a role names.
func (i *Installation) noted(role Role) (pid int, ok bool) {
	path := i.Path("runtime", string(role)+".pid")
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() { // anybody with our account can put anything there
		return 0, false
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, false
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return 0, false
	}
	pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	return pid, err == nil && pid > 1
}

// running is the process that the pid file of a role names, if it runs a program that may have the role.
func (i *Installation) running(role Role) (pid int, ok bool) {
	if pid, ok = i.noted(role); !ok {
		return 0, false
	}
	if _, ok = proc.Identify(pid); !ok {
		return 0, false
	}
	path, err := executableOf(pid)
	return pid, err == nil && i.isProgram(role, path)
}

// isProgram reports whether an executable is one that may have the role here.
func (i *Installation) isProgram(role Role, path string) bool {
	name, ok := map[Role]string{RoleAgent: "devopsAgent", RoleDaemon: "devopsDaemon", RoleUpgrade: "upgrader", RoleInstaller: "installer"}[role]
	if !ok {
		return false
	}
	if !filepath.IsAbs(path) { // macOS tells what was called
		path = i.Path(path)
	}
	path = strings.TrimSuffix(path, " (deleted)") // Linux, when the file was replaced meanwhile
	for _, dir := range []string{i.Home, i.Path("tmp"), Packaged(runtime.GOOS).Vendor} {
		if resolved, err := filepath.EvalSymlinks(dir); err == nil {
			dir = resolved
		}
		// A program that was moved aside for a newer one has more to its name.
		if sameDir(filepath.Dir(path), dir) && strings.HasPrefix(filepath.Base(path), name) {
			return true
		}
	}
	return false
}

// sameDir compares two absolute paths as the system does.
func sameDir(a, b string) bool {
	if runtime.GOOS == "windows" {
		return strings.EqualFold(a, b)
	}
	return a == b
}

// signals that a Holder gets; what Windows lacks is an error there.
type processSignal int

const (
	terminateProcess processSignal = iota
	abortProcess
	killProcess
)

// Terminate asks the process to end: SIGTERM, which Windows does not have. It does not wait.
func (h *Holder) Terminate() error { return h.signal(terminateProcess) }

// Kill ends the process, and nothing that it started. It does not wait.
func (h *Holder) Kill() error { return h.signal(killProcess) }

// signal signals the process if it still is the same.
func (h *Holder) signal(sig processSignal) error {
	if !proc.Alive(h.PID, h.Started) {
		return nil
	}
	if err := signalProcess(h.PID, sig); err != nil {
		return fmt.Errorf("signal process %d: %w", h.PID, err)
	}
	return nil
}
