package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/recovery"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/upgrader/journal"
)

// keep becomes devopsDaemon. It is what starts a portable agent with the machine: a bad devopsDaemon, which nobody keeps, must
// not be the last thing that runs. Called by its upgrade, with --after, it waits until the one before is gone.
func keep(ctx context.Context, args []string) (err error) {
	var home, vendor, umask string
	var after time.Duration
	f := flags()
	f.StringVar(&home, "home", "", "")
	f.StringVar(&vendor, "vendor", "", "")
	f.StringVar(&umask, "umask", "", "")
	f.DurationVar(&after, "after", 0, "")
	if helped, err := parse(f, args); helped || err != nil {
		return err
	}
	if home == "" {
		return &usageError{errors.New("keep: --home is missing")}
	}
	if runtime.GOOS == "windows" { // there devopsDaemon is the service
		return fmt.Errorf("keep: %w", service.ErrNoKeeper)
	}
	inst, err := service.Open(home)
	if err != nil {
		return err
	}
	if awaitDisk(ctx, inst); ctx.Err() != nil {
		return nil // told to end
	}
	log, err := openLog(inst, after == 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	k := &starting{Home: recovery.New(inst, vendor, log.Logger), log: log, args: f.Args()}
	if after > 0 {
		err = k.await(ctx, after)
	} else if err = k.recoverDaemon(ctx); err != nil && ctx.Err() == nil {
		log.Error("Upgrades not looked after; the devopsDaemon that is there is started", "err", err)
		err = nil
	}
	if err != nil || ctx.Err() != nil {
		return err
	}
	if err := os.Chdir(inst.Home); err != nil {
		return fmt.Errorf("go to the home directory: %w", err)
	}
	if mask, err := strconv.ParseUint(umask, 8, 9); err == nil {
		setUmask(int(mask)) //nolint:gosec // nine bits fit
	}
	return k.becomeDaemon(ctx)
}

// await waits until no daemon has the role.
func (s *starting) await(ctx context.Context, limit time.Duration) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); ; {
		held, err := s.Inst.Held(service.RoleDaemon)
		if err != nil || !held {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("role %s in %s: %w", service.RoleDaemon, s.Inst.Home, service.ErrRunning)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// recoverDaemon looks after upgrades before devopsDaemon does, as far as it cannot itself: if it is on trial, its own starts count.
func (s *starting) recoverDaemon(ctx context.Context) (err error) {
	total, err := recovery.Lock(ctx, s.Inst, startLimit)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, total.Release()) }()
	if held, err := s.Inst.Held(service.RoleDaemon); err != nil || held {
		return err
	}
	if _, err := s.Finish(ctx); err != nil {
		return err
	}
	found, err := s.Journal.Current()
	if err != nil || found.State != journal.Trial {
		return err
	}
	if _, daemon := found.Record.Of(journal.Daemon); !daemon {
		return nil
	}
	if held, err := s.Inst.Held(service.RoleAgent); err != nil || held { // the agent outlives its daemon: that is no start of it
		return err
	}
	result, err := s.Start(ctx, journal.Last{})
	if err != nil || result.State != journal.Trial {
		return err
	}
	s.trial = true
	if err := spawnGuard(s.Inst, "--daemon"); err != nil {
		s.Log.Error("New devopsDaemon is not watched", "err", err)
	}
	return os.Setenv(recovery.EnvRecovered, strconv.Itoa(os.Getpid()))
}

// becomeDaemon starts devopsDaemon; one that cannot be executed is taken back if it is on trial.
func (s *starting) becomeDaemon(ctx context.Context) error {
	nobody := func(int) {}
	path, own, err := s.daemon()
	if err != nil {
		return err
	}
	err = become(path, append(own, s.args...), nobody)
	if service.CannotRun(err) && s.OnTrial() && s.takeBack(ctx, err) {
		_ = os.Unsetenv(recovery.EnvRecovered)
		if path, own, perr := s.daemon(); perr == nil {
			err = become(path, append(own, s.args...), nobody)
		}
	}
	if service.CannotRun(err) && s.Vendor != "" && filepath.Dir(path) != s.Vendor {
		err = become(filepath.Join(s.Vendor, "devopsDaemon"), append([]string{"--home", s.Inst.Home}, s.args...), nobody)
	}
	return err
}

