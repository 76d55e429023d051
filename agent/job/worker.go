package job

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/service/proc"
)

// Names of the worker in the home directory (protocol §2.1; devopsWorker is ours).
const (
	Jar          = "worker-agent.jar"
	NativeWorker = "devopsWorker"
)

// Setup is what a build's worker is told about its agent: plain values, taken when the build starts.
type Setup struct {
	AgentVersion  string
	WorkerVersion string
	Gateway       string // with scheme
	FileGateway   string
	Language      string            // devops.language
	JDK8Java      string            // path of the java executable, whether or not it is there
	JDK17Java     string            // likewise; preferred when it is there
	SlaveUser     string            // devops.slave.user, "" for the agent's own account
	DetectShell   bool              // devops.agent.detect.shell
	Envs          map[string]string // pushed by the server; they override all else
	Umask         int               // of the worker
	// JarVersion asks a jar for its version, "" when it has none (protocol §3.6.3).
	JarVersion func(ctx context.Context, jar string) string
}

// Runner runs builds, each in a worker of its own (protocol §3.6). It does not know the server: it returns an
// Outcome, and the agent reports it.
type Runner struct {
	Home     string
	Programs string // directory of the native worker where home has none, "" for no other
	GOOS     string
	Ledger   *Ledger
	Log      *slog.Logger
}

// files are the scratch files of one build (protocol §2.1).
type files struct{ start, prestart, errors, output string }

func (r *Runner) files(b wire.Build) files {
	tmp := filepath.Join(r.Home, "build_tmp")
	id := b.Project + "_" + key(b)
	return files{
		start:    filepath.Join(r.Home, "devops_agent_start_"+id+".sh"),
		prestart: filepath.Join(r.Home, "devops_agent_prepare_start_"+id+".sh"),
		errors:   filepath.Join(tmp, key(b)+"_build_msg.log"),
		output:   filepath.Join(tmp, key(b)+"_worker_out.log"),
	}
}

// Refuse notes a build that is not run at all, so that its report is not lost.
func (r *Runner) Refuse(b wire.Build, lang string, o Outcome) Outcome {
	return r.end(b, lang, o)
}

// Run starts the worker of a build, waits for it and returns how it ended. The slot stays the caller's. Cancelling
// ctx stops the waiting, not the build: ok is then false, and the next agent adopts the build from its record.
// The end of halt stops the build: its whole tree is killed, and its outcome says so (see [Stop]).
func (r *Runner) Run(ctx, halt context.Context, b wire.Build, slot *Slot, s Setup) (o Outcome, ok bool) {
	log := r.Log.With("build", b.ID, "vm_seq", b.VMSeq, "project", b.Project)
	if err := checkIDs(b); err != nil {
		log.Error("Build refused", "err", err)
		return r.end(b, s.Language, Unusable(s.Language, err)), true
	}
	if halt.Err() != nil {
		log.Warn("Build refused: the agent stops")
		return r.end(b, s.Language, stopped(s.Language, context.Cause(halt))), true
	}
	child, code, err := r.start(ctx, b, s)
	if err != nil {
		log.Error("Worker not started", "code", int(code), "err", withHint(err))
		return r.settle(b, s.Language, Failed(s.Language, code, withHint(err))), true
	}
	defer r.boundOutput(b)()
	slot.Running(child.Pid())
	log.Info("Worker started", "pid", child.Pid())
	if err := r.Ledger.Put(Record{Build: b, State: Running, Language: s.Language, PID: child.Pid(), Started: child.Started(), At: time.Now()}); err != nil {
		log.Warn("Build would be forgotten if the agent were killed now", "err", err)
	}
	select {
	case <-child.Done():
	case <-halt.Done():
	case <-ctx.Done():
	}
	select {
	case <-child.Done(): // also when it ended in the same moment
		exit := child.Wait()
		if exit.Signal != "" && !r.waitForWorker(ctx, halt, b, log) {
			return r.unfinished(ctx, halt, b, s.Language, child)
		}
		log.Info("Worker ended", "pid", child.Pid(), "how", exit.String())
		return r.finish(b, s.Language, child.Pid(), &exit), true
	default:
	}
	return r.unfinished(ctx, halt, b, s.Language, child)
}

