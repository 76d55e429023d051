package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/recovery"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/service/control"
	"github.com/devops-agent/devops-agent/upgrader/journal"
)

// guard watches a new version until its trial is over, from outside: whatever the new version does, and whoever ends it, the old
// one comes back. With --finish it first does what is left when the upgrader that started it was killed; with --daemon,
// where devopsDaemon keeps the agent, it looks after a new one of it, which nobody else keeps. With --detach it starts itself once more and ends, so that it is
// nobody's child: the agent must not find one that it never started.
func guard(ctx context.Context, args []string) (err error) {
	var home string
	var detached, finish, daemon bool
	f := flags()
	f.StringVar(&home, "home", "", "")
	f.BoolVar(&detached, "detach", false, "")
	f.BoolVar(&finish, "finish", false, "")
	f.BoolVar(&daemon, "daemon", false, "")
	if helped, err := parse(f, args); helped || err != nil {
		return err
	}
	if home == "" {
		return &usageError{errors.New("guard: --home is missing")}
	}
	inst, err := service.Open(home)
	if err != nil {
		return err
	}
	if detached {
		again := []string{"guard", "--home", inst.Home}
		if finish {
			again = append(again, "--finish")
		}
		if daemon {
			again = append(again, "--daemon")
		}
		return spawn(inst, again...)
	}
	log, err := openLog(inst, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	h := recovery.New(inst, "", log.Logger)
	if finish {
		if err := finishUpgrade(ctx, h); err != nil {
			log.Error("Upgrade not finished", "err", err)
		}
	}
	if daemon && daemonOnTrial(h) {
		if err := watchDaemon(ctx, h); err != nil {
			log.Error("New devopsDaemon is not looked after", "err", err)
		}
	}
	h.Guard(ctx)
	if ctx.Err() != nil {
		return nil
	}
	return retire(ctx, inst, log.Logger, nil) // one that was taken back may still run where nobody noted its process
}

// finishUpgrade does what an upgrade does once it is written down, unless it has: it puts the programs into place, starts the new
// devopsDaemon, and has the old agent make room.
func finishUpgrade(ctx context.Context, h *recovery.Home) error {
	total, err := recovery.Lock(ctx, h.Inst, totalLimit)
	if err != nil {
		return err
	}
	if _, err = h.Finish(ctx); err == nil {
		err = handOver(ctx, h)
	}
	if err = errors.Join(err, total.Release()); err != nil {
		return err
	}
	return retire(ctx, h.Inst, h.Log, nil)
}

// handOver has the devopsDaemon that runs in a home replaced, if a new one is on trial. It is called under total-lock.
func handOver(ctx context.Context, h *recovery.Home) error {
	if !daemonOnTrial(h) {
		return nil
	}
	return replaceDaemon(ctx, h, false)
}

func daemonOnTrial(h *recovery.Home) bool {
	found, err := h.Journal.Current()
	if err != nil || found.State != journal.Trial {
		return false
	}
	_, daemon := found.Record.Of(journal.Daemon)
	return daemon
}

// spawnGuard starts a guard that is nobody's child.
func spawnGuard(inst *service.Installation, how ...string) error {
	cmd, err := self(inst, append([]string{"guard", "--home", inst.Home, "--detach"}, how...)...)
	if err != nil {
		return err
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("start a guard: %w", err)
	}
	return nil
}

// spawn starts this program again, on its own.
func spawn(inst *service.Installation, args ...string) error {
	cmd, err := self(inst, args...)
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", args[0], err)
	}
	return cmd.Process.Release()
}

// self is this program with other arguments, without terminal, keeper or open files.
func self(inst *service.Installation, args ...string) (*exec.Cmd, error) {
	own, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find my own file: %w", err)
	}
	cmd := exec.Command(own, args...)
	cmd.Dir, cmd.Env = inst.Home, recovery.Environ()
	detach(cmd)
	return cmd, nil
}

