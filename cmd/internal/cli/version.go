package cli

import "runtime/debug"

// Set by the linker: -X github.com/devops-agent/devops-agent/cmd/internal/cli.version=v1.2.3 (see the Makefile).
var version, commit, built string

// Version is what the programs print and report to the server: v<n>.<n>.<n>, optionally followed by -<word>.<n>
// (protocol §3.3). A program built without the Makefile is v0.0.0-dev.0.
func Version() string {
	if version == "" {
		return "v0.0.0-dev.0"
	}
	return version
}

// FullVersion is Version, the commit and the time of the commit, a line each (protocol §3.1, fullVersion).
func FullVersion() string {
	c, b := commit, built
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision" && c == "":
				c = s.Value
			case s.Key == "vcs.time" && b == "":
				b = s.Value
			}
		}
	}
	if c == "" {
		c = "unknown"
	}
	if b == "" {
		b = "unknown"
	}
	return Version() + "\n" + c + "\n" + b
}