// unfinished leaves a build that has not ended to the next agent, or stops it when halt has ended. child is nil when
// there is none that could be named.
func (r *Runner) unfinished(ctx, halt context.Context, b wire.Build, lang string, child *proc.Process) (o Outcome, ok bool) {
	if halt.Err() == nil || ctx.Err() != nil {
		return Outcome{}, false
	}
	log := r.Log.With("build", b.ID, "vm_seq", b.VMSeq, "project", b.Project)
	log.Warn("Build is stopped", "why", context.Cause(halt))
	if child != nil {
		if err := child.Kill(haltGrace); err != nil {
			log.Error("Not all processes of a build could be stopped", "err", err)
		}
	}
	// What left the tree is found by the worker's argument and the build's environment.
	if pid, started, found := proc.FindByArg(r.workerArg(b)); found {
		if worker, err := proc.Adopt(pid, started); err == nil {
			if err := worker.Kill(haltGrace); err != nil {
				log.Error("Not all processes of a build could be stopped", "err", err)
			}
		}
	}
	r.killLeftovers(b)
	return r.settle(b, lang, stopped(lang, context.Cause(halt))), true
}

// haltGrace is the time between SIGTERM and SIGKILL for a build that is stopped with its agent.
const haltGrace = time.Second

// workerArg is the argument that names the worker of a build and nothing else.
func (r *Runner) workerArg(b wire.Build) string {
	return "-Ddevops.agent.error.file=" + r.files(b).errors
}

// Adopt waits for a build that an earlier agent started, and returns how it ended; ok is false when ctx ended first.
// The end of halt stops the build, as in Run.
func (r *Runner) Adopt(ctx, halt context.Context, rec Record) (o Outcome, ok bool) {
	log := r.Log.With("build", rec.Build.ID, "vm_seq", rec.Build.VMSeq, "project", rec.Build.Project, "pid", rec.PID)
	switch rec.State {
	case Ended:
		r.sweep(rec.Build) // the agent may have died between the record and the files
		return *rec.Outcome, true
	case Starting:
		// The worker may or may not have been started; its record was never written. Whatever runs for the build is
		// found by its environment and stopped: nobody waits for it.
		log.Warn("Build was claimed by an agent that died; it is reported as failed")
		r.killLeftovers(rec.Build)
		return r.settle(rec.Build, rec.Language, lost(rec.Language)), true
	case Running:
	}
	defer r.boundOutput(rec.Build)()
	child, err := proc.Adopt(rec.PID, rec.Started)
	if err == nil {
		log.Info("Build adopted from an earlier agent")
		err = waitFor(ctx, halt, rec.PID, rec.Started)
	} else {
		if proc.Earlier(rec.Started) && r.silent(rec.Build) {
			log.Warn("Build was cut off by a restart of the machine; it is reported as failed")
			return r.settle(rec.Build, rec.Language, cutOff(rec.Language)), true
		}
		log.Info("Build ended while no agent ran")
		err = nil
	}
	if err != nil || !r.waitForWorker(ctx, halt, rec.Build, log) {
		return r.unfinished(ctx, halt, rec.Build, rec.Language, child)
	}
	return r.finish(rec.Build, rec.Language, rec.PID, nil), true
}

// waitForWorker waits for a worker whose shell was killed. What we started is a login shell; the worker is its child,
// and kills the shell itself at the end of a perfectly good build (protocol §3.6.5, §6.6). A worker that has not even
// emptied the error file is not waited for. It reports false when ctx or halt ended first.
func (r *Runner) waitForWorker(ctx, halt context.Context, b wire.Build, log *slog.Logger) bool {
	if !r.silent(b) {
		return true
	}
	pid, started, ok := proc.FindByArg(r.workerArg(b))
	if !ok {
		return true
	}
	log.Warn("Shell of the worker is gone, its worker goes on", "worker_pid", pid)
	return waitFor(ctx, halt, pid, started) == nil
}

