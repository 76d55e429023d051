package recovery

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/upgrader/journal"
	"github.com/devops-agent/devops-agent/upgrader/version"
)

// Home is an installation whose upgrades are to be looked after.
type Home struct {
	Inst    *service.Installation
	Journal *journal.Journal
	Vendor  string // directory of a package's programs, "" for none
	Log     *slog.Logger
}

// New opens the journal of an installation and touches nothing.
func New(inst *service.Installation, vendor string, log *slog.Logger) *Home {
	return &Home{Inst: inst, Journal: journal.Open(inst, log), Vendor: vendor, Log: log}
}

// Start is what comes before each start of the agent, under total-lock, when none runs: the open upgrade is carried on, its start
// counted, and it is taken back when those are used up; where none is open, a package's new programs are taken over as far as
// agent.toml allows that. After an error, complete programs are in place all the same.
func (h *Home) Start(ctx context.Context, last journal.Last) (journal.Result, error) {
	result, err := h.Journal.Recover(ctx, last)
	if err != nil || result.State != journal.None || h.Vendor == "" {
		return result, err
	}
	mode, proof := h.Inst.UpgradePolicy()
	begun, err := h.Journal.Adopt(ctx, journal.Vendor{Dir: h.Vendor, Mode: mode, Proof: proof, Version: Version, Compare: version.Compare})
	if err != nil || !begun {
		return result, err
	}
	return h.Journal.Recover(ctx, journal.Last{})
}

// Finish carries on what was interrupted and counts no start, for who starts no agent. It is called under total-lock.
func (h *Home) Finish(ctx context.Context) (journal.Result, error) {
	found, err := h.Journal.Current()
	if err != nil {
		return h.Journal.Recover(ctx, journal.Last{}) // a damaged record is put aside
	}
	switch found.State {
	case journal.Ready:
		if err := h.Journal.Apply(ctx); err != nil {
			return journal.Result{}, err
		}
		now, err := h.Journal.Current()
		if err != nil || now.State == journal.None || now.State == journal.Trial && tried(now.Record) {
			return journal.Result{State: now.State, Record: found.Record, Starts: now.Starts}, err
		}
		return h.Journal.Recover(ctx, journal.Last{})
	case journal.Trial:
		if tried(found.Record) {
			return journal.Result{State: found.State, Record: found.Record, Starts: found.Starts}, nil
		}
	}
	return h.Journal.Recover(ctx, journal.Last{}) // neither counts a start from here
}

// tried reports whether starts prove the parts of a record.
func tried(r *journal.Record) bool {
	_, agent := r.Of(journal.Agent)
	_, daemon := r.Of(journal.Daemon)
	return agent || daemon
}

// GiveUp takes a version on trial back at once, whose program cannot be executed, and reports whether the old one is in its
// place. It is called under total-lock.
func (h *Home) GiveUp(cause error) bool {
	found, err := h.Journal.Current()
	if err != nil || found.State != journal.Trial {
		return false
	}
	result, err := h.Journal.Undo("it cannot be executed: "+cause.Error(), journal.Last{How: cause.Error()})
	if err != nil {
		h.Log.Error("New version cannot be executed, and is not taken back", "err", err)
		return false
	}
	return result.State == journal.None
}

// OnTrial reports whether a new version has to prove itself.
func (h *Home) OnTrial() bool {
	found, err := h.Journal.Current()
	return err == nil && found.State == journal.Trial
}

// Open reports whether an upgrade is open, in whatever state.
func (h *Home) Open() bool {
	found, err := h.Journal.Current()
	return err == nil && found.State != journal.None
}

// Guard watches new versions as long as one is on trial, and is there again when another guard is gone.
func (h *Home) Guard(ctx context.Context) {
	const retry = 2 * time.Second
	for h.OnTrial() {
		began := time.Now()
		if err := h.Journal.Guard(ctx, h.Inst, Patience()); err != nil {
			h.Log.Error("New version is not watched", "err", err)
		}
		timer := time.NewTimer(max(retry-time.Since(began), 0))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// EnvPatience is a variable for tests: how long a new version has to show a sign of life, where that is not journal.Patience.
const EnvPatience = "DEVOPS_TRIAL_PATIENCE"

// Patience is how long a new version has to show a sign of life.
func Patience() time.Duration {
	if d, err := time.ParseDuration(os.Getenv(EnvPatience)); err == nil && d > 0 && d < journal.Patience {
		return d
	}
	return journal.Patience
}

// VendorHere is the directory of this program where that is not home but holds the programs of a package; "" else.
func VendorHere(inst *service.Installation) string {
	own, err := os.Executable()
	if err != nil {
		return ""
	}
	if resolved, err := filepath.EvalSymlinks(own); err == nil {
		own = resolved
	}
	dir := filepath.Dir(own)
	home := inst.Home
	if resolved, err := filepath.EvalSymlinks(home); err == nil {
		home = resolved
	}
	if dir == home || dir == filepath.Join(home, "tmp") {
		return ""
	}
	if _, err := os.Stat(filepath.Join(dir, service.ProgramName(runtime.GOOS, "devopsAgent"))); err != nil {
		return ""
	}
	return dir
}

// Lock takes total-lock for what is done before a start. It makes runtime/, which a fresh home does not have.
func Lock(ctx context.Context, inst *service.Installation, limit time.Duration) (*service.Lock, error) {
	if err := os.MkdirAll(inst.Path("runtime"), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	return inst.HoldTotal(ctx, limit)
}
