package controller

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// roleVariable makes this program play a controller that is killed: its value is one of the roles below, its arguments follow.
const roleVariable = "CONTROLLER_TEST_ROLE"

// play is what a killed program was about to do.
func play(role string, args []string) error {
	switch role {
	case "start":
		s, err := Open(Options{Dir: args[0]})
		if err != nil {
			return err
		}
		return s.Close()
	case "write":
		return writeOn(args[0])
	case "backup":
		_, err := SaveBackup(args[1], func(w io.Writer) error { return BackupStopped(context.Background(), args[0], "v1", w, true) })
		return err
	case "restore":
		f, err := os.Open(args[1])
		if err != nil {
			return err
		}
		_, err = Restore(context.Background(), f, args[0], RestoreOptions{Force: true})
		return errors.Join(err, f.Close())
	}
	return fmt.Errorf("role %q", role)
}

// played runs a role in a process of its own, kills it after some time, if that is not 0, and reports whether it came to its end.
func played(t *testing.T, after time.Duration, role string, args ...string) bool {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if after > 0 {
		timer := time.NewTimer(after)
		defer timer.Stop()
		select {
		case err := <-ended:
			ended <- err
		case <-timer.C:
			_ = cmd.Process.Kill()
		}
	}
	err := <-ended
	if err != nil && said.Len() > 0 {
		t.Errorf("%s %v: %v: %s", role, args, err, said.String())
	}
	return err == nil
}

