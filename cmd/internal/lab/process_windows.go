package lab

import "syscall"

// ownGroup keeps a Ctrl-C at the terminal away from the program.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}
