package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/service"
)

// HomeVariable names the home for verbs that were given none.
const homeVariable = "DEVOPS_AGENT_HOME"

// place is what the command line says about which agent is meant.
type place struct {
	home     string // --home
	instance string // --instance
}

// located is the home that a verb works on.
type located struct {
	home  string
	given bool // it was named, and must be named again in what is to be typed
	place place
}

// instanceName is what systemd takes as it is, and no path.
var instanceName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)

// locate finds the home of a verb: the one named by --instance, --home or the variable; that of the program, when it
// lies in a home; that of the package, when there is one; else the directory of the program. A bare call, which runs the
// agent, has the older rule of [open]: keepers name the home or start the program in it.
func (p place) locate() (located, error) {
	l := located{given: true, place: p}
	switch {
	case p.instance != "" && p.home != "":
		return l, &adviceError{"--home and --instance are both given", "give one of the two"}
	case p.instance != "":
		if runtime.GOOS != "linux" || !instanceName.MatchString(p.instance) {
			return l, &adviceError{fmt.Sprintf("--instance %q", p.instance), "instances are for Linux; their names are letters, digits, points, hyphens and underscores"}
		}
		l.home = service.Instance(p.instance).Home
	case p.home != "":
		l.home = p.home
	case os.Getenv(homeVariable) != "":
		l.home = os.Getenv(homeVariable)
	default:
		own, err := service.HomeOf(os.Args[0])
		if err != nil {
			return l, err
		}
		l.home, l.given = usual(own, service.Packaged(runtime.GOOS).Home), false
	}
	abs, err := filepath.Abs(l.home)
	if err != nil {
		return l, fmt.Errorf("find home %s: %w", l.home, err)
	}
	l.home = abs
	return l, nil
}

// usual is the home when none was named: that of the program when an agent lives there, that of the package when there is
// one, else that of the program.
func usual(own, packaged string) string {
	if info, err := os.Stat(packaged); !isHome(own) && err == nil && info.IsDir() {
		return packaged
	}
	return own
}

// open opens the home of a verb, which must exist.
func (p place) open() (located, *service.Installation, error) {
	l, err := p.locate()
	if err != nil {
		return l, nil, err
	}
	inst, err := service.Open(l.home)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil, &noHomeError{home: l.home, command: l.command("install --gateway URL --token-file FILE"), err: err}
	}
	return l, inst, err
}

// noHomeError: the directory of an agent is not there.
type noHomeError struct {
	home, command string
	err           error
}

// Error names it.
func (e *noHomeError) Error() string { return "there is no agent in " + e.home + ": no such directory" }

// Unwrap returns the cause.
func (e *noHomeError) Unwrap() error { return e.err }

// Hint says how to name another, or to make this one.
func (e *noHomeError) Hint() string {
	return "name the home of an agent with --home DIR; for a new agent there: " + e.command
}

// directory is the value of --home. An empty one is a mistake, as of a script whose variable is empty: it must not mean
// some other agent.
type directory struct{ path *string }

// String is the value.
func (d directory) String() string {
	if d.path == nil {
		return ""
	}
	return *d.path
}

// Set takes a value that is not empty.
func (d directory) Set(value string) error {
	if value == "" {
		return errors.New("it is empty")
	}
	*d.path = value
	return nil
}

// Type is what help calls it.
func (directory) Type() string { return "string" }

