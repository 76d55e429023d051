package windows

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"
)

// Service is a Windows service as it is to be registered.
type Service struct {
	Name         string // its key in the registry; also its event source
	DisplayName  string // what services.msc lists
	Description  string
	Program      string   // absolute path
	Args         []string // of the program
	Account      string   // the account it runs as
	Dependencies []string // names of services that start before it

	Recovery    []time.Duration // pauses before the first, second … restart after a failure; the last one repeats
	ResetAfter  time.Duration   // a time without failure after which the first pause counts again
	PreShutdown time.Duration   // how long a machine that shuts down waits for it
}

// LocalSystem is the account of a service that may do everything, as the original's does (protocol §5.7).
const LocalSystem = "LocalSystem"

// Bounds of PreShutdown: a machine that goes down waits for builds, but not for hours.
const (
	mostShutdownDrain = 2 * time.Minute
	afterDrain        = 20 * time.Second // to end builds that are left, and to report them
)

// ShutdownDrain is how long builds may still run when the machine shuts down.
func ShutdownDrain(drain time.Duration) time.Duration { return min(max(drain, 0), mostShutdownDrain) }

// Agent is the service of one agent. name is "devops-agent" or "devops_agent_<agentId>", program devopsDaemon.exe with its
// arguments, home the agent's directory, drain its drain.timeout.
func Agent(name, program string, args []string, home string, drain time.Duration) Service {
	return Service{
		Name: name, DisplayName: "BlueKing CI build agent (" + name + ")",
		Description: "Takes builds from a BlueKing CI server and runs them on this machine. Home: " + home,
		Program:     program, Args: args, Account: LocalSystem,
		Recovery:    []time.Duration{5 * time.Second, 10 * time.Second, 30 * time.Second},
		ResetAfter:  24 * time.Hour,
		PreShutdown: ShutdownDrain(drain) + afterDrain,
	}
}

