//go:build linux

package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// outside is the number under which checks go that belong to no statement.
const outside = 0

// inline runs a scenario as a part of one test.
func inline(t *testing.T, mode string, run func(*S)) {
	t.Helper()
	s := &S{name: t.Name(), mode: mode, programs: programs(t), parent: t, done: make(chan struct{}), verdicts: map[int]*verdict{}}
	go s.execute(run)
	<-s.done
	failed := false
	if v := s.verdicts[outside]; v != nil {
		for _, failure := range v.failures {
			t.Error(failure)
			failed = true
		}
	}
	if s.aborted != "" {
		t.Error(s.aborted)
		failed = true
	}
	if failed {
		t.Log(s.tail())
	}
}

// TestAcceptanceAuto: the agent finds out which generation its server speaks (protocol Appendix B, U-12).
func TestAcceptanceAuto(t *testing.T) {
	t.Parallel()
	t.Run("ask is there", func(t *testing.T) {
		inline(t, "ask", func(s *S) {
			w := s.world(lab.HomeOptions{Mode: "auto"})
			build := lab.NewBuild()
			w.rec.Queue(build)
			w.start()
			w.mustFinish(60*time.Second, build)
			n := len(w.rec.Of(lab.Status, lab.Heartbeat, lab.Claim, lab.CheckUpgrade))
			s.check(outside, n == 0, "%d calls of the seed generation beside ask", n)
		})
	})
	t.Run("ask is 404", func(t *testing.T) {
		inline(t, "split", func(s *S) {
			w := s.world(lab.HomeOptions{Mode: "auto"})
			w.rec.Always(lab.Ask, lab.JSON(404, map[string]any{"status": 404, "message": "no such service", "data": "", "result": true}))
			build := lab.NewBuild()
			w.rec.Queue(build)
			w.start()
			w.mustFinish(60*time.Second, build)
			w.watch(12 * time.Second)
			s.check(outside, len(w.rec.Of(lab.Ask)) <= 3, "%d asks at a server without ask", len(w.rec.Of(lab.Ask)))
			for _, gap := range gaps(w.rec.Of(lab.Status)) {
				s.check(outside, gap >= 3*time.Second, "status calls %v apart", gap)
			}
		})
	})
}

// TestAcceptanceNativeWorker: no jar and no JDK in the home, but devopsWorker.
func TestAcceptanceNativeWorker(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"split", "ask"} {
		t.Run(mode, func(t *testing.T) {
			inline(t, mode, func(s *S) {
				if s.programs.Worker == "" {
					s.Fatalf("cmd/worker has no code")
				}
				w := s.worldOn(lab.NewRecorder(s, lab.RecorderOptions{Strict: true}), lab.HomeOptions{NoJar: true, JDK: "-", Worker: s.programs.Worker})
				writeProfile(w, "export LAB_PROFILE=read")
				build := lab.NewBuild()
				session := w.rec.Open(&lab.Session{Build: build, Tasks: []lab.Task{
					{ID: "e-1", Script: "echo profile $LAB_PROFILE\necho project $PROJECT_ID $DEVOPS_GATEWAY\nsetEnv A b"},
					{ID: "e-2", Script: "echo A is $A; exit 3"},
				}})
				w.rec.Queue(build)
				w.start()
				q := w.mustFinish(90*time.Second, build)
				s.check(outside, q.Get("success") == true, "the worker ended well, whatever its tasks did: %v", q)
				text := ""
				for _, line := range session.Lines() {
					text += line.Message + "\n"
				}
				for _, want := range []string{"profile read\n", "project lab " + w.rec.URL + "\n", "A is b\n"} {
					s.check(outside, strings.Contains(text, want), "no %q in the log %q", want, text)
				}
				s.check(outside, len(session.Completes("e-1")) == 1 && session.Completes("e-1")[0].Get("success") == true, "e-1: %v", session.Completes("e-1"))
				s.check(outside, len(session.Completes("e-2")) == 1 && session.Completes("e-2")[0].Get("success") == false, "e-2: %v", session.Completes("e-2"))
				s.check(outside, len(w.rec.Finishes(build.ID)) == 1, "%d reports", len(w.rec.Finishes(build.ID)))
				for _, q := range w.rec.TooFrequent() {
					s.check(outside, false, "too frequent: %v", q)
				}
				// A second job, cancelled by the death of its worker: the error file tells.
				killed := lab.NewBuild()
				w.rec.Open(&lab.Session{Build: killed, Tasks: []lab.Task{{ID: "e-1", Script: "sleep 100"}}})
				w.rec.Queue(killed)
				if !w.rec.Until(30*time.Second, func() bool { return len(w.rec.Of(lab.WorkerStarted)) == 2 }) {
					s.Fatalf("the second worker did not start")
				}
				w.alive(outside)
			})
		})
	}
}

