package systemd

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Status is what "systemctl show" says about a unit.
type Status struct {
	Load     string // loaded, not-found, masked, bad-setting, error
	Active   string // active, reloading, inactive, failed, activating, deactivating
	Sub      string // running, dead, auto-restart, start, stop-sigterm, …
	Result   string // success, exit-code, signal, watchdog, oom-kill, timeout, …
	File     string // enabled, disabled, static, masked, …; "" for a unit without a file
	Fragment string // path of the unit file
	Text     string // the agent's own sentence (STATUS=)
	MainPID  int    // 0 for none
	Restarts int    // since somebody started or reset it; -1 when this systemd does not count
	ExitKind int    // how the last main process ended: 1 exited, 2 killed, 3 dumped; 0 when none has
	Exit     int    // its exit code or signal
	Since    time.Time
	Reload   bool // the file was changed since systemd read it
}

// Known reports whether systemd has such a unit.
func (s Status) Known() bool { return s.Load != "not-found" && s.Load != "" }

// Down reports whether no process runs and none is about to.
func (s Status) Down() bool { return s.Active == "inactive" || s.Active == "failed" }

// properties are what Show asks for.
func properties() []string {
	return []string{"LoadState", "ActiveState", "SubState", "Result", "UnitFileState", "FragmentPath", "StatusText", "MainPID", "NRestarts",
		"ExecMainCode", "ExecMainStatus", "StateChangeTimestamp", "NeedDaemonReload"}
}

// parseShow reads lines of the form Name=value; what it does not know it passes over.
func parseShow(text string) (Status, error) {
	s := Status{Restarts: -1}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), "=")
		if !ok {
			continue
		}
		var err error
		switch name {
		case "LoadState":
			s.Load = value
		case "ActiveState":
			s.Active = value
		case "SubState":
			s.Sub = value
		case "Result":
			s.Result = value
		case "UnitFileState":
			s.File = value
		case "FragmentPath":
			s.Fragment = value
		case "StatusText":
			s.Text = value
		case "MainPID":
			s.MainPID, err = count(value)
		case "NRestarts":
			s.Restarts, err = count(value)
		case "ExecMainCode":
			s.ExitKind, err = count(value)
		case "ExecMainStatus":
			s.Exit, err = count(value)
		case "StateChangeTimestamp":
			s.Since, err = timestamp(value)
		case "NeedDaemonReload":
			s.Reload = value == "yes"
		}
		if err != nil {
			return Status{}, fmt.Errorf("systemctl show: %s: %w", name, err)
		}
	}
	if s.Load == "" || s.Active == "" {
		return Status{}, fmt.Errorf("systemctl show: no state in %.100q", text)
	}
	return s, nil
}

func count(value string) (int, error) {
	n, err := strconv.ParseUint(value, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("%q is no number", value)
	}
	return int(n), nil
}

// timestamp reads "Mon 2026-11-23 03:41:07 UTC"; empty and n/a are no time.
func timestamp(value string) (time.Time, error) {
	if value == "" || value == "n/a" {
		return time.Time{}, nil
	}
	_, rest, ok := strings.Cut(value, " ")
	t, err := time.Parse("2006-01-02 15:04:05 UTC", rest)
	if !ok || err != nil {
		return time.Time{}, fmt.Errorf("%q is no time of UTC", value)
	}
	return t, nil
}
