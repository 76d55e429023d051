package agent

import (
	"errors"
	"fmt"

	"golang.org/x/sys/windows"

	"github.com/devops-agent/devops-agent/service"
)

// onlyCreator takes the machine-wide mutex of an agent in create mode and keeps it until the process ends
// (protocol §1.7.3, step 6). Somebody else having it ends this agent for good.
func onlyCreator() error {
	name, err := windows.UTF16PtrFromString(`Global\BKCI_AGENT_AGENT_Mutex`)
	if err != nil {
		return nil
	}
	if _, err = windows.CreateMutex(nil, true, name); errors.Is(err, windows.ERROR_ALREADY_EXISTS) {
		return fmt.Errorf("another agent in create mode runs on this machine: %w", service.ErrRemoved)
	}
	return nil
}
