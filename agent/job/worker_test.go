//go:build unix

package job

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/service/proc"
)

// stage is a home directory with a worker made of shell script: what runs between emptying the error file and
// the end.
func stage(t *testing.T, script string) (*Runner, Setup) {
	t.Helper()
	home := filepath.Join(t.TempDir(), "a home with blanks and 'quotes'")
	java := filepath.Join(home, "jdk", "bin", "java")
	if err := os.MkdirAll(filepath.Dir(java), 0o755); err != nil {
		t.Fatal(err)
	}
	text := "#!/bin/sh\n" +
		"for a; do case $a in -Ddevops.agent.error.file=*) err=${a#*=};; esac; last=$a; done\n" +
		"printf '%s\\n' \"$@\" > args; env > env; pwd > cwd; umask > umask; cat \"$err\" > prefill; : > \"$err\"\n" + script + "\n"
	write(t, java, text, 0o755)
	write(t, filepath.Join(home, Jar), "jar", 0o644)
	ledger, err := OpenLedger(filepath.Join(home, "runtime", "builds"))
	if err != nil {
		t.Fatal(err)
	}
	return &Runner{Home: home, GOOS: runtime.GOOS, Ledger: ledger, Log: quiet()},
		Setup{AgentVersion: "v1.2.3", WorkerVersion: "v4.5.6", Gateway: "http://gw", FileGateway: "http://files", Language: "en_US",
			JDK8Java: java, JDK17Java: filepath.Join(home, "jdk17", "bin", "java"), Umask: 0o022,
			Envs:       map[string]string{"PUSHED": "yes", "DEVOPS_GATEWAY": "http://other", "BAD=NAME": "x"},
			JarVersion: func(context.Context, string) string { return "" }}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func slurp(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func runBuild(t *testing.T, r *Runner, s Setup, b wire.Build) Outcome {
	t.Helper()
	seats := NewSlots(1, 1).Reserve()
	slot, _ := seats.Claim(b)
	o, ok := r.Run(t.Context(), context.Background(), b, slot, s)
	if !ok {
		t.Fatal("run was cut short")
	}
	return o
}

func TestWorkerGetsWhatTheProtocolSays(t *testing.T) {
	r, s := stage(t, "")
	b := buildOf("b-1")
	if o := runBuild(t, r, s, b); !o.Success || o.Error != nil {
		t.Fatalf("outcome %+v", o)
	}
	args := strings.Split(strings.TrimSpace(slurp(t, r.Home+"/args")), "\n")
	f := r.files(b)
	want := []string{"-Ddevops.slave.agent.start.file=" + f.start, "-Ddevops.slave.agent.prepare.start.file=" + f.prestart,
		"-Ddevops.agent.error.file=" + f.errors, "-Dbuild.type=AGENT", "-DAGENT_LOG_PREFIX=b-1_1_agent", "-Xmx2g",
		"-Djava.io.tmpdir=" + r.Home + "/build_tmp", "-jar", r.Home + "/worker-agent.jar"}
	if len(args) != len(want)+1 {
		t.Fatalf("%d arguments, want %d:\n%s", len(args), len(want)+1, strings.Join(args, "\n"))
	}
	for i := range want {
		if args[i] != want[i] {
			t.Errorf("argument %d is %q, want %q", i, args[i], want[i])
		}
	}
	raw, err := base64.StdEncoding.DecodeString(args[len(want)])
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	if docker, ok := got["dockerBuildInfo"]; !ok || docker != nil || got["buildId"] != "b-1" || got["executeCount"] != 1.0 {
		t.Errorf("job argument %s", raw)
	}
	env := "\n" + slurp(t, r.Home+"/env")
	for _, line := range []string{"DEVOPS_AGENT_VERSION=v1.2.3", "DEVOPS_WORKER_VERSION=v4.5.6", "DEVOPS_SLAVE_VERSION=v4.5.6",
		"DEVOPS_PROJECT_ID=demo", "PROJECT_ID=demo", "DEVOPS_BUILD_ID=b-1", "BUILD_ID=b-1", "DEVOPS_VM_SEQ_ID=1", "VM_SEQ_ID=1",
		"DEVOPS_FILE_GATEWAY=http://files", "DEVOPS_GATEWAY=http://other", "BK_CI_LOCALE_LANGUAGE=en_US", "PUSHED=yes"} {
		if !strings.Contains(env, "\n"+line+"\n") {
			t.Errorf("environment lacks %s", line)
		}
	}
	if strings.Contains(env, "BAD") {
		t.Error("a variable with = in its name came through")
	}
	if cwd := strings.TrimSpace(slurp(t, r.Home+"/cwd")); cwd != r.Home {
		t.Errorf("worker ran in %s", cwd)
	}
	if mask := strings.TrimSpace(slurp(t, r.Home+"/umask")); mask != "0022" {
		t.Errorf("worker's umask %s", mask)
	}
	if text := slurp(t, r.Home+"/prefill"); text != killedText("en") {
		t.Errorf("the error file held %q when the worker began", text)
	}
	for _, path := range []string{f.start, f.prestart, f.errors, f.output} {
		mustExist(t, path, false)
	}
}

// TestABuildCannotExchangeItsErrorFile: an agent that runs as root must not read for a build what the build may not, and
// a pipe must not hold it.
func TestABuildCannotExchangeItsErrorFile(t *testing.T) {
	for name, script := range map[string]string{
		"link":      `echo top-secret > "$PWD/private"; ln -sf "$PWD/private" "$err"`,
		"pipe":      `rm "$err"; mkfifo "$err"`,
		"directory": `rm "$err"; mkdir "$err"`,
	} {
		t.Run(name, func(t *testing.T) {
			r, s := stage(t, script)
			if o := runBuild(t, r, s, buildOf("b-1")); o.Success || strings.Contains(o.Message, "top-secret") {
				t.Errorf("outcome %+v", o)
			}
		})
	}
}

// TestAWorkersOutputIsBounded: one that talks and talks must not fill the disk.
func TestAWorkersOutputIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for _, size := range []int64{maxOutput, 0} { // as much as may be; and then a byte more
		if err := f.Truncate(maxOutput); err != nil {
			t.Fatal(err)
		}
		if size == 0 {
			if _, err := f.WriteString("x"); err != nil {
				t.Fatal(err)
			}
		}
		cutOutput(path)
		if info, err := f.Stat(); err != nil || info.Size() != size {
			t.Errorf("%d bytes, want %d (%v)", info.Size(), size, err)
		}
	}
	if _, err := f.WriteString("end"); err != nil || readTail(path, 100) != "end" {
		t.Errorf("tail %q, %v", readTail(path, 100), err)
	}
}

// TestAnAgentThatDiesAtTheEndOfABuildForgetsNothing: the record comes before the files go, so that the next agent does
// not take an error file that is gone for a success.
func TestAnAgentThatDiesAtTheEndOfABuildForgetsNothing(t *testing.T) {
	r, s := stage(t, "")
	b := buildOf("b-1")
	f := r.files(b)
	write(t, f.errors, "broken", 0o600)
	if err := os.MkdirAll(f.output+"/x", 0o755); err != nil { // cannot be removed, and is logged: that moment is looked at
		t.Fatal(err)
	}
	seen := 0
	r.Log = slog.New(moment(func() {
		seen++
		if records, err := r.Ledger.All(quiet()); err != nil || len(records) != 1 || records[0].State != Ended {
			t.Errorf("records while the files go: %+v, %v", records, err)
		}
	}))
	if o := r.finish(b, s.Language, 1, nil); o.Success || seen == 0 {
		t.Errorf("outcome %+v, looked %d times", o, seen)
	}

	b = buildOf("b-2") // it dies between the record and the files
	write(t, r.files(b).errors, "broken", 0o600)
	if _, ok := r.Adopt(t.Context(), context.Background(), Record{Build: b, State: Ended, Outcome: &Outcome{}}); !ok {
		t.Fatal("not adopted")
	}
	mustExist(t, r.files(b).errors, false)

	b.ID = "../other" // refused, and its record read by the next agent
	write(t, r.files(b).errors, "of somebody else", 0o600)
	if _, ok := r.Adopt(t.Context(), context.Background(), Record{Build: b, State: Ended, Outcome: &Outcome{}}); !ok {
		t.Fatal("not adopted")
	}
	mustExist(t, r.files(b).errors, true)
}

// moment is a log whose warnings are a moment to look around.
type moment func()

func (m moment) Enabled(context.Context, slog.Level) bool { return true }
func (m moment) WithAttrs([]slog.Attr) slog.Handler       { return m }
func (m moment) WithGroup(string) slog.Handler            { return m }
func (m moment) Handle(_ context.Context, rec slog.Record) error {
	if rec.Level == slog.LevelWarn {
		m()
	}
	return nil
}

func TestTheInstallTokenIsNotForBuilds(t *testing.T) {
	t.Setenv(TokenVariable, "tok")
	r, s := stage(t, "")
	runBuild(t, r, s, buildOf("b-1"))
	if strings.Contains(slurp(t, r.Home+"/env"), TokenVariable) {
		t.Error("a build could enrol machines")
	}
}

func TestOutcomes(t *testing.T) {
	cases := []struct {
		name, script string
		success      bool
		code         Code
		message      string
	}{
		{"empty file", "", true, 0, "ended normally"},
		{"exit 255 with an empty file", "exit 255", true, 0, "without an error of its own (exit status 255)"},
		{"message", `printf 'no space for %s' X > "$err"; exit 255`, false, WorkerFailed, "no space for X | exit status 255"},
		{"message with exit 0", `echo broken > "$err"`, false, WorkerFailed, "broken"},
		{"blank message", `echo > "$err"`, true, 0, ""},
		{"shell killed with an empty file", `kill -9 $PPID`, true, 0, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r, s := stage(t, c.script)
			o := runBuild(t, r, s, buildOf("b-2"))
			if o.Success != c.success || !strings.Contains(o.Message, c.message) {
				t.Errorf("outcome %+v", o)
			}
			if c.success != (o.Error == nil) || o.Error != nil && (o.Error.Code != int(c.code) || o.Error.Type != "USER" || o.Error.Message == "") {
				t.Errorf("error %+v", o.Error)
			}
		})
	}
}

