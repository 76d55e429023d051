package service

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	win "golang.org/x/sys/windows"
)

// apart keeps what a console sends to us away from the agent: we pass on what is meant for it. It has a console of its own
// without a window, in which its builds can be told to end.
func apart(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{HideWindow: true, CreationFlags: win.CREATE_NEW_PROCESS_GROUP | win.CREATE_NO_WINDOW}
}

// aloof reports whether a command can inherit nothing, as a process of another session.
func aloof(cmd *exec.Cmd) bool { return cmd.SysProcAttr != nil && cmd.SysProcAttr.NoInheritHandles }

// handOver gives the child the pipe on which it talks to us, under the number that it has here.
func handOver(cmd *exec.Cmd, w *os.File) error {
	handle := w.Fd()
	if err := win.SetHandleInformation(win.Handle(handle), win.HANDLE_FLAG_INHERIT, win.HANDLE_FLAG_INHERIT); err != nil {
		return err
	}
	cmd.SysProcAttr.AdditionalInheritedHandles = append(cmd.SysProcAttr.AdditionalInheritedHandles, syscall.Handle(handle))
	cmd.Env = append(cmd.Env, EnvNotifyFD+"="+strconv.FormatUint(uint64(handle), 10))
	return nil
}

// terminate reports that no signal asks a process to end: its control pipe does.
func terminate(*os.Process) bool { return false }

func hangUp(*os.Process) bool { return false }

func abort(*os.Process) error { return errors.ErrUnsupported }

func signalProcess(pid int, sig processSignal) (err error) {
	if sig != killProcess {
		return errors.ErrUnsupported
	}
	p, err := win.OpenProcess(win.PROCESS_TERMINATE, false, uint32(pid))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, win.CloseHandle(p)) }()
	return win.TerminateProcess(p, 1)
}

// signalsTell: TerminateProcess leaves an ordinary exit code, so that only an agent's silence about its end tells.
const signalsTell = false

// killedFromOutside: with the exit code that the Task Manager and taskkill leave.
func killedFromOutside(state *os.ProcessState) bool { return state.ExitCode() == 1 }

func inodeOf(os.FileInfo) uint64 { return 0 }
