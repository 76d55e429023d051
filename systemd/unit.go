package systemd

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// Oldest is the version of systemd that units are written for when nobody knows which one reads them: that of Debian 12
// and of RHEL 9.
const Oldest = 252

// Unit is a service of one agent, or of many when its values hold [Instance]. It is a value: the same one is installed on a
// machine and shipped in packages.
type Unit struct {
	Description string
	Exec        []string // program, absolute, and its arguments, each as the program is to see it
	Ended       []string // program and arguments that are run whenever the agent has ended, and may fail; nil for none
	Home        string   // working directory; systemd waits for the file system it is on
	User        string   // account, name or number; "" for root, or for the owner of a user's manager
	OfUser      bool     // for "systemd --user"

	// Directories that systemd makes for the account: below /var/lib, /run and /etc. "" for none.
	State, Runtime, Configuration string

	// Bounded takes from builds those rights of root that none needs, even by sudo.
	Bounded bool

	Drain    time.Duration // how long a stop waits for builds (drain.timeout of agent.toml)
	StayDown int           // exit code after which the agent is left alone
	Version  int           // of the systemd that reads the unit; 0 for Oldest
}

// What the agent and systemd promise each other.
const (
	// Watchdog is how long the agent may be silent; it says that it is alive every 10 s. With the restart it is back
	// within 60 s of a hang.
	Watchdog = 45 * time.Second
	// stopMargin is for reports and the end of processes, after drain.timeout.
	stopMargin = 30 * time.Second
	// restartMax is the longest pause in a crash loop.
	restartMax = 30 * time.Second
)

// directive is one line of a unit.
type directive struct {
	key, value string
	why        string // printed above it; "" for what needs no reason
	since      int    // version of systemd that knows it; 0 for all
}

// section is a part of a unit file.
type section struct {
	name  string
	lines []directive
}

// Text is the unit file. A value that systemd would not read back as it is given is a *ValueError.
func (u Unit) Text() (string, error) {
	home, err := directory("home directory", u.Home)
	if err != nil {
		return "", err
	}
	command, err := line(u.Exec)
	if err != nil {
		return "", err
	}

	unit := []directive{
		{key: "Description", value: sentence(u.Description)},
		{key: "Documentation", value: "https://github.com/devops-agent/devops-agent"},
	}
	if !u.OfUser {
		unit = append(unit, directive{key: "After", value: "network.target nss-lookup.target nss-user-lookup.target remote-fs.target docker.service",
			why: "Not network-online.target: without a network the agent runs, says so and asks again. At shutdown it is stopped\n" +
				"before these, so that builds can end and reports get out."})
	}
	unit = append(unit, directive{key: "StartLimitIntervalSec", value: "0",
		why: "Never give up: a crash loop is slowed down instead."})

	service := []directive{u.kind(), {key: "NotifyAccess", value: "main"}}
	if u.User != "" {
		name, err := account(u.User)
		if err != nil {
			return "", err
		}
		service = append(service, directive{key: "User", value: name})
	}
	service = append(service,
		directive{key: "WorkingDirectory", value: home, why: "Also waits for the file system that it is on."},
		directive{key: "ExecStart", value: command,
			why: "Puts an interrupted upgrade right, then becomes the agent under the same pid."})
	if len(u.Ended) > 0 {
		ended, err := line(u.Ended)
		if err != nil {
			return "", err
		}
		service = append(service, directive{key: "ExecStopPost", value: "-" + ended,
			why: "Notes how a new version on trial has ended, which systemd forgets with the next start; else it does nothing."})
	}
	service = append(service, u.reload()...)
	service = append(service, u.restarts()...)
	service = append(service, u.stops()...)
	service = append(service, u.resources()...)
	service = append(service, u.directories()...)
	if u.Bounded {
		service = append(service, bounded())
	}

	wanted := "multi-user.target"
	if u.OfUser {
		wanted = "default.target"
	}
	return u.render([]section{{"Unit", unit}, {"Service", service}, {"Install", []directive{{key: "WantedBy", value: wanted}}}}), nil
}

// line is a command line: a program, absolute, and its arguments.
func line(command []string) (string, error) {
	first, err := program(command[0])
	if err != nil {
		return "", err
	}
	words := []string{first}
	for _, arg := range command[1:] {
		words = append(words, word(arg))
	}
	return strings.Join(words, " "), nil
}

func (u Unit) version() int {
	if u.Version == 0 {
		return Oldest
	}
	return u.Version
}

// knows reports whether the systemd that reads the unit knows a thing of this version.
func (u Unit) knows(since int) bool { return u.version() >= since }

func (u Unit) kind() directive {
	d := directive{key: "Type", value: "notify", why: "Started is who has reached the server, or has tried for a few seconds."}
	if u.knows(253) {
		d.value = "notify-reload"
	}
	return d
}

// reload is what "systemctl reload" does: SIGHUP, by which agent.toml is read again. From 253 on systemd sends it by itself
// and waits for the end.
func (u Unit) reload() []directive {
	if u.knows(253) {
		return nil
	}
	return []directive{{key: "ExecReload", value: `/bin/sh -c 'kill -HUP "$MAINPID"'`,
		why: "Reads agent.toml again. The shell's own kill: minimal systems have no /bin/kill."}}
}

