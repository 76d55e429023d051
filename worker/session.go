package worker

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// The inner level of retries (protocol §6.1): the server is briefly not there.
const (
	innerRetries = 5
	innerWait    = 500 * time.Millisecond
)

// maxNonsense bounds how often an answer that makes no sense is asked for again: half a body after a crash is worth
// it, a wrong address is not.
const maxNonsense = 10

// persistence is the outer level of retries (protocol §6.1).
type persistence int

const (
	patient persistence = iota // started, claim and complete
	brief                      // end and submit_error
	steady                     // heartbeat and timeout
)

func (p persistence) retries() int {
	if p == brief {
		return 5
	}
	return 100
}

// wait is the pause before the n-th retry, from 1.
func (p persistence) wait(n int) time.Duration {
	if p == steady {
		return 5 * time.Second
	}
	return 500*time.Millisecond + time.Duration(n%11)*time.Second
}

// do makes a call with both levels of retries. call gets the number of the outer retry, which goes on the wire.
func (p persistence) do(ctx context.Context, method string, call func(retry int) error) error {
	nonsense := 0
	for n := 0; ; n++ {
		err := inner(ctx, method, func() error { return call(n) })
		var body *wire.BodyError
		if errors.As(err, &body) {
			nonsense++
		}
		if err == nil || n == p.retries() || nonsense > maxNonsense || !lost(err) || ctx.Err() != nil {
			return err
		}
		wait := p.wait(n + 1)
		var status *wire.StatusError
		if errors.As(err, &status) {
			wait = max(wait, status.RetryAfter)
		}
		if !sleep(ctx, wait) {
			return err
		}
	}
}

func inner(ctx context.Context, method string, call func() error) error {
	for n := 0; ; n++ {
		err := call()
		if err == nil || n == innerRetries || !away(err, method) || !sleep(ctx, innerWait) {
			return err
		}
	}
}

// away reports whether an error says that the server is briefly not there: HTTP 502, 503, 504, no address, no
// connection; for a GET also no answer in time.
func away(err error, method string) bool {
	var status *wire.StatusError
	if errors.As(err, &status) {
		return status.HTTP == http.StatusBadGateway || status.HTTP == http.StatusServiceUnavailable || status.HTTP == http.StatusGatewayTimeout
	}
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case errors.As(err, &dns), errors.Is(err, syscall.ECONNREFUSED):
		return true
	case errors.As(err, &op) && op.Op == "dial":
		return op.Timeout()
	}
	return method == http.MethodGet && timedOut(err)
}

// lost reports whether nobody knows what became of a call, so that it is made again: every failure of the transport,
// and 429. A server that answered something else has decided, and one whose certificate is wrong will not get better.
func lost(err error) bool {
	var untrusted *tls.CertificateVerificationError
	if errors.As(err, &untrusted) {
		return false
	}
	var status *wire.StatusError
	if errors.As(err, &status) {
		return away(err, "") || status.HTTP == http.StatusTooManyRequests
	}
	return true
}

func timedOut(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}

// over reports whether the server says that there is nothing to do any more for this worker.
func over(err error) bool {
	return errors.Is(err, wire.BuildEnded) || errors.Is(err, wire.AlreadyStarted) || errors.Is(err, errBuildOver)
}

// sleep reports whether it slept to the end.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
