package service

import (
	"errors"
	"os"
	"testing"
)

// A barred role cannot be taken and is nobody's; a role that is taken cannot be barred.
func TestBar(t *testing.T) {
	inst := &Installation{Home: t.TempDir()}
	bar, err := inst.Bar(t.Context(), RoleAgent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inst.Hold(t.Context(), RoleAgent); !errors.Is(err, ErrRunning) {
		t.Errorf("a barred role was taken: %v", err)
	}
	if _, err := inst.Bar(t.Context(), RoleAgent); !errors.Is(err, ErrRunning) {
		t.Errorf("a barred role was barred again: %v", err)
	}
	if _, err := os.Stat(inst.Path("runtime", "agent.pid")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("who bars a role is noted as its holder: %v", err)
	}
	if err := bar.Release(); err != nil {
		t.Fatal(err)
	}
	own, err := inst.Hold(t.Context(), RoleAgent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inst.Bar(t.Context(), RoleAgent); !errors.Is(err, ErrRunning) {
		t.Errorf("a role that somebody has was barred: %v", err)
	}
	if err := own.Release(); err != nil {
		t.Fatal(err)
	}
}
