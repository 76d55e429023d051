//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

func processScenarios() []scenario {
	return []scenario{
		both("second agent", secondAgent, 96, 97, 98),
		both("version", version, 104),
		both("properties over restarts", propertiesOverRestarts, 109),
		both("kill -9 while properties are rewritten", killWhileRewriting, 109),
		both("properties of the seed generation", originalProperties(seedProperties), 110),
		both("properties of the ask generation", originalProperties(askProperties), 110),
		both("properties from Windows", originalProperties("\ufeff"+strings.ReplaceAll(seedProperties, "\n", "\r\n")), 110),
	}
}

func secondAgent(s *S) {
	w := s.world(lab.HomeOptions{})
	w.start()
	pid, _ := os.ReadFile(w.home.Path("runtime", "agent.pid"))
	for range 3 {
		second := w.home.Start()
		code, err := second.Wait(15 * time.Second)
		s.check(96, err == nil, "the second agent keeps running")
		s.check(96, code == 0, "the second agent ended with code %d, want 0", code)
		second.Kill()
	}
	w.beats(1)
	s.check(96, len(w.rec.Of(lab.Startup)) == 1, "%d startup calls, want the first agent's only", len(w.rec.Of(lab.Startup)))
	after, _ := os.ReadFile(w.home.Path("runtime", "agent.pid"))
	s.check(97, bytes.Equal(pid, after) && string(pid) == fmt.Sprint(w.agent.Pid()), "agent.pid was %q, is %q, the agent has %d", pid, after, w.agent.Pid())
	s.check(98, !lockable(w.home.Path("runtime", "agent.lock")), "agent.lock can be taken after a second agent tried")
	w.alive(96)
}

func version(s *S) {
	w := s.world(lab.HomeOptions{Name: "with blank"})
	one := regexp.MustCompile(`^\S[^\n]*\n$`)
	run := func(name, path, dir string) {
		before, _ := os.ReadFile(w.home.LabPath("output"))
		a := w.home.StartProgram(path, dir, []string{"version"})
		code, err := a.Wait(10 * time.Second)
		out := strings.TrimPrefix(a.Output(), string(before))
		s.check(104, err == nil && code == 0, "%s version ended with code %d, %v; output %q", name, code, err, out)
		s.check(104, one.MatchString(out), "%s version printed %q, want one line", name, out)
	}
	run("devopsAgent", w.home.Path("devopsAgent"), w.home.Lab)
	s.check(104, !w.home.Has("runtime") && !w.home.Has("logs"), "version made runtime or logs")
	run("devopsAgent", w.home.Path("devopsAgent"), "/")
	if err := os.Remove(w.home.Path(".agent.properties")); err != nil {
		s.Fatalf("%v", err)
	}
	run("devopsAgent without properties", w.home.Path("devopsAgent"), w.home.Dir)
	if s.programs.Daemon != "" {
		run("devopsDaemon", s.programs.Daemon, w.home.Dir)
	}
	s.check(104, len(w.rec.All()) == 0, "version made requests: %v", w.rec.All())
	s.check(104, !w.home.Has("runtime/agent.lock"), "version touched the lock")

	busy := s.world(lab.HomeOptions{})
	busy.start()
	run("devopsAgent beside a running one", busy.home.Path("devopsAgent"), busy.home.Dir)
	busy.alive(104)
	s.check(104, len(busy.rec.Of(lab.Startup)) == 1, "version made requests")
}

// kept are the keys of protocol §2.2 with "written back: yes", with values that are not the defaults. The proxies are
// harmless: nothing here goes through one.
func kept() map[string]string {
	return map[string]string{
		"devops.project.id": "lab", "devops.parallel.task.count": "3", "landun.env": "TEST", "landun.fileGateway": "http://files3.lab.invalid",
		"devops.agent.request.timeout.sec": "7", "devops.agent.detect.shell": "true", "devops.agent.ignoreLocalIps": "127.0.0.1,10.9.9.9",
		"devops.agent.logs.keep.hours": "55", "devops.docker.parallel.task.count": "2", "devops.docker.enable": "false", "devops.language": "en_US",
		"devops.imagedebug.portrange": "31000-31010", "devops.pipeline.enable": "true", "devops.mcp.server.port": "0",
		"NO_PROXY": "127.0.0.1,localhost",
	}
}

