package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/service/control"
)

func TestProblem(t *testing.T) {
	for _, c := range []struct {
		err  error
		want control.Problem
	}{
		{&wire.StatusError{HTTP: 401, Code: 401}, control.Refused},
		{fmt.Errorf("startup: %w", &wire.StatusError{HTTP: 403}), control.Refused},
		{&wire.StatusError{HTTP: 200, Code: 401}, control.Refused},
		{&wire.StatusError{HTTP: 404, Code: 404}, control.Refused},
		{&wire.StatusError{HTTP: 404}, control.ServerError},
		{&wire.StatusError{HTTP: 500, Code: 500}, control.ServerError},
		{&wire.StatusError{HTTP: 429}, control.ServerError},
		{&wire.BodyError{Err: errors.New("html")}, control.ServerError},
		{&wire.TimeoutError{Limit: time.Second}, control.Unreachable},
		{&net.DNSError{Err: "no such host"}, control.Unreachable},
		{io.ErrUnexpectedEOF, control.Unreachable},
		{x509.UnknownAuthorityError{}, control.Certificate},
		{x509.HostnameError{Certificate: &x509.Certificate{}, Host: "x"}, control.Certificate},
	} {
		if got := problem(c.err, false); got != c.want {
			t.Errorf("%v: %s, want %s", c.err, got, c.want)
		}
	}
}

// authority is a certificate that signs others, or itself when by is nil.
func authority(t *testing.T, by *tls.Certificate, from, until time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	plain := &x509.Certificate{SerialNumber: big.NewInt(from.Unix()), Subject: pkix.Name{CommonName: "test"}, NotBefore: from, NotAfter: until,
		IsCA: by == nil, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	signer, parent := any(key), plain
	if by != nil {
		signer, parent = by.PrivateKey, by.Leaf
	}
	der, err := x509.CreateCertificate(rand.Reader, plain, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// TestProblemOfCertificates asks real TLS: expired, of an expired authority, of the future, of nobody we know.
func TestProblemOfCertificates(t *testing.T) {
	now := time.Now()
	past, old, soon, future := now.Add(-48*time.Hour), now.Add(-24*time.Hour), now.Add(9*time.Hour), now.Add(48*time.Hour)
	for _, c := range []struct {
		name               string
		caFrom, caUntil    time.Time
		leafFrom, leafTill time.Time
		unknown            bool
		want, clock        control.Problem // clock: when our clock is known to be wrong
	}{
		{"sound", past, future, past, future, false, "", ""},
		{"expired", past, future, past, old, false, control.Certificate, control.Clock},
		{"expired authority", past, old, past, future, false, control.Certificate, control.Clock},
		{"not yet valid", past, future, soon, future, false, control.Clock, control.Clock},
		{"authority not yet valid", soon, future, past, future, false, control.Clock, control.Clock},
		{"unknown authority", past, future, past, future, true, control.Certificate, control.Certificate},
	} {
		t.Run(c.name, func(t *testing.T) {
			ca := authority(t, nil, c.caFrom, c.caUntil)
			leaf := authority(t, &ca, c.leafFrom, c.leafTill)
			s := httptest.NewUnstartedServer(http.NotFoundHandler())
			s.TLS = &tls.Config{Certificates: []tls.Certificate{leaf}}
			s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
			s.StartTLS()
			defer s.Close()
			roots := x509.NewCertPool()
			if !c.unknown {
				roots.AddCert(ca.Leaf)
			}
			client := wire.NewHTTPClient(wire.HTTPOptions{Roots: roots})
			defer client.CloseIdleConnections()
			_, err := (&wire.Client{Gateway: s.URL, HTTP: client, Timeout: 10 * time.Second}).Status(t.Context())
			if c.want == "" {
				var refused *wire.StatusError
				if !errors.As(err, &refused) {
					t.Fatalf("err %v", err)
				}
				return
			}
			if got, clock := problem(err, false), problem(err, true); got != c.want || clock != c.clock {
				t.Errorf("%v: %s, and %s with a wrong clock", err, got, clock)
			}
		})
	}
}

// TestHealthOfTheServer: what is said while a server goes, is away, comes back, and has another time of day.
func TestHealthOfTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mood atomic.Value
		mood.Store("good")
		s := setStage(t, "ask", &server{})
		s.answer = func(c call) (int, http.Header, string) {
			switch mood.Load() {
			case "away":
				return 0, nil, ""
			case "refuses":
				return 404, nil, `{"status":404,"message":"no"}`
			case "nine hours ago":
				code, _, body := normal(c)
				return code, http.Header{"Date": {time.Now().Add(-9 * time.Hour).UTC().Format(http.TimeFormat)}}, body
			}
			code, _, body := normal(c)
			return code, http.Header{"Date": {time.Now().UTC().Format(http.TimeFormat)}}, body
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Agent.Run(ctx) }()
		is := func(m string, problem control.Problem, sentence string) {
			t.Helper()
			mood.Store(m)
			time.Sleep(time.Minute + 1100*time.Millisecond)
			synctest.Wait()
			got := s.Status()
			if got.Server.Problem != problem || (got.Server.Failing != nil) != (problem != "" && problem != control.Clock) {
				t.Errorf("%s: %+v", m, got.Server)
			}
			if text := s.sentence(time.Now()); !strings.Contains(text, sentence) {
				t.Errorf("%s: %q", m, text)
			}
		}
		is("good", "", "idle, last contact ")
		if got := s.Status(); got.Server.ClockOffset == nil || *got.Server.ClockOffset != 0 || got.Server.Protocol != "ask" || got.Phase != control.Running ||
			got.Server.AgentStatus != "IMPORT_OK" || got.Slots.Parallel != 2 || got.Disk.Free == 0 || got.Builds == nil || got.Overrides == nil {
			t.Errorf("status %+v", got)
		}
		is("away", control.Unreachable, "server unreachable since ")
		is("refuses", control.Refused, "server refuses this agent since ")
		is("good", "", "idle")
		is("nine hours ago", control.Clock, "this machine's clock is 9h0m")
		s.diskFull.Store(true)
		s.workerLost.Store(true)
		text := s.sentence(time.Now())
		for _, want := range []string{"disk full: ", "no worker: "} {
			if !strings.Contains(text, want) {
				t.Errorf("%q does not say %q", text, want)
			}
		}
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestSentenceWhileStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := setStage(t, "ask", &server{answer: normal})
		if got := s.sentence(time.Now()); got != "starting: waiting for the server http://127.0.0.2" {
			t.Errorf("%q", got)
		}
		slot, ok := s.slots.Reserve().Claim(wire.Build{ID: "b", VMSeq: "1"})
		if !ok {
			t.Fatal("no seat")
		}
		if err := s.Drain(); err != nil {
			t.Fatal(err)
		}
		if got := s.sentence(time.Now()); got != `draining: 1 build running, takes no more until "devopsAgent resume"` {
			t.Errorf("%q", got)
		}
		s.Stop(false)
		if got, want := s.sentence(time.Now()), "draining: 1 build running, stops at "+time.Now().Add(10*time.Minute).Format(time.TimeOnly); got != want {
			t.Errorf("%q, want %q", got, want)
		}
		slot.Release()
		if got := s.sentence(time.Now()); got != "stopping" {
			t.Errorf("%q", got)
		}
	})
}

