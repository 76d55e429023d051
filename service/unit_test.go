package service

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/devops-agent/devops-agent/systemd"
)

var updateUnits = flag.Bool("update-units", false, "write the golden files of a package's units")

// goldenUnits holds what a package ships; the other tests of units are beside it.
const goldenUnits = "../systemd/testdata/package"

func TestSystemdFilesAreGolden(t *testing.T) {
	files, err := SystemdFiles()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, f := range files {
		name := strings.TrimPrefix(strings.ReplaceAll(f.Path, "/", "_"), "_usr_lib_")
		if seen[name] || f.Mode != fs.FileMode(0o644) || !filepath.IsAbs(f.Path) && runtime.GOOS != "windows" {
			t.Errorf("%+v", f)
		}
		seen[name] = true
		path := filepath.Join(goldenUnits, name)
		if *updateUnits {
			if err := os.WriteFile(path, []byte(f.Text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if f.Text != string(want) {
			t.Errorf("%s is\n%s\nwant\n%s\n(go test ./service -update-units writes it)", f.Path, f.Text, want)
		}
	}
	left, err := os.ReadDir(goldenUnits)
	if err != nil || len(left) != len(files) {
		t.Errorf("%d golden files for %d files, %v", len(left), len(files), err)
	}
}

// unitTree puts a package's files where systemd looks, below a directory, with programs that can be executed.
func unitTree(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	files, err := SystemdFiles()
	if err != nil {
		t.Fatal(err)
	}
	put := func(path, text string, mode fs.FileMode) {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range files {
		put(f.Path, f.Text, f.Mode)
	}
	return root
}

// analyze is the real tool; without it a test is skipped, and says so.
func analyze(t *testing.T, env []string, args ...string) (string, error) {
	t.Helper()
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("needs systemd-analyze (Debian: apt-get install systemd)")
	}
	cmd := exec.CommandContext(t.Context(), tool, args...)
	cmd.Env = append(os.Environ(), append(env, "LC_ALL=C")...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestUnitsVerify: systemd-analyze has nothing to say about any unit, with and without the drop-ins.
func TestUnitsVerify(t *testing.T) {
	// The program must exist where a unit names it: the test's own stands in.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	home := filepath.Dir(self)
	files, err := SystemdFiles()
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for _, f := range files {
		texts[filepath.Base(f.Path)] = strings.ReplaceAll(f.Text, "/usr/lib/devops-agent/upgrader", self)
	}
	setup := Setup{User: "root"}
	for _, user := range []bool{false, true} {
		text, err := portableUnit(home, setup, user, installedVersion(t)).Text()
		if err != nil {
			t.Fatal(err)
		}
		texts[fmt.Sprintf("portable-%v.service", user)] = strings.ReplaceAll(text, home+"/upgrader", self)
	}
	for name, tc := range map[string]struct{ unit, dropin string }{
		"packaged":                      {"devops-agent.service", ""},
		"template":                      {"devops-agent@.service", ""},
		"packaged, no sudo":             {"devops-agent.service", "no-sudo.conf"},
		"packaged, hardened":            {"devops-agent.service", "hardened.conf"},
		"packaged, builds of their own": {"devops-agent.service", "separate-builds.conf"},
		"template, hardened":            {"devops-agent@.service", "hardened.conf"},
		"portable":                      {"portable-false.service", ""},
		"portable, of a user":           {"portable-true.service", ""},
	} {
		dir := t.TempDir()
		write := func(path, text string) {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		unit := filepath.Join(dir, tc.unit)
		write(unit, texts[tc.unit])
		if tc.dropin != "" {
			write(filepath.Join(unit+".d", tc.dropin), texts[tc.dropin])
		}
		args := []string{"verify", "--man=no", "--recursive-errors=no", unit}
		if tc.unit == "portable-true.service" {
			args = append([]string{"--user"}, args...)
		}
		if strings.Contains(tc.unit, "@") {
			args[len(args)-1] = strings.Replace(unit, "@", "@two", 1)
			if err := os.Symlink(unit, args[len(args)-1]); err != nil {
				t.Fatal(err)
			}
		}
		run := t.TempDir()
		out, err := analyze(t, []string{"SYSTEMD_UNIT_PATH=" + dir + ":", "XDG_RUNTIME_DIR=" + run}, args...)
		if err != nil || strings.TrimSpace(out) != "" {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
}

// installedVersion is that of the systemd here, 0 when there is none.
func installedVersion(t *testing.T) int {
	t.Helper()
	out, err := analyze(t, nil, "--version")
	words := strings.Fields(out)
	if err != nil || len(words) < 2 {
		t.Fatalf("%v: %s", err, out)
	}
	v, err := strconv.Atoi(strings.SplitN(words[1], ".", 2)[0])
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// exposure is what "systemd-analyze security" says about the packaged unit with a drop-in: 0 is locked, 10 is open.
func exposure(t *testing.T, dropin string) float64 {
	t.Helper()
	root := unitTree(t)
	unit := filepath.Join(root, systemUnits, "devops-agent.service")
	if dropin != "" {
		dir := unit + ".d"
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(root, DropIns, dropin), filepath.Join(dir, dropin)); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"SYSTEMD_UNIT_PATH=" + filepath.Dir(unit) + ":"}
	out, err := analyze(t, env, "security", "--offline=true", "--no-pager", unit)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	_, last, ok := strings.Cut(out, "Overall exposure level for devops-agent.service: ")
	word, _, _ := strings.Cut(last, " ")
	level, err := strconv.ParseFloat(word, 64)
	if !ok || err != nil {
		t.Fatalf("no level in %s", out)
	}
	return level
}

// TestExposureDoesNotRise: the numbers of docs/hardening.md, by the systemd of Debian 12. Others have a few other questions.
func TestExposureDoesNotRise(t *testing.T) {
	margin := 0.0
	if installedVersion(t) != systemd.Oldest {
		margin = 0.5
	}
	for dropin, most := range map[string]float64{"": 8.6, "no-sudo.conf": 4.4, "hardened.conf": 1.4, "separate-builds.conf": 1.3} {
		got := exposure(t, dropin)
		t.Logf("%q: %.1f", dropin, got)
		if got > most+margin {
			t.Errorf("with %q: %.1f, want at most %.1f", dropin, got, most)
		}
	}
}
