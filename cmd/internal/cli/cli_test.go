package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/devops-agent/devops-agent/service"
)

// lumberjack keeps one goroutine for its process's life once a file was rotated; it has no way to end it.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("gopkg.in/natefinch/lumberjack%2ev2.(*Logger).millRun"))
}

// hinted is an error with something to do about it, or nothing.
type hinted struct{ text, hint string }

func (h *hinted) Error() string { return h.text }
func (h *hinted) Hint() string  { return h.hint }

func TestReport(t *testing.T) {
	knows, mute := &hinted{"no java", "install a JDK"}, &hinted{"refused", ""}
	for name, tc := range map[string]struct {
		err  error
		code int
		text string
	}{
		"nothing":           {nil, 0, ""},
		"any":               {errors.New("boom"), 1, "prog: boom\n"},
		"running":           {fmt.Errorf("role agent in /opt/ci: %w", service.ErrRunning), 0, "prog: role agent in /opt/ci: already running\n"},
		"removed":           {fmt.Errorf("beat: %w", service.ErrRemoved), 88, "prog: beat: this agent was removed in BK-CI\n"},
		"removed, joined":   {errors.Join(service.ErrRemoved, errors.New("unlock: x")), 88, "prog: this agent was removed in BK-CI; unlock: x\n"},
		"own code":          {&Exit{Code: 99, Err: errors.New("time is up")}, 99, "prog: time is up\n"},
		"own code, silent":  {&Exit{Code: 7}, 7, ""},
		"own code, wrapped": {fmt.Errorf("run: %w", &Exit{Code: 0, Err: service.ErrRemoved}), 0, "prog: run: this agent was removed in BK-CI\n"},
		"hint":              {fmt.Errorf("start worker: %w", knows), 1, "prog: start worker: no java\nhint: install a JDK\n"},
		"hint below a mute": {fmt.Errorf("a: %w", &wraps{mute, fmt.Errorf("b: %w", knows)}), 1, "prog: a: refused\nhint: install a JDK\n"},
		"hint of a joined":  {errors.Join(mute, errors.New("x"), knows), 1, "prog: refused; x; no java\nhint: install a JDK\n"},
		"no hint":           {mute, 1, "prog: refused\n"},
		"several lines":     {errors.New("one\r\ntwo\nhint: run rm -rf /\n"), 1, "prog: one; two; hint: run rm -rf /\n"},
		"terminal":          {&hinted{"\x1b[31mred\x07\u009b2J \u202egnp.exe", "\x1b]0;x\x07"}, 1, "prog:  [31mred  2J  gnp.exe\nhint:  ]0;x \n"},
	} {
		var out bytes.Buffer
		if code := Report(&out, "prog", tc.err); code != tc.code {
			t.Errorf("%s: exit code %d, want %d", name, code, tc.code)
		}
		if out.String() != tc.text {
			t.Errorf("%s: printed %q, want %q", name, out.String(), tc.text)
		}
	}
}

// wraps has a mute hint of its own.
type wraps struct {
	*hinted
	cause error
}

func (w *wraps) Unwrap() error { return w.cause }

func TestExitIsAnError(t *testing.T) {
	if got := (&Exit{Code: 7}).Error(); got != "exit code 7" {
		t.Error(got)
	}
	if !errors.Is(&Exit{Code: 7, Err: os.ErrNotExist}, os.ErrNotExist) {
		t.Error("the cause is lost")
	}
}

func TestVersion(t *testing.T) {
	if v := Version(); !strings.HasPrefix(v, "v") {
		t.Errorf("version %q", v)
	}
	if lines := strings.Split(FullVersion(), "\n"); len(lines) != 3 || lines[0] != Version() || lines[1] == "" || lines[2] == "" {
		t.Errorf("full version %q", lines)
	}
}

func TestAFileThatCannotBeUsedHasAHint(t *testing.T) {
	for cause, want := range map[error]string{
		fs.ErrPermission: "run it as the owner of /home/of/agent", syscall.ENOSPC: "make room for /home/of/agent",
		syscall.EROFS: "read-only", fs.ErrNotExist: "",
	} {
		var out bytes.Buffer
		err := fmt.Errorf("take role agent: %w", &fs.PathError{Op: "mkdir", Path: "/home/of/agent", Err: cause})
		if code := Report(&out, "devopsAgent", err); code != 1 {
			t.Errorf("%v: exit code %d", cause, code)
		}
		_, hint, _ := strings.Cut(out.String(), "hint: ")
		if !strings.Contains(hint, want) || want == "" && hint != "" {
			t.Errorf("%v: hint %q, want %q", cause, hint, want)
		}
	}
}
