//go:build lab && linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// labAccount is the plain user that the crash lab's agents are, where the tests are root.
const labAccount = 64321

// upgraded is a home whose agent is upgraded to and fro between two releases, and its keeper.
type upgraded struct {
	*testing.T
	home     *lab.Home
	rec      *lab.Recorder
	releases [2]edition
	keeper   string // "devopsDaemon", or "upgrader start" in a loop, as service managers have it
	rng      *rand.Rand

	stop   context.CancelFunc
	kept   sync.WaitGroup
	output *os.File

	took  time.Duration // an upgrade, about
	tally *tally
}

// tally is what the runs of all homes came to.
type tally struct {
	mu              sync.Mutex
	runs            int
	killed          map[string]int
	outcomes        map[string]int
	states          map[string]int // of the open upgrade at the moment of the kill
	unusable        []string
	reads, failures int
	firstFailures   []string
	slowest         time.Duration
}

func (y *tally) count(m map[string]int, what string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	m[what]++
}

func envInt(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want a number", name, text)
	}
	return n
}

// labSeed is LAB_SEED, or another one each time; it is logged.
func labSeed(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(envInt(t, "LAB_SEED", int(time.Now().UnixNano()%1_000_000)+1))
	t.Logf("LAB_SEED=%d", seed)
	return seed
}

// newSite makes a home with the first edition in it; volume, if any, is mounted there.
func newSite(t *testing.T, keeper string, seed uint64, y *tally, volume *volume) *upgraded {
	t.Helper()
	s := &upgraded{T: t, rec: lab.NewRecorder(t, lab.RecorderOptions{}), releases: bothReleases(t), keeper: keeper,
		rng: rand.New(rand.NewPCG(seed, 4)), took: 3 * time.Second, tally: y} //nolint:gosec // a test repeats itself
	s.home = lab.NewHome(t, programs(t), lab.HomeOptions{Gateway: s.rec.URL, JDK: "-", TOML: "[upgrade]\nsettle_after = \"0s\"\n"})
	if volume != nil {
		volume.mountAt(t, s.home.Dir)
	}
	if err := s.releases[0].lay(s.home.Dir); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		for _, dir := range []string{s.home.Dir, s.home.User} {
			if out, err := exec.Command("chown", "-R", strconv.Itoa(labAccount)+":"+strconv.Itoa(labAccount), dir).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
	}
	if out, err := exec.Command("sync", "-f", s.home.Dir).CombinedOutput(); err != nil { // what is laid out is not what is tested
		t.Fatalf("%v: %s", err, out)
	}
	var err error
	if s.output, err = os.OpenFile(s.home.LabPath("keeper"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.rest()
		lab.KillMarked("LAB_DIR=" + s.home.Lab)
		_ = s.output.Close()
		if t.Failed() {
			s.tell()
		}
	})
	return s
}

// tell logs what a human would look at first.
func (s *upgraded) tell() {
	for _, name := range []string{"logs/devopsAgent.log", "logs/devopsUpgrader.log", "logs/devopsDaemon.log"} {
		data, _ := os.ReadFile(s.home.Path(name))
		s.Logf("%s: …%s", name, data[max(0, len(data)-5000):])
	}
	data, _ := os.ReadFile(s.home.LabPath("keeper"))
	s.Logf("keeper: …%s", data[max(0, len(data)-3000):])
	out, _ := exec.Command("find", s.home.Dir, "-maxdepth", "4", "-not", "-path", "*/jdk*/*", "-printf", "%M %TT %s %P\n").Output()
	s.Logf("home:\n%s", out)
}

// command prepares a program of this home, as its account and with its mark.
func (s *upgraded) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = s.home.Dir
	cmd.Env = []string{"LAB_DIR=" + s.home.Lab, "HOME=" + s.home.User, "PATH=" + os.Getenv("PATH"), "SHELL=/bin/sh", "LANG=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: labAccount, Gid: labAccount}
	}
	return cmd
}

