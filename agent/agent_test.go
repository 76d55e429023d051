package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/agent/job"
	"github.com/devops-agent/devops-agent/agent/rhythm"
	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// call is one request as a server saw it.
type call struct {
	at     time.Time
	method string
	path   string // with query, without the host
	host   string
	prefer string
	body   map[string]any
}

// server answers calls from inside the bubble: no connection, no wall clock.
type server struct {
	mu     sync.Mutex
	calls  []call
	answer func(c call) (status int, header http.Header, body string)
	delay  func(ctx context.Context, c call)
}

// RoundTrip records the call and answers it.
func (s *server) RoundTrip(req *http.Request) (*http.Response, error) {
	c := call{at: time.Now(), method: req.Method, path: req.URL.RequestURI(), host: req.URL.Host, prefer: req.Header.Get("Prefer")}
	if req.Body != nil {
		data, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		_ = json.Unmarshal(data, &c.body)
	}
	s.mu.Lock()
	s.calls = append(s.calls, c)
	s.mu.Unlock()
	if s.delay != nil {
		s.delay(req.Context(), c)
	}
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	status, header, body := s.answer(c)
	if status == 0 {
		return nil, errors.New("connection reset by peer")
	}
	if header == nil {
		header = http.Header{}
	}
	return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(strings.NewReader(body)), Request: req}, nil
}

// of returns the calls whose path ends with a text, query left out.
func (s *server) of(end string) []call {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []call
	for _, c := range s.calls {
		path, _, _ := strings.Cut(c.path, "?")
		if strings.HasSuffix(path, end) {
			list = append(list, c)
		}
	}
	return list
}

const ok = `{"status":0,"message":null,"data":null,"agentStatus":"IMPORT_OK"}`

// normal is a server where nothing happens.
func normal(c call) (int, http.Header, string) {
	switch path, _, _ := strings.Cut(c.path, "?"); path {
	case wire.PathStartup, wire.PathStatus:
		return 200, nil, `{"status":0,"data":"IMPORT_OK"}`
	case wire.PathHeartbeat:
		return 200, nil, `{"status":0,"data":{"agentStatus":"IMPORT_OK"}}`
	case wire.PathAsk:
		return 200, nil, `{"status":0,"agentStatus":"IMPORT_OK","data":{"heartbeat":{"agentStatus":"IMPORT_OK"},"build":null}}`
	}
	return 200, nil, ok
}

type stage struct {
	*Agent
	*server
	log *bytes.Buffer
}

// setStage makes a home and an agent that talks to s. Call it inside a bubble.
func setStage(t *testing.T, protocol string, s *server) stage {
	t.Helper()
	home := t.TempDir()
	text := "devops.project.id=demo\ndevops.agent.id=abc\ndevops.agent.secret.key=hidden-words\nlandun.gateway=127.0.0.2\n" +
		"devops.parallel.task.count=2\nlandun.env=PROD\ndevops.language=en_US\n"
	if err := os.WriteFile(filepath.Join(home, ".agent.properties"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	toml := filepath.Join(home, "agent.toml")
	if err := os.WriteFile(toml, []byte(fmt.Sprintf("protocol = %q\n", protocol)), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.LoadConfig(toml)
	if err != nil {
		t.Fatal(err)
	}
	var text2 bytes.Buffer
	log := slog.New(slog.NewTextHandler(&lockedWriter{w: &text2}, nil))
	store, err := config.Open(home, cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(Options{Installation: &service.Installation{Home: home}, Config: cfg, Store: store, Version: "v1.0.0",
		GOOS: runtime.GOOS, GOARCH: runtime.GOARCH, Umask: -1, Log: log,
		HTTP: func(wire.HTTPOptions) *http.Client { return &http.Client{Transport: s} }})
	if err != nil {
		t.Fatal(err)
	}
	return stage{a, s, &text2}
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

// Write writes one piece at a time.
func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// runFor runs the agent for a span of the bubble's time and returns how it ended.
func (s stage) runFor(t *testing.T, span time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), span)
	defer cancel()
	err := s.Agent.Run(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = nil
	}
	return err
}

func gaps(calls []call) (least, most time.Duration) {
	least = time.Hour
	for i := 1; i < len(calls); i++ {
		gap := calls[i].at.Sub(calls[i-1].at)
		least, most = min(least, gap), max(most, gap)
	}
	return least, most
}

func TestCadenceOfAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := setStage(t, "auto", &server{answer: normal})
		if err := s.runFor(t, 10*time.Minute); err != nil {
			t.Fatal(err)
		}
		if first := s.calls[0]; first.path != wire.PathStartup {
			t.Errorf("first call %s", first.path)
		}
		least, most := gaps(s.of("/ask"))
		if least != 5*time.Second || most != 5*time.Second {
			t.Errorf("ask every %v to %v", least, most)
		}
		for _, path := range []string{"/newHeartbeat", "/status", "/upgradeNew", "/agents/pipelines"} {
			if n := len(s.of(path)); n != 0 {
				t.Errorf("%d calls of %s", n, path)
			}
		}
		if n := len(s.of("/agents/metrics")); n < 9 || n > 10 {
			t.Errorf("%d uploads of measurements in 10 minutes", n)
		}
	})
}

func TestCadenceOfSeparateEndpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := setStage(t, "split", &server{answer: func(c call) (int, http.Header, string) {
			if c.path == wire.PathHeartbeat {
				return 200, nil, `{"status":0,"data":{"AgentStatus":"IMPORT_OK","ParallelTaskCount":3,"props":{"enablePipeline":true}}}`
			}
			return normal(c)
		}})
		if err := s.runFor(t, 10*time.Minute); err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]time.Duration{"/newHeartbeat": 10 * time.Second, "/status": 5 * time.Second,
			"thirdPartyAgent/startup": 0, "/upgradeNew": 20 * time.Second, "/agents/pipelines": 30 * time.Second} {
			calls := s.of(path)
			if want == 0 { // startup of the environment service once, claims of the dispatch service with each status
				continue
			}
			if least, most := gaps(calls); least != want || most != want {
				t.Errorf("%s every %v to %v, want %v", path, least, most, want)
			}
		}
		if n := len(s.of("/ask")); n != 0 {
			t.Errorf("%d calls of ask", n)
		}
		if s.Store.Settings().Parallel != 3 {
			t.Error("ParallelTaskCount with a capital letter was not taken over")
		}
	})
}

func TestAServerWithoutAskIsSpokenToOtherwise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upgraded := time.Now().Add(20 * time.Minute)
		s := setStage(t, "auto", &server{answer: func(c call) (int, http.Header, string) {
			if c.path == wire.PathAsk && time.Now().Before(upgraded) {
				return 404, nil, `{"status":404,"message":"no such path"}`
			}
			return normal(c)
		}})
		if err := s.runFor(t, 30*time.Minute); err != nil {
			t.Fatal(err)
		}
		beats := s.of("/newHeartbeat")
		if len(beats) == 0 || beats[0].at.Sub(s.calls[0].at) > 2*time.Second {
			t.Errorf("%d heartbeats, the first at %v", len(beats), beats)
		}
		if last := beats[len(beats)-1].at; last.Before(upgraded.Add(-rhythm.BeatEvery)) || last.After(upgraded.Add(askAgainEvery)) {
			t.Errorf("separate endpoints were used until %v after the server's upgrade", last.Sub(upgraded))
		}
		before := 0
		for _, c := range s.of("/ask") {
			if c.at.Before(upgraded) {
				before++
			}
		}
		if before > 6 {
			t.Errorf("%d calls of an ask that is not there in 20 minutes", before)
		}
	})
}

