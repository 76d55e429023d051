package control

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type hinted struct{}

func (hinted) Error() string { return "cannot be done" }
func (hinted) Hint() string  { return "do it tomorrow" }

// serve opens the door of an agent in a home and answers with h until the test ends.
func serve(t *testing.T, home string, h Handler) *Listener {
	t.Helper()
	l, err := Listen(home, RoleAgent)
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l, h)
	return l
}

func serveOn(t *testing.T, l *Listener, h Handler) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- l.Serve(ctx, h) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

func echo(_ context.Context, r Request) (any, error) {
	switch r.Op {
	case OpStatus:
		return Status{PID: 42, Phase: Running, Builds: []Build{{Build: "b-1"}}}, nil
	case OpStop:
		return r.Now, nil
	case OpDrain:
		return nil, hinted{}
	case OpReload:
		return strings.Repeat("x", maxAnswer), nil
	}
	return nil, errors.New("what?")
}

func TestCall(t *testing.T) {
	home := t.TempDir()
	var none Status
	if err := Call(t.Context(), home, RoleAgent, Request{Op: OpStatus}, &none); !errors.Is(err, ErrNobody) {
		t.Errorf("before anybody listens: %v", err)
	}
	l := serve(t, home, echo)
	var s Status
	if err := Call(t.Context(), home, RoleAgent, Request{Op: OpStatus}, &s); err != nil || s.PID != 42 || len(s.Builds) != 1 {
		t.Errorf("status %+v, %v", s, err)
	}
	var now bool
	if err := Call(t.Context(), home, RoleAgent, Request{Op: OpStop, Now: true}, &now); err != nil || !now {
		t.Errorf("stop now: %v, %v", now, err)
	}
	err := Call(t.Context(), home, RoleAgent, Request{Op: OpDrain}, nil)
	var remote *RemoteError
	if !errors.As(err, &remote) || remote.Hint() != "do it tomorrow" || err.Error() != "ask the agent: cannot be done" {
		t.Errorf("an error with a hint: %v, %+v", err, remote)
	}
	if err := Call(t.Context(), home, RoleAgent, Request{Op: OpReload}, nil); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("an answer that is too long: %.100v", err)
	}
	if err := Call(t.Context(), home, RoleDaemon, Request{Op: OpStatus}, nil); !errors.Is(err, ErrNobody) {
		t.Errorf("the other role: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := Call(t.Context(), home, RoleAgent, Request{Op: OpStatus}, nil); !errors.Is(err, ErrNobody) {
		t.Errorf("after the end: %v", err)
	}
}

