package config

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// CertFile holds PEM certificates that are trusted on top of the system's (protocol §2.1).
const CertFile = ".cert"

// Roots returns the certificates to trust: the system's and those of <home>/.cert. It is nil, which means the
// system's, when there is no such file; the system's are then read when they are first needed. A .cert without any
// certificate is an error with a hint.
func Roots(home string) (*x509.CertPool, error) {
	path := filepath.Join(home, CertFile)
	pem, err := readBounded(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil || pool == nil { // nil without an error is real, on some Windows machines (weakness W-11)
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, &KeyError{File: path, What: "contains no PEM certificate",
			Do: "put the certificate of the server's authority there, beginning with -----BEGIN CERTIFICATE-----, or remove the file"}
	}
	return pool, nil
}
