package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// Keys of .agent.properties that are named in errors and changes (protocol §2.2).
const (
	KeyProject        = "devops.project.id"
	KeyAgent          = "devops.agent.id"
	KeySecret         = "devops.agent.secret.key"
	KeyGateway        = "landun.gateway"
	KeyFileGateway    = "landun.fileGateway"
	KeyParallel       = "devops.parallel.task.count"
	KeyEnv            = "landun.env"
	KeySlaveUser      = "devops.slave.user"
	KeyCollectorOn    = "devops.agent.collectorOn"
	KeyRequestTimeout = "devops.agent.request.timeout.sec"
	KeyDetectShell    = "devops.agent.detect.shell"
	KeyIgnoreLocalIPs = "devops.agent.ignoreLocalIps"
	KeyBatchInstall   = "devops.agent.batch.install"
	KeyKeepLogsHours  = "devops.agent.logs.keep.hours"
	KeyJDKDir         = "devops.agent.jdk.dir.path"
	KeyJDK17Dir       = "devops.agent.jdk17.dir.path"
	KeyDockerParallel = "devops.docker.parallel.task.count"
	KeyDockerEnable   = "devops.docker.enable"
	KeyLanguage       = "devops.language"
	KeyPortRange      = "devops.imagedebug.portrange"
	KeyPipelineEnable = "devops.pipeline.enable"
	KeyMCPPort        = "devops.mcp.server.port"
	KeyHTTPProxy      = "HTTP_PROXY"
	KeyHTTPSProxy     = "HTTPS_PROXY"
	KeyNoProxy        = "NO_PROXY"
)

// requiredKeys must have a line and a value, or the agent does not start (protocol §2.2, statement 17).
func requiredKeys() []string {
	return []string{KeyProject, KeyAgent, KeySecret, KeyGateway, KeyParallel, KeyEnv}
}

// Settings are the values in force at one moment: .agent.properties (protocol §2.2) with what agent.toml sets put
// over it. It is a plain value that nobody changes; ask the [Store] again for newer ones.
type Settings struct {
	Identity       wire.Identity
	Gateway        string        // landun.gateway; may lack its scheme (protocol §1.1)
	FileGateway    string        // landun.fileGateway, for workers; "" when there is none
	Env            string        // landun.env: PROD, TEST, DEV
	Parallel       int           // limit of host builds; 0 means none
	DockerParallel int           // limit of docker builds; 0 means none
	SlaveUser      string        // account that workers run as; "" is our own
	CollectorOn    bool          // whether metrics are sent
	DetectShell    bool          // whether workers start in $SHELL instead of /bin/bash
	DockerEnable   bool          // whether docker builds are taken
	PipelineEnable bool          // whether pipeline scripts are asked for in ask mode
	RequestTimeout time.Duration // of one JSON exchange
	IgnoreLocalIPs []string      // addresses and CIDR ranges that are never reported
	KeepLogsHours  int           // age at which log files are removed, in hours
	JDKDir         string        // absolute; the directory need not exist
	JDK17Dir       string        // absolute; the directory need not exist
	Language       string        // locale tag such as zh_CN
	PortRange      string        // from-to, of the docker debug server
	HTTPProxy      wire.Secret   // may hold a login, so it does not print itself
	HTTPSProxy     wire.Secret
	NoProxy        string
	MCPPort        int // last port of the local MCP server of the original agent
}

// Defaults and limits (protocol §2.2; the limits are ours).
const (
	defaultRequestTimeout = 5 * time.Second
	maxRequestTimeout     = 10 * time.Minute
	defaultDockerParallel = 4
	defaultKeepLogsHours  = 96
	maxKeepLogsHours      = 87600 // ten years
	defaultIgnoreIPs      = "127.0.0.1"
	defaultLanguage       = "zh_CN"
	defaultPortRange      = "30000-32767"
	maxCount              = 10000 // of parallel builds, when a server asks for them
)

// KeyError is one line of .agent.properties or agent.toml that an agent cannot start with.
type KeyError struct {
	File string // path
	Line int    // from 1; 0 when there is no such line
	Key  string
	What string // what is wrong with it, without its value where that is a secret
	Do   string // what the operator can do
	Err  error  // the cause, nil when What says it all; os.ErrNotExist for a file that is not there
}

// Error names the file, the line, the key and what is wrong.
func (e *KeyError) Error() string {
	place := e.File
	if e.Line > 0 {
		place += ":" + strconv.Itoa(e.Line)
	}
	if e.Key == "" {
		return place + ": " + e.What
	}
	return place + ": " + e.Key + " " + e.What
}

// Unwrap returns the cause.
func (e *KeyError) Unwrap() error { return e.Err }