// silent: the worker of a build has emptied its error file, and has put nothing into it (protocol §3.6.5).
func (r *Runner) silent(b wire.Build) bool {
	text, err := readHead(r.files(b).errors, maxMessage)
	return err == nil && strings.TrimSpace(text) == ""
}

// waitFor waits for the end of a process, at most until ctx or halt ends.
func waitFor(ctx, halt context.Context, pid int, started string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(halt, cancel)()
	return proc.WaitFor(ctx, pid, started)
}

// finish reads the error file, stops what the build left running, and removes its scratch files. exit is nil when
// somebody else's child ended.
func (r *Runner) finish(b wire.Build, lang string, pid int, exit *proc.Exit) Outcome {
	o := r.judge(b, lang, pid, exit)
	r.killLeftovers(b)
	return r.settle(b, lang, o)
}

// settle makes an outcome durable and removes the scratch files, in this order: an agent that dies before the outcome
// is on disk leaves the files to the next one, which would read success from an error file that is gone. On a full
// disk the outcome gets the room that the files had.
func (r *Runner) settle(b wire.Build, lang string, o Outcome) Outcome {
	ended := Record{Build: b, State: Ended, Language: lang, Outcome: &o, At: time.Now()}
	err := r.Ledger.Put(ended)
	r.sweep(b)
	if err != nil {
		err = r.Ledger.Put(ended)
	}
	r.undurable(b, err)
	return o
}

// A worker's own output is read only when it never began: its last lines say why. Of one that goes on and on, no more
// than this is kept, looked at so often.
const (
	maxOutput   = 16 << 20
	outputEvery = 2 * time.Second
)

// boundOutput keeps the file with a worker's output small until the function it returns is called.
func (r *Runner) boundOutput(b wire.Build) (stop func()) {
	path, ended := r.files(b).output, make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		tick := time.NewTicker(outputEvery)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
				cutOutput(path)
			}
		}
	})
	return func() {
		close(ended)
		watch.Wait()
	}
}

// cutOutput empties a file that has grown too long. Who writes it appends, and goes on at its new end.
func cutOutput(path string) {
	if info, err := os.Lstat(path); err != nil || info.Size() <= maxOutput {
		return
	}
	if f, err := openPlain(path, os.O_WRONLY); err == nil {
		_, _ = f.Truncate(0), f.Close()
	}
}

// end makes the outcome of a build durable that never had files.
func (r *Runner) end(b wire.Build, lang string, o Outcome) Outcome {
	r.undurable(b, r.Ledger.Put(Record{Build: b, State: Ended, Language: lang, Outcome: &o, At: time.Now()}))
	return o
}

// undurable: a disk that is full costs the safety of the report, not the report.
func (r *Runner) undurable(b wire.Build, err error) {
	if err != nil {
		r.Log.Warn("Report would be lost if the agent were killed now", "build", b.ID, "err", err)
	}
}

// judge applies protocol §3.6.5: an empty error file is success, whatever the exit code; anything in it is failure.
func (r *Runner) judge(b wire.Build, lang string, pid int, exit *proc.Exit) Outcome {
	f := r.files(b)
	text, err := readHead(f.errors, maxMessage)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Failed(lang, WorkerFailed, err.Error())
	}
	how := ""
	if exit != nil && (exit.Code != 0 || exit.Signal != "") {
		how = exit.String()
	}
	gone := errors.Is(err, fs.ErrNotExist)
	if strings.TrimSpace(text) == "" && (!gone || how == "") {
		return succeeded(lang, pid, how)
	}
	code := WorkerFailed
	if gone || text == killedText(lang) { // it never got as far as emptying the file
		if gone {
			text = killedText(lang)
		}
		if exit != nil && (exit.Code == 126 || exit.Code == 127) { // the shell's words for "cannot execute", "not found"
			code = StartFailed
		}
		if tail := strings.TrimSpace(readTail(f.output, 2048)); tail != "" {
			text += "\n" + tail
		}
	}
	if how != "" {
		text += " | " + how
	}
	return Failed(lang, code, text)
}

