package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"os/user"
	"strings"
	"syscall"

	"github.com/devops-agent/devops-agent/service"
)

// Exit is an error that picks its own exit code. A nil Err prints nothing.
type Exit struct {
	Code int
	Err  error
}

// Error is the text of the cause.
func (e *Exit) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

// Unwrap returns the cause.
func (e *Exit) Unwrap() error { return e.Err }

// Main runs a program: it gives it a context that ends with SIGINT or SIGTERM, prints the error it returns and
// the first hint in the error's chain, and returns the exit code for os.Exit (protocol §3.2).
func Main(name string, run func(ctx context.Context, args []string) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return Report(os.Stderr, name, run(ctx, os.Args[1:]))
}

// Report prints an error the way Main does and returns its exit code: 0 for none and for a role that already runs,
// 88 for an agent that was removed, the code of an Exit, 1 for everything else.
func Report(w io.Writer, name string, err error) int {
	if err == nil {
		return 0
	}
	var exit *Exit
	picked := errors.As(err, &exit)
	if !picked || exit.Err != nil {
		_, _ = fmt.Fprintf(w, "%s: %s\n", name, oneLine(err.Error()))
		hint := firstHint(err)
		if hint == "" {
			hint = fileHint(err)
		}
		if hint != "" {
			_, _ = fmt.Fprintf(w, "hint: %s\n", oneLine(hint))
		}
	}
	switch {
	case picked:
		return exit.Code
	case errors.Is(err, service.ErrRunning):
		return service.ExitOK
	case errors.Is(err, service.ErrRemoved):
		return service.ExitStayDown
	}
	return service.ExitFailed
}

// firstHint walks the chain, joined errors included, to the first error that knows what to do. Many can have a
// hint and have none for what happened.
func firstHint(err error) string {
	if hinter, ok := err.(interface{ Hint() string }); ok {
		if hint := hinter.Hint(); hint != "" {
			return hint
		}
	}
	switch wrapper := err.(type) {
	case interface{ Unwrap() error }:
		if inner := wrapper.Unwrap(); inner != nil {
			return firstHint(inner)
		}
	case interface{ Unwrap() []error }:
		for _, inner := range wrapper.Unwrap() {
			if hint := firstHint(inner); hint != "" {
				return hint
			}
		}
	}
	return ""
}

// fileHint says what to do about a file that cannot be used, where nobody below knew better: at night the wrong owner,
// a full disk and a read-only file system are the usual ones.
func fileHint(err error) string {
	var file *fs.PathError
	if !errors.As(err, &file) {
		return ""
	}
	switch {
	case errors.Is(file, fs.ErrPermission):
		return fmt.Sprintf("this process runs as %s; run it as the owner of %s, or give that to it with chown", account(), file.Path)
	case errors.Is(file, syscall.ENOSPC):
		return "the disk is full; make room for " + file.Path
	case errors.Is(file, syscall.EROFS):
		return "the file system is read-only; look into the system's log, and mount it for writing"
	}
	return ""
}

func account() string {
	me, err := user.Current()
	if err != nil {
		return "another user"
	}
	return me.Username
}

// OneLine keeps a text, whatever a server put into it, to one line without terminal sequences.
func OneLine(text string) string { return oneLine(text) }

// oneLine keeps an error, and what a server put into it, to one line without terminal sequences. Joined errors are
// parted by semicolons.
func oneLine(text string) string {
	text = strings.ReplaceAll(strings.TrimSpace(text), "\r\n", "\n")
	return printable(strings.ReplaceAll(text, "\n", "; "))
}
