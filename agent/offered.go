package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// Offered is where "devopsAgent upgrade" leaves files for the agent: directories below tmp/. Whoever uses one shares a lock; what lies
// there while nobody has that lock is left over, from a program that was killed.
type Offered struct{ Inst *service.Installation }

const (
	offeredPrefix = "offered-"
	// offeredWait is how long somebody is waited for who removes left-overs, and offeredPoll the distance of tries.
	offeredWait = 10 * time.Second
	offeredPoll = 20 * time.Millisecond
)

// LockName is the path of the lock below the home.
func (Offered) LockName() string { return filepath.Join("runtime", "offered.lock") }

// NewName returns a path for a new directory, which is not made.
func (o Offered) NewName() string {
	return o.Inst.Path("tmp", offeredPrefix+strconv.FormatInt(time.Now().UnixNano(), 36))
}

// Has reports whether a path is, by its name, that of such a directory.
func (o Offered) Has(dir string) bool {
	return filepath.Dir(dir) == o.Inst.Path("tmp") && strings.HasPrefix(filepath.Base(dir), offeredPrefix)
}

// Use keeps left-overs from being removed until release is called or this process ends.
func (o Offered) Use(ctx context.Context) (release func() error, err error) {
	if err := os.MkdirAll(o.Inst.Path("runtime"), 0o700); err != nil {
		return nil, err
	}
	lock := o.lock()
	ctx, cancel := context.WithTimeout(ctx, offeredWait)
	defer cancel()
	if _, err := lock.TryRLockContext(ctx, offeredPoll); err != nil {
		return nil, fmt.Errorf("lock %s: %w", lock.Path(), err)
	}
	return lock.Unlock, nil
}

// Sweep removes left-overs, unless somebody uses such a directory now.
func (o Offered) Sweep() error {
	dirs, err := filepath.Glob(o.Inst.Path("tmp", offeredPrefix+"*"))
	if err != nil || len(dirs) == 0 {
		return err
	}
	lock := o.lock()
	if got, err := lock.TryLock(); errors.Is(err, fs.ErrNotExist) {
		return nil // no runtime/: there was never an agent here
	} else if err != nil || !got {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, o.remove(dir))
	}
	return errors.Join(append(errs, lock.Unlock())...)
}

// remove removes a directory that Has knows; any other path is left alone.
func (o Offered) remove(dir string) error {
	if !o.Has(dir) {
		return nil
	}
	return swap.Real().Remove(dir)
}

func (o Offered) lock() *flock.Flock {
	return flock.New(o.Inst.Path(o.LockName()), flock.SetPermissions(0o600))
}
