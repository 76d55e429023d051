//go:build lab && linux

package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
	"github.com/devops-agent/devops-agent/service"
)

// packageVersions are those of the packages under test; the last has other defaults in agent.toml.
var packageVersions = []string{"1.0.0", "2.0.0"} //nolint:gochecknoglobals // a table

// packageSet are packages, by kind and version, and programs of a version that is in none.
type packageSet struct {
	files map[string]string // "deb 1.0.0"
	newer string            // directory of v3.0.0's programs, for the server
}

// packages builds the packages once per process of the tests, by the packager itself.
var packages = sync.OnceValues(func() (packageSet, error) { //nolint:gochecknoglobals // built once, like programs
	p := packageSet{files: map[string]string{}}
	top, err := os.MkdirTemp(os.Getenv("E2E_DIR"), "packages")
	if err != nil {
		return p, err
	}
	root, err := lab.ModuleRoot()
	if err != nil {
		return p, err
	}
	run := func(dir, program string, args ...string) error {
		cmd := exec.Command(program, args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %v: %w\n%s", program, args, err, out)
		}
		return nil
	}
	packager := filepath.Join(top, "packager")
	if err := run(root, "go", "build", "-o", packager, "./cmd/packager"); err != nil {
		return p, err
	}
	for i, version := range append(slices.Clone(packageVersions), "3.0.0") {
		bin := filepath.Join(top, version)
		suffix := "_linux"
		if runtime.GOARCH != "amd64" {
			suffix += "_" + runtime.GOARCH
		}
		folders := map[string]string{"devopsAgent": "agent", "devopsWorker": "worker", "upgrader": "upgrader"}
		if i == len(packageVersions) { // what a server hands out
			folders = map[string]string{"devopsAgent": "agent", "devopsDaemon": "daemon", "upgrader": "upgrader"}
		}
		for name, folder := range folders {
			if err := run(root, "go", "build", "-buildvcs=false", "-trimpath", "-ldflags", versionFlag+"v"+version, "-o", filepath.Join(bin, name+suffix), "./cmd/"+folder); err != nil {
				return p, err
			}
		}
		if i == len(packageVersions) {
			p.newer = bin
			break
		}
		tree, err := sourceTree(root, filepath.Join(top, "tree"+version), i)
		if err != nil {
			return p, err
		}
		dist := filepath.Join(top, "dist")
		if err := run(root, packager, "build", "--root", tree, "--bin", bin, "--out", dist, "--only", "deb,rpm", "--arch", runtime.GOARCH,
			"--version", "v"+version, "--commit", "unknown", "--time", fmt.Sprint(1767225600+i)); err != nil {
			return p, err
		}
		p.files["deb "+version] = filepath.Join(dist, fmt.Sprintf("devops-agent_%s_%s.deb", version, runtime.GOARCH))
		arch := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
		p.files["rpm "+version] = filepath.Join(dist, fmt.Sprintf("devops-agent-%s-1.%s.rpm", version, arch))
	}
	return p, nil
})

// sourceTree is what packages take from the source tree; agent.toml of a later one has one line more.
func sourceTree(root, dir string, later int) (string, error) {
	for _, name := range []string{"LICENSE", "CHANGELOG.md", "agent/config/testdata/agent.toml", "go.mod"} {
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return "", err
		}
		if filepath.Base(name) == "agent.toml" {
			data = append(data, strings.Repeat("# a later line\n", later)...)
		}
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil { //nolint:gosec // a source tree
			return "", err
		}
		if err := os.WriteFile(to, data, 0o644); err != nil { //nolint:gosec // a source tree
			return "", err
		}
	}
	return dir, nil
}

// target is a box in which packages are installed.
type target struct {
	*machine
	kind string // deb or rpm
}

const packageDir = "/srv/packages"

