package job

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/service/proc"
)

// Scripts runs pipeline tasks: scripts that the server wants run on this machine, as the agent's account
// (protocol §1.6.9, §3.10). Unlike the original it bounds their time and their output (weakness W-29).
type Scripts struct {
	Home      string
	GOOS      string
	Timeout   time.Duration // of one script; its whole tree is killed then
	MaxOutput int           // bytes of output that are kept and reported
	Umask     int
	Log       *slog.Logger
}

// Report sends one state change of a task; Scripts calls it in order, one call at a time.
type Report func(wire.PipelineReport)

// killGrace is the time between SIGTERM and SIGKILL for a script that has to go.
const killGrace = 3 * time.Second

// Run runs one task and reports EXECUTING and then exactly one of SUCCESS and FAILURE. A task of another type than
// COMMAND is logged and not reported, as by the original.
func (s *Scripts) Run(ctx context.Context, p wire.Pipeline, report Report) {
	log := s.Log.With("pipeline_task", p.SeqID)
	if p.Type != wire.PipelineCommand {
		log.Warn("Pipeline task skipped", "type", p.Type)
		return
	}
	if !name.MatchString(p.SeqID) {
		log.Error("Pipeline task refused", "err", "its seqId is not a usable id")
		report(wire.PipelineReport{SeqID: p.SeqID, Status: wire.PipelineFailure, Response: "refused: the seqId is not a usable id"})
		return
	}
	report(wire.PipelineReport{SeqID: p.SeqID, Status: wire.PipelineExecuting, Response: "Executing"})
	if strings.TrimSpace(p.Command) == "" {
		report(wire.PipelineReport{SeqID: p.SeqID, Status: wire.PipelineFailure})
		return
	}
	log.Info("Pipeline script started")
	result := s.run(ctx, p)
	log.Info("Pipeline script ended", "status", result.Status)
	report(result)
}

func (s *Scripts) run(ctx context.Context, p wire.Pipeline) wire.PipelineReport {
	failed := func(text string) wire.PipelineReport {
		return wire.PipelineReport{SeqID: p.SeqID, Status: wire.PipelineFailure, Response: text}
	}
	path := filepath.Join(s.Home, scriptName(p.SeqID, s.GOOS))
	defer func() {
		if err := removeIfThere(path); err != nil {
			s.Log.Warn("Pipeline script not removed", "path", path, "err", err)
		}
	}()
	if err := writeFor(nil, path, scriptText(p.Command, s.Home, s.GOOS), 0o700); err != nil {
		return failed("write pipeline script file failed: " + err.Error())
	}
	output := &bounded{limit: s.MaxOutput}
	child, err := proc.Start(proc.Command{Path: path, Dir: s.Home, Env: lastWins(agentEnvironment()), Stdout: output, Stderr: output, Umask: s.Umask})
	if err == nil {
		err = s.wait(ctx, child)
	}
	if err != nil {
		return failed(fmt.Sprintf("run pipeline failed: %v\noutput: %s", err, output))
	}
	return wire.PipelineReport{SeqID: p.SeqID, Status: wire.PipelineSuccess, Response: output.String()}
}

func (s *Scripts) wait(ctx context.Context, child *proc.Process) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.Timeout, fmt.Errorf("stopped after its time limit of %v", s.Timeout))
	defer cancel()
	select {
	case <-child.Done():
		if exit := child.Wait(); !exit.Success() {
			return errors.New(exit.String())
		}
		return nil
	case <-ctx.Done():
		err := child.Kill(killGrace)
		child.Wait()
		return errors.Join(context.Cause(ctx), err)
	}
}

// scriptName is the file name of a task (protocol §2.1).
func scriptName(seqID, goos string) string {
	ext := ".sh"
	if goos == "windows" {
		ext = ".bat"
	}
	return "devops_pipeline_" + seqID + "_" + wire.PipelineCommand + ext
}

// scriptText wraps a command (protocol §3.10): it runs in the home directory and, on Unix, ends with its first
// failing line. A first line with #! is honoured.
func scriptText(command, home, goos string) string {
	command = strings.ReplaceAll(command, "\r\n", "\n")
	if goos == "windows" {
		return "@echo off\nchcp 65001\ncd \"" + home + "\"\n" + command
	}
	head, body := "#!/bin/bash\n", command
	if strings.HasPrefix(command, "#!") {
		head, body, _ = strings.Cut(command, "\n")
	}
	return head + "\nset -e\ncd " + quote(home) + "\n" + body + "\n"
}

// bounded keeps the first half and the last half of limit bytes.
type bounded struct {
	mu      sync.Mutex
	limit   int
	head    bytes.Buffer
	tail    []byte // ring
	at      int    // next write position in tail
	dropped int64
}

// Write keeps what fits; it never fails.
func (b *bounded) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(p)
	if room := b.limit/2 - b.head.Len(); room > 0 {
		k := min(room, len(p))
		b.head.Write(p[:k])
		p = p[k:]
	}
	size := b.limit - b.limit/2
	if over := len(p) - size; over > 0 {
		b.dropped += int64(over)
		p = p[over:]
	}
	for len(p) > 0 {
		if len(b.tail) < size {
			k := min(size-len(b.tail), len(p))
			b.tail = append(b.tail, p[:k]...)
			p = p[k:]
			continue
		}
		k := copy(b.tail[b.at:], p)
		b.dropped += int64(k)
		b.at = (b.at + k) % size
		p = p[k:]
	}
	return n, nil
}

// String is what was kept, with a line that says how much was not.
func (b *bounded) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	tail := string(b.tail[b.at:]) + string(b.tail[:b.at])
	if b.dropped == 0 {
		return strings.ToValidUTF8(b.head.String()+tail, "�")
	}
	return strings.ToValidUTF8(b.head.String(), "") + fmt.Sprintf("\n… %d bytes left out …\n", b.dropped) + strings.ToValidUTF8(tail, "")
}

// scratchAge is how old a scratch file gets (protocol §3.9).
const scratchAge = 7 * 24 * time.Hour

// CleanOld removes old scratch files after a build: files of build_tmp, and start scripts of builds that are long
// over (protocol §3.9). Files of builds that are known to run stay, however old.
func (r *Runner) CleanOld(now time.Time, running []wire.Build) {
	keep := map[string]bool{}
	for _, b := range running {
		f := r.files(b)
		for _, path := range []string{f.start, f.prestart, f.errors, f.output} {
			keep[path] = true
		}
	}
	Expire(r.Log, filepath.Join(r.Home, "build_tmp", "*"), now.Add(-scratchAge), keep)
	if r.GOOS != "windows" {
		Expire(r.Log, filepath.Join(r.Home, "devops_agent_start*.sh"), now.Add(-scratchAge), keep)
		Expire(r.Log, filepath.Join(r.Home, "devops_agent_prepare_start*.sh"), now.Add(-scratchAge), keep)
		Expire(r.Log, filepath.Join(r.Home, "devops_pipeline_*.sh"), now.Add(-scratchAge), keep) // of an agent that was killed
	}
}

// Expire removes the regular files that match a pattern (its last element only), were last modified before a time,
// and are not to be kept. One that cannot be removed is logged and does not keep the others (weakness W-51).
func Expire(log *slog.Logger, pattern string, before time.Time, keep map[string]bool) {
	dir, last := filepath.Split(pattern)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		log.Warn("Old files not cleaned", "dir", dir, "err", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if ok, _ := filepath.Match(last, e.Name()); !ok || keep[path] || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if err != nil || !info.ModTime().Before(before) {
			continue
		}
		if err := removeIfThere(path); err != nil {
			log.Warn("Old file not removed", "path", path, "err", err)
		}
	}
}
