package packaging

import (
	"bytes"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/devops-agent/devops-agent/launchd"
)

// A pkgRule is one way in which packages of macOS have given root away. Each had advisories of its own.
type pkgRule string

// The rules.
const (
	ruleShell       pkgRule = "shell"       // zsh reads ~/.zshenv of whoever is logged in, bash $BASH_ENV, env the PATH
	ruleQuotes      pkgRule = "quotes"      // a path with a space is two
	rulePath        pkgRule = "path"        // a program of somebody else with the name of a system's
	ruleTemporary   pkgRule = "temporary"   // what anybody can put into place beforehand, as a link to something else
	ruleSecret      pkgRule = "secret"      // /var/log/install.log is readable for everybody who administers
	ruleReplaceable pkgRule = "replaceable" // root starts what another account can replace
)

// pkgFinding is a breach of a rule.
type pkgFinding struct {
	rule pkgRule
	text string
}

// pkgFindings are the breaches in a manifest, as text. No package is written of a manifest that has any.
func pkgFindings(m Manifest) []string {
	var all []string
	for _, f := range pkgInspect(m) {
		all = append(all, f.text)
	}
	return all
}

// pkgInspect looks at the scripts, those in the payload included, at the files and at the jobs.
func pkgInspect(m Manifest) []pkgFinding {
	var all []pkgFinding
	scripts := pkgNamed(m.Scripts)
	for _, f := range m.Files {
		if f.Kind == Regular && f.Mode&0o111 != 0 && bytes.HasPrefix(f.Data, []byte("#!")) {
			scripts = append(scripts, script{f.Path, string(f.Data)})
		}
	}
	for _, s := range scripts {
		for _, check := range []func(string) []pkgFinding{checkShell, checkQuotes, checkPath, checkTemporary, checkSecrets} {
			for _, f := range check(s.text) {
				all = append(all, pkgFinding{f.rule, s.name + ": " + f.text})
			}
		}
	}
	return append(all, checkReplaceable(m.Files)...)
}

// checkShell wants /bin/sh, by its path and without options.
func checkShell(text string) []pkgFinding {
	first, _, _ := strings.Cut(text, "\n")
	if first == "#!/bin/sh" {
		return nil
	}
	return []pkgFinding{{ruleShell, fmt.Sprintf("it begins with %q, not with #!/bin/sh", first)}}
}

// commands are the lines of a script without comments and indentation, and where they are.
func commands(text string) (lines []string, numbers []int) {
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "#") {
			lines, numbers = append(lines, line), append(numbers, i+1)
		}
	}
	return lines, numbers
}

var (
	pathSet  = regexp.MustCompile(`(^|[\s;&|(])PATH=(\S*)`)
	harmless = regexp.MustCompile(`^(set -[a-z]+|umask [0-7]+|exit( [0-9]+)?|:)$`)
	relative = regexp.MustCompile(`(^|[\s;&|(])\.{1,2}/`)
)

// checkPath wants a PATH of the system's directories before anything is run, and no program by a path that depends on where the
// script was started.
func checkPath(text string) []pkgFinding {
	var all []pkgFinding
	set := false
	lines, numbers := commands(text)
	for i, line := range lines {
		if m := pathSet.FindStringSubmatch(line); m != nil && m[2] != `"$PATH"` {
			set = true
			for _, dir := range strings.Split(m[2], ":") {
				if !slices.Contains([]string{"/usr/bin", "/bin", "/usr/sbin", "/sbin"}, dir) {
					all = append(all, pkgFinding{rulePath, fmt.Sprintf("line %d: %q is in its PATH", numbers[i], dir)})
				}
			}
		} else if !set && !harmless.MatchString(line) {
			all = append(all, pkgFinding{rulePath, fmt.Sprintf("line %d: something is run before PATH is set", numbers[i])})
			set = true
		}
		if relative.MatchString(line) {
			all = append(all, pkgFinding{rulePath, fmt.Sprintf("line %d: a path that depends on the working directory", numbers[i])})
		}
	}
	return all
}

var temporary = regexp.MustCompile(`/tmp(/|\b)|TMPDIR|\bmktemp\b|/Users/Shared`)

