package service

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	inst, err := Open(".")
	if err != nil || !filepath.IsAbs(inst.Home) {
		t.Fatalf("%+v, %v", inst, err)
	}
	if got, want := inst.Path("runtime", "agent.pid"), filepath.Join(inst.Home, "runtime", "agent.pid"); got != want {
		t.Errorf("Path = %s, want %s", got, want)
	}
	if _, err := Open(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("a file: %v", err)
	}
}

// TestHomeOf calls a copy of this program in every way people do.
func TestHomeOf(t *testing.T) {
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	suffix := ""
	if runtime.GOOS == "windows" {
		suffix = ".exe"
	}
	real, link := filepath.Join(base, "opt ci"), filepath.Join(base, "bin")
	for _, dir := range []string{real, link} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	program, called := filepath.Join(real, "devopsAgent"+suffix), filepath.Join(link, "devopsAgent"+suffix)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	copyFile(t, self, program)
	if err := os.Symlink(program, called); err != nil {
		t.Skipf("no right to make symbolic links: %v", err)
	}
	home := func(dir, path, argv0 string) string {
		t.Helper()
		cmd := &exec.Cmd{Path: program, Args: []string{argv0}, Dir: dir,
			Env: append(os.Environ(), part+"=home", "PATH="+path, "GORACE=atexit_sleep_ms=0")}
		if filepath.IsAbs(argv0) {
			cmd.Path = argv0
		}
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil && runtime.GOOS == "windows" && cmd.Path == called {
			t.Skipf("needs a system that runs a program through a link, as Wine does not: %v", err)
		}
		if err != nil {
			t.Fatalf("%s: %v: %s", argv0, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	check := func(when string, want string) {
		t.Helper()
		for _, way := range []struct{ name, dir, path, argv0 string }{
			{"absolute link", base, "", called},
			{"PATH", base, link, "devopsAgent" + suffix},
			{"relative link", link, "", "." + string(filepath.Separator) + "devopsAgent" + suffix},
		} {
			if got := home(way.dir, way.path, way.argv0); got != want {
				t.Errorf("%s, %s: %s, want %s", when, way.name, got, want)
			}
		}
		for _, way := range []struct{ name, dir, path, argv0 string }{
			{"absolute", base, "", program},
			{"PATH to the real one", base, real, "devopsAgent" + suffix},
			{"an argv[0] that is none", base, link, "-devopsAgent"},
			{"an empty argv[0]", base, link, ""},
		} {
			if got := home(way.dir, way.path, way.argv0); got != real {
				t.Errorf("%s, %s: %s, want %s", when, way.name, got, real)
			}
		}
	}
	check("no properties anywhere", real)
	touch(t, filepath.Join(real, ".agent.properties"))
	check("properties beside the program", real)
	touch(t, filepath.Join(link, ".agent.properties"))
	check("properties beside both", link)
	if err := os.Remove(filepath.Join(real, ".agent.properties")); err != nil {
		t.Fatal(err)
	}
	check("properties beside the link", link)
	if err := os.Rename(filepath.Join(link, ".agent.properties"), filepath.Join(link, ".agent.properties.bak")); err != nil {
		t.Fatal(err)
	}
	check("only their good copy beside the link", link)
}

func touch(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("devops.agent.id=a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
}
