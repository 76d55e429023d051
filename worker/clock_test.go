package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// bubble runs a session without tasks that need real processes, in a bubble where time is free.
func bubble(t *testing.T, b *backend, check func(outcome)) {
	t.Helper()
	dir := home(t, "http://gateway.test")
	synctest.Test(t, func(t *testing.T) {
		host := b.host(dir)
		host.HTTP = func(wire.HTTPOptions) *http.Client { return &http.Client{Transport: direct{b}} }
		o := outcome{dir: dir}
		o.code, o.err = Run(t.Context(), host, b.arguments(dir))
		o.read(t)
		check(o)
	})
}

func TestStatement118PausesBetweenClaims(t *testing.T) {
	b := quietBackend()
	for range 412 {
		b.claims = append(b.claims, wait())
	}
	bubble(t, b, func(o outcome) {
		o.ran(t)
		claims := b.of("claim")
		for k := range 412 {
			want := min(time.Duration(max(1, k/5))*100*time.Millisecond, 8*time.Second)
			if got := claims[k+1].at.Sub(claims[k].at); got != want {
				t.Fatalf("the pause after WAIT %d was %v, want %v", k, got, want)
			}
		}
	})
}

func TestTheRowOfWaitsBeginsAnewAfterATask(t *testing.T) {
	b := quietBackend()
	for range 30 {
		b.claims = append(b.claims, wait())
	}
	task := shell("e-1", "true")
	task.Type = ptr("unknownTask")
	b.claims = append(b.claims, task, wait())
	bubble(t, b, func(o outcome) {
		o.ran(t)
		claims := b.of("claim")
		if got := claims[32].at.Sub(claims[31].at); got != 100*time.Millisecond {
			t.Errorf("the first pause after a task was %v", got)
		}
	})
}

func TestStatement125HeartbeatCadence(t *testing.T) {
	b := quietBackend()
	b.vars.Variables["BK_CI_RETRY_COUNT"] = "2"
	for range 300 {
		b.claims = append(b.claims, wait())
	}
	bubble(t, b, func(o outcome) {
		o.ran(t)
		beats := b.of("heartbeat")
		last := b.of("started")[0].at.Add(8 * time.Second)
		for i, c := range beats {
			if got := c.at.Sub(last); got != 2*time.Second {
				t.Errorf("beat %d came %v after the one before", i, got)
			}
			last = c.at
			if c.query.Get("executeCount") != "3" {
				t.Errorf("execute count %q", c.query.Get("executeCount"))
			}
		}
		if got, want := len(beats), 300; got < want {
			t.Errorf("%d beats", got)
		}
		if body := string(beats[0].body); body != `{"task2ProgressRate":{},"task2ProgressDetail":{}}` {
			t.Errorf("the body of a beat: %s", body)
		}
	})
}

func TestTwelveLostHeartbeatsEndTheWorker(t *testing.T) {
	b := quietBackend()
	for range 500 {
		b.claims = append(b.claims, wait())
	}
	b.odd = func(op string, n int, _ call) *answer {
		if op == "heartbeat" && n != 12 {
			return &answer{http.StatusInternalServerError, "{}"}
		}
		return nil
	}
	bubble(t, b, func(o outcome) {
		if o.code != 255 || !strings.Contains(o.error, "heartbeat") {
			t.Errorf("exit code %d, error file %q", o.code, o.error)
		}
		if n := b.count("heartbeat"); n != 11+1+12 {
			t.Errorf("%d heartbeats", n)
		}
		if b.count("end") != 0 {
			t.Error("end was called")
		}
	})
}

// failing is a RoundTripper that fails a path n times before the backend hears it.
type failing struct {
	direct
	mu   sync.Mutex
	path string
	left int
	err  error
	at   []time.Time
	asks []string
}

func (f *failing) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasSuffix(r.URL.Path, f.path) {
		f.mu.Lock()
		f.at = append(f.at, time.Now())
		f.asks = append(f.asks, r.URL.Query().Get("retryCount"))
		fail := f.left > 0
		f.left--
		f.mu.Unlock()
		if fail {
			return nil, f.err
		}
	}
	return f.direct.RoundTrip(r)
}

