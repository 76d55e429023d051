package config

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// TestMain also plays the agent that TestKillWhileRewriting kills.
func TestMain(m *testing.M) {
	if home := os.Getenv("CONFIG_TEST_REWRITE"); home != "" {
		os.Exit(rewriteForEver(home))
	}
	goleak.VerifyTestMain(m)
}

// seedFile is what the template of a server becomes (protocol §2.2), with an operator's notes in it.
const seedFile = `# package of 2023
devops.project.id=demo
devops.agent.id=zxcvbnm
devops.agent.secret.key=0123456789abcdef
landun.gateway=http://devops.example.com
landun.fileGateway=http://files.example.com
devops.parallel.task.count=4
landun.env=PROD

# ours
devops.agent.collectorOn=false
devops.agent.batch.install=zxcvbnm
devops.agent.detect.shell=true
devops.language=en_US
site.rack=7
`

func home(t *testing.T, properties string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, PropertiesFile), properties)
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func file(t *testing.T, dir, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func open(t *testing.T, dir string, cfg *Config) *Store {
	t.Helper()
	s, err := Open(dir, cfg, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ptr[T any](v T) *T { return &v }

func TestOpenReadsASeedFileAndCompletesIt(t *testing.T) {
	dir := home(t, seedFile)
	s := open(t, dir, nil)
	got := s.Settings()
	want := Settings{
		Identity: wire.Identity{Project: "demo", Agent: "zxcvbnm", Secret: "0123456789abcdef"},
		Gateway:  "http://devops.example.com", FileGateway: "http://files.example.com", Env: "PROD",
		Parallel: 4, DockerParallel: 4, SlaveUser: got.SlaveUser, CollectorOn: false, DetectShell: true,
		RequestTimeout: 5 * time.Second, IgnoreLocalIPs: []string{"127.0.0.1"}, KeepLogsHours: 96,
		JDKDir: filepath.Join(dir, "jdk"), JDK17Dir: filepath.Join(dir, "jdk17"), Language: "en_US", PortRange: "30000-32767",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got.SlaveUser == "" {
		t.Error("no account for workers")
	}
	text := file(t, dir, PropertiesFile)
	if !strings.HasPrefix(text, seedFile) {
		t.Errorf("what was there has changed:\n%s", text)
	}
	var added []string
	for line := range strings.Lines(strings.TrimPrefix(text, seedFile)) {
		key, _, _ := strings.Cut(line, "=")
		added = append(added, key)
	}
	order := []string{KeySlaveUser, KeyRequestTimeout, KeyIgnoreLocalIPs, KeyKeepLogsHours, KeyJDKDir, KeyJDK17Dir,
		KeyDockerParallel, KeyDockerEnable, KeyPortRange, KeyPipelineEnable, KeyMCPPort}
	if !reflect.DeepEqual(added, order) {
		t.Errorf("added %q, want %q", added, order)
	}
	if strings.Contains(strings.TrimPrefix(text, seedFile), `\`) {
		t.Errorf("a backslash, which is an escape for the worker:\n%s", text)
	}
}

func TestAFileOfTheAskGenerationIsLeftAlone(t *testing.T) {
	s := open(t, home(t, seedFile), nil)
	complete := s.props.String() + "HTTP_PROXY=http://u:pw@proxy:3128\nHTTPS_PROXY=\nNO_PROXY=localhost\n"
	complete = strings.NewReplacer("devops.mcp.server.port=0", "devops.mcp.server.port=8123",
		"devops.pipeline.enable=false", "devops.pipeline.enable=true").Replace(complete)
	dir := home(t, complete)
	before := stat(t, dir)
	again := open(t, dir, nil)
	if file(t, dir, PropertiesFile) != complete || !os.SameFile(before, stat(t, dir)) {
		t.Error("a complete file was rewritten")
	}
	got := again.Settings()
	if got.MCPPort != 8123 || !got.PipelineEnable || got.HTTPProxy != "http://u:pw@proxy:3128" || got.NoProxy != "localhost" {
		t.Errorf("%+v %q", got, string(got.HTTPProxy))
	}
	if text := fmt.Sprintf("%v %+v %#v", got, got, got); strings.Contains(text, "pw@") || strings.Contains(text, "0123456789abcdef") {
		t.Errorf("a secret prints itself: %s", text)
	}
}

func stat(t *testing.T, dir string) os.FileInfo {
	t.Helper()
	info, err := os.Stat(filepath.Join(dir, PropertiesFile))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func TestToleratedWaysToWriteTheFile(t *testing.T) {
	text := "\ufeff" + strings.ReplaceAll(seedFile, "\n", "\r\n")
	text = strings.NewReplacer("devops.agent.id=zxcvbnm", `devops.agent.id = "zxcvbnm"`, "count=4", "count = 9 # nine",
		"devops.language=en_US", "devops.language=klingon\r\ndevops.agent.logs.keep.hours=soon\r\ndevops.agent.request.timeout.sec=-1").Replace(text)
	got := open(t, home(t, text), nil).Settings()
	if got.Identity.Agent != "zxcvbnm" || got.Parallel != 9 || got.Language != "zh_CN" || got.KeepLogsHours != 96 || got.RequestTimeout != 5*time.Second {
		t.Errorf("%+v", got)
	}
}

func TestJREServesWhereThereIsNoJDK(t *testing.T) {
	dir := home(t, seedFile)
	if err := os.Mkdir(filepath.Join(dir, "jre"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := open(t, dir, nil).Settings().JDKDir; got != filepath.Join(dir, "jre") {
		t.Errorf("JDKDir = %s", got)
	}
	relative := home(t, seedFile+"devops.agent.jdk.dir.path=jdk1700000000\n")
	if got := open(t, relative, nil).Settings().JDKDir; got != filepath.Join(relative, "jdk1700000000") {
		t.Errorf("JDKDir = %s", got)
	}
}

// Statement 17: an operator's mistake ends the start, names file, line and key, and is never hidden by the backup.
func TestAnOperatorsMistakeIsAnError(t *testing.T) {
	good := open(t, home(t, seedFile), nil).props.String()
	for _, c := range []struct{ from, to, key, what string }{
		{"devops.project.id=demo", "devops.project.id=", KeyProject, "no value"},
		{"devops.agent.id=zxcvbnm", "devops.agent.id= # later", KeyAgent, "no value"},
		{"devops.agent.secret.key=0123456789abcdef", "devops.agent.secret.key=\"\"", KeySecret, "no value"},
		{"devops.agent.secret.key=0123456789abcdef", "devops.agent.secret.key=hush hush", KeySecret, "header"},
		{"landun.gateway=http://devops.example.com", "landun.gateway=", KeyGateway, "no value"},
		{"landun.gateway=http://devops.example.com", "landun.gateway=http://a b", KeyGateway, "address"},
		{"landun.env=PROD", "landun.env=", KeyEnv, "no value"},
		{"devops.parallel.task.count=4", "devops.parallel.task.count=", KeyParallel, "no value"},
		{"devops.parallel.task.count=4", "devops.parallel.task.count=-1", KeyParallel, "negative"},
		{"devops.parallel.task.count=4", "devops.parallel.task.count=four", KeyParallel, "number"},
		{"devops.parallel.task.count=4", "devops.parallel.task.count=4.5", KeyParallel, "number"},
		{"devops.parallel.task.count=4", "devops.parallel.task.count=99999999999", KeyParallel, "number"},
		{"devops.docker.parallel.task.count=4", "devops.docker.parallel.task.count=-1", KeyDockerParallel, "negative"},
		{"devops.docker.parallel.task.count=4", "devops.docker.parallel.task.count=x", KeyDockerParallel, "number"},
	} {
		bad := strings.Replace(good, c.from+"\n", c.to+"\n", 1)
		if bad == good {
			t.Fatalf("%q is not in the file", c.from)
		}
		dir := home(t, bad)
		write(t, filepath.Join(dir, BackupFile), good)
		_, err := Open(dir, nil, quiet())
		var wrong *KeyError
		if !errors.As(err, &wrong) || wrong.Key != c.key || !strings.Contains(wrong.What, c.what) || wrong.Hint() == "" ||
			wrong.Line != 1+strings.Count(bad[:strings.Index(bad, c.to)], "\n") || !strings.Contains(err.Error(), filepath.Join(dir, PropertiesFile)) {
			t.Errorf("%s: %#v", c.to, err)
		}
		if err != nil && strings.Contains(err.Error(), "hush") {
			t.Errorf("a secret in an error: %v", err)
		}
		if file(t, dir, PropertiesFile) != bad || file(t, dir, BackupFile) != good {
			t.Errorf("%s: a file was written", c.to)
		}
	}
}

func TestAMissingKeyOrFileWithoutACopyIsAnError(t *testing.T) {
	for _, key := range requiredKeys() {
		var kept []string
		for line := range strings.Lines(seedFile) {
			if !strings.HasPrefix(line, key+"=") {
				kept = append(kept, line)
			}
		}
		var wrong *KeyError
		if _, err := Open(home(t, strings.Join(kept, "")), nil, quiet()); !errors.As(err, &wrong) || wrong.Key != key || wrong.Hint() == "" {
			t.Errorf("without %s: %v", key, err)
		}
	}
	_, err := Open(t.TempDir(), nil, quiet())
	var wrong *KeyError
	if !errors.As(err, &wrong) || !errors.Is(err, os.ErrNotExist) || wrong.Hint() == "" {
		t.Errorf("no file: %v", err)
	}
	for _, text := range []string{"", "\n", strings.Replace(seedFile, "demo", "de\x00mo", 1)} {
		if _, err := Open(home(t, text), nil, quiet()); !errors.As(err, &wrong) {
			t.Errorf("%q: %v", text, err)
		}
	}
	huge := home(t, seedFile+"x="+strings.Repeat("y", maxFile))
	if _, err := Open(huge, nil, quiet()); err == nil {
		t.Error("a huge file was read")
	}
}

func TestATornFileIsReplacedByItsCopy(t *testing.T) {
	good := open(t, home(t, seedFile), nil).props.String()
	cut := func(at string) string { return good[:strings.Index(good, at)+len(at)] }
	for name, main := range map[string]*string{
		"missing":                      nil,
		"empty":                        ptr(""),
		"blank":                        ptr("\n\n"),
		"NUL bytes":                    ptr(strings.Repeat("\x00", 512)),
		"NUL bytes at the end":         ptr(good + "\x00\x00"),
		"cut in a required value":      ptr(cut("devops.agent.secret.key=0123")),
		"cut after a line":             ptr(cut("count=4\n")),
		"cut in a required key":        ptr(cut("landun.e")),
		"cut in the last required":     ptr(cut("landun.env=PR")),
		"cut in an optional key":       ptr(cut("devops.docker.parallel.ta")),
		"cut in an optional value":     ptr(cut("devops.imagedebug.portrange=3000")),
		"cut in a count":               ptr(cut("devops.docker.parallel.task.count=")[:strings.Index(good, "devops.docker.parallel")] + "devops.docker.parallel.task.count=-"),
		"a required line is not there": ptr(strings.Replace(good, "landun.env=PROD\n", "", 1)),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if main != nil {
				write(t, filepath.Join(dir, PropertiesFile), *main)
			}
			write(t, filepath.Join(dir, BackupFile), good)
			var log bytes.Buffer
			s, err := Open(dir, nil, slog.New(slog.NewTextHandler(&log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(log.String(), "torn") || strings.Contains(log.String(), "0123456789abcdef") {
				t.Errorf("log: %s", &log)
			}
			if file(t, dir, PropertiesFile) != good || s.Settings().Identity.Secret != "0123456789abcdef" {
				t.Errorf("main file:\n%s", file(t, dir, PropertiesFile))
			}
		})
	}
}

func TestAFileWithoutItsLastLineEndIsNotTorn(t *testing.T) {
	good := open(t, home(t, seedFile), nil).props.String()
	for name, main := range map[string]string{
		"an optional key":            strings.TrimSuffix(seedFile, "\n"),
		"a required one, as it was":  strings.Replace(seedFile, "landun.env=PROD\n", "", 1) + "landun.env=PROD",
		"a comment":                  seedFile + "# the end",
		"an optional one, new value": seedFile + "devops.agent.logs.keep.hours=48",
	} {
		dir := home(t, main)
		write(t, filepath.Join(dir, BackupFile), strings.Replace(good, "demo", "copy", 1))
		if got := open(t, dir, nil).Settings(); got.Identity.Project != "demo" {
			t.Errorf("%s: the copy was used", name)
		}
		if !strings.HasPrefix(file(t, dir, PropertiesFile), main+"\n") {
			t.Errorf("%s:\n%s", name, file(t, dir, PropertiesFile))
		}
	}
	// Without a copy, there is nothing better than what is there.
	if got := open(t, home(t, strings.Replace(seedFile, "landun.env=PROD\n", "", 1)+"landun.env=PR"), nil).Settings(); got.Env != "PR" {
		t.Errorf("%+v", got)
	}
}

func TestABadCopyIsNoHelp(t *testing.T) {
	for _, copied := range []string{"", "\x00", "devops.project.id=x\n", strings.Replace(seedFile, "count=4", "count=-4", 1)} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, BackupFile), copied)
		if _, err := Open(dir, nil, quiet()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("copy %q: %v", copied, err)
		}
		write(t, filepath.Join(dir, PropertiesFile), seedFile)
		open(t, dir, nil)
	}
}

func TestACopyOfAnotherAgentIsReplacedAtOnce(t *testing.T) {
	good := open(t, home(t, seedFile), nil).props.String()
	for name, copied := range map[string]string{"before an enrolment": strings.Replace(good, "zxcvbnm", "older", 1), "damaged": "x"} {
		dir := home(t, good)
		write(t, filepath.Join(dir, BackupFile), copied)
		open(t, dir, nil)
		if file(t, dir, BackupFile) != good {
			t.Errorf("%s: still there", name)
		}
	}
	dir := home(t, good)
	open(t, dir, nil)
	if file(t, dir, BackupFile) != good {
		t.Error("no copy was made")
	}
}

func TestTheFileIsPrivate(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a machine with Unix modes")
	}
	dir := home(t, seedFile)
	for _, name := range []string{PropertiesFile, BackupFile} {
		write(t, filepath.Join(dir, name), seedFile)
		if err := os.Chmod(filepath.Join(dir, name), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	s, err := Open(dir, nil, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(log.String(), "level=WARN") != 2 {
		t.Errorf("log: %s", &log)
	}
	if _, err := s.Apply(&wire.HeartbeatReply{ParallelTaskCount: ptr(9)}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{PropertiesFile, BackupFile} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

func TestApplyFollowsTheProtocolFieldByField(t *testing.T) {
	dir := home(t, seedFile)
	s := open(t, dir, nil)
	before := file(t, dir, PropertiesFile)
	changes, err := s.Apply(&wire.HeartbeatReply{
		ParallelTaskCount: ptr(7), DockerParallelCount: ptr(0), FileGateway: ptr("https://f2.example.com"), Language: ptr("ja_JP"),
		Props: &wire.ReplyProps{IgnoreLocalIPs: ptr("10.0.0.0/8,192.168.1.1"), KeepLogsHours: ptr(24), EnablePipeline: ptr(true)},
		Envs:  map[string]string{"http_proxy": "http://me:hush@proxy:3128", "NO_PROXY": "localhost", "OTHER": "x"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []Change{
		{KeyParallel, "4", "7"}, {KeyDockerParallel, "4", "0"}, {KeyFileGateway, "http://files.example.com", "https://f2.example.com"},
		{KeyKeepLogsHours, "96", "24"}, {KeyIgnoreLocalIPs, "127.0.0.1", "10.0.0.0/8,192.168.1.1"}, {KeyPipelineEnable, "false", "true"},
		{KeyLanguage, "en_US", "ja_JP"}, {KeyHTTPProxy, "", "http://%28secret%29@proxy:3128"}, {KeyNoProxy, "", "localhost"},
	}
	if !reflect.DeepEqual(changes, want) {
		t.Errorf("changes %+v\nwant    %+v", changes, want)
	}
	got := s.Settings()
	if got.Parallel != 7 || got.DockerParallel != 0 || got.FileGateway != "https://f2.example.com" || got.Language != "ja_JP" ||
		got.KeepLogsHours != 24 || !got.PipelineEnable || len(got.IgnoreLocalIPs) != 2 || got.HTTPProxy != "http://me:hush@proxy:3128" {
		t.Errorf("%+v", got)
	}
	if file(t, dir, BackupFile) != before {
		t.Error("the copy is not the last good file")
	}
	if restarted := open(t, dir, nil).Settings(); !reflect.DeepEqual(restarted, got) {
		t.Errorf("after a restart %+v\nbefore it      %+v", restarted, got)
	}
	if text := file(t, dir, PropertiesFile); !strings.Contains(text, "# ours\n") || !strings.Contains(text, "site.rack=7\n") ||
		!strings.Contains(text, "devops.agent.batch.install=zxcvbnm\n") || !strings.Contains(text, "devops.agent.collectorOn=false\n") {
		t.Errorf("something was lost:\n%s", text)
	}
}

// Statement 28.
func TestNothingNewIsNotWritten(t *testing.T) {
	dir := home(t, seedFile)
	s := open(t, dir, nil)
	before, copied := stat(t, dir), file(t, dir, BackupFile)
	for _, reply := range []*wire.HeartbeatReply{nil, {}, {ParallelTaskCount: ptr(4), DockerParallelCount: ptr(4), Gateway: ptr(""),
		FileGateway: ptr(" "), Language: ptr(""), Props: &wire.ReplyProps{IgnoreLocalIPs: ptr(""), KeepLogsHours: ptr(0)}, Envs: map[string]string{}},
		{Gateway: ptr("http://devops.example.com"), Language: ptr("en_US"), Props: &wire.ReplyProps{KeepLogsHours: ptr(96)}}} {
		if changes, err := s.Apply(reply); len(changes) != 0 || err != nil {
			t.Errorf("%+v: %v, %v", reply, changes, err)
		}
	}
	if after := stat(t, dir); !os.SameFile(before, after) || !before.ModTime().Equal(after.ModTime()) || file(t, dir, BackupFile) != copied {
		t.Error("the file was rewritten")
	}
}

func TestWhatMakesNoSenseIsRefusedOnce(t *testing.T) {
	for name, reply := range map[string]*wire.HeartbeatReply{
		KeyParallel:            {ParallelTaskCount: ptr(-1)},
		KeyParallel + " ":      {ParallelTaskCount: ptr(10001)},
		KeyDockerParallel:      {DockerParallelCount: ptr(-1)},
		KeyGateway:             {Gateway: ptr("http://a b")},
		KeyGateway + " ":       {Gateway: ptr("http://x\nlandun.env=EVIL")},
		KeyFileGateway:         {FileGateway: ptr("https://")},
		KeyLanguage:            {Language: ptr("../../etc")},
		KeyKeepLogsHours:       {Props: &wire.ReplyProps{KeepLogsHours: ptr(87601)}},
		KeyKeepLogsHours + " ": {Props: &wire.ReplyProps{KeepLogsHours: ptr(-5)}},
		KeyIgnoreLocalIPs:      {Props: &wire.ReplyProps{IgnoreLocalIPs: ptr("10.0.0.0/8,everything")}},
		KeyHTTPProxy:           {Envs: map[string]string{"HTTP_PROXY": "gopher://me:hush@x"}},
		KeyHTTPSProxy:          {Envs: map[string]string{"HTTPS_PROXY": "http://me:hush@x\x00"}},
		KeyNoProxy:             {Envs: map[string]string{"no_proxy": "a\nb"}},
	} {
		name = strings.TrimSpace(name)
		dir := home(t, seedFile)
		s := open(t, dir, nil)
		before, settings := file(t, dir, PropertiesFile), s.Settings()
		changes, err := s.Apply(reply)
		var refused *Refused
		if !errors.As(err, &refused) || refused.Key != name || len(changes) != 0 || strings.Contains(err.Error(), "hush") || strings.ContainsAny(err.Error(), "\n\x00") {
			t.Errorf("%s: %v, %v", name, changes, err)
		}
		if file(t, dir, PropertiesFile) != before || !reflect.DeepEqual(s.Settings(), settings) || s.PendingGateway() != "" {
			t.Errorf("%s was taken over", name)
		}
		if _, err := s.Apply(reply); err != nil {
			t.Errorf("%s: reported again: %v", name, err)
		}
	}
}

func TestAGoodValueIsTakenThoughAnotherIsRefused(t *testing.T) {
	s := open(t, home(t, seedFile), nil)
	changes, err := s.Apply(&wire.HeartbeatReply{ParallelTaskCount: ptr(-1), Language: ptr("fr_FR")})
	if len(changes) != 1 || err == nil || s.Settings().Language != "fr_FR" || s.Settings().Parallel != 4 {
		t.Errorf("%v, %v", changes, err)
	}
}

func TestAGatewayIsACandidateFirst(t *testing.T) {
	dir := home(t, seedFile)
	s := open(t, dir, nil)
	const next = "https://new.example.com"
	for range 2 {
		if changes, err := s.Apply(&wire.HeartbeatReply{Gateway: ptr(next)}); len(changes) != 0 || err != nil {
			t.Errorf("%v, %v", changes, err)
		}
	}
	if s.PendingGateway() != next || s.Settings().Gateway != "http://devops.example.com" {
		t.Errorf("pending %q, in force %q", s.PendingGateway(), s.Settings().Gateway)
	}
	if changes, err := s.SetGateway(next); err != nil || !reflect.DeepEqual(changes, []Change{{KeyGateway, "http://devops.example.com", next}}) {
		t.Errorf("%v, %v", changes, err)
	}
	if s.PendingGateway() != "" || s.Settings().Gateway != next || !strings.Contains(file(t, dir, PropertiesFile), "landun.gateway="+next+"\n") {
		t.Errorf("pending %q, in force %q", s.PendingGateway(), s.Settings().Gateway)
	}
	for _, down := range []string{"http://devops.example.com", "devops.example.com"} {
		if _, err := s.Apply(&wire.HeartbeatReply{Gateway: ptr(down)}); err == nil || s.PendingGateway() != "" {
			t.Errorf("down to %s: %v", down, err)
		}
		if _, err := s.SetGateway(down); err == nil || s.Settings().Gateway != next {
			t.Errorf("set down to %s: %v", down, err)
		}
	}
	if _, err := s.Apply(&wire.HeartbeatReply{Gateway: ptr("https://third.example.com")}); err != nil || s.PendingGateway() == "" {
		t.Errorf("%v", err)
	}
	if _, err := s.Apply(&wire.HeartbeatReply{}); err != nil || s.PendingGateway() != "" {
		t.Errorf("the server no longer wants it: %q, %v", s.PendingGateway(), err)
	}
}

func TestProxiesComeAndGoWithEnvs(t *testing.T) {
	dir := home(t, seedFile+"HTTPS_PROXY=http://hand.written:1\n")
	s := open(t, dir, nil)
	step := func(envs map[string]string, http, https string) {
		t.Helper()
		if _, err := s.Apply(&wire.HeartbeatReply{Envs: envs}); err != nil {
			t.Fatal(err)
		}
		if got := s.Settings(); string(got.HTTPProxy) != http || string(got.HTTPSProxy) != https {
			t.Errorf("%v: %q %q", envs, string(got.HTTPProxy), string(got.HTTPSProxy))
		}
	}
	step(map[string]string{"HTTP_PROXY": "http://a:1", "http_proxy": "http://lower:1"}, "http://a:1", "http://hand.written:1")
	step(nil, "http://a:1", "http://hand.written:1")
	step(map[string]string{}, "", "http://hand.written:1")
	if strings.Contains(file(t, dir, PropertiesFile), "HTTP_PROXY") {
		t.Errorf("still there:\n%s", file(t, dir, PropertiesFile))
	}
	step(map[string]string{"https_proxy": "b:2"}, "", "b:2")
	step(map[string]string{"X": "y"}, "", "")
}

func TestAgentTomlWinsAndSaysSo(t *testing.T) {
	cfg, err := parseConfig("agent.toml", `
[server]
gateway = "https://mine.example.com"
request_timeout = "9s"
[builds]
parallel = 1
[host]
ignore_ips = []
[proxy]
https = "http://me:hush@p:1"
`)
	if err != nil {
		t.Fatal(err)
	}
	dir := home(t, seedFile)
	s := open(t, dir, cfg)
	if _, err := s.Apply(&wire.HeartbeatReply{ParallelTaskCount: ptr(50), Gateway: ptr("https://theirs.example.com")}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.SetGateway(s.PendingGateway()); err != nil {
		t.Fatal(err)
	}
	got := s.Settings()
	if got.Parallel != 1 || got.Gateway != "https://mine.example.com" || got.RequestTimeout != 9*time.Second || len(got.IgnoreLocalIPs) != 0 {
		t.Errorf("%+v", got)
	}
	if text := file(t, dir, PropertiesFile); !strings.Contains(text, "count=50\n") || !strings.Contains(text, "landun.gateway=https://theirs") || strings.Contains(text, "hush") {
		t.Errorf("on disk:\n%s", text)
	}
	want := []Override{
		{KeyGateway, "server.gateway", "https://theirs.example.com", "https://mine.example.com"},
		{KeyRequestTimeout, "server.request_timeout", "5s", "9s"},
		{KeyParallel, "builds.parallel", "50", "1"},
		{KeyIgnoreLocalIPs, "host.ignore_ips", "127.0.0.1", ""},
		{KeyHTTPSProxy, "proxy.https", "", "http://%28secret%29@p:1"},
	}
	if list := s.Overrides(); !reflect.DeepEqual(list, want) {
		t.Errorf("overrides %+v\nwant      %+v", list, want)
	}
}

func TestSettingsHoldThoughTheDiskIsFull(t *testing.T) {
	dir := home(t, seedFile)
	s := open(t, dir, nil)
	path := s.path
	s.path = filepath.Join(dir, "gone", PropertiesFile) // no such directory: every write fails
	if _, err := s.Apply(&wire.HeartbeatReply{ParallelTaskCount: ptr(8)}); err == nil || s.Settings().Parallel != 8 {
		t.Errorf("%v, %d", err, s.Settings().Parallel)
	}
	if _, err := s.Apply(&wire.HeartbeatReply{}); err != nil {
		t.Errorf("reported with every heartbeat: %v", err)
	}
	s.path = path
	if _, err := s.Apply(&wire.HeartbeatReply{}); err != nil || !strings.Contains(file(t, dir, PropertiesFile), "count=8\n") {
		t.Errorf("not written later: %v", err)
	}
}

func TestKillWhileRewriting(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := home(t, seedFile)
	open(t, dir, nil)
	for round := range 40 {
		child := exec.Command(self)
		child.Env = append(os.Environ(), "CONFIG_TEST_REWRITE="+dir)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		// Wait until it writes, then let it write for a moment that is different each time.
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatalf("the child ended by itself: %v", err)
		}
		timer := time.NewTimer(time.Duration(rand.IntN(int(10 * time.Millisecond))))
		<-timer.C
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = child.Wait()
		for _, name := range []string{PropertiesFile, BackupFile} {
			p := parseProperties(file(t, dir, name))
			got, _, err := read(p, name, dir)
			if err != nil || got.Identity.Secret != "0123456789abcdef" || !strings.HasSuffix(p.String(), "\n") ||
				!strings.Contains(p.String(), "site.rack=7\n") {
				t.Fatalf("round %d: %s: %v\n%s", round, name, err, p)
			}
		}
		var log bytes.Buffer
		if _, err := Open(dir, nil, slog.New(slog.NewTextHandler(&log, nil))); err != nil || log.Len() > 0 {
			t.Fatalf("round %d: %v %s", round, err, &log)
		}
	}
}

// rewriteForEver is the child of TestKillWhileRewriting.
func rewriteForEver(home string) int {
	s, err := Open(home, nil, quiet())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for n := 0; ; n++ {
		reply := &wire.HeartbeatReply{ParallelTaskCount: ptr(n % maxCount), Envs: map[string]string{}}
		if n%2 == 0 {
			reply.Envs["HTTP_PROXY"] = "http://proxy:" + fmt.Sprint(1+n%60000)
		}
		if _, err := s.Apply(reply); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if n == 0 {
			fmt.Println("writing")
		}
	}
}
