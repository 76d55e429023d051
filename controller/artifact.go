package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// Bounds of artifacts in a build file.
const (
	maxArtifacts       = 50      // of one job, and downloads of one job
	maxArtifactPaths   = 100     // of one artifact
	maxArtifactEntries = 100_000 // files, folders and links of one artifact
	maxGets            = 20_000  // artifacts that the builds of one file get
)

// When an artifact is saved: after steps that succeeded, that did not, or both.
const (
	OnSuccess = "on_success"
	OnFailure = "on_failure"
	Always    = "always"
)

// artifactsDir is where downloads go that name no path, below the workspace.
const artifactsDir = "artifacts"

// ArtifactSpec is what a build file says of an artifact.
type ArtifactSpec struct {
	Name     string  `json:"name" yaml:"name"`
	Paths    globs   `json:"paths" yaml:"paths"`                           // a text or a list; below the workspace, with * ? [a-z] and **
	Exclude  globs   `json:"exclude,omitempty" yaml:"exclude,omitempty"`   // what of it is left out
	Keep     KeepFor `json:"keep,omitempty" yaml:"keep,omitempty"`         // 0 is as long as the controller keeps artifacts
	Optional bool    `json:"optional,omitempty" yaml:"optional,omitempty"` // paths may match nothing
	When     string  `json:"when,omitempty" yaml:"when,omitempty"`         // OnSuccess unless given
}

// Download is what a job gets of the jobs that it needs.
type Download struct {
	From string `json:"from,omitempty" yaml:"from"` // a job in needs; "" is all of them
	Name string `json:"name,omitempty" yaml:"name"` // of the artifact; "" is all of them
	Path string `json:"path,omitempty" yaml:"path"` // folder below the workspace; "" is artifactsDir
}

// Artifact is an artifact that a build has saved.
type Artifact struct {
	Name      string `json:"name"`
	SHA256    string `json:"sha256"`              // of the archive, a gzip'ed tar
	Size      int64  `json:"size"`                // of the archive, in bytes
	Bytes     int64  `json:"bytes"`               // of its files
	Entries   int    `json:"entries"`             // files, folders and links
	SavedAt   int64  `json:"savedAt"`             // milliseconds since 1970
	ExpiresAt int64  `json:"expiresAt,omitempty"` // by the build file; the controller may remove it sooner, or with the build
	Gone      bool   `json:"gone,omitempty"`      // it was removed
}

// globs is a list of patterns, or one of them as a text.
type globs []string

// UnmarshalYAML accepts a text or a list of texts.
func (g *globs) UnmarshalYAML(node *yaml.Node) error {
	var list names
	if err := list.UnmarshalYAML(node); err != nil {
		return err
	}
	*g = list.texts()
	return nil
}

// downloads is a list of downloads, or one of them; each a mapping, or the name of a job.
type downloads []Download

// UnmarshalYAML accepts them all.
func (d *downloads) UnmarshalYAML(node *yaml.Node) error {
	list := []*yaml.Node{node}
	if node.Kind == yaml.SequenceNode {
		list = node.Content
	}
	for _, item := range list {
		switch item.Kind {
		case yaml.ScalarNode:
			*d = append(*d, Download{From: item.Value})
		case yaml.MappingNode:
			var one Download
			for i := 0; i < len(item.Content); i += 2 {
				key, value := item.Content[i], item.Content[i+1]
				to := map[string]*string{"from": &one.From, "name": &one.Name, "path": &one.Path}[key.Value]
				if to == nil {
					return fmt.Errorf("line %d: unknown key %q", key.Line, key.Value)
				}
				if value.Kind != yaml.ScalarNode {
					return fmt.Errorf("line %d: download: %s must be a text", value.Line, key.Value)
				}
				*to = value.Value
			}
			*d = append(*d, one)
		default:
			return fmt.Errorf("line %d: download: the name of a job, or from, name and path", item.Line)
		}
	}
	return nil
}

