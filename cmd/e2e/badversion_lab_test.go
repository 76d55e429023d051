//go:build lab && linux

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
	"github.com/devops-agent/devops-agent/service"
)

// backLimit is the bound: so soon the old version works again.
const backLimit = 90 * time.Second

// badVersion is one way for a new version to be bad.
type badVersion struct {
	name    string
	ours    bool   // our agent, broken; else a small program that is none
	refused bool   // found out before anything is replaced
	last    string // what the history says of its last life; "" for nothing in particular
	make    func(dir, program string) error
}

// appended makes a bad version from one of the programs, which looks at its own end for what to do.
func appended(how string) func(dir, program string) error {
	return func(dir, program string) error {
		data, err := os.ReadFile(program)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "devopsAgent"), append(data, []byte(fmt.Sprintf("%40s", "\nbroken:"+how))...), 0o755) //nolint:gosec // a program
	}
}

func badVersions(root string) []badVersion {
	return []badVersion{
		{name: "exit0", last: "exited with 0", make: appended("exit0")},
		{name: "exit1", ours: true, last: "exited with 1", make: appended("exit1")},
		{name: "hang", ours: true, make: appended("hang")},
		{name: "silent", make: appended("silent")},
		{name: "crash", ours: true, last: "exited with 2", make: appended("crash")},
		{name: "memory", ours: true, make: appended("memory")},
		{name: "config", ours: true, last: "exited with 2", make: appended("config")},
		{name: "library", make: func(dir, _ string) error {
			out, err := exec.Command("cc", "-Wl,--dynamic-linker=/opt/lab/ld.so", "-o", filepath.Join(dir, "devopsAgent"),
				filepath.Join(root, "cmd", "e2e", "testdata", "badversion", "dynamic.c")).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		}},
		{name: "arm64", refused: true, make: func(dir, _ string) error {
			build := exec.Command("go", "build", "-trimpath", "-ldflags", versionFlag+"v9.9.7", "-o", filepath.Join(dir, "devopsAgent"), "./cmd/agent")
			build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0", "GOARCH=arm64")
			if out, err := build.CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		}},
		{name: "truncated", ours: true, refused: true, make: func(dir, program string) error {
			data, err := os.ReadFile(program)
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, "devopsAgent"), data[:len(data)*6/10], 0o755) //nolint:gosec // a program
		}},
	}
}

// broken builds the two programs that bad versions are made of.
func broken(t *testing.T, root string) (small, ours string) {
	t.Helper()
	dir := t.TempDir()
	small, ours = filepath.Join(dir, "small"), filepath.Join(dir, "real")
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {
		filepath.Join(root, "cmd", "agent", "broken.go"): filepath.Join(root, "cmd", "e2e", "testdata", "badversion", "overlay.go.txt"),
	}})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"-o", small, "./cmd/e2e/testdata/badversion"},
		{"-overlay", filepath.Join(dir, "overlay.json"), "-ldflags", versionFlag + "v9.0.0", "-o", ours, "./cmd/agent"},
	} {
		build := exec.Command("go", append([]string{"build", "-trimpath"}, args...)...)
		build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build %v: %v\n%s", args, err, out)
		}
	}
	return small, ours
}

// instance is one of several agents in a box, each with a server of its own.
type instance struct {
	*machine
	name string
}

// instances lays the old edition out as a package's and starts an agent per name.
func instances(t *testing.T, old edition, toml string, names ...string) map[string]*instance {
	t.Helper()
	m := packaged(t, "bad", "")
	for name := range old.sums {
		m.box.Copy(filepath.Join(old.dir, name), service.Packaged("linux").Vendor+"/"+name)
	}
	all := map[string]*instance{}
	for _, name := range names {
		l := service.Instance(name)
		one := *m
		one.home, one.unit = l.Home, l.Name
		in := &instance{machine: &one, name: name}
		m.box.Shell("install -d -o devops-agent -g devops-agent -m 750 " + l.Home)
		in.rec = lab.NewRecorder(t, lab.RecorderOptions{})
		in.identity(l.Home, in.rec.URL, "ag"+name)
		m.box.Write(l.Config, toml, 0o644)
		all[name] = in
	}
	for _, in := range all {
		m.ctl("start", "--no-block", in.unit)
	}
	for _, in := range all {
		in.polled(0, 60*time.Second)
	}
	return all
}

