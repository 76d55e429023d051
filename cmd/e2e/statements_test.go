//go:build linux

package e2e

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// TestMain builds the programs once and hands their directory on in the environment.
func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "e2e-programs")
		if err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // builds run as other accounts
			fmt.Fprintln(os.Stderr, "e2e:", err)
			return 1
		}
		if err := os.Setenv("E2E_DIR", dir); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			return 1
		}
		// Tests that go parallel wait for most of their time: more of them at once than there are processors.
		flag.Parse()
		asked := false
		flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == "test.parallel" })
		if !asked {
			if err := flag.Set("test.parallel", "16"); err != nil {
				fmt.Fprintln(os.Stderr, "e2e:", err)
				return 1
			}
		}
		return m.Run()
	}())
}

// built builds the programs at the first call. sync.OnceValues is the one thing that tests share.
var built = sync.OnceValues(func() (lab.Programs, error) {
	return lab.BuildPrograms(os.Getenv("E2E_DIR"), os.Getenv("E2E_RACE") == "1")
})

func programs(t *testing.T) lab.Programs {
	t.Helper()
	p, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A scenario is one run of an agent (or worker) that decides several statements.
type scenario struct {
	name    string
	modes   []string
	decides []int // statements of the scenario's modes; others are left out
	run     func(*S)
}

func both(name string, run func(*S), decides ...int) scenario {
	return scenario{name, []string{"split", "ask"}, decides, run}
}

func split(name string, run func(*S), decides ...int) scenario {
	return scenario{name, []string{"split"}, decides, run}
}

func ask(name string, run func(*S), decides ...int) scenario {
	return scenario{name, []string{"ask"}, decides, run}
}

func native(name string, run func(*S), decides ...int) scenario {
	return scenario{name, []string{"worker"}, decides, run}
}

func scenarios() []scenario {
	return slices.Concat(transportScenarios(), startupScenarios(), beatScenarios(), pollScenarios(), workerScenarios(),
		finishScenarios(), cleanupScenarios(), pipelineScenarios(), processScenarios(), daemonScenarios(), debugScenarios(), nativeScenarios(), upgradeScenarios())
}

// S is one run of a scenario in one mode. It is a lab.T; a failed check fails its statement only.
type S struct {
	name, mode string
	programs   lab.Programs
	parent     *testing.T
	done       chan struct{}

	mu       sync.Mutex
	verdicts map[int]*verdict
	aborted  string // why nothing was checked any more
	notes    []string
	cleanups []func()
	homes    []*lab.Home
}

type verdict struct {
	checks   int
	failures []string
}

// Helper does nothing: places in the code are not part of the report.
func (s *S) Helper() {}

// Logf adds a note to the report.
func (s *S) Logf(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

// Errorf fails every statement of the scenario.
func (s *S) Errorf(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.aborted == "" {
		s.aborted = fmt.Sprintf(format, args...)
	}
}

// Fatalf ends the scenario: what was not checked by then has failed.
func (s *S) Fatalf(format string, args ...any) {
	s.Errorf(format, args...)
	runtime.Goexit()
}

// TempDir returns a directory that lasts as long as the whole test.
func (s *S) TempDir() string {
	dir, err := os.MkdirTemp("", "devops-agent-e2e-")
	if err != nil {
		s.parent.Fatal(err)
	}
	s.parent.Cleanup(func() { // a process that is just ending may still write into it
		deadline := time.Now().Add(10 * time.Second)
		for err = os.RemoveAll(dir); err != nil && time.Now().Before(deadline); err = os.RemoveAll(dir) {
			runtime.Gosched()
		}
		if err != nil {
			s.parent.Error(err)
		}
	})
	return dir
}

// Cleanup runs a function at the end of the scenario, the last one first.
func (s *S) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, f)
}

// check decides a statement. The last arguments say what was expected and what was seen.
func (s *S) check(n int, ok bool, format string, args ...any) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.verdicts[n]
	if v == nil {
		v = &verdict{}
		s.verdicts[n] = v
	}
	v.checks++
	if !ok && len(v.failures) < 6 {
		v.failures = append(v.failures, fmt.Sprintf(format, args...))
	}
	return ok
}

func (s *S) execute(run func(*S)) {
	defer close(s.done)
	defer func() {
		for {
			s.mu.Lock()
			n := len(s.cleanups)
			if n == 0 {
				s.mu.Unlock()
				return
			}
			f := s.cleanups[n-1]
			s.cleanups = s.cleanups[:n-1]
			s.mu.Unlock()
			f()
		}
	}()
	defer func() {
		if p := recover(); p != nil {
			stack := make([]byte, 4<<10)
			s.Errorf("panic: %v\n%s", p, stack[:runtime.Stack(stack, false)])
		}
	}()
	run(s)
}

// failures says why a statement has not passed in this run, nothing when it has.
func (s *S) failures(n int) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.verdicts[n]
	var all []string
	if v != nil {
		all = append(all, v.failures...)
	}
	if s.aborted != "" && (v == nil || len(v.failures) == 0) {
		all = append(all, "run ended early: "+s.aborted)
	} else if v == nil {
		all = append(all, "not reached")
	}
	return all
}

