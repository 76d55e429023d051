package windows

import (
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.ReplaceAll(string(want), "\r\n", "\n") != got {
		t.Errorf("%s differs; go test -update rewrites it:\n%s", path, got)
	}
}

// TestRegistrationIsWhatPackagesShip: registry values and sc.exe calls of a package's service and of a portable one.
func TestRegistrationIsWhatPackagesShip(t *testing.T) {
	portable := Agent("devops_agent_ab12", `D:\build agent\devopsDaemon.exe`, []string{"session", "--home", `D:\build agent\`}, `D:\build agent\`, time.Minute)
	portable.Dependencies = []string{"Tcpip", "Dnscache"}
	for name, s := range map[string]Service{
		"packaged": Agent("devops-agent", `C:\Program Files\devops-agent\devopsDaemon.exe`,
			[]string{"service", "--home", `C:\ProgramData\devops-agent`}, `C:\ProgramData\devops-agent`, 10*time.Minute),
		"portable": portable,
	} {
		if err := s.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var out strings.Builder
		for _, v := range s.Registry() {
			data := fmt.Sprint(v.Data)
			if raw, ok := v.Data.([]byte); ok {
				data = hex.EncodeToString(raw)
			}
			fmt.Fprintf(&out, "%s | %s | %s | %s\n", v.Key, v.Name, v.Type, data)
		}
		out.WriteString("\n" + strings.Join(s.Commands(), "\n") + "\n")
		golden(t, name+".golden", out.String())
		if !slices.IsSortedFunc(s.Registry()[3:], func(a, b Value) int { return strings.Compare(a.Key+a.Name, b.Key+b.Name) }) {
			t.Errorf("%s: values are not sorted", name)
		}
	}
}

func TestWhatTheManagerWouldMisunderstandIsRefused(t *testing.T) {
	good := Agent("devops-agent", `C:\a b\d.exe`, []string{"service"}, `C:\a b`, 0)
	for what, change := range map[string]func(*Service){
		"no name":       func(s *Service) { s.Name = "" },
		"slash in name": func(s *Service) { s.Name = `a\b` },
		"long name":     func(s *Service) { s.Name = strings.Repeat("x", 257) },
		"relative":      func(s *Service) { s.Program = `a\d.exe` },
		"unix path":     func(s *Service) { s.Program = `/opt/d` },
		"drive only":    func(s *Service) { s.Program = `C:d.exe` },
		"quote":         func(s *Service) { s.Program = `C:\a" b\d.exe` },
		"NUL":           func(s *Service) { s.Args = []string{"a\x00b"} },
	} {
		s := good
		change(&s)
		if s.Check() == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	good.Program = `\\server\share\d.exe`
	if err := good.Check(); err != nil {
		t.Error(err)
	}
}

func TestQuote(t *testing.T) {
	for arg, want := range map[string]string{
		"":            `""`,
		"plain":       "plain",
		`C:\a\b`:      `C:\a\b`,
		"a b":         `"a b"`,
		`C:\a b\`:     `"C:\a b\\"`,
		`say "hi"`:    `"say \"hi\""`,
		`back\"slash`: `"back\\\"slash"`,
		`a\\b c`:      `"a\\b c"`,
		"tab\there":   "\"tab\there\"",
		"北京 1":        `"北京 1"`,
	} {
		if got := quote(arg); got != want {
			t.Errorf("%q: %s, want %s", arg, got, want)
		}
	}
}

// FuzzQuote: what is quoted is read back by the rules of CommandLineToArgvW.
func FuzzQuote(f *testing.F) {
	for _, arg := range []string{"", "a b", `C:\a b\`, `\"`, `"\\" "`} {
		f.Add(arg)
	}
	f.Fuzz(func(t *testing.T, arg string) {
		if strings.ContainsRune(arg, 0) {
			return
		}
		if got := argv(quote(arg) + " next"); len(got) != 2 || got[0] != arg || got[1] != "next" {
			t.Errorf("%q is read as %q", arg, got)
		}
	})
}

// argv parses a command line as Windows programs do, without the special rules of the first word.
func argv(line string) (words []string) {
	var word strings.Builder
	quoted, any := false, false
	for i := 0; i < len(line); {
		slashes := 0
		for i < len(line) && line[i] == '\\' {
			slashes++
			i++
		}
		if i < len(line) && line[i] == '"' {
			word.WriteString(strings.Repeat(`\`, slashes/2))
			any = true
			if slashes%2 == 1 {
				word.WriteByte('"')
			} else {
				quoted = !quoted
			}
			i++
			continue
		}
		if slashes > 0 {
			word.WriteString(strings.Repeat(`\`, slashes))
			any = true
			continue
		}
		if c := line[i]; !quoted && (c == ' ' || c == '\t') {
			if any {
				words = append(words, word.String())
			}
			word.Reset()
			any = false
		} else {
			word.WriteByte(c)
			any = true
		}
		i++
	}
	if any {
		words = append(words, word.String())
	}
	return words
}

func TestAMachineThatGoesDownDoesNotWaitForHours(t *testing.T) {
	for drain, want := range map[time.Duration]time.Duration{
		0: 0, time.Minute: time.Minute, 10 * time.Minute: 2 * time.Minute, -time.Second: 0,
	} {
		if got := ShutdownDrain(drain); got != want {
			t.Errorf("%v: %v, want %v", drain, got, want)
		}
	}
}
