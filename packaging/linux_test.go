package packaging

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/devops-agent/devops-agent/service"
)

// linuxScripts are the maintainer scripts of both formats, by name.
func linuxScripts(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, name := range []string{"deb/preinst", "deb/postinst", "deb/prerm", "deb/postrm", "rpm/pre", "rpm/post", "rpm/preun", "rpm/postun"} {
		s, err := text(name)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = s
	}
	return all
}

func TestLinuxScriptsPleaseShellcheck(t *testing.T) {
	program, err := exec.LookPath("shellcheck")
	if err != nil {
		t.Skip("shellcheck is not installed")
	}
	for name, s := range linuxScripts(t) {
		cmd := exec.Command(program, "-s", "sh", "-e", "SC2148", "-") // rpm runs its scripts by /bin/sh without their saying so
		cmd.Stdin = strings.NewReader(s)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// TestScriptsAndUnitsNameTheRealPlaces: scripts are texts; what they name is where the layout has it.
func TestScriptsAndUnitsNameTheRealPlaces(t *testing.T) {
	l := service.Packaged("linux")
	further := service.Instance("x")
	all := linuxScripts(t)
	for name, words := range map[string][]string{
		"deb/postinst": {"home=" + l.Home + "\n", "conf=" + filepath.Dir(l.Config) + "\n", " " + filepath.Dir(further.Home) + "\n", l.Name},
		"deb/prerm":    {l.Vendor + "/devopsAgent stop", l.Home, filepath.Dir(further.Home) + "/*"},
		"deb/postrm":   {l.Home + " " + filepath.Dir(further.Home) + ";", filepath.Dir(l.Config), "userdel " + l.Account},
		"rpm/pre":      {l.Account, l.Home},
		"rpm/post":     {l.Name, filepath.Dir(l.Config) + "/enroll.d"},
		"rpm/preun":    {l.Name, l.Vendor + "/devopsAgent stop"},
	} {
		for _, word := range words {
			if !strings.Contains(all[name], word) {
				t.Errorf("%s does not name %q", name, word)
			}
		}
	}
	for name, home := range map[string]string{"devops-agent-replace.service": l.Home, "devops-agent-replace@.service": filepath.Dir(further.Home) + "/%i"} {
		s, err := text(name)
		if err != nil {
			t.Fatal(err)
		}
		if want := "ExecStart=" + l.Vendor + "/devopsAgent restart --when-idle --home " + home + "\n"; !strings.Contains(s, want) {
			t.Errorf("%s: no %s", name, want)
		}
	}
}

// TestScriptsRefuseStrangeArguments: dpkg calls them with words of its own; another one is a mistake and does nothing. The
// words that need nothing done do nothing, with no systemd and no package there.
func TestScriptsRefuseStrangeArguments(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("there is no sh on this machine")
	}
	empty := t.TempDir() // no program but those of the shell
	for name, s := range linuxScripts(t) {
		if !strings.HasPrefix(name, "deb/") {
			continue
		}
		run := func(word string) (string, error) {
			cmd := exec.Command(sh, "-s", word, "1.0.0")
			cmd.Stdin, cmd.Env = strings.NewReader(s), []string{"PATH=" + empty}
			out, err := cmd.CombinedOutput()
			return string(out), err
		}
		if out, err := run("sideways"); err == nil || !strings.Contains(out, "unknown argument 'sideways'") {
			t.Errorf("%s sideways: %v %s", name, err, out)
		}
		for _, word := range map[string][]string{"deb/preinst": {"upgrade", "abort-upgrade"}, "deb/postinst": {"triggered"},
			"deb/prerm": {"upgrade", "failed-upgrade", "deconfigure"}, "deb/postrm": {"upgrade", "failed-upgrade", "abort-upgrade", "disappear"}}[name] {
			if out, err := run(word); err != nil || out != "" {
				t.Errorf("%s %s: %v %s", name, word, err, out)
			}
		}
	}
}

// TestPackagesByOthers: dpkg-deb and rpm read what we write, and find the relations that we mean.
func TestPackagesByOthers(t *testing.T) {
	r := wholeRelease(t, "v1.2.4-dev.3")
	for _, one := range []struct {
		format  Format
		program string
		args    []string
		want    []string
	}{
		{Deb, "dpkg-deb", []string{"-f"}, []string{"Package: devops-agent\n", "Version: 1.2.4~dev.3\n", "Architecture: amd64\n", "Depends: passwd\n", "Recommends: ca-certificates\n"}},
		{RPM, "rpm", []string{"-qp", "--qf", "%{NAME} %{VERSION}-%{RELEASE} %{ARCH} %{LICENSE} %{BUILDHOST}\n[%{REQUIRENAME} ][%{CHANGELOGNAME}]\n"},
			[]string{"devops-agent 1.2.4~dev.3-1 x86_64 MIT localhost\n", "/usr/sbin/useradd", maintainer + " - 1.2.4~dev.3-1"}},
	} {
		t.Run(string(one.format), func(t *testing.T) {
			program, err := exec.LookPath(one.program)
			if err != nil {
				t.Skip(one.program + " is not installed")
			}
			m, err := Contents(r, one.format, "amd64")
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), one.format.FileName(m))
			if err := os.WriteFile(file, written(t, one.format, m), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(program, append(one.args, file)...)
			var stderr bytes.Buffer
			cmd.Stderr, cmd.Env = &stderr, append(os.Environ(), "HOME="+t.TempDir())
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v\n%s", err, &stderr)
			}
			for _, want := range one.want {
				if !strings.Contains(string(out), want) {
					t.Errorf("no %q in\n%s", want, out)
				}
			}
		})
	}
}