func TestAWorkerThatDiesEarlyIsAFailure(t *testing.T) {
	r, s := stage(t, "")
	write(t, s.JDK8Java, "#!/bin/sh\necho 'Error: could not reserve memory' >&2\nkill -9 $$\n", 0o755)
	o := runBuild(t, r, s, buildOf("b-3"))
	if o.Success || o.Error.Code != int(WorkerFailed) || !strings.Contains(o.Message, "could not reserve memory") {
		t.Errorf("outcome %+v", o)
	}
}

func TestThereIsAWorker(t *testing.T) {
	r, _ := stage(t, "")
	vendor := t.TempDir()
	has := func(what string, want bool) {
		t.Helper()
		if r.HasWorker() != want {
			t.Errorf("%s: %v", what, !want)
		}
	}
	has("a jar", true)
	remove(t, filepath.Join(r.Home, Jar))
	has("nothing", false)
	write(t, filepath.Join(r.Home, "tmp", Jar), "jar", 0o644)
	has("a copy of the jar", true)
	remove(t, filepath.Join(r.Home, "tmp", Jar))
	write(t, filepath.Join(vendor, NativeWorker), "", 0o755)
	has("a package that is not ours", false)
	r.Programs = vendor
	has("the package's", true)
	r.Programs = ""
	write(t, filepath.Join(r.Home, NativeWorker), "", 0o644)
	has("one that cannot be executed", false)
	chmod(t, filepath.Join(r.Home, NativeWorker), 0o755)
	has("a native one", true)
}

