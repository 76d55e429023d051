package fetch

import (
	"fmt"
	"time"
)

// StatusError: the server answered with a status that brings no file. Nothing at the path was changed.
type StatusError struct {
	Name       string
	Code       int           // of HTTP
	RetryAfter time.Duration // as the server asked, at most a day; 0 when it did not
}

// Error names the file and the status.
func (e *StatusError) Error() string {
	return fmt.Sprintf("fetch %s: the server answered with status %d", e.Name, e.Code)
}

// Hint explains the status that has a meaning of its own (protocol §1.6.6).
func (e *StatusError) Hint() string {
	if e.Code == 404 {
		return "the server has no such file for this system, or no longer knows this agent or its secret"
	}
	return ""
}

// DigestError: what came is not what the server announced. It was thrown away.
type DigestError struct {
	Name string
	Want string // hex MD5
	Got  string
}

// Error names the file and both digests.
func (e *DigestError) Error() string {
	return fmt.Sprintf("fetch %s: its MD5 is %s, announced was %s", e.Name, e.Got, e.Want)
}

// Hint says what usually causes it.
func (e *DigestError) Hint() string {
	return "the file was damaged on its way, often by a proxy, or is being replaced on the server; it is fetched again at the next chance"
}

// StalledError: nothing came for too long. What came before is kept for the next attempt.
type StalledError struct {
	Name  string
	Limit time.Duration // without a byte
	Bytes int64         // that are here
}

// Error names the file and the silence.
func (e *StalledError) Error() string {
	return fmt.Sprintf("fetch %s: no byte for %v, after %d bytes", e.Name, e.Limit, e.Bytes)
}

// Timeout reports true, as net.Error has it.
func (e *StalledError) Timeout() bool { return true }

// LimitError: it took too long in all. What came is kept for the next attempt.
type LimitError struct {
	Name  string
	Limit time.Duration
	Bytes int64 // that are here
}

// Error names the file and the limit.
func (e *LimitError) Error() string {
	return fmt.Sprintf("fetch %s: not complete after %v and %d bytes", e.Name, e.Limit, e.Bytes)
}

// Timeout reports true, as net.Error has it.
func (e *LimitError) Timeout() bool { return true }

// TooLongError: the file is longer than may be, or than the server said.
type TooLongError struct {
	Name string
	Most int64 // bytes that it may have
	Size int64 // bytes that it has; 0 when the server did not say, and it was cut
}

// Error names the file and the bound.
func (e *TooLongError) Error() string {
	if e.Size > 0 {
		return fmt.Sprintf("fetch %s: it has %d bytes, at most %d are taken", e.Name, e.Size, e.Most)
	}
	return fmt.Sprintf("fetch %s: it goes on after %d bytes", e.Name, e.Most)
}

// TruncatedError: the connection ended before the file did. What came is kept for the next attempt.
type TruncatedError struct {
	Name string
	Got  int64 // bytes that are here
	Size int64 // bytes that it has; -1 when the server did not say
	Err  error // of the connection; nil when it was closed in good order
}

// Error names the file and how much is missing.
func (e *TruncatedError) Error() string {
	text := fmt.Sprintf("fetch %s: cut off after %d bytes", e.Name, e.Got)
	if e.Size >= 0 {
		text += fmt.Sprintf(" of %d", e.Size)
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap returns the cause.
func (e *TruncatedError) Unwrap() error { return e.Err }

// RoomError: the disk has too little room for the file and what is to be made of it. Nothing was written.
type RoomError struct {
	Path string
	Need uint64 // bytes
	Free uint64 // bytes
}

// Error names the place, and both sizes.
func (e *RoomError) Error() string {
	return fmt.Sprintf("fetch to %s: %d MiB are needed, %d MiB are free", e.Path, (e.Need+1<<20-1)>>20, e.Free>>20)
}

// Hint says what to do.
func (e *RoomError) Hint() string {
	return fmt.Sprintf("make room on the disk of %s; it is tried again by itself", e.Path)
}
