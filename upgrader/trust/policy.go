package trust

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"aead.dev/minisign"

	"github.com/devops-agent/devops-agent/upgrader/version"
)

// MaxSignature is the most bytes that a .minisig file may have.
const MaxSignature = 4096

// maxPlain is the most bytes that a file with an old signature (Ed) may have: unlike the hashed kind, these are made over the
// file as a whole, which then has to be in memory.
const maxPlain = 256 << 20

// refusal is a reason not to run something. There is one of each, so that callers can tell them apart with errors.Is.
type refusal struct{ text, hint string }

// Error names the reason.
func (r *refusal) Error() string { return r.text }

// Hint says what an operator can do.
func (r *refusal) Hint() string { return r.hint }

// The reasons that files are refused for. Each comes wrapped in the name of its file.
var (
	// ErrUnsigned: there is no signature, and one is required.
	ErrUnsigned error = &refusal{"it is not signed",
		"agent.toml requires signatures (trust.require); publish a .minisig beside the file, made by packager sign"}
	// ErrWrongKey: somebody else signed.
	ErrWrongKey error = &refusal{"it is signed with a key that is not trusted here",
		"if that key is yours, add its public half to trust.keys in agent.toml"}
	// ErrTampered: a trusted key signed something else.
	ErrTampered error = &refusal{"it is not what was signed",
		"the file or its signature was changed after signing, or they do not belong together; fetch both again, and find out who changed them"}
	// ErrSwapped: a trusted key signed this, but as another program or for another machine.
	ErrSwapped error = &refusal{"it was signed as something else",
		"a signed file was put in the place of another one; publish each file and its .minisig under its own name"}
	// ErrOlder: something newer was accepted here before.
	ErrOlder error = &refusal{"it is older than what was accepted here",
		"publish a newer version; devopsAgent rollback goes back to a version that ran here"}
	// ErrMalformed: the signature is cut off, too long, or says nothing about the file.
	ErrMalformed error = &refusal{"its signature cannot be read",
		"fetch the .minisig again, or sign the file again with packager sign"}
)

// Policy is [trust] of agent.toml. The zero Policy asks for nothing.
type Policy struct {
	Keys    []Key // those that are trusted; without any, signatures are not looked at
	Require bool  // refuse files without a signature
}

// Claim is what a trusted comment says about its file. A zero Claim says nothing.
type Claim struct {
	Name    string    // as Target has it
	Version string    // as Compare reads it
	OS      string    // as Go names it, or Any
	Arch    string    // as Go names it, or Any
	Time    time.Time // of signing, in seconds; zero when the comment has none
	KeyID   string    // of the key that signed, as Key.ID has it
}

// Target is the file that the claim is about.
func (c Claim) Target() Target { return Target{c.Name, c.OS, c.Arch} }

// String is as in "devopsAgent v1.2.3 linux/amd64".
func (c Claim) String() string { return c.Name + " " + c.Version + " " + c.OS + "/" + c.Arch }

// Check verifies sig, the text of a .minisig file, over the file at path, and returns what its trusted comment claims. A nil sig
// means that there is no signature: without Require that is no error, and the claim is zero. A signature that is there must be
// good, required or not. Only a Policy without keys that requires nothing looks at none.
//
// The claim must be about want; one about any system or architecture is good for all. Errors wrap ErrUnsigned, ErrWrongKey,
// ErrTampered, ErrSwapped, ErrMalformed, or say why the file could not be read. Versions are for a Floor.
func (p Policy) Check(path string, sig []byte, want Target) (Claim, error) {
	claim, err := p.check(path, sig, want)
	if err != nil {
		return Claim{}, fmt.Errorf("verify %s: %w", path, err)
	}
	return claim, nil
}

func (p Policy) check(path string, sig []byte, want Target) (Claim, error) {
	if len(p.Keys) == 0 && !p.Require {
		return Claim{}, nil
	}
	if sig == nil {
		if p.Require {
			return Claim{}, ErrUnsigned
		}
		return Claim{}, nil
	}
	signature, err := parseSignature(sig)
	if err != nil {
		return Claim{}, err
	}
	var ours []minisign.PublicKey // ids are no secret, two keys may have one
	for _, key := range p.Keys {
		if key.public.ID() == signature.KeyID {
			ours = append(ours, key.public)
		}
	}
	if len(ours) == 0 {
		return Claim{}, fmt.Errorf("%w: %s", ErrWrongKey, keyID(signature.KeyID))
	}
	good, err := verifies(path, sig, signature.Algorithm, ours)
	if err != nil {
		return Claim{}, err
	}
	if !good {
		return Claim{}, ErrTampered
	}
	claim, err := parseComment(signature.TrustedComment)
	if err != nil {
		return Claim{}, err
	}
	claim.KeyID = keyID(signature.KeyID)
	if claim.Name != want.Name || claim.OS != want.OS && claim.OS != Any || claim.Arch != want.Arch && claim.Arch != Any {
		return Claim{}, fmt.Errorf("%w: it is %v, wanted was %v", ErrSwapped, claim.Target(), want)
	}
	return claim, nil
}

