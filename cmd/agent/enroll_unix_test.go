//go:build unix

package main

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestEnrollCanBeInterrupted while it waits for a token that does not come.
func TestEnrollCanBeInterrupted(t *testing.T) {
	cmd := exec.Command(program(t), "enroll", "--gateway", "http://127.0.0.1:1", "--home", t.TempDir())
	cmd.Env = append(os.Environ(), "DEVOPS_AGENT_INSTALL_TOKEN=")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stdin.Close() }()
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	tick := time.NewTicker(50 * time.Millisecond) // a signal before the program listens would end it in the rough way
	defer tick.Stop()
	for deadline := time.After(5 * time.Second); ; {
		select {
		case <-ended:
			if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(said.String(), "interrupted") {
				t.Errorf("%v, %s", cmd.ProcessState, said.String())
			}
			return
		case <-deadline:
			_ = cmd.Process.Kill()
			t.Fatalf("it still waits; %v", <-ended)
		case <-tick.C:
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Log(err)
			}
		}
	}
}