// TestA404IsNotAnotherGeneration: once ask has worked, a gateway in trouble does not change the generation.
func TestA404IsNotAnotherGeneration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		s := setStage(t, "auto", &server{answer: func(c call) (int, http.Header, string) {
			if c.path == wire.PathAsk {
				if n++; n > 3 && n < 3+askMissing {
					return 404, nil, "<html>not found</html>"
				}
			}
			return normal(c)
		}})
		if err := s.runFor(t, 10*time.Minute); err != nil {
			t.Fatal(err)
		}
		if n := len(s.of("/newHeartbeat")); n != 0 {
			t.Errorf("%d heartbeats to their own endpoint", n)
		}
	})
}

func TestNothingIsSaidBeforeStartupIsAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		accepted := time.Now().Add(5 * time.Minute)
		s := setStage(t, "ask", &server{answer: func(c call) (int, http.Header, string) {
			if c.path == wire.PathStartup && time.Now().Before(accepted) {
				return 500, nil, "no"
			}
			return normal(c)
		}})
		if err := s.runFor(t, 10*time.Minute); err != nil {
			t.Fatal(err)
		}
		startups := s.of("thirdPartyAgent/startup")
		if least, most := gaps(startups); least < time.Second || most > time.Minute || len(startups) < 6 {
			t.Errorf("%d startups every %v to %v", len(startups), least, most)
		}
		for _, c := range s.calls {
			if c.at.Before(accepted) && c.path != wire.PathStartup {
				t.Errorf("%s before startup was accepted", c.path)
			}
		}
		if len(s.of("/ask")) == 0 {
			t.Error("no ask after startup was accepted")
		}
	})
}

