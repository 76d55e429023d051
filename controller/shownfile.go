package controller

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// ShownFile is a stored build file as people may see it again: sensitive values in it read ******, which nobody can
// submit by mistake.
type ShownFile struct {
	File    string `json:"file"`
	Masked  bool   `json:"masked,omitempty"`  // there was something to hide; comments and order are kept, spaces may not be
	Changed bool   `json:"changed,omitempty"` // of a run: its name, labels, variables or time limit were given besides the file
}

// DefinitionFile returns the build file of a definition, ErrNotFound when there is none, *KeyError when it cannot be
// decrypted.
func (s *Server) DefinitionFile(project, name string) (ShownFile, error) {
	d, err := s.findDefinition(project, name)
	if err != nil {
		return ShownFile{}, err
	}
	text, err := s.file(d)
	if err != nil {
		return ShownFile{}, fmt.Errorf("read definition %s: %w", d.Name, err)
	}
	return showFile(text)
}

// RunFile returns the build file that a run was made of, ErrNotFound when there is none, *KeyError when it cannot be
// decrypted.
func (s *Server) RunFile(id string) (ShownFile, error) {
	found, text, err := s.findRun(id)
	if err != nil {
		return ShownFile{}, err
	}
	in, err := s.openRun(found.ID, text)
	if err != nil {
		return ShownFile{}, fmt.Errorf("read run %s: %w", found.ID, err)
	}
	f, err := showFile(in.File)
	f.Changed = in.Name != "" || in.Timeout != 0 || len(in.Labels)+len(in.Variables)+len(in.Inputs) > 0
	return f, err
}

// showFile hides the sensitive values of a build file: those of variables, and the same texts elsewhere in it, in
// scripts and comments. Keys stay.
func showFile(text string) (ShownFile, error) {
	values, err := sensitiveValues([]byte(text))
	if err != nil {
		return ShownFile{}, err
	}
	if len(values) == 0 {
		return ShownFile{File: text}, nil
	}
	var root yaml.Node
	if err := yaml.Unmarshal([]byte(text), &root); err != nil {
		return ShownFile{}, plainYAML(err)
	}
	m := masker{whole: make(map[string]bool)}
	for _, v := range values {
		m.whole[v] = true
		for line := range strings.Lines(v) {
			if line = strings.TrimSpace(line); len(line) >= 3 && !slices.Contains(m.parts, line) {
				m.parts = append(m.parts, line)
			}
		}
	}
	slices.SortFunc(m.parts, func(a, b string) int { return len(b) - len(a) })
	m.hide(&root)
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(&root), enc.Close()); err != nil {
		return ShownFile{}, err
	}
	left, err := sensitiveValues(out.Bytes())
	if err != nil || slices.ContainsFunc(left, func(v string) bool { return v != masked }) {
		return ShownFile{}, errUnshown
	}
	return ShownFile{File: out.String(), Masked: true}, nil
}

// errUnshown is for a file whose sensitive values cannot be told from the rest.
var errUnshown = errors.New("the build file has sensitive values in it that cannot be hidden")

// sensitiveValues are the values of sensitive variables of a build file, of all of its jobs.
func sensitiveValues(data []byte) ([]string, error) {
	var all []map[string]Variable
	if HasJobs(data) {
		f, _, err := parseJobsFile(data)
		if err != nil {
			return nil, err
		}
		all = append(all, f.Variables)
		for _, job := range f.Jobs {
			all = append(all, job.Variables)
		}
	} else {
		f, err := parseSpecFile(data)
		if err != nil {
			return nil, err
		}
		all = append(all, f.Variables)
	}
	var values []string
	for _, variables := range all {
		for _, v := range variables {
			if v.Sensitive && v.Value != "" {
				values = append(values, v.Value)
			}
		}
	}
	return values, nil
}

// masker hides texts in a YAML document.
type masker struct {
	whole map[string]bool // scalars that are this
	parts []string        // and what may be a part of others, longest first; three characters and more
}

func (m *masker) hide(node *yaml.Node) {
	for _, text := range []*string{&node.HeadComment, &node.LineComment, &node.FootComment} {
		*text = m.text(*text)
	}
	switch node.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(node.Content); i += 2 {
			key := node.Content[i]
			for _, text := range []*string{&key.HeadComment, &key.LineComment, &key.FootComment} {
				*text = m.text(*text)
			}
			m.hide(node.Content[i+1])
		}
	case yaml.ScalarNode:
		hidden := masked
		if !m.whole[node.Value] {
			hidden = m.text(node.Value)
		}
		if hidden != node.Value {
			node.Value, node.Tag = hidden, "!!str"
			if node.Style&(yaml.LiteralStyle|yaml.FoldedStyle) == 0 {
				node.Style = yaml.DoubleQuotedStyle
			}
		}
	default:
		for _, inner := range node.Content {
			m.hide(inner)
		}
	}
}

func (m *masker) text(text string) string {
	for _, part := range m.parts {
		text = strings.ReplaceAll(text, part, masked)
	}
	return text
}

// checkShown refuses what showFile writes in the place of a value.
func checkShown(variables map[string]Variable) error {
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		if v := variables[name]; v.Sensitive && v.Value == masked {
			return fmt.Errorf("variable %s: %s stands for a value that is not shown: write the value again, or use a secret", name, masked)
		}
	}
	return nil
}

// fileRoutes adds the calls that show stored build files. Scripts may have secrets in them: they are the operator's.
func (s *Server) fileRoutes(route func(pattern string, h http.HandlerFunc)) {
	route("GET /definitions/{name}/file", func(w http.ResponseWriter, r *http.Request) {
		f, err := s.DefinitionFile(r.URL.Query().Get("project"), r.PathValue("name"))
		reply(w, f, err)
	})
	route("GET /runs/{id}/file", func(w http.ResponseWriter, r *http.Request) {
		f, err := s.RunFile(r.PathValue("id"))
		reply(w, f, err)
	})
}
