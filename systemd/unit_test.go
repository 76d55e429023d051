package systemd

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var update = flag.Bool("update", false, "write the golden files")

// plain is a unit without anything special.
func plain() Unit {
	return Unit{Description: "BlueKing CI build agent", Exec: []string{"/opt/ci agent/upgrader", "start", "--home", "/opt/ci agent"},
		Ended: []string{"/opt/ci agent/upgrader", "ended", "--home", "/opt/ci agent"}, Home: "/opt/ci agent", User: "ci", Drain: 10 * time.Minute, StayDown: 88}
}

func text(t *testing.T, u Unit) string {
	t.Helper()
	out, err := u.Text()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// golden compares with a file of testdata; -update writes it.
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
	if got != string(want) {
		t.Errorf("%s is\n%s\nwant\n%s\n(go test -update writes it)", name, got, want)
	}
}

func TestUnitsAreGolden(t *testing.T) {
	user := plain()
	user.User, user.OfUser = "", true
	newest := plain()
	newest.Version = 257
	newestUser := user
	newestUser.Version = 257
	oldest := plain()
	oldest.Version = 239
	for name, u := range map[string]Unit{
		"portable.service": plain(), "user.service": user, "portable-257.service": newest, "user-257.service": newestUser,
		"portable-239.service": oldest,
	} {
		golden(t, name, text(t, u))
	}
	golden(t, "no-sudo.conf", NoSudo())
	golden(t, "hardened.conf", Hardened())
	golden(t, "separate-builds.conf", Separate())
	golden(t, "paced-253.conf", Paced(253))
	golden(t, "paced-254.conf", Paced(254))
	if got := Paced(252); got != "" {
		t.Errorf("for 252: %s", got)
	}
}

// values are the values of a directive in a unit.
func values(text, key string) []string {
	var list []string
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), key+"="); ok {
			list = append(list, value)
		}
	}
	return list
}

// TestPromises: what others rely on, whatever the version.
func TestPromises(t *testing.T) {
	for _, version := range []int{0, 239, 249, 252, 253, 254, 257} {
		for _, ofUser := range []bool{false, true} {
			u := plain()
			u.Version, u.OfUser = version, ofUser
			out := text(t, u)
			for key, want := range map[string]string{
				"Restart": "always", "RestartSec": "1ms", "StartLimitIntervalSec": "0", "RestartPreventExitStatus": "88", "SuccessExitStatus": "88",
				"KillMode": "process", "NotifyAccess": "main", "WatchdogSec": "45s", "TimeoutStopSec": "630s",
			} {
				if got := values(out, key); !slices.Equal(got, []string{want}) {
					t.Errorf("%d: %s=%q, want %q", version, key, got, want)
				}
			}
			if kind := values(out, "Type"); version >= 253 != slices.Equal(kind, []string{"notify-reload"}) ||
				version >= 253 == (len(values(out, "ExecReload")) == 1) {
				t.Errorf("%d: type %q, reload %q", version, kind, values(out, "ExecReload"))
			}
			if (version >= 254) != (len(values(out, "RestartSteps")) == 1 && len(values(out, "ExecStartPost")) == 1) {
				t.Errorf("%d: restart steps %q without a reset of their count %q", version, values(out, "RestartSteps"), values(out, "ExecStartPost"))
			}
			if end := values(out, "ExecStopPost"); len(end) != 1 || !strings.HasPrefix(end[0], "-") {
				t.Errorf("%d: %q at the end, which may fail the unit", version, end)
			}
			if !strings.HasSuffix(out, "\n") || strings.Contains(out, "\n\n\n") {
				t.Errorf("%d: %q", version, out)
			}
		}
	}
}

// TestBuildsKeepTheirUmask: the agent makes its own files private; the unit's umask is what builds get.
func TestBuildsKeepTheirUmask(t *testing.T) {
	for _, out := range []string{text(t, plain()), NoSudo(), Hardened()} {
		for _, mask := range values(out, "UMask") {
			if mask != "0022" {
				t.Errorf("umask %s", mask)
			}
		}
	}
}

func TestStopWaitsForTheDrain(t *testing.T) {
	for drain, want := range map[time.Duration]string{0: "30s", 5 * time.Second: "35s", 1500 * time.Millisecond: "31500ms", 24 * time.Hour: "86430s"} {
		u := plain()
		u.Drain = drain
		if got := values(text(t, u), "TimeoutStopSec"); !slices.Equal(got, []string{want}) {
			t.Errorf("%v: %q, want %q", drain, got, want)
		}
	}
}