// TestADeletedAgentIsRemovedOnlyWhenThatIsSure: statements 15, 16, 29, 36, 44 and weakness W-07.
func TestADeletedAgentIsRemovedOnlyWhenThatIsSure(t *testing.T) {
	gone := `{"status":0,"agentStatus":"DELETE","data":{"agentStatus":"DELETE","heartbeat":{"agentStatus":"DELETE"}}}`
	cases := []struct {
		name, protocol string
		answer         func(n int, c call) (int, http.Header, string)
		removed        bool
	}{
		{"ask says so", "ask", func(_ int, c call) (int, http.Header, string) {
			if c.path == wire.PathAsk {
				return 200, nil, gone
			}
			return normal(c)
		}, true},
		{"heartbeat says so", "split", func(_ int, c call) (int, http.Header, string) {
			if c.path == wire.PathHeartbeat {
				return 200, nil, gone
			}
			return normal(c)
		}, true},
		{"said once", "ask", func(n int, c call) (int, http.Header, string) {
			if c.path == wire.PathAsk && n%3 == 0 {
				return 200, nil, gone
			}
			return normal(c)
		}, false},
		{"all but the heartbeat say so", "split", func(_ int, c call) (int, http.Header, string) {
			if c.path == wire.PathHeartbeat {
				return normal(c)
			}
			return 200, nil, `{"status":0,"agentStatus":"DELETE","data":"DELETE"}`
		}, false},
		{"startup never accepted", "split", func(_ int, c call) (int, http.Header, string) {
			if c.path == wire.PathStartup {
				return 200, nil, `{"status":1}`
			}
			return 200, nil, gone
		}, false},
		{"imported at the second startup", "ask", func(n int, c call) (int, http.Header, string) {
			switch {
			case c.path == wire.PathStartup && n == 0:
				return 200, nil, `{"status":0,"data":"UN_IMPORT_OK"}`
			case c.path == wire.PathAsk && n < 2:
				return 200, nil, gone
			}
			return normal(c)
		}, false},
		{"never imported", "ask", func(_ int, c call) (int, http.Header, string) {
			if c.path == wire.PathStartup {
				return 200, nil, `{"status":0,"data":"UN_IMPORT_OK"}`
			}
			return 200, nil, gone
		}, true},
		{"DELETE with another letter case", "ask", func(_ int, c call) (int, http.Header, string) {
			if c.path == wire.PathAsk {
				return 200, nil, strings.ReplaceAll(gone, "DELETE", "DELETED")
			}
			return normal(c)
		}, false},
		{"refusals of all kinds", "ask", func(n int, c call) (int, http.Header, string) {
			if c.path == wire.PathAsk {
				return []int{401, 403, 404, 500, 503}[n%5], nil, gone
			}
			return normal(c)
		}, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				seen := map[string]int{}
				s := setStage(t, c.protocol, &server{})
				s.answer = func(got call) (int, http.Header, string) {
					s.server.mu.Lock()
					n := seen[got.path]
					seen[got.path]++
					s.server.mu.Unlock()
					return c.answer(n, got)
				}
				begun := time.Now()
				err := s.runFor(t, 10*time.Minute)
				if errors.Is(err, service.ErrRemoved) != c.removed || !c.removed && err != nil {
					t.Fatalf("ended with %v, removed must be %v", err, c.removed)
				}
				if took := time.Since(begun); c.removed && took > time.Minute {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

func TestNegativeCountsAreNotTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := setStage(t, "ask", &server{answer: func(c call) (int, http.Header, string) {
			if c.path == wire.PathAsk {
				return 200, nil, `{"status":0,"agentStatus":"IMPORT_OK","data":{"heartbeat":{"agentStatus":"IMPORT_OK","parallelTaskCount":-1,"dockerParallelTaskCount":7,"language":5}}}`
			}
			return normal(c)
		}})
		if err := s.runFor(t, time.Minute); err != nil {
			t.Fatal(err)
		}
		got := s.Store.Settings()
		if got.Parallel != 2 || got.DockerParallel != 7 || got.Language != "en_US" {
			t.Errorf("%d, %d, %q", got.Parallel, got.DockerParallel, got.Language)
		}
	})
}

func TestAGatewayIsTakenOverWhenItAnswers(t *testing.T) {
	for _, c := range []struct {
		name, wanted string
		answer       func(call) (int, http.Header, string)
		moves        bool
	}{
		{"it answers", "127.0.0.3", normal, true},
		{"it knows only status", "127.0.0.3", func(c call) (int, http.Header, string) {
			if c.path == wire.PathStartup {
				return 404, nil, ""
			}
			return normal(c)
		}, true},
		{"it is dead", "127.0.0.3", func(call) (int, http.Header, string) { return 0, nil, "" }, false},
		{"it does not know us", "127.0.0.3", func(call) (int, http.Header, string) { return 401, nil, `{"status":401}` }, false},
		{"it is a web page", "127.0.0.3", func(call) (int, http.Header, string) { return 200, nil, "<html>" }, false},
		{"it is nonsense", "http://", normal, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := setStage(t, "ask", &server{})
				s.answer = func(got call) (int, http.Header, string) {
					switch {
					case got.host != "127.0.0.2":
						return c.answer(got)
					case got.path == wire.PathAsk:
						return 200, nil, `{"status":0,"agentStatus":"IMPORT_OK","data":{"heartbeat":{"gateway":"` + c.wanted + `"}}}`
					}
					return normal(got)
				}
				if err := s.runFor(t, 5*time.Minute); err != nil {
					t.Fatal(err)
				}
				last := s.of("/ask")
				if moved := last[len(last)-1].host == "127.0.0.3"; moved != c.moves {
					t.Errorf("moved: %v, want %v", moved, c.moves)
				}
				if tries := len(s.of("thirdPartyAgent/startup")); tries > 7 {
					t.Errorf("%d tries in 5 minutes", tries)
				}
			})
		})
	}
}

func TestAServerThatWaitsIsAskedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := setStage(t, "auto", &server{})
		s.delay = func(ctx context.Context, c call) {
			var seconds int
			if _, err := fmt.Sscanf(c.prefer, "wait=%d", &seconds); err == nil {
				sleep(ctx, time.Duration(seconds)*time.Second)
			}
		}
		s.answer = func(c call) (int, http.Header, string) {
			code, _, body := normal(c)
			return code, http.Header{"Preference-Applied": {c.prefer}}, body
		}
		if err := s.runFor(t, 10*time.Minute+time.Second); err != nil {
			t.Fatal(err)
		}
		asks := s.of("/ask")
		if asks[0].prefer != "wait=1" || asks[1].prefer != "wait=30" {
			t.Errorf("preferences %q, then %q", asks[0].prefer, asks[1].prefer)
		}
		if n := len(asks); n > 22 {
			t.Errorf("%d asks in 10 minutes of waiting", n)
		}
		for i := 2; i < len(asks); i++ {
			if gap := asks[i].at.Sub(asks[i-1].at); gap != rhythm.HoldWait {
				t.Errorf("gap %v", gap)
			}
		}
	})
}

// TestASeatThatBecomesFreeIsTakenAtOnce: an agent without room for another host build still asks for container builds,
// and must not be held with that question when a host build ends.
func TestASeatThatBecomesFreeIsTakenAtOnce(t *testing.T) {
	for _, protocol := range []string{"ask", "split"} {
		t.Run(protocol, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := setStage(t, protocol, &server{})
				s.delay = func(ctx context.Context, c call) {
					var seconds int
					if _, err := fmt.Sscanf(c.prefer, "wait=%d", &seconds); err == nil {
						sleep(ctx, time.Duration(seconds)*time.Second)
					}
				}
				s.answer = func(c call) (int, http.Header, string) {
					code, header, body := normal(c)
					if c.prefer != "" {
						header = http.Header{"Preference-Applied": {c.prefer}}
					}
					return code, header, body
				}
				var slots []*job.Slot
				for _, id := range []string{"b-1", "b-2"} { // the limit is 2
					seats := s.slots.Reserve()
					slot, ok := seats.Claim(wire.Build{ID: id, VMSeq: "1"})
					if !ok {
						t.Fatal("no seat")
					}
					seats.Release()
					slots = append(slots, slot)
				}
				var freed time.Time
				timer := time.AfterFunc(5*time.Minute+2*time.Second, func() {
					freed = time.Now()
					slots[0].Release()
				})
				defer timer.Stop()
				if err := s.runFor(t, 6*time.Minute); err != nil {
					t.Fatal(err)
				}
				kind := func(c call) string {
					enable, _ := c.body["askEnable"].(map[string]any)
					text, _ := enable["build"].(string)
					return text
				}
				end := "/ask"
				if protocol == "split" {
					end = "/startup"
					kind = func(c call) string {
						_, text, _ := strings.Cut(c.path, "buildType=")
						return text
					}
				}
				full, woken := 0, time.Time{}
				for _, c := range s.of(end) {
					switch kind(c) {
					case "DOCKER":
						full++
					case "ALL":
						if woken.IsZero() {
							woken = c.at
						}
					}
				}
				if full < 55 || full > 70 {
					t.Errorf("%d questions in 5 minutes without a host seat, want one every 5 s", full)
				}
				if !woken.Equal(freed) {
					t.Errorf("asked for a host build %v after the seat was free", woken.Sub(freed))
				}
			})
		})
	}
}

func TestAServerThatOnlySaysItWaitsIsNotHammered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := setStage(t, "auto", &server{answer: func(c call) (int, http.Header, string) {
			code, _, body := normal(c)
			return code, http.Header{"Preference-Applied": {"wait=30"}}, body
		}})
		if err := s.runFor(t, 10*time.Minute); err != nil {
			t.Fatal(err)
		}
		if n := len(s.of("/ask")); n > 140 {
			t.Errorf("%d asks in 10 minutes", n)
		}
	})
}

