package journal

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/devops-agent/devops-agent/upgrader/internal/powercut"
)

var errFault = errors.New("input/output error")

// TestEveryFaultLeavesOneCompleteVersion has one call fail, for every call, on a disk that works on.
func TestEveryFaultLeavesOneCompleteVersion(t *testing.T) {
	total := 0
	for _, s := range scenarios() {
		for n := 1; ; n++ {
			d, calls := s.disk(), 0
			d.Fault = func(op, path string) error {
				if calls++; calls == n {
					return errFault
				}
				return nil
			}
			j := onModel(d)
			begun := false
			err := func() error {
				if s.kind == FromVendor {
					_, err := j.Adopt(context.Background(), testVendor())
					if err != nil {
						return err
					}
				} else if _, err := j.Begin(s.plan()); err != nil {
					return err
				}
				begun = true
				return j.Apply(context.Background())
			}()
			if calls < n {
				break
			}
			total++
			d.Fault = nil
			if bad := s.complete(d); bad != nil {
				t.Errorf("%s: fault in call %d: %v", s.name, n, bad)
			}
			if err != nil {
				f, cerr := j.Current()
				if cerr != nil {
					t.Errorf("%s: fault in call %d: %v", s.name, n, cerr)
				}
				if begun && !errors.Is(err, errFault) || !begun && f.State != None {
					t.Errorf("%s: fault in call %d: begun %v, state %q, error %v", s.name, n, begun, f.State, err)
				}
				if f.State == None && s.generation(d) == "newer" {
					t.Errorf("%s: fault in call %d: the new parts stay after %v", s.name, n, err)
				}
			}
			if bad := s.recovered(d); bad != nil {
				t.Errorf("%s: fault in call %d, which was %v: %v", s.name, n, err, bad)
			}
		}
	}
	t.Logf("%d faults", total)
}

func TestApplyThatFailsSaysSo(t *testing.T) {
	s := scenarios()[1]
	d := s.disk()
	j := onModel(d)
	if _, err := j.Begin(s.plan()); err != nil {
		t.Fatal(err)
	}
	d.Fault = func(op, path string) error {
		if op == "rename" && strings.HasSuffix(path, "devopsDaemon") {
			return errFault
		}
		return nil
	}
	if err := j.Apply(context.Background()); !errors.Is(err, errFault) {
		t.Errorf("%v", err)
	}
	d.Fault = nil
	list, err := j.History()
	if err != nil || len(list) != 1 || list[0].State != Failed || !strings.Contains(list[0].Reason, errFault.Error()) || !list[0].Untold {
		t.Errorf("%+v, %v", list, err)
	}
	if bad := s.whole(j, d); bad != nil || generation(d, Agent) != "old" {
		t.Error(bad)
	}
	if bad, err := j.Bad(Agent, sum(content(Agent, "newer"))); bad != nil || err != nil {
		t.Errorf("a version that was never tried is bad: %+v, %v", bad, err)
	}
}