func propertiesOverRestarts(s *S) {
	want := kept()
	w := s.world(lab.HomeOptions{Set: want})
	w.rec.Reply(map[string]any{"envs": map[string]any{"NO_PROXY": "127.0.0.1,localhost"}, "props": map[string]any{"enablePipeline": true}})
	want["devops.agent.id"], want["devops.agent.secret.key"], want["landun.gateway"] = w.home.Agent, w.home.Secret, w.rec.URL
	text, _ := os.ReadFile(w.home.Path(".agent.properties"))
	w.home.Write(".agent.properties", "# a comment of the operator\n"+string(text)+"my.own.key=mine\n")
	for i := range 4 {
		w.start()
		w.beats(1)
		if i%2 == 0 {
			w.agent.Kill()
		} else if err := w.agent.Term(); err == nil {
			if _, err := w.agent.Wait(30 * time.Second); err != nil {
				s.Fatalf("after SIGTERM: %v", err)
			}
		}
		got := w.home.ReadProperties()
		for key, value := range want {
			s.check(109, got[key] == value, "after start %d %s is %q, want %q", i+1, key, got[key], value)
		}
		s.check(109, got["devops.agent.collectorOn"] == "false", "collectorOn is %q after start %d (weakness W-10)", got["devops.agent.collectorOn"], i+1)
		s.check(109, got["my.own.key"] == "mine", "an unknown key is lost")
	}
	final, _ := os.ReadFile(w.home.Path(".agent.properties"))
	s.check(109, bytes.Contains(final, []byte("# a comment of the operator")), "a comment is lost")
	info, err := os.Stat(w.home.Path(".agent.properties"))
	s.check(109, err == nil && info.Mode().Perm() == 0o600, "mode %v, want 0600", info.Mode().Perm())
}

// killWhileRewriting starts agents on a file without the optional keys, which they add, and kills each within 60 ms.
func killWhileRewriting(s *S) {
	w := s.world(lab.HomeOptions{})
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test
	original, _ := os.ReadFile(w.home.Path(".agent.properties"))
	for i := range 60 {
		if i%5 == 0 {
			w.home.Write(".agent.properties", string(original)) // so that there is something to add again
		}
		a := w.home.Start()
		_, _ = a.Wait(time.Duration(random.IntN(60)) * time.Millisecond)
		a.Kill()
		got := w.home.ReadProperties()
		if got["devops.agent.id"] != w.home.Agent || got["devops.agent.secret.key"] != w.home.Secret || got["landun.gateway"] != w.rec.URL {
			backup, _ := os.ReadFile(w.home.Path(".agent.properties.bak"))
			bak := lab.ParseProperties(backup)
			s.check(109, bak["devops.agent.id"] == w.home.Agent && bak["devops.agent.secret.key"] == w.home.Secret,
				"kill %d: the identity is neither in .agent.properties (%v) nor in .bak (%v)", i, len(got), len(bak))
		}
	}
	w.start()
	startups := w.rec.Of(lab.Startup)
	s.check(109, startups[len(startups)-1].Header.Get("X-DEVOPS-AGENT-ID") == w.home.Agent, "another identity after 60 kills")
	s.check(109, w.home.Property("devops.agent.id") == w.home.Agent, "the identity is lost after 60 kills")
	w.alive(109)
}

