//go:build linux

package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// packed makes the archive of this machine at the first call and returns its path.
var packed = sync.OnceValues(func() (string, error) {
	return pack(filepath.Join(os.Getenv("E2E_DIR"), "dist"))
})

// pack runs "make dist" for this machine.
func pack(dir string, env ...string) (string, error) {
	root, err := lab.ModuleRoot()
	if err != nil {
		return "", err
	}
	cmd := exec.Command("make", "--no-print-directory", "dist", "DIST=linux/"+runtime.GOARCH, "VERSION=v0.0.1-test", "COMMIT=test", "BUILT=2026-01-02T03:04:05Z")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "DIST_DIR="+dir, "SOURCE_DATE_EPOCH=1767323045")
	cmd.Env = append(cmd.Env, env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.Join(err, errors.New(string(out)))
	}
	return filepath.Join(dir, "devops-agent-v0.0.1-test-linux-"+runtime.GOARCH+".tar.gz"), nil
}

func archiveOf(t *testing.T) string {
	t.Helper()
	for _, tool := range []string{"make", "tar", "gzip", "git"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	path, err := packed()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDistHasEverything: programs without suffix, scripts at the top, the same bytes each time.
func TestDistHasEverything(t *testing.T) {
	t.Parallel()
	path := archiveOf(t)
	data, entries := readDist(t, path)
	modes := map[string]fs.FileMode{}
	var names []string
	for _, e := range entries {
		if e.Uid != 0 || e.Gid != 0 || e.Uname != "" || e.Format != tar.FormatUSTAR {
			t.Errorf("%s belongs to %d:%d %q, format %v", e.Name, e.Uid, e.Gid, e.Uname, e.Format)
		}
		modes[e.Name] = e.FileInfo().Mode().Perm()
		names = append(names, e.Name)
	}
	if !slices.IsSortedFunc(names, func(a, b string) int { return strings.Compare(strings.TrimSuffix(a, "/"), strings.TrimSuffix(b, "/")) }) {
		t.Errorf("not sorted: %q", names)
	}
	for name, want := range map[string]fs.FileMode{
		"devopsAgent": 0o755, "devopsDaemon": 0o755, "devopsWorker": 0o755, "upgrader": 0o755, "installer": 0o755,
		"tmp/upgrader": 0o755, "tmp/installer": 0o755, "install.sh": 0o755, "start.sh": 0o755, "stop.sh": 0o755, "uninstall.sh": 0o755,
		"README.md": 0o644, "LICENSE": 0o644, "agent.toml.example": 0o644, "completions/devopsAgent.bash": 0o644, "man/devopsAgent.8": 0o644,
	} {
		if got, ok := modes[name]; !ok || got != want {
			t.Errorf("%s: there %v, mode %v, want %v", name, ok, got, want)
		}
	}
	sums, err := os.ReadFile(filepath.Join(filepath.Dir(path), "SHA256SUMS"))
	sum := sha256.Sum256(data)
	if want := hex.EncodeToString(sum[:]) + "  " + filepath.Base(path) + "\n"; err != nil || string(sums) != want {
		t.Errorf("SHA256SUMS: %v %q, want %q", err, sums, want)
	}
	again, err := pack(filepath.Join(t.TempDir(), "elsewhere"), "TZ=Asia/Tokyo", "LC_ALL=C.UTF-8")
	if err != nil {
		t.Fatal(err)
	}
	if other, fresh := readDist(t, again); !bytes.Equal(other, data) {
		t.Error("made again it is another")
		for i, e := range fresh {
			if i >= len(entries) || e.sum != entries[i].sum || e.Name != entries[i].Name || !e.ModTime.Equal(entries[i].ModTime) {
				t.Errorf("the difference: %s of %s", e.Name, e.ModTime)
			}
		}
	}
}

// distEntry is one of an archive, with the digest of its content.
type distEntry struct {
	*tar.Header
	sum [sha256.Size]byte
}

func readDist(t *testing.T, path string) (data []byte, entries []distEntry) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	unzipped, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(unzipped); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return data, entries
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, distEntry{h, sha256.Sum256(content)})
	}
}

// portable is an unpacked archive and the account that works in it.
type portable struct {
	t    *testing.T
	home string
	root string
	uid  uint32 // 0: ours
}

