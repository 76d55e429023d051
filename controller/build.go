package controller

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// State is where a build or a step is in its life.
type State string

// The states of a build: waiting (see Blocked), queued, handed (given to an agent, no worker yet), running, and three ends.
// A step is pending, running, succeeded, failed, skipped or cancelled.
const (
	Queued    State = "queued"
	Handed    State = "handed"
	Running   State = "running"
	Succeeded State = "succeeded"
	Failed    State = "failed"
	Cancelled State = "cancelled"
	Pending   State = "pending"
	Skipped   State = "skipped"
)

// Over reports whether the state is an end.
func (s State) Over() bool {
	return s == Succeeded || s == Failed || s == Cancelled || s == Skipped
}

// Build is a build as the operator API shows it. Times are milliseconds since 1970, 0 when not yet.
type Build struct {
	ID              string            `json:"id"`
	Number          int64             `json:"number"` // from 1, in the order of submission
	Name            string            `json:"name"`
	Project         string            `json:"project"`
	Pipeline        string            `json:"pipeline"`
	State           State             `json:"state"`
	Message         string            `json:"message,omitempty"` // why it failed, or waits, for people
	Labels          []string          `json:"labels,omitempty"`  // wanted of the agent
	Agent           string            `json:"agent,omitempty"`
	AgentHost       string            `json:"agentHost,omitempty"`
	QueuedAt        int64             `json:"queuedAt"`
	HandedAt        int64             `json:"handedAt,omitempty"` // of the last hand-out
	StartedAt       int64             `json:"startedAt,omitempty"`
	FinishedAt      int64             `json:"finishedAt,omitempty"`
	HandOuts        int               `json:"handOuts,omitempty"` // how often it was given to an agent
	CancelRequested bool              `json:"cancelRequested,omitempty"`
	LogGone         bool              `json:"logGone,omitempty"` // its log was removed: it was too old, or too much was there
	Steps           []StepState       `json:"steps"`
	Variables       map[string]string `json:"variables,omitempty"` // of the build file and reported by steps; sensitive ones are ******
	Report          *AgentReport      `json:"report,omitempty"`
	Run             string            `json:"run,omitempty"` // id of the run that it belongs to
	RunNumber       int64             `json:"runNumber,omitempty"`
	Job             string            `json:"job,omitempty"` // of the run's file
	Matrix          map[string]string `json:"matrix,omitempty"`
	Artifacts       []Artifact        `json:"artifacts,omitempty"` // that it has saved
}

// StepState is one step of a Build.
type StepState struct {
	ID         string  `json:"id"`
	Task       string  `json:"task"` // the tag of its log lines
	Name       string  `json:"name"`
	State      State   `json:"state"`
	StartedAt  int64   `json:"startedAt,omitempty"`
	FinishedAt int64   `json:"finishedAt,omitempty"`
	Message    string  `json:"message,omitempty"`
	ErrorType  string  `json:"errorType,omitempty"`
	ErrorCode  int     `json:"errorCode,omitempty"`
	Progress   float64 `json:"progress,omitempty"` // 0..1, as the step says
	Artifact   string  `json:"artifact,omitempty"` // get or save: not of the build file, see ArtifactSpec

	began time.Time // StartedAt on a clock that nobody sets
}

// AgentReport is how the agent said the build ended (protocol §1.6.8).
type AgentReport struct {
	Agent   string `json:"agent"`
	Success bool   `json:"success"`
	Message string `json:"message,omitempty"`
	Code    int    `json:"code,omitempty"`
	At      int64  `json:"at"`
}

// build is the record of a build. The exported part is what is stored.
type build struct {
	Build
	Hash        string            `json:"hash"`                  // containerHashId
	Vars        map[string]string `json:"vars,omitempty"`        // reported by steps
	Hidden      []string          `json:"hidden,omitempty"`      // names in Vars that are sensitive
	WorkerError string            `json:"workerError,omitempty"` // from submit_error
	Given       map[string]string `json:"given,omitempty"`       // outputs of the jobs that this one needed
	GivenHidden []string          `json:"givenHidden,omitempty"` // names in Given that are sensitive
	SealedVars  string            `json:"sealedVars,omitempty"`  // values of Vars and Given that are sensitive; as stored only

	Wants    []buildWant         `json:"wants,omitempty"`    // artifacts of the jobs that it needs
	Inputs   []wire.ArtifactItem `json:"inputs,omitempty"`   // what became of Wants
	NoInputs []string            `json:"noInputs,omitempty"` // and what did not
	offered  wire.ArtifactOffer  // the last one, not stored yet

	spec     Spec
	text     string // of spec, as stored
	secrets  map[string]string
	covered  []string      // sensitive values that are masked, longest first
	locked   error         // why the sensitive values cannot be read; agents do not get it then
	since    time.Time     // of the hand-out, or of our own start
	began    time.Time     // StartedAt on a clock that nobody sets
	beat     time.Time     // when the worker was last heard of, or of our own start
	asked    time.Time     // when cancelling began, or of our own start
	changed  chan struct{} // closed and replaced at every change and every log line
	lastSave *ticket
	start    *ticket // of the answer to "started", nil when an earlier process gave it
	lines    int64   // in the log, as far as this process knows
	wants    string  // see backlog; set while it is queued
	removed  bool    // too old: nothing of it is written any more
}

