package controller

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Bounds of a build file.
const (
	maxSpec   = 4 << 20 // bytes of a build file or of its JSON form
	maxSteps  = 1000
	maxScript = 1 << 20            // bytes of one script
	maxLimit  = 7 * 24 * time.Hour // of a job or a step (protocol Appendix D)
	jobLimit  = 900 * time.Minute  // when the build file names none (protocol §6.3)
)

// Spec is a build as a user writes it: a YAML file, or the same keys in JSON.
type Spec struct {
	Name      string              `json:"name" yaml:"name"`                               // builds of one name share a workspace on a machine
	Labels    []string            `json:"labels,omitempty" yaml:"labels,omitempty"`       // an agent must have them all; see AgentInfo.Labels
	Variables map[string]Variable `json:"variables,omitempty" yaml:"variables,omitempty"` // environment of all steps
	Secrets   []string            `json:"secrets,omitempty" yaml:"secrets,omitempty"`     // names of the project's secrets, which become sensitive variables
	Timeout   Duration            `json:"timeout,omitempty" yaml:"timeout,omitempty"`     // of the whole build once it runs; 0 is 15 hours
	Workspace string              `json:"workspace,omitempty" yaml:"workspace,omitempty"` // directory on the machine; "" is the agent's own choice
	Steps     []Step              `json:"steps" yaml:"steps"`
	Artifacts []ArtifactSpec      `json:"artifacts,omitempty" yaml:"artifacts,omitempty"` // saved after the steps
	Download  []Download          `json:"download,omitempty" yaml:"-"`                    // artifacts of other jobs, before the steps; in jobs of a run only
}

// Step is one script of a build.
type Step struct {
	ID                 string            `json:"id,omitempty" yaml:"id,omitempty"` // step1, step2, … unless given
	Name               string            `json:"name,omitempty" yaml:"name,omitempty"`
	Script             string            `json:"script" yaml:"script"`
	Shell              string            `json:"shell,omitempty" yaml:"shell,omitempty"` // sh, bash, … or a path; bat or powershell for Windows
	Env                map[string]string `json:"env,omitempty" yaml:"env,omitempty"`
	Timeout            Duration          `json:"timeout,omitempty" yaml:"timeout,omitempty"` // 0 means that only the build's limit counts
	ContinueWhenFailed bool              `json:"continueWhenFailed,omitempty" yaml:"continueWhenFailed,omitempty"`
}

// Variable is the value of a build variable: a text, or {value: TEXT, sensitive: true}. Sensitive values are
// masked in the log by the worker and never shown by the operator API.
type Variable struct {
	Value     string `json:"value"`
	Sensitive bool   `json:"sensitive,omitempty"`
}

// String hides a sensitive value.
func (v Variable) String() string {
	if v.Sensitive {
		return masked
	}
	return v.Value
}

// LogValue hides a sensitive value.
func (v Variable) LogValue() slog.Value { return slog.StringValue(v.String()) }

const masked = "******"

