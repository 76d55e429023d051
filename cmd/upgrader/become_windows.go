package main

import (
	"errors"
	"os"
	"os/exec"
	"syscall"

	win "golang.org/x/sys/windows"

	"github.com/devops-agent/devops-agent/cmd/internal/cli"
)

// become runs a program and passes its exit code on: Windows cannot replace a process. runs is told its pid.
func become(path string, args []string, runs func(pid int)) error {
	cmd := exec.Command(path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	runs(cmd.Process.Pid)
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &cli.Exit{Code: exit.ExitCode()}
	}
	return err
}

// divert does nothing: here devopsDaemon keeps the agent, and what it says.
func divert(string) (restore func(), err error) { return func() {}, nil }

// detach lets a program outlive us and our console. It stays in the job of the agent, which ends with nobody.
func detach(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{HideWindow: true, CreationFlags: win.CREATE_NEW_PROCESS_GROUP | win.DETACHED_PROCESS}
}

// setUmask does nothing: modes come from the directory.
func setUmask(int) {}