// TestAcceptanceUpgradeOffer: what cannot be upgraded yet is answered honestly.
func TestAcceptanceUpgradeOffer(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"split", "ask"} {
		t.Run(mode, func(t *testing.T) {
			inline(t, mode, func(s *S) {
				w := s.world(lab.HomeOptions{})
				w.rec.Offer("worker")
				w.start()
				if !s.check(outside, w.rec.WaitN(60*time.Second, lab.FinishUpgrade, 1), "an offered upgrade was not answered") {
					return
				}
				q := w.rec.Of(lab.FinishUpgrade)[0]
				s.check(outside, q.Query.Get("success") == "false", "answered with %q", q.RawQuery)
				s.check(outside, strings.Contains(strings.ToLower(w.home.Log()), "upgrade"), "no line about it in the log")
				w.rec.Offer()
				w.alive(outside)
			})
		})
	}
}

// TestAcceptanceNoSecretAnywhere looks for the secret while a build runs, with debug logs, and with a server that repeats it.
func TestAcceptanceNoSecretAnywhere(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"split", "ask"} {
		t.Run(mode, func(t *testing.T) {
			inline(t, mode, func(s *S) {
				w := s.world(lab.HomeOptions{TOML: "[log]\nlevel = \"debug\"\n"})
				echo := lab.JSON(401, map[string]any{"status": 401, "message": "wrong secret " + w.home.Secret, "data": nil})
				w.rec.Next(w.beat(), echo)
				w.rec.Next(lab.Status, echo)
				build := lab.NewBuild()
				open := w.home.Gate(build)
				w.rec.Queue(build)
				w.start()
				w.mustBegin(60*time.Second, build)
				pids := lab.CommandLines(w.home.Secret)
				s.check(outside, len(pids) == 0, "the secret is in the arguments of %v", pids)
				encoded := base64.StdEncoding.EncodeToString([]byte(w.home.Secret))
				s.check(outside, len(lab.CommandLines(encoded[:len(encoded)-4])) == 0, "the secret is in the arguments of a process, encoded")
				open()
				w.mustFinish(40*time.Second, build)
				w.rec.Always(w.beat(), lab.Answer{Drop: true})
				w.watch(8 * time.Second)
				s.check(outside, len(w.home.FindSecret(w.home.Secret)) == 0, "the secret is in %v", w.home.FindSecret(w.home.Secret))
				if err := w.agent.Term(); err != nil {
					s.Fatalf("%v", err)
				}
				_, err := w.agent.Wait(30 * time.Second)
				s.check(outside, err == nil, "after SIGTERM: %v", err)
				s.check(outside, len(w.home.FindSecret(w.home.Secret)) == 0, "the secret is in %v", w.home.FindSecret(w.home.Secret))
				_ = filepath.WalkDir(w.home.Dir, func(path string, entry os.DirEntry, err error) error {
					if err == nil && entry.Type().IsRegular() && !strings.HasPrefix(filepath.Base(path), ".agent.properties") {
						if data, err := os.ReadFile(path); err == nil && bytes.Contains(data, []byte(w.home.Secret)) {
							s.check(outside, false, "the secret is in %s", path)
						}
					}
					return nil
				})
				for _, name := range []string{".agent.properties", ".agent.properties.bak"} {
					if info, err := os.Stat(w.home.Path(name)); err == nil {
						s.check(outside, info.Mode().Perm() == 0o600, "%s has mode %v", name, info.Mode().Perm())
					}
				}
			})
		})
	}
}

