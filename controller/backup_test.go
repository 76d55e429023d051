package controller

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// backupOf is a backup of a controller.
func backupOf(t testing.TB, s *Server, files bool) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := s.Backup(t.Context(), &out, files, nil); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func restored(t testing.TB, backup []byte, dir string, o RestoreOptions) Restored {
	t.Helper()
	done, err := Restore(t.Context(), bytes.NewReader(backup), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func reopened(t testing.TB, dir string) *Server {
	t.Helper()
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestBackupIsPutBack(t *testing.T) {
	dir := t.TempDir()
	w := serve(t, Options{Dir: dir})
	if err := os.WriteFile(filepath.Join(dir, "cert.pem"), []byte("a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := w.imported(NewAgent{Labels: []string{"gpu"}})
	over := w.endedBuild(3, time.Now())
	queued := w.submit(oneStep("x"))
	script, err := w.server.QueueScript(m.id.Agent, "true")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.server.store.write.Exec(`INSERT INTO rollout (id, doc) VALUES (7, '{"id":7,"version":"v2","canary":1,"maxFailures":0,"state":"rolling","createdAt":1,"changedAt":1}')`); err != nil {
		t.Fatal(err)
	}
	backup := backupOf(t, w.server, true)
	for range 2 {
		w.submit(oneStep("after the backup"))
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".backup-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}

	fresh := filepath.Join(t.TempDir(), "elsewhere")
	done := restored(t, backup, fresh, RestoreOptions{})
	if done.Builds != 1 || done.Rollouts != 1 || done.Kept != "" || done.Next != 2+numberGap+1 || done.Backup.Version != len(steps()) {
		t.Errorf("restored %+v", done)
	}
	s := reopened(t, fresh)
	if s.Token() != w.server.Token() {
		t.Error("it has another operator's token")
	}
	if data, err := os.ReadFile(filepath.Join(fresh, "cert.pem")); string(data) != "a certificate" {
		t.Errorf("cert.pem %q, %v", data, err)
	}
	if lines, err := s.Log(over.ID, 0, 100); err != nil || len(lines) != 30 {
		t.Errorf("%d lines, %v", len(lines), err)
	}
	b, err := s.FindBuild(queued.ID)
	if err != nil || b.State != Failed || !strings.Contains(b.Message, "is not known") || b.FinishedAt == 0 || b.Steps[0].State != Skipped {
		t.Errorf("the build that was queued: %+v, %v", b, err)
	}
	if c, err := s.FindScript(script.ID); err != nil || c.Status != wire.PipelineFailure {
		t.Errorf("the script that was pending: %+v, %v", c, err)
	}
	if made, err := s.Submit("", oneStep("x")); err != nil || made.Number != done.Next {
		t.Errorf("next build %d, %v", made.Number, err)
	}
	client := &wire.Client{Gateway: "http://controller", Identity: m.id, HTTP: httpOf(s)}
	if got, _, err := client.Claim(t.Context(), wire.All, 0); err != nil || got == nil {
		t.Errorf("the agent that was enrolled gets %v, %v", got, err)
	}
	s.mu.Lock()
	r := s.findRollout(7)
	if r == nil || r.State != Paused || r.Before != Rolling {
		t.Errorf("rollout %+v", r)
	}
	s.mu.Unlock()
	err = filepath.WalkDir(fresh, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if info, err := d.Info(); err == nil && info.Mode().Perm()&0o077 != 0 && os.PathSeparator == '/' {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestRestoreOverWhatIsThere: numbers given since the backup are not given again, and what was there is kept.
func TestRestoreOverWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	backup := backupOf(t, s, false)
	if _, err := Restore(t.Context(), bytes.NewReader(backup), dir, RestoreOptions{Force: true}); !errors.As(err, new(*BusyError)) {
		t.Errorf("under a controller that runs: %v", err)
	}
	for range 5 {
		if _, err := s.Submit("", oneStep("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "files", "mine"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(t.Context(), bytes.NewReader(backup), dir, RestoreOptions{}); !errors.As(err, new(*NotEmptyError)) {
		t.Errorf("over what is there: %v", err)
	}
	done := restored(t, backup, dir, RestoreOptions{Force: true})
	if done.Next != 6 || done.Kept == "" {
		t.Errorf("restored %+v, want 6 as the next number", done)
	}
	if _, err := os.Stat(filepath.Join(dir, "files", "mine")); err != nil {
		t.Errorf("a backup without files took those that are there: %v", err)
	}
	old := reopened(t, done.Kept)
	if builds, err := old.Builds(10, 0, false); err != nil || len(builds) != 5 {
		t.Errorf("what was kept has %d builds, %v", len(builds), err)
	}
	if builds, err := reopened(t, dir).Builds(10, 0, false); err != nil || len(builds) != 0 {
		t.Errorf("what was restored has %d builds, %v", len(builds), err)
	}
}

// TestMovedControllerGoesOn: with Moved, nothing is ended and no number is left out.
func TestMovedControllerGoesOn(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Submit("", oneStep("x"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var backup bytes.Buffer
	if err := BackupStopped(t.Context(), dir, "v1", &backup, true); err != nil {
		t.Fatal(err)
	}
	fresh := t.TempDir()
	if done := restored(t, backup.Bytes(), fresh, RestoreOptions{Moved: true}); done.Builds != 0 || done.Next != 2 {
		t.Errorf("restored %+v", done)
	}
	if got, err := reopened(t, fresh).FindBuild(b.ID); err != nil || got.State != Queued {
		t.Errorf("build %+v, %v", got, err)
	}
	running := reopened(t, dir)
	if err := BackupStopped(t.Context(), dir, "v1", io.Discard, true); !errors.As(err, new(*BusyError)) {
		t.Errorf("beside %v: %v", running, err)
	}
}

// TestBackupOfABusyController: a backup is one moment of a data base that is being written all the time.
func TestBackupOfABusyController(t *testing.T) {
	w := serve(t, Options{Dir: t.TempDir()})
	b := w.submit(oneStep("x"))
	ctx, stop := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	for range 2 {
		writers.Go(func() {
			for ctx.Err() == nil {
				if err := w.server.store.appendLog(b.Number, 0, []Line{{Message: "a"}, {Message: "b"}}).wait(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 3 {
		before, err := w.server.store.lineCount(b.Number)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		restored(t, backupOf(t, w.server, false), dir, RestoreOptions{})
		lines, err := reopened(t, dir).Log(b.ID, 0, 1<<30)
		if err != nil || int64(len(lines)) < before {
			t.Errorf("%d lines were there before, the backup has %d, %v", before, len(lines), err)
		}
		for i, l := range lines {
			if l.Seq != int64(i+1) {
				t.Fatalf("line %d has number %d", i+1, l.Seq)
			}
		}
	}
	stop()
	writers.Wait()
}

func TestBrokenBackupChangesNothing(t *testing.T) {
	s := reopened(t, t.TempDir())
	if _, err := s.Submit("", oneStep("x")); err != nil {
		t.Fatal(err)
	}
	backup := backupOf(t, s, true)
	dir := t.TempDir()
	other := reopened(t, dir)
	if _, err := other.CreateAgent(NewAgent{}); err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	try := func(what string, bad []byte) {
		t.Helper()
		_, err := Restore(t.Context(), bytes.NewReader(bad), dir, RestoreOptions{Force: true})
		if !errors.As(err, new(*BackupError)) {
			t.Errorf("%s: %v", what, err)
		}
		if entries, _ := filepath.Glob(filepath.Join(dir, keptPrefix+"*")); len(entries) != 0 {
			t.Fatalf("%s: something was moved: %v", what, entries)
		}
	}
	for _, at := range []int{0, 1, len(backup) / 2, len(backup) - 1} {
		try("cut off", backup[:at])
	}
	contents := func(backup []byte) (all string, err error) {
		_, err = ReadBackup(bytes.NewReader(backup), func(name string, _ fs.FileMode, content io.Reader) error {
			data, err := io.ReadAll(content)
			all += name + "\n" + string(data)
			return err
		})
		return all, err
	}
	want, err := contents(backup)
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(backup) / 7 {
		bad := bytes.Clone(backup)
		bad[i*7] ^= 0x10
		if got, err := contents(bad); err == nil && got != want || err != nil && !errors.As(err, new(*BackupError)) {
			t.Errorf("with byte %d altered: %v", i*7, err)
		}
	}
	try("with another token", repacked(t, backup, func(h *tar.Header) {}, []byte(s.Token()[:8]), []byte("deadbeef")))
	try("with a file outside", repacked(t, backup, func(h *tar.Header) { h.Name = strings.Replace(h.Name, TokenFile, "../"+TokenFile, 1) }))
	try("with a link", repacked(t, backup, func(h *tar.Header) {
		if h.Name == TokenFile {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, "/etc/passwd", 0
		}
	}))
	try("with another name", repacked(t, backup, func(h *tar.Header) { h.Name = strings.Replace(h.Name, TokenFile, "other.token", 1) }))
	if got := reopened(t, dir).Agents(); len(got) != 1 {
		t.Errorf("%d agents afterwards", len(got))
	}
}

// repacked is a backup whose headers were changed.
func repacked(t *testing.T, backup []byte, change func(*tar.Header), replace ...[]byte) []byte {
	t.Helper()
	in, err := zstd.NewReader(bytes.NewReader(backup))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var out bytes.Buffer
	packed, err := zstd.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	from, to := tar.NewReader(in), tar.NewWriter(packed)
	for {
		h, err := from.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		change(h)
		if err := to.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			data, err := io.ReadAll(from)
			if err != nil {
				t.Fatal(err)
			}
			if len(replace) == 2 {
				data = bytes.ReplaceAll(data, replace[0], replace[1])
			}
			if _, err := to.Write(data); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(to.Close(), packed.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestUnfinishedRestoreIsSeen(t *testing.T) {
	dir := t.TempDir()
	s := reopened(t, dir)
	backup := backupOf(t, s, true)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, restoreMark), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, databaseFile), filepath.Join(t.TempDir(), databaseFile)); err != nil { // as far as it came
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: dir}); !errors.As(err, new(*UnfinishedError)) {
		t.Fatalf("error %v", err)
	}
	restored(t, backup, dir, RestoreOptions{Force: true})
	reopened(t, dir)
}

// TestDamageNamesTheBackup: whatever happened to the file, the error says which command puts the newest backup back, and
// that one does.
func TestDamageNamesTheBackup(t *testing.T) {
	for what, harm := range map[string]func(file string) error{
		"empty":     func(file string) error { return os.Truncate(file, 0) },
		"truncated": func(file string) error { return os.Truncate(file, 8192) },
		"cut short": func(file string) error { return os.Truncate(file, 40) },
		"overwritten": func(file string) error {
			f, err := os.OpenFile(file, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			info, err := f.Stat()
			if err != nil {
				return err
			}
			_, err = f.WriteAt(bytes.Repeat([]byte{0xa5}, 20000), info.Size()/2)
			return errors.Join(err, f.Close())
		},
		"text":         func(file string) error { return os.WriteFile(file, bytes.Repeat([]byte("not this\n"), 1000), 0o600) },
		"only its WAL": func(file string) error { return os.Rename(file, file+"-wal") },
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			w := &world{t: t, server: reopened(t, dir)}
			w.endedBuild(30, time.Now())
			if err := w.server.backUp(t.Context(), filepath.Join(dir, backupsDir), time.Now()); err != nil {
				t.Fatal(err)
			}
			if err := w.server.Close(); err != nil {
				t.Fatal(err)
			}
			if err := harm(filepath.Join(dir, databaseFile)); err != nil {
				t.Fatal(err)
			}
			_, err := Open(Options{Dir: dir})
			var damage *DamageError
			if !errors.As(err, &damage) || damage.Backup == "" || !strings.Contains(damage.Hint(), "restore --force --data "+dir+" "+damage.Backup) {
				t.Fatalf("error %v", err)
			}
			backup, err := os.ReadFile(damage.Backup)
			if err != nil {
				t.Fatal(err)
			}
			restored(t, backup, dir, RestoreOptions{Force: true})
			if lines, err := reopened(t, dir).Log("1", 0, 1000); err != nil || len(lines) != 300 {
				t.Errorf("%d lines, %v", len(lines), err)
			}
		})
	}
}

func TestNewestBackupsAreKept(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(Options{Dir: dir, BackupEvery: time.Hour, BackupKeep: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i := range 4 {
		if err := s.backUp(t.Context(), filepath.Join(dir, backupsDir), at.Add(time.Duration(i)*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	got := backupFiles(filepath.Join(dir, backupsDir))
	if len(got) != 2 || filepath.Base(got[0]) != "controller-20260102T050405Z.tar.zst" || filepath.Base(got[1]) != "controller-20260102T060405Z.tar.zst" {
		t.Errorf("kept: %v", got)
	}
}

func FuzzReadBackup(f *testing.F) {
	s, err := Open(Options{Dir: f.TempDir()})
	if err != nil {
		f.Fatal(err)
	}
	var out bytes.Buffer
	err = s.Backup(f.Context(), &out, false, nil)
	if err := errors.Join(err, s.Close()); err != nil {
		f.Fatal(err)
	}
	backup := out.Bytes()
	f.Add(backup)
	f.Add(backup[:len(backup)/2])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		names := make(map[string]bool)
		_, err := ReadBackup(bytes.NewReader(data), func(name string, _ fs.FileMode, _ io.Reader) error {
			if !filepath.IsLocal(name) {
				t.Fatalf("name %q", name)
			}
			names[name] = true
			return nil
		})
		if err == nil && !names[databaseFile] {
			t.Fatal("a backup without a data base")
		}
	})
}

// TestMissingFileOfAReleaseMayComeAgain: after a backup without files was put back elsewhere, a release is added again.
func TestMissingFileOfAReleaseMayComeAgain(t *testing.T) {
	const text = "a worker"
	digest := hash(text)
	add := func(s *Server) error {
		if _, err := s.Upload(digest, strings.NewReader(text)); err != nil {
			return err
		}
		n := NewRelease{Version: "v1"}
		n.Files = append(n.Files, struct {
			Name   string `json:"name"`
			SHA256 string `json:"sha256"`
		}{"jar/worker-agent.jar", digest})
		_, err := s.AddRelease(n)
		return err
	}
	s := reopened(t, t.TempDir())
	if err := add(s); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	restored(t, backupOf(t, s, false), dir, RestoreOptions{})
	report, err := Check(t.Context(), dir)
	if err != nil || len(report.Faults) != 1 {
		t.Fatalf("report %+v, %v: want the missing file", report, err)
	}
	if err := add(reopened(t, dir)); err != nil {
		t.Fatal(err)
	}
	if report, err := Check(t.Context(), dir); err != nil || len(report.Faults) != 0 {
		t.Errorf("report %+v, %v", report, err)
	}
	whole := t.TempDir()
	restored(t, backupOf(t, s, true), whole, RestoreOptions{})
	if report, err := Check(t.Context(), whole); err != nil || len(report.Faults) != 0 {
		t.Errorf("with its files: report %+v, %v", report, err)
	}
}
