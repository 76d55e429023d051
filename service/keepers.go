package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/systemd"
	"github.com/devops-agent/devops-agent/upgrader/swap"
	"github.com/devops-agent/devops-agent/windows"
)

// NewKeeper is one certain keeper of an installation. What it registers is recorded in home, so that Of finds it again. An
// unknown name, and "none", are ErrNoKeeper.
func NewKeeper(inst *Installation, k Keeper) (Supervisor, error) {
	var s Supervisor
	switch k {
	case KeeperSystemd, KeeperSystemdUser:
		s = NewSystemd(inst, k == KeeperSystemdUser)
	case KeeperLaunchd, KeeperLaunchAgent:
		s = NewLaunchd(inst, k == KeeperLaunchAgent)
	case KeeperDaemon:
		s = NewDirect(inst)
	case KeeperSCM:
		s = NewSCM(inst)
	default:
		return nil, fmt.Errorf("keeper %q: %w", k, ErrNoKeeper)
	}
	return &recorded{Supervisor: s, inst: inst}, nil
}

// Best is the best keeper that this machine has for an installation, and whom this account may ask: that of the system for
// root and for what packages installed, the user's own else, devopsDaemon where there is neither.
func Best(inst *Installation) (Supervisor, error) {
	return NewKeeper(inst, best(inst, machine{
		goos: runtime.GOOS, root: os.Geteuid() == 0, systemd: systemd.Here(false), user: systemd.Here(true),
	}))
}

// machine is what the choice of a keeper depends on.
type machine struct {
	goos    string
	root    bool
	systemd bool // it runs here
	user    bool // it runs for this user, and can be reached
}

func best(inst *Installation, m machine) Keeper {
	switch m.goos {
	case "windows":
		return KeeperSCM
	case "darwin":
		if m.root || packaged(m.goos, inst.Home) {
			return KeeperLaunchd
		}
		return KeeperLaunchAgent
	}
	switch {
	case m.systemd && (m.root || packaged(m.goos, inst.Home)):
		return KeeperSystemd
	case m.user && !m.root:
		return KeeperSystemdUser
	}
	return KeeperDaemon
}

// packaged reports whether a home is one that a package's unit is for.
func packaged(goos, home string) bool {
	home = cleanFor(goos, home)
	if home == cleanFor(goos, Packaged(goos).Home) {
		return true
	}
	name, ok := strings.CutPrefix(home, instances)
	return ok && goos == "linux" && name != "" && !strings.Contains(name, "/")
}

