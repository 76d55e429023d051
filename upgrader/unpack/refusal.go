package unpack

import (
	"archive/zip"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
)

// A Reason says why an archive was refused. It is found in an error with [errors.Is].
type Reason string

// The reasons to refuse an archive.
const (
	ErrFormat    Reason = "is neither a zip nor a gzip'ed tar"
	ErrTruncated Reason = "ends too early"
	ErrCorrupt   Reason = "is damaged"
	ErrChecksum  Reason = "does not match its checksum"
	ErrPrepended Reason = "has data before its start"
	ErrTrailing  Reason = "has data after its end"
	ErrOverlap   Reason = "shares its bytes with another entry or with the directory of the archive"
	ErrEncrypted Reason = "is encrypted"
	ErrMethod    Reason = "is compressed in an unknown way"

	ErrTraversal Reason = "leads out of the directory"
	ErrAbsolute  Reason = "is not relative to the directory"
	ErrName      Reason = "has a name that not every system can hold"
	ErrReserved  Reason = "has the name of a Windows device"
	ErrLong      Reason = "has a name that is too long or too deep"
	ErrCase      Reason = "differs from another entry in nothing but case or form of its letters"
	ErrDuplicate Reason = "is there twice"
	ErrClash     Reason = "is a directory here and something else there"
	ErrSpecial   Reason = "is neither a file, a directory nor a link"
	ErrLink      Reason = "is a link that leads out of the directory"
	ErrHardLink  Reason = "is a hard link to something that is not a file before it"
	ErrSymlink   Reason = "is a symbolic link, which cannot be made here"

	ErrBytes   Reason = "is too large when unpacked"
	ErrEntries Reason = "has too many entries"
	ErrRatio   Reason = "is too large for the size of its archive"
)

func (r Reason) Error() string { return string(r) }

// EntryError is a refused archive.
type EntryError struct {
	Archive string // its path
	Entry   string // the name of the entry as the archive has it; "" when the archive itself is refused
	Reason  Reason
	Err     error // what was found, if there is more to say
}

func (e *EntryError) Error() string {
	text := "unpack " + e.Archive + ":"
	if e.Entry != "" {
		text += " entry " + quoted(e.Entry)
	} else {
		text += " the archive"
	}
	text += " " + string(e.Reason)
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// quoted makes a name from an archive fit for a log, however long and whatever it holds.
func quoted(name string) string {
	if len(name) > 200 {
		return strconv.Quote(name[:200]) + "…"
	}
	return strconv.Quote(name)
}

// Unwrap gives the reason, and the cause if there is one.
func (e *EntryError) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Reason}
	}
	return []error{e.Reason, e.Err}
}

// Hint says what to do about the archive.
func (e *EntryError) Hint() string {
	switch e.Reason {
	case ErrTruncated, ErrCorrupt, ErrChecksum:
		return "the file is damaged; fetch it again, and compare its checksum with the one of its source"
	case ErrFormat:
		return "give a .zip or a .tar.gz"
	case ErrLink:
		return "the JDK of a Linux distribution leads to files of its system; pack it with the files in place of the links (tar -h, zip without -y)"
	case ErrSymlink:
		return "take an archive without symbolic links, as the JDKs for Windows are"
	}
	return "nothing of the archive was kept; have it made anew by a tool that follows the format, or find out who made it so"
}

// hinted is an error with advice.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }
func (h *hinted) Hint() string  { return h.hint }

// damage sorts what went wrong while reading an archive: an error of ours or of the context stays as it is, trouble with
// the file itself is no fault of its content, and everything else is damage of one kind or another.
func (u *unpacking) damage(ctx context.Context, entry string, err error) error {
	var (
		refused *EntryError
		file    *fs.PathError
	)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("unpack %s: %w", u.archive, context.Cause(ctx))
	case errors.As(err, &refused):
		return err
	case errors.As(err, &file):
		return fmt.Errorf("unpack %s: %w", u.archive, err)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return u.refuse(entry, ErrTruncated, nil)
	case errors.Is(err, zip.ErrChecksum), errors.Is(err, gzip.ErrChecksum):
		return u.refuse(entry, ErrChecksum, nil)
	}
	return u.refuse(entry, ErrCorrupt, err)
}

func (u *unpacking) refuse(entry string, reason Reason, cause error) error {
	return &EntryError{Archive: u.archive, Entry: entry, Reason: reason, Err: cause}
}