func TestValuesThatSystemdDoesNotRead(t *testing.T) {
	for name, change := range map[string]func(*Unit){
		"relative home":      func(u *Unit) { u.Home = "opt" },
		"dots":               func(u *Unit) { u.Home = "/opt/../etc" },
		"line":               func(u *Unit) { u.Home = "/opt/a\nExecStart=/bin/sh" },
		"quote":              func(u *Unit) { u.Home = `/opt/a"b` },
		"apostrophe":         func(u *Unit) { u.Home = `/opt/o'brien` },
		"backslash":          func(u *Unit) { u.Home = `/opt/a\` },
		"blank at the end":   func(u *Unit) { u.Home = "/opt/a " },
		"not UTF-8":          func(u *Unit) { u.Home = "/opt/\xff" },
		"program":            func(u *Unit) { u.Exec = []string{`/opt/a"b/upgrader`} },
		"relative program":   func(u *Unit) { u.Exec = []string{"upgrader"} },
		"program at the end": func(u *Unit) { u.Ended = []string{"upgrader", "ended"} },
		"account":            func(u *Unit) { u.User = "root\nExecStart=/bin/sh" },
		"account of domain":  func(u *Unit) { u.User = `EXAMPLE\ci` },
	} {
		u := plain()
		change(&u)
		_, err := u.Text()
		var value *ValueError
		if !errors.As(err, &value) || value.Hint() == "" || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// manager is systemd itself, which parses units without becoming anybody's manager.
const manager = "/lib/systemd/systemd"

// parsed asks systemd what it makes of a unit: the command line and the working directory.
func parsed(t *testing.T, unit string) (argv []string, dir string) {
	t.Helper()
	if _, err := os.Stat(manager); err != nil {
		t.Skip("needs systemd installed (it need not run): ", err)
	}
	root, err := os.MkdirTemp("", "devops-agent-unit-") // not t.TempDir: systemd refuses a long XDG_RUNTIME_DIR
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	run := filepath.Join(root, "run")
	wants := filepath.Join(root, "default.target.wants")
	for _, d := range []string{wants, run} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "x.service"), []byte(unit), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../x.service", filepath.Join(wants, "x.service")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), manager, "--user", "--test", "--log-target=console", "--no-pager")
	cmd.Env = []string{"SYSTEMD_UNIT_PATH=" + root + ":/usr/lib/systemd/user", "XDG_RUNTIME_DIR=" + run, "HOME=" + run, "PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8"}
	asNobody(t, cmd, root, run)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Skipf("this systemd does not parse units on its own: %v: %.300s", err, out)
	}
	_, mine, found := bytes.Cut(out, []byte("-> Unit x.service:"))
	if !found {
		t.Fatalf("no unit in %s", out)
	}
	mine, _, _ = bytes.Cut(mine, []byte("\n\t-> Unit "))
	for line := range strings.Lines(string(mine)) {
		line = strings.TrimLeft(strings.TrimSuffix(line, "\n"), "\t")
		if value, ok := strings.CutPrefix(line, "Command Line: "); ok && argv == nil {
			argv = unquote(t, value)
		}
		if value, ok := strings.CutPrefix(line, "WorkingDirectory: "); ok {
			dir = value
		}
	}
	return argv, dir
}

// unquote reads a command line as systemd prints it: words as a POSIX shell would read them, with $'…' for what is no text.
func unquote(t *testing.T, line string) []string {
	t.Helper()
	var words []string
	for line != "" {
		var b strings.Builder
		quoted := false
		for line != "" && (quoted || line[0] != ' ') {
			c := line[0]
			line = line[1:]
			switch {
			case c == '"':
				quoted = !quoted
			case c == '\\' && line != "":
				switch next := line[0]; next {
				case 'x':
					n, err := strconv.ParseUint(line[1:3], 16, 8)
					if err != nil {
						t.Fatal(err)
					}
					b.WriteByte(byte(n))
					line = line[3:]
				case 'a', 'b', 'f', 'n', 'r', 't', 'v':
					b.WriteByte("\a\b\f\n\r\t\v"[strings.IndexByte("abfnrtv", next)])
					line = line[1:]
				case '0', '1', '2', '3':
					n, err := strconv.ParseUint(line[:3], 8, 8)
					if err != nil {
						t.Fatal(err)
					}
					b.WriteByte(byte(n))
					line = line[3:]
				default:
					b.WriteByte(next)
					line = line[1:]
				}
			default:
				b.WriteByte(c)
			}
		}
		words = append(words, b.String())
		line = strings.TrimPrefix(line, " ")
	}
	return words
}

// expanded is what a program gets of a parsed argument: systemd keeps $$ until it starts the program.
func expanded(arg string) string { return strings.ReplaceAll(arg, "$$", "$") }

// odd are values in which something means something to somebody.
func odd() []string {
	return []string{"/opt/ci agent", "/opt/100%", "/opt/%i%h%%", "/opt/$HOME/${x}/$$", "/opt/#a;b", "/opt/=a", "/opt/构建", "/opt/a:b,c", "/opt/-a",
		"/opt/~", "/opt/a  b", "/opt/{x}*?[a]", "/opt/a|b&c>d", "/opt/\u00a0nbsp"}
}

// TestSystemdReadsItBack: with the real parser.
func TestSystemdReadsItBack(t *testing.T) {
	arguments := []string{"", " ", `"`, `'`, `\`, `\\n`, "a\nb", "\ttab", "\x01\x7f", "%n", "%%", "$", "$$", "${HOME}", "$HOME", ";", "-", "@", "#x", "构建", "\u2028", "a\\"}
	for _, home := range odd() {
		u := plain()
		u.Home, u.User, u.OfUser = home, "", true
		u.Exec = append([]string{home + "/upgrader", "start", "--home", home}, arguments...)
		argv, dir := parsed(t, text(t, u))
		if dir != home {
			t.Errorf("home %q is read as %q", home, dir)
		}
		if len(argv) != len(u.Exec) {
			t.Errorf("%q is read as %q", u.Exec, argv)
			continue
		}
		for i, want := range u.Exec {
			got := argv[i]
			if i > 0 { // the program is no argument: nothing in it is expanded
				got = expanded(got)
			}
			if got != want {
				t.Errorf("argument %d %q is read as %q", i, want, got)
			}
		}
	}
}

// FuzzWord: a model of systemd's reading (extract_first_word, specifiers, variables) gives back what was written, and what is
// written stays one word on one line.
func FuzzWord(f *testing.F) {
	for _, s := range append(odd(), "", `\x41`, "a\nb", "\xff", `"`, "%i", "$$") {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.Contains(s, Instance) {
			return // no argument holds it
		}
		written := word(s)
		if strings.ContainsFunc(written, func(r rune) bool { return r < ' ' || r == 0x7f }) || !utf8.ValidString(written) {
			t.Fatalf("%q is written as %q", s, written)
		}
		if got := read(t, written); got != s {
			t.Errorf("%q is written as %q and read as %q", s, written, got)
		}
	})
}

