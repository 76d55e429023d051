package packaging

import (
	"context"
	"io"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/files"
	"github.com/goreleaser/nfpm/v2/rpm"
)

// rpmContents adds what an rpm has to the manifest of Linux.
func rpmContents(r Release, m *Manifest) error {
	return linuxContents(r, m)
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
	return files.TypeFile
}

func writeRPM(ctx context.Context, m Manifest, o Options, w io.Writer) error {
	return writeNFPM(ctx, m, rpm.DefaultRPM, rpmKind, func(_ *staged, in *nfpm.Info) error {
		in.Release = "1"
		in.Vendor = vendor
		in.RPM.Summary = m.Summary
		in.Description = m.Description
		in.RPM.Group = "Development/Tools"
		in.RPM.Compression = "zstd"
		in.RPM.BuildHost = "localhost"
		in.RPM.Signature.KeyFile = o.RPMKey
		in.RPM.Signature.KeyPassphrase = o.RPMKeyWord
		return nil
	}, w)
}
