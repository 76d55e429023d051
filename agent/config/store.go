package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// PropertiesFile and BackupFile are names in the home directory (protocol §2.1), read by workers and by original agents.
const (
	PropertiesFile = ".agent.properties"
	BackupFile     = ".agent.properties.bak"
)

// maxFile bounds both configuration files: a thousand times what real ones hold.
const maxFile = 1 << 20

// Store is .agent.properties, and its only writer. Its methods may be called from several goroutines; Settings
// never waits.
type Store struct {
	path   string
	home   string
	cfg    *Config // guarded by mu
	log    *slog.Logger
	access access

	settings atomic.Pointer[Settings]

	mu       sync.Mutex
	unsaved  bool              // the file could not be written, and that was reported
	useless  bool              // the backup is missing, damaged, or of another agent
	props    *properties       // what is to be on the disk
	onDisk   []byte            // what is there, as far as we know
	base     Settings          // props, read
	pending  string            // a gateway that the server wants and that has not been tried
	refused  map[string]string // the last refused value of a key, so that each is reported once
	mirrored map[string]bool   // proxy keys that came with envs in this life of the process
}

// Open reads <home>/.agent.properties, writes the known keys that it lacks into it (protocol §2.2) and tightens its
// mode to 0600. A file that a crash has torn is replaced by its last good copy, .agent.properties.bak, and a
// warning says so. An operator's mistake is no tear: it is a *[KeyError], and nothing is written.
//
// As root, when devops.slave.user is another account, the file is 0640 with that account's primary group instead:
// a worker reads it (protocol §3.6.4).
func Open(home string, cfg *Config, log *slog.Logger) (*Store, error) {
	home, err := filepath.Abs(home)
	if err != nil {
		return nil, err
	}
	s := &Store{path: filepath.Join(home, PropertiesFile), home: home, cfg: cfg, log: log,
		refused: map[string]string{}, mirrored: map[string]bool{}}
	if err := s.load(); err != nil {
		return nil, err
	}
	account := ""
	if me, err := user.Current(); err == nil {
		account = me.Username[strings.LastIndexByte(me.Username, '\\')+1:]
	}
	s.access = accessFor(s.effective(s.base).SlaveUser, account, log)
	s.access.tighten(s.path, log)
	private.tighten(s.backup(), log)

	for _, p := range complete(home, account) {
		if _, line := s.props.get(p.key); line == 0 {
			if _, err := s.props.set(p.key, p.val); err != nil {
				log.Warn("Setting cannot be written", "key", p.key, "err", err)
			}
		}
	}
	if s.base, _, err = read(s.props, s.path, home); err != nil {
		return nil, err
	}
	s.publish()
	if err := s.save(); err != nil {
		log.Warn("Configuration is not written; the agent runs with it all the same", "path", s.path, "err", err)
	}
	return s, nil
}

func (s *Store) backup() string { return filepath.Join(s.home, BackupFile) }

// load fills props, onDisk and base from the main file, or from the backup when the main file is torn.
func (s *Store) load() error {
	data, err := readBounded(s.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read configuration: %w", err)
	}
	missing := err != nil
	good := s.readBackup()
	if reason := torn(data, missing, s.path, s.home, good); reason != "" && good != nil {
		s.log.Warn("Configuration was torn by a crash; its last good copy is used", "path", s.path, "reason", reason,
			"copy", s.backup())
		s.props = good
		return s.take(s.backup()) // onDisk stays empty: the main file will be written again
	}
	if missing {
		return &KeyError{File: s.path, What: "does not exist",
			Do: "run \"devopsAgent enroll\", or copy the file from the agent's package", Err: os.ErrNotExist}
	}
	if i := bytes.IndexByte(data, 0); i >= 0 {
		return &KeyError{File: s.path, Line: 1 + bytes.Count(data[:i], []byte("\n")), What: "contains NUL bytes",
			Do: "the file is damaged and has no good copy; run \"devopsAgent enroll\" again"}
	}
	s.props, s.onDisk = parseProperties(string(data)), data
	if err := s.take(s.path); err != nil {
		return err
	}
	s.useless = true
	if good != nil { // one of before an enrolment must never come back
		id, _ := good.get(KeyAgent)
		secret, _ := good.get(KeySecret)
		s.useless = id != s.base.Identity.Agent || secret != string(s.base.Identity.Secret)
	}
	return nil
}

// take reads props, which came from path, and logs what makes no sense in them.
func (s *Store) take(path string) error {
	base, complaints, err := read(s.props, path, s.home)
	if err != nil {
		return err
	}
	for _, c := range complaints {
		s.log.Warn("Setting makes no sense, its default is used", "path", path, "line", c.line, "key", c.key,
			"value", display(c.key, c.val), "err", c.err)
	}
	s.base = base
	return nil
}