const (
	vmSeq       = "1"       // our builds have one job
	containerID = "1"       // and it is the first
	jobID       = "job"     // makes jobs.job.steps.<id>.outputs usable (protocol §6.7)
	maxValue    = 4000      // characters of a variable that a step reports, as Java counts them (protocol §6.5)
	vmBuild     = "vmBuild" // container type of a job on a machine
)

func millis(t time.Time) int64 { return t.UnixMilli() }

// resume sets the times that are not stored. Limits are measured by them, because the clock of the machine may be
// set at any time; only the part before our own start has to be taken from it.
func (b *build) resume(now time.Time) {
	ago := func(at int64) time.Time { return now.Add(min(0, time.UnixMilli(at).Sub(now))) }
	b.began = ago(b.StartedAt)
	for i := range b.Steps {
		b.Steps[i].began = ago(b.Steps[i].StartedAt)
	}
}

// notify wakes everybody who follows the build.
func (b *build) notify() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// view is a copy that the caller may keep.
func (b *build) view() Build {
	v := b.Build
	v.Labels = slices.Clone(v.Labels)
	v.Steps = slices.Clone(v.Steps)
	v.Artifacts = slices.Clone(v.Artifacts)
	if v.Report != nil {
		report := *v.Report
		v.Report = &report
	}
	v.Variables = make(map[string]string, len(b.spec.Variables)+len(b.Vars))
	for name, value := range b.spec.Variables {
		v.Variables[name] = value.String()
	}
	for name := range b.secrets {
		v.Variables[name] = masked
	}
	if b.locked != nil && v.Message == "" {
		v.Message = b.locked.Error()
	}
	for name, value := range b.Given {
		if b.hides(name) || b.reveals(value) {
			value = masked
		}
		v.Variables[name] = value
	}
	for name, value := range b.Vars {
		if b.hides(name) || b.reveals(value) {
			value = masked
		}
		v.Variables[name] = value
	}
	return v
}

func (b *build) hides(name string) bool {
	_, secret := b.secrets[name]
	return secret || b.spec.Variables[name].Sensitive || slices.Contains(b.Hidden, name) || slices.Contains(b.GivenHidden, name)
}

// reveals reports whether a value that a step reported has a sensitive one in it. Very short ones are nearly everywhere
// and hide nothing.
func (b *build) reveals(value string) bool {
	return slices.ContainsFunc(b.covered, func(hidden string) bool { return strings.Contains(value, hidden) })
}

// job is what an agent gets (protocol §1.6.7).
func (b *build) job() *wire.Build {
	once := 1
	return &wire.Build{Project: b.Project, ID: b.ID, VMSeq: vmSeq, Workspace: b.spec.Workspace, Pipeline: b.Pipeline,
		ExecuteCount: &once, ContainerHashID: b.Hash}
}

