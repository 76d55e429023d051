package windows

import (
	"fmt"

	"golang.org/x/sys/windows/svc/eventlog"
)

// Events is the Application event log. Its methods may be called from any goroutine; a log that cannot be written costs the
// event.
type Events struct{ log *eventlog.Log }

// OpenEvents opens the log for a source, which Install registered.
func OpenEvents(source string) (*Events, error) {
	log, err := eventlog.Open(source)
	if err != nil {
		return nil, fmt.Errorf("open the event log for %s: %w", source, err)
	}
	return &Events{log}, nil
}

// Close closes the log.
func (e *Events) Close() error { return e.log.Close() }

// Info writes that something is as it should be.
func (e *Events) Info(id uint32, text string) { _ = e.log.Info(id, text) }

// Warn writes that something is not, and will be tried again.
func (e *Events) Warn(id uint32, text string) { _ = e.log.Warning(id, text) }

// Error writes that a human should come.
func (e *Events) Error(id uint32, text string) { _ = e.log.Error(id, text) }
