//go:build lab && linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

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

	stages *stages
	known  map[string]bool // what lay in the home before the upgrade under way

	strangers map[int]int // how often a process was seen that is none of the home's
	took      time.Duration
	calmed    string // how long the home took to be calm, and what it waited for last
	tally     *tally
}

// stages is how far an upgrade is, for who wants to strike at a certain moment of it.
type stages struct {
	mu      sync.Mutex
	now     string
	since   time.Time
	hurt    bool // by us: nothing is to be learned from what takes long now
	usual   map[string]time.Duration
	changed chan struct{} // closed when now changes
}

func newStages() *stages {
	return &stages{since: time.Now(), usual: map[string]time.Duration{}, changed: make(chan struct{})}
}

// enter notes the stage that is now, and learns how long the one before took.
func (g *stages) enter(stage string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if stage == g.now {
		return
	}
	if took, known := g.usual[g.now], time.Since(g.since); !g.hurt {
		if took == 0 {
			took = known
		}
		g.usual[g.now] = (took + known) / 2
	}
	g.now, g.since = stage, time.Now()
	close(g.changed)
	g.changed = make(chan struct{})
}

// injure says whether what comes now takes longer by our fault.
func (g *stages) injure(hurt bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hurt = hurt
}

// current is the stage, and what is closed when it changes.
func (g *stages) current() (string, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.now, g.changed
}

// length is how long a stage takes usually.
func (g *stages) length(stage string) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return max(g.usual[stage], time.Millisecond)
}

// await waits for a stage until over is closed; then it reports false.
func (g *stages) await(want func(stage string) bool, over <-chan struct{}) bool {
	for {
		select {
		case <-over:
			return false
		default:
		}
		now, changed := g.current()
		if want(now) {
			return true
		}
		select {
		case <-changed:
		case <-over:
			return false
		}
	}
}

// tally is what the runs of all homes came to.
type tally struct {
	mu              sync.Mutex
	runs            int
	killed          map[string]int
	outcomes        map[string]int
	states          map[string]int // stage of the upgrade at the moment of the kill
	open            int            // kills while an upgrade was written down and not ended
	unusable        []string
	reads, failures int
	firstFailures   []string
	slowest         time.Duration
	slow            string // what that one was
}

func (y *tally) count(m map[string]int, what string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	m[what]++
}

// newSite makes a home with the first edition in it; volume, if any, is mounted there.
func newSite(t *testing.T, keeper string, seed uint64, y *tally, volume *volume) *upgraded {
	t.Helper()
	s := &upgraded{T: t, rec: lab.NewRecorder(t, lab.RecorderOptions{}), releases: bothReleases(t), keeper: keeper,
		rng: rand.New(rand.NewPCG(seed, 4)), stages: newStages(), took: 3 * time.Second, tally: y} //nolint:gosec // a test repeats itself
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
func (s *upgraded) processes() map[string][]int { return s.byName(lab.Marked("LAB_DIR=" + s.home.Lab)) }

// soon is processes for who is in a hurry: what was no process of the home twice is not looked at again until the next upgrade.
func (s *upgraded) soon() map[string][]int {
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || s.strangers[pid] > 1 {
			continue
		}
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err == nil && bytes.Contains(environ, []byte("LAB_DIR="+s.home.Lab+"\x00")) {
			pids = append(pids, pid)
			continue
		}
		s.strangers[pid]++ // it may be about to become one of the home
	}
	return s.byName(pids)
}

