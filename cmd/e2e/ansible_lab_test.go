//go:build lab && linux

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// fleet is machines that Ansible reaches by ssh on loopback.
type fleet struct {
	t         *testing.T
	dir       string // inventory, variables, keys
	boxes     []*lab.Box
	playbooks string
	token     string
}

// hosts are their names in the inventory.
func (f *fleet) host(i int) string { return fmt.Sprintf("build-%d", i+1) }

func newFleet(t *testing.T, n int, gateway, token string) *fleet {
	t.Helper()
	for _, program := range []string{"ansible-playbook", "ssh-keygen"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("needs %s on this machine: lab/run installs it", program)
		}
	}
	root, err := lab.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{t: t, dir: t.TempDir(), boxes: make([]*lab.Box, n), playbooks: filepath.Join(root, "deploy", "ansible", "playbooks"), token: token}
	key := filepath.Join(f.dir, "id")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	for i := range f.boxes {
		f.boxes[i] = lab.NewBox(t, lab.BoxOptions{Name: fmt.Sprintf("ans%d", i+1), Image: "ansible"})
	}
	var inventory strings.Builder
	inventory.WriteString("[devops_agents]\n")
	for i, box := range f.boxes {
		port := freePort(t)
		box.Write("/root/.ssh/authorized_keys", string(public), 0o600)
		box.Shell(fmt.Sprintf("chmod 700 /root/.ssh; mkdir -p /run/sshd; ssh-keygen -A >/dev/null; systemd-run -q --unit lab-sshd /usr/sbin/sshd -D -p %d -o ListenAddress=127.0.0.1 -o UsePAM=no", port))
		if !lab.Eventually(bootLimit, func() bool {
			c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
			if err != nil {
				return false
			}
			return c.Close() == nil
		}) {
			t.Fatalf("%s: no sshd", f.host(i))
		}
		fmt.Fprintf(&inventory, "%s ansible_host=127.0.0.1 ansible_port=%d\n", f.host(i), port)
	}
	fmt.Fprintf(&inventory, "[devops_agents:vars]\nansible_user=root\nansible_ssh_private_key_file=%s\nansible_python_interpreter=/usr/bin/python3\n", key)
	f.write("hosts", inventory.String())
	f.vars("secrets", map[string]any{"devops_agent_gateway": gateway, "devops_agent_token": token})
	return f
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

