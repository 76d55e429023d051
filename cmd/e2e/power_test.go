//go:build lab && linux

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// outlet is a machine whose agent is upgraded to and fro until somebody cuts the power.
type outlet struct {
	*testing.T
	vm       *lab.VM
	rec      *lab.Recorder
	releases [2]edition
	rng      *rand.Rand
	keeper   string
	stages   *stages
	took     time.Duration // an upgrade, about

	rolledBack bool // the upgrader stays what it is then: it is no part of what "rollback" brings back
}

// homeInside is where the agent is in the machine.
const homeInside = "/srv/dev/agent"

// bootScript is /payload/boot: it lays the first edition out where there is none, and starts the keeper as the machine's own
// scheduler would. Who cuts the power looks for the stages of the upgrade on the console; they are those of upgraded.stage, and
// what lay there before the upgrade, which begins with a touch of /tmp/begun, is none.
const bootScript = `#!/bin/sh
home=` + homeInside + `
if [ ! -e /srv/dev/laid ]; then
	mkdir -p $home/upgrade
	chmod 700 $home/upgrade
	cp -a /payload/home/. $home/
	chown -R 1000:1000 /srv/dev
	touch /srv/dev/laid
	sync
fi
touch /tmp/begun
stage() {
	for f in $home/upgrade/open-*; do
		[ -e "$f" ] || continue
		now="jdk ${f##*/open-}"
		while read -r line || [ "$line" ]; do
			case $line in *devopsAgent*) now=${f##*/open-} ;; esac
		done 2>/dev/null <"$f"
		return
	done
	for f in $home/upgrade/[0-9]*; do
		if [ -e "$f" ] && [ ! -e "$f/attempt.json" ]; then now=stage && return; fi
	done
	for f in $home/jdk_*; do
		if [ "$f" -nt /tmp/begun ]; then now=unpack && return; fi
	done
	for f in $home/tmp/incoming/*; do
		if [ "$f" -nt /tmp/begun ]; then now=fetch && return; fi
	done
	for f in $home/tmp/offered-*; do
		if [ "$f" -nt /tmp/begun ]; then now=collect && return; fi
	done
	now=
}
while true; do
	stage
	[ "$now" = "$last" ] || echo "lab: stage $now"
	last=$now
	usleep 10000
done &
case $(cat /payload/keeper) in
devopsDaemon)
	su dev -c "cd $home && ./upgrader keep --home $home" >/tmp/keeper 2>&1 &
	;;
*)
	while true; do
		su dev -c "/payload/v1.0.0/upgrader start --home $home"
		usleep 100000
	done >/tmp/keeper 2>&1 &
	;;
esac
`

