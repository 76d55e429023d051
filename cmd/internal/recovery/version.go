package recovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/cli"
	"github.com/devops-agent/devops-agent/upgrader/journal"
)

const (
	versionLimit = 30 * time.Second // for a program to say its version
	mostVersion  = 256              // bytes of it

	busyTries = 20 // of a program that somebody still has open for writing: a process that was just forked, for instance
	busyPause = 50 * time.Millisecond
)

// Version asks a program for its version: what "version" makes it print, one line (protocol §3.1). A program that cannot be
// executed, ends with an error, prints nothing, or does not end is an error.
func Version(ctx context.Context, program string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, versionLimit, fmt.Errorf("no answer within %v", versionLimit))
	defer cancel()
	said := &limited{left: mostVersion + 1}
	for try := 0; ; try++ {
		cmd := exec.CommandContext(ctx, program, "version")
		cmd.Env = Environ()
		cmd.WaitDelay = time.Second
		cmd.Stdout = said
		err := cmd.Run()
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if !busy(err) || try == busyTries {
			return "", fmt.Errorf("ask %s for its version: %w", program, err)
		}
		timer := time.NewTimer(busyPause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
	version := strings.TrimSpace(said.String())
	if version == "" || said.left == 0 || strings.ContainsAny(version, "\r\n\x00") {
		return "", fmt.Errorf("ask %s for its version: %w", program, errNoVersion)
	}
	return strings.ToValidUTF8(version, "\ufffd"), nil
}

// errNoVersion: what a program printed is no version.
var errNoVersion = errors.New("it does not print one line")

// limited keeps the beginning of what is written.
type limited struct {
	strings.Builder
	left int
}

// Write is that of io.Writer. What is too much is dropped.
func (l *limited) Write(p []byte) (int, error) {
	keep := min(len(p), l.left)
	l.left -= keep
	_, _ = l.Builder.Write(p[:keep])
	return len(p), nil
}

var _ io.Writer = (*limited)(nil)

// Environ is the environment without what a keeper says to its one agent.
func Environ() []string {
	var env []string
	for _, entry := range os.Environ() {
		switch name, _, _ := strings.Cut(entry, "="); name {
		case "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "DEVOPS_NOTIFY_FD", "DEVOPS_TOTAL_LOCK", cli.EnvStderr, EnvRecovered, journal.EnvUpgrade,
			"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "JOURNAL_STREAM":
			continue
		}
		env = append(env, entry)
	}
	return env
}

// Variables between our own programs.
const (
	// EnvStderr holds the number of the descriptor that was standard error before an agent on trial got a file in its place.
	EnvStderr = cli.EnvStderr
	// EnvVendor is the directory of the package's programs, for an agent that runs from home.
	EnvVendor = "DEVOPS_VENDOR"
	// EnvRecovered holds the pid of a devopsDaemon whose start has been counted already, by "upgrader keep".
	EnvRecovered = "DEVOPS_RECOVERED"
)
