package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/service/proc"
)

// maxErrorText bounds the error file, in characters (protocol §3.6.5).
const maxErrorText = 2048

// lastWords is how long a worker that was told to stop still talks to the server.
const lastWords = 5 * time.Second

// Host is where a worker runs.
type Host struct {
	Dir     string    // the agent's home: .agent.properties, .cert, logs, workspace
	GOOS    string    // runtime.GOOS
	Version string    // of this program
	Env     []string  // os.Environ()
	Stderr  io.Writer // nil, or where a log that cannot be opened is complained about

	// HTTP makes the client for the gateway; nil means wire.NewHTTPClient.
	HTTP func(wire.HTTPOptions) *http.Client
}

// What ends a job before its last task.
var (
	errBuildOver = errors.New("the server says that the build is over")
	errJobLimit  = errors.New("the time limit of the job is over")
	errBeatLost  = errors.New("the server does not answer the worker's heartbeats")
	errToldStop  = errors.New("the worker was told to stop")
)

// Run runs the build that args describe (see Parse) and returns the exit code of protocol §6.10 with the error that
// explains it, nil for code 0. It owns everything it starts: when it returns, all that the build left running has
// been killed, except what asked to be kept (DEVOPS_DONT_KILL_PROCESS_TREE=true), and our own parents.
func Run(ctx context.Context, host Host, args []string) (code int, err error) {
	a, err := Parse(args)
	defer func() {
		for _, file := range []string{a.StartFile, a.PrestartFile} {
			if file != "" {
				_ = os.Remove(file)
			}
		}
	}()
	mask := &masker{}
	ef := errorFile{path: a.ErrorFile, mask: mask}
	if clearErr := ef.write(""); clearErr != nil && host.Stderr != nil {
		_, _ = fmt.Fprintln(host.Stderr, "empty the error file:", clearErr)
	}
	defer func() {
		if code != wire.WorkerExitOK && code != wire.WorkerExitTimeout && err != nil {
			_ = ef.write(err.Error()) // the exit code is all that is left then
		}
	}()
	if err != nil {
		return wire.WorkerExitBadArgs, err
	}
	settings, err := ReadSettings(host.Dir)
	if err != nil {
		return wire.WorkerExitError, err
	}
	mask.Add(string(settings.Identity.Secret))
	log, file, err := openLog(host.Dir, a.LogPrefix, mask)
	if err != nil && host.Stderr != nil {
		_, _ = fmt.Fprintln(host.Stderr, err)
	}
	defer func() { _ = file.Close() }()
	roots, err := Roots(host.Dir)
	if err != nil {
		log.Error("Certificates of .cert are not used", "err", err)
	}
	dial := host.HTTP
	if dial == nil {
		dial = wire.NewHTTPClient
	}
	client := dial(wire.HTTPOptions{Roots: roots, Proxy: http.ProxyFromEnvironment, Dial: 5 * time.Second})
	defer client.CloseIdleConnections()
	j := &job{
		host: host, args: a, log: log, mask: mask,
		session: &wire.Session{
			Client: &wire.Client{Gateway: settings.Gateway, Identity: settings.Identity, HTTP: client},
			Build:  a.Job.ID, VMSeq: a.Job.VMSeq,
		},
		rates: map[string]float64{}, details: map[string]map[string]any{}, cancelled: map[string]bool{},
	}
	code, err = j.run(ctx)
	if err != nil {
		log.Error("Worker ends", "code", code, "err", err)
	} else {
		log.Info("Worker ends", "code", code)
	}
	return code, err
}

// errorFile is what the agent reads when we have ended: empty means that the job ran (protocol §3.6.5).
type errorFile struct {
	path string
	mask *masker
}

func (f errorFile) write(text string) error {
	if f.path == "" {
		return nil
	}
	return os.WriteFile(f.path, []byte(clip(f.mask.Mask(text), maxErrorText)), 0o600)
}

// job is the session of one build.
type job struct {
	host    Host
	args    Arguments
	log     *slog.Logger
	mask    *masker
	session *wire.Session

	vars      *wire.BuildVariables
	count     int // execute count outside of tasks
	workspace string
	up        *uploader
	around    *taskLog // the log before, between and after the tasks
	modes     []wire.LogMode

	mu        sync.Mutex
	task      string // the one that runs, "" between tasks
	stop      context.CancelCauseFunc
	cancelled map[string]bool // tasks that the server wants cancelled
	rates     map[string]float64
	details   map[string]map[string]any

	streams []*stream // that something still holds open
	readers sync.WaitGroup
}

