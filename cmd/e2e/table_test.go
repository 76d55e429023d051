//go:build linux

package e2e

// A statement of protocol Part 8. Tags: B both modes, S split, K ask, W native worker. A pending statement says what it
// waits for.
type statement struct {
	n       int
	tag     string
	phrase  string
	pending string
}

const upgradesPending = "upgrades are not built yet"

func (s statement) modes() []string {
	switch s.tag {
	case "B":
		return []string{"split", "ask"}
	case "S":
		return []string{"split"}
	case "K":
		return []string{"ask"}
	}
	return []string{"worker"}
}

func statements() []statement {
	return []statement{
		{1, "B", "identity headers on every request", ""},
		{2, "B", "content type and JSON body on POST and PUT", ""},
		{3, "B", "gateway without and with scheme", ""},
		{4, "B", "exact paths", ""},
		{5, "B", "slow answers are abandoned", ""},
		{6, "B", "bad answers end nothing", ""},
		{7, "B", "status other than 0 is a failure", ""},
		{8, "B", "response keys in any letter case", ""},
		{9, "B", "unknown fields and nulls survived", ""},
		{10, "B", ".cert makes its CA acceptable, and no other", ""},
		{11, "B", "no secret under logs", ""},
		{12, "B", "startup is the first request, complete", ""},
		{13, "B", "detectOS", ""},
		{14, "K", "nothing before startup succeeded", ""},
		{15, "S", "a failed startup: go on, repeat, no uninstall", ""},
		{16, "B", "DELETE from startup does not uninstall", ""},
		{17, "B", "invalid properties end the process", ""},
		{18, "S", "heartbeat within 2 s, then every 10 s", ""},
		{19, "B", "all heartbeat fields", ""},
		{20, "B", "arch and docker init in heartbeat props", ""},
		{21, "B", "taskList while a job runs", ""},
		{22, "B", "parallelTaskCount takes effect and is kept", ""},
		{23, "B", "the other pushed settings", ""},
		{24, "B", "empty settings leave the old values", ""},
		{25, "B", "negative counts are not persisted", ""},
		{26, "B", "envs reach workers and win", ""},
		{27, "K", "enablePipeline switches askEnable.pipeline", ""},
		{28, "B", "nothing changed: nothing rewritten", ""},
		{29, "S", "DELETE in a heartbeat uninstalls, exit 88", ""},
		{30, "S", "status before each claim, exact IMPORT_OK", ""},
		{31, "S", "status every ~5 s, >= 3 s apart", ""},
		{32, "S", "buildType by free capacity", ""},
		{33, "B", "limit 0 is unlimited", ""},
		{34, "B", "never more than N workers", ""},
		{35, "S", "no job: just the next poll", ""},
		{36, "S", "DELETE elsewhere does not uninstall", ""},
		{37, "K", "ask every ~5 s, >= 3 s apart", ""},
		{38, "K", "askEnable complete", ""},
		{39, "K", "askEnable.build by free capacity", ""},
		{40, "K", "no upgrade check while a job exists or in debug mode", ""},
		{41, "K", "upgrade check complete", ""},
		{42, "K", "any subset of null parts", ""},
		{43, "K", "nothing slow delays the next ask", ""},
		{44, "K", "agentStatus DELETE uninstalls, others do not", ""},
		{45, "K", "status 1 survived, no shorter interval", ""},
		{46, "K", "build and upgrade together: build wins", ""},
		{47, "K", "build with agentStatus null is run", ""},
		{48, "B", "worker: cwd and Base64 job", ""},
		{49, "B", "worker: properties, -Xmx2g, -jar", ""},
		{50, "B", "worker: login shell and its two scripts", ""},
		{51, "B", "worker: $SHELL or /bin/bash", ""},
		{52, "B", "worker: environment", ""},
		{53, "B", "worker: java of the configured JDK", ""},
		{54, "B", "worker: workdir with blanks", ""},
		{55, "B", "worker: build_tmp exists and is writable", ""},
		{56, "B", "worker: error file left alone while it runs", ""},
		{57, "B", "one accepted finish report, repeated on errors", ""},
		{58, "B", "empty error file: success, 8 s later", ""},
		{59, "B", "error text: failure 2128040 at once", ""},
		{60, "B", "killed worker: failure 2128040", ""},
		{61, "B", "exit 255 with empty error file: success", ""},
		{62, "B", "executeCount and pipelineId echoed", ""},
		{63, "B", "missing jar restored from tmp", ""},
		{64, "B", "missing jar: 2128041 or 2128042, no worker", ""},
		{65, "B", "2128044, 2128045, 2128043", ""},
		{66, "B", "scripts and error file gone after the report", ""},
		{67, "B", "docker job without docker fails with a docker code", ""},
		{68, "B", "credential.errMsg: 2128059", ""},
		{69, "B", "old logs and crash dumps deleted at start", ""},
		{70, "B", "old temporary files deleted after a job", ""},
		{71, "B", "files of running jobs kept", ""},
		{72, "B", "pipeline: EXECUTING, then one result", ""},
		{73, "B", "pipeline: output in the response", ""},
		{74, "B", "pipeline: script name, cwd, set -e, #!", ""},
		{75, "B", "pipeline: blank command fails, later ones served", ""},
		{76, "B", "pipeline: FILE tasks survived", ""},
		{77, "S", "pipeline: GET >= 10 s apart", ""},
		{78, "S", "upgradeNew every ~20 s, only while idle", ""},
		{79, "B", "all items false: nothing happens", ""},
		{80, "B", "download names", ""},
		{81, "B", "eTag is the MD5 of the file in tmp", ""},
		{82, "B", "304 uses the existing file", ""},
		{83, "B", "404 or 500 gives the item up", ""},
		{84, "B", "checksum mismatch changes nothing", ""},
		{85, "B", "equal MD5: no upgrader", ""},
		{86, "B", "no version from the new agent: no upgrader", ""},
		{87, "B", "changed worker replaced and reported", ""},
		{88, "B", "worker without version not replaced", ""},
		{89, "B", "changed JDK in use for the next job", ""},
		{90, "B", "changed agent: upgrader started, exit 0", ""},
		{91, "B", "order JDK, worker, agent", ""},
		{92, "B", "a job before the lock: success=false", ""},
		{93, "B", "no job while an upgrade holds the lock", ""},
		{94, "B", "stalled download abandoned", ""},
		{95, "B", "archive entries stay inside", ""},
		{96, "B", "second agent exits 0 without a request", ""},
		{97, "B", "pid file", ""},
		{98, "B", "agent.lock held for life", ""},
		{99, "B", "daemon starts the agent", ""},
		{100, "B", "daemon respects total-lock", ""},
		{101, "B", "daemon exits 88 with its agent", ""},
		{102, "B", "daemon starts no second agent", ""},
		{103, "B", "killing the agent leaves workers running", ""},
		{104, "B", "version: one line, no lock, no network", ""},
		{105, "B", "upgrader arguments", ""},
		{106, "B", "upgrader with identical files", ""},
		{107, "B", "upgrader with a new agent", upgradesPending},
		{108, "B", "upgrader waits for total-lock", ""},
		{109, "B", "properties survive restarts and crashes", ""},
		{110, "B", "properties of and for the original", ""},
		{111, "S", "docker debug polled only when enabled", ""},
		{112, "B", "one answer per debug job", ""},
		{113, "B", "log lines carry build, sequence and tag", ""},
		{114, "B", "collectorOn=false: no metrics", ""},
		{115, "W", "order of calls", ""},
		{116, "W", "session headers", ""},
		{117, "W", "2101182, 2101255 on started: no end", ""},
		{118, "W", "pauses after WAIT", ""},
		{119, "W", "string params, form-decoded script", ""},
		{120, "W", "2199011, 2199006, 2199002", ""},
		{121, "W", "setEnv, set-output, set-variable", ""},
		{122, "W", "values over 4000 characters left out", ""},
		{123, "W", "log lines: order, delay, length", ""},
		{124, "W", "sensitive values masked", ""},
		{125, "W", "heartbeat and cancel", ""},
		{126, "W", "job limit: timeout, exit 99", ""},
		{127, "W", "error file empty at the end", ""},
	}
}
