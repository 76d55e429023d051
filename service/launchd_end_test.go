package service

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLaunchdEnding: the job is found in the domain in which its process is ours, by recorded output.
func TestLaunchdEnding(t *testing.T) {
	for name, want := range map[string]struct {
		file, target string
		pid          int
		how          string
		code         int
	}{
		"a daemon that was killed":          {"print-26-signal.txt", "system/org.devops-agent.agent", 51725, "killed by signal 9", -1},
		"an agent that ended with an error": {"print-13.txt", "gui/501/org.devops-agent.agent", 28474, "exited with 1", 1},
		"its first run":                     {"print-10.15.txt", "system/org.devops-agent.agent", 3087, "", -1},
		"somebody else's job":               {"print-13.txt", "gui/501/org.devops-agent.agent", 1, "", -1},
		"no such job":                       {"print-13.txt", "", 28474, "", -1},
	} {
		asked := 0
		run := func(_ context.Context, program string, args ...string) ([]byte, error) {
			asked++
			if len(args) != 2 || args[0] != "print" || !strings.HasSuffix(program, "launchctl") {
				return nil, errors.New("not asked like this")
			}
			if args[1] != want.target {
				return []byte("Could not find service"), &exitCode{113}
			}
			return os.ReadFile(filepath.Join("..", "launchd", "testdata", want.file))
		}
		got := LaunchdEnding(t.Context(), run, "org.devops-agent.agent", 501, want.pid)
		code := -1
		if got.Code != nil {
			code = *got.Code
		}
		if got.How != want.how || code != want.code || asked == 0 {
			t.Errorf("%s: %q, %d after %d questions; want %q, %d", name, got.How, code, asked, want.how, want.code)
		}
	}
	if got := LaunchdEnding(t.Context(), nil, "0", 501, 7); got.How != "" { // in a terminal
		t.Errorf("%+v", got)
	}
}

// exitCode is how launchctl ended.
type exitCode struct{ code int }

// Error names it.
func (e *exitCode) Error() string { return "exit status" }

// ExitCode is what launchd.Manager asks for.
func (e *exitCode) ExitCode() int { return e.code }