// killLeftovers stops every process of the build that is still there: nothing outlives a build, unless it asked to
// (protocol §6.6, DEVOPS_DONT_KILL_PROCESS_TREE).
func (r *Runner) killLeftovers(b wire.Build) {
	kept := 0
	killed, err := proc.KillByEnv(map[string]string{"PROJECT_ID": b.Project, "BUILD_ID": b.ID, "VM_SEQ_ID": b.VMSeq},
		func(env map[string]string) bool {
			keep := strings.EqualFold(env["DEVOPS_DONT_KILL_PROCESS_TREE"], "true")
			if keep {
				kept++
			}
			return keep
		})
	if len(killed) > 0 || kept > 0 || err != nil {
		r.Log.Info("Processes left by a build", "build", b.ID, "killed", len(killed), "kept", kept, "err", err)
	}
}

// sweep removes the scratch files of a build. One that was refused for its ids has none, and its ids name no files.
func (r *Runner) sweep(b wire.Build) {
	if checkIDs(b) != nil {
		return
	}
	f := r.files(b)
	for _, path := range []string{f.start, f.prestart, f.errors, f.output} {
		if err := removeIfThere(path); err != nil {
			r.Log.Warn("File of a build not removed", "build", b.ID, "path", path, "err", err)
		}
	}
}

// start does protocol §3.6.4. Each way to fail has a code of its own, and ends here.
func (r *Runner) start(ctx context.Context, b wire.Build, s Setup) (*proc.Process, Code, error) {
	program, args, code, err := r.worker(ctx, b, s)
	if err != nil {
		return nil, code, err
	}
	account, err := r.account(s.SlaveUser)
	if err != nil {
		return nil, StartFailed, err
	}
	if err := r.makeTmp(account); err != nil {
		return nil, TmpDirFailed, err
	}
	f := r.files(b)
	// Before the start: a worker that is quick has emptied the file before we would have filled it (weakness W-23).
	if err := writeFor(account, f.errors, killedText(s.Language), 0o600); err != nil {
		return nil, TmpDirFailed, fmt.Errorf("write error file: %w", err)
	}
	if err := r.Ledger.Put(Record{Build: b, State: Starting, Language: s.Language, At: time.Now()}); err != nil {
		return nil, ScriptsFailed, err
	}
	if r.GOOS != "windows" {
		if err := r.writeScripts(account, f, s, append([]string{program}, args...)); err != nil {
			return nil, ScriptsFailed, err
		}
		program, args = f.prestart, nil
	}
	if err := removeIfThere(f.output); err != nil {
		return nil, StartFailed, fmt.Errorf("keep the worker's output: %w", err)
	}
	output, err := os.OpenFile(f.output, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return nil, StartFailed, fmt.Errorf("keep the worker's output: %w", err)
	}
	defer func() { _ = output.Close() }()
	child, err := proc.Start(proc.Command{
		Path: program, Args: args, Dir: r.Home, Env: r.environment(b, s, account),
		Stdout: output, Stderr: output, Account: account, Umask: s.Umask,
	})
	if err != nil {
		err = fmt.Errorf("start worker: %w", err)
		if account != nil && errors.Is(err, fs.ErrPermission) {
			err = &hinted{err, "let " + account.Name + " enter " + r.Home + " and every directory above it, as by chmod o+x"}
		}
		return nil, StartFailed, err
	}
	return child, 0, nil
}

// worker returns the program that does the build and its arguments (protocol §3.6.4): java with the jar, or, where
// there is no jar at all, the native worker with the same arguments.
func (r *Runner) worker(ctx context.Context, b wire.Build, s Setup) (program string, args []string, code Code, err error) {
	jar := filepath.Join(r.Home, Jar)
	native := r.Native()
	code, err = r.heal(ctx, jar, s)
	switch {
	case err == nil:
		if program, err = pickJava(s); err != nil {
			return "", nil, StartFailed, err
		}
	case code == WorkerMissing && executable(native) == nil:
		program = native
	default:
		return "", nil, code, err
	}
	job, err := json.Marshal(b)
	if err != nil {
		return "", nil, StartFailed, err
	}
	return program, r.arguments(b, jar, base64.StdEncoding.EncodeToString(job)), 0, nil
}