func (s *upgraded) byName(pids []int) map[string][]int {
	found := map[string][]int{}
	for _, pid := range pids {
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
	begun := time.Now()
	last := ""
	noting := func() bool {
		done := calm()
		if why != nil {
			last = why.Error()
		}
		return done
	}
	if !lab.Eventually(limit, noting) {
		return fmt.Errorf("not calm after %v: %w", limit, why)
	}
	s.calmed = fmt.Sprintf("calm after %.1f s: %.100s", time.Since(begun).Seconds(), last)
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

// stage is how far the upgrade under way is, "" when none is: "collect" (the CLI copies), "fetch" and "unpack" (the agent), "stage" (copies
// for the record), and then the states of the record, with "jdk " before them when it is about that.
func (s *upgraded) stage(known map[string]bool) string {
	if state := s.state(); state != "" {
		name := strings.TrimPrefix(state, "open-")
		if text, err := os.ReadFile(s.home.Path("upgrade", state)); err == nil && !bytes.Contains(text, []byte("devopsAgent")) {
			return "jdk " + name
		}
		return name
	}
	for _, one := range []struct{ stage, pattern string }{
		{"stage", "upgrade/[0-9]*"}, {"unpack", "jdk_*"}, {"fetch", "tmp/incoming/*"}, {"collect", "tmp/offered-*"},
	} {
		found, _ := filepath.Glob(s.home.Path(filepath.FromSlash(one.pattern)))
		for _, path := range found {
			if known[path] {
				continue
			}
			if _, err := os.Stat(filepath.Join(path, "attempt.json")); one.stage != "stage" || err != nil {
				return one.stage
			}
		}
	}
	return ""
}

// lying is what stage looks for and is there already.
func (s *upgraded) lying() map[string]bool {
	known := map[string]bool{}
	for _, pattern := range []string{"upgrade/[0-9]*", "jdk_*", "tmp/incoming/*", "tmp/offered-*"} {
		found, _ := filepath.Glob(s.home.Path(filepath.FromSlash(pattern)))
		for _, path := range found {
			known[path] = true
		}
	}
	return known
}

// follow keeps s.stages up to date until ctx is done. The kernel says when a name comes or goes.
func (s *upgraded) follow(ctx context.Context) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		s.Errorf("watch the home: %v", err)
		return
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer context.AfterFunc(ctx, func() { _ = events.Close() })()
	buf := make([]byte, 64<<10)
	for {
		for _, dir := range []string{"", "tmp", "tmp/incoming", "upgrade"} { // some come and go; one that is watched already stays so
			_, _ = unix.InotifyAddWatch(fd, s.home.Path(filepath.FromSlash(dir)), unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVE)
		}
		s.tally.mu.Lock()
		known := s.known
		s.tally.mu.Unlock()
		s.stages.enter(s.stage(known))
		_ = events.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // what comes and goes below these is not told
		if _, err := events.Read(buf); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
	}
}

// aims are the stages that runs wait for before they kill; some more often, since most can go wrong there. "" is any moment.
func aims(offered bool) []string {
	common := []string{"ready", "ready", "ready", "trial-0", "trial-0", "trial-0", "trial-1", "trial-1", "trial-1", "settle", "settle", "settle", "undo", "undo", "undo", ""}
	if offered {
		return append(common, "", "collect", "fetch", "unpack", "stage", "jdk ready", "jdk settle")
	}
	return common
}

// await waits for a moment to kill at: some time in an upgrade, or in a stage of it. An upgrade that has to go back for that is spoiled.
// It reports false when the upgrade was over before.
func (s *upgraded) await(aims []string, over <-chan struct{}) (hit bool) {
	aim, share := aims[s.rng.IntN(len(aims))], s.rng.Float64()
	is := func(stage string) bool { return stage == aim }
	after := func(d time.Duration) {
		select {
		case <-time.After(time.Duration(share * float64(d))):
		case <-over:
		}
	}
	switch {
	case aim == "":
		after(s.took)
		return true
	case aim == "undo":
		if !s.spoil(over) {
			return false
		}
	case !s.stages.await(is, over):
		return false
	}
	after(s.stages.length(aim) * 7 / 10) // to find the victim takes a moment, too
	return true
}

// spoil kills the new agent whenever it is started, until it is being taken back. Its server says nothing meanwhile, so that it does not
// settle before.
func (s *upgraded) spoil(over <-chan struct{}) bool {
	endpoints := []lab.Endpoint{lab.Startup, lab.Ask, lab.Status, lab.Heartbeat}
	defer func() {
		for _, e := range endpoints {
			s.rec.On(e, nil)
		}
	}()
	begun := func(stage string) bool {
		return strings.HasPrefix(stage, "trial-") || stage == "ready" || stage == "undo"
	}
	for started := false; s.stages.await(begun, over); {
		for _, e := range endpoints {
			s.rec.Always(e, lab.Answer{Hang: true})
		}
		stage, changed := s.stages.current()
		if stage == "undo" {
			return true
		}
		s.stages.injure(true)
		if started && stage == "trial-0" {
			return false // one was missed, and is well but for its server
		}
		if strings.HasPrefix(stage, "trial-") && stage != "trial-0" {
			started = true
			for _, pid := range s.soon()["agent"] {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		select {
		case <-changed:
		case <-over:
		case <-time.After(10 * time.Millisecond):
		}
	}
	return false
}

// strike kills one process of the home, whichever, or all. It returns which, and at what stage.
func (s *upgraded) strike() (victim, stage string) {
	s.stages.injure(true)
	all := s.soon()
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	whole := s.rng.IntN(8) == 0
	stage = s.stage(s.known)
	s.tally.count(s.tally.states, stage)
	if open(stage) {
		s.tally.mu.Lock()
		s.tally.open++
		s.tally.mu.Unlock()
	}
	switch {
	case len(names) == 0:
		victim = "nothing, which was there"
	case whole:
		victim = "all at once"
		lab.KillMarked("LAB_DIR=" + s.home.Lab)
	default:
		victim = names[s.rng.IntN(len(names))]
		for _, pid := range all[victim] {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	s.tally.count(s.tally.killed, victim)
	return victim, stage
}

// errand is what somebody types; over is closed when it has ended.
type errand struct {
	over chan struct{}
	said string
	late bool // it did not end by itself in errandLimit
}

// words are what it has said so far, if it has ended.
func (e *errand) words() string {
	select {
	case <-e.over:
		return e.said
	default:
		return "nothing yet"
	}
}

// errandLimit is more than anything that an upgrade waits for.
const errandLimit = 2 * time.Minute

func (s *upgraded) errand(do func(ctx context.Context) ([]byte, error)) *errand {
	e := &errand{over: make(chan struct{})}
	go func() {
		defer close(e.over)
		ctx, cancel := context.WithTimeout(context.Background(), errandLimit)
		defer cancel()
		out, err := do(ctx)
		e.said, e.late = fmt.Sprintf("%s %v", out, err), ctx.Err() != nil
	}()
	return e
}

// offer runs the CLI.
func (s *upgraded) offer(target edition) *errand {
	return s.errand(func(ctx context.Context) ([]byte, error) {
		return s.command(ctx, filepath.Join(target.dir, "devopsAgent"), "upgrade", "--from", target.dir, "--force", "--wait", "--home", s.home.Dir).CombinedOutput()
	})
}

// drop puts the programs into tmp/ and runs the upgrader there, as an agent of the original does, and people. It is over when the
// upgrade is.
func (s *upgraded) drop(target edition) *errand {
	return s.errand(func(ctx context.Context) ([]byte, error) {
		for name := range target.sums {
			if out, err := s.command(ctx, "cp", filepath.Join(target.dir, name), s.home.Path("tmp", name)).CombinedOutput(); err != nil {
				return out, err
			}
		}
		out, err := s.command(ctx, s.home.Path("tmp", "upgrader"), "-action=upgrade").CombinedOutput()
		if !s.stages.await(func(stage string) bool { return stage == "" }, ctx.Done()) {
			err = errors.Join(err, errors.New("it does not end"))
		}
		return out, err
	})
}

// begin prepares for an upgrade to the edition that does not run, and returns that.
func (s *upgraded) begin() (before, target edition, err error) {
	if before, err = s.live(); err != nil {
		return before, target, err
	}
	if target = s.releases[0]; before.version == target.version {
		target = s.releases[1]
	}
	known := s.lying()
	s.tally.mu.Lock()
	s.known = known
	s.tally.mu.Unlock()
	s.strangers = map[int]int{}
	s.stages.injure(false)
	return before, target, nil
}

// whole is one upgrade that nobody disturbs: it teaches how long its stages take.
func (s *upgraded) whole() error {
	_, target, err := s.begin()
	if err != nil {
		return err
	}
	begun := time.Now()
	e := s.offer(target)
	<-e.over
	if err := s.calm(60 * time.Second); err != nil {
		return fmt.Errorf("%w; the upgrade said %q", err, e.said)
	}
	if now, err := s.live(); err != nil || now.version != target.version {
		return fmt.Errorf("an upgrade that nobody disturbed said %q; %s runs; %w", e.said, now.version, err)
	}
	s.took = time.Since(begun)
	return nil
}

// aimed begins upgrades until one is at a moment to kill at. At the third it takes what there is.
func (s *upgraded) aimed() (e *errand, before edition, err error) {
	for try := 1; ; try++ {
		before, target, err := s.begin()
		if err != nil {
			return nil, before, err
		}
		way, offered := s.offer, true
		if s.rng.IntN(3) == 0 && !s.refused(target) {
			way, offered = s.drop, false
		}
		e := way(target)
		if s.await(aims(offered), e.over) || try == 3 {
			return e, before, nil
		}
		<-e.over
		if err := s.calm(100 * time.Second); err != nil {
			return nil, before, fmt.Errorf("%w; an upgrade without a kill said %q", err, e.said)
		}
	}
}

// run is one upgrade with a kill -9 in it.
func (s *upgraded) run() error {
	e, before, err := s.aimed()
	if err != nil {
		return err
	}
	begun := time.Now()
	victim, stage := s.strike()
	<-e.over
	ended := time.Since(begun)
	if e.late {
		return fmt.Errorf("who asked for the upgrade was left waiting: %q", e.said)
	}
	if err := s.calm(100 * time.Second); err != nil {
		return fmt.Errorf("%w; the upgrade said %q", err, e.said)
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
	}
	s.tally.count(s.tally.outcomes, outcome)
	s.tally.mu.Lock()
	s.tally.runs++
	if took := time.Since(begun); took > s.tally.slowest {
		s.tally.slowest, s.tally.slow = took, fmt.Sprintf("%s at %q; %s; who asked was told after %.1f s; %s", victim, stage, outcome, ended.Seconds(), s.calmed)
	}
	report := s.tally.runs%50 == 0
	s.tally.mu.Unlock()
	if report {
		progress(s.tally.sums()...)
	}
	return nil
}

// progress writes lines to where "make" shows them at once, if it does.
func progress(lines ...string) {
	path := os.Getenv("LAB_PROGRESS")
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return
	}
	for _, line := range lines {
		_, _ = fmt.Fprintf(f, "%s %s\n", time.Now().UTC().Format(time.TimeOnly), line)
	}
	_ = f.Close()
}

// sums are the lines that tell what the runs have come to so far.
func (y *tally) sums() []string {
	y.mu.Lock()
	defer y.mu.Unlock()
	return []string{
		fmt.Sprintf("%d upgrades with a kill -9; unusable states: %d; well again after at most %.0f s (killed %s); %d kills in an upgrade that was written down and had not ended",
			y.runs, len(y.unusable), y.slowest.Seconds(), y.slow, y.open),
		"killed: " + listed(y.killed),
		"at: " + listed(y.states),
		"outcomes: " + listed(y.outcomes),
		fmt.Sprintf("readers: %d tries, %d failures", y.reads, y.failures),
	}
}

// enough is done when the tests are to end: somebody interrupts them, or their time is nearly over.
func enough(t *testing.T, reserve time.Duration) context.Context {
	t.Helper()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	t.Cleanup(stop)
	if end, ok := t.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-reserve))
		t.Cleanup(cancel)
	}
	return ctx
}

// refused reports that an edition was taken back here, and has not settled since: only the CLI can force it.
func (s *upgraded) refused(target edition) bool {
	names, _ := filepath.Glob(s.home.Path("upgrade", "*", "attempt.json"))
	slices.Sort(names)
	for _, name := range slices.Backward(names) {
		var a struct {
			State    string
			Forgiven bool
			Parts    []struct {
				New string `json:"new_sha256"`
			}
		}
		data, _ := os.ReadFile(name)
		if err := json.Unmarshal(data, &a); err != nil {
			continue
		}
		for _, part := range a.Parts {
			if part.New == target.sums["devopsAgent"] && a.State != "failed" {
				return a.State == "rolled-back" && !a.Forgiven
			}
		}
	}
	return false
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
		case filepath.Dir(name) == filepath.Join("tmp", "incoming"): // a download that was cut goes on from there, for a day
		case strings.HasSuffix(base, ".old"), strings.HasSuffix(base, ".new"), strings.HasSuffix(base, ".part"), strings.HasPrefix(base, ".devops-"),
			filepath.Dir(name) == "." && strings.HasPrefix(base, "jdk_"), strings.HasPrefix(name, "upgrade/open-"), strings.HasPrefix(name, "upgrade/damaged"),
			filepath.Dir(name) == "tmp" && strings.HasPrefix(base, "offered-"):
			found = append(found, name)
		case filepath.Dir(filepath.Dir(name)) == "upgrade" && base == "new":
			if inside, _ := os.ReadDir(path); len(inside) > 0 {
				found = append(found, name)
			}
		}
		if name == "jdk" || name == "logs" {
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
	begun, stop := time.Now(), enough(t, 4*time.Minute)
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
				var watchers sync.WaitGroup
				watchers.Go(func() { s.read(ctx) })
				watchers.Go(func() { s.follow(ctx) })
				for range 2 {
					if err := s.whole(); err != nil {
						t.Error(err)
					}
				}
				for i := range (runs + homes - 1 - n) / homes {
					if stop.Err() != nil || t.Failed() {
						break
					}
					if err := s.run(); err != nil {
						bad := fmt.Sprintf("%s %d, run %d: %v", keeper, n/2, i, err)
						progress(bad)
						y.mu.Lock()
						y.unusable = append(y.unusable, bad)
						y.mu.Unlock()
						t.Errorf("run %d: %v", i, err)
						break
					}
				}
				cancel()
				watchers.Wait()
				s.end()
			})
		}
	})
	number(t, "%d homes, %d s", homes, int(time.Since(begun).Seconds()))
	for _, line := range y.sums() {
		number(t, "%s", line)
	}
	if y.runs < runs && !t.Failed() {
		t.Errorf("stopped after %d of %d upgrades: %v", y.runs, runs, context.Cause(stop))
	}
	if runs >= 40 && y.open*3 < y.runs { // it is half and more on a machine that has nothing else to do
		t.Errorf("only %d of %d kills were in an upgrade that was written down and had not ended: the aim is bad", y.open, y.runs)
	}
	for _, one := range y.firstFailures {
		t.Errorf("reader: %s", one)
	}
}

