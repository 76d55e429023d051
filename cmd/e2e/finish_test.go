//go:build linux

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

func finishScenarios() []scenario {
	return []scenario{
		both("how workers end", workerEnds, 59, 60, 61, 57),
		both("reports that are not accepted", refusedReports, 57),
		both("report pending over a restart", pendingReport, 57),
		both("restart with a running worker", restart, 103, 57, 34, 71, 21),
		both("jar restored", jarRestored, 63),
		both("jar missing, bad copy", jarMissing("garbage\n", "2128041"), 64),
		both("jar missing, empty copy", jarMissing("", "2128041"), 64),
		both("jar missing, copy is a directory", jarMissing("-", "2128041"), 64),
		both("jar missing, no copy", jarMissing("none", "2128042"), 64),
		both("no java", startFault("2128044", func(w *world) []string {
			_ = os.Remove(w.home.Path("jdk", "bin", "java"))
			return nil
		}), 65),
		both("no JDK at all", startFault("2128044", func(w *world) []string {
			_ = os.RemoveAll(w.home.Path("jdk"))
			return nil
		}), 65),
		both("java is not executable", startFault("2128044", func(w *world) []string {
			_ = os.Remove(w.home.Path("jdk", "bin", "java"))
			w.home.Write("jdk/bin/java", "no program\n")
			return nil
		}), 65),
		both("no shell", startFault("2128044", func(w *world) []string {
			data, _ := os.ReadFile(w.home.Path(".agent.properties"))
			w.home.Write(".agent.properties", strings.ReplaceAll(string(data), "detect.shell=false", "detect.shell=true"))
			return []string{"SHELL=/nowhere/shell"}
		}), 65),
		both("unwritable scripts", startFault("2128045", nil), 65),
		both("build_tmp cannot be made", startFault("2128043", func(w *world) []string {
			w.home.Write("build_tmp", "a file\n")
			return nil
		}), 65),
		both("docker jobs", dockerJobs, 67, 68, 113),
	}
}

// workerEnds: with an error text, killed, with a bad exit code, and with its login shell killed (protocol §6.6).
func workerEnds(s *S) {
	w := s.world(lab.HomeOptions{})
	failing, killed, code255, shell := lab.NewBuild(), lab.NewBuild(), lab.NewBuild(), lab.NewBuild()
	w.home.Work(&failing, `printf 'disk is full: ü' >"$error"`)
	w.home.Die(killed)
	w.home.Work(&code255, `code=255`)
	w.home.Work(&shell, `kill -9 $(cat "$run/parent.pid")`)
	w.rec.Queue(failing, killed, code255, shell)
	w.start()

	q := w.mustFinish(60*time.Second, failing)
	w.failed(59, q, "2128040")
	message, _ := q.Get("message").(string)
	s.check(59, strings.Contains(message, "disk is full: ü"), "message is %q", message)
	s.check(59, q.At.Sub(w.home.Run(failing).Ended()) <= 4*time.Second, "reported %v after the end, want no delay", q.At.Sub(w.home.Run(failing).Ended()))

	q = w.mustFinish(60*time.Second, killed)
	w.failed(60, q, "2128040")
	message, _ = q.Get("message").(string)
	s.check(60, message != "", "no message about a killed worker")
	s.check(60, strings.Contains(message, strings.TrimSpace(w.home.Run(killed).File("prefilled"))), "message %q does not hold the text of the error file, %q", message, w.home.Run(killed).File("prefilled"))

	q = w.mustFinish(60*time.Second, code255)
	s.check(61, q.Get("success") == true && q.JSON()["error"] == nil, "exit code 255 and an empty error file: %v", q)
	s.check(61, q.At.Sub(w.home.Run(code255).Ended()) >= 7900*time.Millisecond, "success was reported %v after the end, want 8 s", q.At.Sub(w.home.Run(code255).Ended()))
	q = w.mustFinish(60*time.Second, shell)
	s.check(61, q.Get("success") == true, "the worker killed its login shell and left the error file empty: %v", q)
	w.watch(5 * time.Second)
	for _, b := range []lab.Build{failing, killed, code255, shell} {
		s.check(57, len(w.rec.Finishes(b.ID)) == 1, "%d reports for one job", len(w.rec.Finishes(b.ID)))
	}
	w.alive(60)
}

