package upgrader

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// module is ours, as the linker notes it in each of our programs.
const module = "github.com/devops-agent/devops-agent"

// Ours reports whether a file is a program of this project, whatever its version. One that was cut off is none.
func Ours(path string) bool {
	info, err := buildinfo.ReadFile(path)
	return err == nil && (info.Main.Path == module || strings.HasPrefix(info.Path, module+"/"))
}

const (
	askLimit  = 30 * time.Second // for a program to tell its version
	mostSaid  = 64 << 10         // bytes that are read of it
	busyTries = 20               // of a program that somebody seems to write to
)

// ProgramError: a new program does not do the least that is asked of it: to say its version.
type ProgramError struct {
	Path string
	Said string // end of its standard error
	Err  error
}

// Error names the program and what it did.
func (e *ProgramError) Error() string {
	text := fmt.Sprintf("ask %s for its version: %v", e.Path, e.Err)
	if e.Said != "" {
		text += ": " + e.Said
	}
	return text
}

// Unwrap returns the cause.
func (e *ProgramError) Unwrap() error { return e.Err }

// Hint guesses.
func (e *ProgramError) Hint() string {
	if errors.Is(e.Err, syscall.ENOEXEC) || errors.Is(e.Err, syscall.ENOENT) {
		return "it is for another system or architecture, was cut off, or lacks a library; publish the one for this machine"
	}
	return ""
}

// ErrNoVersion: a program ended well and said nothing.
var ErrNoVersion = errors.New("it tells no version")

// Version runs "program version" and returns its one line (protocol §3.1, statement 86). It takes 30 s at the most.
func Version(ctx context.Context, program string) (string, error) {
	out, said, err := ask(ctx, program, "version")
	if err == nil {
		if text := strings.TrimSpace(out); text == "" {
			err = ErrNoVersion
		} else if !strings.ContainsAny(text, "\r\n") && len(text) <= 200 {
			return text, nil
		} else {
			err = fmt.Errorf("%w: it talks instead: %.80q", ErrNoVersion, text)
		}
	}
	return "", &ProgramError{Path: program, Said: said, Err: err}
}

// JavaVersion runs "java -version" and returns what it says, a line each.
func JavaVersion(ctx context.Context, java string) ([]string, error) {
	out, said, err := ask(ctx, java, "-version")
	text := strings.TrimSpace(out + said) // it says so on standard error
	if err == nil && text != "" {
		return strings.Split(strings.ReplaceAll(text, "\r\n", "\n"), "\n"), nil
	}
	if err == nil {
		err = ErrNoVersion
	}
	return nil, &ProgramError{Path: java, Said: said, Err: err}
}

// ask runs a program and returns the beginning of its standard output and the end of its standard error.
func ask(ctx context.Context, program string, args ...string) (out, said string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, askLimit, fmt.Errorf("no answer within %v", askLimit))
	defer cancel()
	for try := 0; ; try++ {
		stdout, stderr := &head{most: mostSaid}, &tail{most: 2 << 10}
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Stdout, cmd.Stderr = stdout, stderr
		cmd.WaitDelay = 2 * time.Second // somebody that it started may hold the pipe
		err = cmd.Run()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		// A child of ours that was forked while the file was written has it open until it becomes another program.
		if errors.Is(err, syscall.ETXTBSY) && try < busyTries {
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		return string(stdout.text), strings.TrimSpace(strings.ToValidUTF8(string(stderr.text), "\ufffd")), err
	}
}

// head keeps the beginning of what is written to it.
type head struct {
	text []byte
	most int
}

// Write takes everything and keeps what fits.
func (h *head) Write(b []byte) (int, error) {
	h.text = append(h.text, b[:min(len(b), h.most-len(h.text))]...)
	return len(b), nil
}

// tail keeps the end of what is written to it.
type tail struct {
	text []byte
	most int
}

// Write takes everything and keeps the end.
func (t *tail) Write(b []byte) (int, error) {
	t.text = append(t.text, b...)
	if len(t.text) > t.most {
		t.text = bytes.Clone(t.text[len(t.text)-t.most:])
	}
	return len(b), nil
}
