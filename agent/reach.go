package agent

import (
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
)

// reachError: there was no answer when a machine wanted to enrol, and a person can do something about it.
type reachError struct {
	err error
	do  string
}

// Error is the cause's.
func (e *reachError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *reachError) Unwrap() error { return e.err }

// Hint says what to do.
func (e *reachError) Hint() string { return e.do }

// unreached drops what net/http repeats in every error, because the address of a package may hold the key to it, and says
// what to do where that is clear.
func unreached(err error) error {
	var u *url.Error
	if !errors.As(err, &u) {
		return err
	}
	do, host := "", ""
	if at, perr := url.Parse(u.URL); perr == nil {
		host = at.Hostname()
	}
	var op *net.OpError
	switch {
	case errors.As(u.Err, &op) && op.Op == "proxyconnect":
		do = "it was tried by the proxy of the environment; where none is needed: no_proxy=" + host
	case errors.Is(u.Err, http.ErrSchemeMismatch):
		do = "it does not speak HTTPS: give its address with http://"
	case refused(u.Err) && loopback(host):
		do = "nothing listens there; " + host + " is this machine: on another one than the server's, give the address by which that is reached"
	case refused(u.Err):
		do = "nothing listens there: is the server running, and does it listen at this address and port? devopsController serve listens at 127.0.0.1 only, unless told otherwise by --listen"
	}
	if do == "" {
		return u.Err
	}
	return &reachError{u.Err, do}
}

// refused reports whether nobody listens. Windows has a number of its own for it, WSAECONNREFUSED.
func refused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.Errno(10061))
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}
