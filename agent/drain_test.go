package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/agent/job"
	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/service/control"
)

// start runs the agent in the bubble; the function it returns waits for its end.
func (s stage) start(t *testing.T) (ended func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- s.Agent.Run(t.Context()) }()
	return func() error { return <-done }
}

// kindsSince are what kinds of builds were asked for after a moment.
func (s stage) kindsSince(at time.Time) []string {
	var kinds []string
	for _, c := range append(s.of("/ask"), s.of("/startup")...) {
		if c.at.Before(at) {
			continue
		}
		if enable, ok := c.body["askEnable"].(map[string]any); ok {
			kinds = append(kinds, enable["build"].(string))
		} else if _, kind, ok := strings.Cut(c.path, "buildType="); ok {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

// TestAStoppingAgentTakesNothingAndIsHeard: while a build is waited for the server hears of us, and hands nothing out.
func TestAStoppingAgentTakesNothingAndIsHeard(t *testing.T) {
	for _, protocol := range []string{"ask", "split"} {
		t.Run(protocol, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := setStage(t, protocol, &server{answer: normal, delay: func(ctx context.Context, _ call) { sleep(ctx, 50*time.Millisecond) }})
				ended := s.start(t)
				time.Sleep(time.Minute + time.Second)
				if kinds := s.kindsSince(time.Time{}); len(kinds) == 0 || kinds[0] != "ALL" {
					t.Fatalf("asked for %v", kinds)
				}
				s.building.add() // a build
				s.Stop(false)
				at := time.Now()
				time.Sleep(5 * time.Minute)
				for _, kind := range s.kindsSince(at) {
					if kind != "NONE" {
						t.Fatalf("asked for %s while stopping", kind)
					}
				}
				beats := s.of("/ask")
				if protocol == "split" {
					beats = s.of("/newHeartbeat")
				}
				if last := beats[len(beats)-1].at; time.Since(last) > 11*time.Second {
					t.Errorf("last heartbeat %v ago", time.Since(last))
				}
				if phase, drain := s.phase(); phase != control.Stopping || drain.Until.Sub(drain.Since) != 10*time.Minute {
					t.Errorf("phase %s, %+v", phase, drain)
				}
				s.building.done()
				if err := ended(); err != nil {
					t.Error(err)
				}
				if took := time.Since(at); took > 5*time.Minute+time.Second {
					t.Errorf("ended %v after the stop", took)
				}
			})
		})
	}
}

// TestStoppingEndsInTime: after drain.timeout builds are halted with a true reason; one that cannot be stopped and a
// server that takes no report do not keep the agent for ever.
func TestStoppingEndsInTime(t *testing.T) {
	for _, c := range []struct {
		name  string
		twice bool
		want  string
		most  time.Duration
	}{{"timeout", false, "waited 10m0s", 11 * time.Minute}, {"second signal", true, "at once", 25 * time.Second}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := setStage(t, "ask", &server{answer: normal})
				ended := s.start(t)
				time.Sleep(time.Minute)
				s.building.add()
				s.Stop(false)
				at := time.Now()
				if c.twice {
					time.Sleep(3 * time.Second)
					s.Stop(true)
					s.Stop(true)
				}
				<-s.halt.Done()
				var stop *job.Stop
				if cause := context.Cause(s.halt); !errors.As(cause, &stop) || !strings.Contains(cause.Error(), c.want) {
					t.Errorf("halted because %v", cause)
				}
				if err := ended(); err != nil {
					t.Error(err)
				}
				if took := time.Since(at); took > c.most {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// waiting is a server that holds questions for builds until their time is over.
func waiting() *server {
	return &server{
		answer: func(c call) (int, http.Header, string) {
			code, header, body := normal(c)
			if c.prefer != "" {
				header = http.Header{"Preference-Applied": {c.prefer}}
			}
			return code, header, body
		},
		delay: func(ctx context.Context, c call) {
			seconds, err := strconv.Atoi(strings.TrimPrefix(c.prefer, "wait="))
			if err != nil {
				return
			}
			sleep(ctx, time.Duration(seconds)*time.Second)
		},
	}
}

// TestAHeldQuestionIsGivenUp: a stop does not wait half a minute for a server that waits for a build.
func TestAHeldQuestionIsGivenUp(t *testing.T) {
	for _, protocol := range []string{"ask", "split"} {
		t.Run(protocol, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := setStage(t, protocol, waiting())
				ended := s.start(t)
				time.Sleep(2*time.Minute + 7*time.Second)
				if !s.waits.Load() {
					t.Fatal("the server is not known to wait")
				}
				if err := s.Drain(); err != nil {
					t.Error(err)
				}
				at := time.Now()
				time.Sleep(time.Second)
				if kinds := s.kindsSince(at); protocol == "ask" && (len(kinds) != 1 || kinds[0] != "NONE") {
					t.Errorf("after drain: asked for %v", kinds)
				}
				time.Sleep(time.Minute)
				for _, kind := range s.kindsSince(at) {
					if kind != "NONE" {
						t.Errorf("draining, and asked for %s", kind)
					}
				}
				if err := s.Resume(); err != nil {
					t.Error(err)
				}
				at = time.Now()
				time.Sleep(100 * time.Millisecond)
				if kinds := s.kindsSince(at); len(kinds) != 1 || kinds[0] != "ALL" {
					t.Errorf("after resume: asked for %v", kinds)
				}
				time.Sleep(7 * time.Second)
				at = time.Now()
				s.Stop(false)
				if err := ended(); err != nil {
					t.Error(err)
				}
				if took := time.Since(at); took > time.Second {
					t.Errorf("an idle agent took %v to stop", took)
				}
			})
		})
	}
}

