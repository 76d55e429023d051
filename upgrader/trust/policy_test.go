package trust

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aead.dev/minisign"
)

// makeKey returns a fresh key.
func makeKey(t *testing.T) (Key, Secret) {
	t.Helper()
	key, secret, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key, secret
}

func makeFile(t *testing.T, data string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "devopsAgent")
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func signed(t *testing.T, path string, secret Secret, claim Claim) []byte {
	t.Helper()
	sig, err := Sign(path, secret, claim)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// commented signs the file at path with any trusted comment, hashed or not.
func commented(t *testing.T, path string, secret Secret, hashed bool, comment string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !hashed {
		return minisign.SignWithComments(secret.private, data, comment, "x")
	}
	r := minisign.NewReader(bytes.NewReader(data))
	if _, err := bytes.NewBuffer(nil).ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	return r.SignWithComments(secret.private, comment, "x")
}

var agent = Claim{Name: "devopsAgent", Version: "v1.2.3", OS: "linux", Arch: "amd64", Time: time.Unix(1718000000, 0).UTC()}

func reasons() []error {
	return []error{ErrUnsigned, ErrWrongKey, ErrTampered, ErrSwapped, ErrOlder, ErrMalformed}
}

// refused fails unless err is of one kind of refusal, and of no other, names the file and has a hint.
func refused(t *testing.T, what string, path string, claim Claim, err, want error) {
	t.Helper()
	var hinter interface{ Hint() string }
	if !errors.Is(err, want) || !strings.Contains(err.Error(), path) || !errors.As(err, &hinter) || hinter.Hint() == "" || claim != (Claim{}) {
		t.Errorf("%s: %v, %v; want %v", what, claim, err, want)
	}
	for _, other := range reasons() {
		if other != want && errors.Is(err, other) {
			t.Errorf("%s: %v is also %v", what, err, other)
		}
	}
}

func TestCheckTakesWhatWasSigned(t *testing.T) {
	key, secret := makeKey(t)
	other, _ := makeKey(t)
	path := makeFile(t, "program")
	want := agent
	want.KeyID = key.ID()
	for _, require := range []bool{true, false} {
		p := Policy{Keys: []Key{other, key}, Require: require}
		got, err := p.Check(path, signed(t, path, secret, agent), agent.Target())
		if err != nil || got != want {
			t.Errorf("%v, %v", got, err)
		}
		for _, hashed := range []bool{true, false} {
			sig := commented(t, path, secret, hashed, "arch=amd64 later=x  time=1718000000 os=linux word version=v1.2.3 name=devopsAgent")
			if got, err = p.Check(path, sig, agent.Target()); err != nil || got != want {
				t.Errorf("hashed %v: %v, %v", hashed, got, err)
			}
			windows := bytes.ReplaceAll(sig, []byte("\n"), []byte("\r\n"))
			if got, err = p.Check(path, windows, agent.Target()); err != nil || got != want {
				t.Errorf("with line ends of Windows: %v, %v", got, err)
			}
		}
	}
	empty := makeFile(t, "")
	if _, err := (Policy{Keys: []Key{key}}).Check(empty, signed(t, empty, secret, agent), agent.Target()); err != nil {
		t.Errorf("an empty file: %v", err)
	}
}

func TestCheckOfWhatIsNotSigned(t *testing.T) {
	key, secret := makeKey(t)
	path := makeFile(t, "program")
	if claim, err := (Policy{}).Check(path, nil, agent.Target()); claim != (Claim{}) || err != nil {
		t.Errorf("%v, %v", claim, err)
	}
	if claim, err := (Policy{Keys: []Key{key}}).Check(path, nil, agent.Target()); claim != (Claim{}) || err != nil {
		t.Errorf("%v, %v", claim, err)
	}
	// Without keys there is nothing that a signature could be checked with.
	if claim, err := (Policy{}).Check(path, signed(t, path, secret, agent), agent.Target()); claim != (Claim{}) || err != nil {
		t.Errorf("%v, %v", claim, err)
	}
	claim, err := (Policy{Keys: []Key{key}, Require: true}).Check(path, nil, agent.Target())
	refused(t, "no signature", path, claim, err, ErrUnsigned)
	claim, err = (Policy{Require: true}).Check(path, nil, agent.Target())
	refused(t, "no signature and no key", path, claim, err, ErrUnsigned)
	claim, err = (Policy{Require: true}).Check(path, signed(t, path, secret, agent), agent.Target())
	refused(t, "no key", path, claim, err, ErrWrongKey)
}

// lines takes the text of a signature apart.
func lines(sig []byte) []string { return strings.Split(strings.TrimSuffix(string(sig), "\n"), "\n") }

func joined(lines ...string) []byte { return []byte(strings.Join(lines, "\n") + "\n") }

// flipped changes one bit of a line of base64.
func flipped(t *testing.T, line string, bit int) string {
	t.Helper()
	data, err := base64.StdEncoding.DecodeString(line)
	if err != nil {
		t.Fatal(err)
	}
	data[bit/8] ^= 1 << (bit % 8)
	return base64.StdEncoding.EncodeToString(data)
}

func TestCheckRefusesAttacks(t *testing.T) {
	key, secret := makeKey(t)
	_, stranger := makeKey(t)
	path := makeFile(t, "program")
	sig := signed(t, path, secret, agent)
	part := lines(sig)
	elsewhere := makeFile(t, "another program")
	older := lines(signed(t, path, secret, Claim{Name: "devopsAgent", Version: "v1.0.0", OS: "linux", Arch: "amd64"}))
	impostor := lines(signed(t, path, stranger, agent))
	own, err := base64.StdEncoding.DecodeString(part[1])
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := base64.StdEncoding.DecodeString(impostor[1])
	if err != nil {
		t.Fatal(err)
	}
	copy(theirs[2:10], own[2:10]) // a stranger's signature that says that it is ours
	for _, attack := range []struct {
		name string
		sig  []byte
		want error
	}{
		{"another key", joined(impostor...), ErrWrongKey},
		{"another key under our id", joined(part[0], base64.StdEncoding.EncodeToString(theirs), part[2], impostor[3]), ErrTampered},
		{"another file", signed(t, elsewhere, secret, agent), ErrTampered},
		{"another version in the comment", joined(part[0], part[1], strings.Replace(part[2], "v1.2.3", "v9.9.9", 1), part[3]), ErrTampered},
		{"the comment of another signature", joined(part[0], part[1], older[2], older[3]), nil}, // the file is the same: deterministic, and so good
		{"a bit of the key id", joined(part[0], flipped(t, part[1], 16), part[2], part[3]), ErrWrongKey},
		{"a bit of the signature", joined(part[0], flipped(t, part[1], 80), part[2], part[3]), ErrTampered},
		{"the last bit of the signature", joined(part[0], flipped(t, part[1], 74*8-1), part[2], part[3]), ErrTampered},
		{"a bit of the comment's signature", joined(part[0], part[1], part[2], flipped(t, part[3], 0)), ErrTampered},
		{"an unknown kind", joined(part[0], flipped(t, part[1], 1), part[2], part[3]), ErrMalformed},
		{"called an old signature", joined(part[0], flipped(t, part[1], 8+5), part[2], part[3]), ErrTampered},
		{"empty", []byte{}, ErrMalformed},
		{"blank", []byte("\n \n"), ErrMalformed},
		{"without comment", joined(part[0], part[1]), ErrMalformed},
		{"without its last line", joined(part[0], part[1], part[2]), ErrMalformed},
		{"with one more line", append(bytes.Clone(sig), "more\n"...), ErrMalformed},
		{"not base64", joined(part[0], "?"+part[1][1:], part[2], part[3]), ErrMalformed},
		{"a web page", []byte("<html><body>Please log in</body></html>\n\n\n\n"), ErrMalformed},
		{"zeros", make([]byte, 300), ErrMalformed},
		{"endless", append(bytes.Clone(sig), bytes.Repeat([]byte("\n"), 1<<20)...), ErrMalformed},
		{"oversized", joined("untrusted comment: "+strings.Repeat("x", MaxSignature), part[1], part[2], part[3]), ErrMalformed},
		{"the comment of minisign", commented(t, path, secret, true, "timestamp:1718000000\tfile:devopsAgent\thashed"), ErrMalformed},
		{"a name twice", commented(t, path, secret, true, "name=devopsAgent version=v1.2.3 os=linux arch=amd64 name=devopsAgent"), ErrMalformed},
		{"no version", commented(t, path, secret, true, "name=devopsAgent os=linux arch=amd64"), ErrMalformed},
		{"a wild version", commented(t, path, secret, true, "name=devopsAgent version=latest os=linux arch=amd64"), ErrMalformed},
		{"a path for a name", commented(t, path, secret, true, "name=../devopsAgent version=v1.2.3 os=linux arch=amd64"), ErrMalformed},
		{"a wild time", commented(t, path, secret, true, "name=devopsAgent version=v1.2.3 os=linux arch=amd64 time=-1"), ErrMalformed},
		{"another program", commented(t, path, secret, true, "name=devopsDaemon version=v1.2.3 os=linux arch=amd64"), ErrSwapped},
		{"a worker", signed(t, path, secret, Claim{Name: "worker-agent.jar", Version: "v1.2.3", OS: Any, Arch: Any}), ErrSwapped},
		{"another system", commented(t, path, secret, true, "name=devopsAgent version=v1.2.3 os=macos arch=amd64"), ErrSwapped},
		{"another architecture", commented(t, path, secret, true, "name=devopsAgent version=v1.2.3 os=linux arch=arm64"), ErrSwapped},
	} {
		for _, require := range []bool{true, false} {
			claim, err := Policy{Keys: []Key{key}, Require: require}.Check(path, attack.sig, agent.Target())
			if attack.want == nil {
				if err != nil {
					t.Errorf("%s: %v", attack.name, err)
				}
				continue
			}
			refused(t, attack.name, path, claim, err, attack.want)
		}
	}
	for n := range sig { // cut off anywhere
		claim, err := Policy{Keys: []Key{key}}.Check(path, sig[:n:n], agent.Target())
		if n == len(sig)-1 { // only the last line end is missing
			if err != nil {
				t.Errorf("without its last line end: %v", err)
			}
			continue
		}
		refused(t, fmt.Sprintf("cut off after %d bytes", n), path, claim, err, ErrMalformed)
	}
}

// A hashed signature can be called an old one. It then fits a file that is the hash, and that nobody signed.
func TestAHashIsNotTheFile(t *testing.T) {
	key, secret := makeKey(t)
	path := makeFile(t, "program")
	sig := signed(t, path, secret, agent)
	part := lines(sig)
	relabelled := joined(part[0], flipped(t, part[1], 8+5), part[2], part[3])
	digest := filepath.Join(t.TempDir(), "hash")
	sum := hashOf(t, path)
	if err := os.WriteFile(digest, sum, 0o600); err != nil {
		t.Fatal(err)
	}
	if !minisign.Verify(key.public, sum, relabelled) {
		t.Fatal("the attack is none; look at this test again")
	}
	claim, err := Policy{Keys: []Key{key}}.Check(digest, relabelled, agent.Target())
	refused(t, "the hash as a file", digest, claim, err, ErrTampered)
}

func TestAnyFitsAll(t *testing.T) {
	key, secret := makeKey(t)
	path := makeFile(t, "jar")
	p := Policy{Keys: []Key{key}, Require: true}
	jar := Claim{Name: "worker-agent.jar", Version: "v1.2.3", OS: Any, Arch: Any}
	sig := signed(t, path, secret, jar)
	for _, want := range []Target{{"worker-agent.jar", Any, Any}, {"worker-agent.jar", "linux", "arm64"}} {
		if claim, err := p.Check(path, sig, want); err != nil || claim.Version != "v1.2.3" {
			t.Errorf("%v: %v", want, err)
		}
	}
	jar.OS, jar.Arch = "linux", "amd64"
	claim, err := p.Check(path, signed(t, path, secret, jar), Target{"worker-agent.jar", Any, Any})
	refused(t, "for one system, wanted for all", path, claim, err, ErrSwapped)
}

func TestCheckOfFilesThatCannotBeRead(t *testing.T) {
	key, secret := makeKey(t)
	path := makeFile(t, "program")
	sig := signed(t, path, secret, agent)
	missing := path + ".gone"
	for _, bad := range []string{missing, filepath.Dir(path)} {
		_, err := Policy{Keys: []Key{key}}.Check(bad, sig, agent.Target())
		if err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", bad, err)
		}
		for _, reason := range reasons() {
			if errors.Is(err, reason) {
				t.Errorf("%v is %v", err, reason)
			}
		}
		if _, err := Sign(bad, secret, agent); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("sign %s: %v", bad, err)
		}
	}
}