// moments are random times within what a role takes when nobody kills it: CONTROLLER_KILLS of them, or a few.
func moments(t *testing.T, whole time.Duration) []time.Duration {
	t.Helper()
	n := 3
	if text := os.Getenv("CONTROLLER_KILLS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	list := make([]time.Duration, n)
	for i := range list {
		list[i] = 1 + rand.N(whole)
	}
	return list
}

// manyBuilds and manyLines are what the large data base of the first version holds.
const manyBuilds, manyLines = 200, 600

// largeFirstVersion is firstVersion with much in it.
func largeFirstVersion(t *testing.T) string {
	t.Helper()
	dir := firstVersion(t)
	db := rawDatabase(t, filepath.Join(dir, databaseFile))
	_, err := db.Exec(fmt.Sprintf(`
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d)
		INSERT INTO build (number, id, active, spec, doc) SELECT i+1000, printf('b-%%032d', i), 0, (SELECT spec FROM build WHERE active = 0),
			(SELECT json_set(doc, '$.number', i+1000, '$.id', printf('b-%%032d', i)) FROM build WHERE active = 0) FROM n;
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d)
		INSERT INTO log (build, last, lines) SELECT 1001, i, json_array(json_object('seq', i, 'at', 1, 'type', 'LOG', 'message', hex(randomblob(1000)))) FROM n`, manyBuilds, manyLines))
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// contentIn is what is in a data base file that nobody uses.
func contentIn(t *testing.T, path string) (version, builds, lines int) {
	t.Helper()
	db := rawDatabase(t, path)
	err := errors.Join(db.QueryRow(`PRAGMA user_version`).Scan(&version), db.QueryRow(`SELECT count(*) FROM build`).Scan(&builds),
		db.QueryRow(`SELECT count(*) FROM log WHERE build = 1001`).Scan(&lines), db.Close())
	if err != nil {
		t.Errorf("%s: %v", path, err)
	}
	return version, builds, lines
}

// TestKilledWhileItMigrates: a large data base of the first version is of one version or another after each kill, with all that was in it;
// from the first change on there is a whole copy of what it was; and the next start that nobody kills comes to the end.
func TestKilledWhileItMigrates(t *testing.T) {
	origin := largeFirstVersion(t)
	fresh := func() string {
		dir := filepath.Join(t.TempDir(), "data")
		copyTree(t, origin, dir)
		return dir
	}
	began := time.Now()
	if !played(t, 0, "start", fresh()) {
		t.Fatal("it does not come to an end")
	}
	whole, killed := time.Since(began), 0
	for _, after := range moments(t, whole) {
		dir := fresh()
		db := filepath.Join(dir, databaseFile)
		for range 2 { // the second one meets what the first one left
			if !played(t, after, "start", dir) {
				killed++
			}
			version, builds, lines := contentIn(t, db)
			if version < 1 || version > len(steps()) || builds != manyBuilds+2 || lines != manyLines {
				t.Errorf("killed after %v: version %d with %d builds and %d portions", after, version, builds, lines)
			}
			copies, _ := filepath.Glob(db + ".v*")
			if version > 1 && len(copies) == 0 {
				t.Errorf("killed after %v: version %d without a copy", after, version)
			}
			for _, kept := range copies {
				was, builds, lines := contentIn(t, kept)
				if was < 1 || was > version || builds != manyBuilds+2 || lines != manyLines {
					t.Errorf("killed after %v: the copy %s has version %d with %d builds and %d portions", after, kept, was, builds, lines)
				}
			}
		}
		if !played(t, 0, "start", dir) {
			t.Errorf("killed after %v: the next start does not come to an end", after)
		}
		if version, builds, _ := contentIn(t, db); version != len(steps()) || builds != manyBuilds+2 {
			t.Errorf("in the end version %d with %d builds", version, builds)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		for v := 1; v < len(steps()); v++ {
			if copies, _ := filepath.Glob(fmt.Sprintf("%s.v%d-*", db, v)); len(copies) > keptCopies {
				t.Errorf("%d copies: %v", len(copies), copies)
			}
		}
	}
	t.Logf("%d killed within %v", killed, whole)
}

// TestKilledWhileItBacksUpAndRestores: a backup has its name when it is whole; a restore that was killed is one that did not
// begin, or says that it must be done again, and then brings everything back.
func TestKilledWhileItBacksUpAndRestores(t *testing.T) {
	dir := largeFirstVersion(t)
	if !played(t, 0, "start", dir) {
		t.Fatal("it does not start")
	}
	file := filepath.Join(t.TempDir(), "whole"+backupSuffix)
	began := time.Now()
	if !played(t, 0, "backup", dir, file) {
		t.Fatal("no backup")
	}
	whole := time.Since(began)
	for _, after := range moments(t, whole) {
		half := filepath.Join(t.TempDir(), "half"+backupSuffix)
		played(t, after, "backup", dir, half)
		f, err := os.Open(half)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			_, err = ReadBackup(f, nil)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Errorf("killed after %v it left a backup that is none: %v", after, err)
		}
	}
	if !played(t, 0, "start", dir) {
		t.Error("what a killed backup left is in the way")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}

	began = time.Now()
	if !played(t, 0, "restore", dir, file) {
		t.Fatal("it cannot be restored")
	}
	whole = time.Since(began)
	again := 0
	for _, after := range moments(t, whole) {
		played(t, after, "restore", dir, file)
		s, err := Open(Options{Dir: dir})
		var unfinished *UnfinishedError
		if errors.As(err, &unfinished) {
			again++
			if !strings.Contains(unfinished.Hint(), "restore --force --data "+dir) {
				t.Errorf("hint %s", unfinished.Hint())
			}
			if !played(t, 0, "restore", dir, file) {
				t.Errorf("killed after %v: it cannot be done again", after)
			}
			s, err = Open(Options{Dir: dir})
		}
		if err != nil {
			t.Errorf("killed after %v: %v", after, err)
			continue
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if _, builds, lines := contentIn(t, filepath.Join(dir, databaseFile)); builds != manyBuilds+2 || lines != manyLines {
			t.Errorf("killed after %v: %d builds and %d portions", after, builds, lines)
		}
		kept, _ := filepath.Glob(filepath.Join(dir, keptPrefix+"*"))
		for _, old := range kept { // each is as large as the data directory
			if err := os.RemoveAll(old); err != nil {
				t.Error(err)
			}
		}
	}
	t.Logf("%d had to be done again", again)
}
