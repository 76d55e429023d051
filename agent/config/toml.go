package config

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/upgrader/trust"
)

// Protocol is the generation that the agent speaks (design §6).
type Protocol string

// The values of protocol in agent.toml.
const (
	Auto  Protocol = "auto"  // ask, and split where the server has no ask
	Ask   Protocol = "ask"   // one call for everything
	Split Protocol = "split" // one endpoint per purpose
)

// UpgradeMode says who may replace programs.
type UpgradeMode string

// The values of upgrade.mode in agent.toml.
const (
	UpgradeServer  UpgradeMode = "server"  // the server and the package manager
	UpgradePackage UpgradeMode = "package" // only the package manager; worker and JDK still follow the server
	UpgradeOff     UpgradeMode = "off"     // nobody
)

// Config is agent.toml: what the operator wrote, with the defaults for what he did not write. A nil pointer, an
// empty text and a zero time mean that .agent.properties decides. It is never changed after LoadConfig.
type Config struct {
	Path     string // of the file, also when there is none
	Protocol Protocol
	Server   Server
	Builds   Builds
	Scripts  Scripts
	Metrics  Metrics
	Log      Log
	Proxy    Proxies
	Host     Host
	Drain    Drain
	Upgrade  Upgrade
	Trust    Trust
	Enroll   Enroll
}

// Server is [server]: where BK-CI is.
type Server struct {
	Gateway        string
	FileGateway    string
	RequestTimeout time.Duration // 0: .agent.properties decides
}

// Builds is [builds]: what may run here.
type Builds struct {
	Parallel       *int // host builds at the same time; 0 is no limit
	DockerParallel *int // docker builds at the same time; 0 is no limit
	User           string
	DetectShell    *bool
}

// Scripts is [scripts]: pipeline scripts (protocol §1.6.9).
type Scripts struct {
	Enable    *bool         // false: never, whatever the server wants
	Timeout   time.Duration // of one script, default 1 h
	MaxOutput int64         // bytes of output that are kept, default 1 MiB
}

// Metrics is [metrics].
type Metrics struct {
	Enable *bool
}

// Log is [log]: the agent's own log.
type Log struct {
	Level     slog.Level // default info
	KeepDays  int        // default 7
	KeepFiles int        // default 7
	MaxSizeMB int        // of one file, in MiB, default 100
}

// Proxies is [proxy].
type Proxies struct {
	HTTP    wire.Secret // may hold a login
	HTTPS   wire.Secret
	NoProxy string
}

// Host is [host]: how this machine describes itself.
type Host struct {
	IgnoreIPs     []string // nil: .agent.properties decides
	Language      string
	KeepLogsHours *int
}

// Drain is [drain].
type Drain struct {
	Timeout time.Duration // how long a stopping agent waits for builds, default 10 min
}

// Upgrade is [upgrade]: who may replace what runs here, and when.
type Upgrade struct {
	Mode        UpgradeMode   // default server
	Window      Window        // when upgrades that the server wants may begin, default always
	Jitter      time.Duration // each machine waits its own share of it before an upgrade, default 0
	SettleAfter time.Duration // how long a new version must run well before the old one is dropped, default 30 s
	MaxDownload int64         // bytes that one downloaded file may have, default 1 GiB
}

// Trust is [trust]: whose signatures are asked for. The zero Trust asks for none.
type Trust struct {
	Keys    []trust.Key
	Require bool // refuse files without a signature
}

// Enroll is [enroll]: how a machine without identity gets one (protocol §5.5).
type Enroll struct {
	Gateway   string
	TokenFile string // the token itself never stands in a configuration file
	Zone      string
	Pin       wire.Pin // of the server's certificate; the zero value when none is pinned
}

// Limits of agent.toml.
const (
	defaultScriptTimeout = time.Hour
	defaultScriptOutput  = 1 << 20
	maxScriptOutput      = 64 << 20
	defaultDrainTimeout  = 10 * time.Minute
	defaultSettleAfter   = 30 * time.Second
	maxSettleAfter       = 10 * time.Minute
	maxJitter            = 24 * time.Hour
	defaultDownload      = 1 << 30
	minDownload          = 1 << 20
	maxDownload          = 64 << 30
	maxWait              = 30 * 24 * time.Hour // of every time limit in agent.toml
)