func TestRetryAfterIsObeyed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := setStage(t, "ask", &server{answer: func(c call) (int, http.Header, string) {
			if c.path == wire.PathAsk {
				return 429, http.Header{"Retry-After": {"100"}}, "slow down"
			}
			return normal(c)
		}})
		if err := s.runFor(t, 20*time.Minute); err != nil {
			t.Fatal(err)
		}
		if least, _ := gaps(s.of("/ask")); least < 100*time.Second {
			t.Errorf("asked after %v", least)
		}
	})
}

func TestReportsAreRepeatedUntilAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, handed := 0, false
		s := setStage(t, "ask", &server{})
		s.answer = func(c call) (int, http.Header, string) {
			s.server.mu.Lock()
			defer s.server.mu.Unlock()
			switch {
			case c.path == wire.PathAsk && !handed:
				handed = true
				return 200, nil, `{"status":0,"agentStatus":null,"data":{"heartbeat":null,"build":{"projectId":"demo","buildId":"b-1","vmSeqId":"1","workspace":"","pipelineId":"p-1","executeCount":3}}}`
			case c.path == wire.PathFinish:
				if n++; n <= 8 {
					return []int{0, 500, 200, 404}[n%4], nil, `{"status":1,"message":"not now"}`
				}
			}
			return normal(c)
		}
		if err := s.runFor(t, 10*time.Minute); err != nil {
			t.Fatal(err)
		}
		reports := s.of("/workerBuildFinish")
		if len(reports) != 9 {
			t.Fatalf("%d reports, want 8 refused and one accepted", len(reports))
		}
		for _, r := range reports {
			failure, _ := r.body["error"].(map[string]any)
			if r.body["success"] != false || r.body["executeCount"] != 3.0 || failure["errorCode"] != 2128042.0 {
				t.Errorf("report %v", r.body)
			}
		}
		if left, err := s.ledger.All(s.Log); err != nil || len(left) != 0 {
			t.Errorf("records left: %v, %v", left, err)
		}
		asks := s.of("/ask")
		if data := asks[1].body["heartbeat"].(map[string]any)["errorExitData"]; data == nil {
			t.Error("the server was not told that there is no worker")
		}
		if data := asks[len(asks)-1].body; data["heartbeat"].(map[string]any)["errorExitData"] != nil || data["askEnable"].(map[string]any)["build"] != "NONE" {
			t.Errorf("an agent without worker asks %v", data["askEnable"])
		}
	})
}

// TestAReportSurvivesTheAgent: what one agent could not report, the next does.
func TestAReportSurvivesTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handed, accept := false, false
		s := setStage(t, "ask", &server{})
		s.answer = func(c call) (int, http.Header, string) {
			s.server.mu.Lock()
			defer s.server.mu.Unlock()
			switch {
			case c.path == wire.PathAsk && !handed:
				handed = true
				return 200, nil, `{"status":0,"agentStatus":"IMPORT_OK","data":{"build":{"projectId":"demo","buildId":"b-1","vmSeqId":"1","dockerBuildInfo":{"image":"x"}}}}`
			case c.path == wire.PathFinish && !accept:
				return 503, nil, ""
			}
			return normal(c)
		}
		if err := s.runFor(t, time.Minute); err != nil {
			t.Fatal(err)
		}
		s.server.mu.Lock()
		accept = true
		before := len(s.calls)
		s.server.mu.Unlock()
		next, err := New(s.Options)
		if err != nil {
			t.Fatal(err)
		}
		if err := (stage{next, s.server, s.log}).runFor(t, time.Minute); err != nil {
			t.Fatal(err)
		}
		after := 0
		s.server.mu.Lock()
		if first := s.calls[before]; first.path != wire.PathStartup {
			t.Errorf("the second agent begins with %s", first.path)
		}
		for _, c := range s.calls[before:] {
			if c.path == wire.PathFinish {
				after++
			}
		}
		s.server.mu.Unlock()
		if after != 1 {
			t.Errorf("%d reports by the second agent", after)
		}
	})
}