// Of is the keeper with which an installation was registered: by us, by a package or by the original, whose word is in
// .install_type (protocol §2.1); or the devopsDaemon that runs there. The error is ErrNoKeeper when there is none.
func Of(inst *Installation) (Supervisor, error) {
	if r, err := readKeeper(inst); err == nil {
		return NewKeeper(inst, r.Keeper)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if packaged(runtime.GOOS, inst.Home) {
		switch runtime.GOOS {
		case "windows":
			return NewKeeper(inst, KeeperSCM)
		case "darwin":
			return NewKeeper(inst, KeeperLaunchd)
		}
		return NewKeeper(inst, KeeperSystemd)
	}
	if word, err := os.ReadFile(inst.Path(".install_type")); err == nil {
		if k, ok := keeperOfWord(runtime.GOOS, strings.TrimSpace(string(word))); ok {
			return NewKeeper(inst, k)
		}
	}
	if runtime.GOOS == "windows" { // the original's older scripts leave nothing in home
		if there, err := (windows.Manager{}).Query(NewSCM(inst).Name()); err == nil && there.Installed {
			return NewKeeper(inst, KeeperSCM)
		}
	}
	if free, err := inst.free(RoleDaemon); err == nil && !free {
		return NewKeeper(inst, KeeperDaemon)
	}
	return nil, &unregisteredError{inst.Home}
}

// unregisteredError: no keeper knows this home.
type unregisteredError struct{ home string }

// Error names the home.
func (e *unregisteredError) Error() string { return "no keeper for the agent in " + e.home }

// Hint says how it gets one.
func (e *unregisteredError) Hint() string { return "\"devopsAgent install\" registers it" }

// Is makes it an ErrNoKeeper.
func (e *unregisteredError) Is(target error) bool { return target == ErrNoKeeper }

// The words of .install_type (protocol §2.1), which the original's own programs read.
const (
	wordService    = "SERVICE"
	wordUser       = "USER"
	wordDirect     = "DIRECT"
	wordLogin      = "LOGIN"
	wordBackground = "BACKGROUND"
	wordDaemon     = "DAEMON"
	wordSession    = "SESSION"
	wordTask       = "TASK"
)

func keeperOfWord(goos, word string) (Keeper, bool) {
	k, ok := map[string]map[string]Keeper{
		"linux":   {wordService: KeeperSystemd, wordUser: KeeperSystemdUser, wordDirect: KeeperDaemon},
		"darwin":  {wordLogin: KeeperLaunchAgent, wordBackground: KeeperLaunchAgent, wordDaemon: KeeperLaunchd, wordDirect: KeeperDaemon},
		"windows": {wordService: KeeperSCM, wordSession: KeeperSCM},
	}[goos][word]
	return k, ok
}

func wordOf(k Keeper, s Setup) string {
	switch k {
	case KeeperSystemdUser:
		return wordUser
	case KeeperDaemon:
		return wordDirect
	case KeeperLaunchd:
		return wordDaemon
	case KeeperLaunchAgent:
		return wordLogin
	}
	if s.Session {
		return wordSession
	}
	return wordService
}

// keeperRecord is home's .keeper.
type keeperRecord struct {
	Keeper Keeper    `json:"keeper"`
	Name   string    `json:"name"`
	User   string    `json:"user,omitempty"`   // the account the agent was to run as
	Reboot bool      `json:"reboot,omitempty"` // the daemon: there is a line in the crontab
	At     time.Time `json:"at"`
}

const (
	keeperFile = ".keeper"
	typeFile   = ".install_type"
)

// readKeeper reads what writeKeeper wrote; fs.ErrNotExist when there is nothing.
func readKeeper(inst *Installation) (keeperRecord, error) {
	var r keeperRecord
	text, err := os.ReadFile(inst.Path(keeperFile))
	if err != nil {
		return r, fmt.Errorf("read which keeper the agent has: %w", err)
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("read which keeper the agent has: %s: %w", inst.Path(keeperFile), err)
	}
	return r, nil
}

// writeKeeper records with what an installation was registered: in .install_type for programs of the original, in .keeper
// for ours.
func writeKeeper(inst *Installation, r keeperRecord, s Setup) error {
	if before, err := readKeeper(inst); err == nil && before.Keeper == r.Keeper && before.Name == r.Name &&
		before.User == r.User && before.Reboot == r.Reboot {
		r.At = before.At
	}
	text, err := json.Marshal(r)
	if err == nil {
		err = errors.Join(swap.WriteFile(inst.Path(keeperFile), append(text, '\n'), publicMode),
			swap.WriteFile(inst.Path(typeFile), []byte(wordOf(r.Keeper, s)), publicMode))
	}
	if err != nil {
		return fmt.Errorf("record which keeper the agent has: %w", err)
	}
	return nil
}

func removeKeeper(inst *Installation) error {
	for _, name := range []string{keeperFile, typeFile} {
		if err := os.Remove(inst.Path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget which keeper the agent has: %w", err)
		}
	}
	return nil
}

// publicMode: no secret, and "devopsAgent status" is for everybody.
const publicMode = 0o644

// recorded is a keeper that leaves a note in home.
type recorded struct {
	Supervisor
	inst *Installation
}

// Install registers, and writes down what with.
func (r *recorded) Install(ctx context.Context, s Setup) error {
	err := r.Supervisor.Install(ctx, s)
	var linger *LingerError // installed all the same
	if err != nil && !errors.As(err, &linger) {
		return err
	}
	return errors.Join(err, writeKeeper(r.inst, keeperRecord{Keeper: r.Keeper(), Name: r.Name(), User: s.User, Reboot: s.Reboot,
		At: time.Now().UTC().Truncate(time.Second)}, s))
}

// Uninstall takes both back.
func (r *recorded) Uninstall(ctx context.Context) error {
	if err := r.Supervisor.Uninstall(ctx); err != nil {
		return err
	}
	return removeKeeper(r.inst)
}

// Notes is what an operator should know after Install.
func (r *recorded) Notes() []string {
	if n, ok := r.Supervisor.(interface{ Notes() []string }); ok {
		return n.Notes()
	}
	return nil
}