// targeted makes a box with both versions of the packages of a kind at hand, and nothing installed.
func targeted(t *testing.T, kind string, o lab.BoxOptions) *target {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("needs root on Debian: boxes are containers")
	}
	p, err := packages()
	if err != nil {
		t.Fatal(err)
	}
	if kind == "rpm" {
		o.Image = "rpm"
	}
	m := &machine{T: t, box: lab.NewBox(t, o), systemctl: []string{"systemctl"}}
	l := service.Packaged("linux")
	m.home, m.account, m.unit = l.Home, l.Account, l.Name
	b := &target{m, kind}
	for _, version := range packageVersions {
		m.box.Copy(p.files[kind+" "+version], b.file(version))
	}
	// the image leaves manuals out, which a package may not miss
	if err := os.Remove(m.box.Path("/etc/dpkg/dpkg.cfg.d/99mmdebstrap")); err != nil {
		t.Fatal(err)
	}
	m.box.Write("/etc/dpkg/dpkg.cfg.d/lab", "force-unsafe-io\n", 0o644)
	t.Cleanup(func() {
		if t.Failed() {
			m.tell()
		}
	})
	return b
}

func (b *target) file(version string) string { return packageDir + "/" + version + "." + b.kind }

// apply has the package manager bring a version, whichever is there.
func (b *target) apply(version string) {
	b.Helper()
	if out, err := b.try(b.file(version)); err != nil {
		b.Fatalf("install %s: %v\n%s", version, err, out)
	}
}

func (b *target) try(file string, options ...string) (string, error) {
	if b.kind == "deb" {
		return b.box.Exec(append(append([]string{"env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "-q", "-o", "Dpkg::Use-Pty=0", "--no-install-recommends",
			"--allow-downgrades", "--reinstall"}, options...), "install", file)...)
	}
	verb := "install"
	if now := b.version(); now != "" {
		switch want := strings.TrimSuffix(filepath.Base(file), ".rpm"); {
		case want < now:
			verb = "downgrade"
		case want == now:
			verb = "reinstall"
		default:
			verb = "upgrade"
		}
	}
	return b.box.Exec("dnf", "-y", "-q", "--disablerepo=*", "--nogpgcheck", verb, file)
}

// version is what the package manager says is installed, "" for none.
func (b *target) version() string {
	ask := []string{"dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", "devops-agent"}
	if b.kind == "rpm" {
		ask = []string{"rpm", "-q", "--qf", "installed %{VERSION}", "devops-agent"}
	}
	out, err := b.box.Exec(ask...)
	version, ok := strings.CutPrefix(strings.TrimSpace(out), "installed ")
	if err != nil || !ok {
		return ""
	}
	return version
}

func (b *target) remove() {
	b.Helper()
	if b.kind == "deb" {
		b.box.Run("apt-get", "-y", "-q", "-o", "Dpkg::Use-Pty=0", "remove", "devops-agent")
		return
	}
	b.box.Run("dnf", "-y", "-q", "--disablerepo=*", "remove", "devops-agent")
}

// verify is what the package manager finds changed.
func (b *target) verify() string {
	b.Helper()
	command := []string{"dpkg", "-V", "devops-agent"}
	if b.kind == "rpm" {
		command = []string{"rpm", "-V", "devops-agent"}
	}
	out, err := b.box.Exec(command...)
	if err != nil {
		out += err.Error()
	}
	return strings.TrimSpace(out)
}

// seen is the service as an operator sees it: "active enabled". It waits while a restart is on its way, which has two such moments:
// the old agent ends ("deactivating"), the new one begins ("activating"); who stays in one of them is shown in it.
func (b *target) seen() string {
	var active string
	lab.Eventually(bootLimit, func() bool {
		active, _ = b.box.Exec("systemctl", "is-active", b.unit)
		return !strings.Contains(active, "activating") // "deactivating" too
	})
	enabled, _ := b.box.Exec("systemctl", "is-enabled", b.unit)
	return strings.TrimSpace(active) + " " + strings.TrimSpace(or3(enabled, "not-found"))
}

func or3(text, otherwise string) string {
	if strings.TrimSpace(text) == "" {
		return otherwise
	}
	return text
}

// running is the version of the program that runs.
func (b *target) running() string {
	pids := b.box.Processes("devopsAgent")
	if len(pids) != 1 {
		return fmt.Sprintf("%d agents", len(pids))
	}
	inner, err := b.box.Exec("sh", "-c", fmt.Sprintf("exec /proc/%d/exe version", lab.InnerPID(pids[0])))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(inner)
}