func (f *fleet) write(name, text string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// vars writes a file for --extra-vars: nothing secret is on a command line.
func (f *fleet) vars(name string, values map[string]any) {
	f.t.Helper()
	data, err := json.Marshal(values)
	if err != nil {
		f.t.Fatal(err)
	}
	f.write(name+".json", string(data))
}

// recap is a host's line at the end of a play.
type recap struct{ ok, changed, unreachable, failed, rescued int }

var recapLine = regexp.MustCompile(`(?m)^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)\s+skipped=\d+\s+rescued=(\d+)`)

// play runs a playbook and returns each host's line, and all that was said.
func (f *fleet) play(book string, args ...string) (map[string]recap, string, error) {
	f.t.Helper()
	began := time.Now()
	cmd := exec.Command("ansible-playbook", append([]string{"-i", filepath.Join(f.dir, "hosts"), "-e", "@" + filepath.Join(f.dir, "secrets.json"),
		filepath.Join(f.playbooks, book)}, args...)...)
	cmd.Dir = f.dir
	cmd.Env = append(os.Environ(), "ANSIBLE_HOST_KEY_CHECKING=False", "ANSIBLE_NOCOLOR=1", "ANSIBLE_RETRY_FILES_ENABLED=0", "ANSIBLE_PIPELINING=1",
		"ANSIBLE_LOCAL_TEMP="+filepath.Join(f.dir, "tmp"), "ANSIBLE_HOME="+filepath.Join(f.dir, "home"), "LC_ALL=C.UTF-8",
		"ANSIBLE_SSH_ARGS=-o ControlMaster=auto -o ControlPersist=60s -o ControlPath="+filepath.Join(f.dir, "%C")+" -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 5 * time.Second // the masters of its connections live on
	err := cmd.Run()
	if cmd.ProcessState == nil {
		f.t.Fatalf("%s: %v", book, err)
	}
	if cmd.ProcessState.Success() {
		err = nil
	}
	text := out.String()
	f.t.Logf("%s %s: %v in %v", book, strings.Join(args, " "), err, time.Since(began).Round(100*time.Millisecond))
	if strings.Contains(text, f.token) {
		f.t.Errorf("%s: the token is in the output", book)
	}
	if strings.Contains(text, "DEPRECATION") || strings.Contains(text, "[WARNING]") {
		f.t.Errorf("%s: warnings:\n%s", book, text)
	}
	hosts := map[string]recap{}
	for _, m := range recapLine.FindAllStringSubmatch(text, -1) {
		var n [5]int
		for i := range n {
			n[i], _ = strconv.Atoi(m[i+2])
		}
		hosts[m[1]] = recap{n[0], n[1], n[2], n[3], n[4]}
	}
	return hosts, text, err
}

// good plays what must succeed everywhere.
func (f *fleet) good(book string, args ...string) map[string]recap {
	f.t.Helper()
	hosts, text, err := f.play(book, args...)
	if err != nil || len(hosts) != len(f.boxes) {
		f.t.Fatalf("%s: %v:\n%s", book, err, text)
	}
	return hosts
}

// version is what runs in a box, and whether it is well.
func (f *fleet) version(i int, more ...string) (version string, healthy bool) {
	f.t.Helper()
	out, _ := f.boxes[i].Exec(append([]string{"devopsAgent", "status", "--json"}, more...)...)
	var s struct {
		Healthy bool `json:"healthy"`
		Agent   *struct {
			Version string `json:"version"`
		} `json:"agent"`
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		f.t.Fatalf("%s: status: %v: %s", f.host(i), err, out)
	}
	if s.Agent == nil {
		return "", s.Healthy
	}
	return s.Agent.Version, s.Healthy
}

// debOf is the package of a version, made by packager of programs that are this version.
func debOf(t *testing.T, version string) string {
	t.Helper()
	root, err := lab.ModuleRoot()
	if err != nil {
		t.Error(err)
		return ""
	}
	bin, out := t.TempDir(), t.TempDir()
	for _, args := range [][]string{
		{"go", "build", "-trimpath", "-ldflags", "-s -w -X github.com/devops-agent/devops-agent/cmd/internal/cli.version=" + version, "-o", filepath.Join(bin, "devopsAgent_linux"), "./cmd/agent"},
		{"go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(bin, "upgrader_linux"), "./cmd/upgrader"},
		{"go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(bin, "devopsWorker_linux"), "./cmd/worker"},
		{"go", "run", "./cmd/packager", "build", "--version", version, "--bin", bin, "--out", out, "--only", "deb", "--arch", "amd64"},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, text)
			return ""
		}
	}
	found, err := filepath.Glob(filepath.Join(out, "devops-agent_*.deb"))
	if err != nil || len(found) != 1 {
		t.Errorf("packages of %s: %q, %v", version, found, err)
		return ""
	}
	return found[0]
}

// TestAnsible: the role and the playbooks, as an operator of a fleet uses them, on three machines.
func TestAnsible(t *testing.T) {
	t.Parallel()
	const first, second = "v1.1.0", "v1.2.0"
	var old, fresh string
	var building sync.WaitGroup
	building.Go(func() { old, fresh = debOf(t, first), debOf(t, second) })
	c := lab.NewController(t, programs(t))
	token, code := c.Run("", "enroll-token")
	if code != 0 {
		t.Fatal("no token")
	}
	f := newFleet(t, 3, c.URL, strings.TrimSpace(token))
	building.Wait()
	if t.Failed() {
		t.FailNow()
	}
	f.vars("old", map[string]any{"devops_agent_source": "file", "devops_agent_package_file": old,
		"devops_agent_config": map[string]any{"builds": map[string]any{"parallel": 3}, "upgrade": map[string]any{"mode": "package", "settle_after": "2s"}}})
	f.vars("new", map[string]any{"devops_agent_source": "file", "devops_agent_package_file": fresh,
		"devops_agent_config": map[string]any{"builds": map[string]any{"parallel": 4}, "upgrade": map[string]any{"mode": "package", "settle_after": "2s"}},
		"devops_agent_serial": 1})
	if err := os.Mkdir(filepath.Join(f.dir, "host_vars"), 0o700); err != nil {
		t.Fatal(err)
	}
	f.write("host_vars/build-3.json", `{"devops_agent_instances": [{"name": "gpu", "config": {"builds": {"parallel": 1}}}]}`)
	with := func(name string) []string { return []string{"-e", "@" + filepath.Join(f.dir, name+".json")} }

	if hosts, text, err := f.play("site.yml", append(with("old"), "--check", "--diff")...); err != nil || hosts["build-1"].changed == 0 {
		t.Fatalf("check of a machine without anything: %v, %+v\n%s", err, hosts, text)
	}
	if out, err := f.boxes[0].Exec("sh", "-c", "ls /usr/bin/devopsAgent /etc/devops-agent"); err == nil {
		t.Errorf("a check installed something: %s", out)
	}
	f.good("site.yml", with("old")...)
	for i, box := range f.boxes {
		if v, healthy := f.version(i); v != first || !healthy {
			t.Errorf("%s: %s runs, healthy: %v", f.host(i), v, healthy)
		}
		if left := box.Run("sh", "-c", "find /etc/devops-agent -name '*ansible*' -o -name '*.token'; grep -rl '"+f.token+"' /etc /var/lib/devops-agent* /var/log || true"); left != "" {
			t.Errorf("%s: the token is still in %s", f.host(i), left)
		}
	}
	if v, healthy := f.version(2, "--instance", "gpu"); v != first || !healthy {
		t.Errorf("instance gpu: %s runs, healthy: %v", v, healthy)
	}
	for host, r := range f.good("site.yml", with("old")...) {
		if r.changed != 0 {
			t.Errorf("second run: %s: %+v", host, r)
		}
	}

	f.boxes[0].Shell("sed -i 's/parallel = 3/parallel = 30/' /etc/devops-agent/agent.toml")
	hosts, text, err := f.play("site.yml", append(with("old"), "--check", "--diff")...)
	if err != nil || hosts["build-1"].changed != 1 || hosts["build-2"].changed != 0 || !strings.Contains(text, "-parallel = 30") || !strings.Contains(text, "+parallel = 3") {
		t.Errorf("check of a machine that somebody changed: %v, %+v\n%s", err, hosts, text)
	}
	if text := f.boxes[0].Read("/etc/devops-agent/agent.toml"); !strings.Contains(text, "parallel = 30") {
		t.Errorf("a check changed agent.toml: %s", text)
	}
	f.vars("broken", map[string]any{"devops_agent_source": "none", "devops_agent_config": map[string]any{"builds": map[string]any{"paralel": 3}}})
	if _, text, err := f.play("site.yml", append(with("broken"), "--limit", "build-1")...); err == nil || !strings.Contains(text, "did you mean builds.parallel") {
		t.Errorf("a mistake in the configuration: %v\n%s", err, text)
	}
	if text := f.boxes[0].Read("/etc/devops-agent/agent.toml"); !strings.Contains(text, "parallel = 30") {
		t.Errorf("a mistake was put in place: %s", text)
	}

	// On the second machine the new version dies: it goes back by itself, and the roll-out ends there. Who tells the old one to make
	// room is of the new version, too, and does not die.
	f.boxes[1].Write("/usr/local/sbin/saboteur", "#!/bin/sh\nwhile :; do\n\tfor p in $(pgrep -x devopsAgent); do\n"+
		"\t\tgrep -q when-idle /proc/$p/cmdline && continue\n"+
		"\t\t[ \"$(/proc/$p/exe version 2>/dev/null)\" != "+second+" ] || kill -9 $p\n\tdone\n\tsleep 0.1\ndone\n", 0o755)
	f.boxes[1].Run("systemd-run", "-q", "--unit", "saboteur", "/usr/local/sbin/saboteur")
	hosts, text, err = f.play("rolling_upgrade.yml", with("new")...)
	if err == nil || hosts["build-1"].failed != 0 || hosts["build-2"].failed == 0 || hosts["build-3"].ok != 0 {
		t.Errorf("roll-out with a machine that is no good: %v, %+v\n%s", err, hosts, text)
	}
	if !strings.Contains(text, "went back to the version before") {
		t.Errorf("nobody says why it stopped:\n%s", text)
	}
	for i, want := range []string{second, first, first} {
		if !lab.Eventually(time.Minute, func() bool { v, healthy := f.version(i); return v == want && healthy }) {
			v, healthy := f.version(i)
			t.Errorf("after the roll-out, %s: %s runs, healthy: %v; want %s", f.host(i), v, healthy, want)
		}
	}
	if v := f.boxes[2].Run("dpkg-query", "-W", "-f", "${Version}", "devops-agent"); v != strings.TrimPrefix(first, "v") {
		t.Errorf("the third machine has package %s", v)
	}

	if hosts, text, err := f.play("uninstall.yml", "--limit", "build-1:build-3", "-e", "purge=true"); err != nil || hosts["build-3"].changed == 0 {
		t.Errorf("uninstall: %v, %+v\n%s", err, hosts, text)
	}
	for _, i := range []int{0, 2} {
		if left := f.boxes[i].Run("sh", "-c", "ls -d /var/lib/devops-agent* /etc/devops-agent* /usr/lib/devops-agent /usr/bin/devopsAgent /etc/systemd/system/*/devops-agent* 2>/dev/null || true; pgrep -x devopsAgent || true"); left != "" {
			t.Errorf("%s: left after a purge: %s", f.host(i), left)
		}
	}
	if hosts, _, err := f.play("uninstall.yml", "--limit", "build-1:build-3", "-e", "purge=true"); err != nil || hosts["build-1"].changed+hosts["build-3"].changed != 0 {
		t.Errorf("a second uninstall: %v, %+v", err, hosts)
	}
}
