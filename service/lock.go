package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"github.com/devops-agent/devops-agent/service/control"
)

// Role is a process that exists once in an installation. Its lock and pid file bear its name (protocol §2.4).
type Role string

// The roles of protocol §2.4.
const (
	RoleAgent     Role = "agent"
	RoleDaemon    Role = "daemon"
	RoleUpgrade   Role = "upgrade"
	RoleInstaller Role = "installer"
)

// totalLockWait is how long a start waits for total-lock: an upgrader holds it while it swaps programs, which takes
// seconds; longer means that something hangs, and the keeper's next try is better than waiting for ever (W-36).
const totalLockWait = time.Minute

// lockPoll is the distance of tries for a lock that somebody else holds.
const lockPoll = 20 * time.Millisecond

// probeWait is for how long a role is tried for: a daemon, the original's too, takes agent.lock for an instant to see
// whether an agent runs, and that instant must not send an agent away.
const probeWait = 100 * time.Millisecond

// envTotal says which process holds total-lock for the agent that it starts: the agent need not wait for it, and nobody
// can get in between (weakness W-38). It counts only when that process is our parent.
const envTotal = "DEVOPS_TOTAL_LOCK"

// Lock is a role held until the process ends or Release is called.
type Lock struct{ file *flock.Flock }

// Release gives the role up. The pid file stays, as the original's does (protocol §2.1).
func (l *Lock) Release() error { return l.file.Unlock() }

// Hold takes a role: the role's lock, then, under total-lock, its pid file (protocol §2.4). The error is ErrRunning
// when another process has the role.
func (i *Installation) Hold(ctx context.Context, role Role) (*Lock, error) {
	return i.hold(ctx, role, totalLockWait)
}

func (i *Installation) hold(ctx context.Context, role Role, limit time.Duration) (*Lock, error) {
	dir := i.Path("runtime")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("take role %s: %w", role, err)
	}
	if kind, remote := networkFS(dir); remote {
		return nil, &NetworkFSError{Dir: dir, Kind: kind}
	}
	own := newLock(filepath.Join(dir, string(role)+".lock"))
	got, err := own.TryLock()
	for deadline := time.Now().Add(probeWait); !got && err == nil && time.Now().Before(deadline); {
		timer := time.NewTimer(lockPoll)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("take role %s: %w", role, context.Cause(ctx))
		case <-timer.C:
		}
		got, err = own.TryLock()
	}
	if err != nil {
		return nil, fmt.Errorf("take role %s: lock %s: %w", role, own.Path(), err)
	}
	if !got {
		return nil, fmt.Errorf("role %s in %s: %w", role, i.Home, ErrRunning)
	}
	if i.outlived(ctx, role) {
		return nil, errors.Join(fmt.Errorf("role %s in %s, without its lock file, which was removed: %w", role, i.Home, ErrRunning), own.Unlock())
	}
	if err := i.writePID(ctx, role, limit); err != nil {
		return nil, errors.Join(fmt.Errorf("take role %s: %w", role, err), own.Unlock())
	}
	return &Lock{file: own}, nil
}

// answerWait is how long a process that may have a role already is waited for.
const answerWait = time.Second

// outlived reports whether a process has a role whose lock file was removed: the lock of the new file says nothing about
// that of the old one. Two agents would both wait for, and both report, the builds of the first. A pid and the name of a
// program are not enough to go away for; the process has to say, at the door of this home, that it is the one.
func (i *Installation) outlived(ctx context.Context, role Role) bool {
	if role != RoleAgent && role != RoleDaemon {
		return false // they have no door
	}
	pid, ok := i.running(role)
	if !ok || pid == os.Getpid() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	var there struct {
		PID int `json:"pid"`
	}
	err := control.Call(ctx, i.Home, string(role), control.Request{Op: control.OpStatus}, &there)
	return err == nil && there.PID == pid
}

// free reports whether nobody holds a role. It takes the lock for an instant. A lock that is not there is not made: it would
// belong to whoever asks, and the agent's account could not take it.
func (i *Installation) free(role Role) (bool, error) {
	probe := newLock(i.Path("runtime", string(role)+".lock"))
	if _, err := os.Stat(probe.Path()); errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	got, err := probe.TryLock()
	if err != nil {
		return false, fmt.Errorf("lock %s: %w", probe.Path(), err)
	}
	if !got {
		return false, nil
	}
	return true, probe.Unlock()
}

// totalFor takes total-lock to write a pid file. When our parent holds it for us there is nothing to wait for.
func (i *Installation) totalFor(ctx context.Context, role Role, limit time.Duration) (*Lock, error) {
	keeper := os.Getenv(envTotal)
	if role != RoleAgent || keeper == "" {
		return i.HoldTotal(ctx, limit)
	}
	if err := os.Unsetenv(envTotal); err != nil {
		return nil, err
	}
	if keeper != strconv.Itoa(os.Getppid()) {
		return i.HoldTotal(ctx, limit)
	}
	total := newLock(i.Path("runtime", "total-lock.lock"))
	got, err := total.TryLock()
	if err != nil || !got {
		return nil, err // held by our parent, for us
	}
	return &Lock{file: total}, nil
}

func (i *Installation) writePID(ctx context.Context, role Role, limit time.Duration) error {
	total, err := i.totalFor(ctx, role, limit)
	if err != nil {
		return err
	}
	path := i.Path("runtime", string(role)+".pid")
	err = os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())), 0o600)
	if errors.Is(err, syscall.ENOSPC) {
		// The lock says who runs; the pid file is for others. On a full disk an agent without one still sends
		// heartbeats, and half a pid would be somebody else's.
		if err = os.Remove(path); errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	}
	if total == nil {
		return err
	}
	return errors.Join(err, total.Release())
}

// HoldTotal takes the short lock around pid files and swaps, waiting at most limit for another holder.
func (i *Installation) HoldTotal(ctx context.Context, limit time.Duration) (*Lock, error) {
	waiting, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	total := newLock(i.Path("runtime", "total-lock.lock"))
	if got, err := total.TryLockContext(waiting, lockPoll); !got {
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return nil, &BusyError{Path: total.Path(), Waited: limit}
		}
		return nil, fmt.Errorf("lock %s: %w", total.Path(), err)
	}
	return &Lock{file: total}, nil
}

// newLock opens lock files 0600: a lock that others could open is a lock that others could hold.
func newLock(path string) *flock.Flock { return flock.New(path, flock.SetPermissions(0o600)) }

// BusyError: total-lock did not become free in time.
type BusyError struct {
	Path   string
	Waited time.Duration
}

// Error names the lock.
func (e *BusyError) Error() string {
	return fmt.Sprintf("lock %s: held by another process for more than %v", e.Path, e.Waited)
}

// Hint names the usual holder.
func (e *BusyError) Hint() string {
	return "an upgrader or installer is at work or hangs; see logs/devopsUpgrader.log and runtime/upgrade.pid"
}

// NetworkFSError: locks on this file system cannot be trusted to hold between processes.
type NetworkFSError struct {
	Dir  string
	Kind string // "nfs", "smb", …
}

// Error names the directory and its file system.
func (e *NetworkFSError) Error() string {
	return fmt.Sprintf("lock directory %s is on a network file system (%s), where locks cannot be trusted", e.Dir, e.Kind)
}

// Hint says where the installation can live instead.
func (e *NetworkFSError) Hint() string {
	return "install the agent on a local disk; only the workspace of a build may be on a network file system"
}
