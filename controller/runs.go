package controller

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Blocked is the state of a build whose job needs others that are not over: no agent gets it.
const Blocked State = "waiting"

// maxGiven bounds what a job gets of the jobs that it needs, in bytes.
const maxGiven = 1 << 20

// NewRun is what is submitted of a build file with several jobs.
type NewRun struct {
	Project   string              `json:"project,omitempty"` // "" is DefaultProject
	File      string              `json:"file"`              // the text of the build file
	Name      string              `json:"name,omitempty"`    // instead of the file's
	Labels    []string            `json:"labels,omitempty"`  // besides those of the file, of all jobs
	Variables map[string]Variable `json:"variables,omitempty"`
	Timeout   Duration            `json:"timeout,omitempty"` // of each job, instead of the file's
	Inputs    map[string]string   `json:"inputs,omitempty"`  // environment variables of all steps that no script can take for code
}

// Run is a submitted build file with several jobs as the operator API shows it. Times are milliseconds since 1970, 0
// when not yet.
type Run struct {
	ID              string   `json:"id"`
	Number          int64    `json:"number"` // from 1, in the order of submission; runs and builds count apart
	Name            string   `json:"name"`
	Project         string   `json:"project"`
	State           State    `json:"state"`             // queued, running, succeeded, failed, cancelled
	Message         string   `json:"message,omitempty"` // what failed first in the order of the file
	CreatedAt       int64    `json:"createdAt"`
	FinishedAt      int64    `json:"finishedAt,omitempty"`
	CancelRequested bool     `json:"cancelRequested,omitempty"`
	RerunOf         string   `json:"rerunOf,omitempty"` // id of the run that this one repeats
	Definition      string   `json:"definition,omitempty"`
	Trigger         string   `json:"trigger,omitempty"` // what started the definition: operator, schedule, webhook
	Jobs            []RunJob `json:"jobs"`              // in the order of the file, a matrix cell after the other
}

// RunJob is one build of a run: a job, or one cell of its matrix.
type RunJob struct {
	Job        string            `json:"job"`
	Matrix     map[string]string `json:"matrix,omitempty"`
	Needs      []string          `json:"needs,omitempty"`
	Always     bool              `json:"always,omitempty"`
	Build      string            `json:"build"`  // its id
	Number     int64             `json:"number"` // of the build
	Name       string            `json:"name"`   // of the build
	State      State             `json:"state"`  // waiting, and those of a build
	StartedAt  int64             `json:"startedAt,omitempty"`
	FinishedAt int64             `json:"finishedAt,omitempty"`
	Message    string            `json:"message,omitempty"`
}

// run is the record of a run that is not over, or not on disk yet as over. What is stored is Run; the state of its
// builds is theirs, and is taken over when one ends.
type run struct {
	Run
	text     string   // of its NewRun, as stored
	builds   []*build // beside Jobs; nil for one that is gone
	settling bool     // its jobs are being looked at: one that ends meanwhile is looked at by the same
	again    bool
	lastSave *ticket
}

// SubmitRun queues the builds of a file with several jobs. All of it is on disk when SubmitRun returns. What cannot
// run is a *SpecError or an *InputError.
func (s *Server) SubmitRun(in NewRun) (Run, error) { return s.submitRun(in, origin{}) }

// origin is where a run comes from.
type origin struct {
	rerunOf, definition, trigger string
	also                         func(*sql.Tx, Run) error // done in the transaction that makes the run
}

// cells makes the builds of a file; one without jobs is one job. name is the run's.
func (in *NewRun) cells() (name string, cells []cell, err error) {
	if HasJobs([]byte(in.File)) {
		file, err := parseJobs([]byte(in.File))
		if err != nil {
			return "", nil, err
		}
		file.override(*in)
		if cells, err = file.cells(); err != nil {
			return "", nil, err
		}
		name = file.Name
	} else {
		file, err := parseSpecFile([]byte(in.File))
		if err != nil {
			return "", nil, err
		}
		one := JobsFile{Name: file.Name, Variables: file.Variables}
		one.override(*in)
		spec := file.Spec
		spec.Name, spec.Variables, spec.Labels = one.Name, one.Variables, slices.Concat(spec.Labels, one.Labels)
		if in.Timeout > 0 {
			spec.Timeout = in.Timeout
		}
		if err := spec.check(); err != nil {
			return "", nil, err
		}
		name, cells = spec.Name, []cell{{job: jobID, spec: spec}}
	}
	for i := range cells {
		if err := checkShown(cells[i].spec.Variables); err != nil {
			return "", nil, err
		}
		if err := cells[i].spec.addInputs(in.Inputs); err != nil {
			return "", nil, err
		}
	}
	return name, cells, nil
}