// Hint says what the operator can do.
func (e *KeyError) Hint() string { return e.Do }

// isCount reads a limit of builds: a whole number that is not negative.
func isCount(val string) (int, error) {
	n, err := strconv.ParseInt(val, 10, 32)
	switch {
	case err != nil:
		return 0, fmt.Errorf("is not a whole number: %q", shorten(val))
	case n < 0:
		return 0, fmt.Errorf("is negative: %d", n)
	}
	return int(n), nil
}

// shorten keeps a foreign value that goes into an error to one line.
func shorten(val string) string {
	if r := []rune(val); len(r) > 80 {
		val = string(r[:80]) + "…"
	}
	return val
}

// read turns a file into settings. A *KeyError is an operator's mistake in a line that an agent cannot do without;
// other lines that make no sense are read as their defaults, as the original agent reads them, and complained about.
func read(p *properties, path, home string) (Settings, []complaint, error) {
	for _, key := range requiredKeys() {
		val, line := p.get(key)
		switch {
		case line == 0:
			return Settings{}, nil, &KeyError{File: path, Key: key, What: "is missing",
				Do: "add the line, or run \"devopsAgent enroll\" to get a complete file from the server"}
		case val == "":
			return Settings{}, nil, &KeyError{File: path, Line: line, Key: key, What: "has no value",
				Do: "give it the value that the agent's page in BK-CI shows, or run \"devopsAgent enroll\" again"}
		}
	}
	text := func(key string) string {
		val, _ := p.get(key)
		return val
	}
	settings := Settings{
		Identity: wire.Identity{Project: text(KeyProject), Agent: text(KeyAgent), Secret: wire.Secret(text(KeySecret))},
		Gateway:  text(KeyGateway), FileGateway: text(KeyFileGateway), Env: text(KeyEnv), SlaveUser: text(KeySlaveUser),
		HTTPProxy: wire.Secret(text(KeyHTTPProxy)), HTTPSProxy: wire.Secret(text(KeyHTTPSProxy)), NoProxy: text(KeyNoProxy),
	}
	for _, key := range []string{KeyProject, KeyAgent, KeySecret} {
		if val, line := p.get(key); !headerValue(val) {
			return Settings{}, nil, &KeyError{File: path, Line: line, Key: key, What: "has characters that no HTTP header can carry",
				Do: "copy the value again, without blanks and control characters"}
		}
	}
	if err := wire.CheckGateway(settings.Gateway); err != nil {
		_, line := p.get(KeyGateway)
		return Settings{}, nil, &KeyError{File: path, Line: line, Key: KeyGateway, What: "is not an address: " + err.Error(),
			Do: "write it as in http://devops.example.com"}
	}
	for _, count := range []struct {
		key  string
		to   *int
		none int
	}{{KeyParallel, &settings.Parallel, 0}, {KeyDockerParallel, &settings.DockerParallel, defaultDockerParallel}} {
		val, line := p.get(count.key)
		if val == "" {
			*count.to = count.none
			continue
		}
		n, err := isCount(val)
		if err != nil {
			return Settings{}, nil, &KeyError{File: path, Line: line, Key: count.key, What: err.Error(),
				Do: "write how many builds may run at the same time; 0 means no limit"}
		}
		*count.to = n
	}

	lenient := lenientReader{p: p}
	settings.CollectorOn = lenient.bool(KeyCollectorOn, true)
	settings.DetectShell = lenient.bool(KeyDetectShell, false)
	settings.DockerEnable = lenient.bool(KeyDockerEnable, false)
	settings.PipelineEnable = lenient.bool(KeyPipelineEnable, false)
	settings.RequestTimeout = time.Duration(lenient.int(KeyRequestTimeout, int(defaultRequestTimeout/time.Second), 1,
		int(maxRequestTimeout/time.Second))) * time.Second
	settings.KeepLogsHours = lenient.int(KeyKeepLogsHours, defaultKeepLogsHours, 1, maxKeepLogsHours)
	settings.MCPPort = lenient.int(KeyMCPPort, 0, 0, 65535)
	settings.Language = lenient.text(KeyLanguage, defaultLanguage, checkLanguage)
	settings.PortRange = lenient.text(KeyPortRange, defaultPortRange, checkPortRange)
	settings.IgnoreLocalIPs, _ = splitIPs(lenient.text(KeyIgnoreLocalIPs, defaultIgnoreIPs, func(val string) error {
		_, err := splitIPs(val)
		return err
	}))
	settings.JDKDir = jdkDir(home, text(KeyJDKDir))
	settings.JDK17Dir = absolute(home, text(KeyJDK17Dir), "jdk17")
	return settings, lenient.complaints, nil
}

