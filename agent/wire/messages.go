package wire

import "encoding/json"

// AgentStatus is the server's view of an agent (protocol §1.4.1). Unknown texts mean "not ok".
type AgentStatus string

// The states of an agent record (protocol §1.4.1).
const (
	UnImport        AgentStatus = "UN_IMPORT"
	UnImportOK      AgentStatus = "UN_IMPORT_OK"
	ImportOK        AgentStatus = "IMPORT_OK"
	ImportException AgentStatus = "IMPORT_EXCEPTION"
	Deleted         AgentStatus = "DELETE"
)

// BuildKind is what an agent has room for when it claims (protocol §1.4.2).
type BuildKind string

// The kinds of a claim. None exists only inside ask.
const (
	All    BuildKind = "ALL"
	Docker BuildKind = "DOCKER"
	Binary BuildKind = "BINARY"
	None   BuildKind = "NONE"
)

// Startup is the first thing an agent says (protocol §1.6.1).
type Startup struct {
	HostName      string `json:"hostname"`
	HostIP        string `json:"hostIp"`
	DetectOS      string `json:"detectOS"`      // linux, windows, macos, other
	MasterVersion string `json:"masterVersion"` // of the agent
	Version       string `json:"version"`       // of the worker, "" when not known
}

// Running is one running host build in a heartbeat.
type Running struct {
	Project   string `json:"projectId"`
	Build     string `json:"buildId"`
	VMSeq     string `json:"vmSeqId"`
	Workspace string `json:"workspace"`
}

// RunningDocker is one running container build in a heartbeat.
type RunningDocker struct {
	Project string `json:"projectId"`
	Build   string `json:"buildId"`
	VMSeq   string `json:"vmSeqId"`
}

// DockerInit tells the server about agent_docker_init.sh; both members are always sent.
type DockerInit struct {
	FileMD5     string `json:"fileMd5"`
	NeedUpgrade bool   `json:"needUpgrade"`
}

// HostProps are the properties of the host in a heartbeat (protocol §1.6.3).
type HostProps struct {
	Arch       string     `json:"arch"`       // Go architecture name
	JDKVersion []string   `json:"jdkVersion"` // three lines, or [] when there is no JDK; never null
	DockerInit DockerInit `json:"dockerInitFileMd5"`
	OSVersion  string     `json:"osVersion"`
}

// ExitError says why an agent cannot work any more (protocol §1.4.2, §1.6.11).
type ExitError struct {
	Enum    string `json:"errorEnum"`
	Message string `json:"message"`
}

// Heartbeat is sent every 10 s to its own endpoint, or inside every Ask (protocol §1.6.3).
type Heartbeat struct {
	MasterVersion       string          `json:"masterVersion"`
	SlaveVersion        string          `json:"slaveVersion"`
	HostName            string          `json:"hostName"`
	AgentIP             string          `json:"agentIp"`
	ParallelTaskCount   int             `json:"parallelTaskCount"`
	AgentInstallPath    string          `json:"agentInstallPath"`
	StartedUser         string          `json:"startedUser"`
	TaskList            []Running       `json:"taskList"` // null when nothing runs
	Props               HostProps       `json:"props"`
	DockerParallelCount int             `json:"dockerParallelTaskCount"`
	DockerTaskList      []RunningDocker `json:"dockerTaskList"` // [] when nothing runs; never null
	ErrorExitData       *ExitError      `json:"errorExitData"`  // null normally
}

// HeartbeatReply is what the server wants changed. A nil member was absent, null, or of a wrong type: keep the
// old value. Names are matched in any letter case (protocol statement 8).
type HeartbeatReply struct {
	MasterVersion       string            `json:"masterVersion"`
	SlaveVersion        string            `json:"slaveVersion"`
	AgentStatus         AgentStatus       `json:"agentStatus"`
	ParallelTaskCount   *int              `json:"parallelTaskCount"`
	DockerParallelCount *int              `json:"dockerParallelTaskCount"`
	Envs                map[string]string `json:"envs"`
	Gateway             *string           `json:"gateway"`
	FileGateway         *string           `json:"fileGateway"`
	Props               *ReplyProps       `json:"props"`
	Language            *string           `json:"language"`
	CreateMod           *bool             `json:"createMod"` // Windows only
}

// ReplyProps are user properties of the machine, kept by the server.
type ReplyProps struct {
	IgnoreLocalIPs *string `json:"ignoreLocalIps"`
	KeepLogsHours  *int    `json:"keepLogsHours"`
	EnablePipeline *bool   `json:"enablePipeline"`
}

// UpgradeCheck asks whether the server wants other parts here (protocol §1.6.4). An empty JDKVersion means
// "no usable JDK" and makes the server order one: do not send it before the JDK has been looked at.
type UpgradeCheck struct {
	WorkerVersion  string     `json:"workerVersion"`
	GoAgentVersion string     `json:"goAgentVersion"`
	JDKVersion     []string   `json:"jdkVersion"`
	DockerInit     DockerInit `json:"dockerInitFileInfo"`
}

// UpgradeItem is the server's answer: the parts it wants replaced.
type UpgradeItem struct {
	Agent          bool `json:"agent"`
	Worker         bool `json:"worker"`
	JDK            bool `json:"jdk"`
	DockerInitFile bool `json:"dockerInitFile"`
}

// Any reports whether at least one part is to be replaced.
func (u UpgradeItem) Any() bool { return u.Agent || u.Worker || u.JDK || u.DockerInitFile }

// Credential is a registry login for a docker build.
type Credential struct {
	User     string `json:"user"`
	Password Secret `json:"password"`
	ErrMsg   string `json:"errMsg"`
}

