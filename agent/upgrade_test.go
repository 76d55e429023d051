package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/agent/host"
	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/service/control"
	"github.com/devops-agent/devops-agent/upgrader"
	"github.com/devops-agent/devops-agent/upgrader/journal"
)

// configure puts another agent.toml into force.
func (s stage) configure(t *testing.T, text string) {
	t.Helper()
	path := s.config.Load().Path
	if err := os.WriteFile(path, []byte("protocol = \""+string(s.config.Load().Protocol)+"\"\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
}

// offering is a server that offers a worker, and has no file.
func offering(c call) (int, http.Header, string) {
	switch path, _, _ := strings.Cut(c.path, "?"); path {
	case wire.PathAsk:
		if enable, _ := c.body["askEnable"].(map[string]any); enable["upgrade"] == true {
			return 200, nil, `{"status":0,"agentStatus":"IMPORT_OK","data":{"heartbeat":{"agentStatus":"IMPORT_OK"},"upgrade":{"worker":true}}}`
		}
	case wire.PathUpgradeNew:
		return 200, nil, `{"status":0,"agentStatus":"IMPORT_OK","data":{"worker":true}}`
	case wire.PathDownload:
		return 404, nil, "no"
	}
	return normal(c)
}

// TestOffersThatComeToNothing are answered, each, and asked for with growing pauses of up to an hour.
func TestOffersThatComeToNothing(t *testing.T) {
	for _, protocol := range []string{"ask", "split"} {
		synctest.Test(t, func(t *testing.T) {
			s := setStage(t, protocol, &server{answer: offering})
			if err := s.runFor(t, 5*time.Hour); err != nil {
				t.Fatal(err)
			}
			downloads, answers := s.of("/download"), s.of("/upgrade")
			if len(downloads) < 8 || len(downloads) > 11 || len(answers) != len(downloads) {
				t.Errorf("%s: %d downloads and %d answers in 5 hours", protocol, len(downloads), len(answers))
			}
			for i, c := range answers {
				if c.method != http.MethodDelete || !strings.HasSuffix(c.path, "success=false") {
					t.Errorf("%s: answer %d: %s %s", protocol, i, c.method, c.path)
				}
			}
			if least, most := gaps(downloads); least < time.Minute || most > time.Hour+time.Minute {
				t.Errorf("%s: downloads %v to %v apart", protocol, least, most)
			}
			if refused := s.Status().Upgrade.Refused; !strings.Contains(refused, "404") {
				t.Errorf("%s: status says %q", protocol, refused)
			}
			if s.Status().Upgrade.Pending != "worker" {
				t.Errorf("%s: pending %q", protocol, s.Status().Upgrade.Pending)
			}
		})
	}
}

// TestACheckWithoutAnAnswer may have set the server's mark all the same (protocol §4.3).
func TestACheckWithoutAnAnswer(t *testing.T) {
	for status, want := range map[int]int{0: 1, 500: 0} {
		synctest.Test(t, func(t *testing.T) {
			first := true
			s := setStage(t, "split", &server{answer: func(c call) (int, http.Header, string) {
				if c.path == wire.PathUpgradeNew && first {
					first = false
					return status, nil, "no"
				}
				return normal(c)
			}})
			if err := s.runFor(t, 2*time.Minute); err != nil {
				t.Fatal(err)
			}
			if answers := s.of("/upgrade"); len(answers) != want {
				t.Errorf("status %d: %d answers, want %d", status, len(answers), want)
			}
		})
	}
}

func TestWhoMayReplaceWhat(t *testing.T) {
	all := wire.UpgradeItem{Agent: true, Worker: true, JDK: true, DockerInitFile: true}
	noon, hour := time.Now(), time.Hour
	window := func(from, to time.Time) string { return from.Format("15:04") + "-" + to.Format("15:04") }
	for _, c := range []struct {
		protocol, toml string
		want           upgrader.Order
	}{
		{"ask", "", upgrader.Order{Agent: true, Worker: true, JDK17: true, Init: true}},
		{"split", "", upgrader.Order{Agent: true, Worker: true, JDK: true, Init: true}},
		{"ask", "upgrade.mode = \"package\"", upgrader.Order{Worker: true, JDK17: true, Init: true}},
		{"ask", "upgrade.mode = \"off\"", upgrader.Order{}},
		{"ask", "upgrade.window = \"" + window(noon.Add(-hour), noon.Add(hour)) + "\"", upgrader.Order{Agent: true, Worker: true, JDK17: true, Init: true}},
		{"ask", "upgrade.window = \"" + window(noon.Add(hour), noon.Add(2*hour)) + "\"", upgrader.Order{Worker: true, JDK17: true, Init: true}},
	} {
		s := setStage(t, c.protocol, &server{answer: normal})
		s.configure(t, c.toml)
		if got := s.allowed(all); got != c.want {
			t.Errorf("%s %s: %+v, want %+v", c.protocol, c.toml, got, c.want)
		}
	}
	if lacking(host.Versions{Worker: "v1", JDK: []string{"a"}}) || !lacking(host.Versions{Worker: "v1"}) || !lacking(host.Versions{JDK: []string{"a"}}) {
		t.Error("lacking is wrong")
	}
	for _, c := range []struct {
		mode    config.UpgradeMode
		o       upgrader.Order
		force   bool
		refused bool
	}{
		{config.UpgradeServer, upgrader.Order{Agent: true}, false, false},
		{config.UpgradePackage, upgrader.Order{Agent: true}, false, true},
		{config.UpgradePackage, upgrader.Order{Worker: true, JDK: true}, false, false},
		{config.UpgradeOff, upgrader.Order{Worker: true}, false, true},
		{config.UpgradeOff, upgrader.Order{Agent: true}, true, false},
	} {
		if err := MayReplace(c.mode, c.o, c.force); (err != nil) != c.refused {
			t.Errorf("%s, %+v, force %v: %v", c.mode, c.o, c.force, err)
		}
	}
}

// TestModeOffAsksForNothing: an offer would only keep builds away.
func TestModeOffAsksForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := setStage(t, "split", &server{answer: offering})
		s.configure(t, "upgrade.mode = \"off\"")
		if err := s.runFor(t, 10*time.Minute); err != nil {
			t.Fatal(err)
		}
		if n := len(s.of("/upgradeNew")); n != 0 {
			t.Errorf("%d checks", n)
		}
	})
}

