package controller

import (
	"fmt"
	"strings"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// seen is a build's view for somebody who looks at this one: a queued build that no agent can take as they are now says why. A
// list has none of it: it takes a look at every agent.
func (s *Server) seen(b *build) Build {
	v := b.view()
	if v.State == Queued && v.Message == "" {
		v.Message = s.waits(b)
	}
	return v
}

// waits says why a queued build stays in the queue, "" when an agent is online that may take it.
func (s *Server) waits(b *build) string {
	members, fitting := 0, 0
	last := ""
	for _, a := range s.agents {
		if a.Status == wire.Deleted || a.Project != b.Project {
			continue
		}
		members++
		if !a.fits(b) {
			continue
		}
		if a.Status == wire.ImportOK || a.Status == wire.UnImportOK { // the latter is about to be
			return ""
		}
		fitting++
		last = a.HostName
		if last == "" {
			last = a.ID
		}
	}
	switch {
	case members == 0:
		return "it waits: project " + b.Project + " has no agent yet"
	case fitting == 0 && len(b.Labels) > 0:
		return "it waits: no agent of project " + b.Project + " that can run it has all of these labels: " + strings.Join(b.Labels, ", ")
	case fitting == 0:
		return "it waits: no agent of project " + b.Project + " has a system for its scripts"
	case fitting == 1:
		return "it waits: " + last + " is not online, and no other agent can take it"
	}
	return fmt.Sprintf("it waits: none of the %d agents that can take it is online", fitting)
}
