package service

import (
	"os/exec"

	"github.com/devops-agent/devops-agent/service/proc"
)

func alone(*exec.Cmd) {}

func become(*exec.Cmd, *proc.Account) {}

// ownerIDs knows no numbers of accounts here.
func ownerIDs(string) (uid, gid uint32, ok bool) { return 0, 0, false }