// become puts the service into one of the states.
func (b *target) become(state string) {
	b.Helper()
	commands := map[string]string{
		"running":  "systemctl unmask $u; systemctl enable $u; systemctl start $u",
		"stopped":  "systemctl unmask $u; systemctl enable $u; systemctl stop $u",
		"disabled": "systemctl unmask $u; systemctl stop $u; systemctl disable $u",
		"masked":   "systemctl unmask $u; systemctl stop $u; systemctl mask $u",
	}
	b.box.Shell("exec 2>&1; u=" + b.unit + "; " + commands[state])
}

// transitions is the table of what packages do to the service, for docs/packages.md.
type transitions struct {
	mu    sync.Mutex
	order []string
	cells map[string]map[string]string
}

func (tr *transitions) note(transition, state, cell string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.cells[transition] == nil {
		tr.order = append(tr.order, transition)
		tr.cells[transition] = map[string]string{}
	}
	tr.cells[transition][state] = cell
}

func (tr *transitions) String() string {
	var out strings.Builder
	out.WriteString("| | " + strings.Join(serviceStates(), " | ") + " |\n|---|" + strings.Repeat("---|", len(serviceStates())) + "\n")
	for _, transition := range tr.order {
		out.WriteString("| " + transition)
		for _, state := range serviceStates() {
			out.WriteString(" | " + or3(tr.cells[transition][state], " "))
		}
		out.WriteString(" |\n")
	}
	return out.String()
}

func serviceStates() []string { return []string{"running", "stopped", "disabled", "masked"} }

// TestPackagesDebTransitions and TestPackagesRpmTransitions: every transition of a package, with the service in every state.
func TestPackagesDebTransitions(t *testing.T) { testTransitions(t, "deb") }
func TestPackagesRpmTransitions(t *testing.T) { testTransitions(t, "rpm") }

func testTransitions(t *testing.T, kind string) {
	t.Parallel()
	table := &transitions{cells: map[string]map[string]string{}}
	t.Cleanup(func() { publish(t, kind, table.String()) })
	for _, state := range serviceStates() {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			b := targeted(t, kind, lab.BoxOptions{Name: "d" + kind + state})
			b.box.Write(packageDir+"/none", "", 0o644)
			before := b.snapshot()
			b.apply("1.0.0")
			if got := b.seen(); got != "active enabled" {
				t.Fatalf("after the installation: %s", got)
			}
			b.recorded() // a server that answers: an agent is ready at once
			b.await(bootLimit, "the first poll", func() bool { return b.rec.Mark() > 0 })
			step := func(name string, do func()) (from, to string) {
				b.become(state)
				from = b.seen()
				do()
				to = b.seen()
				cell := to
				if from != to {
					cell = from + " → " + to
				}
				table.note(name, state, cell)
				return from, to
			}
			same := func(name string, do func()) {
				if from, to := step(name, do); from != to {
					t.Errorf("%s: %s before, %s after", name, from, to)
				}
				if state == "running" {
					b.await(bootLimit, "nobody waits any more", func() bool {
						out, _ := b.box.Exec("systemctl", "is-active", "devops-agent-replace")
						return strings.TrimSpace(out) == "inactive"
					})
				}
			}
			ends := func(name, want string, do func()) {
				if from, to := step(name, do); to != want {
					t.Errorf("%s: %s before, %s after, want %s", name, from, to, want)
				}
			}
			same("upgrade", func() { b.apply("2.0.0") })
			if state == "running" {
				b.await(bootLimit, "the new version runs", func() bool { return b.running() == "v2.0.0" })
			}
			same("reinstallation", func() { b.apply("2.0.0") })
			same("downgrade", func() { b.apply("1.0.0") })
			if kind == "deb" {
				same("upgrade that fails before unpacking", b.failedUpgrade)
				same("removal that fails", b.failedRemoval)
			}
			again := map[string]string{"running": "active enabled", "stopped": "active enabled", "disabled": "inactive disabled", "masked": "inactive masked"}
			if kind == "rpm" { // a removal disables: rpm has no memory of removed packages
				again["disabled"] = "active enabled"
			}
			gone := map[string]string{"masked": "inactive masked"}
			ends("removal", or3(gone[state], map[string]string{"deb": "inactive not-found", "rpm": "inactive not-found"}[kind]), b.remove)
			if b.box.Read(b.home+"/devopsAgent") == "" {
				t.Error("a removal has taken the home away")
			}
			if len(b.box.Processes("devopsAgent")) > 0 {
				t.Error("an agent runs after the removal")
			}
			b.apply("1.0.0")
			table.note("removal and installation", state, b.seen())
			if got := b.seen(); got != again[state] {
				t.Errorf("installed again: %s, want %s", got, again[state])
			}
			if failed := strings.TrimSpace(b.box.Run("systemctl", "--failed", "--no-legend")); failed != "" {
				t.Errorf("failed units: %s", failed)
			}
			if kind == "deb" {
				b.purged(state, table, before)
			}
		})
	}
}

