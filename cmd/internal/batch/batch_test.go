package batch

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/devops-agent/devops-agent/cmd/internal/cli"
	"github.com/devops-agent/devops-agent/service"
)

// The variables by which this test's own binary plays devopsAgent: it writes down how it was called, and ends with a code.
const (
	playAgent = "INSTALLER_TEST_AGENT"
	playCode  = "INSTALLER_TEST_CODE"
)

func TestMain(m *testing.M) {
	if file := os.Getenv(playAgent); file != "" {
		os.Exit(agentPlay(file))
	}
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("gopkg.in/natefinch/lumberjack%2ev2.(*Logger).millRun"))
}

func agentPlay(file string) int {
	dir, _ := os.Getwd()
	line, _ := json.Marshal(call{Args: os.Args[1:], Dir: dir, Total: totalHeld(dir)})
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return 99
	}
	_, err = f.Write(append(line, '\n'))
	code, _ := strconv.Atoi(os.Getenv(playCode))
	if errors.Join(err, f.Close()) != nil {
		return 99
	}
	return code
}

// totalHeld reports whether somebody has total-lock, so that an agent or a daemon could not start.
func totalHeld(dir string) bool {
	inst, err := service.Open(dir)
	if err != nil {
		return false
	}
	lock, err := inst.HoldTotal(context.Background(), 50*time.Millisecond)
	if err != nil {
		return true
	}
	return lock.Release() != nil
}

// call is how the agent was called.
type call struct {
	Args  []string
	Dir   string
	Total bool
}

// image is a home with an agent that is this test's own binary.
type image struct {
	home  string
	calls string
}

