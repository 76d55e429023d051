package service

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Variables by which a keeper says how it wants to be told (sd_notify(3)); NotifyFD is that of our own daemon.
const (
	envNotifySocket = "NOTIFY_SOCKET"
	envWatchdog     = "WATCHDOG_USEC"
	envWatchdogPID  = "WATCHDOG_PID"

	// EnvNotifyFD holds the number of an inherited pipe (Windows: handle) to which an agent under devopsDaemon writes
	// the messages of sd_notify(3): assignments, a line each, and an empty line after each message.
	EnvNotifyFD = "DEVOPS_NOTIFY_FD"
)

// Notifier tells a keeper how the agent is: systemd by its socket, devopsDaemon by an inherited pipe, with the same words
// (sd_notify(3)). Without either it says nothing. Its methods may be called from any goroutine; a nil Notifier is mute.
type Notifier struct {
	mu       sync.Mutex
	socket   string
	pipe     io.Writer
	watchdog time.Duration
	status   string
}

// NewNotifier reads and removes the keeper's variables from the environment, so that no build inherits them. A keeper that
// cannot be told is an error and a Notifier that is mute.
func NewNotifier() (*Notifier, error) {
	n := &Notifier{socket: os.Getenv(envNotifySocket)}
	fd, usec, pid := os.Getenv(EnvNotifyFD), os.Getenv(envWatchdog), os.Getenv(envWatchdogPID)
	var errs []error
	for _, name := range []string{envNotifySocket, EnvNotifyFD, envWatchdog, envWatchdogPID} {
		errs = append(errs, os.Unsetenv(name))
	}
	if fd != "" {
		handle, err := strconv.ParseUint(fd, 10, 64)
		if err == nil {
			err = closeOnExec(uintptr(handle))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("take over the keeper's pipe %q: %w", fd, err))
		} else {
			n.pipe = os.NewFile(uintptr(handle), "keeper's pipe")
		}
	}
	if usec != "" && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		us, err := strconv.ParseInt(usec, 10, 64)
		if err != nil || us <= 0 {
			errs = append(errs, fmt.Errorf("%s is %q, want microseconds", envWatchdog, usec))
		}
		n.watchdog = max(0, time.Duration(us)*time.Microsecond)
	}
	return n, errors.Join(errs...)
}

// Kept reports whether anybody listens.
func (n *Notifier) Kept() bool { return n != nil && (n.socket != "" || n.pipe != nil) }

// Watchdog is how long the keeper lets Alive stay away before it replaces the agent; 0 when it does not look.
func (n *Notifier) Watchdog() time.Duration {
	if n == nil {
		return 0
	}
	return n.watchdog
}

// Ready says that the agent works.
func (n *Notifier) Ready() error { return n.send("READY=1") }

// Alive feeds the watchdog.
func (n *Notifier) Alive() error { return n.send("WATCHDOG=1") }

// Status sets the sentence that "systemctl status" shows. The same one twice in a row is sent once.
func (n *Notifier) Status(sentence string) error { return n.Tell(sentence, false) }

// Tell is Status and, if alive, Alive in one message: an agent that has nothing to do wakes its keeper half as often.
func (n *Notifier) Tell(sentence string, alive bool) error {
	if n == nil {
		return nil
	}
	sentence = strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, sentence)
	n.mu.Lock()
	same := n.status == sentence
	n.status = sentence
	n.mu.Unlock()
	var lines []string
	if !same {
		lines = append(lines, "STATUS="+sentence)
	}
	if alive {
		lines = append(lines, "WATCHDOG=1")
	}
	if len(lines) == 0 {
		return nil
	}
	return n.send(strings.Join(lines, "\n"))
}

// Reloading says that the configuration is read again; Ready follows.
func (n *Notifier) Reloading() error {
	return n.send("RELOADING=1\nMONOTONIC_USEC=" + strconv.FormatInt(monotonicMicroseconds(), 10))
}

// Stopping says that the agent is about to end.
func (n *Notifier) Stopping() error { return n.send("STOPPING=1") }

// Extend asks for at least so much more time to stop. Whoever needs longer asks again.
func (n *Notifier) Extend(d time.Duration) error {
	return n.send("EXTEND_TIMEOUT_USEC=" + strconv.FormatInt(d.Microseconds(), 10))
}

func (n *Notifier) send(state string) error {
	if !n.Kept() {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	if n.pipe != nil {
		if _, err := io.WriteString(n.pipe, state+"\n\n"); err != nil { // one write: a reader never sees half of it
			errs = append(errs, fmt.Errorf("tell the daemon: %w", err))
		}
	}
	if n.socket != "" {
		errs = append(errs, datagram(n.socket, state))
	}
	return errors.Join(errs...)
}

// datagram sends one message the way sd_notify(3) does. An address that begins with @ is abstract.
func datagram(socket, state string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	return nil
}
