//go:build linux

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

func beatScenarios() []scenario {
	return []scenario{
		both("pushed settings", pushedSettings, 22, 23, 24, 25, 32, 39, 34),
		both("pushed gateway", pushedGateway, 23),
		both("pushed environment", pushedEnvironment, 26, 27),
		both("unchanged settings", unchangedSettings, 28),
		both("DELETE from the server", deleted(false), 29, 44),
		both("DELETE from the server, no upgrader", deleted(true), 29, 44),
	}
}

// settle waits until a property has a value; limit counts from the last answered heartbeat.
func (w *world) settle(n int, key, want string) {
	ok := lab.Eventually(20*time.Second, func() bool { return w.home.Property(key) == want })
	w.check(n, ok, "%s is %q, want %q", key, w.home.Property(key), want)
}

// pushedSettings changes everything that a heartbeat can change, then sends what must change nothing.
func pushedSettings(s *S) {
	w := s.world(lab.HomeOptions{})
	w.start()
	w.beats(1)
	w.rec.Reply(map[string]any{"parallelTaskCount": 1, "dockerParallelTaskCount": 7, "fileGateway": "http://files2.lab.invalid",
		"language": "en_US", "props": map[string]any{"keepLogsHours": 50, "ignoreLocalIps": "127.0.0.1,10.99.98.97"}})
	mark := w.rec.Mark()
	beat, ok := w.rec.WaitFor(20*time.Second, mark, w.beat())
	if !ok {
		s.Fatalf("no heartbeat within 20 s")
	}
	persisted := func(n int, key, want string) {
		w.settle(n, key, want)
		s.check(n, time.Since(beat.At) <= 5500*time.Millisecond, "%s took until %v after the heartbeat, want 5 s", key, time.Since(beat.At))
	}
	persisted(22, "devops.parallel.task.count", "1")
	for key, want := range map[string]string{"devops.docker.parallel.task.count": "7", "landun.fileGateway": "http://files2.lab.invalid",
		"devops.language": "en_US", "devops.agent.logs.keep.hours": "50", "devops.agent.ignoreLocalIps": "127.0.0.1,10.99.98.97"} {
		persisted(23, key, want)
	}
	next, ok := w.rec.WaitFor(20*time.Second, beat.N+1, w.beat())
	if ok {
		said := w.heartbeat(next)
		s.check(22, said["parallelTaskCount"] == json.Number("1"), "the next heartbeat says parallelTaskCount %v", said["parallelTaskCount"])
		s.check(23, said["dockerParallelTaskCount"] == json.Number("7"), "the next heartbeat says dockerParallelTaskCount %v", said["dockerParallelTaskCount"])
	}

	// The new limit holds for the next claim.
	b1, b2 := lab.NewBuild(), lab.NewBuild()
	open1, open2 := w.home.Gate(b1), w.home.Gate(b2)
	w.rec.Queue(b1, b2)
	w.mustBegin(pollLimit, b1)
	mark = w.rec.Mark()
	w.watch(12 * time.Second)
	s.check(22, w.home.Run(b2).Starts() == 0, "a second worker was started though the limit is 1")
	s.check(34, w.home.Run(b2).Starts() == 0, "a second worker was started though the limit is 1")
	for i, kind := range w.kinds(mark) {
		if i == 0 {
			continue // may have left before the first worker counted
		}
		n := 39
		if s.mode == "split" {
			n = 32
		}
		s.check(n, kind == "DOCKER", "no host capacity, docker capacity 7, but asked for %q", kind)
	}
	s.check(32, s.mode == "ask" || len(w.kinds(mark)) > 0, "no claim for docker jobs while only host capacity is used up")
	s.check(39, true, "")
	env := w.home.Run(b1).Env()
	s.check(23, env["BK_CI_LOCALE_LANGUAGE"] == "en_US", "BK_CI_LOCALE_LANGUAGE is %q", env["BK_CI_LOCALE_LANGUAGE"])
	s.check(23, env["DEVOPS_FILE_GATEWAY"] == "http://files2.lab.invalid", "DEVOPS_FILE_GATEWAY is %q", env["DEVOPS_FILE_GATEWAY"])
	w.rec.Reply(map[string]any{"parallelTaskCount": 2})
	s.check(22, w.home.WaitBegan(30*time.Second, b2), "the limit was raised to 2, but the second job did not start")
	open1()
	open2()
	w.mustFinish(40*time.Second, b1)
	w.mustFinish(40*time.Second, b2)

	// Empty and missing: the old values stay.
	w.rec.ResetReply()
	w.rec.Reply(map[string]any{"gateway": "", "fileGateway": "", "language": "", "props": nil})
	w.beats(1)
	w.rec.Reply(map[string]any{"gateway": nil, "fileGateway": nil, "language": nil, "props": map[string]any{"ignoreLocalIps": "", "keepLogsHours": 0}})
	w.beats(1)
	for key, want := range map[string]string{"landun.gateway": w.rec.URL, "landun.fileGateway": "http://files2.lab.invalid",
		"devops.language": "en_US", "devops.agent.logs.keep.hours": "50", "devops.agent.ignoreLocalIps": "127.0.0.1,10.99.98.97"} {
		s.check(24, w.home.Property(key) == want, "%s is %q, want %q: empty values must change nothing", key, w.home.Property(key), want)
	}

	// Negative counts: not persisted, not in force.
	w.rec.Reply(map[string]any{"parallelTaskCount": -1, "dockerParallelTaskCount": -1})
	w.beats(2)
	s.check(25, w.home.Property("devops.parallel.task.count") == "2", "devops.parallel.task.count is %q after -1 was pushed", w.home.Property("devops.parallel.task.count"))
	s.check(25, w.home.Property("devops.docker.parallel.task.count") == "7", "devops.docker.parallel.task.count is %q after -1 was pushed", w.home.Property("devops.docker.parallel.task.count"))
	b3 := lab.NewBuild()
	w.rec.Queue(b3)
	_, ok = w.finish(40*time.Second, b3)
	s.check(25, ok, "no job is taken after -1 was pushed")
	w.alive(25)
	w.alive(24)
}

