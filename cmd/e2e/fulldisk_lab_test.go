//go:build lab && linux

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// volume is a small ext4 file system in a file.
type volume struct {
	image, at string
	megabytes int
}

// mountAt makes the file system, with what dir holds, and mounts it there until the test ends.
func (v *volume) mountAt(t *testing.T, dir string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for a small file system of its own")
	}
	v.image, v.at = filepath.Join(t.TempDir(), "volume"), dir
	do := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v: %s", name, args, err, out)
		}
	}
	do("truncate", "-s", fmt.Sprintf("%dM", v.megabytes), v.image)
	do("mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", dir, v.image)
	t.Cleanup(func() { // after everything in it has been killed
		if !lab.Eventually(20*time.Second, func() bool { return exec.Command("umount", dir).Run() == nil }) {
			t.Errorf("%s is busy", dir)
		}
	})
	v.mount(t)
}

func (v *volume) mount(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("mount", "-o", "loop", v.image, v.at).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
}

// mend checks and mounts a copy: another mount namespace may still hold the failed one.
func (v *volume) mend(t *testing.T) {
	t.Helper()
	copied := v.image + "2"
	if out, err := exec.Command("cp", "--sparse=always", v.image, copied).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	v.image = copied
	if out, err := exec.Command("e2fsck", "-fp", v.image).CombinedOutput(); lab.Code(err) > 1 || lab.Code(err) < 0 {
		t.Fatalf("e2fsck: %v: %s", err, out)
	}
	v.mount(t)
}

// fill takes all room, but what is too little for anything.
func (v *volume) fill(t *testing.T) (filler string) {
	t.Helper()
	filler = filepath.Join(v.at, "filler")
	f, err := os.OpenFile(filler, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var at int64
	for piece := int64(64 << 20); piece >= 4096; {
		if err := syscall.Fallocate(int(f.Fd()), 0, at, piece); err != nil {
			piece /= 2
			continue
		}
		at += piece
	}
	return filler
}

// phase is a moment of an upgrade: a file appears.
type phase struct{ name, pattern string }

func phases() []phase {
	return []phase{
		{"before the download", ""},
		{"while it is downloaded", "tmp/*"},
		{"after the download", "tmp/devopsAgent"},
		{"while it is staged", "upgrade/*/new/devops*"},
		{"written down", "upgrade/open-ready"},
		{"between swap and settle", "upgrade/open-trial-*"},
	}
}

// until waits for the phase, at most as long as an upgrade takes.
func (s *upgraded) until(p phase) {
	if p.pattern == "" {
		return
	}
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		found, _ := filepath.Glob(s.home.Path(filepath.FromSlash(p.pattern)))
		// the JDK comes first, in an upgrade of its own
		if programs, _ := filepath.Glob(s.home.Path("upgrade", "*", "old", "devopsAgent")); len(found) > 0 && (!strings.Contains(p.pattern, "open-") || len(programs) > 0) {
			return
		}
	}
}

// clearDownloads empties tmp/: phases are seen by what is in it.
func (s *upgraded) clearDownloads() {
	_ = os.RemoveAll(s.home.Path("tmp"))
	if err := os.Mkdir(s.home.Path("tmp"), 0o700); err == nil && os.Getuid() == 0 {
		_ = os.Chown(s.home.Path("tmp"), labAccount, labAccount)
	}
}

// target is the edition that does not run.
func (s *upgraded) target() edition {
	s.Helper()
	now, err := s.live()
	if err != nil {
		s.Fatal(err)
	}
	if now.version == s.releases[0].version {
		return s.releases[1]
	}
	return s.releases[0]
}

// silence is the longest time without a request since mark, until now.
func (s *upgraded) silence(mark int) time.Duration {
	var longest time.Duration
	all := s.rec.All()
	for i := max(mark, 1); i < len(all); i++ {
		longest = max(longest, all[i].At.Sub(all[i-1].At))
	}
	return longest
}

// TestCrashFullDisk: the disk is full from some phase of an upgrade on. The agent works all the time, what has begun ends by itself when
// there is room, and nothing is left behind.
func TestCrashFullDisk(t *testing.T) {
	for _, p := range phases() {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			v := &volume{megabytes: 160}
			s := newSite(t, "devopsDaemon", 1, &tally{}, v)
			s.keep()
			if err := s.calm(30 * time.Second); err != nil {
				t.Fatal(err)
			}
			s.clearDownloads()
			target, mark := s.target(), s.rec.Mark()
			e := s.offer(target)
			s.until(p)
			state := s.state()
			filler := v.fill(t)
			<-e.over
			<-time.After(15 * time.Second) // three polls on a full disk
			full := s.state()
			for _, name := range []string{"devopsAgent", "jdk/bin/java"} {
				if err := s.answers(name, map[bool]string{true: "version", false: "-version"}[name == "devopsAgent"]); err != nil {
					t.Errorf("on the full disk: %v", err)
				}
			}
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			if err := s.calm(100 * time.Second); err != nil {
				t.Fatalf("%v; the upgrade said %s", err, e.said)
			}
			quiet := s.silence(mark)
			if err := s.usable(); err != nil {
				t.Fatal(err)
			}
			now, _ := s.live()
			number(t, "full in state %q, %q later; %s runs after it; longest silence %.1f s", strings.TrimPrefix(state, "open-"), strings.TrimPrefix(full, "open-"), now.version, quiet.Seconds())
			if quiet > 15*time.Second {
				t.Errorf("the agent was silent for %v", quiet)
			}
			// and now that there is room
			if now.version != target.version {
				again := s.offer(target)
				<-again.over
				if !lab.Eventually(60*time.Second, func() bool { now, err := s.live(); return err == nil && now.version == target.version }) {
					t.Errorf("with room again: %s", again.said)
				}
				if err := s.calm(60 * time.Second); err != nil {
					t.Fatal(err)
				}
			}
			s.end()
		})
	}
}