// KeepFor is how long something is kept: "7d", "12h", "1d12h", "2w".
type KeepFor time.Duration

// maxKeep bounds what can be asked for.
const maxKeep = 3650 * 24 * time.Hour

// ParseKeepFor reads such a time.
func ParseKeepFor(text string) (KeepFor, error) {
	bad := fmt.Errorf("%q: write 7d, 12h, 1d12h or 2w", clip(text, 40))
	rest, sum := text, time.Duration(0)
	for _, u := range []struct {
		name string
		each time.Duration
	}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}} {
		number, after, found := strings.Cut(rest, u.name)
		if !found {
			continue
		}
		n := 0
		for _, c := range number {
			if c < '0' || c > '9' || n > 10_000 {
				return 0, bad
			}
			n = 10*n + int(c-'0')
		}
		if number == "" {
			return 0, bad
		}
		rest, sum = after, sum+time.Duration(n)*u.each
	}
	if rest != "" {
		part, err := time.ParseDuration(rest)
		if err != nil || part < 0 {
			return 0, bad
		}
		sum += min(part, maxKeep)
	}
	if sum <= 0 || sum > maxKeep {
		return 0, bad
	}
	return KeepFor(sum), nil
}

// UnmarshalYAML accepts what ParseKeepFor does.
func (k *KeepFor) UnmarshalYAML(node *yaml.Node) (err error) {
	if *k, err = ParseKeepFor(node.Value); err != nil {
		return fmt.Errorf("line %d: keep: %w", node.Line, err)
	}
	return nil
}

// UnmarshalJSON accepts a text as ParseKeepFor does.
func (k *KeepFor) UnmarshalJSON(data []byte) (err error) {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return err
	}
	*k, err = ParseKeepFor(text)
	return err
}

// MarshalJSON writes "168h0m0s".
func (k KeepFor) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(k).String()) }

// MarshalYAML writes 168h0m0s.
func (k KeepFor) MarshalYAML() (any, error) { return time.Duration(k).String(), nil }

// artifactName is also the name of a folder, on every system.
var artifactName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,98}[A-Za-z0-9_-])?$`)

// checkArtifacts looks at what a build saves and gets.
func (s *Spec) checkArtifacts() error {
	if len(s.Artifacts) > maxArtifacts || len(s.Download) > maxArtifacts {
		return fmt.Errorf("more than %d artifacts, or downloads", maxArtifacts)
	}
	for i := range s.Artifacts {
		a := &s.Artifacts[i]
		switch {
		case !artifactName.MatchString(a.Name):
			return fmt.Errorf("artifact %q: a name of letters, digits and _.- please", clip(a.Name, 100))
		case slices.ContainsFunc(s.Artifacts[:i], func(other ArtifactSpec) bool { return strings.EqualFold(other.Name, a.Name) }):
			return fmt.Errorf("artifact %s is there twice", a.Name)
		case len(a.Paths) == 0 || len(a.Paths)+len(a.Exclude) > maxArtifactPaths:
			return fmt.Errorf("artifact %s: paths: between 1 and %d of them", a.Name, maxArtifactPaths)
		case a.When != "" && a.When != OnSuccess && a.When != OnFailure && a.When != Always:
			return fmt.Errorf("artifact %s: when: %s, %s or %s", a.Name, OnSuccess, OnFailure, Always)
		}
		for _, p := range slices.Concat(a.Paths, a.Exclude) {
			if err := checkGlob(p); err != nil {
				return fmt.Errorf("artifact %s: path %q: %w", a.Name, clip(p, 200), err)
			}
		}
	}
	for _, d := range s.Download {
		if d.Path != "" && !localPath(d.Path) {
			return fmt.Errorf("download: path %q: it must be a folder below the workspace, with / between folders", clip(d.Path, 200))
		}
	}
	return nil
}

// localPath reports whether a path with slashes stays below the workspace on every system.
func localPath(p string) bool {
	return checkText("", p, 1000) == nil && !strings.HasPrefix(p, "/") && !strings.ContainsAny(p, `\:*?"<>|`) &&
		!strings.Contains(p, "${{") && !slices.Contains(strings.Split(p, "/"), "..")
}

