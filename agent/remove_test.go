//go:build unix

package agent

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/service"
)

// TestRemoveStartsTheUninstaller of tmp, or, where there is none, the one beside the agent (protocol §3.8).
func TestRemoveStartsTheUninstaller(t *testing.T) {
	for _, place := range []string{"tmp/upgrader", "upgrader", ""} {
		s := setStage(t, "ask", &server{answer: normal})
		home := s.Installation.Home
		mark := filepath.Join(home, "mark")
		if place != "" {
			path := filepath.Join(home, filepath.FromSlash(place))
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte("#!/bin/sh\nprintf '%s' \"$*\" > mark.new && mv mark.new mark\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.remove(); !errors.Is(err, service.ErrRemoved) {
			t.Errorf("%q: %v", place, err)
		}
		if place == "" {
			continue
		}
		tick := time.NewTicker(10 * time.Millisecond)
		for deadline := time.Now().Add(10 * time.Second); ; <-tick.C {
			if said, err := os.ReadFile(mark); err == nil {
				if string(said) != "-action=uninstall" {
					t.Errorf("%s: called with %q", place, said)
				}
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s was not started", place)
			}
		}
		tick.Stop()
	}
}