// Limits of a new devopsDaemon.
const (
	daemonTrial = 10 * time.Second // to take its role, answer, and go on doing so
	daemonLook  = 100 * time.Millisecond
	daemonFree  = 30 * time.Second // for the one before to be gone
)

// watchDaemon looks whether a new devopsDaemon takes its role and answers. If it does not, the upgrade is taken back and the old
// one started.
func watchDaemon(ctx context.Context, h *recovery.Home) error {
	live := h.Inst.Path("devopsDaemon")
	tick := time.NewTicker(daemonLook)
	defer tick.Stop()
	fits, why := false, ""
	for deadline := time.Now().Add(daemonTrial); time.Now().Before(deadline); { // to the end: it may end after a good answer
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if fits, why = daemonFits(ctx, h.Inst, live); !h.OnTrial() {
			return nil
		}
	}
	if fits {
		return nil
	}
	h.Log.Error("New devopsDaemon does not do its work", "why", why)
	total, err := recovery.Lock(ctx, h.Inst, startLimit)
	if err != nil {
		return err
	}
	_, err = h.Journal.Undo("the new devopsDaemon does not do its work: "+why, journal.Last{})
	err = errors.Join(err, replaceDaemon(ctx, h, true), total.Release())
	return errors.Join(err, retire(ctx, h.Inst, h.Log, nil))
}

// daemonFits reports whether the daemon of a home runs the file that is live, has its role and answers, as far as it is one that can
// be asked.
func daemonFits(ctx context.Context, inst *service.Installation, live string) (fits bool, why string) {
	holder, ok := inst.Holder(service.RoleDaemon)
	if !ok {
		return false, "it has not taken its role"
	}
	if same, known := holder.Runs(live); known && !same {
		return false, "it is not the one that runs"
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err := control.Call(ctx, inst.Home, string(service.RoleDaemon), control.Request{Op: control.OpStatus}, nil)
	if err == nil || errors.Is(err, control.ErrNobody) && foreign(live) {
		return true, ""
	}
	return false, "it does not answer: " + err.Error()
}

// retireLimit is how long an agent that was replaced has to end by itself.
const retireLimit = 10 * time.Second

// retire ends the agent that holds the role and runs another file than the live one, or is the process that is named: it is asked
// to make room, which leaves its builds running, and killed when it does not; its keeper brings the new one (protocol §4.6,
// statement 107). Nobody is killed who is not surely an agent (W-35).
func retire(ctx context.Context, inst *service.Installation, log *slog.Logger, old *service.Holder) error {
	live := inst.Path(service.ProgramName(runtime.GOOS, "devopsAgent"))
	outdated := func() (*service.Holder, bool) {
		holder, ok := inst.Holder(service.RoleAgent)
		if !ok {
			return nil, false
		}
		if same, known := holder.Runs(live); known {
			return holder, !same
		}
		return holder, old != nil && holder.PID == old.PID && holder.Started == old.Started
	}
	holder, ok := outdated()
	if !ok {
		return nil
	}
	patience := retireLimit
	err := control.Call(ctx, inst.Home, string(service.RoleAgent), control.Request{Op: control.OpRestart}, nil)
	if errors.Is(err, control.ErrNobody) { // an original, which nobody can ask; or one that is about to end
		patience = originalLimit
	}
	tick := time.NewTicker(daemonLook)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, ok := outdated()
		if !ok || now.PID != holder.PID {
			log.Info("Old agent has made room", "pid", holder.PID)
			return nil
		}
	}
	log.Warn("Old agent does not make room, so it is killed; its builds go on", "pid", holder.PID)
	if err := holder.Kill(); err != nil {
		return fmt.Errorf("end the old agent: %w", err)
	}
	return nil
}

// originalLimit is what an agent has to end that cannot be asked: the original's upgrader sleeps as long (protocol §4.6).
const originalLimit = 2 * time.Second
