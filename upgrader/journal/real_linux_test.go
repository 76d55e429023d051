package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devops-agent/devops-agent/service"
)

// realHome is an installation on a file system of its own.
func realHome(t *testing.T, megabytes int) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount a small file system")
	}
	home := t.TempDir()
	if err := unix.Mount("tmpfs", home, "tmpfs", 0, fmt.Sprintf("size=%dm", megabytes)); err != nil {
		t.Skip("needs a machine that mounts tmpfs:", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(home, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	m := newMachine(t, 1)
	m.inst = &service.Installation{Home: home}
	m.open()
	return m
}

// fill leaves no byte; the returned function makes room again.
func (m *machine) fill() (empty func()) {
	m.t.Helper()
	path := filepath.Join(m.inst.Home, "rubbish")
	f, err := os.Create(path)
	if err != nil {
		m.t.Fatal(err)
	}
	block := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		m.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		m.t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			m.t.Fatal(err)
		}
	}
}

func (m *machine) plan(version int, jdk bool) Plan {
	m.t.Helper()
	from := m.t.TempDir()
	m.put(from, version)
	p := Plan{Kind: FromServer, Reached: true, Tell: true}
	for _, part := range []Part{Agent, Daemon} {
		p.Items = append(p.Items, Item{Part: part, From: filepath.Join(from, Place(part, m.j.goos)), Now: fmt.Sprint(version)})
	}
	if jdk {
		fresh := filepath.Join(m.inst.Home, fmt.Sprintf("jdk_%d", 1_700_000_000+version))
		m.jdk(fresh, version)
		p.Items = append(p.Items, Item{Part: JDK, From: fresh})
	}
	return p
}

func (m *machine) jdk(at string, version int) {
	m.t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Join(at, "bin"), 0o755), os.WriteFile(filepath.Join(at, "bin", "java"), []byte(program(version, JDK)), 0o755)); err != nil {
		m.t.Fatal(err)
	}
}

// is fails the test unless everything is of one version.
func (m *machine) is(version int) {
	m.t.Helper()
	for _, name := range []string{"devopsAgent", "devopsDaemon", "jdk/bin/java"} {
		if got := m.version(filepath.Join(m.inst.Home, name)); got != version {
			m.t.Errorf("%s is of version %d, not %d", name, got, version)
		}
	}
}

// entries lists what is in home, but for what belongs there.
func (m *machine) entries(dir string) []string {
	m.t.Helper()
	names, err := os.ReadDir(filepath.Join(m.inst.Home, dir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.t.Fatal(err)
	}
	var list []string
	for _, name := range names {
		switch name.Name() {
		case "devopsAgent", "devopsDaemon", "jdk", "upgrade", "rubbish":
		default:
			list = append(list, filepath.Join(dir, name.Name()))
		}
	}
	return list
}

func TestFullDiskBeforeAnUpgrade(t *testing.T) {
	m := realHome(t, 4)
	m.put(m.inst.Home, 1)
	m.jdk(filepath.Join(m.inst.Home, "jdk"), 1)
	plan := m.plan(2, true)
	empty := m.fill()
	if _, err := m.j.Begin(plan); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("%v", err)
	}
	m.is(1)
	left := m.entries("")
	for _, id := range m.entries(dir) { // at most a line of history
		for _, name := range m.entries(id) {
			if filepath.Base(name) != attemptOf {
				left = append(left, name)
			}
		}
	}
	if len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	empty()
	if _, err := m.j.Begin(m.plan(2, true)); err != nil {
		t.Fatal(err)
	}
	if err := m.j.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.is(2)
}