// keep starts the keeper, which starts the agent whenever it has ended, until rest.
func (s *upgraded) keep() {
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.kept.Go(func() {
		for ctx.Err() == nil {
			if s.keeper == "devopsDaemon" && s.daemonRuns() { // an upgrade has started the next one
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
				continue
			}
			line := []string{s.home.Path("upgrader"), "keep", "--home", s.home.Dir}
			if s.keeper != "devopsDaemon" { // the one of a package, which is not upgraded with the home
				line = []string{filepath.Join(s.releases[0].dir, "upgrader"), "start", "--home", s.home.Dir}
			}
			// not bound to ctx: what the keeper has started is left alone
			cmd := s.command(context.Background(), line[0], line[1:]...)
			cmd.Stdout, cmd.Stderr = s.output, s.output
			ended := make(chan struct{})
			if err := cmd.Start(); err != nil {
				s.Errorf("start the keeper: %v", err)
				return
			}
			go func() { _ = cmd.Wait(); close(ended) }()
			select {
			case <-ctx.Done():
				_ = cmd.Process.Kill()
				<-ended
			case <-ended:
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond): // RestartSec of our units
				}
			}
		}
	})
}

// daemonRuns reports whether a devopsDaemon runs.
func (s *upgraded) daemonRuns() bool {
	text, err := os.ReadFile(s.home.Path("runtime", "daemon.pid"))
	if err != nil {
		return false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || !lab.Running(pid) {
		return false
	}
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil && strings.HasPrefix(filepath.Base(program), "devopsDaemon")
}

// rest ends the keeper, and not the agent.
func (s *upgraded) rest() {
	if s.stop != nil {
		s.stop()
		s.kept.Wait()
		s.stop = nil
	}
}

// processes are those of the home by what they are.
func (s *upgraded) processes() map[string][]int {
	found := map[string][]int{}
	for _, pid := range lab.Marked("LAB_DIR=" + s.home.Lab) {
		program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || len(text) == 0 {
			continue
		}
		args := strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
		first := ""
		if len(args) > 1 {
			first = args[1]
		}
		if os.Getppid() == pid || pid == os.Getpid() {
			continue
		}
		name := filepath.Base(strings.TrimSuffix(program, " (deleted)"))
		switch {
		case first == "version" || first == "-version":
			continue // the reader's, or one that is asked for its version
		case name == "devopsAgent" && (first == "upgrade" || first == "rollback"):
			name = "cli"
		case first == "status":
			continue
		case name == "devopsAgent":
			name = "agent"
		case name == "devopsDaemon":
			name = "daemon"
		case name == "upgrader" && (first == "guard" || first == "start" || first == "keep"):
			name = first
		case name == "upgrader":
			name = "upgrader"
		default:
			continue
		}
		found[name] = append(found[name], pid)
	}
	return found
}

// state is that of the open upgrade, as its file is named.
func (s *upgraded) state() string {
	names, _ := filepath.Glob(s.home.Path("upgrade", "open-*"))
	if len(names) == 0 {
		return ""
	}
	return filepath.Base(names[len(names)-1])
}

// live finds which edition the home has: all its programs must be of one.
func (s *upgraded) live() (edition, error) {
	for _, r := range s.releases {
		sum, err := digest(s.home.Path("devopsAgent"))
		if err != nil {
			return edition{}, err
		}
		if sum != r.sums["devopsAgent"] {
			continue
		}
		for name, want := range r.sums {
			if sum, err := digest(s.home.Path(name)); err != nil || sum != want {
				return edition{}, errors.Join(fmt.Errorf("devopsAgent is of %s, and %s is not", r.version, name), err)
			}
		}
		return r, nil
	}
	return edition{}, errors.New("devopsAgent is of no edition")
}

// jdk finds out whether the JDK is one of the two, and whole.
func (s *upgraded) jdk() error {
	text, err := os.ReadFile(s.home.Path("jdk", "bin", "java"))
	if err != nil {
		return err
	}
	for _, r := range s.releases {
		if string(text) != r.javaScript() {
			continue
		}
		for name, want := range r.files() {
			if got, err := os.ReadFile(s.home.Path("jdk", filepath.FromSlash(name))); err != nil || string(got) != want {
				return fmt.Errorf("%s of the JDK %s is not what it was; %w", name, r.java, err)
			}
		}
		return nil
	}
	return errors.New("jdk/bin/java is of no edition")
}

// calm waits until nothing is under way and the agent runs from the live file, and says what that took.
func (s *upgraded) calm(limit time.Duration) error {
	var why error
	calm := func() bool {
		if why = s.disturbed(); why == nil {
			if why = s.busy(); why == nil {
				why = s.disturbed() // it may have gone on between
			}
		}
		return why == nil
	}
	if !lab.Eventually(limit, calm) {
		return fmt.Errorf("not calm after %v: %w", limit, why)
	}
	return nil
}

// busy says what the agent itself has under way, as what comes before the upgrade is written down; and whether it works.
func (s *upgraded) busy() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, _ := s.command(ctx, s.home.Path("devopsAgent"), "status", "--json", "--home", s.home.Dir).Output() // its code says how well it is
	for _, phase := range []string{"downloading", "checking", "waiting", "replacing", "trial"} {
		if bytes.Contains(bytes.ReplaceAll(out, []byte(" "), nil), []byte(`"phase":`+strconv.Quote(phase))) {
			return fmt.Errorf("the agent is %s", phase)
		}
	}
	if !bytes.Contains(out, []byte(`"last_contact"`)) {
		return fmt.Errorf("the agent has not heard from its server: %s", out)
	}
	return nil
}