func newImage(t *testing.T, properties string) image {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(root, "my agent")
	if err := os.MkdirAll(filepath.Join(home, "tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, service.ProgramName(runtime.GOOS, "devopsAgent")), program, 0o644); err != nil {
		t.Fatal(err) // not executable: the archive may have been unpacked by something that drops modes
	}
	if properties != "" {
		if err := os.WriteFile(filepath.Join(home, ".agent.properties"), []byte(properties), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	i := image{home: home, calls: filepath.Join(root, "calls")}
	t.Setenv(playAgent, i.calls)
	t.Setenv(playCode, "0")
	return i
}

func (i image) verbs(t *testing.T) (verbs []string) {
	t.Helper()
	data, err := os.ReadFile(i.calls)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var c call
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Fatal(err)
		}
		if c.Dir != i.home || c.Total || len(c.Args) < 3 || c.Args[0] != "--home" || c.Args[1] != i.home {
			t.Errorf("called with %q in %s, total-lock held %v", c.Args, c.Dir, c.Total)
		}
		verbs = append(verbs, strings.Join(c.Args[2:], " "))
	}
	return verbs
}

func (i image) read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(i.home, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func properties(gateway, agent, batch string) string {
	text := "devops.project.id=demo\ndevops.agent.id=" + agent + "\ndevops.agent.secret.key=s3cret-of-" + agent +
		"\nlandun.gateway=" + gateway + "\nlandun.env=PROD\ndevops.parallel.task.count=4\n"
	if batch != "" {
		text += "devops.agent.batch.install=" + batch + "\n"
	}
	return text
}

func TestActionsAreTheAgentsVerbs(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"no action":           {nil, "install"},
		"install":             {[]string{"-action=install"}, "install"},
		"install, two words":  {[]string{"-action", "install"}, "install"},
		"install, two dashes": {[]string{"--action=install"}, "install"},
		"uninstall":           {[]string{"-action=uninstall"}, "uninstall"},
		"with arguments":      {[]string{"-action=install", "--", "user", "--linger"}, "install user --linger"},
	} {
		i := newImage(t, properties("http://127.0.0.1:1", "abc", ""))
		if err := Run(t.Context(), append([]string{"-home", i.home}, tc.args...)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := i.verbs(t); !slices.Equal(got, []string{tc.want}) {
			t.Errorf("%s: called %q", name, got)
		}
		if pid := i.read(t, filepath.Join("runtime", "installer.pid")); pid != strconv.Itoa(os.Getpid()) {
			t.Errorf("%s: installer.pid is %q", name, pid)
		}
		if i.read(t, filepath.Join("logs", "devopsInstaller.log")) == "" {
			t.Errorf("%s: no log", name)
		}
	}
}

func TestUnknownWordsAreRefused(t *testing.T) {
	i := newImage(t, "")
	for _, args := range [][]string{{"-action=repair"}, {"-action="}, {"install"}, {"-x"}} {
		err := Run(t.Context(), append([]string{"-home", i.home}, args...))
		var hinter interface{ Hint() string }
		if err == nil || !errors.As(err, &hinter) {
			t.Errorf("%q: %v", args, err)
		}
	}
	if got := i.verbs(t); got != nil {
		t.Errorf("called %q", got)
	}
	for _, args := range [][]string{{"version"}, {"fullVersion"}, {"-help"}} {
		if err := Run(t.Context(), args); err != nil {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestExitCodeOfTheVerbIsOurs(t *testing.T) {
	i := newImage(t, "")
	t.Setenv(playCode, "3")
	err := Run(t.Context(), []string{"-home", i.home})
	var exit *cli.Exit
	if !errors.As(err, &exit) || exit.Code != 3 || exit.Err != nil {
		t.Errorf("%v", err)
	}
}

func TestWithoutAgentNothingIsInstalled(t *testing.T) {
	i := newImage(t, "")
	if err := os.Remove(filepath.Join(i.home, service.ProgramName(runtime.GOOS, "devopsAgent"))); err != nil {
		t.Fatal(err)
	}
	err := Run(t.Context(), []string{"-home", i.home})
	var missing *noAgentError
	if !errors.As(err, &missing) || missing.Hint() == "" {
		t.Errorf("%v", err)
	}
}

func TestOneInstallerAtATime(t *testing.T) {
	i := newImage(t, "")
	inst, err := service.Open(i.home)
	if err != nil {
		t.Fatal(err)
	}
	other, err := inst.Hold(t.Context(), service.RoleInstaller)
	if err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), []string{"-home", i.home}); !errors.Is(err, service.ErrRunning) {
		t.Errorf("%v", err)
	}
	if err := other.Release(); err != nil {
		t.Fatal(err)
	}
	if got := i.verbs(t); got != nil {
		t.Errorf("called %q", got)
	}
}

func TestHomeIsFound(t *testing.T) {
	i := newImage(t, properties("http://127.0.0.1:1", "abc", ""))
	t.Chdir(i.home)
	if got, err := service.HomeHere(); err != nil || got != i.home {
		t.Errorf("%s, %v", got, err)
	}
	t.Chdir(filepath.Join(i.home, "tmp"))
	if got, err := service.HomeHere(); err != nil || got != filepath.Join(i.home, "tmp") { // this test lies in no home
		t.Errorf("%s, %v", got, err)
	}
}

// entry is one of an archive.
type entry struct {
	name string
	mode fs.FileMode
	text string
}

func archive(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.name, Method: zip.Deflate}
		h.SetMode(e.mode)
		f, err := w.CreateHeader(h)
		if err == nil {
			_, err = f.Write([]byte(e.text))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// server hands an archive to whoever asks the way an agent of the original does.
func server(t *testing.T, reply func(w http.ResponseWriter)) (gateway string, asked *[]string) {
	t.Helper()
	asked = new([]string)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*asked = append(*asked, fmt.Sprintf("%s %s %s %s %s %s", r.Method, r.URL.Path, r.Header.Get("X-DEVOPS-BUILD-TYPE"), r.Header.Get("X-DEVOPS-PROJECT-ID"),
			r.Header.Get("X-DEVOPS-AGENT-ID"), r.Header.Get("X-DEVOPS-AGENT-SECRET-KEY")))
		reply(w)
	}))
	t.Cleanup(s.Close)
	return s.URL, asked
}

func TestBatchMakesAnAgentOfAnImage(t *testing.T) {
	var zipped []byte
	gateway, asked := server(t, func(w http.ResponseWriter) { _, _ = w.Write(zipped) })
	zipped = archive(t,
		entry{"install.sh", 0o644, "#!/bin/sh\n"}, entry{".cert", 0o600, "-----BEGIN CERTIFICATE-----\n"}, entry{"extra/", 0o755 | fs.ModeDir, ""},
		entry{"extra/tool", 0o755, "tool"}, entry{".agent.properties", 0o666, properties(gateway, "fresh", "fresh") + "# kept\n"})
	i := newImage(t, properties(gateway, "parent", "parent"))
	if err := os.WriteFile(filepath.Join(i.home, ".agent.properties.bak"), []byte(properties(gateway, "parent", "")), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing left of the batch
		if err := Run(t.Context(), []string{"-home", i.home}); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"GET /ms/environment/api/external/thirdPartyAgent/parent/batch_zip AGENT demo parent s3cret-of-parent"}
	if !slices.Equal(*asked, want) {
		t.Errorf("asked %q", *asked)
	}
	if got := i.verbs(t); !slices.Equal(got, []string{"uninstall", "install", "install"}) {
		t.Errorf("called %q", got)
	}
	if got := i.read(t, ".agent.properties"); got != properties(gateway, "fresh", "")+"# kept\n" {
		t.Errorf("properties\n%s", got)
	}
	if _, err := os.Stat(filepath.Join(i.home, ".agent.properties.bak")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the identity of the image can come back")
	}
	if runtime.GOOS != "windows" {
		for name, mode := range map[string]fs.FileMode{".agent.properties": 0o600, ".cert": 0o644, "install.sh": 0o755, "extra/tool": 0o755} {
			if info, err := os.Stat(filepath.Join(i.home, name)); err != nil || info.Mode() != mode {
				t.Errorf("%s: %v %v", name, info, err)
			}
		}
	}
	if left, _ := filepath.Glob(filepath.Join(i.home, ".agent-package-*")); left != nil {
		t.Errorf("left behind %q", left)
	}
}

func TestBatchIsForPristineImages(t *testing.T) {
	gateway, asked := server(t, func(w http.ResponseWriter) { w.WriteHeader(500) })
	i := newImage(t, properties(gateway, "own", "own"))
	if err := os.MkdirAll(filepath.Join(i.home, "runtime"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(i.home, "runtime", "agent.pid"), []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), []string{"-home", i.home}); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), []string{"-home", i.home, "-action=uninstall"}); err != nil {
		t.Fatal(err)
	}
	if got := i.verbs(t); len(*asked) != 0 || !slices.Equal(got, []string{"install", "uninstall"}) {
		t.Errorf("asked %q, called %q", *asked, got)
	}
}

