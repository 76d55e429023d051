package packaging

import (
	"context"
	"io"
	"path"
	"path/filepath"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/files"
	"github.com/goreleaser/nfpm/v2/rpm"

	"github.com/devops-agent/devops-agent/service"
)

// rpmContents adds what an rpm has to the manifest of Linux.
func rpmContents(r Release, m *Manifest) error {
	if err := linuxContents(r, m); err != nil {
		return err
	}
	t := tree{m, "root"}
	if err := t.completion(r, "zsh", "/usr/share/zsh/site-functions/_devopsAgent"); err != nil {
		return err
	}
	own, err := ownLicence(r)
	if err != nil {
		return err
	}
	var preset string
	if err := into(map[string]*string{
		"50-devops-agent.preset": &preset, "rpm/pre": &m.Scripts.PreInstall, "rpm/post": &m.Scripts.PostInstall,
		"rpm/preun": &m.Scripts.PreRemove, "rpm/postun": &m.Scripts.PostRemove,
	}); err != nil {
		return err
	}
	licences := rpmLicences + m.Name
	t.dir(licences, "/usr/share/doc/"+m.Name)
	t.data(licences+"/LICENSE", []byte(own))
	t.data(licences+"/THIRD-PARTY", []byte(thirdParty(r.Licences)))
	t.add(File{Path: "/usr/share/doc/" + m.Name + "/CHANGELOG.md", Mode: 0o644, Source: filepath.Join(r.Root, "CHANGELOG.md")})
	t.add(File{Path: m.Layout.Home, Kind: Dir, Mode: 0o750, Owner: m.Layout.Account, Group: m.Layout.Account})
	t.dir(path.Dir(service.Instance("x").Home))
	t.data("/usr/lib/systemd/system-preset/50-devops-agent.preset", []byte(preset))
	m.Relations = Relations{Depends: []string{"/bin/sh", "/usr/sbin/useradd"}, Recommends: []string{"ca-certificates"}, Suggests: []string{javaName, "bash-completion"}}
	return nil
}

// rpmArch is an architecture in the words of rpm.
func rpmArch(goarch string) string {
	switch goarch {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	case All:
		return "noarch"
	}
	return goarch
}

func rpmName(m Manifest) string {
	return m.Name + "-" + debVersion(m.Version) + "-1." + rpmArch(m.GOARCH) + ".rpm"
}

func rpmKind(f File) string {
	switch f.Kind {
	case Dir:
		return files.TypeDir
	case Link:
		return files.TypeSymlink
	case Config:
		return files.TypeConfigNoReplace
	case Regular:
	}
	switch {
	case strings.HasPrefix(f.Path, rpmLicences):
		return files.TypeRPMLicense
	case strings.HasPrefix(f.Path, "/usr/share/doc/"), strings.HasPrefix(f.Path, "/usr/share/man/"):
		return files.TypeRPMDoc
	}
	return files.TypeFile
}

// rpmLicences holds the licences of packages.
const rpmLicences = "/usr/share/licenses/"

func writeRPM(ctx context.Context, m Manifest, o Options, w io.Writer) error {
	return writeNFPM(ctx, m, rpm.DefaultRPM, rpmKind, func(s *staged, in *nfpm.Info) error {
		log, err := s.file([]byte(rpmChangelog(m)))
		if err != nil {
			return err
		}
		in.Changelog = log
		in.Release = "1"
		in.Vendor = vendor
		in.RPM.Summary = strings.ToUpper(m.Summary[:1]) + m.Summary[1:]
		in.Description = m.Description
		in.RPM.Group = "Development/Tools"
		in.RPM.Compression = "zstd"
		in.RPM.BuildHost = "localhost"
		in.RPM.Signature.KeyFile = o.RPMKey
		in.RPM.Signature.KeyPassphrase = o.RPMKeyWord
		return nil
	}, w)
}
