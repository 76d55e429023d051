package host

import (
	"path/filepath"
	"regexp"
	"strings"
)

// JavaPath returns the java program of a JDK directory (protocol §2.1).
func JavaPath(jdkDir, goos string) string {
	switch goos {
	case "darwin":
		return filepath.Join(jdkDir, "Contents", "Home", "bin", "java")
	case "windows":
		return filepath.Join(jdkDir, "bin", "java.exe")
	}
	return filepath.Join(jdkDir, "bin", "java")
}

var (
	firstLine     = regexp.MustCompile(`^(openjdk|java) [0-9]`) // of "java --version", which does not say "version"
	workerVersion = regexp.MustCompile(`^v[0-9]+\.[0-9]+\.[0-9]+(-RELEASE|-SNAPSHOT|-[A-Za-z][A-Za-z0-9_]*\.[0-9]+)?$`)
	oneWord       = regexp.MustCompile(`^v?[0-9][0-9A-Za-z._+-]*$`)
)

// jdkLines filters the output of "java -version" or "java --version" (protocol §1.6.3): the line with the version, the
// next one about the runtime environment, the next one about the virtual machine. Always three, "" where nothing
// matched. Warnings of the machine and notices of _JAVA_OPTIONS in between are left out.
func jdkLines(output string) []string {
	lines := make([]string, 3)
	found := 0
	for line := range strings.Lines(output) {
		line = clip(line, 200)
		if found == len(lines) || strings.Contains(line, " warning: ") {
			continue
		}
		var matches bool
		switch found {
		case 0:
			matches = strings.Contains(line, " version ") || firstLine.MatchString(line)
		case 1:
			matches = strings.Contains(line, " Runtime Environment ")
		case 2:
			matches = strings.Contains(line, " Server VM ")
		}
		if matches {
			lines[found] = line
			found++
		}
	}
	return lines
}

// jarVersion finds the version in the output of the worker jar (protocol §3.3), "" when there is none: the first line
// without blanks, without "OPTIONS", of the form v1.2.3, v1.2.3-RELEASE, v1.2.3-SNAPSHOT or v1.2.3-word.4.
func jarVersion(output string) string { return firstVersion(output, workerVersion) }

// nativeVersion finds the version in the output of devopsWorker, which may be one of git.
func nativeVersion(output string) string { return firstVersion(output, oneWord) }

func firstVersion(output string, form *regexp.Regexp) string {
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if strings.ContainsAny(line, " \t") || strings.Contains(line, "OPTIONS") {
			continue
		}
		if len(line) > 64 {
			line = line[:64]
		}
		if form.MatchString(line) {
			return line
		}
	}
	return ""
}
