package controller

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// Names of the files in the data directory that hold the certificate that the controller made for itself, and its key,
// mode 0600.
const (
	OwnCertFile = "tls.crt"
	OwnKeyFile  = "tls.key"
)

// ownCertLife is how long a certificate of our own is valid: agents that pinned it must be told of another.
const ownCertLife = 10 * 365 * 24 * time.Hour

// maxCertFile bounds a file of certificates or a key, in bytes.
const maxCertFile = 1 << 20

// maxCertNames bounds the names of a certificate of our own.
const maxCertNames = 100

// Certificate is the key pair of an HTTPS server that follows its files. The caller runs Run.
type Certificate struct {
	certFile, keyFile string
	log               *slog.Logger
	current           atomic.Pointer[pair]
}

// pair is a certificate in use and what its files looked like when it was read.
type pair struct {
	tls.Certificate
	stamp string
}

// OpenCertificate reads a certificate with its chain, and its key, both PEM.
func OpenCertificate(certFile, keyFile string, log *slog.Logger) (*Certificate, error) {
	c := &Certificate{certFile: certFile, keyFile: keyFile, log: log}
	p, err := readPair(certFile, keyFile)
	if err != nil {
		return nil, &CertificateError{File: certFile, Err: err}
	}
	c.current.Store(p)
	return c, nil
}

// CertificateError says that a certificate or its key cannot be used.
type CertificateError struct {
	File string // of the certificate
	Err  error
}

// Error names the file and the cause.
func (e *CertificateError) Error() string { return "certificate " + e.File + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *CertificateError) Unwrap() error { return e.Err }

// Hint says what is needed.
func (e *CertificateError) Hint() string {
	return "both files are PEM: the certificate with its chain, its own first, and the key that belongs to it; devopsController certificate --renew makes another of the controller's own"
}

func readPair(certFile, keyFile string) (*pair, error) {
	p := &pair{stamp: stampOf(certFile, keyFile)}
	cert, err := readCertFile(certFile)
	if err != nil {
		return nil, err
	}
	key, err := readCertFile(keyFile)
	if err != nil {
		return nil, err
	}
	if p.Certificate, err = tls.X509KeyPair(cert, key); err != nil {
		return nil, err
	}
	if p.Leaf == nil {
		if p.Leaf, err = x509.ParseCertificate(p.Certificate.Certificate[0]); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func readCertFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxCertFile+1))
	if err == nil && len(data) > maxCertFile {
		err = fmt.Errorf("%s is longer than %d bytes", path, maxCertFile)
	}
	return data, err
}

// stampOf is another text when one of the files is another.
func stampOf(files ...string) string {
	var b strings.Builder
	for _, path := range files {
		if info, err := os.Stat(path); err == nil {
			_, _ = fmt.Fprintf(&b, "%d %d;", info.ModTime().UnixNano(), info.Size())
		} else {
			_, _ = b.WriteString("-;")
		}
	}
	return b.String()
}

// Run looks at the files every interval until ctx is done, takes what changed, and calls changed after that. What cannot
// be used is not taken: the certificate in use stays, and the log says why, once.
func (c *Certificate) Run(ctx context.Context, interval time.Duration, changed func()) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	seen := c.current.Load().stamp
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case now := <-tick.C:
			stamp := stampOf(c.certFile, c.keyFile)
			if stamp == seen {
				continue
			}
			seen = stamp
			if c.reload(now) {
				changed()
			}
		}
	}
}

// reload takes the files as they are now, if they can be used, and reports whether it did.
func (c *Certificate) reload(now time.Time) bool {
	p, err := readPair(c.certFile, c.keyFile)
	old := c.current.Load()
	if err == nil && now.After(p.Leaf.NotAfter) && !now.After(old.Leaf.NotAfter) {
		err = fmt.Errorf("it expired at %s", p.Leaf.NotAfter.Format(time.RFC3339))
	}
	if err != nil {
		c.log.Error("The new certificate cannot be used, the old one stays", "file", c.certFile, "err", err)
		return false
	}
	c.current.Store(p)
	c.log.Info("Certificate taken", "file", c.certFile, "sha256", c.Pin().String(), "until", p.Leaf.NotAfter.Format(time.RFC3339))
	return true
}