// unpack unpacks the archive as an account, into a directory with a blank, and puts a link to each script elsewhere.
func unpack(t *testing.T, uid uint32) *portable {
	t.Helper()
	path := archiveOf(t)
	root, err := os.MkdirTemp("", "dist-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	p := &portable{t: t, root: root, home: filepath.Join(root, "my agent"), uid: uid}
	links := filepath.Join(root, "links")
	for _, dir := range []string{p.home, links} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, script := range []string{"install", "start", "stop", "uninstall"} {
		if err := os.Symlink("../my agent/"+script+".sh", filepath.Join(links, script)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("links/stop", filepath.Join(root, "chain")); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{root, p.home, links} {
		if err := errors.Join(os.Chmod(dir, 0o755), os.Chown(dir, int(p.owner()), -1)); err != nil {
			t.Fatal(err)
		}
	}
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	tar := p.command("tar", "xzf", "-", "-C", p.home)
	tar.Stdin = in
	if out, err := tar.CombinedOutput(); err != nil {
		t.Fatalf("unpack: %v\n%s", err, out)
	}
	return p
}

func (p *portable) owner() uint32 {
	if p.uid == 0 {
		return uint32(os.Getuid())
	}
	return p.uid
}

// command is a program that runs as the account, with little in its environment.
func (p *portable) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"HOME=" + p.root, "PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8"}
	cmd.WaitDelay = 20 * time.Second
	if p.uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: p.uid, Gid: p.uid}}
	}
	return cmd
}

// script runs one of the scripts, through the link elsewhere, and returns what it printed.
func (p *portable) script(input string, path string, args ...string) string {
	p.t.Helper()
	cmd := p.command(path, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := output(cmd)
	if err != nil {
		p.t.Fatalf("%s %q: %v\n%s\n%s", path, args, err, out, p.log())
	}
	return out
}

// output runs a command whose children may live on: they must not keep its outputs, or this would wait for them.
func output(cmd *exec.Cmd) (string, error) {
	file, err := os.CreateTemp("", "dist-output")
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close(); _ = os.Remove(file.Name()) }()
	cmd.Stdout, cmd.Stderr = file, file
	err = cmd.Run()
	out, rerr := os.ReadFile(file.Name())
	return string(out), errors.Join(err, rerr)
}

func (p *portable) log() string {
	var all strings.Builder
	for _, name := range []string{"devopsAgent.log", "devopsDaemon.log"} {
		data, _ := os.ReadFile(filepath.Join(p.home, "logs", name))
		all.WriteString("--- " + name + "\n" + string(data))
	}
	return all.String()
}

// pid is that of a role, 0 when it does not run.
func (p *portable) pid(role string) int {
	data, err := os.ReadFile(filepath.Join(p.home, "runtime", role+".pid"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(string(data))
	if err != nil || !lab.Running(pid) {
		return 0
	}
	return pid
}

// TestDistInstalls: unpacked into a fresh directory, ./install.sh is enough for an agent that builds, as root and as nobody
// special; and what was installed can be taken back.
func TestDistInstalls(t *testing.T) {
	accounts := map[string]uint32{"own account": 0}
	if os.Getuid() == 0 {
		accounts = map[string]uint32{"root": 0, "nobody special": 65534}
	}
	for name, uid := range accounts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			distInstalls(t, uid)
		})
	}
}