func TestEachWayNotToStartHasItsCode(t *testing.T) {
	cases := []struct {
		name    string
		spoil   func(t *testing.T, r *Runner, s *Setup)
		code    Code
		message string
	}{
		{"no java", func(t *testing.T, r *Runner, s *Setup) { remove(t, s.JDK8Java) }, StartFailed, "no such file"},
		{"java not executable", func(t *testing.T, r *Runner, s *Setup) { chmod(t, s.JDK8Java, 0o644) }, StartFailed, "permission denied"},
		{"java is garbage", func(t *testing.T, r *Runner, s *Setup) { write(t, s.JDK8Java, "\x7fELF\x00\x01garbage", 0o755) }, StartFailed, ""},
		{"no shell", func(t *testing.T, r *Runner, s *Setup) {
			t.Setenv("SHELL", "/no/such/shell")
			s.DetectShell = true
		}, StartFailed, "no such file"},
		{"no jar", func(t *testing.T, r *Runner, s *Setup) { remove(t, filepath.Join(r.Home, Jar)) }, WorkerMissing, "worker-agent.jar"},
		{"bad copy", func(t *testing.T, r *Runner, s *Setup) {
			remove(t, filepath.Join(r.Home, Jar))
			write(t, filepath.Join(r.Home, "tmp", Jar), "bad", 0o644)
		}, HealFailed, "no version"},
		{"build_tmp is a file", func(t *testing.T, r *Runner, s *Setup) { write(t, filepath.Join(r.Home, "build_tmp"), "", 0o644) }, TmpDirFailed, "build_tmp"},
		{"script path is a directory", func(t *testing.T, r *Runner, s *Setup) {
			if err := os.Mkdir(r.files(buildOf("b-4")).prestart, 0o755); err != nil {
				t.Fatal(err)
			}
		}, ScriptsFailed, "prestart"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r, s := stage(t, "")
			c.spoil(t, r, &s)
			o := runBuild(t, r, s, buildOf("b-4"))
			if o.Success || o.Error == nil || o.Error.Code != int(c.code) || !strings.Contains(o.Message, c.message) {
				t.Errorf("outcome %+v, %+v", o, o.Error)
			}
			mustExist(t, filepath.Join(r.Home, "args"), false)
			records, err := r.Ledger.All(quiet())
			if err != nil || len(records) != 1 || records[0].State != Ended {
				t.Errorf("records %+v, %v: the report would be lost", records, err)
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func TestAGoodCopyHealsTheJar(t *testing.T) {
	r, s := stage(t, "")
	defer syscall.Umask(syscall.Umask(0o077)) // as the agent's
	remove(t, filepath.Join(r.Home, Jar))
	write(t, filepath.Join(r.Home, "tmp", Jar), "fresh", 0o644)
	s.JarVersion = func(context.Context, string) string { return "v2.0.0" }
	if o := runBuild(t, r, s, buildOf("b-5")); !o.Success {
		t.Errorf("outcome %+v", o)
	}
	if got := slurp(t, filepath.Join(r.Home, Jar)); got != "fresh" {
		t.Errorf("jar holds %q", got)
	}
	if info, err := os.Stat(filepath.Join(r.Home, Jar)); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("the jar is %v: a worker of another account cannot read it (%v)", info.Mode(), err)
	}
}

func TestAHomeThatTheWorkersAccountCannotEnterIsNamed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to start a worker as nobody")
	}
	r, s := stage(t, "")
	if err := os.Chmod(r.Home, 0o700); err != nil {
		t.Fatal(err)
	}
	s.SlaveUser = "nobody"
	o := runBuild(t, r, s, buildOf("b-1"))
	if o.Success || o.Error.Code != int(StartFailed) || !strings.Contains(o.Message, "let nobody enter") {
		t.Errorf("outcome %+v", o)
	}
}

func TestWithoutAnyJarTheNativeWorkerRuns(t *testing.T) {
	r, s := stage(t, "")
	remove(t, filepath.Join(r.Home, Jar))
	native := slurp(t, s.JDK8Java)
	remove(t, s.JDK8Java)
	write(t, filepath.Join(r.Home, NativeWorker), native, 0o755)
	if o := runBuild(t, r, s, buildOf("b-6")); !o.Success {
		t.Errorf("outcome %+v", o)
	}
	if !strings.Contains(slurp(t, r.Home+"/args"), "-Dbuild.type=AGENT\n") {
		t.Error("the native worker got other arguments than java")
	}
	r.Programs = filepath.Join(t.TempDir(), "vendor")
	if err := os.Mkdir(r.Programs, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(r.Home, NativeWorker), filepath.Join(r.Programs, NativeWorker)); err != nil {
		t.Fatal(err)
	}
	if o := runBuild(t, r, s, buildOf("b-7")); !o.Success {
		t.Errorf("worker of the package: outcome %+v", o)
	}
}

func TestIDsOfTheServerDoNotBecomePaths(t *testing.T) {
	for _, id := range []string{"", "../../etc/x", "a/b", "a;b", "-rf", ".hidden", "a\nb", "$(id)", strings.Repeat("x", 129)} {
		r, s := stage(t, "")
		b := buildOf(id)
		o := runBuild(t, r, s, b)
		if o.Success || o.Error.Code != int(ScriptsFailed) {
			t.Errorf("id %q: outcome %+v", id, o)
		}
		records, err := r.Ledger.All(quiet())
		if err != nil || len(records) != 1 || records[0].Build.ID != id {
			t.Errorf("id %q: records %+v, %v", id, records, err)
		}
		if err := r.Ledger.Drop(b); err != nil {
			t.Error(err)
		}
	}
}

func TestNothingOutlivesABuild(t *testing.T) {
	r, s := stage(t, `(trap '' TERM; echo $$ > /dev/null; sleep 600) & echo $! > left; DEVOPS_DONT_KILL_PROCESS_TREE=true setsid sleep 601 & echo $! > kept`)
	if o := runBuild(t, r, s, buildOf("b-7")); !o.Success {
		t.Fatalf("outcome %+v", o)
	}
	left, kept := pidIn(t, r.Home+"/left"), pidIn(t, r.Home+"/kept")
	if started, ok := proc.Identify(left); ok && proc.Alive(left, started) {
		t.Errorf("process %d outlived its build", left)
	}
	started, ok := proc.Identify(kept)
	if !ok || !proc.Alive(kept, started) {
		t.Errorf("process %d asked to be kept and is gone", kept)
		return
	}
	p, err := os.FindProcess(kept)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Error(err)
	}
}

