package launchd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// ended is how a launchctl ended.
type ended int

func (e ended) Error() string { return fmt.Sprintf("exit status %d", int(e)) }
func (e ended) ExitCode() int { return int(e) }

// turn is one question and its answer.
type turn struct {
	args string
	out  string
	code int
}

// script answers the questions in their order and fails the test at any other.
func script(t *testing.T, domain Domain, turns ...turn) Manager {
	t.Helper()
	next := 0
	t.Cleanup(func() {
		if next != len(turns) {
			t.Errorf("never asked: %+v", turns[next:])
		}
	})
	return Manager{Domain: domain, Run: func(ctx context.Context, name string, args ...string) ([]byte, error) {
		if _, limited := ctx.Deadline(); !limited {
			t.Error("launchctl could hang for ever")
		}
		asked := strings.Join(args, " ")
		if name != "/bin/launchctl" || next == len(turns) || turns[next].args != asked {
			t.Fatalf("question %d is %s %s", next, name, asked)
		}
		answer := turns[next]
		next++
		if answer.code != 0 {
			return []byte(answer.out), ended(answer.code)
		}
		return []byte(answer.out), nil
	}}
}

const (
	job     = "org.devops-agent.agent"
	target  = "system/" + job
	file    = "/Library/LaunchDaemons/" + job + ".plist"
	io5     = "Bootstrap failed: 5: Input/output error\nTry re-running the command as root for richer errors.\n"
	absent  = "Bad request.\nCould not find service \"" + job + "\" in domain for system\n"
	noGUI   = "Bad request.\nCould not find domain for user gui: 501\n"
	running = target + " = {\n\tpath = " + file + "\n\tstate = running\n\tpid = 77\n}\n"
	going   = target + " = {\n\tpath = " + file + "\n\tstate = SIGTERMed\n\tpid = 77\n}\n"
)

var (
	load    = turn{"bootstrap system " + file, "", 0}
	unload  = turn{"bootout " + target, "", 0}
	show    = turn{"print " + target, running, 0}
	gone    = turn{"print " + target, absent, 113}
	leaving = turn{"print " + target, going, 0}
	nobody  = turn{"print-disabled system", "disabled services = {\n}\n", 0}
)

func TestBootstrap(t *testing.T) {
	says := func(code int, text string) turn { return turn{load.args, text, code} }
	for name, tc := range map[string]struct {
		turns []turn
		took  time.Duration
		code  int // of the error; -1: an error without
	}{
		"loads":               {turns: []turn{load}},
		"is loaded, 5":        {turns: []turn{says(5, io5), show}},
		"is loaded, 37":       {turns: []turn{says(37, "Bootstrap failed: 37: Operation already in progress\n"), show}},
		"is loaded, 17":       {turns: []turn{says(17, file+": service already bootstrapped\n"), show}},
		"from elsewhere":      {turns: []turn{says(37, ""), {show.args, strings.ReplaceAll(running, file, "/tmp/x.plist"), 0}}, code: 37},
		"still leaving, 37":   {turns: []turn{says(37, ""), leaving, says(37, ""), leaving, load}, took: 200 * time.Millisecond},
		"just gone, 5":        {turns: []turn{says(5, io5), gone, nobody, load}, took: 100 * time.Millisecond},
		"disabled, 5":         {turns: []turn{says(5, io5), gone, {nobody.args, string(`	"` + job + `" => disabled` + "\n"), 0}}, code: 119},
		"disabled, 119":       {turns: []turn{says(119, "Bootstrap failed: 119: Service is disabled\n")}, code: 119},
		"not root":            {turns: []turn{says(1, "Could not bootstrap: 1: Operation not permitted\n")}, code: 1},
		"bad owner":           {turns: []turn{says(122, "Bootstrap failed: 122: Path had bad ownership/permissions\n")}, code: 122},
		"print fails":         {turns: []turn{says(5, io5), {show.args, "Could not print service: 5: Input/output error\n", 5}}, code: 5},
		"code in the text":    {turns: []turn{says(1, "Bootstrap failed: 125: Domain does not support specified action\n")}, code: 125},
		"code from elsewhere": {turns: []turn{says(64, "Unrecognized subcommand: bootstrap\n")}, code: 64},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				err := script(t, System, tc.turns...).Bootstrap(t.Context(), job, file)
				if took := time.Since(start); took != tc.took {
					t.Errorf("took %s", took)
				}
				if tc.code == 0 && err != nil || tc.code > 0 && !is(err, tc.code) {
					t.Error(err)
				}
			})
		})
	}
}

func TestBootstrapGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // launchd does not want it and does not say why
		var turns []turn
		for range maxUnexplained {
			turns = append(turns, turn{load.args, io5, 5}, gone, nobody)
		}
		if err := script(t, System, turns...).Bootstrap(t.Context(), job, file); !is(err, codeIO) {
			t.Error(err)
		}
	})
	synctest.Test(t, func(t *testing.T) { // a job that does not go away
		start, asked := time.Now(), 0
		m := Manager{Domain: System, Run: func(_ context.Context, _ string, args ...string) ([]byte, error) {
			if asked++; args[0] == "print" {
				return []byte(going), nil
			}
			return nil, ended(37)
		}}
		err := m.Bootstrap(t.Context(), job, file)
		if took := time.Since(start); !is(err, codeAlready) || took < 9*time.Second || took > settleTimeout+time.Second || asked > 250 {
			t.Errorf("after %s and %d questions: %v", took, asked, err)
		}
	})
}

func TestBootout(t *testing.T) {
	says := func(code int, text string) turn { return turn{unload.args, text, code} }
	for name, tc := range map[string]struct {
		turns []turn
		took  time.Duration
		code  int
	}{
		"ends at once":       {turns: []turn{unload, gone}},
		"takes its time":     {turns: []turn{unload, show, leaving, leaving, gone}, took: 300 * time.Millisecond},
		"in progress":        {turns: []turn{says(36, "Boot-out failed: 36: Operation now in progress\n"), leaving, gone}, took: 100 * time.Millisecond},
		"not loaded, 3":      {turns: []turn{says(3, "Boot-out failed: 3: No such process\n"), gone}},
		"not loaded, 113":    {turns: []turn{says(113, absent), gone}},
		"no such domain":     {turns: []turn{says(125, ""), {show.args, noGUI, 125}}},
		"5, and it is gone":  {turns: []turn{says(5, "Boot-out failed: 5: Input/output error\n"), gone, gone}},
		"5, and it is there": {turns: []turn{says(5, "Boot-out failed: 5: Input/output error\n"), show}, code: 5},
		"not root":           {turns: []turn{says(1, "Boot-out failed: 1: Operation not permitted\n"), show}, code: 1},
		"cannot be asked":    {turns: []turn{unload, {show.args, "", 5}}, code: 5},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				err := script(t, System, tc.turns...).Bootout(t.Context(), job)
				if took := time.Since(start); took != tc.took {
					t.Errorf("took %s", took)
				}
				if tc.code == 0 && err != nil || tc.code > 0 && !is(err, tc.code) {
					t.Error(err)
				}
			})
		})
	}
}

func TestBootoutWaitsAsLongAsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := Manager{Domain: System, Run: func(_ context.Context, _ string, args ...string) ([]byte, error) {
			return []byte(going), nil
		}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		if err := m.Bootout(ctx, job); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Minute {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

func TestSmallTalk(t *testing.T) {
	ctx := t.Context()
	gui := Manager{Domain: GUI(501)}
	gui.Run = script(t, GUI(501), turn{"print gui/501", noGUI, 125}, turn{"print gui/501", "gui/501 = {\n}", 0}, turn{"print gui/501", "", 64},
		turn{"print gui/501/" + job, noGUI, 112}, turn{"print-disabled gui/501", "", 125}).Run
	for _, want := range []struct{ there, fails bool }{{false, false}, {true, false}, {false, true}} {
		if there, err := gui.Exists(ctx); there != want.there || (err != nil) != want.fails {
			t.Errorf("exists: %v %v", there, err)
		}
	}
	if s, loaded, err := gui.Print(ctx, job); loaded || err != nil || s.Runs != -1 {
		t.Errorf("%+v %v %v", s, loaded, err)
	}
	if off, err := gui.Disabled(ctx, job); off || err != nil {
		t.Errorf("%v %v", off, err)
	}
	m := script(t, System, show, turn{"print-disabled system", "\t\"" + job + "\" => true\n", 0}, turn{"enable " + target, "", 0}, turn{"disable " + target, "", 1},
		turn{"kickstart " + target, "", 113}, turn{"kill SIGKILL " + target, "Could not kill service: 3: No such process", 3}, turn{"kill SIGHUP " + target, "", 0})
	if s, loaded, err := m.Print(ctx, job); !loaded || err != nil || s.PID != 77 || !s.Running() {
		t.Errorf("%+v %v %v", s, loaded, err)
	}
	if off, err := m.Disabled(ctx, job); !off || err != nil {
		t.Errorf("%v %v", off, err)
	}
	if err := m.Enable(ctx, job); err != nil {
		t.Error(err)
	}
	if err := m.Disable(ctx, job); !is(err, 1) {
		t.Error(err)
	}
	if err := m.Kickstart(ctx, job); !is(err, codeNoService) {
		t.Error(err)
	}
	for _, signal := range []string{"SIGKILL", "SIGHUP"} {
		if err := m.Kill(ctx, signal, job); err != nil {
			t.Error(err)
		}
	}
	if User(7) != "user/7" {
		t.Error(User(7))
	}
}

// TestEveryCodeHasItsHint: launchctl's own texts name an errno, seldom the cause.
func TestEveryCodeHasItsHint(t *testing.T) {
	for code, word := range map[int]string{1: "sudo", 3: "install", 5: "root:wheel", 17: "loaded", 36: "drains", 37: "loaded", 109: "damaged", 112: "logged in", 113: "install", 119: "enable " + target,
		122: "0644", 125: "logged in", 150: "sudo", 159: "quarantine", 161: "Login Items"} {
		err := error(&Error{Verb: "bootstrap", Target: target, Code: code, Output: "said", Err: ended(code)})
		if hint := err.(*Error).Hint(); !strings.Contains(hint, word) || strings.Contains(hint, "\n") {
			t.Errorf("%d: %q", code, hint)
		}
	}
	if hint := (&Error{Code: 64}).Hint(); hint != "" {
		t.Error(hint)
	}
	err := &Error{Verb: "print", Target: target, Err: ended(9)}
	if err.Error() != "launchctl print "+target+": exit status 9" || !errors.Is(err, ended(9)) {
		t.Error(err)
	}
}

func TestExecRuns(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a Unix shell")
	}
	out, err := Exec(t.Context(), "/bin/sh", "-c", "echo out; echo err >&2; exit 37")
	if codeOf(out, err) != 37 || string(out) != "out\nerr\n" {
		t.Errorf("%q %v", out, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m := Manager{Domain: System, Run: func(ctx context.Context, _ string, _ ...string) ([]byte, error) {
		return Exec(ctx, "/bin/sh", "-c", "exec sleep 60")
	}}
	if _, _, err := m.Print(ctx, job); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	m.Run = nil
	if _, err := os.Stat(Launchctl); errors.Is(err, fs.ErrNotExist) {
		if _, _, err := m.Print(t.Context(), job); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
}

func TestCheckHome(t *testing.T) {
	local := func(string) (Volume, error) { return Volume{Mount: "/System/Volumes/Data"}, nil }
	homes := []string{"/home/nfs/ci"}
	for dir, want := range map[string]string{
		"/opt/devops-agent":                            "",
		"/usr/local/var/devops-agent":                  "",
		"/Users/ci/devops-agent":                       "",
		"/Users/ci":                                    "",
		"/Users/ci/Desktops":                           "",
		"/Users/ci/builds/Desktop":                     "",
		"/Users/Shared/Documents":                      "",
		"/Users/ci/Library/Application Support/a":      "",
		"/Users/ci/Desktop":                            "Desktop",
		"/Users/ci/Desktop/":                           "Desktop",
		"/Users/ci/desktop/agent":                      "Desktop",
		"/USERS/CI/DESKTOP/agent":                      "Desktop",
		"/Users/ci/De\u017fktop/agent":                 "Desktop", // ſ folds to s
		"/Users/ci/x/../Documents/agent":               "Documents",
		"/Users//ci/./Downloads/a":                     "Downloads",
		"/System/Volumes/Data/Users/ci/downloads/a":    "Downloads",
		"/Users/ci/Library/Mobile Documents/com~a/b":   "iCloud",
		"/Users/ci/Library/CloudStorage/OneDrive/a":    "cloud",
		"/Users/ci/.Trash/agent":                       "Trash",
		"/home/nfs/ci/Documents/a":                     "Documents",
		"/home/nfs/ci/documentation":                   "",
		"/System/Volumes/Data/home/nfs/ci/Documents/a": "Documents",
	} {
		err := CheckHome(dir, homes, local)
		var guarded *ProtectedError
		if want == "" && err != nil || want != "" && (!errors.As(err, &guarded) || !strings.Contains(err.Error(), want) || guarded.Hint() == "") {
			t.Errorf("%s: %v, want %q", dir, err, want)
		}
	}
}

func TestCheckHomeFollowsLinks(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := func(names ...string) string { return filepath.Join(append([]string{root}, names...)...) }
	local := func(dir string) (Volume, error) {
		if _, err := os.Stat(dir); err != nil {
			t.Errorf("asked for the volume of %s: %v", dir, err)
		}
		return Volume{}, nil
	}
	for _, dir := range []string{at("home", "Desktop", "agent"), at("opt", "agent")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{at("opt", "link"): at("home", "Desktop"), at("home", "Documents"): at("opt"), at("dead"): at("nowhere"), at("me"): at("home")} {
		if err := os.Symlink(to, link); err != nil {
			if runtime.GOOS != "windows" {
				t.Fatal(err)
			}
			t.Skip("needs the right to make symbolic links, which Windows gives to few: ", err)
		}
	}
	for dir, want := range map[string]string{
		at("opt", "agent"):                  "",
		at("opt", "not", "yet"):             "",
		at("opt", "link", "agent"):          "which is " + filepath.ToSlash(at("home", "Desktop", "agent")),
		at("opt", "link", "not", "yet"):     "Desktop",
		at("home", "Documents", "agent"):    "Documents", // launchd goes through the folder
		at("me", "Desktop", "agent"):        "Desktop",
		at("dead"):                          "see where",
		at("dead", "agent"):                 "see where",
		at("me", "..", "opt", "agent", "x"): "",
	} {
		err := CheckHome(dir, []string{at("home")}, local)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", dir, err, want)
		}
	}
	if err := CheckHome(at("home", "Desktop", "agent"), []string{at("me")}, local); err == nil { // $HOME is a link
		t.Error("a home behind a link is not known as one")
	}
}

func TestCheckHomeAsksTheVolume(t *testing.T) {
	for name, tc := range map[string]struct {
		dir     string
		volume  Volume
		fails   error
		refused string
	}{
		"internal":            {"/Volumes/Data/agent", Volume{Mount: "/Volumes/Data"}, nil, ""},
		"removable":           {"/Volumes/USB/agent", Volume{Mount: "/Volumes/USB", Removable: true}, nil, "removable volume, /Volumes/USB"},
		"removable elsewhere": {"/opt/agent", Volume{Mount: "/opt", Removable: true}, nil, "removable"},
		"network":             {"/nfs/agent", Volume{Mount: "/nfs", Network: true}, nil, "network volume, /nfs"},
		"mute":                {"/volumes/x/agent", Volume{}, errors.ErrUnsupported, "another volume"},
		"mute, root":          {"/opt/agent", Volume{}, errors.ErrUnsupported, ""},
	} {
		err := CheckHome(tc.dir, nil, func(string) (Volume, error) { return tc.volume, tc.fails })
		if tc.refused == "" && err != nil || tc.refused != "" && (err == nil || !strings.Contains(err.Error(), tc.refused)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := StatVolume(t.TempDir()); runtime.GOOS != "darwin" && !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	if reflect.DeepEqual(GUI(1), System) || UserAgentDir("/Users/ci") != filepath.Join("/Users/ci", "Library", "LaunchAgents") {
		t.Error("names")
	}
}