// failedUpgrade unpacks a version whose preinst fails.
func (b *target) failedUpgrade() {
	b.Helper()
	b.box.Shell("cd " + packageDir + "; rm -rf bad; dpkg-deb -R 2.0.0.deb bad; echo 'exit 1' >>bad/DEBIAN/preinst; dpkg-deb -b -z0 bad bad.deb >/dev/null")
	agents := b.box.Processes("devopsAgent")
	if out, err := b.box.Exec("dpkg", "-i", packageDir+"/bad.deb"); err == nil {
		b.Errorf("a failing upgrade went through:\n%s", out)
	}
	if got := b.version(); got != "1.0.0" {
		b.Errorf("after a failed upgrade %q is installed", got)
	}
	if after := b.box.Processes("devopsAgent"); !slices.Equal(agents, after) {
		b.Errorf("a failed upgrade has replaced agent %v by %v", agents, after)
	}
}

// failedRemoval has prerm fail after it has done its work.
func (b *target) failedRemoval() {
	b.Helper()
	prerm := "/var/lib/dpkg/info/devops-agent.prerm"
	b.box.Shell("cp -a " + prerm + " /root/prerm; echo 'exit 1' >>" + prerm)
	if out, err := b.box.Exec("dpkg", "-r", "devops-agent"); err == nil {
		b.Errorf("a failing removal went through:\n%s", out)
	}
	b.box.Shell("mv /root/prerm " + prerm)
	if got := b.version(); got != "1.0.0" {
		b.Errorf("after a failed removal %q is installed", got)
	}
}

// purged purges the package and holds what is left against what was there before.
func (b *target) purged(state string, table *transitions, before map[string]string) {
	b.Helper()
	b.become(state)
	// what an operator and an agent leave behind: another instance, tokens, links that lead out
	b.box.Shell(`mkdir -p /srv/precious && echo kept >/srv/precious/file && chown -R devops-agent: /srv/precious
systemctl enable devops-agent@blue.service 2>/dev/null
install -d -o devops-agent -g devops-agent /var/lib/devops-agents/blue ` + b.home + `/workspace
echo '[log]' >/etc/devops-agent/blue.toml; echo x >/etc/devops-agent/enroll.d/mine
ln -s /srv/precious ` + b.home + `/workspace/link`)
	b.box.Run("apt-get", "-y", "-q", "-o", "Dpkg::Use-Pty=0", "purge", "devops-agent")
	if b.box.Read("/srv/precious/file") != "kept\n" {
		b.Error("a purge has followed a link out of the home")
	}
	b.box.Shell("rm -r /srv/precious; systemctl unmask " + b.unit + " 2>/dev/null")
	after := b.snapshot()
	var differences []string
	for path, was := range before {
		if now := after[path]; now != was {
			differences = append(differences, fmt.Sprintf("%s: %q, was %q", path, now, was))
		}
	}
	for path, now := range after {
		if _, ok := before[path]; !ok {
			differences = append(differences, fmt.Sprintf("%s: %q, was not there", path, now))
		}
	}
	slices.Sort(differences)
	table.note("purge", state, "nothing left")
	if len(differences) > 0 {
		table.note("purge", state, fmt.Sprintf("%d files differ", len(differences)))
		b.Errorf("a purge leaves:\n%s", strings.Join(differences, "\n"))
	}
}

