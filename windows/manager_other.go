//go:build !windows

package windows

import (
	"context"
	"errors"
	"os/exec"
)

// Manager is the service manager of a Windows machine, which this one is not: every method returns errors.ErrUnsupported.
type Manager struct{}

// Install is for Windows.
func (Manager) Install(Service) error { return errors.ErrUnsupported }

// Remove is for Windows.
func (Manager) Remove(context.Context, string) error { return errors.ErrUnsupported }

// Start is for Windows.
func (Manager) Start(context.Context, string) error { return errors.ErrUnsupported }

// Stop is for Windows.
func (Manager) Stop(context.Context, string) error { return errors.ErrUnsupported }

// Query is for Windows.
func (Manager) Query(string) (Status, error) { return Status{}, errors.ErrUnsupported }

// Protect is for Windows.
func Protect(string, string) error { return errors.ErrUnsupported }

// Reclaim is for Windows.
func Reclaim(string, ...string) error { return errors.ErrUnsupported }

// SecurityOf is for Windows.
func SecurityOf(string) (Security, error) { return Security{}, errors.ErrUnsupported }

// CheckPrograms is for Windows.
func CheckPrograms(string, ...string) error { return errors.ErrUnsupported }

// Privileged is for Windows.
func Privileged() bool { return false }

// ConsoleUser is for Windows.
func ConsoleUser() (*User, error) { return nil, errors.ErrUnsupported }

// User is somebody who is logged on to Windows.
type User struct{ Name, SID string }

// Start is for Windows.
func (*User) Start(*exec.Cmd) error { return errors.ErrUnsupported }

// Close is for Windows.
func (*User) Close() error { return errors.ErrUnsupported }
