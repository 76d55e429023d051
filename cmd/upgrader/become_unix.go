//go:build unix

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/devops-agent/devops-agent/cmd/internal/cli"
)

// become replaces this process by a program: same pid, so that what the keeper watches is the agent. runs is told that pid.
func become(path string, args []string, runs func(pid int)) error {
	runs(os.Getpid())
	return &os.PathError{Op: "start", Path: path, Err: syscall.Exec(path, append([]string{path}, args...), os.Environ())}
}

// divert sends standard error to a file, and leaves the one before open for the agent, which puts it back when it has settled.
func divert(path string) (restore func(), err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	before, err := unix.FcntlInt(uintptr(unix.Stderr), unix.F_DUPFD, 3) // without close-on-exec
	if err == nil {
		err = replaceFD(int(f.Fd()), unix.Stderr) //nolint:gosec // a descriptor fits
	}
	if err == nil {
		err = os.Setenv(cli.EnvStderr, strconv.Itoa(before))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("send standard error to %s: %w", path, err)
	}
	return func() {
		_ = replaceFD(before, unix.Stderr)
		_ = unix.Close(before)
		_ = os.Unsetenv(cli.EnvStderr)
	}, nil
}

// detach lets a program outlive us and our terminal.
func detach(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }

func setUmask(mask int) { syscall.Umask(mask) }