// newOutlet makes a machine with the first edition in it.
func newOutlet(t *testing.T, disk, keeper string, seed uint64) *outlet {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("needs root on Debian")
	}
	o := &outlet{T: t, rec: lab.NewRecorder(t, lab.RecorderOptions{}), releases: bothReleases(t), keeper: keeper,
		rng: rand.New(rand.NewPCG(seed, 8)), stages: newStages(), took: 15 * time.Second} //nolint:gosec // a test repeats itself
	payload := t.TempDir()
	home := filepath.Join(payload, "home")
	if err := os.MkdirAll(home, 0o755); err != nil { //nolint:gosec // an install tree
		t.Fatal(err)
	}
	gateway, err := url.Parse(o.rec.URL)
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		"boot": bootScript, "keeper": keeper,
		"home/agent.toml": "[upgrade]\nsettle_after = \"0s\"\n",
		"home/.agent.properties": "devops.project.id=lab\ndevops.agent.id=agpower\ndevops.agent.secret.key=s3cr3t\nlandun.gateway=http://10.0.2.2:" + gateway.Port() +
			"\ndevops.parallel.task.count=4\nlandun.env=PROD\ndevops.language=en_US\ndevops.agent.collectorOn=false\ndevops.agent.detect.shell=false\n",
	} {
		if err := os.WriteFile(filepath.Join(payload, path), []byte(text), 0o755); err != nil { //nolint:gosec // boot is a program
			t.Fatal(err)
		}
	}
	if err := o.releases[0].lay(home); err != nil {
		t.Fatal(err)
	}
	for _, r := range o.releases {
		if out, err := exec.Command("cp", "-a", r.dir, filepath.Join(payload, r.version)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	o.vm = lab.NewVM(t, lab.VMOptions{Name: "power", Disk: disk, Payload: payload})
	t.Cleanup(func() {
		if t.Failed() {
			o.tell()
		}
	})
	return o
}

// tell logs what a human would look at first.
func (o *outlet) tell() {
	for _, command := range []string{
		"find " + homeInside + " -maxdepth 4 | grep -v /jdk/ | xargs ls -ld", "tail -n 40 " + homeInside + "/logs/devopsAgent.log", "tail -n 20 " + homeInside + "/logs/devopsUpgrader.log",
		"tail -n 20 " + homeInside + "/logs/devopsDaemon.log", "cat /tmp/keeper | tail -n 20", "cat " + homeInside + "/upgrade/*/attempt.json", "ps", "dmesg | tail -n 5",
	} {
		out, err := o.vm.Exec(command)
		o.Logf("%s: %s %v", command, out, err)
	}
	o.Logf("console: %s", o.vm.Console())
}

// sh runs a line inside.
func (o *outlet) sh(format string, args ...any) string {
	o.Helper()
	command := fmt.Sprintf(format, args...)
	out, err := o.vm.Exec(command)
	if err != nil {
		o.Fatalf("%s: %v", command, err)
	}
	return strings.TrimSpace(out)
}

// up waits until the agent polls, nothing is under way, and checks that there is one complete version. It returns that.
func (o *outlet) up(mark int) edition {
	o.Helper()
	if _, ok := o.rec.WaitFor(90*time.Second, mark, lab.Ask); !ok {
		o.Fatal("no poll within 90 s of the boot")
	}
	var why string
	if !lab.Eventually(100*time.Second, func() bool {
		out, err := o.vm.Exec("cd " + homeInside + "; ls upgrade; ls -l /proc/[0-9]*/exe | sed 's/.*-> //'")
		why = out
		return err == nil && !strings.Contains(out, "open-") && strings.Count(out, homeInside+"/devopsAgent\n") == 1 &&
			!strings.Contains(out, "upgrader") && !strings.Contains(out, "(deleted)")
	}) {
		o.Fatalf("not calm: %s", why)
	}
	out := o.sh("cd %s; sha256sum devopsAgent devopsDaemon upgrader; ./devopsAgent version; jdk/bin/java -version; cat jdk/release jdk/lib/* | md5sum", homeInside)
	at := slices.IndexFunc(o.releases[:], func(r edition) bool { return strings.Contains(out, r.sums["devopsAgent"]) })
	if at < 0 {
		o.Fatalf("no edition: %s", out)
	}
	r := o.releases[at]
	for name, sum := range r.sums {
		if !strings.Contains(out, sum) && (name != "upgrader" || !o.rolledBack) {
			o.Errorf("the agent is of %s, and %s is not: %s", r.version, name, out)
		}
	}
	if !strings.Contains(out, "\n"+r.version) {
		o.Errorf("version: %s", out)
	}
	whole := slices.ContainsFunc(o.releases[:], func(r edition) bool { return strings.Contains(out, r.java+")") && strings.Contains(out, r.treeSum()) })
	if !whole {
		o.Errorf("the JDK is not whole: %s", out)
	}
	return r
}

// strays lists what an upgrade has left that nobody needs.
func (o *outlet) strays() string {
	out, _ := o.vm.Exec("cd " + homeInside + "; ls -d *.old *.new jdk_* tmp/*.part .devops-* upgrade/open-* upgrade/damaged* upgrade/*/new/* 2>/dev/null; n=$(ls -d upgrade/*/old/devopsAgent 2>/dev/null | wc -l); [ $n -le 2 ] || ls -d upgrade/*/old")
	return strings.TrimSpace(out)
}

// upgradeTo is the line that upgrades to another edition.
func upgradeTo(target edition) string {
	return fmt.Sprintf("touch -d @$(($(date +%%s) - 1)) /tmp/begun; su dev -c '/payload/%s/devopsAgent upgrade --from /payload/%[1]s --force --wait --home %s'", target.version, homeInside)
}

// whole upgrades while the power stays, and measures that.
func (o *outlet) whole(now edition) edition {
	o.Helper()
	begun, target := time.Now(), o.other(now)
	o.during(func() { o.sh("%s", upgradeTo(target)) }, func(<-chan struct{}) {})
	o.took = time.Since(begun)
	if now = o.up(o.rec.Mark()); now.version != target.version {
		o.Fatalf("%s runs after an upgrade to %s", now.version, target.version)
	}
	return now
}

const year = 365 * 24 * time.Hour

// leap upgrades, and sets the clock forward or back in the middle: the server is silent from the record on until that is done, so
// that the trial is not over before.
func (o *outlet) leap(now edition, by time.Duration) edition {
	o.Helper()
	target, leapt := o.other(now), false
	// commands are done one after the other: this one sets the clock beside the upgrade
	line := fmt.Sprintf("(while [ ! -e %s/upgrade/open-trial-1 ]; do usleep 20000; done; date -s @$(($(date +%%s) + %d)); echo 'lab: clock set' >/dev/console) & %s",
		homeInside, int(by.Seconds()), upgradeTo(target))
	o.during(func() { o.sh("%s", line) }, func(over <-chan struct{}) {
		if o.stages.await(func(stage string) bool { return stage == "ready" }, over) {
			o.quiet(true)
		}
		before := strings.Count(o.vm.Console(), "lab: clock set")
		leapt = lab.Eventually(60*time.Second, func() bool { return strings.Count(o.vm.Console(), "lab: clock set") > before })
		o.quiet(false)
	})
	if !leapt {
		o.Fatalf("the clock was not set by %v in the upgrade", by)
	}
	if now = o.up(o.rec.Mark()); now.version != target.version {
		o.Fatalf("%s runs after an upgrade to %s in which the clock was set by %v", now.version, target.version, by)
	}
	return now
}

// leaps sets the clock back a year in one upgrade, rolls that back in the past, and returns in another one.
func (o *outlet) leaps(first edition) {
	o.Helper()
	begun, now := time.Now(), o.leap(first, -year)
	o.rolledBack = true
	said, err := o.vm.Exec(fmt.Sprintf("su dev -c '%s/devopsAgent rollback --wait --home %[1]s'", homeInside))
	if err != nil && !strings.Contains(err.Error(), "no answer") { // a machine without virtualisation, on a busy one
		o.Fatalf("rollback a year ago: %s %v", said, err)
	}
	if !lab.Eventually(100*time.Second, func() bool { now = o.up(o.rec.Mark()); return now.version == first.version }) {
		o.Fatalf("%s runs after a rollback to %s, a year ago: %s %v", now.version, first.version, said, err)
	}
	o.rolledBack = false
	o.leap(now, year)
	states := o.sh("grep -h '\"state\"' %s/upgrade/*/attempt.json | sort | uniq -c", homeInside)
	number(o.T, "clock set back a year in an upgrade, a rollback then, clock set right in another upgrade, %d s; attempts: %s", int(time.Since(begun).Seconds()), strings.Join(strings.Fields(states), " "))
	if strings.Contains(states, "rolled-back") {
		o.Errorf("a version was taken back: %s", states)
	}
}

// other is the edition that does not run.
func (o *outlet) other(now edition) edition {
	if now.version == o.releases[0].version {
		return o.releases[1]
	}
	return o.releases[0]
}

// during does something while o.stages follows what the console tells of it, and act acts; over is closed when it has ended.
func (o *outlet) during(do func(), act func(over <-chan struct{})) {
	ended, followed := make(chan struct{}), make(chan struct{})
	before := len(o.vm.Console())
	o.stages.injure(false)
	o.stages.enter("")
	go func() {
		defer close(followed)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			if stage, ok := lastStage(o.vm.Console()[before:]); ok {
				o.stages.enter(stage)
			}
			select {
			case <-ended:
				return
			case <-tick.C:
			}
		}
	}()
	go func() {
		defer close(ended)
		do()
	}()
	act(ended)
	<-ended
	<-followed
}

