package wire

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Pin is the SHA-256 digest of a certificate: it says which one a server must have that no authority vouches for.
type Pin [sha256.Size]byte

// ParsePin reads 64 hexadecimal digits of either case, with or without colons, and with or without "SHA256:" or
// "SHA256 Fingerprint=" before them, as openssl and browsers show them.
func ParsePin(text string) (Pin, error) {
	digits := strings.TrimSpace(text)
	for _, sign := range []string{"=", " "} {
		if i := strings.LastIndex(digits, sign); i >= 0 {
			digits = digits[i+1:]
		}
	}
	if prefix, rest, found := strings.Cut(digits, ":"); found && (strings.EqualFold(prefix, "sha256") || strings.EqualFold(prefix, "sha-256")) {
		digits = rest
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(digits, ":", ""))
	if err != nil || len(raw) != sha256.Size {
		return Pin{}, &pinSyntaxError{}
	}
	return Pin(raw), nil
}

// pinSyntaxError: a text is no pin.
type pinSyntaxError struct{}

// Error says what it should be.
func (*pinSyntaxError) Error() string {
	return "the pin is not the SHA-256 fingerprint of a certificate: 64 hexadecimal digits"
}

// Hint says where to find it.
func (*pinSyntaxError) Hint() string {
	return "devopsController certificate prints it, on the machine of the controller"
}

// IsZero reports whether there is no pin.
func (p Pin) IsZero() bool { return p == Pin{} }

// PinOf is the pin of a certificate in DER.
func PinOf(der []byte) Pin { return sha256.Sum256(der) }

// String is the digest as openssl shows it: pairs of upper-case digits, with colons between them.
func (p Pin) String() string {
	pairs := make([]string, len(p))
	for i, b := range p {
		pairs[i] = fmt.Sprintf("%02X", b)
	}
	return strings.Join(pairs, ":")
}

// PinError says that a server has another certificate than the one that was pinned.
type PinError struct {
	Host      string
	Want, Got Pin
}

// Error names the server and both fingerprints.
func (e *PinError) Error() string {
	return fmt.Sprintf("the certificate of %s is not the pinned one: its SHA-256 is %s, pinned is %s", e.Host, e.Got, e.Want)
}

// Hint says what may have happened.
func (e *PinError) Hint() string {
	return "compare the pin with what devopsController certificate prints on the machine of the controller; if it is right, somebody else answers at this address"
}

// TLS is a configuration that trusts the pinned certificate and no other, whatever its names.
func (p Pin) TLS() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12,
		InsecureSkipVerify: true, // VerifyConnection takes the place of the verification by authorities and names
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return errors.New("the server has no certificate")
			}
			if got := PinOf(state.PeerCertificates[0].Raw); got != p {
				return &PinError{Host: state.ServerName, Want: p, Got: got}
			}
			return nil
		}}
}

// Trust asks a gateway for its certificate, by the transport of a client, and says nothing to it but that. If it is the
// pinned one, the client that it returns trusts it as well, with the usual check of its names; it returns the certificate,
// too. Errors are a *PinError, or say that there is no https or no connection, or that the certificate is of no use.
func (p Pin) Trust(ctx context.Context, gateway string, client *http.Client) (*http.Client, *x509.Certificate, error) {
	base := BaseURL(gateway)
	if !strings.HasPrefix(base, "https://") {
		return nil, nil, errors.New("a pin is given, and the address does not begin with https://")
	}
	own, known := client.Transport.(*http.Transport)
	if !known {
		return nil, nil, fmt.Errorf("pin a certificate: a transport of type %T", client.Transport)
	}
	probe := own.Clone()
	probe.TLSClientConfig = p.TLS()
	defer probe.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, base+"/", nil)
	if err != nil {
		return nil, nil, err
	}
	resp, err := (&http.Client{Transport: probe, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(req)
	if err != nil {
		var wrong *PinError
		if errors.As(err, &wrong) {
			wrong.Host = req.URL.Host
			return nil, nil, wrong
		}
		return nil, nil, fmt.Errorf("ask for the certificate: %w", err)
	}
	_ = resp.Body.Close()
	if resp.TLS == nil || len(resp.TLS.PeerCertificates) == 0 {
		return nil, nil, errors.New("ask for the certificate: the answer came without one")
	}
	cert := resp.TLS.PeerCertificates[0]
	trusting := own.Clone()
	if trusting.TLSClientConfig == nil {
		trusting.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	pool := trusting.TLSClientConfig.RootCAs
	if pool != nil {
		pool = pool.Clone()
	} else if pool, err = x509.SystemCertPool(); err != nil || pool == nil {
		pool = x509.NewCertPool()
	}
	pool.AddCert(cert)
	trusting.TLSClientConfig.RootCAs = pool
	made := *client
	made.Transport = trusting
	if err := usable(cert, pool, req.URL.Hostname()); err != nil {
		return nil, nil, err
	}
	return &made, cert, nil
}

// usable checks a pinned certificate as every later connection will.
func usable(cert *x509.Certificate, pool *x509.CertPool, host string) error {
	_, err := cert.Verify(x509.VerifyOptions{DNSName: host, Roots: pool})
	if err == nil {
		return nil
	}
	names := append([]string{}, cert.DNSNames...)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	return &unusableError{err: err, names: names}
}

// unusableError: the certificate is the pinned one, and does not fit the address or the time.
type unusableError struct {
	err   error
	names []string
}

// Error is the text of the cause.
func (e *unusableError) Error() string {
	return "the pinned certificate cannot be used: " + e.err.Error()
}

// Unwrap returns the cause.
func (e *unusableError) Unwrap() error { return e.err }

// Hint says how to go on.
func (e *unusableError) Hint() string {
	var name x509.HostnameError
	if errors.As(e.err, &name) {
		return "use one of the names that it is for: " + strings.Join(e.names, ", ") + "; or make another, with devopsController certificate --renew --name NAME"
	}
	return "look at the clocks of both machines, and at the certificate: devopsController certificate"
}

// CertificatePEM is a certificate as PEM text.
func CertificatePEM(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}
