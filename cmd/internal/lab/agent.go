package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// Agent is a running program of a home, usually its agent.
type Agent struct {
	Home *Home

	cmd    *exec.Cmd
	out    string
	ended  chan struct{} // closed when the process has been waited for
	began  time.Time
	exited time.Time // valid once ended is closed
}

// Start runs the agent of a home without arguments, as a supervisor does. Its directory is not the home, so that the agent
// has to find it. env overrides entries of the lab's small environment.
func (h *Home) Start(env ...string) *Agent {
	h.t.Helper()
	return h.StartArgs(nil, env...)
}

// StartArgs runs the agent with arguments.
func (h *Home) StartArgs(args []string, env ...string) *Agent {
	h.t.Helper()
	return h.StartProgram(h.Path("devopsAgent"+exeSuffix()), h.Lab, args, env...)
}

// StartProgram runs any program with the lab's environment. It is killed when the test ends.
func (h *Home) StartProgram(path, dir string, args []string, env ...string) *Agent {
	h.t.Helper()
	a := &Agent{Home: h, out: h.LabPath("output"), ended: make(chan struct{})}
	out, err := os.OpenFile(a.out, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		h.t.Fatalf("start %s: %v", path, err)
	}
	defer func() { _ = out.Close() }()
	a.cmd = exec.Command(path, args...)
	a.cmd.Dir, a.cmd.Env, a.cmd.Stdout, a.cmd.Stderr = dir, childEnv(h.Lab, h.User, env...), out, out
	a.cmd.SysProcAttr = ownGroup()
	a.began = time.Now()
	if err := a.cmd.Start(); err != nil {
		h.t.Fatalf("start %s: %v", path, err)
	}
	go func() {
		_ = a.cmd.Wait() // how it ended is in ProcessState
		a.exited = time.Now()
		close(a.ended)
	}()
	h.t.Cleanup(func() {
		_ = a.cmd.Process.Kill()
		<-a.ended
	})
	return a
}

// Pid returns the process id.
func (a *Agent) Pid() int { return a.cmd.Process.Pid }

// Began returns when the process was started.
func (a *Agent) Began() time.Time { return a.began }

// Alive reports whether the process still runs.
func (a *Agent) Alive() bool {
	select {
	case <-a.ended:
		return false
	default:
		return true
	}
}

// Wait waits for the process to end and returns its exit code, -1 after a signal. The error says that it still runs.
func (a *Agent) Wait(limit time.Duration) (int, error) {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	select {
	case <-a.ended:
		return a.cmd.ProcessState.ExitCode(), nil
	case <-deadline.C:
		return 0, fmt.Errorf("pid %d still runs after %v", a.Pid(), limit)
	}
}

// Exited returns how the process ended, in words, and when. It must have ended.
func (a *Agent) Exited() (string, time.Time) {
	<-a.ended
	return a.cmd.ProcessState.String(), a.exited
}

// Kill is kill -9, and waits.
func (a *Agent) Kill() {
	_ = a.cmd.Process.Kill()
	<-a.ended
}

// Term asks the process to end, as a supervisor does. It does not wait.
func (a *Agent) Term() error {
	err := a.cmd.Process.Signal(syscall.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Output returns what the programs of this home have written to standard output and error so far.
func (a *Agent) Output() string {
	data, _ := os.ReadFile(a.out)
	return string(data)
}
