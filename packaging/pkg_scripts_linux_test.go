package packaging

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/launchd"
	"github.com/devops-agent/devops-agent/service"
)

// mac is a root directory in which the scripts of a package run as on a Mac, with programs of Linux and those that TestMain
// plays.
type mac struct {
	t    *testing.T
	root string
	attr *syscall.SysProcAttr
}

// tools are what the scripts may call; macOS has all of them in /bin and /usr/bin.
func tools() []string {
	return []string{"cat", "chmod", "chown", "cmp", "cp", "env", "find", "grep", "id", "mkdir", "mv", "rm", "rmdir", "sleep"}
}

var libraryLine = regexp.MustCompile(`(/\S+) \(0x`)

// newMac makes one whose /bin/sh is the given shell.
func newMac(t *testing.T, shell string) *mac {
	t.Helper()
	m := &mac{t: t, root: t.TempDir(), attr: &syscall.SysProcAttr{}}
	m.attr.Chroot = m.root
	if os.Getuid() != 0 {
		m.attr.Cloneflags = syscall.CLONE_NEWUSER
		m.attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		m.attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"bin", "usr/bin", "usr/sbin", "sbin", "private/var/db", "private/var/root", "Library/LaunchDaemons", "mac", "etc", "dev", "usr/local", "scripts", "evil"} {
		m.mkdir("/"+dir, 0o755)
	}
	m.write("/etc/passwd", "root:x:0:0::/private/var/root:/bin/sh\nci:x:501:20::/Users/ci:/bin/sh\n", 0o644)
	m.write("/etc/group", "wheel:x:0:\nstaff:x:20:\nadmin:x:80:\n", 0o644)
	m.write("/etc/nsswitch.conf", "passwd: files\ngroup: files\n", 0o644)
	m.write("/dev/null", "", 0o666)
	m.program(shell, "/bin/sh")
	for _, tool := range tools() {
		m.program(tool, "/usr/bin/"+tool)
		// A directory of somebody else, whose programs nobody may call.
		m.write("/evil/"+tool, "#!/bin/sh\necho evil >>/mac/log\n", 0o755)
	}
	m.program(own, "/bin/launchctl")
	m.program(own, "/usr/bin/plutil")
	m.program(own, "/usr/sbin/pkgutil")
	cmd := exec.Command("/usr/bin/id", "-u")
	cmd.SysProcAttr = m.attr
	if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "0" {
		t.Skipf("needs root, or a kernel that lets a user have a root directory of its own: %v %s", err, out)
	}
	return m
}

func (m *mac) at(name string) string { return filepath.Join(m.root, name) }

