//go:build linux

package e2e

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// TestServerDoesNotUndoARollback: what an operator has left stays away while the server offers it, says so everywhere, and comes when
// that is allowed.
func TestServerDoesNotUndoARollback(t *testing.T) {
	t.Parallel()
	w := newUpgradeWorld(t, byDaemon, "3s")
	w.publishFile(t, "devopsAgent", w.next.agent)
	w.publishFile(t, "devopsDaemon", w.programs.Daemon)
	w.publishFile(t, "upgrader", w.programs.Upgrader)
	own := w.home.LabPath("devopsAgent") // not one that is about to be replaced
	if out, err := exec.Command("cp", w.programs.Agent, own).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	must := func(want string, args ...string) {
		t.Helper()
		out, errs, code := verb(w, own, w.home.Dir, args...)
		if code != 0 || !strings.Contains(out, want) {
			t.Fatalf("%v: code %d, %s%s\n%s", args, code, out, errs, w.home.Log())
		}
	}
	mark := w.rec.Mark()
	w.rec.Offer("agent")
	w.speaks(t, mark, nextVersion)
	if !lab.Eventually(30*time.Second, func() bool { return w.over("settled") && len(w.reports()) == 1 }) {
		t.Fatalf("left %v, reports %v", w.left(), w.reports())
	}
	mark = w.rec.Mark()
	must("done: agent", "rollback", "--wait")
	w.speaks(t, mark, "v0.0.0-dev.0")

	mark = w.rec.Mark()
	if q, ok := w.rec.WaitFor(offerLimit, mark, lab.FinishUpgrade); !ok || q.Query.Get("success") != "false" {
		t.Fatalf("the offer is not answered: %v %s", w.reports(), w.home.Log())
	}
	if !w.same(t, "devopsAgent", w.programs.Agent) || !w.runs() || len(w.history()) != 2 {
		t.Errorf("left %v, history %+v", w.left(), w.history())
	}
	must(nextVersion+" was rolled back by hand", "status")
	must("; the server's offer of it is not taken", "status")
	must(nextVersion+" was rolled back by hand", "upgrade", "history")
	must(`"left": true`, "upgrade", "history", "--json")

	if _, errs, code := verb(w, own, w.home.Dir, "rollback", nextVersion, "--allow"); code != 1 {
		t.Errorf("rollback VERSION --allow: code %d, %s", code, errs)
	}
	must("the server may bring back "+nextVersion, "rollback", "--allow")
	must("nothing to allow", "rollback", "--allow")
	mark = w.rec.Mark()
	must("", "restart")
	w.speaks(t, mark, nextVersion)
	if !lab.Eventually(30*time.Second, func() bool { return w.over("settled") && w.runs() }) {
		t.Errorf("left %v, history %+v, agents %v", w.left(), w.history(), w.agents())
	}
}
