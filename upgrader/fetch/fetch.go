package fetch

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Bounds of a Request that sets none.
const (
	DefaultMaxBytes = 1 << 30
	DefaultStall    = 30 * time.Second
	DefaultLimit    = 30 * time.Minute
)

// headerMD5 carries the hex MD5 of the whole file, also with a part of it (protocol §1.6.6).
const headerMD5 = "X-Checksum-Md5"

// maxRetryAfter bounds what is believed of Retry-After.
const maxRetryAfter = 24 * time.Hour

// Request is one file to get.
type Request struct {
	Name     string        // of the file in errors
	Path     string        // where it is to be; its directory exists. One download to a path at a time
	ETag     string        // hex MD5 of what is at Path, for an answer 304 instead of the same file again; "" for none
	MaxBytes int64         // that the file may have; 0 is DefaultMaxBytes
	Stall    time.Duration // how long nothing may come; 0 is DefaultStall
	Limit    time.Duration // for everything; 0 is DefaultLimit

	// Free says how many bytes may be written in a directory; nil does not ask. Room is how many bytes are needed besides
	// those of the file, such as for unpacking it. A tenth is added to both.
	Free func(dir string) (uint64, error)
	Room int64
}

// Result is a file that is complete at its path.
type Result struct {
	MD5         string // hex, lower case, computed from the bytes on the disk
	Bytes       int64  // that the file has
	NotModified bool   // it was there already, and is the server's
	Resumed     int64  // bytes of it that an earlier attempt had brought
}

// Opener makes one request for the file and returns the answer, whatever its status. An offset above 0 asks for the rest of
// the file from there, with the header "Range: bytes=<offset>-"; a server that ignores it sends everything. A given eTag
// goes along as the server expects it. The opener sends "Accept-Encoding: identity" and obeys ctx, also while the body is read.
type Opener func(ctx context.Context, offset int64, eTag string) (*http.Response, error)

// File gets one file and puts it at r.Path, mode 0600, whole and with the MD5 that the header X-Checksum-Md5 announced. Without
// the header only the length is checked; then a signature has to tell, if anything does. When it fails, Path is as it was.
//
// Errors: *StatusError, *DigestError, *StalledError, *LimitError, *TooLongError, *TruncatedError, *RoomError, those of the
// opener and of the disk, and the cause of ctx when that ends. A part that came is kept when going on with it is worthwhile; it
// is removed when the disk is full.
func File(ctx context.Context, r Request, open Opener) (Result, error) {
	if r.MaxBytes <= 0 {
		r.MaxBytes = DefaultMaxBytes
	}
	if r.Stall <= 0 {
		r.Stall = DefaultStall
	}
	if r.Limit <= 0 {
		r.Limit = DefaultLimit
	}
	within, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	d := &download{Request: r, ctx: within}
	// The clocks: one for everything, and one that every byte sets back.
	limit := time.AfterFunc(r.Limit, func() { cancel(errLimit) })
	defer limit.Stop()
	d.stall = time.AfterFunc(r.Stall, func() { cancel(errStall) })
	defer d.stall.Stop()
	defer func() { d.part.close() }()
	return d.run(open)
}

// What the clocks of a download end its context with.
var (
	errLimit = errors.New("out of time")
	errStall = errors.New("stalled")
)

// download is one call of File.
type download struct {
	Request
	ctx   context.Context
	stall *time.Timer
	part  *part // what is here of the file; nil when nothing is
}

func (d *download) wrap(err error) error { return fmt.Errorf("fetch %s: %w", d.Name, err) }

// ended is why the context of the download is done, nil while it is not.
func (d *download) ended() error {
	var here int64
	if d.part != nil {
		here = d.part.bytes
	}
	switch cause := context.Cause(d.ctx); {
	case cause == nil:
		return nil
	case errors.Is(cause, errStall):
		return &StalledError{Name: d.Name, Limit: d.Stall, Bytes: here}
	case errors.Is(cause, errLimit):
		return &LimitError{Name: d.Name, Limit: d.Limit, Bytes: here}
	default:
		return d.wrap(cause)
	}
}

// run asks for the rest of what is here, and for everything where the server has something else by now.
func (d *download) run(open Opener) (Result, error) {
	var err error
	if d.part, err = keptPart(d.Path); err != nil {
		return Result{}, d.wrap(err)
	}
	result, again, err := d.attempt(open)
	if again {
		if err := d.discard(); err != nil {
			return Result{}, err
		}
		result, _, err = d.attempt(open)
	}
	return result, err
}