// TestASetBackClockDoesNotHoldASuccessBack: the build ended, by the clock of before, half a year from now.
func TestASetBackClockDoesNotHoldASuccessBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := setStage(t, "ask", &server{answer: normal})
		b := wire.Build{Project: "demo", ID: "b-1", VMSeq: "1"}
		if err := s.ledger.Put(job.Record{Build: b, State: job.Ended, Outcome: &job.Outcome{Success: true}, At: time.Now().AddDate(0, 6, 0)}); err != nil {
			t.Fatal(err)
		}
		if err := s.runFor(t, 20*time.Second); err != nil {
			t.Fatal(err)
		}
		if n := len(s.of("/workerBuildFinish")); n != 1 {
			t.Errorf("%d reports within 20 s", n)
		}
	})
}

// TestAWithdrawnReportLeavesTheRecordOfTheNextRun: the server takes the report of one run while it hands out the next.
func TestAWithdrawnReportLeavesTheRecordOfTheNextRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := wire.Build{Project: "demo", ID: "b-1", VMSeq: "1"}
		var s stage
		s = setStage(t, "ask", &server{answer: func(c call) (int, http.Header, string) {
			if c.path == wire.PathFinish {
				s.withdraw(b)
				if err := s.ledger.Put(job.Record{Build: b, State: job.Running, PID: 1, Started: "x"}); err != nil {
					t.Error(err)
				}
			}
			return normal(c)
		}})
		close(s.talking)
		s.report(t.Context(), b, job.Outcome{}, time.Now())
		if left, err := s.ledger.All(s.Log); err != nil || len(left) != 1 {
			t.Errorf("records %v, %v: the next run is forgotten", left, err)
		}
	})
}

// TestAScriptThatEndsWithTheAgentIsReported: its task would stay EXECUTING for ever.
func TestAScriptThatEndsWithTheAgentIsReported(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a POSIX shell")
	}
	ctx, cancel := context.WithCancel(t.Context())
	s := setStage(t, "ask", &server{})
	s.answer = func(c call) (int, http.Header, string) {
		if c.body["status"] == wire.PipelineExecuting {
			cancel()
		}
		return normal(c)
	}
	s.script(ctx, wire.Pipeline{Type: wire.PipelineCommand, SeqID: "7", Command: "sleep 60"})
	<-s.work.idle()
	var states []any
	for _, c := range s.of("/agents/pipelines") {
		states = append(states, c.body["status"])
	}
	if len(states) != 2 || states[1] != wire.PipelineFailure {
		t.Errorf("reported %v", states)
	}
}

