package config

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/upgrader/trust"
)

func example(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "agent.toml"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// exampleKey is the one in the example; its secret half is gone.
const exampleKey = "RWQlOUk2VtmitVxuAQW+LiMgnJ7XDdIbol8U2WMs4V4XVVLq2Q7nEjjy"

func TestTheExampleIsAllDefaults(t *testing.T) {
	got, err := LoadConfig(filepath.Join("testdata", "agent.toml"))
	if err != nil {
		t.Fatal(err)
	}
	none, err := LoadConfig(filepath.Join(t.TempDir(), "agent.toml"))
	if err != nil {
		t.Fatal(err)
	}
	got.Path, none.Path = "", ""
	if !reflect.DeepEqual(got, none) {
		t.Errorf("the example: %+v\nno file:     %+v", got, none)
	}
	want := &Config{Protocol: Auto, Scripts: Scripts{Timeout: time.Hour, MaxOutput: 1 << 20},
		Log: Log{Level: slog.LevelInfo, KeepDays: 7, KeepFiles: 7, MaxSizeMB: 100}, Drain: Drain{Timeout: 10 * time.Minute},
		Upgrade: Upgrade{Mode: UpgradeServer, SettleAfter: 30 * time.Second, MaxDownload: 1 << 30}}
	if !reflect.DeepEqual(none, want) {
		t.Errorf("defaults: %+v, want %+v", none, want)
	}
}

func TestTheExampleShowsEverySetting(t *testing.T) {
	text := regexp.MustCompile(`(?m)^#([a-z_]+ = )`).ReplaceAllString(example(t), "$1")
	c, err := parseConfig("/etc/devops-agent/agent.toml", text)
	if err != nil {
		t.Fatal(err)
	}
	yes, no, four, hours := true, false, 4, 96
	key, err := trust.ParseKey(exampleKey)
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Path: "/etc/devops-agent/agent.toml", Protocol: Auto,
		Server:  Server{"https://devops.example.com", "https://files.example.com", 5 * time.Second},
		Builds:  Builds{&four, &four, "builder", &yes},
		Scripts: Scripts{&no, time.Hour, 1 << 20},
		Metrics: Metrics{&yes},
		Log:     Log{slog.LevelInfo, 7, 7, 100},
		Proxy:   Proxies{"http://proxy.example.com:3128", "http://proxy.example.com:3128", "localhost,10.0.0.0/8,.example.com"},
		Host:    Host{[]string{"127.0.0.1", "172.17.0.0/16"}, "en_US", &hours},
		Drain:   Drain{10 * time.Minute},
		Upgrade: Upgrade{UpgradeServer, Window{22 * 60, 6 * 60}, 0, 30 * time.Second, 1 << 30},
		Trust:   Trust{[]trust.Key{key}, true},
		Enroll:  Enroll{"https://devops.example.com", c.Enroll.TokenFile, "shenzhen", wire.PinOf(nil)},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
	// Every key of the schema is in the example, and every one is known to the did-you-mean list.
	var schema []string
	var walk func(prefix string, of reflect.Type)
	walk = func(prefix string, of reflect.Type) {
		for i := range of.NumField() {
			key := prefix + of.Field(i).Tag.Get("toml")
			schema = append(schema, key)
			if of.Field(i).Type.Kind() == reflect.Struct {
				walk(key+".", of.Field(i).Type)
			}
		}
	}
	walk("", reflect.TypeFor[tomlFile]())
	if !slices.Equal(schema, tomlKeys()) {
		t.Errorf("schema %q\nlist   %q", schema, tomlKeys())
	}
	for _, key := range schema {
		if lineOf(text, key) == 0 {
			t.Errorf("%s is not in the example", key)
		}
	}
}

func TestWrongSettingsNameTheirLineAndAWayOut(t *testing.T) {
	for text, want := range map[string]struct {
		line            int
		key, what, hint string
	}{
		"[builds]\nparalel = 4":                          {2, "builds.paralel", "not a setting", "did you mean builds.parallel?"},
		"# x\n[build]\nparallel = 4":                     {2, "build", "not a setting", "did you mean builds?"},
		"\n\nparallel = 4":                               {3, "parallel", "not a setting", "did you mean builds.parallel?"},
		"[server]\nproxy = 1":                            {2, "server.proxy", "not a setting", "did you mean proxy?"},
		"whatever = 1":                                   {1, "whatever", "not a setting", "remove it"},
		"server.gatway = \"x\"":                          {1, "server.gatway", "not a setting", "did you mean server.gateway?"},
		"server = { gatway = \"x\" }":                    {1, "server.gatway", "not a setting", "did you mean server.gateway?"},
		"protocol = \"splt\"":                            {1, "protocol", `cannot be "splt"`, `did you mean "split"?`},
		"protocol = \"\"":                                {1, "protocol", "cannot be", "auto, ask, split"},
		"[upgrade]\nmode = \"never\"":                    {2, "upgrade.mode", `"never"`, "server, package, off"},
		"[builds]\n\nparallel = -1":                      {3, "builds.parallel", "-1", "0 to 10000"},
		"[builds]\nparallel = \"4\"":                     {2, "builds.parallel", "string instead of integer", "without quotes"},
		"[builds]\nuser = 4":                             {2, "builds.user", "instead of string", "in quotes"},
		"[builds\nuser = 4":                              {2, "", "expected", "compare"},
		"[drain]\ntimeout = \"10\"":                      {2, "drain.timeout", `"10"`, `"10m"`},
		"[drain]\ntimeout = 10":                          {2, "drain.timeout", "instead of string", "with its unit"},
		"[scripts]\ntimeout = \"-5s\"":                   {2, "scripts.timeout", "-5s", "from 1s"},
		"[scripts]\nmax_output = \"lots\"":               {2, "scripts.max_output", `"lots"`, "1MiB"},
		"[scripts]\nmax_output = \"1GiB\"":               {2, "scripts.max_output", `"1GiB"`, "64 MiB"},
		"[log]\nlevel = \"infos\"":                       {2, "log.level", `"infos"`, `"info"`},
		"[log]\nkeep_days = 0":                           {2, "log.keep_days", "0", "1 to"},
		"[host]\nignore_ips = [\"10.0.0.0/8\", \"abc\"]": {2, "host.ignore_ips", "abc", "172.17"},
		"[host]\nlanguage = \"x\"":                       {2, "host.language", "locale", ""},
		"[server]\ngateway = \"http://a b\"":             {2, "server.gateway", "address", "https://"},
		"[proxy]\nhttp = \"ftp://me:hush@x\"":            {2, "proxy.http", "ftp", ""},
		"[proxy]\nhttps = \"http://me:hush@x:y\"":        {2, "proxy.https", "not an address", ""},
		"[upgrade]\nwindow = \"22:00\"":                  {2, "upgrade.window", "two times", "22:00-06:00"},
		"[upgrade]\nwindow = \"22:00-25:00\"":            {2, "upgrade.window", "two times", "22:00-06:00"},
		"[upgrade]\nwindow = \"24:00-06:00\"":            {2, "upgrade.window", "two times", "22:00-06:00"},
		"[upgrade]\nwindow = \"03:00-03:00\"":            {2, "upgrade.window", "no length", "always"},
		"[upgrade]\nwindow = true":                       {2, "upgrade.window", "instead of string", "in quotes"},
		"[upgrade]\njitter = \"25h\"":                    {2, "upgrade.jitter", "25h", "24h"},
		"[upgrade]\njitter = \"-1s\"":                    {2, "upgrade.jitter", "-1s", "from 0s"},
		"[upgrade]\n\nsettle_after = \"11m\"":            {3, "upgrade.settle_after", "11m", "10m"},
		"[upgrade]\nmax_download = \"1KiB\"":             {2, "upgrade.max_download", "1KiB", "from 1 to 65536 MiB"},
		"[upgrade]\nmax_download = 5":                    {2, "upgrade.max_download", "instead of string", "with its unit"},
		"[upgrade]\nsettle = \"1m\"":                     {2, "upgrade.settle", "not a setting", ""},
		"[trust]\nrequire = true":                        {2, "trust.require", "names no key", "public half"},
		"[trust]\nkeys = []\nrequire = true":             {3, "trust.require", "names no key", "public half"},
		"[trust]\nrequire = \"true\"":                    {2, "trust.require", "instead of boolean", "without quotes"},
		"[trust]\nkeys = [\"\"]":                         {2, "trust.keys", "number 1 is not a public key of minisign: it is empty", ".pub"},
		"[trust]\nkeys = [\"hush\"]\nrequire = true":     {2, "trust.keys", "it has 3 bytes instead of 42", ".pub"},
		"[trust]\nkeys = \"hush\"":                       {2, "trust.keys", "", ""},
		"[trust]\nkey = [\"hush\"]":                      {2, "trust.key", "not a setting", "trust.keys"},
		"[enroll]\ntoken = \"hush\"":                     {2, "enroll.token", "not a setting", ""},
		"[builds]\nuser = \"a\\nb\"":                     {2, "builds.user", "control character", ""},
		"a = 1\na = 2":                                   {2, "a", "already", ""},
	} {
		_, err := parseConfig("agent.toml", text)
		var wrong *KeyError
		if !errors.As(err, &wrong) {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if wrong.Line != want.line || wrong.Key != want.key || !strings.Contains(wrong.What, want.what) || !strings.Contains(wrong.Hint(), want.hint) ||
			!strings.HasPrefix(err.Error(), "agent.toml:") || strings.Contains(err.Error()+wrong.Hint(), "hush") {
			t.Errorf("%q: line %d, key %q: %v; hint %q", text, wrong.Line, wrong.Key, err, wrong.Hint())
		}
	}
}

func TestARelativeTokenFileIsBesideTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.toml")
	write(t, path, "\ufeff[enroll]\r\ntoken_file = \"token\"\r\n")
	c, err := LoadConfig(path)
	if err != nil || c.Enroll.TokenFile != filepath.Join(filepath.Dir(path), "token") {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := LoadConfig(filepath.Dir(path)); err == nil {
		t.Error("a directory was read as a file")
	}
}

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "5": 5, "5B": 5, "64KiB": 65536, "1 MiB": 1 << 20, "2GiB": 2 << 30, "3kb": 3000, "1MB": 1e6, "4m": 4 << 20} {
		if got, err := parseBytes(text); err != nil || got != want {
			t.Errorf("%q = %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "MiB", "-1", "1.5MiB", "1TiB", "9223372036854775807GiB", "1 1"} {
		if got, err := parseBytes(text); err == nil {
			t.Errorf("%q = %d", text, got)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add("[builds]\nparallel = 4\n")
	f.Add("[upgrade]\nwindow = \"22:00-24:00\"\njitter = \"1h\"\nmax_download = \"1GiB\"\n[trust]\nkeys = [\"" + exampleKey + "\"]\nrequire = true\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseConfig("agent.toml", text)
		if err != nil {
			var wrong *KeyError
			if !errors.As(err, &wrong) || wrong.Line < 0 || wrong.Line > strings.Count(text, "\n")+1 {
				t.Errorf("%v", err)
			}
			return
		}
		if c.Builds.Parallel != nil && (*c.Builds.Parallel < 0 || *c.Builds.Parallel > maxCount) ||
			c.Scripts.Timeout <= 0 || c.Scripts.MaxOutput < 0 || c.Scripts.MaxOutput > maxScriptOutput || c.Drain.Timeout < 0 ||
			c.Log.KeepDays < 1 || c.Log.KeepFiles < 1 || c.Log.MaxSizeMB < 1 ||
			!slices.Contains([]Protocol{Auto, Ask, Split}, c.Protocol) ||
			!slices.Contains([]UpgradeMode{UpgradeServer, UpgradePackage, UpgradeOff}, c.Upgrade.Mode) ||
			c.Upgrade.Jitter < 0 || c.Upgrade.Jitter > maxJitter || c.Upgrade.SettleAfter < 0 || c.Upgrade.SettleAfter > maxSettleAfter ||
			c.Upgrade.MaxDownload < minDownload || c.Upgrade.MaxDownload > maxDownload ||
			c.Upgrade.Window.From < 0 || c.Upgrade.Window.From >= day || c.Upgrade.Window.To < 0 || c.Upgrade.Window.To >= day ||
			c.Trust.Require && len(c.Trust.Keys) == 0 {
			t.Errorf("%+v", c)
		}
	})
}