func TestEndedContextLeavesTheUpgradeToTheNextStart(t *testing.T) {
	s := scenarios()[1]
	d := s.disk()
	j := onModel(d)
	if _, err := j.Begin(s.plan()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := j.Apply(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("apply: %v", err)
	}
	if r, err := j.Recover(ctx, Last{}); !errors.Is(err, context.Canceled) || r.State != Ready {
		t.Errorf("recover: %+v, %v", r, err)
	}
	if generation(d, Agent) != "old" {
		t.Error("moved all the same")
	}
	if bad := s.recovered(d); bad != nil {
		t.Error(bad)
	}
}

func TestBeginThatFailsLeavesNothing(t *testing.T) {
	for _, s := range scenarios() {
		if s.kind == FromVendor {
			continue
		}
		for n := 1; ; n++ {
			d, calls := s.disk(), 0
			d.Fault = func(op, path string) error {
				if calls++; calls >= n && op != "remove" && op != "rename" && op != "sync" { // as on a full disk
					return errFault
				}
				return nil
			}
			j := onModel(d)
			if _, err := j.Begin(s.plan()); err == nil {
				break
			} else if calls < n {
				break
			}
			d.Fault = nil
			var left []string
			for _, name := range slices.Sorted(maps.Keys(d.Tree())) {
				if strings.HasPrefix(name, modelHome+"/upgrade/") || strings.Contains(name, "_1718000000") {
					left = append(left, name)
				}
			}
			if len(left) > 0 {
				t.Errorf("%s, full from call %d: left %q", s.name, n, left)
			}
		}
	}
}

// A disk without room still renames and removes. Nothing else works on it from the moment the upgrade is written down.
func TestFullDiskStopsNoUpgradeThatHasBegun(t *testing.T) {
	for _, s := range scenarios() {
		if s.kind == FromVendor {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			d := s.disk()
			j := onModel(d)
			if _, err := j.Begin(s.plan()); err != nil {
				t.Fatal(err)
			}
			d.Fault = func(op, path string) error {
				switch op {
				case "write", "copy", "mkdir", "symlink", "link":
					return errFault
				}
				return nil
			}
			if err := j.Apply(context.Background()); err != nil {
				t.Fatal(err)
			}
			if s.end != nil {
				if err := s.end(j); err != nil {
					t.Fatal(err)
				}
			} else if _, err := j.Recover(context.Background(), Last{}); err != nil {
				t.Fatal(err)
			}
			if err := s.whole(j, d); err != nil || s.generation(d) != s.wanted() {
				t.Errorf("%q, %v", s.generation(d), err)
			}
			for range 2 { // also what the record alone tells
				list, err := j.History()
				want := Settled
				if s.back {
					want = TakenBack
				}
				if err != nil || len(list) != 1 || list[0].State != want || !list[0].Untold {
					t.Errorf("%+v, %v", list, err)
				}
				d.Fault = nil
				j.Sweep()
			}
			if err := s.ended(j, d); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDamagedRecordIsPutAside(t *testing.T) {
	s := scenarios()[0]
	for name, spoil := range map[string]func(d *powercut.Disk, file string){
		"empty":     func(d *powercut.Disk, file string) { d.Seed(file, "", 0o600) },
		"zeros":     func(d *powercut.Disk, file string) { d.Seed(file, strings.Repeat("\x00", 700), 0o600) },
		"other":     func(d *powercut.Disk, file string) { d.Seed(file, "hello\n", 0o600) },
		"giant":     func(d *powercut.Disk, file string) { d.Seed(file, strings.Repeat("x", most+1), 0o600) },
		"link":      func(d *powercut.Disk, file string) { _ = d.Remove(file); d.SeedLink(file, "/etc/passwd") },
		"directory": func(d *powercut.Disk, file string) { _ = d.Remove(file); d.SeedDir(file) },
		"a bit more": func(d *powercut.Disk, file string) {
			text, _ := d.ReadFile(file)
			d.Seed(file, string(text)+"x", 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := s.disk()
			j := onModel(d)
			if _, err := j.Begin(s.plan()); err != nil {
				t.Fatal(err)
			}
			spoil(d, modelHome+"/upgrade/open-ready")
			if _, err := j.Begin(s.plan()); err == nil {
				t.Error("another upgrade began beside it")
			}
			r, err := j.Recover(context.Background(), Last{})
			if err != nil || r.Damaged == "" || r.State != None {
				t.Fatalf("%+v, %v", r, err)
			}
			if generation(d, Agent) != "old" {
				t.Error(generation(d, Agent))
			}
			j.Sweep() // drops what the record was about
			if _, err := j.Begin(s.plan()); err != nil {
				t.Errorf("no upgrade any more: %v", err)
			}
		})
	}
}

func TestSecondRecordDoesNotComeToLifeLater(t *testing.T) {
	s := scenarios()[1]
	d := s.disk()
	j := onModel(d)
	if _, err := j.Begin(s.plan()); err != nil {
		t.Fatal(err)
	}
	text, err := d.ReadFile(j.path(dir, "open-ready"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Recover(context.Background(), Last{}); err != nil {
		t.Fatal(err)
	}
	d.Seed(modelHome+"/upgrade/open-ready", string(text), 0o600)
	d.Seed(modelHome+"/upgrade/open-trial-0", "rubbish", 0o600)
	d.Seed(modelHome+"/upgrade/open-trial-01", "not even a name", 0o600)
	if _, err := j.Recover(context.Background(), Last{}); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Settle(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if r, err := j.Recover(context.Background(), Last{}); err != nil || r.State != None {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	if generation(d, Agent) != "newer" {
		t.Error(generation(d, Agent))
	}
}

func TestLostFilesOfAnUpgradeDoNotKeepItOpen(t *testing.T) {
	for _, state := range []State{Ready, Trial, Undoing} {
		s := scenarios()[1]
		d := s.disk()
		j := onModel(d)
		r, err := j.Begin(s.plan())
		if err != nil {
			t.Fatal(err)
		}
		if state != Ready {
			if err := j.Apply(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Remove(j.in(r.ID)); err != nil {
			t.Fatal(err)
		}
		if state == Undoing {
			if _, err := j.Undo("it was bad", Last{}); err != nil {
				t.Errorf("%q: %v", state, err)
			}
		}
		for range MostStarts + 2 {
			_, _ = j.Recover(context.Background(), Last{})
			if err := s.complete(d); err != nil {
				t.Fatalf("%q: %v", state, err)
			}
		}
		if f, err := j.Current(); err != nil || f.State != None {
			t.Errorf("%q: still %q, %v", state, f.State, err)
		}
	}
}

func TestWhatHasBegunSurvivesAPowerCut(t *testing.T) {
	for _, s := range scenarios() {
		d := s.disk()
		j := onModel(d)
		var err error
		if s.kind == FromVendor {
			_, err = j.Adopt(context.Background(), testVendor())
		} else {
			_, err = j.Begin(s.plan())
		}
		if err != nil {
			t.Fatal(err)
		}
		for cut := range d.Cuts(100, 1) {
			if f, err := onModel(cut).Current(); err != nil || f.State != Ready {
				t.Fatalf("%s: %+v, %v", s.name, f, err)
			}
			if _, err := onModel(cut).Recover(context.Background(), Last{}); err != nil || s.generation(cut) != "newer" {
				t.Fatalf("%s: %q, %v", s.name, s.generation(cut), err)
			}
		}
	}
}

func TestBeginThatFailsLastIsForgottenForGood(t *testing.T) {
	s := scenarios()[1]
	d := s.disk()
	j := onModel(d)
	renamed := false
	d.Fault = func(op, path string) error {
		if renamed && op == "sync" {
			renamed = false
			return errFault
		}
		renamed = renamed || op == "rename" && filepath.Base(path) == recordOf
		return nil
	}
	if _, err := j.Begin(s.plan()); !errors.Is(err, errFault) {
		t.Fatal(err)
	}
	d.Fault = nil
	for cut := range d.Cuts(100, 1) {
		if f, err := onModel(cut).Current(); err != nil || f.State != None {
			t.Fatalf("%+v, %v", f, err)
		}
	}
}

// BK-CI's own install script and upgrader force nothing to the disk.
func TestOldProgramsAreForcedToTheDiskAsWell(t *testing.T) {
	s := scenario{parts: []Part{Agent, Daemon}, kind: FromServer, end: undone, back: true}
	d := s.disk()
	live := onModel(d).path("devopsAgent")
	if err := errors.Join(d.Remove(live), d.Write(live, []byte(content(Agent, "old")), 0o755)); err != nil {
		t.Fatal(err)
	}
	if _, err := onModel(d).Begin(s.plan()); err != nil {
		t.Fatal(err)
	}
	for cut := range d.Cuts(100, 1) {
		if bad := s.survives(cut); bad != nil {
			t.Fatal(bad)
		}
	}
}

func TestCopiesOfAForeignUpgraderAreForcedToTheDisk(t *testing.T) {
	s := scenarios()[1]
	for _, half := range []bool{false, true} {
		d := s.disk()
		j := onModel(d)
		if _, err := j.Begin(s.plan()); err != nil {
			t.Fatal(err)
		}
		live, text := j.path("devopsAgent"), content(Agent, "newer")
		if half { // it was killed while it copied
			text = text[:len(text)/2]
		}
		if err := errors.Join(d.Remove(live), d.Write(live, []byte(text), 0o755)); err != nil {
			t.Fatal(err)
		}
		if r, err := j.Recover(context.Background(), Last{}); err != nil || r.State != Trial {
			t.Fatalf("%+v, %v", r, err)
		}
		for cut := range d.Cuts(100, 1) {
			if generation(cut, Agent) != "newer" || generation(cut, Daemon) != "newer" {
				t.Errorf("%q, %q", generation(cut, Agent), generation(cut, Daemon))
			}
		}
	}
}
