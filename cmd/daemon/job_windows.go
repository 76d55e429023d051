package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	win "golang.org/x/sys/windows"
)

// job is the Job Object of all agents that this daemon starts, and of what they start: builds have jobs of their own inside.
// It does not end with us, so that a killed daemon kills no build (protocol §8.11 statement 103), and is used only to end what
// an agent left that had to be killed at a stop. A nil job does nothing.
type job struct{ handle win.Handle }

func newJob() (*job, error) {
	h, err := win.CreateJobObject(nil, nil)
	if err != nil {
		return nil, fmt.Errorf("create job object: %w", err)
	}
	return &job{h}, nil
}

func (j *job) close() {
	if j != nil {
		_ = win.CloseHandle(j.handle)
	}
}

// prepare has the agent start suspended: nothing may be spawned before it is in the job.
func (j *job) prepare(cmd *exec.Cmd) {
	if j != nil {
		cmd.SysProcAttr.CreationFlags |= win.CREATE_SUSPENDED
	}
}

// take puts a process into the job and lets it run. One that cannot be put there runs without.
func (j *job) take(p *os.Process) (err error) {
	if j == nil {
		return nil
	}
	h, err := win.OpenProcess(win.PROCESS_SET_QUOTA|win.PROCESS_TERMINATE|win.PROCESS_SUSPEND_RESUME, false, uint32(p.Pid))
	if err != nil {
		return errors.Join(fmt.Errorf("open process %d: %w", p.Pid, err), p.Kill())
	}
	defer func() { err = errors.Join(err, win.CloseHandle(h)) }()
	if aerr := win.AssignProcessToJobObject(j.handle, h); aerr != nil {
		err = fmt.Errorf("put process %d into the job object: %w", p.Pid, aerr)
	}
	resume := win.NewLazySystemDLL("ntdll.dll").NewProc("NtResumeProcess")
	if status, _, _ := resume.Call(uintptr(h)); status != 0 {
		err = errors.Join(err, fmt.Errorf("resume process %d: status %#x", p.Pid, status), p.Kill())
	}
	return err
}

// terminate ends everything in the job.
func (j *job) terminate() error {
	if j == nil {
		return nil
	}
	if err := win.TerminateJobObject(j.handle, 1); err != nil {
		return fmt.Errorf("end the job object: %w", err)
	}
	return nil
}
