package service

import "errors"

// kept is a part that only Unix has: its tests need signals.
const kept = "kept"

func playKept() error { return errors.ErrUnsupported }
