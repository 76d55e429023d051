package service

import (
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Layout is where an installation of a package has its things (design: home and vendor have one owner each).
type Layout struct {
	Vendor  string // programs of the package; nothing in it changes by itself
	Home    string // what the agent owns
	Config  string // agent.toml, the operator's
	Account string // the agent's own account, "" where the system has none for services
	Name    string // of the service: unit, label
}

// Packaged is the layout of the first agent that a package installs on a system.
func Packaged(goos string) Layout {
	switch goos {
	case "windows":
		home := filepath.Join(or(os.Getenv("ProgramData"), `C:\ProgramData`), "devops-agent")
		return Layout{Vendor: filepath.Join(or(os.Getenv("ProgramFiles"), `C:\Program Files`), "devops-agent"),
			Home: home, Config: filepath.Join(home, "agent.toml"), Name: "devops-agent"}
	case "darwin":
		return Layout{Vendor: "/usr/local/libexec/devops-agent", Home: "/usr/local/var/devops-agent",
			Config: "/usr/local/etc/devops-agent/agent.toml", Name: "org.devops-agent.agent"}
	}
	return Layout{Vendor: "/usr/lib/devops-agent", Home: "/var/lib/devops-agent",
		Config: "/etc/devops-agent/agent.toml", Account: "devops-agent", Name: "devops-agent.service"}
}

// Instance is the layout of a further agent on a Linux host, started as devops-agent@name.service.
func Instance(name string) Layout {
	l := Packaged("linux")
	l.Home = instances + name
	l.Config = "/etc/devops-agent/" + name + ".toml"
	l.Name = "devops-agent@" + name + ".service"
	return l
}

// instances holds the homes of further agents.
const instances = "/var/lib/devops-agents/"

// configOf finds the operator's file of a home: in it, or where the package has it.
func configOf(goos, home string) string {
	own := filepath.Join(home, "agent.toml")
	if _, err := os.Lstat(own); err == nil {
		return own
	}
	home = cleanFor(goos, home)
	if l := Packaged(goos); home == l.Home {
		return l.Config
	}
	if name, ok := strings.CutPrefix(home, instances); ok && goos == "linux" && !strings.Contains(name, "/") {
		return Instance(name).Config
	}
	return own
}

// cleanFor is a path as a system writes it, on any system.
func cleanFor(goos, dir string) string {
	if goos == "windows" {
		return filepath.Clean(dir)
	}
	return path.Clean(filepath.ToSlash(dir))
}

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}
