package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// rpmTakesOurSignatures: "rpm -K", which dnf does as well, knows packages by the public half of a key of "repo key", and
// refuses changed ones. Both kinds of keys, one with a password. It is part of the test that has programs to build packages of.
func (d *desk) rpmTakesOurSignatures(of []string) {
	t := d.t
	program, err := exec.LookPath("rpm")
	if err != nil {
		t.Skip("needs rpm")
	}
	word := d.at("word", "open sesame\n")
	build := slices.Concat([]string{"build", "--only", "rpm", "--arch", "amd64"}, of)
	rpm := func(args ...string) (string, error) {
		cmd := exec.Command(program, args...)
		cmd.Env = append(os.Environ(), "HOME="+d.dir, "LC_ALL=C")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	unsigned := d.at("plain")
	d.good(slices.Concat(build, []string{"--out", unsigned})...)
	for kind, secret := range map[string][]string{"rsa": {"--password-file", word}, "ed25519": {"--no-password"}} {
		t.Run(kind, func(t *testing.T) {
			d := &desk{t: t, dir: d.dir, env: d.env}
			key, dist, keys, none := d.at(kind+".key"), d.at(kind), d.at(kind+".db"), d.at("empty.db")
			d.good(slices.Concat([]string{"repo", "key", "--out", key, "--kind", kind, "--owner", "Desk <desk@example.org>"}, secret)...)
			sign := []string{"--rpm-key", key}
			if kind == "rsa" {
				sign = append(sign, "--rpm-key-password-file", word)
				if _, errs, code := d.run(slices.Concat(build, []string{"--out", dist, "--rpm-key", key, "--rpm-key-password-file", d.at("wrong", "x")})...); code != 1 || strings.Contains(errs, "sesame") {
					t.Errorf("the wrong password: %d %s", code, errs)
				}
			}
			d.good(slices.Concat(build, []string{"--out", dist}, sign)...)
			for _, db := range []string{keys, none} {
				if out, err := rpm("--dbpath", db, "--initdb"); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
			}
			if out, err := rpm("--dbpath", keys, "--import", key+".pub"); err != nil {
				t.Fatalf("rpm does not take the public key: %v\n%s", err, out)
			}
			files, err := filepath.Glob(filepath.Join(dist, "*.rpm"))
			if err != nil || len(files) != 2 {
				t.Fatalf("%q, %v", files, err)
			}
			for _, file := range files {
				if out, err := rpm("--dbpath", keys, "-K", file); err != nil || !strings.HasSuffix(out, ": digests signatures OK\n") {
					t.Errorf("%v\n%s", err, out)
				}
				if out, err := rpm("--dbpath", none, "-K", file); err == nil || !strings.Contains(out, "SIGNATURES NOT OK") {
					t.Errorf("nobody knows the key, and yet: %v\n%s", err, out)
				}
				whole, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				whole[len(whole)-1] ^= 1
				other := d.at("changed.rpm", string(whole))
				if out, err := rpm("--dbpath", keys, "-K", other); err == nil || !strings.Contains(out, "NOT OK") {
					t.Errorf("a changed package: %v\n%s", err, out)
				}
				// without the signature there are the digests alone, which anybody can write
				if out, err := rpm("--dbpath", keys, "-K", filepath.Join(unsigned, filepath.Base(file))); err != nil || !strings.HasSuffix(out, ": digests OK\n") {
					t.Errorf("unsigned: %v\n%s", err, out)
				}
			}
			if out := d.good(slices.Concat([]string{"verify"}, of, []string{dist})...); strings.Count(out, "as in the manifest") != 2 {
				t.Errorf("verify of signed packages:\n%s", out)
			}
		})
	}
}