// TestAServerThatHangsDoesNotKeepAStoppingAgent, however long its answers may take.
func TestAServerThatHangsDoesNotKeepAStoppingAgent(t *testing.T) {
	for _, protocol := range []string{"ask", "split"} {
		t.Run(protocol, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := setStage(t, protocol, &server{answer: normal})
				var hangs atomic.Bool
				s.delay = func(ctx context.Context, _ call) {
					if hangs.Load() {
						<-ctx.Done()
					}
				}
				yes := true
				s.Store.Reconfigure(&config.Config{Server: config.Server{RequestTimeout: 10 * time.Minute}, Scripts: config.Scripts{Enable: &yes}})
				ended := s.start(t)
				time.Sleep(time.Minute + time.Second)
				hangs.Store(true)
				time.Sleep(40 * time.Second) // every loop asks
				at := time.Now()
				s.Stop(false)
				if err := ended(); err != nil {
					t.Error(err)
				}
				if took := time.Since(at); took > answerPatience+time.Second {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// TestDrainOutlivesTheAgent: an update at night does not put a machine back into service.
func TestDrainOutlivesTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := setStage(t, "ask", &server{answer: normal})
		if err := s.Drain(); err != nil {
			t.Fatal(err)
		}
		next, err := New(s.Options)
		if err != nil {
			t.Fatal(err)
		}
		if phase, drain := next.phase(); phase != control.Draining || drain.Until != nil || time.Since(drain.Since) > time.Second {
			t.Errorf("phase %s, %+v", phase, drain)
		}
		if next.enter() {
			t.Error("the next agent takes work")
		}
		for range 2 {
			if err := next.Resume(); err != nil {
				t.Error(err)
			}
		}
		if !next.enter() {
			t.Error("resumed, and takes no work")
		}
		if third, err := New(s.Options); err != nil || !third.enter() {
			t.Errorf("after resume the next agent still drains: %v", err)
		}
	})
}

// TestNoStatusBeforeTheBuildsAreKnown: "drain --wait" would take an agent that has just begun for one without builds.
func TestNoStatusBeforeTheBuildsAreKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := setStage(t, "ask", &server{answer: normal})
		asked, enough := context.WithTimeout(t.Context(), 5*time.Second)
		if _, err := s.Control(asked, control.Request{Op: control.OpStatus}); err == nil {
			t.Error("an agent that has not looked for builds said how it is")
		}
		enough()
		ended := s.start(t)
		if _, err := s.Control(t.Context(), control.Request{Op: control.OpStatus}); err != nil {
			t.Error(err)
		}
		s.Restart()
		if err := ended(); err != nil {
			t.Error(err)
		}
	})
}

func TestRestartLeavesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := setStage(t, "ask", &server{answer: normal})
		ended := s.start(t)
		time.Sleep(time.Minute)
		s.building.add()
		if _, err := s.Control(t.Context(), control.Request{Op: control.OpRestart}); err != nil {
			t.Error(err)
		}
		at := time.Now()
		if err := ended(); err != nil || time.Since(at) > 0 || s.halt.Err() != nil {
			t.Errorf("%v after %v, halt %v", err, time.Since(at), s.halt.Err())
		}
	})
}

