package trust

import (
	"strings"
	"testing"
)

func TestTargetOf(t *testing.T) {
	for name, want := range map[string]Target{
		"upgrade/devopsAgent_linux":              {"devopsAgent", "linux", "amd64"},
		"upgrade/devopsAgent_linux_arm64":        {"devopsAgent", "linux", "arm64"},
		"upgrade/upgrader_linux_mips64":          {"upgrader", "linux", "mips64"},
		"upgrade/devopsDaemon_macos":             {"devopsDaemon", "darwin", "amd64"},
		"devopsDaemon_macos_arm64":               {"devopsDaemon", "darwin", "arm64"},
		"upgrade/upgrader.exe":                   {"upgrader", "windows", "amd64"},
		`C:\files\upgrade\devopsAgent.exe`:       {"devopsAgent", "windows", "amd64"},
		"devopsWorker_linux":                     {"devopsWorker", "linux", "amd64"},
		"jar/worker-agent.jar":                   {"worker-agent.jar", Any, Any},
		"worker-agent.jar":                       {"worker-agent.jar", Any, Any},
		"jre/linux/jre.zip":                      {"jdk.zip", "linux", "amd64"},
		"/srv/jre/linux_arm64/jdk17.zip":         {"jdk17.zip", "linux", "arm64"},
		"jre/linux/jdk17.tar.gz":                 {"jdk17.zip", "linux", "amd64"},
		"jre/macos/jre.tar.gz":                   {"jdk.zip", "darwin", "amd64"},
		"jre/macos_arm64/jdk17.zip":              {"jdk17.zip", "darwin", "arm64"},
		"jre/windows/jdk17.zip":                  {"jdk17.zip", "windows", "amd64"},
		"script/linux/agent_docker_init.sh":      {"agent_docker_init.sh", "linux", Any},
		"script/macos/agent_docker_init.sh":      {"agent_docker_init.sh", "darwin", Any},
		"../script/windows/agent_docker_init.sh": {"agent_docker_init.sh", "windows", Any},
	} {
		if got, err := TargetOf(name); err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", name, got, err, want)
		}
	}
	for _, name := range []string{"", "devopsAgent", "devopsAgent_", "devopsAgent_linux_", "devopsAgent_linux.minisig", "devopsAgent_linux_arm64.minisig", "devopsAgent_plan9",
		"devopsAgent_windows", "agent_linux", "jdk17.zip", "tmp/jdk17.zip", "jre/linux_/jdk17.zip", "agent_docker_init.sh", "agent.zip", "upgrade/", "devopsAgent_linux_ARM"} {
		got, err := TargetOf(name)
		var hinter interface{ Hint() string }
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%q: %v, %v", name, got, err)
		}
		if hinter, _ = err.(interface{ Hint() string }); hinter == nil || hinter.Hint() == "" {
			t.Errorf("%q: no hint", name)
		}
	}
}