// refusedReports: every report fails in its own way first.
func refusedReports(s *S) {
	w := s.world(lab.HomeOptions{Set: map[string]string{"devops.parallel.task.count": "0", "devops.agent.request.timeout.sec": "3"}})
	later := lab.JSON(503, map[string]any{"status": 503})
	later.Header = http.Header{"Retry-After": {"2"}}
	cases := []struct {
		name    string
		answers []lab.Answer
	}{
		{"closed connection", []lab.Answer{{Drop: true}, {Drop: true}}},
		{"500", []lab.Answer{lab.JSON(500, map[string]any{"status": 500}), later}},
		{"HTML and half a body", []lab.Answer{{Body: []byte("<html>")}, {Body: []byte(`{"status":0`), Cut: true}}},
		{"no answer", []lab.Answer{{Hang: true}}},
	}
	builds := make([]lab.Build, len(cases))
	tries := map[string]int{}
	byID := map[string][]lab.Answer{}
	for i, c := range cases {
		builds[i] = lab.NewBuild()
		w.home.Work(&builds[i], `echo bad >"$error"`) // reported without the 8 s
		byID[builds[i].ID] = c.answers
	}
	turn := make(chan struct{}, 1)
	w.rec.On(lab.Finish, func(q lab.Request) *lab.Answer {
		id, _ := q.Get("buildId").(string)
		turn <- struct{}{}
		defer func() { <-turn }()
		n := tries[id]
		tries[id]++
		if n < len(byID[id]) {
			return &byID[id][n]
		}
		return nil
	})
	w.rec.Queue(builds...)
	w.start()
	deadline := time.Now().Add(150 * time.Second)
	for i, c := range cases {
		q, ok := w.finish(time.Until(deadline), builds[i])
		if s.check(57, ok, "%s: the report was not repeated: %d tries", c.name, len(w.rec.Finishes(builds[i].ID))) {
			w.failed(57, q, "2128040")
		}
	}
	w.watch(15 * time.Second)
	for i, c := range cases {
		s.check(57, w.rec.Accepted(builds[i].ID) == 1, "%s: %d reports were accepted", c.name, w.rec.Accepted(builds[i].ID))
		s.check(57, len(w.rec.Finishes(builds[i].ID)) == len(c.answers)+1, "%s: %d reports, want %d", c.name, len(w.rec.Finishes(builds[i].ID)), len(c.answers)+1)
	}
	w.alive(57)
}

// pendingReport: the server is deaf for reports, the agent is killed, its successor delivers.
func pendingReport(s *S) {
	w := s.world(lab.HomeOptions{})
	build := lab.NewBuild()
	w.home.Work(&build, `echo bad >"$error"`)
	w.rec.Always(lab.Finish, lab.Answer{Drop: true})
	w.rec.Queue(build)
	w.start()
	if !w.rec.WaitN(60*time.Second, lab.Finish, 1) {
		s.Fatalf("no report; output: %s", w.agent.Output())
	}
	w.agent.Kill()
	w.rec.On(lab.Finish, nil)
	w.start()
	q, ok := w.finish(60*time.Second, build)
	if s.check(57, ok, "a report that was pending at kill -9 is lost") {
		w.failed(57, q, "2128040")
	}
	w.watch(10 * time.Second)
	s.check(57, w.rec.Accepted(build.ID) == 1, "%d reports were accepted", w.rec.Accepted(build.ID))
}

// restart: kill -9 of the agent while a worker runs; the next agent takes over.
func restart(s *S) {
	w := s.world(lab.HomeOptions{Set: map[string]string{"devops.parallel.task.count": "1"}})
	first, second := lab.NewBuild(), lab.NewBuild()
	open := w.home.Gate(first)
	w.rec.Queue(first)
	w.start()
	w.mustBegin(pollLimit, first)
	pid := w.home.Run(first).Pid()
	w.agent.Kill()
	files := []string{"devops_agent_start_lab_" + first.ID + "_1.sh", "devops_agent_prepare_start_lab_" + first.ID + "_1.sh", "build_tmp/" + first.Key() + "_build_msg.log"}
	w.home.Write("logs/"+first.Key()+"_agent.log", "a line of the worker\n")
	for _, name := range files {
		if s.check(71, w.home.Has(name), "%s is not there while the worker runs", name) {
			w.home.Age(name, 9*24*time.Hour)
		}
	}
	s.check(103, !lab.Eventually(3*time.Second, func() bool { return !lab.Running(pid) }), "the worker died with its agent")

	w.start()
	mark := w.rec.Mark()
	w.rec.Queue(second)
	listed, ok := w.rec.Wait(25*time.Second, mark, func(q lab.Request) bool { return q.Endpoint == w.beat() })
	if ok {
		tasks, _ := w.heartbeat(listed)["taskList"].([]any)
		s.check(21, len(tasks) == 1 && lab.Dig(tasks[0], "buildId") == first.ID, "taskList of the next agent is %v, want the job that still runs", tasks)
	}
	w.watch(12 * time.Second)
	s.check(34, w.home.Run(second).Starts() == 0, "limit 1, a worker of the agent before still runs, and a second one was started")
	s.check(103, lab.Running(pid), "the next agent killed the worker")
	for _, name := range files {
		s.check(71, w.home.Has(name), "%s of a running job was deleted", name)
	}
	open()
	q, ok := w.finish(60*time.Second, first)
	if s.check(57, ok, "a job that outlived its agent was not reported") {
		s.check(57, q.Get("success") == true, "a job that outlived its agent: %v", q)
	}
	q, ok = w.finish(90*time.Second, second)
	s.check(34, ok && q.Get("success") == true, "the next job did not run: %v", q)
	s.check(57, w.rec.Accepted(first.ID) == 1, "%d reports were accepted", w.rec.Accepted(first.ID))
	w.alive(103)
}

