package worker

import (
	"archive/tar"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// packed is what was made of a workspace.
type packed struct {
	digest    string // SHA-256 of the archive
	size      int64  // bytes of the archive
	bytes     int64  // bytes of the files in it
	files     int
	entries   int      // files, folders and links
	unmatched []string // paths that matched nothing
}

// found is one entry of a workspace that goes into an archive.
type found struct {
	name string // with slashes
	kind fs.FileMode
}

// pack writes a gzip'ed tar of what a task names to w. Entries are sorted and carry no times and no owners, so that the
// same files make the same archive. Links stay links. Nothing outside of the workspace is read.
func pack(ctx context.Context, workspace string, save wire.ArtifactSave, w io.Writer) (packed, error) {
	root, err := os.OpenRoot(workspace)
	if err != nil {
		return packed{}, err
	}
	defer func() { _ = root.Close() }()
	var made packed
	list, unmatched, err := find(ctx, root, save)
	made.unmatched = unmatched
	switch {
	case err != nil:
		return made, err
	case len(unmatched) > 0 && !save.Optional:
		return made, fmt.Errorf("nothing in the workspace matches %s", unmatched[0])
	case len(list) == 0:
		return made, nil
	}
	sum, size := sha256.New(), &counter{}
	zip, err := gzip.NewWriterLevel(io.MultiWriter(w, sum, size), gzip.BestSpeed)
	if err != nil {
		return made, err
	}
	p := packing{ctx: ctx, root: root, tar: tar.NewWriter(zip), left: save.MaxBytes, limit: save.MaxBytes, made: &made}
	for _, f := range list {
		if err := p.add(f); err != nil {
			return made, err
		}
	}
	if err := errors.Join(p.tar.Close(), zip.Close()); err != nil {
		return made, err
	}
	made.digest, made.size = hex.EncodeToString(sum.Sum(nil)), size.n
	return made, nil
}

type counter struct{ n int64 }

func (c *counter) Write(data []byte) (int, error) {
	c.n += int64(len(data))
	return len(data), nil
}

// find lists what the paths match and the others do not leave out, sorted by name.
func find(ctx context.Context, root *os.Root, save wire.ArtifactSave) (list []found, unmatched []string, err error) {
	var exclude []pattern
	for _, text := range save.Exclude {
		p, err := parsePattern(text)
		if err != nil {
			return nil, nil, err
		}
		exclude = append(exclude, p)
	}
	seen := make(map[string]bool)
	for _, text := range save.Paths {
		p, err := parsePattern(text)
		if err != nil {
			return nil, nil, err
		}
		hit := false
		err = walk(root, p.base(), func(name string, d fs.DirEntry, err error) error {
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case errors.Is(err, fs.ErrNotExist):
				return nil // of the base, or it went meanwhile
			case err != nil:
				return err
			case name == ".":
				return nil
			case slices.ContainsFunc(exclude, func(p pattern) bool { return p.matches(name) }):
				if d.IsDir() {
					return fs.SkipDir
				}
				return nil
			case !p.matches(name):
				return nil
			}
			hit = true
			if seen[name] {
				return nil
			}
			seen[name] = true
			if len(list) >= save.MaxEntries {
				return fmt.Errorf("more than %d files, folders and links: one artifact may not have more", save.MaxEntries)
			}
			list = append(list, found{name, d.Type()})
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
		if !hit {
			unmatched = append(unmatched, text)
		}
	}
	slices.SortFunc(list, func(a, b found) int { return cmp.Compare(a.name, b.name) })
	return list, unmatched, nil
}

// walk is fs.WalkDir below a folder, or of a file or link, which is not followed.
func walk(root *os.Root, base string, each fs.WalkDirFunc) error {
	info, err := root.Lstat(filepath.FromSlash(base))
	if err != nil {
		return each(base, nil, err)
	}
	if info.IsDir() {
		return fs.WalkDir(root.FS(), base, each)
	}
	return each(base, fs.FileInfoToDirEntry(info), nil)
}

// packing is one archive being written.
type packing struct {
	ctx         context.Context
	root        *os.Root
	tar         *tar.Writer
	left, limit int64 // bytes
	made        *packed
}

func (p *packing) add(f found) error {
	head := &tar.Header{Name: f.name, Format: tar.FormatPAX}
	p.made.entries++
	switch {
	case f.kind.IsDir():
		head.Typeflag, head.Name, head.Mode = tar.TypeDir, f.name+"/", 0o755
		return p.tar.WriteHeader(head)
	case f.kind&fs.ModeSymlink != 0:
		target, err := p.root.Readlink(filepath.FromSlash(f.name))
		if err != nil {
			return err
		}
		head.Typeflag, head.Linkname, head.Mode = tar.TypeSymlink, filepath.ToSlash(target), 0o777
		return p.tar.WriteHeader(head)
	case !f.kind.IsRegular():
		return fmt.Errorf("%s is neither a file, a folder nor a link", f.name)
	}
	return p.file(head)
}

func (p *packing) file(head *tar.Header) error {
	file, err := p.root.Open(filepath.FromSlash(head.Name))
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s changed while it was read", head.Name)
	}
	if info.Size() > p.left {
		return fmt.Errorf("its files have more than %d bytes: one artifact may not have more (serve --artifact-max)", p.limit)
	}
	p.left -= info.Size()
	p.made.files++
	p.made.bytes += info.Size()
	head.Typeflag, head.Size, head.Mode = tar.TypeReg, info.Size(), 0o644
	if info.Mode()&0o111 != 0 {
		head.Mode = 0o755
	}
	if err := p.tar.WriteHeader(head); err != nil {
		return err
	}
	if _, err := io.CopyN(p.tar, &ending{p.ctx, file}, info.Size()); err != nil {
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%s changed while it was read", head.Name)
		}
		return err
	}
	return nil
}

// ending is a reader that ends with its context.
type ending struct {
	ctx context.Context
	r   io.Reader
}

func (e *ending) Read(p []byte) (int, error) {
	if e.ctx.Err() != nil {
		return 0, context.Cause(e.ctx)
	}
	return e.r.Read(p)
}
