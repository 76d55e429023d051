package worker

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unicode/utf16"

	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/service/proc"
)

// Bounds of a task.
const (
	maxScript   = 8 << 20         // bytes of a decoded script
	maxResults  = 8 << 20         // bytes read of a result file
	maxNames    = 10_000          // variables in buildResult
	maxValue    = 4000            // characters of one value, and of a message (protocol §6.5)
	tailLines   = 20              // of stderr in the message of a failed task
	killGrace   = time.Second     // between asking a cancelled task to end and killing it; it must be gone in five
	killedLimit = 5 * time.Second // how long a killed process is waited for: one in uninterruptible sleep stays
)

// What ends a task before its script does.
var (
	errCancelled = errors.New("the task was cancelled")
	errTaskLimit = errors.New("the time limit of the task is over")
)

// failure is why a task failed, for the server.
type failure struct {
	kind    string // wire.ErrorUser …
	code    int
	message string
}

func userError(code int, format string, args ...any) *failure {
	return &failure{kind: wire.ErrorUser, code: code, message: fmt.Sprintf(format, args...)}
}

// run is one execution of a script task.
type run struct {
	j     *job
	task  *wire.BuildTask
	id    string
	log   *taskLog
	step  step
	files []string // to be removed at the end

	mu       sync.Mutex // the two outputs are read side by side
	results  map[string]string
	gates    map[string]string // quality values
	setError *command
	tail     []string
	tailSize int
	advised  bool
}

// runTask runs a task and makes its result (protocol §6.5, §6.7). Everything it has logged is queued when it returns.
func (j *job) runTask(ctx context.Context, task *wire.BuildTask, log *taskLog) wire.TaskResult {
	r := &run{j: j, task: task, id: value(task.TaskID), log: log, results: map[string]string{}, gates: map[string]string{}}
	j.secrets(task.BuildVariable)
	j.mask.Add(value(task.SignToken))
	ctx, done := j.begin(ctx, r.id)
	defer done()
	failed := r.run(ctx)
	result := wire.TaskResult{
		TaskID: r.id, ElementID: r.id, ElementVersion: task.ElementVersion, ContainerID: &j.vars.ContainerHashID,
		Success: failed == nil, ExecuteCount: task.ExecuteCount, Type: task.Type,
		BuildResult: r.buildResult(), MonitorData: map[string]any{}, ErrorCode: new(int),
	}
	if failed != nil {
		message := limited(j.mask.Mask(failed.message), maxValue)
		result.Message, result.ErrorType, result.ErrorCode = &message, &failed.kind, &failed.code
		first, _, _ := strings.Cut(failed.message, "\n")
		log.Say(wire.LogError, "%s", first)
	}
	return result
}

// workspaceIsBack makes the workspace again, empty, after a task that has removed it with all that is in it: "rm -rf"
// of the directory before a fresh checkout is common, and the next task must not fail for it.
func (r *run) workspaceIsBack() error {
	if _, err := os.Lstat(r.j.workspace); !errors.Is(err, os.ErrNotExist) {
		return nil // what else is wrong with it, the task says in its own words
	}
	if err := os.MkdirAll(r.j.workspace, 0o777); err != nil { // as in prepare
		return fmt.Errorf("make the workspace again: %w", err)
	}
	r.log.Say(wire.LogWarn, "the workspace was gone; an empty one was made in its place")
	return nil
}

