package wire

// BuildVariables is the answer to a worker's "started" (protocol §6.3).
type BuildVariables struct {
	Build             string            `json:"buildId"`
	VMSeq             string            `json:"vmSeqId"`
	VMName            string            `json:"vmName"`
	Project           string            `json:"projectId"`
	Pipeline          string            `json:"pipelineId"`
	Variables         map[string]string `json:"variables"`
	VariablesWithType []TypedVariable   `json:"variablesWithType"`
	BuildEnvs         []BuildEnv        `json:"buildEnvs"`
	ContainerID       string            `json:"containerId"`
	ContainerHashID   string            `json:"containerHashId"`
	JobID             *string           `json:"jobId"`
	TimeoutMills      int64             `json:"timeoutMills"` // job limit, default 900 min
	ContainerType     *string           `json:"containerType"`
	LoggingLineLimit  *int              `json:"loggingLineLimit"` // in units of 10,000 lines, clamped to 1..100
	AsCode            *AsCode           `json:"pipelineAsCodeSettings"`
	FailIfInvalid     *bool             `json:"failIfVariableInvalid"`
}

// AsCode are the pipeline-as-code settings of a build.
type AsCode struct {
	Enable bool `json:"enable"`
}

// TypedVariable is a pipeline variable with what is known of it. Sensitive values are masked in logs.
type TypedVariable struct {
	Key       string `json:"key"`
	Value     any    `json:"value"`
	ValueType string `json:"valueType,omitempty"`
	ReadOnly  *bool  `json:"readOnly,omitempty"`
	Sensitive *bool  `json:"sensitive,omitempty"`
}

// BuildEnv is a tool environment; usually there is none on third-party machines.
type BuildEnv struct {
	Name    string            `json:"name"`
	Version string            `json:"version"`
	BinPath string            `json:"binPath"`
	Env     map[string]string `json:"env"`
}

// The states of a claimed task (protocol §6.4).
const (
	TaskDo   = "DO"
	TaskWait = "WAIT"
	TaskEnd  = "END"
)

// The task types that a native worker runs.
const (
	TaskLinuxScript   = "linuxScript"
	TaskWindowsScript = "windowsScript"
)

// OptionTimeoutSeconds is a member of the task parameter additionalOptions that our controller adds to timeout, in
// minutes, when a limit is no whole number of them. Other workers do not know it.
const OptionTimeoutSeconds = "timeoutSeconds"

// BuildTask is the answer to a worker's "claim" (protocol §6.4). All params are strings.
type BuildTask struct {
	Build          string            `json:"buildId"`
	VMSeq          string            `json:"vmSeqId"`
	Status         string            `json:"status"` // DO, WAIT, END
	ExecuteCount   *int              `json:"executeCount"`
	TaskID         *string           `json:"taskId"`
	ElementID      *string           `json:"elementId"`
	StepID         *string           `json:"stepId"`
	ElementName    *string           `json:"elementName"`
	ElementVersion *string           `json:"elementVersion"`
	Type           *string           `json:"type"`
	Params         map[string]string `json:"params"`
	BuildVariable  map[string]string `json:"buildVariable"`
	ContainerType  *string           `json:"containerType"`
	SignToken      *string           `json:"signToken"`
}

// TaskResult is a worker's "complete" (protocol §6.5).
type TaskResult struct {
	TaskID            string            `json:"taskId"`
	ElementID         string            `json:"elementId"`
	ElementVersion    *string           `json:"elementVersion"`
	ContainerID       *string           `json:"containerId"` // the container hash id
	Success           bool              `json:"success"`
	ExecuteCount      *int              `json:"executeCount"`
	BuildResult       map[string]string `json:"buildResult"` // never null
	Message           *string           `json:"message"`
	Type              *string           `json:"type"`
	ErrorType         *string           `json:"errorType"`
	ErrorCode         *int              `json:"errorCode"` // 0 on success
	PlatformCode      *string           `json:"platformCode"`
	PlatformErrorCode *int              `json:"platformErrorCode"`
	MonitorData       map[string]any    `json:"monitorData"`
	SensitiveKeys     []string          `json:"sensitiveKeys"`
}

// WorkerHeartbeat tells the server that the worker lives and how far its tasks are (protocol §6.6).
type WorkerHeartbeat struct {
	ProgressRate   map[string]float64        `json:"task2ProgressRate"`
	ProgressDetail map[string]map[string]any `json:"task2ProgressDetail"`
}

// WorkerHeartbeatReply carries the tasks that a user cancelled.
type WorkerHeartbeatReply struct {
	Project       string   `json:"projectId"`
	Build         string   `json:"buildId"`
	VMSeq         string   `json:"vmSeqId"`
	CancelTaskIDs []string `json:"cancelTaskIds"`
}

// ErrorInfo is a worker's "submit_error" (protocol §6.2).
type ErrorInfo struct {
	StageID     string `json:"stageId"`
	ContainerID string `json:"containerId"`
	TaskID      string `json:"taskId"`
	TaskName    string `json:"taskName"`
	AtomCode    string `json:"atomCode"`
	ErrorType   int    `json:"errorType"` // 1 is USER
	ErrorCode   int    `json:"errorCode"`
	ErrorMsg    string `json:"errorMsg"`
}

// EndMessage is the body of a worker's "end" and, with a reason, of an early end.
type EndMessage struct {
	Message *string `json:"message"`
}

// LogMode tells the server at the end of a job where a task's log was kept.
type LogMode struct {
	ElementID      string `json:"elementId"`
	ChildPath      string `json:"childPath"`
	ChildZipPath   string `json:"childZipPath"`
	LogFile        string `json:"logFile"`
	LogStorageMode string `json:"logStorageMode"` // UPLOAD, LOCAL, ARCHIVED
}

// Error types of a failed task (protocol §1.4.2).
const (
	ErrorSystem     = "SYSTEM"
	ErrorUser       = "USER"
	ErrorThirdParty = "THIRD_PARTY"
	ErrorPlugin     = "PLUGIN"
)

// Error codes a worker reports or meets (protocol §6.9).
const (
	CodeWorkerInit     = 2189504 // worker could not be initialised
	CodeInternalTask   = 2189505 // internal task error
	CodeInvalidInput   = 2199002 // invalid input, or a task type this worker does not know
	CodeTaskTimeout    = 2199006 // task time limit
	CodeCannotRun      = 2199009 // script command could not run
	CodeFastKill       = 2199010 // cancelled
	CodeScriptFailed   = 2199011 // script failed
	CodeBuildEnded     = 2101182 // server: the build is finished
	CodeAlreadyStarted = 2101255 // server: another worker has started
)

// Exit codes of a worker (protocol §6.10).
const (
	WorkerExitOK      = 0
	WorkerExitBadArgs = 1
	WorkerExitTimeout = 99
	WorkerExitError   = 255
)