// TestEachMachineHasItsTurn: upgrade.jitter spreads machines, and one machine always has the same share.
func TestEachMachineHasItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := setStage(t, "ask", &server{answer: offering})
		s.configure(t, "upgrade.jitter = \"2h\"")
		share := s.share()
		if share != s.share() || share < 0 || share >= 2*time.Hour {
			t.Fatalf("share %v, then %v", share, s.share())
		}
		begun := time.Now()
		if err := s.runFor(t, share+10*time.Minute); err != nil {
			t.Fatal(err)
		}
		downloads := s.of("/download")
		if len(downloads) == 0 || downloads[0].at.Sub(begun) < share {
			t.Fatalf("%d downloads with a share of %v", len(downloads), share)
		}
		if answers := s.of("/upgrade"); len(answers) != 1+len(downloads) || answers[0].at.Sub(begun) > time.Minute {
			t.Errorf("%d answers, %d downloads", len(answers), len(downloads))
		}
	})
}

// TestAnAgentThatStopsWaitsForNoDownload.
func TestAnAgentThatStopsWaitsForNoDownload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := setStage(t, "ask", &server{answer: offering})
		stopped := time.Time{}
		s.delay = func(ctx context.Context, c call) {
			if strings.HasPrefix(c.path, wire.PathDownload) {
				time.AfterFunc(time.Second, func() { stopped = time.Now(); s.Stop(false) })
				<-ctx.Done()
			}
		}
		if err := s.runFor(t, time.Hour); err != nil {
			t.Fatal(err)
		}
		if stopped.IsZero() || time.Since(stopped) > 5*time.Second {
			t.Errorf("the end took %v", time.Since(stopped))
		}
	})
}

// TestExclusive is the property of statement 93 at the agent's own door: questions, builds and upgrades at random.
func TestExclusive(t *testing.T) {
	s := setStage(t, "ask", &server{answer: normal})
	var upgrades, asking, both, had atomic.Int32
	var all sync.WaitGroup
	stop := make(chan struct{})
	for i := range 4 {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				seats := s.reserve()
				if seats.Kind() != wire.None {
					asking.Add(1)
					if upgrades.Load() > 0 {
						both.Add(1)
					}
					if slot, ok := seats.Claim(wire.Build{ID: fmt.Sprint(i, n), VMSeq: "1"}); ok && rng.IntN(2) == 0 {
						s.building.add()
						seats.Release()
						if upgrades.Load() > 0 {
							both.Add(1)
						}
						s.building.done()
						slot.Release()
					} else if ok {
						slot.Release()
					}
					asking.Add(-1)
				}
				seats.Release()
			}
		})
	}
	for range 50 {
		release, ok := s.exclusive(t.Context(), true)
		if !ok {
			t.Fatal("a patient caller was turned away")
		}
		had.Add(1)
		upgrades.Add(1)
		if s.slots.Busy() {
			both.Add(1)
		}
		runtime.Gosched()
		upgrades.Add(-1)
		release()
	}
	close(stop)
	all.Wait()
	if both.Load() > 0 {
		t.Errorf("%d times a build and an upgrade at once", both.Load())
	}
}

