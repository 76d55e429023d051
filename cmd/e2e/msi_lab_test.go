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
	"syscall"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/windows"
)

// What the packages of the test install.
const (
	msiVendor  = `C:\Program Files\devops-agent`
	msiHome    = `C:\ProgramData\devops-agent`
	msiService = "devops-agent"
)

// msiPackages are packages of some versions, by version. The programs of v1.1.0 tell that version, those of the others v1.2.0.
var msiPackages = sync.OnceValues(func() (map[string]string, error) {
	old, err := windowsPrograms()
	if err != nil {
		return nil, err
	}
	p, err := built()
	if err != nil {
		return nil, err
	}
	root, err := lab.ModuleRoot()
	if err != nil {
		return nil, err
	}
	packager := filepath.Join(p.Dir, "packager")
	build := exec.Command("go", "build", "-trimpath", "-o", packager, "./cmd/packager")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the packager: %w: %s", err, out)
	}
	packages := map[string]string{}
	for _, release := range []struct{ program, version string }{
		{"v1.1.0", "v1.1.0"}, {"v1.2.0", "v1.2.0"}, {"v1.2.0", "v1.3.0-dev.9"}, {"v1.2.0", "v1.3.0-dev.10"},
	} {
		bin := filepath.Join(p.Dir, "msi-"+release.program)
		if _, err := os.Stat(bin); err != nil {
			if err := os.MkdirAll(bin, 0o700); err != nil {
				return nil, err
			}
			for _, program := range []string{"devopsDaemon.exe", "upgrader.exe", "devopsWorker.exe"} {
				if err := os.Link(filepath.Join(old, program), filepath.Join(bin, program)); err != nil {
					return nil, err
				}
			}
			if err := os.Link(p.Agent, filepath.Join(bin, "devopsAgent_linux")); err != nil { // it writes the manual pages
				return nil, err
			}
			if err := windowsBuild(filepath.Join(bin, "devopsAgent.exe"), "amd64", "-ldflags", versionFlag+release.program, "./cmd/agent"); err != nil {
				return nil, err
			}
		}
		out := filepath.Join(p.Dir, "msi-packages", release.version)
		pack := exec.Command(packager, "build", "--root", root, "--bin", bin, "--out", out, "--only", "msi", "--arch", "amd64", "--version", release.version)
		if text, err := pack.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("make the package of %s: %w: %s", release.version, err, text)
		}
		found, err := filepath.Glob(filepath.Join(out, "*.msi"))
		if err != nil || len(found) != 1 {
			return nil, fmt.Errorf("packages of %s: %v, %w", release.version, found, err)
		}
		packages[release.version] = found[0]
	}
	return packages, nil
})

// msiMachine is a Windows machine that the packages are installed on.
type msiMachine struct {
	*wine
	logs int
}

