package launchd

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"howett.net/plist"
)

// Job is what launchd is told about an agent (launchd.plist(5)). The zero value of a field leaves its key out.
type Job struct {
	Label   string   // reverse DNS, or a name of the original agent; also the name of the file
	Program []string // program, absolute, and its arguments; no shell sees them

	Directory   string            // working directory, absolute
	User        string            // account; daemons of the system domain only
	Environment map[string]string // of the program

	// StayDown is the path of a file. While it is there the job is not started again when it ends; loading it starts it
	// once all the same. Empty: it is always started again. See docs/decisions/0011-launchd.md for why it is a file:
	// launchd can tell a success from a failure and a crash, but not one exit code from another.
	StayDown string

	// Throttle is the least time from one start to the next. Whole seconds, at least 1; launchd's default is 10 s.
	Throttle time.Duration
	// ExitTimeout is the time from SIGTERM to SIGKILL, rounded up to whole seconds. launchd reads 0 as "for ever", and its
	// default is a matter of the version (5 s or 20 s): a Job must name it.
	ExitTimeout time.Duration

	Type     ProcessType
	Session  Session
	MaxFiles int         // soft limit of open files; launchd's default of 256 is too small for builds
	Umask    fs.FileMode // 0 leaves the key out
	Stdout   string      // path
	Stderr   string      // path; a job whose output cannot be opened is not started, its directory must be there
}

// ProcessType says how macOS treats the job and all that it starts.
type ProcessType string

// The types that make sense for an agent.
const (
	// Interactive is not throttled. Builds inherit it from the agent: with Standard, macOS slows their CPU and I/O down.
	Interactive ProcessType = "Interactive"
	Standard    ProcessType = "Standard"
	Background  ProcessType = "Background"
)

// Session is the kind of session an agent of a user lives in (LimitLoadToSessionType).
type Session string

// The sessions. A job that names both would run twice.
const (
	SessionAqua       Session = "Aqua"       // from a login at the screen to its logout: the domain gui/UID
	SessionBackground Session = "Background" // as long as the user has any session, one over ssh too: the domain user/UID
)

// maxSeconds bounds the durations: launchd keeps them in 32 bits.
const maxSeconds = math.MaxInt32

// labelForm keeps labels to what is safe in a file name and in a target of launchctl ("system/LABEL").
var labelForm = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

// ValidLabel reports whether a name can be a job's label here: letters, digits, dot, underscore, hyphen; at most 128.
func ValidLabel(name string) bool { return labelForm.MatchString(name) }

// File is the path of the job's property list in a directory such as /Library/LaunchDaemons. launchd wants the name of the
// file to be that of the job.
func (j Job) File(dir string) string { return path.Join(dir, j.Label+".plist") }

// Plist renders the job as an XML property list, the same bytes for the same value. A value that launchd would refuse or
// misread is an error.
func (j Job) Plist() ([]byte, error) {
	if err := j.check(); err != nil {
		return nil, fmt.Errorf("launchd job %q: %w", j.Label, err)
	}
	keys := map[string]any{
		"Label":            j.Label,
		"ProgramArguments": j.Program,
		"RunAtLoad":        true,
		"KeepAlive":        true,
		// A job that ends takes its process group with it unless told otherwise: builds must survive the agent.
		"AbandonProcessGroup": true,
		"ExitTimeOut":         seconds(j.ExitTimeout),
		"ThrottleInterval":    seconds(j.Throttle),
	}
	if j.StayDown != "" {
		keys["KeepAlive"] = map[string]any{"PathState": map[string]any{j.StayDown: false}}
	}
	for key, value := range map[string]string{
		"WorkingDirectory": j.Directory, "UserName": j.User, "ProcessType": string(j.Type),
		"LimitLoadToSessionType": string(j.Session), "StandardOutPath": j.Stdout, "StandardErrorPath": j.Stderr,
	} {
		if value != "" {
			keys[key] = value
		}
	}
	if len(j.Environment) > 0 {
		keys["EnvironmentVariables"] = j.Environment
	}
	if j.MaxFiles > 0 {
		keys["SoftResourceLimits"] = map[string]any{"NumberOfFiles": j.MaxFiles}
	}
	if j.Umask != 0 {
		keys["Umask"] = int(j.Umask.Perm()) // an integer is taken as it is, a string would be read as octal
	}
	text, err := plist.MarshalIndent(keys, plist.XMLFormat, "\t")
	if err != nil {
		return nil, fmt.Errorf("launchd job %q: render: %w", j.Label, err)
	}
	return append(bytes.TrimRight(text, "\n"), '\n'), nil
}

