package trust

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What the minisign program (0.11) signed, both ways, is in testdata.
func TestSignaturesOfMinisign(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "minisign.pub"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ParseKey(string(text))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", "program")
	for _, kind := range []string{"hashed", "plain"} {
		sig, err := ReadSignature(path + "." + kind + ".minisig")
		if err != nil {
			t.Fatal(err)
		}
		claim, err := Policy{Keys: []Key{key}, Require: true}.Check(path, sig, agent.Target())
		want := agent
		want.KeyID = key.ID()
		if err != nil || claim != want {
			t.Errorf("%s: %v, %v", kind, claim, err)
		}
	}
}

// The program itself, where there is one: it takes our keys and signatures, and we take its.
func TestWithMinisign(t *testing.T) {
	program, err := exec.LookPath("minisign")
	if err != nil {
		t.Skip("needs a machine with minisign (apt-get install minisign)")
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, data []byte) string {
		t.Helper()
		if err := os.WriteFile(at(name), data, 0o600); err != nil {
			t.Fatal(err)
		}
		return at(name)
	}
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(program, args...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("minisign %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	file := write("file", []byte(strings.Repeat("program\n", 100000)))
	key, secret := makeKey(t)
	line, err := key.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	pub := write("ours.pub", line)
	write("file.minisig", signed(t, file, secret, agent))
	for _, args := range [][]string{{"-p", pub}, {"-P", key.String()}, {"-H", "-p", pub}} {
		out := run(append([]string{"-V", "-m", file}, args...)...)
		if !strings.Contains(out, "Trusted comment: name=devopsAgent version=v1.2.3 os=linux arch=amd64 time=1718000000") {
			t.Errorf("%s", out)
		}
	}
	policy := Policy{Keys: []Key{key}, Require: true}
	open := write("ours.key", mustMarshal(t, secret))
	for _, kind := range []string{"-H", "-l"} {
		run("-S", "-W", kind, "-s", open, "-m", file, "-x", at("theirs.minisig"), "-t", "name=devopsAgent version=v1.2.3 os=linux arch=amd64")
		sig, err := ReadSignature(at("theirs.minisig"))
		if err != nil {
			t.Fatal(err)
		}
		if claim, err := policy.Check(file, sig, agent.Target()); err != nil || claim.Version != "v1.2.3" {
			t.Errorf("%v: %v, %v", kind, claim, err)
		}
	}

	// The other way round: a key of theirs.
	run("-G", "-W", "-p", at("theirs.pub"), "-s", at("theirs.key"))
	text, err := os.ReadFile(at("theirs.key"))
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := ParseSecret(text, "")
	if err != nil {
		t.Fatal(err)
	}
	text, err = os.ReadFile(at("theirs.pub"))
	if err != nil {
		t.Fatal(err)
	}
	public, err := ParseKey(string(text))
	if err != nil || public.String() != theirs.Key().String() {
		t.Errorf("%v, %v", public, err)
	}
	write("file.minisig", signed(t, file, theirs, agent))
	run("-V", "-m", file, "-p", at("theirs.pub"))
}
