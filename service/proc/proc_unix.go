//go:build unix

package proc

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// jobHandle is empty on Unix: a process group needs none.
type jobHandle struct{}

// LookupAccount finds an account by its name. The error is a user.UnknownUserError when there is none.
func LookupAccount(name string) (*Account, error) {
	u, groups, err := lookupUser(name)
	if err != nil {
		return nil, fmt.Errorf("look up account %q: %w", name, err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("look up account %q: %w", name, err)
	}
	a := &Account{Name: u.Username, Home: u.HomeDir, UID: uint32(uid), GID: uint32(gid)}
	for _, group := range groups {
		id, err := strconv.ParseUint(group, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("look up groups of %q: %w", name, err)
		}
		a.Groups = append(a.Groups, uint32(id))
	}
	return a, nil
}

func localUser(name string) (*user.User, []string, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, nil, err
	}
	groups, err := u.GroupIds()
	return u, groups, err
}

func prepare(cmd *exec.Cmd, c Command) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if a := c.Account; a != nil && int(a.UID) != os.Geteuid() {
		if os.Geteuid() != 0 {
			return fmt.Errorf("as %s: only root may change the account", a.Name)
		}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: a.UID, Gid: a.GID, Groups: a.Groups}
	}
	return nil
}

func (p *Process) start(cmd *exec.Cmd, umask int) error {
	umaskLock.Lock()
	defer umaskLock.Unlock() // deferred first: it comes after the umask is back
	if umask > 0 {
		old := unix.Umask(umask)
		defer unix.Umask(old)
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.pid = cmd.Process.Pid
	it, _ := lookup(p.pid) // nobody has reaped it: there is always an entry
	p.started = it.started
	return nil
}

func signalOf(state *os.ProcessState) string {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return status.Signal().String()
	}
	return ""
}

func leadsGroup(pid int) bool {
	group, err := unix.Getpgid(pid)
	return err == nil && group == pid
}

// owns reports whether a process is in our child's group. When the leader is gone its number may have come round;
// a stranger's group is then very likely in another session than ours, where the child was born.
func (p *Process) owns(it process) bool {
	if it.group != p.pid {
		return false
	}
	if leader, ok := lookup(p.pid); ok {
		return leader.started == p.started
	}
	ours, err1 := unix.Getsid(0)
	its, err2 := unix.Getsid(it.pid)
	return err1 == nil && err2 == nil && (ours == its || p.done == nil)
}

// terminate reports whether anybody could be asked.
func (p *Process) terminate(victims map[int]string) bool {
	signalAll(victims, unix.SIGTERM)
	return true
}
func (p *Process) destroy(victims *tree) { signalAll(victims.of, unix.SIGKILL) }

// signalAll signals each one by itself and not the group: every victim has just been seen with its start time.
// A stopped process does not hear SIGTERM until it is continued.
func signalAll(victims map[int]string, sig unix.Signal) {
	for pid, started := range victims {
		if Alive(pid, started) {
			_ = unix.Kill(pid, sig) // it may end by itself meanwhile
			if sig == unix.SIGTERM {
				_ = unix.Kill(pid, unix.SIGCONT)
			}
		}
	}
}

func killExact(it process) bool {
	return Alive(it.pid, it.started) && unix.Kill(it.pid, unix.SIGKILL) == nil
}
