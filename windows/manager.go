package windows

import (
	"fmt"
	"time"
)

// Status is what the service manager says about a service.
type Status struct {
	Installed bool
	Enabled   bool   // starts with the machine
	State     string // "stopped", "start pending", "running", …
	PID       int    // 0 for none
	Exit      uint32 // Win32 exit code of the last end, 0 for success
	Specific  uint32 // service-specific one, when Exit is 1066
	Image     string // command line, as registered
	Started   time.Time
}

// Down reports whether the service has no process.
func (s Status) Down() bool { return s.PID == 0 }

// NotInstalledError: the service manager does not know the service.
type NotInstalledError struct{ Name string }

// Error names the service.
func (e *NotInstalledError) Error() string { return "service " + e.Name + " is not installed" }

// Hint says how to install it.
func (e *NotInstalledError) Hint() string {
	return `"devopsAgent install" registers the agent with the service manager`
}

// RightsError: only administrators may do that.
type RightsError struct {
	Do    string
	Cause error
}

// Error says what was refused.
func (e *RightsError) Error() string { return e.Do + ": " + e.Cause.Error() }

// Unwrap returns the cause.
func (e *RightsError) Unwrap() error { return e.Cause }

// Hint says who may.
func (e *RightsError) Hint() string {
	return "open a command prompt by \"Run as administrator\" and do it again there"
}

// DeletedError: the service is marked for deletion, which is done when nobody has it open any more.
type DeletedError struct{ Name string }

// Error names the service.
func (e *DeletedError) Error() string {
	return "service " + e.Name + " is being deleted"
}

// Hint names the usual cause.
func (e *DeletedError) Hint() string {
	return "close services.msc, the Task Manager and the Event Viewer, which keep it open, and do it again"
}

// EndedError: a service ended instead of starting.
type EndedError struct {
	Name           string
	Exit, Specific uint32
}

// Error says how.
func (e *EndedError) Error() string {
	if e.Specific != 0 {
		return fmt.Sprintf("service %s ended while it was starting (specific exit code %d)", e.Name, e.Specific)
	}
	return fmt.Sprintf("service %s ended while it was starting (exit code %d)", e.Name, e.Exit)
}

// Hint says where the reason is.
func (e *EndedError) Hint() string {
	return `the reason is in logs\devopsDaemon.log of home and in the Application event log`
}

// StuckError: a service does not come along.
type StuckError struct {
	Name, State string
	For         time.Duration
}

// Error says since when.
func (e *StuckError) Error() string {
	return fmt.Sprintf("service %s is %s and has made no progress for %v", e.Name, e.State, e.For.Round(time.Second))
}
