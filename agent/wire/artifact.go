package wire

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// Artifacts are a matter between our controller and our worker: BK-CI gives no such tasks, and our controller gives them
// to workers only that say by HeaderWorkerCan that they know them.
const (
	HeaderWorkerCan = "X-DEVOPS-WORKER-CAN" // of a claim: what a worker can do beyond protocol §6.7
	CanArtifacts    = "artifacts"

	TaskArtifactSave = "devopsArtifactSave" // its parameter is an ArtifactSave
	TaskArtifactGet  = "devopsArtifactGet"  // its parameter is an ArtifactGet
	ParamArtifact    = "artifact"           // name of that parameter, whose value is JSON

	PathWorkerArtifacts = "/ms/process/api/build/worker/artifacts" // POST an offer; PUT and GET …/SHA256
)

// ArtifactSave is a task: pack what the paths name, and store it under the name.
type ArtifactSave struct {
	Name       string   `json:"name"`
	Paths      []string `json:"paths"`             // patterns below the workspace, with slashes
	Exclude    []string `json:"exclude,omitempty"` // patterns of what is left out
	Optional   bool     `json:"optional,omitempty"`
	MaxBytes   int64    `json:"maxBytes"`   // of its files together
	MaxEntries int      `json:"maxEntries"` // files, folders and links
}

// ArtifactGet is a task: put artifacts of other builds into the workspace.
type ArtifactGet struct {
	Items   []ArtifactItem `json:"items"`
	Missing []string       `json:"missing,omitempty"` // what there might have been, and is not; for the log
}

// ArtifactItem is one artifact of an ArtifactGet.
type ArtifactItem struct {
	Title   string `json:"title"`             // for people: its name, and the job that saved it
	SHA256  string `json:"sha256"`            // of the archive, a gzip'ed tar
	Size    int64  `json:"size"`              // of the archive, in bytes
	Bytes   int64  `json:"bytes"`             // of its files
	Entries int    `json:"entries"`           // files, folders and links
	Dir     string `json:"dir"`               // below the workspace, with slashes; "." is the workspace
	Replace bool   `json:"replace,omitempty"` // what is in Dir goes first
}

// ArtifactOffer says what a worker has packed. It is made before the archive is sent, and after.
type ArtifactOffer struct {
	TaskID  string `json:"taskId"`
	Name    string `json:"name"`
	SHA256  string `json:"sha256"`
	Size    int64  `json:"size"`    // of the archive, in bytes
	Bytes   int64  `json:"bytes"`   // of its files
	Entries int    `json:"entries"` // files, folders and links
}

// ArtifactReply says whether an offered artifact is stored, or is to be sent.
type ArtifactReply struct {
	Stored bool `json:"stored"`
}

// stallLimit ends a transfer in which nothing has moved for so long: a server has to force what it got to its disk.
const stallLimit = 2 * time.Minute

// OfferArtifact tells the server of an artifact and returns whether that has its archive. If so, it is stored.
func (s *Session) OfferArtifact(ctx context.Context, offer ArtifactOffer) (stored bool, err error) {
	const op = "offer artifact"
	answer, err := s.do(ctx, Call{Op: op, Method: http.MethodPost, Path: PathWorkerArtifacts, Body: offer, Timeout: stallLimit})
	if err != nil {
		return false, err
	}
	var reply ArtifactReply
	if err := json.Unmarshal(answer.Data, &reply); err != nil {
		return false, &BodyError{Op: op, Type: "application/json", Err: brief(err)}
	}
	return reply.Stored, nil
}

// SendArtifact sends the archive of an offer that was not stored: size bytes of body, which has the digest.
func (s *Session) SendArtifact(ctx context.Context, digest string, size int64, body io.Reader) error {
	const op = "send artifact"
	moving := watch(ctx)
	defer moving.stop()
	resp, err := s.transfer(moving.ctx, http.MethodPut, digest, size, moving.reader(body))
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return &BodyError{Op: op, Type: resp.Header.Get("Content-Type"), Err: transportError(moving.ctx, err)}
	}
	_, err = decodeEnvelope(op, resp.StatusCode, resp.Header, data)
	return err
}

// FetchArtifact writes an archive of size bytes to w, and is a *BodyError when it has not the digest.
func (s *Session) FetchArtifact(ctx context.Context, digest string, size int64, w io.Writer) error {
	const op = "fetch artifact"
	moving := watch(ctx)
	defer moving.stop()
	resp, err := s.transfer(moving.ctx, http.MethodGet, digest, 0, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		data, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // half of an answer says no as well
		if _, err := decodeEnvelope(op, resp.StatusCode, resp.Header, data); err != nil {
			return err
		}
		return &StatusError{Op: op, HTTP: resp.StatusCode}
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(&local{w}, sum), moving.reader(io.LimitReader(resp.Body, size+1)))
	var disk *localError
	switch {
	case errors.As(err, &disk):
		return fmt.Errorf("%s: %w", op, err)
	case err != nil:
		err = transportError(moving.ctx, err)
	case n != size:
		err = fmt.Errorf("not the %d bytes that it should have", size)
	case hex.EncodeToString(sum.Sum(nil)) != digest:
		err = errors.New("it does not have its SHA-256")
	default:
		return nil
	}
	return &BodyError{Op: op, Type: resp.Header.Get("Content-Type"), Err: err}
}

func (s *Session) transfer(ctx context.Context, method, digest string, size int64, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, BaseURL(s.Client.Gateway)+PathWorkerArtifacts+"/"+digest, body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = size
	s.Client.Identity.sign(req.Header)
	req.Header.Set(HeaderBuild, s.Build)
	req.Header.Set(HeaderVMSeq, s.VMSeq)
	req.Header.Set("Accept-Encoding", "identity") // it is compressed
	if body != nil {
		req.Header.Set("Content-Type", "application/gzip")
	}
	resp, err := s.Client.HTTP.Do(req)
	if err != nil {
		return nil, transportError(ctx, err)
	}
	return resp, nil
}

// localError is an error of the file that a transfer is written to: trying again does not help.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

// LocalError reports whether a transfer failed because of this machine's own disk.
func LocalError(err error) bool {
	var disk *localError
	return errors.As(err, &disk)
}

type local struct{ w io.Writer }

func (l *local) Write(data []byte) (int, error) {
	n, err := l.w.Write(data)
	if err != nil {
		err = &localError{err}
	}
	return n, err
}

// stall is a transfer that is ended when nothing moves any more.
type stall struct {
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu    sync.Mutex
	timer *time.Timer
}

func watch(parent context.Context) *stall {
	ctx, cancel := context.WithCancelCause(parent)
	return &stall{ctx: ctx, cancel: cancel, timer: time.AfterFunc(stallLimit, func() { cancel(&TimeoutError{Limit: stallLimit}) })}
}

func (s *stall) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cancel(nil)
	s.timer.Stop()
}

// reader passes a reader on and takes note of everything that moves.
func (s *stall) reader(r io.Reader) io.Reader { return &moved{s, r} }

type moved struct {
	stall *stall
	r     io.Reader
}

func (m *moved) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.stall.mu.Lock() // the transport reads on a goroutine of its own
	defer m.stall.mu.Unlock()
	if m.stall.ctx.Err() == nil {
		m.stall.timer.Reset(stallLimit)
	}
	return n, err
}
