package swap_test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/devops-agent/devops-agent/upgrader/internal/powercut"
	"github.com/devops-agent/devops-agent/upgrader/swap"
)

const (
	home      = "/home"
	live      = home + "/jdk"
	fresh     = home + "/jdk_2"
	displaced = home + "/jdk_1"
	elsewhere = "/opt/jdk"
)

// limit is how many disks are tried after each cut at most.
const limit = 1 << 10

// explored counts the disks that a test has looked at.
type explored struct{ cuts, again int }

func (e explored) report(t *testing.T) {
	t.Helper()
	t.Logf("%d disks after a power cut, %d after another one during recovery", e.cuts, e.again)
}

// release reads the directory at path, or where a link there leads: "old" or "new" if it is whole.
func release(d swap.Disk, path string) string {
	if info, err := d.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return "missing"
	} else if err == nil && info.Mode().Type() == fs.ModeSymlink {
		target, err := d.Readlink(path)
		if err != nil {
			return err.Error()
		}
		if !filepath.IsAbs(target) && !strings.HasPrefix(target, "/") {
			target = filepath.Join(filepath.Dir(path), target)
		}
		return release(d, target)
	}
	java, err := d.ReadFile(filepath.Join(path, "bin", "java"))
	text, rerr := d.ReadFile(filepath.Join(path, "release"))
	if err != nil || rerr != nil {
		return fmt.Sprint(err, rerr)
	}
	if string(java) != "java "+string(text) {
		return fmt.Sprintf("torn: %q and %q", java, text)
	}
	return string(text)
}

// plant writes a whole directory that is not forced to the disk.
func plant(d swap.Disk, dir, text string) error {
	return errors.Join(d.Mkdir(dir, 0o700), d.Mkdir(filepath.Join(dir, "bin"), 0o700),
		d.Write(filepath.Join(dir, "release"), []byte(text), 0o600),
		d.Write(filepath.Join(dir, "bin", "java"), []byte("java "+text), 0o700))
}

// scenery is where a replacement of a directory begins.
type scenery struct {
	live      string // what is there: "directory", "link", "our link", "nothing"
	freshLink bool   // fresh is a link
	forced    bool   // fresh is on the disk already
	displaced string
	disk      powercut.Disk // its settings
}

func (s scenery) String() string {
	return fmt.Sprintf("live is a %s, fresh link %v, forced %v, to %s, ordered %v, no exchange %v, no symlink %v",
		s.live, s.freshLink, s.forced, s.displaced, s.disk.Ordered, s.disk.NoExchange, s.disk.NoSymlink)
}

// gap tells whether live may be missing until RecoverDir.
func (s scenery) gap() bool {
	return s.live == "directory" && s.disk.NoExchange
}

func sceneries() (all []scenery) {
	for _, disk := range []powercut.Disk{{}, {NoExchange: true}, {NoExchange: true, NoSymlink: true}} {
		for _, what := range []string{"directory", "link", "our link", "nothing"} {
			for _, freshLink := range []bool{false, true} {
				if disk.NoSymlink && (freshLink || strings.Contains(what, "link")) {
					continue
				}
				for _, to := range []string{fresh, displaced} {
					for i := range 4 {
						s := scenery{live: what, freshLink: freshLink, forced: i < 2 || freshLink, displaced: to, disk: disk}
						s.disk.Ordered = i%2 == 0
						all = append(all, s)
					}
				}
			}
		}
	}
	return all
}

func (s scenery) build(t *testing.T) *powercut.Disk {
	t.Helper()
	d := powercut.New()
	d.Ordered, d.NoExchange, d.NoSymlink = s.disk.Ordered, s.disk.NoExchange, s.disk.NoSymlink
	seed := func(dir, text string) {
		d.Seed(dir+"/release", text, 0o600)
		d.Seed(dir+"/bin/java", "java "+text, 0o700)
	}
	d.SeedDir(home)
	switch s.live {
	case "directory":
		seed(live, "old")
	case "link":
		seed(elsewhere, "old")
		d.SeedLink(live, elsewhere)
	case "our link":
		seed(home+"/.jdk.2", "old")
		d.SeedLink(live, ".jdk.2")
	}
	if s.freshLink {
		seed("/opt/other", "new")
		d.SeedLink(fresh, "/opt/other")
	} else if s.forced {
		seed(fresh, "new")
	} else if err := plant(d, fresh, "new"); err != nil {
		t.Fatal(err)
	}
	return d.Clone()
}

