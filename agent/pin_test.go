package agent

import (
	"encoding/pem"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/agent/wire"
)

// overTLS is an installer with a certificate that nobody vouches for. Its package has the certificates given, if any.
func overTLS(t *testing.T, certs string) *installer {
	t.Helper()
	s := newInstaller(t, linuxInstall)
	s.Server = httptest.NewTLSServer(s)
	t.Cleanup(s.Server.Close)
	files := []string{"devopsAgent", "program", ".agent.properties", packageProperties("agt-1")}
	if certs != "" {
		files = append(files, ".cert", certs)
	}
	s.body = packed(t, files...)
	return s
}

func TestAPinnedCertificateBecomesTheAgents(t *testing.T) {
	for name, have := range map[string]struct{ packaged, own string }{
		"alone": {}, "beside one of the package": {packaged: "PACKAGED"}, "beside one of the home": {own: "OWN"},
		"as the package has it": {packaged: "SAME"},
	} {
		t.Run(name, func(t *testing.T) {
			s := overTLS(t, have.packaged)
			cert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
			if have.packaged == "SAME" {
				s.body = packed(t, ".agent.properties", packageProperties("agt-1"), ".cert", cert)
			}
			e := enrolment(t, s, io.Discard)
			e.Pin = wire.PinOf(s.Certificate().Raw)
			path := filepath.Join(e.Home, config.CertFile)
			if have.own != "" {
				if err := os.WriteFile(path, []byte(have.own), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if id, done, err := e.Run(t.Context()); err != nil || id != "agt-1" || !done {
				t.Fatalf("%s %t %v", id, done, err)
			}
			data, err := os.ReadFile(path)
			if err != nil || strings.Count(string(data), "BEGIN CERTIFICATE") != 1 || !strings.Contains(string(data), cert) ||
				!strings.Contains(string(data), have.own) || have.packaged == "PACKAGED" && !strings.HasPrefix(string(data), "PACKAGED\n") {
				t.Fatalf("%v\n%s", err, data)
			}
			roots, err := config.Roots(e.Home)
			if err != nil {
				t.Fatal(err)
			}
			client := wire.NewHTTPClient(wire.HTTPOptions{Roots: roots})
			defer client.CloseIdleConnections()
			resp, err := client.Get(s.URL)
			if err != nil {
				t.Fatalf("the agent does not trust it: %v", err)
			}
			_ = resp.Body.Close()
		})
	}
}

func TestAWrongPinWritesNothing(t *testing.T) {
	s := overTLS(t, "")
	e := enrolment(t, s, io.Discard)
	e.Pin = wire.PinOf([]byte("another"))
	var wrong *wire.PinError
	if _, _, err := e.Run(t.Context()); !errors.As(err, &wrong) || !strings.Contains(err.Error(), wire.PinOf(s.Certificate().Raw).String()) {
		t.Errorf("%v", err)
	}
	left, err := os.ReadDir(e.Home)
	if err != nil || len(left) != 0 {
		t.Errorf("%v %v", left, err)
	}
	if n := len(s.requests()); n != 0 {
		t.Errorf("the server was asked %d times", n)
	}
	e.Pin = wire.Pin{}
	if _, _, err := e.Run(t.Context()); err == nil {
		t.Error("it is trusted without a pin")
	}
}