func TestExclusiveIsNotGivenTwiceNorToWhoEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := setStage(t, "ask", &server{answer: normal})
		seats := s.reserve()
		slot, _ := seats.Claim(wire.Build{ID: "b", VMSeq: "1"})
		seats.Release()
		begun := time.Now()
		if _, ok := s.exclusive(t.Context(), false); ok || time.Since(begun) > time.Second {
			t.Errorf("under a build: %v after %v", ok, time.Since(begun))
		}
		after := s.reserve()
		if !after.in {
			t.Error("nothing is taken although no upgrade is under way")
		}
		after.Release()
		time.AfterFunc(time.Hour, slot.Release)
		release, ok := s.exclusive(t.Context(), true)
		if !ok || time.Since(begun) < time.Hour {
			t.Fatalf("a patient caller: %v after %v", ok, time.Since(begun))
		}
		if again, ok := s.exclusive(t.Context(), true); ok {
			again()
			t.Error("given twice")
		}
		if seats := s.reserve(); seats.Kind() != wire.None || seats.in {
			t.Errorf("a question for %s under the lock", seats.Kind())
		}
		release()
		if seats := s.reserve(); seats.Kind() != wire.All || !seats.in {
			t.Errorf("a question for %s after it", seats.Kind())
		} else {
			seats.Release()
		}
		s.Stop(false)
		if _, ok := s.exclusive(t.Context(), true); ok {
			t.Error("given to an agent that ends")
		}
	})
}

// beginTrial makes a record of an upgrade whose new agent is this test, and its start.
func (s stage) beginTrial(t *testing.T, plan journal.Plan) {
	t.Helper()
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	live := s.Installation.Path(journal.Place(journal.Agent, runtime.GOOS))
	if err := os.WriteFile(live, []byte("old"), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	plan.Items = []journal.Item{{Part: journal.Agent, From: own, Was: "v0", Now: "v1"}}
	j := journal.Open(s.Installation, s.Log)
	if _, err := j.Begin(plan); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Recover(t.Context(), journal.Last{}); err != nil {
		t.Fatal(err)
	}
}

func (s stage) state(t *testing.T) (journal.State, int) {
	t.Helper()
	found, err := s.journal.Current()
	if err != nil {
		t.Fatal(err)
	}
	return found.State, found.Starts
}

// TestAVersionProvesItself: when it has run for a while and its server has answered, and not before.
func TestAVersionProvesItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		proved := 0
		s := setStage(t, "ask", &server{answer: normal})
		s.Proved = func() { proved++ }
		s.beginTrial(t, journal.Plan{Kind: journal.FromServer, Reached: true, Proof: 30 * time.Second, Tell: true})
		time.AfterFunc(29*time.Second, func() {
			if state, starts := s.state(t); state != journal.Trial || starts != 1 {
				t.Errorf("after 29 s: %q, start %d", state, starts)
			}
			if u := s.Status().Upgrade; u.Phase != control.OnTrial || u.To != "v1" || u.Starts != 1 || u.Since == nil {
				t.Errorf("status %+v", u)
			}
			if text := s.sentence(time.Now()); !strings.Contains(text, "on trial: v1") {
				t.Errorf("sentence %q", text)
			}
			if s.wantsUpgrade() {
				t.Error("another upgrade is asked for during a trial")
			}
		})
		if err := s.runFor(t, time.Minute); err != nil {
			t.Fatal(err)
		}
		if state, _ := s.state(t); state != journal.None || proved != 1 {
			t.Errorf("after a minute: %q, proved %d times", state, proved)
		}
		if answers := s.of("/upgrade"); len(answers) != 1 || !strings.HasSuffix(answers[0].path, "success=true") {
			t.Errorf("the server heard %v", answers)
		}
		if u := s.Status().Upgrade; u.Phase != "" || u.Last == nil || u.Last.State != string(journal.Settled) {
			t.Errorf("status %+v", u)
		}
	})
}