// TestRestartMissesNoAnswer: the server hands a build out, or takes a report, while the agent is told to make room for the
// next. The build must run, and the report must not be made again.
func TestRestartMissesNoAnswer(t *testing.T) {
	for _, protocol := range []string{"ask", "split"} {
		t.Run(protocol, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var slow atomic.Bool
				missed := 0
				s := setStage(t, protocol, &server{answer: normal})
				s.delay = func(ctx context.Context, c call) {
					if enable, _ := c.body["askEnable"].(map[string]any); slow.Load() &&
						(enable["build"] == "ALL" || strings.Contains(c.path, "buildType=") || strings.HasSuffix(c.path, "workerBuildFinish")) {
						if !sleep(ctx, time.Second) {
							missed++
						}
					}
				}
				ended := s.start(t)
				time.Sleep(time.Minute)
				slow.Store(true)
				waitVital := func(n int) {
					for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
						s.vital.mu.Lock()
						under := s.vital.n
						s.vital.mu.Unlock()
						if under == n {
							return
						}
						if time.Now().After(deadline) {
							t.Fatalf("%d requests under way, want %d", under, n)
						}
					}
				}
				waitVital(1) // the question
				s.work.Go(func() { s.report(t.Context(), wire.Build{ID: "b-1", VMSeq: "1"}, job.Outcome{}, time.Now()) })
				waitVital(2)
				s.Restart()
				s.Restart()
				at := time.Now()
				if err := ended(); err != nil {
					t.Error(err)
				}
				if took := time.Since(at); missed > 0 || took > time.Second {
					t.Errorf("%d answers missed, ended after %v", missed, took)
				}
			})
		})
	}
}

// keeper is a pipe to which an agent tells how it is. said is what it has told so far.
func keeper(t *testing.T, watchdog string) (n *service.Notifier, said func() string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(service.EnvNotifyFD, strconv.Itoa(int(w.Fd())))
	t.Setenv("WATCHDOG_USEC", watchdog)
	if n, err = service.NewNotifier(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 10000)
	read := make(chan struct{})
	go func() {
		defer close(read)
		for all := bufio.NewScanner(r); all.Scan(); {
			lines <- all.Text()
		}
	}()
	t.Cleanup(func() {
		_ = r.Close()
		<-read
		runtime.KeepAlive(w) // n has the same number
	})
	var text strings.Builder
	marks := 0
	return n, func() string {
		marks++
		mark := fmt.Sprintf("STATUS=mark %d", marks)
		if err := n.Status(strings.TrimPrefix(mark, "STATUS=")); err != nil {
			t.Error(err)
		}
		for line := range lines {
			if line == mark {
				break
			}
			text.WriteString(line + "\n")
		}
		return text.String()
	}
}

