package controller

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// linuxFiles are the names of a release for Linux; every file's content names the version and the file.
func linuxFiles() []string {
	return []string{"upgrade/devopsAgent_linux", "upgrade/devopsDaemon_linux", "upgrade/upgrader_linux"}
}

func contentOf(version, name string) string { return version + ":" + name }

// upload makes a release of files.
func (w *world) upload(n NewRelease, names ...string) (Release, error) {
	w.t.Helper()
	for _, name := range names {
		data := contentOf(n.Version, name)
		sum := sha256.Sum256([]byte(data))
		object, err := w.server.Upload(hex.EncodeToString(sum[:]), strings.NewReader(data))
		if err != nil {
			return Release{}, err
		}
		n.Files = append(n.Files, struct {
			Name   string `json:"name"`
			SHA256 string `json:"sha256"`
		}{name, object.SHA256})
	}
	return w.server.AddRelease(n)
}

// release is upload of programs for Linux and whatever else.
func (w *world) release(version string, more ...string) {
	w.t.Helper()
	if _, err := w.upload(NewRelease{Version: version}, append(linuxFiles(), more...)...); err != nil {
		w.t.Fatal(err)
	}
}

// robot is an agent that does as it is told.
type robot struct {
	*machine
	agent, worker string
	jdk           []string
}

func (w *world) robot(labels ...string) *robot {
	w.t.Helper()
	r := &robot{machine: w.imported(NewAgent{Labels: labels}), agent: "v1.0.0", jdk: []string{"a", "b", "c"}}
	r.unspaced()
	r.poll()
	return r
}

// unspaced lets an agent ask as often as it likes: a bubble's time stands still between two calls.
func (r *robot) unspaced() {
	r.server.mu.Lock()
	defer r.server.mu.Unlock()
	r.server.agents[r.id.Agent].pacedTill = time.Now().Add(365 * 24 * time.Hour)
}

func (w *world) robots(n int, labels ...string) []*robot {
	list := make([]*robot, n)
	for i := range list {
		list[i] = w.robot(labels...)
	}
	return list
}

func (r *robot) question() wire.Ask {
	in := asking(wire.All)
	in.Heartbeat.MasterVersion, in.Heartbeat.SlaveVersion, in.Heartbeat.Props.JDKVersion = r.agent, r.worker, r.jdk
	in.Heartbeat.HostName = "host-" + r.id.Agent
	in.Enable.Upgrade = true
	in.Upgrade = &wire.UpgradeCheck{WorkerVersion: r.worker, GoAgentVersion: r.agent, JDKVersion: r.jdk}
	return in
}

// poll asks once and returns what is to be upgraded.
func (r *robot) poll() wire.UpgradeItem {
	r.t.Helper()
	parts := r.ask(r.question(), 0)
	if parts.Upgrade == nil {
		return wire.UpgradeItem{}
	}
	return *parts.Upgrade
}

func (r *robot) fetch(name string) rawReply {
	r.t.Helper()
	return r.call("GET", wire.PathDownload+"?file="+name, r.header(), nil)
}

// take downloads the agent's programs and starts them: it reports the version in them.
func (r *robot) take() {
	r.t.Helper()
	got := r.fetch("upgrade/devopsAgent_linux")
	version, _, found := strings.Cut(string(got.body), ":")
	if got.code != 200 || !found {
		r.t.Fatalf("download: %d %s", got.code, got.body)
	}
	r.agent = version
	r.poll()
}

func (r *robot) finish(success bool) {
	r.t.Helper()
	if err := r.client.FinishUpgrade(r.t.Context(), success); err != nil {
		r.t.Fatal(err)
	}
}

// upgrade does all that a good upgrade does, if there is an offer.
func (r *robot) upgrade() bool {
	r.t.Helper()
	if !r.poll().Agent {
		return false
	}
	r.take()
	r.finish(true)
	return true
}

func number(n int) *int { return &n }

func (w *world) offer(o Offer) RolloutInfo {
	w.t.Helper()
	info, err := w.server.Offer(o)
	if err != nil {
		w.t.Fatal(err)
	}
	return info
}

func (w *world) rollout(id int64) RolloutInfo {
	w.t.Helper()
	info, err := w.server.FindRollout(id)
	if err != nil {
		w.t.Fatal(err)
	}
	return info
}

func (i RolloutInfo) member(agent string) MemberInfo {
	at := slices.IndexFunc(i.Agents, func(m MemberInfo) bool { return m.Agent == agent })
	if at < 0 {
		return MemberInfo{}
	}
	return i.Agents[at]
}

// expect compares a rollout's state and counts; zero counts may be left out.
func (w *world) expect(id int64, state RolloutState, counts map[MemberState]int) RolloutInfo {
	w.t.Helper()
	info := w.rollout(id)
	have := maps.Clone(info.Counts)
	maps.DeleteFunc(have, func(_ MemberState, n int) bool { return n == 0 })
	if info.State != state || !maps.Equal(have, counts) {
		w.t.Fatalf("rollout %d is %s (%s) with %v, want %s with %v", id, info.State, info.Reason, have, state, counts)
	}
	return info
}

// polled is a robot's world, on disk.
func polled(t *testing.T) Options { return Options{Dir: t.TempDir()} }

// minute lets a minute pass in a bubble while all robots go on asking, so that none counts as offline.
func minute(robots []*robot) {
	for range 3 {
		time.Sleep(21 * time.Second)
		for _, r := range robots {
			r.poll()
		}
	}
}

func TestCanariesGoFirstThenAllOthersInPortions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inBubble(t, polled(t))
		w.release("v1.0.0")
		w.release("v2.0.0")
		robots := w.robots(30)
		id := w.offer(Offer{Version: "v2.0.0", Canary: number(2)}).ID
		var canaries []*robot
		for _, r := range robots {
			if r.poll().Agent {
				canaries = append(canaries, r)
			}
		}
		if len(canaries) != 2 {
			t.Fatalf("%d canaries", len(canaries))
		}
		w.expect(id, InCanary, map[MemberState]int{Waiting: 28, Offered: 2})
		for _, r := range canaries {
			if got := r.fetch("upgrade/devopsAgent_linux"); string(got.body) != "v2.0.0:upgrade/devopsAgent_linux" {
				t.Errorf("a canary downloads %s", got.body)
			}
		}
		w.expect(id, InCanary, map[MemberState]int{Waiting: 28, Downloading: 2})
		canaries[0].take()
		canaries[0].finish(true)
		canaries[1].take()
		w.expect(id, InCanary, map[MemberState]int{Waiting: 28, Upgraded: 2})
		for _, r := range robots {
			if r.poll().Any() {
				t.Error("an offer before the canaries are proven")
			}
		}
		canaries[1].finish(true)
		w.expect(id, Rolling, map[MemberState]int{Waiting: 28, Upgraded: 2})
		offered := 2
		for round := 0; offered < 30; round++ {
			if round > 20 {
				t.Fatal("it does not come to an end")
			}
			var now []*robot
			for _, r := range robots {
				if r.poll().Agent {
					now = append(now, r)
				}
			}
			if len(now) > 3 || len(now) == 0 {
				t.Fatalf("%d at once, of 30", len(now))
			}
			offered += len(now)
			for _, r := range now {
				r.take()
				r.finish(true)
			}
		}
		info := w.expect(id, Done, map[MemberState]int{Upgraded: 30})
		if info.Proven != 30 || info.Canaries != 2 || info.Matching != 30 {
			t.Errorf("%+v", info)
		}
		late := w.robot() // its first question is answered with the offer
		late.take()
		late.finish(true)
		w.expect(id, Done, map[MemberState]int{Upgraded: 31})
	})
}