func (r *run) run(ctx context.Context) *failure {
	params := r.task.Params
	options, given := params["additionalOptions"]
	limit := taskLimit(options, given)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errTaskLimit)
	defer cancel()

	if err := r.workspaceIsBack(); err != nil {
		return userError(wire.CodeCannotRun, "%v", err)
	}
	switch value(r.task.Type) {
	case wire.TaskArtifactSave:
		return r.saveArtifact(ctx)
	case wire.TaskArtifactGet:
		return r.getArtifacts(ctx)
	}
	kind, failed := r.kind()
	if failed != nil {
		return failed
	}
	script, err := url.QueryUnescape(params["script"])
	switch {
	case err != nil:
		return userError(wire.CodeInvalidInput, "the script cannot be decoded: %v", err)
	case len(script) > maxScript:
		return userError(wire.CodeInvalidInput, "the script is longer than %d bytes", maxScript)
	}
	defer r.remove()
	command, err := r.prepare(kind, strings.ReplaceAll(script, "\r", ""))
	if err != nil {
		return userError(wire.CodeCannotRun, "prepare the script: %v", err)
	}
	exit, cause, err := r.execute(ctx, command)
	if kind == kindBatch && err == nil && cause == nil && exit.Code != 0 && !r.reached() {
		r.log.Say(wire.LogWarn, "the batch file ended before the script began; once more")
		exit, cause, err = r.execute(ctx, command)
	}
	r.collect()
	r.reportGates(ctx)
	switch {
	case err != nil:
		return userError(wire.CodeCannotRun, "%v", err)
	case errors.Is(cause, errTaskLimit):
		return userError(wire.CodeTaskTimeout, "the script ran longer than its limit of %v and was killed", limit)
	case errors.Is(cause, errCancelled):
		return userError(wire.CodeFastKill, "the task was cancelled")
	case cause != nil:
		return userError(wire.CodeFastKill, "the task was ended: %v", cause)
	case exit.Success():
		return nil
	case r.setError != nil:
		return userError(r.setError.code, "%s", r.setError.value)
	}
	message := exitText(exit)
	if tail := strings.Join(r.tail, "\n"); tail != "" {
		message += "\n" + tail
	}
	return userError(wire.CodeScriptFailed, "%s", message)
}

func exitText(exit proc.Exit) string {
	if exit.Signal == "" && exit.Err == nil {
		return fmt.Sprintf("the script ended with exit code %d", exit.Code)
	}
	return fmt.Sprintf("the script ended: %v", exit)
}

// The kinds of scripts.
type kind int

const (
	kindShell kind = iota
	kindBatch
	kindPowerShell
)

// kind finds out what is to be run, and whether this machine can.
func (r *run) kind() (kind, *failure) {
	taskType, script := value(r.task.Type), r.task.Params["scriptType"]
	windows := r.j.host.GOOS == "windows"
	switch {
	case r.id == "":
		return 0, userError(wire.CodeInvalidInput, "a task without id")
	case taskType != wire.TaskLinuxScript && taskType != wire.TaskWindowsScript:
		return 0, userError(wire.CodeInvalidInput, "this worker runs scripts only, not tasks of type %q", clip(taskType, 60))
	case r.task.Params["script"] == "":
		return 0, userError(wire.CodeInvalidInput, "the task has no script")
	case taskType == wire.TaskLinuxScript && script == "SHELL" && !windows:
		return kindShell, nil
	case taskType == wire.TaskWindowsScript && script == "BAT" && windows:
		return kindBatch, nil
	case taskType == wire.TaskWindowsScript && script == "POWER_SHELL" && windows:
		return kindPowerShell, nil
	case script == "":
		return 0, userError(wire.CodeInvalidInput, "the task has no scriptType")
	}
	return 0, userError(wire.CodeInvalidInput, "a %s script of type %q cannot be run on this machine (%s)", taskType, clip(script, 60), r.j.host.GOOS)
}

