package main

import (
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/devops-agent/devops-agent/controller"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTheFirstWordsOfAControllerSayHowToSignIn(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	at := endpoint{URL: "https://127.0.0.1:1", SHA256: "AB:CD", Own: true}
	for _, c := range []struct{ name, data string }{{"relative", "ci"}, {"absolute", filepath.Join(dir, "ci")}} {
		lines := strings.Split(greeting(at, c.data), "\n")
		if len(lines) != 4 || !strings.HasSuffix(lines[0], " serves https://127.0.0.1:1") || lines[1] != "certificate SHA-256 AB:CD" ||
			!strings.HasSuffix(lines[2], "is in "+filepath.Join(dir, "ci", controller.TokenFile)) {
			t.Errorf("%s: %q", c.name, lines)
		}
	}
}

func TestCommandLineOfWords(t *testing.T) {
	for _, c := range []struct {
		words []string
		want  string
	}{
		{[]string{"echo $HOME && ls"}, "echo $HOME && ls"},
		{[]string{"make", "-j2", "all"}, "make -j2 all"},
		{[]string{"echo", "a b", "$HOME", "it's", ""}, `echo 'a b' '$HOME' 'it'\''s' ''`},
	} {
		if got := commandLine(c.words); got != c.want {
			t.Errorf("%q: %s, want %s", c.words, got, c.want)
		}
	}
}

func TestATerminalGetsNothingButText(t *testing.T) {
	for in, want := range map[string]string{
		"plain\tline":                   "plain\tline",
		"##[error]bad":                  "bad",
		"\x1b[31mred\x1b[0m":            "\x1b[31mred\x1b[0m",
		"a\x1b]0;title\x07b\x1b[2Jc\rd": "a]0;titleb[2Jcd",
		"zwölf":                         "zwölf",
		"a\u009b31mb\u0085c":            "a31mbc",
		"txt.\u202eexe\u2066":           "txt.exe",
	} {
		if got := plainLine(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// Headers appear in order and once, also for steps that print nothing, whichever of line and state comes first.
func TestHeadersOfSteps(t *testing.T) {
	var out strings.Builder
	b := controller.Build{Number: 1, State: controller.Running, StartedAt: 10, Steps: []controller.StepState{{Name: "one", Task: "e-1", StartedAt: 1}, {Name: "two", Task: "e-2"}, {Name: "three", Task: "e-3"}}}
	p := &progress{flags: &flags{out: &out}, build: b}
	for _, e := range []event{
		{Build: &b},
		{Line: &controller.Line{Seq: 1, Tag: "e-1", Message: "a"}},
		{Line: &controller.Line{Seq: 2, Tag: "e-3", Message: "b"}},
		{Build: &b},
		{Line: &controller.Line{Seq: 3, Tag: "startVM-1", Message: "c"}},
	} {
		if err := p.show(e); err != nil {
			t.Fatal(err)
		}
	}
	want := "── step 1/3: one\na\n── step 2/3: two\n── step 3/3: three\nb\nc\n"
	if out.String() != want {
		t.Errorf("%s\nwant\n%s", out.String(), want)
	}
}

func TestAScriptNamesItsStep(t *testing.T) {
	for in, want := range map[string]string{
		"ls": "ls", "\n echo a\necho b\n": "echo a", "a\tb\x1bc": "a bc", strings.Repeat("ä", 61): strings.Repeat("ä", 59) + "…",
	} {
		if got := firstLine(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestAMistypedCommandGetsAHint(t *testing.T) {
	for args, want := range map[string]string{
		"buidls": "did you mean devopsController builds?", "xyzzy": "devopsController --help says what there is",
		"builds --limti 3": "devopsController builds --help says what there is",
	} {
		root := commands(&flags{out: io.Discard, err: io.Discard})
		root.SetArgs(strings.Fields(args))
		var hint interface{ Hint() string }
		if err := root.ExecuteContext(t.Context()); !errors.As(err, &hint) || hint.Hint() != want {
			t.Errorf("%s: %v", args, err)
		}
	}
}