// An agent of the original says nothing when it has been upgraded. It is believed when a bad version would be gone.
func TestAnUpgradeIsProvenByTimeAsWell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inBubble(t, polled(t))
		w.release("v2.0.0")
		robots := w.robots(2)
		id := w.offer(Offer{Version: "v2.0.0"}).ID
		for _, r := range robots {
			if r.poll().Agent {
				r.take()
			}
		}
		minute(robots)
		w.expect(id, InCanary, map[MemberState]int{Waiting: 1, Upgraded: 1})
		minute(robots)
		w.expect(id, Rolling, map[MemberState]int{Offered: 1, Upgraded: 1})
	})
}

func TestFailingCanariesHaltARollout(t *testing.T) {
	for name, c := range map[string]struct {
		fail   func(r *robot, all []*robot)
		reason string
	}{
		"it says so":              {func(r *robot, _ []*robot) { r.finish(false) }, "it says that the upgrade failed"},
		"it rolled back":          {func(r *robot, _ []*robot) { r.take(); r.agent = "v1.0.0"; r.poll() }, "it reported v2.0.0, and then v1.0.0"},
		"it rolled back and says": {func(r *robot, _ []*robot) { r.take(); r.agent = "v1.0.0"; r.poll(); r.finish(false) }, "it rolled back by itself"},
		"it stays as it is": {func(_ *robot, all []*robot) {
			for range 16 {
				minute(all)
			}
		}, "it was offered v2.0.0 10 times and did not take it"},
		"it does not ask again": {func(r *robot, all []*robot) {
			for range 16 {
				for _, x := range all {
					if x != r {
						x.poll()
					}
				}
				for range 3 {
					time.Sleep(21 * time.Second)
					in := r.question()
					in.Enable.Upgrade, in.Upgrade = false, nil
					r.ask(in, 0)
				}
			}
		}, "it was offered v2.0.0 and reports v1.0.0 still, after 15m0s without progress"},
		"it falls silent": {func(r *robot, all []*robot) {
			others := slices.DeleteFunc(slices.Clone(all), func(x *robot) bool { return x == r })
			for range 16 {
				minute(others)
			}
		}, "offline since"},
		"it falls silent afterwards": {func(r *robot, all []*robot) {
			r.take()
			others := slices.DeleteFunc(slices.Clone(all), func(x *robot) bool { return x == r })
			for range 16 {
				minute(others)
			}
		}, "fell silent"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := inBubble(t, polled(t))
				w.release("v2.0.0")
				robots := w.robots(5)
				id := w.offer(Offer{Version: "v2.0.0", Canary: number(1)}).ID
				i := slices.IndexFunc(robots, func(r *robot) bool { return r.poll().Agent })
				c.fail(robots[i], robots)
				info := w.rollout(id)
				if info.State != Halted || len(info.Failures) != 1 || !strings.Contains(info.Reason, c.reason) || !strings.Contains(info.Reason, "host-"+robots[i].id.Agent) {
					t.Fatalf("%s %q %+v", info.State, info.Reason, info.Failures)
				}
				minute(robots)
				for _, r := range robots {
					if r != robots[i] && r.poll().Any() {
						t.Error("an offer after it was halted")
					}
				}
				if info = w.rollout(id); info.State != Halted || info.Counts[Waiting] != 4 {
					t.Errorf("%s %v", info.State, info.Counts)
				}
			})
		})
	}
}

func TestSomeFailuresMayBeAllowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inBubble(t, polled(t))
		w.release("v2.0.0")
		robots := w.robots(4)
		id := w.offer(Offer{Version: "v2.0.0", Canary: number(2), MaxFailures: 1, Parallel: 2}).ID
		robots[0].poll()
		robots[1].poll()
		robots[0].finish(false)
		robots[1].take()
		robots[1].finish(true)
		w.expect(id, Rolling, map[MemberState]int{Upgraded: 1, Faulty: 1, Waiting: 2})
		robots[2].poll()
		robots[2].finish(false)
		info := w.expect(id, Halted, map[MemberState]int{Upgraded: 1, Faulty: 2, Waiting: 1})
		if !strings.Contains(info.Reason, "2 failed, 1 may") {
			t.Error(info.Reason)
		}
		// The operator goes on; the failures so far do not count again.
		if _, err := w.server.Resume(id, false); err != nil {
			t.Fatal(err)
		}
		if !robots[3].upgrade() {
			t.Error("no offer after resume")
		}
		w.expect(id, Done, map[MemberState]int{Upgraded: 2, Faulty: 2})
		minute(robots)
		if robots[0].poll().Any() {
			t.Error("a failed agent is offered the same again")
		}
		if _, err := w.server.Resume(id, true); err != nil {
			t.Fatal(err)
		}
		if !robots[0].upgrade() || !robots[2].upgrade() {
			t.Error("not retried")
		}
		w.expect(id, Done, map[MemberState]int{Upgraded: 4})
	})
}

func TestPauseResumeAndRollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inBubble(t, polled(t))
		w.release("v1.0.0")
		w.release("v2.0.0")
		robots := w.robots(4)
		id := w.offer(Offer{Version: "v2.0.0", Canary: number(1), Parallel: 1}).ID
		robots[0].poll()
		pause := func() {
			t.Helper()
			if info, err := w.server.Pause(id); err != nil || info.State != Paused {
				t.Fatal(info.State, err)
			}
		}
		pause()
		robots[0].take() // it finishes
		robots[0].finish(true)
		minute(robots)
		w.expect(id, Paused, map[MemberState]int{Upgraded: 1, Waiting: 3})
		if _, err := w.server.Pause(id); err == nil {
			t.Error("paused twice")
		}
		if info, err := w.server.Resume(id, false); err != nil || info.State != Rolling {
			t.Fatal(info.State, err)
		}
		if !robots[1].upgrade() {
			t.Fatal("no offer after resume")
		}
		robots[2].poll()
		w.expect(id, Rolling, map[MemberState]int{Upgraded: 2, Offered: 1, Waiting: 1})
		if err := w.server.RemoveRelease("v2.0.0"); err == nil || !strings.Contains(err.Error(), "rollout 1 offers it (rolling)") {
			t.Errorf("removed while it is offered: %v", err)
		}
		info, err := w.server.RollBack(id, "")
		if err != nil || info.State != RolledBack {
			t.Fatal(info.State, err)
		}
		w.expect(id, RolledBack, map[MemberState]int{Reverting: 2, Reverted: 1, Waiting: 1})
		robots[2].take() // what is told to it now is the old version
		if robots[2].agent != "v1.0.0" {
			t.Errorf("an agent that was called back downloads %s", robots[2].agent)
		}
		if err := w.server.RemoveRelease("v1.0.0"); err == nil {
			t.Error("the version that agents go back to was removed")
		}
		minute(robots)
		offered := 0
		for _, r := range robots[:2] {
			if r.agent == "v2.0.0" && w.rollout(id).member(r.id.Agent).Offers > 0 {
				offered++
			}
		}
		if offered != 1 {
			t.Errorf("%d go back at once, want 1", offered)
		}
		for range 2 {
			for _, r := range robots[:2] {
				if w.rollout(id).member(r.id.Agent).Offers > 0 && r.agent == "v2.0.0" {
					r.take()
					r.finish(true)
				}
			}
			minute(robots)
		}
		w.expect(id, RolledBack, map[MemberState]int{Reverted: 3, Waiting: 1})
		for _, r := range robots {
			if r.agent != "v1.0.0" || r.poll().Any() {
				t.Errorf("%s has %s", r.id.Agent, r.agent)
			}
		}
		if err := w.server.RemoveRelease("v2.0.0"); err != nil {
			t.Errorf("remove what is rolled back: %v", err)
		}
	})
}

// An agent that was called back while it had the new version in its hands may come up with it all the same.
func TestAnAgentThatComesUpAfterARollbackIsTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inBubble(t, polled(t))
		w.release("v1.0.0")
		w.release("v2.0.0")
		r := w.robot()
		id := w.offer(Offer{Version: "v2.0.0"}).ID
		r.poll()
		r.fetch("upgrade/devopsAgent_linux")
		if _, err := w.server.RollBack(id, ""); err != nil {
			t.Fatal(err)
		}
		r.agent = "v2.0.0"
		r.poll()
		w.expect(id, RolledBack, map[MemberState]int{Reverting: 1})
		minute([]*robot{r})
		r.take()
		if r.agent != "v1.0.0" {
			t.Error(r.agent)
		}
		w.expect(id, RolledBack, map[MemberState]int{Reverted: 1})
	})
}

func TestRollbackNeedsTheVersionBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inBubble(t, polled(t))
		w.release("v2.0.0")
		w.release("v0.9.0")
		r := w.robot()
		id := w.offer(Offer{Version: "v2.0.0"}).ID
		r.upgrade()
		var refused *InputError
		_, err := w.server.RollBack(id, "")
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), "v1.0.0 (1 agent)") {
			t.Errorf("%v", err)
		}
		w.expect(id, Done, map[MemberState]int{Upgraded: 1})
		if _, err := w.server.RollBack(id, "v3"); !errors.Is(err, ErrNotFound) {
			t.Errorf("%v", err)
		}
		if _, err := w.server.RollBack(id, "v2.0.0"); !errors.As(err, &refused) {
			t.Errorf("%v", err)
		}
		if _, err := w.server.RollBack(id, "v0.9.0"); err != nil {
			t.Fatal(err)
		}
		minute([]*robot{r})
		r.take()
		if r.agent != "v0.9.0" {
			t.Error(r.agent)
		}
		w.expect(id, RolledBack, map[MemberState]int{Reverted: 1})
	})
}

// What is published for all in versions.json is a version before, too.
func TestRollbackToWhatIsPublishedForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inBubble(t, polled(t))
		for _, name := range linuxFiles() {
			publish(t, w.server.opts.Dir, name, contentOf("v1.0.0", name))
		}
		publish(t, w.server.opts.Dir, VersionsFile, `{"agent":"v1.0.0"}`)
		w.release("v2.0.0")
		r := w.robot()
		minute([]*robot{r})
		id := w.offer(Offer{Version: "v2.0.0"}).ID
		r.upgrade()
		minute([]*robot{r})
		if r.poll().Any() {
			t.Error("an agent with a release is offered what is published for all")
		}
		if _, err := w.server.RollBack(id, ""); err != nil {
			t.Fatal(err)
		}
		minute([]*robot{r})
		r.take()
		if r.agent != "v1.0.0" {
			t.Error(r.agent)
		}
		w.expect(id, RolledBack, map[MemberState]int{Reverted: 1})
	})
}