// The numbers of acceptance 4.
const (
	garbageWanted = 1000
	splitAgents   = 36
	askAgents     = 16
	memoryLimit   = 60 << 20 // resident, of the programs that are shipped
	growthLimit   = 40 << 20 // since the start, also of programs with the race detector, which are several times as large
)

// TestAcceptanceGarbage: 1,000 garbage answers at every endpoint, to many agents at once. Nobody ends, nobody grows, and
// everybody takes the next good build.
func TestAcceptanceGarbage(t *testing.T) {
	t.Parallel()
	var given atomic.Int64
	var closed atomic.Bool // no more garbage
	kinds := newGarbage(t)
	var mu sync.Mutex
	endpoints := map[lab.Endpoint]int{}
	var agents sync.WaitGroup
	peaks := make([]int64, splitAgents+askAgents)
	deadline := time.Now().Add(200 * time.Second)
	for i := range splitAgents + askAgents {
		mode := "split"
		if i >= splitAgents {
			mode = "ask"
		}
		agents.Go(func() {
			inline(t, mode, func(s *S) {
				random := rand.New(rand.NewPCG(7, uint64(i))) //nolint:gosec // a test
				var turn sync.Mutex
				w := s.world(lab.HomeOptions{Set: map[string]string{"devops.docker.enable": "true", "devops.pipeline.enable": "true", "devops.agent.collectorOn": "true"},
					TOML: "[scripts]\nenable = true\n"})
				for _, e := range lab.AgentEndpoints() {
					w.rec.On(e, func(q lab.Request) *lab.Answer {
						if closed.Load() {
							return nil
						}
						turn.Lock()
						defer turn.Unlock()
						// Some good answers between the bad ones, so that the calls behind them are made at all.
						good := 1
						if e == lab.Status || e == lab.Startup {
							good = 4
						}
						if random.IntN(8) < good {
							return nil
						}
						given.Add(1)
						mu.Lock()
						endpoints[e]++
						mu.Unlock()
						return kinds.pick(random, e, w)
					})
				}
				for n := range 5 {
					w.rec.QueuePipeline(lab.Command(fmt.Sprint(n), "echo fine"))
				}
				w.rec.Offer("worker")
				w.launch()
				born, _, err := lab.Memory(w.agent.Pid())
				s.check(outside, err == nil, "memory of agent %d: %v", i, err)
				for given.Load() < garbageWanted && time.Now().Before(deadline) {
					w.watch(time.Second)
				}
				closed.Store(true)
				rss, peak, err := lab.Memory(w.agent.Pid())
				s.check(outside, err == nil && peak-born <= growthLimit, "agent %d: %d MiB resident, %d MiB at most, %d MiB when it began (%v)", i, rss>>20, peak>>20, born>>20, err)
				s.check(outside, peak <= memoryLimit || os.Getenv("E2E_RACE") == "1", "agent %d: %d MiB at most, limit %d MiB", i, peak>>20, memoryLimit>>20)
				peaks[i] = peak
				w.rec.Offer()
				build := lab.NewBuild()
				w.rec.Queue(build)
				q := w.mustFinish(180*time.Second, build)
				s.check(outside, q.Get("success") == true, "agent %d: the good build after the garbage: %v", i, q)
				w.alive(outside)
				s.check(outside, w.home.Property("devops.agent.id") == w.home.Agent && w.home.Property("devops.agent.secret.key") == w.home.Secret, "agent %d lost its identity", i)
				escaped, _ := filepath.Glob(w.home.LabPath("escaped*"))
				s.check(outside, len(escaped) == 0, "agent %d: a hostile id became a file: %v", i, escaped)
				s.check(outside, len(w.home.FindSecret(w.home.Secret)) == 0, "the secret is in %v", w.home.FindSecret(w.home.Secret))
			})
		})
	}
	agents.Wait()
	if n := given.Load(); n < garbageWanted {
		t.Errorf("only %d garbage answers were given, want %d", n, garbageWanted)
	}
	t.Logf("%d garbage answers to %d agents, highest memory %d MiB", given.Load(), splitAgents+askAgents, slices.Max(peaks)>>20)
	for e, n := range endpoints {
		t.Logf("%5d %s", n, e)
	}
	for _, e := range []lab.Endpoint{lab.Startup, lab.Status, lab.Heartbeat, lab.Claim, lab.CheckUpgrade, lab.Ask, lab.FetchDebug, lab.FetchPipeline} {
		if endpoints[e] == 0 {
			t.Errorf("no garbage at %s", e)
		}
	}
}