// lastStage is the one that a console has told of last.
func lastStage(console string) (stage string, ok bool) {
	const tells = "lab: stage "
	at := strings.LastIndex(console, tells)
	if at < 0 {
		return "", false
	}
	stage, _, ok = strings.Cut(console[at+len(tells):], "\n")
	return strings.TrimSpace(stage), ok
}

// spoiling is what runs beside an upgrade that is to be taken back: it kills the new agent whenever it runs.
const spoiling = "(while [ ! -e " + homeInside + "/upgrade/open-undo ]; do set -- " + homeInside + "/upgrade/open-trial-[123]; if [ -e $1 ]; then for p in $(pidof devopsAgent); do " +
	"[ \"$(readlink /proc/$p/exe)\" != " + homeInside + "/devopsAgent ] || kill -9 $p; done; fi; usleep 20000; done) & "

// quiet has the server hold its answers, or give them again.
func (o *outlet) quiet(quiet bool) {
	for _, e := range []lab.Endpoint{lab.Startup, lab.Ask, lab.Status, lab.Heartbeat} {
		if o.rec.On(e, nil); quiet {
			o.rec.Always(e, lab.Answer{Hang: true})
		}
	}
}

// cut upgrades until the power goes, at a moment of its own choice, and returns at what stage that was.
func (o *outlet) cut(now edition) (stage string, what lab.Cut) {
	o.Helper()
	list := aims(true)
	aim, share, line := list[o.rng.IntN(len(list))], o.rng.Float64(), upgradeTo(o.other(now))
	if aim == "undo" {
		line = spoiling + line
	}
	upgrade := func() {
		// the machine may be gone before it answers
		if _, err := o.vm.Exec(line); err != nil && aim != "undo" && !strings.Contains(err.Error(), "machine") { // it ended before the power did
			o.Errorf("the upgrade: %v", err)
		}
	}
	o.during(upgrade, func(over <-chan struct{}) {
		wait := o.took
		if aim != "" {
			if aim == "undo" && o.stages.await(func(stage string) bool { return stage == "ready" }, over) {
				o.quiet(true) // else it settles before it is killed often enough
			}
			o.stages.await(func(stage string) bool { return stage == aim }, over)
			wait = o.stages.length(aim) * 7 / 10
		}
		select {
		case <-time.After(time.Duration(share * float64(wait))):
		case <-over:
		}
		what = o.vm.Cut(o.rng.Uint64() | 1)
	})
	o.quiet(false)
	stage, _ = lastStage(o.vm.Console())
	return stage, what
}

