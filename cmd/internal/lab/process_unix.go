//go:build unix

package lab

import "syscall"

// ownGroup keeps a Ctrl-C at the terminal, and signals to the test's group, away from the program.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
