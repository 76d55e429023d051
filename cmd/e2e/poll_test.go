//go:build linux

package e2e

import (
	"fmt"
	"slices"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

func pollScenarios() []scenario {
	return []scenario{
		split("only IMPORT_OK claims", onlyImportOK, 30, 36),
		split("DELETE from claim and upgrade check", deleteElsewhere, 36),
		both("limit 0", unlimited, 33),
		both("limit 2 with slow starts", limited(2, "sleep 7", false), 34),
		both("limit 1 with a server that hands out too much", limited(1, "", true), 34),
		ask("null parts", nullParts, 42),
		ask("slow everything", slowEverything, 43),
		ask("build and upgrade together", buildAndUpgrade, 46),
		ask("build without agentStatus", buildWithoutStatus, 47),
		ask("debug mode by marker file", debugMode(true), 40),
		split("debug mode by argument", debugMode(false), 78),
	}
}

func onlyImportOK(s *S) {
	w := s.world(lab.HomeOptions{})
	build := lab.NewBuild()
	states := []any{"UN_IMPORT", "UN_IMPORT_OK", "IMPORT_EXCEPTION", "DELETE", "import_ok", "IMPORT_OK ", "", nil}
	for _, state := range states {
		w.rec.Next(lab.Status, lab.OK(state))
	}
	w.rec.Queue(build)
	w.start()
	if !w.rec.Until(150*time.Second, func() bool { return w.rec.Left(lab.Status) == 0 }) {
		s.check(30, false, "status is not asked any more: %v", w.rec.Of(lab.Status))
		s.check(36, false, "status is not asked any more: %v", w.rec.Of(lab.Status))
		return
	}
	last := w.rec.Of(lab.Status)[len(states)-1]
	for _, q := range w.rec.Of(lab.Claim) {
		s.check(30, q.At.After(last.At.Add(2*time.Second)), "a claim before any IMPORT_OK: %v", q)
	}
	w.alive(36)
	w.mustFinish(90*time.Second, build)
	w.alive(36)
	w.alive(30)
}

func deleteElsewhere(s *S) {
	w := s.world(lab.HomeOptions{})
	w.start()
	gone := lab.AgentOK("DELETE", nil)
	w.rec.Next(lab.Claim, gone, gone)
	w.rec.Next(lab.CheckUpgrade, lab.AgentOK("DELETE", map[string]bool{"agent": true, "worker": true, "jdk": true, "dockerInitFile": true}))
	if !w.rec.Until(60*time.Second, func() bool { return w.rec.Left(lab.Claim)+w.rec.Left(lab.CheckUpgrade) == 0 }) {
		s.check(36, false, "claim and upgrade check were not called within a minute: left %d and %d", w.rec.Left(lab.Claim), w.rec.Left(lab.CheckUpgrade))
	}
	w.beats(1)
	w.alive(36)
	s.check(36, len(w.rec.Of(lab.Download)) == 0, "an upgrade ordered together with DELETE was fetched")
	build := lab.NewBuild()
	w.rec.Queue(build)
	w.mustFinish(90*time.Second, build)
	w.alive(36)
}

func unlimited(s *S) {
	w := s.world(lab.HomeOptions{Set: map[string]string{"devops.parallel.task.count": "0"}})
	builds := make([]lab.Build, 6)
	for i := range builds {
		builds[i] = lab.NewBuild()
		defer w.home.Gate(builds[i])()
	}
	w.rec.Queue(builds...)
	w.start()
	running := func() int {
		n := 0
		for _, b := range builds {
			if !w.home.Run(b).Began().IsZero() {
				n++
			}
		}
		return n
	}
	s.check(33, lab.Eventually(90*time.Second, func() bool { return running() == 6 }), "limit 0: only %d of 6 jobs run at the same time", running())
	s.check(33, w.home.Property("devops.parallel.task.count") == "0", "devops.parallel.task.count became %q", w.home.Property("devops.parallel.task.count"))
	w.alive(33)
}

// limited runs more jobs than the limit and looks at how many workers ran at the same time.
func limited(limit int, profile string, dishonest bool) func(*S) {
	return func(s *S) {
		w := s.world(lab.HomeOptions{Set: map[string]string{"devops.parallel.task.count": fmt.Sprint(limit)}})
		if profile != "" {
			w.home.Work(nil, "sleep 1")
			writeProfile(w, profile)
		}
		builds := make([]lab.Build, 4)
		var open []func()
		for i := range builds {
			builds[i] = lab.NewBuild()
			if dishonest {
				open = append(open, w.home.Gate(builds[i]))
			}
		}
		w.rec.Queue(builds...)
		if dishonest {
			w.rec.ForceBuilds()
		}
		w.start()
		if dishonest {
			w.mustBegin(40*time.Second, builds[0])
			w.watch(25 * time.Second)
			running := 0
			for _, b := range builds {
				running += w.home.Run(b).Starts()
			}
			s.check(34, running <= limit, "%d workers at the same time, limit %d", running, limit)
			handed := 4 - w.rec.Queued()
			for _, b := range builds[1:handed] {
				reports := w.rec.Finishes(b.ID)
				s.check(34, w.home.Run(b).Starts() == 0 && len(reports) <= 1, "a job too many was started or reported %d times", len(reports))
				if len(reports) == 1 {
					s.check(34, reports[0].Get("success") == false, "a job that never ran was reported as %v", reports[0])
				} else {
					s.check(34, false, "a job too many was dropped without a report (weakness W-20)")
				}
			}
			for _, f := range open {
				f()
			}
			w.mustFinish(40*time.Second, builds[0])
			w.alive(34)
			return
		}
		for _, b := range builds {
			w.mustFinish(150*time.Second, b)
		}
		type edge struct {
			at time.Time
			by int
		}
		var edges []edge
		for _, b := range builds {
			edges = append(edges, edge{w.home.Run(b).Began(), 1}, edge{w.home.Run(b).Ended(), -1})
		}
		slices.SortFunc(edges, func(a, b edge) int { return a.at.Compare(b.at) })
		running, most := 0, 0
		for _, e := range edges {
			running += e.by
			most = max(most, running)
		}
		s.check(34, most <= limit, "%d workers at the same time, limit %d", most, limit)
		// A start that is still on its way counts as well: hand-outs minus ended workers.
		for i, q := range w.claimed() {
			ended := 0
			for _, b := range builds {
				if at := w.home.Run(b).Ended(); !at.IsZero() && at.Before(q.At.Add(time.Second)) {
					ended++
				}
			}
			s.check(34, i+1-ended <= limit, "job %d was taken when only %d had ended, limit %d", i+1, ended, limit)
		}
		w.alive(34)
	}
}

// claimed returns the requests that were answered with a job, as far as the recorder's queue tells: the host claims, in order.
func (w *world) claimed() []lab.Request {
	var list []lab.Request
	for _, q := range w.rec.Of(lab.Claim, lab.Ask) {
		kind := q.Query.Get("buildType")
		if q.Endpoint == lab.Ask {
			kind, _ = q.Get("askEnable", "build").(string)
		}
		if (kind == "ALL" || kind == "BINARY") && len(list) < 4 {
			list = append(list, q)
		}
	}
	return list
}

func nullParts(s *S) {
	w := s.world(lab.HomeOptions{})
	w.start()
	beat := map[string]any{"agentStatus": "IMPORT_OK", "parallelTaskCount": 4, "dockerParallelTaskCount": 4}
	no := map[string]bool{"agent": false, "worker": false, "jdk": false, "dockerInitFile": false}
	for _, data := range []any{
		nil,
		map[string]any{},
		map[string]any{"heartbeat": nil, "build": nil, "upgrade": no, "pipeline": nil, "debug": nil},
		map[string]any{"heartbeat": beat, "build": nil, "upgrade": nil, "pipeline": nil, "debug": nil},
		map[string]any{"heartbeat": map[string]any{}, "upgrade": map[string]any{}, "build": nil},
	} {
		w.rec.Next(lab.Ask, lab.AgentOK("IMPORT_OK", data))
	}
	build := lab.NewBuild()
	w.rec.Next(lab.Ask, lab.AgentOK("IMPORT_OK", map[string]any{"heartbeat": nil, "build": build, "upgrade": nil, "pipeline": nil, "debug": nil}))
	if !w.rec.Until(120*time.Second, func() bool { return w.rec.Left(lab.Ask) == 0 }) {
		s.check(42, false, "the agent stopped asking")
		return
	}
	q, ok := w.finish(40*time.Second, build)
	s.check(42, ok && q.Get("success") == true, "a job beside a null heartbeat was not run: %v", q)
	w.alive(42)
}

// slowEverything: a slow login shell, a running worker, a slow script, and calls that hang.
func slowEverything(s *S) {
	w := s.world(lab.HomeOptions{Set: map[string]string{"devops.pipeline.enable": "true"}, TOML: "[scripts]\nenable = true\n"})
	writeProfile(w, "sleep 8")
	w.rec.Reply(map[string]any{"props": map[string]any{"enablePipeline": true}})
	w.start()
	b1, b2 := lab.NewBuild(), lab.NewBuild()
	defer w.home.Gate(b1)()
	w.rec.On(lab.Finish, func(lab.Request) *lab.Answer { return &lab.Answer{Hang: true} })
	w.rec.On(lab.ReportPipeline, func(q lab.Request) *lab.Answer {
		if q.Get("status") == "EXECUTING" {
			return nil
		}
		return &lab.Answer{Hang: true}
	})
	w.rec.On(lab.Download, func(lab.Request) *lab.Answer { return &lab.Answer{Hang: true} })
	w.rec.On(lab.FinishUpgrade, func(lab.Request) *lab.Answer { return &lab.Answer{Hang: true} })
	w.beats(4) // versions become known: then an upgrade is asked for
	w.rec.Offer("agent", "worker", "jdk", "dockerInitFile")
	w.beats(2)
	w.rec.QueuePipeline(lab.Command("1", "sleep 12"))
	w.rec.Queue(b1, b2)
	mark := w.rec.Mark()
	w.watch(45 * time.Second)
	s.check(43, len(w.rec.Of(lab.Finish)) > 0 && len(w.rec.Of(lab.ReportPipeline)) > 0 && w.home.Run(b1).Starts() == 1,
		"not everything was slow: %d finish reports, %d pipeline reports, %d starts", len(w.rec.Of(lab.Finish)), len(w.rec.Of(lab.ReportPipeline)), w.home.Run(b1).Starts())
	asks := w.rec.Of(lab.Ask)
	for i, gap := range gaps(asks) {
		s.check(43, gap <= 8*time.Second, "asks %v apart; the second: %v", gap, asks[i+1])
	}
	s.check(43, w.rec.Mark() > mark+6, "only %d requests in 45 s", w.rec.Mark()-mark)
	w.alive(43)
}

func buildAndUpgrade(s *S) {
	w := s.world(lab.HomeOptions{})
	w.start()
	if _, ok := w.rec.Wait(60*time.Second, 0, func(q lab.Request) bool { return q.Endpoint == lab.Ask && q.Get("askEnable", "upgrade") == true }); !ok {
		s.Fatalf("no upgrade check within a minute")
	}
	build := lab.NewBuild()
	w.rec.Offer("agent", "worker", "jdk", "dockerInitFile")
	w.rec.Queue(build)
	q := w.mustFinish(60*time.Second, build)
	w.rec.Offer()
	s.check(46, q.Get("success") == true, "the job failed: %v", q)
	s.check(46, w.rec.WaitN(10*time.Second, lab.FinishUpgrade, 1), "the upgrade was not answered")
	for _, q := range w.rec.Of(lab.FinishUpgrade) {
		s.check(46, q.Query.Get("success") == "false", "the upgrade was answered with %q", q.RawQuery)
	}
	s.check(46, len(w.rec.Of(lab.Download)) == 0, "something was downloaded: %v", w.rec.Of(lab.Download))
	w.alive(46)
}

func buildWithoutStatus(s *S) {
	w := s.world(lab.HomeOptions{})
	w.start()
	with := func(b lab.Build, more map[string]any) lab.Answer {
		envelope := map[string]any{"status": 0, "message": nil, "data": map[string]any{"heartbeat": nil, "build": b, "upgrade": nil, "pipeline": nil, "debug": nil}}
		for key, value := range more {
			envelope[key] = value
		}
		return lab.JSON(200, envelope)
	}
	cases := []struct {
		name string
		more map[string]any
	}{
		{"null", map[string]any{"agentStatus": nil}},
		{"missing", nil},
		{"empty", map[string]any{"agentStatus": ""}},
	}
	builds := make([]lab.Build, len(cases))
	for i, c := range cases {
		builds[i] = lab.NewBuild()
		w.rec.Next(lab.Ask, with(builds[i], c.more))
	}
	for i, c := range cases {
		q, ok := w.finish(60*time.Second, builds[i])
		s.check(47, ok && q.Get("success") == true, "agentStatus %s: the job was not run: %v", c.name, q)
		s.check(47, w.home.Run(builds[i]).Starts() == 1, "agentStatus %s: %d workers", c.name, w.home.Run(builds[i]).Starts())
	}
	w.alive(47)
}

func debugMode(marker bool) func(*S) {
	return func(s *S) {
		w := s.world(lab.HomeOptions{})
		var args []string
		if marker {
			w.home.Write(".debug", "")
		} else {
			args = []string{"debug"}
		}
		w.agent = w.home.StartArgs(args)
		if !w.rec.WaitN(startLimit, lab.Startup, 1) {
			s.Fatalf("no startup; output: %s", w.agent.Output())
		}
		w.watch(45 * time.Second)
		s.check(78, len(w.rec.Of(lab.CheckUpgrade)) == 0, "upgrade checks in debug mode: %d", len(w.rec.Of(lab.CheckUpgrade)))
		asks := w.rec.Of(lab.Ask)
		s.check(40, s.mode == "split" || len(asks) >= 6, "only %d asks in 45 s", len(asks))
		for _, q := range asks {
			s.check(40, q.Get("askEnable", "upgrade") == false && q.Get("upgrade") == nil, "an upgrade check in debug mode: %v", q)
		}
		w.alive(78)
	}
}
