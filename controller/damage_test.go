package controller

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// harm is one way in which the files of a data base get damaged.
type harm struct {
	name string
	do   func(t *testing.T, rng *rand.Rand, db string)
}

func rewriteFile(t *testing.T, path string, change func(data []byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func garbage(rng *rand.Rand, data []byte) {
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
}

// harms: what disks, people and other programs do to files.
func harms() []harm {
	return []harm{
		{"a page is garbage", func(t *testing.T, rng *rand.Rand, db string) {
			rewriteFile(t, db, func(d []byte) []byte {
				at := rng.IntN(len(d)/4096) * 4096
				garbage(rng, d[at:at+4096])
				return d
			})
		}},
		{"a page is zero", func(t *testing.T, rng *rand.Rand, db string) {
			rewriteFile(t, db, func(d []byte) []byte { at := rng.IntN(len(d)/4096) * 4096; clear(d[at : at+4096]); return d })
		}},
		{"two pages changed places", func(t *testing.T, rng *rand.Rand, db string) {
			rewriteFile(t, db, func(d []byte) []byte {
				a, b := rng.IntN(len(d)/4096)*4096, rng.IntN(len(d)/4096)*4096
				first, second := string(d[a:a+4096]), string(d[b:b+4096])
				copy(d[a:], second)
				copy(d[b:], first)
				return d
			})
		}},
		{"bytes flipped", func(t *testing.T, rng *rand.Rand, db string) {
			rewriteFile(t, db, func(d []byte) []byte {
				for range 1 + rng.IntN(50) {
					d[rng.IntN(len(d))] ^= 1 << rng.IntN(8)
				}
				return d
			})
		}},
		{"the header is garbage", func(t *testing.T, rng *rand.Rand, db string) {
			rewriteFile(t, db, func(d []byte) []byte { at := rng.IntN(100); garbage(rng, d[at:100]); return d })
		}},
		{"it is cut off", func(t *testing.T, rng *rand.Rand, db string) {
			rewriteFile(t, db, func(d []byte) []byte { return d[:1+rng.IntN(len(d)-1)] })
		}},
		{"it is empty", func(t *testing.T, _ *rand.Rand, db string) { rewriteFile(t, db, func([]byte) []byte { return nil }) }},
		{"it is a text", func(t *testing.T, _ *rand.Rand, db string) {
			rewriteFile(t, db, func([]byte) []byte { return []byte(strings.Repeat("this is no data base\n", 500)) })
		}},
		{"something follows it", func(t *testing.T, rng *rand.Rand, db string) {
			rewriteFile(t, db, func(d []byte) []byte {
				more := make([]byte, rng.IntN(20000))
				garbage(rng, more)
				return append(d, more...)
			})
		}},
		{"its write-ahead log is garbage", func(t *testing.T, rng *rand.Rand, db string) {
			more := make([]byte, 1+rng.IntN(100_000))
			garbage(rng, more)
			if err := os.WriteFile(db+"-wal", more, 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"its index of the write-ahead log is garbage", func(t *testing.T, rng *rand.Rand, db string) {
			more := make([]byte, 32768)
			garbage(rng, more)
			if err := os.WriteFile(db+"-shm", more, 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"a newer program wrote it", func(t *testing.T, _ *rand.Rand, db string) {
			raw := rawDatabase(t, db)
			if _, err := raw.Exec(`PRAGMA user_version = 1000`); err != nil {
				t.Fatal(err)
			}
			if err := raw.Close(); err != nil {
				t.Fatal(err)
			}
		}},
	}
}

// copyTree copies a data directory without what only a running controller has.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(filepath.Join(to, lockFile))
	_ = os.Remove(filepath.Join(to, databaseFile+"-shm"))
}

func fileText(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "none"
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestDamageOfEveryKind: whatever happens to the files, of a controller that was stopped or killed, it either starts with all of its
// agents and builds, or refuses in words, changes nothing, and the command that it names brings the newest backup back. The long
// run, with a seed of its own: CONTROLLER_HARMS=600 go test -run TestDamageOfEveryKind.
func TestDamageOfEveryKind(t *testing.T) {
	live, stopped, killed := t.TempDir(), filepath.Join(t.TempDir(), "stopped"), filepath.Join(t.TempDir(), "killed")
	s := reopened(t, live)
	w := &world{t: t, server: s}
	if _, err := s.CreateAgents(NewAgent{Labels: []string{"gpu"}}, 40); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		w.endedBuild(20, time.Now())
	}
	if err := s.backUp(t.Context(), filepath.Join(live, backupsDir), time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := s.store.aside(t.Context(), statements(`UPDATE counter SET value = value`)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.store.write.Exec(`PRAGMA wal_checkpoint(TRUNCATE)`); err != nil {
		t.Fatal(err)
	}
	w.endedBuild(20, time.Now()) // is in the write-ahead log alone
	copyTree(t, live, killed)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	copyTree(t, live, stopped)
	if info, err := os.Stat(filepath.Join(killed, databaseFile+"-wal")); err != nil || info.Size() == 0 {
		t.Fatalf("%v, %v", info, err)
	}

	rounds, seed := 60, uint64(26)
	if text := os.Getenv("CONTROLLER_HARMS"); text != "" {
		var err error
		if rounds, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	refused := 0
	for n := range rounds {
		h := harms()[n/2%len(harms())]
		from, builds := stopped, 4
		if n%2 == 1 {
			from = killed
		}
		dir := filepath.Join(t.TempDir(), "data")
		copyTree(t, from, dir)
		db := filepath.Join(dir, databaseFile)
		h.do(t, rng, db)
		if n%2 == 1 && h.name == "its write-ahead log is garbage" {
			builds = 3 // to SQLite that is a log that was never finished
		}
		before := fileText(t, db) + fileText(t, db+"-wal")
		s, err := Open(Options{Dir: dir})
		if err == nil {
			agents, list, berr := len(s.Agents()), 0, error(nil)
			if found, err := s.Builds(100, 0, false); err == nil {
				list = len(found)
			} else {
				berr = err
			}
			if agents != 40 || list != builds && berr == nil {
				t.Errorf("%d: %s: it starts with %d agents and %d builds, %v", n, h.name, agents, list, berr)
			}
			if err := s.Close(); err != nil && storageError(dir, err) == nil && !errors.As(damaged(db, err), new(*DamageError)) {
				t.Errorf("%d: %s: close: %v", n, h.name, err)
			}
			continue
		}
		refused++
		var damage *DamageError
		var newer *NewerError
		switch {
		case errors.As(err, &newer):
			if !strings.Contains(newer.Hint(), "newer") {
				t.Errorf("%d: %s: %s", n, h.name, newer.Hint())
			}
		case !errors.As(err, &damage):
			t.Errorf("%d: %s: refused with %v", n, h.name, err)
			continue
		case !strings.Contains(damage.Hint(), "devopsController restore --force --data "+dir+" "+damage.Backup) || !strings.Contains(damage.Backup, backupsDir):
			t.Errorf("%d: %s: hint %s", n, h.name, damage.Hint())
		}
		// Bytes in a record are found when it is read, after the pages: SQLite has opened the file to write by then.
		if h.name != "bytes flipped" && fileText(t, db)+fileText(t, db+"-wal") != before {
			t.Errorf("%d: %s: the files are others after the refusal", n, h.name)
		}
		if damage == nil || n%5 != 0 {
			continue
		}
		f, err := os.Open(damage.Backup)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Restore(t.Context(), io.Reader(f), dir, RestoreOptions{Force: true})
		if err := errors.Join(err, f.Close()); err != nil {
			t.Errorf("%d: %s: restore: %v", n, h.name, err)
			continue
		}
		s, err = Open(Options{Dir: dir})
		if err != nil {
			t.Errorf("%d: %s: after the restore: %v", n, h.name, err)
			continue
		}
		if agents := len(s.Agents()); agents != 40 {
			t.Errorf("%d: %s: %d agents after the restore", n, h.name, agents)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if refused < rounds/3 {
		t.Errorf("only %d of %d were refused: the test harms too little", refused, rounds)
	}
}
