//go:build lab && linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// offered puts a program into tmp/ of the home and has an upgrader put it into place, as an agent of the original does.
func (m *machine) offered(program string) {
	m.Helper()
	m.box.Copy(program, m.home+"/tmp/devopsAgent")
	m.box.Run("chown", "-R", m.account+":", m.home+"/tmp")
	if out, err := m.box.As(m.account, "", "/usr/lib/devops-agent/upgrader", "-action=upgrade", "-home", m.home); err != nil {
		m.Fatalf("upgrade: %v %s", err, out)
	}
}

// ended waits until the last upgrade of the home has ended so.
func (m *machine) ended(limit time.Duration, state string) time.Duration {
	m.Helper()
	return m.await(limit, "upgrade "+state, func() bool {
		open, _ := filepath.Glob(m.box.Path(m.home) + "/upgrade/open-*")
		all, _ := filepath.Glob(m.box.Path(m.home) + "/upgrade/*/attempt.json")
		last := ""
		for _, name := range all {
			last = max(last, name)
		}
		text, err := os.ReadFile(last)
		return len(open) == 0 && err == nil && strings.Contains(string(text), `"state": "`+state+`"`)
	})
}

// guards are the guards of the home.
func (m *machine) guards() []int { return m.box.Processes("upgrader guard") }

// TestSystemdUpgrade: a good version, which writes to the journal all the while, bad ones, a stop in the middle of a trial, and no guard
// that stays behind.
func TestSystemdUpgrade(t *testing.T) {
	next, err := nextPrograms()
	if err != nil {
		t.Fatal(err)
	}
	m := packaged(t, "upgrade", "[upgrade]\nsettle_after = \"3s\"\n").recorded()
	m.box.Write("/etc/systemd/system/"+m.unit+".d/patience.conf", "[Service]\nEnvironment=DEVOPS_TRIAL_PATIENCE=15s LAB_DIR="+m.home+"\n", 0o644)
	m.ctl("daemon-reload")
	m.ctl("start", m.unit)
	m.await(bootLimit, "the first request", func() bool { return m.rec.Mark() > 0 })
	version := func() string { return strings.TrimSpace(m.box.Run(m.home+"/devopsAgent", "version")) }
	first := version()

	mark := m.rec.Mark()
	m.offered(next.agent)
	m.polled(mark, bootLimit)
	m.ended(bootLimit, "settled")
	if got := version(); got != nextVersion {
		t.Errorf("version %s", got)
	}
	m.await(10*time.Second, "no guard", func() bool { return len(m.guards()) == 0 })
	out := m.box.Run("journalctl", "--no-pager", "-o", "cat", "-u", m.unit)
	if !strings.Contains(out, "This version is on trial") || !strings.Contains(out, "New version is on trial") {
		t.Errorf("the journal says: %s", out)
	}

	for _, mode := range []string{"exit 1", "hang", "crash 1s"} {
		m.box.Write(m.home+"/mode", mode, 0o644)
		m.box.Run("cp", m.home+"/devopsAgent", m.home+"/before")
		bad := filepath.Join(t.TempDir(), "bad")
		text, err := os.ReadFile(next.bad)
		if err == nil {
			err = os.WriteFile(bad, append(text, mode...), 0o755) //nolint:gosec // a program
		}
		if err != nil {
			t.Fatal(err)
		}
		mark := m.rec.Mark()
		m.offered(bad)
		took := m.ended(90*time.Second, "rolled-back")
		m.polled(mark, bootLimit)
		t.Logf("%s: back after %v", mode, took.Round(10*time.Millisecond))
		if got := version(); got != nextVersion {
			t.Errorf("%s: version %s", mode, got)
		}
		m.await(10*time.Second, "no guard", func() bool { return len(m.guards()) == 0 })
		all, _ := filepath.Glob(m.box.Path(m.home) + "/upgrade/*/attempt.json")
		last, _ := os.ReadFile(all[len(all)-1])
		t.Logf("%s: %s", mode, last)
	}

	// Stopped on trial: the stop does not wait for the guard, and the version is not blamed for it.
	m.box.Write("/etc/devops-agent/agent.toml", "[upgrade]\nsettle_after = \"20s\"\n", 0o644)
	m.ctl("restart", m.unit)
	m.await(bootLimit, "an agent", m.active)
	good := filepath.Join(t.TempDir(), "good")
	text, err := os.ReadFile(next.agent)
	if err == nil {
		err = os.WriteFile(good, append(text, "again"...), 0o755) //nolint:gosec // a program
	}
	if err != nil {
		t.Fatal(err)
	}
	mark = m.rec.Mark()
	m.offered(good)
	m.polled(mark, bootLimit)
	at := time.Now()
	m.ctl("stop", m.unit)
	if took := time.Since(at); took > 5*time.Second {
		t.Errorf("stop took %v", took)
	}
	if !lab.Eventually(20*time.Second, func() bool { return false }) { // longer than the patience with it
		if open, _ := filepath.Glob(m.box.Path(m.home) + "/upgrade/open-trial-*"); len(open) != 1 {
			t.Errorf("open: %v, guards %v", open, m.guards())
		}
	}
	m.ctl("start", m.unit)
	m.ended(60*time.Second, "settled")
	fmt.Println("first version", first)
}
