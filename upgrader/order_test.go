package upgrader

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/devops-agent/devops-agent/upgrader/journal"
)

// TestRemoteNames is the table of protocol §1.6.6 (statement 80).
func TestRemoteNames(t *testing.T) {
	for _, c := range []struct {
		part         journal.Part
		goos, goarch string
		want         string
	}{
		{journal.Upgrader, "linux", "amd64", "upgrade/upgrader_linux"},
		{journal.Upgrader, "linux", "arm64", "upgrade/upgrader_linux_arm64"},
		{journal.Daemon, "linux", "mips64", "upgrade/devopsDaemon_linux_mips64"},
		{journal.Daemon, "linux", "riscv64", "upgrade/devopsDaemon_linux"},
		{journal.Agent, "linux", "arm64", "upgrade/devopsAgent_linux_arm64"},
		{journal.Agent, "darwin", "amd64", "upgrade/devopsAgent_macos"},
		{journal.Agent, "darwin", "arm64", "upgrade/devopsAgent_macos_arm64"},
		{journal.Agent, "windows", "arm64", "upgrade/devopsAgent.exe"},
		{journal.Upgrader, "windows", "amd64", "upgrade/upgrader.exe"},
		{journal.Worker, "windows", "amd64", "jar/worker-agent.jar"},
		{journal.JDK, "linux", "amd64", "jre/linux/jre.zip"},
		{journal.JDK, "linux", "mips64", "jre/linux_mips64/jre.zip"},
		{journal.JDK17, "linux", "arm64", "jre/linux_arm64/jdk17.zip"},
		{journal.JDK17, "darwin", "arm64", "jre/macos_arm64/jdk17.zip"},
		{journal.JDK17, "windows", "amd64", "jre/windows/jdk17.zip"},
		{journal.Init, "linux", "arm64", "script/linux/agent_docker_init.sh"},
		{journal.Init, "darwin", "amd64", "script/macos/agent_docker_init.sh"},
	} {
		if got := RemoteName(c.part, c.goos, c.goarch); got != c.want {
			t.Errorf("%s for %s/%s: %s, want %s", c.part, c.goos, c.goarch, got, c.want)
		}
	}
}

func TestLocalNames(t *testing.T) {
	for part, want := range map[journal.Part]string{journal.Agent: "devopsAgent.exe", journal.JDK: "jdk.zip", journal.JDK17: "jdk17.zip",
		journal.Worker: "worker-agent.jar", journal.Init: "agent_docker_init.sh", journal.Upgrader: "upgrader.exe"} {
		if got := localName(part, "windows"); got != want {
			t.Errorf("%s: %s, want %s", part, got, want)
		}
	}
}

func TestOrder(t *testing.T) {
	if (Order{}).Any() || !(Order{Init: true}).Any() {
		t.Error("Any is wrong")
	}
	if o := (Order{Agent: true, Native: true, Worker: true, JDK: true}).Only(); o != (Order{Worker: true, JDK: true}) {
		t.Errorf("without a restart: %+v", o)
	}
}

func TestOurs(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if !Ours(self) {
		t.Error("this test is not one of ours")
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if Ours(script) || Ours(script+".missing") {
		t.Error("a script is one of ours")
	}
}