// TestLeftOversGoAfterTheTrial: not two hours later.
func TestLeftOversGoAfterTheTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := setStage(t, "ask", &server{answer: normal})
		left := s.Installation.Path("jdk17_1700000001")
		if err := os.Mkdir(left, 0o700); err != nil {
			t.Fatal(err)
		}
		s.beginTrial(t, journal.Plan{Kind: journal.FromServer, Reached: true, Proof: 30 * time.Second})
		time.AfterFunc(29*time.Second, func() {
			if _, err := os.Stat(left); err != nil {
				t.Errorf("during the trial: %v", err)
			}
		})
		if err := s.runFor(t, time.Minute); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after the trial: %v", err)
		}
	})
}

// TestWhoUpgradesWaitsForTheBroom instead of being told that another upgrade is under way.
func TestWhoUpgradesWaitsForTheBroom(t *testing.T) {
	s := setStage(t, "ask", &server{answer: normal})
	removing, removed := make(chan struct{}), make(chan struct{})
	go s.changes.sweep(func() {
		close(removing)
		<-removed
	})
	<-removing
	if err := s.begin(func(context.Context) (bool, error) {
		select {
		case <-removed:
		default:
			t.Error("an upgrade does not wait for what is being removed")
		}
		return false, nil
	}); err != nil {
		t.Fatal(err)
	}
	if s.changes.sweep(func() { t.Error("removed during an upgrade") }) {
		t.Error("swept during an upgrade")
	}
	for range 1000 {
		runtime.Gosched() // who does not wait is found out
	}
	close(removed)
	<-s.changes.work.idle()
	if !s.changes.sweep(func() {}) {
		t.Error("not swept after the upgrade")
	}
}

// TestAServerInTroubleIsWaitedFor: for hours, without a start being counted; the version settles with the first answer.
func TestAServerInTroubleIsWaitedFor(t *testing.T) {
	for _, status := range []int{500, 429, 0} {
		synctest.Test(t, func(t *testing.T) {
			well := time.Now().Add(100 * time.Minute)
			s := setStage(t, "ask", &server{answer: func(c call) (int, http.Header, string) {
				if time.Now().Before(well) {
					return status, nil, "no"
				}
				return normal(c)
			}})
			s.beginTrial(t, journal.Plan{Kind: journal.FromServer, Reached: true, Proof: 30 * time.Second, Tell: true})
			time.AfterFunc(90*time.Minute, func() {
				if state, starts := s.state(t); state != journal.Trial || starts != 0 {
					t.Errorf("status %d: after hours: %q, start %d", status, state, starts)
				}
			})
			if err := s.runFor(t, 2*time.Hour); err != nil {
				t.Fatal(err)
			}
			if state, _ := s.state(t); state != journal.None {
				t.Errorf("status %d: when the server is back: %q", status, state)
			}
		})
	}
}

// TestAVersionThatIsRefusedDoesNotSettle, where the one before was not: its guard will see to it. Where that could not reach the server
// either, being well is enough.
func TestAVersionThatIsRefusedDoesNotSettle(t *testing.T) {
	for reached, want := range map[bool]journal.State{true: journal.Trial, false: journal.None} {
		synctest.Test(t, func(t *testing.T) {
			s := setStage(t, "ask", &server{answer: func(call) (int, http.Header, string) { return 401, nil, "no" }})
			s.beginTrial(t, journal.Plan{Kind: journal.FromFile, Reached: reached, Proof: 30 * time.Second})
			if err := s.runFor(t, 10*time.Minute); err != nil {
				t.Fatal(err)
			}
			if state, starts := s.state(t); state != want || want == journal.Trial && starts != 1 {
				t.Errorf("reached before: %v: %q, start %d", reached, state, starts)
			}
		})
	}
}