func (m *mac) mkdir(name string, mode fs.FileMode) {
	m.t.Helper()
	if err := os.MkdirAll(m.at(name), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Chmod(m.at(name), mode); err != nil {
		m.t.Fatal(err)
	}
}

func (m *mac) write(name, text string, mode fs.FileMode) {
	m.t.Helper()
	removeIfThere(m.t, m.at(name))
	if err := writeProgram(m.at(name), []byte(text)); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Chmod(m.at(name), mode); err != nil {
		m.t.Fatal(err)
	}
}

func (m *mac) read(name string) string {
	m.t.Helper()
	text, err := os.ReadFile(m.at(name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.t.Fatal(err)
	}
	return string(text)
}

// program puts a program of this machine into the Mac, with the libraries that it needs.
func (m *mac) program(name, to string) {
	m.t.Helper()
	from, err := exec.LookPath(name)
	if err == nil {
		from, err = filepath.EvalSymlinks(from)
	}
	if err != nil {
		m.t.Skip("needs " + name)
	}
	m.link(from, to)
	out, err := exec.Command("ldd", from).Output() // fails for static programs
	if err != nil {
		return
	}
	for _, found := range libraryLine.FindAllStringSubmatch(string(out), -1) {
		real, err := filepath.EvalSymlinks(found[1])
		if err != nil {
			m.t.Fatal(err)
		}
		m.link(real, found[1])
	}
}

// link copies a file, by a second name where that works.
func (m *mac) link(from, to string) {
	m.t.Helper()
	to = m.at(to)
	if thereIs(to) {
		return
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if os.Link(from, to) == nil {
		return
	}
	data, err := os.ReadFile(from)
	if err == nil {
		err = writeProgram(to, data)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// writeProgram writes a file that can be executed at once: no child of a parallel test is forked while the file is open, which
// would hold it open for writing until it executes something itself (ETXTBSY).
func writeProgram(path string, data []byte) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, data, 0o700)
}

// run runs a script in the Mac, with a PATH that must not matter.
func (m *mac) run(script string, args ...string) (string, error) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, script, args...)
	cmd.SysProcAttr = m.attr
	cmd.Dir = "/scripts"
	cmd.Env = []string{"PATH=/evil", "COMMAND_LINE_INSTALL=1", "HOME=/Users/somebody", "ENV=/evil/env", "BASH_ENV=/evil/env"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// install does what Installer does: preinstall, the files, postinstall.
func (m *mac) install(p Manifest, volume string) (string, error) {
	m.t.Helper()
	m.write("/evil/env", "echo evil >>/mac/log\n", 0o644)
	m.write("/scripts/preinstall", p.Scripts.PreInstall, 0o755)
	m.write("/scripts/postinstall", p.Scripts.PostInstall, 0o755)
	args := []string{"/Volumes/usb/devops-agent.pkg", volume, volume, "/"}
	before, err := m.run("/scripts/preinstall", args...)
	if err != nil {
		return before, err
	}
	m.unpack(p, volume)
	after, err := m.run("/scripts/postinstall", args...)
	return before + after, err
}

// unpack puts the files of a package into place, as Installer does it: new files, directories as they are.
func (m *mac) unpack(p Manifest, volume string) {
	m.t.Helper()
	own, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}
	for _, f := range p.Files {
		to := filepath.Join(volume, f.Path)
		switch {
		case f.Kind == Dir:
			if !thereIs(m.at(to)) {
				m.mkdir(to, f.Mode)
			}
		case f.Kind == Link:
			removeIfThere(m.t, m.at(to))
			if err := os.Symlink(f.Target, m.at(to)); err != nil {
				m.t.Fatal(err)
			}
		case filepath.Base(f.Path) == "devopsAgent" && f.Program:
			removeIfThere(m.t, m.at(to))
			m.program(own, to)
		default:
			data, err := f.Read()
			if err != nil {
				m.t.Fatal(err)
			}
			m.write(to, string(data), f.Mode)
		}
	}
}

// job is what the launchd that is played has.
func (m *mac) job() (s macState, loaded bool) {
	m.t.Helper()
	text := m.read(macJob)
	if text == "" {
		return s, false
	}
	var parsed macState
	if err := jsonTo(text, &parsed); err != nil {
		m.t.Fatal(err)
	}
	return parsed, true
}

// stop takes the job from launchd, as "devopsAgent stop" does.
func (m *mac) stop() {
	m.t.Helper()
	removeIfThere(m.t, m.at(macJob))
}

func (m *mac) touch(name string) { m.t.Helper(); m.write(name, "", 0o644) }

// said fails unless the calls of a test have, or have not, a word in them.
func (m *mac) called(word string) bool { return strings.Contains(m.read(macLog), word) }

// shells are those that macOS may have as /bin/sh.
func eachShell(t *testing.T, test func(t *testing.T, m *mac)) {
	for _, shell := range []string{"dash", "bash"} {
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath(shell); err != nil {
				t.Skip("needs " + shell)
			}
			test(t, newMac(t, shell))
		})
	}
}

func layout() service.Layout { return service.Packaged("darwin") }

const jobFile = "/Library/LaunchDaemons/org.devops-agent.agent.plist"

// must fails on an error of an installation and keeps rules that hold after all of them.
func (m *mac) must(out string, err error) string {
	m.t.Helper()
	if err != nil {
		m.t.Fatalf("%v\n%s\n%s", err, out, m.read(macLog))
	}
	m.clean(out)
	return out
}

