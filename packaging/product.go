package packaging

import (
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
	paragraphs = `Takes builds from a BK-CI server, runs them on this machine and reports how
they ended, as the third-party build agent of BK-CI does. Builds survive a
restart and an upgrade of the agent.

Pipelines that need the worker of BK-CI need a Java runtime; script steps run
without one.`
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
