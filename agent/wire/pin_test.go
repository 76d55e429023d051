package wire

import (
	"crypto/tls"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

func TestPinsAreReadAsPeopleCopyThem(t *testing.T) {
	want := PinOf([]byte("certificate"))
	colons := want.String()
	plain := strings.ReplaceAll(colons, ":", "")
	for _, text := range []string{colons, plain, strings.ToLower(colons), strings.ToLower(plain), " " + plain + "\n", "sha256:" + strings.ToLower(plain),
		"SHA256:" + colons, "SHA256 Fingerprint=" + colons, "sha256 Fingerprint=" + colons} {
		if got, err := ParsePin(text); err != nil || got != want {
			t.Errorf("%q: %v %v", text, got, err)
		}
	}
	for _, text := range []string{"", "sha256:", plain[:62], plain + "00", "g" + plain[1:], "sha1:" + plain} {
		var hinter interface{ Hint() string }
		if _, err := ParsePin(text); !errors.As(err, &hinter) {
			t.Errorf("%q is a pin: %v", text, err)
		}
	}
	if len(colons) != 95 || strings.ToUpper(colons) != colons {
		t.Errorf("shown as %s", colons)
	}
}

func FuzzPin(f *testing.F) {
	f.Add(PinOf(nil).String())
	f.Add("sha256:00")
	f.Add("SHA256 Fingerprint=")
	f.Fuzz(func(t *testing.T, text string) {
		if p, err := ParsePin(text); err == nil {
			if again, err := ParsePin(p.String()); err != nil || again != p {
				t.Errorf("%q: %v, read again %v %v", text, p, again, err)
			}
		}
	})
}

func TestAPinnedCertificateIsTrusted(t *testing.T) {
	var said atomic.Int32
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(HeaderInstallToken) != "" {
			said.Add(1)
		}
	}))
	defer s.Close()
	client := NewHTTPClient(HTTPOptions{})
	defer client.CloseIdleConnections()
	if _, err := client.Head(s.URL); err == nil {
		t.Fatal("it is trusted without a pin")
	}
	pin := PinOf(s.Certificate().Raw)
	trusting, cert, err := pin.Trust(t.Context(), s.URL+"/", client)
	if err != nil || !cert.Equal(s.Certificate()) {
		t.Fatal(err)
	}
	defer trusting.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), "GET", s.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(HeaderInstallToken, "token")
	resp, err := trusting.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.TLS.Version < tls.VersionTLS12 || said.Load() != 1 {
		t.Errorf("version %x, %d calls", resp.TLS.Version, said.Load())
	}
	if _, err := client.Head(s.URL); err == nil {
		t.Error("the client that was given trusts it as well")
	}
}

func TestAWrongPinIsRefused(t *testing.T) {
	calls := make(chan string, 10)
	s := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { calls <- r.Method }))
	defer s.Close()
	client := NewHTTPClient(HTTPOptions{})
	defer client.CloseIdleConnections()
	var wrong *PinError
	_, _, err := PinOf([]byte("another")).Trust(t.Context(), s.URL, client)
	if !errors.As(err, &wrong) || wrong.Got != PinOf(s.Certificate().Raw) || wrong.Host == "" || !strings.Contains(wrong.Hint(), "somebody else") {
		t.Errorf("%v", err)
	}
	if len(calls) != 0 {
		t.Error("the server with another certificate was called")
	}
	pin := PinOf(s.Certificate().Raw)
	if _, _, err := pin.Trust(t.Context(), "http://127.0.0.1:1", client); err == nil || !strings.Contains(err.Error(), "https") {
		t.Errorf("over http: %v", err)
	}
	// The server's certificate is for 127.0.0.1, and not for this name of it.
	var hinter interface{ Hint() string }
	address := strings.Replace(s.URL, "127.0.0.1", "localhost", 1)
	if _, _, err := pin.Trust(t.Context(), address, client); !errors.As(err, &hinter) || !strings.Contains(hinter.Hint(), "127.0.0.1") {
		t.Errorf("by a name that it is not for: %v", err)
	}
}
