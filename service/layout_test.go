package service

import (
	"os"
	"path/filepath"
	"testing"
)

func TestLayoutsOfPackages(t *testing.T) {
	t.Setenv("ProgramData", `D:\Data`)
	t.Setenv("ProgramFiles", "")
	for goos, want := range map[string]Layout{
		"linux":   {"/usr/lib/devops-agent", "/var/lib/devops-agent", "/etc/devops-agent/agent.toml", "devops-agent", "devops-agent.service"},
		"darwin":  {"/usr/local/libexec/devops-agent", "/usr/local/var/devops-agent", "/usr/local/etc/devops-agent/agent.toml", "", "org.devops-agent.agent"},
		"windows": {filepath.Join(`C:\Program Files`, "devops-agent"), filepath.Join(`D:\Data`, "devops-agent"), filepath.Join(`D:\Data`, "devops-agent", "agent.toml"), "", "devops-agent"},
	} {
		if got := Packaged(goos); got != want {
			t.Errorf("%s: %+v, want %+v", goos, got, want)
		}
	}
	if got := Instance("blue"); got.Home != "/var/lib/devops-agents/blue" || got.Config != "/etc/devops-agent/blue.toml" || got.Name != "devops-agent@blue.service" {
		t.Errorf("instance: %+v", got)
	}
}

func TestConfigOf(t *testing.T) {
	own := t.TempDir()
	if err := os.WriteFile(filepath.Join(own, "agent.toml"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ goos, home, want string }{
		{"linux", "/var/lib/devops-agent", "/etc/devops-agent/agent.toml"},
		{"linux", "/var/lib/devops-agent/", "/etc/devops-agent/agent.toml"},
		{"linux", "/var/lib/devops-agents/blue", "/etc/devops-agent/blue.toml"},
		{"linux", "/var/lib/devops-agents/a/b", "/var/lib/devops-agents/a/b/agent.toml"},
		{"linux", "/opt/ci", "/opt/ci/agent.toml"},
		{"darwin", "/usr/local/var/devops-agent", "/usr/local/etc/devops-agent/agent.toml"},
		{"darwin", "/var/lib/devops-agents/blue", "/var/lib/devops-agents/blue/agent.toml"},
		{"linux", own, filepath.Join(own, "agent.toml")},
	} {
		if got := configOf(tc.goos, tc.home); filepath.ToSlash(got) != filepath.ToSlash(tc.want) {
			t.Errorf("%s %s: %s, want %s", tc.goos, tc.home, got, tc.want)
		}
	}
}
