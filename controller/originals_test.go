package controller

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// original is an agent of BK-CI, or its worker, as protocol §1.2, §1.3 and §6.1 describe what they send and what they look at.
type original struct {
	t      *testing.T
	http   *http.Client
	url    string
	header http.Header
}

// verdict is what an original agent makes of an answer: nothing but the envelope counts (protocol §1.3).
type verdict struct {
	Status      int
	Message     *string
	Data        json.RawMessage
	AgentStatus string
}

func newOriginal(t *testing.T, client *http.Client, url string, id wire.Identity) *original {
	return &original{t: t, http: client, url: url, header: http.Header{
		"X-Devops-Build-Type": {"AGENT"}, "X-Devops-Project-Id": {id.Project}, "X-Devops-Agent-Id": {id.Agent},
		"X-Devops-Agent-Secret-Key": {string(id.Secret)}}}
}

// send makes a call and returns the status and the body.
func (o *original) send(method, path, body string) (int, http.Header, []byte) {
	o.t.Helper()
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(o.t.Context(), method, o.url+path, in)
	if err != nil {
		o.t.Fatal(err)
	}
	req.Header = o.header.Clone()
	if method == http.MethodPost || method == http.MethodPut {
		req.Header.Set("Content-Type", "application/json; charset=utf-8")
	}
	resp, err := o.http.Do(req)
	if err != nil {
		o.t.Errorf("%s %s: %v", method, path, err)
		return 0, nil, nil
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		o.t.Errorf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode, resp.Header, data
}

// call is send for an agent: the status of HTTP is not looked at, and a body that is no JSON is an error.
func (o *original) call(method, path, body string) (v verdict) {
	o.t.Helper()
	_, _, data := o.send(method, path, body)
	if err := json.Unmarshal(data, &v); err != nil {
		o.t.Errorf("%s %s: not JSON: %s", method, path, data)
	}
	return v
}

// Bodies of original agents, with the members of each generation and no other (protocol §1.6, Appendix C).
const (
	originalStartup = `{"hostname":"build-07","hostIp":"10.1.2.3","detectOS":"linux","masterVersion":"v1.12.0","version":"v2.0.1"}`
	originalBeat    = `{"masterVersion":"v1.12.0","slaveVersion":"v2.0.1","hostName":"build-07","agentIp":"10.1.2.3","parallelTaskCount":4,"agentInstallPath":"/opt/ci",` +
		`"startedUser":"ci","taskList":null,"props":{"arch":"amd64","jdkVersion":["openjdk 17.0.9","Runtime line","VM line"],` +
		`"dockerInitFileMd5":{"fileMd5":"","needUpgrade":false}},"dockerParallelTaskCount":4,"dockerTaskList":[],"errorExitData":null}`
	originalUpgrade = `{"workerVersion":"v2.0.1","goAgentVersion":"v1.12.0","jdkVersion":["openjdk 17.0.9","Runtime line","VM line"],"dockerInitFileInfo":{"fileMd5":"","needUpgrade":false}}`
	originalAsk     = `{"askEnable":{"build":"ALL","upgrade":true,"dockerDebug":false,"pipeline":true},"heartbeat":` + originalBeat + `,"upgrade":` + originalUpgrade + `}`
)

// occupy takes all room of some classes, and returns what gives it back.
func occupy(s *Server, kinds ...class) (release func()) {
	for _, k := range kinds {
		for range cap(s.admission.gates[k].slots) {
			s.admission.gates[k].slots <- struct{}{}
		}
	}
	return sync.OnceFunc(func() {
		for _, k := range kinds {
			for range cap(s.admission.gates[k].slots) {
				<-s.admission.gates[k].slots
			}
		}
	})
}

// TestOverloadAndOriginals: with no room left, an original agent reads that its question is not ok, and nothing else, before its
// time of five seconds is over; what it says once is taken; its worker is told what it tries again after; and nobody is offline.
func TestOverloadAndOriginals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(Options{WorkerSilence: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		w := &world{t: t, server: s, http: httpOf(s), url: "http://controller"}
		m := w.imported(NewAgent{})
		build := w.submit(oneStep("echo x"))
		if got, _, err := m.client.Claim(t.Context(), wire.All, 0); err != nil || got == nil {
			t.Fatal(got, err)
		}
		o := newOriginal(t, w.http, w.url, m.id)
		worker := newOriginal(t, w.http, w.url, m.id)
		worker.header["X-Devops-Build-Id"], worker.header["X-Devops-Vm-Sid"] = []string{build.ID}, []string{"1"}
		script, err := s.QueueScript(m.id.Agent, "true")
		if err != nil {
			t.Fatal(err)
		}
		if code, _, body := worker.send("PUT", "/ms/process/api/build/worker/started?retryCount=0&executeCount=1&buildId=null", ""); code != http.StatusOK {
			t.Fatalf("%d %s", code, body)
		}
		const env, disp = "/ms/environment" + agentPrefix, "/ms/dispatch" + agentPrefix

		release := occupy(s, polling, living, working, logging)
		defer release()
		began := time.Now()
		for n := 0; n < 30; n++ { // five minutes
			asked := time.Now()
			var calls sync.WaitGroup
			for _, c := range []struct{ method, path, body string }{
				{"GET", env + "/status", ""}, {"POST", env + "/agents/newHeartbeat", originalBeat}, {"GET", disp + "/startup?buildType=ALL", ""},
				{"POST", disp + "/upgradeNew", originalUpgrade}, {"GET", env + "/agents/pipelines", ""}, {"GET", disp + "/docker/startupDebug", ""},
				{"POST", disp + "/ask", originalAsk}, {"POST", env + "/agents/metrix", "cpu x=1"},
			} {
				calls.Go(func() {
					if v := o.call(c.method, c.path, c.body); v.Status == 0 || v.AgentStatus != "" || len(v.Data) > 0 && !bytes.Equal(v.Data, []byte("null")) {
						t.Errorf("%s %s: %+v", c.method, c.path, v)
					}
				})
			}
			calls.Wait()
			if took := time.Since(asked); took >= 5*time.Second {
				t.Errorf("refused after %v: the agent has given up", took)
			}
			time.Sleep(10*time.Second - time.Since(asked))
			s.expire(time.Now())
		}
		if a, _ := s.FindAgent(m.id.Agent); a.Status != wire.ImportOK {
			t.Errorf("an agent that asks and is refused for %v is %s", time.Since(began), a.Status)
		}
		for _, c := range []struct{ method, path, body string }{
			{"PUT", "/ms/process/api/build/worker/started?retryCount=0&executeCount=1&buildId=null", ""}, {"GET", "/ms/process/api/build/worker/claim", ""},
			{"POST", "/ms/process/api/build/worker/end", `{"message":null}`}, {"POST", "/log/api/build/logs/multi", `[{"message":"x","timestamp":1,"tag":"","logType":"LOG"}]`},
		} {
			code, header, body := worker.send(c.method, c.path, c.body)
			if code != http.StatusServiceUnavailable || header.Get("Retry-After") == "" || bytes.Contains(body, []byte("errorCode")) {
				t.Errorf("%s %s: %d %s", c.method, c.path, code, body)
			}
		}

		// What an original says once waits for its turn.
		release()
		full := occupy(s, reporting)
		defer full()
		said := make(chan verdict, 4)
		for _, c := range []struct{ method, path, body string }{
			{"POST", env + "/startup", originalStartup}, {"DELETE", disp + "/upgrade?success=false", ""},
			{"PUT", env + "/agents/pipelines", `{"seqId":"` + jsonText(script.ID) + `","status":"SUCCESS","response":"done"}`},
			{"POST", disp + "/workerBuildFinish", `{"projectId":"demo","buildId":"` + build.ID + `","vmSeqId":"1","workspace":"","pipelineId":"p","dockerBuildInfo":null,"executeCount":1,` +
				`"containerHashId":"c","success":false,"message":"java not found","error":{"errorType":"USER","errorMessage":"worker process could not be started","errorCode":2128044}}`},
		} {
			go func() { said <- o.call(c.method, c.path, c.body) }()
		}
		time.Sleep(4 * time.Second)
		if len(said) != 0 {
			t.Errorf("%+v before there was room", <-said)
		}
		full()
		for range cap(said) {
			if v := <-said; v.Status != 0 {
				t.Errorf("what is said once: %+v", v)
			}
		}
		if b, err := s.FindBuild(build.ID); err != nil || b.State != Failed || b.Report == nil || b.Report.Code != 2128044 {
			t.Errorf("%+v, %v", b, err)
		}
		if c, err := s.FindScript(script.ID); err != nil || c.Status != wire.PipelineSuccess {
			t.Errorf("%+v, %v", c, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestOriginalsAreToldNothingNew: with everything in use that BK-CI does not have (labels, roles, rollouts, runs, secrets), the answers to
// the calls of both generations and of a worker have the members that the protocol names, all of them, and no others.
func TestOriginalsAreToldNothingNew(t *testing.T) {
	w := serve(t, Options{Dir: t.TempDir(), AskSpacing: time.Nanosecond, StatusSpacing: time.Nanosecond, HeartbeatSpacing: time.Nanosecond, PipelineSpacing: time.Nanosecond})
	m := w.machine(NewAgent{Labels: []string{"gpu"}})
	o := newOriginal(t, w.http, w.url, m.id)
	const env, disp = "/ms/environment" + agentPrefix, "/ms/dispatch" + agentPrefix
	members := func(what string, data []byte, want string) {
		t.Helper()
		var got map[string]json.RawMessage
		if err := json.Unmarshal(data, &got); err != nil {
			t.Errorf("%s: %v in %s", what, err, data)
			return
		}
		for _, name := range strings.Fields(want) {
			name, may := strings.CutSuffix(name, "?")
			if _, there := got[name]; !there && !may {
				t.Errorf("%s lacks %s: %s", what, name, data)
			}
			delete(got, name)
		}
		for name := range got {
			t.Errorf("%s has %s, which nobody knows", what, name)
		}
	}
	const (
		envelope  = "status message data"
		enveloped = envelope + " agentStatus"
		heartbeat = "masterVersion slaveVersion agentStatus parallelTaskCount dockerParallelTaskCount envs gateway fileGateway props language createMod?"
		upgrade   = "agent worker jdk dockerInitFile"
		job       = "projectId buildId vmSeqId workspace pipelineId dockerBuildInfo executeCount containerHashId"
		pipeline  = "type seqId command"
	)
	data := func(what string, body []byte, outside, inside string) {
		t.Helper()
		members(what, body, outside)
		if inside != "" {
			var in struct{ Data json.RawMessage }
			if err := json.Unmarshal(body, &in); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			members(what+": data", in.Data, inside)
		}
	}
	call := func(method, path, body, outside, inside string) []byte {
		t.Helper()
		code, _, text := o.send(method, path, body)
		if code != http.StatusOK {
			t.Errorf("%s %s: %d %s", method, path, code, text)
		}
		data(method+" "+path, text, outside, inside)
		return text
	}
	call("POST", env+"/startup", originalStartup, envelope, "")
	call("GET", env+"/status", "", envelope, "")
	call("POST", env+"/agents/newHeartbeat", originalBeat, envelope, heartbeat)
	call("POST", disp+"/upgradeNew", originalUpgrade, enveloped, upgrade)
	call("DELETE", disp+"/upgrade?success=true", "", enveloped, "")
	if _, err := w.server.QueueScript(m.id.Agent, "true"); err != nil {
		t.Fatal(err)
	}
	call("GET", env+"/agents/pipelines", "", envelope, pipeline)
	if _, err := w.server.QueueScript(m.id.Agent, "true"); err != nil {
		t.Fatal(err)
	}
	r := w.submitRun("name: run\njobs:\n  one: {labels: [gpu], steps: [{script: x}]}\n")
	text := call("POST", disp+"/ask", originalAsk, enveloped, "heartbeat build upgrade pipeline debug")
	var asked struct {
		Data struct{ Heartbeat, Build, Upgrade, Pipeline json.RawMessage }
	}
	if err := json.Unmarshal(text, &asked); err != nil {
		t.Fatal(err)
	}
	for _, part := range []struct {
		name string
		data []byte
		want string
	}{{"heartbeat", asked.Data.Heartbeat, heartbeat}, {"build", asked.Data.Build, job}, {"upgrade", asked.Data.Upgrade, upgrade}, {"pipeline", asked.Data.Pipeline, pipeline}} {
		members("ask: "+part.name, part.data, part.want)
	}
	id := r.Jobs[0].Build
	o.header["X-Devops-Build-Id"], o.header["X-Devops-Vm-Sid"] = []string{id}, []string{"1"}
	const process = "/ms/process/api/build/worker"
	call("PUT", process+"/started?retryCount=0&executeCount=1&buildId=null", "", envelope, "buildId vmSeqId vmName projectId pipelineId variables variablesWithType buildEnvs "+
		"containerId containerHashId jobId timeoutMills containerType pipelineAsCodeSettings loggingLineLimit failIfVariableInvalid")
	call("GET", process+"/claim", "", envelope, "buildId vmSeqId status executeCount taskId elementId stepId elementName elementVersion type params buildVariable containerType signToken")
	call("POST", process+"/heartbeat/v1", `{"task2ProgressRate":{},"task2ProgressDetail":{}}`, envelope, "projectId buildId vmSeqId cancelTaskIds")
	call("POST", "/log/api/build/logs/multi?buildId="+id, `[{"message":"x","timestamp":1,"tag":"","jobId":"","logType":"LOG","executeCount":1}]`, envelope, "")
	other := w.submit(oneStep("x"))
	if got := call("GET", disp+"/startup?buildType=ALL", "", enveloped, job); !strings.Contains(string(got), other.ID) {
		t.Errorf("claim: %s", got)
	}
}
