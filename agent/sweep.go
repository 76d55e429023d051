package agent

import (
	"context"
	"io/fs"
	"os"
	"time"

	"github.com/devops-agent/devops-agent/agent/job"
)

// sweep removes what has grown old, at the start and every 2 h (protocol §3.9): crash dumps of the JVM, logs, and
// logs of containers. With them goes what upgrades have left; after one that was in the way of that, it is looked at again.
func (a *Agent) sweep(ctx context.Context) error {
	var upgrades time.Duration // until those are looked at
	for old := time.Duration(0); ; {
		if old <= 0 {
			hours := time.Duration(a.Store.Settings().KeepLogsHours+1) * time.Hour // "more than so many whole hours"
			a.sweepOnce(time.Now().Add(-hours))
			old = sweepEvery
		}
		if upgrades <= 0 {
			upgrades = a.sweepUpgrades(ctx)
		}
		pause := min(old, upgrades)
		if !sleep(ctx, pause) {
			return nil
		}
		old, upgrades = old-pause, upgrades-pause
	}
}

func (a *Agent) sweepOnce(before time.Time) {
	keep := map[string]bool{a.Installation.Path("logs", "devopsAgent.log"): true}
	for _, b := range a.slots.Builds() {
		keep[a.Installation.Path("logs", b.ID+"_"+b.VMSeq+"_agent.log")] = true
	}
	job.Expire(a.Log, a.Installation.Path("hs_err_pid*"), before, nil)
	job.Expire(a.Log, a.Installation.Path("logs", "*.log"), before, keep)
	a.sweepContainers(before)
}

func (a *Agent) sweepContainers(before time.Time) {
	root, err := os.OpenRoot(a.Installation.Path("docker_workspace", "logs"))
	if err != nil {
		return // no container has ever run here
	}
	defer func() { _ = root.Close() }()
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		a.Log.Warn("Old container logs not cleaned", "err", err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !e.IsDir() || !info.ModTime().Before(before) {
			continue
		}
		if err := root.RemoveAll(e.Name()); err != nil {
			a.Log.Warn("Old container logs not removed", "name", e.Name(), "err", err)
		}
	}
}
