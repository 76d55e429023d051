package controller

import (
	"net/http"
	"net/http/httptest"
	"runtime/metrics"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

func TestCallsHaveTheirClass(t *testing.T) {
	for call, want := range map[string]class{
		"POST " + wire.PathAsk: polling, "GET " + wire.PathClaim: polling, "GET " + wire.PathStatus: polling, "POST " + wire.PathUpgradeNew: polling,
		"GET " + wire.PathPipelines: polling, "POST " + wire.PathMetrics: polling, "POST " + wire.PathMetrix: polling,
		"POST " + wire.PathHeartbeat: living, "POST " + wire.PathStartup: reporting, "POST " + wire.PathFinish: reporting, "PUT " + wire.PathPipelines: reporting,
		"DELETE " + wire.PathUpgrade: reporting, "PUT " + wire.PathWorkerStarted: working, "POST " + wire.PathWorkerHeartbeat: working,
		"PUT " + wire.PathWorkerArtifacts + "/0123": moving, "GET " + wire.PathWorkerArtifacts + "/0123": moving, "POST " + wire.PathWorkerArtifacts: working,
		"POST " + wire.PathLogsMulti: logging, "POST " + wire.PathLogsRed: logging,
		"GET " + wire.PathDownload: free, "GET /api/v1/builds": free, "GET /": free,
	} {
		var method, path = "", ""
		for i := range call {
			if call[i] == ' ' {
				method, path = call[:i], call[i+1:]
			}
		}
		r := httptest.NewRequest(method, servicePath(path), http.NoBody)
		if got := classOf(r); got != want {
			t.Errorf("%s is of class %d, not %d", call, got, want)
		}
	}
}

// TestAFullClassAsksToComeBack: a call waits for room, then is told when to come back; the other classes are served meanwhile,
// and so is the next call when there is room again.
func TestAFullClassAsksToComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ad := newAdmission()
		release := make(chan struct{})
		stuck := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release })
		get := func(path string, next http.Handler) *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			r := httptest.NewRequest(http.MethodGet, path, http.NoBody)
			if kind := classOf(r); kind == free {
				next.ServeHTTP(w, r)
			} else if !ad.serve(w, r, kind, nil, next) {
				comeBack(w, kind, "no room")
			}
			return w
		}
		var calls sync.WaitGroup
		for range cap(ad.gates[polling].slots) {
			calls.Go(func() { get(agentPrefix+"/status", stuck) })
		}
		synctest.Wait()
		begun := time.Now()
		w := get(agentPrefix+"/status", stuck)
		after, err := strconv.Atoi(w.Header().Get("Retry-After"))
		if w.Code != http.StatusTooManyRequests || err != nil || after < 10 || after > 25 || time.Since(begun) != ad.gates[polling].patience {
			t.Errorf("%d after %v, Retry-After %q", w.Code, time.Since(begun), w.Header().Get("Retry-After"))
		}
		answer := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
		for _, path := range []string{agentPrefix + "/upgrade/files/download", buildPrefix + "/worker/claim", buildPrefix + "/logs/multi", "/api/v1/agents"} {
			if w := get(path, answer); w.Code != http.StatusNoContent {
				t.Errorf("%s: %d", path, w.Code)
			}
		}
		waited := make(chan int, 1)
		go func() { waited <- get(agentPrefix+"/status", answer).Code }()
		synctest.Wait()
		close(release)
		if code := <-waited; code != http.StatusNoContent {
			t.Errorf("a call that waited for room: %d", code)
		}
		calls.Wait()
		ad.gates[polling].queue = 0
		for range cap(ad.gates[polling].slots) {
			ad.gates[polling].slots <- struct{}{}
		}
		begun = time.Now()
		if w := get(agentPrefix+"/status", answer); w.Code != http.StatusTooManyRequests || time.Since(begun) != 0 {
			t.Errorf("with a full queue: %d after %v", w.Code, time.Since(begun))
		}
	})
}

