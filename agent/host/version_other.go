//go:build !linux && !darwin && !windows

package host

import "runtime"

func osVersion() string { return runtime.GOOS }