// readBackup returns the backup when an agent could start with it, else nil.
func (s *Store) readBackup() *properties {
	data, err := readBounded(s.backup())
	if err != nil || bytes.IndexByte(data, 0) >= 0 {
		return nil
	}
	p := parseProperties(string(data))
	if _, _, err := read(p, s.backup(), s.home); err != nil {
		return nil
	}
	return p
}

// torn says how a crash during a rewrite has left the main file, "" when it has not. The writers to fear are
// original agents (weakness W-09) and editors: our own rewrite leaves nothing to see.
func torn(data []byte, missing bool, path, home string, good *properties) string {
	switch {
	case missing:
		return "the file is missing"
	case len(bytes.TrimSpace(data)) == 0:
		return "the file is empty"
	case bytes.IndexByte(data, 0) >= 0:
		return "it contains NUL bytes"
	}
	p := parseProperties(string(data))
	for _, key := range requiredKeys() {
		if _, line := p.get(key); line == 0 {
			return "there is no line for " + key
		}
	}
	last := p.lines[len(p.lines)-1]
	if last.end != "" || good == nil {
		return ""
	}
	if !last.pair {
		begun := strings.TrimSpace(last.text)
		if begun != "" && slices.ContainsFunc(good.lines, func(l propertyLine) bool { return l.pair && strings.HasPrefix(l.key, begun) }) {
			return "its last line, " + begun + ", is cut"
		}
		return ""
	}
	// A last line without its end was cut, unless somebody's editor never writes one. Where it matters, only a value
	// that the good copy knows is believed.
	if known, line := good.get(last.key); line > 0 && known == last.val {
		return ""
	}
	if slices.Contains(requiredKeys(), last.key) {
		return "its last line, " + last.key + ", is cut"
	}
	_, complaints, err := read(p, path, home)
	if err != nil || slices.ContainsFunc(complaints, func(c complaint) bool { return c.key == last.key }) {
		return "its last line, " + last.key + ", is cut"
	}
	return ""
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s: longer than %d bytes", path, maxFile)
	}
	return data, err
}

// save writes props when they differ from the disk: first the good old content to the backup, then the new content
// over the main file, each atomically.
func (s *Store) save() error {
	data := []byte(s.props.String())
	changed := !bytes.Equal(data, s.onDisk)
	if s.onDisk != nil && (changed || s.useless) {
		if err := swap.WriteFile(s.backup(), s.onDisk, 0o600); err != nil {
			return err
		}
		s.useless = false
	}
	if !changed {
		return nil
	}
	if err := swap.WriteFile(s.path, data, s.access.mode); err != nil {
		return err
	}
	s.access.apply(s.path, s.log)
	s.onDisk = data
	return nil
}

// Settings returns the values in force. It never waits and may be called as often as one likes.
func (s *Store) Settings() Settings { return *s.settings.Load() }

// Reconfigure puts another agent.toml over the same .agent.properties, at once.
func (s *Store) Reconfigure(cfg *Config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cfg = cfg
	s.publish()
}

func (s *Store) publish() {
	settings := s.effective(s.base)
	s.settings.Store(&settings)
}

// Change is one setting that is different now. It can be logged: it holds no secret.
type Change struct {
	Key      string // as in .agent.properties
	From, To string // "" when there was or is none; a login in a proxy address is hidden
}

// Refused is a value that the server sent and that was not taken over. The old one stays in force.
type Refused struct {
	Key   string // as in .agent.properties
	Value string // shortened
	Err   error
}

// Error says which value was refused and why.
func (e *Refused) Error() string { return fmt.Sprintf("server sent %s=%q: %v", e.Key, e.Value, e.Err) }

// Unwrap returns the reason.
func (e *Refused) Unwrap() error { return e.Err }

