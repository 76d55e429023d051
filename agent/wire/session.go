package wire

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Time limits of one exchange of a worker (protocol §6.1).
const (
	sessionLimit = 30 * time.Second // process calls
	beatLimit    = 10 * time.Second // heartbeat and log calls
)

// Session makes the calls of one worker (protocol §6.1, §6.2). Every method is one attempt: when to try again is the
// worker's business. Errors are those of Client.Do; a StatusError with CodeBuildEnded or CodeAlreadyStarted (see
// StatusError.Is) means that there is nothing to do any more.
type Session struct {
	Client *Client // of the machine's identity
	Build  string  // build id
	VMSeq  string  // sequence id of the job in the build
}

// Is lets errors.Is(err, BuildEnded) find the code wherever the server put it: in the body of an HTTP 401 (protocol
// §6.1) or as the status of an envelope.
func (e *StatusError) Is(target error) bool {
	code, ok := target.(SessionCode)
	return ok && (e.ErrorCode == int(code) || e.Code == int(code))
}

// SessionCode is a server's error code that a worker decides on, for errors.Is.
type SessionCode int

// What ends a worker's session before its job does (protocol §6.2).
const (
	BuildEnded     SessionCode = CodeBuildEnded     // the build is over
	AlreadyStarted SessionCode = CodeAlreadyStarted // another worker has the job
)

// Error names the code.
func (c SessionCode) Error() string {
	switch c {
	case BuildEnded:
		return "the build has ended"
	case AlreadyStarted:
		return "another worker has started this job"
	}
	return "error code " + strconv.Itoa(int(c))
}

// Started announces the worker and returns what it needs to know of its job. An answer without data is a BodyError.
func (s *Session) Started(ctx context.Context, retry int) (*BuildVariables, error) {
	return sessionPart[BuildVariables](s, ctx, "started", http.MethodPut, PathWorkerStarted, retry, nil)
}

// ClaimTask asks for the next task, and says which tasks of our controller this worker knows (see HeaderWorkerCan).
func (s *Session) ClaimTask(ctx context.Context, retry int) (*BuildTask, error) {
	return sessionPart[BuildTask](s, ctx, "claim task", http.MethodGet, PathWorkerClaim, retry, http.Header{http.CanonicalHeaderKey(HeaderWorkerCan): {CanArtifacts}})
}

// Complete reports the end of a task.
func (s *Session) Complete(ctx context.Context, result TaskResult, retry int) error {
	_, err := s.do(ctx, Call{Op: "complete task", Method: http.MethodPost, Path: PathWorkerComplete, Body: result,
		Query: s.query(retry, 1)})
	return err
}

// End ends the session; message is nil after a job that ran.
func (s *Session) End(ctx context.Context, message *string, retry int) error {
	_, err := s.do(ctx, Call{Op: "end job", Method: http.MethodPost, Path: PathWorkerEnd, Body: EndMessage{message},
		Query: s.query(retry, 1)})
	return err
}

// SubmitError reports why the job cannot begin.
func (s *Session) SubmitError(ctx context.Context, e ErrorInfo, retry int) error {
	_, err := s.do(ctx, Call{Op: "submit error", Method: http.MethodPost, Path: PathWorkerSubmitError, Body: e,
		Query: s.query(retry, 1)})
	return err
}

// TimedOut reports that the job's time limit is over.
func (s *Session) TimedOut(ctx context.Context, retry int) error {
	_, err := s.do(ctx, Call{Op: "report job time limit", Method: http.MethodPost, Path: PathWorkerTimeout,
		Query: s.query(retry, 1)})
	return err
}

// Beat tells that the worker lives (protocol §6.6) and returns the tasks to cancel.
func (s *Session) Beat(ctx context.Context, beat WorkerHeartbeat, executeCount, retry int) (cancel []string, err error) {
	answer, err := s.do(ctx, Call{Op: "worker heartbeat", Method: http.MethodPost, Path: PathWorkerHeartbeat, Body: beat,
		Query: s.query(retry, executeCount), Timeout: beatLimit})
	if err != nil {
		return nil, err
	}
	var reply WorkerHeartbeatReply
	if _, err := Part("worker heartbeat", answer.Data, &reply); err != nil {
		return nil, &BodyError{Op: "worker heartbeat", Type: "application/json", Err: err}
	}
	return reply.CancelTaskIDs, nil
}

// QuotaStart and QuotaShutdown frame the job for the server's quotas (protocol §6.2). A failure has no consequence.
func (s *Session) QuotaStart(ctx context.Context, executeCount int) error {
	_, err := s.do(ctx, Call{Op: "quota start", Method: http.MethodPost, Path: PathQuotaStart, Timeout: beatLimit,
		Query: url.Values{"executeCount": {strconv.Itoa(executeCount)}}})
	return err
}

