package packaging

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"howett.net/plist"

	"github.com/devops-agent/devops-agent/launchd"
)

// TestMain plays the programs of a Mac, in a root directory of their own, when it is called by their names.
func TestMain(m *testing.M) {
	play := map[string]func(args []string) int{
		"launchctl": fakeLaunchctl, "plutil": fakePlutil, "pkgutil": fakePkgutil, "devopsAgent": fakeAgent,
	}[filepath.Base(os.Args[0])]
	if play != nil {
		syscall.Exit(play(os.Args[1:])) // os.Exit takes a second under the race detector, and scripts keep GORACE from it
	}
	os.Exit(m.Run())
}

// Where the Mac that is played keeps what it knows.
const (
	macDir  = "/mac"
	macLog  = macDir + "/log"      // what was called, a line each
	macBusy = macDir + "/busy"     // the agent builds
	macSick = macDir + "/sick"     // the agent cannot be restarted
	macDumb = macDir + "/dumb"     // launchd takes no job
	macOff  = macDir + "/disabled" // the job is disabled
	macJob  = macDir + "/job"      // the job that launchd has
)

// macState is the one job that the launchd that is played may have.
type macState struct {
	File    string // its property list
	Text    string // as it was when it was loaded
	PID     int    // 0: no process
	Runs    int
	Leaving int // so many questions more until it is gone
}

func note(format string, args ...any) {
	f, err := os.OpenFile(macLog, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, _ = fmt.Fprintf(f, format+"\n", args...)
		_ = f.Close()
	}
}

func thereIs(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

func (s *macState) load() bool {
	text, err := os.ReadFile(macJob)
	return err == nil && json.Unmarshal(text, s) == nil
}

func (s *macState) save() {
	text, _ := json.Marshal(s)
	_ = os.WriteFile(macJob+".new", text, 0o600)
	_ = os.Rename(macJob+".new", macJob)
}

// start is what launchd does when a job has no process and is to have one: upgrader start ends at once where the agent is to stay down.
func (s *macState) start() {
	job, err := launchd.ParseJob([]byte(s.Text))
	s.PID = 0
	if err == nil && !thereIs(job.StayDown) {
		s.Runs++
		s.PID = 1000 + s.Runs
	}
	note("started %d", s.PID)
}

// fakeLaunchctl is launchctl as of macOS 26, for one job.
func fakeLaunchctl(args []string) int {
	say := func(code int, text string) int {
		_, _ = fmt.Fprintln(os.Stderr, text)
		return code
	}
	if len(args) < 2 {
		return say(64, "Unrecognized subcommand")
	}
	verb, target := args[0], args[len(args)-1]
	if verb != "print" && verb != "print-disabled" {
		note("launchctl %s", strings.Join(args, " "))
	}
	var s macState
	loaded := s.load()
	if verb != "bootstrap" && verb != "print-disabled" && target != "system/org.devops-agent.agent" {
		return say(64, "unknown target "+target)
	}
	switch verb {
	case "print":
		if loaded && s.Leaving > 0 {
			if s.Leaving--; s.Leaving == 0 {
				_ = os.Remove(macJob)
				loaded = false
			} else {
				s.save()
			}
		}
		if !loaded {
			return say(113, `Could not find service "org.devops-agent.agent" in domain for system`)
		}
		pid := ""
		if s.PID != 0 {
			pid = fmt.Sprintf("\tpid = %d\n", s.PID)
		}
		fmt.Printf("system/org.devops-agent.agent = {\n\tactive count = 1\n\tpath = %s\n%s\truns = %d\n}\n", s.File, pid, s.Runs)
	case "print-disabled":
		word := "enabled"
		if thereIs(macOff) {
			word = "disabled"
		}
		fmt.Printf("\tdisabled services = {\n\t\t\"com.apple.ftpd\" => disabled\n\t\t\"org.devops-agent.agent\" => %s\n\t}\n", word)
	case "bootstrap":
		info, err := os.Lstat(target)
		switch {
		case err != nil || loaded || thereIs(macOff) || thereIs(macDumb):
			return say(5, "Bootstrap failed: 5: Input/output error")
		case !info.Mode().IsRegular() || info.Mode()&0o022 != 0 || info.Sys().(*syscall.Stat_t).Uid != 0:
			return say(122, "Bootstrap failed: 122: Path had bad ownership/permissions")
		}
		text, err := os.ReadFile(target)
		job, perr := launchd.ParseJob(text)
		if err != nil || perr != nil || job.Label+".plist" != filepath.Base(target) {
			return say(109, "Bootstrap failed: 109: Invalid property list")
		}
		s = macState{File: target, Text: string(text)}
		s.start()
		s.save()
	case "bootout":
		if !loaded {
			return say(3, "Boot-out failed: 3: No such process")
		}
		if s.PID != 0 && thereIs(macBusy) {
			note("builds were ended")
		}
		s.Leaving = 3
		s.save()
	case "kill":
		if !loaded {
			return say(113, "Could not find service")
		}
		s.start() // kept alive
		s.save()
	case "enable":
		_ = os.Remove(macOff)
	default:
		return say(64, "Unrecognized subcommand: "+verb)
	}
	return 0
}

// fakePlutil knows -extract KEY raw -o - FILE and -replace KEY -string|-integer VALUE FILE.
func fakePlutil(args []string) int {
	fail := func(text any) int {
		_, _ = fmt.Fprintln(os.Stderr, text)
		return 1
	}
	if len(args) < 5 {
		return fail("usage")
	}
	name := args[len(args)-1]
	text, err := os.ReadFile(name)
	if err != nil {
		return fail(err)
	}
	keys := map[string]any{}
	if _, err := plist.Unmarshal(text, &keys); err != nil {
		return fail(err)
	}
	switch {
	case args[0] == "-extract" && strings.Join(args[2:5], " ") == "raw -o -":
		value, there := keys[args[1]]
		if !there {
			return fail("Could not extract value, error: No value at that key path or invalid key path: " + args[1])
		}
		fmt.Println(value)
		return 0
	case args[0] == "-replace" && args[2] == "-string":
		keys[args[1]] = args[3]
	case args[0] == "-replace" && args[2] == "-integer":
		if keys[args[1]], err = strconv.Atoi(args[3]); err != nil {
			return fail(err)
		}
	default:
		return fail(fmt.Sprint("unknown: ", args))
	}
	if text, err = plist.MarshalIndent(keys, plist.XMLFormat, "\t"); err == nil {
		err = errors.Join(os.Remove(name), os.WriteFile(name, text, 0o600)) // it is another file afterwards
	}
	if err != nil {
		return fail(err)
	}
	return 0
}

func fakePkgutil(args []string) int {
	note("pkgutil %s", strings.Join(args, " "))
	return 0
}

// fakeAgent knows --home DIR restart --when-idle.
func fakeAgent(args []string) int {
	note("devopsAgent %s; environment %s", strings.Join(args, " "), strings.Join(os.Environ(), " "))
	if thereIs(macSick) {
		return 1
	}
	deadline := time.Now().Add(time.Minute)
	for thereIs(macBusy) && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond) // this process is the agent's program, and waits like it
	}
	var s macState
	if !s.load() {
		return 1
	}
	s.start()
	s.save()
	return 0
}

// remove is os.Remove of what may not be there.
func removeIfThere(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}