// newMSI boots a machine with a controller and its install token in C:\token.
func newMSI(t *testing.T, name string) *msiMachine {
	t.Helper()
	m := &msiMachine{wine: newWine(t, name)}
	m.folder = filepath.Join("ProgramData", "devops-agent")
	packages, err := msiPackages()
	if err != nil {
		t.Fatal(err)
	}
	for version, file := range packages {
		m.copyTo(file, version+".msi")
	}
	m.control = lab.NewController(m, programs(t))
	token, _ := m.control.Run("", "enroll-token")
	if err := os.WriteFile(filepath.Join(m.disk, "token"), []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	return m
}

// installer runs msiexec without a window and returns its exit status, as Wine gives it (modulo 256), and its log.
func (m *msiMachine) installer(verb, version string, properties ...string) (int, string) {
	m.Helper()
	m.logs++
	log := fmt.Sprintf("install%d.log", m.logs)
	cmd := exec.Command(m.tool, append([]string{"run", m.name, "msiexec", verb, `C:\` + version + ".msi", "/qn", "/l*v", `C:\` + log}, properties...)...)
	cmd.Env = append(os.Environ(), "WINE_LIMIT=60") // and no pipe: what it starts keeps that open
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		m.Fatalf("run msiexec: %v", err)
	}
	text, _ := os.ReadFile(filepath.Join(m.disk, log))
	return cmd.ProcessState.ExitCode(), string(text)
}

// install must succeed.
func (m *msiMachine) install(version string, properties ...string) {
	m.Helper()
	if code, log := m.installer("/i", version, properties...); code != 0 {
		m.Fatalf("install %s %v: exit status %d: …%s", version, properties, code, log[max(0, len(log)-3000):])
	}
}

// refused: the installation fails (1603), says why in the log, and changes nothing.
func (m *msiMachine) refused(why, version string, properties ...string) {
	m.Helper()
	const failed = 1603 % 256
	before := m.registry(windows.AnswersKey)["version"]
	code, _ := m.installer("/i", version, properties...)
	if code != failed {
		m.Errorf("%s: exit status %d, want %d", why, code, failed)
	}
	if after := m.registry(windows.AnswersKey)["version"]; after != before {
		m.Errorf("%s: version %q became %q", why, before, after)
	}
}

// remove removes a version.
func (m *msiMachine) remove(version string) {
	m.Helper()
	if code, log := m.installer("/x", version); code != 0 {
		m.Fatalf("remove %s: exit status %d: …%s", version, code, log[max(0, len(log)-3000):])
	}
}

// is says what the service manager tells about the service.
func (m *msiMachine) is() string {
	m.Helper()
	out, _ := m.run("sc", "query", msiService)
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 4 && f[0] == "STATE" {
			return f[3]
		}
	}
	return "ABSENT"
}

func (m *msiMachine) mustBe(state, after string) {
	m.Helper()
	if !lab.Eventually(bootLimit, func() bool { return m.is() == state }) {
		m.Fatalf("the service is %s after %s, want %s", m.is(), after, state)
	}
}

// agents are those that the controller knows.
func (m *msiMachine) agents() (list []struct {
	ID           string `json:"id"`
	HostName     string `json:"hostName"`
	AgentVersion string `json:"agentVersion"`
}) {
	m.Helper()
	out, _ := m.control.Run("", "agents", "--json")
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		m.Fatalf("agents: %v: %s", err, out)
	}
	return list
}

// works says that the one agent of the controller runs a version.
func (m *msiMachine) works(version string) {
	m.Helper()
	m.await(bootLimit, "an agent of "+version+" asks for work", func() bool {
		list := m.agents()
		return len(list) == 1 && list[0].AgentVersion == version
	})
}

// stop stops the service and waits for it: Wine's installer does not.
func (m *msiMachine) stop() {
	m.Helper()
	if out, code := m.run("sc", "stop", msiService); code != 0 {
		m.Fatalf("sc stop: %s", out)
	}
	m.mustBe("STOPPED", "sc stop")
	m.await(bootLimit, "no process of ours is left", func() bool { return len(m.pids("devops")) == 0 })
}

// TestWineMSIReplacesALeftAgent: a daemon that is killed leaves its agent running, and the package is upgraded before anybody starts the
// daemon again. The next one finds the agent of the old version and tells it to make room.
func TestWineMSIReplacesALeftAgent(t *testing.T) {
	t.Parallel()
	m := newMSI(t, "msi-left")
	m.install("v1.1.0", "GATEWAY="+m.control.URL, `TOKEN_FILE=C:\token`)
	m.works("v1.1.0")
	agents := m.pids("devopsAgent")
	for _, pid := range m.pids("devopsDaemon") {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	m.mustBe("STOPPED", "its daemon was killed")
	if left := m.pids("devopsAgent"); len(agents) != 1 || !slices.Equal(left, agents) {
		t.Fatalf("agents %v, were %v: the daemon's end is not the agent's", left, agents)
	}
	m.install("v1.2.0")
	m.works("v1.2.0")
	m.mustBe("RUNNING", "an upgrade")
}

// TestWineMSI: a package is installed, enrols the machine, is upgraded, refuses to go back, and is removed; home and what the operator
// wrote stay through all of it.
func TestWineMSI(t *testing.T) {
	t.Parallel()
	m := newMSI(t, "msi")
	begun := time.Now()
	m.install("v1.1.0", "GATEWAY="+m.control.URL, `TOKEN_FILE=C:\token`, "NAME=build-7")
	installed := time.Since(begun)
	m.works("v1.1.0")
	number(t, "msiexec until it returns %.1f s, until the controller has the agent %.1f s", installed.Seconds(), time.Since(begun).Seconds())
	if list := m.agents(); list[0].HostName != "build-7" {
		t.Errorf("the agent is known as %q", list[0].HostName)
	}
	m.mustBe("RUNNING", "the installation")
	m.registered()
	m.noSecrets()
	if mode := m.registry(windows.NotesKey(msiService))["mode"]; mode != "service" {
		t.Errorf("the mode is noted as %q", mode)
	}
	if out, code := m.run(msiVendor+`\devopsAgent.exe`, "status"); code != 0 || !strings.Contains(out, "v1.1.0") {
		t.Errorf("status: exit code %d: %s", code, out)
	}
	identity := m.read(".agent.properties")
	config := "[drain]\ntimeout = \"3s\"\n"
	m.write("agent.toml", config)
	kept := func(after string) {
		t.Helper()
		if got := m.read(".agent.properties"); got != identity {
			t.Errorf("after %s the identity is %q, want %q", after, got, identity)
		}
		if got := m.read("agent.toml"); got != config {
			t.Errorf("after %s agent.toml is %q", after, got)
		}
	}

	m.install("v1.2.0")
	m.mustBe("RUNNING", "an upgrade of one that ran")
	m.works("v1.2.0")
	kept("an upgrade")
	answers := m.registry(windows.AnswersKey)
	if answers["gateway"] != m.control.URL || answers["tokenfile"] != `C:\token` || answers["name"] != "build-7" || answers["version"] != "1.2.0" {
		t.Errorf("answers after an upgrade: %v", answers)
	}
	if list := m.agents(); len(list) != 1 || list[0].HostName != "build-7" {
		t.Errorf("agents after an upgrade: %+v", list)
	}
	m.registered()

	m.refused("a downgrade", "v1.1.0")
	m.refused("a token on the command line", "v1.3.0-dev.9", "TOKEN=secret")
	m.refused("a token file without a directory", "v1.3.0-dev.9", "TOKEN_FILE=token")
	m.refused("a word for START", "v1.3.0-dev.9", "START=yes")
	m.mustBe("RUNNING", "what was refused")
	m.works("v1.2.0")

	m.stop()
	m.remove("v1.2.0")
	m.gone()
	kept("a removal")
}

// TestWineMSIKeepsStates: an upgrade leaves the service as it found it, and goes from one pre-release to the next, and not back.
func TestWineMSIKeepsStates(t *testing.T) {
	t.Parallel()
	m := newMSI(t, "msi-states")
	m.install("v1.1.0", "START=0", "PROJECT=demo")
	m.mustBe("STOPPED", "START=0")
	m.install("v1.2.0")
	m.mustBe("STOPPED", "an upgrade of one that never ran")
	m.install("v1.3.0-dev.9", "START=1")
	m.mustBe("RUNNING", "an upgrade with START=1")
	m.refused("an older pre-release number", "v1.2.0")
	m.stop()
	m.install("v1.3.0-dev.10")
	m.mustBe("STOPPED", "an upgrade of one that was stopped")
	m.refused("the pre-release before", "v1.3.0-dev.9")
	if project := m.registry(windows.AnswersKey)["project"]; project != "demo" {
		t.Errorf("PROJECT=demo became %q after three upgrades", project)
	}
	m.remove("v1.3.0-dev.10")
	m.gone()

	for value, number := range map[string]string{"0x4": "4", "0x3": "3"} { // disabled, manual
		m.install("v1.1.0", "START=0")
		if out, code := m.run("reg", "add", `HKLM\SYSTEM\CurrentControlSet\Services\`+msiService, "/v", "Start", "/t", "REG_DWORD", "/d", number, "/f"); code != 0 {
			t.Fatal(out)
		}
		m.install("v1.2.0")
		m.mustBe("STOPPED", "an upgrade with start type "+number)
		if got := m.registry(`SYSTEM\CurrentControlSet\Services\` + msiService)["start"]; got != value {
			t.Errorf("start type %s became %s", value, got)
		}
		m.remove("v1.2.0")
		m.gone()
	}

	m.install("v1.1.0", "START=0")
	if out, code := m.run("reg", "add", `HKLM\`+windows.NotesKey(msiService), "/v", windows.ModeValue, "/d", "session", "/f"); code != 0 { // as the daemon notes
		t.Fatal(out)
	}
	m.install("v1.2.0")
	if got := m.registry(`SYSTEM\CurrentControlSet\Services\` + msiService)["imagepath"]; !strings.Contains(got, `" session --home "`) {
		t.Errorf("the session mode is lost: %s", got)
	}
}

// registered holds the registration against the value that "devopsAgent install" would register. What Wine's installer skips
// (MsiConfigureServices) is read out of the tables by tests of packaging.
func (m *msiMachine) registered() {
	m.Helper()
	want := service.WindowsService(msiService, service.Setup{Home: msiHome, Vendor: msiVendor, Drain: 10 * time.Minute})
	skipped := map[string]bool{"FailureActions": true, "FailureActionsOnNonCrashFailures": true, "DelayedAutostart": true, "PreshutdownTimeout": true}
	found := map[string]map[string]string{}
	for _, v := range want.Registry() {
		if found[v.Key] == nil {
			found[v.Key] = m.registry(v.Key)
		}
		data := fmt.Sprint(v.Data)
		if number, ok := v.Data.(uint32); ok {
			data = fmt.Sprintf("0x%x", number)
		}
		if v.Name == "ImagePath" { // the installer quotes home in any case
			data = `"` + msiVendor + `\devopsDaemon.exe" service --home "` + msiHome + `"`
		}
		if got := found[v.Key][strings.ToLower(v.Name)]; got != data && !skipped[v.Name] {
			m.Errorf("%s of %s is %q, want %q", v.Name, v.Key, got, data)
		}
	}
	if path := m.registry(`SYSTEM\CurrentControlSet\Control\Session Manager\Environment`)["path"]; strings.Count(path, msiVendor) != 1 {
		m.Errorf("PATH is %s", path)
	}
}

// noSecrets looks for the token, and for the agent's secret, where others could read them.
func (m *msiMachine) noSecrets() {
	m.Helper()
	token, err := os.ReadFile(filepath.Join(m.disk, "token"))
	if err != nil {
		m.Fatal(err)
	}
	secrets := []string{strings.TrimSpace(string(token))}
	for line := range strings.Lines(m.read(".agent.properties")) {
		if secret, ok := strings.CutPrefix(strings.TrimSpace(line), "devops.agent.secret.key="); ok {
			secrets = append(secrets, secret)
		}
	}
	places := map[string]string{"install log": "install1.log", "agent's log": filepath.Join(m.folder, "logs", "devopsAgent.log"),
		"daemon's log": filepath.Join(m.folder, "logs", "devopsDaemon.log"), "registry": filepath.Join("..", "system.reg")}
	texts := map[string]string{"processes": m.box("pids", m.name)}
	for place, name := range places {
		data, err := os.ReadFile(filepath.Join(m.disk, name))
		if err != nil {
			m.Errorf("%s: %v", place, err)
		}
		texts[place] = string(data)
	}
	for _, pid := range m.pids("devops") {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		texts["processes"] += string(line)
	}
	for place, text := range texts {
		for _, secret := range secrets {
			if len(secret) < 8 || strings.Contains(text, secret) {
				m.Errorf("a secret is in the %s", place)
			}
		}
	}
}

// gone says that nothing of the package is left but home.
func (m *msiMachine) gone() {
	m.Helper()
	m.mustBe("ABSENT", "the removal")
	if entries, err := os.ReadDir(filepath.Join(m.disk, "Program Files", "devops-agent")); err == nil {
		m.Errorf("left of the programs: %v", entries)
	}
	for _, key := range []string{windows.AnswersKey, `SYSTEM\CurrentControlSet\Services\` + msiService, `SYSTEM\CurrentControlSet\Services\EventLog\Application\` + msiService} {
		if left := m.registry(key); len(left) > 0 {
			m.Errorf("left of %s: %v", key, left)
		}
	}
	if path := m.registry(`SYSTEM\CurrentControlSet\Control\Session Manager\Environment`)["path"]; strings.Contains(path, "devops") {
		m.Errorf("PATH is still %s", path)
	}
	if _, err := os.Stat(m.path("enroll.d")); err != nil {
		m.Errorf("home: %v", err)
	}
}