func (u Unit) restarts() []directive {
	lines := []directive{
		{key: "Restart", value: "always"},
		{key: "RestartSec", value: "1ms", why: "systemd's timers come up to 250 ms late: with 100ms half of all restarts would take longer than that."},
		{key: "RestartSteps", value: "30", since: 254, why: "A crash loop is slowed down, up to this pause. Before systemd 254 ExecStart does that alone."},
		{key: "RestartMaxDelaySec", value: seconds(restartMax), since: 254},
	}
	if u.knows(254) {
		reset := "-+/usr/bin/systemctl reset-failed %n"
		if u.OfUser {
			reset = "-/usr/bin/systemctl --user reset-failed %n"
		}
		lines = append(lines, directive{key: "ExecStartPost", value: reset,
			why: "Who got ready begins anew: systemd counts restarts over the whole life of a unit, and would be slow to bring\n" +
				"back an agent that was killed thirty times in a year."})
	}
	code := strconv.Itoa(u.StayDown)
	return append(lines,
		directive{key: "RestartPreventExitStatus", value: code, why: "The agent was deleted on the server: stay down. That is no failure."},
		directive{key: "SuccessExitStatus", value: code},
		directive{key: "TimeoutStartSec", value: "2min", why: "A crash loop's pause and a large upgrade ask for more (EXTEND_TIMEOUT_USEC)."},
		directive{key: "WatchdogSec", value: seconds(Watchdog), why: "A hung agent is replaced within 60 s. It leaves its stacks in the journal."},
		directive{key: "TimeoutAbortSec", value: "10s", since: 243, why: "Who cannot even do that is killed soon, not after the time of a drain."})
}

func (u Unit) stops() []directive {
	return []directive{
		{key: "KillMode", value: "process", why: "Builds are the agent's to end: a restart leaves them running, a stop drains them, and the next agent adopts\n" +
			"those of one that was killed."},
		{key: "TimeoutStopSec", value: seconds(u.Drain + stopMargin), why: "drain.timeout and a margin. The agent asks for more if agent.toml says more."},
	}
}

func (u Unit) resources() []directive {
	lines := []directive{
		{key: "OOMPolicy", value: "continue", since: 243, why: "A build that runs out of memory is that build's end, not the agent's."},
		{key: "TasksMax", value: "80%", why: "Compilers and JVMs in parallel are thousands of threads; the rest is left for who has to log in."},
		{key: "LimitNOFILE", value: "65536:524288", why: "Builds inherit it, and 1024 is too little for many."},
	}
	if !u.OfUser {
		lines = append(lines, directive{key: "UMask", value: "0022", why: "That of builds. The agent makes its own files private by itself."})
	}
	return append(lines, directive{key: "SyslogIdentifier", value: "devopsAgent"})
}

func (u Unit) directories() []directive {
	var lines []directive
	add := func(kind, name string, mode string) {
		if name == "" {
			return
		}
		lines = append(lines, directive{key: kind + "Directory", value: strings.ReplaceAll(strings.ReplaceAll(name, "%", "%%"), Instance, "%i")},
			directive{key: kind + "DirectoryMode", value: mode})
	}
	add("State", u.State, "0750")
	add("Runtime", u.Runtime, "0700")
	if u.Runtime != "" {
		lines = append(lines, directive{key: "RuntimeDirectoryPreserve", value: "restart", why: "Counts short lives, for the pause of a crash loop."})
	}
	add("Configuration", u.Configuration, "0755")
	return lines
}

// bounded leaves sudo of builds what installing packages, mounting, tracing and the network need. Everything else in the
// way of hardening sets no_new_privs for an account other than root, or moves the unit to a mount namespace, and with it
// sudo or what builds share with containers ends: that is for [Hardened].
func bounded() directive {
	taken := []string{"CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_TIME", "CAP_SYS_BOOT", "CAP_SYS_PACCT", "CAP_SYS_TTY_CONFIG",
		"CAP_LINUX_IMMUTABLE", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_LEASE", "CAP_AUDIT_CONTROL", "CAP_AUDIT_READ",
		"CAP_NET_BROADCAST", "CAP_MAC_OVERRIDE"}
	slices.Sort(taken)
	return directive{key: "CapabilityBoundingSet", value: "~" + strings.Join(taken, " "),
		why: "Not even sudo in a build loads kernel modules, sets the clock or reaches hardware directly.\n" +
			"A drop-in with \"CapabilityBoundingSet=~\" gives all back."}
}

// render writes sections; directives that the reading systemd does not know are left out.
func (u Unit) render(sections []section) string {
	var b strings.Builder
	for i, s := range sections {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString("[" + s.name + "]\n")
		for _, d := range s.lines {
			if !u.knows(d.since) {
				continue
			}
			for why := range strings.Lines(d.why) {
				b.WriteString("# " + strings.TrimSuffix(why, "\n") + "\n")
			}
			b.WriteString(d.key + "=" + d.value + "\n")
		}
	}
	return b.String()
}

// seconds writes a duration so that systemd of any version reads it.
func seconds(d time.Duration) string {
	if d%time.Second != 0 {
		return strconv.FormatInt(d.Milliseconds(), 10) + "ms"
	}
	return strconv.FormatInt(int64(d/time.Second), 10) + "s"
}
