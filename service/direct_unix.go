//go:build unix

package service

import (
	"os/exec"
	"syscall"
)

// alone gives a program a session of its own, which no logout hangs up.
func alone(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }
