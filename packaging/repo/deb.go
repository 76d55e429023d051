package repo

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/devops-agent/devops-agent/packaging/internal/ar"
)

// Bounds of the part of a .deb that says what it is, in bytes.
const (
	maxControlTar = 16 << 20 // unpacked; maintainer scripts and lists of sums are in it
	maxControl    = 256 << 10
	maxWindow     = 64 << 20 // of a compressor
)

// readDeb reads the control file of a .deb (deb(5)) and makes its stanza of Packages.
func readDeb(r io.Reader, p Package) (item, error) {
	text, err := debControl(r)
	if err != nil {
		return item{}, fmt.Errorf("read .deb: %w", err)
	}
	fields, err := parseStanza(text)
	if err != nil {
		return item{}, fmt.Errorf("control file: %w", err)
	}
	for _, name := range []string{"Filename", "Size", "MD5sum", "SHA1", "SHA256", "SHA512"} {
		if _, ok := fields.get(name); ok {
			return item{}, fmt.Errorf("control file: field %s is for repositories", name)
		}
	}
	if p, err = debPackage(fields, p); err != nil {
		return item{}, fmt.Errorf("control file: %w", err)
	}
	_, version, hasEpoch := strings.Cut(p.Version, ":")
	if !hasEpoch {
		version = p.Version
	}
	p.File = poolPath(p.Name, p.Name+"_"+version+"_"+p.Arch+".deb")
	fields = append(fields, field{"Filename", p.File}, field{"Size", strconv.FormatInt(p.Size, 10)}, field{"SHA256", p.SHA256})
	return item{Package: p, kind: deb, stanza: fields.String()}, nil
}

// debPackage takes name, version and architecture from the fields of a package.
func debPackage(fields stanza, p Package) (Package, error) {
	p.Name, _ = fields.get("Package")
	p.Version, _ = fields.get("Version")
	p.Arch, _ = fields.get("Architecture")
	return p, errors.Join(shaped("name", p.Name, debName), shaped("version", p.Version, debVersion), shaped("architecture", p.Arch, debArch))
}

// debControl finds the control file.
func debControl(r io.Reader) ([]byte, error) {
	archive, err := ar.NewReader(r)
	if err != nil {
		return nil, err
	}
	first, err := archive.Next()
	if err != nil || first.Name != "debian-binary" || first.Size > 64 {
		return nil, errors.Join(errors.New("it does not begin with debian-binary"), err)
	}
	if format, err := io.ReadAll(archive); err != nil || !bytes.HasPrefix(format, []byte("2.")) {
		return nil, errors.Join(fmt.Errorf("format %.10q is not 2", format), err)
	}
	var text []byte
	for {
		m, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil, errors.New("control or data is missing")
		}
		if err != nil {
			return nil, err
		}
		switch base, _, _ := strings.Cut(m.Name, ".tar"); base {
		case "control":
			if text, err = controlFile(archive, strings.TrimPrefix(m.Name, "control.tar")); err != nil {
				return nil, fmt.Errorf("%s: %w", m.Name, err)
			}
		case "data":
			if text == nil {
				return nil, errors.New("data is before control")
			}
			return text, nil
		}
	}
}

// controlFile finds the file control in the archive of that name.
func controlFile(r io.Reader, compression string) ([]byte, error) {
	switch compression {
	case "":
	case ".gz":
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, err
		}
		r = z
	case ".xz":
		z, err := xz.ReaderConfig{DictCap: maxWindow}.NewReader(r)
		if err != nil {
			return nil, err
		}
		r = z
	case ".zst":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(2*maxWindow))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		r = z
	default:
		return nil, fmt.Errorf("compression %.10q is not known", compression)
	}
	entries := tar.NewReader(io.LimitReader(r, maxControlTar))
	for {
		h, err := entries.Next()
		if errors.Is(err, io.EOF) {
			return nil, errors.New("no control file in it")
		}
		if err != nil {
			return nil, err
		}
		if path.Clean(h.Name) != "control" || h.Typeflag != tar.TypeReg {
			continue
		}
		if h.Size > maxControl {
			return nil, fmt.Errorf("a control file of %d bytes", h.Size)
		}
		return io.ReadAll(io.LimitReader(entries, maxControl))
	}
}

// A stanza is a paragraph of a control file or an index (deb822(5)), in its order.
type stanza []field

// A field is a name and what is after the colon; lines that continue it begin with a blank.
type field struct{ name, value string }

func (s stanza) get(name string) (string, bool) {
	i := slices.IndexFunc(s, func(f field) bool { return strings.EqualFold(f.name, name) })
	if i < 0 {
		return "", false
	}
	return s[i].value, true
}

// String is the text, each line with its end.
func (s stanza) String() string {
	var b strings.Builder
	for _, f := range s {
		b.WriteString(f.name)
		b.WriteByte(':')
		if f.value != "" && f.value[0] != '\n' {
			b.WriteByte(' ')
		}
		b.WriteString(f.value)
		b.WriteByte('\n')
	}
	return b.String()
}

// parseStanza reads exactly one paragraph: a second one would become a package of its own in an index.
func parseStanza(text []byte) (stanza, error) {
	var s stanza
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	for _, line := range lines {
		switch {
		case strings.ContainsAny(line, "\r\x00"):
			return nil, fmt.Errorf("a line with a control character: %.40q", line)
		case strings.TrimSpace(line) == "":
			return nil, errors.New("an empty line within")
		case line[0] == '#':
			continue
		case line[0] == ' ' || line[0] == '\t':
			if len(s) == 0 {
				return nil, errors.New("it begins in the middle of a field")
			}
			s[len(s)-1].value += "\n" + strings.TrimRight(line, " \t")
		default:
			name, value, ok := strings.Cut(line, ":")
			if !ok || name == "" || strings.ContainsAny(name, " \t") {
				return nil, fmt.Errorf("not a field: %.40q", line)
			}
			if _, twice := s.get(name); twice {
				return nil, fmt.Errorf("field %.40s is there twice", name)
			}
			s = append(s, field{name, strings.TrimSpace(value)})
		}
	}
	return s, nil
}