// LoadConfig reads agent.toml. A missing file means defaults. Unknown keys, wrong types and values out of range are
// a *[KeyError] with the line number and, for a misspelt key, the one that was probably meant.
func LoadConfig(path string) (*Config, error) {
	text, err := readBounded(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return parseConfig(path, string(text))
}

// tomlFile is agent.toml as it is written; texts of other kinds are read in parseConfig, for better errors.
type tomlFile struct {
	Protocol string `toml:"protocol"`
	Server   struct {
		Gateway        string `toml:"gateway"`
		FileGateway    string `toml:"file_gateway"`
		RequestTimeout string `toml:"request_timeout"`
	} `toml:"server"`
	Builds struct {
		Parallel       *int   `toml:"parallel"`
		DockerParallel *int   `toml:"docker_parallel"`
		User           string `toml:"user"`
		DetectShell    *bool  `toml:"detect_shell"`
	} `toml:"builds"`
	Scripts struct {
		Enable    *bool  `toml:"enable"`
		Timeout   string `toml:"timeout"`
		MaxOutput string `toml:"max_output"`
	} `toml:"scripts"`
	Metrics struct {
		Enable *bool `toml:"enable"`
	} `toml:"metrics"`
	Log struct {
		Level     string `toml:"level"`
		KeepDays  *int   `toml:"keep_days"`
		KeepFiles *int   `toml:"keep_files"`
		MaxSizeMB *int   `toml:"max_size_mb"`
	} `toml:"log"`
	Proxy struct {
		HTTP    string `toml:"http"`
		HTTPS   string `toml:"https"`
		NoProxy string `toml:"no_proxy"`
	} `toml:"proxy"`
	Host struct {
		IgnoreIPs     []string `toml:"ignore_ips"`
		Language      string   `toml:"language"`
		KeepLogsHours *int     `toml:"keep_logs_hours"`
	} `toml:"host"`
	Drain struct {
		Timeout string `toml:"timeout"`
	} `toml:"drain"`
	Upgrade struct {
		Mode        string `toml:"mode"`
		Window      string `toml:"window"`
		Jitter      string `toml:"jitter"`
		SettleAfter string `toml:"settle_after"`
		MaxDownload string `toml:"max_download"`
	} `toml:"upgrade"`
	Trust struct {
		Keys    []string `toml:"keys"`
		Require bool     `toml:"require"`
	} `toml:"trust"`
	Enroll struct {
		Gateway   string `toml:"gateway"`
		TokenFile string `toml:"token_file"`
		Zone      string `toml:"zone"`
		Pin       string `toml:"pin"`
	} `toml:"enroll"`
}

// tomlKeys are all keys that agent.toml may have.
func tomlKeys() []string {
	return []string{
		"protocol",
		"server", "server.gateway", "server.file_gateway", "server.request_timeout",
		"builds", "builds.parallel", "builds.docker_parallel", "builds.user", "builds.detect_shell",
		"scripts", "scripts.enable", "scripts.timeout", "scripts.max_output",
		"metrics", "metrics.enable",
		"log", "log.level", "log.keep_days", "log.keep_files", "log.max_size_mb",
		"proxy", "proxy.http", "proxy.https", "proxy.no_proxy",
		"host", "host.ignore_ips", "host.language", "host.keep_logs_hours",
		"drain", "drain.timeout",
		"upgrade", "upgrade.mode", "upgrade.window", "upgrade.jitter", "upgrade.settle_after", "upgrade.max_download",
		"trust", "trust.keys", "trust.require",
		"enroll", "enroll.gateway", "enroll.token_file", "enroll.zone", "enroll.pin",
	}
}

func parseConfig(path, text string) (*Config, error) {
	text = strings.TrimPrefix(text, byteOrderMark)
	var file tomlFile
	meta, err := toml.Decode(text, &file)
	if err != nil {
		wrong := &KeyError{File: path, What: err.Error(), Do: "compare with the commented agent.toml of the documentation"}
		var parse toml.ParseError
		if errors.As(err, &parse) {
			wrong.Line, wrong.Key, wrong.What = parse.Position.Line, parse.LastKey, parse.Message
		} else if key, have, want, ok := wrongType(err.Error()); ok {
			wrong.Line, wrong.Key = lineOf(text, key), key
			wrong.What = "is of the wrong type: " + have + " instead of " + want
			switch want {
			case "string":
				wrong.Do = "write it in quotes; a time or size with its unit"
			case "integer":
				wrong.Do = "write a number, without quotes"
			case "boolean":
				wrong.Do = "write true or false, without quotes"
			}
		}
		if secretKey(wrong.Key) {
			wrong.What = "cannot be read"
		}
		return nil, wrong
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		key := unknown[0].String()
		wrong := &KeyError{File: path, Line: lineOf(text, key), Key: key, What: "is not a setting of agent.toml"}
		if like := nearest(key, tomlKeys()); like != "" {
			wrong.Do = "did you mean " + like + "?"
		} else {
			wrong.Do = "remove it; docs/configuration.md lists all settings"
		}
		return nil, wrong
	}
	r := tomlReader{path: path, text: text, meta: meta}
	c := &Config{
		Path:     path,
		Protocol: Protocol(r.oneOf("protocol", file.Protocol, string(Auto), string(Ask), string(Split))),
		Server: Server{
			Gateway:        r.gateway("server.gateway", file.Server.Gateway),
			FileGateway:    r.gateway("server.file_gateway", file.Server.FileGateway),
			RequestTimeout: r.duration("server.request_timeout", file.Server.RequestTimeout, 0, time.Second, maxRequestTimeout),
		},
		Builds: Builds{
			Parallel:       r.number("builds.parallel", file.Builds.Parallel, 0, maxCount),
			DockerParallel: r.number("builds.docker_parallel", file.Builds.DockerParallel, 0, maxCount),
			User:           r.line("builds.user", file.Builds.User),
			DetectShell:    file.Builds.DetectShell,
		},
		Scripts: Scripts{
			Enable:    file.Scripts.Enable,
			Timeout:   r.duration("scripts.timeout", file.Scripts.Timeout, defaultScriptTimeout, time.Second, maxWait),
			MaxOutput: r.bytes("scripts.max_output", file.Scripts.MaxOutput, defaultScriptOutput, 0, maxScriptOutput),
		},
		Metrics: Metrics{Enable: file.Metrics.Enable},
		Log: Log{
			Level:     r.level("log.level", file.Log.Level),
			KeepDays:  r.numberOr("log.keep_days", file.Log.KeepDays, 7, 1, 3650),
			KeepFiles: r.numberOr("log.keep_files", file.Log.KeepFiles, 7, 1, 1000),
			MaxSizeMB: r.numberOr("log.max_size_mb", file.Log.MaxSizeMB, 100, 1, 10000),
		},
		Proxy: Proxies{
			HTTP:    wire.Secret(r.check("proxy.http", file.Proxy.HTTP, checkProxy)),
			HTTPS:   wire.Secret(r.check("proxy.https", file.Proxy.HTTPS, checkProxy)),
			NoProxy: r.line("proxy.no_proxy", file.Proxy.NoProxy),
		},
		Host: Host{
			IgnoreIPs:     r.ips("host.ignore_ips", file.Host.IgnoreIPs),
			Language:      r.check("host.language", file.Host.Language, checkLanguage),
			KeepLogsHours: r.number("host.keep_logs_hours", file.Host.KeepLogsHours, 1, maxKeepLogsHours),
		},
		Drain: Drain{Timeout: r.duration("drain.timeout", file.Drain.Timeout, defaultDrainTimeout, 0, maxWait)},
		Upgrade: Upgrade{
			Mode:        UpgradeMode(r.oneOf("upgrade.mode", file.Upgrade.Mode, string(UpgradeServer), string(UpgradePackage), string(UpgradeOff))),
			Window:      r.window("upgrade.window", file.Upgrade.Window),
			Jitter:      r.duration("upgrade.jitter", file.Upgrade.Jitter, 0, 0, maxJitter),
			SettleAfter: r.duration("upgrade.settle_after", file.Upgrade.SettleAfter, defaultSettleAfter, 0, maxSettleAfter),
			MaxDownload: r.bytes("upgrade.max_download", file.Upgrade.MaxDownload, defaultDownload, minDownload, maxDownload),
		},
		Trust: Trust{Keys: r.keys("trust.keys", file.Trust.Keys), Require: file.Trust.Require},
		Enroll: Enroll{
			Gateway:   r.gateway("enroll.gateway", file.Enroll.Gateway),
			TokenFile: r.line("enroll.token_file", file.Enroll.TokenFile),
			Zone:      r.line("enroll.zone", file.Enroll.Zone),
			Pin:       r.pin("enroll.pin", file.Enroll.Pin),
		},
	}
	if token := c.Enroll.TokenFile; token != "" && !filepath.IsAbs(token) {
		c.Enroll.TokenFile = filepath.Join(filepath.Dir(path), token)
	}
	if c.Trust.Require && len(file.Trust.Keys) == 0 {
		r.wrong("trust.require", "is true, and trust.keys names no key", "add the public half of the key that your files are signed with, or remove trust.require")
	}
	if r.err != nil {
		return nil, r.err
	}
	return c, nil
}

// wrongType takes the library's error about a value of a wrong type apart; it has no type of its own.
func wrongType(text string) (key, have, want string, ok bool) {
	_, rest, found := strings.Cut(text, `(last key "`)
	key, rest, found2 := strings.Cut(rest, `"): incompatible types: TOML value has type `)
	have, want, found3 := strings.Cut(rest, "; destination has type ")
	return key, have, want, found && found2 && found3
}

// tomlReader checks values and keeps the first error, which names its line.
type tomlReader struct {
	path, text string
	meta       toml.MetaData
	err        error
}

func (r *tomlReader) wrong(key, what, do string) {
	if r.err == nil {
		r.err = &KeyError{File: r.path, Line: lineOf(r.text, key), Key: key, What: what, Do: do}
	}
}

// given reports whether the operator wrote the key at all.
func (r *tomlReader) given(key string) bool { return r.meta.IsDefined(strings.Split(key, ".")...) }

func (r *tomlReader) oneOf(key, val string, allowed ...string) string {
	if !r.given(key) {
		return allowed[0]
	}
	if !slices.Contains(allowed, val) {
		do := "write one of " + strings.Join(allowed, ", ")
		if like := nearest(strings.ToLower(val), allowed); like != "" {
			do = "did you mean " + strconv.Quote(like) + "?"
		}
		r.wrong(key, fmt.Sprintf("cannot be %q", shorten(val)), do)
	}
	return val
}

func (r *tomlReader) line(key, val string) string {
	val = strings.TrimSpace(val)
	if strings.ContainsFunc(val, func(c rune) bool { return c < ' ' || c == 0x7f }) {
		r.wrong(key, "has a control character in it", "write it on one line")
	}
	return val
}

func (r *tomlReader) check(key, val string, check func(string) error) string {
	if val = r.line(key, val); val == "" {
		return ""
	}
	if err := check(val); err != nil {
		what := fmt.Sprintf("cannot be %q: %v", shorten(val), err)
		if secretKey(key) {
			what = "is not usable: " + err.Error()
		}
		r.wrong(key, what, "")
	}
	return val
}

func (r *tomlReader) gateway(key, val string) string {
	if val = r.line(key, val); val == "" {
		return ""
	}
	if err := wire.CheckGateway(val); err != nil {
		r.wrong(key, "is not an address: "+err.Error(), `write it as in "https://devops.example.com"`)
	}
	return val
}

func (r *tomlReader) duration(key, val string, otherwise, least, most time.Duration) time.Duration {
	if !r.given(key) {
		return otherwise
	}
	d, err := time.ParseDuration(strings.TrimSpace(val))
	if err != nil {
		r.wrong(key, fmt.Sprintf("is not a time: %q", shorten(val)), `write it with its unit, as in "30s", "10m" or "1h30m"`)
		return otherwise
	}
	if d < least || d > most {
		r.wrong(key, fmt.Sprintf("cannot be %v", d), fmt.Sprintf("write a time from %v to %v", least, most))
	}
	return d
}

func (r *tomlReader) number(key string, val *int, least, most int) *int {
	if val != nil && (*val < least || *val > most) {
		r.wrong(key, fmt.Sprintf("cannot be %d", *val), fmt.Sprintf("write a number from %d to %d", least, most))
	}
	return val
}

func (r *tomlReader) numberOr(key string, val *int, otherwise, least, most int) int {
	if val = r.number(key, val, least, most); val == nil {
		return otherwise
	}
	return *val
}

func (r *tomlReader) bytes(key, val string, otherwise, least, most int64) int64 {
	if !r.given(key) {
		return otherwise
	}
	n, err := parseBytes(val)
	if err != nil || n < least || n > most {
		do := fmt.Sprintf(`write a size such as "64KiB" or "1MiB", at most %d MiB`, most>>20)
		if least > 0 {
			do = fmt.Sprintf(`write a size such as "512MiB" or "2GiB", from %d to %d MiB`, least>>20, most>>20)
		}
		r.wrong(key, fmt.Sprintf("cannot be %q", shorten(val)), do)
		return otherwise
	}
	return n
}

// parseBytes reads a whole number with B, KiB, MiB, GiB, KB, MB or GB behind it; without a unit it is bytes.
func parseBytes(val string) (int64, error) {
	val = strings.TrimSpace(val)
	digits := strings.TrimRight(val, "BbGgKkMmIi ")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return 0, err
	}
	var unit int64
	switch strings.ToLower(strings.TrimSpace(val[len(digits):])) {
	case "", "b":
		unit = 1
	case "kib", "k":
		unit = 1 << 10
	case "mib", "m":
		unit = 1 << 20
	case "gib", "g":
		unit = 1 << 30
	case "kb":
		unit = 1e3
	case "mb":
		unit = 1e6
	case "gb":
		unit = 1e9
	default:
		return 0, errors.New("unknown unit")
	}
	if n < 0 || n > math.MaxInt64/unit {
		return 0, errors.New("out of range")
	}
	return n * unit, nil
}

