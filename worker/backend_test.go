package worker

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
	"go.uber.org/goleak"
)

const secret = "agent-secret-0123456789"

// TestMain lets the test binary be the worker itself, where exit codes and signals are the subject.
func TestMain(m *testing.M) {
	if os.Getenv("WORKER_TEST_ROLE") == "worker" {
		_ = os.Unsetenv("WORKER_TEST_ROLE")
		os.Exit(asProgram(os.Args[1:]))
	}
	goleak.VerifyTestMain(m)
}

// asProgram is main of devopsWorker without package cli.
func asProgram(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	dir, _ := os.Getwd()
	code, err := Run(ctx, Host{Dir: dir, GOOS: runtime.GOOS, Version: "v9.9.9", Env: os.Environ(), Stderr: os.Stderr}, args)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return code
}

// call is one request the backend got.
type call struct {
	at     time.Time
	op     string // last part of the path, and "quota-start", "log-status" …
	method string
	path   string
	query  url.Values
	header http.Header
	body   []byte
}

// answer is what the backend says instead of its usual answer; status 0 cuts the connection.
type answer struct {
	status int
	body   string
}

// backend is the other end of a worker's session: it hands out tasks in order and writes down all it hears.
type backend struct {
	server *httptest.Server

	mu      sync.Mutex
	vars    wire.BuildVariables
	claims  []wire.BuildTask // handed out one by one, then END
	cancels []string         // in the next heartbeat answers
	calls   []call
	lines   []wire.LogLine
	results []wire.TaskResult
	news    chan struct{} // closed and replaced on every call

	// odd may answer a call itself; n counts the calls of that op from 1.
	odd func(op string, n int, c call) *answer
}

func newBackend(t *testing.T, claims ...wire.BuildTask) *backend {
	b := quietBackend(claims...)
	b.server = httptest.NewServer(b)
	t.Cleanup(b.server.Close)
	return b
}

// quietBackend is one without a socket, for tests in a bubble.
func quietBackend(claims ...wire.BuildTask) *backend {
	job := "job1"
	return &backend{
		claims: claims, news: make(chan struct{}),
		vars: wire.BuildVariables{
			Build: buildID(), VMSeq: "1", Project: "demo", Pipeline: "p-1", ContainerID: "1", ContainerHashID: "c-1", JobID: &job,
			Variables: map[string]string{"GREETING": "hello world", "BK_CI_RETRY_COUNT": "0"}, TimeoutMills: 54_000_000,
		},
	}
}

func opOf(r *http.Request) string {
	path := strings.TrimPrefix(r.URL.Path, "/ms")
	switch {
	case strings.HasSuffix(path, "/heartbeat/v1"):
		return "heartbeat"
	case strings.HasPrefix(path, "/dispatch/api/build/quotas"):
		return "quota-" + filepath.Base(path)
	case strings.HasPrefix(path, "/log/api/build/logs/"):
		return "log-" + filepath.Base(path)
	case strings.HasPrefix(path, "/quality/api/build/metadata/"):
		return filepath.Base(path)
	case strings.HasPrefix(path, "/process/api/build/worker/"):
		return filepath.Base(path)
	}
	return "unknown " + path
}

func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	op := opOf(r)
	c := call{at: time.Now(), op: op, method: r.Method, path: r.URL.Path, query: r.URL.Query(), header: r.Header, body: body}
	b.mu.Lock()
	b.calls = append(b.calls, c)
	n := b.countLocked(op)
	close(b.news)
	b.news = make(chan struct{})
	odd := b.odd
	b.mu.Unlock()
	if odd != nil {
		if a := odd(op, n, c); a != nil {
			if a.status == 0 {
				panic(http.ErrAbortHandler)
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(a.status)
			_, _ = io.WriteString(w, a.body)
			return
		}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"status": 0, "message": nil, "data": b.data(op, body)})
}

func (b *backend) data(op string, body []byte) any {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch op {
	case "started":
		return b.vars
	case "claim":
		if len(b.claims) == 0 {
			return wire.BuildTask{Status: wire.TaskEnd}
		}
		task := b.claims[0]
		b.claims = b.claims[1:]
		return task
	case "complete":
		var result wire.TaskResult
		if json.Unmarshal(body, &result) == nil {
			b.results = append(b.results, result)
		}
	case "heartbeat":
		return wire.WorkerHeartbeatReply{CancelTaskIDs: b.cancels}
	case "log-multi":
		var lines []wire.LogLine
		if json.Unmarshal(body, &lines) == nil {
			b.lines = append(b.lines, lines...)
		}
	}
	return true
}

func (b *backend) countLocked(op string) int {
	n := 0
	for _, c := range b.calls {
		if c.op == op {
			n++
		}
	}
	return n
}

func (b *backend) count(op string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.countLocked(op)
}

// of returns the calls of an operation.
func (b *backend) of(op string) []call {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []call
	for _, c := range b.calls {
		if c.op == op {
			out = append(out, c)
		}
	}
	return out
}

// ops is what was asked, in order, without what runs beside the session.
func (b *backend) ops() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, c := range b.calls {
		if c.op != "heartbeat" && c.op != "log-multi" {
			out = append(out, c.op)
		}
	}
	return out
}

// log is the log of a tag, one message a line; "" means all tags.
func (b *backend) log(tag string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out strings.Builder
	for _, l := range b.lines {
		if tag == "" || l.Tag == tag {
			out.WriteString(l.Message + "\n")
		}
	}
	return out.String()
}

func (b *backend) result(t *testing.T, n int) wire.TaskResult {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if n >= len(b.results) {
		t.Fatalf("only %d tasks were completed; the calls: %v", len(b.results), len(b.calls))
	}
	return b.results[n]
}

