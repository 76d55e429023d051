package agent

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/service/proc"
)

// heartbeat says how this agent is (protocol §1.6.3).
func (a *Agent) heartbeat() wire.Heartbeat {
	s, v := a.Store.Settings(), a.knownVersions()
	jdk := v.JDK
	if jdk == nil {
		jdk = []string{}
	}
	return wire.Heartbeat{
		MasterVersion:       a.Version,
		SlaveVersion:        v.Worker,
		HostName:            a.hostName(),
		AgentIP:             a.currentIP(),
		ParallelTaskCount:   s.Parallel,
		AgentInstallPath:    a.Installation.Home,
		StartedUser:         a.user,
		TaskList:            a.slots.Running(),
		Props:               wire.HostProps{Arch: a.GOARCH, JDKVersion: jdk, DockerInit: a.dockerInit(s), OSVersion: a.system},
		DockerParallelCount: s.DockerParallel,
		DockerTaskList:      a.slots.RunningDocker(),
		ErrorExitData:       a.exitError.Load(),
	}
}

// dockerInit is the digest of the container entry script, where docker is in use (protocol §1.6.3).
func (a *Agent) dockerInit(s config.Settings) wire.DockerInit {
	if a.GOOS != "linux" || !s.DockerEnable {
		return wire.DockerInit{}
	}
	init := wire.DockerInit{NeedUpgrade: true}
	if data, err := os.ReadFile(a.Installation.Path("agent_docker_init.sh")); err == nil {
		sum := md5.Sum(data)
		init.FileMD5 = hex.EncodeToString(sum[:])
	}
	return init
}

// heard takes over what a heartbeat brought (protocol §1.7.3), field by field.
func (a *Agent) heard(ctx context.Context, reply *wire.HeartbeatReply) error {
	if reply == nil {
		return nil
	}
	before := a.Store.Settings()
	changes, err := a.Store.Apply(reply)
	for _, c := range changes {
		a.Log.Info("Setting changed by the server", "key", c.Key, "from", c.From, "to", c.To)
	}
	if err != nil {
		a.Log.Warn("Settings from the server not all taken over", "err", err)
	}
	s := a.Store.Settings()
	a.slots.SetLimits(s.Parallel, s.DockerParallel)
	if before.HTTPProxy != s.HTTPProxy || before.HTTPSProxy != s.HTTPSProxy || before.NoProxy != s.NoProxy {
		a.newHTTP()
	}
	a.pushEnvs(reply.Envs)
	if !slices.Equal(before.IgnoreLocalIPs, s.IgnoreLocalIPs) && slices.Contains(s.IgnoreLocalIPs, a.currentIP()) {
		a.ip.Store(nil)
	}
	if gateway := a.Store.PendingGateway(); gateway != "" {
		a.tryGateway(ctx, gateway)
	}
	if reply.CreateMod != nil && !a.creator.Swap(true) && *reply.CreateMod { // once in a process life
		return onlyCreator()
	}
	return nil
}

// tryGateway moves to another gateway once that has answered with our identity. A server that sends a wrong address
// would otherwise lose its whole fleet with one heartbeat.
func (a *Agent) tryGateway(ctx context.Context, gateway string) {
	a.mu.Lock()
	recent := time.Since(a.failed[gateway]) < time.Minute
	a.mu.Unlock()
	if recent || a.probing.Swap(true) {
		return
	}
	a.work.Go(func() {
		defer a.probing.Store(false)
		there := a.client()
		there.Gateway = gateway
		status, err := there.Startup(ctx, a.startupMessage())
		if err != nil { // a server may be picky about a second startup; its status will do
			var again error
			if status, again = there.Status(ctx); again == nil {
				err = nil
			}
		}
		if err == nil && status == wire.Deleted {
			err = errors.New("it does not know this agent")
		}
		if err != nil {
			a.mu.Lock()
			a.failed[gateway] = time.Now()
			if len(a.failed) > 100 {
				clear(a.failed)
			}
			a.mu.Unlock()
			a.Log.Warn("New gateway not taken over", "gateway", gateway, "err", err)
			return
		}
		changes, err := a.Store.SetGateway(gateway)
		for _, c := range changes {
			a.Log.Info("Setting changed by the server", "key", c.Key, "from", c.From, "to", c.To)
		}
		if err != nil {
			a.Log.Warn("New gateway not written down", "gateway", gateway, "err", err)
		}
		a.waits.Store(false)
		a.ip.Store(nil)
	})
}

// deletion counts how often in a row the server has said that this agent is deleted. An agent is removed only when
// it has said so several times after an accepted startup (weakness W-07): a server says it of an agent that was
// never imported as well, so where no IMPORT_OK was ever seen startup is tried once more between.
type deletion struct {
	times int
}

// said is told what each heartbeat brought, and returns service.ErrRemoved when it is time to go.
func (d *deletion) said(ctx context.Context, a *Agent, status wire.AgentStatus) error {
	a.health.says(status)
	switch {
	case status == wire.ImportOK:
		a.imported.Store(true)
		d.times = 0
		return nil
	case status != wire.Deleted || !a.started.Load():
		d.times = 0
		return nil
	}
	d.times++
	if d.times == 1 {
		a.Log.Warn("Server says that this agent was deleted; asking again before anything is removed")
	}
	needed := 3
	if !a.imported.Load() {
		needed = 4
		if d.times == 2 {
			if err := a.startup(ctx); err != nil {
				a.Log.Warn("Startup not accepted", "err", err)
				d.times = 0
			}
			if a.imported.Load() {
				d.times = 0
			}
		}
	}
	if d.times < needed {
		return nil
	}
	return a.remove()
}

// remove starts the uninstaller and ends the agent for good (protocol §3.8). Builds under way go on; files stay.
func (a *Agent) remove() error {
	name := "upgrader"
	if a.GOOS == "windows" {
		name += ".exe"
	}
	program := a.Installation.Path("tmp", name)
	if _, err := os.Stat(program); errors.Is(err, os.ErrNotExist) { // ours lies in home as well
		program = a.Installation.Path(name)
	}
	a.Log.Error("This agent was deleted in BK-CI; uninstalling", "program", program)
	err := os.Chmod(program, 0o700)
	if err == nil {
		_, err = proc.Start(proc.Command{Path: program, Args: []string{"-action=uninstall"}, Dir: a.Installation.Home})
	}
	if err != nil {
		a.Log.Error("Uninstaller not started; the agent stays down all the same", "err", err)
		return fmt.Errorf("%w (uninstaller: %w)", service.ErrRemoved, err)
	}
	return service.ErrRemoved
}