func (r *tomlReader) level(key, val string) slog.Level {
	if !r.given(key) {
		return slog.LevelInfo
	}
	switch r.oneOf(key, val, "info", "debug", "warn", "error") {
	case "debug":
		return slog.LevelDebug
	case "warn":
		return slog.LevelWarn
	case "error":
		return slog.LevelError
	}
	return slog.LevelInfo
}

func (r *tomlReader) ips(key string, val []string) []string {
	if !r.given(key) {
		return nil
	}
	list, err := splitIPs(strings.Join(val, ","))
	if err != nil {
		r.wrong(key, "is "+err.Error(), `write a list such as ["127.0.0.1", "172.17.0.0/16"]`)
	}
	if list == nil {
		list = []string{}
	}
	return list
}

func (r *tomlReader) window(key, val string) Window {
	val = strings.TrimSpace(val)
	if val == "" {
		return Window{}
	}
	w, err := parseWindow(val)
	if err != nil {
		r.wrong(key, fmt.Sprintf("cannot be %q: %v", shorten(val), err), `write it as in "22:00-06:00"; "" is always`)
	}
	return w
}

// keys reads public keys. What is no public key may be a secret one and is not repeated.
func (r *tomlReader) keys(key string, val []string) []trust.Key {
	var keys []trust.Key
	for i, text := range val {
		one, err := trust.ParseKey(text)
		if err != nil {
			do := `write a list such as ["RW..."], as in the .pub file`
			var hinter interface{ Hint() string }
			if errors.As(err, &hinter) {
				do = hinter.Hint()
			}
			r.wrong(key, fmt.Sprintf("cannot be used: number %d is %v", i+1, err), do)
			return nil
		}
		keys = append(keys, one)
	}
	return keys
}

