package service

import (
	"context"
	"errors"
	"time"
)

// Keeper names what restarts an agent. The words are those that "devopsAgent status" prints.
type Keeper string

// The four keepers; systemd and launchd also keep agents of plain users.
const (
	KeeperSystemd     Keeper = "systemd"
	KeeperSystemdUser Keeper = "systemd-user"
	KeeperLaunchd     Keeper = "launchd"
	KeeperLaunchAgent Keeper = "launchd-user"
	KeeperSCM         Keeper = "scm"
	KeeperDaemon      Keeper = "daemon" // devopsDaemon, unprivileged
	KeeperNone        Keeper = "none"   // started by hand
)

// Supervisor is the keeper of one installation. Every method is idempotent: what is already so is no error.
type Supervisor interface {
	// Keeper says which one this is.
	Keeper() Keeper
	// Name is what the keeper calls the agent: a unit, a label, a service. "" for the daemon.
	Name() string
	// Install registers the agent, so that it starts with the machine (or login), and does not start it.
	Install(ctx context.Context, s Setup) error
	// Uninstall stops the agent and takes back what Install did. Home stays.
	Uninstall(ctx context.Context) error
	// Start starts the agent and returns when the keeper has it.
	Start(ctx context.Context) error
	// Stop stops the agent and returns when it has ended: it drains first, up to drain.timeout. ctx bounds the waiting,
	// not the draining.
	Stop(ctx context.Context) error
	// Restart replaces the running agent by a fresh one; running builds are left alone where the keeper allows it.
	Restart(ctx context.Context) error
	// State asks the keeper. A keeper that is not there or cannot be asked is an error; an agent it does not know is not.
	State(ctx context.Context) (State, error)
}

// Setup is what an installation is registered with.
type Setup struct {
	Home    string        // absolute
	Vendor  string        // directory of a package's programs; "" for a portable installation
	Config  string        // path of agent.toml
	User    string        // account the agent runs as; "" for the one that installs
	Drain   time.Duration // drain.timeout
	Session bool          // Windows: in the session of the user who is logged on
	Linger  bool          // user keepers: go on after logout where the system allows it
	Reboot  bool          // the daemon: an @reboot line in the user's crontab
}

// State is what a keeper knows about an agent.
type State struct {
	Installed bool
	Enabled   bool      // starts with the machine or login
	Running   bool      // the keeper has a process
	PID       int       // of that process, 0 for none
	Since     time.Time // it has been running or down since then; zero when the keeper does not say
	Restarts  int       // how often the keeper started it again; -1 when it does not count
	Detail    string    // in the keeper's own words: "active (running)", "activating (auto-restart)", "failed (exit-code)"
	ExitCode  int       // of the last end, -1 when unknown
	StayDown  bool      // it ended with ExitStayDown and is left alone
}

// ErrNoKeeper: this machine does not have the keeper that was asked for.
var ErrNoKeeper = errors.New("not available on this machine")