// Apply takes over what a heartbeat reply wants changed, field by field (protocol §1.7.3), and writes the file if
// anything is different. Absent, empty and unusable values leave the old ones; every unusable value is reported
// once, as a *[Refused] inside err. When the file cannot be written, err says so once, the changes hold nevertheless,
// and the next Apply tries again.
//
// A new gateway is not taken over here, see [Store.PendingGateway].
func (s *Store) Apply(reply *wire.HeartbeatReply) (changes []Change, err error) {
	if reply == nil {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next := update{props: s.props.clone()}

	next.count(KeyParallel, reply.ParallelTaskCount, 0, maxCount)
	next.count(KeyDockerParallel, reply.DockerParallelCount, 0, maxCount)
	s.noteGateway(&next, reply.Gateway)
	next.text(KeyFileGateway, reply.FileGateway, wire.CheckGateway)
	if props := reply.Props; props != nil {
		if hours := props.KeepLogsHours; hours != nil && *hours != 0 {
			next.count(KeyKeepLogsHours, hours, 1, maxKeepLogsHours)
		}
		next.text(KeyIgnoreLocalIPs, props.IgnoreLocalIPs, func(val string) error {
			_, err := splitIPs(val)
			return err
		})
		if props.EnablePipeline != nil {
			next.set(KeyPipelineEnable, strconv.FormatBool(*props.EnablePipeline))
		}
	}
	next.text(KeyLanguage, reply.Language, checkLanguage)
	s.mirrorProxies(&next, reply.Envs)
	return s.commit(next)
}

// noteGateway remembers a gateway that the server wants, if it may become ours at all.
func (s *Store) noteGateway(next *update, wanted *string) {
	s.pending = ""
	if wanted == nil {
		return
	}
	val := strings.TrimSpace(*wanted)
	if val == "" || val == s.base.Gateway {
		return
	}
	err := wire.CheckGateway(val)
	if err == nil {
		err = writable(val)
	}
	if err == nil && (isHTTPS(s.base.Gateway) || isHTTPS(s.Settings().Gateway)) && !isHTTPS(val) {
		err = errors.New("never from https down to http")
	}
	if err != nil {
		next.refuse(KeyGateway, val, err)
		return
	}
	s.pending = val
}

func isHTTPS(gateway string) bool { return strings.HasPrefix(wire.BaseURL(gateway), "https://") }

// PendingGateway returns the gateway that the server wants instead of ours, "" when there is none. The agent tries
// it with our identity and calls [Store.SetGateway] after it answered.
func (s *Store) PendingGateway() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pending
}

// SetGateway makes gateway ours and writes the file. The checks of Apply are made again; a *[Refused] says which failed.
func (s *Store) SetGateway(gateway string) (changes []Change, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := update{props: s.props.clone()}
	s.noteGateway(&next, &gateway)
	if len(next.refused) > 0 {
		return nil, next.refused[0]
	}
	if s.pending != "" {
		next.set(KeyGateway, s.pending)
	}
	s.pending = ""
	return s.commit(next)
}

// SetJDK notes where the JDK of an upgrade is, so that the next worker, and the next agent, use it (protocol §4.5): that of JDK 17
// when jdk17 is set, else of JDK 8. The directory takes effect also when the file cannot be written.
func (s *Store) SetJDK(jdk17 bool, dir string) (changes []Change, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := KeyJDKDir
	if jdk17 {
		key = KeyJDK17Dir
	}
	next := update{props: s.props.clone()}
	next.set(key, filepath.ToSlash(dir)) // slashes: for the worker, a backslash is an escape
	if len(next.refused) > 0 {
		return nil, next.refused[0]
	}
	return s.commit(next)
}

// mirrorProxies keeps the proxies of pushed variables across a restart (protocol §1.7.3): a proxy that comes with
// envs is written down and goes when it is no longer in them. One that an operator wrote into the file and that
// never came with envs stays: it may be the only way to the server.
func (s *Store) mirrorProxies(next *update, envs map[string]string) {
	if envs == nil {
		return
	}
	for _, key := range []string{KeyHTTPProxy, KeyHTTPSProxy, KeyNoProxy} {
		val := strings.TrimSpace(lookupEither(envs, key))
		switch {
		case val == "" && s.mirrored[key]:
			delete(s.mirrored, key)
			next.remove(key)
		case val != "":
			check := checkProxy
			if key == KeyNoProxy {
				check = func(string) error { return nil }
			}
			if next.text(key, &val, check) {
				s.mirrored[key] = true
			}
		}
	}
}

// commit puts an update into force and on the disk. Called with mu held.
func (s *Store) commit(next update) ([]Change, error) {
	var errs []error
	for _, r := range next.refused {
		if s.refused[r.Key] != r.Value {
			s.refused[r.Key] = r.Value
			errs = append(errs, r)
		}
	}
	for _, key := range next.accepted {
		delete(s.refused, key)
	}
	if len(next.changes) > 0 {
		base, _, err := read(next.props, s.path, s.home)
		if err != nil { // cannot happen after the checks above; the old values are sound
			return nil, errors.Join(append(errs, err)...)
		}
		s.props, s.base = next.props, base
		s.publish()
	}
	err := s.save()
	if err != nil && !s.unsaved {
		errs = append(errs, fmt.Errorf("save configuration: %w", err))
	}
	s.unsaved = err != nil
	return next.changes, errors.Join(errs...)
}

// update is a set of changes that are made together.
type update struct {
	props    *properties
	changes  []Change
	refused  []*Refused
	accepted []string // keys with a usable value, changed or not
}

func (u *update) refuse(key, val string, err error) {
	u.refused = append(u.refused, &Refused{Key: key, Value: display(key, val), Err: err})
}