// DockerOptions are docker run options in their command line syntax.
type DockerOptions struct {
	Volumes    []string `json:"volumes,omitempty"`
	Mounts     []string `json:"mounts,omitempty"`
	GPUs       string   `json:"gpus,omitempty"`
	Privileged *bool    `json:"privileged,omitempty"`
	Network    []string `json:"network,omitempty"`
	User       string   `json:"user,omitempty"`
}

// DockerBuild is present when a build is to run in a container (protocol §1.6.7).
type DockerBuild struct {
	Agent           string         `json:"agentId"`
	Secret          Secret         `json:"secretKey"`
	Image           string         `json:"image"`
	Credential      *Credential    `json:"credential,omitempty"`
	Options         *DockerOptions `json:"options,omitempty"`
	ImagePullPolicy string         `json:"imagePullPolicy,omitempty"`
}

// Build is one claimed job (protocol §1.6.7). Its JSON, Base64 encoded, is also the worker's last argument.
type Build struct {
	Project         string       `json:"projectId"`
	ID              string       `json:"buildId"`
	VMSeq           string       `json:"vmSeqId"`
	Workspace       string       `json:"workspace"`
	Pipeline        string       `json:"pipelineId"`
	Docker          *DockerBuild `json:"dockerBuildInfo"`
	ExecuteCount    *int         `json:"executeCount"`
	ContainerHashID string       `json:"containerHashId"`
}

// BuildError is why a build failed before or around its worker (protocol §1.6.8).
type BuildError struct {
	Type    string `json:"errorType"` // always "USER"
	Message string `json:"errorMessage"`
	Code    int    `json:"errorCode"`
}

// Finish reports the end of a build: the claimed job and how it ended (protocol §1.6.8).
type Finish struct {
	Build
	Success bool        `json:"success"`
	Message string      `json:"message"`
	Error   *BuildError `json:"error"` // null on success
}

// The types and states of a pipeline task (protocol §1.4.2).
const (
	PipelineCommand   = "COMMAND"
	PipelineFile      = "FILE"
	PipelineExecuting = "EXECUTING"
	PipelineFailure   = "FAILURE"
	PipelineSuccess   = "SUCCESS"
)

// Pipeline is a script that the server wants run on this machine (protocol §1.6.9).
type Pipeline struct {
	Type      string `json:"type"`
	SeqID     string `json:"seqId"`
	Command   string `json:"command,omitempty"`
	Operation string `json:"operation,omitempty"`
	File      string `json:"file,omitempty"`
}

// PipelineReport is a state change of a pipeline task.
type PipelineReport struct {
	SeqID    string `json:"seqId"`
	Status   string `json:"status"`
	Response string `json:"response"`
}

// Debug is a docker login debugging session asked for (protocol §1.6.10).
type Debug struct {
	Project     string         `json:"projectId"`
	Build       string         `json:"buildId"`
	VMSeq       string         `json:"vmSeqId"`
	Workspace   string         `json:"workspace"`
	Pipeline    string         `json:"pipelineId"`
	DebugUserID string         `json:"debugUserId"`
	DebugID     int64          `json:"debugId"`
	Image       string         `json:"image"`
	Credential  *Credential    `json:"credential"`
	Options     *DockerOptions `json:"options"`
}

// DebugReport answers a Debug, once.
type DebugReport struct {
	Project  string      `json:"projectId"`
	DebugID  int64       `json:"debugId"`
	Pipeline string      `json:"pipelineId"`
	DebugURL string      `json:"debugUrl"`
	Success  bool        `json:"success"`
	Error    *BuildError `json:"error"`
}

// AskEnable says which parts of an Ask are wanted (protocol §1.7.2). All four are always sent.
type AskEnable struct {
	Build       BuildKind `json:"build"`
	Upgrade     bool      `json:"upgrade"`
	DockerDebug bool      `json:"dockerDebug"`
	Pipeline    bool      `json:"pipeline"`
}

// Ask is heartbeat, claim, upgrade check, pipeline and debug fetch in one call (protocol §1.7.2).
type Ask struct {
	Enable    AskEnable     `json:"askEnable"`
	Heartbeat Heartbeat     `json:"heartbeat"`
	Upgrade   *UpgradeCheck `json:"upgrade"` // null unless Enable.Upgrade
}

// AskReply holds the five parts undecoded: each is decoded on its own, so that one spoilt part does not cost
// the others. A missing or null part is nil.
type AskReply struct {
	Heartbeat json.RawMessage `json:"heartbeat"`
	Build     json.RawMessage `json:"build"`
	Upgrade   json.RawMessage `json:"upgrade"`
	Pipeline  json.RawMessage `json:"pipeline"`
	Debug     json.RawMessage `json:"debug"`
}

// LogLine is one line of a build's log (protocol §1.6.12, §6.8).
type LogLine struct {
	Message         string  `json:"message"`
	Timestamp       int64   `json:"timestamp"` // milliseconds since 1970
	Tag             string  `json:"tag"`
	SubTag          *string `json:"subTag"`
	JobID           string  `json:"jobId"`
	StepID          string  `json:"stepId"`
	ContainerHashID string  `json:"containerHashId"`
	LogType         string  `json:"logType"` // LOG, DEBUG, ERROR, WARN
	ExecuteCount    *int    `json:"executeCount"`
}

// Types of a log line (protocol §1.4.2).
const (
	LogNormal = "LOG"
	LogDebug  = "DEBUG"
	LogError  = "ERROR"
	LogWarn   = "WARN"
)