// until waits for a condition that calls bring about.
func (b *backend) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		b.mu.Lock()
		news := b.news
		b.mu.Unlock()
		if ok() {
			return
		}
		select {
		case <-news:
		case <-time.After(50 * time.Millisecond):
		case <-deadline:
			t.Fatalf("no %s within 30 s; calls: %v", what, b.ops())
		}
	}
}

var builds atomic.Int64

func buildID() string {
	return fmt.Sprintf("b-%d-%d-%d", os.Getpid(), time.Now().UnixNano()%1_000_000, builds.Add(1))
}

func ptr[T any](v T) *T { return &v }

// shell makes a task that runs a shell script.
func shell(id, script string, more ...string) wire.BuildTask {
	params := map[string]string{"scriptType": "SHELL", "script": url.QueryEscape(script), "continueNoneZero": "false",
		"additionalOptions": `{"timeout":10}`}
	for i := 0; i+1 < len(more); i += 2 {
		params[more[i]] = more[i+1]
	}
	return wire.BuildTask{Status: wire.TaskDo, TaskID: &id, ElementID: &id, StepID: ptr("step1"), ElementName: ptr("A step"),
		ElementVersion: ptr("1.0"), Type: ptr(wire.TaskLinuxScript), ExecuteCount: ptr(1), Params: params}
}

func wait() wire.BuildTask { return wire.BuildTask{Status: wire.TaskWait} }

// home makes an agent's home for a gateway.
func home(t *testing.T, gateway string) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	text := "# written by a test\ndevops.project.id=demo\ndevops.agent.id=abcdefgh\ndevops.agent.secret.key=" + secret +
		"\nlandun.gateway=" + gateway + "\nlandun.env=TEST\n"
	if err := os.WriteFile(filepath.Join(dir, ".agent.properties"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "build_tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// arguments is the command line an agent would use.
func (b *backend) arguments(dir string) []string {
	job, _ := json.Marshal(wire.Build{Project: "demo", ID: b.vars.Build, VMSeq: "1", Pipeline: "p-1", ContainerHashID: "c-1"})
	tmp := filepath.Join(dir, "build_tmp")
	return []string{
		"-Ddevops.slave.agent.start.file=" + filepath.Join(dir, "start.sh"),
		"-Ddevops.slave.agent.prepare.start.file=" + filepath.Join(dir, "prestart.sh"),
		"-Ddevops.agent.error.file=" + filepath.Join(tmp, "error.log"),
		"-Dbuild.type=AGENT", "-DAGENT_LOG_PREFIX=worker", "-Xmx2g", "-Djava.io.tmpdir=" + tmp,
		"-jar", filepath.Join(dir, "worker-agent.jar"), base64.StdEncoding.EncodeToString(job),
	}
}

// outcome is how a run of the worker ended.
type outcome struct {
	code  int
	err   error
	dir   string
	error string // the error file
	log   string // the worker's own log
}

func (b *backend) host(dir string) Host {
	return Host{Dir: dir, GOOS: runtime.GOOS, Version: "v9.9.9", Env: os.Environ(), Stderr: io.Discard}
}

// run runs the whole session in this process.
func (b *backend) run(t *testing.T) outcome {
	t.Helper()
	dir := home(t, b.server.URL)
	return b.runIn(t, t.Context(), dir)
}

func (b *backend) runIn(t *testing.T, ctx context.Context, dir string) outcome {
	t.Helper()
	for _, file := range []string{"start.sh", "prestart.sh", "build_tmp/error.log"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte("worker process was killed"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := outcome{dir: dir}
	o.code, o.err = Run(ctx, b.host(dir), b.arguments(dir))
	o.read(t)
	for _, file := range []string{"start.sh", "prestart.sh"} {
		if _, err := os.Stat(filepath.Join(dir, file)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there (%v)", file, err)
		}
	}
	return o
}

func (o *outcome) read(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(o.dir, "build_tmp", "error.log"))
	if err != nil {
		t.Error(err)
	}
	log, _ := os.ReadFile(filepath.Join(o.dir, "logs", "worker.log"))
	o.error, o.log = string(text), string(log)
	for name, text := range map[string]string{"error file": o.error, "worker's log": o.log} {
		if strings.Contains(text, secret) {
			t.Errorf("the secret is in the %s", name)
		}
	}
	left, _ := os.ReadDir(filepath.Join(o.dir, "build_tmp"))
	for _, f := range left {
		if f.Name() != "error.log" {
			t.Errorf("%s was left in the temporary directory", f.Name())
		}
	}
	inWorkspace, _ := filepath.Glob(filepath.Join(o.dir, "workspace", "p-1", "src", "*"))
	for _, f := range inWorkspace {
		if base := filepath.Base(f); strings.HasSuffix(base, "-result.log") || base == "gatewayValueFile.ini" {
			t.Errorf("%s was left in the workspace", base)
		}
	}
}

// ran checks what every good session has.
func (o outcome) ran(t *testing.T) {
	t.Helper()
	if o.code != 0 || o.err != nil || o.error != "" {
		t.Fatalf("exit code %d, %v, error file %q\n%s", o.code, o.err, o.error, o.log)
	}
}

// direct is a RoundTripper that calls a handler without a socket, for tests in a bubble.
type direct struct{ handler http.Handler }

func (d direct) RoundTrip(r *http.Request) (resp *http.Response, err error) {
	if r.Body == nil {
		r.Body = http.NoBody
	}
	defer func() {
		if recover() != nil {
			resp, err = nil, io.ErrUnexpectedEOF
		}
	}()
	w := httptest.NewRecorder()
	w.Body = &bytes.Buffer{}
	d.handler.ServeHTTP(w, r)
	return w.Result(), nil
}

func contains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in:\n%s", part, text)
		}
	}
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %v\nwant %v", what, got, want)
	}
}