// isHome reports whether an agent lived in a directory, or was registered there.
func isHome(dir string) bool {
	for _, name := range []string{config.PropertiesFile, config.BackupFile, ".keeper", ".install_type", "runtime"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

// lived reports whether an agent lived in a directory for certain: what is called as an agent calls its files may be removed
// there.
func lived(dir string) bool {
	for _, name := range []string{config.PropertiesFile, config.BackupFile, ".keeper", ".install_type", ".enrolment", "runtime/agent.lock", "runtime/agent.pid"} {
		if _, err := os.Lstat(filepath.Join(dir, filepath.FromSlash(name))); err == nil {
			return true
		}
	}
	return false
}

// command is what is to be typed for a verb on this home, with sudo where this account may not.
func (l located) command(verb string) string {
	name := "devopsAgent"
	if len(os.Args) > 0 && os.Args[0] != "" {
		name = os.Args[0]
	}
	sudo := mustSudo(l.home)
	if sudo { // sudo has a PATH of its own, and no variables of ours
		if abs, err := os.Executable(); err == nil {
			name = abs
		}
	}
	words := []string{shell(name), verb}
	switch {
	case l.place.instance != "":
		words = append(words, "--instance", l.place.instance)
	case l.given && (sudo || l.place.home != ""):
		words = append(words, "--home", shell(l.home))
	}
	if sudo {
		words = append([]string{"sudo"}, words...)
	}
	return strings.Join(words, " ")
}

// asRoot is the same for a verb that needs root although the home is this account's.
func (l located) asRoot(verb string) string {
	command := l.command(verb)
	if runtime.GOOS == "windows" || isRoot() || strings.HasPrefix(command, "sudo ") {
		return command
	}
	own, err := os.Executable()
	if err != nil {
		return "sudo " + command
	}
	return strings.Join([]string{"sudo", shell(own), verb, "--home", shell(l.home)}, " ")
}

// adviceError is an error with its hint.
type adviceError struct{ what, do string }

// Error says what.
func (e *adviceError) Error() string { return e.what }

// Hint says what to do.
func (e *adviceError) Hint() string { return e.do }

// rightsError: this account may not.
type rightsError struct {
	what    string
	command string
	err     error
}

// Error says what may not be done.
func (e *rightsError) Error() string {
	if e.err == nil {
		return e.what
	}
	return e.what + ": " + e.err.Error()
}

// Unwrap returns the cause.
func (e *rightsError) Unwrap() error { return e.err }

// Hint says how to do it with the rights that it needs.
func (e *rightsError) Hint() string {
	if runtime.GOOS == "windows" {
		return "do this in an administrator's console: " + e.command
	}
	return "type: " + e.command
}

// mayChange refuses a verb on somebody else's home, with the command that would work.
func (l located) mayChange(cmd *cobra.Command, args []string) error {
	if !mustSudo(l.home) {
		return nil
	}
	return &rightsError{what: fmt.Sprintf("%s %s: it belongs to %s", cmd.Name(), l.home, ownerOf(l.home)), command: l.command(typed(cmd, args))}
}

// typed is a verb with its arguments and flags as they were typed, but for those that say which agent is meant.
func typed(cmd *cobra.Command, args []string) string {
	words := []string{cmd.Name()}
	for _, arg := range args {
		words = append(words, shell(arg))
	}
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		switch {
		case !f.Changed:
		case f.Value.Type() == "bool" && f.Value.String() == "true":
			words = append(words, "--"+f.Name)
		default:
			words = append(words, "--"+f.Name+"="+shell(f.Value.String()))
		}
	})
	return strings.Join(words, " ")
}

// system says whether a keeper is the system's, which only root commands.
func system(k service.Keeper) bool {
	return k == service.KeeperSystemd || k == service.KeeperLaunchd || k == service.KeeperSCM
}

// mayCommand refuses a verb on a keeper that only root commands, or only the account whose own it is.
func (l located) mayCommand(cmd *cobra.Command, args []string, k service.Keeper, name string) error {
	return l.mayAsk(cmd.Name(), typed(cmd, args), k, name)
}

// mayAsk is the same for any verb: what is done, and what is to be typed for it.
func (l located) mayAsk(what, verb string, k service.Keeper, name string) error {
	if owner, ok := ownerID(l.home); ok && isRoot() && owner != "0" && (k == service.KeeperSystemdUser || k == service.KeeperLaunchAgent) {
		own, err := os.Executable()
		if err != nil {
			return err
		}
		return &rightsError{what: fmt.Sprintf("%s: %s is commanded by %s alone", what, keeperName(k, name), ownerOf(l.home)),
			command: strings.Join([]string{"sudo -u", shell(ownerOf(l.home)), shell(own), verb, "--home", shell(l.home)}, " ")}
	}
	if !system(k) || isRoot() {
		return nil
	}
	return &rightsError{what: fmt.Sprintf("%s: %s is commanded by root alone", what, keeperName(k, name)), command: l.asRoot(verb)}
}
