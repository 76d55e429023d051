package controller

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

func TestAControllerMakesItsCertificateOnce(t *testing.T) {
	dir := t.TempDir()
	cert, key, err := OwnCertificate(dir, []string{"ci.example.com", "192.0.2.7", "::1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c, err := OpenCertificate(cert, key, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"ci.example.com": true, "192.0.2.7": true, "[::1]": true, "other.example.com": false, "192.0.2.8": false} {
		if got := c.Leaf().VerifyHostname(name) == nil; got != want {
			t.Errorf("for %s: %t", name, got)
		}
	}
	if c.Leaf().IsCA || time.Until(c.Leaf().NotAfter) < 9*365*24*time.Hour {
		t.Errorf("authority %t, until %v", c.Leaf().IsCA, c.Leaf().NotAfter)
	}
	if info, err := os.Stat(key); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v %v", info.Mode(), err)
	}
	pin := c.Pin()
	if _, _, err := OwnCertificate(dir, []string{"elsewhere"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	again, err := ReadCertificate(cert)
	if err != nil || wire.PinOf(again.Raw) != pin {
		t.Errorf("a second start makes another: %v", err)
	}
	// A crash after the key was written: the certificate was never there, so nobody has pinned it.
	if err := os.Remove(cert); err != nil {
		t.Fatal(err)
	}
	if _, _, err := OwnCertificate(dir, []string{"a"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenCertificate(cert, key, slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
	// A key that is lost is an error, not a reason to make another: agents have pinned the certificate.
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if _, _, err := OwnCertificate(dir, []string{"a"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	var bad *CertificateError
	if _, err := OpenCertificate(cert, key, slog.New(slog.DiscardHandler)); !errors.As(err, &bad) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without its key: %v", err)
	}
}

// tlsServer serves a certificate, and says which one it shows to a client.
func tlsServer(t *testing.T, c *Certificate, handler http.Handler) (shown func() wire.Pin, address string) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: handler, TLSConfig: c.TLS(), ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.ServeTLS(listener, "", "") }()
	t.Cleanup(func() {
		_ = s.Close()
		<-ended
	})
	address = listener.Addr().String()
	return func() wire.Pin {
		conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if state := conn.ConnectionState(); state.NegotiatedProtocol != "h2" || state.Version < tls.VersionTLS12 {
			t.Errorf("protocol %q, TLS %x", state.NegotiatedProtocol, state.Version)
		}
		return wire.PinOf(conn.ConnectionState().PeerCertificates[0].Raw)
	}, address
}

func TestACertificateFollowsItsFiles(t *testing.T) {
	dir := t.TempDir()
	cert, key, err := OwnCertificate(dir, []string{"127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	c, err := OpenCertificate(cert, key, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	shown, address := tlsServer(t, c, http.NotFoundHandler())
	first := c.Pin()
	if shown() != first {
		t.Fatal("it shows another certificate")
	}
	if conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11}); err == nil {
		_ = conn.Close()
		t.Error("it speaks TLS 1.1")
	}
	// What cannot be used is not taken.
	good, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	old := t.TempDir()
	if err := RenewOwnCertificate(old, []string{"127.0.0.1"}, time.Now().Add(-2*ownCertLife)); err != nil {
		t.Fatal(err)
	}
	expired, err := os.ReadFile(filepath.Join(old, OwnCertFile))
	if err != nil {
		t.Fatal(err)
	}
	goodKey, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	oldKey, err := os.ReadFile(filepath.Join(old, OwnKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	for name, files := range map[string][2][]byte{"nonsense": {[]byte("nonsense"), goodKey}, "another's key": {good, oldKey}, "expired": {expired, oldKey},
		"long": {bytes.Repeat([]byte("x"), maxCertFile+1), goodKey}} {
		if err := errors.Join(os.WriteFile(cert, files[0], 0o600), os.WriteFile(key, files[1], 0o600)); err != nil {
			t.Fatal(err)
		}
		log.Reset()
		if c.reload(time.Now()) || shown() != first || !strings.Contains(log.String(), "the old one stays") {
			t.Errorf("%s: %s", name, log.String())
		}
	}
	if err := errors.Join(os.Remove(cert), os.Remove(key)); err != nil {
		t.Fatal(err)
	}
	if c.reload(time.Now()) || shown() != first {
		t.Error("files that are gone take the certificate away")
	}

	// A good one is taken by the loop.
	ctx, cancel := context.WithCancel(t.Context())
	changed, ended := make(chan struct{}, 10), make(chan struct{})
	go func() {
		defer close(ended)
		_ = c.Run(ctx, 10*time.Millisecond, func() { changed <- struct{}{} })
	}()
	if err := RenewOwnCertificate(dir, []string{"127.0.0.1"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-time.After(30 * time.Second):
		t.Error("a new certificate is not taken")
	}
	now := shown()
	cancel()
	<-ended
	fresh, err := ReadCertificate(cert)
	if err != nil || now != wire.PinOf(fresh.Raw) || now == first {
		t.Errorf("it shows %s: %v", now, err)
	}
}

func TestLocalNames(t *testing.T) {
	names := LocalNames("CI.example.com.", "", "127.0.0.1", "0:0:0:0:0:0:0:1", "ci.example.com")
	if names[0] != "ci.example.com" || names[1] != "127.0.0.1" || names[2] != "::1" || !strings.Contains(strings.Join(names, " "), "localhost") {
		t.Errorf("%q", names)
	}
	seen := map[string]bool{}
	for _, name := range names {
		if seen[name] || name == "" {
			t.Errorf("%q twice or empty: %q", name, names)
		}
		seen[name] = true
		if ip := net.ParseIP(name); ip != nil && ip.IsLinkLocalUnicast() {
			t.Errorf("an address of one link: %s", name)
		}
	}
}

func TestNewAgentsGetTheControllersCertificate(t *testing.T) {
	dir := t.TempDir()
	certFile, _, err := OwnCertificate(dir, []string{"127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	w := serve(t, Options{Dir: dir, OwnCertificate: true})
	if got := w.server.certificate(); !bytes.Equal(got, own) {
		t.Errorf("alone: %q", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "cert.pem"), []byte("YOURS"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := w.server.certificate(); string(got) != "YOURS\n"+string(own) {
		t.Errorf("beside the operator's: %q", got)
	}
}

func FuzzCertificateFile(f *testing.F) {
	dir := f.TempDir()
	if err := RenewOwnCertificate(dir, []string{"a"}, time.Unix(1700000000, 0)); err != nil {
		f.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, OwnCertFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(data))
	f.Add("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(t.TempDir(), "cert")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if cert, err := ReadCertificate(path); err == nil && len(cert.Raw) == 0 {
			t.Error("a certificate without content")
		}
	})
}

// The install script of a controller with a certificate of its own fetches the package by that certificate.
func TestTheInstallScriptTrustsTheControllersCertificate(t *testing.T) {
	for _, program := range []string{"sh", "curl", "unzip"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("needs " + program)
		}
	}
	dir, home := t.TempDir(), t.TempDir()
	cert, key, err := OwnCertificate(dir, []string{"127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c, err := OpenCertificate(cert, key, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Dir: dir, OwnCertificate: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	_, address := tlsServer(t, c, s.Handler())
	token, _, err := s.EnrolToken("", nil)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `curl -fsS --cacert "$CERT" -H "X-DEVOPS-AGENT-INSTALL-TOKEN: $TOKEN" "$URL" >"$SCRIPT" && sh "$SCRIPT"`)
	cmd.Dir = home
	cmd.Env = append(os.Environ(), "CERT="+cert, "TOKEN="+string(token), "SCRIPT="+filepath.Join(t.TempDir(), "install.sh"), "no_proxy=127.0.0.1",
		"URL=https://"+address+wire.PathExternal+"/LINUX/batchInstall")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "installed without programs") {
		t.Fatalf("%v\n%s", err, out)
	}
	own, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(home, ".cert")); err != nil || !bytes.Equal(got, own) {
		t.Errorf(".cert: %v\n%s", err, got)
	}
	properties, err := os.ReadFile(filepath.Join(home, ".agent.properties"))
	if err != nil || !strings.Contains(string(properties), "landun.gateway=https://"+address) {
		t.Errorf(".agent.properties: %v", err)
	}
}
