package worker

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// pattern is a path below the workspace with wildcards: * ? [a-z] within one name, and ** for any number of folders.
type pattern []string

const anyDepth = "**"

func parsePattern(text string) (pattern, error) {
	var p pattern
	switch {
	case len(text) > 4096:
		return nil, errors.New("path: longer than 4096 bytes")
	case text == "" || strings.HasPrefix(text, "/") || strings.ContainsAny(text, "\\\x00"):
		return nil, fmt.Errorf("path %q: it must be below the workspace, with / between folders", clip(text, 200))
	}
	for part := range strings.SplitSeq(text, "/") {
		switch {
		case part == "" || part == ".":
			continue
		case part == "..":
			return nil, fmt.Errorf("path %q: it leads out of the workspace", clip(text, 200))
		case part == anyDepth && len(p) > 0 && p[len(p)-1] == anyDepth:
			continue
		}
		if _, err := path.Match(part, ""); err != nil {
			return nil, fmt.Errorf("path %q: %w", clip(text, 200), err)
		}
		p = append(p, part)
	}
	if len(p) == 0 { // the workspace itself
		p = pattern{anyDepth}
	}
	return p, nil
}

// base is the folder or file above the first wildcard, where to look for what matches; "." is the workspace.
func (p pattern) base() string {
	n := 0
	for n < len(p) && !strings.ContainsAny(p[n], `*?[`) {
		n++
	}
	return path.Join(append([]string{"."}, p[:n]...)...)
}

// matches reports whether a name, or a folder above it, fits the pattern. It takes time that grows with the product of
// their lengths.
func (p pattern) matches(name string) bool {
	// open says which parts of the pattern the next element may fit.
	open := make([]bool, len(p)+1)
	open[0] = true
	for part := range strings.SplitSeq(name, "/") {
		p.skip(open)
		next := make([]bool, len(p)+1)
		for i, could := range open[:len(p)] {
			if !could {
				continue
			}
			if p[i] == anyDepth {
				next[i] = true
				continue
			}
			if fits, err := path.Match(p[i], part); err == nil && fits {
				next[i+1] = true
			}
		}
		p.skip(next)
		if next[len(p)] {
			return true // and so does all that is below
		}
		open = next
	}
	return false
}

// skip lets every ** stand for no folder at all.
func (p pattern) skip(open []bool) {
	for i, part := range p {
		if open[i] && part == anyDepth {
			open[i+1] = true
		}
	}
}
