//go:build linux

package e2e

import (
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

func startupScenarios() []scenario {
	list := []scenario{
		ask("startup refused", startupRefused(lab.JSON(500, map[string]any{"status": 500}), lab.Answer{Drop: true}), 14),
		ask("startup without data", startupRefused(lab.OK(nil), lab.OK("")), 14),
		ask("startup with nonsense", startupRefused(lab.Answer{Body: []byte("<html>")}, lab.No(1, "no"), lab.OK(map[string]any{"a": 1})), 14),
		ask("startup refused with DELETE", startupRefused(lab.JSON(200, map[string]any{"status": 1, "data": "DELETE", "agentStatus": "DELETE"})), 14, 16),
		ask("startup that hangs", startupRefused(lab.Answer{Hang: true}), 14),
		split("DELETE before any startup succeeded", deleteBeforeStartup, 15),
		both("startup answers DELETE", startupDelete("DELETE"), 16),
		both("startup answers UN_IMPORT_OK", startupDelete("UN_IMPORT_OK"), 16),
		both("startup answers DELETE after a restart", startupDeleteAfterRestart, 16),
	}
	for name, o := range brokenProperties() {
		list = append(list, both("properties: "+name, invalidProperties(o), 17))
	}
	return list
}

// startupRefused answers the first startup calls badly.
func startupRefused(answers ...lab.Answer) func(*S) {
	return func(s *S) {
		w := s.world(lab.HomeOptions{Set: map[string]string{"devops.agent.request.timeout.sec": "3"}})
		w.rec.Next(lab.Startup, answers...)
		w.launch()
		first := w.rec.All()[0]
		if !w.rec.WaitN(120*time.Second, lab.Startup, len(answers)+1) {
			s.check(14, false, "startup was not repeated: %v", w.rec.Of(lab.Startup))
			s.Fatalf("no good startup; output: %s", w.agent.Output())
		}
		startups := w.rec.Of(lab.Startup)
		for i, gap := range gaps(startups) {
			s.check(14, gap >= 900*time.Millisecond && gap <= 66*time.Second, "startup %d came %v after the one before", i+2, gap)
		}
		good := startups[len(startups)-1]
		for _, q := range w.rec.All()[first.N:good.N] {
			s.check(14, q.Endpoint == lab.Startup, "before startup succeeded: %v", q)
		}
		_, ok := w.rec.WaitFor(pollLimit, good.N, lab.Ask)
		s.check(14, ok, "no ask after startup succeeded")
		w.alive(14)
		w.alive(16)
	}
}

// deleteBeforeStartup is what a server says to a machine that was never imported (weakness W-07).
func deleteBeforeStartup(s *S) {
	w := s.world(lab.HomeOptions{})
	w.rec.Always(lab.Startup, lab.JSON(500, map[string]any{"status": 500, "message": "down", "data": nil}))
	w.rec.SetStatus("DELETE")
	w.launch()
	w.watch(45 * time.Second)
	w.alive(15)
	s.check(15, len(w.rec.Of(lab.Startup)) >= 2, "startup was not repeated in 45 s: %d calls", len(w.rec.Of(lab.Startup)))
	w.rec.SetStatus("IMPORT_OK")
	w.rec.On(lab.Startup, nil)
	build := lab.NewBuild()
	w.rec.Queue(build)
	_, ok := w.finish(120*time.Second, build)
	s.check(15, ok, "no job was run after the server had come to its senses; output: %s", w.agent.Output())
	w.alive(15)
}

func startupDelete(status string) func(*S) {
	return func(s *S) {
		w := s.world(lab.HomeOptions{})
		w.rec.Always(lab.Startup, lab.OK(status))
		w.launch()
		w.watch(12 * time.Second)
		w.alive(16)
		build := lab.NewBuild()
		w.rec.Queue(build)
		_, ok := w.finish(90*time.Second, build)
		s.check(16, ok, "startup said %s, and the agent does not work; output: %s", status, w.agent.Output())
		w.alive(16)
	}
}

// startupDeleteAfterRestart: the address changed, and the server says DELETE about a record that lives (protocol §1.6.1).
func startupDeleteAfterRestart(s *S) {
	w := s.world(lab.HomeOptions{})
	w.start()
	w.beats(1)
	w.agent.Kill()
	w.rec.Always(lab.Startup, lab.OK("DELETE"))
	w.start()
	build := lab.NewBuild()
	w.rec.Queue(build)
	_, ok := w.finish(90*time.Second, build)
	s.check(16, ok, "the agent does not work after startup said DELETE; output: %s", w.agent.Output())
	w.alive(16)
}

func brokenProperties() map[string]lab.HomeOptions {
	list := map[string]lab.HomeOptions{
		"no file content": {File: "\n"},
		"host count text": {Set: map[string]string{"devops.parallel.task.count": "four"}},
		"host count -1":   {Set: map[string]string{"devops.parallel.task.count": "-1"}},
		"host count 1.5":  {Set: map[string]string{"devops.parallel.task.count": "1.5"}},
		"docker count -1": {Set: map[string]string{"devops.docker.parallel.task.count": "-1"}},
		"docker count x":  {Set: map[string]string{"devops.docker.parallel.task.count": "x"}},
		"host count huge": {Set: map[string]string{"devops.parallel.task.count": "99999999999999999999"}},
	}
	for _, key := range []string{"devops.project.id", "devops.agent.id", "devops.agent.secret.key", "landun.gateway",
		"devops.parallel.task.count", "landun.env"} {
		list["no "+key] = lab.HomeOptions{Drop: []string{key}}
		list["empty "+key] = lab.HomeOptions{Set: map[string]string{key: ""}}
		list["blank "+key] = lab.HomeOptions{Set: map[string]string{key: "  "}}
	}
	return list
}

func invalidProperties(o lab.HomeOptions) func(*S) {
	return func(s *S) {
		w := s.world(o)
		before := fileState(w.home.Path(".agent.properties"))
		w.agent = w.home.Start()
		code, err := w.agent.Wait(20 * time.Second)
		if !s.check(17, err == nil, "the agent runs with invalid properties; requests: %v", w.rec.All()) {
			return
		}
		s.check(17, code != 0 && code != 88 && code > 0, "exit code %d, want neither 0 nor 88; output: %s", code, w.agent.Output())
		s.check(17, len(w.rec.All()) == 0, "requests were sent: %v", w.rec.All())
		s.check(17, strings.TrimSpace(w.agent.Output()+w.home.Log()) != "", "the agent says nothing about it")
		s.check(17, fileState(w.home.Path(".agent.properties")) == before, "the agent rewrote what it could not read")
	}
}