// upgrade runs the CLI inside, as the agent's account.
func (in *instance) upgrade(dir string, args ...string) (string, error) {
	return in.box.As(in.account, "", append([]string{in.home + "/devopsAgent", "upgrade", "--from", dir, "--home", in.home}, args...)...)
}

// runs says which version the instance's home has live, by digest, and that its agent runs from there.
func (in *instance) runs(sum string) bool {
	live, err := digest(in.box.Path(in.home + "/devopsAgent"))
	return err == nil && live == sum && in.open() == ""
}

// open is the state of the open upgrade.
func (in *instance) open() string {
	names, _ := filepath.Glob(in.box.Path(in.home + "/upgrade/open-*"))
	if len(names) == 0 {
		return ""
	}
	return filepath.Base(names[0])
}

// attempts is the history, the newest first.
func (in *instance) attempts() []string {
	names, _ := filepath.Glob(in.box.Path(in.home + "/upgrade/*/attempt.json"))
	slices.Sort(names)
	slices.Reverse(names)
	for i, name := range names {
		data, _ := os.ReadFile(name)
		names[i] = string(data)
	}
	return names
}

// attemptOf decodes what the tests want to know of one.
func attemptOf(text string) (a struct {
	State, Reason, Stderr string
	LastExit              string `json:"last_exit"`
	ExitCode              *int   `json:"exit_code"`
}) {
	_ = json.Unmarshal([]byte(text), &a)
	return a
}

// TestSystemdBadVersions: each is taken back by itself within 90 s, or refused before anything is replaced, and not taken again. All at
// once, each in an instance of its own; and one version that is good, while its server is in trouble.
func TestSystemdBadVersions(t *testing.T) {
	t.Parallel()
	root, err := lab.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	releases := bothReleases(t)
	small, ours := broken(t, root)
	var names []string
	var bad []badVersion
	dirs := t.TempDir()
	for _, b := range badVersions(root) {
		if _, err := exec.LookPath("cc"); err != nil && b.name == "library" {
			t.Log("skipped: the version whose library is missing (needs a C compiler)")
			continue
		}
		dir, program := filepath.Join(dirs, b.name), small
		if b.ours {
			program = ours
		}
		if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // others read it
			t.Fatal(err)
		}
		if err := b.make(dir, program); err != nil {
			t.Fatalf("make version %q: %v", b.name, err)
		}
		names, bad = append(names, b.name), append(bad, b)
	}
	all := instances(t, releases[0], "[upgrade]\nsettle_after = \"30s\"\n", append(names, "good")...)
	box := all["good"].box
	for _, b := range bad {
		box.Copy(filepath.Join(dirs, b.name, "devopsAgent"), "/opt/"+b.name+"/devopsAgent")
	}
	for name := range releases[1].sums {
		box.Copy(filepath.Join(releases[1].dir, name), "/opt/good/"+name)
	}
	box.Shell("install -D $(readlink -f /lib64/ld-linux-x86-64.so.2) /opt/lab/ld.so")

	var wait sync.WaitGroup
	for _, b := range bad {
		wait.Go(func() { all[b.name].goesBack(b, releases[0]) })
	}
	wait.Go(func() { all["good"].stays(releases[1]) })
	wait.Wait()
}