// attempt makes one request. It reports again when it was made for the rest of a part that turned out to be of no use.
func (d *download) attempt(open Opener) (_ Result, again bool, _ error) {
	var offset int64
	if d.part != nil {
		offset = d.part.bytes
	}
	d.stall.Reset(d.Stall)
	resp, err := open(d.ctx, offset, d.ETag)
	if err != nil {
		if ended := d.ended(); ended != nil {
			return Result{}, false, ended
		}
		return Result{}, false, d.wrap(err)
	}
	defer func() { _ = resp.Body.Close() }()
	defer context.AfterFunc(d.ctx, func() { _ = resp.Body.Close() })() // for bodies that do not look at the context
	d.stall.Reset(d.Stall)
	now := identityOf(resp.Header)
	size := resp.ContentLength // of what comes; -1 when the server does not say
	switch code := resp.StatusCode; {
	case code == http.StatusNotModified && d.ETag != "":
		result, err := d.notModified()
		return result, false, err
	case code == http.StatusRequestedRangeNotSatisfiable && offset > 0:
		return Result{}, true, nil
	case code == http.StatusPartialContent:
		if offset == 0 {
			return Result{}, false, d.wrap(errors.New("the server sent a part of it, and all was asked for"))
		}
		rest, ok := restFrom(offset, resp.Header.Get("Content-Range"), now.MD5 != "")
		if !ok || size >= 0 && size != rest || !d.part.identity.same(now) {
			return Result{}, true, nil
		}
		size = rest
	case code < 200 || code > 299 || code == http.StatusNoContent:
		_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection can be used again
		return Result{}, false, &StatusError{Name: d.Name, Code: code, RetryAfter: retryAfter(resp.Header)}
	default:
		offset = 0 // everything comes, whatever was asked for
	}
	if encoding := resp.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return Result{}, false, d.wrap(fmt.Errorf("the server encoded it as %q, which was not asked for", bounded(encoding)))
	}
	whole := int64(-1)
	if size >= 0 {
		whole = offset + size
	}
	if whole > d.MaxBytes {
		return Result{}, false, &TooLongError{Name: d.Name, Most: d.MaxBytes, Size: whole}
	}
	if err := d.checkRoom(offset, whole); err != nil {
		return Result{}, false, err
	}
	if offset == 0 {
		if err := d.discard(); err != nil {
			return Result{}, false, err
		}
		if d.part, err = newPart(d.Path, now); err != nil {
			return Result{}, false, d.wrap(err)
		}
	}
	result, err := d.receive(resp.Body, whole, now.MD5)
	if err != nil {
		return Result{}, false, err
	}
	result.Resumed = offset
	return result, false, nil
}

// checkRoom looks whether what is to come, and what is to be made of it, fits on the disk.
func (d *download) checkRoom(offset, whole int64) error {
	if d.Free == nil {
		return nil
	}
	if whole < 0 {
		whole = d.MaxBytes
	}
	dir := filepath.Dir(d.Path)
	free, err := d.Free(dir)
	if err != nil {
		return d.wrap(fmt.Errorf("ask for the room in %s: %w", dir, err))
	}
	if offset == 0 && d.part != nil { // it goes away first
		free += uint64(d.part.bytes)
	}
	need := uint64(whole-offset) + uint64(max(d.Room, 0))
	need += need / 10
	if free < need {
		return &RoomError{Path: dir, Need: need, Free: free}
	}
	return nil
}

