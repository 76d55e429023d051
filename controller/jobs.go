package controller

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Bounds of a build file with several jobs.
const (
	maxCells    = 256      // builds of one run, cells of all matrices together
	maxRunBytes = 16 << 20 // of the specs of a run's builds together
)

// JobsFile is a build file with several jobs. Each job becomes a build, or one for every cell of its matrix.
type JobsFile struct {
	Name      string              `yaml:"name"`
	Labels    []string            `yaml:"labels"`    // of all jobs, before their own
	Variables map[string]Variable `yaml:"variables"` // of all jobs; their own come before these
	Secrets   []string            `yaml:"secrets"`   // of all jobs, besides their own
	Timeout   Duration            `yaml:"timeout"`   // of each job that has none
	Jobs      map[string]Job      `yaml:"jobs"`

	order []string       // of the jobs in the file
	lines map[string]int // of each job
}

// Job is one job of a build file: what a build of its own has, and what it waits for.
type Job struct {
	Needs     names               `yaml:"needs"`  // jobs that must be over before; a text or a list
	Always    bool                `yaml:"always"` // run also when one of them did not succeed
	Matrix    matrix              `yaml:"matrix"`
	Labels    []string            `yaml:"labels"`
	Variables map[string]Variable `yaml:"variables"`
	Secrets   []string            `yaml:"secrets"`
	Timeout   Duration            `yaml:"timeout"`
	Workspace string              `yaml:"workspace"`
	Download  downloads           `yaml:"download"` // artifacts of jobs that it needs
	Steps     []Step              `yaml:"steps"`
	Artifacts []ArtifactSpec      `yaml:"artifacts"`
}

// cell is one build to be: a job with one value for each axis of its matrix.
type cell struct {
	job    string
	needs  []string
	always bool
	matrix map[string]string
	values []string // of matrix, in the order of the file
	spec   Spec
	wants  []buildWant
}

// names is a list of names, or one of them as a text.
type names []name

type name struct {
	text string
	line int
}

// UnmarshalYAML accepts a text or a list of texts.
func (n *names) UnmarshalYAML(node *yaml.Node) error {
	list := []*yaml.Node{node}
	if node.Kind == yaml.SequenceNode {
		list = node.Content
	}
	for _, item := range list {
		if item.Kind != yaml.ScalarNode {
			return fmt.Errorf("line %d: a name, or a list of names, please", item.Line)
		}
		*n = append(*n, name{text: item.Value, line: item.Line})
	}
	return nil
}

func (n names) texts() []string {
	list := make([]string, 0, len(n))
	for _, it := range n {
		if !slices.Contains(list, it.text) {
			list = append(list, it.text)
		}
	}
	return list
}

// matrix is the axes of a matrix in the order of the file.
type matrix []axis

type axis struct {
	name   string
	values []string
	line   int
}

// UnmarshalYAML accepts a mapping of names to lists of texts or numbers, which are texts as written.
func (m *matrix) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: a matrix must be a mapping of names to lists", node.Line)
	}
	for i := 0; i < len(node.Content); i += 2 {
		key, list := node.Content[i], node.Content[i+1]
		a := axis{name: key.Value, line: key.Line}
		if !stepID.MatchString(a.name) {
			return fmt.Errorf("line %d: matrix: %q: letters, digits, _ and - only", key.Line, clip(a.name, 64))
		}
		if slices.ContainsFunc(*m, func(other axis) bool { return other.name == a.name }) {
			return fmt.Errorf("line %d: matrix: %s is there twice", key.Line, a.name)
		}
		if list.Kind != yaml.SequenceNode || len(list.Content) == 0 {
			return fmt.Errorf("line %d: matrix: %s must be a list of values", list.Line, a.name)
		}
		for _, item := range list.Content {
			if item.Kind != yaml.ScalarNode || item.Tag == "!!null" {
				return fmt.Errorf("line %d: matrix: %s: a value must be a text or a number", item.Line, a.name)
			}
			if err := checkText("matrix: "+a.name, item.Value, 100); err != nil {
				return fmt.Errorf("line %d: %w", item.Line, err)
			}
			if slices.Contains(a.values, item.Value) {
				return fmt.Errorf("line %d: matrix: %s has %q twice", item.Line, a.name, item.Value)
			}
			a.values = append(a.values, item.Value)
		}
		*m = append(*m, a)
	}
	return nil
}

// size is the number of cells, at most maxCells+1.
func (m matrix) size() int {
	n := 1
	for _, a := range m {
		if n *= len(a.values); n > maxCells {
			return maxCells + 1
		}
	}
	return n
}

// cell returns the i-th combination; the last axis changes fastest.
func (m matrix) cell(i int) map[string]string {
	if len(m) == 0 {
		return nil
	}
	values := make(map[string]string, len(m))
	for _, a := range slices.Backward(m) {
		values[a.name] = a.values[i%len(a.values)]
		i /= len(a.values)
	}
	return values
}