// TLS is the configuration of a server: TLS 1.2 or newer, HTTP/2 and HTTP/1.1.
func (c *Certificate) TLS() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c.current.Load().Certificate, nil }}
}

// File is the name of the certificate's file.
func (c *Certificate) File() string { return c.certFile }

// Leaf is the certificate in use, without its chain.
func (c *Certificate) Leaf() *x509.Certificate { return c.current.Load().Leaf }

// Pin is the SHA-256 digest of the certificate in use: its fingerprint.
func (c *Certificate) Pin() wire.Pin { return wire.PinOf(c.Leaf().Raw) }

// OwnCertificate names the files of the certificate that a controller makes for itself in its data directory, and makes
// them for the names (host names and addresses) where there are none. What is there already is not changed, so that agents
// that pinned it go on.
func OwnCertificate(dir string, names []string, now time.Time) (certFile, keyFile string, err error) {
	certFile, keyFile = filepath.Join(dir, OwnCertFile), filepath.Join(dir, OwnKeyFile)
	if _, err := os.Stat(certFile); !errors.Is(err, os.ErrNotExist) {
		return certFile, keyFile, err
	}
	return certFile, keyFile, RenewOwnCertificate(dir, names, now)
}

// RenewOwnCertificate makes a key and a certificate of the controller's own, in the place of those in its data directory.
// Agents that pinned the old one do not trust it.
func RenewOwnCertificate(dir string, names []string, now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return fmt.Errorf("make a certificate: %w", err)
	}
	// No authority: whoever trusts it trusts this server, and nothing that its key may sign.
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "devopsController"},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(ownCertLife), // clocks differ
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true}
	for _, name := range names[:min(len(names), maxCertNames)] {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return fmt.Errorf("make a certificate: %w", err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("make a certificate: %w", err)
	}
	// The key first: without the certificate, both are made anew at the next start.
	if err := writePrivate(filepath.Join(dir, OwnKeyFile), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})); err != nil {
		return fmt.Errorf("write the key: %w", err)
	}
	if err := writePrivate(filepath.Join(dir, OwnCertFile), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})); err != nil {
		return fmt.Errorf("write the certificate: %w", err)
	}
	return nil
}

// NamesOf are the host names and addresses that a certificate is for.
func NamesOf(cert *x509.Certificate) []string {
	names := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

// LocalNames are the names by which other machines may know this one: its host name, localhost, its addresses, and more,
// which come first. Addresses of one link only are not among them.
func LocalNames(more ...string) []string {
	var names []string
	add := func(name string) {
		if ip := net.ParseIP(name); ip != nil {
			name = ip.String()
		} else {
			name = strings.ToLower(strings.TrimSuffix(name, "."))
		}
		if name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for _, name := range more {
		add(name)
	}
	if host, err := os.Hostname(); err == nil {
		add(host)
	}
	for _, name := range []string{"localhost", "127.0.0.1", "::1"} {
		add(name)
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return names
	}
	for _, addr := range addrs {
		if n, ok := addr.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			add(n.IP.String())
		}
	}
	return names
}

// ReadCertificate reads the first certificate of a PEM file.
func ReadCertificate(path string) (*x509.Certificate, error) {
	data, err := readCertFile(path)
	if err != nil {
		return nil, err
	}
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			return nil, &CertificateError{File: path, Err: errors.New("there is no certificate in it")}
		}
		if block.Type == "CERTIFICATE" {
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, &CertificateError{File: path, Err: err}
			}
			return cert, nil
		}
		data = rest
	}
}