func pidIn(t *testing.T, path string) int {
	t.Helper()
	var pid int
	if err := json.Unmarshal([]byte(strings.TrimSpace(slurp(t, path))), &pid); err != nil {
		t.Fatal(err)
	}
	return pid
}

// TestABuildOutlivesItsAgent: the first runner is stopped, the second takes up its record, whether the build ends
// before or after that.
func TestABuildOutlivesItsAgent(t *testing.T) {
	for _, endsFirst := range []bool{false, true} {
		r, s := stage(t, `while [ ! -e "$err".go ]; do sleep 0.02; done; echo 'ended badly' > "$err"`)
		b := buildOf("b-8")
		slot, _ := NewSlots(1, 1).Reserve().Claim(b)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan bool)
		go func() {
			_, ok := r.Run(ctx, context.Background(), b, slot, s)
			done <- ok
		}()
		rec := awaitRecord(t, r, b, Running)
		cancel()
		if <-done {
			t.Fatal("a stopped runner says that the build ended")
		}
		release := func() { write(t, r.files(b).errors+".go", "", 0o644) }
		if endsFirst {
			release()
			if err := proc.WaitFor(t.Context(), rec.PID, rec.Started); err != nil {
				t.Fatal(err)
			}
		} else {
			time.AfterFunc(50*time.Millisecond, release)
		}
		o, ok := r.Adopt(t.Context(), context.Background(), rec)
		if !ok || o.Success || !strings.Contains(o.Message, "ended badly") {
			t.Errorf("ends first %v: outcome %+v, %v", endsFirst, o, ok)
		}
		remove(t, r.files(b).errors+".go")
	}
}

