//go:build linux

package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// statusLimit is how long status may take, on a busy machine: it gives up after 2.5 s itself.
const statusLimit = 5 * time.Second

// said is what "devopsAgent status" said, to people and to programs.
type said struct {
	State    string
	Healthy  bool
	Summary  string
	Advice   string
	Problems []struct{ State, Level, Summary, Advice string }
	Exit     int `json:"exit_code"`
	Agent    *struct{ PID int }
}

// verb runs the agent's program with a verb on a home.
func verb(t lab.T, program, home string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(program, append(args, "--home", home)...)
	// The stubs of a lab's home write down beside it what they did, and are found by that.
	cmd.Env = append(os.Environ(), "NO_COLOR=1", "LAB_DIR="+filepath.Join(filepath.Dir(home), "lab"))
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// status asks twice, for people and for programs, and checks what holds in every state: time, lines, exit code, schema.
func status(t *testing.T, program, home string) said {
	t.Helper()
	began := time.Now()
	data, stderr, code := verb(t, program, home, "status", "--json")
	if took := time.Since(began); took > statusLimit {
		t.Errorf("status took %v", took)
	}
	var got said
	if err := json.Unmarshal([]byte(data), &got); err != nil {
		t.Fatalf("%v in %q, standard error %q", err, data, stderr)
	}
	if stderr != "" || code != got.Exit || got.Healthy != (code == 0) {
		t.Errorf("exit code %d, says %d, healthy %v, standard error %q", code, got.Exit, got.Healthy, stderr)
	}
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(data))
	if err == nil {
		compiler := jsonschema.NewCompiler()
		compiler.AssertFormat()
		var schema *jsonschema.Schema
		if schema, err = compiler.Compile(filepath.Join("..", "..", "docs", "status.schema.json")); err == nil {
			err = schema.Validate(value)
		}
	}
	if err != nil {
		t.Errorf("schema: %v\n%s", err, data)
	}
	return got
}

// statusIs waits until status names a state and returns what it says; its first two lines are checked for words.
func statusIs(t *testing.T, program, home, state, first, second string) said {
	t.Helper()
	var got said
	if !lab.Eventually(30*time.Second, func() bool { got = status(t, program, home); return got.State == state || t.Failed() }) {
		t.Fatalf("state %q, want %q: %s\n%s", got.State, state, got.Summary, got.Advice)
	}
	text, _, _ := verb(t, program, home, "status")
	lines := append(strings.Split(text, "\n"), "", "")
	if !strings.Contains(lines[0], first) || !strings.Contains(lines[1], second) {
		t.Errorf("%s: the first lines are\n%s\n%s", state, lines[0], lines[1])
	}
	t.Logf("%s (exit %d):\n%s\n%s", state, got.Exit, lines[0], lines[1])
	return got
}

func onWorld(t *testing.T, o lab.HomeOptions, run func(t *testing.T, w *world)) {
	t.Helper()
	inline(t, "ask", func(s *S) { run(t, s.world(o)) })
}

