package packaging

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// Bounds of what a reader takes from a package that it does not know.
const (
	maxUnpacked = 1 << 30 // bytes in all
	maxEntries  = 1 << 16
	maxScript   = 1 << 20 // bytes of a script or a control file
	zstdMemory  = 1 << 28
)

// errTooLarge: a package holds more than one of ours ever does.
var errTooLarge = errors.New("it holds more than a package of ours")

// decompress reads what was compressed by a method: gzip, zstd or none. It gives at most maxUnpacked bytes.
func decompress(r io.Reader, method string) (io.Reader, func(), error) {
	switch method {
	case "gzip":
		z, err := gzip.NewReader(r)
		return bounded(z), func() {}, err
	case "zstd":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(zstdMemory))
		if err != nil {
			return nil, nil, err
		}
		return bounded(z), z.Close, nil
	case "none":
		return bounded(r), func() {}, nil
	}
	return nil, nil, fmt.Errorf("compression %q is not known", method)
}

// methodOf is how a member of a .deb is compressed, by its name.
func methodOf(name string) string {
	switch {
	case strings.HasSuffix(name, ".gz"):
		return "gzip"
	case strings.HasSuffix(name, ".zst"):
		return "zstd"
	case strings.HasSuffix(name, ".tar"):
		return "none"
	}
	return name
}

// limited is a reader that fails where io.LimitedReader ends.
type limited struct {
	r    io.Reader
	left int64
}

func bounded(r io.Reader) io.Reader { return &limited{r, maxUnpacked} }

// Read reads, up to the bound.
func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, errTooLarge
	}
	if int64(len(p)) > l.left {
		p = p[:l.left]
	}
	n, err := l.r.Read(p)
	l.left -= int64(n)
	return n, err
}