// Native is the path of the native worker, whether or not it is there: that of home, else that of the agent's package.
func (r *Runner) Native() string {
	name := NativeWorker
	if r.GOOS == "windows" {
		name += ".exe"
	}
	own := filepath.Join(r.Home, name)
	if r.Programs == "" || executable(own) == nil {
		return own
	}
	if theirs := filepath.Join(r.Programs, name); executable(theirs) == nil {
		return theirs
	}
	return own
}

// HasWorker reports whether a build would find a program to run in: the jar, its copy in tmp/, or a native worker.
func (r *Runner) HasWorker() bool {
	for _, jar := range []string{filepath.Join(r.Home, Jar), filepath.Join(r.Home, "tmp", Jar)} {
		if _, err := os.Stat(jar); err == nil {
			return true
		}
	}
	return executable(r.Native()) == nil
}

// arguments are those of the java command line, in the order of protocol §3.6.4; Windows has an order of its own
// and no scripts.
func (r *Runner) arguments(b wire.Build, jar, job string) []string {
	f := r.files(b)
	start := "-Ddevops.slave.agent.start.file=" + f.start
	prestart := "-Ddevops.slave.agent.prepare.start.file=" + f.prestart
	errorFile := r.workerArg(b)
	buildType := "-Dbuild.type=AGENT"
	prefix := "-DAGENT_LOG_PREFIX=" + key(b) + "_agent"
	tmp := "-Djava.io.tmpdir=" + filepath.Join(r.Home, "build_tmp")
	if r.GOOS == "windows" {
		return []string{tmp, errorFile, buildType, prefix, "-Xmx2g", "-jar", jar, job}
	}
	return []string{start, prestart, errorFile, buildType, prefix, "-Xmx2g", tmp, "-jar", jar, job}
}

// heal makes sure that the jar is there (protocol §3.6.3): from tmp/ if need be, when that copy tells a version.
func (r *Runner) heal(ctx context.Context, jar string, s Setup) (Code, error) {
	if _, err := os.Stat(jar); err == nil {
		return 0, nil
	}
	spare := filepath.Join(r.Home, "tmp", Jar)
	if _, err := os.Stat(spare); err != nil {
		return WorkerMissing, &hinted{fmt.Errorf("no worker: neither devopsWorker nor %s is in %s", Jar, r.Home),
			"copy devopsWorker, or worker-agent.jar and a jdk17 directory, into it, or wait for the server's next worker upgrade"}
	}
	if version := s.JarVersion(ctx, spare); !strings.HasPrefix(version, "v") {
		return HealFailed, fmt.Errorf("%s is not there, and its copy in tmp tells no version (%.40q)", jar, version)
	}
	if err := copyFile(jar, spare); err != nil {
		return HealFailed, fmt.Errorf("restore %s: %w", jar, err)
	}
	r.Log.Warn("Worker file restored from its copy", "path", jar, "from", spare)
	return 0, nil
}

func pickJava(s Setup) (string, error) {
	err17 := executable(s.JDK17Java)
	if err17 == nil {
		return s.JDK17Java, nil
	}
	err8 := executable(s.JDK8Java)
	if err8 == nil {
		return s.JDK8Java, nil
	}
	err := err8
	if !errors.Is(err17, fs.ErrNotExist) {
		err = err17
	}
	return "", &hinted{fmt.Errorf("start worker: %w", err),
		"the JDK is missing or damaged; the next JDK upgrade brings one, or copy one to " + filepath.Dir(filepath.Dir(s.JDK8Java))}
}

// executable reports why a file cannot be run, nil when it can.
func executable(path string) error {
	if path == "" {
		return &fs.PathError{Op: "stat", Path: "java", Err: fs.ErrNotExist}
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return &fs.PathError{Op: "execute", Path: path, Err: syscall.EISDIR}
	case runtime.GOOS != "windows" && info.Mode().Perm()&0o111 == 0:
		return &fs.PathError{Op: "execute", Path: path, Err: fs.ErrPermission}
	}
	return nil
}

