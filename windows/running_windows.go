package windows

import (
	"errors"
	"fmt"

	"golang.org/x/sys/windows/registry"
)

// NoteRunning writes down that a service was started, or stopped by somebody: an upgrade by the installer starts only what ran.
func NoteRunning(name string, running bool) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("note that service %s runs: %w", name, err)
		}
	}()
	key, _, err := registry.CreateKey(registry.LOCAL_MACHINE, RunningKey(name), registry.SET_VALUE)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, key.Close()) }()
	if running {
		return key.SetDWordValue(RunningValue, 1)
	}
	if err := key.DeleteValue(RunningValue); !errors.Is(err, registry.ErrNotExist) {
		return err
	}
	return nil
}
