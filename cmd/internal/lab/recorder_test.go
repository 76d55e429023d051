package lab

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func client(t *testing.T) *http.Client {
	c := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

func call(t *testing.T, c *http.Client, r *Recorder, e Endpoint, query string, body any) map[string]any {
	t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	q, err := http.NewRequest(e.Method(), r.URL+e.Path()+query, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var answer map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		t.Fatalf("%s: %v", e, err)
	}
	return answer
}

func TestRecorderAnswersTheSeedGeneration(t *testing.T) {
	r, c := NewRecorder(t, RecorderOptions{}), client(t)
	if got := call(t, c, r, Startup, "", map[string]any{"hostname": "x"}); got["data"] != "IMPORT_OK" || got["status"] != 0.0 {
		t.Errorf("startup: %v", got)
	}
	if got := call(t, c, r, Heartbeat, "", map[string]any{"parallelTaskCount": 3}); Dig(got, "data", "parallelTaskCount") != 3.0 {
		t.Errorf("a heartbeat must get its own count back: %v", got)
	}
	build := NewBuild()
	r.Queue(build)
	if got := call(t, c, r, Claim, "?buildType=DOCKER", nil); got["data"] != nil {
		t.Errorf("a host job went to a docker claim: %v", got)
	}
	if got := call(t, c, r, Claim, "?buildType=BINARY", nil); Dig(got, "data", "buildId") != build.ID {
		t.Errorf("claim: %v", got)
	}
	call(t, c, r, Finish, "", map[string]any{"buildId": build.ID})
	if r.Accepted(build.ID) != 1 || len(r.Finishes(build.ID)) != 1 {
		t.Errorf("accepted %d, reports %d", r.Accepted(build.ID), len(r.Finishes(build.ID)))
	}
}

func TestRecorderAnswersAsk(t *testing.T) {
	r, c := NewRecorder(t, RecorderOptions{}), client(t)
	build := NewBuild()
	r.Queue(build)
	r.Offer("jdk")
	ask := func(kind string, upgrade bool) map[string]any {
		return call(t, c, r, Ask, "", map[string]any{"askEnable": map[string]any{"build": kind, "upgrade": upgrade},
			"heartbeat": map[string]any{"parallelTaskCount": 2}})
	}
	if got := ask("NONE", false); Dig(got, "data", "build") != nil || Dig(got, "data", "upgrade") != nil {
		t.Errorf("not asked for, but answered: %v", got)
	}
	got := ask("ALL", true)
	if Dig(got, "data", "build", "buildId") != build.ID || Dig(got, "data", "upgrade", "jdk") != true ||
		Dig(got, "data", "heartbeat", "parallelTaskCount") != 2.0 || got["agentStatus"] != "IMPORT_OK" {
		t.Errorf("ask: %v", got)
	}
}

func TestStrictRecorderRefusesCallsTooCloseTogether(t *testing.T) {
	r, c := NewRecorder(t, RecorderOptions{Strict: true}), client(t)
	call(t, c, r, Status, "", nil)
	if got := call(t, c, r, Status, "", nil); got["status"] != 1.0 {
		t.Errorf("second status at once: %v", got)
	}
	if n := len(r.TooFrequent()); n != 1 {
		t.Errorf("%d calls noted as too frequent, want 1", n)
	}
}

func TestScriptedAnswersGoFirst(t *testing.T) {
	r, c := NewRecorder(t, RecorderOptions{}), client(t)
	r.Always(Status, No(7, "always"))
	r.Next(Status, No(8, "next"))
	for i, want := range []float64{8, 7, 7} {
		if got := call(t, c, r, Status, "", nil); got["status"] != want {
			t.Errorf("call %d: status %v, want %v", i, got["status"], want)
		}
	}
	r.On(Status, nil)
	if got := call(t, c, r, Status, "", nil); got["status"] != 0.0 {
		t.Errorf("after On(nil): %v", got)
	}
}

func TestFaultyAnswers(t *testing.T) {
	r, c := NewRecorder(t, RecorderOptions{}), client(t)
	get := func() (string, error) {
		resp, err := c.Get(r.URL + Status.Path())
		if err != nil {
			return "", err
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		return string(body), err
	}
	r.Next(Status, Answer{Drop: true}, Answer{Body: []byte("half"), Cut: true})
	if _, err := get(); err == nil {
		t.Error("a dropped connection looked fine")
	}
	if body, err := get(); err == nil || body != "half" {
		t.Errorf("a cut body looked fine: %q, %v", body, err)
	}
	r.Next(Status, Answer{Hang: true})
	c.Timeout = 200 * time.Millisecond
	mark := r.Mark()
	if _, err := get(); err == nil {
		t.Error("a hanging server looked fine")
	}
	q, ok := r.WaitFor(time.Second, mark, Status)
	if !ok {
		t.Fatal("not recorded")
	}
	if !r.Until(time.Second, func() bool { _, gone := q.Done(); return gone }) {
		t.Error("the recorder did not notice that its client left")
	}
}

func TestSessionWalksThroughItsTasks(t *testing.T) {
	r, c := NewRecorder(t, RecorderOptions{}), client(t)
	s := r.Open(&Session{Build: NewBuild(), Tasks: []Task{{ID: "e-1", Script: "echo a b", Waits: 1}}})
	say := func(e Endpoint, body any) map[string]any {
		t.Helper()
		data, _ := json.Marshal(body)
		q, err := http.NewRequest(e.Method(), r.URL+e.Path()+"?buildId=null", bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("X-DEVOPS-BUILD-ID", s.Build.ID)
		resp, err := c.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		var answer map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
			t.Fatal(err)
		}
		return answer
	}
	if got := say(WorkerStarted, nil); Dig(got, "data", "buildId") != s.Build.ID {
		t.Errorf("started: %v", got)
	}
	if got := say(WorkerClaim, nil); Dig(got, "data", "status") != "WAIT" {
		t.Errorf("first claim: %v", got)
	}
	if got := say(WorkerClaim, nil); Dig(got, "data", "status") != "DO" || Dig(got, "data", "params", "script") != "echo+a+b" {
		t.Errorf("second claim: %v", got)
	}
	say(WorkerComplete, map[string]any{"taskId": "e-1", "buildResult": map[string]string{"A": "b"}})
	if len(s.Completes("e-1")) != 1 {
		t.Error("complete was not recorded")
	}
	if got := say(WorkerClaim, nil); Dig(got, "data", "status") != "END" {
		t.Errorf("last claim: %v", got)
	}
	say(WorkerEnd, map[string]any{"message": nil})
	if got := say(WorkerClaim, nil); got["errorCode"] != 2101182.0 {
		t.Errorf("claim after the end: %v", got)
	}
}

func TestAuthorityIsOnlyKnownToWhoHasItsCertificate(t *testing.T) {
	ca := NewAuthority(t)
	r := NewRecorder(t, RecorderOptions{TLS: ca.Server(t)})
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(ca.PEM))
	c := client(t)
	if resp, err := c.Get(r.URL); err == nil {
		_ = resp.Body.Close()
		t.Error("an unknown authority was accepted")
	}
	c.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	t.Cleanup(c.CloseIdleConnections)
	resp, err := c.Get(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if !r.Until(time.Second, func() bool { return r.Complaints() != "" }) {
		t.Error("the refused handshake is not in the complaints")
	}
}