// title is the values of a cell as part of a name.
func (m matrix) title(values map[string]string) string {
	if len(m) == 0 {
		return ""
	}
	list := make([]string, 0, len(m))
	for _, a := range m {
		list = append(list, values[a.name])
	}
	return " (" + strings.Join(list, ", ") + ")"
}

// HasJobs reports whether a build file has several jobs: the key jobs. It says nothing about whether the file is right.
func HasJobs(data []byte) bool {
	var root yaml.Node
	if len(data) > maxSpec || yaml.Unmarshal(data, &root) != nil {
		return false
	}
	_, value := mappingKey(&root, "jobs")
	return value != nil
}

// mappingKey finds a key of a mapping and its value.
func mappingKey(node *yaml.Node, key string) (at, value *yaml.Node) {
	if node == nil {
		return nil, nil
	}
	if node.Kind == yaml.DocumentNode && len(node.Content) == 1 {
		node = node.Content[0]
	}
	if node.Kind != yaml.MappingNode {
		return nil, nil
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		if node.Content[i].Value == key {
			return node.Content[i], node.Content[i+1]
		}
	}
	return nil, nil
}

// ParseJobs reads a build file with several jobs and checks it as a whole. Errors are *SpecError and name the line.
func ParseJobs(data []byte) (*JobsFile, error) {
	f, err := parseJobs(data)
	if err == nil {
		_, err = f.cells()
	}
	if err != nil {
		return nil, &SpecError{Err: err}
	}
	return f, nil
}

func parseJobs(data []byte) (*JobsFile, error) {
	if len(data) > maxSpec {
		return nil, fmt.Errorf("longer than %d bytes", maxSpec)
	}
	f, _, err := parseJobsFile(data)
	if err != nil {
		return nil, err
	}
	f.lines = make(map[string]int)
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil {
		return nil, plainYAML(err)
	}
	_, jobs := mappingKey(&root, "jobs")
	if jobs != nil && jobs.Kind == yaml.AliasNode {
		jobs = jobs.Alias
	}
	if jobs == nil || len(f.Jobs) == 0 {
		return nil, errors.New("no jobs in it")
	}
	for i := 0; i+1 < len(jobs.Content); i += 2 {
		key := jobs.Content[i]
		if _, known := f.Jobs[key.Value]; !known {
			return nil, fmt.Errorf("line %d: jobs: write them out instead of merging them", key.Line)
		}
		f.order = append(f.order, key.Value)
		f.lines[key.Value] = key.Line
	}
	return f, nil
}

// parseJobsFile decodes a build file with jobs and its triggers.
func parseJobsFile(data []byte) (*JobsFile, triggers, error) {
	var in jobsFile
	err := decodeFile(data, &in)
	return &in.JobsFile, in.Triggers, err
}

