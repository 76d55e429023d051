package packaging

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/service"
)

// Published is a package of ours that can be fetched.
type Published struct {
	URL    string
	SHA256 string // in hex
	GOARCH string // "" for one that serves every processor
}

func (p Published) check() error {
	u, err := url.Parse(p.URL)
	switch {
	case err != nil:
		return fmt.Errorf("address of a package: %w", err)
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || strings.ContainsAny(p.URL, "'\"\\\n\r #"):
		return fmt.Errorf("address of a package: %q is none that can be fetched", p.URL)
	case len(p.SHA256) != 64 || strings.Trim(strings.ToLower(p.SHA256), "0123456789abcdef") != "":
		return fmt.Errorf("%s: %q is no SHA-256", p.URL, p.SHA256)
	}
	return nil
}

// wingetID is the name of the product in a winget repository.
const wingetID = "DevopsAgent.DevopsAgent"

// Winget renders the manifests by which winget finds the MSI packages of a version, by file name. version is that of the release; it
// must be one that is published as it is.
func Winget(version string, released time.Time, packages []Published) (map[string]string, error) {
	v, err := parseVersion(version)
	if err != nil {
		return nil, err
	}
	if len(packages) == 0 {
		return nil, errors.New("no package for Windows")
	}
	const schema = "1.6.0"
	head := func(kind string) string {
		return fmt.Sprintf("# yaml-language-server: $schema=https://aka.ms/winget-manifest.%s.%s.schema.json\nPackageIdentifier: %s\nPackageVersion: %s\n", kind, schema, wingetID, v)
	}
	foot := func(kind string) string { return "ManifestType: " + kind + "\nManifestVersion: " + schema + "\n" }

	var b strings.Builder
	b.WriteString(head("installer"))
	fmt.Fprintf(&b, "InstallerType: msi\nScope: machine\nInstallModes:\n- silent\n- silentWithProgress\nUpgradeBehavior: install\nElevationRequirement: elevationRequired\nReleaseDate: %s\nInstallers:\n",
		released.UTC().Format(time.DateOnly))
	for _, p := range packages {
		if err := p.check(); err != nil {
			return nil, err
		}
		arch := map[string]string{"amd64": "x64", "arm64": "arm64"}[p.GOARCH]
		if arch == "" {
			return nil, fmt.Errorf("%s: winget has no packages for %q", p.URL, p.GOARCH)
		}
		fmt.Fprintf(&b, "- Architecture: %s\n  InstallerUrl: %s\n  InstallerSha256: %s\n  ProductCode: '%s'\n", arch, p.URL, strings.ToUpper(p.SHA256),
			guid("product", name, v.String(), p.GOARCH))
	}
	b.WriteString(foot("installer"))

	locale := head("defaultLocale") + fmt.Sprintf("PackageLocale: en-US\nPublisher: %s\nPackageName: %s\nPackageUrl: %s\nLicense: %s\nLicenseUrl: %s/blob/main/LICENSE\nShortDescription: %s\nDescription: |-\n  %s\nTags:\n- agent\n- bk-ci\n- ci\n",
		vendor, name, homepage, licence, homepage, summary, strings.ReplaceAll(paragraphs, "\n", "\n  ")) + foot("defaultLocale")
	locale = strings.ReplaceAll(locale, "\n  \n", "\n\n")
	return map[string]string{
		wingetID + ".yaml":              head("version") + "DefaultLocale: en-US\n" + foot("version"),
		wingetID + ".installer.yaml":    b.String(),
		wingetID + ".locale.en-US.yaml": locale,
	}, nil
}

// Cask renders the Homebrew cask of the package for macOS.
func Cask(version string, p Published) (string, error) {
	v, err := parseVersion(version)
	if err != nil {
		return "", err
	}
	if err := p.check(); err != nil {
		return "", err
	}
	layout := service.Packaged("darwin")
	var b strings.Builder
	fmt.Fprintf(&b, "cask %q do\n  version %q\n  sha256 %q\n\n  url %q\n  name %q\n  desc %q\n  homepage %q\n\n", name, v.String(), strings.ToLower(p.SHA256), p.URL, name,
		strings.ToUpper(summary[:1])+summary[1:], homepage)
	fmt.Fprintf(&b, "  depends_on macos: \">= :monterey\"\n\n  pkg %q\n\n", path.Base(p.URL))
	fmt.Fprintf(&b, "  uninstall launchctl: %q,\n            script:    {\n              executable: %q,\n              sudo:       true,\n            },\n            pkgutil:   %q\n\n", layout.Name,
		path.Join(layout.Vendor, "uninstall"), pkgID)
	fmt.Fprintf(&b, "  zap trash: [\n    %q,\n    %q,\n  ]\n\n", path.Dir(layout.Config), layout.Home)
	fmt.Fprintf(&b, "  caveats <<~EOS\n    Make this machine an agent of a server:\n      sudo devopsAgent enroll --gateway URL --token-file FILE\n  EOS\nend\n")
	return b.String(), nil
}