func TestRetriesOfBothLevels(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	for _, tt := range []struct {
		name, path string
		err        error
		fail       int
		retry      string // of the last call
		after      time.Duration
	}{
		{"claim, nobody there", "/claim", refused, 5, "0", 5 * 500 * time.Millisecond},
		{"claim, inner retries used up", "/claim", refused, 6, "1", 5*500*time.Millisecond + 1500*time.Millisecond},
		{"started, inner retries used up twice", "/started", refused, 12, "2", 10*500*time.Millisecond + 1500*time.Millisecond + 2500*time.Millisecond},
		{"complete, a lost answer", "/complete", io.ErrUnexpectedEOF, 1, "1", 1500 * time.Millisecond},
		{"complete, eleven lost answers", "/complete", io.ErrUnexpectedEOF, 11, "11", 11*500*time.Millisecond + 55*time.Second},
		{"end", "/end", io.ErrUnexpectedEOF, 5, "5", 5*500*time.Millisecond + 15*time.Second},
		{"no address", "/claim", &net.DNSError{Err: "no such host"}, 5, "0", 2500 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			task := shell("e-1", "true")
			task.Type = ptr("unknownTask")
			b := quietBackend(task)
			f := &failing{direct: direct{b}, path: tt.path, left: tt.fail, err: tt.err}
			dir := home(t, "http://gateway.test")
			synctest.Test(t, func(t *testing.T) {
				host := b.host(dir)
				host.HTTP = func(wire.HTTPOptions) *http.Client { return &http.Client{Transport: f} }
				code, err := Run(t.Context(), host, b.arguments(dir))
				if code != 0 || err != nil {
					t.Fatalf("exit code %d, %v", code, err)
				}
				if got := f.at[tt.fail].Sub(f.at[0]); got != tt.after || f.asks[tt.fail] != tt.retry {
					t.Errorf("call %d came after %v with retryCount %s, want %v and %s", tt.fail, got, f.asks[tt.fail], tt.after, tt.retry)
				}
			})
		})
	}
}

func TestAServerThatStaysAwayIsGivenUp(t *testing.T) {
	b := quietBackend()
	f := &failing{direct: direct{b}, path: "/claim", left: 1 << 30, err: &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}}
	dir := home(t, "http://gateway.test")
	synctest.Test(t, func(t *testing.T) {
		host := b.host(dir)
		host.HTTP = func(wire.HTTPOptions) *http.Client { return &http.Client{Transport: f} }
		code, err := Run(t.Context(), host, b.arguments(dir))
		if code != 255 || !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("exit code %d, %v", code, err)
		}
		if len(f.at) != 101*6 {
			t.Errorf("%d calls", len(f.at))
		}
		same(t, "calls", b.ops(), []string{"started", "quota-start", "quota-shutdown", "end"})
		var end wire.EndMessage
		if err := json.Unmarshal(b.of("end")[0].body, &end); err != nil || !strings.Contains(value(end.Message), "claim task") {
			t.Errorf("end was called with %s", b.of("end")[0].body)
		}
	})
}

// upload runs an uploader against a handler, in a bubble.
func upload(t *testing.T, odd func(n int, lines []wire.LogLine) *answer, use func(u *uploader, log *taskLog)) (batches [][]wire.LogLine, at []time.Time) {
	t.Helper()
	var before []byte // the last body, and its number
	var number int64
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		var lines []wire.LogLine
		if err := json.Unmarshal(body, &lines); err != nil {
			t.Error(err)
		}
		n, err := strconv.ParseInt(r.Header.Get(wire.HeaderLogBatch), 10, 64)
		if again := bytes.Equal(body, before); err != nil || again && n != number || !again && n <= number {
			t.Errorf("batch %d follows %d, the same again: %t, err %v", n, number, again, err)
		}
		before, number = body, n
		if odd != nil {
			if a := odd(len(at), lines); a != nil {
				at = append(at, time.Now())
				if a.status == 0 {
					panic(http.ErrAbortHandler)
				}
				w.WriteHeader(a.status)
				_, _ = io.WriteString(w, a.body)
				return
			}
		}
		at, batches = append(at, time.Now()), append(batches, lines)
		_, _ = io.WriteString(w, `{"status":0,"data":true}`)
	})
	session := &wire.Session{Client: &wire.Client{Gateway: "http://gateway.test", HTTP: &http.Client{Transport: direct{handler}}}, Build: "b"}
	u := newUploader(session, slog.New(slog.DiscardHandler), 1)
	count := 1
	log := &taskLog{up: u, mask: &masker{}, log: u.log, base: wire.LogLine{Tag: "e-1", ExecuteCount: &count}, limit: 1 << 20, file: t.TempDir() + "/kept.log"}
	var owned sync.WaitGroup
	owned.Go(func() { u.Run(context.WithoutCancel(t.Context())) })
	use(u, log)
	u.Close()
	owned.Wait()
	log.Close()
	return batches, at
}

func TestUploadIsPacedAndBatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		batches, at := upload(t, nil, func(_ *uploader, log *taskLog) {
			for i := range 30 { // three seconds of a line every 100 ms
				log.Out(fmt.Sprint(i))
				time.Sleep(100 * time.Millisecond)
			}
			for i := range 5500 {
				log.Out(fmt.Sprint(i))
			}
		})
		if first := at[0].Sub(begin); first > 100*time.Millisecond {
			t.Errorf("the first line came after %v", first)
		}
		slow, total := 0, 0
		for i, batch := range batches {
			total += len(batch)
			if len(batch) < 100 {
				slow++
			}
			if i > 0 && len(batch) < maxBatch && i < len(batches)-1 && at[i].Sub(at[i-1]) < pace {
				t.Errorf("request %d, of %d lines, came %v after the one before", i, len(batch), at[i].Sub(at[i-1]))
			}
			if len(batch) > maxBatch {
				t.Errorf("a batch of %d lines", len(batch))
			}
		}
		if total != 5530 || slow > 8 {
			t.Errorf("%d lines in %d requests, %d of them small", total, len(batches), slow)
		}
	})
}

func TestUploadOutlastsAServerThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		const away = 4 * time.Minute
		produced := time.Duration(0)
		batches, _ := upload(t, func(n int, _ []wire.LogLine) *answer {
			switch {
			case time.Since(begin) > away:
				return nil
			case n%2 == 0:
				return &answer{}
			}
			return &answer{http.StatusServiceUnavailable, "<html>"}
		}, func(_ *uploader, log *taskLog) {
			for i := range 10_000 {
				log.Out(fmt.Sprint(i))
			}
			produced = time.Since(begin)
		})
		if produced < away {
			t.Errorf("the producer was not held back: it was done after %v", produced)
		}
		i := 0
		for _, batch := range batches {
			for _, l := range batch {
				if l.Message != fmt.Sprint(i) {
					t.Fatalf("line %d is %q", i, l.Message)
				}
				i++
			}
		}
		if i != 10_000 {
			t.Errorf("%d lines", i)
		}
	})
}

func TestLinesThatCannotBeUploadedAreKeptHere(t *testing.T) {
	for name, tt := range map[string]struct {
		a    answer
		kept bool
	}{
		"not wanted":   {answer{http.StatusForbidden, `{"status":403}`}, true},
		"never there":  {answer{http.StatusBadGateway, ""}, true},
		"build is out": {answer{http.StatusUnauthorized, `{"errorCode":2101182}`}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var kept string
				batches, _ := upload(t, func(int, []wire.LogLine) *answer { return &tt.a }, func(u *uploader, log *taskLog) {
					log.Out("a line")
					u.Flush(t.Context())
					kept = log.kept()
				})
				if len(batches) != 0 || (kept != "") != tt.kept {
					t.Errorf("%d batches, kept %q", len(batches), kept)
				}
			})
		})
	}
}

func TestATooLargeBatchIsHalved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		batches, _ := upload(t, func(_ int, lines []wire.LogLine) *answer {
			if len(lines) > 100 {
				return &answer{http.StatusRequestEntityTooLarge, ""}
			}
			return nil
		}, func(_ *uploader, log *taskLog) {
			for i := range 1000 {
				log.Out(fmt.Sprint(i))
			}
		})
		i := 0
		for _, batch := range batches {
			for _, l := range batch {
				if l.Message != fmt.Sprint(i) {
					t.Fatalf("line %d is %q", i, l.Message)
				}
				i++
			}
		}
		if i != 1000 {
			t.Errorf("%d lines", i)
		}
	})
}

// slowEnd is a RoundTripper whose end of a session is answered only after who asked has given up.
type slowEnd struct {
	direct
	asked chan struct{}
}

func (s *slowEnd) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := s.direct.RoundTrip(r)
	if !strings.HasSuffix(r.URL.Path, "/end") {
		return resp, err
	}
	close(s.asked)
	<-r.Context().Done()
	return nil, context.Cause(r.Context())
}

// TestAHeartbeatMayLearnOfTheEndFirst: on a busy server the answer to the end comes after a heartbeat's that says the build is over.
// That is an end as any other.
func TestAHeartbeatMayLearnOfTheEndFirst(t *testing.T) {
	b := quietBackend()
	for range 30 { // until heartbeats come
		b.claims = append(b.claims, wait())
	}
	slow := &slowEnd{direct: direct{b}, asked: make(chan struct{})}
	b.odd = func(op string, _ int, _ call) *answer {
		select {
		case <-slow.asked:
			if op == "heartbeat" {
				return &answer{http.StatusUnauthorized, `{"errorCode": 2101182, "data": "buildEnd"}`}
			}
		default:
		}
		return nil
	}
	dir := home(t, "http://gateway.test")
	synctest.Test(t, func(t *testing.T) {
		host := b.host(dir)
		host.HTTP = func(wire.HTTPOptions) *http.Client { return &http.Client{Transport: slow} }
		o := outcome{dir: dir}
		o.code, o.err = Run(t.Context(), host, b.arguments(dir))
		o.read(t)
		o.ran(t)
		names, err := filepath.Glob(filepath.Join(dir, "logs", "*.log"))
		if err != nil || len(names) == 0 {
			t.Fatalf("logs %v, %v", names, err)
		}
		for _, name := range names {
			if text, err := os.ReadFile(name); err != nil || strings.Contains(string(text), "|error|") {
				t.Errorf("%s: %s %v", name, text, err)
			}
		}
	})
}
