package main

import (
	"archive/zip"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// built is the program, made once for all tests.
var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "devops-agent-test-*")
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, "devopsAgent")
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	const cli = "github.com/devops-agent/devops-agent/cmd/internal/cli"
	build := exec.Command("go", "build", "-o", name, "-ldflags", "-X "+cli+".version=v9.8.7 -X "+cli+".commit=abc -X "+cli+".built=2026-01-02", ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return name, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if name, err := built(); err == nil {
		_ = os.RemoveAll(filepath.Dir(name))
	}
	os.Exit(code)
}

// program returns the built agent.
func program(t *testing.T) string {
	t.Helper()
	name, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// result is what a call left.
type result struct {
	code           int
	stdout, stderr string
}

// call runs the agent in an empty directory, with nothing of the test's own settings.
func call(t *testing.T, stdin string, env []string, args ...string) result {
	t.Helper()
	return runFile(t, program(t), stdin, env, args...)
}

// callProgram runs another file.
func callProgram(t *testing.T, name string, args ...string) result {
	t.Helper()
	return runFile(t, name, "", nil, args...)
}

func runFile(t *testing.T, name, stdin string, env []string, args ...string) result {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = t.TempDir()
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// TestVersion decides statement 104: one line, from any directory, touching nothing.
func TestVersion(t *testing.T) {
	dir := t.TempDir()
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"version"}, "v9.8.7\n"},
		{[]string{"version", "-f"}, "v9.8.7\nabc\n2026-01-02\n"},
		{[]string{"version", "--full"}, "v9.8.7\nabc\n2026-01-02\n"},
		{[]string{"fullVersion"}, "v9.8.7\nabc\n2026-01-02\n"},
		{[]string{"version", "--home", dir}, "v9.8.7\n"},
		{[]string{"version", "--home", filepath.Join(dir, "none")}, "v9.8.7\n"},
	} {
		if got := call(t, "", nil, tc.args...); got != (result{0, tc.want, ""}) {
			t.Errorf("%q: %+v", tc.args, got)
		}
	}
	for _, d := range []string{dir, filepath.Dir(program(t))} {
		if entries, err := os.ReadDir(d); err != nil || len(entries) > 1 || len(entries) == 1 && entries[0].Name() != filepath.Base(program(t)) {
			t.Errorf("%s holds %v, %v", d, entries, err)
		}
	}
}

// TestCommandLinesThatAreNone: exit code 1, one line of what, one line of what to do.
func TestCommandLinesThatAreNone(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"frobnicate"}, "devopsAgent: unknown command \"frobnicate\" for \"devopsAgent\"\nhint: \"devopsAgent --help\" says what there is\n"},
		{[]string{"vesion"}, "devopsAgent: unknown command \"vesion\" for \"devopsAgent\"\nhint: did you mean \"devopsAgent version\"?\n"},
		{[]string{"version", "x"}, "devopsAgent: unknown command \"x\" for \"devopsAgent version\"\nhint: \"devopsAgent version --help\" says what there is\n"},
		{[]string{"--nope"}, "devopsAgent: unknown flag: --nope\nhint: \"devopsAgent --help\" says what there is\n"},
		{[]string{"--home"}, "devopsAgent: flag needs an argument: --home\nhint: \"devopsAgent --help\" says what there is\n"},
		{[]string{"debug", "maybe", "--home", t.TempDir()}, "devopsAgent: debug \"maybe\": on or off, please\n"},
		{[]string{"debug", "on", "off"}, "devopsAgent: accepts at most 1 arg(s), received 2\nhint: \"devopsAgent debug --help\" says what there is\n"},
	} {
		if got := call(t, "", nil, tc.args...); got != (result{1, "", tc.want}) {
			t.Errorf("%q: exit %d, stdout %q, stderr\n%s", tc.args, got.code, got.stdout, got.stderr)
		}
	}
	help := call(t, "", nil, "--help")
	if help.code != 0 || help.stderr != "" {
		t.Errorf("--help: %+v", help)
	}
	for _, verb := range []string{"debug", "enroll", "run", "version", "--home", "--stderr"} {
		if !strings.Contains(help.stdout, verb) {
			t.Errorf("--help does not mention %s", verb)
		}
	}
}

func TestDebugSwitch(t *testing.T) {
	home := t.TempDir()
	marker := filepath.Join(home, ".debug")
	for _, word := range []string{"off", "on", "on", "off", "off"} {
		if got := call(t, "", nil, "debug", word, "--home", home); got != (result{0, "", ""}) {
			t.Errorf("debug %s: %+v", word, got)
		}
		info, err := os.Stat(marker)
		if on := err == nil; on != (word == "on") {
			t.Errorf("after debug %s: %v", word, err)
		}
		if err == nil && runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v", info.Mode())
		}
	}
}

const properties = "devops.project.id=demo\ndevops.agent.id=agt-1\ndevops.agent.secret.key=hunter2hunter2\n" +
	"landun.gateway=http://127.0.0.1:1\ndevops.parallel.task.count=4\nlandun.env=PROD\n"

