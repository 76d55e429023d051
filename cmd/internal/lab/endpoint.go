package lab

import "strings"

// Endpoint is one call of the protocol: method, blank, path, as in "POST /ms/…/startup".
type Endpoint string

const (
	environment = "/ms/environment/api/buildAgent/agent/thirdPartyAgent"
	dispatch    = "/ms/dispatch/api/buildAgent/agent/thirdPartyAgent"
	process     = "/ms/process/api/build/worker"
)

// The calls of an agent (protocol §1.6, §1.7).
const (
	Startup        Endpoint = "POST " + environment + "/startup"
	Status         Endpoint = "GET " + environment + "/status"
	Heartbeat      Endpoint = "POST " + environment + "/agents/newHeartbeat"
	FetchPipeline  Endpoint = "GET " + environment + "/agents/pipelines"
	ReportPipeline Endpoint = "PUT " + environment + "/agents/pipelines"
	Metrics        Endpoint = "POST " + environment + "/agents/metrics"
	Metrix         Endpoint = "POST " + environment + "/agents/metrix"
	MetrixWrite    Endpoint = "POST " + environment + "/agents/metrix/write"
	Download       Endpoint = "GET " + environment + "/upgrade/files/download"
	CheckUpgrade   Endpoint = "POST " + dispatch + "/upgradeNew"
	FinishUpgrade  Endpoint = "DELETE " + dispatch + "/upgrade"
	Claim          Endpoint = "GET " + dispatch + "/startup"
	Finish         Endpoint = "POST " + dispatch + "/workerBuildFinish"
	Ask            Endpoint = "POST " + dispatch + "/ask"
	FetchDebug     Endpoint = "GET " + dispatch + "/docker/startupDebug"
	ReportDebug    Endpoint = "POST " + dispatch + "/docker/startupDebug"
	DebugStatus    Endpoint = "GET " + dispatch + "/docker/debug/status"
	LogLine        Endpoint = "POST /ms/log/api/build/logs"
	LogRed         Endpoint = "POST /ms/log/api/build/logs/red"
	LogYellow      Endpoint = "POST /ms/log/api/build/logs/yellow"
)

// The calls of a worker (protocol §6.2, §6.6, §6.8). Log calls come without "/ms"; the recorder takes both.
const (
	WorkerStarted     Endpoint = "PUT " + process + "/started"
	WorkerClaim       Endpoint = "GET " + process + "/claim"
	WorkerComplete    Endpoint = "POST " + process + "/complete"
	WorkerEnd         Endpoint = "POST " + process + "/end"
	WorkerTimeout     Endpoint = "POST " + process + "/timeout"
	WorkerHeartbeat   Endpoint = "POST " + process + "/heartbeat/v1"
	WorkerSubmitError Endpoint = "POST " + process + "/submit_error"
	WorkerDetailURL   Endpoint = "GET " + process + "/detail_url"
	WorkerDispatch    Endpoint = "GET " + process + "/dispatch_config"
	QuotaStart        Endpoint = "POST /ms/dispatch/api/build/quotas/running/agent/start"
	QuotaShutdown     Endpoint = "DELETE /ms/dispatch/api/build/quotas/running/agent/shutdown"
	LogsMulti         Endpoint = "POST /log/api/build/logs/multi"
	LogsStatus        Endpoint = "PUT /log/api/build/logs/status"
	LogsMode          Endpoint = "POST /log/api/build/logs/mode"
)

// AgentEndpoints are all calls an agent may make.
func AgentEndpoints() []Endpoint {
	return []Endpoint{Startup, Status, Heartbeat, FetchPipeline, ReportPipeline, Metrics, Metrix, MetrixWrite, Download,
		CheckUpgrade, FinishUpgrade, Claim, Finish, Ask, FetchDebug, ReportDebug, DebugStatus, LogLine, LogRed, LogYellow}
}

// WorkerEndpoints are all calls a worker may make.
func WorkerEndpoints() []Endpoint {
	return []Endpoint{WorkerStarted, WorkerClaim, WorkerComplete, WorkerEnd, WorkerTimeout, WorkerHeartbeat, WorkerSubmitError,
		WorkerDetailURL, WorkerDispatch, QuotaStart, QuotaShutdown, LogsMulti, LogsStatus, LogsMode}
}

// Method returns the HTTP method.
func (e Endpoint) Method() string {
	method, _, _ := strings.Cut(string(e), " ")
	return method
}

// Path returns the path below the gateway.
func (e Endpoint) Path() string {
	_, path, _ := strings.Cut(string(e), " ")
	return path
}

// Short returns the last part of the path, for messages.
func (e Endpoint) Short() string { return string(e[strings.LastIndexByte(string(e), '/')+1:]) }

// canonical maps what a worker's log calls may look like (protocol §6.1) to one endpoint.
func canonical(method, path string) Endpoint {
	if rest, ok := strings.CutPrefix(path, "/ms/log/api/build/logs/"); ok {
		switch rest {
		case "multi", "status", "mode":
			path = "/log/api/build/logs/" + rest
		}
	}
	return Endpoint(method + " " + path)
}