// snapshot is the file system: kind, mode, owner, size or target of everything, and the content of the lists of accounts. What any
// package leaves (logs, dpkg's own memory and backups of the lists) is not in it.
func (b *target) snapshot() map[string]string {
	b.Helper()
	out := b.box.Run("bash", "-c", `find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /run -o -path /srv/packages -o -path /var/log -o -path /var/cache \
 -o -path /var/lib/dpkg -o -path /var/lib/apt -o -path /root -o -path /var/tmp -o -path /var/lib/systemd/timers -o -path /var/lib/systemd/random-seed -o -path /var/lib/systemd/timesync \) -prune \
 -o -type d -printf '%p\t%y %m %u:%g\n' -o ! -name '*-' ! -name .pwd.lock -printf '%p\t%y %m %u:%g %s %l\n'; cd /etc; sha256sum passwd group shadow gshadow subuid subgid | sed 's/\(.*\)  \(.*\)/sum of \2\t\1/'; ls -d /run/devops-agent* 2>/dev/null | sed 's/$/\tleft in run/'`)
	files := map[string]string{}
	for line := range strings.Lines(out) {
		path, what, _ := strings.Cut(strings.TrimRight(line, "\n"), "\t")
		files[path] = what
	}
	return files
}

// publish prints a table, and leaves it where the run can print it.
func publish(t *testing.T, name, table string) {
	t.Logf("%s:\n%s", name, table)
	if dir := os.Getenv("LAB_TABLES"); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, "transitions-"+name+".md"), []byte(table), 0o644); err != nil { //nolint:gosec // for people
			t.Error(err)
		}
	}
}

// enrolment puts a file into enroll.d as whoever prepares a machine does, before anything is installed.
func (b *target) enrolment(control *lab.Controller) {
	b.Helper()
	token, code := control.Run("", "enroll-token")
	if code != 0 {
		b.Fatalf("enroll-token: %d", code)
	}
	b.box.Write("/etc/devops-agent/enroll.d/10-lab.toml", fmt.Sprintf("gateway = %q\ntoken = %q\n", control.URL, strings.TrimSpace(token)), 0o600)
}

// contact reports whether the agent has had an answer of its server.
func (b *target) contact() bool {
	out, err := b.box.Exec("devopsAgent", "status", "--json")
	var s struct {
		Server struct {
			LastContact string `json:"last_contact"`
		} `json:"server"`
		Agent struct {
			Server struct {
				LastContact string `json:"last_contact"`
			} `json:"server"`
		} `json:"agent"`
	}
	return (err == nil || out != "") && json.Unmarshal([]byte(out), &s) == nil && s.Server.LastContact+s.Agent.Server.LastContact != ""
}

// agents are the ids of the agents that a controller knows.
func agentIDs(t *testing.T, c *lab.Controller) []string {
	t.Helper()
	out, code := c.Run("", "agents", "--json")
	if code != 0 {
		t.Fatalf("agents: %d", code)
	}
	var list []map[string]any
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("agents: %v in %s", err, out)
	}
	var ids []string
	for _, one := range list {
		ids = append(ids, fmt.Sprint(one["id"]))
	}
	return ids
}

// TestPackagesFirstHeartbeat: from apt or dnf with an enrolment file to the first answer of the server, with no further command; what a
// new user tries then; a build during an upgrade; a server's upgrade, a rollback and a package on top, after which the package is as
// it was installed.
func TestPackagesDebLife(t *testing.T) { t.Parallel(); testLife(t, "deb") }
func TestPackagesRpmLife(t *testing.T) { t.Parallel(); testLife(t, "rpm") }