// TestBatchChangesNothingWhenItFails: not one file, and what is registered stays so.
func TestBatchChangesNothingWhenItFails(t *testing.T) {
	good := properties("http://127.0.0.1:1", "fresh", "")
	many := make([]entry, maxEntries+1)
	for n := range many {
		many[n] = entry{strconv.Itoa(n), 0o644, ""}
	}
	bomb := strings.Repeat("\x00", maxUnpack/2+1)
	for name, tc := range map[string]struct {
		entries []entry
		raw     func(http.ResponseWriter)
		batch   string
		says    string
	}{
		"refused":             {raw: func(w http.ResponseWriter) { w.WriteHeader(403) }, says: "HTTP 403"},
		"no archive":          {raw: func(w http.ResponseWriter) { _, _ = w.Write([]byte("<html>")) }, says: "zip"},
		"cut short":           {raw: func(w http.ResponseWriter) { w.Header().Set("Content-Length", "100"); _, _ = w.Write([]byte("PK")) }, says: "fetch its files"},
		"empty":               {entries: nil, says: "no .agent.properties"},
		"no identity":         {entries: []entry{{"install.sh", 0o755, ""}}, says: "no .agent.properties"},
		"half an identity":    {entries: []entry{{".agent.properties", 0o644, "devops.agent.id=x\n"}}, says: "project"},
		"up":                  {entries: []entry{{".agent.properties", 0o644, good}, {"../x", 0o644, ""}}, says: "elsewhere"},
		"up, inside":          {entries: []entry{{"a/../../x", 0o644, ""}}, says: "elsewhere"},
		"absolute":            {entries: []entry{{"/etc/x", 0o644, ""}}, says: "elsewhere"},
		"backslash":           {entries: []entry{{`..\x`, 0o644, ""}}, says: "elsewhere"},
		"drive":               {entries: []entry{{`C:x`, 0o644, ""}}, says: "elsewhere"},
		"nameless":            {entries: []entry{{"", 0o644, ""}}, says: "elsewhere"},
		"link":                {entries: []entry{{"x", 0o777 | fs.ModeSymlink, "/etc/passwd"}}, says: "no file"},
		"device":              {entries: []entry{{"x", 0o666 | fs.ModeDevice, ""}}, says: "no file"},
		"pipe":                {entries: []entry{{"x", 0o666 | fs.ModeNamedPipe, ""}}, says: "no file"},
		"the operator's file": {entries: []entry{{".agent.properties", 0o644, good}, {"Agent.toml", 0o644, ""}}, says: "operator"},
		"twice":               {entries: []entry{{".agent.properties", 0o644, good}, {".AGENT.properties", 0o644, good}}, says: "twice"},
		"many":                {entries: many, says: "entries"},
		"bomb":                {entries: []entry{{"a", 0o644, bomb}, {"b", 0o644, bomb}}, says: "bytes"},
		"key is a path":       {batch: "../../x", says: "no agent's id"},
	} {
		t.Run(name, func(t *testing.T) {
			reply := tc.raw
			if reply == nil {
				zipped := archive(t, tc.entries...)
				reply = func(w http.ResponseWriter) { _, _ = w.Write(zipped) }
			}
			gateway, _ := server(t, reply)
			if tc.batch == "" {
				tc.batch = "parent"
			}
			before := properties(gateway, "parent", tc.batch)
			i := newImage(t, before)
			err := Run(t.Context(), []string{"-home", i.home})
			if err == nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%v, want something about %q", err, tc.says)
			}
			if got := i.verbs(t); got != nil {
				t.Errorf("called %q", got)
			}
			if i.read(t, ".agent.properties") != before {
				t.Error("the identity is another")
			}
			entries, err := os.ReadDir(i.home)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if !slices.Contains([]string{".agent.properties", service.ProgramName(runtime.GOOS, "devopsAgent"), "logs", "runtime", "tmp"}, e.Name()) {
					t.Errorf("left behind: %s", e.Name())
				}
			}
		})
	}
}