// check looks at a disk after Dir and perhaps RecoverDir.
func (s scenery) check(d *powercut.Disk, done bool) error {
	now := release(d, live)
	var other string
	switch {
	case now == "new":
		other = "old"
	case now == "old" && !done:
		other = "new"
	case now == "missing" && s.live == "nothing" && !done:
		return nil
	default:
		return fmt.Errorf("live: %s", now)
	}
	if s.live == "nothing" {
		other = "missing"
	}
	at := release(d, s.displaced)
	if done && at != other {
		return fmt.Errorf("live: %s, displaced: %s", now, at)
	}
	unforced := other == "new" && !s.forced // then it need not be whole, nor there
	if s.displaced != fresh {
		if second := release(d, fresh); (second == "missing") == (at == "missing") && other != "missing" && !unforced {
			return fmt.Errorf("live: %s, displaced: %s, fresh: %s", now, at, second)
		} else if at == "missing" {
			at = second
		}
	}
	if at != other && !unforced {
		return fmt.Errorf("live: %s, the other: %s", now, at)
	}
	if err := swap.SweepOn(d, home); err != nil {
		return err
	}
	leads := make(map[string]bool)
	for _, path := range []string{live, fresh, s.displaced} {
		target, _ := d.Readlink(path)
		leads[target] = true
	}
	names, err := d.ReadDir(home)
	for _, name := range names {
		if name[0] == '.' && !leads[name] {
			return fmt.Errorf("left behind: %s", name)
		}
	}
	if err != nil || release(d, live) != now {
		return fmt.Errorf("swept away: %v", err)
	}
	if s.live == "link" && release(d, elsewhere) != "old" {
		return errors.New("the target of the link was touched")
	}
	return nil
}

func TestDirSurvivesEveryPowerCut(t *testing.T) {
	var seen explored
	for _, s := range sceneries() {
		image := s.build(t)
		for n, done := 0, false; !done; n++ {
			d := image.Clone()
			d.After(n)
			err := swap.Dir(d, live, fresh, s.displaced)
			if done = err == nil; !done && !errors.Is(err, powercut.ErrPower) {
				t.Fatalf("%v: %v", s, err)
			}
			for cut := range d.Cuts(limit, uint64(n)) {
				seen.cuts++
				at := fmt.Sprintf("%v: power cut after %d calls", s, n)
				if now := release(cut, live); now != "new" && now != "old" && !(now == "missing" && (s.gap() || s.live == "nothing")) {
					t.Fatalf("%s: live: %s\n%v", at, now, cut.Tree())
				}
				if done {
					if err := s.check(cut, true); err != nil {
						t.Fatalf("%s, all done: %v\n%v", at, err, cut.Tree())
					}
				}
				for m, whole := 0, false; !whole; m++ {
					r := cut.Clone()
					r.After(m)
					err := swap.RecoverDir(r, live, fresh, s.displaced)
					if whole = err == nil; !whole && !errors.Is(err, powercut.ErrPower) {
						t.Fatalf("%s: recover: %v\n%v", at, err, cut.Tree())
					}
					for again := range r.Cuts(limit, uint64(m)) {
						seen.again++
						if whole { // then it must be enough
							if err := s.check(again.Clone(), done); err != nil {
								t.Fatalf("%s, recovered: %v\nbefore: %v\nafter: %v", at, err, cut.Tree(), again.Tree())
							}
						}
						if err := swap.RecoverDir(again, live, fresh, s.displaced); err != nil {
							t.Fatalf("%s, and %d of recovery: %v\n%v", at, m, err, again.Tree())
						}
						if err := s.check(again, done); err != nil {
							t.Fatalf("%s, and %d of recovery: %v\nbefore: %v\nafter: %v", at, m, err, cut.Tree(), again.Tree())
						}
					}
				}
			}
		}
	}
	seen.report(t)
}

func TestDirTakesBackWhatFails(t *testing.T) {
	broken := errors.New("input/output error")
	for _, s := range sceneries() {
		image := s.build(t)
		for n, done := 0, false; !done; n++ {
			d, calls := image.Clone(), 0
			var failed string
			d.Fault = func(op, path string) error {
				if calls++; calls-1 == n {
					failed = op + " " + path
					return broken
				}
				return nil
			}
			err := swap.Dir(d, live, fresh, s.displaced)
			if done = failed == ""; done != (err == nil) || !done && !errors.Is(err, broken) {
				t.Fatalf("%v: %s failed: %v", s, failed, err)
			}
			if err := s.check(d, done); err != nil {
				t.Errorf("%v: %s failed: %v\n%v", s, failed, err, d.Tree())
			}
		}
	}
}