// TestHeldQuestionsTakeNoRoom: as many agents as like may be held; the next one is served at once.
func TestHeldQuestionsTakeNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(Options{})
		if err != nil {
			t.Fatal(err)
		}
		ids, err := s.CreateAgents(NewAgent{}, 2*cap(s.admission.gates[polling].slots)+1)
		if err != nil {
			t.Fatal(err)
		}
		var held sync.WaitGroup
		for _, id := range ids {
			client := &wire.Client{Gateway: "http://controller", Identity: id, HTTP: &http.Client{Transport: s.Transport()}}
			if _, err := client.Startup(t.Context(), wire.Startup{HostName: "h", HostIP: "1.1.1.1", DetectOS: "linux"}); err != nil {
				t.Fatal(err)
			}
			held.Go(func() {
				if _, waited, err := client.Claim(t.Context(), wire.All, 30*time.Second); err != nil || !waited {
					t.Error(waited, err)
				}
			})
		}
		synctest.Wait()
		if n := len(s.admission.gates[polling].slots); n != 0 {
			t.Errorf("%d held questions take room", n)
		}
		wait := func() int {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.waiting.Len()
		}
		if n := wait(); n != len(ids) {
			t.Errorf("%d of %d wait for builds", n, len(ids))
		}
		held.Wait()
		if n := wait(); n != 0 {
			t.Errorf("%d wait when nobody asks", n)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestABusyMachineRefusesPolls: quickly more while answers are late, slowly fewer when they are in time, and none of a small fleet.
func TestABusyMachineRefusesPolls(t *testing.T) {
	refused := 0.0
	if got := share(refused, 2, somePolls-1); got != 0 {
		t.Errorf("a small fleet: %v", got)
	}
	for range 10 {
		refused = share(refused, 2*tooLate, somePolls)
	}
	if refused != 0.9 {
		t.Errorf("after ten late seconds %v", refused)
	}
	if got := share(refused, (tooLate+inTime)/2, somePolls); got != refused {
		t.Errorf("between late and in time: %v", got)
	}
	for range 31 {
		refused = share(refused, 0, 0)
	}
	if refused != 0 {
		t.Errorf("after 31 seconds in time %v", refused)
	}
	ad := newAdmission()
	ad.refused = 1
	if ad.serve(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, agentPrefix+"/status", http.NoBody), polling, nil, http.NotFoundHandler()) {
		t.Error("a poll was served")
	}
}

func TestQuantilesAreOfWhatIsNew(t *testing.T) {
	buckets := []float64{0, 1, 2, 4, 8}
	before, now := &metrics.Float64Histogram{Counts: []uint64{100, 0, 5, 0}, Buckets: buckets}, &metrics.Float64Histogram{Counts: []uint64{100, 8, 6, 1}, Buckets: buckets}
	for q, want := range map[float64]float64{0.5: 1, 0.85: 2, 0.95: 4} {
		if got := quantile(before, now, q); got != want {
			t.Errorf("%v: %v, not %v", q, got, want)
		}
	}
	if got := quantile(now, now, 0.9); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
	ad := newAdmission()
	ad.look(time.Now()) // the runtime still has the histogram
	if ad.last == nil {
		t.Errorf("%s is gone", schedulerDelays)
	}
}

// TestTheQueueIsServedInOrder: by number across kinds of builds, past those that nobody fits, whatever comes back.
func TestTheQueueIsServedInOrder(t *testing.T) {
	l := make(backlog)
	one := func(number int64, labels ...string) *build {
		b := &build{}
		b.Number, b.Labels, b.Project = number, labels, DefaultProject
		l.add(b)
		return b
	}
	gpu, plain, both, second := one(1, "gpu"), one(2), one(3, "gpu", "big"), one(4)
	same := one(5, "big", "gpu")
	if len(l) != 3 || same.wants != both.wants {
		t.Errorf("%d kinds", len(l))
	}
	a := newAgent(time.Now())
	a.Project = DefaultProject
	if got := l.first(a.fits); got != plain {
		t.Errorf("first is %d", got.Number)
	}
	l.remove(plain)
	if got := l.first(a.fits); got != second {
		t.Errorf("then %d", got.Number)
	}
	l.add(plain)
	if got := l.first(a.fits); got != plain {
		t.Errorf("after it came back %d", got.Number)
	}
	a.Labels = []string{"gpu"}
	if got := l.first(a.fits); got != gpu {
		t.Errorf("with a label %d", got.Number)
	}
	for _, b := range []*build{gpu, plain, both, second, same, same} {
		l.remove(b)
	}
	if len(l) != 0 || l.first(a.fits) != nil {
		t.Errorf("%d kinds are left", len(l))
	}
}