// TestHomesOfAnyLength: a socket address holds a hundred bytes, a home directory may have a longer name.
// TestStatusOfAProcessThatEnds: it hangs up on who asked in its last moment, who then hears that nobody is there. Anything
// but a question is not said twice.
func TestStatusOfAProcessThatEnds(t *testing.T) {
	for op, want := range map[Op]error{OpStatus: ErrNobody, OpStop: errHungUp} {
		home := t.TempDir()
		door, err := listen(home, RoleAgent)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			c, err := door.accept()
			if err == nil {
				_, err = readLine(c, maxRequest)
				err = errors.Join(err, c.Close())
			}
			ended <- errors.Join(err, door.close())
		}()
		if err := Call(t.Context(), home, RoleAgent, Request{Op: op}, nil); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", op, err, want)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// TestAWayBackMayTakeLonger: it reads programs from a disk that may be slow.
func TestAWayBackMayTakeLonger(t *testing.T) {
	home := t.TempDir()
	serve(t, home, func(ctx context.Context, _ Request) (any, error) {
		until, _ := ctx.Deadline()
		return time.Until(until), nil
	})
	for op, long := range map[Op]bool{OpStatus: false, OpStop: false, OpRollback: true, OpUpgrade: true} {
		var left time.Duration
		if err := Call(t.Context(), home, RoleAgent, Request{Op: op}, &left); err != nil || (left > timeLimit) != long || left <= 0 {
			t.Errorf("%s has %v, %v", op, left, err)
		}
	}
}

func TestHomesOfAnyLength(t *testing.T) {
	home := t.TempDir()
	for range 4 {
		home = filepath.Join(home, strings.Repeat("long name-", 8))
		if err := os.Mkdir(home, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	serve(t, home, echo)
	var s Status
	if err := Call(t.Context(), home, RoleAgent, Request{Op: OpStatus}, &s); err != nil || s.PID != 42 {
		t.Errorf("status %+v, %v", s, err)
	}
	if err := Call(t.Context(), home, RoleDaemon, Request{Op: OpStatus}, nil); !errors.Is(err, ErrNobody) {
		t.Errorf("the other role: %v", err)
	}
}

// TestNobodyIsKeptWaiting: as many silent connections as there are seats, and a thousand that come and go.
func TestNobodyIsKeptWaiting(t *testing.T) {
	home := t.TempDir()
	serve(t, home, echo)
	var silent []conn
	defer func() {
		for _, c := range silent {
			_ = c.Close()
		}
	}()
	for range maxTalks {
		c, err := dial(t.Context(), home, RoleAgent)
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, c)
	}
	begun := time.Now()
	if err := Call(t.Context(), home, RoleAgent, Request{Op: OpStatus}, nil); err != nil || time.Since(begun) > 3*time.Second {
		t.Errorf("beside silent connections: %v after %v", err, time.Since(begun))
	}
	var crowd sync.WaitGroup
	for i := range 50 {
		crowd.Go(func() {
			for range 20 {
				c, err := dial(t.Context(), home, RoleAgent)
				if err != nil {
					t.Errorf("dial: %v", err)
					return
				}
				if i%2 == 0 {
					_, _ = c.Write([]byte(`{"op":"sta`))
				}
				_ = c.Close()
			}
		})
	}
	crowd.Wait()
	if err := Call(t.Context(), home, RoleAgent, Request{Op: OpStatus}, nil); err != nil {
		t.Errorf("after a crowd: %v", err)
	}
}

// TestNonsenseIsAnswered: with an error, and the next question with an answer.
func TestNonsenseIsAnswered(t *testing.T) {
	home := t.TempDir()
	serve(t, home, echo)
	for _, text := range []string{"\n", "GET / HTTP/1.1\n", "null\n", `{"op":"status"} {"op":"stop"}` + "\n", `{"op":7}` + "\n",
		strings.Repeat("x", maxRequest-1) + "\n", strings.Repeat("x", maxRequest), "\x00\xff\n"} {
		c, err := dial(t.Context(), home, RoleAgent)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte(text)); err != nil {
			t.Error(err)
		}
		line, err := readLine(c, maxAnswer)
		if err != nil || !strings.HasPrefix(string(line), `{"error":"`) {
			t.Errorf("%.40q: %.100q, %v", text, line, err)
		}
		_ = c.Close()
	}
	if err := Call(t.Context(), home, RoleAgent, Request{Op: OpStatus}, nil); err != nil {
		t.Error(err)
	}
}

func TestCallHasAnEnd(t *testing.T) {
	home := t.TempDir()
	hangs := make(chan struct{})
	serve(t, home, func(ctx context.Context, _ Request) (any, error) {
		close(hangs)
		<-ctx.Done()
		return nil, context.Cause(ctx)
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-hangs
		cancel()
	}()
	begun := time.Now()
	if err := Call(ctx, home, RoleAgent, Request{Op: OpStatus}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("err %v", err)
	}
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("took %v", took)
	}
}

func FuzzRequest(f *testing.F) {
	for _, seed := range []string{`{"op":"status"}`, `{"op":"stop","now":true}`, `{"op":"x","later":{"a":[1]}}`, `{"op":`, `{}`, `null`, `[]`, "\x00"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := parseRequest(line)
		if (err == nil) != (r.Op != "") || err != nil && r != (Request{}) {
			t.Errorf("%+v, %v", r, err)
		}
	})
}
