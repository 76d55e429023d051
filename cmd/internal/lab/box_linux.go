package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Box is a container with a systemd of its own, made by lab/box. It shares the host's network: what listens on 127.0.0.1
// outside is there inside. It goes when the test ends, or the process of the test does.
type Box struct {
	Name string
	Root string // its root directory, seen from here; /tmp, /run and what is mounted inside are not in it

	t      T
	script string
	init   int // PID 1 of this boot, 0 when it is not known
}

// BoxOptions shape a box.
type BoxOptions struct {
	Name  string // part of the name, for people who look at the machine; letters and digits
	Plain bool   // no systemd: PID 1 only reaps, as in a minimal container
	Image string // kind of the image (lab/image), "" for the plain Debian
}

// NewBox makes a box and boots it. It needs root.
func NewBox(t T, o BoxOptions) *Box {
	t.Helper()
	root, err := ModuleRoot()
	if err != nil {
		t.Fatalf("make a box: %v", err)
	}
	name := o.Name
	if name == "" {
		name = "box"
	}
	b := &Box{t: t, script: filepath.Join(root, "lab", "box"), Name: fmt.Sprintf("%.12s-%s-%d", name, randomHex(2), os.Getpid())}
	args := []string{b.Name, "--owner", strconv.Itoa(os.Getpid())}
	if o.Plain {
		args = append(args, "--plain")
	}
	if o.Image != "" {
		args = append(args, "--image", o.Image)
	}
	t.Cleanup(func() { b.must("rm", b.Name) })
	b.must("up", args...)
	b.Root = strings.TrimSpace(b.must("root", b.Name))
	return b
}

// must calls lab/box.
func (b *Box) must(verb string, args ...string) string {
	b.t.Helper()
	out, err := b.call(nil, verb, args...)
	if err != nil {
		b.t.Fatalf("lab/box %s: %v", verb, err)
	}
	return out
}