// TestABuildThatWasCutOffByARestartFailed: its error file is as empty as that of a good one.
func TestABuildThatWasCutOffByARestartFailed(t *testing.T) {
	started := "17@00000000-0000-0000-0000-000000000000"
	if runtime.GOOS != "linux" { // there the identity is a time, and this one was long before the machine was started
		started = "1000000"
	}
	for said, want := range map[string]string{"": "restarted", "disk broken": "disk broken"} {
		r, s := stage(t, "")
		b := buildOf("b-12")
		slot, _ := NewSlots(1, 1).Reserve().Claim(b)
		if _, ok := r.Run(t.Context(), context.Background(), b, slot, s); !ok {
			t.Fatal("the build did not end")
		}
		write(t, r.files(b).errors, said, 0o600)
		o, ok := r.Adopt(t.Context(), context.Background(), Record{Build: b, State: Running, PID: 4242, Started: started})
		if !ok || o.Success || !strings.Contains(o.Message, want) {
			t.Errorf("error file %q: %+v, %v", said, o, ok)
		}
	}
}

// TestABuildIsStoppedWithItsAgent: its worker, a process that ignores SIGTERM and one that left the tree are gone, and the
// outcome says why; the same for a build that was adopted.
func TestABuildIsStoppedWithItsAgent(t *testing.T) {
	for _, adopted := range []bool{false, true} {
		r, s := stage(t, `(trap '' TERM; while :; do sleep 0.1; done) & (setsid sleep 600 & echo $! > far); echo $$ > pid; wait`)
		b := buildOf("b-11")
		slot, _ := NewSlots(1, 1).Reserve().Claim(b)
		halt, stop := context.WithCancelCause(t.Context())
		ctx, leave := context.WithCancel(t.Context())
		type end struct {
			o  Outcome
			ok bool
		}
		done := make(chan end)
		go func() {
			o, ok := r.Run(ctx, halt, b, slot, s)
			done <- end{o, ok}
		}()
		rec := awaitRecord(t, r, b, Running)
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); runtime.Gosched() {
			if _, err := os.Stat(filepath.Join(r.Home, "pid")); err == nil {
				break
			}
		}
		if adopted {
			leave()
			if (<-done).ok {
				t.Fatal("a runner that was left says that the build ended")
			}
			go func() {
				o, ok := r.Adopt(t.Context(), halt, rec)
				done <- end{o, ok}
			}()
		}
		begun := time.Now()
		stop(&Stop{Waited: 5 * time.Second})
		got := <-done
		leave()
		if !got.ok || got.o.Success || got.o.Error.Code != int(WorkerFailed) || !strings.Contains(got.o.Message, "waited 5s") {
			t.Errorf("adopted %v: outcome %+v, %v", adopted, got.o, got.ok)
		}
		if took := time.Since(begun); took > 3*time.Second {
			t.Errorf("adopted %v: took %v", adopted, took)
		}
		if proc.Alive(rec.PID, rec.Started) {
			t.Error("the worker still runs")
		}
		for _, name := range []string{"pid", "far"} {
			if started, ok := proc.Identify(pidIn(t, filepath.Join(r.Home, name))); ok {
				t.Errorf("adopted %v: process in %s still runs since %s", adopted, name, started)
			}
		}
		if rec := awaitRecord(t, r, b, Ended); !strings.Contains(rec.Outcome.Message, "waited 5s") {
			t.Errorf("record %+v", rec.Outcome)
		}
	}
}