// decodeFile decodes the one document of a build file strictly.
func decodeFile(data []byte, into any) error {
	if len(data) > maxSpec {
		return fmt.Errorf("longer than %d bytes", maxSpec)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(into); err != nil {
		if errors.Is(err, io.EOF) {
			return errors.New("it is empty")
		}
		return plainYAML(err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return errors.New("more than one document in it")
	}
	return nil
}

// override changes what a submission may change: the name, labels of all jobs, variables, the time limit of all jobs.
// A variable that is sensitive in the file stays so.
func (f *JobsFile) override(in NewRun) {
	if in.Name != "" {
		f.Name = in.Name
	}
	f.Labels = append(slices.Clone(f.Labels), in.Labels...)
	if in.Timeout > 0 {
		f.Timeout = in.Timeout
	}
	set := func(vars map[string]Variable, key string, v Variable) {
		v.Sensitive = v.Sensitive || vars[key].Sensitive
		vars[key] = v
	}
	for key, v := range in.Variables {
		if f.Variables == nil {
			f.Variables = make(map[string]Variable)
		}
		set(f.Variables, key, v)
		for _, job := range f.Jobs {
			if _, own := job.Variables[key]; own {
				set(job.Variables, key, v)
			}
		}
	}
	if in.Timeout > 0 {
		for id, job := range f.Jobs {
			job.Timeout = in.Timeout
			f.Jobs[id] = job
		}
	}
}

// cells checks the file and makes the builds of it, in the order of the file.
func (f *JobsFile) cells() ([]cell, error) {
	f.Name = strings.TrimSpace(f.Name)
	if f.Name == "" {
		f.Name = "build"
	}
	if err := checkText("name", f.Name, 200); err != nil {
		return nil, err
	}
	if err := f.checkNeeds(); err != nil {
		return nil, err
	}
	var cells []cell
	size := 0
	for _, id := range f.order {
		job := f.Jobs[id]
		n := job.Matrix.size()
		if len(cells)+n > maxCells {
			return nil, fmt.Errorf("line %d: job %s: more than %d builds in one file", f.lines[id], id, maxCells)
		}
		for i := range n {
			c := cell{job: id, needs: job.Needs.texts(), always: job.Always, matrix: job.Matrix.cell(i)}
			for _, a := range job.Matrix {
				c.values = append(c.values, c.matrix[a.name])
			}
			c.spec = f.spec(id, job, c.matrix)
			if err := c.spec.check(); err != nil {
				return nil, fmt.Errorf("line %d: job %s: %w", f.lines[id], id, err)
			}
			if err := c.checkReferences(); err != nil {
				return nil, fmt.Errorf("line %d: job %s: %w", f.lines[id], id, err)
			}
			if size += len(jsonText(c.spec)); size > maxRunBytes {
				return nil, fmt.Errorf("line %d: job %s: the builds of the file are longer than %d bytes together", f.lines[id], id, maxRunBytes)
			}
			cells = append(cells, c)
		}
	}
	if err := f.checkDownloads(cells); err != nil {
		return nil, err
	}
	return cells, nil
}

// checkNeeds looks at the names of jobs, and refuses needs that are unknown or go round in a circle.
func (f *JobsFile) checkNeeds() error {
	for _, id := range f.order {
		if !stepID.MatchString(id) {
			return fmt.Errorf("line %d: job %q: letters, digits, _ and - only", f.lines[id], clip(id, 64))
		}
		for _, need := range f.Jobs[id].Needs {
			if _, known := f.Jobs[need.text]; !known {
				return fmt.Errorf("line %d: job %s needs %q, which is no job of this file", need.line, id, clip(need.text, 64))
			}
		}
	}
	var path []string
	done := make(map[string]bool)
	var visit func(id string) error
	visit = func(id string) error {
		if done[id] {
			return nil
		}
		path = append(path, id)
		for _, need := range f.Jobs[id].Needs {
			if i := slices.Index(path, need.text); i >= 0 {
				circle := strings.Join(append(slices.Clone(path[i:]), need.text), " needs ")
				return fmt.Errorf("line %d: jobs wait for each other: %s", need.line, circle)
			}
			if err := visit(need.text); err != nil {
				return err
			}
		}
		path, done[id] = path[:len(path)-1], true
		return nil
	}
	for _, id := range f.order {
		if err := visit(id); err != nil {
			return err
		}
	}
	return nil
}

// spec is the build of one cell. Its values are variables matrix.NAME, which the worker fills into scripts; what the
// controller itself looks at is filled in here.
func (f *JobsFile) spec(id string, job Job, values map[string]string) Spec {
	fill := func(text string) string { return fillMatrix(text, values) }
	s := Spec{Name: f.Name + "/" + id + job.Matrix.title(values), Timeout: job.Timeout, Workspace: fill(job.Workspace),
		Variables: make(map[string]Variable), Steps: slices.Clone(job.Steps)}
	if s.Timeout == 0 {
		s.Timeout = f.Timeout
	}
	for _, l := range slices.Concat(f.Labels, job.Labels) {
		if l = fill(l); !slices.Contains(s.Labels, l) {
			s.Labels = append(s.Labels, l)
		}
	}
	for _, name := range slices.Concat(f.Secrets, job.Secrets) {
		if !slices.Contains(s.Secrets, name) {
			s.Secrets = append(s.Secrets, name)
		}
	}
	maps.Copy(s.Variables, f.Variables)
	maps.Copy(s.Variables, job.Variables)
	for name, v := range s.Variables {
		v.Value = fill(v.Value)
		s.Variables[name] = v
	}
	for name, value := range values {
		s.Variables["matrix."+name] = Variable{Value: value}
	}
	s.Artifacts, s.Download = fillArtifacts(job, fill)
	for i := range s.Steps {
		s.Steps[i].Name, s.Steps[i].Shell = fill(s.Steps[i].Name), fill(s.Steps[i].Shell)
	}
	return s
}

var (
	matrixReference = regexp.MustCompile(`\$\{\{\s*matrix\.([A-Za-z0-9_-]+)\s*\}\}`)
	jobReference    = regexp.MustCompile(`\$\{\{\s*jobs\.([A-Za-z0-9_-]+)\.`)
)

// fillMatrix replaces ${{ matrix.NAME }}; what is not known stays as it is.
func fillMatrix(text string, values map[string]string) string {
	if len(values) == 0 {
		return text
	}
	return matrixReference.ReplaceAllStringFunc(text, func(found string) string {
		if value, known := values[matrixReference.FindStringSubmatch(found)[1]]; known {
			return value
		}
		return found
	})
}

// checkReferences refuses ${{ jobs.NAME.… }} of a job that this one does not wait for: it would never have a value.
func (c *cell) checkReferences() error {
	for i, step := range c.spec.Steps {
		texts := []string{step.Script}
		for _, name := range slices.Sorted(maps.Keys(step.Env)) {
			texts = append(texts, step.Env[name])
		}
		for _, text := range texts {
			for _, found := range jobReference.FindAllStringSubmatch(text, -1) {
				if found[1] != c.job && !slices.Contains(c.needs, found[1]) {
					return fmt.Errorf("step %d: it uses jobs.%s, which is not in needs", i+1, clip(found[1], 64))
				}
			}
		}
	}
	return nil
}
