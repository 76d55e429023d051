//go:build lab && linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// law is what design and docs/upgrades.md say about which version runs, in as few words as it takes. It knows versions only, and
// nothing of files, journals and shelves.
type law struct {
	mode    string       // upgrade.mode
	runs    int          // the version that runs, none at first
	shipped int          // what the package has brought last, none where there is no package
	adopted int          // the package's version that was taken over last
	decided map[int]bool // versions of the package that were adopted, or looked at in mode server
	way     []int        // what ran before, the latest last; going back leads along it
	kept    int          // how many steps back are here for sure: two upgrades' old programs are kept
	fled    int          // the version that the last change was a rollback from, none when it was anything else
	shunned map[int]bool // versions that were left by rollbacks: the server does not bring them back before another one came
}

const none = -1

func newLaw() *law {
	return &law{mode: "server", runs: none, shipped: none, adopted: none, decided: map[int]bool{}, fled: none, shunned: map[int]bool{}}
}

// becomes is any upgrade that is carried out.
func (l *law) becomes(version int) {
	if l.runs != none {
		l.way, l.kept = append(l.way, l.runs), min(l.kept+1, 2)
	}
	l.runs, l.fled = version, none
	clear(l.shunned)
}

// start is one of the agent: a version of the package is decided on once; the first of all is always taken.
func (l *law) start() {
	if l.shipped == none {
		return
	}
	var takes bool
	switch {
	case l.runs == none:
		takes = true
	case l.mode == "server":
		takes = !l.decided[l.shipped] && l.shipped > l.runs
		l.decided[l.shipped] = true
	case l.mode == "package":
		takes = l.shipped != l.adopted
	}
	if takes {
		l.adopted, l.decided[l.shipped] = l.shipped, true
		if l.shipped != l.runs {
			l.becomes(l.shipped)
		}
	}
}

// offered is one by the server, which wants any version that is not the one that runs.
func (l *law) offered(version int) (taken bool) {
	if l.mode != "server" || l.shunned[version] {
		return false
	}
	l.becomes(version)
	return true
}

// file is "upgrade --from".
func (l *law) file(version int, force bool) (taken bool) {
	if l.mode != "server" && !force {
		return false
	}
	l.becomes(version)
	return true
}

// back is "rollback": a step back on the way.
func (l *law) back() {
	at := len(l.way) - 1
	to := l.way[at]
	l.way, l.kept = l.way[:at], l.kept-1
	l.leaves(to)
}

// again is "rollback VERSION" to where the last rollback came from.
func (l *law) again() {
	l.way, l.kept = append(l.way, l.runs), min(l.kept+1, 2)
	l.leaves(l.fled)
}

// leaves is what rollbacks have in common.
func (l *law) leaves(to int) {
	l.shunned[l.runs] = true
	delete(l.shunned, to)
	l.runs, l.fled = to, l.runs
}

// sequence is a home whose agent gets other versions from everywhere, and its keeper.
type sequence struct {
	*testing.T
	law    *law
	suites []suite
	sums   []map[string]string // SHA-256 of their programs
	rec    *lab.Recorder
	home   *lab.Home
	vendor string // the package's directory, "" where devopsDaemon keeps a home without package
	rng    *rand.Rand
	told   []string
	paused bool // the agent has refused an offer, and will not ask for a while
	kills  int
}

// stepLimit is how long a step may take on a busy machine.
const stepLimit = 60 * time.Second

func (q *sequence) must(err error) {
	q.Helper()
	if err != nil {
		q.Fatalf("after %q: %v", q.told, err)
	}
}

// tells notes what is done, for the reader of a failure.
func (q *sequence) tells(format string, args ...any) {
	q.told = append(q.told, fmt.Sprintf(format, args...))
}

// unpack replaces the package's files as dpkg does: each one unpacked beside, a second name for the old one, a rename.
func (q *sequence) unpack(version int) {
	q.Helper()
	for _, name := range suitePrograms() {
		path := filepath.Join(q.vendor, name)
		q.must(copyFile(q.suites[version].path(name), path+".dpkg-new"))
		if _, err := os.Lstat(path); err == nil {
			q.must(os.Link(path, path+".dpkg-tmp"))
		}
		q.must(os.Rename(path+".dpkg-new", path))
		if err := os.Remove(path + ".dpkg-tmp"); err != nil && !errors.Is(err, os.ErrNotExist) {
			q.must(err)
		}
	}
}

