package launchd

import (
	"bufio"
	"bytes"
	"strconv"
	"strings"
	"time"
)

// Status is what "launchctl print DOMAIN/LABEL" says about a job that is loaded. launchd's manual calls the output no
// interface, and it has changed with most releases: what a release leaves out is zero here, or -1 where that says so.
type Status struct {
	Path  string // of the property list it was loaded from
	State string // in launchd's words: "running", "not running", "spawn scheduled", "waiting", …
	PID   int    // 0: no process
	Runs  int    // starts since it was loaded; -1 unknown

	ExitCode   int    // of the last end; -1: never ended, ended by a signal, or unknown
	ExitSignal int    // that ended it last; 0: none or unknown
	ExitText   string // how it ended last, in launchd's words; "" when it never did

	MinimumRuntime time.Duration // ThrottleInterval as in force: launchd makes it longer for a job that keeps crashing
	ExitTimeout    time.Duration
}

// Running reports whether the job has a process.
func (s Status) Running() bool { return s.PID > 0 }

// ParsePrint reads the output of "launchctl print" about one job. Lines of deeper blocks look like the job's own (a
// coalition has a state too) and are told apart by their indentation alone, because a block's end can be imitated by an
// argument that is a brace.
func ParsePrint(out []byte) Status {
	s := Status{Runs: -1, ExitCode: -1}
	indent, seen := "", map[string]bool{}
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		text := strings.TrimLeft(line, " \t")
		depth := line[:len(line)-len(text)]
		if depth == "" || text == "" {
			continue
		}
		if indent == "" {
			indent = depth // the first line inside the outermost block
		}
		key, value, found := strings.Cut(text, " = ")
		if !found || depth != indent || seen[key] {
			continue
		}
		seen[key] = true
		s.take(key, strings.TrimSpace(value))
	}
	if s.State == "not running" {
		s.PID = 0 // "pid = 0" and stale pids were seen beside it
	}
	return s
}

func (s *Status) take(key, value string) {
	switch key {
	case "path":
		s.Path = value
	case "state":
		s.State = value
	case "pid":
		s.PID = max(0, number(value, 0))
	case "runs":
		s.Runs = max(-1, number(value, -1))
	case "minimum runtime":
		s.MinimumRuntime = duration(int64(number(value, 0)))
	case "exit timeout":
		s.ExitTimeout = duration(int64(number(value, 0)))
	case "last exit code":
		// "0", "78: EX_CONFIG", "(never exited)"
		code, _, _ := strings.Cut(value, ":")
		if s.ExitCode = number(code, -1); s.ExitCode >= 0 {
			s.ExitText = "exit code " + value
		}
	case "last terminating signal":
		// "Killed: 9"; older releases count a signal as an exit code below zero and never print this
		name, signal, _ := strings.Cut(value, ": ")
		s.ExitCode, s.ExitSignal, s.ExitText = -1, max(0, number(signal, 0)), "signal "+name
	case "last exit reason":
		s.ExitCode, s.ExitText = -1, value
	}
}

// number reads a small decimal number.
func number(text string, otherwise int) int {
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 32)
	if err != nil {
		return otherwise
	}
	return int(n)
}

// ParseDisabled reads the output of "launchctl print-disabled DOMAIN" and reports whether a job is switched off: with
// "launchctl disable", or by a person in System Settings, Login Items. A job that is not listed is not.
func ParseDisabled(out []byte, label string) bool {
	disabled := false
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, value, found := strings.Cut(strings.TrimSpace(lines.Text()), " => ")
		if !found || name != `"`+label+`"` {
			continue
		}
		switch value {
		case "disabled", "true": // macOS 13 and later; before: true means disabled
			disabled = true
		case "enabled", "false":
			disabled = false
		}
	}
	return disabled
}
