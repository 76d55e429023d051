package main

import (
	"errors"
	"os"
	"os/exec"

	"github.com/devops-agent/devops-agent/cmd/internal/cli"
)

// become runs a program and passes its exit code on: Windows cannot replace a process.
func become(path string, args []string) error {
	cmd := exec.Command(path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &cli.Exit{Code: exit.ExitCode()}
	}
	return err
}