func TestFullDiskDuringAnUpgrade(t *testing.T) {
	for _, back := range []bool{false, true} {
		for _, phase := range []string{"before it is applied", "before it is recovered", "on trial", "at the end"} {
			t.Run(fmt.Sprintf("full %s, back %v", phase, back), func(t *testing.T) {
				m := realHome(t, 4)
				m.put(m.inst.Home, 1)
				m.jdk(filepath.Join(m.inst.Home, "jdk"), 1)
				if _, err := m.j.Begin(m.plan(2, true)); err != nil {
					t.Fatal(err)
				}
				empty := func() {}
				full := func(at string) {
					if at == phase {
						empty = m.fill()
					}
				}
				full("before it is applied")
				if phase != "before it is recovered" {
					if err := m.j.Apply(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				full("before it is recovered")
				full("on trial")
				for start := 1; start <= 2; start++ {
					if r, err := m.j.Recover(t.Context(), Last{}); err != nil || r.State != Trial || r.Starts != start {
						t.Fatalf("%+v, %v", r, err)
					}
				}
				m.is(2)
				full("at the end")
				var err error
				if back {
					_, err = m.j.Undo("it was bad", Last{})
				} else {
					_, err = m.j.Settle()
				}
				if err != nil {
					t.Fatal(err)
				}
				want, how := 2, Settled
				if back {
					want, how = 1, TakenBack
				}
				m.is(want)
				check := func() {
					t.Helper()
					if list, err := m.j.History(); err != nil || len(list) != 1 || list[0].State != how || !list[0].Untold {
						t.Errorf("%+v, %v", list, err)
					}
				}
				check()
				empty()
				m.j.Sweep()
				check()
				if left := m.entries(""); len(left) > 0 {
					t.Errorf("left behind: %q", left)
				}
			})
		}
	}
}

func TestReadOnlyDiskLeavesProgramsAsTheyAre(t *testing.T) {
	for _, state := range []State{None, Ready, Trial, Settling, Undoing} {
		t.Run(string(state), func(t *testing.T) {
			m := realHome(t, 4)
			m.put(m.inst.Home, 1)
			m.jdk(filepath.Join(m.inst.Home, "jdk"), 1)
			want := 1
			plan := m.plan(2, true)
			if state != None {
				if _, err := m.j.Begin(plan); err != nil {
					t.Fatal(err)
				}
			}
			if state != None && state != Ready {
				want = 2
				if err := m.j.Apply(t.Context()); err != nil {
					t.Fatal(err)
				}
				if f, err := m.j.Current(); err != nil {
					t.Fatal(err)
				} else if err := m.j.enter(&f, state, 0); err != nil {
					t.Fatal(err)
				}
			}
			if err := unix.Mount("", m.inst.Home, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
				t.Fatal(err)
			}
			for range MostStarts + 2 {
				if r, err := m.j.Recover(t.Context(), Last{}); (err == nil) != (state == None) {
					t.Errorf("%+v, %v", r, err)
				}
				m.is(want)
			}
			if state == None {
				if _, err := m.j.Begin(plan); !errors.Is(err, syscall.EROFS) {
					t.Error(err)
				}
			} else if _, err := m.j.Undo("", Last{}); !errors.Is(err, syscall.EROFS) {
				t.Error(err)
			}
			m.is(want)
			if err := unix.Mount("", m.inst.Home, "", unix.MS_REMOUNT, "size=4m"); err != nil {
				t.Fatal(err)
			}
			if _, err := m.j.Recover(t.Context(), Last{}); err != nil {
				t.Error(err)
			}
			m.is(map[State]int{None: 1, Ready: 2, Trial: 2, Settling: 2, Undoing: 1}[state])
		})
	}
}

func TestNoMoreFilesLeavesProgramsAsTheyAre(t *testing.T) {
	for _, state := range []State{Ready, Trial, Undoing, Settling} {
		m := newMachine(t, 1)
		m.put(m.inst.Home, 1)
		m.jdk(filepath.Join(m.inst.Home, "jdk"), 1)
		if _, err := m.j.Begin(m.plan(2, true)); err != nil {
			t.Fatal(err)
		}
		want := 1
		if state != Ready {
			want = 2
			if err := m.j.Apply(t.Context()); err != nil {
				t.Fatal(err)
			}
			if f, err := m.j.Current(); err != nil {
				t.Fatal(err)
			} else if err := m.j.enter(&f, state, 0); err != nil {
				t.Fatal(err)
			}
		}
		err := withoutFiles(t, func() error { _, err := m.j.Recover(context.Background(), Last{}); return err })
		if !errors.Is(err, syscall.EMFILE) {
			t.Errorf("%q: %v", state, err)
		}
		m.is(want)
		if _, err := m.j.Recover(t.Context(), Last{}); err != nil {
			t.Errorf("%q: %v", state, err)
		}
		m.is(map[State]int{Ready: 2, Trial: 2, Undoing: 1, Settling: 2}[state])
	}
}

// withoutFiles calls do while this process cannot open anything.
func withoutFiles(t *testing.T, do func() error) error {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	free := uint64(f.Fd())
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := limit
	low.Cur = free
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
	}()
	return do()
}

// TestProgramsOfRootAreCopiedWhereLinksAreForbidden needs fs.protected_hardlinks: an account may not link what it may not write.
func TestProgramsOfRootAreCopiedWhereLinksAreForbidden(t *testing.T) {
	if inner := os.Getenv("JOURNAL_TEST_HOME"); inner != "" { // as nobody
		m := newMachine(t, 1)
		m.inst = &service.Installation{Home: inner}
		m.open()
		if _, err := m.j.Begin(m.plan(2, false)); err != nil {
			t.Fatal(err)
		}
		if err := m.j.Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := m.j.Undo("it was bad", Last{}); err != nil {
			t.Fatal(err)
		}
		if m.live() != 1 {
			t.Error(m.live())
		}
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become somebody else")
	}
	if text, err := os.ReadFile("/proc/sys/fs/protected_hardlinks"); err != nil || strings.TrimSpace(string(text)) != "1" {
		t.Skip("needs a machine with fs.protected_hardlinks = 1")
	}
	const nobody = 65534
	top, err := os.MkdirTemp("", "journal")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(top) })
	home, temp := filepath.Join(top, "home"), filepath.Join(top, "temp")
	m := newMachine(t, 1)
	if err := errors.Join(os.Chmod(top, 0o755), os.Mkdir(home, 0o755), os.Mkdir(temp, 0o700)); err != nil {
		t.Fatal(err)
	}
	m.put(home, 1) // root's
	if err := errors.Join(os.Chown(home, nobody, nobody), os.Chown(temp, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	test := filepath.Join(top, "journal.test")
	if err := os.WriteFile(test, self, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(test, "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "JOURNAL_TEST_HOME="+home, "TMPDIR="+temp)
	cmd.Dir = home
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Fatalf("%v\n%s", err, out)
	}
	if m.version(filepath.Join(home, "devopsAgent")) != 1 {
		t.Error("it is not the old one")
	}
}

func TestRootFollowsNothingThatSomebodyElseHasPlanted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be somebody who could do harm")
	}
	outside := t.TempDir()
	for name, plant := range map[string]func(m *machine) error{
		"a link for the directory of upgrades": func(m *machine) error { return os.Symlink(outside, m.j.path(dir)) },
		"a directory of a stranger": func(m *machine) error {
			return errors.Join(os.Mkdir(m.j.path(dir), 0o777), os.Chown(m.j.path(dir), 4242, 4242))
		},
		"a pipe for the record": func(m *machine) error {
			return errors.Join(os.Mkdir(m.j.path(dir), 0o700), unix.Mkfifo(m.j.path(dir, "open-ready"), 0o600))
		},
		"a link for the record": func(m *machine) error {
			return errors.Join(os.Mkdir(m.j.path(dir), 0o700), os.Symlink("/etc/passwd", m.j.path(dir, "open-trial-2")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, 1)
			m.put(m.inst.Home, 1)
			if err := plant(m); err != nil {
				t.Fatal(err)
			}
			if _, err := m.j.Begin(m.plan(2, false)); err == nil {
				t.Error("an upgrade has begun")
			}
			done := make(chan struct{})
			go func() { defer close(done); _, _ = m.j.Recover(context.Background(), Last{}) }()
			select {
			case <-done:
			case <-time.After(10 * time.Second):
				t.Fatal("recovery hangs")
			}
			if m.live() != 1 {
				t.Error(m.live())
			}
			if names, err := os.ReadDir(outside); err != nil || len(names) > 0 {
				t.Errorf("outside: %v, %v", names, err)
			}
		})
	}
}

