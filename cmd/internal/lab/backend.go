package lab

import (
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"maps"
	"net/http"
	"slices"
)

// Build is one job as a server hands it out (protocol §1.6.7).
type Build struct {
	Project         string       `json:"projectId"`
	ID              string       `json:"buildId"`
	VMSeq           string       `json:"vmSeqId"`
	Workspace       string       `json:"workspace"`
	Pipeline        string       `json:"pipelineId"`
	Docker          *DockerBuild `json:"dockerBuildInfo"`
	ExecuteCount    int          `json:"executeCount"`
	ContainerHashID string       `json:"containerHashId"`
}

// DockerBuild makes a job run in a container (protocol §1.6.7).
type DockerBuild struct {
	Agent           string            `json:"agentId"`
	Secret          string            `json:"secretKey"`
	Image           string            `json:"image"`
	Credential      map[string]string `json:"credential,omitempty"`
	Options         map[string]any    `json:"options,omitempty"`
	ImagePullPolicy string            `json:"imagePullPolicy,omitempty"`
}

// NewBuild makes a host job with ids of its own.
func NewBuild() Build {
	return Build{Project: "lab", ID: "b-" + randomHex(16), VMSeq: "1", Workspace: "", Pipeline: "p-" + randomHex(16),
		ExecuteCount: 1, ContainerHashID: "c-" + randomHex(16)}
}

// NewDockerBuild makes a job that asks for a container.
func NewDockerBuild() Build {
	b := NewBuild()
	b.Docker = &DockerBuild{Agent: "dockerag", Secret: randomHex(16), Image: "lab.invalid/image:1"}
	return b
}

// Key is how the files of a job are named: build id and sequence (protocol §2.1).
func (b Build) Key() string { return b.ID + "_" + b.VMSeq }

func randomHex(n int) string {
	raw := make([]byte, n)
	_, _ = rand.Read(raw) // never fails
	return hex.EncodeToString(raw)
}

// backend is what the recorder knows as a server. Recorder.mu guards it.
type backend struct {
	status    string
	reply     map[string]any // what heartbeats answer on top of the defaults
	builds    []Build
	pipelines []map[string]any
	debugs    []map[string]any
	offer     map[string]bool
	files     map[string][]byte // published, by name
	finished  map[string]int    // accepted finish reports by build id
	forced    bool
}

func newBackend() backend {
	return backend{status: "IMPORT_OK", reply: map[string]any{}, offer: map[string]bool{}, files: map[string][]byte{}, finished: map[string]int{}}
}

// SetStatus sets the state of the agent's record, "IMPORT_OK" at first. It is answered everywhere.
func (r *Recorder) SetStatus(status string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.backend.status = status
}

// Reply sets members of the heartbeat answer (protocol §1.6.3); they stay until set again. A nil value is sent as null.
func (r *Recorder) Reply(members map[string]any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.Copy(r.backend.reply, members)
}

// ResetReply forgets what Reply set.
func (r *Recorder) ResetReply() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.backend.reply)
}

// Queue hands out jobs, one per claim that has room for their kind.
func (r *Recorder) Queue(builds ...Build) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.backend.builds = append(r.backend.builds, builds...)
}

// ForceBuilds makes the recorder hand out jobs to every claim, whatever it has room for: a dishonest server.
func (r *Recorder) ForceBuilds() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.backend.forced = true
}

// Queued returns how many jobs wait.
func (r *Recorder) Queued() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.backend.builds)
}

// QueuePipeline hands out pipeline tasks (protocol §1.6.9), one per fetch.
func (r *Recorder) QueuePipeline(tasks ...map[string]any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.backend.pipelines = append(r.backend.pipelines, tasks...)
}

// Command makes a pipeline task of a script.
func Command(seq, script string) map[string]any {
	return map[string]any{"type": "COMMAND", "seqId": seq, "command": script}
}

// QueueDebug hands out docker debugging sessions (protocol §1.6.10), one per fetch.
func (r *Recorder) QueueDebug(sessions ...map[string]any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.backend.debugs = append(r.backend.debugs, sessions...)
}

// Offer sets the items that an upgrade check answers with true: agent, worker, jdk, dockerInitFile.
func (r *Recorder) Offer(items ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.backend.offer)
	for _, item := range items {
		r.backend.offer[item] = true
	}
}

// Publish makes a file available for download (protocol §1.6.6).
func (r *Recorder) Publish(name string, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.backend.files[name] = data
}

