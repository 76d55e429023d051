//go:build !linux

package systemd

import (
	"os/exec"
	"testing"
)

// asNobody: there is no systemd to run.
func asNobody(*testing.T, *exec.Cmd, ...string) {}