// TestBatchStaysInHome: a link that somebody left in the image leads nowhere.
func TestBatchStaysInHome(t *testing.T) {
	var zipped []byte
	gateway, _ := server(t, func(w http.ResponseWriter) { _, _ = w.Write(zipped) })
	zipped = archive(t, entry{".agent.properties", 0o644, properties(gateway, "fresh", "")}, entry{"out/x", 0o644, "stranger"})
	i := newImage(t, properties(gateway, "parent", "parent"))
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(i.home, "out")); err != nil {
		if runtime.GOOS != "windows" {
			t.Fatal(err)
		}
		t.Skip("needs the right to make symbolic links, which Windows gives to few: ", err)
	}
	if err := Run(t.Context(), []string{"-home", i.home}); err == nil {
		t.Error("unpacked through a link")
	}
	if left, _ := os.ReadDir(outside); len(left) != 0 {
		t.Errorf("wrote %v", left)
	}
	if got := i.read(t, ".agent.properties"); !strings.Contains(got, "parent") {
		t.Errorf("properties\n%s", got)
	}
}

func TestBatchWaitsOnlySoLong(t *testing.T) {
	stuck := make(chan struct{})
	gateway, _ := server(t, func(w http.ResponseWriter) { w.(http.Flusher).Flush(); <-stuck })
	defer close(stuck)
	i := newImage(t, properties(gateway, "parent", "parent"))
	inst, err := service.Open(i.home)
	if err != nil {
		t.Fatal(err)
	}
	b := batch{inst: inst, limit: 100 * time.Millisecond}
	if _, err := b.fetch(t.Context(), "parent"); err == nil || !strings.Contains(err.Error(), "not here within 100ms") {
		t.Error(err)
	}
}

func FuzzReadArchive(f *testing.F) {
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for _, name := range []string{".agent.properties", "a/b.sh", "../x"} {
		part, err := w.Create(name)
		if err == nil {
			_, err = part.Write([]byte("devops.agent.batch.install=x\n"))
		}
		if err != nil {
			f.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Add([]byte("PK\x05\x06\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		files, err := readArchive(data)
		if err != nil {
			return
		}
		for _, file := range files {
			if !fs.ValidPath(file.name) || strings.ContainsAny(file.name, "\\:") || file.mode&^0o755 != 0 {
				t.Errorf("%q %v", file.name, file.mode)
			}
		}
	})
}
