package service

import (
	"context"
	"os"
	"time"
)

// ReadOnlyError: nothing can be written in a home, so no agent can take its role there.
type ReadOnlyError struct{ Home string }

// Error names the home.
func (e *ReadOnlyError) Error() string { return "the file system of " + e.Home + " is read-only" }

// Hint says what to look at.
func (e *ReadOnlyError) Hint() string {
	return "look into the system's log for errors of the disk, and mount it for writing; the agent starts by itself then"
}

// Writable is a *ReadOnlyError when the file system of the home takes no writing: mounted so, or put so by the system after errors of
// the disk.
func (i *Installation) Writable() error {
	dir := i.Path("runtime") // where roles are taken
	if _, err := os.Stat(dir); err != nil {
		dir = i.Home
	}
	if readOnly(dir) {
		return &ReadOnlyError{Home: i.Home}
	}
	return nil
}

// writableEvery is the distance of looks at a read-only disk.
const writableEvery = time.Second

// AwaitWritable waits while the file system of the home is read-only; say is told so at first and then every second. It ends with ctx as
// well.
func (i *Installation) AwaitWritable(ctx context.Context, say func(error)) {
	for ctx.Err() == nil {
		err := i.Writable()
		if err == nil {
			return
		}
		say(err)
		timer := time.NewTimer(writableEvery)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}
