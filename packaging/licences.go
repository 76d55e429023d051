package packaging

import (
	"cmp"
	"debug/buildinfo"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"unicode"
)

// Licence is that of a module which is linked into the programs.
type Licence struct {
	Module    string // path, or "std" for the standard library and the runtime
	Version   string
	SPDX      string   // MIT, BSD-3-Clause, …
	Copyright []string // its lines about who holds it
	Text      string   // licence, and notices that have to go with it
}

// Licences finds the licences of everything that is linked into programs, in the module cache and GOROOT of this machine. A module
// without one is an error: it may not be given away.
func Licences(programs []string, cache, goroot string) ([]Licence, error) {
	linked := map[string]debug.Module{}
	version := ""
	for _, program := range programs {
		info, err := buildinfo.ReadFile(program)
		if err != nil {
			return nil, fmt.Errorf("read what is linked into %s: %w", program, err)
		}
		version = info.GoVersion
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			linked[m.Path+"@"+m.Version] = *m
		}
	}
	std, err := licenceIn(goroot)
	if err != nil {
		return nil, fmt.Errorf("licence of Go: %w", err)
	}
	std.Module, std.Version = "std", version
	all := []Licence{std}
	for _, m := range slices.SortedFunc(maps.Values(linked), func(a, b debug.Module) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Version, b.Version))
	}) {
		one, err := licenceIn(filepath.Join(cache, filepath.FromSlash(escapeModule(m.Path)+"@"+escapeModule(m.Version))))
		if err != nil {
			return nil, fmt.Errorf("licence of %s %s: %w", m.Path, m.Version, err)
		}
		one.Module, one.Version = m.Path, m.Version
		all = append(all, one)
	}
	return all, nil
}

// escapeModule is how the module cache writes capital letters.
func escapeModule(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsUpper(r) {
			b.WriteByte('!')
			r = unicode.ToLower(r)
		}
		b.WriteRune(r)
	}
	return b.String()
}

var (
	licenceFile   = regexp.MustCompile(`(?i)^(licen[cs]e|copying|unlicense)([-._].*)?$`)
	noticeFile    = regexp.MustCompile(`(?i)^(notice|patents)(\..*)?$`)
	copyrightLine = regexp.MustCompile(`(?i)^[ \t*/#]*(?:portions )?copyright (?:©|\(c\)|[0-9]{4}|the ).*$`)
	codeFile      = regexp.MustCompile(`(?i)\.(go|s|c|h|py|sh)$`)
)

// licenceIn reads the licence of the module in a directory.
func licenceIn(dir string) (Licence, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return Licence{}, err
	}
	var texts []string
	var l Licence
	for _, pattern := range []*regexp.Regexp{licenceFile, noticeFile} {
		for _, e := range entries {
			if e.IsDir() || !pattern.MatchString(e.Name()) || codeFile.MatchString(e.Name()) {
				continue
			}
			text, err := readText(filepath.Join(dir, e.Name()))
			if err != nil {
				return Licence{}, err
			}
			text = strings.TrimSpace(strings.ReplaceAll(text, "\r\n", "\n"))
			if pattern == licenceFile && l.SPDX == "" {
				l.SPDX = spdx(text)
			}
			texts = append(texts, text)
			for line := range strings.Lines(text) {
				line = strings.TrimSpace(line)
				if copyrightLine.MatchString(line) && !strings.Contains(line, "[yyyy]") && !strings.Contains(line, "{yyyy}") && !slices.Contains(l.Copyright, line) {
					l.Copyright = append(l.Copyright, line)
				}
			}
		}
		if len(texts) == 0 {
			return Licence{}, errors.New("there is none in " + dir)
		}
	}
	l.Text = strings.Join(texts, "\n\n")
	return l, nil
}

