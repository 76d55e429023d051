package controller

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// smallDisk is a directory on a file system of its own, that goes with the test.
func smallDisk(t *testing.T, size string) (dir string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for a small file system of its own")
	}
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); errors.Is(err, unix.EPERM) {
		t.Skip("needs the right to mount a file system")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// fillUp writes until nothing more fits, and returns the file.
func fillUp(t *testing.T, dir string) string {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	piece := make([]byte, 64<<10)
	for len(piece) > 0 {
		if _, err := f.Write(piece); errors.Is(err, syscall.ENOSPC) {
			piece = piece[:len(piece)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// eventually waits until something is so, and reports whether it came to that.
func eventually(t *testing.T, is func() bool) bool {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for !is() {
		select {
		case <-again.C:
		case <-deadline.C:
			return false
		}
	}
	return true
}

// TestAFullDisk: new work of every kind is refused with status 507 and a hint; what is there can be read; a worker's lines and
// reports are not acknowledged, and are taken when there is room again; the log says it once. The controller is not started again.
func TestAFullDisk(t *testing.T) {
	dir, said := smallDisk(t, "24M"), new(journal)
	w := serve(t, Options{Dir: dir, Log: slog.New(slog.NewTextHandler(said, nil))})
	m := w.imported(NewAgent{})
	b := w.submit(oneStep("echo x"))
	waiting := w.submit(Spec{Name: "waiting", Steps: []Step{{Script: "true"}}})
	if got, _, err := m.client.Claim(t.Context(), wire.All, 0); err != nil || got == nil || got.ID != b.ID {
		t.Fatal(got, err)
	}
	m.start(b.ID)
	task := m.claimTask(b.ID)
	install, _ := w.enrolToken(NewEnrolToken{})
	script, err := w.server.QueueScript(m.id.Agent, "true")
	if err != nil {
		t.Fatal(err)
	}
	token := string(w.server.Token())

	filler := fillUp(t, dir)
	lines := []wire.LogLine{{Message: strings.Repeat("much text ", 1000), Tag: *task.TaskID, LogType: wire.LogNormal}}
	kept := 0
	if !eventually(t, func() bool {
		r := m.worker(b.ID, "POST", wire.PathLogsMulti, lines, nil)
		if r.code == http.StatusOK {
			kept++
		}
		return r.code == http.StatusServiceUnavailable
	}) {
		t.Fatal("the disk is not full")
	}
	for _, c := range []struct{ method, path, body string }{
		{"POST", "/builds", `{"spec":{"name":"new","steps":[{"script":"true"}]}}`}, {"POST", "/agents", `{}`}, {"POST", "/agents/batch", `{"count":3}`},
		{"POST", "/tokens", `{"name":"x","role":"read-only"}`}, {"POST", "/releases", `{"version":"v9"}`}, {"POST", "/builds/" + b.ID + "/rerun", `{}`},
		{"PATCH", "/agents/" + m.id.Agent, `{"labels":["new"]}`}, {"POST", "/agents/" + m.id.Agent + "/scripts", `{"command":"true"}`},
	} {
		code, body := w.as(token, c.method, c.path, json.RawMessage(c.body))
		var answer struct{ Error, Hint string }
		if err := json.Unmarshal([]byte(body), &answer); err != nil || code != http.StatusInsufficientStorage || !strings.Contains(answer.Error, "full") || !strings.Contains(answer.Hint, "make room") {
			t.Errorf("%s %s: %d %s", c.method, c.path, code, body)
		}
	}
	if r := w.install(install, ""); r.code != http.StatusInsufficientStorage || !strings.Contains(r.env.Message, "full") {
		t.Errorf("enrolment: %d %s", r.code, r.body)
	}
	if a, err := w.server.FindAgent(m.id.Agent); err != nil || len(a.Labels) > 0 && strings.Contains(strings.Join(a.Labels, ","), "new") {
		t.Errorf("what was refused is done: %+v, %v", a, err)
	}
	for _, path := range []string{"/builds", "/builds/" + b.ID, "/builds/" + b.ID + "/log", "/agents", "/rollouts", "/audit"} {
		if code, body := w.as(token, "GET", path, nil); code != http.StatusOK {
			t.Errorf("GET %s: %d %s", path, code, body)
		}
	}
	if r := w.call("GET", "/", nil, nil); r.code != http.StatusOK {
		t.Errorf("the page: %d", r.code)
	}
	if _, err := m.client.Beat(t.Context(), beat(b.ID)); err != nil {
		t.Errorf("heartbeat: %v", err)
	}
	for range 20 { // nothing is handed out, so nothing is handed out too often
		if got, _, err := m.client.Claim(t.Context(), wire.All, 0); err != nil || got != nil {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	done := wire.TaskResult{TaskID: *task.TaskID, Success: true, BuildResult: map[string]string{"A": "b"}}
	if r := m.worker(b.ID, "POST", wire.PathWorkerComplete, done, nil); r.code != http.StatusServiceUnavailable {
		t.Errorf("complete: %d %s", r.code, r.body)
	}
	report := m.call("PUT", wire.PathPipelines, m.header(), map[string]string{"seqId": jsonText(script.ID), "status": wire.PipelineSuccess, "response": "done"})
	if report.code != http.StatusInsufficientStorage || report.env.Status == 0 {
		t.Errorf("report of a script: %d %s", report.code, report.body)
	}
	// That it was nearly full before may have been seen, or not.
	if n, near := said.count("level=ERROR"), said.count("nearly full"); said.count("Nothing can be written") != 1 || near > 1 || n != 1+near || said.count("make room there") != n {
		t.Errorf("%d errors in the log:\n%s", n, &said.text)
	}

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if !eventually(t, func() bool { return said.count("takes what is written again") == 1 }) {
		t.Fatal("there is room, and nobody says so")
	}
	m.worker(b.ID, "POST", wire.PathLogsMulti, lines, new(bool))
	m.complete(b.ID, done)
	if task := m.claimTask(b.ID); task.Status != wire.TaskEnd {
		t.Errorf("%+v", task)
	}
	m.end(b.ID)
	if got, _, err := m.client.Claim(t.Context(), wire.All, 0); err != nil || got == nil || got.ID != waiting.ID {
		t.Errorf("the build that waited: %+v, %v", got, err)
	}
	if w.build(waiting.ID).HandOuts != 1 {
		t.Errorf("it was handed out %d times", w.build(waiting.ID).HandOuts)
	}
	if !eventually(t, func() bool {
		c, err := w.server.FindScript(script.ID)
		return err == nil && c.Status == wire.PipelineSuccess
	}) {
		t.Error("the script's report is lost")
	}
	w.submit(oneStep("true"))
	if n := w.count(`SELECT coalesce(max(last), 0) FROM log WHERE build = ?`, b.Number); n != kept+1 {
		t.Errorf("%d lines in the log, %d were acknowledged", n, kept+1)
	}
	if report, err := Check(t.Context(), dir); err != nil || len(report.Faults) > 0 {
		t.Errorf("%+v, %v", report, err)
	}
}

// TestLittleRoom: new work is refused while what is left is enough for the builds under way, which go on.
func TestLittleRoom(t *testing.T) {
	dir, said := smallDisk(t, "40M"), new(journal)
	w := serve(t, Options{Dir: dir, Log: slog.New(slog.NewTextHandler(said, nil))})
	m := w.imported(NewAgent{})
	b := w.submit(oneStep("echo x"))
	if got, _, err := m.client.Claim(t.Context(), wire.All, 0); err != nil || got == nil {
		t.Fatal(got, err)
	}
	filler := fillUp(t, dir)
	if err := os.Truncate(filler, fileSize(t, filler)-1<<20); err != nil { // of two that are kept
		t.Fatal(err)
	}
	var refused *StorageError
	if !eventually(t, func() bool { _, err := w.server.Submit("", oneStep("true")); return errors.As(err, &refused) }) || !errors.Is(refused, errLittleRoom) {
		t.Fatalf("%v", refused)
	}
	m.run(b.ID, nil)
	if got := w.build(b.ID); got.State != Succeeded {
		t.Errorf("%+v", got)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if !eventually(t, func() bool { _, err := w.server.Submit("", oneStep("true")); return err == nil }) {
		t.Error("it does not go on")
	}
	if said.count("nearly full") != 1 || said.count("There is room") != 1 {
		t.Errorf("the log:\n%s", &said.text)
	}
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// TestOpenOnAFullDisk: a controller starts there and can be read, or says in words why not.
func TestOpenOnAFullDisk(t *testing.T) {
	dir := smallDisk(t, "24M")
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Submit("", oneStep("true")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	filler := fillUp(t, dir)
	s, err = Open(Options{Dir: dir})
	if err != nil {
		var full *StorageError
		if !errors.As(err, &full) || !full.Full {
			t.Fatalf("neither words nor a controller: %v", err)
		}
	} else {
		if builds, err := s.Builds(10, 0, false); err != nil || len(builds) != 1 {
			t.Errorf("%+v, %v", builds, err)
		}
		if _, err := s.Submit("", oneStep("true")); storageError(dir, err) == nil {
			t.Errorf("a build was taken: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Submit("", oneStep("true")); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestAReadOnlyDisk: a disk that the system has made read-only is said to be that; reading goes on.
func TestAReadOnlyDisk(t *testing.T) {
	dir := smallDisk(t, "24M")
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	_, err = Open(Options{Dir: dir})
	var refused *StorageError
	if !errors.As(err, &refused) || refused.Full || !strings.Contains(refused.Hint(), "mount it for writing") {
		t.Errorf("%v", err)
	}
}