// keep runs the keeper until the test ends: what a unit does, or devopsDaemon.
func (q *sequence) keep() {
	if q.vendor == "" {
		q.home.StartProgram(q.home.Path("devopsDaemon"), "/", nil)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() {
		defer close(over)
		for ctx.Err() == nil {
			cmd := exec.Command(filepath.Join(q.vendor, "upgrader"), "start", "--home", q.home.Dir, "--vendor", q.vendor)
			cmd.Dir, cmd.Env = "/", q.env()
			if err := cmd.Start(); err != nil { // a package that is being unpacked has no upgrader for a moment
				q.Errorf("start the keeper: %v", err)
			} else {
				_ = cmd.Wait()
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond): // RestartSec
			}
		}
	}()
	q.Cleanup(func() {
		stop()
		for {
			lab.KillMarked("LAB_DIR=" + q.home.Lab)
			select {
			case <-over:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
}

func (q *sequence) env() []string {
	return []string{"LAB_DIR=" + q.home.Lab, "HOME=" + q.home.User, "PATH=" + os.Getenv("PATH"), "SHELL=/bin/sh", "LANG=C.UTF-8"}
}

// agents are the agents of this home, which is not what programs that were asked for something are.
func (q *sequence) agents() []int {
	var pids []int
	for _, pid := range lab.Marked("LAB_DIR=" + q.home.Lab) {
		program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && strings.HasPrefix(program, q.home.Path("devopsAgent")) && len(strings.Split(string(line), "\x00")) == 2 {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (q *sequence) pid(role string) int { return (&world{home: q.home}).pidOf(role) }

// signal sends one to the agent, or to the daemon that keeps it.
func (q *sequence) signal(s syscall.Signal, role string) {
	q.Helper()
	pid := q.pid(role)
	if pid <= 1 {
		q.Fatalf("after %q: no pid of the %s", q.told, role)
	}
	q.must(syscall.Kill(pid, s))
}

// restart is that of the service, after which what a start does is done.
func (q *sequence) restart(s syscall.Signal) {
	q.Helper()
	mark := q.rec.Mark()
	q.signal(s, "agent")
	if _, ok := q.rec.WaitFor(stepLimit, mark, lab.Startup); !ok {
		q.Fatalf("after %q: no agent starts; %s", q.told, q.home.Log())
	}
	q.paused = false
	q.law.start()
}

// crash is kill -9 of the keeper's process: the agent itself, which the program of a unit becomes, or devopsDaemon.
func (q *sequence) crash() {
	q.Helper()
	q.kills++
	if q.vendor != "" {
		q.tells("kill -9 agent")
		q.restart(syscall.SIGKILL)
		return
	}
	q.tells("kill -9 daemon")
	before := q.pid("daemon")
	q.signal(syscall.SIGKILL, "daemon")
	if !lab.Eventually(stepLimit, func() bool { return !lab.Running(before) }) {
		q.Fatalf("devopsDaemon %d does not end", before)
	}
	q.keep()
	if !lab.Eventually(stepLimit, func() bool {
		now := q.pid("daemon")
		return now != before && lab.Running(now)
	}) {
		q.Fatalf("after %q: no devopsDaemon", q.told)
	}
}

// types is what an operator does; it returns what was said, and whether the exit code was 0.
func (q *sequence) types(words ...string) (said string, done bool) {
	q.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), stepLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, q.home.Path("devopsAgent"), append(words, "--home", q.home.Dir)...)
	cmd.Dir, cmd.Env = "/", q.env()
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		q.Fatalf("after %q: %v: %v, %s; %s", q.told, words, err, out, q.home.Log())
	}
	return string(out), err == nil
}

// offer has the server want a version until the agent has answered.
func (q *sequence) offer(version int) {
	q.Helper()
	if q.paused {
		q.restart(syscall.SIGTERM)
		q.settled()
	}
	for _, name := range suitePrograms() {
		data, err := os.ReadFile(q.suites[version].path(name))
		q.must(err)
		q.rec.Publish(published(name), data)
	}
	mark := q.rec.Mark()
	again := ""
	if q.law.shunned[version] {
		again = ", which was left by a rollback"
	}
	q.tells("server %d%s", version, again)
	taken := q.law.offered(version)
	q.rec.Offer("agent")
	defer q.rec.Offer()
	if q.law.mode == "off" { // it does not even ask
		if _, ok := q.rec.WaitFor(stepLimit, mark, lab.Ask); !ok {
			q.Fatalf("after %q: no question; %s", q.told, q.home.Log())
		}
		return
	}
	answer, ok := q.rec.WaitFor(stepLimit, mark, lab.FinishUpgrade)
	if said := answer.Query.Get("success"); !ok || said != fmt.Sprint(taken) {
		q.Fatalf("after %q: the server heard success=%q, want %v; %s", q.told, said, taken, q.home.Log())
	}
	q.paused = !taken
}

// step is one thing that happens to the home.
func (q *sequence) step() {
	other := func() int { // than what runs
		version := q.rng.IntN(len(q.suites) - 1)
		if version >= q.law.runs {
			version++
		}
		return version
	}
	weights := []string{"server", "server", "server", "file", "file", "back", "back", "back"}
	if q.vendor != "" {
		weights = append(weights, "package", "package", "package", "mode")
	}
	switch weights[q.rng.IntN(len(weights))] {
	case "server":
		version := other()
		if q.law.fled != none && q.rng.IntN(2) == 0 {
			version = q.law.fled
			if q.rng.IntN(3) == 0 {
				q.tells("rollback --allow")
				clear(q.law.shunned)
				if said, done := q.types("rollback", "--allow"); !done {
					q.Fatalf("after %q: %s", q.told, said)
				}
			}
		}
		q.offer(version)
	case "file":
		version, force := other(), q.rng.IntN(2) == 0
		words := []string{"upgrade", "--wait", "--from", q.suites[version].dir}
		if force {
			words = append(words, "--force")
		}
		q.tells("file %d force=%v", version, force)
		taken := q.law.file(version, force)
		if said, done := q.types(words...); done != taken {
			q.Fatalf("after %q: done is %v: %s; %s", q.told, done, said, q.home.Log())
		}
	case "back":
		switch {
		case q.law.fled != none && q.rng.IntN(3) == 0: // where it came from
			to := q.law.fled
			q.tells("rollback %d", to)
			q.law.again()
			if said, done := q.types("rollback", "--wait", q.suites[to].version); !done {
				q.Fatalf("after %q: %s; %s", q.told, said, q.home.Log())
			}
		case q.law.kept > 0 && len(q.law.way) > 0:
			q.tells("rollback (to %d)", q.law.way[len(q.law.way)-1])
			q.law.back()
			if said, done := q.types("rollback", "--wait"); !done {
				q.Fatalf("after %q: %s; %s", q.told, said, q.home.Log())
			}
		default: // nothing that is here for sure
			q.offer(other())
		}
	case "package":
		version := q.rng.IntN(len(q.suites))
		q.tells("package %d", version)
		q.unpack(version)
		q.law.shipped = version
		q.restart(syscall.SIGTERM)
	case "mode":
		q.law.mode = []string{"server", "package", "off"}[q.rng.IntN(3)]
		q.tells("mode %s", q.law.mode)
		q.configure()
		q.restart(syscall.SIGTERM)
	}
	q.settled()
}

func (q *sequence) configure() {
	q.home.Write("agent.toml", fmt.Sprintf("protocol = \"ask\"\n[upgrade]\nsettle_after = \"0s\"\nmode = %q\n", q.law.mode))
}

// settled waits until nothing is under way, and compares what runs with what the law says.
func (q *sequence) settled() {
	q.Helper()
	var why error
	want := q.suites[q.law.runs]
	if !lab.Eventually(stepLimit, func() bool { why = q.differs(); return why == nil }) {
		q.Fatalf("after %q: not %d: %v; way %v, history %+v; %s", q.told, q.law.runs, why, q.law.way,
			(&upgradeWorld{world: &world{home: q.home}}).history(), q.home.Log())
	}
	list := q.rec.Of(lab.Ask)
	if len(list) == 0 || list[len(list)-1].Get("heartbeat", "masterVersion") != want.version {
		mark := q.rec.Mark()
		if _, ok := q.rec.Wait(stepLimit, mark, func(r lab.Request) bool { return r.Get("heartbeat", "masterVersion") == want.version }); !ok {
			q.Fatalf("after %q: no heartbeat of %s; %s", q.told, want.version, q.home.Log())
		}
	}
	if q.vendor != "" && q.law.shipped != none {
		for _, name := range suitePrograms() { // what "dpkg -V" looks at
			if is, err := digest(filepath.Join(q.vendor, name)); err != nil || is != q.sums[q.law.shipped][name] {
				q.Errorf("after %q: the package's %s is not what it was; %v", q.told, name, err)
			}
		}
	}
}

// differs says in what the home is not a version at rest, nil when it is.
func (q *sequence) differs() error {
	if open, _ := filepath.Glob(q.home.Path("upgrade", "open-*")); len(open) > 0 {
		return fmt.Errorf("%v", open)
	}
	pid := q.pid("agent")
	running, err1 := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	live, err2 := os.Stat(q.home.Path("devopsAgent"))
	if err := errors.Join(err1, err2); err != nil || !os.SameFile(running, live) {
		return fmt.Errorf("agent %d that runs is another file; %w", pid, err)
	}
	for _, name := range []string{"devopsAgent", "devopsDaemon"} {
		is, err := digest(q.home.Path(name))
		if err != nil {
			return err
		}
		if is != q.sums[q.law.runs][name] {
			return fmt.Errorf("%s is that of %d", name, slices.IndexFunc(q.sums, func(sums map[string]string) bool { return sums[name] == is }))
		}
	}
	if pids := q.agents(); !slices.Equal(pids, []int{pid}) {
		return fmt.Errorf("agents %v, and not %d alone", pids, pid)
	}
	return nil
}

// TestCrashSequences: package, server, operator and rollback change the version in any order, up and down, and now and then the keeper's
// process is killed in between. What runs is what the rule of the design says, each time.
func TestCrashSequences(t *testing.T) {
	seed := labSeed(t)
	first, err := shipped()
	if err != nil {
		t.Fatal(err)
	}
	suites := []suite{first}
	for n := 1; n < 5; n++ {
		v, err := first.another(filepath.Join(t.TempDir(), fmt.Sprint(n)), fmt.Sprintf("%s%d", strings.TrimSuffix(suiteVersion, "0"), n))
		if err != nil {
			t.Fatal(err)
		}
		suites = append(suites, v)
	}
	var sums []map[string]string
	for _, v := range suites {
		of := map[string]string{}
		for _, name := range suitePrograms() {
			if of[name], err = digest(v.path(name)); err != nil {
				t.Fatal(err)
			}
		}
		sums = append(sums, of)
	}
	var all sync.WaitGroup
	for n := range 24 {
		all.Go(func() { // all at once: they wait for most of their time
			packaged := n%6 != 5
			t.Run(fmt.Sprintf("%02d packaged=%v", n, packaged), func(t *testing.T) {
				q := &sequence{T: t, law: newLaw(), suites: suites, sums: sums, rng: rand.New(rand.NewPCG(seed, uint64(n)))} //nolint:gosec // a test repeats itself
				q.run(packaged)
			})
		})
	}
	all.Wait()
}

// run is one sequence.
func (q *sequence) run(packaged bool) {
	q.rec = lab.NewRecorder(q, lab.RecorderOptions{})
	q.home = lab.NewHome(q, programs(q.T), lab.HomeOptions{Gateway: q.rec.URL})
	q.home.Remove("devopsAgent")
	q.home.Remove("tmp/upgrader")
	begin := q.rng.IntN(len(q.suites))
	q.tells("begins with %d", begin)
	q.configure()
	if packaged {
		q.vendor = q.TempDir()
		q.unpack(begin)
		q.law.shipped = begin
	} else {
		for _, name := range suitePrograms() {
			q.must(copyFile(q.suites[begin].path(name), q.home.Path(name)))
		}
		q.law.runs = begin
	}
	q.keep()
	q.law.start()
	q.settled()
	for range 6 + q.rng.IntN(3) {
		q.step()
		if q.rng.IntN(4) == 0 {
			q.crash()
			q.settled()
		}
	}
	q.Logf("%d kills in %q", q.kills, q.told)
}