// TestStartsThatFail: exit code 1, which a keeper answers with a new start; what an operator reads at night says
// which file, which line and what to do, on standard error and in the log.
func TestStartsThatFail(t *testing.T) {
	for name, tc := range map[string]struct {
		file, text string // in the home
		want, hint string // HOME stands for it
		log        string
	}{
		"no properties":   {"x", "", "HOME/.agent.properties: does not exist", `run "devopsAgent enroll"`, "does not exist"},
		"bad agent.toml":  {"agent.toml", "[builds]\nparallel = 4\n\nparalel = 5\n", "HOME/agent.toml:4: ", "", "agent.toml:4"},
		"torn agent.toml": {"agent.toml", "[builds]\nparallel =\n", "HOME/agent.toml:2: ", "", "agent.toml:2"},
		"negative count": {".agent.properties", strings.Replace(properties, "count=4", "count=-4", 1),
			"HOME/.agent.properties:5: devops.parallel.task.count is negative: -4", "", "count is negative"},
		"no identity": {".agent.properties", strings.Replace(properties, "agt-1", "", 1), "HOME/.agent.properties:2: devops.agent.id", "", "devops.agent.id"},
	} {
		t.Run(name, func(t *testing.T) {
			home, err := filepath.EvalSymlinks(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(home, tc.file), []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got := call(t, "", nil, "--home", home)
			lines := strings.Split(strings.TrimSuffix(got.stderr, "\n"), "\n")
			want := filepath.FromSlash(strings.Replace(tc.want, "HOME", filepath.ToSlash(home), 1))
			if got.code != 1 || got.stdout != "" || len(lines) != 2 || !strings.HasPrefix(lines[0], "devopsAgent: "+want) ||
				!strings.HasPrefix(lines[1], "hint: ") || !strings.Contains(lines[1], tc.hint) {
				t.Errorf("exit %d, stdout %q, stderr\n%s", got.code, got.stdout, got.stderr)
			}
			if data, err := os.ReadFile(filepath.Join(home, "logs", "devopsAgent.log")); err != nil || !strings.Contains(string(data), tc.log) || !strings.Contains(string(data), "|ERROR|") {
				t.Errorf("log %q, %v", data, err)
			} else if strings.Contains(string(data)+got.stderr, "hunter2") {
				t.Errorf("the secret is in the log or the error: %s%s", data, got.stderr)
			}
			if data, err := os.ReadFile(filepath.Join(home, tc.file)); err != nil || string(data) != tc.text {
				t.Errorf("%s is now %q, %v", tc.file, data, err)
			}
		})
	}
	if got := call(t, "", nil, "--home", filepath.Join(t.TempDir(), "none")); got.code != 1 || strings.Count(got.stderr, "\n") != 1 || !strings.Contains(got.stderr, "none: ") {
		t.Errorf("no home: %+v", got)
	}
}

// TestHomeIsWhereTheProgramLies, without --home.
func TestHomeIsWhereTheProgramLies(t *testing.T) {
	home, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(program(t))
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(home, filepath.Base(program(t)))
	if err := os.WriteFile(copied, data, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(copied)
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), filepath.Join(home, ".agent.properties")) {
		t.Errorf("%v: %s", err, out)
	}
}

var logLine = regexp.MustCompile(`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\|(DEBUG|INFO|WARN|ERROR)\|`)