// open reports whether an upgrade is written down at a stage, and has not ended.
func open(stage string) bool {
	return !slices.Contains([]string{"", "collect", "fetch", "unpack", "stage"}, stage)
}

// TestPowerClock: a clock that is set back a year in the middle of an upgrade, and right again in a later one, does not matter.
func TestPowerClock(t *testing.T) {
	t.Parallel()
	o := newOutlet(t, "ext4", "devopsDaemon", 1)
	o.leaps(o.up(0))
}

// TestPower: a power cut at any moment of an upgrade, and a disk that forgets what was not flushed, leave one complete version that
// comes up by itself.
func TestPower(t *testing.T) {
	cuts, seed, stop := envInt(t, "POWER_CUTS", 5), labSeed(t), enough(t, 4*time.Minute)
	for n, disk := range []string{"ext4", "xfs"} {
		t.Run(disk, func(t *testing.T) {
			t.Parallel()
			begun := time.Now()
			o := newOutlet(t, disk, []string{"devopsDaemon", "upgrader start"}[n], seed+uint64(n))
			now := o.up(0)
			now = o.whole(now)
			stages, versions, lost, inside, done := map[string]int{}, map[string]int{}, 0, 0, 0
			sums := func() string {
				return fmt.Sprintf("%d power cuts, keeper %s, %d s; %d in an upgrade that was written down and had not ended; at: %s; then ran: %s; %d pieces of 4 KiB lost",
					done, o.keeper, int(time.Since(begun).Seconds()), inside, listed(stages), listed(versions), lost)
			}
			for i := range (cuts + 1 - n) / 2 {
				if stop.Err() != nil {
					t.Errorf("stopped after %d of %d cuts: %v", i, (cuts+1-n)/2, context.Cause(stop))
					break
				}
				stage, what := o.cut(now)
				stages[stage]++
				if lost += what.Lost; open(stage) {
					inside++
				}
				if err := o.vm.Check(); err != nil {
					t.Fatalf("cut %d at %q: the file system: %v", i, stage, err)
				}
				mark := o.rec.Mark()
				o.vm.Start()
				now = o.up(mark)
				versions[now.version]++
				t.Logf("cut %d at %q: %+v; %s runs", i, stage, what, now.version)
				if done++; done%5 == 0 {
					progress(disk + ": " + sums())
				}
			}
			mark := o.rec.Mark() // once more in good order, so that what was in use is swept
			o.sh("sync")
			o.vm.Cut(0)
			o.vm.Start()
			o.up(mark)
			var left string
			if !lab.Eventually(30*time.Second, func() bool { left = o.strays(); return left == "" }) {
				t.Errorf("left behind: %s", left)
			}
			number(t, "%s", sums())
			if done >= 10 && inside*2 < done {
				t.Errorf("only %d of %d cuts were in an upgrade that was written down and had not ended: the aim is bad", inside, done)
			}
		})
	}
}
