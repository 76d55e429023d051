package controller

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// workerAnswer is a business error towards a worker: errorCode is what it looks at (protocol §6.1).
type workerAnswer struct {
	Status    int    `json:"status"`
	ErrorCode int    `json:"errorCode"`
	Message   string `json:"message"`
	Data      any    `json:"data"`
}

// buildEnded is the answer where there is no session: the build is over, or never was (protocol §6.1).
func buildEnded(w http.ResponseWriter) {
	answer(w, http.StatusUnauthorized, workerAnswer{Status: wire.CodeBuildEnded, ErrorCode: wire.CodeBuildEnded,
		Message: "the build is over", Data: "buildEnd"})
}

// session is what the gateway knows of a worker's call: agent, secret, build and sequence id belong together.
// It returns nil where they do not.
func (s *Server) session(r *http.Request) (*agent, *build) {
	id, err := identity(r)
	if err != nil || r.Header.Get(wire.HeaderVMSeq) != vmSeq {
		return nil, nil
	}
	s.mu.Lock()
	a := s.known(id)
	s.mu.Unlock()
	if a == nil {
		return nil, nil
	}
	b, err := s.find(r.Header.Get(wire.HeaderBuild))
	if err != nil {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.Agent != a.ID {
		return nil, nil
	}
	return a, b
}

// workerCall is a call in a session. What the handler answers goes out after its changes are on disk.
type workerCall func(r *http.Request, a *agent, b *build, now time.Time) (reply any, saved *ticket)

// workerError makes a workerCall answer with a business error.
type workerError struct {
	code    int
	message string
}

// worker wraps a call that needs a running build; after its end the answer is 2101182 (protocol §6.12).
func (s *Server) worker(call workerCall) http.HandlerFunc {
	return s.workerWhen(func(b *build) bool { return b.State == Running }, call)
}

// workerWhen is worker with another condition on the build, asked under the lock.
func (s *Server) workerWhen(may func(*build) bool, call workerCall) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a, b := s.session(r)
		if b == nil {
			buildEnded(w)
			return
		}
		now := time.Now()
		s.mu.Lock()
		if !may(b) {
			s.mu.Unlock()
			buildEnded(w)
			return
		}
		b.beat = now
		reply, saved := call(r, a, b, now)
		s.mu.Unlock()
		if saved != nil {
			if err := saved.wait(); err != nil {
				if task, claimed := reply.(wire.BuildTask); claimed {
					ok(w, wire.BuildTask{Build: task.Build, VMSeq: task.VMSeq, Status: wire.TaskWait})
					return
				}
				refuse(w, http.StatusServiceUnavailable, "the change could not be written; try again")
				return
			}
		}
		if no, bad := reply.(workerError); bad {
			answer(w, http.StatusBadRequest, workerAnswer{Status: no.code, ErrorCode: no.code, Message: no.message})
			return
		}
		ok(w, reply)
	}
}

// withBody decodes the body before the lock is taken.
func withBody[T any](s *Server, may func(*build) bool, call func(in T, a *agent, b *build, now time.Time) (any, *ticket), required ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		data, read := readBody(w, r)
		if !read {
			return
		}
		var in T
		if len(data) > 0 || len(required) > 0 {
			if err := decode(data, &in, required...); err != nil {
				refuse(w, http.StatusBadRequest, err.Error())
				return
			}
		}
		s.workerWhen(may, func(_ *http.Request, a *agent, b *build, now time.Time) (any, *ticket) { return call(in, a, b, now) })(w, r)
	}
}

func isRunning(b *build) bool { return b.State == Running }

// wasRunning also lets a worker repeat its last calls after the answer was lost: they are idempotent.
func wasRunning(b *build) bool { return b.State == Running || b.State.Over() && b.StartedAt != 0 }

// started is PUT …/started. A second worker is refused; a repeated call of the first is not. It shows in its retry
// count, or follows a call that we had to answer with 503: those are repeated under the same count (protocol §6.1).
func (s *Server) started(r *http.Request, a *agent, b *build, now time.Time) (any, *ticket) {
	if b.State == Running {
		retry, err := strconv.Atoi(r.URL.Query().Get("retryCount"))
		if (err != nil || retry <= 0) && !b.start.refused() {
			return workerError{wire.CodeAlreadyStarted, "another worker has started this build"}, nil
		}
		b.start = s.save(b)
		return b.variables(a.HostName), b.start
	}
	s.unqueue(b) // it was given up for lost, and was not
	b.State, b.StartedAt = Running, millis(now)
	b.since, b.began = now, now
	a.builds[b.ID] = b
	b.notify()
	s.log.Info("Build started", "build", b.ID, "agent", a.ID)
	b.start = s.save(b)
	return b.variables(a.HostName), b.start
}

// mayStart: handed out, running (for the answer above), or re-queued and not yet given to anybody else.
// One whose values cannot be read must not: it would run without them.
func mayStart(b *build) bool {
	return b.locked == nil && (b.State == Handed || b.State == Running || b.State == Queued)
}