func (u *update) count(key string, n *int, least, most int) {
	switch {
	case n == nil:
	case *n < least || *n > most:
		u.refuse(key, strconv.Itoa(*n), fmt.Errorf("not within %d and %d", least, most))
	default:
		u.set(key, strconv.Itoa(*n))
	}
}

// text takes a value over unless it is absent, empty or refused, and reports whether it was usable.
func (u *update) text(key string, val *string, check func(string) error) bool {
	if val == nil {
		return false
	}
	trimmed := strings.TrimSpace(*val)
	if trimmed == "" {
		return false
	}
	if err := check(trimmed); err != nil {
		u.refuse(key, trimmed, err)
		return false
	}
	return u.set(key, trimmed)
}

func (u *update) set(key, val string) bool {
	old, _ := u.props.get(key)
	if len(val) > 4096 {
		u.refuse(key, val, errors.New("longer than 4096 bytes"))
		return false
	}
	changed, err := u.props.set(key, val)
	if err != nil {
		u.refuse(key, val, err)
		return false
	}
	u.accepted = append(u.accepted, key)
	if changed {
		u.changes = append(u.changes, Change{Key: key, From: display(key, old), To: display(key, val)})
	}
	return true
}

func (u *update) remove(key string) {
	old, _ := u.props.get(key)
	if u.props.remove(key) {
		u.changes = append(u.changes, Change{Key: key, From: display(key, old)})
	}
}

// Override is a key of .agent.properties that agent.toml overrides.
type Override struct {
	Key       string // as in .agent.properties
	Setting   string // as in agent.toml, section and name
	Persisted string // what the server or the file wants
	Effective string // what is in force
}

// Overrides lists what agent.toml overrides, so that "status" can say so.
func (s *Store) Overrides() []Override {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, list := s.override(s.base)
	return list
}

func (s *Store) effective(base Settings) Settings {
	settings, _ := s.override(base)
	return settings
}

func (s *Store) override(settings Settings) (Settings, []Override) {
	var list []Override
	note := func(key, setting string, from, to any) {
		list = append(list, Override{Key: key, Setting: setting, Persisted: fmt.Sprint(from), Effective: fmt.Sprint(to)})
	}
	text := func(key, setting string, to *string, val string) {
		if val != "" {
			note(key, setting, *to, val)
			*to = val
		}
	}
	number := func(key, setting string, to *int, val *int) {
		if val != nil {
			note(key, setting, *to, *val)
			*to = *val
		}
	}
	flag := func(key, setting string, to *bool, val *bool) {
		if val != nil {
			note(key, setting, *to, *val)
			*to = *val
		}
	}
	secret := func(key, setting string, to *wire.Secret, val wire.Secret) {
		if val != "" {
			note(key, setting, display(key, string(*to)), display(key, string(val)))
			*to = val
		}
	}
	c := s.cfg
	if c == nil {
		return settings, nil
	}
	text(KeyGateway, "server.gateway", &settings.Gateway, c.Server.Gateway)
	text(KeyFileGateway, "server.file_gateway", &settings.FileGateway, c.Server.FileGateway)
	if c.Server.RequestTimeout > 0 {
		note(KeyRequestTimeout, "server.request_timeout", settings.RequestTimeout, c.Server.RequestTimeout)
		settings.RequestTimeout = c.Server.RequestTimeout
	}
	number(KeyParallel, "builds.parallel", &settings.Parallel, c.Builds.Parallel)
	number(KeyDockerParallel, "builds.docker_parallel", &settings.DockerParallel, c.Builds.DockerParallel)
	text(KeySlaveUser, "builds.user", &settings.SlaveUser, c.Builds.User)
	flag(KeyDetectShell, "builds.detect_shell", &settings.DetectShell, c.Builds.DetectShell)
	flag(KeyPipelineEnable, "scripts.enable", &settings.PipelineEnable, c.Scripts.Enable)
	flag(KeyCollectorOn, "metrics.enable", &settings.CollectorOn, c.Metrics.Enable)
	if c.Host.IgnoreIPs != nil {
		note(KeyIgnoreLocalIPs, "host.ignore_ips", strings.Join(settings.IgnoreLocalIPs, ","), strings.Join(c.Host.IgnoreIPs, ","))
		settings.IgnoreLocalIPs = slices.Clone(c.Host.IgnoreIPs)
	}
	text(KeyLanguage, "host.language", &settings.Language, c.Host.Language)
	number(KeyKeepLogsHours, "host.keep_logs_hours", &settings.KeepLogsHours, c.Host.KeepLogsHours)
	secret(KeyHTTPProxy, "proxy.http", &settings.HTTPProxy, c.Proxy.HTTP)
	secret(KeyHTTPSProxy, "proxy.https", &settings.HTTPSProxy, c.Proxy.HTTPS)
	text(KeyNoProxy, "proxy.no_proxy", &settings.NoProxy, c.Proxy.NoProxy)
	return settings, list
}