// clean checks that nothing was left behind, and nothing called that is not the system's.
func (m *mac) clean(out string) {
	m.t.Helper()
	for _, name := range []string{pkgKept, jobFile + ".new", layout().Config + ".new"} {
		if thereIs(m.at(name)) {
			m.t.Errorf("%s was left behind", name)
		}
	}
	if m.called("evil") {
		m.t.Errorf("a program of somebody else was called:\n%s", m.read(macLog))
	}
	if strings.Contains(out, "not found") || strings.Contains(out, "syntax") {
		m.t.Errorf("the shell complains:\n%s", out)
	}
}

func TestPkgInstalls(t *testing.T) {
	t.Parallel()
	eachShell(t, func(t *testing.T, m *mac) {
		p := macManifest(t, "v1.0.0")
		out := m.must(m.install(p, "/"))
		if !strings.Contains(out, "devopsAgent status") {
			t.Errorf("it says %q", out)
		}
		l := layout()
		s, loaded := m.job()
		if !loaded || s.PID == 0 || s.File != jobFile {
			t.Errorf("the job: %+v, %v", s, loaded)
		}
		if m.called("enable") {
			t.Error("it touched what a person says about the job")
		}
		for name, mode := range map[string]fs.FileMode{l.Home: 0o700, l.Home + "/logs": 0o700, l.Config: 0o644, filepath.Dir(l.Config): 0o755, filepath.Dir(l.Config) + "/enroll.d": 0o750, jobFile: 0o644} {
			info, err := os.Lstat(m.at(name))
			if err != nil {
				t.Error(err)
			} else if info.Mode().Perm() != mode || info.Sys().(*syscall.Stat_t).Uid != uint32(os.Getuid()) {
				t.Errorf("%s: %v", name, info.Mode())
			}
		}
		if want := m.read(l.Vendor + "/agent.toml"); m.read(l.Config) != want || want == "" {
			t.Error("the configuration is not the template")
		}

		// Again, over what was written since.
		m.write(l.Config, "[server]\n", 0o600)
		m.must(m.install(p, "/"))
		if got := m.read(l.Config); got != "[server]\n" {
			t.Errorf("it wrote over the configuration: %q", got)
		}
		again, _ := m.job()
		for end := time.Now().Add(20 * time.Second); again == s && time.Now().Before(end); again, _ = m.job() {
			<-time.After(50 * time.Millisecond)
		}
		if again.PID == s.PID || again.PID == 0 {
			t.Errorf("installed again: the process was %d and is %d", s.PID, again.PID)
		}
	})
}

// TestPkgUpgradeKeepsState is the table of what an upgrade finds and leaves.
func TestPkgUpgradeKeepsState(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		before          func(m *mac)
		loaded, running bool
		fresh           bool // another process than before
	}{
		"running":            {func(*mac) {}, true, true, true},
		"stopped":            {func(m *mac) { m.stop() }, false, false, false},
		"disabled":           {func(m *mac) { m.stop(); m.touch(macOff) }, false, false, false},
		"disabled, but runs": {func(m *mac) { m.touch(macOff) }, true, true, true},
		"deleted in BK-CI, so that it stays down": {func(m *mac) {
			m.touch(layout().Home + "/.removed")
			s, _ := m.job()
			s.PID = 0
			text, _ := jsonFrom(s)
			m.write(macJob, text, 0o600)
		}, true, false, false},
	} {
		for _, change := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, changed job %v", name, change), func(t *testing.T) {
				t.Parallel()
				eachShell(t, func(t *testing.T, m *mac) {
					m.must(m.install(macManifest(t, "v1.0.0"), "/"))
					tc.before(m)
					disabled := thereIs(m.at(macOff))
					before, _ := m.job()
					p := macManifest(t, "v1.1.0")
					if change {
						replace(t, p, jobFile, func(text string) string { return strings.Replace(text, "65536", "65535", 1) })
					}
					m.write(macLog, "", 0o600)
					m.must(m.install(p, "/"))
					after, loaded := m.job()
					for end := time.Now().Add(20 * time.Second); tc.fresh && after == before && time.Now().Before(end); after, loaded = m.job() {
						<-time.After(50 * time.Millisecond) // on a slow machine the installer is done first
					}
					if loaded != tc.loaded || (after.PID != 0) != tc.running {
						t.Errorf("loaded %v with process %d\n%s", loaded, after.PID, m.read(macLog))
					}
					if stale := disabled && change; tc.loaded && stale == (after.Text == m.read(jobFile)) { // launchd loads no disabled job
						t.Errorf("launchd has another job than its file says\n%s", m.read(macLog))
					}
					if fresh := after.PID != before.PID || after.Runs != before.Runs; !change && fresh != tc.fresh {
						t.Errorf("process %d before, %d after\n%s", before.PID, after.PID, m.read(macLog))
					}
					if thereIs(m.at(macOff)) != disabled {
						t.Error("what a person said about the job is not so any more")
					}
					if down := name == "deleted in BK-CI, so that it stays down"; thereIs(m.at(layout().Home+"/.removed")) != down {
						t.Errorf("the mark that keeps it down: %v", !down)
					}
				})
			})
		}
	}
}