// spdx names a licence by its words; one that is not known is LicenseRef-other.
func spdx(text string) string {
	flat := strings.ToLower(strings.Join(strings.Fields(text), " "))
	has := func(words ...string) bool {
		return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(flat, w) })
	}
	switch {
	case has("apache license", "version 2.0"):
		return "Apache-2.0"
	case has("mozilla public license", "2.0"):
		return "MPL-2.0"
	case has("redistribution and use in source and binary forms", "neither the name"):
		return "BSD-3-Clause"
	case has("redistribution and use in source and binary forms"):
		return "BSD-2-Clause"
	case has("permission to use, copy, modify, and/or distribute this software"), has("permission to use, copy, modify, and distribute this software"):
		return "ISC"
	case has("permission is hereby granted, free of charge"):
		return "MIT"
	}
	return "LicenseRef-other"
}

// thirdParty is what has to go with the programs, for people: each text once, under the modules that have it.
func thirdParty(all []Licence) string {
	var order []string
	modules := map[string][]string{}
	for _, l := range all {
		if modules[l.Text] == nil {
			order = append(order, l.Text)
		}
		modules[l.Text] = append(modules[l.Text], l.Module+" "+l.Version)
	}
	var b strings.Builder
	b.WriteString("The programs of this package are linked with the modules below, each under its own licence.\n")
	for _, text := range order {
		b.WriteString("\n" + strings.Repeat("-", 78) + "\n" + strings.Join(modules[text], "\n") + "\n\n" + text + "\n")
	}
	return b.String()
}

// debCopyright is the machine-readable copyright file (DEP 5).
func debCopyright(m Manifest, own string, all []Licence) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: %s\nSource: %s\n"+
		"Comment: The programs are static: beside our own code they hold the modules that have\n paragraphs below, with their path and version as name of the files.\n", m.Name, m.Homepage)
	holder := "The devops-agent authors"
	for line := range strings.Lines(own) {
		if copyrightLine.MatchString(strings.TrimSpace(line)) {
			holder = strings.TrimSpace(line)
			break
		}
	}
	fmt.Fprintf(&b, "\nFiles: *\nCopyright: %s\nLicense: %s\n%s", holder, licence, field(body(own)))
	short := map[string]string{} // by text
	count := map[string]int{}
	for _, l := range all {
		name := l.SPDX
		if !common(l.SPDX) {
			if short[l.Text] == "" {
				count[l.SPDX]++
				short[l.Text] = fmt.Sprintf("%s-%d", l.SPDX, count[l.SPDX])
			}
			name = short[l.Text]
		}
		fmt.Fprintf(&b, "\nFiles: %s/*\nCopyright: %s\nLicense: %s\n", strings.ReplaceAll(l.Module, " ", "")+"@"+l.Version,
			strings.Join(orNone(l.Copyright), "\n "), name)
	}
	for _, id := range []string{"Apache-2.0", "MPL-2.0"} {
		if slices.ContainsFunc(all, func(l Licence) bool { return l.SPDX == id }) {
			fmt.Fprintf(&b, "\nLicense: %s\n On Debian systems its text is in /usr/share/common-licenses/%s.\n", id, id)
		}
	}
	done := map[string]bool{}
	for _, l := range all {
		if s := short[l.Text]; s != "" && !done[s] {
			done[s] = true
			fmt.Fprintf(&b, "\nLicense: %s\n%s", s, field(body(l.Text)))
		}
	}
	return b.String()
}

// common reports whether Debian has the text of a licence.
func common(id string) bool { return id == "Apache-2.0" || id == "MPL-2.0" }

func orNone(lines []string) []string {
	if len(lines) == 0 {
		return []string{"The authors of the module"}
	}
	return lines
}

// body is a text without blanks at the ends of lines.
func body(text string) []string {
	var lines []string
	for line := range strings.Lines(strings.TrimSpace(text)) {
		lines = append(lines, strings.TrimRight(strings.ReplaceAll(line, "\t", "    "), " \r\n"))
	}
	return lines
}

// field writes lines as the continuation of a field of a control file.
func field(lines []string) string {
	var b strings.Builder
	for _, line := range lines {
		if line == "" {
			line = "."
		}
		b.WriteString(" " + line + "\n")
	}
	return b.String()
}
