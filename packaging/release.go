package packaging

import (
	"fmt"
	"path/filepath"
	"regexp"
	"time"
)

// Release is one version of the product as it was built.
type Release struct {
	Version string    // "v1.2.4" or "v1.2.4-dev.3", as scripts/version.sh prints it
	Commit  string    // full hash, or "unknown"
	Time    time.Time // of the commit, UTC: every time in every package
	Bin     string    // directory of the programs, by the names that "make build_all" gives them
	Root    string    // source tree: licence, changelog, agent.toml
	Docs    string    // directory with man/devopsAgent.8 and so on, and completion/{bash,zsh,fish}, as the agent writes them
	// Licences are those of everything that is linked into the programs.
	Licences []Licence
}

// program is the path of a program that was built for a system: devopsAgent_linux_arm64, devopsAgent_macos, devopsAgent.exe.
func (r Release) program(name, goos, goarch string) string {
	suffix := "_" + goos
	switch goos {
	case "windows":
		suffix = ".exe"
		if goarch != "amd64" {
			suffix = "_" + goarch + ".exe"
		}
		return filepath.Join(r.Bin, name+suffix)
	case "darwin":
		suffix = "_macos"
	}
	if goarch != "amd64" {
		suffix += "_" + goarch
	}
	return filepath.Join(r.Bin, name+suffix)
}

// version is a version of ours in its parts.
type version struct {
	core string // 1.2.4
	pre  string // dev.3, rc.1, or ""
}

var versionShape = regexp.MustCompile(`^v?((?:0|[1-9][0-9]{0,8})\.(?:0|[1-9][0-9]{0,8})\.(?:0|[1-9][0-9]{0,8}))(?:-([0-9A-Za-z]+(?:\.[0-9A-Za-z]+)*))?$`)

// parseVersion reads a version with or without its "v".
func parseVersion(text string) (version, error) {
	m := versionShape.FindStringSubmatch(text)
	if m == nil {
		return version{}, fmt.Errorf("version %q is not like v1.2.3 or v1.2.4-dev.5", text)
	}
	return version{core: m[1], pre: m[2]}, nil
}

// String is the version as the programs print it, without "v".
func (v version) String() string {
	if v.pre == "" {
		return v.core
	}
	return v.core + "-" + v.pre
}

// tilde is the version for dpkg and rpm, for which "~" comes before the end: 1.2.4~dev.3 is older than 1.2.4.
func (v version) tilde() string {
	if v.pre == "" {
		return v.core
	}
	return v.core + "~" + v.pre
}