// A controller that is stopped in any state goes on in it.
func TestARestartKeepsRollouts(t *testing.T) {
	opts := polled(t)
	open := func() *world {
		s, err := Open(opts)
		if err != nil {
			t.Fatal(err)
		}
		return &world{t: t, server: s, http: httpOf(s), url: "http://controller"}
	}
	w := open()
	w.release("v1.0.0")
	w.release("v2.0.0", "upgrade/devopsAgent_linux.minisig")
	robots := w.robots(5)
	again := func() {
		t.Helper()
		before := w.server.Rollouts()
		id := before[0].ID
		members := w.rollout(id).Agents
		if err := w.server.Close(); err != nil {
			t.Fatal(err)
		}
		w = open()
		for _, r := range robots {
			r.world, r.client.HTTP = w, w.http
			r.unspaced()
		}
		if after := w.server.Rollouts(); jsonText(after) != jsonText(before) || jsonText(w.rollout(id).Agents) != jsonText(members) {
			t.Fatalf("before\n%s\n%s\nafter\n%s\n%s", jsonText(before), jsonText(members), jsonText(after), jsonText(w.rollout(id).Agents))
		}
	}
	id := w.offer(Offer{Version: "v2.0.0", Canary: number(1), MaxFailures: 0, Parallel: 1, Labels: []string{"linux"}, Window: "00:00-23:59"}).ID
	w.server.mu.Lock()
	w.server.rollouts[0].from, w.server.rollouts[0].until = 0, 0 // also in the last minute of a day
	w.server.mu.Unlock()
	again()
	step := func(state RolloutState, counts map[MemberState]int) {
		t.Helper()
		w.expect(id, state, counts)
		again()
		w.expect(id, state, counts)
		w.server.mu.Lock()
		w.server.rollouts[0].from, w.server.rollouts[0].until = 0, 0
		w.server.mu.Unlock()
	}
	step(InCanary, map[MemberState]int{Waiting: 5})
	if !robots[0].poll().Agent {
		t.Fatal("no offer")
	}
	step(InCanary, map[MemberState]int{Waiting: 4, Offered: 1})
	if got := robots[0].fetch("upgrade/devopsAgent_linux.minisig"); got.code != 200 {
		t.Errorf("a signature after a restart: %d", got.code)
	}
	w.server.store.sync()
	step(InCanary, map[MemberState]int{Waiting: 4, Downloading: 1})
	robots[0].take()
	step(InCanary, map[MemberState]int{Waiting: 4, Upgraded: 1})
	robots[0].finish(true)
	step(Rolling, map[MemberState]int{Waiting: 4, Upgraded: 1})
	if _, err := w.server.Pause(id); err != nil {
		t.Fatal(err)
	}
	step(Paused, map[MemberState]int{Waiting: 4, Upgraded: 1})
	if _, err := w.server.Resume(id, false); err != nil {
		t.Fatal(err)
	}
	robots[1].poll()
	robots[1].finish(false)
	step(Halted, map[MemberState]int{Waiting: 3, Upgraded: 1, Faulty: 1})
	if robots[2].poll().Any() {
		t.Error("halted, and offered")
	}
	if _, err := w.server.Resume(id, false); err != nil {
		t.Fatal(err)
	}
	step(Rolling, map[MemberState]int{Waiting: 3, Upgraded: 1, Faulty: 1})
	for _, r := range robots[2:] {
		if !r.upgrade() {
			t.Error("no offer")
		}
	}
	step(Done, map[MemberState]int{Upgraded: 4, Faulty: 1})
	if _, err := w.server.RollBack(id, ""); err != nil {
		t.Fatal(err)
	}
	step(RolledBack, map[MemberState]int{Reverting: 4, Reverted: 1})
	if got := robots[0].fetch("upgrade/devopsAgent_linux"); string(got.body) != "v1.0.0:upgrade/devopsAgent_linux" {
		t.Errorf("after a rollback: %s", got.body)
	}
	if err := w.server.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestTwoRolloutsForTwoLabels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inBubble(t, polled(t))
		for _, v := range []string{"v2.0.0", "v3.0.0"} {
			w.release(v)
		}
		blue, green, both := w.robot("color=blue"), w.robot("color=green"), w.robot("color=blue", "color=green")
		plain := w.robot()
		first := w.offer(Offer{Version: "v2.0.0", Labels: []string{"color=blue"}, Canary: number(0), Parallel: 9}).ID
		second := w.offer(Offer{Version: "v3.0.0", Labels: []string{"color=green"}, Canary: number(0), Parallel: 9}).ID
		for r, want := range map[*robot]string{blue: "v2.0.0", green: "v3.0.0", both: "v3.0.0", plain: "v1.0.0"} {
			r.upgrade()
			if r.agent != want {
				t.Errorf("an agent with %v has %s, want %s", r.id.Agent, r.agent, want)
			}
		}
		if r := plain.fetch("upgrade/devopsAgent_linux"); r.code != 404 {
			t.Errorf("an agent without an offer downloads %s", r.body)
		}
		all := []*robot{blue, green, both, plain}
		minute(all)
		for _, r := range all {
			if item := r.poll(); item.Any() {
				t.Errorf("offered again: %+v", item)
			}
		}
		w.expect(first, Done, map[MemberState]int{Upgraded: 1})
		w.expect(second, Done, map[MemberState]int{Upgraded: 2})
		if w.rollout(first).ReplacedBy != 0 {
			t.Error("replaced by one for other agents")
		}
	})
}

// A newer rollout takes agents over from an older one, and replaces it when it is done.
func TestANewerRolloutTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inBubble(t, polled(t))
		for _, v := range []string{"v2.0.0", "v3.0.0"} {
			w.release(v)
		}
		robots := w.robots(2)
		off := w.robot()
		first := w.offer(Offer{Version: "v2.0.0", Canary: number(0), Parallel: 3}).ID
		robots[0].upgrade()
		off.upgrade()    // and is switched off
		robots[1].poll() // under way
		minute(robots)
		second := w.offer(Offer{Version: "v3.0.0", Canary: number(0), Parallel: 2}).ID
		minute(robots)
		for _, r := range robots {
			r.take()
			r.finish(true)
			if r.agent != "v3.0.0" {
				t.Error(r.agent)
			}
		}
		minute(robots)
		w.expect(second, Done, map[MemberState]int{Upgraded: 2, Waiting: 1})
		if w.rollout(first).ReplacedBy != 0 {
			t.Error("replaced while an agent that is switched off has the older release")
		}
		off.poll()
		off.take()
		off.finish(true)
		minute(append(robots, off))
		w.expect(second, Done, map[MemberState]int{Upgraded: 3})
		if info := w.rollout(first); info.ReplacedBy != second || info.Counts[Left] != 3 || info.Counts[Faulty] != 0 {
			t.Errorf("%+v", info)
		}
		if _, err := w.server.Pause(first); err == nil {
			t.Error("a replaced rollout was paused")
		}
		if err := w.server.RemoveRelease("v2.0.0"); err != nil {
			t.Errorf("remove what was replaced: %v", err)
		}
	})
}

// A rollout to fewer machines leaves the older one in force, for machines that come later.
func TestANarrowerRolloutReplacesNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inBubble(t, polled(t))
		for _, v := range []string{"v2.0.0", "v3.0.0"} {
			w.release(v)
		}
		r := w.robot("gpu")
		first := w.offer(Offer{Version: "v2.0.0"}).ID
		r.upgrade()
		minute([]*robot{r})
		second := w.offer(Offer{Version: "v3.0.0", Labels: []string{"gpu"}}).ID
		r.upgrade()
		minute([]*robot{r})
		w.expect(second, Done, map[MemberState]int{Upgraded: 1})
		if later := w.robot(); w.rollout(first).member(later.id.Agent).State != Offered {
			t.Errorf("a machine that came later: %+v", w.rollout(first))
		}
	})
}

// Rollouts of different parts leave each other alone.
func TestAJDKAndAnAgentAreRolledOutBesideEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inBubble(t, polled(t))
		w.release("v2.0.0")
		if _, err := w.upload(NewRelease{Version: "jdk-25", JDK: "Server VM (build 25)"}, "jre/linux/jdk17.zip", "jar/worker-agent.jar"); err != nil {
			t.Fatal(err)
		}
		r := w.robot()
		agents := w.offer(Offer{Version: "v2.0.0"}).ID
		r.upgrade()
		jdk := w.offer(Offer{Version: "jdk-25"}).ID
		minute([]*robot{r})
		w.expect(jdk, InCanary, map[MemberState]int{Offered: 1})
		if got := r.fetch("jre/linux/jre.zip"); got.code != 404 {
			t.Errorf("the other kind of archive: %d", got.code)
		}
		for name, version := range map[string]string{"jre/linux/jdk17.zip": "jdk-25", "jar/worker-agent.jar": "jdk-25", "upgrade/upgrader_linux": "v2.0.0"} {
			if got := r.fetch(name); string(got.body) != contentOf(version, name) {
				t.Errorf("%s: %d %s", name, got.code, got.body)
			}
		}
		r.jdk, r.worker = []string{"a", "b", "Server VM (build 25) "}, "jdk-25"
		r.poll()
		r.finish(true)
		w.expect(jdk, Done, map[MemberState]int{Upgraded: 1})
		w.expect(agents, Done, map[MemberState]int{Upgraded: 1})
		minute([]*robot{r})
		if w.rollout(agents).ReplacedBy != 0 {
			t.Error("programs were replaced by a JDK")
		}
		if p, err := r.client.Beat(t.Context(), r.question().Heartbeat); err != nil || p.SlaveVersion != "jdk-25" {
			t.Errorf("worker version in the heartbeat's answer: %+v %v", p, err)
		}
		minute([]*robot{r})
		r.jdk = nil // somebody removed it
		if item := r.poll(); item != (wire.UpgradeItem{JDK: true}) {
			t.Errorf("a lost JDK: %+v", item)
		}
		w.expect(jdk, Done, map[MemberState]int{Upgraded: 1})
	})
}