// TestRunsAndEnds: an agent whose server is away runs, holds its role, survives the reader of its standard error,
// and ends in good order on SIGTERM; all it leaves is private.
func TestRunsAndEnds(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs signals")
	}
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, ".agent.properties"), []byte(properties), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program(t), "--home", home, "--stderr")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _, _ = cmd.Process.Wait() })
	reader := bufio.NewReader(stderr)
	line, err := reader.ReadString('\n')
	if err != nil || !logLine.MatchString(line) || !strings.Contains(line, "|INFO|Agent starts version=v9.8.7 ") {
		t.Fatalf("first line %q, %v", line, err)
	}
	for !strings.Contains(line, "connection refused") {
		if line, err = reader.ReadString('\n'); err != nil {
			t.Fatalf("before the server was missed: %v", err)
		}
	}
	if got := call(t, "", nil, "--home", home); got.code != 0 || got.stderr != "devopsAgent: role agent in "+home+": already running\n" {
		t.Errorf("a second one: %+v", got)
	}
	if err := stderr.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := within(t, 30*time.Second, cmd.Wait); err != nil {
		t.Errorf("end: %v, want exit code 0", err)
	}
	data, err := os.ReadFile(filepath.Join(home, "logs", "devopsAgent.log"))
	if err != nil || !strings.HasSuffix(string(data), "|INFO|Agent ends\n") || strings.Contains(string(data), "hunter2") {
		t.Errorf("log ends %q, %v", string(data[max(0, len(data)-200):]), err)
	}
	for line := range strings.Lines(string(data)) {
		if !logLine.MatchString(line) {
			t.Errorf("line %q", line)
		}
	}
	err = filepath.WalkDir(home, func(path string, entry os.DirEntry, err error) error {
		if err != nil || path == home {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func within(t *testing.T, limit time.Duration, wait func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- wait() }()
	select {
	case err := <-done:
		return err
	case <-time.After(limit):
		t.Fatalf("not within %v", limit)
		return nil
	}
}

// installer answers as a server does to an install token (protocol §5.3, §5.4).
func installer(t *testing.T, token string) *httptest.Server {
	t.Helper()
	var s *httptest.Server
	s = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/batchInstall") && r.Header.Get("X-DEVOPS-AGENT-INSTALL-TOKEN") != token:
			w.WriteHeader(http.StatusBadRequest)
		case strings.HasSuffix(r.URL.Path, "/batchInstall"):
			_, _ = fmt.Fprintf(w, "agent_id='agt-1'\nproject_id='demo'\ncurl '%s/ms/environment/api/external/thirdPartyAgent/agt-1/agent'\n", s.URL)
		default:
			z := zip.NewWriter(w)
			if f, err := z.Create(".agent.properties"); err == nil {
				_, _ = io.WriteString(f, properties)
			}
			_ = z.Close()
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// equipped is a home with a worker: without one, enroll says that builds need it.
func equipped(t *testing.T) string {
	t.Helper()
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, "worker-agent.jar"), []byte("jar"), 0o600); err != nil {
		t.Fatal(err)
	}
	return home
}

// TestEnroll: the token by each of its ways, and what is said without one.
func TestEnroll(t *testing.T) {
	const token = "t0ken-of-a-batch"
	s := installer(t, token)
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		stdin string
		env   []string
		args  []string
	}{
		"standard input": {stdin: token + "\n"},
		"variable":       {env: []string{"DEVOPS_AGENT_TOKEN=" + token}},
		"file":           {args: []string{"--token-file", file}, env: []string{"DEVOPS_AGENT_TOKEN=another"}},
		"dash":           {args: []string{"--token-file", "-"}, stdin: token, env: []string{"DEVOPS_AGENT_TOKEN=another"}},
	} {
		t.Run(name, func(t *testing.T) {
			home := equipped(t)
			args := append([]string{"enroll", "--home", home, "--gateway", s.URL}, tc.args...)
			if got := call(t, tc.stdin, tc.env, args...); got != (result{0, "enrolled as agt-1\n", ""}) {
				t.Fatalf("%+v", got)
			}
			for gateway, hint := range map[string]string{ // the package has a name of its own for the server
				"http://127.0.0.1:1": "", "127.0.0.1:1/": "",
				s.URL: "hint: it belongs to http://127.0.0.1:1 and stays there; to move it, stop it, and type the same with --again\n",
			} {
				if got := call(t, tc.stdin, tc.env, append(args, "--gateway", gateway)...); got != (result{0, "already enrolled as agt-1\n", hint}) {
					t.Errorf("again, at %s: %+v", gateway, got)
				}
			}
			info, err := os.Stat(filepath.Join(home, ".agent.properties"))
			if err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
				t.Errorf("properties: %v, %v", info, err)
			}
		})
	}
	t.Run("agent.toml", func(t *testing.T) {
		home := equipped(t)
		text := fmt.Sprintf("[enroll]\ngateway = %q\ntoken_file = %q\n", s.URL, file)
		if err := os.WriteFile(filepath.Join(home, "agent.toml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := call(t, "", nil, "enroll", "--home", home); got != (result{0, "enrolled as agt-1\n", ""}) {
			t.Errorf("%+v", got)
		}
	})
	for name, tc := range map[string]struct {
		stdin string
		args  []string
		want  string
	}{
		"no gateway":  {token, nil, "devopsAgent: enroll: no gateway\nhint: give its address by --gateway"},
		"no token":    {"", []string{"--gateway", s.URL}, "devopsAgent: enroll: no install token\nhint: give it by --token-file"},
		"two lines":   {"a\nb\n", []string{"--gateway", s.URL}, "devopsAgent: enroll: more than one line"},
		"wrong token": {"wr0ng-token", []string{"--gateway", s.URL}, "devopsAgent: enrol at " + s.URL + ": server answered HTTP 400 to the install token\nhint: the token is wrong or older"},
		"no server":   {token, []string{"--gateway", "http://127.0.0.1:1"}, "devopsAgent: enrol at http://127.0.0.1:1: dial tcp 127.0.0.1:1:"},
		"no file":     {"", []string{"--gateway", s.URL, "--token-file", "/none/token"}, "devopsAgent: enroll: read install token: open "},
	} {
		t.Run(name, func(t *testing.T) {
			home := t.TempDir()
			got := call(t, tc.stdin, nil, append([]string{"enroll", "--home", home}, tc.args...)...)
			if got.code != 1 || got.stdout != "" || !strings.HasPrefix(got.stderr, tc.want) || strings.Contains(got.stderr, "wr0ng") || strings.Contains(got.stderr, token) {
				t.Errorf("exit %d, stdout %q, stderr\n%s", got.code, got.stdout, got.stderr)
			}
			if entries, err := os.ReadDir(home); err != nil || len(entries) != 0 {
				t.Errorf("home holds %v, %v", entries, err)
			}
		})
	}
}