// pushedGateway moves the agent to another address of the same server. It may look there first.
func pushedGateway(s *S) {
	w := s.world(lab.HomeOptions{})
	second := lab.NewRecorder(s, lab.RecorderOptions{})
	w.start()
	w.beats(1)
	w.rec.Reply(map[string]any{"gateway": second.URL})
	mark := w.rec.Mark()
	beat, ok := w.rec.WaitFor(20*time.Second, mark, w.beat())
	if !ok {
		s.Fatalf("no heartbeat within 20 s")
	}
	if !s.check(23, second.WaitN(25*time.Second, w.poll(), 1) || len(second.All()) > 0, "nothing went to the new gateway within 25 s") {
		return
	}
	w.settle(23, "landun.gateway", second.URL)
	settled := w.rec.Mark()
	s.check(23, settled-beat.N <= 4, "%d more requests went to the old gateway: %v", settled-beat.N-1, w.rec.All()[beat.N+1:])
	w.watch(12 * time.Second)
	s.check(23, w.rec.Mark()-settled <= 1, "requests went to the old gateway after the new one was persisted: %v", w.rec.All()[settled:])
	s.check(23, len(second.Of(w.poll())) >= 2, "the new gateway is not polled: %v", second.All())
	build := lab.NewBuild()
	second.Queue(build)
	if !second.Until(60*time.Second, func() bool { return second.Accepted(build.ID) == 1 }) {
		s.check(23, false, "a job of the new gateway was not run and reported there")
	}
	w.alive(23)
}

// pushedEnvironment: envs reach the next workers; pipelines are switched on and off.
func pushedEnvironment(s *S) {
	w := s.world(lab.HomeOptions{})
	w.start("LAB_OWN=of the agent", "LAB_KEPT=kept")
	w.beats(1)
	w.rec.Reply(map[string]any{"envs": map[string]any{"LAB_PUSHED": `a b "c" $HOME 'd'`, "LAB_OWN": "of the server", "BK_CI_LOCALE_LANGUAGE": "ja_JP", "DEVOPS_FILE_GATEWAY": "pushed"},
		"props": map[string]any{"enablePipeline": true}})
	w.beats(2) // with the second the answer to the first has been dealt with
	build := lab.NewBuild()
	w.rec.Queue(build)
	w.mustFinish(60*time.Second, build)
	env := w.home.Run(build).Env()
	for name, want := range map[string]string{"LAB_PUSHED": `a b "c" $HOME 'd'`, "LAB_OWN": "of the server", "LAB_KEPT": "kept",
		"BK_CI_LOCALE_LANGUAGE": "ja_JP", "DEVOPS_FILE_GATEWAY": "pushed"} {
		s.check(26, env[name] == want, "%s is %q in the worker, want %q", name, env[name], want)
	}
	if s.mode == "split" {
		return
	}
	enabled := func(want bool) bool {
		_, ok := w.rec.Wait(15*time.Second, w.rec.Mark(), func(q lab.Request) bool {
			return q.Endpoint == lab.Ask && q.Get("askEnable", "pipeline") == want
		})
		return ok
	}
	s.check(27, enabled(true), "askEnable.pipeline is not true after enablePipeline was")
	w.rec.Reply(map[string]any{"props": map[string]any{"enablePipeline": false}})
	s.check(27, enabled(false), "askEnable.pipeline is not false after enablePipeline was")
	w.rec.Reply(map[string]any{"props": map[string]any{"enablePipeline": true}})
	s.check(27, enabled(true), "askEnable.pipeline is not true again")
	w.settle(27, "devops.pipeline.enable", "true")
	w.rec.Reply(map[string]any{"props": map[string]any{"keepLogsHours": 96}})
	s.check(27, enabled(false), "askEnable.pipeline is not false after enablePipeline went missing")
}

