package wire

// Prefixes of the services behind the gateway (protocol §1.1).
const (
	environment = "/ms/environment/api/buildAgent/agent/thirdPartyAgent"
	dispatch    = "/ms/dispatch/api/buildAgent/agent/thirdPartyAgent"
)

// Paths of the agent's calls below the gateway (protocol §1.6, §1.7). They all begin with a slash.
const (
	PathStartup     = environment + "/startup"                       // POST, §1.6.1
	PathStatus      = environment + "/status"                        // GET, §1.6.2
	PathHeartbeat   = environment + "/agents/newHeartbeat"           // POST, §1.6.3
	PathPipelines   = environment + "/agents/pipelines"              // GET and PUT, §1.6.9
	PathMetrics     = environment + "/agents/metrics"                // POST telegraf JSON, §1.6.13
	PathMetrixWrite = environment + "/agents/metrix/write"           // POST line protocol of the seed generation, §1.6.13
	PathMetrix      = environment + "/agents/metrix"                 // POST line protocol of the ask generation, §1.6.13
	PathDownload    = environment + "/upgrade/files/download"        // GET, §1.6.6
	PathUpgradeNew  = dispatch + "/upgradeNew"                       // POST, §1.6.4
	PathUpgrade     = dispatch + "/upgrade"                          // DELETE, §1.6.5
	PathClaim       = dispatch + "/startup"                          // GET, §1.6.7
	PathFinish      = dispatch + "/workerBuildFinish"                // POST, §1.6.8
	PathAsk         = dispatch + "/ask"                              // POST, §1.7.2
	PathDebug       = dispatch + "/docker/startupDebug"              // GET and POST, §1.6.10
	PathDebugStatus = dispatch + "/docker/debug/status"              // GET, §1.6.10
	PathLogs        = "/ms/log/api/build/logs"                       // POST, §1.6.12
	PathLogsRed     = PathLogs + "/red"                              // POST, errors
	PathLogsYellow  = PathLogs + "/yellow"                           // POST, warnings
	PathExternal    = "/ms/environment/api/external/thirdPartyAgent" // enrolment and packages, Part 5
)

// Paths of a worker's calls (protocol §6.1). Log calls go without "/ms".
const (
	PathWorkerStarted     = "/ms/process/api/build/worker/started"                 // PUT
	PathWorkerClaim       = "/ms/process/api/build/worker/claim"                   // GET
	PathWorkerComplete    = "/ms/process/api/build/worker/complete"                // POST
	PathWorkerEnd         = "/ms/process/api/build/worker/end"                     // POST
	PathWorkerTimeout     = "/ms/process/api/build/worker/timeout"                 // POST
	PathWorkerHeartbeat   = "/ms/process/api/build/worker/heartbeat/v1"            // POST
	PathWorkerSubmitError = "/ms/process/api/build/worker/submit_error"            // POST
	PathWorkerDetailURL   = "/ms/process/api/build/worker/detail_url"              // GET
	PathWorkerDispatch    = "/ms/process/api/build/worker/dispatch_config"         // GET
	PathQuotaStart        = "/ms/dispatch/api/build/quotas/running/agent/start"    // POST
	PathQuotaShutdown     = "/ms/dispatch/api/build/quotas/running/agent/shutdown" // DELETE
	PathLogsMulti         = "/log/api/build/logs/multi"                            // POST
	PathLogsStatus        = "/log/api/build/logs/status"                           // PUT
	PathLogsMode          = "/log/api/build/logs/mode"                             // POST
)

// Header names (protocol §1.2).
const (
	HeaderBuildType     = "X-DEVOPS-BUILD-TYPE" // always "AGENT" from an agent
	HeaderProject       = "X-DEVOPS-PROJECT-ID"
	HeaderAgent         = "X-DEVOPS-AGENT-ID"
	HeaderSecret        = "X-DEVOPS-AGENT-SECRET-KEY"
	HeaderBuild         = "X-DEVOPS-BUILD-ID"
	HeaderVMSeq         = "X-DEVOPS-VM-SID"
	HeaderPipeline      = "X-DEVOPS-PIPELINE-ID"         // added by the gateway for worker calls
	HeaderVMName        = "X-DEVOPS-VM-NAME"             // added by the gateway for worker calls
	HeaderInstallToken  = "X-DEVOPS-AGENT-INSTALL-TOKEN" // protocol §5.3
	HeaderMD5           = "X-Checksum-Md5"               // of a download, protocol §1.6.6
	HeaderPrefer        = "Prefer"                       // wait=N, RFC 7240
	HeaderPreferApplied = "Preference-Applied"           // RFC 7240
)

// BuildTypeAgent is the value of X-DEVOPS-BUILD-TYPE on every call of an agent and its workers.
const BuildTypeAgent = "AGENT"

// ContentType is sent with every POST and PUT (protocol §1.2).
const ContentType = "application/json; charset=utf-8"
