package controller

import (
	"crypto/cipher"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/chacha20poly1305"
)

// SecretsKeyFile is the name of the file in the data directory that holds the key of all encrypted values: 64
// hexadecimal digits, mode 0600.
const SecretsKeyFile = "secrets.key"

// vault encrypts what must not be readable in the data base: XChaCha20-Poly1305 with one key, a random nonce for each
// value, and the place of the value as additional data, so that none can be put into another's place.
type vault struct {
	aead cipher.AEAD
	err  error // why there is no key; whoever needs one gets it
}

// KeyError says that encrypted values cannot be used: the key is missing, or is another one.
type KeyError struct {
	Path string
	Err  error
}

// Error names the file and what is wrong with it.
func (e *KeyError) Error() string { return "secrets are locked: " + e.Path + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *KeyError) Unwrap() error { return e.Err }

// Hint says how to go on.
func (e *KeyError) Hint() string {
	return "put back the key file " + e.Path + " that belongs to this data base, from your copy of it or from a backup, and start the controller again; builds that need no secret go on meanwhile"
}

var (
	errOtherKey = errors.New("it is not the key of this data base")
	errNoKey    = errors.New("the key file is missing")
	errSealed   = errors.New("a stored value cannot be decrypted")
)

// proof is what the key of a data base can decrypt.
const proof = "the key of this data base"

// openVault finds the key, and makes one for a data base that has none yet. A missing or wrong key is no error here.
func (s *Server) openVault() error {
	path := s.opts.SecretsKey
	if path == "" && s.opts.Dir != "" {
		path = filepath.Join(s.opts.Dir, SecretsKeyFile)
	}
	sealed := ""
	if err := s.store.each(func(scan func(...any) error) error { return scan(&sealed) }, `SELECT proof FROM vault`); err != nil {
		return err
	}
	key, err := readKey(path)
	switch {
	case errors.Is(err, os.ErrNotExist) && sealed == "":
		if key, err = makeKey(path); err != nil {
			return fmt.Errorf("make the key of secrets: %w", err)
		}
	case errors.Is(err, os.ErrNotExist):
		err = errNoKey
	}
	if err == nil {
		s.vault.aead, err = chacha20poly1305.NewX(key)
	}
	if err == nil && sealed != "" {
		if _, bad := s.vault.open("proof", sealed); bad != nil {
			err = errOtherKey
		}
	}
	if err != nil {
		s.vault = vault{err: &KeyError{Path: path, Err: err}}
		s.log.Error("Secrets are locked", "err", s.vault.err)
		return nil
	}
	if sealed != "" {
		return nil
	}
	if sealed, err = s.vault.seal("proof", []byte(proof)); err != nil {
		return err
	}
	return s.store.enqueue(func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT INTO vault (id, proof) VALUES (1, ?)`, sealed)
		return err
	}, nil).wait()
}

// readKey reads a key file. path is "" for a controller in memory, which has none.
func readKey(path string) ([]byte, error) {
	if path == "" {
		return nil, os.ErrNotExist
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, 1024))
	if err != nil {
		return nil, err
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(data)))
	if err != nil || len(key) != chacha20poly1305.KeySize {
		return nil, errors.New("it does not hold 64 hexadecimal digits") // nothing of it in the text
	}
	return key, nil
}

func makeKey(path string) ([]byte, error) {
	key := make([]byte, chacha20poly1305.KeySize)
	_, _ = rand.Read(key) // never fails (crypto/rand)
	if path == "" {
		return key, nil
	}
	return key, writePrivate(path, []byte(hex.EncodeToString(key)+"\n"))
}

// seal encrypts a value for its place. The text begins with the number of this format.
func (v *vault) seal(place string, plain []byte) (string, error) {
	if v.err != nil {
		return "", v.err
	}
	nonce := make([]byte, v.aead.NonceSize(), v.aead.NonceSize()+len(plain)+v.aead.Overhead())
	_, _ = rand.Read(nonce)
	return "1:" + base64.StdEncoding.EncodeToString(v.aead.Seal(nonce, nonce, plain, []byte(place))), nil
}

// open decrypts what seal made for the same place.
func (v *vault) open(place, sealed string) ([]byte, error) {
	if v.err != nil {
		return nil, v.err
	}
	text, known := strings.CutPrefix(sealed, "1:")
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil || !known || len(data) < v.aead.NonceSize() {
		return nil, errSealed
	}
	plain, err := v.aead.Open(nil, data[:v.aead.NonceSize()], data[v.aead.NonceSize():], []byte(place))
	if err != nil {
		return nil, errSealed
	}
	return plain, nil
}

// sealJSON is seal of a value as JSON.
func (v *vault) sealJSON(place string, value any) (string, error) {
	plain, err := json.Marshal(value)
	if err != nil {
		return "", err
	}
	return v.seal(place, plain)
}

// openJSON decrypts what sealJSON made into value.
func (v *vault) openJSON(place, sealed string, value any) error {
	plain, err := v.open(place, sealed)
	if err != nil {
		return err
	}
	return json.Unmarshal(plain, value)
}