// garbage makes answers that no agent should trip over.
type garbage struct {
	bomb []byte // a gigabyte of blanks, by gzip
	deep []byte
	many []byte
}

func newGarbage(t *testing.T) *garbage {
	t.Helper()
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	blanks := bytes.Repeat([]byte(" "), 1<<20)
	for range 256 {
		if _, err := z.Write(blanks); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return &garbage{bomb: bomb.Bytes(),
		deep: []byte(`{"status":0,"agentStatus":"IMPORT_OK","data":` + strings.Repeat(`[{"a":`, 60000)),
		many: []byte(`{"status":0,"agentStatus":"IMPORT_OK","data":[` + strings.Repeat("1,", 200000) + "1]}")}
}

func (g *garbage) pick(random *rand.Rand, e lab.Endpoint, w *world) *lab.Answer {
	text := func(code int, body string) *lab.Answer {
		return &lab.Answer{Code: code, Body: []byte(body), Header: http.Header{"Content-Type": {"application/json"}}}
	}
	ok := func(data string) *lab.Answer {
		return text(200, `{"status":0,"message":null,"agentStatus":"IMPORT_OK","data":`+data+`}`)
	}
	gzipped := http.Header{"Content-Encoding": {"gzip"}, "Content-Type": {"application/json"}}
	switch kind := random.IntN(30); kind {
	case 0:
		return &lab.Answer{Body: []byte("<!DOCTYPE html><html><body><h1>Login</h1>" + strings.Repeat("<p>x</p>", 5000)), Header: http.Header{"Content-Type": {"text/html"}}}
	case 1:
		return &lab.Answer{}
	case 2:
		return text(200, `{"status":0,"agentStatus":"IMPORT_OK","data":{"heartbeat":{"agentStatus":"IMP`)
	case 3:
		return text(200, `{"status":"0","message":[],"agentStatus":{"a":1},"data":5}`)
	case 4:
		return ok(`[[],{},null,"x"]`)
	case 5:
		return text(200, `{"status":null,"message":null,"agentStatus":null,"data":null}`)
	case 6:
		return &lab.Answer{Body: g.deep}
	case 7:
		return ok(`{"parallelTaskCount":9223372036854775808,"dockerParallelTaskCount":-9223372036854775809,"props":{"keepLogsHours":1e400},
			"heartbeat":{"parallelTaskCount":9223372036854775807,"dockerParallelTaskCount":1e308,"props":{"keepLogsHours":-1},"language":"../../x"}}`)
	case 8:
		raw := make([]byte, 1+random.IntN(4096))
		for i := range raw {
			raw[i] = byte(random.Uint32()) //nolint:gosec // that is the idea
		}
		return &lab.Answer{Body: raw, Code: 200}
	case 9: // ten gigabytes, if anybody wants them
		return &lab.Answer{Stream: func(rw http.ResponseWriter, q *http.Request) {
			_, err := rw.Write([]byte(`{"status":0,"data":"`))
			chunk := bytes.Repeat([]byte("x"), 64<<10)
			for i := 0; i < 160_000 && err == nil && q.Context().Err() == nil; i++ {
				_, err = rw.Write(chunk)
			}
		}}
	case 10:
		return &lab.Answer{Body: g.bomb, Header: gzipped}
	case 11:
		return &lab.Answer{Body: []byte("\x1f\x8b\x08 no gzip at all"), Header: gzipped}
	case 12, 13:
		return &lab.Answer{Drop: true}
	case 14:
		return &lab.Answer{Hang: true}
	case 15:
		return &lab.Answer{Body: []byte(`{"status":0,"data":`), Cut: true}
	case 16:
		return text([]int{300, 304, 400, 401, 403, 404, 405, 418, 429, 500, 501, 502, 503, 504, 599}[random.IntN(15)], `{"status":0,"agentStatus":"IMPORT_OK","data":"IMPORT_OK"}`)
	case 17:
		return &lab.Answer{Code: 302, Header: http.Header{"Location": {[]string{"http://127.0.0.1:1/", "/", "ftp://x/", "//", string(e)}[random.IntN(5)]}}}
	case 18:
		late := text(200, "late nonsense")
		late.Delay = 2 * time.Second
		return late
	case 19:
		return &lab.Answer{Header: http.Header{"X-Long": {strings.Repeat("h", 900<<10)}}, Body: []byte("{}")}
	case 20: // a byte now and then
		return &lab.Answer{Stream: func(rw http.ResponseWriter, q *http.Request) {
			tick := time.NewTicker(300 * time.Millisecond)
			defer tick.Stop()
			for range 40 {
				select {
				case <-q.Context().Done():
					return
				case <-tick.C:
				}
				if _, err := rw.Write([]byte(" ")); err != nil {
					return
				}
				_ = http.NewResponseController(rw).Flush()
			}
		}}
	case 21:
		return text(200, fmt.Sprintf(`{"status":%s,"data":null}`, []string{"-1", "1e99", "0.5", "99999999999999999999", "true", "[]"}[random.IntN(6)]))
	case 22: // ids that would like to be paths and commands
		escaped := w.home.LabPath("escaped")
		b := lab.NewBuild()
		b.ID, b.VMSeq, b.Project = []string{"../../" + filepath.Base(w.home.Lab) + "/escaped", "b; touch " + escaped, "b\n touch " + escaped, "", strings.Repeat("b", 5000)}[random.IntN(5)], "$(touch "+escaped+")", "`touch "+escaped+"`"
		data, _ := json.Marshal(b)
		if e == lab.Claim {
			return ok(string(data))
		}
		return ok(`{"build":` + string(data) + `}`)
	case 23:
		return text(200, "{\"status\":0,\"data\":\"\xff\xfe\x00\u0000\"}")
	case 24:
		return &lab.Answer{Body: g.many}
	case 25:
		return ok(`{"type":"COMMAND","seqId":{"a":1},"command":["x"],"heartbeat":{"gateway":"http://127.0.0.1:1","fileGateway":"a\r\nb=c","language":"x\ny","envs":{"":"x","A=B":"c","N":null}},"gateway":"ht!tp:/\\","props":[]}`)
	case 26:
		return ok(`{"agent":"yes","worker":1,"jdk":null,"dockerInitFile":[],"upgrade":{"agent":"yes"},"pipeline":7,"debug":"x","build":[]}`)
	case 27:
		return &lab.Answer{Body: []byte(strings.Repeat("\n", 100000))}
	case 28:
		return text(200, `{"status":0,"status":1,"data":{"agentStatus":"IMPORT_OK"},"data":17,"agentStatus":5}`)
	default:
		return text(204, "")
	}
}