// receive writes the body to the part and, when all is well, puts that in its place.
func (d *download) receive(body io.Reader, whole int64, want string) (Result, error) {
	most := d.MaxBytes
	if whole >= 0 {
		most = whole
	}
	buffer := make([]byte, 64<<10)
	for ended := false; !ended; {
		n, err := body.Read(buffer)
		if n > 0 {
			d.stall.Reset(d.Stall)
			if d.part.bytes+int64(n) > most {
				return Result{}, errors.Join(&TooLongError{Name: d.Name, Most: most}, d.discard())
			}
			if err := d.part.write(buffer[:n]); err != nil {
				return Result{}, errors.Join(d.wrap(err), d.discard()) // a full disk must not stay full because of us
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			ended = true
		case d.ended() != nil: // also while bytes drip
			return Result{}, errors.Join(d.ended(), d.keep())
		case err != nil:
			return Result{}, errors.Join(&TruncatedError{Name: d.Name, Got: d.part.bytes, Size: whole, Err: err}, d.keep())
		}
	}
	if d.part.bytes < whole {
		return Result{}, errors.Join(&TruncatedError{Name: d.Name, Got: d.part.bytes, Size: whole}, d.keep())
	}
	result := Result{MD5: d.part.digest(), Bytes: d.part.bytes}
	if want != "" && want != result.MD5 {
		return Result{}, errors.Join(&DigestError{Name: d.Name, Want: want, Got: result.MD5}, d.discard())
	}
	if err := d.part.place(); err != nil {
		return Result{}, errors.Join(d.wrap(err), d.discard())
	}
	d.part = nil
	return result, nil
}

// keep notes what is here for the next attempt. What cannot be noted is no use.
func (d *download) keep() error {
	if err := d.part.note(); err != nil {
		return errors.Join(d.wrap(err), d.discard())
	}
	return nil
}

// discard throws away what is here of the file.
func (d *download) discard() error {
	d.part.close()
	d.part = nil
	if err := removePart(d.Path); err != nil {
		return d.wrap(err)
	}
	return nil
}

// notModified is the answer 304: what is at the path is the server's file. Its digest is taken again: it may have been changed
// since the caller took it.
func (d *download) notModified() (Result, error) {
	f, err := os.Open(d.Path)
	if err != nil {
		return Result{}, d.wrap(fmt.Errorf("the server says that it is here already: %w", err))
	}
	sum := md5.New()
	n, err := io.Copy(sum, f)
	if err := errors.Join(err, f.Close()); err != nil {
		return Result{}, d.wrap(err)
	}
	got := hex.EncodeToString(sum.Sum(nil))
	if want := strings.ToLower(d.ETag); got != want {
		return Result{}, &DigestError{Name: d.Name, Want: want, Got: got}
	}
	return Result{MD5: got, Bytes: n, NotModified: true}, d.discard()
}

// identity is what a server says by which a file can be recognised.
type identity struct {
	MD5  string `json:"md5,omitempty"`  // of X-Checksum-Md5, lower case
	ETag string `json:"etag,omitempty"` // of the header ETag, when it is a strong one
}

func identityOf(h http.Header) identity {
	id := identity{MD5: strings.ToLower(bounded(strings.TrimSpace(h.Get(headerMD5))))}
	if tag := strings.TrimSpace(h.Get("ETag")); len(tag) <= 256 && strings.HasPrefix(tag, `"`) {
		id.ETag = tag
	}
	return id
}

// same reports whether both are certainly of one file.
func (id identity) same(other identity) bool {
	if id.MD5 != "" && other.MD5 != "" {
		return id.MD5 == other.MD5
	}
	return id.ETag != "" && id.ETag == other.ETag
}

// restFrom reads the header Content-Range, as in "bytes 10-99/100", and returns how many bytes it announces, when these are all
// from offset to the end of the file. Where it keeps silent about the end, a digest must be able to tell.
func restFrom(offset int64, header string, digest bool) (size int64, ok bool) {
	span, ok := strings.CutPrefix(strings.TrimSpace(header), "bytes ")
	span, total, ok2 := strings.Cut(span, "/")
	first, last, ok3 := strings.Cut(span, "-")
	from, err := strconv.ParseUint(first, 10, 62)
	to, err2 := strconv.ParseUint(last, 10, 62)
	if !ok || !ok2 || !ok3 || err != nil || err2 != nil || int64(from) != offset || to < from {
		return 0, false
	}
	if total == "*" {
		return int64(to-from) + 1, digest
	}
	all, err := strconv.ParseUint(total, 10, 62)
	return int64(to-from) + 1, err == nil && all == to+1
}

// retryAfter reads the header of that name: seconds or a date (RFC 9110 §10.2.3).
func retryAfter(h http.Header) time.Duration {
	text := strings.TrimSpace(h.Get("Retry-After"))
	var wait time.Duration
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		wait = time.Duration(seconds) * time.Second
	} else if errors.Is(err, strconv.ErrRange) {
		wait = maxRetryAfter
	} else if at, err := http.ParseTime(text); err == nil {
		wait = time.Until(at)
	}
	return max(0, min(wait, maxRetryAfter))
}

// bounded keeps what a server says short.
func bounded(s string) string {
	if len(s) > 64 {
		return s[:64]
	}
	return s
}