func distInstalls(t *testing.T, uid uint32) {
	c := lab.NewController(t, programs(t))
	p := unpack(t, uid)
	t.Cleanup(func() { // whatever happened, nothing stays behind
		for _, role := range []string{"daemon", "agent"} {
			if pid := p.pid(role); pid != 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
	link := func(verb string) string { return filepath.Join(p.root, "links", verb) }
	token, code := c.Run("", "enroll-token")
	if code != 0 {
		t.Fatal("no token")
	}
	// "direct" is what install takes by itself where there is no systemd; with the word the test leaves that of the machine alone.
	p.script(token, link("install"), "direct", "--gateway", c.URL, "--token-file", "-")
	if word, err := os.ReadFile(filepath.Join(p.home, ".install_type")); err != nil || string(word) != "DIRECT" {
		t.Errorf(".install_type: %q, %v", word, err)
	}
	build := func() {
		t.Helper()
		id := c.Submit("name: portable\nsteps:\n  - name: who\n    script: |\n      echo uid-$(id -u)-\n")
		if seen := c.Over(time.Minute, id); seen.State != "succeeded" {
			t.Errorf("build %s: %s\n%s", seen.State, p.log(), c.Log())
		}
		if out, _ := c.Run("", "logs", id); !strings.Contains(out, "uid-"+strconv.Itoa(int(p.owner()))+"-") {
			t.Errorf("log of the build: %s", out)
		}
	}
	build()
	daemon, agent := p.pid("daemon"), p.pid("agent")
	if daemon == 0 || agent == 0 {
		t.Fatalf("daemon %d, agent %d", daemon, agent)
	}
	for _, verb := range []string{"start", "install"} { // what is so already is left alone
		p.script("", link(verb))
		if p.pid("daemon") != daemon || p.pid("agent") != agent {
			t.Errorf("%s replaced daemon %d or agent %d", verb, daemon, agent)
		}
	}
	for _, path := range []string{link("stop"), filepath.Join(p.root, "chain"), filepath.Join(p.home, "stop.sh")} {
		p.script("", path)
		if d, a := p.pid("daemon"), p.pid("agent"); d != 0 || a != 0 {
			t.Fatalf("after stop: daemon %d, agent %d", d, a)
		}
	}
	p.script("", link("start"))
	build()
	for range 2 {
		p.script("", link("uninstall"))
		if d, a := p.pid("daemon"), p.pid("agent"); d != 0 || a != 0 {
			t.Fatalf("after uninstall: daemon %d, agent %d", d, a)
		}
	}
	for name, there := range map[string]bool{".agent.properties": true, "workspace": true, "devopsAgent": true, ".keeper": false, ".install_type": false} {
		if _, err := os.Stat(filepath.Join(p.home, name)); (err == nil) != there {
			t.Errorf("after uninstall: %s there %v, want %v", name, err == nil, there)
		}
	}
	// The batch's program does the same, from where the original has it.
	p.script("", filepath.Join(p.home, "tmp", "installer"), "-action=install", "--", "direct")
	build()
	p.script("", filepath.Join(p.home, "tmp", "installer"), "-action=uninstall")
	if d, a := p.pid("daemon"), p.pid("agent"); d != 0 || a != 0 {
		t.Errorf("after installer -action=uninstall: daemon %d, agent %d", d, a)
	}
}

// TestScriptsSayWhatIsMissing: a script alone is no installation.
func TestScriptsSayWhatIsMissing(t *testing.T) {
	t.Parallel()
	root, err := lab.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	for _, system := range []string{"linux", "macos"} {
		for _, verb := range []string{"install", "start", "stop", "uninstall"} {
			path := filepath.Join(root, "scripts", system, verb+".sh")
			out, err := exec.Command("sh", path).CombinedOutput()
			var ended *exec.ExitError
			if !errors.As(err, &ended) || ended.ExitCode() != 1 || !strings.Contains(string(out), verb+".sh: no devopsAgent in "+filepath.Dir(path)) {
				t.Errorf("%s: %v %q", path, err, out)
			}
		}
	}
}

// TestScriptsCallTheVerb with every argument as it came, on both Unix systems, whatever the directory is called.
func TestScriptsCallTheVerb(t *testing.T) {
	t.Parallel()
	root, err := lab.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	for _, system := range []string{"linux", "macos"} {
		for _, verb := range []string{"install", "start", "stop", "uninstall"} {
			home := filepath.Join(t.TempDir(), "-a 'b' \"c\" $d *")
			if err := os.Mkdir(home, 0o755); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(filepath.Join(root, "scripts", system, verb+".sh"))
			if err != nil {
				t.Fatal(err)
			}
			script, stub := filepath.Join(home, verb+".sh"), "#!/bin/sh\nfor a; do printf '[%s]' \"$a\"; done\nexit 7\n"
			if err := errors.Join(os.WriteFile(script, text, 0o755), os.WriteFile(filepath.Join(home, "devopsAgent"), []byte(stub), 0o755)); err != nil {
				t.Fatal(err)
			}
			want := "[--home][" + home + "][" + verb + "][x  y][*][]"
			for dir, path := range map[string]string{"/": script, home: verb + ".sh", filepath.Dir(home): filepath.Base(home) + "/" + verb + ".sh"} {
				cmd := exec.Command("sh", "--", path, "x  y", "*", "")
				cmd.Dir = dir
				out, err := cmd.CombinedOutput()
				var ended *exec.ExitError
				if !errors.As(err, &ended) || ended.ExitCode() != 7 || string(out) != want {
					t.Errorf("%s %s in %s: %v %q, want %q and exit code 7", system, verb, dir, err, out, want)
				}
			}
		}
	}
}

// TestScriptsAreSound asks shellcheck, and looks at what Windows wants of its own.
func TestScriptsAreSound(t *testing.T) {
	t.Parallel()
	root, err := lab.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	bats, err := filepath.Glob(filepath.Join(root, "scripts", "windows", "*.bat"))
	if err != nil || len(bats) != 4 {
		t.Fatalf("%q %v", bats, err)
	}
	for _, bat := range bats {
		data, err := os.ReadFile(bat)
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(data, []byte("\n")); n == 0 || bytes.Count(data, []byte("\r\n")) != n || bytes.ContainsFunc(data, func(r rune) bool { return r > '~' }) {
			t.Errorf("%s: lines do not end as cmd.exe wants them, or there is more than ASCII", bat)
		}
	}
	tool, err := exec.LookPath("shellcheck")
	if err != nil {
		t.Skip("needs shellcheck (\"make tools\" installs it on Debian)")
	}
	var scripts []string
	for _, pattern := range []string{"linux/*.sh", "macos/*.sh", "dist.sh"} {
		found, err := filepath.Glob(filepath.Join(root, "scripts", pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		scripts = append(scripts, found...)
	}
	if out, err := exec.Command(tool, scripts...).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