// replace changes a file of a manifest.
func replace(t *testing.T, p Manifest, name string, change func(string) string) {
	t.Helper()
	i := slices.IndexFunc(p.Files, func(f File) bool { return f.Path == name })
	if i < 0 {
		t.Fatal("there is no " + name)
	}
	changed := change(string(p.Files[i].Data))
	if changed == string(p.Files[i].Data) {
		t.Fatal("nothing was changed in " + name)
	}
	p.Files[i].Data = []byte(changed)
}

// TestPkgUpgradeLeavesBuildsAlone: neither waits for hours, nor ends them; with a changed job too.
func TestPkgUpgradeLeavesBuildsAlone(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]bool{"the same job": false, "another job": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachShell(t, func(t *testing.T, m *mac) {
				m.must(m.install(macManifest(t, "v1.0.0"), "/"))
				m.touch(macBusy)
				p := macManifest(t, "v1.1.0")
				if change {
					replace(t, p, jobFile, func(text string) string { return strings.Replace(text, "65536", "65535", 1) })
				}
				before, _ := m.job()
				begin := time.Now()
				out := m.must(m.install(p, "/"))
				if took := time.Since(begin); took > 45*time.Second {
					t.Errorf("the installation took %s", took)
				}
				if m.called("builds were ended") {
					t.Errorf("builds were ended\n%s", m.read(macLog))
				}
				if !change {
					if now, _ := m.job(); now.PID != before.PID || !strings.Contains(out, "the agent builds") {
						t.Errorf("process %d before, %d now: %s", before.PID, now.PID, out)
					}
					removeIfThere(t, m.at(macBusy)) // the build ends, after the installer did
				}
				deadline := time.Now().Add(20 * time.Second)
				for {
					now, loaded := m.job()
					if loaded && now.PID != 0 && (now.PID != before.PID || change && now.Text != before.Text) {
						break
					}
					if time.Now().After(deadline) {
						t.Fatalf("the agent was not replaced: %+v\n%s", now, m.read(macLog))
					}
					<-time.After(50 * time.Millisecond)
				}
				if !change && !m.called("--home "+layout().Home+" restart --when-idle; environment PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/var/root\n") {
					t.Errorf("called otherwise:\n%s", m.read(macLog))
				}
			})
		})
	}
}

