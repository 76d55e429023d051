//go:build lab && linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// store is a package repository as its publisher and its clients see it: packager writes it, devopsController serves it,
// and a proxy in between notes what is asked for and can change what is answered.
type store struct {
	t        *testing.T
	packager string
	dir, url string // of the repository
	desk     string // keys and packages

	mu     sync.Mutex
	asked  []string
	change func(path string, body []byte) []byte // nil changes nothing
	before func(path string)                     // is called before an answer is fetched
}

// storePrograms builds what a store needs, once per process of the tests.
var storePrograms = sync.OnceValues(func() (string, error) { //nolint:gochecknoglobals // built once, like programs
	dir, err := os.MkdirTemp(os.Getenv("E2E_DIR"), "store")
	if err != nil {
		return "", err
	}
	root, err := lab.ModuleRoot()
	if err != nil {
		return "", err
	}
	for _, name := range []string{"packager", "controller"} {
		build := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(dir, name), "./cmd/"+name)
		build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build cmd/%s: %w\n%s", name, err, out)
		}
	}
	return dir, nil
})

func newStore(t *testing.T) *store {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("needs root on Debian: boxes are containers")
	}
	programs, err := storePrograms()
	if err != nil {
		t.Fatal(err)
	}
	desk := t.TempDir()
	s := &store{t: t, packager: filepath.Join(programs, "packager"), dir: filepath.Join(desk, "repo"), desk: desk}
	s.key("key")
	if err := os.Mkdir(s.dir, 0o755); err != nil { //nolint:gosec // served
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	serve := exec.CommandContext(ctx, filepath.Join(programs, "controller"), "serve", "--json", "--data", filepath.Join(desk, "controller"), "--listen", "127.0.0.1:0", "--repo", s.dir)
	serve.Cancel = func() error { return serve.Process.Signal(syscall.SIGTERM) }
	serve.Stderr = os.Stderr
	out, err := serve.StdoutPipe()
	if err == nil {
		err = serve.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(); _ = serve.Wait() })
	var at struct{ URL string }
	if err := json.NewDecoder(out).Decode(&at); err != nil {
		t.Fatalf("the controller did not start: %v", err)
	}
	to, err := url.Parse(at.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }, ModifyResponse: s.answer}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked = append(s.asked, r.URL.Path)
		hook := s.before
		s.mu.Unlock()
		if hook != nil {
			hook(r.URL.Path)
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(web.Close)
	s.url = web.URL + "/repo"
	return s
}

// answer changes what the controller answered.
func (s *store) answer(r *http.Response) error {
	s.mu.Lock()
	change := s.change
	s.mu.Unlock()
	if change == nil || r.StatusCode != http.StatusOK {
		return nil
	}
	var body bytes.Buffer
	if _, err := body.ReadFrom(r.Body); err != nil {
		return err
	}
	data := change(r.Request.URL.Path, body.Bytes())
	r.Body = readCloser{bytes.NewReader(data), r.Body}
	r.ContentLength = int64(len(data))
	r.Header.Set("Content-Length", fmt.Sprint(len(data)))
	return nil
}

type readCloser struct {
	*bytes.Reader
	c interface{ Close() error }
}

func (r readCloser) Close() error { return r.c.Close() }

// with calls do while answers are changed.
func (s *store) with(change func(path string, body []byte) []byte, do func()) {
	s.mu.Lock()
	s.change = change
	s.mu.Unlock()
	do()
	s.mu.Lock()
	s.change = nil
	s.mu.Unlock()
}

// paths are what was asked for since the last call.
func (s *store) paths() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.asked
	s.asked = nil
	return list
}

// key makes a key; its halves are NAME and NAME.pub on the desk.
func (s *store) key(name string) {
	s.t.Helper()
	s.run("repo", "key", "--out", filepath.Join(s.desk, name), "--owner", "Lab "+name, "--no-password")
}