// account is the one that devops.slave.user names, nil for our own (protocol §3.6.4). It needs root; for anyone else
// the setting has no effect (protocol §2.2).
func (r *Runner) account(name string) (*proc.Account, error) {
	if name == "" || r.GOOS == "windows" {
		return nil, nil
	}
	if me, err := user.Current(); err == nil && me.Username == name {
		return nil, nil
	}
	if os.Geteuid() != 0 {
		r.Log.Warn("devops.slave.user has no effect: only root can start workers as another user", "user", name)
		return nil, nil
	}
	account, err := proc.LookupAccount(name)
	if err != nil {
		return nil, &hinted{fmt.Errorf("start worker as %s: %w", name, err), "correct devops.slave.user in .agent.properties"}
	}
	return account, nil
}

// makeTmp makes build_tmp, and for a worker with another account also what it writes to.
func (r *Runner) makeTmp(account *proc.Account) error {
	tmp := filepath.Join(r.Home, "build_tmp")
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return fmt.Errorf("make temporary directory: %w", err)
	}
	if account == nil {
		return nil
	}
	for _, dir := range []string{"build_tmp", "workspace", "logs"} {
		path := filepath.Join(r.Home, dir)
		if err := os.MkdirAll(path, 0o700); err != nil {
			return fmt.Errorf("make directory for %s: %w", account.Name, err)
		}
		// Sticky, as /tmp: others may add files, and remove only their own (weakness W-42).
		if err := os.Chmod(path, 0o777|os.ModeSticky); err != nil {
			return fmt.Errorf("open directory to %s: %w", account.Name, err)
		}
	}
	return nil
}

// environment of the worker: the agent's, then what the protocol adds, then what the server pushed (§3.6.4).
func (r *Runner) environment(b wire.Build, s Setup, account *proc.Account) []string {
	env := agentEnvironment()
	add := func(name, value string) { env = append(env, name+"="+value) }
	add("DEVOPS_AGENT_VERSION", s.AgentVersion)
	add("DEVOPS_WORKER_VERSION", s.WorkerVersion)
	add("DEVOPS_SLAVE_VERSION", s.WorkerVersion)
	add("DEVOPS_PROJECT_ID", b.Project)
	add("PROJECT_ID", b.Project)
	add("DEVOPS_BUILD_ID", b.ID)
	add("BUILD_ID", b.ID)
	add("DEVOPS_VM_SEQ_ID", b.VMSeq)
	add("VM_SEQ_ID", b.VMSeq)
	add("DEVOPS_FILE_GATEWAY", s.FileGateway)
	add("DEVOPS_GATEWAY", s.Gateway)
	add("BK_CI_LOCALE_LANGUAGE", s.Language)
	add("DEVOPS_AGENT_JDK_8_PATH", s.JDK8Java)
	add("DEVOPS_AGENT_JDK_17_PATH", s.JDK17Java)
	if mode, err := readHead(filepath.Join(r.Home, ".install_type"), 64); err == nil {
		add("DEVOPS_AGENT_INSTALL_MODE", strings.TrimSpace(mode))
	}
	for name, value := range s.Envs {
		if name != "" && !strings.ContainsAny(name, "=\x00") && !strings.ContainsRune(value, 0) {
			add(name, value)
		}
	}
	if account != nil {
		add("HOME", account.Home)
		add("USER", account.Name)
		add("LOGNAME", account.Name)
	}
	return lastWins(env)
}

// TokenVariable holds the install token where it is given to an enrolment by the environment (protocol §5.3).
const TokenVariable = "DEVOPS_AGENT_TOKEN"

// agentEnvironment is our own without what only our keeper's protocol with us is about: a build must not answer
// for us (sd_notify(3), sd_listen_fds(3)). Nor may it enrol machines.
func agentEnvironment() []string {
	var env []string
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		switch name {
		case "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", TokenVariable:
			continue
		}
		env = append(env, entry)
	}
	return env
}