func TestABuildIsRefusedWhileTheAgentStops(t *testing.T) {
	r, s := stage(t, "")
	halt, stop := context.WithCancelCause(t.Context())
	stop(&Stop{})
	b := buildOf("b-12")
	slot, _ := NewSlots(1, 1).Reserve().Claim(b)
	o, ok := r.Run(t.Context(), halt, b, slot, s)
	if !ok || o.Success || !strings.Contains(o.Message, "told to stop at once") {
		t.Errorf("outcome %+v, %v", o, ok)
	}
	if _, err := os.Stat(filepath.Join(r.Home, "args")); err == nil {
		t.Error("the worker was started")
	}
}

// TestAWorkerOutlivesItsShell: the shell is killed, as a worker does at its end; the build is over when the worker is.
func TestAWorkerOutlivesItsShell(t *testing.T) {
	r, s := stage(t, `kill -9 $PPID; sleep 0.5; echo 'said late' > "$err"`)
	if o := runBuild(t, r, s, buildOf("b-10")); o.Success || !strings.Contains(o.Message, "said late") {
		t.Errorf("outcome %+v", o)
	}
}

func awaitRecord(t *testing.T, r *Runner, b wire.Build, state State) Record {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if rec, err := readRecord(r.Ledger.path(b)); err == nil && rec.State == state {
			return rec
		}
		runtime.Gosched()
	}
	t.Fatalf("no record in state %s", state)
	return Record{}
}

func TestABuildThatWasNeverStartedIsReported(t *testing.T) {
	r, _ := stage(t, "")
	b := buildOf("b-9")
	if err := r.Ledger.Put(Record{Build: b, State: Starting, Language: "en"}); err != nil {
		t.Fatal(err)
	}
	o, ok := r.Adopt(t.Context(), context.Background(), awaitRecord(t, r, b, Starting))
	if !ok || o.Success || o.Error.Code != int(StartFailed) {
		t.Errorf("outcome %+v, %v", o, ok)
	}
}

