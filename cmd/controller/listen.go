package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
)

// listenError: nobody can be served at an address.
type listenError struct{ err error }

// Error says why.
func (e *listenError) Error() string { return fmt.Sprintf("listen: %v", e.err) }

// Unwrap returns the cause.
func (e *listenError) Unwrap() error { return e.err }

// Hint says which address would do.
func (e *listenError) Hint() string {
	var syntax *net.AddrError
	switch {
	case inUse(e.err):
		return "another program listens there: end it, or take another port, as --listen 127.0.0.1:21801; port 0 picks a free one"
	case errors.As(e.err, &syntax):
		return "an address and a port, please, as --listen 127.0.0.1:21800, or 0.0.0.0:21800 for all addresses of this machine"
	case errors.Is(e.err, os.ErrPermission):
		return "ports below 1024 are root's: take another, as --listen 127.0.0.1:21800"
	}
	return ""
}

// inUse reports whether an address is taken. Windows has a number of its own for it, WSAEADDRINUSE.
func inUse(err error) bool {
	return errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.Errno(10048))
}
