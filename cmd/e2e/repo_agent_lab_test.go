//go:build lab && linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// TestRepoAgent: the agent's own packages, the rpm signed, come by apt and dnf from one signed repository over HTTP, with
// nothing else configured, and are upgraded from there.
func TestRepoAgent(t *testing.T) {
	t.Parallel()
	p, err := packages()
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	key := filepath.Join(s.desk, "key")
	publish := func(i int) {
		t.Helper()
		version := packageVersions[i]
		deb := p.files["deb "+version]
		top, dist := filepath.Dir(filepath.Dir(deb)), filepath.Join(s.desk, version)
		s.run("build", "--root", filepath.Join(top, "tree"+version), "--bin", filepath.Join(top, version), "--out", dist, "--only", "rpm", "--arch", runtime.GOARCH,
			"--version", "v"+version, "--commit", "unknown", "--time", fmt.Sprint(1767225600+i), "--rpm-key", key)
		s.run("repo", "--out", s.dir, "--key", key, "--url", s.url, deb, filepath.Join(dist, filepath.Base(p.files["rpm "+version])))
	}
	publish(0)
	boxes := map[string]*target{}
	for _, kind := range []string{"deb", "rpm"} {
		boxes[kind] = targeted(t, kind, lab.BoxOptions{Name: "r" + kind + "agent"})
	}
	begin := time.Now()
	const apt = "export DEBIAN_FRONTEND=noninteractive; apt-get -q --error-on=any update; apt-get -q -y -o Dpkg::Use-Pty=0 "
	const fetch = "/usr/lib/apt/apt-helper download-file "
	boxes["deb"].box.Shell("rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*; mkdir -p /etc/apt/keyrings; cd /root; " +
		fetch + s.url + "/devops-agent.gpg /etc/apt/keyrings/devops-agent.gpg; " + fetch + s.url + "/devops-agent.sources /etc/apt/sources.list.d/devops-agent.sources; " +
		apt + "install devops-agent")
	text, err := os.ReadFile(filepath.Join(s.dir, "devops-agent.repo"))
	if err != nil {
		t.Fatal(err)
	}
	boxes["rpm"].box.Write("/etc/yum.repos.d/devops-agent.repo", string(text), 0o644)
	const dnf = "dnf -q -y --refresh --disablerepo='*' --enablerepo=devops-agent "
	boxes["rpm"].box.Shell(dnf + "install devops-agent")
	number(t, "deb and rpm of the agent over HTTP: %v", time.Since(begin).Round(10*time.Millisecond))
	check := func(version string) {
		t.Helper()
		for kind, b := range boxes {
			if got := b.version(); got != version {
				t.Errorf("%s: %q is installed, not %s", kind, got, version)
			}
			if got := b.seen(); got != "active enabled" {
				t.Errorf("%s: %s", kind, got)
			}
			b.unchanged("installing " + version + " as " + kind)
		}
	}
	check("1.0.0")
	if got := boxes["deb"].box.Run("devopsAgent", "version"); got != "v1.0.0" {
		t.Errorf("devopsAgent version: %s", got)
	}
	if got := boxes["rpm"].box.Shell("rpm -qi devops-agent | grep ^Signature"); !strings.Contains(got, "SHA256") {
		t.Errorf("the package is not signed: %s", got)
	}

	publish(1)
	boxes["deb"].box.Shell(apt + "upgrade")
	boxes["rpm"].box.Shell(dnf + "upgrade")
	check("2.0.0")
}
