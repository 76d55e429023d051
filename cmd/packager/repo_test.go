package main

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm"

	"github.com/devops-agent/devops-agent/packaging"
)

// thing makes a small package on the desk.
func (d *desk) thing(format, version, content string) string {
	d.t.Helper()
	in := &nfpm.Info{Name: "thing", Arch: "amd64", Platform: "linux", Version: version, VersionSchema: "none", Release: map[string]string{"rpm": "1"}[format],
		Maintainer: "Desk <desk@example.org>", Description: "A thing", License: "MIT", MTime: time.Unix(1767225600, 0),
		Overridables: nfpm.Overridables{
			Contents: files.Contents{{Source: d.at("content"+content, content), Destination: "/usr/share/thing", FileInfo: &files.ContentFileInfo{Mode: 0o644}}},
			RPM:      nfpm.RPM{BuildHost: "desk"},
		}}
	if err := nfpm.PrepareForPackager(nfpm.WithDefaults(in), format); err != nil {
		d.t.Fatal(err)
	}
	packer, err := nfpm.Get(format)
	if err != nil {
		d.t.Fatal(err)
	}
	var b bytes.Buffer
	if err := packer.Package(in, &b); err != nil {
		d.t.Fatal(err)
	}
	return d.at("thing-"+version+content+"."+format, b.String())
}

