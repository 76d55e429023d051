package journal

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/upgrader/internal/powercut"
)

// model is a disk that can lose its power.
type model struct{ *powercut.Disk }

func (m model) Sum(path string) (string, error) {
	text, err := m.followed(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return sum(string(text)), nil
}

// followed reads a file, as os.ReadFile does, through links.
func (m model) followed(path string) ([]byte, error) { return m.ReadFile(path) }

func (m model) Tail(path string, most int64) ([]byte, error) {
	text, err := m.ReadFile(path)
	return text[max(0, int64(len(text))-most):], err
}

func sum(text string) string {
	s := sha256.Sum256([]byte(text))
	return hex.EncodeToString(s[:])
}

const (
	modelHome = "/opt/agent"
	vendorDir = "/usr/lib/devops-agent"
	freshJDK  = "jdk_1718000000"
	freshJDK7 = "jdk17_1718000000"
)

func onModel(d *powercut.Disk) *Journal {
	j := open(filepath.FromSlash(modelHome), model{d}, "linux", slog.New(slog.DiscardHandler))
	j.users = func(string) int { return 0 }
	j.now = func() time.Time { return time.Unix(1_800_000_000, 0) }
	return j
}

// scenario is one life of an upgrade, from nothing to its end.
type scenario struct {
	name    string
	parts   []Part
	missing []Part // that are not there before
	kind    Kind
	end     func(j *Journal) error // of a trial; nil: there is none
	back    bool                   // it ends with the old parts
}

func settled(j *Journal) error { _, err := j.Settle(); return err }
func undone(j *Journal) error  { _, err := j.Undo("it was bad", Last{How: "exit status 3"}); return err }

// tired uses up the starts of the new version.
func tired(j *Journal) error {
	for range MostStarts + 1 {
		if r, err := j.Recover(context.Background(), Last{}); err != nil || r.State != Trial {
			return err
		}
	}
	return nil
}

var everything = []Part{JDK, JDK17, Worker, Agent, Daemon, Native, Upgrader}

func scenarios() []scenario {
	programs := []Part{Agent, Daemon, Native, Upgrader}
	return []scenario{
		{name: "agent", parts: []Part{Agent}, kind: FromServer, end: settled},
		{name: "agent and daemon", parts: []Part{Agent, Daemon}, kind: FromServer, end: settled},
		{name: "programs", parts: programs, kind: FromFile, end: settled},
		{name: "programs, a daemon for the first time", parts: programs, missing: []Part{Daemon, Upgrader}, kind: FromTmp, end: settled},
		{name: "worker", parts: []Part{Worker}, kind: FromServer, end: settled},
		{name: "init script", parts: []Part{Init}, missing: []Part{Init}, kind: FromServer},
		{name: "JDK", parts: []Part{JDK}, kind: FromServer, end: settled},
		{name: "first JDK 17", parts: []Part{JDK17}, missing: []Part{JDK17}, kind: FromServer, end: settled},
		{name: "JDK, worker and init script", parts: []Part{JDK, Worker, Init}, kind: FromServer, end: settled},
		{name: "everything", parts: everything, kind: FromFile, end: settled},
		{name: "agent, taken back", parts: []Part{Agent}, kind: FromServer, end: undone, back: true},
		{name: "programs, taken back", parts: programs, kind: FromServer, end: undone, back: true},
		{name: "programs, a daemon for the first time, taken back", parts: programs, missing: []Part{Daemon}, kind: FromServer, end: undone, back: true},
		{name: "worker, taken back", parts: []Part{Worker}, kind: FromServer, end: undone, back: true},
		{name: "JDK, taken back", parts: []Part{JDK}, kind: FromServer, end: undone, back: true},
		{name: "first JDK 17, taken back", parts: []Part{JDK17}, missing: []Part{JDK17}, kind: FromServer, end: undone, back: true},
		{name: "everything, taken back", parts: everything, kind: FromFile, end: undone, back: true},
		{name: "agent and daemon, after too many starts", parts: []Part{Agent, Daemon}, kind: FromServer, end: tired, back: true},
		{name: "everything, after too many starts", parts: everything, kind: FromServer, end: tired, back: true},
		{name: "programs of a package, for the first time", parts: []Part{Agent, Daemon, Native}, missing: []Part{Agent, Daemon, Native}, kind: FromVendor},
		{name: "programs of a package", parts: []Part{Agent, Daemon, Native}, kind: FromVendor, end: settled},
		{name: "programs of a package, taken back", parts: []Part{Agent, Daemon, Native}, kind: FromVendor, end: undone, back: true},
	}
}

// content of a part. They differ in length, so that half of one is never another.
func content(p Part, generation string) string {
	return generation + " " + string(p) + strings.Repeat(" x", 3*len(generation))
}

func (s scenario) disk() *powercut.Disk {
	d := powercut.New()
	d.SeedDir(modelHome + "/tmp")
	for _, p := range s.parts {
		old := !slices.Contains(s.missing, p)
		switch {
		case p.tree():
			name := map[Part]string{JDK: freshJDK, JDK17: freshJDK7}[p]
			d.Seed(modelHome+"/"+name+"/bin/java", content(p, "newer"), 0o755)
			d.Seed(modelHome+"/"+name+"/release", content(p, "newer"), 0o644)
			if old {
				d.Seed(modelHome+"/"+string(p)+"/bin/java", content(p, "old"), 0o755)
				d.Seed(modelHome+"/"+string(p)+"/release", content(p, "old"), 0o644)
			}
		case s.kind == FromVendor:
			d.Seed(vendorDir+"/"+Place(p, "linux"), content(p, "newer"), 0o755)
		default:
			d.Seed(modelHome+"/tmp/"+Place(p, "linux"), content(p, "newer"), 0o755)
		}
		if !p.tree() && old {
			d.Seed(modelHome+"/"+Place(p, "linux"), content(p, "old"), 0o755)
		}
	}
	return d
}

func (s scenario) plan() Plan {
	p := Plan{Kind: s.kind, Proof: 30 * time.Second, Tell: true}
	for _, part := range s.parts {
		from := modelHome + "/tmp/" + Place(part, "linux")
		switch part {
		case JDK:
			from = modelHome + "/" + freshJDK
		case JDK17:
			from = modelHome + "/" + freshJDK7
		}
		p.Items = append(p.Items, Item{Part: part, From: filepath.FromSlash(from), Was: "1", Now: "2"})
	}
	return p
}

func testVendor() Vendor {
	return Vendor{
		Dir: filepath.FromSlash(vendorDir), Mode: ModeServer,
		Version: func(_ context.Context, program string) (string, error) {
			if strings.HasPrefix(filepath.ToSlash(program), vendorDir) {
				return "2", nil
			}
			return "1", nil
		},
		Compare: func(a, b string) (int, bool) { return strings.Compare(a, b), true },
	}
}

// run lives the whole scenario.
func (s scenario) run(j *Journal) error {
	if s.kind == FromVendor {
		if begun, err := j.Adopt(context.Background(), testVendor()); err != nil || !begun {
			return errors.Join(err, fmt.Errorf("begun: %v", begun))
		}
	} else if _, err := j.Begin(s.plan()); err != nil {
		return err
	}
	if err := j.Apply(context.Background()); err != nil {
		return err
	}
	if s.end == nil {
		_, err := j.Recover(context.Background(), Last{})
		return err
	}
	return s.end(j)
}

// generation of a part on a disk: "old", "newer", "" when there is none, or what is wrong with it.
func generation(d *powercut.Disk, p Part) string {
	at := modelHome + "/" + Place(p, "linux")
	names := []string{at}
	if p.tree() {
		names = []string{at + "/bin/java", at + "/release"}
	}
	var found []string
	for _, name := range names {
		text, err := d.ReadFile(filepath.FromSlash(name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			found = append(found, "")
		case err != nil:
			return err.Error()
		case string(text) == content(p, "old"):
			found = append(found, "old")
		case string(text) == content(p, "newer"):
			found = append(found, "newer")
		default:
			return fmt.Sprintf("torn: %q", text)
		}
	}
	if found = slices.Compact(found); len(found) > 1 {
		return fmt.Sprintf("mixed: %q", found)
	}
	return found[0]
}

func (s scenario) before(p Part) string {
	if slices.Contains(s.missing, p) {
		return ""
	}
	return "old"
}

// complete reports what is wrong with a disk at any instant: each part has to be the old one or the new one.
func (s scenario) complete(d *powercut.Disk) error {
	for _, p := range s.parts {
		got := generation(d, p)
		if got != s.before(p) && got != "newer" && (got != "" || !d.NoExchange || !p.tree()) {
			return fmt.Errorf("%s is %s", p, got)
		}
	}
	return nil
}

// whole reports what is wrong with a disk after recovery: one set, old or new, as the state says.
func (s scenario) whole(j *Journal, d *powercut.Disk) error {
	f, err := j.Current()
	if err != nil {
		return err
	}
	if f.State != None && f.State != Trial {
		return fmt.Errorf("it is still in state %q", f.State)
	}
	var olds, news []Part
	for _, p := range s.parts {
		got := generation(d, p)
		late := Move{Part: p}.late()
		switch {
		case got == "newer" && (!late || f.State == None):
			news = append(news, p)
		case got == s.before(p) && late && f.State == Trial:
		case got == s.before(p) && f.State == None:
			olds = append(olds, p)
		default:
			return fmt.Errorf("%s is %q in state %q", p, got, f.State)
		}
	}
	if len(olds) > 0 && len(news) > 0 {
		return fmt.Errorf("two generations live: %v and %v", olds, news)
	}
	return nil
}

var expected = regexp.MustCompile(`^/(usr|opt|opt/agent|opt/agent/(tmp|upgrade)(/[A-Za-z0-9._-]*\.(jar|sh)|/devops[A-Z][a-z]*|/upgrader|/vendor\.json|/[0-9]+-[0-9a-f]{4}(/attempt\.json|/record\.[a-z-]+|/cause\.json)?)?|` +
	`opt/agent/(devops[A-Z][a-z]*|upgrader|worker-agent\.jar|agent_docker_init\.sh)|opt/agent/(jdk|jdk17|\.jdk\.[0-9]+|\.jdk17\.[0-9]+)(/.*)?|usr/lib.*)$`)

// strays lists what should not be on a disk any more.
func strays(j *Journal, d *powercut.Disk) []string {
	kept := make(map[string]bool)
	list, _ := j.History()
	for _, a := range list {
		for _, c := range a.Parts {
			if c.Backup != "" {
				kept[modelHome+"/"+c.Backup] = true
				kept[modelHome+"/"+path.Dir(c.Backup)] = true
			}
		}
	}
	var found []string
	for _, name := range slices.Sorted(maps.Keys(d.Tree())) {
		if !expected.MatchString(name) && !kept[name] {
			found = append(found, name)
		}
	}
	for name := range kept {
		if _, err := d.Lstat(filepath.FromSlash(name)); err != nil {
			found = append(found, "missing "+name)
		}
	}
	return found
}

// recovered has a machine start again, as often as it likes, and lets the upgrade end; it reports what is wrong on the way.
func (s scenario) recovered(d *powercut.Disk) error {
	j := onModel(d)
	r, err := j.Recover(context.Background(), Last{})
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	if err := s.whole(j, d); err != nil {
		return fmt.Errorf("after recovery: %w", err)
	}
	if r.Damaged != "" {
		return fmt.Errorf("record at %s is damaged", r.Damaged)
	}
	if r.State == Trial && !r.Record.onTrial() {
		return errors.New("on trial is what nothing tries")
	}
	before := d.Tree()
	again, err := j.Recover(context.Background(), Last{})
	if err != nil {
		return fmt.Errorf("recover again: %w", err)
	}
	if again.State == Trial && again.Starts != r.Starts+1 && r.State == Trial {
		return fmt.Errorf("start %d is followed by start %d", r.Starts, again.Starts)
	}
	if r.State == None && !maps.Equal(before, d.Tree()) {
		return fmt.Errorf("another recovery changes something")
	}
	if err := s.whole(j, d); err != nil {
		return fmt.Errorf("after another recovery: %w", err)
	}
	f, err := j.Current()
	if err != nil {
		return err
	}
	if f.State == Trial {
		if err := s.end(j); err != nil {
			return fmt.Errorf("end: %w", err)
		}
		if want := s.wanted(); s.generation(d) != want {
			return fmt.Errorf("ended with %q", s.generation(d))
		}
	}
	return s.ended(j, d)
}

// generation is that of all parts that were there before.
func (s scenario) generation(d *powercut.Disk) string {
	for _, p := range s.parts {
		if !slices.Contains(s.missing, p) {
			return generation(d, p)
		}
	}
	return generation(d, s.parts[0])
}

// wanted is the generation that the scenario ends with.
func (s scenario) wanted() string {
	switch {
	case !s.back:
		return "newer"
	case len(s.missing) == len(s.parts):
		return ""
	}
	return "old"
}

// ended reports what is wrong with an installation when all is over.
func (s scenario) ended(j *Journal, d *powercut.Disk) error {
	j.Sweep()
	list, err := j.History()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(list, func(a Attempt) bool { return a.State == Settled || a.State == TakenBack }) {
		j.SweepTrees("jdk", "jdk17") // a crash came before there was a record of what was unpacked
	}
	if err := s.whole(j, d); err != nil {
		return fmt.Errorf("at the end: %w", err)
	}
	if f, err := j.Current(); err != nil || f.State != None {
		return fmt.Errorf("at the end: state %q, %w", f.State, err)
	}
	if found := strays(j, d); len(found) > 0 {
		return fmt.Errorf("left behind: %q", found)
	}
	isNew := s.generation(d) == "newer"
	var settled int
	for _, a := range list {
		if a.State == Begun || a.Untold != (a.State != Failed || a.Reason == "") && s.kind != FromVendor && a.State != Failed {
			return fmt.Errorf("history: %+v", a)
		}
		if a.State == Settled {
			settled++
		}
	}
	if (settled == 1) != isNew || settled > 1 {
		return fmt.Errorf("new: %v, and in history: %+v", isNew, list)
	}
	return nil
}

// explored counts the disks that were looked at.
type explored struct{ kills, killsTwice, cuts, cutsTwice int }

func (e *explored) add(o explored) {
	e.kills += o.kills
	e.killsTwice += o.killsTwice
	e.cuts += o.cuts
	e.cutsTwice += o.cutsTwice
}

func (e explored) sum() int { return e.kills + e.killsTwice + e.cuts + e.cutsTwice }

// disks are the kinds of disk that each scenario runs on.
func disks() map[string]func(*powercut.Disk) {
	return map[string]func(*powercut.Disk){
		"names in any order":          func(*powercut.Disk) {},
		"names in order":              func(d *powercut.Disk) { d.Ordered = true },
		"no exchange":                 func(d *powercut.Disk) { d.NoExchange = true },
		"neither exchange nor a link": func(d *powercut.Disk) { d.NoExchange, d.NoSymlink = true, true },
	}
}

func TestEveryCrashEndsWithOneCompleteVersion(t *testing.T) {
	var mu sync.Mutex
	var total explored
	t.Run("all", func(t *testing.T) {
		for _, s := range scenarios() {
			for kind, prepare := range disks() {
				hasTree := slices.ContainsFunc(s.parts, Part.tree)
				if strings.Contains(kind, "exchange") && !hasTree {
					continue // these differ in directories only
				}
				t.Run(s.name+"/"+kind, func(t *testing.T) {
					t.Parallel()
					e := s.explore(t, prepare)
					mu.Lock()
					defer mu.Unlock()
					total.add(e)
				})
			}
		}
	})
	t.Logf("%d states: %d kills, %d kills in the recovery from one, %d disks after a power cut, %d after one during recovery",
		total.sum(), total.kills, total.killsTwice, total.cuts, total.cutsTwice)
}

// bounds of one scenario on one kind of disk.
type bounds struct {
	cuts       int // disks after a power cut at one call
	secondStep int // in the recovery from a kill at call n, the kills at every so manieth call are tried
	secondCuts int // disks after a power cut there
}

// usual fits into a test run; JOURNAL_CRASHES=all in the environment is for the figure in docs/upgrades.md.
func usual() bounds {
	if os.Getenv("JOURNAL_CRASHES") == "all" {
		return bounds{cuts: 24, secondStep: 1, secondCuts: 3}
	}
	return bounds{cuts: 3, secondStep: 37, secondCuts: 2}
}

func (s scenario) explore(t *testing.T, prepare func(*powercut.Disk)) (e explored) {
	limit := usual()
	fresh := func() *powercut.Disk {
		d := s.disk()
		prepare(d)
		return d
	}
	for n := 0; ; n++ {
		d := fresh()
		d.After(n)
		err := s.run(onModel(d))
		if t.Failed() {
			return e
		}
		e.kills++
		if bad := s.survives(d.Clone()); bad != nil {
			t.Errorf("killed after %d calls: %v", n, bad)
		}
		for cut := range others(d.Cuts(limit.cuts, uint64(n))) {
			e.cuts++
			if bad := s.survives(cut); bad != nil {
				t.Errorf("power cut after %d calls: %v", n, bad)
				break
			}
		}
		if err == nil && d.Calls() < n { // the whole life fitted in
			if s.generation(d) != s.wanted() || n < 10 {
				t.Errorf("after %d calls it is %q", n, s.generation(d))
			}
			return e
		}
		for m := n % limit.secondStep; ; m += limit.secondStep {
			again := d.Clone()
			again.After(m)
			_, err := onModel(again).Recover(context.Background(), Last{})
			e.killsTwice++
			if bad := s.survives(again.Clone()); bad != nil {
				t.Errorf("killed after %d calls, and after %d of recovery: %v", n, m, bad)
			}
			for cut := range others(again.Cuts(limit.secondCuts, uint64(n*1000+m))) {
				e.cutsTwice++
				if bad := s.survives(cut); bad != nil {
					t.Errorf("killed after %d calls, and power cut after %d of recovery: %v", n, m, bad)
					break
				}
			}
			if err == nil || t.Failed() {
				break
			}
		}
	}
}

// others are the disks without the first, on which everything has survived, as after a kill.
func others(disks iter.Seq[*powercut.Disk]) iter.Seq[*powercut.Disk] {
	return func(yield func(*powercut.Disk) bool) {
		first := true
		for d := range disks {
			if !first && !yield(d) {
				return
			}
			first = false
		}
	}
}

// survives reports what is wrong with a disk on which something has just stopped, or becomes so when things go on.
func (s scenario) survives(d *powercut.Disk) error {
	if err := s.complete(d); err != nil {
		return fmt.Errorf("at once: %w", err)
	}
	return s.recovered(d)
}
