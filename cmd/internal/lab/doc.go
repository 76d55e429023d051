// Package lab: the test lab: an install tree, a controller, real processes, a power switch.
//
// The controller here is a [Recorder]: it answers like BK-CI, as the protocol describes it, writes down every request, and
// can be told to answer anything else. Paths, field names and rules are written out once more from the protocol and not
// taken from agent/wire, so that a mistake there does not hide itself here.
package lab

import "time"

// T is what the lab needs of a test. *testing.T and *testing.B have it, and so has whatever runs several checks in one
// go. Fatalf must not return.
type T interface {
	Helper()
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	TempDir() string
	Cleanup(func())
}

// Eventually waits until a condition holds, looking again every 20 ms, and reports whether it did in time. It is for
// things that send no event: files, locks, processes that are not our children.
func Eventually(limit time.Duration, holds func() bool) bool {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline.C:
			return holds()
		case <-tick.C:
		}
	}
	return true
}
