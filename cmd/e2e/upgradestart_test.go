//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// others are programs that replace those under test.
type others struct {
	dir                     string
	agent, daemon, upgrader string // of another version, which is good
	bad                     string // of ours; testdata/bad says what it does
	original                string // the same, and not one of ours
}

const nextVersion = "v9.9.9"

// nextPrograms builds them at the first call.
var nextPrograms = sync.OnceValues(func() (others, error) {
	o := others{dir: filepath.Join(os.Getenv("E2E_DIR"), "next")}
	root, err := lab.ModuleRoot()
	if err != nil {
		return o, err
	}
	foreign := filepath.Join(o.dir, "original")
	if err := os.MkdirAll(foreign, 0o755); err != nil { //nolint:gosec // other accounts execute what is in it
		return o, err
	}
	text, err := os.ReadFile(filepath.Join("testdata", "bad", "main.go"))
	if err == nil {
		err = os.WriteFile(filepath.Join(foreign, "main.go"), text, 0o600)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(foreign, "go.mod"), []byte("module example.com/original\n\ngo 1.24\n"), 0o600)
	}
	if err != nil {
		return o, err
	}
	for _, one := range []struct {
		path *string
		dir  string
		name string
		from string
	}{
		{&o.agent, root, "devopsAgent", "./cmd/agent"}, {&o.daemon, root, "devopsDaemon", "./cmd/daemon"}, {&o.upgrader, root, "upgrader", "./cmd/upgrader"},
		{&o.bad, root, "bad", "./cmd/e2e/testdata/bad"}, {&o.original, foreign, "original-agent", "."},
	} {
		*one.path = filepath.Join(o.dir, one.name)
		build := exec.Command("go", "build", "-trimpath", "-o", *one.path, "-ldflags",
			"-X github.com/devops-agent/devops-agent/cmd/internal/cli.version="+nextVersion, one.from)
		build.Dir = one.dir
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return o, fmt.Errorf("build %s: %w\n%s", one.name, err, out)
		}
	}
	return o, nil
})

// keeperOf is how an agent is kept in a test.
type keeperOf string

const (
	byDaemon keeperOf = "devopsDaemon"
	byStart  keeperOf = "upgrader start"
)

// upgradeWorld is a home with all programs, whose agent runs and has talked to its server.
type upgradeWorld struct {
	*world
	next   others
	kept   keeperOf
	daemon *lab.Agent
	env    []string
	old    []byte // the agent's program
	ended  chan struct{}
}

func newUpgradeWorld(t *testing.T, kept keeperOf, patience string) *upgradeWorld {
	t.Helper()
	next, err := nextPrograms()
	if err != nil {
		t.Fatal(err)
	}
	w := &upgradeWorld{world: daemonWorld(t), next: next, kept: kept, env: []string{"DEVOPS_TRIAL_PATIENCE=" + patience}}
	w.home.Write("agent.toml", "protocol = \"ask\"\n[upgrade]\nsettle_after = \"0s\"\n")
	w.home.Remove("tmp/upgrader") // shared with other homes
	w.install(w.programs.Upgrader, "tmp/upgrader")
	w.install(w.programs.Upgrader, "upgrader")
	w.install(w.programs.Daemon, "devopsDaemon")
	if w.old, err = os.ReadFile(w.home.Path("devopsAgent")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("upgrade/: %s\nhistory: %+v", w.left(), w.history())
		}
	})
	w.keep(t)
	return w
}

