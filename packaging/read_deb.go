package packaging

import (
	"archive/tar"
	"crypto/md5" //nolint:gosec // what dpkg has in md5sums
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/devops-agent/devops-agent/packaging/internal/ar"
)

// debOrder is what the members of a .deb are, in their order; a signature may follow.
const (
	debMagic   = "debian-binary"
	debControl = "control.tar"
	debData    = "data.tar"
)

// readDeb reads a Debian package, and holds its files against its own list of digests.
func readDeb(r io.ReaderAt, size int64) (Listing, error) {
	a, err := ar.NewReader(io.NewSectionReader(r, 0, size))
	if err != nil {
		return Listing{}, err
	}
	var l Listing
	var control map[string]string
	for _, want := range []string{debMagic, debControl, debData} {
		m, err := a.Next()
		if err != nil {
			return Listing{}, err
		}
		if !strings.HasPrefix(m.Name, want) {
			return Listing{}, fmt.Errorf("member %s where %s must be", m.Name, want)
		}
		switch want {
		case debMagic:
			version, err := io.ReadAll(io.LimitReader(a, 16))
			if err != nil || !strings.HasPrefix(string(version), "2.") {
				return Listing{}, errors.Join(fmt.Errorf("format %q is not 2.0", version), err)
			}
		case debControl:
			if control, err = readControl(a, methodOf(m.Name)); err != nil {
				return Listing{}, fmt.Errorf("%s: %w", m.Name, err)
			}
		case debData:
			if err := readData(&l, a, methodOf(m.Name), control); err != nil {
				return Listing{}, fmt.Errorf("%s: %w", m.Name, err)
			}
		}
	}
	for line := range strings.Lines(control["control"]) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch key {
		case "Package":
			l.Name = value
		case "Version":
			l.Version = value
		case "Architecture":
			l.Arch = value
		}
	}
	l.Scripts = map[string]string{}
	for _, name := range []string{"preinst", "postinst", "prerm", "postrm", "config", "triggers"} {
		if s, ok := control[name]; ok {
			l.Scripts[name] = s
		}
	}
	return l, nil
}

// readControl returns the files of control.tar.
func readControl(r io.Reader, method string) (map[string]string, error) {
	plain, done, err := decompress(r, method)
	if err != nil {
		return nil, err
	}
	defer done()
	files := map[string]string{}
	t := tar.NewReader(plain)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		data, err := io.ReadAll(io.LimitReader(t, maxScript+1))
		if err != nil {
			return nil, err
		}
		if len(data) > maxScript || len(files) >= 64 {
			return nil, errTooLarge
		}
		files[strings.TrimPrefix(h.Name, "./")] = string(data)
	}
}

// readData fills in the entries from data.tar.
func readData(l *Listing, r io.Reader, method string, control map[string]string) error {
	plain, done, err := decompress(r, method)
	if err != nil {
		return err
	}
	defer done()
	sums := map[string]string{}
	for line := range strings.Lines(control["md5sums"]) {
		if sum, name, ok := strings.Cut(strings.TrimRight(line, "\n"), "  "); ok {
			sums["/"+name] = sum
		}
	}
	confs := strings.Split(control["conffiles"], "\n")
	t := tar.NewReader(plain)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if len(l.Entries) >= maxEntries {
			return errTooLarge
		}
		e := Entry{Path: "/" + strings.Trim(strings.TrimPrefix(h.Name, "."), "/"), Mode: fs.FileMode(h.Mode) & fs.ModePerm, //nolint:gosec // masked
			Owner: h.Uname, Group: h.Gname, Time: h.ModTime.UTC()}
		switch h.Typeflag {
		case tar.TypeDir:
			e.Kind = Dir
		case tar.TypeSymlink:
			e.Kind, e.Target = Link, h.Linkname
		case tar.TypeReg:
			m, s := md5.New(), sha256.New() //nolint:gosec // see above
			if e.Size, err = io.Copy(io.MultiWriter(m, s), t); err != nil {
				return err
			}
			e.Sum = hex.EncodeToString(s.Sum(nil))
			if got := hex.EncodeToString(m.Sum(nil)); sums[e.Path] != got {
				return fmt.Errorf("%s: its digest is %s, and md5sums says %q", e.Path, got, sums[e.Path])
			}
			delete(sums, e.Path)
			if slices.Contains(confs, e.Path) {
				e.Kind = Config
			}
		default:
			return fmt.Errorf("%s is of a kind that packages of ours do not have (%q)", e.Path, h.Typeflag)
		}
		if h.Mode&^0o777 != 0 {
			return fmt.Errorf("%s has the mode %o", e.Path, h.Mode)
		}
		l.Entries = append(l.Entries, e)
	}
	if len(sums) > 0 {
		return fmt.Errorf("%s is in md5sums and not there", slices.Sorted(maps.Keys(sums))[0])
	}
	return nil
}
