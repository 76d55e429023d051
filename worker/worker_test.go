//go:build unix

package worker

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/service/proc"
)

// program starts the worker as a process of its own, below a shell that carries the variables an agent sets.
func (b *backend) program(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "build_tmp", "error.log"), []byte("worker process was killed"), 0o600); err != nil {
		t.Fatal(err)
	}
	line := ""
	for _, arg := range append([]string{os.Args[0]}, b.arguments(dir)...) {
		line += quote(arg) + " "
	}
	cmd := exec.Command("/bin/sh", "-c", line+"; code=$?; exit $code")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "WORKER_TEST_ROLE=worker", "PROJECT_ID=demo", "BUILD_ID="+b.vars.Build, "VM_SEQ_ID=1")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func alive(pid int) bool { _, ok := proc.Identify(pid); return ok }

func dies(t *testing.T, pid int, limit time.Duration) {
	t.Helper()
	for deadline := time.Now().Add(limit); alive(pid); <-time.After(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d is still there after %v", pid, limit)
		}
	}
}

func pidFile(t *testing.T, path string) int {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestStatement115CallsComeInOrder(t *testing.T) {
	t.Parallel()
	b := newBackend(t, shell("e-1", "echo one"), wait(), shell("e-2", "echo two"))
	o := b.run(t)
	o.ran(t)
	same(t, "calls", b.ops(), []string{"started", "quota-start", "claim", "complete", "log-status", "claim", "claim", "complete", "log-status",
		"claim", "quota-shutdown", "log-mode", "end"})
	var end map[string]any
	if err := json.Unmarshal(b.of("end")[0].body, &end); err != nil || len(end) != 1 || end["message"] != nil {
		t.Errorf("end was called with %s", b.of("end")[0].body)
	}
	for _, c := range append(b.of("started"), b.of("claim")...) {
		if len(c.body) != 0 {
			t.Errorf("%s has a body: %s", c.op, c.body)
		}
	}
	status := b.of("log-status")[0]
	if q := status.query; status.method != http.MethodPut || q.Get("finished") != "true" || q.Get("tag") != "e-1" || q.Get("jobId") != "c-1" ||
		q.Get("executeCount") != "1" || q.Get("logMode") != "UPLOAD" {
		t.Errorf("log status: %s %v", status.method, q)
	}
}

func TestStatement115CompleteIsRepeatedOnlyAfterTransportErrors(t *testing.T) {
	t.Parallel()
	b := newBackend(t, shell("e-1", "true"), shell("e-2", "true"))
	b.odd = func(op string, n int, _ call) *answer {
		switch {
		case op == "complete" && n == 1:
			return &answer{} // cut off: nobody knows whether it arrived
		case op == "complete" && n == 3:
			return &answer{http.StatusBadGateway, "<html>"}
		}
		return nil
	}
	b.run(t).ran(t)
	calls := b.of("complete")
	if len(calls) != 4 || calls[0].query.Get("retryCount") != "0" || calls[1].query.Get("retryCount") != "1" || calls[3].query.Get("retryCount") != "0" {
		t.Errorf("complete was called %d times", len(calls))
	}
}

func TestStatement116EveryCallCarriesTheSessionHeaders(t *testing.T) {
	t.Parallel()
	b := newBackend(t, shell("e-1", "echo line"))
	b.run(t).ran(t)
	want := map[string]string{"X-DEVOPS-BUILD-TYPE": "AGENT", "X-DEVOPS-PROJECT-ID": "demo", "X-DEVOPS-AGENT-ID": "abcdefgh",
		"X-DEVOPS-AGENT-SECRET-KEY": secret, "X-DEVOPS-BUILD-ID": b.vars.Build, "X-DEVOPS-VM-SID": "1"}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.calls {
		for name, value := range want {
			if c.header.Get(name) != value {
				t.Errorf("%s: %s is %q", c.path, name, c.header.Get(name))
			}
		}
		if strings.HasPrefix(c.path, "/ms/process/") {
			if q := c.query; q.Get("retryCount") != "0" || q.Get("executeCount") != "1" || q.Get("buildId") != b.vars.Build {
				t.Errorf("%s: query %v", c.path, q)
			}
		}
		post := c.method == http.MethodPost || c.method == http.MethodPut
		if got := c.header.Get("Content-Type"); post != (got == "application/json; charset=utf-8") {
			t.Errorf("%s %s: content type %q", c.method, c.path, got)
		}
	}
}

func TestStatement117NoEndAfterAForeignStart(t *testing.T) {
	t.Parallel()
	for name, a := range map[string]answer{
		"ended":   {http.StatusUnauthorized, `{"errorCode": 2101182, "data": "buildEnd"}`},
		"started": {http.StatusOK, `{"status": 2101255, "message": "already started"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBackend(t)
			b.odd = func(string, int, call) *answer { return &a }
			o := b.run(t)
			if o.code != 255 || !strings.Contains(o.error, a.body) {
				t.Errorf("exit code %d, error file %q", o.code, o.error)
			}
			same(t, "calls", b.ops(), []string{"started"})
		})
	}
	t.Run("any other refusal is ended", func(t *testing.T) {
		t.Parallel()
		b := newBackend(t)
		b.odd = func(op string, _ int, _ call) *answer {
			if op == "started" {
				return &answer{http.StatusInternalServerError, `{"status":2100001,"message":"out of order"}`}
			}
			return nil
		}
		o := b.run(t)
		same(t, "calls", b.ops(), []string{"started", "end"})
		if o.code != 255 || !strings.Contains(o.error, "out of order") || !strings.Contains(string(b.of("end")[0].body), "out of order") {
			t.Errorf("exit code %d, error file %q, end %s", o.code, o.error, b.of("end")[0].body)
		}
	})
}

func TestStatement119ParamsAreStringsAndTheScriptIsDecoded(t *testing.T) {
	t.Parallel()
	b := newBackend(t, shell("e-1", "echo 'a b+c%d ü'\r\nprintf '%s|' \"$GREETING\" \"$WORKSPACE\"; test -f \"$DEVOPS_BUILD_SCRIPT_FILE\" && echo there\r\npwd\n"))
	o := b.run(t)
	o.ran(t)
	workspace := filepath.Join(o.dir, "workspace", "p-1", "src")
	if got, want := b.log("e-1"), "a b+c%d ü\nhello world|"+workspace+"|there\n"+workspace+"\n"; got != want {
		t.Errorf("log %q\nwant %q", got, want)
	}
	result := b.result(t, 0)
	if !result.Success || *result.ErrorCode != 0 || result.ErrorType != nil || result.Message != nil || result.BuildResult["jobs.job1.os"] == "" {
		t.Errorf("%+v", result)
	}
	if result.TaskID != "e-1" || result.ElementID != "e-1" || *result.ElementVersion != "1.0" || *result.ContainerID != "c-1" ||
		*result.ExecuteCount != 1 || *result.Type != wire.TaskLinuxScript || result.MonitorData == nil {
		t.Errorf("%+v", result)
	}
}

func TestStatement119AParameterOfAWrongTypeCostsOneTask(t *testing.T) {
	t.Parallel()
	b := newBackend(t, shell("e-2", "echo fine"))
	b.odd = func(op string, n int, _ call) *answer {
		if op == "claim" && n == 1 {
			return &answer{200, `{"status":0,"data":{"status":"DO","taskId":"e-1","type":"linuxScript","params":{"scriptType":"SHELL","script":{"no":"text"}}}}`}
		}
		return nil
	}
	b.run(t).ran(t)
	if r := b.result(t, 0); r.Success || *r.ErrorCode != 2199002 {
		t.Errorf("%+v", r)
	}
	if r := b.result(t, 1); !r.Success {
		t.Errorf("%+v", r)
	}
}

func TestStatement120HowTasksFail(t *testing.T) {
	t.Parallel()
	unknown := shell("e-5", "true")
	unknown.Type = ptr("marketBuild")
	windows := shell("e-6", "rem", "scriptType", "BAT")
	windows.Type = ptr(wire.TaskWindowsScript)
	b := newBackend(t,
		shell("e-1", "echo broken >&2; exit 7"),
		shell("e-2", "sleep 60", "additionalOptions", `{"timeout":"0.01"}`),
		shell("e-3", "false; echo not reached"),
		shell("e-4", "false; echo reached", "continueNoneZero", "true"),
		unknown, windows,
		shell("e-7", "true", "scriptType", "PYTHON3"),
		shell("e-8", "echo '::set-error error_code=812345,error_message=my reason'; exit 1"),
		shell("e-9", "echo '::set-error error_code=812345,error_message=my reason'"),
		shell("e-10", "#!/no/such/shell\ntrue"),
		shell("e-11", "kill -9 $$"),
	)
	b.run(t).ran(t)
	for i, want := range []struct {
		ok      bool
		code    int
		message string
	}{
		{false, 2199011, "exit code 7\nbroken"}, {false, 2199006, "limit of 600ms"}, {false, 2199011, "exit code 1"}, {true, 0, ""},
		{false, 2199002, "marketBuild"}, {false, 2199002, "BAT"}, {false, 2199002, "PYTHON3"}, {false, 812345, "my reason"}, {true, 0, ""},
		{false, 2199009, "/no/such/shell"}, {false, 2199011, "signal: killed"},
	} {
		r := b.result(t, i)
		if r.Success != want.ok || *r.ErrorCode != want.code || value(r.Message) != want.message && !strings.Contains(value(r.Message), want.message) {
			t.Errorf("task %d: %v %d %q, want %+v", i+1, r.Success, *r.ErrorCode, value(r.Message), want)
		}
		if !r.Success && value(r.ErrorType) != "USER" {
			t.Errorf("task %d: error type %q", i+1, value(r.ErrorType))
		}
	}
	contains(t, b.log("e-1"), "##[error]broken\n", "##[error]the script ended with exit code 7\n")
	contains(t, b.log("e-4"), "reached")
	if strings.Contains(b.log("e-3"), "not reached") {
		t.Error("set -e has no effect")
	}
}

func TestStatement121VariablesComeBack(t *testing.T) {
	t.Parallel()
	script := `setEnv A "b c"
setGateValue lines 90
echo "::set-gate-value name=cov::80"
echo "::set-gate-value name=no::1" >&2
setEnv 1bad x
setEnv Q "it's = here"
test "$A" = "b c" || exit 9
echo "::set-output name=out::o 1"
echo '"::set-variable name=V::v::w"'
echo "::set-remark all good" >&2
echo " ::set-variable name=NOT::at the beginning"
echo "late = value" >> "$BUILD_ID-result.log"
echo "in-valid=1" >> "$BUILD_ID-result.log"
`
	noStep := shell("e-2", "echo '::set-output name=out::x'; exit 3")
	noStep.StepID = nil
	b := newBackend(t, shell("e-1", script), noStep)
	b.run(t).ran(t)
	r := b.result(t, 0)
	want := map[string]string{"A": "b c", "Q": "it's = here", "jobs.job1.steps.step1.outputs.out": "o 1", "variables.V": "v::w",
		"BK_CI_BUILD_REMARK": "all good", "late": "value", "jobs.job1.os": osName(runtime.GOOS)}
	if !r.Success || fmt.Sprint(r.BuildResult) != fmt.Sprint(want) {
		t.Errorf("%v %q\n got %v\nwant %v", r.Success, value(r.Message), r.BuildResult, want)
	}
	gates := b.of("saveHisMetadata")
	if len(gates) != 1 || gates[0].query.Get("elementType") != wire.TaskLinuxScript || string(gates[0].body) != `{"cov":"80","lines":"90"}` {
		t.Errorf("quality values: %v", gates)
	}
	contains(t, b.log("e-1"), "::set-output name=out::o 1", "not a variable name: 1bad")
	if r := b.result(t, 1); len(r.BuildResult) != 1 {
		t.Errorf("an output without step id: %v", r.BuildResult)
	}
}

func TestStatement122LongValuesAreLeftOut(t *testing.T) {
	t.Parallel()
	b := newBackend(t, shell("e-1", `long=$(printf '%4001s' "" | tr ' ' x)
setEnv LONG "$long"
setEnv FITS "$(printf '%s' "$long" | cut -c2-)"
setEnv WIDE "$(printf '%4000s' "" | sed 's/ /ü/g')"
`))
	b.run(t).ran(t)
	r := b.result(t, 0).BuildResult
	if _, long := r["LONG"]; long || len(r["FITS"]) != 4000 || len(r["WIDE"]) != 8000 {
		t.Errorf("LONG %v, FITS %d, WIDE %d", long, len(r["FITS"]), len(r["WIDE"]))
	}
	contains(t, b.log("e-1"), "LONG has more than 4000 characters")
}

func TestStatement123LogLinesComeInOrderInTimeAndBeforeComplete(t *testing.T) {
	t.Parallel()
	const n = 30_000
	b := newBackend(t,
		shell("e-1", "i=0; while [ $i -lt 5 ]; do echo \"$(date +%s%3N)\"; sleep 0.4; i=$((i+1)); done"),
		shell("e-2", fmt.Sprintf("seq %d", n)),
		shell("e-3", `printf '%40000s\n' "" | tr ' ' x; printf '\360\237\230\200%.0s' $(seq 10000); echo; head -c 200000 /dev/zero | tr '\0' y`),
		shell("e-4", `printf 'crlf\r\nbar 1\rbar 2\r\nnul\0l\nbad \377 utf\n\n  blanks kept  \nno end'`),
	)
	type arrival struct {
		line wire.LogLine
		at   time.Time
	}
	var heard []arrival
	b.odd = func(op string, _ int, c call) *answer {
		if op == "log-multi" {
			var lines []wire.LogLine
			_ = json.Unmarshal(c.body, &lines)
			b.mu.Lock()
			defer b.mu.Unlock()
			for _, l := range lines {
				heard = append(heard, arrival{l, c.at})
			}
		}
		return nil
	}
	b.run(t).ran(t)
	for _, a := range heard {
		if a.line.Tag != "e-1" {
			continue
		}
		printed, err := strconv.ParseInt(a.line.Message, 10, 64)
		if late := a.at.Sub(time.UnixMilli(printed)); err != nil || late > 3*time.Second {
			t.Errorf("line %q came %v late (%v)", a.line.Message, late, err)
		}
	}
	var want strings.Builder
	for i := 1; i <= n; i++ {
		fmt.Fprintf(&want, "%d\n", i)
	}
	if got := b.log("e-2"); got != want.String() {
		t.Errorf("%d bytes of %d numbers came, or in another order", len(got), n)
	}
	if got, want := strings.ReplaceAll(b.log("e-3"), "\n", ""), strings.Repeat("x", 40000)+strings.Repeat("😀", 10000)+strings.Repeat("y", 200000); got != want {
		t.Errorf("long lines: %d characters, want %d", len(got), len(want))
	}
	if got, want := b.log("e-4"), "crlf\nbar 1\nbar 2\nnul\x00l\nbad \uFFFD utf\n\n  blanks kept  \nno end\n"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	last := int64(0)
	for _, a := range heard {
		if n := len(utf16.Encode([]rune(a.line.Message))); n > 16384 {
			t.Errorf("a piece of %d characters", n)
		}
		if a.line.Timestamp < last && strings.HasPrefix(a.line.Tag, "e-") {
			t.Errorf("time goes back at %q", clip(a.line.Message, 40))
		}
		last = a.line.Timestamp
		if a.line.ContainerHashID != "c-1" || a.line.JobID != "job1" || *a.line.ExecuteCount != 1 {
			t.Fatalf("%+v", a.line)
		}
	}
	// nothing of a task after its complete
	b.mu.Lock()
	defer b.mu.Unlock()
	done := map[string]bool{}
	for _, c := range b.calls {
		if c.op == "complete" {
			var r wire.TaskResult
			_ = json.Unmarshal(c.body, &r)
			done[r.TaskID] = true
		}
		if c.op == "log-multi" {
			var lines []wire.LogLine
			_ = json.Unmarshal(c.body, &lines)
			for _, l := range lines {
				if done[l.Tag] {
					t.Fatalf("a line of %s came after its end", l.Tag)
				}
			}
		}
	}
}

func TestStatement124SecretsAreMasked(t *testing.T) {
	t.Parallel()
	yes := true
	b := newBackend(t, shell("e-1", `echo "pass=$PASS"
printf '%s\n' "$KEY" "${{ KEY }}" >&2
cat .agent.properties ../../../.agent.properties 2>&1 || true
printf '%70000s' x | tr ' ' z; printf '%s' "$PASS"; printf '%70000s\n' x
setEnv LEAK "$PASS"
setEnv PARTLY "see $PASS"
echo "$PASS" >&2
exit 1
`))
	key := "-----BEGIN KEY-----\n  abc'def\nline-two \n-----END KEY-----"
	b.vars.Variables["PASS"] = "p4ss w0rd"
	b.vars.VariablesWithType = []wire.TypedVariable{{Key: "PASS", Value: "p4ss w0rd", Sensitive: &yes}, {Key: "KEY", Value: key, Sensitive: &yes}}
	b.vars.Variables["KEY"] = key
	o := b.run(t)
	o.ran(t)
	r := b.result(t, 0)
	everything := b.log("") + value(r.Message) + o.log
	for _, hidden := range []string{"p4ss w0rd", "abc'def", "abcdef", "line-two", "BEGIN KEY", secret} {
		if strings.Contains(everything, hidden) {
			t.Errorf("%q can be read", hidden)
		}
	}
	contains(t, b.log("e-1"), "pass=******\n")
	if _, leak := r.BuildResult["LEAK"]; leak || r.BuildResult["PARTLY"] == "" || !strings.Contains(value(r.Message), "******") {
		t.Errorf("%v, message %q", r.BuildResult, value(r.Message))
	}
}

func TestStatement125CancelKillsTheTree(t *testing.T) {
	t.Parallel()
	b := newBackend(t, shell("e-1", `trap '' TERM
(trap '' TERM; sh -c 'echo $$ > grandchild; exec sleep 300') &
setsid sh -c 'echo $$ > session; exec sleep 300' &
(setsid sh -c 'echo $$ > orphan; exec sleep 300' > /dev/null 2>&1 &)
echo '::set-progress-rate 0.12345'
echo '::set-progress-rate {"done": 3}'
sleep 300; sleep 300
`), shell("e-2", "while [ ! -e go ]; do sleep 0.05; done"))
	dir := home(t, b.server.URL)
	ended := make(chan outcome, 1)
	go func() { ended <- b.runIn(t, t.Context(), dir) }()
	b.until(t, "first heartbeat", func() bool { return b.count("heartbeat") >= 1 })
	b.mu.Lock()
	b.cancels = []string{"e-1", "e-other"}
	b.mu.Unlock()
	src := filepath.Join(dir, "workspace", "p-1", "src")
	pids := []int{pidFile(t, filepath.Join(src, "grandchild")), pidFile(t, filepath.Join(src, "session")), pidFile(t, filepath.Join(src, "orphan"))}
	for _, pid := range pids {
		dies(t, pid, 15*time.Second)
	}
	if spent := time.Since(b.of("heartbeat")[1].at); spent > 5*time.Second {
		t.Errorf("%v after the worker was told", spent)
	}
	if err := os.WriteFile(filepath.Join(src, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o := <-ended
	o.ran(t)
	if r := b.result(t, 0); r.Success || *r.ErrorCode != 2199010 {
		t.Errorf("%+v", r)
	}
	if !b.result(t, 1).Success {
		t.Error("the next task did not run")
	}
	beats := b.of("heartbeat")
	contains(t, string(beats[0].body), `"task2ProgressRate":{"e-1":0.1235}`, `"task2ProgressDetail":{"e-1":{"done":3}}`)
	if first := beats[0].at.Sub(b.of("started")[0].at); first < 9*time.Second || first > 11*time.Second {
		t.Errorf("the first heartbeat came after %v", first)
	}
	if len(beats) > 1 {
		if next := beats[1].at.Sub(beats[0].at); next < 1900*time.Millisecond || next > 4*time.Second { // exactly: in a bubble
			t.Errorf("the second heartbeat came after %v more", next)
		}
	}
}

func TestStatement126JobLimitIsReportedAndExits99(t *testing.T) {
	t.Parallel()
	b := newBackend(t, shell("e-1", "echo $$ > pid; sleep 300"))
	b.vars.TimeoutMills = 700
	dir := home(t, b.server.URL)
	cmd := b.program(t, dir)
	err := cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 99 {
		t.Errorf("exit: %v", err)
	}
	same(t, "calls", b.ops(), []string{"started", "quota-start", "claim", "timeout"})
	o := outcome{dir: dir}
	o.read(t)
	if o.error != "" {
		t.Errorf("error file: %q", o.error)
	}
	contains(t, b.log("startVM-1"), "##[error]the job is over its time limit of 700ms")
	dies(t, pidFile(t, filepath.Join(dir, "workspace", "p-1", "src", "pid")), time.Second)
}

func TestStatement127TheErrorFileIsEmptyAfterAJobThatRan(t *testing.T) {
	t.Parallel()
	b := newBackend(t, shell("e-1", "exit 1"))
	dir := home(t, b.server.URL)
	cmd := b.program(t, dir)
	if err := cmd.Wait(); err != nil { // the shell above us lives and sees 0
		t.Errorf("exit: %v", err)
	}
	o := outcome{dir: dir}
	o.read(t)
	if o.error != "" || b.result(t, 0).Success {
		t.Errorf("error file %q", o.error)
	}
	contains(t, o.log, "|info|Worker started version=v9.9.9")
}

func TestNothingOfTheBuildIsLeft(t *testing.T) {
	t.Parallel()
	b := newBackend(t, shell("e-1", `setsid sh -c 'echo $$ > orphan; exec sleep 300' > /dev/null 2>&1 &
DEVOPS_DONT_KILL_PROCESS_TREE=True setsid sh -c 'echo $$ > kept; exec sleep 300' > /dev/null 2>&1 &
sh -c 'echo $$ > chatty; while true; do echo still here; sleep 0.05; done' &
while [ ! -s kept ] || [ ! -s orphan ] || [ ! -s chatty ]; do sleep 0.01; done
echo done`), shell("e-2", "kill -0 $(cat orphan) && kill -0 $(cat chatty) && echo both live"))
	begin := time.Now()
	o := b.run(t)
	o.ran(t)
	src := filepath.Join(o.dir, "workspace", "p-1", "src")
	kept := pidFile(t, filepath.Join(src, "kept"))
	if !alive(kept) {
		t.Error("what asked to be kept was killed")
	}
	_ = syscall.Kill(kept, syscall.SIGKILL)
	dies(t, pidFile(t, filepath.Join(src, "orphan")), time.Second)
	dies(t, pidFile(t, filepath.Join(src, "chatty")), time.Second)
	contains(t, b.log("e-1"), "done\n", "still has the script's output open")
	contains(t, b.log("e-2"), "both live")
	if spent := time.Since(begin); spent > 15*time.Second {
		t.Errorf("the chatty background process held the task for %v", spent)
	}
}

func TestTheServerMayBeAwayForAWhile(t *testing.T) {
	t.Parallel()
	const n = 6000
	b := newBackend(t, shell("e-1", fmt.Sprintf("for i in $(seq %d); do echo line $i; done; echo over", n)))
	var from time.Time
	b.odd = func(op string, _ int, _ call) *answer {
		b.mu.Lock()
		defer b.mu.Unlock()
		if op == "log-multi" && from.IsZero() && len(b.lines) > 0 {
			from = time.Now()
		}
		if !from.IsZero() && time.Since(from) < 3*time.Second {
			return &answer{}
		}
		return nil
	}
	b.run(t).ran(t)
	var want strings.Builder
	for i := 1; i <= n; i++ {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	if got := b.log("e-1"); got != want.String()+"over\n" {
		t.Errorf("%d bytes came, want %d", len(got), want.Len()+5)
	}
	if !b.result(t, 0).Success {
		t.Error("the task failed")
	}
}

func TestLinesOverTheLimitStayHere(t *testing.T) {
	t.Parallel()
	b := newBackend(t, shell("e-1", "seq 10050"), shell("e-2", "echo other"))
	b.vars.LoggingLineLimit = ptr(1)
	o := b.run(t)
	o.ran(t)
	lines := strings.Split(strings.TrimSpace(b.log("e-1")), "\n")
	if len(lines) != 10_001 || lines[9_999] != "10000" || !strings.HasPrefix(lines[10_000], "##[warning]the log has more than 10000 lines") {
		t.Errorf("%d lines, the last is %q", len(lines), lines[len(lines)-1])
	}
	kept, err := os.ReadFile(filepath.Join(o.dir, "logs", "worker_e-1.log"))
	if err != nil || strings.Count(string(kept), "\n") != 50 || !strings.HasSuffix(string(kept), "|10050\n") {
		t.Errorf("kept %d lines, %v", strings.Count(string(kept), "\n"), err)
	}
	if mode := b.of("log-status")[0].query.Get("logMode"); mode != "LOCAL" {
		t.Errorf("log mode %q", mode)
	}
	var modes []wire.LogMode
	if err := json.Unmarshal(b.of("log-mode")[0].body, &modes); err != nil || len(modes) != 2 || modes[0].LogStorageMode != "LOCAL" || modes[1].LogStorageMode != "UPLOAD" {
		t.Errorf("log modes: %s", b.of("log-mode")[0].body)
	}
}

func TestARefusingLogServiceGetsNoMore(t *testing.T) {
	t.Parallel()
	b := newBackend(t, shell("e-1", "echo 1; sleep 0.7; echo 2; sleep 0.7; echo 3"))
	b.odd = func(op string, _ int, c call) *answer {
		if op == "log-multi" && strings.Contains(string(c.body), `"e-1"`) {
			return &answer{200, `{"status":509,"message":"too much"}`}
		}
		return nil
	}
	o := b.run(t)
	o.ran(t)
	refused := 0
	for _, c := range b.of("log-multi") {
		if strings.Contains(string(c.body), `"e-1"`) {
			refused++
		}
	}
	kept, _ := os.ReadFile(filepath.Join(o.dir, "logs", "worker_e-1.log"))
	if refused != 1 || strings.Count(string(kept), "\n") != 3 || b.of("log-status")[0].query.Get("logMode") != "LOCAL" {
		t.Errorf("%d refused uploads; kept %q", refused, kept)
	}
}

func TestMarksInLinesDecideTypeAndSubTag(t *testing.T) {
	t.Parallel()
	b := newBackend(t, shell("e-1", `echo "##[debug]d"; echo "##[warning]w"; echo "##[error]e"; echo "##[group]g"; echo "##[endgroup]g"
echo "##subTag##part##subTag##in it"; echo "##subTag##part##subTag####subTagFinish##last"; sleep 0.2; echo "err" >&2`))
	b.run(t).ran(t)
	b.mu.Lock()
	got := ""
	for _, l := range b.lines {
		if l.Tag == "e-1" {
			got += fmt.Sprintf("%s %s %s\n", l.LogType, value(l.SubTag), l.Message)
		}
	}
	b.mu.Unlock()
	want := "DEBUG  ##[debug]d\nWARN  ##[warning]w\nERROR  ##[error]e\nLOG  ##[group]g\nLOG  ##[endgroup]g\nLOG part in it\nLOG part last\nERROR  ##[error]err\n"
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if status := b.of("log-status"); len(status) != 2 || status[0].query.Get("subTag") != "part" || status[1].query.Has("subTag") {
		t.Errorf("status calls: %v", status)
	}
}

func TestVariablesReachTheScript(t *testing.T) {
	t.Parallel()
	first := shell("e-1", `#!/usr/bin/env bash
# ${GREETING} stays
echo "1 ${{ GREETING }} 2 ${GREETING} 3 "'${nothing.here}'" 4 ${{ envs.MINE }} $MINE 5 ${{ variables.GREETING }} 6 ${BUILD_ID} $BK_CI_BUILD_TASK_ID"
echo "7 ${{ steps.other.outputs.x }} 8 ${name} 9 ${{ ci.workspace }}"
local_var=x; echo "10 ${local_var} ${BASH_VERSION:+bash}"
env | grep -c '^UID=' || true
umask`, "customEnv", `[{"key":"MINE","value":"<${GREETING}>"}]`, "name", "the name")
	first.BuildVariable = map[string]string{"GREETING": "it's new", "with.dot": "x", "jobs.job1.steps.other.outputs.x": "out", "UID": "77", "TICKET": "`id`$(id)"}
	second := shell("e-2", `echo '1 ${GREETING} 2 ${{ GREETING }}'`)
	second.BuildVariable = map[string]string{"BK_CI_PIPELINE_DIALECT": "CONSTRAINED"}
	umask, err := exec.Command("/bin/sh", "-c", "umask").Output()
	if err != nil {
		t.Fatal(err)
	}
	b := newBackend(t, first, second)
	o := b.run(t)
	o.ran(t)
	src := filepath.Join(o.dir, "workspace", "p-1", "src")
	want := "1 it's new 2 it's new 3 ${nothing.here} 4 <it's new> <its new> 5 it's new 6 " + b.vars.Build + " e-1\n7 out 8 the name 9 " + src +
		"\n10 x bash\n0\n" + string(umask)
	if got := b.log("e-1"); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if got, want := b.log("e-2"), "1 ${GREETING} 2 hello world\n"; got != want {
		t.Errorf("constrained: %q, want %q", got, want)
	}
}

func TestAWorkspaceThatCannotBeIsReported(t *testing.T) {
	t.Parallel()
	b := newBackend(t)
	b.vars.Pipeline = "../../etc"
	o := b.run(t)
	same(t, "calls", b.ops(), []string{"started", "submit_error", "end"})
	var e wire.ErrorInfo
	if err := json.Unmarshal(b.of("submit_error")[0].body, &e); err != nil || e.ErrorType != 1 || e.ErrorCode != 2189504 || e.ContainerID != "1" || e.ErrorMsg == "" {
		t.Errorf("submit_error: %s", b.of("submit_error")[0].body)
	}
	if o.code != 255 || o.error == "" {
		t.Errorf("exit code %d, error file %q", o.code, o.error)
	}
}

func TestARemovedWorkspaceIsMadeAgain(t *testing.T) {
	t.Parallel()
	b := newBackend(t,
		shell("e-1", `rm -rf "$WORKSPACE"`),
		shell("e-2", `echo in "$PWD" of "$WORKSPACE"; echo kept > file`),
		shell("e-3", `cat file`),
	)
	b.run(t).ran(t)
	for i := range 3 {
		if r := b.result(t, i); !r.Success {
			t.Errorf("task %d: %s", i+1, value(r.Message))
		}
	}
	contains(t, b.log("e-2"), "the workspace was gone")
	contains(t, b.log("e-3"), "kept")
	if strings.Contains(b.log("e-1")+b.log("e-3"), "was gone") {
		t.Error("said of a task that found its workspace")
	}
}

func TestABuildThatIsOverEndsQuietly(t *testing.T) {
	t.Parallel()
	b := newBackend(t, shell("e-1", "echo $$ > pid; sleep 300"))
	b.odd = func(op string, _ int, _ call) *answer {
		if op == "heartbeat" {
			return &answer{http.StatusUnauthorized, `{"errorCode": 2101182, "data": "buildEnd"}`}
		}
		return nil
	}
	o := b.run(t)
	o.ran(t)
	same(t, "calls", b.ops(), []string{"started", "quota-start", "claim"})
	dies(t, pidFile(t, filepath.Join(o.dir, "workspace", "p-1", "src", "pid")), time.Second)
}

func TestAWorkerThatIsToldToStopSaysSo(t *testing.T) {
	t.Parallel()
	b := newBackend(t, shell("e-1", "echo $$ > pid; echo begun; sleep 300"))
	dir := home(t, b.server.URL)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan outcome, 1)
	go func() { ended <- b.runIn(t, ctx, dir) }()
	b.until(t, "first line", func() bool { return strings.Contains(b.log("e-1"), "begun") })
	stop()
	o := <-ended
	if o.code != 255 || !strings.Contains(o.error, "told to stop") {
		t.Errorf("exit code %d, error file %q", o.code, o.error)
	}
	if r := b.result(t, 0); r.Success {
		t.Errorf("%+v", r)
	}
	contains(t, string(b.of("end")[0].body), "told to stop")
	dies(t, pidFile(t, filepath.Join(dir, "workspace", "p-1", "src", "pid")), time.Second)
}

func TestTLSIsVerifiedWithTheAgentsCertificates(t *testing.T) {
	t.Parallel()
	b := quietBackend(shell("e-1", "true"))
	b.server = httptest.NewUnstartedServer(b)
	b.server.Config.ErrorLog = log.New(io.Discard, "", 0) // the refused handshake
	b.server.StartTLS()
	t.Cleanup(b.server.Close)
	dir := home(t, b.server.URL)
	if o := b.runIn(t, t.Context(), dir); o.code != 255 || !strings.Contains(o.error, "certificate") || b.count("started") != 0 {
		t.Errorf("an unknown certificate: exit code %d, error file %q", o.code, o.error)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.server.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(dir, ".cert"), cert, 0o600); err != nil {
		t.Fatal(err)
	}
	b.runIn(t, t.Context(), dir).ran(t)
}

func TestWrongArgumentsExitWith1(t *testing.T) {
	t.Parallel()
	b := newBackend(t)
	dir := home(t, b.server.URL)
	for name, args := range map[string][]string{
		"no job":         {"-Ddevops.agent.error.file=" + filepath.Join(dir, "build_tmp", "error.log"), "-Xmx2g"},
		"no base64":      {"-Ddevops.agent.error.file=" + filepath.Join(dir, "build_tmp", "error.log"), "***"},
		"other type":     append([]string{"-Dbuild.type=DOCKER"}, b.arguments(dir)[2]),
		"id is a path":   {"-Ddevops.agent.error.file=" + filepath.Join(dir, "build_tmp", "error.log"), "eyJidWlsZElkIjoiLi4vLi4veCIsInZtU2VxSWQiOiIxIiwicHJvamVjdElkIjoicCJ9"},
		"not even there": nil,
	} {
		_ = os.Remove(filepath.Join(dir, "build_tmp", "error.log"))
		code, err := Run(t.Context(), b.host(dir), args)
		if code != 1 || err == nil {
			t.Errorf("%s: exit code %d, %v", name, code, err)
		}
		if text, err := os.ReadFile(filepath.Join(dir, "build_tmp", "error.log")); len(args) > 0 && (err != nil || len(text) == 0) {
			t.Errorf("%s: the error file holds nothing (%v)", name, err)
		}
	}
	if code, err := Run(t.Context(), b.host(t.TempDir()), b.arguments(dir)); code != 255 || err == nil {
		t.Errorf("no .agent.properties: exit code %d, %v", code, err)
	}
	if n := len(b.ops()); n != 0 {
		t.Errorf("%d calls were made", n)
	}
}

// The wrapper is written for sh: a script of another language is run as a program (awk is on every Unix).
func TestAScriptOfAnotherLanguageRuns(t *testing.T) {
	t.Parallel()
	awk, err := exec.LookPath("awk")
	if err != nil {
		t.Skip("needs awk")
	}
	task := shell("e-1", "#!"+awk+" -f\nBEGIN { print \"said \" ENVIRON[\"BK_CI_BUILD_TASK_ID\"]; exit 3 }", "continueNoneZero", "true")
	b := newBackend(t, task)
	b.run(t).ran(t)
	contains(t, b.log("e-1"), "said e-1\n")
	if r := b.result(t, 0); r.Success || r.ErrorCode == nil || *r.ErrorCode != wire.CodeScriptFailed || !strings.Contains(*r.Message, "exit code 3") {
		t.Errorf("%+v", r)
	}
}
