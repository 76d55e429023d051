package repo

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestKeysGoThroughFiles(t *testing.T) {
	for _, kind := range []KeyKind{RSA, Ed25519} {
		key, err := GenerateKey(kind, "Name <mail@example.org>", day(1))
		if err != nil {
			t.Fatal(err)
		}
		if key.Owner() != "Name <mail@example.org>" || len(key.Fingerprint()) != 40 {
			t.Errorf("%s %s", key.Owner(), key.Fingerprint())
		}
		for _, word := range []string{"", "open sesame"} {
			text, err := key.MarshalSecret(word)
			if err != nil {
				t.Fatal(err)
			}
			again, err := ParseKey(text, word)
			if err != nil || again.Fingerprint() != key.Fingerprint() {
				t.Fatalf("%s with %q: %v", kind, word, err)
			}
			// What one half signs the other takes.
			s, err := newSigners([]*Key{again}, day(2))
			if err != nil {
				t.Fatal(err)
			}
			signature, err := s.detached([]byte("text"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := (signers{[]*Key{key}, day(3)}).openDetached([]byte("text"), signature); err != nil {
				t.Error(err)
			}
			if _, err := s.openDetached([]byte("Text"), signature); err == nil {
				t.Error("another text is signed as well")
			}
			if word == "" {
				continue
			}
			if _, err := ParseKey(text, ""); !errors.Is(err, ErrLocked) {
				t.Errorf("without the passphrase: %v", err)
			}
			if _, err := ParseKey(text, "wrong"); !errors.Is(err, ErrPassphrase) || strings.Contains(err.Error(), "wrong\"") {
				t.Errorf("with another one: %v", err)
			}
		}
		public, err := ArmouredPublic(key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseKey(public, ""); !errors.Is(err, ErrNoSecret) {
			t.Errorf("a public key: %v", err)
		}
		if binary, err := Public(key, key); err != nil || len(binary) < 2*100 || bytes.Contains(binary, []byte("PGP")) {
			t.Errorf("%d bytes, %v", len(binary), err)
		}
	}
}

func TestWhatIsNoKeyIsRefused(t *testing.T) {
	secret, err := aKey(t).MarshalSecret("")
	if err != nil {
		t.Fatal(err)
	}
	for why, text := range map[string][]byte{"nothing": nil, "text": []byte("key"), "large": make([]byte, maxKey+1), "half": secret[:len(secret)/2], "two": append(bytes.Clone(secret), secret...)} {
		if k, err := ParseKey(text, ""); err == nil && why != "two" || err == nil && k == nil {
			t.Errorf("%s: %v", why, err)
		}
	}
	for _, c := range [][2]string{{"dsa", "x"}, {"rsa", ""}, {"rsa", " <only@mail>"}} {
		if _, err := GenerateKey(KeyKind(c[0]), c[1], day(1)); err == nil {
			t.Errorf("%q was made", c)
		}
	}
	if _, err := newSigners([]*Key{aKey(t)}, day(1).AddDate(-1, 0, 0)); !errors.Is(err, ErrKeyExpired) {
		t.Errorf("before it was made: %v", err)
	}
}

// gpg and gpgv, which apt, dnf and people use, take our signatures, and we take keys and signatures of gpg.
func TestGPGAgrees(t *testing.T) {
	for _, name := range []string{"gpg", "gpgv"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip("this machine has no " + name)
		}
	}
	home, err := os.MkdirTemp("", "gpg") // short: the agent's socket is in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	})
	run := func(program string, args ...string) []byte {
		t.Helper()
		var out, errs bytes.Buffer
		cmd := exec.Command(program, append([]string{"--homedir", home}, args...)...)
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s %v: %v\n%s", program, args, err, &errs)
		}
		return out.Bytes()
	}
	run("gpg", "--batch", "--passphrase", "", "--quick-gen-key", "GPG <gpg@example.org>", "rsa2048", "sign", "never")
	theirs, err := ParseKey(run("gpg", "--batch", "--armor", "--export-secret-keys"), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []*Key{aKey(t), theirs} {
		out := t.TempDir()
		publish(t, Repository{Dir: out, Keys: []*Key{key}, URL: "https://example.org"}, demo(t, t.TempDir(), "1")...)
		ring := filepath.Join(out, "devops-agent.gpg")
		in := func(name string) string { return filepath.Join(out, filepath.FromSlash(name)) }
		text := run("gpgv", "--keyring", ring, "--output", "-", in("dists/stable/InRelease"))
		if release, err := os.ReadFile(in("dists/stable/Release")); err != nil || !bytes.Equal(bytes.TrimSpace(release), bytes.TrimSpace(text)) {
			t.Errorf("%q, %v", text, err)
		}
		run("gpgv", "--keyring", ring, in("dists/stable/Release.gpg"), in("dists/stable/Release"))
		run("gpgv", "--keyring", ring, in("repodata/repomd.xml.asc"), in("repodata/repomd.xml"))
		run("gpg", "--batch", "--import", in("devops-agent.asc"))
	}
	// Their signature of our text.
	file := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(file, []byte("text\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	signature := run("gpg", "--batch", "--armor", "--detach-sign", "--output", "-", file)
	if n, err := (signers{[]*Key{theirs}, day(1).AddDate(50, 0, 0)}).openDetached([]byte("text\n"), signature); err != nil || n != 1 {
		t.Errorf("%d, %v", n, err)
	}
}
