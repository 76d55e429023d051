package packaging

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"time"

	"github.com/devops-agent/devops-agent/packaging/internal/rpm"
)

// Numbers of rpm: algorithm of digests, and what a mode and a flag say about a file.
const (
	rpmSHA256    = 8
	rpmTypeMask  = 0o170000
	rpmDirectory = 0o040000
	rpmRegular   = 0o100000
	rpmLink      = 0o120000
	rpmConfig    = 1
)

// readRPM reads an rpm package, and holds its header against its digest, and its payload against the digests in the header.
func readRPM(r io.ReaderAt, size int64) (Listing, error) {
	in := io.NewSectionReader(r, 0, size)
	head, err := rpm.Read(in)
	if err != nil {
		return Listing{}, err
	}
	if want := head.Signature.String(rpm.SigSHA256); want != "" { // that of rpm before 4.14 has none
		if sum := sha256.Sum256(head.Signed); hex.EncodeToString(sum[:]) != want {
			return Listing{}, fmt.Errorf("%w: its header is not the one whose digest it has", rpm.ErrFormat)
		}
	}
	h := head.Header
	l := Listing{Name: h.String(rpm.Name), Version: h.String(rpm.Version) + "-" + h.String(rpm.Release), Arch: h.String(rpm.Arch), Scripts: map[string]string{}}
	for tag, name := range map[int]string{rpm.PreIn: "%pre", rpm.PostIn: "%post", rpm.PreUn: "%preun", rpm.PostUn: "%postun", rpm.PreTrans: "%pretrans", rpm.PostTrans: "%posttrans"} {
		if h.Has(tag) {
			l.Scripts[name] = h.String(tag)
		}
	}
	if l.Entries, err = rpmEntries(h); err != nil || len(l.Entries) == 0 {
		return l, err
	}
	payload, done, err := decompress(in, h.String(rpm.PayloadCompress))
	if err != nil {
		return Listing{}, fmt.Errorf("payload: %w", err)
	}
	defer done()
	if err := checkPayload(payload, l.Entries); err != nil {
		return Listing{}, fmt.Errorf("payload: %w", err)
	}
	return l, nil
}

// rpmEntries are the files that a header lists.
func rpmEntries(h rpm.Header) ([]Entry, error) {
	names, dirs, indexes := h.Strings(rpm.BaseNames), h.Strings(rpm.DirNames), h.Ints(rpm.DirIndexes)
	modes, sizes, times := h.Ints(rpm.FileModes), h.Ints(rpm.FileSizes), h.Ints(rpm.FileTimes)
	users, groups, links := h.Strings(rpm.FileUsers), h.Strings(rpm.FileGroups), h.Strings(rpm.FileLinks)
	digests, flags := h.Strings(rpm.FileDigests), h.Ints(rpm.FileFlags)
	n := len(names)
	for _, have := range []int{len(indexes), len(modes), len(sizes), len(times), len(users), len(groups), len(links), len(digests), len(flags)} {
		if have != n {
			return nil, fmt.Errorf("%w: %d files, and %d of something else", rpm.ErrFormat, n, have)
		}
	}
	if algorithm, ok := h.Int(rpm.FileDigestAlgo); n > 0 && (!ok || algorithm != rpmSHA256) {
		return nil, fmt.Errorf("%w: digests are not SHA-256", rpm.ErrFormat)
	}
	entries := make([]Entry, n)
	for i := range n {
		if indexes[i] < 0 || indexes[i] >= int64(len(dirs)) {
			return nil, fmt.Errorf("%w: %s is in no directory", rpm.ErrFormat, names[i])
		}
		e := Entry{Path: dirs[indexes[i]] + names[i], Mode: fs.FileMode(modes[i]) & fs.ModePerm, Owner: users[i], Group: groups[i], //nolint:gosec // masked
			Time: time.Unix(times[i]&0xffffffff, 0).UTC()}
		switch modes[i] & rpmTypeMask {
		case rpmDirectory:
			e.Kind = Dir
		case rpmLink:
			e.Kind, e.Target = Link, links[i]
		case rpmRegular:
			e.Size, e.Sum = sizes[i], digests[i]
			if len(e.Sum) != 2*sha256.Size {
				return nil, fmt.Errorf("%w: %s has no digest", rpm.ErrFormat, e.Path)
			}
			if flags[i]&rpmConfig != 0 {
				e.Kind = Config
			}
		default:
			return nil, fmt.Errorf("%w: %s has the mode %o", rpm.ErrFormat, e.Path, modes[i])
		}
		if modes[i]&0o7000 != 0 {
			return nil, fmt.Errorf("%s has the mode %o", e.Path, modes[i])
		}
		entries[i] = e
	}
	return entries, nil
}

// Of cpio's format "newc": the length of a header, and the name that ends the archive.
const (
	newcHeader  = 110
	newcTrailer = "TRAILER!!!"
)

// checkPayload reads the files of a cpio archive, which must be those of the header.
func checkPayload(r io.Reader, entries []Entry) error {
	byPath := map[string]Entry{}
	for _, e := range entries {
		byPath[e.Path] = e
	}
	for {
		var head [newcHeader]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return fmt.Errorf("it ends early: %w", err)
		}
		if string(head[:6]) != "070701" {
			return errors.New("no header of cpio where one must be")
		}
		field := func(i int) (int64, error) {
			v, err := strconv.ParseUint(string(head[6+8*i:14+8*i]), 16, 32)
			return int64(v), err //nolint:gosec // 32 bits
		}
		size, err := field(6)
		if err != nil {
			return err
		}
		length, err := field(11)
		if err != nil || length < 2 || length > 4096 {
			return errors.Join(fmt.Errorf("a name of %d bytes", length), err)
		}
		name := make([]byte, length)
		if _, err := io.ReadFull(r, name); err != nil {
			return err
		}
		if err := skip(r, newcHeader+length); err != nil {
			return err
		}
		path := string(name[:length-1])
		if path == newcTrailer {
			break
		}
		if len(path) > 1 && path[0] == '.' {
			path = path[1:]
		}
		e, ok := byPath[path]
		if !ok {
			return fmt.Errorf("%s is there twice, or not in the header", path)
		}
		delete(byPath, path)
		sum := sha256.New()
		if _, err := io.CopyN(sum, r, size); err != nil {
			return fmt.Errorf("%s ends early: %w", path, err)
		}
		if got := hex.EncodeToString(sum.Sum(nil)); e.Sum != "" && (got != e.Sum || size != e.Size) {
			return fmt.Errorf("%s: %d bytes with the digest %s, and the header says %d and %s", path, size, got, e.Size, e.Sum)
		}
		if err := skip(r, size); err != nil {
			return err
		}
	}
	for path := range byPath {
		return fmt.Errorf("%s is in the header and not there", path)
	}
	return nil
}

// skip reads over what fills n bytes up to a multiple of 4.
func skip(r io.Reader, n int64) error {
	_, err := io.CopyN(io.Discard, r, (4-n%4)%4)
	return err
}