// download answers as BK-CI does: 304 when the eTag is the file's MD5, no ranges.
func (b *backend) download(q Request) Answer {
	data, ok := b.files[q.Query.Get("file")]
	if !ok {
		return JSON(404, map[string]any{"status": 404, "message": "no such file", "data": nil})
	}
	sum := md5.Sum(data)
	digest := hex.EncodeToString(sum[:])
	if q.Query.Get("eTag") == digest {
		return Answer{Code: 304}
	}
	return Answer{Body: data, Header: http.Header{"Content-Type": {"application/octet-stream"}, "X-Checksum-Md5": {digest}}}
}

// Accepted returns how many finish reports of a job were accepted.
func (r *Recorder) Accepted(build string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.backend.finished[build]
}

// Finishes returns the finish reports of a job, refused ones included, oldest first.
func (r *Recorder) Finishes(build string) []Request {
	return slices.DeleteFunc(r.Of(Finish), func(q Request) bool { return q.Get("buildId") != build })
}

func (r *Recorder) answer(q Request) *Answer {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.session(q); a != nil {
		return a
	}
	b := &r.backend
	var a Answer
	switch q.Endpoint {
	case Startup, Status:
		a = OK(b.status)
	case Heartbeat:
		a = OK(b.heartbeat(q.JSON()))
	case CheckUpgrade:
		a = AgentOK(b.status, b.upgrade())
	case FinishUpgrade, ReportDebug:
		a = AgentOK(b.status, true)
	case Claim:
		a = AgentOK(b.status, b.claim(q.Query.Get("buildType")))
	case Finish:
		id, _ := q.Get("buildId").(string)
		b.finished[id]++
		a = OK(true)
	case FetchPipeline:
		a = OK(pop(&b.pipelines))
	case FetchDebug:
		a = AgentOK(b.status, pop(&b.debugs))
	case Ask:
		a = b.ask(q)
	case DebugStatus:
		a = OK(nil)
	case Download:
		a = b.download(q)
	case ReportPipeline, LogLine, LogRed, LogYellow, Metrics, Metrix, MetrixWrite, LogsMulti, LogsStatus, LogsMode,
		QuotaStart, QuotaShutdown:
		a = OK(true)
	default:
		a = JSON(404, map[string]any{"status": 404, "message": "no such endpoint: " + string(q.Endpoint), "data": nil})
	}
	return &a
}

// heartbeat answers with the counts that the agent reported, unless Reply says otherwise.
func (b *backend) heartbeat(said map[string]any) map[string]any {
	answer := map[string]any{
		"masterVersion": said["masterVersion"], "slaveVersion": said["slaveVersion"], "agentStatus": b.status,
		"parallelTaskCount": said["parallelTaskCount"], "dockerParallelTaskCount": said["dockerParallelTaskCount"],
		"envs": map[string]any{}, "gateway": "", "fileGateway": "", "props": map[string]any{}, "language": "", "createMod": nil,
	}
	if b.status == "DELETE" {
		answer["parallelTaskCount"], answer["dockerParallelTaskCount"] = -1, -1
	}
	maps.Copy(answer, b.reply)
	return answer
}

func (b *backend) upgrade() map[string]bool {
	return map[string]bool{"agent": b.offer["agent"], "worker": b.offer["worker"], "jdk": b.offer["jdk"],
		"dockerInitFile": b.offer["dockerInitFile"]}
}

// claim returns the first job of a kind that is asked for, nil when there is none.
func (b *backend) claim(kind string) any {
	for i, job := range b.builds {
		fits := kind == "ALL" || kind == "BINARY" && job.Docker == nil || kind == "DOCKER" && job.Docker != nil
		if fits || b.forced {
			b.builds = slices.Delete(b.builds, i, i+1)
			return job
		}
	}
	return nil
}

func pop(queue *[]map[string]any) any {
	if len(*queue) == 0 {
		return nil
	}
	first := (*queue)[0]
	*queue = (*queue)[1:]
	return first
}

// ask answers the five parts of protocol §1.7.2.
func (b *backend) ask(q Request) Answer {
	said := q.JSON()
	beat, _ := said["heartbeat"].(map[string]any)
	data := map[string]any{"heartbeat": b.heartbeat(beat), "build": nil, "upgrade": nil, "pipeline": nil, "debug": nil}
	if b.status == "DELETE" {
		return AgentOK("DELETE", data)
	}
	enable := func(part string) any { return Dig(said, "askEnable", part) }
	if kind, _ := enable("build").(string); b.status == "IMPORT_OK" {
		data["build"] = b.claim(kind)
	}
	if enable("upgrade") == true {
		data["upgrade"] = b.upgrade()
	}
	if enable("pipeline") == true {
		data["pipeline"] = pop(&b.pipelines)
	}
	if enable("dockerDebug") == true {
		data["debug"] = pop(&b.debugs)
	}
	return AgentOK(b.status, data)
}