// complaint is an optional line that makes no sense.
type complaint struct {
	key, val string
	line     int
	err      error
}

// lenientReader reads optional keys and collects complaints.
type lenientReader struct {
	p          *properties
	complaints []complaint
}

func (r *lenientReader) complain(key string, line int, val string, err error) {
	r.complaints = append(r.complaints, complaint{key: key, val: val, line: line, err: err})
}

func (r *lenientReader) bool(key string, otherwise bool) bool {
	val, line := r.p.get(key)
	switch strings.ToLower(val) {
	case "":
		return otherwise
	case "1", "t", "true", "y", "yes", "on":
		return true
	case "0", "f", "false", "n", "no", "off":
		return false
	}
	r.complain(key, line, val, errors.New("neither true nor false"))
	return otherwise
}

func (r *lenientReader) int(key string, otherwise, least, most int) int {
	val, line := r.p.get(key)
	if val == "" {
		return otherwise
	}
	n, err := strconv.Atoi(val)
	if err == nil && (n < least || n > most) {
		err = fmt.Errorf("not within %d and %d", least, most)
	}
	if err != nil {
		r.complain(key, line, val, err)
		return otherwise
	}
	return n
}

func (r *lenientReader) text(key, otherwise string, check func(string) error) string {
	val, line := r.p.get(key)
	if val == "" {
		return otherwise
	}
	if err := check(val); err != nil {
		r.complain(key, line, val, err)
		return otherwise
	}
	return val
}

// headerValue reports whether val can be sent in a header and is not blank there (protocol §1.2, §1.8).
func headerValue(val string) bool {
	return !strings.ContainsFunc(val, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

var localeTag = regexp.MustCompile(`^[A-Za-z]{2,3}([_-][A-Za-z0-9]{2,8}){0,3}$`)

func checkLanguage(val string) error {
	if !localeTag.MatchString(val) {
		return errors.New("not a locale tag such as zh_CN")
	}
	return nil
}

func checkPortRange(val string) error {
	from, to, _ := strings.Cut(val, "-")
	a, err := strconv.ParseUint(strings.TrimSpace(from), 10, 16)
	b, err2 := strconv.ParseUint(strings.TrimSpace(to), 10, 16)
	if err != nil || err2 != nil || a > b {
		return errors.New("not a range of ports such as " + defaultPortRange)
	}
	return nil
}

// splitIPs reads a comma list of addresses and CIDR ranges; the error names the first that is neither.
func splitIPs(val string) ([]string, error) {
	var list []string
	for item := range strings.SplitSeq(val, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		_, err := netip.ParseAddr(item)
		if err != nil {
			_, err = netip.ParsePrefix(item)
		}
		if err != nil {
			return nil, fmt.Errorf("neither an address nor a range: %q", shorten(item))
		}
		list = append(list, item)
	}
	return list, nil
}

// jdkDir resolves devops.agent.jdk.dir.path: without one, <home>/jdk, or <home>/jre when only that is there.
func jdkDir(home, val string) string {
	if val != "" {
		return absolute(home, val, "")
	}
	jdk, jre := filepath.Join(home, "jdk"), filepath.Join(home, "jre")
	if isDir(jre) && !isDir(jdk) {
		return jre
	}
	return jdk
}

func absolute(home, val, otherwise string) string {
	if val == "" {
		val = otherwise
	}
	val = filepath.FromSlash(val)
	if !filepath.IsAbs(val) {
		val = filepath.Join(home, val)
	}
	return filepath.Clean(val)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// property is one key that a complete file has.
type property struct{ key, val string }

// complete lists the keys that the original agents write, in their order (protocol §2.2), with the values for those
// that are missing. The proxies are not among them: without one, there is nothing to write.
func complete(home, user string) []property {
	return []property{
		{KeyFileGateway, ""},
		{KeySlaveUser, user},
		{KeyRequestTimeout, strconv.Itoa(int(defaultRequestTimeout / time.Second))},
		{KeyDetectShell, "false"},
		{KeyIgnoreLocalIPs, defaultIgnoreIPs},
		{KeyKeepLogsHours, strconv.Itoa(defaultKeepLogsHours)},
		{KeyJDKDir, filepath.ToSlash(jdkDir(home, ""))}, // slashes: for the worker, a backslash is an escape
		{KeyJDK17Dir, filepath.ToSlash(filepath.Join(home, "jdk17"))},
		{KeyDockerParallel, strconv.Itoa(defaultDockerParallel)},
		{KeyDockerEnable, "false"},
		{KeyLanguage, defaultLanguage},
		{KeyPortRange, defaultPortRange},
		{KeyPipelineEnable, "false"},
		{KeyMCPPort, "0"},
	}
}