func (s *store) run(args ...string) {
	s.t.Helper()
	if out, err := exec.Command(s.packager, args...).CombinedOutput(); err != nil {
		s.t.Fatalf("packager %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// publish publishes a version of the package "thing" for both formats and two architectures.
func (s *store) publish(version string, more ...string) {
	s.t.Helper()
	args := append([]string{"repo", "--out", s.dir, "--key", filepath.Join(s.desk, "key"), "--url", s.url}, more...)
	for _, format := range []string{"deb", "rpm"} {
		for _, arch := range []string{"amd64", "arm64"} {
			args = append(args, s.thing(format, version, arch))
		}
	}
	s.run(args...)
}

// thing makes a package that holds one program, which prints its version; once, for a signature has a time.
func (s *store) thing(format, version, arch string) string {
	s.t.Helper()
	file := filepath.Join(s.desk, fmt.Sprintf("thing-%s-%s.%s", version, arch, format))
	if _, err := os.Stat(file); err == nil {
		return file
	}
	program := filepath.Join(s.desk, "thing-"+version)
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho "+version+"\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	in := &nfpm.Info{Name: "thing", Arch: arch, Platform: "linux", Version: version, VersionSchema: "none", Release: map[string]string{"rpm": "1"}[format],
		Maintainer: "Lab <lab@example.org>", Description: "A thing", License: "MIT", MTime: time.Unix(1767225600, 0),
		Overridables: nfpm.Overridables{
			Contents: files.Contents{{Source: program, Destination: "/usr/bin/thing", FileInfo: &files.ContentFileInfo{Mode: 0o755}}},
			RPM:      nfpm.RPM{BuildHost: "lab", Signature: nfpm.RPMSignature{PackageSignature: nfpm.PackageSignature{KeyFile: filepath.Join(s.desk, "key")}}},
		}}
	var b bytes.Buffer
	err := nfpm.PrepareForPackager(nfpm.WithDefaults(in), format)
	if err == nil {
		var packer nfpm.Packager
		if packer, err = nfpm.Get(format); err == nil {
			err = packer.Package(in, &b)
		}
	}
	if err == nil {
		err = os.WriteFile(file, b.Bytes(), 0o600)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return file
}

// client is a box that installs from a store.
type client struct {
	*lab.Box
	t *testing.T
}

// refused runs a script that must fail and say one of these.
func (c client) refused(why string, script string, said ...string) {
	c.t.Helper()
	out, err := c.Exec("bash", "-ec", script+" 2>&1")
	text := out + fmt.Sprint(err)
	if err == nil || !slices.ContainsFunc(said, func(one string) bool { return strings.Contains(text, one) }) {
		c.t.Errorf("%s: want a failure that says one of %q, got %v\n%s", why, said, err, out)
	}
}

func (c client) version(want string) {
	c.t.Helper()
	if got := c.Run("thing"); got != want {
		c.t.Errorf("version %s is installed, not %s", got, want)
	}
}

// damaged changes one byte in the middle of answers whose path has this in it.
func damaged(part string) func(string, []byte) []byte {
	return func(path string, body []byte) []byte {
		if strings.Contains(path, part) && len(body) > 0 {
			body = bytes.Clone(body)
			body[len(body)/2] ^= 1
		}
		return body
	}
}

// TestRepoApt: apt of Debian installs from a repository that packager made and devopsController serves.
func TestRepoApt(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.publish("1.0")
	c := client{lab.NewBox(t, lab.BoxOptions{Name: "rapt"}), t}
	const fetch = "/usr/lib/apt/apt-helper download-file "
	c.Shell("rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*; mkdir -p /etc/apt/keyrings; cd /root; " +
		fetch + s.url + "/devops-agent.gpg /etc/apt/keyrings/devops-agent.gpg; " + fetch + s.url + "/devops-agent.sources /etc/apt/sources.list.d/devops-agent.sources")
	const update = "apt-get -q --error-on=any update"
	install := "DEBIAN_FRONTEND=noninteractive apt-get -q -y "
	begin := time.Now()
	s.paths()
	c.Shell(update)
	if list := s.paths(); !slices.ContainsFunc(list, func(p string) bool { return strings.Contains(p, "/by-hash/SHA256/") }) {
		t.Errorf("by-hash is not used: %q", list)
	}
	c.Shell(install + "install thing")
	c.version("1.0")
	number(t, "update and install over HTTP: %v", time.Since(begin).Round(10*time.Millisecond))

	s.publish("1.1~rc.1")
	s.publish("1.1")
	c.Shell(update + "; " + install + "upgrade")
	c.version("1.1")
	if got := c.Shell("apt-cache madison thing | awk '{print $3}' | xargs"); got != "1.1 1.1~rc.1 1.0" {
		t.Errorf("versions: %s", got)
	}

	// A pin holds a version, by number and by the name of the repository.
	c.Write("/etc/apt/preferences.d/thing", "Package: thing\nPin: version 1.0\nPin-Priority: 1001\n", 0o644)
	c.Shell(install + "--allow-downgrades dist-upgrade")
	c.version("1.0")
	c.Write("/etc/apt/preferences.d/thing", "Package: *\nPin: release o=devops-agent, a=stable, c=main\nPin-Priority: 777\n", 0o644)
	if got := c.Shell("apt-cache policy thing"); !strings.Contains(got, "1.1 777") {
		t.Errorf("the pin by origin has no effect:\n%s", got)
	}

	// The other architecture.
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	c.Shell("dpkg --add-architecture " + other + "; " + update)
	if got := c.Shell("apt-cache show thing:" + other + "=1.1 | grep ^Architecture"); got != "Architecture: "+other {
		t.Error(got)
	}
	c.Shell("dpkg --remove-architecture " + other + "; " + update)

	// A version is published between the index's signature and its content: apt has the state before, whole.
	s.paths()
	var once sync.Once
	s.mu.Lock()
	s.before = func(path string) {
		if strings.Contains(path, "/by-hash/") || strings.HasSuffix(path, "/Packages.xz") {
			once.Do(func() { s.publish("1.2", "--keep", "1") })
		}
	}
	s.mu.Unlock()
	c.Shell("rm -rf /var/lib/apt/lists/*; " + update)
	s.mu.Lock()
	s.before = nil
	s.mu.Unlock()
	if got := c.Shell("apt-cache policy thing | grep Candidate"); got != "Candidate: 1.1" {
		t.Errorf("while 1.2 was published: %s", got)
	}
	c.Shell(install + "install thing") // the package of the index before is still there, though only one is kept
	c.version("1.1")
	c.Shell(update + "; " + install + "upgrade")
	c.version("1.2")

	// Nothing that was changed on the way is taken.
	s.publish("1.3")
	fresh := "rm -rf /var/lib/apt/lists/*; " + update
	s.with(damaged("InRelease"), func() { c.refused("a changed InRelease", fresh, "BADSIG", "signatures were invalid", "NOSPLIT") })
	s.with(damaged("/binary-"), func() { c.refused("a changed index", fresh, "Hash Sum mismatch", "unexpected size") })
	s.with(func(path string, body []byte) []byte {
		if strings.HasSuffix(path, "InRelease") {
			_, body, _ = bytes.Cut(body, []byte("\n\n"))
			body, _, _ = bytes.Cut(body, []byte("-----BEGIN PGP SIGNATURE"))
		}
		return body
	}, func() {
		c.refused("an InRelease without a signature", fresh, "NOSPLIT", "not signed", "isn't signed")
	})
	c.Shell(fresh)
	s.with(damaged("/pool/"), func() { c.refused("a changed package", install+"upgrade", "Hash Sum mismatch") })
	c.version("1.2")
	s.key("other")
	other = filepath.Join(s.desk, "elsewhere")
	s.run("repo", "--out", other, "--key", filepath.Join(s.desk, "other"), s.thing("deb", "6.6", runtime.GOARCH))
	s.with(func(path string, body []byte) []byte {
		if strings.HasSuffix(path, "InRelease") {
			data, err := os.ReadFile(filepath.Join(other, "dists", "stable", "InRelease"))
			if err != nil {
				t.Error(err)
			}
			return data
		}
		return body
	}, func() { c.refused("another key", fresh, "NO_PUBKEY") })
	c.Shell(fresh + "; " + install + "upgrade")
	c.version("1.3")

	// An index that nobody renewed.
	s.publish("1.4", "--valid-for", "1s")
	var said string
	if !lab.Eventually(10*time.Second, func() bool {
		out, err := c.Exec("bash", "-ec", fresh+" -o Acquire::Check-Valid-Until=true -o Acquire::Check-Date=true 2>&1")
		said = fmt.Sprint(out, err)
		return err != nil && strings.Contains(said, "expired")
	}) {
		t.Errorf("an index is taken after its time: %s", said)
	}
	s.publish("1.4")
	c.Shell(fresh + "; " + install + "upgrade")
	c.version("1.4")

	// The next key: for a while there are two signatures, and who has one key of them is content.
	s.key("next")
	s.publish("1.5", "--key", filepath.Join(s.desk, "next"))
	c.Shell(fresh)
	c.Shell(fetch + s.url + "/devops-agent.gpg /etc/apt/keyrings/devops-agent.gpg")
	s.run("repo", "--out", s.dir, "--key", filepath.Join(s.desk, "next"))
	c.Shell(fresh + "; " + install + "upgrade")
	c.version("1.5")
}

// TestRepoDnf: dnf installs from the same directory, and checks the signatures of index and package.
func TestRepoDnf(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.publish("1.0")
	c := client{lab.NewBox(t, lab.BoxOptions{Name: "rdnf", Image: "rpm"}), t}
	file, err := os.ReadFile(filepath.Join(s.dir, "devops-agent.repo"))
	if err != nil || !strings.Contains(string(file), "\nrepo_gpgcheck=1\ngpgcheck=1\n") {
		t.Fatalf("%s%v", file, err)
	}
	c.Write("/etc/yum.repos.d/devops-agent.repo", string(file), 0o644)
	const dnf = "dnf -q -y --refresh --disablerepo='*' --enablerepo=devops-agent "
	begin := time.Now()
	c.Shell(dnf + "install thing")
	c.version("1.0")
	number(t, "metadata, key and install over HTTP: %v", time.Since(begin).Round(10*time.Millisecond))
	if got := c.Shell("rpm -qi thing | grep ^Signature"); !strings.Contains(got, "SHA256") {
		t.Errorf("the package is not signed: %s", got)
	}

	s.publish("1.1~rc.1")
	s.publish("1.1")
	c.Shell(dnf + "upgrade")
	c.version("1.1")
	for _, arch := range []string{"aarch64", "x86_64"} {
		got := c.Shell(dnf + "--forcearch " + arch + " repoquery --arch " + arch + " --showduplicates --qf '%{name}-%{evr}' thing | sort | xargs")
		if got != "thing-1.0-1 thing-1.1-1 thing-1.1~rc.1-1" {
			t.Errorf("versions for %s: %s", arch, got)
		}
	}
	if got, want := c.Shell("rpm -q --qf '%{arch}' thing"), map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]; got != want {
		t.Errorf("%s is installed", got)
	}
	if got := c.Shell(dnf + "repoquery --qf '%{name}' --whatprovides /usr/bin/thing | sort -u"); got != "thing" {
		t.Errorf("by a file: %s", got)
	}
	c.Shell(dnf + "downgrade thing-1.0-1") // and back
	c.version("1.0")
	c.Shell(dnf + "upgrade")

	s.publish("1.2")
	fresh := "dnf -q clean all; " + dnf
	upgrade := fresh + "upgrade"
	s.with(damaged("repomd.xml"), func() { c.refused("a changed repomd.xml, and its signature", upgrade, "GPG", "repomd.xml") })
	for _, name := range []string{"repodata/repomd.xml", "repodata/repomd.xml.asc"} {
		s.with(func(path string, body []byte) []byte {
			if strings.HasSuffix(path, name) {
				return damaged("")(path, body)
			}
			return body
		}, func() { c.refused("a changed "+name, upgrade, "GPG", "repomd.xml", "signature") })
	}
	s.with(damaged("-primary"), func() { c.refused("a changed index", upgrade, "hecksum", "rimary") })
	s.with(damaged(".rpm"), func() { c.refused("a changed package", fresh+"upgrade", "hecksum", "Error") })
	c.version("1.1")
	s.key("other")
	elsewhere := filepath.Join(s.desk, "elsewhere")
	s.run("repo", "--out", elsewhere, "--key", filepath.Join(s.desk, "other"), s.thing("rpm", "6.6", runtime.GOARCH))
	s.with(func(path string, body []byte) []byte {
		_, name, ok := strings.Cut(path, "/repodata/")
		if !ok {
			return body
		}
		data, err := os.ReadFile(filepath.Join(elsewhere, "repodata", name))
		if err != nil {
			return body
		}
		return data
	}, func() { c.refused("another key", upgrade, "GPG", "signature") })
	c.version("1.1")
	c.Shell(upgrade)
	c.version("1.2")
}
