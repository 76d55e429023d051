package controller

import (
	"strings"
	"testing"

	"github.com/devops-agent/devops-agent/agent/wire"
)

func TestAQueuedBuildSaysWhyNobodyTakesIt(t *testing.T) {
	on := func(id, os string, status wire.AgentStatus, labels ...string) *agent {
		a := &agent{}
		a.ID, a.OS, a.Status, a.Project, a.Labels, a.HostName = id, os, status, "demo", labels, "host-"+id
		return a
	}
	gpu := &build{spec: Spec{Labels: []string{"gpu"}, Steps: []Step{{Script: "true"}}}}
	gpu.Build = Build{State: Queued, Project: "demo", Labels: []string{"gpu"}}
	bat := &build{spec: Spec{Steps: []Step{{Script: "ver", Shell: "bat"}}}}
	bat.Build = Build{State: Queued, Project: "demo"}
	over := &build{spec: gpu.spec}
	over.Build = Build{State: Succeeded, Project: "demo", Labels: []string{"gpu"}}
	elsewhere := on("5", "linux", wire.ImportOK, "gpu")
	elsewhere.Project = "other"
	for _, c := range []struct {
		name   string
		build  *build
		agents []*agent
		want   string
	}{
		{"nobody", gpu, []*agent{on("1", "linux", wire.Deleted, "gpu"), elsewhere}, "project demo has no agent yet"},
		{"label", gpu, []*agent{on("1", "linux", wire.ImportOK)}, "labels: gpu"},
		{"system", bat, []*agent{on("1", "linux", wire.ImportOK)}, "a system for its scripts"},
		{"one offline", gpu, []*agent{on("1", "linux", wire.ImportOK), on("2", "linux", wire.ImportException, "gpu")}, "host-2 is not online"},
		{"all offline", gpu, []*agent{on("1", "linux", wire.ImportException, "gpu"), on("2", "linux", wire.UnImport, "gpu")}, "none of the 2 agents"},
		{"online", gpu, []*agent{on("1", "linux", wire.ImportException, "gpu"), on("2", "linux", wire.ImportOK, "gpu")}, ""},
		{"over", over, nil, ""},
	} {
		s := &Server{agents: make(map[string]*agent)}
		for _, a := range c.agents {
			s.agents[a.ID] = a
		}
		if got := s.seen(c.build).Message; !strings.Contains(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}
