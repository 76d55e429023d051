package wire

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// HTTPOptions shape an HTTP client for the gateway.
type HTTPOptions struct {
	Roots *x509.CertPool                        // nil means the system's
	Proxy func(*http.Request) (*url.URL, error) // nil means none
	Dial  time.Duration                         // time limit of a connect; 0 means 10 s
}

// NewHTTPClient makes a client that keeps one connection alive, speaks TLS 1.2 or newer, takes gzip, and does not
// carry the secret to another host on a redirect. It sets no time limit: Client does, for each call.
func NewHTTPClient(o HTTPOptions) *http.Client {
	if o.Dial <= 0 {
		o.Dial = 10 * time.Second
	}
	dialer := &net.Dialer{Timeout: o.Dial, KeepAlive: 15 * time.Second}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                  o.Proxy,
			DialContext:            dialer.DialContext,
			TLSClientConfig:        &tls.Config{RootCAs: o.Roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    10 * time.Second,
			ForceAttemptHTTP2:      true,
			MaxIdleConns:           4,
			MaxIdleConnsPerHost:    2,
			IdleConnTimeout:        2 * time.Minute,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: sameHost,
	}
}

// sameHost allows a redirect only where the secret may go: the same host, and never from https down to http. A 301,
// 302 or 303 of a POST would arrive as a GET without a body, which is another request: it is refused as well.
func sameHost(req *http.Request, via []*http.Request) error {
	first := via[0].URL
	switch {
	case len(via) >= 5:
		return errors.New("more than five redirects")
	case !strings.EqualFold(req.URL.Hostname(), first.Hostname()):
		return fmt.Errorf("redirect to another host, %s; set landun.gateway to it if it is the right one", req.URL.Host)
	case first.Scheme == "https" && req.URL.Scheme != "https":
		return errors.New("redirect from https to http")
	case req.Method != via[0].Method:
		return fmt.Errorf("redirect to %s://%s would turn %s into %s; set landun.gateway to where the server is",
			req.URL.Scheme, req.URL.Host, via[0].Method, req.Method)
	}
	return nil
}