func TestASpoiltRecordIsSetAside(t *testing.T) {
	r, _ := stage(t, "")
	dir := filepath.Join(r.Home, "runtime", "builds")
	write(t, filepath.Join(dir, "b-1_1.json"), `{"state":"run`, 0o600)
	write(t, filepath.Join(dir, "b-2_1.json"), `{"state":"ended"}`, 0o600)
	write(t, filepath.Join(dir, "b-3_1.json.new"), `half`, 0o600)
	if err := r.Ledger.Put(Record{Build: buildOf("b-4"), State: Running, PID: 1}); err != nil {
		t.Fatal(err)
	}
	records, err := r.Ledger.All(quiet())
	if err != nil || len(records) != 1 || records[0].Build.ID != "b-4" {
		t.Errorf("records %+v, %v", records, err)
	}
	mustExist(t, filepath.Join(dir, "b-1_1.json.bad"), true)
	mustExist(t, filepath.Join(dir, "b-2_1.json.bad"), true)
	mustExist(t, filepath.Join(dir, "b-3_1.json.new"), false)
}

func TestOldScratchFilesGo(t *testing.T) {
	r, _ := stage(t, "")
	now := time.Now()
	old, young := now.Add(-scratchAge-time.Minute), now.Add(-scratchAge+time.Minute)
	running := buildOf("b-run")
	files := map[string]struct {
		at   time.Time
		stay bool
	}{
		"build_tmp/old":                              {old, false},
		"build_tmp/young":                            {young, true},
		"build_tmp/dir/old":                          {old, true},
		"build_tmp/b-run_1_build_msg.log":            {old, true},
		"devops_agent_start_demo_b-0_1.sh":           {old, false},
		"devops_agent_prepare_start_demo_b-0_1.sh":   {old, false},
		"devops_pipeline_7_COMMAND.sh":               {old, false},
		"devops_pipeline_8_COMMAND.sh":               {young, true},
		"devops_agent_start_demo_b-1_1.sh":           {young, true},
		"devops_agent_prepare_start_demo_b-run_1.sh": {old, true},
		"devops_agent_start.txt":                     {old, true},
		"other.sh":                                   {old, true},
		"workspace/devops_agent_start_demo_b-0_1.sh": {old, true},
	}
	for name, f := range files {
		path := filepath.Join(r.Home, name)
		write(t, path, "", 0o600)
		if err := os.Chtimes(path, f.at, f.at); err != nil {
			t.Fatal(err)
		}
	}
	r.CleanOld(now, []wire.Build{running})
	for name, f := range files {
		mustExist(t, filepath.Join(r.Home, name), f.stay)
	}
}

func TestDockerBuildsAreRefusedByName(t *testing.T) {
	for _, c := range []struct {
		goos, errMsg string
		want         Code
	}{{"linux", "", DockerNoClient}, {"darwin", "", DockerOS}, {"linux", "no such login", DockerLogin}} {
		o := DockerRefused("en", c.goos, &wire.DockerBuild{Credential: &wire.Credential{ErrMsg: c.errMsg}})
		if o.Success || o.Error.Code != int(c.want) || !strings.Contains(o.Message, c.errMsg) {
			t.Errorf("%+v: %+v", c, o)
		}
	}
}

func TestEveryCodeHasASentenceInBothLanguages(t *testing.T) {
	for _, c := range []Code{WorkerFailed, HealFailed, WorkerMissing, TmpDirFailed, StartFailed, ScriptsFailed, DockerOS, DockerNoClient, DockerLogin, DockerDebugFail} {
		if en, zh := c.sentence("en_US"), c.sentence("zh_CN"); en == "" || zh == "" || en == zh {
			t.Errorf("code %d: %q, %q", c, en, zh)
		}
	}
}

func TestQuote(t *testing.T) {
	for word, want := range map[string]string{
		"/opt/agent/x-1": "/opt/agent/x-1", "a b": "'a b'", "it's": `'it'\''s'`, "$(id)": "'$(id)'", "": "''", "a;b": "'a;b'",
	} {
		if got := quote(word); got != want {
			t.Errorf("quote %q is %s, want %s", word, got, want)
		}
	}
}