// claimTask is GET …/claim.
func (s *Server) claimTask(r *http.Request, a *agent, b *build, now time.Time) (any, *ticket) {
	if r.Header.Get(wire.HeaderWorkerCan) != wire.CanArtifacts && !b.CancelRequested {
		b.withoutArtifacts(now)
	}
	task := s.nextTask(b, now, a.OS)
	b.notify()
	return task, s.save(b)
}

// completeTask is POST …/complete.
func (s *Server) completeTask(in wire.TaskResult, _ *agent, b *build, now time.Time) (any, *ticket) {
	if b.State.Over() {
		// Only the repetition of a result that we have is fine.
		i := slices.IndexFunc(b.Steps, func(t StepState) bool { return t.Task == in.TaskID && (t.State == Succeeded) == in.Success })
		if i < 0 {
			return workerError{wire.CodeBuildEnded, "the build is over"}, nil
		}
		return true, nil
	}
	if !b.complete(in, now) {
		return workerError{http.StatusBadRequest, "no such task in this build"}, nil
	}
	b.notify()
	return true, s.save(b)
}

// endBuild is POST …/end. Repeating it changes nothing.
func (s *Server) endBuild(in wire.EndMessage, _ *agent, b *build, now time.Time) (any, *ticket) {
	if b.State.Over() {
		return true, s.save(b) // the first one may not be on disk yet
	}
	said := ""
	if in.Message != nil {
		said = *in.Message
	}
	state, message := b.verdict(said)
	return true, s.finish(b, state, message, now)
}

// jobTimeout is POST …/timeout: the worker stopped at the build's limit (protocol §6.6).
func (s *Server) jobTimeout(_ *http.Request, _ *agent, b *build, now time.Time) (any, *ticket) {
	return true, s.finish(b, Failed, "the build's time limit of "+b.limit().String()+" is over", now)
}

// submitError is POST …/submit_error: the worker could not prepare the build (protocol §6.2). The end follows.
func (s *Server) submitError(in wire.ErrorInfo, _ *agent, b *build, _ time.Time) (any, *ticket) {
	if b.State.Over() {
		return true, nil
	}
	b.WorkerError = clip(b.mask(in.ErrorMsg), 4000)
	if b.WorkerError == "" {
		b.WorkerError = "the worker could not be initialised"
	}
	return true, s.save(b)
}

// workerBeat is POST …/heartbeat/v1 (protocol §6.6).
func (s *Server) workerBeat(in wire.WorkerHeartbeat, _ *agent, b *build, now time.Time) (any, *ticket) {
	for i := range b.Steps {
		rate, said := in.ProgressRate[b.Steps[i].Task]
		if said && b.Steps[i].State == Running && rate >= 0 && rate <= 1 && rate != b.Steps[i].Progress {
			b.Steps[i].Progress = rate
			b.notify()
		}
	}
	return wire.WorkerHeartbeatReply{Project: b.Project, Build: b.ID, VMSeq: vmSeq, CancelTaskIDs: b.toCancel(now)}, nil
}

// oldBeat is POST …/builds/heartbeat, the variant without a body.
func (s *Server) oldBeat(_ *http.Request, _ *agent, _ *build, _ time.Time) (any, *ticket) {
	return true, nil
}

// detailURL is GET …/detail_url.
func (s *Server) detailURL(r *http.Request, _ *agent, b *build, _ time.Time) (any, *ticket) {
	return s.publicURL(r) + "/api/v1/builds/" + b.ID, nil
}

// workerRoutes adds the calls of a worker below a prefix (protocol §6.1).
func (s *Server) workerRoutes(mux *http.ServeMux, prefix string) {
	mux.HandleFunc("PUT "+prefix+"/started", s.workerWhen(mayStart, s.started))
	mux.HandleFunc("GET "+prefix+"/claim", s.worker(s.claimTask))
	mux.HandleFunc("POST "+prefix+"/complete", withBody(s, wasRunning, s.completeTask, "taskId", "success"))
	mux.HandleFunc("POST "+prefix+"/end", withBody(s, wasRunning, s.endBuild))
	mux.HandleFunc("POST "+prefix+"/timeout", s.worker(s.jobTimeout))
	mux.HandleFunc("POST "+prefix+"/submit_error", withBody(s, wasRunning, s.submitError))
	mux.HandleFunc("POST "+prefix+"/heartbeat/v1", withBody(s, isRunning, s.workerBeat))
	mux.HandleFunc("POST "+prefix+"/heartbeat", s.worker(s.oldBeat))
	mux.HandleFunc("GET "+prefix+"/detail_url", s.worker(s.detailURL))
	mux.HandleFunc("GET "+prefix+"/dispatch_config", s.worker(func(*http.Request, *agent, *build, time.Time) (any, *ticket) {
		return map[string]any{}, nil
	}))
}
