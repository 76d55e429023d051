package packaging

import "time"

// Change is what a version brought.
type Change struct {
	Version string // "Unreleased" or 1.2.3
	Time    time.Time
	Items   []string // paragraphs of plain text
}