func TestAnAgentThatHasTheVersionIsNotOfferedIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inBubble(t, polled(t))
		w.release("v2.0.0")
		robots := w.robots(3)
		robots[0].agent = "v2.0.0"
		robots[0].poll()
		id := w.offer(Offer{Version: "v2.0.0", Canary: number(1)}).ID
		w.expect(id, InCanary, map[MemberState]int{Upgraded: 1, Waiting: 2})
		robots[1].agent = "v2.0.0" // the package manager was faster
		robots[1].poll()
		info := w.expect(id, InCanary, map[MemberState]int{Upgraded: 2, Waiting: 1})
		if m := info.member(robots[1].id.Agent); !m.Confirmed || m.Offers != 0 || m.Canary {
			t.Errorf("%+v", m)
		}
		robots[2].agent = "v2.0.0"
		robots[2].poll()
		w.expect(id, Done, map[MemberState]int{Upgraded: 3})
	})
}

// An agent of the seed generation asks by upgradeNew every 20 s, and never learns of builds at once.
func TestSeedAgentsTakePart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inBubble(t, polled(t))
		w.release("v2.0.0")
		r := w.robot()
		id := w.offer(Offer{Version: "v2.0.0"}).ID
		for i, want := range []bool{true, false, false, true} {
			item, err := r.client.CheckUpgrade(t.Context(), *r.question().Upgrade)
			if err != nil || item.Agent != want {
				t.Errorf("question %d: %+v %v", i, item, err)
			}
			time.Sleep(20 * time.Second)
			if _, err := r.client.Beat(t.Context(), r.question().Heartbeat); err != nil {
				t.Fatal(err)
			}
		}
		r.fetch("upgrade/upgrader_linux")
		w.expect(id, InCanary, map[MemberState]int{Downloading: 1})
		if _, err := r.client.Startup(t.Context(), wire.Startup{HostName: "h", HostIP: "10.0.0.1", DetectOS: "linux", MasterVersion: "v2.0.0"}); err != nil {
			t.Fatal(err)
		}
		w.expect(id, InCanary, map[MemberState]int{Upgraded: 1})
		if item, err := r.client.CheckUpgrade(t.Context(), wire.UpgradeCheck{GoAgentVersion: "v2.0.0", JDKVersion: r.jdk}); err != nil || item.Any() {
			t.Errorf("%+v %v", item, err)
		}
	})
}

// A build that comes first puts the upgrade off, and never is an agent told both in one answer: it would refuse.
func TestBuildsComeFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inBubble(t, polled(t))
		w.release("v2.0.0")
		r := w.robot()
		b := w.submit(oneStep("x"))
		id := w.offer(Offer{Version: "v2.0.0"}).ID
		p := r.ask(r.question(), 0)
		if p.Build == nil || p.Upgrade.Any() {
			t.Fatalf("both, or neither: %+v", p)
		}
		r.start(b.ID)
		if r.poll().Any() {
			t.Error("an offer while a build runs")
		}
		w.expect(id, InCanary, map[MemberState]int{Waiting: 1})
		r.complete(b.ID, wire.TaskResult{TaskID: *r.claimTask(b.ID).TaskID, Success: true})
		r.end(b.ID)
		if !r.poll().Agent {
			t.Error("no offer after the build")
		}
		in := r.question()
		in.Heartbeat.TaskList = []wire.Running{{Build: "b-other"}}
		in.Enable.Upgrade, in.Upgrade = false, nil
		r.ask(in, 0) // one that it had taken before, as we see now
		r.finish(false)
		w.expect(id, InCanary, map[MemberState]int{Waiting: 1})
	})
}

// The same holds for what is published for all.
func TestABuildAndAnUpgradeNeverComeTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inBubble(t, polled(t))
		r := w.robot()
		for _, name := range linuxFiles() {
			publish(t, w.server.opts.Dir, name, contentOf("v2.0.0", name))
		}
		publish(t, w.server.opts.Dir, VersionsFile, `{"agent":"v2.0.0"}`)
		time.Sleep(2 * time.Second) // it is noticed
		b := w.submit(oneStep("x"))
		if p := r.ask(r.question(), 0); p.Build == nil || p.Upgrade.Any() {
			t.Errorf("both, or neither: %+v", p)
		}
		r.run(b.ID, nil)
		if !r.poll().Agent {
			t.Error("no offer after the build")
		}
	})
}

func TestOffersThatMakeNoSenseAreRefused(t *testing.T) {
	w := serve(t, polled(t))
	w.release("v2.0.0")
	w.robot("gpu")
	w.offer(Offer{Version: "v2.0.0", Labels: []string{"gpu"}})
	windows := w.imported(NewAgent{OS: "windows", Labels: []string{"win"}})
	windows.ask(asking(wire.None), time.Second)
	for _, c := range []struct {
		offer Offer
		want  string
	}{
		{Offer{Version: "v9"}, "no such thing"},
		{Offer{Version: "v2.0.0", Labels: []string{"gppu"}}, "no agent has all of the labels gppu"},
		{Offer{Version: "v2.0.0", Labels: []string{"gpu", "os=windows"}}, "no agent has all"},
		{Offer{Version: "v2.0.0", Labels: []string{"a b"}}, "label"},
		{Offer{Version: "v2.0.0", Labels: []string{"win"}}, "no files for the platforms of the 1 agents"},
		{Offer{Version: "v2.0.0", Labels: []string{"gpu", "gpu"}}, "rollout 1 offers v2.0.0 to the same agents already: it is canary"},
		{Offer{Version: "v2.0.0", Canary: number(-1)}, "canary -1"},
		{Offer{Version: "v2.0.0", MaxFailures: -1}, "maxFailures -1"},
		{Offer{Version: "v2.0.0", Window: "22-5"}, "window"},
		{Offer{Version: "v2.0.0", Window: "22:00-22:00"}, "two different times"},
		{Offer{Version: "v2.0.0", Window: "25:00-26:00"}, "window"},
	} {
		if _, err := w.server.Offer(c.offer); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.offer, err, c.want)
		}
	}
	if list := w.server.Rollouts(); len(list) != 1 {
		t.Errorf("%d rollouts", len(list))
	}
	for _, labels := range [][]string{{"os=linux"}, {"gpu", "project=demo"}, {"arch=amd64"}} {
		if info, err := w.server.Offer(Offer{Version: "v2.0.0", Labels: labels}); err != nil || info.Matching != 1 {
			t.Errorf("%v: %d %v", labels, info.Matching, err)
		}
	}
}

