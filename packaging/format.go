package packaging

import (
	"context"
	"fmt"
	"io"
	"slices"
)

// Format is a kind of package.
type Format string

// The formats.
const (
	Deb Format = "deb"
	RPM Format = "rpm"
	Pkg Format = "pkg"
	MSI Format = "msi"
)

// Formats are all formats that can be written, in the order in which they are built.
func Formats() []Format {
	var all []Format
	for f := range formats() {
		all = append(all, f)
	}
	slices.Sort(all)
	return all
}

// format is what is particular to one kind of package.
type format struct {
	goos   string
	arches []string // that are built unless told otherwise
	// contents fills in what the manifest of this format has beside the names of the product.
	contents func(r Release, m *Manifest) error
	// file is the name of the package's file.
	file func(m Manifest) string
	// write writes a checked manifest.
	write func(ctx context.Context, m Manifest, o Options, w io.Writer) error
	// read lists a package, by a reader that knows nothing of the writer.
	read func(r io.ReaderAt, size int64) (Listing, error)
}

// formats is the table of the formats. A further one is one more row, and is then built, listed, verified and tested.
func formats() map[Format]format {
	return map[Format]format{
		Deb: {goos: "linux", arches: []string{"amd64", "arm64"}, contents: debContents, file: debName, write: writeDeb, read: readDeb},
		RPM: {goos: "linux", arches: []string{"amd64", "arm64"}, contents: rpmContents, file: rpmName, write: writeRPM, read: readRPM},
		MSI: {goos: "windows", arches: []string{"amd64", "arm64"}, contents: msiContents, file: msiName, write: writeMSI, read: readMSI},
		Pkg: {goos: "darwin", arches: []string{Universal}, contents: pkgContents, file: pkgName, write: writePkg, read: readPkg},
	}
}

func (f Format) lookup() (format, error) {
	one, ok := formats()[f]
	if !ok {
		return format{}, fmt.Errorf("there is no format %q", string(f))
	}
	return one, nil
}

// Arches are the architectures that a format is built for unless told otherwise.
func (f Format) Arches() []string { return formats()[f].arches }

// FileName is the name of the file of a package.
func (f Format) FileName(m Manifest) string {
	one, err := f.lookup()
	if err != nil {
		return m.Name + "-" + m.Version
	}
	return one.file(m)
}

// Options are what may differ between two packages of one manifest.
type Options struct {
	RPMKey     string // file of an armoured OpenPGP secret key; "" leaves the package unsigned
	RPMKeyWord string // its passphrase

	PFX          string // PKCS#12 file with the key and the certificates of programs and packages for Windows; "" leaves them unsigned
	PFXWord      string // its passphrase
	TimestampURL string // RFC 3161 server that says when they were signed; "" for none
}

// Contents is the manifest of the product for a format and an architecture.
func Contents(r Release, f Format, goarch string) (Manifest, error) {
	one, err := f.lookup()
	if err != nil {
		return Manifest{}, err
	}
	m, err := product(r, one.goos, goarch)
	if err != nil {
		return Manifest{}, err
	}
	if err := one.contents(r, &m); err != nil {
		return Manifest{}, fmt.Errorf("contents of the %s for %s: %w", f, goarch, err)
	}
	sortFiles(m.Files)
	return m, m.check()
}

// Write writes the package of a manifest. The error is a *ManifestError when no package can be made of it.
func Write(ctx context.Context, f Format, m Manifest, o Options, w io.Writer) error {
	one, err := f.lookup()
	if err != nil {
		return err
	}
	if err := m.check(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := one.write(ctx, m, o, w); err != nil {
		return fmt.Errorf("write %s: %w", one.file(m), err)
	}
	return nil
}