// check finds what a property list cannot hold or launchd would not do.
func (j Job) check() error {
	if !ValidLabel(j.Label) {
		return errors.New("the label may hold letters, digits, dots, underscores and hyphens only")
	}
	if len(j.Program) == 0 {
		return errors.New("no program")
	}
	for what, name := range map[string]string{
		"program": j.Program[0], "working directory": j.Directory, "file that keeps it down": j.StayDown,
		"standard output": j.Stdout, "standard error": j.Stderr,
	} {
		if name != "" && !path.IsAbs(name) || what == "program" && name == "" {
			return fmt.Errorf("the path of the %s is not absolute: %q", what, name)
		}
	}
	texts := append([]string{j.Directory, j.User, j.StayDown, string(j.Type), string(j.Session), j.Stdout, j.Stderr}, j.Program...)
	for name, value := range j.Environment {
		if name == "" || strings.ContainsRune(name, '=') {
			return fmt.Errorf("%q cannot be a variable's name", name)
		}
		texts = append(texts, name, value)
	}
	for _, text := range texts {
		if !printable(text) {
			return fmt.Errorf("%q holds a control character or is not UTF-8", text)
		}
	}
	if j.Throttle < time.Second || j.Throttle/time.Second > maxSeconds {
		return fmt.Errorf("a throttle of %s: launchd takes whole seconds, at least one", j.Throttle)
	}
	if j.ExitTimeout <= 0 || j.ExitTimeout/time.Second >= maxSeconds {
		return fmt.Errorf("a time of %s to end in: it must be positive, launchd reads 0 as for ever", j.ExitTimeout)
	}
	if j.User != "" && j.Session != "" {
		return errors.New("a job of a user's session runs as that user; it cannot name another")
	}
	return nil
}

// printable reports whether a text survives XML and the line-wise output of launchctl.
func printable(text string) bool {
	return strings.ToValidUTF8(text, "") == text && !strings.ContainsFunc(text, func(r rune) bool {
		return r < ' ' || r == 0x7f || r == 0xfffe || r == 0xffff
	})
}

// seconds rounds up: a bit more time to end never hurts, a bit less does.
func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

// ParseJob reads a job's property list, in any of Apple's formats, back into a Job. Keys that Job does not know are
// ignored; a KeepAlive of another form than Plist writes comes back as an empty StayDown.
func ParseJob(text []byte) (j Job, err error) {
	defer func() { // the decoder is not ours, and the file is the operator's
		if r := recover(); r != nil {
			j, err = Job{}, fmt.Errorf("read launchd job: %v", r)
		}
	}()
	var keys struct {
		Label                  string
		ProgramArguments       []string
		WorkingDirectory       string
		UserName               string
		EnvironmentVariables   map[string]string
		KeepAlive              any
		ThrottleInterval       int64
		ExitTimeOut            int64
		ProcessType            string
		LimitLoadToSessionType any // one, or several
		SoftResourceLimits     struct{ NumberOfFiles int }
		Umask                  any
		StandardOutPath        string
		StandardErrorPath      string
	}
	if _, err := plist.Unmarshal(text, &keys); err != nil {
		return Job{}, fmt.Errorf("read launchd job: %w", err)
	}
	j = Job{
		Label: keys.Label, Program: keys.ProgramArguments, Directory: keys.WorkingDirectory, User: keys.UserName,
		Environment: keys.EnvironmentVariables, Throttle: duration(keys.ThrottleInterval), ExitTimeout: duration(keys.ExitTimeOut),
		Type: ProcessType(keys.ProcessType), MaxFiles: keys.SoftResourceLimits.NumberOfFiles,
		Stdout: keys.StandardOutPath, Stderr: keys.StandardErrorPath,
	}
	switch session := keys.LimitLoadToSessionType.(type) {
	case string:
		j.Session = Session(session)
	case []any:
		if len(session) == 1 {
			one, _ := session[0].(string)
			j.Session = Session(one)
		}
	}
	if mask, ok := keys.Umask.(uint64); ok {
		j.Umask = fs.FileMode(mask) & fs.ModePerm
	}
	if alive, ok := keys.KeepAlive.(map[string]any); ok && len(alive) == 1 {
		if states, ok := alive["PathState"].(map[string]any); ok && len(states) == 1 {
			for name, wanted := range states {
				if wanted == false {
					j.StayDown = name
				}
			}
		}
	}
	return j, nil
}

func duration(seconds int64) time.Duration {
	return time.Duration(min(max(seconds, 0), maxSeconds)) * time.Second
}

// DaemonDir and AgentDir are where launchd looks for jobs at boot and, below a user's home, at login.
const (
	DaemonDir = "/Library/LaunchDaemons"
	AgentDir  = "Library/LaunchAgents"
)

// UserAgentDir is where the jobs of the user with this home are.
func UserAgentDir(home string) string { return filepath.Join(home, filepath.FromSlash(AgentDir)) }