// call keeps a program that outlives the call from holding it: only the script itself is waited for.
func (b *Box) call(stdin []byte, verb string, args ...string) (string, error) {
	cmd := exec.Command(b.script, append([]string{verb}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	cmd.WaitDelay = 2 * time.Second
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("%w: %s%s", err, stdout.String(), stderr.String())
	}
	return stdout.String(), err
}

// Exec runs a command inside as root and returns its standard output. The error holds all that it said.
func (b *Box) Exec(command ...string) (string, error) {
	return b.call(nil, "exec", append([]string{b.Name}, command...)...)
}

// As runs a command inside as another account, in its home and without a session; input is its standard input.
func (b *Box) As(user, input string, command ...string) (string, error) {
	return b.call([]byte(input), "exec", append([]string{b.Name, "--user", user}, command...)...)
}

// Code is the exit code of a command that Exec or As ran, -1 when it did not come to one.
func Code(err error) int {
	if err == nil {
		return 0
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	return -1
}

// Run is Exec for commands that must succeed; it returns the output without blanks around.
func (b *Box) Run(command ...string) string {
	b.t.Helper()
	out, err := b.Exec(command...)
	if err != nil {
		b.t.Fatalf("%s: %s: %v", b.Name, strings.Join(command, " "), err)
	}
	return strings.TrimSpace(out)
}

// Shell runs a script inside by bash, as root; each command must succeed.
func (b *Box) Shell(script string) string {
	b.t.Helper()
	return b.Run("bash", "-ec", script)
}

// Path is a path of the box, seen from here.
func (b *Box) Path(path string) string { return filepath.Join(b.Root, path) }

// Write makes a file inside, with the directories that it needs.
func (b *Box) Write(path, text string, mode fs.FileMode) {
	b.t.Helper()
	b.place(path, []byte(text), mode)
}

// Copy puts a program of this machine into the box.
func (b *Box) Copy(program, path string) {
	b.t.Helper()
	data, err := os.ReadFile(program)
	if err != nil {
		b.t.Fatalf("copy into %s: %v", b.Name, err)
	}
	b.place(path, data, 0o755)
}

// place writes beside and renames: a program that runs cannot be written to.
func (b *Box) place(path string, data []byte, mode fs.FileMode) {
	b.t.Helper()
	to := b.Path(path)
	err := os.MkdirAll(filepath.Dir(to), 0o755) //nolint:gosec // as a package makes them
	if err == nil {
		err = os.WriteFile(to+".new", data, mode)
	}
	if err == nil {
		err = os.Chmod(to+".new", mode) // whatever the umask
	}
	if err == nil {
		err = os.Rename(to+".new", to)
	}
	if err != nil {
		b.t.Fatalf("write into %s: %v", b.Name, err)
	}
}

// Read returns a file of the box, "" when it is not there.
func (b *Box) Read(path string) string {
	data, _ := os.ReadFile(b.Path(path))
	return string(data)
}

// Reboot restarts the box in good order and returns when it has booted.
func (b *Box) Reboot() { b.t.Helper(); b.power("reboot") }

// Stop powers it off in good order.
func (b *Box) Stop() { b.t.Helper(); b.power("stop") }

// Kill pulls the plug. Disk caches of this machine survive, as it goes on.
func (b *Box) Kill() { b.t.Helper(); b.power("kill") }

// Start boots it after Stop or Kill.
func (b *Box) Start() { b.t.Helper(); b.power("start") }

func (b *Box) power(verb string) {
	b.t.Helper()
	b.must(verb, b.Name)
	b.init = 0
}

// Init is PID 1 of the box, as this machine numbers it.
func (b *Box) Init() int {
	b.t.Helper()
	if b.init != 0 {
		return b.init
	}
	pid, err := strconv.Atoi(strings.TrimSpace(b.must("pid", b.Name)))
	if err != nil {
		b.t.Fatalf("PID 1 of %s: %v", b.Name, err)
	}
	b.init = pid
	return pid
}

// Processes are the processes of the box whose program has a name ("" for all) or whose environment has an entry NAME=value,
// as this machine numbers them; zombies do not count.
func (b *Box) Processes(what string) []int {
	b.t.Helper()
	space, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", b.Init()))
	if err != nil {
		return nil
	}
	fits := func(pid int) bool {
		if name, entry, ok := strings.Cut(what, "="); ok {
			data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
			return strings.Contains("\x00"+string(data), "\x00"+name+"="+entry+"\x00")
		}
		program, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		return what == "" || filepath.Base(strings.TrimSuffix(program, " (deleted)")) == what
	}
	var pids []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if own, err := os.Readlink(filepath.Join(dir, "ns", "pid")); err == nil && own == space && Running(pid) && fits(pid) {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// InnerPID is the number that a process of the box has inside, 0 when it has ended.
func InnerPID(pid int) int {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(data)) {
		if list, ok := strings.CutPrefix(line, "NSpid:"); ok {
			if fields := strings.Fields(list); len(fields) > 0 {
				inner, _ := strconv.Atoi(fields[len(fields)-1])
				return inner
			}
		}
	}
	return 0
}

// Signal sends a signal to a process of the box, given as this machine numbers it, and returns when that was.
func (b *Box) Signal(pid int, s syscall.Signal) time.Time {
	b.t.Helper()
	at := time.Now()
	if err := syscall.Kill(pid, s); err != nil {
		b.t.Fatalf("%s: signal %d: %v", b.Name, pid, err)
	}
	return at
}

// CPUTime is what a process has used of the processors, with its children that have ended and were waited for. The kernel
// counts in steps of 10 ms.
func CPUTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 15 {
		return 0, fmt.Errorf("read the times of %d: %q", pid, data)
	}
	var ticks int64
	for _, field := range fields[11:15] { // utime, stime, cutime, cstime
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the times of %d: %w", pid, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}
