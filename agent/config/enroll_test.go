package config

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// TestEnrolment: who says how a machine without identity gets one, and who wins.
func TestEnrolment(t *testing.T) {
	const good = "gateway = \"http://file\"\ntoken_file = \"token\"\n"
	type files map[string]string
	for name, c := range map[string]struct {
		config string
		env    map[string]string
		files  files
		want   Enrolment // From: the end of it
		line   string    // of the error
	}{
		"nothing":                   {},
		"an empty directory":        {files: files{}},
		"agent.toml":                {config: "[enroll]\ngateway = \"http://own\"\ntoken_file = \"/t\"\nzone = \"z\"\n", want: Enrolment{Gateway: "http://own", TokenFile: "/t", Zone: "z", From: "agent.toml"}},
		"a file":                    {files: files{"a.toml": good}, want: Enrolment{Gateway: "http://file", TokenFile: "enroll.d/token", From: "a.toml"}},
		"a token in it":             {files: files{"a.toml": "gateway = \"http://file\"\ntoken = \"tok\"\nproject = \"p\"\n"}, want: Enrolment{Gateway: "http://file", Token: "tok", Project: "p", From: "a.toml"}},
		"the first by name":         {files: files{"20.toml": "nonsense", "10.toml": good}, want: Enrolment{Gateway: "http://file", TokenFile: "enroll.d/token", From: "10.toml"}},
		"others are not looked at":  {files: files{"a.toml~": "x", "a.toml.dpkg-new": "x", ".a.toml": "x", "README": "x", "b.toml": good}, want: Enrolment{Gateway: "http://file", TokenFile: "enroll.d/token", From: "b.toml"}},
		"agent.toml before a file":  {config: "[enroll]\ngateway = \"http://own\"\ntoken_file = \"/t\"\n", files: files{"a.toml": "nonsense"}, want: Enrolment{Gateway: "http://own", TokenFile: "/t", From: "agent.toml"}},
		"a gateway of agent.toml":   {config: "[enroll]\ngateway = \"http://own\"\n", files: files{"a.toml": "token = \"tok\"\n"}, want: Enrolment{Gateway: "http://own", Token: "tok", From: "a.toml"}},
		"and it wins":               {config: "[enroll]\ngateway = \"http://own\"\n", files: files{"a.toml": good}, want: Enrolment{Gateway: "http://own", TokenFile: "enroll.d/token", From: "a.toml"}},
		"the environment":           {env: map[string]string{EnrollTokenFile: "/run/t", EnrollGateway: "http://env"}, files: files{"a.toml": good}, want: Enrolment{Gateway: "http://env", TokenFile: "/run/t", From: EnrollTokenFile}},
		"and a project":             {env: map[string]string{EnrollTokenFile: "/run/t", EnrollGateway: "http://env", EnrollProject: "p"}, want: Enrolment{Gateway: "http://env", TokenFile: "/run/t", Project: "p", From: EnrollTokenFile}},
		"and a server":              {config: "[server]\ngateway = \"http://srv\"\n", env: map[string]string{EnrollTokenFile: "/run/t"}, want: Enrolment{Gateway: "http://srv", TokenFile: "/run/t", From: EnrollTokenFile}},
		"a pin":                     {files: files{"a.toml": good + "pin = \"" + wire.PinOf(nil).String() + "\"\n"}, want: Enrolment{Gateway: "http://file", TokenFile: "enroll.d/token", Pin: wire.PinOf(nil), From: "a.toml"}},
		"a pin of agent.toml":       {config: "[enroll]\npin = \"" + wire.PinOf(nil).String() + "\"\n", files: files{"a.toml": good + "pin = \"" + wire.PinOf([]byte("x")).String() + "\"\n"}, want: Enrolment{Gateway: "http://file", TokenFile: "enroll.d/token", Pin: wire.PinOf(nil), From: "a.toml"}},
		"a pin that is none":        {files: files{"a.toml": good + "pin = \"3F:A0\"\n"}, line: "a.toml:3: pin is not the SHA-256 fingerprint"},
		"a pin of the environment":  {env: map[string]string{EnrollTokenFile: "/run/t", EnrollGateway: "http://env", EnrollPin: wire.PinOf(nil).String()}, want: Enrolment{Gateway: "http://env", TokenFile: "/run/t", Pin: wire.PinOf(nil), From: EnrollTokenFile}},
		"and a bad one of it":       {env: map[string]string{EnrollTokenFile: "/run/t", EnrollGateway: "http://env", EnrollPin: "x"}, line: "DEVOPS_AGENT_PIN"},
		"and no server":             {env: map[string]string{EnrollTokenFile: "/run/t"}, line: "nothing says for which server"},
		"and a bad one":             {env: map[string]string{EnrollTokenFile: "/run/t", EnrollGateway: "ftp://ci"}, line: "is not an address"},
		"no gateway":                {files: files{"a.toml": "token = \"tok\"\n"}, line: "gateway is missing"},
		"no token":                  {files: files{"a.toml": "gateway = \"http://file\"\n"}, line: "token_file is missing"},
		"two tokens":                {files: files{"a.toml": good + "token = \"tok-secret\"\n"}, line: "a.toml:3: token is given beside token_file"},
		"an unknown key":            {files: files{"a.toml": good + "tokn = \"tok-secret\"\n"}, line: "a.toml:3: tokn is not a setting"},
		"a wrong type":              {files: files{"a.toml": "gateway = 1\n"}, line: "a.toml:1: gateway is of the wrong type"},
		"a mistake beside a secret": {files: files{"a.toml": "gateway = \"http://x\"\ntoken = \"tok-secret\n"}, line: "a.toml:2"},
		"a gateway that is none":    {files: files{"a.toml": "gateway = \"ftp://x\"\ntoken = \"tok-secret\"\n"}, line: "a.toml:1: gateway is not an address"},
		"a control character":       {files: files{"a.toml": "gateway = \"http://x\"\ntoken = \"tok-secret\\u0007\"\n"}, line: "a.toml:2: token has a control character"},
		"a long file":               {files: files{"a.toml": good + strings.Repeat("#", 64<<10)}, line: "is longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "agent.toml")
			if err := os.WriteFile(path, []byte(c.config), 0o600); err != nil {
				t.Fatal(err)
			}
			if c.files != nil {
				if err := os.Mkdir(filepath.Join(dir, EnrollDirectory), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			for name, text := range c.files {
				if err := os.WriteFile(filepath.Join(dir, EnrollDirectory, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			config, err := LoadConfig(path)
			if err != nil {
				t.Fatal(err)
			}
			got, err := config.Enrolment(func(name string) string { return c.env[name] })
			if c.line != "" {
				if err == nil || !strings.Contains(err.Error(), c.line) || strings.Contains(err.Error(), "tok-secret") {
					t.Fatalf("%+v, %v; want an error with %q", got, err, c.line)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got == nil {
				got = &Enrolment{}
			}
			if c.want.From == "agent.toml" && !filepath.IsAbs(c.want.TokenFile) { // "/t" on Windows
				c.want.TokenFile = filepath.Join(dir, c.want.TokenFile)
			}
			if strings.HasPrefix(c.want.TokenFile, EnrollDirectory) {
				c.want.TokenFile = filepath.Join(dir, filepath.FromSlash(c.want.TokenFile))
			}
			if from := filepath.Base(got.From); c.want.From != "" && from == c.want.From {
				got.From = from
			}
			if *got != c.want {
				t.Errorf("%+v, want %+v", *got, c.want)
			}
		})
	}
}

// TestEnrolmentThatOthersCanRead: a token in a file of mode 0644 is everybody's.
func TestEnrolmentThatOthersCanRead(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs the modes of Unix files")
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, EnrollDirectory), 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, EnrollDirectory, "a.toml")
	if err := os.WriteFile(path, []byte("gateway = \"http://x\"\ntoken = \"tok-secret\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &Config{Path: filepath.Join(dir, "agent.toml")}
	for mode, fine := range map[os.FileMode]bool{0o600: true, 0o640: true, 0o644: false, 0o604: false} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := c.Enrolment(func(string) string { return "" })
		var wrong *KeyError
		if (err == nil) != fine || err != nil && (!errors.As(err, &wrong) || wrong.Key != "token" || !strings.Contains(wrong.Hint(), "chmod o= ")) {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
}

// FuzzEnrolmentFile: whatever stands in a file of enroll.d, the answer is an error or something to go by, and no error tells a token.
func FuzzEnrolmentFile(f *testing.F) {
	f.Add("gateway = \"http://x\"\ntoken = \"abc\"\n")
	f.Add("gateway = \"http://x\"\ntoken_file = 'abc'\nzone = 1")
	f.Add("\ufeff[enroll]\ngateway = \"\"\n")
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(t.TempDir(), "a.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := readEnrolment(path, Enrolment{})
		if err == nil && (got.Gateway == "" || got.TokenFile == "" && got.Token == "") {
			t.Errorf("%q: %+v", text, got)
		}
	})
}
