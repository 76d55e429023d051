package worker

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// step is one script task made ready: everything its wrapper needs to know.
type step struct {
	script    string            // decoded, with variables filled in
	variables map[string]string // runtime variables
	envs      []toolEnv
	workspace string // absolute
	wrapper   string // path of the wrapper, absolute
	user      string // path of the user's script, absolute
	result    string // path of the file that setEnv appends to, absolute
	gate      string // path of the file that setGateValue appends to, absolute
	flag      string // path of the batch markers, absolute
	keepGoing bool   // continueNoneZero: no set -e
	charset   string // charsetType of a batch script
}

// toolEnv is one of buildEnvs as a script needs it.
type toolEnv struct {
	path string // directory for PATH, "" for none
	vars map[string]string
}

// exported is a value as a script gets it: without single quotes and line feeds (protocol §6.7).
func exported(value string) string {
	return strings.NewReplacer("'", "", "\n", "", "\x00", "").Replace(value)
}

// shellName reports whether a name can be a shell variable and may be assigned to: not one of those that bash keeps
// read-only, where an assignment would end a POSIX shell.
func shellName(name string) bool {
	switch name {
	case "", "UID", "EUID", "PPID", "SHELLOPTS", "BASHOPTS", "BASH_VERSINFO":
		return false
	}
	for i, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_', i > 0 && c >= '0' && c <= '9':
		default:
			return false
		}
	}
	return true
}

// shebang is the first line of a script when it names an interpreter by its path, else "" (protocol §6.7).
func shebang(script string) string {
	if !strings.HasPrefix(script, "#!/") {
		return ""
	}
	line, _, _ := strings.Cut(script, "\n")
	return strings.TrimSpace(line)
}

// interpreter splits a shebang as Linux does: program and at most one argument. Without one it is what a shell
// would take for a script that names none.
func interpreter(line string) []string {
	if line == "" {
		return []string{"/bin/sh"}
	}
	program, arg, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(line, "#!")), " ")
	if arg = strings.TrimSpace(arg); arg != "" {
		return []string{program, arg}
	}
	return []string{program}
}

// foreign reports whether an interpreter is known not to read the language of sh: it would not understand our wrapper.
func foreign(words []string) bool {
	name := path.Base(words[0])
	if name == "env" && len(words) > 1 {
		for _, word := range strings.Fields(words[1]) {
			if !strings.HasPrefix(word, "-") && !strings.Contains(word, "=") {
				name = path.Base(word)
				break
			}
		}
	}
	switch strings.TrimRight(name, "0123456789.") {
	case "python", "pypy", "perl", "ruby", "node", "nodejs", "deno", "bun", "php", "lua", "tclsh", "expect", "awk", "gawk", "Rscript",
		"groovy", "fish", "csh", "tcsh", "pwsh", "nu":
		return true
	}
	return false
}

// quote makes a POSIX shell word of any text.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// wrapperWords is what reads the wrapper of a script: the interpreter of its first line, or sh where that one could not.
func wrapperWords(script string) []string {
	if words := interpreter(shebang(script)); !foreign(words) {
		return words
	}
	return interpreter("")
}

// shellWrapper writes the script that prepares the environment and runs the user's (protocol §6.7). It keeps to
// POSIX: without a shebang the system's sh reads it. A script for python or the like, with which the original fails,
// is run as a program.
func shellWrapper(s step) string {
	var b strings.Builder
	line := shebang(s.script)
	words, last := interpreter(line), ". "
	if foreign(words) {
		line, last = "", ""
		for _, word := range words {
			last += quote(word) + " "
		}
	}
	if line != "" {
		b.WriteString(line + "\n")
	}
	fmt.Fprintf(&b, "export WORKSPACE=%s\n", quote(s.workspace))
	fmt.Fprintf(&b, "export DEVOPS_BUILD_SCRIPT_FILE=%s\n", quote(s.wrapper))
	for _, name := range sortedKeys(s.variables) {
		if shellName(name) {
			fmt.Fprintf(&b, "export %s='%s'\n", name, exported(s.variables[name]))
		}
	}
	for _, env := range s.envs {
		for _, name := range sortedKeys(env.vars) {
			if shellName(name) {
				fmt.Fprintf(&b, "export %s=%s\n", name, quote(env.vars[name]))
			}
		}
		if env.path != "" {
			fmt.Fprintf(&b, "export PATH=%s:\"$PATH\"\n", quote(env.path))
		}
	}
	if s.keepGoing {
		b.WriteString("set +e\n")
	} else {
		b.WriteString("set -e\n")
	}
	fmt.Fprintf(&b, `setEnv() {
	case "$1" in
	''|[!a-zA-Z_]*|*[!a-zA-Z0-9_]*)
		echo "##[warning]setEnv: not a variable name: $1"
		return 0 ;;
	esac
	printf '%%s=%%s\n' "$1" "$2" >> %s
	export "$1=$2"
}
setGateValue() {
	printf '%%s=%%s\n' "$1" "$2" >> %s
}
%s%s
`, quote(s.result), quote(s.gate), last, quote(s.user))
	return b.String()
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
