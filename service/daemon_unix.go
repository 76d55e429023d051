//go:build unix

package service

import (
	"errors"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// apart keeps what a terminal sends to us away from the agent: we pass on what is meant for it.
func apart(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// aloof reports whether a command can inherit nothing.
func aloof(*exec.Cmd) bool { return false }

// handOver gives the child the pipe on which it talks to us: descriptor 3 is the first after the usual ones.
func handOver(cmd *exec.Cmd, w *os.File) error {
	cmd.ExtraFiles = []*os.File{w}
	cmd.Env = append(cmd.Env, EnvNotifyFD+"=3")
	return nil
}

// terminate asks a child to end, and reports whether it can be asked so. A stopped one hears nothing until it goes on.
func terminate(p *os.Process) bool {
	_ = p.Signal(unix.SIGTERM) // it may have ended by itself
	_ = p.Signal(unix.SIGCONT)
	return true
}

// hangUp sends SIGHUP.
func hangUp(p *os.Process) bool { return p.Signal(unix.SIGHUP) == nil }

// abort has a Go program write down what all goroutines do, and end.
func abort(p *os.Process) error {
	return errors.Join(p.Signal(unix.SIGABRT), p.Signal(unix.SIGCONT))
}

func signalProcess(pid int, sig processSignal) error {
	switch sig {
	case killProcess:
		return unix.Kill(pid, unix.SIGKILL)
	case abortProcess:
		return errors.Join(unix.Kill(pid, unix.SIGABRT), unix.Kill(pid, unix.SIGCONT))
	}
	return errors.Join(unix.Kill(pid, unix.SIGTERM), unix.Kill(pid, unix.SIGCONT))
}

// signalsTell: how a process ended says whether somebody else ended it.
const signalsTell = true

// killedFromOutside: by one of the signals that people, scripts and a kernel short of memory use.
func killedFromOutside(state *os.ProcessState) bool {
	status, ok := state.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() {
		return false
	}
	switch status.Signal() {
	case unix.SIGKILL, unix.SIGTERM, unix.SIGINT, unix.SIGHUP:
		return true
	}
	return false
}

func inodeOf(info os.FileInfo) uint64 {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return stat.Ino
	}
	return 0
}