// TestCrashAgentComesBack: who wants an upgrade while the agent is just being started again waits for it, and replaces nothing below it.
func TestCrashAgentComesBack(t *testing.T) {
	t.Parallel()
	s := newSite(t, "upgrader start", 1, &tally{}, nil)
	before, target, err := s.begin()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(s.home.Path("runtime"), 0o700); err != nil {
		t.Fatal(err)
	}
	starting := flock.New(s.home.Path("runtime", "agent.lock"), flock.SetPermissions(0o600))
	if got, err := starting.TryLock(); err != nil || !got {
		t.Fatal(got, err)
	}
	for _, name := range []string{"", "agent.lock"} {
		if os.Getuid() == 0 {
			if err := os.Chown(s.home.Path("runtime", name), labAccount, labAccount); err != nil {
				t.Fatal(err)
			}
		}
	}
	e := s.offer(target)
	select {
	case <-e.over:
		t.Fatalf("the upgrade did not wait for the agent: %s", e.said)
	case <-time.After(2 * time.Second):
	}
	if now, err := s.live(); err != nil || now.version != before.version || s.state() != "" {
		t.Fatalf("below an agent that is starting: %s, upgrade %q, %v", now.version, s.state(), err)
	}
	if err := starting.Unlock(); err != nil {
		t.Fatal(err)
	}
	s.keep()
	<-e.over
	if err := s.calm(60 * time.Second); err != nil {
		t.Fatalf("%v; the upgrade said %q", err, e.said)
	}
	if now, err := s.live(); err != nil || now.version != target.version {
		t.Errorf("%s runs, %v; the upgrade said %q", now.version, err, e.said)
	}
	s.end()
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