func testLife(t *testing.T, kind string) {
	b := targeted(t, kind, lab.BoxOptions{Name: "d" + kind + "life"})
	b.control = lab.NewController(t, programs(t))
	b.enrolment(b.control)
	begun := time.Now()
	b.apply("1.0.0")
	installed := time.Now()
	b.await(bootLimit, "the first heartbeat", func() bool { return len(agentIDs(t, b.control)) == 1 && b.contact() })
	b.took(kind+": from the package manager's first byte to the first heartbeat", time.Since(begun), 5*time.Second)
	b.took(kind+": from its last to the first heartbeat", time.Since(installed), 5*time.Second)
	b.newUser()

	// an upgrade during a build
	id := b.begin("sleep 30; echo done")
	before := b.show("MainPID")
	begun = time.Now()
	b.apply("2.0.0")
	b.took(kind+": an upgrade during a build, until the package manager is back", time.Since(begun), 20*time.Second)
	if b.version() != "2.0.0" {
		t.Fatalf("installed is %q", b.version())
	}
	if seen, err := b.control.Build(id); err != nil || seen.State != "running" {
		t.Fatalf("the build is %v after the upgrade, %v", seen, err)
	}
	if after := b.show("MainPID"); after != before {
		t.Errorf("agent %s was replaced by %s while it built", before, after)
	}
	if out, err := b.box.Exec("test", "-d", "/run/devops-agent-replace"); err != nil {
		t.Errorf("no mark of an upgrade that waits: %v%s", err, out)
	}
	b.succeeded(id, 60*time.Second)
	ended := time.Now()
	b.await(bootLimit, "the new version runs", func() bool { return b.running() == "v2.0.0" })
	b.took(kind+": from the end of the build to the new version", time.Since(ended), 15*time.Second)
	b.await(bootLimit, "the mark is gone", func() bool { _, err := b.box.Exec("test", "-d", "/run/devops-agent-replace"); return err != nil })
	b.unchanged("an upgrade")

	// a server's upgrade, a rollback, and the package on top
	b.await(time.Minute, "the trial is over", func() bool {
		_, err := b.box.Exec("sh", "-c", "! ls "+b.home+"/upgrade/open-* 2>/dev/null")
		return err == nil
	})
	p, err := packages()
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range [][]string{{"upgrade", "add", p.newer, "--version", "v3.0.0"}, {"upgrade", "offer", "v3.0.0", "--canary", "0"}} {
		if out, code := b.control.Run("", verb...); code != 0 {
			t.Fatalf("%v: %d %s", verb, code, out)
		}
	}
	b.await(90*time.Second, "the server's version runs", func() bool { return b.running() == "v3.0.0" })
	b.await(time.Minute, "the trial is over", func() bool {
		_, err := b.box.Exec("sh", "-c", "! ls "+b.home+"/upgrade/open-* 2>/dev/null")
		return err == nil
	})
	b.unchanged("a server's upgrade")
	if out, code := b.control.Run("", "upgrade", "pause"); code != 0 {
		t.Fatalf("pause: %d %s", code, out)
	}
	b.box.Run("devopsAgent", "rollback")
	b.await(time.Minute, "the version before runs", func() bool { return b.running() == "v2.0.0" })
	b.unchanged("a rollback")
	b.apply("2.0.0")
	b.unchanged("the package on top")
	if got := b.box.Run("devopsAgent", "version"); got != "v2.0.0" {
		t.Errorf("devopsAgent version: %s", got)
	}
}

// unchanged checks that the package's files are as it brought them.
func (b *target) unchanged(after string) {
	b.Helper()
	if found := b.verify(); found != "" {
		b.Errorf("after %s the package manager finds: %s", after, found)
	}
}

// newUser tries what somebody does who has just installed the package.
func (b *target) newUser() {
	b.Helper()
	if got := b.box.Run("devopsAgent", "version"); got != "v1.0.0" {
		b.Errorf("devopsAgent version: %s", got)
	}
	if out := b.box.Run("devopsAgent", "status"); !strings.Contains(out, "working") {
		b.Errorf("devopsAgent status: %s", out)
	}
	if out := b.box.Run("systemctl", "status", "--no-pager", "devops-agent"); !strings.Contains(out, "active (running)") {
		b.Errorf("systemctl status: %s", out)
	}
	b.box.Shell(`gzip -dc /usr/share/man/man8/devopsAgent.8.gz | grep -q '^.TH'
bash -n /usr/share/bash-completion/completions/devopsAgent
devopsAgent __complete sta 2>/dev/null | grep -q '^status'
test "$(stat -c '%a %U:%G' /etc/devops-agent/enroll.d)" = '750 root:devops-agent'
test "$(stat -c '%a %U:%G' /var/lib/devops-agent)" = '750 devops-agent:devops-agent'
systemctl is-system-running --wait | grep -q running`)
	if out := b.box.Run("systemd-analyze", "verify", "/usr/lib/systemd/system/devops-agent.service", "/usr/lib/systemd/system/devops-agent-replace.service"); out != "" {
		b.Errorf("systemd-analyze: %s", out)
	}
	if found := b.verify(); found != "" {
		b.Errorf("after the installation the package manager finds: %s", found)
	}
}

// TestPackagesConffiles: agent.toml untouched, edited and removed, when the package brings another one; and nobody is asked.
func TestPackagesDebConffile(t *testing.T) { t.Parallel(); testConffile(t, "deb") }
func TestPackagesRpmConffile(t *testing.T) { t.Parallel(); testConffile(t, "rpm") }

