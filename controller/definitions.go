package controller

import (
	"cmp"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
	"go.yaml.in/yaml/v3"
)

// Bounds of definitions.
const (
	maxDefinitions = 1000
	maxSchedules   = 20
	maxActiveRuns  = 100 // of one definition; a trigger beyond is refused
	maxInputs      = 50
	maxInput       = 8 << 10 // bytes of one value that a webhook brings; the rest is cut off
)

// Definition is a stored build file with what starts it, as the operator API shows it. Times are milliseconds since
// 1970, 0 when there is none.
type Definition struct {
	Project   string     `json:"project"`
	Name      string     `json:"name"`
	Schedules []Schedule `json:"schedules,omitempty"`
	Webhook   *Webhook   `json:"webhook,omitempty"`
	Badge     string     `json:"badge,omitempty"` // public, or nothing
	CreatedAt int64      `json:"createdAt"`
	ChangedAt int64      `json:"changedAt"`
	NextAt    int64      `json:"nextAt,omitempty"`  // when a schedule starts it next
	LastRun   *LastRun   `json:"lastRun,omitempty"` // the newest that is over
	Problem   string     `json:"problem,omitempty"` // why the last schedule did not start it
}

// Schedule is a time at which a definition is started.
type Schedule struct {
	Cron     string `json:"cron" yaml:"cron"`                             // five fields, or @hourly, @daily, @weekly, @monthly, @yearly, @every 2h
	Timezone string `json:"timezone,omitempty" yaml:"timezone,omitempty"` // Europe/Berlin; that of the controller when empty
}

// Webhook is how others start a definition: POST /hooks/…, signed.
type Webhook struct {
	Secret    string            `json:"secret" yaml:"secret"`                           // name of the project's secret that signs
	Variables map[string]string `json:"variables,omitempty" yaml:"variables,omitempty"` // environment variables by name, each from a member of the body: a.b.0.c
}

// LastRun is how a definition's newest run ended.
type LastRun struct {
	Run    string `json:"run"`
	Number int64  `json:"number"`
	State  State  `json:"state"`
	At     int64  `json:"at"`
}

// triggers are the keys of a build file that say what starts it. They mean nothing to a file that is submitted.
type triggers struct {
	Schedule schedules `yaml:"schedule"`
	Webhook  *Webhook  `yaml:"webhook"`
	Badge    string    `yaml:"badge"`
}

type specFile struct {
	Spec     `yaml:",inline"`
	triggers `yaml:",inline"`
}

type jobsFile struct {
	JobsFile `yaml:",inline"`
	Triggers triggers `yaml:",inline"`
}

// schedules is a list of schedules, or one of them; each a text or a mapping.
type schedules []Schedule

// UnmarshalYAML accepts a text, a mapping with the keys cron and timezone, or a list of these.
func (s *schedules) UnmarshalYAML(node *yaml.Node) error {
	list := []*yaml.Node{node}
	if node.Kind == yaml.SequenceNode {
		list = node.Content
	}
	for _, item := range list {
		var one Schedule
		switch item.Kind {
		case yaml.ScalarNode:
			one.Cron = item.Value
		case yaml.MappingNode:
			for i := 0; i+1 < len(item.Content); i += 2 {
				key, value := item.Content[i], item.Content[i+1]
				switch key.Value {
				case "cron":
					one.Cron = value.Value
				case "timezone":
					one.Timezone = value.Value
				default:
					return fmt.Errorf("line %d: unknown key %q", key.Line, key.Value)
				}
			}
		default:
			return fmt.Errorf("line %d: a schedule must be a text, or have the keys cron and timezone", item.Line)
		}
		if _, err := one.parse(); err != nil {
			return fmt.Errorf("line %d: %w", item.Line, err)
		}
		*s = append(*s, one)
	}
	if len(*s) > maxSchedules {
		return fmt.Errorf("line %d: more than %d schedules", node.Line, maxSchedules)
	}
	return nil
}

// timetable is a schedule that has been read.
type timetable struct {
	cron.Schedule
	zone *time.Location
}

func (s Schedule) parse() (timetable, error) {
	zone := time.Local
	if s.Timezone != "" {
		var err error
		if zone, err = time.LoadLocation(s.Timezone); err != nil {
			return timetable{}, fmt.Errorf("schedule: %q is no time zone", clip(s.Timezone, 64))
		}
	}
	text := strings.TrimSpace(s.Cron)
	if len(text) > 200 || strings.Contains(text, "TZ=") {
		return timetable{}, fmt.Errorf("schedule: %q: five fields, or @daily and the like; the zone goes into timezone", clip(text, 64))
	}
	parser := cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)
	found, err := parser.Parse(text)
	if err != nil {
		return timetable{}, fmt.Errorf("schedule: %q: %w", clip(text, 64), err)
	}
	if every, ok := found.(cron.ConstantDelaySchedule); ok && every.Delay < time.Minute {
		return timetable{}, fmt.Errorf("schedule: %q: once a minute at most", clip(text, 64))
	}
	t := timetable{Schedule: found, zone: zone}
	if t.next(time.Unix(0, 0)).IsZero() {
		return timetable{}, fmt.Errorf("schedule: %q never comes", clip(text, 64))
	}
	return t, nil
}

