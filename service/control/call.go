package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"
)

// ErrNobody: nobody listens there; the agent or daemon does not run, or is of an older version.
var ErrNobody = errors.New("nobody listens")

// RemoteError is what the other end answered instead of an answer.
type RemoteError struct{ text, hint string }

// Error is the other end's text.
func (e *RemoteError) Error() string { return e.text }

// Hint is the other end's hint, "" when there was none.
func (e *RemoteError) Hint() string { return e.hint }

// deniedError: the door is there, and not for us.
type deniedError struct{ err error }

// Error is the text of the cause.
func (e *deniedError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *deniedError) Unwrap() error { return e.err }

// Hint says who may.
func (e *deniedError) Hint() string {
	return "do this as the account that the agent runs as, or as root or administrator"
}

// errHungUp: the other end closed the connection without a word, as it does with strangers and when it ends.
var errHungUp = errors.New("it hung up without an answer")

// Call asks a running agent or daemon one question and decodes the answer into answer, which may be nil. It takes at
// most 5 s, a minute for an upgrade or a rollback. The error is ErrNobody when nobody listens, a *RemoteError when the other end could not do it.
func Call(ctx context.Context, home, role string, r Request, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, r.limit())
	defer cancel()
	err := call(ctx, home, role, r, answer)
	for try := 0; r.Op == OpStatus && errors.Is(err, errHungUp) && try < endings && pause(ctx, ending); try++ {
		err = call(ctx, home, role, r, answer)
	}
	if err != nil {
		return fmt.Errorf("ask the %s: %w", role, err)
	}
	return nil
}

// A process that is asked how it is in the moment in which it ends hangs up. A moment later nobody is there, or the next.
const (
	endings = 4
	ending  = 50 * time.Millisecond
)

// pause reports whether ctx goes on after d.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func call(ctx context.Context, home, role string, r Request, answer any) error {
	question, err := json.Marshal(r)
	if err != nil {
		return err
	}
	c, err := dial(ctx, home, role)
	if errors.Is(err, os.ErrPermission) {
		return &deniedError{err}
	}
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	until, _ := ctx.Deadline()
	if err := c.SetDeadline(until); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Now()) })
	defer stop()
	_, werr := c.Write(append(question, '\n'))
	line, err := readLine(c, maxAnswer) // also after a question that was not taken: the reason may be there
	if err != nil {
		switch {
		case context.Cause(ctx) != nil:
			return fmt.Errorf("no answer: %w", context.Cause(ctx))
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("no answer within %v", r.limit())
		case werr != nil:
			return &deniedError{fmt.Errorf("%w (%w)", errHungUp, werr)}
		}
		return &deniedError{fmt.Errorf("%w (%w)", errHungUp, err)}
	}
	var got reply
	if err := json.Unmarshal(line, &got); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	if got.Error != "" {
		return &RemoteError{text: got.Error, hint: got.Hint}
	}
	if answer == nil || got.Answer == nil {
		return nil
	}
	if err := json.Unmarshal(got.Answer, answer); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return nil
}
