package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/agent/host"
	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/service/control"
)

// Control answers what the local control door asks. How it is, an agent says from when it knows the builds that an earlier one
// left: who waits for them to end must not hear that there are none.
func (a *Agent) Control(ctx context.Context, r control.Request) (any, error) {
	switch r.Op {
	case control.OpStatus:
		select {
		case <-a.adopted:
			return a.Status(), nil
		case <-ctx.Done():
			return nil, errors.New("the agent is still starting")
		}
	case control.OpDrain:
		return nil, a.Drain()
	case control.OpResume:
		return nil, a.Resume()
	case control.OpReload:
		return nil, a.Reload()
	case control.OpStop:
		a.Stop(r.Now)
		return nil, nil
	case control.OpRestart:
		a.Restart()
		return nil, nil
	case control.OpUpgrade:
		return nil, a.UpgradeFrom(r.From, r.Force)
	case control.OpRollback:
		return nil, a.Rollback(r.Version)
	}
	return nil, unknownOp(r.Op)
}

func unknownOp(op control.Op) error { return fmt.Errorf("this agent does not know %.40q", op) }

// Status is how the agent is at this moment.
func (a *Agent) Status() control.Status {
	s, v := a.Store.Settings(), a.knownVersions()
	phase, drain := a.phase()
	status := control.Status{
		PID: os.Getpid(), Version: a.Version, Since: a.began, User: a.user, Phase: phase, Ready: a.teller.ready.Load(), Debug: a.debugMode(),
		Drain: drain, Server: a.health.server(), Versions: control.Versions{Worker: v.Worker, JDK: v.JDK}, Builds: []control.Build{},
		Disk:    control.Disk{Path: a.Installation.Home, Needed: leastFree},
		Upgrade: a.changes.status(), Worker: a.workerLost.Load(), Overrides: []control.Override{},
	}
	if status.Versions.JDK == nil {
		status.Versions.JDK = []string{}
	}
	status.Server.Gateway, status.Server.Waits = wire.BaseURL(s.Gateway), a.waits.Load()
	status.Server.Protocol = string(config.Ask)
	if a.splits.Load() || a.config.Load().Protocol == config.Split {
		status.Server.Protocol = string(config.Split)
	}
	for _, held := range a.slots.Held() {
		status.Builds = append(status.Builds, control.Build{Project: held.Build.Project, Build: held.Build.ID, VMSeq: held.Build.VMSeq,
			PID: held.PID, Since: held.Since})
	}
	status.Slots.Parallel, status.Slots.DockerParallel = a.slots.Limits()
	status.Slots.Running, status.Slots.DockerRunning = a.slots.Count()
	status.Disk.Free, _ = host.FreeBytes(a.Installation.Home) // 0 is what a disk that cannot be asked has
	a.mu.Lock()
	status.Reports = len(a.reports)
	a.mu.Unlock()
	status.Upgrade.Mode = string(a.config.Load().Upgrade.Mode)
	if item := a.wanted.Load(); item != nil {
		status.Upgrade.Pending = pendingUpgrade(*item)
	}
	for _, o := range a.Store.Overrides() {
		status.Overrides = append(status.Overrides, control.Override{Key: o.Key, Setting: o.Setting, Value: o.Effective})
	}
	return status
}

// pendingUpgrade names the parts that the server wants replaced.
func pendingUpgrade(item wire.UpgradeItem) string {
	var parts []string
	for _, part := range []struct {
		name   string
		wanted bool
	}{{"agent", item.Agent}, {"worker", item.Worker}, {"JDK", item.JDK}, {"container entry script", item.DockerInitFile}} {
		if part.wanted {
			parts = append(parts, part.name)
		}
	}
	return strings.Join(parts, ", ")
}

// sentence is how the agent is, for the keeper's one line of status.
func (a *Agent) sentence(now time.Time) string {
	phase, drain := a.phase()
	server := a.health.server()
	hosts, dockers := a.slots.Count()
	running := hosts + dockers
	doing := "idle"
	if running > 0 {
		doing = builds(running)
	}
	trouble := serverTrouble(server, now)
	var parts []string
	switch {
	case phase == control.Stopping && running > 0:
		parts = append(parts, "draining: "+doing+", stops at "+drain.Until.Local().Format(time.TimeOnly))
	case phase == control.Stopping:
		parts = append(parts, "stopping")
	case phase == control.Draining:
		parts = append(parts, "draining: "+doing+", takes no more until \"devopsAgent resume\"")
	case phase == control.Starting && trouble == "":
		parts = append(parts, "starting: waiting for the server "+wire.BaseURL(a.Store.Settings().Gateway))
	}
	if a.diskFull.Load() {
		parts = append(parts, fmt.Sprintf("disk full: builds need %d MiB free in %s", leastFree>>20, a.Installation.Home))
	}
	if a.workerLost.Load() {
		parts = append(parts, "no worker: put worker-agent.jar or devopsWorker into "+a.Installation.Home)
	}
	if trouble != "" {
		parts = append(parts, trouble)
	}
	switch {
	case phase == control.Running:
		parts = append(parts, doing)
	case phase == control.Starting && running > 0:
		parts = append(parts, doing)
	}
	if server.Failing == nil && server.LastContact != nil {
		parts[len(parts)-1] += ", last contact " + now.Sub(*server.LastContact).Round(time.Second).String() + " ago"
	}
	if text := a.changes.sentence(now); text != "" {
		parts = append(parts, text)
	}
	if text := a.unread.Load(); text != nil {
		parts = append(parts, "agent.toml not read again: "+brief(*text))
	}
	return strings.Join(parts, "; ")
}
