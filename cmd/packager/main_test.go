package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/devops-agent/devops-agent/cmd/internal/cli"
	"github.com/devops-agent/devops-agent/upgrader/trust"
)

// desk is a directory where packager is used.
type desk struct {
	t   *testing.T
	dir string
	env map[string]string
	in  string
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	return &desk{t: t, dir: t.TempDir(), env: map[string]string{}}
}

// at names a file of the desk and writes it when it has content.
func (d *desk) at(name string, content ...string) string {
	d.t.Helper()
	path := filepath.Join(d.dir, filepath.FromSlash(name))
	if len(content) > 0 {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content[0]), 0o600)); err != nil {
			d.t.Fatal(err)
		}
	}
	return path
}

// run is one call; what it says in the end is as a person sees it.
func (d *desk) run(args ...string) (out, errs string, code int) {
	d.t.Helper()
	var o, e bytes.Buffer
	root := commands(&streams{in: strings.NewReader(d.in), out: &o, err: &e, env: func(name string) string { return d.env[name] }})
	root.SetArgs(args)
	code = cli.Report(&e, "packager", root.ExecuteContext(d.t.Context()))
	return o.String(), e.String(), code
}

// good is a call that must not fail.
func (d *desk) good(args ...string) string {
	d.t.Helper()
	out, errs, code := d.run(args...)
	if code != 0 || errs != "" {
		d.t.Fatalf("%q: %d\n%s", args, code, errs)
	}
	return out
}

// bad is a call that must fail and say why.
func (d *desk) bad(why string, args ...string) {
	d.t.Helper()
	out, errs, code := d.run(args...)
	if code != 1 || !strings.Contains(errs, why) || !strings.Contains(errs, "hint: ") {
		d.t.Errorf("%q: %d, want %q\n%s%s", args, code, why, out, errs)
	}
}

func TestKeysAndSignatures(t *testing.T) {
	d := newDesk(t)
	key := d.at("release.key")
	out := d.good("keygen", "--out", key, "--no-password")
	for path, mode := range map[string]os.FileMode{key: 0o600, key + ".pub": 0o644} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm()&^mode != 0 && runtime.GOOS != "windows" {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	text, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	public, err := trust.ParseKey(string(text))
	if err != nil || !strings.Contains(out, `keys = ["`+public.String()+`"]`) {
		t.Errorf("%v\n%s", err, out)
	}
	secret, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out, strings.Split(string(secret), "\n")[1][:40]) {
		t.Error("the secret key is in the output")
	}
	d.bad("is there already", "keygen", "--out", key, "--no-password")
	if now, err := os.ReadFile(key); err != nil || !bytes.Equal(now, secret) {
		t.Errorf("the key was written over: %v", err)
	}

	names := []string{"upgrade/devopsAgent_linux", "upgrade/devopsAgent_linux_arm64", "upgrade/upgrader.exe", "upgrade/devopsDaemon_macos_arm64", "jar/worker-agent.jar",
		"jre/linux/jdk17.zip", "jre/macos_arm64/jre.zip", "script/linux/agent_docker_init.sh"}
	targets := []string{"devopsAgent linux/amd64", "devopsAgent linux/arm64", "upgrader windows/amd64", "devopsDaemon darwin/arm64", "worker-agent.jar any/any",
		"jdk17.zip linux/amd64", "jdk.zip darwin/arm64", "agent_docker_init.sh linux/any"}
	var files []string
	for _, name := range names {
		files = append(files, d.at(name, "content of "+name))
	}
	out = d.good(append([]string{"sign", "--key", key, "--version", "v1.2.3"}, files...)...)
	for i, file := range files {
		if !strings.Contains(out, file+": signed as "+targets[i]+" v1.2.3\n") {
			t.Errorf("%s\n%s", file, out)
		}
		files = append(files, file+".minisig")
	}
	d.good(append([]string{"sign", "--key", key, "--version", "v1.2.4"}, files...)...) // again; the signatures are not signed
	if _, err := os.Stat(files[0] + ".minisig.minisig"); err == nil {
		t.Error("a signature was signed")
	}
	for _, pub := range []string{key + ".pub", public.String()} {
		out = d.good(append([]string{"verify", "--pub", pub}, files...)...)
		if strings.Count(out, ": good, ") != len(names) || !strings.Contains(out, "devopsAgent v1.2.4 linux/arm64, key "+public.ID()) {
			t.Errorf("%s", out)
		}
	}

	// What an agent would refuse.
	other := d.at("other.key")
	d.good("keygen", "--out", other, "--no-password")
	d.bad("a key that is not trusted", "verify", "--pub", other+".pub", files[0])
	d.good("verify", "--pub", other+".pub", "--pub", key+".pub", files[0])
	d.bad("it is not signed", "verify", "--pub", key+".pub", d.at("upgrade/devopsWorker_linux", "x"))
	d.at("upgrade/devopsAgent_linux", "something else")
	out, errs, code := d.run("verify", "--pub", key+".pub", files[0], files[1])
	if code != 1 || !strings.Contains(errs, "it is not what was signed") || !strings.Contains(out, files[1]+": good") {
		t.Errorf("%d %s%s", code, out, errs)
	}
	sig, err := os.ReadFile(files[4] + ".minisig")
	if err != nil {
		t.Fatal(err)
	}
	d.at("upgrade/devopsAgent_linux", "content of jar/worker-agent.jar")
	d.at("upgrade/devopsAgent_linux.minisig", string(sig))
	d.bad("signed as something else", "verify", "--pub", key+".pub", files[0])
}

