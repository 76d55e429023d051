package fetch

import (
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// What lies beside a file on its way: the part, and what is known about it.
const (
	partSuffix = ".part"
	noteSuffix = ".part.json"
)

// maxNote bounds the note beside a part in bytes.
const maxNote = 4096

// staleAfter is the age at which nobody goes on with a part any more.
const staleAfter = 24 * time.Hour

// part is what is here of a file on its way.
type part struct {
	identity identity
	path     string // of the final file
	file     *os.File
	hash     hash.Hash
	bytes    int64
}

// note is the file beside a part.
type note struct {
	identity
	Bytes int64  `json:"bytes"` // at the beginning of the part that Sum is of
	Sum   string `json:"sum"`   // their MD5; "" while more come
}

// newPart makes an empty part for the file at path. There is none.
func newPart(path string, id identity) (*part, error) {
	file, err := os.OpenFile(path+partSuffix, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	p := &part{identity: id, path: path, file: file, hash: md5.New()}
	if err := writeNote(path, note{identity: id}); err != nil {
		p.close()
		return nil, errors.Join(err, removePart(path))
	}
	return p, nil
}

// keptPart returns what an earlier call left of the file at path, nil when there is nothing that is worth going on with; that
// is removed. Nothing forced the part to the disk, so a power cut may have put holes into it. Then it is no use, unless the
// server announced a digest that will tell in the end.
func keptPart(path string) (*part, error) {
	p, err := openPart(path)
	if err != nil {
		return nil, removePart(path)
	}
	return p, nil
}

func openPart(path string) (_ *part, err error) {
	n, err := readNote(path)
	if err != nil {
		return nil, err
	}
	if n.Sum == "" && n.MD5 == "" || n.identity == (identity{}) {
		return nil, errors.New("nothing to recognise it by")
	}
	if info, err := os.Lstat(path + partSuffix); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file", path+partSuffix)
	}
	file, err := os.OpenFile(path+partSuffix, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	p := &part{identity: n.identity, path: path, file: file, hash: md5.New()}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if n.Sum != "" {
		if err := file.Truncate(n.Bytes); err != nil {
			return nil, err
		}
	}
	if p.bytes, err = io.Copy(p.hash, file); err != nil {
		return nil, err
	}
	if p.bytes == 0 || n.Sum != "" && n.Sum != p.digest() {
		return nil, errors.New("it is not what was written")
	}
	return p, nil
}

func (p *part) digest() string { return hex.EncodeToString(p.hash.Sum(nil)) }

func (p *part) write(data []byte) error {
	n, err := p.file.Write(data)
	p.bytes += int64(n)
	p.hash.Write(data[:n])
	return err
}

// close ends the use of a part that is not complete, or is none; what it holds stays.
func (p *part) close() {
	if p != nil && p.file != nil {
		_ = p.file.Close()
		p.file = nil
	}
}

// note leaves to the next call what this one has.
func (p *part) note() error {
	return writeNote(p.path, note{identity: p.identity, Bytes: p.bytes, Sum: p.digest()})
}

// place makes the part the file: first what it holds is forced to the disk, then its name.
func (p *part) place() error {
	err := p.file.Sync()
	if cerr := p.file.Close(); err == nil {
		err = cerr
	}
	p.file = nil
	if err != nil {
		return err
	}
	if err := rename(p.path+partSuffix, p.path); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(p.path)); err != nil {
		return fmt.Errorf("force the directory to the disk: %w", err)
	}
	return removePart(p.path)
}

func writeNote(path string, n note) error {
	data, err := json.Marshal(n)
	if err != nil {
		return err
	}
	// It may be torn: then it is not read.
	file, err := os.OpenFile(path+noteSuffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	return errors.Join(err, file.Close())
}

func readNote(path string) (n note, err error) {
	file, err := os.Open(path + noteSuffix)
	if err != nil {
		return n, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	data, err := io.ReadAll(io.LimitReader(file, maxNote))
	if err != nil {
		return n, err
	}
	if err := json.Unmarshal(data, &n); err != nil {
		return n, err
	}
	if n.Bytes < 0 {
		return n, errors.New("a negative size")
	}
	return n, nil
}

// removePart removes what lies beside the file at path.
func removePart(path string) error {
	var errs []error
	for _, suffix := range []string{partSuffix, noteSuffix} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Sweep removes parts in a directory that nobody has gone on with for a day, or that come from the future because the clock
// was set back. A missing directory is no error.
func Sweep(dir string) error { return sweep(dir, time.Now()) }

func sweep(dir string, now time.Time) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sweep downloads: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		name := entry.Name()
		if !entry.Type().IsRegular() || !strings.HasSuffix(name, partSuffix) && !strings.HasSuffix(name, noteSuffix) {
			continue
		}
		info, err := entry.Info()
		if err != nil || now.Sub(info.ModTime()).Abs() < staleAfter {
			continue
		}
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("sweep downloads: %w", err))
		}
	}
	return errors.Join(errs...)
}
