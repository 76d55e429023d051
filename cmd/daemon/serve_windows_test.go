package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/windows"
)

// eventList keeps events.
type eventList []string

func (l *eventList) Info(id uint32, text string) {
	*l = append(*l, fmt.Sprintf("info %d %s", id, text))
}
func (l *eventList) Warn(id uint32, text string) {
	*l = append(*l, fmt.Sprintf("warning %d %s", id, text))
}
func (l *eventList) Error(id uint32, text string) {
	*l = append(*l, fmt.Sprintf("error %d %s", id, text))
}

// TestNobodyIsNotSystem: in session mode an agent waits until somebody is logged on, and says so once.
func TestNobodyIsNotSystem(t *testing.T) {
	var events eventList
	here := false
	f := &frame{session: true, events: &events, options: service.DaemonOptions{Log: slog.New(slog.DiscardHandler)},
		user: func() (*windows.User, error) {
			if here {
				return windows.ConsoleUser()
			}
			return nil, fmt.Errorf("look: %w", windows.ErrNobodyHere)
		}}
	f.options.Start = f.inSession
	for range 3 {
		cmd := &exec.Cmd{SysProcAttr: &syscall.SysProcAttr{}}
		if err := f.prepare(t.Context(), cmd); !errors.Is(err, service.ErrLater) {
			t.Errorf("prepare: %v, want to come again later", err)
		}
		if err := f.inSession(cmd); err == nil || cmd.Process != nil { // logged off between the two
			t.Errorf("started without anybody: %v", err)
		}
	}
	if len(events) != 1 || !strings.HasPrefix(events[0], "info 7 ") {
		t.Errorf("events: %q", events)
	}
	f.user = func() (*windows.User, error) { return nil, errors.New("no rights") }
	if err := f.prepare(t.Context(), &exec.Cmd{SysProcAttr: &syscall.SysProcAttr{}}); err == nil || errors.Is(err, service.ErrLater) {
		t.Errorf("trouble is taken for nobody: %v", err)
	}
}

// TestEventsAreNotDrowned: warnings and errors of each kind once in ten minutes; everything goes to the log.
func TestEventsAreNotDrowned(t *testing.T) {
	var events eventList
	var lines strings.Builder
	h := (&teller{Handler: slog.NewTextHandler(&lines, nil), events: &events, memory: &memory{written: map[string]time.Time{}}}).
		WithAttrs([]slog.Attr{slog.Int("pid", 7)})
	at := time.Now()
	say := func(level slog.Level, message string, after time.Duration) {
		if err := h.Handle(context.Background(), slog.NewRecord(at.Add(after), level, message, 0)); err != nil {
			t.Error(err)
		}
	}
	say(slog.LevelInfo, "Agent started", 0)
	for i := range 30 {
		say(slog.LevelWarn, "Agent ended", time.Duration(i)*time.Second)
	}
	say(slog.LevelError, "Agent hangs", time.Minute)
	say(slog.LevelWarn, "Agent ended", 11*time.Minute)
	want := eventList{"warning 3 Agent ended\r\npid: 7", "error 4 Agent hangs\r\npid: 7", "warning 3 Agent ended\r\npid: 7"}
	if fmt.Sprint(events) != fmt.Sprint(want) {
		t.Errorf("events: %q", events)
	}
	if n := strings.Count(lines.String(), "\n"); n != 33 {
		t.Errorf("%d lines in the log", n)
	}
}

// TestJobHoldsWhatTheAgentStarts, from its first instruction, and lets it live on when nobody holds the job.
func TestJobHoldsWhatTheAgentStarts(t *testing.T) {
	start := func(j *job) *exec.Cmd {
		mark := filepath.Join(t.TempDir(), "mark")
		cmd := exec.Command("cmd.exe", "/c", "echo begun>"+mark+"&ping -n 4 127.0.0.1 >NUL")
		cmd.SysProcAttr = &syscall.SysProcAttr{HideWindow: true}
		j.prepare(cmd)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for begin := time.Now(); time.Since(begin) < 300*time.Millisecond; runtime.Gosched() {
			if _, err := os.Stat(mark); err == nil {
				t.Fatal("it ran before it was in the job")
			}
		}
		if err := j.take(cmd.Process); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
			if _, err := os.Stat(mark); err == nil {
				return cmd
			}
			if time.Now().After(deadline) {
				t.Fatal("it does not run")
			}
		}
	}
	j, err := newJob()
	if err != nil {
		t.Fatal(err)
	}
	cmd := start(j)
	if err := j.terminate(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("ended with %v", cmd.ProcessState)
	}
	j.close()

	if j, err = newJob(); err != nil {
		t.Fatal(err)
	}
	cmd = start(j)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	j.close()
	select {
	case err := <-ended:
		t.Errorf("ended with its job: %v", err)
	case <-time.After(500 * time.Millisecond):
	}
	_ = cmd.Process.Kill()
	<-ended
}