func (t timetable) next(now time.Time) time.Time { return t.Next(now.In(t.zone)) }

type definitionKey struct{ project, name string }

// definition is the record of a definition. The exported part is stored.
type definition struct {
	Definition
	text   string   // the build file, as stored: sealed when something in it is sensitive
	uses   []string // names of the secrets that it needs, sorted; none while they are locked away in text
	tables []timetable
	retry  time.Time // not before, after the disk refused
	starts bool      // a schedule is starting it
}

var definitionName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)

// Define stores a build file with its triggers, in place of the one of the same name in the project ("" is
// DefaultProject). Errors in it are *SpecError or *InputError.
func (s *Server) Define(project, file string) (Definition, error) {
	d, sensitive, err := s.readDefinition(project, file)
	if err != nil {
		return Definition{}, err
	}
	now := time.Now()
	d.text = jsonText(file)
	if sensitive {
		sealed, err := s.vault.seal("definition/"+d.Project+"/"+d.Name, []byte(file))
		if err != nil {
			return Definition{}, err
		}
		d.text = jsonText(sealedRun{Sealed: sealed})
	}
	d.CreatedAt, d.ChangedAt = millis(now), millis(now)
	d.plan(now)
	key := definitionKey{d.Project, d.Name}
	s.mu.Lock()
	old := s.definitions[key]
	switch {
	case old != nil:
		d.CreatedAt, d.LastRun = old.CreatedAt, old.LastRun
	case len(s.definitions) >= maxDefinitions:
		s.mu.Unlock()
		return Definition{}, &InputError{Err: fmt.Errorf("there are %d definitions already", maxDefinitions)}
	}
	t := s.store.enqueue(d.write(), nil)
	s.mu.Unlock()
	if err := t.wait(); err != nil {
		return Definition{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.definitions[key] = d
	s.log.Info("Definition stored", "project", d.Project, "name", d.Name)
	return d.Definition, nil
}

// readDefinition checks a build file with triggers, and makes everything of it that a run would.
func (s *Server) readDefinition(project, file string) (d *definition, sensitive bool, err error) {
	if project == "" {
		project = DefaultProject
	}
	if !label.MatchString(project) {
		return nil, false, &InputError{Err: fmt.Errorf("project %q: letters, digits, _ and - only", clip(project, 64))}
	}
	in := NewRun{Project: project, File: file}
	name, found, err := readTriggers([]byte(file))
	if err != nil {
		return nil, false, &SpecError{Err: err}
	}
	if !definitionName.MatchString(name) {
		return nil, false, &SpecError{Err: fmt.Errorf("name %q: a definition needs one of letters, digits and _.- only", clip(name, 64))}
	}
	if found.Webhook != nil {
		if err := found.Webhook.check(); err != nil {
			return nil, false, &SpecError{Err: err}
		}
		in.Inputs = make(map[string]string)
		for name := range found.Webhook.Variables {
			in.Inputs[name] = ""
		}
	}
	if found.Badge != "" && found.Badge != "public" {
		return nil, false, &SpecError{Err: fmt.Errorf("badge: %q: public, or nothing", clip(found.Badge, 64))}
	}
	_, cells, err := in.cells()
	if err != nil {
		return nil, false, &SpecError{Err: err}
	}
	var uses []string
	if found.Webhook != nil {
		uses = append(uses, found.Webhook.Secret)
	}
	for _, c := range cells {
		uses = append(uses, c.spec.Secrets...)
		sensitive = sensitive || slices.ContainsFunc(slices.Collect(maps.Values(c.spec.Variables)), func(v Variable) bool { return v.Sensitive })
	}
	slices.Sort(uses)
	d = &definition{Definition: Definition{Project: project, Name: name, Schedules: found.Schedule, Webhook: found.Webhook, Badge: found.Badge}, uses: slices.Compact(uses)}
	return d, sensitive, d.read()
}

// readTriggers reads the name and the triggers of a build file.
func readTriggers(data []byte) (name string, found triggers, err error) {
	if HasJobs(data) {
		_, found, err = parseJobsFile(data)
		if err != nil {
			return "", found, err
		}
		f, err := parseJobs(data)
		if err != nil {
			return "", found, err
		}
		return strings.TrimSpace(f.Name), found, nil
	}
	f, err := parseSpecFile(data)
	return strings.TrimSpace(f.Name), f.triggers, err
}

// read parses the schedules.
func (d *definition) read() error {
	d.tables = nil
	for _, one := range d.Schedules {
		table, err := one.parse()
		if err != nil {
			return err
		}
		d.tables = append(d.tables, table)
	}
	return nil
}

// plan sets when a schedule comes next.
func (d *definition) plan(now time.Time) {
	d.NextAt = 0
	if at := d.nextAfter(now); !at.IsZero() {
		d.NextAt = millis(at)
	}
}

// write stores the definition as it is now.
func (d *definition) write() func(*sql.Tx) error {
	project, name, text, doc := d.Project, d.Name, d.text, jsonText(d.Definition)
	return func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT INTO definition (project, name, spec, doc) VALUES (?, ?, ?, ?)
			ON CONFLICT (project, name) DO UPDATE SET spec = excluded.spec, doc = excluded.doc`, project, name, text, doc)
		return err
	}
}

// update stores what changed, unless another file has taken the definition's place.
func (d *definition) update() func(*sql.Tx) error {
	project, name, changed, doc := d.Project, d.Name, d.ChangedAt, jsonText(d.Definition)
	return func(tx *sql.Tx) error {
		_, err := tx.Exec(`UPDATE definition SET doc = ? WHERE project = ? AND name = ? AND json_extract(doc, '$.changedAt') = ?`, doc, project, name, changed)
		return err
	}
}

func (s *Server) loadDefinitions() error {
	s.definitions = make(map[definitionKey]*definition)
	return s.store.each(func(scan func(...any) error) error {
		d := new(definition)
		var doc string
		if err := scan(&d.text, &doc); err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(doc), &d.Definition); err != nil {
			return err
		}
		if err := d.read(); err != nil { // a time zone that this machine does not know any more
			d.Problem, d.NextAt = err.Error(), 0
		}
		if text, err := s.file(d); err == nil {
			if again, _, err := s.readDefinition(d.Project, text); err == nil {
				d.uses = again.uses
			}
		}
		s.definitions[definitionKey{d.Project, d.Name}] = d
		return nil
	}, `SELECT spec, doc FROM definition`)
}

// file is the build file of a definition.
func (s *Server) file(d *definition) (string, error) {
	var stored sealedRun
	if json.Unmarshal([]byte(d.text), &stored) == nil && stored.Sealed != "" {
		plain, err := s.vault.open("definition/"+d.Project+"/"+d.Name, stored.Sealed)
		return string(plain), err
	}
	var file string
	err := json.Unmarshal([]byte(d.text), &file)
	return file, err
}

func (s *Server) findDefinition(project, name string) (*definition, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.definitions[definitionKey{cmp.Or(project, DefaultProject), name}]
	if d == nil {
		return nil, fmt.Errorf("definition %q: %w", clip(name, 64), ErrNotFound)
	}
	return d, nil
}

// FindDefinition returns a definition of a project, ErrNotFound when there is none.
func (s *Server) FindDefinition(project, name string) (Definition, error) {
	d, err := s.findDefinition(project, name)
	if err != nil {
		return Definition{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return d.Definition, nil
}

// Definitions lists all definitions.
func (s *Server) Definitions() []Definition {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Definition, 0, len(s.definitions))
	for _, d := range s.definitions {
		list = append(list, d.Definition)
	}
	slices.SortFunc(list, func(a, b Definition) int {
		return cmp.Or(cmp.Compare(a.Project, b.Project), cmp.Compare(a.Name, b.Name))
	})
	return list
}

// Undefine forgets a definition; its runs stay.
func (s *Server) Undefine(project, name string) error {
	d, err := s.findDefinition(project, name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	t := s.store.enqueue(func(tx *sql.Tx) error {
		_, err := tx.Exec(`DELETE FROM definition WHERE project = ? AND name = ?`, d.Project, d.Name)
		return err
	}, nil)
	s.mu.Unlock()
	if err := t.wait(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if key := (definitionKey{d.Project, d.Name}); s.definitions[key] == d {
		delete(s.definitions, key)
	}
	return nil
}

// CrowdError says that a definition has too many runs that are not over.
type CrowdError struct{ Name string }

// Error names the definition.
func (e *CrowdError) Error() string {
	return fmt.Sprintf("definition %s has %d runs that are not over", e.Name, maxActiveRuns)
}

// Hint says what to do about it.
func (e *CrowdError) Hint() string {
	return "wait until some are over, or cancel them: devopsController runs, runs cancel ID"
}

// Trigger starts a definition. What starts it is "operator", "schedule" or "webhook"; also is done in the transaction
// that makes the run.
func (s *Server) trigger(d *definition, in NewRun, by string, also func(*sql.Tx, Run) error) (Run, error) {
	file, err := s.file(d)
	if err != nil {
		return Run{}, err
	}
	s.mu.Lock()
	active := 0
	for _, r := range s.runs {
		if r.Definition == d.Name && r.Project == d.Project && !r.State.Over() {
			active++
		}
	}
	s.mu.Unlock()
	if active >= maxActiveRuns {
		return Run{}, &CrowdError{Name: d.Name}
	}
	in.Project, in.File = d.Project, file
	if d.Webhook != nil {
		inputs := make(map[string]string)
		for name := range d.Webhook.Variables {
			inputs[name] = in.Inputs[name]
		}
		in.Inputs = inputs
	}
	return s.submitRun(in, origin{definition: d.Name, trigger: by, also: also})
}

// Trigger starts a definition by hand. Inputs that its webhook does not know are dropped.
func (s *Server) Trigger(project, name string, in NewRun) (Run, error) {
	d, err := s.findDefinition(project, name)
	if err != nil {
		return Run{}, err
	}
	return s.trigger(d, in, "operator", nil)
}

// due returns the definitions whose time has come. A time that passed while nobody looked counts once.
func (s *Server) due(now time.Time) (list []*definition) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.definitions {
		if d.NextAt != 0 && millis(now) >= d.NextAt && !d.starts && !now.Before(d.retry) {
			d.starts = true
			list = append(list, d)
		}
	}
	return list
}

// startDue starts what is due. The run and the next time are on disk together, so that a controller that is killed
// starts it once.
func (s *Server) startDue(now time.Time) {
	s.replan(now)
	for _, d := range s.due(now) {
		s.mu.Lock()
		next := *d
		s.mu.Unlock()
		next.plan(now)
		next.Problem = ""
		if s.scheduled(d) {
			next.Problem = "the run that the schedule started before is not over"
		} else {
			_, err := s.trigger(d, NewRun{}, "schedule", func(tx *sql.Tx, _ Run) error { return next.update()(tx) })
			var input *InputError
			var spec *SpecError
			var locked *KeyError
			var crowd *CrowdError
			switch {
			case errors.As(err, &input), errors.As(err, &spec), errors.As(err, &locked), errors.As(err, &crowd):
				next.Problem = err.Error()
			case err != nil:
				s.unwritten("A scheduled run could not be written", err, "definition", d.Name)
				s.mu.Lock()
				d.retry, d.starts = now.Add(time.Minute), false
				s.mu.Unlock()
				continue
			}
		}
		if next.Problem != "" {
			s.log.Warn("A scheduled run did not start", "definition", d.Name, "why", next.Problem)
		}
		s.mu.Lock()
		d.NextAt, d.Problem, d.starts = next.NextAt, next.Problem, false
		s.store.enqueue(d.update(), nil)
		s.mu.Unlock()
	}
}

// scheduled reports whether a run that a schedule started is not over.
func (s *Server) scheduled(d *definition) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.runs {
		if r.Definition == d.Name && r.Project == d.Project && r.Trigger == "schedule" && !r.State.Over() {
			return true
		}
	}
	return false
}

// noteEnd remembers how the newest run of a definition ended.
func (s *Server) noteEnd(r *run) {
	d := s.definitions[definitionKey{r.Project, r.Definition}]
	if r.Definition == "" || d == nil || d.LastRun != nil && d.LastRun.Number > r.Number {
		return
	}
	d.LastRun = &LastRun{Run: r.ID, Number: r.Number, State: r.State, At: r.FinishedAt}
	s.store.enqueue(d.update(), nil)
}

// definitionRoutes adds the calls about definitions.
func (s *Server) definitionRoutes(route func(pattern string, h http.HandlerFunc)) {
	project := func(r *http.Request) string { return r.URL.Query().Get("project") }
	route("GET /definitions", func(w http.ResponseWriter, _ *http.Request) { reply(w, s.Definitions(), nil) })
	type newDefinition struct {
		Project string `json:"project"`
		File    string `json:"file"`
	}
	route("POST /definitions", act(func(_ *http.Request, in newDefinition) (Definition, error) { return s.Define(in.Project, in.File) }))
	route("GET /definitions/{name}", func(w http.ResponseWriter, r *http.Request) {
		d, err := s.FindDefinition(project(r), r.PathValue("name"))
		reply(w, d, err)
	})
	route("DELETE /definitions/{name}", func(w http.ResponseWriter, r *http.Request) {
		reply(w, struct{}{}, s.Undefine(project(r), r.PathValue("name")))
	})
	type started struct {
		Variables map[string]Variable `json:"variables"`
		Inputs    map[string]string   `json:"inputs"`
	}
	route("POST /definitions/{name}/trigger", act(func(r *http.Request, in started) (Run, error) {
		return s.Trigger(project(r), r.PathValue("name"), NewRun{Variables: in.Variables, Inputs: in.Inputs})
	}))
}