// Check refuses what the service manager would misunderstand.
func (s Service) Check() error {
	switch {
	case s.Name == "" || len(s.Name) > 256 || strings.ContainsAny(s.Name, `/\`):
		return fmt.Errorf("service name %q: want 1 to 256 characters without slashes", s.Name)
	case strings.ContainsAny(s.Program, "\"\x00"):
		return fmt.Errorf("service %s: program %q has a quote in its path", s.Name, s.Program)
	case !absolute(s.Program):
		return fmt.Errorf("service %s: program %q is not an absolute path", s.Name, s.Program)
	}
	for _, text := range append([]string{s.Name, s.DisplayName, s.Description, s.Account}, s.Args...) {
		if strings.ContainsRune(text, 0) {
			return fmt.Errorf("service %s: %q has a NUL in it", s.Name, text)
		}
	}
	return nil
}

// absolute knows paths of Windows on any system.
func absolute(path string) bool {
	if strings.HasPrefix(path, `\\`) {
		return true
	}
	return len(path) > 3 && path[1] == ':' && (path[2] == '\\' || path[2] == '/') &&
		(path[0]|0x20 >= 'a' && path[0]|0x20 <= 'z')
}

// ImagePath is the command line of the service. The program is always quoted: of C:\Program Files\x.exe without quotes,
// Windows would try C:\Program.exe first.
func (s Service) ImagePath() string {
	line := `"` + s.Program + `"`
	for _, arg := range s.Args {
		line += " " + quote(arg)
	}
	return line
}

// quote writes an argument so that CommandLineToArgvW gives it back: backslashes count only before a quote.
func quote(arg string) string {
	if arg != "" && !strings.ContainsAny(arg, " \t\n\v\"") {
		return arg
	}
	var out strings.Builder
	out.WriteByte('"')
	slashes := 0
	for i := range len(arg) {
		switch c := arg[i]; c {
		case '\\':
			slashes++
			continue
		case '"':
			out.WriteString(strings.Repeat(`\`, 2*slashes+1))
		default:
			out.WriteString(strings.Repeat(`\`, slashes))
		}
		slashes = 0
		out.WriteByte(arg[i])
	}
	out.WriteString(strings.Repeat(`\`, 2*slashes))
	out.WriteByte('"')
	return out.String()
}

// Value is one value of the registry under HKEY_LOCAL_MACHINE.
type Value struct {
	Key  string
	Name string
	Type string // REG_SZ, REG_EXPAND_SZ, REG_MULTI_SZ, REG_DWORD, REG_BINARY
	Data any    // string, []string, uint32 or []byte
}

// Where services and event sources are registered.
const (
	servicesKey = `SYSTEM\CurrentControlSet\Services\`
	sourcesKey  = `SYSTEM\CurrentControlSet\Services\EventLog\Application\`
)

// Numbers of winsvc.h.
const (
	ownProcess     = 0x10
	autoStart      = 2
	errorNormal    = 1
	actionRestart  = 1
	everyEventType = 7 // errors, warnings, information
)

// messageFile has a message %1 for each of the event ids 1 to 1000, so that sources need no file of their own.
const messageFile = `%SystemRoot%\System32\EventCreate.exe`

// Registry is all that registration leaves in the registry, as the service manager writes it: what packages fill their
// tables with, and what must be gone after the service was removed. Sorted by key and name.
func (s Service) Registry() []Value {
	key, source := servicesKey+s.Name, sourcesKey+s.Name
	values := []Value{
		{source, "CustomSource", "REG_DWORD", uint32(1)},
		{source, "EventMessageFile", "REG_EXPAND_SZ", messageFile},
		{source, "TypesSupported", "REG_DWORD", uint32(everyEventType)},
		{key, "DelayedAutostart", "REG_DWORD", uint32(1)},
	}
	if len(s.Dependencies) > 0 {
		values = append(values, Value{key, "DependOnService", "REG_MULTI_SZ", s.Dependencies})
	}
	return append(values,
		Value{key, "Description", "REG_SZ", s.Description},
		Value{key, "DisplayName", "REG_SZ", s.DisplayName},
		Value{key, "ErrorControl", "REG_DWORD", uint32(errorNormal)},
		Value{key, "FailureActions", "REG_BINARY", s.failureActions()},
		Value{key, "FailureActionsOnNonCrashFailures", "REG_DWORD", uint32(1)},
		Value{key, "ImagePath", "REG_EXPAND_SZ", s.ImagePath()},
		Value{key, "ObjectName", "REG_SZ", s.Account},
		Value{key, "PreshutdownTimeout", "REG_DWORD", uint32(s.PreShutdown.Milliseconds())},
		Value{key, "Start", "REG_DWORD", uint32(autoStart)},
		Value{key, "Type", "REG_DWORD", uint32(ownProcess)},
	)
}

// failureActions is a SERVICE_FAILURE_ACTIONS with 32-bit offsets for pointers, the form in which the registry has it.
func (s Service) failureActions() []byte {
	const head = 5 * 4
	b := make([]byte, 0, head+8*len(s.Recovery))
	for _, word := range []uint32{uint32(s.ResetAfter / time.Second), 0, 0, uint32(len(s.Recovery)), head} {
		b = binary.LittleEndian.AppendUint32(b, word)
	}
	for _, pause := range s.Recovery {
		b = binary.LittleEndian.AppendUint32(b, actionRestart)
		b = binary.LittleEndian.AppendUint32(b, uint32(pause.Milliseconds()))
	}
	return b
}

// Commands are the calls of sc.exe that do the same, for people who register by hand. The event source and the shutdown
// timeout have no sc verb; reg.exe writes them.
func (s Service) Commands() []string {
	restarts := make([]string, len(s.Recovery))
	for i, pause := range s.Recovery {
		restarts[i] = fmt.Sprintf("restart/%d", pause.Milliseconds())
	}
	name := quote(s.Name)
	create := fmt.Sprintf("sc.exe create %s binPath= %s start= delayed-auto obj= %s DisplayName= %s",
		name, quote(s.ImagePath()), quote(s.Account), quote(s.DisplayName))
	if len(s.Dependencies) > 0 {
		create += " depend= " + quote(strings.Join(s.Dependencies, "/"))
	}
	return []string{
		create,
		fmt.Sprintf("sc.exe description %s %s", name, quote(s.Description)),
		fmt.Sprintf("sc.exe failure %s reset= %d actions= %s", name, int(s.ResetAfter/time.Second), strings.Join(restarts, "/")),
		fmt.Sprintf("sc.exe failureflag %s 1", name),
		fmt.Sprintf("reg.exe add %s /v PreshutdownTimeout /t REG_DWORD /d %d /f", quote(`HKLM\`+servicesKey+s.Name), s.PreShutdown.Milliseconds()),
		fmt.Sprintf("reg.exe add %s /v EventMessageFile /t REG_EXPAND_SZ /d %s /f", quote(`HKLM\`+sourcesKey+s.Name), messageFile),
		fmt.Sprintf("reg.exe add %s /v TypesSupported /t REG_DWORD /d %d /f", quote(`HKLM\`+sourcesKey+s.Name), everyEventType),
	}
}