func TestDirThereAndBackAgain(t *testing.T) {
	for _, s := range sceneries() {
		d := s.build(t)
		before := release(d, live)
		if before == "missing" {
			continue
		}
		if err := swap.Dir(d, live, fresh, s.displaced); err != nil {
			t.Fatal(err)
		}
		if err := swap.Dir(d, live, s.displaced, home+"/failed"); err != nil {
			t.Fatalf("%v: %v\n%v", s, err, d.Tree())
		}
		if now, other := release(d, live), release(d, home+"/failed"); now != before || other != "new" {
			t.Errorf("%v: live: %s, failed: %s\n%v", s, now, other, d.Tree())
		}
		if err := d.Remove(home + "/failed"); err != nil {
			t.Error(err)
		}
		if target, err := d.Readlink(live); s.live == "link" && (err != nil || target != elsewhere) {
			t.Errorf("%v: the operator's link is %q, %v", s, target, err)
		}
		if err := swap.SweepOn(d, home); err != nil {
			t.Error(err)
		}
		if names, err := d.ReadDir(home); err != nil || len(names) > 2 {
			t.Errorf("%v: left %q, %v", s, names, err)
		}
	}
}

func TestALinkToWhatIsLiveIsNotTakenForNew(t *testing.T) {
	image := scenery{live: "our link", forced: true, disk: powercut.Disk{NoExchange: true}}.build(t)
	other := home + "/jdk_3"
	image.SeedLink(other, ".jdk.2")
	for n, done := 0, false; !done; n++ {
		d := image.Clone()
		d.After(n)
		done = swap.Dir(d, live, other, other) == nil
		for cut := range d.Cuts(limit, uint64(n)) {
			if err := errors.Join(swap.RecoverDir(cut, live, other, other), swap.SweepOn(cut, home)); err != nil {
				t.Fatal(err)
			}
			if now := release(cut, live); now != "old" || release(cut, fresh) != "new" {
				t.Fatalf("power cut after %d calls: live: %s\n%v", n, now, cut.Tree())
			}
		}
	}
}

func TestDirManyTimesLeavesNothingBehind(t *testing.T) {
	for _, disk := range []powercut.Disk{{}, {NoExchange: true}, {NoExchange: true, NoSymlink: true}} {
		d := powercut.New()
		d.NoExchange, d.NoSymlink = disk.NoExchange, disk.NoSymlink
		d.SeedDir(home)
		for i := range 6 {
			text := fmt.Sprint(i)
			if err := plant(d, fresh, text); err != nil {
				t.Fatal(err)
			}
			if err := swap.Dir(d, live, fresh, fresh); err != nil {
				t.Fatal(err)
			}
			if now := release(d, live); now != text {
				t.Errorf("%d: live: %s", i, now)
			}
			if old := release(d, fresh); i > 0 && old != fmt.Sprint(i-1) {
				t.Errorf("%d: displaced: %s", i, old)
			}
			if err := d.Remove(fresh); err != nil {
				t.Fatal(err)
			}
		}
		if err := swap.SweepOn(d, home); err != nil {
			t.Error(err)
		}
		if names, err := d.ReadDir(home); err != nil || len(names) > 2 {
			t.Errorf("left: %q, %v", names, err)
		}
	}
}

func TestDirRefuses(t *testing.T) {
	d := powercut.New()
	d.Seed(home+"/file", "x", 0o600)
	d.Seed(displaced+"/x", "x", 0o600)
	d.Seed(live+"/release", "old", 0o600)
	if err := plant(d, fresh, "new"); err != nil {
		t.Fatal(err)
	}
	before := d.Tree()
	for name, c := range map[string]struct {
		paths [3]string
		want  error
	}{
		"nothing fresh":        {[3]string{live, home + "/no", home + "/o"}, fs.ErrNotExist},
		"displaced is there":   {[3]string{live, fresh, displaced}, fs.ErrExist},
		"live is a file":       {[3]string{home + "/file", fresh, home + "/o"}, nil},
		"no directory of live": {[3]string{home + "/no/jdk", fresh, home + "/no/o"}, fs.ErrNotExist},
	} {
		err := swap.Dir(d, c.paths[0], c.paths[1], c.paths[2])
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.paths[0]) {
			t.Errorf("%s: %v", name, err)
		}
		if !maps.Equal(d.Tree(), before) {
			t.Errorf("%s: now %v", name, d.Tree())
		}
	}
}