// tail returns the end of the logs of this run, for the reader of a failure.
func (s *S) tail() string {
	var b strings.Builder
	for _, note := range s.notes {
		fmt.Fprintln(&b, note)
	}
	for _, h := range s.homes {
		text := h.Log()
		if len(text) > 3000 {
			text = "…" + text[len(text)-3000:]
		}
		fmt.Fprintf(&b, "logs of %s:\n%s\n", h.Dir, text)
	}
	return b.String()
}

// TestStatements decides the statements of protocol Part 8: one subtest each, in every mode it is about. The scenarios run
// side by side at real cadences; a subtest waits for those that decide it.
func TestStatements(t *testing.T) {
	p := programs(t)
	if p.Agent == "" {
		t.Fatal("cmd/agent has no code")
	}
	if _, err := nextPrograms(); err != nil { // not while others measure times
		t.Fatal(err)
	}
	list := scenarios()
	runs := map[string]*S{} // by scenario and mode; only used before subtests go parallel
	tokens := make(chan struct{})
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	go func() { // not all at once: a hundred programs that start together look slow
		tick := time.NewTicker(120 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			select {
			case <-stop:
				return
			case tokens <- struct{}{}:
			}
		}
	}()
	start := func(sc scenario, mode string) *S {
		key := sc.name + "\x00" + mode
		if s := runs[key]; s != nil {
			return s
		}
		s := &S{name: sc.name, mode: mode, programs: p, parent: t, done: make(chan struct{}), verdicts: map[int]*verdict{}}
		runs[key] = s
		go func() {
			<-tokens
			s.execute(sc.run)
		}()
		return s
	}
	var mu sync.Mutex
	rows := map[string]string{}
	shown := map[*S]bool{}
	t.Cleanup(func() { printTable(t, rows) })
	note := func(st statement, mode, result string) {
		mu.Lock()
		defer mu.Unlock()
		rows[fmt.Sprintf("%3d %s", st.n, mode)] = fmt.Sprintf("%4d  %-6s  %-7s  %s", st.n, mode, result, st.phrase)
	}
	for _, st := range statements() {
		t.Run(fmt.Sprintf("S%03d_%s", st.n, strings.ReplaceAll(st.phrase, " ", "_")), func(t *testing.T) {
			deciding := map[string][]*S{}
			for _, mode := range st.modes() {
				for _, sc := range list {
					if slices.Contains(sc.decides, st.n) && slices.Contains(sc.modes, mode) {
						deciding[mode] = append(deciding[mode], start(sc, mode))
					}
				}
			}
			t.Parallel()
			for _, mode := range st.modes() {
				t.Run(mode, func(t *testing.T) {
					if st.pending != "" && len(deciding[mode]) == 0 {
						note(st, mode, "pending")
						t.Log("pending: " + st.pending)
						return
					}
					if len(deciding[mode]) == 0 {
						t.Errorf("no scenario decides statement %d in mode %s", st.n, mode)
					}
					note(st, mode, "fail") // until proven otherwise
					for _, s := range deciding[mode] {
						<-s.done
						failures := s.failures(st.n)
						for _, failure := range failures {
							t.Errorf("%s: %s", s.name, failure)
						}
						mu.Lock()
						first := len(failures) > 0 && !shown[s]
						shown[s] = shown[s] || first
						mu.Unlock()
						if first {
							t.Log(s.tail())
						}
					}
					if !t.Failed() {
						note(st, mode, "pass")
					}
				})
			}
		})
	}
}

func printTable(t *testing.T, rows map[string]string) {
	keys := make([]string, 0, len(rows))
	count := map[string]int{}
	for key, row := range rows {
		keys = append(keys, key)
		count[strings.Fields(row)[2]]++
	}
	slices.Sort(keys)
	var b strings.Builder
	for _, key := range keys {
		fmt.Fprintln(&b, rows[key])
	}
	fmt.Fprintf(&b, "%d pass, %d fail, %d pending\n", count["pass"], count["fail"], count["pending"])
	fmt.Print(b.String())
	if path := os.Getenv("STATEMENTS_TABLE"); path != "" {
		err := os.MkdirAll(filepath.Dir(path), 0o755) //nolint:gosec // a report
		if err == nil {
			err = os.WriteFile(path, []byte(b.String()), 0o644) //nolint:gosec // a report
		}
		if err != nil {
			t.Errorf("write the table: %v", err)
		}
	}
}

// TestEveryStatementIsDecidedOnce keeps the table honest: numbers are complete, and what is not pending has a scenario.
func TestEveryStatementIsDecided(t *testing.T) {
	for i, st := range statements() {
		if st.n != i+1 {
			t.Fatalf("row %d of the table is statement %d", i+1, st.n)
		}
		for _, mode := range st.modes() {
			decided := false
			for _, sc := range scenarios() {
				decided = decided || slices.Contains(sc.modes, mode) && slices.Contains(sc.decides, st.n)
			}
			if !decided && st.pending == "" {
				t.Errorf("statement %d (%s) has no scenario in mode %s", st.n, st.phrase, mode)
			}
		}
	}
	if n := len(statements()); n != 127 {
		t.Errorf("%d statements, want 127", n)
	}
}
