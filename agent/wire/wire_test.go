package wire

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "write what the code says into testdata/golden")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// identity is that of every test.
func identity() Identity {
	return Identity{Project: "demo", Agent: "agt-1", Secret: "s3cret-of-a-test"}
}

// seen is one request as a server got it.
type seen struct {
	method, path, query, body string
	header                    http.Header
}

// backend is a real HTTP server that keeps what it was asked.
type backend struct {
	*httptest.Server
	mu   sync.Mutex
	seen []seen
}

func (b *backend) requests() []seen {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]seen(nil), b.seen...)
}

// serve starts a backend and a client of it.
func serve(t *testing.T, answer http.HandlerFunc) (*backend, *Client) {
	t.Helper()
	b := &backend{}
	b.Server = httptest.NewServer(b.record(answer))
	t.Cleanup(b.Close)
	return b, client(t, b.URL)
}

func (b *backend) record(answer http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body bytes.Buffer
		_, _ = body.ReadFrom(r.Body)
		b.mu.Lock()
		b.seen = append(b.seen, seen{r.Method, r.URL.Path, r.URL.RawQuery, body.String(), r.Header.Clone()})
		b.mu.Unlock()
		answer(w, r)
	})
}

func client(t *testing.T, gateway string) *Client {
	t.Helper()
	h := NewHTTPClient(HTTPOptions{})
	t.Cleanup(h.CloseIdleConnections)
	return &Client{Gateway: gateway, Identity: identity(), HTTP: h, Timeout: 20 * time.Second}
}

// says answers every request with one body.
func says(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) }
}

// TestMessagesHaveTheirShape compares every body that we send with protocol Appendix C and the tables of §1.6:
// exact keys, types, null and [].
func TestMessagesHaveTheirShape(t *testing.T) {
	jdk := []string{"openjdk 17.0.9", "Runtime line", "VM line"}
	idle := Heartbeat{MasterVersion: "v1.12.0", SlaveVersion: "v2.0.1", HostName: "build-07", AgentIP: "10.1.2.3",
		ParallelTaskCount: 4, AgentInstallPath: "/opt/ci", StartedUser: "ci",
		Props:               HostProps{Arch: "amd64", JDKVersion: jdk, OSVersion: "Example Linux 9"},
		DockerParallelCount: 4, DockerTaskList: []RunningDocker{}}
	busy := Heartbeat{MasterVersion: "v1.12.0", HostName: "build-07", AgentIP: "127.0.0.1", AgentInstallPath: "/opt/ci", StartedUser: "ci",
		TaskList: []Running{{Project: "demo", Build: "b-1", VMSeq: "1", Workspace: "/w"}},
		Props: HostProps{Arch: "arm64", JDKVersion: []string{},
			DockerInit: DockerInit{FileMD5: "0cc175b9c0f1b6a831c399e269772661", NeedUpgrade: true}},
		DockerParallelCount: 2, DockerTaskList: []RunningDocker{{Project: "demo", Build: "b-2", VMSeq: "3"}},
		ErrorExitData: &ExitError{Enum: "THIRD_AGENT_EXIT_NOT_WORKER", Message: "worker-agent.jar is gone"}}
	one, yes := 1, true
	for name, message := range map[string]any{
		"startup": Startup{HostName: "build-07", HostIP: "10.1.2.3", DetectOS: "linux", MasterVersion: "v1.12.0", Version: "v2.0.1"},
		"ask": Ask{Enable: AskEnable{Build: All, Upgrade: true}, Heartbeat: idle,
			Upgrade: &UpgradeCheck{WorkerVersion: "v2.0.1", GoAgentVersion: "v1.12.0", JDKVersion: jdk}},
		"ask_quiet": Ask{Enable: AskEnable{Build: None, DockerDebug: true, Pipeline: true},
			Heartbeat: Heartbeat{Props: HostProps{JDKVersion: []string{}}, DockerTaskList: []RunningDocker{}}},
		"heartbeat_busy": busy,
		"finish_failed": Finish{Build: Build{Project: "demo", ID: "b-00112233445566778899aabbccddeeff", VMSeq: "1",
			Pipeline: "p-00112233445566778899aabbccddeeff", ExecuteCount: &one, ContainerHashID: "c-00112233445566778899aabbccddeeff"},
			Message: "java not found",
			Error:   &BuildError{Type: "USER", Message: "worker process could not be started", Code: 2128044}},
		"finish_ok": Finish{Build: Build{Project: "demo", ID: "b-1", VMSeq: "1", Workspace: "/w", Pipeline: "p-1",
			Docker: &DockerBuild{Agent: "a-2", Secret: "docker-secret", Image: "alpine", Credential: &Credential{User: "u", Password: "p"},
				Options: &DockerOptions{Volumes: []string{"/a:/b"}, Mounts: []string{"type=bind"}, GPUs: "all", Privileged: &yes,
					Network: []string{"host"}, User: "1"}, ImagePullPolicy: "always"}}, Success: true},
		"pipeline_report": PipelineReport{SeqID: "7", Status: PipelineSuccess, Response: "done\n"},
		"debug_report": DebugReport{Project: "demo", DebugID: 1<<53 + 1, Pipeline: "p-1",
			Error: &BuildError{Type: "USER", Message: "no docker", Code: 2128061}},
		"log_line": LogLine{Message: "pulling", Timestamp: 1700000000123, Tag: "startVM-1", JobID: "c-1", ContainerHashID: "c-1",
			LogType: LogNormal, ExecuteCount: &one},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join("testdata", "golden", name+".json")
			got, err := json.MarshalIndent(message, "", " ")
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.WriteFile(file, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(plain(t, got), plain(t, want)) {
				t.Errorf("we send\n%s\nprotocol says\n%s", got, want)
			}
		})
	}
}

