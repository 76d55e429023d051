package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// built puts the programs for Linux, and the agent of this machine, into bin of the desk.
func (d *desk) built() string {
	d.t.Helper()
	bin := filepath.Join(d.dir, "bin")
	build := func(out, folder, goos, goarch string) {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(bin, out), "../"+folder)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+goos, "GOARCH="+goarch)
		if text, err := cmd.CombinedOutput(); err != nil {
			d.t.Fatalf("build %s: %v\n%s", folder, err, text)
		}
	}
	for name, folder := range map[string]string{"devopsAgent": "agent", "devopsWorker": "worker", "upgrader": "upgrader"} {
		build(name+"_linux", folder, "linux", "amd64")
	}
	if own := hostProgram("devopsAgent"); own != "devopsAgent_linux" {
		build(own, "agent", runtime.GOOS, runtime.GOARCH)
	}
	return bin
}

func TestBuildListVerify(t *testing.T) {
	d := newDesk(t)
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	of := []string{"--bin", d.built(), "--root", root, "--version", "v1.2.4-dev.3", "--commit", "unknown", "--time", "1767225600"}
	fails := func(why string, args ...string) {
		t.Helper()
		if out, errs, code := d.run(args...); code != 1 || !strings.Contains(errs, why) {
			t.Errorf("%q: %d, want %q\n%s%s", args, code, why, out, errs)
		}
	}
	with := func(args ...string) []string { return append(args, of...) }
	dist := d.at("dist")
	out := d.good(with("build", "--only", "deb,rpm", "--arch", "amd64", "--out", dist)...)
	deb, rpm := filepath.Join(dist, "devops-agent_1.2.4~dev.3_amd64.deb"), filepath.Join(dist, "devops-agent-1.2.4~dev.3-1.x86_64.rpm")
	for _, want := range []string{deb, rpm, "devops-agent-java_1.2.4~dev.3_all.deb", "devops-agent-java-1.2.4~dev.3-1.noarch.rpm"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	for _, file := range []string{deb, rpm} {
		out := d.good("list", file)
		for _, want := range []string{"-rwxr-xr-x root/root", " /usr/lib/devops-agent/devopsAgent\n", "drwxr-x--- root/devops-agent         0 /etc/devops-agent/enroll.d\n",
			"/etc/devops-agent/agent.toml (config)\n", "/usr/bin/devopsAgent -> ../lib/devops-agent/devopsAgent\n", "devopsAgent-restart.8.gz"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in\n%s", filepath.Base(file), want, out)
			}
		}
	}
	if out := d.good("list", deb, rpm); !strings.HasPrefix(out, deb+":\n") || !strings.Contains(out, "\n\n"+rpm+":\n") {
		t.Errorf("two lists:\n%.300s", out)
	}
	if out := d.good(with("verify", dist)...); strings.Count(out, "as in the manifest") != 4 || !strings.Contains(out, "are as it says") {
		t.Errorf("verify:\n%s", out)
	}
	t.Run("signed rpms", func(t *testing.T) { (&desk{t: t, dir: d.dir, env: d.env}).rpmTakesOurSignatures(of) })
	// without the programs a package can still be whole or broken
	if out := d.good("verify", "--bin", d.at("nowhere"), deb); !strings.Contains(out, "whole; ") {
		t.Errorf("verify:\n%s", out)
	}
	whole, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	damaged := append([]byte{}, whole...)
	damaged[len(damaged)/2] ^= 1
	if err := os.WriteFile(deb, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	fails("md5sums says", with("verify", deb)...)
	fails("its content is not what was listed", with("verify", dist)...)
	if err := os.WriteFile(deb, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	// other programs than those it was made of
	program := filepath.Join(d.dir, "bin", "devopsWorker_linux")
	f, err := os.OpenFile(program, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString("more")
	}
	if err != nil || f.Close() != nil {
		t.Fatal(err)
	}
	d.bad("/usr/lib/devops-agent/devopsWorker: has ", with("verify", deb)...)
	d.bad("--bin and --root must be", with("verify", deb)...)

	fails("there is no format \"exe\"", with("build", "--only", "exe", "--out", dist)...)
	fails("no format is made for s390x", with("build", "--only", "deb", "--arch", "s390x", "--out", dist)...)
	d.bad("make build_all", "build", "--bin", d.at("nowhere"), "--root", root, "--version", "v1.0.0", "--time", "1", "--out", dist)
	fails("is not like v1.2.3", "build", "--bin", filepath.Join(d.dir, "bin"), "--root", root, "--version", "latest", "--time", "1", "--out", dist)
	fails("time of the packages", "build", "--bin", filepath.Join(d.dir, "bin"), "--root", root, "--version", "v1.0.0", "--time", "yesterday", "--out", dist)
	fails("is no package", "list", d.at("x.zip", "x"))
}

func TestTimesOfPackages(t *testing.T) {
	for text, want := range map[string]int64{"1767225600": 1767225600, "2026-01-01T08:00:00+08:00": 1767225600, "0": 0} {
		if got, err := moment(text); err != nil || got.Unix() != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, bad := range []string{"", "12x", "1e9", "2026-01-01", "unknown", " 1"} {
		if got, err := moment(bad); err == nil {
			t.Errorf("%q was taken as %v", bad, got)
		}
	}
}