// secretKey reports whether the value of a key may hold a password and must not stand in an error.
func secretKey(key string) bool { return key == "proxy.http" || key == "proxy.https" }

// lineOf finds the line of a key in TOML text that is known to be sound, 0 when it is written in an unusual way. The
// library keeps the positions of values to itself.
func lineOf(text, key string) int {
	table, n, found := "", 0, 0
	for line := range strings.SplitSeq(text, "\n") {
		n++
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			name, _, _ := strings.Cut(strings.Trim(line, "["), "]")
			if table = plainKey(name); table == key && found == 0 {
				found = n
			}
			continue
		}
		name, _, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		name = plainKey(name)
		if table != "" {
			name = table + "." + name
		}
		if name == key {
			return n
		}
		if found == 0 && strings.HasPrefix(key, name+".") { // inside an inline table
			found = n
		}
	}
	return found
}

func plainKey(name string) string {
	parts := strings.Split(name, ".")
	for i, part := range parts {
		parts[i] = strings.Trim(strings.TrimSpace(part), `"'`)
	}
	return strings.Join(parts, ".")
}

// nearest returns the candidate that a misspelt word is closest to, "" when none is close. A key under a wrong
// section counts as close.
func nearest(word string, candidates []string) string {
	best, least := "", 3
	for _, c := range candidates {
		if d := distance(word, c); d < least && d*3 < len(c) {
			best, least = c, d
		}
	}
	if best != "" {
		return best
	}
	last := word[strings.LastIndexByte(word, '.')+1:]
	for _, c := range candidates {
		if c[strings.LastIndexByte(c, '.')+1:] == last {
			if best != "" {
				return ""
			}
			best = c
		}
	}
	return best
}

// distance counts the letters to insert, remove or exchange between two words.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return math.MaxInt
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		above := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := above
			if a[i] != b[j] {
				cost++
			}
			above = row[j+1]
			row[j+1] = min(cost, row[j]+1, above+1)
		}
	}
	return row[len(b)]
}
