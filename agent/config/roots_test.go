package config

import (
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/devops-agent/devops-agent/agent/wire"
)

func TestRootsTrustTheCertFileAndNoOther(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that are meant to break
	server.StartTLS()
	defer server.Close()
	dir := t.TempDir()
	get := func() error {
		t.Helper()
		roots, err := Roots(dir)
		if err != nil {
			t.Fatal(err)
		}
		client := wire.NewHTTPClient(wire.HTTPOptions{Roots: roots})
		defer client.CloseIdleConnections()
		resp, err := client.Get(server.URL)
		if err == nil {
			_ = resp.Body.Close()
		}
		return err
	}
	if err := get(); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without .cert: %v", err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	write(t, filepath.Join(dir, CertFile), "some text\n"+string(cert))
	if err := get(); err != nil {
		t.Errorf("with .cert: %v", err)
	}
}

func TestACertFileWithoutACertificateIsAnError(t *testing.T) {
	for _, text := range []string{"", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, CertFile), text)
		var wrong *KeyError
		if _, err := Roots(dir); !errors.As(err, &wrong) || wrong.Hint() == "" {
			t.Errorf("%q: %v", text, err)
		}
	}
}