// goesBack upgrades to a bad version and measures until the old one works again.
func (in *instance) goesBack(b badVersion, old edition) {
	begun := time.Now()
	if b.refused {
		said, err := in.upgrade("/opt/"+b.name, "--wait")
		if err == nil {
			in.Errorf("%s: not refused: %s", b.name, said)
		}
		number(in.T, "%-10s refused after %.1f s: %s", b.name, time.Since(begun).Seconds(), lastLine(said, err))
		if !in.runs(old.sums["devopsAgent"]) {
			in.Errorf("%s: the old version does not run", b.name)
		}
		return
	}
	said, err := in.upgrade("/opt/" + b.name)
	if err != nil {
		in.Errorf("%s: upgrade: %s %v", b.name, said, err)
		return
	}
	if !lab.Eventually(60*time.Second, func() bool { return strings.HasPrefix(in.open(), "open-") }) {
		in.Errorf("%s: no upgrade is begun within 60 s of %q; history %v", b.name, said, in.attempts())
		return
	}
	if b.name == "library" {
		if err := os.Remove(in.box.Path("/opt/lab/ld.so")); err != nil {
			in.Error(err)
		}
	}
	trial := time.Now()
	back := lab.Eventually(3*time.Minute, func() bool {
		list := in.attempts()
		return len(list) > 0 && attemptOf(list[0]).State == "rolled-back" && in.runs(old.sums["devopsAgent"])
	})
	if !back {
		in.Errorf("%s: not taken back: upgrade %q, history %v", b.name, in.open(), in.attempts())
		return
	}
	if _, ok := in.rec.WaitFor(60*time.Second, in.rec.Mark(), lab.Ask); !ok {
		in.Errorf("%s: the old version does not work", b.name)
		return
	}
	starts := in.rec.Of(lab.Startup) // the last is that of the old version
	took := starts[len(starts)-1].At.Sub(trial)
	a := attemptOf(in.attempts()[0])
	number(in.T, "%-10s taken back, and the old works after %.1f s: %s; last: %q, %q", b.name, took.Seconds(), a.Reason, a.LastExit, a.Stderr[:min(len(a.Stderr), 80)])
	if b.last != "" && a.LastExit != b.last || strings.HasPrefix(b.last, "exited") != (a.ExitCode != nil) {
		in.Errorf("%s: last end %q, code %v, want %q", b.name, a.LastExit, a.ExitCode, b.last)
	}
	if took > backLimit {
		in.Errorf("%s: the old version works after %v, want at most %v", b.name, took, backLimit)
	}
	again, err := in.upgrade("/opt/"+b.name, "--wait")
	if err == nil || b.name != "library" && !strings.Contains(again+err.Error(), "taken back") { // that one does not even tell a version any more
		in.Errorf("%s, offered again: %s %v", b.name, again, err)
	}
	if !in.runs(old.sums["devopsAgent"]) {
		in.Errorf("%s: the old version does not run after a second offer", b.name)
	}
}

func lastLine(said string, err error) string {
	if err != nil {
		said += err.Error()
	}
	lines := strings.Split(strings.TrimSpace(said), "\n")
	return strings.Join(lines[max(0, len(lines)-2):], " | ")
}

// stays upgrades to a good version whose server fails from its first second on, for LAB_TROUBLE.
func (in *instance) stays(target edition) {
	trouble := time.Duration(envInt(in.T, "LAB_TROUBLE_MINUTES", 2)) * time.Minute
	said, err := in.upgrade("/opt/good")
	if err != nil {
		in.Errorf("good: upgrade: %s %v", said, err)
		return
	}
	if !lab.Eventually(60*time.Second, func() bool { return strings.HasPrefix(in.open(), "open-trial") }) {
		in.Errorf("good: no trial: %q", said)
		return
	}
	failing := func(lab.Request) *lab.Answer { return &lab.Answer{Code: 500} }
	for _, e := range []lab.Endpoint{lab.Startup, lab.Ask, lab.Status, lab.Heartbeat, lab.CheckUpgrade} {
		in.rec.On(e, failing)
	}
	mark := in.rec.Mark()
	<-time.After(trouble)
	if live, err := digest(in.box.Path(in.home + "/devopsAgent")); err != nil || live != target.sums["devopsAgent"] {
		in.Errorf("good: taken back while its server fails; history %v", in.attempts())
	}
	state := in.open()
	for _, e := range []lab.Endpoint{lab.Startup, lab.Ask, lab.Status, lab.Heartbeat, lab.CheckUpgrade} {
		in.rec.On(e, nil)
	}
	begun, asked := time.Now(), in.rec.Mark()-mark
	if !lab.Eventually(2*time.Minute, func() bool { return in.runs(target.sums["devopsAgent"]) }) {
		in.Errorf("good: not settled after the trouble: %q, history %v", in.open(), in.attempts())
		return
	}
	number(in.T, "good       server says 500 for %v (%d requests): %s all the time, settled %.0f s after it", trouble, asked, strings.TrimPrefix(state, "open-"), time.Since(begun).Seconds())
}