// keep starts the keeper: devopsDaemon, or a loop as a service manager has it.
func (w *upgradeWorld) keep(t *testing.T) {
	if w.kept == byDaemon {
		w.daemon = w.home.StartProgram(w.home.Path("devopsDaemon"), "/", nil, w.env...)
		w.next0(t)
		return
	}
	var stop atomic.Bool
	w.ended = make(chan struct{})
	go func() {
		defer close(w.ended)
		for !stop.Load() {
			_, _ = w.home.StartProgram(w.home.Path("upgrader"), "/", []string{"start", "--home", w.home.Dir}, w.env...).Wait(time.Hour)
		}
	}()
	t.Cleanup(func() {
		stop.Store(true)
		for {
			lab.KillMarked("LAB_DIR=" + w.home.Lab)
			select {
			case <-w.ended:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	w.next0(t)
}

func (w *upgradeWorld) next0(t *testing.T) {
	t.Helper()
	if _, ok := w.rec.WaitFor(startLimit, 0, lab.Ask); !ok {
		t.Fatalf("no request within %v; output: %s%s", startLimit, w.output(), w.home.Log())
	}
}

func (w *upgradeWorld) output() string {
	text, _ := os.ReadFile(w.home.LabPath("output"))
	return string(text)
}

// offer puts a program into tmp/.
func (w *upgradeWorld) offer(t *testing.T, program, name string) {
	t.Helper()
	path := w.home.Path("tmp", name)
	err := exec.Command("cp", "--remove-destination", program, path).Run()
	if err != nil {
		t.Fatalf("offer %s: %v", name, err)
	}
}

// upgrade runs tmp/upgrader as an agent of the original does, and returns its exit code and what it said.
func (w *upgradeWorld) upgrade(t *testing.T) (int, string) {
	t.Helper()
	before := len(w.output())
	a := w.home.StartProgram(w.home.Path("tmp", "upgrader"), w.home.Dir, []string{"-action=upgrade"}, w.env...)
	code, err := a.Wait(time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return code, w.output()[before:]
}

// attempt is a line of the history.
type attempt struct {
	ID       string
	State    string
	Reason   string
	LastExit string `json:"last_exit"`
	ExitCode *int   `json:"exit_code"`
	Stderr   string
}

// history reads it, the oldest first.
func (w *upgradeWorld) history() []attempt {
	files, _ := filepath.Glob(w.home.Path("upgrade", "*", "attempt.json"))
	var list []attempt
	for _, name := range files {
		var a attempt
		if text, err := os.ReadFile(name); err == nil && json.Unmarshal(text, &a) == nil {
			list = append(list, a)
		}
	}
	slices.SortFunc(list, func(a, b attempt) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// left lists what is in upgrade/.
func (w *upgradeWorld) left() []string {
	files, _ := filepath.Glob(w.home.Path("upgrade", "*"))
	for i, name := range files {
		files[i] = filepath.Base(name)
	}
	return files
}

// over reports whether no upgrade is open, and the last one ended so.
func (w *upgradeWorld) over(state string) bool {
	open, _ := filepath.Glob(w.home.Path("upgrade", "open-*"))
	list := w.history()
	return len(open) == 0 && len(list) > 0 && list[len(list)-1].State == state
}

// runs reports whether the one agent that runs is the file that is live.
func (w *upgradeWorld) runs() bool {
	pids := w.agents()
	if len(pids) != 1 {
		return false
	}
	running, err1 := os.Stat(fmt.Sprintf("/proc/%d/exe", pids[0]))
	live, err2 := os.Stat(w.home.Path("devopsAgent"))
	return err1 == nil && err2 == nil && os.SameFile(running, live)
}

func (w *upgradeWorld) same(t *testing.T, name, program string) bool {
	t.Helper()
	a, err1 := os.ReadFile(w.home.Path(name))
	b, err2 := os.ReadFile(program)
	return err1 == nil && err2 == nil && bytes.Equal(a, b)
}

// TestUpgraderReplacesAll: statement 107 for agent, devopsDaemon and, last, the upgrader that keepers start; what is identical is not
// touched.
func TestUpgraderReplacesAll(t *testing.T) {
	t.Parallel()
	for _, kept := range []keeperOf{byDaemon, byStart} {
		t.Run(string(kept), func(t *testing.T) {
			t.Parallel()
			w := newUpgradeWorld(t, kept, "20s")
			w.offer(t, w.next.agent, "devopsAgent")
			w.offer(t, w.next.daemon, "devopsDaemon")
			w.offer(t, w.next.upgrader, "upgrader")
			mark := w.rec.Mark()
			if code, said := w.upgrade(t); code != 0 {
				t.Fatalf("code %d: %s%s", code, said, w.home.Log())
			}
			if !w.runs() && !lab.Eventually(10*time.Second, w.runs) {
				t.Fatalf("agents %v; %s", w.agents(), w.home.Log())
			}
			first, ok := w.rec.WaitFor(20*time.Second, mark, lab.Startup)
			if !ok {
				t.Fatalf("the new agent does not talk: %s", w.home.Log())
			}
			var last time.Time
			for _, q := range w.rec.All() {
				if q.At.Before(first.At) && q.At.After(last) {
					last = q.At
				}
			}
			t.Logf("last request of the old agent to the first of the new: %v", first.At.Sub(last).Round(time.Millisecond))
			if !lab.Eventually(30*time.Second, func() bool { return w.over("settled") }) {
				t.Fatalf("not settled: %v %+v\n%s", w.left(), w.history(), w.home.Log())
			}
			for name, program := range map[string]string{"devopsAgent": w.next.agent, "devopsDaemon": w.next.daemon, "upgrader": w.next.upgrader} {
				if !w.same(t, name, program) {
					t.Errorf("%s is not the new one", name)
				}
			}
			if kept == byDaemon {
				now := w.pidOf("daemon")
				exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", now))
				if err != nil || exe != w.home.Path("devopsDaemon") || now == w.daemon.Pid() {
					t.Errorf("devopsDaemon is process %d, %s, %v; before %d", now, exe, err, w.daemon.Pid())
				}
				mark := w.rec.Mark()
				w.killAgent()
				w.next1(t, mark)
			}
			before := w.agents()
			if code, said := w.upgrade(t); code != 0 || !slices.Equal(before, w.agents()) {
				t.Errorf("once more: code %d, agents %v, before %v: %s", code, w.agents(), before, said)
			}
			if list := w.history(); len(list) != 1 {
				t.Errorf("history %+v", list)
			}
		})
	}
}

func (w *upgradeWorld) next1(t *testing.T, mark int) {
	t.Helper()
	if _, ok := w.rec.WaitFor(20*time.Second, mark, lab.Startup); !ok {
		t.Fatalf("no agent: %s", w.home.Log())
	}
}

// TestBadVersionsAreTakenBack: whatever a new version does, the old one is back, and the bad one is not tried again.
func TestBadVersionsAreTakenBack(t *testing.T) {
	t.Parallel()
	for _, kept := range []keeperOf{byDaemon, byStart} {
		for _, bad := range []struct{ name, mode, reason, says string }{
			{"exits 0 at once", "exit 0", "started 3 times", ""},
			{"exits 1 at once", "exit 1", "started 3 times", "no luck today"},
			{"crashes after a while", "crash 700ms", "started 3 times", "lost after a while"},
			{"hangs before it is ready", "hang", "did not answer", ""},
			{"has the role and never talks", "hold", "did not answer", ""},
			{"cannot be executed", "interpreter", "cannot be executed", ""},
		} {
			t.Run(string(kept)+"/"+bad.name, func(t *testing.T) {
				t.Parallel()
				w := newUpgradeWorld(t, kept, "4s")
				if err := os.WriteFile(w.home.LabPath("mode"), []byte(bad.mode), 0o644); err != nil { //nolint:gosec // no secret
					t.Fatal(err)
				}
				if bad.mode == "interpreter" { // it tells its version, and never runs again
					sh := w.home.LabPath("sh")
					err := exec.Command("cp", "/bin/sh", sh).Run()
					if err == nil {
						err = os.WriteFile(w.home.LabPath("script"), []byte("#!"+sh+"\nrm -f '"+sh+"'\necho v6.6.7\n"), 0o755) //nolint:gosec // a program
					}
					if err != nil {
						t.Fatal(err)
					}
					w.offer(t, w.home.LabPath("script"), "devopsAgent")
				} else {
					w.offer(t, w.next.bad, "devopsAgent")
				}
				mark := w.rec.Mark()
				at := time.Now()
				if code, said := w.upgrade(t); code != 0 {
					t.Fatalf("code %d: %s%s", code, said, w.home.Log())
				}
				back := func() bool { return w.over("rolled-back") && w.runs() }
				if !lab.Eventually(40*time.Second, back) {
					t.Fatalf("not back: %v %+v, agents %v\n%s", w.left(), w.history(), w.agents(), w.home.Log())
				}
				w.next1(t, mark)
				t.Logf("back after %v", time.Since(at).Round(10*time.Millisecond))
				if now, err := os.ReadFile(w.home.Path("devopsAgent")); err != nil || !bytes.Equal(now, w.old) {
					t.Errorf("the agent is not the old one: %v", err)
				}
				list := w.history()
				if len(list) != 1 || !strings.Contains(list[0].Reason, bad.reason) || !strings.Contains(list[0].Stderr, bad.says) {
					t.Errorf("history %+v", list)
				}
				if kept == byDaemon && strings.HasPrefix(bad.mode, "exit ") {
					if one := list[0]; one.ExitCode == nil || fmt.Sprintf("exit %d", *one.ExitCode) != bad.mode || !strings.Contains(one.LastExit, "exit status") {
						t.Errorf("last end %q, %v", one.LastExit, one.ExitCode)
					}
				}
				if bad.mode == "interpreter" {
					return // it does not even tell its version now
				}
				code, said := w.upgrade(t)
				if code != 1 || !strings.Contains(said, "taken back here") || !strings.Contains(said, "--force") {
					t.Errorf("the bad version once more: code %d, %s", code, said)
				}
				if !w.runs() || len(w.history()) != 1 {
					t.Errorf("agents %v, history %+v", w.agents(), w.history())
				}
			})
		}
	}
}

// TestWrongFilesNeverMove: what does not tell its version is refused before anything is replaced.
func TestWrongFilesNeverMove(t *testing.T) {
	t.Parallel()
	w := newUpgradeWorld(t, byDaemon, "4s")
	whole, err := os.ReadFile(w.next.agent)
	if err != nil {
		t.Fatal(err)
	}
	arm := slices.Clone(whole)
	arm[18] = 0xb7 // e_machine: AArch64
	before := w.agents()
	for name, data := range map[string][]byte{
		"wrong architecture": arm, "cut off": whole[:len(whole)/3], "empty": nil, "silent": []byte("#!/bin/sh\nexit 0\n"),
		"fails": []byte("#!/bin/sh\necho v1\nexit 1\n"), "talks": []byte("#!/bin/sh\necho usage:\necho more\n"), "no interpreter": []byte("#!/nowhere/sh\n"),
	} {
		if err := os.WriteFile(w.home.LabPath("wrong"), data, 0o755); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
		w.offer(t, w.home.LabPath("wrong"), "devopsAgent")
		code, said := w.upgrade(t)
		if code != 1 {
			t.Errorf("%s: code %d: %s", name, code, said)
		}
		if now, err := os.ReadFile(w.home.Path("devopsAgent")); err != nil || !bytes.Equal(now, w.old) || !slices.Equal(before, w.agents()) {
			t.Errorf("%s: the agent changed: %v, agents %v, before %v", name, err, w.agents(), before)
		}
		if open, _ := filepath.Glob(w.home.Path("upgrade", "open-*")); len(open) > 0 || len(w.history()) > 0 {
			t.Errorf("%s: %v", name, w.left())
		}
	}
}

// TestOriginalOnTrialIsSettledByItsGuard: an agent that is not ours cannot say that it is well; that it runs and has the role is enough.
func TestOriginalOnTrialIsSettledByItsGuard(t *testing.T) {
	t.Parallel()
	for _, kept := range []keeperOf{byDaemon, byStart} {
		t.Run(string(kept), func(t *testing.T) {
			t.Parallel()
			w := newUpgradeWorld(t, kept, "2s")
			if err := os.WriteFile(w.home.LabPath("mode"), []byte("hold"), 0o644); err != nil { //nolint:gosec // no secret
				t.Fatal(err)
			}
			w.offer(t, w.next.original, "devopsAgent")
			if code, said := w.upgrade(t); code != 0 {
				t.Fatalf("code %d: %s%s", code, said, w.home.Log())
			}
			if !lab.Eventually(20*time.Second, func() bool { return w.over("settled") && w.runs() }) {
				t.Fatalf("not settled: %v %+v\n%s", w.left(), w.history(), w.home.Log())
			}
			if !w.same(t, "devopsAgent", w.next.original) {
				t.Error("the original does not stay")
			}
			// And back to ours: nobody can ask it to make room, so that it is killed.
			w.offer(t, w.next.agent, "devopsAgent")
			mark := w.rec.Mark()
			if code, said := w.upgrade(t); code != 0 {
				t.Fatalf("code %d: %s%s", code, said, w.home.Log())
			}
			w.next1(t, mark)
			if !lab.Eventually(30*time.Second, func() bool { return w.over("settled") && w.runs() }) {
				t.Fatalf("not settled: %v %+v\n%s", w.left(), w.history(), w.home.Log())
			}
		})
	}
}

// TestBadDaemonIsTakenBack: a devopsDaemon that ends, or says nothing, is replaced by the old one; its agent goes on.
func TestBadDaemonIsTakenBack(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"exit 1", "hang"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newUpgradeWorld(t, byDaemon, "30s")
			if err := os.WriteFile(w.home.LabPath("mode"), []byte(mode), 0o644); err != nil { //nolint:gosec // no secret
				t.Fatal(err)
			}
			// The upgrade must not settle before: an agent that did would keep the bad daemon.
			w.home.Write("agent.toml", "protocol = \"ask\"\n[upgrade]\nsettle_after = \"25s\"\n")
			w.offer(t, w.next.bad, "devopsDaemon")
			agent := w.pidOf("agent")
			if code, said := w.upgrade(t); code != 0 {
				t.Fatalf("code %d: %s%s", code, said, w.home.Log())
			}
			back := func() bool {
				pid := w.pidOf("daemon")
				exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
				return w.over("rolled-back") && err == nil && exe == w.home.Path("devopsDaemon") && pid != w.daemon.Pid()
			}
			if !lab.Eventually(30*time.Second, back) {
				t.Fatalf("no daemon: %v %+v\n%s", w.left(), w.history(), w.home.Log())
			}
			if !w.same(t, "devopsDaemon", w.programs.Daemon) || w.pidOf("agent") != agent {
				t.Errorf("agent is process %d, was %d", w.pidOf("agent"), agent)
			}
			mark := w.rec.Mark()
			w.killAgent()
			w.next1(t, mark)
		})
	}
}
