package unpack

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

const gzipMagic = "\x1f\x8b"

// tar unpacks a gzip'ed tar, which may consist of several gzip members.
func (u *unpacking) tar(ctx context.Context, archive *os.File) error {
	s := &stream{ctx: ctx, u: u, in: bufio.NewReaderSize(archive, bufferSize)}
	var err error
	if s.z, err = gzip.NewReader(s.in); err != nil {
		return u.damage(ctx, "", err)
	}
	s.z.Multistream(false)
	r := tar.NewReader(s)
	name := "" // of the entry that was read last: that is where damage is
	for {
		head, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // names are looked at by add
			return u.damage(ctx, name, err)
		}
		name = head.Name
		if err := u.addTar(ctx, head, r); err != nil {
			return err
		}
	}
	// Two empty blocks are the end; without them something is missing. What follows fills up a block of the tape.
	if s.ended {
		return u.refuse("", ErrTruncated, nil)
	}
	buf := make([]byte, 4096)
	for !s.ended {
		n, err := s.Read(buf)
		if strings.Trim(string(buf[:n]), "\x00") != "" {
			return u.refuse("", ErrTrailing, nil)
		}
		if err != nil && !s.ended {
			return u.damage(ctx, "", err)
		}
	}
	return u.checkLinks()
}

// addTar unpacks one entry.
func (u *unpacking) addTar(ctx context.Context, head *tar.Header, content io.Reader) error {
	switch head.Typeflag {
	case tar.TypeXGlobalHeader: // what git writes about the commit
		return nil
	case tar.TypeDir:
		if _, err := u.add(head.Name, directory); err != nil {
			return err
		}
		return u.makeDirs()
	case tar.TypeReg, tar.TypeGNUSparse:
		n, err := u.addTarFile(head, head.Size)
		if err != nil || u.root == nil {
			return err
		}
		return u.makeFile(ctx, n, head.Mode&0o111 != 0, content)
	case tar.TypeLink:
		return u.addTarLink(ctx, head)
	case tar.TypeSymlink:
		n, err := u.add(head.Name, symlink)
		if err != nil {
			return err
		}
		if err := u.makeDirs(); err != nil {
			return err
		}
		return u.setTarget(n, head.Name, head.Linkname)
	}
	return u.refuse(head.Name, ErrSpecial, nil)
}

// addTarFile puts a file in its place, ready to be written.
func (u *unpacking) addTarFile(head *tar.Header, size int64) (*node, error) {
	if head.Name != "" && head.Name[len(head.Name)-1] == '/' {
		return nil, u.refuse(head.Name, ErrClash, nil)
	}
	n, err := u.add(head.Name, file)
	if err != nil {
		return nil, err
	}
	n.size, n.executable = size, head.Mode&0o111 != 0
	if err := u.claim(head.Name, size); err != nil {
		return nil, err
	}
	return n, u.makeDirs()
}

// addTarLink makes a copy of a file that was unpacked before.
func (u *unpacking) addTarLink(ctx context.Context, head *tar.Header) error {
	path, bad := elements(head.Linkname, u.limits.Depth)
	if bad != nil {
		return u.refuse(head.Name, ErrHardLink, fmt.Errorf("to %s", quoted(head.Linkname)))
	}
	old := u.find(path)
	if old == nil || old.kind != file {
		return u.refuse(head.Name, ErrHardLink, fmt.Errorf("to %s", quoted(head.Linkname)))
	}
	n, err := u.addTarFile(head, old.size)
	if err != nil {
		return err
	}
	n.executable = old.executable
	if u.root == nil {
		return nil
	}
	content, err := u.root.Open(filepath.FromSlash(old.path()))
	if err != nil {
		return fmt.Errorf("unpack %s: %w", u.archive, err)
	}
	defer content.Close()
	return u.makeFile(ctx, n, n.executable, content)
}

// maxHeaders bounds what is neither a file nor counted as an entry, in bytes, with 2 KiB for each entry that there may
// be: there is no end to the headers that a few bytes can be unpacked to.
const maxHeaders = 16 << 20

// stream is the tar inside the gzip. It ends with the context.
type stream struct {
	ctx   context.Context
	u     *unpacking
	in    *bufio.Reader
	z     *gzip.Reader // one member of in
	n     int64        // bytes read
	over  bool         // that member is over
	ended bool         // in has no more
}

func (s *stream) Read(b []byte) (int, error) {
	for {
		if s.ctx.Err() != nil {
			return 0, context.Cause(s.ctx)
		}
		if s.over { // only now: who reads has used what was left of it
			if err := s.nextMember(); err != nil {
				return 0, err
			}
		}
		n, err := s.z.Read(b)
		s.n += int64(n)
		if s.n-s.u.claimed > maxHeaders+2048*int64(min(s.u.limits.Entries, 1<<30)) {
			return 0, s.u.refuse("", ErrEntries, errors.New("there is too much about them"))
		}
		if s.over = errors.Is(err, io.EOF); s.over {
			err = nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// nextMember goes on to the next member of the gzip, or says io.EOF.
func (s *stream) nextMember() error {
	magic, err := s.in.Peek(len(gzipMagic))
	switch {
	case string(magic) == gzipMagic:
		if err := s.z.Reset(s.in); err != nil {
			return err
		}
		s.z.Multistream(false)
		s.over = false
		return nil
	case len(magic) > 0:
		return s.u.refuse("", ErrTrailing, nil)
	}
	s.ended = errors.Is(err, io.EOF)
	return err
}
