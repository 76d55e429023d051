package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
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
		_, _ = fmt.Fprintf(w, "%s: %v\n", name, err)
		var hinter interface{ Hint() string }
		if errors.As(err, &hinter) && hinter.Hint() != "" {
			_, _ = fmt.Fprintf(w, "hint: %s\n", hinter.Hint())
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