func TestFileSurvivesEveryPowerCut(t *testing.T) {
	var seen explored
	const program, next, kept = home + "/devopsAgent", home + "/upgrade/1/new/devopsAgent", home + "/upgrade/1/old/devopsAgent"
	for _, what := range []string{"file", "link", "nothing"} {
		for _, backup := range []string{"", kept} {
			for _, earlier := range []bool{false, true} {
				for _, ordered := range []bool{false, true} {
					image := powercut.New()
					image.Ordered = ordered
					image.SeedDir(filepath.Dir(next))
					image.SeedDir(filepath.Dir(kept))
					before := "old"
					switch what {
					case "file":
						image.Seed(program, "old", 0o750)
					case "link":
						image.Seed("/usr/lib/devopsAgent", "old", 0o755)
						image.SeedLink(program, "/usr/lib/devopsAgent")
					default:
						before = ""
					}
					wantKept := before
					if earlier {
						if backup == "" {
							continue
						}
						image.Seed(backup, "first", 0o700)
						wantKept = "first"
					}
					if err := image.Write(next, []byte("new"), 0o700); err != nil {
						t.Fatal(err)
					}
					for n, done := 0, false; !done; n++ {
						d := image.Clone()
						d.After(n)
						err := swap.File(d, program, next, backup)
						if done = err == nil; !done && !errors.Is(err, powercut.ErrPower) {
							t.Fatal(err)
						}
						for cut := range d.Cuts(limit, uint64(n)) {
							seen.cuts++
							at := fmt.Sprintf("live is a %s, backup %q, earlier %v, ordered %v: power cut after %d calls", what, backup, earlier, ordered, n)
							got, err := cut.ReadFile(program)
							if err != nil && before != "" || string(got) != before && string(got) != "new" {
								t.Fatalf("%s: live: %q, %v", at, got, err)
							}
							if done && string(got) != "new" {
								t.Fatalf("%s, all done: live: %q", at, got)
							}
							if string(got) != "new" {
								if _, err := cut.Lstat(next); err != nil {
									continue // the fresh file itself was never forced
								}
								if again, err := cut.ReadFile(next); err != nil || string(again) != "new" {
									continue
								}
								if err := swap.File(cut, program, next, backup); err != nil {
									t.Fatalf("%s, again: %v", at, err)
								}
							}
							if got, err := cut.ReadFile(program); err != nil || string(got) != "new" {
								t.Fatalf("%s, again: live: %q, %v", at, got, err)
							}
							if backup != "" {
								if got, _ := cut.ReadFile(backup); string(got) != wantKept {
									t.Fatalf("%s: backup: %q", at, got)
								}
							}
							if info, err := cut.Lstat(program); err != nil || what == "file" && info.Mode() != 0o750 || what != "file" && info.Mode() != 0o700 {
								t.Fatalf("%s: %v, %v", at, info.Mode(), err)
							}
						}
					}
				}
			}
		}
	}
	seen.report(t)
}

func TestWriteFileSurvivesEveryPowerCut(t *testing.T) {
	var seen explored
	const path = home + "/.agent.properties"
	for _, before := range []string{"", "old"} {
		for _, ordered := range []bool{false, true} {
			image := powercut.New()
			image.Ordered = ordered
			image.SeedDir(home)
			if before != "" {
				image.Seed(path, before, 0o640)
			}
			for n, done := 0, false; !done; n++ {
				d := image.Clone()
				d.After(n)
				err := swap.WriteFileOn(d, path, []byte("new"), 0o600)
				if done = err == nil; !done && !errors.Is(err, powercut.ErrPower) {
					t.Fatal(err)
				}
				for cut := range d.Cuts(limit, uint64(n)) {
					seen.cuts++
					got, err := cut.ReadFile(path)
					info, _ := cut.Lstat(path)
					switch {
					case string(got) == "new" && info.Mode() == 0o600:
					case !done && string(got) == before && (err == nil || before == ""):
					default:
						t.Fatalf("power cut after %d calls: %q, %v", n, got, err)
					}
				}
			}
		}
	}
	seen.report(t)
}

func TestFileFailsWithoutATrace(t *testing.T) {
	const program, next, kept = home + "/devopsAgent", home + "/new/devopsAgent", home + "/old/devopsAgent"
	broken := errors.New("input/output error")
	for n := 0; ; n++ {
		d, calls := powercut.New(), 0
		d.Seed(program, "old", 0o750)
		d.Seed(next, "new", 0o700)
		d.SeedDir(filepath.Dir(kept))
		var log []string
		d.Fault = func(op, path string) error {
			log = append(log, op)
			if calls++; calls-1 == n {
				return broken
			}
			return nil
		}
		err := swap.File(d, program, next, kept)
		if err == nil {
			if want := []string{"adopt", "sync", "link", "sync", "rename", "sync", "sync"}; !slices.Equal(log, want) {
				t.Errorf("order of calls: %q, want %q", log, want)
			}
			break
		}
		got, _ := d.ReadFile(program)
		if again, rerr := d.ReadFile(next); !errors.Is(err, broken) || string(got) == "old" && (rerr != nil || string(again) != "new") ||
			string(got) != "old" && log[len(log)-1] != "sync" {
			t.Errorf("%q failed: %v; live: %q, fresh: %q", log, err, got, again)
		}
	}
	d := powercut.New()
	d.SeedDir(live)
	d.Seed(next, "new", 0o700)
	if err := swap.File(d, live, next, ""); err == nil {
		t.Error("a directory was replaced by a file")
	}
}