// prepare writes the script and its wrapper and returns what to start.
func (r *run) prepare(kind kind, script string) (proc.Command, error) {
	j := r.j
	variables, fill := r.variables()
	temp := j.args.TempDir
	if temp == "" {
		temp = os.TempDir()
	}
	temp, err := filepath.Abs(temp)
	if err != nil {
		return proc.Command{}, err
	}
	if err := os.MkdirAll(temp, 0o700); err != nil {
		return proc.Command{}, err
	}
	rnd := rand.Text()
	inWorkspace := func(name string) string { return filepath.Join(j.workspace, name) }
	r.step = step{
		script: fill.Text(script), variables: variables, workspace: j.workspace,
		result:    inWorkspace(j.args.Job.ID + "-" + rnd + "-result.log"),
		flag:      inWorkspace(j.args.Job.ID + "-" + rnd + "-flag.log"),
		gate:      inWorkspace("gatewayValueFile.ini"),
		keepGoing: r.task.Params["continueNoneZero"] == "true",
		charset:   r.task.Params["charsetType"],
	}
	for _, env := range j.vars.BuildEnvs {
		tool := toolEnv{vars: env.Env}
		if filepath.IsAbs(env.BinPath) {
			tool.path = env.BinPath
		}
		r.step.envs = append(r.step.envs, tool)
	}
	plain := inWorkspace(j.args.Job.ID + "-result.log")
	_ = os.Remove(plain) // of a task before us, that was killed
	_ = os.Remove(r.step.gate)
	r.files = append(r.files, plain, r.step.result, r.step.flag, r.step.gate)
	if err := os.WriteFile(r.step.result, nil, 0o600); err != nil { // made here: setEnv appends secrets too
		return proc.Command{}, err
	}
	command := proc.Command{Dir: j.workspace, Env: r.environ()}
	switch kind {
	case kindShell:
		if r.step.user, err = r.write(temp, "devops_script_user_*.sh", func() []byte { return []byte(r.step.script) }); err != nil {
			return proc.Command{}, err
		}
		if r.step.wrapper, err = r.write(temp, "devops_script*.sh", func() []byte { return []byte(shellWrapper(r.step)) }); err != nil {
			return proc.Command{}, err
		}
		// the interpreter is started, not the file: the temporary directory may forbid execution
		words := wrapperWords(r.step.script)
		command.Path, command.Args = words[0], append(words[1:], r.step.wrapper)
	case kindBatch:
		r.step.wrapper, err = r.write(temp, "paas_build_script_*.bat", func() []byte { return encode(batchFile(r.step), r.step.charset) })
		command.Path, command.Args = "cmd.exe", []string{"/C", r.step.wrapper}
	case kindPowerShell:
		body := "\ufeff" + strings.ReplaceAll(r.step.script, "\n", "\r\n")
		if r.step.user, err = r.write(temp, "paas_build_script_user_*.ps1", func() []byte { return []byte(body) }); err != nil {
			return proc.Command{}, err
		}
		r.step.wrapper, err = r.write(temp, "paas_build_script_*.ps1", func() []byte { return []byte(powerShellWrapper(r.step)) })
		command.Path = "powershell.exe"
		command.Args = []string{"-NoLogo", "-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass", "-File", r.step.wrapper}
	}
	return command, err
}

// write makes a file with a name nobody could foresee, for us alone. content is asked for when the name is known:
// a wrapper contains its own.
func (r *run) write(dir, pattern string, content func() []byte) (string, error) {
	f, err := os.CreateTemp(dir, pattern) // mode 0600
	if err != nil {
		return "", err
	}
	r.files = append(r.files, f.Name())
	r.step.wrapper = f.Name()
	_, err = f.Write(content())
	err = errors.Join(err, f.Chmod(0o700), f.Close())
	return f.Name(), err
}

func (r *run) remove() {
	for _, file := range r.files {
		_ = os.Remove(file)
	}
}

// variables are the runtime variables, and what fills them into texts (protocol §6.7).
func (r *run) variables() (map[string]string, replacer) {
	j := r.j
	vars := map[string]string{}
	for _, from := range []map[string]string{j.vars.Variables, r.task.BuildVariable, j.identity(r.id)} {
		for key, value := range from {
			vars[key] = value
		}
	}
	jobID, stepID := value(j.vars.JobID), value(r.task.StepID)
	lookup := func(key string) (string, bool) {
		switch key {
		case "ci.workspace":
			return j.workspace, true
		case "job.os":
			return osName(j.host.GOOS), true
		case "ci.token":
			return value(r.task.SignToken), r.task.SignToken != nil
		}
		names := []string{key}
		switch { // short forms of context names
		case strings.HasPrefix(key, "steps."):
			names = append(names, "jobs."+jobID+"."+key)
		case strings.HasPrefix(key, "step."):
			names = append(names, "jobs."+jobID+".steps."+stepID+strings.TrimPrefix(key, "step"))
		case strings.HasPrefix(key, "job."):
			names = append(names, "jobs."+jobID+strings.TrimPrefix(key, "job"))
		case strings.HasPrefix(key, "variables."):
			names = append(names, strings.TrimPrefix(key, "variables."))
		default:
			names = append(names, "variables."+key)
		}
		for _, name := range names {
			if v, ok := vars[name]; ok {
				return v, true
			}
		}
		v, ok := r.task.Params[key]
		return v, ok && key != "script"
	}
	fill := replacer{lookup: lookup, constrained: vars["BK_CI_PIPELINE_DIALECT"] == "CONSTRAINED"}
	for _, p := range customEnv(r.task.Params["customEnv"]) {
		if p.Key != "" {
			v := fill.Text(text(p.Value))
			vars[p.Key], vars["envs."+p.Key] = v, v
		}
	}
	return vars, fill
}

