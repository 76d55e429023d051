package repo

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// KeyKind is an algorithm to sign with.
type KeyKind string

// The kinds of keys. RSA is understood by every apt and rpm; Ed25519 not by the rpm of EL 7 and 8.
const (
	RSA     KeyKind = "rsa"
	Ed25519 KeyKind = "ed25519"
)

// rsaBits is the size of an RSA key; NIST SP 800-57 gives it 128 bits of strength.
const rsaBits = 3072

// maxKey bounds the file of a key in bytes.
const maxKey = 256 << 10

// Errors about keys.
var (
	ErrLocked     = errors.New("the key is protected by a passphrase")
	ErrPassphrase = errors.New("the passphrase is wrong")
	ErrNoSecret   = errors.New("it is a public key; to sign takes the secret one")
	ErrKeyExpired = errors.New("the key has expired")
)

// A Key signs repositories. It is an OpenPGP key (RFC 4880, version 4), as gpg makes and reads them.
type Key struct{ entity *openpgp.Entity }

// GenerateKey makes a key without expiry for the owner, "Name <mail@example.org>" or a name alone.
func GenerateKey(kind KeyKind, owner string, now time.Time) (*Key, error) {
	name, mail, _ := strings.Cut(owner, "<")
	name, mail = strings.TrimSpace(name), strings.TrimSuffix(strings.TrimSpace(mail), ">")
	if name == "" {
		return nil, errors.New("generate key: the owner has no name")
	}
	c := config(now)
	switch kind {
	case RSA:
		c.Algorithm, c.RSABits = packet.PubKeyAlgoRSA, rsaBits
	case Ed25519:
		c.Algorithm, c.Curve = packet.PubKeyAlgoEdDSA, packet.Curve25519
	default:
		return nil, fmt.Errorf("generate key: no kind %q, there are %s and %s", string(kind), RSA, Ed25519)
	}
	entity, err := openpgp.NewEntity(name, "", mail, c)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	entity.Subkeys = nil // it signs, and nobody encrypts to it
	return &Key{entity}, nil
}

// config is what signatures and keys are made with. SHA-256 is what rpm of EL 7 takes as well.
func config(now time.Time) *packet.Config {
	return &packet.Config{DefaultHash: crypto.SHA256, DefaultCipher: packet.CipherAES256, Time: func() time.Time { return now }}
}

// ParseKey reads a secret key, armoured or not, as "gpg --export-secret-keys" writes it. The error is ErrLocked for one
// that needs a passphrase and gets "", ErrPassphrase for one that gets another, ErrNoSecret for a public key.
func ParseKey(text []byte, passphrase string) (*Key, error) {
	ring, err := readRing(text)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	if len(ring) != 1 {
		return nil, fmt.Errorf("read key: %d keys in one file", len(ring))
	}
	k := &Key{ring[0]}
	if k.entity.PrivateKey == nil {
		return nil, fmt.Errorf("read key: %w", ErrNoSecret)
	}
	locked := k.entity.PrivateKey.Encrypted
	for _, sub := range k.entity.Subkeys {
		locked = locked || sub.PrivateKey != nil && sub.PrivateKey.Encrypted
	}
	if locked {
		if passphrase == "" {
			return nil, fmt.Errorf("read key: %w", ErrLocked)
		}
		if err := k.entity.DecryptPrivateKeys([]byte(passphrase)); err != nil {
			return nil, fmt.Errorf("read key: %w", ErrPassphrase)
		}
	}
	return k, nil
}

func readRing(text []byte) (openpgp.EntityList, error) {
	if len(text) > maxKey {
		return nil, fmt.Errorf("more than %d bytes are no key", maxKey)
	}
	if bytes.Contains(text, []byte("-----BEGIN PGP")) {
		return openpgp.ReadArmoredKeyRing(bytes.NewReader(text))
	}
	return openpgp.ReadKeyRing(bytes.NewReader(text))
}

// MarshalSecret is the secret key, armoured, protected by the passphrase unless that is "".
func (k *Key) MarshalSecret(passphrase string) ([]byte, error) {
	var raw bytes.Buffer
	if err := k.entity.SerializePrivateWithoutSigning(&raw, nil); err != nil {
		return nil, fmt.Errorf("write key: %w", err)
	}
	if passphrase != "" {
		ring, err := openpgp.ReadKeyRing(&raw) // a copy: locking is in place
		if err != nil {
			return nil, fmt.Errorf("write key: %w", err)
		}
		if err := ring[0].EncryptPrivateKeys([]byte(passphrase), config(time.Time{})); err != nil {
			return nil, fmt.Errorf("write key: %w", err)
		}
		raw.Reset()
		if err := ring[0].SerializePrivateWithoutSigning(&raw, nil); err != nil {
			return nil, fmt.Errorf("write key: %w", err)
		}
	}
	return armoured(openpgp.PrivateKeyType, raw.Bytes())
}

