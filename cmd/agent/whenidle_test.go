package main

import (
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/service/control"
)

func TestWhenAnAgentMayBeReplaced(t *testing.T) {
	began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ended := func(kind string, after time.Duration) control.Upgrade {
		return control.Upgrade{Last: &control.UpgradeEnd{Kind: kind, Ended: began.Add(after)}}
	}
	for name, tc := range map[string]struct {
		status control.Status
		first  int
		want   readiness
	}{
		"nothing to do":                       {control.Status{PID: 1, Phase: control.Running}, 0, idle},
		"without identity":                    {control.Status{PID: 1, Phase: control.Unenrolled}, 0, idle},
		"drained":                             {control.Status{PID: 1, Phase: control.Draining}, 1, idle},
		"a build":                             {control.Status{PID: 1, Builds: []control.Build{{Build: "b"}}}, 1, busy},
		"a build that begins":                 {control.Status{PID: 1, Slots: control.Slots{Running: 1}}, 1, busy},
		"a build in a container":              {control.Status{PID: 1, Slots: control.Slots{DockerRunning: 1}}, 1, busy},
		"the server's upgrade is under way":   {control.Status{PID: 1, Upgrade: control.Upgrade{Phase: control.Downloading}}, 1, busy},
		"on trial":                            {control.Status{PID: 2, Upgrade: control.Upgrade{Phase: control.OnTrial}}, 1, busy},
		"it stops anyway, builds or not":      {control.Status{PID: 1, Phase: control.Stopping, Builds: []control.Build{{Build: "b"}}}, 1, over},
		"another process":                     {control.Status{PID: 2}, 1, over},
		"another process by the package":      {control.Status{PID: 2, Upgrade: ended("vendor", time.Second)}, 1, over},
		"another process by the server":       {control.Status{PID: 2, Upgrade: ended("server", time.Second)}, 1, idle},
		"another process, an upgrade of old":  {control.Status{PID: 2, Upgrade: ended("server", -time.Second)}, 1, over},
		"the same process after an old trial": {control.Status{PID: 1, Upgrade: ended("server", -time.Second)}, 1, idle},
	} {
		if got := ready(tc.status, tc.first, began); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
}