// variables is what a worker gets for its start (protocol §6.3).
func (b *build) variables(vmName string) wire.BuildVariables {
	values := map[string]string{
		"BK_CI_BUILD_ID":         b.ID,
		"BK_CI_BUILD_NUM":        strconv.FormatInt(b.Number, 10),
		"BK_CI_BUILD_START_TIME": strconv.FormatInt(b.QueuedAt, 10),
		"BK_CI_PIPELINE_ID":      b.Pipeline,
		"BK_CI_PIPELINE_NAME":    b.Name,
		"BK_CI_PROJECT_NAME":     b.Project,
		"BK_CI_RETRY_COUNT":      "0",
	}
	for name, v := range b.spec.Variables {
		values[name] = v.Value
	}
	maps.Copy(values, b.secrets)
	maps.Copy(values, b.Given)
	maps.Copy(values, b.Vars)
	typed := make([]wire.TypedVariable, 0, len(values))
	for _, name := range slices.Sorted(maps.Keys(values)) {
		sensitive := b.hides(name)
		kind := "STRING"
		if sensitive {
			kind = "PASSWORD"
		}
		typed = append(typed, wire.TypedVariable{Key: name, Value: values[name], ValueType: kind, Sensitive: &sensitive})
	}
	job, container := jobID, vmBuild
	if b.Job != "" {
		job = b.Job
	}
	return wire.BuildVariables{Build: b.ID, VMSeq: vmSeq, VMName: vmName, Project: b.Project, Pipeline: b.Pipeline,
		Variables: values, VariablesWithType: typed, BuildEnvs: []wire.BuildEnv{}, ContainerID: containerID,
		ContainerHashID: b.Hash, JobID: &job, TimeoutMills: b.limit().Milliseconds(), ContainerType: &container,
		AsCode: &wire.AsCode{}}
}

func (b *build) limit() time.Duration {
	if b.spec.Timeout > 0 {
		return time.Duration(b.spec.Timeout)
	}
	return jobLimit
}

// nextTask is the next thing for the worker to do. A step that is running is given again: its answer was lost.
func (s *Server) nextTask(b *build, now time.Time, os string) wire.BuildTask {
	once := 1
	task := wire.BuildTask{Build: b.ID, VMSeq: vmSeq, Status: wire.TaskEnd, ExecuteCount: &once}
	if b.CancelRequested {
		return task
	}
	i := b.next()
	if i < 0 {
		return task
	}
	state := &b.Steps[i]
	step, _ := b.step(i)
	if state.State == Pending {
		state.State = Running
		state.StartedAt, state.began = millis(now), now
	}
	kind, container, version, token := wire.TaskLinuxScript, vmBuild, "1.0", ""
	if os == "windows" {
		kind = wire.TaskWindowsScript
	}
	task.Status = wire.TaskDo
	task.TaskID, task.ElementID, task.StepID, task.ElementName = &state.Task, &state.Task, &state.ID, &state.Name
	task.ElementVersion, task.Type, task.ContainerType, task.SignToken = &version, &kind, &container, &token
	if of, params := s.artifactTask(b, i); params != nil {
		kind, task.Params = of, params
	} else {
		task.Params = step.params(os, state.Task)
	}
	task.BuildVariable = maps.Clone(b.Vars)
	if task.BuildVariable == nil {
		task.BuildVariable = map[string]string{}
	}
	return task
}

// params are the parameters of a script task (protocol §6.7): texts only.
func (s *Step) params(os, task string) map[string]string {
	options := map[string]any{"enable": true, "continueWhenFailed": s.ContinueWhenFailed, "retryWhenFailed": false, "timeout": s.minutes()}
	if limit := time.Duration(s.Timeout); limit%time.Minute != 0 {
		options[wire.OptionTimeoutSeconds] = limit.Seconds()
	}
	type pair struct {
		Key   string `json:"key"`
		Value string `json:"value"`
	}
	env := []pair{}
	for _, name := range slices.Sorted(maps.Keys(s.Env)) {
		env = append(env, pair{name, s.Env[name]})
	}
	params := map[string]string{"id": task, "name": s.Name, "stepId": s.ID, "version": "1.0",
		"additionalOptions": jsonText(options), "customEnv": jsonText(env)}
	if os == "windows" {
		params["scriptType"], params["charsetType"] = "BAT", "UTF_8"
		if s.Shell == "powershell" {
			params["scriptType"] = "POWER_SHELL"
		}
		params["script"] = url.QueryEscape(s.Script)
		return params
	}
	params["scriptType"], params["continueNoneZero"], params["enableArchiveFile"] = "SHELL", "false", "false"
	params["script"] = url.QueryEscape(s.shebang() + s.Script)
	return params
}

// minutes is the step's limit in the unit of the protocol, rounded up. Our worker gets the seconds as well; of others
// the rest of the minute is ours to watch. 0 is no limit.
func (s *Step) minutes() int64 {
	return int64((time.Duration(s.Timeout) + time.Minute - 1) / time.Minute)
}

func jsonText(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return "null" // not for the maps and lists of texts that come here
	}
	return string(data)
}

