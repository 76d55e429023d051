//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

func pipelineScenarios() []scenario {
	return []scenario{
		both("pipeline output", pipelineOutput, 72, 73, 74, 77),
		both("pipeline failures", pipelineFailures, 72, 73, 75, 74),
		both("pipeline files", pipelineFiles, 76),
		both("pipeline with a hostile sequence id", pipelineHostile, 74),
	}
}

func (s *S) pipelineWorld() *world {
	w := s.worldOn(lab.NewRecorder(s, lab.RecorderOptions{Strict: true}), lab.HomeOptions{
		Set: map[string]string{"devops.pipeline.enable": "true"}, TOML: "[scripts]\nenable = true\n"})
	w.rec.Reply(map[string]any{"props": map[string]any{"enablePipeline": true}})
	return w
}

// results returns the reports about one task, oldest first.
func (w *world) results(seq string) []lab.Request {
	var list []lab.Request
	for _, q := range w.rec.Of(lab.ReportPipeline) {
		if q.Get("seqId") == seq {
			list = append(list, q)
		}
	}
	return list
}

// result waits for the final report about a task. In split mode tasks are fetched every 30 s.
func (w *world) result(n int, seq string) string {
	ok := w.rec.Until(60*time.Second, func() bool {
		list := w.results(seq)
		return len(list) > 0 && list[len(list)-1].Get("status") != "EXECUTING"
	})
	if !w.check(n, ok, "task %s: no result within a minute; reports %v", seq, w.results(seq)) {
		return ""
	}
	list := w.results(seq)
	w.check(72, list[0].Get("status") == "EXECUTING" && list[0].Get("response") == "Executing", "task %s: the first report is %v", seq, list[0])
	w.check(72, len(list) == 2, "task %s: %d reports, want EXECUTING and one result: %v", seq, len(list), list)
	text, _ := list[len(list)-1].Get("response").(string)
	return text
}

func pipelineOutput(s *S) {
	w := s.pipelineWorld()
	dir, _ := filepath.EvalSymlinks(w.home.Dir)
	sh, _ := filepath.EvalSymlinks("/bin/sh")
	w.rec.QueuePipeline(
		lab.Command("41", "echo to-stdout\necho to-stderr >&2\npwd -P\nbasename \"$0\"\nls -l devops_pipeline_41_COMMAND.sh\nreadlink /proc/$$/exe"),
		lab.Command("42", "#!/bin/sh\necho ünï\nreadlink /proc/$$/exe\npwd -P"),
	)
	w.start()
	text := w.result(73, "41")
	s.check(73, strings.Contains(text, "to-stdout") && strings.Contains(text, "to-stderr"), "response %q, want stdout and stderr", text)
	s.check(73, w.results("41")[1].Get("status") == "SUCCESS", "%v", w.results("41")[1])
	s.check(74, strings.Contains(text, "\n"+dir+"\n"), "the directory is not the workdir: %q", text)
	s.check(74, strings.Contains(text, "devops_pipeline_41_COMMAND.sh\n"), "the script is not devops_pipeline_41_COMMAND.sh: %q", text)
	s.check(74, strings.Contains(text, "/bash"), "not run by bash: %q", text)
	text = w.result(73, "42")
	s.check(73, strings.Contains(text, "ünï"), "response %q", text)
	s.check(74, strings.Contains(text, sh+"\n"+dir), "#!/bin/sh was not honoured, or the directory is wrong: %q", text)
	for _, seq := range []string{"41", "42"} {
		s.check(74, !w.home.Has("devops_pipeline_"+seq+"_COMMAND.sh"), "the script of task %s is still there", seq)
	}
	if s.mode == "split" {
		s.check(77, len(w.rec.Of(lab.FetchPipeline)) >= 2, "%d fetches", len(w.rec.Of(lab.FetchPipeline)))
		for _, gap := range gaps(w.rec.Of(lab.FetchPipeline)) {
			s.check(77, gap >= 10*time.Second, "pipeline fetches %v apart", gap)
		}
	}
	w.alive(72)
}

func pipelineFailures(s *S) {
	w := s.pipelineWorld()
	w.rec.QueuePipeline(
		lab.Command("51", "echo before\nfalse\necho after"),
		lab.Command("52", "  \n"),
		lab.Command("53", "echo still here"),
	)
	w.start()
	text := w.result(73, "51")
	s.check(73, w.results("51")[1].Get("status") == "FAILURE", "a failing script: %v", w.results("51"))
	s.check(73, strings.Contains(text, "before") && strings.HasPrefix(text, "run pipeline failed: "), "response %q", text)
	s.check(74, !strings.Contains(text, "after"), "set -e is not in effect: %q", text)
	w.result(75, "52")
	list := w.results("52")
	s.check(75, len(list) > 0 && list[len(list)-1].Get("status") == "FAILURE", "a blank command: %v", list)
	text = w.result(75, "53")
	s.check(75, strings.Contains(text, "still here"), "after a blank command: %q", text)
	w.alive(75)
}

func pipelineFiles(s *S) {
	w := s.pipelineWorld()
	w.rec.QueuePipeline(
		map[string]any{"type": "FILE", "seqId": "61", "operation": "DOWNLOAD", "file": "/etc/passwd"},
		map[string]any{"type": "SOMETHING", "seqId": "62", "command": "echo never"},
		lab.Command("63", "echo fine"),
	)
	w.start()
	ok := w.rec.Until(110*time.Second, func() bool { return len(w.results("63")) == 2 })
	s.check(76, ok && w.results("63")[1].Get("status") == "SUCCESS", "a COMMAND after a FILE task: %v", w.rec.Of(lab.ReportPipeline))
	for _, q := range w.results("62") {
		s.check(76, q.Get("status") != "SUCCESS", "an unknown type was run: %v", q)
	}
	w.alive(76)
}

// pipelineHostile: the sequence id becomes a file name, so it is input like any other (weakness W-29).
func pipelineHostile(s *S) {
	w := s.pipelineWorld()
	target := w.home.LabPath("escaped")
	seq := "../lab/escaped/x"
	if err := os.MkdirAll(target, 0o755); err != nil { //nolint:gosec // a place to fall into
		s.Fatalf("%v", err)
	}
	w.rec.QueuePipeline(lab.Command(seq, fmt.Sprintf("echo ran >%s/ran", target)), lab.Command("71", "echo fine"))
	w.start()
	ok := w.rec.Until(100*time.Second, func() bool { return len(w.results("71")) == 2 })
	s.check(74, ok, "a task after one with a hostile id: %v", w.rec.Of(lab.ReportPipeline))
	entries, _ := os.ReadDir(target)
	for _, entry := range entries {
		s.check(74, entry.Name() == "ran", "a script was written to %s/%s", target, entry.Name())
	}
	w.alive(74)
}