// run is protocol §6.2, step by step.
func (j *job) run(ctx context.Context) (code int, err error) {
	err = patient.do(ctx, http.MethodPut, func(retry int) (err error) {
		j.vars, err = j.session.Started(ctx, retry)
		return err
	})
	if err != nil {
		if !over(err) && ctx.Err() == nil {
			j.end(ctx, err)
		}
		return wire.WorkerExitError, answerText(err)
	}
	j.learn()
	j.log.Info("Worker started", "version", j.host.Version, "pid", os.Getpid(), "build", j.args.Job.ID, "vm_seq", j.args.Job.VMSeq,
		"pipeline", j.vars.Pipeline)

	jobCtx, stop := context.WithCancelCause(ctx)
	upCtx, stopUp := context.WithCancel(context.WithoutCancel(ctx))
	beatCtx, stopBeat := context.WithCancel(context.WithoutCancel(ctx))
	var owned sync.WaitGroup
	owned.Go(func() { j.up.Run(upCtx) })
	owned.Go(func() { j.beat(beatCtx, stop) })
	limit := time.AfterFunc(jobLimit(j.vars.TimeoutMills), func() { stop(errJobLimit) })
	defer func() {
		limit.Stop()
		stopBeat()
		stopUp()
		stop(nil)
		owned.Wait()
		j.sweep()
	}()

	if err := j.prepare(); err != nil {
		j.around.Say(wire.LogError, "%v", err)
		_ = brief.do(jobCtx, http.MethodPost, func(retry int) error {
			return j.session.SubmitError(jobCtx, wire.ErrorInfo{ContainerID: j.vars.ContainerID, ErrorType: 1,
				ErrorCode: wire.CodeWorkerInit, ErrorMsg: clip(j.mask.Mask(err.Error()), 4000)}, retry)
		})
		j.closeLog(jobCtx)
		j.end(jobCtx, err)
		return wire.WorkerExitError, err
	}
	if err := j.session.QuotaStart(jobCtx, j.count); err != nil {
		j.log.Warn("Quota start has no effect", "err", err)
	}
	err = j.tasks(jobCtx)
	if jobCtx.Err() != nil {
		return j.abort(context.Cause(jobCtx))
	}
	j.killLeft("")
	if err := j.session.QuotaShutdown(jobCtx); err != nil {
		j.log.Warn("Quota shutdown has no effect", "err", err)
	}
	j.closeLog(jobCtx)
	j.end(jobCtx, err)
	if jobCtx.Err() != nil && !errors.Is(context.Cause(jobCtx), errBuildOver) {
		return j.abort(context.Cause(jobCtx))
	}
	if err != nil && !over(err) {
		return wire.WorkerExitError, answerText(err)
	}
	return wire.WorkerExitOK, nil
}

// abort ends a job that something cut short.
func (j *job) abort(cause error) (int, error) {
	j.killLeft("")
	bounded := func(d time.Duration) (context.Context, context.CancelFunc) {
		return context.WithTimeout(context.Background(), d)
	}
	switch {
	case errors.Is(cause, errBuildOver):
		j.up.Kill()
		return wire.WorkerExitOK, nil
	case errors.Is(cause, errJobLimit):
		j.around.Say(wire.LogError, "the job is over its time limit of %v and was ended", jobLimit(j.vars.TimeoutMills))
		ctx, cancel := bounded(stubborn)
		defer cancel()
		flush, done := context.WithTimeout(ctx, 30*time.Second)
		j.closeLog(flush)
		done()
		if err := steady.do(ctx, http.MethodPost, func(retry int) error { return j.session.TimedOut(ctx, retry) }); err != nil {
			j.log.Error("The time limit is not reported", "err", err)
		}
		return wire.WorkerExitTimeout, cause
	}
	ctx, cancel := bounded(lastWords)
	defer cancel()
	j.closeLog(ctx)
	if told(cause) {
		cause = errToldStop
		j.end(ctx, cause)
	}
	return wire.WorkerExitError, cause
}

