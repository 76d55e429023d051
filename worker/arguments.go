package worker

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// maxJob bounds the Base64 argument; a real job has less than 2 KiB.
const maxJob = 1 << 20

// Arguments are what an agent passes to its worker (protocol §3.6.4): those of a java command line.
type Arguments struct {
	Job          wire.Build
	StartFile    string // devops.slave.agent.start.file, deleted at exit; "" when there is none
	PrestartFile string // devops.slave.agent.prepare.start.file, likewise
	ErrorFile    string // devops.agent.error.file; "" when there is none
	BuildType    string // build.type; "" when not given
	LogPrefix    string // AGENT_LOG_PREFIX; "agent" when not given or no file name
	TempDir      string // java.io.tmpdir; "" means the system's
}

// Parse reads a command line "[-Dkey=value …] [-Xmx2g] [-jar PATH] JOB". JOB is the last argument: the claimed job
// as JSON in Base64. Options that mean nothing here are accepted. What could be read is returned also with an
// error, so that the error can be written to the error file.
func Parse(args []string) (Arguments, error) {
	a := Arguments{LogPrefix: "agent"}
	for _, arg := range args {
		option, ok := strings.CutPrefix(arg, "-D")
		if !ok {
			continue
		}
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "devops.slave.agent.start.file":
			a.StartFile = value
		case "devops.slave.agent.prepare.start.file":
			a.PrestartFile = value
		case "devops.agent.error.file":
			a.ErrorFile = value
		case "build.type":
			a.BuildType = value
		case "AGENT_LOG_PREFIX":
			if fileName(value) {
				a.LogPrefix = value
			}
		case "java.io.tmpdir":
			a.TempDir = value
		}
	}
	if a.BuildType != "" && a.BuildType != wire.BuildTypeAgent {
		return a, fmt.Errorf("build.type is %q, this worker knows only %s", clip(a.BuildType, 40), wire.BuildTypeAgent)
	}
	if len(args) == 0 || strings.HasPrefix(args[len(args)-1], "-") {
		return a, errors.New("the job is missing: the last argument must be its JSON in Base64")
	}
	var err error
	a.Job, err = decodeJob(args[len(args)-1])
	return a, err
}

// decodeJob reads the Base64 JSON of a claimed job and checks what will become part of file names and headers.
func decodeJob(text string) (wire.Build, error) {
	if len(text) > maxJob {
		return wire.Build{}, fmt.Errorf("job: longer than %d bytes", maxJob)
	}
	raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(text), "="))
	if err != nil {
		return wire.Build{}, fmt.Errorf("job: %w", err)
	}
	var job wire.Build
	if err := json.Unmarshal(raw, &job); err != nil {
		return wire.Build{}, fmt.Errorf("job: %w", err)
	}
	for name, value := range map[string]string{"buildId": job.ID, "vmSeqId": job.VMSeq, "projectId": job.Project} {
		if !fileName(value) {
			return wire.Build{}, fmt.Errorf("job: %s %q is not usable", name, clip(value, 60))
		}
	}
	job.Docker = nil // holds another machine's secrets and is of no use here
	return job, nil
}

// fileName reports whether a server's text is an ordinary name: letters, digits, "_", "-", ".", no leading dot, no
// leading dash, at most 128 characters.
func fileName(s string) bool {
	if s == "" || len(s) > 128 || s[0] == '.' || s[0] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-', c == '.':
		default:
			return false
		}
	}
	return true
}

// clip cuts a text to n characters.
func clip(s string, n int) string {
	count := 0
	for i := range s {
		if count == n {
			return s[:i]
		}
		count++
	}
	return s
}
