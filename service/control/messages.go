package control

import "time"

// Op is what is asked.
type Op string

// What can be asked of an agent; a daemon knows status, stop and restart.
const (
	OpStatus  Op = "status"  // answers with a Status (agent) or DaemonStatus (daemon)
	OpDrain   Op = "drain"   // take no new builds; those that run go on
	OpResume  Op = "resume"  // take builds again
	OpReload  Op = "reload"  // read agent.toml again
	OpStop    Op = "stop"    // drain, then end; with Now stop the builds at once
	OpRestart Op = "restart" // end and leave the builds running: the keeper brings the next agent, which adopts them

	OpUpgrade  Op = "upgrade"  // begin an upgrade from the directory From; how it goes is in Status.Upgrade
	OpRollback Op = "rollback" // begin to go back to Version of the agent, "" for the one before
)

// Request is one question: one line of JSON.
type Request struct {
	Op      Op     `json:"op"`
	Now     bool   `json:"now,omitempty"`
	From    string `json:"from,omitempty"`    // absolute path of a directory with new parts; the agent removes it when it lies in tmp/
	Force   bool   `json:"force,omitempty"`   // also what was taken back here, and against upgrade.mode
	Version string `json:"version,omitempty"` // of the agent
}

// Status is what a running agent says about itself. It is part of "devopsAgent status --json": fields are added, never
// changed (docs/status.schema.json). Times are RFC 3339; a zero time is left out.
type Status struct {
	PID       int        `json:"pid"`
	Version   string     `json:"version"`
	Since     time.Time  `json:"since"`
	User      string     `json:"user"`
	Phase     Phase      `json:"phase"`
	Ready     bool       `json:"ready"`
	Debug     bool       `json:"debug"`
	Drain     *Drain     `json:"drain,omitempty"`
	Server    Server     `json:"server"`
	Versions  Versions   `json:"versions"`
	Builds    []Build    `json:"builds"`
	Slots     Slots      `json:"slots"`
	Reports   int        `json:"reports_pending"`
	Disk      Disk       `json:"disk"`
	Upgrade   Upgrade    `json:"upgrade"`
	Worker    bool       `json:"worker_missing"` // no worker could be found for the last build
	Overrides []Override `json:"overrides"`
}

// Idle reports whether an agent builds nothing, upgrades nothing and is not about to end.
func (s Status) Idle() bool {
	return len(s.Builds) == 0 && s.Slots.Running == 0 && s.Slots.DockerRunning == 0 && s.Upgrade.Phase == "" && s.Phase != Stopping
}

// Phase is what the agent is doing with its life.
type Phase string

// The phases.
const (
	Unenrolled Phase = "unenrolled" // no identity yet: waits for one, or tries to get one
	Starting   Phase = "starting"   // no startup answered yet
	Running    Phase = "running"
	Draining   Phase = "draining" // by "devopsAgent drain": takes no builds, goes on living
	Stopping   Phase = "stopping" // by a signal or "stop": ends when its builds have
)

// Drain says what is waited for.
type Drain struct {
	Since time.Time  `json:"since"`
	Until *time.Time `json:"until,omitempty"` // when builds are stopped; nil while draining without an end
}

// Server is the last word of and to the server.
type Server struct {
	Gateway     string     `json:"gateway"`
	Protocol    string     `json:"protocol"` // "ask", "split"
	AgentStatus string     `json:"agent_status"`
	LastContact *time.Time `json:"last_contact,omitempty"` // last good answer
	Failing     *time.Time `json:"failing_since,omitempty"`
	Error       string     `json:"error,omitempty"`          // of the last try, when that failed
	Problem     Problem    `json:"problem,omitempty"`        // what kind of error that is
	Hint        string     `json:"hint,omitempty"`           // what to do about that very error, where it is known
	ClockOffset *float64   `json:"clock_offset_s,omitempty"` // seconds this machine's clock is ahead of the server's
	Waits       bool       `json:"waits"`                    // the server holds questions (Prefer: wait)
}

// Problem is a kind of trouble with the server.
type Problem string