func jarRestored(s *S) {
	w := s.world(lab.HomeOptions{NoJar: true})
	w.home.Write("tmp/worker-agent.jar", lab.WorkerVersion+"\n")
	build := lab.NewBuild()
	w.rec.Queue(build)
	w.start()
	q := w.mustFinish(60*time.Second, build)
	s.check(63, q.Get("success") == true, "the job failed: %v", q)
	data, _ := os.ReadFile(w.home.Path("worker-agent.jar"))
	s.check(63, string(data) == lab.WorkerVersion+"\n", "worker-agent.jar holds %q", data)
	s.check(63, w.home.Run(build).Starts() == 1, "%d workers", w.home.Run(build).Starts())
	w.alive(63)
}

func jarMissing(copied, code string) func(*S) {
	return func(s *S) {
		w := s.world(lab.HomeOptions{NoJar: true})
		switch copied {
		case "none":
		case "-":
			w.home.Write("tmp/worker-agent.jar/file", "")
		default:
			w.home.Write("tmp/worker-agent.jar", copied)
		}
		build := lab.NewBuild()
		w.rec.Queue(build)
		w.start()
		q := w.mustFinish(60*time.Second, build)
		w.failed(64, q, code)
		// An agent that has lost its worker may end itself with 88 (protocol §1.6.11); a second report would come within 10 s.
		if exit, err := w.agent.Wait(12 * time.Second); err == nil {
			s.check(64, exit == 88, "the agent ended with code %d; output: %s", exit, w.agent.Output())
		}
		s.check(64, len(w.rec.Finishes(build.ID)) == 1, "%d reports, want one", len(w.rec.Finishes(build.ID)))
		s.check(64, w.home.Run(build).Starts() == 0, "a worker was started without a jar")
	}
}

// startFault prepares a home in which a worker cannot be started.
func startFault(code string, prepare func(*world) (env []string)) func(*S) {
	return func(s *S) {
		w := s.world(lab.HomeOptions{})
		build := lab.NewBuild()
		var env []string
		if prepare != nil {
			env = prepare(w)
		} else {
			for _, kind := range []string{"start", "prepare_start"} { // directories where the scripts belong
				w.home.Write(fmt.Sprintf("devops_agent_%s_lab_%s_1.sh/file", kind, build.ID), "")
			}
		}
		w.rec.Queue(build)
		w.start(env...)
		q := w.mustFinish(60*time.Second, build)
		w.failed(65, q, code)
		message, _ := q.Get("message").(string)
		s.check(65, message != "", "no message that says what is wrong: %v", q)
		if exit, err := w.agent.Wait(10 * time.Second); err == nil {
			s.check(65, false, "the agent ended with code %d", exit)
		}
		s.check(65, len(w.rec.Finishes(build.ID)) == 1, "%d reports, want one", len(w.rec.Finishes(build.ID)))
		s.check(65, w.home.Run(build).Starts() == 0, "a worker was started all the same")
	}
}

// dockerJobs asks for containers on a machine without docker.
func dockerJobs(s *S) {
	w := s.world(lab.HomeOptions{})
	plain, refused := lab.NewDockerBuild(), lab.NewDockerBuild()
	refused.Docker.Credential = map[string]string{"user": "", "password": "", "errMsg": "no such ticket"}
	w.rec.Queue(plain, refused)
	// PATH without docker and podman, whatever this machine has.
	w.start("PATH=" + w.home.LabPath("bin"))
	q, ok := w.finish(60*time.Second, plain)
	if s.check(67, ok, "a docker job was not reported") {
		w.failed(67, q, "2128046", "2128049", "2128050", "2128051", "2128054")
	}
	q, ok = w.finish(60*time.Second, refused)
	if s.check(68, ok, "a docker job without credentials was not reported") {
		w.failed(68, q, "2128059")
	}
	s.check(67, w.home.Run(plain).Starts()+w.home.Run(refused).Starts() == 0, "a docker job was run on the host")
	s.check(67, w.rec.Accepted(plain.ID) == 1, "%d reports", w.rec.Accepted(plain.ID))
	lines := w.rec.Of(lab.LogLine, lab.LogRed, lab.LogYellow)
	s.check(113, true, "")
	if len(lines) == 0 {
		s.Logf("statement 113: no log line was sent, nothing to look at")
	}
	ids := []string{plain.ID, refused.ID}
	for _, q := range lines {
		s.check(113, slices.Contains(ids, q.Header.Get("X-DEVOPS-BUILD-ID")), "X-DEVOPS-BUILD-ID is %q: %v", q.Header.Get("X-DEVOPS-BUILD-ID"), q)
		s.check(113, q.Header.Get("X-DEVOPS-VM-SID") == "1", "X-DEVOPS-VM-SID is %q: %v", q.Header.Get("X-DEVOPS-VM-SID"), q)
		s.check(113, q.Get("tag") == "startVM-1", "tag is %v: %v", q.Get("tag"), q)
	}
	w.alive(67)
}
