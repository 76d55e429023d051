//go:build unix

package job

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

func scriptsIn(t *testing.T) *Scripts {
	return &Scripts{Home: t.TempDir(), GOOS: runtime.GOOS, Timeout: time.Minute, MaxOutput: 1000, Umask: 0o022, Log: quiet()}
}

func runScript(t *testing.T, s *Scripts, ctx context.Context, p wire.Pipeline) []wire.PipelineReport {
	t.Helper()
	var reports []wire.PipelineReport
	s.Run(ctx, p, func(r wire.PipelineReport) { reports = append(reports, r) })
	left, err := filepath.Glob(filepath.Join(s.Home, "devops_pipeline_*"))
	if err != nil || len(left) > 0 {
		t.Errorf("scripts left behind: %v, %v", left, err)
	}
	return reports
}

func TestPipelineScripts(t *testing.T) {
	cases := []struct{ name, command, status, response string }{
		{"output of both streams", "echo out; echo err >&2", wire.PipelineSuccess, "out\nerr\n"},
		{"set -e", "false\necho not reached", wire.PipelineFailure, "run pipeline failed: exit status 1\noutput: "},
		{"shebang", "#!/bin/sh\nprintf '%s' \"$0\"", wire.PipelineSuccess, "devops_pipeline_7_COMMAND.sh"},
		{"shebang keeps set -e", "#!/bin/sh\nfalse\necho not reached", wire.PipelineFailure, "exit status 1"},
		{"unknown interpreter", "#!/no/such/shell\necho x", wire.PipelineFailure, "run pipeline failed: "},
		{"carriage returns", "echo a\r\necho b\r\n", wire.PipelineSuccess, "a\nb\n"},
		{"killed", "kill -9 $$", wire.PipelineFailure, "signal: killed"},
		{"blank", " \n\t ", wire.PipelineFailure, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := scriptsIn(t)
			reports := runScript(t, s, t.Context(), wire.Pipeline{Type: "COMMAND", SeqID: "7", Command: c.command})
			if len(reports) != 2 || reports[0] != (wire.PipelineReport{SeqID: "7", Status: "EXECUTING", Response: "Executing"}) {
				t.Fatalf("reports %+v", reports)
			}
			if r := reports[1]; r.Status != c.status || !strings.Contains(r.Response, c.response) || strings.Contains(r.Response, "not reached") {
				t.Errorf("report %+v", r)
			}
		})
	}
}

func TestPipelineScriptRunsAtHome(t *testing.T) {
	s := scriptsIn(t)
	s.Home = filepath.Join(s.Home, "it's a home")
	if err := os.Mkdir(s.Home, 0o755); err != nil {
		t.Fatal(err)
	}
	reports := runScript(t, s, t.Context(), wire.Pipeline{Type: "COMMAND", SeqID: "1", Command: "pwd; umask"})
	if got := reports[1].Response; got != s.Home+"\n0022\n" {
		t.Errorf("script ran in %q", got)
	}
}

func TestPipelineOutputIsBounded(t *testing.T) {
	s := scriptsIn(t)
	reports := runScript(t, s, t.Context(), wire.Pipeline{Type: "COMMAND", SeqID: "1",
		Command: "echo first; i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; echo last"})
	got := reports[1].Response
	if len(got) > 1100 || !strings.HasPrefix(got, "first\n") || !strings.HasSuffix(got, "last\n") || !strings.Contains(got, "bytes left out") {
		t.Errorf("%d bytes kept: %.60q … %q", len(got), got, got[max(0, len(got)-60):])
	}
}

func TestPipelineTimeLimitKillsTheTree(t *testing.T) {
	s := scriptsIn(t)
	s.Timeout = 300 * time.Millisecond
	begun := time.Now()
	reports := runScript(t, s, t.Context(), wire.Pipeline{Type: "COMMAND", SeqID: "1", Command: "sleep 300 & echo $!; wait"})
	if r := reports[1]; r.Status != wire.PipelineFailure || !strings.Contains(r.Response, "time limit of 300ms") {
		t.Errorf("report %+v", r)
	}
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
	var pid int
	_, out, _ := strings.Cut(reports[1].Response, "output: ")
	if _, err := fmt.Sscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(data), ") Z ") {
		t.Errorf("process %d outlived its script", pid)
	}
}

func TestPipelineTasksThatAreNotRun(t *testing.T) {
	s := scriptsIn(t)
	if got := runScript(t, s, t.Context(), wire.Pipeline{Type: "FILE", SeqID: "1", File: "x"}); len(got) != 0 {
		t.Errorf("FILE: %+v", got)
	}
	for _, seq := range []string{"", "../x", "a b", "1/2"} {
		got := runScript(t, s, t.Context(), wire.Pipeline{Type: "COMMAND", SeqID: seq, Command: "echo x"})
		if len(got) != 1 || got[0].Status != wire.PipelineFailure {
			t.Errorf("seqId %q: %+v", seq, got)
		}
	}
}

func TestScriptTextOnWindows(t *testing.T) {
	want := "@echo off\nchcp 65001\ncd \"C:\\agent\"\necho a\necho b"
	if got := scriptText("echo a\r\necho b", `C:\agent`, "windows"); got != want {
		t.Errorf("%q", got)
	}
}
