package packaging

import (
	"path"
	"path/filepath"
	"strings"

	"github.com/devops-agent/devops-agent/service"
)

// What every package says about the product.
const (
	name       = "devops-agent"
	vendor     = "The devops-agent authors"
	maintainer = vendor + " <packages@devops-agent.org>"
	homepage   = "https://github.com/devops-agent/devops-agent"
	licence    = "MIT"
	summary    = "build agent of BlueKing CI (BK-CI)"
	paragraphs = `Takes builds from a BK-CI server, runs them on this machine and reports how they ended, as the
third-party build agent of BK-CI does. Builds survive a restart and an upgrade of the agent.

Pipelines that need the worker of BK-CI need a Java runtime; script steps run without one.`
)

// product is the part of a manifest that all formats share.
func product(r Release, goos, goarch string) (Manifest, error) {
	v, err := parseVersion(r.Version)
	if err != nil {
		return Manifest{}, err
	}
	return Manifest{
		Name: name, Version: v.String(), Summary: summary, Description: paragraphs, Homepage: homepage, License: licence,
		Maintainer: maintainer, GOOS: goos, GOARCH: goarch, Time: r.Time.UTC(), Layout: service.Packaged(goos),
	}, nil
}

// linuxContents are the files of a Linux package, whatever its format.
func linuxContents(r Release, m *Manifest) error {
	l := m.Layout
	root := func(f File) File {
		f.Owner, f.Group = "root", "root"
		return f
	}
	dir := func(p string) File { return root(File{Path: p, Kind: Dir, Mode: 0o755}) }
	m.Files = append(m.Files, dir(l.Vendor), dir(path.Dir(l.Config)), dir(service.DropIns))
	for _, program := range []string{"devopsAgent", "devopsWorker", "upgrader"} {
		m.Files = append(m.Files, root(File{Path: l.Vendor + "/" + program, Mode: 0o755, Source: r.program(program, "linux", m.GOARCH), Program: true}))
	}
	m.Files = append(m.Files, root(File{Path: "/usr/bin/devopsAgent", Kind: Link, Mode: 0o777, Target: ".." + strings.TrimPrefix(l.Vendor, "/usr") + "/devopsAgent"}))
	units, err := service.SystemdFiles()
	if err != nil {
		return err
	}
	for _, u := range units {
		m.Files = append(m.Files, root(File{Path: u.Path, Mode: u.Mode, Data: []byte(u.Text)}))
	}
	m.Files = append(m.Files, root(File{Path: "/usr/share/doc/" + m.Name + "/LICENSE", Mode: 0o644, Source: filepath.Join(r.Root, "LICENSE")}))
	return nil
}