// TestPkgKeepsWhatInstallSet: the account of the agent, and its time to end.
func TestPkgKeepsWhatInstallSet(t *testing.T) {
	t.Parallel()
	eachShell(t, func(t *testing.T, m *mac) {
		m.must(m.install(macManifest(t, "v1.0.0"), "/"))
		l := layout()
		own := service.LaunchdJob(l.Name, service.Setup{Home: l.Home, Config: l.Config, Vendor: l.Vendor, User: "ci & co", Drain: 2 * time.Hour}, "")
		text, err := own.Plist()
		if err != nil {
			t.Fatal(err)
		}
		m.write(jobFile, string(text), 0o644)
		m.stop()
		m.must(m.install(macManifest(t, "v1.1.0"), "/"))
		job, err := launchd.ParseJob([]byte(m.read(jobFile)))
		if err != nil || job.User != "ci & co" || job.ExitTimeout != own.ExitTimeout {
			t.Errorf("%+v, %v", job, err)
		}
		if info, err := os.Lstat(m.at(jobFile)); err != nil || info.Mode() != 0o644 {
			t.Errorf("%v, %v", info, err)
		}

		// A longer time of the package wins over a shorter one.
		short := pkgJob(l)
		short.ExitTimeout = time.Second
		if text, err = short.Plist(); err != nil {
			t.Fatal(err)
		}
		m.write(jobFile, string(text), 0o644)
		m.must(m.install(macManifest(t, "v1.2.0"), "/"))
		want, err := pkgJob(l).Plist()
		if err != nil || m.read(jobFile) != string(want) {
			t.Errorf("the job is %s, %v", m.read(jobFile), err)
		}
	})
}

// TestPkgOnAnotherVolume: launchd of the system that runs has nothing to do with it.
func TestPkgOnAnotherVolume(t *testing.T) {
	t.Parallel()
	eachShell(t, func(t *testing.T, m *mac) {
		volume := "/Volumes/Macintosh HD 2"
		m.mkdir("/Volumes", 0o755)
		m.mkdir(volume, 0o755)
		p := macManifest(t, "v1.0.0")
		m.must(m.install(p, volume))
		if m.called("launchctl") || thereIs(m.at(layout().Home)) || thereIs(m.at(layout().Config)) {
			t.Errorf("it touched the system that runs:\n%s", m.read(macLog))
		}
		l := layout()
		for _, name := range []string{l.Home + "/logs", l.Config, jobFile} {
			if !thereIs(m.at(volume + name)) {
				t.Errorf("there is no %s on the volume", name)
			}
		}
		m.write(volume+l.Config, "mine", 0o644)
		m.must(m.install(p, volume))
		if m.called("launchctl") || m.read(volume+l.Config) != "mine" || thereIs(m.at(volume+pkgKept)) {
			t.Errorf("again: %q\n%s", m.read(volume+l.Config), m.read(macLog))
		}
	})
}

