package agent

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/devops-agent/devops-agent/agent/host"
)

// TestTheServerHearsTheNameThatWasGiven at the installation, else the machine's own: at the startup and with each heartbeat.
func TestTheServerHearsTheNameThatWasGiven(t *testing.T) {
	for given, want := range map[string]string{"build-7": "build-7", "": host.Name()} {
		synctest.Test(t, func(t *testing.T) {
			s := setStage(t, "split", &server{answer: func(c call) (int, http.Header, string) { return normal(c) }})
			s.HostName = given
			if err := s.runFor(t, time.Minute); err != nil {
				t.Fatal(err)
			}
			startups, beats := s.of("thirdPartyAgent/startup"), s.of("/newHeartbeat")
			if len(startups) == 0 || len(beats) == 0 {
				t.Fatalf("%d startups, %d heartbeats", len(startups), len(beats))
			}
			if got := startups[0].body["hostname"]; got != want {
				t.Errorf("startup of %v, want %s", got, want)
			}
			if got := beats[0].body["hostName"]; got != want {
				t.Errorf("heartbeat of %v, want %s", got, want)
			}
		})
	}
}
