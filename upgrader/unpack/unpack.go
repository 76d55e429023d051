package unpack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Limits are the bounds of what an archive may become. A zero value means the default.
type Limits struct {
	Bytes   int64 // of all files together, as they are written; 2 GiB
	Entries int   // files, links and directories, also those that have no entry of their own; 100,000
	Ratio   int   // unpacked bytes for each byte of the archive; counted once more than 1 MiB is unpacked; 200
	Depth   int   // elements of one path; 64
}

const (
	freeOfRatio = 1 << 20     // bytes that may come out of any archive
	bufferSize  = 128 << 10   // bytes between two looks at the context
	block       = int64(4096) // bytes, the unit in which file systems give out space
)

func (l Limits) orDefault() Limits {
	if l.Bytes <= 0 {
		l.Bytes = 2 << 30
	}
	if l.Entries <= 0 {
		l.Entries = 100_000
	}
	if l.Ratio <= 0 {
		l.Ratio = 200
	}
	if l.Depth <= 0 {
		l.Depth = 64
	}
	return l
}

// unpacking is one archive on its way.
type unpacking struct {
	archive string
	size    int64 // bytes of the archive
	limits  Limits
	root    *os.Root // nil: only measure

	tree    *node
	newDirs []*node // not made yet, those above first
	links   []*node

	claimed int64 // bytes of files, as the archive has it
	bytes   int64 // bytes of files, as they were written
	disk    int64 // bytes, in whole blocks
	entries int
	names   int64 // bytes
	buf     []byte
}

// Size says what an archive takes on a disk: bytes in whole blocks of 4096, with directories, and the number of files,
// links and directories. It checks everything that can be checked without writing, so that it fails where [Into] would,
// but for the content of the files in a zip, of which only the directory is read. A tar.gz has none and is read whole.
func Size(ctx context.Context, archive string, l Limits) (bytes int64, entries int, err error) {
	u := &unpacking{archive: archive, limits: l.orDefault(), tree: &node{}}
	if err := u.run(ctx); err != nil {
		return 0, 0, err
	}
	return u.disk, u.entries, nil
}

// Into unpacks an archive, a zip or a gzip'ed tar, told apart by their content, into dir. Dir must not exist, its parent
// must; until all is there nobody but us can enter it. After an error dir is gone again, and nothing else was touched.
//
// Files get mode 0755 when the archive lets anyone execute them, else 0644, and directories 0755, whatever the umask.
// The entries of a zip that knows no Unix modes get 0755, as the original gives them to everything. All belong to us;
// times and extended attributes are not kept, and hard links become copies.
//
// Symbolic links are kept where they stay inside dir, and are made after all files. A refused archive gives an
// [EntryError], a full disk an error that is [syscall.ENOSPC], on Windows too. Nothing is forced to the disk.
func Into(ctx context.Context, archive, dir string, l Limits) (err error) {
	u := &unpacking{archive: archive, limits: l.orDefault(), tree: &node{}}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("unpack %s: %w", archive, u.space(err))
	}
	defer func() {
		if u.root != nil {
			err = errors.Join(err, u.root.Close()) // Windows removes nothing that is open
		}
		if err == nil {
			return
		}
		if gone := os.RemoveAll(dir); gone != nil {
			err = errors.Join(err, gone)
		}
	}()
	if u.root, err = os.OpenRoot(dir); err != nil {
		return fmt.Errorf("unpack %s: %w", archive, err)
	}
	u.buf = make([]byte, bufferSize)
	if err := u.run(ctx); err != nil {
		return err
	}
	if err := u.root.Chmod(".", 0o755); err != nil {
		return fmt.Errorf("unpack %s: %w", archive, err)
	}
	return nil
}