// UnmarshalYAML accepts a scalar or a mapping with the keys value and sensitive.
func (v *Variable) UnmarshalYAML(node *yaml.Node) error {
	switch node.Kind {
	case yaml.ScalarNode:
		v.Value = node.Value // the text as written: 010 stays 010
		return nil
	case yaml.MappingNode:
		for i := 0; i < len(node.Content); i += 2 {
			key, value := node.Content[i], node.Content[i+1]
			var err error
			switch key.Value {
			case "value":
				if value.Kind != yaml.ScalarNode {
					return fmt.Errorf("line %d: a variable's value must be a text", value.Line)
				}
				v.Value = value.Value
			case "sensitive":
				err = value.Decode(&v.Sensitive)
			default:
				err = fmt.Errorf("line %d: unknown key %q", key.Line, key.Value)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("line %d: a variable must be a text", node.Line)
}

// UnmarshalJSON accepts a string or an object with the members value and sensitive.
func (v *Variable) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '"' {
		return json.Unmarshal(data, &v.Value)
	}
	type plain Variable
	return strictJSON(data, (*plain)(v))
}

// Duration is a time limit: "90s", "10m", "2h", or a plain number of minutes.
type Duration time.Duration

// ParseDuration reads a time limit.
func ParseDuration(text string) (Duration, error) {
	if minutes, err := strconv.ParseUint(text, 10, 31); err == nil {
		return Duration(time.Duration(minutes) * time.Minute), nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf(`time limit %q: write 90s, 10m, 2h or a number of minutes`, text)
	}
	return Duration(d), nil
}

// UnmarshalYAML accepts what ParseDuration does.
func (d *Duration) UnmarshalYAML(node *yaml.Node) (err error) {
	if node.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: a time limit must be a text or a number", node.Line)
	}
	if *d, err = ParseDuration(node.Value); err != nil {
		return fmt.Errorf("line %d: %w", node.Line, err)
	}
	return nil
}

// UnmarshalJSON accepts what ParseDuration does, as a string or a number.
func (d *Duration) UnmarshalJSON(data []byte) (err error) {
	text := string(data)
	if len(data) > 0 && data[0] == '"' {
		if err := json.Unmarshal(data, &text); err != nil {
			return err
		}
	}
	*d, err = ParseDuration(text)
	return err
}

// MarshalJSON writes "1m30s".
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// MarshalYAML writes 1m30s.
func (d Duration) MarshalYAML() (any, error) { return time.Duration(d).String(), nil }

// SpecError says what is wrong with a build file.
type SpecError struct{ Err error }

// Error is the text of the cause, which names the line or the key.
func (e *SpecError) Error() string { return "build file: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *SpecError) Unwrap() error { return e.Err }

// Hint lists the keys.
func (e *SpecError) Hint() string {
	return "keys of a build: name, labels, variables, secrets, timeout, workspace, steps, artifacts; of a step: id, name, script, shell, env, timeout, continueWhenFailed; " +
		"of a file with jobs: name, labels, variables, secrets, timeout, jobs; of a job: needs, always, matrix, labels, variables, secrets, timeout, workspace, download, steps, artifacts; of an artifact: name, paths, exclude, keep, optional, when; of a definition besides: schedule, webhook, badge"
}

// ParseSpec reads a build file. Unknown keys are errors that name the line. The result has been checked and its
// defaults are filled in. Errors are *SpecError.
func ParseSpec(data []byte) (Spec, error) {
	spec, err := parseSpec(data)
	if err == nil {
		err = spec.check()
	}
	if err != nil {
		return Spec{}, &SpecError{Err: err}
	}
	return spec, nil
}

func parseSpec(data []byte) (Spec, error) {
	f, err := parseSpecFile(data)
	return f.Spec, err
}

// parseSpecFile decodes a build file and its triggers.
func parseSpecFile(data []byte) (specFile, error) {
	var in specFile
	err := decodeFile(data, &in)
	return in, err
}

var unknownField = regexp.MustCompile(`field (.+) not found in type \S+`)

// plainYAML turns the decoder's errors into our words.
func plainYAML(err error) error {
	var kind *yaml.TypeError
	if errors.As(err, &kind) {
		text := strings.Join(kind.Errors, "; ")
		return errors.New(unknownField.ReplaceAllString(text, `unknown key "$1"`))
	}
	return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
}

func strictJSON(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}

var (
	stepID  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]{0,63}$`)
	varName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,127}$`)
	label   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:=/+-]{0,63}$`)
)

// check validates a spec and fills in its defaults.
func (s *Spec) check() error {
	s.Name = strings.TrimSpace(s.Name)
	if s.Name == "" {
		s.Name = "build"
	}
	if err := checkText("name", s.Name, 200); err != nil {
		return err
	}
	if err := checkText("workspace", s.Workspace, 1000); err != nil {
		return err
	}
	if err := checkLabels(s.Labels); err != nil {
		return err
	}
	if err := checkVariables("variable", maps.Keys(s.Variables), func(name string) string { return s.Variables[name].Value }); err != nil {
		return err
	}
	if err := s.checkSecrets(); err != nil {
		return err
	}
	if err := checkLimit("timeout", s.Timeout); err != nil {
		return err
	}
	if err := s.checkArtifacts(); err != nil {
		return err
	}
	if len(s.Steps) == 0 {
		return errors.New("no steps in it")
	}
	if len(s.Steps) > maxSteps {
		return fmt.Errorf("more than %d steps", maxSteps)
	}
	ids := make(map[string]bool)
	system := ""
	for i := range s.Steps {
		step := &s.Steps[i]
		if step.ID == "" {
			step.ID = "step" + strconv.Itoa(i+1)
		}
		if step.Name == "" {
			step.Name = step.ID
		}
		if err := step.check(); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
		if ids[step.ID] {
			return fmt.Errorf("step %d: the id %q is taken", i+1, step.ID)
		}
		ids[step.ID] = true
		if kind := step.system(); kind != "" {
			if system != "" && system != kind {
				return fmt.Errorf("step %d: shell %s: the steps of one build run on one machine, and another step has a shell of %s", i+1, step.Shell, system)
			}
			system = kind
		}
	}
	return nil
}

func (s *Step) check() error {
	switch {
	case !stepID.MatchString(s.ID):
		return fmt.Errorf("id %q: letters, digits, _ and - only", s.ID)
	case strings.TrimSpace(s.Script) == "":
		return errors.New("no script in it")
	case len(s.Script) > maxScript:
		return fmt.Errorf("script: longer than %d bytes", maxScript)
	case strings.ContainsRune(s.Script, 0) || !utf8.ValidString(s.Script):
		return errors.New("script: not a text")
	case s.Shell != "" && strings.HasPrefix(s.Script, "#!"):
		return errors.New("shell: the script names its own in its first line")
	case strings.ContainsAny(s.Shell, "\r\n\x00"):
		return errors.New("shell: one line, please")
	}
	if err := checkText("name", s.Name, 200); err != nil {
		return err
	}
	if err := checkVariables("env", maps.Keys(s.Env), func(name string) string { return s.Env[name] }); err != nil {
		return err
	}
	return checkLimit("timeout", s.Timeout)
}

// system is the kind of machine that a step's shell asks for: windows, unix, or "" when it fits both.
func (s *Step) system() string {
	switch {
	case s.Shell == "bat" || s.Shell == "powershell":
		return "windows"
	case s.Shell != "" || strings.HasPrefix(s.Script, "#!"):
		return "unix"
	}
	return ""
}

// fits reports whether the steps can run on a machine of that detectOS value (protocol §1.4.2).
func (s *Spec) fits(os string) bool {
	for i := range s.Steps {
		switch s.Steps[i].system() {
		case "windows":
			return os == "windows"
		case "unix":
			return os != "windows"
		}
	}
	return true
}

// shebang is the first line that makes a script run in the step's shell, "" when there is nothing to add.
func (s *Step) shebang() string {
	switch {
	case s.Shell == "":
		return ""
	case strings.HasPrefix(s.Shell, "/"):
		return "#!" + s.Shell + "\n"
	case s.Shell == "sh" || s.Shell == "bash":
		return "#!/bin/" + s.Shell + "\n"
	}
	return "#!/usr/bin/env " + s.Shell + "\n"
}

// pipelineID is the same for all builds of one name, so that they share a workspace (protocol §2.1).
func pipelineID(project, name string) string {
	sum := sha256.Sum256([]byte(project + "\x00" + name))
	return "p-" + hex.EncodeToString(sum[:16])
}

func checkText(what, text string, limit int) error {
	if len(text) > limit || !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fmt.Errorf("%s: one line of at most %d bytes, please", what, limit)
	}
	return nil
}

func checkLabels(labels []string) error {
	for _, l := range labels {
		if !label.MatchString(l) {
			return fmt.Errorf("label %q: letters, digits and _.:=/+- only", clip(l, 64))
		}
	}
	return nil
}

func checkVariables(what string, names func(func(string) bool), value func(string) string) error {
	for _, name := range slices.Sorted(names) {
		if !varName.MatchString(name) {
			return fmt.Errorf("%s %q: not a name", what, clip(name, 64))
		}
		if v := value(name); len(v) > 64<<10 || strings.ContainsRune(v, 0) || !utf8.ValidString(v) {
			return fmt.Errorf("%s %s: not a text of at most 64 KiB", what, name)
		}
	}
	return nil
}

func checkLimit(what string, d Duration) error {
	if d < 0 || time.Duration(d) > maxLimit || d > 0 && time.Duration(d) < time.Second {
		return fmt.Errorf("%s: between 1s and %v, please", what, maxLimit)
	}
	return nil
}

// clip cuts a text to n bytes without splitting a character.
func clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "")
	}
	return s
}