// read is systemd's reading of one word, which is in double quotes unless there is nothing in it that could be meant otherwise.
func read(t *testing.T, written string) string {
	t.Helper()
	if written != "" && !strings.ContainsAny(written, " \t\"'\\%$;") {
		return written
	}
	if len(written) < 2 || written[0] != '"' || written[len(written)-1] != '"' {
		t.Fatalf("%q is not quoted", written)
	}
	var b strings.Builder
	for in := written[1 : len(written)-1]; in != ""; {
		c := in[0]
		in = in[1:]
		switch c {
		case '"':
			t.Fatalf("%q ends early", written)
		case '\\', '%', '$':
			if in == "" {
				t.Fatalf("%q ends in the middle", written)
			}
			next := in[0]
			in = in[1:]
			switch {
			case c == next:
				b.WriteByte(c)
			case c == '\\' && next == '"':
				b.WriteByte('"')
			case c == '\\' && next == 'x' && len(in) >= 2:
				n, err := strconv.ParseUint(in[:2], 16, 8)
				if err != nil {
					t.Fatal(err)
				}
				b.WriteByte(byte(n))
				in = in[2:]
			default:
				t.Fatalf("%q has %c%c", written, c, next)
			}
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// FuzzUnit: whatever the values are, a unit has its directives once, or is refused.
func FuzzUnit(f *testing.F) {
	f.Add("/opt/ci", "ci", "An agent")
	f.Add("/opt/%h", "1000", "a\nExecStart=/bin/sh")
	f.Add("/opt/a\\", "r", "ends in \\")
	f.Fuzz(func(t *testing.T, home, user, description string) {
		u := plain()
		u.Home, u.User, u.Description, u.Exec = home, user, description, []string{home + "/upgrader", "start", "--home", home}
		out, err := u.Text()
		if err != nil {
			return
		}
		base := strings.Split(text(t, plain()), "\n")
		lines := strings.Split(out, "\n")
		if user == "" {
			base = slices.DeleteFunc(base, func(l string) bool { return strings.HasPrefix(l, "User=") })
		}
		if len(lines) != len(base) {
			t.Fatalf("%d lines, want %d: %q", len(lines), len(base), out)
		}
		for i, line := range lines {
			want, _, _ := strings.Cut(base[i], "=")
			got, _, _ := strings.Cut(line, "=")
			if got != want && !strings.HasPrefix(base[i], "#") || strings.HasSuffix(line, `\`) || !utf8.ValidString(line) {
				t.Errorf("line %d is %q, want one like %q", i, line, base[i])
			}
		}
	})
}

func TestTemplateNamesItsInstance(t *testing.T) {
	u := plain()
	u.Home = "/var/lib/devops-agents/" + Instance
	u.Exec = []string{"/usr/lib/devops-agent/upgrader", "start", "--home", u.Home}
	u.State, u.Description = "devops-agents/"+Instance, "Agent "+Instance
	out := text(t, u)
	for key, want := range map[string]string{"WorkingDirectory": "/var/lib/devops-agents/%i", "StateDirectory": "devops-agents/%i", "Description": "Agent %i",
		"ExecStart": `/usr/lib/devops-agent/upgrader start --home "/var/lib/devops-agents/%i"`} {
		if got := values(out, key); !slices.Equal(got, []string{want}) {
			t.Errorf("%s=%q, want %q", key, got, want)
		}
	}
}