// checkGlob is the rule that workers have for patterns.
func checkGlob(p string) error {
	switch {
	case p == "" || checkText("", p, 1000) != nil:
		return errors.New("one line of at most 1000 bytes, please")
	case strings.Contains(p, "${{"):
		return errors.New("only ${{ matrix.NAME }} of this job can be used here")
	case strings.HasPrefix(p, "/") || strings.Contains(p, `\`):
		return errors.New("it must be below the workspace, with / between folders")
	case strings.HasPrefix(p, "!"):
		return errors.New("write what is to be left out into exclude")
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return errors.New("it leads out of the workspace")
		}
		if _, err := path.Match(part, ""); err != nil {
			return errors.New("a [ in it has no end")
		}
	}
	return nil
}

// fillArtifacts fills the values of a matrix into what a job saves and gets.
func fillArtifacts(job Job, fill func(string) string) (saves []ArtifactSpec, gets []Download) {
	all := func(list []string) (filled globs) {
		for _, p := range list {
			filled = append(filled, fill(p))
		}
		return filled
	}
	for _, a := range job.Artifacts {
		a.Name, a.Paths, a.Exclude = fill(a.Name), all(a.Paths), all(a.Exclude)
		saves = append(saves, a)
	}
	for _, d := range job.Download {
		d.Name, d.Path = fill(d.Name), fill(d.Path)
		gets = append(gets, d)
	}
	return saves, gets
}

// checkDownloads settles what each cell gets. It refuses downloads of jobs that a job does not wait for, of artifacts that nobody saves, and two of them
// that would be in each other's way.
func (f *JobsFile) checkDownloads(cells []cell) error {
	all := 0
	for i := range cells {
		c := &cells[i]
		for _, d := range c.spec.Download {
			if d.From != "" && !slices.Contains(c.needs, d.From) {
				return fmt.Errorf("line %d: job %s: download: %s is not in needs", f.lines[c.job], c.job, clip(d.From, 64))
			}
		}
		taken := make(map[string]bool) // folder: may it be shared?
		wants, err := c.wanted(cells)
		if err != nil {
			return fmt.Errorf("line %d: job %s: %w", f.lines[c.job], c.job, err)
		}
		if all += len(wants); all > maxGets {
			return fmt.Errorf("line %d: job %s: download: more than %d artifacts in one file", f.lines[c.job], c.job, maxGets)
		}
		for _, w := range wants {
			c.wants = append(c.wants, buildWant{Source: w.source, Name: w.spec.Name, Dir: w.dir, Replace: w.replace, Optional: w.spec.Optional, When: w.spec.When})
			key := strings.ToLower(w.dir)
			if _, twice := taken[key]; twice && (w.replace || w.cell) {
				return fmt.Errorf("line %d: job %s: download: two artifacts would be put into %s", f.lines[c.job], c.job, w.dir)
			}
			taken[key] = w.replace
		}
		for dir := range taken {
			for above := path.Dir(dir); above != "."; above = path.Dir(above) {
				if replace, there := taken[above]; there && replace {
					return fmt.Errorf("line %d: job %s: download: one artifact would be put into %s, and another into %s", f.lines[c.job], c.job, above, dir)
				}
			}
		}
	}
	return nil
}

// want is an artifact that a cell is to get.
type want struct {
	source  int // index of the cell that saves it
	spec    ArtifactSpec
	dir     string // below the workspace
	replace bool
	cell    bool // the folder of its cell is part of dir
}

// wanted says what a cell gets of the others, and where it goes: PATH/JOB/CELL/NAME. With a path of its own, JOB is left
// out when the download names the job, and NAME when it names the artifact. CELL is there when several cells of a matrix
// save an artifact of that name.
func (c *cell) wanted(cells []cell) ([]want, error) {
	var list []want
	for _, d := range c.spec.Download {
		before := len(list)
		count := make(map[[2]string]int) // cells of a job that save an artifact of a name
		for _, source := range cells {
			for _, a := range source.spec.Artifacts {
				count[[2]string{source.job, a.Name}]++
			}
		}
		for n, source := range cells {
			if d.From != "" && source.job != d.From || !slices.Contains(c.needs, source.job) {
				continue
			}
			for _, a := range source.spec.Artifacts {
				if d.Name != "" && a.Name != d.Name {
					continue
				}
				w := want{source: n, spec: a, replace: d.Path == "", cell: count[[2]string{source.job, a.Name}] > 1}
				parts := []string{d.Path}
				if d.Path == "" {
					parts[0] = artifactsDir
				}
				if d.Path == "" || d.From == "" {
					parts = append(parts, source.job)
				}
				if w.cell {
					parts = append(parts, cellFolder(source))
				}
				if d.Path == "" || d.Name == "" {
					parts = append(parts, a.Name)
				}
				w.dir = path.Join(parts...)
				list = append(list, w)
			}
		}
		if len(list) == before {
			return nil, fmt.Errorf("download: %s", d.nothing())
		}
	}
	return list, nil
}

func (d Download) nothing() string {
	what, who := "an artifact", "no job in needs"
	if d.Name != "" {
		what = "an artifact " + clip(d.Name, 100)
	}
	if d.From != "" {
		return fmt.Sprintf("job %s saves no artifact %s", clip(d.From, 64), clip(d.Name, 100))
	}
	return who + " saves " + what
}

var notInFolder = regexp.MustCompile(`[^A-Za-z0-9._-]`)

// cellFolder is the values of a cell as the name of a folder: linux-1.26.
func cellFolder(c cell) string {
	name := strings.Trim(clip(notInFolder.ReplaceAllString(strings.Join(c.values, "-"), "_"), 100), ".")
	if name == "" {
		return "_"
	}
	return name
}

// buildWant is an artifact that a build of a run is to get, as it is stored.
type buildWant struct {
	Source   int    `json:"source"` // index of the job in the run
	Name     string `json:"name"`
	Dir      string `json:"dir"`
	Replace  bool   `json:"replace,omitempty"`
	Optional bool   `json:"optional,omitempty"`
	When     string `json:"when,omitempty"`
}

// takeArtifacts settles what a build gets, now that all the jobs that it needs are over. An artifact that is not there is
// an error, unless it could be foreseen: it is optional, or its job did not succeed, or did and saves it only if not.
func (r *run) takeArtifacts(b *build) error {
	b.Inputs, b.NoInputs = nil, nil
	for _, w := range b.Wants {
		if w.Source < 0 || w.Source >= len(r.Jobs) {
			return errors.New("its record is damaged") // another program's
		}
		source := r.builds[w.Source]
		title := w.Name + " of job " + r.title(&r.Jobs[w.Source])
		saved, state := -1, r.state(w.Source)
		if source != nil {
			saved = slices.IndexFunc(source.Artifacts, func(a Artifact) bool { return a.Name == w.Name && !a.Gone })
		}
		switch {
		case saved >= 0:
			a := source.Artifacts[saved]
			b.Inputs = append(b.Inputs, wire.ArtifactItem{Title: title, SHA256: a.SHA256, Size: a.Size, Bytes: a.Bytes, Entries: a.Entries, Dir: w.Dir, Replace: w.Replace})
		case source != nil && (w.Optional || state != Succeeded || w.When == OnFailure):
			b.NoInputs = append(b.NoInputs, "artifact "+title+", which is "+string(state)+", was not saved")
		default:
			return fmt.Errorf("artifact %s is gone", title)
		}
	}
	return nil
}

// step is what b.Steps[i] does: one of the build file, or saving or getting artifacts, of which the build file has no
// step. Getting comes first, saving last.
func (b *build) step(i int) (step *Step, save *ArtifactSpec) {
	if len(b.spec.Download) > 0 {
		i--
	}
	switch n := len(b.spec.Steps); {
	case i >= 0 && i < n:
		return &b.spec.Steps[i], nil
	case i >= n && i-n < len(b.spec.Artifacts):
		return &Step{}, &b.spec.Artifacts[i-n]
	}
	return &Step{}, nil
}

// Steps of a build that save and get artifacts.
const (
	stepGet  = "get"
	stepSave = "save"
)

// states makes the steps of a build: those of the file, and what is to be done about artifacts.
func (s *Spec) states() []StepState {
	var list []StepState
	add := func(id, name, artifact string) {
		list = append(list, StepState{ID: id, Task: "e-" + randomHex(16), Name: name, State: Pending, Artifact: artifact})
	}
	if len(s.Download) > 0 {
		add("get-artifacts", "get artifacts", stepGet)
	}
	for _, step := range s.Steps {
		add(step.ID, step.Name, "")
	}
	for _, a := range s.Artifacts {
		add("save-"+a.Name, "save artifact "+a.Name, stepSave)
	}
	return list
}

// next is the index of the step to be done now, one that runs before one that is pending; -1 when there is none. What is
// saved only after a failure is skipped when there was none.
func (b *build) next() int {
	if i := slices.IndexFunc(b.Steps, func(s StepState) bool { return s.State == Running }); i >= 0 {
		return i
	}
	for i := range b.Steps {
		if b.Steps[i].State != Pending {
			continue
		}
		if _, save := b.step(i); save != nil && save.When == OnFailure && !b.failed() {
			b.Steps[i].State = Skipped
			continue
		}
		return i
	}
	return -1
}

// failed reports whether a step failed that was not allowed to.
func (b *build) failed() bool {
	for i := range b.Steps {
		if step, _ := b.step(i); b.Steps[i].State == Failed && !step.ContinueWhenFailed {
			return true
		}
	}
	return false
}

// stays reports whether a step is still to be done after another one has failed.
func (b *build) stays(i int) bool {
	_, save := b.step(i)
	return save != nil && (save.When == OnFailure || save.When == Always)
}

// artifactTask makes a task of a step about artifacts, nil of others.
func (s *Server) artifactTask(b *build, i int) (kind string, params map[string]string) {
	state := &b.Steps[i]
	var what any
	switch state.Artifact {
	case stepGet:
		kind, what = wire.TaskArtifactGet, wire.ArtifactGet{Items: b.Inputs, Missing: b.NoInputs}
	case stepSave:
		_, save := b.step(i)
		if save == nil {
			return "", nil
		}
		kind, what = wire.TaskArtifactSave, wire.ArtifactSave{Name: save.Name, Paths: save.Paths, Exclude: save.Exclude, Optional: save.Optional,
			MaxBytes: s.opts.ArtifactBytes, MaxEntries: maxArtifactEntries}
	default:
		return "", nil
	}
	return kind, map[string]string{"id": state.Task, "name": state.Name, "stepId": state.ID, "version": "1.0", wire.ParamArtifact: jsonText(what),
		"additionalOptions": jsonText(map[string]any{"enable": true, "continueWhenFailed": false, "retryWhenFailed": false, "timeout": 0})}
}

// withoutArtifacts fails the steps about artifacts that are next, for a worker that does not know such tasks: it never
// sees them.
func (b *build) withoutArtifacts(now time.Time) {
	for i := b.next(); i >= 0 && b.Steps[i].Artifact != ""; i = b.next() {
		why := "the worker of this machine cannot handle artifacts: it needs the native one, devopsWorker"
		user, code := wire.ErrorUser, wire.CodeInvalidInput
		b.complete(wire.TaskResult{TaskID: b.Steps[i].Task, Message: &why, ErrorType: &user, ErrorCode: &code}, now)
	}
}