// The kinds.
const (
	Unreachable Problem = "unreachable" // no connection, no answer, no such name
	Refused     Problem = "refused"     // HTTP 401, 403: identity or secret not accepted
	Certificate Problem = "certificate" // TLS: expired, unknown authority, wrong name
	Clock       Problem = "clock"       // TLS or answer says that this machine's clock is wrong
	Deleted     Problem = "deleted"     // the server says that this agent was deleted
	ServerError Problem = "server-error"
)

// Versions of the parts.
type Versions struct {
	Worker string   `json:"worker"`
	JDK    []string `json:"jdk"`
}

// Build is one that runs here.
type Build struct {
	Project string    `json:"project"`
	Build   string    `json:"build"`
	VMSeq   string    `json:"vm_seq"`
	PID     int       `json:"pid"`
	Since   time.Time `json:"since"`
}

// Slots are limits and use; a limit of 0 is none.
type Slots struct {
	Parallel       int `json:"parallel"`
	Running        int `json:"running"`
	DockerParallel int `json:"docker_parallel"`
	DockerRunning  int `json:"docker_running"`
}

// Disk is the room on the file system of home, in bytes.
type Disk struct {
	Path   string `json:"path"`
	Free   uint64 `json:"free_bytes"`
	Needed uint64 `json:"needed_bytes"`
}

// Upgrade is what is known about upgrades.
type Upgrade struct {
	Mode    string       `json:"mode"`              // upgrade.mode of agent.toml
	Pending string       `json:"pending,omitempty"` // what the server wants and this agent has not taken
	Phase   UpgradePhase `json:"phase,omitempty"`   // of the upgrade that is under way; "" while none is
	Attempt string       `json:"attempt,omitempty"` // its id, from replacing on
	To      string       `json:"to,omitempty"`      // what it brings, for people
	Since   *time.Time   `json:"since,omitempty"`   // when the phase began
	Starts  int          `json:"starts,omitempty"`  // of a version on trial
	Refused string       `json:"refused,omitempty"` // why the last upgrade did not get as far as replacing anything
	Left    string       `json:"left,omitempty"`    // the version that was rolled back by hand, and when; it is not taken from the server again
	Last    *UpgradeEnd  `json:"last,omitempty"`    // the last one that did
}

// UpgradePhase is how far an upgrade is.
type UpgradePhase string

// The phases of an upgrade.
const (
	Downloading UpgradePhase = "downloading"
	Checking    UpgradePhase = "checking"
	Waiting     UpgradePhase = "waiting" // until nothing builds
	Replacing   UpgradePhase = "replacing"
	OnTrial     UpgradePhase = "trial" // the agent that says so is new, and has not proved itself
)

// UpgradeEnd is how an upgrade ended.
type UpgradeEnd struct {
	ID     string    `json:"id"`
	Kind   string    `json:"kind"`  // server, file, tmp, vendor, rollback
	State  string    `json:"state"` // settled, rolled-back, failed
	To     string    `json:"to"`    // what it was to bring, for people
	Reason string    `json:"reason,omitempty"`
	Ended  time.Time `json:"ended"`
}

// Override is a setting of agent.toml that wins over what the server pushed or .agent.properties holds.
type Override struct {
	Key     string `json:"key"`
	Setting string `json:"setting"`
	Value   string `json:"value"`
}

// DaemonStatus is what devopsDaemon says about itself and its child.
type DaemonStatus struct {
	PID       int        `json:"pid"`
	Version   string     `json:"version"`
	Since     time.Time  `json:"since"`
	Child     int        `json:"child"`                // pid of the agent, 0 for none
	Adopted   bool       `json:"adopted"`              // somebody else started that agent
	Ready     bool       `json:"ready"`                // the agent has said that it works
	Sentence  string     `json:"status"`               // what the agent said last (STATUS= of sd_notify)
	Restarts  int        `json:"restarts"`             // agents started after the first
	NextStart *time.Time `json:"next_start,omitempty"` // while a crash loop is slowed down
	LastExit  string     `json:"last_exit,omitempty"`
}