func (u *unpacking) run(ctx context.Context) error {
	// A pipe would keep us waiting in Open.
	if info, err := os.Stat(u.archive); err != nil {
		return fmt.Errorf("unpack: %w", err)
	} else if !info.Mode().IsRegular() {
		return u.refuse("", ErrFormat, errors.New("it is not a file"))
	}
	f, err := os.Open(u.archive)
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	u.size = info.Size()
	var magic [4]byte
	if n, err := f.ReadAt(magic[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("unpack: %w", err)
	} else if n < len(magic) {
		return u.refuse("", ErrFormat, nil)
	}
	switch {
	case string(magic[:]) == localMagic, string(magic[:]) == endMagic:
		err = u.zip(ctx, f)
	case string(magic[:len(gzipMagic)]) == gzipMagic:
		err = u.tar(ctx, f)
	case u.endsAsZip(f):
		err = u.refuse("", ErrPrepended, nil)
	default:
		err = u.refuse("", ErrFormat, nil)
	}
	if err != nil {
		return err
	}
	return u.makeLinks(ctx)
}

// claim counts a file before its first byte, by the size that the archive gives it.
func (u *unpacking) claim(name string, size int64) error {
	if size < 0 || size > u.limits.Bytes-u.claimed {
		return u.refuse(name, ErrBytes, fmt.Errorf("more than %d bytes together", u.limits.Bytes))
	}
	u.claimed += size
	u.disk += (size + block - 1) / block * block
	return u.ratio(name, u.claimed)
}

func (u *unpacking) ratio(name string, bytes int64) error {
	if bytes > freeOfRatio && bytes/int64(u.limits.Ratio) > u.size {
		return u.refuse(name, ErrRatio, fmt.Errorf("more than %d times %d bytes", u.limits.Ratio, u.size))
	}
	return nil
}

// makeDirs makes the directories that the entries added so far need.
func (u *unpacking) makeDirs() error {
	dirs := u.newDirs
	u.newDirs = u.newDirs[:0]
	if u.root == nil {
		return nil
	}
	for _, dir := range dirs {
		path := filepath.FromSlash(dir.path())
		if err := u.root.Mkdir(path, 0o755); err != nil {
			return u.cannotMake(dir, err)
		}
		if err := u.root.Chmod(path, 0o755); err != nil { // the umask may have taken something
			return u.cannotMake(dir, err)
		}
	}
	return nil
}

// makeFile writes one file.
func (u *unpacking) makeFile(ctx context.Context, n *node, executable bool, content io.Reader) (err error) {
	out, err := u.root.OpenFile(filepath.FromSlash(n.path()), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return u.cannotMake(n, err)
	}
	defer func() {
		if cerr := out.Close(); cerr != nil && err == nil {
			err = u.cannotMake(n, cerr)
		}
	}()
	for {
		if ctx.Err() != nil {
			return fmt.Errorf("unpack %s: %w", u.archive, context.Cause(ctx))
		}
		got, rerr := content.Read(u.buf)
		if u.bytes += int64(got); u.bytes > u.limits.Bytes {
			return u.refuse(n.path(), ErrBytes, fmt.Errorf("more than %d bytes together", u.limits.Bytes))
		}
		if err := u.ratio(n.path(), u.bytes); err != nil {
			return err
		}
		if _, err := out.Write(u.buf[:got]); err != nil {
			return u.cannotMake(n, err)
		}
		if errors.Is(rerr, io.EOF) {
			break
		}
		if rerr != nil {
			return u.damage(ctx, n.path(), rerr)
		}
	}
	mode := fs.FileMode(0o644)
	if executable {
		mode = 0o755
	}
	if err := out.Chmod(mode); err != nil {
		return u.cannotMake(n, err)
	}
	return nil
}

// makeLinks comes last: so nothing is ever written through a link.
func (u *unpacking) makeLinks(ctx context.Context) error {
	if u.root == nil {
		return nil
	}
	for _, link := range u.links {
		if ctx.Err() != nil {
			return fmt.Errorf("unpack %s: %w", u.archive, context.Cause(ctx))
		}
		err := u.root.Symlink(filepath.FromSlash(link.target), filepath.FromSlash(link.path()))
		switch {
		case err == nil:
		case full(err), errors.Is(err, fs.ErrExist):
			return u.cannotMake(link, err)
		default: // without a privilege on Windows, on FAT anywhere
			return u.refuse(link.path(), ErrSymlink, err)
		}
	}
	return nil
}

// cannotMake says what kept us from making n. What is there already, in a directory that was empty and is ours, is an
// entry whose name the file system holds for the same.
func (u *unpacking) cannotMake(n *node, err error) error {
	if errors.Is(err, fs.ErrExist) {
		return u.refuse(n.path(), ErrCase, err)
	}
	return fmt.Errorf("unpack %s: %w", u.archive, u.space(err))
}

// space makes an error about a full disk one that says so everywhere.
func (u *unpacking) space(err error) error {
	if !full(err) {
		return err
	}
	if !errors.Is(err, syscall.ENOSPC) {
		err = fmt.Errorf("%w: %w", err, syscall.ENOSPC)
	}
	return &hinted{err, "free some space on that disk, or raise the quota"}
}