// lastWins keeps the last of several entries for one name: what a program makes of two is its own affair.
func lastWins(env []string) []string {
	at := map[string]int{}
	var out []string
	for _, entry := range env {
		name, _, _ := strings.Cut(entry, "=")
		if runtime.GOOS == "windows" {
			name = strings.ToUpper(name)
		}
		if i, seen := at[name]; seen {
			out[i] = entry
			continue
		}
		at[name] = len(out)
		out = append(out, entry)
	}
	return out
}

// writeScripts writes prestart, which becomes a login shell on start, and start, which runs the worker (§3.6.4).
// The detour makes the shell read the profile files.
func (r *Runner) writeScripts(account *proc.Account, f files, s Setup, command []string) error {
	shell := "/bin/bash"
	if detected := strings.TrimSpace(os.Getenv("SHELL")); s.DetectShell && detected != "" {
		shell = detected
	}
	words := make([]string, len(command))
	for i, word := range command {
		if strings.ContainsAny(word, "\n\r\x00") {
			return fmt.Errorf("write start script: a line break in %.60q", word)
		}
		words[i] = quote(word)
	}
	login := "exec " + quote(shell) + " -l " + quote(f.start)
	if base := filepath.Base(shell); base == "tcsh" || base == "csh" { // their -l stands alone or last
		login = "exec " + quote(shell) + " " + quote(f.start) + " -l"
	}
	head := "#!" + shell + "\n"
	if err := writeFor(account, f.prestart, head+login+"\n", 0o700); err != nil {
		return fmt.Errorf("write prestart script: %w", err)
	}
	if err := writeFor(account, f.start, head+"cd "+quote(r.Home)+"\n"+strings.Join(words, " ")+"\n", 0o700); err != nil {
		return fmt.Errorf("write start script: %w", err)
	}
	return nil
}

// writeFor writes a fresh file for an account, nil for our own. Whatever was in its place is removed, not followed:
// the directory may be open to others. No other child of ours can hold the file open for writing while it is
// executed (ETXTBSY), because none is forked meanwhile.
func writeFor(account *proc.Account, path, text string, mode os.FileMode) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if info, err := os.Lstat(path); err == nil && info.IsDir() {
		return &fs.PathError{Op: "write", Path: path, Err: syscall.EISDIR}
	}
	if err := removeIfThere(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.WriteString(f, text)
	if err == nil && account != nil {
		err = f.Chown(int(account.UID), int(account.GID))
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, removeIfThere(path))
	}
	return nil
}

func copyFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	temp := to + ".new"
	out, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err == nil {
		err = out.Chmod(0o644) // our umask is narrower, and the worker may run as another account
	}
	if err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return errors.Join(err, removeIfThere(temp))
	}
	return os.Rename(temp, to)
}

// openPlain opens a regular file. A build can put anything in the place of a file of ours: a link would make an agent
// that runs as root read what the build may not, and a named pipe would hold it for ever.
func openPlain(path string, flag int) (*os.File, error) {
	before, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file any more", path)
	}
	f, err := os.OpenFile(path, flag|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if after, err := f.Stat(); err != nil || !os.SameFile(before, after) {
		_ = f.Close()
		return nil, fmt.Errorf("%s was exchanged while it was opened", path)
	}
	return f, nil
}

func readHead(path string, limit int64) (string, error) {
	f, err := openPlain(path, os.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, limit))
	return strings.ToValidUTF8(string(data), "�"), err
}

func readTail(path string, limit int64) string {
	f, err := openPlain(path, os.O_RDONLY)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil && info.Size() > limit {
		_, _ = f.Seek(-limit, io.SeekEnd)
	}
	data, _ := io.ReadAll(io.LimitReader(f, limit))
	return strings.ToValidUTF8(string(data), "�")
}

func hash(s string) uint64 {
	h := fnv.New64a()
	_, _ = io.WriteString(h, s)
	return h.Sum64()
}

// hinted is an error with a word to the user.
type hinted struct {
	error
	hint string
}

// Hint says what the user can do.
func (h *hinted) Hint() string { return h.hint }

// Unwrap returns the cause.
func (h *hinted) Unwrap() error { return h.error }

func withHint(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return err.Error() + " (" + h.Hint() + ")"
	}
	return err.Error()
}
