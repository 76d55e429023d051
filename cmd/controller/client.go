package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/controller"
)

// api is the operator's side of a controller.
type api struct {
	base  string
	pin   string // fingerprint of the certificate that machines must pin; "" when they need not
	token wire.Secret
	http  *http.Client
	data  string // the data directory, when it was named and says where the controller is
}

// apiError is an answer that is not 200.
type apiError struct {
	code int
	text string
	hint string // the controller's, if it has one
}

// Error is the controller's text.
func (e *apiError) Error() string { return e.text }

// Hint is the controller's, or what to do about a refused token.
func (e *apiError) Hint() string {
	if e.hint != "" {
		return e.hint
	}
	switch e.code {
	case http.StatusUnauthorized:
		return "name the right token with --token-file: it is operator.token in the controller's data directory"
	case http.StatusForbidden:
		return "name an operator's token with --token-file; devopsController token add --role operator makes one"
	}
	return ""
}

// downError says that nobody answers.
type downError struct {
	url  string
	data string // the directory that was named, "" for the default
	err  error
}

// Error names the address.
func (e *downError) Error() string { return fmt.Sprintf("no controller at %s: %v", e.url, e.err) }

// Unwrap returns the cause.
func (e *downError) Unwrap() error { return e.err }

// Hint says how to get one.
func (e *downError) Hint() string { return "start one with: " + serveLine(e.data) }

// serveLine starts the controller of a data directory, that of the default when it is "".
func serveLine(data string) string {
	if data == "" {
		return "devopsController serve"
	}
	return commandLine([]string{"devopsController", "serve", "--data", data})
}

// tokenError: the file with the token that is to be used cannot be read.
type tokenError struct {
	err  error
	made bool // it is the one that the controller makes
}

// Error names the file.
func (e *tokenError) Error() string { return fmt.Sprintf("read the operator's token: %v", e.err) }

// Unwrap returns the cause.
func (e *tokenError) Unwrap() error { return e.err }

// Hint says where it comes from.
func (e *tokenError) Hint() string {
	if e.made && errors.Is(e.err, fs.ErrNotExist) {
		return "the controller makes it when it starts: end it and start it again"
	}
	return ""
}

// open finds the controller: by --url, or by the endpoint file of the data directory.
func (f *flags) open() (*api, error) {
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true}
	c := &api{base: f.url, http: &http.Client{Transport: transport}}
	pin := f.pin
	if c.base == "" {
		at, err := readEndpoint(f.dir())
		var unread *fs.PathError
		if errors.As(err, &unread) {
			return nil, &downError{url: f.dir(), data: f.data, err: err}
		}
		if err != nil {
			return nil, err
		}
		c.base, c.data = at.URL, f.data
		if pin == "" {
			pin = at.SHA256
		}
		if at.Own {
			c.pin = at.SHA256
		}
	}
	if pin != "" {
		p, err := wire.ParsePin(pin)
		if err != nil {
			return nil, err
		}
		transport.TLSClientConfig = p.TLS()
		if f.pin != "" {
			c.pin = p.String()
		}
	}
	c.base = wire.BaseURL(c.base)
	path := f.tokenFile
	if path == "" {
		path = filepath.Join(f.dir(), controller.TokenFile)
	}
	token, err := os.ReadFile(path)
	if err != nil {
		return nil, &tokenError{err: err, made: f.tokenFile == ""}
	}
	c.token = wire.Secret(strings.TrimSpace(string(token)))
	return c, nil
}

// request makes a call; the caller closes the body of an answer.
func (c *api) request(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(data)
	}
	return c.send(ctx, method, path, body)
}

// send is request with a body as it is.
func (c *api) send(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+"/api/v1"+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+string(c.token))
	resp, err := c.http.Do(req)
	if err != nil {
		var wrong *wire.PinError
		var untrusted *tls.CertificateVerificationError
		switch {
		case errors.As(err, &wrong):
			wrong.Host = req.URL.Host
			return nil, wrong
		case errors.As(err, &untrusted):
			return nil, &untrustedError{url: c.base, err: untrusted}
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			err = syscall.ECONNREFUSED
		}
		return nil, &downError{url: c.base, data: c.data, err: err}
	}
	if resp.StatusCode != http.StatusOK {
		defer func() { _ = resp.Body.Close() }()
		var said struct {
			Error   string `json:"error"`
			Message string `json:"message"`
			Hint    string `json:"hint"`
		}
		data, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		if json.Unmarshal(data, &said) != nil || said.Error+said.Message == "" {
			said.Error = "the controller answered " + resp.Status
		}
		return nil, &apiError{code: resp.StatusCode, text: said.Error + said.Message, hint: said.Hint}
	}
	return resp, nil
}

// call makes a call and decodes its answer; out may be nil.
func (c *api) call(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	resp, err := c.request(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("read the controller's answer: %w", err)
	}
	return nil
}

// printJSON writes one JSON value and a line feed.
func (f *flags) printJSON(v any) error {
	enc := json.NewEncoder(f.out)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// event is one line of a followed log.
type event struct {
	Line  *controller.Line  `json:"line,omitempty"`
	Build *controller.Build `json:"build,omitempty"`
}