// What the two generations of the original leave behind (protocol §2.2), with placeholders.
const seedProperties = `devops.project.id=PROJECT
devops.agent.id=AGENT
devops.agent.secret.key=SECRET
landun.gateway=GATEWAY
landun.fileGateway=http://files.lab.invalid
devops.parallel.task.count=4
landun.env=PROD
devops.slave.user=
devops.agent.request.timeout.sec=5
devops.agent.detect.shell=false
devops.agent.ignoreLocalIps=127.0.0.1
devops.agent.logs.keep.hours=96
devops.agent.jdk.dir.path=JDK
devops.docker.parallel.task.count=4
devops.docker.enable=false
devops.language=zh_CN
devops.imagedebug.portrange=30000-32767
`

const askProperties = `devops.project.id            = PROJECT
devops.agent.id              = AGENT
devops.agent.secret.key      = SECRET
landun.gateway               = GATEWAY
landun.fileGateway           = http://files.lab.invalid
devops.parallel.task.count   = 4
landun.env                   = PROD
devops.slave.user            = 
devops.agent.request.timeout.sec = 5
devops.agent.detect.shell    = false
devops.agent.ignoreLocalIps  = 127.0.0.1,10.0.0.0/8
devops.agent.logs.keep.hours = 96
devops.agent.jdk.dir.path    = JDK
devops.agent.jdk17.dir.path  = JDK
devops.docker.parallel.task.count = 4
devops.docker.enable         = false
devops.language              = zh_CN
devops.imagedebug.portrange  = 30000-32767
devops.pipeline.enable       = false
devops.mcp.server.port       = 0
HTTP_PROXY                   = 
HTTPS_PROXY                  = 
NO_PROXY                     = 
`

// originalProperties starts our agent on a file of the original, and looks whether the original could read ours.
func originalProperties(text string) func(*S) {
	return func(s *S) {
		w := s.world(lab.HomeOptions{File: "x=y\n"})
		w.home.Write(".agent.properties", strings.NewReplacer("PROJECT", w.home.Project, "AGENT", w.home.Agent, "SECRET", w.home.Secret,
			"GATEWAY", w.rec.URL, "JDK", w.home.Path("jdk")).Replace(text))
		build := lab.NewBuild()
		w.rec.Queue(build)
		w.start()
		first := w.rec.All()[0]
		s.check(110, first.Header.Get("X-DEVOPS-AGENT-ID") == w.home.Agent && first.Header.Get("X-DEVOPS-AGENT-SECRET-KEY") == w.home.Secret,
			"the identity was not read: %v", first.Header)
		w.mustFinish(60*time.Second, build)
		w.rec.Reply(map[string]any{"language": "en_US"}) // one rewrite
		w.settle(110, "devops.language", "en_US")
		w.agent.Kill()

		data, err := os.ReadFile(w.home.Path(".agent.properties"))
		s.check(110, err == nil, "%v", err)
		seen := map[string]int{}
		for line := range strings.Lines(string(data)) {
			line = strings.TrimSpace(strings.TrimPrefix(line, "\ufeff"))
			if line == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
				continue
			}
			key, value, ok := strings.Cut(line, "=")
			s.check(110, ok && !strings.HasPrefix(line, "["), "no key=value: %q", line)
			s.check(110, !strings.ContainsAny(value, "\\"), "a backslash, which Java would take for an escape: %q", line)
			seen[strings.TrimSpace(key)]++
		}
		for _, key := range []string{"devops.project.id", "devops.agent.id", "devops.agent.secret.key", "landun.gateway", "landun.fileGateway",
			"devops.parallel.task.count", "landun.env", "devops.agent.request.timeout.sec", "devops.agent.detect.shell",
			"devops.agent.ignoreLocalIps", "devops.agent.logs.keep.hours", "devops.docker.parallel.task.count", "devops.docker.enable", "devops.language"} {
			s.check(110, seen[key] == 1, "%s is there %d times", key, seen[key])
		}
		for _, key := range []string{"devops.parallel.task.count", "devops.docker.parallel.task.count", "devops.agent.logs.keep.hours"} {
			s.check(110, regexp.MustCompile(`^[0-9]+$`).MatchString(w.home.Property(key)), "%s is %q", key, w.home.Property(key))
		}
	}
}
