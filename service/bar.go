package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Bar keeps a role free until the lock is released: no process can take it, and the one that bars it does not have it. It is for who
// changes what such a process would use. The error is ErrRunning when a process has the role.
func (i *Installation) Bar(ctx context.Context, role Role) (*Lock, error) {
	dir := i.Path("runtime")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("bar role %s: %w", role, err)
	}
	if kind, remote := networkFS(dir); remote {
		return nil, &NetworkFSError{Dir: dir, Kind: kind}
	}
	bar := newLock(filepath.Join(dir, string(role)+".lock"))
	waiting, cancel := context.WithTimeout(ctx, probeWait) // a daemon tries the lock for an instant
	defer cancel()
	got, err := bar.TryLockContext(waiting, lockPoll)
	switch {
	case got && i.outlived(ctx, role):
		return nil, errors.Join(fmt.Errorf("role %s in %s, without its lock file, which was removed: %w", role, i.Home, ErrRunning), bar.Unlock())
	case got:
		return &Lock{file: bar}, nil
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		return nil, fmt.Errorf("role %s in %s: %w", role, i.Home, ErrRunning)
	}
	return nil, fmt.Errorf("bar role %s: lock %s: %w", role, bar.Path(), err)
}
