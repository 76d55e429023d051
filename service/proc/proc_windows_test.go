package proc

import (
	"os"
	"os/exec"
	"syscall"
)

func terminateSignal() os.Signal { return syscall.SIGTERM }

func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}
