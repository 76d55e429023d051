package controller

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// writeOn is a controller that writes changes of all sizes until it is killed.
func writeOn(dir string) error {
	s, err := Open(Options{Dir: dir})
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		if _, err := s.CreateAgent(NewAgent{}); err != nil {
			return err
		}
		b, err := s.Submit("", Spec{Name: fmt.Sprintf("build %d", n), Steps: []Step{{Script: "true"}}})
		if err != nil {
			return err
		}
		line := Line{Type: wire.LogNormal, Message: strings.Repeat("x", 1+rand.N(1<<(2+n%20)))}
		if err := s.store.appendLog(b.Number, 0, []Line{line}).wait(); err != nil {
			return err
		}
	}
}

// logOf is the state of the write-ahead log beside a data base.
func logOf(t *testing.T, db string) logState {
	t.Helper()
	s, err := writeAheadLog(db)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestAKilledControllerLeavesNoDamagedLog: also when the same data base is killed again and again, and when its last frame is torn.
func TestAKilledControllerLeavesNoDamagedLog(t *testing.T) {
	dir := t.TempDir()
	db := filepath.Join(dir, databaseFile)
	commits := int64(0)
	for _, after := range append(moments(t, 2*time.Second), 2*time.Second) {
		played(t, after, "write", dir)
		if _, err := os.Stat(db); errors.Is(err, os.ErrNotExist) {
			continue // it had not begun
		}
		s := logOf(t, db)
		if s.lost() {
			t.Errorf("killed after %v: %+v", after, s)
		}
		commits += s.good
		wal, err := os.ReadFile(db + "-wal")
		if err != nil {
			continue
		}
		for range 20 {
			cut := min(rand.N(6000), len(wal))
			if s, err := readWriteAheadLog(bytes.NewReader(wal[:len(wal)-cut]), 4096); err != nil || s.lost() {
				t.Errorf("%d bytes less at its end: %+v, %v", cut, s, err)
			}
		}
	}
	if commits == 0 {
		t.Error("nothing was committed before it was killed")
	}
	if _, err := os.Stat(db + damagedLogSuffix); err == nil {
		t.Error("a start has found damage")
	}
}

// logFile is a data directory whose agents are in the write-ahead log alone, a commit each.
func logFile(t *testing.T, commits int) (dir, db string) {
	t.Helper()
	live := t.TempDir()
	w := &world{t: t, server: reopened(t, live)}
	if err := w.server.store.checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range commits {
		if _, err := w.server.CreateAgent(NewAgent{}); err != nil {
			t.Fatal(err)
		}
	}
	dir = filepath.Join(t.TempDir(), "data")
	copyTree(t, live, dir)
	return dir, filepath.Join(dir, databaseFile)
}

// lastFrames are the places of the frames that end a commit.
func lastFrames(wal []byte) (at []int) {
	for i := logHeader; i+frameHeader+4096 <= len(wal); i += frameHeader + 4096 {
		if binary.BigEndian.Uint32(wal[i+4:]) != 0 {
			at = append(at, i)
		}
	}
	return at
}

// TestALogThatIsDamagedInTheMiddle: the controller starts with what SQLite sees, says what is lost, keeps a copy, and does not say it again.
func TestALogThatIsDamagedInTheMiddle(t *testing.T) {
	for _, c := range []struct {
		name   string
		harm   func(wal []byte, last []int)
		agents int
		lost   bool
	}{
		{"a page", func(wal []byte, last []int) { wal[last[3]+frameHeader+100] ^= 1 }, 3, true},
		{"a header", func(wal []byte, last []int) { clear(wal[last[3] : last[3]+frameHeader]) }, 3, true},
		{"4096 bytes, as disks lose them", func(wal []byte, last []int) { clear(wal[last[3]/4096*4096:][:4096]) }, -1, true},
		{"the header of all", func(wal []byte, _ []int) { wal[9] ^= 1 }, 0, true},
		{"the begin of the last commit", func(wal []byte, last []int) { wal[last[8]+4120+frameHeader+100] ^= 1 }, 9, true},
		{"the last frame", func(wal []byte, last []int) { clear(wal[last[9]+frameHeader:]) }, 9, false},
		{"nothing", func([]byte, []int) {}, 10, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, db := logFile(t, 10)
			var harmed string
			rewriteFile(t, db+"-wal", func(wal []byte) []byte {
				last := lastFrames(wal)
				if len(last) != 10 {
					t.Fatalf("%d commits", len(last))
				}
				c.harm(wal, last)
				harmed = string(wal)
				return wal
			})
			if report, err := Check(t.Context(), dir); err != nil || strings.Contains(strings.Join(report.Faults, "\n"), "are lost") != c.lost || c.lost && fileText(t, db+"-wal") != harmed {
				t.Errorf("check: %+v, %v", report, err)
			}
			if !c.lost { // else the check wrote it back
				dir, db = logFile(t, 10)
				rewriteFile(t, db+"-wal", func(wal []byte) []byte { c.harm(wal, lastFrames(wal)); return wal })
			}
			said := new(journal)
			s, err := Open(Options{Dir: dir, Log: slog.New(slog.NewTextHandler(said, nil))})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			if n := len(s.Agents()); c.agents >= 0 && n != c.agents {
				t.Errorf("%d agents, want %d", n, c.agents)
			}
			want, copied := 0, "none"
			if c.lost {
				want, copied = 1, harmed
			}
			if said.count("is damaged: what was committed") != want || said.count("hint=") != want {
				t.Errorf("the log:\n%s", &said.text)
			}
			if c.name == "a page" && said.count("lost=7 ") != 1 {
				t.Errorf("7 commits are lost; the log:\n%s", &said.text)
			}
			if fileText(t, db+damagedLogSuffix) != copied {
				t.Error("the copy is another")
			}
			if info, err := os.Stat(db + damagedLogSuffix); err == nil && os.PathSeparator == '/' && info.Mode().Perm() != 0o600 {
				t.Errorf("its mode is %v", info.Mode())
			}
			if report, err := Check(t.Context(), dir); err != nil || len(report.Faults) > 0 || (report.DamagedLog != "") != c.lost {
				t.Errorf("check: %+v, %v", report, err)
			}
			if _, err := s.CreateAgent(NewAgent{}); err != nil {
				t.Fatal(err)
			}
			if s := logOf(t, db); s.lost() { // as if it were killed now
				t.Errorf("the same damage again: %+v", s)
			}
		})
	}
}

