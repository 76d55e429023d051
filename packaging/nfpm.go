package packaging

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/files"
)

// umask keeps nfpm from giving directories to their group.
const umask = 0o022

// staged is a manifest as nfpm wants it: contents and scripts are files on the disk.
type staged struct {
	dir  string
	next int
}

// stage makes the place for what has no file yet. The caller removes it.
func stage() (*staged, error) {
	dir, err := os.MkdirTemp("", "packager-")
	return &staged{dir: dir}, err
}

func (s *staged) remove() error { return os.RemoveAll(s.dir) }

// file writes a text to a file of its own and returns its path; "" for none.
func (s *staged) file(data []byte) (string, error) {
	s.next++
	path := filepath.Join(s.dir, strconv.Itoa(s.next))
	return path, os.WriteFile(path, data, 0o600)
}

func (s *staged) text(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	return s.file([]byte(text))
}

// info is what nfpm is told in every format. Its own rules for versions are not asked.
func (s *staged) info(ctx context.Context, m Manifest, kind func(File) string) (*nfpm.Info, error) {
	v, err := parseVersion(m.Version)
	if err != nil {
		return nil, err
	}
	in := &nfpm.Info{
		Name: m.Name, Arch: m.GOARCH, Platform: m.GOOS, Version: v.tilde(), VersionSchema: "none",
		Maintainer: m.Maintainer, Description: m.Summary + "\n" + m.Description, Homepage: m.Homepage, License: m.License,
		DisableGlobbing: true, MTime: m.Time,
		Overridables: nfpm.Overridables{
			Umask:   umask,
			Depends: m.Relations.Depends, Recommends: m.Relations.Recommends, Suggests: m.Relations.Suggests, Conflicts: m.Relations.Conflicts,
		},
	}
	for _, f := range m.Files {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		c := &files.Content{Destination: f.Path, Type: kind(f),
			FileInfo: &files.ContentFileInfo{Owner: f.Owner, Group: f.Group, Mode: f.Mode, MTime: m.Time}}
		switch f.Kind {
		case Dir:
		case Link:
			c.Source = f.Target
		case Regular, Config:
			c.Source = f.Source
			if f.Source == "" {
				if c.Source, err = s.file(f.Data); err != nil {
					return nil, err
				}
			}
			if strings.ContainsAny(c.Source, "\n") {
				return nil, fmt.Errorf("%s: its source %q has a line break in its name", f.Path, c.Source)
			}
		}
		in.Contents = append(in.Contents, c)
	}
	for _, one := range []struct {
		to   *string
		text string
	}{
		{&in.Scripts.PreInstall, m.Scripts.PreInstall}, {&in.Scripts.PostInstall, m.Scripts.PostInstall},
		{&in.Scripts.PreRemove, m.Scripts.PreRemove}, {&in.Scripts.PostRemove, m.Scripts.PostRemove},
		{&in.RPM.Scripts.PostTrans, m.Scripts.PostTrans},
	} {
		if *one.to, err = s.text(one.text); err != nil {
			return nil, err
		}
	}
	return in, nil
}

// packager is one of nfpm's.
type packager interface {
	Package(info *nfpm.Info, w io.Writer) error
}

// writeNFPM writes a package by nfpm.
func writeNFPM(ctx context.Context, m Manifest, p packager, kind func(File) string, more func(*staged, *nfpm.Info) error, w io.Writer) (err error) {
	s, err := stage()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.remove()) }()
	in, err := s.info(ctx, m, kind)
	if err != nil {
		return err
	}
	if err := more(s, in); err != nil {
		return err
	}
	return p.Package(nfpm.WithDefaults(in), w)
}