// identity are the variables by which the processes of a task are found again (protocol §6.6).
func (j *job) identity(task string) map[string]string {
	return map[string]string{
		"PROJECT_ID": j.args.Job.Project, "BUILD_ID": j.args.Job.ID, "VM_SEQ_ID": j.args.Job.VMSeq, "BK_CI_BUILD_TASK_ID": task,
	}
}

// environ is ours and the identity of the task: the script's first process has to be found too.
func (r *run) environ() []string {
	identity := r.j.identity(r.id)
	var env []string
	for _, item := range r.j.host.Env {
		name, _, _ := strings.Cut(item, "=")
		if _, ours := identity[name]; !ours {
			env = append(env, item)
		}
	}
	for _, name := range sortedKeys(identity) {
		env = append(env, name+"="+identity[name])
	}
	return env
}

// osName is the server's name of a system.
func osName(goos string) string {
	switch goos {
	case "windows":
		return "WINDOWS"
	case "darwin":
		return "MAC_OS"
	}
	return "LINUX"
}

// execute runs the script until it ends by itself or is ended, and reads its output. cause is why it was ended, nil
// when it ended by itself; err is why it could not be started.
func (r *run) execute(ctx context.Context, command proc.Command) (exit proc.Exit, cause, err error) {
	if ctx.Err() != nil {
		return proc.Exit{}, context.Cause(ctx), nil
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		return proc.Exit{}, nil, err
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		return proc.Exit{}, nil, errors.Join(err, outR.Close(), outW.Close())
	}
	command.Stdout, command.Stderr = outW, errW
	p, err := proc.Start(command)
	_, _ = outW.Close(), errW.Close()
	if err != nil {
		_, _ = outR.Close(), errR.Close()
		return proc.Exit{}, nil, err
	}
	out := newStream(outR, &splitter{line: r.out, cut: r.j.mask.Cut})
	errs := newStream(errR, &splitter{line: r.err, cut: r.j.mask.Cut})
	r.j.readers.Go(out.run)
	r.j.readers.Go(errs.run)

	select {
	case <-p.Done():
	case <-ctx.Done():
		cause = context.Cause(ctx)
		if err := p.KillSparing(killGrace, keepAlive); err != nil {
			r.j.log.Warn("Not everything of the task could be killed", "task", r.id, "err", err)
		}
		r.j.killLeft(r.id)
		select {
		case <-p.Done():
		case <-time.After(killedLimit):
			r.log.Say(wire.LogWarn, "the script was killed but does not end")
			r.j.streams = append(r.j.streams, out, errs)
			return proc.Exit{Code: -1}, cause, nil
		}
	}
	exit = p.Wait()
	held := out.ended()
	held = errs.ended() || held
	if held && cause == nil {
		r.log.Say(wire.LogWarn, "a process in the background still has the script's output open; what it prints from now on is not in this log")
	}
	for _, s := range []*stream{out, errs} {
		select {
		case <-s.done:
			_ = s.r.Close()
		default:
			r.j.streams = append(r.j.streams, s)
		}
	}
	return exit, cause, nil
}

func (r *run) out(line string) {
	line = decode(line, r.step.charset)
	r.command(line, true)
	r.log.Out(line)
}

func (r *run) err(line string) {
	line = decode(line, r.step.charset)
	r.command(line, false)
	r.mu.Lock()
	kept := clip(strings.ToValidUTF8(line, "\uFFFD"), maxValue/2)
	r.tail = append(r.tail, kept)
	r.tailSize += len(kept)
	for len(r.tail) > tailLines || r.tailSize > maxValue-500 && len(r.tail) > 1 {
		r.tailSize -= len(r.tail[0])
		r.tail = r.tail[1:]
	}
	r.mu.Unlock()
	r.log.Err(line)
}

