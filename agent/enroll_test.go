package agent

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/devops-agent/devops-agent/agent/wire"
)

const (
	installToken = "tok3n-of-a-batch"
	agentSecret  = "0123456789abcdef"
)

// Install scripts in the spirit of protocol §5.3 and §5.7; AGENT and URL are filled in.
const (
	linuxInstall = `#!/bin/bash
set -e
project_id='demo'
agent_id='AGENT'
case "$(uname -m)" in aarch64|arm64) ARCH=arm64;; mips64) ARCH=mips64;; *) ARCH=;; esac
if [ ! -f agent.zip ]; then
  curl -f -H "X-DEVOPS-PROJECT-ID: ${project_id}" -o agent.zip "URL?arch=${ARCH}" || wget -O agent.zip "URL?arch=${ARCH}"
fi
unzip -o agent.zip
`
	macInstall = `#!/bin/sh
projectId="demo"
agent_id="AGENT"
curl -H "X-DEVOPS-PROJECT-ID: $projectId" -o agent.zip 'URL?arch=${ARCH}'
`
	windowsInstall = "@echo off\r\nset project_id=demo\r\nset agent_id=AGENT\r\n" +
		"powershell -Command \"Invoke-WebRequest -Uri 'URL' -OutFile agent.zip\"\r\n"
	powershellInstall = "$project_id = 'demo'\r\n$agent_id = 'AGENT'\r\nInvoke-WebRequest -Uri \"URL\" -OutFile agent.zip\r\n"
)

func packageProperties(id string) string {
	return "devops.project.id=demo\ndevops.agent.id=" + id + "\ndevops.agent.secret.key=" + agentSecret +
		"\nlandun.gateway=http://ci.example.com\ndevops.parallel.task.count=4\nlandun.env=PROD\n"
}