// allowFiles sets how many files every process of the home may have open; 0 is as many as it ever may. A program of Go that starts
// takes what it ever may, until the next call. It is done as the home's account: root alone need not have the right to (CAP_SYS_RESOURCE).
func (s *upgraded) allowFiles(most uint64) {
	var ever unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &ever); err != nil {
		s.Fatal(err)
	}
	if most == 0 {
		most = ever.Max
	}
	for _, pid := range lab.Marked("LAB_DIR=" + s.home.Lab) {
		cmd := s.command(context.Background(), "prlimit", "--pid", strconv.Itoa(pid), fmt.Sprintf("--nofile=%d:", most))
		cmd.Env = []string{"PATH=" + os.Getenv("PATH")} // no part of the home
		if out, err := cmd.CombinedOutput(); err != nil && lab.Running(pid) {
			s.Errorf("limit process %d to %d files: %v: %s", pid, most, err, out)
		}
	}
}

// refusedFiles counts what tells of EMFILE in what programs of the home have written.
func (s *upgraded) refusedFiles(said string) int {
	const emfile = "too many open files"
	n := strings.Count(said, emfile)
	for _, path := range []string{s.home.Path("logs", "devopsAgent.log"), s.home.Path("logs", "devopsUpgrader.log"), s.home.Path("logs", "devopsDaemon.log"), s.home.LabPath("keeper")} {
		text, _ := os.ReadFile(path)
		n += strings.Count(string(text), emfile)
	}
	return n
}

// TestCrashNoFiles: from some phase of an upgrade on, processes of the home can open few files or none (EMFILE), also new ones. When
// they can again, all is well by itself.
func TestCrashNoFiles(t *testing.T) {
	for n, p := range phases() {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			few := uint64(3 + 2*n)
			s := newSite(t, []string{"devopsDaemon", "upgrader start"}[n%2], 1, &tally{}, nil)
			s.keep()
			if err := s.calm(30 * time.Second); err != nil {
				t.Fatal(err)
			}
			s.clearDownloads()
			target := s.target()
			e := s.offer(target)
			s.until(p)
			state := s.state()
			for over := time.Now().Add(8 * time.Second); time.Now().Before(over); {
				s.allowFiles(few) // who has more keeps them, and gets none
				<-time.After(20 * time.Millisecond)
			}
			lacking := s.state()
			if err := s.usableParts(); err != nil {
				t.Errorf("while no files can be opened: %v", err)
			}
			s.allowFiles(0)
			if err := s.calm(100 * time.Second); err != nil {
				t.Fatalf("%v; the upgrade says %s", err, e.words())
			}
			<-e.over
			if err := s.usable(); err != nil {
				t.Fatal(err)
			}
			now, err := s.live()
			if err != nil {
				t.Fatal(err)
			}
			refused := s.refusedFiles(e.said)
			if refused == 0 {
				t.Error("no program says that it could not open a file: nothing was tried")
			}
			number(t, "%d files from state %q on, %q later, refused %d times as far as logs say; %s runs after it", few,
				strings.TrimPrefix(state, "open-"), strings.TrimPrefix(lacking, "open-"), refused, now.version)
			if now.version == target.version {
				target = s.target()
			}
			e = s.offer(target)
			<-e.over
			if err := s.calm(60 * time.Second); err != nil {
				t.Fatalf("%v; the next upgrade said %s", err, e.said)
			}
			if now, err := s.live(); err != nil || now.version != target.version {
				t.Errorf("with files again: %s runs, %v; the upgrade said %s", now.version, err, e.said)
			}
			s.end()
		})
	}
}

// TestCrashReadOnly: the file system fails and becomes read-only in an upgrade. No agent can be started on it, one that runs goes on; on the
// mended one all is well by itself.
func TestCrashReadOnly(t *testing.T) {
	for _, p := range phases()[2:] {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			v := &volume{megabytes: 160}
			s := newSite(t, "upgrader start", 1, &tally{}, v)
			s.keep()
			if err := s.calm(30 * time.Second); err != nil {
				t.Fatal(err)
			}
			e := s.offer(s.target())
			s.until(p)
			if out, err := exec.Command("mount", "-o", "remount,abort", v.at).CombinedOutput(); err != nil {
				t.Skipf("cannot make a file system fail here: %v: %s", err, out)
			}
			state := s.state()
			mark, runs := s.rec.Mark(), len(s.processes()["agent"]) > 0 && !strings.HasPrefix(state, "open-trial") // then it was just to be started
			<-time.After(12 * time.Second)                                                                         // two polls
			if runs && s.rec.Mark() == mark {
				t.Errorf("an agent that runs does not work on the read-only file system, state %q", s.state())
			}
			if err := s.usableParts(); err != nil {
				t.Errorf("read-only: %v", err)
			}
			s.rest()
			lab.KillMarked("LAB_DIR=" + s.home.Lab)
			<-e.over // the CLI waits for the end of a trial that cannot end; it was killed just now
			if !lab.Eventually(20*time.Second, func() bool { return exec.Command("umount", v.at).Run() == nil }) {
				t.Fatal("the file system is busy")
			}
			v.mend(t)
			s.keep()
			if err := s.calm(100 * time.Second); err != nil {
				t.Fatalf("%v; the upgrade said %s", err, e.said)
			}
			if err := s.usable(); err != nil {
				t.Fatal(err)
			}
			now, _ := s.live()
			number(t, "read-only in state %q; %s runs after it was mended", strings.TrimPrefix(state, "open-"), now.version)
			s.end()
		})
	}
}
