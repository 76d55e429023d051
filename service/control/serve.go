package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"
)

// Roles that listen (protocol §2.4 has the same words for their locks).
const (
	RoleAgent  = "agent"
	RoleDaemon = "daemon"
)

// Limits of one exchange. Who talks is one of us, or root; who talks nonsense must not cost more than this.
const (
	maxRequest = 4 << 10         // bytes of a question
	maxAnswer  = 1 << 20         // bytes of an answer
	timeLimit  = 5 * time.Second // of one exchange, from the connect to the answer
	workLimit  = time.Minute     // of one that looks through what earlier upgrades left: slow disks take their time
	askLimit   = time.Second     // of that, until the question has come: who is silent must not keep others waiting
	maxTalks   = 8               // exchanges at the same time; more wait in the system's queue
	breath     = 100 * time.Millisecond
)

// Handler answers one question. What it returns is written as JSON; an error travels as its text and, if it has one, its
// Hint. ctx ends with the time limit of the exchange.
type Handler func(ctx context.Context, r Request) (answer any, err error)

// Listener is the door of one running agent or daemon.
type Listener struct {
	// Log is told when nobody can be answered for a while, which whoever asks sees only as slowness: nil keeps it quiet.
	Log *slog.Logger

	acceptor
}

// acceptor is what the systems differ in: a Unix socket, a named pipe.
type acceptor interface {
	// accept waits for the next connection whose other end may talk to us. It returns net.ErrClosed after close.
	accept() (conn, error)
	// close ends accept and takes the address away. It may be called more than once.
	close() error
}

// conn is one connection.
type conn interface {
	io.ReadWriteCloser
	SetDeadline(at time.Time) error
}

// errStranger: whoever connected may not talk to us.
var errStranger = errors.New("neither our account nor root")

// Listen opens the door of a role in an installation: the socket <home>/runtime/<role>.sock (0600), or on Windows the
// pipe \\.\pipe\devops-agent-<role>-<hash of home>. Call it under the role's lock: what an earlier process left is
// replaced. Close it, or call Serve.
func Listen(home, role string) (*Listener, error) {
	a, err := listen(home, role)
	if err != nil {
		return nil, fmt.Errorf("listen for control of %s: %w", role, err)
	}
	return &Listener{acceptor: a}, nil
}

// Close takes the address away. It may be called more than once.
func (l *Listener) Close() error { return l.close() }

// Serve answers until ctx ends; it waits for the exchanges under way and closes the listener. The error is nil then, or
// says why nothing can be accepted any more.
func (l *Listener) Serve(ctx context.Context, h Handler) error {
	stop := context.AfterFunc(ctx, func() { _ = l.close() })
	defer stop()
	var talks sync.WaitGroup
	defer talks.Wait()
	seats := make(chan struct{}, maxTalks)
	waits := false // those who ask, since the last accept failed
	for {
		select {
		case seats <- struct{}{}:
		case <-ctx.Done():
			return l.close()
		}
		c, err := l.accept()
		switch {
		case err == nil:
			waits = false
			talks.Go(func() {
				defer func() { <-seats }()
				exchange(ctx, c, h)
			})
			continue
		case ctx.Err() != nil:
			return l.close()
		case errors.Is(err, net.ErrClosed):
			return nil
		}
		<-seats
		if errors.Is(err, errStranger) {
			continue
		}
		// Out of descriptors or memory: others may give some back.
		if !waits && l.Log != nil {
			l.Log.Warn("Who asks this process waits: the question cannot be accepted", "err", err)
		}
		waits = true
		pause := time.NewTimer(breath)
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
		pause.Stop()
	}
}

// reply is what travels back: one line of JSON.
type reply struct {
	Answer json.RawMessage `json:"answer,omitempty"`
	Error  string          `json:"error,omitempty"`
	Hint   string          `json:"hint,omitempty"`
}

// limit is how long an exchange about r may take.
func (r Request) limit() time.Duration {
	if r.Op == OpUpgrade || r.Op == OpRollback {
		return workLimit
	}
	return timeLimit
}

// exchange is one question and one answer.
func exchange(ctx context.Context, c conn, h Handler) {
	ctx, cancel := context.WithTimeout(ctx, workLimit)
	defer cancel()
	defer func() { _ = c.Close() }()
	began := time.Now()
	if c.SetDeadline(time.Now().Add(askLimit)) != nil {
		return
	}
	// A question that has not come when we end is not waited for.
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Now()) })
	line, err := readLine(c, maxRequest)
	if !stop() {
		return
	}
	var out reply
	if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		return // nobody asks
	}
	var r Request
	if err == nil {
		r, err = parseRequest(line)
	}
	until := began.Add(r.limit())
	if c.SetDeadline(until) != nil {
		return
	}
	var answer any
	if err == nil {
		asked, done := context.WithDeadline(ctx, until)
		answer, err = h(asked, r)
		done()
	}
	if err == nil {
		out.Answer, err = json.Marshal(answer)
	}
	if err == nil && len(out.Answer) > maxAnswer/2 {
		err = fmt.Errorf("the answer is longer than %d bytes", maxAnswer/2)
	}
	if err != nil {
		out = reply{Error: head(err.Error(), maxAnswer/16), Hint: head(hintOf(err), maxAnswer/16)}
	}
	data, err := json.Marshal(out)
	if err != nil {
		return // cannot happen: two texts and sound JSON
	}
	_, _ = c.Write(append(data, '\n')) // who has hung up does not want it
}

// readLine reads up to the first line end, which it drops. io.EOF means that nothing came at all.
func readLine(r io.Reader, most int64) ([]byte, error) {
	line, err := bufio.NewReader(io.LimitReader(r, most)).ReadBytes('\n')
	switch {
	case err == nil:
		return line[:len(line)-1], nil
	case !errors.Is(err, io.EOF):
		return nil, err
	case len(line) == 0:
		return nil, io.EOF
	case int64(len(line)) == most:
		return nil, fmt.Errorf("longer than %d bytes", most)
	}
	return nil, io.ErrUnexpectedEOF
}

// parseRequest reads one question. Members that a newer program knows are left out.
func parseRequest(line []byte) (Request, error) {
	var r Request
	d := json.NewDecoder(bytes.NewReader(line))
	if err := d.Decode(&r); err != nil {
		return Request{}, fmt.Errorf("no question: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Request{}, errors.New("no question: more than one thing on the line")
	}
	if r.Op == "" {
		return Request{}, errors.New("no question: op is missing")
	}
	return r, nil
}

func hintOf(err error) string {
	var hinter interface{ Hint() string }
	if errors.As(err, &hinter) {
		return hinter.Hint()
	}
	return ""
}

func head(text string, most int) string {
	if len(text) > most {
		return text[:most]
	}
	return text
}
