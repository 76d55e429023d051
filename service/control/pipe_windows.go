package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unsafe"

	win "golang.org/x/sys/windows"
)

// pipeName is the same for every way to write one directory.
func pipeName(home, role string) string {
	sum := sha256.Sum256([]byte(strings.ToLower(filepath.Clean(home))))
	return `\\.\pipe\devops-agent-` + role + "-" + hex.EncodeToString(sum[:8])
}

// pipe is a listening named pipe: one instance is there at any time for the next who comes.
type pipe struct {
	name   *uint16
	access *win.SecurityAttributes
	stop   win.Handle // event

	mu     sync.Mutex
	next   win.Handle // instance that waits for somebody; 0 while accept makes one
	closed bool
	busy   chan struct{} // closed when the accept that is under way has ended; nil while there is none
}

func listen(home, role string) (acceptor, error) {
	name, err := win.UTF16PtrFromString(pipeName(home, role))
	if err != nil {
		return nil, err
	}
	me, err := win.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return nil, fmt.Errorf("find my own account: %w", err)
	}
	// Protected, so that nothing is inherited: SYSTEM, Administrators and the account itself, nobody else.
	descriptor, err := win.SecurityDescriptorFromString("D:P(A;;GA;;;SY)(A;;GA;;;BA)(A;;GA;;;" + me.User.Sid.String() + ")")
	if err != nil {
		return nil, fmt.Errorf("say who may connect: %w", err)
	}
	p := &pipe{name: name, access: &win.SecurityAttributes{SecurityDescriptor: descriptor}}
	p.access.Length = uint32(unsafe.Sizeof(*p.access))
	if p.stop, err = win.CreateEvent(nil, 1, 0, nil); err != nil {
		return nil, err
	}
	// The first instance, or none: a pipe of this name that somebody else made is not ours to answer.
	if p.next, err = p.instance(win.FILE_FLAG_FIRST_PIPE_INSTANCE); err != nil {
		return nil, errors.Join(fmt.Errorf("make pipe %s: %w", win.UTF16PtrToString(name), err), win.CloseHandle(p.stop))
	}
	return p, nil
}

func (p *pipe) instance(flags uint32) (win.Handle, error) {
	return win.CreateNamedPipe(p.name, win.PIPE_ACCESS_DUPLEX|win.FILE_FLAG_OVERLAPPED|flags,
		win.PIPE_TYPE_BYTE|win.PIPE_READMODE_BYTE|win.PIPE_WAIT|win.PIPE_REJECT_REMOTE_CLIENTS,
		win.PIPE_UNLIMITED_INSTANCES, maxRequest, maxRequest, 0, p.access)
}

func (p *pipe) accept() (conn, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, net.ErrClosed
	}
	done := make(chan struct{})
	p.busy = done
	mine := p.next
	p.next = 0
	p.mu.Unlock()
	c, err := p.wait(mine)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy = nil
	defer close(done)
	if p.closed {
		if c != nil {
			_ = c.Close()
		}
		return nil, errors.Join(net.ErrClosed, p.release())
	}
	return c, err
}

// wait waits for somebody to connect to an instance. The next instance is there before this one goes: there is no
// moment at which nobody listens.
func (p *pipe) wait(mine win.Handle) (c conn, err error) {
	if mine == 0 {
		if mine, err = p.instance(0); err != nil {
			return nil, err
		}
	}
	event, err := win.CreateEvent(nil, 1, 0, nil)
	if err != nil {
		p.keep(mine)
		return nil, err
	}
	defer func() { _ = win.CloseHandle(event) }()
	over := &win.Overlapped{HEvent: event}
	err = win.ConnectNamedPipe(mine, over)
	if errors.Is(err, win.ERROR_IO_PENDING) {
		var which, n uint32
		which, err = win.WaitForMultipleObjects([]win.Handle{event, p.stop}, false, win.INFINITE)
		if err != nil || which != win.WAIT_OBJECT_0 {
			_ = win.CancelIoEx(mine, over)
			_ = win.GetOverlappedResult(mine, over, &n, true) // until then the system may write to over
			return nil, errors.Join(net.ErrClosed, err, win.CloseHandle(mine))
		}
		err = win.GetOverlappedResult(mine, over, &n, true)
	}
	if next, nerr := p.instance(0); nerr == nil {
		p.keep(next)
	}
	switch {
	case err == nil, errors.Is(err, win.ERROR_PIPE_CONNECTED):
		return &talk{File: os.NewFile(uintptr(mine), "control"), server: true}, nil
	case errors.Is(err, win.ERROR_NO_DATA), errors.Is(err, win.ERROR_BROKEN_PIPE): // came and went
		_ = win.CloseHandle(mine)
		return nil, errStranger
	}
	return nil, errors.Join(err, win.CloseHandle(mine))
}

// keep puts an instance aside for the next accept.
func (p *pipe) keep(next win.Handle) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next = next
}

func (p *pipe) close() error {
	p.mu.Lock()
	busy, closed := p.busy, p.closed
	p.closed = true
	var err error
	switch {
	case closed:
	case busy == nil:
		err = p.release()
	default: // accept wakes up and releases
		err = win.SetEvent(p.stop)
	}
	p.mu.Unlock()
	if busy != nil && err == nil {
		<-busy
	}
	return err
}

// release gives the handles back. mu is held.
func (p *pipe) release() error {
	var err error
	if p.next != 0 {
		err = win.CloseHandle(p.next)
		p.next = 0
	}
	return errors.Join(err, win.CloseHandle(p.stop))
}

// talk is one end of a connected pipe.
type talk struct {
	*os.File
	server bool
}

// Close waits, at the answering end, until the other has read what was written: a pipe forgets it otherwise. The other
// hangs up when it has, or is not waited for.
func (t *talk) Close() error {
	if t.server {
		_ = t.SetDeadline(time.Now().Add(time.Second))
		var one [1]byte
		_, _ = t.Read(one[:])
	}
	return t.File.Close()
}

func dial(ctx context.Context, home, role string) (conn, error) {
	text := pipeName(home, role)
	name, err := win.UTF16PtrFromString(text)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		// Anonymous: whoever made the pipe does not get to act in our name.
		h, err := win.CreateFile(name, win.GENERIC_READ|win.GENERIC_WRITE, 0, nil, win.OPEN_EXISTING,
			win.FILE_FLAG_OVERLAPPED|win.SECURITY_SQOS_PRESENT|win.SECURITY_ANONYMOUS, 0)
		switch {
		case err == nil:
			return &talk{File: os.NewFile(uintptr(h), "control")}, nil
		case errors.Is(err, win.ERROR_FILE_NOT_FOUND), errors.Is(err, win.ERROR_PATH_NOT_FOUND):
			return nil, ErrNobody
		case !errors.Is(err, win.ERROR_PIPE_BUSY):
			return nil, &os.PathError{Op: "connect", Path: text, Err: err}
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-tick.C:
		}
	}
}
