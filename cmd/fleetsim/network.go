package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// portsPerAddress is how many agents share one local address: a machine has some 28,000 ports for connections to one
// server, and those that were closed lately are not free.
const portsPerAddress = 8000

// errCut is what an agent meets whose network is away.
var errCut = errors.New("the simulated network is away")

// network is the way of one agent to the server. It can be cut.
type network struct {
	dialer net.Dialer
	open   *atomic.Int64

	mu    sync.Mutex
	away  bool
	conns map[net.Conn]struct{}
}

// newNetwork is the network of the agent with number n. open counts the connections of all.
func newNetwork(n int, open *atomic.Int64) *network {
	w := &network{open: open, conns: make(map[net.Conn]struct{})}
	if n >= portsPerAddress { // the whole of 127/8 is this machine on Linux
		w.dialer.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(n/portsPerAddress))}
	}
	return w
}

// client is the agent's own HTTP client over this network. roots is nil without TLS.
func (w *network) client(roots *x509.CertPool) (*http.Client, error) {
	c := wire.NewHTTPClient(wire.HTTPOptions{Roots: roots})
	t, is := c.Transport.(*http.Transport)
	if !is {
		return nil, fmt.Errorf("the agent's client has a transport of type %T", c.Transport)
	}
	t.DialContext = w.dial
	return c, nil
}

func (w *network) dial(ctx context.Context, kind, address string) (net.Conn, error) {
	w.mu.Lock()
	away := w.away
	w.mu.Unlock()
	if away {
		return nil, errCut
	}
	conn, err := w.dialer.DialContext(ctx, kind, address)
	if err != nil {
		return nil, err
	}
	own := &connection{Conn: conn, network: w}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns[own] = struct{}{}
	w.open.Add(1)
	if w.away {
		own.reset()
	}
	return own, nil
}

// cut takes the network away, with everything that is under way on it, or gives it back.
func (w *network) cut(away bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.away = away
	if away {
		for conn := range w.conns {
			if own, is := conn.(*connection); is {
				own.reset()
			}
		}
	}
}

// connection is one that its network knows.
type connection struct {
	net.Conn
	network *network
}

// Close closes it.
func (c *connection) Close() error {
	c.network.mu.Lock()
	if _, is := c.network.conns[c]; is {
		delete(c.network.conns, c)
		c.network.open.Add(-1)
	}
	c.network.mu.Unlock()
	return c.Conn.Close()
}

// reset ends it as a broken line does: what was sent may or may not have arrived.
func (c *connection) reset() {
	if tcp, is := c.Conn.(*net.TCPConn); is {
		_ = tcp.SetLinger(0)
	}
	_ = c.Conn.Close()
}

// broken reports whether a call ended because its connection did.
func broken(err error) bool {
	return errors.Is(err, errCut) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ECONNREFUSED) ||
		errors.Is(err, syscall.EPIPE) || lostAnswer(err)
}
