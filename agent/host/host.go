package host

import (
	"os"
	"strings"
)

// Name returns the host name as protocol §1.6.1 and §1.6.3 report it, "unknown" when the system has none: the server
// refuses a startup without.
func Name() string {
	name, err := os.Hostname()
	if name = strings.TrimSpace(name); err != nil || name == "" {
		return "unknown"
	}
	return name
}

// DetectOS translates a GOOS into the names of the protocol (§1.4.2): linux, windows, macos, other.
func DetectOS(goos string) string {
	switch goos {
	case "linux", "windows":
		return goos
	case "darwin":
		return "macos"
	}
	return "other"
}

// OSVersion names the system and its release, as in "Debian GNU/Linux 12 (bookworm)", for the heartbeat
// (protocol §1.6.3); "" when it cannot be found out. It starts no program; call it once.
func OSVersion() string { return clip(osVersion(), 100) }

// clip makes a text fit for one line of the wire: printable, at most n characters.
func clip(s string, n int) string {
	s = strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' {
			return -1
		}
		return r
	}, s))
	if r := []rune(s); len(r) > n {
		s = strings.TrimSpace(string(r[:n]))
	}
	return s
}

// prettyName reads a file of os-release(5).
func prettyName(file string) string {
	fields := map[string]string{}
	for line := range strings.Lines(file) {
		key, val, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.HasPrefix(key, "#") {
			continue
		}
		if n := len(val); n >= 2 && (val[0] == '"' || val[0] == '\'') && val[n-1] == val[0] {
			val = strings.NewReplacer(`\"`, `"`, `\$`, `$`, `\\`, `\`, "\\`", "`").Replace(val[1 : n-1])
		}
		fields[key] = val
	}
	if fields["PRETTY_NAME"] != "" {
		return fields["PRETTY_NAME"]
	}
	return strings.TrimSpace(fields["NAME"] + " " + fields["VERSION"])
}
