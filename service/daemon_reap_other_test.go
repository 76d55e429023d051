//go:build !linux

package service

import "errors"

// playReaper is a part that only Linux has.
func playReaper() error { return errors.ErrUnsupported }
