//go:build lab && linux

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
	"github.com/devops-agent/devops-agent/service"
)

// wineFolder has a blank in it, as Program Files has.
const (
	wineFolder = "build agent"
	wineHome   = `C:\` + wineFolder
)

// wine is a Windows machine of Wine with an agent's home on it (lab/wine-box).
type wine struct {
	*testing.T
	tool, name, disk string
	folder, id       string // of the home on drive C:, of the agent

	rec     *lab.Recorder
	control *lab.Controller
}

// windowsPrograms are built once, beside those of this machine.
var windowsPrograms = sync.OnceValues(func() (string, error) {
	root, err := lab.ModuleRoot()
	if err != nil {
		return "", err
	}
	p, err := built()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(p.Dir, "windows")
	for name, folder := range map[string]string{"devopsAgent": "agent", "devopsDaemon": "daemon", "upgrader": "upgrader", "devopsWorker": "worker"} {
		build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, name+".exe"), "./cmd/"+folder)
		build.Dir = root
		build.Env = append(os.Environ(), "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s for Windows: %w: %s", folder, err, out)
		}
	}
	return dir, nil
})

// newWine boots a machine with the programs in its home. It is deleted when the test ends.
func newWine(t *testing.T, name string) *wine {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("needs root on Debian: Wine lives in a root file system of its own")
	}
	root, err := lab.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	w := &wine{T: t, tool: filepath.Join(root, "lab", "wine-box"), name: "e2e-" + name, folder: wineFolder, id: "aglab"}
	w.box("gc")
	w.box("rm", w.name)
	t.Cleanup(func() {
		if t.Failed() {
			w.tell()
			t.Logf("processes:\n%s", w.box("pids", w.name))
		}
		w.box("rm", w.name)
	})
	w.box("up", w.name)
	w.disk = strings.TrimSpace(w.box("disk", w.name))
	w.lay()
	return w
}

// lay puts the programs into the home.
func (w *wine) lay() {
	w.Helper()
	dir, err := windowsPrograms()
	if err != nil {
		w.Fatal(err)
	}
	if err := os.MkdirAll(w.path(), 0o755); err != nil {
		w.Fatal(err)
	}
	for _, program := range []string{"devopsAgent.exe", "devopsDaemon.exe", "upgrader.exe", "devopsWorker.exe"} {
		data, err := os.ReadFile(filepath.Join(dir, program))
		if err == nil {
			err = os.WriteFile(w.path(program), data, 0o755) //nolint:gosec // a program
		}
		if err != nil {
			w.Fatal(err)
		}
	}
}

// another is a second home on the same machine, with an agent and a service of its own.
func (w *wine) another(id string) *wine {
	w.Helper()
	other := *w
	other.folder, other.id, other.rec, other.control = "agent "+id, "ag"+id, nil, nil
	other.Cleanup(func() {
		if other.Failed() {
			other.tell()
		}
	})
	other.lay()
	return &other
}

// tell logs what a human would look at first.
func (w *wine) tell() {
	for _, log := range []string{"devopsDaemon.log", "devopsAgent.log", "devopsUpgrader.log"} {
		text := w.read("logs", log)
		w.Logf("%s, %s: …%s", w.folder, log, text[max(0, len(text)-4000):])
	}
}

// home is the path of the home in there.
func (w *wine) home() string { return `C:\` + w.folder }

// service is the name of the agent's service.
func (w *wine) service() string { return "devops_agent_" + w.id }

// box calls lab/wine-box.
func (w *wine) box(args ...string) string {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // the first one builds the root
	defer cancel()
	cmd := exec.CommandContext(ctx, w.tool, args...)
	cmd.Env = append(os.Environ(), "WINE_BOX_OWNER="+strconv.Itoa(os.Getpid()))
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.Fatalf("wine-box %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// run runs a Windows program and returns what it printed, without carriage returns, and its exit status.
func (w *wine) run(words ...string) (string, int) {
	w.Helper()
	cmd := exec.Command(w.tool, append([]string{"run", w.name}, words...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		w.Fatalf("run %q: %v", words, err)
	}
	return strings.ReplaceAll(out.String(), "\r\n", "\n"), cmd.ProcessState.ExitCode()
}

// agent calls devopsAgent.exe, which must succeed.
func (w *wine) agent(args ...string) string {
	w.Helper()
	out, code := w.run(append([]string{w.home() + `\devopsAgent.exe`}, args...)...)
	if code != 0 {
		w.Fatalf("devopsAgent %s: exit code %d: %s", strings.Join(args, " "), code, out)
	}
	return out
}

func (w *wine) path(parts ...string) string {
	return filepath.Join(append([]string{w.disk, w.folder}, parts...)...)
}

func (w *wine) read(parts ...string) string {
	text, _ := os.ReadFile(w.path(parts...))
	return string(text)
}

func (w *wine) write(name, text string) {
	w.Helper()
	if err := os.WriteFile(w.path(name), []byte(text), 0o600); err != nil {
		w.Fatal(err)
	}
}

// pids are the processes whose program has a text in its name, as this machine numbers them.
func (w *wine) pids(program string) []int {
	w.Helper()
	var list []int
	for line := range strings.Lines(w.box("pids", w.name, program)) {
		if pid, err := strconv.Atoi(strings.Fields(line)[0]); err == nil {
			list = append(list, pid)
		}
	}
	return list
}

// pid is the one process of a program.
func (w *wine) pid(program string) int {
	w.Helper()
	var list []int
	w.await(bootLimit, "one "+program, func() bool { list = w.pids(program); return len(list) == 1 })
	return list[0]
}

func (w *wine) await(limit time.Duration, what string, holds func() bool) {
	w.Helper()
	if !lab.Eventually(limit, holds) {
		w.Fatalf("not within %v: %s", limit, what)
	}
}

// signal sends a signal to a process and returns when that was.
func (w *wine) signal(pid int, s syscall.Signal) time.Time {
	w.Helper()
	at := time.Now()
	if err := syscall.Kill(pid, s); err != nil {
		w.Fatalf("signal %v to %d: %v", s, pid, err)
	}
	return at
}

// state is what the service manager says about the service.
func (w *wine) state() string {
	w.Helper()
	out, _ := w.run("sc", "query", w.service())
	m := regexp.MustCompile(`STATE *: *\d+ *([A-Z_]+)`).FindStringSubmatch(out)
	if m == nil {
		return "ABSENT"
	}
	return m[1]
}

const wineService = "devops_agent_aglab"

// recorded enrols the agent at a recorder, by hand.
func (w *wine) recorded() *wine {
	w.Helper()
	w.rec = lab.NewRecorder(w, lab.RecorderOptions{})
	w.identity(w.rec.URL)
	return w
}

func (w *wine) identity(gateway string) {
	w.Helper()
	w.write(".agent.properties", "devops.project.id=lab\ndevops.agent.id="+w.id+"\ndevops.agent.secret.key=s3cr3t\nlandun.gateway="+gateway+
		"\ndevops.parallel.task.count=4\nlandun.env=PROD\ndevops.language=en_US\ndevops.agent.collectorOn=false\n")
}

// controlled enrols the agent at a real controller, as an operator does.
func (w *wine) controlled() *wine {
	w.Helper()
	w.control = lab.NewController(w, programs(w.T))
	token, _ := w.control.Run("", "enroll-token")
	w.write("token", token)
	w.agent("enroll", "--gateway", w.control.URL, "--token-file", w.home()+`\token`)
	return w
}

// begin submits a build that takes some seconds and waits until its step runs.
func (w *wine) begin(seconds int) string {
	w.Helper()
	id := w.control.Submit(fmt.Sprintf("steps:\n- shell: bat\n  script: |\n    echo begun>\"%s\\begun\"\n    ping -n %d 127.0.0.1\n    echo done\n", w.home(), seconds+1))
	w.await(bootLimit, "the build's step runs", func() bool { return strings.Contains(w.read("begun"), "begun") })
	if err := os.Remove(w.path("begun")); err != nil {
		w.Fatal(err)
	}
	return id
}

// polled waits for a poll after mark.
func (w *wine) polled(mark int) time.Time {
	w.Helper()
	q, ok := w.rec.WaitFor(bootLimit, mark, lab.Ask)
	if !ok {
		w.Fatalf("no poll within %v", bootLimit)
	}
	return q.At
}

// registry is what is under the key of a service or event source, value by value as reg.exe prints it.
func (w *wine) registry(key string) map[string]string {
	w.Helper()
	out, code := w.run("reg", "query", `HKLM\`+key)
	if code != 0 {
		return nil
	}
	values := map[string]string{}
	for line := range strings.Lines(out) {
		if f := strings.SplitN(strings.TrimSpace(line), "    ", 3); len(f) == 3 {
			values[strings.ToLower(f[0])] = f[2]
		}
	}
	return values
}

// TestWineServiceLife: registered as a package would, started, killed, restarted, stopped, removed without a trace.
func TestWineServiceLife(t *testing.T) {
	w := newWine(t, "life").recorded()
	for range 2 { // again: no error, and nothing changed
		w.agent("install", "--no-start")
	}
	want := service.WindowsService(wineService, service.Setup{Home: wineHome, Drain: 10 * time.Minute})
	for _, v := range want.Registry() {
		data := fmt.Sprint(v.Data)
		switch d := v.Data.(type) {
		case uint32:
			data = fmt.Sprintf("0x%x", d)
		case []byte:
			data = fmt.Sprintf("%X", d)
		}
		if got := w.registry(v.Key)[strings.ToLower(v.Name)]; got != data {
			t.Errorf("%s of %s is %q, want %q", v.Name, v.Key, got, data)
		}
	}
	if word := w.read(".install_type"); word != "SERVICE" {
		t.Errorf(".install_type is %q", word)
	}
	if got := w.state(); got != "STOPPED" {
		t.Fatalf("the service is %s after install --no-start", got)
	}

	for range 2 {
		w.agent("start")
	}
	w.polled(0)
	if got := w.state(); got != "RUNNING" {
		t.Errorf("the service is %s", got)
	}

	var times []time.Duration
	for range 20 {
		<-time.After(300 * time.Millisecond)
		pid, mark := w.pid("devopsAgent.exe"), w.rec.Mark()
		at := w.signal(pid, syscall.SIGKILL)
		q, ok := w.rec.Wait(bootLimit, mark, func(q lab.Request) bool { return q.At.After(at) })
		if !ok {
			t.Fatalf("no request within %v of kill %d", bootLimit, len(times)+1)
		}
		times = append(times, q.At.Sub(at))
	}
	slices.Sort(times)
	number(t, "kill of the agent to the next request, %d times: median %d ms, worst %d ms", len(times),
		times[len(times)/2].Milliseconds(), times[len(times)-1].Milliseconds())
	if worst := times[len(times)-1]; worst > 10*time.Second {
		t.Errorf("worst %v", worst)
	}

	before, mark := w.pid("devopsAgent.exe"), w.rec.Mark()
	w.agent("restart")
	w.polled(mark)
	if w.pid("devopsAgent.exe") == before {
		t.Error("the same agent after a restart")
	}

	for range 2 {
		w.agent("stop")
		if got := w.state(); got != "STOPPED" {
			t.Errorf("the service is %s after stop", got)
		}
	}
	w.await(bootLimit, "no process of ours is left", func() bool { return len(w.pids("devops")) == 0 })

	w.agent("start")
	w.polled(w.rec.Mark())
	for range 2 {
		w.agent("uninstall")
	}
	if got := w.state(); got != "ABSENT" {
		t.Errorf("the service is %s after uninstall", got)
	}
	if out, _ := w.run("reg", "query", `HKLM\SYSTEM\CurrentControlSet\Services`, "/s", "/f", wineService); strings.Contains(out, wineService) {
		t.Errorf("left in the registry: %s", out)
	}
	w.await(bootLimit, "no process of ours is left", func() bool { return len(w.pids("devops")) == 0 })
	for _, name := range []string{".agent.properties", "devopsAgent.exe", "workspace"} {
		if _, err := os.Stat(w.path(name)); err != nil {
			t.Errorf("home did not stay as it was: %v", err)
		}
	}
	if _, err := os.Stat(w.path(".keeper")); err == nil {
		t.Error(".keeper is there after uninstall")
	}
}

// TestWineStopWaitsForBuilds: a stop by Windows' own tools drains; what the agent cannot wait for is stopped and reported.
func TestWineStopWaitsForBuilds(t *testing.T) {
	w := newWine(t, "drain").controlled()
	w.agent("install")
	name := regexp.MustCompile(`devops_agent_\w+`).FindString(w.agent("status"))
	id := w.begin(8)
	begun := time.Now()
	if out, code := w.run("sc", "stop", name); code != 0 {
		t.Errorf("sc stop: %s", out)
	}
	w.await(bootLimit, "everything has ended", func() bool { return len(w.pids("devops")) == 0 })
	seen := w.control.Over(bootLimit, id)
	if seen.State != "succeeded" || seen.Report == nil || !seen.Report.Success {
		t.Errorf("the build is %s, reported %+v", seen.State, seen.Report)
	}
	number(t, "stop during a build of 8 s: ended after %.1f s", time.Since(begun).Seconds())

	w.write("agent.toml", "[drain]\ntimeout = \"2s\"\n")
	w.agent("start")
	id = w.begin(60)
	begun = time.Now()
	w.agent("stop")
	took := time.Since(begun)
	seen = w.control.Over(bootLimit, id)
	if seen.State != "failed" || seen.Report == nil || !strings.Contains(seen.Report.Message, "2s") {
		t.Errorf("the build is %s, reported %+v; want a failure that says how long was waited", seen.State, seen.Report)
	}
	if took < 2*time.Second || took > 15*time.Second {
		t.Errorf("the stop took %v with drain.timeout 2s", took)
	}
	number(t, "stop with drain.timeout 2 s: %.1f s", took.Seconds())
	w.await(bootLimit, "nothing of the build is left", func() bool {
		return !strings.Contains(w.box("pids", w.name, "ping"), "ping") && len(w.pids("devops")) == 0
	})
}

// TestWineBuildSurvivesAgentAndDaemon: neither a killed agent nor a killed daemon ends a build.
func TestWineBuildSurvivesAgentAndDaemon(t *testing.T) {
	w := newWine(t, "survive").controlled()
	w.agent("install")
	name := regexp.MustCompile(`devops_agent_\w+`).FindString(w.agent("status"))
	id := w.begin(15)
	w.signal(w.pid("devopsAgent.exe"), syscall.SIGKILL)
	agent := w.pid("devopsAgent.exe")
	daemon := w.pid("devopsDaemon.exe")
	w.signal(daemon, syscall.SIGKILL) // Windows would start the service again: Wine has no recovery actions
	w.await(bootLimit, "the service manager has noticed", func() bool { out, _ := w.run("sc", "query", name); return strings.Contains(out, "STOPPED") })
	if _, code := w.run("sc", "start", name); code != 0 {
		t.Fatal("sc start failed")
	}
	w.await(bootLimit, "a daemon has adopted the agent", func() bool { return strings.Contains(w.read("logs", "devopsDaemon.log"), "Agent runs already") })
	if got := w.pid("devopsAgent.exe"); got != agent {
		t.Errorf("agent %d, was %d before its daemon was killed", got, agent)
	}
	seen := w.control.Over(60*time.Second, id)
	if seen.State != "succeeded" || seen.HandOuts != 1 {
		t.Errorf("the build is %s after %d hand-outs, reported %+v", seen.State, seen.HandOuts, seen.Report)
	}
	w.agent("stop") // an adopted agent stops as well
	w.await(bootLimit, "everything has ended", func() bool { return len(w.pids("devops")) == 0 })
}

// TestWineHungAgentIsReplaced within a minute.
func TestWineHungAgentIsReplaced(t *testing.T) {
	t.Parallel()
	w := newWine(t, "hang").recorded()
	w.agent("install")
	w.polled(0)
	w.await(bootLimit, "the agent is ready", func() bool { return strings.Contains(w.agent("status"), "working") })
	pid, mark := w.pid("devopsAgent.exe"), w.rec.Mark()
	at := w.signal(pid, syscall.SIGSTOP)
	q, ok := w.rec.Wait(75*time.Second, mark, func(q lab.Request) bool { return q.At.After(at) })
	if !ok {
		_ = syscall.Kill(pid, syscall.SIGCONT)
		t.Fatal("not replaced within 75 s")
	}
	number(t, "SIGSTOP to the next agent's request: %.1f s", q.At.Sub(at).Seconds())
	if took := q.At.Sub(at); took > 60*time.Second {
		t.Errorf("replaced after %v", took)
	}
	w.await(bootLimit, "the hung one is gone", func() bool { return !slices.Contains(w.pids("devopsAgent.exe"), pid) })
	w.agent("stop")
}

// TestWineRemovedAgentStaysDown: with its upgrader the service goes as well; without, exit code 88 ends the service as stopped
// and not as failed, for which Windows would start it again.
func TestWineRemovedAgentStaysDown(t *testing.T) {
	t.Parallel()
	w := newWine(t, "removed").recorded()
	w.agent("install")
	w.polled(0)
	for _, name := range []string{"upgrader.exe", "tmp/upgrader.exe"} {
		if err := os.Rename(w.path(name), w.path(name+".aside")); err != nil {
			t.Fatal(err)
		}
	}
	w.rec.SetStatus("DELETE")
	w.await(60*time.Second, "the service has stopped", func() bool { return w.state() == "STOPPED" })
	w.await(bootLimit, "everything has ended", func() bool { return len(w.pids("devops")) == 0 })
	if out, _ := w.run("sc", "query", wineService); !strings.Contains(out, "WIN32_EXIT_CODE    : 0 ") || !strings.Contains(out, "SERVICE_EXIT_CODE  : 0 ") {
		t.Errorf("the service failed, so that Windows would start it again: %s", out)
	}
	if out, _ := w.run(wineHome+`\devopsAgent.exe`, "status"); !strings.Contains(out, "removed") {
		t.Errorf("status: %s", out)
	}
	for _, name := range []string{"upgrader.exe", "tmp/upgrader.exe"} {
		if err := os.Rename(w.path(name+".aside"), w.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	w.agent("start") // who starts it by hand means it; and is told DELETE again
	w.await(60*time.Second, "the service is gone", func() bool { return w.state() == "ABSENT" })
	w.await(bootLimit, "everything has ended", func() bool { return len(w.pids("devops")) == 0 })
}

// TestWineRefusesAHomeThatOthersCanChange: by every door, with the command that closes it.
func TestWineRefusesAHomeThatOthersCanChange(t *testing.T) {
	t.Parallel()
	w := newWine(t, "open").recorded()
	w.agent("install", "--no-start")
	if err := os.Chmod(w.path(), 0o777); err != nil { //nolint:gosec // that is the point
		t.Fatal(err)
	}
	out, code := w.run(wineHome+`\devopsAgent.exe`, "start")
	if code == 0 || !strings.Contains(out, "Everyone") || !strings.Contains(out, `icacls "C:\build agent"`) {
		t.Errorf("start: exit code %d: %s", code, out)
	}
	_, _ = w.run("sc", "start", wineService)
	w.await(bootLimit, "the service has refused", func() bool {
		return w.state() == "STOPPED" && strings.Contains(w.read("logs", "devopsDaemon.log"), "refuses")
	})
	if out, _ := w.run("sc", "query", wineService); !strings.Contains(out, "WIN32_EXIT_CODE    : 0") {
		t.Errorf("Windows would start it again: %s", out)
	}
	if len(w.rec.All()) > 0 || len(w.pids("devopsAgent.exe")) > 0 {
		t.Error("an agent ran from a home that others can change")
	}
	w.agent("install") // closes it again
	w.polled(0)
	w.agent("stop")
}

// TestWineStartsWithTheMachine: a power cut, and the agent is back.
func TestWineStartsWithTheMachine(t *testing.T) {
	t.Parallel()
	w := newWine(t, "boot").recorded()
	w.agent("install")
	w.polled(0)
	// Windows starts delayed services two minutes after the others.
	if out, code := w.run("reg", "add", `HKLM\SYSTEM\CurrentControlSet\Control`, "/v", "AutoStartDelay", "/t", "REG_DWORD", "/d", "1000", "/f"); code != 0 {
		t.Fatalf("reg add: %s", out)
	}
	w.box("reboot", w.name)
	w.polled(w.rec.Mark())
	w.agent("stop")
}

// TestWineSession: the daemon is out of reach of the user as whom the agent runs. In Wine somebody is always logged on.
func TestWineSession(t *testing.T) {
	t.Parallel()
	w := newWine(t, "session").recorded()
	w.agent("install", "session")
	w.polled(0)
	if word := w.read(".install_type"); word != "SESSION" {
		t.Errorf(".install_type is %q", word)
	}
	image := w.registry(`SYSTEM\CurrentControlSet\Services\` + wineService)["imagepath"]
	if want := `"C:\Program Files\devops-agent\` + wineService + `\devopsDaemon.exe" session --home "C:\build agent"`; image != want {
		t.Errorf("the service is %s, want %s", image, want)
	}
	if log := w.read("logs", "devopsDaemon.log"); !strings.Contains(log, "Agent starts in the session of a user") {
		t.Errorf("the agent was not started in a session: %s", log)
	}
	before, mark := w.pid("devopsAgent.exe"), w.rec.Mark()
	w.signal(before, syscall.SIGKILL)
	w.polled(mark)
	if out := w.agent("status"); !strings.Contains(out, "running") {
		t.Errorf("status: %s", out)
	}
	w.agent("install", "session") // again, while the copy of the daemon runs
	w.agent("stop")
	w.await(bootLimit, "everything has ended", func() bool { return len(w.pids("devops")) == 0 })
	w.agent("uninstall")
	if left, err := os.ReadDir(filepath.Join(w.disk, "Program Files", "devops-agent")); err == nil && len(left) > 0 {
		t.Errorf("the copy of the daemon is left: %v", left)
	}
}

// TestWineInstallOverAnOlderService: one without quotes, and nothing in home that says so, as the original's scripts make it.
func TestWineInstallOverAnOlderService(t *testing.T) {
	t.Parallel()
	w := newWine(t, "original").recorded()
	if out, code := w.run("sc", "create", wineService, `binPath=`, wineHome+`\devopsDaemon.exe service`, "start=", "auto"); code != 0 {
		t.Fatalf("sc create: %s", out)
	}
	if out, code := w.run("sc", "start", wineService); code != 0 {
		t.Fatalf("sc start: %s", out)
	}
	w.polled(0)
	if out := w.agent("install", "--no-start"); !strings.Contains(out, wineService) {
		t.Errorf("install over it: %s", out)
	}
	if image := w.registry(`SYSTEM\CurrentControlSet\Services\` + wineService)["imagepath"]; !strings.HasPrefix(image, `"`) {
		t.Errorf("the path is not quoted after install: %s", image)
	}
	w.agent("uninstall")
	if got := w.state(); got != "ABSENT" {
		t.Errorf("the service is %s after uninstall", got)
	}
}

// TestWinePackages runs the unit tests of the folders that differ on Windows, on Windows.
func TestWinePackages(t *testing.T) {
	w := newWine(t, "packages")
	root, err := lab.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{"./windows", "./service", "./service/control", "./service/proc", "./upgrader/swap", "./upgrader/internal/powercut", "./upgrader/journal", "./upgrader/unpack", "./upgrader/trust", "./upgrader/fetch", "./agent/config", "./cmd/daemon"} {
		t.Run(strings.TrimPrefix(folder, "./"), func(t *testing.T) {
			cmd := exec.Command("go", "test", "-count=1", "-timeout", "8m", "-exec", w.tool+" run "+w.name, folder)
			cmd.Dir = root
			cmd.Env = append(os.Environ(), "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