func (s *Server) submitRun(in NewRun, from origin) (Run, error) {
	if in.Project == "" {
		in.Project = DefaultProject
	}
	if !label.MatchString(in.Project) {
		return Run{}, &InputError{Err: fmt.Errorf("project %q: letters, digits, _ and - only", clip(in.Project, 64))}
	}
	name, cells, err := in.cells()
	if err != nil {
		return Run{}, &SpecError{Err: err}
	}
	now := time.Now()
	r := new(run)
	r.Run = Run{ID: "r-" + randomHex(16), Name: name, Project: in.Project, State: Queued, CreatedAt: millis(now), RerunOf: from.rerunOf,
		Definition: from.definition, Trigger: from.trigger}
	for _, c := range cells {
		b, err := s.newBuild(in.Project, c.spec, now)
		if err != nil {
			return Run{}, err
		}
		b.Run, b.Job, b.Matrix, b.Wants = r.ID, c.job, c.matrix, c.wants
		if len(c.needs) > 0 {
			b.State = Blocked
		}
		r.builds = append(r.builds, b)
		r.Jobs = append(r.Jobs, RunJob{Job: c.job, Matrix: c.matrix, Needs: c.needs, Always: c.always, Build: b.ID, Name: b.Name, State: b.State})
	}
	if r.text, err = s.sealRun(r, in); err != nil {
		return Run{}, err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return Run{}, errClosed
	}
	s.lastRun++
	r.Number = s.lastRun
	for i, b := range r.builds {
		s.lastNumber++
		b.Number, b.RunNumber = s.lastNumber, r.Number
		r.Jobs[i].Number = b.Number
	}
	t := s.store.enqueue(r.insert(from.also), nil)
	s.mu.Unlock()
	if err := t.wait(); err != nil {
		return Run{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r.lastSave = t
	s.runs[r.ID] = r
	for _, b := range r.builds {
		s.builds[b.ID] = b
		if b.State == Queued {
			s.enqueue(b)
		}
	}
	s.log.Info("Run queued", "run", r.ID, "name", r.Name, "builds", len(r.builds))
	s.dispatchNew(now)
	return r.view(), nil
}

// sealedRun is a NewRun with sensitive values in it, as it is stored.
type sealedRun struct {
	Sealed string `json:"sealed"`
}

// sealRun is the stored form of what a run was made from: encrypted as a whole when a value in it is sensitive.
func (s *Server) sealRun(r *run, in NewRun) (string, error) {
	for _, b := range r.builds {
		for _, v := range b.spec.Variables {
			if v.Sensitive {
				sealed, err := s.vault.sealJSON("run/"+r.ID, in)
				return jsonText(sealedRun{Sealed: sealed}), err
			}
		}
	}
	return jsonText(in), nil
}

// openRun reads what sealRun made.
func (s *Server) openRun(id, text string) (in NewRun, err error) {
	var stored sealedRun
	if err := json.Unmarshal([]byte(text), &stored); err != nil {
		return in, err
	}
	if stored.Sealed != "" {
		err = s.vault.openJSON("run/"+id, stored.Sealed, &in)
		return in, err
	}
	err = json.Unmarshal([]byte(text), &in)
	return in, err
}

// insert writes the run and its builds at once: there is never a part of it.
func (r *run) insert(also func(*sql.Tx, Run) error) func(*sql.Tx) error {
	made, doc := r.Run, jsonText(r.Run)
	type row struct {
		number        int64
		id, text, doc string
	}
	rows := make([]row, 0, len(r.builds))
	for _, b := range r.builds {
		rows = append(rows, row{b.Number, b.ID, b.text, jsonText(b)}) // nothing is given to it yet
	}
	return func(tx *sql.Tx) error {
		if _, err := tx.Exec(`INSERT INTO run (number, id, active, spec, doc) VALUES (?, ?, 1, ?, ?)`, r.Number, r.ID, r.text, doc); err != nil {
			return err
		}
		for _, b := range rows {
			if _, err := tx.Exec(`INSERT INTO build (number, id, active, spec, doc) VALUES (?, ?, 1, ?, ?)`, b.number, b.id, b.text, b.doc); err != nil {
				return err
			}
		}
		if also != nil {
			return also(tx, made)
		}
		return nil
	}
}

// saveRun enqueues the state of a run. One that is over leaves the memory when that is on disk.
func (s *Server) saveRun(r *run) *ticket {
	doc, active := jsonText(r.Run), 1
	if r.State.Over() {
		active = 0
	}
	var t *ticket
	t = s.store.enqueue(func(tx *sql.Tx) error {
		_, err := tx.Exec(`UPDATE run SET active = ?, doc = ? WHERE number = ?`, active, doc, r.Number)
		return err
	}, func(err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err != nil {
			s.unwritten("A run's state could not be written", err, "run", r.ID)
		} else if r.lastSave == t && active == 0 {
			delete(s.runs, r.ID)
		}
	})
	r.lastSave = t
	return t
}

// loadRuns fills the memory with the runs that are not over, and goes on with them: a job that ended while nobody
// could release the ones that need it does so now. Released ones are queued already and are left alone.
func (s *Server) loadRuns(now time.Time) error {
	s.runs = make(map[string]*run)
	var active []*run
	err := s.store.each(func(scan func(...any) error) error {
		r := new(run)
		var doc string
		if err := scan(&r.text, &doc); err != nil {
			return err
		}
		active = append(active, r)
		return json.Unmarshal([]byte(doc), &r.Run)
	}, `SELECT spec, doc FROM run WHERE active = 1 ORDER BY number`)
	if err != nil {
		return err
	}
	for _, r := range active {
		r.builds = make([]*build, len(r.Jobs))
		if len(r.Jobs) == 0 {
			continue
		}
		err := s.store.each(func(scan func(...any) error) error {
			b, err := s.scanBuild(scan, now)
			if err != nil {
				return err
			}
			if live := s.builds[b.ID]; live != nil {
				b = live
			}
			if i := slices.IndexFunc(r.Jobs, func(j RunJob) bool { return j.Build == b.ID }); i >= 0 {
				r.builds[i] = b
			}
			return nil
		}, `SELECT spec, doc FROM build WHERE number BETWEEN ? AND ?`, r.Jobs[0].Number, r.Jobs[len(r.Jobs)-1].Number)
		if err != nil {
			return err
		}
		s.runs[r.ID] = r
		s.settle(r, now)
	}
	return s.store.each(func(scan func(...any) error) error { return scan(&s.lastRun) }, `SELECT max((SELECT coalesce(max(number), 0) FROM run),
		(SELECT coalesce(max(value), 0) FROM counter WHERE name = ?))`, countRuns)
}

// lapseRuns tries again to write what the disk refused.
func (s *Server) lapseRuns() {
	for _, r := range s.runs {
		if r.lastSave.refused() {
			s.saveRun(r)
		}
	}
}

// settleRun goes on with the run of a build that has ended.
func (s *Server) settleRun(b *build, now time.Time) {
	if r := s.runs[b.Run]; r != nil {
		s.settle(r, now)
	}
}

// settle looks at all jobs of a run: it queues those that need nothing more, skips those that cannot run, and ends the
// run when all are over. It can be repeated at any time.
func (s *Server) settle(r *run, now time.Time) {
	if r.again = true; r.settling {
		return
	}
	r.settling = true
	for r.again {
		r.again = false
		s.advanceJobs(r, now)
	}
	r.settling = false
	r.takeOver()
	if r.over() && !r.State.Over() {
		r.State, r.Message = r.verdict()
		r.FinishedAt = millis(now)
		s.noteEnd(r)
		s.log.Info("Run ended", "run", r.ID, "state", string(r.State), "message", r.Message)
	}
	s.saveRun(r)
	s.dispatchNew(now)
}

func (s *Server) advanceJobs(r *run, now time.Time) {
	for i := range r.Jobs {
		b, job := r.builds[i], &r.Jobs[i]
		switch {
		case b == nil && !job.State.Over():
			job.State, job.Message, job.FinishedAt = Failed, "its record is gone", millis(now)
			r.again = true
			continue
		case b != nil && r.CancelRequested:
			s.cancel(b, now)
			continue
		case b == nil || b.State != Blocked:
			continue
		}
		open, bad := r.needs(job)
		switch {
		case open:
		case bad != "" && !job.Always:
			s.finish(b, Skipped, bad, now)
		default:
			s.queueJob(r, i, now)
		}
	}
}

// needs says whether a job has to wait, and otherwise why it cannot run, "" when it can.
func (r *run) needs(job *RunJob) (open bool, bad string) {
	for i := range r.Jobs {
		need := &r.Jobs[i]
		if !slices.Contains(job.Needs, need.Job) {
			continue
		}
		switch state := r.state(i); {
		case !state.Over():
			return true, ""
		case state != Succeeded && bad == "":
			bad = fmt.Sprintf("job %s, which it needs, is %s", r.title(need), state)
		}
	}
	return false, bad
}

func (r *run) state(i int) State {
	if b := r.builds[i]; b != nil {
		return b.State
	}
	return r.Jobs[i].State
}

// title is a job with its cell, as people call it.
func (r *run) title(j *RunJob) string { return strings.TrimPrefix(j.Name, r.Name+"/") }

// queueJob queues a build that needs nothing more, with the outputs of the jobs that it needed.
func (s *Server) queueJob(r *run, i int, now time.Time) {
	b := r.builds[i]
	given, hidden, size := make(map[string]string), []string(nil), 0
	for n, need := range r.builds {
		job := r.Jobs[n].Job
		if !slices.Contains(r.Jobs[i].Needs, job) {
			continue
		}
		result := "jobs." + job + ".result"
		if given[result] == "" || given[result] == string(Succeeded) {
			given[result] = string(r.state(n))
		}
		if need == nil {
			continue
		}
		for name, value := range need.Vars {
			if !strings.HasPrefix(name, "jobs."+job+".steps.") {
				continue
			}
			given[name] = value
			if size += len(name) + len(value); size > maxGiven {
				s.finish(b, Failed, fmt.Sprintf("the outputs of the jobs that it needs are longer than %d bytes", maxGiven), now)
				return
			}
			if (need.hides(name) || need.reveals(value)) && !slices.Contains(hidden, name) {
				hidden = append(hidden, name)
			}
		}
	}
	if err := r.takeArtifacts(b); err != nil {
		s.finish(b, Failed, err.Error(), now)
		return
	}
	b.Given, b.GivenHidden = given, hidden
	b.covered = b.sensitive()
	b.State, b.QueuedAt, b.since = Queued, millis(now), now
	b.notify()
	s.log.Info("Build queued", "build", b.ID, "name", b.Name, "run", r.ID)
	s.save(b)
	s.enqueue(b)
}

// takeOver copies the states of the builds: they may be deleted before the run is.
func (r *run) takeOver() {
	for i, b := range r.builds {
		if b == nil {
			continue
		}
		j := &r.Jobs[i]
		j.State, j.StartedAt, j.FinishedAt, j.Message = b.State, b.StartedAt, b.FinishedAt, b.Message
	}
	if r.State == Queued && slices.ContainsFunc(r.Jobs, func(j RunJob) bool { return j.StartedAt != 0 || j.State.Over() }) {
		r.State = Running
	}
}

func (r *run) over() bool {
	return !slices.ContainsFunc(r.Jobs, func(j RunJob) bool { return !j.State.Over() })
}

// verdict is how a run ends whose builds are all over.
func (r *run) verdict() (State, string) {
	has := func(state State) int {
		return slices.IndexFunc(r.Jobs, func(j RunJob) bool { return j.State == state })
	}
	failed, cancelled := has(Failed), has(Cancelled)
	switch {
	case cancelled >= 0 && (r.CancelRequested || failed < 0):
		return Cancelled, ""
	case failed >= 0:
		message := "job " + r.title(&r.Jobs[failed]) + " failed"
		if r.Jobs[failed].Message != "" {
			message += ": " + r.Jobs[failed].Message
		}
		return Failed, message
	}
	return Succeeded, ""
}

// view is a copy that the caller may keep.
func (r *run) view() Run {
	if !r.State.Over() {
		r.takeOver()
	}
	v := r.Run
	v.Jobs = slices.Clone(v.Jobs)
	return v
}

// FindRun returns a run by its id or number, ErrNotFound when there is none.
func (s *Server) FindRun(id string) (Run, error) {
	found, _, err := s.findRun(id)
	return found, err
}

// findRun returns a run and the text of its NewRun.
func (s *Server) findRun(id string) (found Run, text string, err error) {
	number, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		number = 0
	}
	s.mu.Lock()
	for _, r := range s.runs {
		if r.ID == id || r.Number == number {
			found, text = r.view(), r.text
		}
	}
	s.mu.Unlock()
	if found.ID != "" {
		return found, text, nil
	}
	err = s.store.each(func(scan func(...any) error) error {
		var doc string
		if err := scan(&text, &doc); err != nil {
			return err
		}
		return json.Unmarshal([]byte(doc), &found)
	}, `SELECT spec, doc FROM run WHERE id = ? OR number = ?`, id, number)
	if err == nil && found.ID == "" {
		err = fmt.Errorf("run %q: %w", clip(id, 64), ErrNotFound)
	}
	return found, text, err
}

// Runs lists runs, the newest first: at most limit, with numbers below before (0 is no bound).
func (s *Server) Runs(limit int, before int64) ([]Run, error) {
	list := []Run{}
	err := s.store.each(func(scan func(...any) error) error {
		var doc string
		if err := scan(&doc); err != nil {
			return err
		}
		var r Run
		err := json.Unmarshal([]byte(doc), &r)
		list = append(list, r)
		return err
	}, `SELECT doc FROM run WHERE (? = 0 OR number < ?) ORDER BY number DESC LIMIT ?`, before, before, limit)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range list {
		if live := s.runs[list[i].ID]; live != nil {
			list[i] = live.view()
		}
	}
	return list, nil
}

// CancelRun ends all builds of a run: those that have not started at once, the others when their workers have killed
// what runs. Cancelling twice, or a run that is over, changes nothing.
func (s *Server) CancelRun(id string) (Run, error) {
	found, err := s.FindRun(id)
	if err != nil {
		return Run{}, err
	}
	now := time.Now()
	s.mu.Lock()
	r := s.runs[found.ID]
	if r == nil || r.State.Over() || r.CancelRequested {
		s.mu.Unlock()
		return found, nil
	}
	r.CancelRequested = true
	s.settle(r, now)
	t, v := r.lastSave, r.view()
	s.mu.Unlock()
	return v, t.wait()
}

// Rerun submits what a run was made of once more, as a run of its own.
func (s *Server) Rerun(id string) (Run, error) {
	found, text, err := s.findRun(id)
	if err != nil {
		return Run{}, err
	}
	in, err := s.openRun(found.ID, text)
	if err != nil {
		return Run{}, fmt.Errorf("read run %s: %w", found.ID, err)
	}
	return s.submitRun(in, origin{rerunOf: found.ID})
}

// runRoutes adds the calls about runs.
func (s *Server) runRoutes(route func(pattern string, h http.HandlerFunc)) {
	route("POST /runs", act(func(_ *http.Request, in NewRun) (Run, error) { return s.SubmitRun(in) }))
	route("GET /runs", func(w http.ResponseWriter, r *http.Request) {
		limit, err := queryInt(r, "limit", 50)
		before, berr := queryInt(r, "before", 0)
		if err = errors.Join(err, berr); err != nil {
			operatorError(w, err)
			return
		}
		list, err := s.Runs(int(min(limit, 1000)), before)
		reply(w, list, err)
	})
	for pattern, call := range map[string]func(string) (Run, error){
		"GET /runs/{id}": s.FindRun, "POST /runs/{id}/cancel": s.CancelRun, "POST /runs/{id}/rerun": s.Rerun,
	} {
		route(pattern, func(w http.ResponseWriter, r *http.Request) {
			v, err := call(r.PathValue("id"))
			reply(w, v, err)
		})
	}
}
