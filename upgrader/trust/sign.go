package trust

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"aead.dev/minisign"
)

// Secret is the half of a key that signs. It does not print itself.
type Secret struct{ private minisign.PrivateKey }

// String hides the secret.
func (Secret) String() string { return "(secret)" }

// GoString hides the secret from %#v.
func (Secret) GoString() string { return "(secret)" }

// LogValue hides the secret from slog.
func (Secret) LogValue() slog.Value { return slog.StringValue("(secret)") }

// Key is the public half.
func (s Secret) Key() Key {
	public, _ := s.private.Public().(minisign.PublicKey)
	return Key{public}
}

// GenerateKey makes a key from the randomness of the system.
func GenerateKey() (Key, Secret, error) {
	public, private, err := minisign.GenerateKey(nil)
	if err != nil {
		return Key{}, Secret{}, fmt.Errorf("make a key: %w", err)
	}
	return Key{public}, Secret{private}, nil
}

// ErrPassword: a secret key cannot be read without its password, or not with this one.
var ErrPassword error = &refusal{"the secret key has a password, and this is not it", "give the password that the key was made with"}

// ParseSecret reads the text of a secret key file of minisign. The password is "" for a key without one (minisign -W). With
// one it takes 1 GiB of memory and seconds: that is the protection. Errors: ErrPassword, or that it is no secret key.
func ParseSecret(text []byte, password string) (Secret, error) {
	var s Secret
	if !Encrypted(text) {
		if err := s.private.UnmarshalText(text); err != nil {
			return Secret{}, errors.New("not a secret key of minisign")
		}
		return s, s.whole()
	}
	if password == "" {
		return Secret{}, ErrPassword
	}
	private, err := minisign.DecryptKey(password, text)
	if err != nil {
		return Secret{}, ErrPassword
	}
	s.private = private
	return s, s.whole()
}

// whole reports whether the two halves in a secret key belong together: signing with others would give the secret away.
func (s Secret) whole() error {
	probe := []byte("probe of a secret key")
	if !minisign.Verify(s.Key().public, probe, minisign.Sign(s.private, probe)) {
		return errors.New("the secret key is damaged")
	}
	return nil
}

// Encrypted reports whether the text of a secret key file needs a password.
func Encrypted(text []byte) bool { return minisign.IsEncrypted(text) }

// MarshalSecret is the text of a secret key file, which minisign reads as well. An empty password leaves it unprotected, as
// minisign -W does; with one it takes 1 GiB of memory and seconds.
func MarshalSecret(s Secret, password string) ([]byte, error) {
	if password == "" {
		return s.private.MarshalText()
	}
	text, err := minisign.EncryptKey(password, s.private)
	if err != nil {
		return nil, fmt.Errorf("protect the secret key: %w", err)
	}
	return text, nil
}

// Sign signs the file at path as what the claim says and returns the text of its .minisig file, hashed (ED). The same file,
// key and claim give the same text. A claim without name, version, system or architecture, or with a version that Compare
// cannot read, is an error; its KeyID is not looked at.
func Sign(path string, secret Secret, claim Claim) (sig []byte, err error) {
	if err := claim.check(); err != nil {
		return nil, fmt.Errorf("sign %s: no usable %s for it", path, err.Error())
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	hash := minisign.NewReader(f)
	if _, err := io.Copy(io.Discard, hash); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	trusted := fmt.Sprintf("name=%s version=%s os=%s arch=%s", claim.Name, claim.Version, claim.OS, claim.Arch)
	if !claim.Time.IsZero() {
		trusted += fmt.Sprintf(" time=%d", claim.Time.Unix())
	}
	return hash.SignWithComments(secret.private, trusted, strings.TrimSpace("signature of "+claim.String())), nil
}
