package windows

// Answers are what the installer was told on its command line. They are no secrets: everybody on the machine can read them.
type Answers struct {
	Gateway   string // address of the server
	TokenFile string // file with the install token
	Project   string // that the token must be of; "" for any
	Name      string // under which the agent is known, instead of the machine's name
}

// AnswersKey is where the installer remembers them, below HKEY_LOCAL_MACHINE.
const AnswersKey = `SOFTWARE\devops-agent`

// Names of the values that hold them.
const (
	AnswerGateway   = "Gateway"
	AnswerTokenFile = "TokenFile"
	AnswerProject   = "Project"
	AnswerName      = "Name"
)

// StoppedValue says that somebody stopped a service, or never had it started, so that the installer leaves it stopped at an
// upgrade: REG_DWORD 1 in NotesKey, and nothing for a service that is to run.
const StoppedValue = "Stopped"

// ModeValue is the first word of a service's command line, REG_SZ "service" or "session", which an upgrade keeps.
const ModeValue = "Mode"

// NotesKey is the key of a service's StoppedValue and ModeValue below HKEY_LOCAL_MACHINE. It is below the service's own, and goes
// with it.
func NotesKey(name string) string { return servicesKey + name + `\Parameters` }