// command obeys a line of output that is one (protocol §6.7).
func (r *run) command(line string, stdout bool) {
	c, ok := parseCommand(line)
	if !ok {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch c.name {
	case setVariable:
		r.set("variables."+c.key, c.value)
	case setOutput:
		jobID, stepID := strings.TrimSpace(value(r.j.vars.JobID)), strings.TrimSpace(value(r.task.StepID))
		if jobID != "" && stepID != "" {
			r.set("jobs."+jobID+".steps."+stepID+".outputs."+c.key, c.value)
		} else if !r.advised {
			r.advised = true
			r.log.Say(wire.LogWarn, "::set-output has no effect: the job or the step has no id")
		}
	case setRemark:
		r.set("BK_CI_BUILD_REMARK", c.value)
	case setError:
		r.setError = &c
	case setGate:
		if stdout {
			set(r.gates, c.key, c.value)
		}
	case setProgress:
		if stdout {
			r.j.report(r.id, c)
		}
	}
}

// report keeps the progress of a task for the next heartbeats.
func (j *job) report(task string, c command) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if task != j.task {
		return
	}
	if c.detail != nil {
		j.details[task] = c.detail
	} else {
		j.rates[task] = c.rate
	}
}

func (r *run) set(name, value string) { set(r.results, name, value) }

// set keeps the number of names bounded.
func set(in map[string]string, name, value string) {
	if _, known := in[name]; known || len(in) < maxNames {
		in[name] = strings.ToValidUTF8(value, "\uFFFD")
	}
}

// reached reports whether a batch file came as far as the user's script.
func (r *run) reached() bool {
	marks, err := os.ReadFile(r.step.flag)
	return err != nil || strings.Contains(string(marks), "script")
}

// collect reads what setEnv and setGateValue have written.
func (r *run) collect() {
	plain := filepath.Join(r.j.workspace, r.j.args.Job.ID+"-result.log")
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, file := range []string{plain, r.step.result} {
		r.pairs(file, func(name, value string) {
			if variableName(name) {
				r.set(name, value)
			}
		})
	}
	r.pairs(r.step.gate, func(name, value string) {
		if name != "" {
			set(r.gates, name, value)
		}
	})
}

// reportGates sends the quality values of a task. The server takes them or not: the task does not fail of it.
func (r *run) reportGates(ctx context.Context) {
	if len(r.gates) == 0 {
		return
	}
	err := inner(ctx, http.MethodPost, func() error { return r.j.session.SaveQuality(ctx, value(r.task.Type), r.gates) })
	if err != nil {
		r.log.Say(wire.LogWarn, "the quality values are not saved: %v", err)
	}
}

func (r *run) pairs(file string, take func(name, value string)) {
	f, err := os.Open(file)
	if err != nil {
		return // nothing was set
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return
	}
	lines := bufio.NewReader(io.LimitReader(f, maxResults))
	for {
		line, err := lines.ReadString('\n')
		if name, value, ok := strings.Cut(decode(line, r.step.charset), "="); ok {
			take(strings.TrimSpace(name), strings.TrimSpace(value))
		}
		if err != nil {
			return
		}
	}
}

// variableName is the rule for names in setEnv: ^[a-zA-Z_][a-zA-Z0-9_]*$.
func variableName(s string) bool {
	for i, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_', i > 0 && c >= '0' && c <= '9':
		default:
			return false
		}
	}
	return s != "" && len(s) <= maxKey
}

// buildResult is what the server gets of the collected variables: not what is too long, not what is a secret.
func (r *run) buildResult() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]string{}
	if jobID := value(r.j.vars.JobID); jobID != "" {
		out["jobs."+jobID+".os"] = osName(r.j.host.GOOS)
	}
	for _, name := range sortedKeys(r.results) {
		switch v := r.results[name]; {
		case units(v) > maxValue:
			r.log.Say(wire.LogWarn, "variable %s has more than %d characters and is left out", name, maxValue)
		case r.j.mask.Is(v):
			r.log.Say(wire.LogWarn, "the value of variable %s is a secret and is left out", name)
		default:
			out[name] = v
		}
	}
	return out
}

// units counts characters as the server does.
func units(s string) int {
	if len(s) <= maxValue {
		return len(s) // as many or fewer: enough to know
	}
	n := 0
	for _, c := range s {
		n += max(utf16.RuneLen(c), 1)
	}
	return n
}

// limited cuts a text to n characters as the server counts them.
func limited(s string, n int) string {
	count := 0
	for i, c := range s {
		if count += max(utf16.RuneLen(c), 1); count > n {
			return s[:i]
		}
	}
	return s
}