func TestReadSignature(t *testing.T) {
	path := makeFile(t, "")
	if sig, err := ReadSignature(path + ".minisig"); sig != nil || err != nil {
		t.Errorf("%q, %v", sig, err)
	}
	if sig, err := ReadSignature(path); sig == nil || len(sig) != 0 || err != nil {
		t.Errorf("an empty file is no missing one: %v, %v", sig, err)
	}
	if err := os.Truncate(path, 1<<30); err != nil {
		t.Fatal(err)
	}
	if sig, err := ReadSignature(path); len(sig) != MaxSignature+1 || err != nil {
		t.Errorf("%d bytes, %v", len(sig), err)
	}
	if _, err := ReadSignature(filepath.Dir(path)); err == nil {
		t.Error("a directory was read")
	}
}

// FuzzSignature: whatever a server sends as a signature, it is refused by one reason, or it is the good one in other clothes.
func FuzzSignature(f *testing.F) {
	for _, name := range []string{"program.hashed.minisig", "program.plain.minisig"} {
		sig, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(sig)
	}
	text, err := os.ReadFile(filepath.Join("testdata", "minisign.pub"))
	if err != nil {
		f.Fatal(err)
	}
	key, err := ParseKey(string(text))
	if err != nil {
		f.Fatal(err)
	}
	p := Policy{Keys: []Key{key}}
	path := filepath.Join("testdata", "program")
	f.Fuzz(func(t *testing.T, sig []byte) {
		claim, err := p.Check(path, sig, agent.Target())
		if sig == nil {
			return
		}
		if err == nil {
			want := agent
			want.KeyID = key.ID()
			if claim != want {
				t.Errorf("forged: %q", sig)
			}
			return
		}
		kinds := 0
		for _, reason := range reasons() {
			if errors.Is(err, reason) {
				kinds++
			}
		}
		if kinds != 1 || len(err.Error()) > 300 {
			t.Errorf("%q: %v", sig, err)
		}
	})
}

// FuzzComment: a comment is read the same way after it was written from what was read.
func FuzzComment(f *testing.F) {
	f.Add("name=devopsAgent version=v1.2.3 os=linux arch=amd64 time=1718000000")
	f.Fuzz(func(t *testing.T, comment string) {
		claim, err := parseComment(comment)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Error(err)
			}
			return
		}
		again := fmt.Sprintf("name=%s version=%s os=%s arch=%s", claim.Name, claim.Version, claim.OS, claim.Arch)
		if !claim.Time.IsZero() {
			again += fmt.Sprintf(" time=%d", claim.Time.Unix())
		}
		if got, err := parseComment(again); err != nil || got != claim {
			t.Errorf("%q: %+v, then %+v, %v", comment, claim, got, err)
		}
	})
}