// disturbed says what is under way, nil when nothing is.
func (s *upgraded) disturbed() error {
	if state := s.state(); state != "" {
		return fmt.Errorf("upgrade is %s", state)
	}
	all := s.processes()
	for _, name := range []string{"cli", "upgrader", "guard", "start", "keep"} {
		if len(all[name]) > 0 {
			return fmt.Errorf("%s runs", name)
		}
	}
	if len(all["agent"]) != 1 {
		return fmt.Errorf("agents %v", all["agent"])
	}
	if path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", all["agent"][0])); err != nil || path != s.home.Path("devopsAgent") {
		return fmt.Errorf("the agent runs from %q; %w", path, err)
	}
	return nil
}

// usable is the verdict after a kill.
func (s *upgraded) usable() error {
	_, err := s.live()
	return errors.Join(err, s.usableParts())
}

// usableParts is that without a look at what belongs together, for the middle of an upgrade.
func (s *upgraded) usableParts() error {
	return errors.Join(s.jdk(), s.answers("devopsAgent", "version"), s.answers("jdk/bin/java", "-version"))
}

// answers runs a program of the home for its version.
func (s *upgraded) answers(name, arg string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := s.command(ctx, s.home.Path(filepath.FromSlash(name)), arg)
	cmd.Env = slices.DeleteFunc(cmd.Env, func(entry string) bool { return strings.HasPrefix(entry, "LAB_DIR=") }) // no part of the home: nobody kills it
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, arg, err, out)
	}
	for _, r := range s.releases {
		if bytes.Contains(out, []byte(r.version)) || bytes.Contains(out, []byte(r.java+")")) {
			return nil
		}
	}
	return fmt.Errorf("%s %s says %q", name, arg, out)
}

// read opens, stats and runs the agent and java as fast as it can, until ctx is done: each must be there and whole every time.
func (s *upgraded) read(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		var err error
		for _, name := range []string{"devopsAgent", "jdk/bin/java", "jdk/release", "jdk/lib/part39"} {
			path := s.home.Path(filepath.FromSlash(name))
			_, serr := os.Stat(path)
			f, oerr := os.Open(path)
			if oerr == nil {
				_ = f.Close()
			}
			err = errors.Join(err, serr, oerr)
		}
		if n%2 == 0 {
			err = errors.Join(err, s.answers("devopsAgent", "version"))
		} else {
			err = errors.Join(err, s.answers("jdk/bin/java", "-version"))
		}
		s.tally.mu.Lock()
		s.tally.reads++
		if err != nil {
			if s.tally.failures++; len(s.tally.firstFailures) < 5 {
				s.tally.firstFailures = append(s.tally.firstFailures, fmt.Sprintf("upgrade %q: %v", s.state(), err))
			}
		}
		s.tally.mu.Unlock()
	}
}