// TestAskReplyOfTheProtocolIsRead reads the answer of protocol Appendix C.
func TestAskReplyOfTheProtocolIsRead(t *testing.T) {
	const body = `{"status":0,"message":null,"agentStatus":"IMPORT_OK","data":{
 "heartbeat":{"masterVersion":"v1.12.0","slaveVersion":"v2.0.1","agentStatus":"IMPORT_OK","parallelTaskCount":4,"envs":{},
  "gateway":"ci.example.com","fileGateway":"","props":{"keepLogsHours":96},"dockerParallelTaskCount":4,"language":"en_US","createMod":false},
 "build":{"projectId":"demo","buildId":"b-00112233445566778899aabbccddeeff","vmSeqId":"1","workspace":"",
  "pipelineId":"p-00112233445566778899aabbccddeeff","dockerBuildInfo":null,"executeCount":1,
  "containerHashId":"c-00112233445566778899aabbccddeeff"},
 "upgrade":{"agent":false,"worker":false,"jdk":false,"dockerInitFile":false},"pipeline":null,"debug":null}}`
	_, c := serve(t, says(body))
	parts, err := c.Ask(t.Context(), Ask{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(parts.Errs) > 0 || parts.AgentStatus != ImportOK || parts.Pipeline != nil || parts.Debug != nil || parts.Waited {
		t.Errorf("parts = %+v", parts)
	}
	if h := parts.Heartbeat; h == nil || *h.ParallelTaskCount != 4 || *h.Gateway != "ci.example.com" || *h.Props.KeepLogsHours != 96 ||
		h.Props.EnablePipeline != nil || *h.CreateMod || h.Envs == nil || h.AgentStatus != ImportOK {
		t.Errorf("heartbeat = %+v", h)
	}
	if b := parts.Build; b == nil || b.ID != "b-00112233445566778899aabbccddeeff" || *b.ExecuteCount != 1 || b.Docker != nil {
		t.Errorf("build = %+v", b)
	}
	if parts.Upgrade == nil || parts.Upgrade.Any() {
		t.Errorf("upgrade = %+v", parts.Upgrade)
	}
}

// plain is JSON without order and without rounding.
func plain(t *testing.T, data []byte) (v any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%s: %v", data, err)
	}
	return v
}
