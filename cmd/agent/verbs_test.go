package main

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// files makes a tree; a name that ends in a slash is a directory.
func files(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(path, 0o700); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, path, "x")
	}
}

// tree lists what is in a directory, slashes behind directories.
func tree(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if entry.IsDir() {
			name += "/"
		}
		names = append(names, filepath.ToSlash(name))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestPrepareImage: what belongs to one machine goes, the rest stays, and nothing outside is touched.
func TestPrepareImage(t *testing.T) {
	home, outside := t.TempDir(), t.TempDir()
	files(t, outside, "precious")
	files(t, home, ".agent.properties.bak", ".enrolment", ".debug", "logs/devopsAgent.log", "runtime/builds/b", "build_tmp/x", "workspace/p-1/src/file",
		"agent.toml", ".cert", "jdk17/bin/java", "devopsAgent", "mine", "devops_agent_start_demo_b-1_1.sh")
	write(t, filepath.Join(home, ".agent.properties"), properties)
	if runtime.GOOS != "windows" {
		if err := os.Symlink(outside, filepath.Join(home, "workspace", "link")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(outside, filepath.Join(home, "docker_workspace")); err != nil {
			t.Fatal(err)
		}
	}
	before := tree(t, home)
	if got := call(t, "y\n", nil, "prepare-image", "--home", home); got.code != 1 || !strings.Contains(got.stderr, "nothing was done\nhint: to do it without a question, add --yes") {
		t.Errorf("without a terminal and --yes: %+v", got)
	}
	if after := tree(t, home); !slices.Contains(after, ".agent.properties") || !slices.Contains(after, "workspace/p-1/src/file") {
		t.Errorf("it was done all the same: %v of %v", after, before)
	}
	want := []string{".cert", "agent.toml", "devopsAgent", "jdk17/", "jdk17/bin/", "jdk17/bin/java", "mine", "workspace/"}
	if runtime.GOOS != "windows" {
		want = append(want, "docker_workspace")
	}
	slices.Sort(want)
	for _, says := range []string{"prepared: ", "nothing to do: "} {
		if got := call(t, "", nil, "prepare-image", "--yes", "--home", home); got.code != 0 || !strings.HasPrefix(got.stdout, says) {
			t.Fatalf("%+v", got)
		}
		after := tree(t, home)
		slices.Sort(after)
		if !slices.Equal(after, want) {
			t.Errorf("left: %q\nwant: %q", after, want)
		}
	}
	if got := tree(t, outside); !slices.Equal(got, []string{"precious"}) {
		t.Errorf("outside: %v", got)
	}
}

// TestPurge: what the agent made goes; agent.toml, foreign files and what links lead to stay.
func TestPurge(t *testing.T) {
	home, outside := t.TempDir(), t.TempDir()
	files(t, outside, "precious")
	files(t, home, ".agent.properties.bak", "logs/devopsAgent.log", "runtime/agent.pid", "jdk/bin/java", "jdk1700000000/bin/java", "jdk-mine/x", "tmp/upgrader",
		"agent.toml", "notes.txt", "hs_err_pid77.log", ".path", "upgrader", "devopsAgent", "devopsDaemon", "worker-agent.jar")
	write(t, filepath.Join(home, ".agent.properties"), properties)
	want := []string{"agent.toml", "jdk-mine/", "jdk-mine/x", "notes.txt"}
	if runtime.GOOS != "windows" {
		if err := os.Symlink(outside, filepath.Join(home, "workspace")); err != nil {
			t.Fatal(err)
		}
	}
	if got := call(t, "", nil, "uninstall", "--purge", "--home", home); got.code != 1 || !strings.Contains(got.stderr, "nothing was done") {
		t.Errorf("without --yes: %+v", got)
	}
	if got := call(t, "", nil, "uninstall", "--home", home); got != (result{0, "not installed\n" + home + " stays, with identity and workspace\n", ""}) {
		t.Errorf("uninstall: %+v", got)
	}
	got := call(t, "", nil, "uninstall", "--purge", "--yes", "--home", home)
	if got.code != 0 || !strings.Contains(got.stdout, "removed what the agent made in "+home) {
		t.Errorf("%+v", got)
	}
	if after := tree(t, home); !slices.Equal(after, want) {
		t.Errorf("left: %q, want %q", after, want)
	}
	if got := tree(t, outside); !slices.Equal(got, []string{"precious"}) {
		t.Errorf("outside: %v", got)
	}
	if got := call(t, "", nil, "uninstall", "--home", filepath.Join(home, "none")); got != (result{0, "not installed\n", ""}) {
		t.Errorf("no home: %+v", got)
	}
}

// TestVerbsOnNothing: what the verbs say about a home where nothing was registered and nothing runs.
func TestVerbsOnNothing(t *testing.T) {
	home := t.TempDir()
	for _, tc := range []struct {
		args   []string
		code   int
		stdout string
		stderr string // beginning
		hint   string // part
	}{
		{[]string{"stop"}, 0, "not running\n", "", ""},
		{[]string{"stop", "--now"}, 0, "not running\n", "", ""},
		{[]string{"start"}, 1, "", "devopsAgent: start: nothing is registered to run the agent of " + home, "install"},
		{[]string{"restart"}, 1, "", "devopsAgent: restart: nothing is registered", "install"},
		{[]string{"repair"}, 1, "", "devopsAgent: repair: nothing is registered", "install"},
		{[]string{"drain"}, 1, "", "devopsAgent: drain: the agent does not run", "start"},
		{[]string{"resume"}, 1, "", "devopsAgent: resume: the agent does not run", "start"},
		{[]string{"reload"}, 1, "", "devopsAgent: reload: the agent does not run", "start"},
		{[]string{"logs"}, 1, "", "devopsAgent: logs: ", "status"},
		{[]string{"reinstall", "-y"}, 1, "", "devopsAgent: reinstall is not a verb of this agent", "repair"},
		{[]string{"install", "nonsense"}, 1, "", "devopsAgent: invalid argument \"nonsense\"", "--help"},
		{[]string{"install", "direct"}, 1, "", "devopsAgent: install: " + home + " has no identity", "install --gateway URL --token-file FILE"},
	} {
		got := call(t, "", nil, append(tc.args, "--home", home)...)
		hint := strings.Contains(got.stderr, "hint: ") && strings.Contains(got.stderr[strings.Index(got.stderr, "hint: "):], tc.hint)
		if got.code != tc.code || got.stdout != tc.stdout || !strings.HasPrefix(got.stderr, tc.stderr) || tc.hint != "" && !hint || tc.stderr == "" && got.stderr != "" {
			t.Errorf("%q: exit %d, stdout %q, stderr\n%s", tc.args, got.code, got.stdout, got.stderr)
		}
	}
	if names := tree(t, home); len(names) != 0 {
		t.Errorf("left: %v", names)
	}
	if got := call(t, "", nil, "start", "--instance", "../etc"); got.code != 1 || !strings.Contains(got.stderr, "instances are for Linux") {
		t.Errorf("a path for an instance: %+v", got)
	}
	if got := call(t, "", nil, "status", "--instance", "a", "--home", home); got.code != 1 || !strings.Contains(got.stderr, "give one of the two") {
		t.Errorf("both: %+v", got)
	}
}

// TestHomeOfVerbs: the order in which a verb finds its home.
func TestHomeOfVerbs(t *testing.T) {
	here, there := t.TempDir(), t.TempDir()
	t.Setenv(homeVariable, there)
	if l, err := (place{home: here}).locate(); err != nil || l.home != here || !l.given {
		t.Errorf("--home: %+v, %v", l, err)
	}
	if l, err := (place{}).locate(); err != nil || l.home != there {
		t.Errorf("variable: %+v, %v", l, err)
	}
	if runtime.GOOS == "linux" {
		l, err := (place{instance: "two"}).locate()
		if err != nil || l.home != "/var/lib/devops-agents/two" || !strings.Contains(l.command("start"), " start --instance two") {
			t.Errorf("--instance: %+v, %v", l, err)
		}
	}
	t.Setenv(homeVariable, "")
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l, err := (place{}).locate()
	if err != nil || l.given || strings.Contains(l.command("start"), "--home") {
		t.Errorf("nothing: %+v, %v", l, err)
	}
	if packaged, perr := os.Stat("/var/lib/devops-agent"); (perr != nil || !packaged.IsDir()) && l.home != filepath.Dir(own) {
		t.Errorf("nothing: %s, want that of the program", l.home)
	}
	for _, name := range []string{".agent.properties", ".agent.properties.bak", ".keeper", ".install_type", "runtime"} {
		dir := t.TempDir()
		if isHome(dir) {
			t.Error("an empty directory is a home")
		}
		write(t, filepath.Join(dir, name), "")
		if !isHome(dir) {
			t.Errorf("%s makes no home", name)
		}
		if usual(dir, here) != dir || usual(there, here) != here || usual(there, filepath.Join(here, "none")) != there {
			t.Error("the order is program's home, package's home, program")
		}
	}
	if runtime.GOOS == "windows" {
		return // there is no such name
	}
	if quoted := (located{home: "/a b/it's", given: true, place: place{home: "x"}}).command("start"); !strings.HasSuffix(quoted, ` start --home '/a b/it'\''s'`) {
		t.Errorf("what is to be typed: %s", quoted)
	}
}

// TestProgramsArePlaced: under the names of protocol §2.1, from those that a build gives them, and only where they lack.
func TestProgramsArePlaced(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs Unix: the programs of this test are told by their mode, those of Windows by .exe, which the lab with Wine installs")
	}
	from, home := t.TempDir(), t.TempDir()
	own, err := os.ReadFile(program(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"devopsAgent_linux": string(own), "devopsDaemon_linux": "daemon", "upgrader_linux": "upgrader", "devopsWorker": "worker"} {
		if err := os.WriteFile(filepath.Join(from, name), []byte(text), 0o700); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(home, "upgrader"), []byte("newer"), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	write(t, filepath.Join(home, ".agent.properties"), properties)
	// The keeper is one that this machine has not, or one that is stopped in time: only what lies in home counts here.
	got := callProgram(t, filepath.Join(from, "devopsAgent_linux"), "install", "direct", "--no-start", "--home", home)
	for name, want := range map[string]string{"devopsAgent": string(own), "devopsDaemon": "daemon", "upgrader": "newer", "tmp/upgrader": "upgrader", "devopsWorker": "worker"} {
		data, err := os.ReadFile(filepath.Join(home, name))
		if err != nil || string(data) != want {
			t.Errorf("%s: %.20q, %v (install said %+v)", name, data, err, got)
		}
		if info, err := os.Stat(filepath.Join(home, name)); err == nil && info.Mode().Perm()&0o100 == 0 {
			t.Errorf("%s: mode %v", name, info.Mode())
		}
	}
	if data, err := os.ReadFile(filepath.Join(home, ".path")); err != nil || strings.TrimSpace(string(data)) != os.Getenv("PATH") {
		t.Errorf(".path: %q, %v", data, err)
	}
}

// TestManualPagesAndCompletions: every verb that an operator sees has a page and a word.
func TestManualPagesAndCompletions(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man")
	if got := call(t, "", nil, "man", "--dir", dir); got != (result{}) {
		t.Fatalf("%+v", got)
	}
	first := map[string]string{}
	for _, verb := range []string{"", "-install", "-uninstall", "-start", "-stop", "-restart", "-drain", "-resume", "-reload", "-status", "-logs", "-version", "-enroll", "-prepare-image", "-debug"} {
		data, err := os.ReadFile(filepath.Join(dir, "devopsAgent"+verb+".8"))
		if err != nil || !strings.Contains(string(data), ".SH NAME") {
			t.Errorf("%q: %v", verb, err)
		}
		first[verb] = string(data)
	}
	if got := call(t, "", nil, "man", "--dir", dir); got != (result{}) {
		t.Fatalf("%+v", got)
	}
	for verb, text := range first {
		if data, _ := os.ReadFile(filepath.Join(dir, "devopsAgent"+verb+".8")); string(data) != text {
			t.Errorf("%q: not the same page twice", verb)
		}
	}
	for _, sh := range []string{"bash", "zsh", "fish", "powershell"} {
		if got := call(t, "", nil, "completion", sh); got.code != 0 || !strings.Contains(got.stdout, "devopsAgent") || got.stderr != "" {
			t.Errorf("%s: %d %q", sh, got.code, got.stderr)
		}
	}
	if got := call(t, "", nil, "__complete", "install", ""); !strings.Contains(got.stdout, "service\nuser\ndirect") {
		t.Errorf("%q", got.stdout)
	}
}

func TestWords(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0 s", 119 * time.Second: "119 s", 2 * time.Minute: "2 min", 9*time.Hour + 20*time.Second: "9 h 0 min", 9*time.Hour - 20*time.Second: "9 h 0 min",
		50*time.Hour + time.Minute: "2 d 2 h"} {
		if got := length(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0 B", 1 << 10: "1 KiB", 64 << 20: "64 MiB", 3 << 29: "1.5 GiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

// TestFilesOfOthersStay: a directory in which no agent ever lived may have a logs or workspace directory of its own.
func TestFilesOfOthersStay(t *testing.T) {
	home := t.TempDir()
	files(t, home, "logs/theirs.log", "runtime/theirs", "workspace/precious", "tmp/theirs")
	before := tree(t, home)
	for _, args := range [][]string{{"prepare-image", "--yes"}, {"uninstall"}, {"uninstall", "--purge", "--yes"}} {
		got := call(t, "", nil, append(args, "--home", home)...)
		if got.code != 0 || !strings.Contains(got.stdout, "no agent has lived in "+home) || strings.Contains(got.stdout, "stays") {
			t.Errorf("%q: %+v", args, got)
		}
	}
	if after := tree(t, home); !slices.Equal(before, after) {
		t.Errorf("%v became %v", before, after)
	}
}

// TestAnEmptyHomeIsAMistake: of a script whose variable is empty; it must not mean another agent.
func TestAnEmptyHomeIsAMistake(t *testing.T) {
	for _, verb := range []string{"status", "uninstall", "prepare-image", "start", "run", "version"} {
		if got := call(t, "", nil, verb, "--home", ""); got.code != 1 || !strings.Contains(got.stderr, "--home") || !strings.Contains(got.stderr, "it is empty") {
			t.Errorf("%s: %+v", verb, got)
		}
	}
}

// TestNoHome: every verb says so, and what to do.
func TestNoHome(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	for _, args := range [][]string{{"start"}, {"stop"}, {"restart"}, {"drain"}, {"resume"}, {"reload"}, {"logs"}, {"repair"}, {"debug", "on"}, {"prepare-image"}} {
		got := call(t, "", nil, append(args, "--home", none)...)
		if got.code != 1 || !strings.Contains(got.stderr, "there is no agent in "+none) || !strings.Contains(got.stderr, "hint: name the home of an agent with --home") {
			t.Errorf("%q: %+v", args, got)
		}
	}
}

// TestTypedAgain: what is advised to be typed with sudo is what was typed, with its flags.
func TestTypedAgain(t *testing.T) {
	for _, args := range [][]string{
		{"stop", "--now"}, {"uninstall", "--purge", "--yes"}, {"enroll", "--again", "--gateway=http://ci", "--token-file='my token'"},
		{"install", "service", "--linger=false"}, {"debug", "on"}, {"stop", "--timeout=1m30s"},
	} {
		root := commands(0o022)
		cmd, rest, err := root.Find(args)
		if err != nil {
			t.Fatal(err)
		}
		for i, word := range rest {
			rest[i] = strings.ReplaceAll(word, "'", "")
		}
		if err := cmd.ParseFlags(append(rest, "--home", "/h", "--stderr")); err != nil {
			t.Fatal(err)
		}
		if got, want := typed(cmd, cmd.Flags().Args()), strings.Join(args, " "); got != want {
			t.Errorf("%q, and not %q", got, want)
		}
	}
}
