package systemd

// Hardened is the drop-in for an agent whose builds run inside its unit and need neither sudo nor other homes. Builds keep the
// network, the agent's home, and just-in-time compilers (JVM, Node).
func Hardened() string {
	return Unit{}.render([]section{{"Service", hardened(false)}})
}

// Separate is the drop-in for an agent whose builds run in units of their own: nothing but the agent itself is inside.
func Separate() string {
	return Unit{}.render([]section{{"Service", hardened(true)}})
}

// NoSudo is the drop-in for an agent whose builds do without sudo, and need the rest of the machine: other homes, devices, /tmp shared with
// containers, the socket of a container engine.
func NoSudo() string {
	return Unit{}.render([]section{{"Service", []directive{
		{key: "NoNewPrivileges", value: "yes", why: "Ends sudo, su and every other program with the set-user-ID bit."},
		{key: "CapabilityBoundingSet", value: "", why: "Nothing here is root, and nothing can become it."},
		{key: "RestrictSUIDSGID", value: "yes"},
		{key: "ProtectSystem", value: "full", why: "No /usr, /boot, /etc, whatever their modes say."},
		{key: "ProtectControlGroups", value: "yes"},
		{key: "ProtectKernelTunables", value: "yes"},
		{key: "ProtectKernelModules", value: "yes"},
		{key: "ProtectKernelLogs", value: "yes", since: 244},
		{key: "ProtectHostname", value: "yes", since: 242},
		{key: "RestrictRealtime", value: "yes"},
		{key: "SystemCallFilter", value: "~@clock @cpu-emulation @module @obsolete @raw-io @reboot @swap",
			why: "Only root may call these. ProtectClock would do it for the clock, and close all devices with it."},
		{key: "SystemCallErrorNumber", value: "EPERM"},
	}}})
}

// Paced is the drop-in that gives a packaged unit, which is written for the oldest systemd, what a newer one knows: a reload that
// waits for its end (253) and slower restarts in a crash loop (254). "" for a systemd that knows nothing of it.
func Paced(version int) string {
	u := Unit{Version: version}
	if !u.knows(253) {
		return ""
	}
	lines := []directive{u.kind(), {key: "ExecReload", value: "", why: "systemd sends the signal itself."}}
	if u.knows(254) {
		for _, d := range u.restarts() {
			switch d.key {
			case "RestartSteps", "RestartMaxDelaySec", "ExecStartPost":
				lines = append(lines, d)
			}
		}
	}
	return u.render([]section{{"Service", lines}})
}

// hardened lists the directives. alone: no build is inside.
func hardened(alone bool) []directive {
	lines := []directive{
		{key: "NoNewPrivileges", value: "yes", why: "Ends sudo, su and every other program with the set-user-ID bit."},
		{key: "CapabilityBoundingSet", value: "", why: "Nothing here is root, and nothing can become it."},
		{key: "AmbientCapabilities", value: ""},
		{key: "RestrictSUIDSGID", value: "yes"},
		{key: "ProtectSystem", value: "strict", why: "All is read-only but the agent's own directories (StateDirectory, RuntimeDirectory) and the temporary ones."},
		{key: "ProtectHome", value: "yes", why: "No /home, /root, /run/user."},
		{key: "PrivateTmp", value: "yes", why: "A /tmp of its own: sockets and files of other services are not there, nor containers' of this one's."},
		{key: "PrivateDevices", value: "yes", why: "No disks, no KVM, no GPU; null, random, tty and the like stay."},
		{key: "PrivateUsers", value: "yes", why: "Other accounts are nobody."},
		{key: "ProtectProc", value: "invisible", since: 247, why: "Other accounts' processes, and what is on their command lines, are not seen."},
		{key: "ProtectControlGroups", value: "yes"},
		{key: "ProtectKernelTunables", value: "yes"},
		{key: "ProtectKernelModules", value: "yes"},
		{key: "ProtectKernelLogs", value: "yes", since: 244},
		{key: "ProtectClock", value: "yes", since: 245},
		{key: "ProtectHostname", value: "yes", since: 242},
		{key: "LockPersonality", value: "yes"},
		{key: "RestrictRealtime", value: "yes"},
		{key: "RestrictNamespaces", value: "yes", why: "No containers of one's own; user namespaces are the usual door to holes of the kernel."},
		{key: "RestrictAddressFamilies", value: "AF_UNIX AF_INET AF_INET6 AF_NETLINK", why: "AF_NETLINK: names of interfaces and addresses, which the agent reports."},
		{key: "SystemCallArchitectures", value: "native", why: "No 32-bit programs."},
		{key: "SystemCallFilter", value: "@system-service", why: "A build that needs more is told \"operation not permitted\", and not killed."},
		{key: "SystemCallFilter", value: "~@privileged"},
		{key: "SystemCallErrorNumber", value: "EPERM"},
		{key: "KeyringMode", value: "private"},
	}
	if !alone {
		return lines
	}
	return append(lines,
		directive{key: "SystemCallFilter", value: "~@resources", why: "The agent itself sets no limits and priorities."},
		directive{key: "MemoryDenyWriteExecute", value: "yes", why: "No just-in-time compiler is inside: the JVM runs in the units of the builds."},
		directive{key: "UMask", value: "0077"},
		directive{key: "RemoveIPC", value: "yes", why: "No build shares memory with this unit."},
	)
}

// Where a package has the agent's things, for the texts that are not units.
type Account struct {
	Name string // of the account and its group
	Home string // its home
	More string // directory of the homes of further agents
	Conf string // directory of the operator's files
}

// Sysusers is the file of sysusers.d(5) that makes the account. Builds log in to it with a shell (protocol §3.6.4).
func (a Account) Sysusers() string {
	return "# Runs the agent and its builds. The shell is for builds, which are started by a login shell; there is no password.\n" +
		"u " + a.Name + " - \"BlueKing CI build agent\" " + a.Home + " /bin/bash\n"
}

// Tmpfiles is the file of tmpfiles.d(5) that makes the directories that are needed before the first start, as for enrolling.
func (a Account) Tmpfiles() string {
	return "# Type Path Mode User Group Age\n" +
		"d " + a.Home + " 0750 " + a.Name + " " + a.Name + " -\n" +
		"d " + a.More + " 0755 root root -\n" +
		"d " + a.Conf + " 0755 root root -\n"
}