func verifies(path string, sig []byte, algorithm uint16, keys []minisign.PublicKey) (good bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if algorithm == minisign.HashEdDSA {
		hash := minisign.NewReader(f)
		if _, err := io.Copy(io.Discard, hash); err != nil {
			return false, err
		}
		for _, key := range keys {
			good = good || hash.Verify(key, sig)
		}
		return good, nil
	}
	data, err := io.ReadAll(io.LimitReader(f, maxPlain+1))
	if err != nil {
		return false, err
	}
	if len(data) > maxPlain {
		return false, fmt.Errorf("%w: an old signature (Ed) is good for files up to %d MiB only", ErrMalformed, maxPlain>>20)
	}
	// The kind of a signature is not signed itself. A hashed one, called an old one, would fit the 64 bytes of the hash.
	if len(data) == 64 {
		return false, nil
	}
	for _, key := range keys {
		good = good || minisign.Verify(key, data, sig)
	}
	return good, nil
}

func parseSignature(sig []byte) (minisign.Signature, error) {
	var s minisign.Signature
	if len(sig) > MaxSignature {
		return s, fmt.Errorf("%w: it has more than %d bytes", ErrMalformed, MaxSignature)
	}
	if len(bytes.TrimSpace(sig)) == 0 {
		return s, fmt.Errorf("%w: it is empty", ErrMalformed)
	}
	if err := s.UnmarshalText(sig); err != nil {
		return s, fmt.Errorf("%w: it is cut off, or not of minisign", ErrMalformed)
	}
	return s, nil
}

// parseComment reads a trusted comment that was verified. Words that it does not know are for later versions.
func parseComment(comment string) (Claim, error) {
	said := map[string]string{}
	for word := range strings.FieldsSeq(comment) {
		key, value, ok := strings.Cut(word, "=")
		if !ok {
			continue
		}
		if _, twice := said[key]; twice {
			return Claim{}, fmt.Errorf("%w: its trusted comment has %s twice", ErrMalformed, shorten(key))
		}
		said[key] = value
	}
	claim := Claim{Name: said["name"], Version: said["version"], OS: said["os"], Arch: said["arch"]}
	if goos, ok := system(claim.OS); ok {
		claim.OS = goos
	}
	if text, ok := said["time"]; ok {
		seconds, err := strconv.ParseInt(text, 10, 64)
		if err != nil || seconds < 0 || seconds > maxTime {
			return Claim{}, fmt.Errorf("%w: the time in its trusted comment is none", ErrMalformed)
		}
		claim.Time = time.Unix(seconds, 0).UTC()
	}
	if err := claim.check(); err != nil {
		return Claim{}, fmt.Errorf("%w: its trusted comment has no usable %s", ErrMalformed, err.Error())
	}
	return claim, nil
}

// maxTime is the last second of the year 9999.
const maxTime = 253402300799

// check says which word of a claim is missing or none.
func (c Claim) check() error {
	for _, word := range []struct{ name, value string }{{"name", c.Name}, {"os", c.OS}, {"arch", c.Arch}} {
		if !version.Plain(word.value) || len(word.value) > version.MaxLen {
			return errors.New(word.name)
		}
	}
	if !version.Valid(c.Version) {
		return errors.New("version")
	}
	return nil
}

// shorten keeps what a foreign file says out of errors beyond a bit.
func shorten(s string) string {
	if len(s) > 32 {
		s = s[:32] + "…"
	}
	return strconv.Quote(s)
}

// ReadSignature reads a .minisig file, nil when there is none. More than MaxSignature bytes are not read; Check refuses
// what then is there.
func ReadSignature(path string) (sig []byte, err error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read signature: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sig, err = io.ReadAll(io.LimitReader(f, MaxSignature+1))
	if err != nil {
		return nil, fmt.Errorf("read signature: %w", err)
	}
	return sig, nil
}