// packed is a ZIP of names and contents.
func packed(t *testing.T, files ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	for i := 0; i < len(files); i += 2 {
		w, err := z.Create(files[i])
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, files[i+1])
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// installer plays the server side of protocol §5.3 and §5.4.
type installer struct {
	*httptest.Server
	script string // with AGENT and URL in it
	body   []byte // the package

	mu       sync.Mutex
	records  int // that were made
	asked    []string
	packages []*http.Request
	refuse   http.HandlerFunc // answers the package request instead, when set
}

func newInstaller(t *testing.T, script string) *installer {
	t.Helper()
	s := &installer{script: script}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	s.body = packed(t, "devopsAgent", "program", ".agent.properties", packageProperties("agt-1"), ".cert", "CERTIFICATE")
	return s
}

// ServeHTTP makes agt-1, agt-2, ….
func (s *installer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, r.URL.RequestURI())
	const external = "/ms/environment/api/external/thirdPartyAgent/"
	switch rest := strings.TrimPrefix(r.URL.Path, external); {
	case strings.HasSuffix(rest, "/batchInstall"):
		if r.Header.Get("X-DEVOPS-AGENT-INSTALL-TOKEN") != installToken {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"status":2105012,"message":"token `+r.Header.Get("X-DEVOPS-AGENT-INSTALL-TOKEN")+` expired"}`)
			return
		}
		s.records++
		id := fmt.Sprintf("agt-%d", s.records)
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = io.WriteString(w, strings.NewReplacer("AGENT", id, "URL", s.URL+external+id+"/agent").Replace(s.script))
	case strings.HasSuffix(rest, "/agent"):
		s.packages = append(s.packages, r.Clone(context.Background()))
		if s.refuse != nil {
			s.refuse(w, r)
			return
		}
		_, _ = w.Write(s.body)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// made is how many records there are, fetched the requests for a package.
func (s *installer) made() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.records
}

func (s *installer) fetched() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.packages)
}

func (s *installer) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

func (s *installer) with(refuse http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = refuse
}

// enrolment is one of a fresh home at s; what it logs goes to log.
func enrolment(t *testing.T, s *installer, log io.Writer) Enrolment {
	t.Helper()
	h := wire.NewHTTPClient(wire.HTTPOptions{})
	t.Cleanup(h.CloseIdleConnections)
	return Enrolment{Home: t.TempDir(), Gateway: s.URL, Token: installToken, GOOS: "linux", GOARCH: "amd64", HTTP: h,
		Log: slog.New(slog.NewTextHandler(log, nil))}
}

func TestEnrol(t *testing.T) {
	for _, tc := range []struct{ goos, goarch, script, path, arch string }{
		{"linux", "amd64", linuxInstall, "/LINUX/batchInstall", ""},
		{"linux", "arm64", linuxInstall, "/LINUX/batchInstall", "arm64"},
		{"linux", "mips64", linuxInstall, "/LINUX/batchInstall", "mips64"},
		{"darwin", "arm64", macInstall, "/MACOS/batchInstall", "arm64"},
		{"windows", "amd64", windowsInstall, "/WINDOWS/batchInstall", ""},
		{"windows", "amd64", powershellInstall, "/WINDOWS/batchInstall", ""},
	} {
		t.Run(tc.goos+" "+tc.goarch, func(t *testing.T) {
			s := newInstaller(t, tc.script)
			e := enrolment(t, s, io.Discard)
			e.GOOS, e.GOARCH, e.Zone = tc.goos, tc.goarch, "shenzhen & more"
			id, done, err := e.Run(t.Context())
			if err != nil || !done || id != "agt-1" {
				t.Fatalf("%q, %v, %v", id, done, err)
			}
			if asked := s.requests(); len(asked) != 2 || !strings.HasSuffix(asked[0], tc.path+"?zoneName=shenzhen+%26+more") {
				t.Errorf("asked %q", asked)
			}
			p := s.fetched()[0]
			if p.Header.Get("X-DEVOPS-PROJECT-ID") != "demo" || p.URL.Query().Get("arch") != tc.arch || p.URL.Query().Has("arch") != (tc.arch != "") ||
				p.Header.Get("X-DEVOPS-AGENT-INSTALL-TOKEN") != "" {
				t.Errorf("package asked for with %s, %v", p.URL, p.Header)
			}
			if data, err := os.ReadFile(filepath.Join(e.Home, ".agent.properties")); err != nil || !strings.HasPrefix(string(data), packageProperties("agt-1")) && string(data) != packageProperties("agt-1") {
				t.Errorf("properties %q, %v", data, err)
			}
			if data, err := os.ReadFile(filepath.Join(e.Home, ".cert")); err != nil || string(data) != "CERTIFICATE" {
				t.Errorf("cert %q, %v", data, err)
			}
			if got := strings.Join(homeFiles(t, e.Home), " "); got != ".agent.properties .cert" {
				t.Errorf("home holds %s", got)
			}
			// Again, and with another token, and with the server gone: nothing happens.
			e.Token = "another"
			if id, done, err := e.Run(t.Context()); id != "agt-1" || done || err != nil {
				t.Errorf("again: %q, %v, %v", id, done, err)
			}
			if s.made() != 1 || len(s.fetched()) != 1 {
				t.Errorf("%d records, %d packages", s.made(), len(s.fetched()))
			}
		})
	}
}

// homeFiles are the names in a home, each checked to be private; what config.Open adds when the identity is read
// apart.
func homeFiles(t *testing.T, home string) []string {
	t.Helper()
	entries, err := os.ReadDir(home)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		mode := os.FileMode(0o600)
		if e.Name() == ".cert" { // workers of another account read it
			mode = 0o644
		}
		if info, err := e.Info(); err != nil || info.Mode().Perm() != mode && runtime.GOOS != "windows" {
			t.Errorf("%s: mode %v, %v", e.Name(), info.Mode(), err)
		}
		if e.Name() != ".agent.properties.bak" {
			names = append(names, e.Name())
		}
	}
	return names
}

// TestEnrolGoesOnWhereItWasInterrupted: one record, however many tries its package takes (protocol §5.5, step 5).
func TestEnrolGoesOnWhereItWasInterrupted(t *testing.T) {
	s := newInstaller(t, linuxInstall)
	e := enrolment(t, s, io.Discard)
	half := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(s.body)))
		_, _ = w.Write(s.body[:len(s.body)/2])
	}
	cut := func(w http.ResponseWriter, _ *http.Request) { // looks complete
		_, _ = w.Write(s.body[:len(s.body)/2])
	}
	down := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
	for name, refuse := range map[string]http.HandlerFunc{"half": half, "cut": cut, "down": down} {
		s.with(refuse)
		id, done, err := e.Run(t.Context())
		if err == nil || id != "" || done {
			t.Fatalf("%s: %q, %v, %v", name, id, done, err)
		}
		var hinter interface{ Hint() string }
		if !errors.As(err, &hinter) || !strings.Contains(hinter.Hint(), filepath.Join(e.Home, ".enrolment")) || !strings.Contains(err.Error(), "agt-1") {
			t.Errorf("%s: %v tells nobody what to do", name, err)
		}
		if got := strings.Join(homeFiles(t, e.Home), " "); got != ".enrolment" {
			t.Errorf("%s: home holds %s", name, got)
		}
	}
	// What a killed try leaves goes with the next one.
	if err := os.WriteFile(filepath.Join(e.Home, ".agent-package-77"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s.with(nil)
	if id, done, err := e.Run(t.Context()); id != "agt-1" || !done || err != nil {
		t.Errorf("at last: %q, %v, %v", id, done, err)
	}
	if s.made() != 1 {
		t.Errorf("%d records were made", s.made())
	}
	if got := strings.Join(homeFiles(t, e.Home), " "); got != ".agent.properties .cert" {
		t.Errorf("home holds %s", got)
	}
}

// TestEnrolAtAnotherServer: the record that the first one made is not looked for there.
func TestEnrolAtAnotherServer(t *testing.T) {
	wrong, right := newInstaller(t, linuxInstall), newInstaller(t, linuxInstall)
	wrong.with(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	e := enrolment(t, wrong, io.Discard)
	if _, _, err := e.Run(t.Context()); err == nil {
		t.Fatal("no package and no error")
	}
	e.Gateway = right.URL + "/"
	if id, done, err := e.Run(t.Context()); id != "agt-1" || !done || err != nil || right.made() != 1 {
		t.Errorf("%q, %v, %v, %d records", id, done, err, right.made())
	}
}

// TestPackagesThatAreRefused leave the home as it was, so that the next try is not told "already enrolled".
func TestPackagesThatAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		body []byte
		want string
	}{
		"no properties":   {packed(t, "devopsAgent", "x"), "no .agent.properties in it"},
		"wrong id":        {packed(t, ".agent.properties", packageProperties("agt-9"), ".cert", "X"), `identity of "agt-9"`},
		"empty id":        {packed(t, ".agent.properties", packageProperties("")), "no identity"},
		"no gateway":      {packed(t, ".agent.properties", "devops.project.id=demo\ndevops.agent.id=agt-1\ndevops.agent.secret.key=x\n"), "landun.gateway"},
		"zip bomb":        {packed(t, ".agent.properties", packageProperties("agt-1")+strings.Repeat("#", 4<<20)), "longer than 1048576 bytes"},
		"bomb for a cert": {packed(t, ".agent.properties", packageProperties("agt-1"), ".cert", strings.Repeat("x", 4<<20)), ".cert: longer than 1048576 bytes"},
		"no zip":          {[]byte("<html>sign in</html>"), "not a valid zip file"},
		"empty":           {nil, "not a valid zip file"},
		"elsewhere":       {packed(t, "../.agent.properties", packageProperties("agt-1"), "x/.agent.properties", packageProperties("agt-1")), "no .agent.properties in it"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newInstaller(t, linuxInstall)
			s.body = tc.body
			e := enrolment(t, s, io.Discard)
			for try := range 2 {
				id, done, err := e.Run(t.Context())
				if err == nil || !strings.Contains(err.Error(), tc.want) || id != "" || done {
					t.Errorf("try %d: %q, %v, %v, want %q", try, id, done, err, tc.want)
				}
				if strings.Contains(fmt.Sprint(err), agentSecret) {
					t.Errorf("the secret is in %v", err)
				}
			}
			if got := strings.Join(homeFiles(t, e.Home), " "); got != ".enrolment" {
				t.Errorf("home holds %s", got)
			}
		})
	}
}

// TestEnrolRefusals: what ends before there is a record, or must not be followed.
func TestEnrolRefusals(t *testing.T) {
	t.Run("token", func(t *testing.T) {
		var log bytes.Buffer
		s := newInstaller(t, linuxInstall)
		e := enrolment(t, s, &log)
		e.Token = "an-0ld-token"
		_, _, err := e.Run(t.Context())
		var hinter interface{ Hint() string }
		if err == nil || !errors.As(err, &hinter) || !strings.Contains(hinter.Hint(), "three days") || !strings.Contains(err.Error(), "HTTP 400") {
			t.Errorf("%v", err)
		}
		if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, e)+log.String(), "an-0ld-token") {
			t.Errorf("the token is in %v or %s", err, log.String())
		}
		if got := homeFiles(t, e.Home); len(got) != 0 {
			t.Errorf("home holds %s", got)
		}
	})
	t.Run("token that is no header", func(t *testing.T) {
		e := enrolment(t, newInstaller(t, linuxInstall), io.Discard)
		e.Token = "two\nlines-of-a-token"
		if _, _, err := e.Run(t.Context()); err == nil || strings.Contains(err.Error(), "lines-of-a-token") {
			t.Errorf("%v", err)
		}
	})
	t.Run("http after https", func(t *testing.T) {
		s := newInstaller(t, linuxInstall)
		tls := httptest.NewTLSServer(s)
		t.Cleanup(tls.Close)
		e := enrolment(t, s, io.Discard)
		e.Gateway, e.HTTP = tls.URL, tls.Client()
		if _, _, err := e.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "http after https") || len(s.fetched()) != 0 {
			t.Errorf("%v, %d packages fetched", err, len(s.fetched()))
		}
	})
	t.Run("script of another kind", func(t *testing.T) {
		for name, script := range map[string]string{"page": "<html>", "nothing": "", "two agents": "agent_id='agt-7'\ncurl URL\n", "unfilled": "agent_id='##agentId##'\ncurl ##agent_url##\n"} {
			e := enrolment(t, newInstaller(t, script), io.Discard)
			if _, _, err := e.Run(t.Context()); err == nil || len(homeFiles(t, e.Home)) != 0 {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
	t.Run("gateway", func(t *testing.T) {
		e := enrolment(t, newInstaller(t, linuxInstall), io.Discard)
		e.Gateway = "http://"
		if _, _, err := e.Run(t.Context()); err == nil {
			t.Error("no host and no error")
		}
	})
	t.Run("server that is down", func(t *testing.T) {
		s := newInstaller(t, linuxInstall)
		e := enrolment(t, s, io.Discard)
		s.Close()
		if _, _, err := e.Run(t.Context()); err == nil || strings.Contains(err.Error(), installToken) || !strings.Contains(err.Error(), e.Gateway) {
			t.Errorf("%v", err)
		}
	})
	t.Run("key of a package", func(t *testing.T) {
		s := newInstaller(t, strings.ReplaceAll(linuxInstall, "URL?", "URL?key=k3y-of-a-package&"))
		s.with(func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_ = conn.Close()
			}
		})
		e := enrolment(t, s, io.Discard)
		if _, _, err := e.Run(t.Context()); err == nil || strings.Contains(err.Error(), "k3y-of-a-package") {
			t.Errorf("%v", err)
		}
		if got := s.fetched()[0].URL.Query().Get("key"); got != "k3y-of-a-package" {
			t.Errorf("key %q", got)
		}
	})
}

// TestEnrolLeavesAnIdentityAlone: a home that has one and cannot be used for another reason is not enrolled anew.
func TestEnrolLeavesAnIdentityAlone(t *testing.T) {
	for name, properties := range map[string]string{
		"negative count": strings.Replace(packageProperties("agt-5"), "count=4", "count=-1", 1),
		"no gateway":     strings.Replace(packageProperties("agt-5"), "landun.gateway=http://ci.example.com\n", "", 1),
	} {
		s := newInstaller(t, linuxInstall)
		e := enrolment(t, s, io.Discard)
		file := filepath.Join(e.Home, ".agent.properties")
		if err := os.WriteFile(file, []byte(properties), 0o600); err != nil {
			t.Fatal(err)
		}
		if id, done, err := e.Run(t.Context()); err == nil || done || id != "" || s.made() != 0 {
			t.Errorf("%s: %q, %v, %v, %d records", name, id, done, err, s.made())
		}
		if data, err := os.ReadFile(file); err != nil || string(data) != properties {
			t.Errorf("%s: the file is now %q, %v", name, data, err)
		}
	}
	// A template without identity, and a file that a crash filled with zeros, are none.
	for name, properties := range map[string]string{"template": packageProperties(""), "zeros": strings.Repeat("\x00", 300), "empty": ""} {
		s := newInstaller(t, linuxInstall)
		e := enrolment(t, s, io.Discard)
		if err := os.WriteFile(filepath.Join(e.Home, ".agent.properties"), []byte(properties), 0o600); err != nil {
			t.Fatal(err)
		}
		if id, done, err := e.Run(t.Context()); id != "agt-1" || !done || err != nil {
			t.Errorf("%s: %q, %v, %v", name, id, done, err)
		}
	}
	if runtime.GOOS != "windows" && os.Geteuid() != 0 {
		s := newInstaller(t, linuxInstall)
		e := enrolment(t, s, io.Discard)
		if err := os.WriteFile(filepath.Join(e.Home, ".agent.properties"), []byte(packageProperties("agt-5")), 0); err != nil {
			t.Fatal(err)
		}
		if _, done, err := e.Run(t.Context()); !errors.Is(err, fs.ErrPermission) || done || s.made() != 0 {
			t.Errorf("somebody else's file: %v, %v, %d records", done, err, s.made())
		}
	}
}

// TestEnrolEndsWithItsContext while the server is silent.
func TestEnrolEndsWithItsContext(t *testing.T) {
	s := newInstaller(t, linuxInstall)
	asked := make(chan struct{})
	s.with(func(_ http.ResponseWriter, r *http.Request) { close(asked); <-r.Context().Done() })
	e := enrolment(t, s, io.Discard)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if _, _, err := e.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func FuzzInstallScript(f *testing.F) {
	const address = "http://ci.example.com/ms/environment/api/external/thirdPartyAgent/agt-1/agent"
	for _, script := range []string{linuxInstall, macInstall, windowsInstall, powershellInstall} {
		f.Add(strings.NewReplacer("AGENT", "agt-1", "URL", address).Replace(script))
	}
	f.Fuzz(func(t *testing.T, script string) {
		found, err := readScript(script)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\r\n") || len(err.Error()) > 500 {
				t.Errorf("error %q", err)
			}
			return
		}
		plain := func(r rune) bool {
			return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-.", r)
		}
		for _, name := range []string{found.agent, found.project} {
			if strings.ContainsFunc(name, func(r rune) bool { return !plain(r) }) || len(name) > 128 {
				t.Errorf("%q taken as an id", name)
			}
		}
		if found.agent == "" || !strings.Contains(found.address, "/"+found.agent+"/agent") || strings.ContainsAny(found.address, " \t\r\n'\"") || !strings.HasPrefix(found.address, "http") {
			t.Errorf("%+v", found)
		}
	})
}
