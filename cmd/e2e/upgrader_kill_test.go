//go:build linux

package e2e

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// TestKillsInUpgrades kills processes of a home at random moments of upgrades: whatever comes of each, one complete version runs in
// the end, and nothing is left behind. UPGRADE_KILLS is how many upgrades there are with each keeper, UPGRADE_SEED repeats a run.
func TestKillsInUpgrades(t *testing.T) {
	t.Parallel()
	rounds := 15
	if n, err := strconv.Atoi(os.Getenv("UPGRADE_KILLS")); err == nil {
		rounds = n
	}
	seed := uint64(time.Now().UnixNano())
	if n, err := strconv.ParseUint(os.Getenv("UPGRADE_SEED"), 10, 64); err == nil {
		seed = n
	}
	for _, kept := range []keeperOf{byDaemon, byStart} {
		t.Run(string(kept), func(t *testing.T) {
			t.Parallel()
			t.Logf("UPGRADE_SEED=%d", seed)
			random := rand.New(rand.NewPCG(seed, uint64(len(kept)))) //nolint:gosec // to be repeated
			w := newUpgradeWorld(t, kept, "10s")
			if kept == byDaemon {
				w.keepDaemon(t)
			}
			complete := map[[32]byte]string{sha256.Sum256(w.old): "first"}
			helped := 0
			ended, killed := map[string]int{}, map[string]int{}
			for i := range rounds {
				name := fmt.Sprintf("version %d", i)
				complete[w.offerUnique(t, w.next.agent, "devopsAgent", name)] = name
				if kept == byDaemon && i%2 == 1 {
					w.offerUnique(t, w.next.daemon, "devopsDaemon", name)
				}
				a := w.home.StartProgram(w.home.Path("tmp", "upgrader"), w.home.Dir, []string{"-action=upgrade"}, w.env...)
				for range 1 + random.IntN(2) {
					pause := time.NewTimer(time.Duration(random.IntN(500)) * time.Millisecond)
					<-pause.C
					killed[w.killAny(random)]++
				}
				if _, err := a.Wait(time.Minute); err != nil {
					t.Fatalf("round %d: %v", i, err)
				}
				done := func() bool { return w.closed() && w.runs() }
				if !lab.Eventually(15*time.Second, done) { // upgrader and guard were killed: whoever comes next does their work
					helped++
					_, _ = w.upgrade(t)
				}
				if !lab.Eventually(45*time.Second, done) {
					t.Fatalf("round %d: agents %v, %v, %+v\n%.6000s", i, w.agents(), w.left(), w.history(), w.home.Log())
				}
				live, err := os.ReadFile(w.home.Path("devopsAgent"))
				if err != nil || complete[sha256.Sum256(live)] == "" {
					t.Fatalf("round %d: the agent is none of the versions: %v", i, err)
				}
				if list := w.history(); len(list) > 0 {
					ended[list[len(list)-1].State]++
				}
			}
			t.Logf("%d upgrades, killed %v, ended %v, carried on by another upgrader %d", rounds, killed, ended, helped)
			// And one in peace.
			sum := w.offerUnique(t, w.next.agent, "devopsAgent", "last")
			if code, said := w.upgrade(t); code != 0 {
				t.Fatalf("code %d: %s", code, said)
			}
			if !lab.Eventually(45*time.Second, func() bool { return w.over("settled") && w.runs() }) {
				t.Fatalf("agents %v, %v, %+v\n%.6000s", w.agents(), w.left(), w.history(), w.home.Log())
			}
			if live, err := os.ReadFile(w.home.Path("devopsAgent")); err != nil || sha256.Sum256(live) != sum {
				t.Errorf("the agent is not the last version: %v", err)
			}
			w.tidy(t)
		})
	}
}

// keepDaemon starts "upgrader keep" again and again, as a machine that is switched on does. The first daemon is taken over.
func (w *upgradeWorld) keepDaemon(t *testing.T) {
	var stop atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for !stop.Load() {
			_, _ = w.home.StartProgram(w.home.Path("upgrader"), "/", []string{"keep", "--home", w.home.Dir}, w.env...).Wait(time.Hour)
			pause := time.NewTimer(200 * time.Millisecond)
			<-pause.C
		}
	}()
	t.Cleanup(func() {
		stop.Store(true)
		for {
			lab.KillMarked("LAB_DIR=" + w.home.Lab)
			select {
			case <-ended:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
}

// offerUnique puts a version into tmp/ that nobody has seen, and returns its digest.
func (w *upgradeWorld) offerUnique(t *testing.T, program, name, mark string) [32]byte {
	t.Helper()
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	data = append(data, mark...) // what is behind an ELF file is not looked at
	fresh := w.home.LabPath("fresh")
	if err := os.WriteFile(fresh, data, 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	w.offer(t, fresh, name)
	return sha256.Sum256(data)
}

// killAny kills one of the home's processes, and returns which program that was.
func (w *upgradeWorld) killAny(random *rand.Rand) string {
	var pids []int
	var names []string
	for _, pid := range lab.Marked("LAB_DIR=" + w.home.Lab) {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil || !strings.HasPrefix(exe, w.home.Dir) {
			continue
		}
		pids, names = append(pids, pid), append(names, strings.TrimSuffix(filepath.Base(exe), " (deleted)"))
	}
	if len(pids) == 0 {
		return "nobody"
	}
	i := random.IntN(len(pids))
	_ = syscall.Kill(pids[i], syscall.SIGKILL)
	return names[i]
}

// closed reports whether no upgrade is open.
func (w *upgradeWorld) closed() bool {
	open, _ := filepath.Glob(w.home.Path("upgrade", "open-*"))
	return len(open) == 0
}

// tidy checks that nothing lies about that is not kept on purpose.
func (w *upgradeWorld) tidy(t *testing.T) {
	t.Helper()
	var left []string
	if !lab.Eventually(30*time.Second, func() bool { left = w.strays(); return len(left) == 0 }) {
		t.Errorf("left behind: %v", left)
	}
}

// strays is what is there that no upgrade needs any more, and old programs of more than two upgrades. The agent sweeps when no upgrade is
// on trial any more.
func (w *upgradeWorld) strays() (found []string) {
	for _, pattern := range []string{"*.old*", ".old-*", "*.tmp*", ".trash-*", "upgrade/.trash-*", "upgrade/*.tmp*", "upgrade/damaged-*", "upgrade/*/new", "upgrade/*/record", "upgrade/*/back-*"} {
		some, _ := filepath.Glob(w.home.Path(filepath.FromSlash(pattern)))
		found = append(found, some...)
	}
	if kept, _ := filepath.Glob(w.home.Path("upgrade", "*", "old")); len(kept) > 2 {
		found = append(found, kept...)
	}
	return found
}