// QuotaShutdown is the counterpart of QuotaStart.
func (s *Session) QuotaShutdown(ctx context.Context) error {
	_, err := s.do(ctx, Call{Op: "quota shutdown", Method: http.MethodDelete, Path: PathQuotaShutdown, Timeout: beatLimit})
	return err
}

// pathQuality takes the quality values of a task: the path that the original worker uses. A server that does not
// know it answers with an error, which has no consequence.
const pathQuality = "/ms/quality/api/build/metadata/saveHisMetadata"

// SaveQuality sends the quality gate values that a task has set (protocol §6.7). taskType is the type of the task.
func (s *Session) SaveQuality(ctx context.Context, taskType string, values map[string]string) error {
	_, err := s.do(ctx, Call{Op: "save quality values", Method: http.MethodPost, Path: pathQuality, Body: values,
		Query: url.Values{"elementType": {taskType}}, Timeout: beatLimit})
	return err
}

// HeaderLogBatch carries the number of a batch of log lines, from 1 and rising within a session. A batch that is sent
// again because nobody knows what became of it has its old number: our controller then leaves out what it has.
// BK-CI does not know the header.
const HeaderLogBatch = "X-DEVOPS-LOG-BATCH"

// Logs uploads lines of the build's log, in order (protocol §6.8). body is a JSON array of LogLine, batch its number
// (see HeaderLogBatch). Envelope status 503 or 509 means that the server does not want them.
func (s *Session) Logs(ctx context.Context, body json.RawMessage, batch int64) error {
	_, err := s.do(ctx, Call{Op: "upload log", Method: http.MethodPost, Path: PathLogsMulti, Body: body,
		Query: url.Values{"buildId": {s.Build}}, Header: http.Header{http.CanonicalHeaderKey(HeaderLogBatch): {strconv.FormatInt(batch, 10)}},
		Timeout: beatLimit})
	return err
}

// LogStatus says that the log of a task, or of one sub tag of it, is complete.
type LogStatus struct {
	Tag          string // the task id
	SubTag       string // "" means the whole task
	JobID        string // the container hash id
	ExecuteCount int
	Mode         string // UPLOAD, LOCAL, ARCHIVED
}

// FinishLog tells the server that a log is complete.
func (s *Session) FinishLog(ctx context.Context, l LogStatus) error {
	query := url.Values{"finished": {"true"}, "tag": {l.Tag}, "jobId": {l.JobID},
		"executeCount": {strconv.Itoa(l.ExecuteCount)}, "logMode": {l.Mode}}
	if l.SubTag != "" {
		query.Set("subTag", l.SubTag)
	}
	_, err := s.do(ctx, Call{Op: "finish log", Method: http.MethodPut, Path: PathLogsStatus, Query: query, Timeout: beatLimit})
	return err
}

// LogModes tells the server at the end of the job where each task's log was kept.
func (s *Session) LogModes(ctx context.Context, executeCount int, modes []LogMode) error {
	_, err := s.do(ctx, Call{Op: "report log modes", Method: http.MethodPost, Path: PathLogsMode, Body: modes,
		Query: url.Values{"executeCount": {strconv.Itoa(executeCount)}}, Timeout: beatLimit})
	return err
}

func (s *Session) do(ctx context.Context, call Call) (Answer, error) {
	if call.Timeout == 0 {
		call.Timeout = sessionLimit
	}
	if call.Header == nil {
		call.Header = http.Header{}
	}
	call.Header.Set(HeaderBuild, s.Build)
	call.Header.Set(HeaderVMSeq, s.VMSeq)
	return s.Client.Do(ctx, call)
}

func (s *Session) query(retry, executeCount int) url.Values {
	return url.Values{"retryCount": {strconv.Itoa(retry)}, "executeCount": {strconv.Itoa(executeCount)}, "buildId": {s.Build}}
}

// sessionPart forgives members of a wrong type, which are left empty: a task with a spoilt parameter fails by itself
// and does not cost the session.
func sessionPart[T any](s *Session, ctx context.Context, op, method, path string, retry int, header http.Header) (*T, error) {
	answer, err := s.do(ctx, Call{Op: op, Method: method, Path: path, Query: s.query(retry, 1), Header: header})
	if err != nil {
		return nil, err
	}
	var v T
	if answer.Data == nil {
		err = errors.New("no data in it")
	} else {
		err = json.Unmarshal(answer.Data, &v)
	}
	var kind *json.UnmarshalTypeError
	if err != nil && !errors.As(err, &kind) {
		return nil, &BodyError{Op: op, Type: "application/json", Err: brief(err)}
	}
	return &v, nil
}
