package proc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"time"
)

// outputGrace is how long Wait goes on reading a pipe after the child itself has ended: a grandchild that
// inherited it may hold it open for ever.
const outputGrace = 2 * time.Second

// killPatience is how long Kill watches for processes to vanish after SIGKILL; one in uninterruptible sleep may not.
const killPatience = 2 * time.Second

// Command says what to start.
type Command struct {
	Path           string    // absolute, or searched in PATH
	Args           []string  // without the program's own name
	Dir            string    // "" means ours
	Env            []string  // "KEY=value"; nil means ours
	Stdin          io.Reader // nil means the null device
	Stdout, Stderr io.Writer // nil means the null device; an *os.File is handed over as it is
	Account        *Account  // nil means ours; another one needs root, and Unix. HOME, USER, LOGNAME are the caller's to set
	Umask          int       // Unix: of the child; 0 or less keeps ours
}

// Account is an account of this machine that a child can run as.
type Account struct {
	Name, Home string
	UID, GID   uint32
	Groups     []uint32 // supplementary groups
}

// Exit says how a process ended.
type Exit struct {
	Code     int    // exit code; -1 when a signal ended it or nobody knows
	Signal   string // "killed", "terminated" … when a signal ended it, else ""
	Detached bool   // something it started still held its output open; that output is cut off
	Err      error  // waiting itself, or copying its output, went wrong
}

// Success reports whether the process ended by itself with code 0.
func (e Exit) Success() bool { return e.Code == 0 && e.Signal == "" && e.Err == nil }

// String says it as a shell user would: "exit status 3", "signal: killed".
func (e Exit) String() string {
	switch {
	case e.Signal != "":
		return "signal: " + e.Signal
	case e.Err != nil:
		return e.Err.Error()
	case e.Code < 0:
		return "exit status unknown"
	}
	return "exit status " + strconv.Itoa(e.Code)
}

// Process is a started (Start) or taken up (Adopt) process. All methods may be called from any goroutine, any
// number of times.
type Process struct {
	pid     int
	started string
	group   bool          // we made it the leader of its group
	job     jobHandle     // Windows: the Job Object; else empty
	done    chan struct{} // closed after the child was reaped; nil when it is not ours
	exit    Exit          // valid after done
}

// umaskLock serialises every Start. A child inherits the umask of the whole process, and Go cannot set it between
// fork and exec: it is swapped around Start, and nobody else may fork meanwhile. Files of our own are always
// created with an explicit mode, so the moment of a wider umask opens none of them.
//
// It guards a property of the process, not of a value, hence a package variable.
var umaskLock sync.Mutex

// Start starts a child in a process group (Unix) or Job Object (Windows) of its own. The error says which program
// could not be started; exec.ErrNotFound and fs.ErrPermission can be found in it.
func Start(c Command) (*Process, error) {
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Dir, cmd.Env = c.Dir, c.Env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	cmd.WaitDelay = outputGrace
	if err := prepare(cmd, c); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Path, err)
	}
	p := &Process{group: true, done: make(chan struct{})}
	if err := p.start(cmd, c.Umask); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Path, err)
	}
	go p.reap(cmd)
	return p, nil
}

// reap ends with the child (and at most outputGrace later).
func (p *Process) reap(cmd *exec.Cmd) {
	defer close(p.done)
	err := cmd.Wait()
	var status *exec.ExitError
	switch {
	case err == nil, errors.As(err, &status):
	case errors.Is(err, exec.ErrWaitDelay):
		p.exit.Detached = true
	default:
		p.exit.Err = err
	}
	p.exit.Code = -1
	if cmd.ProcessState != nil {
		p.exit.Code = cmd.ProcessState.ExitCode()
		p.exit.Signal = signalOf(cmd.ProcessState)
	}
}

// Adopt takes up a process that somebody else started, known by its pid and the text that Started gave.
// os.ErrProcessDone means that it does not run any more.
func Adopt(pid int, started string) (*Process, error) {
	if !Alive(pid, started) {
		return nil, fmt.Errorf("adopt process %d: %w", pid, os.ErrProcessDone)
	}
	return &Process{pid: pid, started: started, group: leadsGroup(pid)}, nil
}

// Pid is the process id.
func (p *Process) Pid() int { return p.pid }

// Started is an opaque text that, together with the pid, names this process and no later one, across a reboot too.
func (p *Process) Started() string { return p.started }

// Wait returns when the process has ended. It does not wait for what the process started: output is read for two
// more seconds at most. How an adopted process ended is not known: its code is -1.
func (p *Process) Wait() Exit {
	if p.done == nil {
		err := WaitFor(context.Background(), p.pid, p.started)
		return Exit{Code: -1, Err: err}
	}
	<-p.done
	return p.exit
}

// Done is closed when Wait would return at once; nil for an adopted process.
func (p *Process) Done() <-chan struct{} { return p.done }

