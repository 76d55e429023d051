//go:build lab && linux

package e2e

import (
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
	took     time.Duration // an upgrade, about
}

// homeInside is where the agent is in the machine.
const homeInside = "/srv/dev/agent"

// bootScript is /payload/boot: it lays the first edition out where there is none, and starts the keeper as the machine's own
// scheduler would. Who cuts the power looks for the states of the upgrade on the console.
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
ls $home/upgrade | grep open- | sed 's/^/lab: found /'
while true; do
	set -- $home/upgrade/open-*
	[ "$1" = "$last" ] || echo "lab: state ${1##*/}"
	last=$1
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
	o := &outlet{T: t, rec: lab.NewRecorder(t, lab.RecorderOptions{}), releases: bothReleases(t), keeper: keeper,
		rng: rand.New(rand.NewPCG(seed, 8)), took: 15 * time.Second} //nolint:gosec // a test repeats itself
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
		if !strings.Contains(out, sum) {
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
	return fmt.Sprintf("su dev -c '/payload/%s/devopsAgent upgrade --from /payload/%[1]s --force --wait --home %s'", target.version, homeInside)
}

// whole upgrades while the power stays, and measures that.
func (o *outlet) whole(now edition) edition {
	o.Helper()
	begun, target := time.Now(), o.other(now)
	o.sh("%s", upgradeTo(target))
	o.took = time.Since(begun)
	if now = o.up(o.rec.Mark()); now.version != target.version {
		o.Fatalf("%s runs after an upgrade to %s", now.version, target.version)
	}
	return now
}

// other is the edition that does not run.
func (o *outlet) other(now edition) edition {
	if now.version == o.releases[0].version {
		return o.releases[1]
	}
	return o.releases[0]
}

// cut upgrades until the power goes, at a moment of its own choice, and returns in what state that was.
func (o *outlet) cut(now edition) (state string, what lab.Cut) {
	o.Helper()
	target := o.other(now)
	before := len(o.vm.Console())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		begun := time.Now()
		// the machine may be gone before it answers
		_, err := o.vm.Exec(upgradeTo(target))
		switch {
		case err == nil:
			o.took = time.Since(begun)
		case !strings.Contains(err.Error(), "machine"): // it ended before the power did
			o.Errorf("the upgrade: %v", err)
		}
	}()
	if o.rng.IntN(3) == 0 {
		<-time.After(time.Duration(o.rng.Int64N(int64(o.took))))
	} else {
		want := []string{"open-ready", "open-trial-0", "open-trial-1", "open-settle"}[o.rng.IntN(4)]
		_ = lab.Eventually(3*o.took, func() bool { return strings.Contains(o.vm.Console()[before:], want) })
		if o.rng.IntN(3) > 0 { // else at once
			<-time.After(time.Duration(o.rng.Int64N(int64(o.took / 20))))
		}
	}
	what = o.vm.Cut(o.rng.Uint64() | 1)
	<-ended
	said := strings.Fields(o.vm.Console()[before:])
	for _, word := range said {
		if strings.HasPrefix(word, "open-") {
			state = strings.TrimSuffix(word, "*") // "open-*" when none is there any more
		}
	}
	return state, what
}

// TestPower: a power cut at any moment of an upgrade, and a disk that forgets what was not flushed, leave one complete version that
// comes up by itself.
func TestPower(t *testing.T) {
	cuts, seed := envInt(t, "POWER_CUTS", 5), labSeed(t)
	if os.Getuid() != 0 {
		t.Fatal("needs root on Debian")
	}
	for n, disk := range []string{"ext4", "xfs"} {
		t.Run(disk, func(t *testing.T) {
			t.Parallel()
			begun := time.Now()
			o := newOutlet(t, disk, []string{"devopsDaemon", "upgrader start"}[n], seed+uint64(n))
			now := o.up(0)
			now = o.whole(now)
			states, versions, lost := map[string]int{}, map[string]int{}, 0
			for i := range (cuts + 1 - n) / 2 {
				state, what := o.cut(now)
				states[strings.TrimPrefix(state, "open-")]++
				lost += what.Lost
				if err := o.vm.Check(); err != nil {
					t.Fatalf("cut %d: the file system: %v", i, err)
				}
				mark := o.rec.Mark()
				o.vm.Start()
				now = o.up(mark)
				versions[now.version]++
				t.Logf("cut %d after state %q: %+v; %s runs", i, state, what, now.version)
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
			number(t, "%d power cuts, keeper %s, %d s; last state seen: %s; then ran: %s; %d pieces of 4 KiB lost", (cuts+1-n)/2, o.keeper,
				int(time.Since(begun).Seconds()), listed(states), listed(versions), lost)
		})
	}
}