// TestWhatIsRolledBackIsNoDamage: frames of a large change that never came to its end are behind those of a smaller one, with the same salts.
func TestWhatIsRolledBackIsNoDamage(t *testing.T) {
	db := filepath.Join(t.TempDir(), "x.db")
	raw := rawDatabase(t, db)
	for _, sql := range []string{`PRAGMA journal_mode = WAL`, `PRAGMA wal_autocheckpoint = 0`, `PRAGMA cache_size = 10`, `CREATE TABLE t (x)`,
		`BEGIN`, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 500) INSERT INTO t SELECT randomblob(3000) FROM n`, `ROLLBACK`,
		`INSERT INTO t VALUES (1)`, `INSERT INTO t VALUES (2)`} {
		if _, err := raw.Exec(sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	s := logOf(t, db)
	info, err := os.Stat(db + "-wal")
	if err != nil || info.Size() < s.at+100*4120 {
		t.Fatalf("nothing is behind: %+v, %v, %v", s, info, err)
	}
	if s.good != 3 || s.lost() {
		t.Errorf("%+v", s)
	}
}

// FuzzReadWriteAheadLog: whatever the bytes are, it ends, and what SQLite would take is within them.
func FuzzReadWriteAheadLog(f *testing.F) {
	frame := frameSum{order: binary.LittleEndian}
	wal := binary.BigEndian.AppendUint32(nil, logMagic)
	for _, v := range []uint32{3007000, 512, 0, 7, 8} {
		wal = binary.BigEndian.AppendUint32(wal, v)
	}
	frame.add(wal)
	wal = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(wal, frame.s0), frame.s1)
	for n := range uint32(4) {
		head := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, n+1), n%2)
		page := bytes.Repeat([]byte{byte(n)}, 512)
		frame.add(head)
		frame.add(page)
		head = append(head, wal[16:24]...)
		head = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(head, frame.s0), frame.s1)
		wal = append(append(wal, head...), page...)
	}
	if s, err := readWriteAheadLog(bytes.NewReader(wal), 0); err != nil || s.good != 2 || s.at != int64(len(wal)) || s.lost() {
		f.Fatalf("%+v, %v", s, err)
	}
	f.Add(wal, int64(512))
	f.Add(append([]byte("no header, and of no use at all."), wal[logHeader:]...), int64(512))
	f.Add([]byte{}, int64(0))
	f.Fuzz(func(t *testing.T, data []byte, page int64) {
		s, err := readWriteAheadLog(bytes.NewReader(data), page)
		if err != nil || s.at < 0 || s.at > int64(len(data)) || (s.good+s.behind)*(512+frameHeader) > int64(len(data)) {
			t.Errorf("%d bytes: %+v, %v", len(data), s, err)
		}
	})
}