// await waits for a moment to kill at: some time in an upgrade, or a state of it and a little more.
func (s *upgraded) await() {
	if s.rng.IntN(3) == 0 {
		<-time.After(time.Duration(s.rng.Int64N(int64(s.took * 5 / 4))))
		return
	}
	want := []string{"open-ready", "open-trial-0", "open-trial-1", "open-settle"}[s.rng.IntN(4)]
	deadline := time.Now().Add(2 * s.took)
	for s.state() != want && time.Now().Before(deadline) {
		<-time.After(time.Millisecond)
	}
	<-time.After(time.Duration(s.rng.Int64N(int64(30 * time.Millisecond))))
}

// strike kills one process of the home, whichever, or all.
func (s *upgraded) strike() {
	all := s.processes()
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	if len(names) == 0 {
		s.tally.count(s.tally.killed, "nothing there")
		return
	}
	slices.Sort(names)
	s.tally.count(s.tally.states, strings.TrimPrefix(s.state(), "open-"))
	if s.rng.IntN(8) == 0 {
		s.tally.count(s.tally.killed, "all at once")
		lab.KillMarked("LAB_DIR=" + s.home.Lab)
		return
	}
	name := names[s.rng.IntN(len(names))]
	s.tally.count(s.tally.killed, name)
	for _, pid := range all[name] {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// offer runs the CLI and sends what it said when it has ended.
func (s *upgraded) offer(target edition) <-chan string {
	over := make(chan string, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		out, err := s.command(ctx, filepath.Join(target.dir, "devopsAgent"), "upgrade", "--from", target.dir, "--force", "--wait", "--home", s.home.Dir).CombinedOutput()
		over <- fmt.Sprintf("%s %v", out, err)
	}()
	return over
}

// drop puts the programs into tmp/ and runs the upgrader there, as an agent of the original does, and people.
func (s *upgraded) drop(target edition) <-chan string {
	over := make(chan string, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		for name := range target.sums {
			if out, err := s.command(ctx, "cp", filepath.Join(target.dir, name), s.home.Path("tmp", name)).CombinedOutput(); err != nil {
				over <- fmt.Sprintf("%s %v", out, err)
				return
			}
		}
		out, err := s.command(ctx, s.home.Path("tmp", "upgrader"), "-action=upgrade").CombinedOutput()
		over <- fmt.Sprintf("%s %v", out, err)
	}()
	return over
}

// run is one upgrade with a kill -9 in it.
func (s *upgraded) run() error {
	before, err := s.live()
	if err != nil {
		return err
	}
	target := s.releases[0]
	if before.version == target.version {
		target = s.releases[1]
	}
	begun := time.Now()
	way := s.offer
	if s.rng.IntN(3) == 0 && !s.refused(target) {
		way = s.drop
	}
	over := way(target)
	s.await()
	s.strike()
	said := <-over
	if err := s.calm(100 * time.Second); err != nil {
		return fmt.Errorf("%w; the upgrade said %q", err, said)
	}
	if err := s.usable(); err != nil {
		return err
	}
	after, err := s.live()
	outcome := "the new version runs"
	switch {
	case err != nil:
		return err
	case after.version == before.version && s.lastState() == "rolled-back":
		outcome = "taken back"
	case after.version == before.version:
		outcome = "not begun"
	default:
		s.took = (3*s.took + time.Since(begun)) / 4
	}
	s.tally.count(s.tally.outcomes, outcome)
	s.tally.mu.Lock()
	defer s.tally.mu.Unlock()
	s.tally.runs++
	s.tally.slowest = max(s.tally.slowest, time.Since(begun))
	return nil
}

// refused reports that an edition was taken back here before: only the CLI can force it.
func (s *upgraded) refused(target edition) bool {
	names, _ := filepath.Glob(s.home.Path("upgrade", "*", "attempt.json"))
	return slices.ContainsFunc(names, func(name string) bool {
		data, _ := os.ReadFile(name)
		return bytes.Contains(data, []byte(`"rolled-back"`)) && bytes.Contains(data, []byte(target.sums["devopsAgent"]))
	})
}

// lastState is how the last attempt ended.
func (s *upgraded) lastState() string {
	names, _ := filepath.Glob(s.home.Path("upgrade", "*", "attempt.json"))
	if len(names) == 0 {
		return ""
	}
	data, _ := os.ReadFile(slices.Max(names))
	for _, state := range []string{"rolled-back", "settled", "failed", "begun"} {
		if bytes.Contains(data, []byte(strconv.Quote(state))) {
			return state
		}
	}
	return ""
}

// strays lists what an upgrade has left that nobody needs: the next start and the one after have swept.
func (s *upgraded) strays() []string {
	var found []string
	_ = filepath.WalkDir(s.home.Dir, func(path string, entry fs.DirEntry, err error) error {
		name, _ := filepath.Rel(s.home.Dir, path)
		if err != nil {
			return nil
		}
		base := entry.Name()
		switch {
		case strings.HasSuffix(base, ".old"), strings.HasSuffix(base, ".new"), strings.HasSuffix(base, ".part"), strings.HasPrefix(base, ".devops-"),
			filepath.Dir(name) == "." && strings.HasPrefix(base, "jdk_"), strings.HasPrefix(name, "upgrade/open-"), strings.HasPrefix(name, "upgrade/damaged"):
			found = append(found, name)
		case filepath.Dir(filepath.Dir(name)) == "upgrade" && base == "new":
			if inside, _ := os.ReadDir(path); len(inside) > 0 {
				found = append(found, name)
			}
		}
		if name == "jdk" || name == "logs" || strings.HasPrefix(name, "tmp/offered-") { // the latter is what a killed CLI had collected; it goes after an hour
			return fs.SkipDir
		}
		return nil
	})
	kept, _ := filepath.Glob(s.home.Path("upgrade", "*", "old", "devopsAgent"))
	if len(kept) > 2 {
		found = append(found, kept...)
	}
	return found
}

// TestCrash: kill -9 of any process at any moment of an upgrade leaves one complete version that runs, and readers see nothing of it.
func TestCrash(t *testing.T) {
	runs, seed := envInt(t, "CRASH_RUNS", 60), labSeed(t)
	const homes = 4
	y := &tally{killed: map[string]int{}, outcomes: map[string]int{}, states: map[string]int{}}
	begun := time.Now()
	t.Run("homes", func(t *testing.T) {
		for n := range homes {
			keeper := []string{"devopsDaemon", "upgrader start"}[n%2]
			t.Run(fmt.Sprintf("%s %d", keeper, n/2), func(t *testing.T) {
				t.Parallel()
				s := newSite(t, keeper, seed+uint64(n), y, nil)
				s.keep()
				if err := s.calm(30 * time.Second); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(context.Background())
				var reader sync.WaitGroup
				reader.Go(func() { s.read(ctx) })
				for i := range (runs + homes - 1 - n) / homes {
					if err := s.run(); err != nil {
						y.mu.Lock()
						y.unusable = append(y.unusable, fmt.Sprintf("%s %d, run %d: %v", keeper, n/2, i, err))
						y.mu.Unlock()
						t.Errorf("run %d: %v", i, err)
						break
					}
				}
				cancel()
				reader.Wait()
				s.end()
			})
		}
	})
	number(t, "%d upgrades with a kill -9 in %d homes, %d s; unusable states: %d; slowest %.0f s", y.runs, homes, int(time.Since(begun).Seconds()), len(y.unusable), y.slowest.Seconds())
	number(t, "killed: %s", listed(y.killed))
	number(t, "in state: %s", listed(y.states))
	number(t, "outcomes: %s", listed(y.outcomes))
	number(t, "readers: %d tries, %d failures", y.reads, y.failures)
	for _, one := range y.firstFailures {
		t.Errorf("reader: %s", one)
	}
}

// end starts the agent twice more and looks for left-overs.
func (s *upgraded) end() {
	s.Helper()
	if s.Failed() {
		return
	}
	for range 2 {
		for _, pid := range s.processes()["agent"] {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err := s.calm(60 * time.Second); err != nil {
			s.Fatal(err)
		}
	}
	var left []string
	if !lab.Eventually(20*time.Second, func() bool { left = s.strays(); return len(left) == 0 }) {
		s.Errorf("left behind: %q", left)
	}
	if err := s.usable(); err != nil {
		s.Error(err)
	}
}

// listed writes counts in the order of their names.
func listed(m map[string]int) string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	for i, name := range names {
		if names[i] = fmt.Sprintf("%s %d", name, m[name]); name == "" {
			names[i] = fmt.Sprintf("none %d", m[name])
		}
	}
	return strings.Join(names, ", ")
}
