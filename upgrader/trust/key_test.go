package trust

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"aead.dev/minisign"
	"golang.org/x/crypto/blake2b"
	"golang.org/x/crypto/scrypt"
)

func TestParseKey(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "minisign.pub"))
	if err != nil {
		t.Fatal(err)
	}
	file := string(text)
	line := strings.Split(file, "\n")[1]
	for _, text := range []string{file, line, " " + line + "\n", strings.ReplaceAll(file, "\n", "\r\n"), strings.TrimSpace(file)} {
		key, err := ParseKey(text)
		if err != nil || key.String() != line || key.ID() != "CD2369B4643E4273" {
			t.Errorf("%q: %v, %v", text, key, err)
		}
		if again, err := key.MarshalText(); err != nil || string(again) != file {
			t.Errorf("%q, %v", again, err)
		}
	}
}

func TestParseKeyNamesTheMistake(t *testing.T) {
	key, secret := makeKey(t)
	private, err := MarshalSecret(secret, "")
	if err != nil {
		t.Fatal(err)
	}
	path := makeFile(t, "x")
	sig := signed(t, path, secret, agent)
	raw, err := base64.StdEncoding.DecodeString(key.String())
	if err != nil {
		t.Fatal(err)
	}
	unknown := bytes.Clone(raw)
	unknown[0] = 'X'
	encode := base64.StdEncoding.EncodeToString
	for text, want := range map[string]string{
		"":                                 "empty",
		"untrusted comment: only\n":        "empty",
		string(private):                    "secret key",
		lines(sig)[1]:                      "signature",
		string(sig):                        "more than one line",
		"ssh-ed25519 AAAAC3Nza me@x":       "not base64",
		key.String()[:55]:                  "not base64",
		key.String()[:52]:                  "39 bytes instead of 42",
		encode(unknown):                    "unknown kind",
		key.String() + "\n" + key.String(): "more than one line",
		strings.Repeat("A", 5000):          "too long",
		encode(append([]byte("Ed12345678"), make([]byte, 32)...)): "everybody could sign",
	} {
		_, err := ParseKey(text)
		var hinter interface{ Hint() string }
		if err == nil || !strings.Contains(err.Error(), want) || !errors.As(err, &hinter) || hinter.Hint() == "" {
			t.Errorf("%.60q: %v, want %q", text, err, want)
			continue
		}
		if len(text) > 20 && strings.Contains(err.Error(), text[len(text)/2:]) {
			t.Errorf("%v repeats what may be secret", err)
		}
	}
}

// Each of the points that are refused is one that a signature can be forged for: with R the neutral point and S zero, one
// message in eight, or more, verifies.
func TestWeakKeysAreWeak(t *testing.T) {
	forged := make([]byte, ed25519.SignatureSize)
	forged[0] = 1
	count := 0
	for _, point := range []string{
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	} {
		for _, sign := range []byte{0, 0x80} {
			public, err := hex.DecodeString(point)
			if err != nil {
				t.Fatal(err)
			}
			public[31] |= sign
			if _, err := ParseKey(base64.StdEncoding.EncodeToString(append([]byte("Ed12345678"), public...))); err == nil {
				t.Errorf("%x is taken", public)
			}
			for n := range 200 {
				if ed25519.Verify(public, fmt.Append(nil, n), forged) {
					count++
					break
				}
			}
		}
	}
	if count < 8 {
		t.Errorf("only %d of them can be forged for: a constant is wrong", count)
	}
}

func TestSecretsDoNotPrintThemselves(t *testing.T) {
	_, secret := makeKey(t)
	text, err := MarshalSecret(secret, "")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "secret", secret)
	fmt.Fprintf(&out, "%v %+v %#v %s %q %v", secret, secret, secret, secret, secret, &secret)
	seed := string(text[len(text)-60:])
	if strings.Contains(out.String(), seed) || strings.Count(out.String(), "(secret)") != 7 || strings.Contains(out.String(), "[") {
		t.Errorf("%s", out.String())
	}
}

func TestSecretKeys(t *testing.T) {
	key, secret := makeKey(t)
	text, err := MarshalSecret(secret, "")
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseSecret(text, "")
	if err != nil || again.Key().String() != key.String() || Encrypted(text) {
		t.Errorf("%v", err)
	}
	for _, bad := range [][]byte{nil, []byte("x"), text[:100], []byte("untrusted comment: x\n" + key.String())} {
		if _, err := ParseSecret(bad, ""); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
	// Halves of two keys: a signature by these would give the secret away.
	_, other := makeKey(t)
	mine, theirs := rawSecret(t, text), rawSecret(t, mustMarshal(t, other))
	copy(mine[94:126], theirs[94:126])
	if _, err := ParseSecret([]byte(base64.StdEncoding.EncodeToString(mine)), ""); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("%v", err)
	}
}

// What MarshalSecret makes with a password costs seconds to read, by design; the price is in the file. This one is as cheap as the
// format allows. Those of the real price are tested with the packager.
func TestSecretKeysWithPassword(t *testing.T) {
	key, secret := makeKey(t)
	data := rawSecret(t, mustMarshal(t, secret))
	checksum := blake2b.Sum256(append([]byte("Ed"), data[54:126]...))
	copy(data[126:], checksum[:])
	copy(data[2:], "Sc")
	binary.LittleEndian.PutUint64(data[38:], 1<<15)
	binary.LittleEndian.PutUint64(data[46:], 1<<24)
	stream, err := scrypt.Key([]byte("open sesame"), data[6:38], 1<<10, 8, 1, 104)
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range stream {
		data[54+i] ^= b
	}
	text := []byte("untrusted comment: x\n" + base64.StdEncoding.EncodeToString(data))
	if !Encrypted(text) {
		t.Error("it is not encrypted")
	}
	if again, err := ParseSecret(text, "open sesame"); err != nil || again.Key().String() != key.String() {
		t.Errorf("%v", err)
	}
	for _, wrong := range []string{"", "open sesame!"} {
		if _, err := ParseSecret(text, wrong); !errors.Is(err, ErrPassword) {
			t.Errorf("%q: %v", wrong, err)
		}
	}
}

func mustMarshal(t *testing.T, s Secret) []byte {
	t.Helper()
	text, err := MarshalSecret(s, "")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func rawSecret(t *testing.T, text []byte) []byte {
	t.Helper()
	_, line, _ := strings.Cut(string(text), "\n")
	data, err := base64.StdEncoding.DecodeString(line)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// hashOf is what a hashed signature is made over.
func hashOf(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := blake2b.Sum512(data)
	return sum[:]
}

func FuzzKey(f *testing.F) {
	f.Add("untrusted comment: minisign public key CD2369B4643E4273\nRWRzQj5ktGkjzWDNaXdr4rnEUzWNHeeuMOXJWDXTSLfDyk1yc6jerAMs\n")
	f.Add("RWRzQj5ktGkjzWDNaXdr4rnEUzWNHeeuMOXJ\rWDXTSLfDyk1yc6jerAMs\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		key, err := ParseKey(text)
		if err != nil {
			return
		}
		if again, err := ParseKey(key.String()); err != nil || again.String() != key.String() || !strings.Contains(text, key.String()) {
			t.Errorf("%q: %v, %v", text, key, err)
		}
		_ = minisign.Verify(key.public, nil, nil)
	})
}