// TestSystemdUpgradeGap: ten upgrades to and fro; acceptance 2 of the issue. It measures and runs alone.
func TestSystemdUpgradeGap(t *testing.T) {
	releases := bothReleases(t)
	in := instances(t, releases[0], "[upgrade]\nsettle_after = \"0s\"\n", "gap")["gap"]
	for i, r := range releases {
		for name := range r.sums {
			in.box.Copy(filepath.Join(r.dir, name), fmt.Sprintf("/opt/%d/%s", i, name))
		}
	}
	var gaps, silences []time.Duration
	for i := range 10 {
		target := releases[(i+1)%2]
		in.polled(in.rec.Mark(), 60*time.Second) // it has talked, and the upgrade comes between two polls
		mark, old := in.rec.Mark(), in.agent()
		ended := make(chan time.Time, 1)
		go func() {
			for lab.Running(old) {
				<-time.After(time.Millisecond)
			}
			ended <- time.Now()
		}()
		if said, err := in.upgrade(fmt.Sprintf("/opt/%d", (i+1)%2)); err != nil {
			t.Fatalf("upgrade %d: %s %v", i, said, err)
		}
		first, ok := in.rec.WaitFor(60*time.Second, mark, lab.Startup)
		if !ok {
			t.Fatalf("upgrade %d: no new agent; history %v", i, in.attempts())
		}
		gaps = append(gaps, first.At.Sub(<-ended))
		silences = append(silences, first.At.Sub(in.rec.All()[first.N-1].At))
		in.await(60*time.Second, "it settles", func() bool { return in.runs(target.sums["devopsAgent"]) })
	}
	slices.Sort(gaps)
	slices.Sort(silences)
	number(t, "10 upgrades, end of the old agent to the first request of the new: median %d ms, worst %d ms", gaps[5].Milliseconds(), gaps[9].Milliseconds())
	number(t, "10 upgrades, last poll of the old, which may be 5 s before, to the first request of the new: median %d ms, worst %d ms",
		silences[5].Milliseconds(), silences[9].Milliseconds())
	if gaps[5] > time.Second {
		t.Errorf("median %v, want at most 500 ms; a busy machine gets twice that", gaps[5])
	}
	if silences[9] > 7*time.Second {
		t.Errorf("silent for %v: more than one poll is missing", silences[9])
	}
}

// TestSystemdUpgradeOffline: an upgrade from a file and the way back, with no server and, once more, with no agent.
func TestSystemdUpgradeOffline(t *testing.T) {
	t.Parallel()
	releases := bothReleases(t)
	in := instances(t, releases[0], "[upgrade]\nsettle_after = \"0s\"\n", "offline")["offline"]
	for name := range releases[1].sums {
		in.box.Copy(filepath.Join(releases[1].dir, name), "/opt/next/"+name)
	}
	in.rec.Stop()
	in.awaitStatus(60*time.Second, "unreachable")
	rollback := func() (string, error) {
		return in.box.As(in.account, "", in.home+"/devopsAgent", "rollback", "--home", in.home)
	}
	for _, running := range []bool{true, false} {
		if !running {
			in.ctl("stop", in.unit)
		}
		for i, verb := range []func() (string, error){func() (string, error) { return in.upgrade("/opt/next") }, rollback} {
			said, err := verb()
			if err != nil {
				t.Fatalf("running %v, verb %d: %s %v", running, i, said, err)
			}
			if !running {
				in.ctl("start", "--no-block", in.unit)
			}
			begun, want := time.Now(), releases[1-i]
			in.await(backLimit, "it settles: "+said, func() bool {
				return in.runs(want.sums["devopsAgent"]) && strings.Contains(strings.Join(in.attempts()[:1], ""), `"settled"`)
			})
			number(t, "agent runs %v: %s after %.1f s without a server", running, want.version, time.Since(begun).Seconds())
			if !running {
				in.ctl("stop", in.unit)
			}
		}
	}
}