func testConffile(t *testing.T, kind string) {
	b := targeted(t, kind, lab.BoxOptions{Name: "d" + kind + "conf"})
	conf := service.Packaged("linux").Config
	options := []string{}
	if kind == "deb" {
		options = []string{"-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"}
	}
	fresh := func() string {
		b.apply("1.0.0")
		return b.box.Read(conf)
	}
	upgraded := func() string {
		if out, err := b.try(b.file("2.0.0"), options...); err != nil {
			t.Fatalf("upgrade: %v\n%s", err, out)
		}
		return b.box.Read(conf)
	}
	reset := func() {
		b.remove()
		b.box.Shell("rm -f /etc/devops-agent/agent.toml*")
		if kind == "deb" {
			b.box.Run("dpkg", "-P", "devops-agent")
		}
	}
	first := fresh()
	if !strings.HasPrefix(first, "# agent.toml") || strings.Contains(first, "a later line") {
		t.Fatalf("agent.toml: %.100s", first)
	}
	if got := upgraded(); !strings.Contains(got, "a later line") {
		t.Error("an untouched agent.toml was not replaced by the new one")
	}
	reset()
	fresh()
	b.box.Write(conf, "[log]\nlevel = \"debug\"\n", 0o644)
	if got := upgraded(); got != "[log]\nlevel = \"debug\"\n" {
		t.Errorf("an edited agent.toml became %.100s", got)
	}
	beside := map[string]string{"deb": ".dpkg-dist", "rpm": ".rpmnew"}[kind]
	if got := b.box.Read(conf + beside); !strings.Contains(got, "a later line") {
		t.Errorf("no new agent.toml beside the edited one (%s)", beside)
	}
	reset()
	fresh()
	b.box.Run("rm", conf)
	got := upgraded()
	if kind == "deb" && got != "" {
		t.Error("a removed agent.toml came back")
	}
	if kind == "rpm" && !strings.Contains(got, "a later line") {
		t.Error("rpm brings a removed file back, and this one was not")
	}
}

// TestPackagesDebWithoutSystemd: into a root where no systemd runs, and into one where there is none at all; the first boot starts the agent.
func TestPackagesDebWithoutSystemd(t *testing.T) {
	t.Parallel()
	b := targeted(t, "deb", lab.BoxOptions{Name: "dchroot"})
	b.box.Stop()
	chroot := func(script string) string {
		cmd := exec.Command("chroot", b.box.Root, "sh", "-ec", script)
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "HOME=/root"}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("in the chroot: %s: %v\n%s", script, err, out)
		}
		return string(out)
	}
	// lab/box keeps the disk of a stopped box mounted
	if out := chroot("dpkg -i " + b.file("1.0.0") + " 2>&1"); strings.Contains(strings.ToLower(out), "error") || strings.Contains(out, "Failed") {
		t.Errorf("in a chroot: %s", out)
	}
	running, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, exe := range running {
		if program, err := os.Readlink(exe); err == nil && strings.HasPrefix(program, b.box.Root+"/") {
			t.Errorf("%s was started from a chroot", program)
		}
	}
	chroot("dpkg -i " + b.file("2.0.0") + "; dpkg -r devops-agent; dpkg -i " + b.file("1.0.0"))
	b.box.Start()
	b.await(bootLimit, "the first boot starts the agent", func() bool { return b.seen() == "active enabled" })

	// no systemd on the disk at all: the account comes by useradd
	b.box.Run("dpkg", "-P", "devops-agent")
	b.box.Stop()
	for _, program := range []string{"systemd-sysusers", "systemctl", "systemd-tmpfiles", "deb-systemd-helper", "deb-systemd-invoke"} {
		chroot("p=$(command -v " + program + ") && mv $p $p.away")
	}
	out := chroot("dpkg -i " + b.file("1.0.0") + "; dpkg -i " + b.file("2.0.0") + "; dpkg -r devops-agent; dpkg -i " + b.file("1.0.0") + "; id devops-agent; stat -c '%a %U' /var/lib/devops-agent; dpkg -P devops-agent; ! id devops-agent 2>/dev/null; ! test -e /var/lib/devops-agent")
	if !strings.Contains(out, "750 devops-agent") {
		t.Errorf("without systemd: %s", out)
	}
}

