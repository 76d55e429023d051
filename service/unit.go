package service

import (
	"path"
	"time"

	"github.com/devops-agent/devops-agent/systemd"
)

// Where a Linux package puts what belongs to systemd.
const (
	systemUnits = "/usr/lib/systemd/system"
	// DropIns holds the drop-ins that an operator may link into /etc/systemd/system/<unit>.d (docs/hardening.md).
	DropIns = "/usr/lib/devops-agent/systemd"
)

// defaultDrain is drain.timeout where agent.toml does not say otherwise. A running agent asks systemd for more if it does.
const defaultDrain = 10 * time.Minute

// SystemdFiles are the files of a Linux package that are for systemd: the unit, the template for further agents, their account,
// their directories, and drop-ins to choose from.
func SystemdFiles() ([]systemd.File, error) {
	l := Packaged("linux")
	unit, err := packagedUnit(l, false).Text()
	if err != nil {
		return nil, err
	}
	template, err := packagedUnit(Instance(systemd.Instance), true).Text()
	if err != nil {
		return nil, err
	}
	account := systemd.Account{Name: l.Account, Home: l.Home, More: path.Clean(instances), Conf: path.Dir(l.Config)}
	return []systemd.File{
		{Path: systemUnits + "/" + l.Name, Mode: 0o644, Text: unit},
		{Path: systemUnits + "/devops-agent@.service", Mode: 0o644, Text: template},
		{Path: "/usr/lib/sysusers.d/devops-agent.conf", Mode: 0o644, Text: account.Sysusers()},
		{Path: "/usr/lib/tmpfiles.d/devops-agent.conf", Mode: 0o644, Text: account.Tmpfiles()},
		{Path: DropIns + "/no-sudo.conf", Mode: 0o644, Text: systemd.NoSudo()},
		{Path: DropIns + "/hardened.conf", Mode: 0o644, Text: systemd.Hardened()},
		{Path: DropIns + "/separate-builds.conf", Mode: 0o644, Text: systemd.Separate()},
	}, nil
}

// packagedUnit is the unit of a package's first agent, or the template for the others.
func packagedUnit(l Layout, template bool) systemd.Unit {
	name := path.Base(l.Home)
	u := systemd.Unit{
		Description: "BlueKing CI build agent",
		Exec:        startCommand(l.Vendor, l.Home, l.Vendor),
		Ended:       endedCommand(l.Vendor, l.Home),
		Home:        l.Home, User: l.Account,
		State: name, Runtime: name, Configuration: path.Base(path.Dir(l.Config)),
		Bounded: true, Drain: defaultDrain, StayDown: ExitStayDown,
	}
	if template {
		u.Description += " " + name
		u.State = path.Base(path.Dir(l.Home)) + "/" + name
		u.Runtime = u.State
	}
	return u
}

// portableUnit is the unit of an installation in a directory of its own, for the system's manager or a user's.
func portableUnit(home string, s Setup, user bool, version int) systemd.Unit {
	drain := s.Drain
	if drain <= 0 {
		drain = defaultDrain
	}
	programs := home
	if s.Vendor != "" {
		programs = s.Vendor
	}
	u := systemd.Unit{
		Description: "BlueKing CI build agent in " + home,
		Exec:        startCommand(programs, home, s.Vendor),
		Ended:       endedCommand(programs, home),
		Home:        home, OfUser: user, Drain: drain, StayDown: ExitStayDown, Version: version,
	}
	if !user && s.User != "root" {
		u.User = s.User
	}
	return u
}

// startCommand makes an agent of home out of the programs of a directory (design: home and vendor).
func startCommand(programs, home, vendor string) []string {
	command := []string{path.Join(programs, "upgrader"), "start", "--home", home}
	if vendor != "" {
		command = append(command, "--vendor", vendor)
	}
	return command
}

// endedCommand notes the end of an agent on trial.
func endedCommand(programs, home string) []string {
	return []string{path.Join(programs, "upgrader"), "ended", "--home", home}
}
