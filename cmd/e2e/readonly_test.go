//go:build linux

package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// TestReadOnlyDiskIsWaitedFor: an agent that ends while its disk is read-only is not started again and again; its keeper and status
// say why, and it is back by itself when the disk can be written to.
func TestReadOnlyDiskIsWaitedFor(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root: it mounts a directory read-only")
	}
	for _, c := range []struct {
		name string
		kept keeperOf
		anew bool // the keeper is started on the read-only disk
	}{{"upgrader start", byStart, false}, {"devopsDaemon", byDaemon, false}, {"a new devopsDaemon", byDaemon, true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newUpgradeWorld(t, c.kept, "20s")
			own := w.programs.Agent
			if err := unix.Mount(w.home.Dir, w.home.Dir, "", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			writable := func() error { return unix.Unmount(w.home.Dir, unix.MNT_DETACH) }
			mounted := true
			t.Cleanup(func() {
				if mounted {
					_ = writable()
				}
			})
			if err := unix.Mount("", w.home.Dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
				t.Fatal(err)
			}
			if c.anew {
				lab.KillMarked("LAB_DIR=" + w.home.Lab)
				w.daemon = w.home.StartProgram(w.home.Path("devopsDaemon"), "/", nil, w.env...)
			} else {
				for _, pid := range w.agents() {
					if err := unix.Kill(pid, unix.SIGKILL); err != nil {
						t.Error(err)
					}
				}
			}
			if !lab.Eventually(startLimit, func() bool {
				text, _, code := verb(w, own, w.home.Dir, "status")
				return code != 0 && strings.HasPrefix(text, "NOT working: the file system of "+w.home.Dir+" is read-only") && len(w.agents()) == 0
			}) {
				text, errs, code := verb(w, own, w.home.Dir, "status")
				t.Errorf("status, code %d: %s%s", code, text, errs)
			}
			mark := w.rec.Mark()
			quiet := time.Now().Add(4 * time.Second)
			if q, ok := w.rec.Wait(time.Until(quiet), mark, func(lab.Request) bool { return true }); ok {
				t.Errorf("a request of %s", q.Endpoint)
			}
			if c.kept == byStart || c.anew {
				said := w.output()
				if n := strings.Count(said, "the file system of "+w.home.Dir+" is read-only"); n != 1 || strings.Count(said, "hint: look into the system's log") != 1 {
					t.Errorf("said %d times: %s", n, said)
				}
			} else if n := strings.Count(w.home.Log(), "is read-only"); n != 1 {
				t.Errorf("the log says %d times that the disk is read-only: %s", n, w.home.Log())
			}
			if len(w.agents()) > 0 {
				t.Error("an agent runs on a read-only disk")
			}
			if err := writable(); err != nil {
				t.Fatal(err)
			}
			mounted = false
			if _, ok := w.rec.WaitFor(startLimit+30*time.Second, w.rec.Mark(), lab.Ask); !ok || !w.runs() {
				t.Errorf("not back: %s %s", w.output(), w.home.Log())
			}
		})
	}
}