func TestWindows(t *testing.T) {
	at := func(text string) time.Time {
		moment, err := time.ParseInLocation("15:04", text, time.Local)
		if err != nil {
			t.Fatal(err)
		}
		return moment
	}
	for window, times := range map[string]map[string]bool{
		"":            {"00:00": true, "12:00": true},
		"08:00-18:00": {"07:59": false, "08:00": true, "17:59": true, "18:00": false},
		"22:00-05:30": {"21:59": false, "22:00": true, "00:00": true, "05:29": true, "05:30": false, "12:00": false},
	} {
		r := newRollout(Rollout{Window: window}, nil)
		for text, want := range times {
			if r.inWindow(at(text)) != want {
				t.Errorf("%s at %s: %t", window, text, !want)
			}
		}
	}
}

// Outside its window a rollout offers nothing, and what was offered and not taken waits for the next one.
func TestARolloutKeepsToItsWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inBubble(t, polled(t))
		w.release("v2.0.0")
		robots := w.robots(2)
		begin := time.Now().Local().Add(2 * time.Hour).Truncate(time.Minute)
		window := begin.Format("15:04-") + begin.Add(10*time.Minute).Format("15:04")
		id := w.offer(Offer{Version: "v2.0.0", Canary: number(2), Window: window}).ID
		minute(robots)
		w.expect(id, InCanary, map[MemberState]int{Waiting: 2})
		time.Sleep(time.Until(begin.Add(5 * time.Minute)))
		if !robots[0].poll().Agent {
			t.Error("no offer in the window")
		}
		for range 20 {
			minute(robots[1:])
			robots[0].ask(asking(wire.None), 0)
		}
		w.expect(id, InCanary, map[MemberState]int{Waiting: 2})
	})
}

// Times on disk are for people: a clock that was wrong when they were written changes nothing.
func TestAClockThatJumpsFailsNobody(t *testing.T) {
	for name, by := range map[string]time.Duration{"a year ahead": 365 * 24 * time.Hour, "a year back": -365 * 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			opts := polled(t)
			synctest.Test(t, func(t *testing.T) {
				s, err := Open(opts)
				if err != nil {
					t.Fatal(err)
				}
				w := &world{t: t, server: s, http: httpOf(s), url: "http://controller"}
				w.release("v2.0.0")
				robots := w.robots(3)
				id := w.offer(Offer{Version: "v2.0.0", Canary: number(2), Parallel: 3}).ID
				robots[0].poll()
				robots[1].poll()
				robots[1].take()
				s.mu.Lock()
				r := s.rollouts[0]
				r.CreatedAt, r.ChangedAt = r.CreatedAt+by.Milliseconds(), r.ChangedAt+by.Milliseconds()
				s.saveRollout(r)
				for _, m := range r.members {
					m.OfferedAt, m.ChangedAt = m.OfferedAt+by.Milliseconds(), m.ChangedAt+by.Milliseconds()
					s.saveMember(r, m.Agent)
				}
				s.mu.Unlock()
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				w = inBubble(t, opts)
				for _, r := range robots {
					r.world, r.client.HTTP = w, w.http
					r.unspaced()
				}
				time.Sleep(30 * time.Second)
				for _, r := range robots {
					r.poll()
				}
				w.expect(id, InCanary, map[MemberState]int{Waiting: 1, Offered: 1, Upgraded: 1})
				minute(robots)
				robots[0].take()
				robots[0].finish(true)
				minute(robots)
				if !robots[2].upgrade() && robots[2].agent != "v2.0.0" {
					robots[2].take()
					robots[2].finish(true)
				}
				w.expect(id, Done, map[MemberState]int{Upgraded: 3})
			})
		})
	}
}

// The offer that cannot be written down is not made.
func TestNoOfferWithoutTheDisk(t *testing.T) {
	w := serve(t, polled(t))
	w.release("v2.0.0")
	r := w.robot()
	id := w.offer(Offer{Version: "v2.0.0"}).ID
	var mu sync.Mutex
	full := true
	w.server.store.lead <- struct{}{}
	w.server.store.fail = func() error {
		mu.Lock()
		defer mu.Unlock()
		if full {
			return errors.New("no space left on device")
		}
		return nil
	}
	<-w.server.store.lead
	if r.poll().Any() {
		t.Error("an offer that is not on disk")
	}
	w.expect(id, InCanary, map[MemberState]int{Waiting: 1})
	if _, err := w.server.Offer(Offer{Version: "v2.0.0", Labels: []string{"linux"}}); err == nil {
		t.Error("a rollout that is not on disk")
	}
	mu.Lock()
	full = false
	mu.Unlock()
	if !r.poll().Agent {
		t.Error("no offer when there is room again")
	}
	w.expect(id, InCanary, map[MemberState]int{Offered: 1})
}