// TestAHungLoopStarvesTheWatchdog: every other loop turns, and the keeper is still told nothing good.
func TestAHungLoopStarvesTheWatchdog(t *testing.T) {
	n, said := keeper(t, "45000000")
	synctest.Test(t, func(t *testing.T) {
		s := setStage(t, "ask", &server{answer: normal})
		s.teller.notify, s.Options.Notify = n, n
		hangs, release := context.WithCancel(context.Background())
		defer release()
		var stuck atomic.Bool
		s.delay = func(_ context.Context, c call) {
			if stuck.Load() && strings.HasSuffix(c.path, "/ask") {
				<-hangs.Done() // deaf to its own context, as a bug or a dead disk would have it
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Agent.Run(ctx) }()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		fed := strings.Count(said(), "WATCHDOG=1\n")
		if fed < 8 || fed > 20 {
			t.Errorf("fed %d times in 2 minutes", fed)
		}
		stuck.Store(true)
		time.Sleep(time.Minute)
		synctest.Wait()
		fed = strings.Count(said(), "WATCHDOG=1\n")
		time.Sleep(time.Hour)
		synctest.Wait()
		if again := strings.Count(said(), "WATCHDOG=1\n"); again != fed {
			t.Errorf("fed %d times by an agent that hangs", again-fed)
		}
		select {
		case err := <-done:
			t.Errorf("ended by itself: %v", err)
		default:
		}
		release()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestAHungAgentGivesItselfUp where nobody watches it.
func TestAHungAgentGivesItselfUp(t *testing.T) {
	for _, protocol := range []string{"ask", "split"} {
		t.Run(protocol, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := setStage(t, protocol, &server{answer: normal})
				hangs, release := context.WithCancel(context.Background())
				path := map[string]string{"ask": "/ask", "split": "/newHeartbeat"}[protocol]
				var since atomic.Pointer[time.Time]
				s.delay = func(_ context.Context, c call) {
					if strings.HasSuffix(c.path, path) && len(s.of(path)) > 5 {
						now := time.Now()
						since.Store(&now)
						<-hangs.Done()
					}
				}
				ctx, cancel := context.WithCancel(t.Context())
				err := s.Agent.Run(ctx)
				if !errors.Is(err, ErrHung) {
					t.Errorf("err %v", err)
				}
				if took := time.Since(*since.Load()); took < 2*time.Minute || took > 3*time.Minute {
					t.Errorf("took %v", took)
				}
				release()
				cancel()
				synctest.Wait()
				if !strings.Contains(s.log.String(), "goroutine ") {
					t.Error("no goroutines in the log")
				}
			})
		})
	}
}

// TestReadiness: with the first answer of the server, or without one after a grace.
func TestReadiness(t *testing.T) {
	for _, away := range []bool{false, true} {
		n, said := keeper(t, "45000000")
		synctest.Test(t, func(t *testing.T) {
			s := setStage(t, "ask", &server{})
			s.answer = func(c call) (int, http.Header, string) {
				if away {
					return 0, nil, ""
				}
				return normal(c)
			}
			s.teller.notify, s.Options.Notify = n, n
			ended := s.start(t)
			time.Sleep(time.Second)
			synctest.Wait()
			if ready := strings.Contains(said(), "READY=1"); ready == away {
				t.Errorf("server away %v: ready %v after a second", away, ready)
			}
			time.Sleep(4*time.Second + time.Millisecond)
			synctest.Wait()
			if text := said(); !strings.Contains(text, "READY=1") || away != strings.Contains(text, "server unreachable since") {
				t.Errorf("server away %v: said %q", away, text)
			}
			s.building.add()
			s.Stop(false)
			time.Sleep(time.Minute)
			s.building.done()
			if err := ended(); err != nil {
				t.Error(err)
			}
			if text := said(); strings.Count(text, "EXTEND_TIMEOUT_USEC=30000000") < 12 || !strings.Contains(text, "STOPPING=1") {
				t.Errorf("while stopping: %q", text)
			}
		})
	}
}

// TestReload: what is sound takes effect at once; what is not changes nothing and names its line.
func TestReload(t *testing.T) {
	n, said := keeper(t, "")
	synctest.Test(t, func(t *testing.T) {
		s := setStage(t, "ask", &server{answer: normal})
		s.teller.notify, s.Options.Notify = n, n
		ended := s.start(t)
		time.Sleep(time.Minute)
		path := filepath.Join(s.Installation.Home, "agent.toml")
		write := func(text string) {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("protocol = \"ask\"\n[builds]\nparallel = 7\n[drain]\ntimeout = \"1s\"\n")
		if err := s.Reload(); err != nil {
			t.Fatal(err)
		}
		if limit, _ := s.slots.Limits(); limit != 7 || s.Store.Settings().Parallel != 7 || len(s.Status().Overrides) != 1 {
			t.Errorf("limit %d, settings %d", limit, s.Store.Settings().Parallel)
		}
		for _, broken := range []string{"[builds]\n\nparallel = -1\n", "x = 1\n", "[[["} {
			write(broken)
			var hinter interface{ Hint() string }
			err := s.Reload()
			if err == nil || !strings.Contains(err.Error(), "agent.toml:") || !errors.As(err, &hinter) {
				t.Errorf("%q: %v", broken, err)
			}
			if limit, _ := s.slots.Limits(); limit != 7 {
				t.Errorf("%q took effect", broken)
			}
		}
		if text := s.sentence(time.Now()); !strings.Contains(text, "agent.toml not read again") {
			t.Errorf("sentence %q", text)
		}
		write("protocol = \"ask\"\n[drain]\ntimeout = \"30s\"\n")
		if err := s.Reload(); err != nil {
			t.Fatal(err)
		}
		if limit, _ := s.slots.Limits(); limit != 2 {
			t.Errorf("limit %d after the setting is gone", limit)
		}
		if text := s.sentence(time.Now()); strings.Contains(text, "agent.toml") {
			t.Errorf("sentence %q", text)
		}
		s.building.add()
		s.Stop(false)
		if _, drain := s.phase(); drain.Until.Sub(drain.Since) != 30*time.Second {
			t.Errorf("drain %+v", drain)
		}
		s.building.done()
		if err := ended(); err != nil {
			t.Error(err)
		}
		if text := said(); strings.Count(text, "RELOADING=1\n") != 5 || strings.Count(text, "READY=1") != 6 {
			t.Errorf("said %q", text)
		}
	})
}

func TestCrowd(t *testing.T) {
	var c crowd
	<-c.idle()
	c.add()
	c.add()
	first := c.idle()
	c.done()
	select {
	case <-first:
		t.Fatal("idle with one left")
	default:
	}
	c.done()
	<-first
	<-c.idle()
}

func TestPendingUpgrade(t *testing.T) {
	if got := pendingUpgrade(wire.UpgradeItem{Agent: true, JDK: true}); got != "agent, JDK" {
		t.Errorf("%q", got)
	}
}