// TestAnotherProgramsTrialIsNotOurs: an agent that runs in place of the new one must not settle it.
func TestAnotherProgramsTrialIsNotOurs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := setStage(t, "ask", &server{answer: normal})
		fresh := filepath.Join(t.TempDir(), "fresh")
		if err := os.WriteFile(fresh, []byte("new"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.Installation.Path(journal.Place(journal.Agent, runtime.GOOS)), []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.journal.Begin(journal.Plan{Kind: journal.FromServer, Items: []journal.Item{{Part: journal.Agent, From: fresh}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.journal.Recover(t.Context(), journal.Last{}); err != nil {
			t.Fatal(err)
		}
		if err := s.runFor(t, 5*time.Minute); err != nil {
			t.Fatal(err)
		}
		if state, _ := s.state(t); state != journal.Trial {
			t.Errorf("state %q", state)
		}
	})
}

// TestTheEndOfAnUpgradeIsTold by the agent that comes back, until the server has heard it (weakness W-40).
func TestTheEndOfAnUpgradeIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := 5
		s := setStage(t, "ask", &server{answer: func(c call) (int, http.Header, string) {
			if strings.HasPrefix(c.path, wire.PathUpgrade+"?") && refused > 0 {
				refused--
				return 502, nil, "no"
			}
			return normal(c)
		}})
		s.beginTrial(t, journal.Plan{Kind: journal.FromServer, Reached: true, Tell: true})
		if _, err := s.journal.Undo("it ate too much", journal.Last{}); err != nil {
			t.Fatal(err)
		}
		if err := s.runFor(t, 10*time.Minute); err != nil {
			t.Fatal(err)
		}
		answers := s.of("/upgrade")
		if len(answers) != 6 {
			t.Errorf("%d reports, want 6", len(answers))
		}
		for _, c := range answers {
			if !strings.HasSuffix(c.path, "success=false") {
				t.Errorf("told %s", c.path)
			}
		}
		if list, err := s.journal.Untold(); err != nil || len(list) > 0 {
			t.Errorf("still to be told: %+v, %v", list, err)
		}
		if text := s.sentence(time.Now()); !strings.Contains(text, "v1 was taken back at") || !strings.Contains(text, "it ate too much") {
			t.Errorf("sentence %q", text)
		}
	})
}

// TestOperatorsAreRefusedAtOnce when what they want cannot be.
func TestOperatorsAreRefusedAtOnce(t *testing.T) {
	s := setStage(t, "ask", &server{answer: normal})
	empty, dir := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, journal.Place(journal.Agent, runtime.GOOS)), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		r    control.Request
		toml string
		want string
	}{
		{control.Request{Op: control.OpUpgrade, From: "relative"}, "", "absolute"},
		{control.Request{Op: control.OpUpgrade, From: empty}, "", "nothing for this machine"},
		{control.Request{Op: control.OpUpgrade, From: dir}, "upgrade.mode = \"off\"", "upgrade.mode"},
		{control.Request{Op: control.OpUpgrade, From: dir}, "upgrade.mode = \"package\"", "upgrade.mode"},
		{control.Request{Op: control.OpRollback}, "", "no earlier version"},
		{control.Request{Op: control.OpRollback, Version: "v7"}, "", "v7"},
	} {
		s.configure(t, c.toml)
		if _, err := s.Control(t.Context(), c.r); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.r, err, c.want)
		}
	}
	s.configure(t, "")
	s.changes.begin()
	if _, err := s.Control(t.Context(), control.Request{Op: control.OpUpgrade, From: dir}); err == nil || !strings.Contains(err.Error(), "another upgrade") {
		t.Errorf("beside another upgrade: %v", err)
	}
	s.changes.end()
	s.Stop(false)
	if _, err := s.Control(t.Context(), control.Request{Op: control.OpUpgrade, From: dir}); err == nil {
		t.Error("begun although the agent is about to end")
	}
}

// TestPausesAfterFailures double up to an hour, and begin anew after a success.
func TestPausesAfterFailures(t *testing.T) {
	var c changes
	for i, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60} {
		if got := c.failed("x"); got != want*time.Minute {
			t.Errorf("pause %d: %v, want %v", i, got, want*time.Minute)
		}
	}
	c.succeeded()
	if got := c.failed("x"); got != time.Minute {
		t.Errorf("after a success: %v", got)
	}
}

// TestDownloadsAreAskedForAsTheOriginalDoes (protocol §1.6.6), through a client whose answers are checked.
func TestDownloadsAreAskedForAsTheOriginalDoes(t *testing.T) {
	s := setStage(t, "ask", &server{answer: func(call) (int, http.Header, string) { return 200, nil, "data" }})
	resp, err := s.client().Download(t.Context(), "upgrade/devopsAgent_linux", "0123", 7)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(resp.Body)
	if err != nil || string(data) != "data" {
		t.Errorf("%q, %v", data, err)
	}
	if c := s.of("/download")[0]; c.method != http.MethodGet || c.path != wire.PathDownload+"?file=upgrade/devopsAgent_linux&eTag=0123" {
		t.Errorf("%s %s", c.method, c.path)
	}
	if got := resp.Request.Header.Get("Range"); got != "bytes=7-" {
		t.Errorf("range %q", got)
	}
}