// Fingerprint is the key's in capital hex.
func (k *Key) Fingerprint() string { return fmt.Sprintf("%X", k.entity.PrimaryKey.Fingerprint) }

// Owner is the name in the key.
func (k *Key) Owner() string {
	if id := k.entity.PrimaryIdentity(); id != nil {
		return id.Name
	}
	return ""
}

// Public is the public half of keys, one after the other, as a keyring for apt's Signed-By.
func Public(keys ...*Key) ([]byte, error) {
	var b bytes.Buffer
	for _, k := range keys {
		if err := k.entity.Serialize(&b); err != nil {
			return nil, fmt.Errorf("write public key: %w", err)
		}
	}
	return b.Bytes(), nil
}

// ArmouredPublic is Public as text, a block for each key, for "rpm --import" and gpgkey.
func ArmouredPublic(keys ...*Key) ([]byte, error) {
	var all []byte
	for _, k := range keys {
		raw, err := Public(k)
		if err != nil {
			return nil, err
		}
		text, err := armoured(openpgp.PublicKeyType, raw)
		if err != nil {
			return nil, err
		}
		all = append(all, text...)
	}
	return all, nil
}

func armoured(kind string, raw []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := armor.EncodeWithChecksumOption(&b, kind, nil, true) // gpg 1.4 and rpm want the checksum
	if err == nil {
		_, err = w.Write(raw)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("write armour: %w", err)
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

// signers are the keys of one repository; every one of them signs.
type signers struct {
	keys []*Key
	now  time.Time
}

func newSigners(keys []*Key, now time.Time) (signers, error) {
	if len(keys) == 0 {
		return signers{}, errors.New("no key to sign with")
	}
	for _, k := range keys {
		if _, ok := k.entity.SigningKey(now); !ok {
			return signers{}, fmt.Errorf("key %s: %w, or it may not sign", k.Fingerprint(), ErrKeyExpired)
		}
	}
	return signers{keys, now}, nil
}

func (s signers) ring() openpgp.EntityList {
	var ring openpgp.EntityList
	for _, k := range s.keys {
		ring = append(ring, k.entity)
	}
	return ring
}

// inline signs text within (InRelease).
func (s signers) inline(text []byte) ([]byte, error) {
	var private []*packet.PrivateKey
	for _, k := range s.keys {
		one, ok := k.entity.SigningKey(s.now)
		if !ok {
			return nil, ErrKeyExpired
		}
		private = append(private, one.PrivateKey)
	}
	var b bytes.Buffer
	w, err := clearsign.EncodeMulti(&b, private, config(s.now))
	if err == nil {
		_, err = w.Write(text)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

// detached is a signature beside data, armoured.
func (s signers) detached(data []byte) ([]byte, error) {
	var b bytes.Buffer
	for _, k := range s.keys {
		if err := openpgp.DetachSign(&b, k.entity, bytes.NewReader(data), config(s.now)); err != nil {
			return nil, fmt.Errorf("sign: %w", err)
		}
	}
	return armoured(openpgp.SignatureType, b.Bytes())
}

// openInline returns the text that one of the keys signed, and how many signatures there are.
func (s signers) openInline(data []byte) ([]byte, int, error) {
	block, rest := clearsign.Decode(data)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, 0, errors.New("it is no signed text")
	}
	signature, err := io.ReadAll(io.LimitReader(block.ArmoredSignature.Body, maxKey))
	if err != nil {
		return nil, 0, fmt.Errorf("signature: %w", err)
	}
	if err := s.check(block.Bytes, signature); err != nil {
		return nil, 0, err
	}
	return block.Plaintext, countSignatures(signature), nil
}

// openDetached checks that one of the keys signed data, and counts the signatures.
func (s signers) openDetached(data, signature []byte) (int, error) {
	block, err := armor.Decode(bytes.NewReader(signature))
	if err != nil {
		return 0, fmt.Errorf("signature: %w", err)
	}
	raw, err := io.ReadAll(io.LimitReader(block.Body, maxKey))
	if err != nil {
		return 0, fmt.Errorf("signature: %w", err)
	}
	return countSignatures(raw), s.check(data, raw)
}

// check takes what was signed while the key was good, whatever the clock says today.
func (s signers) check(data, signature []byte) error {
	_, err := openpgp.CheckDetachedSignature(s.ring(), bytes.NewReader(data), bytes.NewReader(signature), config(s.now))
	if err == nil || errors.Is(err, pgperrors.ErrKeyExpired) || errors.Is(err, pgperrors.ErrSignatureExpired) {
		return nil
	}
	return fmt.Errorf("signature: %w", err)
}

func countSignatures(raw []byte) int {
	packets, n := packet.NewReader(bytes.NewReader(raw)), 0
	for {
		p, err := packets.Next()
		if err != nil {
			return n
		}
		if _, ok := p.(*packet.Signature); ok {
			n++
		}
	}
}