// told reports whether it was our own context that ended the job, as a signal does.
func told(cause error) bool {
	return !errors.Is(cause, errBuildOver) && !errors.Is(cause, errJobLimit) && !errors.Is(cause, errBeatLost)
}

// learn takes over what the server said at the start.
func (j *job) learn() {
	v := j.vars
	if v.Variables == nil {
		v.Variables = map[string]string{}
	}
	retries, _ := strconv.Atoi(v.Variables["BK_CI_RETRY_COUNT"]) // 0 when it is not there
	j.count = max(retries, 0) + 1
	if v.ContainerHashID == "" {
		v.ContainerHashID = j.args.Job.ContainerHashID
	}
	j.secrets(v.Variables)
	for _, variable := range v.VariablesWithType {
		if sensitive(variable) {
			j.mask.Add(text(variable.Value))
		}
	}
	j.up = newUploader(j.session, j.log, j.count)
	tag := "startVM-" + v.ContainerID
	if v.ContainerID == "" {
		tag = "startVM-" + j.args.Job.VMSeq
	}
	j.around = j.newLog(tag, "", j.count)
}

// secrets makes the values of sensitive variables known to the masker.
func (j *job) secrets(variables map[string]string) {
	for _, variable := range j.vars.VariablesWithType {
		if value, ok := variables[variable.Key]; ok && sensitive(variable) {
			j.mask.Add(value)
		}
	}
}

func sensitive(v wire.TypedVariable) bool {
	return v.Sensitive != nil && *v.Sensitive || v.ValueType == "PASSWORD"
}

func (j *job) newLog(tag, step string, count int) *taskLog {
	base := wire.LogLine{Tag: tag, StepID: step, ContainerHashID: j.vars.ContainerHashID, ExecuteCount: &count}
	if j.vars.JobID != nil {
		base.JobID = *j.vars.JobID
	}
	name := tag
	if !fileName(name) {
		name = "task"
	}
	return &taskLog{
		up: j.up, mask: j.mask, log: j.log, base: base, limit: lineLimit(j.vars.LoggingLineLimit),
		file: filepath.Join(j.host.Dir, "logs", j.args.LogPrefix+"_"+name+".log"),
	}
}

// prepare makes the workspace and says where the build runs.
func (j *job) prepare() error {
	var err error
	if j.workspace, err = j.workspacePath(); err != nil {
		return err
	}
	if err := os.MkdirAll(j.workspace, 0o777); err != nil { // the umask of the caller decides: scripts work in it
		return fmt.Errorf("make the workspace: %w", err)
	}
	host, _ := os.Hostname() // for people only
	j.around.Say(wire.LogNormal, "devopsWorker %s on %s (%s)\nworkspace %s", j.host.Version, host, j.host.GOOS, j.workspace)
	return nil
}

// workspacePath is the job's own directory, or workspace/PIPELINE/src in the agent's home (protocol §6.7).
func (j *job) workspacePath() (string, error) {
	path := j.args.Job.Workspace
	if path == "" {
		pipeline := j.vars.Pipeline
		if pipeline == "" {
			pipeline = j.args.Job.Pipeline
		}
		if !fileName(pipeline) {
			return "", fmt.Errorf("workspace: pipeline id %q cannot be a directory", clip(pipeline, 60))
		}
		path = filepath.Join("workspace", pipeline, "src")
	} else {
		r := replacer{lookup: func(key string) (string, bool) { v, ok := j.vars.Variables[key]; return v, ok }}
		filled, unknown := r.Strict(path)
		if len(unknown) > 0 {
			return "", fmt.Errorf("workspace %q: no variable %s", path, strings.Join(unknown, ", "))
		}
		if strings.ContainsAny(filled, "\x00\r\n") {
			return "", errors.New("workspace: a control character in its path")
		}
		path = filled
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(j.host.Dir, path)
	}
	return filepath.Abs(path)
}

// tasks claims and runs tasks until the server says END. The error is that of a claim or report that failed for good.
func (j *job) tasks(ctx context.Context) error {
	waits := 0
	for ctx.Err() == nil {
		var task *wire.BuildTask
		err := patient.do(ctx, http.MethodGet, func(retry int) (err error) {
			task, err = j.session.ClaimTask(ctx, retry)
			return err
		})
		if err != nil {
			return err
		}
		switch task.Status {
		case wire.TaskEnd:
			return nil
		case wire.TaskDo:
			waits = 0
			if err := j.do(ctx, task); err != nil {
				return err
			}
		default: // WAIT, and whatever a later server may say
			sleep(ctx, pause(waits))
			waits++
		}
	}
	return context.Cause(ctx)
}

