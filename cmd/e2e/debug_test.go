//go:build linux

package e2e

import (
	"encoding/json"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

func debugScenarios() []scenario {
	return []scenario{
		both("docker debug", dockerDebug, 111, 112),
		both("metrics off", metricsOff, 114),
	}
}

func dockerDebug(s *S) {
	w := s.world(lab.HomeOptions{Set: map[string]string{"devops.docker.enable": "true"}})
	session := func(id int) map[string]any {
		return map[string]any{"projectId": "lab", "buildId": "b-1", "vmSeqId": "1", "workspace": "", "pipelineId": "p-1", "debugUserId": "u",
			"debugId": id, "image": "lab.invalid/image:1", "credential": nil, "options": nil}
	}
	w.rec.QueueDebug(session(7001), session(7002))
	w.start()
	reports := func(id string) []lab.Request {
		var list []lab.Request
		for _, q := range w.rec.Of(lab.ReportDebug) {
			if q.Get("debugId") == json.Number(id) {
				list = append(list, q)
			}
		}
		return list
	}
	s.check(112, w.rec.WaitN(90*time.Second, lab.ReportDebug, 2), "%d of 2 debug jobs were answered", len(w.rec.Of(lab.ReportDebug)))
	w.watch(12 * time.Second)
	for _, id := range []string{"7001", "7002"} {
		list := reports(id)
		if !s.check(112, len(list) == 1, "debug job %s got %d answers", id, len(list)) || len(list) == 0 {
			continue
		}
		q := list[0]
		s.check(112, q.Get("projectId") == "lab" && q.Get("pipelineId") == "p-1", "answer %v", q)
		if q.Get("success") != true {
			code, _ := q.Get("error", "errorCode").(json.Number)
			s.check(112, code != "", "a failure without a code: %v", q)
		}
	}
	s.check(111, s.mode == "ask" || len(w.rec.Of(lab.FetchDebug)) >= 3, "docker is enabled on Linux, but debug was polled %d times", len(w.rec.Of(lab.FetchDebug)))
	w.alive(112)
}

// metricsOff runs two agents for a little longer than a metrics period, one with metrics and one without.
func metricsOff(s *S) {
	on := s.world(lab.HomeOptions{Name: "on", Set: map[string]string{"devops.agent.collectorOn": "true"}})
	off := s.world(lab.HomeOptions{Name: "off"})
	off.start()
	on.start()
	endpoints := []lab.Endpoint{lab.Metrics, lab.Metrix, lab.MetrixWrite}
	s.check(114, on.rec.Until(90*time.Second, func() bool { return len(on.rec.Of(endpoints...)) > 0 }), "metrics are on, but none came: the check of the other agent means nothing")
	off.watch(time.Second)
	s.check(114, len(off.rec.Of(endpoints...)) == 0, "metrics are off, but: %v", off.rec.Of(endpoints...))
	off.alive(114)
}
