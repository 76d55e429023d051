package lab

import (
	"encoding/json"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Task is one step of a session: a BuildTask of status DO (protocol §6.4).
type Task struct {
	ID     string
	Type   string            // "linuxScript" when empty
	Script string            // form-encoded into params
	Params map[string]string // on top of script, scriptType and continueNoneZero
	StepID string
	Vars   map[string]string // buildVariable, on top of what earlier tasks reported
	Waits  int               // how often claim answers WAIT before this task
}

// Session is the server's side of one worker: what it is given and what it has said (protocol Part 6).
type Session struct {
	Build     Build
	Variables map[string]any // members of BuildVariables on top of the defaults
	Tasks     []Task
	EndWaits  int // how often claim answers WAIT before END

	recorder *Recorder
	next     int
	waited   int
	reported map[string]string
	cancel   []string
	over     bool
}

// Open makes a session for a job; the recorder answers the worker's calls for it from now on.
func (r *Recorder) Open(s *Session) *Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.recorder, s.reported = r, map[string]string{}
	r.sessions[s.Build.ID] = s
	return s
}

// Cancel asks the worker to cancel tasks with its next heartbeats.
func (s *Session) Cancel(tasks ...string) {
	s.recorder.mu.Lock()
	defer s.recorder.mu.Unlock()
	s.cancel = tasks
}

// Over makes the server answer everything with "the build has ended" from now on.
func (s *Session) Over() {
	s.recorder.mu.Lock()
	defer s.recorder.mu.Unlock()
	s.over = true
}

// Of returns the worker's requests at some endpoints, oldest first; all of them when none is named.
func (s *Session) Of(endpoints ...Endpoint) []Request {
	if len(endpoints) == 0 {
		endpoints = WorkerEndpoints()
	}
	return slices.DeleteFunc(s.recorder.Of(endpoints...), func(q Request) bool { return q.Header.Get("X-DEVOPS-BUILD-ID") != s.Build.ID })
}

// Completes returns the results of a task as the worker sent them, oldest first.
func (s *Session) Completes(task string) []Request {
	return slices.DeleteFunc(s.Of(WorkerComplete), func(q Request) bool { return q.Get("taskId") != task })
}

// Line is one uploaded log line with the time of its request.
type Line struct {
	At      time.Time
	Message string `json:"message"`
	Stamp   int64  `json:"timestamp"`
	Tag     string `json:"tag"`
	SubTag  string `json:"subTag"`
	Type    string `json:"logType"`
	Hash    string `json:"containerHashId"`
	Count   int    `json:"executeCount"`
}

// Lines returns every uploaded log line in the order of arrival.
func (s *Session) Lines() []Line {
	var all []Line
	for _, q := range s.Of(LogsMulti) {
		var batch []Line
		if json.Unmarshal(q.Body, &batch) != nil {
			continue
		}
		for _, line := range batch {
			line.At = q.At
			all = append(all, line)
		}
	}
	return all
}

// Ended is the answer to a call for a build that is over (protocol §6.1).
func Ended() Answer {
	return JSON(401, map[string]any{"status": 401, "errorCode": 2101182, "message": "build is over", "data": "buildEnd"})
}

// session answers a worker's call, nil when it is none or when no session is open for it. mu is held.
func (r *Recorder) session(q Request) *Answer {
	if !strings.HasPrefix(q.Endpoint.Path(), process) {
		return nil
	}
	s := r.sessions[q.Header.Get("X-DEVOPS-BUILD-ID")]
	if s == nil || s.over {
		return new(Ended())
	}
	switch q.Endpoint {
	case WorkerStarted:
		return new(OK(s.variables()))
	case WorkerClaim:
		return new(OK(s.claim()))
	case WorkerComplete:
		if result, ok := q.Get("buildResult").(map[string]any); ok {
			for key, value := range result {
				s.reported[key], _ = value.(string)
			}
		}
		return new(OK(true))
	case WorkerEnd, WorkerTimeout:
		s.over = q.Endpoint == WorkerEnd
		return new(OK(true))
	case WorkerHeartbeat:
		answer := map[string]any{"projectId": s.Build.Project, "buildId": s.Build.ID, "vmSeqId": s.Build.VMSeq, "cancelTaskIds": nil}
		if len(s.cancel) > 0 {
			answer["cancelTaskIds"] = s.cancel
		}
		return new(OK(answer))
	case WorkerSubmitError:
		return new(OK(true))
	case WorkerDetailURL:
		return new(OK("http://lab.invalid/detail"))
	}
	return nil
}

func (s *Session) variables() map[string]any {
	answer := map[string]any{
		"buildId": s.Build.ID, "vmSeqId": s.Build.VMSeq, "vmName": "lab", "projectId": s.Build.Project, "pipelineId": s.Build.Pipeline,
		"variables": map[string]string{}, "variablesWithType": []any{}, "buildEnvs": []any{}, "containerId": "1",
		"containerHashId": s.Build.ContainerHashID, "jobId": "job1", "timeoutMills": 900 * 60 * 1000, "containerType": "vmBuild",
		"pipelineAsCodeSettings": nil, "loggingLineLimit": nil, "failIfVariableInvalid": nil,
	}
	maps.Copy(answer, s.Variables)
	return answer
}

func (s *Session) claim() map[string]any {
	answer := map[string]any{"buildId": s.Build.ID, "vmSeqId": s.Build.VMSeq, "status": "WAIT", "executeCount": 1, "taskId": nil,
		"elementId": nil, "stepId": nil, "elementName": nil, "elementVersion": nil, "type": nil, "params": nil, "buildVariable": nil,
		"containerType": "vmBuild", "signToken": ""}
	waits := s.EndWaits
	if s.next < len(s.Tasks) {
		waits = s.Tasks[s.next].Waits
	}
	if s.waited < waits {
		s.waited++
		return answer
	}
	s.waited = 0
	if s.next == len(s.Tasks) {
		answer["status"] = "END"
		return answer
	}
	task := s.Tasks[s.next]
	s.next++
	params := map[string]string{"scriptType": "SHELL", "script": url.QueryEscape(task.Script), "continueNoneZero": "false",
		"additionalOptions": `{"timeout":10}`}
	maps.Copy(params, task.Params)
	vars := maps.Clone(s.reported)
	maps.Copy(vars, task.Vars)
	answer["status"], answer["taskId"], answer["elementId"] = "DO", task.ID, task.ID
	answer["elementName"], answer["elementVersion"], answer["type"] = "step", "1.0", "linuxScript"
	if task.Type != "" {
		answer["type"] = task.Type
	}
	if task.StepID != "" {
		answer["stepId"] = task.StepID
	}
	answer["params"], answer["buildVariable"] = params, vars
	return answer
}