// TestPkgRefusesReplaceablePaths: nothing that root runs may lie where another account could exchange it.
func TestPkgRefusesReplaceablePaths(t *testing.T) {
	t.Parallel()
	l := layout()
	eachShell(t, func(t *testing.T, m *mac) {
		m.must(m.install(macManifest(t, "v1.0.0"), "/"))
		m.write(macLog, "", 0o600)
		before, _ := m.job()
		p := macManifest(t, "v1.1.0")
		refused := func(what string) {
			t.Helper()
			out, err := m.install(p, "/")
			if err == nil || !strings.Contains(out, "nothing was installed") {
				t.Errorf("%s: %v, %s", what, err, out)
			}
			if now, loaded := m.job(); !loaded || now != before || m.read(macLog) != "" {
				t.Errorf("%s: it touched the agent: %+v\n%s", what, now, m.read(macLog))
			}
			if thereIs(m.at(pkgKept)) && !strings.Contains(out, "others than root") {
				t.Errorf("%s: something was left behind", what)
			}
		}
		for _, dir := range []string{"/", "/Library", "/Library/LaunchDaemons", "/usr", "/usr/local", filepath.Dir(l.Vendor), l.Vendor, filepath.Dir(l.Home), "/usr/local/etc", filepath.Dir(l.Config), "/private/var/db"} {
			for _, mode := range []fs.FileMode{0o775, 0o757} {
				if err := os.Chmod(m.at(dir), mode); err != nil {
					t.Fatal(err)
				}
				refused(fmt.Sprintf("%s with mode %o", dir, mode))
			}
			if err := os.Chmod(m.at(dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Rename(m.at("/usr/local/var"), m.at("/usr/local/elsewhere")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("elsewhere", m.at("/usr/local/var")); err != nil {
			t.Fatal(err)
		}
		refused("a link on the way to the home")
		if err := os.Rename(m.at("/usr/local/elsewhere"), m.at("/usr/local/else")); err != nil {
			t.Fatal(err)
		}
		refused("a link on the way to the home that leads nowhere")
		m.write("/usr/local/var", "", 0o644) // the links of macOS are, like this file, root's alone to change
		refused("no directory on the way to the home")
		if err := errors.Join(os.Remove(m.at("/usr/local/var")), os.Rename(m.at("/usr/local/else"), m.at("/usr/local/var"))); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Rename(m.at(l.Home), m.at("/evil/home")), os.Symlink("/evil/home", m.at(l.Home))); err != nil {
			t.Fatal(err)
		}
		refused("a link of root's in the place of the home, with an agent of root")
		if err := errors.Join(os.Remove(m.at(l.Home)), os.Rename(m.at("/evil/home"), m.at(l.Home))); err != nil {
			t.Fatal(err)
		}
		if os.Getuid() == 0 {
			if err := os.Lchown(m.at("/usr/local/var"), 501, 80); err != nil { // Homebrew on Intel
				t.Fatal(err)
			}
			refused("somebody's /usr/local/var")
			if err := os.Lchown(m.at("/usr/local/var"), 0, 0); err != nil {
				t.Fatal(err)
			}
			if err := os.Lchown(m.at(l.Home), 501, 20); err != nil {
				t.Fatal(err)
			}
			refused("a home of somebody else with an agent of root")
			if err := os.Lchown(m.at(l.Home), 0, 0); err != nil {
				t.Fatal(err)
			}
		}
		m.must(m.install(p, "/"))
	})
}

// TestPkgSaysWhenItFails: everything is on the disk then, and Installer reports a failure.
func TestPkgSaysWhenItFails(t *testing.T) {
	t.Parallel()
	eachShell(t, func(t *testing.T, m *mac) {
		m.touch(macDumb)
		p := macManifest(t, "v1.0.0")
		out, err := m.install(p, "/")
		if err == nil || !strings.Contains(out, "launchd does not take the job") {
			t.Errorf("launchd refuses: %v, %s", err, out)
		}
		m.clean(out)
		removeIfThere(t, m.at(macDumb))
		removeIfThere(t, m.at(jobFile))
		m.must(m.install(p, "/"))
		if _, loaded := m.job(); !loaded {
			t.Error("after a failure the next installation did not load the job")
		}

		m.touch(macSick)
		out, err = m.install(p, "/")
		if err == nil || !strings.Contains(out, "devopsAgent restart says why") {
			t.Errorf("the agent cannot be restarted: %v, %s", err, out)
		}
		m.clean(out)
		removeIfThere(t, m.at(macSick))

		// preinstall of an installation that never came to its end
		m.write("/scripts/preinstall", p.Scripts.PreInstall, 0o755)
		if out, err := m.run("/scripts/preinstall", "p", "/", "/", "/"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		m.must(m.install(p, "/"))

		// a job of a person who disabled it before
		m.stop()
		removeIfThere(t, m.at(jobFile))
		m.touch(macOff)
		out = m.must(m.install(p, "/"))
		if _, loaded := m.job(); loaded || !strings.Contains(out, "stays so") {
			t.Errorf("disabled: %s", out)
		}
	})
}

// tree lists everything below the directories that a package writes into.
func (m *mac) files() string {
	m.t.Helper()
	var all []string
	for _, top := range []string{"/usr/local", "/Library", "/private"} {
		err := filepath.WalkDir(m.at(top), func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			text := ""
			if info.Mode().IsRegular() {
				data, err := os.ReadFile(name)
				if err != nil {
					return err
				}
				text = fmt.Sprint(len(data))
			}
			all = append(all, fmt.Sprintf("%v %s %s", info.Mode(), strings.TrimPrefix(name, m.root), text))
			return nil
		})
		if err != nil {
			m.t.Fatal(err)
		}
	}
	return strings.Join(all, "\n")
}

func TestPkgUninstall(t *testing.T) {
	t.Parallel()
	eachShell(t, func(t *testing.T, m *mac) {
		l := layout()
		for _, dir := range []string{"/usr/local/bin", "/usr/local/share/man/man8", "/usr/local/etc", "/usr/local/var"} {
			m.mkdir(dir, 0o755)
			m.write(dir+"/of somebody", "x", 0o644)
		}
		empty := m.files()
		p := macManifest(t, "v1.0.0")
		uninstall := l.Vendor + "/uninstall"

		// The configuration was not touched, the home was used.
		m.must(m.install(p, "/"))
		m.write(l.Home+"/.agent.properties", "id", 0o600)
		for _, args := range [][]string{{"--purge", "--purge"}, {"--help"}, {"-x"}} {
			if out, err := m.run(uninstall, args...); err == nil || !strings.Contains(out, "usage") {
				t.Errorf("%v: %v, %s", args, err, out)
			}
		}
		if _, loaded := m.job(); !loaded {
			t.Fatal("a mistake in the command line removed the job")
		}
		out := m.must(m.run(uninstall))
		if _, loaded := m.job(); loaded || !m.called("pkgutil --forget "+pkgID) {
			t.Errorf("the job is loaded: %v\n%s", loaded, m.read(macLog))
		}
		if m.read(l.Home+"/.agent.properties") != "id" || !strings.Contains(out, "stays") {
			t.Errorf("the home is gone: %s", out)
		}
		if thereIs(m.at(l.Vendor)) || thereIs(m.at(filepath.Dir(l.Config))) || thereIs(m.at(jobFile)) {
			t.Errorf("left behind:\n%s", m.files())
		}

		// It comes back with its home, gets a configuration, goes without that.
		m.must(m.install(p, "/"))
		m.write(l.Config, "[server]\n", 0o644)
		m.must(m.run(uninstall))
		if m.read(l.Config) != "[server]\n" {
			t.Error("the configuration of somebody is gone")
		}
		m.must(m.install(p, "/"))
		m.touch(macOff)
		m.must(m.run(uninstall, "--purge"))
		if got := m.files(); got != empty {
			t.Errorf("after all is removed:\n%s\nbefore:\n%s", got, empty)
		}
		if thereIs(m.at(macOff)) {
			t.Error("a mark of launchd outlived it")
		}

		// Twice, or after half of it.
		m.must(m.install(p, "/"))
		text := m.read(uninstall)
		removeIfThere(t, m.at(l.Vendor+"/upgrader"))
		m.stop()
		m.must(m.run(uninstall))
		m.write("/scripts/uninstall", text, 0o755)
		m.must(m.run("/scripts/uninstall", "--purge"))
		if got := m.files(); got != empty {
			t.Errorf("after all is removed twice:\n%s", got)
		}
	})
}

// TestPkgScriptsNeedRoot, whoever calls them.
func TestPkgScriptsNeedRoot(t *testing.T) {
	t.Parallel()
	if os.Getuid() == 0 {
		p := macManifest(t, "v1.0.0")
		m := newMac(t, "sh")
		uninstall := p.Files[slices.IndexFunc(p.Files, func(f File) bool { return f.Path == p.Layout.Vendor+"/uninstall" })]
		m.write("/scripts/preinstall", p.Scripts.PreInstall, 0o755)
		m.write("/scripts/uninstall", string(uninstall.Data), 0o755)
		m.attr.Credential = &syscall.Credential{Uid: 501, Gid: 20}
		if err := os.Chmod(m.root, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, script := range []string{"/scripts/preinstall", "/scripts/uninstall"} {
			out, err := m.run(script)
			if err == nil || !strings.Contains(out, "only root") {
				t.Errorf("%s: %v, %s", script, err, out)
			}
		}
		return
	}
	t.Skip("needs root, to be somebody else")
}

// TestPkgScriptsPleaseShellcheck, filled in as they are in the package.
func TestPkgScriptsPleaseShellcheck(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("shellcheck"); err != nil {
		t.Skip("needs shellcheck")
	}
	for name, text := range pkgTexts(macManifest(t, "v1.0.0")) {
		cmd := exec.Command("shellcheck", "-s", "sh", "-")
		cmd.Stdin = bytes.NewBufferString(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