func TestWhatAFileIsCanBeSaid(t *testing.T) {
	d := newDesk(t)
	key := d.at("k")
	d.good("keygen", "--out", key, "--no-password")
	sign := func(args ...string) []string {
		return append([]string{"sign", "--key", key, "--version", "v1.2.3"}, args...)
	}
	exe, zip := d.at("upgrader.exe", "x"), d.at("tmp/bundle.zip", "x")
	if out := d.good(sign("--arch", "arm64", exe)...); !strings.Contains(out, "signed as upgrader windows/arm64 v1.2.3") {
		t.Error(out)
	}
	d.good("verify", "--pub", key+".pub", "--arch", "arm64", exe)
	d.bad("signed as something else", "verify", "--pub", key+".pub", exe)
	d.bad("does not say", sign(zip)...)
	d.bad("does not say", sign("--name", "bundle", "--os", "linux", zip)...)
	if out := d.good(sign("--name", "bundle", "--os", "any", "--arch", "any", zip)...); !strings.Contains(out, "signed as bundle any/any v1.2.3") {
		t.Error(out)
	}
	if _, errs, code := d.run(sign("--name", "a b", exe)...); code != 1 || !strings.Contains(errs, "no usable name") {
		t.Errorf("%d %s", code, errs)
	}
	if _, errs, code := d.run("sign", "--key", key, "--version", "latest", exe); code != 1 || !strings.Contains(errs, "no usable version") {
		t.Errorf("%d %s", code, errs)
	}
	// One that cannot be signed stops before anything is written.
	last := d.at("devopsAgent_linux", "x")
	d.bad("does not say", sign(last, zip)...)
	if _, err := os.Stat(last + ".minisig"); err == nil {
		t.Error("it began")
	}
}