// A held request learns of an offer at once, and no more are woken than there are places.
func TestHeldAgentsLearnOfAnOfferAtOnce(t *testing.T) {
	w := serve(t, polled(t))
	w.release("v2.0.0")
	robots := w.robots(6)
	got := make(chan *robot, len(robots))
	for _, r := range robots {
		go func() {
			if p := r.ask(r.question(), 5*time.Second); p.Upgrade != nil && p.Upgrade.Agent {
				got <- r
				return
			}
			got <- nil
		}()
		w.held(r.id.Agent)
	}
	began := time.Now()
	id := w.offer(Offer{Version: "v2.0.0", Canary: number(2)}).ID
	for range 2 {
		if r := <-got; r == nil {
			t.Fatal("woken for nothing")
		}
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
	w.expect(id, InCanary, map[MemberState]int{Waiting: 4, Offered: 2})
	w.server.Release()
	for range 4 {
		if r := <-got; r != nil {
			t.Error("more than two were told")
		}
	}
}

func TestAThousandAgentsAreRolledOut(t *testing.T) {
	const count = 1000
	s, err := Open(polled(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	w := &world{t: t, server: s, http: httpOf(s), url: "http://controller"}
	w.release("v2.0.0")
	robots := w.robots(count)
	began := time.Now()
	id := w.offer(Offer{Version: "v2.0.0", Canary: number(10)}).ID
	most, rounds := 0, 0
	for ; w.rollout(id).State != Done; rounds++ {
		if rounds > 40 {
			t.Fatalf("after %d rounds: %+v", rounds, w.rollout(id).Counts)
		}
		var now []*robot
		for _, r := range robots {
			if r.agent == "v1.0.0" && r.poll().Agent {
				now = append(now, r)
			}
		}
		most = max(most, len(now))
		for _, r := range now {
			r.take()
			r.finish(true)
		}
	}
	info := w.expect(id, Done, map[MemberState]int{Upgraded: count})
	if info.Proven != count || most > count/10 {
		t.Errorf("%d proven, %d at once", info.Proven, most)
	}
	t.Logf("%d agents in %d rounds, at most %d at once, %v", count, rounds, most, time.Since(began).Round(time.Millisecond))
}

func TestReleases(t *testing.T) {
	w := serve(t, polled(t))
	dir := w.server.opts.Dir
	for _, c := range []struct {
		release NewRelease
		files   []string
		want    string
	}{
		{NewRelease{Version: "v2"}, nil, "needs files"},
		{NewRelease{Version: "../v2"}, linuxFiles(), "version"},
		{NewRelease{Version: "v2"}, linuxFiles()[:2], "upgrade/upgrader_linux is missing"},
		{NewRelease{Version: "v2"}, append(linuxFiles(), "upgrade/devopsAgent.exe"), "upgrade/devopsDaemon.exe is missing"},
		{NewRelease{Version: "v2"}, append(linuxFiles(), "upgrade/devopsController_linux"), "no file that agents ask for"},
		{NewRelease{Version: "v2"}, append(linuxFiles(), "upgrade/devopsAgent_linux_amd64"), "no file that agents ask for"},
		{NewRelease{Version: "v2"}, append(linuxFiles(), "../secret"), "no file that agents ask for"},
		{NewRelease{Version: "v2"}, []string{"jre/linux/jdk17.zip"}, "third line"},
		{NewRelease{Version: "v2", JDK: "x"}, linuxFiles(), "without a JDK"},
		{NewRelease{Version: "v2", Worker: "x"}, linuxFiles(), "without jar/worker-agent.jar"},
		{NewRelease{Version: "v2"}, []string{"jar/worker-agent.jar.minisig"}, "signs a file that is not there"},
	} {
		if _, err := w.upload(c.release, c.files...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.files, err, c.want)
		}
	}
	w.release("v2", "upgrade/devopsAgent_linux.minisig", "jar/worker-agent.jar")
	w.release("v2", "upgrade/devopsAgent_linux.minisig", "jar/worker-agent.jar") // the same again
	if r, err := w.upload(NewRelease{Version: "v2"}, "upgrade/devopsAgent.exe", "upgrade/devopsDaemon.exe", "upgrade/upgrader.exe"); err != nil || len(r.Files) != 8 || r.Worker != "v2" {
		t.Errorf("another platform: %+v %v", r, err)
	}
	other := NewRelease{Version: "v2"}
	sum := sha256.Sum256([]byte("other"))
	object, err := w.server.Upload(hex.EncodeToString(sum[:]), strings.NewReader("other"))
	if err != nil {
		t.Fatal(err)
	}
	other.Files = append(other.Files, struct {
		Name   string `json:"name"`
		SHA256 string `json:"sha256"`
	}{"jar/worker-agent.jar", object.SHA256})
	if _, err := w.server.AddRelease(other); err == nil || !strings.Contains(err.Error(), "another jar/worker-agent.jar") {
		t.Errorf("another file under a version that is there: %v", err)
	}
	if _, err := w.server.Upload(strings.Repeat("0", 64), strings.NewReader("x")); err == nil || !strings.Contains(err.Error(), "changed on the way") {
		t.Errorf("a wrong digest: %v", err)
	}
	if _, err := w.server.Upload("../x", strings.NewReader("x")); err == nil {
		t.Error("no digest")
	}
	for _, version := range []string{"v3", "v4"} {
		w.release(version)
	}
	list := w.server.Releases()
	if len(list) != 3 {
		t.Errorf("%d releases", len(list))
	}
	kept := func() int {
		t.Helper()
		names, err := os.ReadDir(filepath.Join(dir, "files", objects))
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	before := kept()
	if err := w.server.RemoveRelease("v4"); err != nil || kept() != before-3 {
		t.Errorf("%v, %d files of %d", err, kept(), before)
	}
	if err := w.server.RemoveRelease("v4"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// What a killed upload left is gone after the next start; what releases have is not.
func TestLeftUploadsAreSwept(t *testing.T) {
	opts := polled(t)
	folder := filepath.Join(opts.Dir, "files", objects)
	t.Run("first", func(t *testing.T) {
		w := serve(t, opts)
		w.release("v2")
		sum := sha256.Sum256([]byte("left"))
		if _, err := w.server.Upload(hex.EncodeToString(sum[:]), strings.NewReader("left")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, ".upload-1"), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	w := serve(t, opts)
	names, err := os.ReadDir(folder)
	if err != nil || len(names) != 3 {
		t.Errorf("%v %v", names, err)
	}
	if list := w.server.Releases(); len(list) != 1 || len(list[0].Files) != 3 {
		t.Errorf("%+v", list)
	}
}

func TestFilesOfAReleaseAreServedAsOthers(t *testing.T) {
	w := serve(t, polled(t))
	publish(t, w.server.opts.Dir, "upgrade/devopsDaemon_linux.minisig", "signature of another file")
	publish(t, w.server.opts.Dir, "jar/worker-agent.jar", "published for all")
	publish(t, w.server.opts.Dir, "jar/worker-agent.jar.minisig", "and signed")
	w.release("v2", "upgrade/devopsAgent_linux.minisig")
	r, other := w.robot("one"), w.robot("two")
	w.offer(Offer{Version: "v2", Labels: []string{"one"}})
	if !r.poll().Agent {
		t.Fatal("no offer")
	}
	text := contentOf("v2", "upgrade/devopsAgent_linux")
	sum := md5.Sum([]byte(text))
	digest := hex.EncodeToString(sum[:])
	got := r.fetch("upgrade/devopsAgent_linux")
	if got.code != 200 || string(got.body) != text || got.header.Get(wire.HeaderMD5) != digest || got.header.Get("Content-Type") != "application/octet-stream" {
		t.Errorf("%d %v %s", got.code, got.header, got.body)
	}
	if got := r.fetch("upgrade/devopsAgent_linux&eTag=" + strings.ToUpper(digest)); got.code != 304 {
		t.Errorf("eTag: %d", got.code)
	}
	h := r.header()
	h.Set("Range", "bytes=3-")
	if got := r.call("GET", wire.PathDownload+"?file=upgrade/devopsAgent_linux", h, nil); got.code != 206 || string(got.body) != text[3:] || got.header.Get(wire.HeaderMD5) != digest {
		t.Errorf("range: %d %s", got.code, got.body)
	}
	for name, want := range map[string]int{
		"upgrade/devopsAgent_linux.minisig": 200, "upgrade/devopsDaemon_linux.minisig": 404, "upgrade/upgrader_linux.minisig": 404,
		"jar/worker-agent.jar": 200, "jar/worker-agent.jar.minisig": 200, "releases/" + strings.Repeat("0", 64): 404, "releases": 404,
		"upgrade/devopsAgent_linux_arm64": 404,
	} {
		if got := r.fetch(name); got.code != want {
			t.Errorf("%s: %d, want %d", name, got.code, want)
		}
	}
	w.server.mu.Lock()
	object := w.server.releases["v2"].Files[0].SHA256
	w.server.mu.Unlock()
	if got := r.fetch(objects + "/" + object); got.code != 404 {
		t.Errorf("a file of a release by its digest: %d", got.code)
	}
	if got := other.fetch("upgrade/devopsAgent_linux"); got.code != 404 {
		t.Errorf("an agent without the offer: %d", got.code)
	}
}

// New installations get the release of a rollout that is done.
func TestPackagesHaveTheReleaseThatIsRolledOut(t *testing.T) {
	w := serve(t, polled(t))
	publish(t, w.server.opts.Dir, "upgrade/devopsAgent_linux", "published for all")
	w.release("v2")
	id := w.offer(Offer{Version: "v2", Canary: number(0)}).ID
	w.expect(id, Done, map[MemberState]int{})
	m := w.machine(NewAgent{})
	r := w.call("GET", wire.PathExternal+"/"+m.id.Agent+"/agent?arch=", m.header(), nil)
	if r.code != 200 || !bytes.Contains(r.body, []byte("devopsAgent")) {
		t.Fatalf("%d %s", r.code, r.body)
	}
	layers := w.server.packageLayers(m.id.Agent)
	f, err := w.server.openFor(layers, "upgrade/devopsAgent_linux")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	data := make([]byte, 3)
	if _, err := f.Read(data); err != nil || string(data) != "v2:" {
		t.Errorf("%s %v", data, err)
	}
}

func TestNamesOfFiles(t *testing.T) {
	for file, want := range map[string]string{
		"bin/devopsAgent_linux":                 "upgrade/devopsAgent_linux",
		"devopsDaemon_linux_arm64":              "upgrade/devopsDaemon_linux_arm64",
		"/x/upgrader.exe":                       "upgrade/upgrader.exe",
		"upgrade/upgrader_macos_arm64":          "upgrade/upgrader_macos_arm64",
		"./worker-agent.jar":                    "jar/worker-agent.jar",
		"a/jre/linux/jdk17.zip":                 "jre/linux/jdk17.zip",
		"jre/macos_arm64/jre.zip.minisig":       "jre/macos_arm64/jre.zip.minisig",
		"script/linux/agent_docker_init.sh":     "script/linux/agent_docker_init.sh",
		"bin/devopsAgent_linux.minisig":         "upgrade/devopsAgent_linux.minisig",
		"jdk17.zip":                             "",
		"agent_docker_init.sh":                  "",
		"devopsAgent":                           "",
		"devopsAgent_linux_amd64":               "",
		"devopsAgent_macos_mips64":              "",
		"devopsController_linux":                "",
		"devopsAgent_linux.minisig.minisig":     "",
		"upgrade/devopsAgent_linux/something":   "",
		"upgrade/../upgrade/devopsAgent_linux ": "",
	} {
		if got := StoreName(file); got != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
}

func TestTheOperatorsCallsAboutUpgrades(t *testing.T) {
	w := serve(t, polled(t))
	w.robot()
	good := http.Header{"Authorization": {"Bearer " + string(w.server.Token())}}
	data := "content"
	sum := sha256.Sum256([]byte(data))
	digest := hex.EncodeToString(sum[:])
	for _, c := range []struct {
		method, path string
		body         any
		code         int
		contains     string
	}{
		{"GET", "/objects/" + digest, nil, 404, "no such"},
		{"PUT", "/objects/" + digest, "other", 400, "changed on the way"},
		{"PUT", "/objects/" + digest, data, 200, `"size":7`},
		{"PUT", "/objects/" + digest, data, 200, `"size":7`},
		{"GET", "/objects/" + digest, nil, 200, `"md5":"9a0364b9e99bb480dd25e1f0284c8555"`},
		{"GET", "/releases", nil, 200, "[]"},
		{"POST", "/releases", `{"version":"v2","files":[{"name":"jar/worker-agent.jar","sha256":"x"}]}`, 400, "was not uploaded"},
		{"POST", "/releases", `{"version":"v2","files":[{"name":"jar/worker-agent.jar","sha256":"` + digest + `"}]}`, 200, `"worker":"v2"`},
		{"GET", "/releases", nil, 200, `"version":"v2"`},
		{"GET", "/rollouts", nil, 200, "[]"},
		{"POST", "/rollouts", `{"version":"v9"}`, 404, "v9"},
		{"POST", "/rollouts", `{"version":"v2","label":[]}`, 400, "unknown field"},
		{"POST", "/rollouts", `{"version":"v2","canary":1}`, 200, `"state":"canary"`},
		{"GET", "/rollouts/1", nil, 200, `"matching":1`},
		{"GET", "/rollouts/x", nil, 404, "no such"},
		{"GET", "/agents", nil, 200, `"upgrade":{"rollout":1,"version":"v2","state":"waiting"}`},
		{"POST", "/rollouts/1/pause", nil, 200, `"state":"paused"`},
		{"POST", "/rollouts/1/pause", nil, 400, "nothing to pause"},
		{"POST", "/rollouts/1/resume", nil, 200, `"state":"canary"`},
		{"POST", "/rollouts/1/resume", `{}`, 200, `"state":"rolling"`},
		{"DELETE", "/releases/v2", nil, 400, "is needed"},
		{"POST", "/rollouts/1/rollback", `{}`, 200, `"state":"rolled-back"`},
		{"POST", "/rollouts/1/rollback", `{}`, 400, "already"},
		{"DELETE", "/releases/v2", nil, 200, ""},
		{"DELETE", "/releases/v2", nil, 404, ""},
	} {
		if r := w.call(c.method, "/api/v1"+c.path, good, c.body); r.code != c.code || !strings.Contains(string(r.body), c.contains) {
			t.Errorf("%s %s: %d %s, want %d with %q", c.method, c.path, r.code, r.body, c.code, c.contains)
		}
	}
	for _, path := range []string{"/releases", "/rollouts", "/rollouts/1", "/objects/" + digest} {
		if r := w.call("GET", "/api/v1"+path, http.Header{}, nil); r.code != 401 {
			t.Errorf("%s without a token: %d", path, r.code)
		}
	}
}

func TestAControllerInMemoryKeepsNoReleases(t *testing.T) {
	w := serve(t, Options{})
	if _, err := w.server.Upload(fmt.Sprintf("%064d", 0), strings.NewReader("x")); err == nil {
		t.Error("it took a file")
	}
	if _, err := w.server.AddRelease(NewRelease{Version: "v1"}); err == nil {
		t.Error("it took a release")
	}
}
