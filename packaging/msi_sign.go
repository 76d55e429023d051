package packaging

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// signer signs programs and packages for Windows (Authenticode) by osslsigncode. Without a key it does nothing.
type signer struct {
	dir  string // of the passphrase and of what is signed; only we can read it
	args []string
}

// noSignerError: the tool is not there.
type noSignerError struct{ err error }

// Error says which.
func (e *noSignerError) Error() string { return "sign for Windows: " + e.err.Error() }

// Unwrap returns the cause.
func (e *noSignerError) Unwrap() error { return e.err }

// Hint says where it is.
func (e *noSignerError) Hint() string { return "apt-get install osslsigncode" }

// newSigner makes a signer of the options. Every signature bears the time given, so that the same release has the same bytes
// again; a timestamp server, where one is named, says its own.
func newSigner(o Options, at time.Time) (_ *signer, err error) {
	if o.PFX == "" {
		return &signer{}, nil
	}
	if _, err := exec.LookPath("osslsigncode"); err != nil {
		return nil, &noSignerError{err}
	}
	s := &signer{}
	if s.dir, err = os.MkdirTemp("", "sign-*"); err != nil {
		return nil, fmt.Errorf("sign for Windows: %w", err)
	}
	word := filepath.Join(s.dir, "word")
	if err := os.WriteFile(word, []byte(o.PFXWord), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("sign for Windows: %w", err), os.RemoveAll(s.dir))
	}
	s.args = []string{"sign", "-pkcs12", o.PFX, "-readpass", word, "-h", "sha256", "-n", summary, "-i", homepage,
		"-time", strconv.FormatInt(at.Unix(), 10)}
	if o.TimestampURL != "" {
		s.args = append(s.args, "-ts", o.TimestampURL)
	}
	return s, nil
}

// sign returns what it is given, signed. name says what kind of file it is.
func (s *signer) sign(ctx context.Context, name string, data []byte) ([]byte, error) {
	if s.dir == "" {
		return data, nil
	}
	plain, signed := filepath.Join(s.dir, "plain-"+name), filepath.Join(s.dir, name)
	if err := os.WriteFile(plain, data, 0o600); err != nil {
		return nil, fmt.Errorf("sign %s: %w", name, err)
	}
	args := s.args
	if filepath.Ext(name) == ".msi" {
		args = append(args[:len(args):len(args)], "-add-msi-dse") // covers names and sizes of the streams, too
	}
	cmd := exec.CommandContext(ctx, "osslsigncode", append(args[:len(args):len(args)], "-in", plain, "-out", signed)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("sign %s: osslsigncode: %w: %s", name, err, bytes.TrimSpace(out))
	}
	result, err := os.ReadFile(signed)
	if err = errors.Join(err, os.Remove(plain), os.Remove(signed)); err != nil {
		return nil, fmt.Errorf("sign %s: %w", name, err)
	}
	return result, nil
}

// close removes the passphrase.
func (s *signer) close() error {
	if s.dir == "" {
		return nil
	}
	return os.RemoveAll(s.dir)
}