// do runs one task and reports it.
func (j *job) do(ctx context.Context, task *wire.BuildTask) error {
	id := value(task.TaskID)
	count := j.count
	if task.ExecuteCount != nil {
		count = *task.ExecuteCount
	}
	log := j.newLog(id, value(task.StepID), count)
	j.log.Info("Task started", "task", id, "type", value(task.Type))
	result := j.runTask(ctx, task, log)
	j.log.Info("Task ended", "task", id, "success", result.Success, "code", *result.ErrorCode)
	if ctx.Err() != nil {
		if told(context.Cause(ctx)) { // the server should know how the task ended
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), lastWords)
			defer cancel()
		} else {
			log.Close()
			return context.Cause(ctx)
		}
	}
	j.up.Flush(ctx)
	err := patient.do(ctx, http.MethodPost, func(retry int) error { return j.session.Complete(ctx, result, retry) })
	if err != nil {
		return err
	}
	mode := log.modeName()
	finish := wire.LogStatus{Tag: id, JobID: j.vars.ContainerHashID, ExecuteCount: count, Mode: mode}
	if err := inner(ctx, http.MethodPut, func() error { return j.session.FinishLog(ctx, finish) }); err != nil {
		j.log.Warn("The task's log is not marked as complete", "task", id, "err", err)
	}
	log.Close()
	j.modes = append(j.modes, wire.LogMode{ElementID: id, LogFile: log.kept(), LogStorageMode: mode})
	return nil
}

// closeLog sends what is left of the log and says where it was kept.
func (j *job) closeLog(ctx context.Context) {
	j.up.Flush(ctx)
	if len(j.modes) > 0 && ctx.Err() == nil {
		if err := j.session.LogModes(ctx, j.count, j.modes); err != nil {
			j.log.Warn("Log modes are not reported", "err", err)
		}
	}
	j.up.Close()
	j.around.Close()
}

// end tells the server that the session is over; err is why, nil after a job that ran.
func (j *job) end(ctx context.Context, why error) {
	var message *string
	if why != nil {
		text := clip(j.mask.Mask(why.Error()), 4000)
		message = &text
	}
	err := brief.do(ctx, http.MethodPost, func(retry int) error { return j.session.End(ctx, message, retry) })
	if err != nil && !over(err) {
		j.log.Error("The end is not reported", "err", err)
	}
}

// killLeft kills what a task left running, or the whole job when task is "" (protocol §6.6). Our parents carry the
// same variables: they are spared.
func (j *job) killLeft(task string) {
	want := map[string]string{"PROJECT_ID": j.args.Job.Project, "BUILD_ID": j.args.Job.ID, "VM_SEQ_ID": j.args.Job.VMSeq}
	if task != "" {
		want["BK_CI_BUILD_TASK_ID"] = task
	}
	killed, err := proc.KillByEnv(want, keepAlive, proc.Ancestors()...)
	if err != nil {
		j.log.Warn("Not everything of the build could be looked at", "err", err)
	}
	if len(killed) > 0 {
		j.log.Info("Processes of the build were killed", "pids", fmt.Sprint(killed))
	}
}

// keepAlive is how a process asks to outlive its build.
func keepAlive(env map[string]string) bool {
	return strings.EqualFold(env["DEVOPS_DONT_KILL_PROCESS_TREE"], "true")
}

// sweep leaves nothing behind: no process, no reader.
func (j *job) sweep() {
	j.killLeft("")
	for _, s := range j.streams {
		_ = s.r.Close()
	}
	if j.host.GOOS != "windows" { // there a reader ends only with the last process that holds its pipe
		j.readers.Wait()
	}
}

// answerText prefers the server's own text for the error file (protocol §6.2).
func answerText(err error) error {
	var status *wire.StatusError
	if errors.As(err, &status) && status.Body != "" {
		return fmt.Errorf("%w: %s", err, status.Body)
	}
	return err
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