func noEnvironment(string) string { return "" }

// TestEnrollerWaitsForWhatItNeeds: a service that a package brought waits, says for what, sees a mistake, and goes on by itself when
// there is a file, or when somebody enrols the machine beside it.
func TestEnrollerWaitsForWhatItNeeds(t *testing.T) {
	script := map[string]string{"linux": linuxInstall, "darwin": macInstall, "windows": windowsInstall}[runtime.GOOS]
	for _, byHand := range []bool{false, true} {
		at := newInstaller(t, script)
		home, etc := t.TempDir(), t.TempDir()
		e := NewEnroller(Options{Installation: &service.Installation{Home: home}, Log: slog.New(slog.DiscardHandler), GOOS: runtime.GOOS, GOARCH: "amd64",
			Config: &config.Config{Path: filepath.Join(etc, "agent.toml")}}, noEnvironment)
		ended := make(chan error, 1)
		go func() {
			done, err := e.Run(t.Context())
			if !done && err == nil {
				err = errors.New("it gave up")
			}
			ended <- err
		}()
		until := func(what string, ok func(control.Status) bool) {
			t.Helper()
			for deadline := time.Now().Add(30 * time.Second); ; runtime.Gosched() {
				answer, err := e.Control(t.Context(), control.Request{Op: control.OpStatus})
				if err != nil {
					t.Fatal(err)
				}
				s, _ := answer.(control.Status)
				if s.Phase != control.Unenrolled {
					t.Fatalf("phase %q", s.Phase)
				}
				if ok(s) {
					return
				}
				if time.Now().After(deadline) {
					t.Fatalf("%s: %+v, %q", what, s.Server, e.sentence(time.Now()))
				}
			}
		}
		until("nothing to go by", func(control.Status) bool {
			return strings.Contains(e.sentence(time.Now()), `type "devopsAgent enroll --gateway URL --token-file FILE", or put a file into `+filepath.Join(etc, "enroll.d"))
		})
		if err := os.MkdirAll(filepath.Join(etc, "enroll.d"), 0o700); err != nil {
			t.Fatal(err)
		}
		write := func(name, text string) {
			t.Helper()
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		file := filepath.Join(etc, "enroll.d", "10-first.toml")
		write(file, "gateway = \"x\"\ntokken = \"secret words\"\n")
		until("a mistake in the file", func(s control.Status) bool { return strings.Contains(s.Server.Error, "10-first.toml:2") })
		if strings.Contains(e.sentence(time.Now()), "secret words") {
			t.Errorf("the token is told: %s", e.sentence(time.Now()))
		}
		if byHand {
			if _, _, err := (Enrolment{Home: home, Gateway: at.URL, Token: installToken, GOOS: runtime.GOOS, GOARCH: "amd64", HTTP: http.DefaultClient, Log: slog.New(slog.DiscardHandler)}).Run(t.Context()); err != nil {
				t.Fatal(err)
			}
		} else {
			write(file, fmt.Sprintf("gateway = %q\ntoken = %q\n", at.URL, "wrong"))
			until("a wrong token", func(s control.Status) bool {
				return strings.Contains(s.Server.Error, "HTTP 400") && s.Server.Gateway == at.URL
			})
			write(file, fmt.Sprintf("gateway = %q\ntoken = %q\n", at.URL, installToken))
		}
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if id, err := identityIn(home); err != nil || id != "agt-1" || at.made() != 1 {
			t.Errorf("identity %q, %v, %d records", id, err, at.made())
		}
	}
}

// TestEnrollerTriesUntilItWorks: no token yet, a wrong one, and then the right one.
func TestEnrollerTriesUntilItWorks(t *testing.T) {
	script := map[string]string{"linux": linuxInstall, "darwin": macInstall, "windows": windowsInstall}[runtime.GOOS]
	at := newInstaller(t, script)
	home := t.TempDir()
	token := filepath.Join(home, "token")
	e := NewEnroller(Options{Installation: &service.Installation{Home: home}, Log: slog.New(slog.DiscardHandler), GOOS: runtime.GOOS, GOARCH: "amd64",
		Config: &config.Config{Enroll: config.Enroll{Gateway: at.URL, TokenFile: token}}}, noEnvironment)
	how, err := e.find()
	if err != nil || how == nil {
		t.Fatal(how, err)
	}
	for _, c := range []struct {
		token string
		want  string
	}{{"", "read install token"}, {"two\nlines", "does not hold one line"}, {"wrong", "HTTP 400"}} {
		if c.token != "" {
			if err := os.WriteFile(token, []byte(c.token), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := e.once(t.Context(), how); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("token %q: %v", c.token, err)
		}
	}
	if err := os.WriteFile(token, []byte(installToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if done, err := e.Run(t.Context()); !done || err != nil {
		t.Fatalf("%v, %v", done, err)
	}
	if id, err := identityIn(home); err != nil || id != "agt-1" || at.made() != 1 {
		t.Errorf("identity %q, %v, %d records", id, err, at.made())
	}
}

// TestEnrollerWaitsAndCanBeStopped.
func TestEnrollerWaitsAndCanBeStopped(t *testing.T) {
	home := t.TempDir()
	n, said := keeper(t, "45000000")
	synctest.Test(t, func(t *testing.T) {
		e := NewEnroller(Options{Installation: &service.Installation{Home: home}, Log: slog.New(slog.DiscardHandler), GOOS: "linux", GOARCH: "amd64", Notify: n,
			Config: &config.Config{Enroll: config.Enroll{Gateway: "http://127.0.0.2", TokenFile: filepath.Join(home, "none")}}}, noEnvironment)
		done := make(chan error, 1)
		go func() {
			enrolled, err := e.Run(t.Context())
			if enrolled {
				err = errors.New("enrolled without a token")
			}
			done <- err
		}()
		time.Sleep(time.Hour)
		synctest.Wait()
		answer, err := e.Control(t.Context(), control.Request{Op: control.OpStatus})
		if s, ok := answer.(control.Status); err != nil || !ok || s.Phase != control.Unenrolled || s.Server.Failing == nil || s.Builds == nil {
			t.Errorf("status %+v, %v", answer, err)
		}
		if _, err := e.Control(t.Context(), control.Request{Op: control.OpDrain}); err == nil {
			t.Error("a machine that is not enrolled drains")
		}
		if _, err := e.Control(t.Context(), control.Request{Op: control.OpStop}); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if text := said(); !strings.Contains(text, "READY=1") || !strings.Contains(text, "not enrolled, trying on: ") || strings.Count(text, "WATCHDOG=1") < 300 {
			t.Errorf("said %.500q", text)
		}
	})
}