// TestStatusRunningAndStopped: an agent that works, that hangs, that is drained, and that was stopped; and the verbs that do it.
func TestStatusRunningAndStopped(t *testing.T) {
	t.Parallel()
	onWorld(t, lab.HomeOptions{}, func(t *testing.T, w *world) {
		program, home := w.home.Path("devopsAgent"), w.home.Dir
		statusIs(t, program, home, "stopped", "stopped: the agent does not run, and nothing is registered to start it", "devopsAgent install")
		w.start()
		got := statusIs(t, program, home, "running", "working: idle, last contact ", "nothing to do")
		if got.Exit != 0 || got.Agent == nil || got.Agent.PID != w.agent.Pid() {
			t.Errorf("%+v", got)
		}

		build := lab.NewBuild()
		release := w.home.Gate(build)
		w.rec.Queue(build)
		if !w.home.WaitBegan(startLimit, build) {
			t.Fatal("the build did not begin")
		}
		statusIs(t, program, home, "running", "working: 1 build running, last contact ", "nothing to do")
		if text, _, _ := verb(t, program, home, "status"); !strings.Contains(text, build.ID) {
			t.Errorf("the build is not in\n%s", text)
		}
		if out, errs, code := verb(t, program, home, "drain"); code != 0 || out != "draining: 1 build running\n" {
			t.Errorf("drain: %d %q %q", code, out, errs)
		}
		if got := statusIs(t, program, home, "draining", "draining: takes no builds since ", "devopsAgent resume"); got.Exit != 0 {
			t.Errorf("%+v", got)
		}
		release()
		if out, errs, code := verb(t, program, home, "drain", "--wait"); code != 0 || out != "draining: 0 builds running\n" {
			t.Errorf("drain --wait: %d %q %q", code, out, errs)
		}
		for range 2 {
			if out, errs, code := verb(t, program, home, "resume"); code != 0 || out != "taking builds\n" {
				t.Errorf("resume: %d %q %q", code, out, errs)
			}
		}
		if out, errs, code := verb(t, program, home, "reload"); code != 0 || out != "reloaded\n" {
			t.Errorf("reload: %d %q %q", code, out, errs)
		}
		w.home.Write("agent.toml", "protocol = \"ask\"\n[builds]\nparalel = 3\n")
		if _, errs, code := verb(t, program, home, "reload"); code != 1 || !strings.Contains(errs, "agent.toml:3") {
			t.Errorf("reload of a broken file: %d %q", code, errs)
		}
		statusIs(t, program, home, "running", "working", "nothing to do")
		w.home.Write("agent.toml", "protocol = \"ask\"\n")

		if _, errs, code := verb(t, program, home, "prepare-image", "--yes"); code != 1 || !strings.Contains(errs, "the agent runs") {
			t.Errorf("prepare-image under a running agent: %d %q", code, errs)
		}
		if err := syscall.Kill(w.agent.Pid(), syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		statusIs(t, program, home, "hung", "NOT working: the agent hangs: pid "+strconv.Itoa(w.agent.Pid()), "kill -CONT")
		if err := syscall.Kill(w.agent.Pid(), syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		statusIs(t, program, home, "running", "working", "nothing to do")

		for _, want := range []string{"stopped\n", "not running\n"} {
			if out, errs, code := verb(t, program, home, "stop"); code != 0 || out != want {
				t.Errorf("stop: %d %q %q, want %q", code, out, errs, want)
			}
		}
		if code, err := w.agent.Wait(10 * time.Second); err != nil || code != 0 {
			t.Errorf("the agent: %d, %v", code, err)
		}
		if got := statusIs(t, program, home, "stopped", "stopped: ", "devopsAgent install"); got.Exit != 3 {
			t.Errorf("%+v", got)
		}
		if _, errs, code := verb(t, program, home, "drain"); code != 1 || !strings.Contains(errs, "the agent does not run\nhint: to start it, type: ") {
			t.Errorf("drain of none: %d %q", code, errs)
		}
		if out, _, code := verb(t, program, home, "logs", "-n", "1"); code != 0 || !strings.HasSuffix(out, "|INFO|Agent ends\n") || strings.Count(out, "\n") != 1 {
			t.Errorf("logs: %d %q", code, out)
		}
	})
}

func TestStatusNotInstalled(t *testing.T) {
	t.Parallel()
	program := programs(t).Agent
	empty := t.TempDir()
	for _, home := range []string{empty, filepath.Join(empty, "none")} {
		first := "not installed: " + home + " has no identity"
		if home != empty {
			first = "not installed: there is no agent in " + home
		}
		if got := statusIs(t, program, home, "not-installed", first, "install --"); got.Exit != 4 {
			t.Errorf("%+v", got)
		}
	}
	if entries, err := os.ReadDir(empty); err != nil || len(entries) != 0 {
		t.Errorf("looking left %v, %v", entries, err)
	}
}

func TestStatusUnreachable(t *testing.T) {
	t.Parallel()
	onWorld(t, lab.HomeOptions{Gateway: "http://127.0.0.1:1"}, func(t *testing.T, w *world) {
		w.agent = w.home.Start()
		if got := statusIs(t, w.home.Path("devopsAgent"), w.home.Dir, "unreachable", "NOT working: the server http://127.0.0.1:1 cannot be reached", "curl -v http://127.0.0.1:1"); got.Exit != 1 {
			t.Errorf("%+v", got)
		}
	})
}

// TestStatusWrongSecret, with the real controller: a secret that it does not know.
func TestStatusWrongSecret(t *testing.T) {
	t.Parallel()
	inline(t, "ask", func(s *S) {
		c := lab.NewController(s, s.programs)
		token, code := c.Run("", "enroll-token")
		if code != 0 {
			t.Fatalf("enroll-token: %d %q", code, token)
		}
		w := s.world(lab.HomeOptions{Gateway: c.URL})
		w.home.Remove(".agent.properties")
		w.home.Write("token", token)
		program, home := w.home.Path("devopsAgent"), w.home.Dir
		if out, errs, code := verb(t, program, home, "enroll", "--gateway", c.URL, "--token-file", w.home.Path("token")); code != 0 {
			t.Fatalf("enroll: %d %q %q", code, out, errs)
		}
		const key = "devops.agent.secret.key"
		right := w.home.Property(key)
		data, err := os.ReadFile(w.home.Path(".agent.properties"))
		if err != nil {
			t.Fatal(err)
		}
		w.home.Write(".agent.properties", strings.Replace(string(data), right, "wr0ng"+right[5:], 1))
		w.agent = w.home.Start()
		statusIs(t, program, home, "wrong-secret", "NOT working: the server "+c.URL+" does not accept this agent's id and secret", "enroll --again")
		if text, _, _ := verb(t, program, home, "status", "--json"); strings.Contains(text, "wr0ng") {
			t.Error("the secret is in the status")
		}
		// What it advises helps.
		if out, errs, code := verb(t, program, home, "stop"); code != 0 {
			t.Errorf("stop: %d %q %q", code, out, errs)
		}
		before := w.home.Property("devops.agent.id")
		if out, errs, code := verb(t, program, home, "enroll", "--again", "--gateway", c.URL, "--token-file", w.home.Path("token")); code != 0 ||
			w.home.Property("devops.agent.id") == before || out != "enrolled as "+w.home.Property("devops.agent.id")+"\n" {
			t.Errorf("enroll --again: %d %q %q", code, out, errs)
		}
		w.agent = w.home.Start()
		statusIs(t, program, home, "running", "working: idle", "nothing to do")
	})
}

// authority is a certificate authority with a time of its own.
func authority(t *testing.T, from, until time.Time, leafFrom, leafUntil time.Time) (ca string, server *tls.Config) {
	t.Helper()
	make := func(template, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) ([]byte, *x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if parent == nil {
			parent, parentKey = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return der, cert, key
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lab authority"}, NotBefore: from, NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, cert, key := make(root, nil, nil)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "127.0.0.1"}, NotBefore: leafFrom, NotAfter: leafUntil,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	leafDER, _, leafKey := make(leaf, cert, key)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		&tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{leafDER}, PrivateKey: leafKey}}}
}

// TestStatusCertificates: an authority that has expired, and one whose server is of tomorrow.
func TestStatusCertificates(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, tc := range map[string]struct {
		from, until, leafFrom, leafUntil time.Duration
		state, first, second             string
	}{
		"expired authority": {-48 * time.Hour, -time.Hour, -time.Hour, time.Hour, "certificate", "NOT working: the certificate in .cert has expired (CN=lab authority, on ", ".cert"},
		"expired server":    {-48 * time.Hour, time.Hour, -48 * time.Hour, -time.Hour, "certificate", "NOT working: the certificate of the server ", "renew"},
		"clock behind":      {-48 * time.Hour, 48 * time.Hour, 9 * time.Hour, 48 * time.Hour, "clock", "NOT working: the clock of this machine is wrong", "set the clock"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca, server := authority(t, now.Add(tc.from), now.Add(tc.until), now.Add(tc.leafFrom), now.Add(tc.leafUntil))
			inline(t, "ask", func(s *S) {
				w := s.worldOn(lab.NewRecorder(s, lab.RecorderOptions{TLS: server}), lab.HomeOptions{})
				w.home.Write(".cert", ca)
				w.agent = w.home.Start()
				if got := statusIs(t, w.home.Path("devopsAgent"), w.home.Dir, tc.state, tc.first, tc.second); got.Exit != 1 {
					t.Errorf("%+v", got)
				}
			})
		})
	}
}

// TestStatusClock: a server whose time is nine hours away from ours.
func TestStatusClock(t *testing.T) {
	t.Parallel()
	for hours, words := range map[int]string{9: "behind the server's", -9: "ahead of the server's"} {
		t.Run(words, func(t *testing.T) {
			t.Parallel()
			inline(t, "ask", func(s *S) {
				rec := lab.NewRecorder(s, lab.RecorderOptions{})
				target, err := url.Parse(rec.URL)
				if err != nil {
					t.Fatal(err)
				}
				proxy := httputil.NewSingleHostReverseProxy(target)
				proxy.ModifyResponse = func(r *http.Response) error {
					r.Header.Set("Date", time.Now().Add(time.Duration(hours)*time.Hour).UTC().Format(http.TimeFormat))
					return nil
				}
				there := httptest.NewServer(proxy)
				t.Cleanup(there.Close)
				w := s.worldOn(rec, lab.HomeOptions{Gateway: there.URL})
				w.start()
				if got := statusIs(t, w.home.Path("devopsAgent"), w.home.Dir, "clock", "working, but the clock of this machine is 9 h 0 min "+words, "set the clock"); got.Exit != 1 {
					t.Errorf("%+v", got)
				}
			})
		})
	}
}

// TestStatusFullDisk, on a file system of its own that is full to the last byte.
func TestStatusFullDisk(t *testing.T) {
	t.Parallel()
	onWorld(t, lab.HomeOptions{}, func(t *testing.T, w *world) {
		home := filepath.Join(t.TempDir(), "home")
		if err := os.Mkdir(home, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("tmpfs", home, "tmpfs", 0, "size=4m,mode=0700"); err != nil {
			t.Skipf("needs the right to mount a file system (root): %v", err)
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(home, syscall.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		data, err := os.ReadFile(w.home.Path(".agent.properties"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(home, ".agent.properties"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		w.agent = w.home.StartProgram(w.home.Path("devopsAgent"), w.home.Lab, []string{"--home", home})
		if _, ok := w.rec.WaitFor(startLimit, 0, lab.Ask); !ok {
			t.Fatal("no ask")
		}
		filler, err := os.Create(filepath.Join(home, "filler"))
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = filler.Write(make([]byte, 64<<10))
		}
		_ = filler.Close()
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		if got := statusIs(t, w.home.Path("devopsAgent"), home, "disk-full", "NOT working: the disk is full: 0 B free in "+home, "make room on the file system of "+home); got.Exit != 1 {
			t.Errorf("%+v", got)
		}
	})
}

// TestStatusTwin: a copy of a home, with the same identity, runs beside it.
func TestStatusTwin(t *testing.T) {
	t.Parallel()
	onWorld(t, lab.HomeOptions{}, func(t *testing.T, w *world) {
		w.start()
		program := w.home.Path("devopsAgent")
		copied := filepath.Join(t.TempDir(), "copy")
		if err := os.Mkdir(copied, 0o700); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(w.home.Path(".agent.properties"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(copied, ".agent.properties"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		twin := w.home.StartProgram(program, w.home.Lab, []string{"--home", copied})
		statusIs(t, program, w.home.Dir, "second-copy", "a second copy is running: pid "+strconv.Itoa(twin.Pid())+" ", "kill "+strconv.Itoa(twin.Pid()))
		twin.Kill()
		statusIs(t, program, w.home.Dir, "running", "working: idle", "nothing to do")
	})
}

// TestStatusBrokenConfiguration: of an agent that cannot start because of it.
func TestStatusBrokenConfiguration(t *testing.T) {
	t.Parallel()
	onWorld(t, lab.HomeOptions{TOML: "[builds]\nparalel = 3\n"}, func(t *testing.T, w *world) {
		got := statusIs(t, w.home.Path("devopsAgent"), w.home.Dir, "config-broken", "stopped, and it cannot start: "+w.home.Path("agent.toml")+":", "did you mean builds.parallel?")
		if got.Exit != 1 || !strings.Contains(got.Summary, "agent.toml:3:") {
			t.Errorf("%+v", got)
		}
	})
}

// TestStatusOfAnother: what an account sees that may not read the home.
func TestStatusOfAnother(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be another account")
	}
	onWorld(t, lab.HomeOptions{}, func(t *testing.T, w *world) {
		if err := os.Chmod(w.home.Dir, 0o700); err != nil { //nolint:gosec // what is tested
			t.Fatal(err)
		}
		w.start()
		for _, args := range [][]string{{"status"}, {"stop"}, {"start"}, {"uninstall"}, {"drain"}, {"reload"}, {"logs"}} {
			cmd := exec.Command(programs(t).Agent, append(args, "--home", w.home.Dir)...)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			cmd.Dir = "/"
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "type: sudo ") || !strings.Contains(string(out), " "+args[0]+" --home "+w.home.Dir) {
				t.Errorf("%s as another: %v\n%s", args, err, out)
			}
			if args[0] == "status" && (cmd.ProcessState.ExitCode() != 4 || !strings.HasPrefix(string(out), "unknown: the home "+w.home.Dir+" belongs to root")) {
				t.Errorf("exit %d\n%s", cmd.ProcessState.ExitCode(), out)
			}
		}
		if !w.agent.Alive() {
			t.Error("the agent is gone")
		}
	})
}

// installed makes a home with all programs and lets the verb install register it with devopsDaemon.
func installed(t *testing.T, w *world) (program, home string) {
	t.Helper()
	p := programs(t)
	if p.Daemon == "" || p.Upgrader == "" {
		t.Fatal("no daemon, no upgrader")
	}
	home = w.home.Dir
	t.Cleanup(func() { // whatever happened, nobody stays behind
		_, _, _ = verb(t, p.Agent, home, "uninstall", "--now")
	})
	// The agent's program lies elsewhere: install brings all of them into the home.
	w.home.Remove("devopsAgent")
	if out, errs, code := verb(t, p.Agent, home, "install", "direct"); code != 0 || !strings.HasPrefix(out, "installed: devopsDaemon\nstarted: devopsDaemon, pid ") {
		t.Fatalf("install: %d %q %q", code, out, errs)
	}
	return w.home.Path("devopsAgent"), home
}

// TestVerbsUnderDevopsDaemon: the life of an installation, by verbs alone; each of them twice.
func TestVerbsUnderDevopsDaemon(t *testing.T) {
	t.Parallel()
	onWorld(t, lab.HomeOptions{}, func(t *testing.T, w *world) {
		program, home := installed(t, w)
		twice := func(args string, wants ...string) {
			t.Helper()
			for _, want := range wants {
				out, errs, code := verb(t, program, home, strings.Fields(args)...)
				if code != 0 || !strings.HasPrefix(out, want) {
					t.Errorf("%s: %d %q %q, want %q", args, code, out, errs, want)
				}
			}
		}
		first := statusIs(t, program, home, "running", "working: idle", "nothing to do")
		twice("install direct", "installed: devopsDaemon\nalready running: devopsDaemon, pid ")
		twice("repair", "installed: devopsDaemon\nalready running: devopsDaemon, pid ")
		twice("start", "already running: devopsDaemon, pid ", "already running: devopsDaemon, pid ")
		if now := statusIs(t, program, home, "running", "working: idle", "nothing to do"); now.Agent == nil || now.Agent.PID != first.Agent.PID {
			t.Errorf("another agent: %+v, was %+v", now.Agent, first.Agent)
		}

		build := lab.NewBuild()
		release := w.home.Gate(build)
		w.rec.Queue(build)
		if !w.home.WaitBegan(startLimit, build) {
			t.Fatal("the build did not begin")
		}
		twice("restart", "restarted: devopsDaemon")
		if !lab.Eventually(startLimit, func() bool {
			now := status(t, program, home)
			return now.Agent != nil && now.Agent.PID != first.Agent.PID
		}) {
			t.Error("no other agent after restart")
		}
		statusIs(t, program, home, "running", "working: 1 build running", "nothing to do")
		if _, errs, code := verb(t, program, home, "stop", "--timeout", "1s"); code != 1 || !strings.Contains(errs, "the agent goes on draining\nhint: ") {
			t.Errorf("stop --timeout: %d %q", code, errs)
		}
		statusIs(t, program, home, "stopping", "stopping: ends when its builds have, at the latest at ", "stop --now")
		release()
		twice("stop", "stopped\n", "not running\n")
		if n := len(w.rec.Finishes(build.ID)); n == 0 {
			t.Errorf("the build was not reported\n%s", w.home.Log())
		}
		if got := statusIs(t, program, home, "stopped", "stopped", "start"); got.Exit != 3 {
			t.Errorf("%+v", got)
		}
		twice("start", "started: devopsDaemon, pid ", "already running: devopsDaemon, pid ")

		build = lab.NewBuild()
		w.home.Gate(build)
		w.rec.Queue(build)
		if !w.home.WaitBegan(startLimit, build) {
			t.Fatal("the build did not begin")
		}
		began := time.Now()
		twice("stop --now", "stopped\n", "not running\n")
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("stop --now took %v", took)
		}
		if lab.Running(w.home.Run(build).Pid()) {
			t.Error("the build still runs")
		}
		twice("uninstall", "not running\nuninstalled: devopsDaemon\n", "not installed\n")
		if !w.home.Has(".agent.properties") || !w.home.Has("workspace") || w.home.Has(".keeper") {
			t.Error("uninstall took or left the wrong things")
		}
		statusIs(t, program, home, "stopped", "stopped: the agent does not run, and nothing is registered to start it", "install")
		twice("uninstall --purge --yes", "not installed\nremoved")
		if w.home.Has(".agent.properties") || w.home.Has("devopsAgent") {
			t.Error("purged, and still there")
		}
	})
}

// TestStatusCrashLoopAndRemoved: an agent that ends at once, and one that BK-CI has deleted.
func TestStatusCrashLoopAndRemoved(t *testing.T) {
	t.Parallel()
	onWorld(t, lab.HomeOptions{}, func(t *testing.T, w *world) {
		program, home := installed(t, w)
		statusIs(t, program, home, "running", "working: idle", "nothing to do")
		p := programs(t)
		if out, errs, code := verb(t, program, home, "stop"); code != 0 {
			t.Fatalf("stop: %d %q %q", code, out, errs)
		}
		w.home.Remove("devopsAgent")
		w.home.Write("devopsAgent", "#!/bin/sh\necho no such library >&2\nexit 3\n")
		if err := os.Chmod(w.home.Path("devopsAgent"), 0o755); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
		_, _, _ = verb(t, p.Agent, home, "start")
		if got := statusIs(t, p.Agent, home, "crash-loop", "NOT working: crash loop: the agent ends soon after each start (", "logs -n 50"); got.Exit != 1 {
			t.Errorf("%+v", got)
		}
		if out, errs, code := verb(t, p.Agent, home, "stop"); code != 0 || out != "stopped\n" {
			t.Errorf("stop of a crash loop: %d %q %q", code, out, errs)
		}
		w.home.Write("devopsAgent", "#!/bin/sh\nexit 88\n")
		_, _, _ = verb(t, p.Agent, home, "start")
		if got := statusIs(t, p.Agent, home, "removed", "removed: this agent was deleted in BK-CI (exit code 88)", "enroll --again"); got.Exit != 3 {
			t.Errorf("%+v", got)
		}
	})
}

// TestStatusSecondCopy: another program has the home before its daemon.
func TestStatusSecondCopy(t *testing.T) {
	t.Parallel()
	onWorld(t, lab.HomeOptions{}, func(t *testing.T, w *world) {
		program, home := installed(t, w)
		statusIs(t, program, home, "running", "working: idle", "nothing to do")
		if out, errs, code := verb(t, program, home, "stop"); code != 0 {
			t.Fatalf("stop: %d %q %q", code, out, errs)
		}
		other := w.home.StartProgram(programs(t).Agent, w.home.Lab, []string{"--home", home})
		_, _, _ = verb(t, program, home, "start")
		pid := strconv.Itoa(other.Pid())
		if got := statusIs(t, program, home, "second-copy", "a second copy is running: pid "+pid+" ("+programs(t).Agent, "end it: kill "+pid); got.Exit != 1 {
			t.Errorf("%+v", got)
		}
		if err := other.Term(); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Wait(20 * time.Second); err != nil {
			t.Fatal(err)
		}
		statusIs(t, program, home, "running", "working: idle", "nothing to do")
	})
}