// TestGarbage: a thousand answers that make no sense at every endpoint, and then a server that works. The agent is
// there, holds no more than it must, and takes the next build (protocol §1.8, statements 6, 9, 42).
func TestGarbage(t *testing.T) {
	for _, protocol := range []string{"auto", "ask", "split"} {
		t.Run(protocol, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rng := rand.New(rand.NewPCG(1, 2))
				seen := map[string]int{}
				good := false
				s := setStage(t, protocol, &server{})
				s.answer = func(c call) (int, http.Header, string) {
					s.server.mu.Lock()
					defer s.server.mu.Unlock()
					path, _, _ := strings.Cut(c.path, "?")
					if seen[path]++; !good {
						code, header, body := garbage(rng)
						return code, header, body
					}
					if path == wire.PathAsk || path == wire.PathClaim {
						b := `{"projectId":"demo","buildId":"b-good","vmSeqId":"1","dockerBuildInfo":{"image":"x"}}`
						if path == wire.PathAsk {
							b = `{"build":` + b + `}`
						}
						return 200, nil, `{"status":0,"agentStatus":"IMPORT_OK","data":` + b + `}`
					}
					return normal(c)
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error)
				go func() { done <- s.Agent.Run(ctx) }()
				enough := func() bool {
					s.server.mu.Lock()
					defer s.server.mu.Unlock()
					return seen[wire.PathAsk]+seen[wire.PathStatus]+seen[wire.PathStartup] >= 1000
				}
				for !enough() {
					time.Sleep(time.Minute) // of the bubble
				}
				s.server.mu.Lock()
				good = true
				s.server.mu.Unlock()
				time.Sleep(10 * time.Minute)
				reported := false
				for _, c := range s.of("/workerBuildFinish") {
					reported = reported || c.body["buildId"] == "b-good"
				}
				if !reported {
					t.Error("the good build was not taken")
				}
				select {
				case err := <-done:
					t.Fatalf("agent ended: %v", err)
				default:
				}
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func garbage(rng *rand.Rand) (int, http.Header, string) {
	bodies := []string{"", "null", "[]", "0", `"x"`, "{}", "<html><body>502</body></html>", `{"status":0}`, `{"status":0,"data":`, `{"status":"0","data":"IMPORT_OK"}`,
		`{"status":0,"agentStatus":7,"data":[]}`, `{"status":0,"agentStatus":"IMPORT_OK","data":"IMPORT_OK"}`,
		`{"status":0,"agentStatus":"IMPORT_OK","data":{"heartbeat":[],"build":7,"upgrade":"x","pipeline":{},"debug":[1]}}`,
		`{"status":0,"agentStatus":"IMPORT_OK","data":{"heartbeat":{"parallelTaskCount":1e99,"envs":{"A":5},"gateway":{},"props":"x","language":"` + strings.Repeat("x", 5000) + `"}}}`,
		`{"status":0,"agentStatus":"IMPORT_OK","data":{"heartbeat":{"parallelTaskCount":-9223372036854775808,"gateway":"javascript:alert(1)","fileGateway":"\u0000","language":"../.."}}}`,
		`{"status":0,"agentStatus":"IMPORT_OK","data":{"pipeline":{"type":"COMMAND","seqId":"../../x","command":"id"}}}`,
		`{"status":0,"agentStatus":"IMPORT_OK","data":{"pipeline":{"type":"NONSENSE","seqId":5}}}`,
		`{"status":0,"agentStatus":"IMPORT_OK","data":{"debug":{"debugId":-1}}}`,
		`{"status":99999999999999999999}`, strings.Repeat("[", 20000), "\x00\xff\xfe", `{"status":1,"message":{"a":[]}}`,
		`{"status":0,"agentStatus":"IMPORT_EXCEPTION","data":null}`}
	codes := []int{0, 200, 200, 200, 200, 204, 302, 400, 401, 403, 404, 418, 429, 500, 502, 503}
	header := http.Header{}
	switch rng.IntN(8) {
	case 0:
		header.Set("Retry-After", "-5")
	case 1:
		header.Set("Retry-After", "soon")
	case 2:
		header.Set("Preference-Applied", "wait, respond-async;;=")
	}
	return codes[rng.IntN(len(codes))], header, bodies[rng.IntN(len(bodies))]
}

// TestTheLogTellsWhenTheTroubleChanges: somebody who mends the network must not read for ten minutes that it is broken
// while the server says 401; and an outage of one kind must not fill the log.
func TestTheLogTellsWhenTheTroubleChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		s := setStage(t, "ask", &server{answer: func(c call) (int, http.Header, string) {
			switch since := time.Since(begun); {
			case c.path != wire.PathAsk || since > 8*time.Minute:
				return normal(c)
			case since < 4*time.Minute:
				return 0, nil, ""
			}
			return 401, nil, `{"status":401,"message":"who are you"}`
		}})
		if err := s.runFor(t, 10*time.Minute); err != nil {
			t.Fatal(err)
		}
		text := s.log.String()
		for part, want := range map[string]int{"connection reset": 1, "who are you": 1, "Server answers again": 1, "enrol": 1} {
			if n := strings.Count(text, part); n != want {
				t.Errorf("%d lines with %q, want %d:\n%s", n, part, want, text)
			}
		}
	})
}