// unchangedSettings: a heartbeat that says what the file says rewrites nothing, however often; a change is one rewrite.
func unchangedSettings(s *S) {
	w := s.world(lab.HomeOptions{Set: map[string]string{"devops.agent.ignoreLocalIps": "127.0.0.1", "devops.agent.logs.keep.hours": "96",
		"devops.docker.parallel.task.count": "4"}})
	w.start()
	w.beats(1)
	w.rec.Reply(map[string]any{"gateway": w.rec.URL, "fileGateway": "http://files.lab.invalid", "language": "zh_CN", "envs": map[string]any{"A": "b"},
		"props": map[string]any{"keepLogsHours": 96, "ignoreLocalIps": "127.0.0.1"}})
	w.beats(1)
	w.watch(2 * time.Second)
	path := w.home.Path(".agent.properties")
	before := fileState(path)
	w.beats(3)
	w.watch(time.Second)
	s.check(28, fileState(path) == before, "rewritten though nothing changed: %s, then %s", before, fileState(path))
	w.rec.Reply(map[string]any{"language": "en_US"})
	w.settle(28, "devops.language", "en_US")
	w.watch(time.Second)
	before = fileState(path)
	w.beats(2)
	w.watch(time.Second)
	s.check(28, fileState(path) == before, "rewritten again after the change was in the file: %s, then %s", before, fileState(path))
}

// deleted: the server has removed the agent for good.
func deleted(noUpgrader bool) func(*S) {
	return func(s *S) {
		w := s.world(lab.HomeOptions{})
		n := 29
		if s.mode == "ask" {
			n = 44
			for _, status := range []string{"", "IMPORT_EXCEPTION", "UN_IMPORT", "DELETED", "delete"} {
				w.rec.Next(lab.Ask, lab.AgentOK(status, map[string]any{"heartbeat": nil, "build": nil, "upgrade": nil, "pipeline": nil, "debug": nil}))
			}
		}
		w.start()
		w.beats(1)
		if s.mode == "ask" && !noUpgrader {
			if !w.rec.Until(90*time.Second, func() bool { return w.rec.Left(lab.Ask) == 0 }) {
				s.Fatalf("asks ended")
			}
			w.watch(3 * time.Second)
			if !w.alive(n) {
				return
			}
		}
		if noUpgrader {
			if err := os.Remove(w.home.Path("tmp", "upgrader")); err != nil {
				s.Fatalf("%v", err)
			}
		}
		build := lab.NewBuild() // runs on: an uninstall leaves workers alone
		open := w.home.Gate(build)
		w.rec.Queue(build)
		w.mustBegin(60*time.Second, build)
		w.rec.SetStatus("DELETE")
		code, err := w.agent.Wait(90 * time.Second)
		if !s.check(n, err == nil, "the agent still runs 90 s after DELETE") {
			return
		}
		s.check(n, code == 88, "exit code %d, want 88; output: %s", code, w.agent.Output())
		s.check(n, lab.Running(w.home.Run(build).Pid()), "the running worker was killed")
		open()
		if noUpgrader {
			return
		}
		s.check(n, lab.Eventually(5*time.Second, func() bool { return len(w.home.UpgraderCalls()) > 0 }), "tmp/upgrader was not started")
		calls := w.home.UpgraderCalls()
		dir, _ := filepath.EvalSymlinks(w.home.Dir)
		if s.check(n, len(calls) == 1, "tmp/upgrader was started %d times", len(calls)) {
			s.check(n, slices.Equal(calls[0].Args, []string{"-action=uninstall"}) && calls[0].Dir == dir, "tmp/upgrader got %v in %s", calls[0].Args, calls[0].Dir)
		}
	}
}