// TestPackagesDebClones: two machines that are copies of one whose image was prepared become two agents.
func TestPackagesDebClones(t *testing.T) {
	t.Parallel()
	first := targeted(t, "deb", lab.BoxOptions{Name: "dimage"})
	first.control = lab.NewController(t, programs(t))
	first.enrolment(first.control)
	first.apply("1.0.0")
	first.await(bootLimit, "the first heartbeat", first.contact)
	first.box.Shell("systemctl stop devops-agent; devopsAgent prepare-image --yes; tar -C / -cf " + packageDir + "/home.tar var/lib/devops-agent etc/devops-agent")
	data, err := os.ReadFile(first.box.Path(packageDir + "/home.tar"))
	if err != nil {
		t.Fatal(err)
	}
	first.box.Stop()
	for i := range 2 {
		clone := targeted(t, "deb", lab.BoxOptions{Name: fmt.Sprintf("dclone%d", i)})
		clone.box.Write(packageDir+"/home.tar", string(data), 0o644)
		clone.apply("1.0.0")
		clone.box.Shell("systemctl stop devops-agent; rm -rf /var/lib/devops-agent /etc/devops-agent; tar -C / -xpf " + packageDir + "/home.tar; systemctl start devops-agent")
		clone.await(bootLimit, "the first heartbeat", clone.contact)
	}
	ids := agentIDs(t, first.control)
	if different := slices.Sorted(maps.Keys(func() map[string]bool {
		set := map[string]bool{}
		for _, id := range ids {
			set[id] = true
		}
		return set
	}())); len(different) != 3 {
		t.Errorf("an image and two clones are the agents %v", ids)
	}
}

// TestPackagesDebInstances: further agents of a host are replaced with an upgrade, as the first is, and stopped with a removal.
func TestPackagesDebInstances(t *testing.T) {
	t.Parallel()
	b := targeted(t, "deb", lab.BoxOptions{Name: "dinst"})
	b.apply("1.0.0")
	b.box.Shell("systemctl enable --now devops-agent@blue devops-agent@green 2>/dev/null; systemctl stop devops-agent@green")
	pid := func(unit string) string { return b.box.Run("systemctl", "show", "-p", "MainPID", "--value", unit) }
	first, blue := pid(b.unit), pid("devops-agent@blue")
	b.apply("2.0.0")
	b.await(bootLimit, "both are replaced", func() bool { return pid(b.unit) != first && pid("devops-agent@blue") != blue })
	for _, home := range []string{b.home, "/var/lib/devops-agents/blue"} {
		b.await(bootLimit, "the new version is in "+home, func() bool {
			out, err := b.box.Exec(home+"/devopsAgent", "version")
			return err == nil && strings.TrimSpace(out) == "v2.0.0"
		})
	}
	if got := pid("devops-agent@green"); got != "0" {
		t.Errorf("the stopped instance runs as %s", got)
	}
	b.remove()
	if left := b.box.Processes("devopsAgent"); len(left) > 0 {
		t.Errorf("agents %v run after the removal", left)
	}
}

// TestPackagesLint: lintian and rpmlint have nothing to say.
func TestPackagesLint(t *testing.T) {
	t.Parallel()
	p, err := packages()
	if err != nil {
		t.Fatal(err)
	}
	root, err := lab.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	files := slices.Sorted(maps.Values(p.files))
	more, err := filepath.Glob(filepath.Join(filepath.Dir(files[0]), "devops-agent-java*"))
	if err != nil || len(more) == 0 {
		t.Fatalf("no packages for Java: %v", err)
	}
	if out, err := exec.Command(filepath.Join(root, "lab", "lint"), append(files, more...)...).CombinedOutput(); err != nil {
		t.Errorf("lint: %v\n%s", err, out)
	}
}

// took notes a time. The test fails only beyond twice what is wanted, because machines are busy.
func (b *target) took(what string, d, wanted time.Duration) {
	b.Helper()
	number(b.T, "%-70s %6.1f s, wanted %v", what, d.Seconds(), wanted)
	if d > 2*wanted {
		b.Errorf("%s: %v, wanted %v", what, d, wanted)
	}
}