// complete takes the result of a step. A result that came before changes nothing (protocol §6.12); one of an
// unknown step is refused.
func (b *build) complete(r wire.TaskResult, now time.Time) bool {
	i := slices.IndexFunc(b.Steps, func(s StepState) bool { return s.Task == r.TaskID })
	if i < 0 {
		return false
	}
	state := &b.Steps[i]
	step, _ := b.step(i)
	if state.State.Over() {
		return true
	}
	if state.StartedAt == 0 {
		state.StartedAt = millis(now)
	}
	over := b.overTime(i, now)
	state.FinishedAt = millis(now)
	if r.Message != nil {
		state.Message = clip(b.mask(*r.Message), 4000)
	}
	for name, value := range r.BuildResult {
		if len(name) > 1000 || len(value) > maxValue && len(utf16.Encode([]rune(value))) > maxValue {
			continue // half a value would be a wrong one
		}
		if b.Vars == nil {
			b.Vars = make(map[string]string)
		}
		b.Vars[name] = value
		if b.reveals(value) && !slices.Contains(b.Hidden, name) {
			b.Hidden = append(b.Hidden, name)
		}
	}
	for _, name := range r.SensitiveKeys {
		if !slices.Contains(b.Hidden, name) {
			b.Hidden = append(b.Hidden, name)
		}
	}
	if r.Success {
		state.State, state.Progress = Succeeded, 1
		return true
	}
	state.State = Failed
	if r.ErrorType != nil {
		state.ErrorType = clip(*r.ErrorType, 40)
	}
	if r.ErrorCode != nil {
		state.ErrorCode = *r.ErrorCode
	}
	switch {
	case b.CancelRequested:
		state.State = Cancelled
	case over:
		state.ErrorCode = wire.CodeTaskTimeout
		state.Message = fmt.Sprintf("its time limit of %v is over", time.Duration(step.Timeout))
	}
	if !step.ContinueWhenFailed {
		for j := range b.Steps {
			if b.Steps[j].State == Pending && !b.stays(j) {
				b.Steps[j].State = Skipped
			}
		}
	}
	return true
}

// overTime reports whether a running step has used up its limit. It is the worker's to keep (protocol §6.7): we give it
// five seconds more.
func (b *build) overTime(i int, now time.Time) bool {
	step, _ := b.step(i)
	limit := time.Duration(step.Timeout)
	if limit <= 0 || b.Steps[i].State != Running {
		return false
	}
	return now.Sub(b.Steps[i].began) >= limit+5*time.Second
}

// toCancel lists the steps that the worker is to kill (protocol §6.6), nil when there are none.
func (b *build) toCancel(now time.Time) []string {
	var tasks []string
	for i := range b.Steps {
		if b.Steps[i].State == Running && (b.CancelRequested || b.overTime(i, now)) {
			tasks = append(tasks, b.Steps[i].Task)
		}
	}
	return tasks
}

// verdict is how a build ends whose worker says that it is done. Success is the AND of the steps that were not
// allowed to fail.
func (b *build) verdict(said string) (State, string) {
	said = clip(strings.TrimSpace(b.mask(said)), 4000)
	failed, open := "", ""
	for i := range b.Steps {
		s := &b.Steps[i]
		step, _ := b.step(i)
		switch {
		case s.State == Failed && !step.ContinueWhenFailed && failed == "":
			failed = fmt.Sprintf("step %s failed", s.label())
			if s.Message != "" {
				failed += ": " + s.Message
			}
		case !s.State.Over() && open == "":
			open = "the worker ended before step " + s.label() + " did"
		}
	}
	switch {
	case b.WorkerError != "":
		return Failed, b.WorkerError
	case failed != "" && !b.CancelRequested:
		return Failed, failed
	case b.CancelRequested:
		return Cancelled, ""
	case open != "" && said != "":
		return Failed, open + ": " + said
	case open != "":
		return Failed, open
	}
	return Succeeded, said
}

// done reports whether all steps are over.
func (b *build) done() bool {
	return !slices.ContainsFunc(b.Steps, func(s StepState) bool { return !s.State.Over() })
}

func (s *StepState) label() string {
	if s.Name == s.ID {
		return s.ID
	}
	return fmt.Sprintf("%s (%s)", s.ID, s.Name)
}

// close puts the build and its steps into their ends.
func (b *build) close(state State, message string, now time.Time) {
	b.State, b.Message, b.FinishedAt = state, message, millis(now)
	for i := range b.Steps {
		s := &b.Steps[i]
		switch s.State {
		case Running:
			s.State, s.FinishedAt = Failed, millis(now)
			if state == Cancelled {
				s.State = Cancelled
			}
			if s.Message == "" {
				s.Message = message
			}
		case Pending:
			s.State = Skipped
		}
	}
	b.notify()
}
