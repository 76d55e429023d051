package agent

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// TestEnrolmentThatReachesNobodySaysWhatToDo with real listeners, so that the errors are those of the system.
func TestEnrolmentThatReachesNobodySaysWhatToDo(t *testing.T) {
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := gone.Addr().String()
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	direct := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	proxied := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: nobody})}}
	for _, c := range []struct {
		name, gateway string
		http          *http.Client
		want          string
	}{
		{"nobody listens", "http://" + nobody, direct, "127.0.0.1 is this machine"},
		{"no TLS", "https://" + plain.Listener.Addr().String(), direct, "give its address with http://"},
		{"a proxy", "http://ci.invalid", proxied, "no_proxy=ci.invalid"},
	} {
		_, _, err := Enrolment{Home: t.TempDir(), Gateway: c.gateway, Token: wire.Secret("t"), GOOS: "linux", GOARCH: "amd64", HTTP: c.http}.Run(t.Context())
		var hinter interface{ Hint() string }
		if !errors.As(err, &hinter) || !strings.Contains(hinter.Hint(), c.want) {
			t.Errorf("%s: %v, hint %v", c.name, err, hinter)
		}
	}
	elsewhere := &url.Error{URL: "http://ci.example.com/x", Err: &net.OpError{Op: "dial", Err: errors.New("no route to host")}}
	if err := unreached(elsewhere); err != elsewhere.Err {
		t.Errorf("an error that nobody can say more of became %#v", err)
	}
}
