package launchd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func recorded(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestParsePrint(t *testing.T) {
	const system, user = "/Library/LaunchDaemons/org.devops-agent.agent.plist", "/Users/ci/Library/LaunchAgents/devops_agent_abcdefgh.plist"
	const exit = 630 * time.Second
	for file, want := range map[string]Status{
		"print-10.15.txt":        {Path: system, State: "running", PID: 3087, Runs: 1, ExitCode: -1, MinimumRuntime: time.Second, ExitTimeout: exit},
		"print-13.txt":           {Path: user, State: "running", PID: 28474, Runs: 3, ExitCode: 1, ExitText: "exit code 1", MinimumRuntime: time.Second, ExitTimeout: exit},
		"print-15-down.txt":      {Path: system, State: "not running", Runs: 4, ExitCode: 88, ExitText: "exit code 88", MinimumRuntime: time.Second, ExitTimeout: exit},
		"print-26-throttled.txt": {Path: system, State: "spawn scheduled", Runs: 41, ExitCode: 1, ExitText: "exit code 1", MinimumRuntime: 16 * time.Second, ExitTimeout: exit},
		"print-26-signal.txt":    {Path: system, State: "running", PID: 51725, Runs: 2, ExitCode: -1, ExitSignal: 9, ExitText: "signal Killed", MinimumRuntime: time.Second, ExitTimeout: exit},
		"print-26-config.txt":    {Path: user, State: "not running", Runs: 7, ExitCode: 78, ExitText: "exit code 78: EX_CONFIG", MinimumRuntime: time.Second},
	} {
		if got := ParsePrint(recorded(t, file)); got != want {
			t.Errorf("%s:\n got %+v\nwant %+v", file, got, want)
		}
	}
}

func TestParsePrintOfStrangeOutput(t *testing.T) {
	for text, want := range map[string]Status{
		"":                                          {Runs: -1, ExitCode: -1},
		"system/x = {\n}\n":                         {Runs: -1, ExitCode: -1},
		"pid = 5\nstate = running\n":                {Runs: -1, ExitCode: -1}, // not in a block
		"x = {\r\n\tpid = 5\r\n}\r\n":               {PID: 5, Runs: -1, ExitCode: -1},
		"x = {\n    pid = 5\n}\n":                   {PID: 5, Runs: -1, ExitCode: -1},
		"x = {\n\tpid = -5\n}\n":                    {Runs: -1, ExitCode: -1},
		"x = {\n\tpid = 1e9\n}\n":                   {Runs: -1, ExitCode: -1},
		"x = {\n\tpid = 5\n\tpid = 6":               {PID: 5, Runs: -1, ExitCode: -1},
		"x = {\n\tstate = not running":              {State: "not running", Runs: -1, ExitCode: -1},
		"x = {\n\tstate = not running\n\tpid = 9\n": {State: "not running", Runs: -1, ExitCode: -1},
		"x = {\n\truns = -9\n\tlast exit code = 99999999999\n":   {Runs: -1, ExitCode: -1},
		"x = {\n\tlast exit reason = JETSAM_REASON_MEMORY\n":     {Runs: -1, ExitCode: -1, ExitText: "JETSAM_REASON_MEMORY"},
		"x = {\n\tminimum runtime = -1\n\texit timeout = 0\n":    {Runs: -1, ExitCode: -1},
		"x = {\n\ta = {\n\t\tpid = 7\n\t}\n\tlast exit code = 0": {Runs: -1, ExitText: "exit code 0"},
	} {
		if got := ParsePrint([]byte(text)); got != want {
			t.Errorf("%q:\n got %+v\nwant %+v", text, got, want)
		}
	}
}

func TestParseDisabled(t *testing.T) {
	for _, file := range []string{"disabled-12.txt", "disabled-26.txt"} {
		out := recorded(t, file)
		for label, want := range map[string]bool{"org.devops-agent.agent": true, "org.devops-agent.agent2": false, "org.devops-agent": false, "": false} {
			if got := ParseDisabled(out, label); got != want {
				t.Errorf("%s: %q disabled %v", file, label, got)
			}
		}
	}
}

func FuzzParsePrint(f *testing.F) {
	for _, file := range []string{"print-10.15.txt", "print-13.txt", "print-26-config.txt", "disabled-12.txt", "disabled-26.txt"} {
		f.Add(recorded(f, file))
	}
	f.Add([]byte("x = {\n\tpid = 5\n\tlast terminating signal = : 9\n"))
	f.Fuzz(func(t *testing.T, out []byte) {
		s := ParsePrint(out)
		if s.PID < 0 || s.Runs < -1 || s.ExitCode < -1 || s.ExitSignal < 0 || s.MinimumRuntime < 0 || s.ExitTimeout < 0 || strings.ContainsAny(s.State+s.ExitText+s.Path, "\n") {
			t.Errorf("%+v", s)
		}
		if s.ExitCode >= 0 && s.ExitSignal != 0 {
			t.Errorf("a code and a signal: %+v", s)
		}
		ParseDisabled(out, "org.devops-agent.agent")
	})
}