// daemon finds devopsDaemon, that of home first.
func (s *starting) daemon() (path string, args []string, err error) {
	path = s.Inst.Path("devopsDaemon")
	if _, err = os.Stat(path); err == nil {
		return path, nil, nil
	}
	if s.Vendor != "" {
		theirs := filepath.Join(s.Vendor, "devopsDaemon")
		if _, verr := os.Stat(theirs); verr == nil {
			return theirs, []string{"--home", s.Inst.Home}, nil
		}
	}
	return "", nil, fmt.Errorf("find devopsDaemon: %w", err)
}

// replaceDaemon ends the devopsDaemon of a home that is not the one that lies there, and starts that: who starts it waits before the
// old one is killed, so that whoever is killed between the two leaves one of them. Its agent lives on. With must, one is
// started also if none runs.
func replaceDaemon(ctx context.Context, h *recovery.Home, must bool) error {
	holder, runs := h.Inst.Holder(service.RoleDaemon)
	if !runs && !must {
		return nil
	}
	mask := "022"
	if runs {
		if same, known := holder.Runs(h.Inst.Path("devopsDaemon")); known && same {
			return nil
		}
		mask = umaskOf(holder.PID, mask)
	}
	byUs := func() error {
		return spawn(h.Inst, "keep", "--home", h.Inst.Home, "--umask", mask, "--after", daemonFree.String())
	}
	keeper, err := service.Of(h.Inst)
	byManager := err == nil && keeper.Keeper() != service.KeeperDaemon // an original's unit, which runs its daemon
	if !byManager {
		if err := byUs(); err != nil {
			return err
		}
	}
	if runs {
		h.Log.Info("devopsDaemon makes room for the new one; its agent lives on", "pid", holder.PID)
		if err := holder.Kill(); err != nil {
			return fmt.Errorf("end the old devopsDaemon: %w", err)
		}
	}
	if !byManager {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, daemonTrial)
	defer cancel()
	if err := keeper.Start(ctx); err != nil {
		h.Log.Error("Keeper does not start the new devopsDaemon, so it is started directly", "keeper", keeper.Keeper(), "err", err)
		return byUs()
	}
	return nil
}

// recoverHome is "upgrader recover": only the recovery, for scripts of packages and people at three in the morning.
func recoverHome(ctx context.Context, args []string) (err error) {
	var home, vendor string
	f := flags()
	f.StringVar(&home, "home", "", "")
	f.StringVar(&vendor, "vendor", "", "")
	if helped, err := parse(f, args); helped || err != nil {
		return err
	}
	if f.NArg() > 0 {
		return &usageError{fmt.Errorf("unknown argument %q", f.Arg(0))}
	}
	if home == "" {
		if home, err = service.HomeHere(); err != nil {
			return err
		}
	}
	inst, err := service.Open(home)
	if err != nil {
		return err
	}
	log, err := openLog(inst, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	total, err := recovery.Lock(ctx, inst, startLimit)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, total.Release()) }()
	h := recovery.New(inst, vendor, log.Logger)
	result, err := h.Finish(ctx)
	if err != nil {
		return err
	}
	if _, lerr := os.Lstat(inst.Path(service.ProgramName(runtime.GOOS, "devopsAgent"))); errors.Is(lerr, fs.ErrNotExist) && vendor != "" && result.State == journal.None {
		if result, err = h.Start(ctx, journal.Last{}); err != nil { // a home without programs: nothing is tried, and so no start counted
			return err
		}
	}
	fmt.Println(said(result))
	return nil
}

// said puts into words what a recovery came to.
func said(r journal.Result) string {
	switch {
	case r.Damaged != "":
		return "the record of an upgrade was damaged and is now " + r.Damaged + "; the programs are complete and stay as they are"
	case r.Ended != nil && r.Ended.State == journal.Settled:
		return "upgrade " + r.Ended.ID + " is finished"
	case r.Ended != nil:
		return "upgrade " + r.Ended.ID + " was taken back: " + r.Ended.Reason
	case r.State == journal.Trial:
		return fmt.Sprintf("upgrade %s is on trial: its programs are in place and have to prove themselves (start %d of %d)", r.Record.ID, r.Starts, journal.MostStarts)
	case r.State != journal.None:
		return fmt.Sprintf("upgrade %s is open (%s)", r.Record.ID, r.State)
	}
	return "no upgrade is open"
}
