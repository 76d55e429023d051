//go:build unix

package service

import (
	"os"
	"os/exec"
	"syscall"

	"github.com/devops-agent/devops-agent/service/proc"
)

// alone gives a program a session of its own, which no logout hangs up.
func alone(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }

// become lets a program run as an account, with what a login of that account would say about it. Nil is this process's own.
func become(cmd *exec.Cmd, a *proc.Account) {
	if a == nil {
		return
	}
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: a.UID, Gid: a.GID, Groups: a.Groups}
	cmd.Env = os.Environ()
	for _, v := range [][2]string{{"HOME", a.Home}, {"USER", a.Name}, {"LOGNAME", a.Name}} {
		if v[1] != "" {
			cmd.Env = append(cmd.Env, v[0]+"="+v[1]) // the last one counts
		}
	}
}

// ownerIDs is the account that a directory belongs to.
func ownerIDs(path string) (uid, gid uint32, ok bool) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, 0, false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false
	}
	return stat.Uid, stat.Gid, true
}