func TestWhatRootMakesBelongsToTheHomesOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	m := newMachine(t, 1)
	m.put(m.inst.Home, 1)
	for _, name := range []string{"", "devopsAgent", "devopsDaemon"} {
		if err := os.Chown(filepath.Join(m.inst.Home, name), 4242, 4343); err != nil {
			t.Skip("needs a machine that lets root give files away:", err)
		}
	}
	m.open()
	if _, err := m.j.Begin(m.plan(2, false)); err != nil {
		t.Fatal(err)
	}
	if err := m.j.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.j.Settle(); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(m.inst.Home, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if stat := info.Sys().(*syscall.Stat_t); stat.Uid != 4242 || stat.Gid != 4343 {
			t.Errorf("%s belongs to %d:%d", path, stat.Uid, stat.Gid)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestADirectoryInUseStays(t *testing.T) {
	m := newMachine(t, 1)
	m.put(m.inst.Home, 1)
	m.jdk(filepath.Join(m.inst.Home, "jdk"), 1)
	sleep, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Skip("needs /bin/sleep:", err)
	}
	java := filepath.Join(m.inst.Home, "jdk", "bin", "sleep")
	if err := os.WriteFile(java, sleep, 0o755); err != nil {
		t.Fatal(err)
	}
	worker := exec.Command(java, "60")
	if err := worker.Start(); err != nil {
		t.Skip("needs a machine that runs a copy of sleep:", err)
	}
	t.Cleanup(func() { _ = worker.Process.Kill(); _ = worker.Wait() })
	if _, err := m.j.Begin(m.plan(2, true)); err != nil {
		t.Fatal(err)
	}
	if err := m.j.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, err := m.j.Settle()
	if err != nil {
		t.Fatal(err)
	}
	m.is(2)
	if len(r.Ended.Leftover) != 1 {
		t.Fatalf("%+v", r.Ended)
	}
	old := m.j.at(r.Ended.Leftover[0])
	m.j.Sweep()
	m.j.SweepTrees("jdk")
	if _, err := os.Stat(filepath.Join(old, "bin", "sleep")); err != nil {
		t.Fatalf("the JDK of a running worker is gone: %v", err)
	}
	_ = worker.Process.Kill()
	_ = worker.Wait()
	m.j.Sweep()
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it stays: %v", err)
	}
	if left := m.entries(""); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestOpenMakesNothing(t *testing.T) {
	inst, err := service.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	j := Open(inst, slog.New(slog.DiscardHandler))
	if _, err := j.Recover(t.Context(), Last{}); err != nil {
		t.Error(err)
	}
	j.Sweep()
	if names, err := os.ReadDir(inst.Home); err != nil || len(names) > 0 {
		t.Errorf("%v, %v", names, err)
	}
}