func TestRepositories(t *testing.T) {
	d := newDesk(t)
	key, dir := d.at("repo.key"), d.at("srv/repo")
	d.env["PACKAGER_PASSWORD"] = "open sesame"
	out := d.good("repo", "key", "--out", key, "--kind", "ed25519", "--owner", "Desk <desk@example.org>")
	for path, mode := range map[string]os.FileMode{key: 0o600, key + ".pub": 0o644} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm()&^mode != 0 && runtime.GOOS != "windows" {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	secret, err := os.ReadFile(key)
	if err != nil || !strings.HasPrefix(string(secret), "-----BEGIN PGP PRIVATE KEY BLOCK-----") || strings.Contains(out, "BEGIN") || !strings.Contains(out, " of Desk <desk@example.org> in ") {
		t.Errorf("%v\n%s", err, out)
	}
	d.bad("is there already", "repo", "key", "--out", key)

	args := []string{"repo", "--out", dir, "--key", key, "--url", "http://example.org/repo", "--keep", "1"}
	out = d.good(append(args, d.thing("deb", "1", ""), d.thing("rpm", "1", ""))...)
	if !strings.Contains(out, "+ thing-1-1.x86_64.rpm\n+ thing_1_amd64.deb\n") || !strings.Contains(out, "apt and yum indexes are new") {
		t.Error(out)
	}
	if out = d.good(append(args, d.thing("deb", "1", ""))...); !strings.HasSuffix(out, ": nothing new\n") {
		t.Error(out)
	}
	if out = d.good(append(args, d.thing("deb", "2", ""))...); !strings.Contains(out, "+ thing_2_amd64.deb\n- thing_1_amd64.deb\n") || !strings.Contains(out, "the apt index is new") {
		t.Error(out)
	}
	d.bad("with other content", append(args, d.thing("deb", "2", "other"))...)
	for _, name := range []string{"devops-agent.gpg", "devops-agent.asc", "devops-agent.sources", "devops-agent.repo", "dists/stable/InRelease", "repodata/repomd.xml.asc"} {
		if _, err := os.Stat(filepath.Join(dir, filepath.FromSlash(name))); err != nil {
			t.Error(err)
		}
	}

	// Passwords.
	delete(d.env, "PACKAGER_PASSWORD")
	d.bad("no password", args...)
	for _, file := range []string{d.at("word", "open sesame\n"), "-"} {
		d.in = "open sesame"
		d.good(append(args, "--password-file", file)...)
	}
	if _, errs, code := d.run(append(args, "--password-file", d.at("wrong", "x"))...); code != 1 || !strings.Contains(errs, "the passphrase is wrong") {
		t.Errorf("%d %s", code, errs)
	}

	// Another key, and both.
	d.good("repo", "key", "--out", d.at("next.key"), "--kind", "ed25519", "--no-password")
	next := []string{"repo", "--out", dir, "--key", d.at("next.key")}
	d.bad("dists/stable/InRelease: signature", next...)
	d.good(append(next, "--key", key, "--password-file", d.at("word"))...)
	d.good(next...)
}

func TestMistakesAtTheRepository(t *testing.T) {
	d := newDesk(t)
	key := d.at("k")
	d.good("repo", "key", "--out", key, "--kind", "ed25519", "--no-password")
	for _, c := range []struct {
		why  string
		args []string
	}{
		{"--out is missing", []string{"repo", "--key", key}},
		{"--key is missing", []string{"repo", "--out", d.at("r")}},
		{"--out is missing", []string{"repo", "key"}},
		{"no password", []string{"repo", "key", "--out", d.at("new")}},
		{"--no-password as well", []string{"repo", "key", "--out", d.at("new"), "--no-password", "--password-file", key}},
	} {
		d.bad(c.why, c.args...)
	}
	for _, c := range []struct {
		why  string
		args []string
	}{
		{"read key: open ", []string{"repo", "--out", d.at("r"), "--key", d.at("missing")}},
		{"it is a public key", []string{"repo", "--out", d.at("r"), "--key", key + ".pub"}},
		{"no kind \"dsa\"", []string{"repo", "key", "--out", d.at("new"), "--kind", "dsa", "--no-password"}},
		{"neither a .deb nor a binary .rpm", []string{"repo", "--out", d.at("r"), "--key", key, d.at("text", "some text")}},
		{"want http(s)://HOST/PATH", []string{"repo", "--out", d.at("r"), "--key", key, "--url", "example.org"}},
	} {
		if _, errs, code := d.run(c.args...); code != 1 || !strings.Contains(errs, c.why) {
			t.Errorf("%q: %d %s", c.args, code, errs)
		}
	}
	for _, name := range []string{"new", "new.pub", "r/dists"} {
		if _, err := os.Stat(d.at(name)); err == nil {
			t.Errorf("%s was made", name)
		}
	}
}

// TestSumsAreSigned: what is beside packages, without making any.
func TestSumsAreSigned(t *testing.T) {
	d := newDesk(t)
	key, dist := d.at("release.key"), filepath.Dir(d.at("dist/devops-agent_1.2.3_amd64.deb", "a package"))
	d.good("keygen", "--out", key, "--no-password")
	var out bytes.Buffer
	s := &streams{in: strings.NewReader(""), out: &out, err: &out, env: func(string) string { return "" }}
	secret, sign, err := (&sumsKey{file: key}).open(s)
	if err != nil || !sign {
		t.Fatalf("%t, %v", sign, err)
	}
	r := packaging.Release{Version: "v1.2.3", Commit: "unknown", Time: time.Unix(1767225600, 0), Bin: filepath.Join(d.dir, "bin"), Root: filepath.Join("..", "..")}
	for _, name := range []string{"man/devopsAgent.8", "completion/bash", "completion/zsh", "completion/fish"} {
		d.at("docs/"+name, "text\n")
	}
	r.Docs = d.at("docs")
	if err := finish(s, r, nil, dist, secret, sign); err != nil {
		t.Fatal(err)
	}
	if good, err := packaging.CheckSums(dist); err != nil || strings.Join(good, " ") != "devops-agent-1.2.3.cdx.json devops-agent_1.2.3_amd64.deb" {
		t.Errorf("%q, %v", good, err)
	}
	sums := filepath.Join(dist, packaging.SumsName)
	if out := d.good("verify", "--pub", key+".pub", "--name", packaging.SumsName, "--os", "any", "--arch", "any", sums); !strings.Contains(out, "SHA256SUMS v1.2.3 any/any") {
		t.Error(out)
	}
	// Another list takes the signature of the one before away.
	d.at("dist/devops-agent_1.2.3_arm64.deb", "another package")
	if err := finish(s, r, nil, dist, secret, false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(sums + ".minisig"); err == nil {
		t.Error("the signature of another list is there")
	}
	if _, err := packaging.CheckSums(dist); err != nil {
		t.Error(err)
	}
	if _, _, err := (&sumsKey{file: d.at("missing")}).open(s); err == nil {
		t.Error("a key that is not there")
	}
}
