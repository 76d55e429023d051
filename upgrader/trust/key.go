package trust

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"strings"

	"aead.dev/minisign"
)

// Key is the public half of a minisign key: files that its other half signed are taken for ours.
type Key struct{ public minisign.PublicKey }

// String is the line of base64 that ParseKey reads and minisign -P takes.
func (k Key) String() string { return k.public.String() }

// ID names the key in errors and in signatures, 16 hex digits, as minisign prints it.
func (k Key) ID() string { return keyID(k.public.ID()) }

func keyID(id uint64) string { return fmt.Sprintf("%016X", id) }

// MarshalText is the content of a .pub file.
func (k Key) MarshalText() ([]byte, error) {
	return []byte("untrusted comment: minisign public key " + k.ID() + "\n" + k.String() + "\n"), nil
}

// The sizes of what minisign writes in base64, in bytes.
const (
	publicSize    = 2 + 8 + ed25519.PublicKeySize
	signatureSize = 2 + 8 + ed25519.SignatureSize
	secretSize    = 2 + 2 + 2 + 32 + 8 + 8 + 104
)

// maxKeyText bounds the text of a key in bytes, its comment included.
const maxKeyText = 4096

// keyError says what is wrong with the text of a key.
type keyError struct{ what, hint string }

// Error says what is wrong.
func (e *keyError) Error() string { return "not a public key of minisign: " + e.what }

// Hint says where the right text is.
func (e *keyError) Hint() string {
	if e.hint != "" {
		return e.hint
	}
	return "a public key is the line that begins with RW in the .pub file"
}

// ParseKey reads a public key: the line of base64, or a whole .pub file. Its error says what was given instead, and never
// repeats it: it may be a secret.
func ParseKey(text string) (Key, error) {
	if len(text) > maxKeyText {
		return Key{}, &keyError{what: "it is too long"}
	}
	var line string
	for l := range strings.SplitSeq(text, "\n") {
		l = strings.TrimSpace(l)
		switch {
		case l == "", strings.HasPrefix(strings.ToLower(l), "untrusted comment:"):
		case line != "":
			return Key{}, &keyError{what: "it has more than one line of base64"}
		default:
			line = l
		}
	}
	if line == "" {
		return Key{}, &keyError{what: "it is empty"}
	}
	data, err := base64.StdEncoding.Strict().DecodeString(line)
	switch {
	case err != nil, strings.ContainsRune(line, '\r'): // which the decoder passes over
		return Key{}, &keyError{what: "it is not base64"}
	case len(data) == secretSize:
		return Key{}, &keyError{what: "it is a secret key", hint: "keep that one to yourself; its public half is in the .pub file beside it"}
	case len(data) == signatureSize:
		return Key{}, &keyError{what: "it is a signature"}
	case len(data) != publicSize:
		return Key{}, &keyError{what: fmt.Sprintf("it has %d bytes instead of %d", len(data), publicSize)}
	case string(data[:2]) != "Ed":
		return Key{}, &keyError{what: "it is of an unknown kind"}
	case weak(data[10:]):
		return Key{}, &keyError{what: "everybody could sign for it", hint: "put your own key there; packager keygen or minisign -G makes one"}
	}
	var key Key
	if err := key.public.UnmarshalText([]byte(line)); err != nil {
		return Key{}, &keyError{what: err.Error()}
	}
	return key, nil
}

// weak reports whether a point of the curve has a small order, such as a placeholder of zeros: then signatures that fit it
// can be made without any secret. These are all there are, each with either sign, as libsodium refuses them as well.
func weak(point []byte) bool {
	var y [ed25519.PublicKeySize]byte
	copy(y[:], point)
	y[31] &= 0x7f
	switch fmt.Sprintf("%x", y) {
	case "0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f":
		return true
	}
	return false
}