// Kill asks the process and all it spawned to end (SIGTERM; on Windows CTRL_BREAK, which only console programs
// hear), and after grace, at once where nobody can be asked, kills what is left: the group or Job Object, and every
// descendant it can find, also one in a group of its own. It returns when all of them are gone, or with an error naming
// how many would not go.
// A descendant that both left the group and was orphaned is found only by KillByEnv.
func (p *Process) Kill(grace time.Duration) error { return p.KillSparing(grace, nil) }

// KillSparing is Kill, but leaves alone every descendant for whose environment spare says so, and what that one
// started. The process itself is never spared.
func (p *Process) KillSparing(grace time.Duration, spare func(env map[string]string) bool) error {
	victims := &tree{spare: spare, of: map[int]string{}, spared: map[int]string{}}
	if left, err := p.members(victims); err != nil || left == 0 {
		return err
	}
	if grace > 0 && p.terminate(victims.of) && p.gone(victims, grace) {
		return nil
	}
	deadline := time.Now().Add(killPatience)
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		left, err := p.members(victims)
		if err != nil || left == 0 {
			return err
		}
		p.destroy(victims) // again each time: something may have been forked while we were looking
		if time.Now().After(deadline) {
			return fmt.Errorf("kill process %d: %d processes of it do not end", p.pid, left)
		}
		<-time.After(wait)
	}
}

// gone reports whether everything has ended before limit is over.
func (p *Process) gone(victims *tree, limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	for wait := 5 * time.Millisecond; time.Now().Before(deadline); wait = min(2*wait, 100*time.Millisecond) {
		<-time.After(min(wait, time.Until(deadline)))
		if left, err := p.members(victims); err == nil && left == 0 {
			return true
		}
	}
	return false
}

// tree is what is to be killed: pid and start time of each.
type tree struct {
	spare      func(env map[string]string) bool // may be nil
	of, spared map[int]string
}

// take lets a process join, unless it is to be spared; it reports whether it is new.
func (t *tree) take(it process) bool {
	if t.of[it.pid] == it.started || t.spared[it.pid] == it.started || it.pid == os.Getpid() {
		return false
	}
	if t.spare != nil {
		if env, err := environ(it.pid); err == nil && t.spare(env) {
			t.spared[it.pid] = it.started
			return false
		}
	}
	t.of[it.pid] = it.started
	return true
}

// members brings victims up to date: those that ended leave, and everything now in the group, in the job or below
// one of them joins. It returns how many there are.
func (p *Process) members(victims *tree) (int, error) {
	all, err := list()
	if err != nil {
		return 0, fmt.Errorf("list processes: %w", err)
	}
	now := make(map[int]process, len(all))
	for _, it := range all {
		if !it.zombie {
			now[it.pid] = it
		}
	}
	for pid, started := range victims.of {
		if now[pid].started != started {
			delete(victims.of, pid)
		}
	}
	if it, ok := now[p.pid]; ok && it.started == p.started {
		victims.of[p.pid] = it.started
	}
	if p.group {
		for _, it := range now {
			if p.owns(it) {
				victims.take(it)
			}
		}
	}
	for grown := true; grown; {
		grown = false
		for _, it := range now {
			if _, child := victims.of[it.ppid]; child && notBefore(it, now[it.ppid]) && victims.take(it) {
				grown = true
			}
		}
	}
	return len(victims.of), nil
}

// process is one line of the process table.
type process struct {
	pid, ppid, group int
	started          string // as Process.Started
	at               uint64 // when it was started, in a unit of the system
	zombie           bool
}

// notBefore guards against a parent pid that has come round again (Windows keeps the number of a dead parent).
func notBefore(child, parent process) bool { return child.at >= parent.at }

// Alive reports whether the process still runs. A zombie is dead. An empty started matches nothing.
func Alive(pid int, started string) bool {
	it, ok := lookup(pid)
	return ok && !it.zombie && started != "" && it.started == started
}

// Earlier reports that a process, known by the text that Started gave, was started before this machine was: it did not end,
// the machine did. false when that cannot be told.
func Earlier(started string) bool { return earlier(started) }

// Identify returns the text that Started gives, for a process that is not ours; false when there is none.
func Identify(pid int) (started string, ok bool) {
	it, ok := lookup(pid)
	if !ok || it.zombie {
		return "", false
	}
	return it.started, true
}

// WaitFor returns nil when the process, which need not be our child, has ended, and the context's cause when
// that comes first.
func WaitFor(ctx context.Context, pid int, started string) error {
	return waitFor(ctx, pid, started)
}

// poll is WaitFor for systems that cannot wait for a stranger's end.
func poll(ctx context.Context, pid int, started string) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for Alive(pid, started) {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
	return nil
}

// Ancestors returns the pids of our parent, its parent and so on, as far as they can be seen.
func Ancestors() []int {
	var pids []int
	me, ok := lookup(os.Getpid())
	for ok && me.ppid > 0 && len(pids) < 64 {
		var parent process
		if parent, ok = lookup(me.ppid); ok && parent.at <= me.at {
			pids = append(pids, parent.pid)
			me = parent
		} else {
			break
		}
	}
	return pids
}