// Two calls at once: the second one finds the file only when it writes.
func TestAKeyIsNeverWrittenOver(t *testing.T) {
	d := newDesk(t)
	for _, there := range []string{"k", "k.pub"} {
		path := d.at(there, "precious")
		if _, err := writeKey(d.at("k"), ""); !errors.Is(err, os.ErrExist) {
			t.Errorf("%v", err)
		}
		if text, err := os.ReadFile(path); err != nil || string(text) != "precious" {
			t.Errorf("%s: %q, %v", there, text, err)
		}
		if entries, err := os.ReadDir(d.dir); err != nil || len(entries) != 1 {
			t.Errorf("%v, %v", entries, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMistakesAtThePackager(t *testing.T) {
	d := newDesk(t)
	key := d.at("k")
	d.good("keygen", "--out", key, "--no-password")
	file := d.at("devopsAgent_linux", "x")
	for _, c := range []struct {
		why  string
		args []string
	}{
		{"--out is missing", []string{"keygen"}},
		{"no password", []string{"keygen", "--out", d.at("new")}},
		{"--no-password as well", []string{"keygen", "--out", d.at("new"), "--no-password", "--password-file", file}},
		{"--key is missing", []string{"sign", "--version", "v1", file}},
		{"--version is missing", []string{"sign", "--key", key, file}},
		{"--pub is missing", []string{"verify", file}},
		{"no file to sign", []string{"sign", "--key", key, "--version", "v1", file + ".minisig"}},
		{"requires at least 1 arg", []string{"verify", "--pub", key}},
		{"it is a secret key", []string{"verify", "--pub", key, file}},
		{"unknown flag: --pasword", []string{"keygen", "--out", key, "--pasword", "x"}},
		{`unknown command "sing"`, []string{"sing"}},
	} {
		d.bad(c.why, c.args...)
	}
	for _, c := range []struct {
		why  string
		args []string
	}{
		{"read key: open ", []string{"sign", "--key", d.at("missing"), "--version", "v1", file}},
		{"read key: open ", []string{"verify", "--pub", d.at("missing"), file}},
		{"not a secret key", []string{"sign", "--key", file, "--version", "v1", file}},
		{"this key has no password", []string{"sign", "--key", key, "--password-file", file, "--version", "v1", file}},
		{"missing", []string{"keygen", "--out", d.at("missing/k"), "--no-password"}},
	} {
		if _, errs, code := d.run(c.args...); code != 1 || !strings.Contains(errs, c.why) {
			t.Errorf("%q: %d %s", c.args, code, errs)
		}
	}
	if _, err := os.Stat(d.at("new")); err == nil {
		t.Error("a key was made")
	}
}

func TestPasswordsComeFromFilesAndNeverFromArguments(t *testing.T) {
	for _, c := range []struct {
		text, want, wrong string
	}{
		{"open sesame\nmore\n", "open sesame", ""}, {"crlf\r\n", "crlf", ""}, {"bare", "bare", ""}, {" blanks \n", " blanks ", ""},
		{"", "", "no password"}, {"\nx", "", "no password"}, {strings.Repeat("x", 1025), "", "more than 1024 bytes"},
		{strings.Repeat("x", 1024) + "\r\n", strings.Repeat("x", 1024), ""},
	} {
		d := newDesk(t)
		s := &streams{in: strings.NewReader(c.text), env: func(string) string { return "of the environment" }}
		for _, file := range []string{"-", d.at("p", c.text)} {
			got, err := (&password{file: file}).read(s, true)
			if got != c.want || (err == nil) != (c.wrong == "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("%.20q: %q, %v", c.text, got, err)
			}
		}
		if got, err := (&password{}).read(s, true); got != "of the environment" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	}
}

// The built program with a key that has a password, which costs seconds each time, and minisign, where there is one, with the
// same key.
func TestTheProgram(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("needs a machine with Go, which Wine's is not:", err)
	}
	d := newDesk(t)
	program := d.at("packager.exe")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("build the program: %v\n%s", err, out)
	}
	run := func(in string, env []string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.Env = append(os.Environ(), env...)
		cmd.Stdin = strings.NewReader(in)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	key, file := d.at("k"), d.at("devopsAgent_linux", "program")
	run("", nil, program, "keygen", "--out", key, "--password-file", d.at("password", "open sesame\n"))
	run("", []string{passwordVariable + "=open sesame"}, program, "sign", "--key", key, "--version", "v1.2.3", file)
	if out := run("", nil, program, "verify", "--pub", key+".pub", file); !strings.Contains(out, "good, devopsAgent v1.2.3 linux/amd64") {
		t.Errorf("%s", out)
	}
	if out := run("", nil, program, "version"); !strings.HasPrefix(out, "v") {
		t.Errorf("%s", out)
	}
	cmd := exec.CommandContext(t.Context(), program, "sign", "--key", key, "--version", "v1.2.3", file)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "no password") {
		t.Errorf("without a password: %v\n%s", err, out)
	}
	minisign, err := exec.LookPath("minisign")
	if err != nil {
		t.Log("minisign was not tried: needs a machine with it (apt-get install minisign)")
		return
	}
	run("", nil, minisign, "-V", "-m", file, "-p", key+".pub")
	run("open sesame\n", nil, minisign, "-S", "-s", key, "-m", file, "-t", "name=devopsAgent version=v1.2.4 os=linux arch=amd64")
	if out := run("", nil, program, "verify", "--pub", key+".pub", file); !strings.Contains(out, "good, devopsAgent v1.2.4 linux/amd64") {
		t.Errorf("%s", out)
	}
}