// checkTemporary wants no file where everybody may put one, and none that everybody may change.
func checkTemporary(text string) []pkgFinding {
	var all []pkgFinding
	lines, numbers := commands(text)
	for i, line := range lines {
		if temporary.MatchString(line) {
			all = append(all, pkgFinding{ruleTemporary, fmt.Sprintf("line %d: a file where everybody may put one", numbers[i])})
		}
		if mode := chmodMode(line); mode != "" {
			all = append(all, pkgFinding{ruleTemporary, fmt.Sprintf("line %d: mode %s lets others write", numbers[i], mode)})
		}
	}
	return all
}

var changesMode = regexp.MustCompile(`\b(?:chmod|mkdir -m|install -m|umask)\s+(?:-[A-Za-z]+\s+)*([0-7]{1,5}|[ugoa]*[+=][rwxXst]+)`)

// chmodMode is a mode in a line that lets the group or others write; "" when there is none.
func chmodMode(line string) string {
	for _, m := range changesMode.FindAllStringSubmatch(line, -1) {
		mode := m[1]
		if strings.ContainsAny(mode, "+=") {
			who, what, _ := strings.Cut(strings.ReplaceAll(mode, "=", "+"), "+")
			if strings.Contains(what, "w") && (who == "" || strings.ContainsAny(who, "goa")) {
				return mode
			}
			continue
		}
		var bits int
		for _, c := range mode {
			bits = bits<<3 | int(c-'0')
		}
		writes := bits&0o022 != 0
		if strings.HasPrefix(m[0], "umask") {
			writes = bits&0o022 != 0o022
		}
		if writes {
			return mode
		}
	}
	return ""
}

var secretWord = regexp.MustCompile(`(?i)token|secret|password|passphrase|credential|enroll?\.d/`)

// checkSecrets wants scripts that do not touch secrets at all, and do not say what they do word by word.
func checkSecrets(text string) []pkgFinding {
	var all []pkgFinding
	lines, numbers := commands(text)
	for i, line := range lines {
		if secretWord.MatchString(line) {
			all = append(all, pkgFinding{ruleSecret, fmt.Sprintf("line %d: it handles a secret, and its output is in the log", numbers[i])})
		}
		if words := strings.Fields(line); words[0] == "set" && slices.ContainsFunc(words[1:], func(w string) bool {
			return w == "xtrace" || w == "verbose" || strings.HasPrefix(w, "-") && strings.ContainsAny(w, "xv")
		}) {
			all = append(all, pkgFinding{ruleSecret, fmt.Sprintf("line %d: every command would be in the log", numbers[i])})
		}
	}
	return all
}

// checkReplaceable wants that nobody but root can put something else in the place of what root runs: not of the file, nor of a
// directory above it.
func checkReplaceable(files []File) []pkgFinding {
	var all []pkgFinding
	found := func(format string, args ...any) {
		all = append(all, pkgFinding{ruleReplaceable, fmt.Sprintf(format, args...)})
	}
	byPath := make(map[string]File, len(files))
	for _, f := range files {
		byPath[f.Path] = f
		if f.Kind != Link && (f.Owner != "root" || f.Mode&0o022 != 0) {
			found("%s has mode %04o and belongs to %s: others than root can change it", f.Path, f.Mode, f.Owner)
		}
	}
	for _, f := range files {
		if f.Kind != Regular || path.Dir(f.Path) != launchd.DaemonDir || path.Ext(f.Path) != ".plist" {
			continue
		}
		data, err := f.Read()
		if err != nil {
			found("%s: %v", f.Path, err)
			continue
		}
		job, err := launchd.ParseJob(data)
		if err != nil || len(job.Program) == 0 {
			found("%s is no job: %v", f.Path, err)
			continue
		}
		program, there := byPath[job.Program[0]]
		if !there || program.Kind != Regular || program.Mode&0o111 == 0 {
			found("%s starts %s, which is no program of this package", f.Path, job.Program[0])
		}
		if strings.HasPrefix(job.Program[0], "/Users/") || strings.HasPrefix(job.Program[0], "/opt/homebrew/") {
			found("%s starts %s, below a directory of somebody", f.Path, job.Program[0])
		}
	}
	return all
}

// checkQuotes finds variables and commands whose value the shell would split into words, outside of what never splits: assignments,
// "case WORD in", arithmetic, here-documents.
func checkQuotes(text string) []pkgFinding {
	var all []pkgFinding
	for _, line := range newScanner(text).unquoted() {
		all = append(all, pkgFinding{ruleQuotes, fmt.Sprintf("line %d: a value without quotes", line)})
	}
	return all
}
